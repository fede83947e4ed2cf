/* fdhandoff.c - the C core of fdhandoff. The contract is in fdhandoff.h; this is how it is kept.
 *
 * THEORY OF OPERATION
 *
 * Channel. SCM_RIGHTS over a stream socket has three traps. (1) Descriptors travel with the first byte of the buffer
 * that sendmsg made, and recvmsg stops behind a buffer that had some: so each group of descriptors begins a sendmsg of
 * its own, and a receiver that reads on never sees two groups at once. (2) A partial send carries the descriptors with
 * the part that went: the rest must be sent without them. (3) The receiving kernel installs as many descriptors as the
 * control buffer has room for and as the process may open, sets MSG_CTRUNC where it had to drop some, and *succeeds*:
 * see receive_control().
 *
 * Gate. There is one word of state and, per process, one slot with counters that only grow: entered, finished, forced. To
 * enter is to count first and look at the state afterwards; to close is to write the state first and to count
 * afterwards. Both are sequentially consistent, so of an enter and a close that meet, at least one sees the other: the
 * enter sees "closed" and takes its count back, or the closer sees the count. No lock, no shared counter, and a process
 * that is killed leaves exactly its own slot behind, which whoever has proof of its death settles.
 * The three descriptors (closed, drained, room) are eventfds whose level follows from state and counts; whoever changes
 * either evaluates them again, and looks once more whether the state stayed what it had seen (see tell_drained()).
 *
 * Spawn. The child is made by clone(CLONE_VM | CLONE_VFORK): the parent stands still until the exec, nothing is copied
 * however large it is, and the child reports an error through the parent's own memory. It calls nothing that takes a
 * lock, and changes identity by raw system calls, since the C library would tell the parent's other threads to.
 *
 * Relay. A fork that never execs, so it starts with a copy of all that its parent has. What it inherits it gives back: every
 * private mapping but its stack, its thread-local storage and the few libraries that it calls. After that nothing of the
 * program is there any more, not even what the dynamic linker would need to look a function up, so it calls the C library
 * only by pointers that were resolved when the program was loaded. All that it knows is in shared memory: a ring per stream
 * that read(2) fills and write(2) empties in place, and two counts. So its successor can go on where it was killed, and
 * whoever has the memory can read the end of the stream.
 *
 * Switch. A classic BPF program of a SO_REUSEPORT group returns the index of the member that gets the connection. It
 * reads the packet's network header by negative offsets.
 *
 * SPDX-License-Identifier: MIT */
#if defined(__linux__) && !defined(FDH_PORTABLE)
#define FDH_LINUX 1
#else
#define FDH_LINUX 0
#endif
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#ifdef __APPLE__
#define _DARWIN_C_SOURCE 1
#endif

#include "fdhandoff.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <grp.h>

#if defined(__linux__)
#include <sys/auxv.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#endif

/* Numbers that the C library's headers may be too old for; they are the same on every architecture that Linux added
 * them to after 2018. */
#if defined(__linux__)
#ifndef SYS_pidfd_send_signal
#define SYS_pidfd_send_signal 424
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef SYS_close_range
#define SYS_close_range 436
#endif
#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438
#endif
#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif
#ifndef SCM_PIDFD
#define SCM_PIDFD 4
#endif
#ifndef SO_COOKIE
#define SO_COOKIE 57
#endif
#ifndef SO_ATTACH_REUSEPORT_CBPF
#define SO_ATTACH_REUSEPORT_CBPF 51
#endif
#ifndef SO_DETACH_REUSEPORT_BPF
#define SO_DETACH_REUSEPORT_BPF 68
#endif
#ifndef CLONE_PIDFD
#define CLONE_PIDFD 0x00001000
#endif
#define FDH_PIDFS_MAGIC 0x50494446
#define FDH_P_PIDFD 3
#endif

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0 /* macOS: SO_NOSIGPIPE is set on the socket instead */
#endif

/* Sanitizers keep books of the memory in that memory. */
#define FDH_ADDRESS_SANITIZER 0
#define FDH_SANITIZED 0
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#undef FDH_ADDRESS_SANITIZER
#define FDH_ADDRESS_SANITIZER 1
#endif
#if __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#undef FDH_SANITIZED
#define FDH_SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) && !FDH_ADDRESS_SANITIZER
#undef FDH_ADDRESS_SANITIZER
#define FDH_ADDRESS_SANITIZER 1
#endif
#if (defined(__SANITIZE_THREAD__) || FDH_ADDRESS_SANITIZER) && !FDH_SANITIZED
#undef FDH_SANITIZED
#define FDH_SANITIZED 1
#endif

/* The kernel's own limit is 253 (SCM_MAX_FD); a peer that is not ours may use it. */
#define FDS_KERNEL_MAX 253

/* Classic BPF, as linux/bpf_common.h has it; written out, so that compiling a program needs no Linux. */
enum {
    OP_LOAD_WORD = 0x20,   /* BPF_LD | BPF_W | BPF_ABS */
    OP_LOAD_HALF = 0x28,   /* BPF_LD | BPF_H | BPF_ABS */
    OP_LOAD_BYTE = 0x30,   /* BPF_LD | BPF_B | BPF_ABS */
    OP_LOAD_MEMORY = 0x60, /* BPF_LD | BPF_MEM */
    OP_STORE = 0x02,       /* BPF_ST */
    OP_TAX = 0x07,         /* BPF_MISC | BPF_TAX */
    OP_ADD = 0x04,         /* BPF_ALU | BPF_ADD | BPF_K */
    OP_MUL = 0x24,
    OP_RSH = 0x74,
    OP_MOD = 0x94,
    OP_XOR_X = 0xac, /* BPF_ALU | BPF_XOR | BPF_X */
    OP_JEQ = 0x15,   /* BPF_JMP | BPF_JEQ | BPF_K */
    OP_JGE = 0x35,
    OP_RET = 0x06,  /* BPF_RET | BPF_K */
    OP_RET_A = 0x16 /* BPF_RET | BPF_A */
};

/* struct sock_fprog of linux/filter.h, which not every C library's headers bring; fdh_instruction is its sock_filter. */
struct socket_program {
    unsigned short n;
    const struct fdh_instruction *code;
};

/* --- small things ------------------------------------------------------------------------------------- */

int64_t fdh_now(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

int fdh_close(int fd) {
    if (fd >= 0) {
        int saved = errno;
        close(fd); /* never again after EINTR: Linux has freed the number by then, another thread may have it */
        errno = saved;
    }
    return -1;
}

static void close_many(const int *fds, size_t n) {
    for (size_t i = 0; i < n; i++)
        fdh_close(fds[i]);
}

/* poll's timeout for a deadline: milliseconds rounded up, 0 when it has passed, -1 for ever. */
static int milliseconds_until(int64_t deadline) {
    if (deadline == INT64_MAX)
        return -1;
    int64_t left = deadline - fdh_now();
    if (deadline <= 0 || left <= 0)
        return 0;
    int64_t ms = (left + 999999) / 1000000;
    return ms > INT_MAX ? INT_MAX : (int)ms;
}

/* Waits for `events` on fd: 0, FDH_AGAIN at the deadline, -errno. An error condition of fd counts as ready: the call
 * that follows says what it is. */
static int wait_for(int fd, short events, int64_t deadline) {
    if (fd < 0)
        return -EBADF; /* poll(2) would ignore it, and wait */
    for (;;) {
        struct pollfd p = {.fd = fd, .events = events, .revents = 0};
        int ms = milliseconds_until(deadline);
        int n = poll(&p, 1, ms);
        if (n > 0)
            return (p.revents & POLLNVAL) ? -EBADF : 0;
        if (n < 0 && errno != EINTR)
            return -errno;
        if (n == 0 && (ms == 0 || milliseconds_until(deadline) == 0))
            return FDH_AGAIN;
    }
}

#if !FDH_LINUX
static int set_flags(int fd, bool nonblocking) {
    int flags = fcntl(fd, F_GETFD);
    if (flags < 0 || fcntl(fd, F_SETFD, flags | FD_CLOEXEC) < 0)
        return -errno;
    if (nonblocking) {
        flags = fcntl(fd, F_GETFL);
        if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
            return -errno;
    }
    return 0;
}
#endif

#if FDH_LINUX
static bool has_pidfd(void) {
    int fd = (int)syscall(SYS_pidfd_open, getpid(), 0);
    if (fd < 0)
        return false;
    fdh_close(fd);
    return true;
}

static uint32_t probe_features(void) {
    uint32_t found = FDH_HAS_ATOMIC_CLOEXEC;
    if (has_pidfd()) {
        found |= FDH_HAS_PIDFD;
        int self = (int)syscall(SYS_pidfd_open, getpid(), 0);
        uint64_t id = 0;
        if (fdh_pidfd_id(self, &id) == 0 && id != 0)
            found |= FDH_HAS_PIDFD_ID;
        /* A descriptor number that can't be open: EBADF says that the call exists and looked. */
        if (syscall(SYS_pidfd_getfd, self, INT_MAX, 0) < 0 && errno == EBADF)
            found |= FDH_HAS_PIDFD_GETFD;
        fdh_close(self);
    }
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0) {
        int pidfd = -1;
        socklen_t size = sizeof pidfd;
        if (getsockopt(pair[0], SOL_SOCKET, SO_PEERPIDFD, &pidfd, &size) == 0) {
            found |= FDH_HAS_PEER_PIDFD;
            fdh_close(pidfd);
        }
        uint64_t cookie = 0;
        size = sizeof cookie;
        if (getsockopt(pair[0], SOL_SOCKET, SO_COOKIE, &cookie, &size) == 0)
            found |= FDH_HAS_COOKIE;
        close_many(pair, 2);
    }
    int memory = memfd_create("fdhandoff-probe", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (memory >= 0) {
        found |= FDH_HAS_MEMFD;
        fdh_close(memory);
    }
    /* An empty range beyond any table: success says that the call and the flag exist. */
    if (syscall(SYS_close_range, ~0U, ~0U, 4U /* CLOSE_RANGE_CLOEXEC */) == 0)
        found |= FDH_HAS_CLOSE_RANGE;
    int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (sock >= 0) {
        int on = 1;
        struct fdh_instruction first = {OP_RET, 0, 0, 0};
        struct socket_program program = {.n = 1, .code = &first};
        struct sockaddr_in any = {.sin_family = AF_INET, .sin_addr = {.s_addr = htonl(INADDR_LOOPBACK)}};
        if (setsockopt(sock, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on) == 0 &&
            bind(sock, (struct sockaddr *)&any, sizeof any) == 0 &&
            setsockopt(sock, SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, &program, sizeof program) == 0)
            found |= FDH_HAS_SWITCH;
        fdh_close(sock);
    }
    return found;
}
#endif

uint32_t fdh_features(void) {
#if FDH_LINUX
    /* The same answer each time, so it does not matter who writes it first. Bit 31 says that it was asked. */
    static _Atomic uint32_t known;
    uint32_t found = atomic_load(&known);
    if (!(found & 0x80000000u)) {
        found = probe_features() | 0x80000000u;
        atomic_store(&known, found);
    }
    return found & 0x7fffffffu;
#else
    return 0;
#endif
}

/* --- channel ------------------------------------------------------------------------------------------ */

/* Room for the control data of one message. The union aligns it for struct cmsghdr, as CMSG_FIRSTHDR expects. */
union control {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(sizeof(int) * FDS_KERNEL_MAX)];
};

static bool marks_make_sense(size_t size, size_t n_fds, const struct fdh_mark *marks, size_t n_marks) {
    size_t sum = 0;
    for (size_t i = 0; i < n_marks; i++) {
        if (marks[i].n_fds == 0 || marks[i].n_fds > FDH_FDS_MAX || marks[i].offset >= size)
            return false;
        if (i > 0 && marks[i].offset <= marks[i - 1].offset)
            return false;
        sum += marks[i].n_fds;
    }
    return sum == n_fds;
}

/* One sendmsg: bytes, and n descriptors with the first of them. Returns as sendmsg, never EINTR. */
static ssize_t send_piece(int sock, const void *data, size_t size, const int *fds, size_t n) {
    struct iovec iov = {.iov_base = (void *)(uintptr_t)data, .iov_len = size};
    union control control;
    struct msghdr msg;
    memset(&msg, 0, sizeof msg);
    msg.msg_iov = &iov;
    msg.msg_iovlen = 1;
    if (n > 0) {
        size_t bytes = n * sizeof(int);
        memset(&control, 0, CMSG_SPACE(bytes));
        msg.msg_control = control.bytes;
        msg.msg_controllen = CMSG_SPACE(bytes);
        struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(bytes);
        memcpy(CMSG_DATA(cmsg), fds, bytes);
    }
    ssize_t sent;
    do
        sent = sendmsg(sock, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    return sent;
}

int fdh_channel_send(int sock, const void *data, size_t size, const int *fds, size_t n_fds,
                     const struct fdh_mark *marks, size_t n_marks, int64_t deadline,
                     size_t *n_bytesp, size_t *n_fdsp) {
    if (!marks_make_sense(size, n_fds, marks, n_marks))
        return -EINVAL;
#ifdef SO_NOSIGPIPE
    int on = 1;
    setsockopt(sock, SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof on);
#endif
    size_t position = 0, fd_position = 0, mark = 0;
    int condition = 0;
    while (position < size) {
        size_t n = 0, end = mark < n_marks ? marks[mark].offset : size;
        if (end == position) {
            n = marks[mark].n_fds;
            end = mark + 1 < n_marks ? marks[mark + 1].offset : size;
        }
        ssize_t sent = send_piece(sock, (const char *)data + position, end - position,
                                  n > 0 ? fds + fd_position : NULL, n);
        if (sent > 0) {
            position += (size_t)sent;
            if (n > 0) { /* with however few bytes: the descriptors are gone */
                fd_position += n;
                mark++;
            }
            continue;
        }
        if (sent < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != ENOBUFS)
            return -errno;
        condition = wait_for(sock, POLLOUT, deadline);
        if (condition < 0)
            return condition;
        if (condition == FDH_AGAIN)
            break;
    }
    *n_bytesp = position;
    *n_fdsp = fd_position;
    return condition;
}

/* Takes the descriptors out of one message's control data and appends them. Returns false when the message must not be
 * trusted; what it brought is appended all the same, for the caller to close.
 *
 * TRUNCATED CONTROL DATA. recvmsg may return a whole payload and set MSG_CTRUNC, which means that something of the
 * control data is missing. There are three ways to get there, and in each the call succeeds:
 *   - the control buffer was too small: ours has room for 253 descriptors, the most that the kernel lets anyone put
 *     into one message, so this means control data of another kind;
 *   - the process (or the system) may not open that many: scm_detach_fds() installs descriptors one by one and stops at
 *     the first failure, so *some* of the descriptors have arrived and are open in this process, with the cmsg_len
 *     shortened to those; the others are closed by the kernel, and nobody can ever get them again;
 *   - a security module forbids one of them: the same.
 * The descriptors that did arrive are real, and leak unless they are closed here. Which of those that were sent they
 * are can't be told. So the whole message is worthless: close all, tell, and let the sender begin anew on another
 * channel. cmsg_len counts the header *including* its padding (CMSG_LEN(0)), and the kernel may leave a shortened
 * cmsg_len that is no multiple of an int away from the next header, hence the division rather than a loop to the end.
 */
static bool receive_control(struct msghdr *msg, int *fds, size_t *np) {
    bool good = !(msg->msg_flags & MSG_CTRUNC);
    for (struct cmsghdr *cmsg = CMSG_FIRSTHDR(msg); cmsg != NULL; cmsg = CMSG_NXTHDR(msg, cmsg)) {
        if (cmsg->cmsg_level != SOL_SOCKET || cmsg->cmsg_type != SCM_RIGHTS) {
            good = false;
#if defined(__linux__)
            /* Of the other kinds only this one brings a descriptor: when SO_PASSPIDFD is set on our socket, which we
             * never do, but whoever shares it may (test: an_unexpected_pidfd_is_refused_and_closed). */
            if (cmsg->cmsg_level == SOL_SOCKET && cmsg->cmsg_type == SCM_PIDFD && cmsg->cmsg_len >= CMSG_LEN(sizeof(int))) {
                int pidfd;
                memcpy(&pidfd, CMSG_DATA(cmsg), sizeof pidfd);
                fdh_close(pidfd);
            }
#endif
            continue;
        }
        size_t n = (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        memcpy(fds + *np, CMSG_DATA(cmsg), n * sizeof(int));
        *np += n;
    }
    return good;
}

int fdh_channel_receive(int sock, void *buffer, size_t capacity, int *fds, size_t fd_capacity, int64_t deadline,
                        size_t *n_bytesp, size_t *n_fdsp) {
    if (capacity == 0 || fd_capacity < FDS_KERNEL_MAX)
        return -EINVAL;
    size_t n_bytes = 0, n_fds = 0;
    int flags = MSG_DONTWAIT;
#if FDH_LINUX
    flags |= MSG_CMSG_CLOEXEC;
#endif
    while (n_bytes < capacity && fd_capacity - n_fds >= FDS_KERNEL_MAX) {
        struct iovec iov = {.iov_base = (char *)buffer + n_bytes, .iov_len = capacity - n_bytes};
        union control control;
        struct msghdr msg;
        memset(&msg, 0, sizeof msg);
        msg.msg_iov = &iov;
        msg.msg_iovlen = 1;
        msg.msg_control = control.bytes;
        msg.msg_controllen = sizeof control.bytes;
        ssize_t got = recvmsg(sock, &msg, flags);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            if (n_bytes > 0)
                break;
            int condition = wait_for(sock, POLLIN, deadline);
            if (condition < 0)
                return condition;
            if (condition == FDH_AGAIN) {
                *n_bytesp = 0;
                *n_fdsp = 0;
                return condition;
            }
            continue;
        }
        if (got < 0) {
            int error = errno;
            if (n_bytes > 0) /* what came before counts; the next call meets the end of the stream */
                break;
            return -error;
        }
        size_t before = n_fds;
        bool good = receive_control(&msg, fds, &n_fds);
#if !FDH_LINUX
        for (size_t i = before; i < n_fds; i++)
            if (set_flags(fds[i], false) < 0)
                good = false;
#endif
        if (got == 0 && n_fds > before) /* no byte, yet descriptors: not on a stream */
            good = false;
        if (!good) {
            close_many(fds, n_fds);
            return -EBADMSG;
        }
        if (got == 0)
            break;
        n_bytes += (size_t)got;
    }
    *n_bytesp = n_bytes;
    *n_fdsp = n_fds;
    return n_bytes == 0 ? FDH_EOF : 0;
}

int fdh_peer_credentials(int sock, struct fdh_peer *peerp) {
#if defined(__linux__)
    struct ucred credentials;
    socklen_t size = sizeof credentials;
    if (getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &credentials, &size) < 0)
        return -errno;
    peerp->pid = credentials.pid;
    /* Nobody recorded (no peer yet): the kernel answers with pid 0 and the overflow numbers -1. */
    peerp->uid = credentials.uid == (uid_t)-1 ? -1 : (int64_t)credentials.uid;
    peerp->gid = credentials.gid == (gid_t)-1 ? -1 : (int64_t)credentials.gid;
    return 0;
#elif defined(__APPLE__) || defined(__FreeBSD__)
    uid_t uid;
    gid_t gid;
    if (getpeereid(sock, &uid, &gid) < 0)
        return -errno;
    peerp->pid = -1;
    peerp->uid = (int64_t)uid;
    peerp->gid = (int64_t)gid;
    return 0;
#else
    (void)sock;
    (void)peerp;
    return -ENOSYS;
#endif
}

int fdh_peer_pidfd(int sock, int *pidfdp) {
#if FDH_LINUX
    int pidfd = -1;
    socklen_t size = sizeof pidfd;
    /* close-on-exec at birth: the kernel makes it with pidfd_prepare() (Linux 6.5) */
    if (getsockopt(sock, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &size) < 0)
        return errno == ENOPROTOOPT ? -ENOSYS : -errno;
    *pidfdp = pidfd;
    return 0;
#else
    (void)sock;
    (void)pidfdp;
    return -ENOSYS;
#endif
}

/* --- sockets ------------------------------------------------------------------------------------------ */

static int32_t integer_option(int fd, int level, int option) {
    int value = 0;
    socklen_t size = sizeof value;
    return getsockopt(fd, level, option, &value, &size) < 0 ? 0 : (int32_t)value;
}

int fdh_socket_describe(int fd, struct fdh_socket *socketp) {
    struct fdh_socket d;
    memset(&d, 0, sizeof d);
    int type = 0;
    socklen_t size = sizeof type;
    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) < 0)
        return -errno;
    d.type = type;
    struct sockaddr_storage address;
    memset(&address, 0, sizeof address);
    size = sizeof address;
    if (getsockname(fd, (struct sockaddr *)&address, &size) < 0)
        return -errno;
    d.address_size = size < sizeof d.address ? (uint32_t)size : (uint32_t)sizeof d.address;
    memcpy(d.address, &address, d.address_size);
    d.family = address.ss_family;
#if defined(__linux__)
    d.family = integer_option(fd, SOL_SOCKET, SO_DOMAIN);
    d.protocol = integer_option(fd, SOL_SOCKET, SO_PROTOCOL);
    size = sizeof d.cookie;
    if (getsockopt(fd, SOL_SOCKET, SO_COOKIE, &d.cookie, &size) < 0)
        d.cookie = 0;
#endif
    d.listening = integer_option(fd, SOL_SOCKET, SO_ACCEPTCONN) != 0;
    if (!d.listening) {
        struct sockaddr_storage peer;
        size = sizeof peer;
        d.connected = getpeername(fd, (struct sockaddr *)&peer, &size) == 0;
    }
    if (d.family == AF_INET6)
        d.v6only = integer_option(fd, IPPROTO_IPV6, IPV6_V6ONLY) != 0;
    *socketp = d;
    return 0;
}

int fdh_listener_queue(int fd, uint32_t *waitingp, uint32_t *backlogp) {
#if defined(__linux__)
    struct tcp_info info;
    memset(&info, 0, sizeof info);
    socklen_t size = sizeof info;
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) < 0)
        return errno == EBADF || errno == ENOTSOCK ? -errno : -EOPNOTSUPP;
    if (info.tcpi_state != TCP_LISTEN)
        return -EOPNOTSUPP;
    /* tcp_get_info() puts the queue into these two for a listening socket (net/ipv4/tcp.c). */
    *waitingp = info.tcpi_unacked;
    *backlogp = info.tcpi_sacked;
    return 0;
#else
    (void)fd;
    (void)waitingp;
    (void)backlogp;
    return -EOPNOTSUPP;
#endif
}

/* --- connections -------------------------------------------------------------------------------------- */

/* Numbers of the protocol: tags of a payload's and of an entry's fields, and the kind. */
#define ITEMS_FIRST 1
#define ITEMS_ENTRY 2
#define ENTRY_NAME 1
#define ENTRY_KIND 2
#define ENTRY_SOCKET 3
#define ENTRY_STATE 6
#define KIND_CONNECTION 3
#define FLAG_CONNECTED 2

#define FIELD_HEAD 6 /* tag (2) and length (4) */
#define SOCKET_SIZE 20
#define NAME_MOST 255
#define PROVED_EVERY 16

static unsigned char *put(unsigned char *to, uint64_t value, size_t size) {
    for (size_t i = size; i-- > 0; value >>= 8)
        to[i] = (unsigned char)value;
    return to + size;
}

static uint64_t get(const unsigned char *from, size_t size) {
    uint64_t value = 0;
    for (size_t i = 0; i < size; i++)
        value = value << 8 | from[i];
    return value;
}

static unsigned char *put_head(unsigned char *to, unsigned tag, size_t size) {
    return put(put(to, tag, 2), size, 4);
}

static uint64_t socket_cookie(int fd) {
    uint64_t cookie = 0;
#if defined(__linux__)
    socklen_t size = sizeof cookie;
    if (getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &size) < 0)
        return 0;
#else
    (void)fd;
#endif
    return cookie;
}

/* Whether [offset, offset + size) lies inside `whole` bytes. */
static bool inside(uint32_t offset, uint32_t size, size_t whole) {
    return offset <= whole && size <= whole - offset;
}

int fdh_connections_pack(const struct fdh_connection *connections, const int *fds, size_t n, const void *text,
                         size_t text_size, void *buffer, size_t capacity, size_t *sizep) {
    unsigned char *to = buffer;
    size_t left = capacity;
    for (size_t i = 0; i < n; i++) {
        const struct fdh_connection *c = &connections[i];
        if (!inside(c->name_offset, c->name_size, text_size) || !inside(c->state_offset, c->state_size, text_size))
            return -EINVAL;
        /* The kernel delivers a message's descriptors as they were sent: all that can go wrong is whose they are. */
        bool proved = i % PROVED_EVERY == 0 || i + 1 == n;
        uint64_t cookie = proved ? socket_cookie(fds[i]) : 0;
        if (proved && !cookie)
            return FDH_OTHER;
        size_t state = c->state_size ? FIELD_HEAD + (size_t)c->state_size : 0;
        size_t entry = FIELD_HEAD + (size_t)c->name_size + FIELD_HEAD + 8 + FIELD_HEAD + SOCKET_SIZE + state;
        if (entry > UINT32_MAX || left < FIELD_HEAD || left - FIELD_HEAD < entry)
            return -ENOSPC;
        left -= FIELD_HEAD + entry;
        to = put_head(to, ITEMS_ENTRY, entry);
        to = put_head(to, ENTRY_NAME, c->name_size);
        if (c->name_size)
            memcpy(to, (const unsigned char *)text + c->name_offset, c->name_size);
        to = put(put_head(to + c->name_size, ENTRY_KIND, 8), KIND_CONNECTION, 8);
        to = put(put(put_head(to, ENTRY_SOCKET, SOCKET_SIZE), (uint16_t)c->family, 2), (uint16_t)c->type, 2);
        to = put(put(put(to, (uint32_t)c->protocol, 4), FLAG_CONNECTED, 4), cookie, 8);
        if (c->state_size) {
            to = put_head(to, ENTRY_STATE, c->state_size);
            memcpy(to, (const unsigned char *)text + c->state_offset, c->state_size);
            to += c->state_size;
        }
    }
    *sizep = capacity - left;
    return 0;
}

/* One field of data[at..end): its tag, and where its value lies. False where it does not fit. */
static bool next_field(const unsigned char *data, size_t *at, size_t end, unsigned *tag, size_t *value, size_t *size) {
    if (end - *at < FIELD_HEAD)
        return false;
    *tag = (unsigned)get(data + *at, 2);
    *size = (size_t)get(data + *at + 2, 4);
    *value = *at + FIELD_HEAD;
    if (*size > end - *value)
        return false;
    *at = *value + *size;
    return true;
}

/* What LISTEN_FDNAMES may carry. */
static bool is_name(const unsigned char *name, size_t size) {
    if (size == 0 || size > NAME_MOST)
        return false;
    for (size_t i = 0; i < size; i++)
        if (name[i] < ' ' || name[i] > '~' || name[i] == ':')
            return false;
    return true;
}

/* The entry in data[at..end), which is that of fd: false where it isn't, or is not a connection's. */
static bool unpack_entry(const unsigned char *data, size_t at, size_t end, int fd, struct fdh_connection *p,
                         bool *provedp) {
    struct fdh_connection c;
    memset(&c, 0, sizeof c);
    unsigned tag, seen = 0;
    size_t value, size;
    uint64_t cookie = 0;
    while (at < end) {
        if (!next_field(data, &at, end, &tag, &value, &size))
            return false;
        if (tag < 1 || tag > 6)
            continue;
        if (seen & 1u << tag)
            return false;
        seen |= 1u << tag;
        switch (tag) {
        case ENTRY_NAME:
            if (!is_name(data + value, size))
                return false;
            c.name_offset = (uint32_t)value;
            c.name_size = (uint32_t)size;
            break;
        case ENTRY_KIND:
            if (size != 8 || get(data + value, 8) != KIND_CONNECTION)
                return false;
            break;
        case ENTRY_SOCKET:
            if (size < SOCKET_SIZE)
                return false;
            c.family = (int32_t)get(data + value, 2);
            c.type = (int32_t)get(data + value + 2, 2);
            c.protocol = (int32_t)(uint32_t)get(data + value + 4, 4);
            if (get(data + value + 8, 4) != FLAG_CONNECTED)
                return false;
            cookie = get(data + value + 12, 8);
            break;
        case ENTRY_STATE:
            c.state_offset = (uint32_t)value;
            c.state_size = (uint32_t)size;
            break;
        default: /* an address, which the cookie stands for, is compared by whoever looks at them one by one */
            return false;
        }
    }
    unsigned needed = 1u << ENTRY_NAME | 1u << ENTRY_KIND | 1u << ENTRY_SOCKET;
    if ((seen & needed) != needed || (cookie && socket_cookie(fd) != cookie))
        return false;
    *p = c;
    *provedp = cookie != 0;
    return true;
}

int fdh_connections_unpack(const void *payload, size_t size, const int *fds, size_t n, uint64_t *firstp,
                           struct fdh_connection *connections) {
    const unsigned char *data = payload;
    size_t at = 0, value, length, found = 0;
    unsigned tag;
    uint64_t first = 0;
    bool has_first = false, proved = true;
    size_t unproved = 0; /* in a row */
    struct fdh_connection read[FDH_FDS_MAX];
    if (size > UINT32_MAX || n > FDH_FDS_MAX)
        return FDH_OTHER;
    while (at < size) {
        if (!next_field(data, &at, size, &tag, &value, &length))
            return FDH_OTHER;
        if (tag == ITEMS_FIRST) {
            if (has_first || length != 8)
                return FDH_OTHER;
            has_first = true;
            first = get(data + value, 8);
        } else if (tag == ITEMS_ENTRY) {
            if (found == n || !unpack_entry(data, value, value + length, fds[found], &read[found], &proved))
                return FDH_OTHER;
            unproved = proved ? 0 : unproved + 1;
            if (unproved && (found == 0 || unproved >= PROVED_EVERY))
                return FDH_OTHER;
            found++;
        }
    }
    if (!has_first || found != n || !proved)
        return FDH_OTHER;
    memcpy(connections, read, n * sizeof *read);
    *firstp = first;
    return 0;
}

/* --- gate --------------------------------------------------------------------------------------------- */

#define LINE 64 /* a cache line */
#define GATE_MAGIC 0x4644486761746531u /* "FDHgate1" */

enum {
    STATE_CLOSED = 1,
    STATE_LIMITED = 2,
    STATE_WANTED = 4, /* somebody was refused for want of room */
    STATE_EPOCH = 8   /* and above: how often it was closed or reopened */
};

struct fdh_gate_slot {
    _Alignas(LINE) _Atomic uint64_t entered;
    _Atomic uint64_t finished; /* finished + forced is how many left; each leave is one addition, so that a process that */
    _Atomic uint64_t forced;   /* is killed at any instruction leaves sums that fit */
    _Atomic uint32_t accepting; /* calls of fdh_accept that are between entering and accepting */
    _Alignas(LINE) _Atomic int64_t pid; /* negative while its process is still attaching; 0 when nobody has it, and then
                                           accepting, idle and detached mean nothing: the next owner resets them */
    _Atomic uint64_t started;
    _Atomic uint64_t refused;
    _Atomic int64_t idle;
    _Atomic int64_t detached;
};

struct fdh_gate_memory {
    uint64_t magic;
    uint32_t abi;
    uint32_t slots;
    _Alignas(LINE) _Atomic uint32_t state;
    _Atomic uint64_t limit;
    struct fdh_gate_slot slot[FDH_GATE_SLOTS];
};

enum { SIGNAL_CLOSED = 0, SIGNAL_DRAINED = 1, SIGNAL_ROOM = 2 };

static const struct fdh_gate gate_null = {NULL, NULL, -1, -1, -1, -1, -1, {-1, -1, -1}};

static int signal_fd(const struct fdh_gate *gate, int which) {
    return which == SIGNAL_CLOSED ? gate->closed_fd : which == SIGNAL_DRAINED ? gate->drained_fd : gate->room_fd;
}

/* Both are non-blocking; a full eventfd or pipe is readable already, an empty one is clear already. */
static void signal_set(const struct fdh_gate *gate, int which) {
    int fd = gate->signal_fds[which] >= 0 ? gate->signal_fds[which] : signal_fd(gate, which);
    uint64_t one = 1;
    if (fd >= 0) {
        ssize_t ignored = write(fd, &one, sizeof one);
        (void)ignored;
    }
}

static void signal_clear(const struct fdh_gate *gate, int which) {
    char rest[512];
    ssize_t got;
    int fd = signal_fd(gate, which);
    if (fd < 0)
        return;
    do
        got = read(fd, rest, sizeof rest);
    while (got == (ssize_t)sizeof rest || (got < 0 && errno == EINTR));
}

static int signal_create(int *readp, int *writep) {
#if FDH_LINUX
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fd < 0)
        return -errno;
    *readp = fd;
    *writep = -1;
    return 0;
#else
    int pair[2];
    if (pipe(pair) < 0)
        return -errno;
    int error = set_flags(pair[0], true);
    if (error == 0)
        error = set_flags(pair[1], true);
    if (error < 0) {
        close_many(pair, 2);
        return error;
    }
    *readp = pair[0];
    *writep = pair[1];
    return 0;
#endif
}

static uint64_t left_of(const struct fdh_gate_slot *slot) {
    return atomic_load(&slot->finished) + atomic_load(&slot->forced);
}

/* How many are inside. All who left are read before all `entered`: both only grow (but for an enter that is taken back,
 * which had made entered larger), so entered - left is never less than the number inside at the moment between the two
 * rounds: a drainer may see too many for a moment, never too few. */
static int64_t active_in(const struct fdh_gate_memory *memory) {
    uint64_t left = 0, entered = 0;
    for (size_t i = 0; i < FDH_GATE_SLOTS; i++)
        left += left_of(&memory->slot[i]);
    for (size_t i = 0; i < FDH_GATE_SLOTS; i++)
        entered += atomic_load(&memory->slot[i].entered);
    return (int64_t)(entered - left);
}

/* Makes drained_fd follow from state and counts. While the gate is closed nobody new stays inside, so "drained" once is
 * drained until it is reopened, and it never has to be cleared for a count. It does for a state that changed between
 * the look and the write: then the write may belong to an earlier closing, and everything is looked at again. */
static void tell_drained(const struct fdh_gate *gate) {
    for (;;) {
        uint32_t state = atomic_load(&gate->memory->state);
        if (!(state & STATE_CLOSED))
            signal_clear(gate, SIGNAL_DRAINED);
        else if (active_in(gate->memory) == 0)
            signal_set(gate, SIGNAL_DRAINED);
        uint32_t now = atomic_load(&gate->memory->state);
        if ((now | STATE_WANTED | STATE_LIMITED) == (state | STATE_WANTED | STATE_LIMITED))
            return;
        signal_clear(gate, SIGNAL_DRAINED);
    }
}

static void tell_closed(const struct fdh_gate *gate) {
    for (;;) {
        uint32_t state = atomic_load(&gate->memory->state);
        if (state & STATE_CLOSED)
            signal_set(gate, SIGNAL_CLOSED);
        else
            signal_clear(gate, SIGNAL_CLOSED);
        if ((atomic_load(&gate->memory->state) & STATE_CLOSED) == (state & STATE_CLOSED))
            return;
    }
}

static bool has_room(const struct fdh_gate_memory *memory) {
    uint64_t limit = atomic_load(&memory->limit);
    return limit == 0 || active_in(memory) < (int64_t)limit;
}

/* Somebody went out, or the rules changed: who waits for that is told. */
static void after_leaving(struct fdh_gate *gate) {
    uint32_t state = atomic_load(&gate->memory->state);
    if (state & STATE_CLOSED)
        tell_drained(gate);
    if ((state & STATE_WANTED) && has_room(gate->memory)) {
        atomic_fetch_and(&gate->memory->state, ~(uint32_t)STATE_WANTED);
        signal_set(gate, SIGNAL_ROOM);
    }
}

static void take_back_enter(struct fdh_gate *gate) {
    atomic_fetch_sub(&gate->slot->entered, 1);
    if (atomic_load(&gate->memory->state) & (STATE_CLOSED | STATE_WANTED))
        after_leaving(gate);
}

/* Counted already, and the state is not plainly open. 0, FDH_CLOSED or FDH_FULL; the count is taken back for these. */
static int enter_with_state(struct fdh_gate *gate, uint32_t state) {
    if (state & STATE_CLOSED) {
        take_back_enter(gate);
        return FDH_CLOSED;
    }
    if (state & STATE_LIMITED) {
        uint64_t limit = atomic_load(&gate->memory->limit);
        if (limit != 0 && active_in(gate->memory) > (int64_t)limit) {
            /* First say that room is wanted, then take the own count back: a leave in between sees the wish, and one
             * before it is seen by after_leaving() here. */
            atomic_fetch_or(&gate->memory->state, (uint32_t)STATE_WANTED);
            take_back_enter(gate);
            return FDH_FULL;
        }
    }
    return 0;
}

static inline int enter_step(struct fdh_gate *gate) {
    atomic_fetch_add(&gate->slot->entered, 1);
    uint32_t state = atomic_load(&gate->memory->state);
    if (__builtin_expect((state & (STATE_CLOSED | STATE_LIMITED)) == 0, 1))
        return 0;
    return enter_with_state(gate, state);
}

bool fdh_gate_enter(struct fdh_gate *gate) {
    if (__builtin_expect(enter_step(gate) == 0, 1))
        return true;
    atomic_fetch_add(&gate->slot->refused, 1);
    return false;
}

static inline void leave_step(struct fdh_gate *gate, _Atomic uint64_t *counter) {
    atomic_fetch_add(counter, 1);
    if (__builtin_expect((atomic_load(&gate->memory->state) & (STATE_CLOSED | STATE_WANTED)) != 0, 0))
        after_leaving(gate);
}

void fdh_gate_leave(struct fdh_gate *gate) {
    leave_step(gate, &gate->slot->finished);
}

void fdh_gate_leave_forced(struct fdh_gate *gate) {
    leave_step(gate, &gate->slot->forced);
}

/* Sets or clears CLOSED and begins a new epoch; nothing when it is so already. */
static void change_state(struct fdh_gate *gate, bool closed) {
    uint32_t state = atomic_load(&gate->memory->state);
    for (;;) {
        if (((state & STATE_CLOSED) != 0) == closed)
            break;
        uint32_t next = (state ^ STATE_CLOSED) + STATE_EPOCH;
        if (atomic_compare_exchange_weak(&gate->memory->state, &state, next))
            break;
    }
    tell_closed(gate);
    tell_drained(gate);
}

int fdh_gate_close(struct fdh_gate *gate, int64_t deadline) {
    if (gate->slot == NULL)
        return -EINVAL;
    change_state(gate, true);
    for (;;) {
        uint32_t accepting = 0;
        for (size_t i = 0; i < FDH_GATE_SLOTS; i++)
            if (atomic_load(&gate->memory->slot[i].pid) != 0)
                accepting += atomic_load(&gate->memory->slot[i].accepting);
        if (accepting == 0)
            return 0;
        if (milliseconds_until(deadline) == 0)
            return FDH_AGAIN;
        sched_yield(); /* such a call lasts microseconds: it never waits */
    }
}

int fdh_gate_reopen(struct fdh_gate *gate) {
    if (gate->slot == NULL)
        return -EINVAL;
    change_state(gate, false);
    return 0;
}

bool fdh_gate_is_closed(const struct fdh_gate *gate) {
    return (atomic_load(&gate->memory->state) & STATE_CLOSED) != 0;
}

int64_t fdh_gate_active(const struct fdh_gate *gate) {
    return active_in(gate->memory);
}

int fdh_gate_wait(struct fdh_gate *gate, int64_t deadline) {
    if (gate->drained_fd < 0)
        return -EINVAL;
    for (;;) {
        if (fdh_gate_is_closed(gate) && active_in(gate->memory) == 0)
            return 0;
        int condition = wait_for(gate->drained_fd, POLLIN, deadline);
        if (condition != 0)
            return condition;
    }
}

int fdh_gate_set_limit(struct fdh_gate *gate, uint64_t limit) {
    if (gate->slot == NULL || limit > INT64_MAX)
        return -EINVAL;
    atomic_store(&gate->memory->limit, limit);
    if (limit != 0)
        atomic_fetch_or(&gate->memory->state, (uint32_t)STATE_LIMITED);
    else
        atomic_fetch_and(&gate->memory->state, ~(uint32_t)STATE_LIMITED);
    after_leaving(gate);
    return 0;
}

uint64_t fdh_gate_limit(const struct fdh_gate *gate) {
    return atomic_load(&gate->memory->limit);
}

int fdh_gate_wait_room(struct fdh_gate *gate, int64_t deadline) {
    if (gate->room_fd < 0 || gate->slot == NULL)
        return -EINVAL;
    for (;;) {
        if (fdh_gate_is_closed(gate) || has_room(gate->memory))
            return 0;
        signal_clear(gate, SIGNAL_ROOM);
        atomic_fetch_or(&gate->memory->state, (uint32_t)STATE_WANTED);
        if (fdh_gate_is_closed(gate) || has_room(gate->memory)) {
            signal_set(gate, SIGNAL_ROOM); /* the one that was cleared may have been meant for another waiter */
            return 0;
        }
        struct pollfd p[2] = {{gate->room_fd, POLLIN, 0}, {gate->closed_fd, POLLIN, 0}};
        int ms = milliseconds_until(deadline);
        int n = poll(p, 2, ms);
        if (n < 0 && errno != EINTR)
            return -errno;
        if (n == 0 && (ms == 0 || milliseconds_until(deadline) == 0))
            return FDH_AGAIN;
    }
}

void fdh_gate_room_clear(struct fdh_gate *gate) {
    signal_clear(gate, SIGNAL_ROOM);
    atomic_fetch_or(&gate->memory->state, (uint32_t)STATE_WANTED);
    if (has_room(gate->memory)) /* it came between the attempt that failed and the clearing */
        signal_set(gate, SIGNAL_ROOM);
}

void fdh_gate_note(struct fdh_gate *gate, int64_t idle, int64_t detached) {
    if (idle != 0)
        atomic_fetch_add(&gate->slot->idle, idle);
    if (detached != 0)
        atomic_fetch_add(&gate->slot->detached, detached);
}

static void add_counters(const struct fdh_gate_slot *slot, struct fdh_counters *sum) {
    uint64_t finished = atomic_load(&slot->finished);
    uint64_t forced = atomic_load(&slot->forced);
    uint64_t entered = atomic_load(&slot->entered);
    sum->accepted += entered;
    sum->forced += forced;
    sum->finished += finished;
    sum->refused += atomic_load(&slot->refused);
    sum->active += (int64_t)(entered - finished - forced);
    if (atomic_load(&slot->pid) > 0) {
        sum->idle += atomic_load(&slot->idle);
        sum->detached += atomic_load(&slot->detached);
    }
}

void fdh_gate_counters(const struct fdh_gate *gate, struct fdh_counters *countersp) {
    struct fdh_counters sum;
    memset(&sum, 0, sizeof sum);
    for (size_t i = 0; i < FDH_GATE_SLOTS; i++)
        add_counters(&gate->memory->slot[i], &sum);
    *countersp = sum;
}

int fdh_gate_slot_read(const struct fdh_gate *gate, uint32_t index, struct fdh_slot_info *infop) {
    if (index >= FDH_GATE_SLOTS)
        return -ERANGE;
    const struct fdh_gate_slot *slot = &gate->memory->slot[index];
    struct fdh_slot_info info;
    memset(&info, 0, sizeof info);
    int64_t pid = atomic_load(&slot->pid);
    info.pid = pid < 0 ? -pid : pid;
    info.started = pid > 0 ? atomic_load(&slot->started) : 0;
    add_counters(slot, &info.counters);
    *infop = info;
    return 0;
}

int fdh_gate_settle(struct fdh_gate *gate, uint32_t index, int64_t pid, uint64_t *settledp) {
    if (index >= FDH_GATE_SLOTS)
        return -ERANGE;
    if (gate->slot == NULL || pid <= 0)
        return -EINVAL;
    /* Several may settle at once, and each may be killed at any instruction: then the next one goes on. The owner is dead,
     * so the counts only move by our own exchange, which the first to succeed makes. That the pid is still there after the
     * counts were read proves that they are the dead owner's; should the slot be freed and taken anew after that, `forced`
     * has moved, or nothing is to be added. */
    struct fdh_gate_slot *slot = &gate->memory->slot[index];
    uint64_t inside, forced;
    int64_t owner;
    do {
        forced = atomic_load(&slot->forced);
        inside = atomic_load(&slot->entered) - atomic_load(&slot->finished) - forced;
        owner = atomic_load(&slot->pid);
        if (owner != pid && owner != -pid)
            return -ESRCH;
    } while (!atomic_compare_exchange_weak(&slot->forced, &forced, forced + inside));
    /* It may have died between changing something and telling it: everything is told again, before the slot is free. Room
     * may be told to nobody, which costs one look. */
    tell_closed(gate);
    tell_drained(gate);
    if (atomic_load(&gate->memory->limit) != 0 && has_room(gate->memory))
        signal_set(gate, SIGNAL_ROOM);
    bool freed = atomic_compare_exchange_strong(&slot->pid, &owner, 0);
    if (inside == 0 && !freed)
        return -ESRCH;
    *settledp = inside;
    return 0;
}

/* A number of /proc/self/stat, by its field (from 3 on), or 0. */
static uint64_t own_stat(int wanted) {
#if defined(__linux__)
    char text[1024];
    int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t got = read(fd, text, sizeof text - 1);
    fdh_close(fd);
    if (got <= 0)
        return 0;
    text[got] = '\0';
    const char *at = strrchr(text, ')'); /* the second field is the command, which may contain anything */
    for (int field = 2; at != NULL && field < wanted; field++)
        at = strchr(at + 1, ' ');
    uint64_t number = 0;
    if (at != NULL)
        for (at++; *at >= '0' && *at <= '9'; at++)
            number = number * 10 + (uint64_t)(*at - '0');
    return number;
#else
    (void)wanted;
    return 0;
#endif
}

int fdh_gate_attach(struct fdh_gate *gate) {
    int64_t self = getpid();
    for (uint32_t i = 0; i < FDH_GATE_SLOTS; i++) {
        struct fdh_gate_slot *slot = &gate->memory->slot[i];
        int64_t nobody = 0;
        if (atomic_compare_exchange_strong(&slot->pid, &nobody, -self)) {
            atomic_store(&slot->accepting, 0);
            atomic_store(&slot->idle, 0);
            atomic_store(&slot->detached, 0);
            atomic_store(&slot->started, own_stat(22)); /* clock ticks since boot */
            atomic_store(&slot->pid, self);
            gate->slot = slot;
            gate->slot_index = (int32_t)i;
            return 0;
        }
    }
    return -ENOSPC;
}

void fdh_gate_deinit(struct fdh_gate *gate) {
    if (gate->memory == NULL)
        return;
    struct fdh_gate_slot *slot = gate->slot;
    /* After a fork the slot is still the parent's. A slot with somebody inside stays: the count is real. */
    if (slot != NULL && atomic_load(&slot->entered) == left_of(slot)) {
        int64_t self = getpid();
        atomic_compare_exchange_strong(&slot->pid, &self, 0);
    }
    munmap(gate->memory, sizeof *gate->memory);
    fdh_close(gate->memory_fd);
    fdh_close(gate->closed_fd);
    fdh_close(gate->drained_fd);
    fdh_close(gate->room_fd);
    close_many(gate->signal_fds, 3);
    *gate = gate_null;
}

int fdh_gate_create(struct fdh_gate *gate) {
    struct fdh_gate made = gate_null;
    int error = 0;
#if FDH_LINUX
    made.memory_fd = memfd_create("fdhandoff-gate", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (made.memory_fd < 0)
        return -errno;
    if (ftruncate(made.memory_fd, (off_t)sizeof *made.memory) < 0 ||
        fcntl(made.memory_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
        error = -errno;
    int flags = MAP_SHARED;
#else
    int flags = MAP_SHARED | MAP_ANON;
#endif
    for (int i = 0; i < 3 && error == 0; i++)
        error = signal_create(i == 0 ? &made.closed_fd : i == 1 ? &made.drained_fd : &made.room_fd, &made.signal_fds[i]);
    void *memory = MAP_FAILED;
    if (error == 0) {
        memory = mmap(NULL, sizeof *made.memory, PROT_READ | PROT_WRITE, flags, made.memory_fd, 0);
        if (memory == MAP_FAILED)
            error = -errno;
    }
    if (error < 0) {
        fdh_close(made.memory_fd);
        fdh_close(made.closed_fd);
        fdh_close(made.drained_fd);
        fdh_close(made.room_fd);
        close_many(made.signal_fds, 3);
        return error;
    }
    made.memory = memory; /* zeroed: open, no limit, every slot free */
    made.memory->abi = FDH_ABI;
    made.memory->slots = FDH_GATE_SLOTS;
    made.memory->magic = GATE_MAGIC;
    error = fdh_gate_attach(&made);
    if (error < 0) {
        fdh_gate_deinit(&made);
        return error;
    }
    *gate = made;
    return 0;
}

int fdh_gate_map_consume(struct fdh_gate *gate, int memory_fd, int closed_fd, int drained_fd, int room_fd,
                         bool read_only) {
    int error = -ENOSYS;
#if FDH_LINUX
    struct stat status;
    int seals = fcntl(memory_fd, F_GET_SEALS);
    if (seals < 0 || fstat(memory_fd, &status) < 0)
        error = errno == EINVAL ? -EBADMSG : -errno; /* EINVAL: no memfd */
    else if (!(seals & F_SEAL_SHRINK) || status.st_size != (off_t)sizeof *gate->memory)
        error = -EBADMSG; /* touching a mapping beyond the end of its file is SIGBUS */
    else {
        int protection = read_only ? PROT_READ : PROT_READ | PROT_WRITE;
        void *memory = mmap(NULL, sizeof *gate->memory, protection, MAP_SHARED, memory_fd, 0);
        if (memory == MAP_FAILED)
            error = -errno;
        else {
            const struct fdh_gate_memory *mapped = memory;
            if (mapped->magic == GATE_MAGIC && mapped->abi == FDH_ABI && mapped->slots == FDH_GATE_SLOTS) {
                struct fdh_gate made = gate_null;
                made.memory = memory;
                made.memory_fd = memory_fd;
                made.closed_fd = closed_fd;
                made.drained_fd = drained_fd;
                made.room_fd = room_fd;
                *gate = made;
                return 0;
            }
            munmap(memory, sizeof *gate->memory);
            error = -EBADMSG;
        }
    }
#else
    (void)gate;
    (void)read_only;
#endif
    fdh_close(memory_fd);
    fdh_close(closed_fd);
    fdh_close(drained_fd);
    fdh_close(room_fd);
    return error;
}

/* --- accept loop -------------------------------------------------------------------------------------- */

/* What accept(2) may report of one connection or of the network, while the listener is well: go on with the next. */
static bool concerns_one_connection(int error) {
    switch (error) {
    case EINTR:
    case ECONNABORTED:
    case ENETDOWN:
    case EPROTO:
    case ENOPROTOOPT:
    case EHOSTDOWN:
    case EHOSTUNREACH:
    case ENETUNREACH:
    case EPERM:
#ifdef ENONET
    case ENONET:
#endif
        return true;
    default:
        return false;
    }
}

static int accept_one(int listener) {
#if FDH_LINUX
    return accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
#else
    int fd = accept(listener, NULL, NULL);
    if (fd >= 0) {
        int error = set_flags(fd, true);
        if (error < 0) {
            fdh_close(fd);
            errno = -error;
            return -1;
        }
    }
    return fd;
#endif
}

int fdh_accept(struct fdh_gate *gate, int listener, int *fds, size_t capacity, size_t *np) {
    int flags = fcntl(listener, F_GETFL);
    if (flags < 0)
        return -errno;
    /* The flag belongs to the open file, which other processes share and may have changed. */
    if (!(flags & O_NONBLOCK) && fcntl(listener, F_SETFL, flags | O_NONBLOCK) < 0)
        return -errno;
    if (gate != NULL)
        atomic_fetch_add(&gate->slot->accepting, 1);
    size_t n = 0;
    int result = FDH_MORE;
    while (n < capacity) {
        if (gate != NULL) {
            int refused = enter_step(gate);
            if (refused != 0) {
                result = refused;
                break;
            }
        }
        int fd = accept_one(listener);
        if (fd >= 0) {
            fds[n++] = fd;
            continue;
        }
        int error = errno;
        if (gate != NULL)
            take_back_enter(gate);
        if (concerns_one_connection(error))
            continue;
        if (error == EAGAIN || error == EWOULDBLOCK)
            result = 0;
        else if (error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM)
            result = FDH_PAUSE;
        else
            result = -error;
        break;
    }
    if (gate != NULL)
        atomic_fetch_sub(&gate->slot->accepting, 1);
    if (result < 0) { /* only before the first connection: a listener does not stop being one in between */
        for (size_t i = 0; i < n; i++) {
            fdh_close(fds[i]);
            if (gate != NULL)
                fdh_gate_leave_forced(gate);
        }
        return result;
    }
    *np = n;
    return result;
}

/* --- processes ---------------------------------------------------------------------------------------- */

int fdh_pidfd_open(int64_t pid, int *pidfdp) {
#if FDH_LINUX
    if (pid <= 0 || pid > INT_MAX)
        return -ESRCH;
    int fd = (int)syscall(SYS_pidfd_open, (pid_t)pid, 0); /* close-on-exec by itself */
    if (fd < 0)
        return -errno;
    *pidfdp = fd;
    return 0;
#else
    (void)pid;
    (void)pidfdp;
    return -ENOSYS;
#endif
}

int fdh_pidfd_getfd(int pidfd, int fd, int *fdp) {
#if FDH_LINUX
    int copy = (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0); /* close-on-exec by itself */
    if (copy < 0)
        return -errno;
    *fdp = copy;
    return 0;
#else
    (void)pidfd;
    (void)fd;
    (void)fdp;
    return -ENOSYS;
#endif
}

int fdh_pidfd_signal(int pidfd, int signal_number) {
#if FDH_LINUX
    return syscall(SYS_pidfd_send_signal, pidfd, signal_number, NULL, 0) < 0 ? -errno : 0;
#else
    (void)pidfd;
    (void)signal_number;
    return -ENOSYS;
#endif
}

int fdh_pidfd_id(int pidfd, uint64_t *idp) {
#if FDH_LINUX
    struct statfs filesystem;
    struct stat status;
    if (fstatfs(pidfd, &filesystem) < 0 || fstat(pidfd, &status) < 0)
        return -errno;
    /* Before Linux 6.9 all pidfds share the one inode of anon_inodefs, which names nothing. */
    *idp = filesystem.f_type == FDH_PIDFS_MAGIC ? (uint64_t)status.st_ino : 0;
    return 0;
#else
    (void)pidfd;
    (void)idp;
    return -ENOSYS;
#endif
}

int fdh_pidfd_wait(int pidfd, int64_t deadline, struct fdh_exit *exitp) {
#if FDH_LINUX
    /* A pidfd is readable once the process (its last thread) has ended, whoever's child it was. */
    struct fdh_exit ended = {-1, 0, 0};
    int condition = wait_for(pidfd, POLLIN, deadline);
    if (condition < 0)
        return condition;
    if (condition == FDH_AGAIN) {
        *exitp = ended;
        return condition;
    }
    siginfo_t info;
    memset(&info, 0, sizeof info);
    int rc;
    do
        rc = waitid((idtype_t)FDH_P_PIDFD, (id_t)pidfd, &info, WEXITED | WNOHANG);
    while (rc < 0 && errno == EINTR);
    if (rc == 0 && info.si_pid != 0) {
        ended.known = 1;
        if (info.si_code == CLD_EXITED)
            ended.status = info.si_status;
        else
            ended.signal = info.si_status;
    } else if (rc < 0 && errno != ECHILD && errno != EINVAL) {
        /* ECHILD: not our child, or reaped already; EINVAL: P_PIDFD is younger than pidfd_open by one release */
        return -errno;
    }
    *exitp = ended;
    return 0;
#else
    (void)pidfd;
    (void)deadline;
    (void)exitp;
    return -ENOSYS;
#endif
}

int fdh_subreaper(bool on) {
#if FDH_LINUX
    return prctl(PR_SET_CHILD_SUBREAPER, on ? 1UL : 0UL, 0, 0, 0) < 0 ? -errno : 0;
#else
    (void)on;
    return -ENOSYS;
#endif
}

/* --- spawn -------------------------------------------------------------------------------------------- */

struct child {
    const struct fdh_spawn *spawn;
    pid_t parent;
    int report_fd; /* where the error goes when memory is not shared; -1 when it is */
    int step;
    int error;
};

static void write_number(char *at, int64_t number) {
    char digits[24];
    size_t n = 0;
    do
        digits[n++] = (char)('0' + number % 10);
    while ((number /= 10) > 0);
    while (n > 0)
        *at++ = digits[--n];
    *at = '\0';
}

/* Closes everything from `from` on but `keep`. */
static void close_from(int from, int keep) {
#if defined(__linux__)
    unsigned first = (unsigned)from;
    if (keep >= from) {
        if ((keep == from || syscall(SYS_close_range, first, (unsigned)keep - 1, 0) == 0) &&
            syscall(SYS_close_range, (unsigned)keep + 1, ~0U, 0) == 0)
            return;
    } else if (syscall(SYS_close_range, first, ~0U, 0) == 0)
        return;
#endif
    struct rlimit limit;
    int end = 65536;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < 1048576)
        end = (int)limit.rlim_cur;
    for (int fd = from; fd < end; fd++)
        if (fd != keep)
            close(fd);
}

/* Makes the child's table what `fds` says. A source that lies below its target may be overwritten before its turn, so
 * those are moved up first; then each target is filled in ascending order, where no later source can be below. */
static int arrange_fds(int *fds, size_t n, int *keep) {
    if (*keep >= 0 && (size_t)*keep < n) {
        int moved = fcntl(*keep, F_DUPFD_CLOEXEC, (int)n);
        if (moved < 0)
            return -errno;
        *keep = moved;
    }
    for (size_t i = 0; i < n; i++)
        if (fds[i] >= 0 && (size_t)fds[i] < i) {
            fds[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, (int)n);
            if (fds[i] < 0)
                return -errno;
        }
    for (size_t i = 0; i < n; i++) {
        int target = (int)i, rc;
        if (fds[i] < 0) {
            close(target);
            continue;
        }
        if (fds[i] == target)
            rc = fcntl(target, F_SETFD, 0);
        else
            do
                rc = dup2(fds[i], target);
            while (rc < 0 && (errno == EINTR || errno == EBUSY));
        if (rc < 0)
            return -errno;
    }
    close_from((int)n, *keep);
    return 0;
}

static int become(const struct fdh_spawn *spawn) {
#if defined(__linux__)
    /* Raw: the C library's functions would make every thread of the process follow, by a signal, and the threads that it
     * knows are the parent's. */
    if (syscall(SYS_setgroups, spawn->n_groups, spawn->groups) < 0 ||
        syscall(SYS_setresgid, spawn->gid, spawn->gid, spawn->gid) < 0 ||
        syscall(SYS_setresuid, spawn->uid, spawn->uid, spawn->uid) < 0)
        return -errno;
#else
    if (setgroups((int)spawn->n_groups, (const gid_t *)spawn->groups) < 0 || setgid(spawn->gid) < 0 ||
        setuid(spawn->uid) < 0)
        return -errno;
#endif
    return 0;
}

/* glibc has an enumeration for what is an int elsewhere. */
#if defined(__GLIBC__)
#define RESOURCE(number) ((__rlimit_resource_t)(number))
#else
#define RESOURCE(number) (number)
#endif

static rlim_t limit_of(uint64_t value) {
    return value == FDH_UNLIMITED ? RLIM_INFINITY : (rlim_t)value;
}

/* Every disposition becomes the default. On Linux by raw system calls: the C library refuses to touch 32 and 33, which it
 * uses itself, yet an ancestor may have left those ignored (seen; test: ignored_signals_are_default_again_…). */
static void reset_signals(void) {
#if defined(__linux__)
    /* All zero, whatever the architecture's order of members: SIG_DFL, no flags, an empty mask. */
    static const uint64_t standard[16];
    for (int number = 1; number < _NSIG; number++)
        syscall(SYS_rt_sigaction, number, standard, NULL, (size_t)(_NSIG / 8)); /* KILL and STOP refuse */
#else
    struct sigaction standard;
    memset(&standard, 0, sizeof standard);
    standard.sa_handler = SIG_DFL;
    for (int number = 1; number < NSIG; number++)
        sigaction(number, &standard, NULL);
#endif
}

static int prepare_child(struct child *child) {
    const struct fdh_spawn *spawn = child->spawn;
    reset_signals();

    child->step = FDH_STEP_GROUP;
    if (spawn->own_group == 2 ? setsid() < 0 : spawn->own_group == 1 && setpgid(0, 0) < 0)
        return -errno;
    child->step = FDH_STEP_LIMITS;
    for (size_t i = 0; i < spawn->n_limits; i++) {
        const struct fdh_limit *limit = &spawn->limits[i];
        struct rlimit wanted = {.rlim_cur = limit_of(limit->soft), .rlim_max = limit_of(limit->hard)};
        if (setrlimit(RESOURCE(limit->resource), &wanted) < 0)
            return -errno;
    }
    child->step = FDH_STEP_ROOT;
    if (spawn->root != NULL && (chroot(spawn->root) < 0 || chdir("/") < 0))
        return -errno;
    child->step = FDH_STEP_IDENTITY;
    if (spawn->set_identity) {
        int error = become(spawn);
        if (error < 0)
            return error;
    }
#if defined(__linux__)
    /* After the change of identity, which clears it (prctl(2)). */
    if (spawn->death_signal != 0) {
        if (prctl(PR_SET_PDEATHSIG, (unsigned long)spawn->death_signal, 0, 0, 0) < 0)
            return -errno;
        if (getppid() != child->parent)
            return -ESRCH; /* it died before the request was made */
    }
#endif
    child->step = FDH_STEP_PRIVILEGES;
    if (spawn->no_new_privileges) {
#if defined(__linux__)
        if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
            return -errno;
#else
        return -ENOSYS;
#endif
    }
    if (spawn->set_mask)
        umask((mode_t)spawn->mask);
    child->step = FDH_STEP_DIRECTORY;
    if (spawn->directory != NULL && chdir(spawn->directory) < 0)
        return -errno;
    child->step = FDH_STEP_FDS;
    int error = arrange_fds(spawn->fds, spawn->n_fds, &child->report_fd);
    if (error < 0)
        return error;
    for (char **entry = spawn->envp; *entry != NULL; entry++)
        if (strncmp(*entry, "LISTEN_PID=", 11) == 0)
            write_number(*entry + 11, getpid());
    sigset_t mask;
    sigemptyset(&mask);
    for (int number = 1; number <= 64 && number < NSIG; number++)
        if (spawn->blocked_signals >> (number - 1) & 1)
            sigaddset(&mask, number);
    child->step = FDH_STEP_EXEC;
    sigprocmask(SIG_SETMASK, &mask, NULL);
    execve(spawn->file, spawn->argv, spawn->envp);
    return -errno;
}

static int run_child(void *argument) {
    struct child *child = argument;
    child->error = prepare_child(child);
    if (child->report_fd >= 0) {
        int report[2] = {child->step, child->error};
        ssize_t ignored = write(child->report_fd, report, sizeof report);
        (void)ignored;
    }
    _exit(127);
}

static void reap(pid_t pid) {
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        ;
}

#if !FDH_LINUX
/* Memory is not shared: the error comes through a pipe that the exec closes. */
static int spawn_by_fork(struct child *child, pid_t *pidp) {
    int pair[2];
    child->step = FDH_STEP_FORK;
    if (pipe(pair) < 0)
        return -errno;
    int error = set_flags(pair[0], false);
    if (error == 0)
        error = set_flags(pair[1], false);
    pid_t pid = error == 0 ? fork() : -1;
    if (pid == 0) {
        close(pair[0]);
        child->report_fd = pair[1];
        run_child(child);
    }
    if (pid < 0) {
        error = error != 0 ? error : -errno;
        close_many(pair, 2);
        return error;
    }
    fdh_close(pair[1]);
    int report[2] = {0, 0};
    ssize_t got;
    do
        got = read(pair[0], report, sizeof report);
    while (got < 0 && errno == EINTR);
    fdh_close(pair[0]);
    if (got == (ssize_t)sizeof report) {
        reap(pid);
        child->step = report[0];
        return report[1];
    }
    *pidp = pid;
    return 0;
}
#else
/* The child's frames on the borrowed stack never returned, so the address sanitizer takes what they poisoned for poisoned
 * still, and would blame whoever uses that part of the parent's stack next. */
#if FDH_ADDRESS_SANITIZER
extern void __asan_unpoison_memory_region(void const volatile *address, size_t size);
#define FORGET_STACK(stack) __asan_unpoison_memory_region(stack, sizeof stack)
#else
#define FORGET_STACK(stack) (void)0
#endif

static int spawn_by_clone(struct child *child, pid_t *pidp, int *pidfdp) {
    _Alignas(16) char stack[65536]; /* the parent stands still meanwhile, so its frame can lend it */
    int pidfd = -1;
    child->step = FDH_STEP_FORK;
    child->error = 0;
    int flags = CLONE_VM | CLONE_VFORK | CLONE_PIDFD | SIGCHLD;
    pid_t pid = clone(run_child, stack + sizeof stack, flags, child, &pidfd);
    FORGET_STACK(stack);
    if (pid < 0)
        return -errno;
    if (child->error < 0) {
        fdh_close(pidfd);
        reap(pid);
        return child->error;
    }
    *pidp = pid;
    *pidfdp = pidfd;
    return 0;
}
#endif

int fdh_spawn(const struct fdh_spawn *spawn, int64_t *pidp, int *pidfdp, int *stepp) {
    struct child child = {.spawn = spawn, .parent = getpid(), .report_fd = -1, .step = 0, .error = 0};
    pid_t pid = -1;
    int pidfd = -1;
    sigset_t all, before;
    sigfillset(&all);
    /* No handler of ours may run in the child, which shares our memory; it unblocks what it shall after resetting. */
    pthread_sigmask(SIG_BLOCK, &all, &before);
#if FDH_LINUX
    int error = spawn_by_clone(&child, &pid, &pidfd);
    if (error == 0 && pidfd < 0 && fdh_pidfd_open(pid, &pidfd) < 0)
        pidfd = -1;
#else
    int error = spawn_by_fork(&child, &pid);
#endif
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error < 0) {
        *stepp = child.step;
        return error;
    }
    *pidp = pid;
    *pidfdp = pidfd;
    return 0;
}

/* --- capabilities ------------------------------------------------------------------------------------- */

#if defined(__linux__)
int fdh_capabilities_limit(uint64_t kept) {
    struct {
        uint32_t version;
        int32_t pid;
    } header = {0x20080522, 0}; /* _LINUX_CAPABILITY_VERSION_3: since Linux 2.6.26 */
    struct {
        uint32_t effective, permitted, inheritable;
    } sets[2];
    if (syscall(SYS_capget, &header, sets) < 0)
        return -errno;
    for (unsigned long number = 0; number < 64; number++)
        if (!(kept >> number & 1)) {
            /* First the bounding set, out of which a program of root's gets its capabilities back when it executes. */
            int bound = prctl(PR_CAPBSET_READ, number, 0, 0, 0);
            if (bound < 0)
                break; /* beyond the last that this kernel knows */
            if (bound > 0 && prctl(PR_CAPBSET_DROP, number, 0, 0, 0) < 0)
                return -errno; /* EPERM, at the first: CAP_SETPCAP counts for all */
        }
    /* One by one they leave with the permitted set, and the ambient with the inheritable. */
    for (int i = 0; i < 2; i++) {
        sets[i].permitted &= (uint32_t)(kept >> (32 * i));
        sets[i].effective = sets[i].permitted;
        sets[i].inheritable = 0;
    }
    return syscall(SYS_capset, &header, sets) < 0 ? -errno : 0;
}
#else
int fdh_capabilities_limit(uint64_t kept) {
    (void)kept;
    return -ENOSYS;
}
#endif

/* --- relay -------------------------------------------------------------------------------------------- */

#define RELAY_MAGIC 0x46444872656c6131u /* "FDHrela1" */
#define RELAY_PIECE 4096 /* PIPE_BUF on Linux: so much goes into a pipe as a whole, or not at all */
#define RELAY_LOOK_MS 100
/* What is kept, and the place that the read under way may be writing to. */
#define RELAY_RING (FDH_RELAY_KEPT + RELAY_PIECE)

struct relay_stream {
    _Atomic uint64_t taken;    /* bytes read, by all relays so far; the last ones are in the ring */
    _Atomic uint64_t given;    /* of these, written or dropped: at most 2 * RELAY_PIECE behind */
    _Atomic uint64_t dropped;
    _Atomic uint32_t reading;  /* between a read and its note of it */
    _Atomic uint32_t cut;      /* of the prefix of the line that begins at `given`, what is written already */
    unsigned char ring[RELAY_RING];
};

struct relay_memory {
    _Atomic uint64_t magic;
    struct relay_stream streams[FDH_RELAY_STREAMS];
};

#if FDH_LINUX

int fdh_relay_create(int *memory_fdp) {
    int fd = memfd_create("fdhandoff-relay", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return -errno;
    static const uint64_t magic = RELAY_MAGIC;
    if (ftruncate(fd, (off_t)sizeof(struct relay_memory)) < 0 ||
        pwrite(fd, &magic, sizeof magic, (off_t)offsetof(struct relay_memory, magic)) != (ssize_t)sizeof magic ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
        int error = errno != 0 ? -errno : -EIO;
        fdh_close(fd);
        return error;
    }
    *memory_fdp = fd;
    return 0;
}

static int relay_map(int fd, int protection, struct relay_memory **memoryp) {
    struct stat status;
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || fstat(fd, &status) < 0)
        return errno == EINVAL ? -EBADMSG : -errno; /* EINVAL: no memfd */
    if (!(seals & F_SEAL_SHRINK) || status.st_size != (off_t)sizeof(struct relay_memory))
        return -EBADMSG; /* touching a mapping beyond the end of its file is SIGBUS */
    void *memory = mmap(NULL, sizeof(struct relay_memory), protection, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED)
        return -errno;
    if (atomic_load(&((struct relay_memory *)memory)->magic) != RELAY_MAGIC) {
        munmap(memory, sizeof(struct relay_memory));
        return -EBADMSG;
    }
    *memoryp = memory;
    return 0;
}

int fdh_relay_read(int memory_fd, uint32_t stream, int from, void *buffer, size_t capacity, size_t *np, uint64_t *readp,
                   uint64_t *droppedp) {
    struct relay_memory *memory;
    if (stream >= FDH_RELAY_STREAMS)
        return -EINVAL;
    int error = relay_map(memory_fd, PROT_READ, &memory);
    if (error < 0)
        return error;
    struct relay_stream *s = &memory->streams[stream];
    /* In this order: what has left the pipe is being noted, or was before we look. */
    struct pollfd p = {.fd = from, .events = POLLIN, .revents = 0};
    bool more = from >= 0 && poll(&p, 1, 0) > 0 && (p.revents & POLLIN) != 0;
    if (from >= 0 && atomic_load(&s->reading) != 0)
        more = true;
    uint64_t taken = atomic_load(&s->taken);
    size_t n = taken < FDH_RELAY_KEPT ? (size_t)taken : FDH_RELAY_KEPT;
    if (n > capacity)
        n = capacity;
    uint64_t begin = taken - n;
    for (size_t done = 0; done < n;) {
        size_t at = (size_t)((begin + done) % RELAY_RING);
        size_t part = RELAY_RING - at < n - done ? RELAY_RING - at : n - done;
        memcpy((unsigned char *)buffer + done, s->ring + at, part);
        done += part;
    }
    /* Meanwhile the relay has read on: what it may have overwritten is older than this. */
    uint64_t now = atomic_load(&s->taken);
    uint64_t oldest = now > FDH_RELAY_KEPT ? now - FDH_RELAY_KEPT : 0;
    size_t lost = oldest > begin ? (size_t)(oldest - begin) : 0;
    if (lost >= n)
        n = 0;
    else if (lost > 0) {
        n -= lost;
        memmove(buffer, (unsigned char *)buffer + lost, n);
    }
    *np = n;
    *readp = taken;
    *droppedp = atomic_load(&s->dropped);
    munmap(memory, sizeof *memory);
    return more ? FDH_MORE : 0;
}

/* Whatever the relay calls once it has given its memory back. Read by way of `volatile`, so that the compiler makes no
 * direct calls of them, which might be bound late. */
struct relay_calls {
    int (*open)(const char *, int, ...);
    int (*close)(int);
    ssize_t (*read)(int, void *, size_t);
    ssize_t (*writev)(int, const struct iovec *, int);
    int (*poll)(struct pollfd *, nfds_t, int);
    int (*fcntl)(int, int, ...);
    int (*clock_gettime)(clockid_t, struct timespec *);
    int (*madvise)(void *, size_t, int);
    long (*syscall)(long, ...);
};
static const volatile struct relay_calls relay_calls = {open, close,         read,    writev, poll,
                                                        fcntl, clock_gettime, madvise, syscall};

struct relay_end {
    struct relay_stream *shared;
    int from, to;  /* from: -1 once it has come to its end */
    bool drained;  /* nothing more is in the pipe at this moment */
    int64_t late;  /* when a piece for a non-blocking target is dropped; 0: it is not waiting */
    size_t piece;  /* bytes of the stream that the next write would carry */
    int n_parts;
    struct iovec parts[384];
};

struct relay_run {
    struct relay_calls call;
    int *error; /* errno of this thread */
    const struct fdh_relay *relay;
    int memory_fd;
    size_t prefix_size;
    unsigned char prefix[FDH_RELAY_PREFIX_MAX];
    struct relay_end ends[FDH_RELAY_STREAMS];
};

/* - giving back - */

#if !FDH_SANITIZED
struct relay_mapping {
    uintptr_t begin, end;
    uint64_t device, inode;
    bool private;
    char name; /* of one that is no file, its first letter: h(eap), s(tack), v(dso), a(non:…), or 0 */
};

static uint64_t relay_number(const char **at, unsigned base) {
    uint64_t number = 0;
    for (;; ++*at) {
        char c = **at;
        unsigned digit = c >= '0' && c <= '9' ? (unsigned)(c - '0') : c >= 'a' && c <= 'f' ? (unsigned)(c - 'a') + 10 : 16;
        if (digit >= base)
            return number;
        number = number * base + digit;
    }
}

/* A line of /proc/self/maps: "begin-end rwxp offset major:minor inode   name". */
static void relay_parse(const char *at, struct relay_mapping *mapping) {
    mapping->begin = (uintptr_t)relay_number(&at, 16);
    at += *at == '-';
    mapping->end = (uintptr_t)relay_number(&at, 16);
    at += *at == ' ';
    mapping->private = false;
    for (; *at != ' ' && *at != '\0'; at++)
        mapping->private = *at == 'p';
    at += *at == ' ';
    relay_number(&at, 16);
    at += *at == ' ';
    mapping->device = relay_number(&at, 16) << 32;
    at += *at == ':';
    mapping->device |= relay_number(&at, 16);
    at += *at == ' ';
    mapping->inode = relay_number(&at, 10);
    while (*at == ' ')
        at++;
    mapping->name = at[0] == '[' ? at[1] : '\0';
}

/* Calls `each` for every mapping, with the one before. */
static void relay_each_mapping(struct relay_run *run, void *context,
                               void (*each)(struct relay_run *, void *, const struct relay_mapping *)) {
    char buffer[1024], line[128];
    size_t length = 0;
    int fd = run->call.open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    for (;;) {
        ssize_t got = run->call.read(fd, buffer, sizeof buffer);
        if (got <= 0)
            break;
        for (ssize_t i = 0; i < got; i++)
            if (buffer[i] == '\n') {
                struct relay_mapping mapping;
                line[length] = '\0';
                relay_parse(line, &mapping);
                each(run, context, &mapping);
                length = 0;
            } else if (length < sizeof line - 1)
                line[length++] = buffer[i];
    }
    run->call.close(fd);
}

#define RELAY_FILES 8
struct relay_kept {
    uintptr_t addresses[12]; /* of code or data that is needed */
    size_t n_addresses;
    uint64_t files[RELAY_FILES][2];
    size_t n_files;
    uintptr_t end; /* of the last mapping of a kept file: what follows it at once is its .bss */
};

static bool relay_holds(const struct relay_kept *kept, const struct relay_mapping *mapping) {
    for (size_t i = 0; i < kept->n_addresses; i++)
        if (kept->addresses[i] >= mapping->begin && kept->addresses[i] < mapping->end)
            return true;
    return false;
}

static bool relay_knows(const struct relay_kept *kept, const struct relay_mapping *mapping) {
    for (size_t i = 0; i < kept->n_files; i++)
        if (kept->files[i][0] == mapping->device && kept->files[i][1] == mapping->inode)
            return true;
    return false;
}

static void relay_note_file(struct relay_run *run, void *context, const struct relay_mapping *mapping) {
    struct relay_kept *kept = context;
    (void)run;
    if (mapping->inode != 0 && relay_holds(kept, mapping) && !relay_knows(kept, mapping) && kept->n_files < RELAY_FILES) {
        kept->files[kept->n_files][0] = mapping->device;
        kept->files[kept->n_files++][1] = mapping->inode;
    }
}

static void relay_drop_mapping(struct relay_run *run, void *context, const struct relay_mapping *mapping) {
    struct relay_kept *kept = context;
    if (!mapping->private)
        return;
    if (mapping->inode != 0 && relay_knows(kept, mapping)) {
        kept->end = mapping->end;
        return;
    }
    bool heap = mapping->name == 'h', named = mapping->name != '\0' && mapping->name != 'a';
    if (relay_holds(kept, mapping) || (!heap && (named || mapping->begin == kept->end)))
        return;
    run->call.madvise((void *)mapping->begin, mapping->end - mapping->begin, MADV_DONTNEED);
}

/* From here on only run->call may be called. (test: a_relay_gives_back_the_memory_that_it_inherited) */
static void relay_give_back(struct relay_run *run) {
    struct relay_kept kept;
    size_t n = 0;
    kept.addresses[n++] = (uintptr_t)run; /* the stack */
    kept.addresses[n++] = (uintptr_t)run->error;
    kept.addresses[n++] = (uintptr_t)&relay_calls;
    kept.addresses[n++] = (uintptr_t)getauxval(AT_BASE); /* the dynamic linker, whose data the C library reads */
    kept.addresses[n++] = (uintptr_t)run->call.read;
    kept.addresses[n++] = (uintptr_t)run->call.writev;
    kept.addresses[n++] = (uintptr_t)run->call.poll;
    kept.addresses[n++] = (uintptr_t)run->call.fcntl;
    kept.addresses[n++] = (uintptr_t)run->call.clock_gettime;
    kept.addresses[n++] = (uintptr_t)run->call.open;
    kept.addresses[n++] = (uintptr_t)run->call.madvise;
    kept.n_addresses = n;
    kept.n_files = 0;
    kept.end = 0;
    /* In a program that is not position-independent even a pointer may lead to a stub that is bound when it is first called. */
    struct timespec ts;
    run->call.writev(-1, NULL, 0);
    run->call.poll(NULL, 0, 0);
    run->call.fcntl(-1, F_GETFL);
    run->call.clock_gettime(CLOCK_MONOTONIC, &ts);
    run->call.madvise(NULL, 0, MADV_DONTNEED);
    run->call.syscall(SYS_getpid);
    relay_each_mapping(run, &kept, relay_note_file);
    if (kept.n_files > 0 && kept.n_files < RELAY_FILES)
        relay_each_mapping(run, &kept, relay_drop_mapping);
}
#endif

/* - passing on - */

static unsigned char relay_byte(const struct relay_end *end, uint64_t position) {
    return end->shared->ring[position % RELAY_RING];
}

/* The position behind the last line's end in [from, to), or `from` when there is none. */
static uint64_t relay_last_line(const struct relay_end *end, uint64_t from, uint64_t to) {
    while (to > from && relay_byte(end, to - 1) != '\n')
        to--;
    return to;
}

/* Reads until a piece is full or nothing more is there. */
static void relay_take(struct relay_run *run, struct relay_end *end) {
    struct relay_stream *s = end->shared;
    end->drained = true;
    while (end->from >= 0) {
        uint64_t taken = atomic_load(&s->taken);
        if (taken - atomic_load(&s->given) >= RELAY_PIECE) {
            end->drained = false;
            return;
        }
        size_t at = (size_t)(taken % RELAY_RING);
        size_t room = RELAY_RING - at < RELAY_PIECE ? RELAY_RING - at : RELAY_PIECE;
        atomic_store(&s->reading, 1);
        ssize_t got = run->call.read(end->from, s->ring + at, room);
        if (got > 0)
            atomic_store(&s->taken, taken + (uint64_t)got);
        atomic_store(&s->reading, 0);
        if (got < 0 && *run->error == EINTR)
            continue;
        if (got == 0 || (got < 0 && *run->error != EAGAIN && *run->error != EWOULDBLOCK)) {
            run->call.close(end->from);
            end->from = -1;
        }
        if (got <= 0)
            return;
    }
}

static void relay_part(struct relay_end *end, void *base, size_t size) {
    end->parts[end->n_parts].iov_base = base;
    end->parts[end->n_parts++].iov_len = size;
}

static void relay_parts(struct relay_end *end, uint64_t from, uint64_t to) {
    while (from < to) {
        size_t at = (size_t)(from % RELAY_RING);
        size_t size = RELAY_RING - at < to - from ? RELAY_RING - at : (size_t)(to - from);
        relay_part(end, end->shared->ring + at, size);
        from += size;
    }
}

static void relay_compose_plain(struct relay_end *end, uint64_t given, uint64_t taken) {
    uint64_t to = taken - given > RELAY_PIECE ? given + RELAY_PIECE : taken;
    if (!end->drained || to < taken) {
        uint64_t line = relay_last_line(end, given, to);
        to = line > given ? line : to;
    }
    relay_parts(end, given, to);
    end->piece = (size_t)(to - given);
}

static void relay_compose_lines(struct relay_run *run, struct relay_end *end, uint64_t given, uint64_t taken) {
    size_t room = RELAY_PIECE;
    uint64_t at = given;
    while (at < taken && end->n_parts + 3 <= (int)(sizeof end->parts / sizeof end->parts[0])) {
        size_t written = at == given ? atomic_load(&end->shared->cut) : 0;
        size_t prefix = at == 0 || relay_byte(end, at - 1) == '\n' ? run->prefix_size - written : 0;
        if (prefix >= room)
            break;
        uint64_t limit = taken - at > room - prefix ? at + room - prefix : taken;
        uint64_t to = at;
        while (to < limit && relay_byte(end, to) != '\n')
            to++;
        bool whole = to < limit;
        if (!whole && (at > given || (limit == taken && end->from >= 0)))
            break; /* it begins the next piece, or its end is yet to come */
        to += whole;
        if (prefix > 0)
            relay_part(end, run->prefix + written, prefix);
        relay_parts(end, at, to);
        room -= prefix + (size_t)(to - at);
        at = to;
    }
    end->piece = (size_t)(at - given);
}

/* What is to be written next, if anything. */
static void relay_compose(struct relay_run *run, struct relay_end *end) {
    uint64_t taken = atomic_load(&end->shared->taken), given = atomic_load(&end->shared->given);
    end->n_parts = 0;
    end->piece = 0;
    if (taken == given)
        return;
    if (run->prefix_size > 0)
        relay_compose_lines(run, end, given, taken);
    else
        relay_compose_plain(end, given, taken);
}

static void relay_drop(struct relay_end *end) {
    struct relay_stream *s = end->shared;
    atomic_fetch_add(&s->given, end->piece);
    atomic_fetch_add(&s->dropped, end->piece);
    atomic_store(&s->cut, 0);
    end->late = 0;
}

static int64_t relay_now(struct relay_run *run) {
    struct timespec ts;
    run->call.clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

/* A target that can take nothing: one that is non-blocking has its second, any other one all the time that it needs. */
static void relay_start_clock(struct relay_run *run, struct relay_end *end) {
    int flags = run->call.fcntl(end->to, F_GETFL);
    if (end->late == 0 && flags >= 0 && (flags & O_NONBLOCK) != 0)
        end->late = relay_now(run) + 1000000000;
}

static void relay_look_at_clock(struct relay_run *run, struct relay_end *end) {
    if (end->late != 0 && relay_now(run) >= end->late)
        relay_drop(end);
}

static void relay_give(struct relay_run *run, struct relay_end *end) {
    struct relay_stream *s = end->shared;
    ssize_t got = run->call.writev(end->to, end->parts, end->n_parts);
    if (got < 0) {
        if (*run->error == EAGAIN || *run->error == EWOULDBLOCK) {
            relay_look_at_clock(run, end);
            run->call.poll(NULL, 0, 5); /* poll has promised more than there was: not at once again */
        } else if (*run->error != EINTR)
            relay_drop(end);
        return;
    }
    end->late = 0;
    size_t left = (size_t)got, passed = 0;
    size_t cut = atomic_load(&s->cut);
    for (int i = 0; i < end->n_parts && left > 0; i++) {
        size_t size = end->parts[i].iov_len < left ? end->parts[i].iov_len : left;
        uintptr_t base = (uintptr_t)end->parts[i].iov_base, prefix = (uintptr_t)run->prefix;
        if (base >= prefix && base < prefix + sizeof run->prefix)
            cut = base - prefix + size;
        else {
            passed += size;
            cut = 0;
        }
        left -= size;
    }
    atomic_store(&s->cut, (uint32_t)cut);
    atomic_fetch_add(&s->given, passed);
}

static void relay_copy(struct relay_run *run) {
    int n_streams = run->relay->n_streams; /* the structure is the parent's: read before its memory is given back */
#if !FDH_SANITIZED
    relay_give_back(run);
#endif
    for (;;) {
        struct pollfd polls[2 * FDH_RELAY_STREAMS];
        struct relay_end *sources[2 * FDH_RELAY_STREAMS];
        nfds_t n = 0;
        bool late = false;
        for (int i = 0; i < n_streams; i++) {
            struct relay_end *end = &run->ends[i];
            relay_take(run, end);
            relay_compose(run, end);
            while (end->piece > 0 && end->to < 0) {
                relay_drop(end);
                relay_compose(run, end);
            }
            if (end->piece > 0) {
                polls[n].fd = end->to;
                polls[n].events = POLLOUT;
                sources[n++] = end;
                relay_start_clock(run, end);
                late = late || end->late != 0;
            }
            if (end->from >= 0 && (end->drained || end->piece == 0)) {
                polls[n].fd = end->from;
                polls[n].events = POLLIN;
                sources[n++] = end;
            }
        }
        if (n == 0)
            return; /* every pipe has come to its end, and all is written */
        for (nfds_t i = 0; i < n; i++)
            polls[i].revents = 0;
        run->call.poll(polls, n, late ? RELAY_LOOK_MS : -1);
        for (nfds_t i = 0; i < n; i++)
            if (polls[i].events == POLLOUT && polls[i].revents != 0)
                relay_give(run, sources[i]);
            else if (polls[i].events == POLLOUT)
                relay_look_at_clock(run, sources[i]);
    }
}

/* - beginning - */

static void relay_set_title(const char *title) {
    /* 48 and 49: where the command line lies, which we may write over. A NUL at its end keeps the kernel from showing what
     * follows, the environment (proc(5)). */
    uint64_t begin = own_stat(48), end = own_stat(49);
    if (begin == 0 || end <= begin)
        return;
    char *at = (char *)(uintptr_t)begin;
    for (; begin < end; begin++, at++) {
        *at = begin + 1 < end ? *title : '\0';
        title += *title != '\0';
    }
}

static int run_relay(void *argument) {
    const struct fdh_relay *relay = argument;
    struct relay_run run;
    struct relay_memory *memory;
    int fds[2 * FDH_RELAY_STREAMS + 1], none = -1;
    reset_signals();
    setsid();
    if (chdir("/") < 0) /* so that it keeps no file system busy */
        _exit(1);
    prctl(PR_SET_NAME, (unsigned long)"fdh-relay", 0, 0, 0);
    for (int i = 0; i < FDH_RELAY_STREAMS; i++) {
        fds[2 * i] = i < relay->n_streams ? relay->from[i] : -1;
        fds[2 * i + 1] = i < relay->n_streams ? relay->to[i] : -1;
    }
    fds[2 * FDH_RELAY_STREAMS] = relay->memory_fd;
    if (arrange_fds(fds, 2 * FDH_RELAY_STREAMS + 1, &none) < 0 ||
        relay_map(2 * FDH_RELAY_STREAMS, PROT_READ | PROT_WRITE, &memory) < 0)
        _exit(1);
    close(2 * FDH_RELAY_STREAMS);
    if (relay->title != NULL)
        relay_set_title(relay->title);
    run.call = relay_calls;
    run.error = &errno;
    run.relay = relay;
    run.prefix_size = relay->prefix != NULL ? strlen(relay->prefix) : 0;
    if (run.prefix_size > 0)
        memcpy(run.prefix, relay->prefix, run.prefix_size);
    for (int i = 0; i < FDH_RELAY_STREAMS; i++) {
        struct relay_end *end = &run.ends[i];
        struct relay_stream *s = &memory->streams[i];
        end->shared = s;
        end->from = 2 * i;
        end->to = i < relay->n_streams && relay->to[i] >= 0 ? 2 * i + 1 : -1;
        end->late = 0;
        atomic_store(&s->reading, 0); /* of one that was killed */
        uint64_t taken = atomic_load(&s->taken), given = atomic_load(&s->given);
        if (given > taken || taken - given > 2 * RELAY_PIECE)
            atomic_store(&s->given, taken);
        if (atomic_load(&s->cut) > run.prefix_size)
            atomic_store(&s->cut, 0);
    }
    relay_copy(&run);
    for (;;)
        run.call.syscall(SYS_exit_group, 0);
}

int fdh_relay_start(const struct fdh_relay *relay, int64_t *pidp, int *pidfdp) {
    _Alignas(16) char stack[65536]; /* the child gets a copy */
    struct relay_memory *memory;
    if (relay->n_streams < 1 || relay->n_streams > FDH_RELAY_STREAMS ||
        (relay->prefix != NULL && strlen(relay->prefix) > FDH_RELAY_PREFIX_MAX))
        return -EINVAL;
    int error = relay_map(relay->memory_fd, PROT_READ, &memory);
    if (error < 0)
        return error;
    munmap(memory, sizeof *memory);
    for (int i = 0; i < relay->n_streams; i++) {
        int flags = fcntl(relay->from[i], F_GETFL);
        if (flags < 0 || fcntl(relay->from[i], F_SETFL, flags | O_NONBLOCK) < 0 ||
            (relay->to[i] >= 0 && fcntl(relay->to[i], F_GETFD) < 0))
            return -errno;
    }
    sigset_t all, before;
    int pidfd = -1;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before); /* and so they stay in the child */
    pid_t pid = clone(run_relay, stack + sizeof stack, CLONE_PIDFD | SIGCHLD, (void *)(uintptr_t)relay, &pidfd);
    error = pid < 0 ? -errno : 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error < 0)
        return error;
    if (pidfd < 0 && fdh_pidfd_open(pid, &pidfd) < 0)
        pidfd = -1;
    *pidp = pid;
    *pidfdp = pidfd;
    return 0;
}

#else

int fdh_relay_create(int *memory_fdp) {
    (void)memory_fdp;
    return -ENOSYS;
}

int fdh_relay_start(const struct fdh_relay *relay, int64_t *pidp, int *pidfdp) {
    (void)relay;
    (void)pidp;
    (void)pidfdp;
    return -ENOSYS;
}

int fdh_relay_read(int memory_fd, uint32_t stream, int from, void *buffer, size_t capacity, size_t *np, uint64_t *readp,
                   uint64_t *droppedp) {
    (void)memory_fd;
    (void)stream;
    (void)from;
    (void)buffer;
    (void)capacity;
    (void)np;
    (void)readp;
    (void)droppedp;
    return -ENOSYS;
}

#endif

/* --- switch ------------------------------------------------------------------------------------------- */

#define NET_OFF 0xfff00000u    /* SKF_NET_OFF: offsets from the network header */
#define RANDOM_OFF 0xfffff038u /* SKF_AD_OFF + SKF_AD_RANDOM (56) */

struct program {
    struct fdh_instruction code[FDH_SWITCH_MAX];
    size_t n;
};

/* The longest program has 60 instructions (test: the_longest_program_fits). */
static void emit(struct program *p, int op, uint32_t k) {
    struct fdh_instruction *at = &p->code[p->n++];
    at->code = (uint16_t)op;
    at->jump_true = 0;
    at->jump_false = 0;
    at->k = k;
}

/* Continues when A is k; otherwise jumps, to be told where by land(). Returns where it stands. */
static size_t emit_unless(struct program *p, int op, uint32_t k) {
    emit(p, op, k);
    return p->n - 1;
}

static void land(struct program *p, const size_t *jumps, size_t n) {
    for (size_t i = 0; i < n; i++)
        p->code[jumps[i]].jump_false = (uint8_t)(p->n - jumps[i] - 1);
}

static uint32_t word_at(const unsigned char *bytes) {
    return (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 | bytes[3];
}

/* Source address and port are the probe's: its member. An IPv6 listener meets IPv4 packets too, with an IPv4 header, so
 * the version is looked at first. A header with options is longer; then the port is not found and it is no probe. */
static void emit_probe(struct program *p, const struct fdh_switch *choice) {
    size_t jumps[8], n = 0;
    bool v6 = choice->probe_family == AF_INET6;
    emit(p, OP_LOAD_BYTE, NET_OFF);
    emit(p, OP_RSH, 4);
    jumps[n++] = emit_unless(p, OP_JEQ, v6 ? 6 : 4);
    for (uint32_t i = 0; i < (v6 ? 4u : 1u); i++) {
        emit(p, OP_LOAD_WORD, NET_OFF + (v6 ? 8 : 12) + 4 * i);
        jumps[n++] = emit_unless(p, OP_JEQ, word_at(choice->probe_address + 4 * i));
    }
    emit(p, OP_LOAD_HALF, NET_OFF + (v6 ? 40 : 20));
    jumps[n++] = emit_unless(p, OP_JEQ, choice->probe_port);
    emit(p, OP_RET, choice->probe_index);
    land(p, jumps, n);
}

/* A := A ^ X, then through a multiplication and a shift, so that every bit of A depends on every bit so far. */
static void emit_mix(struct program *p) {
    emit(p, OP_MUL, 0x9e3779b1u);
    emit(p, OP_TAX, 0);
    emit(p, OP_RSH, 15);
    emit(p, OP_XOR_X, 0);
}

/* A := A ^ what is loaded. */
static void emit_fold(struct program *p, int load, uint32_t offset) {
    emit(p, OP_TAX, 0);
    emit(p, load, offset);
    emit(p, OP_XOR_X, 0);
}

static void emit_flow_of(struct program *p, bool v6) {
    emit(p, OP_LOAD_WORD, NET_OFF + (v6 ? 8 : 12));
    emit_mix(p);
    if (v6) {
        emit_fold(p, OP_LOAD_WORD, NET_OFF + 20); /* with the first word: network and host; two are enough */
        emit_mix(p);
    }
    emit_fold(p, OP_LOAD_HALF, NET_OFF + (v6 ? 40 : 20));
}

/* M[0] := a hash of source address and port. */
static void emit_flow(struct program *p, int family) {
    if (family != AF_INET6) {
        emit_flow_of(p, false);
    } else {
        emit(p, OP_LOAD_BYTE, NET_OFF);
        emit(p, OP_RSH, 4);
        size_t other = emit_unless(p, OP_JEQ, 6);
        emit_flow_of(p, true);
        emit(p, 0x05 /* BPF_JMP | BPF_JA */, 0);
        size_t over = p->n - 1;
        land(p, &other, 1);
        emit_flow_of(p, false);
        p->code[over].k = (uint32_t)(p->n - over - 1);
    }
    emit_mix(p);
    emit_mix(p);
    emit(p, OP_STORE, 0);
}

static void emit_pick(struct program *p, const struct fdh_share *share, bool by_flow) {
    if (share->count == 1) {
        emit(p, OP_RET, share->base);
        return;
    }
    emit(p, by_flow ? OP_LOAD_MEMORY : OP_LOAD_WORD, by_flow ? 0 : RANDOM_OFF);
    emit(p, OP_MOD, share->count);
    emit(p, OP_ADD, share->base);
    emit(p, OP_RET_A, 0);
}

int fdh_switch_compile(const struct fdh_switch *choice, struct fdh_instruction *program, size_t capacity, size_t *np) {
    const struct fdh_share *old_share = &choice->old_share, *new_share = &choice->new_share;
    bool only_old = choice->new_per_2_32 == 0, only_new = choice->new_per_2_32 == UINT32_MAX;
    if ((!only_new && old_share->count == 0) || (!only_old && new_share->count == 0))
        return -EINVAL;
    if (choice->probe_family != 0 && choice->probe_family != AF_INET && choice->probe_family != AF_INET6)
        return -EINVAL;
    struct program p;
    p.n = 0;
    bool by_flow = choice->by_flow != 0;
    if (choice->probe_family != 0)
        emit_probe(&p, choice);
    bool chooses = (!only_old && !only_new) || (only_new ? new_share : old_share)->count > 1;
    if (by_flow && chooses)
        emit_flow(&p, choice->family);
    if (only_old || only_new) {
        emit_pick(&p, only_new ? new_share : old_share, by_flow);
    } else {
        emit(&p, by_flow ? OP_LOAD_MEMORY : OP_LOAD_WORD, by_flow ? 0 : RANDOM_OFF);
        emit(&p, OP_JGE, choice->new_per_2_32);
        size_t jump = p.n - 1;
        emit_pick(&p, new_share, by_flow);
        p.code[jump].jump_true = (uint8_t)(p.n - jump - 1);
        emit_pick(&p, old_share, by_flow);
    }
    if (p.n > capacity)
        return -ENOBUFS;
    memcpy(program, p.code, p.n * sizeof p.code[0]);
    *np = p.n;
    return 0;
}

int fdh_switch_attach(int fd, const struct fdh_instruction *program, size_t n) {
#if FDH_LINUX
    if (n == 0 || n > FDH_SWITCH_MAX)
        return -EINVAL;
    struct socket_program request = {.n = (unsigned short)n, .code = program};
    return setsockopt(fd, SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, &request, sizeof request) < 0 ? -errno : 0;
#else
    (void)fd;
    (void)program;
    (void)n;
    return -ENOSYS;
#endif
}

int fdh_switch_detach(int fd) {
#if FDH_LINUX
    int unused = 0;
    return setsockopt(fd, SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, &unused, sizeof unused) < 0 ? -errno : 0;
#else
    (void)fd;
    return -ENOSYS;
#endif
}
