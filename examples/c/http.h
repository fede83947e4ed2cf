/* http.h - a small HTTP/1.1 server with a thread for each connection, which counts them in a gate.
 *
 * SPDX-License-Identifier: MIT */
#ifndef HTTP_H
#define HTTP_H

#include <stdbool.h>
#include <stddef.h>

#include "fdhandoff.h"

struct http {
    struct fdh_gate gate;
    int listeners[64];
    size_t n_listeners;
    unsigned generation;
    _Atomic bool draining;   /* answers say "Connection: close" */
    _Atomic bool ended;
};

/* Accepts in a thread of its own while the gate is open, until `ended`; goes on when the gate is reopened. */
int http_start(struct http *http);

#endif
