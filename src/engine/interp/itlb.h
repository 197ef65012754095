/*
 * Where pages of code are, for whoever looks a block up, and whether global ones have moved. Part of the soft TLB, and
 * like it one vCPU's.
 *
 * Entries are valid for one key (interp.h: mode and TLB generation), as the jump cache's are. Every page that an entry
 * in force under the generation of global code has come from is noted, by the size of its mapping. So when everything
 * is flushed one can see whether global code still is where it was, and what is known of it may stay: as if the
 * processor had fetched from all of it at once.
 */
#ifndef RING3_ENGINE_INTERP_ITLB_H
#define RING3_ENGINE_INTERP_ITLB_H

#include <stdbool.h>
#include <stdint.h>

#include "base/util.h"
#include "cpu/paging.h"

#define ITLB_BITS 8
#define ITLB_NOTES_BITS 9
#define ITLB_NOTES_MAX (3u << (ITLB_NOTES_BITS - 2)) /* of them used at most */

struct itlb_entry {
    uint64_t page, key; /* key: 0 when it holds nothing */
    uint64_t gpa;       /* of the page, which is memory */
    uint8_t *host;
};

struct itlb_note {
    uint64_t page; /* linear address of the mapping | its page_shift; 0: none */
    uint64_t gpa;
};

struct itlb {
    struct itlb_entry e[1u << ITLB_BITS];
    struct itlb_note note[1u << ITLB_NOTES_BITS];
    unsigned nnotes;
    bool partial; /* not all pages are noted: only a new generation helps */
};

static inline struct itlb_entry *itlb_slot(struct itlb *t, uint64_t la)
{
    return &t->e[(la >> PAGE_SHIFT ^ la >> (PAGE_SHIFT + ITLB_BITS)) & ((1u << ITLB_BITS) - 1)];
}

/* INVLPG. */
void itlb_forget_page(struct itlb *t, uint64_t la);
/* Is there a note of a large mapping around la? */
bool itlb_noted_large(const struct itlb *t, uint64_t la);
/* Notes that global code was found at la by w. False: it had been elsewhere, and a new generation is due. */
bool itlb_note(struct itlb *t, uint64_t la, const struct walk *w);
/* With a new generation. */
void itlb_forget_notes(struct itlb *t);

struct cpu;
/* Is all global code still where it was, by the page tables of now? Marks them accessed. */
bool itlb_unmoved(struct cpu *c);

#endif
