/*
 * Everything in the set is moved always, except that loading looks whether upper parts are zero. To
 * ask the processor what is in use (XGETBV with ECX = 1, 7 ns on a Sapphire Rapids) costs more than
 * the stores it saves unless nothing but XMM registers was used, and its answer for the opmasks and
 * registers 16-31 is nearly always yes: string functions of C libraries use them, the host's own
 * too, and nothing but XRSTOR (35 ns) makes them unused again. In registers 16-31 dirty upper parts
 * harm nobody, since no legacy or VEX instruction can name them.
 */
#include "engine/bt/vec.h"

#include "engine/interp/simd.h"

/* Storing rows that straddle lines takes twice as long; struct cpu is allocated on a line. */
_Static_assert(offsetof(struct cpu, s.zmm) % 64 == 0,
               "rows of vector registers straddle cache lines");

/* No vector register may be touched but by the assembly here, whatever options this file is built
 * with; a race detector would even call into its library behind the last statement. */
#define GPR_ONLY __attribute__((target("general-regs-only"), no_sanitize_thread))

/* `text` for i = 0..15 and 16..31. */
#define EACH_LOW(text) ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n\t" text "\n\t.endr\n\t"
#define EACH_HIGH(text) \
    ".irp i,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n\t" text "\n\t.endr\n\t"
#define EACH_K(text) ".irp i,0,1,2,3,4,5,6,7\n\t" text "\n\t.endr\n\t"

typedef uint64_t vec_rows[32][8];

GPR_ONLY static inline void clean_uppers(void) { __asm__ volatile("vzeroupper" ::: "memory"); }

/* ---- out ---- */
GPR_ONLY static inline void store_xmm(vec_rows *rows)
{
    __asm__ volatile(EACH_LOW("movups %%xmm\\i, \\i*64(%0)")::"r"(rows) : "memory");
}

GPR_ONLY static inline void store_ymm(vec_rows *rows)
{
    __asm__ volatile(EACH_LOW("vmovups %%ymm\\i, \\i*64(%0)")::"r"(rows) : "memory");
}

GPR_ONLY static inline void store_zmm(vec_rows *rows)
{
    __asm__ volatile(EACH_LOW("vmovups %%zmm\\i, \\i*64(%0)")
                         EACH_HIGH("vmovups %%zmm\\i, \\i*64(%0)")::"r"(rows)
                     : "memory");
}

GPR_ONLY static inline void store_k(uint64_t k[8], bool k64)
{
    uint64_t v;

    if (k64)
        __asm__ volatile(EACH_K("kmovq %%k\\i, \\i*8(%0)")::"r"(k) : "memory");
    else
        __asm__ volatile(EACH_K("kmovw %%k\\i, %k0\n\tmov %0, \\i*8(%1)")
                         : "=&r"(v)
                         : "r"(k)
                         : "memory");
}

/* A load of MXCSR that changes it is slow on many processors. */
GPR_ONLY static inline void save_mxcsr(struct cpu *c)
{
    __asm__ volatile("stmxcsr %0" : "=m"(c->s.mxcsr));
    if ((c->s.mxcsr & ~MXCSR_FLAGS) != MXCSR_DEFAULT) {
        c->vec.mxcsr = MXCSR_DEFAULT;
        __asm__ volatile("ldmxcsr %0" ::"m"(c->vec.mxcsr));
    }
}

GPR_ONLY __attribute__((noinline)) void vec_save(struct cpu *c)
{
    if (!c->vec_live)
        return;
    if (c->vec.set == VEC_SSE) {
        store_xmm(&c->s.zmm);
    } else {
        if (c->vec.set == VEC_AVX) {
            store_ymm(&c->s.zmm);
        } else {
            store_zmm(&c->s.zmm);
            store_k(c->s.k, c->vec.k64);
        }
        clean_uppers();
    }
    save_mxcsr(c);
    c->vec_live = false;
}

/* ---- in ---- */
/* Which quadwords are not zero in some row of the first sixteen: bit n for [n], at least for those
 * of the set. Uses registers without making upper parts dirty. */
GPR_ONLY static inline unsigned scan_ymm(const vec_rows *rows)
{
    bool used;

    __asm__ volatile("vpxor %%xmm0, %%xmm0, %%xmm0\n\t" EACH_LOW(
                         "vpor 16+\\i*64(%1), %%xmm0, %%xmm0") "vptest %%xmm0, %%xmm0"
                     : "=@ccnz"(used)
                     : "r"(rows)
                     : "memory");
    return used ? 0xc : 0;
}

GPR_ONLY static inline unsigned scan_zmm(const vec_rows *rows)
{
    unsigned used;

    __asm__ volatile("vpxord %%zmm16, %%zmm16, %%zmm16\n\t" EACH_LOW(
                         "vporq \\i*64(%1), %%zmm16, %%zmm16") "vptestmq %%zmm16, %%zmm16, %%k1\n\t"
                                                               "kmovw %%k1, %0"
                     : "=r"(used)
                     : "r"(rows)
                     : "memory");
    return used;
}

GPR_ONLY static inline void load_xmm(const vec_rows *rows)
{
    __asm__ volatile(EACH_LOW("movups \\i*64(%0), %%xmm\\i")::"r"(rows) : "memory");
}

GPR_ONLY static inline void load_ymm(const vec_rows *rows)
{
    __asm__ volatile(EACH_LOW("vmovups \\i*64(%0), %%ymm\\i")::"r"(rows) : "memory");
}

GPR_ONLY static inline void load_zmm_low(const vec_rows *rows)
{
    __asm__ volatile(EACH_LOW("vmovups \\i*64(%0), %%zmm\\i")::"r"(rows) : "memory");
}

GPR_ONLY static inline void load_zmm_high(const vec_rows *rows)
{
    __asm__ volatile(EACH_HIGH("vmovups \\i*64(%0), %%zmm\\i")::"r"(rows) : "memory");
}

GPR_ONLY static inline void load_k(const uint64_t k[8], bool k64)
{
    if (k64)
        __asm__ volatile(EACH_K("kmovq \\i*8(%0), %%k\\i")::"r"(k) : "memory");
    else
        __asm__ volatile(EACH_K("kmovw \\i*8(%0), %%k\\i")::"r"(k) : "memory");
}

GPR_ONLY static inline void load_mxcsr(struct cpu *c)
{
    __asm__ volatile("stmxcsr %0" : "=m"(c->vec.mxcsr));
    if (c->vec.mxcsr != c->s.mxcsr)
        __asm__ volatile("ldmxcsr %0" ::"m"(c->s.mxcsr));
}

GPR_ONLY __attribute__((noinline)) void vec_load(struct cpu *c)
{
    unsigned used = 0;

    if (c->vec_live)
        return;
    if (c->vec.set != VEC_SSE) {
        used = c->vec.set == VEC_AVX ? scan_ymm(&c->s.zmm) : scan_zmm(&c->s.zmm);
        clean_uppers();
    }
    if (!(used & 0xfc))
        load_xmm(&c->s.zmm);
    else if (!(used & 0xf0))
        load_ymm(&c->s.zmm);
    else
        load_zmm_low(&c->s.zmm);
    if (c->vec.set == VEC_AVX512) {
        load_zmm_high(&c->s.zmm);
        load_k(c->s.k, c->vec.k64);
    }
    load_mxcsr(c);
    c->vec_live = true;
}

void vec_init(struct cpu *c, enum vec_set most)
{
    uint64_t guest = c->vm->cpuid->xcr0_mask;
    enum vec_set set = VEC_SSE;

    if ((guest & XCR0_AVX) && __builtin_cpu_supports("avx"))
        set = VEC_AVX;
    if (set == VEC_AVX && (guest & XCR0_AVX512) && __builtin_cpu_supports("avx512f"))
        set = VEC_AVX512;
    c->vec.set = MIN(set, most);
    c->vec.k64 = __builtin_cpu_supports("avx512bw");
    c->vec_live = false;
}
