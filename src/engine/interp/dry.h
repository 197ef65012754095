/*
 * Dry runs: the interpreter's plain functions execute the instructions of a block and leave no trace.
 * Stores go to a table of words that later loads of the same run see; page tables are walked without
 * setting accessed or dirty bits, TLBs are not filled, and registers are put back. What is kept is the
 * state after every instruction, so that another engine that has really run the same code can be
 * compared with it wherever it stopped.
 *
 * Guest memory is never changed, not even for a moment: device threads may be looking.
 * Everything runs on the vCPU's own thread, inside run(). Private to src/engine.
 */
#ifndef RING3_ENGINE_INTERP_DRY_H
#define RING3_ENGINE_INTERP_DRY_H

#include "engine/interp/op.h"

#define DRY_WORDS 4096u        /* different aligned 8-byte words that a run may store to */
#define DRY_WRITES 16384u      /* parts of words it may store */
#define DRY_ELEMENTS 65536u    /* elements of repeated string instructions it may do */
#define DRY_INSNS_CACHED 4096u /* decoded instructions kept from run to run */

/* Why a run ended where it did. */
enum dry_stop {
    DRY_RUNNING,
    DRY_DONE,    /* after the block's last instruction, or a branch that was taken */
    DRY_REFUSED, /* before one that faults, reaches I/O or changes the system */
    DRY_UNSURE   /* before one whose result cannot be foretold (time, random numbers), or that is too long */
};

/* Vector and x87 state: this part of struct cpu_state. */
#define DRY_VEC_FROM offsetof(struct cpu_state, x87)
#define DRY_VEC_BYTES (offsetof(struct cpu_state, sti_shadow) - DRY_VEC_FROM)

/* The state between two instructions. */
struct dry_point {
    uint64_t rip, rflags, gpr[16], gs_base, kernel_gs_base;
    uint32_t writes; /* how many parts of words were stored until here */
    uint16_t vec;    /* vector state: as at the start if 0, else dry.vec[vec - 1] */
    uint16_t len;    /* of the instruction that ran from here; 0 if none did */
    uint16_t undef;  /* status flags that may be anything here */
    uint8_t sti_shadow;
    bool tainted;    /* some instruction before took such a flag for its operand */
    bool repeats;    /* it is a string instruction with a REP prefix */
    uint8_t bytes[INSN_MAX_LEN];
    const struct insn_row *row;
};

struct dry_word {
    uint64_t *at;  /* in guest memory */
    uint64_t gpa;  /* where the guest has it */
    uint64_t before;
    uint64_t now;
    uint16_t slot; /* where dry.slot names it */
    uint8_t mask;  /* bytes that were stored to */
};

struct dry_write {
    uint64_t val;
    uint16_t word;
    uint8_t mask;
};

struct dry_insn {
    const uint8_t *host; /* NULL: unused */
    uint8_t mode;
    bool vector;
    struct plain plain;
};

struct dry {
    /* The result: point[0] is where it began, point[n] where it ended. */
    enum dry_stop stop;
    uint8_t vector; /* of the fault it was refused for, or DRY_NO_FAULT */
    unsigned n;
    /* The instruction that faults stores first (a call to no canonical address): point[n + 1] is point[n]
     * with its stores. */
    bool stored;
    struct dry_point point[BLOCK_MAX_INSNS + 2];
    uint8_t (*vec)[DRY_VEC_BYTES]; /* nvec of them are filled */
    unsigned nvec;
    struct cpu_state start; /* with rflags complete */
    struct cpu_state end;   /* of a step: the same after it */
    struct insn stepped;    /* of a step: its instruction, if point[0].row is not NULL */

    /* Stores. */
    unsigned nwords, nwrites;
    struct dry_word word[DRY_WORDS];
    struct dry_write write[DRY_WRITES];
    uint16_t slot[2 * DRY_WORDS]; /* hash of addresses: index in word + 1 */

    /* The run under way. */
    const struct block *block;
    unsigned from;     /* where in it the run began, bytes */
    unsigned off;      /* of the next instruction */
    unsigned elements; /* of string instructions so far */
    bool vec_used;     /* an instruction that may change vector state was begun */
    const struct dry_point *until; /* end in the middle of a string instruction, when RCX is as here */
    struct op op;      /* stands for the op that runs */
    jmp_buf *out;      /* where the run goes when it ends before the current instruction */
    struct dry_insn insn[DRY_INSNS_CACHED];
};
#define DRY_NO_FAULT 0xff

/* NULL without memory. */
struct dry *dry_new(void);
void dry_free(struct dry *d);

/* Runs the code of b from its byte `from` on, where c->s.rip is, until it ends (enum dry_stop); the result
 * is in d. c is as before afterwards, but that the host's x87 unit holds no guest state. The host's
 * vector registers must hold none before (!c->vec_live). */
void dry_run(struct dry *d, struct cpu *c, const struct block *b, unsigned from);
/* Once more from the state and from what was in the words then stored to at the last dry_run, whatever
 * c and memory have become since; what was only read is read as it is now. If until is not NULL and a
 * repeated string instruction at until->rip leaves until->gpr[RCX] to do, that is the end. */
void dry_again(struct dry *d, struct cpu *c, const struct dry_point *until);

/* Gives s to c, a vCPU that exists for dry steps alone: its TLBs stay empty. s comes from another engine and needs no check. */
void dry_set_state(struct cpu *c, const struct cpu_state *s);
/* Runs one instruction of any kind from the state in c, or if event is not NULL delivers that. If the instruction faults, the
 * fault is delivered. DRY_DONE: d->end is the state after it, point[1] has what was stored, d->vector is the last fault that was
 * delivered, if any; a repeated string instruction has done one element. DRY_REFUSED: it reaches I/O, or what c->vm->env refuses by
 * dry_refuse(). DRY_UNSURE: a triple fault. c is in the state after it. */
void dry_step(struct dry *d, struct cpu *c, const struct event *event);
/* The same once more from the same state, as dry_again. */
void dry_step_again(struct dry *d, struct cpu *c, const struct event *event);
/* The host's address of the code at c's RIP, in RAM, or NULL. */
uint8_t *dry_code(struct cpu *c);

/* The state in c in the form of a point, to be compared with others, but without its vector part. */
void dry_take(struct dry_point *p, const struct cpu *c);
/* The DRY_VEC_BYTES of vector state at a point of the run. */
static inline const void *dry_vec(const struct dry *d, const struct dry_point *p)
{
    return p->vec ? d->vec[p->vec - 1] : (const uint8_t *)&d->start + DRY_VEC_FROM;
}
/* Calls fn for each word that was stored to in the run: what it was before, what it should be at point k,
 * and which of its bytes count. Stops when fn returns false, and returns that. */
typedef bool (*dry_word_fn)(void *arg, const struct dry_word *w, uint64_t expected);
bool dry_words(const struct dry *d, unsigned k, dry_word_fn fn, void *arg);
/* The bits of a word that mask's bytes hold. */
uint64_t dry_bits(uint8_t mask);

/* Forgets the words of the last run. */
void dry_forget(struct dry *d);

/* ---- for mem.c and callbacks of c->vm->env, while c->dry is set ---- */
/* n bytes of guest memory as the run sees them. */
void dry_load(const struct dry *d, void *out, const uint8_t *host, unsigned n);
/* Ends the run before the current instruction if there is no more room. */
void dry_store(struct cpu *c, uint64_t gpa, uint8_t *host, const void *in, unsigned n);
/* The current instruction reaches I/O: ends the run before it. */
_Noreturn void dry_refuse(struct cpu *c);

#endif
