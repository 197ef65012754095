/* State of one run of insn_decode(), shared by its files; private to src/insn. */
#ifndef RING3_INSN_DECODE_H
#define RING3_INSN_DECODE_H

#include "insn/insn.h"
#include "insn/table.h"

struct dec {
    const uint8_t *code;
    uint8_t max; /* bytes that may be read: what there is, 15 at most */
    uint8_t pos;
    uint8_t bits; /* enum cpu_bits */
    uint8_t space, map;
    bool p66, p67, lock;
    uint8_t rep; /* 0xf2 or 0xf3, the last one seen */
    uint8_t w, l;
    uint8_t r, x, b;    /* 0 or 8 */
    uint8_t r2, x2, v2; /* EVEX: 0 or 16; x2 extends r/m when it names a vector */
    uint8_t vvvv;       /* with v2 */
    uint32_t attr;      /* the row's */
};

static inline bool dec_u8(struct dec *d, uint8_t *v)
{
    if (d->pos >= d->max)
        return false;
    *v = d->code[d->pos++];
    return true;
}

/* n = 1, 2, 4 or 8 bytes, zero-extended. */
static inline bool dec_u(struct dec *d, unsigned n, uint64_t *v)
{
    if (n > (unsigned)(d->max - d->pos))
        return false;
    *v = 0;
    __builtin_memcpy(v, d->code + d->pos, n);
    d->pos += (uint8_t)n;
    return true;
}

/* What running out of bytes means. */
static inline int dec_short(const struct dec *d)
{
    return d->max == INSN_MAX_LEN ? INSN_E_LONG : INSN_E_TRUNC;
}

static inline bool attr_has(const struct dec *d, uint64_t at)
{
    return d->attr & (uint32_t)(at >> 32);
}

/* All return INSN_OK or an insn_error. */
int insn_decode_prefixes(struct dec *d, struct insn *i); /* up to and with the opcode byte */
int insn_decode_operands(struct dec *d, struct insn *i); /* from the byte after ModRM on */

#endif
