/* tests/lab/lab.c - who begins, kills, wakes, begins anew, and what came of it. */
#include "tests/lab/lab.h"

#include "bus/local/bell.h"
#include "bus/local/repair.h"
#include "core/clock.h"

#include <fcntl.h>
#include <ftw.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PACE_US 40000 /* between two faults from outside, on average half of it */

struct actor {
    pid_t pid;
    bool stopped;
    int64_t wake_us; /* when it is to be woken */
    uint64_t before; /* what had been published when it began */
};

struct crowd {
    struct lab lab;
    struct lab_outcome *out;
    struct actor writers[LAB_WRITERS], readers[LAB_READERS];
    uint64_t seed;
    int64_t fault_us; /* when the next fault comes from outside */
};

static void nap(long us)
{
    nanosleep(&(struct timespec){.tv_nsec = us * 1000}, NULL);
}

static bool failed(const struct crowd *c)
{
    return atomic_load(&c->lab.board->abandon) != 0;
}

/* --- processes */

static void begin_writer(struct crowd *c, int i)
{
    const uint64_t seed = lab_random(&c->seed);
    const pid_t pid = fork();

    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        lab_arm(&c->lab, i, seed);
        lab_write(&c->lab, i, seed);
        _exit(0);
    }
    c->writers[i] = (struct actor){.pid = pid, .before = atomic_load(&c->lab.board->writers[i].count)};
}

/* What it was about when it was killed may be in the log or not: it goes on behind that. */
static void note_unknown(struct crowd *c, int i)
{
    struct lab_writer *w = &c->lab.board->writers[i];
    const uint64_t tried = atomic_load(&w->tried), taken = atomic_load(&w->taken);
    const uint32_t n = atomic_load(&w->unknowns);

    if (tried <= taken)
        return;
    if (n == LAB_UNKNOWN) {
        lab_wrong(&c->lab, "the lab has no room for another kill");
        return;
    }
    w->unknown[n].first = taken + 1;
    w->unknown[n].last = tried;
    atomic_store(&w->unknowns, n + 1);
    c->out->unknown += tried - taken;
}

/* What became of a writer since the last look: killed, frozen, or ended without having been told. */
static void look_after(struct crowd *c, int i)
{
    struct actor *a = &c->writers[i];
    struct lab_writer *w = &c->lab.board->writers[i];
    int status;

    while (a->pid > 0 && waitpid(a->pid, &status, WNOHANG | WUNTRACED) == a->pid) {
        if (WIFSTOPPED(status)) {
            a->stopped = true;
            atomic_store(&w->frozen, 1);
            a->wake_us = spate_clock_us() + (int64_t)atomic_load(&w->freeze_us);
            c->out->freezes++;
            continue;
        }
        a->pid = 0;
        atomic_store(&w->frozen, 0);
        if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
            c->out->kills++;
        else if (WIFSIGNALED(status) || WEXITSTATUS(status) != 0)
            lab_wrong(&c->lab, "writer %d died of %d", i, status);
        note_unknown(c, i);
    }
    if (a->pid > 0 && a->stopped && spate_clock_us() >= a->wake_us) {
        a->stopped = false;
        atomic_store(&w->frozen, 0);
        kill(a->pid, SIGCONT);
    }
}

static void strike(struct crowd *c)
{
    const struct lab_plan *plan = c->lab.plan;
    const int i = (int)(lab_random(&c->seed) % (uint64_t)plan->writers);
    const uint64_t longest = (uint64_t)(plan->freeze_ms ? plan->freeze_ms : 12) * 1000;
    struct actor *a = &c->writers[i];

    c->fault_us = spate_clock_us() + (int64_t)(lab_random(&c->seed) % PACE_US);
    if (a->pid <= 0 || plan->kills + plan->freezes == 0)
        return;
    /* Some are hit while they open, most while they publish. */
    if (atomic_load(&c->lab.board->writers[i].count) == a->before && lab_random(&c->seed) % 8)
        return;
    if (plan->kills > 0 && (plan->freezes == 0 || lab_random(&c->seed) % 2)) {
        kill(a->pid, SIGKILL);
    } else if (!a->stopped) {
        atomic_store(&c->lab.board->writers[i].freeze_us, lab_random(&c->seed) % longest);
        kill(a->pid, SIGSTOP);
    }
}

static uint64_t filled(const struct crowd *c)
{
    const uint64_t cap = c->lab.plan->cap ? c->lab.plan->cap : UINT64_C(1) << 20;
    uint64_t bytes = 0;

    for (int i = 0; i < c->lab.plan->writers; i++)
        bytes += atomic_load(&c->lab.board->writers[i].bytes);
    return bytes / cap;
}

static bool enough(const struct crowd *c)
{
    const struct lab_plan *plan = c->lab.plan;

    return c->out->kills >= plan->kills && c->out->freezes >= plan->freezes && filled(c) >= plan->rolls;
}

/* Waits for them all, waking each as often as it takes: one may wait for what another one holds. */
static void wait_for(struct crowd *c, struct actor *actors, int count, const char *what)
{
    const int64_t deadline = spate_clock_ms() + 60000;
    int status, left = count;

    while (left > 0) {
        left = 0;
        for (int i = 0; i < count; i++) {
            struct actor *a = &actors[i];
            if (a->pid > 0 && waitpid(a->pid, &status, WNOHANG) == a->pid) {
                a->pid = 0;
                if (status != 0 && !failed(c) && !(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL))
                    lab_wrong(&c->lab, "%s %d ended with %d", what, i, status);
            }
            if (a->pid <= 0)
                continue;
            left++;
            kill(a->pid, failed(c) ? SIGKILL : SIGCONT); /* what is wrong is known */
            if (spate_clock_ms() > deadline) {
                lab_wrong(&c->lab, "%s %d does not end", what, i);
                kill(a->pid, SIGKILL);
            }
        }
        nap(500);
    }
}

static void by_processes(struct crowd *c)
{
    const struct lab_plan *plan = c->lab.plan;
    struct actor closer;

    for (int i = 0; i < plan->readers; i++)
        if ((c->readers[i].pid = fork()) == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            lab_read(&c->lab, i);
            _exit(0);
        }
    for (int i = 0; i < plan->writers; i++)
        begin_writer(c, i);
    while (!failed(c) && !enough(c)) {
        for (int i = 0; i < plan->writers; i++) {
            look_after(c, i);
            if (c->writers[i].pid == 0)
                begin_writer(c, i);
        }
        if (spate_clock_us() >= c->fault_us)
            strike(c);
        nap(200);
    }
    atomic_store(&c->lab.board->stop, 1);
    wait_for(c, c->writers, plan->writers, "writer");
    for (int i = 0; i < plan->writers; i++)
        note_unknown(c, i);
    if (!failed(c)) {
        if ((closer.pid = fork()) == 0) {
            lab_close_log(&c->lab);
            _exit(0);
        }
        wait_for(c, &closer, 1, "the last writer");
    }
    wait_for(c, c->readers, plan->readers, "reader");
}

/* --- threads */

struct part {
    struct crowd *crowd;
    pthread_t thread;
    uint64_t seed;
    int i;
};

static void *write_part(void *arg)
{
    struct part *part = arg;

    lab_write(&part->crowd->lab, part->i, part->seed);
    return NULL;
}

static void *read_part(void *arg)
{
    struct part *part = arg;

    lab_read(&part->crowd->lab, part->i);
    return NULL;
}

static void by_threads(struct crowd *c)
{
    const struct lab_plan *plan = c->lab.plan;
    struct part writers[LAB_WRITERS], readers[LAB_READERS];

    lab_arm(&c->lab, 0, lab_random(&c->seed));
    for (int i = 0; i < plan->readers; i++) {
        readers[i] = (struct part){.crowd = c, .i = i};
        pthread_create(&readers[i].thread, NULL, read_part, &readers[i]);
    }
    for (int i = 0; i < plan->writers; i++) {
        writers[i] = (struct part){.crowd = c, .i = i, .seed = lab_random(&c->seed)};
        pthread_create(&writers[i].thread, NULL, write_part, &writers[i]);
    }
    while (!failed(c) && !enough(c)) {
        c->out->freezes = atomic_load(&c->lab.board->freezes);
        nap(1000);
    }
    atomic_store(&c->lab.board->stop, 1);
    for (int i = 0; i < plan->writers; i++)
        pthread_join(writers[i].thread, NULL);
    lab_disarm();
    if (!failed(c))
        lab_close_log(&c->lab);
    for (int i = 0; i < plan->readers; i++)
        pthread_join(readers[i].thread, NULL);
}

/* --- what came of it */

static void sum_up(struct crowd *c)
{
    const struct lab_plan *plan = c->lab.plan;
    struct lab_board *board = c->lab.board;
    struct lab_outcome *out = c->out;
    const uint64_t cap = plan->cap ? plan->cap : UINT64_C(1) << 20;
    char path[256];

    for (int i = 0; i < plan->writers; i++)
        out->published += atomic_load(&board->writers[i].count);
    for (int i = 0; i < plan->readers; i++) {
        const struct lab_reader *r = &board->readers[i];
        out->delivered += atomic_load(&r->count);
        if (atomic_load(&r->block_us) > out->block_us)
            out->block_us = atomic_load(&r->block_us);
        if (!failed(c) && (atomic_load(&r->hash) != atomic_load(&board->readers[0].hash) ||
                           atomic_load(&r->count) != atomic_load(&board->readers[0].count)))
            lab_wrong(&c->lab, "reader %d saw another sequence than reader 0: %llu records, not %llu", i,
                      (unsigned long long)atomic_load(&r->count),
                      (unsigned long long)atomic_load(&board->readers[0].count));
    }
    for (int i = 0; i < SPATE_FP_COUNT; i++)
        out->hits[i] = atomic_load(&board->hits[i]);
    out->rolls = atomic_load(&board->end) / cap;
    snprintf(path, sizeof path, "%s/log/ctl", plan->hot);
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    const struct spate_local_ctl *ctl =
        fd < 0 ? MAP_FAILED : mmap(NULL, sizeof *ctl, PROT_READ, MAP_SHARED, fd, 0);
    if (ctl != MAP_FAILED) {
        out->pads = atomic_load(&ctl->pads);
        out->fences = atomic_load(&ctl->fences);
        munmap((void *)(uintptr_t)ctl, sizeof *ctl);
    }
    if (fd >= 0)
        close(fd);
    out->wrong = atomic_load(&board->wrong);
    memcpy(out->what, board->what, sizeof out->what);
}

static int or_else(int given, int otherwise)
{
    return given < 0 ? 0 : given > 0 ? given : otherwise;
}

static void set_patience(const struct lab_plan *plan)
{
    spate_local_repair_free_ms = or_else(plan->free_ms, 2);
    spate_local_repair_claim_ms = or_else(plan->claim_ms, 1000);
}

void lab_run(const struct lab_plan *plan, struct lab_outcome *out)
{
    struct crowd c = {.lab = {.plan = plan}, .out = out, .seed = plan->seed};

    memset(out, 0, sizeof *out);
    c.lab.board = mmap(NULL, sizeof *c.lab.board, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (c.lab.board == MAP_FAILED) {
        perror("mmap");
        abort();
    }
    set_patience(plan);
    spate_local_bell_nap_ms = plan->paced ? 10000 : SPATE_LOCAL_NAP_MS; /* so that a lost ring shows */
    if (plan->threads)
        by_threads(&c);
    else
        by_processes(&c);
    spate_local_bell_nap_ms = SPATE_LOCAL_NAP_MS;
    set_patience(&(struct lab_plan){0});
    sum_up(&c);
    munmap(c.lab.board, sizeof *c.lab.board);
}

void lab_print(const char *title, const struct lab_plan *plan, const struct lab_outcome *out)
{
    static const char *const names[] = {
#define NAME(name, process, bus, fails, doc) #name,
        SPATE_FAILPOINTS(NAME)
#undef NAME
    };

    printf("# %s: SEED=%llu, %d writers, %d readers, %d kills, %d freezes, %llu rolls; %llu records, %llu "
           "delivered, "
           "%llu of unknown fate, %llu pads, %llu fences; longest block %.1f ms%s%s\n",
           title, (unsigned long long)plan->seed, plan->writers, plan->readers, out->kills, out->freezes,
           (unsigned long long)out->rolls, (unsigned long long)out->published,
           (unsigned long long)out->delivered, (unsigned long long)out->unknown,
           (unsigned long long)out->pads, (unsigned long long)out->fences, (double)out->block_us / 1000,
           out->wrong ? "; WRONG: " : "", out->what);
    if (plan->kills + plan->freezes == 0)
        return;
    printf("#   faults by place:");
    for (int i = 0; i < SPATE_FP_COUNT; i++)
        if (out->hits[i])
            printf(" %s %llu", names[i], (unsigned long long)out->hits[i]);
    printf("\n");
    fflush(stdout);
}

uint64_t lab_seed(void)
{
    return (uint64_t)lab_number("SEED", (long)(spate_clock_wall_us() % 1000000));
}

long lab_number(const char *name, long otherwise)
{
    const char *text = getenv(name);

    return text && *text ? strtol(text, NULL, 10) : otherwise;
}

static int unlink_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st, (void)type, (void)ftw;
    return remove(path);
}

void lab_directories(struct lab_plan *plan, char path[128], char hot[128])
{
    const char *tmp = getenv("TMPDIR");

    snprintf(path, 128, "%.90s/spate-lab-XXXXXX", tmp && *tmp ? tmp : "/tmp");
    snprintf(hot, 128, "/dev/shm/spate-lab-XXXXXX");
    if (!mkdtemp(path) || !mkdtemp(hot)) {
        perror("mkdtemp");
        abort();
    }
    plan->path = path;
    plan->hot = hot;
}

void lab_remove(const struct lab_plan *plan)
{
    nftw(plan->path, unlink_one, 16, FTW_DEPTH | FTW_PHYS);
    nftw(plan->hot, unlink_one, 16, FTW_DEPTH | FTW_PHYS);
}
