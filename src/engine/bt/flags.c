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

static void emit_park(struct emit *e)
{
    emit_mov_rr(e, BT_T1, RAX);
    emit8(e, 0x9f);                                        /* lahf */
    emit_bytes(e, (const uint8_t[]){0x0f, 0x90, 0xc0}, 3); /* seto al */
    emit_store_cpu16(e, BT_OFF(cc), RAX);
    emit_mov_rr(e, RAX, BT_T1);
}

static void emit_unpark(struct emit *e)
{
    emit_mov_rr(e, BT_T1, RAX);
    emit_movzx_cpu(e, 2, RAX, BT_OFF(cc));
    emit_bytes(e, (const uint8_t[]){0x04, 0x7f}, 2); /* add al, 0x7f: OF */
    emit8(e, 0x9e);                                  /* sahf */
    emit_mov_rr(e, RAX, BT_T1);
}

/* op dst, src of any size */
static void alu_sized(struct emit *e, enum emit_alu op, unsigned size, unsigned dst, unsigned src)
{
    if (size == 2)
        emit8(e, 0x66);
    if (size == 1) {
        emit8(e, 0x40 | (src >> 3) << 2 | dst >> 3);
        emit8(e, op << 3);
        emit8(e, 0xc0 | (src & 7) << 3 | (dst & 7));
        return;
    }
    emit_alu_rr(e, op, size == 8, dst, src);
}

static void alu_sized_imm(struct emit *e, enum emit_alu op, unsigned size, unsigned dst, int32_t imm)
{
    bool small = imm == (int8_t)imm;

    if (size == 2)
        emit8(e, 0x66);
    emit8(e, 0x40 | (size == 8) << 3 | dst >> 3);
    emit8(e, size == 1 ? 0x80 : small ? 0x83 : 0x81);
    emit8(e, 0xc0 | op << 3 | (dst & 7));
    if (size == 1 || small) {
        emit8(e, (uint8_t)imm);
    } else if (size == 2) {
        emit8(e, (uint8_t)imm);
        emit8(e, (uint8_t)(imm >> 8));
    } else {
        emit32(e, (uint32_t)imm);
    }
}

static void alu_operand(struct emit *e, enum emit_alu op, unsigned size, unsigned reg, bool to_reg,
                        int32_t imm, bool kept);

static void cook(struct emit *e, const uint8_t home[16], const struct recipe *r)
{
    unsigned d;

    switch (r->kind) {
    case RC_NOTHING:
        return;
    case RC_AGAIN:
        emit_bytes(e, r->again, r->n);
        return;
    case RC_LOGIC: /* test dst, dst */
        d = home[r->dst];
        if (r->size == 2)
            emit8(e, 0x66);
        emit8(e, 0x40 | (r->size == 8) << 3 | (d >> 3) << 2 | d >> 3);
        emit8(e, r->size == 1 ? 0x84 : 0x85);
        emit8(e, 0xc0 | (d & 7) << 3 | (d & 7));
        return;
    case RC_NEG: /* of the negated */
        emit_mov_rr(e, BT_T1, home[r->dst]);
        for (unsigned k = 0; k < 2; k++) {
            if (r->size == 2)
                emit8(e, 0x66);
            emit8(e, 0x40 | (r->size == 8) << 3 | BT_T1 >> 3);
            emit8(e, r->size == 1 ? 0xf6 : 0xf7);
            emit8(e, 0xd8 | (BT_T1 & 7));
        }
        return;
    case RC_ADD_KEPT:
    case RC_SUB_KEPT:
        emit_mov_rr(e, BT_T1, home[r->dst]);
        for (unsigned k = 0; k < 2; k++) {
            enum emit_alu op = (r->kind == RC_ADD_KEPT) == (k == 1) ? ALU_ADD : ALU_SUB;

            alu_operand(e, op, r->size, BT_T1, true, 0, true);
        }
        return;
    case RC_INC:
    case RC_DEC:
        if (r->n)
            emit_bytes(e, r->again, r->n);
        else
            emit_unpark(e);
        emit_lea(e, r->size == 8, BT_T1, home[r->dst], REG_NONE, 0, r->kind == RC_INC ? -1 : 1);
        emit_rex(e, r->size == 8, 0, 0, BT_T1);
        emit8(e, 0xff);
        emit8(e, 0xc0 | (r->kind == RC_DEC) << 3 | (BT_T1 & 7));
        return;
    case RC_ADD:
    case RC_SUB:
        /* Undo it in a scratch register, then do it again. */
        emit_mov_rr(e, BT_T1, home[r->dst]);
        for (unsigned k = 0; k < 2; k++) {
            enum emit_alu op = (r->kind == RC_ADD) == (k == 1) ? ALU_ADD : ALU_SUB;

            if (r->src == REG_NONE)
                alu_sized_imm(e, op, r->size, BT_T1, r->imm);
            else
                alu_sized(e, op, r->size, BT_T1, home[r->src]);
        }
        return;
    }
}

void fl_cook(struct tr *t, const struct recipe *r) { cook(t->e, t->home, r); }

bool fl_same(const struct recipe *a, const struct recipe *b)
{
    return a->kind == b->kind && a->size == b->size && a->dst == b->dst && a->src == b->src && a->imm == b->imm &&
           a->regs == b->regs && a->base == b->base && a->n == b->n && !memcmp(a->again, b->again, a->n);
}

void fl_release(struct tr *t)
{
    if (t->fl != FL_HOST)
        return;
    if (!t->s->need) {
        t->fl = FL_NONE;
    } else if (t->recipe.kind != RC_NOTHING) {
        t->fl = FL_RECIPE;
    } else {
        emit_park(t->e);
        t->fl = FL_CC;
    }
}

void fl_to_host(struct tr *t)
{
    if (t->fl == FL_CC)
        emit_unpark(t->e);
    else if (t->fl == FL_RECIPE)
        fl_cook(t, &t->recipe);
    t->fl = FL_HOST;
}

enum bt_flags fl_settle(struct tr *t)
{
    if (t->fl != FL_CC)
        fl_to_host(t);
    return t->fl == FL_CC ? BT_CC : BT_HOST;
}

static bool counts(const struct recipe *r) { return r->kind == RC_INC || r->kind == RC_DEC; }

/* Is the next thing to happen to the flags that an access destroys them, or the block's end? */
static bool parted(const struct tr *t)
{
    for (const struct step *n = t->s + 1; n < t->step + t->n; n++) {
        if (n->mem.used || n->stack.used || n->how == HOW_JMP)
            return true;
        if (n->how != HOW_COPY && n->how != HOW_LEA && n->how != HOW_NOP)
            return false;
        if (n->fl_read || (n->fl_some && n->i.id != INSN_INC && n->i.id != INSN_DEC))
            return false;
    }
    return true;
}

/* The recipe for what INC and DEC keep of the flags: a part of their own. False: there is none. */
static bool base_of(struct tr *t, unsigned reg, struct recipe *r)
{
    const struct recipe *old = &t->recipe;
    struct emit e = {.start = r->again, .p = r->again};

    if (t->fl == FL_CC)
        return true;
    if (old->kind == RC_NOTHING || (t->fl != FL_RECIPE && t->fl != FL_HOST))
        return false;
    if (counts(old)) {
        if (t->fl == FL_HOST || (old->base >> reg & 1))
            return false;
        r->n = old->n;
        r->base = old->base;
        memcpy(r->again, old->again, old->n);
        return true;
    }
    if ((old->regs >> reg & 1) || !parted(t))
        return false;
    cook(&e, t->home, old);
    r->n = (uint8_t)emit_pos(&e);
    r->base = old->regs;
    return true;
}

bool fl_step(struct tr *t)
{
    const struct insn *i = &t->s->i;
    const struct opnd *o = &i->op[0];
    bool inc = i->id == INSN_INC;
    struct recipe r = {.kind = inc ? RC_INC : RC_DEC, .size = o->size, .dst = o->reg};

    if ((!inc && i->id != INSN_DEC) || o->kind != OP_REG || o->size < 4 ||
        t->home[o->reg] == BT_SPILLED || !t->s->need_after || !base_of(t, o->reg, &r))
        return false;
    emit_lea(t->e, o->size == 8, t->home[o->reg], t->home[o->reg], REG_NONE, 0, inc ? 1 : -1);
    r.regs = r.base | (uint16_t)BIT(o->reg);
    t->recipe = r;
    t->fl = FL_RECIPE;
    return true;
}

void fl_regs_change(struct tr *t, uint16_t regs)
{
    if (!(t->recipe.regs & regs) || t->recipe.kind == RC_NOTHING)
        return;
    if (t->fl == FL_RECIPE) {
        /* Not when the step makes flags of its own that nobody distinguishes from these. */
        bool keep = t->s->need_after && (t->s->fl_write & STATUS) != STATUS;

        if (keep)
            fl_to_host(t);
        else
            t->fl = FL_NONE;
    }
    t->recipe.kind = RC_NOTHING;
}

static bool pinned(const struct tr *t, const struct opnd *o)
{
    return o->kind == OP_REG && o->cls == RC_GPR && t->home[o->reg] != BT_SPILLED;
}

static void set_recipe(struct tr *t, const uint8_t *host, unsigned n)
{
    const struct insn *i = &t->s->i;
    struct recipe *r = &t->recipe;
    bool imm = i->op[1].kind == OP_IMM && (int64_t)i->imm == (int32_t)i->imm;

    *r = (struct recipe){.kind = RC_NOTHING};
    if (!pinned(t, &i->op[0]))
        return;
    r->size = i->op[0].size;
    r->dst = i->op[0].reg;
    r->src = REG_NONE;
    r->regs = (uint16_t)BIT(r->dst);
    if (pinned(t, &i->op[1]) && i->op[1].reg != r->dst) {
        r->src = i->op[1].reg;
        r->regs |= (uint16_t)BIT(r->src);
    }
    r->imm = (int32_t)i->imm;
    switch (i->id) {
    case INSN_CMP:
    case INSN_TEST:
        if (!host || !(i->op[1].kind == OP_IMM || pinned(t, &i->op[1])))
            return;
        memcpy(r->again, host, n);
        r->n = (uint8_t)n;
        r->kind = RC_AGAIN;
        return;
    case INSN_AND:
    case INSN_OR:
    case INSN_XOR:
        r->regs = (uint16_t)BIT(r->dst);
        r->kind = RC_LOGIC;
        return;
    case INSN_ADD:
        if (imm || r->src != REG_NONE)
            r->kind = RC_ADD;
        return;
    case INSN_SUB:
        if (imm || r->src != REG_NONE)
            r->kind = RC_SUB;
        return;
    case INSN_NEG:
        r->kind = RC_NEG;
        return;
    default:
        return;
    }
}

/* ---- operands of memory ---- */

static int alu_of(const struct insn *i)
{
    switch (i->id) {
    case INSN_ADD:
        return ALU_ADD;
    case INSN_SUB:
        return ALU_SUB;
    case INSN_CMP:
        return ALU_CMP;
    default:
        return -1;
    }
}

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
        if (n->how <= HOW_HELP || n->how > HOW_JMP || (n->fl_some && n->how != HOW_JCC))
            return false;
    }
    /* A link takes the recipe along. */
    return true;
}

/* op between a register, or an immediate if reg is REG_NONE, and r/m: T1, or bt.operand. to_reg: the register
 * is the destination. */
static void alu_operand(struct emit *e, enum emit_alu op, unsigned size, unsigned reg, bool to_reg,
                        int32_t imm, bool kept)
{
    bool small = imm == (int8_t)imm, with_imm = reg == REG_NONE;
    unsigned field = with_imm ? (unsigned)op : reg & 7;

    if (size == 2)
        emit8(e, 0x66);
    emit8(e, 0x40 | (size == 8) << 3 | (with_imm ? 0 : reg >> 3) << 2 | (kept ? EMIT_CPU : BT_T1) >> 3);
    if (with_imm)
        emit8(e, size == 1 ? 0x80 : small ? 0x83 : 0x81);
    else
        emit8(e, (unsigned)op << 3 | to_reg << 1 | (size > 1));
    if (kept) {
        emit_mem(e, field, EMIT_CPU, REG_NONE, 0, BT_OFF(bt.operand));
    } else {
        emit8(e, 0xc0 | field << 3 | (BT_T1 & 7));
    }
    if (!with_imm)
        return;
    if (size == 1 || small) {
        emit8(e, (uint8_t)imm);
    } else if (size == 2) {
        emit8(e, (uint8_t)imm);
        emit8(e, (uint8_t)(imm >> 8));
    } else {
        emit32(e, (uint32_t)imm);
    }
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
    const enum emit_alu op = (enum emit_alu)alu_of(i);
    bool to_reg = i->op[0].kind == OP_REG;
    const struct opnd *other = &i->op[to_reg ? 0 : 1];
    unsigned size = i->op[0].size, reg = other->kind == OP_REG ? t->home[other->reg] : REG_NONE;
    struct recipe *r = &t->recipe;

    load_operand(t->e, size, m);
    emit_store_cpu(t->e, BT_OFF(bt.operand), BT_T1);
    fl_regs_change(t, t->s->writes);
    alu_operand(t->e, op, size, reg, to_reg, (int32_t)i->imm, false);
    *r = (struct recipe){.size = (uint8_t)size,
                         .dst = other->reg,
                         .src = REG_NONE,
                         .regs = other->kind == OP_REG ? (uint16_t)BIT(other->reg) : 0};
    t->fl = FL_HOST;
    if (op == ALU_CMP) {
        struct emit e = {.start = r->again, .p = r->again};

        alu_operand(&e, op, size, reg, to_reg, (int32_t)i->imm, true);
        r->n = (uint8_t)(e.p - r->again);
        r->kind = RC_AGAIN;
    } else {
        r->kind = op == ALU_ADD ? RC_ADD_KEPT : RC_SUB_KEPT;
    }
}

void fl_written(struct tr *t, const uint8_t *host, unsigned n)
{
    if (!t->s->fl_some)
        return;
    t->recipe.kind = RC_NOTHING;
    if ((t->s->fl_write & STATUS) == STATUS)
        set_recipe(t, host, n);
    t->fl = t->s->need_after ? FL_HOST : FL_NONE;
}
