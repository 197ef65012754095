/*
 * Flags across faults and interrupts in the middle of a block. Every kind of flag producer is followed by
 * every kind of access that faults: the flags in the fault's frame must be the producer's, as the silicon computes
 * them, and so must those that the code finds when it goes on. Loops whose flags live across the back-edge are
 * interrupted by another thread and must not notice.
 */
#include <sys/mman.h>

#include "insn/insn.h"
#include "kit.h"

#define HANDLER 0x14000ull
#define SEEN 0x21000ull /* by the #PF handler: frame's RIP and flags, error code, how many */
#define FAR (GUEST_WINDOW + 0x3000) /* the page before it is mapped */
#define RESULT 0x22000ull

/* ---- faults ---- */

/* Registers that producers work on: RAX, RCX, RDX, RBX. */
#define PRODUCERS(X)                                                                              \
    X(add, "add eax, ecx")                                                                        \
    X(add8, "add al, ch")                                                                         \
    X(add16, "add ax, cx")                                                                        \
    X(add64, "add rax, rcx")                                                                      \
    X(addi, "add rax, 0x7f")                                                                      \
    X(sub, "sub rax, rcx")                                                                        \
    X(sub8, "sub al, cl")                                                                         \
    X(cmp, "cmp eax, ecx")                                                                        \
    X(cmp8, "cmp al, 0x80")                                                                       \
    X(cmpsame, "cmp rax, rax")                                                                    \
    X(test, "test rax, rcx")                                                                      \
    X(test8, "test cl, 1")                                                                        \
    X(and_, "and eax, ecx")                                                                       \
    X(or_, "or rax, rcx")                                                                         \
    X(xor_, "xor eax, ecx")                                                                       \
    X(zero, "xor eax, eax")                                                                       \
    X(inc, "inc eax")                                                                             \
    X(inc8, "inc al")                                                                             \
    X(dec, "dec rax")                                                                             \
    X(neg, "neg rax")                                                                             \
    X(neg16, "neg cx")                                                                            \
    X(not_, "not rax")                                                                            \
    X(adc, "adc rax, rcx")                                                                        \
    X(adc8, "adc al, cl")                                                                         \
    X(sbb, "sbb eax, ecx")                                                                        \
    X(sbbsame, "sbb rax, rax")                                                                    \
    X(shl1, "shl eax, 1")                                                                         \
    X(shl, "shl rax, cl")                                                                         \
    X(shr, "shr eax, cl")                                                                         \
    X(sar, "sar rax, 5")                                                                          \
    X(rol, "rol eax, cl")                                                                         \
    X(ror1, "ror rax, 1")                                                                         \
    X(rcl, "rcl eax, cl")                                                                         \
    X(rcr1, "rcr rax, 1")                                                                         \
    X(shld, "shld rax, rcx, 7")                                                                   \
    X(shrd, "shrd eax, edx, cl")                                                                  \
    X(mul, "mul ecx")                                                                             \
    X(imul1, "imul rcx")                                                                          \
    X(imul2, "imul eax, ecx")                                                                     \
    X(imul3, "imul rax, rcx, 77")                                                                 \
    X(bt, "bt rax, rcx")                                                                          \
    X(bts, "bts eax, 9")                                                                          \
    X(btc, "btc rax, rcx")                                                                        \
    X(popcnt, "popcnt rax, rcx")                                                                  \
    X(bsf, "bsf rax, rcx")                                                                        \
    X(bsr, "bsr eax, ecx")                                                                        \
    X(xadd, "xadd rax, rcx")                                                                      \
    X(cmpxchg, "cmpxchg edx, ecx")                                                                \
    X(stc, "stc")                                                                                 \
    X(cmc, "cmc")                                                                                 \
    X(sahf, "sahf")                                                                               \
    X(popf, "and eax, 0x8d5; push rax; popfq")                                                    \
    X(comisd, "movq xmm0, rax; movq xmm1, rcx; ucomisd xmm0, xmm1")                               \
    X(ptest, "movq xmm0, rax; movq xmm1, rcx; pcmpeqb xmm1, xmm0; pmovmskb ebx, xmm1; cmp bl, 3") \
    X(pair, "add rax, rcx; inc edx")                                                              \
    X(chain, "cmp eax, ecx; sbb edx, edx; lea rbx, [rdx + rax]; setc bl")                         \
    X(cmov, "sub eax, ecx; cmovc ecx, edx; cmovs rdx, rax")                                       \
    /* What recipes are made of is changed by constants, kept, or has no home. */                 \
    X(addinc, "add eax, ecx; inc eax")                                                           \
    X(addincs, "add rax, rcx; inc rax; inc rax; dec rcx")                                        \
    X(cmpinc, "cmp eax, ecx; inc eax; dec rcx")                                                  \
    X(cmpnarrow, "cmp rax, rcx; dec eax")                                                        \
    X(subdecmov, "sub rax, 100; dec rax; mov rax, rbx")                                          \
    X(testinc, "test eax, ecx; inc eax")                                                         \
    X(orinc, "or al, cl; inc eax; inc rcx")                                                      \
    X(neginc, "neg rax; inc rax")                                                                \
    X(shlinc, "shl eax, 3; inc eax; dec rcx")                                                    \
    X(addmov, "add eax, ecx; mov ecx, ebx")                                                      \
    X(addmovdst, "add rax, rcx; mov rax, rdx")                                                   \
    X(cmpmovs, "cmp al, cl; mov al, dl; mov cl, 3")                                              \
    X(negmov, "neg ecx; mov ecx, edx")                                                           \
    X(cmpleas, "cmp rax, rcx; lea rax, [rax + 40]; lea rcx, [rcx - 3]")                          \
    X(decjnz, "dec ecx; jnz 1f; 1: lea rdx, [rdx + 1]")                                          \
    X(decjbe, "add eax, edx; dec ecx; jbe 1f; 1: lea rdx, [rdx + 1]")                            \
    X(spilled, "mov r8, rax; sub r8, rcx; mov r8, rdx")                                          \
    X(spilleds, "mov r8, rcx; mov r11, rax; cmp r11d, r8d; mov r11d, edx")                       \
    X(spilledimm, "mov r8, rax; add r8w, 0x1234; test r8b, 0x81")                                \
    X(dead, "add eax, ecx; sub edx, ecx; xor ebx, edx; and ebx, eax")

#define X(name, text) GUEST_ASM(p_##name, text);
PRODUCERS(X)
#undef X

static const struct producer {
    const char *name;
    const uint8_t *code, *end;
    unsigned index;
} producers[] = {
#define X(name, text) {#name, p_##name, p_##name##_end, 0},
    PRODUCERS(X)
#undef X
};

/* RDI and RSP point at what is not mapped. The number is that of the instruction that faults. */
#define ACCESSES(X)                                       \
    X(load, 0, "mov rsi, [rdi]")                             \
    X(load8, 0, "movzx esi, byte ptr [rdi + 5]")             \
    X(store, 0, "mov [rdi], r8")                             \
    X(store8, 0, "mov byte ptr [rdi + 3], 7")                \
    X(push, 0, "push r8")                                    \
    X(pushm, 0, "push qword ptr [rsi]")                      \
    X(pop, 0, "pop rsi")                                     \
    X(pops, 1, "pop rsi; pop rsi")                           \
    X(vload, 0, "movups xmm3, [rdi]")                        \
    X(vstore, 0, "movups [rdi], xmm3")                       \
    X(second, 1, "mov rsi, [rdi - 64]; mov rsi, [rdi + 8]")  \
    X(cross, 0, "mov rsi, [rdi - 3]")                        \
    X(xchg, 0, "xchg [rdi], rsi")                            \
    X(movnti, 0, "movnti [rdi], r8")                         \
    X(calls, 0, "call 1f; 1: lea rsp, [rsp + 8]")            \
    X(setcc, 0, "setnc byte ptr [rdi]")                      \
    X(cmov, 0, "cmovc rsi, [rdi]")                           \
    X(jcc, 1, "jc 1f; 1: mov rsi, [rdi]")                    \
    X(jmp, 1, "jmp 1f; 1: mov rsi, [rdi]")                   \
    X(movs, 1, "lea rsi, [rip]; movsb; lea rdi, [rdi - 1]")

#define X(name, index, text) GUEST_ASM(a_##name, text);
ACCESSES(X)
#undef X

static const struct producer accesses[] = {
#define X(name, index, text) {#name, a_##name, a_##name##_end, index},
    ACCESSES(X)
#undef X
};

/* Maps the page and goes back; uses flags on the way. */
GUEST_ASM(pf_handler,
          "push rax; push rdx\n"
          "mov rdx, 0x21000\n"
          "mov rax, [rsp + 16]; mov [rdx + 16], rax\n" /* error code */
          "mov rax, [rsp + 24]; mov [rdx], rax\n"      /* RIP */
          "mov rax, [rsp + 40]; mov [rdx + 8], rax\n"  /* flags */
          "inc qword ptr [rdx + 24]\n"
          "mov rax, cr2; shr rax, 12; and eax, 511\n"
          "mov qword ptr [rax * 8 + 0x8000], 0x50003\n"
          "mov rax, cr2; invlpg [rax]\n"
          "xor eax, eax; sub eax, 1\n"
          "pop rdx; pop rax; add rsp, 8; iretq");
GUEST_ASM(before, "lea r9, [r9 + 3]; mov r10, r9");
GUEST_ASM(between, "mov r12, rax; lea r13, [rax + rcx * 2]");
GUEST_ASM(after, "lea rsp, [r15]; pushfq; pop r14; hlt");

struct regs {
    uint64_t rax, rcx, rdx, rbx, flags;
};

/* A function around a piece: struct regs at RDI goes in and comes out. */
GUEST_ASM(native_head, "push rbx; push rbp; mov rax, [rdi]; mov rcx, [rdi + 8]; mov rdx, [rdi + 16]\n"
                       "mov rbx, [rdi + 24]; push qword ptr [rdi + 32]; popfq");
GUEST_ASM(native_tail, "pushfq; pop qword ptr [rdi + 32]; mov [rdi], rax; mov [rdi + 8], rcx\n"
                       "mov [rdi + 16], rdx; mov [rdi + 24], rbx; pop rbp; pop rbx; ret");

/* Runs it on the silicon. */
static void run_native(uint8_t *page, const uint8_t *code, size_t n, struct regs *r)
{
    uint8_t *p = page;

    mprotect(page, PAGE_SIZE, PROT_READ | PROT_WRITE);
    memcpy(p, native_head, GUEST_ASM_LEN(native_head));
    p += GUEST_ASM_LEN(native_head);
    memcpy(p, code, n);
    memcpy(p + n, native_tail, GUEST_ASM_LEN(native_tail));
    mprotect(page, PAGE_SIZE, PROT_READ | PROT_EXEC);
    ((void (*)(struct regs *))(uintptr_t)page)(r);
}

static uint8_t *native_page(void)
{
    uint8_t *page = mmap(NULL, PAGE_SIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    assert_true(page != MAP_FAILED);
    return page;
}

/* Status flags that are defined after the producer's last instruction that writes any. */
static uint64_t defined(const struct producer *p)
{
    uint64_t undef = 0;
    struct insn i;

    for (const uint8_t *c = p->code; c < p->end; c += i.len) {
        assert_int_equal(insn_decode(&i, c, (size_t)(p->end - c), CPU_64), INSN_OK);
        undef = (undef & ~(uint64_t)(i.row->fl_write & ~i.row->fl_read)) | i.row->fl_undef;
    }
    return FL_STATUS & ~undef;
}

static void run_faulting(struct world *w, const struct producer *p, const struct producer *a,
                         const struct regs *in, const struct regs *want)
{
    uint64_t mask = defined(p), at, fault;
    struct cpu_state s;
    struct insn i;

    at = kit_put(w, GUEST_CODE, before);
    at = kit_bytes(w, at, p->code, (size_t)(p->end - p->code));
    fault = at = kit_put(w, at, between);
    at = kit_bytes(w, at, a->code, (size_t)(a->end - a->code));
    kit_put(w, at, after);
    if (a->index) {
        assert_int_equal(insn_decode(&i, a->code, (size_t)(a->end - a->code), CPU_64), INSN_OK);
        fault += i.len;
    }
    guest_map(w, FAR, 0);
    guest_put64(w, SEEN + 24, 0);
    kit_state(&s, 0, GUEST_CODE, false);
    s.gpr[RAX] = in->rax;
    s.gpr[RCX] = in->rcx;
    s.gpr[RDX] = in->rdx;
    s.gpr[RBX] = in->rbx;
    s.gpr[R15] = GUEST_STACK;
    s.gpr[RSI] = GUEST_DATA;
    s.gpr[RDI] = FAR;
    s.rflags = in->flags | FL_R1;
    /* Of the accesses only some use RSP: the others need it for POPF. */
    if (!strncmp(a->name, "push", 4) || !strcmp(a->name, "pop") || !strcmp(a->name, "calls")) {
        if (!strcmp(p->name, "popf"))
            return;
        s.gpr[RSP] = FAR + 0x100;
    } else if (!strcmp(a->name, "pops")) {
        if (!strcmp(p->name, "popf"))
            return;
        s.gpr[RSP] = FAR - 8;
    }
    int v = guest_run(w, &s);
    uint64_t frame = guest_u64(w, SEEN + 8), rip = guest_u64(w, SEEN);

    if (v != -1 || guest_u64(w, SEEN + 24) != 1 || ((frame ^ want->flags) & mask) ||
        ((s.gpr[R14] ^ want->flags) & mask) || rip != fault)
        print_message("%s, %s: rax %#llx rcx %#llx flags %#llx: vector %d, %llu faults at %+lld, flags "
                      "%#llx, later %#llx, silicon %#llx of %#llx\n",
                      p->name, a->name, (unsigned long long)in->rax, (unsigned long long)in->rcx,
                      (unsigned long long)in->flags, v, (unsigned long long)guest_u64(w, SEEN + 24),
                      (long long)(rip - fault), (unsigned long long)frame,
                      (unsigned long long)s.gpr[R14], (unsigned long long)want->flags,
                      (unsigned long long)mask);
    assert_int_equal(v, -1);
    assert_int_equal(guest_u64(w, SEEN + 24), 1);
    assert_int_equal(rip, fault);
    assert_int_equal(frame & mask, want->flags & mask);
    assert_int_equal(s.gpr[R14] & mask, want->flags & mask);
    assert_int_equal(s.gpr[R9], 3);
    assert_int_equal(s.gpr[R10], 3);
    assert_int_equal(s.gpr[R12], want->rax);
    assert_int_equal(s.gpr[R13], want->rax + want->rcx * 2);
    assert_int_equal(s.gpr[RAX], want->rax);
    assert_int_equal(s.gpr[RCX], want->rcx);
    assert_int_equal(s.gpr[RDX], want->rdx);
    assert_int_equal(s.gpr[RBX], want->rbx);
}

static void test_faults(void **state)
{
    static const uint64_t special[] = {0, 1, 0x7f, 0x80, 0xff, 0x7fffffff, 0x80000000, 0xffffffff,
                                       1ull << 63, ~0ull, 0x5555555555555555};
    struct world *w = guest_new(1);
    uint8_t *page = native_page();
    uint64_t seed = 88172645463325252ull;

    kit_put(w, HANDLER, pf_handler);
    kit_gate(w, X_PF, HANDLER, true);
    guest_map(w, FAR - PAGE_SIZE, 0x60003);
    for (unsigned p = 0; p < ARRAY_LEN(producers); p++)
        for (unsigned a = 0; a < ARRAY_LEN(accesses); a++)
            for (unsigned k = 0; k < 4; k++) {
                struct regs in = {kit_random(&seed), kit_random(&seed), kit_random(&seed),
                                  kit_random(&seed), kit_random(&seed) & FL_STATUS};

                if (k & 1)
                    in.rax = special[kit_random(&seed) % ARRAY_LEN(special)];
                if (k & 2)
                    in.rcx = special[kit_random(&seed) % ARRAY_LEN(special)];
                if (!strcmp(accesses[a].name, "jcc") || !strcmp(accesses[a].name, "cmov"))
                    in.flags |= k & 1;
                struct regs want = in;

                want.flags |= FL_R1 | FL_IF;
                run_native(page, producers[p].code, (size_t)(producers[p].end - producers[p].code), &want);
                run_faulting(w, &producers[p], &accesses[a], &in, &want);
            }
    world_free(w);
    munmap(page, PAGE_SIZE);
}

/* ---- interrupts ---- */

/* Each starts with its registers at 1 and RCX at a count, and leaves its results in RAX and RDX. No flag that a
 * round leaves is written before the next round reads it. */
#define LOOPS(X)                                                                                  \
    X(adc_lea, "stc; 1: adc rax, rbx; rcl rdx, 1; lea rcx, [rcx - 1]; jrcxz 2f; jmp 1b; 2:")      \
    X(adc_dec, "clc; 1: adc rax, rdx; adc rdx, rbx; dec rcx; jnz 1b")                             \
    X(sbb_loop, "stc; 1: sbb rax, rbx; rcr rdx, 1; adc rbx, rbp; loop 1b")                        \
    X(split, "1: add rax, rdx; jmp 3f; 3: adc rdx, rbx; jmp 4f; 4: setc bl\n"                     \
             "lea rbx, [rbx + rcx]; dec rcx; jnz 1b")                                             \
    X(zero, "cmp rax, rdx; 1: setz bl; cmovz rdx, rcx; lea rax, [rax + rbx + 1]\n"                \
            "lea rcx, [rcx - 1]; jrcxz 2f; jz 3f; cmp rax, rdx; jmp 1b\n"                         \
            "3: cmp rax, rcx; jmp 1b; 2:")                                                        \
    X(calls, "clc; 1: call 3f; adc rax, rdx; dec rcx; jnz 1b; jmp 2f\n"                           \
             "3: rcr rdx, 1; adc rdx, rax; ret; 2:")                                              \
    X(indirect, "lea rbp, [rip + 1f]; stc; 1: adc rax, rbx; rcl rbx, 1; setc dl\n"                \
                "lea rcx, [rcx - 1]; jrcxz 2f; jmp rbp; 2:")                                      \
    X(memory, "push 0; stc; 1: adc [rsp], rcx; rcl rdx, 1; push rdx; pop rbx; mov rax, [rsp]\n"   \
              "lea rcx, [rcx - 1]; jrcxz 2f; jmp 1b; 2: pop rcx")                                 \
    X(inc, "clc; 1: inc rax; rcl rdx, 1; inc rbx; setz bpl; lea rcx, [rcx - 1]; jrcxz 2f; jmp 1b; 2:")

#define PASS_COUNT 2000
#define INTERRUPTS 150
#define X(name, text) GUEST_ASM(l_##name, "mov ebp, 1\n" text);
LOOPS(X)
#undef X

static const struct producer loops[] = {
#define X(name, text) {#name, l_##name, l_##name##_end, 0},
    LOOPS(X)
#undef X
};

/* Passes, each compared with what is expected at RESULT, until the handler has been here often enough. */
GUEST_ASM(pass_head, "7: mov eax, 1; mov edx, 1; mov ebx, 1; mov ecx, 2000; jmp 8f\n"
                     ".balign 64\n8:");
GUEST_ASM(pass_tail,
          "mov rsi, 0x22000; cmp rax, [rsi]; jne 1f; cmp rdx, [rsi + 8]; je 2f\n"
          "1: inc qword ptr [rsi + 16]; mov [rsi + 32], rax; mov [rsi + 40], rdx\n"
          "2: mov rax, [rsi + 24]; cmp rax, 150; jae 3f; jmp r15\n"
          "3: cli; 4: hlt; jmp 4b");
/* Spoils every flag and its own registers. */
GUEST_ASM(irq_handler, "push rax; push rdx; push rsi; mov rsi, 0x22000; mov eax, [rsi + 24]; inc eax\n"
                       "mov [rsi + 24], rax; mov rdx, rax; not rdx; add rax, rdx; rcl rdx, 3; cmp rax, rdx\n"
                       "and eax, 1; jz 1f; stc; jmp 2f; 1: clc; 2: pop rsi; pop rdx; pop rax; iretq");

static void interrupt(struct world *w, void *arg)
{
    unsigned *n = arg;

    if (atomic_load(&w->irq[0]) < 0) { /* the last one has been taken */
        atomic_store(&w->irq[0], 0x40);
        vcpu_post(&w->vcpu[0], VCPU_EV_INTR);
    }
    if (++*n % 3 == 0)
        vcpu_post(&w->vcpu[0], VCPU_EV_NMI);
}

static void test_interrupts(void **state)
{
    struct world *w = guest_new(1);
    uint8_t *page = native_page();

    kit_put(w, HANDLER, irq_handler);
    kit_gate(w, 0x40, HANDLER, false);
    kit_gate(w, X_NMI, HANDLER, true);
    for (unsigned k = 0; k < ARRAY_LEN(loops); k++) {
        struct regs r = {1, PASS_COUNT, 1, 1, FL_R1};
        size_t n = (size_t)(loops[k].end - loops[k].code);
        struct cpu_state s;
        unsigned calls = 0;

        run_native(page, loops[k].code, n, &r);
        uint64_t at = kit_put(w, GUEST_CODE, pass_head);
        at = kit_bytes(w, at, loops[k].code, n);
        kit_put(w, at, pass_tail);
        const uint64_t result[] = {r.rax, r.rdx, 0, 0, 0, 0};
        world_write(w, RESULT, result, sizeof(result));
        kit_state(&s, 0, GUEST_CODE, true);
        s.gpr[R15] = GUEST_CODE;
        assert_int_equal(world_set(w, 0, &s), 0);
        atomic_store(&w->irq[0], -1);
        kit_run_all(w, interrupt, &calls);
        atomic_store(&w->vcpu[0].events, 0);
        if (guest_u64(w, RESULT + 16))
            print_message("%s: rax %#llx rdx %#llx, want %#llx %#llx\n", loops[k].name,
                          (unsigned long long)guest_u64(w, RESULT + 32),
                          (unsigned long long)guest_u64(w, RESULT + 40), (unsigned long long)r.rax,
                          (unsigned long long)r.rdx);
        assert_int_equal(guest_u64(w, RESULT + 16), 0);
        assert_true(guest_u64(w, RESULT + 24) >= INTERRUPTS);
    }
    world_free(w);
    munmap(page, PAGE_SIZE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_faults),
        cmocka_unit_test(test_interrupts),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
