/* Draining a queue of connections, in nanoseconds for one: a bare loop of accept4, and fdh_accept with a gate. The ways take
 * turns. Arguments: turns, connections in the queue. */
#include "fdhandoff.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MOST 8192

static int clients[MOST], accepted[MOST];
static size_t n_clients;

static void must(int ok, const char *what) {
    if (!ok) {
        perror(what);
        exit(1);
    }
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static int fill(void) {
    struct sockaddr_in address;
    socklen_t size = sizeof address;
    memset(&address, 0, sizeof address);
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    must(listener >= 0, "socket");
    must(bind(listener, (struct sockaddr *)&address, sizeof address) == 0, "bind");
    must(listen(listener, (int)n_clients + 1) == 0, "listen");
    must(getsockname(listener, (struct sockaddr *)&address, &size) == 0, "getsockname");
    for (size_t i = 0; i < n_clients; i++) {
        /* A reset instead of a goodbye: no port is kept waiting. */
        struct linger linger = {1, 0};
        clients[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        must(clients[i] >= 0, "socket");
        setsockopt(clients[i], SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
        must(connect(clients[i], (struct sockaddr *)&address, sizeof address) == 0, "connect");
    }
    return listener;
}

static void empty(int listener) {
    for (size_t i = 0; i < n_clients; i++) {
        close(clients[i]);
        close(accepted[i]);
    }
    close(listener);
}

static size_t with_accept4(int listener, struct fdh_gate *unused) {
    size_t n = 0;
    (void)unused;
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0) {
            must(errno == EAGAIN, "accept4");
            return n;
        }
        accepted[n++] = fd;
    }
}

static size_t with_fdh_accept(int listener, struct fdh_gate *gate) {
    size_t n = 0, more = 0;
    int result;
    do {
        result = fdh_accept(gate, listener, accepted + n, MOST - n < 256 ? MOST - n : 256, &more);
        must(result >= 0, "fdh_accept");
        n += more;
    } while (result == FDH_MORE);
    return n;
}

static void measure(const char *name, size_t (*drain)(int, struct fdh_gate *), struct fdh_gate *gate) {
    int listener = fill();
    double from = now();
    size_t n = drain(listener, gate);
    double took = now() - from;
    must(n == n_clients, "not all connections came");
    printf("%s %.1f\n", name, took / (double)n);
    empty(listener);
    if (gate != NULL)
        for (size_t i = 0; i < n; i++)
            fdh_gate_leave(gate);
}

int main(int argc, char **argv) {
    int turns = argc > 1 ? atoi(argv[1]) : 9;
    n_clients = argc > 2 ? (size_t)atol(argv[2]) : 4096;
    struct fdh_gate gate;
    must(n_clients <= MOST && fdh_gate_create(&gate) == 0, "fdh_gate_create");
    for (int turn = 0; turn < turns; turn++) {
        measure("accept4", with_accept4, NULL);
        measure("fdh_accept", with_fdh_accept, &gate);
    }
    fdh_gate_deinit(&gate);
    return 0;
}
