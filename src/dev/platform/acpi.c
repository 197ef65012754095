/* ACPI fixed hardware; section numbers refer to ACPI 6.5. */
#include "dev/platform/acpi.h"

#include "base/util.h"
#include "dev/platform/pmtimer.h"

/* PM1 status and enable (§4.8.3.1). */
#define PM1_TMR BIT(0)
#define PM1_GBL BIT(5)
#define PM1_PWRBTN BIT(8)
#define PM1_SLPBTN BIT(9)
#define PM1_RTC BIT(10)
/* Every fixed event can be enabled, as guests check, though not every one has a source here. */
#define PM1_EVENTS (PM1_TMR | PM1_GBL | PM1_PWRBTN | PM1_SLPBTN | PM1_RTC)

/* PM1 control (§4.8.3.2). */
#define PM1_SCI_EN BIT(0)
#define PM1_BM_RLD BIT(1)
#define PM1_SLP_TYP 0x1c00
#define PM1_SLP_TYP_SHIFT 10
#define PM1_SLP_EN BIT(13)
#define PM1_CNT_KEPT (PM1_BM_RLD | PM1_SLP_TYP)

#define PM_TMR_MSB BIT(31)

struct acpi_state {
    uint64_t timer_next; /* guest ns when the PM timer's most significant bit changes next */
    uint16_t pm1_sts, pm1_en, pm1_cnt;
    uint16_t gpe_sts, gpe_en;
    uint8_t pad[6];
};

struct acpi {
    struct device dev;
    struct acpi_state s;
    struct irq sci;
    struct timer timer;
    bool quiesced;
};

static const struct state_field acpi_fields[] = {
    STATE_FIELD(struct acpi_state, timer_next),
    STATE_FIELD_MAX(struct acpi_state, pm1_sts, PM1_EVENTS),
    STATE_FIELD_MAX(struct acpi_state, pm1_en, PM1_EVENTS),
    STATE_FIELD_MAX(struct acpi_state, pm1_cnt, PM1_CNT_KEPT),
    STATE_FIELD(struct acpi_state, gpe_sts),
    STATE_FIELD(struct acpi_state, gpe_en),
    STATE_PAD(struct acpi_state, pad),
};

static const struct state_desc acpi_state_desc = {
    .name = "acpi",
    .version = 1,
    .size = sizeof(struct acpi_state),
    .fields = acpi_fields,
    .nfields = ARRAY_LEN(acpi_fields),
};

/* When the most significant bit of the PM timer changes next, seen from now. */
static uint64_t next_msb_change(const struct clock *c)
{
    uint64_t ticks = PM_TMR_MSB - (pmtimer_value(c) & (PM_TMR_MSB - 1));

    return clock_now(c) + (ticks * 1000000000ull + PMTIMER_HZ - 1) / PMTIMER_HZ;
}

/* Brings TMR_STS up to date, and SCI and timer in line with the registers. */
static void update(struct acpi *a)
{
    struct acpi_state *s = &a->s;
    struct dev_ctx *ctx = a->dev.ctx;

    if (s->timer_next <= clock_now(ctx->clock)) {
        s->pm1_sts |= PM1_TMR;
        s->timer_next = next_msb_change(ctx->clock);
    }
    if (!a->quiesced && (s->pm1_en & PM1_TMR) && !(s->pm1_sts & PM1_TMR))
        timer_arm(ctx->timers, &a->timer, s->timer_next);
    else
        timer_cancel(ctx->timers, &a->timer);
    irq_set(&a->sci, (s->pm1_sts & s->pm1_en) || (s->gpe_sts & s->gpe_en));
}

static void on_timer(void *arg)
{
    struct acpi *a = arg;

    device_lock(&a->dev);
    if (!a->quiesced)
        update(a);
    device_unlock(&a->dev);
}

/* ---- registers: any size at any offset, as a row of bytes (§4.8.3) ---- */

static uint64_t acpi_read(struct device *d, uint64_t off, unsigned size)
{
    struct acpi *a = container_of(d, struct acpi, dev);
    struct acpi_state *s = &a->s;
    uint64_t v = 0;

    update(a);
    uint32_t timer = pmtimer_value(d->ctx->clock);
    for (unsigned i = 0; i < size; i++) {
        unsigned reg = (unsigned)(off + i);
        uint32_t word = 0;

        switch (reg & ~3u) {
        case ACPI_PM1_EVT:
            word = s->pm1_sts | (uint32_t)s->pm1_en << 16;
            break;
        case ACPI_PM1_CNT:
            word = s->pm1_cnt | PM1_SCI_EN;
            break;
        case ACPI_PM_TMR:
            word = timer;
            break;
        case ACPI_GPE0:
            word = s->gpe_sts | (uint32_t)s->gpe_en << 16;
            break;
        }
        v |= (uint64_t)(word >> 8 * (reg & 3) & 0xff) << 8 * i;
    }
    trace(d->ctx->trace, acpi_read, "off=%#x size=%u val=%#llx", (unsigned)off, size,
          (unsigned long long)v);
    return v;
}

/* Replaces the bits of reg that mask covers and the hardware keeps. */
static void assign(uint16_t *reg, uint32_t val, uint32_t mask, uint32_t kept)
{
    *reg = (uint16_t)((*reg & ~mask) | (val & mask & kept));
}

/* One aligned dword of registers, of which the bytes under mask are written. */
static void write_dword(struct acpi *a, unsigned reg, uint32_t val, uint32_t mask)
{
    struct acpi_state *s = &a->s;

    switch (reg) {
    case ACPI_PM1_EVT:
        s->pm1_sts &= (uint16_t) ~(val & mask);
        assign(&s->pm1_en, val >> 16, mask >> 16, PM1_EVENTS);
        break;
    case ACPI_PM1_CNT:
        assign(&s->pm1_cnt, val, mask & 0xffff, PM1_CNT_KEPT);
        if ((val & mask & PM1_SLP_EN) && (s->pm1_cnt & PM1_SLP_TYP) == ACPI_SLP_TYP_S5
                                                                           << PM1_SLP_TYP_SHIFT)
            a->dev.ctx->request(a->dev.ctx->owner, MACHINE_POWEROFF, 0);
        break;
    case ACPI_GPE0:
        s->gpe_sts &= (uint16_t) ~(val & mask);
        assign(&s->gpe_en, val >> 16, mask >> 16, 0xffff);
        break;
    }
}

static void acpi_write(struct device *d, uint64_t off, unsigned size, uint64_t val)
{
    struct acpi *a = container_of(d, struct acpi, dev);

    trace(d->ctx->trace, acpi_write, "off=%#x size=%u val=%#llx", (unsigned)off, size,
          (unsigned long long)val);
    update(a); /* an event that is due now is not cleared by a write before it */
    for (unsigned i = 0; i < size; i++) {
        unsigned reg = (unsigned)(off + i), shift = 8 * (reg & 3);

        write_dword(a, reg & ~3u, (uint32_t)(val >> 8 * i & 0xff) << shift, 0xffu << shift);
    }
    update(a);
}

const struct io_ops acpi_ops = {
    .read = acpi_read,
    .write = acpi_write,
    .min_size = 1,
    .max_size = 4,
    .unaligned = true,
};

/* ---- events ---- */

void acpi_power_button(struct device *d)
{
    struct acpi *a = container_of(d, struct acpi, dev);

    device_lock(d);
    a->s.pm1_sts |= PM1_PWRBTN;
    update(a);
    device_unlock(d);
}

void acpi_gpe(struct device *d, unsigned n)
{
    struct acpi *a = container_of(d, struct acpi, dev);

    device_lock(d);
    a->s.gpe_sts |= (uint16_t)BIT(n);
    update(a);
    device_unlock(d);
}

/* ---- device ---- */

static int acpi_init(struct device *d, const void *cfg, struct err *e)
{
    struct acpi *a = container_of(d, struct acpi, dev);
    const struct acpi_dev_cfg *c = cfg;

    a->sci = c->sci;
    timer_init(&a->timer, on_timer, a);
    return timer_attach(d->ctx->timers, &a->timer, e);
}

static void acpi_reset(struct device *d, enum reset_kind kind)
{
    struct acpi *a = container_of(d, struct acpi, dev);

    a->s = (struct acpi_state){.timer_next = next_msb_change(d->ctx->clock)};
    update(a);
}

static void acpi_quiesce(struct device *d)
{
    struct acpi *a = container_of(d, struct acpi, dev);

    a->quiesced = true;
    timer_cancel(d->ctx->timers, &a->timer);
}

static void acpi_resume(struct device *d)
{
    struct acpi *a = container_of(d, struct acpi, dev);

    a->quiesced = false;
    update(a);
}

static void acpi_fini(struct device *d)
{
    timer_detach(d->ctx->timers, &container_of(d, struct acpi, dev)->timer);
}

const struct device_class acpi_class = {
    .name = "acpi",
    .size = sizeof(struct acpi),
    .init = acpi_init,
    .reset = acpi_reset,
    .quiesce = acpi_quiesce,
    .resume = acpi_resume,
    .fini = acpi_fini,
    .state = &acpi_state_desc,
    .state_off = offsetof(struct acpi, s),
};
