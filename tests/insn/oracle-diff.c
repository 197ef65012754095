/* Where insn_decode() and Zydis 4.0 differ, and why we are right to. */
#include "oracle.h"

#include "base/util.h"

#include <string.h>

static bool d0_d1(const struct pair *p) { return (p->i.opcode & 0xfe) == 0xd0; }

/* A shift by a count that may be 0: the flags are kept then, so we call them read. */
static bool keeps_flags(const struct pair *p)
{
    const struct insn_row *r = p->i.row;
    const ZydisAccessedFlags *f = p->z.cpu_flags;
    uint64_t rd = f->tested & FL_STATUS,
             wr = (f->modified | f->set_0 | f->set_1 | f->undefined) & FL_STATUS;

    return r->fl_write == wr && r->fl_undef == f->undefined && !(r->fl_read & ~(rd | wr)) &&
           (r->fl_read & wr) == wr;
}

static bool reads_all(const struct pair *p)
{
    return (p->i.row->fl_read & (FL_STATUS | FL_DF)) == (FL_STATUS | FL_DF);
}

static bool repeated(const struct pair *p) { return p->i.prefix & (PFX_REP | PFX_REPNE); }

static bool not_64(const struct pair *p) { return p->bits != CPU_64; }

/* Zydis takes 3E before an indirect branch for CET's NOTRACK only. */
static bool notrack(const struct pair *p)
{
    return p->bits != CPU_64 && p->i.mem.seg_override && p->i.mem.seg == DS;
}

/* With 67, Zydis takes SIB.base = 5 with REX.B and mod 0 for R13 though there is no base. */
static bool sib_no_base(const struct pair *p)
{
    return p->bits == CPU_64 && p->i.addrsize == 4 && p->i.mem.base == REG_NONE &&
           (p->i.modrm & 0xc7) == 4 && (p->i.raw[p->i.off_modrm + 1] & 7) == 5;
}

/* ---- accepted by both ---- */
/* clang-format off */
static const struct {
    uint16_t id;
    uint8_t what;
    bool (*when)(const struct pair *p); /* NULL: always */
    const char *why;
} by_id[] = {
    { INSN_OUTS, DIFF_OPERANDS, NULL, "we list memory first" },
    { INSN_LODS, DIFF_ROLE, repeated, "with count 0 nothing is written: the caller's affair" },
    { INSN_CMPS, DIFF_FLAGS, repeated, "REPE and REPNE test ZF: the caller's affair" },
    { INSN_SCAS, DIFF_FLAGS, repeated, "REPE and REPNE test ZF: the caller's affair" },
    { INSN_CLFLUSH, DIFF_SIZE, NULL, "the line's address is checked as a byte's" },
    { INSN_CLFLUSHOPT, DIFF_SIZE, NULL, "the line's address is checked as a byte's" },
    { INSN_CLWB, DIFF_SIZE, NULL, "the line's address is checked as a byte's" },
    { INSN_INVLPG, DIFF_ROLE, NULL, "memory is not accessed" },
    { INSN_LEA, DIFF_SIZE, NULL, "memory is not accessed" },
    { INSN_MOVSXD, DIFF_SIZE, NULL, "16-bit operand size reads 16 bits (SDM vol. 2, MOVSXD)" },
    { INSN_UD0, DIFF_SIZE, NULL, "operands are not accessed" },
    { INSN_UD1, DIFF_SIZE, NULL, "operands are not accessed" },
    { INSN_FNOP, DIFF_NAME, NULL, "FENI, FDISI and FSETPM do nothing" },
    { INSN_FSTP, DIFF_NAME, NULL, "FSTPNCE is FSTP" },
    { INSN_FFREE, DIFF_ROLE, NULL, "changes the tag only" },
    { INSN_FFREEP, DIFF_ROLE, NULL, "changes the tag only" },
    { INSN_FUCOMP, DIFF_OPERANDS, NULL, "we list what FUCOM lists" },
    { INSN_MASKMOVQ, DIFF_OPERANDS, NULL, "we list the memory operand" },
    { INSN_MASKMOVDQU, DIFF_OPERANDS, NULL, "we list the memory operand" },
    { INSN_VMASKMOVDQU, DIFF_OPERANDS, NULL, "we list the memory operand" },
    { INSN_VPTEST, DIFF_FLAGS, NULL, "OF, AF, PF and SF are cleared (SDM vol. 2, PTEST)" },
    { INSN_VTESTPS, DIFF_FLAGS, NULL, "OF, AF, PF and SF are cleared (SDM vol. 2, VTESTPS)" },
    { INSN_VTESTPD, DIFF_FLAGS, NULL, "OF, AF, PF and SF are cleared (SDM vol. 2, VTESTPS)" },
    { INSN_MOVUPS, DIFF_VECTOR, NULL, "no alignment needed (SDM vol. 2 §2.4.4)" },
    { INSN_MOVUPD, DIFF_VECTOR, NULL, "no alignment needed (SDM vol. 2 §2.4.4)" },
    { INSN_MOVDQU, DIFF_VECTOR, NULL, "no alignment needed (SDM vol. 2 §2.4.4)" },
    { INSN_LDDQU, DIFF_VECTOR, NULL, "no alignment needed (SDM vol. 2 §2.4.4)" },
    { INSN_PCMPESTRI, DIFF_VECTOR, NULL, "no alignment needed (SDM vol. 2 §2.4.4)" },
    { INSN_PCMPESTRM, DIFF_VECTOR, NULL, "no alignment needed (SDM vol. 2 §2.4.4)" },
    { INSN_PCMPISTRI, DIFF_VECTOR, NULL, "no alignment needed (SDM vol. 2 §2.4.4)" },
    { INSN_PCMPISTRM, DIFF_VECTOR, NULL, "no alignment needed (SDM vol. 2 §2.4.4)" },
    { INSN_MASKMOVDQU, DIFF_VECTOR, NULL, "no alignment needed (SDM vol. 2 §2.4.4)" },
    { INSN_VCVTSI2SD, DIFF_VECTOR, not_64, "exact with W ignored; the row is that of W1" },
    { INSN_VCVTUSI2SD, DIFF_VECTOR, not_64, "exact with W ignored; the row is that of W1" },
    { INSN_FUCOMP, DIFF_OTHER, NULL, "we list what FUCOM lists" },
    { INSN_MOVSS, DIFF_ROLE, NULL, "keeps a part of the destination (insn-silicon proves it)" },
    { INSN_MOVSD, DIFF_ROLE, NULL, "keeps a part of the destination (insn-silicon proves it)" },
    { INSN_MOVHLPS, DIFF_ROLE, NULL, "keeps a part of the destination (insn-silicon proves it)" },
    { INSN_MOVLHPS, DIFF_ROLE, NULL, "keeps a part of the destination (insn-silicon proves it)" },
    { INSN_MOVHPD, DIFF_ROLE, NULL, "keeps a part of the destination (insn-silicon proves it)" },
    { INSN_MOVHPS, DIFF_ROLE, NULL, "keeps a part of the destination (insn-silicon proves it)" },
    { INSN_MOVLPS, DIFF_ROLE, NULL, "keeps a part of the destination (insn-silicon proves it)" },
    { INSN_MOVLPD, DIFF_ROLE, NULL, "keeps a part of the destination (insn-silicon proves it)" },
    { INSN_CVTSS2SD, DIFF_ROLE, NULL, "keeps a part of the destination (insn-silicon proves it)" },
    { INSN_CVTSD2SS, DIFF_ROLE, NULL, "keeps a part of the destination (insn-silicon proves it)" },
    { INSN_RCPSS, DIFF_ROLE, NULL, "keeps a part of the destination (insn-silicon proves it)" },
    { INSN_RSQRTSS, DIFF_ROLE, NULL, "keeps a part of the destination (insn-silicon proves it)" },
    { INSN_SQRTSS, DIFF_ROLE, NULL, "keeps a part of the destination (insn-silicon proves it)" },
    { INSN_SQRTSD, DIFF_ROLE, NULL, "keeps a part of the destination (insn-silicon proves it)" },
    { INSN_ROUNDSS, DIFF_ROLE, NULL, "keeps a part of the destination (insn-silicon proves it)" },
    { INSN_ROUNDSD, DIFF_ROLE, NULL, "keeps a part of the destination (insn-silicon proves it)" },
    { INSN_CVTPI2PS, DIFF_ROLE, NULL, "keeps a part of the destination (insn-silicon proves it)" },
    { INSN_CVTPD2PI, DIFF_VECTOR, NULL, "needs alignment (insn-silicon proves it)" },
    { INSN_CVTTPD2PI, DIFF_VECTOR, NULL, "needs alignment (insn-silicon proves it)" },
    { INSN_VRCP14PS, DIFF_VECTOR, NULL, "reads MXCSR.DAZ (insn-silicon proves it)" },
    { INSN_VRCP14PD, DIFF_VECTOR, NULL, "reads MXCSR.DAZ (insn-silicon proves it)" },
    { INSN_VRCP14SS, DIFF_VECTOR, NULL, "reads MXCSR.DAZ (insn-silicon proves it)" },
    { INSN_VRCP14SD, DIFF_VECTOR, NULL, "reads MXCSR.DAZ (insn-silicon proves it)" },
    { INSN_VRSQRT14PS, DIFF_VECTOR, NULL, "reads MXCSR.DAZ (insn-silicon proves it)" },
    { INSN_VRSQRT14PD, DIFF_VECTOR, NULL, "reads MXCSR.DAZ (insn-silicon proves it)" },
    { INSN_VRSQRT14SS, DIFF_VECTOR, NULL, "reads MXCSR.DAZ (insn-silicon proves it)" },
    { INSN_VRSQRT14SD, DIFF_VECTOR, NULL, "reads MXCSR.DAZ (insn-silicon proves it)" },
    { INSN_VFPCLASSPS, DIFF_VECTOR, NULL, "reads MXCSR.DAZ (insn-silicon proves it)" },
    { INSN_VFPCLASSPD, DIFF_VECTOR, NULL, "reads MXCSR.DAZ (insn-silicon proves it)" },
    { INSN_VFPCLASSSS, DIFF_VECTOR, NULL, "reads MXCSR.DAZ (insn-silicon proves it)" },
    { INSN_VFPCLASSSD, DIFF_VECTOR, NULL, "reads MXCSR.DAZ (insn-silicon proves it)" },
    { INSN_NOP, DIFF_NAME, NULL, "hints of every name are one NOP" },
    { INSN_JMP_IND, DIFF_OPERANDS, notrack, "without CET 3E is a segment override" },
    { INSN_CALL_IND, DIFF_OPERANDS, notrack, "without CET 3E is a segment override" },
    { INSN_NOP, DIFF_OTHER, NULL, "the register of a hint means nothing" },
    { INSN_VCVTSI2SD, DIFF_WE_ACCEPT, not_64, "W and rounding are ignored (seen on silicon)" },
    { INSN_VCVTUSI2SD, DIFF_WE_ACCEPT, not_64, "W and rounding are ignored (seen on silicon)" },
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
/* clang-format on */

/* ---- instruction sets that are not ours: names of Zydis's ISA sets begin so ---- */
static const char *const foreign[] = {
    "AMD3DNOW",
    "AMD_INVLPGB",
    "AMX_",
    "AVX512ER_",
    "AVX512PF_",
    "AVX512_4FMAPS_",
    "AVX512_4VNNIW_",
    "AVX512_BF16_",
    "AVX512_FP16_",
    "AVX512_VP2INTERSECT_",
    "AVX_VNNI",
    "CET",
    "CLZERO",
    "ENQCMD",
    "FMA4",
    "HRESET",
    "KEYLOCKER",
    "KNC",
    "LWP",
    "MCOMMIT",
    "MONITORX",
    "MOVDIR",
    "MPX",
    "PADLOCK",
    "PCONFIG",
    "PKU",
    "PT",
    "RDPRU",
    "RTM",
    "SERIALIZE",
    "SGX",
    "SMX",
    "SNP",
    "SSE4A",
    "SVM",
    "TBM",
    "TDX",
    "TSX_LDTRK",
    "UINTR",
    "VIA",
    "VMFUNC",
    "VTX",
    "WAITPKG",
    "XOP",
};

static const char *foreign_set(const struct pair *p)
{
    const char *set = ZydisISASetGetString(p->z.meta.isa_set);

    for (size_t k = 0; k < ARRAY_LEN(foreign); k++)
        if (!strncmp(set, foreign[k], strlen(foreign[k])))
            return "instruction set not supported";
    return NULL;
}

/* EVEX byte 2 bit 2 must be 1. */
static bool evex_fixed_bit_clear(const struct pair *p)
{
    return p->z.encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX &&
           !(p->code[p->z.raw.evex.offset + 2] & 4);
}

const char *diff_excuse(const struct pair *p, enum diff_what what)
{
    if (what == DIFF_WE_REJECT)
        return evex_fixed_bit_clear(p) ? "reserved EVEX bit" : foreign_set(p);
    if (what == DIFF_OPERANDS && sib_no_base(p))
        return "Zydis 4.0 takes R13 for the missing base";
    if (p->ours == INSN_OK)
        for (size_t k = 0; k < ARRAY_LEN(by_id); k++)
            if (by_id[k].id == p->i.id && by_id[k].what == what &&
                (!by_id[k].when || by_id[k].when(p)))
                return by_id[k].why;
    return NULL;
}
