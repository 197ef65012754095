/*
 * A machine around one or a few devices: stepped clock, timers, memory map without memory, ports,
 * and records of what the devices did to their interrupt lines and asked of the machine. All of it
 * is in the struct, so that a test can have two.
 */
#ifndef RING3_TESTS_DEV_FAKE_H
#define RING3_TESTS_DEV_FAKE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "dev/bus.h"
#include "dev/device.h"

#define FAKE_LINES 32

struct fake {
    struct clock clock;
    struct timerq timers;
    struct log log;
    struct trace trace;
    struct dev_ctx ctx;
    struct pio_bus *pio;
    bool level[FAKE_LINES];     /* of each line now */
    unsigned edges[FAKE_LINES]; /* how often it rose */
    unsigned requests[MACHINE_DEBUG_EXIT + 1];
    int request_arg; /* of the last one */
};

void fake_init(struct fake *f);
void fake_fini(struct fake *f);
struct irq fake_irq(struct fake *f, int line);
struct device *fake_device(struct fake *f, const struct device_class *cls, const char *id,
                           const void *cfg);
void fake_ports(struct fake *f, uint16_t port, unsigned n, struct device *d,
                const struct io_ops *ops);

/* Port accesses of one byte. */
uint8_t inb(struct fake *f, uint16_t port);
void outb(struct fake *f, uint16_t port, uint8_t v);

/* Lets guest time pass and runs the timers that come due. */
void fake_step(struct fake *f, uint64_t ns);

/* Checks what every class must hold to, on a device of this class and cfg: its state description
 * covers each byte; save, load and save again gives the same bytes for random states; it survives
 * resume with each of them; damaged sections are refused and leave the state as it was. */
void fake_check_state(struct fake *f, const struct device_class *cls, const void *cfg);

/* Saves src and loads the section into dst, both quiesced for it and resumed after. */
void fake_migrate(struct device *src, struct device *dst);

#endif
