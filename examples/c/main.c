/* main.c - a C server's life as a generation: it takes the service over at a path, serves, and hands it to whoever comes next.
 *
 *     make && ./server /tmp/hello/handoff.sock
 *
 * The owner before and after it may be any program that speaks the protocol: the Python examples beside this folder do.
 *
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "http.h"
#include "wire.h"

#define SECONDS(n) (fdh_now() + (int64_t)(n) * 1000000000)

/* What came, and goes on as it came: the entry's bytes and the descriptor. */
struct item {
    unsigned char entry[1024];
    size_t size;
    uint64_t kind;
    int fd;
};

static struct item items[64];
static size_t n_items;
static int control = -1;
static struct http http;
static struct message heard;

static void say(const char *what) {
    fprintf(stderr, "c[%d]: %s\n", (int)getpid(), what);
}

static int fail(const char *what, int result) {
    fprintf(stderr, "c[%d]: %s: %s\n", (int)getpid(), what,
            result < 0 ? strerror(-result) : result == WIRE_GONE ? "the other side hung up" : "no answer in time");
    return 1;
}

static void pidfd_of_self(int *fdp, size_t *np) {
    *fdp = -1;
    *np = fdh_pidfd_open(getpid(), fdp) == 0 ? 1 : 0;
}

/* The descriptor that came with HELLO or OFFER: a pidfd of the sender. */
static void know_peer(struct wire *wire) {
    for (size_t i = 0; i < heard.n_fds; i++)
        if (wire->peer < 0)
            wire->peer = heard.fds[i];
        else
            fdh_close(heard.fds[i]);
}

/* --- the new side ------------------------------------------------------------------------------------------- */

static int keep_items(void) {
    size_t offset = 0, length = 0, i = 0;
    const unsigned char *entry;
    while ((entry = get_bytes(heard.payload, heard.size, 2, &offset, &length)) != NULL && i < heard.n_fds) {
        struct fdh_socket socket;
        int fd = heard.fds[i++];
        if (n_items == sizeof items / sizeof *items || length > sizeof items->entry)
            return -E2BIG;
        struct item *item = &items[n_items++];
        memcpy(item->entry, entry, length);
        item->size = length;
        item->kind = get_number(entry, length, 2, 0);
        item->fd = fd;
        if (item->kind == KIND_CONTROL)
            control = fd;
        if (item->kind == KIND_LISTENER) {
            /* Is it what the entry says? The cookie names the socket across processes. */
            size_t at = 0, size = 0;
            const unsigned char *said = get_bytes(entry, length, 3, &at, &size);
            uint64_t cookie = 0;
            for (size_t k = 12; said && size >= 20 && k < 20; k++)
                cookie = cookie << 8 | said[k];
            if (fdh_socket_describe(fd, &socket) != 0 || (cookie && socket.cookie != cookie))
                return -EBADMSG;
            if (socket.listening)
                http.listeners[http.n_listeners++] = fd;
        }
    }
    return 0;
}

static int take_over(const char *path, struct wire *wire) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct payload payload = {.size = 0};
    int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), self, result;
    size_t n_self;
    if (sock < 0 || strlen(path) >= sizeof address.sun_path)
        return fail("socket", -EINVAL);
    strcpy(address.sun_path, path);
    if (connect(sock, (struct sockaddr *)&address, sizeof address) != 0)
        return fail("nobody answers at the path", -errno);
    struct fdh_peer owner;
    if (fdh_peer_credentials(sock, &owner) != 0 || (owner.uid != (int64_t)geteuid() && owner.uid != 0))
        return fail("the owner is not to be trusted", -EPERM);
    if ((result = wire_open(wire, sock)) != 0)
        return fail("out of memory", result);

    pidfd_of_self(&self, &n_self);
    put_number(&payload, 1, 1);
    put_number(&payload, 2, 1);
    put_number(&payload, 3, (uint64_t)getpid());
    result = wire_say(wire, HELLO, &payload, &self, n_self, SECONDS(5));
    fdh_close(self);
    if (result != 0 || (result = wire_hear(wire, &heard, SECONDS(5))) != 0)
        return fail("hello", result);
    know_peer(wire);
    if (heard.word != OFFER)
        return fail("the owner refuses", -EBUSY);
    uint64_t offered = get_number(heard.payload, heard.size, 3, 0), arrived = 0;
    uint64_t state_size = get_number(heard.payload, heard.size, 4, 0), state = 0;
    http.generation = (unsigned)get_number(heard.payload, heard.size, 2, 1);

    while (arrived < offered || state < state_size) {
        if ((result = wire_hear(wire, &heard, SECONDS(30))) != 0)
            return fail("taking", result);
        if (heard.word == ITEMS) {
            if ((result = keep_items()) != 0)
                return fail("what came is not what was offered", result);
            arrived += heard.n_fds;
            payload.size = 0;
            put_number(&payload, 1, arrived);
            if ((result = wire_say(wire, ACK, &payload, NULL, 0, SECONDS(5))) != 0)
                return fail("taking", result);
        } else if (heard.word == STATE) {
            size_t offset = 0, length = 0;
            get_bytes(heard.payload, heard.size, 1, &offset, &length);
            state += length; /* this server has no use for it */
        } else {
            return fail("the owner gave up", -ECONNABORTED);
        }
    }
    payload.size = 0;
    put_number(&payload, 1, offered);
    if ((result = wire_say(wire, TAKEN, &payload, NULL, 0, SECONDS(5))) != 0)
        return fail("taken", result);
    return control < 0 ? fail("the path was not offered", -ENOENT) : 0;
}

/* Says ready; 0 once this process is the owner. */
static int become_owner(struct wire *wire) {
    int result = wire_say(wire, READY, NULL, NULL, 0, SECONDS(5));
    while (result == 0 && (result = wire_hear(wire, &heard, SECONDS(30))) == 0) {
        for (size_t i = 0; i < heard.n_fds; i++)
            fdh_close(heard.fds[i]);
        if (heard.word == COMMIT) {
            wire_say(wire, SERVING, NULL, NULL, 0, SECONDS(5));
            return 0;
        }
        if (heard.word != STATE)
            return fail("the owner gave up", -ECONNABORTED);
    }
    if (result == WIRE_GONE && wire_prove(wire, SECONDS(5)) == WIRE_DEAD) {
        say("the old owner died before its commit: the service is ours");
        return 0;
    }
    return fail("no commit: the old owner serves on", result);
}

/* --- the old side ------------------------------------------------------------------------------------------- */

static int offer(struct wire *wire) {
    struct payload payload = {.size = 0};
    int fds[64], self, result;
    size_t n = 0, n_self;
    if ((result = wire_hear(wire, &heard, SECONDS(5))) != 0)
        return result;
    know_peer(wire);
    if (heard.word != HELLO || get_number(heard.payload, heard.size, 1, 0) > 1) {
        int verb = heard.word == REQUEST;
        put_bytes(&payload, 1, verb ? "unknown-verb" : "version", verb ? 12 : 7);
        wire_say(wire, verb ? RESPONSE : REFUSED, &payload, NULL, 0, SECONDS(2));
        return -EPROTO;
    }
    struct payload list = {.size = 0};
    put_number(&list, 1, 0);
    for (size_t i = 0; i < n_items; i++)
        if (items[i].kind != KIND_COUNTERS) { /* those were the old owner's */
            put_bytes(&list, 2, items[i].entry, items[i].size);
            fds[n++] = items[i].fd;
        }
    pidfd_of_self(&self, &n_self);
    put_number(&payload, 1, 1);
    put_number(&payload, 2, http.generation + 1);
    put_number(&payload, 3, n);
    put_number(&payload, 4, 0);
    put_number(&payload, 9, 1); /* strict: our gate is closed when we commit */
    result = wire_say(wire, OFFER, &payload, &self, n_self, SECONDS(5));
    fdh_close(self);
    if (result == 0)
        result = wire_say(wire, ITEMS, &list, fds, n, SECONDS(5));
    for (enum word word = ITEMS; result == 0 && word != READY; word = heard.word) {
        result = wire_hear(wire, &heard, SECONDS(60));
        if (result == 0 && (heard.word != ACK && heard.word != TAKEN && heard.word != READY))
            result = -ECONNABORTED;
    }
    return result;
}

/* 0 when the new owner serves; then this process drains. */
static int hand_over(struct wire *wire) {
    int result = offer(wire);
    if (result != 0)
        return result; /* nothing has changed: we serve on */
    fdh_gate_close(&http.gate, SECONDS(5));
    result = wire_say(wire, COMMIT, NULL, NULL, 0, SECONDS(5));
    if (result == 0)
        do {
            result = wire_hear(wire, &heard, FDH_FOREVER);
        } while (result == 0 && heard.word != SERVING && heard.word != ABORT);
    if (result == WIRE_GONE)
        result = wire_prove(wire, FDH_FOREVER); /* it may have read the commit: only its death gives the service back */
    if (result == 0 && heard.word == SERVING)
        return 0;
    if (result == 0)
        wire_say(wire, ABORT, NULL, NULL, 0, SECONDS(1)); /* yes, it is ours again: only then it lets go */
    listen(control, 128);
    fdh_gate_reopen(&http.gate);
    return result ? result : -ECONNABORTED;
}

static bool allowed(int sock) {
    struct fdh_peer peer;
    return fdh_peer_credentials(sock, &peer) == 0 && (peer.uid == (int64_t)geteuid() || peer.uid == 0);
}

int main(int argc, char **argv) {
    struct wire wire;
    sigset_t signals;
    if (argc != 2)
        return fprintf(stderr, "usage: %s HANDOFF_PATH\n", argv[0]), 2;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    int stop = signalfd(-1, &signals, SFD_CLOEXEC);

    if (fdh_gate_create(&http.gate) != 0 || take_over(argv[1], &wire) != 0 || become_owner(&wire) != 0)
        return 1;
    listen(control, 128); /* whoever connects shall see our credentials */
    http_start(&http);
    fprintf(stderr, "c[%d]: generation %u serves\n", (int)getpid(), http.generation);

    bool handed = false, stopped = false;
    while (!handed && !stopped) {
        struct pollfd polled[2] = {{control, POLLIN, 0}, {stop, POLLIN, 0}};
        poll(polled, 2, -1);
        stopped = polled[1].revents != 0;
        int guest = polled[0].revents ? accept(control, NULL, NULL) : -1;
        struct wire conversation;
        if (guest < 0)
            continue;
        if (!allowed(guest) || wire_open(&conversation, guest) != 0) {
            fdh_close(guest);
            continue;
        }
        int result = hand_over(&conversation);
        handed = result == 0;
        if (!handed && heard.word != REQUEST)
            fail("not handed over, this process serves on", result);
        wire_close(&conversation);
    }

    fdh_gate_close(&http.gate, SECONDS(5));
    http.draining = true;
    if (stopped)
        unlink(argv[1]);
    say(handed ? "handed over; finishing what is inside" : "stopping; finishing what is inside");
    fdh_gate_wait(&http.gate, SECONDS(30));
    http.ended = true;
    wire_close(&wire); /* the process before us learned of our end by our pidfd; whoever waits for ours, too */
    return 0;
}
