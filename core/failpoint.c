/* core/failpoint.c - a plan read from the environment, and what it does to us. */
#include "core/failpoint.h"

#include "core/log.h"
#include "core/options.h"

#include <limits.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum action { NOTHING, KILL, STOP, SLEEP, FAIL };

static const char *const action_names[] = {"nothing", "kill", "stop", "sleep", "fail"};

static const struct {
    const char *name, *process, *bus, *doc;
    bool fails;
} points[SPATE_FP_COUNT] = {
#define ENTRY(name, process, bus, fails, doc) {#name, process, bus, doc, fails},
    SPATE_FAILPOINTS(ENTRY)
#undef ENTRY
};

/* Written by init, before there are threads; only the count changes afterwards. */
static struct {
    enum action action;
    unsigned at; /* the hit at which it happens */
    unsigned sleep_ms;
    atomic_uint hits;
} plans[SPATE_FP_COUNT];

bool (*spate_failpoint_hook)(enum spate_failpoint point);

static enum spate_rc unknown_name(const char *word, struct spate_err *err)
{
    const char *names[SPATE_FP_COUNT], *near;

    for (size_t i = 0; i < SPATE_FP_COUNT; i++)
        names[i] = points[i].name;
    near = spate_nearest(word, names, SPATE_FP_COUNT);
    return spate_fail(err, SPATE_FATAL, "SPATE_FP: there is no failpoint \"%.60s\"%s%s%s", word,
                      near ? "; did you mean " : "", near ? near : "", near ? "?" : "");
}

static bool parse_number(const char *text, unsigned *number)
{
    char *end = NULL;
    unsigned long value = text[0] >= '0' && text[0] <= '9' ? strtoul(text, &end, 10) : 0;

    *number = (unsigned)value;
    return end && *end == '\0' && value > 0 && value <= INT_MAX;
}

/* One "name=action[:MS][@N]", in place. */
static enum spate_rc parse_one(char *word, struct spate_err *err)
{
    char *what = strchr(word, '='), *at = NULL, *ms = NULL;
    enum action action = KILL;
    unsigned hit = 1, sleep_ms = 0;
    size_t i = 0;

    if (!what)
        return spate_fail(err, SPATE_FATAL, "SPATE_FP: \"%.60s\" is not NAME=ACTION", word);
    *what++ = '\0';
    while (i < SPATE_FP_COUNT && strcmp(points[i].name, word) != 0)
        i++;
    if (i == SPATE_FP_COUNT)
        return unknown_name(word, err);
    if (plans[i].action != NOTHING)
        return spate_fail(err, SPATE_FATAL, "SPATE_FP: %s is there twice", word);
    if ((at = strchr(what, '@')))
        *at++ = '\0';
    if ((ms = strchr(what, ':')))
        *ms++ = '\0';
    while (action <= FAIL && strcmp(action_names[action], what) != 0)
        action++;
    if (action > FAIL || (action == SLEEP) != (ms != NULL) || (ms && !parse_number(ms, &sleep_ms)) ||
        (at && !parse_number(at, &hit)))
        return spate_fail(err, SPATE_FATAL,
                          "SPATE_FP: what %s is to do is not understood; expected kill, stop, sleep:MS or "
                          "fail, and @N for the N-th hit",
                          word);
    if (action == FAIL && !points[i].fails)
        return spate_fail(err, SPATE_FATAL, "SPATE_FP: %s is a place that cannot fail", word);
    plans[i].action = action;
    plans[i].at = hit;
    plans[i].sleep_ms = sleep_ms;
    return SPATE_OK;
}

enum spate_rc spate_failpoint_init(const char *plan, struct spate_err *err)
{
    char *copy, *rest, *word;
    enum spate_rc rc = SPATE_OK;

    for (size_t i = 0; i < SPATE_FP_COUNT; i++) {
        plans[i].action = NOTHING;
        atomic_store(&plans[i].hits, 0);
    }
    if (!plan || !plan[0])
        return SPATE_OK;
    copy = strdup(plan);
    if (!copy)
        return spate_fail(err, SPATE_FATAL, "no memory to read SPATE_FP");
    for (word = strtok_r(copy, ",", &rest); rc == SPATE_OK && word; word = strtok_r(NULL, ",", &rest))
        rc = parse_one(word, err);
    free(copy);
    return rc;
}

bool spate_failpoint_hit(enum spate_failpoint point)
{
    if (spate_failpoint_hook)
        return spate_failpoint_hook(point);
    if (plans[point].action == NOTHING ||
        atomic_fetch_add_explicit(&plans[point].hits, 1, memory_order_relaxed) + 1 != plans[point].at)
        return false;
    /* A line is one write(2): it is out before we are dead. */
    spate_log(SPATE_LOG_ERROR, "failpoint", "name=%s action=%s hit=%u", points[point].name,
              action_names[plans[point].action], plans[point].at);
    switch (plans[point].action) {
    case KILL: /* not raise(): the process, whichever thread is here */
        kill(getpid(), SIGKILL);
        break;
    case STOP:
        kill(getpid(), SIGSTOP);
        break;
    case SLEEP:
        nanosleep(&(struct timespec){.tv_sec = plans[point].sleep_ms / 1000,
                                     .tv_nsec = (long)(plans[point].sleep_ms % 1000) * 1000000L},
                  NULL);
        break;
    case FAIL:
        return true;
    case NOTHING:
        break;
    }
    return false;
}

void spate_failpoint_list(FILE *out)
{
    for (size_t i = 0; i < SPATE_FP_COUNT; i++)
        fprintf(out, "%s\t%s\t%s\t%s\t%s\n", points[i].name, points[i].process, points[i].bus,
                points[i].fails ? "fails" : "-", points[i].doc);
}
