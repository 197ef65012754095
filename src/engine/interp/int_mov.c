/* Moves, flag instructions and other small general instructions. */
#include "engine/interp/alu.h"
#include "engine/interp/integer.h"

PLAIN(int_mov) { op_write(c, i, 0, op_read(c, i, 1)); }

PLAIN(int_movbe)
{
    unsigned size = i->op[0].size;
    uint64_t v = op_read(c, i, 1);

    op_write(c, i, 0, __builtin_bswap64(v) >> (64 - size * 8));
}

PLAIN(int_movzx) { op_write(c, i, 0, op_read(c, i, 1)); }

PLAIN(int_movsx) { op_write(c, i, 0, sext(op_read(c, i, 1), i->op[1].size * 8)); }

PLAIN(int_lea) { op_write(c, i, 0, insn_ea(c, i)); }

PLAIN(int_cmov)
{
    /* The source is read, and a 32-bit destination zero-extended, whatever the condition. */
    uint64_t v = op_read(c, i, 1);

    op_write(c, i, 0, cond_true(c->cc, i->cond) ? v : op_read(c, i, 0));
}

PLAIN(int_setcc) { op_write(c, i, 0, cond_true(c->cc, i->cond)); }

PLAIN(int_xlat)
{
    uint64_t ea = (c->s.gpr[RBX] + (c->s.gpr[RAX] & 0xff)) & size_bits(i->addrsize);

    gpr_write(c, RAX, 1, seg_ld(c, i->mem.seg, ea, 1));
}

PLAIN(int_salc) { gpr_write(c, RAX, 1, c->cc & CC_CF ? 0xff : 0); }

PLAIN(int_flag)
{
    switch (i->id) {
    case INSN_CLC: c->cc &= (uint16_t)~CC_CF; break;
    case INSN_STC: c->cc |= CC_CF; break;
    case INSN_CMC: c->cc ^= CC_CF; break;
    case INSN_CLD: c->s.rflags &= ~FL_DF; break;
    default: c->s.rflags |= FL_DF; break;
    }
}

PLAIN(int_lahf)
{
    uint64_t ah = (cc_to_flags(c->cc) & 0xff) | FL_R1;

    c->s.gpr[RAX] = (c->s.gpr[RAX] & ~0xff00ull) | ah << 8;
}

PLAIN(int_sahf)
{
    uint64_t ah = c->s.gpr[RAX] >> 8 & 0xff;

    c->cc = (uint16_t)((c->cc & CC_OF) | flags_to_cc(ah));
}

PLAIN(int_nop) {}

/* Loads are never reordered with each other, so LFENCE needs nothing; but the host's own stores wait
 * in its store buffer as the guest's would. */
PLAIN(int_fence) { cpu_fence(); }

/* Spinning is PAUSEs in short succession. */
PLAIN(int_pause)
{
    if (c->vm->nvcpu == 1)
        return;
    if (c->ninsn - c->pause_at > PAUSE_GAP)
        c->pauses = 0;
    c->pause_at = c->ninsn;
    if (++c->pauses >= PAUSES_MAX)
        c->mode_changed = true;
}

/* CLFLUSH, CLFLUSHOPT and CLWB fault as a load of one byte does; guest caches are the host's. */
PLAIN(int_clflush)
{
    lin_check(c, insn_lin(c, i, 1, ACCESS_READ), 1, ACCESS_READ, PRIV_CPL);
}

/* Below the lower bound the upper one is not read. */
PLAIN(int_bound)
{
    unsigned size = i->opsize;
    uint64_t ea = insn_ea(c, i), la = seg_lin(c, i->mem.seg, ea, 2 * size, ACCESS_READ);
    int64_t v = (int64_t)sext(op_read(c, i, 0), size * 8);
    int64_t lo = (int64_t)sext(lin_ld(c, la, size, PRIV_CPL), size * 8);

    if (v < lo || v > (int64_t)sext(lin_ld(c, la + size, size, PRIV_CPL), size * 8))
        cpu_raise(c, X_BR, 0);
}
