/*
 * Several vCPUs, one of which changes code or mappings under the others: loops that never leave their block, blocks
 * linked to what is patched, calls across pages, two that patch each other. What is old must be gone once the writer knows
 * that the reader has seen something newer (SDM vol. 3 §8.1.3: the reader serialises, here by CPUID, after it sees the flag).
 */
#include "kit.h"

#define FLAG 0x40000ull  /* the round */
#define SEEN 0x40100ull  /* what a reader has answered */
#define WRONG 0x40800ull /* how often something old was run after the flag of its replacement */
#define ROUNDS 20000u
#define SUB 0x50000ull /* what is patched: MOV EAX, imm32 with its immediate at SUB + 16 */

/* The writers: each round's number into the code at RBX, then into the flag at RSI, R8 rounds long. They wait for nobody. */
GUEST_ASM(writer, "1: inc eax; mov [rbx], eax; mov [rsi], eax; cmp eax, r8d; jb 1b; hlt");
GUEST_ASM(writer_xchg, "1: inc eax; mov edx, eax; xchg [rbx], edx; mov [rsi], eax; cmp eax, r8d; jb 1b; hlt");
GUEST_ASM(writer_rep, "1: inc eax; mov rdi, rbx; mov ecx, 1; rep stosd; mov [rsi], eax; cmp eax, r8d; jb 1b; hlt");

/*
 * Readers: R12 is the flag as seen before, R14 SUB. Each runs the code at SUB without pause and checks that it does not give
 * less than the flag said before.
 */
#define READER(run)                                                                               \
    "1: mov r12d, [rsi]; push rbx; push rcx; push rdx; xor eax, eax; cpuid; pop rdx; pop rcx; pop rbx\n" run \
    "\ncmp eax, r12d; jae 2f; lock inc dword ptr [r9]\n"                                          \
    "2: cmp r12d, r8d; jb 1b; hlt"
GUEST_ASM(reader_call, READER("call r14"));
/* The patched instruction lies in the reader's own loop: jumped to, so that all readers share it. R11: where it goes on. */
GUEST_ASM(reader_jump, READER("lea r11, [rip + 3f]; jmp r15; 3:"));
GUEST_ASM(sub, "jmp 1f; .balign 16; .space 15, 0x90; 1: .byte 0xb8; .long 0; ret");
GUEST_ASM(sub_jump, "jmp 1f; .balign 16; .space 15, 0x90; 1: .byte 0xb8; .long 0; jmp r11");
/* Direct links into the page and back: SUB + 0x800 calls SUB. */
GUEST_ASM(sub_outer, "call .-0x800; nop; ret");
/* No round leaves the block but by the branch at its end, and nothing in it but the patched immediate changes: */
GUEST_ASM(spinner, "1: .space 12, 0x90; .byte 0x66, 0x90, 0x90, 0xb8; .long 0; cmp eax, r8d; jb 1b; hlt");

static void start_at(struct world *w, unsigned cpu, uint64_t rip, uint64_t patched)
{
    struct cpu_state s;

    kit_state(&s, cpu, rip, false);
    s.gpr[RSI] = FLAG;
    s.gpr[RDI] = SEEN;
    s.gpr[RBX] = patched;
    s.gpr[R8] = ROUNDS;
    s.gpr[R9] = WRONG;
    s.gpr[R13] = SEEN;
    s.gpr[R14] = SUB;
    s.gpr[R15] = SUB + 0x400;
    assert_int_equal(world_set(w, cpu, &s), 0);
}

struct how {
    const char *name;
    const uint8_t *writer, *writer_end, *reader, *reader_end;
    uint64_t patched, run;
};
#define HOW(w, r, patched, run) {#w ", " #r, w, w##_end, r, r##_end, patched, run}

static void test_patched(void **state)
{
    static const struct how hows[] = {
        HOW(writer, reader_call, SUB + 32, SUB),
        HOW(writer_xchg, reader_call, SUB + 32, SUB),
        HOW(writer_rep, reader_call, SUB + 32, SUB),
        HOW(writer, reader_call, SUB + 32, SUB + 0x800),
        HOW(writer, reader_jump, SUB + 0x420, SUB),
        HOW(writer_xchg, reader_jump, SUB + 0x420, SUB),
    };

    for (unsigned k = 0; k < ARRAY_LEN(hows); k++)
        for (unsigned cpus = 2; cpus <= 3; cpus++) {
            const struct how *h = &hows[k];
            struct world *w = guest_new(cpus);

            kit_put(w, SUB, sub);
            kit_put(w, SUB + 0x400, sub_jump);
            kit_put(w, SUB + 0x800, sub_outer);
            kit_bytes(w, GUEST_CODE, h->writer, (size_t)(h->writer_end - h->writer));
            kit_bytes(w, GUEST_CODE + 0x1000, h->reader, (size_t)(h->reader_end - h->reader));
            start_at(w, 0, GUEST_CODE, h->patched);
            for (unsigned n = 1; n < cpus; n++) {
                struct cpu_state s;

                start_at(w, n, GUEST_CODE + 0x1000, 0);
                world_get(w, n, &s);
                s.gpr[R14] = h->run;
                assert_int_equal(world_set(w, n, &s), 0);
            }
            kit_run_all(w, NULL, NULL);
            if (guest_u64(w, WRONG))
                print_message("%s, %u vCPUs: wrong %u times\n", h->name, cpus, (uint32_t)guest_u64(w, WRONG));
            assert_int_equal((uint32_t)guest_u64(w, WRONG), 0);
            world_free(w);
        }
}

/* Loops whose own immediates are their exit conditions, patched from outside until they leave. */
GUEST_ASM(ender, "1: inc eax; mov [rbx], eax; cmp eax, r8d; jb 1b; hlt");

static void test_own_block_patched(void **state)
{
    for (unsigned n = 0; n < 20; n++) {
        struct world *w = guest_new(3);

        kit_put(w, SUB, spinner);
        kit_put(w, GUEST_CODE, ender);
        start_at(w, 0, GUEST_CODE, SUB + 16);
        start_at(w, 1, SUB, 0);
        start_at(w, 2, SUB, 0);
        kit_run_all(w, NULL, NULL);
        world_free(w);
    }
}

/* Two vCPUs patch what the other runs, which runs what it patches. RBX: the other's immediate; R14: the own code. */
GUEST_ASM(mutual, "1: inc ecx; mov [rbx], ecx; mfence; push rbx; push rcx; xor eax, eax; cpuid; pop rcx; pop rbx; call r14\n"
                  "cmp eax, r12d; jae 2f; inc qword ptr [r9]; 2: mov r12d, eax; cmp ecx, r8d; jb 1b; hlt");

static void test_mutual(void **state)
{
    struct world *w = guest_new(2);

    kit_put(w, GUEST_CODE, mutual);
    for (unsigned k = 0; k < 2; k++) {
        struct cpu_state s;

        kit_put(w, SUB + k * 64, sub);
        start_at(w, k, GUEST_CODE, SUB + !k * 64 + 32);
        world_get(w, k, &s);
        s.gpr[RCX] = 0;
        s.gpr[R8] = 20000;
        s.gpr[R9] = WRONG + k * 64;
        s.gpr[R14] = SUB + k * 64;
        assert_int_equal(world_set(w, k, &s), 0);
    }
    kit_run_all(w, NULL, NULL);
    for (unsigned k = 0; k < 2; k++) /* values only grow */
        assert_int_equal(guest_u64(w, WRONG + k * 64), 0);
    world_free(w);
}

/*
 * One vCPU makes a page another one and shoots down the other's translations as a kernel does: it writes the entry, asks by the
 * flag, the other does INVLPG and answers. Then neither may run the old page. R14: where the page is; R10: its entry.
 */
GUEST_ASM(remapper, "1: inc eax; mov edx, eax; and edx, 7; shl edx, 12; add edx, 0x60003; mov [r10], rdx; invlpg [r14]\n"
                    "mov [rsi], eax; xor edx, edx; 2: cmp [rdi], eax; je 3f; pause; jmp 2b; 3: mov ebp, eax; call r14; and ebp, 7\n"
                    "cmp eax, ebp; je 4f; lock inc dword ptr [r9]; 4: mov eax, [rsi]; cmp eax, r8d; jb 1b; hlt");
GUEST_ASM(remapped, "1: mov r12d, [rsi]; cmp r12d, ebx; je 1f; invlpg [r14]; mov ebx, r12d; mov [r13], ebx\n"
                    "1: call r14; mov r11d, ebx; and r11d, 7; cmp eax, r11d; je 2f\n"
                    "mov edx, [rsi]; and edx, 7; cmp eax, edx; je 2f\n" /* newer than asked for: as good */
                    "lea edx, [r11 + 1]; and edx, 7; cmp eax, edx; je 2f; lock inc dword ptr [r9]\n"
                    "2: cmp ebx, r8d; jae 3f; jmp r15; 3: hlt");

static void test_shootdown(void **state)
{
    struct world *w = guest_new(2);

    for (uint32_t k = 0; k < 8; k++)
        guest_code(w, 0x60000 + k * PAGE_SIZE, MOV_EAX(k), RET);
    guest_map(w, GUEST_WINDOW + 0x5000, 0x60003);
    kit_put(w, GUEST_CODE, remapper);
    kit_put(w, GUEST_CODE + 0x1000, remapped);
    for (unsigned k = 0; k < 2; k++) {
        struct cpu_state s;

        start_at(w, k, GUEST_CODE + k * 0x1000, 0);
        world_get(w, k, &s);
        s.gpr[R8] = 100;
        s.gpr[R10] = 0x8000 + 5 * 8;
        s.gpr[R14] = GUEST_WINDOW + 0x5000;
        s.gpr[R15] = GUEST_CODE + 0x1000;
        assert_int_equal(world_set(w, k, &s), 0);
    }
    kit_run_all(w, NULL, NULL);
    assert_int_equal((uint32_t)guest_u64(w, WRONG), 0);
    world_free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_patched),
        cmocka_unit_test(test_own_block_patched),
        cmocka_unit_test(test_mutual),
        cmocka_unit_test(test_shootdown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
