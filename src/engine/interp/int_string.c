/* String instructions: element by element, restartable at each, and page-wise in 64-bit code. */
#include <string.h>

#include "engine/interp/alu.h"
#include "engine/interp/integer.h"
#include "engine/interp/op.h"

/* Elements between two looks at pending events. */
#define BATCH 4096u

static uint64_t advance(const struct cpu *c, const struct insn *i, uint64_t reg, uint64_t n, unsigned size)
{
    uint64_t step = c->s.rflags & FL_DF ? -(uint64_t)(n * size) : n * size;

    return reg + step;
}

static void move_on(struct cpu *c, const struct insn *i, unsigned reg, uint64_t n, unsigned size)
{
    gpr_write(c, reg, i->addrsize, advance(c, i, c->s.gpr[reg], n, size));
}

static uint64_t index_of(const struct cpu *c, const struct insn *i, unsigned reg)
{
    return gpr_read(c, reg, i->addrsize);
}

/* Runs one step of `elements` at a time under REP; step() does up to `max` and says how many. A comparison
 * leaves its flags in *cc and says in *stop whether it was the last. */
typedef uint64_t (*string_step)(struct cpu *c, const struct insn *i, uint64_t max, bool *stop, uint16_t *cc);

/* With ECX zero in 64-bit code Intel's processors clear upper halves: RCX's always, and the pointers' of MOVS
 * and STOS. */
static void none_left(struct cpu *c, const struct insn *i)
{
    if (c->bits != CPU_64 || i->addrsize != 4 || c->vm->cpuid->amd)
        return;
    c->s.gpr[RCX] = 0;
    if (i->id == INSN_MOVS)
        c->s.gpr[RSI] = (uint32_t)c->s.gpr[RSI];
    if (i->id == INSN_MOVS || i->id == INSN_STOS)
        c->s.gpr[RDI] = (uint32_t)c->s.gpr[RDI];
}

/* Flags change when the instruction ends: a fault, trap or interrupt in the middle sees those from before it
 * (SDM vol. 2, REP). */
static void repeat(struct cpu *c, const struct insn *i, string_step step)
{
    uint64_t done = 0;
    uint16_t cc = c->cc;
    bool stop = false;

    if (!(i->prefix & (PFX_REP | PFX_REPNE))) {
        step(c, i, 1, &stop, &c->cc);
        return;
    }
    while (!stop) {
        uint64_t left = gpr_read(c, RCX, i->addrsize), n;

        if (!left) {
            if (!done)
                none_left(c, i);
            break;
        }
        /* Between elements the state is consistent: events and single-step see RIP at the
         * instruction and the remaining count. */
        if (done && (done >= BATCH || c->step || cache_op_dead(c->op) ||
                     (c->bt.live && !*c->bt.live)))
            cpu_restart_rep(c);
        n = step(c, i, c->step ? 1 : MIN(left, (uint64_t)BATCH), &stop, &cc);
        gpr_write(c, RCX, i->addrsize, left - n);
        done += n;
    }
    c->cc = cc;
}

/* How many elements at linear address la lie in its page, going up. */
static uint64_t room(uint64_t la, unsigned size) { return (PAGE_SIZE - (la & PAGE_MASK)) / size; }

/* May elements be handled a page at a time? Then DS and ES have no base and no limit. Stores into code go one by
 * one, because it may be this instruction: lin_map_rw sees to that. */
static bool bulk(const struct cpu *c, const struct insn *i)
{
    return c->flat && i->addrsize == 8 && !(c->s.rflags & FL_DF) && c->tlb != c->no_tlb;
}

/* Copies n elements up, as if one after the other. False if they overlap within an element. */
static bool copy_up(void *to, const void *from, uint64_t n, unsigned size)
{
    uint64_t gap = (uintptr_t)to - (uintptr_t)from;

    if (gap >= n * size) {
        memmove(to, from, n * size);
        return true;
    }
    /* A destination just above the source repeats the pattern. */
    if (gap && gap < size)
        return false;
    for (uint64_t k = 0; k < n; k++)
        memcpy((char *)to + k * size, (const char *)from + k * size, size);
    return true;
}

static uint64_t movs_step(struct cpu *c, const struct insn *i, uint64_t max, bool *stop, uint16_t *cc)
{
    unsigned size = i->op[0].size;
    uint64_t src = index_of(c, i, RSI), dst = index_of(c, i, RDI), from, to, v;

    if (bulk(c, i)) {
        from = i->mem.seg >= FS ? src + c->s.seg[i->mem.seg].base : src;
        uint64_t n = MIN(max, MIN(room(from, size), room(dst, size)));

        if (n && is_canonical(from) && is_canonical(dst)) {
            const void *p = tlb_host(c, from, (unsigned)(n * size), false);
            void *q = tlb_host(c, dst, (unsigned)(n * size), true);

            if (!p)
                p = lin_map_ro(c, from, (unsigned)(n * size));
            if (!q)
                q = lin_map_rw(c, dst, (unsigned)(n * size));
            if (p && q && copy_up(q, p, n, size)) {
                c->s.gpr[RSI] += n * size;
                c->s.gpr[RDI] += n * size;
                return n;
            }
        }
    }
    from = seg_lin(c, i->mem.seg, src, size, ACCESS_READ);
    v = lin_ld(c, from, size, PRIV_CPL);
    to = seg_lin(c, ES, dst, size, ACCESS_WRITE);
    lin_st(c, to, size, v, PRIV_CPL);
    move_on(c, i, RSI, 1, size);
    move_on(c, i, RDI, 1, size);
    return 1;
}

static void fill(void *p, uint64_t v, unsigned size, uint64_t n)
{
    switch (size) {
    case 1: memset(p, (int)v, n); break;
    case 2:
        for (uint64_t k = 0; k < n; k++)
            memcpy((char *)p + 2 * k, &v, 2);
        break;
    case 4:
        for (uint64_t k = 0; k < n; k++)
            memcpy((char *)p + 4 * k, &v, 4);
        break;
    default:
        for (uint64_t k = 0; k < n; k++)
            memcpy((char *)p + 8 * k, &v, 8);
    }
}

static uint64_t stos_step(struct cpu *c, const struct insn *i, uint64_t max, bool *stop, uint16_t *cc)
{
    unsigned size = i->op[0].size;
    uint64_t dst = index_of(c, i, RDI), v = gpr_read(c, RAX, size);

    if (bulk(c, i) && is_canonical(dst)) {
        uint64_t n = MIN(max, room(dst, size));
        void *p = n ? tlb_host(c, dst, (unsigned)(n * size), true) : NULL;

        if (n && !p)
            p = lin_map_rw(c, dst, (unsigned)(n * size));
        if (p) {
            fill(p, v, size, n);
            c->s.gpr[RDI] += n * size;
            return n;
        }
    }
    lin_st(c, seg_lin(c, ES, dst, size, ACCESS_WRITE), size, v, PRIV_CPL);
    move_on(c, i, RDI, 1, size);
    return 1;
}

static uint64_t lods_step(struct cpu *c, const struct insn *i, uint64_t max, bool *stop, uint16_t *cc)
{
    unsigned size = i->op[0].size;

    gpr_write(c, RAX, size, seg_ld(c, i->mem.seg, index_of(c, i, RSI), size));
    move_on(c, i, RSI, 1, size);
    return 1;
}

/* REPE goes on while equal, REPNE while different. */
static void compare(struct cpu *c, const struct insn *i, unsigned size, uint64_t a, uint64_t b, bool *stop,
                    uint16_t *cc)
{
    switch (size) {
    case 1: alu_cmp8((uint8_t)a, (uint8_t)b, cc); break;
    case 2: alu_cmp16((uint16_t)a, (uint16_t)b, cc); break;
    case 4: alu_cmp32((uint32_t)a, (uint32_t)b, cc); break;
    default: alu_cmp64(a, b, cc); break;
    }
    *stop = (i->prefix & PFX_REPNE) ? a == b : a != b;
}

static uint64_t cmps_step(struct cpu *c, const struct insn *i, uint64_t max, bool *stop, uint16_t *cc)
{
    unsigned size = i->op[0].size;
    uint64_t b = seg_ld(c, ES, index_of(c, i, RDI), size);
    uint64_t a = seg_ld(c, i->mem.seg, index_of(c, i, RSI), size);

    compare(c, i, size, a, b, stop, cc);
    move_on(c, i, RSI, 1, size);
    move_on(c, i, RDI, 1, size);
    return 1;
}

static uint64_t scas_step(struct cpu *c, const struct insn *i, uint64_t max, bool *stop, uint16_t *cc)
{
    unsigned size = i->op[0].size;
    uint64_t b = seg_ld(c, ES, index_of(c, i, RDI), size);

    compare(c, i, size, gpr_read(c, RAX, size), b, stop, cc);
    move_on(c, i, RDI, 1, size);
    return 1;
}

PLAIN(int_movs) { repeat(c, i, movs_step); }
PLAIN(int_stos) { repeat(c, i, stos_step); }
PLAIN(int_lods) { repeat(c, i, lods_step); }
PLAIN(int_cmps) { repeat(c, i, cmps_step); }
PLAIN(int_scas) { repeat(c, i, scas_step); }
