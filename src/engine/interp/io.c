/*
 * Port I/O: IN, OUT, INS, OUTS with IOPL and the TSS's permission map. SDM vol. 1 ch. 19.
 * I/O has side effects, so everything that can fault is checked before the port is touched.
 */
#include <stdatomic.h>

#include "engine/interp/op.h"
#include "engine/interp/sys.h"
#include "engine/interp/world.h"

#define TSS_IOMAP 0x66
#define DR_RW_IO 2u

/* Elements of a REP INS or OUTS between looks at events. */
#define BATCH 256

static void check_port(struct cpu *c, uint16_t port, unsigned size)
{
    const struct segment *tr = &c->s.tr;

    if (cpu_real(&c->s) || (!cpu_v86(&c->s) && c->cpl <= cpu_iopl(c)))
        return;
    if ((tr->attr & SEG_UNUSABLE) || !(tr->attr & 8) || tr->limit < TSS_IOMAP + 1)
        cpu_raise(c, X_GP, 0);
    uint32_t at = lin_ld(c, sys_la(c, tr->base + TSS_IOMAP), 2, PRIV_SUPER) + port / 8u;

    /* Two bytes are always read, so the map needs one beyond the last port's. */
    if (at + 1 > tr->limit)
        cpu_raise(c, X_GP, 0);
    uint32_t map = lin_ld(c, sys_la(c, tr->base + at), 2, PRIV_SUPER);

    if (map >> (port % 8) & ((1u << size) - 1))
        cpu_raise(c, X_GP, 0);
}

/* I/O breakpoints (CR4.DE): a trap after the access. */
static void check_breakpoints(struct cpu *c, uint16_t port, unsigned size)
{
    uint64_t dr7 = c->s.dr[7];

    if (!(dr7 & 0xff) || !(c->s.cr4 & CR4_DE))
        return;
    for (unsigned k = 0; k < 4; k++) {
        unsigned len = (dr7 >> (18 + k * 4) & 3) + 1;
        uint64_t at = c->s.dr[k] & ~(uint64_t)(len - 1);

        if (!(dr7 >> (k * 2) & 3) || (dr7 >> (16 + k * 4) & 3) != DR_RW_IO || len == 3)
            continue;
        if (port < at + len && at < (uint64_t)port + size) {
            c->s.pending_dbg |= BIT(k);
            c->mode_changed = true;
        }
    }
}

/* The device may have raised an interrupt: it is taken before the next instruction, not at the end
 * of the block. */
static void accessed(struct cpu *c, uint16_t port, unsigned size)
{
    check_breakpoints(c, port, size);
    if (atomic_load_explicit(c->events, memory_order_relaxed))
        c->mode_changed = true;
}

static uint32_t port_in(struct cpu *c, uint16_t port, unsigned size)
{
    uint32_t v = world_pio_read(c, port, size);

    accessed(c, port, size);
    return v;
}

static void port_out(struct cpu *c, uint16_t port, unsigned size, uint32_t v)
{
    world_pio_write(c, port, size, v);
    accessed(c, port, size);
}

void sys_in(struct cpu *c, const struct insn *i)
{
    uint16_t port = op_read(c, i, 1);
    unsigned size = i->op[0].size;

    check_port(c, port, size);
    gpr_write(c, RAX, size, port_in(c, port, size));
}

void sys_out(struct cpu *c, const struct insn *i)
{
    uint16_t port = op_read(c, i, 0);
    unsigned size = i->op[1].size;

    check_port(c, port, size);
    port_out(c, port, size, gpr_read(c, RAX, size));
}

/* RSI, RDI or RCX += by at the address size. */
static void advance(struct cpu *c, const struct insn *i, unsigned reg, int64_t by)
{
    gpr_write(c, reg, i->addrsize, c->s.gpr[reg] + by);
}

static void ins_one(struct cpu *c, const struct insn *i, int64_t step)
{
    unsigned size = i->op[0].size;
    uint16_t port = c->s.gpr[RDX];

    check_port(c, port, size);
    uint64_t la = seg_lin(c, ES, gpr_read(c, RDI, i->addrsize), size, ACCESS_WRITE);

    lin_check(c, la, size, ACCESS_WRITE, PRIV_CPL);
    lin_st(c, la, size, port_in(c, port, size), PRIV_CPL);
    advance(c, i, RDI, step);
}

static void outs_one(struct cpu *c, const struct insn *i, int64_t step)
{
    unsigned size = i->op[0].size;
    uint16_t port = c->s.gpr[RDX];

    check_port(c, port, size);
    port_out(c, port, size, seg_ld(c, i->mem.seg, gpr_read(c, RSI, i->addrsize), size));
    advance(c, i, RSI, step);
}

/* Each element is an instruction of its own as far as faults, traps and interrupts go: the
 * registers are up to date after it. */
static void repeat(struct cpu *c, const struct insn *i,
                   void (*one)(struct cpu *, const struct insn *, int64_t))
{
    int64_t step = c->s.rflags & FL_DF ? -(int64_t)i->op[0].size : i->op[0].size;

    if (!(i->prefix & (PFX_REP | PFX_REPNE))) {
        one(c, i, step);
        return;
    }
    check_port(c, (uint16_t)c->s.gpr[RDX], i->op[0].size); /* even if there is nothing to do */
    for (unsigned n = 0; gpr_read(c, RCX, i->addrsize); n++) {
        if (n == BATCH || (n && (c->s.pending_dbg || c->step || cache_op_dead(c->op) ||
                                 atomic_load_explicit(c->events, memory_order_relaxed))))
            cpu_restart_rep(c);
        one(c, i, step);
        advance(c, i, RCX, -1);
    }
}

void sys_ins(struct cpu *c, const struct insn *i) { repeat(c, i, ins_one); }
void sys_outs(struct cpu *c, const struct insn *i) { repeat(c, i, outs_one); }
