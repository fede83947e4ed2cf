/* test_gate_stress.c - the gate under many threads and processes at once, some of which are killed.
 *
 * SPDX-License-Identifier: MIT */
#include "gates.h"

#include <sched.h>
#include <stdatomic.h>

#define THREADS 4
#define PROCESSES 4

static struct fdh_gate gate;
static atomic_bool stop;
static atomic_uint phase; /* odd from the return of close to the call of reopen */
static atomic_int inside, too_many, late, finished_threads;
static atomic_ulong entries;

static void start(pthread_t *threads, int n, void *(*body)(void *))
{
    int i;

    atomic_store(&stop, false);
    atomic_store(&phase, 0);
    atomic_store(&late, 0);
    atomic_store(&entries, 0);
    for (i = 0; i < n; i++)
        CHECK_EQUAL(pthread_create(&threads[i], NULL, body, NULL), 0);
}

static void join(pthread_t *threads, int n)
{
    int i;

    for (i = 0; i < n; i++)
        CHECK_EQUAL(pthread_join(threads[i], NULL), 0);
}

/* Waits until something was counted; the test's own deadline is the runner's. */
static void await(atomic_ulong *counter, unsigned long n)
{
    while (atomic_load(counter) < n)
        sched_yield();
}

static void *enter_and_leave(void *unused)
{
    unsigned turn = 0;

    (void)unused;
    while (!atomic_load(&stop)) {
        unsigned before = atomic_load(&phase);

        if (fdh_gate_enter(&gate)) {
            if (before % 2 && atomic_load(&phase) == before)
                atomic_fetch_add(&late, 1);
            atomic_fetch_add(&entries, 1);
            if (turn++ % 16)
                fdh_gate_leave(&gate);
            else
                fdh_gate_leave_forced(&gate);
        }
    }
    return NULL;
}

static void nobody_enters_after_close_returned(void)
{
    pthread_t threads[THREADS];
    int round;

    CHECK_EQUAL(fdh_gate_create(&gate), 0);
    start(threads, THREADS, enter_and_leave);
    for (round = 0; round < 60; round++) {
        unsigned long seen = atomic_load(&entries);

        await(&entries, seen + 20);
        CHECK_EQUAL(fdh_gate_close(&gate, SECONDS(20)), 0);
        atomic_fetch_add(&phase, 1);
        CHECK(is_readable(gate.closed_fd));
        CHECK_EQUAL(fdh_gate_wait(&gate, SECONDS(20)), 0);
        CHECK(fdh_gate_active(&gate) <= THREADS); /* refusals in flight; nobody who stays */
        CHECK_EQUAL(atomic_load(&late), 0);
        atomic_fetch_add(&phase, 1);
        CHECK_EQUAL(fdh_gate_reopen(&gate), 0);
    }
    atomic_store(&stop, true);
    join(threads, THREADS);
    CHECK_EQUAL(counters_of(&gate).accepted, atomic_load(&entries));
    CHECK_EQUAL(fdh_gate_active(&gate), 0);
    check_conserved(&gate);
    CHECK(!is_readable(gate.closed_fd));
    CHECK(!is_readable(gate.drained_fd));
    fdh_gate_deinit(&gate);
}

static void *leave_one(void *unused)
{
    (void)unused;
    fdh_gate_leave(&gate);
    return NULL;
}

static void *try_to_enter(void *unused)
{
    (void)unused;
    while (!atomic_load(&stop))
        if (fdh_gate_enter(&gate))
            atomic_fetch_add(&late, 1);
    return NULL;
}

static void refusals_never_hide_the_last_one_who_leaves(void)
{
    pthread_t threads[THREADS], leaver;
    int round;

    CHECK_EQUAL(fdh_gate_create(&gate), 0);
    for (round = 0; round < 40; round++) {
        CHECK(fdh_gate_enter(&gate));
        CHECK_EQUAL(fdh_gate_close(&gate, 0), 0);
        start(threads, 2, try_to_enter);
        CHECK_EQUAL(fdh_gate_wait(&gate, 0), FDH_AGAIN);
        CHECK_EQUAL(pthread_create(&leaver, NULL, leave_one, NULL), 0);
        CHECK_EQUAL(poll(&(struct pollfd){gate.drained_fd, POLLIN, 0}, 1, 20000), 1);
        CHECK_EQUAL(fdh_gate_wait(&gate, SECONDS(20)), 0);
        pthread_join(leaver, NULL);
        atomic_store(&stop, true);
        join(threads, 2);
        CHECK_EQUAL(atomic_load(&late), 0);
        CHECK_EQUAL(fdh_gate_reopen(&gate), 0);
        CHECK(!is_readable(gate.drained_fd));
    }
    fdh_gate_deinit(&gate);
}

static void *wait_for_drain(void *unused)
{
    (void)unused;
    CHECK_EQUAL(fdh_gate_wait(&gate, SECONDS(30)), 0);
    return NULL;
}

static void the_last_one_wakes_threads_processes_and_pollers(void)
{
    pthread_t threads[THREADS];
    pid_t pids[PROCESSES];
    int i;

    CHECK_EQUAL(fdh_gate_create(&gate), 0);
    CHECK(fdh_gate_enter(&gate));
    CHECK(fdh_gate_enter(&gate));
    CHECK_EQUAL(fdh_gate_close(&gate, 0), 0);
    for (i = 0; i < PROCESSES; i++) {
        pids[i] = fork_child();
        MUST(pids[i]);
        if (!pids[i]) {
            if (i % 2)
                CHECK_EQUAL(fdh_gate_wait(&gate, SECONDS(30)), 0);
            else
                CHECK_EQUAL(poll(&(struct pollfd){gate.drained_fd, POLLIN, 0}, 1, 30000), 1);
            CHECK_EQUAL(fdh_gate_active(&gate), 0);
            _exit(0);
        }
    }
    start(threads, THREADS, wait_for_drain);
    fdh_gate_leave(&gate);
    CHECK_EQUAL(waitpid(-1, NULL, WNOHANG), 0);
    fdh_gate_leave(&gate);
    for (i = 0; i < PROCESSES; i++)
        reap_ok(pids[i]);
    join(threads, THREADS);
    fdh_gate_deinit(&gate);
}

/* Enters 300 times below a limit of 2, waiting for room each time that it is refused. */
static void *squeeze_through(void *unused)
{
    int left = 300;

    (void)unused;
    while (left) {
        if (fdh_gate_enter(&gate)) {
            if (atomic_fetch_add(&inside, 1) >= 2)
                atomic_fetch_add(&too_many, 1);
            sched_yield();
            atomic_fetch_sub(&inside, 1);
            fdh_gate_leave(&gate);
            left--;
        } else {
            CHECK_EQUAL(fdh_gate_wait_room(&gate, SECONDS(60)), 0);
        }
    }
    atomic_fetch_add(&finished_threads, 1);
    return NULL;
}

static void a_limit_is_never_exceeded_and_no_wakening_is_lost(void)
{
    pthread_t threads[THREADS];

    CHECK_EQUAL(fdh_gate_create(&gate), 0);
    CHECK_EQUAL(fdh_gate_set_limit(&gate, 2), 0);
    atomic_store(&inside, 0);
    atomic_store(&finished_threads, 0);
    start(threads, THREADS, squeeze_through);
    join(threads, THREADS);
    CHECK_EQUAL(atomic_load(&finished_threads), THREADS);
    CHECK_EQUAL(atomic_load(&too_many), 0);
    CHECK_EQUAL(counters_of(&gate).accepted, 300 * THREADS);
    check_conserved(&gate);
    fdh_gate_deinit(&gate);
}

/* The event loop's way: poll room_fd, clear it, try again. */
static void *squeeze_through_by_polling(void *unused)
{
    int left = 300;

    (void)unused;
    while (left) {
        fdh_gate_room_clear(&gate);
        if (fdh_gate_enter(&gate)) {
            sched_yield();
            fdh_gate_leave(&gate);
            left--;
        } else {
            CHECK_EQUAL(poll(&(struct pollfd){gate.room_fd, POLLIN, 0}, 1, 60000), 1);
        }
    }
    return NULL;
}

static void *come_and_go(void *unused)
{
    int left = 300;

    (void)unused;
    while (left)
        if (fdh_gate_enter(&gate)) {
            sched_yield();
            fdh_gate_leave(&gate);
            left--;
        }
    return NULL;
}

static void an_event_loop_misses_no_room(void)
{
    pthread_t threads[2];

    CHECK_EQUAL(fdh_gate_create(&gate), 0);
    CHECK_EQUAL(fdh_gate_set_limit(&gate, 1), 0);
    start(threads, 1, squeeze_through_by_polling);
    CHECK_EQUAL(pthread_create(&threads[1], NULL, come_and_go, NULL), 0);
    join(threads, 2);
    CHECK_EQUAL(counters_of(&gate).accepted, 600);
    fdh_gate_deinit(&gate);
}

static void *expect_room_or_closed(void *unused)
{
    (void)unused;
    CHECK_EQUAL(fdh_gate_wait_room(&gate, SECONDS(30)), 0);
    return NULL;
}

static void closing_wakes_who_waits_for_room(void)
{
    pthread_t threads[THREADS];

    CHECK_EQUAL(fdh_gate_create(&gate), 0);
    CHECK_EQUAL(fdh_gate_set_limit(&gate, 1), 0);
    CHECK(fdh_gate_enter(&gate));
    start(threads, THREADS, expect_room_or_closed);
    CHECK_EQUAL(fdh_gate_close(&gate, 0), 0);
    join(threads, THREADS);
    fdh_gate_leave(&gate);
    fdh_gate_deinit(&gate);
}

static void a_limit_holds_across_processes(void)
{
    struct shared {
        atomic_int inside, too_many;
    } *shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t pids[PROCESSES];
    int i;

    CHECK(shared != MAP_FAILED);
    CHECK_EQUAL(fdh_gate_create(&gate), 0);
    CHECK_EQUAL(fdh_gate_set_limit(&gate, 3), 0);
    for (i = 0; i < PROCESSES; i++) {
        pids[i] = fork_child();
        MUST(pids[i]);
        if (!pids[i]) {
            int left = 300;

            CHECK_EQUAL(fdh_gate_attach(&gate), 0);
            while (left) {
                if (!fdh_gate_enter(&gate)) {
                    CHECK_EQUAL(fdh_gate_wait_room(&gate, SECONDS(60)), 0);
                    continue;
                }
                if (atomic_fetch_add(&shared->inside, 1) >= 3)
                    atomic_fetch_add(&shared->too_many, 1);
                sched_yield();
                atomic_fetch_sub(&shared->inside, 1);
                fdh_gate_leave(&gate);
                left--;
            }
            _exit(0);
        }
    }
    for (i = 0; i < PROCESSES; i++)
        reap_ok(pids[i]);
    CHECK_EQUAL(atomic_load(&shared->too_many), 0);
    CHECK_EQUAL(counters_of(&gate).accepted, 300 * PROCESSES);
    check_conserved(&gate);
    munmap(shared, sizeof *shared);
    fdh_gate_deinit(&gate);
}

struct settling {
    uint32_t index;
    pid_t pid;
    uint64_t settled;
    int rc;
};

static void *settle_one(void *argument)
{
    struct settling *settling = argument;

    settling->rc = fdh_gate_settle(&gate, settling->index, settling->pid, &settling->settled);
    return NULL;
}

static void whoever_is_killed_anywhere_is_settled_exactly_once(void)
{
    int round, i;

    CHECK_EQUAL(fdh_gate_create(&gate), 0);
    for (round = 0; round < 8; round++) {
        pid_t pids[PROCESSES];

        for (i = 0; i < PROCESSES; i++) {
            pids[i] = fork_child();
            MUST(pids[i]);
            if (!pids[i]) {
                unsigned held = 0;

                CHECK_EQUAL(fdh_gate_attach(&gate), 0);
                for (;;) { /* up to ten inside */
                    if (held < 10 && fdh_gate_enter(&gate))
                        held++;
                    else if (held)
                        fdh_gate_leave(&gate), held -= 1;
                    if (held == 10)
                        while (held > (unsigned)i)
                            fdh_gate_leave_forced(&gate), held--;
                }
            }
        }
        for (i = 0; i < PROCESSES; i++) {
            struct settling twice[2];
            pthread_t threads[2];
            uint64_t before;
            int64_t expected;
            int k;

            while ((twice[0].index = slot_index_of(&gate, pids[i])) == FDH_GATE_SLOTS)
                sched_yield();
            before = slot_of(&gate, twice[0].index).counters.accepted; /* the slot's earlier owners' too */
            while (slot_of(&gate, twice[0].index).counters.accepted < before + (uint64_t)(97 * i + round * 13))
                sched_yield();
            reap_killed(pids[i]);
            expected = slot_of(&gate, twice[0].index).counters.active;
            CHECK(expected >= 0 && expected <= 10);
            for (k = 0; k < 2; k++) {
                twice[k].index = twice[0].index;
                twice[k].pid = pids[i];
                twice[k].settled = 0;
                CHECK_EQUAL(pthread_create(&threads[k], NULL, settle_one, &twice[k]), 0);
            }
            join(threads, 2);
            CHECK(twice[0].rc == 0 || twice[0].rc == -ESRCH);
            CHECK(twice[1].rc == 0 || twice[1].rc == -ESRCH);
            CHECK((twice[0].rc == 0) + (twice[1].rc == 0) >= 1);
            CHECK_EQUAL(twice[0].settled + twice[1].settled, (uint64_t)expected);
        }
        CHECK_EQUAL(fdh_gate_active(&gate), 0);
        check_conserved(&gate);
    }
    CHECK_EQUAL(fdh_gate_close(&gate, 0), 0);
    CHECK(is_readable(gate.drained_fd));
    fdh_gate_deinit(&gate);
}

static void *close_and_reopen(void *unused)
{
    int i;

    (void)unused;
    for (i = 0; i < 500; i++) {
        CHECK_EQUAL(fdh_gate_close(&gate, SECONDS(20)), 0);
        CHECK_EQUAL(fdh_gate_reopen(&gate), 0);
    }
    return NULL;
}

static void levels_are_right_after_any_race_of_close_and_reopen(void)
{
    pthread_t threads[THREADS], guests[2];
    int round;

    CHECK_EQUAL(fdh_gate_create(&gate), 0);
    for (round = 0; round < 4; round++) {
        start(guests, 2, enter_and_leave);
        start(threads, THREADS, close_and_reopen);
        join(threads, THREADS);
        CHECK(!is_readable(gate.closed_fd));
        atomic_store(&stop, true);
        join(guests, 2);
        CHECK(!is_readable(gate.drained_fd));
        CHECK_EQUAL(fdh_gate_close(&gate, 0), 0);
        CHECK(is_readable(gate.closed_fd));
        CHECK(is_readable(gate.drained_fd));
        CHECK_EQUAL(fdh_gate_reopen(&gate), 0);
    }
    check_conserved(&gate);
    fdh_gate_deinit(&gate);
}

int main(void)
{
    RUN(whoever_is_killed_anywhere_is_settled_exactly_once);
    RUN(a_limit_holds_across_processes);
    RUN(the_last_one_wakes_threads_processes_and_pollers);
    RUN(nobody_enters_after_close_returned);
    RUN(refusals_never_hide_the_last_one_who_leaves);
    RUN(a_limit_is_never_exceeded_and_no_wakening_is_lost);
    RUN(an_event_loop_misses_no_room);
    RUN(closing_wakes_who_waits_for_room);
    RUN(levels_are_right_after_any_race_of_close_and_reopen);
    return check_summary();
}
