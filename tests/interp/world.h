/*
 * A bare VM for tests of an engine (tests/engine.h says which): RAM, a ROM page, everything else I/O that is logged, one
 * to four vCPUs, a clock that stands still. No machine.
 */
#ifndef RING3_TESTS_INTERP_WORLD_H
#define RING3_TESTS_INTERP_WORLD_H

#include "engine/engine.h"
#include "../engine.h"

#define WORLD_CPUS 4
#define WORLD_RAM (1 * MIB)
#define WORLD_ROM 0xf00000ull   /* one page */
#define WORLD_MSR_IRQ 0x7fff0051u /* is not there; reading it raises vector 0x51 */
#define WORLD_ALIAS 0x800000ull /* four pages, which port PORT_ALIAS moves over RAM */
#define WORLD_LOG 64

/* Ports that do something; all others are logged only. */
enum {
    PORT_STOP = 0x10, /* write: the vCPU's run() returns */
    PORT_IRQ = 0x11,  /* write: raises that vector */
    PORT_NMI = 0x12,
    PORT_ALIAS =
        0x13, /* write: the alias region shows RAM from that page on (modulo what there is) */
    PORT_NOALIAS = 0x14, /* write: removes it */
};

enum io_kind { IO_PIO_READ, IO_PIO_WRITE, IO_MMIO_READ, IO_MMIO_WRITE };

struct io {
    enum io_kind kind;
    uint64_t addr;
    unsigned size;
    uint64_t val; /* its first eight bytes */
};

struct world {
    struct vm vm;
    struct vcpu vcpu[WORLD_CPUS], *list[WORLD_CPUS];
    const struct engine_ops *engine;
    struct clock clock;
    struct cpuid_policy policy;
    struct trace trace;
    struct log trace_log;
    struct physmap *map;
    struct ram *ram, *rom;
    struct region *alias;
    uint8_t *mem; /* RAM in the host */
    struct io log[WORLD_LOG];
    unsigned nlog;    /* may exceed WORLD_LOG */
    uint64_t io_hash; /* of all accesses but instruction fetches */
    uint64_t cr8[WORLD_CPUS];
    _Atomic int irq[WORLD_CPUS]; /* vector waiting, or -1 */
    unsigned moves;              /* how often the alias was moved */
    uint64_t mmio_value;         /* what I/O reads as; 0: a hash of the address */
    uint64_t tsc_moved;          /* last offset told, and how often */
    unsigned tsc_moves;
};

/* Aborts the program when something fails: that is not what is tested. */
/* Has the features that tests of privileged behaviour need, and no random numbers. */
struct world *world_new(unsigned ncpu);
void world_free(struct world *w);
void world_forget_io(struct world *w);

void world_write(struct world *w, uint64_t gpa, const void *p, size_t n); /* as a device does */
void world_get(struct world *w, unsigned cpu, struct cpu_state *s);
int world_set(struct world *w, unsigned cpu,
              const struct cpu_state *s); /* as engine_ops.set_state */
enum stop world_run(struct world *w, unsigned cpu, uint64_t budget);
/* Does the host's processor run the guest? docs/kvm.md tells what is different then. */
bool world_on_hardware(const struct world *w);

#endif
