/* FUSE requests about names: finding, making, moving and removing them. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "back/share/request.h"
#include "base/util.h"

/* The descriptor of the directory that a request names, once it is known that name may be in it. */
static int dir_of(struct request *r, struct node *dir, const char *name)
{
    int rc = request_name_check(name);

    return rc ? rc : request_dir_fd(r, dir);
}

int share_tree_lookup(struct request *r)
{
    const char *name = request_string(r, 0, 0);
    int rc = dir_of(r, r->node, name);

    return rc < 0 ? rc : request_entry_reply(r, r->node, name);
}

int share_tree_readlink(struct request *r)
{
    char *target = (char *)r->s->reply;
    int fd = request_fd(r, r->node);

    if (fd < 0)
        return fd;
    if (!S_ISLNK(r->node->key.type))
        return -EINVAL;
    ssize_t len = readlinkat(fd, "", target, PATH_MAX);
    return len < 0 ? -errno : request_reply(r, target, (size_t)len);
}

/* ---- making ---- */

/* The owner of what was just made as name, and the answer. */
static int made(struct request *r, int dirfd, const char *name)
{
    int fd = r->s->root ? node_open_child(dirfd, name) : -1, rc = 0;

    if (fd >= 0) {
        rc = request_own(r, dirfd, fd);
        close(fd);
    }
    return rc ? rc : request_entry_reply(r, r->node, name);
}

int share_tree_symlink(struct request *r)
{
    const char *name = request_string(r, 0, 0);
    const char *target = request_string(r, 0, 1);
    int dirfd = dir_of(r, r->node, name);

    if (dirfd < 0)
        return dirfd;
    /* Whatever it says, only the guest will follow it. */
    return symlinkat(target, dirfd, name) < 0 ? -errno : made(r, dirfd, name);
}

int share_tree_mknod(struct request *r)
{
    struct fuse_mknod_in in;
    const char *name = request_string(r, sizeof(in), 0);
    int dirfd = dir_of(r, r->node, name);

    if (dirfd < 0)
        return dirfd;
    memcpy(&in, r->arg, sizeof(in));

    mode_t type = in.mode & S_IFMT;
    if (type != 0 && type != S_IFREG && type != S_IFIFO && type != S_IFSOCK)
        return -EPERM;
    return mknodat(dirfd, name, type | (in.mode & 01777), 0) < 0 ? -errno : made(r, dirfd, name);
}

int share_tree_mkdir(struct request *r)
{
    struct fuse_mkdir_in in;
    const char *name = request_string(r, sizeof(in), 0);
    int dirfd = dir_of(r, r->node, name);

    if (dirfd < 0)
        return dirfd;
    memcpy(&in, r->arg, sizeof(in));
    return mkdirat(dirfd, name, in.mode & 01777) < 0 ? -errno : made(r, dirfd, name);
}

int share_tree_link(struct request *r)
{
    struct fuse_link_in in;
    const char *name = request_string(r, sizeof(in), 0);
    int dirfd = dir_of(r, r->node, name);

    if (dirfd < 0)
        return dirfd;
    memcpy(&in, r->arg, sizeof(in));

    struct node *n = node_get(&r->s->nodes, in.oldnodeid);
    int fd = n ? request_fd(r, n) : -ESTALE;
    if (fd < 0)
        return fd;
    /* Follows the link in /proc to what is open, which is not followed if it is one, too. */
    if (linkat(r->s->proc_fd, request_fd_path(fd).s, dirfd, name, AT_SYMLINK_FOLLOW) < 0)
        return -errno;
    return request_entry_reply(r, r->node, name);
}

/* ---- removing and moving ---- */

static int remove_name(struct request *r, int flags)
{
    const char *name = request_string(r, 0, 0);
    int dirfd = dir_of(r, r->node, name);

    if (dirfd < 0)
        return dirfd;
    return unlinkat(dirfd, name, flags) < 0 ? -errno : 0;
}

int share_tree_unlink(struct request *r) { return remove_name(r, 0); }

int share_tree_rmdir(struct request *r) { return remove_name(r, AT_REMOVEDIR); }

/* Which file is called so? False if none is. */
static bool key_at(int dirfd, const char *name, struct node_key *key)
{
    struct statx st;
    int fd = node_open_child(dirfd, name);

    if (fd < 0)
        return false;
    bool ok = node_stat(fd, &st) == 0;
    close(fd);
    if (ok)
        node_key_of(&st, key);
    return ok;
}

static int move(struct request *r, size_t fixed, uint64_t newdir, unsigned flags)
{
    const char *from = request_string(r, fixed, 0), *to = request_string(r, fixed, 1);
    struct nodes *t = &r->s->nodes;
    struct node *dir = node_get(t, newdir);
    struct node_key key;
    int fd = dir_of(r, r->node, from);
    int dirfd = fd < 0 ? fd : dir ? dir_of(r, dir, to) : -ESTALE;

    if (dirfd < 0)
        return dirfd;
    /* RENAME_WHITEOUT would make a device. */
    if (flags & ~(unsigned)(RENAME_NOREPLACE | RENAME_EXCHANGE))
        return -EINVAL;
    if (renameat2(fd, from, dirfd, to, flags) < 0)
        return -errno;
    if (key_at(dirfd, to, &key))
        node_moved(t, &key, dir, to);
    if (flags & RENAME_EXCHANGE && key_at(fd, from, &key))
        node_moved(t, &key, r->node, from);
    return 0;
}

int share_tree_rename(struct request *r)
{
    struct fuse_rename_in in;

    memcpy(&in, r->arg, sizeof(in));
    return move(r, sizeof(in), in.newdir, 0);
}

int share_tree_rename2(struct request *r)
{
    struct fuse_rename2_in in;

    memcpy(&in, r->arg, sizeof(in));
    return move(r, sizeof(in), in.newdir, in.flags);
}
