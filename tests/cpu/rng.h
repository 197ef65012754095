/* A small generator for tests (splitmix64): the same seed gives the same run everywhere. */
#ifndef RING3_TESTS_CPU_RNG_H
#define RING3_TESTS_CPU_RNG_H

#include <stdbool.h>
#include <stdint.h>

struct rng {
    uint64_t x;
};

static inline uint64_t rng_next(struct rng *r)
{
    uint64_t z = r->x += 0x9e3779b97f4a7c15ull;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

static inline uint64_t rng_below(struct rng *r, uint64_t n) { return rng_next(r) % n; }

/* True in n of 100 cases. */
static inline bool rng_chance(struct rng *r, unsigned n) { return rng_below(r, 100) < n; }

#endif
