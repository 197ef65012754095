/*
 * The guest of the probe, as its host sees it: code to be copied into the first page frames of 2 MiB of memory, and the
 * layout of that memory. Also read by the assembler.
 */
#ifndef RING3_ENGINE_KVM_PROBE_GUEST_H
#define RING3_ENGINE_KVM_PROBE_GUEST_H

/* Guest-physical addresses. */
#define PG_MEM_SIZE 0x200000
#define PG_STEP 0x500    /* 32 bits: which of enum pg_step it is at */
#define PG_DETAIL 0x508  /* 64 bits: what it saw if it complains */
#define PG_IRQS 0x510    /* 64 bits: interrupts taken */
#define PG_SCRATCH 0x520 /* 16 bytes */
#define PG_IDTR 0x540    /* operands of LIDT and LGDT */
#define PG_GDTR 0x550
#define PG_PML4 0x1000
#define PG_PDPT 0x2000
#define PG_PD 0x3000
#define PG_PT 0x4000     /* the first 2 MiB of both halves: all memory */
#define PG_PT_FAULT 0x5000 /* the next 2 MiB: empty at first */
#define PG_IDT 0x6000
#define PG_GDT 0x7000
#define PG_TSS 0x7100
#define PG_CODE 0x8000
#define PG_CODE_MAX 0x2000
#define PG_STACK_TOP 0xc000
#define PG_USER_STACK_TOP 0xe000
#define PG_POOL 0x100000 /* frames for the pages that fault */

/* The kernel's half, where Linux runs, too: PML4 and PDPT have the same tables twice. */
#define PG_HIGH 0xffffffff80000000
#define PG_FAULT_BASE (PG_HIGH + 0x200000)
#define PG_FAULT_PAGES 64
#define PG_MMIO_GPA 0x10000000
#define PG_MMIO (PG_HIGH + PG_MMIO_GPA)

#define PG_SEL_CODE 0x08
#define PG_SEL_DATA 0x10
#define PG_SEL_USER 0x18 /* SYSRET: data at +8, code at +16 */
#define PG_SEL_TSS 0x30
#define PG_GDT_SIZE 0x40
#define PG_TSS_LIMIT 0x67

#define PG_VECTOR 0x40
#define PG_ROUNDS 4 /* of user mode, I/O, MMIO and interrupts */

#define PG_LOOPS 20000 /* of plain computing */

/* The guest's ports: it has come to its end; it complains; it wants the complement of what it wrote; it wants an
 * interrupt as soon as it takes one; it begins with plain computing. */
#define PG_PORT_DONE 0x510
#define PG_PORT_FAIL 0x514
#define PG_PORT_ECHO 0x518
#define PG_PORT_IRQ 0x51c
#define PG_PORT_COMPUTE 0x520

#ifndef __ASSEMBLER__

#include <stdint.h>

enum pg_step {
    PG_ENTRY,
    PG_PRIVILEGE,
    PG_FLAGS,
    PG_TABLES,
    PG_PAGING,
    PG_PROTECTION,
    PG_USER,
    PG_IO,
    PG_MMIO_STEP,
    PG_HALT,
    PG_WINDOW,
    PG_COMPUTE,
    PG_STEPS
};

/* The code, PG_HIGH + PG_CODE when it runs; its entry is its first byte. */
extern const unsigned char pg_code[], pg_code_end[];
/* Handlers within it: of page faults, of the interrupt, of whatever should not come. */
extern const unsigned char pg_fault[], pg_irq[], pg_unexpected[];
/* Its plain computing, which the host can do, too. */
void pg_compute(uint64_t *scratch);

#endif
#endif
