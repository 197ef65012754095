/*
 * The local APIC (Intel SDM vol. 3 ch. 11; AMD APM vol. 2 ch. 16): xAPIC and x2APIC, all delivery
 * modes, TPR/PPR, periodic, one-shot and TSC-deadline timer. One per vCPU; an apic_bus joins them.
 *
 * Locking: each lapic has one mutex (an irq controller in the lock order). No lock of another
 * lapic, ioapic or device is held while it is taken or while it calls out; cross-lapic and
 * EOI-broadcast work is done after dropping it. lapic_pending() is lock-free. Everything may be
 * called from any thread; register accesses come from the owning vCPU's thread.
 *
 * Choices where the manuals leave one: the version register says 0x14, six LVT entries (no CMCI)
 * and EOI-broadcast suppression; APIC IDs are read-only; the timer's base clock is 1 GHz, its
 * periodic expiries closer than 200 us are thinned out to about that without affecting the current
 * count, and expiries that a late host missed are discarded; the polarity of the LINT pins is
 * stored but the level passed to lapic_set_lint() always means "asserted"; a vector is acknowledged
 * atomically, so the spurious vector is stored but never needed. The power-on state is the
 * architectural one: what firmware does (SVR enable, LINT0 = ExtINT, LINT1 = NMI) is up to the
 * machine's boot code.
 */
#ifndef RING3_IRQ_LAPIC_H
#define RING3_IRQ_LAPIC_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/state.h"
#include "base/timer.h"
#include "base/trace.h"

/* Delivery modes as the ICR, LVT, I/O APIC and MSI encode them. */
enum apic_delivery {
    APIC_FIXED,
    APIC_LOWEST,
    APIC_SMI,
    APIC_RESERVED,
    APIC_NMI,
    APIC_INIT,
    APIC_SIPI,
    APIC_EXTINT
};

/* What a lapic tells its vCPU. */
enum lapic_event {
    LAPIC_EV_INTR, /* lapic_pending() may have become true or false */
    LAPIC_EV_NMI,
    LAPIC_EV_SMI,
    LAPIC_EV_INIT,
    LAPIC_EV_SIPI, /* arg = vector: start at CS = vector << 8, IP = 0 */
};

struct lapic;
struct apic_bus;

struct lapic_cfg {
    uint32_t id; /* initial APIC ID = x2APIC ID */
    bool bsp;
    uint8_t maxphys; /* physical address bits, for reserved bits of IA32_APIC_BASE; 0: 52 */
    struct timerq *timers;
    struct trace *trace;
    /* Any thread, no lapic lock held. */
    void (*event)(void *owner, enum lapic_event ev, uint32_t arg);
    void *owner;
    /* Is the legacy PIC's INTR output high, and acknowledge it (vector). For LINT0/ExtINT. */
    bool (*pic_pending)(void *pic);
    int (*pic_ack)(void *pic);
    void *pic;
};

/* A message on the APIC bus, from an ICR write, the I/O APIC or an MSI. */
struct apic_msg {
    uint32_t dest; /* 8 bits xAPIC, 32 bits x2APIC */
    bool logical;  /* destination mode */
    bool x2apic;   /* dest is 32 bits wide */
    uint8_t vector;
    uint8_t delivery; /* enum apic_delivery */
    bool level;       /* trigger mode: level */
    bool assert_;     /* level-triggered messages: assert; INIT de-assert is ignored */
};

int apic_bus_new(struct apic_bus **out, struct err *e);
void apic_bus_free(struct apic_bus *b);
/* hook(owner, vector) is called at each EOI of a level-triggered vector (I/O APIC broadcast), with
 * no lock held. */
void apic_bus_set_eoi(struct apic_bus *b, void (*hook)(void *owner, uint8_t vector), void *owner);
/* hook(owner) is called, with no lock held, when a lapic may accept messages that none has so far:
 * it was enabled, or is addressed in another way. */
void apic_bus_set_retry(struct apic_bus *b, void (*hook)(void *owner), void *owner);
/* Delivers to every addressed lapic but `except` (the "all excluding self" shorthand; else NULL).
 * Returns how many accepted it (lowest priority: 0 or 1). A member's lapic_new and lapic_free must
 * not run at the same time as this. */
int apic_bus_deliver(struct apic_bus *b, const struct apic_msg *m, const struct lapic *except);
/* Decodes an MSI write (address 0xFEExxxxx, SDM vol. 3 §11.11) and delivers it. */
int apic_bus_msi(struct apic_bus *b, uint64_t addr, uint32_t data);

int lapic_new(struct lapic **out, struct apic_bus *bus, const struct lapic_cfg *cfg, struct err *e);
void lapic_free(struct lapic *l);
/* init: INIT IPI (keeps IA32_APIC_BASE and so the mode), else power-on. The pins keep their levels.
 * The lapic does not reset itself on INIT: the vCPU calls this when it takes LAPIC_EV_INIT. */
void lapic_reset(struct lapic *l, bool init);

/* The page at APIC_BASE (0xFEE00000 by default); off 0..0xfff. Sizes other than 4 at 16-byte steps
 * behave as undefined accesses do on silicon (reads 0, writes ignored). */
uint32_t lapic_mmio_read(struct lapic *l, uint32_t off);
void lapic_mmio_write(struct lapic *l, uint32_t off, uint32_t val);
/* x2APIC MSRs 0x800..0x8ff and IA32_APIC_BASE (0x1b), IA32_TSC_DEADLINE (0x6e0):
 * 0, or -EINVAL for #GP. */
int lapic_rdmsr(struct lapic *l, uint32_t msr, uint64_t *val);
int lapic_wrmsr(struct lapic *l, uint32_t msr, uint64_t val);
uint64_t lapic_base(struct lapic *l); /* IA32_APIC_BASE; lock-free */

/* The guest's TSC minus clock_tsc() of the machine (IA32_TSC_ADJUST and TSC writes end up here). An
 * armed TSC deadline moves with it. Not part of the saved state: set it again before lapic_resume.
 */
void lapic_set_tsc_offset(struct lapic *l, uint64_t off);

uint8_t lapic_get_cr8(struct lapic *l);
void lapic_set_cr8(struct lapic *l, uint8_t v);

/* Is an interrupt waiting that the vCPU would take with RFLAGS.IF = 1 (ExtINT included)? Lock-free.
 */
bool lapic_pending(const struct lapic *l);
/* INTA: the vector to deliver, moved from IRR to ISR; -1 if it went away meanwhile. For ExtINT the
 * PIC is acknowledged. */
int lapic_ack(struct lapic *l);
/* LINT0 is wired to the PIC, LINT1 to NMI. */
void lapic_set_lint(struct lapic *l, int lint, bool level);

extern const struct state_desc lapic_state_desc;
int lapic_save(struct lapic *l, struct sbuf *out);
int lapic_load(struct lapic *l, const uint8_t *data, size_t len, size_t *used, struct err *e);
/* Stops the timer until lapic_resume; the state keeps the deadline. lapic_load is for quiesced
 * ones, and refuses the state of an APIC with another ID. lapic_resume also reports what is
 * pending. */
void lapic_quiesce(struct lapic *l);
void lapic_resume(struct lapic *l);

#endif
