/* check.h - what the C tests share: a runner, assertions, and a few ways to look at descriptors.
 *
 * A test is a function without arguments whose name is a sentence. The runner compares open descriptors, children,
 * the signal mask and RLIMIT_NOFILE before and after each one, so that every test is a leak test as well.
 * A failed check ends its test; in a forked child or in another thread it ends the process.
 *
 * SPDX-License-Identifier: MIT */
#ifndef CHECK_H
#define CHECK_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "fdhandoff.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAYBE_UNUSED __attribute__((unused))
#define LENGTH(array) (sizeof(array) / sizeof(array)[0])
#define SECONDS(n) (fdh_now() + (int64_t)(n) * 1000000000)
#define MILLISECONDS(n) (fdh_now() + (int64_t)(n) * 1000000)

static struct {
    jmp_buf back;
    pid_t pid;
    pthread_t thread;
    int passed, failed, skipped;
    const char *skip;
} runner;

MAYBE_UNUSED static _Noreturn void check_failed(const char *file, int line, const char *what, long long got,
                                                long long wanted)
{
    printf("    %s:%d: %s: got %lld, expected %lld\n", file, line, what, got, wanted);
    fflush(stdout);
    if (getpid() != runner.pid)
        _exit(99); /* reap_ok() will tell */
    if (!pthread_equal(pthread_self(), runner.thread))
        abort();
    longjmp(runner.back, 1);
}

#define CHECK_EQUAL(got, wanted)                                                                    \
    do {                                                                                            \
        long long got_ = (long long)(got), wanted_ = (long long)(wanted);                           \
        if (got_ != wanted_)                                                                        \
            check_failed(__FILE__, __LINE__, #got " == " #wanted, got_, wanted_);                   \
    } while (0)
#define CHECK(condition)                                                                            \
    do {                                                                                            \
        if (!(condition))                                                                           \
            check_failed(__FILE__, __LINE__, #condition, 0, 1);                                     \
    } while (0)
/* For system calls of the test itself. */
#define MUST(call)                                                                                  \
    do {                                                                                            \
        if ((call) < 0)                                                                             \
            check_failed(__FILE__, __LINE__, #call ": errno", errno, 0);                            \
    } while (0)
/* Ends the test without judgement; the reason is printed. */
#define SKIP(reason)                                                                                \
    do {                                                                                            \
        runner.skip = (reason);                                                                     \
        return;                                                                                     \
    } while (0)
#define NEEDS(feature)                                                                              \
    do {                                                                                            \
        if (!(fdh_features() & (uint32_t)(feature)))                                                \
            SKIP("not in this build or kernel: " #feature);                                         \
    } while (0)
#define RUN(test) check_run(#test, test)

/* How many descriptors are open, the one that looks not counted. */
MAYBE_UNUSED static int open_fds(void)
{
    DIR *directory = opendir("/proc/self/fd");
    int n = 0;

    if (!directory)
        return -1;
    while (readdir(directory))
        n++;
    closedir(directory);
    return n - 3;
}

MAYBE_UNUSED static int check_summary(void)
{
    printf("%d passed, %d failed", runner.passed, runner.failed);
    if (runner.skipped)
        printf(", %d skipped", runner.skipped);
    printf("\n");
    return runner.failed != 0;
}

/* A fork whose child never outlives a test program that failed. */
MAYBE_UNUSED static pid_t fork_child(void)
{
    pid_t pid = fork();

    if (!pid)
        prctl(PR_SET_PDEATHSIG, SIGKILL);
    return pid;
}

/* A failed test ends the program: threads and children that it left would disturb the others. */
MAYBE_UNUSED static void check_run(const char *name, void (*test)(void))
{
    struct rlimit limit_before, limit_after;
    sigset_t mask_before, mask_after;
    int volatile fds_before = open_fds();
    int64_t volatile began = fdh_now();
    int reason = 0;

    runner.pid = getpid();
    runner.thread = pthread_self();
    runner.skip = NULL;
    getrlimit(RLIMIT_NOFILE, &limit_before);
    sigprocmask(SIG_SETMASK, NULL, &mask_before);
    if (!setjmp(runner.back)) {
        test();
    } else {
        reason = 1;
    }
    if (!reason) {
        int signal_number, fds_after = open_fds();

        if (fds_after != fds_before) {
            printf("    %d descriptors are open, %d before\n", fds_after, fds_before);
            reason = 1;
        }
        if (waitpid(-1, NULL, WNOHANG | __WALL) != -1 || errno != ECHILD) {
            printf("    a child is left\n");
            reason = 1;
        }
        sigprocmask(SIG_SETMASK, NULL, &mask_after);
        for (signal_number = 1; signal_number < 32; signal_number++)
            if (sigismember(&mask_before, signal_number) != sigismember(&mask_after, signal_number)) {
                printf("    the mask of signal %d changed\n", signal_number);
                reason = 1;
            }
        getrlimit(RLIMIT_NOFILE, &limit_after);
        if (limit_before.rlim_cur != limit_after.rlim_cur) {
            printf("    RLIMIT_NOFILE was left changed\n");
            reason = 1;
        }
    } else {
        setrlimit(RLIMIT_NOFILE, &limit_before);
    }
    if (reason)
        runner.failed = 1;
    else if (runner.skip)
        runner.skipped++;
    else
        runner.passed++;
    printf("%s %5d ms  %s%s%s\n", reason ? "FAILED " : runner.skip ? "skipped" : "ok     ",
           (int)((fdh_now() - began) / 1000000), name,
           !reason && runner.skip ? ": " : "", !reason && runner.skip ? runner.skip : "");
    fflush(stdout);
    if (reason)
        exit(check_summary());
}

/* The number that the next descriptor gets. */
MAYBE_UNUSED static int next_fd(void)
{
    int fd = dup(STDOUT_FILENO);

    MUST(fd);
    close(fd);
    return fd;
}

MAYBE_UNUSED static bool is_open(int fd)
{
    return fcntl(fd, F_GETFD) >= 0;
}

MAYBE_UNUSED static bool is_cloexec(int fd)
{
    int flags = fcntl(fd, F_GETFD);

    MUST(flags);
    return flags & FD_CLOEXEC;
}

MAYBE_UNUSED static bool is_nonblocking(int fd)
{
    int flags = fcntl(fd, F_GETFL);

    MUST(flags);
    return flags & O_NONBLOCK;
}

/* Level-triggered: can fd be read right now? */
MAYBE_UNUSED static bool is_readable(int fd)
{
    struct pollfd entry = {.fd = fd, .events = POLLIN, .revents = 0};
    int n = poll(&entry, 1, 0);

    MUST(n);
    return n && entry.revents & POLLIN;
}

MAYBE_UNUSED static bool same_file(int a, int b)
{
    struct stat of_a, of_b;

    MUST(fstat(a, &of_a));
    MUST(fstat(b, &of_b));
    return of_a.st_dev == of_b.st_dev && of_a.st_ino == of_b.st_ino;
}

/* Lowers RLIMIT_NOFILE so that `room` more descriptors can be opened; returns what to give back to nofile_set.
 * Presumes that there are no holes below the next descriptor's number. */
MAYBE_UNUSED static void nofile_set(rlim_t n)
{
    struct rlimit limit;

    MUST(getrlimit(RLIMIT_NOFILE, &limit));
    limit.rlim_cur = n;
    MUST(setrlimit(RLIMIT_NOFILE, &limit));
}

MAYBE_UNUSED static rlim_t nofile_leave(int room)
{
    struct rlimit limit;
    rlim_t before;

    MUST(getrlimit(RLIMIT_NOFILE, &limit));
    before = limit.rlim_cur;
    nofile_set((rlim_t)(next_fd() + room));
    return before;
}

/* Ends a forked child of a test: 0 when it came so far. */
MAYBE_UNUSED static void reap_ok(pid_t pid)
{
    int status = 0;

    MUST(waitpid(pid, &status, 0));
    CHECK(WIFEXITED(status));
    CHECK_EQUAL(WEXITSTATUS(status), 0);
}

MAYBE_UNUSED static void reap_killed(pid_t pid)
{
    int status = 0;

    MUST(kill(pid, SIGKILL));
    MUST(waitpid(pid, &status, 0));
    CHECK(WIFSIGNALED(status));
}

static volatile sig_atomic_t storm_count;
MAYBE_UNUSED static void storm_handler(int signal_number)
{
    (void)signal_number;
    storm_count = storm_count + 1;
}

/* Interrupts whoever waits, every `microseconds`, without SA_RESTART; 0 ends it. */
MAYBE_UNUSED static void storm(int microseconds)
{
    struct itimerval timer = {{0, microseconds}, {0, microseconds}};
    struct sigaction action;

    memset(&action, 0, sizeof action);
    action.sa_handler = storm_handler;
    if (microseconds) {
        storm_count = 0;
        MUST(sigaction(SIGALRM, &action, NULL));
    }
    MUST(setitimer(ITIMER_REAL, &timer, NULL));
    if (!microseconds) {
        action.sa_handler = SIG_DFL;
        MUST(sigaction(SIGALRM, &action, NULL));
    }
}

#define UNTOUCHED 0xA5
#define TAINT(object) memset(&(object), UNTOUCHED, sizeof(object))
#define CHECK_UNTOUCHED(object) CHECK(is_untouched(&(object), sizeof(object)))
MAYBE_UNUSED static bool is_untouched(const void *memory, size_t size)
{
    const unsigned char *bytes = memory;
    size_t i;

    for (i = 0; i < size; i++)
        if (bytes[i] != UNTOUCHED)
            return false;
    return true;
}

#endif
