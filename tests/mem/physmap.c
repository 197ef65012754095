/* The guest-physical map against a model that knows the owner of every byte. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "mem/physmap.h"

struct heard {
    unsigned changes;
    const struct flat_view *view;
    bool p2m_was_ready; /* at the time of the call */
    struct physmap *m;
    uint64_t want_frame;
};

static void on_changed(void *arg, const struct flat_view *v)
{
    struct heard *h = arg;

    h->changes++;
    h->view = v;
    h->p2m_was_ready = physmap_view(h->m) == v && p2m_get(physmap_p2m(h->m), h->want_frame) != 0;
}

static void test_empty_and_one(void **state)
{
    struct heard h = {.want_frame = 0x100};
    struct physmap *m;
    struct region *r;
    struct ram *ram;

    assert_int_equal(ram_new(&ram, "ram", 4 * 4096, NULL), 0);
    assert_int_equal(physmap_new(&m, 40, NULL), 0);
    h.m = m;
    physmap_set_listener(m, &(struct physmap_listener){.changed = on_changed, .arg = &h});
    assert_int_equal(physmap_width(m), 40);
    assert_null(physmap_find(physmap_view(m), 0));
    r = physmap_add(
        m,
        &(struct region){
            .name = "ram", .base = 0x100000, .size = 0x3000, .ram = ram, .ram_off = 0x1000},
        NULL);
    assert_non_null(r);
    assert_int_equal(h.changes, 1);
    assert_true(h.p2m_was_ready);
    assert_ptr_equal(h.view, physmap_view(m));
    assert_null(physmap_find(h.view, 0xfffff));
    assert_non_null(physmap_find(h.view, 0x100000));
    assert_non_null(physmap_find(h.view, 0x102fff));
    assert_null(physmap_find(h.view, 0x103000));
    assert_null(physmap_find(h.view, UINT64_MAX));
    assert_ptr_equal(physmap_host(physmap_find(h.view, 0x101234), 0x101234), ram->host + 0x2234);
    assert_ptr_equal(p2m_host(p2m_get(physmap_p2m(m), 0x100)), ram->host + 0x1000);
    assert_int_equal(physmap_del(m, r, NULL), 0);
    assert_int_equal(h.changes, 2);
    assert_int_equal(p2m_get(physmap_p2m(m), 0x100), 0);
    assert_int_equal(physmap_del(m, r, NULL), -ENOENT);
    physmap_free(m);
    ram_free(ram);
}

static void test_bad_regions(void **state)
{
    struct physmap *m;
    struct ram *ram;
    struct err e;

    assert_int_equal(physmap_new(&m, 35, &e), -EINVAL);
    assert_int_equal(physmap_new(&m, 53, &e), -EINVAL);
    assert_int_equal(ram_new(&ram, "ram", 4 * 4096, NULL), 0);
    assert_int_equal(physmap_new(&m, 36, &e), 0);
    const struct region bad[] = {
        {.name = "empty", .ram = ram},
        {.name = "high", .base = BIT(36), .size = 4096, .ram = ram},
        {.name = "over", .base = BIT(36) - 4096, .size = 8192, .ram = ram},
        {.name = "wrap", .base = 4096, .size = ~0xfffull, .ram = ram},
        {.name = "base", .base = 1, .size = 4096, .ram = ram},
        {.name = "size", .size = 4097, .ram = ram},
        {.name = "offset", .size = 4096, .ram = ram, .ram_off = 8},
        {.name = "large", .size = 5 * 4096, .ram = ram},
        {.name = "end", .size = 2 * 4096, .ram = ram, .ram_off = 3 * 4096},
        {.name = "beyond", .size = 4096, .ram = ram, .ram_off = 16 * 4096},
        {.name = "nothing", .kind = REGION_ROM, .size = 4096},
        {.name = "io", .kind = REGION_IO, .base = BIT(36) - 1, .size = 2},
    };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        e.msg[0] = '\0';
        assert_null(physmap_add(m, &bad[i], &e));
        assert_non_null(strstr(e.msg, bad[i].name));
    }
    assert_int_equal(physmap_view(m)->n, 0);
    /* The very end of the address space is usable. */
    assert_non_null(physmap_add(
        m, &(struct region){.name = "last", .base = BIT(36) - 4096, .size = 4096, .ram = ram}, &e));
    assert_non_null(physmap_find(physmap_view(m), BIT(36) - 1));
    assert_true(p2m_get(physmap_p2m(m), (BIT(36) - 1) >> 12) & P2M_PRESENT);
    physmap_free(m);
    ram_free(ram);
}

/* A frame keeps its flags while its page stays; a new page starts dirty. */
static void test_flags_survive(void **state)
{
    struct region *rom, *io, *low;
    struct physmap *m;
    struct ram *ram;
    struct p2m *p;

    assert_int_equal(ram_new(&ram, "ram", 16 * 4096, NULL), 0);
    assert_int_equal(physmap_new(&m, 36, NULL), 0);
    p = physmap_p2m(m);
    low = physmap_add(m, &(struct region){.name = "low", .size = 8 * 4096, .ram = ram}, NULL);
    assert_int_equal(p2m_get(p, 1) & P2M_FLAGS, P2M_PRESENT | P2M_DIRTY);
    p2m_clear_flags(p, 1, P2M_DIRTY);
    p2m_clear_flags(p, 2, P2M_DIRTY);
    p2m_set_flags(p, 1, P2M_CODE);

    /* Something next to it, and I/O in the middle of it. */
    assert_non_null(physmap_add(
        m,
        &(struct region){
            .name = "more", .base = 8 * 4096, .size = 4096, .ram = ram, .ram_off = 8 * 4096},
        NULL));
    io =
        physmap_add(m,
                    &(struct region){
                        .name = "io", .kind = REGION_IO, .base = 2 * 4096, .size = 4096, .prio = 1},
                    NULL);
    assert_int_equal(p2m_get(p, 1) & P2M_FLAGS, P2M_PRESENT | P2M_CODE);
    assert_int_equal(p2m_get(p, 2), 0);
    assert_int_equal(physmap_del(m, io, NULL), 0);
    assert_int_equal(p2m_get(p, 1) & P2M_FLAGS, P2M_PRESENT | P2M_CODE);
    assert_int_equal(p2m_get(p, 2) & P2M_FLAGS, P2M_PRESENT | P2M_DIRTY);

    /* The same pages through another region, read-only (shadowed ROM): only that bit changes. */
    rom =
        physmap_add(m,
                    &(struct region){
                        .name = "rom", .kind = REGION_ROM, .size = 8 * 4096, .ram = ram, .prio = 1},
                    NULL);
    assert_int_equal(p2m_get(p, 1) & P2M_FLAGS, P2M_PRESENT | P2M_CODE | P2M_READONLY);
    assert_int_equal(physmap_del(m, low, NULL), 0);
    assert_int_equal(p2m_get(p, 1) & P2M_FLAGS, P2M_PRESENT | P2M_CODE | P2M_READONLY);
    low = physmap_add(m, &(struct region){.name = "low", .size = 8 * 4096, .ram = ram}, NULL);
    assert_int_equal(physmap_del(m, rom, NULL), 0);
    assert_int_equal(p2m_get(p, 1) & P2M_FLAGS, P2M_PRESENT | P2M_CODE);

    /* Another page: dirty, and code flags gone. */
    assert_non_null(physmap_add(
        m,
        &(struct region){
            .name = "alias", .size = 4 * 4096, .ram = ram, .ram_off = 4 * 4096, .prio = 1},
        NULL));
    assert_int_equal(p2m_get(p, 1), (uint64_t)(ram->host + 5 * 4096) | P2M_PRESENT | P2M_DIRTY);
    physmap_free(m);
    ram_free(ram);
}

static void count_free(void *io) { ++*(unsigned *)io; }

static void test_reclaim(void **state)
{
    unsigned freed = 0, never = 0;
    const struct flat_range *seen;
    struct physmap *m;
    struct region *r;

    assert_int_equal(physmap_new(&m, 36, NULL), 0);
    r = physmap_add(m,
                    &(struct region){.name = "io",
                                     .kind = REGION_IO,
                                     .base = 3,
                                     .size = 2,
                                     .io = &freed,
                                     .io_free = count_free},
                    NULL);
    assert_non_null(physmap_add(m,
                                &(struct region){.name = "io2",
                                                 .kind = REGION_IO,
                                                 .base = 9,
                                                 .size = 1,
                                                 .io = &never,
                                                 .io_free = count_free},
                                NULL));
    seen = physmap_find(physmap_view(m), 4);
    assert_int_equal(physmap_del(m, r, NULL), 0);
    assert_null(physmap_find(physmap_view(m), 4));
    /* A reader of the old view may still go on (a sanitizer watches). */
    assert_int_equal(freed, 0);
    assert_ptr_equal(seen->region->io, &freed);
    physmap_reclaim(m);
    assert_int_equal(freed, 1);
    physmap_reclaim(m);
    assert_int_equal(freed, 1);
    assert_int_equal(never, 0);
    physmap_free(m);
    assert_int_equal(never, 1);
}

/* ---- random maps ---- */

#define WINDOW_PAGES 8
#define WINDOW (WINDOW_PAGES * 4096u)
#define REGIONS 10

struct slot {
    struct region *handle;
    struct region r;
    unsigned seq;
};

struct model {
    struct physmap *m;
    struct ram *ram[2];
    struct slot slot[REGIONS];
    uint64_t base; /* of the window */
    unsigned seq;
    uint64_t rng;
    uint64_t entry[WINDOW_PAGES]; /* p2m entries as they should be */
};

static uint64_t next_random(struct model *t)
{
    uint64_t z = t->rng += 0x9e3779b97f4a7c15;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static const struct slot *owner(const struct model *t, uint64_t gpa)
{
    const struct slot *best = NULL;

    for (int i = 0; i < REGIONS; i++) {
        const struct slot *s = &t->slot[i];

        if (!s->handle || gpa < s->r.base || gpa >= s->r.base + s->r.size)
            continue;
        if (!best || s->r.prio > best->r.prio || (s->r.prio == best->r.prio && s->seq > best->seq))
            best = s;
    }
    return best;
}

static uint8_t *owner_host(const struct slot *s, uint64_t gpa)
{
    return s->r.ram->host + s->r.ram_off + (gpa - s->r.base);
}

static void check_bytes(const struct model *t)
{
    const struct flat_view *v = physmap_view(t->m);
    uint64_t end = t->base;

    for (uint32_t i = 0; i < v->n; i++) {
        const struct flat_range *r = &v->r[i];

        assert_true(r->start <= r->end && r->start >= end);
        if (i && r->region == v->r[i - 1].region)
            assert_true(r->start > end); /* neighbours of one region are one range */
        for (; end < r->start; end++)
            assert_null(owner(t, end));
        for (; end <= r->end; end++) {
            const struct slot *s = owner(t, end);

            assert_non_null(s);
            assert_ptr_equal(r->region, s->handle);
            assert_int_equal(r->kind, s->r.kind);
        }
        assert_int_equal(r->off, r->start - r->region->base);
        assert_ptr_equal(physmap_find(v, r->start), r);
        assert_ptr_equal(physmap_find(v, r->end), r);
    }
    for (; end < t->base + WINDOW; end++)
        assert_null(owner(t, end));
    assert_null(physmap_find(v, t->base + WINDOW));
    assert_null(physmap_find(v, t->base - 1));
}

/* What the p2m must hold, by the rules at the top of physmap.c. */
static void check_frames(struct model *t)
{
    for (unsigned i = 0; i < WINDOW_PAGES; i++) {
        uint64_t gpa = t->base + i * 4096, old = t->entry[i], want = 0;
        const struct slot *s = owner(t, gpa);
        bool whole = s && s->r.kind != REGION_IO;

        for (unsigned k = 1; k < 4096 && whole; k++)
            whole = owner(t, gpa + k) == s;
        if (whole) {
            want = (uint64_t)(uintptr_t)owner_host(s, gpa) | P2M_PRESENT;
            if (p2m_host(old) == p2m_host(want))
                want |= old & (P2M_DIRTY | P2M_CODE);
            else
                want |= P2M_DIRTY;
            if (s->r.kind == REGION_ROM)
                want |= P2M_READONLY;
        }
        assert_int_equal(p2m_get(physmap_p2m(t->m), gpa >> 12), want);
        t->entry[i] = want;
    }
    assert_int_equal(p2m_get(physmap_p2m(t->m), (t->base >> 12) - 1), 0);
    assert_int_equal(p2m_get(physmap_p2m(t->m), (t->base + WINDOW) >> 12), 0);
}

static void random_region(struct model *t, struct region *r)
{
    uint64_t a = next_random(t), b = next_random(t), pages;

    *r = (struct region){.name = "r", .kind = a % 3, .prio = a >> 8 & 3};
    if (r->kind == REGION_IO) {
        r->base = t->base + b % WINDOW;
        r->size = 1 + (b >> 20) % (b >> 50 & 1 ? 64 : t->base + WINDOW - r->base);
        r->size = MIN(r->size, t->base + WINDOW - r->base);
    } else {
        r->base = t->base + b % WINDOW_PAGES * 4096;
        pages = 1 + (b >> 20) % ((t->base + WINDOW - r->base) / 4096);
        r->size = pages * 4096;
        r->ram = t->ram[b >> 40 & 1];
        /* Often the same page at the same place, so that regions replace each other in kind. */
        r->ram_off =
            b >> 41 & 1 ? r->base - t->base : (b >> 42) % (WINDOW_PAGES - pages + 1) * 4096;
    }
}

static void run_model(uint64_t base, uint64_t seed)
{
    struct model t = {.base = base, .rng = seed};

    for (int i = 0; i < 2; i++)
        assert_int_equal(ram_new(&t.ram[i], "ram", WINDOW, NULL), 0);
    assert_int_equal(physmap_new(&t.m, 40, NULL), 0);
    for (int step = 0; step < 300; step++) {
        struct slot *s = &t.slot[next_random(&t) % REGIONS];
        uint64_t r = next_random(&t);

        if (s->handle) {
            assert_int_equal(physmap_del(t.m, s->handle, NULL), 0);
            s->handle = NULL;
        } else {
            random_region(&t, &s->r);
            s->handle = physmap_add(t.m, &s->r, NULL);
            s->seq = t.seq++;
            assert_non_null(s->handle);
        }
        check_bytes(&t);
        check_frames(&t);
        /* Change a flag of a frame, to see it kept or dropped next time. */
        if (t.entry[r % WINDOW_PAGES]) {
            uint64_t gfn = (t.base >> 12) + r % WINDOW_PAGES;

            p2m_clear_flags(physmap_p2m(t.m), gfn, P2M_DIRTY);
            p2m_set_flags(physmap_p2m(t.m), gfn, r >> 32 & 1 ? P2M_CODE : P2M_DIRTY);
            t.entry[r % WINDOW_PAGES] = p2m_get(physmap_p2m(t.m), gfn);
        }
        if (!(r >> 40 & 7))
            physmap_reclaim(t.m);
    }
    physmap_free(t.m);
    ram_free(t.ram[0]);
    ram_free(t.ram[1]);
}

static void test_model(void **state)
{
    run_model(0x100000, 1);
    run_model(0xfee00000, 2);
    run_model(BIT(40) - 2 * WINDOW, 3);
}

/* Many regions: growth, and deleting all without needing memory. */
static void test_many(void **state)
{
    struct region *r[300];
    struct physmap *m;

    assert_int_equal(physmap_new(&m, 36, NULL), 0);
    for (size_t i = 0; i < ARRAY_LEN(r); i++) {
        /* Nested, each on top of the one before and inside it: the most ranges there can be. */
        r[i] = physmap_add(m,
                           &(struct region){.name = "io",
                                            .kind = REGION_IO,
                                            .base = i,
                                            .size = 2 * (ARRAY_LEN(r) - i),
                                            .prio = (int)i},
                           NULL);
        assert_non_null(r[i]);
        assert_int_equal(physmap_view(m)->n, 2 * i + 1);
    }
    for (size_t i = 0; i < ARRAY_LEN(r); i++)
        assert_int_equal(physmap_del(m, r[(i * 7 + 3) % ARRAY_LEN(r)], NULL), 0);
    assert_int_equal(physmap_view(m)->n, 0);
    physmap_free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_empty_and_one), cmocka_unit_test(test_bad_regions),
        cmocka_unit_test(test_flags_survive), cmocka_unit_test(test_reclaim),
        cmocka_unit_test(test_model),         cmocka_unit_test(test_many),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
