/*
 * A code cache that is full again and again of code that runs once, while other code stays hot: what is kept of that must
 * still be what the guest has written, and stores to it must be noticed.
 */
#include <string.h>

#include "engine/bt/hooks.h"
#include "kit.h"

#define PIECES 0x80000ull /* 256 of them, 128 bytes apart */
#define HOT 0x30003ull    /* MOV EAX, imm32; RET: the number is aligned, for the other vCPU */
#define DONE GUEST_DATA
#define ROUNDS 150000u
#define PATCHES 4096u     /* rounds from one store to the hot code to the next */
#define INSNS 40u         /* of a piece, beside two */
#define THRESHOLD 32      /* what runs once stays interpreted */

/* Gives a piece the round's number, runs it, and changes and runs the hot code now and then: RBP counts what was wrong. */
GUEST_ASM(maker,
          "1: mov esi, r13d; and esi, 255; shl esi, 7; add esi, 0x80000; mov [rsi + 1], r13d\n"
          "call rsi; sub eax, r13d; cmp eax, 40; je 2f; inc ebp\n"
          "2: call rdi; cmp eax, ebx; je 3f; inc ebp\n"
          "3: test r13d, 0xfff; jnz 4f; mov ebx, r13d; mov [rdi + 1], ebx; call rdi; cmp eax, ebx; je 4f; inc ebp\n"
          "4: inc r13d; cmp r13d, r12d; jne 1b; mov dword ptr [r14], 1; hlt");
/* The number that the hot code gives never gets less. */
GUEST_ASM(reader, "1: call rdi; cmp eax, ebx; jae 2f; inc ebp\n"
                  "2: mov ebx, eax; cmp dword ptr [r14], 0; je 1b; call rdi; hlt");

static void start(struct world *w, unsigned cpu, uint64_t at)
{
    struct cpu_state s;

    kit_state(&s, cpu, at, false);
    s.gpr[RDI] = HOT;
    s.gpr[R12] = ROUNDS;
    s.gpr[R14] = DONE;
    assert_int_equal(world_set(w, cpu, &s), 0);
}

static void put_pieces(struct world *w)
{
    uint8_t piece[5 + 2 * INSNS + 1];

    memset(piece, 0, sizeof(piece));
    piece[0] = 0xb8; /* mov eax, imm32 */
    for (unsigned k = 0; k < INSNS; k++) {
        piece[5 + 2 * k] = 0xff; /* inc eax */
        piece[6 + 2 * k] = 0xc0;
    }
    piece[sizeof(piece) - 1] = 0xc3;
    for (unsigned k = 0; k < 256; k++)
        kit_bytes(w, PIECES + 128 * k, piece, sizeof(piece));
    kit_bytes(w, HOT, (const uint8_t[]){0xb8, 0, 0, 0, 0, 0xc3}, 6);
}

static void run(unsigned cpus)
{
    struct world *w = guest_new(cpus);
    bool bt = !strcmp(w->engine->name, "bt");
    struct cpu_state s;

    if (bt)
        bt_set_threshold(&w->vm, THRESHOLD);
    put_pieces(w);
    kit_put(w, GUEST_CODE, maker);
    kit_put(w, GUEST_CODE + 0x1000, reader);
    for (unsigned k = 0; k < cpus; k++)
        start(w, k, GUEST_CODE + 0x1000 * k);
    kit_run_all(w, NULL, NULL);
    for (unsigned k = 0; k < cpus; k++) {
        world_get(w, k, &s);
        assert_int_equal(s.gpr[RBP], 0);
    }
    if (cpus > 1)
        assert_int_equal(s.gpr[RAX], (ROUNDS - 1) / PATCHES * PATCHES);
    if (bt) {
        struct bt_stats st;

        bt_get_stats(&w->vm, &st);
        assert_true(st.sweeps);
        assert_int_equal(st.flushes, 0);
    }
    world_free(w);
}

static void test_hot_code_stays(void **state) { run(1); }
static void test_while_another_runs_it(void **state) { run(2); }

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hot_code_stays),
        cmocka_unit_test(test_while_another_runs_it),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
