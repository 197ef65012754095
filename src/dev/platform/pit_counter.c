#include "dev/platform/pit_counter.h"

#include "base/util.h"

static unsigned mode_of(const struct pit_counter *c)
{
    unsigned m = c->control >> 1 & 7;

    return m >= 6 ? m - 4 : m; /* 6 and 7 are 2 and 3 */
}

static bool is_bcd(const struct pit_counter *c) { return c->control & 1; }

enum rw { RW_LSB = 1, RW_MSB = 2, RW_BOTH = 3 };

static enum rw rw_of(const struct pit_counter *c)
{
    unsigned rw = c->control >> 4 & 3;

    return rw ? (enum rw)rw : RW_BOTH;
}

static uint32_t full(uint16_t count) { return count ? count : 0x10000; }

/* Length of mode 3's high half (data sheet, mode 3: odd counts are high for (N + 1) / 2). */
static uint32_t high_half(uint32_t n) { return (n + 1) / 2; }

/* CLK pulses since the run began; negative before the first. */
static int64_t elapsed(const struct pit_counter *c, uint64_t now)
{
    return (int64_t)(now - c->start);
}

/* Takes over a count that was written in the middle of a period which has ended. */
static void settle(struct pit_counter *c, uint64_t now)
{
    unsigned mode = mode_of(c);

    if (c->phase != PIT_RUN || elapsed(c, now) < 0)
        return;
    if (mode == 0 || mode == 4)
        c->null_count = false;
    if (mode != 2 && mode != 3)
        return;
    if (c->change == PIT_NEVER) {
        c->null_count = false;
    } else if (now >= c->change) {
        uint32_t n = full(c->count);
        bool half = mode == 3 && (c->change - c->start) % n == high_half(n);

        /* After the high half the new count begins with its low one. */
        c->start = c->change - (half ? high_half(full(c->reload)) : 0);
        c->count = c->reload;
        c->change = PIT_NEVER;
        c->null_count = false;
    }
}

/* The counting element, in binary. */
static uint16_t value(const struct pit_counter *c, uint64_t now)
{
    int64_t e = elapsed(c, now);
    uint32_t n = full(c->count), r, wrap = is_bcd(c) ? 10000 : 0x10000;

    if (c->phase != PIT_RUN || e < 0)
        return c->held;
    switch (mode_of(c)) {
    case 2:
        return (uint16_t)(n - (uint64_t)e % n);
    case 3:
        r = (uint32_t)((uint64_t)e % n);
        if (r >= high_half(n))
            r -= high_half(n);
        return (uint16_t)((n & ~1u) - 2 * r);
    }
    return (uint16_t)((n + wrap - (uint64_t)e % wrap) % wrap);
}

static bool out(const struct pit_counter *c, uint64_t now)
{
    int64_t e = elapsed(c, now);
    uint32_t n = full(c->count);

    if (c->phase != PIT_RUN || e < 0)
        return c->level;
    switch (mode_of(c)) {
    case 0:
        return c->fired || e >= n;
    case 1:
        return e >= n;
    case 2:
        return (uint64_t)e % n != n - 1;
    case 3:
        return (uint64_t)e % n < high_half(n);
    default: /* 4, 5 */
        return c->fired || e != n;
    }
}

bool pit_counter_out(struct pit_counter *c, uint64_t now)
{
    settle(c, now);
    return out(c, now);
}

uint32_t pit_counter_period(const struct pit_counter *c)
{
    return c->phase == PIT_RUN && (mode_of(c) == 2 || mode_of(c) == 3) ? full(c->count) : 0;
}

uint64_t pit_counter_next_rise(struct pit_counter *c, uint64_t now)
{
    uint32_t n = full(c->count);
    uint64_t at, at_period;
    int64_t e;

    settle(c, now);
    if (c->phase != PIT_RUN)
        return PIT_NEVER;
    e = elapsed(c, now);
    at_period = c->start + (e < 0 ? n : ((uint64_t)e / n + 1) * n);
    switch (mode_of(c)) {
    case 2:
        return at_period;
    case 3:
        /* A new count that takes over at half time moves the end of the low half. */
        if (c->change != PIT_NEVER && c->change != at_period)
            return c->change + full(c->reload) / 2;
        return at_period;
    case 0:
    case 1:
        at = c->start + n;
        break;
    default:
        at = c->start + n + 1;
        break;
    }
    return c->fired || (int64_t)(at - now) <= 0 ? PIT_NEVER : at;
}

/* ---- programming ---- */

void pit_counter_reset(struct pit_counter *c, bool gate)
{
    *c = (struct pit_counter){.control = RW_BOTH << 4, .change = PIT_NEVER, .gate = gate};
}

void pit_counter_control(struct pit_counter *c, uint64_t now, uint8_t control)
{
    settle(c, now);
    c->held = value(c, now);
    c->control = control & 0x3f;
    c->phase = PIT_NO_COUNT;
    c->change = PIT_NEVER;
    c->level = mode_of(c) != 0;
    c->fired = false;
    c->null_count = true;
    c->latched = c->status_latched = false;
    c->write_msb = c->read_msb = false;
}

/* Loads the counting element at the next CLK, or while the gate is low, at once. */
static void load(struct pit_counter *c, uint64_t now)
{
    c->held = value(c, now);
    c->fired = false;
    c->change = PIT_NEVER;
    c->count = c->reload;
    if (c->gate) {
        c->start = now + 1;
        c->phase = PIT_RUN;
    } else {
        c->held = c->reload;
        c->phase = PIT_HELD;
        c->null_count = false;
    }
}

static void new_count(struct pit_counter *c, uint64_t now)
{
    uint32_t n = full(c->count), r;

    c->null_count = true;
    switch (mode_of(c)) {
    case 0:
        c->level = false;
        load(c, now);
        break;
    case 4:
        c->level = true;
        load(c, now);
        break;
    case 1:
    case 5:
        if (c->phase == PIT_NO_COUNT)
            c->phase = PIT_ARMED;
        break;
    default:
        if (c->phase == PIT_NO_COUNT || (c->phase == PIT_RUN && elapsed(c, now) < 0)) {
            load(c, now);
        } else if (c->phase == PIT_RUN) {
            /* At the end of the period, in mode 3 of the half (data sheet, modes 2 and 3). */
            r = (uint32_t)((uint64_t)elapsed(c, now) % n);
            c->change = now - r + (mode_of(c) == 3 && r < high_half(n) ? high_half(n) : n);
        }
        break;
    }
}

static uint16_t from_bcd(uint16_t v)
{
    return (uint16_t)((v >> 12) * 1000 + (v >> 8 & 15) * 100 + (v >> 4 & 15) * 10 + (v & 15));
}

static uint16_t to_bcd(uint16_t v)
{
    v %= 10000;
    return (uint16_t)(v / 1000 << 12 | v / 100 % 10 << 8 | v / 10 % 10 << 4 | v % 10);
}

void pit_counter_write(struct pit_counter *c, uint64_t now, uint8_t val)
{
    uint16_t v;

    settle(c, now);
    switch (rw_of(c)) {
    case RW_LSB:
        v = val;
        break;
    case RW_MSB:
        v = (uint16_t)(val << 8);
        break;
    default:
        c->write_msb = !c->write_msb;
        if (c->write_msb) {
            c->lsb = val;
            if (mode_of(c) == 0) {
                /* The first byte stops the count and lowers OUT. */
                c->held = value(c, now);
                c->phase = PIT_NO_COUNT;
                c->level = false;
            }
            return;
        }
        v = (uint16_t)(val << 8 | c->lsb);
        break;
    }
    if (is_bcd(c))
        v = v ? from_bcd(v) : 10000;
    c->reload = v;
    new_count(c, now);
}

void pit_counter_gate(struct pit_counter *c, uint64_t now, bool level)
{
    unsigned mode = mode_of(c);
    bool rising = level && !c->gate;
    int64_t e;

    settle(c, now);
    if (level == c->gate)
        return;
    if (mode == 1 || mode == 5) {
        if (rising && c->phase != PIT_NO_COUNT) {
            c->level = out(c, now);
            c->held = value(c, now);
            c->count = c->reload;
            c->start = now + 1;
            c->phase = PIT_RUN;
            c->null_count = false;
        }
    } else if (!rising && c->phase == PIT_RUN) {
        e = elapsed(c, now);
        /* A count that was about to be loaded is loaded without the gate too. */
        c->held = e < 0 ? c->count : value(c, now);
        if (mode == 0) {
            c->level = out(c, now);
            c->fired = c->level;
        } else {
            c->level = true;
            c->fired |= mode == 4 && e >= full(c->count);
        }
        c->phase = PIT_HELD;
        c->null_count = false;
    } else if (rising && c->phase == PIT_HELD) {
        if (mode == 0 || mode == 4) {
            c->count = c->held;
            c->start = now;
        } else {
            c->count = c->reload;
            c->start = now + 1;
        }
        c->change = PIT_NEVER;
        c->phase = PIT_RUN;
    }
    c->gate = level;
}

/* ---- reading ---- */

static uint16_t shown(const struct pit_counter *c, uint64_t now)
{
    uint16_t v = value(c, now);

    return is_bcd(c) ? to_bcd(v) : v;
}

void pit_counter_latch(struct pit_counter *c, uint64_t now)
{
    settle(c, now);
    if (!c->latched)
        c->latch = shown(c, now);
    c->latched = true;
}

void pit_counter_latch_status(struct pit_counter *c, uint64_t now)
{
    settle(c, now);
    if (!c->status_latched)
        c->status = (uint8_t)(out(c, now) << 7 | c->null_count << 6 | c->control);
    c->status_latched = true;
}

uint8_t pit_counter_read(struct pit_counter *c, uint64_t now)
{
    uint16_t v;
    bool msb;

    settle(c, now);
    if (c->status_latched) {
        c->status_latched = false;
        return c->status;
    }
    v = c->latched ? c->latch : shown(c, now);
    if (rw_of(c) == RW_BOTH) {
        msb = c->read_msb;
        c->read_msb = !msb;
        c->latched &= !msb;
    } else {
        msb = rw_of(c) == RW_MSB;
        c->latched = false;
    }
    return (uint8_t)(msb ? v >> 8 : v);
}

static const struct state_field fields[] = {
    STATE_FIELD(struct pit_counter, start),
    STATE_FIELD(struct pit_counter, change),
    STATE_FIELD(struct pit_counter, count),
    STATE_FIELD(struct pit_counter, reload),
    STATE_FIELD(struct pit_counter, held),
    STATE_FIELD(struct pit_counter, latch),
    STATE_FIELD_MAX(struct pit_counter, control, 0x3f),
    STATE_FIELD(struct pit_counter, status),
    STATE_FIELD(struct pit_counter, lsb),
    STATE_FIELD_MAX(struct pit_counter, phase, PIT_RUN),
    STATE_FIELD(struct pit_counter, gate),
    STATE_FIELD(struct pit_counter, level),
    STATE_FIELD(struct pit_counter, fired),
    STATE_FIELD(struct pit_counter, null_count),
    STATE_FIELD(struct pit_counter, latched),
    STATE_FIELD(struct pit_counter, status_latched),
    STATE_FIELD(struct pit_counter, write_msb),
    STATE_FIELD(struct pit_counter, read_msb),
    STATE_PAD(struct pit_counter, pad),
};

const struct state_desc pit_counter_desc = {
    .name = "8254 counter",
    .version = 1,
    .size = sizeof(struct pit_counter),
    .fields = fields,
    .nfields = ARRAY_LEN(fields),
};
