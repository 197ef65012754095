/* What the translator makes of an instruction, and what the instruction touches. */
#include "engine/bt/tr.h"

#define STATUS ((uint16_t)FL_STATUS)

/* General instructions that are the same on the host once their operands are replaced. */
static bool copied(const struct insn *i)
{
    switch (i->id) {
    case INSN_ADD: case INSN_OR: case INSN_ADC: case INSN_SBB: case INSN_AND: case INSN_SUB:
    case INSN_XOR: case INSN_CMP: case INSN_TEST: case INSN_NOT: case INSN_NEG: case INSN_MUL:
    case INSN_IMUL: case INSN_DIV: case INSN_IDIV: case INSN_INC: case INSN_DEC: case INSN_MOV:
    case INSN_MOVZX: case INSN_MOVSX: case INSN_MOVSXD: case INSN_XCHG: case INSN_XADD:
    case INSN_CMPXCHG: case INSN_CMPXCHG8B: case INSN_CMPXCHG16B: case INSN_BSWAP:
    case INSN_CMOVCC: case INSN_SETCC: case INSN_BSF: case INSN_BSR: case INSN_TZCNT:
    case INSN_LZCNT: case INSN_POPCNT: case INSN_ROL: case INSN_ROR: case INSN_RCL: case INSN_RCR:
    case INSN_SHL: case INSN_SHR: case INSN_SAR: case INSN_SHLD: case INSN_SHRD: case INSN_CBW:
    case INSN_CWD: case INSN_CMC: case INSN_CLC: case INSN_STC: case INSN_LAHF: case INSN_SAHF:
    case INSN_MOVBE: case INSN_ANDN: case INSN_BEXTR: case INSN_BLSI: case INSN_BLSR:
    case INSN_BLSMSK: case INSN_BZHI: case INSN_MULX: case INSN_PDEP: case INSN_PEXT:
    case INSN_RORX: case INSN_SARX: case INSN_SHLX: case INSN_SHRX: case INSN_ADCX: case INSN_ADOX:
    case INSN_CRC32: case INSN_MOVNTI: case INSN_MFENCE: case INSN_LFENCE: case INSN_SFENCE:
        return true;
    case INSN_BT: case INSN_BTS: case INSN_BTR: case INSN_BTC:
        /* A bit number in a register reaches beyond the operand in memory. */
        return i->op[0].kind == OP_REG || i->op[1].kind == OP_IMM;
    default:
        return false;
    }
}

enum bt_level tr_level_of(const struct insn *i)
{
    if (i->row->flags & IF_AVX512)
        return BT_LEVEL_AVX512;
    if (i->row->flags & IF_AVX)
        return BT_LEVEL_AVX;
    return i->row->flags & IF_SSE ? BT_LEVEL_SSE : BT_LEVEL_NONE;
}

const struct opnd *tr_mem_operand(const struct insn *i)
{
    for (unsigned k = 0; k < i->nops; k++)
        if (i->op[k].kind == OP_MEM)
            return &i->op[k];
    return NULL;
}

static void flag_effects(struct step *s)
{
    const struct insn *i = &s->i;
    uint16_t w = i->row->fl_write & STATUS, r = i->row->fl_read & STATUS;

    s->fl_some = w;
    switch (i->id) {
    case INSN_SHL: case INSN_SHR: case INSN_SAR: case INSN_SHLD: case INSN_SHRD: case INSN_ROL:
    case INSN_ROR: {
        const struct opnd *o = &i->op[i->nops - 1];

        /* By CL, or by an immediate 0, it may leave them as they are. */
        s->fl_read = false;
        if (o->kind != OP_IMM)
            w = 0;
        else if (!(i->imm & (i->op[0].size == 8 ? 63 : 31)))
            w = 0, s->fl_some = false;
        s->fl_write = w;
        return;
    }
    default:
        s->fl_read = r;
        s->fl_write = w;
    }
}

static void stack_access(struct step *s, bool write, int disp)
{
    s->stack = (struct use){.used = true, .read = !write, .write = write, .size = 8, .disp = disp};
    s->writes |= BIT(RSP);
}

static void mem_access(struct step *s)
{
    const struct opnd *m = tr_mem_operand(&s->i);

    if (m)
        s->mem = (struct use){.used = true,
                                 .read = m->read,
                                 .write = m->write,
                                 .size = m->size,
                                 .disp = (int32_t)s->i.mem.disp};
}

static bt_helper *helper_of(const struct insn *i)
{
    switch (i->id) {
    case INSN_MOVS:
        return i->addrsize == 8 && i->mem.seg < FS ? bt_help_movs : NULL;
    case INSN_STOS:
        return i->addrsize == 8 ? bt_help_stos : NULL;
    case INSN_CLI:
        return bt_help_cli;
    case INSN_STI:
        return bt_help_sti;
    case INSN_STAC:
        return bt_help_stac;
    case INSN_CLAC:
        return bt_help_clac;
    case INSN_PUSHF:
        return i->opsize == 8 ? bt_help_pushf : NULL;
    case INSN_POPF:
        return i->opsize == 8 ? bt_help_popf : NULL;
    case INSN_SWAPGS:
        return bt_help_swapgs;
    case INSN_CLD:
        return bt_help_cld;
    case INSN_RDTSC:
        return bt_help_rdtsc;
    case INSN_RDTSCP:
        return bt_help_rdtscp;
    case INSN_BT: case INSN_BTS: case INSN_BTR: case INSN_BTC:
        return i->op[0].kind == OP_MEM && i->op[1].kind == OP_REG && i->addrsize == 8 ? bt_help_bits : NULL;
    case INSN_MOV_SREG:
        return i->op[0].cls != RC_SREG && i->addrsize == 8 ? bt_help_read_sreg : NULL;
    default:
        return NULL;
    }
}

void tr_classify(struct tr *t, struct step *s)
{
    const struct insn *i = &s->i;
    const struct opnd *o = &i->op[0];
    bool mem = tr_mem_operand(i);

    s->how = HOW_INTERP;
    s->writes = copy_writes(i);
    s->mem.used = s->stack.used = false;
    flag_effects(s);
    for (unsigned k = 0; k < i->nops; k++)
        if (i->op[k].kind == OP_REG && (i->op[k].cls == RC_GPR || i->op[k].cls == RC_GPRH) &&
            i->op[k].write)
            s->writes |= (uint16_t)BIT(i->op[k].reg);
    if (!insn_supported(i, t->c->vm->cpuid))
        return;
    switch (i->id) {
    case INSN_NOP:
    case INSN_ENDBR:
        s->how = HOW_NOP;
        return;
    case INSN_LEA:
        if (i->addrsize >= 4 && i->mem.disp == (int32_t)i->mem.disp)
            s->how = HOW_LEA;
        return;
    case INSN_PUSH:
        if (i->opsize != 8 || (o->kind == OP_IMM && (int64_t)i->imm != (int32_t)i->imm))
            return;
        s->how = HOW_PUSH;
        mem_access(s);
        stack_access(s, true, -8);
        return;
    case INSN_POP:
        if (i->opsize != 8 || o->kind != OP_REG)
            return;
        s->how = HOW_POP;
        stack_access(s, false, 0);
        return;
    case INSN_LEAVE:
        if (i->opsize != 8)
            return;
        s->how = HOW_LEAVE;
        stack_access(s, false, 0);
        s->writes |= BIT(RBP);
        return;
    case INSN_JCC:
        s->how = i->opsize == 8 ? HOW_JCC : HOW_INTERP;
        return;
    case INSN_JMP:
        s->how = i->opsize == 8 ? HOW_JMP : HOW_INTERP;
        return;
    case INSN_CALL:
        if (i->opsize != 8)
            return;
        s->how = HOW_CALL;
        stack_access(s, true, -8);
        return;
    case INSN_JMP_IND:
        if (i->opsize != 8)
            return;
        s->how = HOW_JMP_IND;
        mem_access(s);
        return;
    case INSN_CALL_IND:
        if (i->opsize != 8)
            return;
        s->how = HOW_CALL_IND;
        mem_access(s);
        stack_access(s, true, -8);
        return;
    case INSN_RET:
        if (i->opsize != 8)
            return;
        s->how = HOW_RET;
        stack_access(s, false, 0);
        return;
    default:
        break;
    }
    s->help = helper_of(i);
    if (s->help) {
        s->how = HOW_HELP;
        return;
    }
    if (i->row->flags & (IF_PRIV | IF_BRANCH | IF_SYS | IF_X87 | IF_MMX | IF_REP))
        return;
    if (!copied(i) && tr_level_of(i) == BT_LEVEL_NONE)
        return;
    if (!copy_can(t, i))
        return;
    s->how = HOW_COPY;
    if (mem)
        mem_access(s);
}

