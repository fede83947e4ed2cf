/* loopback.h - sockets of one machine, for the C tests.
 *
 * SPDX-License-Identifier: MIT */
#ifndef LOOPBACK_H
#define LOOPBACK_H

#include "check.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/un.h>

union address {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
    struct sockaddr_storage storage;
};

/* The loopback address of a family, with a port in host order. */
MAYBE_UNUSED static socklen_t loopback(int family, uint16_t port, union address *address)
{
    memset(address, 0, sizeof *address);
    if (family == AF_INET) {
        address->v4.sin_family = AF_INET;
        address->v4.sin_port = htons(port);
        address->v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        return sizeof address->v4;
    }
    address->v6.sin6_family = AF_INET6;
    address->v6.sin6_port = htons(port);
    address->v6.sin6_addr = in6addr_loopback;
    return sizeof address->v6;
}

MAYBE_UNUSED static uint16_t port_of(int fd)
{
    union address address;
    socklen_t size = sizeof address;

    MUST(getsockname(fd, &address.any, &size));
    return ntohs(address.any.sa_family == AF_INET ? address.v4.sin_port : address.v6.sin6_port);
}

/* A listening TCP socket on the loopback address, at a port that the kernel chooses. */
MAYBE_UNUSED static int tcp_listen(int family, int backlog)
{
    union address address;
    socklen_t size = loopback(family, 0, &address);
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);

    MUST(fd);
    MUST(bind(fd, &address.any, size));
    MUST(listen(fd, backlog));
    return fd;
}

/* Connects to a loopback port, from a source port if that is not 0. */
MAYBE_UNUSED static int tcp_connect(int family, uint16_t port, uint16_t source_port)
{
    union address address;
    socklen_t size;
    int one = 1, fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);

    MUST(fd);
    if (source_port) {
        MUST(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one));
        size = loopback(family, source_port, &address);
        MUST(bind(fd, &address.any, size));
    }
    size = loopback(family, port, &address);
    MUST(connect(fd, &address.any, size));
    return fd;
}

/* Closes with a reset, so that nothing stays in TIME_WAIT. */
MAYBE_UNUSED static void reset(int fd)
{
    struct linger linger = {.l_onoff = 1, .l_linger = 0};

    MUST(setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger));
    close(fd);
}

/* Connections in the accept queue, as the kernel says. */
MAYBE_UNUSED static uint32_t waiting_at(int listener)
{
    struct tcp_info info;
    socklen_t size = sizeof info;

    memset(&info, 0, sizeof info);
    MUST(getsockopt(listener, IPPROTO_TCP, TCP_INFO, &info, &size));
    return info.tcpi_unacked;
}

#endif
