/* test_spawn_errors.c - spawning that fails says at which step, and leaves no child.
 *
 * SPDX-License-Identifier: MIT */
#include "children.h"

static int table[1];

/* Spawns what `change` made of a good specification; expects an error at a step, and nothing left of it. */
static void fails(void (*change)(struct fdh_spawn *), int error, int wanted_step)
{
    struct fdh_spawn spawn;
    int64_t pid;
    int pidfd, step = -1, before = open_fds();

    table[0] = -1;
    spawn = reporting(table, 1, 0);
    change(&spawn);
    TAINT(pid);
    TAINT(pidfd);
    CHECK_EQUAL(fdh_spawn(&spawn, &pid, &pidfd, &step), error);
    CHECK_EQUAL(step, wanted_step);
    CHECK_UNTOUCHED(pid);
    CHECK_UNTOUCHED(pidfd);
    CHECK(waitpid(-1, NULL, WNOHANG | __WALL) == -1 && errno == ECHILD);
    CHECK_EQUAL(open_fds(), before);
}

static void no_such_file(struct fdh_spawn *spawn)
{
    spawn->file = "/nonexistent/program";
}

static void not_executable(struct fdh_spawn *spawn)
{
    spawn->file = "/etc/passwd";
}

static void a_directory(struct fdh_spawn *spawn)
{
    spawn->file = "/";
}

static void what_can_not_be_executed_fails_at_exec(void)
{
    fails(no_such_file, -ENOENT, FDH_STEP_EXEC);
    fails(not_executable, -EACCES, FDH_STEP_EXEC);
    fails(a_directory, -EACCES, FDH_STEP_EXEC);
}

static void relative(struct fdh_spawn *spawn)
{
    spawn->file = "sh"; /* in PATH, but not here */
}

static void path_is_not_searched(void)
{
    fails(relative, -ENOENT, FDH_STEP_EXEC);
}

static void no_such_directory(struct fdh_spawn *spawn)
{
    spawn->directory = "/nonexistent";
}

static void no_directory(struct fdh_spawn *spawn)
{
    spawn->directory = "/etc/passwd";
}

static void a_wrong_directory_fails_at_its_step(void)
{
    fails(no_such_directory, -ENOENT, FDH_STEP_DIRECTORY);
    fails(no_directory, -ENOTDIR, FDH_STEP_DIRECTORY);
}

static void closed_fd(struct fdh_spawn *spawn)
{
    spawn->fds[0] = 15000;
}

static void closed_fd_below_its_target(struct fdh_spawn *spawn)
{
    static int fds[60];
    int i;

    for (i = 0; i < 60; i++)
        fds[i] = -1;
    fds[59] = next_fd();
    spawn->fds = fds;
    spawn->n_fds = 60;
}

static void closed_fd_at_its_target(struct fdh_spawn *spawn)
{
    static int fds[60];
    int i;

    for (i = 0; i < 60; i++)
        fds[i] = -1;
    fds[59] = 59;
    spawn->fds = fds;
    spawn->n_fds = 60;
}

static void a_closed_descriptor_fails_at_the_table(void)
{
    fails(closed_fd, -EBADF, FDH_STEP_FDS);
    fails(closed_fd_below_its_target, -EBADF, FDH_STEP_FDS);
    fails(closed_fd_at_its_target, -EBADF, FDH_STEP_FDS);
}

static void beyond_the_limit(struct fdh_spawn *spawn)
{
    static int fds[200];
    int i;

    for (i = 0; i < 200; i++)
        fds[i] = -1;
    fds[199] = 0;
    spawn->fds = fds;
    spawn->n_fds = 200;
}

static void a_table_beyond_the_limit_fails_at_the_table(void)
{
    struct fdh_spawn spawn = reporting(table, 1, 0);
    struct rlimit limit;
    int64_t pid;
    int pidfd, step = -1, rc;

    beyond_the_limit(&spawn);
    MUST(getrlimit(RLIMIT_NOFILE, &limit));
    nofile_set(100);
    rc = fdh_spawn(&spawn, &pid, &pidfd, &step);
    nofile_set(limit.rlim_cur);
    CHECK(rc == -EBADF || rc == -EMFILE || rc == -EINVAL);
    CHECK_EQUAL(step, FDH_STEP_FDS);
}

static void stranger_identity(struct fdh_spawn *spawn)
{
    spawn->set_identity = 1;
    spawn->uid = 0;
    spawn->gid = 0;
}

static void not_enough_processes(struct fdh_spawn *spawn)
{
    (void)spawn;
}

static void who_may_not_become_another_fails_at_identity(void)
{
    pid_t pid;

    if (geteuid())
        SKIP("only root can become somebody else first");
    pid = fork_child();
    MUST(pid);
    if (!pid) {
        MUST(setgid(65534));
        MUST(setuid(65534));
        fails(stranger_identity, -EPERM, FDH_STEP_IDENTITY);
        _exit(0);
    }
    reap_ok(pid);
}

static void without_room_for_a_process_it_fails_at_fork(void)
{
    pid_t pid;

    if (geteuid())
        SKIP("only root can become somebody with a small RLIMIT_NPROC");
    pid = fork_child();
    MUST(pid);
    if (!pid) {
        struct rlimit none = {0, 0};

        MUST(setrlimit(RLIMIT_NPROC, &none));
        MUST(setgid(61234));
        MUST(setuid(61234));
        fails(not_enough_processes, -EAGAIN, FDH_STEP_FORK);
        _exit(0);
    }
    reap_ok(pid);
}

static void impossible_death(struct fdh_spawn *spawn)
{
    spawn->death_signal = 1000;
}

static void an_impossible_death_signal_is_refused(void)
{
    NEEDS(FDH_HAS_PIDFD);
    fails(impossible_death, -EINVAL, FDH_STEP_IDENTITY);
}

static void without_a_descriptor_for_the_pidfd_it_fails_at_fork_or_goes_without(void)
{
    struct fdh_spawn spawn;
    int64_t pid = 0;
    int pidfd = -1, step = -1, rc;
    rlim_t limit;

    table[0] = -1;
    spawn = reporting(table, 1, 0);
    limit = nofile_leave(0);
    rc = fdh_spawn(&spawn, &pid, &pidfd, &step);
    nofile_set(limit);
    if (rc == 0) {
        CHECK_EQUAL(pidfd, -1);
        MUST(waitpid((pid_t)pid, NULL, 0));
    } else {
        CHECK_EQUAL(rc, -EMFILE);
        CHECK_EQUAL(step, FDH_STEP_FORK);
    }
}

static void *spawn_many(void *argument)
{
    int round, *failures = argument;

    for (round = 0; round < 20; round++) {
        char *argv[] = {own_path, (char *)(uintptr_t)"--report", (char *)(uintptr_t)"1", NULL};
        char entry[FDH_LISTEN_PID_ROOM] = "LISTEN_PID=", text[8192];
        char *envp[] = {entry, NULL};
        struct fdh_spawn spawn;
        int fds[2] = {-1, -1}, ends[2], pidfd = -1, step, n_open = 0;
        int64_t pid = 0;
        size_t n = 0;
        ssize_t got;
        const char *at;

        MUST(pipe2(ends, O_CLOEXEC));
        memset(&spawn, 0, sizeof spawn);
        fds[1] = ends[1];
        spawn.file = own_path;
        spawn.argv = argv;
        spawn.envp = envp;
        spawn.fds = fds;
        spawn.n_fds = 2;
        if (fdh_spawn(&spawn, &pid, &pidfd, &step) < 0)
            (*failures)++;
        close(ends[1]);
        while ((got = read(ends[0], text + n, sizeof text - 1 - n)) > 0)
            n += (size_t)got;
        text[n] = '\0';
        close(ends[0]);
        fdh_close(pidfd);
        MUST(waitpid((pid_t)pid, NULL, 0));
        for (at = text; !strncmp(at, "fd ", 3); at = strchr(at, '\n') + 1)
            n_open++;
        at = strstr(text, "listen ");
        if (n_open != 1 || !at || atoll(at + 7) != pid)
            (*failures)++;
    }
    return NULL;
}

static void threads_spawn_at_once_without_mixing_anything_up(void)
{
    pthread_t threads[4];
    int failures[4] = {0, 0, 0, 0}, i;

    for (i = 0; i < 4; i++)
        CHECK_EQUAL(pthread_create(&threads[i], NULL, spawn_many, &failures[i]), 0);
    for (i = 0; i < 4; i++) {
        CHECK_EQUAL(pthread_join(threads[i], NULL), 0);
        CHECK_EQUAL(failures[i], 0);
    }
}

int main(int argc, char **argv)
{
    be_the_child(argc, argv);
    RUN(what_can_not_be_executed_fails_at_exec);
    RUN(path_is_not_searched);
    RUN(a_wrong_directory_fails_at_its_step);
    RUN(a_closed_descriptor_fails_at_the_table);
    RUN(a_table_beyond_the_limit_fails_at_the_table);
    RUN(who_may_not_become_another_fails_at_identity);
    RUN(without_room_for_a_process_it_fails_at_fork);
    RUN(an_impossible_death_signal_is_refused);
    RUN(without_a_descriptor_for_the_pidfd_it_fails_at_fork_or_goes_without);
    RUN(threads_spawn_at_once_without_mixing_anything_up);
    return check_summary();
}
