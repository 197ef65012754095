/*
 * The guest-physical address space: regions (RAM, ROM, I/O) with priorities, and the sorted,
 * immutable flat view that follows from them. Any change builds a new view, publishes it through one
 * atomic pointer and calls the listener; old views are freed by physmap_reclaim(), which the machine
 * calls when every vCPU has passed a safe point. Changes are made by one thread at a time (an
 * internal mutex sees to it); look-ups take no lock and may be on any thread between safe points.
 */
#ifndef RING3_MEM_PHYSMAP_H
#define RING3_MEM_PHYSMAP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "mem/p2m.h"
#include "mem/ram.h"

enum region_kind { REGION_RAM, REGION_ROM, REGION_IO };

/* A mapping of something at a guest-physical range. base and size are multiples of 4 KiB for RAM and
 * ROM and of 1 byte for I/O. Where regions overlap the higher priority wins, then the later one. */
struct region {
    const char *name; /* not owned */
    enum region_kind kind;
    uint64_t base, size;
    int prio;
    struct ram *ram;  /* RAM, ROM: backing, not owned */
    uint64_t ram_off; /* offset in ram of the region's first byte (two regions may alias one ram) */
    void *io;         /* I/O: what dev/bus.h dispatches to; opaque here */
    /* Called once with io when no view can refer to the region any more (physmap_reclaim or
     * physmap_free after physmap_del). May be NULL. */
    void (*io_free)(void *io);
};

/* One piece of a flat view: [start, end], both inclusive. */
struct flat_range {
    uint64_t start, end;
    enum region_kind kind;
    const struct region *region;
    uint64_t off; /* offset within the region of `start` */
};

struct flat_view {
    uint32_t n;
    struct flat_view *retired; /* list of views waiting for physmap_reclaim */
    struct flat_range r[];
};

struct physmap_listener {
    /* A new view was published and the p2m already agrees with it. Called with the map's mutex
     * held; must make every engine drop cached translations. NULL to ignore. */
    void (*changed)(void *arg, const struct flat_view *view);
    /* Bytes [gpa, gpa+len) of a frame that has P2M_CODE are about to be, or were just, written by
     * something other than a vCPU's own checked store. NULL to ignore. Any thread. */
    void (*code_write)(void *arg, uint64_t gpa, uint64_t len);
    void *arg;
};

struct physmap;

/* maxphys: guest-physical address width in bits (36..52). */
int physmap_new(struct physmap **out, unsigned maxphys, struct err *e);
void physmap_free(struct physmap *m);
void physmap_set_listener(struct physmap *m, const struct physmap_listener *l);
unsigned physmap_width(const struct physmap *m);

/* The map copies *r; returns its handle for physmap_del, or NULL with e set. */
struct region *physmap_add(struct physmap *m, const struct region *r, struct err *e);
/* 0, or -ENOENT when r is not in the map. Needs no memory, so it cannot fail otherwise. The
 * region's struct stays valid until physmap_reclaim. */
int physmap_del(struct physmap *m, struct region *r, struct err *e);
void physmap_reclaim(struct physmap *m); /* frees retired views; no reader may hold one */

const struct flat_view *physmap_view(const struct physmap *m);
/* The range that holds gpa, or NULL. Binary search. */
const struct flat_range *physmap_find(const struct flat_view *v, uint64_t gpa);

/* The host address of gpa within r, a RAM or ROM range that holds it. */
uint8_t *physmap_host(const struct flat_range *r, uint64_t gpa);
/* Calls the listener's code_write. */
void physmap_code_write(const struct physmap *m, uint64_t gpa, uint64_t len);

struct p2m *physmap_p2m(struct physmap *m);

/* ---- access by devices, boot code and the debugger (vCPU accesses go through the engine) ----
 * Overflow-checked, split at range ends, dirty-marking and code-invalidating. They touch RAM and
 * ROM only. mem_write to ROM is refused unless mem_write_rom. Return 0, or -EFAULT when any byte is not memory (bytes
 * before it may have been written). Any thread; concurrent accesses to the same bytes are as
 * unordered as DMA. */
int mem_read(struct physmap *m, uint64_t gpa, void *buf, uint64_t len);
int mem_write(struct physmap *m, uint64_t gpa, const void *buf, uint64_t len);
int mem_write_rom(struct physmap *m, uint64_t gpa, const void *buf, uint64_t len);
int mem_zero(struct physmap *m, uint64_t gpa, uint64_t len);

/* A host pointer to [gpa, gpa+len) for direct use, or NULL when len is 0 or the range is not RAM (or
 * ROM, if only read), is not contiguous in the host or may not be written. For writing, the range is marked dirty now and again by
 * mem_unmap, which must follow every successful mem_map. */
void *mem_map(struct physmap *m, uint64_t gpa, uint64_t len, bool write);
void mem_unmap(struct physmap *m, uint64_t gpa, uint64_t len, bool write);

#endif
