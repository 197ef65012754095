/* The virtio file system device. */
#include "dev/virtio/fs.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/util.h"

enum { QUEUE_HIPRIO, QUEUE_REQUEST, QUEUES };

/* A guest's READs and WRITEs are as long as a chain can be. */
#define QUEUE_SIZE VIRTQ_SIZE_MAX
#define SESSION_MAX (256u << 10)

struct config {
    char tag[VIRTIO_FS_TAG_MAX]; /* zero-padded */
    uint32_t request_queues;
};

struct virtio_fs_state {
    struct virtio_state virtio;
    uint32_t session_len;
    uint8_t session[SESSION_MAX]; /* share_save's, while the device is quiesced */
    uint8_t pad[4];
};

struct virtio_fs {
    struct virtio v;
    struct virtio_fs_state s;
    struct config config;
    struct share *share; /* the thread's while it runs, else the lock holder's */
    /* The session as it was saved last: if the state is still that, so is the share. */
    uint32_t kept_len;
    uint8_t *kept;
    pthread_t thread;
    bool threaded; /* there is one */
    atomic_bool end;
    int wake; /* eventfd */
};

static const struct state_field virtio_fs_fields[] = {
    STATE_SUB(struct virtio_fs_state, virtio, &virtio_state_desc),
    STATE_FIELD_MAX(struct virtio_fs_state, session_len, SESSION_MAX),
    STATE_ARRAY(struct virtio_fs_state, session),
    STATE_PAD(struct virtio_fs_state, pad),
};

static const struct state_desc virtio_fs_state_desc = {
    .name = "virtio-fs",
    .version = 1,
    .size = sizeof(struct virtio_fs_state),
    .fields = virtio_fs_fields,
    .nfields = ARRAY_LEN(virtio_fs_fields),
};

static struct virtio_fs *fs_of(struct virtio *v) { return container_of(v, struct virtio_fs, v); }

/* ---- serving ---- */

/* One request of this queue; false when there is none. */
static bool serve_one(struct virtio_fs *f, struct virtq *q)
{
    struct virtq_chain *c;

    if (virtq_pop(q, &c) <= 0)
        return false;
    virtq_push(q, c, (uint32_t)share_handle(f->share, c->out, c->nout, c->in, c->nin));
    /* The guest waits for most answers. */
    virtq_notify(q);
    return true;
}

static void serve(struct virtio_fs *f)
{
    struct virtq *hiprio = &f->v.vq[QUEUE_HIPRIO], *request = &f->v.vq[QUEUE_REQUEST];
    bool more;

    do {
        virtq_kicks(hiprio, false);
        virtq_kicks(request, false);
        while (!atomic_load(&f->end) && (serve_one(f, hiprio) || serve_one(f, request)))
            ;
        more = virtq_kicks(hiprio, true);
        more |= virtq_kicks(request, true);
    } while (more && !atomic_load(&f->end));
}

static void *fs_thread(void *arg)
{
    struct virtio_fs *f = arg;
    eventfd_t count;

    /* The guest's kernel has applied its user's umask; ours is this thread's own then. Without
     * (old seccomp policies) the process's applies too. */
    if (unshare(CLONE_FS) == 0)
        umask(0);
    while (!atomic_load(&f->end)) {
        serve(f);
        eventfd_read(f->wake, &count);
    }
    return NULL;
}

/* Signals are the main thread's; those that a write may raise (SIGXFSZ) become errors of that. */
static int start_thread(struct virtio_fs *f)
{
    sigset_t all, old;
    int rc;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    rc = pthread_create(&f->thread, NULL, fs_thread, f);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return rc;
}

/* ---- life ---- */

static bool session_kept(const struct virtio_fs *f)
{
    return f->s.session_len == f->kept_len && !memcmp(f->s.session, f->kept, f->kept_len);
}

static int load_session(struct virtio_fs *f)
{
    struct err e = {""};
    int rc;

    if (session_kept(f))
        return 0;
    rc = share_load(f->share, f->s.session, f->s.session_len, &e);
    if (rc)
        log_msg(f->v.dev.ctx->log, LOG_WARN, "%s: %s", f->v.dev.id, e.msg);
    return rc;
}

/* A session that is too large is kept for going on here, and lost to whoever loads the state. */
static void save_session(struct virtio_fs *f)
{
    int64_t len = share_save(f->share, f->s.session, SESSION_MAX);

    if (len < 0) {
        log_msg(f->v.dev.ctx->log, LOG_WARN, "%s: more open files than a saved state can hold",
                f->v.dev.id);
        len = 0;
    }
    f->s.session_len = f->kept_len = (uint32_t)len;
    memset(f->s.session + len, 0, SESSION_MAX - (size_t)len);
    memcpy(f->kept, f->s.session, (size_t)len);
}

static void fs_start(struct virtio *v)
{
    struct virtio_fs *f = fs_of(v);

    if (load_session(f)) {
        virtio_fail(v, "a damaged session");
        return;
    }
    atomic_store(&f->end, false);
    f->threaded = start_thread(f) == 0;
    if (!f->threaded)
        virtio_fail(v, "no thread to be had");
}

static void fs_stop(struct virtio *v, enum virtio_stop why)
{
    struct virtio_fs *f = fs_of(v);

    if (!f->threaded)
        return;
    atomic_store(&f->end, true);
    eventfd_write(f->wake, 1);
    pthread_join(f->thread, NULL);
    f->threaded = false;
    if (why == VIRTIO_STOP_QUIESCE)
        save_session(f);
}

static void fs_kick(struct virtio *v, unsigned n) { eventfd_write(fs_of(v)->wake, 1); }

static void fs_reset(struct virtio *v)
{
    struct virtio_fs *f = fs_of(v);

    share_reset(f->share);
    f->s.session_len = f->kept_len = 0;
    memset(f->s.session, 0, SESSION_MAX);
}

static const struct virtio_ops fs_ops = {
    .id = VIRTIO_ID_FS,
    .pci_class = 0x0180, /* mass storage, other */
    .start = fs_start,
    .stop = fs_stop,
    .kick = fs_kick,
    .unlocked_kick = true,
    .reset = fs_reset,
};

static void release(struct virtio_fs *f)
{
    share_free(f->share);
    free(f->kept);
    if (f->wake >= 0)
        close(f->wake);
}

static int fs_init(struct device *d, const void *cfg, struct err *e)
{
    struct virtio_fs *f = container_of(d, struct virtio_fs, v.dev);
    const struct virtio_fs_cfg *c = cfg;
    const struct virtio_params p = {.ops = &fs_ops,
                                    .slot = c->slot,
                                    .queues = QUEUES,
                                    .queue_size = QUEUE_SIZE,
                                    .config = &f->config,
                                    .config_len = sizeof(f->config)};
    size_t len = strlen(c->tag);
    int rc;

    if (!len || len > VIRTIO_FS_TAG_MAX)
        return err_set(e, EINVAL, "the tag '%s' is not of 1 to %u bytes", c->tag,
                       VIRTIO_FS_TAG_MAX);
    memcpy(f->config.tag, c->tag, len);
    f->config.request_queues = QUEUES - QUEUE_REQUEST;
    f->wake = eventfd(0, EFD_CLOEXEC);
    if (f->wake < 0)
        return err_sys(e, "cannot create an eventfd");
    f->kept = malloc(SESSION_MAX);
    rc = f->kept ? share_new(&f->share, &c->share, e) : err_set(e, ENOMEM, "out of memory");
    if (!rc)
        rc = virtio_init(&f->v, &f->s.virtio, &p, e);
    if (rc)
        release(f);
    return rc;
}

static void fs_fini(struct device *d)
{
    release(container_of(d, struct virtio_fs, v.dev));
    virtio_dev_fini(d);
}

const struct device_class virtio_fs_class = {
    .name = "virtio-fs",
    .size = sizeof(struct virtio_fs),
    .init = fs_init,
    .reset = virtio_dev_reset,
    .quiesce = virtio_dev_quiesce,
    .resume = virtio_dev_resume,
    .fini = fs_fini,
    .state = &virtio_fs_state_desc,
    .state_off = offsetof(struct virtio_fs, s),
};
