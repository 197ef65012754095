/* Reset and INIT values, and the description that snapshots use. Checks are in state_check.c. */
#include <string.h>

#include "base/state.h"
#include "cpu/msr.h"
#include "cpu/state.h"

static const struct segment reset_data = {.limit = 0xffff,
                                          .attr = SEG_P | SEG_S | SEG_WRITE | SEG_ACCESSED};

/* What RESET and INIT have in common (SDM vol. 3 table 10-1). */
static void reset_common(struct cpu_state *s)
{
    memset(s->gpr, 0, sizeof(s->gpr));
    s->rip = 0xfff0;
    s->rflags = FL_R1;
    for (unsigned i = 0; i < SREG_COUNT; i++)
        s->seg[i] = reset_data;
    s->seg[CS].sel = 0xf000;
    s->seg[CS].base = 0xffff0000;
    s->seg[CS].attr |= SEG_CODE;
    s->ldtr = (struct segment){.limit = 0xffff, .attr = SEG_P | 2};
    s->tr = (struct segment){.limit = 0xffff, .attr = SEG_P | 11};
    s->gdtr = (struct table_reg){.limit = 0xffff};
    s->idtr = (struct table_reg){.limit = 0xffff};
    s->cr2 = 0;
    s->cr3 = 0;
    s->cr4 = 0;
    s->cr8 = 0;
    s->efer = 0;
    memset(s->dr, 0, sizeof(s->dr));
    s->dr[6] = DR6_FIXED;
    s->dr[7] = DR7_FIXED;
    s->activity = CPU_RUNNING;
    s->sti_shadow = 0;
    s->mov_ss_shadow = 0;
    s->nmi_blocked = 0;
    s->nmi_pending = 0;
    s->init_pending = 0;
    s->sipi_pending = 0;
    s->sipi_vector = 0;
    s->pending_dbg = 0;
    s->pdptes_valid = 0;
}

void cpu_state_reset(struct cpu_state *s)
{
    memset(s, 0, sizeof(*s));
    reset_common(s);
    s->cr0 = CR0_CD | CR0_NW | CR0_ET;
    s->xcr0 = XCR0_X87;
    s->pat = MSR_PAT_RESET;
    s->misc_enable = MSR_MISC_ENABLE_RESET;
    s->x87.fcw = 0x0040;
    s->x87.tag = 0xff; /* tag word 5555: every register holds +0.0, none is empty */
    s->mxcsr = 0x1f80;
}

void cpu_state_init(struct cpu_state *s)
{
    reset_common(s);
    s->cr0 = (s->cr0 & (CR0_CD | CR0_NW)) | CR0_ET;
}

static const struct state_field segment_fields[] = {
    STATE_FIELD(struct segment, base), STATE_FIELD(struct segment, limit),
    STATE_FIELD(struct segment, attr), STATE_FIELD(struct segment, sel),
    STATE_PAD(struct segment, pad),
};

static const struct state_desc segment_desc = {
    .name = "segment",
    .version = 1,
    .size = sizeof(struct segment),
    .fields = segment_fields,
    .nfields = ARRAY_LEN(segment_fields),
};

static const struct state_field table_reg_fields[] = {
    STATE_FIELD(struct table_reg, base),
    STATE_FIELD(struct table_reg, limit),
    STATE_PAD(struct table_reg, pad),
};

static const struct state_desc table_reg_desc = {
    .name = "table_reg",
    .version = 1,
    .size = sizeof(struct table_reg),
    .fields = table_reg_fields,
    .nfields = ARRAY_LEN(table_reg_fields),
};

/* A two-dimensional array is saved as its elements in memory order. */
#define STATE_ARRAY2(type, m)                                                              \
    {                                                                                      \
        .name = #m, .off = offsetof(type, m), .size = sizeof(((type *)0)->m[0][0]),        \
        .count = sizeof(((type *)0)->m) / sizeof(((type *)0)->m[0][0]), .kind = STATE_UINT \
    }

static const struct state_field x87_fields[] = {
    STATE_ARRAY2(struct x87_state, st), STATE_FIELD(struct x87_state, fcw),
    STATE_FIELD(struct x87_state, fsw), STATE_FIELD(struct x87_state, tag),
    STATE_PAD(struct x87_state, pad0),  STATE_FIELD_MAX(struct x87_state, fop, 0x7ff),
    STATE_FIELD(struct x87_state, fip), STATE_FIELD(struct x87_state, fdp),
    STATE_FIELD(struct x87_state, fcs), STATE_FIELD(struct x87_state, fds),
    STATE_PAD(struct x87_state, pad1),
};

static const struct state_desc x87_desc = {
    .name = "x87",
    .version = 1,
    .size = sizeof(struct x87_state),
    .fields = x87_fields,
    .nfields = ARRAY_LEN(x87_fields),
};

#define F(m) STATE_FIELD(struct cpu_state, m)
#define F_MAX(m, max) STATE_FIELD_MAX(struct cpu_state, m, max)

static const struct state_field cpu_state_fields[] = {
    STATE_ARRAY(struct cpu_state, gpr),
    F(rip),
    F(rflags),
    STATE_SUBARRAY(struct cpu_state, seg, &segment_desc),
    STATE_SUB(struct cpu_state, ldtr, &segment_desc),
    STATE_SUB(struct cpu_state, tr, &segment_desc),
    STATE_SUB(struct cpu_state, gdtr, &table_reg_desc),
    STATE_SUB(struct cpu_state, idtr, &table_reg_desc),
    F(cr0),
    F(cr2),
    F(cr3),
    F(cr4),
    F_MAX(cr8, 15),
    STATE_ARRAY(struct cpu_state, dr),
    F(xcr0),
    F(xss),
    F(efer),
    F(star),
    F(lstar),
    F(cstar),
    F(sfmask),
    F(kernel_gs_base),
    F(tsc_aux),
    F(sysenter_cs),
    F(sysenter_esp),
    F(sysenter_eip),
    F(pat),
    F(misc_enable),
    F(spec_ctrl),
    F(debugctl),
    F(mtrr_def),
    STATE_ARRAY(struct cpu_state, mtrr_fixed),
    STATE_ARRAY(struct cpu_state, mtrr_var),
    F(mcg_status),
    F(tsc_offset),
    F(tsc_adjust),
    STATE_SUB(struct cpu_state, x87, &x87_desc),
    F(mxcsr),
    F_MAX(activity, CPU_SHUTDOWN),
    STATE_ARRAY2(struct cpu_state, zmm),
    STATE_ARRAY(struct cpu_state, k),
    F_MAX(sti_shadow, 1),
    F_MAX(mov_ss_shadow, 1),
    F_MAX(nmi_blocked, 1),
    F_MAX(nmi_pending, 1),
    F_MAX(init_pending, 1),
    F_MAX(sipi_pending, 1),
    F(sipi_vector),
    F_MAX(pdptes_valid, 1),
    F(pending_dbg),
    STATE_ARRAY(struct cpu_state, pdpte),
};

#undef F
#undef F_MAX

static int desc_validate(const void *s, struct err *e) { return cpu_state_validate(s, e); }

const struct state_desc cpu_state_desc = {
    .name = "cpu",
    .version = 1,
    .size = sizeof(struct cpu_state),
    .fields = cpu_state_fields,
    .nfields = ARRAY_LEN(cpu_state_fields),
    .validate = desc_validate,
};
