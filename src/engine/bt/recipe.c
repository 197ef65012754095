/*
 * Recipes: how to make flags again from values that are still there. Registers may have been changed by constants
 * since; a value that is about to go can be kept in bt.operand.
 */
#include "engine/bt/tr.h"

void recipe_park(struct emit *e)
{
    emit_mov_rr(e, BT_T1, RAX);
    emit8(e, 0x9f);                                        /* lahf */
    emit_bytes(e, (const uint8_t[]){0x0f, 0x90, 0xc0}, 3); /* seto al */
    emit_store_cpu16(e, BT_OFF(cc), RAX);
    emit_mov_rr(e, RAX, BT_T1);
}

void recipe_unpark(struct emit *e)
{
    emit_mov_rr(e, BT_T1, RAX);
    emit_movzx_cpu(e, 2, RAX, BT_OFF(cc));
    emit_bytes(e, (const uint8_t[]){0x04, 0x7f}, 2); /* add al, 0x7f: OF */
    emit8(e, 0x9e);                                  /* sahf */
    emit_mov_rr(e, RAX, BT_T1);
}

/* ---- operations of any size ---- */

/* A host register, or a field of struct cpu. */
struct place {
    bool mem;
    unsigned reg;
    int32_t off;
};

static void rex(struct emit *e, unsigned size, unsigned reg, const struct place *rm)
{
    unsigned base = rm->mem ? EMIT_CPU : rm->reg;

    if (size == 2)
        emit8(e, 0x66);
    /* With REX, bytes are those of SPL to DIL. */
    if (size == 1)
        emit8(e, 0x40 | (reg >> 3) << 2 | base >> 3);
    else
        emit_rex(e, size == 8, reg, 0, base);
}

static void modrm(struct emit *e, unsigned field, const struct place *rm)
{
    if (rm->mem)
        emit_mem(e, field, EMIT_CPU, REG_NONE, 0, rm->off);
    else
        emit8(e, 0xc0 | (field & 7) << 3 | (rm->reg & 7));
}

/* op rm, reg, or the other way round */
static void op_reg(struct emit *e, unsigned op, unsigned size, const struct place *rm, unsigned reg, bool to_reg)
{
    rex(e, size, reg, rm);
    emit8(e, op == RECIPE_TEST ? 0x84 | (size > 1) : op << 3 | to_reg << 1 | (size > 1));
    modrm(e, reg, rm);
}

static void op_imm(struct emit *e, unsigned op, unsigned size, const struct place *rm, int32_t imm)
{
    bool test = op == RECIPE_TEST, small = size == 1 || (!test && imm == (int8_t)imm);

    rex(e, size, 0, rm);
    if (test)
        emit8(e, size == 1 ? 0xf6 : 0xf7);
    else
        emit8(e, size == 1 ? 0x80 : small ? 0x83 : 0x81);
    modrm(e, test ? 0 : op, rm);
    emit8(e, (uint8_t)imm);
    if (small)
        return;
    emit8(e, (uint8_t)(imm >> 8));
    if (size > 2) {
        emit8(e, (uint8_t)(imm >> 16));
        emit8(e, (uint8_t)(imm >> 24));
    }
}

void recipe_op_rr(struct emit *e, unsigned op, unsigned size, unsigned dst, unsigned src)
{
    op_reg(e, op, size, &(struct place){.reg = dst}, src, false);
}

void recipe_op_ri(struct emit *e, unsigned op, unsigned size, unsigned dst, int32_t imm)
{
    op_imm(e, op, size, &(struct place){.reg = dst}, imm);
}

/* ---- values ---- */

static bool is_reg(const struct recipe_value *v) { return v->reg < 16; }

static bool in_memory(const uint8_t home[16], const struct recipe_value *v)
{
    return v->reg == RV_KEPT || home[v->reg] == BT_SPILLED;
}

static int32_t offset(const struct recipe_value *v)
{
    return v->reg == RV_KEPT ? BT_OFF(bt.operand) : BT_OFF_GPR(v->reg);
}

/* T1 = value + more */
static void load(struct emit *e, const uint8_t home[16], const struct recipe_value *v, int more)
{
    unsigned from = BT_T1;
    int32_t add = v->add + more;

    if (in_memory(home, v))
        emit_load_cpu(e, BT_T1, offset(v));
    else
        from = home[v->reg];
    if (add)
        emit_lea(e, 1, BT_T1, from, REG_NONE, 0, add);
    else if (from != BT_T1)
        emit_mov_rr(e, BT_T1, from);
}

/* Where the value is; in T1 if it must be computed. */
static struct place place_of(struct emit *e, const uint8_t home[16], const struct recipe_value *v)
{
    if (v->add) {
        load(e, home, v, 0);
        return (struct place){.reg = BT_T1};
    }
    if (in_memory(home, v))
        return (struct place){.mem = true, .off = offset(v)};
    return (struct place){.reg = home[v->reg]};
}

/* Has it the values that it needs, with T1 alone to compute them in? */
static bool feasible(const struct recipe *r)
{
    switch (r->kind) {
    case RC_CMP:
    case RC_TEST:
        return r->src.reg == RV_IMM || !r->dst.add || !r->src.add;
    case RC_ADD:
    case RC_SUB:
        return r->src.reg == RV_IMM || !r->src.add;
    default:
        return true;
    }
}

/* ---- making flags ---- */

static void apply(struct emit *e, const uint8_t home[16], const struct recipe *r, unsigned op, struct place dst)
{
    struct place src;

    if (r->src.reg == RV_IMM) {
        op_imm(e, op, r->size, &dst, r->imm);
        return;
    }
    src = place_of(e, home, &r->src);
    if (src.mem && dst.mem) {
        load(e, home, &r->src, 0);
        src = (struct place){.reg = BT_T1};
    }
    if (src.mem)
        op_reg(e, op, r->size, &src, dst.reg, true);
    else
        op_reg(e, op, r->size, &dst, src.reg, false);
}

static void cook_main(struct emit *e, const uint8_t home[16], const struct recipe *r)
{
    struct place p = {.reg = BT_T1};

    switch (r->kind) {
    case RC_NOTHING:
        return;
    case RC_CMP:
    case RC_TEST:
        apply(e, home, r, r->kind == RC_CMP ? (unsigned)ALU_CMP : RECIPE_TEST, place_of(e, home, &r->dst));
        return;
    case RC_ADD:
    case RC_SUB:
        /* Undo it in a scratch register, then do it again. */
        load(e, home, &r->dst, 0);
        apply(e, home, r, r->kind == RC_ADD ? ALU_SUB : ALU_ADD, p);
        apply(e, home, r, r->kind == RC_ADD ? ALU_ADD : ALU_SUB, p);
        return;
    case RC_NEG:
        load(e, home, &r->dst, 0);
        for (unsigned k = 0; k < 2; k++) {
            rex(e, r->size, 0, &p);
            emit8(e, r->size == 1 ? 0xf6 : 0xf7);
            modrm(e, 3, &p);
        }
        return;
    case RC_LOGIC:
        p = place_of(e, home, &r->dst);
        if (p.mem)
            op_imm(e, ALU_CMP, r->size, &p, 0);
        else
            op_reg(e, RECIPE_TEST, r->size, &p, p.reg, false);
        return;
    case RC_CLEAR:
        emit8(e, 0xf8); /* clc */
        return;
    case RC_CC:
        recipe_unpark(e);
        return;
    }
}

void recipe_cook_last(struct emit *e, const uint8_t home[16], const struct recipe *r)
{
    load(e, home, &r->last, -r->step);
    emit_rex(e, r->step_size == 8, 0, 0, BT_T1);
    emit8(e, 0xff);
    emit8(e, 0xc0 | (r->step < 0) << 3 | (BT_T1 & 7));
}

void recipe_cook(struct emit *e, const uint8_t home[16], const struct recipe *r)
{
    cook_main(e, home, r);
    if (r->step)
        recipe_cook_last(e, home, r);
}

bool recipe_cheap(const struct recipe *r)
{
    return (r->kind == RC_CMP || r->kind == RC_TEST || r->kind == RC_LOGIC) && !r->step && !r->dst.add && !r->src.add;
}

/* ---- what becomes of them ---- */

/* The values that it needs, at most three; returns their number. main: how many of them the flags below an INC or DEC
 * need. */
static unsigned values(struct recipe *r, struct recipe_value *v[3], unsigned *main)
{
    unsigned n = 0;

    if (r->kind >= RC_CMP && r->kind <= RC_LOGIC)
        v[n++] = &r->dst;
    if (r->kind >= RC_CMP && r->kind <= RC_SUB && r->src.reg != RV_IMM)
        v[n++] = &r->src;
    *main = n;
    if (r->step)
        v[n++] = &r->last;
    return n;
}

uint16_t recipe_regs(const struct recipe *r)
{
    struct recipe copy = *r;
    struct recipe_value *v[3];
    uint16_t set = 0;
    unsigned main, n = values(&copy, v, &main);

    for (unsigned k = 0; k < n; k++)
        if (is_reg(v[k]))
            set |= (uint16_t)BIT(v[k]->reg);
    return set;
}

static bool same_value(const struct recipe_value *a, const struct recipe_value *b)
{
    return a->reg == b->reg && a->add == b->add;
}

bool recipe_same(const struct recipe *a, const struct recipe *b)
{
    return a->kind == b->kind && a->size == b->size && same_value(&a->dst, &b->dst) && same_value(&a->src, &b->src) &&
           a->imm == b->imm && a->step == b->step && a->step_size == b->step_size && same_value(&a->last, &b->last);
}

bool recipe_add(struct recipe *r, unsigned reg, unsigned size, int by)
{
    struct recipe new = *r;
    struct recipe_value *v[3];
    unsigned main, n = values(&new, v, &main);

    for (unsigned k = 0; k < n; k++) {
        int64_t add = (int64_t)v[k]->add - by;

        if (v[k]->reg != reg)
            continue;
        if (add != (int16_t)add || (k < main ? new.size : new.step_size) > size)
            return false;
        v[k]->add = (int16_t)add;
    }
    if (!feasible(&new))
        return false;
    *r = new;
    return true;
}

bool recipe_keep(struct emit *e, const uint8_t home[16], struct recipe *r, unsigned reg)
{
    struct recipe_value *v[3];
    unsigned main, n = values(r, v, &main), from = home[reg];

    for (unsigned k = 0; k < n; k++)
        if (v[k]->reg == RV_KEPT)
            return false;
    if (from == BT_SPILLED) {
        emit_load_cpu(e, BT_T1, BT_OFF_GPR(reg));
        from = BT_T1;
    }
    emit_store_cpu(e, BT_OFF(bt.operand), from);
    for (unsigned k = 0; k < n; k++)
        if (v[k]->reg == reg)
            v[k]->reg = RV_KEPT;
    return true;
}
