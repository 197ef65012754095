/* The code cache: code that is changed, moved, shared, or outside memory, must run as it is now. */
#include "guest.h"

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

#define SUB 0x30000ull /* a subroutine: mov eax, imm32; ret */

static void put_sub(struct world *w, uint64_t gpa, uint32_t v)
{
    guest_code(w, gpa, MOV_EAX(v), RET);
}

/* The instruction that was just stored to is the very next one. */
static void test_store_into_next_instruction(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    /* mov byte [rip + 1], 7; mov eax, 5; hlt */
    guest_code(w, GUEST_CODE, 0xc6, 0x05, LE32(1), 7, MOV_EAX(5), HLT);
    guest_state(&s);
    assert_int_equal(guest_run(w, &s), -1);
    assert_int_equal(s.gpr[RAX], 7);
}

static void test_store_into_own_block_loop(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    /* mov ecx, 100; l: inc dword [rip + 1]; mov eax, 0; add ebx, eax; dec ecx; jnz l; hlt */
    guest_code(w, GUEST_CODE, 0xb9, LE32(100), 0xff, 0x05, LE32(1), MOV_EAX(0), 0x01, 0xc3, 0xff,
               0xc9, 0x75, 0xef, HLT);
    guest_state(&s);
    s.gpr[RBX] = 0;
    assert_int_equal(guest_run(w, &s), -1);
    assert_int_equal(s.gpr[RBX], 5050);
}

/* A block that another one is linked to by a direct branch, both in one page. */
static void test_store_into_linked_block(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    /* mov ecx, 20; l: jmp t; back: mov byte [t + 1], cl; dec ecx; jnz l; hlt;  t: mov eax, 0; add
     * ebx, eax; jmp back */
    guest_code(w, GUEST_CODE, 0xb9, LE32(20), 0xeb, 0x0b, 0x88, 0x0d, LE32(6), 0xff, 0xc9, 0x75,
               0xf4, HLT, MOV_EAX(0), 0x01, 0xc3, 0xeb, 0xec);
    guest_state(&s);
    s.gpr[RBX] = 0;
    assert_int_equal(guest_run(w, &s), -1);
    assert_int_equal(s.gpr[RBX], 20 * 21 / 2 - 1); /* 0, then 20 .. 2 */
}

/* An instruction whose last bytes are in the next page; they change. */
static void test_store_into_second_page(void **state)
{
    struct world *w = *state;
    const uint64_t at = GUEST_CODE + 0xffd;
    struct cpu_state s;

    guest_code(w, at, MOV_EAX(0x11223344), RET);
    /* call; mov byte [at + 4], 0x99; call; hlt */
    guest_code(w, GUEST_CODE, MOV_RDX(at), CALL_RDX, 0x89, 0xc3, MOV_RDI(at + 4), 0xc6, 0x07, 0x99,
               CALL_RDX, HLT);
    guest_state(&s);
    assert_int_equal(guest_run(w, &s), -1);
    assert_int_equal(s.gpr[RBX], 0x11223344);
    assert_int_equal(s.gpr[RAX], 0x99223344);
    /* The same linear address with another second page. */
    guest_map(w, GUEST_WINDOW, GUEST_CODE | PTE_RW);
    guest_map(w, GUEST_WINDOW + 0x1000, SUB | PTE_RW);
    guest_code(w, SUB, 0x55, 0x66, RET);
    guest_code(w, GUEST_CODE, MOV_RDX(GUEST_WINDOW + 0xffd), CALL_RDX, HLT);
    guest_state(&s);
    assert_int_equal(guest_run(w, &s), -1);
    assert_int_equal(s.gpr[RAX], 0x66553344);
}

/* Both pages of a crossing instruction are one frame. */
static void test_crossing_into_the_same_frame(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    guest_map(w, GUEST_WINDOW, SUB | PTE_RW);
    guest_map(w, GUEST_WINDOW + 0x1000, SUB | PTE_RW);
    guest_code(w, SUB, 0x03, 0x04, RET);
    guest_code(w, SUB + 0xffd, 0xb8, 0x01, 0x02);
    guest_code(w, GUEST_CODE, MOV_RDX(GUEST_WINDOW + 0xffd), CALL_RDX, 0x89, 0xc3, MOV_RDI(SUB),
               0xc6, 0x07, 0x77, CALL_RDX, HLT);
    guest_state(&s);
    assert_int_equal(guest_run(w, &s), -1);
    assert_int_equal(s.gpr[RBX], 0x04030201);
    assert_int_equal(s.gpr[RAX], 0x04770201);
}

/* Code run through one mapping is changed through another. */
static void test_two_aliases(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    put_sub(w, SUB, 1);
    guest_map(w, GUEST_WINDOW, SUB | PTE_RW);
    /* call window; save; mov byte [sub + 1], 2 through the other; call window; call sub */
    guest_code(w, GUEST_CODE, MOV_RDX(GUEST_WINDOW), CALL_RDX, 0x89, 0xc3, MOV_RDI(SUB + 1), 0xc6,
               0x07, 2, CALL_RDX, 0x89, 0xc6, MOV_RDX(SUB), CALL_RDX, HLT);
    guest_state(&s);
    assert_int_equal(guest_run(w, &s), -1);
    assert_int_equal(s.gpr[RBX], 1);
    assert_int_equal(s.gpr[RSI], 2);
    assert_int_equal(s.gpr[RAX], 2);
}

static void test_remap_invlpg(void **state)
{
    struct world *w = *state;
    const uint64_t pte = GUEST_PT + 0x1000; /* of the window's first page */
    struct cpu_state s;

    put_sub(w, SUB, 1);
    put_sub(w, SUB + 0x1000, 2);
    guest_map(w, GUEST_WINDOW, SUB | PTE_RW | PTE_A);
    /* call twice; mov [pte], new; invlpg; call */
    guest_code(w, GUEST_CODE, MOV_RDX(GUEST_WINDOW), CALL_RDX, CALL_RDX, 0x89, 0xc3, MOV_RSI(pte),
               MOV_RAX((SUB + 0x1000) | PTE_RW | PTE_A), 0x48, 0x89, 0x06, MOV_RDI(GUEST_WINDOW),
               INVLPG_RDI, CALL_RDX, HLT);
    guest_state(&s);
    assert_int_equal(guest_run(w, &s), -1);
    assert_int_equal(s.gpr[RBX], 1);
    assert_int_equal(s.gpr[RAX], 2);
}

static void test_remap_cr3(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    for (unsigned pcid = 0; pcid < (cpuid_has(&w->policy, CPUF_PCID) ? 2 : 1); pcid++) {
        put_sub(w, SUB, 1);
        put_sub(w, SUB + 0x1000, 2);
        guest_map(w, GUEST_WINDOW, SUB | PTE_RW);
        guest_map_other(w, GUEST_WINDOW, (SUB + 0x1000) | PTE_RW);
        /* call in one space, the other, the first again */
        guest_code(w, GUEST_CODE, MOV_RDX(GUEST_WINDOW), CALL_RDX, 0x89, 0xc3,
                   MOV_RAX(pcid ? GUEST_PML4_OTHER | 5 : GUEST_PML4_OTHER), MOV_CR3_RAX, CALL_RDX,
                   0x89, 0xc6, MOV_RAX(pcid ? GUEST_PML4 | 1ull << 63 : GUEST_PML4), MOV_CR3_RAX,
                   CALL_RDX, HLT);
        guest_state(&s);
        if (pcid)
            s.cr4 |= CR4_PCIDE;
        assert_int_equal(guest_run(w, &s), -1);
        assert_int_equal(s.gpr[RBX], 1);
        assert_int_equal(s.gpr[RSI], 2);
        assert_int_equal(s.gpr[RAX], 1);
    }
}

/* Executable no more: the jump cache and links must not remember. */
static void test_nx_after_invlpg(void **state)
{
    struct world *w = *state;
    const uint64_t pte = GUEST_PT + 0x1000;
    struct cpu_state s;

    put_sub(w, SUB, 1);
    guest_map(w, GUEST_WINDOW, SUB | PTE_RW);
    guest_code(w, GUEST_CODE, MOV_RDX(GUEST_WINDOW), CALL_RDX, CALL_RDX, MOV_RSI(pte),
               MOV_RAX(SUB | PTE_RW | PTE_NX), 0x48, 0x89, 0x06, MOV_RDI(GUEST_WINDOW), INVLPG_RDI,
               CALL_RDX, HLT);
    guest_state(&s);
    assert_int_equal(guest_run(w, &s), X_PF);
    assert_int_equal(s.cr2, GUEST_WINDOW);
    assert_int_equal(guest_error(w, &s), PF_P | PF_I);
}

static void test_code_in_rom(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    put_sub(w, WORLD_ROM, 5);
    guest_map(w, GUEST_WINDOW, WORLD_ROM | PTE_RW);
    /* call; store to it, which is dropped; call */
    guest_code(w, GUEST_CODE, MOV_RDX(GUEST_WINDOW), CALL_RDX, 0x89, 0xc3, 0xc6, 0x42, 1, 9,
               CALL_RDX, HLT);
    guest_state(&s);
    assert_int_equal(guest_run(w, &s), -1);
    assert_int_equal(s.gpr[RBX], 5);
    assert_int_equal(s.gpr[RAX], 5);
    assert_int_equal((uint8_t)(guest_u64(w, WORLD_ROM) >> 8), 5);
}

/* Code in I/O space is read each time it runs, and what keeps it does not grow. */
static void test_code_in_io(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    if (world_on_hardware(w)) /* KVM may try for ever */
        skip();
    w->mmio_value = 0xf4f4f4f4f4c3c0ff; /* inc eax; ret */
    guest_code(w, GUEST_CODE, MOV_RDX(GUEST_IO), CALL_RDX, CALL_RDX, HLT);
    guest_state(&s);
    s.gpr[RAX] = 10;
    assert_int_equal(guest_run(w, &s), -1);
    assert_int_equal(s.gpr[RAX], 12);
    assert_int_equal(w->nlog, 4);       /* two instructions, two times */
    w->mmio_value = 0xf4f4f4f4f4f4c8ff; /* dec eax; hlt */
    guest_state(&s);
    s.gpr[RAX] = 10;
    assert_int_equal(guest_run(w, &s), -1);
    assert_int_equal(s.gpr[RAX], 9);
    /* More than the cache has room for: dec ecx; jnz back; hlt */
    w->mmio_value = 0xf4f4f4f4fc75c9ff;
    guest_code(w, GUEST_CODE, MOV_RDX(GUEST_IO), JMP_RDX);
    guest_state(&s);
    s.gpr[RCX] = 200000;
    assert_int_equal(guest_run(w, &s), -1);
    assert_int_equal((uint32_t)s.gpr[RCX], 0);
}

/* The first page is RAM, the second I/O, and the other way round. */
static void test_code_half_in_io(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    if (world_on_hardware(w)) /* KVM may try for ever */
        skip();
    w->mmio_value = 0xc344332211; /* at the page's start: the immediate and ret */
    guest_map(w, GUEST_WINDOW, SUB | PTE_RW);
    guest_map(w, GUEST_WINDOW + 0x1000, GUEST_IO_PA | PTE_RW);
    guest_code(w, SUB + 0xfff, 0xb8);
    guest_code(w, GUEST_CODE, MOV_RDX(GUEST_WINDOW + 0xfff), CALL_RDX, HLT);
    guest_state(&s);
    assert_int_equal(guest_run(w, &s), -1);
    assert_int_equal(s.gpr[RAX], 0x44332211);
    w->mmio_value = 0xb8ull << 56;
    guest_map(w, GUEST_WINDOW, GUEST_IO_PA | PTE_RW);
    guest_map(w, GUEST_WINDOW + 0x1000, SUB | PTE_RW);
    guest_code(w, SUB, LE32(0x01020304), RET);
    guest_state(&s);
    assert_int_equal(guest_run(w, &s), -1);
    assert_int_equal(s.gpr[RAX], 0x01020304);
}

/* A guest that makes code without end: inc byte of an immediate and call it, each time elsewhere.
 */
static void test_endless_new_code(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    /* mov ecx, n; l: mov rdx, next slot of 16 bytes within 512 KiB: r8 = (r8 + 16) & 0x7fff0; lea
     * rdx,[r8 + 0x40000]; mov byte [rdx], b8; mov [rdx + 1], ecx; mov byte [rdx + 5], c3; call rdx;
     * add rbx, rax; dec ecx; jnz l; hlt */
    guest_code(w, GUEST_CODE, 0xb9, LE32(300000), 0x49, 0x83, 0xc0, 0x10, 0x49, 0x81, 0xe0,
               LE32(0x7fff0), 0x49, 0x8d, 0x90, LE32(0x40000), 0xc6, 0x02, 0xb8, 0x89, 0x4a, 0x01,
               0xc6, 0x42, 0x05, 0xc3, CALL_RDX, 0x48, 0x01, 0xc3, 0xff, 0xc9, 0x75, 0xdb, HLT);
    guest_state(&s);
    s.gpr[RBX] = s.gpr[R8] = 0;
    assert_int_equal(guest_run(w, &s), -1);
    assert_int_equal(s.gpr[RBX], 300000ull * 300001 / 2);
}

static void test_device_writes_code(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    for (uint32_t k = 1; k < 5; k++) {
        put_sub(w, SUB, k);
        guest_code(w, GUEST_CODE, MOV_RDX(SUB), CALL_RDX, HLT);
        guest_state(&s);
        assert_int_equal(guest_run(w, &s), -1);
        assert_int_equal(s.gpr[RAX], k);
    }
    /* By mem_map, as rings of devices are. */
    uint8_t *p = mem_map(w->map, SUB, 8, true);
    assert_non_null(p);
    p[1] = 77;
    mem_unmap(w->map, SUB, 8, true);
    guest_state(&s);
    assert_int_equal(guest_run(w, &s), -1);
    assert_int_equal(s.gpr[RAX], 77);
}

/* The vCPU's own OUT moves memory that it then reads and runs, in the same block. */
static void test_map_changes_while_running(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    put_sub(w, 0x50000, 1);
    put_sub(w, 0x60000, 2);
    guest_map(w, GUEST_WINDOW, WORLD_ALIAS | PTE_RW | PTE_A | PTE_D);
    /* out alias, 0x50; mov ebx, [window + 1]; call window; out alias, 0x60; mov esi, [window + 1];
     * call window; hlt */
    guest_code(w, GUEST_CODE, MOV_RDX(GUEST_WINDOW), 0xb0, 0x50, 0xe6, PORT_ALIAS, 0x8b, 0x5a, 0x01,
               CALL_RDX, 0x89, 0xc5, 0xb0, 0x60, 0xe6, PORT_ALIAS, 0x8b, 0x72, 0x01, 0xc7, 0x42,
               0x10, LE32(0x1234), CALL_RDX, HLT);
    guest_state(&s);
    assert_int_equal(guest_run(w, &s), -1);
    assert_int_equal(s.gpr[RBX], 1);
    assert_int_equal(s.gpr[RBP], 1);
    assert_int_equal(s.gpr[RSI], 2);
    assert_int_equal(s.gpr[RAX], 2);
    assert_int_equal((uint32_t)guest_u64(w, 0x60010), 0x1234);
    assert_int_not_equal((uint32_t)guest_u64(w, 0x50010), 0x1234);
    assert_int_equal(w->moves, 2);
}

/* Entries that the page walk marks accessed or dirty may be somebody's code. */
static void test_walk_writes_code(void **state)
{
    struct world *w = *state;
    const uint64_t pte = GUEST_PT + 0x1000 + 8 * 3; /* of the window's page 3 */
    struct cpu_state s;

    /* mov eax, the entry's low half; add [rax], al, twice; ret */
    guest_code(w, pte - 1, 0xb8, LE64(0x30003), RET);
    guest_code(w, GUEST_CODE, MOV_RDX(pte - 1), CALL_RDX, 0x89, 0xc3,
               MOV_RDI(GUEST_WINDOW + 0x3000), 0x8a, 0x0f, CALL_RDX, 0x89, 0xc5, 0xc6, 0x07, 1,
               CALL_RDX, HLT);
    guest_state(&s);
    assert_int_equal(guest_run(w, &s), -1);
    assert_int_equal(s.gpr[RBX], 0x30003);
    assert_int_equal(s.gpr[RBP], 0x30023);
    assert_int_equal(s.gpr[RAX], 0x30063);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_store_into_next_instruction),
        T(test_store_into_own_block_loop),
        T(test_store_into_linked_block),
        T(test_store_into_second_page),
        T(test_crossing_into_the_same_frame),
        T(test_two_aliases),
        T(test_remap_invlpg),
        T(test_remap_cr3),
        T(test_nx_after_invlpg),
        T(test_code_in_rom),
        T(test_code_in_io),
        T(test_code_half_in_io),
        T(test_endless_new_code),
        T(test_device_writes_code),
        T(test_map_changes_while_running),
        T(test_walk_writes_code),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
