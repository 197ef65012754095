/* The virtio file system device (virtio 1.2 §5.11) on its rings; what it serves is tests/share's. */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <linux/fuse.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "virtio_driver.h"

#include "base/util.h"
#include "dev/virtio/fs.h"

enum { HIPRIO, REQUEST, QUEUES };

struct world {
    char dir[64];
    struct vdrv d, d2;
    uint8_t in[8192];
    uint32_t in_len; /* of the answer */
};

static void attach(struct world *w, struct vdrv *d)
{
    vdrv_init(d);
    d->f.log.level = LOG_ERROR; /* damaged states are told of */
    vdrv_attach(d, &virtio_fs_class, &(struct virtio_fs_cfg){vdrv_slot(d), "a tag", {w->dir, false, 256}});
}

static int setup(void **state)
{
    struct world *w = calloc(1, sizeof(*w));

    strcpy(w->dir, "/tmp/ring3-fs-XXXXXX");
    assert_non_null(mkdtemp(w->dir));
    attach(w, &w->d);
    *state = w;
    return 0;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    return remove(path);
}

static int teardown(void **state)
{
    struct world *w = *state;

    vdrv_fini(&w->d);
    if (w->d2.dev)
        vdrv_fini(&w->d2);
    assert_int_equal(nftw(w->dir, remove_one, 16, FTW_DEPTH | FTW_PHYS), 0);
    free(w);
    return 0;
}

/* ---- requests ---- */

static uint32_t message(uint8_t *p, uint32_t op, uint64_t node, const void *arg, size_t len, const void *more, size_t n)
{
    struct fuse_in_header h = {
        .len = (uint32_t)(sizeof(h) + len + n), .opcode = op, .unique = 77, .nodeid = node};

    memcpy(p, &h, sizeof(h));
    memcpy(p + sizeof(h), arg, len);
    memcpy(p + sizeof(h) + len, more, n);
    return h.len;
}

/* The error of the answer, whose payload is at w->in + 16. */
static int call(struct world *w, struct vdrv *d, uint32_t op, uint64_t node, const void *arg, size_t len,
                const void *more, size_t n)
{
    struct fuse_out_header head;
    uint8_t out[8192];
    uint32_t out_len = message(out, op, node, arg ? arg : "", len, more ? more : "", n);

    w->in_len = vdrv_request(&d->q[REQUEST], out, out_len, w->in, sizeof(w->in));
    assert_true(w->in_len >= sizeof(head));
    memcpy(&head, w->in, sizeof(head));
    assert_int_equal(head.len, w->in_len);
    assert_int_equal(head.unique, 77);
    return head.error;
}

static int init(struct world *w, struct vdrv *d)
{
    struct fuse_init_in in = {.major = 7, .minor = 38};

    return call(w, d, FUSE_INIT, 0, &in, sizeof(in), NULL, 0);
}

static int getattr(struct world *w, struct vdrv *d, uint64_t node)
{
    struct fuse_getattr_in in = {0};

    return call(w, d, FUSE_GETATTR, node, &in, sizeof(in), NULL, 0);
}

static void create(struct world *w, struct vdrv *d, const char *name, uint64_t *node, uint64_t *fh)
{
    struct fuse_create_in in = {.flags = O_RDWR, .mode = S_IFREG | 0666};
    struct fuse_entry_out entry;
    struct fuse_open_out open;

    assert_int_equal(call(w, d, FUSE_CREATE, FUSE_ROOT_ID, &in, sizeof(in), name, strlen(name) + 1), 0);
    memcpy(&entry, w->in + 16, sizeof(entry));
    memcpy(&open, w->in + 16 + sizeof(entry), sizeof(open));
    assert_int_equal(entry.attr.mode, S_IFREG | 0666); /* no umask of ours */
    *node = entry.nodeid;
    *fh = open.fh;
}

static int put(struct world *w, struct vdrv *d, uint64_t node, uint64_t fh, const char *text)
{
    struct fuse_write_in in = {.fh = fh, .size = (uint32_t)strlen(text)};

    return call(w, d, FUSE_WRITE, node, &in, sizeof(in), text, strlen(text));
}

static void expect(struct world *w, struct vdrv *d, uint64_t node, uint64_t fh, const char *text)
{
    struct fuse_read_in in = {.fh = fh, .size = 4096};

    assert_int_equal(call(w, d, FUSE_READ, node, &in, sizeof(in), NULL, 0), 0);
    assert_int_equal(w->in_len - 16, strlen(text));
    assert_memory_equal(w->in + 16, text, strlen(text));
}

/* ---- tests ---- */

static void test_config(void **state)
{
    struct world *w = *state;
    static const char tag[36] = "a tag";
    char have[36];
    uint32_t n;

    vdrv_config(&w->d, 0, have, sizeof(have));
    assert_memory_equal(have, tag, sizeof(tag));
    vdrv_config(&w->d, 36, &n, 4);
    assert_int_equal(n, 1);
    assert_int_equal(vdrv_get(&w->d, VC_NUM_QUEUES, 2), QUEUES);

    struct err e = {""};
    struct virtio_fs_cfg cfg = {vdrv_slot(&w->d), "", {w->dir, false, 64}};
    assert_null(device_new(&virtio_fs_class, "x", &w->d.f.ctx, &cfg, &e));
    cfg.tag = "0123456789012345678901234567890123456";
    assert_null(device_new(&virtio_fs_class, "x", &w->d.f.ctx, &cfg, &e));
    cfg.tag = "t";
    cfg.share.dir = "/nowhere";
    assert_null(device_new(&virtio_fs_class, "x", &w->d.f.ctx, &cfg, &e));
    assert_non_null(strstr(e.msg, "/nowhere"));
}

static void test_requests(void **state)
{
    static const uint64_t features[] = {VDRV_SPLIT, VDRV_PACKED, VDRV_SPLIT | VDRV_EVENT_IDX | VDRV_INDIRECT,
                                        VDRV_PACKED | VDRV_EVENT_IDX | VDRV_INDIRECT};
    struct world *w = *state;
    uint64_t node, fh;

    for (size_t i = 0; i < ARRAY_LEN(features); i++) {
        vdrv_start(&w->d, features[i], QUEUES, 32);
        w->d.q[REQUEST].indirect = features[i] & VDRV_INDIRECT;
        assert_int_equal(getattr(w, &w->d, FUSE_ROOT_ID), -EIO); /* no session */
        assert_int_equal(init(w, &w->d), 0);
        create(w, &w->d, "file", &node, &fh);
        assert_int_equal(put(w, &w->d, node, fh, "hello"), 0);
        expect(w, &w->d, node, fh, "hello");

        /* FORGET has no answer, on either queue. */
        struct fuse_forget_in forget = {.nlookup = 1};
        uint8_t out[100];
        uint32_t len = message(out, FUSE_FORGET, node, &forget, sizeof(forget), "", 0);
        assert_int_equal(vdrv_request(&w->d.q[HIPRIO], out, len, NULL, 0), 0);
        assert_int_equal(vdrv_request(&w->d.q[REQUEST], out, len, NULL, 0), 0);
        struct fuse_release_in release = {.fh = fh};
        assert_int_equal(call(w, &w->d, FUSE_RELEASE, node, &release, sizeof(release), NULL, 0), 0);
        assert_int_equal(getattr(w, &w->d, node), -ESTALE);
    }
}

/* Headers and data in pieces of any size. */
static void test_pieces(void **state)
{
    struct world *w = *state;
    struct fuse_getattr_in in = {0};
    struct fuse_out_header head;
    uint8_t out[100];

    vdrv_start(&w->d, 0, QUEUES, 256);
    assert_int_equal(init(w, &w->d), 0);
    for (uint32_t piece = 1; piece < 30; piece += 7) {
        uint32_t len = message(out, FUSE_GETATTR, FUSE_ROOT_ID, &in, sizeof(in), "", 0);
        uint32_t want = sizeof(head) + sizeof(struct fuse_attr_out), written;
        struct vdrv_sg sg[256];
        uint64_t at = vdrv_alloc(&w->d, len, 1), to = vdrv_alloc(&w->d, want + 100, 1);
        unsigned nout = 0, nin = 0;

        memcpy(vdrv_ptr(&w->d, at), out, len);
        for (uint32_t i = 0; i < len; i += piece)
            sg[nout++] = (struct vdrv_sg){at + i, MIN(piece, len - i)};
        for (uint32_t i = 0; i < want; i += piece)
            sg[nout + nin++] = (struct vdrv_sg){to + i, piece};
        assert_true(vdrv_add(&w->d.q[REQUEST], sg, nout, nin, w) >= 0);
        vdrv_kick(&w->d.q[REQUEST]);
        assert_ptr_equal(vdrv_wait(&w->d.q[REQUEST], &written), w);
        assert_int_equal(written, want);
        memcpy(&head, vdrv_ptr(&w->d, to), sizeof(head));
        assert_int_equal(head.error, 0);
    }
}

/* What is no request comes back unanswered, and the next one is served. */
static void test_malformed(void **state)
{
    struct world *w = *state;
    uint8_t junk[64];

    memset(junk, 0xff, sizeof(junk));
    vdrv_start(&w->d, 0, QUEUES, 32);
    assert_int_equal(init(w, &w->d), 0);
    for (uint32_t len = 0; len < 40; len++)
        assert_int_equal(vdrv_request(&w->d.q[len & 1], junk, len, w->in, 100), 0);
    assert_int_equal(vdrv_request(&w->d.q[REQUEST], junk, 64, w->in, 100), 16);
    assert_int_equal(vdrv_request(&w->d.q[REQUEST], junk, 64, w->in, 15), 0);
    assert_int_equal(vdrv_request(&w->d.q[REQUEST], junk, 64, NULL, 0), 0);
    assert_int_equal(getattr(w, &w->d, FUSE_ROOT_ID), 0);
    assert_int_equal(vdrv_status(&w->d), 15);
}

/* The session outlives a pause, whatever the host did meanwhile, but not a reset. */
static void test_pause(void **state)
{
    struct world *w = *state;
    uint64_t node, fh;
    char path[100];

    vdrv_start(&w->d, VDRV_PACKED, QUEUES, 32);
    assert_int_equal(init(w, &w->d), 0);
    create(w, &w->d, "file", &node, &fh);
    assert_int_equal(put(w, &w->d, node, fh, "text"), 0);
    device_quiesce(w->d.dev);
    snprintf(path, sizeof(path), "%s/file", w->dir);
    assert_int_equal(unlink(path), 0);
    device_resume(w->d.dev);
    expect(w, &w->d, node, fh, "text");

    vdrv_start(&w->d, VDRV_PACKED, QUEUES, 32);
    assert_int_equal(getattr(w, &w->d, node), -EIO);
    assert_int_equal(init(w, &w->d), 0);
    assert_int_equal(getattr(w, &w->d, node), -ESTALE);
}

/* In another machine the guest's numbers still mean what they did. */
static void test_load(void **state)
{
    struct world *w = *state;
    uint64_t node, fh, gone, gone_fh, next, next_fh;
    char path[100];

    attach(w, &w->d2);
    vdrv_start(&w->d, VDRV_EVENT_IDX, QUEUES, 32);
    assert_int_equal(init(w, &w->d), 0);
    create(w, &w->d, "file", &node, &fh);
    create(w, &w->d, "gone", &gone, &gone_fh);
    assert_int_equal(put(w, &w->d, node, fh, "text"), 0);
    snprintf(path, sizeof(path), "%s/gone", w->dir);
    device_quiesce(w->d.dev);
    assert_int_equal(unlink(path), 0);
    vdrv_move(&w->d, &w->d2);
    expect(w, &w->d2, node, fh, "text");
    assert_int_equal(put(w, &w->d2, gone, gone_fh, "x"), -EBADF);
    create(w, &w->d2, "gone", &next, &next_fh);
    assert_true(next != gone && next_fh != gone_fh);
    assert_int_equal(getattr(w, &w->d2, gone), -ESTALE);
}

/* Resets and pauses with requests in flight. */
static void test_in_flight(void **state)
{
    struct world *w = *state;
    struct fuse_statfs_out *unused = NULL;
    uint8_t out[64];
    uint32_t len = message(out, FUSE_STATFS, FUSE_ROOT_ID, "", 0, "", 0), n;

    for (int round = 0; round < 40; round++) {
        unsigned used = 0;

        w->d.free = MIB;
        vdrv_start(&w->d, round & 1 ? VDRV_PACKED : VDRV_SPLIT, QUEUES, 64);
        assert_int_equal(init(w, &w->d), 0);
        uint64_t at = vdrv_alloc(&w->d, 4096, 8), to = vdrv_alloc(&w->d, 32 * 128, 8);
        memcpy(vdrv_ptr(&w->d, at), out, len);
        for (unsigned i = 0; i < 32; i++) {
            const struct vdrv_sg sg[] = {{at, len}, {to + 128 * i, 16 + sizeof(*unused)}};

            assert_true(vdrv_add(&w->d.q[REQUEST], sg, 1, 1, w) >= 0);
            vdrv_kick(&w->d.q[REQUEST]);
        }
        if (round % 3 == 0) {
            vdrv_reset(&w->d);
            continue;
        }
        device_quiesce(w->d.dev);
        while (vdrv_used(&w->d.q[REQUEST], &n)) /* whole ones */
            used += n == 16 + sizeof(*unused);
        device_resume(w->d.dev);
        while (used < 32) {
            vdrv_wait(&w->d.q[REQUEST], &n);
            assert_int_equal(n, 16 + sizeof(*unused));
            used++;
        }
    }
}

static void test_state_table(void **state)
{
    struct world *w = *state;
    struct pci_bus *bus;

    assert_int_equal(pci_bus_new(&bus, &(struct pci_bus_cfg){.ctx = &w->d.f.ctx}, NULL), 0);
    fake_check_state(&w->d.f, &virtio_fs_class, &(struct virtio_fs_cfg){{bus, 8}, "tag", {w->dir, false, 64}});
    pci_bus_free(bus);
}

#define TEST(t) cmocka_unit_test_setup_teardown(t, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_config), TEST(test_requests), TEST(test_pieces),    TEST(test_malformed),
        TEST(test_pause),  TEST(test_load),     TEST(test_in_flight), TEST(test_state_table),
    };

    umask(022); /* must not show */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
