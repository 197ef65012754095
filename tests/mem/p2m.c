/* The frame table: mapping, flags, the dirty log, and all of it from several threads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <pthread.h>
#include <stdlib.h>

#include "mem/p2m.h"

#define HOST ((uint8_t *)0x7000000000) /* never touched */

static int setup(void **state)
{
    struct p2m *p = calloc(1, sizeof(*p));

    assert_int_equal(p2m_init(p, 36, NULL), 0);
    *state = p;
    return 0;
}

static int teardown(void **state)
{
    p2m_fini(*state);
    free(*state);
    return 0;
}

static void test_map(void **state)
{
    struct p2m *p = *state;

    assert_int_equal(p->limit, 1 << 24);
    p2m_map(p, 10, 3, HOST, P2M_READONLY);
    assert_int_equal(p2m_get(p, 9), 0);
    assert_int_equal(p2m_get(p, 10), (uint64_t)HOST | P2M_PRESENT | P2M_READONLY);
    assert_ptr_equal(p2m_host(p2m_get(p, 12)), HOST + 2 * 4096);
    assert_int_equal(p2m_get(p, 13), 0);
    p2m_unmap(p, 11, 1);
    assert_int_equal(p2m_get(p, 11), 0);
    assert_true(p2m_get(p, 12) & P2M_PRESENT);
    /* The first and the last frame, and beyond. */
    p2m_map(p, 0, 1, HOST, 0);
    p2m_map(p, p->limit - 1, 1, HOST, 0);
    assert_true(p2m_get(p, 0) && p2m_get(p, p->limit - 1));
    assert_int_equal(p2m_get(p, p->limit), 0);
    assert_int_equal(p2m_get(p, UINT64_MAX), 0);
}

static void test_widest(void **state)
{
    struct p2m p;

    assert_int_equal(p2m_init(&p, 46, NULL), 0);
    p2m_map(&p, p.limit - 1, 1, HOST, 0);
    assert_true(p2m_get(&p, p.limit - 1) & P2M_PRESENT);
    p2m_fini(&p);
}

static void test_flags(void **state)
{
    struct p2m *p = *state;

    assert_int_equal(p2m_set_flags(p, 5, P2M_DIRTY), 0);
    assert_int_equal(p2m_get(p, 5), 0);
    assert_int_equal(p2m_set_flags(p, p->limit, P2M_DIRTY), 0);
    p2m_map(p, 5, 1, HOST, 0);
    assert_int_equal(p2m_set_flags(p, 5, P2M_CODE | P2M_COW), (uint64_t)HOST | P2M_PRESENT);
    assert_int_equal(p2m_clear_flags(p, 5, P2M_COW | P2M_DIRTY),
                     (uint64_t)HOST | P2M_PRESENT | P2M_CODE | P2M_COW);
    assert_int_equal(p2m_get(p, 5), (uint64_t)HOST | P2M_PRESENT | P2M_CODE);
}

static void test_dirty_fetch(void **state)
{
    struct p2m *p = *state;
    uint64_t bits[3] = {~0ull, ~0ull, ~0ull};

    p2m_map(p, 100, 130, HOST, P2M_CODE);
    p2m_set_flags(p, 99, P2M_DIRTY); /* not there */
    p2m_set_flags(p, 100, P2M_DIRTY);
    p2m_set_flags(p, 163, P2M_DIRTY);
    p2m_set_flags(p, 164, P2M_DIRTY);
    p2m_set_flags(p, 229, P2M_DIRTY);
    assert_int_equal(p2m_dirty_fetch(p, 100, 129, bits), 3);
    assert_int_equal(bits[0], BIT(0) | BIT(63));
    assert_int_equal(bits[1], BIT(0));
    assert_int_equal(bits[2], 0);
    assert_int_equal(p2m_get(p, 163) & P2M_FLAGS, P2M_PRESENT | P2M_CODE);
    assert_int_equal(p2m_dirty_fetch(p, 100, 130, bits), 1);
    assert_int_equal(bits[2], BIT(1));
    assert_int_equal(p2m_dirty_fetch(p, p->limit - 1, 64, bits), 0);
}

/* ---- threads: each owns one flag of every frame, and all of them set DIRTY ---- */

#define FRAMES 4
#define ROUNDS 300000

struct worker {
    struct p2m *p;
    pthread_barrier_t *start;
    uint64_t flag, seed, dirtied, wrong;
};

static void *toggle(void *arg)
{
    struct worker *w = arg;
    uint8_t set[FRAMES] = {0};

    pthread_barrier_wait(w->start);
    for (int i = 0; i < ROUNDS; i++) {
        unsigned gfn;
        uint64_t old;

        w->seed = w->seed * 6364136223846793005 + 1442695040888963407;
        gfn = (w->seed >> 58) % FRAMES;
        if (w->seed >> 40 & 1) {
            old = p2m_set_flags(w->p, gfn, w->flag | P2M_DIRTY);
            w->dirtied += !(old & P2M_DIRTY);
            w->wrong += !(old & w->flag) != !set[gfn];
            set[gfn] = 1;
        } else {
            old = p2m_clear_flags(w->p, gfn, w->flag);
            w->wrong += !(old & w->flag) != !set[gfn];
            set[gfn] = 0;
        }
        w->wrong += p2m_host(old) != HOST + gfn * PAGE_SIZE;
    }
    return NULL;
}

static void test_threads(void **state)
{
    const uint64_t flags[] = {P2M_CODE, P2M_COW, P2M_BALLOONED};
    struct worker w[ARRAY_LEN(flags)];
    pthread_t t[ARRAY_LEN(flags)];
    struct p2m *p = *state;
    uint64_t bits, fetched = 0, dirtied = 0;
    pthread_barrier_t start;

    pthread_barrier_init(&start, NULL, ARRAY_LEN(flags) + 1);
    p2m_map(p, 0, FRAMES, HOST, 0);
    for (size_t i = 0; i < ARRAY_LEN(flags); i++) {
        w[i] = (struct worker){.p = p, .start = &start, .flag = flags[i], .seed = i};
        pthread_create(&t[i], NULL, toggle, &w[i]);
    }
    pthread_barrier_wait(&start);
    for (int i = 0; i < 100000; i++)
        fetched += p2m_dirty_fetch(p, 0, FRAMES, &bits);
    for (size_t i = 0; i < ARRAY_LEN(flags); i++) {
        pthread_join(t[i], NULL);
        assert_int_equal(w[i].wrong, 0);
        dirtied += w[i].dirtied;
    }
    fetched += p2m_dirty_fetch(p, 0, FRAMES, &bits);
    pthread_barrier_destroy(&start);
    /* Every change from clean to dirty was reported exactly once. */
    assert_int_equal(fetched, dirtied);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_map, setup, teardown),
        cmocka_unit_test(test_widest),
        cmocka_unit_test_setup_teardown(test_flags, setup, teardown),
        cmocka_unit_test_setup_teardown(test_dirty_fetch, setup, teardown),
        cmocka_unit_test_setup_teardown(test_threads, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
