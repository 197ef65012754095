/*
 * Random requests to a share: mostly well-formed ones about files that exist, some with random bytes. What holds
 * for all: an answer has the form of one (client_raw checks), nothing outside of the directory is touched, no
 * descriptor is left behind, and afterwards the share works.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/util.h"
#include "client.h"

#define KNOWN 64

struct fuzz {
    struct client c;
    uint64_t rng;
    uint64_t node[KNOWN];
    uint64_t fh[KNOWN], owner[KNOWN]; /* and the node it is open on */
    unsigned *good; /* requests of each shape that did something */
};

static uint32_t rnd(struct fuzz *f, uint32_t below)
{
    f->rng ^= f->rng << 13;
    f->rng ^= f->rng >> 7;
    f->rng ^= f->rng << 17;
    return (uint32_t)((f->rng >> 20) % below);
}

static uint64_t any(struct fuzz *f, const uint64_t *known)
{
    switch (rnd(f, 12)) {
    case 0:
        return rnd(f, 100);
    case 1:
        return f->rng;
    default:
        return known[rnd(f, KNOWN)];
    }
}

/* The names are few, so that they meet. */
static size_t put_name(struct fuzz *f, uint8_t *p)
{
    static const char *const names[] = {"a", "b", "c", "d", "e", "link", "dir", "x y", "..", ".", "", "a/b", "../secret"};
    const char *name = names[rnd(f, rnd(f, 8) ? 8 : ARRAY_LEN(names))];
    size_t n = strlen(name) + (rnd(f, 50) ? 1 : 0);

    memcpy(p, name, n);
    return n;
}

static void learn(struct fuzz *f, uint32_t op, uint64_t node)
{
    struct fuse_entry_out e;
    struct fuse_open_out o;
    size_t at = 0;

    if (op == FUSE_LOOKUP || op == FUSE_CREATE || op == FUSE_MKDIR || op == FUSE_SYMLINK || op == FUSE_LINK ||
        op == FUSE_MKNOD) {
        memcpy(&e, f->c.out, sizeof(e));
        f->node[8 + rnd(f, KNOWN - 8)] = e.nodeid; /* the root stays among them */
        at = sizeof(e);
    }
    if (op == FUSE_CREATE || op == FUSE_OPEN || op == FUSE_OPENDIR) {
        unsigned k = rnd(f, KNOWN);

        memcpy(&o, f->c.out + at, sizeof(o));
        f->fh[k] = o.fh;
        f->owner[k] = op == FUSE_CREATE ? e.nodeid : node;
    }
}

/* Sizes of the fixed part, and how many names follow. */
static const struct {
    uint32_t op;
    uint8_t fixed, names, fh, num;
} shapes[] = {
    {FUSE_LOOKUP, 0, 1, 99, 99},       {FUSE_FORGET, 8, 0, 99, 0},      {FUSE_GETATTR, 16, 0, 8, 0},
    {FUSE_SETATTR, 88, 0, 8, 0},       {FUSE_READLINK, 0, 0, 99, 99},   {FUSE_SYMLINK, 0, 2, 99, 99},
    {FUSE_MKNOD, 16, 1, 99, 0},        {FUSE_MKDIR, 8, 1, 99, 0},       {FUSE_UNLINK, 0, 1, 99, 99},
    {FUSE_RMDIR, 0, 1, 99, 99},        {FUSE_RENAME, 8, 2, 99, 99},     {FUSE_LINK, 8, 1, 99, 99},
    {FUSE_OPEN, 8, 0, 99, 0},          {FUSE_READ, 40, 0, 0, 8},        {FUSE_WRITE, 40, 1, 0, 8},
    {FUSE_STATFS, 0, 0, 99, 99},       {FUSE_RELEASE, 24, 0, 0, 8},     {FUSE_FSYNC, 16, 0, 0, 8},
    {FUSE_SETXATTR, 8, 2, 99, 0},      {FUSE_GETXATTR, 8, 1, 99, 0},    {FUSE_LISTXATTR, 8, 0, 99, 0},
    {FUSE_REMOVEXATTR, 0, 1, 99, 99},  {FUSE_FLUSH, 24, 0, 0, 8},       {FUSE_OPENDIR, 8, 0, 99, 0},
    {FUSE_READDIR, 40, 0, 0, 16},      {FUSE_RELEASEDIR, 24, 0, 0, 8},  {FUSE_FSYNCDIR, 16, 0, 0, 8},
    {FUSE_CREATE, 16, 1, 99, 4},       {FUSE_BATCH_FORGET, 8, 0, 99, 0}, {FUSE_FALLOCATE, 32, 0, 0, 8},
    {FUSE_READDIRPLUS, 40, 0, 0, 16},  {FUSE_RENAME2, 16, 2, 99, 8},    {FUSE_LSEEK, 24, 0, 0, 8},
    {FUSE_COPY_FILE_RANGE, 56, 0, 0, 40},
};

/* Takes away what others need. */
static bool ends(uint32_t op)
{
    return op == FUSE_FORGET || op == FUSE_RELEASE || op == FUSE_RELEASEDIR || op == FUSE_UNLINK || op == FUSE_RMDIR;
}

static void one(struct fuzz *f)
{
    uint8_t raw[8192] = {0};
    size_t i = rnd(f, ARRAY_LEN(shapes)), len = sizeof(struct fuse_in_header);
    struct fuse_in_header h = {.opcode = shapes[i].op, .nodeid = any(f, f->node), .uid = f->c.uid, .gid = f->c.gid};
    uint8_t *arg = raw + len;
    uint64_t fh = any(f, f->fh), node = any(f, f->node);

    if (ends(h.opcode) && rnd(f, 8))
        return;
    /* Small numbers where numbers are, so that most requests get far. */
    for (unsigned k = shapes[i].num; k < shapes[i].fixed; k += 4)
        arg[k + (rnd(f, 20) ? 0 : rnd(f, 4))] = (uint8_t)rnd(f, 256);
    if (shapes[i].fh < 99) {
        unsigned k = rnd(f, KNOWN);

        if (rnd(f, 20)) {
            fh = f->fh[k];
            h.nodeid = f->owner[k];
        }
        memcpy(arg + shapes[i].fh, &fh, 8);
    }
    if (shapes[i].op == FUSE_LINK || shapes[i].op == FUSE_RENAME || shapes[i].op == FUSE_RENAME2)
        memcpy(arg, &node, 8);
    if (shapes[i].op == FUSE_COPY_FILE_RANGE) {
        unsigned k = rnd(f, KNOWN);

        memcpy(arg + 16, f->owner + k, 8);
        memcpy(arg + 24, f->fh + k, 8);
        memset(arg + 48, 0, rnd(f, 10) ? 8 : 0);
    }
    if (shapes[i].op == FUSE_FORGET && rnd(f, 50))
        memset(arg + 1, 0, 7);
    if (shapes[i].op == FUSE_BATCH_FORGET && rnd(f, 50))
        memset(arg, 0, 8);
    if (shapes[i].op == FUSE_OPEN || shapes[i].op == FUSE_CREATE)
        arg[0] = (uint8_t)rnd(f, 4);
    if (shapes[i].op == FUSE_RENAME2)
        memset(arg + 8 + (rnd(f, 4) ? 0 : 1), 0, 7);
    if (shapes[i].op == FUSE_LSEEK)
        memset(arg + 8, 0, 8), arg[16] = (uint8_t)(SEEK_DATA + rnd(f, 2)), arg[17] = arg[18] = arg[19] = 0;
    if (shapes[i].op == FUSE_READ)
        memset(arg + 8 + 2, 0, 6);
    if (shapes[i].op == FUSE_READDIR || shapes[i].op == FUSE_READDIRPLUS)
        memset(arg + 8, 0, 8);
    if (shapes[i].op == FUSE_READ || shapes[i].op == FUSE_READDIR || shapes[i].op == FUSE_READDIRPLUS)
        arg[17] = (uint8_t)rnd(f, 20);
    if (shapes[i].op == FUSE_SETATTR) { /* files stay small: the host's disk is not ours */
        memset(arg + 16 + 3, 0, 5);
        arg[1] &= 0x7;
        arg[0] &= rnd(f, 3) ? 0xf9 : 0xff;
    }
    if (shapes[i].op == FUSE_FALLOCATE || shapes[i].op == FUSE_WRITE || shapes[i].op == FUSE_COPY_FILE_RANGE) {
        memset(arg + 8 + 3, 0, 5);
        memset(arg + (shapes[i].op == FUSE_WRITE ? 24 : 16) + (shapes[i].op == FUSE_COPY_FILE_RANGE ? 16 : 0) + 3, 0,
               5);
    }
    if (shapes[i].op == FUSE_WRITE)
        arg[16] = (uint8_t)rnd(f, 3), arg[17] = arg[18] = arg[19] = 0;
    if (shapes[i].op == FUSE_MKNOD)
        arg[1] = (uint8_t)(rnd(f, 2) ? 0x81 : rnd(f, 256));
    len += shapes[i].fixed;
    for (unsigned k = 0; k < shapes[i].names; k++)
        len += put_name(f, raw + len);
    h.len = (uint32_t)len;
    if (!rnd(f, 100))
        h.len = (uint32_t)f->rng;
    if (!rnd(f, 200))
        h.opcode = rnd(f, 64);
    h.unique = f->rng;
    memcpy(raw, &h, sizeof(h));
    if (!rnd(f, 50)) {
        for (int k = 0; k < 5; k++)
            raw[rnd(f, (uint32_t)len)] ^= (uint8_t)(1u << rnd(f, 8));
        uint32_t op;
        memcpy(&op, raw + 4, 4);
        if (op != h.opcode || op == FUSE_FALLOCATE || op == FUSE_SETATTR || op == FUSE_WRITE ||
            op == FUSE_COPY_FILE_RANGE)
            return; /* sizes that were made small above may be none any more */
    }
    f->c.piece = 1 + rnd(f, 300);
    f->c.room = rnd(f, 30) ? 4096 : rnd(f, 200);
    int rc = client_raw(&f->c, raw, rnd(f, 100) ? len : rnd(f, (uint32_t)len));
    if (rc == 0) {
        learn(f, h.opcode, h.nodeid);
        f->good[i]++;
    }
}

/* Never answered, or not on every file system. */
static bool optional(uint32_t op)
{
    return op == FUSE_FORGET || op == FUSE_BATCH_FORGET || op == FUSE_SETXATTR || op == FUSE_GETXATTR ||
           op == FUSE_LISTXATTR || op == FUSE_REMOVEXATTR || op == FUSE_FALLOCATE;
}

static int descriptors(void)
{
    DIR *d = opendir("/proc/self/fd");
    int n = 0;

    while (readdir(d))
        n++;
    closedir(d);
    return n;
}

static void test_fuzz(void **state)
{
    unsigned good[ARRAY_LEN(shapes)] = {0};
    int before = descriptors();

    for (uint64_t seed = 1; seed <= 8; seed++) {
        struct fuzz *f = calloc(1, sizeof(*f));
        uint64_t node;

        f->good = good;
        f->rng = seed * 0x9e3779b97f4a7c15u;
        client_open(&f->c, seed == 8, SHARE_FDS_MIN);
        for (int i = 0; i < KNOWN; i++)
            f->node[i] = FUSE_ROOT_ID;
        for (int i = 0; i < 20000; i++) {
            if (i % 2000 == 0) {
                f->c.room = sizeof(f->c.out);
                client_init(&f->c);
            }
            one(f);
        }
        assert_true(descriptors() <= before + (int)SHARE_FDS_MIN + 8);
        f->c.room = sizeof(f->c.out);
        assert_int_equal(chmod(f->c.dir, 0755), 0); /* which the guest may have changed */
        assert_true(host_has(&f->c, "../secret", "secret"));
        client_init(&f->c);
        int rc = client_mkdir(&f->c, FUSE_ROOT_ID, "works", 0755, &node);
        assert_int_equal(rc, seed == 8 ? -EROFS : 0);
        assert_int_equal(client_walk(&f->c, "works", &node), seed == 8 ? -ENOENT : 0);
        client_close(&f->c);
        free(f);
        assert_int_equal(descriptors(), before);
    }
    /* Else it tests how errors are made. */
    for (size_t i = 0; i < ARRAY_LEN(shapes); i++) {
        if (!good[i] && !optional(shapes[i].op))
            fail_msg("no request %u did anything", shapes[i].op);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_fuzz)};

    umask(0);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
