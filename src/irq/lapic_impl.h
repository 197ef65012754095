/*
 * What the files of the local APIC share among themselves; nobody else includes this. Functions
 * that take a struct lapic_fx are called with the lapic's mutex held and note there what has to
 * happen outside of it; lapic_unlock() then drops the mutex and does it.
 */
#ifndef RING3_IRQ_LAPIC_IMPL_H
#define RING3_IRQ_LAPIC_IMPL_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/util.h"
#include "irq/lapic.h"

/* Register numbers: MMIO offset >> 4, x2APIC MSR - 0x800 (SDM vol. 3 tables 11-1 and 11-6). */
enum lapic_reg {
    REG_ID = 0x02,
    REG_VERSION = 0x03,
    REG_TPR = 0x08,
    REG_APR = 0x09,
    REG_PPR = 0x0a,
    REG_EOI = 0x0b,
    REG_RRD = 0x0c,
    REG_LDR = 0x0d,
    REG_DFR = 0x0e,
    REG_SVR = 0x0f,
    REG_ISR = 0x10,
    REG_TMR = 0x18,
    REG_IRR = 0x20,
    REG_ESR = 0x28,
    REG_ICR_LO = 0x30,
    REG_ICR_HI = 0x31,
    REG_LVT = 0x32, /* timer, thermal, performance, LINT0, LINT1, error */
    REG_TIMER_INIT = 0x38,
    REG_TIMER_CUR = 0x39,
    REG_TIMER_DIV = 0x3e,
    REG_SELF_IPI = 0x3f,
    REG_COUNT = 0x40
};

#define LVT_STATUS 0x5000u /* delivery status, remote IRR */
enum lapic_lvt { LVT_TIMER, LVT_THERMAL, LVT_PERF, LVT_LINT0, LVT_LINT1, LVT_ERROR, LVT_COUNT };

#define LVT_VECTOR 0xffu
#define LVT_REMOTE_IRR BIT(14)
#define LVT_LEVEL BIT(15)
#define LVT_MASKED BIT(16)

#define SVR_ENABLE BIT(8)
#define SVR_NO_EOI_BROADCAST BIT(12)

#define ESR_SEND_VECTOR BIT(5)
#define ESR_RECV_VECTOR BIT(6)
#define ESR_REGISTER BIT(7)

#define BASE_BSP BIT(8)
#define BASE_X2APIC BIT(10)
#define BASE_ENABLE BIT(11)
#define BASE_DEFAULT 0xfee00000ull

enum lapic_timer_mode { TIMER_ONESHOT, TIMER_PERIODIC, TIMER_TSC_DEADLINE };

#define VEC_WORDS 8

struct lapic_state {
    uint64_t base;         /* IA32_APIC_BASE */
    uint64_t deadline;     /* guest ns of the timer's next expiry; TIMER_OFF when it is stopped */
    uint64_t tsc_deadline; /* IA32_TSC_DEADLINE; 0 when disarmed */
    uint64_t icr;
    uint32_t id; /* 32 bits; the xAPIC shows the low 8 */
    uint32_t tpr;
    uint32_t ldr, dfr;
    uint32_t svr;
    uint32_t esr, esr_latch; /* what reads give; errors since the last write of ESR */
    uint32_t lvt[LVT_COUNT];
    uint32_t timer_init, timer_div;
    uint32_t arb; /* lowest-priority messages taken; breaks ties between equals */
    uint32_t irr[VEC_WORDS], isr[VEC_WORDS], tmr[VEC_WORDS];
    bool lint[2]; /* is the pin asserted */
    bool extint;  /* an ExtINT message is waiting for its INTA */
    uint8_t pad[5];
};

/* lapic.ready: what lapic_pending looks at. */
#define READY_FIXED 1u  /* IRR holds a vector above PPR */
#define READY_EXTINT 2u /* an interrupt of the PIC would be taken */

/* lapic.address: how messages find it, readable without the mutex. */
#define ADDR_LDR(a) ((uint32_t)(a))
#define ADDR_FLAT BIT(32) /* DFR selects the flat model */
#define ADDR_X2APIC BIT(33)
#define ADDR_ENABLED BIT(34) /* globally enabled: takes messages at all */
#define ADDR_ACCEPTS BIT(35) /* software-enabled: takes fixed and lowest-priority ones */

struct lapic {
    _Atomic uint8_t ready;
    _Atomic uint8_t ppr;
    _Atomic uint32_t arb; /* copy of s.arb */
    _Atomic uint64_t address;
    _Atomic uint64_t base; /* copy of s.base */
    pthread_mutex_t lock;
    struct lapic_state s;
    struct lapic_cfg cfg;
    struct apic_bus *bus;
    const struct clock *clock;
    struct timer timer;
    uint64_t armed;   /* what the host-side timer is set to */
    uint64_t tsc_off; /* guest TSC minus the machine clock's TSC */
    bool quiet;       /* quiesced: leave the host-side timer alone */
};

/* What to do once the mutex is dropped. */
struct lapic_fx {
    uint32_t events; /* BIT(enum lapic_event) */
    uint32_t sipi;
    bool eoi, send;
    bool retry; /* it is addressed in another way than before */
    uint8_t eoi_vector;
    bool not_self;
    struct apic_msg msg;
};

static inline void lapic_lock(struct lapic *l) { pthread_mutex_lock(&l->lock); }
void lapic_unlock(struct lapic *l, const struct lapic_fx *fx);

static inline bool lapic_x2apic(const struct lapic *l) { return l->s.base & BASE_X2APIC; }
static inline bool lapic_enabled(const struct lapic *l) { return l->s.base & BASE_ENABLE; }

/* lapic.c: interrupt state. Each leaves ready, ppr and address up to date. */
void lapic_refresh(struct lapic *l, struct lapic_fx *fx);
bool lapic_accept_vector(struct lapic *l, uint8_t vector, bool level, struct lapic_fx *fx);
void lapic_error(struct lapic *l, uint32_t esr_bit, struct lapic_fx *fx);
void lapic_eoi(struct lapic *l, struct lapic_fx *fx);
void lapic_lint_update(struct lapic *l, int lint, bool edge, struct lapic_fx *fx);
void lapic_init_state(struct lapic *l);
/* A message that apic_bus found to be for l; takes the mutex. Was it accepted? */
bool lapic_accept(struct lapic *l, const struct apic_msg *m);
/* Highest set bit of a 256-bit register, or -1. */
int lapic_highest(const uint32_t *reg);

/* lapic_timer.c */
void lapic_timer_fire(void *arg); /* timer.fn */
void lapic_timer_arm(struct lapic *l);
/* Accounts for an expiry that has passed but whose callback has not run. */
void lapic_timer_settle(struct lapic *l, struct lapic_fx *fx);
void lapic_timer_set_count(struct lapic *l, uint32_t count);
void lapic_timer_set_divide(struct lapic *l, uint32_t div);
void lapic_timer_set_lvt(struct lapic *l, uint32_t lvt, struct lapic_fx *fx);
void lapic_timer_set_tsc(struct lapic *l, uint64_t deadline, struct lapic_fx *fx);
void lapic_timer_retune(struct lapic *l); /* after a change of tsc_off */
uint32_t lapic_timer_count(const struct lapic *l);
enum lapic_timer_mode lapic_timer_mode(const struct lapic *l);

/* apic_bus.c */
int apic_bus_join(struct apic_bus *b, struct lapic *l, struct err *e);
void apic_bus_leave(struct apic_bus *b, struct lapic *l);
void apic_bus_eoi(struct apic_bus *b, uint8_t vector);
void apic_bus_retry(struct apic_bus *b);

#endif
