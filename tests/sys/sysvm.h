/*
 * A bare VM for the tests of the system half: RAM at 0, a fake environment, one vCPU, no machine.
 * The guest talks through ports (enum sysvm_port).
 */
#ifndef RING3_TESTS_SYS_SYSVM_H
#define RING3_TESTS_SYS_SYSVM_H

#include "../engine.h"

enum vendor { VENDOR_HOST, VENDOR_INTEL, VENDOR_AMD };

enum sysvm_port {
    PORT_RESULT = 0xf4, /* dword */
    PORT_DETAIL = 0xf5, /* dword */
    PORT_IRQ = 0xf6,    /* byte: raise this vector, until it is acknowledged */
    PORT_NMI = 0xf7,    /* any write */
    PORT_STAGE = 0xf8,  /* byte */
    PORT_HALT_IRQ = 0xf9, /* byte: raise this vector when the vCPU halts */
    PORT_SCRATCH = 0x200, /* 256 bytes of memory */
    SCRATCH_SIZE = 256
};

struct sysvm {
    struct vm vm;
    struct vcpu vcpu, *list;
    struct clock clock;
    struct cpuid_policy policy;
    struct trace trace;
    struct log log;
    struct physmap *map;
    struct ram *ram;
    uint8_t scratch[SCRATCH_SIZE];
    uint64_t cr8;
    bool done, irq, halt_irq;
    uint8_t irq_vector, halt_vector, stage;
    uint32_t result, detail[16];
    unsigned ndetail;
    uint64_t visits[4096], hops, hop_waits; /* sysrun's: by RIP; changes of engine */
};

/* NULL with e set on failure. SYSRUN_TRACE in the process's environment chooses trace events. */
struct sysvm *sysvm_new(const struct engine_ops *engine, uint64_t ram, uint32_t vendor,
                        struct err *e);
void sysvm_free(struct sysvm *w); /* NULL is allowed */

#endif
