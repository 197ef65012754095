/* What a share does for a guest that keeps the rules. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdarg.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "base/util.h"
#include "client.h"

static struct client *begin(bool readonly, unsigned fds)
{
    struct client *c = calloc(1, sizeof(*c));

    assert_non_null(c);
    client_open(c, readonly, fds);
    return c;
}

static void end(struct client *c)
{
    client_close(c);
    free(c);
}

static void test_init(void **state)
{
    struct client *c = begin(false, 0);
    struct fuse_init_out out;
    struct fuse_init_in in = {.major = 7, .minor = 38, .max_readahead = 4 << 20, .flags = ~0u};

    assert_int_equal(client_call(c, FUSE_INIT, 0, &in, sizeof(in), NULL, 0), 0);
    assert_int_equal(c->out_len, sizeof(out));
    memcpy(&out, c->out, sizeof(out));
    assert_int_equal(out.major, 7);
    assert_true(out.minor <= 38 && out.minor >= 31);
    assert_int_equal(out.max_write, SHARE_IO_MAX);
    assert_int_equal(out.max_pages * 4096u, SHARE_IO_MAX);
    assert_true(out.max_readahead <= SHARE_IO_MAX);
    /* Not with a cache that hides from the host what the guest wrote, nor with locks or ACLs. */
    assert_int_equal(out.flags & (FUSE_WRITEBACK_CACHE | FUSE_POSIX_LOCKS | FUSE_FLOCK_LOCKS | FUSE_POSIX_ACL |
                                  FUSE_INIT_EXT | FUSE_EXPORT_SUPPORT),
                     0);
    assert_true(out.flags & FUSE_DO_READDIRPLUS);

    in.flags = 0; /* nothing that was not offered */
    assert_int_equal(client_call(c, FUSE_INIT, 0, &in, sizeof(in), NULL, 0), 0);
    memcpy(&out, c->out, sizeof(out));
    assert_int_equal(out.flags, 0);

    in.major = 8; /* told ours, and asked again */
    assert_int_equal(client_call(c, FUSE_INIT, 0, &in, sizeof(in), NULL, 0), 0);
    memcpy(&out, c->out, sizeof(out));
    assert_int_equal(out.major, 7);
    in.major = 6;
    assert_int_equal(client_call(c, FUSE_INIT, 0, &in, sizeof(in), NULL, 0), -EPROTO);
    in = (struct fuse_init_in){.major = 7, .minor = 30};
    assert_int_equal(client_call(c, FUSE_INIT, 0, &in, sizeof(in), NULL, 0), -EPROTO);

    share_reset(c->s);
    assert_int_equal(client_getattr(c, FUSE_ROOT_ID, NULL), -EIO); /* first INIT */
    end(c);
}

static void test_files(void **state)
{
    struct client *c = begin(false, 0);
    uint64_t node, fh, again;
    struct fuse_attr a;

    assert_int_equal(client_lookup(c, FUSE_ROOT_ID, "f", &node), -ENOENT);
    assert_int_equal(client_create(c, FUSE_ROOT_ID, "f", O_RDWR, 0640, &node, &fh), 0);
    assert_int_equal(client_write(c, node, fh, 0, "hello", 5), 5);
    assert_int_equal(client_write(c, node, fh, 7, "world", 5), 5);
    assert_int_equal(client_read(c, node, fh, 0, 100), 12);
    assert_memory_equal(c->out, "hello\0\0world", 12);
    assert_int_equal(client_read(c, node, fh, 11, 100), 1);
    assert_int_equal(client_read(c, node, fh, 12, 100), 0);
    assert_int_equal(client_read(c, node, fh, 1 << 20, 100), 0);
    assert_int_equal(client_getattr(c, node, &a), 0);
    assert_int_equal(a.size, 12);
    assert_int_equal(a.mode, S_IFREG | 0640);
    assert_int_equal(a.nlink, 1);
    assert_int_equal(client_lookup(c, FUSE_ROOT_ID, "f", &again), 0);
    assert_true(again == node);

    struct fuse_fsync_in sync = {.fh = fh};
    assert_int_equal(client_call(c, FUSE_FSYNC, node, &sync, sizeof(sync), NULL, 0), 0);
    struct fuse_flush_in flush = {.fh = fh};
    assert_int_equal(client_call(c, FUSE_FLUSH, node, &flush, sizeof(flush), NULL, 0), 0);
    assert_int_equal(client_release(c, FUSE_RELEASE, node, fh), 0);
    assert_int_equal(client_release(c, FUSE_RELEASE, node, fh), -EBADF);
    assert_int_equal(client_read(c, node, fh, 0, 1), -EBADF);

    /* An old one: opened, cut if asked, refused with O_EXCL. */
    assert_int_equal(client_create(c, FUSE_ROOT_ID, "f", O_RDWR | O_EXCL, 0600, &again, &fh), -EEXIST);
    assert_int_equal(client_create(c, FUSE_ROOT_ID, "f", O_RDONLY, 0600, &again, &fh), 0);
    assert_true(again == node);
    assert_int_equal(client_read(c, node, fh, 0, 5), 5);
    assert_int_equal(client_write(c, node, fh, 0, "x", 1), -EBADF);
    assert_int_equal(client_open_file(c, FUSE_OPEN, node, O_WRONLY | O_TRUNC, &fh), 0);
    assert_int_equal(client_getattr(c, node, &a), 0);
    assert_int_equal(a.size, 0);
    assert_int_equal(a.mode, S_IFREG | 0640);

    /* Appending, whoever else does. */
    assert_int_equal(client_open_file(c, FUSE_OPEN, node, O_WRONLY | O_APPEND, &fh), 0);
    host_write(c, "f", "host");
    assert_int_equal(client_write(c, node, fh, 0, "guest", 5), 5);
    assert_true(host_has(c, "f", "hostguest"));
    end(c);
}

/* As large as agreed, and in pieces of any size. */
static void test_large(void **state)
{
    struct client *c = begin(false, 0);
    static const size_t sizes[] = {1, 7, 100, 4096, 65536, SHARE_IO_MAX * 2};
    uint8_t *data = malloc(SHARE_IO_MAX);
    uint64_t node, fh;

    for (size_t i = 0; i < SHARE_IO_MAX; i++)
        data[i] = (uint8_t)(i * 7 + i / 251);
    assert_int_equal(client_create(c, FUSE_ROOT_ID, "f", O_RDWR, 0600, &node, &fh), 0);
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
        c->piece = sizes[i];
        uint32_t len = i < 2 ? 10000 : SHARE_IO_MAX;

        assert_int_equal(client_write(c, node, fh, i, data, len), len);
        memset(c->out, 0, len);
        assert_int_equal(client_read(c, node, fh, i, len), len);
        assert_memory_equal(c->out, data, len);
    }
    c->piece = 4096;
    assert_int_equal(client_write(c, node, fh, 0, data, SHARE_IO_MAX), SHARE_IO_MAX);
    /* No longer than the guest has room for. */
    c->room = sizeof(struct fuse_out_header) + 10;
    assert_int_equal(client_read(c, node, fh, 0, 4096), 10);
    c->room = sizeof(c->out);
    /* Offsets beyond any file. */
    assert_int_equal(client_read(c, node, fh, UINT64_MAX, 1), -EINVAL);
    assert_int_equal(client_write(c, node, fh, INT64_MAX, "x", 1), -EINVAL);
    free(data);
    end(c);
}

static void test_attributes(void **state)
{
    struct client *c = begin(false, 0);
    struct fuse_setattr_in in;
    struct fuse_attr a;
    uint64_t node, fh, link;

    assert_int_equal(client_create(c, FUSE_ROOT_ID, "f", O_RDWR, 0600, &node, &fh), 0);
    in = (struct fuse_setattr_in){.valid = FATTR_SIZE | FATTR_FH, .fh = fh, .size = 5000};
    assert_int_equal(client_setattr(c, node, &in), 0);
    in = (struct fuse_setattr_in){.valid = FATTR_MODE | FATTR_SIZE | FATTR_ATIME | FATTR_MTIME,
                                  .mode = 0751,
                                  .size = 1000,
                                  .atime = 1000000,
                                  .atimensec = 5,
                                  .mtime = 2000000,
                                  .mtimensec = 6};
    assert_int_equal(client_setattr(c, node, &in), 0);
    assert_int_equal(client_getattr(c, node, &a), 0);
    assert_int_equal(a.size, 1000);
    assert_int_equal(a.mode, S_IFREG | 0751);
    assert_int_equal(a.atime, 1000000);
    assert_int_equal(a.atimensec, 5);
    assert_int_equal(a.mtime, 2000000);
    assert_int_equal(a.mtimensec, 6);
    in = (struct fuse_setattr_in){.valid = FATTR_MTIME | FATTR_MTIME_NOW};
    assert_int_equal(client_setattr(c, node, &in), 0);
    assert_int_equal(client_getattr(c, node, &a), 0);
    assert_int_equal(a.atime, 1000000);
    assert_true(a.mtime > 1600000000);
    in = (struct fuse_setattr_in){.valid = FATTR_UID | FATTR_GID, .uid = a.uid, .gid = a.gid};
    assert_int_equal(client_setattr(c, node, &in), 0);
    in = (struct fuse_setattr_in){.valid = FATTR_SIZE, .size = UINT64_MAX};
    assert_int_equal(client_setattr(c, node, &in), -EFBIG);
    in = (struct fuse_setattr_in){.valid = FATTR_SIZE | FATTR_FH, .fh = 77};
    assert_int_equal(client_setattr(c, node, &in), -EBADF);

    /* A link is changed itself, not what it points to. */
    assert_int_equal(client_symlink(c, FUSE_ROOT_ID, "l", "f", &link), 0);
    in = (struct fuse_setattr_in){.valid = FATTR_MTIME, .mtime = 42};
    assert_int_equal(client_setattr(c, link, &in), 0);
    assert_int_equal(client_getattr(c, link, &a), 0);
    assert_int_equal(a.mtime, 42);
    assert_true(S_ISLNK(a.mode));
    assert_int_equal(client_getattr(c, node, &a), 0);
    assert_int_not_equal(a.mtime, 42);
    in = (struct fuse_setattr_in){.valid = FATTR_MODE, .mode = 0777};
    assert_int_equal(client_setattr(c, link, &in), -EOPNOTSUPP);

    assert_int_equal(client_call(c, FUSE_STATFS, FUSE_ROOT_ID, NULL, 0, NULL, 0), 0);
    struct fuse_statfs_out fs;
    memcpy(&fs, c->out, sizeof(fs));
    assert_true(fs.st.blocks > 0 && fs.st.bsize >= 512 && fs.st.namelen <= 255);
    end(c);
}

static void test_names(void **state)
{
    struct client *c = begin(false, 0);
    uint64_t dir, dir2, node, fh, other;
    struct fuse_attr a;

    assert_int_equal(client_mkdir(c, FUSE_ROOT_ID, "d", 0755, &dir), 0);
    assert_int_equal(client_mkdir(c, FUSE_ROOT_ID, "d", 0755, NULL), -EEXIST);
    assert_int_equal(client_mkdir(c, FUSE_ROOT_ID, "e", 0755, &dir2), 0);
    assert_int_equal(client_create(c, dir, "f", O_RDWR, 0600, &node, &fh), 0);
    assert_int_equal(client_write(c, node, fh, 0, "text", 4), 4);
    assert_int_equal(client_release(c, FUSE_RELEASE, node, fh), 0);
    assert_int_equal(client_link(c, node, dir2, "g"), 0);
    assert_int_equal(client_getattr(c, node, &a), 0);
    assert_int_equal(a.nlink, 2);
    assert_true(host_has(c, "e/g", "text"));

    assert_int_equal(client_rename(c, dir, "f", dir2, "h", 0), 0);
    assert_int_equal(client_lookup(c, dir, "f", &other), -ENOENT);
    assert_int_equal(client_lookup(c, dir2, "h", &other), 0);
    assert_true(other == node);
    assert_int_equal(client_rename(c, dir2, "h", dir2, "g", RENAME_NOREPLACE), -EEXIST);
    assert_int_equal(client_rename(c, dir2, "h", dir2, "w", RENAME_WHITEOUT), -EINVAL);
    assert_int_equal(client_rename(c, FUSE_ROOT_ID, "d", FUSE_ROOT_ID, "e", RENAME_EXCHANGE), 0);
    assert_true(host_has(c, "d/h", "text"));
    assert_int_equal(client_getattr(c, node, &a), 0);
    assert_int_equal(client_rename(c, FUSE_ROOT_ID, "nothing", dir, "x", 0), -ENOENT);
    assert_int_equal(client_rename(c, FUSE_ROOT_ID, "d", 999, "x", 0), -ESTALE);
    assert_int_equal(client_rename(c, FUSE_ROOT_ID, "d", dir2, "below", 0), -EINVAL);

    assert_int_equal(client_remove(c, FUSE_RMDIR, FUSE_ROOT_ID, "d"), -ENOTEMPTY);
    assert_int_equal(client_remove(c, FUSE_UNLINK, FUSE_ROOT_ID, "d"), -EISDIR);
    assert_int_equal(client_remove(c, FUSE_RMDIR, dir2, "g"), -ENOTDIR);
    assert_int_equal(client_remove(c, FUSE_UNLINK, dir2, "g"), 0);
    assert_int_equal(client_remove(c, FUSE_UNLINK, dir2, "h"), 0);
    assert_int_equal(client_remove(c, FUSE_RMDIR, FUSE_ROOT_ID, "d"), 0);
    assert_int_equal(client_lookup(c, FUSE_ROOT_ID, "d", &other), -ENOENT);

    assert_int_equal(client_mknod(c, FUSE_ROOT_ID, "fifo", S_IFIFO | 0644, 0), 0);
    assert_int_equal(client_mknod(c, FUSE_ROOT_ID, "sock", S_IFSOCK | 0644, 0), 0);
    assert_int_equal(client_mknod(c, FUSE_ROOT_ID, "plain", S_IFREG | 0644, 0), 0);
    assert_int_equal(client_walk(c, "fifo", &node), 0);
    assert_int_equal(client_open_file(c, FUSE_OPEN, node, O_RDONLY, &fh), -ENXIO); /* the guest's own affair */
    assert_int_equal(client_symlink(c, FUSE_ROOT_ID, "l", "some/where", &node), 0);
    assert_int_equal(client_call(c, FUSE_READLINK, node, NULL, 0, NULL, 0), 0);
    assert_int_equal(c->out_len, 10);
    assert_memory_equal(c->out, "some/where", 10);
    assert_int_equal(client_call(c, FUSE_READLINK, FUSE_ROOT_ID, NULL, 0, NULL, 0), -EINVAL);
    end(c);
}

/* A file that has no name any more is there until it is closed. */
static void test_unlinked(void **state)
{
    struct client *c = begin(false, SHARE_FDS_MIN);
    uint64_t node, fh, other, fh2;
    struct fuse_attr a;
    char name[16];

    assert_int_equal(client_create(c, FUSE_ROOT_ID, "f", O_RDWR, 0600, &node, &fh), 0);
    assert_int_equal(client_remove(c, FUSE_UNLINK, FUSE_ROOT_ID, "f"), 0);
    /* Other files take the descriptors that are only kept for speed. */
    for (int i = 0; i < 200; i++) {
        snprintf(name, sizeof(name), "n%d", i);
        assert_int_equal(client_mknod(c, FUSE_ROOT_ID, name, S_IFREG | 0600, 0), 0);
    }
    assert_int_equal(client_write(c, node, fh, 0, "abc", 3), 3);
    assert_int_equal(client_getattr(c, node, &a), 0);
    assert_int_equal(a.nlink, 0);
    assert_int_equal(a.size, 3);
    assert_int_equal(client_setattr(c, node, &(struct fuse_setattr_in){.valid = FATTR_SIZE, .size = 1}), 0);
    assert_int_equal(client_open_file(c, FUSE_OPEN, node, O_RDONLY, &fh2), 0);
    assert_int_equal(client_read(c, node, fh2, 0, 10), 1);
    assert_int_equal(client_create(c, FUSE_ROOT_ID, "f", O_RDWR, 0600, &other, &fh2), 0);
    assert_true(other != node);
    end(c);
}

/* Many more files than descriptors, at any depth, all within reach again. */
static void test_descriptors(void **state)
{
    struct client *c = begin(false, SHARE_FDS_MIN);
    uint64_t dir[100], node[100], fh[100];
    struct fuse_attr a;
    char text[16];
    uint64_t at = FUSE_ROOT_ID;

    for (int i = 0; i < 100; i++) {
        assert_int_equal(client_mkdir(c, at, "d", 0755, &dir[i]), 0);
        at = dir[i];
    }
    for (int i = 0; i < 100; i++) {
        assert_int_equal(client_create(c, dir[i], "f", O_RDWR, 0600, &node[i], &fh[i]), 0);
        snprintf(text, sizeof(text), "%d", i);
        assert_int_equal(client_write(c, node[i], fh[i], 0, text, (uint32_t)strlen(text)), strlen(text));
        assert_int_equal(client_release(c, FUSE_RELEASE, node[i], fh[i]), 0);
    }
    for (int i = 99; i >= 0; i -= 3)
        assert_int_equal(client_getattr(c, node[i], &a), 0);
    /* The whole tree moves. */
    assert_int_equal(client_rename(c, FUSE_ROOT_ID, "d", FUSE_ROOT_ID, "e", 0), 0);
    assert_int_equal(client_rename(c, dir[50], "d", FUSE_ROOT_ID, "half", 0), 0);
    for (int i = 0; i < 100; i++) {
        snprintf(text, sizeof(text), "%d", i);
        assert_int_equal(client_open_file(c, FUSE_OPEN, node[i], O_RDONLY, &fh[0]), 0);
        assert_int_equal(client_read(c, node[i], fh[0], 0, 10), strlen(text));
        assert_memory_equal(c->out, text, strlen(text));
        assert_int_equal(client_release(c, FUSE_RELEASE, node[i], fh[0]), 0);
    }

    /* Open files have their limit. */
    int n = 0, rc;
    while ((rc = client_open_file(c, FUSE_OPEN, node[n % 100], O_RDONLY, &fh[n])) == 0)
        assert_true(++n < 100);
    assert_int_equal(rc, -ENFILE);
    assert_int_equal(n, SHARE_FDS_MIN / 2);
    assert_int_equal(client_getattr(c, node[99], &a), 0); /* everything else goes on */
    for (int i = 0; i < n; i++)
        assert_int_equal(client_release(c, FUSE_RELEASE, node[i % 100], fh[i]), 0);
    assert_int_equal(client_open_file(c, FUSE_OPEN, node[0], O_RDONLY, &fh[0]), 0);
    end(c);
}

/* ---- directories ---- */

/* Reads the whole directory in answers of `room` bytes; the number of entries, each of which must be named
 * "name-N" or be a dot. */
static int list(struct client *c, uint64_t node, uint32_t room, bool plus, uint64_t *nodes)
{
    struct fuse_read_in in = {.size = room};
    bool seen[1000] = {false};
    int count = 0;

    assert_int_equal(client_open_file(c, FUSE_OPENDIR, node, O_RDONLY, &in.fh), 0);
    do {
        int rc = client_call(c, plus ? FUSE_READDIRPLUS : FUSE_READDIR, node, &in, sizeof(in), NULL, 0);

        assert_int_equal(rc, 0);
        assert_true(c->out_len <= room);
        for (size_t at = 0; at < c->out_len;) {
            struct fuse_entry_out entry = {0};
            struct fuse_dirent d;
            char name[256] = "";
            int i;

            if (plus) {
                memcpy(&entry, c->out + at, sizeof(entry));
                at += sizeof(entry);
            }
            assert_true(c->out_len - at >= FUSE_NAME_OFFSET);
            memcpy(&d, c->out + at, FUSE_NAME_OFFSET);
            assert_true(d.namelen < sizeof(name) && FUSE_DIRENT_SIZE(&d) <= c->out_len - at);
            memcpy(name, c->out + at + FUSE_NAME_OFFSET, d.namelen);
            at += FUSE_DIRENT_SIZE(&d);
            in.offset = d.off;
            if (!strcmp(name, ".") || !strcmp(name, "..")) {
                assert_int_equal(d.type, DT_DIR);
                assert_int_equal(entry.nodeid, 0);
                continue;
            }
            assert_int_equal(sscanf(name, "name-%d", &i), 1);
            assert_false(seen[i]);
            seen[i] = true;
            if (plus) {
                assert_true(entry.nodeid && entry.attr.ino == d.ino && S_ISREG(entry.attr.mode));
                nodes[count] = entry.nodeid;
            }
            assert_int_equal(d.type, DT_REG);
            count++;
        }
    } while (c->out_len);
    assert_int_equal(client_release(c, FUSE_RELEASEDIR, node, in.fh), 0);
    return count;
}

static void test_readdir(void **state)
{
    struct client *c = begin(false, SHARE_FDS_MIN);
    uint64_t dir, nodes[500], fh;
    struct fuse_attr a;
    char name[64];

    assert_int_equal(client_mkdir(c, FUSE_ROOT_ID, "d", 0755, &dir), 0);
    assert_int_equal(list(c, dir, 4096, false, NULL), 0);
    for (int i = 0; i < 300; i++) {
        snprintf(name, sizeof(name), "name-%d%.*s", i, i % 40, "........................................");
        assert_int_equal(client_mknod(c, dir, name, S_IFREG | 0600, 0), 0);
    }
    assert_int_equal(list(c, dir, 1 << 20, false, NULL), 300);
    assert_int_equal(list(c, dir, 4096, false, NULL), 300);
    assert_int_equal(list(c, dir, 100, false, NULL), 300);
    assert_int_equal(list(c, dir, 300, true, nodes), 300);
    assert_int_equal(list(c, dir, 100000, true, nodes), 300);
    for (int i = 0; i < 300; i++)
        assert_int_equal(client_getattr(c, nodes[i], &a), 0);

    /* Too small for any entry; a file is no directory. */
    struct fuse_read_in in = {.size = 8};
    assert_int_equal(client_open_file(c, FUSE_OPENDIR, dir, O_RDONLY, &in.fh), 0);
    assert_int_equal(client_call(c, FUSE_READDIR, dir, &in, sizeof(in), NULL, 0), -EINVAL);
    assert_int_equal(client_open_file(c, FUSE_OPENDIR, nodes[0], O_RDONLY, &fh), -ENOTDIR);
    assert_int_equal(client_open_file(c, FUSE_OPEN, dir, O_RDONLY, &fh), -EISDIR);
    assert_int_equal(client_read(c, dir, in.fh, 0, 10), -EBADF); /* it is a directory's */
    struct fuse_fsync_in sync = {.fh = in.fh};
    assert_int_equal(client_call(c, FUSE_FSYNCDIR, dir, &sync, sizeof(sync), NULL, 0), 0);
    struct fuse_syncfs_in fs = {0};
    assert_int_equal(client_call(c, FUSE_SYNCFS, FUSE_ROOT_ID, &fs, sizeof(fs), NULL, 0), 0);
    end(c);
}

/* ---- the rest ---- */

static int xattr(struct client *c, uint32_t op, uint64_t node, const char *name, uint32_t size)
{
    struct fuse_getxattr_in in = {.size = size};

    return client_call(c, op, node, &in, sizeof(in), name, name ? strlen(name) + 1 : 0);
}

static int setxattr_call(struct client *c, uint64_t node, const char *name, const char *value, uint32_t size)
{
    struct {
        uint32_t size, flags;
    } in = {size, 0};
    char both[512];
    size_t n = strlen(name) + 1, v = strlen(value);

    strcpy(both, name);
    memcpy(both + n, value, v);
    return client_call(c, FUSE_SETXATTR, node, &in, sizeof(in), both, n + v);
}

static void test_xattr(void **state)
{
    struct client *c = begin(false, 0);
    uint64_t node;
    char path[200];

    assert_int_equal(client_mknod(c, FUSE_ROOT_ID, "f", S_IFREG | 0600, 0), 0);
    assert_int_equal(client_walk(c, "f", &node), 0);
    host_path(c, "f", path, sizeof(path));
    if (setxattr(path, "user.host", "1", 1, 0) < 0) {
        end(c);
        skip(); /* not on this file system */
    }
    assert_int_equal(setxattr_call(c, node, "user.x", "value", 5), 0);
    assert_int_equal(xattr(c, FUSE_GETXATTR, node, "user.x", 100), 0);
    assert_int_equal(c->out_len, 5);
    assert_memory_equal(c->out, "value", 5);
    assert_int_equal(xattr(c, FUSE_GETXATTR, node, "user.x", 0), 0);
    assert_int_equal(*(uint32_t *)c->out, 5);
    assert_int_equal(xattr(c, FUSE_GETXATTR, node, "user.x", 4), -ERANGE);
    assert_int_equal(xattr(c, FUSE_GETXATTR, node, "user.none", 4), -ENODATA);
    assert_int_equal(setxattr_call(c, node, "user.x", "v", 5), -EINVAL); /* says more than it has */
    assert_int_equal(setxattr_call(c, node, "security.capability", "value", 5), -EOPNOTSUPP);
    assert_int_equal(setxattr_call(c, node, "trusted.overlay.opaque", "y", 1), -EOPNOTSUPP);
    assert_int_equal(xattr(c, FUSE_GETXATTR, node, "security.selinux", 100), -EOPNOTSUPP);
    if (geteuid() == 0)
        setxattr(path, "trusted.host", "1", 1, 0);
    assert_int_equal(xattr(c, FUSE_LISTXATTR, node, NULL, 100), 0);
    assert_int_equal(c->out_len, strlen("user.host") + 1 + strlen("user.x") + 1);
    assert_int_equal(client_call(c, FUSE_REMOVEXATTR, node, "user.x", 7, NULL, 0), 0);
    assert_int_equal(client_call(c, FUSE_REMOVEXATTR, node, "trusted.host", 13, NULL, 0), -EOPNOTSUPP);
    assert_int_equal(xattr(c, FUSE_GETXATTR, node, "user.x", 100), -ENODATA);
    end(c);
}

static void test_ranges(void **state)
{
    struct client *c = begin(false, 0);
    uint64_t node, fh, node2, fh2;
    struct fuse_attr a;

    assert_int_equal(client_create(c, FUSE_ROOT_ID, "f", O_RDWR, 0600, &node, &fh), 0);
    assert_int_equal(client_create(c, FUSE_ROOT_ID, "g", O_RDWR, 0600, &node2, &fh2), 0);
    struct fuse_fallocate_in fall = {.fh = fh, .length = 65536};
    int rc = client_call(c, FUSE_FALLOCATE, node, &fall, sizeof(fall), NULL, 0);
    if (rc != -EOPNOTSUPP) {
        assert_int_equal(rc, 0);
        assert_int_equal(client_getattr(c, node, &a), 0);
        assert_int_equal(a.size, 65536);
    }
    fall.mode = FALLOC_FL_COLLAPSE_RANGE;
    assert_int_equal(client_call(c, FUSE_FALLOCATE, node, &fall, sizeof(fall), NULL, 0), -EOPNOTSUPP);
    fall.mode = 0;
    fall.offset = UINT64_MAX;
    assert_int_equal(client_call(c, FUSE_FALLOCATE, node, &fall, sizeof(fall), NULL, 0), -EINVAL);

    assert_int_equal(client_write(c, node, fh, 65536, "data", 4), 4);
    struct fuse_lseek_in seek = {.fh = fh, .offset = 65536, .whence = SEEK_DATA};
    assert_int_equal(client_call(c, FUSE_LSEEK, node, &seek, sizeof(seek), NULL, 0), 0);
    assert_int_equal(*(uint64_t *)c->out, 65536);
    seek.offset = 1 << 20;
    assert_int_equal(client_call(c, FUSE_LSEEK, node, &seek, sizeof(seek), NULL, 0), -ENXIO);
    seek.whence = SEEK_SET;
    assert_int_equal(client_call(c, FUSE_LSEEK, node, &seek, sizeof(seek), NULL, 0), -EINVAL);

    struct fuse_copy_file_range_in copy = {
        .fh_in = fh, .off_in = 65536, .nodeid_out = node2, .fh_out = fh2, .len = 4};
    rc = client_call(c, FUSE_COPY_FILE_RANGE, node, &copy, sizeof(copy), NULL, 0);
    assert_int_equal(rc, 0);
    assert_int_equal(*(uint32_t *)c->out, 4);
    assert_true(host_has(c, "g", "data"));
    copy.fh_out = fh; /* not of that file */
    assert_int_equal(client_call(c, FUSE_COPY_FILE_RANGE, node, &copy, sizeof(copy), NULL, 0), -EBADF);
    end(c);
}

static void test_readonly(void **state)
{
    struct client *c = begin(true, 0);
    uint64_t node, fh;
    char path[200];

    host_write(c, "f", "text");
    host_path(c, "d", path, sizeof(path));
    assert_int_equal(mkdir(path, 0755), 0);
    assert_int_equal(client_walk(c, "f", &node), 0);
    assert_int_equal(client_open_file(c, FUSE_OPEN, node, O_RDONLY | O_TRUNC, &fh), -EROFS);
    assert_int_equal(client_open_file(c, FUSE_OPEN, node, O_WRONLY, &fh), -EROFS);
    assert_int_equal(client_open_file(c, FUSE_OPEN, node, O_RDWR, &fh), -EROFS);
    assert_int_equal(client_open_file(c, FUSE_OPEN, node, O_RDONLY, &fh), 0);
    assert_int_equal(client_read(c, node, fh, 0, 10), 4);
    assert_int_equal(client_write(c, node, fh, 0, "x", 1), -EROFS);
    assert_int_equal(client_setattr(c, node, &(struct fuse_setattr_in){.valid = FATTR_SIZE}), -EROFS);
    assert_int_equal(client_create(c, FUSE_ROOT_ID, "g", O_RDONLY, 0600, &node, &fh), -EROFS);
    assert_int_equal(client_mkdir(c, FUSE_ROOT_ID, "g", 0755, NULL), -EROFS);
    assert_int_equal(client_mknod(c, FUSE_ROOT_ID, "g", S_IFREG, 0), -EROFS);
    assert_int_equal(client_symlink(c, FUSE_ROOT_ID, "g", "x", NULL), -EROFS);
    assert_int_equal(client_link(c, node, FUSE_ROOT_ID, "g"), -EROFS);
    assert_int_equal(client_rename(c, FUSE_ROOT_ID, "f", FUSE_ROOT_ID, "g", 0), -EROFS);
    assert_int_equal(client_remove(c, FUSE_UNLINK, FUSE_ROOT_ID, "f"), -EROFS);
    assert_int_equal(client_remove(c, FUSE_RMDIR, FUSE_ROOT_ID, "d"), -EROFS);
    assert_int_equal(setxattr_call(c, node, "user.x", "v", 1), -EROFS);
    assert_int_equal(client_call(c, FUSE_REMOVEXATTR, node, "user.x", 7, NULL, 0), -EROFS);
    struct fuse_fallocate_in fall = {.fh = fh, .length = 1};
    assert_int_equal(client_call(c, FUSE_FALLOCATE, node, &fall, sizeof(fall), NULL, 0), -EROFS);
    struct fuse_copy_file_range_in copy = {0};
    assert_int_equal(client_call(c, FUSE_COPY_FILE_RANGE, node, &copy, sizeof(copy), NULL, 0), -EROFS);
    assert_true(host_has(c, "f", "text"));
    end(c);
}

/* What the host does is seen; what became another file is not taken for the old one. */
static void test_host_changes(void **state)
{
    struct client *c = begin(false, SHARE_FDS_MIN);
    uint64_t dir, node, again;
    char from[200], to[200];
    struct fuse_attr a;

    assert_int_equal(client_mkdir(c, FUSE_ROOT_ID, "d", 0755, &dir), 0);
    host_write(c, "d/f", "one");
    assert_int_equal(client_lookup(c, dir, "f", &node), 0);
    host_write(c, "d/f", "longer");
    assert_int_equal(client_getattr(c, node, &a), 0);
    assert_int_equal(a.size, 6);
    /* Another file under the same name is another node. */
    host_write(c, "d/g", "new");
    host_path(c, "d/g", from, sizeof(from));
    host_path(c, "d/f", to, sizeof(to));
    assert_int_equal(rename(from, to), 0);
    assert_int_equal(client_lookup(c, dir, "f", &again), 0);
    assert_true(again != node);
    /* A moved directory is found at its new place when it is looked up there, and before as long as it is open. */
    host_path(c, "d", from, sizeof(from));
    host_path(c, "e", to, sizeof(to));
    assert_int_equal(rename(from, to), 0);
    assert_int_equal(client_lookup(c, FUSE_ROOT_ID, "d", &node), -ENOENT);
    assert_int_equal(client_lookup(c, FUSE_ROOT_ID, "e", &node), 0);
    assert_true(node == dir);
    assert_int_equal(client_getattr(c, again, &a), 0);
    assert_int_equal(a.size, 3);
    end(c);
}

/* As root: what the guest's users create is theirs. */
static void test_owner(void **state)
{
    struct client *c = begin(false, 0);
    uint64_t node, fh, dir;
    struct fuse_attr a;

    if (geteuid() != 0) {
        end(c);
        skip();
    }
    c->uid = 12345;
    c->gid = 23456;
    assert_int_equal(client_create(c, FUSE_ROOT_ID, "f", O_RDWR, 0600, &node, &fh), 0);
    assert_int_equal(client_getattr(c, node, &a), 0);
    assert_int_equal(a.uid, 12345);
    assert_int_equal(a.gid, 23456);
    assert_int_equal(client_mkdir(c, FUSE_ROOT_ID, "d", 0755, &dir), 0);
    assert_int_equal(client_getattr(c, dir, &a), 0);
    assert_int_equal(a.uid, 12345);
    assert_int_equal(client_setattr(c, dir, &(struct fuse_setattr_in){.valid = FATTR_MODE, .mode = 02755}), 0);
    assert_int_equal(client_getattr(c, dir, &a), 0);
    assert_int_equal(a.mode, S_IFDIR | 02755);
    c->gid = 1;
    assert_int_equal(client_symlink(c, dir, "l", "x", &node), 0);
    assert_int_equal(client_getattr(c, node, &a), 0);
    assert_int_equal(a.gid, 23456); /* the directory's */
    assert_int_equal(a.uid, 12345);
    end(c);
}

static void test_config(void **state)
{
    struct share *s = NULL;
    struct err e = {""};

    assert_int_equal(share_new(&s, &(struct share_cfg){"/nowhere/at/all", false, 100}, &e), -ENOENT);
    assert_non_null(strstr(e.msg, "/nowhere/at/all"));
    assert_int_equal(share_new(&s, &(struct share_cfg){"/proc/self/status", false, 100}, &e), -ENOTDIR);
    share_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_init),       cmocka_unit_test(test_files),
        cmocka_unit_test(test_large),      cmocka_unit_test(test_attributes),
        cmocka_unit_test(test_names),      cmocka_unit_test(test_unlinked),
        cmocka_unit_test(test_descriptors), cmocka_unit_test(test_readdir),
        cmocka_unit_test(test_xattr),      cmocka_unit_test(test_ranges),
        cmocka_unit_test(test_readonly),   cmocka_unit_test(test_host_changes),
        cmocka_unit_test(test_owner),      cmocka_unit_test(test_config),
    };

    umask(0);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
