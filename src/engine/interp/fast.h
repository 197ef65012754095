/* What the fast handlers' files share. */
#ifndef RING3_ENGINE_INTERP_FAST_H
#define RING3_ENGINE_INTERP_FAST_H

#include "engine/interp/alu.h"
#include "engine/interp/integer.h"
#include "engine/interp/op.h"

#define HANDLER(name) static const struct op *name(struct cpu *c, const struct op *o)

/* Operand forms: destination then source; M memory, R register, I immediate. */
enum fast_form { FORM_RR, FORM_RI, FORM_RM, FORM_MR, FORM_MI, FORMS };
int fast_form(const struct insn *i); /* of the first two operands, -1 if none of these */
/* A register as a handler names it: index into g, or byte offset for 8-bit ones. */
uint8_t fast_reg(const struct opnd *o);
/* Fills o's registers, immediate and address for the form; false if the address is too rare. */
bool fast_operands(struct op *o, const struct insn *i, int form);

/* Register writes by width: 32-bit ones zero-extend. */
#define W8(c, r, v) (R8(c, r) = (uint8_t)(v))
#define W16(c, r, v) (R16(c, r) = (uint16_t)(v))
#define W32(c, r, v) ((c)->g[r] = (uint32_t)(v))
#define W64(c, r, v) ((c)->g[r] = (v))

/* A branch that was not linked, or whose target went away, or with an event waiting. */
const struct op *take_slow(struct cpu *c, const struct op *o);

/* Takes the direct branch o. */
static inline const struct op *take(struct cpu *c, const struct op *o)
{
    const struct block *b = __atomic_load_n(&o->link, __ATOMIC_ACQUIRE);

    c->ninsn += o->cnt;
    if (likely(__atomic_load_n(&b->live, __ATOMIC_RELAXED) && !atomic_load_explicit(c->events, memory_order_relaxed))) {
        c->g[G_RIP] += (uint64_t)(int64_t)o->disp;
        GO(b->op);
    }
    GO(take_slow(c, o));
}

#endif
