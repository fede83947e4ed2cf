/* Asks an HTTP server at a fixed rate, one request to a connection, whatever becomes of those before: a server that is late
 * does not slow the clock by which it is measured. Arguments: port on 127.0.0.1, requests in a second.
 *
 * It ends when its standard input does, and then prints a line for each request: when it was due (nanoseconds of
 * CLOCK_MONOTONIC), how long after that its answer was complete (nanoseconds; -1 where it failed), and the number that the
 * answer ends with (the pid of whoever answered; 0 where there is none). */
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL
/* A request that is not answered in this time has failed. */
#define PATIENCE (10 * SECOND)
#define AT_ONCE 16384
#define REQUEST "GET / HTTP/1.1\r\nHost: benchmark\r\nConnection: close\r\n\r\n"

struct request {
    int64_t due, took;
    long who;
};

/* By descriptor: which request it carries, whether it was sent, and the last of what came. */
static struct {
    size_t request;
    int sent;
    size_t size;
    char end[24];
} open_now[AT_ONCE];

static struct request *requests;
static size_t n_requests, room, n_open;
static struct sockaddr_in server;
static int poll_fd;

static void must(int ok, const char *what) {
    if (!ok) {
        perror(what);
        exit(1);
    }
}

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}

static void finish(int fd, int ok) {
    struct request *request = &requests[open_now[fd].request];
    request->took = ok ? now() - request->due : -1;
    const char *end = open_now[fd].end;
    size_t size = open_now[fd].size, first = size;
    while (first && isspace((unsigned char)end[first - 1]))
        first--;
    size_t last = first;
    while (first && isdigit((unsigned char)end[first - 1]))
        first--;
    char number[sizeof open_now[fd].end + 1] = "";
    memcpy(number, end + first, last - first);
    request->who = atol(number);
    close(fd);
    n_open--;
}

static void send_request(int fd) {
    open_now[fd].sent = 1;
    ssize_t n = send(fd, REQUEST, sizeof REQUEST - 1, MSG_NOSIGNAL);
    if (n != (ssize_t)sizeof REQUEST - 1) {
        finish(fd, 0);
        return;
    }
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    must(epoll_ctl(poll_fd, EPOLL_CTL_MOD, fd, &event) == 0, "epoll_ctl");
}

static void begin(int64_t due) {
    if (n_requests == room) {
        room = room ? 2 * room : 65536;
        requests = realloc(requests, room * sizeof *requests);
        must(requests != NULL, "realloc");
    }
    requests[n_requests] = (struct request){due, -1, 0};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    must(fd >= 0 && fd < AT_ONCE, "too many connections at once");
    memset(&open_now[fd], 0, sizeof open_now[fd]);
    open_now[fd].request = n_requests++;
    n_open++;
    if (connect(fd, (struct sockaddr *)&server, sizeof server) != 0 && errno != EINPROGRESS) {
        finish(fd, 0);
        return;
    }
    struct epoll_event event = {.events = EPOLLOUT, .data.fd = fd};
    must(epoll_ctl(poll_fd, EPOLL_CTL_ADD, fd, &event) == 0, "epoll_ctl");
}

static void receive(int fd) {
    char buffer[4096];
    ssize_t n = recv(fd, buffer, sizeof buffer, 0);
    if (n < 0 && errno == EAGAIN)
        return;
    if (n <= 0) {
        finish(fd, n == 0 && open_now[fd].size > 0);
        return;
    }
    /* Only the end is kept. */
    size_t keep = sizeof open_now[fd].end, more = (size_t)n;
    const char *from = buffer;
    if (more > keep) {
        from += more - keep;
        more = keep;
    }
    size_t before = open_now[fd].size;
    size_t stays = before + more > keep ? keep - more : before;
    memmove(open_now[fd].end, open_now[fd].end + (before - stays), stays);
    memcpy(open_now[fd].end + stays, from, more);
    open_now[fd].size = stays + more;
}

int main(int argc, char **argv) {
    must(argc == 3, "load PORT RATE");
    server.sin_family = AF_INET;
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    server.sin_port = htons((uint16_t)atoi(argv[1]));
    int64_t step = SECOND / atoi(argv[2]), next = now(), give_up = 0;
    poll_fd = epoll_create1(EPOLL_CLOEXEC);
    int clock = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    must(poll_fd >= 0 && clock >= 0, "epoll_create1, timerfd_create");
    struct epoll_event event = {.events = EPOLLIN, .data.fd = clock};
    must(epoll_ctl(poll_fd, EPOLL_CTL_ADD, clock, &event) == 0, "epoll_ctl");
    event.data.fd = STDIN_FILENO;
    must(epoll_ctl(poll_fd, EPOLL_CTL_ADD, STDIN_FILENO, &event) == 0, "epoll_ctl");
    while (!give_up || (n_open && now() < give_up)) {
        if (!give_up) {
            for (; next <= now(); next += step)
                begin(next);
            struct itimerspec at = {.it_value = {next / SECOND, next % SECOND}};
            must(timerfd_settime(clock, TFD_TIMER_ABSTIME, &at, NULL) == 0, "timerfd_settime");
        }
        struct epoll_event events[256];
        int n = epoll_wait(poll_fd, events, 256, give_up ? 100 : -1);
        must(n >= 0 || errno == EINTR, "epoll_wait");
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            char word[64];
            uint64_t ticks;
            if (fd == clock) {
                if (read(clock, &ticks, sizeof ticks) < 0 && errno != EAGAIN)
                    must(0, "timerfd");
            } else if (fd == STDIN_FILENO) {
                if (read(fd, word, sizeof word) == 0) {
                    epoll_ctl(poll_fd, EPOLL_CTL_DEL, fd, NULL);
                    give_up = now() + PATIENCE;
                }
            } else if (!open_now[fd].sent) {
                send_request(fd);
            } else {
                receive(fd);
            }
        }
    }
    for (size_t i = 0; i < n_requests; i++)
        printf("%lld %lld %ld\n", (long long)requests[i].due, (long long)requests[i].took, requests[i].who);
    return 0;
}
