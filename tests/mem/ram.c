/* RAM blocks: content, seals, guard pages, and refusals that say why. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/util.h"
#include "mem/ram.h"

/* Can the kernel read this byte of ours? */
static bool readable(const uint8_t *p)
{
    int fd[2];
    ssize_t n;

    assert_int_equal(pipe(fd), 0);
    n = write(fd[1], p, 1);
    if (n < 0)
        assert_int_equal(errno, EFAULT);
    close(fd[0]);
    close(fd[1]);
    return n == 1;
}

static void test_block(void **state)
{
    const uint64_t size = 3 * MIB + 4096;
    struct ram *r;
    struct stat st;

    assert_int_equal(ram_new(&r, "a-name-that-is-longer-than-the-field-for-it", size, NULL), 0);
    assert_true(strlen(r->name) < sizeof(r->name));
    assert_int_equal(r->size, size);
    assert_int_equal((uintptr_t)r->host & PAGE_MASK, 0);
    for (uint64_t i = 0; i < size; i += 4096)
        assert_int_equal(r->host[i], 0);
    r->host[0] = 1;
    r->host[size - 1] = 2;
    assert_true(readable(r->host) && readable(r->host + size - 1));
    assert_false(readable(r->host - 1));
    assert_false(readable(r->host + size));

    assert_int_equal(fstat(r->fd, &st), 0);
    assert_int_equal(st.st_size, size);
    assert_int_equal(ftruncate(r->fd, 4096), -1);
    assert_int_equal(errno, EPERM);
    assert_int_equal(ftruncate(r->fd, 8 * MIB), -1);
    assert_int_equal(errno, EPERM);
    assert_true(fcntl(r->fd, F_GETFD) & FD_CLOEXEC);
    ram_free(r);
    ram_free(NULL);
}

static void test_two_are_apart(void **state)
{
    struct ram *a, *b;

    assert_int_equal(ram_new(&a, "a", 8192, NULL), 0);
    assert_int_equal(ram_new(&b, "b", 8192, NULL), 0);
    memset(a->host, 0x55, a->size);
    assert_int_equal(b->host[0] | b->host[8191], 0);
    ram_free(a);
    ram_free(b);
}

static void test_bad_size(void **state)
{
    struct ram *r = NULL;
    struct err e;

    assert_int_equal(ram_new(&r, "ram", 0, &e), -EINVAL);
    assert_int_equal(ram_new(&r, "ram", 4097, &e), -EINVAL);
    assert_non_null(strstr(e.msg, "4097"));
    assert_null(r);
}

static void test_host_limit(void **state)
{
    uint64_t limit = ram_host_limit();
    struct ram *r = NULL;
    struct err e;

    assert_true(limit > 0 && limit < UINT64_MAX);
    assert_int_equal(ram_new(&r, "ram", ALIGN_UP(limit, PAGE_SIZE) + GIB, &e), -ENOMEM);
    assert_non_null(strstr(e.msg, "ram"));
    assert_non_null(strstr(e.msg, "this host allows"));
    assert_int_equal(ram_new(&r, "ram", ~PAGE_MASK, &e), -ENOMEM);
    assert_null(r);
}

/* The limit on file sizes is one too, and exceeding it must not be a signal. */
static void test_file_size_limit(void **state)
{
    struct rlimit old, low;
    struct ram *r = NULL;
    struct err e;

    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    low = old;
    low.rlim_cur = 2 * MIB;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &low), 0);
    assert_int_equal(ram_host_limit(), 2 * MIB);
    assert_int_equal(ram_new(&r, "ram", 4 * MIB, &e), -ENOMEM);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    assert_non_null(strstr(e.msg, "4.0 MiB"));
    assert_non_null(strstr(e.msg, "2.0 MiB"));
    assert_non_null(strstr(e.msg, "RLIMIT_FSIZE"));
    assert_null(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_block),           cmocka_unit_test(test_two_are_apart),
        cmocka_unit_test(test_bad_size),        cmocka_unit_test(test_host_limit),
        cmocka_unit_test(test_file_size_limit),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
