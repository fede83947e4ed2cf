/* test_channel_receive.c - what a receiver meets: hurry, interruption, lost descriptors, peers that misbehave.
 *
 * SPDX-License-Identifier: MIT */
#include "streams.h"

static char buffer[1 << 16];
static int got[4 * (FDH_FDS_MAX + 1)];

static void one_byte_at_a_time_loses_nothing(void)
{
    int ends[2], pipes[3][2], i;
    size_t n_bytes, n_fds;

    pair(ends);
    open_pipes(pipes, 3);
    for (i = 0; i < 30; i++)
        raw_send(ends[0], &"abc"[i % 3], 1, &pipes[i % 3][0], (size_t)(i % 2));
    for (i = 0; i < 30; i++) {
        CHECK_EQUAL(fdh_channel_receive(ends[1], buffer, 1, got, LENGTH(got), 0, &n_bytes, &n_fds), 0);
        CHECK_EQUAL(n_bytes, 1);
        CHECK_EQUAL(buffer[0], "abc"[i % 3]);
        CHECK_EQUAL(n_fds, i % 2);
        if (n_fds) {
            CHECK(same_file(got[0], pipes[i % 3][0]));
            close(got[0]);
        }
    }
    for (i = 0; i < 3; i++)
        close_all(pipes[i], 2);
    close_all(ends, 2);
}

static void several_messages_come_with_one_call(void)
{
    int ends[2], zero = 0;
    size_t n_bytes, n_fds;

    pair(ends);
    raw_send(ends[0], "a", 1, &zero, 1);
    raw_send(ends[0], "b", 1, NULL, 0);
    raw_send(ends[0], "c", 1, &zero, 1);
    CHECK_EQUAL(fdh_channel_receive(ends[1], buffer, sizeof buffer, got, LENGTH(got), 0, &n_bytes, &n_fds), 0);
    CHECK_EQUAL(n_bytes, 3);
    CHECK_EQUAL(n_fds, 2);
    CHECK(!memcmp(buffer, "abc", 3));
    close_all(got, 2);
    close_all(ends, 2);
}

static void it_stops_while_too_few_places_are_free(void)
{
    int ends[2], zero = 0;
    size_t n_bytes, n_fds;

    pair(ends);
    raw_send(ends[0], "a", 1, &zero, 1);
    raw_send(ends[0], "b", 1, &zero, 1);
    CHECK_EQUAL(fdh_channel_receive(ends[1], buffer, sizeof buffer, got, FDH_FDS_MAX + 1, 0, &n_bytes, &n_fds), 0);
    CHECK_EQUAL(n_bytes, 1);
    CHECK_EQUAL(n_fds, 1);
    close(got[0]);
    CHECK_EQUAL(fdh_channel_receive(ends[1], buffer, sizeof buffer, got, FDH_FDS_MAX + 1, 0, &n_bytes, &n_fds), 0);
    CHECK_EQUAL(buffer[0], 'b');
    close(got[0]);
    close_all(ends, 2);
}

static void fewer_places_than_a_message_may_need_are_refused(void)
{
    int ends[2], zero = 0;
    size_t n_bytes, n_fds;

    pair(ends);
    raw_send(ends[0], "a", 1, &zero, 1);
    TAINT(n_bytes);
    TAINT(n_fds);
    CHECK_EQUAL(fdh_channel_receive(ends[1], buffer, 1, got, FDH_FDS_MAX, 0, &n_bytes, &n_fds), -EINVAL);
    CHECK_EQUAL(fdh_channel_receive(ends[1], buffer, 0, got, LENGTH(got), 0, &n_bytes, &n_fds), -EINVAL);
    CHECK_UNTOUCHED(n_bytes);
    CHECK_UNTOUCHED(n_fds);
    CHECK(is_readable(ends[1]));
    close_all(ends, 2);
}

static void a_peer_may_fill_a_message_to_the_kernels_limit(void)
{
    int ends[2], fds[253] = {0};
    size_t n_bytes, n_fds;

    pair(ends);
    raw_send(ends[0], "a", 1, fds, 253);
    CHECK_EQUAL(fdh_channel_receive(ends[1], buffer, 1, got, FDH_FDS_MAX + 1, 0, &n_bytes, &n_fds), 0);
    CHECK_EQUAL(n_fds, 253);
    close_all(got, 253);
    close_all(ends, 2);
}

static void surplus_descriptors_are_handed_out_and_not_lost(void)
{
    int ends[2], fds[253] = {0}, i;
    size_t n_bytes, n_fds, sum = 0;

    pair(ends);
    for (i = 0; i < 9; i++)
        raw_send(ends[0], "a", 1, fds, 253);
    close(ends[0]);
    while (fdh_channel_receive(ends[1], buffer, sizeof buffer, got, LENGTH(got), 0, &n_bytes, &n_fds) == 0) {
        sum += n_fds;
        close_all(got, n_fds);
    }
    CHECK_EQUAL(sum, 9 * 253);
    close(ends[1]);
}

static void what_was_never_received_closes_with_the_socket(void)
{
    int ends[2], pipes[1][2], first = next_fd();

    pair(ends);
    open_pipes(pipes, 1);
    raw_send(ends[0], "a", 1, &pipes[0][1], 1);
    close_all(ends, 2);
    close(pipes[0][1]);
    CHECK(poll(&(struct pollfd){.fd = pipes[0][0], .events = POLLIN, .revents = 0}, 1, 10000) == 1);
    close(pipes[0][0]);
    CHECK_EQUAL(next_fd(), first);
}

static void nothing_to_read_ends_at_the_deadline(void)
{
    int ends[2];
    size_t n_bytes = 7, n_fds = 7;
    int64_t deadline;

    pair(ends);
    CHECK_EQUAL(fdh_channel_receive(ends[1], buffer, 1, got, LENGTH(got), 0, &n_bytes, &n_fds), FDH_AGAIN);
    CHECK_EQUAL(n_bytes, 0);
    CHECK_EQUAL(n_fds, 0);
    deadline = MILLISECONDS(30);
    CHECK_EQUAL(fdh_channel_receive(ends[1], buffer, 1, got, LENGTH(got), deadline, &n_bytes, &n_fds), FDH_AGAIN);
    CHECK(fdh_now() >= deadline);
    CHECK(!is_nonblocking(ends[1]));
    close_all(ends, 2);
}

static void the_end_of_the_stream_comes_after_its_last_byte(void)
{
    int ends[2], zero = 0;
    size_t n_bytes, n_fds;

    pair(ends);
    raw_send(ends[0], "a", 1, &zero, 1);
    close(ends[0]);
    CHECK_EQUAL(fdh_channel_receive(ends[1], buffer, 9, got, LENGTH(got), SECONDS(5), &n_bytes, &n_fds), 0);
    CHECK_EQUAL(n_bytes, 1);
    CHECK_EQUAL(n_fds, 1);
    close(got[0]);
    n_bytes = n_fds = 7;
    CHECK_EQUAL(fdh_channel_receive(ends[1], buffer, 9, got, LENGTH(got), SECONDS(5), &n_bytes, &n_fds), FDH_EOF);
    CHECK_EQUAL(n_bytes, 0);
    CHECK_EQUAL(n_fds, 0);
    close(ends[1]);
}

static void a_peer_that_left_without_reading_is_a_reset(void)
{
    int ends[2];
    size_t n_bytes, n_fds;

    pair(ends);
    raw_send(ends[1], "unread", 6, NULL, 0);
    close(ends[0]);
    TAINT(n_bytes);
    CHECK_EQUAL(fdh_channel_receive(ends[1], buffer, 9, got, LENGTH(got), SECONDS(5), &n_bytes, &n_fds), -ECONNRESET);
    CHECK_UNTOUCHED(n_bytes);
    close(ends[1]);
}

static void lost_descriptors_make_the_message_worthless(void)
{
    int ends[2], fds[5] = {0}, before;
    size_t n_bytes, n_fds;
    rlim_t limit;

    pair(ends);
    raw_send(ends[0], "a", 1, fds, 5);
    TAINT(n_bytes);
    TAINT(n_fds);
    before = next_fd();
    limit = nofile_leave(3);
    CHECK_EQUAL(fdh_channel_receive(ends[1], buffer, 9, got, LENGTH(got), 0, &n_bytes, &n_fds), -EBADMSG);
    nofile_set(limit);
    CHECK_UNTOUCHED(n_bytes);
    CHECK_UNTOUCHED(n_fds);
    CHECK_EQUAL(next_fd(), before);
    close_all(ends, 2);
}

static void a_process_without_any_free_number_loses_them_all(void)
{
    int ends[2], fds[5] = {0};
    size_t n_bytes, n_fds;
    rlim_t limit;

    pair(ends);
    raw_send(ends[0], "a", 1, fds, 5);
    limit = nofile_leave(0);
    CHECK_EQUAL(fdh_channel_receive(ends[1], buffer, 9, got, LENGTH(got), 0, &n_bytes, &n_fds), -EBADMSG);
    nofile_set(limit);
    close_all(ends, 2);
}

static void what_came_before_the_loss_is_closed_too(void)
{
    int ends[2], fds[5] = {0}, before;
    size_t n_bytes, n_fds;
    rlim_t limit;

    pair(ends);
    raw_send(ends[0], "a", 1, fds, 5);
    raw_send(ends[0], "b", 1, fds, 5);
    TAINT(n_bytes);
    before = next_fd();
    limit = nofile_leave(7);
    CHECK_EQUAL(fdh_channel_receive(ends[1], buffer, 9, got, LENGTH(got), 0, &n_bytes, &n_fds), -EBADMSG);
    nofile_set(limit);
    CHECK_UNTOUCHED(n_bytes);
    CHECK_EQUAL(next_fd(), before);
    close_all(ends, 2);
}

/* Sets an option that makes the kernel add control data which we never asked for. */
static void receive_with_option(int option, bool may_be_missing)
{
    int ends[2], fds[3] = {0}, on = 1, before;
    size_t n_bytes, n_fds;

    pair(ends);
    if (setsockopt(ends[1], SOL_SOCKET, option, &on, sizeof on) < 0 && may_be_missing) {
        close_all(ends, 2);
        SKIP("no such socket option in this kernel");
    }
    raw_send(ends[0], "a", 1, fds, 3);
    TAINT(n_bytes);
    before = next_fd();
    CHECK_EQUAL(fdh_channel_receive(ends[1], buffer, 9, got, LENGTH(got), 0, &n_bytes, &n_fds), -EBADMSG);
    CHECK_UNTOUCHED(n_bytes);
    CHECK_EQUAL(next_fd(), before);
    close_all(ends, 2);
}

static void unexpected_credentials_are_refused_and_all_is_closed(void)
{
    receive_with_option(SO_PASSCRED, false);
}

static void an_unexpected_pidfd_is_refused_and_closed(void)
{
    receive_with_option(76 /* SO_PASSPIDFD, Linux 6.5 */, true);
}

struct bulk {
    int sock;
    size_t size;
    const int *fds;
    size_t n_fds;
    const struct fdh_mark *marks;
    size_t n_marks;
};

static void *send_bulk(void *argument)
{
    const struct bulk *bulk = argument;
    size_t n_bytes = 0, n_fds = 0;
    static char zeros[400000];

    CHECK_EQUAL(fdh_channel_send(bulk->sock, zeros, bulk->size, bulk->fds, bulk->n_fds, bulk->marks, bulk->n_marks,
                                 SECONDS(30), &n_bytes, &n_fds), 0);
    CHECK_EQUAL(n_bytes, bulk->size);
    CHECK_EQUAL(n_fds, bulk->n_fds);
    return NULL;
}

static void a_storm_of_signals_interrupts_nothing(void)
{
    enum { SIZE = 400000, FDS = 400 };
    static struct fdh_mark marks[FDS];
    static int fds[FDS];
    int ends[2], tiny = 4096;
    size_t bytes = 0, n_fds = 0;
    struct bulk bulk = {0, SIZE, fds, FDS, marks, make_marks(marks, FDS, 1, 997)};
    pthread_t thread;
    int64_t deadline, give_up = SECONDS(30);

    pair(ends);
    bulk.sock = ends[0];
    MUST(setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &tiny, sizeof tiny));
    storm(500);
    CHECK_EQUAL(pthread_create(&thread, NULL, send_bulk, &bulk), 0);
    while (bytes < SIZE) {
        size_t more = 0, more_fds = 0;

        CHECK_EQUAL(fdh_channel_receive(ends[1], buffer, 3000, got, LENGTH(got), SECONDS(30), &more, &more_fds), 0);
        close_all(got, more_fds);
        bytes += more;
        n_fds += more_fds;
    }
    CHECK_EQUAL(pthread_join(thread, NULL), 0);
    CHECK_EQUAL(n_fds, FDS);
    /* On a busy machine a storm takes its time: it must have been one, also for who waits. */
    do {
        deadline = MILLISECONDS(50);
        CHECK_EQUAL(fdh_channel_receive(ends[1], buffer, 1, got, LENGTH(got), deadline, &bytes, &n_fds), FDH_AGAIN);
        CHECK(fdh_now() >= deadline);
    } while (storm_count <= 10 && fdh_now() < give_up);
    storm(0);
    CHECK(storm_count > 10);
    close_all(ends, 2);
}

static void no_socket_is_an_error(void)
{
    int pipes[1][2];
    size_t n_bytes, n_fds;

    open_pipes(pipes, 1);
    CHECK_EQUAL(fdh_channel_receive(pipes[0][0], buffer, 1, got, LENGTH(got), 0, &n_bytes, &n_fds), -ENOTSOCK);
    CHECK_EQUAL(fdh_channel_receive(-1, buffer, 1, got, LENGTH(got), 0, &n_bytes, &n_fds), -EBADF);
    CHECK_EQUAL(fdh_channel_send(pipes[0][1], "x", 1, NULL, 0, NULL, 0, 0, &n_bytes, &n_fds), -ENOTSOCK);
    CHECK_EQUAL(fdh_channel_send(-1, "x", 1, NULL, 0, NULL, 0, 0, &n_bytes, &n_fds), -EBADF);
    close_all(pipes[0], 2);
}

int main(void)
{
    RUN(one_byte_at_a_time_loses_nothing);
    RUN(several_messages_come_with_one_call);
    RUN(it_stops_while_too_few_places_are_free);
    RUN(fewer_places_than_a_message_may_need_are_refused);
    RUN(a_peer_may_fill_a_message_to_the_kernels_limit);
    RUN(surplus_descriptors_are_handed_out_and_not_lost);
    RUN(what_was_never_received_closes_with_the_socket);
    RUN(nothing_to_read_ends_at_the_deadline);
    RUN(the_end_of_the_stream_comes_after_its_last_byte);
    RUN(a_peer_that_left_without_reading_is_a_reset);
    RUN(lost_descriptors_make_the_message_worthless);
    RUN(a_process_without_any_free_number_loses_them_all);
    RUN(what_came_before_the_loss_is_closed_too);
    RUN(unexpected_credentials_are_refused_and_all_is_closed);
    RUN(an_unexpected_pidfd_is_refused_and_closed);
    RUN(a_storm_of_signals_interrupts_nothing);
    RUN(no_socket_is_an_error);
    return check_summary();
}
