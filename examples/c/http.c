/* http.c - accept through the gate, answer, leave the gate.
 *
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "http.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

struct connection {
    struct http *http;
    int fd;
};

/* GET /slow?seconds=3 straddles a handoff; everything else is answered at once. Whether the connection goes on. */
static bool answer(struct http *http, int fd, const char *head) {
    const char *slow = strstr(head, "/slow?seconds=");
    if (slow) {
        double seconds = strtod(slow + 14, NULL);
        struct timespec pause = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
        nanosleep(&pause, NULL);
    }
    char body[128], reply[512];
    int n = snprintf(body, sizeof body, "{\"release\": \"c\", \"generation\": %u, \"pid\": %d}\n", http->generation,
                     (int)getpid());
    bool close_it = http->draining || strcasestr(head, "\r\nconnection: close") != NULL;
    n = snprintf(reply, sizeof reply,
                 "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: %s\r\n\r\n%s", n,
                 close_it ? "close" : "keep-alive", body);
    for (int sent = 0; sent < n;) {
        ssize_t now = send(fd, reply + sent, (size_t)(n - sent), MSG_NOSIGNAL);
        if (now < 0)
            return false;
        sent += (int)now;
    }
    return !close_it;
}

static void *serve(void *argument) {
    struct connection connection = *(struct connection *)argument;
    free(argument);
    char head[8192];
    size_t size = 0;
    for (;;) {
        head[size] = '\0';
        char *end = strstr(head, "\r\n\r\n");
        if (end) {
            end[2] = '\0';
            if (!answer(connection.http, connection.fd, head))
                break;
            size -= (size_t)(end + 4 - head);
            memmove(head, end + 4, size);
            continue;
        }
        /* An idle connection is never closed by us, not even while we drain: a request may be on its way. */
        ssize_t n = size + 1 < sizeof head ? recv(connection.fd, head + size, sizeof head - 1 - size, 0) : 0;
        if (n <= 0)
            break;
        size += (size_t)n;
    }
    fdh_close(connection.fd);
    fdh_gate_leave(&connection.http->gate); /* exactly once for each connection that fdh_accept gave us */
    return NULL;
}

static void begin(struct http *http, int fd) {
    struct connection *connection = malloc(sizeof *connection);
    pthread_t thread;
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
    if (connection) {
        *connection = (struct connection){http, fd};
        if (pthread_create(&thread, NULL, serve, connection) == 0) {
            pthread_detach(thread);
            return;
        }
    }
    free(connection);
    fdh_close(fd);
    fdh_gate_leave_forced(&http->gate);
}

static void *accept_loop(void *argument) {
    struct http *http = argument;
    struct pollfd polled[65];
    while (!http->ended) {
        if (fdh_gate_is_closed(&http->gate)) { /* handed over for good, or until the service comes back */
            poll(NULL, 0, 20);
            continue;
        }
        for (size_t i = 0; i < http->n_listeners; i++)
            polled[i] = (struct pollfd){http->listeners[i], POLLIN, 0};
        polled[http->n_listeners] = (struct pollfd){http->gate.closed_fd, POLLIN, 0};
        poll(polled, (nfds_t)http->n_listeners + 1, 1000);
        for (size_t i = 0; i < http->n_listeners; i++) {
            int fds[64];
            size_t n = 0;
            int result = polled[i].revents ? fdh_accept(&http->gate, http->listeners[i], fds, 64, &n) : 0;
            for (size_t k = 0; k < n; k++)
                begin(http, fds[k]);
            if (result == FDH_PAUSE)
                poll(NULL, 0, 10);
        }
    }
    return NULL;
}

int http_start(struct http *http) {
    pthread_t thread;
    int result = pthread_create(&thread, NULL, accept_loop, http);
    if (result == 0)
        pthread_detach(thread);
    return -result;
}
