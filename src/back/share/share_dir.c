/* FUSE requests about open directories, and syncfs. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "back/share/request.h"
#include "base/util.h"

/* getdents64(2)'s. */
struct host_dirent {
    uint64_t ino;
    int64_t next; /* offset of the entry that follows */
    uint16_t len;
    uint8_t type;
    char name[];
};

int share_dir_open(struct request *r)
{
    int fd = request_dir_fd(r, r->node);

    if (fd < 0)
        return fd;
    fd = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    return request_opened(r, r->node, fd, O_RDONLY, true);
}

int share_dir_syncfs(struct request *r)
{
    int dirfd = request_dir_fd(r, r->s->nodes.root);
    int fd = dirfd < 0 ? -1 : openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int rc;

    if (fd < 0)
        return dirfd < 0 ? dirfd : -errno;
    rc = syncfs(fd) < 0 ? -errno : 0;
    close(fd);
    return rc;
}

/* ---- reading ---- */

static bool dots(const char *name) { return !strcmp(name, ".") || !strcmp(name, ".."); }

/* One entry of the answer, entry_out before it if plus. -ERANGE when it does not fit. */
static int reply_entry(struct request *r, const struct host_dirent *d, bool plus)
{
    static const uint8_t zero[8];
    struct fuse_entry_out entry = {0};
    struct node *n = NULL;
    size_t len = strlen(d->name);
    struct fuse_dirent out = {
        .ino = d->ino, .off = (uint64_t)d->next, .namelen = (uint32_t)len, .type = d->type};
    size_t pad = FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET + len) - FUSE_NAME_OFFSET - len;
    size_t all = (plus ? sizeof(entry) : 0) + FUSE_NAME_OFFSET + len + pad;

    if (all > r->out_max - r->out_len)
        return -ERANGE;
    /* The guest has no use for what is above the shared directory. */
    if (r->node == r->s->nodes.root && !strcmp(d->name, ".."))
        out.ino = r->node->key.ino;
    /* An entry that cannot be looked up, because it is gone again or a limit is reached, goes
     * without a node, as the dots do. */
    if (plus && !dots(d->name) && request_entry(r, r->node, d->name, &entry, &n))
        memset(&entry, 0, sizeof(entry));
    if (plus)
        request_reply(r, &entry, sizeof(entry));
    request_reply(r, &out, FUSE_NAME_OFFSET);
    request_reply(r, d->name, len);
    request_reply(r, zero, pad);
    return 0;
}

static int read_entries(struct request *r, bool plus)
{
    struct share *s = r->s;
    struct fuse_read_in in;

    memcpy(&in, r->arg, sizeof(in));
    struct handle *h = request_handle(r, in.fh, true);
    if (!h)
        return -EBADF;
    if (in.offset != h->pos) {
        if (lseek(h->fd, (off_t)in.offset, SEEK_SET) < 0)
            return -errno;
        h->pos = in.offset;
    }
    r->out_max = MIN(r->out_max, in.size);
    /* Entries are longer in the answer than here: do not read what will not fit. */
    long got = syscall(SYS_getdents64, h->fd, s->dirents,
                       MIN(sizeof(s->dirents), MAX(r->out_max, sizeof(struct host_dirent) + 256)));
    if (got < 0)
        return -errno;
    for (long at = 0; at < got;) {
        const struct host_dirent *d = (const struct host_dirent *)(s->dirents + at);

        if (reply_entry(r, d, plus)) {
            /* The rest is read again next time. */
            if (lseek(h->fd, (off_t)h->pos, SEEK_SET) < 0)
                return -errno;
            return r->out_len ? 0 : -EINVAL;
        }
        h->pos = (uint64_t)d->next;
        at += d->len;
    }
    return 0;
}

int share_dir_read(struct request *r) { return read_entries(r, false); }

int share_dir_readplus(struct request *r) { return read_entries(r, true); }
