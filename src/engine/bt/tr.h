/* One translation being made. Private to the translator's own files. */
#ifndef RING3_ENGINE_BT_TR_H
#define RING3_ENGINE_BT_TR_H

#include "engine/bt/bt.h"
#include "engine/bt/recode.h"

/* Where the guest's status flags are, at a point of the translation. */
enum fl_place {
    FL_HOST,   /* in EFLAGS */
    FL_CC,     /* in cpu.cc */
    FL_RECIPE, /* nowhere, but recipe makes them again */
    FL_NONE    /* nowhere: nobody will look */
};

/* Accesses through one base register, or relative to RIP and in one page, that share an address translation. */
struct group {
    uint8_t base, index, scale; /* guest registers; index REG_NONE: none, as mostly; or base REG_RIP */
    bool write;         /* some member writes */
    bool made;          /* code for it has been emitted, or the round before has left it */
    bool keep;          /* it has a slot, or needs none */
    bool inside;        /* begins in the loop */
    bool round;         /* the slot is in bt.round[], not in bt.group[]: later rounds of the loop use it */
    int16_t slide;      /* then: what a round adds to the address */
    bool table;         /* or it has the host address of the base, or 0: members differ in their index */
    bool hosted;        /* and what is in the slot is added to the base register already, which does not change */
    uint8_t slot;
    uint16_t members, exits;
    int32_t min, end;   /* of the members' displacements, from the base's value at the first one; REG_RIP: the page,
                           from bt.vpage */
};
#define GROUP_NONE 0xff
#define GROUPS_MAX 64

/* One memory access of an instruction: explicit, or on the stack. */
struct use {
    bool used, read, write;
    uint8_t size;
    uint8_t group;      /* GROUP_NONE: by itself */
    int32_t disp;       /* with a group: from the base's value at its first member; relative to RIP: from bt.vpage,
                           if that can be told */
};

/* What the translator makes of an instruction. */
enum how {
    HOW_INTERP, /* leaves to the interpreter; the block ends */
    HOW_HELP,   /* done by a function that is called */
    HOW_COPY,   /* the instruction itself with its operands replaced */
    HOW_LEA,
    HOW_NOP,
    HOW_PUSH,
    HOW_POP,
    HOW_LEAVE,
    HOW_JCC,
    HOW_JMP,
    HOW_JMP_IND,
    HOW_CALL,
    HOW_CALL_IND,
    HOW_RET
};

struct step {
    struct insn i;
    uint16_t off;       /* in the page */
    uint32_t host;      /* code offset where its code begins */
    uint8_t how;        /* enum how */
    bt_helper *help;
    bool need;          /* the flags before it can be observed */
    bool need_after;
    bool fl_read;       /* reads status flags for certain */
    uint16_t fl_write;  /* those it writes for certain */
    bool fl_some;       /* may write some */
    struct use mem;  /* its explicit memory operand */
    struct use stack;
    uint16_t writes;    /* guest registers it changes */
};

/* Code off the straight path, written behind the block. */
struct cold {
    enum { COLD_ACCESS, COLD_ROUND, COLD_INTERP, COLD_EVENT, COLD_MISS, COLD_BACK, COLD_LINK, COLD_VEC } kind;
    uint32_t from;      /* rel32 to point here */
    uint32_t site;      /* or the link */
    enum fl_place fl;
    struct recipe recipe;
    uint32_t ic;        /* COLD_MISS, COLD_BACK */
    uint32_t pad;       /* COLD_MISS: of a call, where that comes back to, or 0 */
    bool swapped;
    bool address;       /* COLD_ACCESS and _ROUND: T0 must be made, base + disp */
    uint8_t base;
    int32_t disp;
    uint8_t group;      /* COLD_ROUND: the one to look up, for which step, and where to go on then */
    struct step *step;
    uint32_t back;
};
#define COLD_MAX (8 * BLOCK_MAX_INSNS)

struct tr {
    struct bt *bt;
    struct cpu *c;
    struct block *b;
    struct tblock *t;
    struct emit *e;
    unsigned n;
    struct step step[BLOCK_MAX_INSNS];
    struct step *s;     /* the one being translated */
    enum fl_place fl;
    struct recipe recipe;
    struct group group[GROUPS_MAX];
    unsigned ngroup;
    unsigned back;      /* the step that leads back to the begin, or n */
    uint8_t in_t2;      /* group whose addend T2 holds, or GROUP_NONE */
    struct cold cold[COLD_MAX];
    unsigned ncold;
    int32_t rsp_due;    /* guest RSP is so much above its home */
    uint32_t body;      /* code offset behind the entry for flags in EFLAGS */
    uint8_t level;      /* the vector registers are live at this level here */
    uint8_t home[16];   /* bt_home[] with the block's swaps */
    bool swapped;       /* they are done here */
};

/* ---- homes.c ---- */
/* Decides which registers change places, and fills in the homes. from: as for bt_translate. */
void homes_choose(struct tr *t, const struct tblock *from);
/* The same swaps as another translation of the same block. */
void homes_like(struct tr *t, const struct tblock *other);
/* Emits the swaps and what takes them back; EFLAGS stay. No-ops if that is so already. */
void homes_enter(struct tr *t);
void homes_leave(struct tr *t);
bool homes_same(const struct tblock *a, const struct tblock *b);

/* ---- flags.c ---- */
/* Which flags before each step somebody may see; fills need. */
void fl_analyse(struct tr *t);
/* Before host code that destroys EFLAGS, T1 free. */
void fl_release(struct tr *t);
/* The flags must be in EFLAGS now. T1 is used. */
void fl_to_host(struct tr *t);
/* They must be in EFLAGS or in cpu.cc, whichever is cheaper; says which. T1 is used. */
enum bt_flags fl_settle(struct tr *t);
/* Those that condition cc reads must be in EFLAGS now; the rest may be elsewhere. T1 is used. */
void fl_for_cond(struct tr *t, unsigned cc);
/* INC or DEC of a register, with a recipe for what they keep of the flags; without computing theirs, if that is not
 * needed at once. True if it has been done so. */
bool fl_step(struct tr *t);
/* Will the flags of this step, which has a memory operand, be wanted again although a later access destroys
 * EFLAGS? Then the operand is worth keeping: fl_operand does the step, with its operand at m. */
bool fl_keeps(const struct tr *t);
void fl_operand(struct tr *t, const struct recode_mem *m);
/* The step changes these registers: what needs their old values is done now. T1 is used. */
void fl_regs_change(struct tr *t, uint16_t regs);
/* The same, if all that it does to it is to add a constant. */
void fl_reg_adds(struct tr *t, unsigned reg, unsigned size, int by);
/* The step has been emitted: where its flags are, and how to get them back. */
void fl_written(struct tr *t);

/* ---- recipe.c ---- */
/* Emits a recipe: EFLAGS from values, by the block's homes. T1 is used. */
void recipe_cook(struct emit *e, const uint8_t home[16], const struct recipe *r);
/* The same without CF, for one that ends with INC or DEC. */
void recipe_cook_last(struct emit *e, const uint8_t home[16], const struct recipe *r);
/* Is it one instruction? */
bool recipe_cheap(const struct recipe *r);
/* Guest registers that must not change, as a set. */
uint16_t recipe_regs(const struct recipe *r);
bool recipe_same(const struct recipe *a, const struct recipe *b);
/* Guest register reg, or size bytes of it and the rest becomes zero, gets `by` more. False: the recipe is lost, and
 * has not been changed. */
bool recipe_add(struct recipe *r, unsigned reg, unsigned size, int by);
/* Register reg will change: puts its value into bt.operand if that is free. T1 is used. */
bool recipe_keep(struct emit *e, const uint8_t home[16], struct recipe *r, unsigned reg);
/* op, enum emit_alu or RECIPE_TEST, on so many bytes of host registers or an immediate. */
#define RECIPE_TEST 8
void recipe_op_rr(struct emit *e, unsigned op, unsigned size, unsigned dst, unsigned src);
void recipe_op_ri(struct emit *e, unsigned op, unsigned size, unsigned dst, int32_t imm);
/* Flags from and to cpu.cc. T1 is used. */
void recipe_park(struct emit *e);
void recipe_unpark(struct emit *e);

/* ---- access.c ---- */
/* Finds accesses that can share a translation. */
void access_analyse(struct tr *t);
/* Emits the translation for an access of the current step. What stands for the address is filled
 * in: T0 and T2, as far as they are part of it, must be left alone until the access is done. T1 is
 * free afterwards. EFLAGS are destroyed (fl_release). */
void access_translate(struct tr *t, const struct use *a, bool stack, struct recode_mem *m);
/* In a COLD_ROUND: the lookup itself. Returns the rel32 of the branch taken when the TLB does not have it. */
uint32_t access_again(struct tr *t, const struct cold *c);
/* The linear address of the step's memory operand into T0 (T1 is used). */
void access_address(struct tr *t, unsigned dst);

/* ---- classify.c ---- */
/* Decides how the step's instruction is translated and notes what it touches. */
void tr_classify(struct tr *t, struct step *s);
/* The vector registers it needs. */
enum bt_level tr_level_of(const struct insn *i);
const struct opnd *tr_mem_operand(const struct insn *i); /* NULL: none */

/* ---- copy.c ---- */
/* Guest registers that an instruction writes without naming them. */
uint16_t copy_writes(const struct insn *i);
/* Can it be re-encoded whatever form its address takes? */
bool copy_can(const struct tr *t, const struct insn *i);
/* May the host raise a fault in this instruction, its operands being accessible? */
bool copy_faults(const struct insn *i);
void copy_translate(struct tr *t);

/* ---- branch.c ---- */
void branch_translate(struct tr *t);
/* The block ends without a branch: goes on behind its last instruction. */
void branch_fall(struct tr *t, unsigned off);

/* ---- translate.c ---- */
struct cold *tr_cold(struct tr *t, int kind, uint32_t from, uint32_t site);
uint32_t tr_site(struct tr *t, enum bt_site_kind kind, unsigned span);
/* The host register that holds guest register r, loaded into tmp if it has none. */
unsigned tr_reg(struct tr *t, unsigned r, unsigned tmp);

#endif
