/*
 * The guest's status flags are in EFLAGS from the instruction that makes them to those that read
 * them, but address translations in between destroy EFLAGS. So: flags that cannot be seen any more
 * are given up; those that registers can make again (a recipe) are made again when they are needed,
 * or in the cold path of a fault; the rest is put into cpu.cc, once, where it stays, over the ends
 * of blocks too, until other flags take its place. Recipes go along with links, to versions of
 * blocks that begin with them (bt_version).
 */
#include "engine/bt/tr.h"

#define STATUS ((uint16_t)FL_STATUS)

void fl_analyse(struct tr *t)
{
    bool need = true; /* whatever follows the block may look */

    for (unsigned k = t->n; k-- > 0;) {
        struct step *s = &t->step[k];

        s->need_after = need;
        if ((s->fl_write & STATUS) == STATUS)
            need = false;
        if (s->mem.used || s->stack.used || s->fl_read || s->how == HOW_JCC ||
            s->how <= HOW_HELP || s->how >= HOW_JMP)
            need = true;
        /* The host instruction may fault by itself. */
        if (s->how == HOW_COPY && (s->i.id == INSN_DIV || s->i.id == INSN_IDIV ||
                                   (s->i.row->flags & (IF_SSE | IF_AVX | IF_AVX512))))
            need = true;
        s->need = need;
    }
}

void fl_release(struct tr *t)
{
    if (t->fl != FL_HOST)
        return;
    if (!t->s->need) {
        t->fl = FL_NONE;
    } else if (t->recipe.kind == RC_NOTHING) {
        recipe_park(t->e);
        t->fl = FL_CC;
    } else if (t->recipe.kind == RC_CC && !t->recipe.step) {
        t->fl = FL_CC;
    } else {
        t->fl = FL_RECIPE;
    }
}

void fl_to_host(struct tr *t)
{
    if (t->fl == FL_CC) {
        recipe_unpark(t->e);
        t->recipe = (struct recipe){.kind = RC_CC};
    } else if (t->fl == FL_RECIPE) {
        struct recipe r = t->recipe;

        /* By what RSP's home holds: as when it was last what RSP is, so this is feasible. */
        recipe_add(&r, RSP, 8, -t->rsp_due);
        recipe_cook(t->e, t->home, &r);
    }
    t->fl = FL_HOST;
}

enum bt_flags fl_settle(struct tr *t)
{
    if (t->fl != FL_CC)
        fl_to_host(t);
    return t->fl == FL_CC ? BT_CC : BT_HOST;
}

/* Conditions below and above: they and their opposites read CF. */
static bool reads_carry(unsigned cc) { return (cc & 14) == CC_B || (cc & 14) == CC_BE; }

void fl_for_cond(struct tr *t, unsigned cc)
{
    if (t->fl == FL_RECIPE && t->recipe.step && !reads_carry(cc))
        recipe_cook_last(t->e, t->home, &t->recipe);
    else
        fl_to_host(t);
}

/* INC or DEC of a register with a home, that need not compute flags? */
static bool counts(const struct tr *t, const struct step *s)
{
    const struct opnd *o = &s->i.op[0];

    return (s->i.id == INSN_INC || s->i.id == INSN_DEC) && o->kind == OP_REG && o->size >= 4 &&
           t->home[o->reg] != BT_SPILLED;
}

/* What happens next to the flags. */
enum fate {
    FATE_USED,  /* they are read or written, or control leaves */
    FATE_END,   /* the block ends */
    FATE_ACCESS /* an access destroys EFLAGS */
};

static enum fate fate(const struct tr *t)
{
    for (const struct step *n = t->s + 1; n < t->step + t->n; n++) {
        if (n->mem.used || n->stack.used)
            return FATE_ACCESS;
        if (n->how == HOW_JMP)
            return FATE_END;
        if (n->how != HOW_COPY && n->how != HOW_LEA && n->how != HOW_NOP)
            return FATE_USED;
        if (n->fl_read || (n->fl_some && n->i.id != INSN_INC && n->i.id != INSN_DEC))
            return FATE_USED;
    }
    return FATE_END;
}

/* Is the next step that reads or writes flags a Jcc that does not want CF? */
static bool for_jcc(const struct tr *t)
{
    for (const struct step *n = t->s + 1; n < t->step + t->n; n++) {
        if (n->how == HOW_JCC)
            return !reads_carry(n->i.cond);
        if (n->fl_read || n->fl_some || n->how <= HOW_HELP || n->how > HOW_JCC)
            return false;
    }
    return false;
}

/* The recipe for what INC and DEC of `reg` keep of the flags: a part of their own. False: there is none. */
static bool base_of(struct tr *t, unsigned reg, unsigned size, int by, bool apart, struct recipe *r)
{
    *r = t->recipe;
    if (t->fl == FL_CC)
        *r = (struct recipe){.kind = RC_CC};
    else if (t->fl == FL_NONE || r->kind == RC_NOTHING)
        return false;
    r->step = 0;
    if (r->kind == RC_LOGIC || r->kind == RC_TEST)
        *r = (struct recipe){.kind = RC_CLEAR};
    return recipe_add(r, reg, size, by) || (apart && recipe_keep(t->e, t->home, r, reg));
}

bool fl_step(struct tr *t)
{
    const struct step *s = t->s;
    const struct opnd *o = &s->i.op[0];
    int by = s->i.id == INSN_INC ? 1 : -1;
    bool apart = fate(t) != FATE_USED;
    struct recipe r;

    if (!counts(t, s) || !s->need_after || !base_of(t, o->reg, o->size, by, apart, &r))
        return false;
    if (apart || (t->fl != FL_HOST && for_jcc(t))) {
        emit_lea(t->e, o->size == 8, t->home[o->reg], t->home[o->reg], REG_NONE, 0, by);
        t->fl = FL_RECIPE;
    } else {
        fl_to_host(t);
        emit_rex(t->e, o->size == 8, 0, 0, t->home[o->reg]);
        emit8(t->e, 0xff);
        emit8(t->e, 0xc0 | (by < 0) << 3 | (t->home[o->reg] & 7));
    }
    r.step = (int8_t)by;
    r.step_size = o->size;
    r.last = (struct recipe_value){.reg = o->reg};
    t->recipe = r;
    return true;
}

/* Has the step's change of registers no flags to save? */
static bool forgotten(struct tr *t)
{
    if (t->s->need_after && (t->s->fl_write & STATUS) != STATUS)
        return false;
    /* It makes flags of its own that nobody distinguishes from these. */
    if (t->fl == FL_RECIPE)
        t->fl = FL_NONE;
    t->recipe = (struct recipe){.kind = RC_NOTHING};
    return true;
}

void fl_regs_change(struct tr *t, uint16_t regs)
{
    uint16_t hit = recipe_regs(&t->recipe) & regs;

    if (!hit || forgotten(t))
        return;
    if (!t->s->fl_some && !(hit & (hit - 1)) && (t->fl == FL_RECIPE || t->fl == FL_HOST)) {
        enum fate f = fate(t);

        if ((f == FATE_ACCESS || (f == FATE_END && t->fl == FL_RECIPE)) &&
            recipe_keep(t->e, t->home, &t->recipe, (unsigned)__builtin_ctz(hit)))
            return;
    }
    if (t->fl == FL_RECIPE)
        fl_to_host(t);
    t->recipe = (struct recipe){.kind = RC_NOTHING};
}

void fl_reg_adds(struct tr *t, unsigned reg, unsigned size, int by)
{
    if (!(recipe_regs(&t->recipe) >> reg & 1) || forgotten(t))
        return;
    if (!recipe_add(&t->recipe, reg, size, by))
        fl_regs_change(t, (uint16_t)BIT(reg));
}

static bool general(const struct opnd *o) { return o->kind == OP_REG && o->cls == RC_GPR; }

static void set_recipe(struct tr *t)
{
    const struct insn *i = &t->s->i;
    const struct opnd *o = &i->op[0], *p = &i->op[1];
    struct recipe r = {.size = o->size, .dst = {.reg = o->reg}, .src = {.reg = RV_IMM}, .imm = (int32_t)i->imm};
    bool same = general(p) && p->reg == o->reg, src = p->kind == OP_IMM && (int64_t)i->imm == (int32_t)i->imm;

    if (!general(o))
        return;
    if (general(p) && !same) {
        r.src.reg = p->reg;
        src = true;
    }
    switch (i->id) {
    case INSN_CMP:
        r.kind = src ? RC_CMP : RC_NOTHING;
        break;
    case INSN_TEST:
        r.kind = same ? RC_LOGIC : src ? RC_TEST : RC_NOTHING;
        break;
    case INSN_AND:
    case INSN_OR:
    case INSN_XOR:
        r.src.reg = RV_IMM;
        r.kind = RC_LOGIC;
        break;
    case INSN_ADD:
        r.kind = src ? RC_ADD : RC_NOTHING;
        break;
    case INSN_SUB:
        r.kind = src ? RC_SUB : RC_NOTHING;
        break;
    case INSN_NEG:
        r.src.reg = RV_IMM;
        r.kind = RC_NEG;
        break;
    default:
        break;
    }
    if (r.kind != RC_NOTHING)
        t->recipe = r;
}

/* ---- operands of memory ---- */

/* What fl_operand makes of it: enum emit_alu or RECIPE_TEST, or -1. */
static int alu_of(const struct insn *i)
{
    switch (i->id) {
    case INSN_ADD:
        return ALU_ADD;
    case INSN_SUB:
        return ALU_SUB;
    case INSN_CMP:
        return ALU_CMP;
    case INSN_TEST:
        return RECIPE_TEST;
    default:
        return -1;
    }
}

static bool pinned(const struct tr *t, const struct opnd *o) { return general(o) && t->home[o->reg] != BT_SPILLED; }

bool fl_keeps(const struct tr *t)
{
    const struct step *s = t->s;
    const struct insn *i = &s->i;
    const struct opnd *o = &i->op[0], *p = &i->op[1];

    if (!s->need_after || alu_of(i) < 0 || s->mem.write || (i->prefix & PFX_LOCK))
        return false;
    if (!(pinned(t, o) || (o->kind == OP_MEM && (pinned(t, p) || p->kind == OP_IMM))))
        return false;
    if (p->kind == OP_IMM && (int64_t)i->imm != (int32_t)i->imm)
        return false;
    for (const struct step *n = s + 1; n < t->step + t->n; n++) {
        if (n->mem.used || n->stack.used || n->how == HOW_JMP)
            return true;
        if (counts(t, n))
            continue;
        if (n->how <= HOW_HELP || n->how > HOW_JMP || (n->fl_some && n->how != HOW_JCC))
            return false;
    }
    /* A link takes the recipe along. */
    return true;
}

/* movzx T1, [m] by size */
static void load_operand(struct emit *e, unsigned size, const struct recode_mem *m)
{
    unsigned index = m->index == REG_NONE ? 0 : m->index;

    emit_rex(e, size == 8, BT_T1, index, m->base);
    if (size < 4) {
        emit8(e, 0x0f);
        emit8(e, size == 1 ? 0xb6 : 0xb7);
    } else {
        emit8(e, 0x8b);
    }
    emit_mem(e, BT_T1, m->base, m->index, m->scale, m->disp);
}

void fl_operand(struct tr *t, const struct recode_mem *m)
{
    const struct insn *i = &t->s->i;
    const unsigned op = (unsigned)alu_of(i);
    bool to_reg = i->op[0].kind == OP_REG;
    const struct opnd *other = &i->op[to_reg ? 0 : 1];
    const struct recipe_value kept = {.reg = RV_KEPT},
                              named = {.reg = other->kind == OP_REG ? other->reg : RV_IMM};
    unsigned size = i->op[0].size;

    load_operand(t->e, size, m);
    emit_store_cpu(t->e, BT_OFF(bt.operand), BT_T1);
    fl_regs_change(t, t->s->writes);
    if (other->kind != OP_REG)
        recipe_op_ri(t->e, op, size, BT_T1, (int32_t)i->imm);
    else if (to_reg)
        recipe_op_rr(t->e, op, size, t->home[other->reg], BT_T1);
    else
        recipe_op_rr(t->e, op, size, BT_T1, t->home[other->reg]);
    t->recipe = (struct recipe){.kind = op == ALU_ADD ? RC_ADD
                                        : op == ALU_SUB ? RC_SUB
                                        : op == ALU_CMP ? RC_CMP
                                                        : RC_TEST,
                                .size = (uint8_t)size,
                                .dst = to_reg ? named : kept,
                                .src = to_reg ? kept : named,
                                .imm = (int32_t)i->imm};
    t->fl = FL_HOST;
}

void fl_written(struct tr *t)
{
    if (!t->s->fl_some)
        return;
    t->recipe = (struct recipe){.kind = RC_NOTHING};
    if ((t->s->fl_write & STATUS) == STATUS)
        set_recipe(t);
    t->fl = t->s->need_after ? FL_HOST : FL_NONE;
}
