/* ring3 image: which commands there are, and what they share. */
#include "ctl/image.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

#define ARGS_MAX 2

static const struct image_command *const commands[] = {
    &image_create, &image_info, &image_convert, &image_check, &image_resize,
};

int image_parse_format(const char *val, const char **format, struct err *e)
{
    if (strcmp(val, "raw") != 0 && strcmp(val, "qcow2") != 0)
        return err_set(e, EINVAL, "'%s' is neither raw nor qcow2", val);
    *format = val;
    return 0;
}

int image_parse_cluster_size(const char *val, uint32_t *bits, struct err *e)
{
    uint64_t size = 0;
    int rc = option_size(val, &size, e);

    if (rc)
        return rc;
    if (size & (size - 1) || size < BIT(QCOW2_CLUSTER_BITS_MIN) ||
        size > BIT(QCOW2_CLUSTER_BITS_MAX))
        return err_set(e, EINVAL, "'%s' is not a power of two from 512 to 2M", val);
    *bits = (uint32_t)__builtin_ctzll(size);
    return 0;
}

/* The index of val in a row of names; -EINVAL with e set. */
static int find_name(const char *val, const char *const *names, int n, const char *all,
                     struct err *e)
{
    for (int i = 0; i < n; i++) {
        if (!strcmp(val, names[i]))
            return i;
    }
    return err_set(e, EINVAL, "'%s' is none of %s", val, all);
}

int image_parse_compression(const char *val, enum qcow2_compression *c, struct err *e)
{
    static const char *const names[] = {[QCOW2_ZLIB] = "zlib", [QCOW2_ZSTD] = "zstd"};
    int i = find_name(val, names, ARRAY_LEN(names), "zlib, zstd", e);

    if (i >= 0)
        *c = (enum qcow2_compression)i;
    return MIN(i, 0);
}

int image_parse_preallocation(const char *val, enum qcow2_preallocation *p, struct err *e)
{
    static const char *const names[] = {[QCOW2_PREALLOC_OFF] = "off",
                                        [QCOW2_PREALLOC_METADATA] = "metadata",
                                        [QCOW2_PREALLOC_FALLOC] = "falloc"};
    int i = find_name(val, names, ARRAY_LEN(names), "off, metadata, falloc", e);

    if (i >= 0)
        *p = (enum qcow2_preallocation)i;
    return MIN(i, 0);
}

int image_parse_size(const char *val, uint64_t *size, struct err *e)
{
    int rc = option_size(val, size, e);

    if (rc)
        return rc;
    if (*size > INT64_MAX - BLOCK_SECTOR)
        return err_set(e, EINVAL, "'%s' is too large", val);
    *size = ALIGN_UP(*size, BLOCK_SECTOR);
    return 0;
}

const char *image_human(uint64_t bytes, char *buf, size_t len)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    unsigned u = 0;
    double v = (double)bytes;

    for (; v >= 1024 && u + 1 < ARRAY_LEN(units); u++)
        v /= 1024;
    snprintf(buf, len, "%.*f %s", v < 10 && u ? 2 : v < 100 && u ? 1 : 0, v, units[u]);
    return buf;
}

int image_open(struct image *i, const char *path, const struct block_node_options *o, struct err *e)
{
    int rc = block_aio_new(&i->aio, BLOCK_AIO_SYNC, e);

    i->node = NULL;
    if (rc) {
        i->aio = NULL;
        return rc;
    }
    rc = block_node_open(&i->node, i->aio, path, o, &i->probed, e);
    if (rc) {
        block_aio_free(i->aio);
        i->aio = NULL;
        i->node = NULL;
    }
    return rc;
}

int image_close(struct image *i, struct err *e)
{
    int rc = block_node_close(i->node);

    block_aio_free(i->aio);
    *i = (struct image){0};
    return rc ? err_set(e, -rc, "cannot write the image: %s", strerrordesc_np(-rc)) : 0;
}

static void help_all(void)
{
    printf("usage: ring3 image COMMAND [OPTION]... FILE...\n\n"
           "Works on disk images, raw and qcow2. Not to be used on the disks of a running VM.\n\n"
           "commands:\n");
    for (size_t i = 0; i < ARRAY_LEN(commands); i++)
        printf("  %-8s %s\n", commands[i]->name, commands[i]->args);
    printf("\n'ring3 image COMMAND --help' describes a command; ring3(1) is the manual.\n");
}

static int usage(const struct image_command *c, const struct err *e)
{
    char name[32];

    snprintf(name, sizeof(name), "image %s", c->name);
    cli_usage(name, e);
    return c->usage_status;
}

static int run(const struct image_command *c, int argc, char **argv)
{
    const char *args[ARGS_MAX];
    int nargs = c->max_args, status;
    struct err e = {""};
    bool want_help;
    void *cfg = calloc(1, c->cfg_size);

    if (!cfg) {
        fprintf(stderr, "ring3: out of memory\n");
        return CLI_FAILED;
    }
    if (option_parse_args(c->options, c->noptions, argc, argv, cfg, args, &nargs, &want_help, &e)) {
        status = usage(c, &e);
    } else if (want_help) {
        printf("usage: ring3 image %s [OPTION]... %s\n\n%s\noptions:\n", c->name, c->args, c->help);
        option_help(c->options, c->noptions, stdout);
        status = cli_printed();
    } else if (nargs < c->min_args) {
        err_set(&e, EINVAL, "needs %s", c->args);
        status = usage(c, &e);
    } else {
        status = c->fn(cfg, args, nargs, &e);
        if (status < 0) {
            fprintf(stderr, "ring3: %s\n", e.msg);
            status = CLI_FAILED;
        }
    }
    free(cfg);
    return status;
}

int cli_image(int argc, char **argv)
{
    struct err e;

    if (argc < 1) {
        err_set(&e, EINVAL, "no command given");
        return cli_usage("image", &e);
    }
    if (!strcmp(argv[0], "--help") || !strcmp(argv[0], "-h")) {
        help_all();
        return cli_printed();
    }
    for (size_t i = 0; i < ARRAY_LEN(commands); i++) {
        if (!strcmp(argv[0], commands[i]->name))
            return run(commands[i], argc - 1, argv + 1);
    }
    err_set(&e, EINVAL, "unknown %s '%s'", argv[0][0] == '-' ? "option" : "command", argv[0]);
    return cli_usage("image", &e);
}
