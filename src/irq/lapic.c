/*
 * The local APIC's interrupt state: IRR, ISR, priorities, local interrupt pins, life cycle and
 * saving. Registers are in lapic_regs.c, the timer in lapic_timer.c.
 */
#include "irq/lapic.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "irq/lapic_impl.h"

static bool test_bit(const uint32_t *reg, uint8_t v) { return reg[v / 32] >> (v % 32) & 1; }

static void set_bit(uint32_t *reg, uint8_t v, bool on)
{
    if (on)
        reg[v / 32] |= 1u << (v % 32);
    else
        reg[v / 32] &= ~(1u << (v % 32));
}

int lapic_highest(const uint32_t *reg)
{
    for (int i = VEC_WORDS - 1; i >= 0; i--)
        if (reg[i])
            return i * 32 + 31 - __builtin_clz(reg[i]);
    return -1;
}

void lapic_unlock(struct lapic *l, const struct lapic_fx *fx)
{
    static const enum lapic_event order[] = {LAPIC_EV_INIT, LAPIC_EV_SIPI, LAPIC_EV_SMI,
                                             LAPIC_EV_NMI, LAPIC_EV_INTR};

    pthread_mutex_unlock(&l->lock);
    if (fx->events)
        for (size_t i = 0; i < ARRAY_LEN(order); i++)
            if (fx->events & BIT(order[i]))
                l->cfg.event(l->cfg.owner, order[i], order[i] == LAPIC_EV_SIPI ? fx->sipi : 0);
    if (fx->eoi)
        apic_bus_eoi(l->bus, fx->eoi_vector);
    if (fx->retry)
        apic_bus_retry(l->bus);
    if (fx->send)
        apic_bus_deliver(l->bus, &fx->msg, fx->not_self ? l : NULL);
}

static bool pic_waiting(const struct lapic *l)
{
    return l->cfg.pic_pending && l->cfg.pic_pending(l->cfg.pic);
}

/* Would the PIC's INTR reach the processor: through LINT0 as ExtINT, through an ExtINT message, or,
 * with the APIC globally disabled, because LINT0 is then the INTR pin (SDM vol. 3 §11.4.3). */
static bool takes_extint(const struct lapic *l)
{
    uint32_t lint0 = l->s.lvt[LVT_LINT0];

    if (!lapic_enabled(l))
        return true;
    if (l->s.extint)
        return true;
    return !(lint0 & LVT_MASKED) && bits(lint0, 10, 8) == APIC_EXTINT;
}

static uint64_t address(const struct lapic *l)
{
    uint64_t a = l->s.ldr;

    if (l->s.dfr >> 28 == 0xf)
        a |= ADDR_FLAT;
    if (lapic_x2apic(l))
        a |= ADDR_X2APIC;
    if (lapic_enabled(l)) {
        a |= ADDR_ENABLED;
        if (l->s.svr & SVR_ENABLE)
            a |= ADDR_ACCEPTS;
    }
    return a;
}

/* PPR is the greater of TPR and the class in service (SDM vol. 3 §11.8.3.1). */
static uint8_t processor_priority(const struct lapic *l)
{
    int isr = lapic_highest(l->s.isr);
    uint8_t serving = isr < 0 ? 0 : (uint8_t)(isr & 0xf0);

    return (l->s.tpr & 0xf0) >= serving ? (uint8_t)l->s.tpr : serving;
}

void lapic_refresh(struct lapic *l, struct lapic_fx *fx)
{
    uint8_t was = atomic_load_explicit(&l->ready, memory_order_relaxed);
    uint8_t ppr = processor_priority(l), ready = 0;
    uint64_t addr = address(l);

    if (lapic_enabled(l) && lapic_highest(l->s.irr) >> 4 > ppr >> 4)
        ready |= READY_FIXED;
    if (takes_extint(l))
        ready |= READY_EXTINT;
    atomic_store_explicit(&l->ppr, ppr, memory_order_relaxed);
    if (atomic_load_explicit(&l->address, memory_order_relaxed) != addr) {
        atomic_store_explicit(&l->address, addr, memory_order_relaxed);
        fx->retry = true;
    }
    /* The vCPU sleeps after it has looked at `ready`; the event below comes after this store. */
    atomic_store_explicit(&l->ready, ready, memory_order_seq_cst);
    if ((ready & ~was & READY_FIXED) || ((ready & ~was & READY_EXTINT) && pic_waiting(l)))
        fx->events |= BIT(LAPIC_EV_INTR);
}

void lapic_error(struct lapic *l, uint32_t esr_bit, struct lapic_fx *fx)
{
    uint32_t lvt = l->s.lvt[LVT_ERROR];

    /* Only the first of a kind interrupts; that also ends the recursion when the error LVT itself
     * holds an illegal vector. */
    if (l->s.esr_latch & esr_bit)
        return;
    l->s.esr_latch |= esr_bit;
    if (!(lvt & LVT_MASKED))
        lapic_accept_vector(l, (uint8_t)(lvt & LVT_VECTOR), false, fx);
}

bool lapic_accept_vector(struct lapic *l, uint8_t vector, bool level, struct lapic_fx *fx)
{
    if (!lapic_enabled(l) || !(l->s.svr & SVR_ENABLE))
        return false;
    if (vector < 16) {
        lapic_error(l, ESR_RECV_VECTOR, fx);
        return false;
    }
    trace(l->cfg.trace, lapic_accept, "apic=%u vector=%#x level=%d", l->s.id, vector, level);
    set_bit(l->s.irr, vector, true);
    set_bit(l->s.tmr, vector, level);
    lapic_refresh(l, fx);
    return true;
}

/* An event that needs no register state but an enabled APIC. */
static bool accept_event(struct lapic *l, enum lapic_event ev, uint32_t arg)
{
    if (!(atomic_load_explicit(&l->address, memory_order_relaxed) & ADDR_ENABLED))
        return false;
    l->cfg.event(l->cfg.owner, ev, arg);
    return true;
}

bool lapic_accept(struct lapic *l, const struct apic_msg *m)
{
    struct lapic_fx fx = {0};
    bool ok;

    switch (m->delivery) {
    case APIC_FIXED:
    case APIC_LOWEST:
        if (m->level && !m->assert_)
            return false;
        lapic_lock(l);
        ok = lapic_accept_vector(l, m->vector, m->level, &fx);
        if (ok && m->delivery == APIC_LOWEST)
            atomic_store_explicit(&l->arb, ++l->s.arb, memory_order_relaxed);
        lapic_unlock(l, &fx);
        return ok;
    case APIC_SMI:
        return accept_event(l, LAPIC_EV_SMI, 0);
    case APIC_NMI:
        return accept_event(l, LAPIC_EV_NMI, 0);
    case APIC_INIT:
        /* INIT level de-assert only ever synchronised arbitration IDs (SDM vol. 3 §11.6.1). */
        if (m->level && !m->assert_)
            return false;
        return accept_event(l, LAPIC_EV_INIT, 0);
    case APIC_SIPI:
        return accept_event(l, LAPIC_EV_SIPI, m->vector);
    case APIC_EXTINT:
        lapic_lock(l);
        ok = lapic_enabled(l);
        if (ok) {
            l->s.extint = true;
            lapic_refresh(l, &fx);
            if (pic_waiting(l))
                fx.events |= BIT(LAPIC_EV_INTR);
        }
        lapic_unlock(l, &fx);
        return ok;
    }
    return false; /* the reserved mode */
}

/* ---- local interrupt pins ---- */

void lapic_lint_update(struct lapic *l, int lint, bool edge, struct lapic_fx *fx)
{
    uint32_t *lvt = &l->s.lvt[LVT_LINT0 + lint];
    bool on = l->s.lint[lint];

    if (!on || *lvt & LVT_MASKED)
        return;
    switch (bits(*lvt, 10, 8)) {
    case APIC_FIXED:
        if (*lvt & LVT_LEVEL) {
            if (!(*lvt & LVT_REMOTE_IRR) &&
                lapic_accept_vector(l, (uint8_t)(*lvt & LVT_VECTOR), true, fx))
                *lvt |= LVT_REMOTE_IRR;
        } else if (edge) {
            lapic_accept_vector(l, (uint8_t)(*lvt & LVT_VECTOR), false, fx);
        }
        break;
    case APIC_SMI:
        fx->events |= edge ? BIT(LAPIC_EV_SMI) : 0;
        break;
    case APIC_NMI:
        fx->events |= edge ? BIT(LAPIC_EV_NMI) : 0;
        break;
    case APIC_INIT:
        fx->events |= edge ? BIT(LAPIC_EV_INIT) : 0;
        break;
    case APIC_EXTINT:
        /* Only LINT0 is wired to the PIC, which lapic_pending() asks itself. */
        if (lint == 0 && edge)
            fx->events |= BIT(LAPIC_EV_INTR);
        break;
    }
}

void lapic_set_lint(struct lapic *l, int lint, bool level)
{
    struct lapic_fx fx = {0};
    bool edge;

    assert(lint == 0 || lint == 1);
    lapic_lock(l);
    edge = level && !l->s.lint[lint];
    l->s.lint[lint] = level;
    if (lapic_enabled(l))
        lapic_lint_update(l, lint, edge, &fx);
    else if (edge) /* the pins are INTR and NMI then */
        fx.events |= BIT(lint ? LAPIC_EV_NMI : LAPIC_EV_INTR);
    lapic_unlock(l, &fx);
}

void lapic_eoi(struct lapic *l, struct lapic_fx *fx)
{
    int v = lapic_highest(l->s.isr);

    if (v < 0)
        return;
    trace(l->cfg.trace, lapic_eoi, "apic=%u vector=%#x", l->s.id, (unsigned)v);
    set_bit(l->s.isr, (uint8_t)v, false);
    if (test_bit(l->s.tmr, (uint8_t)v)) {
        for (int lint = 0; lint < 2; lint++) {
            uint32_t *lvt = &l->s.lvt[LVT_LINT0 + lint];

            if (*lvt & LVT_REMOTE_IRR && (*lvt & LVT_VECTOR) == (uint32_t)v) {
                *lvt &= ~LVT_REMOTE_IRR;
                lapic_lint_update(l, lint, false, fx);
            }
        }
        if (!(l->s.svr & SVR_NO_EOI_BROADCAST)) {
            fx->eoi = true;
            fx->eoi_vector = (uint8_t)v;
        }
    }
    lapic_refresh(l, fx);
}

/* ---- what the vCPU asks ---- */

bool lapic_pending(const struct lapic *l)
{
    uint8_t ready = atomic_load_explicit(&l->ready, memory_order_acquire);

    return ready & READY_FIXED || (ready & READY_EXTINT && pic_waiting(l));
}

int lapic_ack(struct lapic *l)
{
    struct lapic_fx fx = {0};
    int v = -1;

    if (atomic_load_explicit(&l->ready, memory_order_acquire) & READY_EXTINT && pic_waiting(l)) {
        lapic_lock(l);
        l->s.extint = false;
        lapic_refresh(l, &fx);
        lapic_unlock(l, &fx);
        return l->cfg.pic_ack(l->cfg.pic);
    }
    lapic_lock(l);
    if (atomic_load_explicit(&l->ready, memory_order_relaxed) & READY_FIXED) {
        v = lapic_highest(l->s.irr);
        set_bit(l->s.irr, (uint8_t)v, false);
        set_bit(l->s.isr, (uint8_t)v, true);
        lapic_refresh(l, &fx);
    }
    lapic_unlock(l, &fx);
    return v;
}

uint8_t lapic_get_cr8(struct lapic *l)
{
    uint8_t v;

    lapic_lock(l);
    v = (uint8_t)(l->s.tpr >> 4);
    pthread_mutex_unlock(&l->lock);
    return v;
}

void lapic_set_cr8(struct lapic *l, uint8_t v)
{
    struct lapic_fx fx = {0};

    lapic_lock(l);
    l->s.tpr = (uint32_t)(v & 0xf) << 4;
    lapic_refresh(l, &fx);
    lapic_unlock(l, &fx);
}

uint64_t lapic_base(struct lapic *l)
{
    return atomic_load_explicit(&l->base, memory_order_relaxed);
}

/* ---- life cycle ---- */

/* All registers as after power-up or INIT (SDM vol. 3 §11.4.7.1 and §11.12.5.1), except
 * IA32_APIC_BASE, the ID and the level of the pins. */
void lapic_init_state(struct lapic *l)
{
    struct lapic_state old = l->s;

    l->s = (struct lapic_state){
        .base = old.base,
        .deadline = TIMER_OFF,
        .id = old.id,
        .dfr = UINT32_MAX,
        .svr = 0xff,
        .lint = {old.lint[0], old.lint[1]},
    };
    if (lapic_x2apic(l))
        l->s.ldr = l->s.id >> 4 << 16 | 1u << (l->s.id & 0xf);
    for (int i = 0; i < LVT_COUNT; i++)
        l->s.lvt[i] = LVT_MASKED;
    atomic_store_explicit(&l->arb, 0, memory_order_relaxed);
    lapic_timer_arm(l);
}

void lapic_reset(struct lapic *l, bool init)
{
    struct lapic_fx fx = {0};

    lapic_lock(l);
    if (!init) {
        l->s.base = BASE_DEFAULT | BASE_ENABLE | (l->cfg.bsp ? BASE_BSP : 0);
        l->s.id = l->cfg.id;
        atomic_store_explicit(&l->base, l->s.base, memory_order_relaxed);
    }
    lapic_init_state(l);
    lapic_refresh(l, &fx);
    lapic_unlock(l, &fx);
}

int lapic_new(struct lapic **out, struct apic_bus *bus, const struct lapic_cfg *cfg, struct err *e)
{
    struct lapic *l = calloc(1, sizeof(*l));
    int rc;

    if (!l)
        return err_set(e, ENOMEM, "no memory for a local APIC");
    l->cfg = *cfg;
    l->bus = bus;
    l->clock = cfg->timers->clock;
    l->armed = TIMER_OFF;
    pthread_mutex_init(&l->lock, NULL);
    timer_init(&l->timer, lapic_timer_fire, l);
    rc = timer_attach(cfg->timers, &l->timer, e);
    if (rc)
        goto no_timer;
    lapic_reset(l, false);
    rc = apic_bus_join(bus, l, e);
    if (rc)
        goto no_bus;
    *out = l;
    return 0;
no_bus:
    timer_detach(cfg->timers, &l->timer);
no_timer:
    pthread_mutex_destroy(&l->lock);
    free(l);
    return rc;
}

void lapic_free(struct lapic *l)
{
    if (!l)
        return;
    apic_bus_leave(l->bus, l);
    lapic_quiesce(l);
    timer_detach(l->cfg.timers, &l->timer);
    pthread_mutex_destroy(&l->lock);
    free(l);
}

void lapic_quiesce(struct lapic *l)
{
    lapic_lock(l);
    l->quiet = true;
    l->armed = TIMER_OFF;
    pthread_mutex_unlock(&l->lock);
    timer_cancel_sync(l->cfg.timers, &l->timer);
}

void lapic_resume(struct lapic *l)
{
    struct lapic_fx fx = {0};

    lapic_lock(l);
    l->quiet = false;
    lapic_timer_arm(l);
    lapic_unlock(l, &fx);
    /* After a load nobody has told the vCPU. */
    if (lapic_pending(l))
        l->cfg.event(l->cfg.owner, LAPIC_EV_INTR, 0);
}

/* ---- state ---- */

static const struct state_field lapic_fields[] = {
    STATE_FIELD(struct lapic_state, base),
    STATE_FIELD(struct lapic_state, deadline),
    STATE_FIELD(struct lapic_state, tsc_deadline),
    STATE_FIELD(struct lapic_state, icr),
    STATE_FIELD(struct lapic_state, id),
    STATE_FIELD_MAX(struct lapic_state, tpr, 0xff),
    STATE_FIELD(struct lapic_state, ldr),
    STATE_FIELD(struct lapic_state, dfr),
    STATE_FIELD_MAX(struct lapic_state, svr, 0x13ff),
    STATE_FIELD_MAX(struct lapic_state, esr, 0xff),
    STATE_FIELD_MAX(struct lapic_state, esr_latch, 0xff),
    STATE_ARRAY_MAX(struct lapic_state, lvt, 0x7ffff),
    STATE_FIELD(struct lapic_state, timer_init),
    STATE_FIELD_MAX(struct lapic_state, timer_div, 0xb),
    STATE_FIELD(struct lapic_state, arb),
    STATE_ARRAY(struct lapic_state, irr),
    STATE_ARRAY(struct lapic_state, isr),
    STATE_ARRAY(struct lapic_state, tmr),
    STATE_ARRAY(struct lapic_state, lint),
    STATE_FIELD(struct lapic_state, extint),
    STATE_PAD(struct lapic_state, pad),
};

static int lapic_validate(const void *p, struct err *e)
{
    const struct lapic_state *s = p;

    if (s->base & BASE_X2APIC && !(s->base & BASE_ENABLE))
        return err_set(e, EINVAL, "base: x2APIC mode without the enable bit");
    if (s->base & (PAGE_MASK & ~(BASE_BSP | BASE_X2APIC | BASE_ENABLE)))
        return err_set(e, EINVAL, "base: reserved bits are set");
    if (s->base & BASE_X2APIC && s->ldr != (s->id >> 4 << 16 | 1u << (s->id & 0xf)))
        return err_set(e, EINVAL, "ldr: does not follow from the x2APIC ID");
    if ((s->irr[0] | s->isr[0]) & 0xffff)
        return err_set(e, EINVAL, "irr, isr: a vector below 16");
    return 0;
}

const struct state_desc lapic_state_desc = {
    .name = "lapic",
    .version = 1,
    .size = sizeof(struct lapic_state),
    .fields = lapic_fields,
    .nfields = ARRAY_LEN(lapic_fields),
    .validate = lapic_validate,
};

int lapic_save(struct lapic *l, struct sbuf *out)
{
    int rc;

    lapic_lock(l);
    rc = state_save(&lapic_state_desc, &l->s, out);
    pthread_mutex_unlock(&l->lock);
    return rc;
}

int lapic_load(struct lapic *l, const uint8_t *data, size_t len, size_t *used, struct err *e)
{
    struct lapic_fx fx = {0};
    struct lapic_state s;
    size_t n;
    int rc = state_load(&lapic_state_desc, &s, data, len, &n, e);

    if (rc)
        return rc;
    if (s.id != l->cfg.id)
        return err_set(e, EINVAL, "state 'lapic': it is of APIC %u, not %u", s.id, l->cfg.id);
    lapic_lock(l);
    l->s = s;
    atomic_store_explicit(&l->base, s.base, memory_order_relaxed);
    atomic_store_explicit(&l->arb, s.arb, memory_order_relaxed);
    lapic_refresh(l, &fx);
    pthread_mutex_unlock(&l->lock); /* effects wait for lapic_resume */
    *used = n;
    return 0;
}
