/* The translator as an engine: choosing between interpreter and translation, and what happens when
 * translated code comes back. Everything between instructions is the interpreter's run loop. */
#include <cpuid.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/log.h"
#include "engine/bt/bt.h"
#include "engine/bt/check.h"
#include "engine/bt/hooks.h"
#include "engine/bt/jump.h"
#include "engine/bt/returns.h"
#include "engine/bt/trap.h"
#include "engine/bt/vec.h"
#include "engine/interp/core.h"
#include "engine/interp/op.h"

/* Entries until a block is translated. */
#define THRESHOLD 32
/* Times that an access group did not fit in a page before its block does without groups. */
#define CROSSED_MAX 16

static struct bt *bt_of(const struct cpu *c) { return c->shared->bt; }

/* ---- finding code ---- */

static struct tblock *translate(struct cpu *c, struct block *b, uint32_t link, uint64_t epoch)
{
    struct bt *bt = bt_of(c);
    struct tblock *t;

    cache_lock(bt->cache);
    t = b->t;
    if (!t && b->live) {
        t = bt_translate(bt, c, b, link && bt->epoch == epoch ? bt->link[link].from : NULL);
        if (t)
            __atomic_store_n(&b->t, t, __ATOMIC_RELEASE);
        else if (!cache_full(bt->cache))
            b->heat = HEAT_NEVER;
    }
    cache_unlock(bt->cache);
    return t;
}

/* Mostly it is only this address space that does not know its translation. */
static struct tblock *find_known(struct cpu *c, const struct cache_place *p, struct block **b)
{
    struct tblock *t = cache_hint(c->code, p);

    if (t && t->gpa == p->gpa && t->mode == p->mode && t->live)
        return t;
    *b = cache_at(c, p);
    t = *b ? __atomic_load_n(&(*b)->t, __ATOMIC_ACQUIRE) : NULL;
    if (!t || !t->live)
        return NULL;
    cache_suggest(c->code, p, t);
    return t;
}

/* The translation to run at c->s.rip, or NULL with the interpreter's block there in *b. link: what led here, or 0;
 * epoch: bt.epoch then. */
static struct tblock *find(struct cpu *c, struct block **b, uint32_t link, uint64_t epoch)
{
    struct tblock *t = bt_jumps_find(c, c->s.rip);
    struct cache_place p;

    *b = NULL;
    if (t && t->live)
        return t;
    if (c->bits == CPU_64 && cache_place(c, &p)) {
        t = find_known(c, &p, b);
        if (t) {
            bt_jumps_add(c, t, false, p.global);
            return t;
        }
    }
    if (*b)
        interp_know(c, *b, p.global);
    else
        *b = interp_find(c);
    if (c->bits != CPU_64 || !(*b)->live || (*b)->heat == HEAT_NEVER)
        return NULL;
    t = (*b)->t;
    if (!t && ++(*b)->heat >= c->shared->threshold)
        t = translate(c, *b, link, epoch);
    if (!t || !t->live)
        return NULL;
    bt_jumps_add(c, t, t->b->gpa2 != ~0ull, jump_slot(c->jc, c->s.rip)->key == c->gkey);
    return t;
}

/* ---- coming back ---- */

/* A branch to no canonical address raises #GP itself: what it did is undone. True if that was so. */
static bool undo_target(struct cpu *c, const struct bt_site *s)
{
    if (likely(is_canonical(c->s.rip)) || s->kind == BT_SITE_PLAIN)
        return false;
    if (s->kind == BT_SITE_RET)
        c->s.gpr[RSP] -= s->span;
    else if (s->kind == BT_SITE_CALL)
        c->s.gpr[RSP] += 8;
    c->s.rip = c->bt.vpage + s->off;
    return true;
}

/* Completes the state with the RIP where translated code came out. True: the branch there faults. */
static bool locate(struct cpu *c, enum bt_exit why)
{
    const struct bt *bt = bt_of(c);

    switch (why) {
    case BT_EXIT_LINK:
        c->s.rip = c->bt.vpage + bt->link[c->bt.site].off;
        return false;
    case BT_EXIT_LOOKUP:
        if (c->bt.site == BT_FROM_DEAD || c->bt.site == BT_FROM_LINK)
            return false;
        if (c->bt.site == BT_FROM_RETURN)
            c->bt.site = BT_RET_SITE(c->bt.ret);
        return undo_target(c, &bt->site[c->bt.site]);
    default:
        c->s.rip = c->bt.vpage + bt->site[c->bt.site].off;
        return false;
    }
}

/* Before t runs from c->s.rip on, when checking: control comes back at its end. */
static void begin_check(struct cpu *c, const struct tblock *t)
{
    atomic_store(&c->bt.bias, c->bt.nowhere);
    check_begin(c->bt.check, c, t->b, (unsigned)((c->s.rip - t->b->gpa) & PAGE_MASK));
}

/* Accesses that share a translation but lie in two pages too often: it is made anew. The block itself may have nothing
 * left to interpret. */
static void ungroup(struct cpu *c, struct tblock *t)
{
    struct bt *bt = bt_of(c);
    struct block *b = t->b;

    cache_lock(bt->cache);
    if (t->live) {
        struct tblock *old = b->t, *new; /* t may be a version */

        b->nogroup = true;
        new = bt_translate(bt, c, b, NULL);
        if (new)
            __atomic_store_n(&b->t, new, __ATOMIC_RELEASE);
        bt_kill(bt, old);
        if (!new)
            cache_kill(bt->cache, b);
    }
    cache_unlock(bt->cache);
}

/* Runs the instruction at a site by the interpreter. True: go on in the translation behind it. */
static bool interpret(struct cpu *c, uint32_t n)
{
    const struct bt_site *s = &bt_of(c)->site[n];
    struct tblock *t = bt_site_of(s);
    uint64_t next;

    if (unlikely(t->crossed > CROSSED_MAX) && !t->b->nogroup)
        ungroup(c, t);
    if (!s->apart) {
        c->step = true;
        c->dbg_before = c->s.pending_dbg;
        c->mode_changed = false;
        interp_run_from(c, cache_lookup(c, 1)->op);
        return false;
    }
    next = c->s.rip + s->len;
    c->bt.live = &t->live;
    interp_run_from(c, s->single->op);
    c->bt.live = NULL;
    return s->resume && c->s.rip == next && !c->mode_changed && t->live &&
           !atomic_load_explicit(c->events, memory_order_relaxed) && !interp_must_step(c);
}

/* epoch: bt.epoch when the link was come from; looking for its target may have made room in the cache. */
static void make_link(struct cpu *c, uint32_t n, uint64_t epoch, struct tblock *t)
{
    struct bt *bt = bt_of(c);
    struct bt_link *l = &bt->link[n];

    cache_lock(bt->cache);
    if (bt->epoch == epoch && t->live && l->from->live && (t->b->gpa ^ l->from->b->gpa) >> PAGE_SHIFT == 0) {
        /* A second page may be another one in another address space. */
        if (t->b->gpa2 == ~0ull)
            bt_link_make(bt, n, bt_version(bt, c, t, n));
        else
            bt_link_far(bt, n);
    }
    cache_unlock(bt->cache);
}

/* What was branched to is no more, and t is its successor, if nothing has happened meanwhile. epoch: as above. */
static void inherit(struct cpu *c, struct tblock *old, uint64_t epoch, struct tblock *t)
{
    struct bt *bt = bt_of(c);

    cache_lock(bt->cache);
    if (bt->epoch == epoch && t->live && old->b->gpa == t->b->gpa && old->b->gpa2 == t->b->gpa2)
        bt_inherit(bt, old, t);
    cache_unlock(bt->cache);
}

static void bt_run_some(struct cpu *c)
{
    struct bt *bt = bt_of(c);
    bt_enter_fn enter = (bt_enter_fn)(uintptr_t)bt_host(bt, bt->stub.enter);
    const uint8_t *code = NULL;
    struct tblock *t = NULL, *dead = NULL;
    uint64_t epoch = 0;
    uint32_t link = 0;

    for (;;) {
        enum bt_exit why;
        bool faults;

        if (!code) {
            struct block *b;

            t = find(c, &b, link, epoch);
            if (!t) {
                interp_run_from(c, b->op + (b->nops > 1 && __atomic_load_n(&b->live, __ATOMIC_RELAXED) && c->bits == CPU_64));
                return;
            }
            if (link)
                make_link(c, link, epoch, t);
            if (dead)
                inherit(c, dead, epoch, t);
            link = 0;
            dead = NULL;
            c->bt.vpage = c->s.rip & ~PAGE_MASK;
            code = bt_host(bt, t->at[t->likes]);
        }
        bt_stack_check(c);
        /* A kick that came before the bias was set is here; a later one takes the bias away. */
        if (unlikely(!atomic_load(&c->bt.quiet)))
            return;
        if (unlikely(c->bt.check))
            begin_check(c, t);
        why = (enum bt_exit)enter(c, code);
        faults = locate(c, why);
        if (unlikely(c->bt.check) && !check_end(c->bt.check, c)) {
            c->failed = true;
            return;
        }
        if (unlikely(faults))
            cpu_raise(c, X_GP, 0);
        code = NULL;
        switch (why) {
        case BT_EXIT_LINK:
            /* A block that is checked comes back every time. */
            if (!c->bt.check)
                link = c->bt.site;
            epoch = bt->epoch;
            break;
        case BT_EXIT_LOOKUP:
            if (atomic_load(&c->bt.bias) == c->bt.nowhere)
                return;
            if (c->bt.site == BT_FROM_DEAD)
                dead = c->bt.dead;
            epoch = bt->epoch;
            break;
        case BT_EXIT_EVENT:
            return;
        case BT_EXIT_INTERP:
            if (!interpret(c, c->bt.site))
                return;
            t = bt_site_of(&bt->site[c->bt.site]);
            code = bt_host(bt, bt->site[c->bt.site].retry);
            break;
        }
    }
}

/* ---- engine_ops ---- */

static int bt_probe(struct err *e)
{
    unsigned a, b, c, d;

    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & bit_BMI2))
        return err_set(e, ENOTSUP, "the host's processor lacks BMI2");
    if (!__get_cpuid(0x80000001, &a, &b, &c, &d) || !(c & bit_LAHF_LM))
        return err_set(e, ENOTSUP, "the host's processor lacks LAHF in 64-bit code");
    return 0;
}

static void killed(void *arg, struct tblock *t) { bt_kill(arg, t); }
static void emptied(void *arg) { bt_code_reset(arg); }

static void moved(void *arg, struct tblock *t, struct block *b)
{
    for (; t; t = t->versions)
        t->b = b;
}

static void swept(void *arg)
{
    struct bt *bt = arg;

    bt->epoch++;
    bt->sweeps++;
}

static bool full(void *arg) { return bt_code_full(arg); }
static size_t bytes(void *arg) { return bt_code_bytes(arg); }

static int bt_vm_init(struct vm *vm, struct err *e)
{
    struct interp_vm *sh;
    int rc = interp_vm_init(vm, e);

    if (rc)
        return rc;
    sh = vm->engine_priv;
    rc = trap_init(e);
    if (!rc)
        rc = bt_code_new(&sh->bt, vm, sh->code, e);
    if (rc) {
        interp_vm_fini(vm);
        return rc;
    }
    sh->behind = BT_IC_BYTES;
    sh->run = bt_run_some;
    sh->threshold = vm->check ? 1 : THRESHOLD; /* code that runs once is to be compared too */
    cache_attach(sh->code, &(struct cache_client){.arg = sh->bt,
                                                  .killed = killed,
                                                  .emptied = emptied,
                                                  .moved = moved,
                                                  .swept = swept,
                                                  .full = full,
                                                  .bytes = bytes});
    return 0;
}

void bt_get_stats(struct vm *vm, struct bt_stats *s)
{
    const struct bt *bt = ((struct interp_vm *)vm->engine_priv)->bt;

    *s = (struct bt_stats){.blocks = bt->blocks,
                           .insns = bt->insns,
                           .bytes = bt->bytes,
                           .nanoseconds = bt->nanoseconds,
                           .flushes = bt->flushes,
                           .sweeps = bt->sweeps,
                           .area = bt_code_bytes(bt)};
}

static void report(struct vm *vm)
{
    struct bt_stats s;

    bt_get_stats(vm, &s);
    log_msg(vm->trace->log, LOG_INFO,
            "bt: translated %llu blocks, %llu instructions into %llu KiB, %llu ns each; "
            "%llu KiB in use, emptied %llu times, swept %llu times",
            (unsigned long long)s.blocks, (unsigned long long)s.insns,
            (unsigned long long)(s.bytes / KIB),
            (unsigned long long)(s.insns ? s.nanoseconds / s.insns : 0),
            (unsigned long long)(s.area / KIB), (unsigned long long)s.flushes, (unsigned long long)s.sweeps);
}

static void bt_vm_fini(struct vm *vm)
{
    struct interp_vm *sh = vm->engine_priv;

    if (sh && sh->bt && vm->trace && vm->trace->log)
        report(vm);
    if (sh)
        bt_code_free(sh->bt);
    interp_vm_fini(vm);
}

static void end_checks(struct cpu *c)
{
    const struct check_stats *st = check_stats(c->bt.check);

    log_msg(c->vm->trace->log, LOG_INFO,
            "check: %llu blocks, %llu instructions alike; %llu blocks unsure, %llu raced",
            (unsigned long long)st->blocks, (unsigned long long)st->insns,
            (unsigned long long)st->unsure, (unsigned long long)st->raced);
    check_free(c->bt.check);
}

static void bt_vcpu_fini(struct vcpu *v)
{
    struct cpu *c = v->priv;

    if (c && c->bt.check)
        end_checks(c);
    if (c) {
        bt_jumps_fini(c);
        returns_free(c->bt.returns);
        free(c->bt.scratch);
    }
    interp_vcpu_fini(v);
}

static int bt_vcpu_init(struct vcpu *v, struct err *e)
{
    int rc = interp_vcpu_init(v, e);
    struct cpu *c = v->priv;

    if (rc)
        return rc;
    rc = bt_jumps_init(c, e);
    if (!rc)
        rc = returns_new(&c->bt.returns, bt_host(bt_of(c), bt_of(c)->stub.bottom), e);
    if (rc) {
        bt_vcpu_fini(v);
        return rc;
    }
    c->bt.sp = (void *)c->bt.returns->empty;
    c->bt.scratch = aligned_alloc(PAGE_SIZE, PAGE_SIZE);
    if (!c->bt.scratch || getrandom(&c->bt.secret, sizeof(c->bt.secret), 0) < 0 || !c->bt.secret) {
        bt_vcpu_fini(v);
        return err_set(e, ENOMEM, "out of memory for a vCPU");
    }
    c->tlbs.bt = &c->bt;
    c->bt.jump_mask = ((1ull << BT_JUMP_BITS) - 1) << BT_JUMP_SHIFT;
    memset(c->bt.missing, 1, sizeof(c->bt.missing));
    if (v->vm->check) {
        rc = check_new(&c->bt.check, e);
        if (rc) {
            bt_vcpu_fini(v);
            return rc;
        }
    }
    vec_init(c, VEC_AVX512);
    return 0;
}

/* The order is what bt_run_some and the run loop rely on: events, poll, bias. */
static void bt_kick(struct vcpu *v)
{
    struct cpu *c = v->priv;

    if (!c)
        return;
    atomic_store(&c->bt.quiet, 0);
    atomic_store(&c->bt.bias, c->bt.nowhere);
}

static enum stop bt_run(struct vcpu *v)
{
    struct cpu *c = v->priv;
    enum stop st;

    if (trap_enter(bt_fault_find, bt_of(c), c->bt.returns) < 0) {
        err_sys(&v->error, "setting the stack of signal handlers");
        return STOP_ERROR;
    }
    st = interp_run(v);
    trap_leave();
    /* Translated code does not count. */
    if (!v->budget)
        v->insns = 0;
    return st;
}

void bt_set_threshold(struct vm *vm, uint32_t entries)
{
    struct interp_vm *sh = vm->engine_priv;

    sh->threshold = entries;
}

const struct engine_ops bt_engine = {
    .name = "bt",
    .checks = true,
    .summary = "binary translator; any x86-64 host with BMI2",
    .probe = bt_probe,
    .vm_init = bt_vm_init,
    .vcpu_init = bt_vcpu_init,
    .run = bt_run,
    .kick = bt_kick,
    .get_state = interp_get_state,
    .set_state = interp_set_state,
    .map_changed = interp_map_changed,
    .code_write = interp_code_write,
    .dirty_fetch = interp_dirty_fetch,
    .vcpu_fini = bt_vcpu_fini,
    .vm_fini = bt_vm_fini,
};
