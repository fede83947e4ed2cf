/* Established connections to another process, in messages of 64 (or as many as is said) with a few bytes of state for each, every
 * message acknowledged, in microseconds for all: what a server in C would do, and nothing else. Arguments: turns, connections, and
 * how many are in a message. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MOST 16384
#define MOST_AT_ONCE 252
#define STATE 16 /* bytes beside each connection */
#define AHEAD 8  /* messages under way and not acknowledged */

static int fds[MOST];

static union {
    struct cmsghdr align;
    char room[CMSG_SPACE(sizeof(int) * MOST_AT_ONCE)];
} control;

static char state[STATE * MOST_AT_ONCE];

static void must(int ok, const char *what) {
    if (!ok) {
        perror(what);
        exit(1);
    }
}

/* The two sides on a processor each, where there are two: or the scheduler's choice would be measured. */
static void stay_on(int last) {
    cpu_set_t all, one;
    must(sched_getaffinity(0, sizeof all, &all) == 0, "sched_getaffinity");
    CPU_ZERO(&one);
    for (int i = last ? CPU_SETSIZE - 1 : 0; i >= 0 && i < CPU_SETSIZE; i += last ? -1 : 1)
        if (CPU_ISSET(i, &all)) {
            CPU_SET(i, &one);
            break;
        }
    must(sched_setaffinity(0, sizeof one, &one) == 0, "sched_setaffinity");
}

static void send_some(int sock, const int *some, size_t n) {
    struct iovec part = {state, STATE * n};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control};
    message.msg_controllen = CMSG_SPACE(sizeof(int) * n);
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * n);
    memcpy(CMSG_DATA(header), some, sizeof(int) * n);
    must(sendmsg(sock, &message, MSG_NOSIGNAL) == (ssize_t)(STATE * n), "sendmsg");
}

static size_t receive_some(int sock, int *some) {
    struct iovec part = {state, sizeof state};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control};
    message.msg_controllen = sizeof control;
    ssize_t size = recvmsg(sock, &message, MSG_CMSG_CLOEXEC);
    must(size > 0, "recvmsg");
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    must(header != NULL && !(message.msg_flags & MSG_CTRUNC), "descriptors were lost");
    size_t n = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    must((size_t)size == STATE * n, "state was cut");
    memcpy(some, CMSG_DATA(header), sizeof(int) * n);
    return n;
}

static void receiver(int sock, int turns, size_t all) {
    char byte = 0;
    for (int turn = 0; turn < turns; turn++) {
        size_t n = 0;
        while (n < all) {
            n += receive_some(sock, fds + n);
            must(write(sock, &byte, 1) == 1, "write");
        }
        for (size_t i = 0; i < n; i++)
            close(fds[i]);
        must(write(sock, &byte, 1) == 1, "write");
    }
}

/* The clients, who are silent, in a process of their own: so that this one may have as many connections. */
static void begin_clients(const struct sockaddr_in *server, size_t all, const int *ends) {
    pid_t child = fork();
    must(child >= 0, "fork");
    if (child)
        return; /* it ends with us, who have the other end */
    close(ends[1]);
    for (size_t i = 0; i < all; i++) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        must(fd >= 0 && connect(fd, (const struct sockaddr *)server, sizeof *server) == 0, "connect");
    }
    char byte;
    must(read(ends[0], &byte, 1) == 0, "read");
    _exit(0);
}

int main(int argc, char **argv) {
    int turns = argc > 1 ? atoi(argv[1]) : 9;
    size_t all = argc > 2 ? (size_t)atol(argv[2]) : 10000;
    size_t at_once = argc > 3 ? (size_t)atol(argv[3]) : 64;
    must(all <= MOST && at_once > 0 && at_once <= MOST_AT_ONCE, "arguments");
    int pair[2], ends[2];
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    must(listener >= 0 && bind(listener, (struct sockaddr *)&address, size) == 0 && listen(listener, 1024) == 0, "listen");
    must(getsockname(listener, (struct sockaddr *)&address, &size) == 0, "getsockname");
    must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0 && pipe(ends) == 0, "socketpair");
    pid_t child = fork();
    must(child >= 0, "fork");
    if (child == 0) {
        close(pair[0]);
        close(ends[1]);
        stay_on(1);
        receiver(pair[1], turns + 1, all);
        return 0;
    }
    close(pair[1]);
    begin_clients(&address, all, ends);
    for (size_t i = 0; i < all; i++)
        must((fds[i] = accept(listener, NULL, NULL)) >= 0, "accept");
    stay_on(0);
    for (int turn = 0; turn <= turns; turn++) {
        char bytes[AHEAD];
        struct timespec from, to;
        size_t sent = 0, acknowledged = 0, messages = (all + at_once - 1) / at_once;
        clock_gettime(CLOCK_MONOTONIC, &from);
        while (acknowledged < messages) {
            if (sent < messages && sent - acknowledged < AHEAD) {
                size_t at = sent++ * at_once;
                send_some(pair[0], fds + at, all - at < at_once ? all - at : at_once);
                continue;
            }
            ssize_t n = read(pair[0], bytes, messages - acknowledged < AHEAD ? messages - acknowledged : AHEAD);
            must(n > 0, "read");
            acknowledged += (size_t)n;
        }
        clock_gettime(CLOCK_MONOTONIC, &to);
        if (turn > 0)
            printf("bare %.1f\n",
                   (double)(to.tv_sec - from.tv_sec) * 1e6 + (double)(to.tv_nsec - from.tv_nsec) / 1e3);
        must(read(pair[0], bytes, 1) == 1, "read");
    }
    int status;
    return waitpid(child, &status, 0) == child && status == 0 ? 0 : 1;
}
