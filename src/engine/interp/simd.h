/*
 * Vector, MMX, x87 and extended-state instructions of the interpreter. Everything that computes is
 * computed by the host's own unit: a small host routine (a stub, stub.c) loads the registers the
 * instruction names, executes the very instruction with its memory operand replaced by (%rsi), and
 * stores what it wrote. What touches guest memory, decides which fault is raised, or only moves
 * data is C.
 *
 * Everything runs on the vCPU's own thread; struct simd belongs to one vCPU.
 * Manual: Intel SDM vol. 1 ch. 8-15, vol. 2 ch. 2 (exception classes); AMD APM vol. 4 and 5.
 */
#ifndef RING3_ENGINE_INTERP_SIMD_H
#define RING3_ENGINE_INTERP_SIMD_H

#include "engine/interp/interp.h"

/* MXCSR */
#define MXCSR_IE BIT(0)
#define MXCSR_DE BIT(1)
#define MXCSR_ZE BIT(2)
#define MXCSR_OE BIT(3)
#define MXCSR_UE BIT(4)
#define MXCSR_PE BIT(5)
#define MXCSR_FLAGS 0x3fu
#define MXCSR_PRE (MXCSR_IE | MXCSR_DE | MXCSR_ZE) /* found before the operation is computed */
#define MXCSR_DAZ BIT(6)
#define MXCSR_MASKS 0x1f80u
#define MXCSR_MASK_SHIFT 7
#define MXCSR_FZ BIT(15)
#define MXCSR_VALID 0xffffu /* MXCSR_MASK: the rest is reserved */
#define MXCSR_DEFAULT 0x1f80u

/* x87 status and control words */
#define FSW_IE BIT(0)
#define FSW_OE BIT(3)
#define FSW_UE BIT(4)
#define FSW_EXC 0x3fu
#define FSW_ES BIT(7)
#define FSW_TOP_SHIFT 11
#define FSW_TOP (7u << FSW_TOP_SHIFT)
#define FSW_B BIT(15)
#define FCW_MASKS 0x3fu
#define FCW_VALID 0x1f3fu
#define FCW_ONE 0x40u /* reads as one */
#define FCW_DEFAULT 0x37fu

/* A generated routine. c: whose registers to use; mem: host address of the memory operand. */
typedef void (*stub_fn)(struct cpu *c, void *mem);

/* ---- stub.c: the cache of generated routines, in a memfd mapped writable and executable apart
 * ---- */
#define STUB_SLOTS 8192u

struct stub_slot {
    uint64_t key; /* normalised encoding, 0 = free */
    uint32_t off;
};

struct stub_cache {
    uint8_t *rw, *rx; /* the same STUB_BYTES bytes */
    uint32_t used, count;
    bool avx512f, avx512bw;
    struct stub_slot *slot; /* STUB_SLOTS, open addressing */
};

int stub_init(struct stub_cache *sc, struct err *e);
void stub_fini(struct stub_cache *sc);
/* The bytes of i with its memory and general-purpose operands normalised: instructions with the
 * same key share a routine. Never 0. */
uint64_t stub_key(const struct insn *i);
/* Makes the routine of i, whose key is not in the cache yet. i must be an instruction the host has.
 * A full cache is emptied first: a routine is valid until the next stub_make only. */
stub_fn stub_make(struct stub_cache *sc, const struct insn *i, uint64_t key);
static inline unsigned stub_hash(uint64_t key)
{
    return (unsigned)(key * 0x9e3779b97f4a7c15ull >> 51); /* as many bits as STUB_SLOTS has */
}
static inline stub_fn stub_get(struct stub_cache *sc, const struct insn *i, uint64_t key)
{
    for (unsigned h = stub_hash(key); sc->slot[h].key; h = (h + 1) & (STUB_SLOTS - 1))
        if (likely(sc->slot[h].key == key))
            return (stub_fn)(uintptr_t)(sc->rx + sc->slot[h].off);
    return stub_make(sc, i, key);
}

/* ---- per-vCPU data ---- */
struct simd {
    struct stub_cache stubs;
    bool fdp_excptn_only; /* CPUID 7.0 EBX 6: FDP changes on unmasked exceptions only */
    bool no_fcs_fds;      /* CPUID 7.0 EBX 13: FCS and FDS are saved as zero */
    bool error_pointers;  /* Intel, AMD with XSaveErPtr: FOP, FIP, FDP are saved even with no
                             exception pending */
    uint8_t la_bits;      /* linear address bits: a restored 64-bit FIP is made canonical */
    uint8_t bounce[64] __attribute__((aligned(64)));
};

/* c->vm->cpuid must be set. 0, or negative errno with e filled; on failure nothing is held. */
int simd_init(struct cpu *c, struct err *e);
void simd_fini(struct cpu *c);

/* ---- the prepared form: what the block cache may keep beside a decoded instruction ---- */
struct simd_op {
    /* Executes i by the plain-function convention of interp.h. */
    void (*run)(struct cpu *c, const struct insn *i, const struct simd_op *op);
    insn_fn fn;     /* what run calls for instructions that have code of their own */
    uint64_t key;   /* stub_key() if run needs a stub */
    uint8_t mem_op; /* index of the memory operand, or NO_MEM */
    uint8_t size;   /* bytes of data moved, for the plain moves */
};
#define NO_MEM 0xff

/* Fills *out for an instruction simd_fn knows; false if it is not one. *out never changes
 * afterwards and any vCPU may run it with the same *i. */
bool simd_prepare(struct cpu *c, const struct insn *i, struct simd_op *out);
static inline stub_fn simd_stub(struct cpu *c, const struct insn *i, const struct simd_op *op)
{
    return stub_get(&c->simd->stubs, i, op->key);
}

/* ---- simd_avail.c: may the instruction run at all? #UD and #NM by its exception class ---- */
void simd_avail_slow(struct cpu *c, const struct insn *i);
static inline void simd_avail(struct cpu *c, const struct insn *i)
{
    /* The common case in one test each: legacy SSE with everything enabled. */
    if (likely((i->row->flags & (IF_SSE | IF_MMX)) == IF_SSE && !(c->s.cr0 & (CR0_EM | CR0_TS)) &&
               (c->s.cr4 & CR4_OSFXSR)))
        return;
    simd_avail_slow(c, i);
}

/* ---- simd_mem.c: memory operands ---- */
/* Linear address of the operand in flat 64-bit code without any check (a TLB hit proves it
 * canonical); false if the mode needs the full way. */
static inline bool simd_flat_la(const struct cpu *c, const struct insn *i, uint64_t *la)
{
    const struct insn_mem *m = &i->mem;

    if (!c->flat || i->addrsize != 8 || m->vsib)
        return false;
    uint64_t a = (uint64_t)m->disp;
    if (m->base == REG_RIP)
        a += c->next_rip;
    else if (m->base != REG_NONE)
        a += c->s.gpr[m->base];
    if (m->index != REG_NONE)
        a += c->s.gpr[m->index] << m->scale;
    if (m->seg >= FS)
        a += c->s.seg[m->seg].base;
    *la = a;
    return true;
}
/* Host address of n bytes if the soft TLB answers at once and IF_ALIGN is satisfied, else NULL. */
static inline void *simd_fast_ptr(const struct cpu *c, const struct insn *i, unsigned n, bool write)
{
    uint64_t la;

    if (unlikely(!simd_flat_la(c, i, &la)))
        return NULL;
    const struct tlb_entry *e = tlb_slot(c->tlb, la);
    if (((la + n - 1) & ~PAGE_MASK) != (write ? e->wtag : e->rtag))
        return NULL;
    if ((i->row->flags & IF_ALIGN) && (la & (n - 1)))
        return NULL;
    return (void *)(uintptr_t)(la + e->addend);
}
/* The operand's n bytes (1..64), in guest memory itself or copied to the bounce buffer. */
const void *simd_load(struct cpu *c, const struct insn *i, unsigned n);
/* Where to put n bytes; every fault a store can take has been raised when it returns. If it is the
 * bounce buffer *la says where simd_store_end must copy it to. */
void *simd_store_begin(struct cpu *c, const struct insn *i, unsigned n, uint64_t *la);
void simd_store_end(struct cpu *c, unsigned n, uint64_t la, const void *p);
/* Linear address after all segment and alignment checks. */
uint64_t simd_lin(struct cpu *c, const struct insn *i, unsigned n, enum access a);

/* ---- simd_mask.c: memory operands accessed in part ---- */
/* Elements of a memory operand that an opmask or a vector mask selects: bit e of active is element
 * e of size bytes at offset e * size. */
struct simd_elems {
    uint64_t active;
    unsigned count, size;
};
/* The elements of the memory operand of an EVEX instruction under a mask, or of VMASKMOV. */
void simd_partial(const struct cpu *c, const struct insn *i, struct simd_elems *el);
void simd_partial_load(struct cpu *c, const struct insn *i, const struct simd_elems *el,
                       uint8_t *buf);
/* Raises what the store would: IF_STRICT_WHOLE instructions check masked-off elements too. */
void simd_partial_check(struct cpu *c, const struct insn *i, const struct simd_elems *el);
void simd_partial_store(struct cpu *c, const struct insn *i, const struct simd_elems *el,
                        const uint8_t *buf);
/* MASKMOVQ, MASKMOVDQU, VMASKMOVDQU; gathers and scatters. NULL if i is none of them. */
insn_fn simd_mask_fn(const struct insn *i);

/* ---- simd_move.c: moves and zeroing idioms in C. False if i is none of them. ---- */
bool simd_move_prepare(const struct insn *i, struct simd_op *out);

/* ---- x87.c ---- */
insn_fn x87_fn(const struct insn *i); /* control instructions; NULL for those x87_run executes */
void x87_run(struct cpu *c, const struct insn *i, const struct simd_op *op);
/* Every x87 instruction but FWAIT begins so: #NM, then what x87_check_pending says if it is a
 * waiting one. */
void x87_enter(struct cpu *c, const struct insn *i);
/* Raises #MF (or does as CR0.NE = 0 asks) if an unmasked x87 exception is pending. */
void x87_check_pending(struct cpu *c);
/* Recomputes ES and B from the flags and masks; to be called whenever fcw or fsw was loaded. */
void x87_update_es(struct x87_state *x);
void x87_reset(struct x87_state *x);                 /* FNINIT */
void x87_set_top(struct x87_state *x, unsigned top); /* renumbers st[]; 0 <= top < 8 */
/* MMX transition: TOP = 0, every register valid. The host copy is dropped first. */
void x87_to_mmx(struct cpu *c);

/* x87_env.c: FNSTENV, FLDENV, FNSAVE, FRSTOR. NULL if i is none of them. */
insn_fn x87_env_fn(const struct insn *i);

/* ---- xsave.c: FXSAVE, XSAVE and the like, XGETBV, XSETBV, LDMXCSR, STMXCSR. NULL if none. ---- */
insn_fn xsave_fn(const struct insn *i);

#endif
