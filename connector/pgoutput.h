/* connector/pgoutput.h - pgoutput's bytes, protocol 1, to messages. Pure: no I/O, no state, no allocation.
 *
 * Every byte is untrusted. A message borrows from the buffer it was decoded from and dies with it. */
#ifndef SPATE_CONNECTOR_PGOUTPUT_H
#define SPATE_CONNECTOR_PGOUTPUT_H

#include "core/err.h"
#include "core/slice.h"
#include "schemas/event.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum spate_pgoutput_kind {
    SPATE_PGOUTPUT_BEGIN = 'B',
    SPATE_PGOUTPUT_COMMIT = 'C',
    SPATE_PGOUTPUT_ORIGIN = 'O',
    SPATE_PGOUTPUT_RELATION = 'R',
    SPATE_PGOUTPUT_TYPE = 'Y',
    SPATE_PGOUTPUT_INSERT = 'I',
    SPATE_PGOUTPUT_UPDATE = 'U',
    SPATE_PGOUTPUT_DELETE = 'D',
    SPATE_PGOUTPUT_TRUNCATE = 'T',
    SPATE_PGOUTPUT_MESSAGE = 'M'
};

/* The rest of a message that holds a list: walked by the functions below, bounds already checked. */
struct spate_pgoutput_tuple {
    bool present;
    bool whole;            /* an old row ('O') or a new one; false: only the old key ('K') */
    uint16_t count;        /* columns */
    struct spate_slice at; /* the columns' bytes */
};

struct spate_pgoutput {
    enum spate_pgoutput_kind kind;
    union {
        struct {
            uint64_t commit_lsn;
            int64_t commit_us; /* since 1970 */
            uint32_t xid;
        } begin;
        struct {
            uint64_t commit_lsn, end_lsn;
            int64_t commit_us;
        } commit;
        struct {
            uint64_t lsn;
            struct spate_slice name;
        } origin;
        struct {
            uint32_t oid;
            struct spate_slice schema, table; /* the empty schema is pg_catalog (P36) */
            char identity;                    /* d, n, f or i */
            uint16_t count;
            struct spate_slice at; /* spate_pgoutput_attribute walks it */
        } relation;
        struct {
            uint32_t oid;
            struct spate_slice schema, name;
        } type;
        struct {
            uint32_t oid;
            struct spate_pgoutput_tuple old, new; /* insert has new, delete has old, update may have both */
        } change;
        struct {
            uint32_t count;
            bool cascade, restart;
            struct spate_slice at; /* spate_pgoutput_oid walks it */
        } truncate;
        struct {
            bool transactional;
            uint64_t lsn;
            struct spate_slice prefix, content;
        } message;
    };
};

struct spate_pgoutput_attribute {
    bool identity;
    struct spate_slice name;
    uint32_t oid;
    int32_t mod;
};

/* Decodes one message. SPATE_FAIL (fatal): the bytes are no message of protocol 1; the text says at which
 * byte and what was expected. */
SPATE_CHECKED enum spate_rc spate_pgoutput_decode(struct spate_slice bytes, struct spate_pgoutput *msg,
                                                  struct spate_err *err);

/* Takes the next attribute / OID off the list; the count says how often. */
struct spate_pgoutput_attribute spate_pgoutput_attribute(struct spate_slice *at);
uint32_t spate_pgoutput_oid(struct spate_slice *at);

/* Fills tuple->count values. 'u' becomes ABSENT; so does a NULL of an old key ('K'), where it means "not
 * sent", when the caller says that the column is not part of the key: this function only knows bytes, so it
 * gives NULL. */
void spate_pgoutput_values(const struct spate_pgoutput_tuple *tuple, struct spate_value *values);

#endif
