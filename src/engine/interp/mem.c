/* Linear memory: TLB refill, and every access that the inline hit path of op.h does not answer. */
#include <string.h>

#include "engine/interp/dry.h"
#include "engine/interp/op.h"
#include "engine/interp/world.h"

/* One page's worth of an access. */
struct piece {
    uint8_t *host; /* NULL: I/O at gpa */
    uint64_t gpa;
    unsigned n;
    bool rom, code;
};

/* A walk that set A or D bits in a frame that is also code has changed that code. */
void mem_walked(struct cpu *c, const struct walk *w)
{
    for (unsigned i = 0; i < w->ncode; i++)
        cache_write(c->code, w->code_gpa[i], sizeof(uint64_t));
}

/* As tlb_refill, but changes nothing. Code is of no concern where nothing is written. */
static bool peek(struct cpu *c, uint64_t la, enum access a, enum priv p, struct refill *r)
{
    struct p2m *p2m = physmap_p2m(c->vm->map);
    enum tlb_kind kind = tlb_kind(c, p);

    if (!paging_peek(&c->pg, p2m, la, a, kind == TLB_USER, kind == TLB_SUPER_AC, &r->w))
        return false;
    r->ent = p2m_get(p2m, r->w.gpa >> PAGE_SHIFT) & ~P2M_CODE;
    return true;
}

/* Walks the tables for an access to la and remembers what it found. Raises #PF. */
static void refill(struct cpu *c, uint64_t la, enum access a, enum priv p, struct piece *out)
{
    struct refill r;
    bool ok = (unlikely(c->dry) ? peek : tlb_refill)(c, la, a, p, &r);

    if (unlikely(r.w.ncode))
        mem_walked(c, &r.w);
    if (!ok)
        cpu_raise_pf(c, la, r.w.error);
    out->gpa = r.w.gpa;
    out->rom = r.ent & P2M_READONLY;
    out->code = r.ent & P2M_CODE;
    out->host = r.ent & P2M_PRESENT ? p2m_host(r.ent) + (la & PAGE_MASK) : NULL;
}

static void resolve(struct cpu *c, uint64_t la, unsigned n, enum access a, enum priv p,
                    struct piece *out)
{
    struct tlb_entry *e = tlb_slot(&c->tlbs.ctx[c->tlbs.cur].set[tlb_kind(c, p)], la);
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

/* Sizes that alignment checking concerns; 80-bit numbers align to eight bytes (SDM vol. 3 table
 * 6-7). */
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
    if (!cpu_long_mode(&c->s) || (p != PRIV_SUPER && c->bits != CPU_64))
        next &= 0xffffffff;
    resolve(c, la, first, a, p, &pc[0]);
    if (first != n)
        resolve(c, next, n - first, a, p, &pc[1]);
    if (unlikely(c->dry) && (!pc[0].host || (first != n && !pc[1].host)))
        dry_refuse(c);
    return first == n ? 1 : 2;
}

/* Up to 8 bytes are copied in one go, so that other vCPUs and devices see no tearing. */
static void copy(uint8_t *dst, const uint8_t *src, unsigned n)
{
    switch (n) {
    case 1:
        *dst = *src;
        break;
    case 2:
        *(u16u *)dst = *(const u16u *)src;
        break;
    case 4:
        *(u32u *)dst = *(const u32u *)src;
        break;
    case 8:
        *(u64u *)dst = *(const u64u *)src;
        break;
    default:
        memcpy(dst, src, n);
    }
}

static void get(struct cpu *c, uint8_t *out, const uint8_t *host, unsigned n)
{
    if (unlikely(c->dry))
        dry_load(c->dry, out, host, n);
    else
        copy(out, host, n);
}

static void put(struct cpu *c, uint64_t gpa, uint8_t *host, const uint8_t *in, unsigned n)
{
    if (unlikely(c->dry))
        dry_store(c, gpa, host, in, n);
    else
        copy(host, in, n);
}

static void io_read(struct cpu *c, uint64_t gpa, uint8_t *out, unsigned n)
{
    for (unsigned o = 0; o < n; o += 64)
        world_mmio_read(c, gpa + o, out + o, MIN(64u, n - o));
}

static void io_write(struct cpu *c, uint64_t gpa, const uint8_t *in, unsigned n)
{
    for (unsigned o = 0; o < n; o += 64)
        world_mmio_write(c, gpa + o, in + o, MIN(64u, n - o));
}

void lin_read(struct cpu *c, uint64_t la, void *buf, unsigned n, enum priv p)
{
    struct piece pc[2];
    unsigned np = split(c, la, n, ACCESS_READ, p, pc);
    uint8_t *out = buf;

    for (unsigned i = 0; i < np; i++) {
        if (pc[i].host)
            get(c, out, pc[i].host, pc[i].n);
        else
            io_read(c, pc[i].gpa, out, pc[i].n);
        out += pc[i].n;
    }
}

/* Behind a callback a frame may hold code that did not when it was looked up. */
static bool code_now(struct cpu *c, uint64_t gpa)
{
    return p2m_get(physmap_p2m(c->vm->map), gpa >> PAGE_SHIFT) & P2M_CODE;
}

void lin_write(struct cpu *c, uint64_t la, const void *buf, unsigned n, enum priv p)
{
    struct piece pc[2];
    unsigned np = split(c, la, n, ACCESS_WRITE, p, pc);
    const uint8_t *in = buf;

    for (unsigned i = 0; i < np; i++) {
        if (pc[i].host && !pc[i].rom) {
            put(c, pc[i].gpa, pc[i].host, in, pc[i].n);
            if (pc[i].code || (i && !pc[0].host && code_now(c, pc[i].gpa)))
                cache_write(c->code, pc[i].gpa, pc[i].n);
        } else if (!pc[i].host) {
            io_write(c, pc[i].gpa, in, pc[i].n);
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
        if (!pc[i].host || pc[i].rom || pc[i].code || c->dry)
            return NULL;
    if (np == 2 && pc[1].host != pc[0].host + pc[0].n)
        return NULL;
    return pc[0].host;
}

const void *lin_map_ro(struct cpu *c, uint64_t la, unsigned n)
{
    struct piece pc[2];
    unsigned np = split(c, la, n, ACCESS_READ, PRIV_CPL, pc);

    if (!pc[0].host || (np == 2 && pc[1].host != pc[0].host + pc[0].n) || c->dry)
        return NULL;
    return pc[0].host;
}

static void rmw_begin(struct cpu *c, struct rmw *r, uint64_t la, unsigned n, bool locked,
                      enum priv p)
{
    struct piece pc[2];
    unsigned np = split(c, la, n, ACCESS_WRITE, p, pc);
    uint8_t *out = r->buf;

    r->n[1] = 0;
    r->direct = pc[0].host && !pc[0].rom && likely(!c->dry);
    for (unsigned i = 0; i < np; i++) {
        r->gpa[i] = pc[i].gpa;
        r->host[i] = pc[i].host;
        r->n[i] = (uint8_t)pc[i].n;
        r->rom[i] = pc[i].rom;
        r->code[i] = pc[i].code;
    }
    if (np == 2)
        r->direct = r->direct && pc[1].host == pc[0].host + pc[0].n && !pc[1].rom;
    /* The host's split locks are slow for everybody on it, and some hypervisors do them wrong. */
    if (locked && r->direct && ((uintptr_t)pc[0].host & 63) + n > 64)
        r->direct = false;
    r->p = r->direct ? pc[0].host : r->buf;
    r->exclusive = false;
    if (r->direct)
        return;
    if (locked && pc[0].host && (np == 1 || pc[1].host) && c->vm->nvcpu > 1 && !c->dry) {
        r->exclusive = true;
        sync_pause(c);
        sync_begin(&c->shared->sync, SYNC_WORLD);
    }
    for (unsigned i = 0; i < np; i++) {
        if (pc[i].host)
            get(c, out, pc[i].host, pc[i].n);
        else
            io_read(c, pc[i].gpa, out, pc[i].n);
        out += pc[i].n;
    }
}

void lin_rmw_begin(struct cpu *c, struct rmw *r, uint64_t la, unsigned n, bool locked)
{
    rmw_begin(c, r, la, n, locked, PRIV_CPL);
}

void lin_set_bits(struct cpu *c, uint64_t la, uint8_t set)
{
    struct rmw r;

    rmw_begin(c, &r, la, 1, true, PRIV_SUPER);
    __atomic_fetch_or((uint8_t *)r.p, set, __ATOMIC_SEQ_CST);
    lin_rmw_end(c, &r);
}

void lin_clear_bits(struct cpu *c, uint64_t la, uint8_t clear)
{
    struct rmw r;

    rmw_begin(c, &r, la, 1, true, PRIV_SUPER);
    __atomic_fetch_and((uint8_t *)r.p, (uint8_t)~clear, __ATOMIC_SEQ_CST);
    lin_rmw_end(c, &r);
}

void lin_rmw_end(struct cpu *c, struct rmw *r)
{
    const uint8_t *in = r->buf;
    bool io = false;

    for (unsigned i = 0; i < 2 && r->n[i]; i++) {
        if (!r->host[i]) {
            io_write(c, r->gpa[i], in, r->n[i]);
            io = true;
        } else if (!r->rom[i] && !r->direct) {
            put(c, r->gpa[i], r->host[i], in, r->n[i]);
        }
        in += r->n[i];
    }
    if (r->exclusive) {
        sync_end(&c->shared->sync);
        sync_resume(c);
        io = true;
    }
    for (unsigned i = 0; i < 2 && r->n[i]; i++)
        if (r->host[i] && !r->rom[i] && (r->code[i] || (io && code_now(c, r->gpa[i]))))
            cache_write(c->code, r->gpa[i], r->n[i]);
}

/* ---- slow paths of the fast handlers: 64-bit code, so only canonical checks remain ---- */

static void slow_begin(struct cpu *c, const struct op *o, uint64_t la, unsigned n)
{
    c->s.rip = op_rip(c, o);
    c->op = o;
    if (unlikely(!is_canonical(la) || !is_canonical(la + n - 1)))
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
