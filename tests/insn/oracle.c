#include "oracle.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "insn/table.h" /* last: its short macros are not for other headers */

void oracle_init(struct oracle *o)
{
    static const struct {
        ZydisMachineMode mode;
        ZydisStackWidth width;
    } m[3] = {{ZYDIS_MACHINE_MODE_LONG_COMPAT_16, ZYDIS_STACK_WIDTH_16},
              {ZYDIS_MACHINE_MODE_LONG_COMPAT_32, ZYDIS_STACK_WIDTH_32},
              {ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64}};

    memset(o, 0, sizeof(*o));
    for (int k = 0; k < 3; k++) {
        ZydisDecoderInit(&o->dec[k], m[k].mode, m[k].width);
        ZydisDecoderEnableMode(&o->dec[k], ZYDIS_DECODER_MODE_MPX, ZYAN_FALSE);
    }
}

/* ---- names ---- */

static const char *const cond_names[16] = {"o", "no", "b", "nb", "z", "nz", "be", "nbe",
                                           "s", "ns", "p", "np", "l", "nl", "le", "nle"};

static const char *size_suffix(unsigned size)
{
    return size == 1 ? "b" : size == 2 ? "w" : size == 4 ? "d" : "q";
}

/* Our name for an instruction as Zydis writes it. */
static void zydis_name(const struct insn *i, char *buf, size_t n)
{
    const char *stack = i->opsize == 8 ? "q" : i->opsize == 4 ? "d" : "";

    switch (i->id) {
    case INSN_JCC:
        snprintf(buf, n, "j%s", cond_names[i->cond]);
        break;
    case INSN_SETCC:
        snprintf(buf, n, "set%s", cond_names[i->cond]);
        break;
    case INSN_CMOVCC:
        snprintf(buf, n, "cmov%s", cond_names[i->cond]);
        break;
    case INSN_CBW:
        snprintf(buf, n, "%s", i->opsize == 2 ? "cbw" : i->opsize == 4 ? "cwde" : "cdqe");
        break;
    case INSN_CWD:
        snprintf(buf, n, "%s", i->opsize == 2 ? "cwd" : i->opsize == 4 ? "cdq" : "cqo");
        break;
    case INSN_JCXZ:
        snprintf(buf, n, "%s", i->addrsize == 2 ? "jcxz" : i->addrsize == 4 ? "jecxz" : "jrcxz");
        break;
    case INSN_MOVS:
    case INSN_CMPS:
    case INSN_STOS:
    case INSN_LODS:
    case INSN_SCAS:
    case INSN_INS:
    case INSN_OUTS:
        snprintf(buf, n, "%s%s", i->row->mnemonic, size_suffix(i->op[0].size));
        break;
    case INSN_PUSHA:
    case INSN_POPA:
    case INSN_PUSHF:
    case INSN_POPF:
    case INSN_IRET:
        snprintf(buf, n, "%s%s", i->row->mnemonic, stack);
        break;
    case INSN_FXSAVE:
    case INSN_FXRSTOR:
    case INSN_XSAVE:
    case INSN_XSAVEOPT:
    case INSN_XSAVEC:
    case INSN_XSAVES:
    case INSN_XRSTOR:
    case INSN_XRSTORS:
        snprintf(buf, n, "%s%s", i->row->mnemonic, i->opsize == 8 ? "64" : "");
        break;
    case INSN_ENDBR:
        snprintf(buf, n, "endbr%s", i->modrm & 1 ? "32" : "64");
        break;
    default:
        snprintf(buf, n, "%s", i->row->mnemonic);
        break;
    }
}

/* ---- operands ---- */

static bool reg_of(ZydisRegister r, struct opnd *o)
{
    memset(o, 0, sizeof(*o));
    o->kind = OP_REG;
    o->size = (uint8_t)(ZydisRegisterGetWidth(ZYDIS_MACHINE_MODE_LONG_64, r) / 8);
    o->reg = (uint8_t)ZydisRegisterGetId(r);
    switch (ZydisRegisterGetClass(r)) {
    case ZYDIS_REGCLASS_GPR8:
        o->cls = RC_GPR;
        o->reg = (uint8_t)(r - ZYDIS_REGISTER_AL);
        if (o->reg >= 8)
            o->reg -= 4;
        else if (o->reg >= 4) {
            o->cls = RC_GPRH;
            o->reg -= 4;
        }
        return true;
    case ZYDIS_REGCLASS_GPR16:
    case ZYDIS_REGCLASS_GPR32:
    case ZYDIS_REGCLASS_GPR64:
        o->cls = RC_GPR;
        return true;
    case ZYDIS_REGCLASS_SEGMENT:
        o->cls = RC_SREG;
        return true;
    case ZYDIS_REGCLASS_CONTROL:
        o->cls = RC_CR;
        return true;
    case ZYDIS_REGCLASS_DEBUG:
        o->cls = RC_DR;
        return true;
    case ZYDIS_REGCLASS_X87:
        o->cls = RC_ST;
        return true;
    case ZYDIS_REGCLASS_MMX:
        o->cls = RC_MMX;
        return true;
    case ZYDIS_REGCLASS_XMM:
    case ZYDIS_REGCLASS_YMM:
    case ZYDIS_REGCLASS_ZMM:
        o->cls = RC_VEC;
        return true;
    case ZYDIS_REGCLASS_MASK:
        o->cls = RC_K;
        return true;
    default:
        return false;
    }
}

static uint8_t slot_of(const ZydisDecodedOperand *z)
{
    if (z->type == ZYDIS_OPERAND_TYPE_POINTER)
        return SLOT_IMM;
    switch (z->encoding) {
    case ZYDIS_OPERAND_ENCODING_MODRM_REG:
        return SLOT_REG;
    case ZYDIS_OPERAND_ENCODING_MODRM_RM:
        return SLOT_RM;
    case ZYDIS_OPERAND_ENCODING_OPCODE:
        return SLOT_OPCODE;
    case ZYDIS_OPERAND_ENCODING_NDSNDD:
        return SLOT_VVVV;
    case ZYDIS_OPERAND_ENCODING_IS4:
        return SLOT_IS4;
    case ZYDIS_OPERAND_ENCODING_NONE:
        return SLOT_IMPLICIT;
    case ZYDIS_OPERAND_ENCODING_DISP8:
    case ZYDIS_OPERAND_ENCODING_DISP16:
    case ZYDIS_OPERAND_ENCODING_DISP32:
    case ZYDIS_OPERAND_ENCODING_DISP64:
    case ZYDIS_OPERAND_ENCODING_DISP16_32_64:
        return SLOT_IMPLICIT;
    default:
        return SLOT_IMM;
    }
}

static uint8_t base_of(ZydisRegister r)
{
    struct opnd o;

    if (r == ZYDIS_REGISTER_NONE)
        return REG_NONE;
    if (r == ZYDIS_REGISTER_RIP || r == ZYDIS_REGISTER_EIP)
        return REG_RIP;
    reg_of(r, &o);
    return o.reg;
}

static uint64_t low_bits(uint64_t v, unsigned bytes)
{
    return bytes >= 8 || bytes == 0 ? v : v & ((1ull << 8 * bytes) - 1);
}

static bool string_insn(const struct insn *i) { return i->row->flags & IF_REP; }

/* Of two memory operands (MOVS, CMPS) insn.mem describes the one with rSI. */
static bool compare_mem(const struct pair *p, unsigned k, const char **why)
{
    const struct insn *i = &p->i;
    const ZydisDecodedOperand *z = &p->vis[k];

    if (string_insn(i) && base_of(z->mem.base) == RDI && (i->id == INSN_MOVS || i->id == INSN_CMPS))
        return true;
    *why = "index";
    if (i->mem.index != base_of(z->mem.index))
        return false;
    *why = "scale";
    if (i->mem.index != REG_NONE && 1u << i->mem.scale != z->mem.scale)
        return false;
    *why = "displacement";
    if (low_bits((uint64_t)(i->mem.disp ^ z->mem.disp.value), i->addrsize))
        return false;
    *why = "vsib";
    if (i->mem.vsib != (z->mem.type == ZYDIS_MEMOP_TYPE_VSIB))
        return false;
    *why = "segment";
    struct opnd s;
    if (i->id != INSN_LEA &&
        (!reg_of(z->mem.segment, &s) || s.cls != RC_SREG || s.reg != i->mem.seg))
        return false;
    *why = "base"; /* last: there is a known error in Zydis */
    return i->mem.base == base_of(z->mem.base);
}

static bool compare_roles(const struct opnd *o, const ZydisDecodedOperand *z)
{
    bool write = z->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
    bool read = z->actions & ZYDIS_OPERAND_ACTION_MASK_READ;

    /* A register that may keep its value is read as well: its old value matters. */
    if (o->kind == OP_REG && (z->actions & ZYDIS_OPERAND_ACTION_CONDWRITE))
        read = true;
    return o->read == read && o->write == write;
}

/* -1, or the kind of difference. */
static int compare_operand(const struct pair *p, unsigned k, const char **why)
{
    const struct insn *i = &p->i;
    const struct opnd *o = &i->op[k];
    const ZydisDecodedOperand *z = &p->vis[k];
    struct opnd want;

    *why = "kind";
    switch (z->type) {
    case ZYDIS_OPERAND_TYPE_REGISTER:
        if (o->kind != OP_REG)
            return DIFF_OPERANDS;
        *why = "register";
        if (!reg_of(z->reg.value, &want) || want.cls != o->cls || want.reg != o->reg)
            return DIFF_OPERANDS;
        *why = "register size";
        if (want.size != o->size && (o->cls == RC_GPR || o->cls == RC_VEC || o->cls == RC_GPRH))
            return DIFF_SIZE;
        break;
    case ZYDIS_OPERAND_TYPE_MEMORY:
        if (o->kind != OP_MEM)
            return DIFF_OPERANDS;
        if (!compare_mem(p, k, why))
            return DIFF_OPERANDS;
        *why = "memory size";
        /* Areas of more than 64 bytes (FXSAVE ...) have size 0. */
        if (o->size * 8 != (z->size > 512 ? 0 : z->size))
            return DIFF_SIZE;
        break;
    case ZYDIS_OPERAND_TYPE_POINTER:
        if (o->kind != OP_FARPTR || i->imm != z->ptr.offset || i->imm2 != z->ptr.segment)
            return DIFF_OPERANDS;
        break;
    case ZYDIS_OPERAND_TYPE_IMMEDIATE:
        if (o->kind != (z->imm.is_relative ? OP_REL : OP_IMM))
            return DIFF_OPERANDS;
        *why = "immediate";
        if (low_bits((k && i->op[k - 1].kind == OP_IMM && i->id == INSN_ENTER ? i->imm2 : i->imm) ^
                         z->imm.value.u,
                     o->kind == OP_REL ? 8 : o->size))
            return DIFF_OPERANDS;
        break;
    default:
        return DIFF_OPERANDS;
    }
    *why = "slot";
    if (i->slot[k] != slot_of(z) &&
        !(i->slot[k] == SLOT_IMPLICIT && z->encoding == ZYDIS_OPERAND_ENCODING_NONE))
        return DIFF_OTHER;
    *why = "role";
    if (!compare_roles(o, z))
        return DIFF_ROLE;
    return -1;
}

static bool compare_flags(const struct pair *p, char *msg, size_t len)
{
    const uint64_t mask = FL_STATUS | FL_DF;
    const struct insn_row *row = p->i.row;
    ZydisAccessedFlags none = {0, 0, 0, 0, 0};
    const ZydisAccessedFlags *f = p->z.cpu_flags ? p->z.cpu_flags : &none;
    uint64_t rd = f->tested & mask;
    uint64_t wr = (f->modified | f->set_0 | f->set_1 | f->undefined) & mask;
    uint64_t un = f->undefined & mask;

    if ((row->fl_read & mask) == rd && (row->fl_write & mask) == wr && (row->fl_undef & mask) == un)
        return true;
    snprintf(msg, len, "flags read/written/undefined %03x/%03x/%03x, Zydis %03x/%03x/%03x",
             row->fl_read, row->fl_write, row->fl_undef, (unsigned)rd, (unsigned)wr, (unsigned)un);
    return false;
}

/* What an instruction's exception class (SDM vol. 2 §2.4, §2.8) says of its row, and the EVEX
 * fields. */
static const char *compare_vector(const struct pair *p)
{
    const struct insn *i = &p->i;
    uint32_t f = i->row->flags;
    bool mem16 = false;

    for (unsigned k = 0; k < i->nops; k++)
        mem16 |= i->op[k].kind == OP_MEM && i->op[k].size >= 16;
    switch (p->z.meta.exception_class) {
    case ZYDIS_EXCEPTION_CLASS_SSE2:
    case ZYDIS_EXCEPTION_CLASS_SSE3:
    case ZYDIS_EXCEPTION_CLASS_AVX2:
    case ZYDIS_EXCEPTION_CLASS_AVX3:
    case ZYDIS_EXCEPTION_CLASS_AVX11:
    case ZYDIS_EXCEPTION_CLASS_E2:
    case ZYDIS_EXCEPTION_CLASS_E3:
    case ZYDIS_EXCEPTION_CLASS_E3NF:
    case ZYDIS_EXCEPTION_CLASS_E11:
        if (!(f & IF_FP))
            return "IF_FP missing";
        break;
    case ZYDIS_EXCEPTION_CLASS_NONE:
        break;
    default:
        if (f & IF_FP)
            return "IF_FP without reason";
        break;
    }
    switch (p->z.meta.exception_class) {
    case ZYDIS_EXCEPTION_CLASS_SSE1:
    case ZYDIS_EXCEPTION_CLASS_SSE2:
    case ZYDIS_EXCEPTION_CLASS_SSE4:
    case ZYDIS_EXCEPTION_CLASS_AVX1:
    case ZYDIS_EXCEPTION_CLASS_E1:
    case ZYDIS_EXCEPTION_CLASS_E1NF:
        if (mem16 && !(f & IF_ALIGN))
            return "IF_ALIGN missing";
        break;
    default:
        if (mem16 && (f & IF_ALIGN) && (f & (IF_SSE | IF_AVX | IF_AVX512)))
            return "IF_ALIGN without reason";
        break;
    }
    if (i->vlen > 16 && p->z.avx.vector_length && i->vlen * 8 != p->z.avx.vector_length)
        return "vector length";
    if (i->op[0].cls == RC_VEC && !(i->row->enc[2] & (uint32_t)(AT_SELECT >> 32)) &&
        i->evex_z != (p->z.avx.mask.mode == ZYDIS_MASK_MODE_ZEROING))
        return "zeroing";
    if ((i->prefix & PFX_EVEX) &&
        !!i->bcst != (p->z.avx.broadcast.mode && !p->z.avx.broadcast.is_static))
        return "broadcast";
    return NULL;
}

static bool report(const struct pair *p, enum diff_what what, char *msg, size_t len,
                   const char *fmt, ...)
{
    va_list ap;

    if (diff_excuse(p, what))
        return true;
    int n =
        snprintf(msg, len, "%s: ", p->theirs ? ZydisMnemonicGetString(p->z.mnemonic) : "invalid");
    va_start(ap, fmt);
    vsnprintf(msg + n, len - (size_t)n, fmt, ap);
    va_end(ap);
    return false;
}

static bool compare_accepted(const struct pair *p, char *msg, size_t len)
{
    const struct insn *i = &p->i;
    char name[32], text[128];

    zydis_name(i, name, sizeof(name));
    if (strcmp(name, ZydisMnemonicGetString(p->z.mnemonic)) &&
        !report(p, DIFF_NAME, msg, len, "we say %s", name))
        return false;
    if (i->len != p->z.length &&
        !report(p, DIFF_LENGTH, msg, len, "length %u, Zydis %u", i->len, p->z.length))
        return false;
    if (i->addrsize * 8 != p->z.address_width)
        return report(p, DIFF_OTHER, msg, len, "address size %u, Zydis %u bits", i->addrsize,
                      p->z.address_width);
    if (i->nops != p->nvis) {
        if (!report(p, DIFF_OPERANDS, msg, len, "%u operands, Zydis %u", i->nops, p->nvis))
            return false;
    }
    for (unsigned k = 0; k < MIN(i->nops, p->nvis); k++) {
        const char *why;
        int d = compare_operand(p, k, &why);
        if (d >= 0 &&
            !report(p, (enum diff_what)d, msg, len,
                    "operand %u: %s: kind %u reg %u:%u size %u %s%s slot %u; Zydis size %u act %u",
                    k, why, i->op[k].kind, i->op[k].cls, i->op[k].reg, i->op[k].size,
                    i->op[k].read ? "r" : "", i->op[k].write ? "w" : "", i->slot[k],
                    p->vis[k].size / 8, p->vis[k].actions))
            return false;
    }
    const char *vector = compare_vector(p);
    if (vector && !report(p, DIFF_VECTOR, msg, len, "%s", vector))
        return false;
    if (!compare_flags(p, text, sizeof(text)) && !report(p, DIFF_FLAGS, msg, len, "%s", text))
        return false;
    return true;
}

static void decode_both(struct oracle *o, struct pair *p)
{
    p->ours = insn_decode(&p->i, p->code, 16, p->bits);
    p->theirs = ZYAN_SUCCESS(ZydisDecoderDecodeFull(&o->dec[p->bits], p->code, 16, &p->z, p->zop));
}

bool oracle_foreign(struct oracle *o, const uint8_t code[16], enum cpu_bits bits)
{
    struct pair p = {.code = code, .bits = bits};

    decode_both(o, &p);
    return p.ours != INSN_OK && p.theirs && diff_excuse(&p, DIFF_WE_REJECT);
}

bool oracle_compare(struct oracle *o, const uint8_t code[16], enum cpu_bits bits, bool *row_seen,
                    char *msg, size_t len)
{
    struct pair p = {.code = code, .bits = bits};

    decode_both(o, &p);
    if (p.theirs) {
        /* The operands of string instructions are hidden ones. */
        unsigned n = p.ours == INSN_OK && string_insn(&p.i) ? p.i.nops : p.z.operand_count_visible;
        for (unsigned k = 0; k < n && p.nvis <= INSN_MAX_OPS; k++)
            if (p.zop[k].encoding != ZYDIS_OPERAND_ENCODING_MASK)
                p.vis[p.nvis++] = p.zop[k];
    }
    if (p.ours != INSN_OK) {
        o->rejected++;
        return !p.theirs ||
               report(&p, DIFF_WE_REJECT, msg, len, "Zydis accepts, we say %d", p.ours);
    }
    o->accepted++;
    row_seen[p.i.row - insn_table] = true;
    if (!p.theirs)
        return report(&p, DIFF_WE_ACCEPT, msg, len, "Zydis rejects, we say %s", p.i.row->mnemonic);
    return compare_accepted(&p, msg, len);
}
