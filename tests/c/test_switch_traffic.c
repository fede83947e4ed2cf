/* test_switch_traffic.c - where the kernel sends real connections and datagrams under each program.
 *
 * SPDX-License-Identifier: MIT */
#include "groups.h"

static void all_to_one(int family, int stack)
{
    struct group group = make_group(family, SOCK_STREAM, 2, stack);
    struct fdh_switch choice = two_generations(family, 0);

    apply(&group, &choice);
    offer(&group, family, 200);
    CHECK_EQUAL(group.counts[0], 200);
    choice.new_per_2_32 = UINT32_MAX;
    apply(&group, &choice);
    offer(&group, family, 200);
    CHECK_EQUAL(group.counts[1], 200);
    choice.new_per_2_32 = 0; /* and back: a rollback */
    apply(&group, &choice);
    offer(&group, family, 200);
    CHECK_EQUAL(group.counts[0], 200);
    close_group(&group);
}

static void all_go_to_the_old_then_to_the_new_and_back(void)
{
    NEEDS(FDH_HAS_SWITCH);
    all_to_one(AF_INET, ONE_STACK);
    all_to_one(AF_INET6, ONE_STACK);
    all_to_one(AF_INET6, DUAL_STACK);
}

static void a_canary_of_five_percent_gets_five_percent(void)
{
    struct fdh_switch choice = two_generations(AF_INET, 214748365);
    struct group group;

    NEEDS(FDH_HAS_SWITCH);
    group = make_group(AF_INET, SOCK_STREAM, 2, ONE_STACK);
    apply(&group, &choice);
    offer(&group, AF_INET, 10000);
    CHECK(group.counts[1] >= 400 && group.counts[1] <= 600); /* 4.6 standard deviations */
    close_group(&group);
}

static void workers_share_what_their_generation_gets(void)
{
    struct fdh_switch choice = two_generations(AF_INET, UINT32_MAX);
    struct group group;
    int i;

    NEEDS(FDH_HAS_SWITCH);
    group = make_group(AF_INET, SOCK_STREAM, 6, ONE_STACK);
    choice.old_share.count = 3;
    choice.new_share.base = 3;
    choice.new_share.count = 3;
    apply(&group, &choice);
    offer(&group, AF_INET, 1500);
    for (i = 0; i < 3; i++)
        CHECK_EQUAL(group.counts[i], 0);
    for (i = 3; i < 6; i++)
        CHECK(group.counts[i] > 380 && group.counts[i] < 620);
    choice.new_per_2_32 = 2147483648u;
    apply(&group, &choice);
    offer(&group, AF_INET, 1500);
    for (i = 0; i < 6; i++)
        CHECK(group.counts[i] > 160 && group.counts[i] < 340);
    close_group(&group);
}

static void by_flow_workers_share_connections_too(void)
{
    struct fdh_switch choice = two_generations(AF_INET, 2147483648u);
    struct group group;
    int i;

    NEEDS(FDH_HAS_SWITCH);
    group = make_group(AF_INET, SOCK_STREAM, 4, ONE_STACK);
    choice.old_share.count = 2;
    choice.new_share.base = 2;
    choice.new_share.count = 2;
    choice.by_flow = 1;
    apply(&group, &choice);
    offer(&group, AF_INET, 1000);
    for (i = 0; i < 4; i++)
        CHECK(group.counts[i] > 100);
    close_group(&group);
}

/* A client socket that is bound to an address of the loopback and a port (0: any), but not connected yet. */
static int bound_client(int family, uint32_t v4_address, uint16_t port)
{
    union address address;
    socklen_t size = loopback(family, port, &address);
    int on = 1, fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);

    MUST(fd);
    MUST(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on));
    if (family == AF_INET)
        address.v4.sin_addr.s_addr = htonl(v4_address);
    MUST(bind(fd, &address.any, size));
    return fd;
}

/* Connects it, closes it, and tells which member got it. */
static int lands_at(struct group *group, int family, int client)
{
    union address address;
    socklen_t size = loopback(family, group->port, &address);
    size_t i;

    MUST(connect(client, &address.any, size));
    reset(client);
    memset(group->counts, 0, sizeof group->counts);
    take_in(group);
    for (i = 0; i < group->n; i++)
        if (group->counts[i])
            return (int)i;
    return -1;
}

/* Users go to the old one, the probe to the new one; what only resembles it is no probe. */
static void probe(int group_family, int stack, int wire_family)
{
    struct group group = make_group(group_family, SOCK_STREAM, 2, stack);
    struct fdh_switch choice = two_generations(group_family, 0);
    int client = bound_client(wire_family, INADDR_LOOPBACK, 0), other;
    uint16_t port = port_of(client);

    choice.probe_family = wire_family;
    choice.probe_port = port;
    choice.probe_index = 1;
    if (wire_family == AF_INET)
        memcpy(choice.probe_address, "\x7f\0\0\1", 4);
    else
        choice.probe_address[15] = 1;
    apply(&group, &choice);
    CHECK_EQUAL(lands_at(&group, wire_family, client), 1);
    offer(&group, wire_family, 50);
    CHECK_EQUAL(group.counts[0], 50);
    if (wire_family == AF_INET) {
        other = bound_client(AF_INET, INADDR_LOOPBACK + 1, port); /* the port, from another address */
        CHECK_EQUAL(lands_at(&group, AF_INET, other), 0);
    }
    if (stack == DUAL_STACK) { /* the port, over the other version */
        int other_family = wire_family == AF_INET ? AF_INET6 : AF_INET;

        other = bound_client(other_family, INADDR_LOOPBACK, port);
        CHECK_EQUAL(lands_at(&group, other_family, other), 0);
        offer(&group, other_family, 50);
        CHECK_EQUAL(group.counts[0], 50);
    }
    close_group(&group);
}

static void a_probe_over_ipv4_reaches_the_new_one(void)
{
    NEEDS(FDH_HAS_SWITCH);
    probe(AF_INET, ONE_STACK, AF_INET);
}

static void a_probe_over_ipv6_reaches_the_new_one(void)
{
    NEEDS(FDH_HAS_SWITCH);
    probe(AF_INET6, ONE_STACK, AF_INET6);
}

static void a_probe_reaches_a_dual_stack_listener_over_either(void)
{
    NEEDS(FDH_HAS_SWITCH);
    probe(AF_INET6, DUAL_STACK, AF_INET);
    probe(AF_INET6, DUAL_STACK, AF_INET6);
}

#define FLOWS 200

/* Which member holds a datagram of this source port? Each member's datagrams are read into `owner`. */
static uint32_t read_flows(struct group *group, int *owner)
{
    uint32_t n = 0;
    size_t i;

    for (i = 0; i < group->n; i++)
        for (;;) {
            union address from;
            socklen_t size = sizeof from;
            char byte;
            ssize_t got = recvfrom(group->fds[i], &byte, 1, MSG_DONTWAIT, &from.any, &size);
            uint16_t port;

            if (got < 0)
                break;
            port = ntohs(from.any.sa_family == AF_INET ? from.v4.sin_port : from.v6.sin6_port);
            CHECK(owner[port] == -1 || owner[port] == (int)i);
            owner[port] = (int)i;
            group->counts[i]++;
            n++;
        }
    return n;
}

static void datagrams(int group_family, int stack, int wire_family)
{
    static int owner[65536];
    struct group group = make_group(group_family, SOCK_DGRAM, 4, stack);
    struct fdh_switch choice = two_generations(group_family, 2147483648u);
    int clients[FLOWS], i, round;

    choice.by_flow = 1;
    choice.old_share.count = 2;
    choice.new_share.base = 2;
    choice.new_share.count = 2;
    apply(&group, &choice);
    for (i = 0; i < 65536; i++)
        owner[i] = -1;
    for (i = 0; i < FLOWS; i++) {
        union address address;
        socklen_t size = loopback(wire_family, group.port, &address);

        clients[i] = socket(wire_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        MUST(clients[i]);
        MUST(connect(clients[i], &address.any, size));
    }
    for (round = 0; round < 5; round++) {
        for (i = 0; i < FLOWS; i++)
            CHECK_EQUAL(send(clients[i], "x", 1, 0), 1);
        CHECK_EQUAL(read_flows(&group, owner), FLOWS);
    }
    for (i = 0; i < 4; i++)
        CHECK(group.counts[i] >= 5 * 20 && group.counts[i] <= 5 * 90); /* 50 flows each, on average */
    for (i = 0; i < FLOWS; i++)
        close(clients[i]);
    close_group(&group);
}

static void a_udp_flow_stays_where_it_is(void)
{
    NEEDS(FDH_HAS_SWITCH);
    datagrams(AF_INET, ONE_STACK, AF_INET);
    datagrams(AF_INET6, ONE_STACK, AF_INET6);
    datagrams(AF_INET6, DUAL_STACK, AF_INET);
    datagrams(AF_INET6, DUAL_STACK, AF_INET6);
}

static void a_larger_canary_keeps_the_flows_that_the_new_one_has(void)
{
    static int before[65536], after[65536];
    struct fdh_switch choice = two_generations(AF_INET, 858993459);
    struct group group;
    int clients[FLOWS], i, moved = 0, had = 0;

    NEEDS(FDH_HAS_SWITCH);
    group = make_group(AF_INET, SOCK_DGRAM, 2, ONE_STACK);
    choice.by_flow = 1;
    for (i = 0; i < 65536; i++)
        before[i] = after[i] = -1;
    for (i = 0; i < FLOWS; i++) {
        union address address;
        socklen_t size = loopback(AF_INET, group.port, &address);

        clients[i] = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        MUST(clients[i]);
        MUST(connect(clients[i], &address.any, size));
    }
    apply(&group, &choice);
    for (i = 0; i < FLOWS; i++)
        CHECK_EQUAL(send(clients[i], "x", 1, 0), 1);
    CHECK_EQUAL(read_flows(&group, before), FLOWS);
    choice.new_per_2_32 = 2147483648u;
    apply(&group, &choice);
    for (i = 0; i < FLOWS; i++)
        CHECK_EQUAL(send(clients[i], "x", 1, 0), 1);
    CHECK_EQUAL(read_flows(&group, after), FLOWS);
    for (i = 0; i < 65536; i++) {
        CHECK(before[i] != 1 || after[i] == 1);
        had += before[i] == 1;
        moved += before[i] == 0 && after[i] == 1;
    }
    CHECK(had > 10 && moved > 10);
    for (i = 0; i < FLOWS; i++)
        close(clients[i]);
    close_group(&group);
}

static void an_index_beyond_the_group_falls_back_to_hashing(void)
{
    struct fdh_switch choice = two_generations(AF_INET, UINT32_MAX);
    struct group group;

    NEEDS(FDH_HAS_SWITCH);
    group = make_group(AF_INET, SOCK_STREAM, 2, ONE_STACK);
    choice.new_share.base = 7;
    apply(&group, &choice);
    offer(&group, AF_INET, 200);
    CHECK(group.counts[0] > 20 && group.counts[1] > 20);
    close_group(&group);
}

int main(void)
{
    RUN(all_go_to_the_old_then_to_the_new_and_back);
    RUN(a_canary_of_five_percent_gets_five_percent);
    RUN(workers_share_what_their_generation_gets);
    RUN(by_flow_workers_share_connections_too);
    RUN(a_probe_over_ipv4_reaches_the_new_one);
    RUN(a_probe_over_ipv6_reaches_the_new_one);
    RUN(a_probe_reaches_a_dual_stack_listener_over_either);
    RUN(a_udp_flow_stays_where_it_is);
    RUN(a_larger_canary_keeps_the_flows_that_the_new_one_has);
    RUN(an_index_beyond_the_group_falls_back_to_hashing);
    return check_summary();
}
