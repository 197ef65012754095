/*
 * The 8259A pair (Intel 8259A data sheet), cascaded on IR2, with ELCR (ports 0x4D0/0x4D1). One
 * mutex for both. A `struct irq` for line n (0..15) has set = pic_set. The INTR output is reported
 * through `intr`, called without the state's mutex held, in the order of the changes, and low then
 * high for a request that is still waiting after an INTA. `intr` must not call back into the pic.
 *
 * As on the chip, a line must stay high until the interrupt is acknowledged, in edge mode too: a
 * device that lowers it earlier takes its request back (so irq_pulse() is not for PIC lines). Line
 * 2 is the cascade and cannot be set. MCS-80 mode (ICW4 bit 0 clear) is not distinguished from 8086
 * mode.
 */
#ifndef RING3_IRQ_PIC_H
#define RING3_IRQ_PIC_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/state.h"
#include "base/trace.h"
#include "irq/irq.h"

struct pic;
int pic_new(struct pic **out, const struct irq *intr, struct trace *t, struct err *e);
void pic_free(struct pic *p);
void pic_reset(struct pic *p);
void pic_set(void *pic, int line, bool level); /* struct irq.set */
bool pic_pending(void *pic);                   /* INTR output; lock-free */
int pic_ack(
    void *pic); /* INTA cycle pair: the vector; spurious IRQ7 (or 15) if the line went away */
/* chip 0 master (0x20), 1 slave (0xA0); reg 0 or 1. elcr: 0x4D0 + chip. */
uint8_t pic_read(struct pic *p, int chip, int reg);
void pic_write(struct pic *p, int chip, int reg, uint8_t val);
uint8_t pic_elcr_read(struct pic *p, int chip);
void pic_elcr_write(struct pic *p, int chip, uint8_t val);

extern const struct state_desc pic_state_desc;
int pic_save(struct pic *p, struct sbuf *out);
int pic_load(struct pic *p, const uint8_t *data, size_t len, size_t *used, struct err *e);

#endif
