#include "ctl/diskopt.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "ctl/option.h"
#include "dev/virtio/blk.h"

const char diskopt_arg[] = "FILE[,ITEM]...";
const char diskopt_help[] =
    "A virtio disk, vda, vdb and so on in the guest (repeatable): an image file\n"
    "or a block device of the host. A comma in FILE is written twice. Items:\n"
    "format=raw|qcow2|auto (default: auto, by what FILE begins with),\n"
    "ro, snapshot (what is written is lost at the end), serial=TEXT,\n"
    "cache=writeback|none|writethrough|unsafe, aio=io_uring|threads|sync,\n"
    "iops=N, bps=SIZE (limits per second), iops-burst=N, bps-burst=SIZE\n"
    "(once on top of them), queues=N, lock=on|off.";

static struct machine_disk *disk(void *cfg) { return cfg; }

static int set_text(char **text, const char *val, struct err *e)
{
    if (!*val)
        return err_set(e, EINVAL, "is empty");
    free(*text);
    *text = strdup(val);
    return *text ? 0 : err_set(e, ENOMEM, "no memory");
}

/* Stores where val is in the NULL-terminated list of names. */
static int set_choice(int *out, const char *const names[], const char *val, struct err *e)
{
    for (int i = 0; names[i]; i++) {
        if (!strcmp(names[i], val)) {
            *out = i;
            return 0;
        }
    }
    return err_set(e, EINVAL, "'%s' is not one of its values", val);
}

static int set_file(void *cfg, const char *val, struct err *e)
{
    return *val ? set_text(&disk(cfg)->path, val, e) : err_set(e, EINVAL, "no file given");
}

static int set_format(void *cfg, const char *val, struct err *e)
{
    static const char *const names[] = {"auto", "raw", "qcow2", NULL};
    int i = 0, rc = set_choice(&i, names, val, e);

    disk(cfg)->o.format = i ? names[i] : NULL;
    return rc;
}

static int set_ro(void *cfg, const char *val, struct err *e)
{
    disk(cfg)->o.ro = true;
    return 0;
}

static int set_snapshot(void *cfg, const char *val, struct err *e)
{
    disk(cfg)->o.snapshot = true;
    return 0;
}

static int set_serial(void *cfg, const char *val, struct err *e)
{
    if (strlen(val) > VIRTIO_BLK_ID_BYTES)
        return err_set(e, EINVAL, "'%s' is longer than %u bytes", val, VIRTIO_BLK_ID_BYTES);
    return set_text(&disk(cfg)->serial, val, e);
}

static int set_cache(void *cfg, const char *val, struct err *e)
{
    static const char *const names[] = {[BLOCK_CACHE_WRITEBACK] = "writeback",
                                        [BLOCK_CACHE_NONE] = "none",
                                        [BLOCK_CACHE_WRITETHROUGH] = "writethrough",
                                        [BLOCK_CACHE_UNSAFE] = "unsafe",
                                        NULL};
    int i = 0, rc = set_choice(&i, names, val, e);

    disk(cfg)->o.cache = (enum block_cache)i;
    return rc;
}

static int set_aio(void *cfg, const char *val, struct err *e)
{
    static const char *const names[] = {[BLOCK_AIO_URING] = "io_uring",
                                        [BLOCK_AIO_THREADS] = "threads",
                                        [BLOCK_AIO_SYNC] = "sync",
                                        NULL};
    int i = 0, rc = set_choice(&i, names, val, e);

    disk(cfg)->o.aio = (enum block_aio_kind)i;
    return rc;
}

static int positive(uint64_t v, int rc, struct err *e)
{
    return rc || v ? rc : err_set(e, EINVAL, "is not more than zero");
}

static int set_iops(void *cfg, const char *val, struct err *e)
{
    uint64_t *v = &disk(cfg)->o.iops.rate;
    int rc = option_uint(val, UINT32_MAX, v, e);

    return positive(*v, rc, e);
}

static int set_bps(void *cfg, const char *val, struct err *e)
{
    uint64_t *v = &disk(cfg)->o.bps.rate;
    int rc = option_size(val, v, e);

    return positive(*v, rc, e);
}

static int set_iops_burst(void *cfg, const char *val, struct err *e)
{
    return option_uint(val, UINT32_MAX, &disk(cfg)->o.iops.burst, e);
}

static int set_bps_burst(void *cfg, const char *val, struct err *e)
{
    return option_size(val, &disk(cfg)->o.bps.burst, e);
}

static int set_queues(void *cfg, const char *val, struct err *e)
{
    uint64_t n = 0;
    int rc = option_uint(val, VIRTIO_BLK_QUEUES_MAX, &n, e);

    disk(cfg)->queues = (unsigned)n;
    return positive(n, rc, e);
}

static int set_lock(void *cfg, const char *val, struct err *e)
{
    static const char *const names[] = {"on", "off", NULL};
    int i = 0, rc = set_choice(&i, names, val, e);

    disk(cfg)->o.no_lock = i;
    return rc;
}

static const struct option_desc items[] = {
    {"format", "raw|qcow2|auto", NULL, set_format},
    {"ro", NULL, NULL, set_ro},
    {"snapshot", NULL, NULL, set_snapshot},
    {"serial", "TEXT", NULL, set_serial},
    {"cache", "writeback|none|writethrough|unsafe", NULL, set_cache},
    {"aio", "io_uring|threads|sync", NULL, set_aio},
    {"iops", "N", NULL, set_iops},
    {"bps", "SIZE", NULL, set_bps},
    {"iops-burst", "N", NULL, set_iops_burst},
    {"bps-burst", "SIZE", NULL, set_bps_burst},
    {"queues", "N", NULL, set_queues},
    {"lock", "on|off", NULL, set_lock},
};

int diskopt_parse(struct machine_disk *d, const char *val, struct err *e)
{
    int rc;

    *d = (struct machine_disk){0};
    rc = option_list(items, ARRAY_LEN(items), val, set_file, d, e);
    if (rc == 0 && d->o.iops.burst && !d->o.iops.rate)
        rc = err_set(e, EINVAL, "iops-burst: is for iops");
    if (rc == 0 && d->o.bps.burst && !d->o.bps.rate)
        rc = err_set(e, EINVAL, "bps-burst: is for bps");
    if (rc)
        diskopt_free(d);
    return rc;
}

void diskopt_free(struct machine_disk *d)
{
    free(d->path);
    free(d->serial);
    *d = (struct machine_disk){0};
}
