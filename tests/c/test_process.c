/* test_process.c - processes by pidfd: children and strangers.
 *
 * SPDX-License-Identifier: MIT */
#include "check.h"

/* A child that lives until the returned descriptor is closed, and then exits with `status`. */
static pid_t living_child(int status, int *endp)
{
    int ends[2];
    char byte;
    pid_t pid;

    MUST(pipe2(ends, O_CLOEXEC));
    pid = fork_child();
    MUST(pid);
    if (!pid) {
        close(ends[1]);
        MUST(read(ends[0], &byte, 1));
        _exit(status);
    }
    close(ends[0]);
    *endp = ends[1];
    return pid;
}

/* A grandchild that is nobody's of ours, which ends when the descriptor is closed. */
static pid_t living_stranger(int *endp)
{
    int ends[2], names[2];
    pid_t pid, stranger = 0;

    MUST(pipe2(ends, O_CLOEXEC));
    MUST(pipe2(names, O_CLOEXEC));
    pid = fork_child();
    MUST(pid);
    if (!pid) {
        stranger = fork();
        MUST(stranger);
        if (stranger)
            _exit(0);
        stranger = getpid();
        close(ends[1]);
        MUST(write(names[1], &stranger, sizeof stranger));
        MUST(read(ends[0], &pid, 1));
        _exit(5);
    }
    reap_ok(pid);
    CHECK_EQUAL(read(names[0], &stranger, sizeof stranger), sizeof stranger);
    close(names[0]);
    close(names[1]);
    close(ends[0]);
    *endp = ends[1];
    return stranger;
}

static void a_childs_exit_status_is_told_once_it_ended(void)
{
    struct fdh_exit how;
    int end, pidfd = -1;
    int64_t deadline;
    pid_t pid;

    NEEDS(FDH_HAS_PIDFD);
    pid = living_child(7, &end);
    CHECK_EQUAL(fdh_pidfd_open(pid, &pidfd), 0);
    CHECK(is_cloexec(pidfd));
    CHECK_EQUAL(fdh_pidfd_wait(pidfd, 0, &how), FDH_AGAIN);
    deadline = MILLISECONDS(20);
    CHECK_EQUAL(fdh_pidfd_wait(pidfd, deadline, &how), FDH_AGAIN);
    CHECK(fdh_now() >= deadline);
    CHECK_EQUAL(how.known, 0);
    close(end);
    CHECK_EQUAL(fdh_pidfd_wait(pidfd, FDH_FOREVER, &how), 0);
    CHECK_EQUAL(how.known, 1);
    CHECK_EQUAL(how.status, 7);
    CHECK_EQUAL(how.signal, 0);
    CHECK(waitpid(pid, NULL, 0) == -1 && errno == ECHILD); /* reaped by it */
    CHECK_EQUAL(fdh_pidfd_wait(pidfd, 0, &how), 0);
    CHECK_EQUAL(how.known, 0);
    close(pidfd);
}

static void a_childs_death_by_signal_is_told(void)
{
    struct fdh_exit how;
    int end, pidfd = -1;

    NEEDS(FDH_HAS_PIDFD);
    CHECK_EQUAL(fdh_pidfd_open(living_child(0, &end), &pidfd), 0);
    CHECK_EQUAL(fdh_pidfd_signal(pidfd, 0), 0);
    CHECK_EQUAL(fdh_pidfd_signal(pidfd, 1000), -EINVAL);
    CHECK_EQUAL(fdh_pidfd_signal(pidfd, SIGUSR1), 0);
    CHECK_EQUAL(fdh_pidfd_wait(pidfd, SECONDS(20), &how), 0);
    CHECK_EQUAL(how.known, 1);
    CHECK_EQUAL(how.signal, SIGUSR1);
    CHECK_EQUAL(how.status, -1);
    CHECK_EQUAL(fdh_pidfd_signal(pidfd, 0), -ESRCH);
    close(pidfd);
    close(end);
}

static void of_a_stranger_only_the_end_is_known(void)
{
    struct fdh_exit how;
    int end, pidfd = -1;

    NEEDS(FDH_HAS_PIDFD);
    CHECK_EQUAL(fdh_pidfd_open(living_stranger(&end), &pidfd), 0);
    CHECK_EQUAL(fdh_pidfd_signal(pidfd, 0), 0);
    CHECK_EQUAL(fdh_pidfd_wait(pidfd, 0, &how), FDH_AGAIN);
    close(end);
    CHECK_EQUAL(fdh_pidfd_wait(pidfd, SECONDS(20), &how), 0);
    CHECK_EQUAL(how.known, 0);
    CHECK_EQUAL(how.status, -1);
    CHECK_EQUAL(how.signal, 0);
    close(pidfd);
}

static void a_child_reaped_elsewhere_is_gone_and_unknown(void)
{
    struct fdh_exit how;
    int end, pidfd = -1;
    pid_t pid;

    NEEDS(FDH_HAS_PIDFD);
    pid = living_child(0, &end);
    CHECK_EQUAL(fdh_pidfd_open(pid, &pidfd), 0);
    close(end);
    reap_ok(pid);
    CHECK_EQUAL(fdh_pidfd_wait(pidfd, 0, &how), 0);
    CHECK_EQUAL(how.known, 0);
    CHECK_EQUAL(fdh_pidfd_signal(pidfd, 0), -ESRCH);
    close(pidfd);
}

static void waiting_survives_a_storm_of_signals(void)
{
    struct fdh_exit how;
    int end, pidfd = -1;
    int64_t deadline;

    NEEDS(FDH_HAS_PIDFD);
    CHECK_EQUAL(fdh_pidfd_open(living_child(3, &end), &pidfd), 0);
    storm(500);
    deadline = MILLISECONDS(50);
    CHECK_EQUAL(fdh_pidfd_wait(pidfd, deadline, &how), FDH_AGAIN);
    CHECK(fdh_now() >= deadline);
    close(end);
    CHECK_EQUAL(fdh_pidfd_wait(pidfd, SECONDS(20), &how), 0);
    storm(0);
    CHECK_EQUAL(how.status, 3);
    CHECK(storm_count > 5);
    close(pidfd);
}

static void there_is_no_pidfd_of_nobody(void)
{
    static const int64_t wrong[] = {0, -1, INT64_MIN, INT64_MAX, 4194305};
    int pidfd;
    size_t i;

    NEEDS(FDH_HAS_PIDFD);
    TAINT(pidfd);
    for (i = 0; i < LENGTH(wrong); i++) {
        int rc = fdh_pidfd_open(wrong[i], &pidfd);

        CHECK(rc == -ESRCH || rc == -EINVAL);
    }
    CHECK(fdh_pidfd_open(((int64_t)1 << 32) + getpid(), &pidfd) < 0); /* not cut to 32 bits */
    CHECK_UNTOUCHED(pidfd);
}

static void an_id_names_the_process_and_not_the_descriptor(void)
{
    int end, first = -1, second = -1, own = -1;
    uint64_t ids[3] = {0, 0, 0};
    pid_t pid;

    NEEDS(FDH_HAS_PIDFD);
    pid = living_child(0, &end);
    CHECK_EQUAL(fdh_pidfd_open(pid, &first), 0);
    CHECK_EQUAL(fdh_pidfd_open(pid, &second), 0);
    CHECK_EQUAL(fdh_pidfd_open(getpid(), &own), 0);
    CHECK_EQUAL(fdh_pidfd_id(first, &ids[0]), 0);
    CHECK_EQUAL(fdh_pidfd_id(second, &ids[1]), 0);
    CHECK_EQUAL(fdh_pidfd_id(own, &ids[2]), 0);
    CHECK_EQUAL(ids[0], ids[1]);
    if (fdh_features() & FDH_HAS_PIDFD_ID)
        CHECK(ids[0] && ids[2] && ids[0] != ids[2]);
    else
        CHECK(!ids[0]);
    TAINT(ids);
    CHECK_EQUAL(fdh_pidfd_id(-1, ids), -EBADF);
    CHECK_UNTOUCHED(ids);
    close(first);
    close(second);
    close(own);
    close(end);
    reap_ok(pid);
}

/* Does fdh_pidfd_getfd bring a copy of descriptor `fd` of process pid, which is our `fd` as well? */
static void get_from(pid_t pid, int fd)
{
    int pidfd = -1, copy = -1;

    CHECK_EQUAL(fdh_pidfd_open(pid, &pidfd), 0);
    CHECK_EQUAL(fdh_pidfd_getfd(pidfd, fd, &copy), 0);
    CHECK(copy != fd);
    CHECK(same_file(copy, fd));
    CHECK(is_cloexec(copy));
    close(copy);
    TAINT(copy);
    CHECK_EQUAL(fdh_pidfd_getfd(pidfd, 15000, &copy), -EBADF);
    CHECK_EQUAL(fdh_pidfd_getfd(pidfd, -1, &copy), -EBADF);
    CHECK_UNTOUCHED(copy);
    close(pidfd);
}

static void descriptors_are_copied_out_of_children_and_strangers(void)
{
    int ends[2], end, pidfd = -1;
    struct fdh_exit how;
    pid_t pid;

    NEEDS(FDH_HAS_PIDFD_GETFD);
    MUST(pipe2(ends, O_CLOEXEC));
    pid = living_child(0, &end);
    get_from(pid, ends[0]);
    close(end);
    reap_ok(pid);
    pid = living_stranger(&end);
    get_from(pid, ends[1]);
    CHECK_EQUAL(fdh_pidfd_open(pid, &pidfd), 0);
    close(end);
    CHECK_EQUAL(fdh_pidfd_wait(pidfd, SECONDS(20), &how), 0);
    close(pidfd);
    close(ends[0]);
    close(ends[1]);
}

static void of_the_dead_no_descriptor_is_copied(void)
{
    int end, pidfd = -1, copy;
    pid_t pid;

    NEEDS(FDH_HAS_PIDFD_GETFD);
    pid = living_child(0, &end);
    CHECK_EQUAL(fdh_pidfd_open(pid, &pidfd), 0);
    close(end);
    reap_ok(pid);
    TAINT(copy);
    CHECK_EQUAL(fdh_pidfd_getfd(pidfd, 0, &copy), -ESRCH);
    CHECK_UNTOUCHED(copy);
    close(pidfd);
}

static void who_may_not_trace_may_not_copy(void)
{
    pid_t pid;

    NEEDS(FDH_HAS_PIDFD_GETFD);
    if (geteuid())
        SKIP("only root can become somebody else");
    pid = fork_child();
    MUST(pid);
    if (!pid) {
        int pidfd = -1, copy;

        TAINT(copy);
        MUST(setgid(65534));
        MUST(setuid(65534));
        CHECK_EQUAL(fdh_pidfd_open(getppid(), &pidfd), 0);
        CHECK_EQUAL(fdh_pidfd_getfd(pidfd, 0, &copy), -EPERM);
        CHECK_EQUAL(fdh_pidfd_signal(pidfd, 0), -EPERM);
        CHECK_UNTOUCHED(copy);
        _exit(0);
    }
    reap_ok(pid);
}

static void what_is_no_pidfd_is_an_error(void)
{
    struct fdh_exit how;
    int copy;

    NEEDS(FDH_HAS_PIDFD_GETFD);
    TAINT(how);
    TAINT(copy);
    CHECK_EQUAL(fdh_pidfd_wait(-1, 0, &how), -EBADF);
    CHECK_EQUAL(fdh_pidfd_signal(-1, 0), -EBADF);
    CHECK_EQUAL(fdh_pidfd_getfd(-1, 0, &copy), -EBADF);
    CHECK_UNTOUCHED(how);
    CHECK_UNTOUCHED(copy);
}

static void without_pidfds_every_call_says_so(void)
{
    struct fdh_exit how;
    uint64_t id;
    int fd;

    if (fdh_features() & FDH_HAS_PIDFD)
        SKIP("there are pidfds here");
    CHECK_EQUAL(fdh_pidfd_open(getpid(), &fd), -ENOSYS);
    CHECK_EQUAL(fdh_pidfd_getfd(0, 0, &fd), -ENOSYS);
    CHECK_EQUAL(fdh_pidfd_signal(0, 0), -ENOSYS);
    CHECK_EQUAL(fdh_pidfd_id(0, &id), -ENOSYS);
    CHECK_EQUAL(fdh_pidfd_wait(0, 0, &how), -ENOSYS);
}

int main(void)
{
    RUN(a_childs_exit_status_is_told_once_it_ended);
    RUN(a_childs_death_by_signal_is_told);
    RUN(of_a_stranger_only_the_end_is_known);
    RUN(a_child_reaped_elsewhere_is_gone_and_unknown);
    RUN(waiting_survives_a_storm_of_signals);
    RUN(there_is_no_pidfd_of_nobody);
    RUN(an_id_names_the_process_and_not_the_descriptor);
    RUN(descriptors_are_copied_out_of_children_and_strangers);
    RUN(of_the_dead_no_descriptor_is_copied);
    RUN(who_may_not_trace_may_not_copy);
    RUN(what_is_no_pidfd_is_an_error);
    RUN(without_pidfds_every_call_says_so);
    return check_summary();
}
