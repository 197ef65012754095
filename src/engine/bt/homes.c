/*
 * Registers that change places for the length of a block: a guest register without a home that the block uses much gets
 * the home of one that it uses little, which is in cpu.s.gpr meanwhile. That is done behind the ways in, and undone
 * before everything that leaves; whatever is outside of blocks never notices. Links between blocks with the same swaps
 * (code.c) do neither, so a loop keeps its registers.
 */
#include "engine/bt/tr.h"

/* What swaps must save in loads and stores to be worth theirs: if they are done once for many rounds, and if not. */
#define WORTH_LOOP 2
#define WORTH_ONCE 9

/* RSP, and those that are scratch or have nobody's home, never take part. */
static const uint8_t lenders[] = {R14, R13, R12, RBP, RBX, RDI, RSI, RDX, RAX};

static void count(uint8_t weight[16], unsigned r, unsigned n)
{
    if (r < 16)
        weight[r] = (uint8_t)MIN(weight[r] + n, 255u);
}

/* Loads and stores if the register had no home; a base also takes longer to look up. */
static void count_step(uint8_t weight[16], const struct step *s)
{
    const struct insn *i = &s->i;

    if (s->how <= HOW_HELP || s->how == HOW_NOP)
        return;
    for (unsigned k = 0; k < i->nops; k++) {
        const struct opnd *o = &i->op[k];

        if (o->kind == OP_REG && (o->cls == RC_GPR || o->cls == RC_GPRH))
            count(weight, o->reg, o->read + o->write);
    }
    if (s->mem.used || s->how == HOW_LEA) {
        count(weight, i->mem.base, s->how == HOW_LEA ? 1 : 2);
        count(weight, i->mem.index, 1);
    }
}

/* Registers that must stay where they are, as a set. */
static uint16_t fixed(const struct step *s)
{
    const struct insn *i = &s->i;
    uint16_t set = BIT(RSP);

    if (s->how == HOW_LEAVE)
        set |= BIT(RBP);
    if (s->how != HOW_COPY)
        return set;
    set |= (uint16_t)recode_hidden(i) | copy_writes(i);
    for (unsigned k = 0; k < i->nops; k++)
        if (i->op[k].kind == OP_REG &&
            (i->op[k].cls == RC_GPRH || (i->op[k].cls == RC_GPR && i->slot[k] == SLOT_IMPLICIT)))
            set |= (uint16_t)BIT(i->op[k].reg);
    return set;
}

/* Does a branch of the block lead to its begin? */
static bool loops(const struct tr *t)
{
    for (unsigned k = 0; k < t->n; k++) {
        const struct step *s = &t->step[k];

        if ((s->how == HOW_JCC || s->how == HOW_JMP) &&
            (int64_t)s->off + s->i.len + (int64_t)s->i.imm == t->step[0].off)
            return true;
    }
    return false;
}

static bool all_can(const struct tr *t)
{
    for (unsigned k = 0; k < t->n; k++)
        if (t->step[k].how == HOW_COPY && !copy_can(t, &t->step[k].i))
            return false;
    return true;
}

static void apply(struct tr *t, const struct bt_swap *swap, unsigned n)
{
    struct tblock *b = t->t;

    memcpy(t->home, bt_home, sizeof(t->home));
    for (unsigned k = 0; k < n; k++) {
        b->swap[k] = swap[k];
        t->home[swap[k].in] = bt_home[swap[k].out];
        t->home[swap[k].out] = BT_SPILLED;
    }
    b->nswap = (uint8_t)n;
}

/* Fills in the best swaps for these weights, sorted by `in` so that equal ones are the same. */
static unsigned best(const uint8_t weight[16], uint16_t stay, int worth, struct bt_swap swap[BT_SWAPS_MAX])
{
    unsigned n = 0;

    while (n < BT_SWAPS_MAX) {
        unsigned in = REG_NONE, out = REG_NONE, k;

        for (unsigned r = 0; r < 16; r++)
            if (bt_home[r] == BT_SPILLED && !(stay & BIT(r)) && (in == REG_NONE || weight[r] > weight[in]))
                in = r;
        for (k = 0; k < ARRAY_LEN(lenders); k++)
            if (!(stay & BIT(lenders[k])) && (out == REG_NONE || weight[lenders[k]] < weight[out]))
                out = lenders[k];
        if (in == REG_NONE || out == REG_NONE || weight[in] - weight[out] < worth)
            break;
        for (k = n++; k > 0 && swap[k - 1].in > in; k--)
            swap[k] = swap[k - 1];
        swap[k] = (struct bt_swap){.in = (uint8_t)in, .out = (uint8_t)out};
        stay |= (uint16_t)(BIT(in) | BIT(out));
    }
    return n;
}

/* Are from's swaps no loss here? */
static bool suits(const uint8_t weight[16], uint16_t stay, const struct tblock *from)
{
    int gain = 0;

    for (unsigned k = 0; k < from->nswap; k++) {
        if (stay & BIT(from->swap[k].out))
            return false;
        gain += weight[from->swap[k].in] - weight[from->swap[k].out];
    }
    return gain >= 0;
}

void homes_choose(struct tr *t, const struct tblock *from)
{
    uint8_t weight[16] = {0};
    uint16_t stay = 0;
    struct bt_swap swap[BT_SWAPS_MAX];

    for (unsigned k = 0; k < t->n; k++) {
        count_step(weight, &t->step[k]);
        stay |= fixed(&t->step[k]);
    }
    if (from && from->nswap && suits(weight, stay, from))
        apply(t, from->swap, from->nswap);
    else
        apply(t, swap, best(weight, stay, loops(t) ? WORTH_LOOP : WORTH_ONCE, swap));
    if (t->t->nswap && !all_can(t))
        apply(t, NULL, 0);
}

void homes_like(struct tr *t, const struct tblock *other) { apply(t, other->swap, other->nswap); }

void homes_enter(struct tr *t)
{
    const struct tblock *b = t->t;

    for (unsigned k = 0; k < b->nswap && !t->swapped; k++) {
        unsigned h = bt_home[b->swap[k].out];

        emit_store_cpu(t->e, BT_OFF_GPR(b->swap[k].out), h);
        emit_load_cpu(t->e, h, BT_OFF_GPR(b->swap[k].in));
    }
    t->swapped = b->nswap != 0;
}

void homes_leave(struct tr *t)
{
    const struct tblock *b = t->t;

    for (unsigned k = 0; k < b->nswap && t->swapped; k++) {
        unsigned h = bt_home[b->swap[k].out];

        emit_store_cpu(t->e, BT_OFF_GPR(b->swap[k].in), h);
        emit_load_cpu(t->e, h, BT_OFF_GPR(b->swap[k].out));
    }
    t->swapped = false;
}

bool homes_same(const struct tblock *a, const struct tblock *b)
{
    return a->nswap == b->nswap && !memcmp(a->swap, b->swap, a->nswap * sizeof(*a->swap));
}
