/*
 * A token bucket: tokens flow in at a rate, the bucket holds a second's worth and starts full, and
 * a burst on top is there once. Whoever wants more than a second's worth at once waits for a full
 * bucket and leaves a debt, so that the rate holds in the long run. Pure: time is an argument (ns,
 * never going back).
 */
#ifndef RING3_BACK_BLOCK_BLOCK_LIMIT_H
#define RING3_BACK_BLOCK_BLOCK_LIMIT_H

#include "back/block/block.h"

/* Rates and bursts above are cut to it. */
#define BLOCK_LIMIT_MAX (1ull << 60)

struct block_limit {
    uint64_t rate; /* 0: no limit */
    uint64_t burst;
    int64_t tokens; /* below zero: a debt */
    uint64_t last;  /* up to when tokens have been credited, ns */
};

void block_limit_init(struct block_limit *l, const struct block_limit_cfg *cfg, uint64_t now);
/* When n tokens can be taken: a time <= now if they can at once. */
uint64_t block_limit_when(struct block_limit *l, uint64_t n, uint64_t now);
/* Takes n tokens: after block_limit_when said that it may, or as a debt. */
void block_limit_take(struct block_limit *l, uint64_t n);

#endif
