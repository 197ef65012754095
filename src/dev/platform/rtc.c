#include "dev/platform/rtc.h"

#include <string.h>

#include "base/util.h"
#include "dev/platform/rtc_time.h"

#define NS_PER_SEC 1000000000ull
#define CRYSTAL_HZ 32768u

#define A_UIP 0x80
#define A_RESET 0x60 /* both set: the divider chain is held in reset */
#define A_RATE 0x0f
#define B_SET 0x80
#define B_PIE 0x40
#define B_AIE 0x20
#define B_UIE 0x10
#define B_SQWE 0x08
#define C_IRQF 0x80
#define C_PF 0x40
#define C_AF 0x20
#define C_UF 0x10
#define D_VRT 0x80

/* UIP goes up this long before the second changes (data sheet, register A: t_BUC). */
#define UIP_NS 244000u
/* A host whose wall clock is set makes an alarm late by no more than this. */
#define ALARM_RECHECK_NS (60 * NS_PER_SEC)

#define CMOS_SIZE 128

struct rtc_state {
    uint64_t offset;   /* seconds added to the wall clock, two's complement */
    uint64_t seen;     /* the second up to which UF and AF are accounted for */
    uint64_t periodic; /* the 32,768 Hz tick up to which PF is */
    uint64_t deadline; /* guest ns of the next interrupt, TIMER_OFF if none is due */
    uint32_t phase;    /* ns added to the wall clock before it is cut to seconds */
    uint8_t index;
    uint8_t dow_shift;
    uint8_t pad[2];
    uint8_t cmos[CMOS_SIZE]; /* time registers are valid only while the clock stands still */
};

struct rtc {
    struct device dev;
    struct rtc_state s;
    struct rtc_cfg cfg;
    struct timer timer;
    bool quiet;
};

static struct rtc *to_rtc(struct device *d) { return container_of(d, struct rtc, dev); }

static bool divider_reset(const struct rtc *r) { return (r->s.cmos[RTC_A] & A_RESET) == A_RESET; }

/* Does the time advance? */
static bool running(const struct rtc *r)
{
    return !(r->s.cmos[RTC_B] & B_SET) && !divider_reset(r);
}

static uint64_t phased_wall(const struct rtc *r)
{
    return clock_wall(r->dev.ctx->clock) + r->s.phase;
}

static int64_t now_secs(const struct rtc *r)
{
    return (int64_t)(phased_wall(r) / NS_PER_SEC + r->s.offset);
}

static uint64_t crystal(uint64_t ns)
{
    return (uint64_t)((unsigned __int128)ns * CRYSTAL_HZ / NS_PER_SEC);
}

static uint64_t crystal_to_ns(uint64_t ticks)
{
    return (uint64_t)(((unsigned __int128)ticks * NS_PER_SEC + CRYSTAL_HZ - 1) / CRYSTAL_HZ);
}

/* The periodic interrupt's period in crystal ticks, 0 for none (data sheet table 5). */
static unsigned period(const struct rtc *r)
{
    unsigned rate = r->s.cmos[RTC_A] & A_RATE;

    if (!rate || divider_reset(r))
        return 0;
    return 1u << (rate < 3 ? rate + 6 : rate - 1);
}

/* ---- interrupts ---- */

static void update_irq(struct rtc *r)
{
    uint8_t *c = &r->s.cmos[RTC_C];

    *c &= C_PF | C_AF | C_UF;
    if (*c & r->s.cmos[RTC_B])
        *c |= C_IRQF;
    irq_set(&r->cfg.irq, *c & C_IRQF);
}

/* Brings the flags of register C up to now. */
static void settle(struct rtc *r)
{
    uint64_t ticks = crystal(clock_now(r->dev.ctx->clock));
    unsigned p = period(r);

    if (p && ticks / p != r->s.periodic / p)
        r->s.cmos[RTC_C] |= C_PF;
    r->s.periodic = ticks;
    if (running(r)) {
        int64_t now = now_secs(r), seen = (int64_t)r->s.seen;

        if (now != seen)
            r->s.cmos[RTC_C] |= C_UF;
        if (now > seen && rtc_time_alarm(r->s.cmos, seen + 1) <= now)
            r->s.cmos[RTC_C] |= C_AF;
        r->s.seen = (uint64_t)now;
    }
    update_irq(r);
}

/* Sets the deadline to the first event that would raise the line. Flags that are already up, and
 * those whose interrupt is off, need no host timer. */
static void schedule(struct rtc *r)
{
    uint8_t wanted = r->s.cmos[RTC_B] & ~r->s.cmos[RTC_C];
    uint64_t now = clock_now(r->dev.ctx->clock), d = TIMER_OFF;
    unsigned p = period(r);

    if (wanted & C_PF && p)
        d = crystal_to_ns((crystal(now) / p + 1) * p);
    if (running(r)) {
        uint64_t wall = phased_wall(r), left = NS_PER_SEC - wall % NS_PER_SEC;
        int64_t secs = (int64_t)(wall / NS_PER_SEC + r->s.offset), alarm;

        if (wanted & C_UF)
            d = MIN(d, now + left);
        if (wanted & C_AF) {
            alarm = rtc_time_alarm(r->s.cmos, secs + 1);
            if (alarm != INT64_MAX) {
                left += (uint64_t)(alarm - secs - 1) * NS_PER_SEC;
                d = MIN(d, now + MIN(left, ALARM_RECHECK_NS));
            }
        }
    }
    r->s.deadline = d;
    if (r->quiet)
        return;
    if (d == TIMER_OFF)
        timer_cancel(r->dev.ctx->timers, &r->timer);
    else
        timer_arm(r->dev.ctx->timers, &r->timer, d);
}

static void rtc_timer(void *arg)
{
    struct rtc *r = arg;

    device_lock(&r->dev);
    if (!r->quiet) {
        settle(r);
        schedule(r);
    }
    device_unlock(&r->dev);
}

/* ---- the time ---- */

/* Freezes the time registers at the present time. */
static void hold(struct rtc *r) { rtc_time_store(r->s.cmos, now_secs(r), r->s.dow_shift); }

/* Lets time go on from what the registers say. */
static void go(struct rtc *r)
{
    int64_t secs = rtc_time_load(r->s.cmos, &r->s.dow_shift);

    r->s.offset = (uint64_t)secs - phased_wall(r) / NS_PER_SEC;
    r->s.seen = (uint64_t)secs;
}

static bool is_time(uint8_t reg)
{
    switch (reg) {
    case RTC_SEC:
    case RTC_MIN:
    case RTC_HOUR:
    case RTC_DOW:
    case RTC_DAY:
    case RTC_MONTH:
    case RTC_YEAR:
    case RTC_CENTURY:
        return true;
    }
    return false;
}

static void write_a(struct rtc *r, uint8_t val)
{
    bool was_running = running(r), was_reset = divider_reset(r);

    if (was_running)
        hold(r);
    r->s.cmos[RTC_A] = val & ~A_UIP;
    if (was_reset && !divider_reset(r)) {
        /* The first update comes half a second after the divider is let go. */
        uint64_t frac = clock_wall(r->dev.ctx->clock) % NS_PER_SEC;

        r->s.phase = (uint32_t)((NS_PER_SEC * 3 / 2 - frac) % NS_PER_SEC);
    }
    if (running(r))
        go(r);
}

static void write_b(struct rtc *r, uint8_t val)
{
    bool was_running = running(r);

    /* In the format that the time has been read in so far. */
    if (was_running)
        hold(r);
    if (val & B_SET)
        val &= ~B_UIE;
    if (was_running && !(val & B_SET)) {
        int64_t secs = now_secs(r);

        r->s.cmos[RTC_B] = val;
        rtc_time_store(r->s.cmos, secs, r->s.dow_shift);
        return;
    }
    r->s.cmos[RTC_B] = val;
    if (running(r))
        go(r);
}

/* ---- ports ---- */

static uint8_t read_data(struct rtc *r)
{
    uint8_t reg = r->s.index & 0x7f, v;

    if (is_time(reg)) {
        if (running(r))
            hold(r);
        return r->s.cmos[reg];
    }
    switch (reg) {
    case RTC_A:
        v = r->s.cmos[RTC_A] & ~A_UIP;
        if (running(r) && phased_wall(r) % NS_PER_SEC >= NS_PER_SEC - UIP_NS)
            v |= A_UIP;
        return v;
    case RTC_C:
        settle(r);
        v = r->s.cmos[RTC_C];
        r->s.cmos[RTC_C] = 0;
        update_irq(r);
        schedule(r);
        return v;
    case RTC_D:
        return D_VRT;
    }
    return r->s.cmos[reg];
}

static void write_data(struct rtc *r, uint8_t val)
{
    uint8_t reg = r->s.index & 0x7f;

    settle(r);
    if (is_time(reg)) {
        if (running(r))
            hold(r);
        r->s.cmos[reg] = val;
        if (running(r))
            go(r);
    } else if (reg == RTC_A) {
        write_a(r, val);
    } else if (reg == RTC_B) {
        write_b(r, val);
    } else if (reg != RTC_C && reg != RTC_D) {
        r->s.cmos[reg] = val;
    }
    update_irq(r);
    schedule(r);
}

static uint64_t rtc_read(struct device *d, uint64_t off, unsigned size)
{
    return off ? read_data(to_rtc(d)) : 0xff; /* the index cannot be read back */
}

static void rtc_write(struct device *d, uint64_t off, unsigned size, uint64_t val)
{
    struct rtc *r = to_rtc(d);

    if (off)
        write_data(r, (uint8_t)val);
    else
        r->s.index = (uint8_t)val;
}

const struct io_ops rtc_ops = {.read = rtc_read, .write = rtc_write, .max_size = 1};

/* ---- life cycle ---- */

static void store(uint8_t *cmos, unsigned reg, uint64_t v, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++)
        cmos[reg + i] = (uint8_t)(v >> (8 * i));
}

/* What firmware would have left: memory sizes as INT 15h callers and SeaBIOS/OVMF know them. */
static void store_firmware(uint8_t *cmos, const struct rtc_cfg *cfg)
{
    uint64_t ext = cfg->mem_below_4g > MIB ? cfg->mem_below_4g - MIB : 0;
    uint64_t big = cfg->mem_below_4g > 16 * MIB ? cfg->mem_below_4g - 16 * MIB : 0;
    unsigned sum = 0;

    cmos[0x14] = 0x06; /* equipment: FPU, PS/2 mouse */
    store(cmos, 0x15, MIN(cfg->mem_below_4g / KIB, 640), 2);
    store(cmos, 0x17, MIN(ext / KIB, 0xffff), 2);
    store(cmos, 0x30, MIN(ext / KIB, 0xffff), 2);
    store(cmos, 0x34, MIN(big / (64 * KIB), 0xffff), 2);
    store(cmos, 0x5b, MIN(cfg->mem_above_4g / (64 * KIB), 0xffffff), 3);
    for (unsigned i = 0x10; i <= 0x2d; i++)
        sum += cmos[i];
    cmos[0x2e] = (uint8_t)(sum >> 8);
    cmos[0x2f] = (uint8_t)sum;
}

static int rtc_init(struct device *d, const void *cfg, struct err *e)
{
    struct rtc *r = to_rtc(d);

    r->cfg = *(const struct rtc_cfg *)cfg;
    r->s.cmos[RTC_A] = 0x26; /* 32,768 Hz crystal, 1,024 Hz periodic rate */
    r->s.cmos[RTC_B] = RTC_B_24H;
    store_firmware(r->s.cmos, &r->cfg);
    r->s.seen = (uint64_t)now_secs(r);
    r->s.periodic = crystal(clock_now(d->ctx->clock));
    timer_init(&r->timer, rtc_timer, r);
    return timer_attach(d->ctx->timers, &r->timer, e);
}

static void rtc_reset(struct device *d, enum reset_kind kind)
{
    struct rtc *r = to_rtc(d);

    /* The RESET pin: interrupts off, nothing else; the battery keeps the rest. */
    settle(r);
    r->s.cmos[RTC_B] &= ~(B_PIE | B_AIE | B_UIE | B_SQWE);
    r->s.cmos[RTC_C] = 0;
    update_irq(r);
    schedule(r);
}

static void rtc_quiesce(struct device *d)
{
    struct rtc *r = to_rtc(d);

    r->quiet = true;
    timer_cancel(d->ctx->timers, &r->timer);
}

static void rtc_resume(struct device *d)
{
    struct rtc *r = to_rtc(d);

    r->quiet = false;
    schedule(r);
}

static void rtc_fini(struct device *d) { timer_detach(d->ctx->timers, &to_rtc(d)->timer); }

static const struct state_field rtc_fields[] = {
    STATE_FIELD(struct rtc_state, offset),
    STATE_FIELD(struct rtc_state, seen),
    STATE_FIELD(struct rtc_state, periodic),
    STATE_FIELD(struct rtc_state, deadline),
    STATE_FIELD_MAX(struct rtc_state, phase, NS_PER_SEC - 1),
    STATE_FIELD(struct rtc_state, index),
    STATE_FIELD_MAX(struct rtc_state, dow_shift, 6),
    STATE_PAD(struct rtc_state, pad),
    STATE_ARRAY(struct rtc_state, cmos),
};

static const struct state_desc rtc_state_desc = {
    .name = "rtc",
    .version = 1,
    .size = sizeof(struct rtc_state),
    .fields = rtc_fields,
    .nfields = ARRAY_LEN(rtc_fields),
};

const struct device_class rtc_class = {
    .name = "rtc",
    .size = sizeof(struct rtc),
    .init = rtc_init,
    .reset = rtc_reset,
    .quiesce = rtc_quiesce,
    .resume = rtc_resume,
    .fini = rtc_fini,
    .state = &rtc_state_desc,
    .state_off = offsetof(struct rtc, s),
};
