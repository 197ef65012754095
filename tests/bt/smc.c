/*
 * Code that changes itself: every kind of store into the block that runs, before and behind the storing
 * instruction, in loops that never leave the block otherwise; blocks at the ends of pages; a guest that makes code
 * without end.
 */
#include "kit.h"

#define ROUNDS 30

/* ---- stores into the running block ---- */

/* Each stores the round, RAX, at RDI, which is aligned to 16 and has 8 bytes of no importance behind its 8: RSP, RSI, RCX,
 * RDX, R9 and XMM0 are free. RBX is scratch memory. */
#define STORES(X)                                                                                 \
    X(mov, "mov [rdi], rax")                                                                      \
    X(mov32, "mov [rdi], eax")                                                                    \
    X(mov16, "mov [rdi], ax")                                                                     \
    X(mov8, "mov [rdi], al")                                                                      \
    X(disp, "lea rcx, [rdi - 0x1000]; mov [rcx + 0x1000], rax")                                   \
    X(index, "mov rcx, rdi; shr rcx, 3; mov [rcx * 8], eax")                                      \
    X(add, "mov edx, eax; sub edx, [rdi]; add [rdi], edx")                                        \
    X(lockadd, "mov edx, eax; sub edx, [rdi]; lock add [rdi], edx")                               \
    X(xadd, "mov rdx, rax; sub rdx, [rdi]; xadd [rdi], rdx")                                      \
    X(xor, "mov edx, eax; xor edx, [rdi]; xor [rdi], edx")                                        \
    X(inc, "inc byte ptr [rdi]")                                                                  \
    X(lockinc, "lock inc dword ptr [rdi]")                                                        \
    X(xchg, "mov rdx, rax; xchg [rdi], rdx")                                                      \
    X(cmpxchg, "mov rdx, rax; mov r9, rax; mov rax, [rdi]; cmpxchg [rdi], rdx; mov rax, r9")      \
    X(lockcmpxchg8b, "push rbx; mov r9, rax; mov ebx, eax; xor ecx, ecx; mov eax, [rdi]; mov edx, [rdi + 4]\n" \
                     "lock cmpxchg8b [rdi]; mov rax, r9; pop rbx")                                \
    X(cmpxchg16b, "push rbx; mov r9, rax; mov rbx, rax; mov rcx, [rdi + 8]; mov rax, [rdi]; mov rdx, [rdi + 8]\n" \
                  "lock cmpxchg16b [rdi]; mov rax, r9; pop rbx")                                  \
    X(push, "mov r9, rsp; lea rsp, [rdi + 8]; push rax; mov rsp, r9")                             \
    X(pushm, "mov [rbx], rax; mov r9, rsp; lea rsp, [rdi + 8]; push [rbx]; mov rsp, r9")          \
    X(pop, "push rax; pop [rdi]")                                                                 \
    X(stosb, "mov rcx, rdi; stosb; mov rdi, rcx")                                                 \
    X(stosq, "mov rcx, rdi; stosq; mov rdi, rcx")                                                 \
    X(repstosb, "mov r9, rdi; mov ecx, 1; rep stosb; mov rdi, r9")                                \
    X(repstosd, "mov r9, rdi; mov ecx, 1; rep stosd; mov rdi, r9")                                \
    X(movs, "mov [rbx], rax; mov r9, rdi; mov rsi, rbx; movsd; mov rdi, r9")                      \
    X(repmovs, "mov [rbx], rax; mov r9, rdi; mov rsi, rbx; mov ecx, 8; rep movsb; mov rdi, r9")   \
    X(movq, "movq xmm0, rax; movq [rdi], xmm0")                                                   \
    X(movd, "movd xmm0, eax; movd [rdi], xmm0")                                                   \
    X(movups, "movups xmm0, [rdi]; pinsrq xmm0, rax, 0; movups [rdi], xmm0")                      \
    X(movaps, "movups xmm0, [rdi]; pinsrq xmm0, rax, 0; movaps [rdi], xmm0")                      \
    X(movnti, "movnti [rdi], rax")                                                                \
    X(movbe, "mov edx, eax; bswap edx; movbe [rdi], edx")                                         \
    X(fistp, "mov [rbx], rax; fild qword ptr [rbx]; fistp qword ptr [rdi]")                       \
    X(setcc, "mov dl, al; mov byte ptr [rdi], dl; test al, 1; setnz [rdi]; mov [rdi], al")        \
    X(bits, "mov [rdi], al; btc dword ptr [rdi], 6; btc dword ptr [rdi], 6")                      \
    X(split, "mov rdx, rax; shl rdx, 16; or rdx, 0xbe48; mov [rdi - 2], rdx")                     \
    X(enter, "mov r9, rsp; mov rsi, rbp; mov rbp, rax; lea rsp, [rdi + 8]; enter 0, 0; mov rsp, r9; mov rbp, rsi")

#define X(name, text) GUEST_ASM(s_##name, text);
STORES(X)
#undef X
static const struct {
    const char *name;
    const uint8_t *code, *end;
} stores[] = {
#define X(name, text) {#name, s_##name, s_##name##_end},
    STORES(X)
#undef X
};

/* Code around a MOV RSI, imm64 whose immediate is aligned to 16: NOPs in front, so that it may go anywhere. */
static uint64_t put_target(struct world *w, uint64_t at, uint64_t *imm)
{
    static const uint8_t mov[] = {0x48, 0xbe, 0, 0, 0, 0, 0, 0, 0, 0, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90};
    uint64_t to = ALIGN_UP(at + 2, 16) - 2;

    while (at < to)
        guest_code(w, at++, 0x90);
    *imm = at + 2;
    return kit_bytes(w, at, mov, sizeof(mov));
}

static uint64_t put_store(struct world *w, uint64_t at, unsigned k, uint64_t imm)
{
    guest_code(w, at, 0xbf, LE32((uint32_t)imm)); /* mov edi, imm */
    return kit_bytes(w, at + 5, stores[k].code, (size_t)(stores[k].end - stores[k].code));
}

GUEST_ASM(sum_before, "add r10, rsi; lea r10, [r10 + r10 * 2]");
GUEST_ASM(sum_behind, "add r11, rsi; lea r11, [r11 + r11 * 2]");
GUEST_ASM(next_round, "inc eax; cmp eax, r8d; jae 1f; jmp r14; 1: hlt");

/* before: RSI = imm, stored to by the round before; then both stores; behind: RSI = imm, stored to just now. */
static void run_stores(struct world *w, uint64_t start, unsigned k)
{
    uint64_t at = start, before, behind, probe = 0, want10 = 0, want11 = 0;
    struct cpu_state s;

    at = put_target(w, at, &before);
    at = kit_put(w, at, sum_before);
    at = put_store(w, at, k, before);
    /* Where the target will be depends on the store's length, which does not depend on where it is. */
    put_target(w, at + 5 + (uint64_t)(stores[k].end - stores[k].code), &probe);
    at = put_store(w, at, k, probe);
    at = put_target(w, at, &behind);
    assert_int_equal(behind, probe);
    at = kit_put(w, at, sum_behind);
    kit_put(w, at, next_round);
    kit_state(&s, 0, start, false);
    s.gpr[RBX] = GUEST_DATA;
    s.gpr[RAX] = 1;
    s.gpr[R8] = ROUNDS;
    s.gpr[R14] = start;
    for (uint64_t n = 1; n < ROUNDS; n++) {
        want10 = (want10 + n - 1) * 3;
        want11 = (want11 + n) * 3;
    }
    int v = guest_run(w, &s);
    if (v != -1 || s.gpr[R10] != want10 || s.gpr[R11] != want11)
        print_message("%s at %#llx: vector %d, before %#llx not %#llx, behind %#llx not %#llx\n",
                      stores[k].name, (unsigned long long)start, v, (unsigned long long)s.gpr[R10],
                      (unsigned long long)want10, (unsigned long long)s.gpr[R11],
                      (unsigned long long)want11);
    assert_int_equal(v, -1);
    assert_int_equal(s.gpr[R10], want10);
    assert_int_equal(s.gpr[R11], want11);
}

static void test_stores_into_own_block(void **state)
{
    struct world *w = guest_new(1);

    for (unsigned k = 0; k < ARRAY_LEN(stores); k++) {
        run_stores(w, GUEST_CODE, k);
        run_stores(w, GUEST_CODE + 0x2fa0 + (k % 8) * 8, k); /* the block, or the target, crosses into the next page */
    }
    world_free(w);
}

/* A CALL whose return address goes over an instruction of its own block, in front of it and, run again
 * from there, harmlessly; and over the very next one, which then is not what it was. */
GUEST_ASM(call_over, "1: mov rsi, 0x1122334455667788; add r10, rsi; lea r13, [rip + 1b + 10]; mov r12, rsp\n"
                     "mov rsp, r13; call 2f; 2: mov rsp, r12; inc eax; cmp eax, 6; jb 1b; hlt");

static void test_call_over_own_block(void **state)
{
    struct world *w = guest_new(1);
    const uint64_t pushed = GUEST_CODE + 0x1f; /* behind the call */
    struct cpu_state s;

    kit_put(w, GUEST_CODE, call_over);
    kit_state(&s, 0, GUEST_CODE, false);
    assert_int_equal(guest_run(w, &s), -1);
    assert_int_equal(guest_u64(w, GUEST_CODE + 2), pushed);
    assert_int_equal(s.gpr[R10], 0x1122334455667788 + 5 * pushed);
    world_free(w);
}

/* A store that changes the opcode straight behind it, from a NOP to INC RBX and back, each round. */
GUEST_ASM(flip, "lea rdi, [rip + 1f]; mov ecx, 50\n"
                "2: mov eax, 0xc3ff48; test cl, 1; mov edx, 0x401f0f; cmovz eax, edx; mov [rdi], ax; shr eax, 16\n"
                "mov [rdi + 2], al; 1: .byte 0x0f, 0x1f, 0x40; nop; dec ecx; jnz 2b; hlt");

static void test_opcodes_change(void **state)
{
    struct world *w = guest_new(1);
    struct cpu_state s;

    /* 0F 1F 40 is a NOP of four bytes with the 90H behind it; 48 FF C3 one of three, and the 90H another. */
    for (unsigned off = 0xfb0; off < 0x1000; off++) {
        kit_put(w, GUEST_CODE + off, flip);
        kit_state(&s, 0, GUEST_CODE + off, false);
        assert_int_equal(guest_run(w, &s), -1);
        assert_int_equal(s.gpr[RBX], 25);
    }
    world_free(w);
}

/* Faults in the middle of a store into the own block: nothing is changed, and the frame is exact. */
GUEST_ASM(fault_between, "1: mov esi, 7; inc rbx; mov [rdi], r8d; mov rax, [r9]; inc rcx; jmp 1b");

static void test_fault_behind_store(void **state)
{
    struct world *w = guest_new(1);
    struct cpu_state s;

    for (unsigned k = 0; k < 5; k++) {
        kit_put(w, GUEST_CODE, fault_between);
        kit_state(&s, 0, GUEST_CODE, false);
        s.gpr[RDI] = GUEST_CODE + 1;
        s.gpr[R8] = 0x100 + k;
        s.gpr[R9] = GUEST_WINDOW + 8;
        assert_int_equal(guest_run(w, &s), X_PF);
        assert_int_equal(s.gpr[RBX], 1);
        assert_int_equal(s.gpr[RCX], 0);
        assert_int_equal(s.gpr[RSI], 7);
        assert_int_equal(guest_u64(w, s.gpr[RSP] + 8), GUEST_CODE + 11);
        assert_int_equal((uint32_t)guest_u64(w, GUEST_CODE + 1), 0x100 + k);
    }
    world_free(w);
}

/* ---- the ends of pages ---- */

#define EDGE (GUEST_WINDOW + 0x2000)

/* INC RBX, then an instruction that ends or crosses the page's end at every offset, with the second page there, not
 * there, or another one. */
GUEST_ASM(crossing, "inc rbx; mov rsi, 0x1122334455667788; add r10, rsi; dec r12; jz 1f; jmp r9; 1: hlt");

static void test_page_ends(void **state)
{
    struct world *w = guest_new(1);
    uint8_t code[64], two[2 * PAGE_SIZE];
    size_t n = GUEST_ASM_LEN(crossing);
    struct cpu_state s;

    memcpy(code, crossing, n);
    guest_map(w, EDGE - PAGE_SIZE, 0x50000 | PTE_RW);
    for (unsigned back = 0; back <= n; back++) {
        uint64_t at = EDGE - back;

        for (unsigned k = 0; k < 2; k++) { /* the second page is 58000H or 59000H */
            memset(two, HLT, sizeof(two));
            code[5] = (uint8_t)(k + 1); /* the third byte of the immediate, and so on */
            code[12] = (uint8_t)(0x20 + k);
            memcpy(two + PAGE_SIZE - back, code, n);
            world_write(w, 0x50000, two, PAGE_SIZE);
            world_write(w, 0x58000 + k * PAGE_SIZE, two + PAGE_SIZE, PAGE_SIZE);
        }
        for (unsigned k = 0; k < 8; k++) {
            bool there = k != 3, warm = k > 0;
            uint64_t imm = 0x1122334455667788;
            unsigned second = k & 1;
            uint8_t *b = (uint8_t *)&imm;

            b[0] = 5 < back ? 2 : (uint8_t)(second + 1); /* the first page is of the last k written */
            b[7] = 12 < back ? 0x21 : (uint8_t)(0x20 + second);
            guest_map(w, EDGE, there ? (0x58000 + second * PAGE_SIZE) | PTE_RW : 0);
            kit_state(&s, 0, at, false);
            s.gpr[R9] = at;
            s.gpr[R12] = warm ? 10 : 1;
            int v = guest_run(w, &s);
            if (there || back >= n) {
                assert_int_equal(v, -1);
                assert_int_equal(s.gpr[RBX], warm ? 10 : 1);
                assert_int_equal(s.gpr[R10], imm * (warm ? 10 : 1));
            } else {
                static const uint8_t end[] = {3, 13, 16, 19, 21, 24, 25};
                unsigned first = 0; /* instruction with a byte in the second page */
                uint64_t rounds = back >= end[5] ? 10 : 1;

                while (end[first] <= back)
                    first++;
                assert_int_equal(v, X_PF);
                assert_int_equal(s.cr2, EDGE);
                assert_int_equal(guest_error(w, &s), PF_I);
                assert_int_equal(guest_u64(w, s.gpr[RSP] + 8), at + (first ? end[first - 1] : 0));
                assert_int_equal(s.gpr[RBX], first ? rounds : 0);
                assert_int_equal(s.gpr[R10], first > 2 ? imm * rounds : 0);
            }
        }
    }
    world_free(w);
}

/* ---- code without end ---- */

/* RCX functions of a MOV EAX, imm32 and a JMP to the next one, 32 bytes apart and sometimes across a page, the last of
 * which returns; called twice; then all over again with other numbers, R8 times. */
GUEST_ASM(generator,
          "3: mov rdi, r10; mov ecx, r9d\n"
          "1: mov word ptr [rdi], 0xc381; lea eax, [rcx + r8]; mov [rdi + 2], eax\n" /* add ebx, imm32 */
          "mov dword ptr [rdi + 6], 0x00001ae9; mov byte ptr [rdi + 10], 0; mov byte ptr [rdi + 11], 0xc3\n"
          "add rdi, 37; dec ecx; jnz 1b\n" /* jmp .+26: to 37 */
          "mov byte ptr [rdi], 0xc3; call r10; call r10; dec r8; jnz 3b; hlt");

static void start_generator(struct world *w, unsigned cpu, unsigned rounds, uint64_t *want)
{
    struct cpu_state s;
    uint32_t sum = 0;
    const unsigned n = 4000;

    kit_put(w, GUEST_CODE, generator);
    kit_state(&s, cpu, GUEST_CODE, false);
    s.gpr[R8] = rounds;
    s.gpr[R9] = n;
    s.gpr[R10] = 0x40000 + cpu * 0x28000;
    for (unsigned k = 1; k <= rounds; k++)
        for (unsigned c = 1; c <= n; c++)
            sum += 2 * (c + k);
    *want = sum;
    assert_int_equal(world_set(w, cpu, &s), 0);
}

static void test_code_without_end(void **state)
{
    for (unsigned cpus = 1; cpus <= 3; cpus++) {
        struct world *w = guest_new(cpus);
        uint64_t want[3];

        for (unsigned k = 0; k < cpus; k++)
            start_generator(w, k, 40 + k, &want[k]);
        kit_run_all(w, NULL, NULL);
        for (unsigned k = 0; k < cpus; k++) {
            struct cpu_state s;

            world_get(w, k, &s);
            assert_int_equal(s.gpr[RBX], want[k]);
        }
        world_free(w);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stores_into_own_block), cmocka_unit_test(test_call_over_own_block),
        cmocka_unit_test(test_opcodes_change),        cmocka_unit_test(test_fault_behind_store),
        cmocka_unit_test(test_page_ends),             cmocka_unit_test(test_code_without_end),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
