/* tests/unit/bus_paper_test.c - docs/local-bus.md against bus/local/layout.h: programs in other languages are
 * written from the page, so the figures on it are held here, row by row. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "bus/local/layout.h"
#include "bus/local/named.h"
#include "bus/local/spill.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *page;

static int read_page(void **state)
{
    FILE *file = fopen("docs/local-bus.md", "r");
    long size;

    (void)state;
    if (!file || fseek(file, 0, SEEK_END) != 0 || (size = ftell(file)) <= 0)
        return -1;
    rewind(file);
    page = calloc(1, (size_t)size + 1);
    const bool whole = page && fread(page, 1, (size_t)size, file) == (size_t)size;
    fclose(file);
    return whole ? 0 : -1;
}

static int free_page(void **state)
{
    (void)state;
    free(page);
    return 0;
}

/* The page has this text. */
__attribute__((format(printf, 1, 2))) static void says(const char *fmt, ...)
{
    char text[200];
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    if (!strstr(page, text))
        fail_msg("docs/local-bus.md does not say \"%s\"", text);
}

/* A table's row that begins with offset and size. */
#define ROW(type, member, words)                                                                             \
    says("| %zu | %zu | %s", offsetof(struct type, member), sizeof(((struct type *)0)->member), words)
#define CTL(member, words) says("| %zu | %s", offsetof(struct spate_local_ctl, member), words)

static void segments_and_records(void **state)
{
    (void)state;
    ROW(spate_local_segment_header, magic, "magic");
    says("0x%016" PRIX64 " (`SPATES` %d)", SPATE_LOCAL_SEGMENT_MAGIC,
         (int)(SPATE_LOCAL_SEGMENT_MAGIC & 0xffff));
    ROW(spate_local_segment_header, base, "base");
    ROW(spate_local_segment_header, cap, "cap");
    ROW(spate_local_segment_header, unit, "unit: 64");
    ROW(spate_local_segment_header, crc, "CRC-32C");
    ROW(spate_local_segment_header, created_ns, "created");
    ROW(spate_local_segment_header, tail, "**tail**");
    ROW(spate_local_segment_header, sealed, "sealed");
    says("(upper %d bits), bytes (lower %d)", 64 - SPATE_LOCAL_TAIL_SHIFT, SPATE_LOCAL_TAIL_SHIFT);
    ROW(spate_local_record, word, "**word**");
    ROW(spate_local_record, ts_ns, "timestamp");
    ROW(spate_local_record, idx, "index");
    ROW(spate_local_record, crc, "CRC-32C");
    ROW(spate_local_record, keyhash, "key hash");
    ROW(spate_local_record, keylen, "key length");
    ROW(spate_local_record, type, "type: 0 data, 1 spill");
    ROW(spate_local_record, flags, "flags");
    says("| %zu | length | key", offsetof(struct spate_local_record, payload));
    assert_int_equal(SPATE_LOCAL_SPILL, 1);
    says("%d has a key, %d first and %d last", SPATE_LOCAL_HAS_KEY, SPATE_LOCAL_BATCH_FIRST,
         SPATE_LOCAL_BATCH_LAST);
    says("%d unchecked", SPATE_LOCAL_UNCHECKED);
    says("| %d FREE", SPATE_LOCAL_FREE);
    says("| %d CLAIM", SPATE_LOCAL_CLAIM);
    says("| %d COMMIT", SPATE_LOCAL_COMMIT);
    says("| %d PAD", SPATE_LOCAL_PAD);
    says("| %d END", SPATE_LOCAL_END);
    assert_int_equal(spate_local_word(1, 2, 3, 4),
                     UINT64_C(1) << 56 | UINT64_C(2) << 44 | UINT64_C(3) << 32 | 4);
    assert_int_equal(offsetof(struct spate_local_spill_ref, crc), 8);
}

static void watermarks_and_bells(void **state)
{
    (void)state;
    CTL(magic, "magic");
    says("0x%016" PRIX64 " (`SPATEC` %d)", SPATE_LOCAL_CTL_MAGIC, (int)(SPATE_LOCAL_CTL_MAGIC & 0xffff));
    CTL(generation, "generation");
    CTL(cap, "cap");
    CTL(created_ns, "created");
    CTL(head, "**head**");
    CTL(first, "**first**");
    CTL(durable, "**durable**");
    CTL(hold, "lowest position that a holder needs");
    CTL(gate, "gate");
    says("; %zu: why (%d not promised by the manifest, %d the disk is behind, %d a reader holds)",
         offsetof(struct spate_local_ctl, gate_why), SPATE_LOCAL_GATE_PROMISE, SPATE_LOCAL_GATE_DISK,
         SPATE_LOCAL_GATE_HOLD);
    says("; %zu: highest base that the manifest promises", offsetof(struct spate_local_ctl, promised));
    says("; %zu: of volatile topics, all below is final; %zu: base of an archive file",
         offsetof(struct spate_local_ctl, settled), offsetof(struct spate_local_ctl, distrust));
    CTL(pads, "counters: claims padded");
    says("; %zu: or too slow; %zu: segments that retention took; %zu: times a writer was told",
         offsetof(struct spate_local_ctl, fences), offsetof(struct spate_local_ctl, gaps),
         offsetof(struct spate_local_ctl, stalls));
    CTL(writers, "256 writers of 8 bytes");
    says("magic 0x%016" PRIX64 " (`SPATEB` %d)", SPATE_LOCAL_BELL_MAGIC,
         (int)(SPATE_LOCAL_BELL_MAGIC & 0xffff));
    says("`tip` at %zu", offsetof(struct spate_local_bell, tip));
    says("`durable` at %zu", offsetof(struct spate_local_bell, durable));
    says("`waiting` at +%zu and a futex word `bell` at +%zu", offsetof(struct spate_local_doorbell, waiting),
         offsetof(struct spate_local_doorbell, bell));
    says("at %zu %d seats", offsetof(struct spate_local_bell, seats), SPATE_LOCAL_SEATS);
}

static void marks_of_readers(void **state)
{
    (void)state;
    says("0x%016" PRIX64, SPATE_LOCAL_MARK_MAGIC);
    ROW(spate_local_mark, gen, "count of marks");
    ROW(spate_local_mark, pos, "position");
    ROW(spate_local_mark, records, "records");
    ROW(spate_local_mark, ts_ns, "when");
    ROW(spate_local_mark, log, "of which log");
    ROW(spate_local_mark, pid, "process");
    ROW(spate_local_mark, flags, "1: it holds");
    ROW(spate_local_mark, ahead, "how much further it has read, in units of 64 bytes");
    ROW(spate_local_mark, crc, "CRC-32C of the 60 bytes before");
    assert_int_equal(offsetof(struct spate_local_marks, release), 2 * sizeof(struct spate_local_mark));
    assert_int_equal(SPATE_LOCAL_MARK_HOLDS, 1);
    says("magic 0x%016" PRIX64 " (8)", SPATE_LOCAL_RELEASE_MAGIC);
    says("why (4: %d\nby hand, %d expired)", SPATE_LOCAL_RELEASE_OPERATOR, SPATE_LOCAL_RELEASE_EXPIRED);
    assert_int_equal(offsetof(struct spate_local_release, upto), 8);
    assert_int_equal(offsetof(struct spate_local_release, ts_ns), 16);
    assert_int_equal(offsetof(struct spate_local_release, log), 24);
    assert_int_equal(offsetof(struct spate_local_release, why), 32);
    assert_int_equal(offsetof(struct spate_local_release, uid), 36);
    assert_int_equal(offsetof(struct spate_local_release, crc), 60);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(segments_and_records),
        cmocka_unit_test(watermarks_and_bells),
        cmocka_unit_test(marks_of_readers),
    };

    return cmocka_run_group_tests_name("the format on paper", tests, read_page, free_page);
}
