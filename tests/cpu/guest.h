/* A few frames of guest memory behind a p2m, for paging tests. */
#ifndef RING3_TESTS_CPU_GUEST_H
#define RING3_TESTS_CPU_GUEST_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "mem/p2m.h"

#define GUEST_FRAMES 48u
#define GUEST_MAXPHYS 40u

struct guest {
    struct p2m p2m;
    uint8_t *mem; /* frame n at mem + n * 4096 */
};

static inline void guest_init(struct guest *g)
{
    struct err e;

    if (p2m_init(&g->p2m, GUEST_MAXPHYS, &e))
        abort();
    g->mem = aligned_alloc(PAGE_SIZE, GUEST_FRAMES * PAGE_SIZE);
    memset(g->mem, 0, GUEST_FRAMES * PAGE_SIZE);
    p2m_map(&g->p2m, 0, GUEST_FRAMES, g->mem, 0);
}

static inline void guest_fini(struct guest *g)
{
    p2m_fini(&g->p2m);
    free(g->mem);
}

static inline void guest_set64(struct guest *g, uint64_t gpa, uint64_t v)
{
    memcpy(g->mem + gpa, &v, 8);
}

static inline uint64_t guest_get64(const struct guest *g, uint64_t gpa)
{
    uint64_t v;

    memcpy(&v, g->mem + gpa, 8);
    return v;
}

static inline void guest_set32(struct guest *g, uint64_t gpa, uint32_t v)
{
    memcpy(g->mem + gpa, &v, 4);
}

static inline uint32_t guest_get32(const struct guest *g, uint64_t gpa)
{
    uint32_t v;

    memcpy(&v, g->mem + gpa, 4);
    return v;
}

#endif
