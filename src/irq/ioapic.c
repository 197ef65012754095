/*
 * The I/O APIC. Messages are collected under the mutex and sent after it is dropped; a
 * level-triggered entry gets its remote IRR beforehand, so that an EOI that follows at once finds
 * it set, and loses it again if no local APIC took the message; it is sent again when one might.
 */
#include "irq/ioapic.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "base/util.h"

/* Registers behind index/data (82093AA data sheet §3.2). */
#define IDX_ID 0x00
#define IDX_VERSION 0x01
#define IDX_ARB 0x02
#define IDX_ENTRY 0x10

#define VERSION (0x20u | (IOAPIC_PINS - 1) << 16)

/* Redirection entry. The delivery status (bit 12) always reads as idle. */
#define ENTRY_LOGICAL BIT(11)
#define ENTRY_REMOTE_IRR BIT(14)
#define ENTRY_LEVEL BIT(15)
#define ENTRY_MASKED BIT(16)
#define ENTRY_WRITABLE 0xff0000000001afffull
#define ENTRY_VALID (ENTRY_WRITABLE | ENTRY_REMOTE_IRR)

struct ioapic_state {
    uint64_t entry[IOAPIC_PINS];
    uint32_t line; /* pins that are asserted */
    uint8_t index;
    uint8_t id;
    uint8_t pad[2];
};

struct ioapic {
    struct ioapic_state s;
    pthread_mutex_t lock;
    struct apic_bus *bus;
    struct trace *trace;
    uint8_t initial_id;
};

/* Messages to send once the mutex is dropped. */
struct outbox {
    unsigned n;
    struct {
        uint8_t pin;
        bool remote_irr; /* set for this message */
        struct apic_msg m;
    } msg[IOAPIC_PINS];
};

static uint8_t delivery(uint64_t entry) { return (uint8_t)bits(entry, 10, 8); }

/* Only fixed and lowest-priority interrupts can be level-triggered. */
static bool is_level(uint64_t entry)
{
    return entry & ENTRY_LEVEL && (delivery(entry) == APIC_FIXED || delivery(entry) == APIC_LOWEST);
}

static void send(struct ioapic *a, unsigned pin, struct outbox *out)
{
    uint64_t entry = a->s.entry[pin];
    bool level = is_level(entry);

    if (level)
        a->s.entry[pin] |= ENTRY_REMOTE_IRR;
    out->msg[out->n].pin = (uint8_t)pin;
    out->msg[out->n].remote_irr = level;
    out->msg[out->n++].m = (struct apic_msg){
        .dest = (uint32_t)(entry >> 56),
        .logical = entry & ENTRY_LOGICAL,
        .vector = (uint8_t)entry,
        .delivery = delivery(entry),
        .level = level,
        .assert_ = true,
    };
}

/* Sends for a level-triggered pin that is asserted and not yet in service. */
static void service_level(struct ioapic *a, unsigned pin, struct outbox *out)
{
    uint64_t entry = a->s.entry[pin];

    if (a->s.line >> pin & 1 && is_level(entry) && !(entry & (ENTRY_MASKED | ENTRY_REMOTE_IRR)))
        send(a, pin, out);
}

static void unlock(struct ioapic *a, const struct outbox *out)
{
    pthread_mutex_unlock(&a->lock);
    for (unsigned i = 0; i < out->n; i++) {
        unsigned pin = out->msg[i].pin;
        const struct apic_msg *m = &out->msg[i].m;

        trace(a->trace, ioapic_deliver, "pin=%u vector=%#x mode=%u dest=%s%#x", pin, m->vector,
              m->delivery, m->logical ? "logical " : "", m->dest);
        if (apic_bus_deliver(a->bus, m, NULL) > 0 || !out->msg[i].remote_irr)
            continue;
        pthread_mutex_lock(&a->lock);
        a->s.entry[pin] &= ~ENTRY_REMOTE_IRR;
        pthread_mutex_unlock(&a->lock);
    }
}

void ioapic_set(void *ioapic, int pin, bool level)
{
    struct ioapic *a = ioapic;
    struct outbox out;
    uint32_t bit;
    bool edge;

    assert(pin >= 0 && pin < IOAPIC_PINS);
    bit = (uint32_t)BIT(pin);
    out.n = 0;
    pthread_mutex_lock(&a->lock);
    edge = level && !(a->s.line & bit);
    a->s.line = level ? a->s.line | bit : a->s.line & ~bit;
    if (is_level(a->s.entry[pin]))
        service_level(a, (unsigned)pin, &out);
    else if (edge && !(a->s.entry[pin] & ENTRY_MASKED)) /* an edge while masked is lost */
        send(a, (unsigned)pin, &out);
    unlock(a, &out);
}

void ioapic_eoi(void *ioapic, uint8_t vector)
{
    struct ioapic *a = ioapic;
    struct outbox out;

    out.n = 0;
    pthread_mutex_lock(&a->lock);
    for (unsigned pin = 0; pin < IOAPIC_PINS; pin++) {
        uint64_t *entry = &a->s.entry[pin];

        if (!(*entry & ENTRY_REMOTE_IRR) || (uint8_t)*entry != vector)
            continue;
        *entry &= ~ENTRY_REMOTE_IRR;
        service_level(a, pin, &out);
    }
    unlock(a, &out);
}

void ioapic_retry(void *ioapic)
{
    struct ioapic *a = ioapic;
    struct outbox out;

    out.n = 0;
    pthread_mutex_lock(&a->lock);
    for (unsigned pin = 0; pin < IOAPIC_PINS; pin++)
        service_level(a, pin, &out);
    unlock(a, &out);
}

/* ---- registers ---- */

static uint32_t read_data(const struct ioapic *a)
{
    unsigned i = a->s.index;

    switch (i) {
    case IDX_ID:
    case IDX_ARB:
        return (uint32_t)a->s.id << 24;
    case IDX_VERSION:
        return VERSION;
    }
    if (i >= IDX_ENTRY && i < IDX_ENTRY + 2 * IOAPIC_PINS)
        return (uint32_t)(a->s.entry[(i - IDX_ENTRY) / 2] >> (i & 1 ? 32 : 0));
    return 0;
}

static void write_entry(struct ioapic *a, unsigned i, uint32_t val, struct outbox *out)
{
    unsigned pin = i / 2;
    uint64_t entry = a->s.entry[pin];

    if (i & 1)
        entry = (entry & UINT32_MAX) | (uint64_t)val << 32;
    else
        entry =
            (entry & (~(uint64_t)UINT32_MAX | ENTRY_REMOTE_IRR)) | (val & (uint32_t)ENTRY_WRITABLE);
    entry &= ENTRY_VALID;
    /* An edge-triggered entry has no remote IRR; guests clear a stuck one this way. */
    if (!is_level(entry))
        entry &= ~ENTRY_REMOTE_IRR;
    a->s.entry[pin] = entry;
    service_level(a, pin, out);
}

static void write_data(struct ioapic *a, uint32_t val, struct outbox *out)
{
    unsigned i = a->s.index;

    if (i == IDX_ID)
        a->s.id = (uint8_t)bits(val, 27, 24);
    else if (i >= IDX_ENTRY && i < IDX_ENTRY + 2 * IOAPIC_PINS)
        write_entry(a, i - IDX_ENTRY, val, out);
}

uint32_t ioapic_mmio_read(struct ioapic *a, uint32_t off)
{
    uint32_t val = 0;

    pthread_mutex_lock(&a->lock);
    if (off == 0x00)
        val = a->s.index;
    else if (off == 0x10)
        val = read_data(a);
    pthread_mutex_unlock(&a->lock);
    return val;
}

void ioapic_mmio_write(struct ioapic *a, uint32_t off, uint32_t val)
{
    struct outbox out;

    if (off == 0x40) {
        ioapic_eoi(a, (uint8_t)val);
        return;
    }
    out.n = 0;
    pthread_mutex_lock(&a->lock);
    if (off == 0x00)
        a->s.index = (uint8_t)val;
    else if (off == 0x10)
        write_data(a, val, &out);
    unlock(a, &out);
}

/* ---- life cycle and state ---- */

void ioapic_reset(struct ioapic *a)
{
    pthread_mutex_lock(&a->lock);
    a->s = (struct ioapic_state){.id = a->initial_id & 0xf, .line = a->s.line};
    for (unsigned pin = 0; pin < IOAPIC_PINS; pin++)
        a->s.entry[pin] = ENTRY_MASKED;
    pthread_mutex_unlock(&a->lock);
}

int ioapic_new(struct ioapic **out, struct apic_bus *bus, uint8_t id, struct trace *t,
               struct err *e)
{
    struct ioapic *a = calloc(1, sizeof(*a));

    if (!a)
        return err_set(e, ENOMEM, "no memory for the I/O APIC");
    pthread_mutex_init(&a->lock, NULL);
    a->bus = bus;
    a->trace = t;
    a->initial_id = id;
    ioapic_reset(a);
    *out = a;
    return 0;
}

void ioapic_free(struct ioapic *a)
{
    if (!a)
        return;
    pthread_mutex_destroy(&a->lock);
    free(a);
}

static const struct state_field ioapic_fields[] = {
    STATE_ARRAY(struct ioapic_state, entry),
    STATE_FIELD_MAX(struct ioapic_state, line, BIT(IOAPIC_PINS) - 1),
    STATE_FIELD(struct ioapic_state, index),
    STATE_FIELD_MAX(struct ioapic_state, id, 0xf),
    STATE_PAD(struct ioapic_state, pad),
};

static int ioapic_validate(const void *p, struct err *e)
{
    const struct ioapic_state *s = p;

    for (unsigned pin = 0; pin < IOAPIC_PINS; pin++)
        if (s->entry[pin] & ~ENTRY_VALID)
            return err_set(e, EINVAL, "entry[%u]: reserved bits are set", pin);
    return 0;
}

const struct state_desc ioapic_state_desc = {
    .name = "ioapic",
    .version = 1,
    .size = sizeof(struct ioapic_state),
    .fields = ioapic_fields,
    .nfields = ARRAY_LEN(ioapic_fields),
    .validate = ioapic_validate,
};

int ioapic_save(struct ioapic *a, struct sbuf *out)
{
    int rc;

    pthread_mutex_lock(&a->lock);
    rc = state_save(&ioapic_state_desc, &a->s, out);
    pthread_mutex_unlock(&a->lock);
    return rc;
}

int ioapic_load(struct ioapic *a, const uint8_t *data, size_t len, size_t *used, struct err *e)
{
    int rc;

    pthread_mutex_lock(&a->lock);
    rc = state_load(&ioapic_state_desc, &a->s, data, len, used, e);
    pthread_mutex_unlock(&a->lock);
    return rc;
}
