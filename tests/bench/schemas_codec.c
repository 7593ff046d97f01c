/* How long one message takes to be written and to be read, in nanoseconds of processor time.
 *
 *   build/release/tests/bench/schemas_codec [ROUNDS] */

#include "schemas/snapshot.h"
#include "tests/support/schemas_fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define COLUMNS 6

/* Not the wall's clock: other work on the machine is not ours to count. */
static int64_t cpu_us(void)
{
    struct timespec now;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static void report(const char *what, int64_t us, long rounds, size_t bytes)
{
    printf("%-34s %8.1f ns  %6.2f M/s  %5zu bytes\n", what, (double)us * 1000 / (double)rounds,
           (double)rounds / (double)us, bytes);
}

static void must(enum spate_rc rc, const struct spate_err *err)
{
    if (rc != SPATE_OK) {
        fprintf(stderr, "%s\n", err->text);
        exit(1);
    }
}

static void run(const char *name, const struct spate_change *change, long rounds)
{
    struct spate_value before[COLUMNS], after[COLUMNS], key[1];
    struct spate_rows rows = {.before = before, .after = after, .key = key};
    const bool few[COLUMNS] = {true, false, true};
    struct spate_arena arena = {0};
    struct spate_buf line = {0};
    struct spate_err err = {0};
    struct spate_head head;
    struct spate_meta meta;
    char what[64];
    int64_t start;

    start = cpu_us();
    for (long i = 0; i < rounds; i++) {
        spate_buf_reset(&line);
        must(spate_encode_change(&line, change, &err), &err);
    }
    snprintf(what, sizeof(what), "%s: encode", name);
    report(what, cpu_us() - start, rounds, line.len);

    start = cpu_us();
    for (long i = 0; i < rounds; i++)
        must(spate_decode_head(spate_buf_view(&line), &head, &arena, &err), &err);
    snprintf(what, sizeof(what), "%s: decode head", name);
    report(what, cpu_us() - start, rounds, line.len);

    for (int pass = 0; pass < 2; pass++) {
        start = cpu_us();
        for (long i = 0; i < rounds; i++) {
            spate_arena_reset(&arena);
            must(spate_decode_head(spate_buf_view(&line), &head, &arena, &err), &err);
            must(spate_decode_meta(spate_buf_view(&line), &head, &meta, &arena, &err), &err);
            must(spate_decode_rows(spate_buf_view(&line), &head, &meta, change->table, pass ? few : NULL,
                                   &rows, &arena, &err),
                 &err);
        }
        snprintf(what, sizeof(what), "%s: decode %s", name, pass ? "two columns" : "whole");
        report(what, cpu_us() - start, rounds, line.len);
    }
    spate_buf_fini(&line);
    spate_arena_fini(&arena);
}

/* The reader thread's half of a row, the half that is the same for a chunk, and what a requester and a
 * passer-by do with the line. */
static void run_read(const char *name, const struct spate_table *table, const struct spate_value *values,
                     long rounds)
{
    struct spate_chunk chunk = {.head = {.at = 1042,
                                         .epoch = 1,
                                         .to = S("billing"),
                                         .request = S("billing-5d0c1f7e"),
                                         .wall_us = FIXTURE_US,
                                         .source = S("shop")},
                                .table = table,
                                .chunk = {.by = 0x0a1b2c3d, .no = 7}};
    struct spate_value before[COLUMNS], after[COLUMNS], key[1];
    struct spate_rows rows = {.before = before, .after = after, .key = key};
    struct spate_buf line = {0}, row = {0};
    struct spate_arena arena = {0};
    struct spate_chunk_name of;
    struct spate_err err = {0};
    struct spate_head head;
    struct spate_meta meta;
    char what[64];
    int64_t start;

    start = cpu_us();
    for (long i = 0; i < rounds; i++) {
        spate_buf_reset(&row);
        must(spate_encode_read_row(&row, table, values, &err), &err);
    }
    snprintf(what, sizeof(what), "%s: encode row", name);
    report(what, cpu_us() - start, rounds, row.len);

    start = cpu_us();
    for (long i = 0; i < rounds; i++) {
        spate_buf_reset(&line);
        spate_encode_read_head(&line, &chunk);
    }
    snprintf(what, sizeof(what), "%s: encode head", name);
    report(what, cpu_us() - start, rounds, line.len);
    spate_buf_slice(&line, spate_buf_view(&row));

    start = cpu_us();
    for (long i = 0; i < rounds; i++)
        must(spate_decode_head(spate_buf_view(&line), &head, &arena, &err), &err);
    snprintf(what, sizeof(what), "%s: pass by", name);
    report(what, cpu_us() - start, rounds, line.len);

    start = cpu_us();
    for (long i = 0; i < rounds; i++) {
        spate_arena_reset(&arena);
        must(spate_decode_head(spate_buf_view(&line), &head, &arena, &err), &err);
        must(spate_decode_meta(spate_buf_view(&line), &head, &meta, &arena, &err), &err);
        must(spate_decode_chunk_name(spate_buf_view(&line), &meta, &of, &arena, &err), &err);
        must(spate_decode_rows(spate_buf_view(&line), &head, &meta, table, NULL, &rows, &arena, &err), &err);
    }
    snprintf(what, sizeof(what), "%s: decode whole", name);
    report(what, cpu_us() - start, rounds, line.len);
    spate_buf_fini(&line);
    spate_buf_fini(&row);
    spate_arena_fini(&arena);
}

int main(int argc, char **argv)
{
    long rounds = argc > 1 ? strtol(argv[1], NULL, 10) : 1000000;
    struct spate_table *orders = fixture_orders(SPATE_IDENTITY_DEFAULT);
    struct spate_value small[COLUMNS] = {T("42"),    T("12.50"),      T("t"),
                                         T("{a,b}"), T("{\"k\": 1}"), T("left at the door")};
    struct spate_value large[COLUMNS] = {T("42"), T("12.50"), T("t"), T("{a,b}"), T("{\"k\": 1}"), ABSENT};
    struct spate_change change = fixture_change(SPATE_OP_INSERT, orders, NULL, small);
    static char note[8192], lines[8192];

    if (rounds < 1)
        return 2;
    run("small insert", &change, rounds);
    run_read("small read", orders, small, rounds);
    change.op = SPATE_OP_UPDATE;
    change.after = large;
    run("update, note unchanged", &change, rounds);
    for (size_t i = 0; i < sizeof(note); i++) {
        note[i] = (char)('a' + i % 26);
        lines[i] = i % 40 == 0 ? '\n' : note[i];
    }
    large[5] = (struct spate_value){SPATE_VALUE_TEXT, {note, sizeof(note)}};
    run("8 kB of text", &change, rounds / 10 + 1);
    run_read("8 kB read", orders, large, rounds / 10 + 1);
    large[5].text.at = lines;
    run("8 kB of lines", &change, rounds / 10 + 1);
    spate_table_free(orders);
    return 0;
}
