/* test_accept.c - the accept loop, and closing the gate against it.
 *
 * SPDX-License-Identifier: MIT */
#include "gates.h"
#include "loopback.h"

#include <sched.h>
#include <stdatomic.h>

#define CLIENTS 5

static struct fdh_gate gate;
static int fds[64], clients[64];

static void connect_clients(int listener, int n)
{
    int i;

    for (i = 0; i < n; i++)
        clients[i] = tcp_connect(AF_INET, port_of(listener), 0);
}

static void close_clients(int n)
{
    int i;

    for (i = 0; i < n; i++)
        reset(clients[i]);
}

static void leave_all(size_t n)
{
    size_t i;

    for (i = 0; i < n; i++) {
        close(fds[i]);
        fdh_gate_leave(&gate);
    }
}

static void an_empty_queue_is_zero_connections_also_on_a_blocking_listener(void)
{
    int listener = tcp_listen(AF_INET, 8);
    size_t n = 7;

    CHECK(!is_nonblocking(listener));
    CHECK_EQUAL(fdh_accept(NULL, listener, fds, 8, &n), 0);
    CHECK_EQUAL(n, 0);
    CHECK(is_nonblocking(listener));
    CHECK_EQUAL(fdh_accept(NULL, listener, fds, 8, &n), 0);
    close(listener);
}

static void connections_are_born_close_on_exec_and_non_blocking(void)
{
    int listener = tcp_listen(AF_INET, 8), i;
    size_t n = 0;

    connect_clients(listener, CLIENTS);
    CHECK_EQUAL(fdh_accept(NULL, listener, fds, 8, &n), 0);
    CHECK_EQUAL(n, CLIENTS);
    for (i = 0; i < CLIENTS; i++) {
        CHECK(is_cloexec(fds[i]));
        CHECK(is_nonblocking(fds[i]));
        close(fds[i]);
    }
    close_clients(CLIENTS);
    close(listener);
}

static void each_connection_enters_the_gate(void)
{
    int listener = tcp_listen(AF_INET, 8);
    size_t n = 0;

    CHECK_EQUAL(fdh_gate_create(&gate), 0);
    connect_clients(listener, CLIENTS);
    CHECK_EQUAL(fdh_accept(&gate, listener, fds, 8, &n), 0);
    CHECK_EQUAL(n, CLIENTS);
    CHECK_EQUAL(counters_of(&gate).accepted, CLIENTS);
    CHECK_EQUAL(fdh_gate_active(&gate), CLIENTS);
    leave_all(n);
    CHECK_EQUAL(counters_of(&gate).finished, CLIENTS);
    CHECK_EQUAL(counters_of(&gate).refused, 0);
    check_conserved(&gate);
    fdh_gate_deinit(&gate);
    close_clients(CLIENTS);
    close(listener);
}

static void the_callers_capacity_ends_the_call(void)
{
    int listener = tcp_listen(AF_INET, 8);
    size_t n = 0;

    CHECK_EQUAL(fdh_gate_create(&gate), 0);
    connect_clients(listener, CLIENTS);
    CHECK_EQUAL(fdh_accept(&gate, listener, fds, 3, &n), FDH_MORE);
    CHECK_EQUAL(n, 3);
    CHECK_EQUAL(waiting_at(listener), CLIENTS - 3);
    leave_all(n);
    CHECK_EQUAL(fdh_accept(&gate, listener, fds, 3, &n), 0);
    CHECK_EQUAL(n, CLIENTS - 3);
    leave_all(n);
    CHECK_EQUAL(fdh_accept(&gate, listener, fds, 0, &n), FDH_MORE);
    CHECK_EQUAL(n, 0);
    fdh_gate_deinit(&gate);
    close_clients(CLIENTS);
    close(listener);
}

static void a_closed_gate_leaves_the_connections_in_the_queue(void)
{
    int listener = tcp_listen(AF_INET, 8);
    size_t n = 7;

    CHECK_EQUAL(fdh_gate_create(&gate), 0);
    connect_clients(listener, CLIENTS);
    CHECK_EQUAL(fdh_gate_close(&gate, 0), 0);
    CHECK_EQUAL(fdh_accept(&gate, listener, fds, 8, &n), FDH_CLOSED);
    CHECK_EQUAL(n, 0);
    CHECK_EQUAL(waiting_at(listener), CLIENTS);
    CHECK_EQUAL(fdh_gate_active(&gate), 0);
    CHECK(is_readable(gate.drained_fd));
    CHECK_EQUAL(fdh_gate_reopen(&gate), 0);
    CHECK_EQUAL(fdh_accept(&gate, listener, fds, 8, &n), 0);
    CHECK_EQUAL(n, CLIENTS);
    leave_all(n);
    check_conserved(&gate);
    fdh_gate_deinit(&gate);
    close_clients(CLIENTS);
    close(listener);
}

static void a_full_gate_leaves_the_rest_in_the_queue(void)
{
    int listener = tcp_listen(AF_INET, 8);
    size_t n = 0;

    CHECK_EQUAL(fdh_gate_create(&gate), 0);
    CHECK_EQUAL(fdh_gate_set_limit(&gate, 2), 0);
    connect_clients(listener, CLIENTS);
    CHECK_EQUAL(fdh_accept(&gate, listener, fds, 8, &n), FDH_FULL);
    CHECK_EQUAL(n, 2);
    CHECK_EQUAL(waiting_at(listener), CLIENTS - 2);
    CHECK_EQUAL(fdh_gate_active(&gate), 2);
    CHECK(!is_readable(gate.room_fd));
    leave_all(2);
    CHECK(is_readable(gate.room_fd));
    fdh_gate_room_clear(&gate);
    CHECK_EQUAL(fdh_accept(&gate, listener, fds, 8, &n), FDH_FULL);
    CHECK_EQUAL(n, 2);
    leave_all(2);
    check_conserved(&gate);
    fdh_gate_deinit(&gate);
    close_clients(CLIENTS);
    close(listener);
}

static void without_descriptors_it_pauses_and_loses_nobody(void)
{
    int listener = tcp_listen(AF_INET, 8), rc;
    size_t n = 0;
    rlim_t limit;

    CHECK_EQUAL(fdh_gate_create(&gate), 0);
    connect_clients(listener, CLIENTS);
    limit = nofile_leave(2);
    rc = fdh_accept(&gate, listener, fds, 8, &n);
    nofile_set(limit);
    CHECK_EQUAL(rc, FDH_PAUSE);
    CHECK_EQUAL(n, 2);
    CHECK_EQUAL(waiting_at(listener), CLIENTS - 2);
    CHECK_EQUAL(fdh_gate_active(&gate), 2);
    CHECK_EQUAL(counters_of(&gate).accepted, 2);
    leave_all(n);
    limit = nofile_leave(0);
    rc = fdh_accept(&gate, listener, fds, 8, &n);
    nofile_set(limit);
    CHECK_EQUAL(rc, FDH_PAUSE);
    CHECK_EQUAL(n, 0);
    CHECK_EQUAL(fdh_accept(&gate, listener, fds, 8, &n), 0);
    CHECK_EQUAL(n, CLIENTS - 2);
    leave_all(n);
    check_conserved(&gate);
    fdh_gate_deinit(&gate);
    close_clients(CLIENTS);
    close(listener);
}

static void connections_reset_in_the_queue_stop_nothing(void)
{
    int listener = tcp_listen(AF_INET, 8);
    size_t n = 0;

    CHECK_EQUAL(fdh_gate_create(&gate), 0);
    connect_clients(listener, CLIENTS);
    reset(clients[0]);
    reset(clients[2]);
    CHECK_EQUAL(fdh_accept(&gate, listener, fds, 8, &n), 0);
    /* Linux hands the dead ones out too, and the first read tells; other systems say ECONNABORTED. */
    CHECK(n >= CLIENTS - 2 && n <= CLIENTS);
    CHECK_EQUAL(fdh_gate_active(&gate), n);
    leave_all(n);
    check_conserved(&gate);
    fdh_gate_deinit(&gate);
    reset(clients[1]);
    reset(clients[3]);
    reset(clients[4]);
    close(listener);
}

static void what_is_no_listener_is_an_error_and_nobody_is_inside(void)
{
    int kinds[4], wanted[] = {-EINVAL, -EOPNOTSUPP, -EINVAL, -ENOTSOCK}, i, ends[2];
    size_t n;

    CHECK_EQUAL(fdh_gate_create(&gate), 0);
    MUST(pipe2(ends, O_CLOEXEC));
    kinds[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    kinds[1] = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    kinds[2] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    kinds[3] = ends[0];
    TAINT(n);
    for (i = 0; i < 4; i++) {
        MUST(kinds[i]);
        CHECK_EQUAL(fdh_accept(&gate, kinds[i], fds, 8, &n), wanted[i]);
        CHECK_EQUAL(fdh_accept(NULL, kinds[i], fds, 8, &n), wanted[i]);
        close(kinds[i]);
    }
    CHECK_EQUAL(fdh_accept(&gate, -1, fds, 8, &n), -EBADF);
    CHECK_UNTOUCHED(n);
    CHECK_EQUAL(counters_of(&gate).accepted, 0);
    CHECK_EQUAL(fdh_gate_active(&gate), 0);
    CHECK_EQUAL(fdh_gate_close(&gate, 0), 0); /* no call is thought to be accepting still */
    close(ends[1]);
    fdh_gate_deinit(&gate);
}

static void unix_listeners_are_accepted_from_as_well(void)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    socklen_t size = sizeof name;
    int client, listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    size_t n = 0;

    MUST(listener);
    MUST(bind(listener, (struct sockaddr *)&name, sizeof(sa_family_t)));
    MUST(getsockname(listener, (struct sockaddr *)&name, &size));
    MUST(listen(listener, 4));
    client = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    MUST(client);
    MUST(connect(client, (struct sockaddr *)&name, size));
    CHECK_EQUAL(fdh_accept(NULL, listener, fds, 8, &n), 0);
    CHECK_EQUAL(n, 1);
    close(fds[0]);
    close(client);
    close(listener);
}

static int shared_listener;
static atomic_bool stop;
static atomic_uint phase; /* odd from the return of close to the call of reopen */
static atomic_int late;
static atomic_ulong accepted;

static void *accept_for_ever(void *unused)
{
    int mine[8];
    size_t n = 0, i;

    (void)unused;
    while (!atomic_load(&stop)) {
        unsigned before = atomic_load(&phase);
        int rc = fdh_accept(&gate, shared_listener, mine, 8, &n);

        CHECK(rc == 0 || rc == FDH_CLOSED || rc == FDH_MORE);
        if (n && before % 2 && atomic_load(&phase) == before)
            atomic_fetch_add(&late, 1);
        atomic_fetch_add(&accepted, n);
        for (i = 0; i < n; i++) {
            close(mine[i]);
            fdh_gate_leave(&gate);
        }
        if (rc != FDH_MORE)
            sched_yield();
    }
    return NULL;
}

static void after_close_no_connection_is_accepted(void)
{
    enum { THREADS = 3, ROUNDS = 15, EACH = 20 };
    pthread_t threads[THREADS];
    unsigned long made = 0;
    int round, i;

    CHECK_EQUAL(fdh_gate_create(&gate), 0);
    shared_listener = tcp_listen(AF_INET, 100);
    for (i = 0; i < THREADS; i++)
        CHECK_EQUAL(pthread_create(&threads[i], NULL, accept_for_ever, NULL), 0);
    for (round = 0; round < ROUNDS; round++) {
        uint32_t waiting;

        connect_clients(shared_listener, EACH); /* some are accepted meanwhile, some are not */
        CHECK_EQUAL(fdh_gate_close(&gate, SECONDS(20)), 0);
        atomic_fetch_add(&phase, 1);
        waiting = waiting_at(shared_listener);
        clients[EACH] = tcp_connect(AF_INET, port_of(shared_listener), 0);
        CHECK_EQUAL(fdh_gate_wait(&gate, SECONDS(20)), 0);
        for (i = 0; i < 50; i++) {
            CHECK_EQUAL(waiting_at(shared_listener), waiting + 1);
            sched_yield();
        }
        made += EACH + 1;
        CHECK_EQUAL(atomic_load(&accepted) + waiting + 1, made);
        atomic_fetch_add(&phase, 1);
        CHECK_EQUAL(fdh_gate_reopen(&gate), 0);
        while (atomic_load(&accepted) < made)
            sched_yield();
        close_clients(EACH + 1);
    }
    atomic_store(&stop, true);
    for (i = 0; i < THREADS; i++)
        CHECK_EQUAL(pthread_join(threads[i], NULL), 0);
    CHECK_EQUAL(atomic_load(&late), 0);
    CHECK_EQUAL(counters_of(&gate).accepted, made);
    check_conserved(&gate);
    close(shared_listener);
    fdh_gate_deinit(&gate);
}

/* A child that does nothing but fdh_accept on an empty queue is stopped until it is caught between entering and
 * accepting, which close() must wait for. Returns its pid, with the gate closed and the child stopped. */
static pid_t catch_in_accept(void)
{
    atomic_ulong *calls = mmap(NULL, sizeof *calls, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t pid = fork_child();
    int status;

    MUST(pid);
    CHECK(calls != MAP_FAILED);
    if (!pid) {
        size_t n;

        CHECK_EQUAL(fdh_gate_attach(&gate), 0);
        for (;; atomic_fetch_add(calls, 1))
            fdh_accept(&gate, shared_listener, fds, 8, &n);
    }
    for (;;) {
        unsigned long before = atomic_load(calls);

        while (atomic_load(calls) == before)
            sched_yield();
        MUST(kill(pid, SIGSTOP));
        MUST(waitpid(pid, &status, WUNTRACED));
        CHECK(WIFSTOPPED(status));
        if (fdh_gate_close(&gate, 0) == FDH_AGAIN) {
            munmap(calls, sizeof *calls);
            return pid;
        }
        CHECK_EQUAL(fdh_gate_reopen(&gate), 0);
        MUST(kill(pid, SIGCONT));
    }
}

static void closing_waits_for_a_call_that_is_accepting(void)
{
    int64_t deadline;
    pid_t pid;

    CHECK_EQUAL(fdh_gate_create(&gate), 0);
    shared_listener = tcp_listen(AF_INET, 8);
    pid = catch_in_accept();
    CHECK(fdh_gate_is_closed(&gate));
    CHECK(!fdh_gate_enter(&gate));
    deadline = MILLISECONDS(20);
    CHECK_EQUAL(fdh_gate_close(&gate, deadline), FDH_AGAIN);
    CHECK(fdh_now() >= deadline);
    MUST(kill(pid, SIGCONT));
    CHECK_EQUAL(fdh_gate_close(&gate, SECONDS(20)), 0);
    reap_killed(pid);
    close(shared_listener);
    fdh_gate_deinit(&gate);
}

static void settling_one_that_died_accepting_lets_close_succeed(void)
{
    uint64_t settled;
    pid_t pid;

    CHECK_EQUAL(fdh_gate_create(&gate), 0);
    shared_listener = tcp_listen(AF_INET, 8);
    pid = catch_in_accept();
    reap_killed(pid);
    CHECK_EQUAL(fdh_gate_close(&gate, 0), FDH_AGAIN);
    CHECK_EQUAL(fdh_gate_settle(&gate, slot_index_of(&gate, pid), pid, &settled), 0);
    CHECK_EQUAL(fdh_gate_close(&gate, 0), 0);
    CHECK_EQUAL(fdh_gate_wait(&gate, 0), 0);
    check_conserved(&gate);
    close(shared_listener);
    fdh_gate_deinit(&gate);
}

int main(void)
{
    RUN(an_empty_queue_is_zero_connections_also_on_a_blocking_listener);
    RUN(connections_are_born_close_on_exec_and_non_blocking);
    RUN(each_connection_enters_the_gate);
    RUN(the_callers_capacity_ends_the_call);
    RUN(a_closed_gate_leaves_the_connections_in_the_queue);
    RUN(a_full_gate_leaves_the_rest_in_the_queue);
    RUN(without_descriptors_it_pauses_and_loses_nobody);
    RUN(connections_reset_in_the_queue_stop_nothing);
    RUN(what_is_no_listener_is_an_error_and_nobody_is_inside);
    RUN(unix_listeners_are_accepted_from_as_well);
    RUN(closing_waits_for_a_call_that_is_accepting);
    RUN(settling_one_that_died_accepting_lets_close_succeed);
    RUN(after_close_no_connection_is_accepted);
    return check_summary();
}
