/* test_gate_interleaved.c - two processes at one gate, the second acting while the first stands at one instruction after
 * another: the races that threads meet once in a million runs, each met on purpose.
 *
 * SPDX-License-Identifier: MIT */
#include "loopback.h"
#include "stepping.h"

static struct fdh_gate gate;
static int listener;

/* What the child's action came to, for us to read. */
static struct outcome {
    long result;
    long n;
} *outcome;

static void enter(void)
{
    outcome->result = fdh_gate_enter(&gate);
}

static void leave(void)
{
    fdh_gate_leave(&gate);
}

static void accept_one(void)
{
    int fds[4];
    size_t n = 0;

    outcome->result = fdh_accept(&gate, listener, fds, 4, &n);
    outcome->n = (long)n;
}

/* A child that attaches, enters as often as it is told, does it, and stops. */
static pid_t start(void (*action)(void), int entries)
{
    pid_t pid = fork_child();

    MUST(pid);
    if (!pid) {
        CHECK_EQUAL(fdh_gate_attach(&gate), 0);
        while (entries--)
            CHECK(fdh_gate_enter(&gate));
        wait_for_steps();
        action();
        raise(SIGSTOP);
        _exit(0);
    }
    await_stop(pid);
    return pid;
}

static void end(pid_t pid)
{
    uint64_t settled;
    uint32_t index = slot_index_of(&gate, pid);

    reap_killed(pid);
    CHECK_EQUAL(fdh_gate_settle(&gate, index, pid, &settled), 0);
}

/* For each moment of the action: `before`, the child up to that moment, `meanwhile`, the child to its end, `check`. */
static void interleave(void (*before)(void), void (*action)(void), int entries, void (*meanwhile)(void),
                       void (*check)(void))
{
    long total = 0, point, points = 1;

    outcome = mmap(NULL, sizeof *outcome, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(outcome != MAP_FAILED);
    CHECK_EQUAL(fdh_gate_create(&gate), 0);
    for (point = -1; point < points; point++) {
        pid_t pid;

        CHECK_EQUAL(fdh_gate_reopen(&gate), 0);
        CHECK_EQUAL(fdh_gate_set_limit(&gate, 0), 0);
        forget_room(&gate);
        before();
        pid = start(action, entries);
        if (point < 0) {
            total = step(pid, 10000000);
            points = points_of(total);
            meanwhile();
        } else {
            long wanted = total * point / points, made = step(pid, wanted);

            meanwhile();
            if (made == wanted) /* else it was at its end already, by a shorter way */
                step(pid, 10000000);
        }
        check();
        end(pid);
        CHECK_EQUAL(fdh_gate_active(&gate), 0);
    }
    fdh_gate_deinit(&gate);
    munmap(outcome, sizeof *outcome);
}

static void nothing(void)
{
}

static int64_t active_at_close;
static int close_result;

static void close_it(void)
{
    close_result = fdh_gate_close(&gate, 0);
    active_at_close = fdh_gate_active(&gate);
}

/* Who got in was seen by the closer: else the closer would think that the gate was drained. */
static void check_no_late_entry(void)
{
    if (outcome->result)
        CHECK_EQUAL(active_at_close, 1);
    CHECK_EQUAL(fdh_gate_active(&gate), outcome->result);
    CHECK_EQUAL(is_readable(gate.drained_fd), !outcome->result);
    CHECK_EQUAL(fdh_gate_wait(&gate, 0), outcome->result ? FDH_AGAIN : 0);
}

static void closing_at_any_moment_of_an_enter_sees_it_or_refuses_it(void)
{
    interleave(nothing, enter, 0, close_it, check_no_late_entry);
}

static void check_drained(void)
{
    CHECK(is_readable(gate.drained_fd));
    CHECK_EQUAL(fdh_gate_wait(&gate, 0), 0);
}

static void closing_at_any_moment_of_the_last_leave_drains(void)
{
    interleave(nothing, leave, 1, close_it, check_drained);
}

static void close_and_reopen(void)
{
    close_it();
    CHECK_EQUAL(fdh_gate_reopen(&gate), 0);
}

static void check_open(void)
{
    CHECK(!is_readable(gate.closed_fd));
    CHECK(!is_readable(gate.drained_fd));
}

static void reopen(void)
{
    CHECK_EQUAL(fdh_gate_reopen(&gate), 0);
}

static void a_reopened_gate_is_never_left_looking_drained(void)
{
    interleave(nothing, leave, 1, close_and_reopen, check_open);
    interleave(close_it, enter, 0, reopen, check_open);
}

static void close_action(void)
{
    fdh_gate_close(&gate, 0);
}

static void enter_here(void)
{
    outcome->result = fdh_gate_enter(&gate);
}

/* The closer is the child: it stops at any moment while we enter. */
static void check_entered_or_refused(void)
{
    CHECK(is_readable(gate.closed_fd));
    CHECK_EQUAL(is_readable(gate.drained_fd), !outcome->result);
    if (outcome->result)
        fdh_gate_leave(&gate);
    CHECK(is_readable(gate.drained_fd));
}

static void entering_at_any_moment_of_a_close_is_seen_or_refused(void)
{
    interleave(nothing, close_action, 0, enter_here, check_entered_or_refused);
}

static void fill_it(void)
{
    CHECK_EQUAL(fdh_gate_set_limit(&gate, 1), 0);
    CHECK(fdh_gate_enter(&gate));
}

static void leave_here(void)
{
    fdh_gate_leave(&gate);
}

/* Who was refused is told of the room; who was told nothing is inside. */
static void check_told_or_inside(void)
{
    CHECK(outcome->result || is_readable(gate.room_fd));
}

static void leaving_at_any_moment_of_a_refusal_is_told(void)
{
    interleave(fill_it, enter, 0, leave_here, check_told_or_inside);
}

static void limit_one(void)
{
    CHECK_EQUAL(fdh_gate_set_limit(&gate, 1), 0);
}

static void check_told_or_inside_here(void)
{
    CHECK(outcome->result || is_readable(gate.room_fd));
    if (outcome->result)
        fdh_gate_leave(&gate);
}

static void being_refused_at_any_moment_of_a_leave_is_told(void)
{
    interleave(limit_one, leave, 1, enter_here, check_told_or_inside_here);
}

static int client;
static uint32_t waiting_at_close;

/* After 0 from close no connection is accepted; FDH_AGAIN said that one call was still at it. */
static void check_no_late_accept(void)
{
    if (close_result == 0)
        CHECK_EQUAL(waiting_at(listener), waiting_at_close);
    else
        CHECK_EQUAL(close_result, FDH_AGAIN);
    CHECK_EQUAL(waiting_at(listener) + outcome->n, 1);
    CHECK_EQUAL(fdh_gate_close(&gate, 0), 0);
    CHECK_EQUAL(fdh_gate_active(&gate), outcome->n);
}

static void close_and_look_at_the_queue(void)
{
    close_it();
    waiting_at_close = waiting_at(listener);
}

static void connect_afresh(void)
{
    if (client >= 0)
        reset(client);
    while (waiting_at(listener)) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

        MUST(fd);
        close(fd);
    }
    client = tcp_connect(AF_INET, port_of(listener), 0);
}

static void closing_at_any_moment_of_an_accept_waits_for_it_or_stops_it(void)
{
    listener = tcp_listen(AF_INET, 8);
    client = -1;
    interleave(connect_afresh, accept_one, 0, close_and_look_at_the_queue, check_no_late_accept);
    reset(client);
    close(listener);
}

int main(void)
{
    if (!can_step())
        return 0;
    RUN(closing_at_any_moment_of_an_enter_sees_it_or_refuses_it);
    RUN(closing_at_any_moment_of_the_last_leave_drains);
    RUN(a_reopened_gate_is_never_left_looking_drained);
    RUN(entering_at_any_moment_of_a_close_is_seen_or_refused);
    RUN(leaving_at_any_moment_of_a_refusal_is_told);
    RUN(being_refused_at_any_moment_of_a_leave_is_told);
    RUN(closing_at_any_moment_of_an_accept_waits_for_it_or_stops_it);
    return check_summary();
}
