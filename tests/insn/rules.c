/*
 * The rules of encoding, one hand-made case or more for each, expected results by the manuals
 * (SDM vol. 2 ch. 2 and the instruction pages). Text form of a result, as text_of() writes it:
 *   r3.8 GPR 3 of 8 bytes; h1 CH; s2 SS; cr8 dr7 st1 mm2 k3; v4.32 YMM4
 *   m4[ds:3+6*4+16] 4 bytes at DS:(RBX + RSI*4 + 16)
 *   i255 immediate; j-2 relative target; f16:4660 far pointer
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "insn/insn.h"

#define UD "#UD"
#define LONG "too long"

struct rule {
    uint8_t bits; /* 16, 32, 64 */
    const char *code;
    const char *text;
    uint8_t len; /* 0: all of code */
};

/* ---- text ---- */
static int text_mem(char *p, size_t n, const struct insn *i, const struct opnd *o)
{
    static const char *const seg[] = {"es", "cs", "ss", "ds", "fs", "gs"};
    int k = snprintf(p, n, "m%u[%s:", o->size, seg[i->mem.seg]);

    if (i->mem.base == REG_RIP)
        k += snprintf(p + k, n - (size_t)k, "rip");
    else if (i->mem.base != REG_NONE)
        k += snprintf(p + k, n - (size_t)k, "%u", i->mem.base);
    if (i->mem.index != REG_NONE)
        k += snprintf(p + k, n - (size_t)k, "+%s%u*%u", i->mem.vsib ? "v" : "", i->mem.index,
                      1u << i->mem.scale);
    if (i->mem.disp)
        k += snprintf(p + k, n - (size_t)k, "%+lld", (long long)i->mem.disp);
    return k + snprintf(p + k, n - (size_t)k, "]");
}

static int text_reg(char *p, size_t n, const struct opnd *o)
{
    static const char *const name[] = {
        [RC_GPRH] = "h", [RC_SREG] = "s", [RC_CR] = "cr", [RC_DR] = "dr",
        [RC_ST] = "st",  [RC_MMX] = "mm", [RC_K] = "k"};

    if (o->cls == RC_GPR || o->cls == RC_VEC)
        return snprintf(p, n, "%c%u.%u", o->cls == RC_GPR ? 'r' : 'v', o->reg, o->size);
    return snprintf(p, n, "%s%u", name[o->cls], o->reg);
}

static void text_of(char *p, size_t n, const struct insn *i)
{
    int k = snprintf(p, n, "%s%s%s%s", i->prefix & PFX_LOCK ? "lock " : "",
                     i->prefix & PFX_REP ? "rep " : "", i->prefix & PFX_REPNE ? "repne " : "",
                     i->row->mnemonic);

    for (unsigned j = 0; j < i->nops; j++) {
        const struct opnd *o = &i->op[j];
        k += snprintf(p + k, n - (size_t)k, " ");
        switch (o->kind) {
        case OP_REG:
            k += text_reg(p + k, n - (size_t)k, o);
            break;
        case OP_MEM:
            k += text_mem(p + k, n - (size_t)k, i, o);
            break;
        case OP_REL:
            k += snprintf(p + k, n - (size_t)k, "j%lld", (long long)i->imm);
            break;
        case OP_FARPTR:
            k += snprintf(p + k, n - (size_t)k, "f%llu:%llu", (unsigned long long)i->imm2,
                          (unsigned long long)i->imm);
            break;
        default:
            k += snprintf(p + k, n - (size_t)k, "i%lld", (long long)i->imm);
            break;
        }
    }
    if (i->evex_aaa)
        snprintf(p + k, n - (size_t)k, " {k%u}%s", i->evex_aaa, i->evex_z ? "{z}" : "");
}

static size_t from_hex(const char *s, uint8_t *b)
{
    size_t n = 0;
    unsigned v;

    for (; *s; s += 2) {
        while (*s == ' ')
            s++;
        if (sscanf(s, "%2x", &v) != 1)
            break;
        b[n++] = (uint8_t)v;
    }
    return n;
}

/* clang-format off */
static const struct rule rules[] = {
    /* REX counts only directly before the opcode; order of the others is free */
    { 64, "48 01 c8", "add r0.8 r1.8", 0 },
    { 64, "48 66 01 c8", "add r0.2 r1.2", 0 },
    { 64, "66 48 01 c8", "add r0.8 r1.8", 0 },
    { 64, "40 48 01 c8", "add r0.8 r1.8", 0 },
    { 64, "48 40 01 c8", "add r0.4 r1.4", 0 },
    { 64, "4d 67 03 08", "add r1.4 m4[ds:0]", 0 },
    { 32, "48 01 c8", "dec r0.4", 1 },
    /* SPL..DIL with any REX, AH..BH without */
    { 64, "88 e0", "mov r0.1 h0", 0 },
    { 64, "40 88 e0", "mov r0.1 r4.1", 0 },
    { 64, "44 88 e0", "mov r0.1 r12.1", 0 },
    { 64, "b7 05", "mov h3 i5", 0 },
    { 64, "41 b7 05", "mov r15.1 i5", 0 },
    { 32, "88 fd", "mov h1 h3", 0 },
    /* the last of F2 and F3 counts; 66 is no mandatory prefix beside them */
    { 64, "f2 f3 0f 10 c1", "movss v0.16 v1.16", 0 },
    { 64, "f3 f2 0f 10 c1", "movsd v0.16 v1.16", 0 },
    { 64, "66 f3 0f 10 c1", "movss v0.16 v1.16", 0 },
    { 64, "f3 66 0f 10 c1", "movss v0.16 v1.16", 0 },
    { 64, "66 0f 10 c1", "movupd v0.16 v1.16", 0 },
    { 64, "66 f3 0f b8 c1", "popcnt r0.2 r1.2", 0 },
    { 64, "f3 0f b8 c1", "popcnt r0.4 r1.4", 0 },
    { 64, "0f b8 c1", UD, 0 },
    { 64, "66 f2 0f 38 f1 c1", "crc32 r0.4 r1.2", 0 },
    { 64, "f2 48 0f 38 f0 c1", "crc32 r0.8 r1.1", 0 },
    { 64, "66 0f 38 f0 01", "movbe r0.2 m2[ds:1]", 0 },
    { 64, "0f 38 f0 c1", UD, 0 },
    { 64, "f3 0f bc c1", "tzcnt r0.4 r1.4", 0 },
    { 64, "f2 0f bc c1", "repne bsf r0.4 r1.4", 0 },
    { 64, "f3 0f 28 c1", UD, 0 },
    { 64, "66 0f 38 f6 c1", "adcx r0.4 r1.4", 0 },
    { 64, "f3 48 0f 38 f6 c1", "adox r0.8 r1.8", 0 },
    { 64, "0f 38 f6 c1", UD, 0 },
    /* REP and REPNE on string instructions and elsewhere */
    { 64, "f3 a4", "rep movs m1[ds:6] m1[ds:6]", 0 },
    { 64, "f2 a6", "repne cmps m1[ds:6] m1[ds:6]", 0 },
    { 64, "f3 64 48 a5", "rep movs m8[fs:6] m8[fs:6]", 0 },
    { 32, "2e ad", "lods r0.4 m4[cs:6]", 0 },
    { 32, "2e ab", "stos m4[es:7] r0.4", 0 },
    { 16, "26 67 a4", "movs m1[es:6] m1[es:6]", 0 },
    { 64, "f3 01 c8", "rep add r0.4 r1.4", 0 },
    { 64, "f3 c3", "rep ret", 0 },
    { 64, "f2 90", "nop", 0 },
    { 64, "f3 90", "pause", 0 },
    { 64, "f3 41 90", "pause", 0 }, /* seen on Sapphire Rapids */
    { 64, "41 90", "xchg r8.4 r0.4", 0 },
    { 64, "40 90", "nop", 0 },
    { 64, "66 90", "nop", 0 },
    /* LOCK: only listed instructions, only with a memory destination */
    { 64, "f0 01 08", "lock add m4[ds:0] r1.4", 0 },
    { 64, "f0 01 c8", UD, 0 },
    { 64, "f0 03 08", UD, 0 },
    { 64, "f0 39 08", UD, 0 },
    { 64, "f0 83 08 01", "lock or m4[ds:0] i1", 0 },
    { 64, "f0 83 38 01", UD, 0 },
    { 64, "f0 89 08", UD, 0 },
    { 64, "f0 87 08", "lock xchg m4[ds:0] r1.4", 0 },
    { 64, "f0 0f b1 08", "lock cmpxchg m4[ds:0] r1.4", 0 },
    { 64, "f0 0f c7 08", "lock cmpxchg8b m8[ds:0]", 0 },
    { 64, "f0 48 0f c7 08", "lock cmpxchg16b m16[ds:0]", 0 },
    { 64, "f0 0f a3 08", UD, 0 },
    { 64, "f0 0f ab 08", "lock bts m4[ds:0] r1.4", 0 },
    { 64, "f0 0f ba 20 01", UD, 0 },
    { 64, "f0 0f ba 38 01", "lock btc m4[ds:0] i1", 0 },
    { 64, "f0 f6 00 01", UD, 0 },
    { 64, "f0 f6 10", "lock not m1[ds:0]", 0 },
    { 64, "f0 ff 30", UD, 0 },
    { 64, "f0 90", UD, 0 },
    { 64, "f0 0f 20 c0", UD, 0 },
    /* invalid in 64-bit code */
    { 64, "06", UD, 0 }, { 64, "07", UD, 0 }, { 64, "0e", UD, 0 }, { 64, "16", UD, 0 },
    { 64, "17", UD, 0 },
    { 64, "1e", UD, 0 }, { 64, "1f", UD, 0 }, { 64, "27", UD, 0 }, { 64, "2f", UD, 0 },
    { 64, "37", UD, 0 },
    { 64, "3f", UD, 0 }, { 64, "60", UD, 0 }, { 64, "61", UD, 0 }, { 64, "82 c0 01", UD, 0 },
    { 64, "9a 00 00 00 00 00 00", UD, 0 }, { 64, "ce", UD, 0 }, { 64, "d4 0a", UD, 0 },
    { 64, "d5 0a", UD, 0 },
    { 64, "d6", UD, 0 }, { 64, "ea 00 00 00 00 00 00", UD, 0 },
    { 32, "06", "push s0", 0 }, { 32, "17", "pop s2", 0 }, { 32, "d6", "salc", 0 },
    { 32, "82 c0 01", "add r0.1 i1", 0 },
    { 32, "ea 78 56 34 12 10 00", "jmp f16:305419896", 0 },
    { 32, "66 9a 34 12 10 00", "call f16:4660", 0 },
    { 16, "ea 34 12 10 00", "jmp f16:4660", 0 },
    { 64, "63 c1", "movsxd r0.4 r1.4", 0 },
    { 64, "48 63 c1", "movsxd r0.8 r1.4", 0 },
    { 32, "63 c1", "arpl r1.2 r0.2", 0 },
    /* C4, C5, 62: VEX and EVEX, or LES, LDS, BOUND */
    { 32, "c5 00", "lds r0.4 m6[ds:0]", 0 },
    { 16, "c4 06 34 12", "les r0.2 m4[ds:+4660]", 0 },
    { 32, "62 00", "bound r0.4 m8[ds:0]", 0 },
    { 32, "66 62 00", "bound r0.2 m4[ds:0]", 0 },
    { 32, "c5 f8 77", "vzeroupper", 0 },
    { 16, "c5 f8 77", "vzeroupper", 0 },
    { 32, "66 c5 f8 77", UD, 0 },
    { 64, "c5 fc 77", "vzeroall", 0 },
    { 64, "66 c5 f8 77", UD, 0 }, { 64, "f2 c5 f8 77", UD, 0 }, { 64, "f3 c5 f8 77", UD, 0 },
    { 64, "f0 c5 f8 77", UD, 0 }, { 64, "48 c5 f8 77", UD, 0 },
    { 64, "48 2e c5 f8 77", "vzeroupper", 0 },
    { 64, "66 62 f1 7c 48 58 c1", UD, 0 }, { 64, "40 62 f1 7c 48 58 c1", UD, 0 },
    { 64, "64 c5 f8 58 00", "vaddps v0.16 v0.16 m16[fs:0]", 0 },
    { 64, "c4 e0 78 58 c1", UD, 0 }, /* map 0 */
    { 64, "c4 e4 78 58 c1", UD, 0 }, /* map 4 */
    /* vvvv must be all ones when it names nothing, in every mode */
    { 64, "c5 f8 28 c1", "vmovaps v0.16 v1.16", 0 },
    { 64, "c5 f0 28 c1", UD, 0 },
    { 32, "c4 e1 38 28 c1", UD, 0 },
    { 64, "62 f1 7c 48 28 c1", "vmovaps v0.64 v1.64", 0 },
    { 64, "62 f1 74 48 28 c1", UD, 0 },
    { 64, "62 f1 7c 40 28 c1", UD, 0 }, /* V' */
    /* extension bits outside 64-bit code: ignored but V' */
    { 32, "c4 c1 70 58 c1", "vaddps v0.16 v1.16 v1.16", 0 },
    { 32, "c4 e1 30 58 c1", "vaddps v0.16 v1.16 v1.16", 0 },
    { 32, "62 c1 74 48 58 c1", "vaddps v0.64 v1.64 v1.64", 0 },
    { 32, "62 f1 74 40 58 c1", UD, 0 },
    { 64, "62 01 04 40 58 f9", "vaddps v31.64 v31.64 v25.64", 0 },
    /* VEX.W and .L */
    { 64, "c4 e2 f8 f2 c1", "andn r0.8 r0.8 r1.8", 0 },
    { 32, "c4 e2 f8 f2 c1", "andn r0.4 r0.4 r1.4", 0 },
    { 64, "c4 e2 7c f2 c1", UD, 0 },
    { 64, "c4 e1 f9 6e c1", "vmovq v0.16 r1.8", 0 },
    { 32, "c4 e1 f9 6e c1", "vmovd v0.16 r1.4", 0 },
    { 64, "c4 e2 7d 18 c1", "vbroadcastss v0.32 v1.16", 0 },
    { 64, "c4 e2 fd 18 c1", UD, 0 },
    { 64, "c5 ee 58 c1", "vaddss v0.16 v2.16 v1.16", 0 },
    { 64, "c4 e3 69 4a c1 30", "vblendvps v0.16 v2.16 v1.16 v3.16", 0 },
    { 32, "c4 e3 69 4a c1 b0", "vblendvps v0.16 v2.16 v1.16 v3.16", 0 },
    { 64, "c4 e3 69 4a c1 b0", "vblendvps v0.16 v2.16 v1.16 v11.16", 0 },
    /* EVEX: fixed bits, length, mask, zeroing, broadcast, rounding, disp8*N */
    { 64, "62 f9 7c 48 58 c1", UD, 0 }, /* P0 bit 3 */
    { 64, "62 f1 78 48 58 c1", UD, 0 }, /* P1 bit 2 */
    { 64, "62 f4 7c 48 58 c1", UD, 0 }, /* map 4 */
    { 64, "62 f1 7c 68 58 c1", UD, 0 }, /* L'L = 3 */
    { 64, "62 f1 7e 68 58 c1", UD, 0 }, /* for scalars too */
    { 64, "62 f1 7c 78 58 c1", "vaddps v0.64 v0.64 v1.64", 0 },
    { 64, "62 f1 7c 18 58 c1", "vaddps v0.64 v0.64 v1.64", 0 },
    { 64, "62 f1 7e 78 58 c1", "vaddss v0.16 v0.16 v1.16", 0 },
    { 64, "62 f1 7d 18 6f c1", UD, 0 }, /* no rounding in VMOVDQA32 */
    { 64, "62 f1 7c 58 58 40 01", "vaddps v0.64 v0.64 m4[ds:0+4]", 0 },
    { 64, "62 f1 7c 48 58 40 01", "vaddps v0.64 v0.64 m64[ds:0+64]", 0 },
    { 64, "62 f1 7c 28 58 40 ff", "vaddps v0.32 v0.32 m32[ds:0-32]", 0 },
    { 64, "62 f1 7e 48 58 40 02", "vaddss v0.16 v0.16 m4[ds:0+8]", 0 },
    { 64, "62 f1 7c 48 58 80 01 00 00 00", "vaddps v0.64 v0.64 m64[ds:0+1]", 0 },
    { 64, "62 f1 7d 58 6f 40 01", UD, 0 }, /* no broadcast */
    { 64, "62 f2 7d 48 20 40 01", "vpmovsxbw v0.64 m32[ds:0+32]", 0 },
    { 64, "62 f2 7d 08 22 40 01", "vpmovsxbq v0.16 m2[ds:0+2]", 0 },
    { 64, "62 f2 7d 48 8b 40 01", "vpcompressd m64[ds:0+4] v0.64", 0 },
    { 64, "62 f2 fd 48 1b 40 01", "vbroadcastf64x4 v0.64 m32[ds:0+32]", 0 },
    { 64, "62 f1 ff 08 12 40 01", "vmovddup v0.16 m8[ds:0+8]", 0 },
    { 64, "62 f1 7c 49 58 c1", "vaddps v0.64 v0.64 v1.64 {k1}", 0 },
    { 64, "62 f1 7c cf 58 c1", "vaddps v0.64 v0.64 v1.64 {k7}{z}", 0 },
    { 64, "62 f1 7c c8 58 c1", UD, 0 },    /* z without mask */
    { 64, "62 f1 7c c9 29 00", UD, 0 },    /* z with a memory destination */
    { 64, "62 f1 7c c9 29 c1", "vmovaps v1.64 v0.64 {k1}{z}", 0 },
    { 64, "62 f1 7c 49 29 00", "vmovaps m64[ds:0] v0.64 {k1}", 0 },
    { 64, "62 f1 7c c9 c2 c1 00", UD, 0 }, /* z with an opmask destination */
    { 64, "62 f1 7c 49 c2 c9 00", "vcmpps k1 v0.64 v1.64 i0 {k1}", 0 },
    { 64, "62 71 7c 48 c2 c9 00", UD, 0 }, /* k9 */
    { 64, "62 f1 7d 09 6e c1", UD, 0 },    /* VMOVD takes no mask */
    /* VSIB */
    { 64, "c4 e2 69 90 04 18", "vpgatherdd v0.16 m4[ds:0+v3*1] v2.16", 0 },
    { 64, "c4 e2 79 90 04 18", UD, 0 }, { 64, "c4 e2 69 90 1c 18", UD, 0 },
    { 64, "c4 e2 61 90 04 18", UD, 0 },
    { 64, "c4 e2 69 90 00", UD, 0 },                                          /* no SIB byte */
    /* index 4 is a register */
    { 64, "c4 e2 69 90 04 20", "vpgatherdd v0.16 m4[ds:0+v4*1] v2.16", 0 },
    { 64, "62 f2 7d 41 90 04 18", "vpgatherdd v0.64 m4[ds:0+v19*1] {k1}", 0 },
    { 64, "62 f2 7d 48 90 04 18", UD, 0 },                                    /* k0 */
    { 64, "62 f2 7d c9 90 04 18", UD, 0 },                                    /* z */
    { 64, "62 f2 7d 49 90 1c 18", UD, 0 },                                    /* dest = index */
    /* allowed when storing */
    { 64, "62 f2 7d 49 a0 1c 18", "vpscatterdd m4[ds:0+v3*1] v3.64 {k1}", 0 },
    { 64, "62 f2 7d 49 90 44 18 01", "vpgatherdd v0.64 m4[ds:0+v3*1+4] {k1}", 0 },
    { 16, "c4 e2 69 90 04", UD, 0 },                                          /* 16-bit addresses */
    /* default operand sizes in 64-bit code; 66 on near branches ignored as Intel does */
    { 64, "50", "push r0.8", 0 }, { 64, "66 50", "push r0.2", 0 }, { 64, "41 50", "push r8.8", 0 },
    { 64, "66 48 50", "push r0.8", 0 },
    { 64, "68 00 00 00 80", "push i-2147483648", 0 }, { 64, "66 68 00 80", "push i-32768", 0 },
    { 64, "6a ff", "push i-1", 0 }, { 64, "8f c0", "pop r0.8", 0 }, { 64, "8f c8", UD, 0 },
    { 64, "e8 fe ff ff ff", "call j-2", 0 }, { 64, "66 e8 fe ff ff ff", "call j-2", 0 },
    { 32, "66 e8 fe ff", "call j-2", 0 }, { 64, "66 0f 84 01 00 00 00", "jcc j1", 0 },
    { 64, "ff d0", "call r0.8", 0 }, { 64, "66 ff d0", "call r0.8", 0 },
    { 64, "66 ff e0", "jmp r0.8", 0 },
    { 32, "66 ff e0", "jmp r0.2", 0 }, { 64, "66 c3", "ret", 0 },
    { 64, "48 ff 28", "jmp m10[ds:0]", 0 }, { 64, "ff 28", "jmp m6[ds:0]", 0 },
    { 64, "66 ff 28", "jmp m4[ds:0]", 0 },
    { 64, "ff e8", UD, 0 }, { 64, "ff d8", UD, 0 }, { 64, "ff f8", UD, 0 }, { 64, "fe d0", UD, 0 },
    { 64, "48 e5 10", "in r0.4 i16", 0 }, { 64, "66 ed", "in r0.2 r2.2", 0 },
    { 64, "48 6d", "ins m4[es:7] r2.2", 0 },
    /* moves of immediates and moffs */
    { 64, "48 b8 01 00 00 00 00 00 00 80", "mov r0.8 i-9223372036854775807", 0 },
    { 64, "48 c7 c0 ff ff ff ff", "mov r0.8 i-1", 0 },
    { 64, "b8 ff ff ff ff", "mov r0.4 i4294967295", 0 },
    { 64, "a1 88 77 66 55 44 33 22 11", "mov r0.4 m4[ds:+1234605616436508552]", 0 },
    { 64, "67 a1 88 77 66 55", "mov r0.4 m4[ds:+1432778632]", 0 },
    { 32, "67 a1 34 12", "mov r0.4 m4[ds:+4660]", 0 },
    { 32, "64 a1 18 00 00 00", "mov r0.4 m4[fs:+24]", 0 },
    { 16, "a0 ff ff", "mov r0.1 m1[ds:+65535]", 0 },
    { 64, "c8 10 00 01", "enter i16 i16", 0 },
    /* addresses */
    { 64, "8b 05 10 00 00 00", "mov r0.4 m4[ds:rip+16]", 0 },
    { 64, "67 8b 05 10 00 00 00", "mov r0.4 m4[ds:rip+16]", 0 },
    { 32, "8b 05 10 00 00 00", "mov r0.4 m4[ds:+16]", 0 },
    { 64, "8b 04 25 10 00 00 00", "mov r0.4 m4[ds:+16]", 0 },
    { 64, "41 8b 05 10 00 00 00", "mov r0.4 m4[ds:rip+16]", 0 },
    { 64, "41 8b 04 24", "mov r0.4 m4[ds:12]", 0 }, { 64, "8b 04 24", "mov r0.4 m4[ss:4]", 0 },
    { 64, "41 8b 45 00", "mov r0.4 m4[ds:13]", 0 }, { 64, "8b 45 00", "mov r0.4 m4[ss:5]", 0 },
    { 64, "42 8b 04 20", "mov r0.4 m4[ds:0+12*1]", 0 }, { 64, "8b 04 20", "mov r0.4 m4[ds:0]", 0 },
    { 64, "8b 04 6d 10 00 00 00", "mov r0.4 m4[ds:+5*2+16]", 0 },
    { 64, "67 41 8b 04 25 10 00 00 00", "mov r0.4 m4[ds:+16]", 0 },
    { 16, "8b 02", "mov r0.2 m2[ss:5+6*1]", 0 }, { 16, "8b 46 fe", "mov r0.2 m2[ss:5-2]", 0 },
    { 16, "8b 06 34 12", "mov r0.2 m2[ds:+4660]", 0 }, { 16, "8b 01", "mov r0.2 m2[ds:3+7*1]", 0 },
    { 16, "66 67 8b 04 24", "mov r0.4 m4[ss:4]", 0 },
    { 32, "67 8b 47 10", "mov r0.4 m4[ds:3+16]", 0 },
    /* segment overrides */
    { 64, "2e 8b 00", "mov r0.4 m4[ds:0]", 0 }, { 64, "36 8b 00", "mov r0.4 m4[ds:0]", 0 },
    { 64, "64 2e 8b 00", "mov r0.4 m4[fs:0]", 0 }, { 64, "64 65 8b 00", "mov r0.4 m4[gs:0]", 0 },
    { 64, "3e 8b 45 00", "mov r0.4 m4[ss:5]", 0 },
    { 32, "64 2e 8b 00", "mov r0.4 m4[cs:0]", 0 }, { 32, "3e 8b 45 00", "mov r0.4 m4[ds:5]", 0 },
    /* segment, control and debug registers */
    { 64, "8e c8", UD, 0 }, { 64, "8e d0", "mov s2 r0.2", 0 }, { 64, "8c f0", UD, 0 },
    { 64, "8e f8", UD, 0 },
    { 64, "8c c8", "mov r0.4 s1", 0 }, { 64, "48 8c 08", "mov m2[ds:0] s1", 0 },
    { 64, "0f 20 c0", "mov r0.8 cr0", 0 }, { 64, "44 0f 20 c0", "mov r0.8 cr8", 0 },
    { 64, "0f 20 c8", UD, 0 },
    { 64, "44 0f 22 d0", UD, 0 }, { 64, "0f 22 f8", UD, 0 }, { 32, "0f 22 e0", "mov cr4 r0.4", 0 },
    { 64, "0f 20 00", "mov r0.8 cr0", 0 }, /* mod ignored */
    { 64, "66 0f 22 d8", "mov cr3 r0.8", 0 }, { 64, "0f 21 f8", "mov r0.8 dr7", 0 },
    { 64, "44 0f 21 c0", UD, 0 },
    { 64, "0f 23 e0", "mov dr4 r0.8", 0 },
    /* groups with holes */
    { 64, "0f 01 c1", "vmcall", 0 }, { 64, "0f 01 c2", UD, 0 }, { 64, "0f 01 d9", "vmmcall", 0 },
    { 64, "0f 01 d8", UD, 0 }, { 64, "0f 01 f8", "swapgs", 0 }, { 32, "0f 01 f8", UD, 0 },
    { 64, "0f 01 f9", "rdtscp", 0 }, { 64, "0f 01 ee", UD, 0 }, { 64, "0f 01 ca", "clac", 0 },
    { 64, "0f 01 e8", UD, 0 }, { 64, "0f 01 28", UD, 0 }, { 64, "0f 01 10", "lgdt m10[ds:0]", 0 },
    { 32, "0f 01 10", "lgdt m6[ds:0]", 0 }, { 64, "0f 00 f0", UD, 0 },
    { 64, "0f 01 20", "smsw m2[ds:0]", 0 }, { 64, "48 0f 01 e0", "smsw r0.8", 0 },
    { 64, "0f ae e8", "lfence", 0 }, { 64, "0f ae f0", "mfence", 0 }, { 64, "66 0f ae f0", UD, 0 },
    { 64, "66 0f ae 38", "clflushopt m1[ds:0]", 0 }, { 64, "66 0f ae 30", "clwb m1[ds:0]", 0 },
    { 64, "f3 0f ae c0", "rdfsbase r0.4", 0 }, { 32, "f3 0f ae c0", UD, 0 },
    { 64, "0f ae c0", UD, 0 },
    { 64, "0f c7 f0", "rdrand r0.4", 0 }, { 64, "f3 0f c7 f8", "rdpid r0.8", 0 },
    { 64, "f3 0f c7 f0", UD, 0 },
    { 64, "0f c7 30", UD, 0 }, /* VMPTRLD */
    { 64, "0f ba 18 01", UD, 0 }, { 64, "0f c3 c0", UD, 0 }, { 64, "66 0f c3 00", UD, 0 },
    { 64, "c7 f8 00 00 00 00", UD, 0 }, { 64, "c6 f8 00", UD, 0 }, /* XBEGIN, XABORT */
    /* hints */
    { 64, "0f 18 00", "nop m4[ds:0]", 0 }, { 64, "0f 0d 08", "nop m4[ds:0]", 0 },
    { 64, "0f 1f 44 00 00", "nop m4[ds:0+0*1]", 0 },
    { 64, "f3 0f 1e fa", "endbr", 0 }, { 64, "f3 0f 1e fb", "endbr", 0 },
    { 64, "f3 0f 1e c8", "rep nop r0.4", 0 },
    { 64, "0f 1e fa", "nop r2.4", 0 },
    { 64, "0f 0b", "ud2", 0 }, { 64, "0f b9 c0", "ud1 r0.4 r0.4", 0 },
    { 64, "0f ff c0", "ud0 r0.4 r0.4", 0 },
    { 64, "0f 0e", UD, 0 }, { 64, "0f 0f c0 9e", UD, 0 }, { 64, "f1", "int1", 0 },
    { 64, "0f aa", "rsm", 0 },
    /* x87 */
    { 64, "d8 c1", "fadd st0 st1", 0 }, { 64, "dc c1", "fadd st1 st0", 0 },
    { 64, "dc e1", "fsubr st1 st0", 0 },
    { 64, "de e9", "fsubp st1 st0", 0 }, { 64, "de e1", "fsubrp st1 st0", 0 },
    { 64, "d9 d1", UD, 0 },
    { 64, "de d9", "fcompp", 0 }, { 64, "de d8", UD, 0 }, { 64, "df e0", "fnstsw r0.2", 0 },
    { 64, "df e1", UD, 0 },
    { 64, "db 28", "fld m10[ds:0]", 0 }, { 64, "d9 20", "fldenv m28[ds:0]", 0 },
    { 64, "66 d9 20", "fldenv m14[ds:0]", 0 },
    /* the length limit comes before everything else */
    { 64, "66 66 66 66 66 66 66 66 66 66 66 66 66 66 90", "nop", 0 },
    { 64, "66 66 66 66 66 66 66 66 66 66 66 66 66 66 66", LONG, 0 },
    { 64, "66 66 66 66 66 66 66 66 66 66 66 66 66 66 01", LONG, 0 },
    { 64, "66 66 66 66 66 66 66 66 66 66 66 81 c0 00 00", "add r0.2 i0", 0 },
    { 64, "66 66 66 66 66 66 66 66 66 66 66 66 81 c0 00", LONG, 0 },
};
/* clang-format on */

static enum cpu_bits mode(unsigned bits)
{
    return bits == 64 ? CPU_64 : bits == 32 ? CPU_32 : CPU_16;
}

static void test_rules(void **state)
{
    unsigned bad = 0;

    for (size_t k = 0; k < sizeof(rules) / sizeof(rules[0]); k++) {
        uint8_t code[16] = {0};
        char text[160];
        struct insn i;
        size_t n = from_hex(rules[k].code, code);
        int e = insn_decode(&i, code, sizeof(code), mode(rules[k].bits));
        size_t want = rules[k].len ? rules[k].len : n;

        if (e == INSN_OK)
            text_of(text, sizeof(text), &i);
        else
            snprintf(text, sizeof(text), "%s",
                     e == INSN_E_UD     ? UD
                     : e == INSN_E_LONG ? LONG
                                        : "truncated");
        if (strcmp(text, rules[k].text) || (e == INSN_OK && i.len != want)) {
            printf("%u bits, %s: %s, %u bytes; want %s, %zu\n", rules[k].bits, rules[k].code, text,
                   i.len, rules[k].text, want);
            bad++;
        }
    }
    assert_int_equal(bad, 0);
}

/* With fewer bytes than the instruction has the decoder asks for more, whatever it has seen, and
 * does not read beyond them (the array ends there: a sanitizer would notice). */
static void test_truncated(void **state)
{
    for (size_t k = 0; k < sizeof(rules) / sizeof(rules[0]); k++) {
        uint8_t code[16] = {0};
        struct insn i, whole;

        from_hex(rules[k].code, code);
        if (insn_decode(&whole, code, sizeof(code), mode(rules[k].bits)) != INSN_OK)
            continue;
        for (unsigned n = 0; n < whole.len; n++) {
            uint8_t *part = test_malloc(n ? n : 1);
            memcpy(part, code, n);
            assert_int_equal(insn_decode(&i, part, n, mode(rules[k].bits)), INSN_E_TRUNC);
            test_free(part);
        }
        assert_int_equal(insn_decode(&i, code, whole.len, mode(rules[k].bits)), INSN_OK);
        assert_int_equal(i.len, whole.len);
        assert_memory_equal(i.raw, code, whole.len);
    }
}

/* The fields that the vector engine re-encodes from. */
static void test_raw_fields(void **state)
{
    static const uint8_t evex[] = {0x62, 0x91, 0x6d, 0x5b,
                                   0xfe, 0x48, 0x02}; /* VPADDD zmm1{k3}, zmm2, [r8+8]{1to16} */
    static const uint8_t vex[] = {0xc4, 0xe3, 0x75,
                                  0x0f, 0xc3, 0x07}; /* VPALIGNR ymm0, ymm1, ymm3, 7 */
    struct insn i;

    assert_int_equal(insn_decode(&i, evex, sizeof(evex), CPU_64), INSN_OK);
    assert_int_equal(i.id, INSN_VPADDD);
    assert_int_equal(i.map, 1);
    assert_int_equal(i.opcode, 0xfe);
    assert_int_equal(i.pp, 1);
    assert_int_equal(i.vlen, 64);
    assert_int_equal(i.vvvv, 2);
    assert_int_equal(i.evex_aaa, 3);
    assert_true(i.evex_b && !i.evex_z);
    assert_int_equal(i.bcst, 4);
    assert_int_equal(i.off_modrm, 5);
    assert_int_equal(i.op[2].size, 4);
    assert_int_equal(i.mem.base, R8);
    assert_int_equal(i.mem.disp, 8);
    assert_int_equal(i.slot[0], SLOT_REG);
    assert_int_equal(i.slot[1], SLOT_VVVV);
    assert_int_equal(i.slot[2], SLOT_RM);
    assert_true(i.op[0].read && i.op[0].write); /* merging keeps elements */

    assert_int_equal(insn_decode(&i, vex, sizeof(vex), CPU_64), INSN_OK);
    assert_int_equal(i.id, INSN_VPALIGNR);
    assert_int_equal(i.map, 3);
    assert_int_equal(i.vlen, 32);
    assert_int_equal(i.off_imm, 5);
    assert_int_equal(i.imm, 7);
    assert_int_equal(i.slot[3], SLOT_IMM);
    assert_true(!i.op[0].read && i.op[0].write);
}

static bool supports(const char *hex, const enum cpu_feature *f, size_t n)
{
    struct cpuid_policy p = {0};
    uint8_t code[16] = {0};
    struct insn i;

    for (size_t k = 0; k < n; k++)
        p.feature[f[k] / 64] |= 1ull << (f[k] % 64);
    from_hex(hex, code);
    assert_int_equal(insn_decode(&i, code, sizeof(code), CPU_64), INSN_OK);
    return insn_supported(&i, &p);
}

#define HAS(hex, ...)                                      \
    supports(hex, (const enum cpu_feature[]){__VA_ARGS__}, \
             sizeof((const enum cpu_feature[]){__VA_ARGS__}) / sizeof(enum cpu_feature))

static void test_supported(void **state)
{
    assert_true(HAS("c5 f1 fe c2", CPUF_AVX));  /* VPADDD xmm */
    assert_false(HAS("c5 f5 fe c2", CPUF_AVX)); /* ymm */
    assert_true(HAS("c5 f5 fe c2", CPUF_AVX, CPUF_AVX2));
    assert_false(HAS("c5 f4 58 c2", CPUF_SSE2)); /* VADDPS ymm */
    assert_true(HAS("c5 f4 58 c2", CPUF_AVX));
    assert_true(HAS("62 f1 75 48 fe c2", CPUF_AVX512F)); /* VPADDD zmm */
    assert_false(HAS("62 f1 75 28 fe c2", CPUF_AVX512F));
    assert_true(HAS("62 f1 75 28 fe c2", CPUF_AVX512F, CPUF_AVX512VL));
    assert_true(HAS("62 f1 76 08 58 c2", CPUF_AVX512F));  /* VADDSS needs no VL */
    assert_true(HAS("62 f1 7d 08 6e c2", CPUF_AVX512F));  /* nor VMOVD */
    assert_false(HAS("62 f2 75 48 dc c2", CPUF_AVX512F)); /* VAESENC zmm */
    assert_true(HAS("62 f2 75 48 dc c2", CPUF_AVX512F, CPUF_VAES));
    assert_false(HAS("c4 e2 71 dc c2", CPUF_AES)); /* VAESENC xmm */
    assert_true(HAS("c4 e2 71 dc c2", CPUF_AES, CPUF_AVX));
    assert_false(HAS("c4 e2 75 dc c2", CPUF_AES, CPUF_AVX));
    assert_true(HAS("c4 e2 75 dc c2", CPUF_VAES, CPUF_AVX));
    assert_false(HAS("9e", CPUF_FPU));
    assert_true(HAS("9e", CPUF_FPU, CPUF_LAHF64));
    assert_true(HAS("90", CPUF_FPU));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rules), cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_raw_fields), cmocka_unit_test(test_supported)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
