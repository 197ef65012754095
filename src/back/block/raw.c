/* The raw format: the disk's bytes are the file's. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "back/block/block_node.h"
#include "base/util.h"

struct raw {
    struct block_node node;
    struct block_file *file;
};

static struct raw *raw_of(struct block_node *n) { return container_of(n, struct raw, node); }

static int raw_open(struct block_node **out, struct block_file *f,
                    const struct block_node_options *o, struct err *e)
{
    const struct block_file_info *info = block_file_info(f);
    int64_t size = block_file_size(f);
    struct raw *raw;

    if (size < 0)
        return err_set(e, (int)-size, "cannot find its size: %s", strerrordesc_np((int)-size));
    if (size == 0)
        return err_set(e, EINVAL, "it is empty");
    raw = calloc(1, sizeof(*raw));
    if (!raw)
        return err_set(e, ENOMEM, "no memory");
    /* What a file lacks of its last sector reads as zeros, and is there once it is written. */
    raw->node = (struct block_node){.ops = &raw_ops,
                                    .aio = block_file_aio(f),
                                    .size = ALIGN_UP((uint64_t)size, BLOCK_SECTOR),
                                    .ro = o->ro,
                                    .can_discard = info->can_discard,
                                    .logical_block = info->logical_block,
                                    .physical_block = info->physical_block,
                                    .discard_granularity = info->discard_granularity};
    raw->file = f;
    *out = &raw->node;
    return 0;
}

static void raw_submit(struct block_node *n, struct block_req *r)
{
    block_file_submit(raw_of(n)->file, r);
}

static int raw_read_now(struct block_node *n, const struct block_req *r)
{
    return block_file_read_now(raw_of(n)->file, r);
}

static int raw_close(struct block_node *n)
{
    struct raw *raw = raw_of(n);
    int rc = n->ro ? 0 : block_file_flush(raw->file);

    block_file_close(raw->file);
    free(raw);
    return rc;
}

static int raw_resize(struct block_node *n, uint64_t size, struct err *e)
{
    int rc = block_file_truncate(raw_of(n)->file, size);

    if (rc)
        return err_set(e, -rc, "cannot resize %s: %s", block_file_path(raw_of(n)->file),
                       strerrordesc_np(-rc));
    n->size = size;
    return 0;
}

static int raw_status(struct block_node *n, uint64_t offset, uint64_t *len)
{
    return block_file_status(raw_of(n)->file, offset, len);
}

const struct block_node_ops raw_ops = {
    .name = "raw",
    .open = raw_open,
    .submit = raw_submit,
    .read_now = raw_read_now,
    .close = raw_close,
    .resize = raw_resize,
    .status = raw_status,
};
