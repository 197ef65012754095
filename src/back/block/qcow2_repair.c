/* Repairs the refcounts of a qcow2 image from the references that a check has found. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "back/block/qcow2_check.h"

/* What the count of a cluster should be, as far as its width allows. */
static uint64_t right_count(const struct qcow2_checker *c, uint64_t cluster)
{
    uint64_t refs = qcow2_checker_refs(c, cluster);

    return MIN(refs, qcow2_refcount_limit(c->h.refcount_order));
}

int qcow2_repair_block(struct qcow2_checker *c, enum qcow2_repair repair, uint64_t first,
                       uint64_t offset)
{
    uint64_t leaks = 0, wrong = 0;
    int rc;

    for (uint64_t i = 0; i < BIT(c->refblock_bits); i++) {
        uint64_t count = qcow2_refcount_load(c->block, i, c->h.refcount_order);
        uint64_t right = right_count(c, first + i);

        if (count == right || (count < right && repair != QCOW2_REPAIR_ALL))
            continue;
        *(count > right ? &leaks : &wrong) += 1;
        qcow2_refcount_store(c->block, i, c->h.refcount_order, right);
    }
    if (!leaks && !wrong)
        return 0;
    rc = block_file_write(c->f, offset, c->block, c->cluster);
    if (rc)
        return rc;
    c->result->leaks -= leaks;
    c->result->leaks_fixed += leaks;
    c->leaked_counts -= leaks;
    c->result->corruptions -= wrong;
    c->result->corruptions_fixed += wrong;
    c->wrong_counts -= wrong;
    return 0;
}

/* The new structures: blocks for the ranges in use, then the table. */
struct rebuild {
    uint64_t per_block, start; /* clusters */
    uint64_t blocks, ranges, table;
};

static bool needs_block(const struct qcow2_checker *c, const struct rebuild *r, uint64_t range)
{
    if (range >= r->start / r->per_block)
        return true;
    for (uint64_t i = 0; i < r->per_block; i++) {
        if (qcow2_checker_refs(c, range * r->per_block + i))
            return true;
    }
    return false;
}

/* They lie in the area that they count: sizes grow until they fit. */
static void plan(const struct qcow2_checker *c, struct rebuild *r)
{
    uint64_t n = 1;

    for (;;) {
        r->ranges = (r->start + n + r->per_block - 1) / r->per_block;
        r->table = (r->ranges * 8 + c->cluster - 1) >> c->h.cluster_bits;
        r->blocks = 0;
        for (uint64_t i = 0; i < r->ranges; i++)
            r->blocks += needs_block(c, r, i);
        if (r->blocks + r->table <= n)
            return;
        n = r->blocks + r->table;
    }
}

static int write_blocks(struct qcow2_checker *c, const struct rebuild *r, uint8_t *table)
{
    uint64_t at = r->start;
    int rc = 0;

    for (uint64_t i = 0; i < r->ranges && !rc; i++) {
        if (!needs_block(c, r, i))
            continue;
        for (uint64_t k = 0; k < r->per_block; k++)
            qcow2_refcount_store(c->block, k, c->h.refcount_order,
                                 right_count(c, i * r->per_block + k));
        rc = block_file_write(c->f, at << c->h.cluster_bits, c->block, c->cluster);
        qcow2_put64(table + i * 8, at << c->h.cluster_bits);
        at++;
    }
    return rc;
}

static int switch_table(struct qcow2_checker *c, const struct rebuild *r, const uint8_t *table)
{
    uint64_t host = (r->start + r->blocks) << c->h.cluster_bits;
    uint8_t field[12];
    int rc = block_file_write(c->f, host, table, r->table << c->h.cluster_bits);

    if (!rc)
        rc = block_file_flush(c->f);
    qcow2_put64(field, host);
    qcow2_put32(field + 8, (uint32_t)r->table);
    if (!rc)
        rc = block_file_write(c->f, QCOW2_OFF_REFTABLE, field, sizeof(field));
    if (!rc)
        rc = block_file_flush(c->f);
    return rc;
}

int qcow2_repair_rebuild(struct qcow2_checker *c)
{
    struct rebuild r = {.per_block = BIT(c->refblock_bits), .start = c->file_clusters};
    uint64_t old = c->h.reftable_offset >> c->h.cluster_bits;
    uint8_t *table;
    int rc;

    plan(c, &r);
    if (r.table << c->h.cluster_bits > QCOW2_REFTABLE_BYTES_MAX)
        return -EFBIG;
    for (uint32_t i = 0; i < c->reftable_entries; i++) {
        if (c->reftable[i])
            qcow2_checker_sub(c, c->reftable[i] >> c->h.cluster_bits);
    }
    for (uint32_t i = 0; i < c->h.reftable_clusters; i++)
        qcow2_checker_sub(c, old + i);
    rc = qcow2_checker_add(c, r.start << c->h.cluster_bits,
                           (r.blocks + r.table) << c->h.cluster_bits);
    table = calloc(r.table, c->cluster);
    if (!rc)
        rc = table ? write_blocks(c, &r, table) : -ENOMEM;
    if (!rc)
        rc = switch_table(c, &r, table);
    free(table);
    if (rc)
        return rc;
    c->result->corruptions -= c->wrong_counts;
    c->result->corruptions_fixed += c->wrong_counts;
    c->result->leaks -= c->leaked_counts;
    c->result->leaks_fixed += c->leaked_counts;
    return 0;
}

int qcow2_repair_bits(struct qcow2_checker *c)
{
    uint64_t bits = QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT;
    uint8_t field[8];
    int rc;

    if (!(c->h.incompatible & bits))
        return 0;
    /* What was repaired is in the file before it counts as sound. */
    rc = block_file_flush(c->f);
    qcow2_put64(field, c->h.incompatible & ~bits);
    return rc ? rc : block_file_write(c->f, QCOW2_OFF_INCOMPAT, field, sizeof(field));
}
