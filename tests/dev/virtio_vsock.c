/* The virtio socket device (virtio 1.2 §5.10) on its rings; connections are tests/vsock's. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "virtio_driver.h"

#include "base/util.h"
#include "dev/virtio/vsock.h"

enum { RX, TX, EVENT, QUEUES };

#define CID 0x12345678u
#define BUF (4096 + sizeof(struct vsock_hdr))

struct world {
    char dir[64], path[80], path2[80];
    struct vdrv d, d2;
    struct vsock_hdr h; /* the last packet received */
    uint8_t data[4096];
};

static void attach(struct vdrv *d, const char *path)
{
    vdrv_init(d);
    vdrv_attach(d, &virtio_vsock_class, &(struct virtio_vsock_cfg){vdrv_slot(d), {CID, path, VSOCK_TIMEOUTS}});
}

static int setup(void **state)
{
    struct world *w = calloc(1, sizeof(*w));

    strcpy(w->dir, "/tmp/ring3-vsock-XXXXXX");
    assert_non_null(mkdtemp(w->dir));
    snprintf(w->path, sizeof(w->path), "%s/v", w->dir);
    snprintf(w->path2, sizeof(w->path2), "%s/w", w->dir);
    attach(&w->d, w->path);
    *state = w;
    return 0;
}

static int teardown(void **state)
{
    struct world *w = *state;

    vdrv_fini(&w->d);
    if (w->d2.dev)
        vdrv_fini(&w->d2);
    assert_int_equal(rmdir(w->dir), 0); /* the sockets are gone */
    free(w);
    return 0;
}

/* ---- driver and program ---- */

/* Buffers for packets, of a header and data apart, as Linux has them, or in one. */
static void post(struct vdrv *d, unsigned n)
{
    while (n--) {
        uint64_t at = vdrv_alloc(d, BUF, 8);
        const struct vdrv_sg sg[] = {{at, sizeof(struct vsock_hdr)}, {at + sizeof(struct vsock_hdr), 4096}};
        const struct vdrv_sg one = {at, BUF};

        assert_true(vdrv_add(&d->q[RX], n & 1 ? sg : &one, 0, n & 1 ? 2 : 1, (void *)at) >= 0);
    }
    vdrv_kick(&d->q[RX]);
}

static uint16_t receive(struct world *w, struct vdrv *d)
{
    uint32_t n;
    const uint8_t *p = vdrv_ptr(d, (uint64_t)vdrv_wait(&d->q[RX], &n));

    memcpy(&w->h, p, sizeof(w->h));
    assert_int_equal(n, sizeof(w->h) + w->h.len);
    assert_int_equal(w->h.dst_cid, CID);
    memcpy(w->data, p + sizeof(w->h), w->h.len);
    return w->h.op;
}

static void transmit(struct vdrv *d, uint16_t op, uint32_t src, uint32_t dst, const char *text)
{
    uint8_t p[200];
    struct vsock_hdr h = {.src_cid = CID,
                          .dst_cid = VSOCK_CID_HOST,
                          .src_port = src,
                          .dst_port = dst,
                          .len = (uint32_t)strlen(text),
                          .type = VSOCK_TYPE_STREAM,
                          .op = op,
                          .buf_alloc = 65536};

    memcpy(p, &h, sizeof(h));
    memcpy(p + sizeof(h), text, strlen(text));
    assert_int_equal(vdrv_request(&d->q[TX], p, (uint32_t)(sizeof(h) + strlen(text)), NULL, 0), 0);
}

static int dial(const char *path)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    strcpy(a.sun_path, path);
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof(a)), 0);
    assert_int_equal(write(fd, "CONNECT 5\n", 10), 10);
    return fd;
}

/* A connection from the host, accepted. */
static int open_one(struct world *w, struct vdrv *d, const char *path, uint32_t *port)
{
    int fd = dial(path);
    char line[32] = "";

    post(d, 2);
    assert_int_equal(receive(w, d), VSOCK_REQUEST);
    assert_int_equal(w->h.dst_port, 5);
    *port = w->h.src_port;
    transmit(d, VSOCK_RESPONSE, 5, *port, "");
    assert_true(read(fd, line, sizeof(line) - 1) > 0);
    assert_int_equal(strncmp(line, "OK ", 3), 0);
    return fd;
}

static void talk(struct world *w, struct vdrv *d, int fd, uint32_t port)
{
    char buf[16] = "";

    transmit(d, VSOCK_RW, 5, port, "to host");
    assert_int_equal(read(fd, buf, sizeof(buf)), 7);
    assert_string_equal(buf, "to host");
    assert_int_equal(write(fd, "to guest", 8), 8);
    post(d, 1);
    assert_int_equal(receive(w, d), VSOCK_RW);
    assert_int_equal(w->h.len, 8);
    assert_memory_equal(w->data, "to guest", 8);
}

/* ---- tests ---- */

static void test_config(void **state)
{
    struct world *w = *state;
    uint64_t cid;

    vdrv_config(&w->d, 0, &cid, 8);
    assert_int_equal(cid, CID);
    assert_int_equal(vdrv_get(&w->d, VC_NUM_QUEUES, 2), QUEUES);
    assert_int_equal(vdrv_offered(&w->d) & 0xffffff, 1); /* streams */
}

static void test_streams(void **state)
{
    static const uint64_t features[] = {VDRV_SPLIT, VDRV_PACKED, VDRV_EVENT_IDX, VDRV_PACKED | VDRV_EVENT_IDX};
    struct world *w = *state;
    uint32_t port;

    for (size_t i = 0; i < ARRAY_LEN(features); i++) {
        vdrv_start(&w->d, features[i], QUEUES, 32);

        int fd = open_one(w, &w->d, w->path, &port);
        talk(w, &w->d, fd, port);
        close(fd);
        post(&w->d, 1);
        assert_int_equal(receive(w, &w->d), VSOCK_SHUTDOWN);
        transmit(&w->d, VSOCK_RST, 5, port, "");
        transmit(&w->d, VSOCK_REQUEST, 8, 9, ""); /* nobody listens */
        post(&w->d, 1);
        assert_int_equal(receive(w, &w->d), VSOCK_RST);
    }
}

/* Without buffers nothing is lost, and the device takes no more packets than it can answer. */
static void test_no_buffers(void **state)
{
    struct world *w = *state;
    struct vsock_hdr h = {.src_cid = CID, .dst_cid = VSOCK_CID_HOST, .type = VSOCK_TYPE_STREAM, .op = VSOCK_RW};
    unsigned added = 0, used = 0, answers = 0;

    vdrv_start(&w->d, VDRV_EVENT_IDX, QUEUES, 128);
    for (int round = 0; round < 10; round++) {
        for (; added - used < 128; added++) {
            uint64_t at = vdrv_alloc(&w->d, sizeof(h), 8);
            const struct vdrv_sg sg = {at, sizeof(h)};

            h.src_port = added;
            memcpy(vdrv_ptr(&w->d, at), &h, sizeof(h));
            assert_true(vdrv_add(&w->d.q[TX], &sg, 1, 0, w) >= 0);
        }
        vdrv_kick(&w->d.q[TX]);
        if (round < 2) {
            for (; used < added; used++)
                assert_non_null(vdrv_wait(&w->d.q[TX], NULL));
        }
    }
    usleep(10000); /* nothing more may come */
    assert_null(vdrv_used(&w->d.q[TX], NULL));
    while (answers < added) {
        post(&w->d, 16);
        for (unsigned i = 0; i < 16 && answers < added; i++) {
            assert_int_equal(receive(w, &w->d), VSOCK_RST);
            assert_int_equal(w->h.dst_port, answers++);
        }
        vdrv_kick_wanted(&w->d.q[TX]);
    }
    for (; used < added; used++)
        assert_non_null(vdrv_wait(&w->d.q[TX], NULL));
}

/* Packets without a whole header, buffers without room for one. */
static void test_malformed(void **state)
{
    struct world *w = *state;
    uint8_t junk[sizeof(struct vsock_hdr)];
    uint32_t port;

    memset(junk, 0xff, sizeof(junk));
    vdrv_start(&w->d, 0, QUEUES, 64);
    for (uint32_t len = 0; len < sizeof(junk); len++)
        assert_int_equal(vdrv_request(&w->d.q[TX], junk, len, w->data, 8), 0);
    assert_int_equal(vdrv_request(&w->d.q[TX], junk, sizeof(junk), NULL, 0), 0);

    int fd = dial(w->path);
    for (uint32_t len = 1; len <= sizeof(junk); len += 11)
        assert_int_equal(vdrv_request(&w->d.q[RX], NULL, 0, w->data, len), 0);
    assert_int_equal(vdrv_request(&w->d.q[RX], junk, 4, NULL, 0), 0);
    post(&w->d, 1);
    assert_int_equal(receive(w, &w->d), VSOCK_REQUEST);
    close(fd);
    vdrv_start(&w->d, 0, QUEUES, 64);
    fd = open_one(w, &w->d, w->path, &port);
    talk(w, &w->d, fd, port);
    close(fd);
}

/* A pause is not noticed; a reset ends what there was. */
static void test_pause(void **state)
{
    struct world *w = *state;
    uint32_t port;
    char c;

    vdrv_start(&w->d, VDRV_PACKED, QUEUES, 32);
    int fd = open_one(w, &w->d, w->path, &port);
    const struct vdrv_sg sg = {vdrv_alloc(&w->d, 4, 4), 4};
    assert_true(vdrv_add(&w->d.q[EVENT], &sg, 0, 1, w) >= 0);
    vdrv_kick(&w->d.q[EVENT]);
    for (int i = 0; i < 20; i++) {
        device_quiesce(w->d.dev);
        device_resume(w->d.dev);
        talk(w, &w->d, fd, port);
    }
    assert_null(vdrv_used(&w->d.q[EVENT], NULL));
    vdrv_reset(&w->d);
    assert_true(recv(fd, &c, 1, 0) <= 0);
    close(fd);
}

/* A loaded state has no connections, and its driver is told. */
static void test_load(void **state)
{
    struct world *w = *state;
    uint32_t port, n;

    attach(&w->d2, w->path2);
    vdrv_start(&w->d, VDRV_EVENT_IDX, QUEUES, 32);
    int fd = open_one(w, &w->d, w->path, &port);
    vdrv_move(&w->d, &w->d2);

    /* The event waits for a buffer. */
    uint64_t at = vdrv_alloc(&w->d2, 4, 4);
    const struct vdrv_sg sg = {at, 4};
    memset(vdrv_ptr(&w->d2, at), 0xff, 4);
    assert_true(vdrv_add(&w->d2.q[EVENT], &sg, 0, 1, w) >= 0);
    vdrv_kick(&w->d2.q[EVENT]);
    assert_ptr_equal(vdrv_wait(&w->d2.q[EVENT], &n), w);
    assert_int_equal(n, 4);
    assert_memory_equal(vdrv_ptr(&w->d2, at), "\0\0\0", 4);

    transmit(&w->d2, VSOCK_RW, 5, port, "old");
    assert_int_equal(receive(w, &w->d2), VSOCK_RST); /* into a buffer posted before */
    int fd2 = open_one(w, &w->d2, w->path2, &port);
    talk(w, &w->d2, fd2, port);
    close(fd);
    close(fd2);
}

static void test_state_table(void **state)
{
    struct world *w = *state;
    struct pci_bus *bus;

    assert_int_equal(pci_bus_new(&bus, &(struct pci_bus_cfg){.ctx = &w->d.f.ctx}, NULL), 0);
    fake_check_state(&w->d.f, &virtio_vsock_class,
                     &(struct virtio_vsock_cfg){{bus, 8}, {CID, w->path2, VSOCK_TIMEOUTS}});
    pci_bus_free(bus);
}

#define TEST(t) cmocka_unit_test_setup_teardown(t, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_config), TEST(test_streams), TEST(test_no_buffers), TEST(test_malformed),
        TEST(test_pause),  TEST(test_load),    TEST(test_state_table),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
