/* The run loop: budgets and counts, kicks, events, interrupts in the middle of strings, the dirty
 * log, state. */
#include <pthread.h>
#include <unistd.h>

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

/* ---- counting ---- */

/* Without a budget the number is a statistic; the interpreter's is exact. */
static void assert_count(struct world *w, uint64_t before, uint64_t count)
{
    if (w->engine == &interp_engine)
        assert_int_equal(w->vcpu[0].insns - before, count);
}

/* Loops, calls, branches not taken, a store into the running block: how often each instruction
 * retires. */
static void put_counted(struct world *w)
{
    guest_code(w, GUEST_CODE, 0xb9, LE32(10), /*  1: mov ecx, 10 */
               0x31, 0xdb,                    /*  1: xor ebx, ebx */
               0xe8, LE32(22),                /* 10: l: call f */
               0x85, 0xdb,                    /* 10: test ebx, ebx */
               0x74, 0x05,                    /* 10: jz (never) */
               0xff, 0xc9,                    /* 10: dec ecx */
               0x75, 0xf3,                    /* 10: jnz l */
               0x90,                          /*  1: nop */
               0xc6, 0x05, LE32(1), 3, /*  1: mov byte [rip + 1], 3: into the next instruction */
               0xb9, LE32(4),          /*  1: mov ecx, 3 now */
               0xf4,                   /*  1: hlt */
               0xff, 0xc3,             /* 10: f: inc ebx */
               0xc3);                  /* 10: ret */
}
#define COUNTED (2 + 10 * 7 + 4)

static void test_counts(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    for (int plain = 0; plain < 2; plain++) {
        if (!test_engine_other(&w->vcpu[0], plain) && plain)
            break;
        for (unsigned k = 0; k < 3; k++) {
            uint64_t before = w->vcpu[0].insns;

            put_counted(w);
            guest_state(&s);
            assert_int_equal(guest_run(w, &s), -1);
            assert_int_equal(s.gpr[RCX], 3);
            assert_count(w, before, COUNTED);
        }
    }
}

/* A fault does not count, what came before it in its block does. */
static void test_counts_with_faults(void **state)
{
    struct world *w = *state;
    struct cpu_state s;
    uint64_t before = w->vcpu[0].insns;

    /* nop; inc eax; mov rbx, [not mapped] -> handler: hlt */
    guest_code(w, GUEST_CODE, 0x90, 0xff, 0xc0, 0x48, 0x8b, 0x1f, 0x90, HLT);
    guest_state(&s);
    s.gpr[RDI] = GUEST_WINDOW + 0x5000;
    assert_int_equal(guest_run(w, &s), X_PF);
    assert_count(w, before, 3);
    /* nop; ret to nowhere */
    before = w->vcpu[0].insns;
    guest_code(w, GUEST_CODE, 0x90, 0xc3);
    guest_state(&s);
    guest_put64(w, GUEST_STACK, 1ull << 63);
    assert_int_equal(guest_run(w, &s), X_GP);
    assert_count(w, before, 2);
}

static void test_budget(void **state)
{
    struct world *w = *state;
    struct cpu_state s, t;

    for (uint64_t slice = 1; slice < 12; slice++) {
        uint64_t total = 0;
        enum stop stop;

        put_counted(w);
        guest_state(&s);
        world_set(w, 0, &s);
        do {
            uint64_t before = w->vcpu[0].insns;

            stop = world_run(w, 0, slice);
            total += w->vcpu[0].insns - before;
            if (stop == STOP_BUDGET)
                assert_int_equal(w->vcpu[0].insns - before, slice);
            /* State goes out and in without a trace. */
            world_get(w, 0, &s);
            assert_int_equal(world_set(w, 0, &s), 0);
            world_get(w, 0, &t);
            assert_memory_equal(&s, &t, sizeof(s));
        } while (stop == STOP_BUDGET);
        assert_int_equal(stop, STOP_HLT);
        assert_int_equal(total, COUNTED);
        assert_int_equal(s.gpr[RCX], 3);
        assert_int_equal(s.gpr[RBX], 10);
    }
}

/* A handler that faults for ever uses up its budget. */
static void test_budget_of_endless_faults(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    if (world_on_hardware(w)) /* a handler is no step of its own */
        skip();
    /* #UD's handler begins with ud2, on a stack that starts over each time. */
    guest_put64(w, 0x3000 + 36, GUEST_STACK);
    guest_code(w, GUEST_CODE, 0x0f, 0x0b);
    guest_put64(w, 0x2000 + X_UD * 16,
                (GUEST_CODE & 0xffff) | 8ull << 16 | (0x8e01ull | (GUEST_CODE >> 16) << 16) << 32);
    guest_state(&s);
    world_set(w, 0, &s);
    assert_int_equal(world_run(w, 0, 1000), STOP_BUDGET);
    assert_int_equal(w->vcpu[0].insns, 0);
}

/* One instruction of a repeated string counts once, when it is done. */
static void test_budget_of_strings(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    guest_code(w, GUEST_CODE, 0xf3, 0xaa, 0x90, HLT);
    guest_state(&s);
    s.gpr[RDI] = GUEST_DATA;
    s.gpr[RCX] = 10;
    world_set(w, 0, &s);
    assert_int_equal(world_run(w, 0, 1), STOP_BUDGET);
    world_get(w, 0, &s);
    assert_int_equal(s.gpr[RCX], 0);
    assert_int_equal(s.rip, GUEST_CODE + 2);
    assert_int_equal(w->vcpu[0].insns, 1);
}

/* ---- kicks ---- */

static void *kicker(void *arg)
{
    struct world *w = arg;

    usleep(2000);
    vcpu_post(&w->vcpu[0], VCPU_EV_KICK);
    return NULL;
}

/* Loops of every kind notice a kick: without it run() would not come back and the test would not
 * end. */
static void test_kick(void **state)
{
    static const struct {
        uint8_t n, code[16];
    } loop[] = {
        {2, {0xeb, 0xfe}},                                  /* jmp $ */
        {4, {0x31, 0xc0, 0x74, 0xfc}},                      /* xor eax, eax; jz back */
        {4, {0x31, 0xc9, 0xe3, 0xfc}},                      /* xor ecx, ecx; jrcxz back */
        {5, {0x83, 0xc9, 0xff, 0xe2, 0xfb}},                /* or ecx, -1; loop back */
        {5, {0xe8, 0xfb, 0xff, 0xff, 0xff}},                /* call $, until the stack ends */
        {2, {0xff, 0xe2}},                                  /* jmp rdx, which is here */
        {6, {0x52, 0xc3, 0x90, 0x90, 0x90, 0x90}},          /* push rdx; ret */
        {9, {0x48, 0x89, 0xf7, 0xb9, 0, 0, 0, 0x40, 0xf3}}, /* rep of 1 GiB: completed below */
        {4, {0xf3, 0x90, 0xeb, 0xfc}},                      /* pause; jmp back */
        {4, {0xe4, 0x80, 0xeb, 0xfc}},                      /* in al, 80h; jmp back */
    };
    struct world *w = *state;
    struct cpu_state s;

    for (uint64_t la = GUEST_WINDOW; la < GUEST_WINDOW + 512 * PAGE_SIZE; la += PAGE_SIZE)
        guest_map(w, la, 0x80000 | PTE_RW);
    for (int plain = 0; plain < 2; plain++)
        for (unsigned k = 0; k < ARRAY_LEN(loop); k++) {
            pthread_t id;

            if (!test_engine_other(&w->vcpu[0], plain) && plain)
                break;
            world_write(w, GUEST_CODE, loop[k].code, loop[k].n);
            if (loop[k].n == 9) /* movs within two pages, again and again */
                guest_code(w, GUEST_CODE + 9, 0xa4, 0xeb, 0xf4);
            guest_state(&s);
            s.gpr[RDX] = GUEST_CODE;
            s.gpr[RSI] = GUEST_WINDOW;
            s.gpr[RSP] = GUEST_WINDOW + 512 * PAGE_SIZE;
            world_set(w, 0, &s);
            alarm(60);
            assert_int_equal(pthread_create(&id, NULL, kicker, w), 0);
            enum stop stop = world_run(w, 0, 0);
            pthread_join(id, NULL);
            alarm(0);
            /* The stack or the string may come to its end first. */
            if (stop != STOP_KICK) {
                world_get(w, 0, &s);
                assert_true(k == 4 || k == 7);
                assert_int_equal(stop, STOP_HLT);
                atomic_store(&w->vcpu[0].events, 0);
            }
        }
}

static void test_kick_before_run(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    guest_code(w, GUEST_CODE, 0x90, HLT);
    guest_state(&s);
    world_set(w, 0, &s);
    vcpu_post(&w->vcpu[0], VCPU_EV_KICK);
    assert_int_equal(world_run(w, 0, 0), STOP_KICK);
    assert_int_equal(w->vcpu[0].insns, 0);
    assert_int_equal(world_run(w, 0, 0), STOP_HLT);
}

/* ---- interrupts ---- */

/* An interrupt in the middle of a string instruction: RIP is its own, RF is in the image, and IRET
 * goes on. */
static void test_interrupt_in_string(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    /* sti; nop; rep outsb to the port that raises what is written to it */
    guest_code(w, GUEST_CODE, 0xfb, 0x90, 0xf3, 0x6e, HLT);
    guest_state(&s);
    s.gpr[RDX] = PORT_IRQ;
    s.gpr[RSI] = GUEST_DATA;
    s.gpr[RCX] = 5;
    world_write(w, GUEST_DATA, (uint8_t[]){0x40, 0x41, 0x42, 0x43, 0x44}, 5);
    assert_int_equal(guest_run(w, &s), 0x40);
    assert_int_equal(s.gpr[RCX], 4);
    assert_int_equal(s.gpr[RSI], GUEST_DATA + 1);
    assert_int_equal(guest_u64(w, s.gpr[RSP]), GUEST_CODE + 2);
    assert_true(guest_u64(w, s.gpr[RSP] + 16) & FL_RF);
    /* iretq; it goes on with the next byte */
    guest_code(w, s.rip, 0x48, 0xcf);
    assert_int_equal(guest_run(w, &s), 0x41);
    assert_int_equal(s.gpr[RCX], 3);
}

static void test_wait_for_sipi(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    guest_state(&s);
    s.activity = CPU_WAIT_SIPI;
    world_set(w, 0, &s);
    vcpu_post(&w->vcpu[0], VCPU_EV_NMI);
    assert_int_equal(world_run(w, 0, 0), STOP_HLT);
    world_get(w, 0, &s);
    assert_int_equal(s.activity, CPU_WAIT_SIPI);
    assert_int_equal(s.rip, GUEST_CODE);
    /* The NMI is lost, and does not come when the processor starts. */
    atomic_store(&w->vcpu[0].sipi, 0x12);
    vcpu_post(&w->vcpu[0], VCPU_EV_SIPI | VCPU_EV_KICK);
    assert_int_equal(world_run(w, 0, 0), STOP_KICK);
    world_get(w, 0, &s);
    assert_int_equal(s.activity, CPU_RUNNING);
    assert_int_equal(s.seg[CS].sel, 0x1200);
    assert_int_equal(s.rip, 0);
    assert_int_equal(s.nmi_pending, 0);
}

static void test_init(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    /* The boot processor starts at FFFF0H in memory that is not there: FFH FFH is #UD, and so on to
     * the triple fault: halt it by budget instead. */
    guest_state(&s);
    world_set(w, 0, &s);
    vcpu_post(&w->vcpu[0], VCPU_EV_INIT);
    vcpu_post(&w->vcpu[0], VCPU_EV_KICK);
    assert_int_equal(world_run(w, 0, 0), STOP_KICK);
    world_get(w, 0, &s);
    assert_int_equal(s.rip, 0xfff0);
    assert_int_equal(s.seg[CS].base, 0xffff0000);
    assert_int_equal(s.cr0 & (CR0_PE | CR0_PG), 0);
    assert_int_equal(s.gpr[RDX], cpuid_signature(&w->policy));
}

/* A triple fault is in the state, and only INIT gets out of it. */
static void test_shutdown(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    guest_code(w, GUEST_CODE, 0x0f, 0x0b);
    guest_state(&s);
    s.idtr.limit = 0;
    world_set(w, 0, &s);
    assert_int_equal(world_run(w, 0, 0), STOP_SHUTDOWN);
    world_get(w, 0, &s);
    assert_int_equal(s.activity, CPU_SHUTDOWN);
    assert_int_equal(s.rip, GUEST_CODE);
    assert_int_equal(world_run(w, 0, 0), STOP_SHUTDOWN);
    assert_int_equal(world_set(w, 0, &s), 0);
    assert_int_equal(world_run(w, 0, 0), STOP_SHUTDOWN);
    vcpu_post(&w->vcpu[0], VCPU_EV_INIT);
    vcpu_post(&w->vcpu[0], VCPU_EV_KICK);
    assert_int_equal(world_run(w, 0, 0), STOP_KICK);
    world_get(w, 0, &s);
    assert_int_equal(s.activity, CPU_RUNNING);
}

/* ---- segments ---- */

/* Code other than 64-bit: the same IP in another CS, and under another limit, is other code. */
static void test_cs_changes(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    cpu_state_reset(&s);
    s.seg[CS].sel = 0x1000;
    s.seg[CS].base = GUEST_CODE;
    s.seg[SS].base = GUEST_DATA;
    s.seg[SS].sel = 0x2000;
    s.gpr[RSP] = 0x8000;
    s.rip = 0;
    /* 1000:0: call 3000:0; call 4000:0; call 3000:0; hlt. There: add bx, 1 / 16; retf */
    guest_code(w, GUEST_CODE, 0x9a, LE16(0), LE16(0x3000), 0x9a, LE16(0), LE16(0x4000), 0x9a,
               LE16(0), LE16(0x3000), HLT);
    guest_code(w, 0x30000, 0x83, 0xc3, 0x01, 0xcb);
    guest_code(w, 0x40000, 0x83, 0xc3, 0x10, 0xcb);
    assert_int_equal(guest_run(w, &s), -1);
    assert_int_equal(s.gpr[RBX], 0x12);
}

/* What ran under a long limit faults under a shorter one, and runs again under the long one. */
static void test_cs_limit(void **state)
{
    struct world *w = *state;
    struct cpu_state s, was;

    for (unsigned v = 0; v < 256; v++)
        guest_put64(w, v * 4, (0xc000u >> 4) << 16 | v * 4);
    cpu_state_reset(&was);
    was.seg[CS].sel = 0x1000;
    was.seg[CS].base = GUEST_CODE;
    was.seg[SS].base = GUEST_DATA;
    was.gpr[RSP] = 0x8000;
    was.rip = 0x100;
    guest_code(w, GUEST_CODE + 0x100, 0x40, 0xb8, LE16(0x1234),
               HLT); /* inc ax; mov ax, 1234h; hlt */
    for (unsigned k = 0; k < 4; k++) {
        s = was;
        if (k % 2 == 0)
            s.seg[CS].limit =
                k ? 0x100 : 0x102; /* in the middle of the mov, or straight before it */
        int v = guest_run(w, &s);

        if (k % 2 == 0) {
            assert_int_equal(v, X_GP);
            assert_int_equal((uint16_t)guest_u64(w, GUEST_DATA + (uint16_t)s.gpr[RSP]), 0x101);
        } else {
            assert_int_equal(v, -1);
            assert_int_equal(s.gpr[RAX], 0x1234);
        }
    }
}

/* ---- the dirty log ---- */

static bool dirty(struct world *w, uint64_t gpa)
{
    uint64_t bits[WORLD_RAM / PAGE_SIZE / 64] = {0};

    assert_int_equal(w->engine->dirty_fetch(&w->vm, w->ram, bits), 0);
    return bits[gpa >> 18] >> (gpa >> 12 & 63) & 1;
}

static void test_dirty_log(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    guest_state(&s);
    for (unsigned k = 0; k < 3; k++) {
        s.rip = GUEST_CODE;
        s.gpr[RDI] = GUEST_DATA;
        guest_code(w, GUEST_CODE, 0x89, 0x07, 0x8b, 0x07, HLT); /* mov [rdi], eax; mov eax, [rdi] */
        assert_int_equal(guest_run(w, &s), -1);
        assert_true(dirty(w, GUEST_DATA));
        assert_false(dirty(w, GUEST_DATA));
    }
    /* The log is fetched while the translation that lets stores through is hot. */
    guest_code(w, GUEST_CODE, 0x89, 0x07, 0xe6, PORT_STOP, 0x89, 0x07, HLT);
    s.rip = GUEST_CODE;
    s.activity = CPU_RUNNING;
    world_set(w, 0, &s);
    assert_int_equal(world_run(w, 0, 0), STOP_KICK);
    assert_true(dirty(w, GUEST_DATA));
    assert_int_equal(world_run(w, 0, 0), STOP_HLT);
    assert_true(dirty(w, GUEST_DATA));
    /* Reading does not mark. */
    guest_code(w, GUEST_CODE, 0x8b, 0x07, HLT);
    s.rip = GUEST_CODE;
    s.gpr[RDI] = GUEST_DATA;
    assert_int_equal(guest_run(w, &s), -1);
    assert_false(dirty(w, GUEST_DATA));
}

/* ---- time and state ---- */

static void test_tsc_writes_are_told(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    /* wrmsr IA32_TSC, then IA32_TSC_ADJUST */
    guest_code(w, GUEST_CODE, 0xb9, LE32(0x10), 0xb8, LE32(1000), 0x31, 0xd2, 0x0f, 0x30, HLT);
    guest_state(&s);
    assert_int_equal(guest_run(w, &s), -1);
    assert_int_equal(w->tsc_moves, 1);
    assert_int_equal(w->tsc_moved, 1000 - clock_tsc(&w->clock));
    assert_int_equal(s.tsc_offset, w->tsc_moved);
    w->policy.feature[CPUF_TSCADJUST / 64] |= BIT(CPUF_TSCADJUST % 64);
    guest_code(w, GUEST_CODE, 0xb9, LE32(0x3b), 0xb8, LE32(5000), 0x31, 0xd2, 0x0f, 0x30, HLT);
    s.rip = GUEST_CODE;
    assert_int_equal(guest_run(w, &s), -1);
    assert_int_equal(w->tsc_moves, 2);
    assert_int_equal(w->tsc_moved, s.tsc_offset);
}

static void test_impossible_states_are_refused(void **state)
{
    struct world *w = *state;
    struct cpu_state s, was;

    guest_state(&was);
    world_set(w, 0, &was);
    s = was;
    s.seg[CS].attr |= SEG_DB; /* with L */
    assert_true(world_set(w, 0, &s) < 0);
    s = was;
    s.cr3 |= 1ull << 51; /* beyond this processor's physical addresses */
    assert_true(world_set(w, 0, &s) < 0);
    s = was;
    w->policy.feature[CPUF_SMAP / 64] &= ~BIT(CPUF_SMAP % 64);
    s.cr4 |= CR4_SMAP;
    assert_true(world_set(w, 0, &s) < 0);
    world_get(w, 0, &s);
    assert_memory_equal(&s, &was, sizeof(s));
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_counts),
        T(test_counts_with_faults),
        T(test_budget),
        T(test_budget_of_endless_faults),
        T(test_budget_of_strings),
        T(test_kick),
        T(test_kick_before_run),
        T(test_interrupt_in_string),
        T(test_wait_for_sipi),
        T(test_init),
        T(test_shutdown),
        T(test_cs_changes),
        T(test_cs_limit),
        T(test_dirty_log),
        T(test_tsc_writes_are_told),
        T(test_impossible_states_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
