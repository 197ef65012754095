/*
 * An interrupt line as its driver sees it: a function to call with the new level. The struct is
 * copied freely; an unset line (set == NULL) goes nowhere. Lock order is device -> irq controller
 * -> vcpu: a device calls with its own lock held, so `set` never calls back into a device
 * synchronously except through the documented eoi hook of ioapic.h.
 */
#ifndef RING3_IRQ_IRQ_H
#define RING3_IRQ_IRQ_H

#include <stdbool.h>
#include <stddef.h>

struct irq {
    void (*set)(void *owner, int n, bool level);
    void *owner;
    int n;
};

static inline void irq_set(const struct irq *i, bool level)
{
    if (i->set)
        i->set(i->owner, i->n, level);
}

/* An edge: high, then low. */
static inline void irq_pulse(const struct irq *i)
{
    irq_set(i, true);
    irq_set(i, false);
}

#endif
