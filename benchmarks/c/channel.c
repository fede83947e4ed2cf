/* Many descriptors to another process until its acknowledgement, in microseconds for all: a bare loop of sendmsg and recvmsg.
 * Arguments: turns, descriptors, descriptors in a message (253 is the most that Linux takes). */
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MOST 16384
#define MOST_AT_ONCE 253

static int fds[MOST];

static union {
    struct cmsghdr align;
    char room[CMSG_SPACE(sizeof(int) * MOST_AT_ONCE)];
} control;

static void must(int ok, const char *what) {
    if (!ok) {
        perror(what);
        exit(1);
    }
}

static void send_some(int sock, const int *some, size_t n) {
    char byte = 0;
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control};
    message.msg_controllen = CMSG_SPACE(sizeof(int) * n);
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * n);
    memcpy(CMSG_DATA(header), some, sizeof(int) * n);
    must(sendmsg(sock, &message, MSG_NOSIGNAL) == 1, "sendmsg");
}

static size_t receive_some(int sock, int *some) {
    char byte;
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control};
    message.msg_controllen = sizeof control;
    must(recvmsg(sock, &message, MSG_CMSG_CLOEXEC) == 1, "recvmsg");
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    must(header != NULL && !(message.msg_flags & MSG_CTRUNC), "descriptors were lost");
    size_t n = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    memcpy(some, CMSG_DATA(header), sizeof(int) * n);
    return n;
}

static void receiver(int sock, int turns, size_t all) {
    char byte = 0;
    for (int turn = 0; turn < turns; turn++) {
        size_t n = 0;
        while (n < all)
            n += receive_some(sock, fds + n);
        must(write(sock, &byte, 1) == 1, "write");
        for (size_t i = 0; i < n; i++)
            close(fds[i]);
        must(write(sock, &byte, 1) == 1, "write");
    }
}

int main(int argc, char **argv) {
    int turns = argc > 1 ? atoi(argv[1]) : 9;
    size_t all = argc > 2 ? (size_t)atol(argv[2]) : 10000;
    size_t at_once = argc > 3 ? (size_t)atol(argv[3]) : MOST_AT_ONCE;
    must(all <= MOST && at_once > 0 && at_once <= MOST_AT_ONCE, "arguments");
    int pair[2];
    must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0, "socketpair");
    pid_t child = fork();
    must(child >= 0, "fork");
    if (child == 0) {
        close(pair[0]);
        receiver(pair[1], turns + 1, all);
        return 0;
    }
    close(pair[1]);
    fds[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    must(fds[0] >= 0 && listen(fds[0], 16) == 0, "listen");
    for (size_t i = 1; i < all; i++)
        must((fds[i] = fcntl(fds[0], F_DUPFD_CLOEXEC, 0)) >= 0, "dup");
    for (int turn = 0; turn <= turns; turn++) {
        char byte;
        struct timespec from, to;
        clock_gettime(CLOCK_MONOTONIC, &from);
        for (size_t i = 0; i < all; i += at_once)
            send_some(pair[0], fds + i, all - i < at_once ? all - i : at_once);
        must(read(pair[0], &byte, 1) == 1, "read");
        clock_gettime(CLOCK_MONOTONIC, &to);
        if (turn > 0)
            printf("bare %.1f\n",
                   (double)(to.tv_sec - from.tv_sec) * 1e6 + (double)(to.tv_nsec - from.tv_nsec) / 1e3);
        must(read(pair[0], &byte, 1) == 1, "read");
    }
    int status;
    return waitpid(child, &status, 0) == child && status == 0 ? 0 : 1;
}
