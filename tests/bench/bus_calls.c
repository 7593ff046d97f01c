/* tests/bench/bus_calls.c - runs a program and counts the kernel calls of it and of all that it forks.
 * Arguments: program, its arguments. The count goes to standard error as calls=N; the exit status is the
 * program's. */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#define OPTIONS                                                                                              \
    (PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACECLONE |                \
     PTRACE_O_EXITKILL)

/* What a stopped process is to be handed when it goes on: signals that are its own. */
static int signal_of(int status)
{
    const int sig = WSTOPSIG(status);

    return sig == (SIGTRAP | 0x80) || sig == SIGTRAP || sig == SIGSTOP ? 0 : sig;
}

int main(int argc, char **argv)
{
    uint64_t stops = 0;
    int status, result = 1;
    pid_t pid;

    if (argc < 2)
        return 2;
    const pid_t child = fork();
    if (child == 0) {
        if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0)
            _exit(126);
        raise(SIGSTOP);
        execvp(argv[1], argv + 1);
        _exit(127);
    }
    if (child < 0 || waitpid(child, &status, 0) != child || !WIFSTOPPED(status) ||
        ptrace(PTRACE_SETOPTIONS, child, NULL, OPTIONS) != 0 ||
        ptrace(PTRACE_SYSCALL, child, NULL, NULL) != 0) {
        fprintf(stderr, "cannot trace: %s\n", strerror(errno));
        return 2;
    }
    while ((pid = waitpid(-1, &status, __WALL)) > 0) {
        if (WIFSTOPPED(status)) {
            stops += WSTOPSIG(status) == (SIGTRAP | 0x80);
            ptrace(PTRACE_SYSCALL, pid, NULL, (void *)(intptr_t)signal_of(status));
        } else if (pid == child) {
            result = WIFEXITED(status) ? WEXITSTATUS(status) : 1;
        }
    }
    fprintf(stderr, "calls=%" PRIu64 "\n", stops / 2); /* it stops at the way in and at the way out */
    return result;
}
