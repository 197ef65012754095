/* Dry runs: the overlay of stores, and the run itself (dry.h). */
#include "engine/interp/dry.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

_Static_assert(DRY_WORDS < UINT16_MAX && (DRY_WORDS & (DRY_WORDS - 1)) == 0, "indices fit");

struct dry *dry_new(void)
{
    struct dry *d = calloc(1, sizeof(*d));

    if (!d)
        return NULL;
    d->vec = calloc(ARRAY_LEN(d->point), sizeof(*d->vec));
    if (!d->vec) {
        free(d);
        return NULL;
    }
    return d;
}

void dry_free(struct dry *d)
{
    if (!d)
        return;
    free(d->vec);
    free(d);
}

/* ---- stores ---- */

uint64_t dry_bits(uint8_t mask)
{
    uint64_t m = 0;

    for (unsigned k = 0; k < 8; k++)
        if (mask >> k & 1)
            m |= 0xffull << 8 * k;
    return m;
}

/* Where dry.slot names the word, or the free place where it would. */
static unsigned slot_of(const struct dry *d, const uint64_t *at)
{
    unsigned h = (unsigned)(((uintptr_t)at >> 3) * 0x9e3779b97f4a7c15ull >> 40);

    for (;; h++) {
        h &= ARRAY_LEN(d->slot) - 1;
        if (!d->slot[h] || d->word[d->slot[h] - 1].at == at)
            return h;
    }
}

static _Noreturn void end_before(struct cpu *c, enum dry_stop why)
{
    c->dry->stop = why;
    longjmp(*c->dry->out, 1);
}

_Noreturn void dry_refuse(struct cpu *c) { end_before(c, DRY_REFUSED); }

/* The part of [host, host+n) that begins at byte k and lies in one word. */
struct part {
    uint64_t *at;
    unsigned shift, n; /* its first byte's bit in the word; bytes */
};

static struct part part_at(const uint8_t *host, unsigned k, unsigned n)
{
    uintptr_t a = (uintptr_t)host + k;
    unsigned in = a & 7;

    return (struct part){.at = (uint64_t *)(a - in), .shift = in * 8, .n = MIN(n - k, 8 - in)};
}

void dry_load(const struct dry *d, void *out, const uint8_t *host, unsigned n)
{
    memcpy(out, host, n);
    if (!d->nwords)
        return;
    for (unsigned k = 0; k < n;) {
        struct part p = part_at(host, k, n);
        unsigned s = slot_of(d, p.at);

        if (d->slot[s]) {
            const struct dry_word *w = &d->word[d->slot[s] - 1];

            for (unsigned b = p.shift / 8; b < p.shift / 8 + p.n; b++)
                if (w->mask >> b & 1)
                    ((uint8_t *)out)[k + b - p.shift / 8] = (uint8_t)(w->now >> 8 * b);
        }
        k += p.n;
    }
}

static struct dry_word *word_at(struct cpu *c, uint64_t gpa, uint64_t *at)
{
    struct dry *d = c->dry;
    unsigned s = slot_of(d, at);

    if (!d->slot[s]) {
        struct dry_word *w = &d->word[d->nwords];
        uint64_t v;

        if (d->nwords == DRY_WORDS)
            end_before(c, DRY_UNSURE);
        memcpy(&v, at, sizeof(v));
        *w = (struct dry_word){
            .at = at, .gpa = gpa, .before = v, .now = v, .slot = (uint16_t)s};
        d->slot[s] = (uint16_t)++d->nwords;
    }
    return &d->word[d->slot[s] - 1];
}

void dry_store(struct cpu *c, uint64_t gpa, uint8_t *host, const void *in, unsigned n)
{
    struct dry *d = c->dry;

    for (unsigned k = 0; k < n;) {
        struct part p = part_at(host, k, n);
        struct dry_word *w = word_at(c, (gpa + k) & ~7ull, p.at);
        uint8_t mask = (uint8_t)(((1u << p.n) - 1) << p.shift / 8);
        uint64_t v = 0, m = dry_bits(mask);

        if (d->nwrites == DRY_WRITES)
            end_before(c, DRY_UNSURE);
        memcpy(&v, (const uint8_t *)in + k, p.n);
        v <<= p.shift;
        w->now = (w->now & ~m) | v;
        w->mask |= mask;
        d->write[d->nwrites++] =
            (struct dry_write){.val = v, .word = (uint16_t)(w - d->word), .mask = mask};
        k += p.n;
    }
}

void dry_forget(struct dry *d)
{
    for (unsigned k = 0; k < d->nwords; k++)
        d->slot[d->word[k].slot] = 0;
    d->nwords = 0;
}

bool dry_words(const struct dry *d, unsigned k, dry_word_fn fn, void *arg)
{
    uint64_t expected[DRY_WORDS];

    for (unsigned n = 0; n < d->nwords; n++)
        expected[n] = d->word[n].before;
    for (unsigned n = 0; n < d->point[k].writes; n++) {
        const struct dry_write *w = &d->write[n];

        expected[w->word] = (expected[w->word] & ~dry_bits(w->mask)) | w->val;
    }
    for (unsigned n = 0; n < d->nwords; n++)
        if (!fn(arg, &d->word[n], expected[n]))
            return false;
    return true;
}

/* ---- points ---- */

void dry_take(struct dry_point *p, const struct cpu *c)
{
    p->rip = c->s.rip;
    p->rflags = cpu_flags(c);
    memcpy(p->gpr, c->s.gpr, sizeof(p->gpr));
    p->gs_base = c->s.seg[GS].base;
    p->kernel_gs_base = c->s.kernel_gs_base;
    p->sti_shadow = c->s.sti_shadow;
    p->len = p->undef = 0;
    p->tainted = p->repeats = false;
    p->row = NULL;
    p->writes = 0;
    p->vec = 0;
}

/* Where the state is now becomes point[n]. */
static void note(struct dry *d, struct cpu *c, bool vec)
{
    struct dry_point *p = &d->point[d->n];

    dry_take(p, c);
    p->writes = d->nwrites;
    if (vec) {
        x87_sync(c);
        memcpy(d->vec[d->nvec++], (const uint8_t *)&c->s + DRY_VEC_FROM, DRY_VEC_BYTES);
    }
    p->vec = (uint16_t)d->nvec;
}

/* ---- instructions ---- */

/* The bytes from offset off of the block on, as the run sees them; how many, up to 15. */
static unsigned fetch(const struct dry *d, struct cpu *c, uint8_t buf[INSN_MAX_LEN],
                      const uint8_t **host)
{
    const struct p2m *p2m = physmap_p2m(c->vm->map);
    const struct block *b = d->block;
    unsigned first = (unsigned)(PAGE_SIZE - (b->gpa & PAGE_MASK)), n;
    uint64_t ent = p2m_get(p2m, b->gpa >> PAGE_SHIFT);

    if (!(ent & P2M_PRESENT) || d->off >= first)
        return 0;
    n = MIN(first - d->off, (unsigned)INSN_MAX_LEN);
    *host = p2m_host(ent) + (b->gpa & PAGE_MASK) + d->off;
    dry_load(d, buf, *host, n);
    if (n == INSN_MAX_LEN || b->gpa2 == ~0ull)
        return n;
    ent = p2m_get(p2m, b->gpa2 >> PAGE_SHIFT);
    if (!(ent & P2M_PRESENT))
        return n;
    dry_load(d, buf + n, p2m_host(ent), INSN_MAX_LEN - n);
    return INSN_MAX_LEN;
}

/* The instruction at offset off, decoded; NULL if there is none. */
static const struct dry_insn *insn_at(struct dry *d, struct cpu *c)
{
    uint8_t buf[INSN_MAX_LEN], mode = (uint8_t)(c->bits | (cpu_real(&c->s) || cpu_v86(&c->s)) << 2);
    const uint8_t *host = NULL;
    unsigned n = fetch(d, c, buf, &host);
    struct dry_insn *x;
    struct insn i;

    if (!n)
        return NULL;
    x = &d->insn[((uintptr_t)host * 0x9e3779b97f4a7c15ull >> 32) & (DRY_INSNS_CACHED - 1)];
    if (x->host == host && x->mode == mode && x->plain.insn.len <= n &&
        !memcmp(x->plain.insn.raw, buf, x->plain.insn.len))
        return x;
    if (insn_decode(&i, buf, n, c->bits) != INSN_OK)
        return NULL;
    x->host = host;
    x->mode = mode;
    x->vector = plain_prepare(c, &x->plain, &i);
    return x;
}

/* Can the instruction be run without anybody noticing, and twice with the same result? */
static enum dry_stop judge(const struct insn *i)
{
    switch (i->id) {
    case INSN_CLI:
    case INSN_STI:
    case INSN_STAC:
    case INSN_CLAC:
    case INSN_POPF:
    case INSN_SWAPGS:
        return DRY_RUNNING;
    case INSN_IN:
    case INSN_OUT:
    case INSN_INS:
    case INSN_OUTS:
    case INSN_CPUID: /* asks the machine */
        return DRY_REFUSED;
    case INSN_RDTSC:
    case INSN_RDTSCP:
    case INSN_RDPMC:
    case INSN_RDRAND:
    case INSN_RDSEED:
        return DRY_UNSURE;
    default:
        return i->row->flags & IF_SYS ? DRY_REFUSED : DRY_RUNNING;
    }
}

/* Flags that an instruction may change without more to be done about it. */
#define FL_EASY (FL_STATUS | FL_DF | FL_IF)

/* Of AC depends which TLB set answers; here none does. POPF is left alone with it, as translations leave it. */
static uint64_t may_change(const struct insn *i)
{
    return i->id == INSN_STAC || i->id == INSN_CLAC ? FL_EASY | FL_AC : FL_EASY;
}

/*
 * Undefined flags differ even between forms of one instruction (ROL by an immediate and by CL), so
 * engines that execute different forms may both be right. fl_read of shifts only says that they may
 * leave flags as they are. AF is left out of what taints: PUSHF behind a logical instruction is
 * common, and they all agree there.
 */
static void spread_undefined(const struct dry_point *from, struct dry_point *to, const struct insn *i)
{
    const struct insn_row *row = i->row;
    bool operand = !(row->fl_read & row->fl_undef);

    to->undef = (uint16_t)((from->undef & ~(row->fl_write & ~row->fl_read)) | row->fl_undef);
    to->tainted = from->tainted || (operand && (row->fl_read & from->undef & ~FL_AF));
}

static bool repeats(const struct insn *i)
{
    return (i->row->flags & IF_REP) && (i->prefix & (PFX_REP | PFX_REPNE));
}

/* Runs one instruction. Leaves by longjmp() if it does not get to its end. */
static void one(struct dry *d, struct cpu *c)
{
    struct dry_point *p = &d->point[d->n];
    const struct dry_insn *x;
    const struct insn *i;
    uint64_t next;
    bool vec;

    if (d->off >= d->block->bytes || d->n == BLOCK_MAX_INSNS || !(x = insn_at(d, c))) {
        d->stop = DRY_DONE;
        return;
    }
    i = &x->plain.insn;
    d->stop = judge(i);
    if (d->stop != DRY_RUNNING)
        return;
    p->repeats = repeats(i);
    vec = i->row->flags & (IF_X87 | IF_MMX | IF_SSE | IF_AVX | IF_AVX512);
    d->vec_used |= vec;
    next = c->s.rip + i->len;
    if (c->bits != CPU_64)
        next = (uint32_t)next;
    c->next_rip = next;
    c->s.sti_shadow = 0;
    if (x->vector)
        x->plain.simd.run(c, i, &x->plain.simd);
    else
        x->plain.fn(c, i);
    if ((c->s.rflags ^ p->rflags) & ~may_change(i)) {
        d->stop = DRY_REFUSED;
        return;
    }
    p->len = i->len;
    p->row = i->row;
    memcpy(p->bytes, i->raw, i->len);
    c->s.rip = c->next_rip;
    d->off += i->len;
    d->n++;
    note(d, c, vec);
    spread_undefined(p, p + 1, i);
    if (c->s.rip != next)
        d->stop = DRY_DONE;
}

/* An instruction was left half-way. */
static void left(struct dry *d, struct cpu *c)
{
    const struct dry_point *p = &d->point[d->n];

    if (d->stop != DRY_RUNNING)
        return;
    if (c->deliver) {
        d->stop = DRY_REFUSED;
        d->vector = c->event.vector;
        d->stored = d->nwrites > p->writes;
        d->point[d->n + 1] = *p;
        d->point[d->n + 1].writes = d->nwrites;
        return;
    }
    /* One element of a string instruction, or somebody waits for something. */
    c->s.rflags &= ~FL_RF;
    if (!p->repeats) {
        d->stop = DRY_REFUSED;
    } else if (d->until && d->until->rip == p->rip && d->until->gpr[RCX] == c->s.gpr[RCX]) {
        d->n++;
        note(d, c, false);
        d->point[d->n].undef = p->undef;
        d->stop = DRY_DONE;
    } else if (++d->elements == DRY_ELEMENTS) {
        d->stop = DRY_UNSURE;
    }
}

/* What an instruction changes of the vCPU beside its state. */
struct kept {
    jmp_buf fault;
    struct event event;
    struct tlb_set *tlb;
    const struct op *op;
    uint64_t next_rip;
    bool deliver, step, partly, mode_changed;
};

static void keep(struct kept *k, const struct cpu *c)
{
    memcpy(&k->fault, &c->fault, sizeof(k->fault));
    k->event = c->event;
    k->tlb = c->tlb;
    k->op = c->op;
    k->next_rip = c->next_rip;
    k->deliver = c->deliver;
    k->step = c->step;
    k->partly = c->partly;
    k->mode_changed = c->mode_changed;
}

static void put_back(const struct kept *k, struct cpu *c)
{
    memcpy(&c->fault, &k->fault, sizeof(c->fault));
    c->event = k->event;
    c->tlb = k->tlb;
    c->op = k->op;
    c->next_rip = k->next_rip;
    c->deliver = k->deliver;
    c->step = k->step;
    c->partly = k->partly;
    c->mode_changed = k->mode_changed;
}

/* Instructions that are run dry change no other part of the state. */
static void put_back_state(const struct dry *d, struct cpu *c)
{
    memcpy(&c->s, &d->start, offsetof(struct cpu_state, seg));
    c->s.cr2 = d->start.cr2;
    c->s.seg[GS].base = d->start.seg[GS].base;
    c->s.kernel_gs_base = d->start.kernel_gs_base;
    c->s.sti_shadow = d->start.sti_shadow;
    if (d->vec_used)
        memcpy((uint8_t *)&c->s + DRY_VEC_FROM, (const uint8_t *)&d->start + DRY_VEC_FROM,
               DRY_VEC_BYTES);
    c->cc = flags_to_cc(d->start.rflags);
}

/* From the state in c, which is put back. */
static void run(struct dry *d, struct cpu *c)
{
    struct kept kept;

    keep(&kept, c);
    c->dry = d;
    c->tlb = c->no_tlb;
    c->op = &d->op;
    c->deliver = false;
    c->step = true; /* string instructions come back after each element */
    d->stop = DRY_RUNNING;
    d->vector = DRY_NO_FAULT;
    d->n = d->nvec = d->elements = d->nwrites = 0;
    d->off = d->from;
    d->stored = d->vec_used = false;
    note(d, c, false);
    d->out = &c->fault;
    if (setjmp(c->fault))
        left(d, c);
    while (d->stop == DRY_RUNNING)
        one(d, c);
    x87_sync(c);
    put_back(&kept, c);
    c->dry = NULL;
    put_back_state(d, c);
}

void dry_run(struct dry *d, struct cpu *c, const struct block *b, unsigned from)
{
    assert(!c->vec_live && !c->dry);
    x87_sync(c);
    d->block = b;
    d->from = from;
    memcpy(&d->start, &c->s, sizeof(d->start));
    d->start.rflags = cpu_flags(c);
    d->until = NULL;
    dry_forget(d);
    run(d, c);
}

void dry_again(struct dry *d, struct cpu *c, const struct dry_point *until)
{
    struct cpu_state now;
    uint16_t cc = c->cc;

    x87_sync(c);
    memcpy(&now, &c->s, sizeof(now));
    for (unsigned k = 0; k < d->nwords; k++)
        d->word[k].now = d->word[k].before;
    memcpy(&c->s, &d->start, sizeof(c->s));
    c->cc = flags_to_cc(d->start.rflags);
    d->until = until;
    run(d, c);
    memcpy(&c->s, &now, sizeof(c->s));
    c->cc = cc;
}
