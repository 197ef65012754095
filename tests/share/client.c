#include "client.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdarg.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/util.h"

void client_init(struct client *c)
{
    struct fuse_init_in in = {.major = 7,
                              .minor = 38,
                              .max_readahead = 1 << 20,
                              .flags = FUSE_MAX_PAGES | FUSE_DO_READDIRPLUS | FUSE_WRITEBACK_CACHE};

    assert_int_equal(client_call(c, FUSE_INIT, 0, &in, sizeof(in), NULL, 0), 0);
}

void client_open(struct client *c, bool readonly, unsigned fds)
{
    struct err e = {""};

    strcpy(c->top, "/tmp/ring3-share-XXXXXX");
    assert_non_null(mkdtemp(c->top));
    snprintf(c->dir, sizeof(c->dir), "%s/shared", c->top);
    assert_int_equal(mkdir(c->dir, 0755), 0);
    c->room = sizeof(c->out);
    c->piece = 4096;
    c->unique = 1;
    c->uid = geteuid();
    c->gid = getegid();
    host_write(c, "../secret", "secret");
    if (share_new(&c->s, &(struct share_cfg){c->dir, readonly, fds ? fds : 4096}, &e))
        fail_msg("%s", e.msg);
    client_init(c);
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    return remove(path);
}

void client_close(struct client *c)
{
    char command[100];

    share_free(c->s);
    /* The guest may have made directories that nobody can enter. */
    snprintf(command, sizeof(command), "chmod -R u+rwX %s", c->top);
    assert_int_equal(system(command), 0);
    assert_int_equal(nftw(c->top, remove_one, 16, FTW_DEPTH | FTW_PHYS), 0);
}

/* p[0..len) in pieces. */
static unsigned pieces(const struct client *c, void *p, size_t len, struct iovec *iov)
{
    unsigned n = 0;

    for (size_t at = 0; at < len; at += c->piece)
        iov[n++] = (struct iovec){(uint8_t *)p + at, MIN(c->piece, len - at)};
    return n;
}

int client_raw(struct client *c, const void *p, size_t len)
{
    static const struct iovec none;
    size_t max = MAX(len, c->room) / c->piece + 2;
    struct iovec *in = calloc(max, sizeof(none)), *out = calloc(max, sizeof(none));
    uint8_t *copy = malloc(len + 1), *answer = malloc(c->room + 1); /* for the sanitizer to watch */
    struct fuse_out_header head;

    memcpy(copy, p, len);
    size_t n = share_handle(c->s, in, pieces(c, copy, len, in), out, pieces(c, answer, c->room, out));
    int rc = 1;
    assert_true(n <= c->room);
    if (n) {
        assert_true(n >= sizeof(head));
        memcpy(&head, answer, sizeof(head));
        assert_int_equal(head.len, n);
        assert_true(head.error <= 0 && head.error > -512);
        if (head.error)
            assert_int_equal(n, sizeof(head));
        c->out_len = n - sizeof(head);
        memcpy(c->out, answer + sizeof(head), c->out_len);
        rc = head.error;
        if (len >= sizeof(struct fuse_in_header))
            assert_memory_equal(&head.unique, copy + offsetof(struct fuse_in_header, unique), 8);
    }
    free(in);
    free(out);
    free(copy);
    free(answer);
    return rc;
}

int client_call(struct client *c, uint32_t op, uint64_t node, const void *arg, size_t len, const void *more,
                size_t more_len)
{
    struct fuse_in_header h = {.len = (uint32_t)(sizeof(h) + len + more_len),
                               .opcode = op,
                               .unique = ++c->unique,
                               .nodeid = node,
                               .uid = c->uid,
                               .gid = c->gid};
    uint8_t *p = malloc(h.len);

    memcpy(p, &h, sizeof(h));
    if (len)
        memcpy(p + sizeof(h), arg, len);
    if (more_len)
        memcpy(p + sizeof(h) + len, more, more_len);
    int rc = client_raw(c, p, h.len);
    free(p);
    return rc;
}

static int entry(struct client *c, int rc, uint64_t *node)
{
    struct fuse_entry_out out;

    if (rc)
        return rc;
    assert_true(c->out_len >= sizeof(out));
    memcpy(&out, c->out, sizeof(out));
    assert_true(out.nodeid);
    if (node)
        *node = out.nodeid;
    return 0;
}

int client_lookup(struct client *c, uint64_t dir, const char *name, uint64_t *node)
{
    return entry(c, client_call(c, FUSE_LOOKUP, dir, name, strlen(name) + 1, NULL, 0), node);
}

int client_walk(struct client *c, const char *path, uint64_t *node)
{
    char copy[4096], *at = copy, *name;
    int rc = 0;

    strcpy(copy, path);
    *node = FUSE_ROOT_ID;
    while (!rc && (name = strsep(&at, "/")))
        rc = client_lookup(c, *node, name, node);
    return rc;
}

int client_forget(struct client *c, uint64_t node, uint64_t count)
{
    struct fuse_forget_in in = {.nlookup = count};

    return client_call(c, FUSE_FORGET, node, &in, sizeof(in), NULL, 0);
}

static int attr(struct client *c, int rc, struct fuse_attr *a)
{
    struct fuse_attr_out out;

    if (rc)
        return rc;
    assert_int_equal(c->out_len, sizeof(out));
    memcpy(&out, c->out, sizeof(out));
    if (a)
        *a = out.attr;
    return 0;
}

int client_getattr(struct client *c, uint64_t node, struct fuse_attr *a)
{
    struct fuse_getattr_in in = {0};

    return attr(c, client_call(c, FUSE_GETATTR, node, &in, sizeof(in), NULL, 0), a);
}

int client_setattr(struct client *c, uint64_t node, const struct fuse_setattr_in *in)
{
    return attr(c, client_call(c, FUSE_SETATTR, node, in, sizeof(*in), NULL, 0), NULL);
}

int client_mkdir(struct client *c, uint64_t dir, const char *name, uint32_t mode, uint64_t *node)
{
    struct fuse_mkdir_in in = {.mode = mode};

    return entry(c, client_call(c, FUSE_MKDIR, dir, &in, sizeof(in), name, strlen(name) + 1), node);
}

int client_mknod(struct client *c, uint64_t dir, const char *name, uint32_t mode, uint32_t rdev)
{
    struct fuse_mknod_in in = {.mode = mode, .rdev = rdev};

    return entry(c, client_call(c, FUSE_MKNOD, dir, &in, sizeof(in), name, strlen(name) + 1), NULL);
}

int client_symlink(struct client *c, uint64_t dir, const char *name, const char *target, uint64_t *node)
{
    return entry(c,
                 client_call(c, FUSE_SYMLINK, dir, name, strlen(name) + 1, target, strlen(target) + 1),
                 node);
}

int client_link(struct client *c, uint64_t node, uint64_t dir, const char *name)
{
    struct fuse_link_in in = {.oldnodeid = node};

    return entry(c, client_call(c, FUSE_LINK, dir, &in, sizeof(in), name, strlen(name) + 1), NULL);
}

int client_remove(struct client *c, uint32_t op, uint64_t dir, const char *name)
{
    return client_call(c, op, dir, name, strlen(name) + 1, NULL, 0);
}

int client_rename(struct client *c, uint64_t dir, const char *name, uint64_t newdir, const char *newname,
                  uint32_t flags)
{
    struct fuse_rename2_in in = {.newdir = newdir, .flags = flags};
    char names[600];
    size_t n = strlen(name) + 1;

    strcpy(names, name);
    strcpy(names + n, newname);
    return client_call(c, FUSE_RENAME2, dir, &in, sizeof(in), names, n + strlen(newname) + 1);
}

int client_create(struct client *c, uint64_t dir, const char *name, uint32_t flags, uint32_t mode, uint64_t *node,
                  uint64_t *fh)
{
    struct fuse_create_in in = {.flags = flags, .mode = S_IFREG | mode};
    struct fuse_open_out out;
    int rc = entry(c, client_call(c, FUSE_CREATE, dir, &in, sizeof(in), name, strlen(name) + 1), node);

    if (rc)
        return rc;
    assert_int_equal(c->out_len, sizeof(struct fuse_entry_out) + sizeof(out));
    memcpy(&out, c->out + sizeof(struct fuse_entry_out), sizeof(out));
    *fh = out.fh;
    return 0;
}

int client_open_file(struct client *c, uint32_t op, uint64_t node, uint32_t flags, uint64_t *fh)
{
    struct fuse_open_in in = {.flags = flags};
    struct fuse_open_out out;
    int rc = client_call(c, op, node, &in, sizeof(in), NULL, 0);

    if (rc)
        return rc;
    assert_int_equal(c->out_len, sizeof(out));
    memcpy(&out, c->out, sizeof(out));
    *fh = out.fh;
    return 0;
}

int client_release(struct client *c, uint32_t op, uint64_t node, uint64_t fh)
{
    struct fuse_release_in in = {.fh = fh};

    return client_call(c, op, node, &in, sizeof(in), NULL, 0);
}

int client_write(struct client *c, uint64_t node, uint64_t fh, uint64_t off, const void *p, uint32_t len)
{
    struct fuse_write_in in = {.fh = fh, .offset = off, .size = len};
    struct fuse_write_out out;
    int rc = client_call(c, FUSE_WRITE, node, &in, sizeof(in), p, len);

    if (rc)
        return rc;
    memcpy(&out, c->out, sizeof(out));
    return (int)out.size;
}

int client_read(struct client *c, uint64_t node, uint64_t fh, uint64_t off, uint32_t len)
{
    struct fuse_read_in in = {.fh = fh, .offset = off, .size = len};
    int rc = client_call(c, FUSE_READ, node, &in, sizeof(in), NULL, 0);

    return rc ? rc : (int)c->out_len;
}

/* ---- host side ---- */

void host_path(const struct client *c, const char *path, char *buf, size_t len)
{
    assert_true((size_t)snprintf(buf, len, "%s/%s", c->dir, path) < len);
}

void host_write(const struct client *c, const char *path, const char *text)
{
    char full[4096];
    host_path(c, path, full, sizeof(full));

    FILE *f = fopen(full, "w");
    assert_non_null(f);
    assert_int_equal(fputs(text, f) < 0, 0);
    assert_int_equal(fclose(f), 0);
}

bool host_has(const struct client *c, const char *path, const char *text)
{
    char full[4096], have[4096];
    host_path(c, path, full, sizeof(full));

    FILE *f = fopen(full, "r");
    if (!f)
        return false;
    size_t n = fread(have, 1, sizeof(have), f);
    fclose(f);
    return n == strlen(text) && !memcmp(have, text, n);
}
