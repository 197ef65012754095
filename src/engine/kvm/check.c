/*
 * Lockstep checking of KVM against the interpreter (run --check), one vCPU.
 *
 * Before an instruction runs the interpreter runs it dry (interp/dry.h) from the state that KVM has; then KVM runs it as a single step,
 * and its state and the words that were to be stored are compared. Events that KVM delivers, faults among them,
 * are instructions in this respect.
 *
 * A single step ends where an event is delivered or SYSCALL leads: the trap flag is gone there. Where the interpreter comes out
 * in such a place HLT is put for a moment, which ends KVM_RUN as well. The trap flag that RFLAGS has meanwhile gets into what PUSHF,
 * SYSCALL and events store; it is taken out of there.
 *
 * Not seen: stores to places where the interpreter stores nothing, and accessed and dirty bits.
 */
#include <cpuid.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/msr.h"
#include "engine/interp/report.h"
#include "engine/kvm/fallback.h"
#include "engine/kvm/kvm.h"
#include "engine/kvm/window.h"

#define LOOKS 4 /* how often the interpreter runs one to agree with KVM */
#define MSR_TSC_ADJUST 0x3bu
#define OPCODE_HLT 0xf4
#define DR7_ARMED 0xffull

struct kvm_check {
    struct dry *dry;
    struct kvm_fallback *f; /* its vCPU runs dry */
    /* KVM's state before and after; between, if the interpreter has done two instructions in a row: a single step does not end
     * in the shadow of MOV SS, and not everywhere in that of STI. */
    struct cpu_state start, middle, got;
    uint64_t changes; /* kvm_cpu's, when KVM had got */
    bool two;
    bool tcg; /* the host's processors are emulated by QEMU, whose own faults are known */
    struct kvm_window window;
    uint64_t alike, events, unsure, raced, unchecked, tolerated;
    struct report report;
};

/* ---- the world of the interpreter: out of reach ---- */

static uint32_t no_pio_read(struct vcpu *v, uint16_t port, unsigned size) { dry_refuse(v->priv); }
static void no_pio_write(struct vcpu *v, uint16_t port, unsigned size, uint32_t val) { dry_refuse(v->priv); }
static void no_mmio_read(struct vcpu *v, uint64_t gpa, void *buf, unsigned size) { dry_refuse(v->priv); }
static void no_mmio_write(struct vcpu *v, uint64_t gpa, const void *buf, unsigned size) { dry_refuse(v->priv); }
static int no_rdmsr(struct vcpu *v, uint32_t msr, uint64_t *val) { dry_refuse(v->priv); }
static int no_wrmsr(struct vcpu *v, uint32_t msr, uint64_t val) { dry_refuse(v->priv); }
static void no_cr8(struct vcpu *v, uint64_t val) { dry_refuse(v->priv); }
static void no_ferr(struct vcpu *v, bool level) { dry_refuse(v->priv); }
static bool no_hypercall(struct vcpu *v, struct cpu_state *s) { dry_refuse(v->priv); }

static bool is_tcg(void)
{
    unsigned a, id[3];

    __cpuid(1, a, id[0], id[1], id[2]);
    if (!(id[1] >> 31 & 1)) /* no hypervisor */
        return false;
    __cpuid(0x40000000, a, id[0], id[1], id[2]);
    return !memcmp(id, "TCGTCGTCGTCG", 12);
}

int kvm_check_new(struct kvm_cpu *c, struct err *e)
{
    struct cpu_env env = *c->v->vm->env;
    struct kvm_check *k = calloc(1, sizeof(*k));

    if (!k)
        return err_set(e, ENOMEM, "no memory");
    c->check = k;
    env.pio_read = no_pio_read;
    env.pio_write = no_pio_write;
    env.mmio_read = no_mmio_read;
    env.mmio_write = no_mmio_write;
    env.rdmsr = no_rdmsr;
    env.wrmsr = no_wrmsr;
    env.set_cr8 = no_cr8;
    env.ferr = env.ferr ? no_ferr : NULL;
    env.hypercall = no_hypercall;
    env.tsc_moved = NULL;
    k->tcg = is_tcg();
    k->dry = dry_new();
    if (!k->dry)
        return err_set(e, ENOMEM, "no memory");
    k->f = kvm_fallback_new(c->v, &env, e);
    return k->f ? 0 : -ENOMEM;
}

void kvm_check_free(struct kvm_cpu *c)
{
    struct kvm_check *k = c->check;

    c->check = NULL;
    if (!k)
        return;
    if (k->alike + k->unsure + k->unchecked)
        log_msg(c->v->vm->trace->log, LOG_INFO,
                "check: %" PRIu64 " instructions and %" PRIu64 " events alike; %" PRIu64
                " unsure, %" PRIu64 " raced, %" PRIu64 " faults of TCG, %" PRIu64 " times KVM ran unchecked",
                k->alike, k->events, k->unsure, k->raced, k->tolerated, k->unchecked);
    kvm_window_free(&k->window);
    kvm_fallback_free(k->f);
    dry_free(k->dry);
    free(k);
}

/* ---- one instruction ---- */

/* KVM runs until something makes it stop, or one instruction if there is a budget. */
static int unchecked(struct kvm_cpu *c)
{
    int st = kvm_set_stepping(c, c->v->budget != 0);

    return st == GO_ON ? kvm_once(c) : st;
}

/* STI and MOV SS begin a shadow; in it, the guest and its debugger are one instruction apart. */
static bool shadow(const struct cpu_state *s) { return s->sti_shadow || s->mov_ss_shadow; }

/* States in which a trap flag or a breakpoint of ours would meet the guest's, or an NMI's IRET, which KVM single-steps itself. */
static bool delicate(const struct cpu_state *s)
{
    return (s->rflags & FL_TF) || (s->dr[7] & DR7_ARMED) || s->nmi_blocked || s->nmi_pending || s->pending_dbg;
}

/* Is what the instruction does the same whoever runs it, and when? */
static bool foretold(const struct kvm_check *k)
{
    const struct dry *d = k->dry;
    uint32_t ecx = (uint32_t)d->start.gpr[RCX];

    if (!d->point[0].row || d->vector != DRY_NO_FAULT)
        return true;
    switch (d->stepped.id) {
    case INSN_RDTSC:
    case INSN_RDTSCP:
    case INSN_RDPMC:
    case INSN_RDRAND:
    case INSN_RDSEED:
        return false;
    case INSN_RDMSR:
    case INSN_WRMSR:
        return ecx != MSR_TSC && ecx != MSR_TSC_ADJUST;
    case INSN_XGETBV:
    case INSN_XSETBV: /* TCG has a nested guest change XCR0 without telling KVM */
        return !k->tcg;
    default:
        return true;
    }
}

/* Behind PAUSE TCG forgets the single step's trap. */
static bool is_pause(const struct dry *d) { return d->point[0].row && d->stepped.id == INSN_PAUSE; }

/* Does the trap flag not outlive it? */
static bool loses_step(const struct dry *d, bool event)
{
    if (event || d->vector != DRY_NO_FAULT)
        return true;
    switch (d->stepped.id) {
    case INSN_SYSCALL:
    case INSN_SYSENTER:
    case INSN_INT:
    case INSN_INT1:
    case INSN_INT3:
    case INSN_INTO:
        return true;
    default:
        return false;
    }
}

/* Does it store RFLAGS in memory? */
static bool stores_flags(const struct dry *d)
{
    return d->vector != DRY_NO_FAULT || !d->point[0].row || d->stepped.id == INSN_PUSHF ||
           (d->stepped.id != INSN_SYSCALL && d->stepped.id != INSN_SYSENTER && loses_step(d, false));
}

/* Does its instruction read memory that it then writes? */
static bool modifies(const struct dry *d)
{
    for (unsigned n = 0; d->point[0].row && n < d->stepped.nops; n++)
        if (d->stepped.op[n].kind == OP_MEM && d->stepped.op[n].read && d->stepped.op[n].write)
            return true;
    return false;
}

/* In a word that was stored, RFLAGS from any of its bytes on: no trap flag. What TCG leaves out: a fault's RF, and in a page
 * fault's error code that a read-modify-write is a write. */
static bool mend(void *arg, const struct dry_word *w, uint64_t expected)
{
    struct kvm_check *k = arg;
    uint8_t vector = k->tcg ? k->dry->vector : DRY_NO_FAULT;
    uint64_t v, odd;

    memcpy(&v, w->at, sizeof(v));
    odd = (v ^ expected) & dry_bits(w->mask);
    for (unsigned shift = 0; odd && shift < 64; shift += 8) {
        uint64_t tf = FL_TF << shift, rf = vector != DRY_NO_FAULT ? FL_RF << shift : 0;
        uint64_t write = vector == X_PF && modifies(k->dry) ? (uint64_t)PF_W << shift : 0;

        if (odd != write && ((odd & ~(tf | rf)) || (odd & tf & expected)))
            continue;
        if (odd & (rf | write) & v)
            continue;
        k->tolerated += (odd & (rf | write)) != 0;
        v ^= odd;
        memcpy(w->at, &v, sizeof(v));
        break;
    }
    return true;
}

/* Undoes what stepping has changed of the guest; 0 or negative errno. */
static int repair(struct kvm_cpu *c, bool planted)
{
    struct kvm_check *k = c->check;
    const struct dry *d = k->dry;
    const struct cpu_state *want = &d->end;
    struct cpu_state *got = &k->got;
    bool regs = false;

    if (planted && got->rip == want->rip + 1) {
        got->rip = want->rip;
        got->activity = c->s.activity = CPU_RUNNING;
        regs = true;
    }
    if (d->point[0].row && (d->stepped.id == INSN_SYSCALL || d->stepped.id == INSN_SYSRET) &&
        got->gpr[R11] == (want->gpr[R11] | FL_TF)) {
        got->gpr[R11] = want->gpr[R11];
        regs = true;
    }
    if (stores_flags(d))
        dry_words(d, 1, mend, k);
    return regs ? kvm_write_regs(c, got) : 0;
}

/* ---- comparing ---- */

struct piece {
    const char *name;
    size_t from, to;
};
#define PIECE(name, first, behind) {name, offsetof(struct cpu_state, first), offsetof(struct cpu_state, behind)}
/* Beside flags, segments and shadows. Not: DR6, which single steps change; x87 pointers, which AMD processors keep only where an
 * exception is pending, and whose selectors KVM does not transfer; CR8, which is the machine's. */
static const struct piece pieces[] = {
    PIECE("gpr", gpr, rip),
    PIECE("rip", rip, rflags),
    PIECE("gdtr", gdtr, idtr),
    PIECE("idtr", idtr, cr0),
    PIECE("cr0", cr0, cr2),
    PIECE("cr2", cr2, cr3),
    PIECE("cr3", cr3, cr4),
    PIECE("cr4", cr4, cr8),
    PIECE("dr", dr[0], dr[6]),
    PIECE("dr7", dr[7], xcr0),
    PIECE("xcr0", xcr0, efer),
    PIECE("msr", efer, tsc_adjust),
    PIECE("x87", x87.st, x87.fop),
    PIECE("mxcsr", mxcsr, activity),
    PIECE("activity", activity, zmm),
    PIECE("zmm", zmm, k),
    PIECE("k", k, pdpte),
    PIECE("nmi", nmi_blocked, init_pending),
};

static const char *const seg_name[] = {"es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr"};

static const struct segment *segment(const struct cpu_state *s, unsigned n)
{
    return n < SREG_COUNT ? &s->seg[n] : n == SREG_COUNT ? &s->ldtr : &s->tr;
}

/* Has it a null selector? What else it holds then, processors do not agree on. */
static bool null(const struct cpu_state *s, unsigned n)
{
    return n != CS && !cpu_real(s) && !cpu_v86(s) && !(segment(s, n)->sel & 0xfffc);
}

/* Of a register that cannot be used nothing counts but its selector, SS's DPL, and in long mode the bases of FS and GS. */
static bool same_segment(const struct cpu_state *want, const struct cpu_state *got, unsigned n)
{
    const struct segment *a = segment(want, n), *b = segment(got, n);

    if (a->sel != b->sel || (n == SS && SEG_DPL(a->attr) != SEG_DPL(b->attr)))
        return false;
    if (!null(want, n))
        return a->attr == b->attr &&
               ((a->attr & SEG_UNUSABLE) || (a->base == b->base && a->limit == b->limit));
    return !cpu_long_mode(want) || (n != FS && n != GS) || a->base == b->base;
}

/* Between two elements of a repeated comparison its flags are nobody's business (SDM vol. 2, REP). */
static uint64_t flags_that_count(const struct dry *d)
{
    bool between = d->point[0].repeats && d->vector == DRY_NO_FAULT && d->end.rip == d->start.rip;

    return ~(FL_RF | (uint64_t)d->point[1].undef | (between ? FL_STATUS : 0));
}

/* Is KVM where the interpreter was in state want, at that point? */
static bool same(struct kvm_check *k, const struct cpu_state *want, unsigned point)
{
    const struct dry *d = k->dry;
    const struct cpu_state *got = &k->got;
    const uint8_t *a = (const uint8_t *)want, *b = (const uint8_t *)got;

    for (unsigned i = 0; i < ARRAY_LEN(pieces); i++)
        if (memcmp(a + pieces[i].from, b + pieces[i].from, pieces[i].to - pieces[i].from))
            return false;
    for (unsigned n = 0; n < ARRAY_LEN(seg_name); n++)
        if (!same_segment(want, got, n))
            return false;
    return !((want->rflags ^ got->rflags) & flags_that_count(d)) && got->sti_shadow <= want->sti_shadow &&
           dry_words(d, point, report_same_word, NULL);
}

static void make_report(struct kvm_cpu *c, bool event)
{
    static const char *const bits[] = {"16", "32", "64"};
    struct kvm_check *k = c->check;
    struct report *r = &k->report;
    const struct dry *d = k->dry;
    const struct cpu_state *start = &d->start, *want = &d->end, *got = &k->got;
    const uint8_t *s = (const uint8_t *)start, *a = (const uint8_t *)want, *b = (const uint8_t *)got;

    r->len = 0;
    report_say(r, "KVM and interpreter differ\n");
    report_say(r, "%04x:%#llx, %s-bit, CPL %u, after %llu instructions alike\n", start->seg[CS].sel,
               (unsigned long long)start->rip, bits[cpu_code_bits(start)], cpu_cpl(start),
               (unsigned long long)(k->alike + k->events));
    if (event)
        report_say(r, "  an event is delivered\n");
    else
        report_insn(r, &d->point[0]);
    if (d->vector != DRY_NO_FAULT)
        report_say(r, "  fault %u\n", d->vector);
    report_say(r, "KVM's exit: %u\n", c->run->exit_reason);
    report_say(r, "               before           interpreter      KVM\n");
    report_row(r, "rip", start->rip, want->rip, got->rip);
    report_row(r, "rflags", start->rflags, want->rflags & flags_that_count(d), got->rflags & flags_that_count(d));
    report_gprs(r, start->gpr, want->gpr, got->gpr);
    for (unsigned n = 0; n < ARRAY_LEN(seg_name); n++)
        if (!same_segment(want, got, n))
            report_bytes(r, seg_name[n], segment(start, n), segment(want, n), segment(got, n), sizeof(struct segment));
    for (unsigned i = 2; i < ARRAY_LEN(pieces); i++)
        report_bytes(r, pieces[i].name, s + pieces[i].from, a + pieces[i].from, b + pieces[i].from,
                     pieces[i].to - pieces[i].from);
    if (got->sti_shadow > want->sti_shadow)
        report_row(r, "sti shadow", start->sti_shadow, want->sti_shadow, got->sti_shadow);
    report_words(r, d, 1);
}

static int differ(struct kvm_cpu *c, bool event)
{
    struct kvm_check *k = c->check;

    make_report(c, event);
    report_log(&k->report, c->v->vm->trace->log);
    err_set(&c->v->error, EILSEQ, "lockstep check: KVM and interpreter differ at rip %#llx",
            (unsigned long long)k->dry->start.rip);
    return STOP_ERROR;
}

/* Left by a signal, for an interrupt's sake or the like before it had begun. */
static bool not_begun(const struct kvm_cpu *c)
{
    const struct kvm_check *k = c->check;
    uint32_t why = c->run->exit_reason;

    return why != KVM_EXIT_DEBUG && why != KVM_EXIT_HLT && k->got.rip == k->start.rip &&
           !memcmp(k->got.gpr, k->start.gpr, sizeof(k->got.gpr));
}

/* ---- the step ---- */

static int failed(struct kvm_cpu *c, int code, const char *what)
{
    err_set(&c->v->error, code, "KVM: vCPU %u: %s: %s", c->v->index, what, strerror(code));
    return STOP_ERROR;
}

/* One instruction is done. */
static int done(const struct kvm_cpu *c) { return c->v->budget ? STOP_BUDGET : GO_ON; }

static int judge(struct kvm_cpu *c, const struct event *event, bool sure)
{
    struct kvm_check *k = c->check;
    struct dry *d = k->dry;

    for (unsigned look = 0; look < LOOKS; look++) {
        if (look)
            dry_step_again(d, k->f->v.priv, event);
        if (k->two && same(k, &k->middle, 0)) {
            k->alike++;
            return done(c);
        }
        if (!sure)
            break;
        if (!same(k, &d->end, 1))
            continue;
        k->alike += k->two;
        k->raced += look != 0;
        if (event || d->vector != DRY_NO_FAULT)
            k->events++;
        else
            k->alike++;
        return done(c);
    }
    if (not_begun(c))
        return GO_ON;
    if (sure)
        return differ(c, event);
    k->unsure++;
    return done(c);
}

/* KVM does what the interpreter has done dry. */
static int step(struct kvm_cpu *c, const struct event *event, uint8_t *plant)
{
    struct kvm_check *k = c->check;
    struct dry *d = k->dry;
    uint8_t kept = plant ? *plant : 0;
    bool sure = d->stop == DRY_DONE && foretold(k);
    int st, rc = 0;

    if (sure && d->point[0].row && d->stepped.id == INSN_SYSRET && d->vector == DRY_NO_FAULT) {
        k->start.gpr[R11] |= FL_TF; /* SYSRET takes it from there */
        rc = kvm_write_regs(c, &k->start);
        k->start.gpr[R11] = d->start.gpr[R11];
    }
    if (rc)
        return failed(c, -rc, "its registers");
    st = kvm_set_stepping(c, !event);
    if (st != GO_ON)
        return st;
    if (plant)
        *plant = OPCODE_HLT;
    st = kvm_once(c);
    if (plant && *plant == OPCODE_HLT) /* or a device has written there */
        *plant = kept;
    if (st == GO_ON)
        st = kvm_finish(c);
    if (st != GO_ON && st != STOP_BUDGET)
        return st;
    if (!sure && !k->two) {
        k->unsure++;
        return done(c);
    }
    rc = kvm_read_state(c, &k->got);
    k->changes = c->changes;
    if (!rc && sure)
        rc = repair(c, plant);
    return rc ? failed(c, -rc, "its state") : judge(c, event, sure);
}

int kvm_check_step(struct kvm_cpu *c)
{
    struct kvm_check *k = c->check;
    struct dry *d = k->dry;
    struct cpu *x = k->f->v.priv;
    struct kvm_vcpu_events ev = {0};
    struct event event;
    uint8_t *plant = NULL, *code;
    bool in;
    int rc = 0;

    if (!kvm_window_open(&k->window, c->v->vm->check_every, c->tid))
        return unchecked(c);
    if (c->changes == k->changes)
        k->start = k->got;
    else if ((rc = kvm_read_state(c, &k->start)) != 0)
        return failed(c, -rc, "its state");
    in = kvm_in_delivery(c, &ev);
    if (in)
        event = kvm_event(&ev);
    if (delicate(&k->start) || ev.nmi.pending) {
        k->unchecked++;
        return unchecked(c);
    }
    dry_set_state(x, &k->start);
    code = dry_code(x);
    dry_step(d, x, in ? &event : NULL);
    k->two = d->stop == DRY_DONE && d->vector == DRY_NO_FAULT && (shadow(&d->end) || (k->tcg && is_pause(d)));
    if (k->two) {
        k->middle = d->end;
        dry_step(d, x, NULL);
    }
    if (d->stop == DRY_DONE && loses_step(d, in))
        plant = x->cpl ? NULL : dry_code(x);
    if (plant && code && plant >= code && plant < code + 2 * INSN_MAX_LEN) /* not over what is to run */
        plant = NULL;
    if (d->stop == DRY_UNSURE ||
        (d->stop == DRY_DONE && (delicate(&d->end) || (loses_step(d, in) && !plant)))) {
        k->unchecked++;
        return unchecked(c);
    }
    return step(c, in ? &event : NULL, plant);
}
