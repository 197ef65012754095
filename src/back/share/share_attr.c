/* FUSE requests about attributes: of files, extended ones, and of the file system. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "back/share/request.h"
#include "base/util.h"

#define MODE_BITS 07777u
/* The only attributes that are data; others mean something to the host's kernel. */
#define XATTR_PREFIX "user."

static int reply_attr(struct request *r, int fd)
{
    struct fuse_attr_out out = {.attr_valid = SHARE_VALID_S};
    struct statx st;
    int rc = node_stat(fd, &st);

    if (rc)
        return rc;
    request_attr(&st, &out.attr);
    return request_reply(r, &out, sizeof(out));
}

int share_attr_getattr(struct request *r)
{
    int fd = request_fd(r, r->node);

    return fd < 0 ? fd : reply_attr(r, fd);
}

/* ---- setattr ---- */

static int set_mode(struct request *r, int fd, uint32_t mode)
{
    if (S_ISLNK(r->node->key.type))
        return -EOPNOTSUPP;
    mode &= MODE_BITS;
    if (!S_ISDIR(r->node->key.type))
        mode &= ~(uint32_t)(S_ISUID | S_ISGID);
    return fchmodat(r->s->proc_fd, request_fd_path(fd).s, mode, 0) < 0 ? -errno : 0;
}

static int set_owner(int fd, const struct fuse_setattr_in *in)
{
    uid_t uid = in->valid & FATTR_UID ? in->uid : (uid_t)-1;
    gid_t gid = in->valid & FATTR_GID ? in->gid : (gid_t)-1;

    return fchownat(fd, "", uid, gid, AT_EMPTY_PATH) < 0 ? -errno : 0;
}

static int set_size(struct request *r, const struct fuse_setattr_in *in)
{
    if (in->size > INT64_MAX)
        return -EFBIG;
    if (in->valid & FATTR_FH) {
        struct handle *h = handle_get(&r->s->handles, in->fh, r->node, false);

        if (!h || h->fd < 0)
            return -EBADF;
        return ftruncate(h->fd, (off_t)in->size) < 0 ? -errno : 0;
    }

    int fd = request_open(r, r->node, O_WRONLY);
    if (fd < 0)
        return fd;
    int rc = ftruncate(fd, (off_t)in->size) < 0 ? -errno : 0;
    close(fd);
    return rc;
}

static struct timespec new_time(uint32_t valid, uint32_t set, uint32_t now, uint64_t s, uint32_t ns)
{
    struct timespec t = {.tv_nsec = UTIME_OMIT};

    if (valid & now)
        t.tv_nsec = UTIME_NOW;
    else if (valid & set)
        t = (struct timespec){(time_t)s, MIN(ns, 999999999u)};
    return t;
}

static int set_times(int fd, const struct fuse_setattr_in *in)
{
    const struct timespec t[2] = {
        new_time(in->valid, FATTR_ATIME, FATTR_ATIME_NOW, in->atime, in->atimensec),
        new_time(in->valid, FATTR_MTIME, FATTR_MTIME_NOW, in->mtime, in->mtimensec),
    };

    return utimensat(fd, "", t, AT_EMPTY_PATH) < 0 ? -errno : 0;
}

int share_attr_setattr(struct request *r)
{
    struct fuse_setattr_in in;
    int fd = request_fd(r, r->node), rc = 0;

    if (fd < 0)
        return fd;
    memcpy(&in, r->arg, sizeof(in));
    /* Changing the owner clears bits of the mode, and changing the size the times: in this order.
     */
    if (in.valid & (FATTR_UID | FATTR_GID))
        rc = set_owner(fd, &in);
    if (!rc && in.valid & FATTR_MODE)
        rc = set_mode(r, fd, in.mode);
    if (!rc && in.valid & FATTR_SIZE)
        rc = set_size(r, &in);
    if (!rc && in.valid & FATTR_KILL_SUIDGID)
        rc = request_drop_suid(r, fd);
    if (!rc && in.valid & (FATTR_ATIME | FATTR_MTIME | FATTR_ATIME_NOW | FATTR_MTIME_NOW))
        rc = set_times(fd, &in);
    return rc ? rc : reply_attr(r, fd);
}

int share_attr_statfs(struct request *r)
{
    struct fuse_statfs_out out = {0};
    struct statvfs st;
    int fd = request_fd(r, r->node);

    if (fd < 0)
        return fd;
    if (fstatvfs(fd, &st) < 0)
        return -errno;
    out.st = (struct fuse_kstatfs){
        .blocks = st.f_blocks,
        .bfree = st.f_bfree,
        .bavail = st.f_bavail,
        .files = st.f_files,
        .ffree = st.f_ffree,
        .bsize = (uint32_t)st.f_bsize,
        .frsize = (uint32_t)st.f_frsize,
        .namelen = MIN((uint32_t)st.f_namemax, NODE_NAME_MAX),
    };
    return request_reply(r, &out, sizeof(out));
}

/* ---- extended attributes ---- */

/* A path by which the calls that know no descriptors opened with O_PATH get at the node. */
struct xattr_path {
    char s[32];
};

static int xattr_path(struct request *r, struct xattr_path *p)
{
    int fd = request_fd(r, r->node);

    if (fd < 0)
        return fd;
    snprintf(p->s, sizeof(p->s), "/proc/self/fd/%d", fd);
    return 0;
}

static int xattr_name_check(const char *name)
{
    if (strlen(name) > NODE_NAME_MAX)
        return -ERANGE;
    return strncmp(name, XATTR_PREFIX, strlen(XATTR_PREFIX)) != 0 ? -EOPNOTSUPP : 0;
}

/* The answer to a guest that has room for `size` bytes and that 0 bytes of room ask how many. */
static int reply_value(struct request *r, uint32_t size, size_t len)
{
    struct fuse_getxattr_out out = {.size = (uint32_t)len};

    if (size == 0)
        return request_reply(r, &out, sizeof(out));
    return len > size ? -ERANGE : request_reply(r, r->s->reply, len);
}

int share_attr_getxattr(struct request *r)
{
    struct fuse_getxattr_in in;
    struct xattr_path path;
    const char *name = request_string(r, sizeof(in), 0);
    int rc = xattr_name_check(name);

    memcpy(&in, r->arg, sizeof(in));
    if (!rc)
        rc = xattr_path(r, &path);
    if (rc)
        return rc;
    ssize_t len = getxattr(path.s, name, r->s->reply, sizeof(r->s->reply));
    return len < 0 ? -errno : reply_value(r, in.size, (size_t)len);
}

int share_attr_listxattr(struct request *r)
{
    struct fuse_getxattr_in in;
    struct xattr_path path;
    char *list = (char *)r->s->reply;
    size_t kept = 0;
    int rc = xattr_path(r, &path);

    memcpy(&in, r->arg, sizeof(in));
    if (rc)
        return rc;
    ssize_t len = listxattr(path.s, list, sizeof(r->s->reply));
    if (len < 0)
        return -errno;
    for (ssize_t at = 0; at < len;) {
        size_t n = strlen(list + at) + 1;

        if (!xattr_name_check(list + at)) {
            memmove(list + kept, list + at, n);
            kept += n;
        }
        at += (ssize_t)n;
    }
    return reply_value(r, in.size, kept);
}

int share_attr_setxattr(struct request *r)
{
    struct {
        uint32_t size, flags;
    } in;
    struct xattr_path path;
    const char *name = request_string(r, sizeof(in), 0);
    const uint8_t *value = (const uint8_t *)name + strlen(name) + 1;
    int rc = xattr_name_check(name);

    memcpy(&in, r->arg, sizeof(in));
    if (!rc && in.size > (size_t)(r->arg + r->len - value))
        rc = -EINVAL;
    if (!rc)
        rc = xattr_path(r, &path);
    if (rc)
        return rc;
    return setxattr(path.s, name, value, in.size, (int)in.flags) < 0 ? -errno : 0;
}

int share_attr_removexattr(struct request *r)
{
    struct xattr_path path;
    const char *name = request_string(r, 0, 0);
    int rc = xattr_name_check(name);

    if (!rc)
        rc = xattr_path(r, &path);
    if (rc)
        return rc;
    return removexattr(path.s, name) < 0 ? -errno : 0;
}
