/*
 * The 82093AA-style I/O APIC, 24 pins, version 0x20 with the EOI register. Locking: one mutex (an
 * irq controller). Messages go out through the apic_bus with that mutex dropped; edge and level
 * semantics with remote IRR as in the Intel ICH data sheet. A `struct irq` for pin n has set =
 * ioapic_set.
 *
 * The level given to ioapic_set() always means "asserted"; the polarity bit is stored and has no
 * effect, because how a wire is driven is the device's side of it. An edge at a masked pin is lost;
 * a level is sent when it is unmasked, and again after the EOI while it lasts. SMI, NMI, INIT and
 * ExtINT entries are edge-triggered whatever their trigger mode says. The bus, the trace and the
 * I/O APIC belong to the machine; t may not be NULL. After ioapic_load nothing is sent: the local
 * APICs have their own state.
 */
#ifndef RING3_IRQ_IOAPIC_H
#define RING3_IRQ_IOAPIC_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/state.h"
#include "base/trace.h"
#include "irq/lapic.h"

#define IOAPIC_PINS 24

struct ioapic;
int ioapic_new(struct ioapic **out, struct apic_bus *bus, uint8_t id, struct trace *t,
               struct err *e);
void ioapic_free(struct ioapic *a);
void ioapic_reset(struct ioapic *a);
void ioapic_set(void *ioapic, int pin, bool level); /* struct irq.set */
void ioapic_eoi(void *ioapic, uint8_t vector);      /* apic_bus EOI hook */
void ioapic_retry(void *ioapic);                    /* apic_bus retry hook */
/* Registers at 0xFEC00000: off 0x00 index, 0x10 data, 0x40 EOI; 32-bit accesses. */
uint32_t ioapic_mmio_read(struct ioapic *a, uint32_t off);
void ioapic_mmio_write(struct ioapic *a, uint32_t off, uint32_t val);

extern const struct state_desc ioapic_state_desc;
int ioapic_save(struct ioapic *a, struct sbuf *out);
int ioapic_load(struct ioapic *a, const uint8_t *data, size_t len, size_t *used, struct err *e);

#endif
