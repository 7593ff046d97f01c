/* tests/support/schemas_golden.h - lines held against those in schemas/golden. After cmocka.h.
 *
 * SPATE_GOLDEN_WRITE=1 writes the golden files anew; read what changed before it is committed: they are what
 * other teams' programs rely on. */
#ifndef SPATE_TESTS_SUPPORT_SCHEMAS_GOLDEN_H
#define SPATE_TESTS_SUPPORT_SCHEMAS_GOLDEN_H

#include "core/buf.h"

#include <stdio.h>
#include <stdlib.h>

static inline void golden(const char *name, struct spate_buf *lines)
{
    static char want[65536];
    char path[128];
    size_t len;
    FILE *file;

    snprintf(path, sizeof(path), "schemas/golden/%s.jsonl", name);
    if (getenv("SPATE_GOLDEN_WRITE") != NULL) {
        file = fopen(path, "w");
        assert_non_null(file);
        assert_int_equal(fwrite(lines->data, 1, lines->len, file), lines->len);
        assert_int_equal(fclose(file), 0);
        return;
    }
    file = fopen(path, "r");
    assert_non_null(file);
    len = fread(want, 1, sizeof(want) - 1, file);
    fclose(file);
    assert_true(len > 0);
    want[len] = 0;
    assert_string_equal(spate_buf_str(lines), want);
}

#endif
