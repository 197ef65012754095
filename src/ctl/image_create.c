/* ring3 image create. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "ctl/image.h"

struct create_cfg {
    const char *format, *backing, *backing_format;
    struct qcow2_create_options o;
    bool force, qcow2_only; /* an option of qcow2 was given */
};

static int set_format(void *cfg, const char *val, struct err *e)
{
    return image_parse_format(val, &((struct create_cfg *)cfg)->format, e);
}

static int set_cluster_size(void *cfg, const char *val, struct err *e)
{
    ((struct create_cfg *)cfg)->qcow2_only = true;
    return image_parse_cluster_size(val, &((struct create_cfg *)cfg)->o.cluster_bits, e);
}

static int set_backing(void *cfg, const char *val, struct err *e)
{
    ((struct create_cfg *)cfg)->qcow2_only = true;
    ((struct create_cfg *)cfg)->backing = val;
    return *val ? 0 : err_set(e, EINVAL, "is empty");
}

static int set_backing_format(void *cfg, const char *val, struct err *e)
{
    return image_parse_format(val, &((struct create_cfg *)cfg)->backing_format, e);
}

static int set_compression(void *cfg, const char *val, struct err *e)
{
    ((struct create_cfg *)cfg)->qcow2_only = true;
    return image_parse_compression(val, &((struct create_cfg *)cfg)->o.compression, e);
}

static int set_lazy(void *cfg, const char *val, struct err *e)
{
    ((struct create_cfg *)cfg)->qcow2_only = true;
    ((struct create_cfg *)cfg)->o.lazy_refcounts = true;
    return 0;
}

static int set_preallocation(void *cfg, const char *val, struct err *e)
{
    return image_parse_preallocation(val, &((struct create_cfg *)cfg)->o.preallocation, e);
}

static int set_force(void *cfg, const char *val, struct err *e)
{
    ((struct create_cfg *)cfg)->force = true;
    return 0;
}

static const struct option_desc options[] = {
    {"format", "raw|qcow2", "Format of the image. Default: qcow2.", set_format},
    {"cluster-size", "SIZE", "qcow2: unit of allocation, 512 to 2M, a power of two. Default: 64K.",
     set_cluster_size},
    {"backing", "FILE",
     "qcow2: what the disk holds before anything is written. A relative path\n"
     "counts from the folder of the new image. It must not change any more.",
     set_backing},
    {"backing-format", "raw|qcow2",
     "Format of the backing file. Default: found by looking at it, which is\n"
     "not safe for a raw file that a guest has written.",
     set_backing_format},
    {"compression", "zlib|zstd", "qcow2: how compressed clusters are compressed. Default: zlib.",
     set_compression},
    {"lazy-refcounts", NULL,
     "qcow2: write reference counts late; after a crash they are counted\n"
     "anew when the image is opened.",
     set_lazy},
    {"preallocation", "off|metadata|falloc",
     "What is allocated at once: nothing, the tables (of qcow2), or also the\n"
     "host's space for the whole disk. Default: off.",
     set_preallocation},
    {"force", NULL, "Replace FILE if it exists.", set_force},
};

int image_create_raw(struct block_aio *aio, const char *path, uint64_t size,
                     enum qcow2_preallocation p, struct err *e)
{
    struct block_file_options fo = {.create = true};
    struct block_file *f;
    int rc = block_file_open(&f, aio, path, &fo, e);

    if (rc)
        return rc;
    rc = block_file_truncate(f, size);
    if (!rc && p == QCOW2_PREALLOC_FALLOC)
        rc = block_file_zero(f, 0, size, false);
    if (!rc)
        rc = block_file_flush(f);
    block_file_close(f);
    return rc ? err_set(e, -rc, "cannot write %s: %s", path, strerrordesc_np(-rc)) : 0;
}

/* The backing file must be there; it gives its format and, if none was given, the disk's size. */
static int look_at_backing(struct create_cfg *c, const char *path, bool need_size, struct err *e)
{
    struct block_node_options no = {.format = c->backing_format, .ro = true};
    struct image i;
    char full[4096];
    int rc = qcow2_backing_path(path, c->backing, full, sizeof(full), e);

    if (!rc)
        rc = image_open(&i, full, &no, e);
    if (rc)
        return err_prefix(e, rc, "backing file");
    if (need_size)
        c->o.size = i.node->size;
    c->o.backing = c->backing;
    c->o.backing_format = i.node->ops->name;
    return image_close(&i, e);
}

static int create(struct create_cfg *c, const char *path, struct err *e)
{
    struct image_target t;
    struct block_aio *aio;
    int rc = block_aio_new(&aio, BLOCK_AIO_SYNC, e);

    if (rc)
        return rc;
    rc = image_target_begin(&t, path, c->force, e);
    if (!rc && !strcmp(c->format, "raw"))
        rc = image_create_raw(aio, t.temp, c->o.size, c->o.preallocation, e);
    else if (!rc)
        rc = qcow2_create(aio, t.temp, &c->o, e);
    rc = image_target_end(&t, rc, e);
    block_aio_free(aio);
    return rc;
}

static int run(void *cfg, const char **args, int nargs, struct err *e)
{
    struct create_cfg *c = cfg;
    char human[32];
    int rc;

    if (!c->format)
        c->format = "qcow2";
    if (!strcmp(c->format, "raw") && c->qcow2_only)
        return err_set(e, EINVAL, "a raw image has none of these options");
    if (nargs < 2 && !c->backing)
        return err_set(e, EINVAL, "the size is missing");
    if (nargs == 2) {
        rc = image_parse_size(args[1], &c->o.size, e);
        if (rc)
            return rc;
    }
    if (c->backing) {
        rc = look_at_backing(c, args[0], nargs < 2, e);
        if (rc)
            return rc;
    }
    rc = create(c, args[0], e);
    if (rc)
        return rc;
    printf("%s: %s, %s\n", args[0], c->format, image_human(c->o.size, human, sizeof(human)));
    return cli_printed();
}

const struct image_command image_create = {
    .name = "create",
    .args = "FILE [SIZE]",
    .help = "Makes an image of a disk that reads as zeros, or as the backing file. SIZE is a number of\n"
            "bytes, or with K, M, G or T of KiB to TiB; by default the backing file's size.\n",
    .options = options,
    .noptions = ARRAY_LEN(options),
    .min_args = 1,
    .max_args = 2,
    .usage_status = CLI_USAGE,
    .fn = run,
    .cfg_size = sizeof(struct create_cfg),
};
