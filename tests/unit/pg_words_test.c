/* The parts of pg/ that need no server: verdicts, words, quoting, positions, and refusals before any packet.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <unistd.h>

#include <cmocka.h>

#include "core/alloc.h"
#include "core/clock.h"
#include "pg/pg.h"

/* One of each kind of code that something is done about. */
static void verdicts(void **state)
{
    static const struct {
        const char *code;
        enum spate_verdict verdict;
        int64_t pace_ms;
    } cases[] = {
        {NULL, SPATE_RETRY, 100},         {"", SPATE_RETRY, 100},           {"08006", SPATE_RETRY, 100},
        {"08P01", SPATE_FATAL, 100},      {"57P01", SPATE_RETRY, 100},      {"57P02", SPATE_RETRY, 100},
        {"57P03", SPATE_RETRY, 100},      {"55006", SPATE_RETRY, 100},      {"53300", SPATE_RETRY, 10000},
        {"53400", SPATE_RETRY, 10000},    {"53100", SPATE_RETRY, 10000},    {"28P01", SPATE_RETRY, 30000},
        {"28000", SPATE_RETRY, 30000},    {"42501", SPATE_RETRY, 30000},    {"3D000", SPATE_RETRY, 30000},
        {"42704", SPATE_FATAL, 100},      {"55000", SPATE_FATAL, 100},      {"58P01", SPATE_FATAL, 100},
        {"0A000", SPATE_FATAL, 100},      {"XX000", SPATE_FATAL, 100},      {"40001", SPATE_RETRY, 100},
        {"40P01", SPATE_RETRY, 100},      {"55P03", SPATE_RETRY, 100},      {"25006", SPATE_RETRY, 10000},
        {"23505", SPATE_QUARANTINE, 100}, {"23503", SPATE_QUARANTINE, 100}, {"23514", SPATE_QUARANTINE, 100},
        {"22001", SPATE_QUARANTINE, 100}, {"22003", SPATE_QUARANTINE, 100}, {"22P02", SPATE_QUARANTINE, 100},
        {"22P05", SPATE_QUARANTINE, 100}, {"22021", SPATE_QUARANTINE, 100}, {"42703", SPATE_QUARANTINE, 100},
        {"42P01", SPATE_QUARANTINE, 100}, {"P0001", SPATE_QUARANTINE, 100}, {"26000", SPATE_RETRY, 100},
        {"ZZ999", SPATE_FATAL, 100},
    };

    (void)state;
    for (size_t i = 0; i < SPATE_COUNT(cases); i++)
        if (spate_pg_verdict(cases[i].code) != cases[i].verdict ||
            spate_pg_pace_ms(cases[i].code, 100) != cases[i].pace_ms)
            fail_msg("%s", cases[i].code ? cases[i].code : "no code");
    assert_string_equal(spate_pg_condition("23505"), "unique_violation");
    assert_string_equal(spate_pg_condition("22999"), "data_exception");
    assert_string_equal(spate_pg_condition("ZZ999"), "error");
    assert_string_equal(spate_pg_condition(NULL), "error");
    assert_non_null(spate_pg_remedy("23502"));
    assert_null(spate_pg_remedy("40P01"));
}

static void codes_that_quote_values(void **state)
{
    static const char *const quoting[] = {"22P02", "22001", "23505", "23502", "23514",
                                          "44000", "P0001", "38000", "A0001" /* RAISE .. USING ERRCODE */};
    static const char *const plain[] = {"42P01", "42501", "57P01", "55006", "40001", "", "XX000", "54011"};

    (void)state;
    for (size_t i = 0; i < SPATE_COUNT(quoting); i++)
        assert_true(spate_pg_quotes_values(quoting[i]));
    for (size_t i = 0; i < SPATE_COUNT(plain); i++)
        assert_false(spate_pg_quotes_values(plain[i]));
}

static void quoting(void **state)
{
    static const struct {
        const char *text;
        size_t len;
        const char *ident, *literal;
    } cases[] = {
        {"orders", 6, "\"orders\"", "'orders'"},
        {"", 0, "\"\"", "''"},
        {"a\"b", 3, "\"a\"\"b\"", "'a\"b'"},
        {"it's", 4, "\"it's\"", "'it''s'"},
        {"''", 2, "\"''\"", "''''''"},
        {"\"", 1, "\"\"\"\"", "'\"'"},
        {"a\\b\n", 4, "\"a\\b\n\"", "'a\\b\n'"},
        {"cut here", 3, "\"cut\"", "'cut'"},
        {"\xc3\xa4\xff", 3, "\"\xc3\xa4\xff\"", "'\xc3\xa4\xff'"},
    };

    (void)state;
    for (size_t i = 0; i < SPATE_COUNT(cases); i++) {
        struct spate_buf out = {0};

        spate_buf_puts(&out, "x ");
        spate_pg_ident(&out, spate_slice(cases[i].text, cases[i].len));
        assert_string_equal(spate_buf_str(&out) + 2, cases[i].ident);
        spate_buf_reset(&out);
        spate_pg_literal(&out, spate_slice(cases[i].text, cases[i].len));
        assert_string_equal(spate_buf_str(&out), cases[i].literal);
        spate_buf_fini(&out);
    }
}

static void positions(void **state)
{
    static const char *const wrong[] = {"",      "/",   "1",   "1/",          "/1",          "1/1 ",  " 1/1",
                                        "1/1/1", "x/1", "1/g", "123456789/1", "1/123456789", "0x1/1", "-1/1"};
    static const uint64_t right[] = {0, 1, UINT64_C(0x100000000), UINT64_C(0x1A0002B3C), UINT64_MAX};
    char text[SPATE_PG_LSN_TEXT];
    uint64_t back;

    (void)state;
    assert_string_equal(spate_pg_lsn(UINT64_C(0x1A00002B3C), text), "1A/2B3C");
    assert_string_equal(spate_pg_lsn(UINT64_MAX, text), "FFFFFFFF/FFFFFFFF");
    for (size_t i = 0; i < SPATE_COUNT(right); i++) {
        assert_true(spate_pg_lsn_parse(spate_pg_lsn(right[i], text), &back));
        assert_true(back == right[i]);
    }
    assert_true(spate_pg_lsn_parse("ab/0000CDEF", &back));
    assert_true(back == UINT64_C(0xAB0000CDEF));
    for (size_t i = 0; i < SPATE_COUNT(wrong); i++)
        assert_false(spate_pg_lsn_parse(wrong[i], &back));
}

static void refused_connections(void **state)
{
    static const struct {
        const char *words, *code;
        enum spate_verdict verdict;
        const char *has[3];
        const char *lacks;
    } cases[] = {
        {"connection to server at \"h\" (10.0.0.1), port 5432 failed: FATAL:  28P01: password authentication "
         "failed for "
         "user \"u\"\nLOCATION:  auth_failed, auth.c:335\n",
         "28P01",
         SPATE_RETRY,
         {"FATAL: password authentication failed for user \"u\"; ", "password_env", "cannot connect: "},
         "LOCATION"},
        {"connection to server failed: FATAL:  08P01: unsupported startup parameter: replication\n",
         "08P01",
         SPATE_FATAL,
         {"unsupported startup parameter", "pgbouncer"},
         NULL},
        {"FATAL:  57P03: the database system is starting up\n", "57P03", SPATE_RETRY, {"starting up"}, NULL},
        {"FATAL:  3D000: database \"x\" does not exist\n",
         "3D000",
         SPATE_RETRY,
         {"create the database"},
         NULL},
        {"FATAL:  53300: sorry, too many clients already\n", "53300", SPATE_RETRY, {"max_connections"}, NULL},
        {"could not translate host name \"h\" to address: Name or service not known\n",
         "",
         SPATE_RETRY,
         {"name service"},
         NULL},
        {"connection to server at \"h\" failed: Connection refused\n\tIs the server running on that host and "
         "accepting "
         "TCP/IP connections?\n",
         "",
         SPATE_RETRY,
         {"listen_addresses"},
         "on that host"},
        {"connection to server at \"h\" failed: root certificate file \"/r\" does not exist\nEither provide "
         "the file or "
         "change sslmode to disable server certificate verification.\n",
         "",
         SPATE_RETRY,
         {"sslrootcert=FILE", "verify-full"},
         "\n"},
        {"invalid sslmode value: \"x\"\n", "", SPATE_FATAL, {"mend the url"}, NULL},
        {"", "", SPATE_RETRY, {"did not say why"}, NULL},
        {"FATAL:  28P0: odd\n", "", SPATE_RETRY, {"28P0: odd"}, NULL},
        {":  ABCDE", "", SPATE_RETRY, {"ABCDE"}, NULL},
    };

    (void)state;
    for (size_t i = 0; i < SPATE_COUNT(cases); i++) {
        struct spate_err err = {0};

        assert_int_equal(spate_pg_connect_failed(&err, "cannot connect", cases[i].words), SPATE_FAIL);
        assert_string_equal(err.sqlstate, cases[i].code);
        assert_int_equal(err.verdict, cases[i].verdict);
        for (size_t w = 0; w < 3 && cases[i].has[w]; w++)
            if (!strstr(err.text, cases[i].has[w]))
                fail_msg("'%s' is not in: %s", cases[i].has[w], err.text);
        if (cases[i].lacks && strstr(err.text, cases[i].lacks))
            fail_msg("'%s' is in: %s", cases[i].lacks, err.text);
    }
}

static enum spate_rc connect_to(const char *url, const char *env, const char *file, struct spate_err *err)
{
    const struct spate_pg_where where = {
        .what = "source", .url = url, .password_env = env, .password_file = file, .application_name = "test"};
    PGconn *conn = (PGconn *)&where;
    enum spate_rc rc = spate_pg_connect(&where, 2000, &conn, err);

    assert_null(conn);
    return rc;
}

static void a_bad_url_is_refused_without_its_password(void **state)
{
    static const char *const urls[] = {
        "postgres://u:hunter2@h:port/d%zz", "postgres://u:hunt/hunter2@h/d",
        "host=h password=hunter2 nonsense", "postgres://u:hunter2@h/d?nokey=hunter2",
        "postgres://u:hunter2@[::1/d",      "postgres://u:hunt@er2@/nowhere/d",
        "postgres://u:x@hunter2@h/d",
    };

    (void)state;
    for (size_t i = 0; i < SPATE_COUNT(urls); i++) {
        struct spate_err err = {0};

        assert_int_equal(connect_to(urls[i], NULL, NULL, &err), SPATE_FAIL);
        assert_int_equal(err.verdict, SPATE_FATAL);
        assert_int_equal(err.exit_code, SPATE_EXIT_CONFIG);
        if (strstr(err.text, "hunt"))
            fail_msg("%s", err.text);
        assert_non_null(strstr(err.text, "source: the url is neither"));
        assert_non_null(strstr(err.text, "percent-encode special characters"));
    }
}

static void passwords_that_cannot_be_had(void **state)
{
    struct spate_err err = {0};

    (void)state;
    unsetenv("SPATE_TEST_NO_SUCH");
    assert_int_equal(connect_to("host=/nowhere", "SPATE_TEST_NO_SUCH", NULL, &err), SPATE_FAIL);
    assert_int_equal(err.verdict, SPATE_FATAL); /* this process' environment will not change */
    assert_int_equal(err.exit_code, SPATE_EXIT_CONFIG);
    assert_non_null(strstr(err.text, "SPATE_TEST_NO_SUCH"));
    err = (struct spate_err){0};
    assert_int_equal(connect_to("host=/nowhere", NULL, "/no/such/file", &err), SPATE_FAIL);
    assert_int_equal(err.verdict, SPATE_RETRY); /* P67: a file may come */
    assert_non_null(strstr(err.text, "/no/such/file: No such file or directory"));
    assert_int_equal(connect_to("host=/nowhere", NULL, "/dev/null", &err), SPATE_FAIL);
    assert_non_null(strstr(err.text, "the file is empty"));
}

static void nobody_there(void **state)
{
    struct spate_err err = {0};
    int64_t before = spate_clock_ms();

    (void)state;
    assert_int_equal(connect_to("host=/nowhere/at/all port=5432 user=u dbname=d", NULL, NULL, &err),
                     SPATE_FAIL);
    assert_int_equal(err.verdict, SPATE_RETRY);
    assert_non_null(strstr(
        err.text, "cannot connect to the source (host /nowhere/at/all, port 5432, database d, role u)"));
    assert_non_null(strstr(err.text, "is the server running"));
    assert_true(spate_clock_ms() - before < 2000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(verdicts),
        cmocka_unit_test(codes_that_quote_values),
        cmocka_unit_test(quoting),
        cmocka_unit_test(positions),
        cmocka_unit_test(refused_connections),
        cmocka_unit_test(a_bad_url_is_refused_without_its_password),
        cmocka_unit_test(passwords_that_cannot_be_had),
        cmocka_unit_test(nobody_there),
    };

    return cmocka_run_group_tests_name("pg", tests, NULL, NULL);
}
