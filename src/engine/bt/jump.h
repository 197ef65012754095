/* The jump tables of a vCPU (state.h): which one is in force, what is in them. All on the vCPU's own
 * thread. */
#ifndef RING3_ENGINE_BT_JUMP_H
#define RING3_ENGINE_BT_JUMP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "engine/bt/state.h"

struct cpu;

int bt_jumps_init(struct cpu *c, struct err *e);
void bt_jumps_fini(struct cpu *c);
/* Mode, address space or TLB generations may have changed: puts the right table in force. */
void bt_jumps_select(struct cpu *c);
/* What the table in force has for rip, or NULL. */
struct tblock *bt_jumps_find(const struct cpu *c, uint64_t rip);
/* The code at c->s.rip is t's. crosses: it goes on in the next page; global: it lies in global pages. */
void bt_jumps_add(struct cpu *c, struct tblock *t, bool crosses, bool global);
/* Translations of the page at la are gone from TLB context ctx, and global ones from all. */
void bt_jumps_forget(struct bt_cpu *b, unsigned ctx, uint64_t la);
/* All code is gone, and with it what is on the return stack. */
void bt_jumps_clear(struct cpu *c);

#endif
