/* test_gate_killed.c - SIGKILL at one instruction after another of each thing that a process does with a gate. Whatever
 * it leaves behind, settling its slot must put right: counts, descriptors, and those who wait for them.
 *
 * SPDX-License-Identifier: MIT */
#include "stepping.h"

static struct fdh_gate gate;
static pid_t dead_pid;

static void enter(void)
{
    fdh_gate_enter(&gate);
}

static void leave(void)
{
    fdh_gate_leave(&gate);
}

static void leave_forced(void)
{
    fdh_gate_leave_forced(&gate);
}

static void close_gate(void)
{
    fdh_gate_close(&gate, 0);
}

static void reopen(void)
{
    fdh_gate_reopen(&gate);
}

static void settle_the_other_dead(void)
{
    uint64_t settled;

    fdh_gate_settle(&gate, slot_index_of(&gate, dead_pid), dead_pid, &settled);
}

/* A child that attaches, enters, stops, does it, and stops again. */
static pid_t start(void (*action)(void))
{
    pid_t pid = fork_child();

    MUST(pid);
    if (!pid) {
        CHECK_EQUAL(fdh_gate_attach(&gate), 0);
        if (!fdh_gate_is_closed(&gate))
            CHECK(fdh_gate_enter(&gate));
        wait_for_steps();
        action();
        raise(SIGSTOP);
        _exit(0);
    }
    await_stop(pid);
    return pid;
}

static void settle(pid_t pid)
{
    uint64_t settled;
    uint32_t index = slot_index_of(&gate, pid);

    if (index < FDH_GATE_SLOTS)
        CHECK_EQUAL(fdh_gate_settle(&gate, index, pid, &settled), 0);
    CHECK_EQUAL(slot_index_of(&gate, pid), FDH_GATE_SLOTS);
}

static void check_all_is_well(void)
{
    bool closed = fdh_gate_is_closed(&gate);

    check_conserved(&gate);
    CHECK_EQUAL(fdh_gate_active(&gate), 0);
    CHECK_EQUAL(is_readable(gate.closed_fd), closed);
    CHECK_EQUAL(is_readable(gate.drained_fd), closed);
}

static void nothing(void)
{
}

/* `before` is done before the child starts, `inside` once it stands before its action, `check` after all was settled. */
static void kill_everywhere(void (*before)(void), void (*inside)(void), void (*action)(void), void (*check)(void))
{
    long total = 0, point, points = 1;

    CHECK_EQUAL(fdh_gate_create(&gate), 0);
    for (point = -1; point < points; point++) {
        pid_t pid;

        fdh_gate_set_limit(&gate, 0);
        CHECK_EQUAL(fdh_gate_reopen(&gate), 0);
        forget_room(&gate);
        before();
        pid = start(action);
        inside();
        if (point < 0) {
            total = step(pid, 10000000);
            points = points_of(total);
        } else {
            step(pid, total * point / points);
        }
        reap_killed(pid);
        settle(pid);
        check();
        check_all_is_well();
    }
    CHECK_EQUAL(fdh_gate_reopen(&gate), 0);
    check_all_is_well();
    fdh_gate_deinit(&gate);
}

static void close_it(void)
{
    CHECK_EQUAL(fdh_gate_close(&gate, 0), 0);
}

static void killed_while_entering(void)
{
    kill_everywhere(nothing, nothing, enter, nothing);
}

static void killed_while_being_refused(void)
{
    kill_everywhere(nothing, close_it, enter, nothing);
}

static void killed_while_leaving(void)
{
    kill_everywhere(nothing, nothing, leave, nothing);
    kill_everywhere(nothing, nothing, leave_forced, nothing);
}

static void killed_while_leaving_as_the_last_one(void)
{
    kill_everywhere(nothing, close_it, leave, nothing);
    kill_everywhere(nothing, close_it, leave_forced, nothing);
}

static void fill_it(void)
{
    CHECK_EQUAL(fdh_gate_set_limit(&gate, 1), 0);
}

static void want_room(void)
{
    CHECK(!fdh_gate_enter(&gate));
    CHECK(!is_readable(gate.room_fd));
}

static void check_room(void)
{
    CHECK(is_readable(gate.room_fd));
}

static void killed_while_making_room(void)
{
    kill_everywhere(fill_it, want_room, leave, check_room);
}

static void killed_while_closing(void)
{
    kill_everywhere(nothing, nothing, close_gate, nothing);
}

static void killed_while_reopening(void)
{
    kill_everywhere(close_it, nothing, reopen, nothing);
}

/* Leaves a dead process behind that was inside three times. */
static void let_one_die_inside(void)
{
    int ends[2];
    char byte;

    MUST(pipe2(ends, O_CLOEXEC));
    dead_pid = fork_child();
    MUST(dead_pid);
    if (!dead_pid) {
        CHECK_EQUAL(fdh_gate_attach(&gate), 0);
        CHECK(fdh_gate_enter(&gate) && fdh_gate_enter(&gate) && fdh_gate_enter(&gate));
        MUST(write(ends[1], "x", 1));
        for (;;)
            pause();
    }
    CHECK_EQUAL(read(ends[0], &byte, 1), 1);
    close(ends[0]);
    close(ends[1]);
    reap_killed(dead_pid);
}

static uint64_t forced_before;

static void let_one_die_inside_and_close(void)
{
    let_one_die_inside();
    forced_before = counters_of(&gate).forced;
    close_it();
}

static void check_settled_once(void)
{
    settle(dead_pid);
    CHECK_EQUAL(counters_of(&gate).forced, forced_before + 3);
}

static void killed_while_settling_another_dead_one(void)
{
    kill_everywhere(let_one_die_inside_and_close, nothing, settle_the_other_dead, check_settled_once);
}

int main(void)
{
    if (!can_step())
        return 0;
    RUN(killed_while_entering);
    RUN(killed_while_being_refused);
    RUN(killed_while_leaving);
    RUN(killed_while_leaving_as_the_last_one);
    RUN(killed_while_making_room);
    RUN(killed_while_closing);
    RUN(killed_while_reopening);
    RUN(killed_while_settling_another_dead_one);
    return check_summary();
}
