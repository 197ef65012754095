#include "gen.h"

#include "insn/table.h"

uint64_t rnd(struct rng *r)
{
    uint64_t z = r->s += 0x9e3779b97f4a7c15ull;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

unsigned below(struct rng *r, unsigned n) { return (unsigned)((rnd(r) >> 32) * n >> 32); }

static unsigned put_legacy_prefixes(struct rng *r, uint8_t *p, unsigned max)
{
    static const uint8_t pfx[] = {0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65,
                                  0x66, 0x66, 0x67, 0xf0, 0xf2, 0xf3};
    unsigned n = 0;

    while (n < max && below(r, 3) == 0)
        p[n++] = pfx[below(r, sizeof(pfx))];
    return n;
}

/* Key bits as the row demands them, the others random. */
static uint32_t row_key(struct rng *r, const struct insn_row *row)
{
    return ((uint32_t)rnd(r) & ~row->enc[0]) | row->enc[1];
}

static unsigned put_legacy(struct rng *r, const struct insn_row *row, uint32_t key, uint8_t *p)
{
    static const uint8_t pp[4] = {0, 0x66, 0xf3, 0xf2};
    unsigned map = row->enc[3] >> 8 & 15, n = put_legacy_prefixes(r, p, 3);

    if ((row->enc[0] >> KEY_PP & 3) && (key >> KEY_PP & 3))
        p[n++] = pp[key >> KEY_PP & 3];
    if (below(r, 2) || (row->enc[0] >> KEY_W & 1)) {
        uint8_t rex = 0x40 | (rnd(r) & 7) | (key >> KEY_W & 1) << 3;
        if (rex != 0x40 || below(r, 4) == 0)
            p[n++] = rex;
    }
    if (map)
        p[n++] = 0x0f;
    if (map > 1)
        p[n++] = map == 2 ? 0x38 : 0x3a;
    return n;
}

static unsigned put_vex(struct rng *r, const struct insn_row *row, uint32_t key, uint8_t *p)
{
    unsigned map = row->enc[3] >> 8 & 15, n = 0;
    bool vvvv = row->enc[2] & (uint32_t)(AT_VVVV >> 32);
    uint8_t v = vvvv || below(r, 16) == 0 ? rnd(r) & 15 : 15;
    uint8_t last =
        (uint8_t)((key >> KEY_W & 1) << 7 | v << 3 | (key >> KEY_L & 1) << 2 | (key >> KEY_PP & 3));

    if (below(r, 16) == 0)
        n = put_legacy_prefixes(r, p, 2);
    if (below(r, 2))
        p[n++] = 0x67;
    if (map == 1 && below(r, 3) == 0) {
        p[n++] = 0xc5;
        p[n++] = (uint8_t)((last & 0x7f) | (below(r, 2) << 7));
        return n;
    }
    p[n++] = 0xc4;
    p[n++] = (uint8_t)((below(r, 2) ? 0xe0 : rnd(r) & 0xe0) | map);
    p[n++] = last;
    return n;
}

static unsigned put_evex(struct rng *r, const struct insn_row *row, uint32_t key, uint8_t *p)
{
    unsigned map = row->enc[3] >> 8 & 15, n = 0;
    bool vvvv = row->enc[2] & (uint32_t)(AT_VVVV >> 32);
    uint8_t v = vvvv || below(r, 16) == 0 ? rnd(r) & 31 : 31;

    if (below(r, 16) == 0)
        n = put_legacy_prefixes(r, p, 2);
    p[n++] = 0x62;
    p[n++] = (uint8_t)((below(r, 2) ? 0xf0 : rnd(r) & 0xf0) | map | (below(r, 64) == 0) << 3);
    p[n++] = (uint8_t)((key >> KEY_W & 1) << 7 | (v & 15) << 3 | (key >> KEY_PP & 3) |
                       (below(r, 64) != 0) << 2);
    p[n++] = (uint8_t)((below(r, 3) == 0) << 7 | (key >> KEY_L & 3) << 5 | (below(r, 3) == 0) << 4 |
                       (v >> 4) << 3 | (below(r, 2) ? rnd(r) & 7 : 0));
    return n;
}

void make_from_row(struct rng *r, const struct insn_row *row, uint8_t code[16])
{
    uint32_t key = row_key(r, row);
    unsigned n, space = row->enc[3] >> 12 & 3;

    for (unsigned k = 0; k < 16; k++)
        code[k] = (uint8_t)rnd(r);
    n = space == SPACE_LEGACY ? put_legacy(r, row, key, code)
        : space == SPACE_VEX  ? put_vex(r, row, key, code)
                              : put_evex(r, row, key, code);
    code[n++] = (uint8_t)(row->enc[3] + (row->enc[3] & SPAN8 ? below(r, 8) : 0));
    if (row->enc[2] & (uint32_t)(AT_HASMODRM >> 32)) {
        uint8_t mod = key >> KEY_MOD3 & 1 ? 3 : (uint8_t)below(r, 3);
        code[n] = (uint8_t)(mod << 6 | (key >> KEY_REG & 7) << 3 | (key >> KEY_RM & 7));
        /* Often a SIB byte: memory operands with an index vector need it. */
        if (mod != 3 && !(row->enc[0] >> KEY_RM & 7) && below(r, 4) == 0)
            code[n] = (uint8_t)((code[n] & ~7) | 4);
    }
}

void make_from_space(struct rng *r, uint8_t code[16])
{
    struct insn_row any = {.enc = {0, 0, below(r, 2) ? (uint32_t)(AT_VVVV >> 32) : 0, 0}};
    unsigned space = below(r, SPACE_COUNT), map = below(r, MAP_COUNT), n;

    if (space != SPACE_LEGACY && map == 0)
        map = 1;
    any.enc[3] = OPC(space, map, 0);
    for (unsigned k = 0; k < 16; k++)
        code[k] = (uint8_t)rnd(r);
    uint32_t key = (uint32_t)rnd(r);
    if (below(r, 4))
        key &= ~(1u << (KEY_L + below(r, 2))); /* EVEX L'L = 3 is seldom valid */
    n = space == SPACE_LEGACY ? put_legacy(r, &any, key, code)
        : space == SPACE_VEX  ? put_vex(r, &any, key, code)
                              : put_evex(r, &any, key, code);
    code[n] = (uint8_t)rnd(r);
}
