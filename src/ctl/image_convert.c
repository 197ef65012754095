/* ring3 image convert: copies what a disk holds into a new image. Rounds of reading several chunks
 * at once, then writing what of them is not zeros. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"
#include "ctl/image.h"

#define CHUNK (2 * MIB) /* the greatest cluster */
#define CHUNKS 8
#define GRAIN 4096u /* zeros of less are written */

struct convert_cfg {
    const char *from, *to;
    bool compress, force, quiet, qcow2_only;
    struct qcow2_create_options o;
};

static int set_from(void *cfg, const char *val, struct err *e)
{
    return image_parse_format(val, &((struct convert_cfg *)cfg)->from, e);
}

static int set_to(void *cfg, const char *val, struct err *e)
{
    return image_parse_format(val, &((struct convert_cfg *)cfg)->to, e);
}

static int set_compress(void *cfg, const char *val, struct err *e)
{
    struct convert_cfg *c = cfg;

    c->compress = c->qcow2_only = true;
    return image_parse_compression(val, &c->o.compression, e);
}

static int set_cluster_size(void *cfg, const char *val, struct err *e)
{
    ((struct convert_cfg *)cfg)->qcow2_only = true;
    return image_parse_cluster_size(val, &((struct convert_cfg *)cfg)->o.cluster_bits, e);
}

static int set_preallocation(void *cfg, const char *val, struct err *e)
{
    return image_parse_preallocation(val, &((struct convert_cfg *)cfg)->o.preallocation, e);
}

static int set_force(void *cfg, const char *val, struct err *e)
{
    ((struct convert_cfg *)cfg)->force = true;
    return 0;
}

static int set_quiet(void *cfg, const char *val, struct err *e)
{
    ((struct convert_cfg *)cfg)->quiet = true;
    return 0;
}

static const struct option_desc options[] = {
    {"from", "raw|qcow2", "Format of SOURCE. Default: found by looking at it.", set_from},
    {"to", "raw|qcow2", "Format of TARGET. Default: qcow2.", set_to},
    {"compress", "zlib|zstd", "qcow2: compress the clusters.", set_compress},
    {"cluster-size", "SIZE", "qcow2: unit of allocation, 512 to 2M, a power of two. Default: 64K.",
     set_cluster_size},
    {"preallocation", "off|metadata|falloc", "As of 'ring3 image create'. Default: off.",
     set_preallocation},
    {"force", NULL, "Replace TARGET if it exists.", set_force},
    {"quiet", NULL, "Show no progress. It is shown on a terminal only.", set_quiet},
};

struct chunk {
    struct block_req req;
    struct iovec iov;
    struct copy *c;
    uint64_t offset, len;
    uint8_t *buf;
};

struct copy {
    const struct convert_cfg *cfg;
    struct block_node *src, *dst;
    struct block_aio *aio; /* of both */
    struct chunk chunk[CHUNKS];
    unsigned n, pending;
    int rc;
    uint64_t grain;    /* zeros are looked for in pieces of this */
    uint64_t data_end; /* up to here the source said that it has data: asking is slow */
    int percent;
};

static bool is_zero(const uint8_t *p, size_t n) { return p[0] == 0 && !memcmp(p, p + 1, n - 1); }

static void transferred(struct block_req *r, int rc)
{
    struct copy *c = container_of(r, struct chunk, req)->c;

    c->pending--;
    if (rc && !c->rc)
        c->rc = rc;
}

static void start(struct copy *c, struct block_node *n, enum block_op op, struct chunk *k,
                  uint64_t at, uint64_t len)
{
    k->iov = (struct iovec){k->buf + at, len};
    k->req = (struct block_req){.op = op,
                                .offset = k->offset + at,
                                .len = len,
                                .iov = &k->iov,
                                .niov = 1,
                                .done = transferred};
    c->pending++;
    block_node_submit(n, &k->req);
}

static int wait_all(struct copy *c)
{
    while (c->pending) {
        block_aio_flush(c->aio);
        block_aio_wait(c->aio, UINT64_MAX);
        block_aio_poll(c->aio);
    }
    return c->rc;
}

/* Collects the next chunks that may hold data, from *offset on. */
static int find_data(struct copy *c, uint64_t *offset)
{
    for (c->n = 0; c->n < CHUNKS && *offset < c->src->size;) {
        uint64_t end = MIN(ALIGN_DOWN(*offset, CHUNK) + CHUNK, c->src->size);
        uint64_t len = c->src->size - *offset;
        int rc = *offset < c->data_end ? BLOCK_DATA : block_node_status(c->src, *offset, &len);

        if (rc < 0)
            return rc;
        if (rc == BLOCK_DATA && *offset >= c->data_end)
            c->data_end = *offset + len;
        /* Chunks begin at multiples of the grain, so that clusters are whole. */
        if (rc == BLOCK_ZERO && *offset + len < c->src->size)
            len = ALIGN_DOWN(*offset + len, c->grain) - *offset;
        if (rc == BLOCK_ZERO && len) {
            *offset += len;
            continue;
        }
        c->chunk[c->n].offset = *offset;
        c->chunk[c->n].len = end - *offset;
        c->n++;
        *offset = end;
    }
    return 0;
}

static int read_chunks(struct copy *c)
{
    for (unsigned i = 0; i < c->n; i++)
        start(c, c->src, BLOCK_READ, &c->chunk[i], 0, c->chunk[i].len);
    return wait_all(c);
}

/* The next run of pieces of a chunk that are not zeros, from *at on; its length, 0 at the end. */
static uint64_t next_run(const struct copy *c, const struct chunk *k, uint64_t *at)
{
    uint64_t end;

    while (*at < k->len && is_zero(k->buf + *at, MIN(c->grain, k->len - *at)))
        *at += c->grain;
    for (end = *at; end < k->len && !is_zero(k->buf + end, MIN(c->grain, k->len - end));)
        end += c->grain;
    return end > *at ? MIN(end, k->len) - *at : 0;
}

/* Each chunk's first run together, then their second ones and so on. */
static int write_chunks(struct copy *c)
{
    uint64_t at[CHUNKS] = {0};
    bool more = true;

    while (more) {
        more = false;
        for (unsigned i = 0; i < c->n; i++) {
            uint64_t len = next_run(c, &c->chunk[i], &at[i]);

            if (!len)
                continue;
            start(c, c->dst, BLOCK_WRITE, &c->chunk[i], at[i], len);
            at[i] += len;
            more = true;
        }
        if (wait_all(c))
            return c->rc;
    }
    return 0;
}

static int write_packed(struct copy *c)
{
    for (unsigned i = 0; i < c->n; i++) {
        struct chunk *k = &c->chunk[i];

        /* The disk's last cluster may be a part of one. */
        memset(k->buf + k->len, 0, ALIGN_UP(k->len, c->grain) - k->len);
        for (uint64_t at = 0; at < k->len; at += c->grain) {
            int rc;

            if (is_zero(k->buf + at, c->grain))
                continue;
            rc = qcow2_write_packed(c->dst, k->offset + at, k->buf + at);
            if (rc == -ENOSPC) {
                start(c, c->dst, BLOCK_WRITE, k, at, MIN(c->grain, k->len - at));
                rc = wait_all(c);
            }
            if (rc)
                return rc;
        }
    }
    return 0;
}

static void show_progress(struct copy *c, uint64_t done, uint64_t all)
{
    int percent = all ? (int)(done / (all / 100 + 1)) : 100;

    if (c->cfg->quiet || percent == c->percent || !isatty(STDERR_FILENO))
        return;
    c->percent = percent;
    fprintf(stderr, "\r%3d %%", percent);
}

static int copy_all(struct copy *c, const struct image_target *t, struct err *e)
{
    uint64_t offset = 0;
    int rc = 0;

    while (!rc && offset < c->src->size) {
        if (image_target_cancelled(t))
            return err_set(e, EINTR, "interrupted");
        rc = find_data(c, &offset);
        if (!rc)
            rc = read_chunks(c);
        if (rc)
            return err_set(e, -rc, "cannot read the source: %s", strerrordesc_np(-rc));
        rc = c->cfg->compress ? write_packed(c) : write_chunks(c);
        if (rc)
            return err_set(e, -rc, "cannot write the target: %s", strerrordesc_np(-rc));
        show_progress(c, offset, c->src->size);
    }
    return 0;
}

static int copy(const struct convert_cfg *cfg, struct image *src, struct block_node *dst,
                const struct image_target *t, struct err *e)
{
    struct copy c = {
        .cfg = cfg, .src = src->node, .dst = dst, .aio = src->aio, .grain = GRAIN, .percent = -1};
    int rc = 0;

    if (!strcmp(cfg->to, "qcow2"))
        c.grain = cfg->compress ? dst->discard_granularity
                                : MAX(GRAIN, MIN(dst->discard_granularity, 65536));
    for (unsigned i = 0; i < CHUNKS; i++) {
        c.chunk[i].c = &c;
        c.chunk[i].buf = aligned_alloc(4096, CHUNK);
        if (!c.chunk[i].buf)
            rc = err_set(e, ENOMEM, "out of memory");
    }
    if (!rc)
        rc = copy_all(&c, t, e);
    if (c.percent >= 0)
        fprintf(stderr, "\r     \r");
    for (unsigned i = 0; i < CHUNKS; i++)
        free(c.chunk[i].buf);
    return rc;
}

static int convert(const struct convert_cfg *cfg, struct image *src, struct image_target *t,
                   struct err *e)
{
    /* Nobody reads it before it is complete: one flush at the end. */
    struct block_node_options no = {.format = cfg->to, .no_flush = true};
    struct block_file_options fo = {0};
    struct block_node *dst;
    struct block_file *f;
    int rc, rc2;

    rc = !strcmp(cfg->to, "raw")
             ? image_create_raw(src->aio, t->temp, cfg->o.size, cfg->o.preallocation, e)
             : qcow2_create(src->aio, t->temp, &cfg->o, e);
    if (!rc)
        rc = block_node_open(&dst, src->aio, t->temp, &no, NULL, e);
    if (rc)
        return rc;
    rc = copy(cfg, src, dst, t, e);
    rc2 = block_node_close(dst);
    if (!rc && !rc2) {
        rc = block_file_open(&f, src->aio, t->temp, &fo, e);
        if (rc)
            return rc;
        rc2 = block_file_flush(f);
        block_file_close(f);
    }
    if (!rc && rc2)
        rc = err_set(e, -rc2, "cannot write the target: %s", strerrordesc_np(-rc2));
    return rc;
}

static int run(void *cfg, const char **args, int nargs, struct err *e)
{
    struct convert_cfg *c = cfg;
    struct block_node_options no = {.format = c->from, .ro = true};
    struct image_target t;
    struct image src;
    struct err e2;
    int rc;

    if (!c->to)
        c->to = "qcow2";
    if (!strcmp(c->to, "raw") && c->qcow2_only)
        return err_set(e, EINVAL, "a raw image has none of these options");
    if (c->compress && c->o.preallocation != QCOW2_PREALLOC_OFF)
        return err_set(e, EINVAL, "compression and preallocation exclude each other");
    rc = image_open(&src, args[0], &no, e);
    if (rc)
        return rc;
    c->o.size = src.node->size;
    rc = image_target_begin(&t, args[1], c->force, e);
    if (!rc)
        rc = convert(c, &src, &t, e);
    rc = image_target_end(&t, rc, e);
    image_close(&src, &e2);
    return rc;
}

const struct image_command image_convert = {
    .name = "convert",
    .args = "SOURCE TARGET",
    .help = "Copies what the disk of SOURCE holds, its backing files' part included, into a new "
            "image.\n"
            "Zeros take no space there. Snapshots inside of SOURCE are not copied.\n",
    .options = options,
    .noptions = ARRAY_LEN(options),
    .min_args = 2,
    .max_args = 2,
    .usage_status = CLI_USAGE,
    .fn = run,
    .cfg_size = sizeof(struct convert_cfg),
};
