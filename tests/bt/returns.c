/*
 * Calls and returns that do not pair as a return stack would like them to. Whatever a translator predicts, code goes
 * where the guest's stack says.
 */
#include "kit.h"

#define HANDLER 0x14000ull
#define DEPTH 100000ull
#define DEEP_STACK WORLD_RAM /* top: 800,000 bytes fit above the rest */

/* RAX = what two call sites, taken in turn, make of it on the way back. RCX: the depth. */
#define RECURSION                                                            \
    "1: inc rbx; dec rcx; jz 3f; test cl, 1; jz 2f\n"                        \
    "call 1b; lea rax, [rax + rax * 2]; add rax, 5; ret\n"                   \
    "2: call 1b; lea rax, [rax + rax * 4]; xor rax, rbx; ret\n"              \
    "3: ret"
GUEST_ASM(recurse, "call 1f; hlt\n" RECURSION);

static uint64_t recursion(uint64_t depth)
{
    uint64_t rax = 0;

    for (uint64_t rcx = 1; rcx < depth; rcx++)
        rax = rcx & 1 ? rax * 3 + 5 : rax * 5 ^ depth;
    return rax;
}

static void test_deep(void **state)
{
    struct world *w = guest_new(1);
    struct cpu_state s;

    kit_put(w, GUEST_CODE, recurse);
    for (unsigned k = 0; k < 4; k++) {
        uint64_t depth = k < 2 ? DEPTH : 10 + k;

        kit_state(&s, 0, GUEST_CODE, false);
        s.gpr[RSP] = DEEP_STACK;
        s.gpr[RCX] = depth;
        assert_int_equal(guest_run(w, &s), -1);
        assert_int_equal(s.gpr[RBX], depth);
        assert_int_equal(s.gpr[RAX], recursion(depth));
        assert_int_equal(s.gpr[RSP], DEEP_STACK);
    }
    world_free(w);
}

/* The stack's pages come when they are first used: each such CALL faults and is done again. */
GUEST_ASM(demand, "push rax; push rcx; mov rax, cr2; shr rax, 12; and eax, 511; mov ecx, eax; shl ecx, 12\n"
                  "add ecx, 0x30003; mov [rax * 8 + 0x8000], rcx; inc r10; call 1f; pop rcx; pop rax\n"
                  "add rsp, 8; iretq; 1: call 2f; ret; 2: ret");

static void test_deep_on_demand(void **state)
{
    struct world *w = guest_new(1);
    const uint64_t top = GUEST_WINDOW + 0x60000, depth = 0x60000 / 8;
    struct cpu_state s;

    kit_put(w, GUEST_CODE, recurse);
    kit_put(w, HANDLER, demand);
    kit_gate(w, X_PF, HANDLER, true);
    kit_state(&s, 0, GUEST_CODE, false);
    s.gpr[RSP] = top;
    s.gpr[RCX] = depth;
    assert_int_equal(guest_run(w, &s), -1);
    assert_int_equal(s.gpr[R10], 0x60);
    assert_int_equal(s.gpr[RAX], recursion(depth));
    world_free(w);
}

/* Under interrupts, whose handler calls, too. */
GUEST_ASM(recurse_for_ever, "4: xor eax, eax; xor ebx, ebx; mov ecx, 300; call 1f; cmp rax, rbp; je 5f; inc r14\n"
                            "5: mov edx, [0x22000]; cmp edx, 200; jb 4b; cli; 6: hlt; jmp 6b\n" RECURSION);
GUEST_ASM(calling_handler, "push rax; call 1f; pop rax; iretq; 1: call 2f; ret; 2: lock inc dword ptr [0x22000]\n"
                           "lea rax, [rip + 3f]; push rax; ret; 3: ret");

static void interrupt(struct world *w, void *arg)
{
    if (atomic_load(&w->irq[0]) < 0) {
        atomic_store(&w->irq[0], 0x40);
        vcpu_post(&w->vcpu[0], VCPU_EV_INTR);
    }
}

static void test_interrupted(void **state)
{
    struct world *w = guest_new(1);
    struct cpu_state s;

    kit_put(w, GUEST_CODE, recurse_for_ever);
    kit_put(w, HANDLER, calling_handler);
    kit_gate(w, 0x40, HANDLER, false);
    kit_state(&s, 0, GUEST_CODE, true);
    s.gpr[RBP] = recursion(300);
    assert_int_equal(world_set(w, 0, &s), 0);
    kit_run_all(w, interrupt, NULL);
    world_get(w, 0, &s);
    assert_int_equal(s.gpr[R14], 0);
    world_free(w);
}

/* ---- pieces: each is run R15 times; RBX counts right turns, RBP wrong ones ---- */

#define LOOPED(text) "8: " text "\n dec r15; jnz 8b; hlt\n"
#define RIGHT "inc rbx"
#define WRONG "inc rbp"

/* The callee moves its return address. */
GUEST_ASM(r_moved, LOOPED("call 1f; " WRONG "; jmp 2f; 3: " RIGHT "; 2:")
          "1: lea rax, [rip + 3b]; mov [rsp], rax; ret");
/* ... now and then. */
GUEST_ASM(r_moved_sometimes, LOOPED("mov r8, rbx; call 1f; 5: nop; jmp 2f; 3: test r15b, 7; jnz 4f; " RIGHT "; jmp 6f\n"
                                  "2: test r15b, 7; jz 4f; " RIGHT "; jmp 6f; 4: " WRONG "; 6:")
          "1: test r15b, 7; jnz 7f; add qword ptr [rsp], 3; 7: ret");
GUEST_ASM(r_call_next, LOOPED("call 1f; 1: pop rax; lea rcx, [rip + 1b]; cmp rax, rcx; jne 2f; " RIGHT "; jmp 3f\n"
                            "2: " WRONG "; 3:"));
GUEST_ASM(r_ret_imm, LOOPED("mov r8, rsp; push 1; push 2; push 3; call 1f; cmp rsp, r8; jne 2f; " RIGHT "; jmp 3f\n"
                          "2: " WRONG "; mov rsp, r8; 3:")
          "1: push 4; push 5; call 4f; ret 24; 4: ret 16");
/* Ten calls deep and out at once. */
GUEST_ASM(r_longjmp, LOOPED("mov r8, rsp; lea r9, [rip + 3f]; mov ecx, 10; call 1f; " WRONG "; 3: " RIGHT)
          "1: dec ecx; jz 2f; call 1b; " WRONG "; ret; 2: mov rsp, r8; jmp r9");
/* Nothing but returns. */
GUEST_ASM(r_only_returns, LOOPED("mov r8, rsp; lea rax, [rip + 1f]; push rax; lea rax, [rip + 2f]; push rax\n"
                               "lea rax, [rip + 3f]; push rax; lea rax, [rip + 2f]; push rax; ret\n"
                               "1: add rcx, 100; cmp rcx, 122; jne 4f; " RIGHT "; jmp 5f; 4: " WRONG
                               "; 5: xor ecx, ecx; mov rsp, r8")
          "2: add rcx, 1; ret; 3: add rcx, 20; ret");
/* Two stacks; each side thinks it calls the other: RDX is the other's stack pointer. */
GUEST_ASM(r_coroutines, "lea rdx, [rsp - 0x400]; lea rax, [rip + 2f]; mov [rdx], rax\n"
          LOOPED("mov eax, 1; call 1f; cmp eax, 2; je 3f; " WRONG "; jmp 4f; 3: " RIGHT "; 4:")
          "1: xchg rsp, rdx; ret\n"
          "2: cmp eax, 1; jne 5f; mov eax, 2; call 1b; jmp 2b; 5: " WRONG "; mov eax, 2; call 1b; jmp 2b");
/* One call site, many targets that return to it by different ways. */
GUEST_ASM(r_many_ways, LOOPED("mov r8, rsp; lea rax, [rip + 1f]; mov ecx, r15d; and ecx, 3; shl ecx, 4; add rax, rcx; call rax\n"
                            "cmp rsp, r8; jne 2f; " RIGHT "; jmp 3f; 2: " WRONG "; mov rsp, r8; 3:")
          ".balign 16; 1: ret; .balign 16; pop rax; jmp rax; .balign 16; pop rax; push rax; ret\n"
          ".balign 16; add rsp, 8; jmp [rsp - 8]");
/* A return into the middle of what another call returned to. */
GUEST_ASM(r_twice, LOOPED("call 1f; 2: nop; " RIGHT) "1: lea rax, [rip + 2b + 1]; push rax; lea rax, [rip + 3f]; push rax; ret\n"
          "3: ret 8");
/* The return address is stored again by the callee, itself, byte by byte. */
GUEST_ASM(r_stored, LOOPED("call 1f; " RIGHT) "1: mov rax, [rsp]; mov rcx, rax; not rcx; mov [rsp], rcx; mov ecx, 8; mov rdi, rsp\n"
          "2: stosb; shr rax, 8; dec ecx; jnz 2b; ret");
/* call [rsp + x] and push/pop [rsp + x], which count RSP before or behind. */
GUEST_ASM(r_through_rsp, LOOPED("mov r8, rsp; lea rax, [rip + 1f]; push rax; call [rsp]; pop rcx; push rcx; push [rsp]; pop rdx; pop rcx\n"
                              "cmp rdx, rax; jne 2f; cmp rsp, r8; jne 2f; " RIGHT "; jmp 3f; 2: " WRONG "; mov rsp, r8; 3:")
          "1: ret");

static const struct piece {
    const char *name;
    const uint8_t *code, *end;
} pieces[] = {
#define PIECE(name) {#name, r_##name, r_##name##_end}
    PIECE(moved), PIECE(moved_sometimes), PIECE(call_next), PIECE(ret_imm),     PIECE(longjmp),
    PIECE(only_returns), PIECE(coroutines), PIECE(many_ways), PIECE(twice), PIECE(stored),
    PIECE(through_rsp),
};

static void test_unbalanced(void **state)
{
    struct world *w = guest_new(1);
    struct cpu_state s;

    for (unsigned k = 0; k < ARRAY_LEN(pieces); k++) {
        kit_bytes(w, GUEST_CODE, pieces[k].code, (size_t)(pieces[k].end - pieces[k].code));
        kit_state(&s, 0, GUEST_CODE, false);
        s.gpr[R15] = 5000;
        int v = guest_run(w, &s);
        if (v != -1 || s.gpr[RBX] != 5000 || s.gpr[RBP])
            print_message("%s: vector %d rip %#llx, %llu right, %llu wrong\n", pieces[k].name, v,
                          (unsigned long long)s.rip, (unsigned long long)s.gpr[RBX],
                          (unsigned long long)s.gpr[RBP]);
        assert_int_equal(v, -1);
        assert_int_equal(s.gpr[RBX], 5000);
        assert_int_equal(s.gpr[RBP], 0);
        assert_int_equal(s.gpr[RSP], GUEST_STACK);
    }
    world_free(w);
}

/* ---- returns that fault ---- */

/* After some that do not. RSI: the return address then. */
GUEST_ASM(bad_return, "mov r15d, 20; 1: mov rcx, rsp; call 2f; dec r15; jnz 1b; lea rbp, [rip + 3f]; call 4f; hlt\n"
                      "2: ret; 4: mov [rsp], rsi; mov r8, rsp; 3: ret");

static void test_bad_returns(void **state)
{
    static const struct {
        uint64_t to;
        int vector;
    } bad[] = {{1ull << 47, X_GP}, {1ull << 63, X_GP}, {GUEST_WINDOW + 0x5000, X_PF},
               {~0ull - 0xfff, X_PF}, {(1ull << 47) - 1, X_PF}};
    struct world *w = guest_new(1);
    struct cpu_state s;

    kit_put(w, GUEST_CODE, bad_return);
    for (unsigned k = 0; k < ARRAY_LEN(bad); k++) {
        kit_state(&s, 0, GUEST_CODE, false);
        s.gpr[RSI] = bad[k].to;
        assert_int_equal(guest_run(w, &s), bad[k].vector);
        /* #GP belongs to the return, which has not popped; #PF to the fetch behind it. */
        bool gp = bad[k].vector == X_GP;
        assert_int_equal(guest_u64(w, s.gpr[RSP] + 8), gp ? s.gpr[RBP] : bad[k].to);
        assert_int_equal(guest_u64(w, s.gpr[RSP] + 32), s.gpr[R8] + (gp ? 0 : 8));
        if (!gp)
            assert_int_equal(s.cr2, bad[k].to);
    }
    world_free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_deep),        cmocka_unit_test(test_deep_on_demand),
        cmocka_unit_test(test_interrupted), cmocka_unit_test(test_unbalanced),
        cmocka_unit_test(test_bad_returns),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
