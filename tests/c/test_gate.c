/* test_gate.c - who may enter, how many are inside, and what the descriptors say of it.
 *
 * SPDX-License-Identifier: MIT */
#include "gates.h"

static struct fdh_gate gate;

static void a_new_gate_is_open_and_empty(void)
{
    struct fdh_counters counters, zero;

    CHECK_EQUAL(fdh_gate_create(&gate), 0);
    CHECK(!fdh_gate_is_closed(&gate));
    CHECK_EQUAL(fdh_gate_active(&gate), 0);
    CHECK_EQUAL(fdh_gate_limit(&gate), 0);
    counters = counters_of(&gate);
    memset(&zero, 0, sizeof zero);
    CHECK(!memcmp(&counters, &zero, sizeof zero));
    CHECK(gate.slot_index >= 0);
    CHECK_EQUAL(slot_of(&gate, (uint32_t)gate.slot_index).pid, getpid());
    CHECK(slot_of(&gate, (uint32_t)gate.slot_index).started > 0);
    CHECK(is_cloexec(gate.closed_fd) && is_cloexec(gate.drained_fd) && is_cloexec(gate.room_fd));
    CHECK(!is_readable(gate.closed_fd) && !is_readable(gate.drained_fd) && !is_readable(gate.room_fd));
    fdh_gate_deinit(&gate);
}

static void its_memory_can_not_shrink(void)
{
    NEEDS(FDH_HAS_MEMFD);
    CHECK_EQUAL(fdh_gate_create(&gate), 0);
    CHECK(is_cloexec(gate.memory_fd));
    CHECK_EQUAL(ftruncate(gate.memory_fd, 0), -1);
    CHECK_EQUAL(errno, EPERM);
    fdh_gate_deinit(&gate);
}

static void deinit_is_idempotent_and_harmless_on_zeroes(void)
{
    int before = open_fds();

    memset(&gate, 0, sizeof gate);
    fdh_gate_deinit(&gate);
    CHECK_EQUAL(open_fds(), before);
    CHECK_EQUAL(fdh_gate_create(&gate), 0);
    fdh_gate_deinit(&gate);
    CHECK(!gate.memory);
    fdh_gate_deinit(&gate);
    CHECK_EQUAL(open_fds(), before);
}

static void who_enters_is_counted_until_it_leaves(void)
{
    struct fdh_counters counters;

    CHECK_EQUAL(fdh_gate_create(&gate), 0);
    CHECK(fdh_gate_enter(&gate));
    CHECK(fdh_gate_enter(&gate));
    CHECK(fdh_gate_enter(&gate));
    CHECK_EQUAL(fdh_gate_active(&gate), 3);
    fdh_gate_leave(&gate);
    fdh_gate_leave_forced(&gate);
    counters = counters_of(&gate);
    CHECK_EQUAL(counters.accepted, 3);
    CHECK_EQUAL(counters.finished, 1);
    CHECK_EQUAL(counters.forced, 1);
    CHECK_EQUAL(counters.active, 1);
    CHECK_EQUAL(counters.refused, 0);
    check_conserved(&gate);
    fdh_gate_leave(&gate);
    fdh_gate_deinit(&gate);
}

static void a_closed_gate_refuses_and_counts_that(void)
{
    CHECK_EQUAL(fdh_gate_create(&gate), 0);
    CHECK_EQUAL(fdh_gate_close(&gate, 0), 0);
    CHECK(fdh_gate_is_closed(&gate));
    CHECK(!fdh_gate_enter(&gate));
    CHECK(!fdh_gate_enter(&gate));
    CHECK_EQUAL(counters_of(&gate).refused, 2);
    CHECK_EQUAL(counters_of(&gate).accepted, 0);
    CHECK_EQUAL(fdh_gate_active(&gate), 0);
    CHECK_EQUAL(fdh_gate_close(&gate, 0), 0);
    CHECK_EQUAL(fdh_gate_reopen(&gate), 0);
    CHECK(!fdh_gate_is_closed(&gate));
    CHECK(fdh_gate_enter(&gate));
    CHECK_EQUAL(fdh_gate_reopen(&gate), 0);
    fdh_gate_leave(&gate);
    check_conserved(&gate);
    fdh_gate_deinit(&gate);
}

static void the_closed_descriptor_has_the_level_of_the_state(void)
{
    int i;

    CHECK_EQUAL(fdh_gate_create(&gate), 0);
    for (i = 0; i < 3; i++) {
        CHECK(!is_readable(gate.closed_fd));
        CHECK_EQUAL(fdh_gate_close(&gate, 0), 0);
        CHECK_EQUAL(fdh_gate_close(&gate, 0), 0);
        CHECK(is_readable(gate.closed_fd));
        CHECK(is_readable(gate.closed_fd));
        CHECK_EQUAL(fdh_gate_reopen(&gate), 0);
    }
    CHECK(!is_readable(gate.closed_fd));
    fdh_gate_deinit(&gate);
}

static void the_drained_descriptor_is_readable_while_closed_and_empty(void)
{
    int i;

    CHECK_EQUAL(fdh_gate_create(&gate), 0);
    for (i = 0; i < 3; i++) {
        CHECK(fdh_gate_enter(&gate));
        CHECK(fdh_gate_enter(&gate));
        CHECK_EQUAL(fdh_gate_close(&gate, 0), 0);
        fdh_gate_leave(&gate);
        CHECK(!is_readable(gate.drained_fd));
        CHECK(!fdh_gate_enter(&gate));
        CHECK(!is_readable(gate.drained_fd));
        fdh_gate_leave_forced(&gate);
        CHECK(is_readable(gate.drained_fd));
        CHECK(!fdh_gate_enter(&gate));
        CHECK(is_readable(gate.drained_fd));
        CHECK_EQUAL(fdh_gate_reopen(&gate), 0);
        CHECK(!is_readable(gate.drained_fd));
        CHECK_EQUAL(fdh_gate_close(&gate, 0), 0);
        CHECK(is_readable(gate.drained_fd));
        CHECK_EQUAL(fdh_gate_reopen(&gate), 0);
    }
    CHECK(fdh_gate_enter(&gate));
    fdh_gate_leave(&gate);
    CHECK(!is_readable(gate.drained_fd));
    fdh_gate_deinit(&gate);
}

static void waiting_needs_both_closed_and_empty(void)
{
    int64_t deadline;

    CHECK_EQUAL(fdh_gate_create(&gate), 0);
    CHECK_EQUAL(fdh_gate_wait(&gate, 0), FDH_AGAIN);
    CHECK(fdh_gate_enter(&gate));
    CHECK_EQUAL(fdh_gate_close(&gate, 0), 0);
    deadline = MILLISECONDS(20);
    CHECK_EQUAL(fdh_gate_wait(&gate, deadline), FDH_AGAIN);
    CHECK(fdh_now() >= deadline);
    fdh_gate_leave(&gate);
    CHECK_EQUAL(fdh_gate_wait(&gate, 0), 0);
    CHECK_EQUAL(fdh_gate_wait(&gate, FDH_FOREVER), 0);
    fdh_gate_deinit(&gate);
}

static void a_limit_refuses_the_one_too_many(void)
{
    CHECK_EQUAL(fdh_gate_create(&gate), 0);
    CHECK_EQUAL(fdh_gate_set_limit(&gate, 2), 0);
    CHECK_EQUAL(fdh_gate_limit(&gate), 2);
    CHECK(fdh_gate_enter(&gate));
    CHECK(fdh_gate_enter(&gate));
    CHECK(!fdh_gate_enter(&gate));
    CHECK_EQUAL(counters_of(&gate).refused, 1);
    CHECK_EQUAL(counters_of(&gate).accepted, 2);
    CHECK_EQUAL(fdh_gate_active(&gate), 2);
    fdh_gate_leave(&gate);
    CHECK(fdh_gate_enter(&gate));
    CHECK_EQUAL(fdh_gate_set_limit(&gate, 1), 0); /* below what is inside: nobody is thrown out */
    CHECK_EQUAL(fdh_gate_active(&gate), 2);
    fdh_gate_leave(&gate);
    CHECK(!fdh_gate_enter(&gate));
    CHECK_EQUAL(fdh_gate_set_limit(&gate, 0), 0);
    CHECK(fdh_gate_enter(&gate));
    fdh_gate_leave(&gate);
    fdh_gate_leave(&gate);
    check_conserved(&gate);
    fdh_gate_deinit(&gate);
}

static void the_room_descriptor_tells_of_room_after_a_refusal(void)
{
    int i;

    CHECK_EQUAL(fdh_gate_create(&gate), 0);
    CHECK_EQUAL(fdh_gate_set_limit(&gate, 1), 0);
    for (i = 0; i < 3; i++) {
        CHECK(fdh_gate_enter(&gate));
        CHECK(!is_readable(gate.room_fd));
        CHECK(!fdh_gate_enter(&gate));
        CHECK(!is_readable(gate.room_fd));
        fdh_gate_leave(&gate);
        CHECK(is_readable(gate.room_fd));
        CHECK(is_readable(gate.room_fd));
        CHECK(fdh_gate_enter(&gate));
        fdh_gate_room_clear(&gate);
        CHECK(!is_readable(gate.room_fd)); /* it is full again */
        fdh_gate_leave(&gate);
        forget_room(&gate);
    }
    CHECK(fdh_gate_enter(&gate));
    CHECK(!fdh_gate_enter(&gate));
    CHECK_EQUAL(fdh_gate_set_limit(&gate, 2), 0);
    CHECK(is_readable(gate.room_fd)); /* a higher limit is room too */
    fdh_gate_leave(&gate);
    fdh_gate_deinit(&gate);
}

static void room_that_nobody_was_refused_is_not_told(void)
{
    CHECK_EQUAL(fdh_gate_create(&gate), 0);
    CHECK_EQUAL(fdh_gate_set_limit(&gate, 1), 0);
    CHECK(fdh_gate_enter(&gate));
    fdh_gate_leave(&gate);
    CHECK(!is_readable(gate.room_fd));
    fdh_gate_deinit(&gate);
}

static void waiting_for_room_ends_with_room_or_with_the_gate(void)
{
    int64_t deadline;

    CHECK_EQUAL(fdh_gate_create(&gate), 0);
    CHECK_EQUAL(fdh_gate_wait_room(&gate, 0), 0);
    CHECK_EQUAL(fdh_gate_set_limit(&gate, 1), 0);
    CHECK_EQUAL(fdh_gate_wait_room(&gate, 0), 0);
    CHECK(fdh_gate_enter(&gate));
    CHECK_EQUAL(fdh_gate_wait_room(&gate, 0), FDH_AGAIN);
    deadline = MILLISECONDS(20);
    CHECK_EQUAL(fdh_gate_wait_room(&gate, deadline), FDH_AGAIN);
    CHECK(fdh_now() >= deadline);
    CHECK_EQUAL(fdh_gate_close(&gate, 0), 0);
    CHECK_EQUAL(fdh_gate_wait_room(&gate, 0), 0);
    CHECK_EQUAL(fdh_gate_reopen(&gate), 0);
    CHECK_EQUAL(fdh_gate_wait_room(&gate, 0), FDH_AGAIN);
    fdh_gate_leave(&gate);
    CHECK_EQUAL(fdh_gate_wait_room(&gate, 0), 0);
    fdh_gate_deinit(&gate);
}

static void idle_and_detached_are_gauges(void)
{
    struct fdh_counters counters;

    CHECK_EQUAL(fdh_gate_create(&gate), 0);
    fdh_gate_note(&gate, 2, 5);
    fdh_gate_note(&gate, -1, 0);
    fdh_gate_note(&gate, 0, -2);
    counters = counters_of(&gate);
    CHECK_EQUAL(counters.idle, 1);
    CHECK_EQUAL(counters.detached, 3);
    counters = slot_of(&gate, (uint32_t)gate.slot_index).counters;
    CHECK_EQUAL(counters.idle, 1);
    fdh_gate_deinit(&gate);
}

static void there_are_as_many_slots_as_the_header_says(void)
{
    struct fdh_slot_info info;
    uint64_t settled;

    CHECK_EQUAL(fdh_gate_create(&gate), 0);
    TAINT(info);
    TAINT(settled);
    CHECK_EQUAL(fdh_gate_slot_read(&gate, FDH_GATE_SLOTS, &info), -ERANGE);
    CHECK_EQUAL(fdh_gate_slot_read(&gate, UINT32_MAX, &info), -ERANGE);
    CHECK_EQUAL(fdh_gate_settle(&gate, FDH_GATE_SLOTS, getpid(), &settled), -ERANGE);
    CHECK_UNTOUCHED(info);
    CHECK_EQUAL(fdh_gate_slot_read(&gate, FDH_GATE_SLOTS - 1, &info), 0);
    CHECK_EQUAL(info.pid, 0);
    CHECK_EQUAL(fdh_gate_settle(&gate, (uint32_t)gate.slot_index, getpid() + 1, &settled), -ESRCH);
    CHECK_EQUAL(fdh_gate_settle(&gate, FDH_GATE_SLOTS - 1, getpid(), &settled), -ESRCH);
    CHECK(fdh_gate_settle(&gate, FDH_GATE_SLOTS - 1, 0, &settled) < 0);
    CHECK_UNTOUCHED(settled);
    fdh_gate_deinit(&gate);
}

static void creation_without_free_descriptors_leaves_nothing(void)
{
    int room;

    for (room = 0; room < (fdh_features() & FDH_HAS_MEMFD ? 4 : 5); room++) {
        rlim_t limit = nofile_leave(room);
        int rc = fdh_gate_create(&gate);

        nofile_set(limit);
        CHECK_EQUAL(rc, -EMFILE);
    }
}

int main(void)
{
    RUN(a_new_gate_is_open_and_empty);
    RUN(its_memory_can_not_shrink);
    RUN(deinit_is_idempotent_and_harmless_on_zeroes);
    RUN(who_enters_is_counted_until_it_leaves);
    RUN(a_closed_gate_refuses_and_counts_that);
    RUN(the_closed_descriptor_has_the_level_of_the_state);
    RUN(the_drained_descriptor_is_readable_while_closed_and_empty);
    RUN(waiting_needs_both_closed_and_empty);
    RUN(a_limit_refuses_the_one_too_many);
    RUN(the_room_descriptor_tells_of_room_after_a_refusal);
    RUN(room_that_nobody_was_refused_is_not_told);
    RUN(waiting_for_room_ends_with_room_or_with_the_gate);
    RUN(idle_and_detached_are_gauges);
    RUN(there_are_as_many_slots_as_the_header_says);
    RUN(creation_without_free_descriptors_leaves_nothing);
    return check_summary();
}
