/* connector/privacy.c - rules from the connector's file, and the keyed hash.
 *
 * An entry is one name, or the names that a column (a table) has had: "ssn|social" means whichever is there,
 * and with nothing behind the last bar it may also be missing. The WAL may still hold changes from before a
 * rename, so the old name stays of use when the new one is added. */
#include "connector/privacy.h"

#include "core/alloc.h"
#include "core/buf.h"
#include "core/glob.h"
#include "core/hash.h"
#include "core/log.h"
#include "pg/pg.h"

#include <errno.h>
#include <inttypes.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define KEY_LEAST 16
#define KEY_MOST  65536

/* One table entry of exclude: or mask:. */
struct subject {
    char *text;                /* as written; owned */
    struct spate_glob **globs; /* owned */
    size_t glob_count;
    bool exact, spares;
};

struct rule {
    size_t subject;
    char *word; /* as written; owned */
    char **names;
    size_t name_count;
    bool spares;
    enum spate_treatment treatment;
    char *constant; /* owned */
    char *mask;     /* owned */
    char *where;    /* owned */
};

struct spate_privacy {
    struct subject *subjects;
    size_t subject_count;
    struct rule *rules;
    size_t rule_count;
    EVP_MD_CTX *inner, *outer; /* behind the key's pads; copied for each value, never changed */
    char key_id[9];
};

const char *spate_treatment_name(enum spate_treatment treatment)
{
    static const char *const names[] = {[SPATE_SHOWN] = "shown",
                                        [SPATE_EXCLUDED] = "exclude",
                                        [SPATE_NULLED] = "mask: null",
                                        [SPATE_CONSTANT] = "mask: constant",
                                        [SPATE_HASHED] = "mask: hash"};

    return names[treatment];
}

/* ---- entries ---- */

/* The next name of "a|\"b|c\"|": a copy, with SQL's quotes resolved where `unquote`; NULL at the end. *empty
 * is set where there is nothing behind the last bar. */
static char *next_name(const char **at, bool unquote, bool *empty)
{
    struct spate_buf name = {0};
    const char *p = *at;
    bool quoted = false;
    char *copy;

    if (*p == '\0')
        return NULL;
    for (; *p && (quoted || *p != '|'); p++) {
        if (*p == '"') {
            if (unquote && quoted && p[1] == '"')
                spate_buf_putc(&name, *p++);
            else
                quoted = !quoted;
            if (unquote)
                continue;
        }
        spate_buf_putc(&name, *p);
    }
    if (*p == '|' && p[1] == '\0')
        *empty = true;
    *at = *p ? p + 1 : p;
    copy = spate_strndup(name.len ? name.data : "", name.len);
    spate_buf_fini(&name);
    return copy;
}

static enum spate_rc wrong(struct spate_err *err, const char *where, const char *why)
{
    err->exit_code = SPATE_EXIT_CONFIG;
    return spate_fail(err, SPATE_FATAL, "%s: %s", where, why);
}

static enum spate_rc read_subject(struct spate_privacy *privacy, const char *text, const char *where,
                                  struct spate_err *err)
{
    struct subject *subject;
    const char *at = text;
    char *name;

    privacy->subjects =
        spate_realloc(privacy->subjects, (privacy->subject_count + 1) * sizeof *privacy->subjects);
    subject = &privacy->subjects[privacy->subject_count++];
    *subject = (struct subject){.text = spate_strdup(text), .exact = true};
    while ((name = next_name(&at, false, &subject->spares)) != NULL) {
        struct spate_glob *glob = NULL;
        enum spate_rc rc = spate_glob_new(name, &glob, err);

        free(name);
        if (rc != SPATE_OK)
            return spate_err_context(err, "%s", where);
        subject->globs = spate_realloc(subject->globs, (subject->glob_count + 1) * sizeof(void *));
        subject->globs[subject->glob_count++] = glob;
        subject->exact &= spate_glob_exact(glob);
    }
    return SPATE_OK;
}

static enum spate_rc add_rule(struct spate_privacy *privacy, const char *word, enum spate_treatment treatment,
                              const char *constant, const char *where, struct spate_err *err)
{
    const char *at = word;
    struct spate_buf text = {0};
    struct rule *rule;
    char *name;

    privacy->rules = spate_realloc(privacy->rules, (privacy->rule_count + 1) * sizeof *privacy->rules);
    rule = &privacy->rules[privacy->rule_count++];
    *rule = (struct rule){.subject = privacy->subject_count - 1,
                          .word = spate_strdup(word),
                          .treatment = treatment,
                          .constant = constant ? spate_strdup(constant) : NULL};
    spate_buf_printf(&text, "%s: %s", where, word);
    rule->where = spate_strdup(spate_buf_str(&text));
    spate_buf_fini(&text);
    while ((name = next_name(&at, true, &rule->spares)) != NULL) {
        rule->names = spate_realloc(rule->names, (rule->name_count + 1) * sizeof(char *));
        rule->names[rule->name_count++] = name;
        if (*name == '\0')
            return wrong(err, rule->where,
                         "expected a column's name, or the names that it has had, with a bar between them");
    }
    return SPATE_OK;
}

static enum spate_rc read_exclude(struct spate_privacy *privacy, const struct spate_named_list *entry,
                                  const char *path, struct spate_err *err)
{
    struct spate_buf where = {0};
    enum spate_rc rc;

    spate_buf_printf(&where, "%s:%d: exclude.%s", path, entry->line, entry->key);
    rc = read_subject(privacy, entry->key, spate_buf_str(&where), err);
    if (rc == SPATE_OK && entry->list.count == 0)
        rc = wrong(err, spate_buf_str(&where), "names no column");
    for (size_t i = 0; rc == SPATE_OK && i < entry->list.count; i++) {
        spate_buf_reset(&where);
        spate_buf_printf(&where, "%s:%d: exclude.%s", path, entry->list.line[i], entry->key);
        rc = add_rule(privacy, entry->list.at[i], SPATE_EXCLUDED, NULL, spate_buf_str(&where), err);
    }
    spate_buf_fini(&where);
    return rc;
}

static enum spate_rc read_mask(struct spate_privacy *privacy, const struct spate_named_map *entry,
                               const char *path, struct spate_err *err)
{
    static const char constant[] = "constant ";
    struct spate_buf where = {0};
    enum spate_rc rc;

    spate_buf_printf(&where, "%s:%d: mask.%s", path, entry->line, entry->key);
    rc = read_subject(privacy, entry->key, spate_buf_str(&where), err);
    if (rc == SPATE_OK && entry->map.count == 0)
        rc = wrong(err, spate_buf_str(&where), "names no column");
    for (size_t i = 0; rc == SPATE_OK && i < entry->map.count; i++) {
        const struct spate_pair *pair = &entry->map.at[i];

        spate_buf_reset(&where);
        spate_buf_printf(&where, "%s:%d: mask.%s", path, pair->line, entry->key);
        if (strcmp(pair->value, "hash") == 0)
            rc = add_rule(privacy, pair->key, SPATE_HASHED, NULL, spate_buf_str(&where), err);
        else if (strcmp(pair->value, "null") == 0)
            rc = add_rule(privacy, pair->key, SPATE_NULLED, NULL, spate_buf_str(&where), err);
        else if (strncmp(pair->value, constant, sizeof constant - 1) == 0)
            rc = add_rule(privacy, pair->key, SPATE_CONSTANT, pair->value + sizeof constant - 1,
                          spate_buf_str(&where), err);
        else {
            spate_buf_printf(&where, ".%s", pair->key);
            rc = wrong(err, spate_buf_str(&where), "expected hash, null or {constant: \"TEXT\"}");
        }
    }
    spate_buf_fini(&where);
    return rc;
}

static bool hashes(const struct spate_privacy *privacy)
{
    for (size_t i = 0; i < privacy->rule_count; i++)
        if (privacy->rules[i].treatment == SPATE_HASHED)
            return true;
    return false;
}

static enum spate_rc read_rules(struct spate_privacy *privacy, const struct spate_connector_config *config,
                                const char *path, struct spate_err *err)
{
    enum spate_rc rc = SPATE_OK;

    for (size_t i = 0; rc == SPATE_OK && i < config->exclude.count; i++)
        rc = read_exclude(privacy, &config->exclude.at[i], path, err);
    for (size_t i = 0; rc == SPATE_OK && i < config->mask.count; i++)
        rc = read_mask(privacy, &config->mask.at[i], path, err);
    if (rc != SPATE_OK || !hashes(privacy) || config->mask_key_file || config->mask_key_env)
        return rc;
    for (size_t i = 0; i < privacy->rule_count; i++)
        if (privacy->rules[i].treatment == SPATE_HASHED)
            return wrong(
                err, privacy->rules[i].where,
                "hash needs a key that nobody else knows, or whoever guesses a value could try it. Make "
                "one (head -c 32 /dev/urandom | base64 > mask.key; chmod 600 mask.key) and name it: "
                "mask_key_file: /path/to/mask.key, or mask_key_env: VARIABLE");
    return rc;
}

enum spate_rc spate_privacy_check(const struct spate_connector_config *config, const char *path,
                                  struct spate_err *err)
{
    struct spate_privacy *privacy = spate_zalloc(sizeof *privacy);
    enum spate_rc rc = read_rules(privacy, config, path, err);

    spate_privacy_free(privacy);
    return rc;
}

/* ---- the key ---- */

static enum spate_rc no_key(struct spate_err *err, const char *what, const char *why)
{
    err->exit_code = SPATE_EXIT_CONFIG;
    return spate_fail(err, SPATE_FATAL,
                      "%s: %s. Masks that hash cannot be without their key: nothing is read", what, why);
}

/* The file's bytes, without the newline that an editor leaves. */
static enum spate_rc read_file(const char *path, struct spate_buf *key, struct spate_err *err)
{
    char what[400], quoted[500];
    struct stat about;
    FILE *file = fopen(path, "re");
    size_t got = 0;

    snprintf(what, sizeof what, "mask_key_file %s", path);
    if (!file)
        return no_key(err, what, strerror(errno));
    spate_buf_reserve(key, KEY_MOST + 1);
    got = fread(key->data, 1, KEY_MOST + 1, file);
    key->len = got;
    if (fstat(fileno(file), &about) == 0 && (about.st_mode & S_IROTH))
        spate_log(
            SPATE_LOG_WARN, "mask-key-readable",
            "file=%s text=\"anybody on this machine can read it, and with it try values against hashes: "
            "chmod 600\"",
            spate_log_quote(quoted, sizeof quoted, path));
    if (ferror(file)) {
        fclose(file);
        return no_key(err, what, "it cannot be read");
    }
    fclose(file);
    if (got > KEY_MOST)
        return no_key(err, what, "it is larger than 64 KiB, so it is no key");
    if (key->len && key->data[key->len - 1] == '\n')
        key->len--;
    if (key->len && key->data[key->len - 1] == '\r')
        key->len--;
    return SPATE_OK;
}

static void fail_crypto(void)
{
    spate_log(SPATE_LOG_ERROR, "libcrypto", "text=\"SHA-256 is not available\"");
    abort(); /* nothing may be passed on unhashed */
}

static EVP_MD_CTX *begin(const unsigned char *pad)
{
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();

    if (!ctx || !EVP_DigestInit_ex(ctx, EVP_sha256(), NULL) || !EVP_DigestUpdate(ctx, pad, 64))
        fail_crypto();
    return ctx;
}

/* HMAC, RFC 2104: both pads are hashed once. */
static void set_key(struct spate_privacy *privacy, struct spate_slice key)
{
    static const char about[] = "spate key id";
    unsigned char block[64] = {0}, pad[64];
    unsigned len = 0;
    char digest[SPATE_DIGEST];

    if (key.len > sizeof block) {
        if (!EVP_Digest(key.at, key.len, block, &len, EVP_sha256(), NULL))
            fail_crypto();
    } else {
        memcpy(block, key.at, key.len);
    }
    for (size_t i = 0; i < sizeof block; i++)
        pad[i] = block[i] ^ 0x36;
    privacy->inner = begin(pad);
    for (size_t i = 0; i < sizeof block; i++)
        pad[i] = block[i] ^ 0x5c;
    privacy->outer = begin(pad);
    explicit_bzero(block, sizeof block);
    explicit_bzero(pad, sizeof pad);
    /* Tells one key from another, and nothing of either. */
    spate_privacy_digest(privacy, spate_slice(about, sizeof about - 1), digest);
    memcpy(privacy->key_id, digest, 8);
}

void spate_privacy_digest(const struct spate_privacy *privacy, struct spate_slice text,
                          char out[SPATE_DIGEST])
{
    static const char hex[] = "0123456789abcdef";
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    unsigned char sum[32];

    if (!ctx || !EVP_MD_CTX_copy_ex(ctx, privacy->inner) ||
        (text.len && !EVP_DigestUpdate(ctx, text.at, text.len)) || !EVP_DigestFinal_ex(ctx, sum, NULL) ||
        !EVP_MD_CTX_copy_ex(ctx, privacy->outer) || !EVP_DigestUpdate(ctx, sum, sizeof sum) ||
        !EVP_DigestFinal_ex(ctx, sum, NULL))
        fail_crypto();
    EVP_MD_CTX_free(ctx);
    for (size_t i = 0; i < sizeof sum; i++) {
        out[2 * i] = hex[sum[i] >> 4];
        out[2 * i + 1] = hex[sum[i] & 15];
    }
}

static enum spate_rc take_key(struct spate_privacy *privacy, const struct spate_connector_config *config,
                              struct spate_err *err)
{
    const char *env = config->mask_key_env, *value = env ? getenv(env) : NULL;
    struct spate_buf key = {0};
    char what[400];
    enum spate_rc rc = SPATE_OK;

    if (config->mask_key_file) {
        snprintf(what, sizeof what, "mask_key_file %s", config->mask_key_file);
        rc = read_file(config->mask_key_file, &key, err);
    } else {
        snprintf(what, sizeof what, "mask_key_env %s", env ? env : "");
        if (!value)
            rc = no_key(err, what, "there is no such variable in the environment");
        else
            spate_buf_puts(&key, value);
    }
    if (rc == SPATE_OK && key.len < KEY_LEAST)
        rc = no_key(err, what,
                    key.len ? "the key is shorter than 16 bytes, which can be guessed" : "the key is empty");
    if (rc == SPATE_OK)
        set_key(privacy, spate_buf_view(&key));
    if (key.data)
        explicit_bzero(key.data, key.cap);
    spate_buf_fini(&key);
    return rc;
}

/* What stands in schema messages: another constant or another key is another version of the table. */
static void name_masks(struct spate_privacy *privacy)
{
    for (size_t i = 0; i < privacy->rule_count; i++) {
        struct rule *rule = &privacy->rules[i];
        char mask[40] = "";

        if (rule->treatment == SPATE_NULLED)
            snprintf(mask, sizeof mask, "null");
        else if (rule->treatment == SPATE_CONSTANT)
            snprintf(mask, sizeof mask, "constant %08" PRIx32,
                     (uint32_t)spate_fnv64(SPATE_FNV64_START, rule->constant, strlen(rule->constant)));
        else if (rule->treatment == SPATE_HASHED)
            snprintf(mask, sizeof mask, "hash %s", privacy->key_id);
        rule->mask = spate_strdup(mask);
    }
}

enum spate_rc spate_privacy_new(const struct spate_connector_config *config, struct spate_privacy **privacy,
                                struct spate_err *err)
{
    struct spate_privacy *made;
    enum spate_rc rc;

    *privacy = NULL;
    if (config->exclude.count == 0 && config->mask.count == 0)
        return SPATE_OK;
    made = spate_zalloc(sizeof *made);
    rc = read_rules(made, config, config->path ? config->path : "the configuration", err);
    if (rc == SPATE_OK && hashes(made))
        rc = take_key(made, config, err);
    if (rc != SPATE_OK) {
        spate_privacy_free(made);
        return rc;
    }
    name_masks(made);
    *privacy = made;
    return SPATE_OK;
}

void spate_privacy_free(struct spate_privacy *privacy)
{
    if (!privacy)
        return;
    for (size_t i = 0; i < privacy->subject_count; i++) {
        for (size_t g = 0; g < privacy->subjects[i].glob_count; g++)
            spate_glob_free(privacy->subjects[i].globs[g]);
        free(privacy->subjects[i].globs);
        free(privacy->subjects[i].text);
    }
    for (size_t i = 0; i < privacy->rule_count; i++) {
        struct rule *rule = &privacy->rules[i];

        for (size_t n = 0; n < rule->name_count; n++)
            free(rule->names[n]);
        free(rule->names);
        free(rule->word);
        free(rule->constant);
        free(rule->mask);
        free(rule->where);
    }
    EVP_MD_CTX_free(privacy->inner);
    EVP_MD_CTX_free(privacy->outer);
    free(privacy->subjects);
    free(privacy->rules);
    free(privacy);
}

/* ---- asking ---- */

static bool subject_is(const struct subject *subject, struct spate_slice schema, struct spate_slice table)
{
    for (size_t i = 0; i < subject->glob_count; i++)
        if (spate_glob_match(subject->globs[i], schema, table))
            return true;
    return false;
}

size_t spate_privacy_rules(const struct spate_privacy *privacy)
{
    return privacy ? privacy->rule_count : 0;
}

bool spate_privacy_speaks(const struct spate_privacy *privacy, size_t rule, struct spate_slice schema,
                          struct spate_slice table, const struct spate_kin *kin, size_t kin_count)
{
    const struct subject *subject = &privacy->subjects[privacy->rules[rule].subject];

    if (subject_is(subject, schema, table))
        return true;
    for (size_t i = 0; i < kin_count; i++)
        if (subject_is(subject, kin[i].schema, kin[i].name))
            return true;
    return false;
}

bool spate_privacy_names(const struct spate_privacy *privacy, size_t rule, struct spate_slice column)
{
    for (size_t i = 0; i < privacy->rules[rule].name_count; i++)
        if (spate_slice_is(column, privacy->rules[rule].names[i]))
            return true;
    return false;
}

bool spate_privacy_strict(const struct spate_privacy *privacy, size_t rule)
{
    return privacy->subjects[privacy->rules[rule].subject].exact;
}

bool spate_privacy_spares(const struct spate_privacy *privacy, size_t rule)
{
    return privacy->rules[rule].spares;
}

enum spate_treatment spate_privacy_treatment(const struct spate_privacy *privacy, size_t rule)
{
    return privacy->rules[rule].treatment;
}

struct spate_slice spate_privacy_constant(const struct spate_privacy *privacy, size_t rule)
{
    const char *constant = privacy->rules[rule].constant;

    return spate_slice_str(constant ? constant : "");
}

const char *spate_privacy_mask(const struct spate_privacy *privacy, size_t rule)
{
    return privacy->rules[rule].mask;
}

const char *spate_privacy_where(const struct spate_privacy *privacy, size_t rule)
{
    return privacy->rules[rule].where;
}

const char *spate_privacy_word(const struct spate_privacy *privacy, size_t rule)
{
    return privacy->rules[rule].word;
}

/* ---- against the source ---- */

static enum spate_rc refuse(struct spate_err *err)
{
    err->exit_code = SPATE_EXIT_REFUSED;
    return SPATE_FAIL;
}

static struct spate_slice cell(const PGresult *res, int row, int column)
{
    return spate_slice(PQgetvalue(res, row, column), (size_t)PQgetlength(res, row, column));
}

/* What could be meant: "did you mean ..?", or "". */
static void suggest(struct spate_buf *out, const char *word, char **names, size_t count)
{
    const char *nearest = spate_nearest(word, (const char *const *)names, count);

    if (nearest)
        spate_buf_printf(out, "; did you mean %s?", nearest);
}

static enum spate_rc no_table(const struct subject *subject, const struct rule *rule, const PGresult *tables,
                              struct spate_err *err)
{
    size_t count = (size_t)PQntuples(tables);
    char **names = spate_zalloc((count + 1) * sizeof *names);
    struct spate_buf hint = {0};

    for (size_t i = 0; i < count; i++) {
        struct spate_buf name = {0};

        spate_buf_printf(&name, "%s.%s", PQgetvalue(tables, (int)i, 1), PQgetvalue(tables, (int)i, 2));
        names[i] = spate_strdup(spate_buf_str(&name));
        spate_buf_fini(&name);
    }
    suggest(&hint, subject->text, names, count);
    spate_fail(err, SPATE_FATAL,
               "%s: the source has no table \"%s\"%s. Was it renamed? Write both names, \"%s|SCHEMA.NEW\": "
               "the WAL may "
               "still hold changes under the old one. Was it dropped? Write \"%s|\"",
               rule->where, subject->text, spate_buf_str(&hint), subject->text, subject->text);
    for (size_t i = 0; i < count; i++)
        free(names[i]);
    free(names);
    spate_buf_fini(&hint);
    return refuse(err);
}

static enum spate_rc no_column(const struct subject *subject, const struct rule *rule, struct spate_err *err)
{
    spate_fail(err, SPATE_FATAL,
               "%s: %s \"%s\" has a column of that name. Was it renamed? Then it would leave under its new "
               "name: write "
               "\"%s|NEW\", both names, since the WAL may still hold changes with the old one. Was it "
               "dropped? Write "
               "\"%s|\"",
               rule->where, subject->exact ? "no table" : "no table that matches", subject->text, rule->word,
               rule->word);
    return refuse(err);
}

/* One query for the tables, one for the columns that rules name. */
static enum spate_rc look(const struct spate_privacy *privacy, PGconn *sql, PGresult **tables,
                          PGresult **columns, struct spate_err *err)
{
    struct spate_buf array = {0};
    const char *value;
    enum spate_rc rc = spate_pg_exec_params(
        sql,
        "SELECT c.oid, n.nspname, c.relname FROM pg_catalog.pg_class c"
        " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p')"
        " AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_%'"
        " ORDER BY c.oid",
        0, NULL, PGRES_TUPLES_OK, tables, err);

    if (rc != SPATE_OK)
        return rc;
    for (size_t i = 0; i < privacy->rule_count; i++)
        for (size_t n = 0; n < privacy->rules[i].name_count; n++) {
            spate_buf_puts(&array, array.len ? ",\"" : "{\"");
            for (const char *p = privacy->rules[i].names[n]; *p; p++) {
                if (*p == '"' || *p == '\\')
                    spate_buf_putc(&array, '\\');
                spate_buf_putc(&array, *p);
            }
            spate_buf_putc(&array, '"');
        }
    spate_buf_puts(&array, array.len ? "}" : "{}");
    value = spate_buf_str(&array);
    rc = spate_pg_exec_params(
        sql,
        "SELECT a.attrelid, a.attname FROM pg_catalog.pg_attribute a WHERE a.attnum > 0 AND NOT"
        " a.attisdropped AND a.attname = ANY ($1::text[]) ORDER BY a.attrelid",
        1, &value, PGRES_TUPLES_OK, columns, err);
    spate_buf_fini(&array);
    return rc;
}

/* Does this table have one of the rule's columns? Both results are sorted by OID as numbers. */
static bool has_column(const struct spate_privacy *privacy, size_t rule, const char *oid,
                       const PGresult *columns)
{
    int low = 0, high = PQntuples(columns);
    unsigned long wanted = strtoul(oid, NULL, 10);

    while (low < high) {
        int middle = low + (high - low) / 2;

        if (strtoul(PQgetvalue(columns, middle, 0), NULL, 10) < wanted)
            low = middle + 1;
        else
            high = middle;
    }
    for (; low < PQntuples(columns) && strcmp(PQgetvalue(columns, low, 0), oid) == 0; low++)
        if (spate_privacy_names(privacy, rule, cell(columns, low, 1)))
            return true;
    return false;
}

static enum spate_rc verify_rule(const struct spate_privacy *privacy, size_t i, const PGresult *tables,
                                 const PGresult *columns, struct spate_err *err)
{
    const struct rule *rule = &privacy->rules[i];
    const struct subject *subject = &privacy->subjects[rule->subject];
    bool table = subject->spares, column = rule->spares;

    for (int row = 0; row < PQntuples(tables) && !(table && column); row++) {
        if (!subject_is(subject, cell(tables, row, 1), cell(tables, row, 2)))
            continue;
        table = true;
        column = column || has_column(privacy, i, PQgetvalue(tables, row, 0), columns);
    }
    if (!table)
        return no_table(subject, rule, tables, err);
    return column || subject->spares ? SPATE_OK : no_column(subject, rule, err);
}

enum spate_rc spate_privacy_verify(const struct spate_privacy *privacy, PGconn *sql, struct spate_err *err)
{
    PGresult *tables = NULL, *columns = NULL;
    enum spate_rc rc;

    if (!privacy)
        return SPATE_OK;
    rc = look(privacy, sql, &tables, &columns, err);
    for (size_t i = 0; rc == SPATE_OK && i < privacy->rule_count; i++)
        rc = verify_rule(privacy, i, tables, columns, err);
    PQclear(tables);
    PQclear(columns);
    return rc;
}
