/* Which flags the manual leaves undefined where a case ends: a data flow over its items. */
#include "gen.h"

struct flow {
    const struct test_case *t;
    uint64_t at[ITEMS_MAX + 1]; /* undefined before the item */
    bool reached[ITEMS_MAX + 1];
    bool called[ITEMS_MAX + 1]; /* returns and indirect jumps may lead here */
    bool changed;
};

static void reach(struct flow *f, unsigned k, uint64_t undef)
{
    if (f->reached[k] && !(undef & ~f->at[k]))
        return;
    f->reached[k] = true;
    f->at[k] |= undef;
    f->changed = true;
}

static void lead(struct flow *f, unsigned k)
{
    f->changed |= !f->called[k];
    f->called[k] = true;
}

static void reach_called(struct flow *f, uint64_t undef)
{
    for (unsigned n = 0; n <= f->t->n; n++)
        if (f->called[n])
            reach(f, n, undef);
}

static void pass(struct flow *f, unsigned k)
{
    const struct item *it = &f->t->item[k];
    uint64_t out;
    struct insn i;

    if (!case_decode(f->t, k, &i))
        return;
    /* What an instruction reads as well it may leave alone. */
    out = (f->at[k] & ~(uint64_t)(i.row->fl_write & ~i.row->fl_read)) | i.row->fl_undef;
    if (it->fix && it->fix != FIX_IMM) {
        if (i.id == INSN_LEA)
            lead(f, (unsigned)it->target);
        else
            reach(f, (unsigned)it->target, out);
    }
    switch (i.id) {
    case INSN_CALL:
        lead(f, k + 1);
        break;
    case INSN_CALL_IND:
        lead(f, k + 1);
        reach_called(f, out);
        break;
    case INSN_RET:
    case INSN_JMP_IND:
        reach_called(f, out);
        return;
    case INSN_JMP:
        return;
    default:
        break;
    }
    reach(f, k + 1, out);
}

uint64_t gen_undefined(const struct test_case *t, uint64_t rip)
{
    struct flow f = {.t = t};
    uint64_t all = 0, here = CODE_ADDR + t->start;
    struct insn i;

    reach(&f, 0, 0);
    while (f.changed) {
        f.changed = false;
        for (unsigned k = 0; k < t->n; k++)
            if (f.reached[k])
                pass(&f, k);
    }
    for (unsigned k = 0; k <= t->n; k++) {
        if (here == rip && f.reached[k])
            return f.at[k];
        here += k < t->n ? t->item[k].len : 0;
    }
    /* It went where its code does not lead by itself. */
    for (unsigned k = 0; k < t->n; k++)
        if (case_decode(t, k, &i))
            all |= i.row->fl_undef;
    return all;
}
