/* Translating a block: what is done with each instruction, and the driver. */
#include "engine/bt/tr.h"

#include <time.h>

#include "engine/interp/op.h"

struct cold *tr_cold(struct tr *t, int kind, uint32_t from, uint32_t site)
{
    struct cold *c = &t->cold[t->ncold++];

    *c = (struct cold){.kind = kind, .from = from, .site = site, .fl = t->fl, .recipe = t->recipe, .swapped = t->swapped};
    return c;
}

uint32_t tr_site(struct tr *t, enum bt_site_kind kind, unsigned span)
{
    return bt_site_add(t->bt, &(struct bt_site){.t = t->t,
                                                .off = t->s ? t->s->off : (uint16_t)(t->b->gpa & PAGE_MASK),
                                                .kind = (uint8_t)kind,
                                                .span = (uint16_t)span});
}

unsigned tr_reg(struct tr *t, unsigned r, unsigned tmp)
{
    if (t->home[r] != BT_SPILLED)
        return t->home[r];
    emit_load_cpu(t->e, tmp, BT_OFF_GPR(r));
    return tmp;
}

/* ---- code for an instruction ---- */

static void lea(struct tr *t)
{
    const struct insn *i = &t->s->i;
    unsigned r = i->op[0].reg, home = t->home[r];

    fl_regs_change(t, t->s->writes);
    if (i->mem.base == REG_RIP && home != BT_SPILLED && i->opsize == 8) {
        access_address(t, home);
        return;
    }
    access_address(t, BT_T0);
    if (home == BT_SPILLED && i->opsize >= 4) {
        if (i->opsize == 4)
            emit_lea(t->e, 0, BT_T0, BT_T0, REG_NONE, 0, 0);
        emit_store_cpu(t->e, BT_OFF_GPR(r), BT_T0);
    } else if (home == BT_SPILLED) {
        emit_store_cpu16(t->e, BT_OFF_GPR(r), BT_T0);
    } else if (i->opsize == 8) {
        emit_mov_rr(t->e, home, BT_T0);
    } else {
        if (i->opsize == 2)
            emit8(t->e, 0x66);
        emit_lea(t->e, 0, home, BT_T0, REG_NONE, 0, 0);
    }
}

/* LEA in one instruction, but for registers without a home. */
static bool lea_direct(struct tr *t)
{
    const struct insn *i = &t->s->i;
    const struct insn_mem *m = &i->mem;
    unsigned r = i->op[0].reg, dst = t->home[r] == BT_SPILLED ? BT_T0 : t->home[r], base = REG_NONE, index = REG_NONE;
    unsigned w = i->opsize == 8 && i->addrsize == 8;

    if (i->opsize == 2 || m->base == REG_RIP || (m->base == REG_NONE && m->index == REG_NONE))
        return false;
    if (m->base == r && m->index == REG_NONE && w)
        fl_reg_adds(t, r, 8, (int32_t)m->disp);
    else
        fl_regs_change(t, t->s->writes);
    if (m->index != REG_NONE)
        index = tr_reg(t, m->index, BT_T1);
    if (m->base != REG_NONE)
        base = tr_reg(t, m->base, BT_T0);
    if (base != REG_NONE)
        emit_lea(t->e, w, dst, base, index, m->scale, (int32_t)m->disp);
    else
        emit_lea_index(t->e, w, dst, index, m->scale, (int32_t)m->disp);
    if (dst == BT_T0)
        emit_store_cpu(t->e, BT_OFF_GPR(r), dst);
    return true;
}

static void emit_to_mem(struct tr *t, unsigned opcode, unsigned reg, const struct recode_mem *m)
{
    emit_rex(t->e, 1, reg, m->index == REG_NONE ? 0 : m->index, m->base);
    emit8(t->e, opcode);
    emit_mem(t->e, reg, m->base, m->index, 0, m->disp);
}

static void push(struct tr *t)
{
    struct step *s = t->s;
    const struct opnd *o = &s->i.op[0];
    struct recode_mem m;

    if (s->mem.used) {
        access_translate(t, &s->mem, false, &m);
        emit_to_mem(t, 0x8b, BT_T1, &m);
        emit_store_cpu(t->e, BT_OFF(bt.value), BT_T1);
    }
    access_translate(t, &s->stack, true, &m);
    m.disp += t->rsp_due;
    if (o->kind == OP_IMM) {
        emit_to_mem(t, 0xc7, 0, &m);
        emit32(t->e, (uint32_t)s->i.imm);
    } else if (s->mem.used) {
        emit_load_cpu(t->e, BT_T1, BT_OFF(bt.value));
        emit_to_mem(t, 0x89, BT_T1, &m);
    } else {
        emit_to_mem(t, 0x89, tr_reg(t, o->reg, BT_T1), &m);
    }
    fl_reg_adds(t, RSP, 8, -8);
    t->rsp_due -= 8;
}

static void pop(struct tr *t)
{
    unsigned r = t->s->i.op[0].reg, home = t->home[r];
    struct recode_mem m;

    access_translate(t, &t->s->stack, true, &m);
    m.disp += t->rsp_due;
    fl_regs_change(t, (uint16_t)BIT(r));
    if (r != RSP)
        fl_reg_adds(t, RSP, 8, 8);
    emit_to_mem(t, 0x8b, home == BT_SPILLED ? BT_T1 : home, &m);
    if (home == BT_SPILLED)
        emit_store_cpu(t->e, BT_OFF_GPR(r), BT_T1);
    if (r != RSP)
        t->rsp_due += 8;
}

static void leave(struct tr *t)
{
    struct recode_mem m;

    access_translate(t, &t->s->stack, true, &m);
    fl_regs_change(t, t->s->writes);
    emit_to_mem(t, 0x8b, BT_T1, &m);
    emit_lea(t->e, 1, t->home[RSP], t->home[RBP], REG_NONE, 0, 8);
    emit_mov_rr(t->e, t->home[RBP], BT_T1);
}

/* Before vector instructions up to `level`; flags stay in EFLAGS. */
static void vec_check(struct tr *t, uint8_t level)
{
    struct bt_site *s;
    struct cold *c;

    if (level <= t->level)
        return;
    emit_movzx_cpu(t->e, 1, BT_T1, BT_OFF(bt.missing) + level);
    c = tr_cold(t, COLD_VEC, emit_jmp_if_rcx(t->e), tr_site(t, BT_SITE_VEC, level));
    s = &t->bt->site[c->site];
    s->retry = emit_pos(t->e);
    t->level = level;
}

/* The highest level among the steps from k to the next that leaves. */
static uint8_t level_from(const struct tr *t, unsigned k)
{
    uint8_t level = 0;

    for (; k < t->n && t->step[k].how > HOW_HELP; k++)
        level = MAX(level, (uint8_t)tr_level_of(&t->step[k].i));
    return level;
}

/* Where the steps from k on want the flags of before. */
static enum fl_place wants(const struct tr *t, unsigned k)
{
    if (k < t->n && !t->step[k].need)
        return FL_NONE;
    for (; k < t->n; k++) {
        const struct step *s = &t->step[k];

        if (s->mem.used || s->stack.used || s->how <= HOW_HELP)
            return FL_CC;
        /* INC and DEC need not compute flags (fl_step). */
        if (s->i.id == INSN_INC || s->i.id == INSN_DEC)
            return s->i.op[0].size >= 4 && t->home[s->i.op[0].reg] != BT_SPILLED ? FL_CC : FL_HOST;
        if (s->fl_read || s->fl_some || s->how == HOW_JCC)
            return FL_HOST;
        if (s->how >= HOW_JMP)
            return FL_CC;
    }
    return FL_CC;
}

/* Leaves to a helper or to the interpreter, and comes back behind the instruction. */
static void leave_to_c(struct tr *t)
{
    struct emit *e = t->e;
    const struct insn *i = &t->s->i;
    unsigned k = (unsigned)(t->s - t->step);
    uint32_t n = tr_site(t, BT_SITE_PLAIN, 0);
    struct bt_site *site = &t->bt->site[n];
    struct block *single;
    /* Those that end a block want the run loop. */
    bool ends = k + 1 == t->n && (i->row->flags & (IF_BRANCH | IF_SYS));
    enum bt_flags flags;

    flags = fl_settle(t);
    homes_leave(t);
    emit_mov_ri32(e, BT_T1, n);
    if (t->s->how == HOW_HELP) {
        emit_mov_ri64(e, BT_T0, (uintptr_t)t->s->help);
        emit_jmp(e, t->bt->stub.help[flags]);
        site->span = i->op[0].size;
        site->rep = i->prefix & (PFX_REP | PFX_REPNE);
    } else {
        emit_jmp(e, t->bt->stub.interp[flags]);
    }
    single = cache_single(t->c, i);
    if (single) {
        single->t = t->t;
        site->single = single;
        site->apart = true;
    }
    site->len = i->len;
    site->resume = !ends;
    site->retry = emit_pos(e);
    t->level = 0;
    t->in_t2 = GROUP_NONE;
    /* They are in both. */
    t->fl = wants(t, k + 1) == FL_HOST ? FL_HOST : FL_CC;
    t->recipe = (struct recipe){.kind = t->fl == FL_HOST ? RC_CC : RC_NOTHING};
    if (k + 1 < t->n) {
        t->s++;
        vec_check(t, level_from(t, k + 1));
        homes_enter(t);
        t->s--;
    } else if (ends && t->s->how == HOW_HELP) {
        branch_fall(t, t->s->off + i->len);
    }
}

static bool names(const struct insn *i, unsigned r)
{
    for (unsigned k = 0; k < i->nops; k++)
        if (i->op[k].kind == OP_REG && (i->op[k].cls == RC_GPR || i->op[k].cls == RC_GPRH) && i->op[k].reg == r)
            return true;
    return false;
}

/* Can the step be done while home[RSP] lacks rsp_due? It must not look at RSP but for the stack, nor leave. */
static bool can_wait(const struct tr *t, const struct step *s)
{
    switch (s->how) {
    case HOW_NOP:
        return true;
    case HOW_LEA:
        return !names(&s->i, RSP) && s->i.mem.base != RSP && s->i.mem.index != RSP;
    case HOW_COPY:
        return !s->mem.used && !names(&s->i, RSP) && !copy_faults(&s->i);
    case HOW_PUSH:
    case HOW_POP:
        if (s->mem.used || names(&s->i, RSP))
            return false;
        return s->stack.group != GROUP_NONE && t->group[s->stack.group].made;
    case HOW_RET:
        return s->stack.group != GROUP_NONE && t->group[s->stack.group].made;
    default:
        return false;
    }
}

/* Runs of PUSH and POP change RSP once. */
static void settle_rsp(struct tr *t)
{
    const struct step *next = t->s + 1;

    if (!t->rsp_due || (next < t->step + t->n && can_wait(t, next)))
        return;
    emit_lea(t->e, 1, t->home[RSP], t->home[RSP], REG_NONE, 0, t->rsp_due);
    t->rsp_due = 0;
}

static void step(struct tr *t)
{
    switch (t->s->how) {
    case HOW_INTERP:
    case HOW_HELP:
        leave_to_c(t);
        break;
    case HOW_NOP:
        break;
    case HOW_COPY:
        copy_translate(t);
        break;
    case HOW_LEA:
        if (!lea_direct(t))
            lea(t);
        break;
    case HOW_PUSH:
        push(t);
        break;
    case HOW_POP:
        pop(t);
        break;
    case HOW_LEAVE:
        leave(t);
        break;
    default:
        branch_translate(t);
    }
}

/* ---- off the straight path ---- */

/* A link that has taken the swaps back and made the flags. */
static void second_jump(struct tr *t, struct bt_link *l)
{
    emit_align_rel32(t->e, 1);
    emit8(t->e, 0xe9);
    l->patch2 = emit_rel32(t->e, 0);
    emit_fix_here(t->e, l->patch2);
    l->unlinked2 = emit_pos(t->e);
}

/* C comes back with all registers at home. */
static void come_back(struct tr *t, struct bt_site *s)
{
    uint32_t retry = s->retry;

    s->retry = emit_pos(t->e);
    homes_enter(t);
    emit_jmp(t->e, retry);
}

static void cold(struct tr *t, const struct cold *c)
{
    const struct bt_stubs *s = &t->bt->stub;
    const enum bt_flags in = c->fl == FL_HOST || c->fl == FL_RECIPE ? BT_HOST : BT_CC;
    struct emit *e = t->e;

    if (c->kind == COLD_INTERP)
        t->bt->fault[c->from].cold = emit_pos(e);
    else
        emit_fix_here(e, c->from);
    if (c->kind == COLD_LINK)
        t->bt->link[c->site].unlinked = emit_pos(e);
    if (c->kind == COLD_ROUND)
        emit_fix_here(e, access_again(t, c));
    if (c->fl == FL_RECIPE)
        recipe_cook(t->e, t->home, &c->recipe);
    if (c->address)
        emit_lea(e, 1, BT_T0, c->base, REG_NONE, 0, c->disp);
    t->swapped = c->swapped;
    homes_leave(t);
    if (c->kind == COLD_LINK && (c->swapped || c->fl == FL_RECIPE))
        second_jump(t, &t->bt->link[c->site]);
    if (c->kind != COLD_BACK)
        emit_mov_ri32(e, BT_T1, c->site);
    switch (c->kind) {
    case COLD_ACCESS:
    case COLD_ROUND:
        emit_jmp(e, s->refill[in]);
        if (c->swapped)
            come_back(t, &t->bt->site[c->site]);
        break;
    case COLD_INTERP:
        emit_jmp(e, s->interp[in]);
        break;
    case COLD_EVENT:
        emit_jmp(e, s->event[in]);
        break;
    case COLD_MISS:
        emit_mov_ri32(e, BT_T2, (uint32_t)BT_OFF_IC(c->ic));
        if (c->pad) {
            emit_call(e, s->miss[in]);
            emit_jmp(e, c->pad);
        } else {
            emit_jmp(e, s->miss[in]);
        }
        break;
    case COLD_BACK:
        emit_mov_ri32(e, BT_T2, (uint32_t)BT_OFF_IC(c->ic));
        emit_jmp(e, s->back);
        break;
    case COLD_LINK:
        emit_jmp(e, s->link[in]);
        break;
    case COLD_VEC:
        emit_mov_ri64(e, BT_T0, (uintptr_t)bt_host(t->bt, t->bt->site[c->site].retry));
        emit_jmp(e, s->vec[in]);
        break;
    }
}

/* From inline caches and the jump table: T0 = RIP. */
static void table_entry(struct tr *t, enum bt_flags f)
{
    t->t->entry[f] = bt_host(t->bt, emit_pos(t->e));
    emit_lea(t->e, 1, BT_T1, BT_T0, REG_NONE, 0, -(int32_t)t->step[0].off);
    emit_store_cpu(t->e, BT_OFF(bt.vpage), BT_T1);
}

static void checked_entry(struct tr *t, enum bt_flags f)
{
    struct tblock *b = t->t;

    t->s = t->step;
    t->level = 0;
    t->fl = f == BT_HOST ? FL_HOST : FL_CC;
    t->recipe = (struct recipe){.kind = RC_NOTHING};
    t->swapped = false;
    table_entry(t, f);
    b->at[f] = emit_pos(t->e);
    vec_check(t, b->level);
    b->vat[f] = emit_pos(t->e);
    homes_enter(t);
    b->inner[f] = emit_pos(t->e);
}

/* The way in with flags in EFLAGS, followed by the block. */
static void entries(struct tr *t)
{
    struct tblock *b = t->t;
    enum fl_place want = wants(t, 0);

    b->level = level_from(t, 0);
    b->likes = want == FL_CC ? BT_CC : BT_HOST;
    b->careless = want == FL_NONE;
    checked_entry(t, BT_HOST);
    if (want == FL_CC)
        fl_release(t);
    if (want == FL_NONE)
        t->fl = FL_NONE;
    t->body = emit_pos(t->e);
}

/* The only way into a version of main, for link l. */
static void version_entry(struct tr *t, const struct tblock *main, const struct bt_link *l)
{
    struct tblock *b = t->t;

    t->s = t->step;
    t->level = b->level = main->level;
    t->recipe = *b->given;
    t->fl = main->careless ? FL_NONE : t->recipe.kind != RC_NOTHING ? FL_RECIPE : l->flags == BT_CC ? FL_CC : FL_HOST;
    b->likes = l->flags;
    t->swapped = b->nswap != 0;
    t->body = emit_pos(t->e);
    for (unsigned k = 0; k < 2; k++) {
        b->at[k] = b->vat[k] = b->inner[k] = t->body;
        b->entry[k] = bt_host(t->bt, t->bt->stub.dead[k]);
    }
}

/* The other one, in the cold part: most blocks are entered by links, or always the same way. */
static void other_entry(struct tr *t)
{
    struct tblock *b = t->t;

    if (wants(t, 0) == FL_NONE) {
        for (unsigned k = 0; k < 2; k++) {
            b->at[k] = b->at[BT_HOST];
            b->vat[k] = b->vat[BT_HOST];
            b->inner[k] = b->inner[BT_HOST];
            b->entry[k] = b->entry[BT_HOST];
        }
        return;
    }
    checked_entry(t, BT_CC);
    if (wants(t, 0) == FL_HOST)
        fl_to_host(t);
    else
        b->inner[BT_CC] = t->body;
    /* What does nothing need not be passed. */
    if (!b->nswap)
        b->vat[BT_CC] = b->inner[BT_CC];
    if (!b->level)
        b->at[BT_CC] = b->vat[BT_CC];
    emit_jmp(t->e, t->body);
}

/* Copies the block's bytes. The guest may be changing them, on another vCPU or by DMA: what is decoded, emitted and made
 * a version of has to be the same each time. */
static bool fetch(struct tr *t, uint8_t *code)
{
    const struct p2m *p2m = physmap_p2m(t->c->vm->map);
    const struct block *b = t->b;
    unsigned off = b->gpa & PAGE_MASK, n = MIN(b->bytes, (unsigned)PAGE_SIZE - off);
    uint64_t one = p2m_get(p2m, b->gpa >> PAGE_SHIFT), two;

    if (!(one & P2M_PRESENT))
        return false;
    memcpy(code, p2m_host(one) + off, n);
    if (n == b->bytes)
        return true;
    two = b->gpa2 == ~0ull ? 0 : p2m_get(p2m, b->gpa2 >> PAGE_SHIFT);
    if (!(two & P2M_PRESENT))
        return false;
    memcpy(code + n, p2m_host(two), b->bytes - n);
    return true;
}

static bool decode(struct tr *t, const uint8_t *code)
{
    unsigned first = t->b->gpa & PAGE_MASK, at = 0;

    for (unsigned k = 0; k < t->n; k++) {
        struct step *s = &t->step[k];

        if (insn_decode(&s->i, code + at, t->b->bytes - at, CPU_64) != INSN_OK)
            return false;
        s->off = (uint16_t)(first + at);
        at += s->i.len;
        tr_classify(t, s);
    }
    return true;
}

/* A loop in the middle of the block begins a block of its own: else its first two rounds would be no later rounds
 * (access.c). Returns how many steps are left. */
static unsigned before_loop(const struct tr *t)
{
    unsigned n = t->n;

    for (unsigned k = 1; k < n; k++) {
        const struct step *s = &t->step[k];
        int64_t to = (int64_t)s->off + s->i.len + (int64_t)s->i.imm;

        if ((s->how != HOW_JCC && s->how != HOW_JMP) || to > s->off)
            continue;
        for (unsigned j = 1; j <= k; j++)
            if (t->step[j].off == to && t->step[j - 1].how > HOW_HELP)
                n = j;
    }
    return n;
}

/* In their own part of the area: what runs stays dense. */
static void cold_part(struct tr *t)
{
    uint8_t *hot = t->e->p;
    uint32_t begin;

    t->e->p = t->bt->rw + t->bt->cold;
    begin = t->bt->cold;
    if (!t->t->given)
        other_entry(t);
    for (unsigned k = 0; k < t->ncold; k++)
        cold(t, &t->cold[k]);
    t->bt->cold = emit_pos(t->e);
    t->bt->bytes += t->bt->cold - begin;
    t->e->p = hot;
}

static uint64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* main: what to make a version of, for link l. */
static struct tblock *make(struct bt *bt, struct cpu *c, struct block *b, const struct tblock *from,
                           const struct tblock *main, const struct bt_link *l)
{
    uint64_t began = now_ns();
    struct tr *t = bt->tr;
    uint8_t code[BLOCK_MAX_BYTES];
    struct tblock *tb;
    const struct step *last;
    unsigned end;

    if (bt_code_full(bt) || cache_full(bt->cache))
        return NULL;
    t->bt = bt;
    t->c = c;
    t->b = b;
    t->e = &bt->e;
    t->n = b->insns;
    t->s = NULL;
    t->in_t2 = GROUP_NONE;
    t->ncold = 0;
    t->rsp_due = 0;
    memcpy(t->home, bt_home, sizeof(t->home));
    if (!t->n || (!main && !fetch(t, code)) || !decode(t, main ? main->code : code))
        return NULL;
    t->n = before_loop(t);
    tb = t->t = cache_alloc_lasting(bt->cache, sizeof(*tb) + (main ? 0 : b->bytes), BLOCK_ALIGN);
    *tb = (struct tblock){.b = b,
                          .gpa = b->gpa,
                          .mode = b->gpa2 == ~0ull ? b->mode : BT_MODE_PAGES,
                          .live = true,
                          .given = l ? &l->recipe : NULL,
                          .round = l && l->again};
    if (!main)
        memcpy(tb->code, code, b->bytes);
    tb->begin = emit_pos(t->e);
    if (main)
        homes_like(t, main);
    else
        homes_choose(t, from);
    fl_analyse(t);
    access_analyse(t);
    if (main)
        version_entry(t, main, l);
    else
        entries(t);
    for (unsigned k = 0; k < t->n; k++) {
        t->s = &t->step[k];
        t->s->host = emit_pos(t->e);
        step(t);
        settle_rsp(t);
    }
    last = &t->step[t->n - 1];
    end = last->off + last->i.len;
    if (!(last->i.row->flags & (IF_BRANCH | IF_SYS)) || last->how == HOW_JCC) {
        if (t->n == b->insns && end < (t->b->gpa & PAGE_MASK) + b->bytes) { /* what follows is no instruction */
            enum bt_flags flags = fl_settle(t);
            uint32_t site = tr_site(t, BT_SITE_PLAIN, 0);

            bt->site[site].off = (uint16_t)end;
            homes_leave(t);
            emit_mov_ri32(t->e, BT_T1, site);
            emit_jmp(t->e, bt->stub.interp[flags]);
        } else {
            branch_fall(t, end);
        }
    }
    tb->end = emit_pos(t->e);
    bt->bytes += tb->end - tb->begin;
    cold_part(t);
    bt->blocks++;
    bt->insns += t->n;
    bt->nanoseconds += now_ns() - began;
    return tb;
}

struct tblock *bt_translate(struct bt *bt, struct cpu *c, struct block *b, const struct tblock *from)
{
    return make(bt, c, b, from, NULL, NULL);
}

/* Of one block. */
#define VERSIONS_MAX 4

/* Is v what a version for link l would be? */
static bool version_is(const struct tblock *v, const struct tblock *main, const struct bt_link *l)
{
    if (v->round != l->again)
        return false;
    if (main->careless)
        return true;
    if (l->recipe.kind == RC_NOTHING)
        return v->given->kind == RC_NOTHING && v->likes == l->flags;
    return recipe_same(v->given, &l->recipe);
}

struct tblock *bt_version(struct bt *bt, struct cpu *c, struct tblock *t, uint32_t n)
{
    const struct bt_link *l = &bt->link[n];
    struct tblock **pv = &t->versions;
    unsigned n_versions = 0;

    if (!bt_link_fits(l, t))
        return t;
    if (l->again ? l->lazy && l->recipe.kind == RC_NOTHING && !t->careless
                    : l->recipe.kind == RC_NOTHING || t->careless || (!l->lazy && t->likes == BT_HOST))
        return t;
    for (; *pv; n_versions++, pv = &(*pv)->versions)
        if (version_is(*pv, t, l))
            return *pv;
    /* The last is for a loop's later rounds. */
    if (n_versions >= (l->again ? VERSIONS_MAX : VERSIONS_MAX - 1))
        return t;
    *pv = make(bt, c, t->b, NULL, t, l);
    return *pv ? *pv : t;
}
