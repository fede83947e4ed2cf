/* children.h - the other half of the spawn tests: the program spawns itself, and the child reports what it woke up with.
 *
 * SPDX-License-Identifier: MIT */
#ifndef CHILDREN_H
#define CHILDREN_H

#include "check.h"

#include <dirent.h>
#include <grp.h>
#include <stdarg.h>
#include <sys/prctl.h>

#define REPORT_MAX 1000000

static char own_path[4096];

/* "--report N": writes what it sees to descriptor N, a line each, and exits. "--hold": waits to be killed. */
MAYBE_UNUSED static void report(int out)
{
    FILE *status = NULL;
    DIR *directory;
    struct dirent *entry;
    char line[512], cwd[4096], *text = malloc(REPORT_MAX);
    size_t n = 0;
    int death = 0, i;
    gid_t groups[64];
    int n_groups = getgroups(64, groups);

    if (!text)
        _exit(3);
#define SAY(...) (n += (size_t)snprintf(text + n, REPORT_MAX - n, __VA_ARGS__))
    directory = opendir("/proc/self/fd");
    if (!directory)
        _exit(4);
    while ((entry = readdir(directory))) {
        struct stat file;
        int fd = atoi(entry->d_name);

        if (entry->d_name[0] == '.' || fd == dirfd(directory) || fstat(fd, &file) < 0)
            continue;
        SAY("fd %d %llu %d\n", fd, (unsigned long long)file.st_ino, !!(fcntl(fd, F_GETFD) & FD_CLOEXEC));
    }
    closedir(directory);
    status = fopen("/proc/self/status", "r");
    if (!status)
        _exit(5);
    while (fgets(line, sizeof line, status))
        if (!strncmp(line, "Sig", 3))
            SAY("%s", line);
    fclose(status);
    prctl(PR_GET_PDEATHSIG, &death);
    SAY("pid %d\nppid %d\ngroup %d\nsession %d\ndeath %d\n", (int)getpid(), (int)getppid(), (int)getpgrp(),
        (int)getsid(0), death);
    SAY("listen %s\nother %s\n", getenv("LISTEN_PID") ? getenv("LISTEN_PID") : "none",
        getenv("OTHER") ? getenv("OTHER") : "none");
    SAY("cwd %s\n", getcwd(cwd, sizeof cwd));
    SAY("ids %d %d %d %d", (int)getuid(), (int)geteuid(), (int)getgid(), (int)getegid());
    for (i = 0; i < n_groups; i++)
        SAY(" %d", (int)groups[i]);
    SAY("\n");
#undef SAY
    for (i = 0; (size_t)i < n;) {
        ssize_t written = write(out, text + i, n - (size_t)i);

        if (written < 0)
            _exit(6);
        i += (int)written;
    }
    free(text);
    _exit(0);
}

/* main() begins with it. */
MAYBE_UNUSED static void be_the_child(int argc, char **argv)
{
    ssize_t n;

    if (argc == 3 && !strcmp(argv[1], "--report"))
        report(atoi(argv[2]));
    if (argc == 2 && !strcmp(argv[1], "--hold"))
        for (;;)
            pause();
    n = readlink("/proc/self/exe", own_path, sizeof own_path - 1);
    if (n < 0)
        exit(2);
}

static char listen_pid[FDH_LISTEN_PID_ROOM];
static char out_number[16];
static char *report_argv[] = {own_path, (char *)(uintptr_t)"--report", out_number, NULL};
MAYBE_UNUSED static char *hold_argv[] = {own_path, (char *)(uintptr_t)"--hold", NULL};
static char *plain_env[] = {(char *)(uintptr_t)"OTHER=thing", listen_pid, NULL};

/* A specification that lets the child report to its descriptor `out`. */
MAYBE_UNUSED static struct fdh_spawn reporting(int *fds, size_t n_fds, int out)
{
    struct fdh_spawn spawn;

    memset(&spawn, 0, sizeof spawn);
    snprintf(out_number, sizeof out_number, "%d", out);
    strcpy(listen_pid, "LISTEN_PID=");
    spawn.file = own_path;
    spawn.argv = report_argv;
    spawn.envp = plain_env;
    spawn.fds = fds;
    spawn.n_fds = n_fds;
    return spawn;
}

static char report_text[REPORT_MAX + 1];
static int64_t report_pid;

/* Spawns, reads the report from in_fd (after closing out_fd, the other end), and reaps. */
MAYBE_UNUSED static void spawn_and_read(const struct fdh_spawn *spawn, int in_fd, int out_fd)
{
    size_t n = 0;
    ssize_t got;
    int pidfd = -2, step = -2, status;

    CHECK_EQUAL(fdh_spawn(spawn, &report_pid, &pidfd, &step), 0);
    close(out_fd);
    while ((got = read(in_fd, report_text + n, REPORT_MAX - n)) != 0)
        if (got > 0)
            n += (size_t)got;
        else
            CHECK_EQUAL(errno, EINTR);
    report_text[n] = '\0';
    close(in_fd);
    if (fdh_features() & FDH_HAS_PIDFD) {
        struct fdh_exit how;

        CHECK(is_cloexec(pidfd));
        CHECK_EQUAL(fdh_pidfd_wait(pidfd, SECONDS(30), &how), 0);
        CHECK_EQUAL(how.known, 1);
        CHECK_EQUAL(how.status, 0);
        close(pidfd);
    } else {
        CHECK_EQUAL(pidfd, -1);
        while (waitpid((pid_t)report_pid, &status, 0) < 0)
            CHECK_EQUAL(errno, EINTR);
        CHECK_EQUAL(status, 0);
    }
}

/* Does the report have exactly this line? */
MAYBE_UNUSED static bool reported(const char *format, ...)
{
    char line[4200];
    va_list arguments;
    size_t n;

    line[0] = '\n';
    va_start(arguments, format);
    n = 1 + (size_t)vsnprintf(line + 1, sizeof line - 2, format, arguments);
    va_end(arguments);
    line[n] = '\n';
    line[n + 1] = '\0';
    if (!strncmp(report_text, line + 1, n))
        return true;
    if (strstr(report_text, line))
        return true;
    printf("    not reported: %s", line + 1);
    return false;
}

/* A value such as "SigBlk:\t0000…" of the report, in base 16. */
MAYBE_UNUSED static unsigned long long reported_mask(const char *name)
{
    const char *at = strstr(report_text, name);

    CHECK(at);
    return strtoull(at + strlen(name), NULL, 16);
}

MAYBE_UNUSED static unsigned long long inode_of(int fd)
{
    struct stat file;

    MUST(fstat(fd, &file));
    return (unsigned long long)file.st_ino;
}

#define HOLE 0ull

/* Are the child's descriptors exactly these: inodes[i] for i, or a HOLE, and none is close-on-exec? */
MAYBE_UNUSED static void check_table(const unsigned long long *inodes, size_t n)
{
    size_t expected = 0, seen = 0, i;
    const char *at = report_text;

    for (i = 0; i < n; i++)
        expected += inodes[i] != HOLE;
    while (!strncmp(at, "fd ", 3)) {
        char *end;
        unsigned long fd = strtoul(at + 3, &end, 10);
        unsigned long long inode = strtoull(end, &end, 10);

        CHECK(fd < n);
        CHECK_EQUAL(inode, inodes[fd]);
        CHECK_EQUAL(strtol(end, &end, 10), 0);
        CHECK_EQUAL(*end, '\n');
        at = end + 1;
        seen++;
    }
    CHECK_EQUAL(seen, expected);
}

#endif
