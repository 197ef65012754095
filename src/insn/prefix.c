/* Legacy prefixes, REX, opcode escapes, VEX and EVEX. SDM vol. 2 ch. 2. */
#include "insn/decode.h"

/* Bytes that may be prefixes: 1 legacy, 2 REX. */
static const uint8_t prefix_kind[256] = {
    [0x26] = 1, [0x2e] = 1, [0x36] = 1, [0x3e] = 1, [0x64] = 1, [0x65] = 1,
    [0x66] = 1, [0x67] = 1, [0xf0] = 1, [0xf2] = 1, [0xf3] = 1, [0x40 ... 0x4f] = 2,
};

static void legacy_prefix(struct dec *d, struct insn *i, uint8_t b)
{
    switch (b) {
    case 0x26:
    case 0x2e:
    case 0x36:
    case 0x3e:
        /* Without meaning in 64-bit code, where they do not cancel an earlier FS or GS either. */
        if (d->bits != CPU_64)
            i->mem.seg = b >> 3 & 3;
        break;
    case 0x64:
        i->mem.seg = FS;
        break;
    case 0x65:
        i->mem.seg = GS;
        break;
    case 0x66:
        d->p66 = true;
        i->prefix |= PFX_OPSIZE;
        break;
    case 0x67:
        d->p67 = true;
        i->prefix |= PFX_ADDRSIZE;
        break;
    case 0xf0:
        d->lock = true;
        i->prefix |= PFX_LOCK;
        break;
    default:
        d->rep = b;
        break;
    }
}

/* Reads the legacy prefixes and REX; *op is the first byte that is neither. */
static int legacy_prefixes(struct dec *d, struct insn *i, uint8_t *op)
{
    uint8_t rex = 0, b;

    i->mem.seg = SREG_COUNT;
    for (;;) {
        if (!dec_u8(d, &b))
            return dec_short(d);
        if (prefix_kind[b] == 2 && d->bits == CPU_64) {
            rex = b;
            continue;
        }
        if (prefix_kind[b] != 1)
            break;
        rex = 0; /* only counts directly before the opcode */
        legacy_prefix(d, i, b);
    }
    i->rex = rex;
    *op = b;
    return INSN_OK;
}

/* In 16- and 32-bit code C4, C5 and 62 are LES, LDS and BOUND unless ModRM.mod would be 3. */
static int peek_mod3(const struct dec *d)
{
    if (d->pos >= d->max)
        return dec_short(d);
    return (d->code[d->pos] & 0xc0) == 0xc0;
}

static int vex_prefix(struct dec *d, struct insn *i, uint8_t first)
{
    uint8_t p0, p1;

    if (!dec_u8(d, &p0))
        return dec_short(d);
    d->map = 1;
    p1 = p0 & 0x7f;
    d->r = ~p0 >> 4 & 8;
    if (first == 0xc4) {
        if (!dec_u8(d, &p1))
            return dec_short(d);
        d->x = ~p0 >> 3 & 8;
        d->b = ~p0 >> 2 & 8;
        d->map = p0 & 0x1f;
        if (d->map < 1 || d->map > 3)
            return INSN_E_UD;
    }
    d->space = SPACE_VEX;
    d->w = p1 >> 7;
    d->vvvv = ~p1 >> 3 & 15;
    d->l = p1 >> 2 & 1;
    i->pp = p1 & 3;
    i->prefix |= PFX_VEX;
    return INSN_OK;
}

static int evex_prefix(struct dec *d, struct insn *i)
{
    uint64_t p;

    if (!dec_u(d, 1, &p))
        return dec_short(d);
    uint8_t p0 = (uint8_t)p;
    if (!dec_u(d, 2, &p))
        return dec_short(d);
    uint8_t p1 = (uint8_t)p, p2 = (uint8_t)(p >> 8);

    d->map = p0 & 7;
    if ((p0 & 8) || d->map < 1 || d->map > 3 || !(p1 & 4))
        return INSN_E_UD;
    d->space = SPACE_EVEX;
    d->r = ~p0 >> 4 & 8;
    d->x = ~p0 >> 3 & 8;
    d->b = ~p0 >> 2 & 8;
    d->r2 = ~p0 & 16;
    d->x2 = (uint8_t)(d->x << 1);
    d->w = p1 >> 7;
    i->pp = p1 & 3;
    d->v2 = ~p2 << 1 & 16;
    d->vvvv = (~p1 >> 3 & 15) | d->v2;
    d->l = p2 >> 5 & 3;
    i->evex_z = p2 >> 7;
    i->evex_b = p2 >> 4 & 1;
    i->evex_aaa = p2 & 7;
    i->prefix |= PFX_EVEX;
    return INSN_OK;
}

/* VEX or EVEX has been recognised by its first byte. */
static int vector_prefix(struct dec *d, struct insn *i, uint8_t first)
{
    if (i->rex || d->p66 || d->rep || d->lock)
        return INSN_E_UD;
    int e = first == 0x62 ? evex_prefix(d, i) : vex_prefix(d, i, first);
    if (e != INSN_OK)
        return e;
    if (d->bits != CPU_64) {
        /* Eight registers only; R', B and vvvv[3] are ignored, but V' is not. */
        if (d->v2)
            return INSN_E_UD;
        d->r = d->x = d->b = d->r2 = d->x2 = 0;
    }
    if (!dec_u8(d, &i->opcode))
        return dec_short(d);
    return INSN_OK;
}

static int legacy_opcode(struct dec *d, struct insn *i, uint8_t op)
{
    if (i->rex) {
        d->w = i->rex >> 3 & 1;
        d->r = i->rex << 1 & 8;
        d->x = i->rex << 2 & 8;
        d->b = i->rex << 3 & 8;
    }
    i->pp = d->rep ? (d->rep ^ 1) & 3 : d->p66; /* F3: 2, F2: 3 */
    if (op == 0x0f) {
        d->map = 1;
        if (!dec_u8(d, &op))
            return dec_short(d);
        if (op == 0x38 || op == 0x3a) {
            d->map = op == 0x38 ? 2 : 3;
            if (!dec_u8(d, &op))
                return dec_short(d);
        }
    }
    i->opcode = op;
    return INSN_OK;
}

int insn_decode_prefixes(struct dec *d, struct insn *i)
{
    uint8_t op;
    int e = legacy_prefixes(d, i, &op);

    if (e != INSN_OK)
        return e;
    if (i->rex)
        i->prefix |= PFX_REX;
    if (op == 0xc4 || op == 0xc5 || op == 0x62) {
        int vector = d->bits == CPU_64 ? 1 : peek_mod3(d);
        if (vector < 0)
            return vector;
        if (vector)
            return vector_prefix(d, i, op);
    }
    return legacy_opcode(d, i, op);
}
