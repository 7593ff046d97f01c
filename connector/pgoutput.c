/* connector/pgoutput.c - one switch over the messages of pgoutput, protocol 1 (proto_version '1').
 *
 * Integers are big-endian; "string" ends with a NUL; times are microseconds since 2000-01-01.
 *
 *   B  commit lsn u64 | commit time i64 | xid u32
 *   C  flags u8 (0) | commit lsn u64 | end lsn u64 | commit time i64
 *   O  origin's commit lsn u64 | name string
 *   R  oid u32 | schema string | table string | identity u8 | columns u16 |
 *        columns x ( flags u8 (1 = identity) | name string | type oid u32 | type modifier i32 )
 *   Y  oid u32 | schema string | name string
 *   I  oid u32 | 'N' | tuple
 *   U  oid u32 | [ 'K' tuple | 'O' tuple ] | 'N' tuple
 *   D  oid u32 | 'K' tuple | 'O' tuple
 *   T  relations u32 | flags u8 (1 = cascade, 2 = restart identity) | relations x oid u32
 *   M  flags u8 (1 = transactional) | lsn u64 | prefix string | length u32 | content
 *   tuple  columns u16 | columns x ( 'n' | 'u' | 't' length u32 bytes )
 *
 * Binary columns ('b') are not asked for and are refused. The cursor's failure is sticky: once a read went
 * past the end every later one gives zero, and nothing is believed until finish() has looked. */
#include "connector/pgoutput.h"

#include "connector/lsn.h"

#include <inttypes.h>

struct cursor {
    const unsigned char *data;
    size_t at, end;
    const char *wanted; /* what was expected where it failed; NULL: nothing failed yet */
};

static bool have(struct cursor *c, size_t len, const char *wanted)
{
    if (c->wanted)
        return false;
    if (len > c->end - c->at) {
        c->wanted = wanted;
        return false;
    }
    return true;
}

static uint8_t get_u8(struct cursor *c, const char *wanted)
{
    return have(c, 1, wanted) ? c->data[c->at++] : 0;
}

static uint16_t get_u16(struct cursor *c, const char *wanted)
{
    if (!have(c, 2, wanted))
        return 0;
    c->at += 2;
    return (uint16_t)(c->data[c->at - 2] << 8 | c->data[c->at - 1]);
}

static uint32_t get_u32(struct cursor *c, const char *wanted)
{
    if (!have(c, 4, wanted))
        return 0;
    c->at += 4;
    return spate_load_u32(c->data + c->at - 4);
}

static uint64_t get_u64(struct cursor *c, const char *wanted)
{
    uint64_t high = get_u32(c, wanted);

    return high << 32 | get_u32(c, wanted);
}

static int64_t get_time(struct cursor *c, const char *wanted)
{
    int64_t us = (int64_t)get_u64(c, wanted);
    int64_t unix_us;

    /* Display only (P22): a time beyond any calendar is kept in range instead of overflowing. */
    if (__builtin_add_overflow(us, POSTGRES_EPOCH_US, &unix_us))
        unix_us = INT64_MAX;
    return unix_us;
}

static struct spate_slice get_bytes(struct cursor *c, size_t len, const char *wanted)
{
    if (!have(c, len, wanted))
        return spate_slice("", 0);
    c->at += len;
    return spate_slice((const char *)c->data + c->at - len, len);
}

static struct spate_slice get_string(struct cursor *c, const char *wanted)
{
    const unsigned char *nul;

    if (!have(c, 1, wanted))
        return spate_slice("", 0);
    nul = memchr(c->data + c->at, 0, c->end - c->at);
    if (!nul) {
        c->wanted = wanted;
        return spate_slice("", 0);
    }
    struct spate_slice s = {(const char *)c->data + c->at, (size_t)(nul - (c->data + c->at))};
    c->at += s.len + 1;
    return s;
}

/* Refuses the byte just read. */
static void refuse(struct cursor *c, const char *wanted)
{
    if (!c->wanted) {
        c->at--;
        c->wanted = wanted;
    }
}

static void get_tuple(struct cursor *c, char kind, struct spate_pgoutput_tuple *tuple)
{
    size_t start;

    tuple->present = true;
    tuple->whole = kind != 'K';
    tuple->count = get_u16(c, "the number of columns");
    start = c->at;
    for (unsigned i = 0; i < tuple->count && !c->wanted; i++) {
        switch (get_u8(c, "a column's kind")) {
        case 't':
            get_bytes(c, get_u32(c, "a value's length"), "a value");
            break;
        case 'n':
        case 'u':
            break;
        default:
            refuse(c, "a column's kind n, u or t");
        }
    }
    tuple->at = spate_slice((const char *)c->data + start, c->at - start);
}

static void get_relation(struct cursor *c, struct spate_pgoutput *msg)
{
    size_t start;

    msg->relation.oid = get_u32(c, "the relation's OID");
    msg->relation.schema = get_string(c, "the schema's name");
    msg->relation.table = get_string(c, "the table's name");
    msg->relation.identity = (char)get_u8(c, "the replica identity");
    if (!c->wanted && !strchr("dnfi", msg->relation.identity ? msg->relation.identity : '?'))
        refuse(c, "the replica identity d, n, f or i");
    msg->relation.count = get_u16(c, "the number of columns");
    start = c->at;
    for (unsigned i = 0; i < msg->relation.count && !c->wanted; i++) {
        get_u8(c, "a column's flags");
        get_string(c, "a column's name");
        get_u32(c, "a column's type");
        get_u32(c, "a column's type modifier");
    }
    msg->relation.at = spate_slice((const char *)c->data + start, c->at - start);
    if (msg->relation.schema.len == 0)
        msg->relation.schema = spate_slice_str("pg_catalog");
}

static void get_change(struct cursor *c, struct spate_pgoutput *msg)
{
    uint8_t kind;

    msg->change.old.present = msg->change.new.present = false;
    msg->change.oid = get_u32(c, "the relation's OID");
    kind = get_u8(c, "a tuple's kind");
    if (msg->kind != SPATE_PGOUTPUT_INSERT && (kind == 'K' || kind == 'O')) {
        get_tuple(c, (char)kind, &msg->change.old);
        if (msg->kind == SPATE_PGOUTPUT_DELETE)
            return;
        kind = get_u8(c, "the new tuple");
    }
    if (msg->kind == SPATE_PGOUTPUT_DELETE)
        refuse(c, "a tuple of kind K or O");
    else if (kind != 'N')
        refuse(c, msg->kind == SPATE_PGOUTPUT_INSERT ? "a tuple of kind N" : "a tuple of kind K, O or N");
    else
        get_tuple(c, 'N', &msg->change.new);
}

static void get_truncate(struct cursor *c, struct spate_pgoutput *msg)
{
    uint8_t flags;

    msg->truncate.count = get_u32(c, "the number of relations");
    flags = get_u8(c, "the options");
    msg->truncate.cascade = flags & 1;
    msg->truncate.restart = flags & 2;
    msg->truncate.at = get_bytes(c, (size_t)msg->truncate.count * 4, "the relations' OIDs");
}

static enum spate_rc finish(struct cursor *c, struct spate_err *err)
{
    if (!c->wanted && c->at != c->end)
        c->wanted = "the end of the message";
    if (!c->wanted)
        return SPATE_OK;
    if (c->at < c->end)
        return spate_fail(err, SPATE_FATAL,
                          "the source sent a pgoutput message '%c' (%zu bytes) that is not protocol 1: %s "
                          "expected at byte %zu, found 0x%02X",
                          c->data[0] > 32 && c->data[0] < 127 ? c->data[0] : '?', c->end, c->wanted, c->at,
                          c->data[c->at]);
    return spate_fail(
        err, SPATE_FATAL,
        "the source sent a pgoutput message '%c' that ends after %zu bytes, where %s was expected",
        c->end && c->data[0] > 32 && c->data[0] < 127 ? c->data[0] : '?', c->end, c->wanted);
}

enum spate_rc spate_pgoutput_decode(struct spate_slice bytes, struct spate_pgoutput *msg,
                                    struct spate_err *err)
{
    struct cursor c = {.data = (const unsigned char *)bytes.at, .end = bytes.len};

    msg->kind = (enum spate_pgoutput_kind)get_u8(&c, "a message's kind");
    switch (msg->kind) {
    case SPATE_PGOUTPUT_BEGIN:
        msg->begin.commit_lsn = get_u64(&c, "the commit LSN");
        msg->begin.commit_us = get_time(&c, "the commit time");
        msg->begin.xid = get_u32(&c, "the transaction's number");
        break;
    case SPATE_PGOUTPUT_COMMIT:
        get_u8(&c, "the flags");
        msg->commit.commit_lsn = get_u64(&c, "the commit LSN");
        msg->commit.end_lsn = get_u64(&c, "the end LSN");
        msg->commit.commit_us = get_time(&c, "the commit time");
        break;
    case SPATE_PGOUTPUT_ORIGIN:
        msg->origin.lsn = get_u64(&c, "the origin's LSN");
        msg->origin.name = get_string(&c, "the origin's name");
        break;
    case SPATE_PGOUTPUT_RELATION:
        get_relation(&c, msg);
        break;
    case SPATE_PGOUTPUT_TYPE:
        msg->type.oid = get_u32(&c, "the type's OID");
        msg->type.schema = get_string(&c, "the type's schema");
        msg->type.name = get_string(&c, "the type's name");
        break;
    case SPATE_PGOUTPUT_INSERT:
    case SPATE_PGOUTPUT_UPDATE:
    case SPATE_PGOUTPUT_DELETE:
        get_change(&c, msg);
        break;
    case SPATE_PGOUTPUT_TRUNCATE:
        get_truncate(&c, msg);
        break;
    case SPATE_PGOUTPUT_MESSAGE:
        msg->message.transactional = get_u8(&c, "the flags") & 1;
        msg->message.lsn = get_u64(&c, "the message's LSN");
        msg->message.prefix = get_string(&c, "the message's prefix");
        msg->message.content = get_bytes(&c, get_u32(&c, "the content's length"), "the content");
        break;
    default:
        refuse(&c, "a message kind of protocol 1 (B C O R Y I U D T M)");
    }
    return finish(&c, err);
}

struct spate_pgoutput_attribute spate_pgoutput_attribute(struct spate_slice *at)
{
    struct cursor c = {.data = (const unsigned char *)at->at, .end = at->len};
    struct spate_pgoutput_attribute a;

    a.identity = get_u8(&c, "") & 1;
    a.name = get_string(&c, "");
    a.oid = get_u32(&c, "");
    a.mod = (int32_t)get_u32(&c, "");
    *at = spate_slice(at->at + c.at, at->len - c.at);
    return a;
}

uint32_t spate_pgoutput_oid(struct spate_slice *at)
{
    struct cursor c = {.data = (const unsigned char *)at->at, .end = at->len};
    uint32_t oid = get_u32(&c, "");

    *at = spate_slice(at->at + c.at, at->len - c.at);
    return oid;
}

void spate_pgoutput_values(const struct spate_pgoutput_tuple *tuple, struct spate_value *values)
{
    const unsigned char *p = (const unsigned char *)tuple->at.at;

    /* get_tuple has walked these bytes and checked every length. */
    for (unsigned i = 0; i < tuple->count; i++) {
        unsigned char kind = *p++;

        if (kind == 't') {
            size_t len = spate_load_u32(p);

            values[i] = (struct spate_value){SPATE_VALUE_TEXT, {(const char *)p + 4, len}};
            p += 4 + len;
        } else {
            values[i] = (struct spate_value){kind == 'n' ? SPATE_VALUE_NULL : SPATE_VALUE_ABSENT, {"", 0}};
        }
    }
}
