/* The code cache: finding, building and killing blocks. */
#include "engine/interp/cache.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "engine/interp/op.h"

#define ARENA_SIZE (48 * MIB)
#define ARENA_SLACK (256 * KIB) /* more than the largest block takes */
#define HASH_BITS 15
#define PAGE_HASH_BITS 12

struct code_page {
    uint64_t gfn;
    uint64_t granules; /* 64-byte pieces that hold code of some block */
    struct block *blocks;
    struct code_page *next;
};

struct code_cache {
    pthread_mutex_t lock;
    struct vm *vm;
    uint8_t *arena;
    size_t used;
    struct block *hash[1u << HASH_BITS];
    struct code_page *pages[1u << PAGE_HASH_BITS];
};

static const struct op *leave(struct cpu *c, const struct op *o)
{
    c->s.rip = c->g[G_RIP];
    return NULL;
}

const struct op op_leave = { .fn = leave };
const struct block block_unlinked = { .live = false };

/* What every op of a dead block becomes. The jump cache may still lead to one: forget that. */
static const struct op *refetch(struct cpu *c, const struct op *o)
{
    uint64_t rip = op_rip(c, o);
    struct jump_entry *j = jump_slot(c->jc, rip);

    c->ninsn += o->cnt - 1u;
    if (j->block && !j->block->live)
        j->key = 0;
    return enter_rip(c, rip);
}

/* Behind an instruction that may have changed the mode, mappings or interruptibility. */
static const struct op *end_leave(struct cpu *c, const struct op *o)
{
    c->ninsn += o->cnt;
    c->g[G_RIP] = op_rip(c, o);
    return &op_leave;
}

/* Falls out of a block's end. */
static const struct op *end_block(struct cpu *c, const struct op *o)
{
    c->ninsn += o->cnt;
    return enter_rip(c, op_rip(c, o));
}

static const struct op *plain(struct cpu *c, const struct op *o)
{
    struct plain *p = o->plain;
    uint64_t next;

    c->op = o;
    c->s.rip = op_rip(c, o);
    next = c->s.rip + o->len;
    if (unlikely(c->bits != CPU_64))
        next &= c->bits == CPU_32 ? 0xffffffff : 0xffff;
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

int cache_new(struct code_cache **out, struct vm *vm, struct err *e)
{
    struct code_cache *cc = calloc(1, sizeof(*cc));

    if (!cc)
        return err_set(e, ENOMEM, "out of memory for the code cache");
    cc->arena = mmap(NULL, ARENA_SIZE, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (cc->arena == MAP_FAILED) {
        free(cc);
        return err_sys(e, "mapping %llu MiB for the code cache", ARENA_SIZE / MIB);
    }
    pthread_mutex_init(&cc->lock, NULL);
    cc->vm = vm;
    *out = cc;
    return 0;
}

void cache_free(struct code_cache *cc)
{
    if (!cc)
        return;
    munmap(cc->arena, ARENA_SIZE);
    pthread_mutex_destroy(&cc->lock);
    free(cc);
}

bool cache_full(const struct code_cache *cc) { return cc->used > ARENA_SIZE - ARENA_SLACK; }

void cache_reset(struct code_cache *cc)
{
    struct p2m *p2m = physmap_p2m(cc->vm->map);

    pthread_mutex_lock(&cc->lock);
    for (unsigned h = 0; h < ARRAY_LEN(cc->pages); h++)
        for (struct code_page *p = cc->pages[h]; p; p = p->next)
            p2m_clear_flags(p2m, p->gfn, P2M_CODE);
    memset(cc->hash, 0, sizeof(cc->hash));
    memset(cc->pages, 0, sizeof(cc->pages));
    cc->used = 0;
    madvise(cc->arena, ARENA_SIZE, MADV_DONTNEED);
    pthread_mutex_unlock(&cc->lock);
}

static void *arena_alloc(struct code_cache *cc, size_t size)
{
    void *p = cc->arena + cc->used;

    cc->used += ALIGN_UP(size, 16);
    return p;
}

static unsigned hash_of(uint64_t gpa, uint8_t mode)
{
    return (unsigned)((gpa * 0x9e3779b97f4a7c15ull + mode * 0x85ebca6bull) >> (64 - HASH_BITS));
}

static struct code_page **page_link(struct code_cache *cc, uint64_t gfn)
{
    struct code_page **pp = &cc->pages[(gfn ^ gfn >> PAGE_HASH_BITS) &
                                       ((1u << PAGE_HASH_BITS) - 1)];

    while (*pp && (*pp)->gfn != gfn)
        pp = &(*pp)->next;
    return pp;
}

static uint64_t granule_mask(uint64_t first, uint64_t last) /* offsets in the page, inclusive */
{
    return bits(~0ull, last >> 6, first >> 6) << (first >> 6);
}

/* The part of block b that lies in frame gfn: offsets in the page, inclusive. */
static void block_extent(const struct block *b, uint64_t gfn, uint64_t *first, uint64_t *last)
{
    uint64_t start = b->gpa & PAGE_MASK;

    if (b->gpa >> PAGE_SHIFT == gfn) {
        *first = start;
        *last = MIN(start + b->bytes - 1, PAGE_MASK);
    } else {
        *first = 0;
        *last = start + b->bytes - 1 - PAGE_SIZE;
    }
}

static void block_kill(struct code_cache *cc, struct block *b)
{
    struct block **pp = &cc->hash[hash_of(b->gpa, b->mode)];

    while (*pp && *pp != b)
        pp = &(*pp)->hash_next;
    if (*pp)
        *pp = b->hash_next;
    __atomic_store_n(&b->live, false, __ATOMIC_RELEASE);
    for (unsigned i = 0; i < b->nops; i++)
        __atomic_store_n(&b->op[i].fn, refetch, __ATOMIC_RELEASE);
}

void cache_write(struct code_cache *cc, uint64_t gpa, uint64_t len)
{
    while (len) {
        uint64_t gfn = gpa >> PAGE_SHIFT, first = gpa & PAGE_MASK;
        uint64_t n = MIN(len, PAGE_SIZE - first), last = first + n - 1;
        struct code_page *p;

        pthread_mutex_lock(&cc->lock);
        p = *page_link(cc, gfn);
        if (p && (p->granules & granule_mask(first, last))) {
            struct block **pp = &p->blocks;

            p->granules = 0;
            while (*pp) {
                struct block *b = *pp;
                struct block **next = &b->page_next[b->gpa >> PAGE_SHIFT != gfn];
                uint64_t bf, bl;

                block_extent(b, gfn, &bf, &bl);
                if (b->live && bf <= last && first <= bl)
                    block_kill(cc, b);
                if (!b->live) {
                    *pp = *next;
                    continue;
                }
                p->granules |= granule_mask(bf, bl);
                pp = next;
            }
            if (!p->blocks)
                p2m_clear_flags(physmap_p2m(cc->vm->map), gfn, P2M_CODE);
        }
        pthread_mutex_unlock(&cc->lock);
        gpa += n;
        len -= n;
    }
}

/* ---- building ---- */

/* Instruction bytes at the current RIP: up to the page's end, then on in the next page. */
struct fetch {
    uint64_t la, gpa;
    const uint8_t *host; /* page bytes from la on */
    unsigned avail;      /* in this page and within CS's limit */
    bool limited;        /* avail ends at CS's limit, not at the page's end */
    bool memory;         /* RAM or ROM: may be cached */
    uint8_t io[INSN_MAX_LEN + 1];
};

/* Translates la for execution; raises #PF. Returns the gpa. */
static uint64_t exec_gpa(struct cpu *c, uint64_t la)
{
    struct walk w;

    if (!paging_walk(&c->pg, physmap_p2m(c->vm->map), la, ACCESS_EXEC, c->cpl == 3, false, &w))
        cpu_raise_pf(c, la, w.error);
    return w.gpa;
}

static void fetch_begin(struct cpu *c, struct fetch *f)
{
    uint64_t rip = c->s.rip, ent;

    f->la = rip;
    f->limited = false;
    f->avail = (unsigned)(PAGE_SIZE - (rip & PAGE_MASK));
    if (c->bits == CPU_64) {
        if (sext(rip, 48) != rip)
            cpu_raise(c, X_GP, 0);
    } else {
        const struct segment *cs = &c->s.seg[CS];

        if (rip > cs->limit)
            cpu_raise(c, X_GP, 0);
        f->la = (cs->base + rip) & 0xffffffff;
        f->avail = (unsigned)(PAGE_SIZE - (f->la & PAGE_MASK));
        if (cs->limit - rip < f->avail) {
            f->avail = (unsigned)(cs->limit - rip + 1);
            f->limited = f->avail <= PAGE_SIZE - (f->la & PAGE_MASK);
        }
    }
    f->gpa = exec_gpa(c, f->la);
    ent = p2m_get(physmap_p2m(c->vm->map), f->gpa >> PAGE_SHIFT);
    f->memory = ent & P2M_PRESENT;
    if (f->memory) {
        f->host = p2m_host(ent) + (f->gpa & PAGE_MASK);
        return;
    }
    f->avail = MIN(f->avail, (unsigned)INSN_MAX_LEN);
    c->vm->env->mmio_read(c->v, f->gpa, f->io, f->avail);
    f->host = f->io;
}

/* From now on stores to the frame are noticed. */
static void watch_frame(struct cpu *c, uint64_t gpa)
{
    uint64_t old = p2m_set_flags(physmap_p2m(c->vm->map), gpa >> PAGE_SHIFT, P2M_CODE);

    if (!(old & P2M_CODE))
        tlbs_flush_write_gpa(&c->tlbs, gpa);
}

/* Decodes for this vCPU's model: a processor without TZCNT or LZCNT ignores the F3 of their encoding and
 * does BSF or BSR. */
static int decode(const struct cpu *c, struct insn *i, const uint8_t *code, size_t avail)
{
    int rc = insn_decode(i, code, avail, c->bits);
    uint8_t bare[INSN_MAX_LEN], len;
    unsigned n = 0, k = 0;

    if (rc != INSN_OK || (i->id != INSN_TZCNT && i->id != INSN_LZCNT) ||
        insn_supported(i, c->vm->cpuid))
        return rc;
    len = i->len;
    for (; code[k] != 0x0f; k++)
        if (code[k] != 0xf3)
            bare[n++] = code[k];
    while (k < len)
        bare[n++] = code[k++];
    rc = insn_decode(i, bare, n, c->bits);
    i->len = len;
    return rc;
}

/* Decodes the first instruction when it does not fit the page: fetches from the next one. */
static int decode_crossing(struct cpu *c, struct fetch *f, struct insn *i, uint64_t *gpa2)
{
    uint8_t buf[INSN_MAX_LEN];
    unsigned n = MIN(f->avail, (unsigned)INSN_MAX_LEN);
    uint64_t next = f->la + n, ent;
    unsigned rest = INSN_MAX_LEN - n;

    if (f->limited)
        return INSN_E_LONG;
    if (c->bits != CPU_64) {
        uint64_t room = c->s.seg[CS].limit - (c->s.rip + n) + 1;

        if (c->s.rip + n > c->s.seg[CS].limit)
            return INSN_E_LONG;
        next &= 0xffffffff;
        rest = (unsigned)MIN((uint64_t)rest, room);
    }
    memcpy(buf, f->host, n);
    *gpa2 = exec_gpa(c, next);
    watch_frame(c, *gpa2);
    ent = p2m_get(physmap_p2m(c->vm->map), *gpa2 >> PAGE_SHIFT);
    if (ent & P2M_PRESENT)
        memcpy(buf + n, p2m_host(ent) + (*gpa2 & PAGE_MASK), rest);
    else
        c->vm->env->mmio_read(c->v, *gpa2, buf + n, rest);
    if (!(ent & P2M_PRESENT))
        f->memory = false;
    switch (decode(c, i, buf, n + rest)) {
    case INSN_OK: return INSN_OK;
    case INSN_E_UD: return INSN_E_UD;
    default: return INSN_E_LONG;
    }
}

static insn_fn plain_fn(const struct cpu *c, const struct insn *i)
{
    insn_fn fn;

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

static bool ends_block(const struct insn *i)
{
    return (i->row->flags & (IF_BRANCH | IF_SYS)) && i->id != INSN_JCC;
}

static void page_add(struct cpu *c, struct block *b, uint64_t gfn, unsigned which)
{
    struct code_cache *cc = c->code;
    struct code_page **pp = page_link(cc, gfn);
    uint64_t first, last;

    if (!*pp) {
        *pp = arena_alloc(cc, sizeof(**pp));
        **pp = (struct code_page){ .gfn = gfn };
    }
    block_extent(b, gfn, &first, &last);
    (*pp)->granules |= granule_mask(first, last);
    b->page_next[which] = (*pp)->blocks;
    (*pp)->blocks = b;
}

struct draft {
    unsigned n;
    unsigned bytes;
    int error; /* what follows the n instructions: INSN_OK, or it raises #UD or #GP */
    uint64_t gpa2;
    struct insn insn[BLOCK_MAX_INSNS];
};

static void draft_decode(struct cpu *c, struct fetch *f, unsigned max, struct draft *d)
{
    d->n = d->bytes = 0;
    d->error = INSN_OK;
    d->gpa2 = ~0ull;
    while (d->n < max) {
        struct insn *i = &d->insn[d->n];
        int rc = decode(c, i, f->host + d->bytes, MIN(f->avail - d->bytes, INSN_MAX_LEN));

        if (rc == INSN_E_TRUNC) {
            if (d->n)
                return;
            rc = decode_crossing(c, f, i, &d->gpa2);
            if (rc == INSN_OK) {
                d->n = 1;
                d->bytes = i->len;
                return;
            }
        }
        if (rc != INSN_OK) {
            d->error = rc;
            return;
        }
        d->bytes += i->len;
        d->n++;
        if (ends_block(i) || d->bytes >= f->avail)
            return;
    }
}

static struct block *build(struct cpu *c, struct fetch *f, const struct draft *d, uint8_t mode)
{
    struct code_cache *cc = c->code;
    unsigned nops = d->n + 1;
    struct block *b = arena_alloc(cc, sizeof(*b) + nops * sizeof(struct op));
    bool sys = d->n && (d->insn[d->n - 1].row->flags & IF_SYS);
    uint16_t live = FL_STATUS;
    unsigned off = d->bytes;

    b->live = f->memory; /* code in I/O space is decoded anew each time */
    b->mode = mode;
    b->nops = (uint16_t)nops;
    b->gpa = f->gpa;
    b->gpa2 = d->gpa2 == ~0ull ? ~0ull : d->gpa2 & ~PAGE_MASK;
    b->bytes = (uint16_t)d->bytes;
    b->op[d->n] = (struct op){ .fn = sys ? end_leave : end_block, .off = (uint16_t)off, .cnt = (uint8_t)d->n };
    if (d->error) {
        struct plain *p = arena_alloc(cc, sizeof(*p));

        /* Any of the bytes that were looked at may turn it into something else. */
        b->bytes = (uint16_t)(d->bytes + MIN(f->avail - d->bytes, (unsigned)INSN_MAX_LEN));
        memset(p, 0, sizeof(*p));
        p->fn = d->error == INSN_E_UD ? raise_ud : raise_gp;
        b->op[d->n].fn = plain;
        b->op[d->n].plain = p;
        b->op[d->n].cnt = (uint8_t)(d->n + 1);
    }
    /* Backwards, so that each instruction knows which of its flags anybody will see. */
    for (unsigned k = d->n; k-- > 0;) {
        const struct insn *i = &d->insn[k];
        uint16_t writes = (uint16_t)(i->row->fl_write | i->row->fl_undef);
        struct op *o = &b->op[k];

        off -= i->len;
        *o = (struct op){ .off = (uint16_t)off, .len = i->len, .cnt = (uint8_t)(k + 1),
                          .b = G_ZERO, .x = G_ZERO };
        if (c->bits != CPU_64 || c->no_fast || !insn_supported(i, c->vm->cpuid) ||
            !fast_pick(o, i, !(live & writes))) {
            struct plain *p = arena_alloc(cc, sizeof(*p));

            p->fn = plain_fn(c, i);
            p->insn = *i;
            o->fn = p->fn != raise_ud && simd_prepare(c, i, &p->simd) &&
                    c->bits == CPU_64 && !(i->row->flags & IF_SYS) ? vector : plain;
            o->plain = p;
        }
        if (o->fn != plain && o->fn != vector && k + 1 < d->n && i[1].id == INSN_JCC &&
            b->op[k + 1].fn != plain)
            fast_fuse(o, i, &i[1]);
        live = (uint16_t)((live & ~i->row->fl_write) | i->row->fl_read);
        if (exposes_flags(i, o))
            live = FL_STATUS;
    }
    if (f->memory && b->bytes) {
        struct block **h = &cc->hash[hash_of(b->gpa, mode)];

        b->hash_next = *h;
        *h = b;
        page_add(c, b, b->gpa >> PAGE_SHIFT, 0);
        if (b->gpa2 != ~0ull)
            page_add(c, b, b->gpa2 >> PAGE_SHIFT, 1);
    }
    return b;
}

struct block *cache_lookup(struct cpu *c, unsigned max)
{
    struct code_cache *cc = c->code;
    uint8_t mode = (uint8_t)(c->bits | (max == 1) << 2 | c->no_fast << 3 |
                             (cpu_real(&c->s) || cpu_v86(&c->s)) << 4);
    struct fetch f;
    struct draft d;
    struct block *b;

    fetch_begin(c, &f);
    if (f.memory) {
        pthread_mutex_lock(&cc->lock);
        for (b = cc->hash[hash_of(f.gpa, mode)]; b; b = b->hash_next)
            if (b->gpa == f.gpa && b->mode == mode)
                break;
        pthread_mutex_unlock(&cc->lock);
        if (b && b->gpa2 == ~0ull && b->bytes <= f.avail)
            return b;
        if (b && b->gpa2 != ~0ull && !f.limited) {
            uint64_t next = f.la + (PAGE_SIZE - (f.la & PAGE_MASK));

            if (c->bits != CPU_64)
                next &= 0xffffffff;
            if (b->gpa2 == exec_gpa(c, next) &&
                (c->bits == CPU_64 || c->s.rip + b->bytes - 1 <= c->s.seg[CS].limit))
                return b;
        }
        if (b) { /* another second page, or a shorter CS limit: the old one is of no more use */
            pthread_mutex_lock(&cc->lock);
            block_kill(cc, b);
            pthread_mutex_unlock(&cc->lock);
        }
        /* Flag first, decode after: a store in between kills what we are about to build. */
        watch_frame(c, f.gpa);
    }
    draft_decode(c, &f, f.memory ? max : 1, &d);
    pthread_mutex_lock(&cc->lock);
    b = build(c, &f, &d, mode);
    pthread_mutex_unlock(&cc->lock);
    return b;
}
