#include "back/block/qcow2_header.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define EXT_END 0u
#define EXT_BACKING_FORMAT 0xe2792acau
#define EXT_FEATURE_NAMES 0x6803f857u
#define EXT_BITMAPS 0x23852875u
#define EXT_HEADER 8u
#define EXT_BITMAPS_LEN 24u

#define FEATURE_ROW 48u
#define FEATURE_NAME 46u
#define OFF_COMPRESSION 104

static const struct feature {
    uint8_t type, bit; /* type 0 incompatible, 1 compatible, 2 autoclear */
    char name[FEATURE_NAME];
} features[] = {
    {0, 0, "dirty bit"},        {0, 1, "corrupt bit"},         {0, 2, "external data file"},
    {0, 3, "compression type"}, {0, 4, "extended L2 entries"}, {1, 0, "lazy refcounts"},
    {2, 0, "bitmaps"},          {2, 1, "raw external data"},
};

#define INCOMPAT_KNOWN (QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT | QCOW2_INCOMPAT_COMPRESSION)

bool qcow2_header_probe(const uint8_t *buf, size_t len)
{
    return len >= 8 && qcow2_be32(buf) == QCOW2_MAGIC;
}

uint64_t qcow2_header_l1_entries(uint64_t size, uint32_t cluster_bits)
{
    unsigned shift = cluster_bits * 2 - 3; /* bytes of disk that one L2 table covers */

    return (size >> shift) + !!(size & (BIT(shift) - 1));
}

int qcow2_header_cluster_size(const uint8_t *buf, size_t len, uint32_t *bytes, struct err *e)
{
    uint32_t version, cluster_bits;

    if (!qcow2_header_probe(buf, len))
        return err_set(e, EINVAL, "not a qcow2 image");
    version = qcow2_be32(buf + 4);
    if (version != 2 && version != 3)
        return err_set(e, version == 1 ? ENOTSUP : EINVAL, "qcow version %u is not supported",
                       version);
    if (len < QCOW2_HEADER_V2)
        return err_set(e, EINVAL, "the header is cut off");
    cluster_bits = qcow2_be32(buf + 20);
    if (cluster_bits < QCOW2_CLUSTER_BITS_MIN || cluster_bits > QCOW2_CLUSTER_BITS_MAX)
        return err_set(e, EINVAL, "clusters of 2^%u bytes are not supported", cluster_bits);
    *bytes = 1u << cluster_bits;
    return 0;
}

/* A table of the file: aligned, in the file and of bounded size, so that sums cannot overflow. */
static int check_table(const struct qcow2_header *h, const char *what, uint64_t offset,
                       uint64_t bytes, uint64_t file_size, struct err *e)
{
    if (offset & (BIT(h->cluster_bits) - 1))
        return err_set(e, EINVAL, "the %s is not aligned to a cluster", what);
    if (offset == 0)
        return err_set(e, EINVAL, "the %s overlaps the header", what);
    if (offset > file_size || bytes > file_size - offset)
        return err_set(e, EINVAL, "the %s lies beyond the end of the file", what);
    return 0;
}

static int check_tables(const struct qcow2_header *h, uint64_t file_size, struct err *e)
{
    uint64_t cluster = BIT(h->cluster_bits), reftable = (uint64_t)h->reftable_clusters * cluster;
    /* The file may end within the last cluster: what is missing reads as zeros. */
    uint64_t end = file_size > INT64_MAX - cluster ? file_size : ALIGN_UP(file_size, cluster);
    int rc = 0;

    if (h->l1_size > QCOW2_L1_ENTRIES_MAX)
        return err_set(e, EINVAL, "the L1 table has too many entries (%u)", h->l1_size);
    if (h->size > INT64_MAX || h->l1_size < qcow2_header_l1_entries(h->size, h->cluster_bits))
        return err_set(e, EINVAL, "the L1 table is too small for the disk's size");
    if (h->l1_size)
        rc = check_table(h, "L1 table", h->l1_offset, h->l1_size * 8ull, end, e);
    if (rc)
        return rc;
    if (!h->reftable_clusters)
        return err_set(e, EINVAL, "there is no refcount table");
    if (reftable > QCOW2_REFTABLE_BYTES_MAX)
        return err_set(e, EINVAL, "the refcount table is too large (%u clusters)",
                       h->reftable_clusters);
    rc = check_table(h, "refcount table", h->reftable_offset, reftable, end, e);
    if (rc)
        return rc;
    if (h->nb_snapshots > QCOW2_SNAPSHOTS_MAX)
        return err_set(e, EINVAL, "too many snapshots (%u)", h->nb_snapshots);
    if (h->nb_snapshots)
        rc = check_table(h, "snapshot table", h->snapshots_offset, 40ull * h->nb_snapshots, end, e);
    return rc;
}

static void append(char *text, size_t cap, const char *name, size_t len)
{
    size_t n = strlen(text);

    snprintf(text + n, cap - n, "%s%.*s", n ? ", " : "", (int)len, name);
}

/* The name of an unknown feature: the image's own table may know it (names may fill their field).
 */
static void append_feature(char *text, size_t cap, const uint8_t *names, size_t len, unsigned bit)
{
    char number[16];

    for (size_t i = 0; i + FEATURE_ROW <= len; i += FEATURE_ROW) {
        const char *name = (const char *)names + i + 2;

        if (names[i] == 0 && names[i + 1] == bit && name[0]) {
            append(text, cap, name, strnlen(name, FEATURE_NAME));
            return;
        }
    }
    for (size_t i = 0; i < ARRAY_LEN(features); i++) {
        if (features[i].type == 0 && features[i].bit == bit) {
            append(text, cap, features[i].name, strlen(features[i].name));
            return;
        }
    }
    snprintf(number, sizeof(number), "bit %u", bit);
    append(text, cap, number, strlen(number));
}

static int check_features(const struct qcow2_header *h, const uint8_t *names, size_t names_len,
                          struct err *e)
{
    uint64_t unknown = h->incompatible & ~INCOMPAT_KNOWN;
    char text[256] = "";

    if (!unknown)
        return 0;
    for (unsigned bit = 0; bit < 64; bit++) {
        if (unknown & BIT(bit))
            append_feature(text, sizeof(text), names, names_len, bit);
    }
    return err_set(e, ENOTSUP, "the image uses features that are not supported: %s", text);
}

/* Extensions lie between the header and the backing file's name or the cluster's end. */
static int parse_extensions(struct qcow2_header *h, const uint8_t *buf, size_t end,
                            const uint8_t **names, size_t *names_len, struct err *e)
{
    size_t off = h->length;

    while (off + EXT_HEADER <= end) {
        uint32_t type = qcow2_be32(buf + off), len = qcow2_be32(buf + off + 4);
        const uint8_t *data = buf + off + EXT_HEADER;

        if (type == EXT_END)
            break;
        off += EXT_HEADER;
        if (len > end - off)
            return err_set(e, EINVAL, "header extension 0x%08x is too long", type);
        switch (type) {
        case EXT_BACKING_FORMAT:
            if (len >= sizeof(h->backing_format))
                return err_set(e, EINVAL, "the name of the backing file's format is too long");
            memcpy(h->backing_format, data, len);
            h->backing_format[len] = '\0';
            break;
        case EXT_FEATURE_NAMES:
            *names = data;
            *names_len = len;
            break;
        case EXT_BITMAPS:
            if (len < EXT_BITMAPS_LEN)
                return err_set(e, EINVAL, "the bitmaps extension is too short");
            h->nb_bitmaps = qcow2_be32(data);
            h->bitmap_dir_size = qcow2_be64(data + 8);
            h->bitmap_dir_offset = qcow2_be64(data + 16);
            break;
        default: /* may be ignored, and stays where it is */
            break;
        }
        off += ALIGN_UP(len, 8);
    }
    return 0;
}

static int parse_backing(struct qcow2_header *h, const uint8_t *buf, size_t len, struct err *e)
{
    uint64_t offset = qcow2_be64(buf + 8);
    uint32_t n = qcow2_be32(buf + 16);

    h->backing[0] = '\0';
    if (!offset)
        return 0;
    if (n == 0 || n > QCOW2_BACKING_MAX || offset < h->length || offset > len || n > len - offset)
        return err_set(e, EINVAL, "the backing file's name does not lie in the header's cluster");
    memcpy(h->backing, buf + offset, n);
    h->backing[n] = '\0';
    if (strlen(h->backing) != n)
        return err_set(e, EINVAL, "the backing file's name contains a NUL");
    return 0;
}

/* The fields that version 3 added. */
static int parse_v3(struct qcow2_header *h, const uint8_t *buf, size_t len, struct err *e)
{
    if (len < QCOW2_HEADER_V3_MIN)
        return err_set(e, EINVAL, "the header is cut off");
    h->incompatible = qcow2_be64(buf + QCOW2_OFF_INCOMPAT);
    h->compatible = qcow2_be64(buf + QCOW2_OFF_COMPAT);
    h->autoclear = qcow2_be64(buf + QCOW2_OFF_AUTOCLEAR);
    h->refcount_order = qcow2_be32(buf + 96);
    h->length = qcow2_be32(buf + 100);
    if (h->length < QCOW2_HEADER_V3_MIN || h->length % 8 || h->length > len)
        return err_set(e, EINVAL, "the header's length (%u) is wrong", h->length);
    if (h->refcount_order > 6)
        return err_set(e, EINVAL, "the refcounts are too wide (2^%u bits)", h->refcount_order);
    return 0;
}

static int parse_compression(struct qcow2_header *h, const uint8_t *buf, struct err *e)
{
    uint8_t type = h->length > OFF_COMPRESSION ? buf[OFF_COMPRESSION] : 0;

    if (!!(h->incompatible & QCOW2_INCOMPAT_COMPRESSION) != !!type)
        return err_set(e, EINVAL, "compression type %u contradicts the feature bits", type);
    if (type > QCOW2_ZSTD)
        return err_set(e, ENOTSUP, "compression type %u is not supported", type);
    h->compression = type;
    return 0;
}

int qcow2_header_parse(struct qcow2_header *h, const uint8_t *buf, size_t len, uint64_t file_size,
                       struct err *e)
{
    const uint8_t *names = NULL;
    size_t names_len = 0, ext_end;
    uint32_t cluster, crypt;
    int rc = qcow2_header_cluster_size(buf, len, &cluster, e);

    if (rc)
        return rc;
    len = MIN(len, cluster);
    *h = (struct qcow2_header){
        .version = qcow2_be32(buf + 4),
        .cluster_bits = qcow2_be32(buf + 20),
        .size = qcow2_be64(buf + QCOW2_OFF_SIZE),
        .l1_size = qcow2_be32(buf + QCOW2_OFF_L1_SIZE),
        .l1_offset = qcow2_be64(buf + QCOW2_OFF_L1_SIZE + 4),
        .reftable_offset = qcow2_be64(buf + QCOW2_OFF_REFTABLE),
        .reftable_clusters = qcow2_be32(buf + QCOW2_OFF_REFTABLE + 8),
        .nb_snapshots = qcow2_be32(buf + QCOW2_OFF_SNAPSHOTS),
        .snapshots_offset = qcow2_be64(buf + QCOW2_OFF_SNAPSHOTS + 4),
        .refcount_order = 4,
        .length = QCOW2_HEADER_V2,
    };
    if (h->version == 3)
        rc = parse_v3(h, buf, len, e);
    if (!rc)
        rc = parse_backing(h, buf, len, e);
    if (rc)
        return rc;
    ext_end = h->backing[0] ? (size_t)qcow2_be64(buf + 8) : len;
    rc = parse_extensions(h, buf, ext_end, &names, &names_len, e);
    if (!rc)
        rc = check_features(h, names, names_len, e);
    if (!rc)
        rc = parse_compression(h, buf, e);
    if (rc)
        return rc;
    crypt = qcow2_be32(buf + 32);
    if (crypt)
        return err_set(e, ENOTSUP, "the image is encrypted (%s), which is not supported",
                       crypt == 1   ? "AES"
                       : crypt == 2 ? "LUKS"
                                    : "unknown method");
    return check_tables(h, file_size, e);
}

static size_t put_extension(uint8_t *buf, size_t off, uint32_t type, const void *data, size_t len)
{
    qcow2_put32(buf + off, type);
    qcow2_put32(buf + off + 4, (uint32_t)len);
    if (len)
        memcpy(buf + off + EXT_HEADER, data, len);
    return off + EXT_HEADER + ALIGN_UP(len, 8);
}

static size_t put_feature_names(uint8_t *buf, size_t off)
{
    uint8_t rows[ARRAY_LEN(features) * FEATURE_ROW];

    for (size_t i = 0; i < ARRAY_LEN(features); i++) {
        uint8_t *row = rows + i * FEATURE_ROW;

        row[0] = features[i].type;
        row[1] = features[i].bit;
        memcpy(row + 2, features[i].name, FEATURE_NAME);
    }
    return put_extension(buf, off, EXT_FEATURE_NAMES, rows, sizeof(rows));
}

int qcow2_header_build(const struct qcow2_header *h, uint8_t *buf, struct err *e)
{
    size_t cluster = 1u << h->cluster_bits, off = QCOW2_HEADER_V3, name = strlen(h->backing);
    size_t format = strlen(h->backing_format);
    size_t room = name + (format ? EXT_HEADER + ALIGN_UP(format, 8) : 0) + EXT_HEADER;

    memset(buf, 0, cluster);
    qcow2_put32(buf, QCOW2_MAGIC);
    qcow2_put32(buf + 4, 3);
    qcow2_put32(buf + 20, h->cluster_bits);
    qcow2_put64(buf + QCOW2_OFF_SIZE, h->size);
    qcow2_put32(buf + QCOW2_OFF_L1_SIZE, h->l1_size);
    qcow2_put64(buf + QCOW2_OFF_L1_SIZE + 4, h->l1_offset);
    qcow2_put64(buf + QCOW2_OFF_REFTABLE, h->reftable_offset);
    qcow2_put32(buf + QCOW2_OFF_REFTABLE + 8, h->reftable_clusters);
    qcow2_put64(buf + QCOW2_OFF_INCOMPAT, h->incompatible);
    qcow2_put64(buf + QCOW2_OFF_COMPAT, h->compatible);
    qcow2_put64(buf + QCOW2_OFF_AUTOCLEAR, h->autoclear);
    qcow2_put32(buf + 96, h->refcount_order);
    qcow2_put32(buf + 100, QCOW2_HEADER_V3);
    buf[OFF_COMPRESSION] = (uint8_t)h->compression;

    if (off + room > cluster || name > QCOW2_BACKING_MAX)
        return err_set(e, EINVAL, "the backing file's name is too long");
    if (format)
        off = put_extension(buf, off, EXT_BACKING_FORMAT, h->backing_format, format);
    if (off + EXT_HEADER + sizeof(features) + EXT_HEADER + name <= cluster)
        off = put_feature_names(buf, off);
    off = put_extension(buf, off, EXT_END, NULL, 0);
    if (name) {
        qcow2_put64(buf + 8, off);
        qcow2_put32(buf + 16, (uint32_t)name);
        memcpy(buf + off, h->backing, name);
    }
    return 0;
}
