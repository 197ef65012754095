/*
 * The binary translator: x86-64 to x86-64. It stands on the interpreter (engine/interp): its vCPU
 * structure, soft TLB, code cache and everything that is not hot. A decoded block that has been
 * entered often enough gets a translation (struct tblock), which lives and dies with it.
 *
 * While translated code runs:
 *   - guest registers are in host registers, by bt_home[]; those without one in cpu.s.gpr. Within a block some may
 *     have changed places (homes.c);
 *   - EMIT_CPU points into the struct cpu; host RCX, R9 and R10 are scratch; the host stack is one of its own, for
 *     return addresses alone (returns.h), and calls to C change to the one that bt_enter left;
 *   - the guest's status flags are in the host's EFLAGS ("host") or in cpu.cc ("cc") between blocks,
 *     and each block has an entry for either; within a block see flags.c;
 *   - cpu.bt.vpage is the linear address of the page that runs;
 *   - the vector registers hold the guest's if cpu.bt.level says so (vec.h).
 * RCX is scratch because JRCXZ is the one conditional branch that needs no flags.
 *
 * All of it is private to src/engine/bt but for hooks.h and the pieces that struct cpu embeds
 * (state.h).
 */
#ifndef RING3_ENGINE_BT_BT_H
#define RING3_ENGINE_BT_BT_H

#include "engine/bt/emit.h"
#include "engine/interp/cache.h"
#include "engine/interp/interp.h"
#include "engine/bt/recode.h"

/* Host registers by role. */
enum { BT_T0 = R10, BT_T1 = RCX, BT_T2 = R9 };
#define BT_SPILLED 0xff
/* Guest register -> host register, or BT_SPILLED: the five that compilers use least. Those with a
 * meaning of their own (RAX, RDX ...) stay where they are. */
static const uint8_t bt_home[16] = {
    [RAX] = RAX, [RCX] = R11, [RDX] = RDX, [RBX] = RBX,
    [RSP] = R15, [RBP] = RBP, [RSI] = RSI, [RDI] = RDI,
    [R8] = BT_SPILLED, [R9] = BT_SPILLED, [R10] = BT_SPILLED, [R11] = BT_SPILLED,
    [R12] = R12, [R13] = R13, [R14] = R8, [R15] = BT_SPILLED,
};

/* EMIT_CPU points so far into struct cpu, and fields are so far from there. */
#define BT_CPU_AT ((int32_t)offsetof(struct cpu, s))
#define BT_OFF(field) ((int32_t)offsetof(struct cpu, field) - BT_CPU_AT)
_Static_assert(BT_OFF(bt.group) == -128 && BT_OFF(s.gpr) == 0, "a byte holds these displacements");
#define BT_OFF_GPR(r) (BT_OFF(s.gpr) + 8 * (int32_t)(r))

#define BT_AREA_SIZE (128 * MIB)
#define BT_AREA_COLD (BT_AREA_SIZE / 2) /* offset of its part for cold paths */
#define BT_BLOCK_MAX (64 * KIB) /* host code of one block at most */
#define BT_SITES_MAX (1u << 22)
#define BT_LINKS_MAX (1u << 20)
#define BT_ICS_MAX (1u << 20)

/* Inline cache n of a vCPU, a struct bt_jump, lies behind its struct cpu. */
#define BT_OFF_IC(n) ((int32_t)(ALIGN_UP(sizeof(struct cpu), 64) + sizeof(struct bt_jump) * (n)) - BT_CPU_AT)
#define BT_IC_BYTES ((size_t)(BT_OFF_IC(BT_ICS_MAX) + BT_CPU_AT) - sizeof(struct cpu))

/* Instead of a site, where the branch is not known to those who leave. */
#define BT_FROM_DEAD (~0u)     /* it led to cpu.bt.dead; it was to a canonical address */
#define BT_FROM_RETURN (~0u - 1) /* cpu.bt.ret has it */
#define BT_FROM_LINK (~0u - 2) /* within a page */

/* The byte of cpu.bt.ret that tells where the flags are: 8 * enum bt_flags. The site is below. */
#define BT_RET_FLAGS 3
#define BT_RET_SITE(ret) ((ret) & 0xffffffu)

/* Where the guest's status flags are between blocks. */
enum bt_flags { BT_HOST, BT_CC };

/* Why translated code returned. */
enum bt_exit {
    BT_EXIT_LINK,   /* cpu.bt.site is a link not made yet */
    BT_EXIT_LOOKUP, /* go on at cpu.s.rip, which the jump table does not hold; site: the branch, or BT_FROM_x */
    BT_EXIT_INTERP, /* the instruction at the site is the interpreter's */
    BT_EXIT_EVENT   /* events; go on at the site */
};

/* What a point in translated code knows of the guest. */
struct bt_site {
    union {
        struct tblock *t;
        struct block *single; /* `apart`: the interpreter's code for the instruction, whose own t is the translation */
    };
    uint32_t retry;  /* code offset of the address translation to repeat; BT_SITE_PLAIN: where to go on
                        behind an instruction that C does */
    uint16_t off;    /* of the instruction in its page */
    uint16_t span;   /* bytes from the address in T0 that the access may touch; BT_SITE_RET: what was
                        added to RSP */
    uint16_t adj;    /* the access, so many bytes from T0, must be a multiple of `align` */
    uint8_t align;   /* or 0 */
    uint8_t kind;    /* enum bt_site_kind */
    uint8_t len;     /* of the instruction */
    bool group : 1;  /* a shared translation */
    bool stack : 1;  /* by the vCPU's stack page */
    bool rep : 1;    /* a repeated string instruction */
    bool resume : 1; /* the interpreter may come back at retry */
    bool apart : 1;  /* or it is looked up */
};
_Static_assert(sizeof(struct bt_site) == 24, "there are very many");
enum bt_site_kind {
    BT_SITE_PLAIN, BT_SITE_READ, BT_SITE_WRITE,
    BT_SITE_EARLY, /* a read whose translation serves later writes too */
    BT_SITE_JUMP, BT_SITE_CALL, BT_SITE_RET,
    BT_SITE_VEC /* span: the level wanted */
};

/* A value that flags are made of: that of a guest register now, or of bt.operand, plus `add`; or an immediate. */
enum { RV_IMM = 0x40, RV_KEPT };
struct recipe_value {
    uint8_t reg; /* or RV_x */
    int16_t add;
};

/* How to compute flags anew from values that are still there (recipe.c). */
struct recipe {
    enum { RC_NOTHING, RC_CMP, RC_TEST, RC_ADD, RC_SUB, RC_NEG,
           RC_LOGIC, /* from the result alone */
           RC_CLEAR, /* CF = 0, below an INC or DEC */
           RC_CC     /* they are in cpu.cc as well */ } kind;
    uint8_t size;
    struct recipe_value dst, src; /* dst of RC_ADD to RC_LOGIC: the result */
    int32_t imm;
    /* INC (1) or DEC (-1) came after, and left CF. */
    int8_t step;
    uint8_t step_size;
    struct recipe_value last; /* its result */
};

/* A direct branch to somewhere in the same page, or a call. In a block with swaps it first leads to code that takes them
 * back, where a second jump goes on; a target with the same swaps is reached without. */
struct bt_link {
    struct tblock *from, *to; /* to: NULL while not made */
    uint32_t patch;           /* code offset of its rel32 */
    uint32_t unlinked;        /* where that leads while not made */
    uint32_t patch2, unlinked2; /* of the jump behind the swaps and the recipe, or 0 */
    struct recipe recipe;     /* makes the flags anew that it arrives with */
    bool lazy;                /* they are not there before patch2 */
    bool swapped;             /* nor are the swaps taken back */
    uint32_t next;            /* of the links to the same block, 0 = end */
    uint16_t off;             /* of the target in the page */
    uint8_t flags;            /* arrives with them there, enum bt_flags */
    bool far;                 /* made by an inline cache */
    bool again;               /* back to the begin of a loop, whose lookups need not be repeated (tblock.loops) */
    uint8_t level;            /* arrives with the vector registers live at this level at least */
};

/* Within a block: `in`, a guest register without a home, is in the home of `out`, and `out` in cpu.s.gpr. */
struct bt_swap {
    uint8_t in, out;
};
#define BT_SWAPS_MAX 4

/* Who looks for it needs the first line of memory only. */
struct tblock {
    /* For the jump table and inline caches, with T0 = RIP and T2 = this; after bt_kill the dead stubs', or
     * the heir's. */
    const uint8_t *entry[2]; /* by enum bt_flags */
    struct block *b;
    uint64_t gpa;     /* the block's */
    uint8_t mode;     /* the block's, or BT_MODE_PAGES */
    bool live;
    bool careless;    /* the flags at the entry do not matter */
    uint8_t level;    /* vector level checked at entry (state.h), 0 = none */
    uint8_t likes;    /* the entry that leads straight in, enum bt_flags */
    uint16_t crossed; /* times that a group did not fit a page */
    uint32_t at[2];   /* code offsets of the ordinary entries */
    uint32_t vat[2];  /* the same behind the check of the vector level */
    uint32_t inner[2]; /* and with the swaps done */
    struct bt_swap swap[BT_SWAPS_MAX];
    uint8_t nswap;
    bool loops; /* it leads back to its own begin, and some lookups need not be repeated then (access.c) */
    bool round; /* and this is the version for all rounds but the first */
    uint32_t links_in; /* first link to it, 0 = none */
    struct tblock *versions;     /* for links that bring a recipe (bt_version) */
    const struct recipe *given;  /* this is one of those, for this recipe; only `inner` leads to it */
    uint32_t begin, end; /* its code */
    struct tblock *heir; /* of a dead one: the live translation of the same code, or NULL */
    struct tblock *heir_of, *heir_next; /* the dead ones that have it as heir */
    uint8_t code[]; /* the block's bytes as they were translated; versions have none of their own */
};
#define BT_MODE_PAGES 0xff /* it has a part in a second page: the first one's place does not tell that it is valid */
_Static_assert(sizeof(struct tblock) == 2 * BLOCK_ALIGN, "two lines");

static inline struct tblock *bt_site_of(const struct bt_site *s) { return s->apart ? s->single->t : s->t; }

/* Host instructions that may raise SIGFPE or SIGSEGV, sorted by place. */
struct bt_fault {
    uint32_t begin, end, cold;
};

struct bt_stubs {
    uint32_t enter; /* bt_enter_fn; flags are in both places then */
    /* By enum bt_flags. T1 = site or link; lookup also T0 = RIP. */
    uint32_t link[2], lookup[2], interp[2], event[2];
    uint32_t refill[2]; /* T0 = address */
    uint32_t vec[2];    /* T0 = host address to go on at */
    uint32_t help[2];   /* T0 = bt_helper; flags are in both places afterwards */
    uint32_t dead[2];   /* T0 = RIP: as lookup, for the block T2 that is no more */
    uint32_t miss[2];   /* T0 = RIP that is not in the inline cache T2 (BT_OFF_IC): by the jump table */
    uint32_t back;      /* the same behind a call, returned to; flags by cpu.bt.ret */
    uint32_t bottom;    /* returned to when nothing is left to return to */
};

/* Per VM. Everything changes under the code cache's lock, or with all vCPUs outside. */
struct bt {
    struct vm *vm;
    struct code_cache *cache;
    uint8_t *rw, *rx; /* the code area */
    struct emit e;
    uint32_t first;   /* code offset behind the stubs */
    uint32_t cold;    /* where the next cold paths go: from BT_AREA_COLD on */
    struct bt_stubs stub;
    struct tr *tr; /* where translations are made */
    struct bt_site *site;
    struct bt_link *link;
    struct bt_fault *fault;
    uint32_t nsite, nlink, nic;
    _Atomic uint32_t nfault; /* read by signal handlers */
    uint32_t threshold;
    uint64_t epoch;   /* another one when room has been made: links and dead translations of before mean nothing */
    /* statistics */
    uint64_t blocks, insns, bytes, nanoseconds, flushes, sweeps;
};

/* ---- code.c: the area, sites, links ---- */
int bt_code_new(struct bt **out, struct vm *vm, struct code_cache *cc, struct err *e);
void bt_code_free(struct bt *bt);
/* No room for another block: the cache must be emptied. Lock held. */
bool bt_code_full(const struct bt *bt);
/* Memory that translations take, in bytes. Lock held. */
size_t bt_code_bytes(const struct bt *bt);
/* Forgets all translations; every vCPU is outside. */
void bt_code_reset(struct bt *bt);
static inline const uint8_t *bt_host(const struct bt *bt, uint32_t off) { return bt->rx + off; }
uint32_t bt_site_add(struct bt *bt, const struct bt_site *s);
uint32_t bt_link_add(struct bt *bt, const struct bt_link *l);
/* Makes link n lead to t, or a version of it. Lock held; both live. */
void bt_link_make(struct bt *bt, uint32_t n, struct tblock *t);
/* Makes link n lead to its target by an inline cache, for a target that another page has a part of. Lock held. */
void bt_link_far(struct bt *bt, uint32_t n);
/* Does the link arrive in the state that t's `inner` expects, but for flags? */
bool bt_link_fits(const struct bt_link *l, const struct tblock *t);
/* The block was killed: nothing leads to its translation any more. Lock held. */
void bt_kill(struct bt *bt, struct tblock *t);
/* t is a new translation of what old was: caches that still lead to old go there. Lock held. */
void bt_inherit(struct bt *bt, struct tblock *old, struct tblock *t);
/* trap_find_fn (trap.h) for a struct bt. */
uintptr_t bt_fault_find(const void *arg, uintptr_t pc);

/* ---- stubs.c ---- */
void bt_stubs_make(struct bt *bt);
typedef uint64_t (*bt_enter_fn)(struct cpu *c, const uint8_t *code);

/* ---- branch.c ---- */
/* Emits a jump to T0, or a call, by inline cache ic; returns the offset of the rel32 to where it is not in there. T1
 * and T2 are used, and EFLAGS only if flags is BT_CC. */
uint32_t bt_emit_jump(struct emit *e, uint32_t ic, enum bt_flags flags, bool call);

/* ---- translate.c ---- */
/* The translation of b, made now; NULL if it cannot have one or there is no room. from: a block that leads to it by a
 * link, or NULL. Lock held. */
struct tblock *bt_translate(struct bt *bt, struct cpu *c, struct block *b, const struct tblock *from);
/* t, or what is better for link n: a version of t that begins with the link's recipe for flags, so that they need not be
 * made for t; in a loop one that begins with the lookups of the round before. Lock held; both live. */
struct tblock *bt_version(struct bt *bt, struct cpu *c, struct tblock *t, uint32_t n);

/* ---- helper.c ---- */
typedef const uint8_t *bt_helper(struct cpu *c, uint32_t site);
bt_helper bt_help_movs, bt_help_stos, bt_help_cli, bt_help_sti, bt_help_stac, bt_help_clac, bt_help_pushf, bt_help_popf,
    bt_help_swapgs, bt_help_cld, bt_help_rdtsc, bt_help_rdtscp, bt_help_bits, bt_help_read_sreg;

/* ---- refill.c: compiled without vector registers, for they are the guest's ---- */
/* A TLB miss at a site for the address la: the host address to go on at, or NULL when the
 * interpreter must do the instruction. */
const uint8_t *bt_refill(struct cpu *c, uint32_t site, uint64_t la);
/* Before translated code is entered: the stack page may be another, or gone. */
void bt_stack_check(struct cpu *c);
/* Brings the vector registers in; false if the level is not available now. */
bool bt_vec_enter(struct cpu *c, uint32_t site);
/* Gives them up before C code that may use vector registers. */
void bt_vec_leave(struct cpu *c);

#endif
