/* What tests and measurements may ask of the translator beyond engine_ops. */
#ifndef RING3_ENGINE_BT_HOOKS_H
#define RING3_ENGINE_BT_HOOKS_H

#include <stdint.h>

struct vm;

/* Blocks are translated when they have been entered this often; 1: at once; UINT32_MAX: never. Before
 * any vCPU runs. */
void bt_set_threshold(struct vm *vm, uint32_t entries);

struct bt_stats {
    uint64_t blocks, insns; /* translated so far */
    uint64_t bytes;         /* of host code */
    uint64_t nanoseconds;   /* spent translating */
    uint64_t flushes;       /* times that the code area was emptied */
    uint64_t sweeps;        /* times that room was made without that */
    uint64_t area;          /* bytes of it in use now */
};
void bt_get_stats(struct vm *vm, struct bt_stats *s);

#endif
