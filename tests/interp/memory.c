/* Memory as instructions see it: pages crossed, refused or not there, ROM, I/O, read-modify-write,
 * strings, stacks. */
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

/* Both ways to run must do the same. */
#define BOTH_WAYS                                                                             \
    for (int plain_ = 0; plain_ < 2 && (test_engine_other(&w->vcpu[0], plain_) || !plain_); \
         plain_++)

/* ---- crossing pages ---- */

#define EDGE (GUEST_DATA + 0x1000) /* a page boundary; the page behind it is changed by tests */

static void fill(struct world *w, uint64_t gpa, size_t n, uint8_t first)
{
    uint8_t b[4096];

    for (size_t k = 0; k < n; k++)
        b[k] = (uint8_t)(first + k);
    world_write(w, gpa, b, n);
}

static void test_crossing(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    BOTH_WAYS
    {
        fill(w, EDGE - 8, 16, 1);
        /* mov rax, [rdi]; mov [rdi], rdx; add [rdi + 1], ebx; hlt */
        guest_code(w, GUEST_CODE, 0x48, 0x8b, 0x07, 0x48, 0x89, 0x17, 0x01, 0x5f, 0x01, HLT);
        guest_state(&s);
        s.gpr[RDI] = EDGE - 3;
        s.gpr[RDX] = 0x1020304050607080;
        s.gpr[RBX] = 0x01010101;
        assert_int_equal(guest_run(w, &s), -1);
        assert_int_equal(s.gpr[RAX], 0x0d0c0b0a09080706);
        assert_int_equal(guest_u64(w, EDGE - 3), 0x1020304151617180);
        assert_int_equal(guest_u64(w, EDGE - 8) & 0xff, 1);
    }
}

/* The second page is refused: nothing of the first is written, registers and flags stay. */
static void test_crossing_faults(void **state)
{
    static const struct {
        uint8_t n, code[8];
        uint32_t access;
    } how[] = {
        {3, {0x48, 0x89, 0x17}, PF_W},       /* mov [rdi], rdx */
        {2, {0x01, 0x17}, PF_W},             /* add [rdi], edx */
        {3, {0xf0, 0x01, 0x17}, PF_W},       /* lock add [rdi], edx */
        {2, {0xff, 0x0f}, PF_W},             /* dec dword [rdi] */
        {3, {0x48, 0x87, 0x17}, PF_W},       /* xchg [rdi], rdx */
        {4, {0x0f, 0xb1, 0x17, 0x90}, PF_W}, /* cmpxchg [rdi], edx */
        {4, {0x0f, 0xc7, 0x0f, 0x90}, PF_W}, /* cmpxchg8b [rdi] */
        {4, {0x0f, 0xa4, 0x17, 0x05}, PF_W}, /* shld [rdi], edx, 5 */
        {4, {0x0f, 0xba, 0x2f, 0x03}, PF_W}, /* bts dword [rdi], 3 */
        {3, {0xd1, 0x27, 0x90}, PF_W},       /* shl dword [rdi], 1 */
        {3, {0x48, 0x8b, 0x17}, 0},          /* mov rdx, [rdi] */
        {2, {0x3b, 0x17}, 0},                /* cmp edx, [rdi] */
        {3, {0x0f, 0x11, 0x07}, PF_W},       /* movups [rdi], xmm0 */
    };
    struct world *w = *state;
    struct cpu_state s, was;

    BOTH_WAYS for (unsigned present = 0; present < 2; present++)
    {
        guest_map(w, EDGE, present ? EDGE | PTE_P | PTE_U : 0);
        for (unsigned k = 0; k < ARRAY_LEN(how); k++) {
            if (present && !how[k].access)
                continue;
            fill(w, EDGE - 16, 16, 1);
            world_write(w, GUEST_CODE, how[k].code, how[k].n);
            guest_code(w, GUEST_CODE + how[k].n, HLT);
            guest_state(&s);
            s.gpr[RDI] = EDGE - 2;
            s.gpr[RDX] = 0x1111111111111111;
            s.rflags |= FL_CF | FL_ZF | FL_OF;
            was = s;
            assert_int_equal(guest_run(w, &s), X_PF);
            assert_int_equal(s.cr2, EDGE);
            assert_int_equal(guest_error(w, &s), how[k].access | (present ? PF_P : 0));
            assert_int_equal(guest_u64(w, EDGE - 8), 0x100f0e0d0c0b0a09);
            was.gpr[RSP] = s.gpr[RSP];
            assert_memory_equal(s.gpr, was.gpr, sizeof(s.gpr));
            assert_int_equal(s.rflags & FL_STATUS, was.rflags & FL_STATUS);
        }
    }
}

/* ---- ROM and I/O ---- */

static void test_rom(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    guest_map(w, GUEST_WINDOW, WORLD_ROM | PTE_RW);
    BOTH_WAYS
    {
        guest_put64(w, WORLD_ROM, 0x1122334455667788);
        /* mov [rdi], rdx; add qword [rdi], 1; mov rax, [rdi]; lock inc dword [rdi]; xchg [rdi],
         * rdx; hlt */
        guest_code(w, GUEST_CODE, 0x48, 0x89, 0x17, 0x48, 0x83, 0x07, 0x01, 0x48, 0x8b, 0x07, 0xf0,
                   0xff, 0x07, 0x48, 0x87, 0x17, HLT);
        guest_state(&s);
        s.gpr[RDI] = GUEST_WINDOW;
        s.gpr[RDX] = 5;
        assert_int_equal(guest_run(w, &s), -1);
        assert_int_equal(s.gpr[RAX], 0x1122334455667788);
        assert_int_equal(s.gpr[RDX], 0x1122334455667788);
        assert_int_equal(guest_u64(w, WORLD_ROM), 0x1122334455667788);
        assert_int_equal(w->nlog, 0);
    }
}

static void expect_io(struct world *w, unsigned n, enum io_kind kind, uint64_t addr, unsigned size)
{
    assert_in_range(n, 0, w->nlog - 1);
    assert_int_equal(w->log[n].kind, kind);
    assert_int_equal(w->log[n].addr, addr);
    assert_int_equal(w->log[n].size, size);
}

static void test_io_sizes(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    BOTH_WAYS
    {
        world_forget_io(w);
        /* mov al, [rdi]; mov [rdi + 2], ax; mov eax, [rdi + 4]; mov [rdi + 8], rax; movups [rdi +
         * 16], xmm0 */
        guest_code(w, GUEST_CODE, 0x8a, 0x07, 0x66, 0x89, 0x47, 0x02, 0x8b, 0x47, 0x04, 0x48, 0x89,
                   0x47, 0x08, 0x0f, 0x11, 0x47, 0x10, HLT);
        guest_state(&s);
        s.gpr[RDI] = GUEST_IO;
        assert_int_equal(guest_run(w, &s), -1);
        assert_int_equal(w->nlog, 5);
        expect_io(w, 0, IO_MMIO_READ, GUEST_IO_PA, 1);
        expect_io(w, 1, IO_MMIO_WRITE, GUEST_IO_PA + 2, 2);
        expect_io(w, 2, IO_MMIO_READ, GUEST_IO_PA + 4, 4);
        expect_io(w, 3, IO_MMIO_WRITE, GUEST_IO_PA + 8, 8);
        expect_io(w, 4, IO_MMIO_WRITE, GUEST_IO_PA + 16, 16);
    }
}

/* One read, one write, whatever the instruction. */
static void test_io_rmw(void **state)
{
    static const uint8_t how[][4] = {
        {0x01, 0x17, 0x90, 0x90}, {0xf0, 0x01, 0x17, 0x90}, {0xff, 0x07, 0x90, 0x90},
        {0x87, 0x17, 0x90, 0x90}, {0x0f, 0xb1, 0x17, 0x90}, {0xf0, 0x0f, 0xc1, 0x17},
        {0x0f, 0xba, 0x37, 0x03}, {0xd1, 0x2f, 0x90, 0x90}, {0x0f, 0xac, 0x17, 0x03},
        {0xf7, 0x1f, 0x90, 0x90}, {0x0f, 0xc7, 0x0f, 0x90},
    };
    struct world *w = *state;
    struct cpu_state s;

    BOTH_WAYS for (unsigned k = 0; k < ARRAY_LEN(how); k++)
    {
        unsigned size = k + 1 == ARRAY_LEN(how) ? 8 : 4;

        world_forget_io(w);
        world_write(w, GUEST_CODE, how[k], 4);
        guest_code(w, GUEST_CODE + 4, HLT);
        guest_state(&s);
        s.gpr[RDI] = GUEST_IO;
        assert_int_equal(guest_run(w, &s), -1);
        assert_int_equal(w->nlog, 2);
        expect_io(w, 0, IO_MMIO_READ, GUEST_IO_PA, size);
        expect_io(w, 1, IO_MMIO_WRITE, GUEST_IO_PA, size);
    }
}

/* Half RAM, half I/O: in address order, and nothing at all if the second page faults. */
static void test_io_split(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    guest_map(w, GUEST_WINDOW, 0x30000 | PTE_RW);
    guest_map(w, GUEST_WINDOW + 0x1000, GUEST_IO_PA | PTE_RW);
    guest_map(w, GUEST_WINDOW + 0x2000, GUEST_IO_PA | PTE_RW);
    BOTH_WAYS
    {
        world_forget_io(w);
        guest_put64(w, 0x30ff8, 0);
        guest_code(w, GUEST_CODE, 0x48, 0x89, 0x17, 0x48, 0x8b, 0x07,
                   HLT); /* mov [rdi], rdx; mov rax, [rdi] */
        guest_state(&s);
        s.gpr[RDI] = GUEST_WINDOW + 0xffd;
        s.gpr[RDX] = 0x8877665544332211;
        assert_int_equal(guest_run(w, &s), -1);
        assert_int_equal(guest_u64(w, 0x30ff8), 0x332211ull << 40);
        assert_int_equal(w->nlog, 2);
        expect_io(w, 0, IO_MMIO_WRITE, GUEST_IO_PA, 5);
        assert_int_equal(w->log[0].val, 0x8877665544);
        expect_io(w, 1, IO_MMIO_READ, GUEST_IO_PA, 5);
        assert_int_equal(s.gpr[RAX] & 0xffffff, 0x332211);
        world_forget_io(w);
        guest_state(&s);
        s.gpr[RDI] = GUEST_WINDOW + 0x2ffd;
        assert_int_equal(guest_run(w, &s), X_PF);
        assert_int_equal(w->nlog, 0);
    }
}

/* ---- strings ---- */

struct string {
    uint8_t n, code[4];
    uint64_t rsi, rdi, rcx, rax;
};

static int run_string(struct world *w, const struct string *t, bool down, struct cpu_state *s)
{
    world_write(w, GUEST_CODE, t->code, t->n);
    guest_code(w, GUEST_CODE + t->n, HLT);
    guest_state(s);
    s->gpr[RSI] = t->rsi;
    s->gpr[RDI] = t->rdi;
    s->gpr[RCX] = t->rcx;
    s->gpr[RAX] = t->rax;
    if (down)
        s->rflags |= FL_DF;
    return guest_run(w, s);
}

#define FAR 0x40000ull

static void test_movs(void **state)
{
    struct world *w = *state;
    struct cpu_state s;
    uint8_t want[3 * 4096], got[3 * 4096];

    /* Distances forward and backward, over pages, all sizes, both directions: as a loop over
     * elements does it. */
    for (unsigned size = 1; size <= 8; size *= 2)
        for (unsigned down = 0; down < 2; down++)
            for (int gap = -20; gap <= 20; gap += gap > -4 && gap < 4 ? 1 : 4) {
                const struct string t = {.n = (uint8_t)(size == 8   ? 3
                                                        : size == 2 ? 3
                                                                    : 2),
                                         .code = {size == 2 ? 0x66 : 0xf3,
                                                  size == 1   ? 0xa4
                                                  : size == 4 ? 0xa5
                                                  : size == 2 ? 0xf3
                                                              : 0x48,
                                                  0xa5},
                                         .rsi = GUEST_DATA + 4000,
                                         .rdi = (uint64_t)(int64_t)(GUEST_DATA + 4000 + gap),
                                         .rcx = 300};

                for (unsigned k = 0; k < sizeof(want); k++)
                    want[k] = (uint8_t)(k * 7 + k / 256);
                world_write(w, GUEST_DATA, want, sizeof(want));
                for (unsigned k = 0; k < t.rcx; k++) {
                    int at = down ? -(int)(k * size) : (int)(k * size);
                    uint8_t e[8];
                    memcpy(e, want + 4000 + at, size);
                    memcpy(want + 4000 + gap + at, e, size);
                }
                assert_int_equal(run_string(w, &t, down, &s), -1);
                assert_int_equal(s.gpr[RCX], 0);
                assert_int_equal(s.gpr[RSI], down ? t.rsi - 300 * size : t.rsi + 300 * size);
                assert_int_equal(s.gpr[RDI], down ? t.rdi - 300 * size : t.rdi + 300 * size);
                mem_read(w->map, GUEST_DATA, got, sizeof(got));
                assert_memory_equal(got, want, sizeof(want));
            }
}

/* A fault in the middle leaves exactly what is left. */
static void test_string_faults(void **state)
{
    struct world *w = *state;
    const uint64_t hole = FAR + 2 * PAGE_SIZE;
    struct cpu_state s;

    guest_map(w, hole, 0);
    BOTH_WAYS
    {
        const struct string stos = {3, {0xf3, 0x48, 0xab}, 0, FAR + 5, 5000, 0x0102030405060708};
        const struct string movs = {2, {0xf3, 0xa4}, GUEST_DATA, FAR + 100, 50000, 0};
        const struct string from = {2, {0xf3, 0xa5}, FAR + 2, GUEST_DATA, 50000, 0};
        const struct string lods = {2, {0xf3, 0xad}, FAR, 0, 50000, 0};
        const struct string cmps = {2, {0xf3, 0xa6}, FAR, FAR, 50000, 0};
        const struct string scas = {2, {0xf2, 0xae}, 0, FAR, 50000, 0x55};
        const struct string back = {2, {0xf3, 0xaa}, 0, hole + PAGE_SIZE + 9, 50000, 0x55};
        uint64_t n = (2 * PAGE_SIZE - 5) / 8;

        for (uint64_t gpa = FAR; gpa < hole; gpa += PAGE_SIZE)
            mem_zero(w->map, gpa, PAGE_SIZE);
        assert_int_equal(run_string(w, &stos, false, &s), X_PF);
        assert_int_equal(s.gpr[RCX], 5000 - n);
        assert_int_equal(s.gpr[RDI], FAR + 5 + n * 8);
        assert_int_equal(s.cr2, hole);
        assert_int_equal(guest_u64(w, FAR + 5 + (n - 1) * 8), 0x0102030405060708);
        /* The element that crosses into the hole has not been begun. */
        assert_int_equal(guest_u64(w, hole - 8) >> 40, 0);
        assert_int_equal(run_string(w, &movs, false, &s), X_PF);
        assert_int_equal(s.gpr[RCX], 50000 - (2 * PAGE_SIZE - 100));
        assert_int_equal(s.gpr[RSI], GUEST_DATA + 2 * PAGE_SIZE - 100);
        assert_int_equal(s.gpr[RDI], hole);
        assert_int_equal(s.cr2, hole);
        assert_int_equal(guest_error(w, &s), PF_W);
        assert_int_equal(run_string(w, &from, false, &s), X_PF);
        assert_int_equal(s.gpr[RSI], hole - 2);
        assert_int_equal(s.gpr[RCX], 50000 - (2 * PAGE_SIZE - 4) / 4);
        assert_int_equal(s.cr2, hole);
        assert_int_equal(guest_error(w, &s), 0);
        assert_int_equal(run_string(w, &lods, false, &s), X_PF);
        assert_int_equal(s.gpr[RSI], hole);
        assert_int_equal(run_string(w, &cmps, false, &s), X_PF);
        assert_int_equal(s.gpr[RSI], hole);
        assert_int_equal(s.gpr[RDI], hole);
        assert_int_equal(s.gpr[RCX], 50000 - 2 * PAGE_SIZE);
        world_write(w, FAR, (uint8_t[]){0x55}, 1);
        assert_int_equal(run_string(w, &scas, false, &s), -1);
        assert_int_equal(s.gpr[RDI], FAR + 1);
        assert_true(s.rflags & FL_ZF);
        assert_int_equal(run_string(w, &back, true, &s), X_PF);
        assert_int_equal(s.gpr[RDI], hole + PAGE_SIZE - 1);
        assert_int_equal(s.gpr[RCX], 50000 - 10);
    }
}

static void test_compare_and_scan(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    mem_zero(w->map, FAR, 0x6000);
    guest_put64(w, FAR + 0x1ff8, 0x1100000000000000);
    BOTH_WAYS
    {
        const struct string same = {2, {0xf3, 0xa6}, FAR, FAR + 0x3000, 0x3000, 0};
        const struct string none = {3, {0xf2, 0x48, 0xaf}, 0, FAR, 0x200, 7};
        const struct string zero = {2, {0xf3, 0xa6}, FAR, FAR, 0, 0};

        assert_int_equal(run_string(w, &same, false, &s), -1);
        assert_int_equal(s.gpr[RSI], FAR + 0x2000);
        assert_int_equal(s.gpr[RCX], 0x1000);
        assert_int_equal(s.rflags & (FL_ZF | FL_CF), 0); /* 11 against 0 */
        assert_int_equal(run_string(w, &none, false, &s), -1);
        assert_int_equal(s.gpr[RCX], 0);
        assert_int_equal(s.gpr[RDI], FAR + 0x1000);
        assert_false(s.rflags & FL_ZF);
        assert_int_equal(run_string(w, &zero, false, &s), -1);
        assert_int_equal(s.gpr[RSI], FAR);
        assert_int_equal(s.rflags & FL_STATUS, 0); /* as before: nothing was compared */
    }
}

static void test_string_addr32(void **state)
{
    struct world *w = *state;
    struct cpu_state s;
    /* ESI, EDI, ECX count; what is above them does not, and is cleared. */
    const struct string t = {3,
                             {0x67, 0xf3, 0xa4},
                             0xffffffff00000000 | GUEST_DATA,
                             0x1234567800000000 | FAR,
                             0xabcdef0000000000 | 0x1800,
                             0};

    fill(w, GUEST_DATA, 4096, 3);
    assert_int_equal(run_string(w, &t, false, &s), -1);
    assert_int_equal(s.gpr[RSI], GUEST_DATA + 0x1800);
    assert_int_equal(s.gpr[RDI], FAR + 0x1800);
    assert_int_equal(s.gpr[RCX], 0);
    assert_int_equal(guest_u64(w, FAR + 8), guest_u64(w, GUEST_DATA + 8));
}

static void test_string_io(void **state)
{
    struct world *w = *state;
    struct cpu_state s;
    const struct string to = {2, {0xf3, 0xa5}, GUEST_DATA, GUEST_IO, 3, 0};
    const struct string from = {3, {0xf3, 0x66, 0xa5}, GUEST_IO, FAR, 2, 0};

    assert_int_equal(run_string(w, &to, false, &s), -1);
    assert_int_equal(w->nlog, 3);
    for (unsigned k = 0; k < 3; k++)
        expect_io(w, k, IO_MMIO_WRITE, GUEST_IO_PA + k * 4, 4);
    world_forget_io(w);
    assert_int_equal(run_string(w, &from, false, &s), -1);
    assert_int_equal(w->nlog, 2);
    for (unsigned k = 0; k < 2; k++)
        expect_io(w, k, IO_MMIO_READ, GUEST_IO_PA + k * 2, 2);
}

/* ---- the stack ---- */

static void test_push_pop_corners(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    BOTH_WAYS
    {
        /* push rsp: the old value */
        guest_code(w, GUEST_CODE, 0x54, HLT);
        guest_state(&s);
        assert_int_equal(guest_run(w, &s), -1);
        assert_int_equal(s.gpr[RSP], GUEST_STACK - 8);
        assert_int_equal(guest_u64(w, GUEST_STACK - 8), GUEST_STACK);
        /* pop rsp: the value, not incremented */
        guest_code(w, GUEST_CODE, 0x5c, HLT);
        guest_state(&s);
        guest_put64(w, GUEST_STACK, 0x12345);
        assert_int_equal(guest_run(w, &s), -1);
        assert_int_equal(s.gpr[RSP], 0x12345);
        /* pop qword [rsp + 8]: the address is formed after the increment */
        guest_code(w, GUEST_CODE, 0x8f, 0x44, 0x24, 0x08, HLT);
        guest_state(&s);
        assert_int_equal(guest_run(w, &s), -1);
        assert_int_equal(s.gpr[RSP], GUEST_STACK + 8);
        assert_int_equal(guest_u64(w, GUEST_STACK + 16), 0x12345);
        /* push qword [rsp + 16]: before the decrement */
        guest_code(w, GUEST_CODE, 0xff, 0x74, 0x24, 0x10, HLT);
        guest_state(&s);
        guest_put64(w, GUEST_STACK + 16, 0x777);
        assert_int_equal(guest_run(w, &s), -1);
        assert_int_equal(guest_u64(w, GUEST_STACK - 8), 0x777);
        /* pop to a page that is not there: RSP stays */
        guest_code(w, GUEST_CODE, 0x8f, 0x07, HLT);
        guest_state(&s);
        s.gpr[RDI] = GUEST_WINDOW + 0x5000;
        assert_int_equal(guest_run(w, &s), X_PF);
        assert_int_equal(guest_u64(w, s.gpr[RSP] + 32), GUEST_STACK);
    }
}

static void test_call_faults(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    BOTH_WAYS
    {
        /* call with no stack: RSP stays, RIP is the call's */
        guest_code(w, GUEST_CODE, 0xe8, LE32(0x20), HLT);
        guest_state(&s);
        s.gpr[RSP] = GUEST_WINDOW + 0x5008;
        s.tr.limit = 0x67;
        guest_put64(w, 0x2000 + X_PF * 16,
                    (0xc000 + X_PF * 4) | 8ull << 16 | 0x8e01ull << 32); /* IST 1 */
        guest_put64(w, 0x3000 + 36, GUEST_STACK);
        assert_int_equal(guest_run(w, &s), X_PF);
        assert_int_equal(s.cr2, GUEST_WINDOW + 0x5000);
        assert_int_equal(guest_u64(w, s.gpr[RSP] + 8), GUEST_CODE);
        assert_int_equal(guest_u64(w, s.gpr[RSP] + 32), GUEST_WINDOW + 0x5008);
        /* ret to what is not canonical: #GP with RIP at the ret and RSP as before */
        guest_code(w, GUEST_CODE, 0xc3, HLT);
        guest_state(&s);
        guest_put64(w, GUEST_STACK, 0x800000000000);
        assert_int_equal(guest_run(w, &s), X_GP);
        assert_int_equal(guest_u64(w, s.gpr[RSP] + 8), GUEST_CODE);
        assert_int_equal(guest_u64(w, s.gpr[RSP] + 32), GUEST_STACK);
    }
}

/* A direct call out of the canonical half: nothing is pushed. */
static void test_call_to_non_canonical(void **state)
{
    struct world *w = *state;
    const uint64_t top = 0x7ffffffff000;
    struct cpu_state s;

    guest_put64(w, GUEST_PML4 + 255 * 8, 0xf000 | 7);
    guest_put64(w, 0xf000 + 511 * 8, 0x18000 | 7);
    guest_put64(w, 0x18000 + 511 * 8, 0x19000 | 7);
    guest_put64(w, 0x19000 + 511 * 8, 0x30000 | 7);
    BOTH_WAYS
    {
        guest_code(w, 0x30000 + 0xff0, 0xe8, LE32(0x100), HLT);
        guest_put64(w, GUEST_STACK - 8, 0x5a5a);
        guest_state(&s);
        s.rip = top + 0xff0;
        assert_int_equal(guest_run(w, &s), X_GP);
        assert_int_equal(guest_u64(w, s.gpr[RSP] + 8), top + 0xff0);
        assert_int_equal(guest_u64(w, s.gpr[RSP] + 32), GUEST_STACK);
        /* And straight on past its end: the fault is at the address that is not canonical. */
        guest_code(w, 0x30000 + 0xffe, 0x90, 0x90);
        guest_state(&s);
        s.rip = top + 0xffe;
        assert_int_equal(guest_run(w, &s), X_GP);
        assert_int_equal(guest_u64(w, s.gpr[RSP] + 8), top + 0x1000);
        /* An instruction that would go on there. */
        guest_code(w, 0x30000 + 0xffe, 0xb8, 0x01);
        guest_state(&s);
        s.rip = top + 0xffe;
        assert_int_equal(guest_run(w, &s), X_GP);
        assert_int_equal(guest_u64(w, s.gpr[RSP] + 8), top + 0xffe);
    }
}

static void test_enter(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    guest_put64(w, GUEST_DATA + 0x100 - 8, 0xaaaa);
    guest_put64(w, GUEST_DATA + 0x100 - 16, 0xbbbb);
    BOTH_WAYS
    {
        guest_code(w, GUEST_CODE, 0xc8, LE16(0x20), 3, HLT); /* enter 32, 3 */
        guest_state(&s);
        s.gpr[RBP] = GUEST_DATA + 0x100;
        assert_int_equal(guest_run(w, &s), -1);
        assert_int_equal(guest_u64(w, GUEST_STACK - 8), GUEST_DATA + 0x100);
        assert_int_equal(guest_u64(w, GUEST_STACK - 16), 0xaaaa);
        assert_int_equal(guest_u64(w, GUEST_STACK - 24), 0xbbbb);
        assert_int_equal(guest_u64(w, GUEST_STACK - 32), GUEST_STACK - 8);
        assert_int_equal(s.gpr[RBP], GUEST_STACK - 8);
        assert_int_equal(s.gpr[RSP], GUEST_STACK - 32 - 32);
        guest_code(w, GUEST_CODE, 0xc8, LE16(0), 0, 0xc9, HLT); /* enter 0, 0; leave */
        guest_state(&s);
        s.gpr[RBP] = 0x1234;
        assert_int_equal(guest_run(w, &s), -1);
        assert_int_equal(s.gpr[RBP], 0x1234);
        assert_int_equal(s.gpr[RSP], GUEST_STACK);
    }
}

/* Real mode: SP wraps at 64 KiB, and the rest of ESP stays. */
static void test_stack_16(void **state)
{
    struct world *w = *state;
    struct cpu_state s;

    for (unsigned r = 0; r < 256; r++)
        guest_put64(w, r * 4, (0xc000u >> 4) << 16 | r * 4);
    cpu_state_reset(&s);
    s.seg[CS].sel = 0x1000;
    s.seg[CS].base = GUEST_CODE;
    s.seg[SS].sel = 0x2000;
    s.seg[SS].base = GUEST_DATA;
    s.rip = 0;
    s.gpr[RSP] = 0xabcd0000;
    s.gpr[RAX] = 0x1234;
    struct cpu_state was = s;
    guest_code(w, GUEST_CODE, 0x50, HLT); /* push ax at SP = 0 */
    assert_int_equal(guest_run(w, &s), -1);
    assert_int_equal(s.gpr[RSP], 0xabcdfffe);
    assert_int_equal((uint16_t)guest_u64(w, GUEST_DATA + 0xfffe), 0x1234);
    s = was;
    s.gpr[RSP] = 0xabcdfffe;
    guest_code(w, GUEST_CODE, 0x58, HLT); /* pop ax: SP becomes 0 */
    assert_int_equal(guest_run(w, &s), -1);
    assert_int_equal(s.gpr[RSP], 0xabcd0000);
    /* pusha with SP = 8 wraps in the middle */
    s = was;
    s.gpr[RSP] = 8;
    s.gpr[RDI] = 0xdddd;
    guest_code(w, GUEST_CODE, 0x60, HLT);
    assert_int_equal(guest_run(w, &s), -1);
    assert_int_equal(s.gpr[RSP], 0xfff8);
    assert_int_equal((uint16_t)guest_u64(w, GUEST_DATA + 6), 0x1234);
    assert_int_equal((uint16_t)guest_u64(w, GUEST_DATA + 0xfff8), 0xdddd);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_crossing),
        T(test_crossing_faults),
        T(test_rom),
        T(test_io_sizes),
        T(test_io_rmw),
        T(test_io_split),
        T(test_movs),
        T(test_string_faults),
        T(test_compare_and_scan),
        T(test_string_addr32),
        T(test_string_io),
        T(test_push_pop_corners),
        T(test_call_faults),
        T(test_call_to_non_canonical),
        T(test_enter),
        T(test_stack_16),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
