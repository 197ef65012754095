/*
 * Accesses by RSP, which translators like to look up together: far apart, with more of them in a block than anybody
 * keeps account of.
 */
#include "kit.h"

#define FAR 0x40000ull  /* from the stack to what is pushed */
#define TOP (GUEST_WINDOW + 0x10000)
#define NEAR_PAGE 0x30000ull
#define FAR_PAGE 0xa0000ull
#define ROUNDS 200ull

/* The host has the two pages at another distance than the guest. N: bytes pushed. */
#define FAR_APART(n)                                                                                    \
    GUEST_ASM(far_apart_##n, "1: mov rax, [rsp]; .rept " #n "; push qword ptr [rsp + 0x40000]; .endr\n"  \
                             "mov rax, [rsp + 0x40000]; push rbx; mov rcx, [rsp + 0x40008]\n"           \
                             "mov [rsp + 0x40010], rdx; jmp 2f; 2: add rsp, " #n " * 8 + 8\n"             \
                             "cmp rcx, rax; jne 3f; dec edi; jnz 1b; 3: hlt");
#define NUMBERS(X) X(1) X(15) X(28) X(29) X(30) X(31) X(32) X(33) X(40) X(50)
NUMBERS(FAR_APART)

static void far_apart(unsigned pushes, const uint8_t *code, size_t n)
{
    const uint64_t last = TOP - pushes * 8 + FAR;
    struct world *w = guest_new(1);
    struct cpu_state s;

    guest_map(w, TOP - 1, NEAR_PAGE | 3);
    guest_map(w, TOP, (NEAR_PAGE + PAGE_SIZE) | 3);
    guest_map(w, last, FAR_PAGE | 3);
    guest_map(w, TOP + FAR, (FAR_PAGE + PAGE_SIZE) | 3);
    guest_put64(w, FAR_PAGE + (last & PAGE_MASK), 0x1234);
    kit_bytes(w, GUEST_CODE, code, n);
    kit_state(&s, 0, GUEST_CODE, false);
    s.gpr[RSP] = TOP;
    s.gpr[RDI] = ROUNDS;
    s.gpr[RDX] = 0x5678;
    assert_int_equal(guest_run(w, &s), -1);
    assert_int_equal(s.gpr[RDI], 0);
    assert_int_equal(s.gpr[RSP], TOP);
    assert_int_equal(s.gpr[RCX], 0x1234);
    assert_int_equal(guest_u64(w, FAR_PAGE + (last & PAGE_MASK) + 8), 0x5678);
    world_free(w);
}

static void test_far_apart(void **state)
{
#define RUN(n) far_apart(n, far_apart_##n, GUEST_ASM_LEN(far_apart_##n));
    NUMBERS(RUN)
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_far_apart)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
