#include "back/block/block_uring.h"

#include <errno.h>
#include <limits.h>
#include <liburing.h>
#include <stdlib.h>
#include <time.h>

#include "back/block/block_file.h"
#include "base/util.h"

#define ENTRIES 256u

struct block_uring {
    struct io_uring ring;
    int wake_fd;
    uint64_t wake_count; /* where the kernel puts what it reads from wake_fd */
    bool armed;          /* that read is in flight */
};

int block_uring_new(struct block_uring **out, int wake_fd)
{
    struct block_uring *u = calloc(1, sizeof(*u));
    struct io_uring_params params = {.flags = IORING_SETUP_COOP_TASKRUN};
    int rc;

    if (!u)
        return -ENOMEM;
    u->wake_fd = wake_fd;
    rc = io_uring_queue_init_params(ENTRIES, &u->ring, &params);
    if (rc == -EINVAL) { /* a kernel before 5.19 knows no such flag */
        params = (struct io_uring_params){0};
        rc = io_uring_queue_init_params(ENTRIES, &u->ring, &params);
    }
    if (rc) {
        free(u);
        return rc;
    }
    /* Without it, completions that find no room are lost. */
    if (!(params.features & IORING_FEAT_NODROP)) {
        block_uring_free(u);
        return -ENOSYS;
    }
    *out = u;
    return 0;
}

void block_uring_free(struct block_uring *u)
{
    if (!u)
        return;
    io_uring_queue_exit(&u->ring);
    free(u);
}

static struct io_uring_sqe *get_sqe(struct block_uring *u)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);

    if (!sqe) {
        io_uring_submit(&u->ring);
        sqe = io_uring_get_sqe(&u->ring);
    }
    return sqe;
}

bool block_uring_submit(struct block_uring *u, int fd, struct block_req *r)
{
    struct io_uring_sqe *sqe = get_sqe(u);
    unsigned niov = MIN(r->niov, (unsigned)IOV_MAX);

    if (!sqe)
        return false;
    if (r->op == BLOCK_FLUSH)
        io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
    else if (r->op == BLOCK_READ)
        io_uring_prep_readv(sqe, fd, r->iov, niov, r->offset);
    else
        io_uring_prep_writev(sqe, fd, r->iov, niov, r->offset);
    io_uring_sqe_set_data(sqe, r);
    return true;
}

void block_uring_flush(struct block_uring *u)
{
    if (io_uring_sq_ready(&u->ring))
        io_uring_submit(&u->ring);
}

void block_uring_reap(struct block_uring *u, void (*finished)(struct block_req *r, int res))
{
    struct io_uring_cqe *cqe;

    while (io_uring_peek_cqe(&u->ring, &cqe) == 0) {
        struct block_req *r = io_uring_cqe_get_data(cqe);
        int res = cqe->res;

        io_uring_cqe_seen(&u->ring, cqe);
        if (r)
            finished(r, res);
        else
            u->armed = false;
    }
}

static void arm(struct block_uring *u)
{
    struct io_uring_sqe *sqe = u->armed ? NULL : get_sqe(u);

    if (!sqe)
        return;
    io_uring_prep_read(sqe, u->wake_fd, &u->wake_count, sizeof(u->wake_count), 0);
    io_uring_sqe_set_data(sqe, NULL);
    u->armed = true;
}

void block_uring_wait(struct block_uring *u, uint64_t deadline)
{
    struct __kernel_timespec ts;
    struct io_uring_cqe *cqe;
    struct timespec now;
    uint64_t ns;

    arm(u);
    if (deadline == UINT64_MAX) {
        io_uring_submit_and_wait(&u->ring, 1);
        return;
    }
    clock_gettime(CLOCK_MONOTONIC, &now);
    ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    ns = deadline > ns ? deadline - ns : 0;
    ts = (struct __kernel_timespec){.tv_sec = (int64_t)(ns / 1000000000u),
                                    .tv_nsec = (int64_t)(ns % 1000000000u)};
    io_uring_submit_and_wait_timeout(&u->ring, &cqe, 1, &ts, NULL);
}
