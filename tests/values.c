#include "values.h"

#include <string.h>

#include "base/util.h"

uint64_t rnd(struct rng *r)
{
    uint64_t z = r->s += 0x9e3779b97f4a7c15ull; /* splitmix64 */

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

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

void value_vector(struct rng *r, void *p, unsigned n)
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

void value_x87(struct rng *r, struct x87_state *x)
{
    memset(x, 0, sizeof(*x));
    for (unsigned n = 0; n < 8; n++)
        f80(r, x->st[n]);
    x->fcw = (uint16_t)(0x40 | (rnd(r) & 0xf00) | (pick(r, 3) ? 0x3f : rnd(r) & 0x3f));
    x->fsw = (uint16_t)((rnd(r) & 0x7f00) | (pick(r, 2) ? 0 : rnd(r) & 0x3f));
    if (pick(r, 4)) /* mostly nothing pending */
        x->fsw &= (uint16_t)(x->fcw | ~0x3fu);
    if (pick(r, 2) && (x->fsw & 1))
        x->fsw |= 0x40;
    if (x->fsw & ~x->fcw & 0x3f)
        x->fsw |= 0x8080;
    x->tag = pick(r, 3) ? 0xff : (uint8_t)rnd(r);
}

uint32_t value_mxcsr(struct rng *r)
{
    uint32_t v = (uint32_t)rnd(r);

    switch (pick(r, 4)) {
    case 0:
        return v & 0xffff;
    case 1:
        return (0x1f80 & ~(0x80u << pick(r, 6))) | (v & 0xe040);
    default:
        return 0x1f80 | (v & 0xe07f);
    }
}

void value_xsave_image(struct rng *r, uint8_t *p, const struct cpuid_policy *pol)
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
