/* Filling the TLB. Compiled without vector registers: translated code comes here with the guest's in
 * place. */
#include "engine/interp/interp.h"

enum tlb_kind tlb_kind(const struct cpu *c, enum priv p)
{
    if (p != PRIV_SUPER && c->cpl == 3)
        return TLB_USER;
    /* SMAP is lifted by AC, but never for implicit supervisor accesses. */
    if (c->pg.smap && p != PRIV_SUPER && (c->s.rflags & FL_AC))
        return TLB_SUPER_AC;
    return TLB_SUPER;
}

bool tlb_refill(struct cpu *c, uint64_t la, enum access a, enum priv p, struct refill *r)
{
    enum tlb_kind kind = tlb_kind(c, p);
    struct tlb_context *ctx = &c->tlbs.ctx[c->tlbs.cur];
    struct p2m *p2m = physmap_p2m(c->vm->map);
    uint64_t page = la & ~PAGE_MASK, gfn;
    struct tlb_entry *e = tlb_slot(&ctx->set[kind], la);
    struct walk *w = &r->w;

    if (!paging_walk(&c->pg, p2m, la, a, kind == TLB_USER, kind == TLB_SUPER_AC, w))
        return false;
    gfn = w->gpa >> PAGE_SHIFT;
    r->ent = p2m_get(p2m, gfn);
    if (!(r->ent & P2M_PRESENT)) {
        r->ent = 0;
        if (page == (e->rtag & ~PAGE_MASK))
            e->rtag = e->wtag = tlb_empty(tlb_index(la));
        return true;
    }
    if (a == ACCESS_WRITE && !(r->ent & (P2M_READONLY | P2M_DIRTY)))
        r->ent = p2m_set_flags(p2m, gfn, P2M_DIRTY) | P2M_DIRTY;
    if (e->rtag != page || e->info >> PAGE_SHIFT != gfn)
        e->wtag = tlb_empty(tlb_index(la));
    e->rtag = page;
    e->addend = (uint64_t)(uintptr_t)p2m_host(r->ent) - page;
    e->info = gfn << PAGE_SHIFT | (w->global ? TLB_INFO_GLOBAL : 0) |
              (w->page_shift > PAGE_SHIFT ? TLB_INFO_LARGE : 0);
    if (w->page_shift > PAGE_SHIFT)
        ctx->large |= tlb_gib(la);
    if (w->page_shift > PAGE_SHIFT && w->global)
        ctx->large_global |= tlb_gib(la);
    /* A store may go straight to the page only when nothing has to be noted about it. */
    if (a == ACCESS_WRITE && w->dirty && (r->ent & P2M_DIRTY) &&
        !(r->ent & (P2M_READONLY | P2M_COW | P2M_CODE))) {
        if (!(r->ent & P2M_STORES))
            r->ent = p2m_set_flags(p2m, gfn, P2M_STORES) | P2M_STORES;
        if (!(r->ent & P2M_CODE))
            e->wtag = page;
    }
    return true;
}
