#include "machine/boot/partition.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "base/util.h"

#define SECTOR 512u
#define MBR_TABLE 0x1be
#define MBR_ENTRIES 4
#define MBR_ENTRY_SIZE 16
#define MBR_PROTECTIVE 0xee
#define GPT_ENTRY_MIN 128u
#define GPT_ENTRY_MAX 4096u

static uint32_t u32(const uint8_t *p)
{
    uint32_t v;

    memcpy(&v, p, sizeof(v));
    return v;
}

static uint64_t u64(const uint8_t *p)
{
    uint64_t v;

    memcpy(&v, p, sizeof(v));
    return v;
}

struct list {
    const struct boot_disk *d;
    struct partition *p;
    unsigned n;
};

static void add(struct list *l, unsigned number, uint64_t start, uint64_t size)
{
    if (l->n < PARTITIONS_MAX && size && start < l->d->size && size <= l->d->size - start)
        l->p[l->n++] = (struct partition){number, start, size};
}

static bool read_sector(const struct boot_disk *d, uint64_t off, uint8_t *buf)
{
    return off <= d->size && d->size - off >= SECTOR && !d->read(d->arg, off, buf, SECTOR);
}

/* ---- MBR ---- */

struct mbr_entry {
    uint8_t type;
    uint64_t start, size; /* bytes */
};

static bool mbr_read(const struct boot_disk *d, uint64_t off, struct mbr_entry e[MBR_ENTRIES])
{
    uint8_t s[SECTOR];

    if (!read_sector(d, off, s) || s[510] != 0x55 || s[511] != 0xaa)
        return false;
    for (unsigned k = 0; k < MBR_ENTRIES; k++) {
        const uint8_t *p = s + MBR_TABLE + k * MBR_ENTRY_SIZE;

        e[k] = (struct mbr_entry){p[4], (uint64_t)u32(p + 8) * SECTOR, (uint64_t)u32(p + 12) * SECTOR};
    }
    return true;
}

static bool extended(uint8_t type) { return type == 0x05 || type == 0x0f || type == 0x85; }

/* A chain of tables: each has a partition and the next table, both relative to something. */
static void mbr_logical(struct list *l, uint64_t base)
{
    uint64_t at = base;

    for (unsigned number = MBR_ENTRIES + 1; number <= PARTITIONS_MAX; number++) {
        struct mbr_entry e[MBR_ENTRIES];

        if (!mbr_read(l->d, at, e))
            return;
        if (e[0].type)
            add(l, number, at + e[0].start, e[0].size);
        if (!extended(e[1].type))
            return;
        at = base + e[1].start;
    }
}

static void mbr_list(struct list *l, const struct mbr_entry e[MBR_ENTRIES])
{
    for (unsigned k = 0; k < MBR_ENTRIES; k++)
        if (e[k].type && !extended(e[k].type))
            add(l, k + 1, e[k].start, e[k].size);
    for (unsigned k = 0; k < MBR_ENTRIES; k++)
        if (extended(e[k].type))
            mbr_logical(l, e[k].start);
}

/* ---- GPT ---- */

static uint32_t crc(const void *p, size_t n)
{
    return (uint32_t)crc32(0, p, (uInt)n);
}

static void gpt_entries(struct list *l, const uint8_t *table, unsigned n, unsigned size)
{
    static const uint8_t unused[16];

    for (unsigned k = 0; k < n; k++) {
        const uint8_t *p = table + (size_t)k * size;
        uint64_t first = u64(p + 32), last = u64(p + 40);

        if (!memcmp(p, unused, sizeof(unused)) || last < first ||
            last >= UINT64_MAX / SECTOR)
            continue;
        add(l, k + 1, first * SECTOR, (last - first + 1) * SECTOR);
    }
}

/* The header at off, and its table; false if either is not intact. */
static bool gpt_list(struct list *l, uint64_t off)
{
    uint8_t h[SECTOR], *table;
    uint32_t len, sum, n, size;
    uint64_t at;
    bool ok;

    if (!read_sector(l->d, off, h) || memcmp(h, "EFI PART", 8))
        return false;
    len = u32(h + 12);
    sum = u32(h + 16);
    memset(h + 16, 0, 4);
    if (len < 92 || len > SECTOR || crc(h, len) != sum)
        return false;
    at = u64(h + 72);
    n = MIN(u32(h + 80), (uint32_t)PARTITIONS_MAX);
    size = u32(h + 84);
    if (size < GPT_ENTRY_MIN || size > GPT_ENTRY_MAX || at >= l->d->size / SECTOR)
        return false;
    at *= SECTOR;
    if ((uint64_t)n * size > l->d->size - at)
        return false;
    table = malloc((size_t)n * size + 1);
    if (!table)
        return false;
    ok = !l->d->read(l->d->arg, at, table, (size_t)n * size);
    /* Larger tables than we read cannot be checked. */
    if (ok && n == u32(h + 80))
        ok = crc(table, (size_t)n * size) == u32(h + 88);
    if (ok)
        gpt_entries(l, table, n, size);
    free(table);
    return ok;
}

unsigned partition_list(const struct boot_disk *d, struct partition *p)
{
    struct list l = {.d = d, .p = p};
    struct mbr_entry e[MBR_ENTRIES];
    bool gpt = false;

    if (!mbr_read(d, 0, e))
        return 0;
    for (unsigned k = 0; k < MBR_ENTRIES; k++)
        gpt |= e[k].type == MBR_PROTECTIVE;
    if (!gpt)
        mbr_list(&l, e);
    else if (!gpt_list(&l, SECTOR))
        gpt_list(&l, ALIGN_DOWN(d->size, SECTOR) - SECTOR);
    return l.n;
}
