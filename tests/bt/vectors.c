/*
 * Vector registers while code runs that faults, traps, is interrupted and is switched: handlers and those who look
 * from outside must see every bit where it was, and code that goes on must find what was left for it.
 */
#include "kit.h"

#define HANDLER 0x14000ull
#define MISSING (GUEST_WINDOW + 0x3000) /* the page before it is mapped */
#define SAVED 0x24000ull                /* by handlers */
#define RESULT 0x22000ull

static bool has_avx(const struct world *w)
{
    return cpuid_has(&w->policy, CPUF_AVX) && (w->policy.xcr0_mask & 7) == 7;
}

/* Every register with bytes of its own, AVX on if there is any. */
static void vector_state(struct world *w, struct cpu_state *s, uint64_t rip, bool interrupts)
{
    kit_state(s, 0, rip, interrupts);
    if (has_avx(w)) {
        s->cr4 |= CR4_OSXSAVE;
        s->xcr0 = 7;
    }
    for (unsigned k = 0; k < 16; k++)
        for (unsigned n = 0; n < (has_avx(w) ? 4 : 2); n++)
            s->zmm[k][n] = 0x0101010101010101 * (k + 1) + ((uint64_t)n << 60) + n;
}

static void assert_vectors(const struct cpu_state *s, const struct cpu_state *want)
{
    for (unsigned k = 0; k < 16; k++)
        if (memcmp(s->zmm[k], want->zmm[k], sizeof(s->zmm[k])))
            print_message("register %u: %016llx_%016llx_%016llx_%016llx, not %016llx_%016llx_%016llx_%016llx\n", k,
                          (unsigned long long)s->zmm[k][3], (unsigned long long)s->zmm[k][2],
                          (unsigned long long)s->zmm[k][1], (unsigned long long)s->zmm[k][0],
                          (unsigned long long)want->zmm[k][3], (unsigned long long)want->zmm[k][2],
                          (unsigned long long)want->zmm[k][1], (unsigned long long)want->zmm[k][0]);
    assert_memory_equal(s->zmm, want->zmm, sizeof(s->zmm));
}

/* ---- faults, seen from outside ---- */

/* Rounds of a rotation through all registers: RCX counts. At its end the access at RDI. All of it is known without
 * computing: after RCX rounds register k holds what (k + RCX) % 16 held, of which VEX code leaves the upper half in place. */
#define ROTATE(mov)                                                                               \
    "1: " mov " [rbp], xmm0\n" mov " xmm0, xmm1; " mov " xmm1, xmm2; " mov " xmm2, xmm3; " mov    \
    " xmm3, xmm4\n" mov " xmm4, xmm5; " mov " xmm5, xmm6; " mov " xmm6, xmm7; " mov " xmm7, xmm8\n" mov \
    " xmm8, xmm9; " mov " xmm9, xmm10; " mov " xmm10, xmm11; " mov " xmm11, xmm12\n" mov          \
    " xmm12, xmm13; " mov " xmm13, xmm14; " mov " xmm14, xmm15; " mov " xmm15, [rbp]\ndec ecx; jnz 1b\n"
#define ROTATE_YMM                                                                                \
    "1: vmovups [rbp], ymm0; vmovaps ymm0, ymm1; vmovaps ymm1, ymm2; vmovaps ymm2, ymm3\n"        \
    "vmovaps ymm3, ymm4; vmovaps ymm4, ymm5; vmovaps ymm5, ymm6; vmovaps ymm6, ymm7\n"            \
    "vmovaps ymm7, ymm8; vmovaps ymm8, ymm9; vmovaps ymm9, ymm10; vmovaps ymm10, ymm11\n"         \
    "vmovaps ymm11, ymm12; vmovaps ymm12, ymm13; vmovaps ymm13, ymm14; vmovaps ymm14, ymm15\n"    \
    "vmovups ymm15, [rbp]; dec ecx; jnz 1b\n"

#define ACCESSES(X)                                                                   \
    X(load, "mov rax, [rdi]", X_PF, false)                                            \
    X(vload, "movups xmm3, [rdi]", X_PF, false)                                       \
    X(vstore, "movups [rdi], xmm3", X_PF, false)                                      \
    X(arith, "paddd xmm3, [rdi]", X_PF, false)                                        \
    X(cross, "movdqu xmm9, [rdi - 5]", X_PF, false)                                   \
    X(unaligned, "movaps xmm3, [rbp + 8]", X_GP, false)                               \
    X(unaligned_arith, "paddd xmm3, [rbp + 1]", X_GP, false)                          \
    X(unaligned_store, "movdqa [rbp + 4], xmm3", X_GP, false)                         \
    X(divide, "div ecx", X_DE, false)                                                 \
    X(undefined, "ud2", X_UD, false)                                                  \
    X(breakpoint, "int3", X_BP, false)                                                \
    X(halt, "hlt", -1, false)                                                         \
    X(ymm_load, "vmovups ymm3, [rdi]", X_PF, true)                                    \
    X(ymm_cross, "vaddps ymm3, ymm4, [rdi - 8]", X_PF, true)                          \
    X(ymm_aligned, "vmovaps ymm3, [rbp + 16]", X_GP, true)                            \
    X(ymm_store, "vmovups [rdi - 16], ymm3", X_PF, true)

#define X(name, text, vector, avx)                        \
    GUEST_ASM(sse_##name, ROTATE("movups") text "; hlt"); \
    GUEST_ASM(avx_##name, ROTATE_YMM text "; hlt");
ACCESSES(X)
#undef X

static const struct access {
    const char *name;
    const uint8_t *code[2], *end[2];
    int vector;
    bool avx;
} accesses[] = {
#define X(name, text, vector, avx) \
    {#name, {sse_##name, avx_##name}, {sse_##name##_end, avx_##name##_end}, vector, avx},
    ACCESSES(X)
#undef X
};

static void test_faults(void **state)
{
    struct world *w = guest_new(1);

    guest_map(w, MISSING - PAGE_SIZE, 0x60000 | PTE_RW);
    for (unsigned k = 0; k < ARRAY_LEN(accesses); k++)
        for (unsigned avx = accesses[k].avx; avx < (has_avx(w) ? 2 : 1); avx++)
            for (unsigned rounds = 1; rounds < 40; rounds += 13) {
                struct cpu_state s, want;

                kit_bytes(w, GUEST_CODE, accesses[k].code[avx],
                          (size_t)(accesses[k].end[avx] - accesses[k].code[avx]));
                vector_state(w, &s, GUEST_CODE, false);
                s.gpr[RCX] = rounds;
                s.gpr[RBP] = GUEST_DATA;
                s.gpr[RDI] = MISSING;
                want = s;
                for (unsigned r = 0; r < 16; r++)
                    memcpy(want.zmm[r], s.zmm[(r + rounds) % 16], avx ? 32 : 16);
                int v = guest_run(w, &s);
                if (v != accesses[k].vector)
                    print_message("%s: vector %d\n", accesses[k].name, v);
                assert_int_equal(v, accesses[k].vector);
                assert_vectors(&s, &want);
                if (v == X_PF)
                    assert_int_equal(s.cr2, MISSING);
            }
    world_free(w);
}

/* ---- handlers that use them themselves ---- */

/* Notes XMM1 and spoils it and XMM2, which it leaves so; counts. The page is there afterwards. */
GUEST_ASM(spoiling, "push rax; clts; mov eax, 0x24000; movups [rax], xmm1; inc qword ptr [rax + 32]; pcmpeqd xmm1, xmm1\n"
                    "paddq xmm2, xmm1; mov qword ptr [0x8000 + 8 * 3], 0x50003; invlpg [0x403000]\n"
                    "pop rax; ret");
GUEST_ASM(with_error, "call r15; add rsp, 8; iretq");
GUEST_ASM(without_error, "call r15; iretq");
/* XMM1 = XMM1 * 2 + 1 each round, then the event, which sets it to -1 and takes 1 from XMM2. */
GUEST_ASM(round_head, "1: paddq xmm1, xmm1; pcmpeqd xmm3, xmm3; psubq xmm1, xmm3");
GUEST_ASM(round_tail, "movq rbx, xmm1; cmp rbx, -1; jne 2f; inc r14; 2: psllq xmm1, 7; pxor xmm1, xmm4; dec r13; jnz 3f; hlt\n"
                      "3: mov qword ptr [0x8018], 0; invlpg [0x403000]; jmp r12");
GUEST_ASM(event_pf, "mov rax, [rdi]");
GUEST_ASM(event_pf_vector, "movups xmm5, [rdi]");
GUEST_ASM(event_int, "int 0x40");
GUEST_ASM(event_nm, "mov rax, cr0; or eax, 8; mov cr0, rax; movaps xmm6, xmm7");
GUEST_ASM(event_nm_load, "mov rax, cr0; or eax, 8; mov cr0, rax; movaps xmm6, [rbp]");
GUEST_ASM(event_call, "call r15");
GUEST_ASM(event_io, "out 0x12, al; nop"); /* an NMI */

static void test_handlers(void **state)
{
    static const struct {
        const char *name;
        const uint8_t *code, *end;
    } events[] = {
#define EVENT(name) {#name, event_##name, event_##name##_end}
        EVENT(pf), EVENT(pf_vector), EVENT(int), EVENT(nm), EVENT(nm_load), EVENT(call), EVENT(io)};
    struct world *w = guest_new(1);

    kit_put(w, HANDLER, spoiling);
    kit_put(w, HANDLER + 0x100, with_error);
    kit_put(w, HANDLER + 0x200, without_error);
    kit_gate(w, X_PF, HANDLER + 0x100, false);
    kit_gate(w, X_NM, HANDLER + 0x200, false);
    kit_gate(w, X_NMI, HANDLER + 0x200, false);
    kit_gate(w, 0x40, HANDLER + 0x200, false);
    for (unsigned k = 0; k < ARRAY_LEN(events); k++) {
        struct cpu_state s, was;
        uint64_t seen = 0, value, at;
        const unsigned rounds = 60;

        at = kit_put(w, GUEST_CODE, round_head);
        at = kit_bytes(w, at, events[k].code, (size_t)(events[k].end - events[k].code));
        kit_put(w, at, round_tail);
        guest_map(w, MISSING, 0);
        guest_put64(w, SAVED + 32, 0);
        vector_state(w, &s, GUEST_CODE, false);
        s.gpr[RBP] = GUEST_DATA;
        s.gpr[RDI] = MISSING;
        s.gpr[R12] = GUEST_CODE;
        s.gpr[R13] = rounds;
        s.gpr[R15] = HANDLER;
        was = s;
        value = s.zmm[1][0];
        for (unsigned n = 0; n < rounds; n++) {
            seen = value * 2 + 1;
            value = ~0ull << 7 ^ s.zmm[4][0];
        }
        int v = guest_run(w, &s);
        if (v != -1 || s.gpr[R14] != rounds)
            print_message("%s: vector %d, %llu of %u\n", events[k].name, v,
                          (unsigned long long)s.gpr[R14], rounds);
        assert_int_equal(v, -1);
        assert_int_equal(guest_u64(w, SAVED + 32), rounds);
        assert_int_equal(s.gpr[R14], rounds); /* the handler's XMM1 was there each time */
        assert_int_equal(guest_u64(w, SAVED), seen);
        assert_int_equal(s.zmm[1][0], value);
        assert_int_equal(s.zmm[2][0], was.zmm[2][0] - rounds);
        assert_int_equal(s.zmm[2][1], was.zmm[2][1] - rounds);
        assert_int_equal(s.zmm[1][2], was.zmm[1][2]); /* the upper halves of all of this */
        assert_int_equal(s.zmm[2][3], was.zmm[2][3]);
    }
    world_free(w);
}

/* Interrupts at any moment; the handler saves what it spoils, as FXSAVE does. */
GUEST_ASM(passes, "1: movups xmm0, [rbp]; movups xmm1, [rbp + 16]; movups xmm2, [rbp + 32]; movups xmm3, [rbp + 48]; mov ecx, 1000\n"
                  "2: paddq xmm0, xmm1; pshufd xmm1, xmm0, 0x93; mulpd xmm2, xmm3; addpd xmm2, xmm3; pxor xmm1, xmm2\n"
                  "psubd xmm0, xmm1; dec ecx; jnz 2b\n"
                  "test r14, r14; jnz 3f; movups [rbp + 64], xmm0; movups [rbp + 80], xmm2; inc r14; jmp 1b\n"
                  "3: movups xmm4, [rbp + 64]; pcmpeqb xmm4, xmm0; movups xmm5, [rbp + 80]; pcmpeqb xmm5, xmm2\n"
                  "pand xmm4, xmm5; pmovmskb eax, xmm4; cmp eax, 0xffff; je 4f; inc r13\n"
                  "4: cmp qword ptr [0x23000], 200; jb 1b; cli; 5: hlt; jmp 5b");
GUEST_ASM(saving, "push rax; mov rax, rsp; sub rsp, 0x220; and rsp, -16; fxsave [rsp]; pxor xmm0, xmm0; pcmpeqd xmm1, xmm1\n"
                  "movaps xmm2, xmm1; movaps xmm3, xmm0; mulpd xmm0, xmm3; inc qword ptr [0x23000]\n"
                  "fxrstor [rsp]; mov rsp, rax; pop rax; iretq");

static void interrupt(struct world *w, void *arg)
{
    if (atomic_load(&w->irq[0]) < 0) {
        atomic_store(&w->irq[0], 0x40);
        vcpu_post(&w->vcpu[0], VCPU_EV_INTR);
    }
}

static void test_interrupts(void **state)
{
    static const double numbers[] = {1.5, -2.25, 0.999, 1.001};
    struct world *w = guest_new(1);
    struct cpu_state s;

    kit_put(w, GUEST_CODE, passes);
    kit_put(w, HANDLER, saving);
    kit_gate(w, 0x40, HANDLER, false);
    for (unsigned k = 0; k < 4; k++)
        guest_put64(w, GUEST_DATA + k * 8, 0x123456789abcdef * (k + 1));
    world_write(w, GUEST_DATA + 32, numbers, sizeof(numbers));
    /* The first pass is undisturbed and says what is right. */
    vector_state(w, &s, GUEST_CODE, true);
    s.gpr[RBP] = GUEST_DATA;
    guest_put64(w, 0x23000, 200);
    assert_int_equal(guest_run(w, &s), -1);
    assert_int_equal(s.gpr[R14], 1);
    guest_put64(w, 0x23000, 0);
    vector_state(w, &s, GUEST_CODE, true);
    s.gpr[RBP] = GUEST_DATA;
    s.gpr[R14] = 1;
    assert_int_equal(world_set(w, 0, &s), 0);
    kit_run_all(w, interrupt, NULL);
    world_get(w, 0, &s);
    assert_int_equal(s.gpr[R13], 0);
    world_free(w);
}

/* ---- exceptions of numbers ---- */

/* Divides in a loop until something is wrong: RCX counts, the divisor comes from a table. */
GUEST_ASM(dividing, "1: inc ecx; movups xmm1, [rbp + 64]; divpd xmm1, [rbp]; addpd xmm2, xmm1; add rbp, 16; jmp 1b");

static void test_unmasked(void **state)
{
    static const double one[] = {1.0, 1.0, 0.0, 0.0};
    struct world *w = guest_new(1);

    for (unsigned bad = 1; bad < 30; bad += 7)
        for (unsigned how = 0; how < 4; how++) {
            struct cpu_state s;
            const uint64_t at = GUEST_CODE + 6; /* behind INC and MOVUPS: the division */
            double sum;

            kit_put(w, GUEST_CODE, dividing);
            for (unsigned k = 0; k < 40; k++)
                world_write(w, GUEST_DATA + k * 16, one, 16);
            guest_put64(w, GUEST_DATA + (bad - 1) * 16 + (how & 1) * 8, 0);
            vector_state(w, &s, GUEST_CODE, false);
            s.zmm[2][0] = s.zmm[2][1] = 0;
            s.gpr[RBP] = GUEST_DATA;
            s.mxcsr = 0x1f80 & ~0x200u; /* division by zero */
            if (how & 2)
                s.cr4 &= ~(uint64_t)CR4_OSXMMEXCPT;
            /* The dividend is the divisor of four rounds later. */
            int v = guest_run(w, &s);
            assert_int_equal(v, how & 2 ? X_UD : X_XM);
            assert_int_equal(s.gpr[RCX], bad);
            assert_int_equal(guest_u64(w, s.gpr[RSP]), at);
            assert_int_equal(s.mxcsr & 0x3f, 4);
            assert_int_equal(s.gpr[RBP], GUEST_DATA + (bad - 1) * 16);
            memcpy(&sum, &s.zmm[2][!(how & 1)], 8);
            assert_true(sum <= bad - 1);
            assert_int_equal(s.zmm[1][how & 1], guest_u64(w, s.gpr[RBP] + 64 + (how & 1) * 8));
        }
    world_free(w);
}

/* #DE in a loop: quotients that do not fit, and zeros. */
GUEST_ASM(dividing32, "1: inc rbx; mov eax, 1000; xor edx, edx; sub ecx, 1; nop; div ecx; add rsi, rax; jmp 1b");
GUEST_ASM(dividing8, "1: inc rbx; mov eax, 0x1000; sub cl, 1; div cl; add rsi, rax; jmp 1b");
GUEST_ASM(dividing_signed, "1: inc rbx; mov rax, 0x8000000000000000; cqo; add rcx, 1; idiv rcx; add rsi, rax; cmp rcx, -2; jne 1b\n"
                           "mov rcx, -2; jmp 1b");

static void test_divide_errors(void **state)
{
    struct world *w = guest_new(1);
    struct cpu_state s;
    uint64_t sum = 0;

    kit_put(w, GUEST_CODE, dividing32);
    kit_state(&s, 0, GUEST_CODE, false);
    s.gpr[RCX] = 50;
    for (unsigned k = 49; k; k--)
        sum += 1000 / k;
    assert_int_equal(guest_run(w, &s), X_DE);
    assert_int_equal(s.gpr[RBX], 50);
    assert_int_equal(s.gpr[RSI], sum);
    assert_int_equal(s.gpr[RAX], 1000);
    assert_int_equal(s.gpr[RDX], 0);
    assert_int_equal(guest_u64(w, s.gpr[RSP]), GUEST_CODE + 3 + 5 + 2 + 3 + 1);
    assert_int_equal(guest_u64(w, s.gpr[RSP] + 16) & FL_STATUS, FL_ZF | FL_PF); /* of 1 - 1 */

    kit_put(w, GUEST_CODE, dividing8);
    kit_state(&s, 0, GUEST_CODE, false);
    s.gpr[RCX] = 40;
    assert_int_equal(guest_run(w, &s), X_DE); /* 4096 / 16 does not fit */
    assert_int_equal(s.gpr[RCX], 16);
    assert_int_equal(s.gpr[RBX], 24);
    assert_int_equal(s.gpr[RAX], 0x1000);
    assert_int_equal(guest_u64(w, s.gpr[RSP]), GUEST_CODE + 3 + 5 + 3);

    kit_put(w, GUEST_CODE, dividing_signed);
    kit_state(&s, 0, GUEST_CODE, false);
    s.gpr[RCX] = (uint64_t)-20;
    assert_int_equal(guest_run(w, &s), X_DE); /* by -1 */
    assert_int_equal(s.gpr[RCX], ~0ull);
    assert_int_equal(s.gpr[RAX], 1ull << 63);
    assert_int_equal(s.gpr[RDX], ~0ull);
    world_free(w);
}

/* ---- masked moves beside what is missing ---- */

GUEST_ASM(masked_load, "vmaskmovps ymm2, ymm1, [rdi]; vaddps ymm3, ymm2, ymm2; hlt");
GUEST_ASM(masked_store, "vmaskmovps [rdi], ymm1, ymm2; vaddps ymm3, ymm2, ymm2; hlt");

static void test_masked(void **state)
{
    struct world *w = guest_new(1);

    guest_map(w, MISSING - PAGE_SIZE, 0x60000 | PTE_RW);
    for (unsigned store = 0; store < 2 && has_avx(w); store++)
        for (unsigned there = 0; there < 8; there++) /* elements in the page that is mapped */
            for (unsigned mask = 0; mask < 256; mask += 5) {
                bool faults = mask >> there;
                struct cpu_state s, was;
                uint32_t m[8], got[8];

                if (store)
                    kit_put(w, GUEST_CODE, masked_store);
                else
                    kit_put(w, GUEST_CODE, masked_load);
                vector_state(w, &s, GUEST_CODE, false);
                for (unsigned k = 0; k < 8; k++)
                    m[k] = mask >> k & 1 ? 0x80000000 : 0x7fffffff;
                memcpy(s.zmm[1], m, 32);
                s.gpr[RDI] = MISSING - 4 * there;
                for (unsigned k = 0; k < 8; k++)
                    guest_put64(w, 0x60fe0 + (k & 3) * 8, 0x1111111122222222);
                was = s;
                assert_int_equal(guest_run(w, &s), faults ? X_PF : -1);
                if (faults) {
                    assert_vectors(&s, &was);
                    assert_int_equal(guest_u64(w, s.gpr[RSP] + 8), GUEST_CODE);
                } else if (!store) {
                    memcpy(got, s.zmm[2], 32);
                    for (unsigned k = 0; k < 8; k++)
                        assert_int_equal(got[k] != 0, mask >> k & 1);
                }
            }
    world_free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_faults),   cmocka_unit_test(test_handlers),
        cmocka_unit_test(test_interrupts), cmocka_unit_test(test_unmasked),
        cmocka_unit_test(test_divide_errors), cmocka_unit_test(test_masked),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
