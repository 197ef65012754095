/*
 * Small guests that must run alike under every engine: ports, memory-mapped I/O, interrupts, MSRs, CPUID, paging, vector
 * state, modes, the dirty log, kicks. tests/engine.h says which engine; KVM's is skipped where the host has none that
 * works.
 */
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "../interp/guest.h"

#define OUT_AL(port) 0xe6, (port)

static int setup(void **state)
{
    *state = guest_new(1);
    return 0;
}

static int teardown(void **state)
{
    world_free(*state);
    return 0;
}

static void assert_io(const struct world *w, unsigned i, enum io_kind kind, uint64_t addr,
                      unsigned size)
{
    assert_true(i < w->nlog);
    assert_int_equal(w->log[i].kind, kind);
    assert_int_equal(w->log[i].addr, addr);
    assert_int_equal(w->log[i].size, size);
}

/* ---- ports ---- */

static void test_ports(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    guest_code(w, GUEST_CODE, MOV_EAX(0x11223344), 0x66, 0xba, LE16(0x500), /* mov dx, 0x500 */
               0xee, 0x66, 0xef, 0xef,                                      /* out dx, al; ax; eax */
               0xec, 0x88, 0xc3,                                            /* in al, dx; mov bl, al */
               0x66, 0xed, 0x66, 0x89, 0xc1,                                /* in ax, dx; mov cx, ax */
               0xed, HLT);                                                  /* in eax, dx */
    guest_state(&s);
    w->mmio_value = 0xa1a2a3a4;
    assert_int_equal(guest_run(w, &s), -1);
    assert_int_equal(w->nlog, 6);
    assert_io(w, 0, IO_PIO_WRITE, 0x500, 1);
    assert_int_equal(w->log[0].val, 0x44);
    assert_io(w, 1, IO_PIO_WRITE, 0x500, 2);
    assert_int_equal(w->log[1].val, 0x3344);
    assert_io(w, 2, IO_PIO_WRITE, 0x500, 4);
    assert_int_equal(w->log[2].val, 0x11223344);
    assert_int_equal(s.gpr[RBX] & 0xff, 0xa4);
    assert_int_equal(s.gpr[RCX] & 0xffff, 0xa3a4);
    assert_int_equal(s.gpr[RAX], 0xa1a2a3a4);
}

static void test_port_strings(void **state)
{
    struct world *w = *state;
    static const char text[] = "0123456789";
    struct cpu_state s;

    world_write(w, GUEST_DATA, text, 10);
    guest_code(w, GUEST_CODE, 0xf3, 0x6e,  /* rep outsb */
               0xb9, LE32(3), 0xf3, 0x6d, HLT); /* mov ecx, 3; rep insd */
    guest_state(&s);
    s.gpr[RSI] = GUEST_DATA;
    s.gpr[RDI] = GUEST_DATA + 0x100;
    s.gpr[RCX] = 10;
    s.gpr[RDX] = 0x600;
    w->mmio_value = 0x55667788;
    assert_int_equal(guest_run(w, &s), -1);
    assert_int_equal(w->nlog, 13);
    for (unsigned i = 0; i < 10; i++) {
        assert_io(w, i, IO_PIO_WRITE, 0x600, 1);
        assert_int_equal(w->log[i].val, text[i]);
    }
    assert_int_equal(s.gpr[RSI], GUEST_DATA + 10);
    assert_int_equal(s.gpr[RDI], GUEST_DATA + 0x100 + 12);
    assert_int_equal(s.gpr[RCX], 0);
    assert_int_equal(guest_u64(w, GUEST_DATA + 0x104), 0x5566778855667788);
    assert_int_equal(guest_u64(w, GUEST_DATA + 0x10c), 0);
}

/* ---- memory-mapped I/O ---- */

static void test_mmio(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    guest_code(w, GUEST_CODE, 0x88, 0x07, 0x66, 0x89, 0x47, 0x02, /* mov [rdi], al; [rdi + 2], ax */
               0x89, 0x47, 0x04, 0x48, 0x89, 0x47, 0x08,          /* [rdi + 4], eax; [rdi + 8], rax */
               0x0f, 0xb6, 0x4f, 0x10,                            /* movzx ecx, byte [rdi + 16] */
               0x48, 0x8b, 0x57, 0x18,                            /* mov rdx, [rdi + 24] */
               0x01, 0x47, 0x20, HLT);                            /* add [rdi + 32], eax */
    guest_state(&s);
    s.gpr[RDI] = GUEST_IO;
    s.gpr[RAX] = 0x1122334455667788;
    w->mmio_value = 0x0102030405060708;
    assert_int_equal(guest_run(w, &s), -1);
    assert_int_equal(w->nlog, 8);
    assert_io(w, 0, IO_MMIO_WRITE, GUEST_IO_PA, 1);
    assert_int_equal(w->log[0].val, 0x88);
    assert_io(w, 1, IO_MMIO_WRITE, GUEST_IO_PA + 2, 2);
    assert_io(w, 2, IO_MMIO_WRITE, GUEST_IO_PA + 4, 4);
    assert_io(w, 3, IO_MMIO_WRITE, GUEST_IO_PA + 8, 8);
    assert_int_equal(w->log[3].val, 0x1122334455667788);
    assert_io(w, 4, IO_MMIO_READ, GUEST_IO_PA + 16, 1);
    assert_int_equal(s.gpr[RCX], 8);
    assert_int_equal(s.gpr[RDX], 0x0102030405060708);
    assert_io(w, 6, IO_MMIO_READ, GUEST_IO_PA + 32, 4);
    assert_io(w, 7, IO_MMIO_WRITE, GUEST_IO_PA + 32, 4);
    assert_int_equal(w->log[7].val, 0x05060708 + 0x55667788);
}

/* Stores to ROM change nothing, and are no fault. */
static void test_rom(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    guest_map(w, GUEST_WINDOW, WORLD_ROM | PTE_RW);
    guest_put64(w, WORLD_ROM, 0x1234567890);
    guest_code(w, GUEST_CODE, 0x48, 0x89, 0x07, 0x48, 0x8b, 0x0f, HLT); /* mov [rdi], rax; mov rcx, [rdi] */
    guest_state(&s);
    s.gpr[RDI] = GUEST_WINDOW;
    s.gpr[RAX] = ~0ull;
    assert_int_equal(guest_run(w, &s), -1);
    assert_int_equal(s.gpr[RCX], 0x1234567890);
    assert_int_equal(guest_u64(w, WORLD_ROM), 0x1234567890);
}

/* Vector instructions on I/O memory, which KVM's emulator does not know. */
static void test_mmio_vector(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    guest_code(w, GUEST_CODE, 0x66, 0x0f, 0xfe, 0x07, /* paddd xmm0, [rdi] */
               0x66, 0x48, 0x0f, 0x7e, 0xc0, HLT);    /* movq rax, xmm0 */
    guest_state(&s);
    s.gpr[RDI] = GUEST_IO;
    s.zmm[0][0] = 0x0000000100000001;
    w->mmio_value = 0x0102030405060708;
    assert_int_equal(guest_run(w, &s), -1);
    assert_int_equal(s.gpr[RAX], 0x0102030505060709);
    assert_int_equal(s.zmm[0][1], 0x0102030405060708);
}

/* A region that moves while the guest uses it. */
static void test_moving_memory(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    guest_put64(w, 0x30000, 0x30);
    guest_put64(w, 0x40000, 0x40);
    guest_map(w, GUEST_WINDOW, WORLD_ALIAS | PTE_RW);
    guest_code(w, GUEST_CODE, 0xb0, 0x30, OUT_AL(PORT_ALIAS), 0x48, 0x8b, 0x1f, /* mov rbx, [rdi] */
               0xb0, 0x40, OUT_AL(PORT_ALIAS), 0x48, 0x8b, 0x0f,               /* mov rcx, [rdi] */
               0x48, 0x89, 0x47, 0x08,                                         /* mov [rdi + 8], rax */
               OUT_AL(PORT_NOALIAS), 0x48, 0x8b, 0x17, HLT);                   /* mov rdx, [rdi] */
    guest_state(&s);
    s.gpr[RDI] = GUEST_WINDOW;
    w->mmio_value = 0x77;
    assert_int_equal(guest_run(w, &s), -1);
    assert_int_equal(s.gpr[RBX], 0x30);
    assert_int_equal(s.gpr[RCX], 0x40);
    assert_int_equal(s.gpr[RDX] & 0xff, 0x77);
    assert_int_equal(guest_u64(w, 0x40008), 0x40);
}

/* ---- interrupts ---- */

static void test_interrupt(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    guest_code(w, GUEST_CODE, 0x31, 0xdb, 0xb0, 0x51, OUT_AL(PORT_IRQ), /* xor ebx, ebx; mov al, 0x51 */
               0xff, 0xc3, 0xfb, 0xff, 0xc3, 0xff, 0xc3, HLT); /* inc ebx; sti; inc ebx; inc ebx */
    guest_state(&s);
    assert_int_equal(guest_run(w, &s), 0x51);
    /* One instruction more after STI. */
    assert_int_equal(s.gpr[RBX], 2);
    assert_int_equal(guest_u64(w, s.gpr[RSP]), GUEST_CODE + 11);
    assert_int_equal(atomic_load(&w->irq[0]), -1);
}

/* HLT waits for an interrupt that comes from elsewhere. */
static void test_halt(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    guest_code(w, GUEST_CODE, 0xfb, HLT, 0xff, 0xc0, HLT);
    guest_state(&s);
    s.gpr[RAX] = 7;
    assert_int_equal(guest_run(w, &s), -1);
    assert_int_equal(s.activity, CPU_HALTED);
    assert_int_equal(s.rip, GUEST_CODE + 2);
    atomic_store(&w->irq[0], 0x60);
    vcpu_post(&w->vcpu[0], VCPU_EV_INTR);
    assert_int_equal(world_run(w, 0, 0), STOP_HLT);
    world_get(w, 0, &s);
    assert_int_equal(s.gpr[RAX], 7);
    assert_int_equal(guest_u64(w, s.gpr[RSP]), GUEST_CODE + 2);
}

static void test_nmi(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    guest_code(w, GUEST_CODE, OUT_AL(PORT_NMI), 0x90, HLT);
    guest_state(&s);
    assert_int_equal(guest_run(w, &s), X_NMI);
    assert_int_equal(s.nmi_blocked, 1);
    assert_int_equal(guest_u64(w, s.gpr[RSP]), GUEST_CODE + 2);

    /* The next one waits until the handler has returned. */
    guest_code(w, GUEST_CODE + 0x100, OUT_AL(PORT_NMI), 0xff, 0xc3, 0xff, 0xc3, /* inc ebx; inc ebx */
               0x48, 0xcf);                                                      /* iretq */
    s.rip = GUEST_CODE + 0x100;
    s.gpr[RBX] = 0;
    assert_int_equal(guest_run(w, &s), X_NMI);
    assert_int_equal(s.gpr[RBX], 2);
    assert_int_equal(guest_u64(w, s.gpr[RSP]), GUEST_CODE + 2);
}

static void test_cr8(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    guest_code(w, GUEST_CODE, MOV_EAX(9), 0x44, 0x0f, 0x22, 0xc0, /* mov cr8, rax */
               MOV_EAX(0), 0x44, 0x0f, 0x20, 0xc0, HLT);          /* mov rax, cr8 */
    guest_state(&s);
    assert_int_equal(guest_run(w, &s), -1);
    assert_int_equal(s.gpr[RAX], 9);
    assert_int_equal(w->cr8[0], 9);
    assert_int_equal(s.cr8, 9);
}

/* ---- processor ---- */

#define RDMSR(msr) 0xb9, LE32(msr), 0x0f, 0x32
#define WRMSR(msr, lo, hi) 0xb9, LE32(msr), MOV_EAX(lo), 0xba, LE32(hi), 0x0f, 0x30

static void test_msrs(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    guest_code(w, GUEST_CODE, WRMSR(0xc0000102, 0x12345678, 0xffff8000), /* KERNEL_GS_BASE */
               WRMSR(0xc0000081, 0x11111111, 0x22222222),                /* STAR */
               WRMSR(0x250, 0x06060606, 0x06060606),                     /* a fixed-range MTRR */
               RDMSR(0x250), 0x89, 0xc3,                                 /* mov ebx, eax */
               RDMSR(0x1b), 0x89, 0xc6,                                  /* APIC_BASE; mov esi, eax */
               0x0f, 0x01, 0xf8, 0x0f, 0x01, 0xf8, HLT);                 /* swapgs twice */
    guest_state(&s);
    assert_int_equal(guest_run(w, &s), -1);
    assert_int_equal(s.kernel_gs_base, 0xffff800012345678);
    assert_int_equal(s.star, 0x2222222211111111);
    assert_int_equal(s.mtrr_fixed[0], 0x0606060606060606);
    assert_int_equal(s.gpr[RBX], 0x06060606);
    assert_int_equal(s.gpr[RSI], 0xfee00900);
}

/* Registers that are not there, and values that a register does not take. */
static void test_msr_faults(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    guest_code(w, GUEST_CODE, RDMSR(0x12345), HLT);
    guest_state(&s);
    assert_int_equal(guest_run(w, &s), X_GP);
    assert_int_equal(guest_u64(w, s.gpr[RSP] + 8), GUEST_CODE + 5);
    guest_code(w, GUEST_CODE, WRMSR(0xc0000080, 0, 1), HLT); /* EFER, a reserved bit */
    guest_state(&s);
    assert_int_equal(guest_run(w, &s), X_GP);
    guest_code(w, GUEST_CODE, WRMSR(0x250, 0xff, 0), HLT); /* no such memory type */
    guest_state(&s);
    assert_int_equal(guest_run(w, &s), X_GP);
}

/* An interrupt that comes while an instruction is on its way to a fault waits for its turn. */
static void test_interrupt_and_fault(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    guest_code(w, GUEST_CODE, 0xfb, 0x90, RDMSR(WORLD_MSR_IRQ), HLT); /* sti; nop */
    guest_state(&s);
    assert_int_equal(guest_run(w, &s), X_GP);
    assert_int_equal(atomic_load(&w->irq[0]), 0x51);
}

/* TSC and TSC_ADJUST are ours: their bookkeeping is in the state. */
static void test_tsc(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    guest_code(w, GUEST_CODE, WRMSR(0x3b, 0x5000, 0x10), RDMSR(0x3b), HLT);
    guest_state(&s);
    assert_int_equal(guest_run(w, &s), -1);
    assert_int_equal(s.tsc_adjust, 0x1000005000);
    assert_int_equal(s.tsc_offset, 0x1000005000);
    assert_int_equal(s.gpr[RAX], 0x5000);
    assert_int_equal(s.gpr[RDX], 0x10);
    assert_int_equal(w->tsc_moves, 1);
    assert_int_equal(w->tsc_moved, 0x1000005000);
}

/* Every leaf of the machine's policy, as the guest sees it. */
static void test_cpuid(void **state)
{
    struct world *w = *state;
    const struct cpuid_policy *p = &w->policy;
    struct cpu_state s;

    guest_code(w, GUEST_CODE, 0x0f, 0xa2, HLT);
    for (uint32_t i = 0; i < p->n; i++) {
        uint32_t want[4];

        guest_state(&s);
        s.gpr[RAX] = p->leaf[i].leaf;
        s.gpr[RCX] = p->leaf[i].subleaf;
        cpuid_query(p, &s, 0, true, p->leaf[i].leaf, p->leaf[i].subleaf, want);
        assert_int_equal(guest_run(w, &s), -1);
        assert_int_equal(s.gpr[RAX], want[0]);
        assert_int_equal(s.gpr[RBX], want[1]);
        assert_int_equal(s.gpr[RCX], want[2]);
        assert_int_equal(s.gpr[RDX], want[3]);
    }
}

static void test_paging(void **state)
{
    struct world *w = *state;
    struct cpu_state s;
    uint64_t la = GUEST_WINDOW + 0x3000;

    guest_code(w, GUEST_CODE, 0x48, 0x8b, 0x07, 0x48, 0x89, 0x07, HLT); /* mov rax, [rdi]; mov [rdi], rax */
    guest_state(&s);
    s.gpr[RDI] = la;
    assert_int_equal(guest_run(w, &s), X_PF);
    assert_int_equal(s.cr2, la);
    assert_int_equal(guest_error(w, &s), 0);
    guest_map(w, la, GUEST_DATA | PTE_P);
    guest_state(&s);
    s.gpr[RDI] = la;
    assert_int_equal(guest_run(w, &s), X_PF);
    assert_int_equal(guest_error(w, &s), PF_P | PF_W);
    assert_int_equal(guest_pte(w, la) & (PTE_A | PTE_D), PTE_A);
    guest_map(w, la, GUEST_DATA | PTE_RW);
    guest_state(&s);
    s.gpr[RDI] = la;
    assert_int_equal(guest_run(w, &s), -1);
    assert_int_equal(guest_pte(w, la) & (PTE_A | PTE_D), PTE_A | PTE_D);
    guest_map(w, la, GUEST_CODE | PTE_RW | PTE_NX);
    guest_state(&s);
    s.rip = la;
    assert_int_equal(guest_run(w, &s), X_PF);
    assert_int_equal(guest_error(w, &s), PF_P | PF_I);
}

static void test_fpu(void **state)
{
    struct world *w = *state;
    bool avx = cpuid_has(&w->policy, CPUF_AVX);
    struct cpu_state s;

    if (avx)
        guest_code(w, GUEST_CODE, 0xd9, 0xe8, 0xd9, 0xeb, /* fld1; fldpi */
                   0x0f, 0xae, 0x17,                      /* ldmxcsr [rdi] */
                   0xc5, 0xf4, 0x58, 0xd1, HLT);          /* vaddps ymm2, ymm1, ymm1 */
    else
        guest_code(w, GUEST_CODE, 0xd9, 0xe8, 0xd9, 0xeb, 0x0f, 0xae, 0x17, 0x0f, 0x58, 0xc9, 0x0f,
                   0x28, 0xd1, HLT); /* addps xmm1, xmm1; movaps xmm2, xmm1 */
    guest_put64(w, GUEST_DATA, 0x3f80);
    guest_state(&s);
    s.x87.fcw = 0x37f;
    s.x87.tag = 0;
    s.gpr[RDI] = GUEST_DATA;
    if (avx) {
        s.xcr0 |= XCR0_SSE | XCR0_AVX;
        s.cr4 |= CR4_OSXSAVE;
    }
    for (unsigned i = 0; i < 4; i++)
        s.zmm[1][i] = 0x3f8000003fc00000; /* 1.0, 1.5 */
    s.zmm[15][0] = 0x1515;
    assert_int_equal(guest_run(w, &s), -1);
    assert_int_equal(s.x87.tag, 0xc0);
    assert_int_equal(s.x87.fsw >> 11 & 7, 6);
    assert_memory_equal(s.x87.st[0], "\x35\xc2\x68\x21\xa2\xda\x0f\xc9\x00\x40", 10);
    assert_memory_equal(s.x87.st[1], "\0\0\0\0\0\0\0\x80\xff\x3f", 10);
    assert_int_equal(s.mxcsr, 0x3f80);
    for (unsigned i = 0; i < (avx ? 4u : 2u); i++)
        assert_int_equal(s.zmm[2][i], 0x4000000040400000);
    assert_int_equal(s.zmm[15][0], 0x1515);
}

/* ---- modes ---- */

static void test_real_mode(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    guest_code(w, GUEST_CODE, 0xb8, LE16(0x2000), 0x8e, 0xd8, /* mov ax, 0x2000; mov ds, ax */
               0xc6, 0x06, LE16(0x10), 0x5a,                  /* mov byte [0x10], 0x5a */
               0xb0, 0x33, OUT_AL(0x80), HLT);
    cpu_state_reset(&s);
    s.seg[CS].sel = GUEST_CODE >> 4;
    s.seg[CS].base = GUEST_CODE;
    s.rip = 0;
    assert_int_equal(guest_run(w, &s), -1);
    assert_int_equal(w->mem[0x20010], 0x5a);
    assert_int_equal(w->nlog, 1);
    assert_io(w, 0, IO_PIO_WRITE, 0x80, 1);
    assert_int_equal(w->log[0].val, 0x33);
    assert_int_equal(s.seg[DS].base, 0x20000);
    assert_int_equal(s.rip, 15);
}

static void test_protected_mode(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    guest_code(w, GUEST_CODE, MOV_EAX(0x12345678), 0xa3, LE32(GUEST_DATA), /* mov [GUEST_DATA], eax */
               0x40, 0x66, 0xba, LE16(0x500), 0xef, HLT);                  /* inc eax; out dx, eax */
    guest_state(&s);
    s.cr0 = CR0_PE | CR0_ET | CR0_NE;
    s.efer = 0;
    s.seg[CS].attr = 0xc09b;
    assert_int_equal(guest_run(w, &s), -1);
    assert_int_equal(guest_u64(w, GUEST_DATA) & 0xffffffff, 0x12345678);
    assert_int_equal(w->log[0].val, 0x12345679);
}

static void test_triple_fault(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    guest_code(w, GUEST_CODE, 0x0f, 0x0b); /* ud2 */
    guest_state(&s);
    s.idtr.limit = 0;
    assert_int_equal(world_set(w, 0, &s), 0);
    assert_int_equal(world_run(w, 0, 0), STOP_SHUTDOWN);
}

/* An application processor waits for its SIPI, and starts in real mode where that says. */
static void test_sipi(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    guest_code(w, GUEST_CODE, 0xb0, 0x77, OUT_AL(0x80), HLT);
    cpu_state_reset(&s);
    s.activity = CPU_WAIT_SIPI;
    assert_int_equal(world_set(w, 0, &s), 0);
    assert_int_equal(world_run(w, 0, 0), STOP_HLT);
    world_get(w, 0, &s);
    assert_int_equal(s.activity, CPU_WAIT_SIPI);
    assert_int_equal(w->nlog, 0);
    atomic_store(&w->vcpu[0].sipi, GUEST_CODE >> 12);
    vcpu_post(&w->vcpu[0], VCPU_EV_SIPI);
    assert_int_equal(world_run(w, 0, 0), STOP_HLT);
    world_get(w, 0, &s);
    assert_int_equal(s.activity, CPU_HALTED);
    assert_int_equal(s.seg[CS].sel, GUEST_CODE >> 4);
    assert_int_equal(s.rip, 5);
    assert_int_equal(w->log[0].val, 0x77);
}

/* ---- leaving ---- */

/* A kick in the middle of an instruction that does I/O: when run() is over, so is the instruction. */
static void test_kick_in_io(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    guest_code(w, GUEST_CODE, OUT_AL(PORT_STOP), 0xe5, 0x40, /* in eax, 0x40 */
               HLT);
    guest_state(&s);
    w->mmio_value = 0x31415926;
    assert_int_equal(world_set(w, 0, &s), 0);
    assert_int_equal(world_run(w, 0, 0), STOP_KICK);
    world_get(w, 0, &s);
    assert_int_equal(s.rip, GUEST_CODE + 2);
    assert_int_equal(w->nlog, 1);
    assert_int_equal(world_set(w, 0, &s), 0);
    assert_int_equal(world_run(w, 0, 0), STOP_HLT);
    world_get(w, 0, &s);
    assert_int_equal(s.gpr[RAX], 0x31415926);
    assert_int_equal(s.rip, GUEST_CODE + 5);
    assert_int_equal(w->nlog, 2);
}

static void *kicker(void *arg)
{
    usleep(20000);
    vcpu_post(arg, VCPU_EV_KICK);
    return NULL;
}

static void test_kick(void **state)
{
    struct world *w = *state;
    struct cpu_state s;
    pthread_t t;

    guest_code(w, GUEST_CODE, 0xeb, 0xfe); /* jmp $ */
    guest_state(&s);
    assert_int_equal(world_set(w, 0, &s), 0);
    for (unsigned i = 0; i < 5; i++) {
        assert_int_equal(pthread_create(&t, NULL, kicker, &w->vcpu[0]), 0);
        assert_int_equal(world_run(w, 0, 0), STOP_KICK);
        pthread_join(t, NULL);
        world_get(w, 0, &s);
        assert_int_equal(s.rip, GUEST_CODE);
    }
}

/* What set_state was given is what get_state gives. */
static void test_round_trip(void **state)
{
    struct world *w = *state;
    struct cpu_state s, t;

    guest_state(&s);
    for (unsigned i = 0; i < 16; i++)
        s.gpr[i] = 0x0123456789abcdef * (i + 3);
    s.cr2 = 0xffff800000001000;
    s.dr[0] = 0x1000;
    s.dr[3] = 0xffff800000003000;
    s.dr[6] = DR6_FIXED | 1;
    s.star = 0x1111222233334444;
    s.lstar = 0xffffffff81000000;
    s.sfmask = 0x47700;
    s.kernel_gs_base = 0xffff888000000000;
    s.seg[FS].base = 0x7fff00001000;
    s.seg[GS].base = 0xffff888000000000;
    s.sysenter_eip = 0x81001000; /* AMD's has 32 bits */
    s.mtrr_def = 0xc06;
    s.mtrr_fixed[3] = 0x0606060606060606;
    s.tsc_offset = 0x123456789;
    s.tsc_adjust = 77;
    s.rflags = FL_R1 | FL_IF | FL_ZF | FL_ID;
    s.nmi_blocked = 1;
    s.activity = CPU_HALTED;
    s.x87.fcw = 0x27f;
    s.x87.fsw = 0x3800;
    s.x87.tag = 0x80;
    s.x87.fop = 0x123;
    s.x87.fip = 0x401000;
    memcpy(s.x87.st[0], "\x35\xc2\x68\x21\xa2\xda\x0f\xc9\x00\x40", 10);
    s.mxcsr = 0x1fa0;
    for (unsigned i = 0; i < 16; i++)
        s.zmm[i][0] = i * 0x1111, s.zmm[i][1] = ~(uint64_t)i;
    assert_int_equal(world_set(w, 0, &s), 0);
    world_get(w, 0, &t);
    assert_memory_equal(&s, &t, sizeof(s));
}

/* ---- checking ---- */

/* QEMU's TCG lets a guest return to an address that is not canonical, and only then raises #GP. Where KVM runs on that it is what
 * a check has to notice. */
static void test_difference(void **state)
{
    struct world *w = *state;
    struct cpu_state s;
    int st;

    guest_code(w, GUEST_CODE, 0x50, 0xc3); /* push rax; ret */
    guest_state(&s);
    s.gpr[RAX] = 1ull << 63;
    assert_int_equal(world_set(w, 0, &s), 0);
    st = world_run(w, 0, 0);
    world_get(w, 0, &s);
    if (st == STOP_ERROR) {
        assert_true(w->vm.check);
        assert_non_null(strstr(w->vcpu[0].error.msg, "differ at rip 0x10001"));
        return;
    }
    assert_int_equal(st, STOP_HLT);
    assert_true(guest_u64(w, s.gpr[RSP] + 8) == GUEST_CODE + 1 || !w->vm.check);
}

/* ---- dirty pages ---- */

static unsigned fetch(struct world *w, uint64_t *bits)
{
    unsigned n = 0;

    memset(bits, 0, WORLD_RAM / PAGE_SIZE / 8);
    assert_int_equal(w->engine->dirty_fetch(&w->vm, w->ram, bits), 0);
    for (unsigned i = 0; i < WORLD_RAM / PAGE_SIZE; i++)
        n += bits[i / 64] >> (i % 64) & 1;
    return n;
}

static bool is_dirty(const uint64_t *bits, uint64_t gpa)
{
    return bits[gpa / PAGE_SIZE / 64] >> (gpa / PAGE_SIZE % 64) & 1;
}

static void test_dirty(void **state)
{
    struct world *w = *state;
    uint64_t bits[WORLD_RAM / PAGE_SIZE / 64];
    struct cpu_state s;

    /* mov [rdi], eax; add rdi, 0x4000; dec ecx; jnz back */
    guest_code(w, GUEST_CODE, 0x89, 0x07, 0x48, 0x81, 0xc7, LE32(0x4000), 0xff, 0xc9, 0x75, 0xf3, HLT);
    guest_state(&s);
    s.gpr[RDI] = 0x40000;
    s.gpr[RCX] = 8;
    assert_int_equal(guest_run(w, &s), -1);
    fetch(w, bits); /* at first, anything may be dirty, and what was written is */
    for (unsigned i = 0; i < 8; i++)
        assert_true(is_dirty(bits, 0x40000 + i * 0x4000));
    for (unsigned round = 0; round < 3; round++) {
        guest_state(&s);
        s.gpr[RDI] = 0x60000 + round * 0x1000;
        s.gpr[RCX] = 6;
        assert_int_equal(guest_run(w, &s), -1);
        fetch(w, bits);
        for (unsigned i = 0; i < 6; i++)
            assert_true(is_dirty(bits, 0x60000 + round * 0x1000 + i * 0x4000));
        assert_false(is_dirty(bits, 0x40000));
        assert_false(is_dirty(bits, 0x62000 + round * 0x1000));
    }
    assert_int_equal(fetch(w, bits), 0);
    world_write(w, 0x50000, "device", 6);
    assert_int_equal(fetch(w, bits), 1);
    assert_true(is_dirty(bits, 0x50000));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_ports, setup, teardown),
        cmocka_unit_test_setup_teardown(test_port_strings, setup, teardown),
        cmocka_unit_test_setup_teardown(test_mmio, setup, teardown),
        cmocka_unit_test_setup_teardown(test_mmio_vector, setup, teardown),
        cmocka_unit_test_setup_teardown(test_rom, setup, teardown),
        cmocka_unit_test_setup_teardown(test_moving_memory, setup, teardown),
        cmocka_unit_test_setup_teardown(test_interrupt, setup, teardown),
        cmocka_unit_test_setup_teardown(test_halt, setup, teardown),
        cmocka_unit_test_setup_teardown(test_nmi, setup, teardown),
        cmocka_unit_test_setup_teardown(test_cr8, setup, teardown),
        cmocka_unit_test_setup_teardown(test_msrs, setup, teardown),
        cmocka_unit_test_setup_teardown(test_msr_faults, setup, teardown),
        cmocka_unit_test_setup_teardown(test_interrupt_and_fault, setup, teardown),
        cmocka_unit_test_setup_teardown(test_tsc, setup, teardown),
        cmocka_unit_test_setup_teardown(test_cpuid, setup, teardown),
        cmocka_unit_test_setup_teardown(test_paging, setup, teardown),
        cmocka_unit_test_setup_teardown(test_fpu, setup, teardown),
        cmocka_unit_test_setup_teardown(test_real_mode, setup, teardown),
        cmocka_unit_test_setup_teardown(test_protected_mode, setup, teardown),
        cmocka_unit_test_setup_teardown(test_triple_fault, setup, teardown),
        cmocka_unit_test_setup_teardown(test_sipi, setup, teardown),
        cmocka_unit_test_setup_teardown(test_kick_in_io, setup, teardown),
        cmocka_unit_test_setup_teardown(test_kick, setup, teardown),
        cmocka_unit_test_setup_teardown(test_round_trip, setup, teardown),
        cmocka_unit_test_setup_teardown(test_difference, setup, teardown),
        cmocka_unit_test_setup_teardown(test_dirty, setup, teardown),
    };

    return cmocka_run_group_tests_name("guests", tests, NULL, NULL);
}
