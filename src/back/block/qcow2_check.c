/* Checks a qcow2 image: finds everything that refers to a cluster and compares the number with the
 * refcounts. The image is hostile; a second opinion of each offset is not asked for. */
#include "back/block/qcow2_check.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "back/block/qcow2_snapshot.h"

#define PAGE_CLUSTERS 4096u
#define CLUSTERS_MAX BIT(36) /* what memory for the counts of a sparse file may be taken for */
#define BITMAPS_MAX 65535u
#define BITMAP_DIR_MAX (64 * MIB)

void qcow2_checker_report(struct qcow2_checker *c, bool leak, const char *fmt, ...)
{
    char line[256];
    va_list ap;

    *(leak ? &c->result->leaks : &c->result->corruptions) += 1;
    if (!c->result->report)
        return;
    va_start(ap, fmt);
    vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    c->result->report(c->result->arg, line);
}

uint32_t qcow2_checker_refs(const struct qcow2_checker *c, uint64_t cluster)
{
    uint64_t page = cluster / PAGE_CLUSTERS;

    return page < c->npages && c->pages[page] ? c->pages[page][cluster % PAGE_CLUSTERS] : 0;
}

int qcow2_checker_add(struct qcow2_checker *c, uint64_t offset, uint64_t len)
{
    uint64_t first = offset >> c->h.cluster_bits, last = (offset + len - 1) >> c->h.cluster_bits;

    for (uint64_t i = first; len && i <= last; i++) {
        uint32_t **page = &c->pages[i / PAGE_CLUSTERS], *n;

        if (!*page)
            *page = calloc(PAGE_CLUSTERS, sizeof(**page));
        if (!*page)
            return -ENOMEM;
        n = *page + i % PAGE_CLUSTERS;
        *n += *n < UINT32_MAX;
    }
    return 0;
}

void qcow2_checker_sub(struct qcow2_checker *c, uint64_t cluster)
{
    uint32_t *page = c->pages[cluster / PAGE_CLUSTERS];

    if (page && page[cluster % PAGE_CLUSTERS])
        page[cluster % PAGE_CLUSTERS]--;
}

/* References len bytes at offset. False and a report if they do not lie in the file (which may end
 * within the last cluster). */
static bool refer(struct qcow2_checker *c, int *rc, const char *what, uint64_t offset, uint64_t len)
{
    uint64_t end = c->file_clusters << c->h.cluster_bits;

    if (offset > end || len > end - offset) {
        qcow2_checker_report(c, false, "%s at 0x%llx lies beyond the end of the file", what,
                             (unsigned long long)offset);
        return false;
    }
    *rc = qcow2_checker_add(c, offset, len);
    return *rc == 0;
}

static bool is_aligned(const struct qcow2_checker *c, uint64_t offset)
{
    return !(offset & (c->cluster - 1));
}

struct l1_walk {
    struct qcow2_checker *c;
    const char *name;
    bool active;        /* the one whose flags are to be right */
    uint64_t guest_end; /* next host offset of a file that is not fragmented */
};

static int count_l2(struct l1_walk *w, uint64_t host)
{
    struct qcow2_checker *c = w->c;
    int rc = block_file_read(c->f, host, c->l2, c->cluster);

    for (uint32_t i = 0; i < BIT(c->l2_bits) && !rc; i++) {
        uint64_t entry = qcow2_be64(c->l2 + i * 8ull);
        struct qcow2_cluster d;

        if (!entry)
            continue;
        if (!qcow2_entry_decode(entry, c->h.cluster_bits, c->h.version, &d)) {
            qcow2_checker_report(c, false, "%s: entry %u of the L2 table at 0x%llx is malformed",
                                 w->name, i, (unsigned long long)host);
            continue;
        }
        if (d.kind == QCOW2_PACKED) {
            refer(c, &rc, "a compressed cluster", d.host, d.len);
            c->result->compressed_clusters += w->active;
            c->result->allocated_clusters += w->active;
            c->result->fragmented_clusters += w->active;
        } else if (d.host) {
            refer(c, &rc, "a cluster", d.host, c->cluster);
            if (w->active && d.kind == QCOW2_DATA) {
                c->result->allocated_clusters++;
                c->result->fragmented_clusters += w->guest_end && d.host != w->guest_end;
                w->guest_end = d.host + c->cluster;
            }
        }
    }
    return rc;
}

static int read_l1(struct qcow2_checker *c, uint64_t offset, uint32_t n, uint64_t **out)
{
    int rc;

    *out = calloc(MAX(n, 1), 8);
    if (!*out)
        return -ENOMEM;
    rc = n ? block_file_read(c->f, offset, *out, n * 8ull) : 0;
    for (uint32_t i = 0; i < n && !rc; i++)
        (*out)[i] = qcow2_be64((const uint8_t *)&(*out)[i]);
    return rc;
}

static bool l2_there(const struct qcow2_checker *c, uint64_t entry)
{
    uint64_t host = entry & QCOW2_OFFSET_MASK;

    return host && is_aligned(c, host) && host >> c->h.cluster_bits < c->file_clusters;
}

/* All that an L1 table refers to, itself included. */
static int count_l1(struct qcow2_checker *c, const char *name, bool active, uint64_t offset,
                    uint32_t n)
{
    struct l1_walk w = {.c = c, .name = name, .active = active};
    uint64_t *l1;
    int rc = 0;

    if (!n || !refer(c, &rc, "an L1 table", offset, n * 8ull))
        return rc;
    rc = read_l1(c, offset, n, &l1);
    for (uint32_t i = 0; i < n && !rc; i++) {
        uint64_t host = l1[i] & QCOW2_OFFSET_MASK;

        if (!host)
            continue;
        if (!is_aligned(c, host))
            qcow2_checker_report(c, false, "%s: entry %u of the L1 table is malformed", name, i);
        else if (refer(c, &rc, "an L2 table", host, c->cluster))
            rc = count_l2(&w, host);
    }
    free(l1);
    return rc;
}

static int count_snapshot(void *arg, const struct qcow2_snapshot *s)
{
    return count_l1(arg, s->name, false, s->l1_offset, s->l1_size);
}

static int count_bitmap(struct qcow2_checker *c, uint64_t table, uint32_t n)
{
    uint64_t *entries;
    int rc = 0;

    if (!is_aligned(c, table) || n > QCOW2_L1_ENTRIES_MAX) {
        qcow2_checker_report(c, false, "a bitmap's table is malformed");
        return 0;
    }
    if (!n || !refer(c, &rc, "a bitmap's table", table, n * 8ull))
        return rc;
    rc = read_l1(c, table, n, &entries);
    for (uint32_t i = 0; i < n && !rc; i++) {
        uint64_t host = entries[i] & QCOW2_OFFSET_MASK;

        if (!is_aligned(c, host))
            qcow2_checker_report(c, false, "entry %u of a bitmap's table is malformed", i);
        else if (host)
            refer(c, &rc, "a bitmap's cluster", host, c->cluster);
    }
    free(entries);
    return rc;
}

/* Bitmaps are QEMU's; they only have to survive. */
static int count_bitmaps(struct qcow2_checker *c)
{
    const struct qcow2_header *h = &c->h;
    uint64_t at = 0;
    int rc = 0;

    if (!(h->autoclear & QCOW2_AUTOCLEAR_BITMAPS) || !h->nb_bitmaps)
        return 0;
    if (h->nb_bitmaps > BITMAPS_MAX || h->bitmap_dir_size > BITMAP_DIR_MAX ||
        !is_aligned(c, h->bitmap_dir_offset)) {
        qcow2_checker_report(c, false, "the directory of bitmaps is malformed");
        return 0;
    }
    if (!refer(c, &rc, "the directory of bitmaps", h->bitmap_dir_offset, h->bitmap_dir_size))
        return rc;
    for (uint32_t i = 0; i < h->nb_bitmaps && !rc; i++) {
        uint8_t fixed[24];

        if (at + sizeof(fixed) > h->bitmap_dir_size) {
            qcow2_checker_report(c, false, "the directory of bitmaps is cut off");
            break;
        }
        rc = block_file_read(c->f, h->bitmap_dir_offset + at, fixed, sizeof(fixed));
        if (!rc)
            rc = count_bitmap(c, qcow2_be64(fixed), qcow2_be32(fixed + 8));
        at +=
            ALIGN_UP(sizeof(fixed) + qcow2_be32(fixed + 20) + (uint64_t)qcow2_be16(fixed + 18), 8);
    }
    return rc;
}

static int count_refcounts(struct qcow2_checker *c)
{
    int rc = 0;

    refer(c, &rc, "the refcount table", c->h.reftable_offset,
          (uint64_t)c->h.reftable_clusters << c->h.cluster_bits);
    for (uint32_t i = 0; i < c->reftable_entries && !rc; i++) {
        uint64_t host = c->reftable[i];

        if (!host)
            continue;
        if (!is_aligned(c, host)) {
            qcow2_checker_report(c, false, "entry %u of the refcount table is malformed", i);
        } else if (refer(c, &rc, "a refcount block", host, c->cluster)) {
            if (qcow2_checker_refs(c, host >> c->h.cluster_bits) == 1)
                continue;
            qcow2_checker_report(c, false, "the refcount block at 0x%llx overlaps something else",
                                 (unsigned long long)host);
            qcow2_checker_sub(c, host >> c->h.cluster_bits);
        }
        c->wrong_counts++;
        c->reftable[i] = 0;
        c->rebuild = true;
    }
    return rc;
}

static int count_all(struct qcow2_checker *c, struct err *e)
{
    const struct qcow2_header *h = &c->h;
    uint64_t len = 0;
    int rc = qcow2_checker_add(c, 0, c->cluster);

    if (!rc)
        rc = count_l1(c, "active", true, h->l1_offset, h->l1_size);
    if (!rc) {
        rc = qcow2_snapshot_walk(c->f, h, count_snapshot, c, &len, e);
        if (rc == -EINVAL)
            return rc; /* e has the reason */
    }
    if (!rc && len)
        refer(c, &rc, "the snapshot table", h->snapshots_offset, len);
    if (!rc)
        rc = count_bitmaps(c);
    if (!rc)
        rc = count_refcounts(c);
    return rc ? err_set(e, -rc, "cannot read its tables: %s", strerrordesc_np(-rc)) : 0;
}

/* Compares one block's counts with what was found. */
static void compare_block(struct qcow2_checker *c, uint64_t first)
{
    for (uint64_t i = 0; i < BIT(c->refblock_bits); i++) {
        uint64_t count = qcow2_refcount_load(c->block, i, c->h.refcount_order);
        uint32_t refs = qcow2_checker_refs(c, first + i);

        if (count == refs)
            continue;
        *(count > refs ? &c->leaked_counts : &c->wrong_counts) += 1;
        qcow2_checker_report(c, count > refs, "%s cluster %llu: refcount %llu, references %u",
                             count > refs ? "leaked" : "corrupt", (unsigned long long)(first + i),
                             (unsigned long long)count, refs);
    }
}

static bool any_refs(const struct qcow2_checker *c, uint64_t first, uint64_t n)
{
    uint64_t end = MIN(first + n, c->file_clusters); /* there are none beyond */

    for (uint64_t i = first; i < end; i++) {
        if (qcow2_checker_refs(c, i))
            return true;
    }
    return false;
}

static int compare_refcounts(struct qcow2_checker *c, enum qcow2_repair repair)
{
    uint64_t per_block = BIT(c->refblock_bits);
    uint64_t nblocks = (c->file_clusters + per_block - 1) / per_block;
    int rc = 0;

    nblocks = MAX(nblocks, c->reftable_entries);
    for (uint64_t b = 0; b < nblocks && !rc; b++) {
        uint64_t host = b < c->reftable_entries ? c->reftable[b] : 0;

        if (!host) {
            /* Each cluster of it that is used is corrupt; that there is no block is one cause. */
            if (!any_refs(c, b * per_block, per_block))
                continue;
            memset(c->block, 0, c->cluster);
            compare_block(c, b * per_block);
            c->rebuild = true;
            continue;
        }
        rc = block_file_read(c->f, host, c->block, c->cluster);
        if (rc)
            break;
        compare_block(c, b * per_block);
        if (repair != QCOW2_REPAIR_NONE && !c->rebuild)
            rc = qcow2_repair_block(c, repair, b * per_block, host);
    }
    return rc;
}

/* The flag that says that the reference count is one. */
static bool wrong_flag(const struct qcow2_checker *c, uint64_t entry, uint64_t host)
{
    return !!(entry & QCOW2_COPIED) != (qcow2_checker_refs(c, host >> c->h.cluster_bits) == 1);
}

static int check_l2_flags(struct qcow2_checker *c, bool repair, uint64_t host)
{
    int rc = block_file_read(c->f, host, c->l2, c->cluster);
    uint64_t wrong = 0;

    for (uint32_t i = 0; i < BIT(c->l2_bits) && !rc; i++) {
        uint64_t entry = qcow2_be64(c->l2 + i * 8ull);
        struct qcow2_cluster d;

        if (!qcow2_entry_decode(entry, c->h.cluster_bits, c->h.version, &d) || !d.host ||
            d.kind == QCOW2_PACKED || d.host >> c->h.cluster_bits >= c->file_clusters ||
            !wrong_flag(c, entry, d.host))
            continue;
        wrong++;
        qcow2_checker_report(c, false, "the L2 entry 0x%llx has the wrong flag for %u references",
                             (unsigned long long)entry,
                             qcow2_checker_refs(c, d.host >> c->h.cluster_bits));
        qcow2_put64(c->l2 + i * 8ull, entry ^ QCOW2_COPIED);
    }
    if (rc || !wrong || !repair)
        return rc;
    rc = block_file_write(c->f, host, c->l2, c->cluster);
    if (!rc) {
        c->result->corruptions -= wrong;
        c->result->corruptions_fixed += wrong;
    }
    return rc;
}

static int check_flags(struct qcow2_checker *c, bool repair)
{
    uint64_t *l1;
    int rc = read_l1(c, c->h.l1_offset, c->h.l1_size, &l1);

    for (uint32_t i = 0; i < c->h.l1_size && !rc; i++) {
        uint8_t field[8];

        if (!l2_there(c, l1[i]))
            continue;
        rc = check_l2_flags(c, repair, l1[i] & QCOW2_OFFSET_MASK);
        if (rc || !wrong_flag(c, l1[i], l1[i] & QCOW2_OFFSET_MASK))
            continue;
        qcow2_checker_report(c, false, "the L1 entry 0x%llx has the wrong flag",
                             (unsigned long long)l1[i]);
        if (!repair)
            continue;
        qcow2_put64(field, l1[i] ^ QCOW2_COPIED);
        rc = block_file_write(c->f, c->h.l1_offset + i * 8ull, field, sizeof(field));
        c->result->corruptions -= !rc;
        c->result->corruptions_fixed += !rc;
    }
    free(l1);
    return rc;
}

static int checker_init(struct qcow2_checker *c, struct err *e)
{
    int64_t size = block_file_size(c->f);
    int rc = qcow2_read_header(c->f, &c->h, e);

    if (rc)
        return rc;
    c->cluster = BIT(c->h.cluster_bits);
    c->l2_bits = c->h.cluster_bits - 3;
    c->refblock_bits = c->h.cluster_bits + 3 - c->h.refcount_order;
    c->file_clusters = ((uint64_t)size >> c->h.cluster_bits) + !!(size & (int64_t)(c->cluster - 1));
    if (c->file_clusters > CLUSTERS_MAX)
        return err_set(e, EFBIG, "the file is too large to be checked");
    /* Rebuilt refcounts go behind the end: there is room for them in the counts, too. */
    c->npages = (c->file_clusters * 2 + 2 * QCOW2_REFTABLE_BYTES_MAX) / PAGE_CLUSTERS + 1;
    c->pages = calloc(c->npages, sizeof(*c->pages));
    c->l2 = malloc(c->cluster);
    c->block = malloc(c->cluster);
    c->reftable_entries = (uint32_t)(c->h.reftable_clusters * c->cluster / 8);
    if (!c->pages || !c->l2 || !c->block)
        return err_set(e, ENOMEM, "out of memory");
    rc = read_l1(c, c->h.reftable_offset, c->reftable_entries, &c->reftable);
    for (uint32_t i = 0; i < c->reftable_entries && !rc; i++)
        c->reftable[i] &= QCOW2_REFTABLE_MASK;
    return rc ? err_set(e, -rc, "cannot read its tables: %s", strerrordesc_np(-rc)) : 0;
}

static void checker_fini(struct qcow2_checker *c)
{
    for (uint64_t i = 0; c->pages && i < c->npages; i++)
        free(c->pages[i]);
    free(c->pages);
    free(c->reftable);
    free(c->l2);
    free(c->block);
}

static int check(struct qcow2_checker *c, enum qcow2_repair repair)
{
    bool all = repair == QCOW2_REPAIR_ALL;
    int rc;

    /* Leaks are given back only if nothing is wrong with the references. */
    if (repair == QCOW2_REPAIR_LEAKS && c->result->corruptions)
        repair = QCOW2_REPAIR_NONE;
    rc = compare_refcounts(c, repair);
    if (!rc && all && c->rebuild)
        rc = qcow2_repair_rebuild(c);
    if (!rc)
        rc = check_flags(c, all);
    if (!rc && all && !c->result->corruptions)
        rc = qcow2_repair_bits(c);
    return rc;
}

int qcow2_check(struct block_file *f, enum qcow2_repair repair, struct qcow2_check *result,
                struct err *e)
{
    struct qcow2_checker c = {.f = f, .result = result};
    int rc = checker_init(&c, e);

    if (!rc) {
        result->dirty = c.h.incompatible & QCOW2_INCOMPAT_DIRTY;
        result->total_clusters = (c.h.size >> c.h.cluster_bits) + !!(c.h.size & (c.cluster - 1));
        rc = count_all(&c, e);
    }
    if (!rc) {
        rc = check(&c, repair);
        if (!rc && repair != QCOW2_REPAIR_NONE)
            rc = block_file_flush(f);
        if (rc)
            err_set(e, -rc, "cannot %s it: %s", repair == QCOW2_REPAIR_NONE ? "read" : "repair",
                    strerrordesc_np(-rc));
    }
    for (uint64_t i = c.file_clusters; !rc && i-- > 0;) {
        if (qcow2_checker_refs(&c, i)) {
            result->image_end = (i + 1) << c.h.cluster_bits;
            break;
        }
    }
    checker_fini(&c);
    return rc;
}
