/* The virtio block device: configuration, life, and the thread that serves the queues. */
#include "dev/virtio/blk.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "dev/virtio/blk_priv.h"

static struct virtio_blk *blk_of(struct virtio *v) { return container_of(v, struct virtio_blk, v); }

static const struct state_field virtio_blk_fields[] = {
    STATE_SUB(struct virtio_blk_state, virtio, &virtio_state_desc),
    STATE_FIELD_MAX(struct virtio_blk_state, writeback, 1),
    STATE_PAD(struct virtio_blk_state, pad),
};

static const struct state_desc virtio_blk_state_desc = {
    .name = "virtio-blk",
    .version = 1,
    .size = sizeof(struct virtio_blk_state),
    .fields = virtio_blk_fields,
    .nfields = ARRAY_LEN(virtio_blk_fields),
};

/* ---- serving ---- */

static uint64_t all_queues(const struct virtio_blk *b)
{
    return (BIT(b->v.queues) - 1) & ~atomic_load(&b->away);
}

/* Asks for kicks again; returns the queues that have something already. */
static uint64_t ask_for_kicks(struct virtio_blk *b)
{
    uint64_t pending = 0;

    for (uint64_t left = all_queues(b); left; left &= left - 1) {
        struct virtq *q = &b->v.vq[__builtin_ctzll(left)];

        if (virtq_ready(q) && virtq_kicks(q, true))
            pending |= left & -left;
    }
    return pending;
}

/* Lets go of the queue that is to be left alone, once nothing of it is in flight. What limits hold
 * back of it is given up, or a driver could be rid of them by resets. */
static void leave(struct virtio_blk *b, uint64_t away)
{
    const struct virtq *q = &b->v.vq[__builtin_ctzll(away)];

    blk_req_cancel(b, q);
    if (q->inflight)
        return;
    pthread_mutex_lock(&b->lock);
    if (atomic_load(&b->away) == away) { /* and not another one meanwhile */
        b->left = true;
        pthread_cond_broadcast(&b->changed);
    }
    pthread_mutex_unlock(&b->lock);
}

/* The thread's work while the device runs. Queues that had requests, or whose requests completed,
 * are looked at again without a kick: that is when a driver adds more. */
static void serve(struct virtio_blk *b)
{
    uint64_t look = all_queues(b);

    pthread_mutex_lock(&b->owner);
    while (atomic_load(&b->run)) {
        uint64_t away = atomic_load(&b->away), taken;
        bool done;

        if (atomic_load(&b->writeback) != block_info(b->disk)->writeback)
            block_set_writeback(b->disk, atomic_load(&b->writeback));
        if (atomic_load_explicit(&b->kicked, memory_order_relaxed))
            look |= atomic_exchange(&b->kicked, 0);
        if (away)
            leave(b, away);
        taken = blk_req_take(b, look & ~away);
        done = block_poll(b->disk) != 0;
        look = (look & away) | taken | blk_req_notify(b);
        if (!taken && !done) {
            look = ask_for_kicks(b);
            if (!look) {
                pthread_mutex_unlock(&b->owner);
                block_wait(b->disk);
                pthread_mutex_lock(&b->owner);
            }
        }
    }
    if (b->why == VIRTIO_STOP_RESET)
        block_cancel(b->disk, NULL, NULL);
    block_drain(b->disk);
    blk_req_notify(b);
    pthread_mutex_unlock(&b->owner);
}

static void *blk_thread(void *arg)
{
    struct virtio_blk *b = arg;

    pthread_mutex_lock(&b->lock);
    while (!b->end) {
        if (!atomic_load(&b->run)) {
            if (!b->parked) {
                b->parked = true;
                pthread_cond_broadcast(&b->changed);
            }
            pthread_cond_wait(&b->changed, &b->lock);
            continue;
        }
        pthread_mutex_unlock(&b->lock);
        serve(b);
        pthread_mutex_lock(&b->lock);
    }
    pthread_mutex_unlock(&b->lock);
    return NULL;
}

/* Without a thread: everything there is, to its end. */
static void serve_now(struct virtio_blk *b)
{
    uint64_t look = all_queues(b);

    do {
        blk_req_take(b, look);
        while (block_inflight(b->disk)) {
            block_poll(b->disk);
            if (block_inflight(b->disk))
                block_wait(b->disk); /* for a limit */
        }
        blk_req_notify(b);
        look = ask_for_kicks(b);
    } while (look);
}

/* ---- life ---- */

/* The mode of the disk that follows from features and state (§5.2.5.2). */
static bool wants_writeback(const struct virtio_blk *b)
{
    if (!b->may_cache || !virtio_has(&b->v, VIRTIO_BLK_F_FLUSH))
        return false;
    return !virtio_has(&b->v, VIRTIO_BLK_F_CONFIG_WCE) || b->s.writeback;
}

static void blk_start(struct virtio *v)
{
    struct virtio_blk *b = blk_of(v);

    b->config.writeback = b->s.writeback; /* of a loaded state */
    atomic_store(&b->writeback, wants_writeback(b));
    if (b->sync) {
        block_set_writeback(b->disk, atomic_load(&b->writeback));
        serve_now(b);
        return;
    }
    pthread_mutex_lock(&b->lock);
    b->parked = false;
    atomic_store(&b->run, true);
    pthread_cond_broadcast(&b->changed);
    pthread_mutex_unlock(&b->lock);
}

static void blk_stop(struct virtio *v, enum virtio_stop why)
{
    struct virtio_blk *b = blk_of(v);

    if (b->sync)
        return;
    pthread_mutex_lock(&b->lock);
    b->why = why;
    atomic_store(&b->run, false);
    block_wake(b->disk);
    while (!b->parked)
        pthread_cond_wait(&b->changed, &b->lock);
    pthread_mutex_unlock(&b->lock);
}

/* The others go on having owners; none touches queue n once `left` says so. */
static void blk_queue_stop(struct virtio *v, unsigned n)
{
    struct virtio_blk *b = blk_of(v);

    pthread_mutex_lock(&b->lock);
    b->left = false;
    atomic_store(&b->away, BIT(n));
    block_wake(b->disk);
    while (!b->left)
        pthread_cond_wait(&b->changed, &b->lock);
    pthread_mutex_unlock(&b->lock);
}

static void blk_queue_start(struct virtio *v, unsigned n)
{
    struct virtio_blk *b = blk_of(v);

    atomic_store(&b->away, 0);
    atomic_fetch_or(&b->kicked, BIT(n));
    block_wake(b->disk);
}

static void blk_kick(struct virtio *v, unsigned n)
{
    struct virtio_blk *b = blk_of(v);
    bool left = true;

    /* While the thread sleeps its work is this vCPU's, as far as that goes without waiting. */
    if (pthread_mutex_trylock(&b->owner) == 0) {
        if (atomic_load(&b->run) && !(atomic_load(&b->away) & BIT(n))) {
            left = blk_req_take_now(b, &v->vq[n]);
            blk_req_notify(b);
        }
        pthread_mutex_unlock(&b->owner);
    }
    if (left) {
        atomic_fetch_or(&b->kicked, BIT(n));
        block_wake(b->disk);
    }
}

static void blk_kick_sync(struct virtio *v, unsigned n) { serve_now(blk_of(v)); }

static void blk_reset(struct virtio *v)
{
    struct virtio_blk *b = blk_of(v);

    b->s.writeback = b->config.writeback = b->may_cache;
    atomic_store(&b->kicked, 0);
}

static void blk_config_write(struct virtio *v, uint32_t off, const uint8_t *buf, uint32_t len)
{
    struct virtio_blk *b = blk_of(v);
    uint32_t field = offsetof(struct virtio_blk_config, writeback);

    if (off > field || off + len <= field || !virtio_has(v, VIRTIO_BLK_F_CONFIG_WCE))
        return;
    b->s.writeback = b->config.writeback = buf[field - off] & 1;
    if (!virtio_running(v))
        return;
    atomic_store(&b->writeback, wants_writeback(b));
    if (b->sync)
        block_set_writeback(b->disk, atomic_load(&b->writeback));
    else
        block_wake(b->disk);
}

static const struct virtio_ops blk_ops = {
    .id = VIRTIO_ID_BLOCK,
    .pci_class = 0x0100, /* mass storage, SCSI: what guests expect of it */
    .start = blk_start,
    .stop = blk_stop,
    .queue_stop = blk_queue_stop,
    .queue_start = blk_queue_start,
    .kick = blk_kick,
    .unlocked_kick = true,
    .reset = blk_reset,
    .config_write = blk_config_write,
};

static const struct virtio_ops blk_sync_ops = {
    .id = VIRTIO_ID_BLOCK,
    .pci_class = 0x0100,
    .start = blk_start,
    .stop = blk_stop,
    .kick = blk_kick_sync,
    .reset = blk_reset,
    .config_write = blk_config_write,
};

int virtio_blk_resize(struct device *d, uint64_t bytes, struct err *e)
{
    struct virtio_blk *b = container_of(d, struct virtio_blk, v.dev);
    int rc;

    device_lock(d);
    if (virtio_running(&b->v))
        blk_stop(&b->v, VIRTIO_STOP_QUIESCE);
    rc = block_resize(b->disk, bytes, e);
    b->config.capacity = block_info(b->disk)->size / BLOCK_SECTOR;
    if (rc == 0)
        virtio_config_changed(&b->v);
    if (virtio_running(&b->v))
        blk_start(&b->v);
    device_unlock(d);
    return rc;
}

/* ---- device ---- */

static void fill_config(struct virtio_blk *b, unsigned queues)
{
    const struct block_info *i = block_info(b->disk);

    b->config = (struct virtio_blk_config){
        .capacity = i->size / BLOCK_SECTOR,
        .size_max = 1u << 22,
        .seg_max = BLK_SEG_MAX,
        .blk_size = i->logical_block,
        .physical_block_exp = (uint8_t)__builtin_ctz(i->physical_block / i->logical_block),
        .min_io_size = (uint16_t)(i->physical_block / i->logical_block),
        .num_queues = (uint16_t)queues,
        .max_discard_sectors = BLK_DISCARD_SECTORS,
        .max_discard_seg = 1,
        .discard_sector_alignment = i->discard_granularity / BLOCK_SECTOR,
        .max_write_zeroes_sectors = BLK_DISCARD_SECTORS,
        .max_write_zeroes_seg = 1,
        .write_zeroes_may_unmap = i->can_discard,
    };
}

static uint64_t features_of(const struct virtio_blk *b)
{
    const struct block_info *i = block_info(b->disk);
    uint64_t f = BIT(VIRTIO_BLK_F_SIZE_MAX) | BIT(VIRTIO_BLK_F_SEG_MAX) |
                 BIT(VIRTIO_BLK_F_BLK_SIZE) | BIT(VIRTIO_BLK_F_TOPOLOGY) | BIT(VIRTIO_BLK_F_FLUSH) |
                 BIT(VIRTIO_BLK_F_MQ);

    if (i->ro)
        return f | BIT(VIRTIO_BLK_F_RO);
    if (b->may_cache)
        f |= BIT(VIRTIO_BLK_F_CONFIG_WCE);
    if (i->can_discard)
        f |= BIT(VIRTIO_BLK_F_DISCARD);
    return f | BIT(VIRTIO_BLK_F_WRITE_ZEROES);
}

/* Signals are the main thread's. */
static int start_thread(struct virtio_blk *b, struct err *e)
{
    sigset_t all, old;
    int rc;

    pthread_mutex_init(&b->lock, NULL);
    pthread_mutex_init(&b->owner, NULL);
    pthread_cond_init(&b->changed, NULL);
    b->parked = true;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    rc = pthread_create(&b->thread, NULL, blk_thread, b);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (rc)
        return err_set(e, rc, "cannot start a disk's thread: %s", strerrordesc_np(rc));
    b->started = true;
    return 0;
}

static void blk_fini(struct device *d)
{
    struct virtio_blk *b = container_of(d, struct virtio_blk, v.dev);

    if (b->started) {
        pthread_mutex_lock(&b->lock);
        b->end = true;
        pthread_cond_broadcast(&b->changed);
        pthread_mutex_unlock(&b->lock);
        pthread_join(b->thread, NULL);
        pthread_cond_destroy(&b->changed);
        pthread_mutex_destroy(&b->owner);
        pthread_mutex_destroy(&b->lock);
    }
    blk_req_free_spare(b);
    virtio_dev_fini(d);
}

static int blk_init(struct device *d, const void *cfg, struct err *e)
{
    struct virtio_blk *b = container_of(d, struct virtio_blk, v.dev);
    const struct virtio_blk_cfg *c = cfg;
    struct virtio_params p = {.slot = c->slot, .queue_size = BLK_QUEUE_SIZE};
    int rc;

    assert(c->queues >= 1 && c->queues <= VIRTIO_BLK_QUEUES_MAX);
    b->disk = c->disk;
    b->sync = block_info(c->disk)->aio == BLOCK_AIO_SYNC;
    b->may_cache = block_info(c->disk)->writeback;
    if (c->serial)
        memcpy(b->serial, c->serial, strnlen(c->serial, sizeof(b->serial)));
    fill_config(b, c->queues);
    p.ops = b->sync ? &blk_sync_ops : &blk_ops;
    p.features = features_of(b);
    p.queues = c->queues;
    p.config = &b->config;
    p.config_len = sizeof(b->config);
    rc = virtio_init(&b->v, &b->s.virtio, &p, e);
    if (rc || b->sync)
        return rc;
    rc = start_thread(b, e);
    if (rc)
        blk_fini(d);
    return rc;
}

const struct device_class virtio_blk_class = {
    .name = "virtio-blk",
    .size = sizeof(struct virtio_blk),
    .init = blk_init,
    .reset = virtio_dev_reset,
    .quiesce = virtio_dev_quiesce,
    .resume = virtio_dev_resume,
    .fini = blk_fini,
    .state = &virtio_blk_state_desc,
    .state_off = offsetof(struct virtio_blk, s),
};
