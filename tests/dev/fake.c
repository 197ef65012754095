#include "fake.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"

#define ROUNDS 200
#define DAMAGES 2000

static void on_request(void *owner, int request, int arg)
{
    struct fake *f = owner;

    f->requests[request]++;
    f->request_arg = arg;
}

static void on_irq(void *owner, int n, bool level)
{
    struct fake *f = owner;

    f->edges[n] += level && !f->level[n];
    f->level[n] = level;
}

void fake_init(struct fake *f)
{
    memset(f, 0, sizeof(*f));
    clock_init_stepped(&f->clock, 1000000, 0);
    log_init(&f->log, LOG_ERROR, STDERR_FILENO);
    trace_init(&f->trace, &f->log);
    assert_int_equal(timerq_init(&f->timers, &f->clock, NULL), 0);
    f->ctx = (struct dev_ctx){.clock = &f->clock,
                              .timers = &f->timers,
                              .log = &f->log,
                              .trace = &f->trace,
                              .request = on_request,
                              .owner = f};
    assert_int_equal(physmap_new(&f->ctx.map, 40, NULL), 0);
    assert_int_equal(pio_bus_new(&f->pio, &f->ctx, NULL), 0);
}

void fake_fini(struct fake *f)
{
    pio_bus_free(f->pio);
    physmap_free(f->ctx.map);
    timerq_fini(&f->timers);
}

struct irq fake_irq(struct fake *f, int line)
{
    return (struct irq){.set = on_irq, .owner = f, .n = line};
}

struct device *fake_device(struct fake *f, const struct device_class *cls, const char *id,
                           const void *cfg)
{
    struct err e = {0};
    struct device *d = device_new(cls, id, &f->ctx, cfg, &e);

    if (!d)
        fail_msg("%s", e.msg);
    return d;
}

void fake_ports(struct fake *f, uint16_t port, unsigned n, struct device *d,
                const struct io_ops *ops)
{
    assert_int_equal(pio_map(f->pio, port, n, d, ops, NULL), 0);
}

uint8_t inb(struct fake *f, uint16_t port) { return (uint8_t)pio_read(f->pio, port, 1); }

void outb(struct fake *f, uint16_t port, uint8_t v) { pio_write(f->pio, port, 1, v); }

void fake_step(struct fake *f, uint64_t ns)
{
    clock_step(&f->clock, ns);
    timerq_run(&f->timers);
}

void fake_migrate(struct device *src, struct device *dst)
{
    struct sbuf b;
    struct err e = {0};
    size_t used;

    sbuf_init(&b);
    device_quiesce(src);
    assert_int_equal(device_save(src, &b), 0);
    device_resume(src);
    device_quiesce(dst);
    if (device_load(dst, b.data, b.len, &used, &e))
        fail_msg("%s", e.msg);
    assert_int_equal(used, b.len);
    device_resume(dst);
    sbuf_free(&b);
}

/* xorshift64*: fixed seed, so that a failure comes back. */
static uint64_t next_random(void *arg)
{
    uint64_t *x = arg;

    *x ^= *x >> 12;
    *x ^= *x << 25;
    *x ^= *x >> 27;
    return *x * 0x2545f4914f6cdd1dull;
}

static void save(struct device *d, struct sbuf *b)
{
    sbuf_init(b);
    assert_int_equal(device_save(d, b), 0);
}

void fake_check_state(struct fake *f, const struct device_class *cls, const void *cfg)
{
    struct device *a = fake_device(f, cls, "a", cfg);
    void *s = (char *)a + cls->state_off;
    uint64_t seed = 1;
    struct err e = {0};
    size_t used;

    if (state_desc_check(cls->state, &e))
        fail_msg("%s", e.msg);
    device_quiesce(a);
    for (unsigned i = 0; i < ROUNDS; i++) {
        struct sbuf first, second;

        state_randomise(cls->state, s, next_random, &seed);
        save(a, &first);
        state_randomise(cls->state, s, next_random, &seed);
        if (device_load(a, first.data, first.len, &used, &e))
            fail_msg("%s", e.msg);
        assert_int_equal(used, first.len);
        save(a, &second);
        assert_int_equal(first.len, second.len);
        assert_memory_equal(first.data, second.data, first.len);

        /* Any state that loads must be one to go on from. */
        device_resume(a);
        fake_step(f, 1000000);
        device_quiesce(a);
        sbuf_free(&first);
        sbuf_free(&second);
    }

    struct sbuf good, now;
    save(a, &good);
    for (unsigned i = 0; i < DAMAGES; i++) {
        uint64_t r = next_random(&seed);
        size_t at = r % good.len;
        uint8_t old = good.data[at];
        /* Every third is cut short instead. */
        size_t len = i % 3 ? good.len : at;

        if (len == good.len)
            good.data[at] ^= (uint8_t)(1 + (r >> 32) % 255);
        assert_int_not_equal(device_load(a, good.data, len, &used, &e), 0);
        good.data[at] = old;
    }
    save(a, &now);
    assert_int_equal(good.len, now.len);
    assert_memory_equal(good.data, now.data, good.len);
    sbuf_free(&good);
    sbuf_free(&now);

    device_resume(a);
    device_reset(a, RESET_COLD);
    device_free(a);
}
