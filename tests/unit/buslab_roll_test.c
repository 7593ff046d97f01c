/* tests/unit/buslab_roll_test.c - L10, L12 and L16: going over to the next segment, and slots that are issued
 * again. Each with a rule taken away, which has to show. SEED repeats a run. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "bus/local/broken.h"
#include "bus/local/layout.h"
#include "bus/local/local.h"
#include "bus/local/segment.h"
#include "core/clock.h"
#include "tests/lab/lab.h"
#include "tests/support/check.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CAP (UINT64_C(1) << 20)

static int temp_files(const char *root)
{
    char path[256];
    int count = 0;
    const struct dirent *entry;

    snprintf(path, sizeof path, "%s/log", root);
    DIR *dir = opendir(path);
    assert_non_null(dir);
    while ((entry = readdir(dir)) != NULL)
        count += strstr(entry->d_name, ".tmp") != NULL;
    closedir(dir);
    return count;
}

/* How a segment ends: with one END, or filled to its last byte; everything before is final. */
static void one_end(const char *root, uint64_t base, int *ends, int *exact, int *wrong)
{
    char path[256];
    struct spate_local_segment seg;
    struct spate_err err = {0};
    uint64_t at = 0, size = 0;
    uint32_t len = 0;

    snprintf(path, sizeof path, "%s/log", root);
    const int dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    check(spate_local_segment_map(dir, base, CAP, SPATE_LOCAL_MAP_ARCHIVE, &seg, &err), &err);
    while (at < CAP) {
        const enum spate_local_step step =
            spate_local_step(spate_local_record_at(&seg, at), CAP - at, &size, &len);
        if (step == SPATE_LOCAL_STEP_END)
            break;
        if (step != SPATE_LOCAL_STEP_RECORD && step != SPATE_LOCAL_STEP_PAD) {
            ++*wrong;
            break;
        }
        at += size;
    }
    *ends += at < CAP;
    *exact += at == CAP;
    spate_local_segment_unmap(&seg);
    close(dir);
}

/* --- writers that do one thing at a time, in processes of their own, and freeze where they are told */

struct puppet {
    pid_t pid;
    int orders, answers;
};

struct order {
    enum { PUBLISH, FREEZE_AT, QUIT } what;
    int number; /* of records; the failpoint */
    size_t len;
    uint64_t value; /* of the first record */
};

struct answer {
    enum spate_rc rc;
    uint64_t end; /* of the log, as this writer knows it */
    char text[200];
};

static _Atomic int freeze_at = -1;

static bool freeze(enum spate_failpoint point)
{
    int expected = (int)point;

    /* The writer's thread, not its steward's. */
    if (gettid() == getpid() && atomic_compare_exchange_strong(&freeze_at, &expected, -1))
        kill(getpid(), SIGSTOP);
    return false;
}

static enum spate_rc publish(struct spate_writer *w, uint64_t value, size_t len, struct spate_err *err)
{
    static char bytes[65536];
    const int64_t deadline = spate_clock_ms() + 10000;
    enum spate_rc rc;

    memcpy(bytes, &value, sizeof value);
    const struct spate_record record = {.value = {.at = bytes, .len = len}};
    do {
        size_t taken = 0;
        rc = spate_writer_publish(w, &record, 1, &taken, err);
    } while (rc == SPATE_AGAIN && spate_clock_ms() < deadline);
    return rc;
}

static _Noreturn void play(const struct lab_plan *plan, int orders, int answers)
{
    struct spate_bus *bus;
    struct spate_writer *w;
    struct spate_err err = {0};
    struct order order;
    struct answer answer;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    spate_failpoint_hook = freeze;
    if (spate_local_bus_open(plan->path, plan->hot, (int64_t)CAP, &bus, &err) != SPATE_OK ||
        spate_bus_writer_open(bus, "log", SPATE_TOPIC_CREATE | plan->flags, &w, &err) != SPATE_OK) {
        fprintf(stderr, "puppet: %s\n", err.text);
        _exit(1);
    }
    for (;;) {
        memset(&answer, 0, sizeof answer);
        answer.end = spate_writer_end(w).at;
        if (write(answers, &answer, sizeof answer) != sizeof answer ||
            read(orders, &order, sizeof order) != sizeof order || order.what == QUIT)
            break;
        if (order.what == FREEZE_AT)
            atomic_store(&freeze_at, order.number);
        for (int i = 0; order.what == PUBLISH && i < order.number && answer.rc == SPATE_OK; i++)
            answer.rc = publish(w, order.value + (uint64_t)i, order.len, &err);
        if (answer.rc != SPATE_OK) {
            fprintf(stderr, "puppet: rc %d, %s\n", (int)answer.rc, err.text);
            _exit(1);
        }
    }
    spate_writer_close(w);
    spate_bus_close(bus);
    _exit(0);
}

/* What a puppet answers when it has opened, and after each order. 0: it does not. */
static uint64_t hear(const struct puppet *p)
{
    struct answer answer;

    return read(p->answers, &answer, sizeof answer) == sizeof answer ? answer.end : 0;
}

static struct puppet puppet(const struct lab_plan *plan)
{
    int down[2], up[2];
    struct puppet p;

    assert_int_equal(pipe2(down, O_CLOEXEC), 0);
    assert_int_equal(pipe2(up, O_CLOEXEC), 0);
    p.pid = fork();
    if (p.pid == 0)
        play(plan, down[0], up[1]);
    close(down[0]);
    close(up[1]);
    p.orders = down[1];
    p.answers = up[0];
    return p;
}

static void tell(const struct puppet *p, struct order order)
{
    assert_int_equal(write(p->orders, &order, sizeof order), sizeof order);
}

static uint64_t publish_by(const struct puppet *p, uint64_t value, int count, size_t len)
{
    tell(p, (struct order){.what = PUBLISH, .number = count, .len = len, .value = value});
    return hear(p);
}

static void freeze_by(const struct puppet *p, enum spate_failpoint point)
{
    tell(p, (struct order){.what = FREEZE_AT, .number = (int)point});
    assert_true(hear(p) > 0);
}

static void wait_frozen(const struct puppet *p)
{
    int status;

    assert_int_equal(waitpid(p->pid, &status, WUNTRACED), p->pid);
    assert_true(WIFSTOPPED(status));
}

static void end(struct puppet *p, bool killed)
{
    int status;

    if (killed)
        kill(p->pid, SIGKILL);
    else
        tell(p, (struct order){.what = QUIT});
    assert_int_equal(waitpid(p->pid, &status, 0), p->pid);
    assert_true(killed || (WIFEXITED(status) && WEXITSTATUS(status) == 0));
    close(p->orders);
    close(p->answers);
}

/* What a reader of the tip has met of one writer's numbers, which have to come without a hole. */
struct meeting {
    struct spate_bus *bus;
    struct spate_reader *reader;
    uint64_t next, wrong;
};

#define OTHERS UINT64_C(1000000) /* numbers from here on are of somebody else */

static void meet(struct meeting *m, uint64_t until, int patience_ms)
{
    const int64_t deadline = spate_clock_ms() + patience_ms;
    struct spate_message message;
    struct spate_err err = {0};
    enum spate_rc rc = SPATE_OK;

    while (rc != SPATE_FAIL && (m->next < until || rc == SPATE_OK) && spate_clock_ms() < deadline) {
        uint64_t value = OTHERS;
        rc = spate_reader_next(m->reader, &message, &err);
        if (rc == SPATE_AGAIN) {
            if (m->next < until && spate_reader_wait(m->reader, 20, &err) == SPATE_FAIL)
                break;
            continue;
        }
        if (rc == SPATE_OK && message.kind == SPATE_MESSAGE_RECORD)
            memcpy(&value, message.value.at, sizeof value);
        if (value >= OTHERS)
            continue;
        m->wrong += value != m->next;
        m->next = value + 1;
    }
    m->wrong += rc == SPATE_FAIL || m->next < until;
}

/* Orders more and more until it freezes there. */
static void publish_until_frozen(const struct puppet *p, uint64_t *value, struct meeting *m)
{
    const int64_t deadline = spate_clock_ms() + 20000;
    int status;

    while (spate_clock_ms() < deadline) {
        struct pollfd answered = {.fd = p->answers, .events = POLLIN};
        tell(p, (struct order){.what = PUBLISH, .number = 12, .len = 60000, .value = *value});
        *value += 12;
        while (poll(&answered, 1, 1) == 0)
            if (waitpid(p->pid, &status, WNOHANG | WUNTRACED) == p->pid) {
                assert_true(WIFSTOPPED(status));
                return;
            }
        assert_true(hear(p) > 0);
        meet(m, *value, 10000);
    }
    fail_msg("it does not come by there");
}

static void meeting(struct meeting *m, const struct lab_plan *plan)
{
    struct spate_err err = {0};

    *m = (struct meeting){0};
    check(spate_local_bus_open(plan->path, plan->hot, (int64_t)CAP, &m->bus, &err), &err);
    check(spate_bus_reader_open(m->bus, "log", SPATE_SEE_TIP,
                                (struct spate_start){.from = SPATE_START_OLDEST}, &m->reader, &err),
          &err);
}

static void part(struct meeting *m)
{
    spate_reader_close(m->reader);
    spate_bus_close(m->bus);
}

/* --- L10: crashes and freezes in roll-over, at each of its points */

static void L10_crashes_and_freezes_in_roll_over(void **state)
{
    struct lab_plan plan = {.seed = lab_seed(),
                            .flags = SPATE_TOPIC_SHARED,
                            .writers = 4,
                            .readers = 2,
                            .kills = (int)lab_number("LAB_KILLS", 60) / 2,
                            .freezes = (int)lab_number("LAB_KILLS", 60) / 2,
                            .rolls = 25,
                            .freeze_ms = 20,
                            .points = lab_points_roll};
    struct lab_outcome out;
    char path[128], hot[128];

    (void)state;
    lab_directories(&plan, path, hot);
    lab_run(&plan, &out);
    lab_print("L10 durable", &plan, &out);
    if (out.wrong)
        fail_msg("L10, SEED=%llu: %s", (unsigned long long)plan.seed, out.what);
    assert_int_equal(temp_files(hot), 0); /* the last writer that opened swept them */
    assert_int_equal(temp_files(path), 0);
    lab_remove(&plan);
}

static struct spate_local_ctl *map_ctl(const char *hot)
{
    char file[300];

    snprintf(file, sizeof file, "%s/log/ctl", hot);
    const int fd = open(file, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    struct spate_local_ctl *ctl = mmap(NULL, sizeof *ctl, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_true(ctl != MAP_FAILED);
    close(fd);
    return ctl;
}

/* Others fill what it was making, and more, until that is gone from the shared memory. */
static void go_on_without(const struct puppet *busy, struct meeting *m, const char *hot)
{
    char name[SPATE_LOCAL_FILE], file[300];
    const int64_t deadline = spate_clock_ms() + 10000;
    struct spate_err err = {0};
    uint64_t oldest = 0, end = 0;

    for (int i = 0; i < 6; i++) {
        end = publish_by(busy, OTHERS, 1000, 1000);
        assert_true(end > 0);
        meet(m, 0, 10000);
    }
    snprintf(file, sizeof file, "%s/log", hot);
    const int dir = open(file, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    while (spate_local_segment_next(dir, 0, &oldest, &err) == SPATE_OK && oldest + 4 * CAP < end)
        assert_true(spate_clock_ms() < deadline);
    spate_local_segment_name(oldest - CAP, name);
    assert_int_not_equal(faccessat(dir, name, F_OK, 0), 0);
    close(dir);
}

/* A writer is frozen while it makes a segment. Others make the same one, fill it and more behind it, and it
 * is removed. Resumed, the writer makes it anew: nobody would ever read there. Returns what was wrong. */
static uint64_t late_maker(void)
{
    struct lab_plan plan = {.flags = SPATE_TOPIC_SHARED | SPATE_TOPIC_VOLATILE};
    char path[128], hot[128];
    struct meeting m;
    uint64_t last = 0;

    lab_directories(&plan, path, hot);
    struct puppet busy = puppet(&plan);
    assert_true(hear(&busy) > 0);
    struct puppet late = puppet(&plan);
    assert_true(hear(&late) > 0);
    meeting(&m, &plan);
    freeze_by(&late, SPATE_FP_local_segment_made);
    publish_until_frozen(&late, &last, &m);
    go_on_without(&busy, &m, hot);
    kill(late.pid, SIGCONT);
    assert_true(hear(&late) > 0);
    meet(&m, last, 1500);
    end(&late, false);
    end(&busy, false);
    part(&m);
    lab_remove(&plan);
    return m.wrong;
}

static void L10_a_segment_that_is_made_too_late_is_not_used(void **state)
{
    (void)state;
    assert_int_equal(late_maker(), 0);
}

static void L10_control_without_a_look_at_the_head(void **state)
{
    (void)state;
    spate_broken = SPATE_BROKEN_NO_HEAD_CHECK;
    const uint64_t wrong = late_maker();
    spate_broken = SPATE_BROKEN_NOTHING;
    assert_true(wrong > 0);
}

/* --- L12: two writers claim the last bytes of a segment */

struct ends {
    int ends, exact, wrong;
    uint64_t pads;
};

static struct ends crowded_ends(uint64_t rolls, int free_ms)
{
    struct lab_plan plan = {.seed = lab_seed(),
                            .flags = SPATE_TOPIC_SHARED,
                            .writers = 8,
                            .readers = 2,
                            .rolls = rolls,
                            .free_ms = free_ms};
    struct lab_outcome out;
    struct ends e = {0};
    char path[128], hot[128], file[300];
    struct spate_err err = {0};
    uint64_t base = 0, end;

    lab_directories(&plan, path, hot);
    lab_run(&plan, &out);
    lab_print("L12", &plan, &out);
    if (out.wrong)
        fail_msg("L12, SEED=%llu: %s", (unsigned long long)plan.seed, out.what);
    end = out.rolls * CAP; /* what begins there may be half full */
    snprintf(file, sizeof file, "%s/log", path);
    const int dir = open(file, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    for (uint64_t pos = 0; spate_local_segment_next(dir, pos, &base, &err) == SPATE_OK && base < end;
         pos = base + CAP)
        one_end(path, base, &e.ends, &e.exact, &e.wrong);
    close(dir);
    e.pads = out.pads;
    lab_remove(&plan);
    return e;
}

static void L12_one_end_however_many_want_the_last_bytes(void **state)
{
    const struct ends e = crowded_ends((uint64_t)lab_number("LAB_KILLS", 60) / 2, 400);

    (void)state;
    print_message("# L12: %d segments with an END, %d filled to the last byte\n", e.ends, e.exact);
    assert_int_equal(e.wrong, 0);
    assert_true(e.ends > e.exact);
    assert_int_equal(e.pads, 0);
}

static void L12_control_without_an_end(void **state)
{
    struct ends e;

    (void)state;
    spate_broken = SPATE_BROKEN_NO_END;
    e = crowded_ends(3, 100);
    spate_broken = SPATE_BROKEN_NOTHING;
    assert_true(e.ends == 0 && e.pads > 0);
}

/* One has taken the last bytes and is frozen before its END; others go on, and so does it. */
static void L12_whoever_is_frozen_over_the_end_goes_on_behind_it(void **state)
{
    struct lab_plan plan = {.flags = SPATE_TOPIC_SHARED};
    char path[128], hot[128];
    struct ends e = {0};
    struct meeting m;

    (void)state;
    lab_directories(&plan, path, hot);
    struct puppet other = puppet(&plan);
    assert_true(hear(&other) > 0);
    struct puppet frozen = puppet(&plan);
    uint64_t at = hear(&frozen);
    const uint64_t base = at - at % CAP;
    assert_int_equal(at, base);
    meeting(&m, &plan);
    assert_true(publish_by(&other, 0, 1023, 1024 - 32) > 0);
    at = publish_by(&other, 1023, 1, 1024 - 32 - 128);
    assert_int_equal(at, base + CAP - 128);
    freeze_by(&frozen, SPATE_FP_local_taken);
    tell(&frozen, (struct order){.what = PUBLISH, .number = 1, .len = 200, .value = 1034});
    wait_frozen(&frozen);
    assert_true(publish_by(&other, 1024, 10, 200) > base + CAP);
    meet(&m, 1034, 5000);
    kill(frozen.pid, SIGCONT);
    assert_true(hear(&frozen) > 0);
    meet(&m, 1035, 5000);
    assert_int_equal(m.wrong, 0);
    end(&frozen, false);
    end(&other, false);
    one_end(path, base, &e.ends, &e.exact, &e.wrong);
    assert_int_equal(e.wrong, 0);
    assert_int_equal(e.ends + e.exact, 1);
    part(&m);
    lab_remove(&plan);
}

/* --- L16: a slot is issued again */

/* The first claim that is open in the head; 0: none. */
static uint64_t open_claim(const char *hot, uint64_t head)
{
    char file[300];
    struct spate_local_segment seg;
    struct spate_err err = {0};
    uint64_t word = 0, size = 0;
    uint32_t len = 0;

    snprintf(file, sizeof file, "%s/log", hot);
    const int dir = open(file, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    check(spate_local_segment_map(dir, head, CAP, SPATE_LOCAL_MAP_READ, &seg, &err), &err);
    const uint64_t tail = spate_local_tail_bytes(atomic_load(&spate_local_header(&seg)->tail));
    for (uint64_t at = 0; at < tail && word == 0; at += size) {
        struct spate_local_record *record = spate_local_record_at(&seg, at);
        if (spate_local_step(record, CAP - at, &size, &len) == SPATE_LOCAL_STEP_OPEN)
            word = atomic_load(&record->word);
        if (size == 0)
            break;
    }
    spate_local_segment_unmap(&seg);
    close(dir);
    return word;
}

/* A writer is killed between claim and commit; `turns` generations later its slot is issued again. Returns
 * the claim that is open when the next writer has opened. */
static uint64_t issued_again(unsigned flags, uint32_t turns, bool beside_others)
{
    struct lab_plan plan = {.flags = SPATE_TOPIC_SHARED | flags};
    char path[128], hot[128];
    struct puppet other = {0};
    struct meeting m;

    lab_directories(&plan, path, hot);
    struct puppet dies = puppet(&plan);
    assert_true(hear(&dies) > 0);
    if (beside_others) {
        other = puppet(&plan);
        assert_true(hear(&other) > 0);
    }
    meeting(&m, &plan);
    assert_true(publish_by(&dies, 0, 3, 100) > 0);
    freeze_by(&dies, SPATE_FP_local_claimed);
    tell(&dies, (struct order){.what = PUBLISH, .number = 1, .len = 500, .value = OTHERS});
    wait_frozen(&dies);
    struct spate_local_ctl *ctl = map_ctl(hot);
    const uint64_t word = open_claim(hot, atomic_load(&ctl->head));
    const unsigned slot = (unsigned)(word >> 44) & 0xfff;
    assert_int_equal(word >> 56, SPATE_LOCAL_CLAIM);
    assert_in_range(slot, 1, SPATE_LOCAL_WRITERS - 1);
    atomic_fetch_add(&ctl->writers[slot].gen, turns - 1);
    end(&dies, true);

    struct puppet next = puppet(&plan);
    assert_true(hear(&next) > 0);
    const uint64_t open = open_claim(hot, atomic_load(&ctl->head));
    if (open == 0) {
        assert_int_equal(atomic_load(&ctl->writers[slot].pid), (uint32_t)next.pid); /* it was this slot */
        assert_true(publish_by(&next, 3, 3, 100) > 0);
        meet(&m, 6, 5000);
        assert_int_equal(m.wrong, 0);
    }
    end(&next, open != 0);
    if (beside_others)
        end(&other, open != 0);
    part(&m);
    munmap(ctl, sizeof *ctl);
    lab_remove(&plan);
    return open;
}

static void L16_a_slot_is_issued_when_no_claim_of_it_is_open(void **state)
{
    (void)state;
    assert_int_equal(issued_again(SPATE_TOPIC_VOLATILE, 1, false), 0);
    assert_int_equal(issued_again(0, 1, false), 0);
    assert_int_equal(issued_again(SPATE_TOPIC_VOLATILE, 1, true), 0);
    assert_int_equal(issued_again(0, 1, true), 0);
}

/* The generation has twelve bits in a claim: after 4096 of them the slot's owner bears the name of the dead.
 */
static void L16_a_generation_that_comes_again_is_not_the_dead_one(void **state)
{
    (void)state;
    assert_int_equal(issued_again(SPATE_TOPIC_VOLATILE, 4096, false), 0);
    assert_int_equal(issued_again(0, 4096, true), 0);
}

static void L16_control_with_claims_left_open(void **state)
{
    (void)state;
    spate_broken = SPATE_BROKEN_KEEP_CLAIM;
    const uint64_t open = issued_again(0, 1, false);
    spate_broken = SPATE_BROKEN_NOTHING;
    assert_int_not_equal(open, 0);
}

/* --- L2: who owns a topic is not fenced by its own steward, however slow the machine is */

static bool dawdle(enum spate_failpoint point)
{
    if (point == SPATE_FP_local_taken)
        nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
    return false;
}

static void L2_an_owner_is_not_fenced_by_itself(void **state)
{
    struct lab_plan plan = {0};
    char path[128], hot[128];
    struct spate_bus *bus;
    struct spate_writer *w;
    struct spate_err err = {0};

    (void)state;
    lab_directories(&plan, path, hot);
    spate_failpoint_hook = dawdle;
    check(spate_local_bus_open(path, hot, (int64_t)CAP, &bus, &err), &err);
    check(spate_bus_writer_open(bus, "log", SPATE_TOPIC_CREATE, &w, &err), &err);
    struct spate_local_ctl *ctl = map_ctl(hot);
    for (uint64_t i = 0; i < 10; i++)
        check(publish(w, i, 100, &err), &err);
    assert_int_equal(atomic_load(&ctl->fences), 0);
    spate_writer_close(w);
    spate_bus_close(bus);
    spate_failpoint_hook = NULL;
    munmap(ctl, sizeof *ctl);
    lab_remove(&plan);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(L10_crashes_and_freezes_in_roll_over),
        cmocka_unit_test(L10_a_segment_that_is_made_too_late_is_not_used),
        cmocka_unit_test(L10_control_without_a_look_at_the_head),
        cmocka_unit_test(L12_one_end_however_many_want_the_last_bytes),
        cmocka_unit_test(L12_control_without_an_end),
        cmocka_unit_test(L12_whoever_is_frozen_over_the_end_goes_on_behind_it),
        cmocka_unit_test(L16_a_slot_is_issued_when_no_claim_of_it_is_open),
        cmocka_unit_test(L16_a_generation_that_comes_again_is_not_the_dead_one),
        cmocka_unit_test(L16_control_with_claims_left_open),
        cmocka_unit_test(L2_an_owner_is_not_fenced_by_itself),
    };
    return cmocka_run_group_tests_name("buslab_roll", tests, NULL, NULL);
}
