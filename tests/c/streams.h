/* streams.h - a connected pair of AF_UNIX streams, for the C tests.
 *
 * SPDX-License-Identifier: MIT */
#ifndef STREAMS_H
#define STREAMS_H

#include "check.h"

MAYBE_UNUSED static void pair(int *ends)
{
    MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends));
}

MAYBE_UNUSED static void close_all(const int *fds, size_t n)
{
    size_t i;

    for (i = 0; i < n; i++)
        close(fds[i]);
}

MAYBE_UNUSED static void open_pipes(int (*pipes)[2], size_t n)
{
    size_t i;

    for (i = 0; i < n; i++)
        MUST(pipe2(pipes[i], O_CLOEXEC));
}

/* Sends one message as a peer might that does not use this library. */
MAYBE_UNUSED static void raw_send(int sock, const void *data, size_t size, const int *fds, size_t n)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(253 * sizeof(int))];
    } control;
    struct iovec part = {.iov_base = (void *)(uintptr_t)data, .iov_len = size};
    struct msghdr message;

    memset(&message, 0, sizeof message);
    memset(&control, 0, sizeof control);
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    if (n) {
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE(n * sizeof(int));
        control.header.cmsg_level = SOL_SOCKET;
        control.header.cmsg_type = SCM_RIGHTS;
        control.header.cmsg_len = CMSG_LEN(n * sizeof(int));
        memcpy(CMSG_DATA(&control.header), fds, n * sizeof(int));
    }
    CHECK_EQUAL(sendmsg(sock, &message, MSG_NOSIGNAL), size);
}

/* Calls fdh_channel_receive until n_bytes came; what else it fills must have room. */
MAYBE_UNUSED static size_t receive_all(int sock, char *buffer, size_t n_bytes, int *fds, size_t fd_capacity)
{
    size_t bytes = 0, n_fds = 0;

    while (bytes < n_bytes) {
        size_t more = 0, more_fds = 0;

        CHECK_EQUAL(fdh_channel_receive(sock, buffer + bytes, n_bytes - bytes, fds + n_fds, fd_capacity - n_fds,
                                        SECONDS(20), &more, &more_fds), 0);
        CHECK(more > 0);
        bytes += more;
        n_fds += more_fds;
    }
    CHECK_EQUAL(bytes, n_bytes);
    return n_fds;
}

/* Marks for n descriptors, `each` at a time, one every `stride` bytes. */
MAYBE_UNUSED static size_t make_marks(struct fdh_mark *marks, size_t n, size_t each, size_t stride)
{
    size_t i, left = n;

    for (i = 0; left; i++) {
        marks[i].offset = (uint32_t)(i * stride);
        marks[i].n_fds = (uint32_t)(left < each ? left : each);
        left -= marks[i].n_fds;
    }
    return i;
}

#endif
