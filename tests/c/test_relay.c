/* test_relay.c - a relay passes on what it is given, and keeps the end of it, whatever becomes of its target, its parent and
 * itself.
 *
 * SPDX-License-Identifier: MIT */
#include "check.h"

#include <limits.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#if !defined(__linux__) || defined(FDH_PORTABLE)

static void elsewhere_there_is_no_relay(void)
{
    struct fdh_relay relay;
    int64_t pid;
    int fd;
    uint64_t seen, dropped;
    size_t n;

    memset(&relay, 0, sizeof relay);
    CHECK_EQUAL(fdh_relay_create(&fd), -ENOSYS);
    CHECK_EQUAL(fdh_relay_start(&relay, &pid, &fd), -ENOSYS);
    CHECK_EQUAL(fdh_relay_read(0, 0, -1, &relay, sizeof relay, &n, &seen, &dropped), -ENOSYS);
}

int main(void)
{
    RUN(elsewhere_there_is_no_relay);
    return check_summary();
}

#else

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

/* One stream through a relay: write into in[1], read from out[0]. */
struct course {
    int memory;
    int in[2], out[2];
    struct fdh_relay relay;
    int64_t pid;
    int pidfd;
};

static void start(struct course *course)
{
    CHECK_EQUAL(fdh_relay_start(&course->relay, &course->pid, &course->pidfd), 0);
    CHECK(is_cloexec(course->pidfd));
}

static void lay(struct course *course, const char *prefix)
{
    memset(course, 0, sizeof *course);
    CHECK_EQUAL(fdh_relay_create(&course->memory), 0);
    CHECK(is_cloexec(course->memory));
    MUST(pipe2(course->in, O_CLOEXEC));
    MUST(pipe2(course->out, O_CLOEXEC));
    course->relay.memory_fd = course->memory;
    course->relay.n_streams = 1;
    course->relay.from[0] = course->in[0];
    course->relay.to[0] = course->out[1];
    course->relay.prefix = prefix;
}

static void kill_relay(struct course *course)
{
    MUST((int)syscall(SYS_pidfd_send_signal, course->pidfd, SIGKILL, NULL, 0));
    MUST(waitpid((pid_t)course->pid, NULL, 0));
    course->pidfd = fdh_close(course->pidfd);
}

/* It ends by itself, well, once nobody can write any more. */
static void await_end(struct course *course)
{
    struct fdh_exit how;

    CHECK_EQUAL(fdh_pidfd_wait(course->pidfd, SECONDS(30), &how), 0);
    CHECK_EQUAL(how.signal, 0);
    CHECK_EQUAL(how.status, 0);
    course->pidfd = fdh_close(course->pidfd);
}

static void take_up(struct course *course)
{
    course->memory = fdh_close(course->memory);
    course->in[0] = fdh_close(course->in[0]);
    course->in[1] = fdh_close(course->in[1]);
    course->out[0] = fdh_close(course->out[0]);
    course->out[1] = fdh_close(course->out[1]);
}

static void put(int fd, const char *text)
{
    CHECK_EQUAL(write(fd, text, strlen(text)), strlen(text));
}

/* Reads exactly this. */
static void expect(int fd, const char *text)
{
    char got[4096];
    size_t n = 0, size = strlen(text);

    CHECK(size < sizeof got);
    while (n < size) {
        struct pollfd entry = {.fd = fd, .events = POLLIN, .revents = 0};

        CHECK_EQUAL(poll(&entry, 1, 30000), 1);
        ssize_t part = read(fd, got + n, size - n);

        CHECK(part > 0);
        n += (size_t)part;
        if (memcmp(got, text, n)) {
            printf("    got \"%.*s\", not \"%s\"\n", (int)n, got, text);
            CHECK(!memcmp(got, text, n));
        }
    }
}

static size_t kept(struct course *course, char *buffer, size_t capacity, uint64_t *droppedp)
{
    int64_t deadline = SECONDS(30);
    uint64_t seen;
    size_t n = 0;
    int result;

    do {
        result = fdh_relay_read(course->memory, 0, course->in[0], buffer, capacity, &n, &seen, droppedp);
        CHECK(result >= 0);
        CHECK(fdh_now() < deadline);
    } while (result == FDH_MORE);
    return n;
}

/* --- what passes ------------------------------------------------------------------------------------------- */

static unsigned char byte_of(uint64_t position)
{
    return (unsigned char)(position * 2654435761u >> 13);
}

/* A child that writes `size` bytes, in pieces of odd sizes. */
static pid_t writer(int fd, int other, size_t size)
{
    pid_t pid = fork_child();
    unsigned char piece[9973];
    size_t done = 0;

    MUST(pid);
    if (pid)
        return pid;
    close(other);
    while (done < size) {
        size_t n = 1 + (done * 7 + 13) % sizeof piece, i;
        ssize_t put_;

        if (n > size - done)
            n = size - done;
        for (i = 0; i < n; i++)
            piece[i] = byte_of(done + i);
        put_ = write(fd, piece, n);
        if (put_ < 0)
            _exit(1);
        done += (size_t)put_;
    }
    _exit(0);
}

#define MUCH ((size_t)3000000)

static void all_bytes_pass_untouched_and_the_end_of_them_is_kept(void)
{
    struct course course;
    static unsigned char got[65536];
    char end[FDH_RELAY_KEPT];
    size_t total = 0, n, i;
    uint64_t dropped;
    pid_t pid;

    lay(&course, NULL);
    start(&course);
    pid = writer(course.in[1], course.out[0], MUCH);
    while (total < MUCH) {
        ssize_t part = read(course.out[0], got, sizeof got);

        CHECK(part > 0);
        for (i = 0; i < (size_t)part; i++)
            if (got[i] != byte_of(total + i))
                CHECK_EQUAL(got[i], byte_of(total + i));
        total += (size_t)part;
    }
    reap_ok(pid);
    n = kept(&course, end, sizeof end, &dropped);
    CHECK_EQUAL(n, FDH_RELAY_KEPT);
    CHECK_EQUAL(dropped, 0);
    for (i = 0; i < n; i++)
        CHECK_EQUAL((unsigned char)end[i], byte_of(MUCH - n + i));
    n = kept(&course, end, 100, &dropped);
    CHECK_EQUAL(n, 100);
    CHECK_EQUAL((unsigned char)end[99], byte_of(MUCH - 1));
    course.in[1] = fdh_close(course.in[1]);
    await_end(&course);
    take_up(&course);
}

static void half_a_line_passes_at_once(void)
{
    struct course course;

    lay(&course, NULL);
    start(&course);
    put(course.in[1], "password: ");
    expect(course.out[0], "password: ");
    put(course.in[1], "wrong\npass");
    expect(course.out[0], "wrong\npass");
    course.in[1] = fdh_close(course.in[1]);
    await_end(&course);
    take_up(&course);
}

/* What arrives faster than it is written is cut at the ends of lines, so that others' lines may come in between. */
static void pieces_end_where_lines_end(void)
{
    struct course course;
    char line[101], got[PIPE_BUF];
    int i, n = 600, lines = 0;

    memset(line, 'x', sizeof line);
    line[sizeof line - 1] = '\n';
    lay(&course, NULL);
    MUST(fcntl(course.out[1], F_SETPIPE_SZ, 4096));
    for (i = 0; i < n; i++)
        CHECK_EQUAL(write(course.in[1], line, sizeof line), sizeof line);
    start(&course);
    course.in[1] = fdh_close(course.in[1]);
    while (lines < n) {
        ssize_t part = read(course.out[0], got, sizeof got);

        CHECK(part > 0);
        CHECK_EQUAL(part % (ssize_t)sizeof line, 0);
        lines += (int)(part / (ssize_t)sizeof line);
    }
    await_end(&course);
    take_up(&course);
}

static void each_line_gets_the_prefix(void)
{
    struct course course;

    lay(&course, "[gen 3] ");
    start(&course);
    put(course.in[1], "one\n\ntwo\nthr");
    expect(course.out[0], "[gen 3] one\n[gen 3] \n[gen 3] two\n");
    put(course.in[1], "ee\nfour");
    expect(course.out[0], "[gen 3] three\n");
    CHECK(!is_readable(course.out[0]));
    course.in[1] = fdh_close(course.in[1]);
    expect(course.out[0], "[gen 3] four");
    await_end(&course);
    take_up(&course);
}

/* Lines of every length from 0 on, longer than a pipe's buffer at last; the ring is gone round many times. */
static void long_lines_get_it_once(void)
{
    enum { LONGEST = 9001, STEP = 613 };
    struct course course;
    static char line[LONGEST + 1], want[LONGEST + 32], got[LONGEST + 32];
    size_t length, i;
    pid_t pid;

    memset(line, 'y', sizeof line);
    lay(&course, "> ");
    start(&course);
    pid = fork_child();
    MUST(pid);
    if (!pid) {
        for (length = 0; length <= LONGEST; length += STEP) {
            line[length] = '\n';
            for (i = 0; i < length + 1;) {
                ssize_t part = write(course.in[1], line + i, length + 1 - i);

                if (part < 0)
                    _exit(1);
                i += (size_t)part;
            }
            line[length] = 'y';
        }
        _exit(0);
    }
    for (length = 0; length <= LONGEST; length += STEP) {
        size_t size = length + 3, n = 0;

        want[0] = '>';
        want[1] = ' ';
        memset(want + 2, 'y', length);
        want[length + 2] = '\n';
        while (n < size) {
            ssize_t part = read(course.out[0], got + n, size - n);

            CHECK(part > 0);
            n += (size_t)part;
        }
        CHECK(!memcmp(got, want, size));
    }
    reap_ok(pid);
    course.in[1] = fdh_close(course.in[1]);
    await_end(&course);
    take_up(&course);
}

static void two_streams_do_not_wait_for_each_other(void)
{
    struct course course;
    int in[2], out[2], i;
    char page[4096];

    memset(page, 'z', sizeof page);
    lay(&course, NULL);
    MUST(pipe2(in, O_CLOEXEC));
    MUST(pipe2(out, O_CLOEXEC));
    course.relay.n_streams = 2;
    course.relay.from[1] = in[0];
    course.relay.to[1] = out[1];
    MUST(fcntl(course.out[1], F_SETPIPE_SZ, 4096));
    start(&course);
    for (i = 0; i < 3; i++) /* one fills the pipe behind, the others wait in the relay */
        CHECK_EQUAL(write(course.in[1], page, sizeof page), sizeof page);
    for (i = 0; i < 5; i++) {
        put(in[1], "other\n");
        expect(out[0], "other\n");
    }
    close(in[1]);
    course.in[1] = fdh_close(course.in[1]);
    for (i = 0; i < 3; i++)
        CHECK_EQUAL(read(course.out[0], page, sizeof page), sizeof page);
    await_end(&course);
    take_up(&course);
    close(in[0]);
    close(out[0]);
    close(out[1]);
}

/* --- what becomes of the target ------------------------------------------------------------------------------ */

static void a_target_that_is_full_holds_up_the_writer(void)
{
    struct course course;
    char page[4096];
    int i, full = 0;
    int64_t deadline = SECONDS(30);
    uint64_t seen = 0, dropped;
    size_t n;

    memset(page, 'f', sizeof page);
    lay(&course, NULL);
    MUST(fcntl(course.in[1], F_SETPIPE_SZ, 4096));
    MUST(fcntl(course.out[1], F_SETPIPE_SZ, 4096));
    MUST(fcntl(course.in[1], F_SETFL, O_NONBLOCK));
    start(&course);
    /* A page is in the pipe behind it, one in the relay, one in the pipe before it; then nothing goes in any more. */
    while (full < 3 || seen < 2 * sizeof page) {
        full += full < 3 && write(course.in[1], page, sizeof page) == (ssize_t)sizeof page;
        CHECK(fdh_relay_read(course.memory, 0, -1, page, 1, &n, &seen, &dropped) >= 0);
        CHECK(fdh_now() < deadline);
    }
    CHECK_EQUAL(write(course.in[1], page, sizeof page), -1);
    CHECK_EQUAL(errno, EAGAIN);
    course.in[1] = fdh_close(course.in[1]);
    for (i = 0; i < full; i++)
        CHECK_EQUAL(read(course.out[0], page, sizeof page), sizeof page);
    course.out[1] = fdh_close(course.out[1]);
    CHECK_EQUAL(read(course.out[0], page, sizeof page), 0);
    await_end(&course);
    take_up(&course);
}

static void a_full_target_that_is_non_blocking_loses_pieces_that_are_counted(void)
{
    struct course course;
    char page[4096];
    int i;
    uint64_t dropped;
    char end[16];

    memset(page, 'n', sizeof page);
    lay(&course, NULL);
    MUST(fcntl(course.out[1], F_SETPIPE_SZ, 4096));
    MUST(fcntl(course.out[1], F_SETFL, O_NONBLOCK));
    start(&course);
    for (i = 0; i < 3; i++)
        CHECK_EQUAL(write(course.in[1], page, sizeof page), sizeof page);
    course.in[1] = fdh_close(course.in[1]);
    await_end(&course);
    CHECK_EQUAL(read(course.out[0], page, sizeof page), sizeof page);
    CHECK(!is_readable(course.out[0]));
    CHECK_EQUAL(kept(&course, end, sizeof end, &dropped), sizeof end);
    CHECK_EQUAL(dropped, 2 * sizeof page);
    take_up(&course);
}

static void it_reads_on_when_nobody_reads_from_it(void)
{
    struct course course;
    char end[64];
    uint64_t dropped;
    int i;

    lay(&course, NULL);
    start(&course);
    put(course.in[1], "seen\n");
    expect(course.out[0], "seen\n");
    course.out[0] = fdh_close(course.out[0]);
    for (i = 0; i < 20000; i++)
        put(course.in[1], "nobody reads this\n");
    course.in[1] = fdh_close(course.in[1]);
    await_end(&course);
    CHECK_EQUAL(kept(&course, end, 18, &dropped), 18);
    CHECK(!memcmp(end, "nobody reads this\n", 18));
    CHECK_EQUAL(dropped, 20000 * 18);
    take_up(&course);
}

static void a_full_disk_loses_what_does_not_fit(void)
{
    struct course course;
    char end[64];
    uint64_t dropped;
    int full = open("/dev/full", O_WRONLY | O_CLOEXEC);

    if (full < 0)
        SKIP("no /dev/full here");
    lay(&course, NULL);
    course.relay.to[0] = full;
    start(&course);
    put(course.in[1], "does not fit\n");
    CHECK_EQUAL(kept(&course, end, sizeof end, &dropped), 13);
    course.in[1] = fdh_close(course.in[1]);
    await_end(&course);
    CHECK_EQUAL(kept(&course, end, sizeof end, &dropped), 13);
    CHECK_EQUAL(dropped, 13);
    close(full);
    take_up(&course);
}

static void without_a_target_only_the_end_is_kept(void)
{
    struct course course;
    char end[64];
    uint64_t dropped;

    lay(&course, NULL);
    course.relay.to[0] = -1;
    start(&course);
    put(course.in[1], "into the void\n");
    CHECK_EQUAL(kept(&course, end, sizeof end, &dropped), 14);
    CHECK(!memcmp(end, "into the void\n", 14));
    course.in[1] = fdh_close(course.in[1]);
    await_end(&course);
    take_up(&course);
}

/* --- what becomes of the relay -------------------------------------------------------------------------------- */

/* Until it has written what goes into the pipe behind it, has noted that, and waits for room. */
static void await_rest(struct course *course)
{
    int64_t deadline = SECONDS(30);
    char path[64], text[256];
    const char *state;

    snprintf(path, sizeof path, "/proc/%lld/stat", (long long)course->pid);
    do {
        struct pollfd entry = {.fd = course->out[1], .events = POLLOUT, .revents = 0};
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        ssize_t n;

        CHECK(fdh_now() < deadline);
        MUST(fd);
        n = read(fd, text, sizeof text - 1);
        close(fd);
        CHECK(n > 0);
        text[n] = '\0';
        state = poll(&entry, 1, 0) == 0 ? strrchr(text, ')') : NULL;
    } while (!state || state[2] != 'S');
}

static void the_next_relay_goes_on_where_one_was_killed(void)
{
    struct course course;
    char want[100], *prefix[] = {NULL, (char *)(uintptr_t)"# "};
    int i, written, which;

    for (which = 0; which < 2; which++) {
        int read_ = 0; /* lines */

        lay(&course, prefix[which]);
        MUST(fcntl(course.out[1], F_SETPIPE_SZ, 4096));
        written = 0;
        for (i = 0; i < 8; i++) {
            start(&course);
            while (written < (i + 1) * 700) { /* more than the pipe behind holds: it waits, and is killed while it does */
                dprintf(course.in[1], "line %08d\n", written);
                written++;
            }
            await_rest(&course);
            kill_relay(&course);
            while (is_readable(course.out[0])) {
                snprintf(want, sizeof want, "%sline %08d\n", which ? "# " : "", read_++);
                expect(course.out[0], want);
            }
        }
        start(&course);
        while (read_ < written) {
            snprintf(want, sizeof want, "%sline %08d\n", which ? "# " : "", read_++);
            expect(course.out[0], want);
        }
        course.in[1] = fdh_close(course.in[1]);
        await_end(&course);
        take_up(&course);
    }
}

/* Killed at any moment: what that costs is at most one piece each time, lost or doubled. */
static void a_relay_that_is_killed_costs_one_piece_at_most(void)
{
    enum { KILLS = 60 };
    struct course course;
    static char got[1 << 16];
    size_t have = 0;
    long next = 0, lost = 0, doubled = 0;
    int kills = 0;
    pid_t pid;
    int64_t deadline = SECONDS(60);

    lay(&course, NULL);
    pid = fork_child();
    MUST(pid);
    if (!pid) {
        long i;
        char line[64];

        close(course.out[0]);
        for (i = 0; i < 400000; i++) {
            int size = snprintf(line, sizeof line, "%010ld\n", i);

            if (write(course.in[1], line, (size_t)size) != size)
                _exit(1);
        }
        _exit(0);
    }
    course.in[1] = fdh_close(course.in[1]);
    start(&course);
    course.out[1] = fdh_close(course.out[1]);
    for (;;) {
        size_t at = 0;
        ssize_t part;
        struct pollfd entry = {.fd = course.out[0], .events = POLLIN, .revents = 0};
        bool last = kills >= KILLS;

        CHECK(fdh_now() < deadline);
        CHECK_EQUAL(poll(&entry, 1, 30000), 1);
        part = read(course.out[0], got + have, 4096 + (size_t)(kills * 37 % 200));
        if (part == 0)
            break;
        CHECK(part > 0);
        have += (size_t)part;
        while (have - at >= 11) {
            long number = 0;
            int i;

            if (got[at + 10] != '\n' || memchr(got + at, '\n', 10)) { /* a piece that is missing began or ended in a line */
                char *end = memchr(got + at, '\n', have - at);

                CHECK(kills > 0 && end && end - (got + at) < 22);
                at = (size_t)(end - got) + 1;
                continue;
            }
            for (i = 0; i < 10; i++)
                number = number * 10 + (got[at + (size_t)i] - '0');
            if (number > next)
                lost += number - next;
            else
                doubled += next - number;
            next = number + 1;
            at += 11;
        }
        memmove(got, got + at, have - at);
        have -= at;
        if (!last && next > (long)(kills + 1) * 5000) {
            int out[2];

            kills++;
            /* The target is opened anew for the next one; the pipe is the same. */
            snprintf(got + 32768, 64, "/proc/self/fd/%d", course.out[0]);
            out[1] = open(got + 32768, O_WRONLY | O_CLOEXEC);
            MUST(out[1]);
            kill_relay(&course);
            course.relay.to[0] = out[1];
            start(&course);
            close(out[1]);
        }
    }
    CHECK_EQUAL(kills, KILLS);
    reap_ok(pid);
    await_end(&course);
    printf("    %d kills: %ld lines lost, %ld doubled, of 400000\n", kills, lost, doubled);
    CHECK(next + 4096 / 11 + 2 >= 400000);
    CHECK((lost + doubled) <= (long)kills * (4096 / 11 + 2));
    take_up(&course);
}

static void what_is_read_while_it_is_written_makes_sense(void)
{
    struct course course;
    static char end[FDH_RELAY_KEPT];
    pid_t pid;
    int rounds = 0, status;

    lay(&course, NULL);
    course.relay.to[0] = -1;
    start(&course);
    pid = fork_child();
    MUST(pid);
    if (!pid) {
        long i;
        char line[64];

        for (i = 0; i < 300000; i++) {
            int size = snprintf(line, sizeof line, "%010ld\n", i);

            if (write(course.in[1], line, (size_t)size) != size)
                _exit(1);
        }
        _exit(0);
    }
    while (waitpid(pid, &status, WNOHANG) == 0) {
        size_t n, at;
        uint64_t seen, dropped;
        long before = -1;

        CHECK(fdh_relay_read(course.memory, 0, course.in[0], end, sizeof end, &n, &seen, &dropped) >= 0);
        for (at = 0; at < n && end[at] != '\n'; at++)
            ;
        for (at++; at + 11 <= n; at += 11) {
            long number = strtol(end + at, NULL, 10);

            CHECK_EQUAL(end[at + 10], '\n');
            CHECK(before < 0 || number == before + 1);
            before = number;
        }
        rounds++;
    }
    CHECK_EQUAL(status, 0);
    CHECK(rounds > 0);
    course.in[1] = fdh_close(course.in[1]);
    await_end(&course);
    take_up(&course);
}

/* --- what it is ------------------------------------------------------------------------------------------------- */

static size_t slurp(const char *format, int64_t pid, char *text, size_t capacity)
{
    char path[64];
    int fd;
    ssize_t n;
    size_t total = 0;

    snprintf(path, sizeof path, format, (long long)pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    MUST(fd);
    while ((n = read(fd, text + total, capacity - 1 - total)) > 0)
        total += (size_t)n;
    text[total] = '\0';
    close(fd);
    return total;
}

static void it_holds_nothing_but_its_pipes_in_a_session_of_its_own(void)
{
    struct course course;
    static char text[16384];
    char path[64];
    DIR *directory;
    struct dirent *entry;
    int n = 0, stray;

    stray = open("/dev/zero", O_RDONLY); /* not close-on-exec: what it must not keep */
    MUST(stray);
    lay(&course, NULL);
    course.relay.title = "fdhandoff-relay of a test";
    start(&course);
    put(course.in[1], "up\n");
    expect(course.out[0], "up\n");
    snprintf(path, sizeof path, "/proc/%lld/fd", (long long)course.pid);
    directory = opendir(path);
    CHECK(directory);
    while ((entry = readdir(directory))) {
        struct stat file, in, out;
        char name[512];

        if (entry->d_name[0] == '.')
            continue;
        snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        MUST(stat(name, &file));
        MUST(fstat(course.in[0], &in));
        MUST(fstat(course.out[1], &out));
        CHECK(file.st_ino == in.st_ino || file.st_ino == out.st_ino);
        n++;
    }
    closedir(directory);
    CHECK_EQUAL(n, 2);
    CHECK_EQUAL(getsid((pid_t)course.pid), course.pid);
    slurp("/proc/%lld/status", course.pid, text, sizeof text);
    CHECK(strstr(text, "Name:\tfdh-relay\n"));
    /* All but KILL (9), STOP (19) and the two that the C library keeps for itself. */
    CHECK_EQUAL(strtoull(strstr(text, "SigBlk:\t") + 8, NULL, 16) | 0x180040100ull, 0xffffffffffffffffull);
    CHECK_EQUAL(strtoull(strstr(text, "SigCgt:\t") + 8, NULL, 16), 0);
    slurp("/proc/%lld/cmdline", course.pid, text, sizeof text);
    CHECK(!strncmp(text, course.relay.title, strlen(text)) && strlen(text) > 4);
    MUST(kill((pid_t)course.pid, SIGTERM));
    put(course.in[1], "still\n");
    expect(course.out[0], "still\n");
    course.in[1] = fdh_close(course.in[1]);
    await_end(&course);
    close(stray);
    take_up(&course);
}

static void a_relay_gives_back_the_memory_that_it_inherited(void)
{
    enum { MEGABYTES = 64 };
    struct course course;
    static char text[65536];
    static char bss[1 << 20];
    char *heap = malloc(MEGABYTES << 20), *pieces[200];
    int i;
    unsigned long own;

    if (SANITIZED) {
        free(heap);
        SKIP("a sanitizer needs that memory");
    }
    CHECK(heap);
    memset(heap, 1, MEGABYTES << 20);
    memset(bss, 1, sizeof bss);
    for (i = 0; i < 200; i++) {
        pieces[i] = malloc(10000);
        CHECK(pieces[i]);
        memset(pieces[i], 1, 10000);
    }
    lay(&course, "- ");
    start(&course);
    put(course.in[1], "up\n");
    expect(course.out[0], "- up\n");
    slurp("/proc/%lld/smaps_rollup", course.pid, text, sizeof text);
    own = strtoul(strstr(text, "\nRss:") + 5, NULL, 10);
    printf("    RSS %lu KiB\n", own);
    /* The program's own .data and .bss stay: what it calls is in there. */
    CHECK(own < (1 << 10) + 2048);
    CHECK_EQUAL(heap[12345678], 1);
    course.in[1] = fdh_close(course.in[1]);
    await_end(&course);
    for (i = 0; i < 200; i++)
        free(pieces[i]);
    free(heap);
    take_up(&course);
}

static void *start_in_thread(void *course)
{
    start(course);
    put(((struct course *)course)->in[1], "from a thread\n");
    return NULL;
}

static void it_can_be_started_by_any_thread(void)
{
    struct course course;
    pthread_t thread;

    lay(&course, NULL);
    CHECK_EQUAL(pthread_create(&thread, NULL, start_in_thread, &course), 0);
    CHECK_EQUAL(pthread_join(thread, NULL), 0);
    expect(course.out[0], "from a thread\n");
    course.in[1] = fdh_close(course.in[1]);
    await_end(&course);
    take_up(&course);
}

static void it_outlives_its_parent(void)
{
    struct course course;
    pid_t parent;
    int64_t pid;
    int ready[2], status, pidfd;
    struct fdh_exit how;

    lay(&course, NULL);
    MUST(pipe2(ready, O_CLOEXEC));
    parent = fork_child();
    MUST(parent);
    if (!parent) {
        close(course.in[1]);
        start(&course);
        CHECK_EQUAL(write(ready[1], &course.pid, sizeof course.pid), sizeof course.pid);
        for (;;)
            pause();
    }
    CHECK_EQUAL(read(ready[0], &pid, sizeof pid), sizeof pid);
    CHECK_EQUAL(fdh_pidfd_open(pid, &pidfd), 0);
    MUST(kill(parent, SIGSTOP));
    put(course.in[1], "stopped\n");
    expect(course.out[0], "stopped\n");
    MUST(kill(parent, SIGKILL));
    MUST(waitpid(parent, &status, 0));
    put(course.in[1], "killed\n");
    expect(course.out[0], "killed\n");
    course.in[1] = fdh_close(course.in[1]);
    CHECK_EQUAL(fdh_pidfd_wait(pidfd, SECONDS(30), &how), 0);
    close(pidfd);
    close(ready[0]);
    close(ready[1]);
    take_up(&course);
}

static void what_makes_no_sense_is_refused(void)
{
    struct course course;
    char buffer[16], prefix[FDH_RELAY_PREFIX_MAX + 2];
    size_t n;
    uint64_t seen, dropped;
    int64_t pid;
    int pidfd = -7, fd, memory;

    memset(prefix, 'p', sizeof prefix);
    prefix[sizeof prefix - 1] = '\0';
    lay(&course, NULL);
    TAINT(pid);
    course.relay.n_streams = 0;
    CHECK_EQUAL(fdh_relay_start(&course.relay, &pid, &pidfd), -EINVAL);
    course.relay.n_streams = 3;
    CHECK_EQUAL(fdh_relay_start(&course.relay, &pid, &pidfd), -EINVAL);
    course.relay.n_streams = 1;
    course.relay.prefix = prefix;
    CHECK_EQUAL(fdh_relay_start(&course.relay, &pid, &pidfd), -EINVAL);
    course.relay.prefix = NULL;
    course.relay.memory_fd = course.in[0];
    CHECK_EQUAL(fdh_relay_start(&course.relay, &pid, &pidfd), -EBADMSG);
    course.relay.memory_fd = -1;
    CHECK_EQUAL(fdh_relay_start(&course.relay, &pid, &pidfd), -EBADF);
    course.relay.memory_fd = course.memory;
    course.relay.from[0] = -1;
    CHECK_EQUAL(fdh_relay_start(&course.relay, &pid, &pidfd), -EBADF);
    course.relay.from[0] = course.in[0];
    fd = next_fd();
    course.relay.to[0] = fd;
    CHECK_EQUAL(fdh_relay_start(&course.relay, &pid, &pidfd), -EBADF);
    CHECK_UNTOUCHED(pid);
    CHECK_EQUAL(pidfd, -7);
    CHECK_EQUAL(fdh_relay_read(course.memory, FDH_RELAY_STREAMS, -1, buffer, sizeof buffer, &n, &seen, &dropped), -EINVAL);
    CHECK_EQUAL(fdh_relay_read(course.in[0], 0, -1, buffer, sizeof buffer, &n, &seen, &dropped), -EBADMSG);
    memory = memfd_create("other", MFD_CLOEXEC);
    MUST(memory);
    CHECK_EQUAL(fdh_relay_read(memory, 0, -1, buffer, sizeof buffer, &n, &seen, &dropped), -EBADMSG);
    close(memory);
    CHECK_EQUAL(fdh_relay_read(course.memory, 0, -1, buffer, sizeof buffer, &n, &seen, &dropped), 0);
    CHECK_EQUAL(n, 0);
    put(course.in[1], "unread");
    CHECK_EQUAL(fdh_relay_read(course.memory, 0, course.in[0], buffer, sizeof buffer, &n, &seen, &dropped), FDH_MORE);
    take_up(&course);
}

int main(void)
{
    RUN(all_bytes_pass_untouched_and_the_end_of_them_is_kept);
    RUN(half_a_line_passes_at_once);
    RUN(pieces_end_where_lines_end);
    RUN(each_line_gets_the_prefix);
    RUN(long_lines_get_it_once);
    RUN(two_streams_do_not_wait_for_each_other);
    RUN(a_target_that_is_full_holds_up_the_writer);
    RUN(a_full_target_that_is_non_blocking_loses_pieces_that_are_counted);
    RUN(it_reads_on_when_nobody_reads_from_it);
    RUN(a_full_disk_loses_what_does_not_fit);
    RUN(without_a_target_only_the_end_is_kept);
    RUN(the_next_relay_goes_on_where_one_was_killed);
    RUN(a_relay_that_is_killed_costs_one_piece_at_most);
    RUN(what_is_read_while_it_is_written_makes_sense);
    RUN(it_holds_nothing_but_its_pipes_in_a_session_of_its_own);
    RUN(a_relay_gives_back_the_memory_that_it_inherited);
    RUN(it_can_be_started_by_any_thread);
    RUN(it_outlives_its_parent);
    RUN(what_makes_no_sense_is_refused);
    return check_summary();
}

#endif
