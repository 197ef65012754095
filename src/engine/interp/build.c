/* Making blocks: fetching instruction bytes, decoding them, choosing how each instruction is run.
 */
#include <stdlib.h>
#include <string.h>

#include "engine/interp/op.h"
#include "engine/interp/world.h"

/* Of block.mode: it has one instruction, and ends in the run loop. */
#define MODE_SINGLE (1u << 2)

static const struct op *leave(struct cpu *c, const struct op *o)
{
    c->s.rip = c->g[G_RIP];
    return NULL;
}

const struct op op_leave = {.fn = leave};
const struct block block_unlinked = {.live = false};

/* Where a block's end leads: EIP wraps at 4 GiB. */
static uint64_t end_rip(const struct cpu *c, const struct op *o)
{
    uint64_t rip = op_rip(c, o);

    return c->bits == CPU_64 ? rip : (uint32_t)rip;
}

/* Behind an instruction that may have changed the mode, mappings or interruptibility. */
static const struct op *end_leave(struct cpu *c, const struct op *o)
{
    c->ninsn += o->cnt - 1u;
    c->g[G_RIP] = end_rip(c, o);
    return &op_leave;
}

/* Falls out of a block's end. */
static const struct op *end_block(struct cpu *c, const struct op *o)
{
    c->ninsn += o->cnt - 1u;
    return enter_rip(c, end_rip(c, o));
}

static const struct op *plain(struct cpu *c, const struct op *o)
{
    struct plain *p = o->plain;
    uint64_t next;

    c->op = o;
    c->s.rip = op_rip(c, o);
    next = c->s.rip + o->len;
    if (unlikely(c->bits != CPU_64))
        next = (uint32_t)next;
    c->next_rip = next;
    p->fn(c, &p->insn);
    if (unlikely(c->mode_changed || c->next_rip != next)) {
        c->ninsn += o->cnt;
        if (c->mode_changed || c->bits != CPU_64) {
            c->g[G_RIP] = c->next_rip;
            return &op_leave;
        }
        return enter_rip(c, c->next_rip);
    }
    NEXT();
}

/* Begins a block that may be translated: once it has been entered often enough, or has a translation,
 * the run loop takes over. */
static const struct op *tier(struct cpu *c, const struct op *o)
{
    struct block *b = container_of(o, struct block, op[0]);

    if (b->heat != HEAT_NEVER && (b->t || ++b->heat >= c->shared->threshold))
        return &op_leave;
    NEXT();
}

/* As plain, for vector instructions: they neither branch nor end a block. */
static const struct op *vector(struct cpu *c, const struct op *o)
{
    struct plain *p = o->plain;

    c->op = o;
    c->s.rip = op_rip(c, o);
    c->next_rip = c->s.rip + o->len;
    p->simd.run(c, &p->insn, &p->simd);
    NEXT();
}

static void raise_ud(struct cpu *c, const struct insn *i) { cpu_raise(c, X_UD, 0); }
static void raise_gp(struct cpu *c, const struct insn *i) { cpu_raise(c, X_GP, 0); }

/* ---- fetching ---- */

/* Instruction bytes in one page: as many as the page and CS's limit leave. */
struct part {
    uint64_t gpa;
    const uint8_t *host;
    unsigned avail;
    bool memory;  /* RAM or ROM: may be cached */
    bool limited; /* ends at CS's limit, not at the page's end */
    uint8_t io[INSN_MAX_LEN + 1];
};

/* The page at RIP, and if the first instruction there crosses its end the next one. */
struct fetch {
    struct part p[2];
    unsigned n; /* how many of them */
};

/* Where the page of la was the last time, or NULL. */
static const struct itlb_entry *code_page(struct cpu *c, uint64_t la)
{
    const struct itlb_entry *x = itlb_slot(&c->tlbs.code, la);

    return x->page == (la & ~PAGE_MASK) && (x->key == c->key || x->key == c->gkey) ? x : NULL;
}

/* Remembers it. */
static void code_page_set(struct cpu *c, uint64_t la, const struct walk *w, uint8_t *host)
{
    if (c->key != CPU_KEY_NONE && !c->dry)
        *itlb_slot(&c->tlbs.code, la) = (struct itlb_entry){.page = la & ~PAGE_MASK,
                                                            .key = w->global && la >> 63 ? c->gkey : c->key,
                                                            .gpa = w->gpa & ~PAGE_MASK,
                                                            .host = host};
}

/* Notes what depends on where la is. */
static void code_walked(struct cpu *c, uint64_t la, const struct walk *w)
{
    struct tlbs *t = &c->tlbs;

    if (w->global && la >> 63) {
        if (!itlb_note(&t->code, la, w)) {
            tlbs_new_global(t);
            cpu_update_mode(c);
            itlb_note(&t->code, la, w);
        }
        if (c->cpl) /* what others may fetch is not walked for them */
            t->code.partial = true;
        if (!t->code.partial)
            return;
    }
    if (w->page_shift > PAGE_SHIFT)
        t->large_code |= tlb_gib(la);
}

/* Translates la for execution, to gpa and the host's address there or NULL; raises #PF. */
static void exec_page(struct cpu *c, uint64_t la, struct part *p)
{
    const struct itlb_entry *x = code_page(c, la);
    struct walk w;
    uint64_t ent;
    bool ok;

    if (x) {
        c->fetch_global &= x->key == c->gkey;
        p->gpa = x->gpa | (la & PAGE_MASK);
        p->host = x->host + (la & PAGE_MASK);
        return;
    }
    ok = paging_walk(&c->pg, physmap_p2m(c->vm->map), la, ACCESS_EXEC, c->cpl == 3, false, &w);

    if (unlikely(w.ncode))
        mem_walked(c, &w);
    if (!ok)
        cpu_raise_pf(c, la, w.error);
    c->fetch_global &= w.global;
    code_walked(c, la, &w);
    p->gpa = w.gpa;
    p->host = NULL;
    ent = p2m_get(physmap_p2m(c->vm->map), w.gpa >> PAGE_SHIFT);
    if (!(ent & P2M_PRESENT))
        return;
    code_page_set(c, la, &w, p2m_host(ent));
    p->host = p2m_host(ent) + (la & PAGE_MASK);
}

/* The bytes at offset rip of CS. Raises #GP(0) and #PF. */
static void fetch_part(struct cpu *c, uint64_t rip, unsigned max, struct part *p)
{
    uint64_t la = rip;

    p->limited = false;
    if (c->bits == CPU_64) {
        if (sext(rip, 48) != rip)
            cpu_raise(c, X_GP, 0);
        p->avail = (unsigned)(PAGE_SIZE - (la & PAGE_MASK));
    } else {
        const struct segment *cs = &c->s.seg[CS];

        if (rip > cs->limit)
            cpu_raise(c, X_GP, 0);
        la = (uint32_t)(cs->base + rip);
        p->avail = (unsigned)(PAGE_SIZE - (la & PAGE_MASK));
        if (cs->limit - rip < p->avail - 1) {
            p->avail = (unsigned)(cs->limit - rip) + 1;
            p->limited = true;
        }
    }
    p->avail = MIN(p->avail, max);
    exec_page(c, la, p);
    p->memory = p->host;
    if (p->memory)
        return;
    p->avail = MIN(p->avail, (unsigned)INSN_MAX_LEN);
    p->host = p->io;
    world_mmio_read(c, p->gpa, p->io, p->avail);
}

/* From now on stores to the frame are noticed, those of other vCPUs too. A TLB that is to let stores through sets
 * P2M_STORES first and then looks whether there is code. */
static void watch_frame(struct cpu *c, uint64_t gpa)
{
    struct p2m *p2m = physmap_p2m(c->vm->map);

    for (;;) {
        uint64_t old = p2m_set_flags(p2m, gpa >> PAGE_SHIFT, P2M_CODE);

        if (!(old & P2M_PRESENT) || (old & P2M_CODE) || !(old & P2M_STORES))
            return;
        tlbs_flush_write_gpa(&c->tlbs, gpa);
        if (c->vm->nvcpu == 1) {
            p2m_clear_flags(p2m, gpa >> PAGE_SHIFT, P2M_STORES);
            return;
        }
        sync_leave(c);
        sync_begin(&c->shared->sync, SYNC_WORLD);
        sync_post(&c->shared->sync, SYNC_WRITES);
        p2m_clear_flags(p2m, gpa >> PAGE_SHIFT, P2M_STORES);
        sync_end(&c->shared->sync);
        sync_enter(c);
        /* While this vCPU stood still another one may have emptied the cache, and cleared the flag:
         * again. */
    }
}

/* Is the part still where it was, and watched? */
static bool part_valid(struct cpu *c, const struct part *p)
{
    uint64_t ent = p2m_get(physmap_p2m(c->vm->map), p->gpa >> PAGE_SHIFT);

    return (ent & P2M_PRESENT) && (ent & P2M_CODE) &&
           p2m_host(ent) == p->host - (p->gpa & PAGE_MASK);
}

/* ---- decoding ---- */

struct draft {
    unsigned n;
    unsigned bytes;  /* of them, and of what was looked at for the error */
    unsigned end;    /* of the n instructions alone */
    int error;       /* what follows the n instructions: INSN_OK, or it raises #UD or #GP */
    bool crosses;    /* the first one needs the next page */
    bool uncachable; /* the error depends on CS's limit */
    struct insn insn[BLOCK_MAX_INSNS];
};

/* The up to 15 bytes at offset `at` are copied first: other vCPUs may be changing them. */
static unsigned gather(const struct fetch *f, unsigned at, uint8_t buf[INSN_MAX_LEN])
{
    unsigned n = MIN(f->p[0].avail - at, (unsigned)INSN_MAX_LEN), more = 0;

    memcpy(buf, f->p[0].host + at, n);
    if (f->n == 2) {
        more = MIN(f->p[1].avail, INSN_MAX_LEN - n);
        memcpy(buf + n, f->p[1].host, more);
    }
    return n + more;
}

static bool ends_block(const struct insn *i)
{
    return (i->row->flags & (IF_BRANCH | IF_SYS)) && i->id != INSN_JCC;
}

static void draft_decode(struct cpu *c, const struct fetch *f, unsigned max, struct draft *d)
{
    const struct part *last = &f->p[f->n - 1];
    uint8_t buf[INSN_MAX_LEN];

    d->n = d->bytes = d->end = 0;
    d->error = INSN_OK;
    d->crosses = d->uncachable = false;
    while (d->n < max) {
        struct insn *i = &d->insn[d->n];
        unsigned avail = gather(f, d->bytes, buf);
        int rc = insn_decode(i, buf, avail, c->bits);

        if (rc == INSN_E_TRUNC) {
            if (d->n)
                return;
            if (!last->limited && f->n == 1) {
                d->crosses = true;
                return;
            }
            d->uncachable = true;
            rc = INSN_E_LONG; /* beyond the limit: #GP(0), as for too long an instruction */
        }
        if (rc != INSN_OK) {
            d->error = rc;
            d->bytes += avail;
            return;
        }
        d->bytes += i->len;
        d->end = d->bytes;
        d->n++;
        if (ends_block(i) || d->bytes >= f->p[0].avail)
            return;
    }
}

/* ---- building ---- */

/* Without their features TZCNT and LZCNT are BSF and BSR with a prefix that means nothing. */
static uint16_t effective_id(const struct cpu *c, const struct insn *i)
{
    if (insn_supported(i, c->vm->cpuid))
        return i->id;
    return i->id == INSN_TZCNT ? INSN_BSF : i->id == INSN_LZCNT ? INSN_BSR : i->id;
}

_Static_assert(sizeof(struct block) +
                       (BLOCK_MAX_INSNS + 1) * (sizeof(struct op) + sizeof(struct plain) + 32) <
                   BLOCK_MAX_SIZE,
               "a block of any kind fits");

static insn_fn plain_fn(const struct cpu *c, const struct insn *i)
{
    insn_fn fn;

    if (effective_id(c, i) != i->id)
        return int_fn(effective_id(c, i));
    if (!insn_supported(i, c->vm->cpuid))
        return raise_ud;
    if (((i->row->flags & IF_NOREAL) && (cpu_real(&c->s) || cpu_v86(&c->s))))
        return raise_ud;
    fn = int_fn(i->id);
    if (!fn)
        fn = sys_fn(i->id);
    if (!fn)
        fn = simd_fn(i);
    return fn ? fn : raise_ud;
}

/* Can an observer see the flags as they are before this instruction if it does not read them? */
static bool exposes_flags(const struct insn *i, const struct op *o)
{
    if (o->fn == plain || o->fn == vector)
        return true;
    for (unsigned k = 0; k < i->nops; k++)
        if (i->op[k].kind == OP_MEM && i->id != INSN_LEA)
            return true;
    return (i->row->flags & (IF_BRANCH | IF_SYS)) || i->id == INSN_PUSH || i->id == INSN_POP ||
           i->id == INSN_LEAVE;
}

/* Memory for a block's parts: the cache's, or the vCPU's scratch block's own. */
struct room {
    struct code_cache *cc; /* NULL: scratch */
    bool lasting;          /* sweeps keep it */
    uint8_t *p;
};

static void *room_alloc(struct room *r, size_t size, size_t align)
{
    void *p = r->p;

    if (r->cc)
        return (r->lasting ? cache_alloc_lasting : cache_alloc)(r->cc, size, align);
    r->p += ALIGN_UP(size, 16);
    return p;
}

bool plain_prepare(struct cpu *c, struct plain *p, const struct insn *i)
{
    p->fn = plain_fn(c, i);
    p->insn = *i;
    p->insn.id = effective_id(c, i);
    return p->fn != raise_ud && simd_prepare(c, i, &p->simd) && c->bits == CPU_64 &&
           !(i->row->flags & IF_SYS);
}

static void make_plain(struct cpu *c, struct room *r, struct op *o, const struct insn *i)
{
    o->plain = room_alloc(r, sizeof(*o->plain), 16);
    o->fn = plain_prepare(c, o->plain, i) ? vector : plain;
}

/* The op behind the last instruction. */
static void make_end(struct room *r, const struct draft *d, bool single, struct op *o)
{
    bool sys = single || (d->n && (d->insn[d->n - 1].row->flags & IF_SYS));

    *o = (struct op){.fn = sys ? end_leave : end_block,
                     .off = (uint16_t)d->end,
                     .cnt = (uint8_t)(d->n + 1),
                     .exact = true};
    if (d->error) {
        struct plain *p = room_alloc(r, sizeof(*p), 16);

        memset(p, 0, sizeof(*p));
        p->fn = d->error == INSN_E_UD ? raise_ud : raise_gp;
        o->fn = plain;
        o->plain = p;
    }
}

/* A killed block is left only where all flags are what they should be. On entry `exact` says of
 * each op whether it computes the flags it writes; what stores to memory does, so that a store into
 * the block is seen at once. */
static void find_exits(struct op *ops, const struct draft *d)
{
    uint16_t stale = 0;

    for (unsigned k = 0; k < d->n; k++) {
        uint16_t writes = d->insn[k].row->fl_write | d->insn[k].row->fl_undef;
        bool computes = ops[k].exact;

        ops[k].exact = !stale;
        stale = computes ? stale & (uint16_t)~writes : stale | writes;
    }
}

static struct block *build(struct cpu *c, struct room *r, const struct fetch *f,
                           const struct draft *d, uint8_t mode)
{
    bool tiered = c->shared->bt && r->cc && c->bits == CPU_64 && !(mode & MODE_SINGLE);
    unsigned nops = d->n + 1 + tiered, off = d->end;
    struct block *b = room_alloc(r, sizeof(*b) + nops * sizeof(struct op), BLOCK_ALIGN);
    struct op *ops = b->op + tiered;
    uint16_t live = FL_STATUS;

    b->live = r->cc;
    b->mode = mode;
    b->insns = (uint8_t)d->n;
    b->nops = (uint16_t)nops;
    b->gpa = f->p[0].gpa;
    b->gpa2 = f->n == 2 ? f->p[1].gpa : ~0ull;
    b->bytes = (uint16_t)d->bytes;
    b->heat = 0;
    b->nogroup = false;
    b->t = NULL;
    if (tiered)
        b->op[0] = (struct op){.fn = tier, .cnt = 1, .exact = true};
    make_end(r, d, mode & MODE_SINGLE, &ops[d->n]);
    /* Backwards, so that each instruction knows which of its flags anybody will see. */
    for (unsigned k = d->n; k-- > 0;) {
        const struct insn *i = &d->insn[k];
        uint16_t writes = (uint16_t)(i->row->fl_write | i->row->fl_undef);
        struct op *o = &ops[k];
        bool fast;

        off -= i->len;
        *o = (struct op){
            .off = (uint16_t)off, .len = i->len, .cnt = (uint8_t)(k + 1), .b = G_ZERO, .x = G_ZERO};
        fast = c->bits == CPU_64 && !c->no_fast && insn_supported(i, c->vm->cpuid) &&
               fast_pick(o, i, !(live & writes));
        if (!fast)
            make_plain(c, r, o, i);
        o->exact = !fast || !writes || (live & writes) || i->op[0].kind == OP_MEM;
        if (fast && k + 1 < d->n && i[1].id == INSN_JCC && ops[k + 1].fn != plain)
            fast_fuse(o, i, &i[1]);
        live = (uint16_t)((live & ~i->row->fl_write) | i->row->fl_read);
        if (exposes_flags(i, o))
            live = FL_STATUS;
    }
    find_exits(ops, d);
    return b;
}

struct block *cache_single(struct cpu *c, const struct insn *i)
{
    struct room r = {.cc = c->code, .lasting = true};
    struct fetch f = {.p = {{.gpa = 0}}, .n = 1};
    struct draft d = {.n = 1, .bytes = i->len, .end = i->len, .error = INSN_OK};

    if (cache_full(c->code))
        return NULL;
    d.insn[0] = *i;
    return build(c, &r, &f, &d, MODE_SINGLE);
}

const struct insn *cache_single_insn(const struct block *b)
{
    return b->op[0].fn == plain ? &b->op[0].plain->insn : NULL;
}

/* ---- looking up ---- */

/* The cached block at f->p[0], if it is good for the mapping and limit of now. */
static struct block *find(struct cpu *c, const struct part *p, uint8_t mode)
{
    struct code_cache *cc = c->code;
    struct block *b = cache_find(cc, p->gpa, mode);
    uint64_t last;

    if (!b)
        return NULL;
    if (b->gpa2 == ~0ull) {
        if (b->bytes <= p->avail)
            return b;
    } else if (!p->limited) {
        struct part next;

        last = c->s.rip + b->bytes - 1;
        if (c->bits == CPU_64 || last <= c->s.seg[CS].limit) {
            fetch_part(c, c->s.rip + p->avail, INSN_MAX_LEN, &next);
            if (next.memory && next.gpa == b->gpa2)
                return b;
        }
    }
    /* Another second page, or a shorter CS limit: the old one is of no more use. */
    cache_lock(cc);
    if (b->live)
        cache_kill(cc, b);
    cache_unlock(cc);
    return NULL;
}

/* Makes room in the cache if it is full. */
static void make_room(struct cpu *c)
{
    struct sync *s = &c->shared->sync;
    bool full;

    cache_lock(c->code);
    full = cache_full(c->code);
    cache_unlock(c->code);
    if (!full)
        return;
    sync_leave(c);
    sync_begin(s, SYNC_OUTSIDE);
    /* Another vCPU may have done it meanwhile. */
    if (cache_full(c->code)) {
        cache_reclaim(c->code);
        sync_post(s, SYNC_JUMPS);
    }
    sync_end(s);
    sync_enter(c);
}

/* Decodes and builds; NULL if the frame changed hands meanwhile or the cache is full. */
static struct block *make(struct cpu *c, struct fetch *f, unsigned max, uint8_t mode)
{
    struct code_cache *cc = c->code;
    bool cached = f->p[0].memory;
    struct block *b = NULL;
    struct draft d;

    for (;;) {
        if (!cached) {
            draft_decode(c, f, 1, &d);
        } else {
            for (unsigned k = 0; k < f->n; k++)
                watch_frame(c, f->p[k].gpa);
            cache_lock(cc);
            if (!part_valid(c, &f->p[0]) || (f->n == 2 && !part_valid(c, &f->p[1])) ||
                cache_full(cc)) {
                cache_unlock(cc);
                return NULL;
            }
            draft_decode(c, f, max, &d);
            if (!d.crosses && !d.uncachable) {
                struct room r = {.cc = cc};

                b = build(c, &r, f, &d, mode);
                cache_add(cc, b);
            }
            cache_unlock(cc);
            if (b)
                return b;
        }
        if (!d.crosses) {
            struct room r = {.p = (uint8_t *)c->scratch};

            return build(c, &r, f, &d, mode);
        }
        fetch_part(c, c->s.rip + f->p[0].avail, INSN_MAX_LEN - f->p[0].avail, &f->p[1]);
        f->n = 2;
        cached = cached && f->p[1].memory;
    }
}

static uint8_t block_mode(const struct cpu *c, bool single)
{
    return (uint8_t)(c->bits | (single ? MODE_SINGLE : 0) | c->no_fast << 3 |
                     (c->bits != CPU_64 && (cpu_real(&c->s) || cpu_v86(&c->s))) << 4);
}

bool cache_place(struct cpu *c, struct cache_place *p)
{
    const struct itlb_entry *x = code_page(c, c->s.rip);

    if (!x)
        return false;
    *p = (struct cache_place){
        .gpa = x->gpa | (c->s.rip & PAGE_MASK), .mode = block_mode(c, false), .global = x->key == c->gkey};
    return true;
}

struct block *cache_at(struct cpu *c, const struct cache_place *p)
{
    struct block *b = cache_find(c->code, p->gpa, p->mode);

    return b && b->gpa2 == ~0ull ? b : NULL;
}

struct block *cache_lookup(struct cpu *c, unsigned max)
{
    uint8_t mode = block_mode(c, max == 1);
    struct fetch f;
    struct block *b;

    for (;;) {
        c->fetch_global = true;
        fetch_part(c, c->s.rip, PAGE_SIZE, &f.p[0]);
        f.n = 1;
        b = f.p[0].memory ? find(c, &f.p[0], mode) : NULL;
        if (!b)
            b = make(c, &f, max, mode);
        if (b)
            return b;
        make_room(c);
    }
}

struct block *cache_scratch_new(void)
{
    return aligned_alloc(
        64,
        ALIGN_UP(sizeof(struct block) + 2 * sizeof(struct op) + 2 * sizeof(struct plain) + 64, 64));
}
