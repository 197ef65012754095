/* What FUSE requests about open files and about open directories have in common. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "back/share/request.h"

struct handle *request_handle(struct request *r, uint64_t fh, bool dir)
{
    struct handle *h = handle_get(&r->s->handles, fh, r->node, dir);

    return h && h->fd >= 0 ? h : NULL;
}

int request_opened(struct request *r, struct node *n, int fd, uint32_t flags, bool dir)
{
    struct fuse_open_out out = {0};
    struct handle *h;
    int rc = handle_new(&r->s->handles, n, fd, flags, dir, &h);

    if (rc)
        return rc;
    out.fh = h->id;
    rc = request_reply(r, &out, sizeof(out));
    if (rc)
        handle_close(&r->s->handles, h);
    return rc;
}

int share_open_release(struct request *r)
{
    struct fuse_release_in in;

    memcpy(&in, r->arg, sizeof(in));
    /* A file that was gone when the session was loaded is released, too. */
    struct handle *h = handle_get(&r->s->handles, in.fh, r->node, r->h.opcode == FUSE_RELEASEDIR);
    if (!h)
        return -EBADF;
    handle_close(&r->s->handles, h);
    node_drop(&r->s->nodes, r->node);
    return 0;
}

int share_open_fsync(struct request *r)
{
    struct fuse_fsync_in in;

    memcpy(&in, r->arg, sizeof(in));
    struct handle *h = request_handle(r, in.fh, r->h.opcode == FUSE_FSYNCDIR);
    if (!h)
        return -EBADF;
    int rc = in.fsync_flags & FUSE_FSYNC_FDATASYNC ? fdatasync(h->fd) : fsync(h->fd);
    return rc < 0 ? -errno : 0;
}
