/* Every message of protocol 1, every truncation of it, and what does not belong there. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "connector/pgoutput.h"
#include "core/buf.h"

static struct spate_buf bytes;
static struct spate_err err;

static void u8(unsigned v)
{
    spate_buf_putc(&bytes, (char)v);
}
static void u16(unsigned v)
{
    u8(v >> 8 & 0xff);
    u8(v & 0xff);
}
static void u32(uint32_t v)
{
    u16(v >> 16);
    u16(v & 0xffff);
}
static void u64(uint64_t v)
{
    u32((uint32_t)(v >> 32));
    u32((uint32_t)v);
}
static void str(const char *s)
{
    spate_buf_add(&bytes, s, strlen(s) + 1);
}
static void text(const char *s)
{
    u8('t');
    u32((uint32_t)strlen(s));
    spate_buf_puts(&bytes, s);
}

static void make_begin(void)
{
    u8('B'), u64(0x16B3748), u64(0), u32(745);
}
static void make_commit(void)
{
    u8('C'), u8(0), u64(0x16B3748), u64(0x16B3790), u64((uint64_t)-1000000);
}
static void make_origin(void)
{
    u8('O'), u64(0x99), str("elsewhere");
}
static void make_relation(void)
{
    u8('R'), u32(16384), str("public"), str("or\"ders"), u8('d'), u16(2);
    u8(1), str("id"), u32(23), u32((uint32_t)-1);
    u8(0), str("t\not\xc3\xa4l"), u32(1700), u32(655366);
}
static void make_type(void)
{
    u8('Y'), u32(16999), str(""), str("int4");
}
static void make_insert(void)
{
    u8('I'), u32(16384), u8('N'), u16(3), text("42"), u8('n'), text("");
}
static void make_update_key(void)
{
    u8('U'), u32(16384), u8('K'), u16(3), text("1"), u8('n'), u8('n'), u8('N'), u16(3), text("2"), u8('u'),
        text("b");
}
static void make_update_full(void)
{
    u8('U'), u32(16384), u8('O'), u16(1), text("1"), u8('N'), u16(1), text("2");
}
static void make_update_plain(void)
{
    u8('U'), u32(16384), u8('N'), u16(1), text("2");
}
static void make_delete_key(void)
{
    u8('D'), u32(16384), u8('K'), u16(2), text("1"), u8('n');
}
static void make_delete_full(void)
{
    u8('D'), u32(16384), u8('O'), u16(2), text("1"), u8('n');
}
static void make_truncate(void)
{
    u8('T'), u32(2), u8(3), u32(16384), u32(16390);
}
static void make_message(void)
{
    u8('M'), u8(1), u64(0x77), str("prefix"), u32(5), spate_buf_add(&bytes, "a\0b\nc", 5);
}

static void (*const makers[])(void) = {
    make_begin,       make_commit,     make_origin,      make_relation,     make_type,
    make_insert,      make_update_key, make_update_full, make_update_plain, make_delete_key,
    make_delete_full, make_truncate,   make_message,
};

/* The bytes stand at the end of an allocation of exactly their size, so that ASan sees one byte too many. */
static enum spate_rc decode(size_t len, struct spate_pgoutput *msg)
{
    static char *exact;
    enum spate_rc rc;

    free(exact);
    exact = malloc(len ? len : 1);
    assert_non_null(exact);
    memcpy(exact, bytes.data ? bytes.data : "", len);
    err = (struct spate_err){0};
    rc = spate_pgoutput_decode(spate_slice(exact, len), msg, &err);
    return rc;
}

static struct spate_pgoutput decoded(void (*make)(void))
{
    struct spate_pgoutput msg;

    spate_buf_reset(&bytes);
    make();
    assert_int_equal(decode(bytes.len, &msg), SPATE_OK);
    return msg;
}

static void assert_slice(struct spate_slice s, const char *want)
{
    assert_int_equal(s.len, strlen(want));
    assert_memory_equal(s.at, want, s.len);
}

static void begin_and_commit(void **state)
{
    struct spate_pgoutput msg = decoded(make_begin);

    (void)state;
    assert_int_equal(msg.begin.commit_lsn, 0x16B3748);
    assert_int_equal(msg.begin.commit_us, INT64_C(946684800000000)); /* 2000-01-01 */
    assert_int_equal(msg.begin.xid, 745);
    msg = decoded(make_commit);
    assert_int_equal(msg.commit.commit_lsn, 0x16B3748);
    assert_int_equal(msg.commit.end_lsn, 0x16B3790);
    assert_int_equal(msg.commit.commit_us, INT64_C(946684799000000));
}

static void P85_relation_takes_any_identifier(void **state)
{
    struct spate_pgoutput msg = decoded(make_relation);
    struct spate_slice at = msg.relation.at;
    struct spate_pgoutput_attribute a;

    (void)state;
    assert_int_equal(msg.relation.oid, 16384);
    assert_slice(msg.relation.schema, "public");
    assert_slice(msg.relation.table, "or\"ders");
    assert_int_equal(msg.relation.identity, 'd');
    assert_int_equal(msg.relation.count, 2);
    a = spate_pgoutput_attribute(&at);
    assert_true(a.identity);
    assert_slice(a.name, "id");
    assert_int_equal(a.oid, 23);
    assert_int_equal(a.mod, -1);
    a = spate_pgoutput_attribute(&at);
    assert_false(a.identity);
    assert_slice(a.name, "t\not\xc3\xa4l");
    assert_int_equal(a.mod, 655366);
    assert_int_equal(at.len, 0);
}

static void P36_the_empty_schema_is_pg_catalog(void **state)
{
    (void)state;
    spate_buf_reset(&bytes);
    u8('R'), u32(1), str(""), str("t"), u8('n'), u16(0);
    struct spate_pgoutput msg;
    assert_int_equal(decode(bytes.len, &msg), SPATE_OK);
    assert_slice(msg.relation.schema, "pg_catalog");
}

static void insert_has_every_kind_of_value(void **state)
{
    struct spate_pgoutput msg = decoded(make_insert);
    struct spate_value values[3];

    (void)state;
    assert_false(msg.change.old.present);
    assert_true(msg.change.new.present);
    spate_pgoutput_values(&msg.change.new, values);
    assert_int_equal(values[0].kind, SPATE_VALUE_TEXT);
    assert_slice(values[0].text, "42");
    assert_int_equal(values[1].kind, SPATE_VALUE_NULL);
    assert_int_equal(values[2].kind, SPATE_VALUE_TEXT); /* the empty string is no NULL */
    assert_slice(values[2].text, "");
}

static void P40_P44_updates_in_their_three_shapes(void **state)
{
    struct spate_pgoutput msg = decoded(make_update_key);
    struct spate_value values[3];

    (void)state;
    assert_true(msg.change.old.present);
    assert_false(msg.change.old.whole);
    spate_pgoutput_values(&msg.change.new, values);
    assert_slice(values[0].text, "2");
    assert_int_equal(values[1].kind, SPATE_VALUE_ABSENT); /* unchanged TOAST (P42) */
    msg = decoded(make_update_full);
    assert_true(msg.change.old.present && msg.change.old.whole);
    msg = decoded(make_update_plain);
    assert_false(msg.change.old.present);
    assert_true(msg.change.new.present);
}

static void deletes_with_key_and_with_row(void **state)
{
    struct spate_pgoutput msg = decoded(make_delete_key);

    (void)state;
    assert_true(msg.change.old.present && !msg.change.old.whole && !msg.change.new.present);
    msg = decoded(make_delete_full);
    assert_true(msg.change.old.present && msg.change.old.whole && !msg.change.new.present);
}

static void P52_truncate_lists_its_tables(void **state)
{
    struct spate_pgoutput msg = decoded(make_truncate);
    struct spate_slice at = msg.truncate.at;

    (void)state;
    assert_int_equal(msg.truncate.count, 2);
    assert_true(msg.truncate.cascade && msg.truncate.restart);
    assert_int_equal(spate_pgoutput_oid(&at), 16384);
    assert_int_equal(spate_pgoutput_oid(&at), 16390);
}

static void P24_messages_keep_their_bytes(void **state)
{
    struct spate_pgoutput msg = decoded(make_message);

    (void)state;
    assert_true(msg.message.transactional);
    assert_slice(msg.message.prefix, "prefix");
    assert_int_equal(msg.message.content.len, 5);
    assert_memory_equal(msg.message.content.at, "a\0b\nc", 5);
}

static void every_truncation_is_refused(void **state)
{
    (void)state;
    for (size_t m = 0; m < sizeof makers / sizeof makers[0]; m++) {
        struct spate_pgoutput msg;

        spate_buf_reset(&bytes);
        makers[m]();
        for (size_t len = 0; len < bytes.len; len++) {
            assert_int_equal(decode(len, &msg), SPATE_FAIL);
            assert_int_equal(err.verdict, SPATE_FATAL);
            assert_true(strlen(err.text) > 20);
        }
    }
}

static void one_byte_too_many_is_refused(void **state)
{
    (void)state;
    for (size_t m = 0; m < sizeof makers / sizeof makers[0]; m++) {
        struct spate_pgoutput msg;

        spate_buf_reset(&bytes);
        makers[m]();
        u8(0);
        assert_int_equal(decode(bytes.len, &msg), SPATE_FAIL);
        assert_non_null(strstr(err.text, "end of the message"));
    }
}

static void lengths_beyond_the_message_are_refused(void **state)
{
    struct spate_pgoutput msg;

    (void)state;
    spate_buf_reset(&bytes);
    u8('I'), u32(1), u8('N'), u16(1), u8('t'), u32(0xffffffff), u8('x');
    assert_int_equal(decode(bytes.len, &msg), SPATE_FAIL);
    spate_buf_reset(&bytes);
    u8('T'), u32(0xffffffff), u8(0), u32(1);
    assert_int_equal(decode(bytes.len, &msg), SPATE_FAIL);
    spate_buf_reset(&bytes);
    u8('M'), u8(1), u64(1), str("p"), u32(0x7fffffff);
    assert_int_equal(decode(bytes.len, &msg), SPATE_FAIL);
}

static void what_was_not_asked_for_is_refused(void **state)
{
    static const struct {
        const char *bytes;
        size_t len;
        const char *said;
    } cases[] = {
        {"I\0\0\0\1N\0\1b\0\0\0\1x", 14, "n, u or t"}, /* binary */
        {"I\0\0\0\1K\0\0", 8, "kind N"},
        {"D\0\0\0\1N\0\0", 8, "K or O"},
        {"U\0\0\0\1X\0\0", 8, "K, O or N"},
        {"S\0\0\0\1\1", 6, "protocol 1"}, /* stream start, protocol 2 */
        {"\0", 1, "protocol 1"},
        {"R\0\0\0\1p\0t\0z\0\0", 12, "replica identity"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct spate_pgoutput msg;

        spate_buf_reset(&bytes);
        spate_buf_add(&bytes, cases[i].bytes, cases[i].len);
        assert_int_equal(decode(bytes.len, &msg), SPATE_FAIL);
        if (!strstr(err.text, cases[i].said))
            fail_msg("case %zu: %s", i, err.text);
    }
}

static void P86_takes_1600_columns(void **state)
{
    struct spate_pgoutput msg;
    struct spate_value *values = calloc(1600, sizeof *values);

    (void)state;
    spate_buf_reset(&bytes);
    u8('I'), u32(1), u8('N'), u16(1600);
    for (int i = 0; i < 1600; i++)
        text("v");
    assert_int_equal(decode(bytes.len, &msg), SPATE_OK);
    assert_int_equal(msg.change.new.count, 1600);
    spate_pgoutput_values(&msg.change.new, values);
    assert_slice(values[1599].text, "v");
    free(values);
}

static void any_flipped_bit_is_refused_or_decoded_within_bounds(void **state)
{
    (void)state;
    for (size_t m = 0; m < sizeof makers / sizeof makers[0]; m++) {
        spate_buf_reset(&bytes);
        makers[m]();
        for (size_t bit = 0; bit < bytes.len * 8; bit++) {
            struct spate_pgoutput msg;

            bytes.data[bit / 8] ^= (char)(1 << bit % 8);
            if (decode(bytes.len, &msg) == SPATE_OK && msg.kind == SPATE_PGOUTPUT_INSERT) {
                struct spate_value *values = calloc((size_t)msg.change.new.count + 1, sizeof *values);

                spate_pgoutput_values(&msg.change.new, values);
                free(values);
            }
            bytes.data[bit / 8] ^= (char)(1 << bit % 8);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(begin_and_commit),
        cmocka_unit_test(P85_relation_takes_any_identifier),
        cmocka_unit_test(P36_the_empty_schema_is_pg_catalog),
        cmocka_unit_test(insert_has_every_kind_of_value),
        cmocka_unit_test(P40_P44_updates_in_their_three_shapes),
        cmocka_unit_test(deletes_with_key_and_with_row),
        cmocka_unit_test(P52_truncate_lists_its_tables),
        cmocka_unit_test(P24_messages_keep_their_bytes),
        cmocka_unit_test(every_truncation_is_refused),
        cmocka_unit_test(one_byte_too_many_is_refused),
        cmocka_unit_test(lengths_beyond_the_message_are_refused),
        cmocka_unit_test(what_was_not_asked_for_is_refused),
        cmocka_unit_test(P86_takes_1600_columns),
        cmocka_unit_test(any_flipped_bit_is_refused_or_decoded_within_bounds),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);

    spate_buf_fini(&bytes);
    return failed;
}
