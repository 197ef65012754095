/* The interpreter as an engine: the run loop, events and interrupts between instructions, state. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "engine/bt/jump.h"
#include "engine/interp/core.h"
#include "engine/interp/hooks.h"
#include "engine/interp/op.h"

/* Values longjmp() brings to the run loop. */
enum { LEAVE_EVENT = 1, LEAVE_RESTART };

#define DR7_ARMED 0xffull
#define DR6_BS BIT(14)

_Noreturn void cpu_restart(struct cpu *c) { longjmp(c->fault, LEAVE_RESTART); }

_Noreturn void cpu_restart_rep(struct cpu *c)
{
    if (c->s.rflags & FL_TF)
        c->s.pending_dbg |= DR6_BS;
    c->s.rflags |= FL_RF;
    cpu_restart(c);
}

/* A trap due after the elements that a gather or scatter has done goes before the next one's fault
 * (SDM vol. 2, VPGATHERDD). */
static void trap_first(struct cpu *c)
{
    if (likely(!c->partly))
        return;
    c->partly = false;
    if ((c->s.rflags & FL_TF) || c->s.pending_dbg)
        cpu_restart_rep(c);
}

_Noreturn void cpu_raise(struct cpu *c, enum vector vec, uint32_t error)
{
    trap_first(c);
    c->event = (struct event){ .kind = EV_FAULT, .vector = (uint8_t)vec, .error = error };
    c->deliver = true;
    longjmp(c->fault, LEAVE_EVENT);
}

_Noreturn void cpu_raise_pf(struct cpu *c, uint64_t la, uint32_t error)
{
    trap_first(c);
    c->s.cr2 = la;
    cpu_raise(c, X_PF, error);
}

/* ---- what is cached of the state ---- */

static void set_keys(struct cpu *c, uint64_t gen, uint64_t global_gen)
{
    uint64_t mode = (uint64_t)c->cpl << 4 | c->bits << 2 | (uint64_t)c->no_fast << 1;

    c->key = gen << 8 | mode;
    c->gkey = global_gen << 8 | mode | 1;
}

static void update_tlb(struct cpu *c)
{
    struct tlb_context *x = &c->tlbs.ctx[c->tlbs.cur];

    if (unlikely(c->dry))
        return;

    bool armed = c->s.dr[7] & DR7_ARMED;

    c->align = c->cpl == 3 && (c->s.cr0 & CR0_AM) && (c->s.rflags & FL_AC);
    c->watch = armed;
    if (c->align || c->watch)
        c->tlb = c->no_tlb;
    else if (c->cpl == 3)
        c->tlb = &x->set[TLB_USER];
    else
        c->tlb = &x->set[c->pg.smap && (c->s.rflags & FL_AC) ? TLB_SUPER_AC : TLB_SUPER];
    if (c->step)
        c->key = c->gkey = CPU_KEY_NONE; /* control comes back after one instruction */
    else
        set_keys(c, x->gen, c->tlbs.global_gen);
    if (c->bt.jumps)
        bt_jumps_select(c);
}

void cpu_update_mode(struct cpu *c)
{
    const struct cpu_state *s = &c->s;

    c->cpl = (uint8_t)cpu_cpl(s);
    c->bits = (uint8_t)cpu_code_bits(s);
    c->flat = c->bits == CPU_64;
    if (c->bits != CPU_64 &&
        (c->cs_base != s->seg[CS].base || c->cs_limit != s->seg[CS].limit ||
         c->cs_8086 != (cpu_real(s) || cpu_v86(s)))) {
        /* The jump cache goes by RIP alone. */
        c->cs_base = s->seg[CS].base;
        c->cs_limit = s->seg[CS].limit;
        c->cs_8086 = cpu_real(s) || cpu_v86(s);
        tlbs_new_gens(&c->tlbs);
    }
    if (s->cr0 != c->pg_cr0 || s->cr3 != c->pg.cr3 || s->cr4 != c->pg_cr4 ||
        s->efer != c->pg_efer) {
        uint64_t pdpte[4];

        memcpy(pdpte, c->pg.pdpte, sizeof(pdpte));
        paging_init(&c->pg, s, c->vm->cpuid->maxphys, cpuid_has(c->vm->cpuid, CPUF_PDPE1GB));
        memcpy(c->pg.pdpte, pdpte, sizeof(pdpte));
        c->pg_cr0 = s->cr0;
        c->pg_cr4 = s->cr4;
        c->pg_efer = s->efer;
    }
    update_tlb(c);
    c->mode_changed = true;
}

void cpu_set_flags(struct cpu *c, uint64_t f)
{
    uint64_t keep = FL_STATUS | FL_DF;
    uint64_t old = c->s.rflags;

    c->s.rflags = (f & 0x3f7fd5) | FL_R1;
    cpu_set_status(c, f);
    if ((old ^ c->s.rflags) & ~keep) {
        update_tlb(c);
        c->mode_changed = true;
    }
}

void cpu_flush_tlb(struct cpu *c, bool global)
{
    if (global)
        tlbs_flush(&c->tlbs);
    else
        tlbs_flush_nonglobal(&c->tlbs);
    update_tlb(c);
    c->mode_changed = true;
}

void cpu_sync_work(struct cpu *c, unsigned work)
{
    if (work & SYNC_FLUSH)
        tlbs_flush(&c->tlbs);
    if (work & SYNC_WRITES)
        tlbs_flush_writes(&c->tlbs);
    if (work & SYNC_JUMPS)
        memset(c->jc, 0, sizeof(*c->jc));
    if ((work & SYNC_JUMPS) && c->bt.jumps)
        bt_jumps_clear(c);
    update_tlb(c);
}

/* ---- events ---- */

static void raise_event(struct cpu *c, int kind, uint8_t vector)
{
    c->event.kind = kind;
    c->event.vector = vector;
    c->event.has_error = false;
    c->event.error = 0;
    c->deliver = true;
}

static void take_init(struct cpu *c)
{
    uint64_t base = 0;

    x87_sync(c);
    if (c->vm->env->init)
        c->vm->env->init(c->v);
    cpu_state_init(&c->s);
    c->s.gpr[RDX] = cpuid_signature(c->vm->cpuid);
    c->cc = flags_to_cc(c->s.rflags);
    /* The bootstrap processor restarts at the reset vector, the others wait for SIPI. */
    if (c->vm->env->rdmsr(c->v, 0x1b, &base) == 0 && !(base & BIT(8)))
        c->s.activity = CPU_WAIT_SIPI;
    tlbs_flush(&c->tlbs);
    tlbs_switch(&c->tlbs, c->s.cr3, 0, true);
    cpu_update_mode(c);
    trace(c->vm->trace, cpu_reset, "cpu%u INIT", c->v->index);
}

static void take_sipi(struct cpu *c, uint8_t vector)
{
    if (c->s.activity != CPU_WAIT_SIPI)
        return;
    c->s.seg[CS].sel = (uint16_t)(vector << 8);
    c->s.seg[CS].base = (uint64_t)vector << 12;
    c->s.rip = 0;
    c->s.activity = CPU_RUNNING;
    cpu_update_mode(c);
    trace(c->vm->trace, cpu_reset, "cpu%u SIPI %#x", c->v->index, vector);
}

/* Looks at posted events. True: return from run() now. */
static bool take_events(struct cpu *c)
{
    uint32_t ev = atomic_exchange(&c->v->events, 0);

    if (ev & VCPU_EV_INTR)
        c->bt.intr = true;
    if (ev & VCPU_EV_FLUSH) {
        sync_leave(c);
        sync_enter(c);
    }
    if (ev & VCPU_EV_INIT)
        c->s.init_pending = 1;
    if (c->s.init_pending) {
        c->s.init_pending = 0;
        take_init(c);
    }
    /* A processor that waits for a SIPI hears nothing else, now or later. */
    if ((ev & VCPU_EV_NMI) && c->s.activity != CPU_WAIT_SIPI)
        c->s.nmi_pending = 1;
    if (ev & VCPU_EV_SIPI)
        take_sipi(c, atomic_load(&c->v->sipi));
    return ev & VCPU_EV_KICK;
}

/* Interrupts and debug traps that are due before the next instruction. True if one was raised. */
static bool take_interrupt(struct cpu *c)
{
    struct cpu_state *s = &c->s;

    if (s->activity > CPU_HALTED) /* nothing but INIT or SIPI gets through */
        return false;
    if (s->pending_dbg && !s->mov_ss_shadow) {
        s->dr[6] |= s->pending_dbg;
        s->pending_dbg = 0;
        raise_event(c, EV_TRAP, X_DB);
        return true;
    }
    if (s->nmi_pending && !s->nmi_blocked && !s->mov_ss_shadow) {
        s->nmi_pending = 0;
        s->nmi_blocked = 1;
        raise_event(c, EV_NMI_INT, X_NMI);
    } else if ((s->rflags & FL_IF) && !s->sti_shadow && !s->mov_ss_shadow &&
               c->vm->env->irq_pending(c->v)) {
        int vec = c->vm->env->irq_ack(c->v);

        if (vec < 0)
            return false;
        raise_event(c, EV_EXT_INT, (uint8_t)vec);
    } else {
        if ((s->rflags & FL_IF) && !s->sti_shadow && !s->mov_ss_shadow)
            c->bt.intr = false;
        return false;
    }
    s->activity = CPU_RUNNING;
    return true;
}

/* ---- running ---- */

void interp_run_from(struct cpu *c, const struct op *o)
{
    c->g[G_RIP] = c->s.rip;
    while (o)
        o = o->fn(c, o);
}

void interp_know(struct cpu *c, struct block *b, bool global)
{
    *jump_slot(c->jc, c->s.rip) =
        (struct jump_entry){.rip = c->s.rip, .key = global ? c->gkey : c->key, .block = b};
}

struct block *interp_find(struct cpu *c)
{
    struct jump_entry *j = jump_slot(c->jc, c->s.rip);

    if (j->rip != c->s.rip || (j->key != c->key && j->key != c->gkey)) {
        struct block *b = cache_lookup(c, BLOCK_MAX_INSNS);

        if (!b->live)
            return b;
        interp_know(c, b, c->fetch_global && c->s.rip >> 63);
    }
    return j->block;
}

static void run_fast(struct cpu *c) { interp_run_from(c, interp_find(c)->op); }

/* An execution breakpoint on this instruction? (SDM vol. 3 §18.3.1.1) */
static bool exec_breakpoint(struct cpu *c)
{
    uint64_t la = c->bits == CPU_64 ? c->s.rip : (c->s.seg[CS].base + c->s.rip) & 0xffffffff;
    uint64_t hit = 0;

    for (unsigned k = 0; k < 4; k++)
        if ((c->s.dr[7] >> (2 * k) & 3) && bits(c->s.dr[7], 17 + 4 * k, 16 + 4 * k) == 0 &&
            c->s.dr[k] == la)
            hit |= BIT(k);
    if (!hit || (c->s.rflags & FL_RF))
        return false;
    c->s.dr[6] |= hit;
    return true;
}

/* One instruction, with everything that only matters between two. */
static void run_step(struct cpu *c)
{
    struct cpu_state *s = &c->s;
    bool tf = s->rflags & FL_TF;

    c->dbg_before = s->pending_dbg;
    c->step = true;
    update_tlb(c);
    if ((s->dr[7] & DR7_ARMED) && exec_breakpoint(c))
        cpu_raise(c, X_DB, 0);
    s->rflags &= ~FL_RF;
    s->sti_shadow = s->mov_ss_shadow = 0;
    c->trap_taken = false;
    interp_run_from(c, cache_lookup(c, 1)->op);
    /* After a load of SS there is no such trap, not even a deferred one. */
    if (tf && !c->trap_taken && !s->mov_ss_shadow)
        s->pending_dbg |= DR6_BS;
}

bool interp_must_step(const struct cpu *c)
{
    return (c->s.rflags & (FL_TF | FL_RF)) || c->s.sti_shadow || c->s.mov_ss_shadow ||
           (c->s.dr[7] & DR7_ARMED) || c->stop_at != UINT64_MAX;
}

/* An instruction was left half-way, by a fault or to be restarted. */
static void left(struct cpu *c, int why)
{
    if (c->op)
        c->ninsn += c->op->cnt - 1u; /* those before it */
    /* Data breakpoints are traps: what a faulting instruction hit it will hit again. */
    if (c->step && why == LEAVE_EVENT && c->event.vector != X_DB)
        c->s.pending_dbg = c->dbg_before;
}

static enum stop run_loop(struct cpu *c)
{
    int why = setjmp(c->fault);

    if (why)
        left(c, why);
    for (;;) {
        c->op = NULL;
        c->bt.live = NULL;
        c->step = false;
        if (c->deliver) {
            c->deliver = false;
            c->nevents++;
            event_deliver(c);
        }
        if (unlikely(c->shutdown)) {
            c->shutdown = false;
            c->s.activity = CPU_SHUTDOWN;
        }
        if (unlikely(c->failed))
            return STOP_ERROR;
        c->mode_changed = false;
        if (unlikely(!atomic_load_explicit(&c->bt.quiet, memory_order_relaxed)))
            atomic_store(&c->bt.quiet, 1); /* before the events are looked at */
        if (unlikely(atomic_load_explicit(c->events, memory_order_relaxed)) && take_events(c))
            return STOP_KICK;
        if (take_interrupt(c))
            continue;
        if (unlikely(c->s.activity != CPU_RUNNING))
            return c->s.activity == CPU_SHUTDOWN ? STOP_SHUTDOWN : STOP_HLT;
        if (unlikely(c->ninsn + c->nevents >= c->stop_at))
            return STOP_BUDGET;
        if (unlikely(c->pauses >= PAUSES_MAX)) {
            c->pauses = 0;
            return STOP_PAUSE;
        }
        update_tlb(c);
        /* With no breakpoint armed RF has nothing to suppress. */
        if (!(c->s.dr[7] & DR7_ARMED))
            c->s.rflags &= ~FL_RF;
        if (likely(!interp_must_step(c)))
            c->shared->run(c);
        else
            run_step(c);
    }
}

enum stop interp_run(struct vcpu *v)
{
    struct cpu *c = v->priv;
    enum stop st;

    c->stop_at = v->budget ? c->ninsn + c->nevents + v->budget : UINT64_MAX;
    sync_enter(c);
    st = run_loop(c);
    x87_sync(c); /* the next caller may be another thread */
    sync_leave(c);
    v->insns = c->ninsn;
    return st;
}

/* ---- engine_ops ---- */

static int interp_probe(struct err *e) { return 0; }

int interp_vm_init(struct vm *vm, struct err *e)
{
    struct interp_vm *sh = calloc(1, sizeof(*sh));
    int rc;

    if (!sh)
        return err_set(e, ENOMEM, "out of memory for the interpreter");
    rc = cache_new(&sh->code, vm, e);
    if (rc) {
        free(sh);
        return rc;
    }
    sync_init(&sh->sync, vm);
    sh->run = run_fast;
    vm->engine_priv = sh;
    return 0;
}

void interp_vm_fini(struct vm *vm)
{
    struct interp_vm *sh = vm->engine_priv;

    if (!sh)
        return;
    sync_fini(&sh->sync);
    cache_free(sh->code);
    free(sh);
    vm->engine_priv = NULL;
}

void interp_vcpu_fini(struct vcpu *v)
{
    struct cpu *c = v->priv;

    if (!c)
        return;
    x87_sync(c);
    simd_fini(c);
    tlbs_fini(&c->tlbs);
    free(c->jc);
    free(c->no_tlb);
    free(c->scratch);
    munmap(c, sizeof(*c) + c->shared->behind);
    v->priv = NULL;
}

int interp_vcpu_init(struct vcpu *v, struct err *e)
{
    struct interp_vm *sh = v->vm->engine_priv;
    struct cpu *c = mmap(NULL, sizeof(*c) + sh->behind, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    int rc;

    if (c == MAP_FAILED)
        return err_sys(e, "memory for a vCPU");
    v->priv = c;
    c->v = v;
    c->vm = v->vm;
    c->events = &v->events;
    c->shared = sh;
    c->code = c->shared->code;
    c->scratch = cache_scratch_new();
    c->jc = calloc(1, sizeof(*c->jc));
    c->no_tlb = malloc(sizeof(*c->no_tlb));
    c->stop_at = UINT64_MAX;
    if (!c->jc || !c->no_tlb || !c->scratch || tlbs_init(&c->tlbs, c->jc) < 0) {
        interp_vcpu_fini(v);
        return err_set(e, ENOMEM, "out of memory for a vCPU's TLB");
    }
    for (unsigned i = 0; i < TLB_ENTRIES; i++)
        c->no_tlb->e[i] = (struct tlb_entry){.rtag = tlb_empty(i), .wtag = tlb_empty(i)};
    rc = simd_init(c, e);
    if (rc < 0) {
        interp_vcpu_fini(v);
        return rc;
    }
    cpu_state_reset(&c->s);
    c->pg_cr0 = ~0ull;
    cpu_update_mode(c);
    return 0;
}

int interp_get_state(struct vcpu *v, struct cpu_state *s)
{
    struct cpu *c = v->priv;

    x87_sync(c);
    *s = c->s;
    s->rflags = cpu_flags(c);
    s->cr8 = v->vm->env->get_cr8(v);
    s->pdptes_valid = c->pg.levels == 3;
    memset(s->pdpte, 0, sizeof(s->pdpte));
    if (s->pdptes_valid)
        memcpy(s->pdpte, c->pg.pdpte, sizeof(s->pdpte));
    return 0;
}

int interp_set_state(struct vcpu *v, const struct cpu_state *s)
{
    struct cpu *c = v->priv;
    int rc = cpu_state_validate(s, &v->error);

    if (!rc)
        rc = cpuid_check_state(v->vm->cpuid, s, &v->error);
    if (rc < 0)
        return rc;
    x87_sync(c);
    c->s = *s;
    c->cc = flags_to_cc(s->rflags);
    if (v->vm->env->get_cr8(v) != s->cr8) /* TPR has four bits more */
        v->vm->env->set_cr8(v, s->cr8);
    c->shutdown = false;
    c->deliver = false;
    c->pg_cr0 = ~s->cr0;
    tlbs_flush(&c->tlbs);
    tlbs_switch(&c->tlbs, s->cr3, s->cr4 & CR4_PCIDE ? s->cr3 & 0xfff : 0, true);
    cpu_update_mode(c);
    /* Nothing is mapped through page-directory pointers that cannot be loaded. */
    memset(c->pg.pdpte, 0, sizeof(c->pg.pdpte));
    if (s->pdptes_valid)
        memcpy(c->pg.pdpte, s->pdpte, sizeof(s->pdpte));
    else if (c->pg.levels == 3)
        paging_load_pdptes(&c->pg, physmap_p2m(v->vm->map));
    return 0;
}

void interp_use_plain(struct vcpu *v, bool plain)
{
    struct cpu *c = v->priv;

    c->no_fast = plain;
    update_tlb(c);
}

int interp_map_changed(struct vm *vm, const struct flat_view *view)
{
    struct interp_vm *sh = vm->engine_priv;

    if (!sh)
        return 0;
    /* A vCPU whose own access moved something is among those that stand, and drops its translations before it
     * goes on with the rest of its instruction. */
    sync_begin(&sh->sync, SYNC_WORLD);
    cache_kill_all(sh->code);
    sync_post(&sh->sync, SYNC_FLUSH);
    sync_end(&sh->sync);
    return 0;
}

void interp_code_write(struct vm *vm, uint64_t gpa, uint64_t len)
{
    struct interp_vm *sh = vm->engine_priv;

    if (sh)
        cache_write(sh->code, gpa, len);
}

int interp_dirty_fetch(struct vm *vm, struct ram *ram, uint64_t *bits_out)
{
    const struct flat_view *view = physmap_view(vm->map);

    for (uint32_t i = 0; i < view->n; i++) {
        const struct flat_range *r = &view->r[i];
        uint64_t first = r->start >> PAGE_SHIFT, n = (r->end - r->start + 1) >> PAGE_SHIFT;
        uint64_t off, *tmp;

        if (r->kind == REGION_IO || r->region->ram != ram)
            continue;
        off = (r->region->ram_off + r->off) >> PAGE_SHIFT;
        tmp = calloc((n + 63) / 64, sizeof(*tmp));
        if (!tmp)
            return -ENOMEM;
        p2m_dirty_fetch(physmap_p2m(vm->map), first, n, tmp);
        for (uint64_t k = 0; k < n; k++)
            if (tmp[k / 64] >> (k % 64) & 1)
                bits_out[(off + k) / 64] |= BIT((off + k) % 64);
        free(tmp);
    }
    sync_post(&((struct interp_vm *)vm->engine_priv)->sync, SYNC_WRITES);
    return 0;
}

const struct engine_ops interp_engine = {
    .name = "interp",
    .summary = "interpreter with a decoded-code cache; any host",
    .probe = interp_probe,
    .vm_init = interp_vm_init,
    .vcpu_init = interp_vcpu_init,
    .run = interp_run,
    .get_state = interp_get_state,
    .set_state = interp_set_state,
    .map_changed = interp_map_changed,
    .code_write = interp_code_write,
    .dirty_fetch = interp_dirty_fetch,
    .vcpu_fini = interp_vcpu_fini,
    .vm_fini = interp_vm_fini,
};
