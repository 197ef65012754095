#include "gen.h"

#include <string.h>

#include "native.h"

uint64_t rnd(struct rng *r)
{
    uint64_t z = r->s += 0x9e3779b97f4a7c15ull; /* splitmix64 */

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

/* ---- values ---- */
static uint32_t f32(struct rng *r)
{
    static const uint32_t special[] = {
        0,          0x80000000, 0x3f800000, 0xbf800000, 0x7f800000, 0xff800000,
        0x7fc00000, 0x7f800001, 0xffc12345, 0x7fa00000, 1,          0x80000001,
        0x007fffff, 0x00800000, 0x7f7fffff, 0xff7fffff, 0x4f000000, 0xcf000000,
        0x4effffff, 0x5f000000, 0x3f000000, 0x4b800001, 0x34000000,
    };
    uint32_t v = (uint32_t)rnd(r);

    switch (pick(r, 4)) {
    case 0:
        return special[pick(r, ARRAY_LEN(special))];
    case 1:
        return (v & 0x807fffff) | (118 + pick(r, 20)) << 23;
    case 2: /* near the limits, with few mantissa bits */
        return (v & 0x80700000) | (pick(r, 2) ? pick(r, 4) : 251 + pick(r, 4)) << 23;
    default:
        return v;
    }
}

static uint64_t f64(struct rng *r)
{
    static const uint64_t special[] = {
        0,
        1ull << 63,
        0x3ff0000000000000,
        0xbff0000000000000,
        0x7ff0000000000000,
        0xfff0000000000000,
        0x7ff8000000000000,
        0x7ff0000000000001,
        0xfff8123456789abc,
        1,
        0x800fffffffffffff,
        0x0010000000000000,
        0x7fefffffffffffff,
        0x41e0000000000000,
        0xc1e0000000200000,
        0x43e0000000000000,
        0xc3e0000000000000,
        0x47efffffe0000000,
        0x36a0000000000000,
        0x380fffffc0000000,
        0x47f0000000000000,
    };
    uint64_t v = rnd(r);

    switch (pick(r, 4)) {
    case 0:
        return special[pick(r, ARRAY_LEN(special))];
    case 1:
        return (v & 0x800fffffffffffff) | (uint64_t)(1013 + pick(r, 20)) << 52;
    case 2:
        return (v & 0x800c000000000000) | (uint64_t)(pick(r, 2) ? pick(r, 5) : 2042 + pick(r, 5))
                                              << 52;
    default:
        return v;
    }
}

static uint16_t f16(struct rng *r)
{
    static const uint16_t special[] = {0,      0x8000, 0x3c00, 0x7c00, 0xfc00,
                                       0x7e00, 0x7c01, 1,      0x83ff, 0x7bff};
    return pick(r, 2) ? special[pick(r, ARRAY_LEN(special))] : (uint16_t)rnd(r);
}

static void fill(struct rng *r, void *p, unsigned n)
{
    uint8_t *b = p;

    for (unsigned at = 0; at < n; at += 16) {
        unsigned kind = pick(r, 6);
        for (unsigned k = 0; k < 16; k += 2) {
            uint64_t v = 0;
            switch (kind) {
            case 0:
            case 1:
                v = f32(r);
                memcpy(b + at + k, &v, 4);
                k += 2;
                break;
            case 2:
            case 3:
                v = f64(r);
                memcpy(b + at + k, &v, 8);
                k += 6;
                break;
            case 4:
                v = pick(r, 3) ? f16(r) : (uint64_t)pick(r, 4) << 14;
                memcpy(b + at + k, &v, 2);
                break;
            default:
                v = rnd(r);
                memcpy(b + at + k, &v, 8);
                k += 6;
            }
        }
    }
}

static void f80(struct rng *r, uint8_t p[16])
{
    uint64_t m = pick(r, 3) ? rnd(r) | BIT(63) : pick(r, 2) ? BIT(63) : rnd(r);
    uint16_t e = pick(r, 2) ? 16383 - 20 + pick(r, 90) : (uint16_t)rnd(r);

    switch (pick(r, 10)) {
    case 0:
        m = 0;
        e = 0;
        break;
    case 1:
        m = BIT(63);
        e = 0x7fff;
        break;
    case 2:
        e = 0x7fff;
        break;
    case 3:
        e = 0; /* denormal or pseudo-denormal */
        break;
    case 4: /* small integers */
        m = BIT(63) | (uint64_t)pick(r, 8) << 60;
        e = 16383 + pick(r, 4);
        break;
    case 5: /* near the limits of double */
        e = pick(r, 2) ? 16383 - 1030 + pick(r, 60) : 16383 + 1000 + pick(r, 30);
        break;
    case 6: /* near the limits of single */
        e = pick(r, 2) ? 16383 - 150 + pick(r, 30) : 16383 + 120 + pick(r, 12);
        break;
    }
    e |= pick(r, 2) << 15;
    memset(p, 0, 16);
    memcpy(p, &m, 8);
    memcpy(p + 8, &e, 2);
}

static void gen_x87(struct rng *r, struct x87_state *x)
{
    memset(x, 0, sizeof(*x));
    for (unsigned n = 0; n < 8; n++)
        f80(r, x->st[n]);
    x->fcw = 0x40 | (rnd(r) & 0xf00) | (pick(r, 3) ? 0x3f : rnd(r) & 0x3f);
    x->fsw = (rnd(r) & 0x7f00) | (pick(r, 2) ? 0 : rnd(r) & 0x3f);
    if (pick(r, 4)) /* mostly nothing pending */
        x->fsw &= x->fcw | ~0x3fu;
    x->fsw |= pick(r, 2) && (x->fsw & 1) ? 0x40 : 0;
    x->tag = pick(r, 3) ? 0xff : (uint8_t)rnd(r);
    x87_update_es(x);
}

static void gen_state(struct rng *r, struct cpu_state *s)
{
    for (unsigned n = 0; n < 16; n++)
        s->gpr[n] = pick(r, 3) ? rnd(r) : rnd(r) & 0xff;
    s->rflags = 2 | (rnd(r) & FL_STATUS);
    fill(r, s->zmm, sizeof(s->zmm));
    for (unsigned n = 0; n < 8; n++)
        s->k[n] = pick(r, 3) ? rnd(r) : rnd(r) & rnd(r) & rnd(r);
    s->mxcsr = (uint32_t)(pick(r, 2)   ? 0x1f80 | (rnd(r) & 0xe07f)
                          : pick(r, 2) ? rnd(r) & 0xffff
                                       : (0x1f80 & ~(0x80u << pick(r, 6))) | (rnd(r) & 0xe040));
    gen_x87(r, &s->x87);
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

/* XRSTOR and FXRSTOR images that are sometimes valid. */
static void gen_image(struct rng *r, uint8_t *p, const struct cpuid_policy *pol)
{
    uint32_t mxcsr = (uint32_t)rnd(r) & (pick(r, 8) ? 0xffff : 0x1ffff);
    uint64_t bv = rnd(r) & (pick(r, 8) ? pol->xcr0_mask : ~0ull), comp = 0;

    memcpy(p + 24, &mxcsr, 4);
    memset(p + 512, 0, 64);
    if (pick(r, 2)) {
        comp = BIT(63) | (rnd(r) & pol->xcr0_mask);
        if (pick(r, 8))
            bv &= comp;
    }
    memcpy(p + 512, &bv, 8);
    memcpy(p + 520, &comp, 8);
    if (!pick(r, 10))
        p[528 + pick(r, 48)] = 1;
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
                gen_image(r, mem + (ta - DATA_ADDR), p);
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
        fill(r, mem + 512 * n + 64 * pick(r, 8), 64);
    t->n = t->len = 0;
    while (!gen_insn(r, p, t, mem, false))
        ;
    if ((t->insn[0].row->flags & (IF_X87 | IF_MMX)) && pick(r, 2))
        for (unsigned n = 0, extra = pick(r, SEQ_MAX); n < 200 && t->n <= extra; n++)
            gen_insn(r, p, t, mem, true);
}
