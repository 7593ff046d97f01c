/* Buffers, arena, hashes and clock: sizes at the edges, and known answers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/arena.h"
#include "core/buf.h"
#include "core/clock.h"
#include "core/err.h"
#include "core/hash.c" /* the table-driven crc is static, and is the only one on other processors */

static void buffers_grow_and_give_back(void **state)
{
    struct spate_buf buf = {0};

    (void)state;
    assert_string_equal(spate_buf_str(&buf), "");
    assert_int_equal(buf.len, 0);
    for (int i = 0; i < 1000; i++)
        spate_buf_printf(&buf, "%d,", i);
    assert_int_equal(buf.len, 3890);
    assert_memory_equal(buf.data, "0,1,2,", 6);
    assert_string_equal(spate_buf_str(&buf) + buf.len - 4, "999,");
    spate_buf_trim(&buf, 1 << 20);
    assert_int_equal(buf.len, 0);
    assert_true(buf.cap > 0); /* below the limit the memory is kept */
    spate_buf_puts(&buf, "x");
    spate_buf_trim(&buf, 1);
    assert_int_equal(buf.cap, 0);
    spate_buf_add(&buf, NULL, 0);
    spate_buf_putc(&buf, 'a');
    spate_buf_slice(&buf, spate_slice("b\0c", 3));
    assert_int_equal(buf.len, 4);
    assert_memory_equal(buf.data, "ab\0c", 4);
    assert_true(spate_slice_eq(spate_buf_view(&buf), spate_slice("ab\0c", 4)));
    spate_buf_fini(&buf);
    spate_buf_fini(&buf);
}

static void arena_pieces_do_not_overlap(void **state)
{
    static const size_t sizes[] = {0, 1, 15, 16, 17, 4000, 17000, 65536, 65537, 300000, 3};
    struct spate_arena arena = {0};

    (void)state;
    for (int round = 0; round < 3; round++) {
        unsigned char *at[200];
        size_t count = 0, used = 0;

        for (; count < 200; count++) {
            size_t size = sizes[(count * 7 + (size_t)round) % (sizeof sizes / sizeof sizes[0])];

            at[count] = spate_arena_alloc(&arena, size);
            assert_int_equal((uintptr_t)at[count] % 16, 0);
            memset(at[count], (int)count + 1, size);
            used += size;
        }
        assert_true(arena.used >= used);
        for (size_t i = 0; i < count; i++) {
            size_t size = sizes[(i * 7 + (size_t)round) % (sizeof sizes / sizeof sizes[0])];

            for (size_t b = 0; b < size; b += 97)
                assert_int_equal(at[i][b], (unsigned char)(i + 1));
        }
        spate_arena_reset(&arena);
        assert_int_equal(arena.used, 0);
    }
    assert_true(spate_slice_is(spate_arena_copy(&arena, spate_slice_str("copied")), "copied"));
    assert_int_equal(spate_arena_copy(&arena, spate_slice(NULL, 0)).len, 0);
    spate_arena_fini(&arena);
    spate_arena_reset(&arena); /* empty again, and usable */
    spate_arena_fini(&arena);
}

static void crc32c_known_answers(void **state)
{
    unsigned char bytes[32], noise[5000];
    uint64_t head[4];
    uint32_t next = 1, whole;

    (void)state;
    assert_int_equal(spate_crc32c(0, "123456789", 9), 0xE3069283u);
    memset(bytes, 0, sizeof bytes);
    assert_int_equal(spate_crc32c(0, bytes, 32), 0x8A9136AAu);
    memset(bytes, 0xFF, sizeof bytes);
    assert_int_equal(spate_crc32c(0, bytes, 32), 0x62A8AB43u);
    for (unsigned i = 0; i < 32; i++)
        bytes[i] = (unsigned char)i;
    assert_int_equal(spate_crc32c(0, bytes, 32), 0x46DD794Eu);
    assert_int_equal(spate_crc32c(0, NULL, 0), 0);

    for (size_t i = 0; i < sizeof noise; i++) {
        next = next * 1103515245u + 12345u;
        noise[i] = (unsigned char)(next >> 16);
    }
    memcpy(head, noise, sizeof head);
    whole = spate_crc32c(0, noise, sizeof noise);
    for (size_t cut = 0; cut <= sizeof noise; cut += 13) {
        uint32_t first = spate_crc32c(0, noise, cut);

        assert_int_equal(spate_crc32c(first, noise + cut, sizeof noise - cut), whole);
        if (cut >= sizeof head)
            assert_int_equal(spate_crc32c_head(head, noise + sizeof head, cut - sizeof head), first);
        /* With and without the instructions, of all lengths. */
        assert_int_equal(~crc_plain(~0u, noise, cut), first);
#if defined(__x86_64__)
        if (__builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul"))
            assert_int_equal(~crc_sse42(~0u, noise, cut), first);
#endif
    }
}

static void fnv64_known_answers(void **state)
{
    (void)state;
    assert_true(spate_fnv64(SPATE_FNV64_START, "", 0) == UINT64_C(0xcbf29ce484222325));
    assert_true(spate_fnv64(SPATE_FNV64_START, "a", 1) == UINT64_C(0xaf63dc4c8601ec8c));
    assert_true(spate_fnv64(SPATE_FNV64_START, "foobar", 6) == UINT64_C(0x85944171f73967e8));
}

/* The answers of Kafka's own tests, so that a shard is the same number there. */
static void murmur2_known_answers(void **state)
{
    static const struct {
        const char *key;
        int32_t hash;
    } cases[] = {
        {"21", -973932308},
        {"foobar", -790332482},
        {"a-little-bit-long-string", -985981536},
        {"a-little-bit-longer-string", -1486304829},
        {"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971},
        {"abc", 479470107},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        assert_int_equal((int32_t)spate_murmur2(cases[i].key, strlen(cases[i].key)), cases[i].hash);
}

static void uuids_are_random_and_version_4(void **state)
{
    char a[37], b[37];

    (void)state;
    spate_uuid(a);
    spate_uuid(b);
    assert_int_equal(strlen(a), 36);
    assert_int_equal(strspn(a, "0123456789abcdef-"), 36);
    assert_true(a[8] == '-' && a[13] == '-' && a[18] == '-' && a[23] == '-');
    assert_int_equal(a[14], '4');
    assert_non_null(strchr("89ab", a[19]));
    assert_string_not_equal(a, b);
}

static void timestamps(void **state)
{
    static const struct {
        int64_t us;
        const char *text;
    } cases[] = {
        {0, "1970-01-01T00:00:00.000000Z"},
        {-1, "1969-12-31T23:59:59.999999Z"},
        {INT64_C(951782400000000), "2000-02-29T00:00:00.000000Z"},
        {INT64_C(4107542400000000), "2100-03-01T00:00:00.000000Z"}, /* 2100 has no leap day */
        {INT64_C(1795252443123456), "2026-11-21T09:14:03.123456Z"},
        {INT64_C(-62167219200000000), "0000-01-01T00:00:00.000000Z"},
        {INT64_C(253402300799999999), "9999-12-31T23:59:59.999999Z"},
        {INT64_MIN, "0000-01-01T00:00:00.000000Z"},
        {INT64_MAX, "9999-12-31T23:59:59.999999Z"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char out[SPATE_TIMESTAMP_LEN + 1] = {0};

        spate_clock_format(cases[i].us, out);
        assert_string_equal(out, cases[i].text);
    }
}

static void clocks_run(void **state)
{
    int64_t before = spate_clock_us();

    (void)state;
    assert_true(spate_clock_us() >= before);
    assert_true(spate_clock_ms() >= before / 1000);
    assert_true(spate_clock_wall_us() > INT64_C(1600000000000000));
}

static void errors_keep_what_is_not_theirs(void **state)
{
    struct spate_err err = {.exit_code = SPATE_EXIT_FENCED, .lsn = 7};
    char *word = malloc(5000);

    (void)state;
    memcpy(err.sqlstate, "42704", 6);
    assert_int_equal(spate_fail(&err, SPATE_FATAL, "slot %s", "s"), SPATE_FAIL);
    assert_string_equal(err.text, "slot s");
    assert_int_equal(err.exit_code, SPATE_EXIT_FENCED);
    assert_int_equal(err.lsn, 7);
    assert_string_equal(err.sqlstate, "42704");
    assert_non_null(strstr(err.file, "core_bytes_test.c"));
    assert_int_equal(spate_err_context(&err, "start of %s", "shop"), SPATE_FAIL);
    assert_string_equal(err.text, "start of shop: slot s");
    spate_err_context(&err, "start of %s", "shop"); /* named already */
    spate_err_context(&err, "start");
    assert_string_equal(err.text, "start of shop: slot s");
    spate_err_context(&err, "star");
    assert_string_equal(err.text, "star: start of shop: slot s");
    memset(word, 'x', 4999);
    word[4999] = '\0';
    spate_err_context(&err, "%s", word); /* cut, never overrun */
    assert_int_equal(strlen(err.text), sizeof err.text - 1);
    spate_fail(&err, SPATE_RETRY, "%s", word);
    assert_int_equal(strlen(err.text), sizeof err.text - 1);
    spate_err_context(&err, "where");
    assert_int_equal(strncmp(err.text, "where: xxx", 10), 0);
    assert_int_equal(strlen(err.text), sizeof err.text - 1);
    assert_string_equal(err.text + sizeof err.text - 5, "x..."); /* half a statement is seen to be half */
    for (size_t tail = 0; tail < 4; tail++) {                    /* nor is a character cut in two */
        struct spate_err whole = {0};

        memset(word, 'x', 4999);
        memcpy(word + sizeof err.text - 4 - tail, "\xF0\x9F\x90\x98", 4);
        spate_fail(&err, SPATE_RETRY, "%s", word);
        assert_string_equal(err.text + strspn(err.text, "x"), "...");
        spate_fail(&whole, SPATE_RETRY, "%.*s", (int)sizeof whole.text - 1,
                   word + 4999 - (sizeof whole.text - 1));
        assert_int_equal(strspn(whole.text, "x"), sizeof whole.text - 1); /* what fits is not marked */
        spate_err_context(&whole, "%s", "");
        assert_string_equal(whole.text + sizeof whole.text - 5, "x...");
    }
    assert_string_equal(spate_verdict_name(SPATE_RETRY), "retry");
    assert_string_equal(spate_verdict_name(SPATE_QUARANTINE), "quarantine");
    assert_string_equal(spate_verdict_name(SPATE_FATAL), "fatal");
    free(word);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(buffers_grow_and_give_back),
        cmocka_unit_test(arena_pieces_do_not_overlap),
        cmocka_unit_test(crc32c_known_answers),
        cmocka_unit_test(fnv64_known_answers),
        cmocka_unit_test(murmur2_known_answers),
        cmocka_unit_test(uuids_are_random_and_version_4),
        cmocka_unit_test(timestamps),
        cmocka_unit_test(clocks_run),
        cmocka_unit_test(errors_keep_what_is_not_theirs),
    };

    return cmocka_run_group_tests_name("bytes", tests, NULL, NULL);
}
