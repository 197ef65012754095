/* Lockstep checking: comparing, and the report of what differs (check.h). */
#include "engine/bt/check.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "engine/interp/dry.h"

#define REPORT_BYTES 16384u
#define LOOKS 4 /* how often the interpreter runs a block to agree with the translation */
#define WORDS_SHOWN 16

struct check {
    struct dry *dry;
    struct dry_point real; /* what the translation did */
    struct check_stats stats;
    size_t len; /* of report */
    char report[REPORT_BYTES];
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
const char *check_report(const struct check *ck) { return ck->report; }

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

static bool same_word(void *arg, const struct dry_word *w, uint64_t expected)
{
    uint64_t v;

    memcpy(&v, w->at, sizeof(v));
    return !((v ^ expected) & dry_bits(w->mask));
}

static bool same_at(const struct check *ck, const struct cpu *c, unsigned k)
{
    const struct dry *d = ck->dry;

    return same_regs(&d->point[k], &ck->real) &&
           !memcmp(dry_vec(d, &d->point[k]), (const uint8_t *)&c->s + DRY_VEC_FROM,
                   DRY_VEC_BYTES) &&
           dry_words(d, k, same_word, NULL);
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

static void say(struct check *ck, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void say(struct check *ck, const char *fmt, ...)
{
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vsnprintf(ck->report + ck->len, REPORT_BYTES - ck->len, fmt, ap);
    va_end(ap);
    if (n > 0)
        ck->len = MIN(ck->len + (size_t)n, (size_t)REPORT_BYTES - 1);
}

static void say_row(struct check *ck, const char *name, uint64_t before, uint64_t want,
                    uint64_t got)
{
    if (want != got)
        say(ck, "  %-12s %016llx %016llx %016llx\n", name, (unsigned long long)before,
            (unsigned long long)want, (unsigned long long)got);
}

/* In words of 8 bytes. */
static void say_bytes(struct check *ck, const char *name, const void *before, const void *want,
                      const void *got, size_t n)
{
    for (size_t k = 0; k < n; k += 8) {
        size_t some = MIN(n - k, (size_t)8);
        uint64_t v[3] = {0};
        char label[32];

        memcpy(&v[0], (const char *)before + k, some);
        memcpy(&v[1], (const char *)want + k, some);
        memcpy(&v[2], (const char *)got + k, some);
        snprintf(label, sizeof(label), "%s+%zu", name, k);
        say_row(ck, label, v[0], v[1], v[2]);
    }
}

static void say_code(struct check *ck)
{
    const struct dry *d = ck->dry;

    for (unsigned k = 0; k < d->n && d->point[k].row; k++) {
        const struct dry_point *p = &d->point[k];

        say(ck, "  %#llx: %-12s", (unsigned long long)p->rip, p->row->mnemonic);
        for (unsigned b = 0; b < p->len; b++)
            say(ck, " %02x", p->bytes[b]);
        say(ck, "\n");
    }
}

static void say_regs(struct check *ck, const struct dry_point *want)
{
    static const char *const name[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                         "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};
    const struct dry_point *start = &ck->dry->point[0], *got = &ck->real;

    say_row(ck, "rip", start->rip, want->rip, got->rip);
    say_row(ck, "rflags", start->rflags, want->rflags & flags_that_count(want),
            got->rflags & flags_that_count(want));
    for (unsigned k = 0; k < 16; k++)
        say_row(ck, name[k], start->gpr[k], want->gpr[k], got->gpr[k]);
    say_row(ck, "gs", start->gs_base, want->gs_base, got->gs_base);
    if (got->sti_shadow > want->sti_shadow)
        say_row(ck, "sti shadow", start->sti_shadow, want->sti_shadow, got->sti_shadow);
    say_row(ck, "kernel gs", start->kernel_gs_base, want->kernel_gs_base, got->kernel_gs_base);
}

static void say_vec(struct check *ck, const uint8_t *want, const struct cpu *c)
{
    static const struct {
        const char *name;
        size_t at, size;
        unsigned n;
    } part[] = {
        {"x87", offsetof(struct cpu_state, x87), sizeof(struct x87_state), 1},
        {"mxcsr", offsetof(struct cpu_state, mxcsr), 4, 1},
        {"activity", offsetof(struct cpu_state, activity), 4, 1},
        {"zmm", offsetof(struct cpu_state, zmm), 64, 32},
        {"k", offsetof(struct cpu_state, k), 8, 8},
    };
    const uint8_t *start = (const uint8_t *)&ck->dry->start, *got = (const uint8_t *)&c->s;

    for (unsigned p = 0; p < ARRAY_LEN(part); p++) {
        for (unsigned k = 0; k < part[p].n; k++) {
            size_t at = part[p].at + k * part[p].size;
            char name[16];

            if (part[p].n > 1)
                snprintf(name, sizeof(name), "%s%u", part[p].name, k);
            else
                snprintf(name, sizeof(name), "%s", part[p].name);
            say_bytes(ck, name, start + at, want + at - DRY_VEC_FROM, got + at, part[p].size);
        }
    }
}

struct words {
    struct check *ck;
    unsigned shown;
};

static bool say_word(void *arg, const struct dry_word *w, uint64_t expected)
{
    struct words *x = arg;
    uint64_t v, m = dry_bits(w->mask);
    char name[32];

    if (same_word(NULL, w, expected))
        return true;
    memcpy(&v, w->at, sizeof(v));
    snprintf(name, sizeof(name), "[%#llx]", (unsigned long long)w->gpa);
    say_row(x->ck, name, w->before & m, expected & m, v & m);
    return ++x->shown < WORDS_SHOWN;
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

static void report(struct check *ck, const struct cpu *c)
{
    static const char *const bits[] = {"16", "32", "64"};
    static const char *const why[] = {"", "ended", "ended before an instruction that is not translated",
                                      "could not go on"};
    const struct dry *d = ck->dry;
    unsigned k = nearest(ck);
    struct words words = {.ck = ck};

    ck->len = 0;
    say(ck, "translation and interpreter differ\n");
    say(ck, "code at gpa %#llx, rip %#llx, %s-bit, CPL %u, after %llu blocks alike\n",
        (unsigned long long)d->block->gpa + d->from, (unsigned long long)d->start.rip, bits[c->bits], c->cpl,
        (unsigned long long)ck->stats.blocks);
    say_code(ck);
    say(ck, "the interpreter %s at %#llx", why[d->stop], (unsigned long long)d->point[d->n].rip);
    if (d->vector != DRY_NO_FAULT)
        say(ck, " (fault %u)", d->vector);
    say(ck, "\nthe translation came out at %#llx\n", (unsigned long long)ck->real.rip);
    if (d->point[k].rip != ck->real.rip)
        say(ck, "where the interpreter never was\n");
    say(ck, "  after %2u     before           interpreter      translation\n", k);
    say_regs(ck, &d->point[k]);
    say_vec(ck, dry_vec(d, &d->point[k]), c);
    dry_words(d, k, say_word, &words);
    for (unsigned f = 0; f < ARRAY_LEN(fixed); f++)
        say_bytes(ck, fixed[f].name,
                  (const uint8_t *)&d->start + fixed[f].from,
                  (const uint8_t *)&d->start + fixed[f].from,
                  (const uint8_t *)&c->s + fixed[f].from, fixed[f].to - fixed[f].from);
}

static void log_report(const struct check *ck, struct log *log)
{
    for (const char *p = ck->report; *p;) {
        size_t n = strcspn(p, "\n");

        log_msg(log, LOG_ERROR, "%.*s", (int)n, p);
        p += n + (p[n] == '\n');
    }
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
    report(ck, c);
    log_report(ck, c->vm->trace->log);
    err_set(&c->v->error, EILSEQ, "lockstep check: translation and interpreter differ at rip %#llx",
            (unsigned long long)d->start.rip);
    return false;
}
