/* pg/text.c - names, literals and WAL positions as SQL text. */
#include "pg/pg.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static void quoted(struct spate_buf *out, struct spate_slice text, char quote)
{
    size_t from = 0;

    spate_buf_reserve(out, text.len + 2);
    spate_buf_putc(out, quote);
    for (size_t i = 0; i < text.len; i++)
        if (text.at[i] == quote) {
            spate_buf_add(out, text.at + from, i + 1 - from);
            from = i; /* the quote is added once more with what follows it */
        }
    spate_buf_add(out, text.at + from, text.len - from);
    spate_buf_putc(out, quote);
}

void spate_pg_ident(struct spate_buf *out, struct spate_slice name)
{
    quoted(out, name, '"');
}

/* standard_conforming_strings is pinned on (pg/connect.c), so a backslash is an ordinary character. In the
 * encodings that a session of ours can have, UTF8 and SQL_ASCII, no other character has a quote's byte in it.
 */
void spate_pg_literal(struct spate_buf *out, struct spate_slice text)
{
    quoted(out, text, '\'');
}

const char *spate_pg_lsn(uint64_t lsn, char out[SPATE_PG_LSN_TEXT])
{
    snprintf(out, SPATE_PG_LSN_TEXT, "%" PRIX32 "/%" PRIX32, (uint32_t)(lsn >> 32), (uint32_t)lsn);
    return out;
}

/* 1 to 8 hexadecimal digits. Returns what stands behind them, or NULL. */
static const char *half(const char *text, uint32_t *out)
{
    size_t digits = strspn(text, "0123456789ABCDEFabcdef");

    *out = 0;
    if (digits == 0 || digits > 8)
        return NULL;
    for (size_t i = 0; i < digits; i++) {
        char c = text[i];
        uint32_t digit = (uint32_t)(c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);

        *out = *out << 4 | digit;
    }
    return text + digits;
}

bool spate_pg_lsn_parse(const char *text, uint64_t *lsn)
{
    uint32_t high, low;
    const char *rest = half(text, &high);

    if (!rest || *rest != '/')
        return false;
    rest = half(rest + 1, &low);
    if (!rest || *rest != '\0')
        return false;
    *lsn = (uint64_t)high << 32 | low;
    return true;
}
