/* sinks_drive URL SCHEMA sweep|swap TABLE[=WHERE|~WHERE]... - a sink's side of snapshots without a bus: each
 * line of stdin is a change, or a step of a snapshot, and is answered by one line. All tables are (id
 * integer, a integer, b text) at the source; b may come unchanged, except with "=". With "~" the target's b
 * is made of both, so that there is a copy.
 *
 *   i|u|r TABLE ID A B     insert, update, row of a snapshot; B: "-" did not come, "~" NULL
 *   m TABLE OLD ID A B     update that moves the key
 *   d|k TABLE ID           delete; a key that was looked up and is answered
 *   t TABLE...             truncate
 *   commit PLACE [TABLE NO TOKEN]    applies what came; with a chunk that it completes
 *   piece                  applies it, and leaves the transaction open
 *   begin all|some REQUEST TABLE...    finish TABLE...    abandon stale|kept TABLE...
 *   keys TABLE MOST        state TABLE
 *   v TABLE 1|2|3          with "~": changes are of this version from now on. 2: a is bigint, b varchar;
 *                          3: REPLICA IDENTITY FULL, so that b has to come */
#include "core/arena.h"
#include "core/failpoint.h"
#include "sinks/apply.h"
#include "sinks/projection.h"
#include "tests/support/schemas_fixture.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

enum { MOST_ITEMS = 30000, MOST_TABLES = 4, MOST_WORDS = 12 };

static struct spate_sink_config config;
static struct spate_sink_table_config configs[MOST_TABLES];
static struct spate_projection projections[MOST_TABLES], *chosen[MOST_TABLES];
static struct spate_table *tables[MOST_TABLES], *later[MOST_TABLES][2];
static struct spate_store store;
static struct spate_apply apply;
static struct spate_item items[MOST_ITEMS];
static size_t table_count, item_count, chosen_count;
static struct spate_arena arena;
static uint64_t n;
static char *words[MOST_WORDS];
static size_t word_count;

static struct spate_table *source_table(const char *name, bool whole, uint32_t v)
{
    const struct fixture_column columns[] = {
        {"id", "integer", NULL, 23, -1, 4, true},
        {"a", v == 2 ? "bigint" : "integer", NULL, v == 2 ? 20 : 23, -1, v == 2 ? 8 : 4, whole},
        {"b", v == 2 ? "character varying" : "text", NULL, v == 2 ? 1043 : 25, -1, -1, whole}};
    struct spate_table *table = fixture_table(name, whole ? SPATE_IDENTITY_FULL : SPATE_IDENTITY_DEFAULT,
                                              columns, 3, (const uint32_t[]){0}, 1);

    table->v = v;
    return table;
}

static char *word_of(const char *text)
{
    return (char *)(uintptr_t)text;
}

static void fail(const struct spate_err *err)
{
    printf("fail exit=%d sqlstate=%s %s\n", (int)err->exit_code, err->sqlstate, err->text);
    fflush(stdout);
}

static enum spate_rc open_all(int argc, char **argv, struct spate_err *err)
{
    static struct spate_pair mixed[3];
    const struct spate_pair words_of[] = {{word_of("id"), word_of("id"), 1},
                                          {word_of("a"), word_of("a::bigint"), 1},
                                          {word_of("b"), word_of("b || '.' || a"), 1}};
    enum spate_rc rc;

    memcpy(mixed, words_of, sizeof mixed);
    config =
        (struct spate_sink_config){.path = "team.yaml", .name = argv[2], .from = (char *)(uintptr_t) "shop"};
    config.into.url = argv[1];
    config.into.schema = argv[2];
    config.stop_deadline_ms = 10000;
    config.on_snapshot = strcmp(argv[3], "swap") == 0 ? SPATE_SINK_SWAP : SPATE_SINK_SWEEP;
    for (int i = 4; i < argc && table_count < MOST_TABLES; i++) {
        char *at = argv[i] + strcspn(argv[i], "=~"), *where = *at ? at + 1 : NULL, from[100];
        const bool copied = *at == '~';

        *at = 0;
        snprintf(from, sizeof from, "public.%s", argv[i]);
        configs[table_count] = (struct spate_sink_table_config){
            .item = {.name = argv[i], .line = i}, .from = spate_strdup(from), .where = where};
        if (copied)
            configs[table_count].columns = (struct spate_pairs){mixed, 3};
        for (uint32_t v = 2; v <= 3; v++)
            later[table_count][v - 2] = source_table(argv[i], v == 3, v);
        tables[table_count++] = source_table(argv[i], where && !copied, 1);
    }
    config.tables = (struct spate_group){configs, table_count};
    spate_store_init(&store, &config);
    store.source_driver = "local";
    spate_apply_init(&apply, &store);
    apply.projections = projections;
    apply.projection_count = table_count;
    for (size_t i = 0; i < table_count; i++)
        if (spate_projection_init(&projections[i], &config, i, err) != SPATE_OK)
            return SPATE_FAIL;
    rc = spate_store_open(&store, err);
    if (rc == SPATE_OK)
        rc = spate_store_claim_tables(&store, err);
    if (rc == SPATE_OK)
        rc = spate_load_read(&store, projections, table_count, err);
    for (size_t i = 0; rc == SPATE_OK && i < table_count; i++) {
        rc = spate_projection_version(&projections[i], &store, tables[i], &projections[i].current, err);
        if (rc == SPATE_OK)
            spate_load_compare(&projections[i]);
        if (rc == SPATE_OK)
            rc = spate_apply_prepare(&apply, projections[i].current, err);
    }
    n = store.mark.place.n;
    return rc;
}

static size_t table_named(const char *name)
{
    for (size_t i = 0; i < table_count; i++)
        if (name && strcmp(configs[i].item.name, name) == 0)
            return i;
    fprintf(stderr, "sinks_drive: no table %s\n", name ? name : "(none)");
    exit(2);
}

static void choose(size_t from)
{
    chosen_count = 0;
    while (from < word_count)
        chosen[chosen_count++] = &projections[table_named(words[from++])];
}

static struct spate_value value(const char *word)
{
    if (strcmp(word, "-") == 0)
        return (struct spate_value){.kind = SPATE_VALUE_ABSENT};
    if (strcmp(word, "~") == 0)
        return (struct spate_value){.kind = SPATE_VALUE_NULL};
    return (struct spate_value){SPATE_VALUE_TEXT, spate_arena_copy(&arena, spate_slice_str(word))};
}

static void add_row(char op, size_t at, const char *old, char **row, size_t count)
{
    struct spate_item *item = &items[item_count++];
    struct spate_value *values = spate_arena_alloc(&arena, 4 * sizeof *values);

    for (size_t i = 0; i < count; i++)
        values[i] = value(row[i]);
    *item = (struct spate_item){
        .op = op == 'i'                ? SPATE_OP_INSERT
              : op == 'u' || op == 'm' ? SPATE_OP_UPDATE
              : op == 'd'              ? SPATE_OP_DELETE
              : op == 'r'              ? SPATE_OP_READ
                                       : SPATE_OP_CHUNK,
        .n = op == 'r' || op == 'k' ? n : ++n,
        .version = projections[at].current,
        .key = values,
        .values = count > 1 ? values : NULL,
    };
    if (old) {
        values[3] = value(old);
        item->old_key = &values[3];
    }
}

static void add_truncate(void)
{
    struct spate_item *item = &items[item_count++];

    choose(1);
    *item = (struct spate_item){.op = SPATE_OP_TRUNCATE, .n = ++n, .table_count = chosen_count};
    item->tables = spate_arena_alloc(&arena, chosen_count * sizeof *item->tables);
    for (size_t i = 0; i < chosen_count; i++)
        item->tables[i] = chosen[i];
}

static enum spate_rc run(bool commit, uint64_t place, struct spate_err *err)
{
    struct spate_mark mark = {.place = {.epoch = 1, .n = n, .pos = {n + 1, 1}},
                              .at = {.at = place},
                              .uuid = "00000000-0000-4000-8000-000000000000"};
    struct spate_counts counts = {.missing = apply.missing};
    enum spate_rc rc = spate_apply_run(&apply, items, item_count, commit ? &mark : NULL, "log", &counts, err);

    item_count = 0;
    if (commit)
        spate_arena_reset(&arena);
    return rc;
}

static enum spate_rc commit(struct spate_err *err)
{
    if (word_count >= 5) {
        struct spate_load *load = &projections[table_named(words[2])].load;

        load->chunk = strtoull(words[3], NULL, 10);
        spate_load_resume(load, spate_slice_str(words[4]));
        load->dirty = true;
    }
    return run(true, strtoull(words[1], NULL, 10), err);
}

static enum spate_rc keys(struct spate_buf *out, struct spate_err *err)
{
    size_t count;

    return spate_load_keys(&store, &projections[table_named(words[1])], strtoul(words[2], NULL, 10), out,
                           &count, err);
}

static void state(struct spate_buf *out)
{
    static const char *const kinds[] = {"none", "empty", "marked", "shadow", "add"};
    const struct spate_load *load = &projections[table_named(words[1])].load;

    spate_buf_printf(out, "%s ready=%d changed=%d request=%s chunk=%" PRIu64 " resume=%s missing=%" PRIu64,
                     kinds[load->kind], load->ready, load->changed, load->request, load->chunk, load->resume,
                     apply.missing);
}

/* As the sink does when a message names another version. */
static enum spate_rc turn(size_t at, uint32_t v, struct spate_err *err)
{
    struct spate_projection *projection = &projections[at];
    enum spate_rc rc = spate_projection_version(projection, &store, v == 1 ? tables[at] : later[at][v - 2],
                                                &projection->current, err);

    for (size_t i = 0; rc == SPATE_OK && i < projection->version_count; i++)
        rc = spate_apply_prepare(&apply, projection->versions[i], err);
    if (rc == SPATE_OK)
        spate_load_compare(projection);
    return rc;
}

static enum spate_rc step(struct spate_buf *out, struct spate_err *err)
{
    const char *word = words[0];

    if (strcmp(word, "t") == 0)
        add_truncate();
    else if (strcmp(word, "v") == 0)
        return turn(table_named(words[1]), (uint32_t)atoi(words[2]), err);
    else if (strcmp(word, "m") == 0)
        add_row('m', table_named(words[1]), words[2], words + 3, 3);
    else if (word[1] == 0)
        add_row(word[0], table_named(words[1]), NULL, words + 2, strchr("dk", word[0]) ? 1 : 3);
    else if (strcmp(word, "commit") == 0)
        return commit(err);
    else if (strcmp(word, "piece") == 0)
        return run(false, 0, err);
    else if (strcmp(word, "keys") == 0)
        return keys(out, err);
    else if (strcmp(word, "state") == 0)
        state(out);
    else if (strcmp(word, "begin") == 0) {
        choose(3);
        return spate_load_begin(&apply, chosen, chosen_count, words[2], strcmp(words[1], "some") == 0, err);
    } else if (strcmp(word, "finish") == 0) {
        choose(1);
        return spate_load_finish(&apply, chosen, chosen_count, err);
    } else if (strcmp(word, "abandon") == 0) {
        choose(2);
        return spate_load_abandon(&apply, chosen, chosen_count, strcmp(words[1], "stale") == 0, err);
    } else {
        return spate_fail(err, SPATE_FATAL, "sinks_drive: what is %s?", word);
    }
    return SPATE_OK;
}

static bool read_line(void)
{
    static char line[4000];
    char *rest = line;

    word_count = 0;
    if (!fgets(line, sizeof line, stdin))
        return false;
    for (char *word; word_count < MOST_WORDS && (word = strsep(&rest, " \n"));)
        if (*word)
            words[word_count++] = word;
    return word_count > 0;
}

int main(int argc, char **argv)
{
    struct spate_err err = {0};
    struct spate_buf out = {0};

    if (argc < 5) {
        fprintf(stderr, "usage: sinks_drive URL SCHEMA sweep|swap TABLE[=WHERE]...\n");
        return 2;
    }
    if (spate_failpoint_init(getenv("SPATE_FP"), &err) != SPATE_OK ||
        open_all(argc, argv, &err) != SPATE_OK) {
        fail(&err);
        return 1;
    }
    printf("open\n");
    fflush(stdout);
    while (read_line()) {
        err = (struct spate_err){0};
        spate_buf_reset(&out);
        if (step(&out, &err) == SPATE_OK)
            printf("ok %s\n", spate_buf_str(&out));
        else
            fail(&err);
        fflush(stdout);
    }
    spate_apply_fini(&apply);
    for (size_t i = 0; i < table_count; i++) {
        spate_projection_fini(&projections[i]);
        spate_table_free(tables[i]);
        spate_table_free(later[i][0]);
        spate_table_free(later[i][1]);
        free(configs[i].from);
    }
    spate_store_fini(&store);
    spate_arena_fini(&arena);
    spate_buf_fini(&out);
    return 0;
}
