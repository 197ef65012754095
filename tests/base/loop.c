/* The event loop. Each test ends by loop_stop; none looks at how long anything took. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/loop.h"

/* Counts how often the loop looks for events. */
static unsigned waits;

int epoll_wait(int epfd, struct epoll_event *ev, int max, int timeout)
{
    waits++;
    return epoll_pwait(epfd, ev, max, timeout, NULL);
}

static int setup(void **state)
{
    struct loop *l;

    assert_int_equal(loop_new(&l, NULL), 0);
    *state = l;
    return 0;
}

static int teardown(void **state)
{
    loop_free(*state);
    return 0;
}

struct watch {
    struct loop *l;
    struct loop_fd *reg;
    int p[2];
    unsigned calls;
    uint32_t got;
    struct watch *victim; /* removed by the callback */
    unsigned stop_after;
};

static void on_event(void *arg, uint32_t events)
{
    struct watch *w = arg;

    w->calls++;
    w->got = events;
    if (w->victim && w->victim->reg) {
        loop_del(w->victim->reg);
        w->victim->reg = NULL;
    }
    if (w->calls == w->stop_after)
        loop_stop(w->l);
}

static void watch_init(struct watch *w, struct loop *l, uint32_t events)
{
    *w = (struct watch){.l = l, .stop_after = 1};
    assert_int_equal(pipe(w->p), 0);
    assert_int_equal(loop_add(l, w->p[0], events, on_event, w, &w->reg, NULL), 0);
}

static void watch_fini(struct watch *w)
{
    if (w->reg)
        loop_del(w->reg);
    close(w->p[0]);
    close(w->p[1]);
}

static void ready(struct watch *w) { assert_int_equal(write(w->p[1], "x", 1), 1); }

static void test_event(void **state)
{
    struct watch w;

    watch_init(&w, *state, EPOLLIN);
    ready(&w);
    assert_int_equal(loop_run(*state, NULL), 0);
    assert_int_equal(w.calls, 1);
    assert_int_equal(w.got, EPOLLIN);
    /* Level-triggered: the byte is still there. */
    w.stop_after = 3;
    assert_int_equal(loop_run(*state, NULL), 0);
    assert_int_equal(w.calls, 3);
    watch_fini(&w);
}

/* Each of two ready registrations removes the other: only one is called, whichever is first. */
static void test_remove_other(void **state)
{
    struct watch a, b;

    watch_init(&a, *state, EPOLLIN);
    watch_init(&b, *state, EPOLLIN);
    a.victim = &b;
    b.victim = &a;
    ready(&a);
    ready(&b);
    assert_int_equal(loop_run(*state, NULL), 0);
    assert_int_equal(a.calls + b.calls, 1);
    watch_fini(&a);
    watch_fini(&b);
}

static void stop_loop(void *arg) { loop_stop(arg); }

static void test_remove_self(void **state)
{
    struct watch a;

    watch_init(&a, *state, EPOLLIN);
    a.victim = &a;
    a.stop_after = 0;
    ready(&a);
    assert_int_equal(loop_post(*state, stop_loop, *state), 0);
    assert_int_equal(loop_run(*state, NULL), 0);
    assert_int_equal(a.calls, 1);
    watch_fini(&a);
}

/* Nothing wanted: neither data nor the hang-up that epoll always reports gets through. Wanted
 * again: it does. */
static void test_mod(void **state)
{
    struct watch a, b;

    watch_init(&a, *state, EPOLLIN);
    loop_mod(a.reg, 0);
    ready(&a);
    close(a.p[1]);
    a.p[1] = -1;
    watch_init(&b, *state, EPOLLIN);
    b.stop_after = 100;
    ready(&b);
    assert_int_equal(loop_run(*state, NULL), 0);
    assert_int_equal(a.calls, 0);
    loop_mod(a.reg, EPOLLIN);
    assert_int_equal(loop_run(*state, NULL), 0);
    assert_int_equal(a.calls, 1);
    assert_true(a.got & EPOLLIN);
    watch_fini(&a);
    watch_fini(&b);
}

static void *stop_later(void *arg)
{
    for (int i = 0; i < 10000; i++)
        sched_yield();
    loop_stop(arg);
    return NULL;
}

/* A hang-up that nobody wants to hear of wakes the loop once at most. */
static void test_no_spin(void **state)
{
    struct watch a;
    pthread_t t;

    watch_init(&a, *state, 0);
    close(a.p[1]);
    a.p[1] = -1;
    waits = 0;
    pthread_create(&t, NULL, stop_later, *state);
    assert_int_equal(loop_run(*state, NULL), 0);
    pthread_join(t, NULL);
    assert_true(waits <= 2);
    assert_int_equal(a.calls, 0);
    watch_fini(&a);
}

/* What epoll refuses is always ready for what is asked. */
static void test_regular_file(void **state)
{
    char name[] = "/tmp/ring3-loop-XXXXXX";
    struct watch w = {.l = *state, .stop_after = 2};
    int fd = mkstemp(name);

    assert_true(fd >= 0);
    unlink(name);
    assert_int_equal(loop_add(*state, fd, EPOLLIN, on_event, &w, &w.reg, NULL), 0);
    assert_int_equal(loop_run(*state, NULL), 0);
    assert_int_equal(w.calls, 2);
    assert_int_equal(w.got, EPOLLIN);
    loop_mod(w.reg, 0);
    assert_int_equal(loop_post(*state, stop_loop, *state), 0);
    assert_int_equal(loop_run(*state, NULL), 0);
    assert_int_equal(w.calls, 2);
    /* Its own removal from its callback. */
    loop_mod(w.reg, EPOLLIN | EPOLLOUT);
    w.victim = &w;
    w.stop_after = 3;
    assert_int_equal(loop_run(*state, NULL), 0);
    assert_int_equal(w.got, EPOLLIN | EPOLLOUT);
    assert_null(w.reg);
    close(fd);
}

static void test_errors(void **state)
{
    struct watch w;
    struct loop_fd *r = NULL;
    struct err e = {""};

    assert_int_equal(loop_add(*state, 12345, EPOLLIN, on_event, &w, &r, &e), -EBADF);
    assert_non_null(strstr(e.msg, "12345"));
    assert_null(r);
}

/* ---- posts ---- */

#define POSTERS 3
#define POSTS 5000

struct poster {
    struct loop *l;
    unsigned next; /* only the loop's thread: the order within one thread is kept */
    unsigned bad;
    struct post_arg {
        struct poster *p;
        unsigned i;
    } arg[POSTS];
};

static void on_post(void *arg)
{
    struct post_arg *a = arg;

    if (a->i != a->p->next++)
        a->p->bad++;
}

static void *post_many(void *arg)
{
    struct poster *p = arg;

    for (unsigned i = 0; i < POSTS; i++) {
        p->arg[i] = (struct post_arg){.p = p, .i = i};
        if (loop_post(p->l, on_post, &p->arg[i]))
            return p;
    }
    return NULL;
}

static void *stop_when_joined(void *arg)
{
    struct poster *p = arg;
    pthread_t t[POSTERS];
    void *bad = NULL, *r;

    for (int i = 0; i < POSTERS; i++)
        pthread_create(&t[i], NULL, post_many, &p[i]);
    for (int i = 0; i < POSTERS; i++) {
        pthread_join(t[i], &r);
        bad = r ? r : bad;
    }
    loop_stop(p->l);
    return bad;
}

static void test_posts(void **state)
{
    struct poster *p = calloc(POSTERS, sizeof(*p));
    pthread_t t;
    void *bad;

    for (int i = 0; i < POSTERS; i++)
        p[i].l = *state;
    pthread_create(&t, NULL, stop_when_joined, p);
    assert_int_equal(loop_run(*state, NULL), 0);
    pthread_join(t, &bad);
    assert_null(bad);
    for (int i = 0; i < POSTERS; i++) {
        assert_int_equal(p[i].next, POSTS);
        assert_int_equal(p[i].bad, 0);
    }
    free(p);
}

/* Posted and stopped before it runs: what was posted still runs, what is posted later and never run
 * is not leaked. */
static void test_stop_first(void **state)
{
    struct poster p = {.l = *state};

    p.arg[0].p = &p;
    assert_int_equal(loop_post(*state, on_post, &p.arg[0]), 0);
    loop_stop(*state);
    assert_int_equal(loop_run(*state, NULL), 0);
    assert_int_equal(p.next, 1);
    assert_int_equal(loop_post(*state, on_post, &p.arg[0]), 0);
}

static struct loop *signal_loop; /* a handler has no argument */

static void on_signal(int sig) { loop_stop(signal_loop); }

static void raise_signal(void *arg) { raise(SIGUSR1); }

static void test_signal(void **state)
{
    signal_loop = *state;
    signal(SIGUSR1, on_signal);
    assert_int_equal(loop_post(*state, raise_signal, NULL), 0);
    assert_int_equal(loop_run(*state, NULL), 0);
    signal(SIGUSR1, SIG_DFL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_event, setup, teardown),
        cmocka_unit_test_setup_teardown(test_remove_other, setup, teardown),
        cmocka_unit_test_setup_teardown(test_remove_self, setup, teardown),
        cmocka_unit_test_setup_teardown(test_mod, setup, teardown),
        cmocka_unit_test_setup_teardown(test_no_spin, setup, teardown),
        cmocka_unit_test_setup_teardown(test_regular_file, setup, teardown),
        cmocka_unit_test_setup_teardown(test_errors, setup, teardown),
        cmocka_unit_test_setup_teardown(test_posts, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stop_first, setup, teardown),
        cmocka_unit_test_setup_teardown(test_signal, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
