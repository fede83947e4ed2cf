/* Enter and leave, in nanoseconds for one pair: a bare pair of atomics, a mutex, the gate; by one thread, and by two that
 * share the counter. The ways take turns. Arguments: turns, pairs in each. */
#include "fdhandoff.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static struct {
    _Alignas(64) _Atomic unsigned long entered;
    _Atomic unsigned long left;
    _Alignas(64) _Atomic unsigned state;
} bare;

static struct {
    _Alignas(64) pthread_mutex_t mutex;
    unsigned long inside;
    bool closed;
} locked = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static struct fdh_gate gate;
static long pairs;

static void *with_atomics(void *unused) {
    for (long i = 0; i < pairs; i++) {
        atomic_fetch_add(&bare.entered, 1);
        if (atomic_load(&bare.state) != 0)
            abort();
        atomic_fetch_add(&bare.left, 1);
        if (atomic_load(&bare.state) != 0)
            abort();
    }
    return unused;
}

static void *with_mutex(void *unused) {
    for (long i = 0; i < pairs; i++) {
        pthread_mutex_lock(&locked.mutex);
        if (locked.closed)
            abort();
        locked.inside++;
        pthread_mutex_unlock(&locked.mutex);
        pthread_mutex_lock(&locked.mutex);
        locked.inside--;
        pthread_mutex_unlock(&locked.mutex);
    }
    return unused;
}

static void *with_gate(void *unused) {
    for (long i = 0; i < pairs; i++) {
        if (!fdh_gate_enter(&gate))
            abort();
        fdh_gate_leave(&gate);
    }
    return unused;
}

static void measure(const char *name, void *(*work)(void *), int threads) {
    pthread_t others[8];
    struct timespec from, to;
    clock_gettime(CLOCK_MONOTONIC, &from);
    for (int i = 1; i < threads; i++)
        if (pthread_create(&others[i], NULL, work, NULL) != 0)
            abort();
    work(NULL);
    for (int i = 1; i < threads; i++)
        pthread_join(others[i], NULL);
    clock_gettime(CLOCK_MONOTONIC, &to);
    double ns = (double)(to.tv_sec - from.tv_sec) * 1e9 + (double)(to.tv_nsec - from.tv_nsec);
    printf("%s-%d %.3f\n", name, threads, ns / (double)pairs);
}

int main(int argc, char **argv) {
    int turns = argc > 1 ? atoi(argv[1]) : 9;
    pairs = argc > 2 ? atol(argv[2]) : 1000000;
    if (fdh_gate_create(&gate) != 0)
        return 1;
    with_atomics(NULL);
    for (int turn = 0; turn < turns; turn++)
        for (int threads = 1; threads <= 2; threads++) {
            measure("atomics", with_atomics, threads);
            measure("gate", with_gate, threads);
            measure("mutex", with_mutex, threads);
        }
    fdh_gate_deinit(&gate);
    return 0;
}
