/*
 * The soft TLB of the software engines: direct-mapped, one set of entries per kind of access right,
 * and one context of such sets per recently used PCID, so that MOV CR3 without flush is a
 * pointer change. An entry answers an access of n bytes at la when
 * ((la + n - 1) & ~PAGE_MASK) == tag and both ends index the same slot: page-crossing accesses miss.
 * Owned by one vCPU's thread; other threads ask for flushes by events.
 */
#ifndef RING3_ENGINE_INTERP_TLB_H
#define RING3_ENGINE_INTERP_TLB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/util.h"
#include "engine/interp/itlb.h"

#define TLB_BITS 9
#define TLB_ENTRIES (1u << TLB_BITS)
#define TLB_CONTEXTS 8

/* The tag of slot i when it holds nothing: equals no page, and no address whose page has this slot comes
 * within a page of it. */
static inline uint64_t tlb_empty(unsigned i)
{
    return BIT(63) | (uint64_t)(i ^ TLB_ENTRIES / 2) << PAGE_SHIFT | 1;
}

/* The bit that stands for the 1 GiB around la: any large mapping lies in one. */
static inline uint64_t tlb_gib(uint64_t la)
{
    return BIT((la >> 30) * 0x9e3779b97f4a7c15ull >> 58);
}

struct bt_cpu;

struct tlb_entry {
    uint64_t rtag, wtag;  /* page of la, or tlb_empty() */
    uint64_t addend;      /* host address - la */
    uint64_t info;        /* gpa of the page | TLB_INFO_* */
};
#define TLB_INFO_GLOBAL BIT(0)
#define TLB_INFO_LARGE BIT(1) /* from a 2 MiB, 4 MiB or 1 GiB mapping */

enum tlb_kind { TLB_SUPER, TLB_USER, TLB_SUPER_AC, TLB_KINDS };

struct tlb_set {
    struct tlb_entry e[TLB_ENTRIES];
};

struct tlb_context {
    struct tlb_set set[TLB_KINDS];
    uint64_t cr3;    /* page-table root it was filled from */
    uint16_t pcid;
    bool valid;
    /* Where entries came from large mappings, by tlb_gib(), and where from global ones. */
    uint64_t large, large_global;
    uint64_t gen;    /* unique per content; jump caches compare it */
    uint64_t used;   /* for replacement */
};

struct tlbs {
    struct itlb code;
    struct tlb_context *ctx; /* TLB_CONTEXTS of them */
    unsigned cur;
    uint64_t next_gen, clock;
    uint64_t global_gen;    /* as tlb_context.gen, of the global entries */
    uint64_t large_code;    /* where large mappings held code that jump caches may know, by tlb_gib(), if not noted */
    struct jump_cache *jc;   /* follows the page flushes; not owned */
    struct bt_cpu *bt;       /* its jump tables too; NULL without a translator */
};

struct jump_cache;
int tlbs_init(struct tlbs *t, struct jump_cache *jc);
void tlbs_fini(struct tlbs *t);
/* Switches to the context of (cr3, pcid), dropping its old content if flush is set or it had none. */
void tlbs_switch(struct tlbs *t, uint64_t cr3, uint16_t pcid, bool flush);
void tlbs_flush(struct tlbs *t);                        /* everything everywhere */
void tlbs_flush_data(struct tlbs *t);                   /* the same, but global code is where it was (itlb.h) */
void tlbs_new_global(struct tlbs *t);                   /* jump caches forget global code */
void tlbs_flush_nonglobal(struct tlbs *t);              /* current context, keep globals */
void tlbs_flush_pcid(struct tlbs *t, uint16_t pcid);    /* INVPCID type 1: keep globals */
void tlbs_flush_page(struct tlbs *t, uint64_t la);      /* INVLPG: current PCID and globals of all */
void tlbs_flush_page_pcid(struct tlbs *t, uint64_t la, uint16_t pcid);
void tlbs_new_gens(struct tlbs *t);                     /* jump caches start afresh, entries stay */
void tlbs_flush_writes(struct tlbs *t);                 /* all write tags (dirty log, code tracking) */
void tlbs_flush_write_gpa(struct tlbs *t, uint64_t gpa); /* write tags of one frame */

static inline unsigned tlb_index(uint64_t la) { return la >> PAGE_SHIFT & (TLB_ENTRIES - 1); }
static inline struct tlb_entry *tlb_slot(struct tlb_set *s, uint64_t la)
{
    return &s->e[tlb_index(la)];
}

#endif
