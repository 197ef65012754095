/* The page walk: against a model on random tables, then every kind of fault by hand. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "cpu/cpuid.h"
#include "cpu/paging.h"
#include "guest.h"
#include "paging_model.h"
#include "rng.h"

#define P 1ull
#define W 2ull
#define U 4ull
#define A 0x20ull
#define D 0x40ull
#define PS 0x80ull
#define G 0x100ull
#define NX BIT(63)

/* ---- random ---- */

struct world {
    struct guest g;
    struct model m;
    enum frame_kind kind[GUEST_FRAMES];
    bool wrote[GUEST_FRAMES];
    bool code[GUEST_FRAMES];
    uint8_t copy[GUEST_FRAMES * 4096];
    struct rng r;
};

static uint64_t random_frame(struct rng *r)
{
    return rng_chance(r, 97) ? rng_below(r, GUEST_FRAMES) : rng_below(r, 1u << 28);
}

static uint64_t random_entry(struct rng *r, bool wide)
{
    uint64_t e = random_frame(r) << 12;

    e |= rng_chance(r, 95) ? P : 0;
    e |= rng_chance(r, 85) ? W : 0;
    e |= rng_chance(r, 80) ? U : 0;
    e |= rng_chance(r, 60) ? A : 0;
    e |= rng_chance(r, 50) ? D : 0;
    e |= rng_chance(r, 20) ? G : 0;
    e |= rng_next(r) & 0xe18; /* PWT, PCD, ignored */
    if (rng_chance(r, 12))
        e = (e & 0xfff) | PS | (rng_chance(r, 80) ? rng_below(r, 64) << 30 : e);
    if (!wide)
        return e & 0xffffffff;
    e |= rng_chance(r, 10) ? NX : 0;
    if (rng_chance(r, 20))
        e |= rng_next(r) & 0x7ff0000000000000; /* ignored or reserved, by mode */
    if (rng_chance(r, 2))
        e |= BIT(40 + rng_below(r, 12)); /* above maxphys */
    return e;
}

static void random_world(struct world *w)
{
    struct rng *r = &w->r;
    bool wide = rng_chance(r, 70);

    for (unsigned f = 0; f < GUEST_FRAMES; f++) {
        uint64_t flags = 0, host = (uintptr_t)w->g.mem + f * 4096ull;

        for (unsigned i = 0; i < 4096; i += 8) {
            uint64_t e = random_entry(r, wide);
            guest_set64(&w->g, f * 4096ull + i, wide ? e : e | random_entry(r, false) << 32);
        }
        w->kind[f] = rng_chance(r, 92)   ? FRAME_RAM
                     : rng_chance(r, 50) ? FRAME_ROM
                     : rng_chance(r, 50) ? FRAME_NONE
                                         : FRAME_BALLOONED;
        w->code[f] = rng_chance(r, 20);
        w->wrote[f] = false;
        flags = w->kind[f] == FRAME_RAM   ? P2M_PRESENT
                : w->kind[f] == FRAME_ROM ? P2M_PRESENT | P2M_READONLY
                                          : 0;
        flags |= w->code[f] && flags ? P2M_CODE : 0;
        w->g.p2m.e[f] = flags ? host | flags : w->kind[f] == FRAME_BALLOONED ? P2M_BALLOONED : 0;
    }
    memcpy(w->copy, w->g.mem, sizeof(w->copy));
}

static void random_control(struct world *w, struct cpu_state *s)
{
    struct rng *r = &w->r;

    memset(s, 0, sizeof(*s));
    s->cr0 = CR0_PE | (rng_chance(r, 98) ? CR0_PG : 0) | (rng_chance(r, 50) ? CR0_WP : 0);
    s->cr4 = (rng_chance(r, 70) ? CR4_PAE : 0) | (rng_chance(r, 60) ? CR4_PSE : 0) |
             (rng_chance(r, 50) ? CR4_PGE : 0) | (rng_chance(r, 40) ? CR4_SMEP : 0) |
             (rng_chance(r, 40) ? CR4_SMAP : 0);
    s->efer = rng_chance(r, 70) ? EFER_NXE : 0;
    if ((s->cr4 & CR4_PAE) && (s->cr0 & CR0_PG) && rng_chance(r, 60))
        s->efer |= EFER_LME | EFER_LMA;
    s->cr3 = random_frame(r) << 12 | (rng_next(r) & 0xfff);
    if (!(s->efer & EFER_LMA))
        s->cr3 &= 0xffffffff;
    w->m = (struct model){
        .cr0 = s->cr0,
        .cr3 = s->cr3,
        .cr4 = s->cr4,
        .efer = s->efer,
        .maxphys = (unsigned)(36 + rng_below(r, 17)),
        .gbpages = rng_chance(r, 70),
        .mem = w->copy,
        .frames = GUEST_FRAMES,
        .kind = w->kind,
        .wrote = w->wrote,
    };
}

static void compare(const struct world *w, const struct walk *got, bool ok,
                    const struct model_result *want)
{
    assert_int_equal(ok, want->ok);
    if (!ok) {
        assert_int_equal(got->error, want->error);
        return;
    }
    assert_int_equal(got->error, 0);
    assert_int_equal(got->gpa, want->gpa);
    assert_int_equal(got->page_shift, want->shift);
    assert_int_equal(got->user, want->user);
    assert_int_equal(got->write, want->write);
    assert_int_equal(got->nx, want->nx);
    assert_int_equal(got->global, want->global);
    assert_int_equal(got->dirty, want->dirty);

    unsigned n = 0;
    for (unsigned i = 0; i < want->nwrites; i++)
        if (w->code[want->writes[i] / 4096])
            assert_int_equal(got->code_gpa[n++], want->writes[i]);
    assert_int_equal(got->ncode, n);
}

static void compare_memory(const struct world *w)
{
    assert_memory_equal(w->g.mem, w->copy, sizeof(w->copy));
    for (unsigned f = 0; f < GUEST_FRAMES; f++)
        assert_int_equal(!!(w->g.p2m.e[f] & P2M_DIRTY), w->wrote[f]);
}

/* PAE pointers have few free bits: make some that can be loaded. */
static void plant_pdptes(struct world *w, uint64_t cr3)
{
    uint64_t at = cr3 & 0xffffffe0;

    if (at >= GUEST_FRAMES * 4096ull)
        return;
    for (unsigned i = 0; i < 4; i++) {
        uint64_t e = rng_below(&w->r, GUEST_FRAMES) << 12 | (rng_chance(&w->r, 90) ? P : 0);
        if (rng_chance(&w->r, 5))
            e |= BIT(rng_below(&w->r, 64));
        guest_set64(&w->g, at + i * 8, e);
        memcpy(w->copy + at + i * 8, &e, 8);
    }
}

static void test_random(void **state)
{
    static struct world w;
    unsigned ok = 0, faults[32] = {0}, levels[5] = {0}, large = 0;

    (void)state;
    guest_init(&w.g);
    w.r.x = 20240607;
    for (unsigned round = 0; round < 600; round++) {
        random_world(&w);
        for (unsigned c = 0; c < 60; c++) {
            struct cpu_state s;
            struct paging p;

            random_control(&w, &s);
            paging_init(&p, &s, w.m.maxphys, w.m.gbpages);
            levels[p.levels]++;
            if (p.levels == 3) {
                plant_pdptes(&w, s.cr3);
                bool loaded = paging_load_pdptes(&p, &w.g.p2m);
                assert_int_equal(loaded, model_load_pdptes(&w.m));
                if (!loaded)
                    continue;
            }
            for (unsigned i = 0; i < 60; i++) {
                uint64_t la = rng_next(&w.r);
                enum access a = (enum access)rng_below(&w.r, 3);
                bool user = rng_chance(&w.r, 50), ac = !user && rng_chance(&w.r, 50);
                struct model_result want;
                struct walk got;

                la = p.levels == 4 ? sext(la, 48) : la;
                want = model_probe(&w.m, la);
                bool got_ok = paging_probe(&p, &w.g.p2m, la, &got);
                if (want.ok || got_ok) {
                    compare(&w, &got, got_ok, &want);
                } else {
                    assert_int_equal(got.error & (PF_P | PF_RSVD), want.error & (PF_P | PF_RSVD));
                }
                want = model_walk(&w.m, la, a, user, ac);
                got_ok = paging_walk(&p, &w.g.p2m, la, a, user, ac, &got);
                compare(&w, &got, got_ok, &want);
                if (got_ok) {
                    ok++;
                    large += got.page_shift > 12;
                } else {
                    faults[got.error & 31]++;
                }
            }
        }
        compare_memory(&w);
    }
    guest_fini(&w.g);
    /* The generator must reach what it is meant to. */
    assert_true(ok > 300000 && large > 50000);
    for (unsigned i = 0; i < 5; i++)
        assert_true(i == 1 || levels[i] > 500);
    static const uint8_t kinds[] = {0, 1, 2, 3, 4, 5, 6, 7, 9, 11, 13, 15, 16, 17, 20, 21, 25, 29};
    for (unsigned i = 0; i < sizeof(kinds); i++)
        assert_true(faults[kinds[i]] > 100);
}

/* ---- by hand ---- */

/* One translation la 0x00007f8012345678 (4 levels) or 0xc0abcdef: tables in frames 1.., page in 8.
 */
struct hand {
    struct guest g;
    struct cpu_state s;
    struct paging p;
    struct walk w;
    unsigned maxphys;
    bool gbpages;
};

#define LA 0x00007f8012345678ull
#define PML4E (0x1000 + (LA >> 39 & 511) * 8)
#define PDPTE (0x2000 + (LA >> 30 & 511) * 8)
#define PDE (0x3000 + (LA >> 21 & 511) * 8)
#define PTE (0x4000 + (LA >> 12 & 511) * 8)

static int hand_setup(void **state)
{
    struct hand *h = calloc(1, sizeof(*h));

    guest_init(&h->g);
    h->s.cr0 = CR0_PE | CR0_PG | CR0_WP;
    h->s.cr3 = 0x1000;
    h->s.cr4 = CR4_PAE | CR4_PGE;
    h->s.efer = EFER_LME | EFER_LMA | EFER_NXE;
    h->maxphys = 40;
    h->gbpages = true;
    guest_set64(&h->g, PML4E, 0x2000 | P | W | U);
    guest_set64(&h->g, PDPTE, 0x3000 | P | W | U);
    guest_set64(&h->g, PDE, 0x4000 | P | W | U);
    guest_set64(&h->g, PTE, 0x8000 | P | W | U);
    *state = h;
    return 0;
}

static int hand_teardown(void **state)
{
    struct hand *h = *state;

    guest_fini(&h->g);
    free(h);
    return 0;
}

static bool go_at(struct hand *h, uint64_t la, enum access a, bool user, bool ac)
{
    uint64_t pdpte[4];

    memcpy(pdpte, h->p.pdpte, sizeof(pdpte));
    paging_init(&h->p, &h->s, h->maxphys, h->gbpages);
    assert_memory_equal(pdpte, h->p.pdpte, sizeof(pdpte));
    return paging_walk(&h->p, &h->g.p2m, la, a, user, ac, &h->w);
}

static bool go(struct hand *h, enum access a, bool user) { return go_at(h, LA, a, user, false); }

static void expect_fault(struct hand *h, enum access a, bool user, uint32_t error)
{
    uint64_t before[4] = {guest_get64(&h->g, PML4E), guest_get64(&h->g, PDPTE),
                          guest_get64(&h->g, PDE), guest_get64(&h->g, PTE)};

    assert_false(go(h, a, user));
    assert_int_equal(h->w.error, error);
    /* A walk that faults leaves no trace. */
    assert_int_equal(guest_get64(&h->g, PML4E), before[0]);
    assert_int_equal(guest_get64(&h->g, PDPTE), before[1]);
    assert_int_equal(guest_get64(&h->g, PDE), before[2]);
    assert_int_equal(guest_get64(&h->g, PTE), before[3]);
}

static void test_accessed_dirty(void **state)
{
    struct hand *h = *state;

    assert_true(go(h, ACCESS_READ, true));
    assert_int_equal(h->w.gpa, 0x8678);
    assert_int_equal(h->w.page_shift, 12);
    assert_true(h->w.user && h->w.write && !h->w.nx && !h->w.global && !h->w.dirty);
    assert_int_equal(guest_get64(&h->g, PML4E), 0x2000 | P | W | U | A);
    assert_int_equal(guest_get64(&h->g, PDPTE), 0x3000 | P | W | U | A);
    assert_int_equal(guest_get64(&h->g, PDE), 0x4000 | P | W | U | A);
    assert_int_equal(guest_get64(&h->g, PTE), 0x8000 | P | W | U | A);

    assert_true(go(h, ACCESS_WRITE, true));
    assert_true(h->w.dirty);
    assert_int_equal(guest_get64(&h->g, PDE), 0x4000 | P | W | U | A); /* D in the leaf only */
    assert_int_equal(guest_get64(&h->g, PTE), 0x8000 | P | W | U | A | D);
    assert_true(go(h, ACCESS_READ, true));
    assert_true(h->w.dirty);
}

static void test_dirty_log_and_code(void **state)
{
    struct hand *h = *state;

    p2m_set_flags(&h->g.p2m, 3, P2M_CODE);
    assert_true(go(h, ACCESS_READ, false));
    for (unsigned f = 1; f <= 4; f++)
        assert_true(p2m_get(&h->g.p2m, f) & P2M_DIRTY);
    assert_false(p2m_get(&h->g.p2m, 8) & P2M_DIRTY); /* the page itself is the caller's */
    assert_int_equal(h->w.ncode, 1);
    assert_int_equal(h->w.code_gpa[0], PDE);

    for (unsigned f = 1; f <= 4; f++)
        p2m_clear_flags(&h->g.p2m, f, P2M_DIRTY);
    assert_true(go(h, ACCESS_READ, false)); /* nothing left to set, nothing written */
    assert_int_equal(h->w.ncode, 0);
    for (unsigned f = 1; f <= 4; f++)
        assert_false(p2m_get(&h->g.p2m, f) & P2M_DIRTY);
}

static void test_not_present(void **state)
{
    struct hand *h = *state;
    static const uint64_t at[] = {PML4E, PDPTE, PDE, PTE};

    for (unsigned i = 0; i < 4; i++) {
        uint64_t e = guest_get64(&h->g, at[i]);
        guest_set64(&h->g, at[i], ~P); /* nothing else counts */
        expect_fault(h, ACCESS_READ, false, 0);
        expect_fault(h, ACCESS_WRITE, false, PF_W);
        expect_fault(h, ACCESS_EXEC, false, PF_I);
        expect_fault(h, ACCESS_READ, true, PF_U);
        expect_fault(h, ACCESS_WRITE, true, PF_W | PF_U);
        expect_fault(h, ACCESS_EXEC, true, PF_U | PF_I);
        guest_set64(&h->g, at[i], e);
    }
}

/* The I bit of the error code exists with NXE or SMEP only. */
static void test_fetch_bit(void **state)
{
    struct hand *h = *state;

    guest_set64(&h->g, PTE, 0);
    h->s.efer &= ~EFER_NXE;
    expect_fault(h, ACCESS_EXEC, true, PF_U);
    h->s.cr4 |= CR4_SMEP;
    expect_fault(h, ACCESS_EXEC, true, PF_U | PF_I);
}

static void test_user_supervisor(void **state)
{
    struct hand *h = *state;
    static const uint64_t at[] = {PML4E, PDPTE, PDE, PTE};

    for (unsigned i = 0; i < 4; i++) {
        uint64_t e = guest_get64(&h->g, at[i]);
        guest_set64(&h->g, at[i], e & ~U);
        expect_fault(h, ACCESS_READ, true, PF_P | PF_U);
        expect_fault(h, ACCESS_WRITE, true, PF_P | PF_U | PF_W);
        expect_fault(h, ACCESS_EXEC, true, PF_P | PF_U | PF_I);
        assert_true(go(h, ACCESS_WRITE, false));
        assert_false(h->w.user);
        guest_set64(&h->g, at[i], e);
    }
}

static void test_write_protect(void **state)
{
    struct hand *h = *state;
    static const uint64_t at[] = {PML4E, PDPTE, PDE, PTE};

    for (unsigned i = 0; i < 4; i++) {
        uint64_t e = guest_get64(&h->g, at[i]);
        guest_set64(&h->g, at[i], e & ~W);
        h->s.cr0 |= CR0_WP;
        expect_fault(h, ACCESS_WRITE, false, PF_P | PF_W);
        expect_fault(h, ACCESS_WRITE, true, PF_P | PF_W | PF_U);
        assert_true(go(h, ACCESS_READ, true));
        assert_false(h->w.write);
        h->s.cr0 &= ~CR0_WP;
        expect_fault(h, ACCESS_WRITE, true, PF_P | PF_W | PF_U);
        assert_true(go(h, ACCESS_WRITE, false));
        assert_true(h->w.dirty && !h->w.write);
        guest_set64(&h->g, at[i], e);
    }
}

static void test_execute_disable(void **state)
{
    struct hand *h = *state;
    static const uint64_t at[] = {PML4E, PDPTE, PDE, PTE};

    for (unsigned i = 0; i < 4; i++) {
        uint64_t e = guest_get64(&h->g, at[i]);
        guest_set64(&h->g, at[i], e | NX);
        h->s.efer |= EFER_NXE;
        expect_fault(h, ACCESS_EXEC, false, PF_P | PF_I);
        expect_fault(h, ACCESS_EXEC, true, PF_P | PF_I | PF_U);
        assert_true(go(h, ACCESS_READ, true));
        assert_true(h->w.nx);
        h->s.efer &= ~EFER_NXE; /* then the bit is reserved */
        expect_fault(h, ACCESS_READ, false, PF_P | PF_RSVD);
        expect_fault(h, ACCESS_EXEC, true, PF_P | PF_RSVD | PF_U);
        guest_set64(&h->g, at[i], e);
    }
}

static void test_smep_smap(void **state)
{
    struct hand *h = *state;

    h->s.cr4 |= CR4_SMEP;
    expect_fault(h, ACCESS_EXEC, false, PF_P | PF_I);
    assert_true(go(h, ACCESS_EXEC, true));
    assert_true(go(h, ACCESS_READ, false));
    h->s.cr4 |= CR4_SMAP;
    expect_fault(h, ACCESS_READ, false, PF_P);
    expect_fault(h, ACCESS_WRITE, false, PF_P | PF_W);
    assert_true(go_at(h, LA, ACCESS_READ, false, true));
    assert_true(go_at(h, LA, ACCESS_WRITE, false, true));
    assert_true(go(h, ACCESS_WRITE, true));
    h->s.cr0 &= ~CR0_WP; /* does not lift SMAP */
    expect_fault(h, ACCESS_WRITE, false, PF_P | PF_W);
    guest_set64(&h->g, PDE, guest_get64(&h->g, PDE) & ~U);
    assert_true(go(h, ACCESS_EXEC, false)); /* a supervisor page */
    assert_true(go(h, ACCESS_WRITE, false));
}

static void test_reserved(void **state)
{
    struct hand *h = *state;
    static const struct {
        uint64_t at, bits;
    } bad[] = {
        {PML4E, PS},    {PML4E, BIT(40)}, {PML4E, BIT(51)}, {PDPTE, BIT(40)}, {PDE, BIT(45)},
        {PTE, BIT(40)}, {PTE, BIT(51)},   {PDPTE, PS}, /* 1 GiB page, address 0x3000 is not aligned
                                                        */
        {PDE, PS},
    };
    static const struct {
        uint64_t at, bits;
    } good[] = {
        {PML4E, G}, {PML4E, D}, {PTE, PS}, {PTE, BIT(52)}, {PDE, BIT(62)}, {PML4E, 0xe18}, {PDE, G},
    };

    for (unsigned i = 0; i < ARRAY_LEN(bad); i++) {
        uint64_t e = guest_get64(&h->g, bad[i].at);
        guest_set64(&h->g, bad[i].at, e | bad[i].bits);
        expect_fault(h, ACCESS_READ, false, PF_P | PF_RSVD);
        expect_fault(h, ACCESS_WRITE, true, PF_P | PF_RSVD | PF_W | PF_U);
        guest_set64(&h->g, bad[i].at, e);
    }
    for (unsigned i = 0; i < ARRAY_LEN(good); i++) {
        uint64_t e = guest_get64(&h->g, good[i].at);
        guest_set64(&h->g, good[i].at, e | good[i].bits);
        assert_true(go(h, ACCESS_READ, false));
        guest_set64(&h->g, good[i].at, e);
    }
}

static void test_large(void **state)
{
    struct hand *h = *state;

    guest_set64(&h->g, PDE, 0x600000 | P | PS | G | BIT(12)); /* PAT is not an address bit */
    assert_true(go(h, ACCESS_WRITE, false));
    assert_int_equal(h->w.page_shift, 21);
    assert_int_equal(h->w.gpa, 0x600000 | (LA & 0x1fffff));
    assert_true(h->w.global && h->w.dirty && !h->w.write && !h->w.user);
}

static void test_large_pages(void **state)
{
    struct hand *h = *state;

    h->s.cr0 &= ~CR0_WP;
    test_large(state);
    assert_int_equal(guest_get64(&h->g, PDE), 0x600000 | P | PS | G | BIT(12) | A | D);
    h->s.cr4 &= ~CR4_PGE;
    assert_true(go(h, ACCESS_READ, false));
    assert_false(h->w.global);

    guest_set64(&h->g, PDPTE, 0x40000000 | P | W | U | PS);
    assert_true(go(h, ACCESS_READ, true));
    assert_int_equal(h->w.page_shift, 30);
    assert_int_equal(h->w.gpa, 0x40000000 | (LA & 0x3fffffff));
    h->gbpages = false;
    expect_fault(h, ACCESS_READ, true, PF_P | PF_RSVD | PF_U);
}

static void test_no_memory(void **state)
{
    struct hand *h = *state;

    h->s.cr3 = 0x12345000; /* all ones: the PML4E has PS set */
    expect_fault(h, ACCESS_READ, false, PF_P | PF_RSVD);
    h->s.cr3 = ~0ull >> 12 << 12 & (BIT(52) - 1); /* beyond the p2m */
    expect_fault(h, ACCESS_READ, false, PF_P | PF_RSVD);

    h->s.cr3 = 0x1000;
    h->g.p2m.e[3] = P2M_BALLOONED; /* reads as zero */
    expect_fault(h, ACCESS_READ, false, 0);
}

static void test_rom_tables(void **state)
{
    struct hand *h = *state;

    p2m_set_flags(&h->g.p2m, 4, P2M_READONLY);
    assert_true(go(h, ACCESS_WRITE, true));
    assert_int_equal(guest_get64(&h->g, PTE), 0x8000 | P | W | U);
    assert_int_equal(guest_get64(&h->g, PDE), 0x4000 | P | W | U | A);
    assert_false(p2m_get(&h->g.p2m, 4) & P2M_DIRTY);
}

static void test_pae(void **state)
{
    struct hand *h = *state;
    uint64_t pdpte = 0x20 + 3 * 8, pde = 0x3000 + (0xc0abcdefu >> 21 & 511) * 8,
             pte = 0x4000 + (0xc0abcdefu >> 12 & 511) * 8;

    h->s.efer = EFER_NXE;
    h->s.cr3 = 0x2f; /* 32-byte aligned; low bits are flags */
    guest_set64(&h->g, pdpte, 0x3000 | P);
    guest_set64(&h->g, pde, 0x4000 | P | W | U);
    guest_set64(&h->g, pte, 0x900008000 | P | W | U);
    paging_init(&h->p, &h->s, 40, false);
    assert_int_equal(h->p.levels, 3);
    assert_true(paging_load_pdptes(&h->p, &h->g.p2m));
    assert_true(go_at(h, 0xffffffffc0abcdef, ACCESS_WRITE, true, false));
    assert_int_equal(h->w.gpa, 0x900008def);
    assert_int_equal(guest_get64(&h->g, pdpte), 0x3000 | P); /* no A bit there */
    assert_int_equal(guest_get64(&h->g, pte), 0x900008000 | P | W | U | A | D);

    guest_set64(&h->g, pdpte, 0); /* the loaded copy counts */
    assert_true(go_at(h, 0xc0abcdef, ACCESS_READ, true, false));
    assert_false(go_at(h, 0x80abcdef, ACCESS_READ, true, false));
    assert_int_equal(h->w.error, PF_U);

    guest_set64(&h->g, pde, 0x4000 | P | W | U | BIT(52)); /* reserved, unlike in long mode */
    assert_false(go_at(h, 0xc0abcdef, ACCESS_READ, true, false));
    assert_int_equal(h->w.error, PF_P | PF_RSVD | PF_U);

    static const uint64_t bad[] = {1, 2, 5, 6, 7, 8, 40, 51, 52, 62, 63};
    for (unsigned i = 0; i < ARRAY_LEN(bad); i++) {
        guest_set64(&h->g, pdpte, 0x5000 | P | BIT(bad[i]));
        assert_false(paging_load_pdptes(&h->p, &h->g.p2m));
        assert_int_equal(h->p.pdpte[3], 0x3000 | P);
        guest_set64(&h->g, pdpte, 0x5000 | BIT(bad[i])); /* not present: nothing is checked */
        struct paging copy = h->p;
        assert_true(paging_load_pdptes(&copy, &h->g.p2m));
    }
    guest_set64(&h->g, pdpte, 0x5000 | P | 0xe18); /* PWT, PCD, ignored */
    assert_true(paging_load_pdptes(&h->p, &h->g.p2m));
}

static void test_32bit(void **state)
{
    struct hand *h = *state;
    uint64_t pde = 0x3000 + (0xc0abcdefu >> 22) * 4, pte = 0x4000 + (0xc0abcdefu >> 12 & 1023) * 4;

    h->s.efer = EFER_NXE;
    h->s.cr4 = CR4_PSE;
    h->s.cr3 = 0x3fff;
    guest_set32(&h->g, pde, 0x4000 | P | W | U);
    guest_set32(&h->g, pde + 4, 0xdeadbeef);
    guest_set32(&h->g, pte, 0x8000 | P | W | U);
    guest_set32(&h->g, pte + 4, 0xdeadbeef);
    assert_true(go_at(h, 0xc0abcdef, ACCESS_WRITE, true, false));
    assert_int_equal(h->w.gpa, 0x8def);
    assert_int_equal(guest_get32(&h->g, pde), 0x4000 | P | W | U | A);
    assert_int_equal(guest_get32(&h->g, pte), 0x8000 | P | W | U | A | D);
    assert_int_equal(guest_get32(&h->g, pde + 4), 0xdeadbeef);
    assert_int_equal(guest_get32(&h->g, pte + 4), 0xdeadbeef);

    guest_set32(&h->g, pte, 0);
    assert_false(go_at(h, 0xc0abcdef, ACCESS_EXEC, false, false));
    assert_int_equal(h->w.error, 0); /* no I bit: NXE means nothing without PAE */

    guest_set32(&h->g, pde, (uint32_t)(0x400000 | P | W | U | PS | 0x5u << 13)); /* PSE-36 */
    assert_true(go_at(h, 0xc0abcdef, ACCESS_READ, true, false));
    assert_int_equal(h->w.gpa, 0x500000000 | 0x400000 | 0x2bcdef);
    assert_int_equal(h->w.page_shift, 22);
    h->maxphys = 34;
    assert_false(go_at(h, 0xc0abcdef, ACCESS_READ, true, false));
    assert_int_equal(h->w.error, PF_P | PF_RSVD | PF_U);
    h->maxphys = 40;
    guest_set32(&h->g, pde, (uint32_t)(0x400000 | P | PS | BIT(21)));
    assert_false(go_at(h, 0xc0abcdef, ACCESS_READ, false, false));
    assert_int_equal(h->w.error, PF_P | PF_RSVD);

    h->s.cr4 = 0; /* PS is ignored */
    guest_set32(&h->g, pde, 0x4000 | P | W | U | PS);
    guest_set32(&h->g, pte, 0x8000 | P | W | U);
    assert_true(go_at(h, 0xc0abcdef, ACCESS_READ, true, false));
    assert_int_equal(h->w.gpa, 0x8def);
}

static void test_off(void **state)
{
    struct hand *h = *state;

    h->s.cr0 = CR0_PE | CR0_WP;
    h->s.efer = 0;
    h->s.cr4 |= CR4_SMEP | CR4_SMAP;
    assert_true(go_at(h, 0x112345678, ACCESS_WRITE, true, false));
    assert_int_equal(h->w.gpa, 0x12345678);
    assert_true(h->w.user && h->w.write && h->w.dirty && !h->w.nx && !h->w.global);
}

static void test_probe(void **state)
{
    struct hand *h = *state;

    paging_init(&h->p, &h->s, h->maxphys, true);
    guest_set64(&h->g, PTE, 0x8000 | P);
    assert_true(paging_probe(&h->p, &h->g.p2m, LA, &h->w));
    assert_int_equal(h->w.gpa, 0x8678);
    assert_false(h->w.dirty);
    assert_int_equal(guest_get64(&h->g, PTE), 0x8000 | P);
    assert_int_equal(guest_get64(&h->g, PML4E), 0x2000 | P | W | U);
    guest_set64(&h->g, PTE, 0);
    assert_false(paging_probe(&h->p, &h->g.p2m, LA, &h->w));
}

/* Another processor changes the entry all the time: none of its changes may be lost. */
struct race {
    struct hand *h;
    _Atomic bool go;
    unsigned n;
};

static void *racer(void *arg)
{
    struct race *r = arg;
    _Atomic uint64_t *e = (_Atomic uint64_t *)(r->h->g.mem + PTE);

    while (!r->go)
        ;
    for (unsigned i = 0; i < r->n; i++) {
        atomic_fetch_and(e, ~(A | D));
        atomic_fetch_add(e, BIT(52)); /* ignored bits: a counter */
    }
    r->go = false;
    return NULL;
}

static void test_race(void **state)
{
    struct hand *h = *state;
    struct race r = {.h = h, .n = 50000};
    pthread_t t;

    assert_int_equal(pthread_create(&t, NULL, racer, &r), 0);
    r.go = true;
    while (r.go) {
        assert_true(go(h, ACCESS_WRITE, true));
        assert_int_equal(h->w.gpa, 0x8678);
    }
    pthread_join(t, NULL);
    assert_int_equal(guest_get64(&h->g, PTE) >> 52, r.n & 0x7ff);
}

/* Another processor replaces the entry all the time, each time with another page. A translation to
 * a page is allowed only if the accessed bit got into the very entry that named it. */
#define VERSIONS 1000000u

struct replace {
    struct hand *h;
    _Atomic bool go;
    bool accessed[VERSIONS + 1], translated[VERSIONS + 1];
};

static void *replacer(void *arg)
{
    struct replace *r = arg;
    _Atomic uint64_t *e = (_Atomic uint64_t *)(r->h->g.mem + PTE);

    while (!r->go)
        ;
    for (uint64_t i = 1; i <= VERSIONS; i++) {
        uint64_t old = atomic_exchange(e, i << 12 | P | W | U);
        r->accessed[i - 1] = old & A;
    }
    r->go = false;
    return NULL;
}

static void test_replaced_entry(void **state)
{
    struct hand *h = *state;
    struct replace *r = calloc(1, sizeof(*r));
    pthread_t t;

    r->h = h;
    guest_set64(&h->g, PTE, P | W | U);
    assert_int_equal(pthread_create(&t, NULL, replacer, r), 0);
    r->go = true;
    while (r->go) {
        assert_true(go(h, ACCESS_READ, true));
        r->translated[h->w.gpa >> 12] = true;
    }
    pthread_join(t, NULL);
    for (unsigned i = 0; i < VERSIONS; i++)
        assert_true(!r->translated[i] || r->accessed[i]);
    free(r);
}

#define HAND(t) cmocka_unit_test_setup_teardown(t, hand_setup, hand_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random),
        HAND(test_accessed_dirty),
        HAND(test_dirty_log_and_code),
        HAND(test_not_present),
        HAND(test_fetch_bit),
        HAND(test_user_supervisor),
        HAND(test_write_protect),
        HAND(test_execute_disable),
        HAND(test_smep_smap),
        HAND(test_reserved),
        HAND(test_large_pages),
        HAND(test_no_memory),
        HAND(test_rom_tables),
        HAND(test_pae),
        HAND(test_32bit),
        HAND(test_off),
        HAND(test_probe),
        HAND(test_race),
        HAND(test_replaced_entry),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
