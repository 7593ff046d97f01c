/* connector/hidden.c - a list of transactions in the order of their commits, and the keys they touched.
 *
 * What a transaction touched is one run of records: table, length, the key's bytes. While the transaction is
 * open the run grows in a buffer; at its commit it is copied to its own size. A transaction without a watched
 * table costs an entry of three words and nothing else. */
#include "connector/hidden.h"

#include "core/alloc.h"
#include "core/hash.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define ALL UINT32_MAX /* a record's length: every row of the table */

/* So many transactions stand one by one. Beyond, which takes a source that answers no query for minutes,
 * neighbours become one entry: a range of xids, which is hidden while one of them is. So it may make a chunk
 * wait for a stranger, and memory stays bounded. */
#define SINGLE_MOST ((size_t)1 << 20)
#define SPAN_MOST   (INT32_C(1) << 30) /* of a range: half of what 32 bits can order */

/* ---- snapshots ---- */

static bool take_number(const char **at, uint64_t *number)
{
    uint64_t value = 0;
    const char *start = *at;

    for (; **at >= '0' && **at <= '9'; (*at)++) {
        uint64_t digit = (uint64_t)(**at - '0');

        if (value > (UINT64_MAX - digit) / 10)
            return false;
        value = value * 10 + digit;
    }
    *number = value;
    return *at > start;
}

static bool take_char(const char **at, char c)
{
    if (**at != c)
        return false;
    (*at)++;
    return true;
}

static bool parse(const char *at, struct spate_snapshot *snapshot)
{
    size_t capacity = 0;
    uint64_t least;

    if (!take_number(&at, &snapshot->xmin) || !take_char(&at, ':') || !take_number(&at, &snapshot->xmax) ||
        !take_char(&at, ':') || snapshot->xmin > snapshot->xmax)
        return false;
    least = snapshot->xmin;
    while (*at) {
        uint64_t xid;

        if ((snapshot->count && !take_char(&at, ',')) || !take_number(&at, &xid) || xid < least ||
            xid >= snapshot->xmax)
            return false;
        if (snapshot->count == capacity) {
            capacity = capacity ? capacity * 2 : 16;
            snapshot->xip = spate_realloc(snapshot->xip, capacity * sizeof *snapshot->xip);
        }
        snapshot->xip[snapshot->count++] = xid;
        least = xid + 1;
    }
    return true;
}

enum spate_rc spate_snapshot_parse(const char *text, struct spate_snapshot *snapshot, struct spate_err *err)
{
    *snapshot = (struct spate_snapshot){0};
    if (parse(text, snapshot))
        return SPATE_OK;
    spate_snapshot_fini(snapshot);
    return spate_fail(err, SPATE_QUARANTINE,
                      "the source answered pg_current_snapshot() with \"%.100s\", which is no snapshot "
                      "(xmin:xmax:xip,...); is there a proxy between that rewrites answers?",
                      text);
}

void spate_snapshot_fini(struct spate_snapshot *snapshot)
{
    free(snapshot->xip);
    *snapshot = (struct spate_snapshot){0};
}

void spate_snapshot_copy(struct spate_snapshot *to, const struct spate_snapshot *from)
{
    *to = *from;
    to->xip = NULL;
    if (from->count) {
        to->xip = spate_alloc(from->count * sizeof *to->xip);
        memcpy(to->xip, from->xip, from->count * sizeof *to->xip);
    }
}

void spate_snapshot_doubt(struct spate_snapshot *snapshot)
{
    snapshot->xmax = snapshot->xmin;
    snapshot->count = 0;
}

uint64_t spate_snapshot_widen(const struct spate_snapshot *snapshot, uint32_t xid)
{
    uint32_t ahead = xid - (uint32_t)snapshot->xmax;
    uint32_t behind = 0 - ahead;

    /* P21: 32 bits order only what is less than half their range apart. What would lie before the first
     * transaction there can be lies ahead. */
    if (ahead < UINT32_C(1) << 31 || behind > snapshot->xmax)
        return snapshot->xmax + ahead;
    return snapshot->xmax - behind;
}

/* The first of xip that is not below xid. */
static size_t xip_from(const struct spate_snapshot *snapshot, uint64_t xid)
{
    size_t low = 0, high = snapshot->count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (snapshot->xip[middle] < xid)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Are all of low..high over? Else *xid is one that is not. */
static bool sees_range(const struct spate_snapshot *snapshot, uint32_t low, uint32_t high, uint32_t *xid)
{
    uint64_t wide = spate_snapshot_widen(snapshot, high);
    size_t i;

    *xid = high;
    if (wide < snapshot->xmin)
        return true;
    if (wide >= snapshot->xmax)
        return false;
    i = xip_from(snapshot, wide - (high - low));
    if (i == snapshot->count || snapshot->xip[i] > wide)
        return true;
    *xid = (uint32_t)snapshot->xip[i];
    return false;
}

bool spate_snapshot_sees(const struct spate_snapshot *snapshot, uint32_t xid)
{
    return sees_range(snapshot, xid, xid, &xid);
}

/* ---- what a transaction touched ---- */

struct touches {
    size_t len;
    char records[];
};

struct record {
    uint32_t table, len; /* ALL: no bytes follow */
};

/* One transaction, or a range of neighbours. */
struct entry {
    uint64_t lsn;            /* of the commit; of a range: the least */
    struct touches *touches; /* owned; NULL: no watched table */
    uint32_t low, high;      /* xids */
};

struct spate_hidden {
    size_t key_bytes; /* the cap */
    size_t bytes;     /* of all records, the open transaction's among them */
    struct entry *entries;
    size_t count, capacity;
    size_t merge_at; /* this many entries are merged */

    uint32_t xid; /* of the open transaction */
    uint64_t lsn;
    struct spate_buf open; /* its records */

    /* When a table was touched as a whole last, by a count of transactions: so an open one that is beyond the
     * cap notes it once, however many rows follow. */
    uint64_t serial;
    uint64_t *whole;
    size_t whole_count;
};

struct spate_hidden *spate_hidden_new(size_t key_bytes)
{
    struct spate_hidden *hidden = spate_zalloc(sizeof *hidden);

    hidden->key_bytes = key_bytes;
    hidden->merge_at = SINGLE_MOST;
    hidden->serial = 1;
    return hidden;
}

void spate_hidden_free(struct spate_hidden *hidden)
{
    if (!hidden)
        return;
    spate_hidden_clear(hidden);
    free(hidden->whole);
    free(hidden);
}

void spate_hidden_clear(struct spate_hidden *hidden)
{
    for (size_t i = 0; i < hidden->count; i++)
        free(hidden->entries[i].touches);
    free(hidden->entries);
    hidden->entries = NULL;
    hidden->count = hidden->capacity = 0;
    hidden->merge_at = SINGLE_MOST;
    spate_buf_fini(&hidden->open);
    hidden->bytes = 0;
    hidden->serial++;
}

size_t spate_hidden_count(const struct spate_hidden *hidden)
{
    return hidden->count;
}

size_t spate_hidden_bytes(const struct spate_hidden *hidden)
{
    return hidden->bytes;
}

/* The record at *at, which is moved behind it. */
static struct record take_record(const char *records, size_t *at, struct spate_slice *key)
{
    struct record record;

    memcpy(&record, records + *at, sizeof record);
    *at += sizeof record;
    *key = spate_slice(records + *at, record.len == ALL ? 0 : record.len);
    *at += key->len;
    return record;
}

/* Takes a table's records out; the length that remains. */
static size_t drop_records(char *records, size_t len, uint32_t table)
{
    size_t kept = 0;

    for (size_t at = 0; at < len;) {
        size_t from = at;
        struct spate_slice key;

        if (take_record(records, &at, &key).table == table)
            continue;
        memmove(records + kept, records + from, at - from);
        kept += at - from;
    }
    return kept;
}

static void add_record(struct spate_hidden *hidden, uint32_t table, uint32_t len, const char *key)
{
    struct record record = {.table = table, .len = len};
    size_t before = hidden->open.len;

    spate_buf_add(&hidden->open, &record, sizeof record);
    if (len != ALL)
        spate_buf_add(&hidden->open, key, len);
    hidden->bytes += hidden->open.len - before;
}

static bool is_whole(const struct spate_hidden *hidden, uint32_t table)
{
    return table < hidden->whole_count && hidden->whole[table] == hidden->serial;
}

void spate_hidden_touch_all(struct spate_hidden *hidden, uint32_t table)
{
    size_t before = hidden->open.len;

    if (is_whole(hidden, table))
        return;
    if (table >= hidden->whole_count) {
        size_t count = hidden->whole_count;

        hidden->whole_count = (size_t)table + 16;
        hidden->whole = spate_realloc(hidden->whole, hidden->whole_count * sizeof *hidden->whole);
        memset(hidden->whole + count, 0, (hidden->whole_count - count) * sizeof *hidden->whole);
    }
    hidden->whole[table] = hidden->serial;
    /* Its keys say nothing more, and other tables have use for the room. */
    if (before) {
        hidden->open.len = drop_records(hidden->open.data, before, table);
        hidden->bytes -= before - hidden->open.len;
    }
    add_record(hidden, table, ALL, NULL);
}

void spate_hidden_touch(struct spate_hidden *hidden, uint32_t table, struct spate_slice key)
{
    if (is_whole(hidden, table))
        return;
    if (hidden->bytes >= hidden->key_bytes ||
        key.len + sizeof(struct record) > hidden->key_bytes - hidden->bytes || key.len >= ALL)
        spate_hidden_touch_all(hidden, table);
    else
        add_record(hidden, table, (uint32_t)key.len, key.at);
}

/* ---- the list ---- */

/* Closes the run of records in `open`. */
static struct touches *take_touches(struct spate_hidden *hidden)
{
    struct touches *touches = NULL;

    hidden->serial++;
    if (hidden->open.len == 0)
        return NULL;
    touches = spate_alloc(sizeof *touches + hidden->open.len);
    touches->len = hidden->open.len;
    memcpy(touches->records, hidden->open.data, hidden->open.len);
    spate_buf_trim(&hidden->open, (size_t)1 << 20);
    return touches;
}

/* Moves an entry's records behind those in `open`, each table's once if as a whole. */
static void reopen_touches(struct spate_hidden *hidden, struct entry *entry)
{
    struct touches *touches = entry->touches;

    if (!touches)
        return;
    hidden->bytes -= touches->len;
    for (size_t at = 0; at < touches->len;) {
        struct spate_slice key;
        struct record record = take_record(touches->records, &at, &key);

        if (record.len == ALL)
            spate_hidden_touch_all(hidden, record.table);
        else
            spate_hidden_touch(hidden, record.table, key);
    }
    free(touches);
    entry->touches = NULL;
}

static bool mergeable(const struct entry *a, const struct entry *b, struct entry *merged)
{
    *merged = *a;
    if ((int32_t)(b->low - a->low) < 0)
        merged->low = b->low;
    if ((int32_t)(b->high - a->high) > 0)
        merged->high = b->high;
    if (b->lsn < a->lsn)
        merged->lsn = b->lsn;
    merged->touches = NULL;
    return merged->high - merged->low <= (uint32_t)SPAN_MOST;
}

/* No transaction is open. */
static void merge(struct spate_hidden *hidden)
{
    size_t kept = 0;

    for (size_t i = 0; i < hidden->count; i++) {
        struct entry *entry = &hidden->entries[i], merged;

        if (i + 1 < hidden->count && mergeable(entry, entry + 1, &merged)) {
            reopen_touches(hidden, entry);
            reopen_touches(hidden, entry + 1);
            merged.touches = take_touches(hidden);
            hidden->entries[kept++] = merged;
            i++;
        } else {
            hidden->entries[kept++] = *entry;
        }
    }
    hidden->count = kept;
    hidden->merge_at = 2 * kept > SINGLE_MOST ? 2 * kept : SINGLE_MOST;
}

void spate_hidden_begin(struct spate_hidden *hidden, uint32_t xid, uint64_t commit_lsn)
{
    if (hidden->open.len) { /* one that never came to its commit */
        hidden->bytes -= hidden->open.len;
        spate_buf_reset(&hidden->open);
    }
    hidden->serial++;
    hidden->xid = xid;
    hidden->lsn = commit_lsn;
}

void spate_hidden_commit(struct spate_hidden *hidden)
{
    struct entry entry = {.lsn = hidden->lsn, .low = hidden->xid, .high = hidden->xid};

    if (hidden->open.len)
        entry.touches = take_touches(hidden);
    if (hidden->count == hidden->capacity) {
        hidden->capacity = hidden->capacity ? 2 * hidden->capacity : 64;
        hidden->entries = spate_realloc(hidden->entries, hidden->capacity * sizeof *hidden->entries);
    }
    hidden->entries[hidden->count++] = entry;
    if (hidden->count >= hidden->merge_at)
        merge(hidden);
}

void spate_hidden_forget(struct spate_hidden *hidden, uint32_t table)
{
    size_t left;

    for (size_t i = 0; i < hidden->count; i++) {
        struct touches **touches = &hidden->entries[i].touches;

        if (!*touches)
            continue;
        left = drop_records((*touches)->records, (*touches)->len, table);
        if (left == (*touches)->len)
            continue;
        hidden->bytes -= (*touches)->len - left;
        (*touches)->len = left;
        if (left) {
            *touches = spate_realloc(*touches, sizeof **touches + left);
        } else {
            free(*touches);
            *touches = NULL;
        }
    }
    if (hidden->open.len) {
        left = drop_records(hidden->open.data, hidden->open.len, table);
        hidden->bytes -= hidden->open.len - left;
        hidden->open.len = left;
    }
    if (is_whole(hidden, table))
        hidden->whole[table] = 0;
}

static bool seen(const struct entry *entry, const struct spate_snapshot *snapshot)
{
    uint32_t xid;

    return sees_range(snapshot, entry->low, entry->high, &xid);
}

void spate_hidden_prune(struct spate_hidden *hidden, const struct spate_snapshot *snapshot)
{
    size_t kept = 0;

    for (size_t i = 0; i < hidden->count; i++) {
        struct entry *entry = &hidden->entries[i];

        if (!seen(entry, snapshot)) {
            hidden->entries[kept++] = *entry;
        } else if (entry->touches) {
            hidden->bytes -= entry->touches->len;
            free(entry->touches);
        }
    }
    hidden->count = kept;
    hidden->merge_at = SINGLE_MOST > 2 * kept ? SINGLE_MOST : 2 * kept;
    if (hidden->capacity > 4096 && kept < hidden->capacity / 8) { /* a burst's room is given back */
        hidden->capacity /= 4;
        hidden->entries = spate_realloc(hidden->entries, hidden->capacity * sizeof *hidden->entries);
    }
}

bool spate_hidden_missed(const struct spate_hidden *hidden, const struct spate_snapshot *snapshot,
                         uint64_t lsn, uint32_t *xid)
{
    for (size_t i = 0; i < hidden->count; i++) {
        const struct entry *entry = &hidden->entries[i];

        if (entry->lsn <= lsn && !sees_range(snapshot, entry->low, entry->high, xid))
            return true;
    }
    return false;
}

/* ---- Touched ---- */

static size_t slot_of(const struct spate_touched *touched, struct spate_slice key)
{
    size_t i = spate_crc32c(0, key.at, key.len);

    for (;; i++) {
        i &= touched->slot_count - 1;
        if (touched->slots[i] == 0 || spate_slice_eq(touched->keys[touched->slots[i] - 1], key))
            return i;
    }
}

/* Every key once: the list holds one for each change. */
static void index_keys(struct spate_touched *touched)
{
    size_t count = touched->count;

    touched->slot_count = 16;
    while (touched->slot_count < 2 * count)
        touched->slot_count *= 2;
    touched->slots = spate_zalloc(touched->slot_count * sizeof *touched->slots);
    touched->count = 0;
    for (size_t i = 0; i < count; i++) {
        size_t slot = slot_of(touched, touched->keys[i]);

        if (touched->slots[slot])
            continue;
        touched->keys[touched->count] = touched->keys[i];
        touched->slots[slot] = (uint32_t)++touched->count;
    }
}

/* Adds the keys of one transaction; false: it touched the table as a whole. */
static bool add_keys(struct spate_touched *touched, size_t *capacity, const struct touches *touches,
                     uint32_t table)
{
    for (size_t at = 0; at < touches->len;) {
        struct spate_slice key;
        struct record record = take_record(touches->records, &at, &key);

        if (record.table != table)
            continue;
        if (record.len == ALL || touched->count == UINT32_MAX / 4)
            return false;
        if (touched->count == *capacity) {
            *capacity = *capacity ? 2 * *capacity : 64;
            touched->keys = spate_realloc(touched->keys, *capacity * sizeof *touched->keys);
        }
        touched->keys[touched->count++] = key;
    }
    return true;
}

void spate_hidden_touched(const struct spate_hidden *hidden, const struct spate_snapshot *snapshot,
                          uint32_t table, struct spate_touched *touched)
{
    size_t capacity = 0;

    *touched = (struct spate_touched){0};
    for (size_t i = 0; i < hidden->count; i++) {
        const struct entry *entry = &hidden->entries[i];

        if (!entry->touches || seen(entry, snapshot))
            continue;
        if (!add_keys(touched, &capacity, entry->touches, table)) {
            spate_touched_fini(touched);
            touched->all = true;
            return;
        }
    }
    if (touched->count)
        index_keys(touched);
}

bool spate_touched_has(const struct spate_touched *touched, struct spate_slice key)
{
    return touched->all || (touched->count && touched->slots[slot_of(touched, key)] != 0);
}

void spate_touched_fini(struct spate_touched *touched)
{
    free(touched->keys);
    free(touched->slots);
    *touched = (struct spate_touched){0};
}

void spate_hidden_key(struct spate_buf *out, const struct spate_table *table,
                      const struct spate_value *values)
{
    for (size_t i = 0; i < table->key_count; i++) {
        const struct spate_value *value = &values[table->key[i]];
        uint32_t len = value->kind == SPATE_VALUE_TEXT ? (uint32_t)value->text.len : ALL;

        /* Postgres says t and f, a key that comes from a message true and false. */
        if (table->columns[table->key[i]].json_class == SPATE_CLASS_BOOL && len != ALL && len > 1)
            len = 1;
        spate_buf_add(out, &len, sizeof len);
        if (value->kind == SPATE_VALUE_TEXT)
            spate_buf_add(out, value->text.at, len);
    }
}
