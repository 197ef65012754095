/*
 * Message delivery between local APICs, I/O APIC and MSIs: destination matching (SDM vol. 3
 * §11.6.2, §11.12.2 for x2APIC) and lowest-priority arbitration.
 *
 * The list of members changes only while nothing is delivered (lapic_new and lapic_free), so
 * walking it takes no lock; what matching needs of a member is in its atomics.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "irq/lapic_impl.h"

struct apic_bus {
    struct lapic **member;
    uint32_t n;
    void (*eoi)(void *owner, uint8_t vector);
    void *eoi_owner;
    void (*retry)(void *owner);
    void *retry_owner;
};

int apic_bus_new(struct apic_bus **out, struct err *e)
{
    *out = calloc(1, sizeof(**out));
    return *out ? 0 : err_set(e, ENOMEM, "no memory for the APIC bus");
}

void apic_bus_free(struct apic_bus *b)
{
    if (!b)
        return;
    assert(!b->n);
    free(b->member);
    free(b);
}

void apic_bus_set_eoi(struct apic_bus *b, void (*hook)(void *owner, uint8_t vector), void *owner)
{
    b->eoi = hook;
    b->eoi_owner = owner;
}

void apic_bus_set_retry(struct apic_bus *b, void (*hook)(void *owner), void *owner)
{
    b->retry = hook;
    b->retry_owner = owner;
}

void apic_bus_retry(struct apic_bus *b)
{
    if (b->retry)
        b->retry(b->retry_owner);
}

void apic_bus_eoi(struct apic_bus *b, uint8_t vector)
{
    if (b->eoi)
        b->eoi(b->eoi_owner, vector);
}

int apic_bus_join(struct apic_bus *b, struct lapic *l, struct err *e)
{
    struct lapic **p;

    for (uint32_t i = 0; i < b->n; i++)
        if (b->member[i]->cfg.id == l->cfg.id)
            return err_set(e, EEXIST, "two local APICs have the ID %u", l->cfg.id);
    p = realloc(b->member, (b->n + 1) * sizeof(*p));
    if (!p)
        return err_set(e, ENOMEM, "no memory for the APIC bus");
    b->member = p;
    b->member[b->n++] = l;
    return 0;
}

void apic_bus_leave(struct apic_bus *b, struct lapic *l)
{
    for (uint32_t i = 0; i < b->n; i++) {
        if (b->member[i] == l) {
            memmove(&b->member[i], &b->member[i + 1], (--b->n - i) * sizeof(*b->member));
            return;
        }
    }
}

static bool is_broadcast(const struct apic_msg *m)
{
    return m->dest == (m->x2apic ? UINT32_MAX : 0xff);
}

static bool match_logical(const struct apic_msg *m, uint64_t addr)
{
    uint32_t ldr = ADDR_LDR(addr);

    if (addr & ADDR_X2APIC)
        return m->dest >> 16 == ldr >> 16 && m->dest & ldr & 0xffff;
    /* An x2APIC sender's destination beyond 8 bits names nobody in xAPIC mode. */
    if (m->dest > 0xff)
        return false;
    ldr >>= 24;
    if (addr & ADDR_FLAT)
        return m->dest & ldr;
    return (m->dest >> 4 == ldr >> 4 || m->dest >> 4 == 0xf) && m->dest & ldr & 0xf;
}

static bool match(const struct apic_msg *m, const struct lapic *l)
{
    uint64_t addr = atomic_load_explicit(&l->address, memory_order_relaxed);

    if (!(addr & ADDR_ENABLED))
        return false;
    if (is_broadcast(m))
        return true;
    return m->logical ? match_logical(m, addr) : m->dest == l->cfg.id;
}

/* Does a take it rather than b: lower processor priority, then the one that has had fewer. */
static bool preferred(const struct lapic *a, const struct lapic *b)
{
    uint8_t pa = atomic_load_explicit(&a->ppr, memory_order_relaxed) >> 4;
    uint8_t pb = atomic_load_explicit(&b->ppr, memory_order_relaxed) >> 4;

    if (pa != pb)
        return pa < pb;
    return (int32_t)(atomic_load_explicit(&a->arb, memory_order_relaxed) -
                     atomic_load_explicit(&b->arb, memory_order_relaxed)) < 0;
}

static int deliver_lowest(struct apic_bus *b, const struct apic_msg *m, const struct lapic *except)
{
    struct lapic *best = NULL;

    for (uint32_t i = 0; i < b->n; i++) {
        struct lapic *l = b->member[i];

        if (l == except || !match(m, l) ||
            !(atomic_load_explicit(&l->address, memory_order_relaxed) & ADDR_ACCEPTS))
            continue;
        if (!best || preferred(l, best))
            best = l;
    }
    return best && lapic_accept(best, m);
}

int apic_bus_deliver(struct apic_bus *b, const struct apic_msg *m, const struct lapic *except)
{
    int n = 0;

    if (m->delivery == APIC_LOWEST)
        return deliver_lowest(b, m, except);
    for (uint32_t i = 0; i < b->n; i++)
        if (b->member[i] != except && match(m, b->member[i]))
            n += lapic_accept(b->member[i], m);
    return n;
}

int apic_bus_msi(struct apic_bus *b, uint64_t addr, uint32_t data)
{
    struct apic_msg m = {
        .dest = (uint32_t)bits(addr, 19, 12),
        .logical = bits(addr, 2, 2),
        .vector = (uint8_t)data,
        .delivery = (uint8_t)bits(data, 10, 8),
        .level = bits(data, 15, 15),
        .assert_ = bits(data, 14, 14),
    };

    if (bits(addr, 31, 20) != 0xfee || addr >> 32)
        return 0;
    /* The redirection hint asks for one processor of those addressed (§11.11.1). */
    if (bits(addr, 3, 3) && m.delivery == APIC_FIXED)
        m.delivery = APIC_LOWEST;
    return apic_bus_deliver(b, &m, NULL);
}
