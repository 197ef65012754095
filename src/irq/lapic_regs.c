/*
 * The local APIC's registers, reached through the xAPIC page or the x2APIC MSRs (SDM vol. 3
 * §11.4.1, §11.12.1.2), and IA32_APIC_BASE with its mode transitions (§11.12.5).
 */
#include <errno.h>

#include "irq/lapic_impl.h"

#define MSR_APIC_BASE 0x1b
#define MSR_TSC_DEADLINE 0x6e0
#define MSR_X2APIC 0x800

/* Version 0x14 as of every integrated APIC, LVT_COUNT entries, EOI-broadcast suppression. */
#define VERSION (0x14u | (LVT_COUNT - 1) << 16 | 1u << 24)

#define XR 1 /* readable in xAPIC mode */
#define XW 2 /* writable in xAPIC mode */
#define MR 4 /* readable as an MSR in x2APIC mode */
#define MW 8 /* writable as an MSR in x2APIC mode */
#define XRW (XR | XW)
#define RW (XR | XW | MR | MW)

struct reg_info {
    uint8_t access;
    uint32_t writable; /* other bits: ignored in xAPIC mode, #GP in x2APIC mode */
};

static const struct reg_info regs[REG_COUNT] = {
    [REG_ID] = {XR | MR, 0},
    [REG_VERSION] = {XR | MR, 0},
    [REG_TPR] = {RW, 0xff},
    [REG_APR] = {XR, 0},
    [REG_PPR] = {XR | MR, 0},
    [REG_EOI] = {XW | MW, 0},
    [REG_RRD] = {XR, 0},
    [REG_LDR] = {XRW | MR, 0xff000000},
    [REG_DFR] = {XRW, 0xf0000000},
    [REG_SVR] = {RW, 0x13ff},
    [REG_ISR... REG_IRR + VEC_WORDS - 1] = {XR | MR, 0},
    [REG_ESR] = {RW, 0},
    [REG_ICR_LO] = {RW, 0xccfff},
    [REG_ICR_HI] = {XRW, 0xff000000},
    [REG_LVT + LVT_TIMER] = {RW, 0x700ff},
    [REG_LVT + LVT_THERMAL] = {RW, 0x107ff},
    [REG_LVT + LVT_PERF] = {RW, 0x107ff},
    [REG_LVT + LVT_LINT0] = {RW, 0x1a7ff},
    [REG_LVT + LVT_LINT1] = {RW, 0x1a7ff},
    [REG_LVT + LVT_ERROR] = {RW, 0x100ff},
    [REG_TIMER_INIT] = {RW, UINT32_MAX},
    [REG_TIMER_CUR] = {XR | MR, 0},
    [REG_TIMER_DIV] = {RW, 0xb},
    [REG_SELF_IPI] = {MW, 0xff},
};

/* The delivery status (bit 12) is always "idle" and reads as zero, but setting it is harmless. */
#define ICR_STATUS BIT(12)

/* Arbitration priority (SDM vol. 3 §11.6.2.4 of the editions that have it). */
static uint32_t arbitration_priority(const struct lapic *l)
{
    int irr = lapic_highest(l->s.irr), isr = lapic_highest(l->s.isr);
    uint32_t tpr = l->s.tpr, irrv = irr < 0 ? 0 : (uint32_t)irr >> 4;
    uint32_t isrv = isr < 0 ? 0 : (uint32_t)isr >> 4;

    if (tpr >> 4 >= irrv && tpr >> 4 > isrv)
        return tpr;
    return MAX(tpr >> 4 & isrv, irrv) << 4;
}

static uint32_t read_reg(struct lapic *l, unsigned reg, struct lapic_fx *fx)
{
    switch (reg) {
    case REG_ID:
        return lapic_x2apic(l) ? l->s.id : l->s.id << 24;
    case REG_VERSION:
        return VERSION;
    case REG_TPR:
        return l->s.tpr;
    case REG_APR:
        return arbitration_priority(l);
    case REG_PPR:
        return atomic_load_explicit(&l->ppr, memory_order_relaxed);
    case REG_LDR:
        return l->s.ldr;
    case REG_DFR:
        return l->s.dfr;
    case REG_SVR:
        return l->s.svr;
    case REG_ISR ... REG_ISR + VEC_WORDS - 1:
        return l->s.isr[reg - REG_ISR];
    case REG_TMR ... REG_TMR + VEC_WORDS - 1:
        return l->s.tmr[reg - REG_TMR];
    case REG_IRR ... REG_IRR + VEC_WORDS - 1:
        return l->s.irr[reg - REG_IRR];
    case REG_ESR:
        return l->s.esr;
    case REG_ICR_LO:
        return (uint32_t)l->s.icr;
    case REG_ICR_HI:
        return (uint32_t)(l->s.icr >> 32);
    case REG_LVT ... REG_LVT + LVT_COUNT - 1:
        return l->s.lvt[reg - REG_LVT];
    case REG_TIMER_INIT:
        return l->s.timer_init;
    case REG_TIMER_CUR:
        lapic_timer_settle(l, fx);
        return lapic_timer_count(l);
    case REG_TIMER_DIV:
        return l->s.timer_div;
    }
    return 0; /* remote read: no processor here answers those */
}

/* ---- sending ---- */

enum shorthand { DEST_FIELD, DEST_SELF, DEST_ALL, DEST_OTHERS };

static void send_self(struct lapic *l, uint8_t vector, struct lapic_fx *fx)
{
    if (vector < 16)
        lapic_error(l, ESR_SEND_VECTOR, fx);
    else
        lapic_accept_vector(l, vector, false, fx);
}

static void send_ipi(struct lapic *l, struct lapic_fx *fx)
{
    uint64_t icr = l->s.icr;
    enum shorthand to = (enum shorthand)bits(icr, 19, 18);
    bool x2 = lapic_x2apic(l);
    struct apic_msg m = {
        .vector = (uint8_t)icr,
        .delivery = (uint8_t)bits(icr, 10, 8),
        .logical = bits(icr, 11, 11),
        .assert_ = bits(icr, 14, 14),
        .dest = (uint32_t)(x2 ? icr >> 32 : icr >> 56),
        .x2apic = x2,
    };

    /* The trigger mode means something for INIT only; other IPIs are edges (§11.6.1). */
    m.level = m.delivery == APIC_INIT && bits(icr, 15, 15);
    if ((m.delivery == APIC_FIXED || m.delivery == APIC_LOWEST) && m.vector < 16) {
        lapic_error(l, ESR_SEND_VECTOR, fx);
        return;
    }
    if (to == DEST_SELF && m.delivery == APIC_FIXED) {
        send_self(l, m.vector, fx);
        return;
    }
    if (to != DEST_FIELD) {
        m.dest = to == DEST_SELF ? l->s.id : UINT32_MAX;
        m.logical = false;
        m.x2apic = true;
    }
    fx->not_self = to == DEST_OTHERS;
    fx->send = true;
    fx->msg = m;
}

/* ---- writing ---- */

static void write_svr(struct lapic *l, uint32_t val, struct lapic_fx *fx)
{
    lapic_timer_settle(l, fx);
    l->s.svr = val;
    if (!(val & SVR_ENABLE)) {
        /* §11.4.7.2: all LVT entries are masked and stay so. */
        for (int i = 0; i < LVT_COUNT; i++)
            l->s.lvt[i] |= LVT_MASKED;
        lapic_timer_arm(l);
    }
    lapic_refresh(l, fx);
}

static void write_lvt(struct lapic *l, unsigned n, uint32_t val, struct lapic_fx *fx)
{
    if (!(l->s.svr & SVR_ENABLE))
        val |= LVT_MASKED;
    if (n == LVT_TIMER) {
        lapic_timer_set_lvt(l, val, fx);
        return;
    }
    if (n == LVT_LINT0 || n == LVT_LINT1) {
        if (val & LVT_LEVEL)
            val |= l->s.lvt[n] & LVT_REMOTE_IRR;
        l->s.lvt[n] = val;
        lapic_lint_update(l, (int)(n - LVT_LINT0), false, fx);
        lapic_refresh(l, fx);
        return;
    }
    l->s.lvt[n] = val;
}

static void write_reg(struct lapic *l, unsigned reg, uint32_t val, struct lapic_fx *fx)
{
    switch (reg) {
    case REG_TPR:
        l->s.tpr = val;
        lapic_refresh(l, fx);
        break;
    case REG_EOI:
        lapic_eoi(l, fx);
        break;
    case REG_LDR:
        l->s.ldr = val;
        lapic_refresh(l, fx);
        break;
    case REG_DFR:
        l->s.dfr = val | 0x0fffffff;
        lapic_refresh(l, fx);
        break;
    case REG_SVR:
        write_svr(l, val, fx);
        break;
    case REG_ESR:
        l->s.esr = l->s.esr_latch;
        l->s.esr_latch = 0;
        break;
    case REG_ICR_LO:
        l->s.icr = (l->s.icr & ~(uint64_t)UINT32_MAX) | val;
        send_ipi(l, fx);
        break;
    case REG_ICR_HI:
        l->s.icr = (uint64_t)val << 32 | (uint32_t)l->s.icr;
        break;
    case REG_LVT ... REG_LVT + LVT_COUNT - 1:
        write_lvt(l, reg - REG_LVT, val, fx);
        break;
    case REG_TIMER_INIT:
        lapic_timer_settle(l, fx);
        lapic_timer_set_count(l, val);
        break;
    case REG_TIMER_DIV:
        lapic_timer_settle(l, fx);
        lapic_timer_set_divide(l, val);
        break;
    case REG_SELF_IPI:
        send_self(l, (uint8_t)val, fx);
        break;
    }
}

/* ---- xAPIC page ---- */

static bool xapic_mode(const struct lapic *l) { return lapic_enabled(l) && !lapic_x2apic(l); }

uint32_t lapic_mmio_read(struct lapic *l, uint32_t off)
{
    unsigned reg = off >> 4;
    struct lapic_fx fx = {0};
    uint32_t val = 0;

    if (off & 0xf)
        return 0;
    lapic_lock(l);
    if (!xapic_mode(l))
        val = UINT32_MAX; /* nothing answers at that address */
    else if (reg >= REG_COUNT || !(regs[reg].access & XRW))
        lapic_error(l, ESR_REGISTER, &fx);
    else if (regs[reg].access & XR)
        val = read_reg(l, reg, &fx);
    lapic_unlock(l, &fx);
    return val;
}

void lapic_mmio_write(struct lapic *l, uint32_t off, uint32_t val)
{
    unsigned reg = off >> 4;
    struct lapic_fx fx = {0};

    if (off & 0xf)
        return;
    lapic_lock(l);
    if (!xapic_mode(l))
        ;
    else if (reg >= REG_COUNT || !(regs[reg].access & XRW))
        lapic_error(l, ESR_REGISTER, &fx);
    else if (regs[reg].access & XW)
        write_reg(l, reg, val & regs[reg].writable, &fx);
    lapic_unlock(l, &fx);
}

/* ---- MSRs ---- */

static int x2apic_read(struct lapic *l, unsigned reg, uint64_t *val, struct lapic_fx *fx)
{
    if (!lapic_x2apic(l) || reg >= REG_COUNT || !(regs[reg].access & MR))
        return -EINVAL;
    *val = reg == REG_ICR_LO ? l->s.icr : read_reg(l, reg, fx);
    return 0;
}

static int x2apic_write(struct lapic *l, unsigned reg, uint64_t val, struct lapic_fx *fx)
{
    if (!lapic_x2apic(l) || reg >= REG_COUNT || !(regs[reg].access & MW))
        return -EINVAL;
    if (reg == REG_ICR_LO) {
        if ((uint32_t)val & ~(regs[reg].writable | ICR_STATUS))
            return -EINVAL;
        l->s.icr = val & ~ICR_STATUS;
        send_ipi(l, fx);
        return 0;
    }
    /* An LVT's delivery status and remote IRR are read-only, not reserved: Linux writes them back. */
    if (val & ~(uint64_t)(regs[reg].writable |
                          (reg >= REG_LVT && reg < REG_LVT + LVT_COUNT ? LVT_STATUS : 0)))
        return -EINVAL;
    write_reg(l, reg, (uint32_t)val & regs[reg].writable, fx);
    return 0;
}

/* IA32_APIC_BASE bits 11:10 as a mode; 1 is invalid. */
enum apic_mode { MODE_OFF, MODE_INVALID, MODE_XAPIC, MODE_X2APIC };

static enum apic_mode base_mode(uint64_t base) { return (enum apic_mode)bits(base, 11, 10); }

static int write_base(struct lapic *l, uint64_t val, struct lapic_fx *fx)
{
    static const bool allowed[4][4] = {
        /*                  to: off    inval  xapic  x2apic */
        [MODE_OFF] = {true, false, true, false},
        [MODE_XAPIC] = {true, false, true, true},
        [MODE_X2APIC] = {true, false, false, true},
    };
    enum apic_mode old = base_mode(l->s.base), new = base_mode(val);
    unsigned maxphys = l->cfg.maxphys ? l->cfg.maxphys : 52;

    if (val >> maxphys || val & PAGE_MASK & ~(BASE_BSP | BASE_X2APIC | BASE_ENABLE))
        return -EINVAL;
    if (!allowed[old][new])
        return -EINVAL;
    l->s.base = val;
    atomic_store_explicit(&l->base, val, memory_order_relaxed);
    if (old != MODE_OFF && new == MODE_OFF) {
        lapic_init_state(l); /* §11.4.3: the state is lost */
    } else if (old == MODE_XAPIC && new == MODE_X2APIC) {
        l->s.ldr = l->s.id >> 4 << 16 | 1u << (l->s.id & 0xf);
        l->s.icr = (uint32_t)l->s.icr;
    }
    lapic_refresh(l, fx);
    return 0;
}

int lapic_rdmsr(struct lapic *l, uint32_t msr, uint64_t *val)
{
    struct lapic_fx fx = {0};
    int rc = 0;

    lapic_lock(l);
    if (msr == MSR_APIC_BASE) {
        *val = l->s.base;
    } else if (msr == MSR_TSC_DEADLINE) {
        lapic_timer_settle(l, &fx);
        *val = l->s.tsc_deadline;
    } else if (msr - MSR_X2APIC <= 0xff) {
        rc = x2apic_read(l, msr - MSR_X2APIC, val, &fx);
    } else {
        rc = -EINVAL;
    }
    lapic_unlock(l, &fx);
    return rc;
}

int lapic_wrmsr(struct lapic *l, uint32_t msr, uint64_t val)
{
    struct lapic_fx fx = {0};
    int rc = 0;

    lapic_lock(l);
    if (msr == MSR_APIC_BASE)
        rc = write_base(l, val, &fx);
    else if (msr == MSR_TSC_DEADLINE)
        lapic_timer_set_tsc(l, val, &fx);
    else if (msr - MSR_X2APIC <= 0xff)
        rc = x2apic_write(l, msr - MSR_X2APIC, val, &fx);
    else
        rc = -EINVAL;
    lapic_unlock(l, &fx);
    return rc;
}

void lapic_set_tsc_offset(struct lapic *l, uint64_t off)
{
    struct lapic_fx fx = {0};

    lapic_lock(l);
    l->tsc_off = off;
    lapic_timer_retune(l);
    lapic_unlock(l, &fx);
}
