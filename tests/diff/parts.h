/* What the generators of cases share. Private to the generators. */
#ifndef RING3_TESTS_DIFF_PARTS_H
#define RING3_TESTS_DIFF_PARTS_H

#include "gen.h"

bool gen_has_mem(const struct insn *i);
/* A memory operand in ModRM, as opposed to one in fixed registers or moffs. */
bool gen_modrm_mem(const struct insn *i);
/* Locked accesses across cache lines are trapped and delayed by the host's kernel. */
bool gen_is_locked(const struct insn *i);
/* A random allowed instruction for this code size. */
void gen_pick_insn(struct rng *r, const struct gen_cfg *cfg, enum cpu_bits bits, uint8_t b[16],
                   struct insn *i);

void gen_set_gpr(struct test_case *t, unsigned reg, uint64_t v);
void gen_add_item(struct test_case *t, const uint8_t *b, unsigned len);
/* An item with a field that leads to item target. */
void gen_add_branch(struct test_case *t, const uint8_t *b, unsigned len, enum item_fix fix,
                    unsigned target);

/* seq.c: at most cfg->block instructions that do not count those of branches around them. */
void gen_sequence(struct rng *r, const struct gen_cfg *cfg, struct test_case *t);

#endif
