/* Dry steps do what the interpreter really does, one instruction or event at a time, and leave no trace. */
#include "guest.h"

#include <stdlib.h>

#include "engine/interp/core.h"
#include "engine/interp/dry.h"

#define HANDLER_RFLAGS 0x202ull
#define USER_CODE 0x12000ull

struct scene {
    struct world *w;
    struct dry *dry;
    struct cpu *c;
};

static int setup(void **state)
{
    struct scene *x = calloc(1, sizeof(*x));

    x->w = guest_new(1);
    x->dry = dry_new();
    x->c = x->w->vcpu[0].priv;
    assert_non_null(x->dry);
    *state = x;
    return 0;
}

static int teardown(void **state)
{
    struct scene *x = *state;

    dry_free(x->dry);
    world_free(x->w);
    free(x);
    return 0;
}

static void prepare(struct cpu_state *s)
{
    guest_state(s);
    s->gpr[RBX] = GUEST_DATA;
    s->gpr[RSI] = GUEST_DATA + 0x100;
    s->gpr[RDI] = GUEST_DATA + 0x200;
    s->gpr[RAX] = 0x1122334455667788;
    s->gpr[RCX] = 3;
    s->gpr[RDX] = 0;
    s->cr4 |= CR4_OSFXSR;
    s->efer |= EFER_SCE;
    s->star = 0x0008ull << 32 | 0x0018ull << 48;
    s->lstar = GUEST_CODE + 0x800;
    s->sfmask = FL_IF | FL_TF;
}

static bool as_stored(void *arg, const struct dry_word *w, uint64_t expected)
{
    uint64_t v;

    memcpy(&v, w->at, sizeof(v));
    assert_int_equal(v & dry_bits(w->mask), expected & dry_bits(w->mask));
    return true;
}

static void dry(struct scene *x, const struct cpu_state *s, const struct event *event)
{
    static uint8_t before[WORLD_RAM];

    memcpy(before, x->w->mem, sizeof(before));
    dry_set_state(x->c, s);
    dry_step(x->dry, x->c, event);
    assert_memory_equal(before, x->w->mem, sizeof(before));
    assert_null(x->c->dry);
    assert_int_equal(x->w->nlog, 0);
}

/* What a dry step said and what the interpreter does. */
static void compare(struct scene *x, const struct cpu_state *s)
{
    struct cpu_state t;

    assert_int_equal(world_set(x->w, 0, s), 0);
    assert_int_equal(world_run(x->w, 0, 1), x->dry->end.activity == CPU_HALTED ? STOP_HLT : STOP_BUDGET);
    world_get(x->w, 0, &t);
    t.rflags &= ~FL_RF;
    x->dry->end.rflags &= ~FL_RF;
    x->dry->end.pdptes_valid = t.pdptes_valid;
    memcpy(x->dry->end.pdpte, t.pdpte, sizeof(t.pdpte));
    assert_memory_equal(&t, &x->dry->end, sizeof(t));
    dry_words(x->dry, 1, as_stored, NULL);
}

static void test_instructions(void **state)
{
    static const struct {
        uint8_t code[12];
        uint8_t vector; /* that it raises */
        uint8_t words;  /* stored to */
    } t[] = {
        {{0x48, 0xff, 0xc0 /* inc rax */}, DRY_NO_FAULT, 0},
        {{0x48, 0x89, 0x03 /* mov [rbx], rax */}, DRY_NO_FAULT, 1},
        {{0xf0, 0x48, 0x01, 0x43, 0x05 /* lock add [rbx+5], rax: two words */}, DRY_NO_FAULT, 2},
        {{0x9c /* pushf */}, DRY_NO_FAULT, 1},
        {{0xfb /* sti */}, DRY_NO_FAULT, 0},
        {{0x8e, 0xd8 /* mov ds, eax: no such selector */}, X_GP, 6},
        {{0x8e, 0xd1 /* mov ss, ecx: null, RPL 3 */}, X_GP, 6},
        {{0x8e, 0xe2 /* mov fs, edx: null */}, DRY_NO_FAULT, 0},
        {{0x0f, 0x01, 0xf8 /* swapgs */}, DRY_NO_FAULT, 0},
        {{0x0f, 0x05 /* syscall */}, DRY_NO_FAULT, 0},
        {{0x0f, 0x0b /* ud2 */}, X_UD, 5},
        {{0xf7, 0xf2 /* div edx */}, X_DE, 5},
        {{0x48, 0xa1, LE64(GUEST_WINDOW) /* mov rax, [...] */}, X_PF, 6},
        {{0xcd, 0x55 /* int 0x55 */}, DRY_NO_FAULT, 5},
        {{0xcc /* int3 */}, DRY_NO_FAULT, 5},
        {{0x0f, 0x20, 0xc0 /* mov rax, cr0 */}, DRY_NO_FAULT, 0},
        {{0x0f, 0x22, 0xd8 /* mov cr3, rax: not an address */}, X_GP, 6},
        {{0xf4 /* hlt */}, DRY_NO_FAULT, 0},
        {{0xd9, 0xeb /* fldpi */}, DRY_NO_FAULT, 0},
        {{0x66, 0x0f, 0xd4, 0x03 /* paddq xmm0, [rbx] */}, DRY_NO_FAULT, 0},
        {{0x0f, 0xae, 0x03 /* fxsave [rbx] */}, DRY_NO_FAULT, 64},
        {{0x48, 0x0f, 0xae, 0x43, 0x01 /* fxsave64 [rbx+1] */}, X_GP, 6},
        {{0xff, 0x2b /* jmp far [rbx]: a null selector */}, X_GP, 6},
    };
    struct scene *x = *state;

    for (unsigned k = 0; k < ARRAY_LEN(t); k++) {
        struct cpu_state s;

        prepare(&s);
        world_write(x->w, GUEST_CODE, t[k].code, sizeof(t[k].code));
        dry(x, &s, NULL);
        if (x->dry->stop != DRY_DONE || x->dry->vector != t[k].vector)
            fail_msg("%u: stop %u, vector %u", k, x->dry->stop, x->dry->vector);
        assert_true(x->dry->nwords <= t[k].words && !x->dry->nwords == !t[k].words);
        compare(x, &s);
    }
}

/* IRET to user mode and back by a fault there. */
static void test_user_mode(void **state)
{
    struct scene *x = *state;
    struct cpu_state s;

    guest_code(x->w, GUEST_CODE, 0x48, 0xcf); /* iretq */
    guest_code(x->w, USER_CODE, 0xfa);        /* cli */
    prepare(&s);
    s.gpr[RSP] -= 40;
    guest_put64(x->w, s.gpr[RSP], USER_CODE);
    guest_put64(x->w, s.gpr[RSP] + 8, 0x8);
    guest_put64(x->w, s.gpr[RSP] + 16, 0x202);
    guest_put64(x->w, s.gpr[RSP] + 24, GUEST_STACK - 0x100);
    guest_put64(x->w, s.gpr[RSP] + 32, 0x10);
    dry(x, &s, NULL);
    assert_int_equal(x->dry->stop, DRY_DONE);
    assert_int_equal(x->dry->end.rip, USER_CODE);
    assert_int_equal(x->dry->end.rflags, HANDLER_RFLAGS);
    compare(x, &s);
}

/* One element at a time. */
static void test_string(void **state)
{
    struct scene *x = *state;
    struct cpu_state s;

    guest_code(x->w, GUEST_CODE, 0xf3, 0x48, 0xab); /* rep stosq */
    prepare(&s);
    for (unsigned n = 0; n < 3; n++) {
        dry(x, &s, NULL);
        assert_int_equal(x->dry->stop, DRY_DONE);
        assert_int_equal(x->dry->end.gpr[RCX], 2 - n);
        assert_int_equal(x->dry->end.rip, n == 2 ? GUEST_CODE + 3 : GUEST_CODE);
        assert_int_equal(x->dry->nwords, 1);
        s = x->dry->end;
        s.rflags &= ~FL_RF;
    }
    assert_int_equal(s.gpr[RDI], GUEST_DATA + 0x200 + 24);
}

static void test_events(void **state)
{
    static const struct {
        struct event event;
        unsigned size; /* of its frame */
    } t[] = {
        {{.kind = EV_EXT_INT, .vector = 0x51}, 40},
        {{.kind = EV_NMI_INT, .vector = X_NMI}, 40},
        {{.kind = EV_FAULT, .vector = X_GP, .error = 0x18}, 48},
    };
    struct scene *x = *state;

    for (unsigned k = 0; k < ARRAY_LEN(t); k++) {
        struct cpu_state s;

        prepare(&s);
        dry(x, &s, &t[k].event);
        assert_int_equal(x->dry->stop, DRY_DONE);
        assert_int_equal(x->dry->end.gpr[RSP], s.gpr[RSP] - t[k].size);
        assert_int_equal(x->dry->end.nmi_blocked, t[k].event.kind == EV_NMI_INT);
        assert_int_not_equal(x->dry->end.rip, s.rip);
        assert_null(x->dry->point[0].row);
    }
}

static void test_refuses(void **state)
{
    static const uint8_t code[][8] = {
        {0x89, 0x07 /* mov [rdi], eax: I/O */},
        {0x8b, 0x07 /* mov eax, [rdi] */},
        {0xff, 0xe7 /* jmp rdi: then code in I/O */},
    };
    struct scene *x = *state;
    struct cpu_state s;

    for (unsigned k = 0; k < ARRAY_LEN(code); k++) {
        prepare(&s);
        s.gpr[RDI] = GUEST_IO;
        world_write(x->w, GUEST_CODE, code[k], sizeof(code[k]));
        dry(x, &s, NULL);
        if (k < 2) {
            assert_int_equal(x->dry->stop, DRY_REFUSED);
            continue;
        }
        s = x->dry->end;
        dry(x, &s, NULL);
        assert_int_equal(x->dry->stop, DRY_REFUSED);
    }
    /* A frame in I/O memory: the delivery ends. */
    prepare(&s);
    s.gpr[RSP] = GUEST_IO + 0x100;
    dry(x, &s, &(struct event){.kind = EV_EXT_INT, .vector = 0x51});
    assert_int_equal(x->dry->stop, DRY_REFUSED);
}

static void test_triple_fault(void **state)
{
    struct scene *x = *state;
    struct cpu_state s;

    guest_code(x->w, GUEST_CODE, 0x0f, 0x0b);
    prepare(&s);
    s.idtr.limit = 0;
    dry(x, &s, NULL);
    assert_int_equal(x->dry->stop, DRY_UNSURE);
}

/* An instruction that changes memory it reads is run again from what was there. */
static void test_again(void **state)
{
    struct scene *x = *state;
    struct cpu_state s;

    guest_code(x->w, GUEST_CODE, 0x48, 0x01, 0x03); /* add [rbx], rax */
    prepare(&s);
    s.gpr[RAX] = 5;
    guest_put64(x->w, GUEST_DATA, 10);
    dry(x, &s, NULL);
    guest_put64(x->w, GUEST_DATA, 15); /* as the other engine has left it */
    dry_step_again(x->dry, x->c, NULL);
    assert_int_equal(x->dry->stop, DRY_DONE);
    assert_int_equal(x->dry->word[0].now, 15);
    dry_words(x->dry, 1, as_stored, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_instructions, setup, teardown),
        cmocka_unit_test_setup_teardown(test_user_mode, setup, teardown),
        cmocka_unit_test_setup_teardown(test_string, setup, teardown),
        cmocka_unit_test_setup_teardown(test_events, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refuses, setup, teardown),
        cmocka_unit_test_setup_teardown(test_triple_fault, setup, teardown),
        cmocka_unit_test_setup_teardown(test_again, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
