#include "back/block/qcow2_snapshot.h"

#include <errno.h>
#include <string.h>

#define FIXED 40u
#define EXTRA_MAX 1024u

/* A string that is cut off to fit and always terminated. */
static int read_string(struct block_file *f, uint64_t offset, uint32_t len, char *out, size_t cap)
{
    size_t n = MIN((size_t)len, cap - 1);

    out[n] = '\0';
    return n ? block_file_read(f, offset, out, n) : 0;
}

static int read_one(struct block_file *f, uint64_t offset, struct qcow2_snapshot *s, uint64_t *len,
                    struct err *e)
{
    uint8_t fixed[FIXED], extra[16] = {0};
    uint32_t id_len, name_len, extra_len;
    int rc = block_file_read(f, offset, fixed, sizeof(fixed));

    if (rc)
        return err_set(e, -rc, "cannot read the snapshot table");
    id_len = qcow2_be16(fixed + 12);
    name_len = qcow2_be16(fixed + 14);
    extra_len = qcow2_be32(fixed + 36);
    if (extra_len > EXTRA_MAX)
        return err_set(e, EINVAL, "the snapshot table is malformed");
    *s = (struct qcow2_snapshot){
        .l1_offset = qcow2_be64(fixed),
        .l1_size = qcow2_be32(fixed + 8),
        .date = qcow2_be32(fixed + 16),
        .vm_state = qcow2_be32(fixed + 32),
    };
    rc = block_file_read(f, offset + FIXED, extra, MIN(extra_len, sizeof(extra)));
    if (extra_len >= 8)
        s->vm_state = qcow2_be64(extra);
    if (extra_len >= 16)
        s->disk_size = qcow2_be64(extra + 8);
    if (!rc)
        rc = read_string(f, offset + FIXED + extra_len, id_len, s->id, sizeof(s->id));
    if (!rc)
        rc =
            read_string(f, offset + FIXED + extra_len + id_len, name_len, s->name, sizeof(s->name));
    *len = ALIGN_UP((uint64_t)FIXED + extra_len + id_len + name_len, 8);
    return rc ? err_set(e, -rc, "cannot read the snapshot table") : 0;
}

int qcow2_snapshot_walk(struct block_file *f, const struct qcow2_header *h,
                        int (*fn)(void *arg, const struct qcow2_snapshot *s), void *arg,
                        uint64_t *len, struct err *e)
{
    uint64_t at = 0, cluster = BIT(h->cluster_bits);
    int64_t size = block_file_size(f);

    if (size < 0)
        return err_set(e, (int)-size, "cannot tell the file's size");
    for (uint32_t i = 0; i < h->nb_snapshots; i++) {
        struct qcow2_snapshot s = {0};
        uint64_t n = 0;
        int rc;

        if (at > QCOW2_SNAPSHOT_TABLE_MAX || h->snapshots_offset + at >= (uint64_t)size)
            return err_set(e, EINVAL, "the snapshot table is cut off or too long");
        rc = read_one(f, h->snapshots_offset + at, &s, &n, e);
        if (rc)
            return rc;
        if (s.l1_size > QCOW2_L1_ENTRIES_MAX || s.l1_offset & (cluster - 1) ||
            s.l1_offset > (uint64_t)size ||
            s.l1_size * 8ull > ALIGN_UP((uint64_t)size, cluster) - s.l1_offset)
            return err_set(e, EINVAL, "the L1 table of snapshot '%s' is out of bounds", s.name);
        rc = fn(arg, &s);
        if (rc)
            return rc;
        at += n;
    }
    if (len)
        *len = at;
    return 0;
}
