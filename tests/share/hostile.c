/* Guests that want out of the shared directory, and messages that no kernel sends. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
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
    assert_true(host_has(c, "../secret", "secret"));
    client_close(c);
    free(c);
}

/* Every request that takes a name refuses those that are none. */
static void test_bad_names(void **state)
{
    static const char *const names[] = {"", ".", "..", "/", "a/b", "../secret", "/etc/passwd", "d/", "d/../../secret"};
    struct client *c = begin(false, 0);
    uint64_t node, fh, dir;
    char longest[258];

    assert_int_equal(client_mkdir(c, FUSE_ROOT_ID, "d", 0755, &dir), 0);
    assert_int_equal(client_create(c, FUSE_ROOT_ID, "f", O_RDWR, 0600, &node, &fh), 0);
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        uint64_t at[] = {FUSE_ROOT_ID, dir};

        for (size_t k = 0; k < 2; k++) {
            uint64_t n, h;

            assert_int_equal(client_lookup(c, at[k], names[i], &n), -EINVAL);
            assert_int_equal(client_create(c, at[k], names[i], O_RDWR, 0600, &n, &h), -EINVAL);
            assert_int_equal(client_mkdir(c, at[k], names[i], 0755, NULL), -EINVAL);
            assert_int_equal(client_mknod(c, at[k], names[i], S_IFREG, 0), -EINVAL);
            assert_int_equal(client_symlink(c, at[k], names[i], "x", NULL), -EINVAL);
            assert_int_equal(client_link(c, node, at[k], names[i]), -EINVAL);
            assert_int_equal(client_remove(c, FUSE_UNLINK, at[k], names[i]), -EINVAL);
            assert_int_equal(client_remove(c, FUSE_RMDIR, at[k], names[i]), -EINVAL);
            assert_int_equal(client_rename(c, at[k], names[i], at[k], "x", 0), -EINVAL);
            assert_int_equal(client_rename(c, FUSE_ROOT_ID, "f", at[k], names[i], 0), -EINVAL);
            assert_int_equal(client_rename(c, FUSE_ROOT_ID, "f", at[k], names[i], RENAME_EXCHANGE), -EINVAL);
        }
    }
    memset(longest, 'x', 257);
    longest[256] = 0;
    assert_int_equal(client_mkdir(c, FUSE_ROOT_ID, longest, 0755, NULL), -ENAMETOOLONG);
    longest[255] = 0;
    assert_int_equal(client_mkdir(c, FUSE_ROOT_ID, longest, 0755, NULL), 0);
    end(c);
}

/* Links are files of their own: nothing is opened, listed, made or changed behind them. */
static void test_links_out(void **state)
{
    struct client *c = begin(false, 0);
    uint64_t file, dir, node, fh;
    struct stat before, after;
    struct fuse_attr a;
    char path[200];

    host_path(c, "../secret", path, sizeof(path));
    assert_int_equal(stat(path, &before), 0);
    assert_int_equal(client_symlink(c, FUSE_ROOT_ID, "file", "../secret", &file), 0);
    assert_int_equal(client_symlink(c, FUSE_ROOT_ID, "dir", "..", &dir), 0);
    for (int k = 0; k < 2; k++) {
        uint64_t link = k ? dir : file;
        const char *name = k ? "dir" : "file";

        assert_int_equal(client_getattr(c, link, &a), 0);
        assert_true(S_ISLNK(a.mode));
        assert_int_equal(client_open_file(c, FUSE_OPEN, link, O_RDWR, &fh), -ENXIO);
        assert_int_equal(client_open_file(c, FUSE_OPENDIR, link, O_RDONLY, &fh), -ENOTDIR);
        assert_int_equal(client_create(c, FUSE_ROOT_ID, name, O_RDWR, 0600, &node, &fh), -ENXIO);
        assert_int_equal(client_lookup(c, link, "secret", &node), -ENOTDIR);
        assert_int_equal(client_create(c, link, "new", O_RDWR, 0600, &node, &fh), -ENOTDIR);
        assert_int_equal(client_mkdir(c, link, "new", 0755, NULL), -ENOTDIR);
        assert_int_equal(client_remove(c, FUSE_UNLINK, link, "secret"), -ENOTDIR);
        assert_int_equal(client_rename(c, link, "secret", FUSE_ROOT_ID, "mine", 0), -ENOTDIR);
        assert_int_equal(client_rename(c, FUSE_ROOT_ID, "file", link, "out", 0), -ENOTDIR);
        assert_int_equal(client_link(c, link, FUSE_ROOT_ID, k ? "hard-dir" : "hard-file"), 0);
        assert_int_equal(client_setattr(c, link, &(struct fuse_setattr_in){.valid = FATTR_SIZE}), -ENXIO);
        assert_int_equal(
            client_setattr(c, link, &(struct fuse_setattr_in){.valid = FATTR_MODE, .mode = 0777}), -EOPNOTSUPP);
        assert_int_equal(client_setattr(c, link, &(struct fuse_setattr_in){.valid = FATTR_ATIME | FATTR_MTIME}), 0);
        assert_int_equal(client_setattr(c, link,
                                        &(struct fuse_setattr_in){
                                            .valid = FATTR_UID | FATTR_GID, .uid = c->uid, .gid = c->gid}),
                         0);
    }
    /* The hard link is to the link. */
    assert_int_equal(client_lookup(c, FUSE_ROOT_ID, "hard-file", &node), 0);
    assert_true(node == file);
    assert_int_equal(stat(path, &after), 0);
    assert_int_equal(before.st_mtime, after.st_mtime);
    assert_int_equal(before.st_nlink, after.st_nlink);
    assert_int_equal(before.st_mode, after.st_mode);
    end(c);
}

/* Nothing the guest makes has a meaning to the host's kernel. */
static void test_modes(void **state)
{
    struct client *c = begin(false, 0);
    uint64_t node, fh;
    struct fuse_attr a;

    assert_int_equal(client_mknod(c, FUSE_ROOT_ID, "null", S_IFCHR | 0666, makedev(1, 3)), -EPERM);
    assert_int_equal(client_mknod(c, FUSE_ROOT_ID, "disk", S_IFBLK | 0666, makedev(8, 0)), -EPERM);
    assert_int_equal(client_mknod(c, FUSE_ROOT_ID, "dir", S_IFDIR | 0666, 0), -EPERM);
    assert_int_equal(client_mknod(c, FUSE_ROOT_ID, "odd", 0xf000 | 0666, 0), -EPERM);
    assert_int_equal(client_mknod(c, FUSE_ROOT_ID, "reg", S_IFREG | 06755, 0), 0);
    assert_int_equal(client_walk(c, "reg", &node), 0);
    assert_int_equal(client_getattr(c, node, &a), 0);
    assert_int_equal(a.mode, S_IFREG | 0755);
    assert_int_equal(client_create(c, FUSE_ROOT_ID, "f", O_RDWR, 06755, &node, &fh), 0);
    assert_int_equal(client_getattr(c, node, &a), 0);
    assert_int_equal(a.mode, S_IFREG | 0755);
    assert_int_equal(client_setattr(c, node, &(struct fuse_setattr_in){.valid = FATTR_MODE, .mode = 07777}), 0);
    assert_int_equal(client_getattr(c, node, &a), 0);
    assert_int_equal(a.mode, S_IFREG | 01777);

    /* One that the host has set is cleared by a write that asks for it. */
    char path[200];
    host_path(c, "f", path, sizeof(path));
    assert_int_equal(chmod(path, 06755), 0);
    struct fuse_write_in in = {.fh = fh, .size = 1, .write_flags = FUSE_WRITE_KILL_SUIDGID};
    assert_int_equal(client_call(c, FUSE_WRITE, node, &in, sizeof(in), "x", 1), 0);
    assert_int_equal(client_getattr(c, node, &a), 0);
    assert_int_equal(a.mode, S_IFREG | 0755);

    /* A device that the host put there is not opened. */
    if (geteuid() == 0) {
        host_path(c, "dev", path, sizeof(path));
        if (mknod(path, S_IFCHR | 0666, makedev(1, 3)) == 0) {
            assert_int_equal(client_walk(c, "dev", &node), 0);
            assert_int_equal(client_open_file(c, FUSE_OPEN, node, O_RDWR, &fh), -ENXIO);
            assert_int_equal(client_create(c, FUSE_ROOT_ID, "dev", O_RDWR, 0600, &node, &fh), -ENXIO);
        }
    }
    /* Nor does a FIFO without a writer hold us up. */
    assert_int_equal(client_mknod(c, FUSE_ROOT_ID, "fifo", S_IFIFO | 0666, 0), 0);
    assert_int_equal(client_create(c, FUSE_ROOT_ID, "fifo", O_RDONLY, 0600, &node, &fh), -ENXIO);
    end(c);
}

/* Another process swaps a directory for a link out of it all the time. */
struct swapper {
    struct client *c;
    atomic_bool stop;
};

static void *swap(void *arg)
{
    struct swapper *s = arg;
    char dir[200], link[200];

    host_path(s->c, "swap", dir, sizeof(dir));
    host_path(s->c, "link", link, sizeof(link));
    while (!atomic_load(&s->stop))
        renameat2(AT_FDCWD, dir, AT_FDCWD, link, RENAME_EXCHANGE);
    return NULL;
}

static void test_swapped(void **state)
{
    struct client *c = begin(false, SHARE_FDS_MIN);
    struct swapper s = {.c = c};
    char path[200], target[200];
    pthread_t thread;
    int found = 0;

    host_path(c, "../out", target, sizeof(target));
    assert_int_equal(mkdir(target, 0755), 0);
    host_write(c, "../out/f", "outside");
    host_path(c, "swap", path, sizeof(path));
    assert_int_equal(mkdir(path, 0755), 0);
    host_write(c, "swap/f", "in");
    host_path(c, "link", path, sizeof(path));
    assert_int_equal(symlink(target, path), 0);
    assert_int_equal(pthread_create(&thread, NULL, swap, &s), 0);
    for (int i = 0; i < 3000; i++) {
        uint64_t dir, node, fh;
        char name[16];

        if (client_lookup(c, FUSE_ROOT_ID, i & 1 ? "swap" : "link", &dir))
            continue;
        if (!client_lookup(c, dir, "f", &node)) {
            found++;
            if (!client_open_file(c, FUSE_OPEN, node, O_RDWR, &fh)) {
                assert_int_equal(client_read(c, node, fh, 0, 100), 2);
                assert_int_equal(client_write(c, node, fh, 0, "in", 2), 2);
                client_release(c, FUSE_RELEASE, node, fh);
            }
            client_forget(c, node, 1);
        }
        snprintf(name, sizeof(name), "new%d", i);
        if (!client_create(c, dir, name, O_RDWR, 0600, &node, &fh)) {
            client_release(c, FUSE_RELEASE, node, fh);
            client_remove(c, FUSE_UNLINK, dir, name);
            client_forget(c, node, 1);
        }
        client_forget(c, dir, 1);
    }
    atomic_store(&s.stop, true);
    pthread_join(thread, NULL);
    assert_true(found > 0);
    assert_true(host_has(c, "../out/f", "outside"));
    host_path(c, "../out/f", path, sizeof(path));
    assert_int_equal(unlink(path), 0);
    assert_int_equal(rmdir(target), 0); /* nothing was made in it */
    end(c);
}

/* Directories that the host turns inside out must not send anything round in circles. */
static void test_inside_out(void **state)
{
    struct client *c = begin(false, SHARE_FDS_MIN);
    uint64_t a, b, node;
    char from[200], to[200], name[16];

    assert_int_equal(client_mkdir(c, FUSE_ROOT_ID, "a", 0755, &a), 0);
    assert_int_equal(client_mkdir(c, a, "b", 0755, &b), 0);
    /* a/b becomes b/a. */
    host_path(c, "a/b", from, sizeof(from));
    host_path(c, "b", to, sizeof(to));
    assert_int_equal(rename(from, to), 0);
    host_path(c, "a", from, sizeof(from));
    host_path(c, "b/a", to, sizeof(to));
    assert_int_equal(rename(from, to), 0);
    assert_int_equal(client_lookup(c, b, "a", &node), 0);
    assert_true(node == a);
    for (int i = 0; i < 100; i++) { /* so that the descriptors go */
        snprintf(name, sizeof(name), "n%d", i);
        assert_int_equal(client_mknod(c, FUSE_ROOT_ID, name, S_IFREG | 0600, 0), 0);
    }
    assert_int_equal(client_getattr(c, b, NULL), -ESTALE);
    assert_int_equal(client_walk(c, "b/a", &node), 0);
    assert_true(node == a);
    assert_int_equal(client_getattr(c, a, NULL), 0);
    end(c);
}

/* Numbers that were never given out, or are not any more. */
static void test_numbers(void **state)
{
    static const uint64_t bad[] = {0, 2, 77, UINT32_MAX, 1ull << 32, (1ull << 32) + 1, UINT64_MAX};
    struct client *c = begin(false, 0);
    uint64_t node, fh, again;

    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        assert_int_equal(client_getattr(c, bad[i], NULL), -ESTALE);
        assert_int_equal(client_read(c, FUSE_ROOT_ID, bad[i], 0, 1), -EBADF);
        assert_int_equal(client_release(c, FUSE_RELEASE, FUSE_ROOT_ID, bad[i]), -EBADF);
        assert_int_equal(client_forget(c, bad[i], UINT64_MAX), 1);
    }
    assert_int_equal(client_forget(c, FUSE_ROOT_ID, UINT64_MAX), 1); /* it stays */
    assert_int_equal(client_getattr(c, FUSE_ROOT_ID, NULL), 0);

    assert_int_equal(client_create(c, FUSE_ROOT_ID, "f", O_RDWR, 0600, &node, &fh), 0);
    assert_int_equal(client_forget(c, node, UINT64_MAX), 1);
    assert_int_equal(client_write(c, node, fh, 0, "x", 1), 1); /* open */
    assert_int_equal(client_release(c, FUSE_RELEASE, node, fh), 0);
    assert_int_equal(client_getattr(c, node, NULL), -ESTALE); /* forgotten */
    assert_int_equal(client_lookup(c, FUSE_ROOT_ID, "f", &again), 0);
    assert_true(again != node);

    struct {
        struct fuse_batch_forget_in in;
        struct fuse_forget_one one[2];
    } batch = {.in = {.count = 1000}, .one = {{again, 1}, {bad[2], 5}}};
    assert_int_equal(client_call(c, FUSE_BATCH_FORGET, 0, &batch, sizeof(batch), NULL, 0), 1);
    assert_int_equal(client_getattr(c, again, NULL), -ESTALE);
    end(c);
}

/* ---- malformed ---- */

/* Whatever is cut off, the answer is an error and nothing changes. */
static void test_truncated(void **state)
{
    struct client *c = begin(false, 0);
    uint8_t raw[sizeof(struct fuse_in_header) + 200];

    c->room = 4096;
    for (uint32_t op = 0; op < 60; op++) {
        for (size_t len = 0; len < sizeof(raw); len++) {
            struct fuse_in_header h = {.len = (uint32_t)len, .opcode = op, .unique = 5, .nodeid = FUSE_ROOT_ID};

            if (op == FUSE_DESTROY)
                continue;
            memset(raw, 'x', sizeof(raw)); /* no string ends */
            memcpy(raw, &h, sizeof(h));
            int rc = client_raw(c, raw, len);
            if (len < sizeof(h))
                assert_int_equal(rc, 1);
            else if (op == FUSE_FORGET || op == FUSE_BATCH_FORGET)
                assert_int_equal(rc, 1);
            else if (op == FUSE_GETATTR || op == FUSE_STATFS || op == FUSE_OPENDIR || op == FUSE_SYNCFS ||
                     op == FUSE_LISTXATTR || op == FUSE_INIT)
                assert_true(rc <= 0);
            else if (op == FUSE_SETATTR)
                assert_true(rc <= 0); /* 0x78787878 is some set of valid bits */
            else
                assert_true(rc < 0);
        }
    }
    /* The length in the header must be that of the message. */
    struct {
        struct fuse_in_header h;
        struct fuse_getattr_in in;
    } m = {.h = {.len = sizeof(m), .opcode = FUSE_GETATTR, .nodeid = FUSE_ROOT_ID}};
    client_init(c);
    assert_int_equal(client_raw(c, &m, sizeof(m)), 0);
    static const uint32_t lens[] = {0, 39, sizeof(m) + 1, 1u << 31, UINT32_MAX};
    for (size_t i = 0; i < ARRAY_LEN(lens); i++) {
        m.h.len = lens[i];
        assert_int_equal(client_raw(c, &m, sizeof(m)), -EINVAL);
    }
    /* A write that says more than it brings. */
    uint64_t node, fh;
    assert_int_equal(client_create(c, FUSE_ROOT_ID, "f", O_RDWR, 0600, &node, &fh), 0);
    struct fuse_write_in w = {.fh = fh, .size = 100};
    assert_int_equal(client_call(c, FUSE_WRITE, node, &w, sizeof(w), "short", 5), -EINVAL);
    w.size = UINT32_MAX;
    assert_int_equal(client_call(c, FUSE_WRITE, node, &w, sizeof(w), "short", 5), -EINVAL);
    /* Longer than anything that is copied. */
    char *big = calloc(1, SHARE_ARG_MAX + 1);
    memset(big, 'n', SHARE_ARG_MAX);
    assert_int_equal(client_call(c, FUSE_LOOKUP, FUSE_ROOT_ID, big, SHARE_ARG_MAX + 1, NULL, 0), -E2BIG);
    assert_int_equal(client_call(c, FUSE_LOOKUP, FUSE_ROOT_ID, big + 1, SHARE_ARG_MAX, NULL, 0), -ENAMETOOLONG);
    free(big);
    end(c);
}

/* No room for an answer, or too little: nothing is written beyond it, and nothing is counted as known. */
static void test_no_room(void **state)
{
    struct client *c = begin(false, 0);
    uint64_t node;

    assert_int_equal(client_mknod(c, FUSE_ROOT_ID, "f", S_IFREG | 0600, 0), 0);
    assert_int_equal(client_walk(c, "f", &node), 0);
    client_forget(c, node, 2);
    for (c->room = 0; c->room < sizeof(struct fuse_out_header) + sizeof(struct fuse_entry_out); c->room++) {
        int rc = client_call(c, FUSE_LOOKUP, FUSE_ROOT_ID, "f", 2, NULL, 0);

        assert_int_equal(rc, c->room < sizeof(struct fuse_out_header) ? 1 : -ERANGE);
    }
    c->room = sizeof(c->out);
    uint64_t again;
    assert_int_equal(client_lookup(c, FUSE_ROOT_ID, "f", &again), 0);
    assert_int_equal(client_forget(c, again, 1), 1);
    assert_int_equal(client_getattr(c, again, NULL), -ESTALE);
    end(c);
}

/* ---- saved sessions ---- */

#define CAP 65536

static void test_session(void **state)
{
    struct client *c = begin(false, SHARE_FDS_MIN);
    uint8_t *buf = malloc(CAP), *again = malloc(CAP);
    uint64_t dir, node, fh, dfh, gone, gone_fh, stale, next, next_fh;

    c->room = 8192;
    struct err e = {""};
    struct fuse_attr a;

    assert_int_equal(client_mkdir(c, FUSE_ROOT_ID, "d", 0755, &dir), 0);
    assert_int_equal(client_create(c, dir, "f", O_RDWR, 0600, &node, &fh), 0);
    assert_int_equal(client_write(c, node, fh, 0, "text", 4), 4);
    assert_int_equal(client_create(c, dir, "g", O_RDWR, 0600, &gone, &gone_fh), 0);
    assert_int_equal(client_open_file(c, FUSE_OPENDIR, dir, O_RDONLY, &dfh), 0);
    assert_int_equal(client_mknod(c, dir, "h", S_IFREG, 0), 0);
    assert_int_equal(client_lookup(c, dir, "h", &stale), 0);
    client_forget(c, stale, 2);

    int64_t len = share_save(c->s, buf, CAP);
    assert_true(len > 0 && len < CAP);
    assert_int_equal(share_save(c->s, again, 10), -ENOSPC);

    assert_int_equal(client_remove(c, FUSE_UNLINK, dir, "g"), 0);
    assert_int_equal(share_load(c->s, buf, (size_t)len, &e), 0);
    assert_int_equal(share_save(c->s, again, CAP), len);
    assert_int_equal(client_read(c, node, fh, 0, 10), 4);
    assert_int_equal(client_getattr(c, dir, &a), 0);
    struct fuse_read_in in = {.fh = dfh, .size = 4096};
    assert_int_equal(client_call(c, FUSE_READDIR, dir, &in, sizeof(in), NULL, 0), 0);
    assert_true(c->out_len > 0);
    /* Gone meanwhile. */
    assert_int_equal(client_read(c, gone, gone_fh, 0, 10), -EBADF);
    assert_int_equal(client_getattr(c, gone, NULL), -ESTALE);
    assert_int_equal(client_release(c, FUSE_RELEASE, gone, gone_fh), 0);
    /* A number that the guest may still know is not another file's now. */
    assert_int_equal(client_create(c, dir, "new", O_RDWR, 0600, &next, &next_fh), 0);
    assert_true(next != stale && next_fh != gone_fh);

    /* With little room the open files are there, and the rest looked up again. */
    for (int i = 0; i < 100; i++) {
        char name[16];

        snprintf(name, sizeof(name), "n%d", i);
        assert_int_equal(client_mknod(c, FUSE_ROOT_ID, name, S_IFREG, 0), 0);
    }
    len = share_save(c->s, buf, 1000);
    assert_true(len > 0 && len <= 1000);
    assert_int_equal(share_load(c->s, buf, (size_t)len, &e), 0);
    assert_int_equal(client_read(c, node, fh, 0, 10), 4);
    assert_int_equal(client_lookup(c, FUSE_ROOT_ID, "n99", &next), 0);

    /* Damaged: refused, or a session that does no harm. */
    len = share_save(c->s, buf, CAP);
    srand(1);
    for (int i = 0; i < 3000; i++) {
        memcpy(again, buf, (size_t)len);
        size_t cut = (size_t)len;

        for (int k = rand() % 4; k >= 0; k--)
            again[rand() % (i & 1 ? 200 : len)] = (uint8_t)rand();
        if (i % 3 == 0)
            cut = (size_t)(rand() % (len + 1));
        if (share_load(c->s, again, cut, &e)) {
            assert_non_null(strstr(e.msg, "damaged"));
            assert_int_equal(client_getattr(c, FUSE_ROOT_ID, NULL), -EIO);
        }
        client_getattr(c, node, NULL);
        client_read(c, node, fh, 0, 10);
        client_init(c);
        assert_int_equal(client_walk(c, "d/f", &next), 0);
        node = next;
    }
    assert_true(host_has(c, "d/f", "text"));
    free(buf);
    free(again);
    end(c);
}

/* A saved state that would open a file so that it is cut, or write to what is read-only. */
static void test_session_flags(void **state)
{
    struct client *c = begin(false, 0);
    uint8_t buf[4096];
    uint64_t node, fh;
    struct err e = {""};

    assert_int_equal(client_create(c, FUSE_ROOT_ID, "f", O_RDWR, 0600, &node, &fh), 0);
    assert_int_equal(client_write(c, node, fh, 0, "text", 4), 4);
    int64_t len = share_save(c->s, buf, sizeof(buf));
    uint32_t rw = O_RDWR, cut = O_RDWR | O_TRUNC;
    uint8_t *flags = buf + len - 8; /* the handle's, before its kind */
    assert_memory_equal(flags, &rw, 4);
    memcpy(flags, &cut, 4);
    assert_int_equal(share_load(c->s, buf, (size_t)len, &e), -EINVAL);
    memcpy(flags, &rw, 4);
    assert_true(host_has(c, "f", "text"));

    struct share *ro;
    assert_int_equal(share_new(&ro, &(struct share_cfg){c->dir, true, 100}, &e), 0);
    assert_int_equal(share_load(ro, buf, (size_t)len, &e), -EINVAL);
    share_free(ro);
    end(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bad_names), cmocka_unit_test(test_links_out),    cmocka_unit_test(test_modes),
        cmocka_unit_test(test_swapped),   cmocka_unit_test(test_inside_out),   cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_truncated), cmocka_unit_test(test_no_room),      cmocka_unit_test(test_session),
        cmocka_unit_test(test_session_flags),
    };

    umask(0);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
