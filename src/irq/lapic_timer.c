/*
 * The local APIC's timer (SDM vol. 3 §11.5.4). Its base clock is 1 GHz, so one count is
 * 1 ns << divider. The only running state is the deadline of the next expiry; the current count is
 * computed from it, and periodic deadlines lie on the grid that the first one started, so that
 * nothing drifts however late the host is.
 */
#include "irq/lapic_impl.h"

/* A period shorter than this would keep the host busy with nothing but timer callbacks. Expiries
 * are then taken on every n-th point of the grid only; the current count is not affected. */
#define MIN_PERIOD_NS 200000u

enum lapic_timer_mode lapic_timer_mode(const struct lapic *l)
{
    /* The reserved mode 3 counts once, like one-shot. */
    return (enum lapic_timer_mode)bits(l->s.lvt[LVT_TIMER], 18, 17);
}

static unsigned divide_shift(const struct lapic *l)
{
    uint32_t d = l->s.timer_div;

    return ((d & 3) + (d >> 1 & 4) + 1) & 7;
}

static uint64_t period(const struct lapic *l)
{
    return (uint64_t)l->s.timer_init << divide_shift(l);
}

void lapic_timer_arm(struct lapic *l)
{
    uint64_t want = l->s.lvt[LVT_TIMER] & LVT_MASKED ? TIMER_OFF : l->s.deadline;

    if (l->quiet || want == l->armed)
        return;
    l->armed = want;
    if (want == TIMER_OFF)
        timer_cancel(l->cfg.timers, &l->timer);
    else
        timer_arm(l->cfg.timers, &l->timer, want);
}

/* The first point of the grid after now that is worth a callback. */
static uint64_t next_deadline(uint64_t deadline, uint64_t p, uint64_t now)
{
    uint64_t points = 1;

    if (p < MIN_PERIOD_NS)
        points = (MIN_PERIOD_NS + p - 1) / p;
    return deadline + ((now - deadline) / p + points) * p;
}

void lapic_timer_settle(struct lapic *l, struct lapic_fx *fx)
{
    uint64_t now, p = period(l);

    if (l->s.deadline == TIMER_OFF)
        return;
    now = clock_now(l->clock);
    if (l->s.deadline > now)
        return;
    if (lapic_timer_mode(l) == TIMER_PERIODIC && p) {
        l->s.deadline = next_deadline(l->s.deadline, p, now);
    } else {
        l->s.deadline = TIMER_OFF;
        l->s.tsc_deadline = 0;
    }
    lapic_timer_arm(l);
    if (!(l->s.lvt[LVT_TIMER] & LVT_MASKED))
        lapic_accept_vector(l, (uint8_t)(l->s.lvt[LVT_TIMER] & LVT_VECTOR), false, fx);
}

void lapic_timer_fire(void *arg)
{
    struct lapic *l = arg;
    struct lapic_fx fx = {0};

    lapic_lock(l);
    if (!l->quiet) {
        l->armed = TIMER_OFF;
        lapic_timer_settle(l, &fx);
        lapic_timer_arm(l);
    }
    lapic_unlock(l, &fx);
}

/* Time until the count reaches zero; 0 when it is there for good. */
static uint64_t remaining(const struct lapic *l, uint64_t now)
{
    uint64_t d = l->s.deadline, p = period(l);
    bool periodic = lapic_timer_mode(l) == TIMER_PERIODIC;

    if (d == TIMER_OFF || !p)
        return 0;
    if (d <= now)
        return periodic ? p - (now - d) % p : 0;
    /* The deadline may be several points of the grid away. */
    return periodic ? (d - now - 1) % p + 1 : d - now;
}

uint32_t lapic_timer_count(const struct lapic *l)
{
    uint64_t n;

    if (lapic_timer_mode(l) == TIMER_TSC_DEADLINE)
        return 0;
    n = remaining(l, clock_now(l->clock));
    n = (n >> divide_shift(l)) + !!(n & (BIT(divide_shift(l)) - 1));
    return (uint32_t)MIN(n, l->s.timer_init);
}

void lapic_timer_set_count(struct lapic *l, uint32_t count)
{
    if (lapic_timer_mode(l) == TIMER_TSC_DEADLINE)
        return;
    l->s.timer_init = count;
    l->s.deadline = count ? clock_now(l->clock) + period(l) : TIMER_OFF;
    lapic_timer_arm(l);
}

/* The count goes on from where it is, at the new rate. */
void lapic_timer_set_divide(struct lapic *l, uint32_t div)
{
    uint64_t left = lapic_timer_count(l);

    l->s.timer_div = div;
    if (left) {
        l->s.deadline = clock_now(l->clock) + (left << divide_shift(l));
        lapic_timer_arm(l);
    }
}

void lapic_timer_set_lvt(struct lapic *l, uint32_t lvt, struct lapic_fx *fx)
{
    enum lapic_timer_mode old = lapic_timer_mode(l), new;
    uint64_t now = clock_now(l->clock), left;

    lapic_timer_settle(l, fx);
    left = remaining(l, now);
    l->s.lvt[LVT_TIMER] = lvt;
    new = lapic_timer_mode(l);
    if ((old == TIMER_TSC_DEADLINE) != (new == TIMER_TSC_DEADLINE)) {
        /* Going to or from TSC-deadline mode disarms the timer (§11.5.4.1). */
        l->s.deadline = TIMER_OFF;
        l->s.tsc_deadline = 0;
        l->s.timer_init = 0;
    } else if (old == TIMER_PERIODIC && new != TIMER_PERIODIC && left) {
        l->s.deadline = now + left;
    }
    lapic_timer_arm(l);
}

/* When, in guest ns, the guest's TSC reaches the value: now if it has, TIMER_OFF if it never will.
 */
static uint64_t tsc_to_ns(const struct lapic *l, uint64_t tsc)
{
    uint64_t now = clock_now(l->clock);
    uint64_t base = clock_ns_to_tsc(l->clock, now);
    uint64_t guest = base + l->tsc_off, ns;

    if (tsc <= guest)
        return now;
    if (tsc - guest > UINT64_MAX - base)
        return TIMER_OFF;
    base += tsc - guest;
    ns = clock_tsc_to_ns(l->clock, base);
    /* The conversion rounds down; an interrupt must not come before the TSC has the value. */
    if (ns != TIMER_OFF && clock_ns_to_tsc(l->clock, ns) < base)
        ns++;
    return ns;
}

void lapic_timer_set_tsc(struct lapic *l, uint64_t deadline, struct lapic_fx *fx)
{
    if (lapic_timer_mode(l) != TIMER_TSC_DEADLINE)
        return;
    l->s.tsc_deadline = deadline;
    l->s.deadline = deadline ? tsc_to_ns(l, deadline) : TIMER_OFF;
    lapic_timer_settle(l, fx);
    lapic_timer_arm(l);
}

void lapic_timer_retune(struct lapic *l)
{
    if (lapic_timer_mode(l) != TIMER_TSC_DEADLINE || !l->s.tsc_deadline)
        return;
    l->s.deadline = tsc_to_ns(l, l->s.tsc_deadline);
    lapic_timer_arm(l);
}
