/* The smallest HTTP server that can be upgraded: it knows LISTEN_FDS and NOTIFY_SOCKET, is up in a millisecond, answers every
 * request with its pid, and closes. What a benchmark measures with it is not the server. */
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define LISTENER 3

static void must(int ok, const char *what) {
    if (!ok) {
        perror(what);
        exit(1);
    }
}

/* Tells whoever asked for it that the service is ready. */
static void notify(void) {
    const char *address = getenv("NOTIFY_SOCKET");
    if (!address)
        return;
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    must(strlen(address) < sizeof to.sun_path, "NOTIFY_SOCKET is too long");
    memcpy(to.sun_path, address, strlen(address));
    if (to.sun_path[0] == '@')
        to.sun_path[0] = '\0';
    int sock = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    must(sock >= 0, "socket");
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(address));
    must(sendto(sock, "READY=1", 7, 0, (struct sockaddr *)&to, size) == 7, "NOTIFY_SOCKET");
    close(sock);
}

static void watch(int poll, int fd) {
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    must(epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event) == 0, "epoll_ctl");
}

int main(void) {
    char answer[200];
    int size = snprintf(answer, sizeof answer, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n%d\n", (int)getpid());
    int poll = epoll_create1(EPOLL_CLOEXEC);
    must(poll >= 0, "epoll_create1");
    watch(poll, LISTENER);
    notify();
    for (;;) {
        struct epoll_event events[64];
        int n = epoll_wait(poll, events, 64, -1);
        must(n >= 0 || errno == EINTR, "epoll_wait");
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (fd == LISTENER) {
                int connection = accept4(LISTENER, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
                if (connection >= 0)
                    watch(poll, connection);
                continue;
            }
            char asked[4096];
            if (recv(fd, asked, sizeof asked, 0) > 0 && send(fd, answer, (size_t)size, MSG_NOSIGNAL) != size)
                fprintf(stderr, "server: an answer was not sent\n");
            close(fd);
        }
    }
}
