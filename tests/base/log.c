/* Log lines and trace events, read back through a pipe. The host's clock is a variable here. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/trace.h"

static time_t fake_seconds = 100;

int clock_gettime(clockid_t id, struct timespec *ts)
{
    ts->tv_sec = fake_seconds;
    ts->tv_nsec = 0;
    return 0;
}

struct fixture {
    struct log log;
    int rd, wr;
    char text[65536];
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    int p[2];

    assert_int_equal(pipe2(p, O_NONBLOCK), 0);
    f->rd = p[0];
    f->wr = p[1];
    log_init(&f->log, LOG_INFO, f->wr);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    close(f->rd);
    close(f->wr);
    free(f);
    return 0;
}

static const char *output(struct fixture *f)
{
    ssize_t n = read(f->rd, f->text, sizeof(f->text) - 1);

    f->text[n > 0 ? n : 0] = '\0';
    return f->text;
}

static void test_levels(void **state)
{
    struct fixture *f = *state;
    enum log_level lv;

    log_msg(&f->log, LOG_ERROR, "a %d", 1);
    log_msg(&f->log, LOG_WARN, "b");
    log_msg(&f->log, LOG_INFO, "c");
    log_msg(&f->log, LOG_DEBUG, "d");
    assert_string_equal(output(f), "ring3: error: a 1\nring3: warning: b\nring3: c\n");

    assert_int_equal(log_level_parse("debug", &lv), 0);
    assert_int_equal(lv, LOG_DEBUG);
    assert_int_equal(log_level_parse("error", &lv), 0);
    assert_int_equal(lv, LOG_ERROR);
    assert_int_equal(log_level_parse("loud", &lv), -EINVAL);
    assert_int_equal(log_level_parse("", &lv), -EINVAL);
    f->log.level = LOG_DEBUG;
    log_msg(&f->log, LOG_DEBUG, "d");
    assert_string_equal(output(f), "ring3: debug: d\n");
}

static void test_raw_and_hostile(void **state)
{
    struct fixture *f = *state;
    char big[5000];

    log_set_raw(&f->log, true);
    log_msg(&f->log, LOG_INFO, "x\ny\033z");
    assert_string_equal(output(f), "ring3: x?y?z\r\n");
    log_set_raw(&f->log, false);

    memset(big, 'a', sizeof(big) - 1);
    big[sizeof(big) - 1] = '\0';
    log_msg(&f->log, LOG_INFO, "%s", big);
    output(f);
    assert_true(strlen(f->text) < 1100);
    assert_string_equal(f->text + strlen(f->text) - 4, "...\n");
}

/* A reader that went away must not take the VM with it or hang it. */
static void test_full_pipe(void **state)
{
    struct fixture *f = *state;

    for (int i = 0; i < 100000; i++)
        log_msg(&f->log, LOG_INFO, "0123456789");
    assert_non_null(strstr(output(f), "0123456789"));
}

static unsigned lines(const char *s)
{
    unsigned n = 0;

    for (; *s; s++)
        n += *s == '\n';
    return n;
}

/* The reader's end blocks, as a shell gives it: a line waits a while, but not for ever. */
static void test_stalled_reader(void **state)
{
    struct fixture *f = *state;
    size_t total = 0, n;

    alarm(60); /* a hang is a failure */
    assert_int_equal(fcntl(f->wr, F_SETFL, 0), 0);
    for (int i = 0; i < 10000; i++)
        log_msg(&f->log, LOG_INFO, "0123456789");
    while ((n = strlen(output(f))) > 0)
        total += n;
    assert_int_equal(total % strlen("ring3: 0123456789\n"), 0);
    log_msg(&f->log, LOG_INFO, "back");
    assert_string_equal(output(f), "ring3: back\n");
    alarm(0);
}

static void test_limited(void **state)
{
    struct fixture *f = *state;
    struct log_limit lim = {0};

    for (int i = 0; i < 1000; i++)
        log_limited(&f->log, &lim, LOG_WARN, "bad access %d", i);
    assert_int_equal(lines(output(f)), LOG_LIMIT_BURST);
    fake_seconds++;
    log_limited(&f->log, &lim, LOG_WARN, "again");
    output(f);
    assert_int_equal(lines(f->text), 2);
    assert_non_null(strstr(f->text, "990 more"));
    assert_non_null(strstr(f->text, "warning: again"));
    fake_seconds++;
    log_limited(&f->log, &lim, LOG_WARN, "calm");
    assert_string_equal(output(f), "ring3: warning: calm\n");
    log_limited(&f->log, &lim, LOG_DEBUG, "not at this level");
    assert_string_equal(output(f), "");
}

static void test_trace(void **state)
{
    struct fixture *f = *state;
    struct trace t;
    struct err e;

    trace_init(&t, &f->log);
    trace(&t, bus_pio, "port=%d", 1);
    assert_string_equal(output(f), "");

    assert_int_equal(trace_enable(&t, "bus_p*", &e), 0);
    trace(&t, bus_pio, "port=%d", 1);
    trace(&t, bus_mmio, "no");
    assert_string_equal(output(f), "ring3: trace: bus_pio: port=1\n");

    /* Whatever the log level: the user asked for it by name. */
    f->log.level = LOG_ERROR;
    assert_int_equal(trace_enable(&t, "cpu_msr,bus_mmio", &e), 0);
    trace(&t, bus_mmio, "yes");
    trace(&t, cpu_msr, "too");
    trace(&t, cpu_mode, "no");
    assert_string_equal(output(f), "ring3: trace: bus_mmio: yes\nring3: trace: cpu_msr: too\n");
}

static void test_trace_errors(void **state)
{
    struct fixture *f = *state;
    char big[300];
    struct trace t;
    struct err e;

    trace_init(&t, &f->log);
    assert_int_equal(trace_enable(&t, "bus_*,nothing*", &e), -EINVAL);
    assert_non_null(strstr(e.msg, "nothing*"));
    /* All or nothing. */
    for (int i = 0; i < TRACE_COUNT; i++)
        assert_int_equal(t.on[i], 0);
    assert_int_equal(trace_enable(&t, "", &e), -EINVAL);
    assert_int_equal(trace_enable(&t, "bus_*,", &e), -EINVAL);
    memset(big, '*', sizeof(big) - 1);
    big[sizeof(big) - 1] = '\0';
    assert_int_equal(trace_enable(&t, big, &e), -EINVAL);
}

static void test_trace_list(void **state)
{
    char *text;
    size_t len;
    FILE *out = open_memstream(&text, &len);

    trace_list(out);
    fclose(out);
    assert_int_equal(lines(text), TRACE_COUNT);
    assert_non_null(strstr(text, "bus_unclaimed "));
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_levels, setup, teardown),
        cmocka_unit_test_setup_teardown(test_raw_and_hostile, setup, teardown),
        cmocka_unit_test_setup_teardown(test_full_pipe, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stalled_reader, setup, teardown),
        cmocka_unit_test_setup_teardown(test_limited, setup, teardown),
        cmocka_unit_test_setup_teardown(test_trace, setup, teardown),
        cmocka_unit_test_setup_teardown(test_trace_errors, setup, teardown),
        cmocka_unit_test(test_trace_list),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
