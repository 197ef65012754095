/*
 * The interpreter's per-vCPU context and the conventions its files share. Private to
 * src/engine/interp; the outside sees engine.h.
 *
 * Two kinds of instruction code:
 *  - fast handlers (op.h, ops_*.c): one per hot operand form in 64-bit code, threaded;
 *  - plain functions `void f(struct cpu *c, const struct insn *i)`: every instruction in every mode.
 *    When one is called c->s.rip is the instruction's address and c->next_rip the one after it;
 *    it may change next_rip (branches) or the mode. Flags are read and written through cpu_flags()
 *    and cpu_set_flags()/cpu_set_status(). Registers are committed only after the last access
 *    that can fault; a fault leaves by cpu_raise(), which does not return, and the state must then be as
 *    before the instruction.
 *
 * Everything here runs on the vCPU's own thread.
 */
#ifndef RING3_ENGINE_INTERP_INTERP_H
#define RING3_ENGINE_INTERP_INTERP_H

#include <setjmp.h>

#include "base/util.h"
#include "cpu/paging.h"
#include "cpu/state.h"
#include "engine/bt/state.h"
#include "engine/engine.h"
#include "engine/interp/sync.h"
#include "engine/interp/tlb.h"
#include "insn/insn.h"

struct op;
struct block;
struct code_cache;
struct simd; /* simd.h */
struct dry;  /* dry.h */

/* What the vCPUs of one VM share: vm->engine_priv. */
struct interp_vm {
    struct code_cache *code;
    struct sync sync;
    /* Runs guest code from c->s.rip, which needs no stepping, until something wants the run loop. */
    void (*run)(struct cpu *c);
    struct bt *bt; /* the translator, NULL without one */
    unsigned threshold; /* of entries, for a block to be translated */
    size_t behind; /* bytes that the translator wants behind each struct cpu, zero at first */
};

/* An exception or interrupt on its way to being delivered. */
struct event {
    enum { EV_FAULT, EV_TRAP, EV_SOFT_INT, EV_EXT_INT, EV_NMI_INT, EV_ICEBP } kind;
    uint8_t vector;
    bool has_error;
    uint32_t error;
};

struct cpu {
    uint64_t next_rip;
    /* What a jump-cache entry must match beside RIP: mode and TLB generation; gkey for code in global pages of the
     * upper half, which outlives changes of the address space. */
    uint64_t key, gkey;
#define CPU_KEY_NONE (~0ull) /* that of single steps: nothing matches it */
    bool fetch_global;   /* the code cache_lookup found lies in global pages */
    const _Atomic uint32_t *events; /* v->events */
    const struct op *op; /* last fast handler that took a slow path */
    struct bt_cpu bt;    /* the translator's; it wants these at small distances from the registers (bt/bt.h) */
    struct tlb_set *tlb; /* the set for CPL, SMAP and PCID now; an always empty one while `align` or `watch` */
    /* Status flags in LAHF/SETO form: bits 15..8 = SF ZF 0 AF 0 PF 1 CF, bit 0 = OF. While run() is
     * inside, the status bits of s.rflags are stale; use cpu_flags(). */
    uint16_t cc;

    uint8_t cpl;       /* cached cpu_cpl() */
    uint8_t bits;      /* cached cpu_code_bits() */
    bool flat;         /* 64-bit code: only FS and GS have bases */
    /* rip, status flags and x87 may live elsewhere while running: see below. g views the state as
     * 64-bit words so that one index names a base or index register, a segment base (G_FSBASE),
     * the running block's RIP (G_RIP) or zero (G_ZERO): see op.h. */
    union {
        struct cpu_state s;
        uint64_t g[sizeof(struct cpu_state) / 8 + 2];
    };


    jmp_buf fault;       /* where cpu_raise goes */
    struct event event;  /* what it raised */
    bool deliver;        /* event waits for event_deliver() */
    bool in_delivery;    /* an event is being delivered: for #DF */
    uint8_t deliver_class; /* its class: 0 benign, 1 contributory, 2 page fault, 3 double fault */
    bool shutdown;
    bool failed;         /* run() ends with STOP_ERROR; v->error says why */
    bool mode_changed;   /* leave the block: CPL, CS, paging or flags that matter changed */

    struct paging pg;
    uint64_t pg_cr0, pg_cr4, pg_efer; /* what pg was made from, with pg.cr3 */
    struct tlbs tlbs;
    struct vcpu *v;
    struct vm *vm;
    struct interp_vm *shared;
    struct code_cache *code; /* shared->code */
    struct sync_cpu sync;
    struct jump_cache *jc;
    struct block *scratch;   /* code that cannot be cached is decoded into here */
    struct tlb_set *no_tlb; /* the always empty set */
    bool align;          /* CR0.AM, RFLAGS.AC and CPL 3: unaligned accesses raise #AC */
    bool watch;          /* a data breakpoint is armed: accesses are compared with DR0..DR3 */
    bool step;           /* one instruction at a time: TF, shadows, breakpoints, budget */
    struct simd *simd;   /* vector routines and buffers (simd_init, simd_fini) */
    bool x87_live;       /* the host's x87 unit holds s.x87 (x87.c) */
    bool vec_live;       /* the host's registers hold s.zmm, s.k and s.mxcsr (bt/vec.h) */
    struct {
        uint8_t set;     /* enum vec_set: what is moved */
        bool k64;        /* the host's opmasks have 64 bits, not 16 */
        uint32_t mxcsr;  /* for comparing */
    } vec;               /* bt/vec.c's own */
    uint64_t ninsn;      /* retired, flushed to v->insns */
    uint64_t nevents;    /* exceptions and interrupts delivered */
    uint64_t stop_at;    /* ninsn + nevents at which the budget ends, UINT64_MAX without one */
    uint64_t dbg_before; /* s.pending_dbg when the instruction that is single-stepped began */
    /* CS as the jump cache's entries for code other than 64-bit assume it. */
    uint64_t cs_base;
    uint32_t cs_limit;
    bool cs_8086;
    bool partly;         /* a gather or scatter has done some of its elements */
    bool trap_taken;     /* set by an instruction that consumes its own single-step trap (SYSCALL, INT n) */
    unsigned pauses;     /* PAUSEs in short succession */
    uint64_t pause_at;   /* ninsn at the last one */
    struct dry *dry;     /* a dry run is under way: memory is read but not written, TLBs not filled (dry.h) */
    bool no_fast;        /* tests: use the plain functions for everything */
};

/* ---- faults ---- */
/* Raises a fault with the vector's error code (ignored where the vector has none). c->s.rip must be
 * the faulting instruction's. */
_Noreturn void cpu_raise(struct cpu *c, enum vector vec, uint32_t error);
_Noreturn void cpu_raise_pf(struct cpu *c, uint64_t la, uint32_t error); /* sets CR2 */
/* Leaves the current instruction without completing it, to run it again after events were looked at
 * (REP string instructions after a batch, long waits). State must be consistent for a restart. */
_Noreturn void cpu_restart(struct cpu *c);
/* The same between two iterations of a repeated string instruction: single-stepping traps after each, and
 * an instruction breakpoint does not hit again (SDM vol. 3 §18.3.1.1: RF is set in the image). */
_Noreturn void cpu_restart_rep(struct cpu *c);

/* What a serialising instruction does for other processors and devices: all stores before it are seen. */
static inline void cpu_fence(void) { __asm__ volatile("mfence" : : : "memory"); }

/* A guest spins when it executes PAUSES_MAX times PAUSE with no more than about PAUSE_GAP instructions from one to
 * the next; run() then returns STOP_PAUSE. */
#define PAUSES_MAX 256u
#define PAUSE_GAP 256u

/* ---- flags ---- */
static inline uint64_t cc_to_flags(uint16_t cc)
{
    return (cc >> 8 & (FL_SF | FL_ZF | FL_AF | FL_PF | FL_CF)) | (cc & 1) << 11;
}
static inline uint16_t flags_to_cc(uint64_t f)
{
    return (uint16_t)((f & (FL_SF | FL_ZF | FL_AF | FL_PF | FL_CF)) << 8 | (f >> 11 & 1));
}
static inline uint64_t cpu_flags(const struct cpu *c)
{
    return (c->s.rflags & ~FL_STATUS) | cc_to_flags(c->cc);
}
static inline void cpu_set_status(struct cpu *c, uint64_t f) { c->cc = flags_to_cc(f); }
/* Sets all of RFLAGS (bit 1 forced, reserved cleared) and whatever follows: TLB set by AC, TF and IF
 * noticed before the next instruction. */
void cpu_set_flags(struct cpu *c, uint64_t f);

/* Recomputes everything cached from s (cpl, bits, flat, paging, tlb set) after a change of mode,
 * segments, control registers or EFER; sets mode_changed. */
void cpu_update_mode(struct cpu *c);
/* After CR0, CR3, CR4 or EFER changes that invalidate translations. */
void cpu_flush_tlb(struct cpu *c, bool global);
/* Does what another thread left to be done (SYNC_*). */
void cpu_sync_work(struct cpu *c, unsigned work);

/* ---- linear memory (mem.c) ---- */
enum priv {
    PRIV_CPL,  /* an ordinary access: user if CPL 3, SMAP and alignment checks apply */
    PRIV_ELEMENT, /* an element of a vector: the same without alignment checks */
    PRIV_SUPER /* implicit supervisor access: GDT, LDT, IDT, TSS, and stacks of inner rings */
};
/* Which TLB set answers an access of this kind now (refill.c). */
enum tlb_kind tlb_kind(const struct cpu *c, enum priv p);
/* What a walk for the TLB found. ent: the frame's p2m entry, 0 if it is no memory. */
struct refill {
    struct walk w;
    uint64_t ent;
};
/* Translates la, canonical in long mode, and fills the TLB. False: #PF with r->w.error. After either mem_walked
 * must be called if r->w.ncode. */
bool tlb_refill(struct cpu *c, uint64_t la, enum access a, enum priv p, struct refill *r);
/* n up to 4096; may cross pages: then both are checked before anything is written. */
void lin_read(struct cpu *c, uint64_t la, void *buf, unsigned n, enum priv p);
void lin_write(struct cpu *c, uint64_t la, const void *buf, unsigned n, enum priv p);
/* Raises what an access would raise; changes nothing but A/D bits. */
void lin_check(struct cpu *c, uint64_t la, unsigned n, enum access a, enum priv p);
/* Host address of [la, la+n), n up to 4096, for a plain store after full write checks, or NULL if it is I/O, ROM,
 * holds code or crosses a page whose frames are not adjacent in the host. */
void *lin_map_rw(struct cpu *c, uint64_t la, unsigned n);
/* The same for reading only. */
const void *lin_map_ro(struct cpu *c, uint64_t la, unsigned n);

/* A read-modify-write of n bytes, up to 16, in any memory: what is at `p` between begin and end may be
 * read and changed, with the host's atomic operations if `locked`; end never faults, and nothing that can fault may
 * come between the two. I/O is read once and written once. */
struct rmw {
    void *p;
    uint64_t gpa[2];  /* of the parts in up to two pages */
    uint8_t *host[2]; /* NULL for I/O */
    uint8_t n[2];
    bool rom[2], code[2];
    bool direct;    /* p is guest memory itself, else buf */
    bool exclusive; /* the other vCPUs are stopped */
    uint8_t buf[16] __attribute__((aligned(16)));
};
void lin_rmw_begin(struct cpu *c, struct rmw *r, uint64_t la, unsigned n, bool locked);
void lin_rmw_end(struct cpu *c, struct rmw *r);
/* Sets or clears bits of a byte of a descriptor table in one locked access (SDM vol. 3 §9.1.2.1). */
void lin_set_bits(struct cpu *c, uint64_t la, uint8_t set);
void lin_clear_bits(struct cpu *c, uint64_t la, uint8_t clear);
static inline uint64_t lin_ld(struct cpu *c, uint64_t la, unsigned n, enum priv p)
{
    uint64_t v = 0;
    lin_read(c, la, &v, n, p);
    return v;
}
static inline void lin_st(struct cpu *c, uint64_t la, unsigned n, uint64_t v, enum priv p)
{
    lin_write(c, la, &v, n, p);
}

/* The host address of [la, la+n) if it lies in one page and the TLB answers at once, else NULL. */
static inline void *tlb_host(const struct cpu *c, uint64_t la, unsigned n, bool write)
{
    const struct tlb_entry *e = tlb_slot(c->tlb, la);

    if (((la + n - 1) & ~PAGE_MASK) != (write ? e->wtag : e->rtag))
        return NULL;
    return (void *)(uintptr_t)(la + e->addend);
}

/* ---- segmented memory: effective address -> linear, with limit, type and canonical checks
 * (#SS for SS, #GP otherwise), in every mode ---- */
uint64_t seg_lin(struct cpu *c, enum sreg seg, uint64_t ea, unsigned n, enum access a);
static inline uint64_t seg_ld(struct cpu *c, enum sreg seg, uint64_t ea, unsigned n)
{
    return lin_ld(c, seg_lin(c, seg, ea, n, ACCESS_READ), n, PRIV_CPL);
}
static inline void seg_st(struct cpu *c, enum sreg seg, uint64_t ea, unsigned n, uint64_t v)
{
    lin_st(c, seg_lin(c, seg, ea, n, ACCESS_WRITE), n, v, PRIV_CPL);
}

/* ---- operands (operand.c) ---- */
uint64_t insn_ea(struct cpu *c, const struct insn *i);     /* offset within i->mem.seg, addrsize applied */
uint64_t insn_lin(struct cpu *c, const struct insn *i, unsigned n, enum access a); /* through seg_lin */
uint64_t op_read(struct cpu *c, const struct insn *i, unsigned n);  /* GPR, SREG, MEM, IMM; zero-extended */
/* Writes op[n]; 32-bit GPR writes in 64-bit mode zero-extend, 8/16-bit ones merge. */
void op_write(struct cpu *c, const struct insn *i, unsigned n, uint64_t v);
uint64_t gpr_read(const struct cpu *c, unsigned reg, unsigned size);
void gpr_write(struct cpu *c, unsigned reg, unsigned size, uint64_t v);

/* ---- stack: push and pop at the current stack size (SS.B, or 64-bit), data size n. push_check/commit
 * style: `struct stack` collects pushes on a copy of RSP and commits at the end. ---- */
struct stack {
    struct cpu *c;
    uint64_t sp;    /* working copy */
    uint64_t mask;  /* 0xffff, 0xffffffff or ~0 */
    uint64_t base;  /* SS base (0 in 64-bit) */
    struct segment ss;
    enum priv priv;
};
void stack_begin(struct stack *st, struct cpu *c);               /* the current stack */
/* A stack not yet in SS:RSP (inner ring). */
void stack_begin_on(struct stack *st, struct cpu *c, const struct segment *ss, uint64_t sp);
void stack_push(struct stack *st, unsigned n, uint64_t v);
void stack_probe(struct stack *st, unsigned n); /* as stack_push, but only raises what that would */
uint64_t stack_pop(struct stack *st, unsigned n);
void stack_commit(struct stack *st); /* RSP := working copy within the mask */

/* ---- what other files give (each returns void, plain-function convention) ---- */
typedef void (*insn_fn)(struct cpu *c, const struct insn *i);
insn_fn sys_fn(enum insn_id id);  /* sys_*.c: privileged, far, segment, I/O, flag-control; NULL if not theirs */
insn_fn simd_fn(const struct insn *i); /* simd*.c, x87.c, xsave.c; NULL if not theirs */
insn_fn int_fn(enum insn_id id);  /* int_*.c: general instructions */

/* exc.c: delivers c->event through the IDT in any mode; converts nested faults to #DF and
 * shutdown (sets c->shutdown). On return c->s.rip is the handler's. */
void event_deliver(struct cpu *c);

/* x87.c: brings s.x87 up to date and drops the host copy. Must be called on the thread that runs the vCPU, before
 * run() returns and before anything but x87.c reads or changes s.x87. */
void x87_sync(struct cpu *c);

#endif
