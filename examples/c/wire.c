/* wire.c - frames: a header of 12 bytes (magic, type, flags, descriptors, length), then fields of tag, length, value.
 *
 * Descriptors travel with a frame's first byte, so whoever has read a header has its descriptors, too: they are queued and
 * given to the frames in order.
 *
 * SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "wire.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define HEADER 12

static uint64_t number_at(const unsigned char *at, size_t bytes) {
    uint64_t value = 0;
    for (size_t i = 0; i < bytes; i++)
        value = value << 8 | at[i];
    return value;
}

static void number_to(unsigned char *at, size_t bytes, uint64_t value) {
    for (size_t i = 0; i < bytes; i++)
        at[i] = (unsigned char)(value >> (8 * (bytes - 1 - i)));
}

int wire_open(struct wire *wire, int sock) {
    memset(wire, 0, sizeof *wire);
    wire->sock = sock;
    wire->peer = -1;
    wire->buffer = malloc(HEADER + PAYLOAD_MAX + 65536);
    if (!wire->buffer)
        return -ENOMEM;
    if (fdh_peer_pidfd(sock, &wire->peer) != 0)
        wire->peer = -1; /* the one that comes with HELLO or OFFER will do */
    return 0;
}

void wire_close(struct wire *wire) {
    for (size_t i = 0; i < wire->n_fds; i++)
        fdh_close(wire->fds[i]);
    wire->sock = fdh_close(wire->sock);
    wire->peer = fdh_close(wire->peer);
    free(wire->buffer);
    wire->buffer = NULL;
    wire->n_fds = 0;
}

int wire_say(struct wire *wire, enum word word, const struct payload *payload, const int *fds, size_t n_fds,
             int64_t deadline) {
    size_t size = payload ? payload->size : 0, sent, sent_fds;
    unsigned char *frame = malloc(HEADER + size);
    if (!frame)
        return -ENOMEM;
    memcpy(frame, "FDHO", 4);
    frame[4] = (unsigned char)word;
    frame[5] = 0;
    number_to(frame + 6, 2, n_fds);
    number_to(frame + 8, 4, size);
    if (size)
        memcpy(frame + HEADER, payload->data, size);
    struct fdh_mark mark = {0, (uint32_t)n_fds};
    int result = fdh_channel_send(wire->sock, frame, HEADER + size, fds, n_fds, n_fds ? &mark : NULL, n_fds ? 1 : 0,
                                  deadline, &sent, &sent_fds);
    free(frame);
    return result == -EPIPE || result == -ECONNRESET ? WIRE_GONE : result;
}

/* Whether a whole frame lies in the buffer; takes it out. */
static int take_frame(struct wire *wire, struct message *message) {
    if (wire->size < HEADER)
        return 0;
    size_t length = (size_t)number_at(wire->buffer + 8, 4), n_fds = (size_t)number_at(wire->buffer + 6, 2);
    if (memcmp(wire->buffer, "FDHO", 4) != 0 || length > PAYLOAD_MAX || n_fds > FDH_FDS_MAX || n_fds > wire->n_fds)
        return -EPROTO; /* not our protocol, or descriptors were lost on the way */
    if (wire->size < HEADER + length)
        return 0;
    message->word = wire->buffer[4];
    message->size = length;
    memcpy(message->payload, wire->buffer + HEADER, length);
    message->n_fds = n_fds;
    memcpy(message->fds, wire->fds, n_fds * sizeof *wire->fds);
    wire->n_fds -= n_fds;
    memmove(wire->fds, wire->fds + n_fds, wire->n_fds * sizeof *wire->fds);
    wire->size -= HEADER + length;
    memmove(wire->buffer, wire->buffer + HEADER + length, wire->size);
    return 1;
}

int wire_hear(struct wire *wire, struct message *message, int64_t deadline) {
    for (;;) {
        int taken = take_frame(wire, message);
        if (taken != 0)
            return taken < 0 ? taken : 0;
        size_t room = HEADER + PAYLOAD_MAX + 65536 - wire->size, n = 0, n_fds = 0;
        size_t fd_room = sizeof wire->fds / sizeof *wire->fds - wire->n_fds;
        int result = fdh_channel_receive(wire->sock, wire->buffer + wire->size, room, wire->fds + wire->n_fds, fd_room,
                                         deadline, &n, &n_fds);
        if (result == FDH_EOF || result == -ECONNRESET)
            return WIRE_GONE;
        if (result != 0)
            return result;
        wire->size += n;
        wire->n_fds += n_fds;
    }
}

int wire_prove(const struct wire *wire, int64_t deadline) {
    struct fdh_exit how;
    /* A hung-up channel proves nothing: a forked worker of the other side may have held it, or closed it. */
    return wire->peer >= 0 && fdh_pidfd_wait(wire->peer, deadline, &how) == 0 ? WIRE_DEAD : WIRE_GONE;
}

void put_bytes(struct payload *payload, uint16_t tag, const void *data, size_t size) {
    if (payload->size + 6 + size > sizeof payload->data)
        abort(); /* a few listeners fit many times */
    number_to(payload->data + payload->size, 2, tag);
    number_to(payload->data + payload->size + 2, 4, size);
    memcpy(payload->data + payload->size + 6, data, size);
    payload->size += 6 + size;
}

void put_number(struct payload *payload, uint16_t tag, uint64_t value) {
    unsigned char bytes[8];
    number_to(bytes, 8, value);
    put_bytes(payload, tag, bytes, 8);
}

const unsigned char *get_bytes(const unsigned char *data, size_t size, uint16_t tag, size_t *offsetp, size_t *lengthp) {
    size_t offset = *offsetp;
    while (size - offset >= 6) {
        size_t length = (size_t)number_at(data + offset + 2, 4);
        const unsigned char *value = data + offset + 6;
        if (length > size - offset - 6)
            return NULL;
        int found = number_at(data + offset, 2) == tag;
        offset += 6 + length; /* a tag that we do not know is skipped */
        if (found) {
            *offsetp = offset;
            *lengthp = length;
            return value;
        }
    }
    return NULL;
}

uint64_t get_number(const unsigned char *data, size_t size, uint16_t tag, uint64_t otherwise) {
    size_t offset = 0, length = 0;
    const unsigned char *value = get_bytes(data, size, tag, &offset, &length);
    return value && length == 8 ? number_at(value, 8) : otherwise;
}
