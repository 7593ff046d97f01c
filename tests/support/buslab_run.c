/* tests/support/buslab_run.c - the crowd of tests/lab with any numbers, for make soak and make lab-arm.
 *
 * usage: buslab_run TITLE WRITERS READERS KILLS FREEZES ROLLS [WORD...]
 * words:
 *   volatile, durable, owned   the topic
 *   publish, roll, all         where faults hit
 *   large                      some values are, and faults hit where their files are made
 *   short, impatient           repairs
 *   paced                      writers pause, readers sleep
 *   threads                    instead of processes
 * SEED repeats a run. Exit status 1: something was wrong; it is in the line that is printed. */
#include "tests/lab/lab.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool understood(struct lab_plan *plan, const char *word)
{
    if (strcmp(word, "volatile") == 0)
        plan->flags |= SPATE_TOPIC_VOLATILE;
    else if (strcmp(word, "owned") == 0)
        plan->flags &= ~(unsigned)SPATE_TOPIC_SHARED;
    else if (strcmp(word, "roll") == 0)
        plan->points = lab_points_roll;
    else if (strcmp(word, "all") == 0)
        plan->points = lab_points_all;
    else if (strcmp(word, "large") == 0)
        plan->points = lab_points_large, plan->large = true;
    else if (strcmp(word, "short") == 0)
        plan->claim_ms = 4, plan->freeze_ms = 20;
    else if (strcmp(word, "impatient") == 0)
        plan->claim_ms = plan->free_ms = -1;
    else if (strcmp(word, "paced") == 0)
        plan->paced = true;
    else if (strcmp(word, "threads") == 0)
        plan->threads = true;
    else
        return strcmp(word, "durable") == 0 || strcmp(word, "publish") == 0;
    return true;
}

int main(int argc, char **argv)
{
    struct lab_plan plan = {.seed = lab_seed(), .flags = SPATE_TOPIC_SHARED};
    struct lab_outcome out;
    char path[128], hot[128];

    if (argc < 7) {
        fprintf(stderr, "usage: buslab_run TITLE WRITERS READERS KILLS FREEZES ROLLS [WORD...]\n");
        return 2;
    }
    plan.writers = atoi(argv[2]);
    plan.readers = atoi(argv[3]);
    plan.kills = atoi(argv[4]);
    plan.freezes = atoi(argv[5]);
    plan.rolls = (uint64_t)atoi(argv[6]);
    for (int i = 7; i < argc; i++)
        if (!understood(&plan, argv[i])) {
            fprintf(stderr, "buslab_run: \"%s\" is no word of it\n", argv[i]);
            return 2;
        }
    if (plan.writers < 1 || plan.writers > LAB_WRITERS || plan.readers < 1 || plan.readers > LAB_READERS) {
        fprintf(stderr, "buslab_run: 1 to %d writers, 1 to %d readers\n", LAB_WRITERS, LAB_READERS);
        return 2;
    }
    lab_directories(&plan, path, hot);
    lab_run(&plan, &out);
    lab_print(argv[1], &plan, &out);
    if (out.wrong && lab_number("KEEP", 0))
        printf("# kept: %s %s\n", path, hot);
    else
        lab_remove(&plan);
    return out.wrong != 0;
}
