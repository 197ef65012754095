/*
 * No loop keeps a vCPU from noticing what others want of it: kicks, interrupts, NMIs, a change of the memory map. A test
 * that fails does not end; nothing is timed.
 */
#include <pthread.h>
#include <unistd.h>

#include "kit.h"

#define HANDLER 0x14000ull
#define OTHER_PAGE 0x15000ull
#define HANG_S 100
#define KICKS 12
#define INTERRUPTS 20

/* Loops without end; a tree of calls nothing but forward takes years. RBX and RCX count in step: RBX first. R9 is the loop's start, R10 another page, which jumps to R11. */
#define LOOPS(X)                                                                                  \
    X(self, "1: jmp 1b")                                                                          \
    X(self_near, "1: .byte 0xe9, 0xfb, 0xff, 0xff, 0xff")                                         \
    X(count, "1: inc rbx; inc rcx; jmp 1b")                                                       \
    X(dec_jnz, "1: inc rbx; inc rcx; or eax, -1; 2: dec eax; jnz 2b; jmp 1b")                     \
    X(dec_jnz64, "or rax, -1; 2: dec rax; jnz 2b")                                                \
    X(always, "1: inc rbx; inc rcx; xor eax, eax; jz 1b")                                         \
    X(forward, "1: inc rbx; jmp 3f; 2: inc rcx; jmp 1b; nop; 3: jmp 2b")                          \
    X(both, "1: inc rbx; test bl, 1; jz 3f; inc rcx; jmp 1b; 3: inc rcx; jmp 1b")                 \
    X(jrcxz, "xor ecx, ecx; 1: jrcxz 1b")                                                         \
    X(loop, "1: inc rbx; inc rcx; push rcx; or ecx, -1; 2: loop 2b; pop rcx; jmp 1b")             \
    X(call_ret, "1: inc rbx; call 3f; inc rcx; jmp 1b; 3: ret")                                   \
    X(recursion, "1: inc rbx; mov edx, 50; call 3f; inc rcx; jmp 1b; 3: dec edx; jz 4f; call 3b; 4: ret") \
    X(tree, "1: inc rbx; call 3f; inc rcx; jmp 1b; 3:.rept 45; call .+11; call .+6; ret; .endr; ret")        \
    X(only_ret, "1: lea rax, [rip + 1b]; push rax; ret")                                          \
    X(indirect, "1: inc rbx; inc rcx; jmp r9")                                                    \
    X(indirect_self, "lea rax, [rip + 1f]; 1: jmp rax")                                           \
    X(indirect_two, "lea rax, [rip + 1f]; lea rdx, [rip + 2f]; 1: inc rbx; jmp rdx; 2: inc rcx; jmp rax") \
    X(indirect_mem, "lea rax, [rip + 1f]; push rax; 1: jmp [rsp]")                                \
    X(other_page, "lea r11, [rip + 2f]; 1: inc rbx; jmp r10; 2: inc rcx; jmp 1b")                 \
    X(memory, "mov edx, 0x22000; 1: inc rbx; mov [rdx], rbx; mov rax, [rdx]; add [rdx + 8], rax; inc rcx; jmp 1b") \
    X(locked, "mov edx, 0x22000; 1: lock inc dword ptr [rdx]; jmp 1b")                            \
    X(pause, "1: pause; jmp 1b")                                                                  \
    X(spin, "mov edx, 0x22000; 1: cmp dword ptr [rdx + 64], 1; jne 1b")                           \
    X(strings, "1: mov rdx, rcx; mov edi, 0x22000; mov esi, edi; mov ecx, 64; rep movsb; mov rcx, rdx; jmp 1b") \
    X(vectors, "1: paddq xmm0, xmm1; mulpd xmm2, xmm3; jmp 1b")                                   \
    X(flags, "stc; 1: adc rax, rdx; lea rdi, [rdi + 1]; jmp 1b")

#define X(name, text) GUEST_ASM(l_##name, text);
LOOPS(X)
#undef X
static const struct loop {
    const char *name;
    const uint8_t *code, *end;
} loops[] = {
#define X(name, text) {#name, l_##name, l_##name##_end},
    LOOPS(X)
#undef X
};

GUEST_ASM(bounce, "jmp r11");

static struct world *loop_new(unsigned ncpu)
{
    struct world *w = guest_new(ncpu);

    kit_put(w, OTHER_PAGE, bounce);
    return w;
}

static void start(struct world *w, unsigned cpu, const struct loop *l, bool interrupts)
{
    struct cpu_state s;
    const uint64_t at = GUEST_CODE + cpu * 0x400;

    kit_bytes(w, at, l->code, (size_t)(l->end - l->code));
    kit_state(&s, cpu, at, interrupts);
    s.gpr[R9] = at;
    s.gpr[R10] = OTHER_PAGE;
    atomic_store(&w->vcpu[cpu].events, 0);
    atomic_store(&w->irq[cpu], -1);
    assert_int_equal(world_set(w, cpu, &s), 0);
}

static void check_progress(struct world *w, unsigned cpu, const struct loop *l)
{
    const uint64_t at = GUEST_CODE + cpu * 0x400;
    struct cpu_state s;

    world_get(w, cpu, &s);
    assert_true((s.rip >= at && s.rip < at + (uint64_t)(l->end - l->code)) || s.rip == OTHER_PAGE);
    if (strcmp(l->name, "jrcxz") && strcmp(l->name, "loop") && strcmp(l->name, "strings"))
        assert_true(s.gpr[RBX] - s.gpr[RCX] <= 1);
}

/* ---- kicks ---- */

struct kicker {
    struct world *w;
    unsigned us;
};

static void *kick(void *arg)
{
    struct kicker *k = arg;

    if (k->us)
        usleep(k->us);
    vcpu_post(&k->w->vcpu[0], VCPU_EV_KICK);
    return NULL;
}

static void test_kicks(void **state)
{
    struct world *w = loop_new(1);
    uint64_t seed = 7;

    for (unsigned n = 0; n < ARRAY_LEN(loops); n++) {
        start(w, 0, &loops[n], false);
        for (unsigned k = 0; k < KICKS; k++) {
            struct kicker how = {w, (unsigned)(kit_random(&seed) % 300)};
            pthread_t id;

            alarm(HANG_S);
            assert_int_equal(pthread_create(&id, NULL, kick, &how), 0);
            assert_int_equal(world_run(w, 0, 0), STOP_KICK);
            pthread_join(id, NULL);
            alarm(0);
            check_progress(w, 0, &loops[n]);
        }
    }
    world_free(w);
}

/* ---- interrupts and NMIs ---- */

/* Counts at 23000H; after enough of them the loop is left for a halt. */
GUEST_ASM(counting, "push rax; mov eax, 0x23000; inc qword ptr [rax]; cmp qword ptr [rax], 20; jb 1f\n"
                    "lea rax, [rip + 2f]; mov [rsp + 8], rax; and qword ptr [rsp + 24], -0x201; 1: pop rax; iretq\n"
                    "2: hlt; jmp 2b");

static void post_intr(struct world *w, void *arg)
{
    for (unsigned k = 0; k < w->vm.nvcpu; k++)
        if (atomic_load(&w->irq[k]) < 0) {
            atomic_store(&w->irq[k], 0x40);
            vcpu_post(&w->vcpu[k], VCPU_EV_INTR);
        }
}

static void post_nmi(struct world *w, void *arg) { vcpu_post(&w->vcpu[0], VCPU_EV_NMI); }

static void test_interrupts(void **state)
{
    struct world *w = loop_new(1);

    kit_put(w, HANDLER, counting);
    kit_gate(w, 0x40, HANDLER, false);
    kit_gate(w, X_NMI, HANDLER, false);
    for (unsigned n = 0; n < ARRAY_LEN(loops); n++)
        for (unsigned nmi = 0; nmi < 2; nmi++) {
            start(w, 0, &loops[n], !nmi);
            guest_put64(w, 0x23000, 0);
            kit_run_all(w, nmi ? post_nmi : post_intr, NULL);
            assert_true(guest_u64(w, 0x23000) >= INTERRUPTS);
        }
    world_free(w);
}

/* ---- the memory map ---- */

struct spinner {
    struct world *w;
    unsigned cpu;
    enum stop stop;
};

static void *spin(void *arg)
{
    struct spinner *s = arg;

    s->stop = world_run(s->w, s->cpu, 0);
    return NULL;
}

/* A change of the map waits until every vCPU has stood still for a moment. */
static void test_map_changes(void **state)
{
    struct region io = {.name = "bar", .kind = REGION_IO, .base = 0xb00000, .size = PAGE_SIZE};
    struct world *w = loop_new(2);

    for (unsigned n = 0; n < ARRAY_LEN(loops); n++) {
        struct spinner s[2];
        pthread_t id[2];
        struct err e;

        alarm(HANG_S);
        for (unsigned k = 0; k < 2; k++) {
            s[k] = (struct spinner){.w = w, .cpu = k};
            start(w, k, &loops[k ? (n + 1) % ARRAY_LEN(loops) : n], false);
            assert_int_equal(pthread_create(&id[k], NULL, spin, &s[k]), 0);
        }
        for (unsigned k = 0; k < 10; k++) {
            struct region *r = physmap_add(w->map, &io, &e);

            assert_non_null(r);
            usleep(50);
            assert_int_equal(physmap_del(w->map, r, &e), 0);
        }
        for (unsigned k = 0; k < 2; k++)
            vcpu_post(&w->vcpu[k], VCPU_EV_KICK);
        for (unsigned k = 0; k < 2; k++) {
            pthread_join(id[k], NULL);
            assert_int_equal(s[k].stop, STOP_KICK);
        }
        alarm(0);
        physmap_reclaim(w->map);
    }
    world_free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kicks),
        cmocka_unit_test(test_interrupts),
        cmocka_unit_test(test_map_changes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
