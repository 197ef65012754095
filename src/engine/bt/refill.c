/* What translated code calls with the guest's vector registers in place: compiled without any. */
#include "engine/bt/bt.h"
#include "engine/bt/vec.h"
#include "engine/interp/op.h"

void bt_vec_leave(struct cpu *c)
{
    if (!c->bt.level)
        return;
    c->bt.level = BT_LEVEL_NONE;
    for (unsigned k = 0; k < ARRAY_LEN(c->bt.missing); k++)
        c->bt.missing[k] = 1;
    vec_save(c);
}

static enum bt_level available(const struct cpu *c)
{
    const struct cpu_state *s = &c->s;

    if ((s->cr0 & (CR0_EM | CR0_TS)) || !(s->cr4 & CR4_OSFXSR))
        return BT_LEVEL_NONE;
    if (!(s->cr4 & CR4_OSXSAVE) || (s->xcr0 & (XCR0_SSE | XCR0_AVX)) != (XCR0_SSE | XCR0_AVX))
        return BT_LEVEL_SSE;
    return (s->xcr0 & XCR0_AVX512) == XCR0_AVX512 ? BT_LEVEL_AVX512 : BT_LEVEL_AVX;
}

bool bt_vec_enter(struct cpu *c, uint32_t site)
{
    enum bt_level level = available(c);

    if (level < c->shared->bt->site[site].span)
        return false;
    vec_load(c);
    c->bt.level = level;
    for (unsigned k = 0; k < ARRAY_LEN(c->bt.missing); k++)
        c->bt.missing[k] = k > level;
    return true;
}

/* After a read's translation: may stores go the same way, with nothing to be noted? */
static bool writable(struct cpu *c, const struct refill *r)
{
    const struct walk *w = &r->w;

    if (!w->dirty || !(w->write || (c->cpl != 3 && !c->pg.wp)))
        return false;
    if (r->ent & (P2M_READONLY | P2M_COW | P2M_CODE))
        return false;
    return (r->ent & P2M_DIRTY) && (r->ent & P2M_STORES);
}

static void stack_set(struct cpu *c, uint64_t page, uint64_t addend)
{
    c->bt.sp_npage = -page;
    c->bt.sp_addend = addend;
}

static void stack_none(struct cpu *c)
{
    uint64_t page;

    /* xorshift64: never 0, and not to be guessed from outside. */
    c->bt.secret ^= c->bt.secret << 13;
    c->bt.secret ^= c->bt.secret >> 7;
    c->bt.secret ^= c->bt.secret << 17;
    page = (c->bt.secret & ~PAGE_MASK & ~(3ull << 62)) | 1ull << 62;
    stack_set(c, page, (uint64_t)(uintptr_t)c->bt.scratch - page);
}

void bt_stack_check(struct cpu *c)
{
    uint64_t page = -c->bt.sp_npage;
    const struct tlb_entry *e = tlb_slot(c->tlb, page);

    if (e->wtag != page || e->addend != c->bt.sp_addend)
        stack_none(c);
}

const uint8_t *bt_refill(struct cpu *c, uint32_t n, uint64_t la)
{
    const struct bt *bt = c->shared->bt;
    const struct bt_site *s = &bt->site[n];
    uint64_t page = la & ~PAGE_MASK;
    struct tlb_entry *e;
    struct refill r;

    e = tlb_slot(c->tlb, la);
    if (s->stack && e->wtag == page && (la & PAGE_MASK) + s->span <= PAGE_SIZE) {
        stack_set(c, page, e->addend);
        return bt_host(bt, s->retry);
    }
    if ((la & PAGE_MASK) + s->span > PAGE_SIZE) {
        if (s->group)
            bt_site_of(s)->crossed++;
        return NULL;
    }
    if (!is_canonical(la) || c->tlb == c->no_tlb)
        return NULL;
    /* It will fault without having touched the page tables. */
    if (s->align && (la + s->adj) & (s->align - 1u))
        return NULL;
    if (!tlb_refill(c, la, s->kind == BT_SITE_WRITE ? ACCESS_WRITE : ACCESS_READ, PRIV_CPL, &r) ||
        r.w.ncode) {
        if (r.w.ncode) {
            bt_vec_leave(c);
            mem_walked(c, &r.w);
        }
        return NULL;
    }
    if (s->kind == BT_SITE_EARLY && writable(c, &r) && e->rtag == page)
        e->wtag = page;
    if ((s->kind == BT_SITE_READ ? e->rtag : e->wtag) != page)
        return NULL;
    if (s->stack)
        stack_set(c, page, e->addend);
    return bt_host(bt, s->retry);
}
