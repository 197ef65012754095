/* Lockstep checking: comparing, and the report of what differs (check.h). */
#include "engine/bt/check.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/interp/report.h"

#define LOOKS 4 /* how often the interpreter runs a block to agree with the translation */

struct check {
    struct dry *dry;
    struct dry_point real; /* what the translation did */
    struct check_stats stats;
    struct report report;
};

int check_new(struct check **out, struct err *e)
{
    struct check *ck = calloc(1, sizeof(*ck));

    if (ck)
        ck->dry = dry_new();
    if (!ck || !ck->dry) {
        free(ck);
        return err_set(e, ENOMEM, "out of memory for lockstep checking");
    }
    *out = ck;
    return 0;
}

void check_free(struct check *ck)
{
    if (!ck)
        return;
    dry_free(ck->dry);
    free(ck);
}

const struct check_stats *check_stats(const struct check *ck) { return &ck->stats; }
const char *check_report(const struct check *ck) { return ck->report.text; }

/* ---- comparing ---- */

/* Flags that count: not those that may be anything, nor RF, which is set in the middle of a string
 * instruction only and cleared before the next instruction. */
static uint64_t flags_that_count(const struct dry_point *want)
{
    return ~(FL_RF | (uint64_t)want->undef);
}

/* With no interrupt waiting a translation need not keep STI's shadow. */
static bool same_regs(const struct dry_point *want, const struct dry_point *got)
{
    return want->rip == got->rip && !((want->rflags ^ got->rflags) & flags_that_count(want)) &&
           !memcmp(want->gpr, got->gpr, sizeof(got->gpr)) && want->gs_base == got->gs_base &&
           want->kernel_gs_base == got->kernel_gs_base && got->sti_shadow <= want->sti_shadow;
}

static bool same_at(const struct check *ck, const struct cpu *c, unsigned k)
{
    const struct dry *d = ck->dry;

    return same_regs(&d->point[k], &ck->real) &&
           !memcmp(dry_vec(d, &d->point[k]), (const uint8_t *)&c->s + DRY_VEC_FROM,
                   DRY_VEC_BYTES) &&
           dry_words(d, k, report_same_word, NULL);
}

/* What no instruction of a translation changes, beside what a point has. CR2 is left out: it may fault. */
struct piece {
    const char *name;
    size_t from, to;
};
static const struct piece fixed[] = {
    {"segments", offsetof(struct cpu_state, seg), offsetof(struct cpu_state, seg[GS].base)},
    {"system", offsetof(struct cpu_state, seg[GS].limit), offsetof(struct cpu_state, cr2)},
    {"control", offsetof(struct cpu_state, cr3), offsetof(struct cpu_state, kernel_gs_base)},
    {"msr", offsetof(struct cpu_state, tsc_aux), offsetof(struct cpu_state, x87)},
    {"other", offsetof(struct cpu_state, mov_ss_shadow), sizeof(struct cpu_state)},
};

static bool same_fixed(const struct check *ck, const struct cpu *c)
{
    const uint8_t *a = (const uint8_t *)&ck->dry->start, *b = (const uint8_t *)&c->s;

    for (unsigned k = 0; k < ARRAY_LEN(fixed); k++)
        if (memcmp(a + fixed[k].from, b + fixed[k].from, fixed[k].to - fixed[k].from))
            return false;
    return true;
}

/* The last point of the run that is like what the translation did, or -1. */
static int find_point(const struct check *ck, const struct cpu *c)
{
    if (ck->dry->stored && same_at(ck, c, ck->dry->n + 1))
        return (int)ck->dry->n;
    for (int k = (int)ck->dry->n; k >= 0; k--)
        if (same_at(ck, c, (unsigned)k))
            return k;
    return -1;
}

void check_begin(struct check *ck, struct cpu *c, const struct block *b, unsigned from)
{
    dry_run(ck->dry, c, b, from);
}

/* ---- the report ---- */

static void report_regs(struct check *ck, const struct dry_point *want)
{
    const struct dry_point *start = &ck->dry->point[0], *got = &ck->real;
    struct report *r = &ck->report;

    report_row(r, "rip", start->rip, want->rip, got->rip);
    report_row(r, "rflags", start->rflags, want->rflags & flags_that_count(want),
               got->rflags & flags_that_count(want));
    report_gprs(r, start->gpr, want->gpr, got->gpr);
    report_row(r, "gs", start->gs_base, want->gs_base, got->gs_base);
    if (got->sti_shadow > want->sti_shadow)
        report_row(r, "sti shadow", start->sti_shadow, want->sti_shadow, got->sti_shadow);
    report_row(r, "kernel gs", start->kernel_gs_base, want->kernel_gs_base, got->kernel_gs_base);
}

/* The point to show the differences from: one at the RIP where the translation came out, with as many
 * registers alike as possible; without one the last. */
static unsigned nearest(const struct check *ck)
{
    const struct dry *d = ck->dry;
    unsigned best = d->n, score = 0;

    for (unsigned k = 0; k <= d->n; k++) {
        const struct dry_point *p = &d->point[k];
        unsigned alike = 1;

        if (p->rip != ck->real.rip)
            continue;
        for (unsigned r = 0; r < 16; r++)
            alike += p->gpr[r] == ck->real.gpr[r];
        if (alike >= score) {
            best = k;
            score = alike;
        }
    }
    return best;
}

static void make_report(struct check *ck, const struct cpu *c)
{
    static const char *const bits[] = {"16", "32", "64"};
    static const char *const why[] = {"", "ended", "ended before an instruction that is not translated",
                                      "could not go on"};
    const struct dry *d = ck->dry;
    unsigned k = nearest(ck);
    struct report *r = &ck->report;

    r->len = 0;
    report_say(r, "translation and interpreter differ\n");
    report_say(r, "code at gpa %#llx, rip %#llx, %s-bit, CPL %u, after %llu blocks alike\n",
               (unsigned long long)d->block->gpa + d->from, (unsigned long long)d->start.rip, bits[c->bits], c->cpl,
               (unsigned long long)ck->stats.blocks);
    for (unsigned i = 0; i < d->n; i++)
        report_insn(r, &d->point[i]);
    report_say(r, "the interpreter %s at %#llx", why[d->stop], (unsigned long long)d->point[d->n].rip);
    if (d->vector != DRY_NO_FAULT)
        report_say(r, " (fault %u)", d->vector);
    report_say(r, "\nthe translation came out at %#llx\n", (unsigned long long)ck->real.rip);
    if (d->point[k].rip != ck->real.rip)
        report_say(r, "where the interpreter never was\n");
    report_say(r, "  after %2u     before           interpreter      translation\n", k);
    report_regs(ck, &d->point[k]);
    report_vec(r, (const uint8_t *)&d->start + DRY_VEC_FROM, dry_vec(d, &d->point[k]),
               (const uint8_t *)&c->s + DRY_VEC_FROM);
    report_words(r, d, k);
    for (unsigned f = 0; f < ARRAY_LEN(fixed); f++)
        report_bytes(r, fixed[f].name, (const uint8_t *)&d->start + fixed[f].from,
                     (const uint8_t *)&d->start + fixed[f].from, (const uint8_t *)&c->s + fixed[f].from,
                     fixed[f].to - fixed[f].from);
}

/* ---- the end of a block ---- */

/* The translation left in the middle of a string instruction: the interpreter has to do as many
 * elements. */
static bool in_string(const struct check *ck)
{
    const struct dry *d = ck->dry;

    for (unsigned k = 0; k <= d->n; k++)
        if (d->point[k].repeats && d->point[k].rip == ck->real.rip)
            return true;
    return false;
}

bool check_end(struct check *ck, struct cpu *c)
{
    struct dry *d = ck->dry;
    bool fixed_same;
    int k;

    x87_sync(c);
    dry_take(&ck->real, c);
    fixed_same = same_fixed(ck, c);
    k = fixed_same ? find_point(ck, c) : -1;
    for (unsigned look = 1; fixed_same && k < 0 && look < LOOKS; look++) {
        bool again = !in_string(ck);

        dry_again(d, c, again ? NULL : &ck->real);
        k = find_point(ck, c);
        if (k >= 0)
            ck->stats.raced += again;
    }
    if (k >= 0) {
        ck->stats.blocks++;
        ck->stats.insns += (unsigned)k;
        return true;
    }
    if (fixed_same && (d->stop == DRY_UNSURE || d->point[nearest(ck)].tainted)) {
        ck->stats.unsure++;
        return true;
    }
    make_report(ck, c);
    report_log(&ck->report, c->vm->trace->log);
    err_set(&c->v->error, EILSEQ, "lockstep check: translation and interpreter differ at rip %#llx",
            (unsigned long long)d->start.rip);
    return false;
}
