/* stepping.h - a child that is led through an action one instruction at a time, so that a test chooses the moment.
 *
 * SPDX-License-Identifier: MIT */
#ifndef STEPPING_H
#define STEPPING_H

#include "gates.h"

#include <sys/ptrace.h>

#define STEPS 25000 /* for each action, together: they decide at how many moments it is stopped, evenly spread */

/* main() begins with it. Where an atomic addition is a loop of load and conditional store, stepping through it never gets
 * out of it. */
MAYBE_UNUSED static bool can_step(void)
{
#ifdef __x86_64__
    return true;
#else
    printf("0 passed, 0 failed: this steps by single instructions, on x86-64 only\n");
    return false;
#endif
}

/* Puts the child at the beginning of what follows. */
MAYBE_UNUSED static void wait_for_steps(void)
{
    MUST(ptrace(PTRACE_TRACEME, 0, NULL, NULL));
    raise(SIGSTOP);
}

MAYBE_UNUSED static void await_stop(pid_t pid)
{
    int status;

    MUST(waitpid(pid, &status, 0));
    CHECK(WIFSTOPPED(status));
}

/* Lets it run n instructions at most; returns how many it ran before it raised SIGSTOP, which ends the action. */
MAYBE_UNUSED static long step(pid_t pid, long n)
{
    long i;
    int status;

    for (i = 0; i < n; i++) {
        MUST(ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL));
        MUST(waitpid(pid, &status, 0));
        CHECK(WIFSTOPPED(status));
        if (WSTOPSIG(status) == SIGSTOP)
            break;
    }
    return i;
}

/* How many moments of an action with so many instructions are tried. */
MAYBE_UNUSED static long points_of(long total)
{
    long points = STEPS / total < total ? STEPS / total : total;

    CHECK(points >= 5);
    return points;
}

#endif
