#include "gen.h"

#include <string.h>

#include "native.h"

static void gen_state(struct rng *r, struct cpu_state *s)
{
    for (unsigned n = 0; n < 16; n++)
        s->gpr[n] = pick(r, 3) ? rnd(r) : rnd(r) & 0xff;
    s->rflags = 2 | (rnd(r) & FL_STATUS);
    value_vector(r, s->zmm, sizeof(s->zmm));
    for (unsigned n = 0; n < 8; n++)
        s->k[n] = pick(r, 3) ? rnd(r) : rnd(r) & rnd(r) & rnd(r);
    s->mxcsr = value_mxcsr(r);
    value_x87(r, &s->x87);
}

/* ---- instructions ---- */
static unsigned gen_bytes(struct rng *r, uint8_t b[16])
{
    static const uint8_t pfx[] = {0, 0x66, 0xf3, 0xf2};
    unsigned n = 0, kind = pick(r, 10);
    uint64_t x = rnd(r);

    if (!pick(r, 40))
        b[n++] = 0x67;
    if (!pick(r, 60))
        b[n++] = 0x36; /* SS: non-canonical addresses give #SS */
    if (kind < 3) {    /* legacy */
        if (x & 3)
            b[n++] = pfx[x & 3];
        if (x & 4)
            b[n++] = 0x40 | (x >> 3 & 15);
        b[n++] = 0x0f;
        if (!(x >> 7 & 3))
            b[n++] = x >> 9 & 1 ? 0x38 : 0x3a;
    } else if (kind < 5) { /* x87 */
        if (!pick(r, 20))
            b[n++] = 0x66;
        b[n++] = 0xd8 | (x & 7);
        if (!pick(r, 200))
            b[n - 1] = 0x9b;
        for (unsigned k = 0; k < 8; k++)
            b[n++] = (uint8_t)rnd(r);
        return n;
    } else if (kind < 7) { /* VEX */
        if (x & 1) {
            b[n++] = 0xc5;
            b[n++] = (uint8_t)(x >> 8) | (x >> 1 & 1 ? 0x78 : 0);
        } else {
            b[n++] = 0xc4;
            b[n++] = (x >> 8 & 0xe0) | (1 + pick(r, 3));
            b[n++] = (uint8_t)(x >> 16) | (x >> 1 & 1 ? 0x78 : 0);
        }
    } else {
        b[n++] = 0x62;
        b[n++] = (x >> 8 & 0xf0) | (1 + pick(r, 3));
        b[n++] = (uint8_t)(x >> 16) | 4 | (x >> 1 & 1 ? 0x78 : 0);
        b[n++] = (uint8_t)(x >> 24) | (x >> 1 & 1 ? 8 : 0);
        if (x >> 2 & 1)
            b[n - 1] &= 0x6f; /* no zeroing, no broadcast */
        if (x >> 3 & 1)
            b[n - 1] &= 0xf8; /* no mask */
    }
    b[n++] = (uint8_t)rnd(r);
    for (unsigned k = 0; k < 8; k++)
        b[n++] = (uint8_t)rnd(r);
    return n;
}

static bool has_mem(const struct insn *i)
{
    for (unsigned n = 0; n < i->nops; n++)
        if (i->op[n].kind == OP_MEM)
            return true;
    return false;
}

static bool wanted(const struct insn *i, const struct cpuid_policy *p)
{
    return simd_fn(i) && insn_supported(i, p) && i->mem.seg != FS &&
           !(i->map == 1 && i->opcode == 1 && i->modrm == 0xd1); /* XSETBV is tested apart */
}

/* Where memory operands go: mostly aligned and inside, sometimes astride the end of what may be
 * touched. */
static uint64_t gen_target(struct rng *r)
{
    switch (pick(r, 16)) {
    case 0:
        return DATA_ADDR + pick(r, DATA_BYTES - 64);
    case 1:
        return DATA_ADDR - pick(r, 64);
    case 2:
        return DATA_ADDR + DATA_BYTES - pick(r, 64);
    case 3:
        return DATA_ADDR + DATA_BYTES + RO_BYTES - pick(r, 64);
    case 4:
        return DATA_ADDR + DATA_BYTES - 64;
    case 5:
        return DATA_ADDR + 4096 - pick(r, 64);
    case 6:
        /* not canonical, or with 32-bit addressing below anything mapped */
        return pick(r, 4) ? DATA_ADDR + DATA_BYTES : (rnd(r) & 0x0fffffff0fffffff) | BIT(63);
    default:
        return DATA_ADDR + 64 * pick(r, DATA_BYTES / 64 - 50);
    }
}

/* Makes the memory operand point at ta; false if this encoding cannot. at: the instruction's
 * address. */
static bool aim(struct rng *r, struct test_case *t, struct insn *i, uint8_t *raw, uint64_t at,
                uint64_t ta, bool fixed_regs)
{
    const struct insn_mem *m = &i->mem;

    if (m->vsib) {
        uint8_t *idx = (uint8_t *)t->s.zmm[m->index];
        if (m->base == REG_NONE || fixed_regs)
            return false;
        t->s.gpr[m->base] = ta - (uint64_t)m->disp;
        for (unsigned n = 0; n < 16; n++) {
            /* near the target, or so far below it that nothing is mapped */
            uint32_t v = pick(r, 40) ? pick(r, 200) - 100 : 0u - (0x40000 + pick(r, 0x1f00000));
            memcpy(idx + 4 * n, &v, 4);
            if (i->opcode & 1) {
                uint64_t q = sext(v, 32);
                memcpy(idx + 4 * n++, &q, 8);
            }
        }
        return true;
    }
    if (m->base == REG_RIP || (m->base == REG_NONE && m->index == REG_NONE)) {
        uint64_t d = ta - (m->base == REG_RIP ? at + i->len : 0);
        if (i->off_modrm == 0 || sext(d, 32) != d)
            return false;
        unsigned off = i->off_modrm + ((raw[i->off_modrm] & 7) == 4 ? 2 : 1);
        memcpy(raw + off, &d, 4);
        return true;
    }
    if (fixed_regs || m->base == REG_NONE || m->base == m->index)
        return false;
    uint64_t rest = (uint64_t)m->disp;
    if (m->index != REG_NONE)
        rest += t->s.gpr[m->index] << m->scale;
    t->s.gpr[m->base] = ta - rest;
    return true;
}

static bool is_state_area(const struct insn *i)
{
    return i->map == 1 && (i->opcode == 0xae || i->opcode == 0xc7);
}

static bool gen_insn(struct rng *r, const struct cpuid_policy *p, struct test_case *t, uint8_t *mem,
                     bool follow)
{
    uint8_t b[24] = {0};
    struct insn *i = &t->insn[t->n];
    unsigned n = gen_bytes(r, b);

    if (insn_decode(i, b, MIN(n, 15u), CPU_64) != INSN_OK || !wanted(i, p))
        return false;
    if (follow && !(i->row->flags & (IF_X87 | IF_MMX)))
        return false;
    if (has_mem(i)) {
        uint64_t ta = gen_target(r);
        /* MASKMOV addresses through RDI alone */
        if (!i->has_modrm || i->modrm >= 0xc0) {
            if (follow)
                return false;
            t->s.gpr[RDI] = ta;
        } else {
            if (!follow && is_state_area(i)) {
                ta = DATA_ADDR + 64 * pick(r, 20) + (pick(r, 10) ? 0 : pick(r, 64));
                value_xsave_image(r, mem + (ta - DATA_ADDR), p);
                if (pick(r, 4)) {
                    t->s.gpr[RAX] = rnd(r) & 0xff;
                    t->s.gpr[RDX] = 0;
                }
            }
            if (!aim(r, t, i, b, CODE_ADDR + t->len, ta, follow))
                return false;
        }
        if (insn_decode(i, b, MIN(n, 15u), CPU_64) != INSN_OK)
            return false;
    }
    memcpy(t->code + t->len, b, i->len);
    t->len += i->len;
    t->n++;
    return true;
}

void gen_case(struct rng *r, const struct cpuid_policy *p, struct test_case *t, uint8_t *mem)
{
    memset(&t->s, 0, sizeof(t->s));
    gen_state(r, &t->s);
    for (unsigned n = 0; n < 8; n++) /* the rest stays as it is: cheap, and never the same */
        value_vector(r, mem + 512 * n + 64 * pick(r, 8), 64);
    t->n = t->len = 0;
    while (!gen_insn(r, p, t, mem, false))
        ;
    if ((t->insn[0].row->flags & (IF_X87 | IF_MMX)) && pick(r, 2))
        for (unsigned n = 0, extra = pick(r, SEQ_MAX); n < 200 && t->n <= extra; n++)
            gen_insn(r, p, t, mem, true);
}
