/*
 * Opening image files, and asynchronous requests on them. Whatever a ring cannot do by itself
 * (holes, zeros, transfers that are not aligned or were cut short) is done by the synchronous
 * functions in a thread of the pool.
 */
#include "back/block/block_file.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "back/block/block_aio_priv.h"
#include "back/block/block_file_priv.h"
#include "back/block/block_lock.h"
#include "base/util.h"

/* The greatest alignment of O_DIRECT that is believed; also assumed where the host does not say. */
#define ALIGN_MAX 4096u

static int get_direct_align(struct block_file *f, struct err *e)
{
    struct statx sx;

    f->info.align = ALIGN_MAX;
    if (statx(f->fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &sx) == 0 && sx.stx_mask & STATX_DIOALIGN) {
        uint32_t align = MAX(sx.stx_dio_mem_align, sx.stx_dio_offset_align);

        if (sx.stx_dio_offset_align == 0 || align > 65536 || (align & (align - 1)))
            return err_set(e, EINVAL, "%s: its file system does not support cache=none", f->path);
        f->info.align = MAX(align, BLOCK_SECTOR);
    }
    return 0;
}

static int get_info(struct block_file *f, bool direct, struct err *e)
{
    struct block_file_info *info = &f->info;
    struct stat st;

    if (fstat(f->fd, &st) < 0)
        return err_sys(e, "cannot examine %s", f->path);
    if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
        return err_set(e, EINVAL, "%s is neither a regular file nor a block device", f->path);
    info->is_blockdev = S_ISBLK(st.st_mode);
    info->align = 1;
    info->logical_block = BLOCK_SECTOR;
    info->physical_block = (uint32_t)MIN(MAX(st.st_blksize, 512), 4096);
    info->discard_granularity = info->physical_block;
    if (info->is_blockdev) {
        unsigned phys;
        int logical;

        if (ioctl(f->fd, BLKSSZGET, &logical) < 0 || ioctl(f->fd, BLKPBSZGET, &phys) < 0)
            return err_sys(e, "cannot examine %s", f->path);
        info->logical_block = (uint32_t)logical;
        info->physical_block = MAX(phys, info->logical_block);
        info->discard_granularity = info->physical_block;
    }
    /* A hole beyond the end changes nothing and tells whether holes are known at all. */
    info->can_discard =
        !info->ro &&
        (info->is_blockdev || fallocate(f->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                        (off_t)ALIGN_UP((uint64_t)st.st_size, 4096), 4096) == 0);
    return direct ? get_direct_align(f, e) : 0;
}

/* NULL, with e set, when memory is short. */
static struct block_file *file_new(struct block_aio *aio, const char *path, struct err *e)
{
    struct block_file *f = calloc(1, sizeof(*f));

    if (!f || !(f->path = strdup(path))) {
        free(f);
        err_set(e, ENOMEM, "no memory for %s", path);
        return NULL;
    }
    f->fd = -1;
    f->aio = aio;
    f->last = &f->waiting;
    return f;
}

int block_file_open(struct block_file **out, struct block_aio *aio, const char *path,
                    const struct block_file_options *o, struct err *e)
{
    /* O_NONBLOCK: a path that turns out to be a pipe must not hang us. */
    int flags = O_CLOEXEC | O_NOCTTY | O_NONBLOCK | (o->ro ? O_RDONLY : O_RDWR) |
                (o->create ? O_CREAT | O_EXCL : 0);
    struct block_file *f = file_new(aio, path, e);
    int rc;

    if (!f)
        return -ENOMEM;
    f->info.ro = o->ro;
    f->no_flush = o->no_flush;
    f->fd = open(path, flags | (o->direct ? O_DIRECT : 0), 0666);
    if (f->fd < 0) {
        if (errno == EINVAL && o->direct)
            rc = err_set(e, EINVAL, "%s: its file system does not support cache=none", path);
        else
            rc = err_sys(e, "cannot open %s%s", path, o->ro ? "" : " for writing");
        goto fail;
    }
    rc = get_info(f, o->direct, e);
    if (rc)
        goto fail;
    /* io_uring takes it for a wish to fail rather than wait, even of regular files. */
    if (fcntl(f->fd, F_SETFL, o->direct ? O_DIRECT : 0) < 0) {
        rc = err_sys(e, "cannot open %s", path);
        goto fail;
    }
    rc = o->no_lock ? 0 : block_lock(f->fd, o->ro, path, e);
    if (rc)
        goto fail;
    f->locked = !o->no_lock;
    *out = f;
    return 0;

fail:
    block_file_close(f);
    return rc;
}

int block_file_open_temp(struct block_file **out, struct block_aio *aio, struct err *e)
{
    const char *dir = getenv("TMPDIR");
    char path[4096];
    struct block_file *f;
    int rc;

    if (!dir || !*dir)
        dir = "/var/tmp";
    if ((size_t)snprintf(path, sizeof(path), "%s/ring3.XXXXXX", dir) >= sizeof(path))
        return err_set(e, ENAMETOOLONG, "TMPDIR is too long");
    f = file_new(aio, dir, e);
    if (!f)
        return -ENOMEM;
    f->no_flush = true; /* nobody reads it after us */
    f->fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (f->fd < 0) {
        f->fd = mkostemp(path, O_CLOEXEC);
        if (f->fd >= 0)
            unlink(path);
    }
    if (f->fd < 0)
        rc = err_sys(e, "cannot create a temporary file in %s", dir);
    else
        rc = get_info(f, false, e);
    if (rc)
        block_file_close(f);
    else
        *out = f;
    return rc;
}

void block_file_close(struct block_file *f)
{
    if (!f)
        return;
    assert(!f->writes && !f->waiting);
    if (f->locked)
        block_unlock(f->fd);
    if (f->fd >= 0)
        close(f->fd);
    free(f->path);
    free(f);
}

const struct block_file_info *block_file_info(const struct block_file *f) { return &f->info; }
const char *block_file_path(const struct block_file *f) { return f->path; }
struct block_aio *block_file_aio(const struct block_file *f) { return f->aio; }

/* The whole of what is left of r, in whatever thread. */
static int perform(struct block_req *r)
{
    struct block_file *f = r->file;

    switch (r->op) {
    case BLOCK_READ:
    case BLOCK_WRITE:
        return block_file_transfer(f, r->op == BLOCK_WRITE, r->offset, r->iov, r->niov, r->len,
                                   r->moved);
    case BLOCK_FLUSH:
        return block_file_flush(f);
    case BLOCK_DISCARD:
        return block_file_discard(f, r->offset, r->len);
    case BLOCK_WRITE_ZEROES:
        return block_file_zero(f, r->offset, r->len, r->flags & BLOCK_REQ_UNMAP);
    }
    return -EINVAL;
}

static void run_in_pool(struct block_work *w)
{
    struct block_req *r = container_of(w, struct block_req, work);

    r->rc = perform(r);
}

static void pool_done(struct block_work *w)
{
    struct block_req *r = container_of(w, struct block_req, work);

    block_aio_complete(r->file->aio, r, r->rc);
}

static void start_in_pool(struct block_req *r)
{
    r->work.run = run_in_pool;
    r->work.done = pool_done;
    block_aio_work(r->file->aio, &r->work);
}

/* Can the ring do it? */
static bool is_simple(const struct block_file *f, const struct block_req *r)
{
    if (r->op == BLOCK_READ || r->op == BLOCK_WRITE)
        return f->info.align == 1 || (block_file_aligned(f, r->offset, r->len) &&
                                      block_file_iov_aligned(f, r->iov, r->niov));
    return r->op == BLOCK_FLUSH;
}

static void start(struct block_file *f, struct block_req *r)
{
    struct block_uring *u = block_aio_uring(f->aio);

    if (block_aio_kind(f->aio) == BLOCK_AIO_SYNC)
        block_aio_complete(f->aio, r, perform(r));
    else if (!u || !is_simple(f, r) || !block_uring_submit(u, f->fd, r))
        start_in_pool(r);
}

void block_file_finished(struct block_req *r, int res)
{
    bool transfer = r->op != BLOCK_FLUSH;

    if (res >= 0 && transfer)
        r->moved += (uint64_t)res;
    if (res == -EINTR || res == -EAGAIN || (res >= 0 && transfer && r->moved < r->len))
        start_in_pool(r);
    else
        block_aio_complete(r->file->aio, r, MIN(res, 0));
}

/* Is r a write that reads what surrounds it and writes that back? */
static bool must_be_alone(const struct block_file *f, const struct block_req *r)
{
    return !block_file_aligned(f, r->offset, r->len);
}

static void start_waiting(struct block_file *f)
{
    while (f->waiting && !f->alone) {
        struct block_req *r = f->waiting;
        bool alone = must_be_alone(f, r);

        if (alone && f->writes)
            break;
        f->waiting = r->next;
        if (!f->waiting)
            f->last = &f->waiting;
        f->alone = alone;
        f->writes++;
        start(f, r);
    }
}

void block_file_untrack(struct block_req *r)
{
    struct block_file *f = r->file;

    r->tracked = false;
    f->writes--;
    f->alone = false;
    start_waiting(f);
}

void block_file_submit(struct block_file *f, struct block_req *r)
{
    r->file = f;
    r->moved = 0;
    r->tracked = f->info.align > 1 && (r->op == BLOCK_WRITE || r->op == BLOCK_WRITE_ZEROES);
    if (r->op == BLOCK_FLUSH && f->no_flush) {
        block_aio_complete(f->aio, r, 0);
    } else if (r->tracked) {
        r->next = NULL;
        *f->last = r;
        f->last = &r->next;
        start_waiting(f);
    } else {
        start(f, r);
    }
}
