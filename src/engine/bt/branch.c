/* Control flow: links within the page, the jump table for the rest. */
#include "engine/bt/tr.h"

/* A branch (its opcode bytes just emitted) to `off` in this page, to be linked. */
static void emit_link(struct tr *t, const uint8_t *op, unsigned n, unsigned off)
{
    struct bt_link l = {.from = t->t,
                        .level = t->level,
                        .flags = t->fl == FL_CC ? BT_CC : BT_HOST,
                        .lazy = t->fl == FL_RECIPE,
                        .swapped = t->swapped,
                        .off = (uint16_t)off};
    struct emit *e = t->e;

    /* Recipes know the registers' places within the block. */
    if ((t->fl == FL_HOST || t->fl == FL_RECIPE) && t->swapped == (t->t->nswap != 0))
        l.recipe = t->recipe;

    emit_align_rel32(e, n);
    emit_bytes(e, op, n);
    l.patch = emit_rel32(e, 0);
    tr_cold(t, COLD_LINK, l.patch, bt_link_add(t->bt, &l));
}

/* Before a branch back: looks whether there are events. */
static void poll(struct tr *t, uint32_t site)
{
    emit_op_gs(t->e, 0x8b, 0, BT_T1, BT_OFF(bt.poll));
    tr_cold(t, COLD_EVENT, emit_jmp_if_rcx(t->e), site);
}

uint32_t bt_emit_jump(struct emit *e, enum bt_flags flags)
{
    uint32_t miss;

    emit_load_gs(e, BT_T2, BT_OFF(bt.jump));
    emit_rorx(e, BT_T1, BT_T0, BT_JUMP_ROR);
    emit_lea(e, 1, BT_T1, BT_T1, BT_T0, 0, 0);
    if (flags == BT_CC) {
        emit_alu_ri(e, ALU_AND, 0, BT_T1, ((1 << BT_JUMP_BITS) - 1) << BT_JUMP_SHIFT);
        emit_lea(e, 1, BT_T2, BT_T2, BT_T1, 2, 0);
    } else {
        emit_pext_gs(e, BT_T1, BT_T1, BT_OFF(bt.jump_mask));
        emit_lea(e, 1, BT_T1, BT_T1, BT_T1, 0, 0);
        emit_lea(e, 1, BT_T2, BT_T2, BT_T1, 3, 0);
    }
    emit_load(e, BT_T1, BT_T2, offsetof(struct bt_jump, nrip));
    if (flags == BT_CC) {
        emit_alu_rr(e, ALU_ADD, 1, BT_T1, BT_T0);
        miss = emit_jcc(e, CC_NE, 0);
    } else {
        emit_lea(e, 1, BT_T1, BT_T1, BT_T0, 0, 0);
        miss = emit_jmp_if_rcx(e);
    }
    emit_load(e, BT_T2, BT_T2, offsetof(struct bt_jump, t));
    emit_jmp_m(e, BT_T2, (int32_t)(offsetof(struct tblock, entry) + sizeof(uint8_t *) * flags));
    return miss;
}

/* Goes on at T0, by the jump table. Flags are settled. */
static void jump_t0(struct tr *t, uint32_t site)
{
    homes_leave(t);
    tr_cold(t, COLD_LOOKUP, bt_emit_jump(t->e, t->fl == FL_CC ? BT_CC : BT_HOST), site);
}

_Static_assert(sizeof(struct bt_jump) == 16 && BT_JUMP_SHIFT == 2, "the lookup's arithmetic");

/* Goes on at offset `off`, perhaps beyond the page. */
static void go(struct tr *t, int64_t off, enum bt_site_kind kind)
{
    if (off >= 0 && off < (int64_t)PAGE_SIZE) {
        emit_link(t, (const uint8_t[]){0xe9}, 1, (unsigned)off);
        return;
    }
    fl_settle(t);
    emit_load_gs(t->e, BT_T0, BT_OFF(bt.vpage));
    emit_lea(t->e, 1, BT_T0, BT_T0, REG_NONE, 0, (int32_t)off);
    jump_t0(t, tr_site(t, kind, 0));
}

void branch_fall(struct tr *t, unsigned off) { go(t, off, BT_SITE_PLAIN); }

static int64_t target(const struct step *s) { return (int64_t)s->off + s->i.len + (int64_t)s->i.imm; }

/* A site whose offset is where a taken branch leads: for events before it. */
static uint32_t target_site(struct tr *t, unsigned off)
{
    uint32_t n = tr_site(t, BT_SITE_PLAIN, 0);

    t->bt->site[n].off = (uint16_t)off;
    return n;
}

static void jcc(struct tr *t)
{
    struct step *s = t->s;
    int64_t to = target(s);
    uint32_t over;
    bool swapped;

    fl_to_host(t);
    if (to > s->off && to < (int64_t)PAGE_SIZE) {
        emit_link(t, (const uint8_t[]){0x0f, 0x80 | s->i.cond}, 2, (unsigned)to);
        return;
    }
    over = emit_jcc(t->e, s->i.cond ^ 1u, 0);
    if (to >= 0 && to < (int64_t)PAGE_SIZE)
        poll(t, target_site(t, (unsigned)to));
    swapped = t->swapped;
    go(t, to, BT_SITE_JUMP);
    t->swapped = swapped;
    emit_fix_here(t->e, over);
}

static void jmp(struct tr *t)
{
    int64_t to = target(t->s);

    if (to >= 0 && to <= t->s->off)
        poll(t, target_site(t, (unsigned)to));
    go(t, to, BT_SITE_JUMP);
}

/* Stores the return address and moves RSP. T0 may be the operand's address. */
static void push_return(struct tr *t)
{
    struct recode_mem m;

    access_translate(t, &t->s->stack, true, &m);
    emit_load_gs(t->e, BT_T1, BT_OFF(bt.vpage));
    emit_lea(t->e, 1, BT_T1, BT_T1, REG_NONE, 0, t->s->off + t->s->i.len);
    emit_rex(t->e, 1, BT_T1, m.index == REG_NONE ? 0 : m.index, m.base);
    emit8(t->e, 0x89);
    emit_mem(t->e, BT_T1, m.base, m.index, 0, m.disp);
    fl_regs_change(t, BIT(RSP));
    emit_lea(t->e, 1, t->home[RSP], t->home[RSP], REG_NONE, 0, -8);
}

/* The target of an indirect branch into T0. */
static void load_target(struct tr *t, bool keep)
{
    const struct opnd *o = &t->s->i.op[0];
    struct recode_mem m;

    if (o->kind == OP_REG) {
        if (t->home[o->reg] == BT_SPILLED)
            emit_load_gs(t->e, BT_T0, BT_OFF_GPR(o->reg));
        else
            emit_mov_rr(t->e, BT_T0, t->home[o->reg]);
    } else {
        access_translate(t, &t->s->mem, false, &m);
        emit_rex(t->e, 1, BT_T0, m.index == REG_NONE ? 0 : m.index, m.base);
        emit8(t->e, 0x8b);
        emit_mem(t->e, BT_T0, m.base, m.index, 0, m.disp);
    }
    if (keep)
        emit_store_gs(t->e, BT_OFF(bt.value), BT_T0);
}

static void ret(struct tr *t)
{
    struct step *s = t->s;
    struct recode_mem m;
    unsigned pop = 8 + (s->i.nops ? s->i.imm & 0xffff : 0);
    uint32_t site;

    access_translate(t, &s->stack, true, &m);
    emit_rex(t->e, 1, BT_T0, m.index == REG_NONE ? 0 : m.index, m.base);
    emit8(t->e, 0x8b);
    emit_mem(t->e, BT_T0, m.base, m.index, 0, m.disp);
    fl_settle(t);
    emit_lea(t->e, 1, t->home[RSP], t->home[RSP], REG_NONE, 0, (int32_t)pop);
    site = tr_site(t, BT_SITE_RET, 0);
    t->bt->site[site].span = (uint16_t)pop;
    jump_t0(t, site);
}

void branch_translate(struct tr *t)
{
    switch (t->s->how) {
    case HOW_JCC:
        jcc(t);
        break;
    case HOW_JMP:
        jmp(t);
        break;
    case HOW_JMP_IND:
        load_target(t, false);
        fl_settle(t);
        jump_t0(t, tr_site(t, BT_SITE_JUMP, 0));
        break;
    case HOW_CALL: {
        int64_t to = target(t->s);

        push_return(t);
        fl_settle(t);
        /* Recursion without end is a loop as well. */
        if (to >= 0 && to <= t->s->off)
            poll(t, target_site(t, (unsigned)to));
        go(t, to, BT_SITE_CALL);
        break;
    }
    case HOW_CALL_IND:
        load_target(t, true);
        push_return(t);
        fl_settle(t);
        emit_load_gs(t->e, BT_T0, BT_OFF(bt.value));
        jump_t0(t, tr_site(t, BT_SITE_CALL, 0));
        break;
    case HOW_RET:
        ret(t);
        break;
    default:
        break;
    }
}
