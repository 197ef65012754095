/* Memory operands of vector and x87 instructions (simd.h). */
#include "engine/interp/simd.h"

#include <string.h>

uint64_t simd_lin(struct cpu *c, const struct insn *i, unsigned n, enum access a)
{
    uint64_t la;

    /* #GP for misalignment comes before #SS for a stack address that is not canonical. */
    if ((i->row->flags & IF_ALIGN) && simd_flat_la(c, i, &la) && (la & (n - 1)))
        cpu_raise(c, X_GP, 0);
    la = insn_lin(c, i, n, a);
    if ((i->row->flags & IF_ALIGN) && (la & (n - 1)))
        cpu_raise(c, X_GP, 0);
    return la;
}

/* Alignment checking leaves VCVTPH2PS alone. */
static enum priv load_priv(const struct insn *i)
{
    return i->map == 2 && i->opcode == 0x13 && i->pp == 1 ? PRIV_ELEMENT : PRIV_CPL;
}

const void *simd_load(struct cpu *c, const struct insn *i, unsigned n)
{
    const void *p = simd_fast_ptr(c, i, n, false);

    if (likely(p))
        return p;
    lin_read(c, simd_lin(c, i, n, ACCESS_READ), c->simd->bounce, n, load_priv(i));
    return c->simd->bounce;
}

void *simd_store_begin(struct cpu *c, const struct insn *i, unsigned n, uint64_t *la)
{
    void *p = simd_fast_ptr(c, i, n, true);

    if (likely(p))
        return p;
    *la = simd_lin(c, i, n, ACCESS_WRITE);
    lin_check(c, *la, n, ACCESS_WRITE, PRIV_CPL);
    return c->simd->bounce;
}

void simd_store_end(struct cpu *c, unsigned n, uint64_t la, const void *p)
{
    if (p == c->simd->bounce)
        lin_write(c, la, p, n, PRIV_CPL);
}
