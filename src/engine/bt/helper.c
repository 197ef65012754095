/* Instructions that translated code hands to C without leaving: string moves and the cheap ones among the
 * privileged. Compiled without vector registers, which are the guest's. Each does the whole
 * instruction or as much of it as leaves an exact state, and returns where to go on, or NULL: the
 * interpreter does it, or the rest. */
#include <string.h>

#include "base/clock.h"
#include "engine/bt/bt.h"
#include "engine/interp/op.h"

static const uint8_t *done(const struct cpu *c, const struct bt_site *s)
{
    return bt_host(c->shared->bt, s->retry);
}

static const struct bt_site *site_of(const struct cpu *c, uint32_t n) { return &c->shared->bt->site[n]; }

/* The host address of la if the TLB can answer, for an access that stays in the page. */
static uint8_t *host(struct cpu *c, uint64_t la, enum access a)
{
    struct tlb_entry *e = tlb_slot(c->tlb, la);
    uint64_t page = la & ~PAGE_MASK;
    struct refill r;

    if ((a == ACCESS_WRITE ? e->wtag : e->rtag) != page) {
        if (!is_canonical(la) || c->tlb == c->no_tlb)
            return NULL;
        if (!tlb_refill(c, la, a, PRIV_CPL, &r) || r.w.ncode) {
            if (r.w.ncode) {
                bt_vec_leave(c);
                mem_walked(c, &r.w);
            }
            return NULL;
        }
        if ((a == ACCESS_WRITE ? e->wtag : e->rtag) != page)
            return NULL;
    }
    return (uint8_t *)(uintptr_t)(la + e->addend);
}

/* The host's own instruction, for its order of accesses when they overlap. */
static void copy(uint8_t *to, const uint8_t *from, uint64_t n, unsigned size)
{
    switch (size) {
    case 1:
        __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
        break;
    case 2:
        __asm__ volatile("rep movsw" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
        break;
    case 4:
        __asm__ volatile("rep movsl" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
        break;
    default:
        __asm__ volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
    }
}

static void fill(uint8_t *to, uint64_t v, uint64_t n, unsigned size)
{
    switch (size) {
    case 1:
        __asm__ volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(v) : "memory");
        break;
    case 2:
        __asm__ volatile("rep stosw" : "+D"(to), "+c"(n) : "a"(v) : "memory");
        break;
    case 4:
        __asm__ volatile("rep stosl" : "+D"(to), "+c"(n) : "a"(v) : "memory");
        break;
    default:
        __asm__ volatile("rep stosq" : "+D"(to), "+c"(n) : "a"(v) : "memory");
    }
}

static uint64_t to_page_end(uint64_t la) { return PAGE_SIZE - (la & PAGE_MASK); }

/* Page by page; what does not fit, and whatever comes after a kick, is the interpreter's. */
static const uint8_t *string(struct cpu *c, const struct bt_site *s, bool move)
{
    uint64_t *g = c->s.gpr, once = 1, *count = s->rep ? &g[RCX] : &once;
    unsigned size = s->span;

    if (c->s.rflags & FL_DF)
        return NULL;
    while (*count) {
        uint64_t room = to_page_end(g[RDI]), n;
        const uint8_t *from = NULL;
        uint8_t *to;

        if (move)
            room = MIN(room, to_page_end(g[RSI]));
        n = MIN(*count, room / size);
        if (!n || !atomic_load_explicit(&c->bt.quiet, memory_order_relaxed))
            return NULL;
        if (move && !(from = host(c, g[RSI], ACCESS_READ)))
            return NULL;
        to = host(c, g[RDI], ACCESS_WRITE);
        if (!to)
            return NULL;
        if (move) {
            copy(to, from, n, size);
            g[RSI] += n * size;
        } else {
            fill(to, g[RAX], n, size);
        }
        g[RDI] += n * size;
        *count -= n;
    }
    return done(c, s);
}

const uint8_t *bt_help_movs(struct cpu *c, uint32_t n) { return string(c, site_of(c, n), true); }
const uint8_t *bt_help_stos(struct cpu *c, uint32_t n) { return string(c, site_of(c, n), false); }

static bool may_change_if(const struct cpu *c)
{
    return c->cpl <= (c->s.rflags >> 12 & 3);
}

const uint8_t *bt_help_cli(struct cpu *c, uint32_t n)
{
    if (!may_change_if(c))
        return NULL;
    c->s.rflags &= ~FL_IF;
    return done(c, site_of(c, n));
}

/* With nothing waiting nobody can tell that the shadow was not kept. */
static bool may_enable(const struct cpu *c)
{
    return may_change_if(c) && !c->bt.intr && !atomic_load_explicit(c->events, memory_order_relaxed);
}

const uint8_t *bt_help_sti(struct cpu *c, uint32_t n)
{
    if (!may_enable(c))
        return NULL;
    c->s.rflags |= FL_IF;
    return done(c, site_of(c, n));
}

/* What sys_stac and sys_clac come to at privilege level 0: other rights to users' pages, and the same code. False if
 * it is not that simple. */
static bool set_ac(struct cpu *c, enum tlb_kind kind, uint64_t ac)
{
    if (c->cpl || c->tlb == c->no_tlb)
        return false;
    c->s.rflags = (c->s.rflags & ~FL_AC) | ac;
    c->tlb = &c->tlbs.ctx[c->tlbs.cur].set[c->pg.smap ? kind : TLB_SUPER];
    return true;
}

const uint8_t *bt_help_stac(struct cpu *c, uint32_t n)
{
    return set_ac(c, TLB_SUPER_AC, FL_AC) ? done(c, site_of(c, n)) : NULL;
}

const uint8_t *bt_help_clac(struct cpu *c, uint32_t n)
{
    if (!set_ac(c, TLB_SUPER, 0))
        return NULL;
    /* The stack's page may have been a user's. */
    bt_stack_check(c);
    return done(c, site_of(c, n));
}

const uint8_t *bt_help_pushf(struct cpu *c, uint32_t n)
{
    uint64_t rsp = c->s.gpr[RSP] - 8;
    uint8_t *p;

    if (to_page_end(rsp) < 8 || !(p = host(c, rsp, ACCESS_WRITE)))
        return NULL;
    *(uint64_t __attribute__((may_alias, aligned(1))) *)p = cpu_flags(c) & ~(FL_VM | FL_RF);
    c->s.gpr[RSP] = rsp;
    return done(c, site_of(c, n));
}

const uint8_t *bt_help_popf(struct cpu *c, uint32_t n)
{
    const uint64_t easy = FL_STATUS | FL_DF | FL_IF;
    uint64_t rsp = c->s.gpr[RSP], old = cpu_flags(c), fl;
    const uint8_t *p;

    if (to_page_end(rsp) < 8 || !(p = host(c, rsp, ACCESS_READ)))
        return NULL;
    fl = *(const uint64_t __attribute__((may_alias, aligned(1))) *)p;
    if ((old ^ fl) & (FL_TF | FL_NT | FL_AC | FL_ID | FL_IOPL))
        return NULL;
    if ((old ^ fl) & FL_IF && !(fl & FL_IF ? may_enable(c) : may_change_if(c)))
        return NULL;
    c->s.rflags = (c->s.rflags & ~easy) | (fl & easy);
    cpu_set_status(c, fl);
    c->s.gpr[RSP] = rsp + 8;
    return done(c, site_of(c, n));
}

const uint8_t *bt_help_swapgs(struct cpu *c, uint32_t n)
{
    uint64_t base = c->s.seg[GS].base;

    if (c->cpl)
        return NULL;
    c->s.seg[GS].base = c->s.kernel_gs_base;
    c->s.kernel_gs_base = base;
    return done(c, site_of(c, n));
}

const uint8_t *bt_help_cld(struct cpu *c, uint32_t n)
{
    c->s.rflags &= ~FL_DF;
    return done(c, site_of(c, n));
}

/* A run in lockstep cannot know the time: there the interpreter reads it, between two blocks. */
static bool read_tsc(struct cpu *c)
{
    uint64_t tsc;

    if (c->bt.check || ((c->s.cr4 & CR4_TSD) && c->cpl))
        return false;
    bt_vec_leave(c);
    tsc = clock_tsc(c->vm->clock) + c->s.tsc_offset;
    c->s.gpr[RAX] = (uint32_t)tsc;
    c->s.gpr[RDX] = tsc >> 32;
    return true;
}

const uint8_t *bt_help_rdtsc(struct cpu *c, uint32_t n) { return read_tsc(c) ? done(c, site_of(c, n)) : NULL; }

const uint8_t *bt_help_rdtscp(struct cpu *c, uint32_t n)
{
    if (!read_tsc(c))
        return NULL;
    c->s.gpr[RCX] = (uint32_t)c->s.tsc_aux;
    return done(c, site_of(c, n));
}

/* ---- with operands ---- */

static const struct insn *insn_of(const struct bt_site *s) { return s->apart ? cache_single_insn(s->single) : NULL; }

/* Of the memory operand of an instruction with 64-bit addresses. */
static uint64_t linear(const struct cpu *c, const struct bt_site *s, const struct insn *i)
{
    const struct insn_mem *m = &i->mem;
    uint64_t la = (uint64_t)m->disp + (m->seg >= FS ? c->s.seg[m->seg].base : 0);

    if (m->base == REG_RIP)
        la += c->bt.vpage + s->off + i->len;
    else if (m->base != REG_NONE)
        la += c->s.gpr[m->base];
    return m->index == REG_NONE ? la : la + (c->s.gpr[m->index] << m->scale);
}

/* Does to the word at p what BT, BTS, BTR or BTC do, and returns what it was. */
#define DEFINE_BITS(T)                                                                             \
    static uint64_t bits_##T(void *p, enum insn_id id, bool lock, T mask)                          \
    {                                                                                              \
        typedef T __attribute__((may_alias, aligned(1))) word;                                     \
        T old;                                                                                     \
                                                                                                   \
        if (lock && id == INSN_BTS)                                                                \
            return __atomic_fetch_or((T *)p, mask, __ATOMIC_SEQ_CST);                              \
        if (lock && id == INSN_BTR)                                                                \
            return __atomic_fetch_and((T *)p, (T)~mask, __ATOMIC_SEQ_CST);                         \
        if (lock)                                                                                  \
            return __atomic_fetch_xor((T *)p, mask, __ATOMIC_SEQ_CST);                             \
        old = *(volatile word *)p;                                                                 \
        if (id != INSN_BT)                                                                         \
            *(volatile word *)p = (T)(id == INSN_BTS ? old | mask : id == INSN_BTR ? old & ~mask : old ^ mask); \
        return old;                                                                                \
    }
DEFINE_BITS(uint16_t)
DEFINE_BITS(uint32_t)
DEFINE_BITS(uint64_t)

/* With the bit's number in a register, which reaches beyond the operand, signed. */
const uint8_t *bt_help_bits(struct cpu *c, uint32_t n)
{
    const struct bt_site *s = site_of(c, n);
    const struct insn *i = insn_of(s);
    uint64_t bit, mask, la, old;
    unsigned size;
    bool lock;
    uint8_t *p;

    if (!i)
        return NULL;
    size = i->op[0].size;
    lock = i->prefix & PFX_LOCK;
    bit = c->s.gpr[i->op[1].reg];
    mask = BIT(bit & (size * 8 - 1));
    la = linear(c, s, i) + (uint64_t)((int64_t)sext(bit, size * 8) >> 3 & -(int64_t)size);
    if (to_page_end(la) < size || (lock && (la & (size - 1))))
        return NULL;
    p = host(c, la, i->id == INSN_BT ? ACCESS_READ : ACCESS_WRITE);
    if (!p)
        return NULL;
    old = size == 8   ? bits_uint64_t(p, i->id, lock, mask)
          : size == 4 ? bits_uint32_t(p, i->id, lock, (uint32_t)mask)
                      : bits_uint16_t(p, i->id, lock, (uint16_t)mask);
    c->cc = (uint16_t)((c->cc & ~flags_to_cc(FL_CF)) | (old & mask ? flags_to_cc(FL_CF) : 0));
    return done(c, s);
}

const uint8_t *bt_help_read_sreg(struct cpu *c, uint32_t n)
{
    const struct bt_site *s = site_of(c, n);
    const struct insn *i = insn_of(s);
    uint16_t sel;

    if (!i)
        return NULL;
    sel = c->s.seg[i->op[1].reg].sel;
    if (i->op[0].kind == OP_MEM) {
        uint64_t la = linear(c, s, i);
        uint8_t *p = to_page_end(la) < sizeof(sel) ? NULL : host(c, la, ACCESS_WRITE);

        if (!p)
            return NULL;
        memcpy(p, &sel, sizeof(sel));
    } else {
        uint64_t *r = &c->s.gpr[i->op[0].reg];

        *r = i->op[0].size == 2 ? (*r & ~0xffffull) | sel : sel;
    }
    return done(c, s);
}
