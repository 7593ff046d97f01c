/* The pieces below the codec: the scan, UTF-8, base64, the pull reader. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "core/alloc.h"
#include "schemas/base64.h"
#include "schemas/json.h"
#include "schemas/utf8.h"

#include <stdio.h>
#include <stdlib.h>

/* Every byte, at every place of a block and of its tail: the wide scan agrees with the byte by byte rule. */
static void scan_finds_each_special_byte_everywhere(void **state)
{
    (void)state;
    for (size_t len = 1; len <= 40; len++) {
        for (size_t at = 0; at < len; at++) {
            for (int byte = 0; byte < 256; byte++) {
                char *text = spate_alloc(len);
                const char *want = spate_utf8_plain((unsigned char)byte) ? text + len : text + at;

                memset(text, 'a' + (int)(len % 26), len);
                text[at] = (char)byte;
                assert_ptr_equal(spate_utf8_scan(text, text + len), want);
                free(text);
            }
        }
    }
}

/* The word-wide test alone, as processors without SSE2 use it. */
static void word_scan_is_exact_about_the_lowest_byte(void **state)
{
    unsigned seed = 7;

    (void)state;
    for (int round = 0; round < 200000; round++) {
        unsigned char bytes[8];
        uint64_t word = 0, special;
        int lowest = 8;

        for (int i = 0; i < 8; i++) {
            seed = seed * 1103515245 + 12345;
            bytes[i] = (unsigned char)((seed >> 16 & 7) == 0 ? seed >> 20 : 'a' + (seed >> 20) % 26);
            if (lowest == 8 && !spate_utf8_plain(bytes[i]))
                lowest = i;
            word |= (uint64_t)bytes[i] << (8 * i);
        }
        special = spate_utf8_special(word);
        assert_int_equal(special == 0 ? 8 : __builtin_ctzll(special) / 8, lowest);
    }
}

/* Every code point, and every lead byte with every second byte, against the definition. */
static void utf8_is_checked_by_the_standard(void **state)
{
    (void)state;
    for (uint32_t code = 0x80; code <= 0x110fff; code++) {
        char text[4];
        size_t len = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;

        for (size_t i = len - 1, left = code; i > 0; i--, left >>= 6)
            text[i] = (char)(0x80 | (left & 63));
        text[0] = (char)(len == 2 ? 0xc0 | code >> 6 : len == 3 ? 0xe0 | code >> 12 : 0xf0 | code >> 18);
        assert_int_equal(spate_utf8_sequence(text, text + len),
                         code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff) ? 0 : len);
        assert_int_equal(spate_utf8_sequence(text, text + len - 1), 0);
        text[len - 1] = 'x';
        assert_int_equal(spate_utf8_sequence(text, text + len), 0);
    }
    for (int lead = 0x80; lead < 0xc2; lead++) { /* continuations, and overlong forms of ASCII */
        char text[] = {(char)lead, '\x80', '\x80', '\x80'};

        assert_int_equal(spate_utf8_sequence(text, text + 4), 0);
    }
}

static void base64_knows_the_standard_vectors(void **state)
{
    static const char *const vectors[][2] = {{"", ""},
                                             {"f", "Zg=="},
                                             {"fo", "Zm8="},
                                             {"foo", "Zm9v"},
                                             {"foob", "Zm9vYg=="},
                                             {"fooba", "Zm9vYmE="},
                                             {"foobar", "Zm9vYmFy"}};
    static const char *const wrong[] = {
        "Z", "Zg", "Zg=", "Zh==", "Zm9=", "=Zg=", "Zg==Zg==", "Z g=", "Zm9v\n", "====", "Zm-v"};
    char bytes[16];
    size_t len;

    (void)state;
    for (size_t i = 0; i < SPATE_COUNT(vectors); i++) {
        struct spate_buf out = {0};

        spate_base64_encode(&out, spate_slice_str(vectors[i][0]));
        assert_string_equal(spate_buf_str(&out), vectors[i][1]);
        assert_true(spate_base64_decode(spate_slice_str(vectors[i][1]), bytes, &len));
        assert_true(spate_slice_is(spate_slice(bytes, len), vectors[i][0]));
        spate_buf_fini(&out);
    }
    for (size_t i = 0; i < SPATE_COUNT(wrong); i++)
        assert_false(spate_base64_decode(spate_slice_str(wrong[i]), bytes, &len));
}

static void reads_strings(void **state)
{
    static const struct {
        const char *json, *text;
        size_t len;
    } good[] = {
        {"\"\"", "", 0},
        {" \"a\"", "a", 1},
        {"\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"", "\"\\/\b\f\n\r\t", 8},
        {"\"\\u0000\"", "\0", 1},
        {"\"\\u00E9\\u20ac\\uD83D\\uDC18\"", "\xc3\xa9\xe2\x82\xac\xf0\x9f\x90\x98", 9},
        {"\"\x7f\xc3\xa9\"", "\x7f\xc3\xa9", 3},
    };
    static const char *const bad[] = {"",
                                      "a",
                                      "\"",
                                      "\"a",
                                      "\"\\",
                                      "\"\\\"",
                                      "\"\\x\"",
                                      "\"\\u12\"",
                                      "\"\\u12g4\"",
                                      "\"\\ud800\"",
                                      "\"\\udc00\"",
                                      "\"\\ud800\\u0041\"",
                                      "\"\\ud800x\"",
                                      "\"\n\"",
                                      "\"\x1f\"",
                                      "\"\xff\"",
                                      "\"\xc3\"",
                                      "\"\xed\xa0\x80\""};

    (void)state;
    for (size_t i = 0; i < SPATE_COUNT(good); i++) {
        struct spate_arena arena = {0};
        struct spate_json json = spate_json_over(spate_slice_str(good[i].json), 0, &arena);
        struct spate_slice text;

        assert_true(spate_json_string(&json, &text));
        assert_true(spate_json_finish(&json));
        assert_true(spate_slice_eq(text, spate_slice(good[i].text, good[i].len)));
        spate_arena_fini(&arena);
    }
    for (size_t i = 0; i < SPATE_COUNT(bad); i++) {
        struct spate_arena arena = {0};
        struct spate_json json = spate_json_over(spate_slice_str(bad[i]), 0, &arena);
        struct spate_slice text;

        if (spate_json_string(&json, &text))
            fail_msg("taken for a string: %s", bad[i]);
        spate_arena_fini(&arena);
    }
}

static void failure_is_sticky_and_keeps_its_place(void **state)
{
    struct spate_json json = spate_json_over(spate_slice_str("[1, x, 2]"), 0, NULL);
    const char *why;
    bool first = true, yes;
    uint64_t number;

    (void)state;
    assert_true(spate_json_take(&json, '['));
    assert_true(spate_json_element(&json, &first));
    assert_true(spate_json_u64(&json, 9, &number));
    assert_true(spate_json_element(&json, &first));
    assert_false(spate_json_u64(&json, 9, &number));
    why = json.why;
    assert_int_equal(json.where, 4);
    assert_false(spate_json_element(&json, &first));
    assert_false(spate_json_skip(&json, NULL));
    assert_false(spate_json_bool(&json, &yes));
    assert_false(spate_json_null(&json));
    assert_false(spate_json_after(&json));
    assert_false(spate_json_finish(&json));
    assert_int_equal(spate_json_peek(&json), 0);
    assert_ptr_equal(json.why, why);
    assert_int_equal(json.where, 4);
}

static void reads_whole_numbers_up_to_their_limit(void **state)
{
    static const struct {
        const char *json;
        uint64_t max, value;
        bool ok;
    } cases[] = {
        {"0", 0, 0, true},
        {"1", 0, 0, false},
        {"4294967295", UINT32_MAX, UINT32_MAX, true},
        {"4294967296", UINT32_MAX, 0, false},
        {"18446744073709551615", UINT64_MAX, UINT64_MAX, true},
        {"18446744073709551616", UINT64_MAX, 0, false},
        {"99999999999999999999999", UINT64_MAX, 0, false},
        {"00", 9, 0, false},
        {"-1", 9, 0, false},
        {"1.5", 9, 0, false},
        {"1e1", 99, 0, false},
        {"", 9, 0, false},
        {"\"1\"", 9, 0, false},
    };

    (void)state;
    for (size_t i = 0; i < SPATE_COUNT(cases); i++) {
        struct spate_json json = spate_json_over(spate_slice_str(cases[i].json), 0, NULL);
        uint64_t value = 0;

        assert_int_equal(spate_json_u64(&json, cases[i].max, &value), cases[i].ok);
        if (cases[i].ok)
            assert_true(value == cases[i].value);
    }
    for (int64_t value = INT32_MIN; value <= INT32_MAX; value += INT32_MAX) {
        struct spate_buf text = {0};
        struct spate_json json;
        int32_t back;

        spate_json_put_i32(&text, (int32_t)value);
        json = spate_json_over(spate_buf_view(&text), 0, NULL);
        assert_true(spate_json_i32(&json, &back));
        assert_int_equal(back, value);
        spate_buf_fini(&text);
    }
}

/* Skipping is iterative: the depth is bounded by the reader's rule, not by the stack. */
static void skips_up_to_its_depth(void **state)
{
    size_t depth = 1000000;
    char *text = spate_alloc(depth);
    struct spate_json json;

    (void)state;
    memset(text, '[', depth);
    json = spate_json_over(spate_slice(text, depth), 0, NULL);
    assert_false(spate_json_skip(&json, NULL));
    assert_int_equal(json.cause, SPATE_JSON_DEEP);
    assert_int_equal(json.where, SPATE_JSON_DEPTH);
    for (size_t i = 0; i < SPATE_JSON_DEPTH; i++)
        text[SPATE_JSON_DEPTH + i] = ']';
    json = spate_json_over(spate_slice(text, 2 * SPATE_JSON_DEPTH), 0, NULL);
    assert_true(spate_json_skip(&json, NULL));
    assert_true(spate_json_finish(&json));
    text[2 * SPATE_JSON_DEPTH - 1] = '}';
    json = spate_json_over(spate_slice(text, 2 * SPATE_JSON_DEPTH), 0, NULL);
    assert_false(spate_json_skip(&json, NULL));
    free(text);
}

/* The same bytes, cut and changed anywhere, never make the reader step outside (ASan watches). */
static void skips_damaged_values_without_harm(void **state)
{
    static const char whole[] =
        "{\"a\":[1,-2.5e+3,true,false,null,{\"\\u0041\":\"\\n\xc3\xa9\"},[]],\"b\":{}}";
    unsigned seed = 11;
    size_t taken = 0;

    (void)state;
    for (int round = 0; round < 100000; round++) {
        size_t len = 1 + (size_t)(round % (int)(sizeof(whole) - 1));
        char *text = spate_alloc(len);
        struct spate_json json;

        memcpy(text, whole, len);
        seed = seed * 1103515245 + 12345;
        if (round >= (int)sizeof(whole))
            text[(seed >> 8) % len] = (char)(seed >> 24);
        json = spate_json_over(spate_slice(text, len), 0, NULL);
        taken += spate_json_skip(&json, NULL) && spate_json_finish(&json);
        free(text);
    }
    assert_true(taken > 0);
}

static void names_come_back_as_they_were(void **state)
{
    static const char *const names[] = {
        "a", "", "caf\xe9", "caf\xc3\xa9", "$bytes:", "$bytes:YQ==", "$bytes", "a\"b\n"};

    (void)state;
    for (size_t i = 0; i < SPATE_COUNT(names); i++) {
        struct spate_arena arena = {0};
        struct spate_buf text = {0};
        struct spate_slice back;
        struct spate_json json;

        spate_json_put_name(&text, spate_slice_str(names[i]));
        json = spate_json_over(spate_buf_view(&text), 0, &arena);
        assert_true(spate_json_name(&json, &back));
        assert_true(spate_slice_is(back, names[i]));
        spate_buf_fini(&text);
        spate_arena_fini(&arena);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scan_finds_each_special_byte_everywhere),
        cmocka_unit_test(word_scan_is_exact_about_the_lowest_byte),
        cmocka_unit_test(utf8_is_checked_by_the_standard),
        cmocka_unit_test(base64_knows_the_standard_vectors),
        cmocka_unit_test(reads_strings),
        cmocka_unit_test(failure_is_sticky_and_keeps_its_place),
        cmocka_unit_test(reads_whole_numbers_up_to_their_limit),
        cmocka_unit_test(skips_up_to_its_depth),
        cmocka_unit_test(skips_damaged_values_without_harm),
        cmocka_unit_test(names_come_back_as_they_were),
    };

    return cmocka_run_group_tests_name("schemas_json", tests, NULL, NULL);
}
