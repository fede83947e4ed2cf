/* test_connections.c - many connections at once, written and read as the protocol has them.
 *
 * SPDX-License-Identifier: MIT */
#include "loopback.h"

#define SOME 40
#define NOT_PROVED 7 /* of every 16 the first is, and the last of all */

static const char text[] = "http" "first state" "another";
static const struct fdh_connection shape = {AF_INET, SOCK_STREAM, IPPROTO_TCP, 0, 4, 0, 0};

static int clients[SOME], servers[SOME];
static struct fdh_connection packed[SOME], found[SOME];
static unsigned char buffer[8192];
static size_t size;
static uint64_t first;

static void open_some(void)
{
    int i, listener = tcp_listen(AF_INET, SOME);

    for (i = 0; i < SOME; i++) {
        clients[i] = tcp_connect(AF_INET, port_of(listener), 0);
        servers[i] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        MUST(servers[i]);
        packed[i] = shape;
    }
    packed[1].state_offset = 4;
    packed[1].state_size = 11;
    packed[SOME - 1].state_offset = 15;
    packed[SOME - 1].state_size = 7;
    close(listener);
}

static void close_some(void)
{
    int i;

    for (i = 0; i < SOME; i++) {
        reset(clients[i]);
        close(servers[i]);
    }
}

/* The message's `first` (7) and the entries of `servers`, in buffer. */
static int pack(void)
{
    static const unsigned char head[] = {0, 1, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 7};
    int rc;

    memcpy(buffer, head, sizeof head);
    TAINT(size);
    rc = fdh_connections_pack(packed, servers, SOME, text, sizeof text - 1, buffer + sizeof head,
                              sizeof buffer - sizeof head, &size);
    if (!rc)
        size += sizeof head;
    return rc;
}

static bool has_cookies(void)
{
    return fdh_features() & FDH_HAS_COOKIE;
}

static void what_was_packed_is_unpacked(void)
{
    int i;

    if (!has_cookies())
        SKIP("no SO_COOKIE here");
    open_some();
    CHECK_EQUAL(pack(), 0);
    CHECK_EQUAL(fdh_connections_unpack(buffer, size, servers, SOME, &first, found), 0);
    CHECK_EQUAL(first, 7);
    for (i = 0; i < SOME; i++) {
        CHECK_EQUAL(found[i].family, AF_INET);
        CHECK_EQUAL(found[i].type, SOCK_STREAM);
        CHECK_EQUAL(found[i].protocol, IPPROTO_TCP);
        CHECK_EQUAL(found[i].name_size, 4);
        CHECK(!memcmp(buffer + found[i].name_offset, "http", 4));
        CHECK_EQUAL(found[i].state_size, packed[i].state_size);
        CHECK(!memcmp(buffer + found[i].state_offset, text + packed[i].state_offset, found[i].state_size));
    }
    close_some();
}

static void descriptors_of_another_message_are_noticed(void)
{
    int others[SOME], lost;

    if (!has_cookies())
        SKIP("no SO_COOKIE here");
    open_some();
    CHECK_EQUAL(pack(), 0);
    TAINT(first);
    TAINT(found);
    for (lost = 0; lost < SOME; lost++) { /* and what comes behind it moves up */
        memcpy(others, servers, sizeof others);
        memmove(others + lost, others + lost + 1, (SOME - 1 - (size_t)lost) * sizeof *others);
        others[SOME - 1] = clients[0];
        CHECK_EQUAL(fdh_connections_unpack(buffer, size, others, SOME, &first, found), FDH_OTHER);
    }
    memcpy(others, servers, sizeof others);
    others[0] = 0;
    CHECK_EQUAL(fdh_connections_unpack(buffer, size, others, SOME, &first, found), FDH_OTHER);
    CHECK_EQUAL(fdh_connections_unpack(buffer, size, servers, SOME - 1, &first, found), FDH_OTHER);
    CHECK_UNTOUCHED(first);
    CHECK_UNTOUCHED(found);
    close_some();
}

/* Where the cookie of the entry with this number lies in buffer. */
static unsigned char *cookie_of(int number)
{
    size_t at = 14;
    int i;

    for (i = 0; i < number; i++)
        at += 6 + 10 + 14 + 26 + (packed[i].state_size ? 6 + packed[i].state_size : 0);
    return buffer + at + 6 + 10 + 14 + 6 + 12;
}

static void a_message_with_too_few_cookies_is_not_believed(void)
{
    static const unsigned char none[8];
    static const int proved[] = {0, 16, 32, SOME - 1};
    unsigned char before[8];
    size_t i;

    if (!has_cookies())
        SKIP("no SO_COOKIE here");
    open_some();
    CHECK_EQUAL(pack(), 0);
    CHECK(!memcmp(cookie_of(NOT_PROVED), none, sizeof none));
    for (i = 0; i < sizeof proved / sizeof *proved; i++) {
        memcpy(before, cookie_of(proved[i]), sizeof before);
        CHECK(memcmp(before, none, sizeof none));
        memcpy(cookie_of(proved[i]), none, sizeof none);
        TAINT(found);
        CHECK_EQUAL(fdh_connections_unpack(buffer, size, servers, SOME, &first, found), FDH_OTHER);
        CHECK_UNTOUCHED(found);
        memcpy(cookie_of(proved[i]), before, sizeof before);
    }
    cookie_of(NOT_PROVED)[7] = 1; /* one that is said is looked at */
    CHECK_EQUAL(fdh_connections_unpack(buffer, size, servers, SOME, &first, found), FDH_OTHER);
    close_some();
}

/* Under the sanitizers: each prefix in a block of its own, so that a read behind its end is found, and each byte changed. */
static void no_nonsense_is_believed(void)
{
    size_t length, i;
    unsigned char *part;
    int rc;

    if (!has_cookies())
        SKIP("no SO_COOKIE here");
    open_some();
    CHECK_EQUAL(pack(), 0);
    for (length = 0; length < size; length++) {
        part = malloc(length + 1);
        memcpy(part, buffer, length);
        part = realloc(part, length ? length : 1);
        rc = fdh_connections_unpack(part, length, servers, SOME, &first, found);
        free(part);
        CHECK_EQUAL(rc, FDH_OTHER);
    }
    for (i = 0; i < size; i++) {
        buffer[i] ^= 0xff;
        part = malloc(size);
        memcpy(part, buffer, size);
        rc = fdh_connections_unpack(part, size, servers, SOME, &first, found);
        free(part);
        buffer[i] ^= 0xff;
        CHECK(rc == FDH_OTHER || rc == 0); /* a byte of `first`, a state or a family may be any */
    }
    close_some();
}

static void there_must_be_room_and_every_offset_inside(void)
{
    size_t capacity;

    if (!has_cookies())
        SKIP("no SO_COOKIE here");
    open_some();
    CHECK_EQUAL(fdh_connections_pack(packed, servers, SOME, text, sizeof text - 1, buffer, sizeof buffer, &size), 0);
    TAINT(first);
    for (capacity = 0; capacity < size; capacity++) {
        size_t written = 12345;
        unsigned char *small = malloc(capacity ? capacity : 1);

        CHECK_EQUAL(fdh_connections_pack(packed, servers, SOME, text, sizeof text - 1, small, capacity, &written),
                    -ENOSPC);
        CHECK_EQUAL(written, 12345);
        free(small);
    }
    packed[2].state_offset = sizeof text;
    CHECK_EQUAL(pack(), -EINVAL);
    packed[2] = shape;
    packed[2].name_size = sizeof text;
    CHECK_EQUAL(pack(), -EINVAL);
    packed[2].name_offset = UINT32_MAX;
    CHECK_EQUAL(pack(), -EINVAL);
    close_some();
}

static void what_has_no_cookie_is_for_another_call(void)
{
    int ends[2];

    MUST(pipe2(ends, O_CLOEXEC));
    TAINT(size);
    CHECK_EQUAL(fdh_connections_pack(&shape, ends, 1, text, sizeof text - 1, buffer, sizeof buffer, &size), FDH_OTHER);
    CHECK_UNTOUCHED(size);
    close(ends[0]);
    close(ends[1]);
}

int main(void)
{
    RUN(what_was_packed_is_unpacked);
    RUN(descriptors_of_another_message_are_noticed);
    RUN(a_message_with_too_few_cookies_is_not_believed);
    RUN(no_nonsense_is_believed);
    RUN(there_must_be_room_and_every_offset_inside);
    RUN(what_has_no_cookie_is_for_another_call);
    return check_summary();
}
