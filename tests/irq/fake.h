/* What the tests of interrupt controllers share: a stepped clock, fake vCPUs, checks of saved
 * state. */
#ifndef RING3_TESTS_IRQ_FAKE_H
#define RING3_TESTS_IRQ_FAKE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "irq/ioapic.h"
#include "irq/lapic.h"
#include "irq/pic.h"

#define CPUS 4
#define MS 1000000ull
#define SEC 1000000000ull

struct fake_cpu {
    unsigned count[5]; /* by enum lapic_event */
    uint32_t sipi;
};

/* A machine that is only a clock, an APIC bus and up to CPUS local APICs. */
struct fake {
    struct log log;
    struct trace trace;
    struct clock clock;
    struct timerq q;
    struct apic_bus *bus;
    struct lapic *apic[CPUS];
    struct fake_cpu cpu[CPUS];
    unsigned n;
    bool pic_intr; /* the fake PIC */
    int pic_vector;
    uint8_t eois[64];
    unsigned neoi;
};

static inline void fake_event(void *owner, enum lapic_event ev, uint32_t arg)
{
    struct fake_cpu *c = owner;

    c->count[ev]++;
    if (ev == LAPIC_EV_SIPI)
        c->sipi = arg;
}

static inline bool fake_pic_pending(void *p) { return ((struct fake *)p)->pic_intr; }

static inline int fake_pic_ack(void *p)
{
    struct fake *f = p;

    f->pic_intr = false;
    return f->pic_vector;
}

static inline void fake_eoi(void *p, uint8_t vector)
{
    struct fake *f = p;

    f->eois[f->neoi++ % ARRAY_LEN(f->eois)] = vector;
}

static inline struct fake *fake_new(unsigned cpus, uint64_t tsc_khz)
{
    struct fake *f = calloc(1, sizeof(*f));
    struct err e = {""};

    assert_non_null(f);
    log_init(&f->log, LOG_ERROR, 2);
    trace_init(&f->trace, &f->log);
    clock_init_stepped(&f->clock, tsc_khz, 0);
    assert_int_equal(timerq_init(&f->q, &f->clock, &e), 0);
    assert_int_equal(apic_bus_new(&f->bus, &e), 0);
    apic_bus_set_eoi(f->bus, fake_eoi, f);
    f->n = cpus;
    for (unsigned i = 0; i < cpus; i++) {
        struct lapic_cfg cfg = {
            .id = i,
            .bsp = i == 0,
            .maxphys = 40,
            .timers = &f->q,
            .trace = &f->trace,
            .event = fake_event,
            .owner = &f->cpu[i],
            .pic_pending = i == 0 ? fake_pic_pending : NULL,
            .pic_ack = i == 0 ? fake_pic_ack : NULL,
            .pic = f,
        };

        assert_int_equal(lapic_new(&f->apic[i], f->bus, &cfg, &e), 0);
    }
    return f;
}

static inline void fake_free(struct fake *f)
{
    for (unsigned i = 0; i < f->n; i++)
        lapic_free(f->apic[i]);
    apic_bus_free(f->bus);
    timerq_fini(&f->q);
    free(f);
}

static inline void fake_step(struct fake *f, uint64_t ns)
{
    clock_step(&f->clock, ns);
    timerq_run(&f->q);
}

/* Software-enables all APICs. */
static inline void fake_enable(struct fake *f)
{
    for (unsigned i = 0; i < f->n; i++)
        lapic_mmio_write(f->apic[i], 0xf0, 0x1ff);
}

static inline void fake_x2apic(struct lapic *l)
{
    assert_int_equal(lapic_wrmsr(l, 0x1b, lapic_base(l) | 0xc00), 0);
}

static inline uint64_t fake_rdmsr(struct lapic *l, uint32_t msr)
{
    uint64_t v = 0xdead;

    assert_int_equal(lapic_rdmsr(l, msr, &v), 0);
    return v;
}

static inline bool fake_irr(struct lapic *l, uint8_t v)
{
    return lapic_mmio_read(l, 0x200 + v / 32 * 16) >> (v % 32) & 1;
}

/* ---- saved state ---- */

static inline uint64_t fake_random(void *arg)
{
    uint64_t *s = arg, z = *s += 0x9e3779b97f4a7c15;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

struct fake_saver {
    const struct state_desc *desc;
    void *obj;
    int (*save)(void *obj, struct sbuf *out);
    int (*load)(void *obj, const uint8_t *data, size_t len, size_t *used, struct err *e);
    void (*legalise)(void *s); /* makes a random state one that validate() takes; may be NULL */
};

/* Coverage of each byte, save-load-save identity for random states, and refusal of damaged ones. */
static inline void fake_check_state(const struct fake_saver *t)
{
    uint64_t seed = 42;
    struct err e = {""};
    void *s = calloc(1, t->desc->size);

    assert_non_null(s);
    if (state_desc_check(t->desc, &e))
        fail_msg("%s", e.msg);
    for (int round = 0; round < 200; round++) {
        struct sbuf a, b, c;
        size_t used = 0;

        sbuf_init(&a);
        sbuf_init(&b);
        sbuf_init(&c);
        state_randomise(t->desc, s, fake_random, &seed);
        if (t->legalise)
            t->legalise(s);
        assert_int_equal(state_save(t->desc, s, &a), 0);
        if (t->load(t->obj, a.data, a.len, &used, &e))
            fail_msg("%s", e.msg);
        assert_int_equal(used, a.len);
        assert_int_equal(t->save(t->obj, &b), 0);
        assert_int_equal(a.len, b.len);
        assert_memory_equal(a.data, b.data, a.len);

        for (int k = 0; k < 20; k++) {
            size_t at = fake_random(&seed) % a.len, version = 6 + strlen(t->desc->name);
            uint8_t bit = (uint8_t)(1u << (fake_random(&seed) & 7));

            if (at == version) /* an older version is not damage */
                bit = 0x80;
            a.data[at] ^= bit;
            assert_int_not_equal(t->load(t->obj, a.data, a.len, &used, &e), 0);
            assert_true(e.msg[0]);
            a.data[at] ^= bit;
            assert_int_not_equal(t->load(t->obj, a.data, at, &used, &e), 0);
        }
        assert_int_equal(t->save(t->obj, &c), 0);
        assert_memory_equal(b.data, c.data, b.len);
        sbuf_free(&a);
        sbuf_free(&b);
        sbuf_free(&c);
    }
    free(s);
}

#endif
