/* core/options.h - one table per module describes its options; the table parses, validates, prints and
 * documents them. config/load.h fills a struct from YAML with it; config/REFERENCE.md is written from it. */
#ifndef SPATE_CORE_OPTIONS_H
#define SPATE_CORE_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum spate_option_type {
    SPATE_OPT_STRING,   /* char *                   */
    SPATE_OPT_BOOL,     /* bool                     */
    SPATE_OPT_INT,      /* int64_t, min..max        */
    SPATE_OPT_DURATION, /* int64_t milliseconds: "10s", "500ms", "2m" */
    SPATE_OPT_BYTES,    /* int64_t bytes: "64MiB", "1GiB", plain number */
    SPATE_OPT_ENUM,     /* int: index into choices  */
    SPATE_OPT_LIST,     /* struct spate_strings     */
    SPATE_OPT_MAP,      /* struct spate_pairs: name -> text, in the file's order */
    SPATE_OPT_LISTS,    /* struct spate_lists: name -> list of texts */
    SPATE_OPT_MAPS,     /* struct spate_maps: name -> (name -> text, or one word with a text: {constant: "x"},
                           which reads as "constant x") */
    SPATE_OPT_GROUP     /* struct spate_group: name -> a struct described by `group` */
};

enum spate_option_flags {
    SPATE_OPT_REQUIRED = 1,
    SPATE_OPT_SECRET = 2, /* never printed; of a MAP: the values under names that tell of a secret */
    SPATE_OPT_RELOADABLE = 4,
    SPATE_OPT_URL = 8 /* may hold a password: printed with it masked */
};

struct spate_strings {
    char **at; /* owned */
    int *line;
    size_t count;
};
struct spate_pair {
    char *key, *value; /* owned */
    int line;
};
struct spate_pairs {
    struct spate_pair *at; /* owned */
    size_t count;
};
struct spate_named_list {
    char *key; /* owned */
    int line;
    struct spate_strings list;
};
struct spate_lists {
    struct spate_named_list *at; /* owned */
    size_t count;
};
struct spate_named_map {
    char *key; /* owned */
    int line;
    struct spate_pairs map;
};
struct spate_maps {
    struct spate_named_map *at; /* owned */
    size_t count;
};
/* Every element of a group begins with this. */
struct spate_group_item {
    char *name; /* owned */
    int line;
};
struct spate_group {
    void *at; /* owned array of count elements of group->size bytes */
    size_t count;
};

struct spate_option;
struct spate_option_group {
    size_t size; /* of one element; its first member is struct spate_group_item */
    const struct spate_option *options;
    size_t count;
    const char *item; /* what one element is called in the reference: "TABLE" */
};

struct spate_option {
    const char *key; /* dotted from the table's root: "source.postgres.url" */
    enum spate_option_type type;
    size_t offset;        /* into the struct that the table describes */
    const char *fallback; /* default as one would write it; NULL: none (zero) */
    int64_t min, max;     /* INT, DURATION, BYTES; both 0: any value >= 0 */
    unsigned flags;
    const char *const *choices; /* ENUM: NULL-terminated */
    const struct spate_option_group *group;
    const char *doc; /* one or two plain sentences for the reference */
};

/* Several tables can describe one struct, each below a prefix and at an offset. */
struct spate_option_table {
    const char *prefix; /* "" or "bus" */
    size_t offset;      /* of the described member in the outer struct */
    const struct spate_option *options;
    size_t count;
};

/* Frees what loading allocated into `into` and zeroes those members. */
void spate_options_fini(void *into, const struct spate_option_table *tables, size_t count);

/* Does the name of a setting tell of a secret: sasl.password, ssl.key.pem? */
bool spate_secret_name(const char *name);

/* The candidate nearest to `word` if it is near enough to be a slip of the finger, else NULL. */
const char *spate_nearest(const char *word, const char *const *candidates, size_t count);

#endif
