/* core/options.c - what all option tables have in common: freeing, and the nearest right spelling. */
#include "core/options.h"

#include "core/alloc.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

static void strings_fini(struct spate_strings *list)
{
    for (size_t i = 0; i < list->count; i++)
        free(list->at[i]);
    free(list->at);
    free(list->line);
    *list = (struct spate_strings){0};
}

static void pairs_fini(struct spate_pairs *pairs)
{
    for (size_t i = 0; i < pairs->count; i++) {
        free(pairs->at[i].key);
        free(pairs->at[i].value);
    }
    free(pairs->at);
    *pairs = (struct spate_pairs){0};
}

static void lists_fini(struct spate_lists *lists)
{
    for (size_t i = 0; i < lists->count; i++) {
        free(lists->at[i].key);
        strings_fini(&lists->at[i].list);
    }
    free(lists->at);
    *lists = (struct spate_lists){0};
}

static void maps_fini(struct spate_maps *maps)
{
    for (size_t i = 0; i < maps->count; i++) {
        free(maps->at[i].key);
        pairs_fini(&maps->at[i].map);
    }
    free(maps->at);
    *maps = (struct spate_maps){0};
}

static void group_fini(struct spate_group *group, const struct spate_option_group *about)
{
    const struct spate_option_table table = {.prefix = "", .options = about->options, .count = about->count};

    for (size_t i = 0; i < group->count; i++) {
        char *element = (char *)group->at + i * about->size;

        free(((struct spate_group_item *)(void *)element)->name);
        spate_options_fini(element, &table, 1);
    }
    free(group->at);
    *group = (struct spate_group){0};
}

static void option_fini(void *member, const struct spate_option *option)
{
    switch (option->type) {
    case SPATE_OPT_STRING:
        free(*(char **)member);
        *(char **)member = NULL;
        break;
    case SPATE_OPT_LIST:
        strings_fini(member);
        break;
    case SPATE_OPT_MAP:
        pairs_fini(member);
        break;
    case SPATE_OPT_LISTS:
        lists_fini(member);
        break;
    case SPATE_OPT_MAPS:
        maps_fini(member);
        break;
    case SPATE_OPT_GROUP:
        group_fini(member, option->group);
        break;
    case SPATE_OPT_BOOL:
    case SPATE_OPT_INT:
    case SPATE_OPT_DURATION:
    case SPATE_OPT_BYTES:
    case SPATE_OPT_ENUM:
        break; /* nothing allocated */
    }
}

void spate_options_fini(void *into, const struct spate_option_table *tables, size_t count)
{
    for (size_t t = 0; t < count; t++)
        for (size_t i = 0; i < tables[t].count; i++) {
            const struct spate_option *option = &tables[t].options[i];

            option_fini((char *)into + tables[t].offset + option->offset, option);
        }
}

bool spate_secret_name(const char *name)
{
    /* Names of librdkafka and of Kafka's own clients. Rather too much is hidden than too little. */
    static const char *const words[] = {"password", "passwd",      "secret",     "token",
                                        "key.pem",  "jaas.config", "credential", "oauthbearer.config"};

    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        if (strcasestr(name, words[i]))
            return true;
    return false;
}

#define WORD_MAX 63 /* longer words are no slip of the finger */

static size_t least(size_t a, size_t b, size_t c)
{
    size_t ab = a < b ? a : b;

    return ab < c ? ab : c;
}

/* Edits between two words: insert, delete, replace, swap of neighbours (restricted Damerau-Levenshtein). Case
 * does not count. Both are at most WORD_MAX long. */
static size_t distance(const char *a, size_t alen, const char *b, size_t blen)
{
    size_t row[3][WORD_MAX + 1];
    size_t *before = row[0], *above = row[1], *here = row[2];

    for (size_t j = 0; j <= blen; j++)
        above[j] = j;
    for (size_t i = 1; i <= alen; i++) {
        int ca = tolower((unsigned char)a[i - 1]);
        size_t *spare = before;

        here[0] = i;
        for (size_t j = 1; j <= blen; j++) {
            int cb = tolower((unsigned char)b[j - 1]);

            here[j] = least(above[j] + 1, here[j - 1] + 1, above[j - 1] + (ca != cb));
            if (i > 1 && j > 1 && ca == tolower((unsigned char)b[j - 2]) &&
                cb == tolower((unsigned char)a[i - 2]) && before[j - 2] + 1 < here[j])
                here[j] = before[j - 2] + 1;
        }
        before = above;
        above = here;
        here = spare;
    }
    return above[blen];
}

const char *spate_nearest(const char *word, const char *const *candidates, size_t count)
{
    size_t len = strlen(word);
    size_t allowed = len < 3 ? 1 : len / 3 + (len % 3 == 2);
    const char *best = NULL;

    if (len == 0 || len > WORD_MAX)
        return NULL;
    for (size_t i = 0; i < count; i++) {
        size_t clen = strlen(candidates[i]);
        size_t edits;

        if (clen == 0 || clen > WORD_MAX)
            continue;
        edits = distance(word, len, candidates[i], clen);
        /* A distance as long as the word means that nothing of it was kept. */
        if (edits > allowed || edits >= clen || edits >= len)
            continue;
        if (best && edits >= distance(word, len, best, strlen(best)))
            continue;
        best = candidates[i];
    }
    return best;
}
