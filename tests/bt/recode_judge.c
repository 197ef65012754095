#include "recode_judge.h"

#include <string.h>

struct zinsn {
    ZydisDecodedInstruction z;
    ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
};

struct verdict {
    const struct insn *i;
    const struct recode_map *m;
    const struct recode_mem *mem;
    struct zinsn in, out;
};

void judge_init(struct judge *j)
{
    memset(j, 0, sizeof(*j));
    ZydisDecoderInit(&j->dec, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    ZydisDecoderEnableMode(&j->dec, ZYDIS_DECODER_MODE_MPX, ZYAN_FALSE);
}

static bool decode(const struct judge *j, const uint8_t *code, size_t n, struct zinsn *z)
{
    return ZYAN_SUCCESS(ZydisDecoderDecodeFull(&j->dec, code, n, &z->z, z->op));
}

/* ---- registers ---- */

static bool is_high(ZydisRegister r) { return r >= ZYDIS_REGISTER_AH && r <= ZYDIS_REGISTER_BH; }

/* Number of a general register; of AH..BH that of the one which holds it. -1: no general register.
 */
static int gpr_number(ZydisRegister r)
{
    switch (ZydisRegisterGetClass(r)) {
    case ZYDIS_REGCLASS_GPR8:
        if (r <= ZYDIS_REGISTER_BL)
            return r - ZYDIS_REGISTER_AL;
        return is_high(r) ? r - ZYDIS_REGISTER_AH : r - ZYDIS_REGISTER_SPL + 4;
    case ZYDIS_REGCLASS_GPR16:
        return r - ZYDIS_REGISTER_AX;
    case ZYDIS_REGCLASS_GPR32:
        return r - ZYDIS_REGISTER_EAX;
    case ZYDIS_REGCLASS_GPR64:
        return r - ZYDIS_REGISTER_RAX;
    default:
        return -1;
    }
}

static ZydisRegister low_byte(unsigned n)
{
    return (ZydisRegister)(n < 4 ? ZYDIS_REGISTER_AL + n : ZYDIS_REGISTER_SPL + n - 4);
}

/* What the map makes of a guest register. */
static ZydisRegister mapped(const struct recode_map *m, ZydisRegister r)
{
    int n = gpr_number(r);

    if (n < 0)
        return r;
    if (is_high(r))
        return m->high[n] == REG_NONE ? r : low_byte(m->high[n]);
    switch (ZydisRegisterGetClass(r)) {
    case ZYDIS_REGCLASS_GPR8:
        return low_byte(m->gpr[n]);
    case ZYDIS_REGCLASS_GPR16:
        return (ZydisRegister)(ZYDIS_REGISTER_AX + m->gpr[n]);
    case ZYDIS_REGCLASS_GPR32:
        return (ZydisRegister)(ZYDIS_REGISTER_EAX + m->gpr[n]);
    default:
        return (ZydisRegister)(ZYDIS_REGISTER_RAX + m->gpr[n]);
    }
}

/* ---- must it be refused? ---- */

/* Can the register be named by ModRM if the accumulator form cannot name it? */
static bool has_modrm_relative(const struct insn *i)
{
    if (i->map || (i->prefix & (PFX_VEX | PFX_EVEX)))
        return false;
    switch (i->opcode) {
    case 0x90 ... 0x97:
    case 0xa0 ... 0xa3:
    case 0xa8:
    case 0xa9:
        return true;
    default:
        return i->opcode < 0x40;
    }
}

static bool named(const ZydisDecodedOperand *o)
{
    return o->visibility == ZYDIS_OPERAND_VISIBILITY_EXPLICIT &&
           o->encoding != ZYDIS_OPERAND_ENCODING_NONE;
}

static bool memory_refused(const struct verdict *v)
{
    const struct zinsn *in = &v->in;

    for (unsigned k = 0; k < in->z.operand_count; k++) {
        if (in->op[k].type != ZYDIS_OPERAND_TYPE_MEMORY)
            continue;
        if (!named(&in->op[k]) || in->op[k].mem.type == ZYDIS_MEMOP_TYPE_VSIB)
            return true;
    }
    switch (in->z.mnemonic) {
    case ZYDIS_MNEMONIC_BT:
    case ZYDIS_MNEMONIC_BTS:
    case ZYDIS_MNEMONIC_BTR:
    case ZYDIS_MNEMONIC_BTC:
        return in->op[0].type == ZYDIS_OPERAND_TYPE_MEMORY &&
               in->op[1].type == ZYDIS_OPERAND_TYPE_REGISTER;
    default:
        return false;
    }
}

static bool implicit_refused(const struct verdict *v)
{
    const struct zinsn *in = &v->in;

    if (has_modrm_relative(v->i))
        return false;
    for (unsigned k = 0; k < in->z.operand_count; k++) {
        const ZydisDecodedOperand *o = &in->op[k];
        int n = o->type == ZYDIS_OPERAND_TYPE_REGISTER ? gpr_number(o->reg.value) : -1;
        if (n < 0 || named(o))
            continue;
        if (v->m->gpr[n] != n || (is_high(o->reg.value) && v->m->high[n] != REG_NONE))
            return true;
    }
    return false;
}

/* AH..BH that stay, beside what only REX can name. */
static bool high_refused(const struct verdict *v)
{
    const struct zinsn *in = &v->in;
    bool high = false, rex = false;

    for (unsigned k = 0; k < in->z.operand_count; k++) {
        const ZydisDecodedOperand *o = &in->op[k];
        if (o->type == ZYDIS_OPERAND_TYPE_MEMORY)
            rex |= v->mem->base >= 8 || (v->mem->index != REG_NONE && v->mem->index >= 8);
        if (o->type != ZYDIS_OPERAND_TYPE_REGISTER || gpr_number(o->reg.value) < 0)
            continue;
        ZydisRegister r = mapped(v->m, o->reg.value);
        high |= is_high(r);
        rex |= gpr_number(r) >= (o->size == 8 ? 4 : 8);
    }
    return high && rex;
}

static bool must_refuse(const struct verdict *v)
{
    return (v->i->row->flags & (IF_BRANCH | IF_PRIV | IF_SYS)) ||
           v->in.z.meta.category == ZYDIS_CATEGORY_IO || memory_refused(v) || implicit_refused(v) ||
           high_refused(v);
}

/* ---- is it the same? ---- */

static const char *compare_mem(const struct verdict *v, const ZydisDecodedOperand *a,
                               const ZydisDecodedOperand *b)
{
    const struct recode_mem *mem = v->mem;

    if (a->mem.type != b->mem.type)
        return "kind of memory operand";
    if (gpr_number(b->mem.base) != mem->base ||
        ZydisRegisterGetClass(b->mem.base) != ZYDIS_REGCLASS_GPR64)
        return "base";
    if (mem->index == REG_NONE ? b->mem.index != ZYDIS_REGISTER_NONE
                               : gpr_number(b->mem.index) != mem->index)
        return "index";
    if (mem->index != REG_NONE && b->mem.scale != 1u << mem->scale)
        return "scale";
    if (b->mem.disp.value != mem->disp)
        return "displacement";
    return NULL;
}

static const char *compare_operand(const struct verdict *v, const ZydisDecodedOperand *a,
                                   const ZydisDecodedOperand *b)
{
    /* LEA's address has the size of an address. */
    bool sized = a->type != ZYDIS_OPERAND_TYPE_MEMORY || a->mem.type != ZYDIS_MEMOP_TYPE_AGEN;

    if (a->type != b->type || a->actions != b->actions)
        return "kind of operand";
    if (sized && (a->size != b->size || a->element_size != b->element_size ||
                  a->element_count != b->element_count))
        return "operand size";
    switch (a->type) {
    case ZYDIS_OPERAND_TYPE_REGISTER:
        return b->reg.value == mapped(v->m, a->reg.value) ? NULL : "register";
    case ZYDIS_OPERAND_TYPE_MEMORY:
        return compare_mem(v, a, b);
    case ZYDIS_OPERAND_TYPE_IMMEDIATE:
        return a->imm.value.u == b->imm.value.u && a->imm.is_signed == b->imm.is_signed
                   ? NULL
                   : "immediate";
    default:
        return "kind of operand";
    }
}

static const char *compare_vector(const ZydisDecodedInstruction *a,
                                  const ZydisDecodedInstruction *b)
{
    if (a->avx.vector_length != b->avx.vector_length)
        return "vector length";
    if (a->avx.mask.mode != b->avx.mask.mode || a->avx.mask.reg != b->avx.mask.reg)
        return "mask";
    if (a->avx.broadcast.mode != b->avx.broadcast.mode ||
        a->avx.broadcast.is_static != b->avx.broadcast.is_static)
        return "broadcast";
    if (a->avx.rounding.mode != b->avx.rounding.mode || a->avx.has_sae != b->avx.has_sae)
        return "rounding";
    return NULL;
}

static const char *compare_zydis(const struct verdict *v)
{
    const ZydisDecodedInstruction *a = &v->in.z, *b = &v->out.z;
    const ZydisInstructionAttributes kept = ZYDIS_ATTRIB_HAS_LOCK | ZYDIS_ATTRIB_HAS_REP |
                                            ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE |
                                            ZYDIS_ATTRIB_IS_PRIVILEGED;
    const char *why;

    /* Without a meaningless F2 or F3 a hint may have another name; its operands mean nothing. */
    if (v->i->id == INSN_NOP)
        return b->mnemonic == a->mnemonic || b->mnemonic == ZYDIS_MNEMONIC_NOP ||
                       b->mnemonic == ZYDIS_MNEMONIC_CLDEMOTE
                   ? NULL
                   : "not a hint";
    if (a->mnemonic != b->mnemonic)
        return "mnemonic";
    if (a->encoding != b->encoding || a->meta.isa_set != b->meta.isa_set)
        return "instruction set";
    if (a->operand_width != b->operand_width)
        return "operand width";
    if (b->address_width != 64 || (b->attributes & ZYDIS_ATTRIB_HAS_SEGMENT))
        return "address size or segment kept";
    if ((a->attributes ^ b->attributes) & kept)
        return "prefixes";
    if (a->operand_count != b->operand_count)
        return "number of operands";
    for (unsigned k = 0; k < a->operand_count; k++) {
        why = compare_operand(v, &v->in.op[k], &v->out.op[k]);
        if (why)
            return why;
    }
    return compare_vector(a, b);
}

static const char *compare_own_mem(const struct verdict *v, const struct insn *o)
{
    const struct recode_mem *mem = v->mem;

    if (o->mem.base != mem->base || o->mem.index != mem->index || o->mem.disp != mem->disp)
        return "our decoder: memory operand";
    if (mem->index != REG_NONE && o->mem.scale != mem->scale)
        return "our decoder: scale";
    return o->mem.seg_override ? "our decoder: segment" : NULL;
}

static const char *compare_own_operand(const struct verdict *v, const struct opnd *a,
                                       const struct opnd *b)
{
    bool high = a->cls == RC_GPRH && v->m->high[a->reg] == REG_NONE;
    struct opnd want = *a;

    if (a->cls == RC_GPRH && !high) {
        want.cls = RC_GPR;
        want.reg = v->m->high[a->reg];
    } else if (a->cls == RC_GPR) {
        want.reg = v->m->gpr[a->reg];
    }
    if (want.kind != b->kind || want.size != b->size || want.read != b->read ||
        want.write != b->write)
        return "our decoder: operand";
    return want.cls == b->cls && want.reg == b->reg ? NULL : "our decoder: register";
}

static const char *compare_own(const struct verdict *v, const uint8_t *out, unsigned n)
{
    const struct insn *i = v->i;
    const char *why = NULL;
    struct insn o;

    if (insn_decode(&o, out, n, CPU_64) != INSN_OK || o.len != n)
        return "our decoder rejects it";
    if (o.id != i->id || o.opsize != i->opsize || o.nops != i->nops || o.cond != i->cond)
        return "our decoder: another instruction";
    if (o.row != i->row && i->id != INSN_NOP && !has_modrm_relative(i))
        return "our decoder: another row";
    if ((o.prefix ^ i->prefix) & (PFX_LOCK | PFX_VEX | PFX_EVEX))
        return "our decoder: prefixes";
    if (o.prefix & (PFX_REP | PFX_REPNE | PFX_ADDRSIZE))
        return "our decoder: prefix without meaning";
    if (o.imm != i->imm || o.imm2 != i->imm2)
        return "our decoder: immediate";
    if (o.vlen != i->vlen || o.vex_w != i->vex_w || o.evex_aaa != i->evex_aaa ||
        o.evex_b != i->evex_b || o.evex_z != i->evex_z || o.bcst != i->bcst)
        return "our decoder: vector fields";
    for (unsigned k = 0; k < i->nops && !why; k++) {
        why = compare_own_operand(v, &i->op[k], &o.op[k]);
        if (!why && i->op[k].kind == OP_MEM)
            why = compare_own_mem(v, &o);
    }
    return why;
}

const char *judge_recode(struct judge *j, const struct insn *i, const struct recode_map *m,
                         const struct recode_mem *mem, const uint8_t *out, unsigned n)
{
    struct verdict v = {.i = i, .m = m, .mem = mem};
    const char *why;

    if (!decode(j, i->raw, i->len, &v.in)) {
        j->unknown++;
        return NULL;
    }
    if (must_refuse(&v)) {
        j->refused++;
        return n ? "must be refused" : NULL;
    }
    if (!n)
        return "refused without reason";
    j->recoded++;
    if (n > INSN_MAX_LEN)
        return "too long";
    why = compare_own(&v, out, n);
    if (why)
        return why;
    if (!decode(j, out, n, &v.out) || v.out.z.length != n)
        return "Zydis rejects it";
    return compare_zydis(&v);
}
