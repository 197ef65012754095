/*
 * Loops that fault in every round, in all of several blocks: what the fault shows of every register and flag must be
 * what the silicon shows. Registers that change their places within a block or a loop, and flags that go unmade from
 * block to block, are found out by this.
 */
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include "kit.h"
#include "strides.h"

#define HANDLER 0x14000ull
#define CURSOR 0x21000ull  /* where the handler puts the next struct seen */
#define LOG 0x80000ull
#define ROUNDS 60
#define PAGES 64           /* for each of two pointers */
#define LOG_MAX (4 * PAGES)
#define REACH (PAGES * PAGE_SIZE / 2)
_Static_assert(REACH > STRIDES_REACH + PAGE_SIZE, "accesses stay among the pages");

/* Each has RDI and RSI at pages that are not mapped, each round at others, and RCX at a count. RSP, which silicon needs,
 * is left alone. The pages are all the same memory. */
#define NEXT "lea rdi, [rdi + 4096]; lea rsi, [rsi + 4096]; dec rcx; jnz 1b"
#define LOOPS(X)                                                                                   \
    X(self, "1: mov r9, r10; add r9, [rdi]; add r10, r9; lea r15, [r9 + r10 * 2]; xor r11, r15\n"    \
            "mov [rdi + 8], r11; add r11, [rsi]; adc r15, r11\n" NEXT)                               \
    X(blocks, "1: add r9, r10; xor r10, r11; add r11, [rdi]; jmp 2f\n"                               \
              "2: sub r15, r9; add r15, r10; adc r11, r15; mov [rsi], r15; jmp 3f\n"                 \
              "3: lea r9, [r9 + r11 * 2]; add r10, [rsi + 8]; sbb r9, r10; xor r15, r9; jc 4f\n"     \
              "4: ror r11, 3; add r11, r9\n" NEXT)                                                   \
    X(lent, "1: mov r14, r9; add r9, [rdi]; add r9, r10; add r10, r9; sub r9, r10; add r9, r13; add r10, r9\n" \
            "lea r9, [r9 + r10]; jmp 2f; 2: add r14, r13; xor r13, r14; add r12, [rsi]; add r14, r12; jmp 3f\n" \
            "3: add r9, r14; add r10, r9; add r9, r10; add r10, r9; add r9, r10; mov [rdi], r9\n" NEXT)  \
    X(bases, "1: mov r9, rdi; mov r10, rsi; mov rbx, [r9]; add rbx, [r9 + 8]; add rbx, [r10 + 16]\n"  \
             "adc [r10], rbx; mov r11, [r9 + 24]; add r11, rbx; mov [r9 + 24], r11; movzx r15d, byte ptr [r10 + 7]\n" NEXT) \
    X(cmp, "1: cmp rax, rdx; jmp 2f; 2: mov rbp, [rdi]; mov rbx, [rsi]; setc bl\n"                   \
           "lea rax, [rax + rax * 2 + 7]\n" NEXT)                                                    \
    X(gone, "1: cmp rax, rdx; jmp 2f; 2: mov rax, [rdi]; lea rdx, [rdx * 8 + 5]; mov rbp, [rsi]\n"   \
            "setb bl; lea rax, [rbx + rdx * 2]; jmp 3f; 3: mov [rdi], rax\n" NEXT)                   \
    X(sub, "1: sub r8, rdx; jmp 2f; 2: mov rax, [rdi]; sbb rdx, rbx; jc 3f; 3: mov rbp, [rsi]\n"     \
           "lea rbx, [rbx + rdx * 2 + 3]; mov [rsi + 8], rbx\n" NEXT)                                \
    X(inc, "1: cmp rax, rdx; jmp 2f; 2: inc rbx; mov rbp, [rdi]; jmp 3f; 3: dec r8; inc r12; mov rbp, [rsi]\n" \
           "adc rax, rbx; adc rdx, r12\n" NEXT)                                                      \
    X(incsame, "1: lea rax, [rdx - 1]; cmp rax, rdx; inc rax; mov rbp, [rdi]; adc rax, rdx; jmp 2f; 2: dec rax; inc rdx; mov rbp, [rsi]; jmp 3f\n" \
               "3: inc edx; adc rax, rdx\n" NEXT)                                                    \
    X(incchain, "1: sub rax, [rdi]; jmp 2f; 2: inc r8; jmp 3f; 3: dec rbx; mov [rsi], rax; jmp 4f\n" \
                "4: inc eax; setbe dl; rcl rax, 5\n" NEXT)                                           \
    X(kept, "1: cmp r8, [rdi]; jb 2f; 2: inc rdx; mov rbp, [rsi]; jmp 3f\n"                          \
            "3: cmovb rax, rdx; add r8, [rdi + 8]; jmp 4f; 4: mov [rsi + 16], r8; jo 5f\n"           \
            "5: mov [rdi], rdx; mov [rdi + 8], r8; lea r8, [r8 * 2 + 1]\n" NEXT)                     \
    X(kept8, "1: cmp byte ptr [rdi + 1], 0x7f; jmp 2f; 2: mov rbp, [rsi]; jle 3f; 3: add al, [rdi]; jmp 4f\n" \
             "4: mov [rsi + 1], al; sub dx, [rdi]; jmp 5f; 5: mov rbx, [rsi]; mov [rdi + 2], dx\n" NEXT) \
    X(logic, "1: and rax, rbx; jz 2f; 2: mov rbp, [rdi]; or rax, rdx; jmp 3f; 3: inc r8; mov rbp, [rsi]\n" \
             "neg rdx; jmp 4f; 4: mov [rdi + 8], rdx; setc bl; lea rax, [rax + rdx * 4 + 77]\n" NEXT) \
    X(shift, "1: rol rax, 1; jmp 2f; 2: mov rbp, [rdi]; inc rbx; mov [rsi], rbx; jmp 3f\n"           \
             "3: adc rax, rbx; shr edx, 1; jmp 4f; 4: lea edx, [rax + rbx]; mov rbp, [rsi + 8]\n" NEXT) \
    X(both, "1: sub r9, r10; jmp 2f; 2: mov r11, [rdi]; inc r15; add r10, r15; lea r9, [r9 + r10]; jmp 3f\n" \
            "3: cmp r9, r15; jmp 4f; 4: mov [rsi], r9; inc r10; mov [rsi + 8], r10; adc r9, r10; xor r15, r9\n" NEXT)

#define X(name, text) GUEST_ASM(l_##name, "cmp rcx, 1\n" text);
LOOPS(X)
#undef X
GUEST_ASM(stop, "hlt");
GUEST_ASM(back, "ret");

static const struct loop {
    const char *name;
    const uint8_t *code, *end;
    bool strides; /* else RDI and RSI begin where their pages do */
} loops[] = {
#define X(name, text) {#name, l_##name, l_##name##_end, false},
    LOOPS(X)
#undef X
};

struct seen {
    uint64_t gpr[16], rip, flags, address;
};

/* AF is left out: logic leaves it undefined. */
#define FLAGS (FL_STATUS & ~(uint64_t)FL_AF)

/* ---- on the silicon ---- */

static struct {
    struct seen seen[LOG_MAX];
    unsigned n;
    int memory;
    uint8_t page[PAGE_SIZE]; /* what is in memory at the end */
    const uint8_t *code;
} silicon;

static void on_fault(int sig, siginfo_t *info, void *arg)
{
    static const uint8_t order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                      REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    const greg_t *g = ((const ucontext_t *)arg)->uc_mcontext.gregs;
    uint64_t at = (uint64_t)(uintptr_t)info->si_addr;
    struct seen *s = &silicon.seen[silicon.n++];

    if (at - GUEST_WINDOW >= 2 * PAGES * PAGE_SIZE || silicon.n > LOG_MAX)
        abort();
    for (unsigned r = 0; r < 16; r++)
        s->gpr[r] = (uint64_t)g[order[r]];
    s->rip = (uint64_t)g[REG_RIP] - (uint64_t)(uintptr_t)silicon.code;
    s->flags = (uint64_t)g[REG_EFL];
    s->address = at;
    if (mmap((void *)(uintptr_t)(at & ~PAGE_MASK), PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
             silicon.memory, 0) == MAP_FAILED)
        abort();
}

/* RDI, RSI, RCX are as the loops want them, the others made of the number of the loop. */
static void begin(const struct loop *l, uint64_t gpr[16], unsigned k)
{
    for (unsigned r = 0; r < 16; r++)
        gpr[r] = (k + 3) * 0x9e3779b97f4a7c15ull * (r + 1) ^ r << 13;
    gpr[RCX] = ROUNDS;
    gpr[RDI] = GUEST_WINDOW;
    gpr[RSI] = GUEST_WINDOW + PAGES * PAGE_SIZE;
    if (!l->strides)
        return;
    gpr[RDI] += REACH + (k * 1237 & PAGE_MASK);
    gpr[RSI] += REACH + (k * 2311 & PAGE_MASK);
    gpr[R9] = gpr[RDI] + PAGES * PAGE_SIZE / 2 - 24;
    gpr[RBX] &= 63;
    gpr[RCX] = STRIDES_ROUNDS;
    gpr[R13] = 2;
}

/* uint64_t gpr[16]: all but RSP from there and back, around a call of RSI (the second argument). */
GUEST_ASM(all_registers,
          "push rbx; push rbp; push r12; push r13; push r14; push r15; push rdi; push rsi\n"
          "mov rax, [rdi]; mov rcx, [rdi + 8]; mov rdx, [rdi + 16]; mov rbx, [rdi + 24]; mov rbp, [rdi + 40]\n"
          "mov rsi, [rdi + 48]; mov r8, [rdi + 64]; mov r9, [rdi + 72]; mov r10, [rdi + 80]; mov r11, [rdi + 88]\n"
          "mov r12, [rdi + 96]; mov r13, [rdi + 104]; mov r14, [rdi + 112]; mov r15, [rdi + 120]; mov rdi, [rdi + 56]\n"
          "call [rsp]\n"
          "pop rsi; pop rdi\n"
          "mov [rdi], rax; mov [rdi + 16], rdx; mov [rdi + 24], rbx; mov [rdi + 40], rbp; mov [rdi + 64], r8\n"
          "mov [rdi + 72], r9; mov [rdi + 80], r10; mov [rdi + 88], r11; mov [rdi + 96], r12; mov [rdi + 104], r13\n"
          "mov [rdi + 112], r14; mov [rdi + 120], r15\n"
          "pop r15; pop r14; pop r13; pop r12; pop rbp; pop rbx; ret");

static void run_native(const struct loop *l, uint64_t gpr[16])
{
    size_t n = (size_t)(l->end - l->code);
    struct sigaction sa = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO}, was;
    uint8_t *page = mmap(NULL, 2 * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    void *window = mmap((void *)(uintptr_t)GUEST_WINDOW, 2 * PAGES * PAGE_SIZE, PROT_NONE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

    assert_true(page != MAP_FAILED);
    assert_ptr_equal(window, (void *)(uintptr_t)GUEST_WINDOW);
    silicon.memory = memfd_create("loops", 0);
    assert_true(silicon.memory >= 0 && ftruncate(silicon.memory, PAGE_SIZE) == 0);
    silicon.n = 0;
    silicon.code = page + PAGE_SIZE;
    memcpy(page, all_registers, GUEST_ASM_LEN(all_registers));
    memcpy(page + PAGE_SIZE, l->code, n);
    memcpy(page + PAGE_SIZE + n, back, GUEST_ASM_LEN(back));
    assert_int_equal(mprotect(page, 2 * PAGE_SIZE, PROT_READ | PROT_EXEC), 0);
    assert_int_equal(sigaction(SIGSEGV, &sa, &was), 0);
    ((void (*)(uint64_t *, const uint8_t *))(uintptr_t)page)(gpr, silicon.code);
    sigaction(SIGSEGV, &was, NULL);
    assert_int_equal(pread(silicon.memory, silicon.page, PAGE_SIZE, 0), PAGE_SIZE);
    close(silicon.memory);
    munmap(window, 2 * PAGES * PAGE_SIZE);
    munmap(page, 2 * PAGE_SIZE);
}

/* ---- in the guest ---- */

/* A struct seen into the log, and the page mapped; all flags change on the way. */
GUEST_ASM(handler,
          "push rdx; mov rdx, [0x21000]\n"
          "mov [rdx], rax; mov [rdx + 8], rcx; pop qword ptr [rdx + 16]; mov [rdx + 24], rbx; mov [rdx + 40], rbp\n"
          "mov [rdx + 48], rsi; mov [rdx + 56], rdi; mov [rdx + 64], r8; mov [rdx + 72], r9; mov [rdx + 80], r10\n"
          "mov [rdx + 88], r11; mov [rdx + 96], r12; mov [rdx + 104], r13; mov [rdx + 112], r14; mov [rdx + 120], r15\n"
          "mov rax, [rsp + 8]; mov [rdx + 128], rax; mov rax, [rsp + 24]; mov [rdx + 136], rax\n"
          "mov rax, cr2; mov [rdx + 144], rax; shr rax, 12; and eax, 511\n"
          "mov qword ptr [rax * 8 + 0x8000], 0x50003\n"
          "add qword ptr [0x21000], 152\n"
          "mov rax, [rdx]; mov rdx, [rdx + 16]; add rsp, 8; iretq");

static void check(const struct loop *l, unsigned k, const struct seen *got, const struct seen *want)
{
    bool bad = got->rip - GUEST_CODE != want->rip || ((got->flags ^ want->flags) & FLAGS) || got->address != want->address;

    for (unsigned r = 0; r < 16; r++)
        bad |= r != RSP && got->gpr[r] != want->gpr[r];
    if (!bad)
        return;
    print_message("%s, fault %u at %#llx of %#llx: flags %#llx, want %#llx, rip +%#llx, want +%#llx\n", l->name, k,
                  (unsigned long long)got->address, (unsigned long long)want->address,
                  (unsigned long long)(got->flags & FLAGS), (unsigned long long)(want->flags & FLAGS),
                  (unsigned long long)(got->rip - GUEST_CODE), (unsigned long long)want->rip);
    for (unsigned r = 0; r < 16; r++)
        if (r != RSP && got->gpr[r] != want->gpr[r])
            print_message("  register %u is %#llx, want %#llx\n", r, (unsigned long long)got->gpr[r],
                          (unsigned long long)want->gpr[r]);
    fail();
}

static void run_guest(const struct loop *l, const uint64_t gpr[16], const uint64_t end[16])
{
    static const uint8_t zero[PAGE_SIZE];
    struct world *w = guest_new(1);
    struct cpu_state s;
    uint64_t at = kit_bytes(w, GUEST_CODE, l->code, (size_t)(l->end - l->code));

    kit_put(w, at, stop);
    kit_put(w, HANDLER, handler);
    kit_gate(w, X_PF, HANDLER, true);
    guest_put64(w, CURSOR, LOG);
    world_write(w, 0x50000, zero, sizeof(zero));
    kit_state(&s, 0, GUEST_CODE, false);
    for (unsigned r = 0; r < 16; r++)
        if (r != RSP)
            s.gpr[r] = gpr[r];
    assert_int_equal(guest_run(w, &s), -1);
    assert_int_equal((guest_u64(w, CURSOR) - LOG) / sizeof(struct seen), silicon.n);
    for (unsigned k = 0; k < silicon.n; k++) {
        struct seen got;

        for (unsigned f = 0; f < sizeof(got) / 8; f++)
            ((uint64_t *)&got)[f] = guest_u64(w, LOG + k * sizeof(got) + 8 * f);
        check(l, k, &got, &silicon.seen[k]);
    }
    for (unsigned r = 0; r < 16; r++)
        if (r != RSP && r != RCX && r != RSI && r != RDI)
            assert_int_equal(s.gpr[r], end[r]);
    for (unsigned k = 0; k < PAGE_SIZE; k += 8)
        assert_memory_equal(&(uint64_t){guest_u64(w, 0x50000 + k)}, silicon.page + k, 8);
    world_free(w);
}

static void test_loops(void **state)
{
    for (unsigned k = 0; k < ARRAY_LEN(loops); k++) {
        uint64_t gpr[16], end[16];

        begin(&loops[k], gpr, k);
        memcpy(end, gpr, sizeof(end));
        run_native(&loops[k], end);
        assert_true(silicon.n >= 2 * ROUNDS);
        run_guest(&loops[k], gpr, end);
    }
}

/* STRIDES: another first seed, and how many. */
static void test_strides(void **state)
{
    const char *env = getenv("STRIDES");
    unsigned first = 1, n = 1500;

    if (env)
        assert_int_equal(sscanf(env, "%u,%u", &first, &n), 2);
    for (unsigned k = first; k < first + n; k++) {
        uint8_t code[STRIDES_BYTES];
        char name[32];
        struct loop l = {name, code, code + strides_make(code, k), true};
        uint64_t gpr[16], end[16];

        snprintf(name, sizeof(name), "seed %u", k);
        begin(&l, gpr, k);
        memcpy(end, gpr, sizeof(end));
        run_native(&l, end);
        run_guest(&l, gpr, end);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_loops),
        cmocka_unit_test(test_strides),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
