/* Instructions that are the same on the host: re-encoded with the registers and the memory operand of
 * the translation (recode.h). */
#include "engine/bt/tr.h"

uint16_t copy_writes(const struct insn *i)
{
    switch (i->id) {
    case INSN_MUL: case INSN_DIV: case INSN_IDIV: case INSN_CMPXCHG8B: case INSN_CMPXCHG16B:
        return BIT(RAX) | BIT(RDX);
    case INSN_IMUL:
        return i->nops == 1 ? BIT(RAX) | BIT(RDX) : 0;
    case INSN_CMPXCHG: case INSN_CBW: case INSN_LAHF:
        return BIT(RAX);
    case INSN_CWD:
        return BIT(RDX);
    case INSN_PCMPESTRI: case INSN_PCMPISTRI: case INSN_VPCMPESTRI: case INSN_VPCMPISTRI:
        return BIT(RCX);
    default:
        return 0;
    }
}

/* RCX is scratch here: does the instruction use it without naming it? */
static bool implicit_rcx(const struct insn *i)
{
    switch (i->id) {
    case INSN_CMPXCHG8B: case INSN_CMPXCHG16B:
        return true;
    case INSN_PCMPESTRI: case INSN_PCMPISTRI: case INSN_VPCMPESTRI: case INSN_VPCMPISTRI:
        return true;
    case INSN_SHL: case INSN_SHR: case INSN_SAR: case INSN_ROL: case INSN_ROR: case INSN_RCL:
    case INSN_RCR: case INSN_SHLD: case INSN_SHRD:
        return i->op[i->nops - 1].kind == OP_REG;
    default:
        return false;
    }
}

static bool high_operand(const struct insn *i)
{
    for (unsigned k = 0; k < i->nops; k++)
        if (i->op[k].kind == OP_REG && i->op[k].cls == RC_GPRH)
            return true;
    return false;
}

/* The operands of an instruction that is copied, and where they are meanwhile. */
struct binding {
    struct recode_map map;
    uint8_t guest[3], tmp[3]; /* operands without a home, and their registers */
    bool load[3];             /* their old value matters */
    unsigned n;
    bool rcx;  /* guest RCX is needed in RCX */
    int high;  /* one of AH to BH that has to be had by turning its register, or -1 */
};

/* mem: what the address takes up, or NULL. False if there are not enough registers. */
static bool bind(const struct tr *t, const struct insn *i, const struct recode_mem *mem, struct binding *b)
{
    uint8_t room[3];
    unsigned nroom = 0;

    memcpy(b->map.gpr, t->home, sizeof(b->map.gpr));
    memset(b->map.high, REG_NONE, sizeof(b->map.high));
    b->n = 0;
    b->high = -1;
    b->rcx = implicit_rcx(i);
    if (b->rcx)
        b->map.gpr[RCX] = RCX;
    else
        room[nroom++] = BT_T1;
    if (!mem || mem->base != BT_T0)
        room[nroom++] = BT_T0;
    if (!mem || (mem->index != BT_T2 && mem->base != BT_T2))
        room[nroom++] = BT_T2;
    for (unsigned k = 0; k < i->nops; k++) {
        const struct opnd *o = &i->op[k];

        bool old = o->read || o->size < 4 || i->id == INSN_BSF || i->id == INSN_BSR;
        unsigned n = 0;

        if (o->kind != OP_REG || o->cls != RC_GPR || t->home[o->reg] != BT_SPILLED)
            continue;
        while (n < b->n && b->guest[n] != o->reg)
            n++;
        if (n == nroom)
            return false;
        if (n == b->n) {
            b->n++;
            b->guest[n] = o->reg;
            b->tmp[n] = room[n];
            b->load[n] = false;
            b->map.gpr[o->reg] = room[n];
        }
        /* BSF and BSR may leave theirs as it is. */
        b->load[n] |= old;
    }
    /* The rest is not named. */
    for (unsigned r = 0; r < 16; r++)
        if (b->map.gpr[r] == BT_SPILLED)
            b->map.gpr[r] = BT_T0;
    return true;
}

/* Re-encodes i. AH to BH cannot be named beside R8 to R15, and CH has no home at all: then their
 * register is turned for the moment. Returns the length, 0 if it cannot be done. */
static unsigned encode(const struct tr *t, const struct insn *i, const struct recode_mem *mem, struct binding *b,
                       uint8_t out[RECODE_MAX])
{
    int high = -1;
    unsigned low = 0, n;
    bool ch = false;

    for (unsigned k = 0; k < i->nops; k++) {
        const struct opnd *o = &i->op[k];

        if (o->kind == OP_REG && o->cls == RC_GPRH) {
            if (high >= 0 && high != o->reg)
                low = 0xffff; /* two of them */
            high = o->reg;
            ch |= high == RCX;
        } else if (o->kind == OP_REG && o->cls == RC_GPR) {
            low |= 1u << o->reg;
        }
    }
    if (!ch) {
        n = recode(out, i, &b->map, mem);
        if (n || high < 0)
            return n;
    }
    if ((low >> high & 1) || (high == RAX && i->id == INSN_CMPXCHG) || copy_writes(i) ||
        (high == RCX && b->rcx))
        return 0;
    b->high = high;
    b->map.high[high] = t->home[high];
    return recode(out, i, &b->map, mem);
}

/* Can it be copied? Tries the worst case of what copy() will do. */
bool copy_can(const struct tr *t, const struct insn *i)
{
    static const struct recode_mem at = {.base = BT_T0, .index = REG_NONE};
    const struct opnd *m = tr_mem_operand(i);
    struct binding b;
    uint8_t out[RECODE_MAX];

    if (m && (!m->size || m->size > 64 || i->mem.vsib || i->addrsize < 4))
        return false;
    return bind(t, i, m ? &at : NULL, &b) && encode(t, i, m ? &at : NULL, &b, out);
}

/* The instruction reads or writes its register or memory operand as it is, whichever it is. */
static bool either_form(const struct insn *i)
{
    switch (i->id) {
    case INSN_ADD: case INSN_OR: case INSN_ADC: case INSN_SBB: case INSN_AND: case INSN_SUB: case INSN_XOR:
    case INSN_CMP: case INSN_TEST: case INSN_MOV: case INSN_MOVZX: case INSN_MOVSX: case INSN_MOVSXD:
    case INSN_IMUL: case INSN_NOT: case INSN_NEG: case INSN_INC: case INSN_DEC: case INSN_CMOVCC:
    case INSN_POPCNT: case INSN_TZCNT: case INSN_LZCNT:
        return i->has_modrm && i->modrm >= 0xc0;
    case INSN_SHL: case INSN_SHR: case INSN_SAR: case INSN_ROL: case INSN_ROR:
        return i->modrm >= 0xc0 && !implicit_rcx(i);
    default:
        return false;
    }
}

/* MOV, TEST and arithmetic of two registers have a form with each of them in ModRM.rm. */
static bool turn(struct insn *i)
{
    if (i->id == INSN_MOV ? (i->opcode & 0xfc) == 0x88 && !i->map : i->id == INSN_TEST ? false : i->opcode < 0x40 && !i->map)
        i->opcode ^= 2;
    else if (i->id != INSN_TEST || (i->opcode & 0xfe) != 0x84)
        return false;
    i->slot[0] = i->slot[0] == SLOT_RM ? SLOT_REG : SLOT_RM;
    i->slot[1] = i->slot[1] == SLOT_RM ? SLOT_REG : SLOT_RM;
    return true;
}

/* The form of an instruction without memory operand that has its one operand without a home where struct cpu has it.
 * Returns the length, 0 if there is none. Results of 32 bits would have to be extended, and shorter ones hold up the
 * loads that follow. */
static unsigned encode_spilled(const struct tr *t, const struct insn *i, uint8_t out[RECODE_MAX])
{
    struct recode_map map;
    struct insn new = *i;
    unsigned at = INSN_MAX_OPS;

    if (!either_form(i))
        return 0;
    for (unsigned k = 0; k < i->nops; k++) {
        const struct opnd *o = &i->op[k];

        if (o->kind != OP_REG)
            continue;
        if (o->cls != RC_GPR || (t->home[o->reg] == BT_SPILLED && at != INSN_MAX_OPS))
            return 0;
        if (t->home[o->reg] == BT_SPILLED)
            at = k;
    }
    if (at == INSN_MAX_OPS || (i->op[at].write && i->op[at].size != 8) || (i->slot[at] != SLOT_RM && !turn(&new)))
        return 0;
    memcpy(map.gpr, t->home, sizeof(map.gpr));
    memset(map.high, REG_NONE, sizeof(map.high));
    for (unsigned r = 0; r < 16; r++)
        if (map.gpr[r] == BT_SPILLED)
            map.gpr[r] = BT_T0; /* not named */
    new.modrm &= 0x3f;
    new.op[at].kind = OP_MEM;
    return recode(out, &new, &map,
                  &(struct recode_mem){.base = EMIT_CPU, .index = REG_NONE, .disp = BT_OFF_GPR(i->op[at].reg)});
}

bool copy_faults(const struct insn *i)
{
    return i->id == INSN_DIV || i->id == INSN_IDIV || i->id == INSN_CMPXCHG16B ||
           (i->row->flags & (IF_SSE | IF_AVX | IF_AVX512)) || (i->prefix & PFX_LOCK) ||
           i->id == INSN_XCHG;
}

/* The host code from `begin` to here may fault: then the interpreter does the step. */
static void host_fault(struct tr *t, uint32_t begin, const struct cold *like)
{
    uint32_t n = atomic_load_explicit(&t->bt->nfault, memory_order_relaxed);
    struct cold *c = tr_cold(t, COLD_INTERP, 0, tr_site(t, BT_SITE_PLAIN, 0));

    c->fl = like->fl;
    c->recipe = like->recipe;
    /* `cold` is filled in with the cold code. */
    t->bt->fault[n] = (struct bt_fault){.begin = begin, .end = emit_pos(t->e)};
    c->from = n;
    atomic_store_explicit(&t->bt->nfault, n + 1, memory_order_release);
}

void copy_translate(struct tr *t)
{
    struct step *s = t->s;
    const struct insn *i = &s->i;
    struct recode_mem m;
    const struct recode_mem *mem = s->mem.used ? &m : NULL;
    struct binding b;
    struct cold before;
    uint8_t out[RECODE_MAX];
    unsigned len;
    uint32_t begin;

    if (fl_step(t))
        return;
    if (mem)
        access_translate(t, &s->mem, false, &m);
    if (mem && m.index == BT_T2 && (!bind(t, i, mem, &b) || high_operand(i))) {
        emit_lea(t->e, 1, BT_T0, m.base, m.index, 0, m.disp);
        m = (struct recode_mem){.base = BT_T0, .index = REG_NONE};
    }
    if (mem && fl_keeps(t)) {
        fl_operand(t, &m);
        return;
    }
    if (s->fl_read || (s->fl_some && (s->fl_write & (uint16_t)FL_STATUS) != (uint16_t)FL_STATUS && s->need_after))
        fl_to_host(t);
    before = (struct cold){.fl = t->fl, .recipe = t->recipe};
    fl_regs_change(t, s->writes);
    len = mem ? 0 : encode_spilled(t, i, out);
    if (len) {
        emit_bytes(t->e, out, len);
        fl_written(t);
        return;
    }
    bind(t, i, mem, &b);
    len = encode(t, i, mem, &b, out);
    if (b.rcx)
        emit_mov_rr(t->e, RCX, t->home[RCX]);
    for (unsigned k = 0; k < b.n; k++) {
        if (b.load[k])
            emit_load_cpu(t->e, b.tmp[k], BT_OFF_GPR(b.guest[k]));
        if (b.tmp[k] == BT_T2)
            t->in_t2 = GROUP_NONE;
    }
    if (b.high >= 0)
        emit_rorx(t->e, t->home[b.high], t->home[b.high], 8);
    begin = emit_pos(t->e);
    emit_bytes(t->e, out, len);
    if (copy_faults(i))
        host_fault(t, begin, &before);
    if (b.high >= 0)
        emit_rorx(t->e, t->home[b.high], t->home[b.high], 56);
    if (b.rcx && (s->writes & BIT(RCX)))
        emit_mov_rr(t->e, t->home[RCX], RCX);
    for (unsigned k = 0; k < b.n; k++)
        if (s->writes & BIT(b.guest[k]))
            emit_store_cpu(t->e, BT_OFF_GPR(b.guest[k]), b.tmp[k]);
    fl_written(t);
}

