/*
 * Numbers for objects that a hostile guest refers to: a slot's index and a generation, so that a
 * number is not given out again for as long as 2^32 others in its slot. Numbers are never 0 and
 * begin with 1. No locking.
 */
#ifndef RING3_BACK_SHARE_SLOTS_H
#define RING3_BACK_SHARE_SLOTS_H

#include <stdint.h>

struct slot {
    void *p;       /* NULL: free */
    uint32_t gen;  /* of the number in use, or of the next one */
    uint32_t next; /* free: the next free slot's index + 1 */
};

struct slots {
    struct slot *v;
    uint32_t n, cap;     /* slots ever used; room */
    uint32_t free_first; /* index + 1 */
    uint32_t used;
    uint32_t floor; /* generation of slots that have not been used yet */
};

/* Stores p (not NULL); its number, or 0 without memory. */
uint64_t slots_add(struct slots *s, void *p);
/* A generation that no number has had. */
uint32_t slots_fresh(const struct slots *s);
/* For loading: stores p under a given number, which must be free and its index below limit. 0,
 * -EINVAL, -ENOMEM. When all are in, slots_relink; new numbers then have generations from floor on,
 * the saved slots_fresh, so that they are none that only the guest still remembers. */
int slots_add_at(struct slots *s, uint64_t id, uint32_t limit, void *p);
void slots_relink(struct slots *s, uint32_t floor);
void *slots_get(const struct slots *s, uint64_t id); /* NULL: no such number */
void slots_del(struct slots *s, uint64_t id);        /* the number must be in use */
/* Only the first `keep` slots may be in use: the others begin anew, with the numbers they had. */
void slots_trim(struct slots *s, uint32_t keep);
void slots_free(struct slots *s); /* not what the slots point to */

#endif
