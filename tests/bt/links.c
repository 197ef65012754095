/*
 * Links between blocks are good only while the page they lead to is what it was. Code goes to a page by every
 * kind of transfer, over and over; in between the page becomes another one, by every means that a
 * guest has to say so. Returns come back to pages that have changed meanwhile.
 */
#include "kit.h"

#define TARGET (GUEST_WINDOW + 0x1000)  /* where transfers go */
#define BEFORE (TARGET - PAGE_SIZE)     /* code that runs into TARGET */
#define PAGE_X 0x50000ull               /* what TARGET is in turn */
#define PAGE_Y 0x51000ull
#define PAGE_BEFORE 0x52000ull
#define PT_WINDOW 0x8000ull
#define TARGET_PTE (PT_WINDOW + (TARGET >> 12 & 511) * 8)
#define ROUNDS 40
#define NOFLUSH (1ull << 63)
#define HIGH 0xffffff8000000000ull /* the lower 512 GiB once more, where kernels are */

/* ---- making the page another one: RBP is TARGET, R13 its entry, R14 the value ---- */

GUEST_ASM(by_invlpg, "mov [r13], r14; invlpg [rbp]");
GUEST_ASM(by_invlpg_in, "mov [r13], r14; lea rax, [rbp + 0x7f3]; invlpg [rax]");
GUEST_ASM(by_cr3, "mov [r13], r14; mov rax, cr3; mov cr3, rax");
GUEST_ASM(by_other_cr3, "mov cr3, r14");
GUEST_ASM(by_cr4, "mov [r13], r14; mov rax, cr4; xor rax, 0x80; mov cr4, rax; xor rax, 0x80; mov cr4, rax");
/* The descriptor is PCID and address. */
GUEST_ASM(by_invpcid0, "mov [r13], r14; push rbp; push 1; xor eax, eax; invpcid rax, [rsp]; add rsp, 16");
GUEST_ASM(by_invpcid1, "mov [r13], r14; push 0; push 1; mov eax, 1; invpcid rax, [rsp]; add rsp, 16");
GUEST_ASM(by_invpcid2, "mov [r13], r14; push 0; push 0; mov eax, 2; invpcid rax, [rsp]; add rsp, 16");
GUEST_ASM(by_invpcid3, "mov [r13], r14; push 0; push 0; mov eax, 3; invpcid rax, [rsp]; add rsp, 16");
/* Changed while the other context is the current one, and flushed there for this one. */
GUEST_ASM(by_invpcid_away, "mov rax, 0x9002; bts rax, 63; mov cr3, rax; mov [r13], r14; push 0; push 1\n"
                           "mov eax, 1; invpcid rax, [rsp]; add rsp, 16; mov rax, 0x4001; bts rax, 63\n"
                           "mov cr3, rax");
/* Through a task's worth of other code first: as a kernel switches. */
GUEST_ASM(by_entry_then_flush, "mov [r13], r14; mov rax, 0x4001; mov cr3, rax");

static const struct how {
    const char *name;
    const uint8_t *code, *end;
    uint64_t x, y; /* values of R14 in turn */
    uint64_t cr4;
    uint64_t cr3;
} hows[] = {
#define HOW(name, ...) {#name, by_##name, by_##name##_end, __VA_ARGS__}
#define PTES PAGE_X | PTE_RW, PAGE_Y | PTE_RW
#define GLOBALS PAGE_X | PTE_RW | PTE_G, PAGE_Y | PTE_RW | PTE_G
    HOW(invlpg, PTES, 0, GUEST_PML4),
    HOW(invlpg_in, PTES, 0, GUEST_PML4),
    HOW(invlpg, GLOBALS, 0, GUEST_PML4),
    HOW(cr3, PTES, 0, GUEST_PML4),
    HOW(other_cr3, GUEST_PML4, GUEST_PML4_OTHER, 0, GUEST_PML4),
    HOW(cr4, PTES, 0, GUEST_PML4),
    HOW(cr4, GLOBALS, 0, GUEST_PML4),
    HOW(other_cr3, GUEST_PML4 | 1, GUEST_PML4_OTHER | 2, CR4_PCIDE, GUEST_PML4 | 1),
    HOW(other_cr3, GUEST_PML4 | 1 | NOFLUSH, GUEST_PML4_OTHER | 2 | NOFLUSH, CR4_PCIDE, GUEST_PML4 | 1),
    HOW(other_cr3, GUEST_PML4 | 1, GUEST_PML4_OTHER | 1, CR4_PCIDE, GUEST_PML4 | 1),
    HOW(other_cr3, GUEST_PML4 | 0xabc | NOFLUSH, GUEST_PML4_OTHER | 0xabd, CR4_PCIDE, GUEST_PML4 | 0xabc),
    HOW(invpcid0, PTES, CR4_PCIDE, GUEST_PML4 | 1),
    HOW(invpcid1, PTES, CR4_PCIDE, GUEST_PML4 | 1),
    HOW(invpcid2, PTES, CR4_PCIDE, GUEST_PML4 | 1),
    HOW(invpcid2, GLOBALS, CR4_PCIDE, GUEST_PML4 | 1),
    HOW(invpcid3, PTES, CR4_PCIDE, GUEST_PML4 | 1),
    HOW(invpcid_away, PTES, CR4_PCIDE, GUEST_PML4 | 1),
    HOW(entry_then_flush, PTES, CR4_PCIDE, GUEST_PML4 | 1),
    HOW(invlpg, PTES, CR4_PCIDE, GUEST_PML4 | 1),
};

/* ---- going there: R11 is where to come back to ---- */

/* What a page holds: EAX = its number, and back. One for calls, one for jumps, at different offsets; the first also
 * where code falls in from the page before. */
enum { AT_JUMPED = 0, AT_CALLED = 0x40 };
GUEST_ASM(jumped, "mov eax, 0x11111111; jmp r11");
GUEST_ASM(called, "mov eax, 0x11111111; nop; ret");

GUEST_ASM(to_reg, "lea rdx, [rbp + 0x40]; call rdx");
GUEST_ASM(to_mem, "lea rdx, [rbp + 0x40]; push rdx; call [rsp]; pop rdx");
GUEST_ASM(to_jmp_reg, "lea r11, [rip + 1f]; jmp rbp; 1:");
GUEST_ASM(to_jmp_mem, "lea r11, [rip + 1f]; push rbp; jmp [rsp]; 1: pop rdx");
GUEST_ASM(to_ret, "lea r11, [rip + 1f]; push rbp; ret; 1:");
GUEST_ASM(to_retn, "lea r11, [rip + 1f]; push 0; push rbp; ret 8; 1:");
GUEST_ASM(to_iret, "lea r11, [rip + 1f]; mov rdx, rsp; mov eax, 16; push rax; push rdx; pushfq; push 8; push rbp; iretq; 1:");
/* The rest end in a displacement that is filled in. */
GUEST_ASM(to_call, "call .+5");
GUEST_ASM(to_jmp, "lea r11, [rip + 1f]; .byte 0xe9, 0, 0, 0, 0; 1:");
GUEST_ASM(to_jz, "lea r11, [rip + 1f]; xor eax, eax; .byte 0x0f, 0x84, 0, 0, 0, 0; 1:");
GUEST_ASM(to_not_jnz, "lea r11, [rip + 1f]; mov eax, 1; test eax, eax; .byte 0x0f, 0x85, 0, 0, 0, 0; 1:");
GUEST_ASM(to_fall, "lea r11, [rip + 1f]; .byte 0xe9, 0, 0, 0, 0; 1:");

static const struct way {
    const char *name;
    const uint8_t *code, *end;
    uint64_t direct; /* where the displacement leads */
} ways[] = {
#define WAY(name, direct) {#name, to_##name, to_##name##_end, direct}
    WAY(reg, 0),
    WAY(mem, 0),
    WAY(jmp_reg, 0),
    WAY(jmp_mem, 0),
    WAY(ret, 0),
    WAY(retn, 0),
    WAY(iret, 0),
    WAY(call, TARGET + AT_CALLED),
    WAY(jmp, TARGET + AT_JUMPED),
    WAY(jz, TARGET + AT_JUMPED),
    WAY(not_jnz, TARGET + AT_JUMPED),
    WAY(fall, TARGET - 8), /* NOPs to the page's end */
};

/* RBX = RBX * 3 + EAX; the next value. R12 counts, R15 is the other value, R9 the loop's start. */
GUEST_ASM(tail, "lea rbx, [rbx + rbx * 2]; add rbx, rax; xchg r14, r15; dec r12; jz 1f; jmp r9; 1: hlt");

static void put_page(struct world *w, uint64_t gpa, uint32_t number)
{
    uint8_t code[PAGE_SIZE];

    memset(code, HLT, sizeof(code));
    memcpy(code + AT_JUMPED, jumped, GUEST_ASM_LEN(jumped));
    memcpy(code + AT_CALLED, called, GUEST_ASM_LEN(called));
    memcpy(code + AT_JUMPED + 1, &number, 4);
    memcpy(code + AT_CALLED + 1, &number, 4);
    world_write(w, gpa, code, sizeof(code));
}

static uint64_t put_way(struct world *w, uint64_t at, const struct way *way)
{
    at = kit_bytes(w, at, way->code, (size_t)(way->end - way->code));
    if (way->direct) {
        uint32_t rel = (uint32_t)(way->direct - at);

        world_write(w, at - 4, &rel, 4);
    }
    return at;
}

static void run_linked(struct world *w, const struct how *how, const struct way *way, uint64_t cr4, uint64_t high)
{
    struct cpu_state s;
    uint64_t at = GUEST_CODE, want = 0;

    guest_map(w, TARGET, PAGE_X | PTE_RW);
    guest_map_other(w, TARGET, PAGE_Y | PTE_RW);
    at = kit_bytes(w, at, how->code, (size_t)(how->end - how->code));
    at = put_way(w, at, way);
    kit_put(w, at, tail);
    kit_state(&s, 0, GUEST_CODE, false);
    s.cr4 |= how->cr4 | cr4;
    s.cr3 = how->cr3;
    s.gpr[RBP] = TARGET | high;
    s.gpr[R9] = GUEST_CODE;
    s.gpr[R12] = ROUNDS;
    s.gpr[R13] = TARGET_PTE;
    s.gpr[R14] = how->x;
    s.gpr[R15] = how->y;
    for (unsigned k = 0; k < ROUNDS; k++)
        want = want * 3 + (k % 2 ? 0x2222 : 0x1111);
    int v = guest_run(w, &s);
    if (v != -1 || s.gpr[RBX] != want)
        print_message("%s by %s (%#llx): vector %d, %#llx not %#llx\n", way->name, how->name,
                      (unsigned long long)how->x, v, (unsigned long long)s.gpr[RBX],
                      (unsigned long long)want);
    assert_int_equal(v, -1);
    assert_int_equal(s.gpr[RBX], want);
}

static void test_remapped_targets(void **state)
{
    struct world *w = guest_new(1);
    uint8_t nops[PAGE_SIZE];

    put_page(w, PAGE_X, 0x1111);
    put_page(w, PAGE_Y, 0x2222);
    memset(nops, 0x90, sizeof(nops));
    world_write(w, PAGE_BEFORE, nops, sizeof(nops));
    guest_map(w, BEFORE, PAGE_BEFORE | PTE_RW);
    guest_map_other(w, BEFORE, PAGE_BEFORE | PTE_RW);
    for (unsigned k = 0; k < ARRAY_LEN(hows); k++)
        for (unsigned n = 0; n < ARRAY_LEN(ways); n++)
            for (unsigned pge = 0; pge < 2; pge++)
                run_linked(w, &hows[k], &ways[n], pge ? CR4_PGE : 0, 0);
    world_free(w);
}

static void map_high(struct world *w)
{
    guest_put64(w, GUEST_PML4 + 511 * 8, guest_u64(w, GUEST_PML4));
    guest_put64(w, GUEST_PML4_OTHER + 511 * 8, guest_u64(w, GUEST_PML4_OTHER));
}

/* Global code in the upper half may outlive changes of the address space, and flushes if it has not moved. */
static void test_remapped_kernel_code(void **state)
{
    struct world *w = guest_new(1);

    put_page(w, PAGE_X, 0x1111);
    put_page(w, PAGE_Y, 0x2222);
    map_high(w);
    for (unsigned k = 0; k < ARRAY_LEN(hows); k++)
        for (unsigned n = 0; n < ARRAY_LEN(ways) && !ways[n].direct; n++)
            for (unsigned pge = 0; pge < 2; pge++)
                run_linked(w, &hows[k], &ways[n], pge ? CR4_PGE : 0, HIGH);
    world_free(w);
}

/* ---- code in a large page ---- */

/* RBP is in a 2 MiB page, which is split: any address within it tells. RBX as in tail. */
GUEST_ASM(split_loop, "1: mov [r13], r14; invlpg [rbp]; call 3f; mov [r13], r15; invlpg [rbp + 0x5000]; call 3f\n"
                 "dec r12; jnz 1b; hlt; 3: call rbp; lea rbx, [rbx + rbx * 2]; add rbx, rax; ret");

/* The same, where everything is flushed. */
GUEST_ASM(split_loop_all, "1: mov [r13], r14; call 4f; call 3f; mov [r13], r15; call 4f; call 3f\n"
                     "dec r12; jnz 1b; hlt; 3: call rbp; lea rbx, [rbx + rbx * 2]; add rbx, rax; ret\n"
                     "4: push 0; push 0; mov eax, 2; invpcid rax, [rsp]; add rsp, 16; ret");

static void test_split_pages(void **state)
{
    const uint64_t pd = 0x6000, large = 1 << 7;
    struct world *w = guest_new(1);

    put_page(w, PAGE_X, 0x1111);
    put_page(w, PAGE_Y, 0x2222);
    guest_map(w, GUEST_WINDOW + PAGE_X, PAGE_Y | PTE_RW);
    map_high(w);
    for (unsigned round = 0; round < 12; round++) {
        unsigned global = round % 3;
        struct cpu_state s;
        uint64_t want = 0;

        if (round % 6 < 3)
            kit_put(w, GUEST_CODE, split_loop);
        else
            kit_put(w, GUEST_CODE, split_loop_all);
        kit_state(&s, 0, GUEST_CODE, false);
        if (global)
            s.cr4 |= CR4_PGE;
        s.gpr[RBP] = (GUEST_WINDOW + PAGE_X + AT_CALLED) | (round < 6 ? 0 : HIGH);
        s.gpr[R12] = ROUNDS;
        s.gpr[R13] = pd + (GUEST_WINDOW >> 21 & 511) * 8;
        s.gpr[R14] = PTE_RW | large | (global == 2 ? PTE_G : 0);
        s.gpr[R15] = PT_WINDOW | PTE_RW;
        for (unsigned k = 0; k < 2 * ROUNDS; k++)
            want = want * 3 + (k % 2 ? 0x2222 : 0x1111);
        assert_int_equal(guest_run(w, &s), -1);
        assert_int_equal(s.gpr[RBX], want);
    }
    world_free(w);
}

/* ---- returning to a page that has changed ---- */

/* In the window: calls f, which changes this page, and says which page it came back to. R8 is f's. */
GUEST_ASM(caller, "call r8; mov eax, 0x11111111; jmp r11");
GUEST_ASM(caller_loop, "lea r11, [rip + 1f]; jmp rbp\n"
                       "1: lea rbx, [rbx + rbx * 2]; add rbx, rax; dec r12; jz 2f; jmp r9; 2: hlt");
/* f: makes it the other page, goes deeper and returns. */
GUEST_ASM(f_tail, "xchg r14, r15; call 1f; ret; 1: ret");

static void test_remapped_returns(void **state)
{
    struct world *w = guest_new(1);

    for (unsigned page = 0; page < 2; page++) {
        uint32_t number = page ? 0x2222 : 0x1111;
        uint64_t gpa = page ? PAGE_Y : PAGE_X;

        kit_put(w, gpa, caller);
        world_write(w, gpa + 4, &number, 4);
    }
    for (unsigned k = 0; k < 2 * ARRAY_LEN(hows); k++) {
        const struct how *how = &hows[k / 2];
        struct cpu_state s;
        uint64_t want = 0;

        guest_map(w, TARGET, PAGE_X | PTE_RW);
        guest_map_other(w, TARGET, PAGE_Y | PTE_RW);
        kit_put(w, GUEST_CODE, caller_loop);
        kit_put(w, kit_bytes(w, GUEST_CODE + 0x800, how->code, (size_t)(how->end - how->code)), f_tail);
        kit_state(&s, 0, GUEST_CODE, false);
        s.cr4 |= how->cr4 | (k % 2 ? CR4_PGE : 0);
        s.cr3 = how->cr3;
        s.gpr[RBP] = TARGET;
        s.gpr[R8] = GUEST_CODE + 0x800;
        s.gpr[R9] = GUEST_CODE;
        s.gpr[R12] = ROUNDS;
        s.gpr[R13] = TARGET_PTE;
        s.gpr[R14] = how->y; /* entered as X, left as Y, and so on */
        s.gpr[R15] = how->x;
        for (unsigned n = 0; n < ROUNDS; n++)
            want = want * 3 + (n % 2 ? 0x1111 : 0x2222);
        int v = guest_run(w, &s);
        if (v != -1 || s.gpr[RBX] != want)
            print_message("by %s (%#llx): vector %d, %#llx not %#llx\n", how->name,
                          (unsigned long long)how->x, v, (unsigned long long)s.gpr[RBX],
                          (unsigned long long)want);
        assert_int_equal(v, -1);
        assert_int_equal(s.gpr[RBX], want);
    }
    world_free(w);
}

/* ---- targets that may no longer be run ---- */

/* After warm rounds the target page goes away, or becomes NX or the supervisor's: the transfer itself has
 * happened, the fetch faults, and the frame says so. */
static void test_lost_targets(void **state)
{
    static const struct {
        uint64_t pte;
        uint32_t error;
    } lost[] = {
        {0, PF_I}, {PAGE_X | PTE_RW | PTE_NX, PF_I | PF_P}, {PAGE_X | PTE_P | PTE_NX, PF_I | PF_P}};
    struct world *w = guest_new(1);
    uint8_t nops[PAGE_SIZE];

    put_page(w, PAGE_X, 0x1111);
    memset(nops, 0x90, sizeof(nops));
    world_write(w, PAGE_BEFORE, nops, sizeof(nops));
    guest_map(w, BEFORE, PAGE_BEFORE | PTE_RW);
    for (unsigned k = 0; k < ARRAY_LEN(lost); k++)
        for (unsigned n = 0; n < ARRAY_LEN(ways); n++) {
            struct cpu_state s;
            uint64_t go;

            guest_map(w, TARGET, PAGE_X | PTE_RW);
            kit_put(w, GUEST_CODE, by_invlpg);
            go = GUEST_CODE + GUEST_ASM_LEN(by_invlpg);
            kit_put(w, put_way(w, go, &ways[n]), tail);
            kit_state(&s, 0, go, false);
            s.gpr[RBP] = TARGET;
            s.gpr[R9] = go;
            s.gpr[R12] = 20;
            assert_int_equal(guest_run(w, &s), -1); /* warm: nothing is changed */
            kit_state(&s, 0, GUEST_CODE, false);
            s.gpr[RBP] = TARGET;
            s.gpr[R9] = GUEST_CODE;
            s.gpr[R12] = 20;
            s.gpr[R13] = TARGET_PTE;
            s.gpr[R14] = s.gpr[R15] = PAGE_X | PTE_RW;
            assert_int_equal(guest_run(w, &s), -1); /* and with the flush */
            kit_state(&s, 0, GUEST_CODE, false);
            s.gpr[RBP] = TARGET;
            s.gpr[R9] = GUEST_CODE;
            s.gpr[R12] = 20;
            s.gpr[R13] = TARGET_PTE;
            s.gpr[R14] = s.gpr[R15] = lost[k].pte;
            int v = guest_run(w, &s);
            bool calls = ways[n].direct ? ways[n].direct == TARGET + AT_CALLED
                                         : !strcmp(ways[n].name, "reg") || !strcmp(ways[n].name, "mem");
            uint64_t at = TARGET + (calls ? AT_CALLED : AT_JUMPED);

            if (v != X_PF || guest_u64(w, s.gpr[RSP] + 8) != at)
                print_message("%s, entry %#llx: vector %d, rip %#llx\n", ways[n].name,
                              (unsigned long long)lost[k].pte, v,
                              (unsigned long long)guest_u64(w, s.gpr[RSP] + 8));
            assert_int_equal(v, X_PF);
            assert_int_equal(s.cr2, at);
            assert_int_equal(guest_error(w, &s), lost[k].error);
            assert_int_equal(guest_u64(w, s.gpr[RSP] + 8), at);
        }
    world_free(w);
}

/* ---- the same code at two addresses ---- */

/* Address of its data, of itself as its own call sees it, and of itself as LEA does. */
GUEST_ASM(twice, "mov rax, [rip + 0x1000 - 7]; call 1f; 1: pop rcx; lea rdx, [rip]\n"
                 "call 2f; ret; 2: mov rsi, [rsp]; ret");
GUEST_ASM(twice_loop, "1: call rbp; add r10, rax; add r11, rcx; add r12, rdx; add r13, rsi; xchg rbp, r15\n"
                      "dec r14; jnz 1b; hlt");

static void test_code_mapped_twice(void **state)
{
    struct world *w = guest_new(1);
    const uint64_t a = GUEST_WINDOW + 0x4000, b = GUEST_WINDOW + 0x9000;
    struct cpu_state s, one;
    uint64_t sum[4] = {0};

    kit_put(w, PAGE_X, twice);
    guest_map(w, a, PAGE_X | PTE_RW);
    guest_map(w, b, PAGE_X | PTE_RW);
    guest_map(w, a + PAGE_SIZE, 0x60000 | PTE_RW);
    guest_map(w, b + PAGE_SIZE, 0x61000 | PTE_RW);
    guest_put64(w, 0x60000, 0x1000001);
    guest_put64(w, 0x61000, 0x2000003);
    kit_put(w, GUEST_CODE, twice_loop);
    for (unsigned k = 0; k < 2; k++) { /* each alone */
        kit_state(&one, 0, GUEST_CODE, false);
        one.gpr[RBP] = one.gpr[R15] = k ? b : a;
        one.gpr[R14] = 1;
        assert_int_equal(guest_run(w, &one), -1);
        assert_int_equal(one.gpr[R10], k ? 0x2000003 : 0x1000001);
        assert_int_equal(one.gpr[R11] & ~PAGE_MASK, k ? b : a);
        for (unsigned n = 0; n < 4; n++)
            sum[n] += one.gpr[R10 + n];
    }
    for (unsigned k = 1; k < 4; k++) /* the return addresses and LEA lie within */
        assert_int_equal((sum[k] - a - b) % 2, 0);
    kit_state(&s, 0, GUEST_CODE, false);
    s.gpr[RBP] = a;
    s.gpr[R15] = b;
    s.gpr[R14] = 100;
    assert_int_equal(guest_run(w, &s), -1);
    for (unsigned n = 0; n < 4; n++)
        assert_int_equal(s.gpr[R10 + n], sum[n] * 50);
    world_free(w);
}

/* The same bytes at the same address in two modes: INC RAX with REX, or DEC EAX and INC EAX; then the flags of a
 * 32-bit or a 64-bit comparison. */
static void test_code_in_two_modes(void **state)
{
    static const uint8_t code[] = {0x48, 0xff, 0xc0, 0x48, 0x01, 0xd8, 0x48, 0xff, 0xc1, 0xf4};
    struct world *w = guest_new(1);
    struct cpu_state s;

    world_write(w, GUEST_CODE, code, sizeof(code));
    for (unsigned k = 0; k < 12; k++) {
        kit_state(&s, 0, GUEST_CODE, false);
        s.gpr[RAX] = 0x1000;
        s.gpr[RBX] = 0x10;
        if (k % 3) {
            s.seg[CS].attr = (s.seg[CS].attr & ~(uint32_t)SEG_L) | (k % 3 == 1 ? SEG_DB : 0);
            assert_int_equal(guest_run(w, &s), -1);
            assert_int_equal(s.gpr[RAX], 0x1000 - 1 + 1 + 0x10 - 1 - 1);
            assert_int_equal((uint16_t)s.gpr[RCX], 1);
        } else {
            assert_int_equal(guest_run(w, &s), -1);
            assert_int_equal(s.gpr[RAX], 0x1011);
            assert_int_equal(s.gpr[RCX], 1);
        }
    }
    world_free(w);
}

/* ---- the same code in two rings ---- */

/* Ring 0 goes to R9, and from there to a page that is its own, over and over; then to R11, and on to R14 in ring 3. */
GUEST_ASM(both_rings, "mov r12d, 100; 1: call r9; dec r12d; jnz 1b; mov r8, r10; call r11; hlt");
GUEST_ASM(to_ring3, "push 0x23; push r13; push 2; push 0x2b; push r14; mov rbp, rbx; iretq");
GUEST_ASM(by_call, "call rbp; ret");
GUEST_ASM(by_jmp, "jmp rbp");
GUEST_ASM(by_ret, "push rbp; ret");
GUEST_ASM(nothing, "ret");
GUEST_ASM(own, "ret");
GUEST_ASM(own_calling, "call r8; ret");

static void test_rings(void **state)
{
    enum { SITE = 0x11000, NOTHING = 0x11100, TO_RING3 = 0x11200, BY_RET = 0x11300, RETURN = 3 };
    static const struct {
        const char *name;
        const uint8_t *code, *end;
        bool returns; /* ring 3 returns to where ring 0 would have returned to */
    } from[] = {
        {"call", by_call, by_call_end, false},
        {"jmp", by_jmp, by_jmp_end, false},
        {"ret", by_ret, by_ret_end, false},
        {"return", by_call, by_call_end, true},
    };
    struct world *w = guest_new(1);

    kit_put(w, GUEST_CODE, both_rings);
    kit_put(w, NOTHING, nothing);
    kit_put(w, TO_RING3, to_ring3);
    kit_put(w, BY_RET, by_ret);
    guest_map(w, TARGET, PAGE_X | PTE_RW);
    for (unsigned k = 0; k < ARRAY_LEN(from); k++) {
        struct cpu_state s;
        uint64_t at = TARGET + (from[k].returns ? RETURN : 0);

        kit_bytes(w, SITE, from[k].code, (size_t)(from[k].end - from[k].code));
        if (from[k].returns)
            kit_put(w, PAGE_X, own_calling);
        else
            kit_put(w, PAGE_X, own);
        kit_state(&s, 0, GUEST_CODE, false);
        s.gpr[RBP] = TARGET;
        s.gpr[RBX] = at;
        s.gpr[R8] = NOTHING;
        s.gpr[R9] = SITE;
        s.gpr[R10] = TO_RING3;
        s.gpr[R11] = from[k].returns ? SITE : TO_RING3;
        s.gpr[R13] = GUEST_STACK - 0x800;
        s.gpr[R14] = from[k].returns ? BY_RET : SITE;
        int v = guest_run(w, &s);
        if (v != X_PF || s.cr2 != at)
            print_message("%s: vector %d, cr2 %#llx\n", from[k].name, v, (unsigned long long)s.cr2);
        assert_int_equal(v, X_PF);
        assert_int_equal(s.cr2, at);
        assert_int_equal(guest_error(w, &s), PF_P | PF_U | PF_I);
    }
    world_free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_remapped_targets), cmocka_unit_test(test_remapped_kernel_code),  cmocka_unit_test(test_split_pages),
        cmocka_unit_test(test_remapped_returns),
        cmocka_unit_test(test_lost_targets),      cmocka_unit_test(test_code_mapped_twice),
        cmocka_unit_test(test_code_in_two_modes), cmocka_unit_test(test_rings),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
