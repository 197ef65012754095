/*
 * Litmus tests of x86's memory order (SDM vol. 3 §9.2; Owens, Sarkar, Sewell: x86-TSO): two to four vCPUs run their few accesses
 * over and over, side by side, and outcomes that the order forbids must never be seen. What it allows need
 * not be seen. Then locked counters, cmpxchg16b and spinlocks, which lose nothing.
 */
#include "kit.h"

/* At 40000H: the locations, in lines of their own, 8 pairs in turn: X, Y, X, ... */
#define BARRIER 0x42000ull
#define RESULTS 0x50000ull /* of each vCPU: RESULTS + 0x10000 * cpu, 8 bytes a round */
#define FIRST 8
#define ROUNDS 2400

/*
 * Each vCPU: every 8 rounds wait for all others; run the body, which leaves its results in EAX and ECX; note them; next. RSI is
 * this round's X, RDI its Y, R8 its number, R15 how many vCPUs there are, R14 the barrier, R13 the results. Locations are not
 * reset: one is "old" if it holds less than R8.
 */
GUEST_ASM(litmus_head, "inc r8d; mov eax, r8d; and eax, 7; jnz 3f\n"
                       "lock inc dword ptr [r14]; mov eax, r8d; shr eax, 3; imul eax, r15d\n"
                       "2: mov ecx, [r14]; sub ecx, eax; jns 1f; pause; jmp 2b; 1: xor eax, eax\n"
                       "3: shl eax, 7; lea rsi, [rax + 0x40000]; lea rdi, [rsi + 64]; xor eax, eax; xor ecx, ecx");
GUEST_ASM(litmus_tail, "cmp eax, r8d; setae al; cmp ecx, r8d; setae cl; mov [r13], al; mov [r13 + 1], cl; add r13, 2\n"
                       "cmp r8d, 2407; jae 1f; jmp rbx; 1: hlt");

/* Stores and loads of a round's number. */
GUEST_ASM(sb0, "mov [rsi], r8d; mov eax, [rdi]");
GUEST_ASM(sb1, "mov [rdi], r8d; mov eax, [rsi]");
GUEST_ASM(sb_mfence0, "mov [rsi], r8d; mfence; mov eax, [rdi]");
GUEST_ASM(sb_mfence1, "mov [rdi], r8d; mfence; mov eax, [rsi]");
GUEST_ASM(sb_xchg0, "mov edx, r8d; xchg [rsi], edx; mov eax, [rdi]");
GUEST_ASM(sb_xchg1, "mov edx, r8d; xchg [rdi], edx; mov eax, [rsi]");
GUEST_ASM(sb_lock0, "mov [rsi], r8d; lock or dword ptr [rsp], 0; mov eax, [rdi]");
GUEST_ASM(sb_lock1, "mov [rdi], r8d; lock or dword ptr [rsp], 0; mov eax, [rsi]");
GUEST_ASM(sb_cpuid0, "mov [rsi], r8d; push rbx; xor eax, eax; cpuid; pop rbx; xor ecx, ecx; mov eax, [rdi]");
GUEST_ASM(sb_cpuid1, "mov [rdi], r8d; push rbx; xor eax, eax; cpuid; pop rbx; xor ecx, ecx; mov eax, [rsi]");
GUEST_ASM(mp0, "mov [rsi], r8d; mov [rdi], r8d; mov eax, r8d");
GUEST_ASM(mp1, "mov eax, [rdi]; mov ecx, [rsi]");
GUEST_ASM(mp_mixed0, "mov dword ptr [rsi], r8d; movd xmm0, r8d; movd [rdi], xmm0; mov eax, r8d");
GUEST_ASM(mp_mixed1, "movd xmm0, [rdi]; movd eax, xmm0; mov ecx, [rsi]");
GUEST_ASM(mp_push0, "mov [rsi], r8d; lea rdx, [rdi + 8]; xchg rsp, rdx; push r8; mov rsp, rdx; mov eax, r8d");
GUEST_ASM(mp_rep0, "mov [rsi], r8d; push rdi; push rcx; mov eax, r8d; mov ecx, 1; rep stosd; pop rcx; pop rdi");
GUEST_ASM(lb0, "mov eax, [rsi]; mov [rdi], r8d");
GUEST_ASM(lb1, "mov eax, [rdi]; mov [rsi], r8d");
GUEST_ASM(iriw0, "mov [rsi], r8d");
GUEST_ASM(iriw1, "mov [rdi], r8d");
GUEST_ASM(iriw2, "mov eax, [rsi]; mov ecx, [rdi]");
GUEST_ASM(iriw3, "mov eax, [rdi]; mov ecx, [rsi]");
/* Write to read causality: 0 writes X, 1 sees it and writes Y, 2 sees that and must see X. */
GUEST_ASM(wrc0, "mov [rsi], r8d");
GUEST_ASM(wrc1, "mov eax, [rsi]; cmp eax, r8d; jb 1f; mov [rdi], r8d; 1:");
GUEST_ASM(wrc2, "mov eax, [rdi]; mov ecx, [rsi]");
/* One's own stores are seen at once, and one location goes forward only. */
GUEST_ASM(own0, "mov [rsi], r8d; mov eax, [rsi]; mov [rdi], r8d; mov ecx, [rdi]");
GUEST_ASM(coherence1, "mov ecx, [rsi]; mov edx, [rsi]; mov eax, r8d; cmp edx, ecx; jae 1f; xor eax, eax; 1: xor ecx, ecx");

/* May these results (bit 2n: EAX of vCPU n is new, bit 2n + 1: ECX is) never be? */
static bool sb_bad(unsigned r) { return !(r & 1) && !(r & 4); }
static bool mp_bad(unsigned r) { return (r & 4) && !(r & 8); }
static bool lb_bad(unsigned r) { return (r & 1) && (r & 4); }
static bool iriw_bad(unsigned r) { return (r >> 4 & 15) == (1 | 4); }
static bool wrc_bad(unsigned r) { return (r & 4) && (r & 16) && !(r & 32); }
static bool own_bad(unsigned r) { return (r & 3) != 3 || (r & 12) != 12; }
static bool coherence_bad(unsigned r) { return !(r & 4); }
static bool none_bad(unsigned r) { return false; }

static const struct litmus {
    const char *name;
    bool (*bad)(unsigned results);
    unsigned cpus;
    const uint8_t *code[WORLD_CPUS], *end[WORLD_CPUS];
} litmus[] = {
#define CPU2(a, b) {a, b}, {a##_end, b##_end}
#define CPU3(a, b, c) {a, b, c}, {a##_end, b##_end, c##_end}
#define CPU4(a, b, c, d) {a, b, c, d}, {a##_end, b##_end, c##_end, d##_end}
    {"store buffering", none_bad, 2, CPU2(sb0, sb1)},
    {"store buffering, mfence", sb_bad, 2, CPU2(sb_mfence0, sb_mfence1)},
    {"store buffering, xchg", sb_bad, 2, CPU2(sb_xchg0, sb_xchg1)},
    {"store buffering, locked", sb_bad, 2, CPU2(sb_lock0, sb_lock1)},
    {"store buffering, cpuid", sb_bad, 2, CPU2(sb_cpuid0, sb_cpuid1)},
    {"store buffering, mixed", sb_bad, 2, CPU2(sb_mfence0, sb_xchg1)},
    {"message passing", mp_bad, 2, CPU2(mp0, mp1)},
    {"message passing, vectors", mp_bad, 2, CPU2(mp_mixed0, mp_mixed1)},
    {"message passing, push", mp_bad, 2, CPU2(mp_push0, mp1)},
    {"message passing, rep stos", mp_bad, 2, CPU2(mp_rep0, mp1)},
    {"load buffering", lb_bad, 2, CPU2(lb0, lb1)},
    {"independent reads", iriw_bad, 4, CPU4(iriw0, iriw1, iriw2, iriw3)},
    {"causality", wrc_bad, 3, CPU3(wrc0, wrc1, wrc2)},
    {"own stores", own_bad, 2, CPU2(own0, own0)},
    {"coherence", coherence_bad, 2, CPU2(own0, coherence1)},
};

static void run_litmus(const struct litmus *l)
{
    struct world *w = guest_new(l->cpus);
    unsigned seen[256] = {0}, bad = 0;

    for (unsigned k = 0; k < l->cpus; k++) {
        uint64_t start = GUEST_CODE + k * 0x1000, at = kit_put(w, start, litmus_head);
        struct cpu_state s;

        at = kit_bytes(w, at, l->code[k], (size_t)(l->end[k] - l->code[k]));
        kit_put(w, at, litmus_tail);
        kit_state(&s, k, start, false);
        s.gpr[RBX] = start;
        s.gpr[R8] = FIRST - 1;
        s.gpr[R13] = RESULTS + k * 0x10000;
        s.gpr[R14] = BARRIER;
        s.gpr[R15] = l->cpus;
        assert_int_equal(world_set(w, k, &s), 0);
    }
    kit_run_all(w, NULL, NULL);
    for (unsigned n = 0; n < ROUNDS; n++) {
        unsigned r = 0;

        for (unsigned k = 0; k < l->cpus; k++) {
            const uint8_t *p = w->mem + RESULTS + k * 0x10000 + n * 2;

            r |= (unsigned)(p[0] | p[1] << 1) << 2 * k;
        }
        seen[r]++;
        bad += l->bad(r);
    }
    if (bad)
        for (unsigned r = 0; r < 256; r++)
            if (seen[r])
                print_message("%s: results %#x seen %u times%s\n", l->name, r, seen[r],
                              l->bad(r) ? ", never allowed" : "");
    assert_int_equal(bad, 0);
    world_free(w);
}

static void test_litmus(void **state)
{
    for (unsigned k = 0; k < ARRAY_LEN(litmus); k++)
        run_litmus(&litmus[k]);
}

/* ---- nothing is lost ---- */

#define N 10000
#define DATA 0x60000ull

/* RSI: the data. RDI: N. RBX: own number. R9 = the code's start for those that need it. */
GUEST_ASM(c_inc, "1: lock inc dword ptr [rsi]; dec edi; jnz 1b; hlt");
GUEST_ASM(c_add, "1: lock add dword ptr [rsi], 1; jo 2f; dec edi; jnz 1b; 2: hlt");
GUEST_ASM(c_xadd, "mov edx, 1; 1: mov eax, edx; lock xadd [rsi], eax; dec edi; jnz 1b; hlt");
GUEST_ASM(c_adc, "1: stc; lock adc dword ptr [rsi], 0; dec edi; jnz 1b; hlt");
GUEST_ASM(c_dec, "1: lock dec dword ptr [rsi]; lock sub dword ptr [rsi], -2; dec edi; jnz 1b; hlt");
GUEST_ASM(c_not, "1: lock neg dword ptr [rsi + 64]; lock not dword ptr [rsi + 64]; lock inc dword ptr [rsi]; dec edi; jnz 1b; hlt");
GUEST_ASM(c_cmpxchg, "1: mov eax, [rsi]; 2: lea edx, [rax + 1]; lock cmpxchg [rsi], edx; jnz 2b; dec edi; jnz 1b; hlt");
GUEST_ASM(c_cmpxchg8b, "1: mov eax, [rsi]; mov edx, [rsi + 4]; 2: mov ebx, eax; mov ecx, edx; add ebx, 1; adc ecx, 0\n"
                       "lock cmpxchg8b [rsi]; jnz 2b; dec edi; jnz 1b; hlt");
GUEST_ASM(c_cmpxchg16b, "1: mov rax, [rsi]; mov rdx, [rsi + 8]; 2: lea rbx, [rax + 1]; lea rcx, [rdx + 3]\n"
                        "lock cmpxchg16b [rsi]; jnz 2b; dec edi; jnz 1b; mov rax, [rsi]; lea rax, [rax + rax * 2]\n"
                        "cmp rax, [rsi + 8]; hlt");
GUEST_ASM(c_xchg_lock, "1: mov eax, 1; xchg eax, [rsi + 128]; test eax, eax; jz 2f; pause; jmp 1b\n"
                       "2: mov eax, [rsi]; inc eax; mov [rsi], eax; mov dword ptr [rsi + 128], 0; dec edi; jnz 1b; hlt");
GUEST_ASM(c_bts_lock, "1: lock bts dword ptr [rsi + 128], 5; jnc 2f; pause; jmp 1b\n"
                      "2: inc dword ptr [rsi]; lock btr dword ptr [rsi + 128], 5; dec edi; jnz 1b; hlt");
GUEST_ASM(c_ticket, "1: mov eax, 1; lock xadd [rsi + 128], eax; 2: cmp [rsi + 192], eax; je 3f; pause; jmp 2b\n"
                    "3: add dword ptr [rsi], 1; inc dword ptr [rsi + 192]; dec edi; jnz 1b; hlt");
/* Misaligned, across a cache line, and across two pages. */
GUEST_ASM(c_split_line, "1: lock inc dword ptr [rsi + 62]; test dil, 7; jnz 2f; lock inc dword ptr [rsi]; lock add dword ptr [rsi], 7\n"
                        "2: dec edi; jnz 1b; hlt");
GUEST_ASM(c_split_page, "1: lock xadd [rsi + 0xffe], edx; lock inc dword ptr [rsi]; mov edx, 0; dec edi; jnz 1b; hlt");

static const struct counter {
    const char *name;
    const uint8_t *code, *end;
    unsigned n;
} counters[] = {
#define COUNTER(name, n) {#name, c_##name, c_##name##_end, n}
    COUNTER(inc, N),          COUNTER(add, N),        COUNTER(xadd, N),       COUNTER(adc, N),
    COUNTER(dec, N),          COUNTER(not, N),        COUNTER(cmpxchg, N),    COUNTER(cmpxchg8b, N),
    COUNTER(cmpxchg16b, N),   COUNTER(xchg_lock, N),  COUNTER(bts_lock, N),   COUNTER(ticket, 300),
    COUNTER(split_line, 800), COUNTER(split_page, 400),
};

static void test_counters(void **state)
{
    for (unsigned k = 0; k < ARRAY_LEN(counters); k++)
        for (unsigned cpus = 2; cpus <= (counters[k].n == N ? 4 : 2); cpus += 2) {
            const struct counter *c = &counters[k];
            struct world *w = guest_new(cpus);
            struct cpu_state s;

            kit_bytes(w, GUEST_CODE, c->code, (size_t)(c->end - c->code));
            for (unsigned n = 0; n < cpus; n++) {
                kit_state(&s, n, GUEST_CODE, false);
                s.gpr[RSI] = DATA;
                s.gpr[RDI] = c->n;
                assert_int_equal(world_set(w, n, &s), 0);
            }
            kit_run_all(w, NULL, NULL);
            if ((uint32_t)guest_u64(w, DATA) != cpus * c->n)
                print_message("%s: %u of %u\n", c->name, (uint32_t)guest_u64(w, DATA), cpus * c->n);
            assert_int_equal((uint32_t)guest_u64(w, DATA), cpus * c->n);
            if (!strcmp(c->name, "cmpxchg16b"))
                assert_int_equal(guest_u64(w, DATA + 8), 3ull * cpus * c->n);
            if (!strcmp(c->name, "split_line"))
                assert_int_equal((uint32_t)guest_u64(w, DATA + 62), cpus * c->n);
            world_free(w);
        }
}

/* What one writes in one access others never see in parts, aligned: 8 bytes, and 16 by cmpxchg16b. */
GUEST_ASM(whole_writer, "1: mov [rsi], rdi; dec rdi; imul rax, rdi, 0x10001; lea rdx, [rdi * 4]; mov rcx, 0x5555555555555555\n"
                        "test dil, 1; cmovz rcx, rdx; xor edx, edx; test dil, 1; cmovz rcx, rdx; mov [rsi + 8], rcx; not rcx\n"
                        "mov [rsi + 8], rcx; cmp rdi, 0; jne 1b; mov dword ptr [rsi + 64], 1; hlt");
GUEST_ASM(whole_reader, "1: mov rax, [rsi + 8]; mov rdx, rax; not rdx; test rax, rax; jz 2f; test rdx, rdx; jz 2f\n"
                        "mov rcx, 0x5555555555555555; cmp rax, rcx; je 2f; cmp rdx, rcx; je 2f; inc rbx\n"
                        "2: cmp dword ptr [rsi + 64], 0; je 1b; hlt");

static void test_whole_accesses(void **state)
{
    struct world *w = guest_new(2);
    struct cpu_state s;

    kit_put(w, GUEST_CODE, whole_writer);
    kit_put(w, GUEST_CODE + 0x1000, whole_reader);
    for (unsigned k = 0; k < 2; k++) {
        kit_state(&s, k, GUEST_CODE + k * 0x1000, false);
        s.gpr[RSI] = DATA;
        s.gpr[RDI] = 300000;
        assert_int_equal(world_set(w, k, &s), 0);
    }
    kit_run_all(w, NULL, NULL);
    world_get(w, 1, &s);
    assert_int_equal(s.gpr[RBX], 0);
    world_free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_litmus),
        cmocka_unit_test(test_counters),
        cmocka_unit_test(test_whole_accesses),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
