/* gates.h - gates for the C tests.
 *
 * SPDX-License-Identifier: MIT */
#ifndef GATES_H
#define GATES_H

#include "check.h"

#include <sys/mman.h>

MAYBE_UNUSED static struct fdh_counters counters_of(const struct fdh_gate *gate)
{
    struct fdh_counters counters;

    TAINT(counters);
    fdh_gate_counters(gate, &counters);
    return counters;
}

/* accepted == finished + forced + active, which holds whenever nobody is entering or leaving. */
MAYBE_UNUSED static void check_conserved(const struct fdh_gate *gate)
{
    struct fdh_counters counters = counters_of(gate);

    CHECK_EQUAL(counters.accepted, counters.finished + counters.forced + (uint64_t)counters.active);
    CHECK(counters.active >= 0);
    CHECK_EQUAL(counters.active, fdh_gate_active(gate));
}

/* A second handle on the same gate, as a process gets it that was handed the descriptors. */
MAYBE_UNUSED static int map_again(struct fdh_gate *copy, const struct fdh_gate *gate, bool read_only)
{
    return fdh_gate_map_consume(copy, fcntl(gate->memory_fd, F_DUPFD_CLOEXEC, 0), fcntl(gate->closed_fd, F_DUPFD_CLOEXEC, 0),
                                fcntl(gate->drained_fd, F_DUPFD_CLOEXEC, 0), fcntl(gate->room_fd, F_DUPFD_CLOEXEC, 0),
                                read_only);
}

/* Makes room_fd unreadable behind the gate's back. */
MAYBE_UNUSED static void forget_room(const struct fdh_gate *gate)
{
    char rest[8];

    while (read(gate->room_fd, rest, sizeof rest) > 0)
        ;
    CHECK(!is_readable(gate->room_fd));
}

MAYBE_UNUSED static struct fdh_slot_info slot_of(const struct fdh_gate *gate, uint32_t index)
{
    struct fdh_slot_info info;

    TAINT(info);
    CHECK_EQUAL(fdh_gate_slot_read(gate, index, &info), 0);
    return info;
}

/* The slot of a process, or FDH_GATE_SLOTS. */
MAYBE_UNUSED static uint32_t slot_index_of(const struct fdh_gate *gate, pid_t pid)
{
    uint32_t i;

    for (i = 0; i < FDH_GATE_SLOTS; i++)
        if (slot_of(gate, i).pid == pid)
            return i;
    return i;
}

#endif
