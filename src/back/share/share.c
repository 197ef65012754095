#include "back/share/share.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "back/share/request.h"
#include "base/util.h"

#define FUSE_MINOR_MIN                                                        \
    31u /* the first with virtio-fs; every reply is as long as then or longer \
         */
/* What of linux/fuse.h is implemented here. */
#define OUR_MINOR 34u
#define OUR_FLAGS                                                                          \
    (FUSE_ASYNC_READ | FUSE_ATOMIC_O_TRUNC | FUSE_BIG_WRITES | FUSE_AUTO_INVAL_DATA |      \
     FUSE_DO_READDIRPLUS | FUSE_READDIRPLUS_AUTO | FUSE_ASYNC_DIO | FUSE_PARALLEL_DIROPS | \
     FUSE_MAX_PAGES | FUSE_HANDLE_KILLPRIV_V2)

/* ---- life ---- */

int share_new(struct share **out, const struct share_cfg *cfg, struct err *e)
{
    struct share *s = calloc(1, sizeof(*s));
    int fd = -1, rc;

    if (!s)
        return err_set(e, ENOMEM, "out of memory");
    s->readonly = cfg->readonly;
    s->root = geteuid() == 0;
    s->handles.max = MAX(cfg->fds, SHARE_FDS_MIN) / 2;
    s->proc_fd = open("/proc/self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (s->proc_fd < 0) {
        rc = err_sys(e, "cannot open /proc/self/fd, which sharing needs");
        goto fail;
    }
    /* Opened for reading first, to say now rather than later that it cannot be. */
    fd = open(cfg->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        rc = err_sys(e, "cannot open the directory %s", cfg->dir);
        goto fail;
    }

    int path = openat(fd, ".", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (path < 0) {
        rc = err_sys(e, "cannot enter the directory %s", cfg->dir);
        goto fail;
    }
    close(fd);
    fd = path;
    rc = nodes_init(&s->nodes, fd, MAX(cfg->fds, SHARE_FDS_MIN) / 2, SHARE_NODE_BYTES);
    if (rc) {
        err_set(e, -rc, "cannot share the directory %s: %s", cfg->dir, strerror(-rc));
        goto fail;
    }
    *out = s;
    return 0;

fail:
    if (fd >= 0)
        close(fd);
    if (s->proc_fd >= 0)
        close(s->proc_fd);
    free(s);
    return rc;
}

void share_reset(struct share *s)
{
    handles_clear(&s->handles);
    nodes_clear(&s->nodes);
    s->started = false;
}

void share_free(struct share *s)
{
    if (!s)
        return;
    share_reset(s);
    handles_fini(&s->handles);
    nodes_fini(&s->nodes);
    close(s->proc_fd);
    free(s);
}

/* ---- operations on the session ---- */

static int session_init(struct request *r)
{
    struct fuse_init_in in = {0};
    struct fuse_init_out out = {.major = FUSE_KERNEL_VERSION, .minor = OUR_MINOR};

    memcpy(&in, r->arg, MIN(r->len, sizeof(in)));
    if (in.major > FUSE_KERNEL_VERSION) /* it will ask again with ours */
        return request_reply(r, &out, sizeof(out));
    if (in.major < FUSE_KERNEL_VERSION || in.minor < FUSE_MINOR_MIN)
        return -EPROTO;
    share_reset(r->s);
    out.max_readahead = MIN(in.max_readahead, SHARE_IO_MAX);
    out.flags = in.flags & OUR_FLAGS;
    out.max_background = 64;
    out.congestion_threshold = 48;
    out.max_write = SHARE_IO_MAX;
    out.max_pages = SHARE_IO_MAX / PAGE_SIZE;
    out.time_gran = 1;
    r->s->started = true;
    return request_reply(r, &out, sizeof(out));
}

static int session_destroy(struct request *r)
{
    share_reset(r->s);
    return 0;
}

static void forget(struct share *s, uint64_t id, uint64_t count)
{
    struct node *n = node_get(&s->nodes, id);

    if (n)
        node_forget(&s->nodes, n, count);
}

static int session_forget(struct request *r)
{
    struct fuse_forget_in in;

    memcpy(&in, r->arg, sizeof(in));
    forget(r->s, r->h.nodeid, in.nlookup);
    return 0;
}

static int session_batch_forget(struct request *r)
{
    struct fuse_batch_forget_in in;
    struct fuse_forget_one one;

    memcpy(&in, r->arg, sizeof(in));
    for (size_t at = sizeof(in); in.count && r->len - at >= sizeof(one); at += sizeof(one)) {
        memcpy(&one, r->arg + at, sizeof(one));
        forget(r->s, one.nodeid, one.nlookup);
        in.count--;
    }
    return 0;
}

/* ---- the table ---- */

enum {
    OP_CHANGES = BIT(0), /* the file system: refused if that is read-only */
    OP_SESSION = BIT(1), /* not about a node, or one that may be unknown */
    OP_SILENT = BIT(2),  /* has no answer */
    OP_DATA = BIT(3),    /* what follows the fixed part stays in the guest's memory */
};

struct op {
    request_fn *fn;
    uint16_t fixed;  /* bytes of the argument's fixed part */
    uint8_t strings; /* NUL-terminated names behind it */
    uint8_t flags;
};

static const struct op ops[] = {
    [FUSE_LOOKUP] = {share_tree_lookup, 0, 1},
    [FUSE_FORGET] = {session_forget, sizeof(struct fuse_forget_in), 0, OP_SESSION | OP_SILENT},
    [FUSE_GETATTR] = {share_attr_getattr, sizeof(struct fuse_getattr_in)},
    [FUSE_SETATTR] = {share_attr_setattr, sizeof(struct fuse_setattr_in), 0, OP_CHANGES},
    [FUSE_READLINK] = {share_tree_readlink},
    [FUSE_SYMLINK] = {share_tree_symlink, 0, 2, OP_CHANGES},
    [FUSE_MKNOD] = {share_tree_mknod, sizeof(struct fuse_mknod_in), 1, OP_CHANGES},
    [FUSE_MKDIR] = {share_tree_mkdir, sizeof(struct fuse_mkdir_in), 1, OP_CHANGES},
    [FUSE_UNLINK] = {share_tree_unlink, 0, 1, OP_CHANGES},
    [FUSE_RMDIR] = {share_tree_rmdir, 0, 1, OP_CHANGES},
    [FUSE_RENAME] = {share_tree_rename, sizeof(struct fuse_rename_in), 2, OP_CHANGES},
    [FUSE_LINK] = {share_tree_link, sizeof(struct fuse_link_in), 1, OP_CHANGES},
    [FUSE_OPEN] = {share_file_open, sizeof(struct fuse_open_in)},
    [FUSE_READ] = {share_file_read, sizeof(struct fuse_read_in)},
    [FUSE_WRITE] = {share_file_write, sizeof(struct fuse_write_in), 0, OP_CHANGES | OP_DATA},
    [FUSE_STATFS] = {share_attr_statfs},
    [FUSE_RELEASE] = {share_open_release, sizeof(struct fuse_release_in)},
    [FUSE_FSYNC] = {share_open_fsync, sizeof(struct fuse_fsync_in)},
    [FUSE_SETXATTR] = {share_attr_setxattr, FUSE_COMPAT_SETXATTR_IN_SIZE, 1, OP_CHANGES},
    [FUSE_GETXATTR] = {share_attr_getxattr, sizeof(struct fuse_getxattr_in), 1},
    [FUSE_LISTXATTR] = {share_attr_listxattr, sizeof(struct fuse_getxattr_in)},
    [FUSE_REMOVEXATTR] = {share_attr_removexattr, 0, 1, OP_CHANGES},
    [FUSE_FLUSH] = {share_file_flush, sizeof(struct fuse_flush_in)},
    [FUSE_INIT] = {session_init, offsetof(struct fuse_init_in, flags2), 0, OP_SESSION},
    [FUSE_OPENDIR] = {share_dir_open, sizeof(struct fuse_open_in)},
    [FUSE_READDIR] = {share_dir_read, sizeof(struct fuse_read_in)},
    [FUSE_RELEASEDIR] = {share_open_release, sizeof(struct fuse_release_in)},
    [FUSE_FSYNCDIR] = {share_open_fsync, sizeof(struct fuse_fsync_in)},
    [FUSE_CREATE] = {share_file_create, sizeof(struct fuse_create_in), 1, OP_CHANGES},
    [FUSE_DESTROY] = {session_destroy, 0, 0, OP_SESSION},
    [FUSE_BATCH_FORGET] = {session_batch_forget, sizeof(struct fuse_batch_forget_in), 0,
                           OP_SESSION | OP_SILENT},
    [FUSE_FALLOCATE] = {share_file_fallocate, sizeof(struct fuse_fallocate_in), 0, OP_CHANGES},
    [FUSE_READDIRPLUS] = {share_dir_readplus, sizeof(struct fuse_read_in)},
    [FUSE_RENAME2] = {share_tree_rename2, sizeof(struct fuse_rename2_in), 2, OP_CHANGES},
    [FUSE_LSEEK] = {share_file_lseek, sizeof(struct fuse_lseek_in)},
    [FUSE_COPY_FILE_RANGE] = {share_file_copy_range, sizeof(struct fuse_copy_file_range_in), 0,
                              OP_CHANGES},
    [FUSE_SYNCFS] = {share_dir_syncfs, sizeof(struct fuse_syncfs_in)},
};

/* ---- one request ---- */

static size_t iov_len(const struct iovec *iov, unsigned n)
{
    size_t len = 0;

    for (unsigned i = 0; i < n; i++)
        len += iov[i].iov_len;
    return len;
}

/* Copies len bytes from off on between buf and what iov describes, which has them. */
static void iov_copy(const struct iovec *iov, size_t off, void *buf, size_t len, bool to_iov)
{
    uint8_t *p = buf;

    for (; len; iov++) {
        if (off >= iov->iov_len) {
            off -= iov->iov_len;
            continue;
        }
        size_t n = MIN(len, iov->iov_len - off);
        uint8_t *at = (uint8_t *)iov->iov_base + off;

        memcpy(to_iov ? at : p, to_iov ? p : at, n);
        p += n;
        len -= n;
        off = 0;
    }
}

int request_reply(struct request *r, const void *p, size_t len)
{
    if (len > r->out_max - r->out_len)
        return -ERANGE;
    iov_copy(r->out, sizeof(struct fuse_out_header) + r->out_len, (void *)p, len, true);
    r->out_len += len;
    return 0;
}

const char *request_string(const struct request *r, size_t fixed, unsigned i)
{
    const char *s = (const char *)r->arg + fixed;

    while (i--)
        s += strlen(s) + 1;
    return s;
}

int request_name_check(const char *name)
{
    size_t len = strlen(name);

    if (len > NODE_NAME_MAX)
        return -ENAMETOOLONG;
    return !len || !strcmp(name, ".") || !strcmp(name, "..") || strchr(name, '/') ? -EINVAL : 0;
}

/* Are there that many strings behind the fixed part? */
static bool strings_complete(const struct request *r, const struct op *op)
{
    size_t at = op->fixed;

    for (unsigned i = 0; i < op->strings; i++) {
        const uint8_t *end = memchr(r->arg + at, 0, r->len - at);

        if (!end)
            return false;
        at = (size_t)(end - r->arg) + 1;
    }
    return true;
}

static int run(struct request *r, const struct op *op)
{
    struct share *s = r->s;

    if (!op->fn)
        return -ENOSYS;
    if (r->h.len < sizeof(r->h) || r->h.len > r->in_len)
        return -EINVAL;
    r->len = r->h.len - sizeof(r->h);
    if (op->flags & OP_DATA)
        r->len = MIN(r->len, op->fixed);
    if (r->len > SHARE_ARG_MAX)
        return -E2BIG;
    if (r->len < op->fixed)
        return -EINVAL;
    iov_copy(r->in, sizeof(r->h), s->arg, r->len, false);
    r->arg = s->arg;
    if (!strings_complete(r, op))
        return -EINVAL;
    if (!s->started && op->fn != session_init)
        return -EIO;
    if ((op->flags & OP_CHANGES) && s->readonly)
        return -EROFS;
    if (!(op->flags & OP_SESSION)) {
        r->node = node_get(&s->nodes, r->h.nodeid);
        if (!r->node)
            return -ESTALE;
    }
    return op->fn(r);
}

size_t share_handle(struct share *s, const struct iovec *in, unsigned nin, const struct iovec *out,
                    unsigned nout)
{
    static const struct op unknown;
    struct request r = {
        .s = s, .in = in, .nin = nin, .in_len = iov_len(in, nin), .out = out, .nout = nout};
    struct fuse_out_header head;
    size_t room = iov_len(out, nout);

    if (r.in_len < sizeof(r.h))
        return 0;
    iov_copy(in, 0, &r.h, sizeof(r.h), false);
    r.out_max = room < sizeof(head) ? 0 : room - sizeof(head);

    const struct op *op = r.h.opcode < ARRAY_LEN(ops) ? &ops[r.h.opcode] : &unknown;
    int rc = run(&r, op);

    for (unsigned i = 0; i < r.npins; i++)
        node_unpin(&s->nodes, r.pin[i]);
    if (op->flags & OP_SILENT || room < sizeof(head))
        return 0;
    head.error = rc;
    head.unique = r.h.unique;
    head.len = (uint32_t)(sizeof(head) + (rc ? 0 : r.out_len));
    iov_copy(out, 0, &head, sizeof(head), true);
    return head.len;
}

/* ---- what handlers share ---- */

int request_fd(struct request *r, struct node *n)
{
    int fd = node_fd(&r->s->nodes, n);

    if (fd < 0)
        return fd;
    for (unsigned i = 0; i < r->npins; i++) {
        if (r->pin[i] == n) { /* once is enough */
            node_unpin(&r->s->nodes, n);
            return fd;
        }
    }
    assert(r->npins < SHARE_PINS);
    r->pin[r->npins++] = n;
    return fd;
}

int request_dir_fd(struct request *r, struct node *n)
{
    return S_ISDIR(n->key.type) ? request_fd(r, n) : -ENOTDIR;
}

struct fd_path request_fd_path(int fd)
{
    struct fd_path p;

    snprintf(p.s, sizeof(p.s), "%d", fd);
    return p;
}

int request_open(struct request *r, struct node *n, int flags)
{
    int fd = request_fd(r, n);

    if (fd < 0)
        return fd;
    /* Anything else would be a device, or block us. */
    if (!S_ISREG(n->key.type))
        return S_ISDIR(n->key.type) ? -EISDIR : -ENXIO;
    fd = openat(r->s->proc_fd, request_fd_path(fd).s, flags | O_CLOEXEC | O_NOCTTY);
    return fd < 0 ? -errno : fd;
}

void request_attr(const struct statx *st, struct fuse_attr *a)
{
    *a = (struct fuse_attr){
        .ino = st->stx_ino,
        .size = st->stx_size,
        .blocks = st->stx_blocks,
        .atime = (uint64_t)st->stx_atime.tv_sec,
        .mtime = (uint64_t)st->stx_mtime.tv_sec,
        .ctime = (uint64_t)st->stx_ctime.tv_sec,
        .atimensec = st->stx_atime.tv_nsec,
        .mtimensec = st->stx_mtime.tv_nsec,
        .ctimensec = st->stx_ctime.tv_nsec,
        .mode = st->stx_mode,
        .nlink = st->stx_nlink,
        .uid = st->stx_uid,
        .gid = st->stx_gid,
        /* The kernel's own encoding of 32 bits. */
        .rdev = (st->stx_rdev_minor & 0xff) | st->stx_rdev_major << 8 |
                (st->stx_rdev_minor & ~0xffu) << 12,
        .blksize = st->stx_blksize,
    };
}

int request_entry(struct request *r, struct node *dir, const char *name, struct fuse_entry_out *out,
                  struct node **found)
{
    struct statx st;
    int dirfd = request_dir_fd(r, dir);

    if (dirfd < 0)
        return dirfd;

    int fd = node_open_child(dirfd, name);
    if (fd < 0)
        return fd;

    int rc = node_stat(fd, &st);
    if (rc) {
        close(fd);
        return rc;
    }
    rc = node_found(&r->s->nodes, dir, name, fd, &st, found);
    if (rc)
        return rc;
    *out = (struct fuse_entry_out){
        .nodeid = (*found)->id, .entry_valid = SHARE_VALID_S, .attr_valid = SHARE_VALID_S};
    request_attr(&st, &out->attr);
    node_ref(*found);
    return 0;
}

int request_entry_reply(struct request *r, struct node *dir, const char *name)
{
    struct fuse_entry_out out;
    struct node *n;
    int rc = request_entry(r, dir, name, &out, &n);

    if (rc)
        return rc;
    rc = request_reply(r, &out, sizeof(out));
    if (rc)
        node_forget(&r->s->nodes, n, 1);
    return rc;
}

int request_own(struct request *r, int dirfd, int fd)
{
    struct statx dir;

    if (!r->s->root)
        return 0;

    int rc = node_stat(dirfd, &dir);
    if (rc)
        return rc;
    /* A set-group-ID directory gave its own group. */
    gid_t gid = dir.stx_mode & S_ISGID ? (gid_t)-1 : r->h.gid;
    return fchownat(fd, "", r->h.uid, gid, AT_EMPTY_PATH) < 0 ? -errno : 0;
}
