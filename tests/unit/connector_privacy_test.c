/* What must not leave: rules, covers, and the keyed hash. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "config/load.h"
#include "connector/cover.h"
#include "connector/privacy.h"
#include "connector/relation.h"
#include "core/alloc.h"

#define S(text) spate_slice_str(text)

static char path[64], key_path[64];
static struct spate_connector_config config;
static struct spate_privacy *privacy;
static struct spate_err err;

static void write_file(const char *to, const char *text, size_t len)
{
    FILE *file = fopen(to, "w");

    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, len, file), len);
    assert_int_equal(fclose(file), 0);
    assert_int_equal(chmod(to, 0600), 0);
}

static int set_up(void **state)
{
    int fd;

    (void)state;
    strcpy(path, "/tmp/spate-test-XXXXXX");
    strcpy(key_path, "/tmp/spate-key-XXXXXX");
    fd = mkstemp(path);
    if (fd < 0 || close(fd))
        return -1;
    fd = mkstemp(key_path);
    return fd < 0 || close(fd) ? -1 : 0;
}

static int tear_down(void **state)
{
    (void)state;
    unlink(key_path);
    return unlink(path);
}

static void forget(void)
{
    spate_privacy_free(privacy);
    privacy = NULL;
    spate_options_fini(&config, spate_connector_tables, spate_connector_table_count);
    err = (struct spate_err){0};
}

/* The rules begin on line 4. */
static enum spate_rc load(const char *rules)
{
    char text[2000];

    forget();
    config = (struct spate_connector_config){.path = path};
    snprintf(text, sizeof text,
             "connector: shop\nsource: {postgres: {url: dbname=x}}\nbus: {local: {path: /x}}\n%s", rules);
    write_file(path, text, strlen(text));
    if (spate_config_load(path, spate_connector_tables, spate_connector_table_count, &config, &err))
        fail_msg("%s", err.text);
    return spate_privacy_new(&config, &privacy, &err);
}

static void use_key(const char *key, size_t len)
{
    char rules[300];

    write_file(key_path, key, len);
    snprintf(rules, sizeof rules, "mask: {t: {c: hash}}\nmask_key_file: %s\n", key_path);
    if (load(rules) != SPATE_OK)
        fail_msg("%s", err.text);
}

/* RFC 4231, test cases 1, 3 (with a key of 20 bytes), 6 and 7 (keys longer than a block); and others that
 * openssl computed, with keys of a block's length and the empty text. */
static void hashes_as_everybody_does(void **state)
{
    static const char dd[50] =
        "\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd"
        "\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd"
        "\xdd\xdd\xdd\xdd";
    static const char six[] = "Test Using Larger Than Block-Size Key - Hash Key First";
    static const struct {
        char fill;
        size_t key_len;
        const char *text;
        size_t len;
        const char *digest;
    } cases[] = {
        {0x0b, 20, "Hi There", 8, "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"},
        {(char)0xaa, 20, dd, sizeof dd, "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"},
        {(char)0xaa, 131, six, sizeof six - 1,
         "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"},
    };
    char digest[SPATE_DIGEST], key[131];

    (void)state;
    for (size_t i = 0; i < SPATE_COUNT(cases); i++) {
        memset(key, cases[i].fill, cases[i].key_len);
        use_key(key, cases[i].key_len);
        spate_privacy_digest(privacy, spate_slice(cases[i].text, cases[i].len), digest);
        assert_memory_equal(digest, cases[i].digest, SPATE_DIGEST);
    }
    forget();
}

/* A newline at the file's end is the editor's; a variable does as well. */
static void reads_the_key(void **state)
{
    char with[SPATE_DIGEST], without[SPATE_DIGEST], rules[300];

    (void)state;
    use_key("0123456789abcdef\n", 17);
    spate_privacy_digest(privacy, S("x"), with);
    use_key("0123456789abcdef", 16);
    spate_privacy_digest(privacy, S("x"), without);
    assert_memory_equal(with, without, SPATE_DIGEST);
    setenv("SPATE_TEST_MASK_KEY", "0123456789abcdef", 1);
    assert_int_equal(load("mask: {t: {c: hash}}\nmask_key_env: SPATE_TEST_MASK_KEY\n"), SPATE_OK);
    spate_privacy_digest(privacy, S("x"), with);
    assert_memory_equal(with, without, SPATE_DIGEST);
    use_key("0123456789abcdeg", 16);
    spate_privacy_digest(privacy, S("x"), with);
    assert_memory_not_equal(with, without, SPATE_DIGEST);

    write_file(key_path, "0123456789abcde\n", 16);
    snprintf(rules, sizeof rules, "mask: {t: {c: hash}}\nmask_key_file: %s\n", key_path);
    assert_int_equal(load(rules), SPATE_FAIL);
    assert_int_equal(err.exit_code, SPATE_EXIT_CONFIG);
    assert_non_null(strstr(err.text, "shorter than 16 bytes"));
    assert_null(strstr(err.text, "0123456789abcde"));
    write_file(key_path, "\n", 1);
    assert_int_equal(load(rules), SPATE_FAIL);
    assert_non_null(strstr(err.text, "empty"));
    assert_int_equal(load("mask: {t: {c: hash}}\nmask_key_file: /no/such/key\n"), SPATE_FAIL);
    assert_non_null(strstr(err.text, "/no/such/key"));
    assert_int_equal(load("mask: {t: {c: hash}}\nmask_key_env: SPATE_NO_SUCH_KEY\n"), SPATE_FAIL);
    assert_non_null(strstr(err.text, "SPATE_NO_SUCH_KEY"));
    forget();
}

static void refuses_what_says_nothing(void **state)
{
    static const char *const cases[][3] = {
        {"exclude:\n  public.t: []\n", ":5: exclude.public.t", "names no column"},
        {"exclude:\n  'a.b.c': [x]\n", ":5: exclude.a.b.c", "more than two parts"},
        {"exclude:\n  public.t: ['|x']\n", ":5: exclude.public.t: |x", "expected a column's name"},
        {"mask:\n  public.t:\n    x: hahs\n", ":6: mask.public.t.x", "expected hash, null or {constant"},
        {"mask:\n  public.t:\n    x: {const: y}\n", ":6: mask.public.t.x",
         "expected hash, null or {constant"},
        {"mask:\n  public.t:\n    x: hash\n", ":6: mask.public.t: x", "mask_key_file"},
    };

    (void)state;
    for (size_t i = 0; i < SPATE_COUNT(cases); i++) {
        assert_int_equal(load(cases[i][0]), SPATE_FAIL);
        assert_int_equal(err.exit_code, SPATE_EXIT_CONFIG);
        if (!strstr(err.text, cases[i][1]) || !strstr(err.text, cases[i][2]))
            fail_msg("%s", err.text);
        err = (struct spate_err){0};
        assert_int_equal(spate_connector_check(&config, &err), SPATE_FAIL); /* without reading a key */
    }
    assert_int_equal(load(""), SPATE_OK);
    assert_null(privacy);
    forget();
}

/* id (key), ssn, email, phone, name */
static struct spate_table *people(enum spate_identity identity)
{
    static const char *const names[] = {"id", "ssn", "email", "phone", "name"};
    struct spate_table *table = spate_table_new(S("public"), S("people"), identity, 5, 1);

    for (size_t i = 0; i < SPATE_COUNT(names); i++)
        spate_table_set_column(table, i, S(names[i]), S(i ? "character varying(20)" : "integer"), S(""),
                               i ? 1043 : 23, i ? 24 : -1, i ? -1 : 4,
                               i == 0 || identity == SPATE_IDENTITY_FULL,
                               i ? SPATE_CLASS_TEXT : SPATE_CLASS_INT);
    table->key[0] = 0;
    spate_table_seal(table);
    return table;
}

#define KEY "mask_key_env: SPATE_TEST_MASK_KEY\n"

static void shows_a_table_without_what_is_excluded(void **state)
{
    struct spate_cover *cover = NULL, *plain = NULL;

    (void)state;
    setenv("SPATE_TEST_MASK_KEY", "0123456789abcdef", 1);
    assert_int_equal(load("exclude: {public.people: [ssn]}\n"
                          "mask: {'public.p*': {email: hash, phone: null, name: {constant: '***'}}}\n" KEY),
                     SPATE_OK);
    assert_int_equal(spate_cover_new(privacy, people(SPATE_IDENTITY_DEFAULT), NULL, 0, &cover, &err),
                     SPATE_OK);
    assert_int_equal(cover->table->column_count, 4);
    assert_int_equal(spate_table_column(cover->table, S("ssn")), -1);
    assert_int_equal(cover->table->key_count, 1);
    assert_int_equal(cover->table->key[0], 0);
    assert_true(spate_slice_is(cover->table->columns[1].name, "email"));
    assert_int_equal(cover->table->columns[1].oid, 25);
    assert_int_equal(cover->table->columns[1].mod, -1);
    assert_true(spate_slice_is(cover->table->columns[1].type, "text"));
    assert_int_equal(cover->table->columns[1].mask.len, strlen("hash 01234567"));
    assert_true(spate_slice_is(cover->table->columns[2].mask, "null"));
    assert_int_equal(cover->table->columns[3].oid, 1043);
    assert_int_equal(memcmp(cover->table->columns[3].mask.at, "constant ", 9), 0);
    assert_int_equal(cover->hashed, 1);
    assert_false(cover->key_hashed);
    /* A table of which no rule speaks is what it is. */
    assert_int_equal(load("exclude: {public.other: [ssn]}\n"), SPATE_OK);
    assert_int_equal(spate_cover_new(privacy, people(SPATE_IDENTITY_DEFAULT), NULL, 0, &plain, &err),
                     SPATE_OK);
    assert_true(spate_cover_plain(plain));
    assert_ptr_equal(plain->raw, plain->table);
    spate_cover_free(plain);
    /* ... unless its rows are another's as well. */
    const struct spate_kin kin = {1, S("public"), S("other")};
    assert_int_equal(spate_cover_new(privacy, people(SPATE_IDENTITY_DEFAULT), &kin, 1, &plain, &err),
                     SPATE_OK);
    assert_int_equal(plain->table->column_count, 4);
    spate_cover_free(plain);
    spate_cover_free(cover);
    forget();
}

/* Another constant, another key, another kind of mask: another version. */
static void another_mask_is_another_version(void **state)
{
    static const char *const rules[] = {
        "exclude: {public.x: [ssn]}\n",
        "exclude: {public.people: [name]}\n",
        "mask: {public.people: {name: null}}\n",
        "mask: {public.people: {name: {constant: a}}}\n",
        "mask: {public.people: {name: {constant: b}}}\n",
        "mask: {public.people: {name: hash}}\n" KEY,
        "mask: {public.people: {name: hash}}\nmask_key_env: SPATE_TEST_OTHER\n",
        "mask: {public.people: {email: null}}\n"};
    uint64_t prints[SPATE_COUNT(rules)];

    (void)state;
    setenv("SPATE_TEST_MASK_KEY", "0123456789abcdef", 1);
    setenv("SPATE_TEST_OTHER", "another key of 16 and more", 1);
    for (size_t i = 0; i < SPATE_COUNT(rules); i++) {
        struct spate_cover *cover = NULL;
        struct spate_table *copy;

        assert_int_equal(load(rules[i]), SPATE_OK);
        assert_int_equal(spate_cover_new(privacy, people(SPATE_IDENTITY_DEFAULT), NULL, 0, &cover, &err),
                         SPATE_OK);
        prints[i] = cover->table->fingerprint;
        copy = spate_relation_copy(cover->table); /* which is what gets a version */
        assert_true(copy->fingerprint == prints[i]);
        spate_table_free(copy);
        spate_cover_free(cover);
        for (size_t k = 0; k < i; k++)
            if (prints[k] == prints[i])
                fail_msg("%s and %s are one version", rules[k], rules[i]);
    }
    forget();
}

static void keeps_keys(void **state)
{
    static const struct {
        const char *rules;
        enum spate_identity identity;
        bool fine;
    } cases[] = {
        {"mask: {public.people: {id: hash}}\n" KEY, SPATE_IDENTITY_DEFAULT, true},
        {"mask: {public.people: {id: hash}}\n" KEY, SPATE_IDENTITY_FULL, true},
        {"mask: {public.people: {id: null}}\n", SPATE_IDENTITY_DEFAULT, false},
        {"mask: {public.people: {id: {constant: 1}}}\n", SPATE_IDENTITY_DEFAULT, false},
        {"exclude: {public.people: [id]}\n", SPATE_IDENTITY_DEFAULT, false},
        {"exclude: {public.people: [id]}\n", SPATE_IDENTITY_INDEX, false},
        {"exclude: {public.people: [id]}\n", SPATE_IDENTITY_FULL, false},
        {"exclude: {public.people: [name]}\n", SPATE_IDENTITY_FULL, true}, /* under FULL all are sent */
    };

    (void)state;
    setenv("SPATE_TEST_MASK_KEY", "0123456789abcdef", 1);
    for (size_t i = 0; i < SPATE_COUNT(cases); i++) {
        struct spate_cover *cover = NULL;
        enum spate_rc rc;

        assert_int_equal(load(cases[i].rules), SPATE_OK);
        rc = spate_cover_new(privacy, people(cases[i].identity), NULL, 0, &cover, &err);
        assert_int_equal(rc, cases[i].fine ? SPATE_OK : SPATE_FAIL);
        if (rc != SPATE_OK) {
            assert_int_equal(err.exit_code, SPATE_EXIT_REFUSED);
            if (!strstr(err.text, "belongs to the key") || !strstr(err.text, "id: hash"))
                fail_msg("%s", err.text);
        } else {
            assert_int_equal(cover->key_hashed, i < 2);
        }
        spate_cover_free(cover);
        err = (struct spate_err){0};
    }
    forget();
}

static void two_rules_agree_or_nothing_starts(void **state)
{
    struct spate_cover *cover = NULL;

    (void)state;
    assert_int_equal(load("exclude: {public.people: [ssn], 'public.*': [ssn]}\n"), SPATE_OK);
    assert_int_equal(spate_cover_new(privacy, people(SPATE_IDENTITY_DEFAULT), NULL, 0, &cover, &err),
                     SPATE_OK);
    spate_cover_free(cover);
    assert_int_equal(load("exclude: {public.people: [ssn]}\nmask: {'*': {ssn: null}}\n"), SPATE_OK);
    assert_int_equal(spate_cover_new(privacy, people(SPATE_IDENTITY_DEFAULT), NULL, 0, &cover, &err),
                     SPATE_FAIL);
    assert_int_equal(err.exit_code, SPATE_EXIT_REFUSED);
    assert_non_null(strstr(err.text, "say different things of column ssn"));
    forget();
}

/* "old|new": whichever is there. A bar inside SQL's quotes belongs to the name. */
static void knows_names_of_the_past(void **state)
{
    (void)state;
    assert_int_equal(load("exclude: {public.people|public.clients: ['ssn|social', 'x|', '\"a|\"\"b\"']}\n"),
                     SPATE_OK);
    assert_int_equal(spate_privacy_rules(privacy), 3);
    assert_true(spate_privacy_speaks(privacy, 0, S("public"), S("clients"), NULL, 0));
    assert_true(spate_privacy_speaks(privacy, 0, S("public"), S("people"), NULL, 0));
    assert_false(spate_privacy_speaks(privacy, 0, S("public"), S("peoples"), NULL, 0));
    assert_true(spate_privacy_strict(privacy, 0));
    assert_true(spate_privacy_names(privacy, 0, S("ssn")));
    assert_true(spate_privacy_names(privacy, 0, S("social")));
    assert_false(spate_privacy_names(privacy, 0, S("ssn|social")));
    assert_false(spate_privacy_spares(privacy, 0));
    assert_true(spate_privacy_names(privacy, 1, S("x")));
    assert_true(spate_privacy_spares(privacy, 1));
    assert_true(spate_privacy_names(privacy, 2, S("a|\"b")));
    assert_false(spate_privacy_spares(privacy, 2));
    forget();
}

static struct spate_value text(const char *of)
{
    return (struct spate_value){SPATE_VALUE_TEXT, S(of)};
}

static void puts_values_in_place_of_values(void **state)
{
    struct spate_value raw[5], out[4];
    struct spate_cover *cover = NULL;
    char digests[2 * SPATE_DIGEST], want[SPATE_DIGEST], *at = digests;

    (void)state;
    setenv("SPATE_TEST_MASK_KEY", "0123456789abcdef", 1);
    assert_int_equal(
        load("exclude: {public.people: [ssn]}\n"
             "mask: {public.people: {id: hash, email: hash, phone: null, name: {constant: '***'}}}\n" KEY),
        SPATE_OK);
    assert_int_equal(spate_cover_new(privacy, people(SPATE_IDENTITY_DEFAULT), NULL, 0, &cover, &err),
                     SPATE_OK);
    raw[0] = text("7");
    raw[1] = text("secret");
    raw[2] = text("a@b");
    raw[3] = (struct spate_value){.kind = SPATE_VALUE_ABSENT};
    raw[4] = (struct spate_value){.kind = SPATE_VALUE_NULL};
    spate_cover_values(cover, raw, true, out, &at);
    assert_ptr_equal(at, digests + sizeof digests);
    spate_privacy_digest(privacy, S("7"), want);
    assert_int_equal(out[0].text.len, SPATE_DIGEST);
    assert_memory_equal(out[0].text.at, want, SPATE_DIGEST);
    spate_privacy_digest(privacy, S("a@b"), want);
    assert_memory_equal(out[1].text.at, want, SPATE_DIGEST);
    /* What is put in place is known even where the value was not sent, and where there was none. */
    assert_int_equal(out[2].kind, SPATE_VALUE_NULL);
    assert_int_equal(out[3].kind, SPATE_VALUE_TEXT);
    assert_true(spate_slice_is(out[3].text, "***"));
    /* NULL and what was not sent stay so under hash. An old key says nothing but the key. */
    raw[0] = (struct spate_value){.kind = SPATE_VALUE_NULL};
    raw[2] = (struct spate_value){.kind = SPATE_VALUE_ABSENT};
    at = digests;
    spate_cover_values(cover, raw, false, out, &at);
    assert_ptr_equal(at, digests);
    assert_int_equal(out[0].kind, SPATE_VALUE_NULL);
    assert_int_equal(out[1].kind, SPATE_VALUE_ABSENT);
    assert_int_equal(out[2].kind, SPATE_VALUE_ABSENT);
    assert_int_equal(out[3].kind, SPATE_VALUE_ABSENT);
    spate_cover_free(cover);
    forget();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hashes_as_everybody_does),
        cmocka_unit_test(reads_the_key),
        cmocka_unit_test(refuses_what_says_nothing),
        cmocka_unit_test(shows_a_table_without_what_is_excluded),
        cmocka_unit_test(another_mask_is_another_version),
        cmocka_unit_test(keeps_keys),
        cmocka_unit_test(two_rules_agree_or_nothing_starts),
        cmocka_unit_test(knows_names_of_the_past),
        cmocka_unit_test(puts_values_in_place_of_values),
    };

    return cmocka_run_group_tests_name("connector_privacy", tests, set_up, tear_down);
}
