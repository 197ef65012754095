/* Guest memory: soft-TLB lookups, and which accesses share one. */
#include "engine/bt/tr.h"

/* Bytes that the accesses of a group may span: more would often not fit in a page. */
#define GROUP_SPAN 512

/* Is the address of the step's memory operand made of registers that have homes, without a segment's
 * base? */
static bool plain_address(const struct tr *t, const struct step *s)
{
    const struct insn_mem *m = &s->i.mem;

    if (m->base >= 16 || m->seg >= FS || s->i.addrsize != 8 || t->home[m->base] == BT_SPILLED)
        return false;
    /* AH to BH are had by turning their register, which might be the base. */
    for (unsigned k = 0; k < s->i.nops; k++)
        if (s->i.op[k].kind == OP_REG && s->i.op[k].cls == RC_GPRH)
            return false;
    return true;
}

/* The base register of an access without an index, or -1. */
static int base_of(const struct tr *t, const struct step *s, unsigned which)
{
    if (which)
        return s->how == HOW_LEAVE ? RBP : RSP;
    return plain_address(t, s) && s->i.mem.index == REG_NONE ? s->i.mem.base : -1;
}

/* An access with an index may share its translation with those of the same base, index and scale. */
static bool indexed(const struct tr *t, const struct step *s, unsigned which)
{
    return !which && plain_address(t, s) && s->i.mem.index != REG_NONE;
}

/* What a step adds to register r if that is a constant. */
static bool constant_change(const struct step *s, unsigned r, int32_t *by)
{
    const struct insn *i = &s->i;

    if (r == RSP) {
        switch (s->how) {
        case HOW_PUSH:
            *by = -8;
            return true;
        case HOW_POP:
            *by = 8;
            return !(i->op[0].kind == OP_REG && i->op[0].reg == RSP);
        default:
            break;
        }
    }
    if (s->how == HOW_COPY && (i->id == INSN_ADD || i->id == INSN_SUB) &&
        i->op[0].kind == OP_REG && i->op[0].size == 8 && i->op[1].kind == OP_IMM &&
        (int64_t)i->imm == (int16_t)i->imm) {
        *by = (int32_t)(i->id == INSN_ADD ? (int64_t)i->imm : -(int64_t)i->imm);
        return true;
    }
    return false;
}

/* The access's distance from bt.vpage, if it is relative to RIP and does not cross a page's end. */
static bool in_page(const struct step *s, unsigned which, int32_t *disp)
{
    const struct insn_mem *m = &s->i.mem;
    int64_t at = (int64_t)m->disp + s->off + s->i.len;

    if (which || m->base != REG_RIP || m->seg >= FS || s->i.addrsize != 8 || at != (int32_t)at ||
        (at & PAGE_MASK) + s->mem.size > PAGE_SIZE)
        return false;
    *disp = (int32_t)at;
    return true;
}

/* Groups relative to RIP that are remembered while a block is analysed. */
#define PAGES_OPEN 4

struct analysis {
    struct tr *t;
    uint8_t page[PAGES_OPEN]; /* groups relative to RIP that may have more members */
    unsigned pages;           /* of them so far */
    uint8_t open[16];   /* groups that may have more members, by base */
    uint8_t with_index; /* one of those that have an index */
    int32_t delta[16];  /* what constants were added to a base since its group began */
    uint16_t exits;     /* ways out of the block so far */
};

/* Adds an access to group *open, or begins another one there. */
static void join(struct analysis *an, struct use *a, uint8_t *open, const struct group *like,
                 int32_t *delta)
{
    struct tr *t = an->t;
    struct group *g = *open == GROUP_NONE ? NULL : &t->group[*open];
    int32_t lo = a->disp + *delta, hi = lo + a->size;

    if (!g || MAX(g->end, hi) - MIN(g->min, lo) > GROUP_SPAN ||
        /* A store that may not come must not decide how loads before it are translated. */
        (a->write && !g->write && g->base != RSP && g->exits != an->exits)) {
        if (t->ngroup == GROUPS_MAX)
            return;
        *open = (uint8_t)t->ngroup;
        g = &t->group[t->ngroup++];
        *delta = 0;
        lo = a->disp;
        hi = lo + a->size;
        *g = *like;
        g->min = lo;
        g->end = hi;
        g->write = a->write;
        g->exits = an->exits;
    }
    g->min = MIN(g->min, lo);
    g->end = MAX(g->end, hi);
    g->write |= a->write;
    g->members++;
    a->group = *open;
}

/* Whole pages are shared: that takes no longer. */
static void join_page(struct analysis *an, struct use *a, int32_t disp)
{
    struct tr *t = an->t;
    int32_t page = disp & ~(int32_t)PAGE_MASK;
    unsigned k = 0;
    struct group *g;

    while (k < PAGES_OPEN && (an->page[k] == GROUP_NONE || t->group[an->page[k]].min != page ||
                              (a->write && !t->group[an->page[k]].write && t->group[an->page[k]].exits != an->exits)))
        k++;
    if (k == PAGES_OPEN) {
        if (t->ngroup == GROUPS_MAX)
            return;
        k = an->pages++ % PAGES_OPEN;
        an->page[k] = (uint8_t)t->ngroup;
        t->group[t->ngroup++] = (struct group){.base = REG_RIP, .index = REG_NONE, .min = page, .exits = an->exits};
    }
    g = &t->group[an->page[k]];
    g->write |= a->write;
    g->members++;
    a->group = an->page[k];
}

static void analyse_use(struct analysis *an, struct step *s, unsigned which)
{
    struct use *a = which ? &s->stack : &s->mem;
    const struct insn_mem *m = &s->i.mem;
    int32_t disp;
    int base;

    a->group = GROUP_NONE;
    if (!a->used || an->t->b->nogroup)
        return;
    if (in_page(s, which, &disp)) {
        join_page(an, a, disp);
        return;
    }
    base = base_of(an->t, s, which);
    if (base >= 0) {
        join(an, a, &an->open[base], &(struct group){.base = (uint8_t)base, .index = REG_NONE},
             &an->delta[base]);
    } else if (indexed(an->t, s, which)) {
        const struct group *g = an->with_index == GROUP_NONE ? NULL : &an->t->group[an->with_index];
        int32_t none = 0;

        if (g && (g->base != m->base || g->index != m->index || g->scale != m->scale))
            an->with_index = GROUP_NONE;
        join(an, a, &an->with_index,
             &(struct group){.base = m->base, .index = m->index, .scale = m->scale}, &none);
    }
}

static void analyse_changes(struct analysis *an, const struct step *s)
{
    const struct group *g = an->with_index == GROUP_NONE ? NULL : &an->t->group[an->with_index];

    if (g && (s->writes & (BIT(g->base) | BIT(g->index))))
        an->with_index = GROUP_NONE;
    for (unsigned r = 0; r < 16; r++) {
        int32_t by;

        if (!(s->writes & BIT(r)))
            continue;
        if (constant_change(s, r, &by))
            an->delta[r] += by;
        else
            an->open[r] = GROUP_NONE;
    }
    if (s->how <= HOW_HELP) {
        memset(an->open, GROUP_NONE, sizeof(an->open));
        memset(an->page, GROUP_NONE, sizeof(an->page));
        an->with_index = GROUP_NONE;
    }
    an->exits += s->how == HOW_JCC;
}

static void drop_lone(const struct tr *t, struct use *a)
{
    if (a->group != GROUP_NONE && t->group[a->group].members == 1)
        a->group = GROUP_NONE;
}

void access_analyse(struct tr *t)
{
    struct analysis an = {.t = t, .with_index = GROUP_NONE};
    unsigned slots = 0;

    memset(an.open, GROUP_NONE, sizeof(an.open));
    memset(an.page, GROUP_NONE, sizeof(an.page));
    t->ngroup = 0;
    for (unsigned k = 0; k < t->n; k++) {
        for (unsigned which = 0; which < 2; which++)
            analyse_use(&an, &t->step[k], which);
        analyse_changes(&an, &t->step[k]);
    }
    for (unsigned k = 0; k < t->ngroup; k++) {
        struct group *g = &t->group[k];

        g->slot = (uint8_t)slots;
        if (g->base == RSP && g->index == REG_NONE)
            g->members += 2; /* cheap even alone */
        else if (g->members > 1 && slots < BT_GROUPS)
            slots++;
        else
            g->members = 1;
    }
    for (unsigned k = 0; k < t->n; k++) {
        drop_lone(t, &t->step[k].mem);
        drop_lone(t, &t->step[k].stack);
    }
    t->t->grouped = slots != 0;
}

void access_address(struct tr *t, unsigned dst)
{
    const struct insn *i = &t->s->i;
    const struct insn_mem *m = &i->mem;
    unsigned w = i->addrsize == 8, base = REG_NONE, index = REG_NONE;
    int32_t disp = (int32_t)m->disp;

    if (m->base == REG_RIP) {
        emit_load_cpu(t->e, dst, BT_OFF(bt.vpage));
        if (disp + (int64_t)t->s->off + i->len == (int32_t)(disp + t->s->off + i->len)) {
            emit_lea(t->e, w, dst, dst, REG_NONE, 0, disp + t->s->off + i->len);
        } else {
            emit_lea(t->e, w, dst, dst, REG_NONE, 0, disp);
            emit_lea(t->e, w, dst, dst, REG_NONE, 0, t->s->off + i->len);
        }
    } else {
        if (m->base != REG_NONE)
            base = tr_reg(t, m->base, dst);
        if (m->index != REG_NONE)
            index = tr_reg(t, m->index, BT_T1);
        if (base != REG_NONE)
            emit_lea(t->e, w, dst, base, index, m->scale, disp);
        else if (index != REG_NONE)
            emit_lea_index(t->e, w, dst, index, m->scale, disp);
        else if (w)
            emit_mov_ri64(t->e, dst, (uint64_t)m->disp);
        else
            emit_mov_ri32(t->e, dst, (uint32_t)disp);
    }
    if (m->seg >= FS && i->id != INSN_LEA) {
        emit_load_cpu(t->e, BT_T1, BT_OFF(s.seg[0].base) + (int32_t)(m->seg * sizeof(struct segment)));
        emit_lea(t->e, 1, dst, dst, BT_T1, 0, 0);
    }
}

static void cold_access(struct tr *t, uint32_t from, enum bt_site_kind kind, bool group, uint16_t adj,
                        unsigned span, uint32_t retry)
{
    struct cold *cold = tr_cold(t, COLD_ACCESS, from, tr_site(t, kind, span));
    struct bt_site *s = &t->bt->site[cold->site];

    s->retry = retry;
    s->group = group;
    if ((t->s->i.row->flags & IF_ALIGN) || t->s->i.id == INSN_CMPXCHG16B)
        s->align = t->s->mem.size;
    s->adj = adj;
    t->in_t2 = GROUP_NONE;
}

static unsigned tag_offset(bool write)
{
    return write ? offsetof(struct tlb_entry, wtag) : offsetof(struct tlb_entry, rtag);
}

/* The `last` + 1 bytes from base + disp: T1 = TLB entry, or off to the cold path, which wants the
 * address in T0 and makes it if base is another register. Destroys EFLAGS. */
static void lookup(struct tr *t, unsigned base, int32_t disp, unsigned last, bool write,
                   enum bt_site_kind kind, bool group, uint16_t adj, uint32_t retry)
{
    struct emit *e = t->e;
    struct cold *c;

    if (disp)
        emit_lea(e, 1, BT_T1, base, REG_NONE, 0, disp);
    else
        emit_mov_rr(e, BT_T1, base);
    emit_shr_ri(e, BT_T1, PAGE_SHIFT - 5);
    emit_alu_ri(e, ALU_AND, 0, BT_T1, (TLB_ENTRIES - 1) * 32);
    emit_op_cpu(e, 0x03, 1, BT_T1, BT_OFF(tlb)); /* add */
    emit_lea(e, 1, BT_T2, base, REG_NONE, 0, disp + (int32_t)last);
    emit_alu_ri(e, ALU_AND, 1, BT_T2, -(int32_t)PAGE_SIZE);
    emit_op_m(e, 0x3b, 1, BT_T2, BT_T1, (int32_t)tag_offset(write)); /* cmp */
    cold_access(t, emit_jcc(e, CC_NE, 0), kind, group, adj, last + 1, retry);
    c = &t->cold[t->ncold - 1];
    c->address = base != BT_T0 || disp;
    c->base = (uint8_t)base;
    c->disp = disp;
}

_Static_assert(sizeof(struct tlb_entry) == 32, "the lookups' arithmetic");

/* T2 = host address of the page `page` bytes from bt.vpage, for an access of `size` bytes at `off` there. */
static void lookup_page(struct tr *t, int32_t page, unsigned off, unsigned size, bool write, enum bt_site_kind kind,
                        bool group, uint32_t retry)
{
    struct emit *e = t->e;
    struct cold *c;

    emit_load_cpu(e, BT_T2, BT_OFF(bt.vpage));
    if (page)
        emit_lea(e, 1, BT_T2, BT_T2, REG_NONE, 0, page);
    emit_mov_rr(e, BT_T1, BT_T2);
    emit_shr_ri(e, BT_T1, PAGE_SHIFT - 5);
    emit_alu_ri(e, ALU_AND, 0, BT_T1, (TLB_ENTRIES - 1) * 32);
    emit_op_cpu(e, 0x03, 1, BT_T1, BT_OFF(tlb)); /* add */
    emit_op_m(e, 0x3b, 1, BT_T2, BT_T1, (int32_t)tag_offset(write)); /* cmp */
    cold_access(t, emit_jcc(e, CC_NE, 0), kind, group, 0, size, retry);
    c = &t->cold[t->ncold - 1];
    c->address = true;
    c->base = BT_T2;
    c->disp = (int32_t)off;
    emit_op_m(e, 0x03, 1, BT_T2, BT_T1, offsetof(struct tlb_entry, addend)); /* add */
}

/* By the page the stack is in: T2 = addend. `min`: of the first byte from RSP. */
static void lookup_stack(struct tr *t, int32_t min, unsigned last, enum bt_site_kind kind, bool group,
                         uint16_t adj, uint32_t retry)
{
    struct emit *e = t->e;
    struct cold *c;

    emit_lea(e, 1, BT_T0, t->home[RSP], REG_NONE, 0, min);
    emit_op_cpu(e, 0x03, 1, BT_T0, BT_OFF(bt.sp_npage)); /* add */
    emit_alu_ri(e, ALU_CMP, 1, BT_T0, (int32_t)(PAGE_SIZE - 1 - last));
    cold_access(t, emit_jcc(e, CC_A, 0), kind, group, adj, last + 1, retry);
    c = &t->cold[t->ncold - 1];
    c->address = true;
    c->base = t->home[RSP];
    c->disp = min;
    t->bt->site[c->site].stack = true;
    emit_load_cpu(e, BT_T2, BT_OFF(bt.sp_addend));
}

void access_translate(struct tr *t, const struct use *a, bool stack, struct recode_mem *m)
{
    struct emit *e = t->e;
    struct group *g = a->group == GROUP_NONE ? NULL : &t->group[a->group];
    unsigned last = g ? (unsigned)(g->end - g->min - 1) : a->size - 1u;
    bool write = g ? g->write : a->write;
    enum bt_site_kind kind = a->write ? BT_SITE_WRITE : write ? BT_SITE_EARLY : BT_SITE_READ;
    uint16_t adj = (uint16_t)(g ? a->disp - g->min : 0);
    uint32_t retry;
    int32_t at;
    int base;

    if (in_page(t->s, stack, &at)) {
        bool made = g && g->made;

        if (made && t->in_t2 != a->group) {
            emit_load_cpu(e, BT_T2, BT_OFF(bt.group) + 8 * g->slot);
        } else if (!made) {
            fl_release(t);
            lookup_page(t, at & ~(int32_t)PAGE_MASK, (unsigned)at & PAGE_MASK, a->size, write, kind, g, emit_pos(e));
        }
        if (g && !made) {
            emit_store_cpu(e, BT_OFF(bt.group) + 8 * g->slot, BT_T2);
            g->made = true;
        }
        t->in_t2 = a->group;
        *m = (struct recode_mem){.base = BT_T2, .index = REG_NONE, .disp = at & (int32_t)PAGE_MASK};
        return;
    }
    if (g && g->made) {
        bool by_index = g->index != REG_NONE;

        if (t->in_t2 != a->group)
            emit_load_cpu(e, BT_T2, g->base == RSP && !by_index ? BT_OFF(bt.sp_addend)
                                                               : BT_OFF(bt.group) + 8 * g->slot);
        t->in_t2 = a->group;
        *m = (struct recode_mem){.base = t->home[g->base], .index = BT_T2, .disp = a->disp};
        if (by_index) {
            access_address(t, BT_T0);
            *m = (struct recode_mem){.base = BT_T0, .index = BT_T2};
        }
        return;
    }
    fl_release(t);
    retry = emit_pos(e);
    if (g ? g->base == RSP && g->index == REG_NONE : stack && t->s->how != HOW_LEAVE) {
        /* Pages of stacks are written sooner or later. */
        kind = a->write ? BT_SITE_WRITE : BT_SITE_EARLY;
        lookup_stack(t, g ? g->min : a->disp, last, kind, g, adj, retry);
        if (g) {
            g->made = true;
            t->in_t2 = a->group;
        }
        *m = (struct recode_mem){.base = t->home[RSP], .index = BT_T2, .disp = a->disp};
        return;
    }
    if (g) {
        bool by_index = g->index != REG_NONE;

        if (by_index)
            access_address(t, BT_T0);
        lookup(t, by_index ? BT_T0 : t->home[g->base], by_index ? g->min - a->disp : g->min, last,
               write, kind, true, adj, retry);
        emit_load(e, BT_T2, BT_T1, offsetof(struct tlb_entry, addend));
        emit_store_cpu(e, BT_OFF(bt.group) + 8 * g->slot, BT_T2);
        g->made = true;
        t->in_t2 = a->group;
        *m = by_index ? (struct recode_mem){.base = BT_T0, .index = BT_T2}
                      : (struct recode_mem){.base = t->home[g->base], .index = BT_T2, .disp = a->disp};
        return;
    }
    base = stack ? RBP : base_of(t, t->s, 0);
    if (base >= 0 && (int64_t)a->disp + 64 == (int32_t)(a->disp + 64)) {
        lookup(t, t->home[base], a->disp, last, write, kind, false, adj, retry);
        emit_load(e, BT_T2, BT_T1, offsetof(struct tlb_entry, addend));
        *m = (struct recode_mem){.base = t->home[base], .index = BT_T2, .disp = a->disp};
        return;
    }
    access_address(t, BT_T0);
    lookup(t, BT_T0, 0, last, write, kind, false, adj, retry);
    *m = (struct recode_mem){.base = BT_T0, .index = REG_NONE};
    emit_op_m(e, 0x03, 1, BT_T0, BT_T1, offsetof(struct tlb_entry, addend)); /* add */
}
