/* Timers against a model, their promises about callbacks, and several threads at once. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/timerfd.h>

#include "base/timer.h"
#include "base/util.h"

static uint64_t next_random(uint64_t *s)
{
    uint64_t z = *s += 0x9e3779b97f4a7c15;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

struct fixture {
    struct clock clock;
    struct timerq q;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    clock_init_stepped(&f->clock, 1000000, 0);
    assert_int_equal(timerq_init(&f->q, &f->clock, NULL), 0);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    timerq_fini(&f->q);
    free(f);
    return 0;
}

/* ---- a timer that notes when it ran ---- */

struct probe {
    struct timer t;
    struct timerq *q;
    unsigned fired;
    uint64_t at;
    uint64_t order; /* how many ran before it, over all probes of one count */
    uint64_t *count;
};

static void note(void *arg)
{
    struct probe *p = arg;

    p->fired++;
    p->at = clock_now(p->q->clock);
    p->order = (*p->count)++;
}

static void probe_init(struct probe *p, struct timerq *q, uint64_t *count)
{
    *p = (struct probe){.q = q, .count = count};
    timer_init(&p->t, note, p);
    assert_int_equal(timer_attach(q, &p->t, NULL), 0);
}

static void test_basic(void **state)
{
    struct fixture *f = *state;
    uint64_t count = 0;
    struct probe a, b;

    probe_init(&a, &f->q, &count);
    probe_init(&b, &f->q, &count);
    assert_int_equal(timerq_next(&f->q), TIMER_OFF);
    timer_arm(&f->q, &a.t, 100);
    timer_arm(&f->q, &b.t, 50);
    assert_int_equal(timerq_next(&f->q), 50);
    clock_step(&f->clock, 49);
    timerq_run(&f->q);
    assert_int_equal(count, 0);
    clock_step(&f->clock, 1);
    timerq_run(&f->q);
    assert_int_equal(b.fired, 1);
    assert_int_equal(b.at, 50);
    assert_int_equal(a.fired, 0);
    assert_true(b.t.deadline == TIMER_OFF);
    timer_arm(&f->q, &a.t, 60); /* moves */
    assert_int_equal(timerq_next(&f->q), 60);
    timer_arm(&f->q, &b.t, 10); /* in the past */
    timerq_run(&f->q);
    assert_int_equal(b.fired, 2);
    timer_cancel(&f->q, &a.t);
    timer_cancel(&f->q, &a.t);
    clock_step(&f->clock, 1000);
    timerq_run(&f->q);
    assert_int_equal(a.fired, 0);
    timer_arm(&f->q, &a.t, TIMER_OFF); /* the same as cancel */
    assert_int_equal(timerq_next(&f->q), TIMER_OFF);
    timer_detach(&f->q, &a.t);
    timer_arm(&f->q, &b.t, 1);
    timer_detach(&f->q, &b.t);
    timerq_run(&f->q);
    assert_int_equal(b.fired, 2);
}

/* ---- callbacks that change the queue ---- */

struct meddler {
    struct timer t;
    struct fixture *f;
    struct timer *victim;
    uint64_t rearm;
    unsigned fired;
};

static void meddle(void *arg)
{
    struct meddler *m = arg;

    m->fired++;
    if (m->victim)
        timer_cancel(&m->f->q, m->victim);
    if (m->rearm != TIMER_OFF)
        timer_arm(&m->f->q, &m->t, m->rearm);
}

static void meddler_init(struct meddler *m, struct fixture *f)
{
    *m = (struct meddler){.f = f, .rearm = TIMER_OFF};
    timer_init(&m->t, meddle, m);
    assert_int_equal(timer_attach(&f->q, &m->t, NULL), 0);
}

static void test_callback_cancels_due(void **state)
{
    struct fixture *f = *state;
    struct meddler m[3];

    for (int i = 0; i < 3; i++)
        meddler_init(&m[i], f);
    m[0].victim = &m[1].t;
    timer_arm(&f->q, &m[0].t, 1);
    timer_arm(&f->q, &m[1].t, 2);
    timer_arm(&f->q, &m[2].t, 3);
    clock_step(&f->clock, 10);
    timerq_run(&f->q);
    assert_int_equal(m[0].fired, 1);
    assert_int_equal(m[1].fired, 0);
    assert_int_equal(m[2].fired, 1);
}

/* A device that is always late must not keep timerq_run from returning, nor starve others. */
static void test_rearm_in_past(void **state)
{
    struct fixture *f = *state;
    struct meddler m, other;

    meddler_init(&m, f);
    meddler_init(&other, f);
    m.rearm = 0;
    timer_arm(&f->q, &m.t, 0);
    timer_arm(&f->q, &other.t, 5);
    clock_step(&f->clock, 10);
    timerq_run(&f->q);
    assert_int_equal(m.fired, 1);
    assert_int_equal(other.fired, 1);
    assert_int_equal(timerq_next(&f->q), 0);
    timerq_run(&f->q);
    assert_int_equal(m.fired, 2);
}

struct spawner {
    struct timer t;
    struct fixture *f;
    struct meddler *kids;
    size_t n;
};

static void spawn(void *arg)
{
    struct spawner *s = arg;

    for (size_t i = 0; i < s->n; i++) {
        meddler_init(&s->kids[i], s->f);
        timer_arm(&s->f->q, &s->kids[i].t, i);
    }
    timer_detach(&s->f->q, &s->t);
}

/* The queue grows, and its own timer goes, while it runs. */
static void test_callback_attaches_and_detaches(void **state)
{
    struct fixture *f = *state;
    struct meddler kids[200], late;
    struct spawner s = {.f = f, .kids = kids, .n = ARRAY_LEN(kids)};

    meddler_init(&late, f);
    timer_init(&s.t, spawn, &s);
    assert_int_equal(timer_attach(&f->q, &s.t, NULL), 0);
    timer_arm(&f->q, &s.t, 0);
    timer_arm(&f->q, &late.t, 1);
    clock_step(&f->clock, 1000);
    timerq_run(&f->q);
    assert_int_equal(late.fired, 1);
    timerq_run(&f->q);
    for (size_t i = 0; i < s.n; i++)
        assert_int_equal(kids[i].fired, 1);
}

/* ---- model ---- */

#define MODEL_TIMERS 64

static void test_model(void **state)
{
    struct fixture *f = *state;
    struct probe p[MODEL_TIMERS];
    uint64_t model[MODEL_TIMERS], rng = 42, count = 0;
    unsigned fired[MODEL_TIMERS] = {0};

    for (int i = 0; i < MODEL_TIMERS; i++) {
        probe_init(&p[i], &f->q, &count);
        model[i] = TIMER_OFF;
    }
    for (int step = 0; step < 10000; step++) {
        uint64_t r = next_random(&rng), now = clock_now(&f->clock), next = TIMER_OFF;
        unsigned i = r % MODEL_TIMERS;

        switch (r >> 32 & 7) {
        case 0:
            timer_cancel(&f->q, &p[i].t);
            model[i] = TIMER_OFF;
            break;
        case 1:
            clock_step(&f->clock, r >> 40 & 63);
            now = clock_now(&f->clock);
            count = 0;
            timerq_run(&f->q);
            for (int k = 0; k < MODEL_TIMERS; k++) {
                if (model[k] > now)
                    continue;
                fired[k]++;
                assert_int_equal(p[k].at, now);
                /* Earlier deadlines ran earlier. */
                for (int l = 0; l < MODEL_TIMERS; l++)
                    if (model[l] < model[k])
                        assert_true(p[l].order < p[k].order);
            }
            for (int k = 0; k < MODEL_TIMERS; k++)
                if (model[k] <= now)
                    model[k] = TIMER_OFF;
            break;
        default:
            model[i] = now + (r >> 40 & 127) - 16;
            if (model[i] > now + 128)
                model[i] = 0;
            timer_arm(&f->q, &p[i].t, model[i]);
            break;
        }
        for (int k = 0; k < MODEL_TIMERS; k++) {
            next = MIN(next, model[k]);
            assert_true(p[k].t.deadline == model[k]);
            assert_int_equal(p[k].fired, fired[k]);
        }
        assert_true(timerq_next(&f->q) == next);
    }
}

/* ---- the timerfd ---- */

static bool fd_is_armed(struct timerq *q)
{
    struct itimerspec its;

    assert_int_equal(timerfd_gettime(q->fd, &its), 0);
    return its.it_value.tv_sec || its.it_value.tv_nsec;
}

static bool fd_is_readable(struct timerq *q, int timeout_ms)
{
    struct pollfd pfd = {.fd = q->fd, .events = POLLIN};

    return poll(&pfd, 1, timeout_ms) == 1;
}

static void test_timerfd(void **state)
{
    const uint64_t hour = 3600000000000;
    struct clock clock;
    uint64_t count = 0;
    struct timerq q;
    struct probe p;

    clock_init(&clock, 1000000);
    assert_int_equal(timerq_init(&q, &clock, NULL), 0);
    probe_init(&p, &q, &count);
    assert_false(fd_is_armed(&q));
    timer_arm(&q, &p.t, clock_now(&clock) + hour);
    assert_true(fd_is_armed(&q));
    assert_false(fd_is_readable(&q, 0));
    clock_freeze(&clock);
    timerq_resync(&q);
    assert_false(fd_is_armed(&q));
    /* Due, but time stands still. */
    timer_arm(&q, &p.t, 0);
    assert_false(fd_is_readable(&q, 0));
    clock_thaw(&clock);
    timerq_resync(&q);
    assert_true(fd_is_readable(&q, 10000));
    timerq_run(&q);
    assert_int_equal(p.fired, 1);
    assert_false(fd_is_readable(&q, 0));
    assert_false(fd_is_armed(&q));
    /* An earlier deadline after a later one. */
    timer_arm(&q, &p.t, clock_now(&clock) + hour);
    timer_arm(&q, &p.t, clock_now(&clock));
    assert_true(fd_is_readable(&q, 10000));
    timer_detach(&q, &p.t);
    timerq_fini(&q);
}

/* ---- threads ---- */

struct slow {
    struct timer t;
    atomic_int stage; /* 1: the callback is inside, 2: it may leave, 3: it left */
};

static void slow_fn(void *arg)
{
    struct slow *s = arg;

    atomic_store(&s->stage, 1);
    while (atomic_load(&s->stage) != 2)
        sched_yield();
    atomic_store(&s->stage, 3);
}

static void *run_queue(void *arg)
{
    timerq_run(arg);
    return NULL;
}

/* Lets the callback go once the canceller waits for it (or is about to: either must be correct). */
static void *release(void *arg)
{
    struct slow *s = arg;

    for (int i = 0; i < 1000; i++)
        sched_yield();
    atomic_store(&s->stage, 2);
    return NULL;
}

static void wait_for_callback(void **state, void (*cancel)(struct timerq *, struct timer *))
{
    struct fixture *f = *state;
    pthread_t runner, releaser;
    struct slow s;

    atomic_init(&s.stage, 0);
    timer_init(&s.t, slow_fn, &s);
    assert_int_equal(timer_attach(&f->q, &s.t, NULL), 0);
    timer_arm(&f->q, &s.t, 0);
    pthread_create(&runner, NULL, run_queue, &f->q);
    while (atomic_load(&s.stage) != 1)
        sched_yield();
    timer_arm(&f->q, &s.t, 5); /* from another thread, while it runs */
    pthread_create(&releaser, NULL, release, &s);
    cancel(&f->q, &s.t);
    assert_int_equal(atomic_load(&s.stage), 3);
    pthread_join(runner, NULL);
    pthread_join(releaser, NULL);
    clock_step(&f->clock, 10);
    timerq_run(&f->q);
    assert_int_equal(atomic_load(&s.stage), 3);
}

static void test_cancel_sync(void **state) { wait_for_callback(state, timer_cancel_sync); }

static void test_detach_waits(void **state) { wait_for_callback(state, timer_detach); }

#define THREADS 3
#define PER_THREAD 8

struct worker {
    struct fixture *f;
    struct timer t[PER_THREAD];
    _Atomic uint64_t ran, armed;
    uint64_t seed;
    atomic_bool done;
};

static void count_run(void *arg)
{
    struct worker *w = arg;

    atomic_fetch_add(&w->ran, 1);
}

static void *arm_and_cancel(void *arg)
{
    struct worker *w = arg;

    for (int i = 0; i < 20000; i++) {
        uint64_t r = next_random(&w->seed);
        struct timer *t = &w->t[r % PER_THREAD];

        switch (r >> 32 & 7) {
        case 0:
            timer_cancel(&w->f->q, t);
            break;
        case 1:
            timer_cancel_sync(&w->f->q, t);
            break;
        case 2:
            timer_detach(&w->f->q, t);
            assert_int_equal(timer_attach(&w->f->q, t, NULL), 0);
            break;
        default:
            atomic_fetch_add(&w->armed, 1);
            timer_arm(&w->f->q, t, clock_now(&w->f->clock) + (r >> 40 & 255));
            break;
        }
    }
    atomic_store(&w->done, true);
    return NULL;
}

static void test_threads(void **state)
{
    struct fixture *f = *state;
    struct worker w[THREADS];
    pthread_t t[THREADS];
    bool done;

    for (int i = 0; i < THREADS; i++) {
        w[i] = (struct worker){.f = f, .seed = (uint64_t)i};
        for (int k = 0; k < PER_THREAD; k++) {
            timer_init(&w[i].t[k], count_run, &w[i]);
            assert_int_equal(timer_attach(&f->q, &w[i].t[k], NULL), 0);
        }
    }
    for (int i = 0; i < THREADS; i++)
        pthread_create(&t[i], NULL, arm_and_cancel, &w[i]);
    do {
        clock_step(&f->clock, 50);
        timerq_run(&f->q);
        done = true;
        for (int i = 0; i < THREADS; i++)
            done &= atomic_load(&w[i].done);
    } while (!done);
    for (int i = 0; i < THREADS; i++)
        pthread_join(t[i], NULL);

    /* One more of each timer that is armed, and then nothing is left. */
    clock_step(&f->clock, 1000);
    timerq_run(&f->q);
    assert_int_equal(timerq_next(&f->q), TIMER_OFF);
    for (int i = 0; i < THREADS; i++) {
        assert_true(w[i].ran > 0 && w[i].ran <= w[i].armed);
        for (int k = 0; k < PER_THREAD; k++)
            timer_detach(&f->q, &w[i].t[k]);
    }
    assert_int_equal(f->q.attached, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_basic, setup, teardown),
        cmocka_unit_test_setup_teardown(test_callback_cancels_due, setup, teardown),
        cmocka_unit_test_setup_teardown(test_rearm_in_past, setup, teardown),
        cmocka_unit_test_setup_teardown(test_callback_attaches_and_detaches, setup, teardown),
        cmocka_unit_test_setup_teardown(test_model, setup, teardown),
        cmocka_unit_test(test_timerfd),
        cmocka_unit_test_setup_teardown(test_cancel_sync, setup, teardown),
        cmocka_unit_test_setup_teardown(test_detach_waits, setup, teardown),
        cmocka_unit_test_setup_teardown(test_threads, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
