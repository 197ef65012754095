/* The table of guest frames. Untouched parts of it cost nothing: the host populates it lazily. */
#include "mem/p2m.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#define CHANGEABLE (P2M_FLAGS & ~P2M_PRESENT)

int p2m_init(struct p2m *p, unsigned maxphys, struct err *e)
{
    void *table;

    assert(maxphys >= 36 && maxphys <= 52);
    p->limit = BIT(maxphys - PAGE_SHIFT);
    table = mmap(NULL, p->limit * sizeof(*p->e), PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (table == MAP_FAILED)
        return err_sys(e, "no address space for the frame table of %u-bit addresses (%llu MiB)",
                       maxphys, (unsigned long long)(p->limit * sizeof(*p->e) / MIB));
    p->e = table;
    return 0;
}

void p2m_fini(struct p2m *p)
{
    munmap((void *)p->e, p->limit * sizeof(*p->e));
    p->e = NULL;
    p->limit = 0;
}

/* Clears and sets flags of a present entry. Always a locked operation, even if nothing changes:
 * writers of guest memory rely on it as the barrier between their store and their look at CODE. */
static uint64_t change(struct p2m *p, uint64_t gfn, uint64_t clear, uint64_t set)
{
    uint64_t old;

    assert(!((clear | set) & ~CHANGEABLE));
    if (gfn >= p->limit)
        return 0;
    old = atomic_load_explicit(&p->e[gfn], memory_order_relaxed);
    do {
        if (!(old & P2M_PRESENT))
            return 0;
    } while (!atomic_compare_exchange_weak_explicit(&p->e[gfn], &old, (old & ~clear) | set,
                                                    memory_order_seq_cst, memory_order_relaxed));
    return old;
}

uint64_t p2m_set_flags(struct p2m *p, uint64_t gfn, uint64_t flags)
{
    return change(p, gfn, 0, flags);
}

uint64_t p2m_clear_flags(struct p2m *p, uint64_t gfn, uint64_t flags)
{
    return change(p, gfn, flags, 0);
}

void p2m_map(struct p2m *p, uint64_t gfn, uint64_t n, uint8_t *host, uint64_t flags)
{
    uint64_t entry = (uint64_t)(uintptr_t)host | flags | P2M_PRESENT;

    assert(gfn <= p->limit && n <= p->limit - gfn);
    assert(!((uintptr_t)host & PAGE_MASK) && !(flags & ~P2M_FLAGS));
    for (uint64_t i = 0; i < n; i++, entry += PAGE_SIZE)
        atomic_store_explicit(&p->e[gfn + i], entry, memory_order_release);
}

void p2m_unmap(struct p2m *p, uint64_t gfn, uint64_t n)
{
    assert(gfn <= p->limit && n <= p->limit - gfn);
    for (uint64_t i = 0; i < n; i++)
        atomic_store_explicit(&p->e[gfn + i], 0, memory_order_release);
}

uint64_t p2m_dirty_fetch(struct p2m *p, uint64_t gfn, uint64_t n, uint64_t *bits)
{
    uint64_t count = 0;

    memset(bits, 0, (n + 63) / 64 * sizeof(*bits));
    for (uint64_t i = 0; i < n && gfn + i < p->limit; i++) {
        if (!(p2m_get(p, gfn + i) & P2M_DIRTY))
            continue;
        if (p2m_clear_flags(p, gfn + i, P2M_DIRTY) & P2M_DIRTY) {
            bits[i / 64] |= BIT(i % 64);
            count++;
        }
    }
    return count;
}
