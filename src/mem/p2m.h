/*
 * The p2m: one 64-bit entry per guest frame that says which host page stands behind it and how it
 * may be used. Software engines consult it when they fill their TLBs, so sharing, ballooning, ROM,
 * dirty logging and code tracking are flag changes plus a TLB flush, never a host mapping per page.
 *
 * Entries are read and changed atomically. The rule that makes flags reliable: whoever sets a flag
 * that forbids something (CODE, COW, clears DIRTY) must afterwards make every vCPU drop its cached
 * translations of that frame before relying on it; engines must publish a translation to their TLB
 * first and re-check the entry after (or fill under the p2m lock) so that no stale one survives.
 */
#ifndef RING3_MEM_P2M_H
#define RING3_MEM_P2M_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/util.h"

/* Entry: bits 63..12 host address of the page, low bits flags. 0 = not memory (I/O or nothing). */
#define P2M_PRESENT BIT(0)   /* host address valid */
#define P2M_READONLY BIT(1)  /* ROM: guest stores are dropped */
#define P2M_COW BIT(2)       /* shared; must be copied before a store */
#define P2M_CODE BIT(3)      /* some engine holds decoded or translated code from this frame */
#define P2M_DIRTY BIT(4)     /* written since the dirty log was last fetched */
#define P2M_BALLOONED BIT(5) /* given back to the host; reads as zero, a store repopulates */
#define P2M_STORES BIT(6)    /* some engine's TLB may let stores to it through without looking here */
#define P2M_FLAGS 0xfffull

struct p2m {
    _Atomic uint64_t *e; /* index by gfn, NULL-free up to limit; reserved lazily by the host */
    uint64_t limit;      /* frames; gfn >= limit is not memory */
};

static inline uint64_t p2m_get(const struct p2m *p, uint64_t gfn)
{
    return gfn < p->limit ? atomic_load_explicit(&p->e[gfn], memory_order_acquire) : 0;
}

static inline uint8_t *p2m_host(uint64_t entry)
{
    return (uint8_t *)(uintptr_t)(entry & ~P2M_FLAGS);
}

/* Set or clear flags of a present entry; return the old entry (0 if not present). Any thread. */
uint64_t p2m_set_flags(struct p2m *p, uint64_t gfn, uint64_t flags);
uint64_t p2m_clear_flags(struct p2m *p, uint64_t gfn, uint64_t flags);

int p2m_init(struct p2m *p, unsigned maxphys, struct err *e);
void p2m_fini(struct p2m *p);
void p2m_map(struct p2m *p, uint64_t gfn, uint64_t n, uint8_t *host, uint64_t flags);
void p2m_unmap(struct p2m *p, uint64_t gfn, uint64_t n);

/* Copies the DIRTY bits of frames [gfn, gfn+n) into bits (bit i = gfn+i; the caller provides
 * (n+63)/64 words) and clears them in the p2m. The caller flushes write translations afterwards,
 * before it reads the pages' contents. Returns how many were dirty. */
uint64_t p2m_dirty_fetch(struct p2m *p, uint64_t gfn, uint64_t n, uint64_t *bits);

#endif
