/* Choosing the row for an encoding, and the rules that hold for whole instructions. */
#include "insn/decode.h"

#include <string.h>

static unsigned vector_l(const struct dec *d, const struct insn *i)
{
    /* Rounding control and SAE take the place of L'L: such instructions are 512 bits long. */
    return d->space == SPACE_EVEX && i->evex_b && i->modrm >= 0xc0 ? 2 : d->l;
}

static uint32_t match_key(const struct dec *d, const struct insn *i)
{
    return (uint32_t)(i->modrm >> 3 & 7) << KEY_REG | (uint32_t)(i->modrm & 7) << KEY_RM |
           (uint32_t)(i->modrm >= 0xc0) << KEY_MOD3 | (uint32_t)i->pp << KEY_PP |
           (uint32_t)d->w << KEY_W | vector_l(d, i) << KEY_L |
           (uint32_t)(d->bits == CPU_64) << KEY_64 | (uint32_t)(d->b != 0) << KEY_REXB;
}

static const struct insn_row *find_row(const struct insn_index *ix, const struct dec *d,
                                       const struct insn *i)
{
    const struct insn_cand *c = &insn_cands[ix->first];

    if (ix->sole)
        return &insn_table[c->row];
    uint32_t key = match_key(d, i);
    for (unsigned n = ix->n; n; n--, c++)
        if ((key & c->mask) == c->value)
            return &insn_table[c->row];
    return NULL;
}

static void set_sizes(const struct dec *d, struct insn *i)
{
    bool is64 = d->bits == CPU_64;
    bool small = d->p66 ^ (d->bits == CPU_16);

    i->opsize = is64 && d->w ? 8 : small && d->space == SPACE_LEGACY ? 2 : 4;
    switch (d->attr & 7) {
    case OS_STD:
        break;
    case OS_BYTE:
        i->opsize = 1;
        break;
    case OS_D64:
        if (is64)
            i->opsize = d->p66 && !d->w ? 2 : 8;
        break;
    case OS_F64:
        if (is64)
            i->opsize = 8;
        break;
    case OS_CR:
        i->opsize = is64 ? 8 : 4;
        break;
    case OS_Z:
        if (i->opsize == 8)
            i->opsize = 4;
        break;
    }
    if (i->row->flags & (IF_SSE | IF_AVX | IF_AVX512)) {
        i->vlen = 16;
        if (d->space != SPACE_LEGACY && !attr_has(d, AT_LIG))
            i->vlen = (uint8_t)(16u << vector_l(d, i));
    }
}

/* Gathers are #UD when destination, index and (VEX) mask are not different registers. */
static bool gather_conflict(const struct insn *i)
{
    uint8_t dest = i->op[0].reg, index = i->mem.index;

    return dest == index || (i->nops > 2 && (i->op[2].reg == dest || i->op[2].reg == index));
}

/* Rules of VEX and EVEX beyond what the rows match. */
static int check_vector(const struct dec *d, const struct insn *i)
{
    bool mem = i->modrm < 0xc0;

    if (!attr_has(d, AT_VVVV) && (d->vvvv & (i->mem.vsib ? 15 : 31)))
        return INSN_E_UD;
    if (attr_has(d, AT_GATHER) && gather_conflict(i))
        return INSN_E_UD;
    if (d->space != SPACE_EVEX)
        return INSN_OK;
    if (d->l == 3 && !(i->evex_b && !mem))
        return INSN_E_UD;
    if (i->evex_b) {
        if (mem ? !i->bcst : !attr_has(d, AT_SAE | AT_ER))
            return INSN_E_UD;
    }
    switch (d->attr >> 7 & 3) {
    case MASK_NONE:
        if (i->evex_aaa || i->evex_z)
            return INSN_E_UD;
        break;
    case MASK_NEEDED:
        if (!i->evex_aaa || i->evex_z)
            return INSN_E_UD;
        break;
    case MASK_MERGE:
        if (i->evex_z)
            return INSN_E_UD;
        break;
    default:
        if (i->evex_z && (!i->evex_aaa || i->op[0].kind == OP_MEM))
            return INSN_E_UD;
        break;
    }
    return INSN_OK;
}

static int decode(struct dec *d, struct insn *i)
{
    int e = insn_decode_prefixes(d, i);
    if (e != INSN_OK)
        return e;

    const struct insn_index *ix = &insn_index[d->space][d->map][i->opcode];
    if (!ix->n)
        return INSN_E_UD;
    if (ix->modrm) {
        i->off_modrm = d->pos;
        i->has_modrm = true;
        if (!dec_u8(d, &i->modrm))
            return dec_short(d);
    }
    i->row = find_row(ix, d, i);
    if (!i->row)
        return INSN_E_UD;
    i->id = i->row->id;
    d->attr = i->row->enc[2];
    if (attr_has(d, AT_NOMOD))
        i->modrm |= 0xc0;
    if (attr_has(d, AT_CC))
        i->cond = i->opcode & 15;
    if (d->rep && !(i->row->enc[0] & 2u << KEY_PP))
        i->prefix |= d->rep == 0xf3 ? PFX_REP : PFX_REPNE;
    i->map = d->map;
    i->vex_w = d->w;
    i->addrsize = d->bits == CPU_64 ? (d->p67 ? 4 : 8) : (d->p67 ^ (d->bits == CPU_16)) ? 2 : 4;
    set_sizes(d, i);
    if (d->space == SPACE_EVEX && i->evex_b && i->modrm < 0xc0)
        i->bcst = (uint8_t)((d->attr >> 3 & 3) << 2);
    e = insn_decode_operands(d, i);
    if (e != INSN_OK)
        return e;
    if (d->lock && (!(i->row->flags & IF_LOCK) || i->op[0].kind != OP_MEM))
        return INSN_E_UD;
    return d->space == SPACE_LEGACY ? INSN_OK : check_vector(d, i);
}

/* Zeroes *i. In words of 16 bytes because the compiler's choice, rep stos, costs as much as the
 * rest. */
static void clear(struct insn *i)
{
    typedef uint64_t word __attribute__((vector_size(16), aligned(8), may_alias));
    word *w = (word *)i;

    _Static_assert(sizeof(*i) % sizeof(*w) == 0, "struct insn is whole words");
#pragma GCC unroll 16
    for (size_t k = 0; k < sizeof(*i) / sizeof(*w); k++)
        w[k] = (word){0, 0};
}

int insn_decode(struct insn *i, const uint8_t *code, size_t avail, enum cpu_bits bits)
{
    struct dec d = {.code = code, .bits = (uint8_t)bits};

    d.max = (uint8_t)MIN(avail, (size_t)INSN_MAX_LEN);
    clear(i);
    i->bits = (uint8_t)bits;
    int e = decode(&d, i);
    i->len = d.pos;
    i->vvvv = d.vvvv;
    if (avail >= INSN_MAX_LEN)
        memcpy(i->raw, code, INSN_MAX_LEN); /* a constant length is two moves */
    else
        memcpy(i->raw, code, d.pos);
    return e;
}

bool insn_supported(const struct insn *i, const struct cpuid_policy *p)
{
    if (!cpuid_has(p, i->row->feature) || !cpuid_has(p, i->row->feature2))
        return false;
    if (i->vlen == 32 && (i->row->enc[2] & (uint32_t)(AT_YMM2 >> 32)) && !cpuid_has(p, CPUF_AVX2))
        return false;
    if (!(i->prefix & PFX_EVEX) || i->vlen == 64)
        return true;
    return (i->row->enc[2] & (uint32_t)((AT_LIG | AT_NOVL) >> 32)) || cpuid_has(p, CPUF_AVX512VL);
}
