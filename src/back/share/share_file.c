/* FUSE requests about open files. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "back/share/request.h"
#include "base/util.h"

/* What a guest decides about how its file is opened. */
#define OPEN_FLAGS (O_ACCMODE | O_TRUNC | O_APPEND | O_SYNC | O_DSYNC)
/* What one COPY_FILE_RANGE copies at most, lest others wait for long. */
#define COPY_MAX (16 * MIB)

_Static_assert(SHARE_IOVS <= IOV_MAX, "too many for preadv");

int request_drop_suid(struct request *r, int fd)
{
    struct statx st;
    int rc = node_stat(fd, &st);

    if (rc || !S_ISREG(st.stx_mode) || !(st.stx_mode & (S_ISUID | S_ISGID)))
        return rc;

    mode_t mode = st.stx_mode & 01777;
    /* Without the right to execute it is no set-group-ID file but one with mandatory locks. */
    if (!(st.stx_mode & S_IXGRP))
        mode |= st.stx_mode & S_ISGID;
    return fchmodat(r->s->proc_fd, request_fd_path(fd).s, mode, 0) < 0 ? -errno : 0;
}

/* ---- opening ---- */

int request_flags_check(const struct share *s, uint32_t flags)
{
    if (flags & ~(uint32_t)OPEN_FLAGS || (flags & O_ACCMODE) == O_ACCMODE)
        return -EINVAL;
    return s->readonly && ((flags & O_ACCMODE) != O_RDONLY || flags & O_TRUNC) ? -EROFS : 0;
}

/* Answers with a new handle of n, which takes fd in any case. */
static int opened(struct request *r, struct node *n, int fd, uint32_t flags)
{
    return request_opened(r, n, fd, flags & ~(uint32_t)O_TRUNC, false);
}

int share_file_open(struct request *r)
{
    struct fuse_open_in in;

    memcpy(&in, r->arg, sizeof(in));
    uint32_t flags = in.flags & OPEN_FLAGS;
    int rc = request_flags_check(r->s, flags);
    if (rc)
        return rc;

    int fd = request_open(r, r->node, (int)flags);
    if (fd < 0)
        return fd;
    if (in.open_flags & FUSE_OPEN_KILL_SUIDGID && !r->s->readonly)
        rc = request_drop_suid(r, fd);
    if (rc) {
        close(fd);
        return rc;
    }
    return opened(r, r->node, fd, flags);
}

/* Makes the file and opens it. -EEXIST if there is something by that name. */
static int create_new(struct request *r, int dirfd, const char *name, uint32_t flags, uint32_t mode)
{
    int fd = openat(dirfd, name, (int)flags | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC | O_NOCTTY,
                    mode & 01777);

    if (fd < 0)
        return -errno;
    int rc = request_own(r, dirfd, fd);
    if (rc)
        close(fd);
    return rc ? rc : fd;
}

static bool is_node(int fd, const struct node *n)
{
    struct node_key key;
    struct statx st;

    if (node_stat(fd, &st))
        return false;
    node_key_of(&st, &key);
    return !memcmp(&key, &n->key, sizeof(key));
}

int share_file_create(struct request *r)
{
    struct fuse_create_in in;
    const char *name = request_string(r, sizeof(in), 0);
    struct fuse_entry_out entry;
    struct node *n;
    int rc = request_name_check(name);
    int dirfd = rc ? rc : request_dir_fd(r, r->node);

    if (dirfd < 0)
        return dirfd;
    memcpy(&in, r->arg, sizeof(in));
    uint32_t flags = in.flags & OPEN_FLAGS;
    rc = request_flags_check(r->s, flags);
    if (rc)
        return rc;

    int fd = create_new(r, dirfd, name, flags, in.mode);
    if (fd < 0 && (fd != -EEXIST || in.flags & O_EXCL))
        return fd;
    rc = request_entry(r, r->node, name, &entry, &n);
    if (rc)
        goto fail_fd;
    if (fd < 0) { /* an old one, whatever it is */
        fd = request_open(r, n, (int)flags);
        rc = fd < 0 ? fd : 0;
    } else if (!is_node(fd, n)) { /* the host was quicker */
        rc = -ESTALE;
    }
    if (!rc)
        rc = request_reply(r, &entry, sizeof(entry));
    if (rc)
        goto fail;
    rc = opened(r, n, fd, flags);
    fd = -1;
    if (!rc)
        return 0;
fail:
    node_forget(&r->s->nodes, n, 1);
fail_fd:
    if (fd >= 0)
        close(fd);
    return rc;
}

/* ---- reading and writing ---- */

/* The bytes [off, off + len) of what iov describes, as far as they exist and vec holds; the number
 * of vectors. *len becomes the bytes in them. */
static int slice(const struct iovec *iov, unsigned n, size_t off, size_t *len, struct iovec *vec)
{
    size_t left = *len;
    unsigned used = 0;

    for (unsigned i = 0; i < n && left && used < SHARE_IOVS; i++) {
        if (off >= iov[i].iov_len) {
            off -= iov[i].iov_len;
            continue;
        }
        size_t part = MIN(left, iov[i].iov_len - off);

        vec[used++] = (struct iovec){(uint8_t *)iov[i].iov_base + off, part};
        left -= part;
        off = 0;
    }
    *len -= left;
    return (int)used;
}

/* Reads into the guest's own memory. Short only at the end of the file, or where an error is. */
int share_file_read(struct request *r)
{
    struct fuse_read_in in;

    memcpy(&in, r->arg, sizeof(in));
    struct handle *h = request_handle(r, in.fh, false);
    if (!h)
        return -EBADF;
    if (in.offset > INT64_MAX - SHARE_IO_MAX)
        return -EINVAL;

    size_t want = MIN(MIN(in.size, SHARE_IO_MAX), r->out_max);
    while (r->out_len < want) {
        size_t len = want - r->out_len;
        int n =
            slice(r->out, r->nout, sizeof(struct fuse_out_header) + r->out_len, &len, r->s->iov);
        ssize_t got = preadv(h->fd, r->s->iov, n, (off_t)(in.offset + r->out_len));

        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && !r->out_len)
            return -errno;
        if (got <= 0)
            break;
        r->out_len += (size_t)got;
    }
    return 0;
}

int share_file_write(struct request *r)
{
    struct fuse_write_in in;
    struct fuse_write_out out = {0};
    size_t at = sizeof(r->h) + sizeof(in);

    memcpy(&in, r->arg, sizeof(in));
    struct handle *h = request_handle(r, in.fh, false);
    if (!h)
        return -EBADF;
    if (in.offset > INT64_MAX - SHARE_IO_MAX || in.size > SHARE_IO_MAX || in.size > r->in_len - at)
        return -EINVAL;

    int rc = in.write_flags & FUSE_WRITE_KILL_SUIDGID ? request_drop_suid(r, h->fd) : 0;
    while (!rc && out.size < in.size) {
        size_t len = in.size - out.size;
        int n = slice(r->in, r->nin, at + out.size, &len, r->s->iov);
        ssize_t put = pwritev(h->fd, r->s->iov, n, (off_t)(in.offset + out.size));

        if (put > 0)
            out.size += (uint32_t)put;
        else if (put == 0)
            break;
        else if (errno != EINTR)
            rc = -errno;
    }
    return rc && !out.size ? rc : request_reply(r, &out, sizeof(out));
}

int share_file_flush(struct request *r)
{
    struct fuse_flush_in in;

    memcpy(&in, r->arg, sizeof(in));
    struct handle *h = request_handle(r, in.fh, false);
    if (!h)
        return -EBADF;
    /* Network file systems tell of errors when a file is closed. */
    int fd = fcntl(h->fd, F_DUPFD_CLOEXEC, 0);
    return fd < 0 || close(fd) < 0 ? -errno : 0;
}

int share_file_fallocate(struct request *r)
{
    struct fuse_fallocate_in in;

    memcpy(&in, r->arg, sizeof(in));
    struct handle *h = request_handle(r, in.fh, false);
    if (!h)
        return -EBADF;
    if (in.mode & ~(uint32_t)(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE))
        return -EOPNOTSUPP;
    if (in.offset > INT64_MAX || in.length > INT64_MAX)
        return -EINVAL;
    return fallocate(h->fd, (int)in.mode, (off_t)in.offset, (off_t)in.length) < 0 ? -errno : 0;
}

int share_file_lseek(struct request *r)
{
    struct fuse_lseek_in in;
    struct fuse_lseek_out out;

    memcpy(&in, r->arg, sizeof(in));
    struct handle *h = request_handle(r, in.fh, false);
    if (!h)
        return -EBADF;
    if (in.whence != SEEK_DATA && in.whence != SEEK_HOLE)
        return -EINVAL;
    /* Nothing else uses the descriptor's own offset. */
    off_t at = lseek(h->fd, (off_t)in.offset, (int)in.whence);
    if (at < 0)
        return -errno;
    out.offset = (uint64_t)at;
    return request_reply(r, &out, sizeof(out));
}

int share_file_copy_range(struct request *r)
{
    struct fuse_copy_file_range_in in;
    struct fuse_write_out out;

    memcpy(&in, r->arg, sizeof(in));
    struct handle *from = request_handle(r, in.fh_in, false);
    struct node *n = node_get(&r->s->nodes, in.nodeid_out);
    struct handle *to = n ? handle_get(&r->s->handles, in.fh_out, n, false) : NULL;
    if (!from || !to || to->fd < 0)
        return -EBADF;
    if (in.off_in > INT64_MAX || in.off_out > INT64_MAX || in.flags)
        return -EINVAL;

    off_t off_in = (off_t)in.off_in, off_out = (off_t)in.off_out;
    ssize_t len = copy_file_range(from->fd, &off_in, to->fd, &off_out, MIN(in.len, COPY_MAX), 0);
    if (len < 0)
        return -errno;
    out = (struct fuse_write_out){.size = (uint32_t)len};
    return request_reply(r, &out, sizeof(out));
}
