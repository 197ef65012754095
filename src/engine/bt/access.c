/* Guest memory: soft-TLB lookups, and which accesses share one. */
#include "engine/bt/tr.h"

/* Bytes that the accesses of a group may span: more would often not fit in a page. */
#define GROUP_SPAN 512
/* And tables: as much as a byte can choose from. */
#define TABLE_SPAN 2048
/* Displacements up to here do not overflow when little is added. */
#define DISP_MAX (1 << 30)

/* Is the address of the step's memory operand made of registers, without a segment's base? */
static bool plain_address(const struct step *s)
{
    const struct insn_mem *m = &s->i.mem;

    if (m->base >= 16 || m->seg >= FS || s->i.addrsize != 8)
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
    return plain_address(s) && s->i.mem.index == REG_NONE && t->home[s->i.mem.base] != BT_SPILLED ? s->i.mem.base : -1;
}

/* An access with an index may share its translation with those of the same base, index and scale. */
static bool indexed(const struct tr *t, const struct step *s, unsigned which)
{
    return !which && plain_address(s) && s->i.mem.index != REG_NONE && t->home[s->i.mem.base] != BT_SPILLED;
}

/* Does the address need a scratch register? */
static bool by_address(const struct tr *t, const struct group *g)
{
    return g->index != REG_NONE || t->home[g->base] == BT_SPILLED;
}

static bool by_stack(const struct group *g) { return g->base == RSP && g->index == REG_NONE; }

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
    if (s->how == HOW_LEA) {
        const struct insn_mem *m = &i->mem;

        *by = (int32_t)m->disp;
        return m->base == r && i->op[0].reg == r && m->index == REG_NONE && i->opsize == 8 && i->addrsize == 8 &&
               (int64_t)m->disp == (int16_t)m->disp;
    }
    if (s->how != HOW_COPY || i->op[0].kind != OP_REG || i->op[0].cls != RC_GPR || i->op[0].reg != r ||
        i->op[0].size != 8)
        return false;
    switch (i->id) {
    case INSN_INC:
    case INSN_DEC:
        *by = i->id == INSN_INC ? 1 : -1;
        return true;
    case INSN_ADD:
    case INSN_SUB:
        *by = (int32_t)(i->id == INSN_ADD ? (int64_t)i->imm : -(int64_t)i->imm);
        return i->op[1].kind == OP_IMM && (int64_t)i->imm == (int16_t)i->imm;
    default:
        return false;
    }
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
    uint8_t table;      /* one that is a table */
    int16_t limit[16];  /* the most that registers can hold, as far as it is known and little, or -1 */
    int32_t delta[16];  /* what constants were added to a base since its group began */
    uint16_t exits;     /* ways out of the block so far */
    bool loop;          /* step tr.back leads to the block's begin, and C is not called before */
    bool inside;        /* not behind it yet */
    int32_t sum[16];    /* what constants a round adds to a register */
    uint16_t odd;       /* registers that change in other ways */
};

/* Looks for the first branch to the block's begin, and what a round until there does to registers. */
static void analyse_loop(struct analysis *an)
{
    struct tr *t = an->t;

    t->back = 0;
    for (; t->back < t->n; t->back++) {
        const struct step *s = &t->step[t->back];

        if (s->how <= HOW_HELP || t->b->gpa2 != ~0ull)
            return;
        if ((s->how == HOW_JCC || s->how == HOW_JMP) &&
            (int64_t)s->off + s->i.len + (int64_t)s->i.imm == t->step[0].off)
            break;
        for (unsigned r = 0; r < 16; r++) {
            int32_t by;

            if (!(s->writes & BIT(r)))
                continue;
            if (constant_change(s, r, &by))
                an->sum[r] += by;
            else
                an->odd |= (uint16_t)BIT(r);
        }
    }
    an->loop = t->back < t->n;
}

/* May later rounds of the loop go by what the first one has found? Then where they have left its page is one comparison. */
static bool slides(const struct analysis *an, struct group *g)
{
    int64_t slide = 0;

    if (!g->inside)
        return false;
    if (g->base != REG_RIP) {
        if ((an->odd & BIT(g->base)) || (g->index != REG_NONE && (an->odd & BIT(g->index))))
            return false;
        slide = an->sum[g->base] + (g->index == REG_NONE ? 0 : (int64_t)an->sum[g->index] * (1 << g->scale));
    }
    if (slide <= -(int64_t)PAGE_SIZE || slide >= (int64_t)PAGE_SIZE || g->min < -DISP_MAX || g->end > DISP_MAX)
        return false;
    g->slide = (int16_t)slide;
    g->hosted = g->base != REG_RIP && by_address(an->t, g) && !an->sum[g->base];
    return true;
}

/* Adds an access to group *open, or begins another one there. */
static void join(struct analysis *an, struct use *a, uint8_t *open, const struct group *like,
                 int32_t *delta)
{
    struct tr *t = an->t;
    struct group *g = *open == GROUP_NONE ? NULL : &t->group[*open];
    int32_t lo = a->disp + *delta, hi = lo + a->size;

    if (!g || t->b->nogroup || MAX(g->end, hi) - MIN(g->min, lo) > GROUP_SPAN ||
        /* A store that may not come must not decide how loads before it are translated. */
        (a->write && !g->write && g->base != RSP && g->exits != an->exits)) {
        if (t->ngroup == GROUPS_MAX) {
            *open = GROUP_NONE; /* a lone access may move the stack's page under those before */
            return;
        }
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
        g->inside = an->inside;
    }
    g->min = MIN(g->min, lo);
    g->end = MAX(g->end, hi);
    g->write |= a->write;
    g->members++;
    a->group = *open;
}

/* In a loop: an access by an index that cannot be large, as tables of characters, checksums and ciphers have it. All of
 * the table is looked up; it may be that it does not lie in one page. */
static bool join_table(struct analysis *an, struct use *a, const struct insn_mem *m)
{
    struct tr *t = an->t;
    struct group *g = an->table == GROUP_NONE ? NULL : &t->group[an->table];
    int32_t lo = (int32_t)m->disp, hi;

    if (a->write || m->index == REG_NONE || an->limit[m->index] < 0 || lo < -DISP_MAX || lo > DISP_MAX ||
        an->sum[m->base] || (an->odd & BIT(m->base)))
        return false;
    hi = lo + an->limit[m->index] * (1 << m->scale) + a->size;
    if (!g || g->base != m->base || MAX(g->end, hi) - MIN(g->min, lo) > TABLE_SPAN) {
        if (t->ngroup == GROUPS_MAX)
            return false;
        an->table = (uint8_t)t->ngroup;
        g = &t->group[t->ngroup++];
        *g = (struct group){.base = m->base, .index = m->index, .min = lo, .end = hi, .inside = true, .table = true};
    }
    g->min = MIN(g->min, lo);
    g->end = MAX(g->end, hi);
    g->members++;
    a->group = an->table;
    return true;
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
        t->group[t->ngroup++] = (struct group){.base = REG_RIP, .index = REG_NONE, .min = page, .exits = an->exits, .inside = an->inside};
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
    if (!a->used || (an->t->b->nogroup && !an->inside))
        return;
    if (in_page(s, which, &disp)) {
        join_page(an, a, disp);
        return;
    }
    if (an->inside && !which && plain_address(s) && join_table(an, a, m))
        return;
    base = base_of(an->t, s, which);
    if (base >= 0) {
        join(an, a, &an->open[base], &(struct group){.base = (uint8_t)base, .index = REG_NONE},
             &an->delta[base]);
    } else if (indexed(an->t, s, which) || (an->inside && !which && plain_address(s))) {
        const struct group *g = an->with_index == GROUP_NONE ? NULL : &an->t->group[an->with_index];
        int32_t none = 0;

        if (g && (g->base != m->base || g->index != m->index || g->scale != m->scale))
            an->with_index = GROUP_NONE;
        join(an, a, &an->with_index,
             &(struct group){.base = m->base, .index = m->index, .scale = m->scale}, &none);
    }
}

/* The most that r can hold behind the step, or -1: it is not known. */
static int16_t limit_of(const struct step *s, unsigned r)
{
    const struct insn *i = &s->i;
    const struct opnd *o = &i->op[0];

    if (s->how != HOW_COPY || o->kind != OP_REG || o->cls != RC_GPR || o->reg != r || o->size < 4)
        return -1;
    if (i->id == INSN_MOVZX && i->op[1].size == 1)
        return UINT8_MAX;
    if (i->id == INSN_AND && i->op[1].kind == OP_IMM && (uint64_t)i->imm <= UINT8_MAX)
        return (int16_t)i->imm;
    return -1;
}

static void analyse_changes(struct analysis *an, const struct step *s)
{
    const struct group *g = an->with_index == GROUP_NONE ? NULL : &an->t->group[an->with_index];

    if (g && (s->writes & (BIT(g->base) | (g->index == REG_NONE ? 0 : BIT(g->index)))))
        an->with_index = GROUP_NONE;
    for (unsigned r = 0; r < 16; r++) {
        int32_t by;

        if (!(s->writes & BIT(r)))
            continue;
        an->limit[r] = limit_of(s, r);
        if (an->table != GROUP_NONE && an->t->group[an->table].base == r)
            an->table = GROUP_NONE;
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

static void drop(const struct tr *t, struct use *a)
{
    if (a->group != GROUP_NONE && !t->group[a->group].keep)
        a->group = GROUP_NONE;
}

/* Does all in the loop that goes by the stack's page go by one group, and RSP return to where it was? Then the first
 * round has found that page for all. */
static bool one_stack(const struct analysis *an)
{
    const struct tr *t = an->t;
    unsigned n = 0;

    if (!an->loop || an->sum[RSP] || (an->odd & BIT(RSP)))
        return false;
    for (unsigned k = 0; k < t->back; k++)
        if (t->step[k].stack.used && t->step[k].stack.group == GROUP_NONE)
            return false;
    for (unsigned k = 0; k < t->ngroup; k++)
        n += t->group[k].inside && by_stack(&t->group[k]);
    return n == 1;
}

/* Which groups have a slot, and which have been looked up before the block begins. */
static void give_slots(const struct analysis *an)
{
    struct tr *t = an->t;
    unsigned slots = 0, rounds = 0;
    bool stack = one_stack(an);

    for (unsigned k = 0; k < t->ngroup; k++) {
        struct group *g = &t->group[k];

        g->keep = true;
        if (by_stack(g)) { /* cheap even alone */
            g->made = stack && g->inside && t->t->round;
            t->t->loops |= stack;
        } else if (rounds < BT_ROUNDS && (g->table || slides(an, g))) {
            g->round = true;
            g->slot = (uint8_t)rounds++;
            g->made = !g->slide && t->t->round;
        } else if (g->members > 1 && slots < BT_GROUPS) {
            g->slot = (uint8_t)slots++;
        } else {
            g->keep = false;
        }
    }
    t->t->loops |= rounds != 0;
}

void access_analyse(struct tr *t)
{
    struct analysis an = {.t = t, .with_index = GROUP_NONE, .table = GROUP_NONE};

    memset(an.open, GROUP_NONE, sizeof(an.open));
    memset(an.page, GROUP_NONE, sizeof(an.page));
    memset(an.limit, 0xff, sizeof(an.limit));
    t->ngroup = 0;
    analyse_loop(&an);
    for (unsigned k = 0; k < t->n; k++) {
        an.inside = an.loop && k < t->back;
        for (unsigned which = 0; which < 2; which++)
            analyse_use(&an, &t->step[k], which);
        analyse_changes(&an, &t->step[k]);
    }
    give_slots(&an);
    for (unsigned k = 0; k < t->n; k++) {
        drop(t, &t->step[k].mem);
        drop(t, &t->step[k].stack);
    }
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

static struct cold *cold_access(struct tr *t, uint32_t from, enum bt_site_kind kind, bool group, uint16_t adj,
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
    return cold;
}

static unsigned tag_offset(bool write)
{
    return write ? offsetof(struct tlb_entry, wtag) : offsetof(struct tlb_entry, rtag);
}

/* The `last` + 1 bytes from base + disp: T1 = TLB entry, T2 = the page. Returns the rel32 of the branch taken when the
 * TLB does not have it. */
static uint32_t probe(struct tr *t, unsigned base, int32_t disp, unsigned last, bool write)
{
    struct emit *e = t->e;

    if (disp)
        emit_lea(e, 1, BT_T1, base, REG_NONE, 0, disp);
    emit_rorx(e, BT_T1, disp ? BT_T1 : base, PAGE_SHIFT - 5);
    emit_alu_ri(e, ALU_AND, 0, BT_T1, (TLB_ENTRIES - 1) * 32);
    emit_op_cpu(e, 0x03, 1, BT_T1, BT_OFF(tlb)); /* add */
    emit_lea(e, 1, BT_T2, base, REG_NONE, 0, disp + (int32_t)last);
    emit_alu_ri(e, ALU_AND, 1, BT_T2, -(int32_t)PAGE_SIZE);
    emit_op_m(e, 0x3b, 1, BT_T2, BT_T1, (int32_t)tag_offset(write)); /* cmp */
    return emit_jcc(e, CC_NE, 0);
}

/* The same, or off to the cold path, which wants the address in T0 and makes it if base is another register. Destroys
 * EFLAGS. */
static void lookup(struct tr *t, unsigned base, int32_t disp, unsigned last, bool write,
                   enum bt_site_kind kind, bool group, uint16_t adj, uint32_t retry)
{
    struct cold *c = cold_access(t, probe(t, base, disp, last, write), kind, group, adj, last + 1, retry);

    c->address = base != BT_T0 || disp;
    c->base = (uint8_t)base;
    c->disp = disp;
}

_Static_assert(sizeof(struct tlb_entry) == 32, "the lookups' arithmetic");

/* ---- loops: lookups of later rounds ---- */

static int32_t slot_addend(const struct group *g)
{
    if (g->round)
        return BT_OFF(bt.round) + (int32_t)(g->slot * sizeof(struct bt_round) + offsetof(struct bt_round, addend));
    return by_stack(g) ? BT_OFF(bt.sp_addend) : BT_OFF(bt.group) + 8 * g->slot;
}

static int32_t slot_bound(const struct group *g)
{
    return BT_OFF(bt.round) + (int32_t)(g->slot * sizeof(struct bt_round) + offsetof(struct bt_round, bound));
}

/* T0 = the host address of the step's operand, of a group that is hosted: T2 has that of its base register. T1 is
 * used. */
static void host_address(struct tr *t)
{
    const struct insn_mem *m = &t->s->i.mem;

    emit_lea(t->e, 1, BT_T0, BT_T2, m->index == REG_NONE ? REG_NONE : tr_reg(t, m->index, BT_T1), m->scale, (int32_t)m->disp);
}

/* After a lookup for `base`, a register, or T0 with the step's address, `min` bytes from the group's first: leaves for
 * other members and the next round what they go by, and in T2 too. T0 becomes a host address if the group is hosted. */
static void leave_addend(struct tr *t, const struct group *g, int32_t min)
{
    struct emit *e = t->e;

    if (g->slide) {
        if (g->hosted)
            emit_op_m(e, 0x03, 1, BT_T2, BT_T1, offsetof(struct tlb_entry, addend)); /* add */
        emit_lea(e, 1, BT_T2, BT_T2, REG_NONE, 0, g->slide > 0 ? (int32_t)PAGE_SIZE - (min + (g->end - g->min)) : -min);
        emit_store_cpu(e, slot_bound(g), BT_T2);
    }
    emit_load(e, BT_T2, BT_T1, offsetof(struct tlb_entry, addend));
    if (g->hosted && t->home[g->base] == BT_SPILLED)
        emit_op_cpu(e, 0x03, 1, BT_T2, BT_OFF_GPR(g->base)); /* add */
    else if (g->hosted)
        emit_alu_rr(e, ALU_ADD, 1, BT_T2, t->home[g->base]);
    emit_store_cpu(e, slot_addend(g), BT_T2);
    if (g->hosted)
        host_address(t);
}

/* In another round: compares with what the last one has left. The comparison is signed: no page is where that
 * overflows, and a register that comes over the end of the address space is on the wrong side. */
static void lookup_again(struct tr *t, const struct use *a, unsigned base, int32_t min, enum bt_site_kind kind,
                         uint16_t adj, uint32_t retry)
{
    struct emit *e = t->e;
    const struct group *g = &t->group[a->group];
    struct cold *c;

    if (g->hosted) {
        emit_load_cpu(e, BT_T2, slot_addend(g));
        host_address(t);
    }
    emit_op_cpu(e, 0x3b, 1, base, slot_bound(g)); /* cmp */
    c = cold_access(t, emit_jcc(e, g->slide > 0 ? CC_G : CC_L, 0), kind, g->members > 1, adj,
                    (unsigned)(g->end - g->min), retry);
    c->kind = COLD_ROUND;
    c->address = base != BT_T0 || min;
    c->base = (uint8_t)base;
    c->disp = min;
    c->group = a->group;
    c->step = t->s;
    if (!g->hosted)
        emit_load_cpu(e, BT_T2, slot_addend(g));
    c->back = emit_pos(e);
}

uint32_t access_again(struct tr *t, const struct cold *c)
{
    const struct group *g = &t->group[c->group];
    uint32_t none;

    t->s = c->step;
    if (g->table) {
        access_address(t, BT_T0);
        none = probe(t, BT_T0, 0, t->bt->site[c->site].span - 1u, false);
        emit_op_m(t->e, 0x03, 1, BT_T0, BT_T1, offsetof(struct tlb_entry, addend)); /* add */
        emit_jmp(t->e, c->back);
        return none;
    }
    if (g->hosted)
        access_address(t, BT_T0);
    none = probe(t, c->base, c->disp, (unsigned)(g->end - g->min - 1), g->write);
    leave_addend(t, g, c->disp);
    emit_jmp(t->e, c->back);
    return none;
}

/* T2 = host address of the page `page` bytes from bt.vpage, for an access of `size` bytes at `off` there. */
static void lookup_page(struct tr *t, int32_t page, unsigned off, unsigned size, bool write, enum bt_site_kind kind,
                        bool group, uint32_t retry)
{
    struct emit *e = t->e;
    struct cold *c;

    emit_load_cpu(e, BT_T2, BT_OFF(bt.vpage));
    if (page)
        emit_lea(e, 1, BT_T2, BT_T2, REG_NONE, 0, page);
    emit_rorx(e, BT_T1, BT_T2, PAGE_SHIFT - 5);
    emit_alu_ri(e, ALU_AND, 0, BT_T1, (TLB_ENTRIES - 1) * 32);
    emit_op_cpu(e, 0x03, 1, BT_T1, BT_OFF(tlb)); /* add */
    emit_op_m(e, 0x3b, 1, BT_T2, BT_T1, (int32_t)tag_offset(write)); /* cmp */
    c = cold_access(t, emit_jcc(e, CC_NE, 0), kind, group, 0, size, retry);
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
    c = cold_access(t, emit_jcc(e, CC_A, 0), kind, group, adj, last + 1, retry);
    c->address = true;
    c->base = t->home[RSP];
    c->disp = min;
    t->bt->site[c->site].stack = true;
    emit_load_cpu(e, BT_T2, BT_OFF(bt.sp_addend));
}

static void translate_in_page(struct tr *t, const struct use *a, int32_t at, enum bt_site_kind kind, bool write)
{
    struct emit *e = t->e;
    struct group *g = a->group == GROUP_NONE ? NULL : &t->group[a->group];
    bool made = g && g->made;

    if (made && t->in_t2 != a->group) {
        emit_load_cpu(e, BT_T2, slot_addend(g));
    } else if (!made) {
        fl_release(t);
        lookup_page(t, at & ~(int32_t)PAGE_MASK, (unsigned)at & PAGE_MASK, a->size, write, kind, g, emit_pos(e));
    }
    if (g && !made) {
        emit_store_cpu(e, slot_addend(g), BT_T2);
        g->made = true;
    }
    t->in_t2 = a->group;
}

/* The host's address of a table's base into its slot, or 0 when the table does not lie in the page T2 of the TLB's entry
 * T1. Both are used. */
static void leave_table(struct tr *t, const struct group *g)
{
    struct emit *e = t->e;
    uint32_t fits;

    emit_op_m(e, 0x03, 1, BT_T2, BT_T1, offsetof(struct tlb_entry, addend)); /* add */
    emit_load(e, BT_T1, BT_T1, offsetof(struct tlb_entry, addend));
    if (t->home[g->base] == BT_SPILLED)
        emit_op_cpu(e, 0x03, 1, BT_T1, BT_OFF_GPR(g->base)); /* add */
    else
        emit_alu_rr(e, ALU_ADD, 1, BT_T1, t->home[g->base]);
    emit_store_cpu(e, slot_addend(g), BT_T1);
    if (g->min)
        emit_lea(e, 1, BT_T1, BT_T1, REG_NONE, 0, g->min);
    emit_alu_rr(e, ALU_SUB, 1, BT_T1, BT_T2);
    emit_alu_ri(e, ALU_CMP, 1, BT_T1, (int32_t)PAGE_SIZE - (g->end - g->min));
    fits = emit_jcc_short(e, CC_BE);
    emit_op_cpu(e, 0xc7, 1, 0, slot_addend(g)); /* mov, 0 */
    emit32(e, 0);
    emit_fix_short(e, fits);
}

/* T0 = the host address of the step's operand, which is in a table. */
static void translate_in_table(struct tr *t, const struct use *a)
{
    struct emit *e = t->e;
    struct group *g = &t->group[a->group];
    uint32_t retry;

    fl_release(t);
    retry = emit_pos(e);
    if (g->made) {
        struct cold *c;

        emit_load_cpu(e, BT_T2, slot_addend(g));
        host_address(t);
        emit_test_rr(e, BT_T2);
        c = cold_access(t, emit_jcc(e, CC_E, 0), BT_SITE_READ, false, 0, a->size, retry);
        c->kind = COLD_ROUND;
        c->base = BT_T0;
        c->group = a->group;
        c->step = t->s;
        c->back = emit_pos(e);
    } else {
        access_address(t, BT_T0);
        lookup(t, BT_T0, 0, a->size - 1u, false, BT_SITE_READ, false, 0, retry);
        emit_op_m(e, 0x03, 1, BT_T0, BT_T1, offsetof(struct tlb_entry, addend)); /* add */
        leave_table(t, g);
        g->made = true;
    }
}

/* Through the base register alone, with a displacement that has room for the size of an access? */
static bool direct(const struct tr *t, const struct use *a, bool stack)
{
    return (stack || base_of(t, t->s, 0) >= 0) && (int64_t)a->disp + 64 == (int32_t)(a->disp + 64);
}

void access_translate(struct tr *t, const struct use *a, bool stack, struct recode_mem *m)
{
    struct emit *e = t->e;
    struct group *g = a->group == GROUP_NONE ? NULL : &t->group[a->group];
    unsigned last = g ? (unsigned)(g->end - g->min - 1) : a->size - 1u;
    bool write = g ? g->write : a->write;
    enum bt_site_kind kind = a->write ? BT_SITE_WRITE : write ? BT_SITE_EARLY : BT_SITE_READ;
    uint16_t adj = (uint16_t)(g ? a->disp - g->min : 0);
    unsigned base;
    uint32_t retry;
    int32_t at, min;

    if (in_page(t->s, stack, &at)) {
        translate_in_page(t, a, at, kind, write);
        *m = (struct recode_mem){.base = BT_T2, .index = REG_NONE, .disp = at & (int32_t)PAGE_MASK};
        return;
    }
    if (g && g->table) {
        translate_in_table(t, a);
        *m = (struct recode_mem){.base = BT_T0, .index = REG_NONE};
        return;
    }
    if (g && g->made) {
        if (t->in_t2 != a->group)
            emit_load_cpu(e, BT_T2, slot_addend(g));
        t->in_t2 = a->group;
        if (g->hosted) {
            host_address(t);
            *m = (struct recode_mem){.base = BT_T0, .index = REG_NONE};
        } else if (by_address(t, g)) {
            access_address(t, BT_T0);
            *m = (struct recode_mem){.base = BT_T0, .index = BT_T2};
        } else {
            *m = (struct recode_mem){.base = t->home[g->base], .index = BT_T2, .disp = a->disp};
        }
        return;
    }
    fl_release(t);
    retry = emit_pos(e);
    if (g ? by_stack(g) : stack && t->s->how != HOW_LEAVE) {
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
    if (g ? !by_address(t, g) : direct(t, a, stack)) {
        base = t->home[g ? g->base : stack ? RBP : (unsigned)base_of(t, t->s, 0)];
        min = g ? g->min : a->disp;
        *m = (struct recode_mem){.base = (uint8_t)base, .index = BT_T2, .disp = a->disp};
    } else {
        if (!g || !g->hosted || !t->t->round)
            access_address(t, BT_T0);
        base = BT_T0;
        min = g ? g->min - a->disp : 0;
        *m = (struct recode_mem){.base = BT_T0, .index = g && !g->hosted ? BT_T2 : REG_NONE};
    }
    if (g && g->round && t->t->round) {
        lookup_again(t, a, base, min, kind, adj, retry);
    } else {
        lookup(t, base, min, last, write, kind, g && g->members > 1, adj, retry);
        if (g)
            leave_addend(t, g, min);
        else if (base == BT_T0)
            emit_op_m(e, 0x03, 1, BT_T0, BT_T1, offsetof(struct tlb_entry, addend)); /* add */
        else
            emit_load(e, BT_T2, BT_T1, offsetof(struct tlb_entry, addend));
    }
    if (g) {
        g->made = true;
        t->in_t2 = a->group;
    }
}
