/* Where insn_decode() and Zydis 4.0 differ, and why we are right to. */
#include "oracle.h"

#include "base/util.h"

#include <string.h>

static bool d0_d1(const struct pair *p)
{
    return (p->i.opcode & 0xfe) == 0xd0;
}

/* A shift by a count that may be 0: the flags are kept then, so we call them read. */
static bool keeps_flags(const struct pair *p)
{
    const struct insn_row *r = p->i.row;
    const ZydisAccessedFlags *f = p->z.cpu_flags;
    uint64_t rd = f->tested & FL_STATUS, wr = (f->modified | f->set_0 | f->set_1 | f->undefined) & FL_STATUS;

    return r->fl_write == wr && r->fl_undef == f->undefined && !(r->fl_read & ~(rd | wr)) &&
           (r->fl_read & wr) == wr;
}

static bool reads_all(const struct pair *p)
{
    return (p->i.row->fl_read & (FL_STATUS | FL_DF)) == (FL_STATUS | FL_DF);
}

/* ---- accepted by both ---- */
static const struct {
    uint16_t id;
    uint8_t what;
    bool (*when)(const struct pair *p); /* NULL: always */
    const char *why;
} by_id[] = {
    { INSN_NOP, DIFF_NAME, NULL, "hints of every name are one NOP" },
    { INSN_NOP, DIFF_OPERANDS, NULL, "the register of a hint means nothing" },
    { INSN_NOP, DIFF_ROLE, NULL, "hints do not access their operand" },
    { INSN_NOP, DIFF_SIZE, NULL, "hints do not access their operand" },
    { INSN_UD0, DIFF_ROLE, NULL, "operands are not accessed" },
    { INSN_UD1, DIFF_ROLE, NULL, "operands are not accessed" },
    { INSN_BSF, DIFF_ROLE, NULL, "the destination is kept when the source is 0" },
    { INSN_BSR, DIFF_ROLE, NULL, "the destination is kept when the source is 0" },
    { INSN_LAR, DIFF_SIZE, NULL, "only 16 bits of the selector's register count" },
    { INSN_LSL, DIFF_SIZE, NULL, "only 16 bits of the selector's register count" },
    { INSN_SBB, DIFF_FLAGS, NULL, "AF is defined (SDM vol. 2, SBB)" },
    { INSN_ROL, DIFF_FLAGS, d0_d1, "OF is defined for a count of 1" },
    { INSN_ROR, DIFF_FLAGS, d0_d1, "OF is defined for a count of 1" },
    { INSN_RCL, DIFF_FLAGS, d0_d1, "OF is defined for a count of 1" },
    { INSN_RCR, DIFF_FLAGS, d0_d1, "OF is defined for a count of 1" },
    { INSN_SHL, DIFF_FLAGS, d0_d1, "OF is defined for a count of 1" },
    { INSN_SHR, DIFF_FLAGS, d0_d1, "OF is defined for a count of 1" },
    { INSN_SAR, DIFF_FLAGS, d0_d1, "OF is defined for a count of 1" },
    { INSN_ROL, DIFF_FLAGS, keeps_flags, "count may be 0" },
    { INSN_ROR, DIFF_FLAGS, keeps_flags, "count may be 0" },
    { INSN_RCL, DIFF_FLAGS, keeps_flags, "count may be 0" },
    { INSN_RCR, DIFF_FLAGS, keeps_flags, "count may be 0" },
    { INSN_SHL, DIFF_FLAGS, keeps_flags, "count may be 0" },
    { INSN_SHR, DIFF_FLAGS, keeps_flags, "count may be 0" },
    { INSN_SAR, DIFF_FLAGS, keeps_flags, "count may be 0" },
    { INSN_SHLD, DIFF_FLAGS, keeps_flags, "count may be 0" },
    { INSN_SHRD, DIFF_FLAGS, keeps_flags, "count may be 0" },
    { INSN_BEXTR, DIFF_FLAGS, NULL, "CF and OF are cleared (SDM vol. 2, BEXTR)" },
    { INSN_VMCALL, DIFF_FLAGS, NULL, "a hypercall leaves the flags alone" },
    { INSN_VMMCALL, DIFF_FLAGS, NULL, "a hypercall leaves the flags alone" },
    { INSN_SYSCALL, DIFF_FLAGS, reads_all, "the flags go to R11" },
    { INSN_INT, DIFF_FLAGS, reads_all, "the flags are pushed" },
    { INSN_INT1, DIFF_FLAGS, reads_all, "the flags are pushed" },
    { INSN_INT3, DIFF_FLAGS, reads_all, "the flags are pushed" },
    { INSN_INTO, DIFF_FLAGS, reads_all, "the flags are pushed" },
    { INSN_UD0, DIFF_FLAGS, reads_all, "the flags are pushed" },
    { INSN_UD1, DIFF_FLAGS, reads_all, "the flags are pushed" },
    { INSN_UD2, DIFF_FLAGS, reads_all, "the flags are pushed" },
    { INSN_RSM, DIFF_FLAGS, reads_all, "always #UD outside SMM" },
};

/* ---- instruction sets that are not ours ---- */
static const char *const foreign[] = {
    "AMX_BF16", "AMX_INT8", "AMX_TILE", "AVX512_FP16_128",
};

static const char *foreign_set(const struct pair *p)
{
    const char *set = ZydisISASetGetString(p->z.meta.isa_set);

    for (size_t k = 0; k < ARRAY_LEN(foreign); k++)
        if (!strcmp(set, foreign[k]))
            return "instruction set not supported";
    return NULL;
}

const char *diff_excuse(const struct pair *p, enum diff_what what)
{
    if (what == DIFF_WE_REJECT)
        return foreign_set(p);
    if (p->ours == INSN_OK)
        for (size_t k = 0; k < ARRAY_LEN(by_id); k++)
            if (by_id[k].id == p->i.id && by_id[k].what == what && (!by_id[k].when || by_id[k].when(p)))
                return by_id[k].why;
    return NULL;
}
