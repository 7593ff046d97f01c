/* tests/lab/faults.c - where and when a process of the crowd dies, freezes or dawdles. */
#include "tests/lab/lab.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

const char *const lab_points_publish[] = {"local_taken", "local_claimed", "local_filled", "local_committed",
                                          NULL};
const char *const lab_points_roll[] = {
    "local_sealed", "local_segment_made", "local_segment_linked", "local_created",
    "local_rolled", "local_promised",     "local_note_written",   NULL};
const char *const lab_points_large[] = {"local_taken", "local_claimed", "local_filled",
                                        "local_spill", "local_spilled", "local_spill_called",
                                        NULL};
const char *const lab_points_all[] = {"local_taken",          "local_claimed",      "local_filled",
                                      "local_committed",      "local_sealed",       "local_segment_made",
                                      "local_segment_linked", "local_created",      "local_rolled",
                                      "local_promised",       "local_write",        "local_sync",
                                      "local_synced",         "local_durable",      "local_file_made",
                                      "local_file_renamed",   "local_note_written", NULL};

/* A place and its countdown, drawn anew after each fault. */
static struct {
    struct lab *lab;
    struct lab_writer *me;
    int points[SPATE_FP_COUNT], count;
    uint64_t seed;
    _Atomic int point;
    _Atomic int64_t left;
    bool kills;
} fault;

static const char *const names[] = {
#define NAME(name, process, bus, fails, doc) #name,
    SPATE_FAILPOINTS(NAME)
#undef NAME
};

static int point_named(const char *name)
{
    for (int i = 0; i < SPATE_FP_COUNT; i++)
        if (strcmp(names[i], name) == 0)
            return i;
    fprintf(stderr, "lab: there is no failpoint %s\n", name);
    abort();
}

static bool is_of_publish(int point)
{
    for (const char *const *name = lab_points_publish; *name; name++)
        if (strcmp(*name, names[point]) == 0)
            return true;
    return false;
}

/* The seed is drawn from by whoever hit last: one thread at a time. */
static void draw(void)
{
    const int point = fault.points[lab_random(&fault.seed) % (uint64_t)fault.count];
    /* Each publish comes by there, a roll once in hundreds of them. */
    const uint64_t most = is_of_publish(point) ? 200 : 4;

    atomic_store(&fault.left, (int64_t)(1 + lab_random(&fault.seed) % most));
    atomic_store(&fault.point, point);
}

static void freeze(uint64_t us)
{
    if (fault.lab->plan->threads) {
        atomic_fetch_add(&fault.lab->board->freezes, 1);
        nanosleep(&(struct timespec){.tv_nsec = (long)us * 1000}, NULL);
        return;
    }
    atomic_store(&fault.me->freeze_us, us);
    kill(getpid(), SIGSTOP); /* the supervisor wakes us */
}

/* Somebody has to be left who repairs. */
static bool too_many_frozen(void)
{
    const int writers = fault.lab->plan->writers;
    int frozen = 0;

    for (int i = 0; i < writers; i++)
        frozen += atomic_load(&fault.lab->board->writers[i].frozen);
    return frozen > 0 && frozen >= (writers - 1) / 2;
}

static bool hit(enum spate_failpoint point)
{
    if ((int)point != atomic_load_explicit(&fault.point, memory_order_relaxed) ||
        atomic_fetch_sub(&fault.left, 1) != 1 || atomic_load(&fault.lab->board->stop))
        return false;
    const struct lab_plan *plan = fault.lab->plan;
    const uint64_t longest = (uint64_t)(plan->freeze_ms ? plan->freeze_ms : 12) * 1000;
    const uint64_t dice = lab_random(&fault.seed);
    const bool dies = !plan->threads && fault.kills && (plan->freezes == 0 || dice % 2);

    if (dies || !too_many_frozen()) {
        atomic_fetch_add(&fault.lab->board->hits[point], 1);
        if (dies)
            kill(getpid(), SIGKILL);
        freeze(lab_random(&fault.seed) % longest);
    }
    draw();
    return false;
}

void lab_arm(struct lab *lab, int who, uint64_t seed)
{
    const char *const *const points = lab->plan->points ? lab->plan->points : lab_points_publish;

    if (lab->plan->kills + lab->plan->freezes == 0)
        return;
    fault.lab = lab;
    fault.me = &lab->board->writers[who];
    fault.seed = seed;
    fault.kills = lab->plan->kills > 0;
    for (fault.count = 0; points[fault.count]; fault.count++)
        fault.points[fault.count] = point_named(points[fault.count]);
    draw();
    spate_failpoint_hook = hit;
}

void lab_disarm(void)
{
    spate_failpoint_hook = NULL;
}
