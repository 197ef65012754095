/* Control flow: links within the page, inline caches for the rest, the host's own calls and returns. */
#include "engine/bt/tr.h"

/* A branch (its opcode bytes just emitted) to `off` in this page, to be linked. */
static void emit_link(struct tr *t, const uint8_t *op, unsigned n, unsigned off)
{
    struct bt_link l = {.from = t->t,
                        .level = t->level,
                        .flags = t->fl == FL_CC ? BT_CC : BT_HOST,
                        .lazy = t->fl == FL_RECIPE,
                        .swapped = t->swapped,
                        .again = t->t->loops && t->s == &t->step[t->back] && off == t->step[0].off,
                        .off = (uint16_t)off};
    struct emit *e = t->e;

    /* Recipes know the registers' places within the block. */
    if ((t->fl == FL_HOST || t->fl == FL_RECIPE) && t->swapped == (t->t->nswap != 0))
        l.recipe = t->recipe;
    if (t->fl == FL_HOST && l.recipe.kind == RC_CC && !l.recipe.step)
        l.recipe = (struct recipe){.kind = RC_NOTHING};

    emit_align_rel32(e, n);
    emit_bytes(e, op, n);
    l.patch = emit_rel32(e, 0);
    tr_cold(t, COLD_LINK, l.patch, bt_link_add(t->bt, &l));
}

struct poll {
    uint32_t at; /* rel8 */
    struct cold *cold;
};

/* Before a branch back: looks whether there are events. */
static struct poll poll(struct tr *t, uint32_t site)
{
    emit_op_cpu(t->e, 0x8b, 0, BT_T1, BT_OFF(bt.quiet));
    return (struct poll){.at = emit_jrcxz(t->e), .cold = tr_cold(t, COLD_EVENT, 0, site)};
}

/* Behind it, where nothing else comes. */
static void poll_end(struct tr *t, const struct poll *p)
{
    emit_fix_short(t->e, p->at);
    p->cold->from = emit_jmp(t->e, 0);
}

/* Is the inline cache's RIP T0, and are things as when it was filled? Returns the offset of the rel32 to where not. T1
 * and T2 are used. */
static uint32_t emit_ic(struct emit *e, uint32_t ic, enum bt_flags flags)
{
    const int32_t nkey = BT_OFF_IC(ic) + (int32_t)offsetof(struct bt_jump, nkey);
    uint32_t miss;

    if (flags == BT_CC) {
        emit_load_cpu(e, BT_T1, BT_OFF(bt.bias));
        emit_alu_rr(e, ALU_ADD, 1, BT_T1, BT_T0);
        emit_op_cpu(e, ALU_ADD << 3 | 3, 1, BT_T1, nkey);
        miss = emit_jcc(e, CC_NE, 0);
    } else {
        emit_load_cpu(e, BT_T1, nkey);
        emit_load_cpu(e, BT_T2, BT_OFF(bt.bias));
        emit_lea(e, 1, BT_T1, BT_T1, BT_T0, 0, 0);
        emit_lea(e, 1, BT_T1, BT_T1, BT_T2, 0, 0);
        miss = emit_jmp_if_rcx(e);
    }
    return miss;
}

static void load_ic(struct emit *e, uint32_t ic)
{
    emit_load_cpu(e, BT_T2, BT_OFF_IC(ic) + (int32_t)offsetof(struct bt_jump, t));
}

/* Behind it, to that translation. */
static void go_to_ic(struct emit *e, uint32_t ic, enum bt_flags flags, bool call)
{
    load_ic(e, ic);
    (call ? emit_call_m : emit_jmp_m)(e, BT_T2, (int32_t)(offsetof(struct tblock, entry) + sizeof(uint8_t *) * flags));
}

uint32_t bt_emit_jump(struct emit *e, uint32_t ic, enum bt_flags flags, bool call)
{
    uint32_t miss = emit_ic(e, ic, flags);

    go_to_ic(e, ic, flags, call);
    return miss;
}

/* Where a call comes back to, maybe: T0 is where the guest returns to. */
static void come_back(struct tr *t)
{
    struct emit *e = t->e;
    uint32_t ic = t->bt->nic++;

    tr_cold(t, COLD_BACK, emit_ic(e, ic, BT_HOST), 0)->ic = ic;
    load_ic(e, ic);
    emit_movzx_cpu(e, 1, BT_T1, BT_OFF(bt.ret) + BT_RET_FLAGS);
    emit_jmp_mx(e, BT_T2, BT_T1, offsetof(struct tblock, entry));
}

/* Goes on at T0. */
static void jump_t0(struct tr *t, uint32_t site, bool call)
{
    uint32_t ic = t->bt->nic++;
    struct cold *c;

    /* The comparison is shorter if it may destroy EFLAGS; a recipe can wait until after it. */
    if (t->fl == FL_HOST && recipe_cheap(&t->recipe))
        t->fl = FL_RECIPE;
    c = tr_cold(t, COLD_MISS, emit_ic(t->e, ic, t->fl == FL_HOST ? BT_HOST : BT_CC), site);
    c->ic = ic;
    fl_settle(t);
    homes_leave(t);
    go_to_ic(t->e, ic, t->fl == FL_CC ? BT_CC : BT_HOST, call);
    c->pad = call ? emit_pos(t->e) : 0;
    if (call)
        come_back(t);
}

/* Goes on at offset `off`, perhaps beyond the page. A call's push_return has left bt.vpage in T0. */
static void go(struct tr *t, int64_t off, enum bt_site_kind kind)
{
    bool call = kind == BT_SITE_CALL;

    if (off >= 0 && off < (int64_t)PAGE_SIZE) {
        if (call) {
            fl_settle(t);
            homes_leave(t); /* what comes back finds the registers at home */
        }
        emit_link(t, (const uint8_t[]){call ? 0xe8 : 0xe9}, 1, (unsigned)off);
        if (call)
            come_back(t);
        return;
    }
    if (!call)
        emit_load_cpu(t->e, BT_T0, BT_OFF(bt.vpage));
    emit_lea(t->e, 1, BT_T0, BT_T0, REG_NONE, 0, (int32_t)off);
    jump_t0(t, tr_site(t, kind, 0), call);
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
    struct poll p = {0};
    struct recipe recipe;
    enum fl_place fl;
    uint32_t over;
    bool swapped;

    fl_for_cond(t, s->i.cond);
    if (to > s->off && to < (int64_t)PAGE_SIZE) {
        emit_link(t, (const uint8_t[]){0x0f, 0x80 | s->i.cond}, 2, (unsigned)to);
        return;
    }
    over = emit_jcc_short(t->e, s->i.cond ^ 1u);
    if (to >= 0 && to < (int64_t)PAGE_SIZE)
        p = poll(t, target_site(t, (unsigned)to));
    /* What is done on the way there has not been done where it is not taken. */
    swapped = t->swapped;
    fl = t->fl;
    recipe = t->recipe;
    go(t, to, BT_SITE_JUMP);
    t->swapped = swapped;
    t->fl = fl;
    t->recipe = recipe;
    if (p.cold)
        poll_end(t, &p);
    emit_fix_short(t->e, over);
}

static void jmp(struct tr *t)
{
    int64_t to = target(t->s);
    struct poll p = {0};

    if (to >= 0 && to <= t->s->off)
        p = poll(t, target_site(t, (unsigned)to));
    go(t, to, BT_SITE_JUMP);
    if (p.cold)
        poll_end(t, &p);
}

/* Stores the return address and moves RSP; T0 = bt.vpage. */
static void push_return(struct tr *t)
{
    struct recode_mem m;

    access_translate(t, &t->s->stack, true, &m);
    emit_load_cpu(t->e, BT_T0, BT_OFF(bt.vpage));
    emit_lea(t->e, 1, BT_T1, BT_T0, REG_NONE, 0, t->s->off + t->s->i.len);
    emit_rex(t->e, 1, BT_T1, m.index == REG_NONE ? 0 : m.index, m.base);
    emit8(t->e, 0x89);
    emit_mem(t->e, BT_T1, m.base, m.index, 0, m.disp);
    fl_reg_adds(t, RSP, 8, -8);
    emit_lea(t->e, 1, t->home[RSP], t->home[RSP], REG_NONE, 0, -8);
}

/* The target of an indirect branch into T0. */
static void load_target(struct tr *t, bool keep)
{
    const struct opnd *o = &t->s->i.op[0];
    struct recode_mem m;

    if (o->kind == OP_REG) {
        if (t->home[o->reg] == BT_SPILLED)
            emit_load_cpu(t->e, BT_T0, BT_OFF_GPR(o->reg));
        else
            emit_mov_rr(t->e, BT_T0, t->home[o->reg]);
    } else {
        access_translate(t, &t->s->mem, false, &m);
        emit_rex(t->e, 1, BT_T0, m.index == REG_NONE ? 0 : m.index, m.base);
        emit8(t->e, 0x8b);
        emit_mem(t->e, BT_T0, m.base, m.index, 0, m.disp);
    }
    if (keep)
        emit_store_cpu(t->e, BT_OFF(bt.value), BT_T0);
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
    emit_mem(t->e, BT_T0, m.base, m.index, 0, m.disp + t->rsp_due);
    fl_settle(t);
    emit_lea(t->e, 1, t->home[RSP], t->home[RSP], REG_NONE, 0, (int32_t)pop + t->rsp_due);
    t->rsp_due = 0;
    site = tr_site(t, BT_SITE_RET, 0);
    t->bt->site[site].span = (uint16_t)pop;
    homes_leave(t);
    emit_store_cpu_i32(t->e, BT_OFF(bt.ret), site | (t->fl == FL_CC ? 8u : 0) << 8 * BT_RET_FLAGS);
    emit8(t->e, 0xc3);
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
        jump_t0(t, tr_site(t, BT_SITE_JUMP, 0), false);
        break;
    case HOW_CALL: {
        int64_t to = target(t->s);
        struct poll p = {0};

        push_return(t);
        /* Recursion without end is a loop as well. */
        if (to >= 0 && to <= t->s->off)
            p = poll(t, target_site(t, (unsigned)to));
        go(t, to, BT_SITE_CALL);
        if (p.cold)
            poll_end(t, &p);
        break;
    }
    case HOW_CALL_IND:
        load_target(t, true);
        push_return(t);
        emit_load_cpu(t->e, BT_T0, BT_OFF(bt.value));
        jump_t0(t, tr_site(t, BT_SITE_CALL, 0), true);
        break;
    case HOW_RET:
        ret(t);
        break;
    default:
        break;
    }
}
