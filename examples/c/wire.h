/* wire.h - the handoff protocol's frames (docs/reference/protocol.md), as far as a server with a few listeners needs them.
 *
 * SPDX-License-Identifier: MIT */
#ifndef WIRE_H
#define WIRE_H

#include <stddef.h>
#include <stdint.h>

#include "fdhandoff.h"

enum word {
    HELLO = 1, OFFER, ITEMS, ACK, STATE, TAKEN, READY, COMMIT, SERVING, PROGRESS, DRAINED, ABORT, REFUSED,
    REQUEST, EVENT, RESPONSE
};
enum kind { KIND_LISTENER = 1, KIND_FILE, KIND_CONNECTION, KIND_CONTROL, KIND_COUNTERS };

#define PAYLOAD_MAX 1048576

/* One conversation: what was read and not yet understood. */
struct wire {
    int sock;                        /* owned */
    int peer;                        /* a pidfd of the other side, which proves its death; owned, -1 where there is none */
    unsigned char *buffer;
    size_t size;
    int fds[4 * (FDH_FDS_MAX + 1)];  /* came, and belong to no message yet */
    size_t n_fds;
};

struct message {
    enum word word;
    unsigned char payload[PAYLOAD_MAX];
    size_t size;
    int fds[FDH_FDS_MAX];            /* the caller's */
    size_t n_fds;
};

/* A payload under construction. */
struct payload {
    unsigned char data[65536];
    size_t size;
};

int wire_open(struct wire *wire, int sock);
void wire_close(struct wire *wire);

/* 0; WIRE_GONE when the other side hung up, WIRE_DEAD when it is proved dead; FDH_AGAIN at the deadline; -errno. */
enum { WIRE_GONE = 100, WIRE_DEAD = 101 };
int wire_say(struct wire *wire, enum word word, const struct payload *payload, const int *fds, size_t n_fds,
             int64_t deadline);
int wire_hear(struct wire *wire, struct message *message, int64_t deadline);
/* After WIRE_GONE: waits for the proof of death. */
int wire_prove(const struct wire *wire, int64_t deadline);

void put_number(struct payload *payload, uint16_t tag, uint64_t value);
void put_bytes(struct payload *payload, uint16_t tag, const void *data, size_t size);
uint64_t get_number(const unsigned char *data, size_t size, uint16_t tag, uint64_t otherwise);
/* The next field with this tag from *offsetp on: its value, or NULL. */
const unsigned char *get_bytes(const unsigned char *data, size_t size, uint16_t tag, size_t *offsetp, size_t *lengthp);

#endif
