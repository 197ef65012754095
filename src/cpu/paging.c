#include <assert.h>
#include <stdatomic.h>
#include <string.h>

#include "cpu/paging.h"

/* Bits that all formats of entry share. */
#define PTE_W BIT(1)
#define PTE_U BIT(2)
#define PTE_A BIT(5)
#define PTE_D BIT(6)
#define PTE_PS BIT(7)
#define PTE_G BIT(8)
#define PTE_NX BIT(63)
#define PTE_ADDR 0x000ffffffffff000ull

/* PAE page-directory-pointer entry: bits that must be 0 besides those above maxphys. */

/* Permission of a walk that does not use the guest's tables. */
static void identity(uint64_t la, struct walk *w)
{
    *w = (struct walk){
        .gpa = la & 0xffffffff,
        .page_shift = 12,
        .user = true,
        .write = true,
        .dirty = true,
    };
}

void paging_init(struct paging *p, const struct cpu_state *s, unsigned maxphys, bool gbpages)
{
    p->cr3 = s->cr3;
    p->levels = !(s->cr0 & CR0_PG) ? 0 : !(s->cr4 & CR4_PAE) ? 2 : s->efer & EFER_LMA ? 4 : 3;
    p->rsvd = PTE_ADDR & ~(BIT(maxphys) - 1);
    p->nxe = p->levels >= 3 && (s->efer & EFER_NXE);
    p->wp = s->cr0 & CR0_WP;
    p->smep = s->cr4 & CR4_SMEP;
    p->smap = s->cr4 & CR4_SMAP;
    p->pse = s->cr4 & CR4_PSE;
    p->pge = s->cr4 & CR4_PGE;
    p->gbpages = gbpages;
}

/* One entry that the walk read: where it is, what it was. */
struct step {
    uint64_t gpa, e;
};

/* Reads the entry of `size` bytes at gpa, which is aligned to it. */
static inline uint64_t entry_load(const struct p2m *mem, uint64_t gpa, unsigned size)
{
    uint64_t frame = p2m_get(mem, gpa >> PAGE_SHIFT);

    if (unlikely(!(frame & P2M_PRESENT)))
        return frame & P2M_BALLOONED ? 0 : size == 8 ? ~0ull : 0xffffffff;
    uint8_t *at = p2m_host(frame) + (gpa & PAGE_MASK);
    if (size == 8)
        return atomic_load_explicit((_Atomic uint64_t *)at, memory_order_relaxed);
    return atomic_load_explicit((_Atomic uint32_t *)at, memory_order_relaxed);
}

/* Sets bits in the entry if it still is what the walk saw; false if another processor was faster,
 * and the walk must start again. A store to ROM is dropped as any other. */
static bool entry_set(struct p2m *mem, const struct step *st, uint64_t set, unsigned size,
                      struct walk *w)
{
    uint64_t gfn = st->gpa >> PAGE_SHIFT, frame = p2m_get(mem, gfn);

    if (!(frame & P2M_PRESENT))
        return false;
    if (frame & P2M_READONLY)
        return true;
    assert(!(frame & P2M_COW));
    uint8_t *at = p2m_host(frame) + (st->gpa & PAGE_MASK);
    if (size == 8) {
        uint64_t old = st->e;
        if (!atomic_compare_exchange_strong((_Atomic uint64_t *)at, &old, old | set))
            return false;
    } else {
        uint32_t old = (uint32_t)st->e;
        if (!atomic_compare_exchange_strong((_Atomic uint32_t *)at, &old, old | (uint32_t)set))
            return false;
    }
    /* After the store: a dirty log fetched in between then holds the frame the next time. */
    frame = p2m_get(mem, gfn);
    if (!(frame & P2M_DIRTY))
        frame = p2m_set_flags(mem, gfn, P2M_DIRTY);
    if (frame & P2M_CODE && w->ncode < ARRAY_LEN(w->code_gpa))
        w->code_gpa[w->ncode++] = st->gpa;
    return true;
}

/* The error-code bits that do not depend on the tables. */
static inline uint32_t error_base(const struct paging *p, enum access a, bool user)
{
    return (a == ACCESS_WRITE ? PF_W : 0) | (user ? PF_U : 0) |
           (a == ACCESS_EXEC && (p->nxe || p->smep) ? PF_I : 0);
}

static inline bool allowed(const struct paging *p, const struct walk *w, enum access a, bool user,
                           bool ac)
{
    if (user) {
        if (!w->user)
            return false;
        return a == ACCESS_WRITE ? w->write : a == ACCESS_EXEC ? !w->nx : true;
    }
    if (a == ACCESS_EXEC)
        return !w->nx && !(p->smep && w->user);
    if (p->smap && w->user && !ac)
        return false;
    return a == ACCESS_READ || w->write || !p->wp;
}

/* What a walk is for. */
enum purpose { TRANSLATE, PEEK, PROBE };

enum outcome { WALK_OK, WALK_FAULT, WALK_AGAIN };

static enum outcome finish(const struct paging *p, struct p2m *mem, const struct step *st,
                           unsigned n, unsigned size, enum access a, bool user, bool ac,
                           enum purpose purpose, struct walk *w)
{
    uint64_t all = ~0ull, leaf = st[n - 1].e;

    if (purpose == PROBE)
        return WALK_OK;
    if (unlikely(!allowed(p, w, a, user, ac))) {
        w->error = error_base(p, a, user) | PF_P;
        return WALK_FAULT;
    }
    if (purpose == PEEK)
        return WALK_OK;
    for (unsigned i = 0; i < n; i++)
        all &= st[i].e;
    if (likely((all & PTE_A) && (a != ACCESS_WRITE || (leaf & PTE_D))))
        return WALK_OK;
    /* Only a walk that succeeds sets accessed bits, from the root down. */
    for (unsigned i = 0; i < n; i++) {
        uint64_t set = PTE_A | (a == ACCESS_WRITE && i == n - 1 ? PTE_D : 0);
        if ((st[i].e & set) != set && !entry_set(mem, &st[i], set, size, w))
            return WALK_AGAIN;
    }
    w->dirty |= a == ACCESS_WRITE;
    return WALK_OK;
}

/* PAE and 4-level tables: entries of 8 bytes, 9 bits of address each. */
static enum outcome walk_long(const struct paging *p, struct p2m *mem, uint64_t la, enum access a,
                              bool user, bool ac, unsigned levels, enum purpose purpose,
                              struct walk *w)
{
    /* Bits 62..52 are ignored in long mode and reserved in PAE mode. */
    const uint64_t rsvd = p->rsvd | (p->nxe ? 0 : PTE_NX) | (levels == 3 ? 0x7ffull << 52 : 0);
    struct step st[4];
    uint64_t table, and = ~0ull, or = 0;
    unsigned n = 0, level;

    if (levels == 4) {
        table = p->cr3 & PTE_ADDR;
        level = 4;
    } else {
        uint64_t pdpte = p->pdpte[la >> 30 & 3];
        if (!(pdpte & PTE_P)) {
            w->error = error_base(p, a, user);
            return WALK_FAULT;
        }
        table = pdpte & PTE_ADDR;
        level = 2;
    }
    for (;; level--) {
        const unsigned shift = 3 + 9 * level; /* 39, 30, 21, 12 */
        uint64_t gpa = table + (la >> shift & 511) * 8, e = entry_load(mem, gpa, 8), must0 = rsvd;
        bool is_leaf = level == 1;

        st[n++] = (struct step){gpa, e};
        if (unlikely(!(e & PTE_P))) {
            w->error = error_base(p, a, user);
            return WALK_FAULT;
        }
        if (level == 4) {
            must0 |= PTE_PS;
        } else if (level > 1 && (e & PTE_PS)) {
            /* Bit 12 is PAT; the address bits below the page size are reserved. */
            must0 |= level == 3 && !p->gbpages ? PTE_PS : (BIT(shift) - 1) & ~0x1fffull;
            is_leaf = true;
        }
        if (unlikely(e & must0)) {
            w->error = error_base(p, a, user) | PF_P | PF_RSVD;
            return WALK_FAULT;
        }
        and &= e;
        or |= e;
        if (is_leaf) {
            uint64_t mask = BIT(shift) - 1;
            w->gpa = (e & PTE_ADDR & ~mask) | (la & mask);
            w->page_shift = (uint8_t)shift;
            w->user = and&PTE_U;
            w->write = and&PTE_W;
            w->nx = or &PTE_NX;
            w->global = p->pge && (e & PTE_G);
            w->dirty = e & PTE_D;
            return finish(p, mem, st, n, 8, a, user, ac, purpose, w);
        }
        table = e & PTE_ADDR;
    }
}

/* 32-bit tables: entries of 4 bytes, 10 bits of address each, 4 MiB pages with PSE (-36). */
static enum outcome walk_short(const struct paging *p, struct p2m *mem, uint64_t la, enum access a,
                               bool user, bool ac, enum purpose purpose, struct walk *w)
{
    struct step st[2];
    uint64_t gpa = (p->cr3 & 0xfffff000) + (la >> 22 & 1023) * 4, e = entry_load(mem, gpa, 4);
    uint64_t and = e;
    unsigned n = 1, shift = 22;

    st[0] = (struct step){gpa, e};
    if (!(e & PTE_P)) {
        w->error = error_base(p, a, user);
        return WALK_FAULT;
    }
    if (p->pse && (e & PTE_PS)) {
        uint64_t base = (e & 0xffc00000) | (e >> 13 & 0xff) << 32;
        if ((base & p->rsvd) || (e & BIT(21))) {
            w->error = error_base(p, a, user) | PF_P | PF_RSVD;
            return WALK_FAULT;
        }
        w->gpa = base | (la & 0x3fffff);
    } else {
        gpa = (e & 0xfffff000) + (la >> 12 & 1023) * 4;
        e = entry_load(mem, gpa, 4);
        st[n++] = (struct step){gpa, e};
        if (!(e & PTE_P)) {
            w->error = error_base(p, a, user);
            return WALK_FAULT;
        }
        and &= e;
        shift = 12;
        w->gpa = (e & 0xfffff000) | (la & 0xfff);
    }
    w->page_shift = (uint8_t)shift;
    w->user = and&PTE_U;
    w->write = and&PTE_W;
    w->nx = false;
    w->global = p->pge && (e & PTE_G);
    w->dirty = e & PTE_D;
    return finish(p, mem, st, n, 4, a, user, ac, purpose, w);
}

static enum outcome walk_once(const struct paging *p, struct p2m *mem, uint64_t la, enum access a,
                              bool user, bool ac, enum purpose purpose, struct walk *w)
{
    if (p->levels == 4)
        return walk_long(p, mem, la, a, user, ac, 4, purpose, w);
    la &= 0xffffffff;
    if (p->levels == 3)
        return walk_long(p, mem, la, a, user, ac, 3, purpose, w);
    if (p->levels == 2)
        return walk_short(p, mem, la, a, user, ac, purpose, w);
    identity(la, w);
    return WALK_OK;
}

/*
 * What nearly every TLB refill is: 4 levels, a page of 4 KiB or 2 MiB, accessed bits already set,
 * access allowed. False for anything else, with nothing changed: the full walk sorts that out.
 */
static inline bool walk_common(const struct paging *p, const struct p2m *mem, uint64_t la,
                               enum access a, bool user, bool ac, struct walk *w)
{
    const uint64_t rsvd = p->rsvd | (p->nxe ? 0 : PTE_NX), want = PTE_P | PTE_A;
    uint64_t e4, e3, e2, leaf, mask = BIT(21) - 1;

    e4 = entry_load(mem, (p->cr3 & PTE_ADDR) + (la >> 39 & 511) * 8, 8);
    if ((e4 & (rsvd | PTE_PS | want)) != want)
        return false;
    e3 = entry_load(mem, (e4 & PTE_ADDR) + (la >> 30 & 511) * 8, 8);
    if ((e3 & (rsvd | PTE_PS | want)) != want)
        return false;
    e2 = entry_load(mem, (e3 & PTE_ADDR) + (la >> 21 & 511) * 8, 8);
    leaf = e2;
    if (!(e2 & PTE_PS)) {
        if ((e2 & (rsvd | want)) != want)
            return false;
        mask = PAGE_MASK;
        leaf = entry_load(mem, (e2 & PTE_ADDR) + (la >> 12 & 511) * 8, 8);
    }
    if ((leaf & (rsvd | want | (mask & ~0x1fffull))) != want ||
        (a == ACCESS_WRITE && !(leaf & PTE_D)))
        return false;

    uint64_t all = e4 & e3 & e2 & leaf;
    w->gpa = (leaf & PTE_ADDR & ~mask) | (la & mask);
    w->page_shift = mask == PAGE_MASK ? 12 : 21;
    w->user = all & PTE_U;
    w->write = all & PTE_W;
    w->nx = (e4 | e3 | e2 | leaf) & PTE_NX;
    w->global = p->pge && (leaf & PTE_G);
    w->dirty = leaf & PTE_D;
    return allowed(p, w, a, user, ac);
}

bool paging_walk(const struct paging *p, struct p2m *mem, uint64_t la, enum access a, bool user,
                 bool ac, struct walk *w)
{
    enum outcome o;

    w->ncode = 0;
    w->error = 0;
    if (likely(p->levels == 4 && walk_common(p, mem, la, a, user, ac, w)))
        return true;
    do
        o = walk_once(p, mem, la, a, user, ac, TRANSLATE, w);
    while (o == WALK_AGAIN);
    return o == WALK_OK;
}

bool paging_peek(const struct paging *p, struct p2m *mem, uint64_t la, enum access a, bool user,
                 bool ac, struct walk *w)
{
    w->ncode = 0;
    w->error = 0;
    if (likely(p->levels == 4 && walk_common(p, mem, la, a, user, ac, w)))
        return true;
    return walk_once(p, mem, la, a, user, ac, PEEK, w) == WALK_OK;
}

bool paging_probe(const struct paging *p, struct p2m *mem, uint64_t la, struct walk *w)
{
    w->ncode = 0;
    w->error = 0;
    return walk_once(p, mem, la, ACCESS_READ, false, false, PROBE, w) == WALK_OK;
}

bool paging_load_pdptes(struct paging *p, struct p2m *mem)
{
    uint64_t pdpte[4];

    for (unsigned i = 0; i < 4; i++) {
        pdpte[i] = entry_load(mem, (p->cr3 & 0xffffffe0) + i * 8, 8);
        if ((pdpte[i] & PTE_P) && (pdpte[i] & (PDPTE_RSVD | p->rsvd)))
            return false;
    }
    memcpy(p->pdpte, pdpte, sizeof(pdpte));
    return true;
}
