/* test_channel.c - bytes and descriptors go into an AF_UNIX stream and come out of it.
 *
 * SPDX-License-Identifier: MIT */
#include "streams.h"

#define MANY 10000

static int many_fds[MANY + FDH_FDS_MAX + 1];
static char big[1 << 20];

static void bytes_and_descriptors_arrive_in_their_order(void)
{
    int ends[2], pipes[3][2], fds[3], got[2 * FDH_FDS_MAX + 2], i;
    const struct fdh_mark marks[] = {{0, 1}, {5, 2}};
    size_t n_bytes = 0, n_fds = 0;
    char buffer[16];

    pair(ends);
    open_pipes(pipes, 3);
    for (i = 0; i < 3; i++)
        fds[i] = pipes[i][0];
    CHECK_EQUAL(fdh_channel_send(ends[0], "0123456789", 10, fds, 3, marks, 2, 0, &n_bytes, &n_fds), 0);
    CHECK_EQUAL(n_bytes, 10);
    CHECK_EQUAL(n_fds, 3);
    CHECK_EQUAL(receive_all(ends[1], buffer, 10, got, LENGTH(got)), 3);
    CHECK(!memcmp(buffer, "0123456789", 10));
    for (i = 0; i < 3; i++) {
        CHECK(same_file(got[i], fds[i]));
        CHECK(is_cloexec(got[i]));
        close_all(pipes[i], 2);
    }
    close_all(got, 3);
    close_all(ends, 2);
}

static void the_senders_descriptors_stay_its_own(void)
{
    int ends[2], pipes[1][2], got[FDH_FDS_MAX + 1];
    const struct fdh_mark mark = {0, 1};
    size_t n_bytes, n_fds;
    char byte;

    pair(ends);
    open_pipes(pipes, 1);
    CHECK_EQUAL(fdh_channel_send(ends[0], "x", 1, pipes[0], 1, &mark, 1, 0, &n_bytes, &n_fds), 0);
    CHECK(is_open(pipes[0][0]));
    CHECK_EQUAL(receive_all(ends[1], &byte, 1, got, LENGTH(got)), 1);
    CHECK(got[0] != pipes[0][0]);
    close(got[0]);
    close_all(pipes[0], 2);
    close_all(ends, 2);
}

static void each_mark_starts_a_message_of_its_own(void)
{
    int ends[2], fds[3] = {0, 1, 2};
    const struct fdh_mark marks[] = {{2, 1}, {4, 2}};
    union {
        struct cmsghdr header;
        char bytes[1024];
    } control;
    char buffer[16];
    size_t n_bytes, n_fds, seen = 0, bytes = 0;

    pair(ends);
    CHECK_EQUAL(fdh_channel_send(ends[0], "aabbcc", 6, fds, 3, marks, 2, 0, &n_bytes, &n_fds), 0);
    while (bytes < 6) {
        struct iovec part = {.iov_base = buffer + bytes, .iov_len = sizeof buffer - bytes};
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
        struct cmsghdr *header;
        ssize_t n;

        message.msg_control = control.bytes;
        message.msg_controllen = sizeof control.bytes;
        n = recvmsg(ends[1], &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
        CHECK(n > 0);
        header = CMSG_FIRSTHDR(&message);
        if (header) {
            int got[8];
            size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);

            CHECK_EQUAL(count, seen + 1);
            memcpy(got, CMSG_DATA(header), count * sizeof(int));
            close_all(got, count);
            CHECK(bytes <= marks[seen].offset && bytes + (size_t)n > marks[seen].offset);
            seen++;
            CHECK(!CMSG_NXTHDR(&message, header));
        }
        bytes += (size_t)n;
    }
    CHECK_EQUAL(seen, 2);
    close_all(ends, 2);
}

/* n descriptors, 252 at a time, come out in the order in which they went in. */
static void transfer(size_t n, size_t each)
{
    int ends[2], pipes[7][2], *fds = many_fds, *got;
    struct fdh_mark *marks = calloc(n + 1, sizeof *marks);
    size_t n_marks = make_marks(marks, n, each, 1), size = n_marks ? n_marks : 1, n_bytes = 0, n_fds = 0, i;
    char *buffer = malloc(size);

    got = calloc(n + FDH_FDS_MAX + 1, sizeof *got);
    CHECK(marks && buffer && got);
    pair(ends);
    open_pipes(pipes, 7);
    for (i = 0; i < n; i++)
        fds[i] = pipes[(i * i + i / 7) % 7][0];
    CHECK_EQUAL(fdh_channel_send(ends[0], big, size, fds, n, marks, n_marks, SECONDS(5), &n_bytes, &n_fds), 0);
    CHECK_EQUAL(n_bytes, size);
    CHECK_EQUAL(n_fds, n);
    CHECK_EQUAL(receive_all(ends[1], buffer, size, got, n + FDH_FDS_MAX + 1), n);
    for (i = 0; i < n; i++)
        CHECK(same_file(got[i], fds[i]) && is_cloexec(got[i]));
    close_all(got, n);
    for (i = 0; i < 7; i++)
        close_all(pipes[i], 2);
    close_all(ends, 2);
    free(got);
    free(buffer);
    free(marks);
}

static void no_descriptors_need_no_mark(void)
{
    transfer(0, 1);
}

static void one_descriptor_travels(void)
{
    transfer(1, 1);
}

static void as_many_as_fit_one_message_travel(void)
{
    transfer(252, 252);
}

static void one_more_than_that_takes_two(void)
{
    transfer(253, 252);
}

static void ten_thousand_descriptors_travel(void)
{
    struct rlimit limit;

    MUST(getrlimit(RLIMIT_NOFILE, &limit));
    if (limit.rlim_cur < MANY + 300)
        SKIP("RLIMIT_NOFILE is too low");
    transfer(MANY, 252);
}

static void an_empty_send_is_complete(void)
{
    int ends[2];
    size_t n_bytes = 7, n_fds = 7;

    pair(ends);
    CHECK_EQUAL(fdh_channel_send(ends[0], "", 0, NULL, 0, NULL, 0, 0, &n_bytes, &n_fds), 0);
    CHECK_EQUAL(n_bytes, 0);
    CHECK_EQUAL(n_fds, 0);
    close_all(ends, 2);
}

static void marks_that_make_no_sense_are_refused(void)
{
    static const struct {
        struct fdh_mark marks[2];
        size_t n_marks, n_fds;
    } wrong[] = {
        {{{0, 0}, {0, 0}}, 1, 0},     /* a mark without descriptors */
        {{{0, 253}, {0, 0}}, 1, 253}, /* too many for one message */
        {{{4, 1}, {0, 0}}, 1, 1},     /* beyond the data */
        {{{2, 1}, {1, 1}}, 2, 2},     /* descending */
        {{{1, 1}, {1, 1}}, 2, 2},     /* twice at one byte */
        {{{0, 1}, {0, 0}}, 1, 2},     /* fewer than the descriptors */
        {{{0, 2}, {0, 0}}, 1, 1},     /* more than the descriptors */
        {{{0, 0}, {0, 0}}, 0, 1},     /* none for one descriptor */
        {{{0, 4294967295}, {1, 2}}, 2, 1}, /* a sum that wraps */
    };
    int ends[2], fds[253] = {0};
    size_t i, n_bytes, n_fds;

    pair(ends);
    TAINT(n_bytes);
    TAINT(n_fds);
    for (i = 0; i < LENGTH(wrong); i++)
        CHECK_EQUAL(fdh_channel_send(ends[0], "data", 4, fds, wrong[i].n_fds, wrong[i].marks, wrong[i].n_marks, 0,
                                     &n_bytes, &n_fds), -EINVAL);
    CHECK_UNTOUCHED(n_bytes);
    CHECK_UNTOUCHED(n_fds);
    CHECK(!is_readable(ends[1]));
    close_all(ends, 2);
}

static void a_closed_descriptor_is_not_sent(void)
{
    int ends[2], fd = next_fd() + 100;
    const struct fdh_mark mark = {0, 1};
    size_t n_bytes, n_fds;

    pair(ends);
    TAINT(n_bytes);
    TAINT(n_fds);
    CHECK_EQUAL(fdh_channel_send(ends[0], "x", 1, &fd, 1, &mark, 1, 0, &n_bytes, &n_fds), -EBADF);
    CHECK_UNTOUCHED(n_bytes);
    CHECK_UNTOUCHED(n_fds);
    CHECK(!is_readable(ends[1]));
    close_all(ends, 2);
}

static void sending_to_nobody_is_an_error_and_no_signal(void)
{
    int ends[2];
    size_t n_bytes, n_fds;

    pair(ends);
    TAINT(n_bytes);
    close(ends[1]);
    CHECK_EQUAL(fdh_channel_send(ends[0], "x", 1, NULL, 0, NULL, 0, SECONDS(5), &n_bytes, &n_fds), -EPIPE);
    CHECK_UNTOUCHED(n_bytes);
    close(ends[0]);
}

static void *close_when_it_waits(void *end)
{
    char byte;

    MUST(recv(*(int *)end, &byte, 1, 0));
    close(*(int *)end);
    return NULL;
}

static void a_peer_that_leaves_while_we_wait_is_an_error(void)
{
    int ends[2], rc;
    size_t n_bytes, n_fds;
    pthread_t thread;

    pair(ends);
    CHECK_EQUAL(pthread_create(&thread, NULL, close_when_it_waits, &ends[1]), 0);
    TAINT(n_bytes);
    rc = fdh_channel_send(ends[0], big, sizeof big, NULL, 0, NULL, 0, SECONDS(20), &n_bytes, &n_fds);
    CHECK(rc == -EPIPE || rc == -ECONNRESET);
    CHECK_UNTOUCHED(n_bytes);
    pthread_join(thread, NULL);
    close(ends[0]);
}

static void a_full_buffer_ends_at_the_deadline_also_on_a_blocking_socket(void)
{
    int ends[2];
    size_t n_bytes = 0, n_fds = 0, more = 0;
    int64_t deadline;

    pair(ends);
    CHECK_EQUAL(fdh_channel_send(ends[0], big, sizeof big, NULL, 0, NULL, 0, 0, &n_bytes, &n_fds), FDH_AGAIN);
    CHECK(n_bytes > 0 && n_bytes < sizeof big);
    deadline = MILLISECONDS(30);
    CHECK_EQUAL(fdh_channel_send(ends[0], big, sizeof big, NULL, 0, NULL, 0, deadline, &more, &n_fds), FDH_AGAIN);
    CHECK(fdh_now() >= deadline);
    CHECK(fdh_now() < deadline + 10000000000);
    CHECK_EQUAL(receive_all(ends[1], big, n_bytes + more, many_fds, FDH_FDS_MAX + 1), 0);
    CHECK(!is_readable(ends[1]));
    CHECK(!is_nonblocking(ends[0]));
    close_all(ends, 2);
}

/* What is left after n_bytes and n_fds were sent: the caller's arithmetic that the header promises to work. */
static size_t shift_marks(struct fdh_mark *marks, size_t n_marks, size_t n_bytes)
{
    size_t i, left = 0;

    for (i = 0; i < n_marks; i++)
        if (marks[i].offset >= n_bytes) {
            marks[left].offset = marks[i].offset - (uint32_t)n_bytes;
            marks[left++].n_fds = marks[i].n_fds;
        }
    return left;
}

static void short_writes_are_taken_up_where_they_ended(void)
{
    enum { SIZE = 60000, FDS = 900 };
    static char out[SIZE], in[SIZE];
    static struct fdh_mark marks[FDS];
    static int got[FDS + FDH_FDS_MAX + 1];
    int ends[2], pipes[5][2], fds[FDS], tiny = 1;
    size_t sent = 0, sent_fds = 0, received = 0, received_fds = 0, i, turns = 0;
    size_t n_marks = make_marks(marks, FDS, 3, 199);

    pair(ends);
    open_pipes(pipes, 5);
    MUST(setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &tiny, sizeof tiny));
    for (i = 0; i < SIZE; i++)
        out[i] = (char)(i * 7 + i / 256);
    for (i = 0; i < FDS; i++)
        fds[i] = pipes[(i * i) % 5][0];
    while (received < SIZE) {
        size_t n = 0, n_fds = 0;
        int rc;

        if (sent < SIZE) {
            rc = fdh_channel_send(ends[0], out + sent, SIZE - sent, fds + sent_fds, FDS - sent_fds, marks, n_marks, 0, &n,
                                  &n_fds);
            CHECK(rc == (sent + n == SIZE ? 0 : FDH_AGAIN));
            n_marks = shift_marks(marks, n_marks, n);
            sent += n;
            sent_fds += n_fds;
        }
        rc = fdh_channel_receive(ends[1], in + received, SIZE - received, got + received_fds, LENGTH(got) - received_fds,
                                 0, &n, &n_fds);
        CHECK_EQUAL(rc, 0);
        received += n;
        received_fds += n_fds;
        turns++;
    }
    CHECK(turns > 10);
    CHECK_EQUAL(sent_fds, FDS);
    CHECK_EQUAL(received_fds, FDS);
    CHECK(!memcmp(in, out, SIZE));
    for (i = 0; i < FDS; i++)
        CHECK(same_file(got[i], fds[i]));
    close_all(got, FDS);
    for (i = 0; i < 5; i++)
        close_all(pipes[i], 2);
    close_all(ends, 2);
}

int main(void)
{
    RUN(bytes_and_descriptors_arrive_in_their_order);
    RUN(the_senders_descriptors_stay_its_own);
    RUN(each_mark_starts_a_message_of_its_own);
    RUN(no_descriptors_need_no_mark);
    RUN(one_descriptor_travels);
    RUN(as_many_as_fit_one_message_travel);
    RUN(one_more_than_that_takes_two);
    RUN(ten_thousand_descriptors_travel);
    RUN(an_empty_send_is_complete);
    RUN(marks_that_make_no_sense_are_refused);
    RUN(a_closed_descriptor_is_not_sent);
    RUN(sending_to_nobody_is_an_error_and_no_signal);
    RUN(a_peer_that_leaves_while_we_wait_is_an_error);
    RUN(a_full_buffer_ends_at_the_deadline_also_on_a_blocking_socket);
    RUN(short_writes_are_taken_up_where_they_ended);
    return check_summary();
}
