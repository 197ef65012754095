#include "encode.h"

#include "insn/table.h" /* last: its short macros are not for other headers */

uint64_t value_gpr(struct rng *r)
{
    uint64_t v = rnd(r);

    switch (pick(r, 10)) {
    case 0:
        return v & 0xff;
    case 1:
        return (1ull << (v & 63)) + (v >> 8) % 3 - 1;
    case 2:
        return ~(v >> 8 & 0xff);
    case 3:
        return v & 0xffffffff;
    case 4:
        return DATA_ADDR + v % DATA_BYTES;
    case 5:
        return (uint64_t[]){0,          1,          ~0ull,      1ull << 63, ~(1ull << 63),
                            0x80000000, 0x7fffffff, 0xffff8000, 0x8000,     0x7fff,
                            0x80,       0x7f,       0xffffffff, 0x100000000}[v % 14];
    default:
        return v;
    }
}

static unsigned row_space(const struct insn_row *row) { return row->enc[3] >> 12 & 3; }
static unsigned row_map(const struct insn_row *row) { return row->enc[3] >> 8 & 15; }
static bool row_has(const struct insn_row *row, uint64_t at)
{
    return row->enc[2] & (uint32_t)(at >> 32);
}

enum row_kind encode_kind(const struct insn_row *row)
{
    if (row->flags & IF_X87)
        return ROW_X87;
    if (row->flags & IF_MMX)
        return ROW_MMX;
    if (row_space(row) == SPACE_EVEX)
        return ROW_EVEX;
    if (row_space(row) == SPACE_VEX)
        return ROW_VEX;
    return row->flags & IF_SSE ? ROW_SSE : ROW_GENERAL;
}

static unsigned put_legacy(struct rng *r, const struct insn_row *row, uint32_t key,
                           enum cpu_bits bits, uint8_t *p)
{
    static const uint8_t pp[4] = {0, 0x66, 0xf3, 0xf2};
    unsigned n = 0, map = row_map(row), want = key >> KEY_PP & 3;

    if ((row->flags & IF_LOCK) && !pick(r, 6))
        p[n++] = 0xf0;
    if (!pick(r, 24))
        p[n++] = 0x67;
    if (!pick(r, 24))
        p[n++] = (uint8_t[]){0x26, 0x2e, 0x36, 0x3e, 0x65}[pick(r, bits == CPU_64 ? 5 : 4)];
    if (row->flags & IF_REP && pick(r, 2))
        p[n++] = pick(r, 2) ? 0xf3 : 0xf2;
    if (row->enc[0] >> KEY_PP & 3)
        n += want ? (p[n] = pp[want], 1) : 0;
    else if (!pick(r, 4))
        p[n++] = 0x66;
    if (bits == CPU_64 && (pick(r, 2) || (row->enc[0] >> KEY_W & 1))) {
        uint8_t rex = (uint8_t)(0x40 | (rnd(r) & 7) | (key >> KEY_W & 1) << 3);
        if (rex != 0x40 || !pick(r, 4))
            p[n++] = rex;
    }
    if (map)
        p[n++] = 0x0f;
    if (map > 1)
        p[n++] = map == 2 ? 0x38 : 0x3a;
    return n;
}

static unsigned put_vex(struct rng *r, const struct insn_row *row, uint32_t key, enum cpu_bits bits,
                        uint8_t *p)
{
    unsigned n = 0, map = row_map(row), v = row_has(row, AT_VVVV) ? rnd(r) & 15 : 15;
    uint8_t narrow = bits == CPU_64 ? 0 : 0xc0;
    uint8_t last =
        (uint8_t)((key >> KEY_W & 1) << 7 | v << 3 | (key >> KEY_L & 1) << 2 | (key >> KEY_PP & 3));

    if (!pick(r, 24))
        p[n++] = 0x67;
    if (map == 1 && !pick(r, 3)) {
        p[n++] = 0xc5;
        p[n++] = (uint8_t)((last & 0x7f) | (pick(r, 2) << 7) | narrow);
        return n;
    }
    p[n++] = 0xc4;
    p[n++] = (uint8_t)((pick(r, 2) ? 0xe0 : rnd(r) & 0xe0) | map | narrow);
    p[n++] = last;
    return n;
}

static unsigned put_evex(struct rng *r, const struct insn_row *row, uint32_t key,
                         enum cpu_bits bits, uint8_t *p)
{
    unsigned n = 0, v = row_has(row, AT_VVVV)   ? rnd(r) & 31
                        : row_has(row, AT_VSIB) ? 15 | pick(r, 2) << 4
                                                : 31;

    if (!pick(r, 24))
        p[n++] = 0x67;
    p[n++] = 0x62;
    p[n++] =
        (uint8_t)((pick(r, 2) ? 0xf0 : rnd(r) & 0xf0) | row_map(row) | (bits == CPU_64 ? 0 : 0xc0));
    p[n++] = (uint8_t)((key >> KEY_W & 1) << 7 | (v & 15) << 3 | 4 | (key >> KEY_PP & 3));
    p[n++] = (uint8_t)(!pick(r, 3) << 7 | (key >> KEY_L & 3) << 5 | !pick(r, 3) << 4 |
                       (v >> 4) << 3 | (pick(r, 2) ? rnd(r) & 7 : 0));
    return n;
}

void encode_row(struct rng *r, const struct insn_row *row, enum cpu_bits bits, uint8_t b[16])
{
    uint32_t key = ((uint32_t)rnd(r) & ~row->enc[0]) | row->enc[1];
    unsigned n, space = row_space(row);

    for (unsigned k = 0; k < 16; k++)
        b[k] = (uint8_t)rnd(r);
    n = space == SPACE_LEGACY ? put_legacy(r, row, key, bits, b)
        : space == SPACE_VEX  ? put_vex(r, row, key, bits, b)
                              : put_evex(r, row, key, bits, b);
    b[n++] = (uint8_t)(row->enc[3] + (row->enc[3] & SPAN8 ? pick(r, 8) : 0));
    if (row_has(row, AT_HASMODRM)) {
        bool fixed = row->enc[0] >> KEY_MOD3 & 1;
        uint8_t mod = (fixed ? key >> KEY_MOD3 & 1 : pick(r, 2)) ? 3 : (uint8_t)pick(r, 3);

        b[n] = (uint8_t)(mod << 6 | (key >> KEY_REG & 7) << 3 | (key >> KEY_RM & 7));
        if (mod != 3 && !(row->enc[0] >> KEY_RM & 7) && (!pick(r, 4) || row_has(row, AT_VSIB)))
            b[n] = (uint8_t)((b[n] & ~7) | 4);
    }
}
