/*
 * The probe of KVM (engine/kvm/probe.h): nodes that are missing, forbidden, something else, or never answer, and what the
 * probe leaves behind. With the argument "must" the host's KVM has to pass, too.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/util.h"
#include "engine/kvm/probe.h"
#include "engine/kvm/probe_child.h"

#define LONG_MS 60000u
#define SHORT_MS 50u
#define NOBODY 65534

/* A temporary folder with one file. */
struct place {
    char folder[64], node[96];
};

static int make_place(void **state)
{
    struct place *p = calloc(1, sizeof(*p));

    assert_non_null(p);
    strcpy(p->folder, "/tmp/ring3-probe-XXXXXX");
    assert_non_null(mkdtemp(p->folder));
    assert_int_equal(chmod(p->folder, 0755), 0);
    snprintf(p->node, sizeof(p->node), "%s/node", p->folder);
    int fd = open(p->node, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    close(fd);
    *state = p;
    return 0;
}

static int remove_place(void **state)
{
    struct place *p = *state;

    unlink(p->node);
    rmdir(p->folder);
    free(p);
    return 0;
}

static void refused(const char *node, int rc, const char *reason)
{
    struct err e = {""};

    assert_int_equal(kvm_probe_node(node, LONG_MS, &e), rc);
    if (!strstr(e.msg, reason) || strncmp(e.msg, node, strlen(node)) != 0)
        fail_msg("'%s' does not say '%s' of %s", e.msg, reason, node);
    assert_int_equal(kvm_probe_node(node, LONG_MS, NULL), rc);
}

static void test_missing(void **state) { refused("/nonexistent/kvm", -ENOENT, "no KVM here"); }

static void test_not_kvm(void **state)
{
    refused("/dev/null", -ENOTTY, "no KVM device");
    refused(((struct place *)*state)->node, -ENOTTY, "no KVM device");
    refused("/", -EISDIR, "Is a directory");
}

/* What a child that a test forks found out is its exit status. */
static void in_child(void (*fn)(const char *), const char *node)
{
    pid_t pid = fork();
    int status;

    assert_true(pid >= 0);
    if (pid == 0) {
        fn(node);
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

static void probe_as_nobody(const char *node)
{
    struct err e = {""};

    if (geteuid() == 0 && (setgid(NOBODY) || setuid(NOBODY)))
        _exit(1);
    if (kvm_probe_node(node, LONG_MS, &e) != -EACCES)
        _exit(2);
    if (!strstr(e.msg, "group kvm") || !strstr(e.msg, "Permission denied"))
        _exit(3);
}

static void test_forbidden(void **state)
{
    const char *node = ((struct place *)*state)->node;

    assert_int_equal(chmod(node, 0), 0);
    in_child(probe_as_nobody, node);
}

static unsigned count_fds(void)
{
    DIR *d = opendir("/proc/self/fd");
    unsigned n = 0;

    assert_non_null(d);
    while (readdir(d))
        n++;
    closedir(d);
    return n;
}

/* From now on whoever opens the file waits until this is closed, or for tens of seconds. */
static int make_hang(const char *node)
{
    int fd = open(node, O_RDWR | O_CLOEXEC);

    assert_true(fd >= 0);
    /* The holder of a lease is told of who waits. */
    signal(SIGIO, SIG_IGN);
    assert_int_equal(fcntl(fd, F_SETLEASE, F_WRLCK), 0);
    return fd;
}

static volatile sig_atomic_t children;

static void on_child(int signo) { children++; }

/* A node that does not answer is given up, and nothing of it is left. */
static void test_hangs(void **state)
{
    unsigned before = count_fds();
    int lease = make_hang(((struct place *)*state)->node);
    struct err e = {""};

    signal(SIGCHLD, on_child);
    assert_int_equal(kvm_probe_node(((struct place *)*state)->node, SHORT_MS, &e), -ETIMEDOUT);
    signal(SIGCHLD, SIG_DFL);
    assert_non_null(strstr(e.msg, "50 ms"));
    assert_int_equal(children, 0);
    assert_int_equal(waitpid(-1, NULL, WNOHANG | __WALL), -1);
    assert_int_equal(errno, ECHILD);
    close(lease);
    assert_int_equal(count_fds(), before);
}

/* The only child of a process, or 0. */
static pid_t child_of(pid_t pid)
{
    char path[64], text[32] = "";

    snprintf(path, sizeof(path), "/proc/%d/task/%d/children", (int)pid, (int)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t n = read(fd, text, sizeof(text) - 1);
    close(fd);
    return n > 0 ? (pid_t)strtol(text, NULL, 10) : 0;
}

/* The state of a process as proc(5) has it: S for one that sleeps; X if there is none. */
static char mode_of(pid_t pid)
{
    char path[64], mode = 'X';

    snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    FILE *f = fopen(path, "re");
    if (!f)
        return 'X';
    if (fscanf(f, "%*d (%*[^)]) %c", &mode) != 1)
        mode = 'X';
    fclose(f);
    return mode;
}

/* Who is killed while it probes leaves nothing, either. */
static void test_killed(void **state)
{
    const char *node = ((struct place *)*state)->node;
    int lease = make_hang(node);
    pid_t pid = fork(), child;

    assert_true(pid >= 0);
    if (pid == 0)
        _exit(kvm_probe_node(node, LONG_MS, NULL) == 0);
    while (!(child = child_of(pid)))
        usleep(1000);
    /* It has asked to be killed with its parent before it waits for the file. */
    while (mode_of(child) != 'S')
        usleep(1000);
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    /* A zombie of whoever adopts it has ended, too. */
    while (!strchr("ZX", mode_of(child)))
        usleep(1000);
    close(lease);
}

/* Whatever this host has, the answer is one or the other, and the same for all who ask. */
static void *probe_host(void *arg)
{
    struct err *e = arg;

    e->msg[0] = 0;
    return (void *)(intptr_t)kvm_probe(e);
}

static void test_host(void **state)
{
    pthread_t threads[3];
    struct err e[3];
    void *rc[3];

    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, probe_host, &e[i]), 0);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(pthread_join(threads[i], &rc[i]), 0);
    for (unsigned i = 0; i < 3; i++) {
        assert_true((intptr_t)rc[i] <= 0);
        assert_int_equal(rc[i] == 0, e[i].msg[0] == 0);
    }
}

/* The kernel's list of clock sources, as several hosts have it. */
static void test_clock_sources(void **state)
{
    static const struct {
        const char *text;
        bool trusted;
    } cases[] = {
        {"tsc hpet acpi_pm \n", true},
        {"kvm-clock tsc acpi_pm \n", true},
        {"tsc-early hpet acpi_pm \n", true},
        {"hpet acpi_pm \n", false},
        {"kvm-clock acpi_pm \n", false},
        {"hyperv_clocksource_tsc_page hyperv_clocksource_msr \n", false},
        {"", true}, /* says nothing */
    };
    const struct place *p = *state;

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        int fd = open(p->node, O_WRONLY | O_TRUNC | O_CLOEXEC);

        assert_true(fd >= 0);
        assert_int_equal(write(fd, cases[i].text, strlen(cases[i].text)), (ssize_t)strlen(cases[i].text));
        close(fd);
        assert_int_equal(kvm_tsc_trusted(p->node), cases[i].trusted);
    }
    unlink(p->node);
    assert_true(kvm_tsc_trusted(p->node));
}

static void test_must(void **state)
{
    struct err e = {""};

    if (kvm_probe(&e))
        fail_msg("%s", e.msg);
}

/* Messages about any number that a guest may leave. */
static void test_step_names(void **state)
{
    for (uint32_t i = 0; i < PG_STEPS; i++) {
        assert_non_null(probe_step_name(i));
        for (uint32_t j = 0; j < i; j++)
            assert_string_not_equal(probe_step_name(i), probe_step_name(j));
    }
    assert_non_null(probe_step_name(PG_STEPS));
    assert_non_null(probe_step_name(UINT32_MAX));
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_missing),
        cmocka_unit_test_setup_teardown(test_not_kvm, make_place, remove_place),
        cmocka_unit_test_setup_teardown(test_forbidden, make_place, remove_place),
        cmocka_unit_test_setup_teardown(test_hangs, make_place, remove_place),
        cmocka_unit_test_setup_teardown(test_killed, make_place, remove_place),
        cmocka_unit_test(test_host),
        cmocka_unit_test(test_step_names),
        cmocka_unit_test_setup_teardown(test_clock_sources, make_place, remove_place),
    };
    const struct CMUnitTest must[] = {cmocka_unit_test(test_must)};

    if (argc > 1 && !strcmp(argv[1], "must"))
        return cmocka_run_group_tests(must, NULL, NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
