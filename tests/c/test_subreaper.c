/* test_subreaper.c - orphans become the children of the process that asked for them.
 *
 * SPDX-License-Identifier: MIT */
#include "check.h"

/* A child that leaves a child of its own behind, and returns whose child that is afterwards. */
MAYBE_UNUSED static pid_t parent_of_an_orphan(void)
{
    int go[2], answer[2];
    pid_t child, parent = 0;
    int status;

    MUST(pipe2(go, O_CLOEXEC));
    MUST(pipe2(answer, O_CLOEXEC));
    child = fork();
    MUST(child);
    if (child == 0) {
        if (fork() == 0) {
            char unused;

            close(go[1]);
            (void)!read(go[0], &unused, 1); /* until the middle one is gone, and we were told so */
            parent = getppid();
            (void)!write(answer[1], &parent, sizeof parent);
            _exit(0);
        }
        _exit(0);
    }
    MUST(waitpid(child, &status, 0));
    close(go[0]);
    close(go[1]);
    CHECK_EQUAL(read(answer[0], &parent, sizeof parent), sizeof parent);
    close(answer[0]);
    close(answer[1]);
    return parent;
}

static void an_orphan_becomes_our_child_only_while_we_ask_for_it(void)
{
#if !defined(__linux__) || defined(FDH_PORTABLE)
    CHECK_EQUAL(fdh_subreaper(true), -ENOSYS);
#else
    int status;

    CHECK_EQUAL(fdh_subreaper(true), 0);
    CHECK_EQUAL(parent_of_an_orphan(), getpid());
    CHECK(waitpid(-1, &status, 0) > 0);
    CHECK_EQUAL(fdh_subreaper(false), 0);
    CHECK(parent_of_an_orphan() != getpid());
    CHECK_EQUAL(waitpid(-1, &status, 0), -1);
    CHECK_EQUAL(errno, ECHILD);
#endif
}

static void a_child_does_not_inherit_it(void)
{
#if defined(__linux__) && !defined(FDH_PORTABLE)
    int status, inherited = -1;
    pid_t child;

    CHECK_EQUAL(fdh_subreaper(true), 0);
    child = fork();
    MUST(child);
    if (child == 0)
        _exit(prctl(PR_GET_CHILD_SUBREAPER, &inherited, 0, 0, 0) == 0 && inherited == 0 ? 0 : 1);
    MUST(waitpid(child, &status, 0));
    CHECK_EQUAL(status, 0);
    CHECK_EQUAL(fdh_subreaper(false), 0);
#endif
}

int main(void)
{
    RUN(an_orphan_becomes_our_child_only_while_we_ask_for_it);
    RUN(a_child_does_not_inherit_it);
    return check_summary();
}
