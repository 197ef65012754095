/*
 * Dispatch of port and memory-mapped register accesses to devices: checks and splits sizes, takes
 * the device's lock, traces. Mappings may change at any time from any thread, also with a device's
 * lock held; an access that is on its way meanwhile may still reach the device at the old place.
 * Unclaimed reads give all ones, writes are dropped.
 */
#ifndef RING3_DEV_BUS_H
#define RING3_DEV_BUS_H

#include <stdint.h>

#include "dev/device.h"

/* What a REGION_IO's `io` points to, and what a port maps to. Owned by whoever maps it. */
struct io_target {
    struct device *dev;
    const struct io_ops *ops;
};

struct pio_bus; /* 65,536 ports */

int pio_bus_new(struct pio_bus **out, struct dev_ctx *ctx, struct err *e);
void pio_bus_free(struct pio_bus *b);
/* Maps [port, port+n) to ops with off = port - base given; -EBUSY if any is taken. */
int pio_map(struct pio_bus *b, uint16_t port, unsigned n, struct device *dev,
            const struct io_ops *ops, struct err *e);
void pio_unmap(struct pio_bus *b, uint16_t port, unsigned n);

/* An access of 1, 2 or 4 bytes by a vCPU. */
uint32_t pio_read(struct pio_bus *b, uint16_t port, unsigned size);
void pio_write(struct pio_bus *b, uint16_t port, unsigned size, uint32_t val);

/* Maps a device's registers at gpa through the physmap of its ctx (prio 10, above RAM). Returns the
 * region for mmio_unmap; it and its io_target are freed by the physmap_reclaim that follows. */
struct region *mmio_map(struct device *dev, const struct io_ops *ops, uint64_t gpa, uint64_t size,
                        struct err *e);
void mmio_unmap(struct device *dev, struct region *r);

/* An access of 1 to 64 bytes by a vCPU to an address that is not RAM or ROM; split into pieces of
 * at most 8 bytes, naturally aligned, in ascending order. buf is little-endian bytes. */
void mmio_read(struct dev_ctx *ctx, uint64_t gpa, void *buf, unsigned size);
void mmio_write(struct dev_ctx *ctx, uint64_t gpa, const void *buf, unsigned size);

#endif
