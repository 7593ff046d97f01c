/* connector/explain.c - P55, P60, P65, P83, P87: the same code means another thing in the stream. */
#include "connector/explain.h"

#include "connector/culprit.h"
#include "connector/lsn.h"

#include <stdio.h>
#include <string.h>

static bool is(const struct spate_err *err, const char *sqlstate)
{
    return strcmp(err->sqlstate, sqlstate) == 0;
}

/* Somebody removed files from pg_wal, or the slot was kept beyond what the server still has: the slot looks
 * healthy, and so looking at it again finds nothing. */
static void wal_removed(struct spate_stream *stream, const char *words, struct spate_err *err)
{
    const char *slot = stream->config->source.slot;
    uint64_t from = stream->ledger.confirmed;

    err->exit_code = SPATE_EXIT_FENCED;
    err->lsn = from;
    spate_fail(
        err, SPATE_FATAL,
        "the source no longer has the WAL that replication slot \"%s\" needs: what was committed after "
        "%X/%X and is not on the bus is lost. Nothing more was confirmed. When the loss is accepted: SELECT "
        "pg_drop_replication_slot('%s'); then: spate connector -c FILE --new-epoch. Server: %s",
        slot, LSN(from), slot, words);
}

static bool outdated(const struct spate_err *err, const char *words)
{
    return is(err, "0A000") || (is(err, "XX000") && strstr(words, "unrecognized pgoutput option")) ||
           (is(err, "22023") && strstr(words, "pgoutput"));
}

static void server_differs(const char *words, struct spate_err *err)
{
    err->exit_code = SPATE_EXIT_REFUSED;
    spate_fail(err, SPATE_FATAL,
               "the source does not speak this connector's form of logical replication (pgoutput, protocol "
               "version 1): it needs PostgreSQL 14 or later, reached without anything in between. Server: %s",
               words);
}

enum spate_rc spate_explain_start(struct spate_stream *stream, struct spate_err *err)
{
    char words[400];

    snprintf(words, sizeof words, "%.*s", (int)sizeof words - 1, err->text);
    if (outdated(err, words))
        server_differs(words, err);
    else if (is(err, "58P01"))
        wal_removed(stream, words, err);
    else if (spate_pg_kind(err->sqlstate) == SPATE_PG_FENCE)
        err->verdict = SPATE_RETRY;
    return SPATE_FAIL;
}

/* A change that the server has and cannot send: the slot will never pass it. Which table it is of is worth a
 * look. */
static void unsendable(struct spate_stream *stream, const char *what, const char *remedy, const char *words,
                       struct spate_err *err)
{
    const char *slot = stream->config->source.slot;
    struct spate_buf table = {0};
    uint64_t lsn = err->lsn;

    if (!lsn || !spate_culprit_table(stream->config, lsn, &table))
        spate_buf_puts(&table, "one of the publication's tables");
    lsn = lsn ? lsn : stream->ledger.confirmed;
    err->exit_code = SPATE_EXIT_REFUSED;
    spate_fail(
        err, SPATE_FATAL,
        "a row of %s, changed at %X/%X, %s: the server cannot send it. Nothing of its transaction was "
        "confirmed, and it comes again at every start. %s; then: SELECT "
        "pg_drop_replication_slot('%s'); and go on with: spate connector -c FILE --new-epoch, after which "
        "sinks take their tables anew%s%s",
        spate_buf_str(&table), LSN(lsn), what, remedy, slot, *words ? ". Server: " : "", words);
    err->lsn = lsn;
    spate_buf_fini(&table);
}

enum spate_rc spate_explain(struct spate_stream *stream, struct spate_err *err)
{
    const struct spate_connector_config *config = stream->config;
    const char *slot = config->source.slot;
    char words[400];
    uint64_t after = stream->ledger.confirmed;

    snprintf(words, sizeof words, "%.*s", (int)sizeof words - 1, err->text);
    if (is(err, "22021")) {
        unsendable(stream, "holds bytes that are not valid in the database's own encoding (P83)",
                   "Repair the row, whose bytes the server's log names", "", err);
    } else if (is(err, "22P05")) {
        unsendable(stream, "holds a character that has no counterpart in UTF8 (P84)",
                   "Repair the row, whose bytes the server's log names", "", err);
    } else if ((is(err, "XX000") && strstr(words, "invalid memory alloc")) || is(err, "54000")) {
        unsendable(stream,
                   "is too large for the server to send as text (about half a gigabyte of bytea, or a "
                   "gigabyte in a row, P87)",
                   "Store such values in pieces, or take the table out of the publication", words, err);
    } else if (is(err, "42704") && strstr(words, config->source.publication)) {
        err->exit_code = SPATE_EXIT_REFUSED;
        spate_fail(err, SPATE_FATAL,
                   "publication \"%s\" did not exist when the change after %X/%X was made (P55): creating it "
                   "now does not help for older changes. Create it, then: SELECT "
                   "pg_drop_replication_slot('%s'); and "
                   "go on with: spate connector -c FILE --new-epoch. Server: %s",
                   config->source.publication, LSN(after), slot, words);
    } else if (is(err, "58P01")) {
        wal_removed(stream, words, err);
    } else if (outdated(err, words)) {
        server_differs(words, err);
    } else if (spate_pg_kind(err->sqlstate) == SPATE_PG_FENCE) {
        err->verdict = SPATE_RETRY; /* the slot: looking at it again finds the words */
    }
    return SPATE_FAIL;
}
