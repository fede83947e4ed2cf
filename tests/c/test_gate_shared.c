/* test_gate_shared.c - one gate in several processes: mapping, slots, death, and memory that is not to be trusted.
 *
 * SPDX-License-Identifier: MIT */
#include "gates.h"

static struct fdh_gate gate, other;

static void a_mapped_gate_is_the_same_gate(void)
{
    NEEDS(FDH_HAS_MEMFD);
    CHECK_EQUAL(fdh_gate_create(&gate), 0);
    CHECK_EQUAL(map_again(&other, &gate, false), 0);
    CHECK_EQUAL(other.slot_index, -1);
    CHECK_EQUAL(fdh_gate_attach(&other), 0);
    CHECK(other.slot_index != gate.slot_index);
    CHECK(fdh_gate_enter(&gate));
    CHECK(fdh_gate_enter(&other));
    CHECK_EQUAL(fdh_gate_active(&gate), 2);
    CHECK_EQUAL(fdh_gate_close(&other, 0), 0);
    CHECK(!fdh_gate_enter(&gate));
    CHECK(is_readable(gate.closed_fd));
    fdh_gate_leave(&gate);
    fdh_gate_leave(&other);
    CHECK(is_readable(gate.drained_fd));
    CHECK_EQUAL(counters_of(&gate).accepted, 2);
    fdh_gate_deinit(&other);
    CHECK_EQUAL(counters_of(&gate).accepted, 2); /* totals stay when a slot is given back */
    check_conserved(&gate);
    fdh_gate_deinit(&gate);
}

static void a_read_only_gate_can_be_read_and_nothing_else(void)
{
    char path[64];
    int fd;

    NEEDS(FDH_HAS_MEMFD);
    CHECK_EQUAL(fdh_gate_create(&gate), 0);
    CHECK(fdh_gate_enter(&gate));
    snprintf(path, sizeof path, "/proc/self/fd/%d", gate.memory_fd);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    MUST(fd);
    CHECK_EQUAL(fdh_gate_map_consume(&other, fd, -1, -1, -1, true), 0);
    CHECK_EQUAL(fdh_gate_active(&other), 1);
    CHECK_EQUAL(counters_of(&other).accepted, 1);
    CHECK_EQUAL(slot_of(&other, (uint32_t)gate.slot_index).pid, getpid());
    CHECK(!fdh_gate_is_closed(&other));
    CHECK_EQUAL(fdh_gate_limit(&other), 0);
    CHECK_EQUAL(fdh_gate_close(&other, 0), -EINVAL);
    CHECK(fdh_gate_reopen(&other) < 0);
    CHECK(fdh_gate_set_limit(&other, 1) < 0);
    CHECK(!fdh_gate_is_closed(&gate));
    CHECK(fdh_gate_enter(&gate));
    fdh_gate_deinit(&other);
    CHECK(!is_open(fd));
    fdh_gate_leave(&gate);
    fdh_gate_leave(&gate);
    fdh_gate_deinit(&gate);
}

static void slots_run_out_and_come_back(void)
{
    static struct fdh_gate handles[FDH_GATE_SLOTS];
    uint32_t i;

    NEEDS(FDH_HAS_MEMFD);
    CHECK_EQUAL(fdh_gate_create(&gate), 0);
    for (i = 0; i < FDH_GATE_SLOTS; i++)
        CHECK_EQUAL(fdh_gate_map_consume(&handles[i], fcntl(gate.memory_fd, F_DUPFD_CLOEXEC, 0), -1, -1, -1, false), 0);
    for (i = 0; i < FDH_GATE_SLOTS - 1; i++)
        CHECK_EQUAL(fdh_gate_attach(&handles[i]), 0);
    CHECK_EQUAL(fdh_gate_attach(&handles[i]), -ENOSPC);
    CHECK_EQUAL(handles[i].slot_index, -1);
    fdh_gate_deinit(&handles[40]);
    CHECK_EQUAL(fdh_gate_attach(&handles[i]), 0);
    for (i = 0; i < FDH_GATE_SLOTS; i++)
        fdh_gate_deinit(&handles[i]);
    fdh_gate_deinit(&gate);
}

static void a_forked_child_attaches_for_itself(void)
{
    pid_t pid;

    CHECK_EQUAL(fdh_gate_create(&gate), 0);
    pid = fork_child();
    MUST(pid);
    if (!pid) {
        int32_t parents = gate.slot_index;

        CHECK_EQUAL(fdh_gate_attach(&gate), 0);
        CHECK(gate.slot_index != parents);
        CHECK(fdh_gate_enter(&gate));
        fdh_gate_leave(&gate);
        CHECK(fdh_gate_enter(&gate));
        fdh_gate_leave_forced(&gate);
        fdh_gate_deinit(&gate);
        _exit(0);
    }
    reap_ok(pid);
    CHECK_EQUAL(counters_of(&gate).accepted, 2);
    CHECK_EQUAL(counters_of(&gate).forced, 1);
    CHECK_EQUAL(slot_index_of(&gate, pid), FDH_GATE_SLOTS);
    CHECK(slot_index_of(&gate, getpid()) < FDH_GATE_SLOTS);
    check_conserved(&gate);
    fdh_gate_deinit(&gate);
}

static void a_child_that_does_not_attach_takes_no_slot_away(void)
{
    pid_t pid;

    CHECK_EQUAL(fdh_gate_create(&gate), 0);
    pid = fork_child();
    MUST(pid);
    if (!pid) {
        fdh_gate_deinit(&gate);
        _exit(0);
    }
    reap_ok(pid);
    CHECK_EQUAL(slot_of(&gate, (uint32_t)gate.slot_index).pid, getpid());
    CHECK(fdh_gate_enter(&gate));
    fdh_gate_leave(&gate);
    fdh_gate_deinit(&gate);
}

/* A child that enters n times, closes the gate if it is told to, and is killed. */
static pid_t die_inside(int n, bool close_too)
{
    int ends[2];
    char byte;
    pid_t pid;

    MUST(pipe2(ends, O_CLOEXEC));
    pid = fork_child();
    MUST(pid);
    if (!pid) {
        CHECK_EQUAL(fdh_gate_attach(&gate), 0);
        fdh_gate_note(&gate, 1, 1);
        while (n--)
            CHECK(fdh_gate_enter(&gate));
        if (close_too)
            CHECK_EQUAL(fdh_gate_close(&gate, 0), 0);
        MUST(write(ends[1], "x", 1));
        for (;;)
            pause();
    }
    CHECK_EQUAL(read(ends[0], &byte, 1), 1);
    close(ends[0]);
    close(ends[1]);
    reap_killed(pid);
    return pid;
}

static void the_dead_are_settled_once(void)
{
    struct fdh_counters counters;
    uint64_t settled = 0;
    uint32_t index;
    pid_t pid;

    CHECK_EQUAL(fdh_gate_create(&gate), 0);
    pid = die_inside(3, false);
    CHECK_EQUAL(fdh_gate_active(&gate), 3);
    index = slot_index_of(&gate, pid);
    CHECK_EQUAL(fdh_gate_settle(&gate, index, pid, &settled), 0);
    CHECK_EQUAL(settled, 3);
    TAINT(settled);
    CHECK_EQUAL(fdh_gate_settle(&gate, index, pid, &settled), -ESRCH);
    CHECK_UNTOUCHED(settled);
    counters = counters_of(&gate);
    CHECK_EQUAL(counters.forced, 3);
    CHECK_EQUAL(counters.active, 0);
    CHECK_EQUAL(counters.idle, 0);
    CHECK_EQUAL(counters.detached, 0);
    CHECK_EQUAL(slot_of(&gate, index).pid, 0);
    check_conserved(&gate);
    fdh_gate_deinit(&gate);
}

static void settling_the_last_one_wakes_who_waits_for_the_drain(void)
{
    uint64_t settled;
    pid_t pid;

    CHECK_EQUAL(fdh_gate_create(&gate), 0);
    pid = die_inside(1, true);
    CHECK(fdh_gate_is_closed(&gate));
    CHECK(is_readable(gate.closed_fd));
    CHECK(!is_readable(gate.drained_fd));
    CHECK_EQUAL(fdh_gate_wait(&gate, 0), FDH_AGAIN);
    CHECK_EQUAL(fdh_gate_settle(&gate, slot_index_of(&gate, pid), pid, &settled), 0);
    CHECK(is_readable(gate.drained_fd));
    CHECK_EQUAL(fdh_gate_wait(&gate, 0), 0);
    fdh_gate_deinit(&gate);
}

static void settling_makes_room_below_the_limit(void)
{
    uint64_t settled;
    pid_t pid;

    CHECK_EQUAL(fdh_gate_create(&gate), 0);
    CHECK_EQUAL(fdh_gate_set_limit(&gate, 1), 0);
    pid = die_inside(1, false);
    CHECK(!fdh_gate_enter(&gate));
    CHECK(!is_readable(gate.room_fd));
    CHECK_EQUAL(fdh_gate_settle(&gate, slot_index_of(&gate, pid), pid, &settled), 0);
    CHECK(is_readable(gate.room_fd));
    CHECK(fdh_gate_enter(&gate));
    fdh_gate_leave(&gate);
    fdh_gate_deinit(&gate);
}

static void a_slot_with_somebody_inside_outlives_its_handle(void)
{
    uint64_t settled = 0;
    uint32_t index;

    NEEDS(FDH_HAS_MEMFD);
    CHECK_EQUAL(fdh_gate_create(&gate), 0);
    CHECK_EQUAL(map_again(&other, &gate, false), 0);
    CHECK_EQUAL(fdh_gate_attach(&other), 0);
    index = (uint32_t)other.slot_index;
    CHECK(fdh_gate_enter(&other));
    fdh_gate_deinit(&other);
    CHECK_EQUAL(fdh_gate_active(&gate), 1);
    CHECK_EQUAL(slot_of(&gate, index).pid, getpid());
    CHECK_EQUAL(fdh_gate_settle(&gate, index, getpid(), &settled), 0);
    CHECK_EQUAL(settled, 1);
    fdh_gate_deinit(&gate);
}

/* Tries to map a copy of a gate's memory, changed somehow; the descriptors must be gone afterwards. */
static int map_copy(off_t size, unsigned flip_at, unsigned seals)
{
    static unsigned char bytes[1 << 20];
    struct fdh_gate mapped;
    int first = next_fd(), fd = memfd_create("fdhandoff-test", MFD_CLOEXEC | MFD_ALLOW_SEALING), rc;
    struct stat status;

    MUST(fd);
    MUST(fstat(gate.memory_fd, &status));
    CHECK(status.st_size <= (off_t)sizeof bytes);
    CHECK_EQUAL(pread(gate.memory_fd, bytes, (size_t)status.st_size, 0), status.st_size);
    if (flip_at < sizeof bytes)
        bytes[flip_at] ^= 0xff;
    CHECK_EQUAL(write(fd, bytes, (size_t)status.st_size), status.st_size);
    MUST(ftruncate(fd, status.st_size + size));
    if (seals)
        MUST(fcntl(fd, F_ADD_SEALS, seals));
    rc = fdh_gate_map_consume(&mapped, fd, dup(0), dup(0), dup(0), false);
    if (rc == 0)
        fdh_gate_deinit(&mapped);
    CHECK_EQUAL(next_fd(), first);
    return rc;
}

static void memory_that_is_no_gate_is_refused_and_all_is_closed(void)
{
    int ends[2], first, rc;

    NEEDS(FDH_HAS_MEMFD);
    CHECK_EQUAL(fdh_gate_create(&gate), 0);
    CHECK_EQUAL(map_copy(0, UINT32_MAX, F_SEAL_SHRINK | F_SEAL_GROW), 0);     /* the copy itself would do */
    CHECK_EQUAL(map_copy(0, UINT32_MAX, 0), -EBADMSG);                        /* could shrink */
    CHECK_EQUAL(map_copy(0, UINT32_MAX, F_SEAL_GROW), -EBADMSG);              /* could shrink */
    CHECK_EQUAL(map_copy(-1, UINT32_MAX, F_SEAL_SHRINK), -EBADMSG);           /* too small */
    CHECK_EQUAL(map_copy(-4096, UINT32_MAX, F_SEAL_SHRINK), -EBADMSG);
    CHECK_EQUAL(map_copy(0, 0, F_SEAL_SHRINK | F_SEAL_GROW), -EBADMSG);       /* wrong magic */
    CHECK_EQUAL(map_copy(0, 8, F_SEAL_SHRINK | F_SEAL_GROW), -EBADMSG);       /* another ABI */
    first = next_fd();
    MUST(pipe2(ends, O_CLOEXEC));
    CHECK_EQUAL(fdh_gate_map_consume(&other, ends[0], ends[1], dup(0), -1, false), -EBADMSG);
    CHECK_EQUAL(next_fd(), first);
    rc = fdh_gate_map_consume(&other, -1, dup(0), -1, -1, true);
    CHECK_EQUAL(rc, -EBADF);
    CHECK_EQUAL(next_fd(), first);
    fdh_gate_deinit(&gate);
}

static void without_shared_memory_mapping_consumes_and_says_so(void)
{
    if (fdh_features() & FDH_HAS_MEMFD)
        SKIP("there is shared memory here");
    CHECK_EQUAL(fdh_gate_map_consume(&other, dup(0), dup(0), dup(0), dup(0), false), -ENOSYS);
}

int main(void)
{
    RUN(a_mapped_gate_is_the_same_gate);
    RUN(a_read_only_gate_can_be_read_and_nothing_else);
    RUN(slots_run_out_and_come_back);
    RUN(a_forked_child_attaches_for_itself);
    RUN(a_child_that_does_not_attach_takes_no_slot_away);
    RUN(the_dead_are_settled_once);
    RUN(settling_the_last_one_wakes_who_waits_for_the_drain);
    RUN(settling_makes_room_below_the_limit);
    RUN(a_slot_with_somebody_inside_outlives_its_handle);
    RUN(memory_that_is_no_gate_is_refused_and_all_is_closed);
    RUN(without_shared_memory_mapping_consumes_and_says_so);
    return check_summary();
}
