/* Reset and INIT, the description that snapshots use, and what is refused. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/state.h"
#include "cpu/msr.h"
#include "cpu/state.h"
#include "rng.h"

/* 64-bit kernel code, as an operating system runs it. */
static void long_mode(struct cpu_state *s)
{
    cpu_state_reset(s);
    s->cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_WP | CR0_PG;
    s->cr3 = 0x1000;
    s->cr4 = CR4_PAE | CR4_PGE | CR4_OSFXSR | CR4_OSXSAVE | CR4_PCIDE;
    s->efer = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE;
    for (unsigned i = 0; i < SREG_COUNT; i++)
        s->seg[i] = (struct segment){
            .limit = 0xffffffff, .sel = 0x18, .attr = SEG_P | SEG_S | SEG_G | SEG_DB | 3};
    s->seg[CS] = (struct segment){
        .limit = 0xffffffff, .sel = 0x10, .attr = SEG_P | SEG_S | SEG_G | SEG_L | 11};
    s->seg[GS].base = 0xffff888000000000;
    s->ldtr = (struct segment){.attr = SEG_UNUSABLE};
    s->tr = (struct segment){
        .base = 0xfffffe0000001000, .limit = 0x67, .sel = 0x40, .attr = SEG_P | 11};
    s->gdtr = (struct table_reg){0xfffffe0000000000, 0x7f, {0}};
    s->idtr = (struct table_reg){0xfffffe0000002000, 0xfff, {0}};
    s->rip = 0xffffffff81000000;
    s->rflags = FL_R1 | FL_IF;
}

static void protected_mode(struct cpu_state *s)
{
    long_mode(s);
    s->efer = 0;
    s->cr4 &= ~CR4_PCIDE;
    s->seg[CS].attr = SEG_P | SEG_S | SEG_G | SEG_DB | 11;
    s->seg[GS].base = 0;
    s->rip = 0xc0001000;
}

static void v86_mode(struct cpu_state *s)
{
    protected_mode(s);
    s->rflags |= FL_VM | FL_IOPL;
    for (unsigned i = 0; i < SREG_COUNT; i++)
        s->seg[i] = (struct segment){.base = 0x12340, .limit = 0xffff, .sel = 0x1234, .attr = 0xf3};
    s->rip = 0x100;
}

static void user_mode(struct cpu_state *s)
{
    long_mode(s);
    s->seg[CS].sel = 0x33;
    s->seg[CS].attr |= 3 << SEG_DPL_SHIFT;
    s->seg[SS].sel = 0x2b;
    s->seg[SS].attr |= 3 << SEG_DPL_SHIFT;
    s->seg[DS] = s->seg[ES] = (struct segment){.attr = SEG_UNUSABLE};
    s->rip = 0x401000;
}

static void compat_mode(struct cpu_state *s)
{
    user_mode(s);
    s->seg[CS].attr = (s->seg[CS].attr & ~SEG_L) | SEG_DB;
}

static void valid(const struct cpu_state *s)
{
    struct err e = {""};

    if (cpu_state_validate(s, &e))
        fail_msg("%s", e.msg);
}

static void (*const modes[])(struct cpu_state *) = {
    cpu_state_reset, long_mode, protected_mode, v86_mode, user_mode, compat_mode,
};

static void test_modes(void **state)
{
    struct cpu_state s;

    (void)state;
    for (unsigned i = 0; i < ARRAY_LEN(modes); i++) {
        modes[i](&s);
        valid(&s);
    }
    /* Just after MOV CR0 set PE: still the real-mode segments. */
    cpu_state_reset(&s);
    s.cr0 |= CR0_PE;
    valid(&s);
    s.seg[CS].attr = 0x93; /* the manual calls CS data there */
    valid(&s);
    /* Straight-line code has arrived at the end of the lower half. */
    user_mode(&s);
    s.rip = 0x0000800000000000;
    valid(&s);
    /* Left long mode with CR3 where a legacy MOV could not have put it. */
    protected_mode(&s);
    s.cr3 = BIT(32);
    valid(&s);
    /* 64-bit kernels load null into SS. */
    long_mode(&s);
    s.seg[SS] = (struct segment){.attr = SEG_UNUSABLE};
    valid(&s);
}

static void test_reset(void **state)
{
    struct cpu_state s;

    (void)state;
    memset(&s, 0xa5, sizeof(s));
    cpu_state_reset(&s);
    valid(&s);
    assert_int_equal(s.rip, 0xfff0);
    assert_int_equal(s.rflags, 2);
    assert_int_equal(s.cr0, 0x60000010);
    assert_int_equal(s.cr2 | s.cr3 | s.cr4 | s.cr8 | s.efer, 0);
    assert_int_equal(s.seg[CS].sel, 0xf000);
    assert_int_equal(s.seg[CS].base, 0xffff0000);
    for (unsigned i = 0; i < SREG_COUNT; i++) {
        assert_int_equal(s.seg[i].limit, 0xffff);
        assert_int_equal(s.seg[i].attr, i == CS ? 0x9b : 0x93);
        if (i != CS)
            assert_true(!s.seg[i].sel && !s.seg[i].base);
    }
    assert_int_equal(s.gdtr.limit, 0xffff);
    assert_int_equal(s.idtr.limit, 0xffff);
    assert_int_equal(s.ldtr.attr, 0x82);
    assert_int_equal(s.tr.attr, 0x8b);
    assert_int_equal(s.dr[6], 0xffff0ff0);
    assert_int_equal(s.dr[7], 0x400);
    assert_int_equal(s.x87.fcw, 0x40);
    assert_int_equal(s.x87.fsw, 0);
    assert_int_equal(s.x87.tag, 0xff);
    assert_int_equal(s.mxcsr, 0x1f80);
    assert_int_equal(s.xcr0, 1);
    assert_int_equal(s.pat, 0x0007040600070406);
    assert_int_equal(s.mtrr_def, 0);
    assert_int_equal(cpu_cpl(&s), 0);
    assert_int_equal(cpu_code_bits(&s), CPU_16);
}

static void test_init(void **state)
{
    struct cpu_state s, before, reset;

    (void)state;
    long_mode(&s);
    memset(s.gpr, 0xff, sizeof(s.gpr));
    memset(s.zmm, 0x11, sizeof(s.zmm));
    s.cr0 |= CR0_CD;
    s.cr2 = 0x1234;
    s.dr[0] = 0x55;
    s.dr[7] |= 1;
    s.lstar = 0xffffffff81000000;
    s.kernel_gs_base = 0x10;
    s.pat = 0x0606060606060606;
    s.mtrr_def = 0xc06;
    s.xcr0 = 7;
    s.tsc_offset = 77;
    s.tsc_adjust = 78;
    s.x87.fcw = 0x37f;
    s.mxcsr = 0x1fa0;
    s.nmi_pending = s.nmi_blocked = s.init_pending = s.sipi_pending = 1;
    s.activity = CPU_HALTED;
    before = s;
    cpu_state_init(&s);
    cpu_state_reset(&reset);
    valid(&s);
    /* as after reset */
    assert_memory_equal(s.gpr, reset.gpr, sizeof(s.gpr));
    assert_memory_equal(s.seg, reset.seg, sizeof(s.seg));
    assert_memory_equal(&s.tr, &reset.tr, sizeof(s.tr));
    assert_memory_equal(&s.gdtr, &reset.gdtr, sizeof(s.gdtr));
    assert_memory_equal(s.dr, reset.dr, sizeof(s.dr));
    assert_int_equal(s.rip, 0xfff0);
    assert_int_equal(s.rflags, 2);
    assert_int_equal(s.cr2 | s.cr3 | s.cr4 | s.efer, 0);
    assert_int_equal(s.activity, CPU_RUNNING);
    assert_int_equal(s.nmi_pending | s.nmi_blocked | s.init_pending | s.sipi_pending, 0);
    /* kept */
    assert_int_equal(s.cr0, CR0_CD | CR0_ET);
    assert_int_equal(s.lstar, before.lstar);
    assert_int_equal(s.kernel_gs_base, before.kernel_gs_base);
    assert_int_equal(s.pat, before.pat);
    assert_int_equal(s.mtrr_def, before.mtrr_def);
    assert_int_equal(s.xcr0, before.xcr0);
    assert_int_equal(s.tsc_offset, before.tsc_offset);
    assert_int_equal(s.tsc_adjust, before.tsc_adjust);
    assert_memory_equal(&s.x87, &before.x87, sizeof(s.x87));
    assert_int_equal(s.mxcsr, before.mxcsr);
    assert_memory_equal(s.zmm, before.zmm, sizeof(s.zmm));
}

/* Each line makes one thing impossible in a state that is otherwise fine. */
#define BREAK(mode, change)                                     \
    do {                                                        \
        struct cpu_state s;                                     \
        struct err e = {""};                                    \
        mode(&s);                                               \
        change;                                                 \
        if (cpu_state_validate(&s, &e) != -EINVAL || !e.msg[0]) \
            fail_msg("%s: %s was accepted", #mode, #change);    \
    } while (0)

static void test_refused_control(void **state)
{
    (void)state;
    BREAK(long_mode, s.rflags &= ~FL_R1);
    BREAK(long_mode, s.rflags |= BIT(3));
    BREAK(long_mode, s.rflags |= BIT(22));
    BREAK(long_mode, s.rflags |= FL_VM);
    BREAK(long_mode, s.cr0 &= ~CR0_PE);
    BREAK(long_mode, s.cr0 &= ~CR0_PG);
    BREAK(long_mode, s.cr0 |= CR0_NW);
    BREAK(long_mode, s.cr0 |= BIT(32));
    BREAK(long_mode, s.cr0 &= ~CR0_ET);
    BREAK(long_mode, s.cr3 |= BIT(63));
    BREAK(long_mode, s.cr4 &= ~CR4_PAE);
    BREAK(long_mode, s.cr4 |= CR4_LA57);
    BREAK(long_mode, s.cr4 |= BIT(13));
    BREAK(long_mode, s.cr8 = 16);
    BREAK(long_mode, s.efer &= ~EFER_LMA);
    BREAK(long_mode, s.efer &= ~EFER_LME);
    BREAK(long_mode, s.efer |= BIT(12));
    BREAK(protected_mode, s.cr4 |= CR4_PCIDE);
    BREAK(protected_mode, s.efer |= EFER_LMA);
    BREAK(cpu_state_reset, s.rflags |= FL_VM);
    BREAK(long_mode, s.dr[4] = 1);
    BREAK(long_mode, s.dr[6] &= ~BIT(5));
    BREAK(long_mode, s.dr[6] |= BIT(12));
    BREAK(long_mode, s.dr[7] &= ~BIT(10));
    BREAK(long_mode, s.dr[7] |= BIT(14));
    BREAK(long_mode, s.dr[7] |= BIT(32));
    BREAK(long_mode, s.xcr0 = 0);
    BREAK(long_mode, s.xcr0 = 5);
    BREAK(long_mode, s.xcr0 = 0x27);
    BREAK(long_mode, s.xcr0 = 0xe3);
    BREAK(long_mode, s.xcr0 = BIT(9) | 7);
    BREAK(long_mode, s.xss = 1);
    BREAK(long_mode, s.rip = 0x0001000000000000);
    BREAK(long_mode, s.rip = 0xfffe800000000000);
    BREAK(compat_mode, s.rip = BIT(32));
    BREAK(cpu_state_reset, s.rip = BIT(32));
}

static void test_refused_segments(void **state)
{
    (void)state;
    BREAK(long_mode, s.seg[CS].attr |= SEG_UNUSABLE);
    BREAK(long_mode, s.seg[CS].attr |= SEG_DB);
    BREAK(long_mode, s.seg[CS].attr &= ~SEG_P);
    BREAK(long_mode, s.seg[CS].attr &= ~SEG_CODE);
    BREAK(long_mode, s.seg[CS].attr |= 3 << SEG_DPL_SHIFT);
    BREAK(long_mode, s.seg[CS].attr |= SEG_EXPDOWN | 3 << SEG_DPL_SHIFT);
    BREAK(user_mode, s.seg[CS].attr &= ~(3u << SEG_DPL_SHIFT));
    BREAK(user_mode, s.activity = CPU_HALTED);
    BREAK(long_mode, s.seg[SS].attr |= SEG_CODE);
    BREAK(long_mode, s.seg[SS].attr &= ~SEG_WRITE);
    BREAK(protected_mode, s.seg[SS].attr |= SEG_UNUSABLE);
    BREAK(protected_mode, s.seg[DS].attr &= ~SEG_P);
    BREAK(protected_mode, s.seg[DS].attr &= ~SEG_S);
    BREAK(protected_mode, s.seg[ES].attr = SEG_P | SEG_S | SEG_G | SEG_CODE);
    BREAK(protected_mode, s.seg[FS].limit = 0x12345);
    BREAK(protected_mode, s.seg[FS].attr &= ~SEG_G);
    BREAK(protected_mode, s.seg[DS].base = BIT(32));
    BREAK(protected_mode, s.seg[DS].attr |= BIT(8));
    BREAK(protected_mode, s.seg[DS].attr |= BIT(17));
    BREAK(long_mode, s.seg[FS].base = BIT(47));
    BREAK(v86_mode, s.seg[GS].base++);
    BREAK(v86_mode, s.seg[SS].limit = 0xfffff);
    BREAK(cpu_state_reset, s.seg[SS].attr |= 3 << SEG_DPL_SHIFT);
    BREAK(cpu_state_reset, s.seg[CS].attr |= 1 << SEG_DPL_SHIFT);
    BREAK(long_mode, s.tr.attr |= SEG_UNUSABLE);
    BREAK(long_mode, s.tr.attr = SEG_P | 9);
    BREAK(long_mode, s.tr.attr = SEG_P | 3);
    BREAK(long_mode, s.tr.attr &= ~SEG_P);
    BREAK(long_mode, s.tr.attr |= SEG_S);
    BREAK(protected_mode, s.ldtr.attr = SEG_P | 3);
    BREAK(protected_mode, s.ldtr.attr = 2);
    BREAK(long_mode, s.gdtr.base = BIT(50));
    BREAK(long_mode, s.idtr.base = BIT(63));
    BREAK(long_mode, s.tr.base = BIT(48));
}

static void test_refused_rest(void **state)
{
    (void)state;
    BREAK(long_mode, s.lstar = BIT(47));
    BREAK(long_mode, s.cstar = BIT(47));
    BREAK(long_mode, s.kernel_gs_base = BIT(62));
    BREAK(long_mode, s.sysenter_esp = BIT(47));
    BREAK(long_mode, s.sysenter_eip = BIT(47));
    BREAK(long_mode, s.sysenter_cs = BIT(32));
    BREAK(long_mode, s.sfmask = BIT(32));
    BREAK(long_mode, s.tsc_aux = BIT(32));
    BREAK(long_mode, s.pat = 2);
    BREAK(long_mode, s.pat = 8ull << 56);
    BREAK(long_mode, s.misc_enable |= BIT(1));
    BREAK(long_mode, s.spec_ctrl = BIT(3));
    BREAK(long_mode, s.debugctl = BIT(6));
    BREAK(long_mode, s.mcg_status = 8);
    BREAK(long_mode, s.mtrr_def = 2);
    BREAK(long_mode, s.mtrr_def = BIT(12));
    BREAK(long_mode, s.mtrr_fixed[10] = 7ull << 32);
    BREAK(long_mode, s.mtrr_var[0] = 3);
    BREAK(long_mode, s.mtrr_var[14] = BIT(8));
    BREAK(long_mode, s.mtrr_var[15] = BIT(10));
    BREAK(long_mode, s.mtrr_var[15] = BIT(52));
    BREAK(long_mode, s.mxcsr = BIT(16));
    BREAK(long_mode, s.x87.fop = 0x800);
    BREAK(long_mode, s.x87.st[3][10] = 1);
    BREAK(long_mode, s.x87.st[7][15] = 1);
    BREAK(long_mode, s.activity = CPU_SHUTDOWN + 1);
    BREAK(long_mode, s.sti_shadow = 2);
    BREAK(long_mode, s.mov_ss_shadow = 2);
    BREAK(long_mode, s.nmi_blocked = 2);
    BREAK(long_mode, s.nmi_pending = 255);
    BREAK(long_mode, s.init_pending = 2);
    BREAK(long_mode, s.sipi_pending = 2);
    BREAK(long_mode, s.pending_dbg = BIT(4));
    BREAK(long_mode, s.pdptes_valid = 1);
    BREAK(protected_mode, s.pdptes_valid = 2);
    BREAK(protected_mode, (s.pdptes_valid = 1, s.pdpte[2] = 0x2003)); /* a reserved bit */
}

static void test_described(void **state)
{
    struct err e = {""};

    (void)state;
    if (state_desc_check(&cpu_state_desc, &e))
        fail_msg("%s", e.msg);
}

/* Random values wherever any value is possible. */
static void randomise(struct cpu_state *s, struct rng *r)
{
    modes[rng_below(r, ARRAY_LEN(modes))](s);
    for (unsigned i = 0; i < 16; i++)
        s->gpr[i] = rng_next(r);
    s->cr2 = rng_next(r);
    s->cr8 = rng_below(r, 16);
    for (unsigned i = 0; i < 4; i++)
        s->dr[i] = rng_next(r);
    s->star = rng_next(r);
    s->lstar = sext(rng_next(r), 48);
    s->kernel_gs_base = sext(rng_next(r), 48);
    s->tsc_offset = rng_next(r);
    s->tsc_adjust = rng_next(r);
    s->mxcsr = (uint32_t)rng_below(r, 0x10000);
    for (unsigned i = 0; i < 8; i++)
        for (unsigned b = 0; b < 10; b++)
            s->x87.st[i][b] = (uint8_t)rng_next(r);
    s->x87.fsw = (uint16_t)rng_next(r);
    s->x87.fip = rng_next(r);
    for (unsigned i = 0; i < 256; i++)
        s->zmm[i / 8][i % 8] = rng_next(r);
    for (unsigned i = 0; i < 8; i++)
        s->k[i] = rng_next(r);
    s->nmi_pending = rng_below(r, 2);
    s->sti_shadow = rng_below(r, 2);
    s->sipi_vector = (uint8_t)rng_next(r);
}

static void test_save_load(void **state)
{
    struct rng r = {7};

    (void)state;
    for (unsigned n = 0; n < 300; n++) {
        struct cpu_state s, t;
        struct sbuf a, b;
        struct err e = {""};
        size_t used;

        randomise(&s, &r);
        valid(&s);
        sbuf_init(&a);
        sbuf_init(&b);
        assert_int_equal(state_save(&cpu_state_desc, &s, &a), 0);
        memset(&t, 0xee, sizeof(t));
        if (state_load(&cpu_state_desc, &t, a.data, a.len, &used, &e))
            fail_msg("%s", e.msg);
        assert_int_equal(used, a.len);
        assert_memory_equal(&s, &t, sizeof(s));
        assert_int_equal(state_save(&cpu_state_desc, &t, &b), 0);
        assert_int_equal(a.len, b.len);
        assert_memory_equal(a.data, b.data, a.len);
        sbuf_free(&a);
        sbuf_free(&b);
    }
}

/* A snapshot with a right checksum and an impossible state is refused, and changes nothing. */
static void test_load_refused(void **state)
{
    struct cpu_state s, t, before;
    struct sbuf a;
    struct err e = {""};
    size_t used;

    (void)state;
    long_mode(&s);
    s.efer &= ~EFER_LMA;
    sbuf_init(&a);
    assert_int_equal(state_save(&cpu_state_desc, &s, &a), 0);
    user_mode(&t);
    before = t;
    assert_int_equal(state_load(&cpu_state_desc, &t, a.data, a.len, &used, &e), -EINVAL);
    assert_non_null(strstr(e.msg, "efer"));
    assert_memory_equal(&t, &before, sizeof(t));
    sbuf_free(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_modes),
        cmocka_unit_test(test_reset),
        cmocka_unit_test(test_init),
        cmocka_unit_test(test_refused_control),
        cmocka_unit_test(test_refused_segments),
        cmocka_unit_test(test_refused_rest),
        cmocka_unit_test(test_described),
        cmocka_unit_test(test_save_load),
        cmocka_unit_test(test_load_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
