/* Opening images: errors, locks, formats found by looking, and hosts without io_uring. */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/util.h"
#include "kit.h"

static int setup(void **state)
{
    struct kit *k = calloc(1, sizeof(*k));

    assert_non_null(k);
    kit_init(k);
    *state = k;
    return 0;
}

static int teardown(void **state)
{
    kit_fini(*state);
    free(*state);
    return 0;
}

/* Opening fails with rc and a message that names the file and says `why`. */
static void check_refused(const struct kit *k, const char *path, int rc, const char *why)
{
    struct blockdev *d = NULL;
    struct err e = {{0}};

    assert_int_equal(block_open(&d, path, &k->o, &e), rc);
    assert_non_null(strstr(e.msg, path));
    if (!strstr(e.msg, why))
        fail_msg("'%s' does not say '%s'", e.msg, why);
}

static void test_errors(void **state)
{
    struct kit *k = *state;

    check_refused(k, "/nonexistent/disk", -ENOENT, "No such file");
    check_refused(k, "/dev/null", -EINVAL, "neither a regular file nor a block device");
    check_refused(k, "/tmp", -EISDIR, "directory");
    kit_file(k, 0, 0);
    check_refused(k, k->path, -EINVAL, "empty");
    kit_file(k, 4096, 1);
    k->o.format = "vmdk";
    check_refused(k, k->path, -EINVAL, "unknown disk format 'vmdk'");
}

static void test_fifo(void **state)
{
    struct kit *k = *state;

    assert_int_equal(mkfifo(k->path, 0600), 0);
    k->o.ro = true;
    check_refused(k, k->path, -EINVAL, "neither a regular file nor a block device");
}

static void test_locks(void **state)
{
    struct kit *k = *state;
    struct blockdev *w, *r1, *r2;

    kit_file(k, 65536, 1);
    w = kit_open(k);
    check_refused(k, k->path, -EBUSY, "in use");
    k->o.ro = true;
    check_refused(k, k->path, -EBUSY, "in use");
    k->o.no_lock = true;
    r1 = kit_open(k);
    block_close(r1);
    k->o.no_lock = false;
    block_close(w);

    r1 = kit_open(k);
    r2 = kit_open(k);
    k->o.ro = false;
    check_refused(k, k->path, -EBUSY, "in use");
    block_close(r1);
    check_refused(k, k->path, -EBUSY, "in use");
    block_close(r2);
    w = kit_open(k);
    block_close(w);
    /* A snapshot reads only. */
    k->o.snapshot = true;
    r1 = kit_open(k);
    r2 = kit_open(k);
    block_close(r1);
    block_close(r2);
}

/* A child that waits to be killed, and opens the image before if that is wanted. */
static pid_t start_child(const struct kit *k, bool opens)
{
    int ends[2];
    pid_t pid;
    char c = 1;

    assert_int_equal(pipe(ends), 0);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct blockdev *d;

        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (opens && block_open(&d, k->path, &k->o, NULL))
            _exit(1);
        if (write(ends[1], &c, 1) == 1)
            pause();
        _exit(1);
    }
    assert_int_equal(read(ends[0], &c, 1), 1);
    close(ends[0]);
    close(ends[1]);
    return pid;
}

static void kill_child(pid_t pid)
{
    assert_int_equal(kill(pid, SIGKILL), 0);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
}

/* A closed image is free, whatever else refers to the open file. */
static void test_unlocks(void **state)
{
    struct kit *k = *state;
    struct blockdev *d;
    pid_t child;

    kit_file(k, 65536, 1);
    d = kit_open(k);
    child = start_child(k, false);
    block_close(d);
    d = kit_open(k);
    block_close(d);
    kill_child(child);
}

/* So is that of a process that was killed, though its io_uring goes after it. */
static void test_killed_unlocks(void **state)
{
    struct kit *k = *state;

    kit_file(k, 65536, 1);
    for (unsigned n = 0; n < 10; n++) {
        pid_t child = start_child(k, true);

        check_refused(k, k->path, -EBUSY, "in use");
        kill_child(child);
        block_close(kit_open(k));
    }
}

/* QEMU's word for it: qemu-io must be refused while we write, and we while it does. */
static int run(const char *command)
{
    int rc = system(command);

    return WIFEXITED(rc) ? WEXITSTATUS(rc) : -1;
}

static int open_once(const struct kit *k)
{
    struct blockdev *d = NULL;
    int rc = block_open(&d, k->path, &k->o, NULL);

    block_close(d);
    return rc;
}

static void test_locks_with_qemu(void **state)
{
    struct kit *k = *state;
    struct blockdev *d;
    char command[2048];
    FILE *f;

    if (run("command -v qemu-io >/dev/null"))
        skip();
    kit_file(k, 65536, 1);
    snprintf(command, sizeof(command), "qemu-io -f raw -c 'write 0 512' %s >/dev/null 2>&1", k->path);
    assert_int_equal(run(command), 0);
    d = kit_open(k);
    assert_int_not_equal(run(command), 0);
    snprintf(command, sizeof(command),
             "qemu-img convert -f raw -O raw %s %s.copy >/dev/null 2>&1; r=$?; rm -f %s.copy; exit $r",
             k->path, k->path, k->path);
    assert_int_not_equal(run(command), 0);
    block_close(d);
    k->o.ro = true;
    d = kit_open(k);
    assert_int_equal(run(command), 0);
    block_close(d);
    /* The other way round: a qemu-io that has the image open, until its input ends. */
    snprintf(command, sizeof(command), "exec qemu-io -f raw %s >/dev/null 2>&1", k->path);
    k->o.ro = false;
    /* Looking too early is what keeps it from opening the image. */
    for (useconds_t wait = 100000;; wait *= 2) {
        f = popen(command, "w");
        assert_non_null(f);
        usleep(wait);
        if (open_once(k) == -EBUSY)
            break;
        pclose(f);
        assert_true(wait < 10000000);
    }
    assert_int_equal(pclose(f), 0);
    assert_int_equal(open_once(k), 0);
}

static void test_probe(void **state)
{
    static const char *const marks[] = {"QFI\xfb", "QED", "KDMV", "COWD", "# Disk DescriptorFile",
                                        "vhdxfile", "conectix"};
    struct kit *k = *state;
    uint8_t buf[1024], back[1024];
    struct blockdev *d;

    kit_file(k, 65536, 1);
    k->o.format = NULL;
    d = kit_open(k);
    assert_string_equal(block_info(d)->format, "raw");
    assert_true(block_info(d)->probed);
    for (size_t i = 0; i < ARRAY_LEN(marks); i++) {
        kit_fill(2, 0, buf, sizeof(buf));
        memcpy(buf, marks[i], strlen(marks[i]) + (i == 1));
        assert_int_equal(kit_write(d, 0, buf, sizeof(buf)), -EPERM);
        kit_read_file(k, 0, back, sizeof(back));
        kit_check(1, 0, back, sizeof(back));
        /* Elsewhere it is data. */
        assert_int_equal(kit_write(d, 4096, buf, sizeof(buf)), 0);
    }
    kit_fill(3, 0, buf, sizeof(buf));
    assert_int_equal(kit_write(d, 0, buf, sizeof(buf)), 0);
    kit_read_file(k, 0, back, sizeof(back));
    kit_check(3, 0, back, sizeof(back));
    block_close(d);

    /* With the format named the guest may write what it likes. */
    k->o.format = "raw";
    d = kit_open(k);
    memcpy(buf, marks[0], 4);
    assert_int_equal(kit_write(d, 0, buf, sizeof(buf)), 0);
    kit_read_file(k, 0, back, sizeof(back));
    assert_memory_equal(buf, back, sizeof(buf));
    block_close(d);
}

/* A kernel, or a sandbox, that refuses io_uring: threads instead, and the user can tell. */
static void test_fallback(void **state)
{
    struct kit *k = *state;
    pid_t pid;
    int status;

    kit_file(k, 65536, 1);
    k->o.aio = BLOCK_AIO_URING;
    pid = fork();
    if (pid == 0) {
        struct sock_filter code[] = {
            BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        };
        struct sock_fprog prog = {.len = ARRAY_LEN(code), .filter = code};
        struct blockdev *d;
        uint8_t buf[512];

        if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
            prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog))
            _exit(2);
        if (block_open(&d, k->path, &k->o, NULL) || block_info(d)->aio != BLOCK_AIO_THREADS ||
            kit_read(d, 512, buf, 512) || buf[0] != kit_byte(1, 512))
            _exit(1);
        block_close(d);
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_errors, setup, teardown),
        cmocka_unit_test_setup_teardown(test_fifo, setup, teardown),
        cmocka_unit_test_setup_teardown(test_locks, setup, teardown),
        cmocka_unit_test_setup_teardown(test_unlocks, setup, teardown),
        cmocka_unit_test_setup_teardown(test_killed_unlocks, setup, teardown),
        cmocka_unit_test_setup_teardown(test_locks_with_qemu, setup, teardown),
        cmocka_unit_test_setup_teardown(test_probe, setup, teardown),
        cmocka_unit_test_setup_teardown(test_fallback, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
