/* Error messages. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <string.h>

#include "base/err.h"

static void test_set(void **state)
{
    struct err e = {"old"};

    assert_int_equal(err_set(&e, EINVAL, "value %d of %s", 7, "x"), -EINVAL);
    assert_string_equal(e.msg, "value 7 of x");
    assert_int_equal(err_set(NULL, ENOENT, "nobody reads this"), -ENOENT);
}

static void test_sys(void **state)
{
    struct err e;

    errno = ENOENT;
    assert_int_equal(err_sys(&e, "cannot open %s", "k"), -ENOENT);
    assert_string_equal(e.msg, "cannot open k: No such file or directory");
    errno = EACCES;
    assert_int_equal(err_sys(NULL, "cannot open"), -EACCES);
}

static void test_prefix(void **state)
{
    struct err e;

    err_set(&e, EIO, "disk gone");
    assert_int_equal(err_prefix(&e, -EIO, "drive %d", 2), -EIO);
    assert_string_equal(e.msg, "drive 2: disk gone");
    assert_int_equal(err_prefix(NULL, -EIO, "x"), -EIO);
}

/* Long parts are cut, never overrun, and the result is one printable line. */
static void test_hostile_text(void **state)
{
    char big[2 * sizeof(((struct err *)0)->msg)];
    struct err e;

    memset(big, 'a', sizeof(big) - 1);
    big[sizeof(big) - 1] = '\0';
    err_set(&e, EINVAL, "%s", big);
    assert_int_equal(strlen(e.msg), sizeof(e.msg) - 1);
    err_prefix(&e, -EINVAL, "%s", big);
    assert_int_equal(strlen(e.msg), sizeof(e.msg) - 1);
    errno = EIO;
    err_sys(&e, "%s", big);
    assert_int_equal(strlen(e.msg), sizeof(e.msg) - 1);
    err_set(&e, EINVAL, "file '%s'", "a\n\033[2Jb");
    assert_string_equal(e.msg, "file 'a??[2Jb'");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_set),
        cmocka_unit_test(test_sys),
        cmocka_unit_test(test_prefix),
        cmocka_unit_test(test_hostile_text),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
