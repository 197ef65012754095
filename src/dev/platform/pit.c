#include "dev/platform/pit.h"

#include <string.h>

#include "base/util.h"
#include "dev/platform/pit_counter.h"

#define NS_PER_SEC 1000000000u

/* Interrupts are never closer together than this many CLK (about 200 us): a guest could otherwise
 * keep the host busy with nothing but timer callbacks. */
#define MIN_PERIOD 239u

#define CATCH_UP_RATE 8
#define CATCH_UP_SECONDS 60

/* Port 0x61 (NMI_SC). */
#define P61_GATE2 0x01
#define P61_WRITABLE 0x0f /* gate 2, speaker, SERR# and IOCHK# enables */
#define P61_REFRESH 0x10
#define P61_OUT2 0x20
#define REFRESH_CLKS 18 /* 15.1 us, what firmware programs into channel 1 */

struct pit_state {
    struct pit_counter counter[3];
    uint64_t rise;     /* CLK of channel 0's next rising edge, PIT_NEVER if none */
    uint64_t deadline; /* guest ns of the next interrupt; earlier than rise while catching up */
    uint32_t owed;     /* interrupts to catch up on */
    uint8_t port61;
    uint8_t pad[3];
};

struct pit {
    struct device dev;
    struct pit_state s;
    struct pit_cfg cfg;
    struct timer timer;
    bool quiet;
};

static struct pit *to_pit(struct device *d) { return container_of(d, struct pit, dev); }

static uint64_t clk(uint64_t ns) { return (uint64_t)((unsigned __int128)ns * PIT_HZ / NS_PER_SEC); }

/* The first nanosecond at which clk() gives t. */
static uint64_t clk_to_ns(uint64_t t)
{
    unsigned __int128 ns = ((unsigned __int128)t * NS_PER_SEC + PIT_HZ - 1) / PIT_HZ;

    return t == PIT_NEVER || ns > UINT64_MAX ? TIMER_OFF : (uint64_t)ns;
}

static uint64_t clk_now(const struct pit *p) { return clk(clock_now(p->dev.ctx->clock)); }

static void arm(struct pit *p)
{
    if (p->quiet)
        return;
    if (p->s.deadline == TIMER_OFF)
        timer_cancel(p->dev.ctx->timers, &p->timer);
    else
        timer_arm(p->dev.ctx->timers, &p->timer, p->s.deadline);
}

/* Sets rise and deadline for the time after `now`. */
static void schedule(struct pit *p, uint64_t now)
{
    struct pit_counter *c = &p->s.counter[0];
    uint32_t period = pit_counter_period(c);

    p->s.rise = pit_counter_next_rise(c, now);
    if (period && period < MIN_PERIOD && p->s.rise - now < MIN_PERIOD)
        p->s.rise += (MIN_PERIOD - 1) / period * period;
    p->s.deadline = clk_to_ns(p->s.rise);
    if (p->s.owed) {
        uint64_t soon = now + MAX(period / CATCH_UP_RATE, MIN_PERIOD);

        p->s.deadline = MIN(p->s.deadline, clk_to_ns(soon));
    }
    arm(p);
}

/* The guest changed channel 0. */
static void reprogrammed(struct pit *p, uint64_t now)
{
    p->s.owed = 0;
    irq_set(&p->cfg.irq, pit_counter_out(&p->s.counter[0], now));
    schedule(p, now);
}

static void tick(struct pit *p, uint64_t now)
{
    uint32_t period = pit_counter_period(&p->s.counter[0]);

    if (now >= p->s.rise) {
        if (p->cfg.lost == PIT_LOST_CATCH_UP && period) {
            uint64_t most = (uint64_t)CATCH_UP_SECONDS * PIT_HZ / period;

            p->s.owed = (uint32_t)MIN(p->s.owed + (now - p->s.rise) / period, most);
        }
    } else if (p->s.owed) {
        p->s.owed--;
    }
    irq_set(&p->cfg.irq, false);
    irq_set(&p->cfg.irq, true);
    schedule(p, now);
}

static void pit_timer(void *arg)
{
    struct pit *p = arg;
    uint64_t ns;

    device_lock(&p->dev);
    ns = clock_now(p->dev.ctx->clock);
    if (!p->quiet) {
        if (p->s.deadline <= ns)
            tick(p, clk(ns));
        else
            arm(p);
    }
    device_unlock(&p->dev);
}

/* ---- ports 0x40-0x43 ---- */

static uint64_t pit_read(struct device *d, uint64_t off, unsigned size)
{
    struct pit *p = to_pit(d);

    if (off >= 3)
        return 0xff; /* the control word cannot be read */
    return pit_counter_read(&p->s.counter[off], clk_now(p));
}

static void write_control(struct pit *p, uint64_t now, uint8_t val)
{
    unsigned n = val >> 6;

    if (n == 3) {
        for (n = 0; n < 3; n++) {
            if (!(val >> (n + 1) & 1))
                continue;
            if (!(val & 0x20))
                pit_counter_latch(&p->s.counter[n], now);
            if (!(val & 0x10))
                pit_counter_latch_status(&p->s.counter[n], now);
        }
    } else if (!(val & 0x30)) {
        pit_counter_latch(&p->s.counter[n], now);
    } else {
        pit_counter_control(&p->s.counter[n], now, val);
        if (n == 0)
            reprogrammed(p, now);
    }
}

static void pit_write(struct device *d, uint64_t off, unsigned size, uint64_t val)
{
    struct pit *p = to_pit(d);
    uint64_t now = clk_now(p);

    if (off >= 3) {
        write_control(p, now, (uint8_t)val);
        return;
    }
    pit_counter_write(&p->s.counter[off], now, (uint8_t)val);
    if (off == 0)
        reprogrammed(p, now);
}

const struct io_ops pit_ops = {.read = pit_read, .write = pit_write, .max_size = 1};

/* ---- port 0x61 ---- */

static uint64_t port61_read(struct device *d, uint64_t off, unsigned size)
{
    struct pit *p = to_pit(d);
    uint64_t now = clk_now(p);

    return p->s.port61 | (now / REFRESH_CLKS & 1 ? P61_REFRESH : 0) |
           (pit_counter_out(&p->s.counter[2], now) ? P61_OUT2 : 0);
}

static void port61_write(struct device *d, uint64_t off, unsigned size, uint64_t val)
{
    struct pit *p = to_pit(d);

    p->s.port61 = val & P61_WRITABLE;
    pit_counter_gate(&p->s.counter[2], clk_now(p), val & P61_GATE2);
}

const struct io_ops pit_port61_ops = {.read = port61_read, .write = port61_write, .max_size = 1};

/* ---- life cycle ---- */

static int pit_init(struct device *d, const void *cfg, struct err *e)
{
    struct pit *p = to_pit(d);

    p->cfg = *(const struct pit_cfg *)cfg;
    timer_init(&p->timer, pit_timer, p);
    return timer_attach(d->ctx->timers, &p->timer, e);
}

static void pit_reset(struct device *d, enum reset_kind kind)
{
    struct pit *p = to_pit(d);

    memset(&p->s, 0, sizeof(p->s));
    for (int i = 0; i < 3; i++)
        pit_counter_reset(&p->s.counter[i], i != 2);
    p->s.rise = PIT_NEVER;
    p->s.deadline = TIMER_OFF;
    irq_set(&p->cfg.irq, false);
    arm(p);
}

static void pit_quiesce(struct device *d)
{
    struct pit *p = to_pit(d);

    p->quiet = true;
    timer_cancel(d->ctx->timers, &p->timer);
}

static void pit_resume(struct device *d)
{
    struct pit *p = to_pit(d);

    p->quiet = false;
    arm(p);
}

static void pit_fini(struct device *d) { timer_detach(d->ctx->timers, &to_pit(d)->timer); }

static const struct state_field pit_fields[] = {
    STATE_SUBARRAY(struct pit_state, counter, &pit_counter_desc),
    STATE_FIELD(struct pit_state, rise),
    STATE_FIELD(struct pit_state, deadline),
    STATE_FIELD(struct pit_state, owed),
    STATE_FIELD_MAX(struct pit_state, port61, P61_WRITABLE),
    STATE_PAD(struct pit_state, pad),
};

static const struct state_desc pit_state_desc = {
    .name = "pit",
    .version = 1,
    .size = sizeof(struct pit_state),
    .fields = pit_fields,
    .nfields = ARRAY_LEN(pit_fields),
};

const struct device_class pit_class = {
    .name = "pit",
    .size = sizeof(struct pit),
    .init = pit_init,
    .reset = pit_reset,
    .quiesce = pit_quiesce,
    .resume = pit_resume,
    .fini = pit_fini,
    .state = &pit_state_desc,
    .state_off = offsetof(struct pit, s),
};
