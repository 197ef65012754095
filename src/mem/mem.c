/*
 * Access to guest memory by devices, boot code and the debugger. gpa and len come from the guest.
 *
 * Stores come first and marks after: a dirty log fetched in between reports the page once too often
 * or next time, never not at all; and an engine that decodes in between has set CODE before it
 * read the bytes, so the look at the flags behind the store's barrier sees it.
 */
#include "mem/physmap.h"

#include <errno.h>
#include <string.h>

#include "base/util.h"

/* Flags that forbid a store by a device. */
#define NO_STORE (P2M_READONLY | P2M_COW)

/* A piece of guest memory that is contiguous in the host. */
struct piece {
    uint8_t *host;
    uint64_t len;
    bool writable;
};

static bool in_bounds(const struct physmap *m, uint64_t gpa, uint64_t len)
{
    uint64_t limit = BIT(physmap_width(m));

    return gpa <= limit && len <= limit - gpa;
}

/* The memory at gpa up to len bytes or the end of the frame. False if it is none. */
static bool piece_at(struct physmap *m, uint64_t gpa, uint64_t len, struct piece *pc)
{
    uint64_t entry = p2m_get(physmap_p2m(m), gpa >> PAGE_SHIFT);
    const struct flat_range *r;

    pc->len = MIN(len, PAGE_SIZE - (gpa & PAGE_MASK));
    if (entry & P2M_PRESENT) {
        pc->host = p2m_host(entry) + (gpa & PAGE_MASK);
        pc->writable = !(entry & NO_STORE);
        return true;
    }
    /* A frame that memory shares with I/O. */
    r = physmap_find(physmap_view(m), gpa);
    if (!r || r->kind == REGION_IO)
        return false;
    pc->host = physmap_host(r, gpa);
    pc->len = MIN(pc->len, r->end - gpa + 1);
    pc->writable = r->kind == REGION_RAM;
    return true;
}

/* Both touch memory that vCPUs use at the same time. Aligned words are single accesses, which rings
 * and flags in guest memory need; anything else promises as little as DMA does. */
static void load(void *dst, const uint8_t *src, uint64_t len)
{
    uint64_t v;

    if (len > 8 || len & (len - 1) || (uintptr_t)src & (len - 1)) {
        memcpy(dst, src, len);
        return;
    }
    switch (len) {
    case 1:
        v = __atomic_load_n(src, __ATOMIC_RELAXED);
        break;
    case 2:
        v = __atomic_load_n((const uint16_t *)src, __ATOMIC_RELAXED);
        break;
    case 4:
        v = __atomic_load_n((const uint32_t *)src, __ATOMIC_RELAXED);
        break;
    default:
        v = __atomic_load_n((const uint64_t *)src, __ATOMIC_RELAXED);
        break;
    }
    memcpy(dst, &v, len);
}

static void store(uint8_t *dst, const void *src, uint64_t len)
{
    uint64_t v = 0;

    if (len > 8 || len & (len - 1) || (uintptr_t)dst & (len - 1)) {
        memcpy(dst, src, len);
        return;
    }
    memcpy(&v, src, len);
    switch (len) {
    case 1:
        __atomic_store_n(dst, (uint8_t)v, __ATOMIC_RELAXED);
        break;
    case 2:
        __atomic_store_n((uint16_t *)dst, (uint16_t)v, __ATOMIC_RELAXED);
        break;
    case 4:
        __atomic_store_n((uint32_t *)dst, (uint32_t)v, __ATOMIC_RELAXED);
        break;
    default:
        __atomic_store_n((uint64_t *)dst, v, __ATOMIC_RELAXED);
        break;
    }
}

/* After a store to [gpa, gpa+len) of one frame. */
static void mark(struct physmap *m, uint64_t gpa, uint64_t len)
{
    uint64_t old = p2m_set_flags(physmap_p2m(m), gpa >> PAGE_SHIFT, P2M_DIRTY);

    if (old & P2M_CODE)
        physmap_code_write(m, gpa, len);
}

static void mark_range(struct physmap *m, uint64_t gpa, uint64_t len)
{
    while (len) {
        uint64_t n = MIN(len, PAGE_SIZE - (gpa & PAGE_MASK));

        mark(m, gpa, n);
        gpa += n;
        len -= n;
    }
}

int mem_read(struct physmap *m, uint64_t gpa, void *buf, uint64_t len)
{
    uint8_t *dst = buf;
    struct piece pc;

    if (!in_bounds(m, gpa, len))
        return -EFAULT;
    for (; len; gpa += pc.len, dst += pc.len, len -= pc.len) {
        if (!piece_at(m, gpa, len, &pc))
            return -EFAULT;
        load(dst, pc.host, pc.len);
    }
    return 0;
}

/* src NULL: zeroes. rom: read-only memory may be written too (but never a shared page). */
static int write_range(struct physmap *m, uint64_t gpa, const uint8_t *src, uint64_t len, bool rom)
{
    struct piece pc;

    if (!in_bounds(m, gpa, len))
        return -EFAULT;
    for (; len; gpa += pc.len, len -= pc.len) {
        if (!piece_at(m, gpa, len, &pc))
            return -EFAULT;
        if (!pc.writable && !(rom && !(p2m_get(physmap_p2m(m), gpa >> PAGE_SHIFT) & P2M_COW)))
            return -EFAULT;
        if (src) {
            store(pc.host, src, pc.len);
            src += pc.len;
        } else {
            memset(pc.host, 0, pc.len);
        }
        mark(m, gpa, pc.len);
    }
    return 0;
}

int mem_write(struct physmap *m, uint64_t gpa, const void *buf, uint64_t len)
{
    return write_range(m, gpa, buf, len, false);
}

int mem_write_rom(struct physmap *m, uint64_t gpa, const void *buf, uint64_t len)
{
    return write_range(m, gpa, buf, len, true);
}

int mem_zero(struct physmap *m, uint64_t gpa, uint64_t len)
{
    return write_range(m, gpa, NULL, len, false);
}

void *mem_map(struct physmap *m, uint64_t gpa, uint64_t len, bool write)
{
    uint64_t first = gpa >> PAGE_SHIFT, last, entry;
    uint8_t *host;

    if (!len || !in_bounds(m, gpa, len))
        return NULL;
    last = (gpa + len - 1) >> PAGE_SHIFT;
    host = p2m_host(p2m_get(physmap_p2m(m), first));
    for (uint64_t gfn = first; gfn <= last; gfn++) {
        entry = p2m_get(physmap_p2m(m), gfn);
        if (!(entry & P2M_PRESENT) || (write && entry & NO_STORE) ||
            p2m_host(entry) != host + (gfn - first) * PAGE_SIZE)
            return NULL;
    }
    if (write)
        mark_range(m, gpa, len);
    return host + (gpa & PAGE_MASK);
}

void mem_unmap(struct physmap *m, uint64_t gpa, uint64_t len, bool write)
{
    if (write)
        mark_range(m, gpa, len);
}
