/* Instructions that translated code hands to C without leaving: string moves and the cheap ones among the
 * privileged. Compiled without vector registers, which are the guest's. Each does the whole
 * instruction or as much of it as leaves an exact state, and returns where to go on, or NULL: the
 * interpreter does it, or the rest. */
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
