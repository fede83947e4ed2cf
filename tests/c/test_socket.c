/* test_socket.c - what a descriptor is, who is at the other end, how long a queue is.
 *
 * SPDX-License-Identifier: MIT */
#include "loopback.h"

#include <stddef.h>

static void the_features_do_not_change(void)
{
    uint32_t first = fdh_features();

    CHECK_EQUAL(fdh_features(), first);
#ifdef FDH_PORTABLE
    CHECK_EQUAL(first, 0);
#endif
    CHECK(!(first & ~511u));
}

static void the_clock_only_goes_forward(void)
{
    int64_t before = fdh_now(), after = fdh_now();

    CHECK(before > 0 && before <= after);
}

static void closing_returns_minus_one_and_keeps_errno(void)
{
    int fd = dup(0);

    MUST(fd);
    errno = EXDEV;
    CHECK_EQUAL(fdh_close(fd), -1);
    CHECK_EQUAL(errno, EXDEV);
    CHECK_EQUAL(next_fd(), fd);
    CHECK_EQUAL(fdh_close(-1), -1);
    CHECK_EQUAL(fdh_close(fd), -1);
    CHECK_EQUAL(errno, EXDEV);
}

static void describe_listener_and_connection(int family)
{
    struct fdh_socket listening, connected, accepted;
    int listener = tcp_listen(family, 5), client = tcp_connect(family, port_of(listener), 0), server;
    socklen_t address_size = family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
    union address address;

    server = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    MUST(server);
    TAINT(listening);
    CHECK_EQUAL(fdh_socket_describe(listener, &listening), 0);
    CHECK_EQUAL(fdh_socket_describe(client, &connected), 0);
    CHECK_EQUAL(fdh_socket_describe(server, &accepted), 0);
    CHECK_EQUAL(listening.family, family);
    CHECK_EQUAL(listening.type, SOCK_STREAM);
    CHECK_EQUAL(listening.protocol, IPPROTO_TCP);
    CHECK_EQUAL(listening.listening, 1);
    CHECK_EQUAL(listening.connected, 0);
    CHECK_EQUAL(listening.address_size, address_size);
    loopback(family, port_of(listener), &address);
    CHECK(!memcmp(listening.address, &address, address_size));
    CHECK_EQUAL(connected.listening, 0);
    CHECK_EQUAL(connected.connected, 1);
    CHECK_EQUAL(accepted.connected, 1);
    if (fdh_features() & FDH_HAS_COOKIE) {
        CHECK(listening.cookie && connected.cookie && accepted.cookie);
        CHECK(listening.cookie != connected.cookie && connected.cookie != accepted.cookie);
    }
    reset(client);
    close(server);
    close(listener);
}

static void tcp_over_ipv4_is_described(void)
{
    describe_listener_and_connection(AF_INET);
}

static void tcp_over_ipv6_is_described(void)
{
    describe_listener_and_connection(AF_INET6);
}

static void v6only_is_told_from_dual_stack(void)
{
    int value, fd;
    struct fdh_socket what;

    for (value = 0; value < 2; value++) {
        fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
        MUST(fd);
        MUST(setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &value, sizeof value));
        CHECK_EQUAL(fdh_socket_describe(fd, &what), 0);
        CHECK_EQUAL(what.v6only, value);
        close(fd);
    }
}

static void a_cookie_is_the_sockets_and_not_the_descriptors(void)
{
    struct fdh_socket first, second;
    int listener = tcp_listen(AF_INET, 1), copy = dup(listener);

    MUST(copy);
    CHECK_EQUAL(fdh_socket_describe(listener, &first), 0);
    CHECK_EQUAL(fdh_socket_describe(copy, &second), 0);
    CHECK(!memcmp(&first, &second, sizeof first));
    close(copy);
    close(listener);
}

static void udp_is_connected_only_with_a_peer(void)
{
    struct fdh_socket what;
    union address address;
    socklen_t size = loopback(AF_INET, 9, &address);
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    MUST(fd);
    CHECK_EQUAL(fdh_socket_describe(fd, &what), 0);
    CHECK_EQUAL(what.type, SOCK_DGRAM);
    CHECK_EQUAL(what.protocol, IPPROTO_UDP);
    CHECK_EQUAL(what.listening, 0);
    CHECK_EQUAL(what.connected, 0);
    MUST(connect(fd, &address.any, size));
    CHECK_EQUAL(fdh_socket_describe(fd, &what), 0);
    CHECK_EQUAL(what.connected, 1);
    close(fd);
}

static void unix_names_are_described(void)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    socklen_t size;
    struct fdh_socket what;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    MUST(fd);
    CHECK_EQUAL(fdh_socket_describe(fd, &what), 0);
    CHECK_EQUAL(what.family, AF_UNIX);
    CHECK_EQUAL(what.address_size, sizeof(sa_family_t));
    size = (socklen_t)offsetof(struct sockaddr_un, sun_path) +
           (socklen_t)snprintf(name.sun_path + 1, sizeof name.sun_path - 1, "fdhandoff-test-%d", (int)getpid()) + 1;
    MUST(bind(fd, (struct sockaddr *)&name, size));
    MUST(listen(fd, 1));
    CHECK_EQUAL(fdh_socket_describe(fd, &what), 0);
    CHECK_EQUAL(what.listening, 1);
    CHECK_EQUAL(what.address_size, size);
    CHECK(!memcmp(what.address, &name, size));
    close(fd);
}

static void what_is_no_socket_is_not_described(void)
{
    struct fdh_socket what;
    int ends[2];

    MUST(pipe2(ends, O_CLOEXEC));
    TAINT(what);
    CHECK_EQUAL(fdh_socket_describe(ends[0], &what), -ENOTSOCK);
    CHECK_EQUAL(fdh_socket_describe(ends[1] + 1000, &what), -EBADF);
    CHECK_EQUAL(fdh_socket_describe(-1, &what), -EBADF);
    CHECK_UNTOUCHED(what);
    close(ends[0]);
    close(ends[1]);
}

static void a_queue_is_counted(void)
{
    uint32_t waiting, backlog, i;
    int clients[3], listener = tcp_listen(AF_INET, 7), fd;

    for (i = 0; i < 3; i++) {
        CHECK_EQUAL(fdh_listener_queue(listener, &waiting, &backlog), 0);
        CHECK_EQUAL(waiting, i);
        CHECK_EQUAL(backlog, 7);
        clients[i] = tcp_connect(AF_INET, port_of(listener), 0);
    }
    fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    MUST(fd);
    CHECK_EQUAL(fdh_listener_queue(listener, &waiting, &backlog), 0);
    CHECK_EQUAL(waiting, 2);
    for (i = 0; i < 3; i++)
        reset(clients[i]);
    close(fd);
    close(listener);
}

static void only_a_listening_tcp_socket_has_a_queue(void)
{
    uint32_t waiting, backlog;
    int fds[4], ends[2], i;

    fds[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    fds[1] = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    fds[2] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    fds[3] = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    MUST(pipe2(ends, O_CLOEXEC));
    TAINT(waiting);
    TAINT(backlog);
    for (i = 0; i < 4; i++) {
        MUST(fds[i]);
        CHECK_EQUAL(fdh_listener_queue(fds[i], &waiting, &backlog), -EOPNOTSUPP);
        close(fds[i]);
    }
    CHECK_EQUAL(fdh_listener_queue(ends[0], &waiting, &backlog), -ENOTSOCK);
    CHECK_EQUAL(fdh_listener_queue(-1, &waiting, &backlog), -EBADF);
    CHECK_UNTOUCHED(waiting);
    CHECK_UNTOUCHED(backlog);
    close(ends[0]);
    close(ends[1]);
}

/* A Unix listener of this process, and a child that connected to it and lives until its connection is closed. */
static pid_t stranger(int *listenerp, int *serverp)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    int client, listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    pid_t pid;
    socklen_t size = sizeof name;
    char byte;

    MUST(listener);
    MUST(bind(listener, (struct sockaddr *)&name, sizeof(sa_family_t))); /* autobind: a free abstract name */
    MUST(getsockname(listener, (struct sockaddr *)&name, &size));
    MUST(listen(listener, 1));
    pid = fork_child();
    MUST(pid);
    if (!pid) {
        struct fdh_peer peer;

        client = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        MUST(client);
        MUST(connect(client, (struct sockaddr *)&name, size));
        CHECK_EQUAL(fdh_peer_credentials(client, &peer), 0);
        CHECK_EQUAL(peer.pid, getppid());
        MUST(recv(client, &byte, 1, 0));
        _exit(0);
    }
    *serverp = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    MUST(*serverp);
    *listenerp = listener;
    return pid;
}

static void both_ends_know_their_peer(void)
{
    struct fdh_peer peer;
    int listener, server;
    pid_t pid = stranger(&listener, &server);

    CHECK_EQUAL(fdh_peer_credentials(server, &peer), 0);
    CHECK_EQUAL(peer.pid, pid);
    CHECK_EQUAL(peer.uid, geteuid());
    CHECK_EQUAL(peer.gid, getegid());
    close(server);
    close(listener);
    reap_ok(pid);
}

static void the_peers_pidfd_is_the_peer(void)
{
    int listener, server, pidfd = -1, again = -1;
    uint64_t first = 0, second = 0;
    pid_t pid;

    NEEDS(FDH_HAS_PEER_PIDFD);
    pid = stranger(&listener, &server);
    CHECK_EQUAL(fdh_peer_pidfd(server, &pidfd), 0);
    CHECK(is_cloexec(pidfd));
    CHECK_EQUAL(fdh_pidfd_signal(pidfd, 0), 0);
    CHECK_EQUAL(fdh_pidfd_open(pid, &again), 0);
    CHECK_EQUAL(fdh_pidfd_id(pidfd, &first), 0);
    CHECK_EQUAL(fdh_pidfd_id(again, &second), 0);
    CHECK_EQUAL(first, second);
    CHECK(!is_readable(pidfd));
    close(again);
    reap_killed(pid);
    CHECK(is_readable(pidfd));
    CHECK_EQUAL(fdh_pidfd_signal(pidfd, 0), -ESRCH);
    close(pidfd);
    close(server);
    close(listener);
}

static void a_dead_peer_has_no_living_pidfd(void)
{
    int listener, server, pidfd, rc;
    pid_t pid;

    NEEDS(FDH_HAS_PEER_PIDFD);
    pid = stranger(&listener, &server);
    reap_killed(pid);
    TAINT(pidfd);
    rc = fdh_peer_pidfd(server, &pidfd);
    if (rc == 0) { /* since Linux 6.16 also for the dead */
        CHECK_EQUAL(fdh_pidfd_signal(pidfd, 0), -ESRCH);
        close(pidfd);
    } else {
        CHECK(rc == -ESRCH || rc == -ENODATA || rc == -EINVAL);
        CHECK_UNTOUCHED(pidfd);
    }
    close(server);
    close(listener);
}

static void what_has_no_peer_is_an_error_or_unknown(void)
{
    struct fdh_peer peer;
    int ends[2], pidfd, rc, fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    MUST(fd);
    MUST(pipe2(ends, O_CLOEXEC));
    TAINT(peer);
    TAINT(pidfd);
    CHECK_EQUAL(fdh_peer_credentials(ends[0], &peer), -ENOTSOCK);
    CHECK_EQUAL(fdh_peer_credentials(-1, &peer), -EBADF);
    CHECK_UNTOUCHED(peer);
    rc = fdh_peer_pidfd(fd, &pidfd);
    CHECK(fdh_features() & FDH_HAS_PEER_PIDFD ? rc == -ENODATA || rc == -ESRCH : rc == -ENOSYS);
    CHECK(fdh_peer_pidfd(ends[0], &pidfd) < 0);
    CHECK_UNTOUCHED(pidfd);
    CHECK_EQUAL(fdh_peer_credentials(fd, &peer), 0);
    CHECK_EQUAL(peer.uid, -1);
    CHECK_EQUAL(peer.gid, -1);
    close(ends[0]);
    close(ends[1]);
    close(fd);
}

int main(void)
{
    RUN(the_features_do_not_change);
    RUN(the_clock_only_goes_forward);
    RUN(closing_returns_minus_one_and_keeps_errno);
    RUN(tcp_over_ipv4_is_described);
    RUN(tcp_over_ipv6_is_described);
    RUN(v6only_is_told_from_dual_stack);
    RUN(a_cookie_is_the_sockets_and_not_the_descriptors);
    RUN(udp_is_connected_only_with_a_peer);
    RUN(unix_names_are_described);
    RUN(what_is_no_socket_is_not_described);
    RUN(a_queue_is_counted);
    RUN(only_a_listening_tcp_socket_has_a_queue);
    RUN(both_ends_know_their_peer);
    RUN(the_peers_pidfd_is_the_peer);
    RUN(a_dead_peer_has_no_living_pidfd);
    RUN(what_has_no_peer_is_an_error_or_unknown);
    return check_summary();
}
