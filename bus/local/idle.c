/* bus/local/idle.c - chasing, spinning, yielding, sleeping. */
#include "bus/local/idle.h"

#include "bus/local/broken.h"
#include "core/clock.h"

#include <sched.h>

#define CLOSE_NS     500 /* what follows so soon is chased */
#define AWAY_US      3   /* from a writer that is chased, at first */
#define AWAY_MOST    19  /* shorter than a turn */
#define PILE_LEAST   4   /* records in a microsecond that make staying away worth while */
#define FORBEAR      8   /* waits without a chase after one in vain */
#define FORBEAR_MOST 1024
#define SPIN_NS      5000
#define TURN_NS      19000 /* spinning where nobody else wants the processor */
#define ALONE_NS     2000  /* what giving it away takes then */
#define YIELD_NS     20000
#define YIELDS       8      /* at least: with many readers on few processors each one takes long */
#define DENSE_NS     500000 /* between two records */
#define LOOKS        8      /* between two looks at the clock, which costs as much as a few of them */

static_assert(AWAY_MOST * 1000 < SPATE_LOCAL_TURN_NS && TURN_NS < SPATE_LOCAL_TURN_NS,
              "nobody sits longer than a turn");

static void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#endif
}

static void leave(const struct spate_local_idle_for *what, struct spate_local_bell *bell,
                  struct spate_local_seat *seat)
{
    if (*what->bell == bell)
        spate_local_seat_leave(bell, seat);
}

static bool spin(const struct spate_local_idle_for *what, uint64_t until)
{
    do {
        for (int i = 0; i < LOOKS; i++) {
            if (what->ready(what->arg))
                return true;
            relax();
        }
    } while (spate_local_bell_now_ns() < until);
    return false;
}

static bool yield(const struct spate_local_idle_for *what, uint64_t until)
{
    int times = 0;

    do {
        sched_yield();
        if (what->ready(what->arg))
            return true;
    } while (++times < YIELDS || spate_local_bell_now_ns() < until);
    return false;
}

/* Lets records pile up. Who has no seat lets somebody else work meanwhile. */
static void stay_away(struct spate_local_idle *idle, const struct spate_local_idle_for *what, uint64_t now)
{
    const uint64_t until = now + (uint64_t)idle->away_us * 1000;
    struct spate_local_bell *bell = *what->bell;
    struct spate_local_seat seat;

    if (bell && spate_local_seat_take(bell, now, &seat)) {
        while (spate_local_bell_now_ns() < until)
            relax();
        spate_local_seat_leave(bell, &seat);
        return;
    }
    do
        sched_yield();
    while (spate_local_bell_now_ns() < until);
}

/* What came since the last wait says whether staying away was worth while. */
static void judge(struct spate_local_idle *idle, uint64_t records, uint64_t took_ns)
{
    if (idle->away_us == 0)
        return;
    if (records * 1000 >= PILE_LEAST * took_ns) {
        idle->away_us = idle->away_us * 2 < AWAY_MOST ? idle->away_us * 2 : AWAY_MOST;
        idle->forbearing = FORBEAR;
        return;
    }
    idle->away_us = 0;
    idle->passed_by = idle->forbearing < FORBEAR ? FORBEAR : idle->forbearing;
    idle->forbearing = idle->passed_by * 2 < FORBEAR_MOST ? idle->passed_by * 2 : FORBEAR_MOST;
}

/* The half microsecond after the last record. */
static bool chase(struct spate_local_idle *idle, const struct spate_local_idle_for *what, uint64_t now)
{
    if (!spin(what, now + CLOSE_NS)) {
        idle->away_us = 0;
        return false;
    }
    if (idle->passed_by > 0) {
        idle->passed_by--;
        return true;
    }
    if (idle->away_us == 0)
        idle->away_us = AWAY_US;
    stay_away(idle, what, spate_local_bell_now_ns());
    return true;
}

/* Gives the processor away once; *alone: nobody wanted it. */
static bool yield_once(const struct spate_local_idle_for *what, bool *alone)
{
    const uint64_t now = spate_local_bell_now_ns();

    sched_yield();
    *alone = spate_local_bell_now_ns() - now < ALONE_NS;
    return what->ready(what->arg);
}

/* Between two records of dense traffic it is cheaper for everybody to spin, or to give the processor away,
 * than to sleep and be woken. Where readers outnumber the processors it is what keeps the writer going: it is
 * not to pay for waking thirty of them at each record, and gets its processor back. */
static bool soon(struct spate_local_idle *idle, const struct spate_local_idle_for *what)
{
    const uint64_t now = spate_local_bell_now_ns();
    struct spate_local_bell *bell = *what->bell;
    struct spate_local_seat seat;

    if (bell && spate_local_seat_take(bell, now, &seat)) {
        bool alone = false;
        const bool came =
            spin(what, now + SPIN_NS) || yield_once(what, &alone) || (alone && spin(what, now + TURN_NS));
        leave(what, bell, &seat);
        idle->spins++;
        if (came || alone)
            return came;
    }
    idle->yields++;
    return yield(what, spate_local_bell_now_ns() + YIELD_NS);
}

static bool sleep_once(struct spate_local_idle *idle, const struct spate_local_idle_for *what,
                       int64_t left_ms)
{
    struct spate_local_bell *bell = *what->bell;

    if (!bell)
        return true;
    struct spate_local_doorbell *door = what->durable ? &bell->durable : &bell->tip;
    const uint32_t ticket = spate_local_bell_prepare(door);
    if (!SPATE_BROKEN(NO_RECHECK) && what->ready(what->arg))
        return true;
    if (*what->bell != bell)
        return true;
    idle->sleeps++;
    spate_local_bell_sleep(door, ticket, (int)left_ms);
    return what->ready(what->arg);
}

bool spate_local_idle_wait(struct spate_local_idle *idle, const struct spate_local_idle_for *what,
                           int64_t deadline_ms)
{
    const uint64_t now = spate_local_bell_now_ns();
    const uint64_t records = what->records - idle->records, took_ns = now - idle->began_ns;
    const bool dense = records > 0 && took_ns / records < DENSE_NS;
    int64_t left;

    judge(idle, records, took_ns);
    idle->began_ns = now;
    idle->records = what->records;
    if (dense && !what->durable && chase(idle, what, now))
        return true;
    do {
        if (dense && soon(idle, what))
            return true;
        if ((left = deadline_ms - spate_clock_ms()) <= 0)
            return false;
    } while (!sleep_once(idle, what, left)); /* who is rung for what he had read already has another try */
    return true;
}
