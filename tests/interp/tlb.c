/* The soft TLB by itself: contexts, globals, and what each flush must and must not take. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/interp/cache.h"
#include "engine/interp/tlb.h"

static int setup(void **state)
{
    static struct tlbs t;
    static struct jump_cache jc;

    *state = &t;
    return tlbs_init(&t, &jc);
}

static int teardown(void **state)
{
    tlbs_fini(*state);
    return 0;
}

/* As a refill does. */
static void fill(struct tlbs *t, enum tlb_kind kind, uint64_t la, uint64_t gpa, uint64_t info)
{
    struct tlb_context *x = &t->ctx[t->cur];
    struct tlb_entry *e = tlb_slot(&x->set[kind], la);

    e->rtag = e->wtag = la & ~PAGE_MASK;
    e->info = (gpa & ~PAGE_MASK) | info;
    if (info & TLB_INFO_LARGE)
        x->large |= tlb_gib(la);
    if ((info & TLB_INFO_LARGE) && (info & TLB_INFO_GLOBAL))
        x->large_global |= tlb_gib(la);
}

static bool hit(struct tlbs *t, enum tlb_kind kind, uint64_t la)
{
    return tlb_slot(&t->ctx[t->cur].set[kind], la)->rtag == (la & ~PAGE_MASK);
}

static bool whit(struct tlbs *t, enum tlb_kind kind, uint64_t la)
{
    return tlb_slot(&t->ctx[t->cur].set[kind], la)->wtag == (la & ~PAGE_MASK);
}

static uint64_t gen(struct tlbs *t) { return t->ctx[t->cur].gen; }

static void test_contexts(void **state)
{
    struct tlbs *t = *state;
    uint64_t g;

    tlbs_switch(t, 0x1000, 1, true);
    fill(t, TLB_USER, 0x5000, 0x9000, 0);
    g = gen(t);
    tlbs_switch(t, 0x2000, 2, true);
    assert_false(hit(t, TLB_USER, 0x5000));
    assert_true(gen(t) != g);
    fill(t, TLB_SUPER, 0x5000, 0xa000, 0);
    /* Back without a flush: all as it was, jump caches too. */
    tlbs_switch(t, 0x1000, 1, false);
    assert_true(hit(t, TLB_USER, 0x5000));
    assert_false(hit(t, TLB_SUPER, 0x5000));
    assert_true(gen(t) == g);
    /* Back with one. */
    tlbs_switch(t, 0x2000, 2, true);
    assert_false(hit(t, TLB_SUPER, 0x5000));
    tlbs_switch(t, 0x1000, 1, true);
    assert_false(hit(t, TLB_USER, 0x5000));
    assert_true(gen(t) != g);
}

static void test_flush_keeps_global(void **state)
{
    struct tlbs *t = *state;

    tlbs_switch(t, 0x1000, 0, true);
    fill(t, TLB_SUPER, 0x5000, 0x9000, TLB_INFO_GLOBAL);
    fill(t, TLB_SUPER, 0x6000, 0x9000, 0);
    tlbs_switch(t, 0x2000, 0, true);
    assert_true(hit(t, TLB_SUPER, 0x5000));
    assert_false(hit(t, TLB_SUPER, 0x6000));
    fill(t, TLB_SUPER, 0x6000, 0x9000, 0);
    tlbs_flush_nonglobal(t);
    assert_true(hit(t, TLB_SUPER, 0x5000));
    assert_false(hit(t, TLB_SUPER, 0x6000));
    tlbs_flush(t);
    assert_false(hit(t, TLB_SUPER, 0x5000));
}

static void test_more_contexts_than_there_are(void **state)
{
    struct tlbs *t = *state;

    for (uint16_t p = 1; p <= 2 * TLB_CONTEXTS; p++) {
        tlbs_switch(t, 0x1000ull * p, p, false);
        assert_false(hit(t, TLB_USER, 0x5000)); /* nobody else's */
        fill(t, TLB_USER, 0x5000, 0x1000ull * p, 0);
    }
    /* The latest are still there, the first are not. */
    tlbs_switch(t, 0x1000ull * 2 * TLB_CONTEXTS, 2 * TLB_CONTEXTS, false);
    assert_true(hit(t, TLB_USER, 0x5000));
    assert_int_equal(tlb_slot(&t->ctx[t->cur].set[TLB_USER], 0x5000)->info,
                     0x1000ull * 2 * TLB_CONTEXTS);
    tlbs_switch(t, 0x1000, 1, false);
    assert_false(hit(t, TLB_USER, 0x5000));
}

static void test_flush_page(void **state)
{
    struct tlbs *t = *state;

    tlbs_switch(t, 0x1000, 1, true);
    fill(t, TLB_USER, 0x5000, 0x9000, 0);
    fill(t, TLB_SUPER, 0x6000, 0x9000, TLB_INFO_GLOBAL);
    tlbs_switch(t, 0x2000, 2, true);
    fill(t, TLB_USER, 0x5000, 0x9000, 0);
    fill(t, TLB_SUPER, 0x5000, 0x9000, 0);
    fill(t, TLB_USER, 0x7000, 0x9000, 0);
    /* INVLPG: this PCID's, of every kind, and globals of all. */
    tlbs_flush_page(t, 0x5abc);
    tlbs_flush_page(t, 0x6000);
    assert_false(hit(t, TLB_USER, 0x5000));
    assert_false(hit(t, TLB_SUPER, 0x5000));
    assert_true(hit(t, TLB_USER, 0x7000));
    tlbs_switch(t, 0x1000, 1, false);
    assert_true(hit(t, TLB_USER, 0x5000));
    assert_false(hit(t, TLB_SUPER, 0x6000));
    tlbs_flush_page_pcid(t, 0x7000, 2);
    tlbs_flush_page_pcid(t, 0x5000, 1);
    assert_false(hit(t, TLB_USER, 0x5000));
    tlbs_switch(t, 0x2000, 2, false);
    assert_false(hit(t, TLB_USER, 0x7000));
}

static void test_flush_page_of_large(void **state)
{
    struct tlbs *t = *state;
    const uint64_t gib = 0x40000000, high = 0xffffffff80000000;

    tlbs_switch(t, 0x1000, 1, true);
    fill(t, TLB_SUPER, gib + 0x3000, 0x3000, TLB_INFO_LARGE);
    fill(t, TLB_SUPER, gib + 0x204000, 0x204000, TLB_INFO_LARGE);
    fill(t, TLB_SUPER, high + 0x5000, 0x5000, TLB_INFO_LARGE);
    fill(t, TLB_SUPER, gib + 0x6000, 0x6000, 0);
    /* Any address within it invalidates the whole large page, whatever entries it was put in as. */
    tlbs_flush_page(t, gib + 0x1000);
    assert_false(hit(t, TLB_SUPER, gib + 0x3000));
    assert_true(hit(t, TLB_SUPER, gib + 0x6000));
    assert_true(hit(t, TLB_SUPER, high + 0x5000));
    tlbs_flush_page(t, high);
    assert_false(hit(t, TLB_SUPER, high + 0x5000));
    /* In other contexts only global ones. */
    fill(t, TLB_SUPER, high + 0x5000, 0x5000, TLB_INFO_LARGE | TLB_INFO_GLOBAL);
    fill(t, TLB_SUPER, gib + 0x3000, 0x3000, TLB_INFO_LARGE);
    tlbs_switch(t, 0x2000, 2, true);
    tlbs_flush_page(t, high);
    tlbs_flush_page(t, gib);
    tlbs_switch(t, 0x1000, 1, false);
    assert_false(hit(t, TLB_SUPER, high + 0x5000));
    assert_true(hit(t, TLB_SUPER, gib + 0x3000));
}

static void test_flush_pcid(void **state)
{
    struct tlbs *t = *state;

    tlbs_switch(t, 0x1000, 1, true);
    fill(t, TLB_USER, 0x5000, 0x9000, 0);
    tlbs_switch(t, 0x2000, 2, true);
    fill(t, TLB_USER, 0x5000, 0x9000, 0);
    tlbs_flush_pcid(t, 1);
    assert_true(hit(t, TLB_USER, 0x5000));
    tlbs_switch(t, 0x1000, 1, false);
    assert_false(hit(t, TLB_USER, 0x5000));
    tlbs_flush_pcid(t, 1); /* the current one */
    tlbs_switch(t, 0x2000, 2, false);
    assert_true(hit(t, TLB_USER, 0x5000));
}

static void test_flush_writes(void **state)
{
    struct tlbs *t = *state;

    tlbs_switch(t, 0x1000, 1, true);
    fill(t, TLB_USER, 0x5000, 0x9000, 0);
    fill(t, TLB_SUPER, 0x6000, 0x9000, TLB_INFO_GLOBAL);
    fill(t, TLB_SUPER, 0x7000, 0x8000, 0);
    tlbs_switch(t, 0x2000, 2, true);
    fill(t, TLB_SUPER_AC, 0x5000, 0x9000, 0);
    tlbs_flush_write_gpa(t, 0x9123); /* every mapping of the frame in every context */
    assert_true(hit(t, TLB_SUPER_AC, 0x5000));
    assert_false(whit(t, TLB_SUPER_AC, 0x5000));
    tlbs_switch(t, 0x1000, 1, false);
    assert_false(whit(t, TLB_USER, 0x5000));
    assert_false(whit(t, TLB_SUPER, 0x6000));
    assert_true(whit(t, TLB_SUPER, 0x7000));
    tlbs_flush_writes(t);
    assert_false(whit(t, TLB_SUPER, 0x7000));
    assert_true(hit(t, TLB_SUPER, 0x7000));
}

static void remember(struct tlbs *t, uint64_t rip)
{
    *jump_slot(t->jc, rip) = (struct jump_entry){.rip = rip, .key = 1};
}

static bool remembered(struct tlbs *t, uint64_t rip)
{
    return jump_slot(t->jc, rip)->rip == rip && jump_slot(t->jc, rip)->key;
}

/* INVLPG forgets where the page's code is, and that of an instruction reaching into it, no more. */
static void test_jumps(void **state)
{
    struct tlbs *t = *state;
    uint64_t g;

    tlbs_switch(t, 0x1000, 1, true);
    remember(t, 0x5123);
    remember(t, 0x4ffe);
    remember(t, 0x6000);
    g = gen(t);
    tlbs_flush_page(t, 0x5800);
    assert_false(remembered(t, 0x5123));
    assert_false(remembered(t, 0x4ffe));
    assert_true(remembered(t, 0x6000));
    assert_true(gen(t) == g);

    /* Data in a large mapping is no reason to forget code. */
    fill(t, TLB_USER, 0x200000, 0x200000, TLB_INFO_LARGE);
    g = t->global_gen;
    tlbs_flush_page(t, 0x5800);
    assert_true(t->global_gen == g);
    /* With code in one any page of it may have gone: everything starts afresh. */
    t->large_code |= tlb_gib(0x200000);
    tlbs_flush_page(t, 0x5800);
    assert_true(t->global_gen != g);
    g = t->global_gen;
    tlbs_flush_page(t, 0x5800);
    assert_true(t->global_gen == g);
    t->large_code |= tlb_gib(0x200000);
    tlbs_flush_page_pcid(t, 0x5800, 1);
    assert_true(t->global_gen != g);
    g = t->global_gen;
    tlbs_flush_nonglobal(t);
    assert_true(t->global_gen == g);
    tlbs_flush(t);
    assert_true(t->global_gen != g);
}

/* Where global code was found, to see later whether it still is there. */
static void test_notes(void **state)
{
    struct tlbs *t = *state;
    struct itlb *x = &t->code;
    const uint64_t high = 0xffffffff81000000;
    struct walk w = {.gpa = 0x201123, .page_shift = 21};
    uint64_t g;

    assert_true(itlb_note(x, high + 0x1123, &w));
    w.gpa = 0x3ff000;
    assert_true(itlb_note(x, high + 0x1ff000, &w)); /* the same mapping */
    assert_int_equal(x->nnotes, 1);
    w.gpa = 0x600000;
    assert_false(itlb_note(x, high, &w));
    assert_true(itlb_noted_large(x, high + 0x12345));
    assert_false(itlb_noted_large(x, high + 0x200000));
    /* A new generation for INVLPG of a large mapping with code, not for other pages. */
    w = (struct walk){.gpa = 0x5000, .page_shift = 12};
    assert_true(itlb_note(x, high + 0x400000, &w));
    g = t->global_gen;
    tlbs_flush_page(t, high + 0x400000);
    tlbs_flush_page(t, high + 0x200000);
    tlbs_flush_data(t);
    assert_true(t->global_gen == g);
    tlbs_flush_page(t, high + 0x3000);
    assert_true(t->global_gen != g);
    assert_int_equal(x->nnotes, 0);
    assert_false(itlb_noted_large(x, high));
    /* More than are kept: said so, until the next generation. */
    for (uint64_t n = 0; n < 2 << ITLB_NOTES_BITS; n++) {
        w.gpa = n << PAGE_SHIFT;
        assert_true(itlb_note(x, high + (n << PAGE_SHIFT), &w));
    }
    assert_true(x->partial);
    tlbs_flush(t);
    assert_false(x->partial);
    assert_int_equal(x->nnotes, 0);
}

static void test_new_generations(void **state)
{
    struct tlbs *t = *state;
    uint64_t a, b;

    tlbs_switch(t, 0x1000, 1, true);
    fill(t, TLB_USER, 0x5000, 0x9000, 0);
    a = gen(t);
    tlbs_switch(t, 0x2000, 2, true);
    b = gen(t);
    tlbs_new_gens(t);
    assert_true(gen(t) != b && gen(t) != a);
    tlbs_switch(t, 0x1000, 1, false);
    assert_true(gen(t) != a);
    assert_true(hit(t, TLB_USER, 0x5000));
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_contexts),     T(test_flush_keeps_global),  T(test_more_contexts_than_there_are),
        T(test_flush_page),   T(test_flush_page_of_large), T(test_flush_pcid),
        T(test_flush_writes), T(test_new_generations),     T(test_jumps),
        T(test_notes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
