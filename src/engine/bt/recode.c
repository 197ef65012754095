/* See recode.h. The encoding is made anew from the decoded fields, never patched in place: whatever
 * the guest's bytes held without meaning (redundant prefixes, ignored bits) does not reach the
 * host. */
#include "engine/bt/recode.h"

#include <string.h>

/* General registers that instructions use without an operand that says so; bit n: register n. */
#define USES_A BIT(RAX)
#define USES_C BIT(RCX)
#define USES_D BIT(RDX)
#define USES_B BIT(RBX)
#define NO_FORM BIT(7) /* memory that the encoding does not name, or I/O ports: never recoded */

static const uint8_t hidden_uses[INSN_COUNT] = {
    [INSN_MUL] = USES_A | USES_D,
    [INSN_IMUL] = USES_A | USES_D, /* the form with one operand */
    [INSN_DIV] = USES_A | USES_D,
    [INSN_IDIV] = USES_A | USES_D,
    [INSN_MULX] = USES_D,
    [INSN_CBW] = USES_A,
    [INSN_CWD] = USES_A | USES_D,
    [INSN_LAHF] = USES_A,
    [INSN_SAHF] = USES_A,
    [INSN_CMPXCHG] = USES_A,
    [INSN_CMPXCHG8B] = USES_A | USES_B | USES_C | USES_D,
    [INSN_CMPXCHG16B] = USES_A | USES_B | USES_C | USES_D,
    [INSN_CPUID] = USES_A | USES_B | USES_C | USES_D,
    [INSN_RDTSC] = USES_A | USES_D,
    [INSN_RDTSCP] = USES_A | USES_C | USES_D,
    [INSN_RDPMC] = USES_A | USES_C | USES_D,
    [INSN_XGETBV] = USES_A | USES_C | USES_D,
    [INSN_XSAVE] = USES_A | USES_D,
    [INSN_XSAVEC] = USES_A | USES_D,
    [INSN_XSAVEOPT] = USES_A | USES_D,
    [INSN_PCMPESTRI] = USES_A | USES_C | USES_D,
    [INSN_PCMPESTRM] = USES_A | USES_D,
    [INSN_PCMPISTRI] = USES_C,
    [INSN_VPCMPESTRI] = USES_A | USES_C | USES_D,
    [INSN_VPCMPESTRM] = USES_A | USES_D,
    [INSN_VPCMPISTRI] = USES_C,
    [INSN_PUSH] = NO_FORM,
    [INSN_POP] = NO_FORM,
    [INSN_PUSH_SREG] = NO_FORM,
    [INSN_POP_SREG] = NO_FORM,
    [INSN_PUSHF] = NO_FORM,
    [INSN_POPF] = NO_FORM,
    [INSN_ENTER] = NO_FORM,
    [INSN_LEAVE] = NO_FORM,
    [INSN_XLAT] = NO_FORM,
    [INSN_IN] = NO_FORM,
    [INSN_OUT] = NO_FORM,
};

/* A host encoding in the making. Register numbers are whole: 0..15, vectors 0..31. */
struct form {
    const struct recode_mem *mem; /* NULL: no memory operand */
    uint8_t opcode;
    bool has_modrm;
    uint8_t reg; /* ModRM.reg: register or extension of the opcode */
    uint8_t rm;  /* ModRM.rm, or the register in the opcode byte; 0 with a memory operand */
    uint8_t vvvv;
    bool need_rex, no_rex;
};

/* The number that encodes the guest's general register o, or REG_NONE. */
static uint8_t host_gpr(struct form *f, const struct opnd *o, const struct recode_map *m)
{
    uint8_t n = m->gpr[o->reg & 15];

    if (o->cls == RC_GPRH) {
        n = m->high[o->reg & 3];
        if (n == REG_NONE) {
            f->no_rex = true;
            return 4 + (o->reg & 3);
        }
    }
    if (n > 15)
        return REG_NONE;
    if (o->size == 1 && n >= 4)
        f->need_rex = true;
    return n;
}

static bool in_place(const struct recode_map *m, unsigned uses)
{
    for (unsigned r = RAX; r <= RBX; r++)
        if ((uses & BIT(r)) && m->gpr[r] != r)
            return false;
    return true;
}

unsigned recode_hidden(const struct insn *i)
{
    unsigned uses = hidden_uses[i->id] & ~NO_FORM;

    return i->id == INSN_IMUL && i->nops > 1 ? 0 : uses;
}

static bool hidden_in_place(const struct insn *i, const struct recode_map *m)
{
    unsigned uses = hidden_uses[i->id];

    if (uses & NO_FORM)
        return false;
    if (i->id == INSN_IMUL && i->nops > 1)
        return true;
    if (i->opsize == 1)
        uses &= ~USES_D; /* MUL, DIV: AX instead of DX:AX */
    if ((i->id == INSN_LAHF || i->id == INSN_SAHF) && m->high[0] != REG_NONE)
        return false;
    return in_place(m, uses);
}

/* Does the guest's bit number, not only the memory operand, decide which byte is accessed? */
static bool addresses_by_bit(const struct insn *i)
{
    switch (i->id) {
    case INSN_BT:
    case INSN_BTS:
    case INSN_BTR:
    case INSN_BTC:
        return i->op[0].kind == OP_MEM && i->op[1].kind == OP_REG;
    default:
        return false;
    }
}

/* Forms that imply the accumulator have relatives with ModRM. False: i is none of them. */
static bool accumulator_form(struct form *f, const struct insn *i, const struct recode_map *m)
{
    const struct opnd acc = {.kind = OP_REG, .cls = RC_GPR, .reg = RAX, .size = i->opsize};
    uint8_t op = i->opcode;

    if (i->map || (i->prefix & (PFX_VEX | PFX_EVEX)))
        return false;
    if (op >= 0xa0 && op <= 0xa3) { /* MOV moffs: direction and width sit in other bits */
        f->opcode = 0x88 | (op & 1) | (~op & 2);
        f->reg = host_gpr(f, &acc, m);
    } else if (i->id == INSN_XCHG && op >= 0x90 && op <= 0x97) {
        f->opcode = 0x87;
        f->reg = host_gpr(f, &acc, m);
        f->rm = host_gpr(f, &i->op[0], m);
    } else if (op < 0x40 && (op & 6) == 4 && m->gpr[RAX] != RAX) {
        f->opcode = 0x80 | (op & 1);
        f->reg = op >> 3;
        f->rm = host_gpr(f, &acc, m);
    } else if ((op & 0xfe) == 0xa8 && m->gpr[RAX] != RAX) {
        f->opcode = 0xf6 | (op & 1);
        f->reg = 0;
        f->rm = host_gpr(f, &acc, m);
    } else {
        return false;
    }
    f->has_modrm = true;
    return true;
}

/* Puts operand k in its slot. */
static bool place(struct form *f, const struct insn *i, unsigned k, const struct recode_map *m)
{
    const struct opnd *o = &i->op[k];
    uint8_t n = o->reg;

    if (i->slot[k] == SLOT_IMPLICIT && o->kind == OP_MEM)
        return false;
    if (o->kind != OP_REG)
        return true;
    if (o->cls == RC_GPR || o->cls == RC_GPRH) {
        if (i->slot[k] == SLOT_IMPLICIT)
            return m->gpr[n] == n;
        n = host_gpr(f, o, m);
        if (n == REG_NONE)
            return false;
    }
    switch (i->slot[k]) {
    case SLOT_REG:
        f->reg = n;
        break;
    case SLOT_RM:
        f->rm = n;
        break;
    case SLOT_VVVV:
        f->vvvv = n;
        break;
    case SLOT_OPCODE:
        f->opcode = (i->opcode & ~7) | (n & 7);
        f->rm = n;
        break;
    default: /* SLOT_IS4 stays as part of the immediate; ST0 and XMM0 are where they are */
        break;
    }
    return true;
}

static bool mem_valid(const struct recode_mem *mem)
{
    if (!mem || mem->base > 15)
        return false;
    return mem->index == REG_NONE || (mem->index <= 15 && mem->index != RSP && mem->scale <= 3);
}

static bool make_form(struct form *f, const struct insn *i, const struct recode_map *m,
                      const struct recode_mem *mem)
{
    bool moffs = i->id == INSN_MOV && !i->has_modrm && i->off_imm == 0;

    if (i->bits != CPU_64 || (i->row->flags & (IF_BRANCH | IF_PRIV | IF_SYS)))
        return false;
    if (!hidden_in_place(i, m) || addresses_by_bit(i))
        return false;
    *f = (struct form){
        .opcode = i->opcode,
        .has_modrm = i->has_modrm,
        .reg = i->modrm >> 3 & 7,
        .vvvv = i->vvvv & 15,
    };
    if (moffs || (i->has_modrm && i->modrm < 0xc0)) {
        if (i->mem.vsib || !mem_valid(mem))
            return false;
        f->mem = mem;
    } else if (i->has_modrm) {
        f->rm = i->modrm & 7;
    }
    if (accumulator_form(f, i, m))
        return f->reg != REG_NONE && f->rm != REG_NONE;
    for (unsigned k = 0; k < i->nops; k++)
        if (!place(f, i, k, m))
            return false;
    return true;
}

/* Bit 3 of the registers in ModRM.reg, SIB.index and ModRM.rm, SIB.base or the opcode, as in REX.
 */
static unsigned rxb(const struct form *f)
{
    unsigned r = f->reg >> 3 & 1, x = 0, b = f->rm >> 3 & 1;

    if (f->mem) {
        x = f->mem->index != REG_NONE && f->mem->index > 7;
        b = f->mem->base >> 3;
    }
    return r << 2 | x << 1 | b;
}

/* Prefixes up to the opcode; NULL: AH..BH and REX exclude each other. */
static uint8_t *put_legacy(uint8_t *p, const struct form *f, const struct insn *i)
{
    unsigned rex = (i->rex & 8) | rxb(f);

    if (f->no_rex && (f->need_rex || rex))
        return NULL;
    if (i->prefix & PFX_LOCK)
        *p++ = 0xf0;
    if (i->prefix & PFX_OPSIZE)
        *p++ = 0x66;
    if (i->pp >= 2 && !(i->prefix & (PFX_REP | PFX_REPNE)))
        *p++ = i->pp == 2 ? 0xf3 : 0xf2;
    if (rex || f->need_rex)
        *p++ = (uint8_t)(0x40 | rex);
    if (i->map)
        *p++ = 0x0f;
    if (i->map > 1)
        *p++ = i->map == 2 ? 0x38 : 0x3a;
    return p;
}

/* The guest's prefix bytes end before the opcode. */
static const uint8_t *opcode_byte(const struct insn *i)
{
    unsigned end = i->has_modrm ? i->off_modrm : i->off_imm ? i->off_imm : i->len;

    return &i->raw[end - 1];
}

static uint8_t *put_vex(uint8_t *p, const struct form *f, const struct insn *i)
{
    unsigned x = rxb(f), last = (~f->vvvv & 15u) << 3 | (opcode_byte(i)[-1] & 7u); /* L, pp */

    if (i->map == 1 && !i->vex_w && !(x & 3)) {
        *p++ = 0xc5;
        *p++ = (uint8_t)(last | (x & 4 ? 0 : 0x80));
        return p;
    }
    *p++ = 0xc4;
    *p++ = (uint8_t)((~x & 7) << 5 | i->map);
    *p++ = (uint8_t)(last | (unsigned)i->vex_w << 7);
    return p;
}

static uint8_t *put_evex(uint8_t *p, const struct form *f, const struct insn *i)
{
    const uint8_t *guest = opcode_byte(i) - 3;
    unsigned x = rxb(f);

    /* R' and X are the fifth bits of vector registers in ModRM. */
    if (!f->mem)
        x |= f->rm >> 3 & 2;
    *p++ = 0x62;
    *p++ = (uint8_t)((~x & 7) << 5 | (~f->reg & 16) | i->map);
    *p++ = (uint8_t)((guest[1] & 0x87) | (~f->vvvv & 15) << 3); /* W, pp */
    *p++ = guest[2];                                            /* z, L'L, b, V', aaa */
    return p;
}

static uint8_t *put_disp32(uint8_t *p, int32_t disp)
{
    memcpy(p, &disp, sizeof(disp));
    return p + sizeof(disp);
}

static uint8_t *put_modrm(uint8_t *p, const struct form *f, bool evex)
{
    const struct recode_mem *mem = f->mem;
    unsigned reg = (f->reg & 7u) << 3, mod, base;

    if (!mem) {
        *p++ = (uint8_t)(0xc0 | reg | (f->rm & 7));
        return p;
    }
    base = mem->base & 7;
    /* EVEX scales an 8-bit displacement by the operand's size: only 0 is used there. */
    if (mem->disp == 0)
        mod = base == RBP; /* RBP and R13 with mod 0 mean no base */
    else
        mod = !evex && mem->disp == (int8_t)mem->disp ? 1 : 2;
    if (mem->index != REG_NONE) {
        *p++ = (uint8_t)(mod << 6 | reg | 4);
        *p++ = (uint8_t)(mem->scale << 6 | (mem->index & 7) << 3 | base);
    } else if (base == RSP) {
        *p++ = (uint8_t)(mod << 6 | reg | 4);
        *p++ = 0x24; /* RSP or R12 and no index */
    } else {
        *p++ = (uint8_t)(mod << 6 | reg | base);
    }
    if (mod == 1)
        *p++ = (uint8_t)mem->disp;
    return mod == 2 ? put_disp32(p, mem->disp) : p;
}

unsigned recode(uint8_t out[RECODE_MAX], const struct insn *i, const struct recode_map *m,
                const struct recode_mem *mem)
{
    bool evex = i->prefix & PFX_EVEX;
    struct form f;
    uint8_t *p = out;

    if (!make_form(&f, i, m, mem))
        return 0;
    p = evex ? put_evex(p, &f, i) : i->prefix & PFX_VEX ? put_vex(p, &f, i) : put_legacy(p, &f, i);
    if (!p)
        return 0;
    *p++ = f.opcode;
    if (f.has_modrm)
        p = put_modrm(p, &f, evex);
    if (i->off_imm) {
        memcpy(p, &i->raw[i->off_imm], (size_t)(i->len - i->off_imm));
        p += i->len - i->off_imm;
    }
    return (unsigned)(p - out);
}
