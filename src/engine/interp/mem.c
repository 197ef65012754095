/* Linear memory: TLB refill, and every access that the inline hit path of op.h does not answer. */
#include <string.h>

#include "engine/interp/op.h"

static bool canonical(uint64_t la) { return sext(la, 48) == la; }

/* Which TLB set answers an access of this kind now. */
static enum tlb_kind kind_of(const struct cpu *c, enum priv p)
{
    if (p != PRIV_SUPER && c->cpl == 3)
        return TLB_USER;
    /* SMAP is lifted by AC, but never for implicit supervisor accesses. */
    if (c->pg.smap && p != PRIV_SUPER && (c->s.rflags & FL_AC))
        return TLB_SUPER_AC;
    return TLB_SUPER;
}

/* One page's worth of an access. */
struct piece {
    uint8_t *host; /* NULL: I/O at gpa */
    uint64_t gpa;
    unsigned n;
    bool rom, code;
};

/* Walks the tables for an access to la and remembers what it found. Raises #PF. */
static void refill(struct cpu *c, uint64_t la, enum access a, enum priv p, struct piece *out)
{
    enum tlb_kind kind = kind_of(c, p);
    struct tlb_context *ctx = &c->tlbs.ctx[c->tlbs.cur];
    struct p2m *p2m = physmap_p2m(c->vm->map);
    uint64_t page = la & ~PAGE_MASK, gfn, ent;
    struct tlb_entry *e = tlb_slot(&ctx->set[kind], la);
    struct walk w;

    if (!paging_walk(&c->pg, p2m, la, a, kind == TLB_USER, kind == TLB_SUPER_AC, &w))
        cpu_raise_pf(c, la, w.error);
    gfn = w.gpa >> PAGE_SHIFT;
    ent = p2m_get(p2m, gfn);
    out->gpa = w.gpa;
    out->rom = out->code = false;
    out->host = NULL;
    if (!(ent & P2M_PRESENT)) {
        if (page == (e->rtag & ~PAGE_MASK))
            e->rtag = e->wtag = TLB_EMPTY;
        return;
    }
    if (a == ACCESS_WRITE && !(ent & (P2M_READONLY | P2M_DIRTY)))
        ent = p2m_set_flags(p2m, gfn, P2M_DIRTY) | P2M_DIRTY;
    out->host = p2m_host(ent) + (la & PAGE_MASK);
    out->rom = ent & P2M_READONLY;
    out->code = ent & P2M_CODE;

    if (e->rtag != page || e->info >> PAGE_SHIFT != gfn)
        e->wtag = TLB_EMPTY;
    e->rtag = page;
    e->addend = (uint64_t)(uintptr_t)p2m_host(ent) - page;
    e->info = gfn << PAGE_SHIFT | (w.global ? TLB_INFO_GLOBAL : 0) |
              (w.page_shift > PAGE_SHIFT ? TLB_INFO_LARGE : 0);
    if (w.page_shift > PAGE_SHIFT)
        ctx->large = true;
    /* A store may go straight to the page only when nothing has to be noted about it. */
    if (a == ACCESS_WRITE && w.dirty && (ent & P2M_DIRTY) &&
        !(ent & (P2M_READONLY | P2M_COW | P2M_CODE)))
        e->wtag = page;
}

static void resolve(struct cpu *c, uint64_t la, unsigned n, enum access a, enum priv p,
                    struct piece *out)
{
    struct tlb_entry *e = tlb_slot(&c->tlbs.ctx[c->tlbs.cur].set[kind_of(c, p)], la);
    uint64_t page = la & ~PAGE_MASK;

    out->n = n;
    if (page == (a == ACCESS_WRITE ? e->wtag : e->rtag)) {
        out->host = (uint8_t *)(uintptr_t)(la + e->addend);
        out->gpa = (e->info & ~PAGE_MASK) | (la & PAGE_MASK);
        out->rom = out->code = false;
        return;
    }
    refill(c, la, a, p, out);
}

/* Data breakpoints (SDM vol. 3 §18.2.4): notes a match for the trap after the instruction. */
static void check_watch(struct cpu *c, uint64_t la, unsigned n, enum access a)
{
    for (unsigned k = 0; k < 4; k++) {
        unsigned rw = bits(c->s.dr[7], 17 + 4 * k, 16 + 4 * k);
        unsigned len = bits(c->s.dr[7], 19 + 4 * k, 18 + 4 * k);
        uint64_t size = len == 2 ? 8 : len + 1, start = c->s.dr[k] & ~(size - 1);

        if (!(c->s.dr[7] >> (2 * k) & 3) || !(rw == 3 || (rw == 1 && a == ACCESS_WRITE)))
            continue;
        if (la < start + size && start < la + n)
            c->s.pending_dbg |= BIT(k);
    }
}

/* Sizes that alignment checking concerns; 80-bit numbers align to eight bytes (SDM vol. 3 table 6-7). */
static bool needs_align(unsigned n) { return n == 2 || n == 4 || n == 8 || n == 10; }

static void check_access(struct cpu *c, uint64_t la, unsigned n, enum access a, enum priv p)
{
    if (likely(c->tlb != c->no_tlb))
        return;
    if (c->watch && p != PRIV_SUPER)
        check_watch(c, la, n, a);
    if (c->align && p == PRIV_CPL && needs_align(n) && (la & (MIN(n, 8u) - 1)))
        cpu_raise(c, X_AC, 0);
}

/* Splits at the page boundary and resolves both halves before anything happens. */
static unsigned split(struct cpu *c, uint64_t la, unsigned n, enum access a, enum priv p,
                      struct piece pc[2])
{
    unsigned first = MIN(n, (unsigned)(PAGE_SIZE - (la & PAGE_MASK)));
    uint64_t next = la + first;

    check_access(c, la, n, a, p);
    if (!cpu_long_mode(&c->s))
        next &= 0xffffffff;
    resolve(c, la, first, a, p, &pc[0]);
    if (first == n)
        return 1;
    resolve(c, next, n - first, a, p, &pc[1]);
    return 2;
}

void lin_read(struct cpu *c, uint64_t la, void *buf, unsigned n, enum priv p)
{
    struct piece pc[2];
    unsigned np = split(c, la, n, ACCESS_READ, p, pc);
    uint8_t *out = buf;

    for (unsigned i = 0; i < np; i++) {
        if (pc[i].host)
            memcpy(out, pc[i].host, pc[i].n);
        else
            for (unsigned o = 0; o < pc[i].n; o += 64)
                c->vm->env->mmio_read(c->v, pc[i].gpa + o, out + o, MIN(64u, pc[i].n - o));
        out += pc[i].n;
    }
}

/* Sizes up to 8 are copied in one go so that other vCPUs and devices see no tearing. */
static void copy_out(uint8_t *dst, const uint8_t *src, unsigned n)
{
    switch (n) {
    case 1: *dst = *src; break;
    case 2: *(u16u *)dst = *(const u16u *)src; break;
    case 4: *(u32u *)dst = *(const u32u *)src; break;
    case 8: *(u64u *)dst = *(const u64u *)src; break;
    default: memcpy(dst, src, n);
    }
}

void lin_write(struct cpu *c, uint64_t la, const void *buf, unsigned n, enum priv p)
{
    struct piece pc[2];
    unsigned np = split(c, la, n, ACCESS_WRITE, p, pc);
    const uint8_t *in = buf;

    for (unsigned i = 0; i < np; i++) {
        if (pc[i].host && !pc[i].rom) {
            copy_out(pc[i].host, in, pc[i].n);
            if (pc[i].code)
                cache_write(c->code, pc[i].gpa, pc[i].n);
        } else if (!pc[i].host) {
            for (unsigned o = 0; o < pc[i].n; o += 64)
                c->vm->env->mmio_write(c->v, pc[i].gpa + o, in + o, MIN(64u, pc[i].n - o));
        }
        in += pc[i].n;
    }
}

void lin_check(struct cpu *c, uint64_t la, unsigned n, enum access a, enum priv p)
{
    struct piece pc[2];

    split(c, la, n, a, p, pc);
}

void *lin_map_rw(struct cpu *c, uint64_t la, unsigned n)
{
    struct piece pc[2];
    unsigned np = split(c, la, n, ACCESS_WRITE, PRIV_CPL, pc);

    for (unsigned i = 0; i < np; i++)
        if (!pc[i].host || pc[i].rom)
            return NULL;
    if (np == 2 && pc[1].host != pc[0].host + pc[0].n)
        return NULL;
    /* The caller stores at once and the vCPU fetches nothing in between, so killing the decoded
     * code before the store is as good as after it. */
    for (unsigned i = 0; i < np; i++)
        if (pc[i].code)
            cache_write(c->code, pc[i].gpa, pc[i].n);
    return pc[0].host;
}

const void *lin_map_ro(struct cpu *c, uint64_t la, unsigned n)
{
    struct piece pc[2];
    unsigned np = split(c, la, n, ACCESS_READ, PRIV_CPL, pc);

    if (!pc[0].host || (np == 2 && pc[1].host != pc[0].host + pc[0].n))
        return NULL;
    return pc[0].host;
}

/* ---- slow paths of the fast handlers: 64-bit code, so only canonical checks remain ---- */

static void slow_begin(struct cpu *c, const struct op *o, uint64_t la, unsigned n)
{
    c->s.rip = op_rip(c, o);
    c->op = o;
    if (unlikely(!canonical(la) || !canonical(la + n - 1)))
        cpu_raise(c, o->b == RSP || o->b == RBP ? X_SS : X_GP, 0);
}

uint64_t slow_ld(struct cpu *c, const struct op *o, uint64_t la, unsigned n)
{
    slow_begin(c, o, la, n);
    return lin_ld(c, la, n, PRIV_CPL);
}

void slow_st(struct cpu *c, const struct op *o, uint64_t la, unsigned n, uint64_t v)
{
    slow_begin(c, o, la, n);
    lin_st(c, la, n, v, PRIV_CPL);
}

void *slow_rmw(struct cpu *c, const struct op *o, uint64_t la, unsigned n)
{
    slow_begin(c, o, la, n);
    return lin_map_rw(c, la, n);
}
