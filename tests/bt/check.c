/* Dry runs and lockstep checking: what they must see, and what they must not touch. */
#include "../interp/guest.h"

#include <stdio.h>
#include <unistd.h>

#include "lockstep.h"

#define LAST_PAGE (GUEST_DATA + PAGE_SIZE)

static int open_lock(void **state)
{
    static struct lock l;

    lock_open(&l, guest_new(1));
    *state = &l;
    return 0;
}

static int close_lock(void **state)
{
    struct lock *l = *state;
    struct world *w = l->w;

    lock_close(l);
    world_free(w);
    return 0;
}

static void put_code(struct lock *l, const uint8_t *code, size_t n)
{
    struct cpu_state s;

    world_write(l->w, GUEST_CODE, code, n);
    guest_state(&s);
    s.gpr[RBX] = GUEST_DATA;
    s.gpr[RSI] = GUEST_DATA + 0x100;
    s.gpr[RDI] = GUEST_DATA + 0x200;
    s.gpr[RAX] = 0x1122334455667788;
    s.gpr[RCX] = 3;
    s.gpr[RBP] = LAST_PAGE - 3;
    s.cr4 |= CR4_OSFXSR;
    assert_int_equal(world_set(l->w, 0, &s), 0);
}

/* Begins a check of the code, and returns its block. */
static struct block *start(struct lock *l, const uint8_t *code, size_t n)
{
    struct block *b;

    put_code(l, code, n);
    b = lock_block(l);
    assert_non_null(b);
    lock_begin(l, b, 0);
    return b;
}
#define CODE(...) (const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__})

/* Pieces of code: [rbx] and so on. */
#define STORE_RAX_RBX 0x48, 0x89, 0x03       /* mov [rbx], rax */
#define STORE_RAX_RBP 0x48, 0x89, 0x45, 0x00 /* mov [rbp], rax: crosses a page */
#define LOAD_RDX_RBX 0x48, 0x8b, 0x13
#define INC_RAX 0x48, 0xff, 0xc0
#define ADD_RBX_RAX 0x48, 0x01, 0x03 /* add [rbx], rax */
#define LOCK_XADD 0xf0, 0x48, 0x0f, 0xc1, 0x03
#define PUSH_RAX 0x50
#define POP_RDX 0x5a
#define REP_STOSQ 0xf3, 0x48, 0xab
#define REP_MOVSB 0xf3, 0xa4
#define STOSB 0xaa
#define MOVUPS_STORE 0x0f, 0x11, 0x43, 0x10 /* movups [rbx+16], xmm0 */
#define PADDQ_0_0 0x66, 0x0f, 0xd4, 0xc0
#define JMP_NEXT 0xeb, 0x00

/* ---- dry runs ---- */

static void leaves_no_trace(void **state)
{
    static uint8_t before[WORLD_RAM];
    static struct tlb_context tlb[TLB_CONTEXTS];
    struct lock *l = *state;
    struct cpu_state s, t;
    struct block *b;

    /* Pages that have not been touched, so that a real access would mark them. */
    guest_map(l->w, GUEST_DATA, GUEST_DATA | 7);
    guest_map(l->w, LAST_PAGE, LAST_PAGE | 7);
    put_code(l, CODE(STORE_RAX_RBX, STORE_RAX_RBP, ADD_RBX_RAX, LOCK_XADD, PUSH_RAX, POP_RDX,
                     REP_STOSQ, MOVUPS_STORE, 0xd9, 0xe8 /* fld1 */, 0x0f, 0xae, 0x43,
                     0x40 /* fxsave [rbx+64] */, 0xe8, LE32(0x100)));
    b = lock_block(l);
    assert_non_null(b);
    world_get(l->w, 0, &s);
    memcpy(before, l->w->mem, sizeof(before));
    memcpy(tlb, l->c->tlbs.ctx, sizeof(tlb));
    lock_begin(l, b, 0);
    world_get(l->w, 0, &t);
    assert_int_equal(l->dry->stop, DRY_DONE);
    assert_int_equal(l->dry->n, 11);
    assert_memory_equal(&s, &t, sizeof(s));
    assert_memory_equal(before, l->w->mem, sizeof(before));
    assert_memory_equal(tlb, l->c->tlbs.ctx, sizeof(tlb));
    assert_null(l->c->dry);
}

static void later_loads_see_stores(void **state)
{
    struct lock *l = *state;
    const struct dry *d = l->dry;

    /* A byte within a word, a word over a page's end, the stack. */
    start(l, CODE(0xc6, 0x43, 0x03, 0x5a /* mov byte [rbx+3], 5a */, 0x8b, 0x13 /* mov edx, [rbx] */,
                  STORE_RAX_RBP, 0x4c, 0x8b, 0x45, 0x00 /* mov r8, [rbp] */, PUSH_RAX, POP_RDX,
                  HLT));
    assert_int_equal(d->stop, DRY_REFUSED);
    assert_int_equal(d->vector, DRY_NO_FAULT);
    assert_int_equal(d->n, 6);
    assert_int_equal(d->point[2].gpr[RDX], 0x5a000000);
    assert_int_equal(d->point[4].gpr[R8], 0x1122334455667788);
    assert_int_equal(d->point[5].gpr[RSP], GUEST_STACK - 8);
    assert_int_equal(d->point[6].gpr[RDX], 0x1122334455667788);
    assert_int_equal(guest_u64(l->w, GUEST_DATA), 0);
    assert_int_equal(guest_u64(l->w, LAST_PAGE - 8), 0);
}

static bool find_word(void *arg, const struct dry_word *w, uint64_t expected)
{
    uint64_t *x = arg; /* in: gpa; out: what is expected there */

    if (w->gpa != x[0])
        return true;
    x[0] = expected & dry_bits(w->mask);
    return false;
}

static void stores_by_point(void **state)
{
    struct lock *l = *state;
    static const uint64_t want[] = {1, 1, 0x1122334455667788, 0x1122334455667788, 0x1122334455667789};

    guest_put64(l->w, GUEST_DATA, 1);
    start(l, CODE(0x90, STORE_RAX_RBX, INC_RAX, STORE_RAX_RBX, HLT));
    for (unsigned k = 0; k < ARRAY_LEN(want); k++) {
        uint64_t x[1] = {GUEST_DATA};

        assert_false(dry_words(l->dry, k, find_word, x));
        assert_int_equal(x[0], want[k]);
    }
}

static void refuses(void **state)
{
    static const struct {
        uint8_t code[8];
        unsigned n, vector;
    } t[] = {
        {{INC_RAX, 0xf4 /* hlt */}, 1, DRY_NO_FAULT},
        {{INC_RAX, 0xe4, 0x10 /* in */}, 1, DRY_NO_FAULT},
        {{INC_RAX, 0x0f, 0xa2 /* cpuid */}, 1, DRY_NO_FAULT},
        {{INC_RAX, 0x49, 0x89, 0x00 /* mov [r8], rax: I/O */}, 1, DRY_NO_FAULT},
        {{INC_RAX, 0x49, 0x8b, 0x00 /* mov rax, [r8] */}, 1, DRY_NO_FAULT},
        {{INC_RAX, 0x49, 0x89, 0x01 /* mov [r9], rax: not mapped */}, 1, X_PF},
        {{INC_RAX, 0xf7, 0xf2 /* div edx by 0 */}, 1, X_DE},
        {{INC_RAX, 0x41, 0xff, 0xe2 /* jmp r10: not canonical */}, 1, X_GP},
    };
    struct lock *l = *state;

    for (unsigned k = 0; k < ARRAY_LEN(t); k++) {
        put_code(l, t[k].code, sizeof(t[k].code));
        l->c->s.gpr[R8] = GUEST_IO;
        l->c->s.gpr[R9] = GUEST_WINDOW;
        l->c->s.gpr[R10] = 1ull << 63;
        l->c->s.gpr[RDX] = 0;
        world_forget_io(l->w);
        lock_begin(l, lock_block(l), 0);
        assert_int_equal(l->dry->stop, DRY_REFUSED);
        assert_int_equal(l->dry->n, t[k].n);
        assert_int_equal(l->dry->vector, t[k].vector);
        assert_int_equal(l->c->s.cr2, 0);
        assert_int_equal(l->w->nlog, 0);
    }
}

static void unsure(void **state)
{
    struct lock *l = *state;

    start(l, CODE(INC_RAX, 0x0f, 0x31 /* rdtsc */, INC_RAX, HLT));
    assert_int_equal(l->dry->stop, DRY_UNSURE);
    assert_int_equal(l->dry->n, 1);
    /* A translation that has gone on behind it cannot be judged. */
    lock_run(l, lock_block(l), 3);
    assert_true(lock_end(l));
    assert_int_equal(check_stats(l->ck)->unsure, 1);
    assert_int_equal(check_stats(l->ck)->blocks, 0);
}

static void too_many_stores(void **state)
{
    struct lock *l = *state;

    put_code(l, CODE(INC_RAX, REP_STOSQ, HLT));
    l->c->s.gpr[RDI] = 0x80000;
    l->c->s.gpr[RCX] = DRY_WORDS + 1;
    lock_begin(l, lock_block(l), 0);
    assert_int_equal(l->dry->stop, DRY_UNSURE);
    assert_int_equal(l->dry->n, 1);
    put_code(l, CODE(INC_RAX, REP_STOSQ, HLT));
    l->c->s.gpr[RDI] = 0x80000;
    l->c->s.gpr[RCX] = DRY_WORDS;
    lock_begin(l, lock_block(l), 0);
    assert_int_equal(l->dry->stop, DRY_REFUSED);
    assert_int_equal(l->dry->n, 2);
}

/* A store into the code ahead: what it has become is run. */
static void self_modifying(void **state)
{
    struct lock *l = *state;
    struct block *b;

    b = start(l, CODE(0xc6, 0x05, LE32(2), 0xc8, INC_RAX /* its last byte: becomes dec rax */, HLT));
    assert_int_equal(l->dry->n, 2);
    assert_int_equal(l->dry->point[2].gpr[RAX], 0x1122334455667787);
    lock_run(l, b, 2);
    assert_true(lock_end(l));
    assert_int_equal(l->c->s.rip, GUEST_CODE + 7);
}

/* A translation that has run the old code is wrong. */
static void self_modifying_missed(void **state)
{
    struct lock *l = *state;
    struct block *b =
        start(l, CODE(0xc6, 0x05, LE32(2), 0xc8, INC_RAX /* becomes dec rax */, HLT));

    lock_run(l, b, 2);
    l->c->s.gpr[RAX]++;
    l->c->s.rip += 3;
    assert_false(lock_end(l));
    assert_non_null(strstr(check_report(l->ck), "rax"));
}

/* ---- checks that agree ---- */

static void agrees(void **state)
{
    static const struct {
        uint8_t code[16];
        unsigned n;
    } t[] = {
        {{STORE_RAX_RBX, STORE_RAX_RBP, LOAD_RDX_RBX, HLT}, 3},
        {{ADD_RBX_RAX, LOCK_XADD, ADD_RBX_RAX, HLT}, 3},
        {{PUSH_RAX, POP_RDX, PUSH_RAX, 0xe8, LE32(0x100)}, 4},
        {{STOSB, REP_STOSQ, REP_MOVSB, HLT}, 3},
        {{PADDQ_0_0, MOVUPS_STORE, PADDQ_0_0, HLT}, 3},
        {{0x9c /* pushf */, 0xc8, 0x10, 0x00, 0x01 /* enter 16, 1 */, 0xc9, HLT}, 3},
        {{0x0f, 0xc7, 0x0b /* cmpxchg8b [rbx] */, 0xff, 0x56, 0x00 /* call [rsi] */}, 2},
        {{0xdb, 0xe3 /* fninit */, 0xd9, 0xe8 /* fld1 */, 0xdd, 0x1b /* fstp qword [rbx] */, HLT}, 3},
        {{0xfb /* sti */, 0x9c, 0xfa /* cli */, 0x9d /* popf */}, 1},
        {{0x9c, 0x9d}, 2},
        {{0x0f, 0x01, 0xf8 /* swapgs */, INC_RAX}, 1},
        {{INC_RAX, 0x74, 0x10 /* jz */, INC_RAX, 0x75, 0x10 /* jnz, taken */, INC_RAX}, 4},
        {{INC_RAX, 0xeb, 0xfb /* jmp to the start */}, 2},
        {{INC_RAX, JMP_NEXT}, 2},
    };
    struct lock *l = *state;

    for (unsigned k = 0; k < ARRAY_LEN(t); k++) {
        /* Coming out at any instruction is right. */
        for (unsigned n = 0; n <= t[k].n; n++) {
            struct block *b = start(l, t[k].code, sizeof(t[k].code));

            assert_int_equal(l->dry->n, t[k].n);
            lock_run(l, b, n);
            if (!lock_end(l))
                fail_msg("code %u, after %u: %s", k, n, check_report(l->ck));
        }
    }
    assert_int_equal(check_stats(l->ck)->raced, 0);
}

static void agrees_on_faults(void **state)
{
    struct lock *l = *state;
    struct block *b;

    guest_map(l->w, LAST_PAGE, 0);
    b = start(l, CODE(INC_RAX, STORE_RAX_RBX, STORE_RAX_RBP /* half of it faults */, HLT));
    assert_int_equal(l->dry->vector, X_PF);
    lock_run(l, b, 3);
    assert_true(l->c->deliver);
    assert_int_equal(l->c->s.cr2, LAST_PAGE);
    assert_true(lock_end(l));
    assert_int_equal(check_stats(l->ck)->insns, 2);
}

/* CALL stores its return address before it finds that its target is no address. */
static void agrees_on_stores_of_faults(void **state)
{
    struct lock *l = *state;

    for (unsigned n = 1; n <= 2; n++) {
        struct block *b;

        put_code(l, CODE(INC_RAX, 0x41, 0xff, 0xd2 /* call r10 */, HLT));
        l->c->s.gpr[R10] = 1ull << 63;
        guest_put64(l->w, GUEST_STACK - 8, 0);
        b = lock_block(l);
        assert_non_null(b);
        lock_begin(l, b, 0);
        assert_int_equal(l->dry->n, 1);
        assert_int_equal(l->dry->vector, X_GP);
        assert_true(l->dry->stored);
        lock_run(l, b, n);
        assert_int_equal(l->c->deliver, n == 2);
        assert_int_equal(guest_u64(l->w, GUEST_STACK - 8), n == 2 ? GUEST_CODE + 6 : 0);
        assert_true(lock_end(l));
    }
}

static void begins_in_the_middle(void **state)
{
    struct lock *l = *state;
    struct block *whole, *rest;

    put_code(l, CODE(INC_RAX, STORE_RAX_RBX, INC_RAX, HLT));
    whole = lock_block(l);
    l->c->s.rip += 3;
    rest = lock_block(l);
    assert_non_null(whole);
    assert_non_null(rest);
    lock_begin(l, whole, 3);
    assert_int_equal(l->dry->n, 2);
    lock_run(l, rest, 2);
    assert_int_equal(guest_u64(l->w, GUEST_DATA), 0x1122334455667788);
    assert_true(lock_end(l));
}

/* What the processor leaves undefined may differ, what was made of it cannot be judged. */
static void undefined_flags(void **state)
{
    struct lock *l = *state;
    struct block *b;

    b = start(l, CODE(0x48, 0xc1, 0xc0, 0x07 /* rol rax, 7 */, HLT));
    assert_int_equal(l->dry->point[1].undef, FL_OF);
    lock_run(l, b, 1);
    l->c->cc ^= 1; /* OF */
    assert_true(lock_end(l));
    b = start(l, CODE(0x48, 0xc1, 0xc0, 0x07, HLT));
    lock_run(l, b, 1);
    l->c->cc ^= 0x100; /* CF */
    assert_false(lock_end(l));

    b = start(l, CODE(0x48, 0xc1, 0xc0, 0x07, 0x0f, 0x90, 0xc2 /* seto dl */, HLT));
    lock_run(l, b, 2);
    l->c->s.gpr[RDX] ^= 1;
    assert_int_equal(check_stats(l->ck)->unsure, 0);
    assert_true(lock_end(l));
    assert_int_equal(check_stats(l->ck)->unsure, 1);
}

/* ---- checks that do not ---- */

struct wrong {
    const char *says;
    void (*spoil)(struct lock *l);
};

static void spoil_rax(struct lock *l) { l->c->s.gpr[RAX] ^= 1; }
static void spoil_r15(struct lock *l) { l->c->s.gpr[R15] ^= BIT(63); }
static void spoil_zf(struct lock *l) { l->c->cc ^= 0x4000; }
static void spoil_df(struct lock *l) { l->c->s.rflags ^= FL_DF; }
static void spoil_if(struct lock *l) { l->c->s.rflags ^= FL_IF; }
static void spoil_rip(struct lock *l) { l->c->s.rip += 1; }
static void spoil_zmm(struct lock *l) { l->c->s.zmm[7][3] ^= 1; }
static void spoil_mxcsr(struct lock *l) { l->c->s.mxcsr ^= 1; }
static void spoil_k(struct lock *l) { l->c->s.k[5] ^= 1; }
static void spoil_st(struct lock *l) { l->c->s.x87.st[2][4] ^= 1; }
static void spoil_fs(struct lock *l) { l->c->s.seg[FS].base ^= 1; }
static void spoil_cr3(struct lock *l) { l->c->s.cr3 ^= 0x1000; }
static void spoil_shadow(struct lock *l) { l->c->s.sti_shadow = 1; }
static void spoil_nmi(struct lock *l) { l->c->s.nmi_blocked = 1; }
static void spoil_gs(struct lock *l) { l->c->s.kernel_gs_base ^= 1; }
static void spoil_byte(struct lock *l) { l->w->mem[GUEST_DATA + 7] ^= 1; }
static void spoil_far_byte(struct lock *l) { l->w->mem[LAST_PAGE + 4] ^= 1; }

static void finds(void **state)
{
    static const struct wrong t[] = {
        {"rax ", spoil_rax},     {"r15 ", spoil_r15},    {"rflags ", spoil_zf},
        {"rflags ", spoil_df},   {"rflags ", spoil_if},  {"never was", spoil_rip},
        {"zmm7+24 ", spoil_zmm}, {"mxcsr+0 ", spoil_mxcsr}, {"k5+0 ", spoil_k},
        {"x87+32 ", spoil_st},   {"segments+", spoil_fs}, {"control+", spoil_cr3}, {"kernel gs ", spoil_gs},
        {"sti shadow ", spoil_shadow}, {"other+", spoil_nmi}, {"[0x20000] ", spoil_byte}, {"[0x21000] ", spoil_far_byte},
    };
    struct lock *l = *state;

    for (unsigned k = 0; k < ARRAY_LEN(t); k++) {
        struct block *b = start(l, CODE(STORE_RAX_RBX, STORE_RAX_RBP, PADDQ_0_0, HLT));
        struct vcpu *v = &l->w->vcpu[0];

        v->error.msg[0] = '\0';
        lock_run(l, b, 3);
        t[k].spoil(l);
        assert_false(lock_end(l));
        assert_non_null(strstr(v->error.msg, "0x10000"));
        if (!strstr(check_report(l->ck), t[k].says))
            fail_msg("no \"%s\" in: %s", t[k].says, check_report(l->ck));
    }
    assert_int_equal(check_stats(l->ck)->blocks, 0);
}

/* A store that is there before the instruction has been reached. */
static void finds_early_store(void **state)
{
    struct lock *l = *state;
    struct block *b = start(l, CODE(INC_RAX, STORE_RAX_RBX, HLT));

    lock_run(l, b, 1);
    guest_put64(l->w, GUEST_DATA, l->c->s.gpr[RAX]);
    assert_false(lock_end(l));
    assert_non_null(strstr(check_report(l->ck), "[0x20000]"));
}

/* Going on behind an instruction that is not the translation's. */
static void finds_overrun(void **state)
{
    struct lock *l = *state;
    struct block *b = start(l, CODE(INC_RAX, 0x49, 0x89, 0x00 /* mov [r8], rax */, INC_RAX, HLT));

    l->c->s.gpr[R8] = GUEST_IO;
    lock_begin(l, b, 0);
    lock_run(l, b, 2);
    assert_int_equal(l->c->s.rip, GUEST_CODE + 6);
    assert_false(lock_end(l));
}

static void report_is_complete(void **state)
{
    static const char *const has[] = {
        "code at gpa 0x10000, rip 0x10000, 64-bit, CPL 0, after 0 blocks alike\n",
        "  0x10000: inc          48 ff c0\n",
        "  0x10003: mov          48 89 03\n",
        "the interpreter ended before an instruction that is not translated at 0x10006\n",
        "the translation came out at 0x10006\n",
        "  rax          1122334455667788 1122334455667789 1122334455667780\n",
        "  [0x20000]    0000000000000005 1122334455667789 0000000000000006\n",
    };
    static char log[8192];
    struct lock *l = *state;
    struct block *b;
    ssize_t n;

    guest_put64(l->w, GUEST_DATA, 5);
    b = start(l, CODE(INC_RAX, STORE_RAX_RBX, HLT));
    lock_run(l, b, 2);
    l->c->s.gpr[RAX] = 0x1122334455667780;
    guest_put64(l->w, GUEST_DATA, 6);
    assert_false(lock_end(l));
    for (unsigned k = 0; k < ARRAY_LEN(has); k++)
        if (!strstr(check_report(l->ck), has[k]))
            fail_msg("no \"%s\" in: %s", has[k], check_report(l->ck));
    assert_null(strstr(check_report(l->ck), "rbx"));
    n = pread(l->log, log, sizeof(log) - 1, 0);
    assert_true(n > 0);
    assert_non_null(strstr(log, "the translation came out at 0x10006\n"));
}

/* ---- other agents, and string instructions left half-way ---- */

static void second_look(void **state)
{
    struct lock *l = *state;
    struct block *b = start(l, CODE(LOAD_RDX_RBX, 0x48, 0x01, 0x56, 0x00 /* add [rsi], rdx */, HLT));

    guest_put64(l->w, GUEST_DATA, 77);
    lock_run(l, b, 2);
    assert_int_equal(guest_u64(l->w, GUEST_DATA + 0x100), 77);
    assert_true(lock_end(l));
    assert_int_equal(check_stats(l->ck)->raced, 1);
    /* What it did with it is still looked at. */
    b = start(l, CODE(LOAD_RDX_RBX, 0x48, 0x01, 0x56, 0x00, HLT));
    guest_put64(l->w, GUEST_DATA, 78);
    lock_run(l, b, 2);
    guest_put64(l->w, GUEST_DATA + 0x100, 156);
    assert_false(lock_end(l));
}

static void middle_of_string(void **state)
{
    struct lock *l = *state;
    struct cpu *c = l->c;

    for (unsigned spoiled = 0; spoiled < 3; spoiled++) {
        world_write(l->w, GUEST_DATA + 0x100, "abcdefgh", 8);
        world_write(l->w, GUEST_DATA + 0x200, "........", 8);
        start(l, CODE(INC_RAX, REP_MOVSB, HLT));
        /* As a translation that has done two of the three. */
        c->s.gpr[RAX]++;
        c->s.rip += 3;
        c->s.gpr[RCX] = 1;
        c->s.gpr[RSI] += 2;
        c->s.gpr[RDI] += 2;
        c->s.rflags |= FL_RF;
        c->cc = (uint16_t)(l->dry->point[1].rflags << 8 | (l->dry->point[1].rflags >> 11 & 1));
        world_write(l->w, GUEST_DATA + 0x200, "ab", 2);
        if (spoiled == 1)
            world_write(l->w, GUEST_DATA + 0x201, "c", 1);
        if (spoiled == 2)
            world_write(l->w, GUEST_DATA + 0x202, "c", 1);
        assert_int_equal(lock_end(l), !spoiled);
    }
    assert_int_equal(check_stats(l->ck)->raced, 0);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, open_lock, close_lock)
    const struct CMUnitTest tests[] = {
        T(leaves_no_trace),   T(later_loads_see_stores), T(stores_by_point),
        T(refuses),           T(unsure),                 T(too_many_stores),
        T(self_modifying),    T(self_modifying_missed),  T(agrees),
        T(agrees_on_faults),  T(agrees_on_stores_of_faults), T(begins_in_the_middle),
        T(undefined_flags),   T(finds),                  T(finds_early_store),
        T(finds_overrun),     T(report_is_complete),     T(second_look),
        T(middle_of_string),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
