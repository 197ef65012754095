/* Memory operands of vector and x87 instructions (simd.h). */
#include "engine/interp/simd.h"

#include <string.h>

void simd_check_align(struct cpu *c, const struct insn *i, uint64_t la, unsigned n)
{
    if ((i->row->flags & IF_ALIGN) && (la & (n - 1)))
        cpu_raise(c, X_GP, 0);
}

const void *simd_load(struct cpu *c, const struct insn *i, unsigned n)
{
    const void *p = simd_fast_ptr(c, i, n, false);

    if (likely(p))
        return p;
    uint64_t la = insn_lin(c, i, n, ACCESS_READ);
    simd_check_align(c, i, la, n);
    lin_read(c, la, c->simd->bounce, n, PRIV_CPL);
    return c->simd->bounce;
}

void *simd_store_begin(struct cpu *c, const struct insn *i, unsigned n, uint64_t *la)
{
    void *p = simd_fast_ptr(c, i, n, true);

    if (likely(p))
        return p;
    *la = insn_lin(c, i, n, ACCESS_WRITE);
    simd_check_align(c, i, *la, n);
    lin_check(c, *la, n, ACCESS_WRITE, PRIV_CPL);
    return c->simd->bounce;
}

void simd_store_end(struct cpu *c, unsigned n, uint64_t la, const void *p)
{
    if (p == c->simd->bounce)
        lin_write(c, la, p, n, PRIV_CPL);
}
