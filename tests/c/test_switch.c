/* test_switch.c - the programs themselves, and attaching them.
 *
 * SPDX-License-Identifier: MIT */
#include "groups.h"

static const uint32_t rates[] = {0, 1, 214748365, 2147483648u, 4294967294u, 4294967295u};

/* Calls `body` with every kind of choice. */
static void for_each_choice(void (*body)(const struct fdh_switch *))
{
    static const int families[] = {AF_INET, AF_INET6}, probes[] = {0, AF_INET, AF_INET6};
    size_t family, probe, rate, count;
    int by_flow;

    for (family = 0; family < 2; family++)
        for (probe = 0; probe < 3; probe++)
            for (rate = 0; rate < LENGTH(rates); rate++)
                for (count = 1; count < 4; count++)
                    for (by_flow = 0; by_flow < 2; by_flow++) {
                        struct fdh_switch choice = two_generations(families[family], rates[rate]);

                        choice.old_share.count = (uint32_t)count;
                        choice.new_share.base = (uint32_t)count;
                        choice.new_share.count = (uint32_t)(4 - count);
                        choice.by_flow = by_flow;
                        choice.probe_family = probes[probe];
                        choice.probe_port = 54321;
                        choice.probe_index = 1;
                        body(&choice);
                    }
}

static void compiles_the_same(const struct fdh_switch *choice)
{
    struct fdh_instruction first[FDH_SWITCH_MAX], second[FDH_SWITCH_MAX];
    size_t n = 0, m = 0;

    memset(first, 0x11, sizeof first);
    memset(second, 0x22, sizeof second);
    CHECK_EQUAL(fdh_switch_compile(choice, first, FDH_SWITCH_MAX, &n), 0);
    CHECK_EQUAL(fdh_switch_compile(choice, second, FDH_SWITCH_MAX, &m), 0);
    CHECK(n > 0 && n <= FDH_SWITCH_MAX);
    CHECK_EQUAL(n, m);
    CHECK(!memcmp(first, second, n * sizeof first[0]));
}

static void the_same_choice_compiles_to_the_same_program(void)
{
    for_each_choice(compiles_the_same);
}

static size_t longest;

static void measure(const struct fdh_switch *choice)
{
    struct fdh_instruction program[FDH_SWITCH_MAX];
    size_t n = 0;

    CHECK_EQUAL(fdh_switch_compile(choice, program, FDH_SWITCH_MAX, &n), 0);
    longest = n > longest ? n : longest;
}

static void the_longest_program_fits(void)
{
    for_each_choice(measure);
    CHECK(longest > 50 && longest <= FDH_SWITCH_MAX);
}

static void is_sound(const struct fdh_switch *choice)
{
    struct fdh_instruction program[FDH_SWITCH_MAX];
    size_t n = 0, i;

    CHECK_EQUAL(fdh_switch_compile(choice, program, FDH_SWITCH_MAX, &n), 0);
    for (i = 0; i < n; i++)
        if ((program[i].code & 7) == 5) { /* a jump */
            size_t furthest = program[i].jump_true > program[i].jump_false ? program[i].jump_true : program[i].jump_false;

            CHECK(i + 1 + (program[i].code == 5 ? program[i].k : furthest) < n);
        }
    CHECK_EQUAL(program[n - 1].code & 7, 6); /* a return */
}

static void every_jump_lands_inside_and_the_end_is_a_return(void)
{
    for_each_choice(is_sound);
}

static void needs_its_room(const struct fdh_switch *choice)
{
    struct fdh_instruction program[FDH_SWITCH_MAX], again[FDH_SWITCH_MAX];
    size_t n = 0, capacity, m;

    CHECK_EQUAL(fdh_switch_compile(choice, program, FDH_SWITCH_MAX, &n), 0);
    for (capacity = 0; capacity < n; capacity++) {
        TAINT(again);
        TAINT(m);
        CHECK_EQUAL(fdh_switch_compile(choice, again, capacity, &m), -ENOBUFS);
        CHECK_UNTOUCHED(again);
        CHECK_UNTOUCHED(m);
    }
    CHECK_EQUAL(fdh_switch_compile(choice, again, n, &m), 0);
    CHECK_EQUAL(m, n);
}

static void too_little_room_is_refused_and_untouched(void)
{
    for_each_choice(needs_its_room);
}

static void what_does_not_apply_does_not_matter(void)
{
    struct fdh_switch plain = two_generations(AF_INET, 99), noisy = plain;
    struct fdh_instruction first[FDH_SWITCH_MAX], second[FDH_SWITCH_MAX];
    size_t n = 0, m = 0;

    noisy.probe_port = 1;
    noisy.probe_index = 2;
    memset(noisy.probe_address, 3, sizeof noisy.probe_address);
    CHECK_EQUAL(fdh_switch_compile(&plain, first, FDH_SWITCH_MAX, &n), 0);
    CHECK_EQUAL(fdh_switch_compile(&noisy, second, FDH_SWITCH_MAX, &m), 0);
    CHECK_EQUAL(n, m);
    CHECK(!memcmp(first, second, n * sizeof first[0]));
}

static void empty_shares_and_odd_families_are_refused(void)
{
    struct fdh_instruction program[FDH_SWITCH_MAX];
    struct fdh_switch choice = two_generations(AF_INET, 5);
    size_t n;

    TAINT(program);
    TAINT(n);
    choice.old_share.count = 0;
    CHECK_EQUAL(fdh_switch_compile(&choice, program, FDH_SWITCH_MAX, &n), -EINVAL);
    choice = two_generations(AF_INET, 5);
    choice.new_share.count = 0;
    CHECK_EQUAL(fdh_switch_compile(&choice, program, FDH_SWITCH_MAX, &n), -EINVAL);
    choice = two_generations(AF_INET, 0);
    choice.old_share.count = 0;
    CHECK_EQUAL(fdh_switch_compile(&choice, program, FDH_SWITCH_MAX, &n), -EINVAL);
    choice = two_generations(AF_INET, UINT32_MAX);
    choice.new_share.count = 0;
    CHECK_EQUAL(fdh_switch_compile(&choice, program, FDH_SWITCH_MAX, &n), -EINVAL);
    choice = two_generations(AF_INET, 5);
    choice.probe_family = AF_UNIX;
    CHECK_EQUAL(fdh_switch_compile(&choice, program, FDH_SWITCH_MAX, &n), -EINVAL);
    CHECK_UNTOUCHED(program);
    CHECK_UNTOUCHED(n);
}

static struct group group_of_choices;

static void is_taken_by_the_kernel(const struct fdh_switch *choice)
{
    apply(&group_of_choices, choice);
}

static void the_kernel_takes_every_program(void)
{
    NEEDS(FDH_HAS_SWITCH);
    group_of_choices = make_group(AF_INET6, SOCK_STREAM, 2, DUAL_STACK);
    for_each_choice(is_taken_by_the_kernel);
    CHECK_EQUAL(fdh_switch_detach(group_of_choices.fds[1]), 0);
    close_group(&group_of_choices);
}

static void a_program_can_come_before_the_second_member(void)
{
    struct fdh_switch choice = two_generations(AF_INET, 0);
    struct group group;
    union address address;
    socklen_t size;
    int fd, on = 1;

    NEEDS(FDH_HAS_SWITCH);
    group = make_group(AF_INET, SOCK_STREAM, 1, ONE_STACK);
    apply(&group, &choice);
    fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    MUST(fd);
    MUST(setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on));
    size = loopback(AF_INET, group.port, &address);
    MUST(bind(fd, &address.any, size));
    MUST(listen(fd, 1024));
    group.fds[group.n++] = fd;
    offer(&group, AF_INET, 50);
    CHECK_EQUAL(group.counts[0], 50);
    close_group(&group);
}

static void what_is_in_no_group_takes_no_program(void)
{
    struct fdh_instruction program[FDH_SWITCH_MAX];
    struct fdh_switch choice = two_generations(AF_INET, 0);
    size_t n = 0;
    int listener, ends[2];

    NEEDS(FDH_HAS_SWITCH);
    CHECK_EQUAL(fdh_switch_compile(&choice, program, FDH_SWITCH_MAX, &n), 0);
    listener = tcp_listen(AF_INET, 1);
    MUST(pipe2(ends, O_CLOEXEC));
    CHECK_EQUAL(fdh_switch_attach(listener, program, n), -EINVAL);
    CHECK_EQUAL(fdh_switch_attach(ends[0], program, n), -ENOTSOCK);
    CHECK_EQUAL(fdh_switch_attach(-1, program, n), -EBADF);
    CHECK_EQUAL(fdh_switch_attach(listener, program, 0), -EINVAL);
    CHECK_EQUAL(fdh_switch_attach(listener, program, FDH_SWITCH_MAX + 1), -EINVAL);
    CHECK(fdh_switch_detach(listener) < 0);
    CHECK_EQUAL(fdh_switch_detach(-1), -EBADF);
    close(ends[0]);
    close(ends[1]);
    close(listener);
}

static void detaching_gives_back_the_kernels_own_choice_once(void)
{
    struct fdh_switch choice = two_generations(AF_INET, UINT32_MAX);
    struct group group;

    NEEDS(FDH_HAS_SWITCH);
    group = make_group(AF_INET, SOCK_STREAM, 2, ONE_STACK);
    CHECK_EQUAL(fdh_switch_detach(group.fds[0]), -ENOENT);
    apply(&group, &choice);
    offer(&group, AF_INET, 100);
    CHECK_EQUAL(group.counts[1], 100);
    CHECK_EQUAL(fdh_switch_detach(group.fds[0]), 0);
    offer(&group, AF_INET, 200);
    CHECK(group.counts[0] > 20 && group.counts[1] > 20);
    CHECK_EQUAL(fdh_switch_detach(group.fds[0]), -ENOENT);
    close_group(&group);
}

static void elsewhere_there_is_no_switch(void)
{
    struct fdh_instruction program = {6, 0, 0, 0};

    if (fdh_features() & FDH_HAS_SWITCH)
        SKIP("there is one here");
    CHECK_EQUAL(fdh_switch_attach(0, &program, 1), -ENOSYS);
    CHECK_EQUAL(fdh_switch_detach(0), -ENOSYS);
}

int main(void)
{
    RUN(the_longest_program_fits);
    RUN(the_same_choice_compiles_to_the_same_program);
    RUN(every_jump_lands_inside_and_the_end_is_a_return);
    RUN(too_little_room_is_refused_and_untouched);
    RUN(what_does_not_apply_does_not_matter);
    RUN(empty_shares_and_odd_families_are_refused);
    RUN(the_kernel_takes_every_program);
    RUN(a_program_can_come_before_the_second_member);
    RUN(what_is_in_no_group_takes_no_program);
    RUN(detaching_gives_back_the_kernels_own_choice_once);
    RUN(elsewhere_there_is_no_switch);
    return check_summary();
}
