#include "machine/disks.h"

#include <string.h>

#include "machine/machine.h"

static void tell(struct machine *m, const struct machine_disk *d, const struct block_info *i)
{
    static const char *const engines[] = {[BLOCK_AIO_URING] = "io_uring",
                                          [BLOCK_AIO_THREADS] = "threads",
                                          [BLOCK_AIO_SYNC] = "sync"};

    log_msg(m->log, LOG_INFO, "disk %s: format %s, %llu bytes, %s%s", d->path, i->format,
            (unsigned long long)i->size, engines[i->aio], i->ro ? ", read-only" : "");
    if (i->aio != d->o.aio)
        log_msg(m->log, LOG_INFO, "disk %s: the host refuses %s, so %s instead", d->path,
                engines[d->o.aio], engines[i->aio]);
    /* Of an ro disk the guest cannot make another format. */
    if (i->probed && !i->ro && !d->o.snapshot && !strcmp(i->format, "raw"))
        log_msg(m->log, LOG_WARN,
                "disk %s: no format was given, taken for raw; the guest cannot write the header of "
                "another format to it (it can with format=raw)",
                d->path);
}

int disks_open(struct machine *m, const struct machine_cfg *cfg, struct err *e)
{
    for (unsigned i = 0; i < cfg->ndisks; i++) {
        const struct machine_disk *d = &cfg->disks[i];
        int rc = block_open(&m->disk[i], d->path, &d->o, e);

        if (rc)
            return err_prefix(e, rc, "--disk");
        tell(m, d, block_info(m->disk[i]));
    }
    return 0;
}

void disks_close(struct machine *m)
{
    for (unsigned i = 0; i < MACHINE_DISKS_MAX; i++) {
        int rc = block_close(m->disk[i]);

        if (rc)
            log_msg(m->log, LOG_ERROR, "disk %u: what the guest wrote last may be lost: %s", i,
                    strerrordesc_np(-rc));
    }
}
