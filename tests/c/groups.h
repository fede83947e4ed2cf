/* groups.h - SO_REUSEPORT groups on the loopback, for the switch's tests.
 *
 * SPDX-License-Identifier: MIT */
#ifndef GROUPS_H
#define GROUPS_H

#include "loopback.h"

#define MEMBERS 8

struct group {
    int fds[MEMBERS];
    size_t n;
    uint16_t port;
    uint32_t counts[MEMBERS];
};

enum { ONE_STACK, DUAL_STACK };

/* n sockets that share a port; a socket's index in the group is its index here. */
MAYBE_UNUSED static struct group make_group(int family, int type, size_t n, int stack)
{
    struct group group;
    size_t i;

    memset(&group, 0, sizeof group);
    for (i = 0; i < n; i++) {
        union address address;
        socklen_t size = loopback(family, group.port, &address);
        int on = 1, fd = socket(family, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), v6only = stack == ONE_STACK;

        MUST(fd);
        MUST(setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on));
        if (family == AF_INET6)
            MUST(setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &v6only, sizeof v6only));
        if (stack == DUAL_STACK)
            address.v6.sin6_addr = in6addr_any;
        MUST(bind(fd, &address.any, size));
        if (type == SOCK_STREAM)
            MUST(listen(fd, 1024));
        group.port = port_of(fd);
        group.fds[group.n++] = fd;
    }
    return group;
}

MAYBE_UNUSED static void close_group(struct group *group)
{
    while (group->n)
        close(group->fds[--group->n]);
}

/* Accepts all that wait, and counts them by member. */
MAYBE_UNUSED static void take_in(struct group *group)
{
    int fds[64];
    size_t i, n, k;

    for (i = 0; i < group->n; i++) {
        int rc;

        do {
            rc = fdh_accept(NULL, group->fds[i], fds, LENGTH(fds), &n);
            CHECK(rc == 0 || rc == FDH_MORE);
            group->counts[i] += (uint32_t)n;
            for (k = 0; k < n; k++)
                close(fds[k]);
        } while (rc == FDH_MORE);
    }
}

/* Makes n connections, one after the other, and counts who got them. */
MAYBE_UNUSED static void offer(struct group *group, int family, uint32_t n)
{
    uint32_t i, sum = 0;

    memset(group->counts, 0, sizeof group->counts);
    for (i = 0; i < n; i++) {
        reset(tcp_connect(family, group->port, 0));
        if (i % 256 == 255)
            take_in(group);
    }
    take_in(group);
    for (i = 0; i < group->n; i++)
        sum += group->counts[i];
    CHECK_EQUAL(sum, n);
}

/* Old and new generation with one member each: 0 and 1. */
MAYBE_UNUSED static struct fdh_switch two_generations(int family, uint32_t new_per_2_32)
{
    struct fdh_switch choice;

    memset(&choice, 0, sizeof choice);
    choice.family = family;
    choice.old_share.count = 1;
    choice.new_share.base = 1;
    choice.new_share.count = 1;
    choice.new_per_2_32 = new_per_2_32;
    return choice;
}

MAYBE_UNUSED static void apply(const struct group *group, const struct fdh_switch *choice)
{
    struct fdh_instruction program[FDH_SWITCH_MAX];
    size_t n = 0;

    CHECK_EQUAL(fdh_switch_compile(choice, program, FDH_SWITCH_MAX, &n), 0);
    CHECK_EQUAL(fdh_switch_attach(group->fds[0], program, n), 0);
}

#endif
