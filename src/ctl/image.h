/*
 * ring3 image: disk images outside of a VM. Inside of ctl/image*.c.
 */
#ifndef RING3_CTL_IMAGE_H
#define RING3_CTL_IMAGE_H

#include <stdint.h>
#include <stdio.h>

#include "back/block/block_aio.h"
#include "back/block/block_node.h"
#include "back/block/qcow2.h"
#include "base/err.h"
#include "ctl/cli.h"
#include "ctl/option.h"

/* One of ring3 image's commands. */
struct image_command {
    const char *name, *args; /* "create", "FILE [SIZE]" */
    const char *help;        /* lines, after the usage line */
    const struct option_desc *options;
    size_t noptions;
    int min_args, max_args;
    /* What bad usage and failures exit with. */
    int usage_status;
    /* Runs it with a struct of its own for the options (size bytes, zeroed). Returns the exit
     * status; a negative errno stands for CLI_FAILED with the message of e. */
    int (*fn)(void *cfg, const char **args, int nargs, struct err *e);
    size_t cfg_size;
};

extern const struct image_command image_create, image_info, image_convert, image_check,
    image_resize;

/* Options that several commands have. 0, or -EINVAL with e set. */
int image_parse_format(const char *val, const char **format, struct err *e);
int image_parse_cluster_size(const char *val, uint32_t *bits, struct err *e);
int image_parse_compression(const char *val, enum qcow2_compression *c, struct err *e);
int image_parse_preallocation(const char *val, enum qcow2_preallocation *p, struct err *e);
/* A disk's size: a multiple of the sector, rounded up. */
int image_parse_size(const char *val, uint64_t *size, struct err *e);

/* An image with an aio of its own. */
struct image {
    struct block_aio *aio;
    struct block_node *node;
    bool probed;
};
int image_open(struct image *i, const char *path, const struct block_node_options *o,
               struct err *e);
/* 0, or the error of writing what was left, with e set. */
int image_close(struct image *i, struct err *e);

/*
 * A file in the making: it gets a name of its own in the folder of its final one, which it takes
 * when it is complete. What is there under that name is not touched before, and not at all without
 * `force`. SIGINT, SIGTERM and SIGHUP wait from begin to end; image_target_cancelled tells of them.
 */
struct image_target {
    const char *path;
    char *temp; /* NULL: none */
    bool force;
};
int image_target_begin(struct image_target *t, const char *path, bool force, struct err *e);
bool image_target_cancelled(const struct image_target *t);
/* Gives the file its name, or removes it if rc is not 0. Returns rc, or what went wrong. If a
 * signal was waiting the process ends by it in here. */
int image_target_end(struct image_target *t, int rc, struct err *e);

/* Makes an empty raw image. 0, or negative errno with e set. */
int image_create_raw(struct block_aio *aio, const char *path, uint64_t size,
                     enum qcow2_preallocation p, struct err *e);

/* "1.5 GiB" into buf. */
const char *image_human(uint64_t bytes, char *buf, size_t len);

#endif
