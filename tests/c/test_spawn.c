/* test_spawn.c - what a spawned program wakes up with.
 *
 * SPDX-License-Identifier: MIT */
#include "children.h"
#include <sys/resource.h>

static void no_descriptors_means_none(void)
{
    int64_t pid = 0;
    int pidfd = -1, step, status;
    struct fdh_spawn spawn = reporting(NULL, 0, 0);

    CHECK_EQUAL(fdh_spawn(&spawn, &pid, &pidfd, &step), 0);
    fdh_close(pidfd);
    MUST(waitpid((pid_t)pid, &status, 0)); /* it had nowhere to write to */
    CHECK(WIFEXITED(status));
    CHECK_EQUAL(WEXITSTATUS(status), 6);
}

static void the_table_is_as_asked_and_nothing_else_is_open(void)
{
    int ends[2], other[2], fds[4], leak = open("/", O_RDONLY | O_DIRECTORY); /* not close-on-exec, on purpose */
    unsigned long long wanted[4];
    struct fdh_spawn spawn = reporting(fds, 4, 3);

    MUST(leak);
    MUST(pipe2(ends, O_CLOEXEC));
    MUST(pipe2(other, O_CLOEXEC));
    fds[0] = other[0];
    fds[1] = -1;
    fds[2] = other[1];
    fds[3] = ends[1];
    wanted[0] = inode_of(other[0]);
    wanted[1] = HOLE;
    wanted[2] = inode_of(other[1]);
    wanted[3] = inode_of(ends[1]);
    spawn_and_read(&spawn, ends[0], ends[1]);
    check_table(wanted, 4);
    CHECK(is_cloexec(other[0])); /* ours is as it was */
    close(other[0]);
    close(other[1]);
    close(leak);
}

/* In a process of its own, whose descriptors 0 to 19 are twenty different pipes: any table made of those. */
static void check_permutation(unsigned seed)
{
    int fds[21], ends[2], pipes[20][2], i;
    unsigned long long wanted[21];
    struct fdh_spawn spawn = reporting(fds, 21, 20);
    unsigned random = seed * 2654435761u + 1;

    close(0);
    for (i = 0; i < 20; i++)
        MUST(pipe2(pipes[i], O_CLOEXEC));
    MUST(pipe2(ends, O_CLOEXEC));
    for (i = 0; i < 20; i++) {
        int high = fcntl(pipes[i][0], F_DUPFD_CLOEXEC, 100);

        MUST(high);
        close(pipes[i][0]);
        close(pipes[i][1]);
        pipes[i][0] = high;
    }
    for (i = 0; i < 2; i++) {
        int high = fcntl(ends[i], F_DUPFD_CLOEXEC, 200);

        MUST(high);
        close(ends[i]);
        ends[i] = high;
    }
    for (i = 0; i < 20; i++)
        if (i != 1 && i != 2) /* where failures are printed */
            MUST(dup3(pipes[i][0], i, O_CLOEXEC));
    for (i = 0; i < 20; i++) {
        random = random * 1664525u + 1013904223u;
        if (seed == 0)
            fds[i] = 19 - i; /* all backwards */
        else if (seed == 1)
            fds[i] = (i + 1) % 20; /* a ring */
        else if (seed == 2)
            fds[i] = 7; /* all the same */
        else if (seed == 3)
            fds[i] = i; /* as it is */
        else
            fds[i] = (random >> 16) % 5 ? (int)((random >> 20) % 20) : -1;
    }
    fds[20] = ends[1];
    for (i = 0; i < 21; i++)
        wanted[i] = fds[i] < 0 ? HOLE : inode_of(fds[i]);
    spawn_and_read(&spawn, ends[0], ends[1]);
    check_table(wanted, 21);
}

static void permutations_rings_duplicates_and_holes_arrive(void)
{
    unsigned seed;

    for (seed = 0; seed < 24; seed++) {
        pid_t pid = fork_child();

        MUST(pid);
        if (!pid) {
            check_permutation(seed);
            _exit(0);
        }
        reap_ok(pid);
    }
}

static void ten_thousand_descriptors_arrive(void)
{
    enum { MANY = 10000 };
    static int fds[MANY];
    static unsigned long long wanted[MANY];
    int ends[2], pipes[3][2], i;
    struct fdh_spawn spawn;
    struct rlimit limit;

    MUST(getrlimit(RLIMIT_NOFILE, &limit));
    if (limit.rlim_cur < MANY + 100)
        SKIP("RLIMIT_NOFILE is too low");
    MUST(pipe2(ends, O_CLOEXEC));
    for (i = 0; i < 3; i++)
        MUST(pipe2(pipes[i], O_CLOEXEC));
    for (i = 0; i < MANY; i++)
        fds[i] = i % 11 == 5 ? -1 : pipes[(i / 2) % 3][i % 2];
    fds[MANY - 1] = ends[1];
    for (i = 0; i < MANY; i++)
        wanted[i] = fds[i] < 0 ? HOLE : inode_of(fds[i]);
    spawn = reporting(fds, MANY, MANY - 1);
    spawn_and_read(&spawn, ends[0], ends[1]);
    check_table(wanted, MANY);
    for (i = 0; i < 3; i++) {
        close(pipes[i][0]);
        close(pipes[i][1]);
    }
}

/* Spawns with a table of one descriptor, the report's; `change` it first. */
static void spawn_simply(void (*change)(struct fdh_spawn *))
{
    int ends[2], fds[1];
    struct fdh_spawn spawn = reporting(fds, 1, 0);

    MUST(pipe2(ends, O_CLOEXEC));
    fds[0] = ends[1];
    if (change)
        change(&spawn);
    spawn_and_read(&spawn, ends[0], ends[1]);
}

static void the_pid_is_the_childs_and_so_is_listen_pid(void)
{
    spawn_simply(NULL);
    CHECK(reported("pid %lld", (long long)report_pid));
    CHECK(reported("ppid %d", (int)getpid()));
    CHECK(reported("listen %lld", (long long)report_pid));
    CHECK(reported("other thing"));
}

static void block_some(struct fdh_spawn *spawn)
{
    spawn->blocked_signals = 1ull << (SIGTERM - 1) | 1ull << (SIGINT - 1) | 1ull << (SIGRTMAX - 1);
}

static void the_signal_mask_is_as_asked_and_ours_stays(void)
{
    sigset_t ours, after;

    sigemptyset(&ours);
    sigaddset(&ours, SIGUSR2);
    MUST(sigprocmask(SIG_BLOCK, &ours, NULL));
    spawn_simply(NULL);
    CHECK_EQUAL(reported_mask("SigBlk:"), 0);
    spawn_simply(block_some);
    CHECK_EQUAL(reported_mask("SigBlk:"), 1ull << (SIGTERM - 1) | 1ull << (SIGINT - 1) | 1ull << (SIGRTMAX - 1));
    MUST(sigprocmask(SIG_SETMASK, NULL, &after));
    CHECK(sigismember(&after, SIGUSR2) && !sigismember(&after, SIGTERM));
    MUST(sigprocmask(SIG_UNBLOCK, &ours, NULL));
}

static void ignored_signals_are_default_again_in_the_child_only(void)
{
    struct sigaction now;
    int numbers[] = {SIGPIPE, SIGXFSZ, SIGHUP, SIGRTMAX}, i;

    for (i = 0; i < 4; i++)
        signal(numbers[i], SIG_IGN);
    signal(SIGUSR1, storm_handler);
    spawn_simply(NULL);
    CHECK_EQUAL(reported_mask("SigIgn:"), 0);
    for (i = 0; i < 4; i++) {
        MUST(sigaction(numbers[i], NULL, &now));
        CHECK(now.sa_handler == SIG_IGN);
        signal(numbers[i], SIG_DFL);
    }
    MUST(sigaction(SIGUSR1, NULL, &now));
    CHECK(now.sa_handler == storm_handler);
    signal(SIGUSR1, SIG_DFL);
}

static void own_group(struct fdh_spawn *spawn)
{
    spawn->own_group = 1;
}

static void own_session(struct fdh_spawn *spawn)
{
    spawn->own_group = 2;
}

static void group_and_session_are_ours_or_its_own(void)
{
    spawn_simply(NULL);
    CHECK(reported("group %d", (int)getpgrp()));
    CHECK(reported("session %d", (int)getsid(0)));
    spawn_simply(own_group);
    CHECK(reported("group %lld", (long long)report_pid));
    CHECK(reported("session %d", (int)getsid(0)));
    spawn_simply(own_session);
    CHECK(reported("group %lld", (long long)report_pid));
    CHECK(reported("session %lld", (long long)report_pid));
}

static void to_root(struct fdh_spawn *spawn)
{
    spawn->directory = "/";
}

static void the_directory_is_kept_or_as_asked(void)
{
    char cwd[4096];

    CHECK(getcwd(cwd, sizeof cwd));
    spawn_simply(NULL);
    CHECK(reported("cwd %s", cwd));
    spawn_simply(to_root);
    CHECK(reported("cwd /"));
}

static void become_somebody(struct fdh_spawn *spawn)
{
    static const uint32_t groups[] = {1234, 5678};

    spawn->set_identity = 1;
    spawn->uid = 4321;
    spawn->gid = 8765;
    spawn->groups = groups;
    spawn->n_groups = 2;
    spawn->death_signal = SIGUSR1;
}

static void the_identity_is_as_asked_and_the_death_signal_survives_it(void)
{
    if (geteuid())
        SKIP("only root can become somebody else");
    /* The program must be executable for others, all the way down; /proc/self/exe of a forked child would not be. */
    if (access("/usr/bin/id", X_OK) == 0) {
        static char *argv[] = {(char *)(uintptr_t)"id", NULL};
        struct fdh_spawn spawn = reporting(NULL, 0, 0);
        int ends[2], fds[3] = {-1, -1, -1};

        MUST(pipe2(ends, O_CLOEXEC));
        fds[1] = ends[1];
        spawn.file = "/usr/bin/id";
        spawn.argv = argv;
        spawn.fds = fds;
        spawn.n_fds = 3;
        become_somebody(&spawn);
        spawn_and_read(&spawn, ends[0], ends[1]);
        CHECK(reported("uid=4321 gid=8765 groups=8765,1234,5678"));
    } else {
        SKIP("there is no /usr/bin/id");
    }
    CHECK_EQUAL(getuid(), 0);
}

static void limits_mask_and_no_new_privileges_are_as_asked(void)
{
    static char *argv[] = {(char *)(uintptr_t)"sh", (char *)(uintptr_t)"-c",
                           (char *)(uintptr_t)"echo $(ulimit -n) $(ulimit -H -n); umask;"
                                              " grep NoNewPrivs /proc/self/status", NULL};
    static const struct fdh_limit limits[] = {{RLIMIT_NOFILE, 77, 88}, {RLIMIT_CORE, 0, FDH_UNLIMITED}};
    struct fdh_spawn spawn = reporting(NULL, 0, 0);
    struct rlimit core;
    int ends[2], fds[3] = {-1, -1, -1};

    MUST(getrlimit(RLIMIT_CORE, &core));
    MUST(pipe2(ends, O_CLOEXEC));
    fds[1] = ends[1];
    spawn.file = "/bin/sh";
    spawn.argv = argv;
    spawn.fds = fds;
    spawn.n_fds = 3;
    spawn.limits = limits;
    spawn.n_limits = core.rlim_max == RLIM_INFINITY ? 2 : 1;
    spawn.set_mask = 1;
    spawn.mask = 0;
    spawn.no_new_privileges = 1;
    spawn_and_read(&spawn, ends[0], ends[1]);
    CHECK(reported("77 88"));
    CHECK(reported("0000"));
    CHECK(reported("NoNewPrivs:\t1"));
    MUST(getrlimit(RLIMIT_NOFILE, &core));
    CHECK(core.rlim_cur != 77); /* ours are as they were */
}

static void raise_a_limit(struct fdh_spawn *spawn)
{
    static const struct fdh_limit limit = {RLIMIT_NOFILE, 1, 0}; /* soft above hard */

    spawn->limits = &limit;
    spawn->n_limits = 1;
}

static void nowhere(struct fdh_spawn *spawn)
{
    spawn->root = "/nowhere/at/all";
}

static void check_failure(void (*change)(struct fdh_spawn *), int error, int step)
{
    struct fdh_spawn spawn = reporting(NULL, 0, 0);
    int64_t pid;
    int pidfd, at = -1;

    change(&spawn);
    CHECK_EQUAL(fdh_spawn(&spawn, &pid, &pidfd, &at), error);
    CHECK_EQUAL(at, step);
    CHECK(waitpid(-1, NULL, WNOHANG) < 0); /* no child is left */
}

static void a_limit_or_a_root_that_can_not_be_had_is_told(void)
{
    check_failure(raise_a_limit, -EINVAL, FDH_STEP_LIMITS);
    check_failure(nowhere, -ENOENT, FDH_STEP_ROOT);
}

static uint64_t capabilities(const char *which)
{
    char line[256];
    unsigned long long found = 0;
    FILE *status = fopen("/proc/self/status", "r");

    CHECK(status != NULL);
    while (status && fgets(line, sizeof line, status))
        if (strncmp(line, which, strlen(which)) == 0)
            found = strtoull(line + strlen(which), NULL, 16);
    if (status)
        fclose(status);
    return found;
}

static void capabilities_that_are_given_up_are_gone_for_ever(void)
{
    const uint64_t kill = 1u << 5, setuid_too = 1u << 7;
    int status = 0;
    pid_t pid;

    if (geteuid())
        SKIP("only root has capabilities to give up");
    pid = fork();
    MUST(pid);
    if (pid == 0) {
        int fine = fdh_capabilities_limit(kill | setuid_too) == 0 && capabilities("CapEff:") == (kill | setuid_too) &&
                   capabilities("CapPrm:") == (kill | setuid_too) && capabilities("CapBnd:") == (kill | setuid_too) &&
                   capabilities("CapInh:") == 0 && capabilities("CapAmb:") == 0;
        fine = fine && fdh_capabilities_limit(~(uint64_t)0) == 0 && capabilities("CapEff:") == (kill | setuid_too);
        fine = fine && fdh_capabilities_limit(kill) == -EPERM; /* CAP_SETPCAP has gone, too */
        _exit(fine ? 0 : 1);
    }
    MUST(waitpid(pid, &status, 0));
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void die_too(struct fdh_spawn *spawn)
{
    spawn->death_signal = SIGTERM;
}

static void a_death_signal_is_set_only_when_asked(void)
{
    spawn_simply(NULL);
    CHECK(reported("death 0"));
    if (!(fdh_features() & FDH_HAS_PIDFD))
        SKIP("the rest is for Linux");
    spawn_simply(die_too);
    CHECK(reported("death %d", SIGTERM));
}

static void a_child_with_a_death_signal_ends_with_its_parent(void)
{
    int alive[2];
    char byte;
    pid_t parent;

    NEEDS(FDH_HAS_PIDFD);
    MUST(pipe2(alive, O_CLOEXEC));
    parent = fork_child();
    MUST(parent);
    if (!parent) {
        int fds[1] = {alive[1]}, pidfd, step;
        struct fdh_spawn spawn = reporting(fds, 1, 0);
        int64_t pid;

        spawn.argv = hold_argv;
        spawn.death_signal = SIGKILL;
        CHECK_EQUAL(fdh_spawn(&spawn, &pid, &pidfd, &step), 0);
        _exit(0);
    }
    close(alive[1]);
    reap_ok(parent);
    CHECK_EQUAL(poll(&(struct pollfd){alive[0], POLLIN, 0}, 1, 20000), 1);
    CHECK_EQUAL(read(alive[0], &byte, 1), 0);
    close(alive[0]);
}

static void a_storm_of_signals_disturbs_no_spawning(void)
{
    int i;

    storm(300);
    for (i = 0; i < 20; i++) {
        spawn_simply(block_some);
        CHECK(reported("listen %lld", (long long)report_pid));
    }
    storm(0);
    CHECK(storm_count > 0);
}

int main(int argc, char **argv)
{
    be_the_child(argc, argv);
    RUN(no_descriptors_means_none);
    RUN(the_table_is_as_asked_and_nothing_else_is_open);
    RUN(permutations_rings_duplicates_and_holes_arrive);
    RUN(ten_thousand_descriptors_arrive);
    RUN(the_pid_is_the_childs_and_so_is_listen_pid);
    RUN(the_signal_mask_is_as_asked_and_ours_stays);
    RUN(ignored_signals_are_default_again_in_the_child_only);
    RUN(group_and_session_are_ours_or_its_own);
    RUN(the_directory_is_kept_or_as_asked);
    RUN(the_identity_is_as_asked_and_the_death_signal_survives_it);
    RUN(limits_mask_and_no_new_privileges_are_as_asked);
    RUN(a_limit_or_a_root_that_can_not_be_had_is_told);
    RUN(capabilities_that_are_given_up_are_gone_for_ever);
    RUN(a_death_signal_is_set_only_when_asked);
    RUN(a_child_with_a_death_signal_ends_with_its_parent);
    RUN(a_storm_of_signals_disturbs_no_spawning);
    return check_summary();
}
