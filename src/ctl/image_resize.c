/* ring3 image resize. */
#include <errno.h>
#include <string.h>

#include "base/util.h"
#include "ctl/image.h"

struct resize_cfg {
    const char *format;
    bool shrink;
};

static int set_format(void *cfg, const char *val, struct err *e)
{
    return image_parse_format(val, &((struct resize_cfg *)cfg)->format, e);
}

static int set_shrink(void *cfg, const char *val, struct err *e)
{
    ((struct resize_cfg *)cfg)->shrink = true;
    return 0;
}

static const struct option_desc options[] = {
    {"format", "raw|qcow2", "Format of the image. Default: found by looking at it.", set_format},
    {"shrink", NULL, "Allow a smaller size; what lies beyond it is lost.", set_shrink},
};

static int resize(struct resize_cfg *c, struct block_node *n, const char *path, const char *arg,
                  struct err *e)
{
    uint64_t old = n->size, size;
    bool relative = arg[0] == '+';
    int rc = image_parse_size(arg + relative, &size, e);

    if (rc)
        return rc;
    if (relative && size > INT64_MAX - old)
        return err_set(e, EINVAL, "'%s' is too large", arg);
    size += relative ? old : 0;
    if (size < old && !c->shrink)
        return err_set(e, EINVAL, "%s would lose data; --shrink allows that", path);
    if (!n->ops->resize)
        return err_set(e, EOPNOTSUPP, "%s: %s images cannot be resized", path, n->ops->name);
    rc = n->ops->resize(n, size, e);
    return rc ? err_prefix(e, rc, "%s", path) : 0;
}

static int run(void *cfg, const char **args, int nargs, struct err *e)
{
    struct resize_cfg *c = cfg;
    struct block_node_options o = {.format = c->format};
    struct image i;
    struct err e2;
    uint64_t size;
    char human[32];
    int rc = image_open(&i, args[0], &o, e), rc2;

    if (rc)
        return rc;
    rc = resize(c, i.node, args[0], args[1], e);
    size = i.node->size;
    rc2 = image_close(&i, rc ? &e2 : e);
    rc = rc ? rc : rc2;
    if (rc)
        return rc;
    printf("%s: %s\n", args[0], image_human(size, human, sizeof(human)));
    return cli_printed();
}

const struct image_command image_resize = {
    .name = "resize",
    .args = "FILE SIZE",
    .help = "Changes the size of an image's disk to SIZE, or by SIZE if that begins with '+'. What "
            "is new\n"
            "reads as zeros. Partitions and file systems in it keep their sizes.\n",
    .options = options,
    .noptions = ARRAY_LEN(options),
    .min_args = 2,
    .max_args = 2,
    .usage_status = CLI_USAGE,
    .fn = run,
    .cfg_size = sizeof(struct resize_cfg),
};
