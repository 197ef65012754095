/* Which formats there are, and which of them an image has. */
#include "back/block/block_node.h"

#include <errno.h>
#include <string.h>

#include "base/util.h"

#define HEAD_SIZE 4096u

static const struct block_node_ops *const formats[] = {&raw_ops, &qcow2_ops};

/* Marks at the start of formats that ring3 or others find by looking, and that may name files. */
static const struct {
    const char *mark;
    size_t len;
} header_marks[] = {
    {"QFI\xfb", 4},                /* qcow, qcow2 */
    {"QED\0", 4},                  /* QED */
    {"KDMV", 4},                   /* VMDK, sparse */
    {"COWD", 4},                   /* VMDK, old */
    {"# Disk DescriptorFile", 21}, /* VMDK, description */
    {"vhdxfile", 8},               /* VHDX */
    {"conectix", 8},               /* VHD, dynamic */
};

bool block_node_is_header(const uint8_t *head, size_t n)
{
    for (size_t i = 0; i < ARRAY_LEN(header_marks); i++)
        if (n >= header_marks[i].len && !memcmp(head, header_marks[i].mark, header_marks[i].len))
            return true;
    return false;
}

static const struct block_node_ops *find_format(const char *name)
{
    for (size_t i = 0; i < ARRAY_LEN(formats); i++)
        if (!strcmp(formats[i]->name, name))
            return formats[i];
    return NULL;
}

static int probe(struct block_file *f, const struct block_node_ops **ops, struct err *e)
{
    uint8_t head[HEAD_SIZE];
    int64_t size = block_file_size(f);
    size_t n = (size_t)MIN((uint64_t)MAX(size, 0), HEAD_SIZE);
    int rc = size < 0 ? (int)size : block_file_read(f, 0, head, n);

    if (rc)
        return err_set(e, -rc, "cannot read it: %s", strerrordesc_np(-rc));
    *ops = &raw_ops;
    for (size_t i = 0; i < ARRAY_LEN(formats); i++)
        if (formats[i]->probe && formats[i]->probe(head, n))
            *ops = formats[i];
    return 0;
}

int block_node_open(struct block_node **out, struct block_aio *aio, const char *path,
                    const struct block_node_options *o, bool *probed, struct err *e)
{
    struct block_file_options fo = {
        .ro = o->ro, .no_lock = o->no_lock, .direct = o->direct, .no_flush = o->no_flush};
    const struct block_node_ops *ops = o->format ? find_format(o->format) : NULL;
    struct block_file *f;
    int rc;

    if (o->format && !ops)
        return err_set(e, EINVAL, "%s: unknown disk format '%s'", path, o->format);
    if (o->depth > BLOCK_NODE_DEPTH_MAX)
        return err_set(e, ELOOP, "%s: too many backing files", path);
    rc = block_file_open(&f, aio, path, &fo, e);
    if (rc)
        return rc;
    rc = ops ? 0 : probe(f, &ops, e);
    if (rc == 0)
        rc = ops->open(out, f, o, e);
    if (rc) {
        block_file_close(f);
        return err_prefix(e, rc, "%s", path);
    }
    if (probed)
        *probed = !o->format;
    return 0;
}

int block_node_close(struct block_node *n) { return n ? n->ops->close(n) : 0; }

int block_node_status(struct block_node *n, uint64_t offset, uint64_t *len)
{
    return n->ops->status ? n->ops->status(n, offset, len) : BLOCK_DATA;
}
