/*
 * Several vCPUs in as many threads: one patches code, moves memory or fills the code cache while
 * the others run; locked operations count. Each test is a handshake through guest memory, so it
 * depends on order alone, not on time.
 */
#include <pthread.h>
#include <unistd.h>

#include "guest.h"

#define FLAG 0x20000ull  /* the round */
#define ACK 0x20100ull   /* each runner's last round, 8 bytes apart */
#define WRONG 0x20200ull /* how often a runner saw something old */
#define COUNTER 0x20300ull
#define SUB 0x30003ull /* mov eax, imm32 with an aligned immediate; ret */
#define RUNNER 0x12000ull
#define HANG_S 200

struct thread {
    pthread_t id;
    struct world *w;
    unsigned cpu;
    enum stop stop;
};

static void *thread_main(void *arg)
{
    struct thread *t = arg;

    do
        t->stop = world_run(t->w, t->cpu, 0);
    while (t->stop == STOP_PAUSE);
    return NULL;
}

/* Runs all vCPUs until each has halted. */
static void run_all(struct world *w)
{
    struct thread t[WORLD_CPUS];

    alarm(HANG_S);
    for (unsigned k = 0; k < w->vm.nvcpu; k++) {
        t[k] = (struct thread){.w = w, .cpu = k};
        assert_int_equal(pthread_create(&t[k].id, NULL, thread_main, &t[k]), 0);
    }
    for (unsigned k = 0; k < w->vm.nvcpu; k++)
        pthread_join(t[k].id, NULL);
    alarm(0);
    for (unsigned k = 0; k < w->vm.nvcpu; k++) {
        struct cpu_state s;

        world_get(w, k, &s);
        if (t[k].stop != STOP_HLT || s.cr2)
            print_message("vcpu %u: stop %d rip %#llx cr2 %#llx\n", k, t[k].stop,
                          (unsigned long long)s.rip, (unsigned long long)s.cr2);
        assert_int_equal(t[k].stop, STOP_HLT);
        assert_int_equal(s.cr2, 0);
    }
}

static void start_at(struct world *w, unsigned cpu, uint64_t rip, uint64_t rounds, uint64_t target)
{
    struct cpu_state s;

    guest_state(&s);
    s.rip = rip;
    s.gpr[RAX] = s.gpr[RBP] = 0;
    s.gpr[RCX] = w->vm.nvcpu - 1;
    s.gpr[RBX] = target;
    s.gpr[RSI] = FLAG;
    s.gpr[RDI] = cpu ? ACK + (cpu - 1) * 8 : ACK;
    s.gpr[R8] = rounds;
    s.gpr[R9] = WRONG;
    s.gpr[RSP] = GUEST_STACK - cpu * 0x800;
    assert_int_equal(world_set(w, cpu, &s), 0);
}

/* vCPU 0: change something with the code given, which finds the round in EAX; tell the others; wait
 * for them all. */
static void put_leader(struct world *w, const uint8_t *change, size_t n)
{
    static const uint8_t rest[] = {
        0x89, 0x06,       /* mov [rsi], eax */
        0x31, 0xd2,       /* xor edx, edx */
        0xf3, 0x90,       /* next: pause */
        0x39, 0x04, 0xd7, /* cmp [rdi + rdx * 8], eax */
        0x75, 0xf9,       /* jne next */
        0xff, 0xc2,       /* inc edx */
        0x39, 0xca,       /* cmp edx, ecx */
        0x72, 0xf3,       /* jb next */
        0x44, 0x39, 0xc0, /* cmp eax, r8d */
    };
    size_t at = 2;

    guest_code(w, GUEST_CODE, 0xff, 0xc0); /* inc eax */
    world_write(w, GUEST_CODE + at, change, n);
    at += n;
    world_write(w, GUEST_CODE + at, rest, sizeof(rest));
    at += sizeof(rest);
    guest_code(w, GUEST_CODE + at, 0x0f, 0x82, LE32((uint32_t) - (int32_t)(at + 6)),
               HLT); /* jb start */
}

/* The others: wait for the next round, call [rbx], and compare what it returns with the round. */
static void put_runner(struct world *w)
{
    guest_code(w, RUNNER, 0xff, 0xc5,  /* inc ebp */
               0xf3, 0x90,             /* wait: pause */
               0x39, 0x2e,             /* cmp [rsi], ebp */
               0x75, 0xfa,             /* jne wait */
               0xff, 0xd3,             /* call rbx */
               0x39, 0xe8,             /* cmp eax, ebp */
               0x74, 0x04,             /* je right */
               0xf0, 0x41, 0xff, 0x01, /* lock inc dword [r9] */
               0x89, 0x2f,             /* right: mov [rdi], ebp */
               0x44, 0x39, 0xc5,       /* cmp ebp, r8d */
               0x72, 0xe7,             /* jb start */
               HLT);
}

static void lead_and_run(unsigned ncpu, unsigned rounds, const uint8_t *change, size_t n)
{
    struct world *w = guest_new(ncpu);

    guest_code(w, SUB, MOV_EAX(0), RET);
    put_leader(w, change, n);
    put_runner(w);
    start_at(w, 0, GUEST_CODE, rounds, SUB + 1);
    for (unsigned k = 1; k < ncpu; k++)
        start_at(w, k, RUNNER, rounds, SUB);
    run_all(w);
    assert_int_equal((uint32_t)guest_u64(w, WRONG), 0);
    assert_int_equal((uint32_t)guest_u64(w, FLAG), rounds);
    world_free(w);
}

/* Every way to store, since each finds code behind its target in its own way. */
static void test_patch(void **state)
{
    static const struct {
        uint8_t n, code[16];
    } how[] = {
        {2, {0x89, 0x03}},             /* mov [rbx], eax */
        {2, {0xff, 0x03}},             /* inc dword [rbx] */
        {3, {0xf0, 0xff, 0x03}},       /* lock inc dword [rbx] */
        {4, {0x89, 0xc2, 0x87, 0x13}}, /* mov edx, eax; xchg [rbx], edx */
        {12,
         {0x57, 0x51, 0x48, 0x89, 0xdf, 0x31, 0xc9, 0xff, 0xc1, 0xf3, 0xab,
          0x59}},                                              /* rep stosd; see below */
        {8, {0x66, 0x0f, 0x6e, 0xc0, 0x66, 0x0f, 0x7e, 0x03}}, /* movd through xmm0 */
        {3, {0x0f, 0xc3, 0x03}},                               /* movnti */
    };

    for (unsigned k = 0; k < ARRAY_LEN(how); k++) {
        uint8_t code[16];

        memcpy(code, how[k].code, sizeof(code));
        code[how[k].n] = 0x5f; /* pop rdi */
        lead_and_run(2, 200, code, how[k].n + (code[0] == 0x57));
    }
}

static void test_patch_many(void **state)
{
    static const uint8_t mov[] = {0x89, 0x03};

    lead_and_run(3, 40, mov, sizeof(mov));
    lead_and_run(4, 25, mov, sizeof(mov));
}

/* Code that never ran lies in a frame that others have been storing to: each round in a new frame.
 */
static void test_first_code_in_written_frames(void **state)
{
    struct world *w = guest_new(2);
    enum { ROUNDS = 100 };

    /* vCPU 0 writes nop; nop; nop; mov eax, round; ret to frame 0x40000 + round * 0x1000 in several
     * stores, of which all but the first go straight through its TLB. */
    static const uint8_t change[] = {
        0x89, 0xc2,                                  /* mov edx, eax */
        0xc1, 0xe2, 0x0c,                            /* shl edx, 12 */
        0x81, 0xc2, LE32(0x40000),                   /* add edx, 0x40000 */
        0xc6, 0x02, 0x90,                            /* mov byte [rdx], nop */
        0xc6, 0x42, 0x08,          0xc3,             /* mov byte [rdx + 8], ret */
        0xc6, 0x42, 0x03,          0xb8,             /* mov byte [rdx + 3], b8 */
        0x66, 0xc7, 0x42,          0x01, 0x90, 0x90, /* mov word [rdx + 1], nop nop */
        0x89, 0x42, 0x04,                            /* mov [rdx + 4], eax */
    };
    put_leader(w, change, sizeof(change));
    put_runner(w);
    /* The runner calls a stub that goes to the round's frame. */
    guest_code(w, SUB, 0x89, 0xea, 0xc1, 0xe2, 0x0c, 0x81, 0xc2, LE32(0x40000), JMP_RDX);
    start_at(w, 0, GUEST_CODE, ROUNDS, 0);
    start_at(w, 1, RUNNER, ROUNDS, SUB);
    run_all(w);
    assert_int_equal((uint32_t)guest_u64(w, WRONG), 0);
    world_free(w);
}

/* vCPU 0 moves memory about; the others must read and run what is there now. */
static void test_map_moves(void **state)
{
    /* add al, 0x40; out alias, al; sub al, 0x40 */
    static const uint8_t move[] = {0x04, 0x40, 0xe6, PORT_ALIAS, 0x2c, 0x40};
    struct world *w = guest_new(3);
    enum { ROUNDS = 60 };

    for (uint32_t k = 1; k <= ROUNDS; k++) /* page k returns k */
        guest_code(w, 0x40000 + k * PAGE_SIZE, MOV_EAX(k), RET);
    guest_map(w, GUEST_WINDOW, WORLD_ALIAS | PTE_RW);
    put_leader(w, move, sizeof(move));
    put_runner(w);
    start_at(w, 0, GUEST_CODE, ROUNDS, 0);
    for (unsigned k = 1; k < 3; k++)
        start_at(w, k, RUNNER, ROUNDS, GUEST_WINDOW);
    run_all(w);
    assert_int_equal((uint32_t)guest_u64(w, WRONG), 0);
    assert_int_equal(w->moves, ROUNDS);
    world_free(w);
}

/* The cache is emptied several times under the feet of vCPUs that run from it. */
static void test_cache_overflows(void **state)
{
    struct world *w = guest_new(3);
    struct cpu_state s;

    /* As in code.c: makes code without end. One works in the upper half of memory, one in the
     * lower. */
    for (unsigned k = 0; k < 2; k++) {
        uint64_t at = GUEST_CODE + k * 0x1000;
        uint32_t base = k ? 0xc0000 : 0x80000;

        guest_code(w, at, 0xb9, LE32(300000), 0x49, 0x83, 0xc0, 0x10, 0x49, 0x81, 0xe0,
                   LE32(0x3fff0), 0x49, 0x8d, 0x90, LE32(base), 0xc6, 0x02, 0xb8, 0x89, 0x4a, 0x01,
                   0xc6, 0x42, 0x05, 0xc3, CALL_RDX, 0x48, 0x01, 0xc3, 0xff, 0xc9, 0x75, 0xdb, HLT);
        start_at(w, k, at, 0, 0);
    }
    /* The third one loops through linked blocks: l: call f; dec ecx; jnz l; hlt; f: add rbx, 1; jmp
     * g; g: ret */
    guest_code(w, 0x13000, 0xb9, LE32(3000000), 0xe8, LE32(5), 0xff, 0xc9, 0x75, 0xf7, HLT, 0x48,
               0x83, 0xc3, 0x01, 0xeb, 0x00, RET);
    start_at(w, 2, 0x13000, 0, 0);
    run_all(w);
    for (unsigned k = 0; k < 3; k++) {
        world_get(w, k, &s);
        assert_int_equal(s.gpr[RBX], k < 2 ? 300000ull * 300001 / 2 : 3000000);
    }
    world_free(w);
}

/* Every locked operation, aligned, across a cache line, and across two pages that are not
 * neighbours; in a frame with code and in one without. */
static void test_locked_counts(void **state)
{
    struct world *w = guest_new(3);
    enum { N = 4000 };
    const uint64_t split = GUEST_WINDOW + 0xffe;

    guest_map(w, GUEST_WINDOW, 0x50000 | PTE_RW);
    guest_map(w, GUEST_WINDOW + 0x1000, 0x70000 | PTE_RW);
    for (unsigned k = 0; k < 3; k++) {
        const uint64_t at = GUEST_CODE + k * 0x400;

        guest_code(w, at, MOV_RSI(COUNTER), MOV_RDI(split), MOV_RDX(GUEST_CODE + 0xf00), 0xb9,
                   LE32(N), 0xf0, 0xff, 0x06,    /* l: lock inc dword [rsi] */
                   0xf0, 0x83, 0x46, 0x3e, 0x01, /* lock add dword [rsi + 62], 1 */
                   0xb8, LE32(1), 0xf0, 0x0f, 0xc1, 0x46,
                   0x08,                         /* mov eax, 1; lock xadd [rsi + 8], eax */
                   0xf0, 0xff, 0x02,             /* lock inc dword [rdx]: among code */
                   0x8b, 0x46, 0x10,             /* mov eax, [rsi + 16] */
                   0x8d, 0x58, 0x01,             /* again: lea ebx, [rax + 1] */
                   0xf0, 0x0f, 0xb1, 0x5e, 0x10, /* lock cmpxchg [rsi + 16], ebx */
                   0x75, 0xf6,                   /* jne again */
                   0xf6, 0xc1, 0x1f, 0x75, 0x03, /* every 32nd time: test cl, 31; jnz over */
                   0xf0, 0xff, 0x07,             /* lock inc dword [rdi]: split */
                   0xff, 0xc9, 0x75, 0xd2,       /* over: dec ecx; jnz l */
                   HLT);
        start_at(w, k, at, 0, 0);
    }
    run_all(w);
    assert_int_equal((uint32_t)guest_u64(w, COUNTER), 3 * N);
    assert_int_equal((uint32_t)guest_u64(w, COUNTER + 62), 3 * N);
    assert_int_equal((uint32_t)guest_u64(w, COUNTER + 8), 3 * N);
    assert_int_equal((uint32_t)guest_u64(w, COUNTER + 16), 3 * N);
    assert_int_equal((uint32_t)guest_u64(w, GUEST_CODE + 0xf00), 3 * N);

    uint32_t low = (uint32_t)(guest_u64(w, 0x50ff8) >> 48), high = (uint16_t)guest_u64(w, 0x70000);

    assert_int_equal(low | high << 16, 3 * (N / 32));
    world_free(w);
}

/* A thread that is no vCPU writes code and changes the map while vCPUs run. */
static void test_device_thread(void **state)
{
    struct world *w = guest_new(2);
    struct thread t[2];
    unsigned wrong = 0;

    guest_code(w, SUB, MOV_EAX(0), RET);
    put_runner(w);
    for (unsigned k = 0; k < 2; k++) {
        start_at(w, k, RUNNER, 300, SUB);
        t[k] = (struct thread){.w = w, .cpu = k};
    }
    /* vCPU 0 acknowledges in its own slot too. */
    struct cpu_state s;
    world_get(w, 0, &s);
    s.gpr[RDI] = ACK + 8;
    world_set(w, 0, &s);
    alarm(HANG_S);
    for (unsigned k = 0; k < 2; k++)
        assert_int_equal(pthread_create(&t[k].id, NULL, thread_main, &t[k]), 0);
    for (uint32_t round = 1; round <= 300; round++) {
        struct region io = {.name = "bar", .kind = REGION_IO, .base = 0xb00000, .size = PAGE_SIZE};
        struct region *r = NULL;
        struct err e;

        if (round % 16 == 0)
            r = physmap_add(w->map, &io, &e);
        mem_write(w->map, SUB + 1, &round, 4);
        mem_write(w->map, FLAG, &round, 4);
        for (unsigned k = 0; k < 2; k++)
            while (__atomic_load_n((uint32_t *)(w->mem + ACK + k * 8), __ATOMIC_ACQUIRE) != round)
                usleep(1);
        if (r)
            wrong += physmap_del(w->map, r, &e) != 0;
    }
    for (unsigned k = 0; k < 2; k++)
        pthread_join(t[k].id, NULL);
    alarm(0);
    assert_int_equal(wrong, 0);
    assert_int_equal((uint32_t)guest_u64(w, WRONG), 0);
    world_free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_patch),
        cmocka_unit_test(test_patch_many),
        cmocka_unit_test(test_first_code_in_written_frames),
        cmocka_unit_test(test_map_moves),
        cmocka_unit_test(test_cache_overflows),
        cmocka_unit_test(test_locked_counts),
        cmocka_unit_test(test_device_thread),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
