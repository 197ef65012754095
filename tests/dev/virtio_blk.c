/*
 * The virtio block device through registers and rings, on the disk engine named by the first
 * argument: io_uring and threads with the device's thread, sync without.
 */
#include "virtio_driver.h"

#include <stdlib.h>
#include <errno.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../block/kit.h"
#include "base/util.h"
#include "dev/virtio/blk.h"
#include "mem/ram.h"

#define DISK (4 * MIB)
#define SECTORS (DISK / 512)
#define SEED 11

static const char *const engines[] = {"io_uring", "threads", "sync"};
static enum block_aio_kind engine;

struct scene {
    struct kit kit;
    struct blockdev *disk;
    struct vdrv d;
    struct virtio_blk_cfg cfg;
};

struct header {
    uint32_t type, reserved;
    uint64_t sector;
};

struct range {
    uint64_t sector;
    uint32_t sectors, flags;
};

static int setup(void **state)
{
    struct scene *s = calloc(1, sizeof(*s));

    assert_non_null(s);
    kit_init(&s->kit);
    s->kit.o.aio = engine;
    kit_file(&s->kit, DISK, SEED);
    vdrv_init(&s->d);
    *state = s;
    return 0;
}

static int teardown(void **state)
{
    struct scene *s = *state;

    vdrv_fini(&s->d);
    assert_int_equal(block_close(s->disk), 0);
    kit_fini(&s->kit);
    free(s);
    return 0;
}

static void attach(struct scene *s, unsigned queues)
{
    s->disk = kit_open(&s->kit);
    s->cfg = (struct virtio_blk_cfg){
        .slot = vdrv_slot(&s->d), .disk = s->disk, .serial = "serial 7", .queues = queues};
    vdrv_attach(&s->d, &virtio_blk_class, &s->cfg);
}

#define ALL                                                                                 \
    (BIT(VIRTIO_BLK_F_FLUSH) | BIT(VIRTIO_BLK_F_DISCARD) | BIT(VIRTIO_BLK_F_WRITE_ZEROES) | \
     BIT(VIRTIO_BLK_F_MQ))

static void start(struct scene *s, uint64_t ring)
{
    attach(s, 1);
    vdrv_start(&s->d, ring | ALL, 1, 64);
}

/* One request in the usual layout: header; data; status. Returns the status, and what the device
 * says it wrote. */
struct request {
    uint64_t header, data, status;
    uint32_t len;
    bool in;
};

static struct request request_new(struct scene *s, uint32_t type, uint64_t sector, uint32_t len,
                                  bool in)
{
    struct request r = {vdrv_alloc(&s->d, 16, 16), len ? vdrv_alloc(&s->d, len, 4096) : 0,
                        vdrv_alloc(&s->d, 1, 1), len, in};

    *(struct header *)vdrv_ptr(&s->d, r.header) = (struct header){type, 0, sector};
    *(uint8_t *)vdrv_ptr(&s->d, r.status) = 0xaa;
    return r;
}

static void request_add(struct vdrv_queue *q, const struct request *r, void *cookie)
{
    struct vdrv_sg sg[3] = {{r->header, 16}};
    unsigned n = 1;

    if (r->len)
        sg[n++] = (struct vdrv_sg){r->data, r->len};
    sg[n++] = (struct vdrv_sg){r->status, 1};
    assert_true(vdrv_add(q, sg, r->in ? 1 : n - 1, r->in ? n - 1 : 1, cookie) >= 0);
}

static uint8_t status_of(struct scene *s, const struct request *r)
{
    return *(uint8_t *)vdrv_ptr(&s->d, r->status);
}

static uint8_t do_request(struct scene *s, unsigned queue, const struct request *r)
{
    struct vdrv_queue *q = &s->d.q[queue];
    uint32_t written;

    request_add(q, r, (void *)r);
    vdrv_kick(q);
    assert_ptr_equal(vdrv_wait(q, &written), r);
    if (status_of(s, r) == VIRTIO_BLK_S_OK)
        assert_int_equal(written, r->in ? r->len + 1 : 1);
    else
        assert_true(written >= 1);
    return status_of(s, r);
}

static uint8_t do_write(struct scene *s, uint64_t sector, uint64_t seed, uint32_t len)
{
    struct request r = request_new(s, VIRTIO_BLK_T_OUT, sector, len, false);

    kit_fill(seed, sector * 512, vdrv_ptr(&s->d, r.data), len);
    return do_request(s, 0, &r);
}

static void check_read(struct scene *s, uint64_t sector, uint64_t seed, uint32_t len)
{
    struct request r = request_new(s, VIRTIO_BLK_T_IN, sector, len, true);

    assert_int_equal(do_request(s, 0, &r), VIRTIO_BLK_S_OK);
    if (seed)
        kit_check(seed, sector * 512, vdrv_ptr(&s->d, r.data), len);
    else
        assert_true(kit_is_zero(vdrv_ptr(&s->d, r.data), len));
}

static uint8_t do_range(struct scene *s, uint32_t type, struct range range)
{
    struct request r = request_new(s, type, 0, sizeof(range), false);

    *(struct range *)vdrv_ptr(&s->d, r.data) = range;
    return do_request(s, 0, &r);
}

static struct virtio_blk_config read_config(struct scene *s)
{
    struct virtio_blk_config c;

    vdrv_config(&s->d, 0, &c, sizeof(c));
    return c;
}

/* ---- registers ---- */

static void test_config(void **state)
{
    struct scene *s = *state;
    struct virtio_blk_config c;
    uint64_t f;

    attach(s, 3);
    assert_int_equal(vdrv_pci_read(&s->d, 0, 4), 0x10421af4);
    assert_int_equal(vdrv_pci_read(&s->d, 8, 4) >> 16, 0x0100);
    c = read_config(s);
    f = vdrv_offered(&s->d);
    assert_int_equal(f & (ALL | BIT(VIRTIO_BLK_F_CONFIG_WCE) | BIT(VIRTIO_BLK_F_TOPOLOGY) |
                          BIT(VIRTIO_BLK_F_SEG_MAX) | BIT(VIRTIO_BLK_F_SIZE_MAX) |
                          BIT(VIRTIO_BLK_F_BLK_SIZE) | BIT(VIRTIO_BLK_F_RO)),
                     ALL | BIT(VIRTIO_BLK_F_CONFIG_WCE) | BIT(VIRTIO_BLK_F_TOPOLOGY) |
                         BIT(VIRTIO_BLK_F_SEG_MAX) | BIT(VIRTIO_BLK_F_SIZE_MAX) |
                         BIT(VIRTIO_BLK_F_BLK_SIZE));
    assert_int_equal(sizeof(c), 60);
    assert_int_equal(c.capacity, SECTORS);
    assert_int_equal(c.seg_max, 254);
    assert_int_equal(c.blk_size, 512);
    assert_int_equal(c.blk_size << c.physical_block_exp, block_info(s->disk)->physical_block);
    assert_int_equal(c.num_queues, 3);
    assert_int_equal(c.writeback, 1);
    assert_int_equal(c.max_discard_seg, 1);
    assert_int_equal(c.max_write_zeroes_seg, 1);
    assert_true(c.max_discard_sectors && c.max_write_zeroes_sectors && c.discard_sector_alignment);
    assert_int_equal(c.write_zeroes_may_unmap, 1);
    assert_int_equal(vdrv_get(&s->d, VC_NUM_QUEUES, 2), 3);
}

static void test_ro(void **state)
{
    struct scene *s = *state;
    struct request r;

    s->kit.o.ro = true;
    attach(s, 1);
    assert_int_equal(vdrv_offered(&s->d) &
                         (BIT(VIRTIO_BLK_F_RO) | BIT(VIRTIO_BLK_F_DISCARD) |
                          BIT(VIRTIO_BLK_F_WRITE_ZEROES) | BIT(VIRTIO_BLK_F_CONFIG_WCE)),
                     BIT(VIRTIO_BLK_F_RO));
    vdrv_start(&s->d, BIT(VIRTIO_BLK_F_RO) | BIT(VIRTIO_BLK_F_FLUSH), 1, 16);
    assert_int_equal(do_write(s, 0, 2, 512), VIRTIO_BLK_S_IOERR);
    r = request_new(s, VIRTIO_BLK_T_FLUSH, 0, 0, false);
    assert_int_equal(do_request(s, 0, &r), VIRTIO_BLK_S_OK);
    check_read(s, 0, SEED, 512);
}

/* ---- requests ---- */

static void check_requests(struct scene *s, uint64_t ring)
{
    struct request r;
    char id[20] = "serial 7";

    start(s, ring);
    check_read(s, 0, SEED, 4096);
    check_read(s, SECTORS - 1, SEED, 512);
    assert_int_equal(do_write(s, 8, 2, 65536), VIRTIO_BLK_S_OK);
    r = request_new(s, VIRTIO_BLK_T_FLUSH, 0, 0, false);
    assert_int_equal(do_request(s, 0, &r), VIRTIO_BLK_S_OK);
    check_read(s, 8, 2, 65536);
    check_read(s, 7, SEED, 512);
    check_read(s, 8 + 128, SEED, 512);
    r = request_new(s, VIRTIO_BLK_T_GET_ID, 0, 20, true);
    assert_int_equal(do_request(s, 0, &r), VIRTIO_BLK_S_OK);
    assert_memory_equal(vdrv_ptr(&s->d, r.data), id, 20);
    for (int i = 0; i < 200; i++) /* around the ring */
        check_read(s, (uint64_t)i * 8, i >= 1 && i < 17 ? 2 : SEED, 4096);
    assert_true(s->d.irqs[0] > 0);
    assert_int_equal(vdrv_status(&s->d), 0xf);
}

static void test_split(void **state) { check_requests(*state, VDRV_SPLIT); }
static void test_packed(void **state) { check_requests(*state, VDRV_PACKED); }
static void test_event_idx(void **state) { check_requests(*state, VDRV_EVENT_IDX | VDRV_INDIRECT); }
static void test_packed_all(void **state)
{
    check_requests(*state, VDRV_PACKED | VDRV_EVENT_IDX | VDRV_INDIRECT);
}

/* The driver may cut a request anywhere (virtio 1.2 §2.7.4.3). */
static void test_framing(void **state)
{
    struct scene *s = *state;
    uint64_t mem;
    uint8_t *p;

    start(s, VDRV_SPLIT);
    mem = vdrv_alloc(&s->d, 65536, 4096);
    p = vdrv_ptr(&s->d, mem);
    for (unsigned cut = 1; cut < 16 + 1024; cut += cut < 20 ? 1 : 101) {
        struct vdrv_sg w[3] = {{mem, cut}, {mem + cut, 16 + 1024 - cut}, {mem + 8192, 1}};
        struct vdrv_sg r[4] = {
            {mem + 20000, 16}, {mem + 20016, cut}, {mem + 20016 + cut, 1025 - cut}};
        struct header h = {VIRTIO_BLK_T_OUT, 0, cut};

        memcpy(p, &h, 16);
        kit_fill(cut, (uint64_t)cut * 512, p + 16, 1024);
        vdrv_add(&s->d.q[0], w, 2, 1, p);
        vdrv_kick(&s->d.q[0]);
        assert_ptr_equal(vdrv_wait(&s->d.q[0], NULL), p);
        assert_int_equal(p[8192], VIRTIO_BLK_S_OK);

        /* Data and status in one descriptor, or the status behind half of the data. */
        h.type = VIRTIO_BLK_T_IN;
        memcpy(p + 20000, &h, 16);
        memset(p + 20016, 0xee, 1025);
        vdrv_add(&s->d.q[0], r, 1, cut < 1025 ? 2 : 1, p);
        vdrv_kick(&s->d.q[0]);
        assert_ptr_equal(vdrv_wait(&s->d.q[0], NULL), p);
        if (cut < 1025) {
            kit_check(cut, (uint64_t)cut * 512, p + 20016, 1024);
            assert_int_equal(p[20016 + 1024], VIRTIO_BLK_S_OK);
        }
    }
}

static void test_discard_and_zeroes(void **state)
{
    struct scene *s = *state;

    start(s, VDRV_SPLIT);
    assert_int_equal(do_range(s, VIRTIO_BLK_T_DISCARD, (struct range){1024, 1024, 0}),
                     VIRTIO_BLK_S_OK);
    check_read(s, 1024, 0, 65536);
    check_read(s, 1023, SEED, 512);
    check_read(s, 2048, SEED, 512);
    assert_int_equal(do_range(s, VIRTIO_BLK_T_WRITE_ZEROES, (struct range){3000, 5, 0}),
                     VIRTIO_BLK_S_OK);
    assert_int_equal(do_range(s, VIRTIO_BLK_T_WRITE_ZEROES, (struct range){4001, 300, 1}),
                     VIRTIO_BLK_S_OK);
    check_read(s, 2999, SEED, 512);
    check_read(s, 3000, 0, 5 * 512);
    check_read(s, 3005, SEED, 512);
    check_read(s, 4001, 0, 300 * 512);
    check_read(s, 4301, SEED, 512);
    /* §5.2.6.2: flags that do not belong there. */
    assert_int_equal(do_range(s, VIRTIO_BLK_T_DISCARD, (struct range){0, 8, 1}),
                     VIRTIO_BLK_S_UNSUPP);
    assert_int_equal(do_range(s, VIRTIO_BLK_T_DISCARD, (struct range){0, 8, 4}),
                     VIRTIO_BLK_S_UNSUPP);
    assert_int_equal(do_range(s, VIRTIO_BLK_T_WRITE_ZEROES, (struct range){0, 8, 2}),
                     VIRTIO_BLK_S_UNSUPP);
    /* Beyond the end, and around the end of all numbers. */
    assert_int_equal(do_range(s, VIRTIO_BLK_T_WRITE_ZEROES, (struct range){SECTORS - 1, 2, 0}),
                     VIRTIO_BLK_S_IOERR);
    assert_int_equal(do_range(s, VIRTIO_BLK_T_DISCARD, (struct range){UINT64_MAX, 1, 0}),
                     VIRTIO_BLK_S_IOERR);
    assert_int_equal(do_range(s, VIRTIO_BLK_T_DISCARD, (struct range){1ull << 55, 1, 0}),
                     VIRTIO_BLK_S_IOERR);
    assert_int_equal(do_range(s, VIRTIO_BLK_T_DISCARD, (struct range){0, UINT32_MAX, 0}),
                     VIRTIO_BLK_S_IOERR);
    check_read(s, 0, SEED, 8192);
}

static void test_not_negotiated(void **state)
{
    struct scene *s = *state;

    attach(s, 1);
    vdrv_start(&s->d, 0, 1, 16);
    assert_int_equal(do_range(s, VIRTIO_BLK_T_DISCARD, (struct range){0, 8, 0}),
                     VIRTIO_BLK_S_UNSUPP);
    assert_int_equal(do_range(s, VIRTIO_BLK_T_WRITE_ZEROES, (struct range){0, 8, 0}),
                     VIRTIO_BLK_S_UNSUPP);
    check_read(s, 0, SEED, 4096);
    /* Without FLUSH there is no cache to flush (§5.2.6.2). */
    assert_int_equal(do_write(s, 0, 3, 512), VIRTIO_BLK_S_OK);
    assert_false(block_info(s->disk)->writeback);
}

static void test_bad_requests(void **state)
{
    struct scene *s = *state;
    struct request r;

    start(s, VDRV_SPLIT);
    r = request_new(s, 77, 0, 512, true);
    assert_int_equal(do_request(s, 0, &r), VIRTIO_BLK_S_UNSUPP);
    r = request_new(s, VIRTIO_BLK_T_IN, SECTORS, 512, true);
    assert_int_equal(do_request(s, 0, &r), VIRTIO_BLK_S_IOERR);
    r = request_new(s, VIRTIO_BLK_T_IN, SECTORS - 1, 1024, true);
    assert_int_equal(do_request(s, 0, &r), VIRTIO_BLK_S_IOERR);
    r = request_new(s, VIRTIO_BLK_T_IN, 1ull << 55, 512, true);
    assert_int_equal(do_request(s, 0, &r), VIRTIO_BLK_S_IOERR);
    r = request_new(s, VIRTIO_BLK_T_IN, UINT64_MAX, 512, true);
    assert_int_equal(do_request(s, 0, &r), VIRTIO_BLK_S_IOERR);
    r = request_new(s, VIRTIO_BLK_T_IN, 0, 100, true);
    assert_int_equal(do_request(s, 0, &r), VIRTIO_BLK_S_IOERR);
    r = request_new(s, VIRTIO_BLK_T_GET_ID, 0, 5, true);
    assert_int_equal(do_request(s, 0, &r), VIRTIO_BLK_S_IOERR);
    r = request_new(s, VIRTIO_BLK_T_DISCARD, 0, 17, false);
    assert_int_equal(do_request(s, 0, &r), VIRTIO_BLK_S_IOERR);
    r = request_new(s, VIRTIO_BLK_T_DISCARD, 0, 0, false);
    assert_int_equal(do_request(s, 0, &r), VIRTIO_BLK_S_IOERR);
    r = request_new(s, VIRTIO_BLK_T_OUT, 0, 0, false);
    assert_int_equal(do_request(s, 0, &r), VIRTIO_BLK_S_OK);
    /* A header that is not whole. */
    {
        struct vdrv_sg sg[2] = {{vdrv_alloc(&s->d, 16, 16), 15}, {vdrv_alloc(&s->d, 1, 1), 1}};
        uint8_t *status = vdrv_ptr(&s->d, sg[1].gpa);

        *status = 0xaa;
        vdrv_add(&s->d.q[0], sg, 1, 1, status);
        vdrv_kick(&s->d.q[0]);
        assert_ptr_equal(vdrv_wait(&s->d.q[0], NULL), status);
        assert_int_equal(*status, VIRTIO_BLK_S_IOERR);
        assert_int_equal(vdrv_status(&s->d), 0xf);
        /* No place for the status: the chain comes back, and the driver is told to reset. */
        vdrv_add(&s->d.q[0], sg, 1, 0, status);
        vdrv_kick(&s->d.q[0]);
        assert_ptr_equal(vdrv_wait(&s->d.q[0], NULL), status);
        assert_int_equal(vdrv_status(&s->d), 0xf | VIRTIO_NEEDS_RESET);
    }
    vdrv_start(&s->d, ALL, 1, 64);
    check_read(s, 0, SEED, 4096);
}

/* ---- many at once ---- */

#define QUEUES 4
#define DEPTH 16

static void test_queues(void **state)
{
    struct scene *s = *state;
    struct request r[QUEUES][DEPTH];

    attach(s, QUEUES);
    vdrv_start(&s->d, ALL | VDRV_EVENT_IDX, QUEUES, 64);
    for (int round = 0; round < 20; round++) {
        for (unsigned q = 0; q < QUEUES; q++) {
            for (unsigned i = 0; i < DEPTH; i++) {
                uint64_t sector = (q * DEPTH + i) * 8;

                if (round == 0)
                    r[q][i] = request_new(s, 0, sector, 4096, true);
                r[q][i].in = round & 1;
                *(uint32_t *)vdrv_ptr(&s->d, r[q][i].header) =
                    round & 1 ? VIRTIO_BLK_T_IN : VIRTIO_BLK_T_OUT;
                if (round & 1)
                    memset(vdrv_ptr(&s->d, r[q][i].data), 0, 4096);
                else
                    kit_fill((uint64_t)round + 20, sector * 512, vdrv_ptr(&s->d, r[q][i].data),
                             4096);
                request_add(&s->d.q[q], &r[q][i], &r[q][i]);
            }
            if (vdrv_kick_wanted(&s->d.q[q]))
                vdrv_kick(&s->d.q[q]);
        }
        for (unsigned q = 0; q < QUEUES; q++)
            for (unsigned i = 0; i < DEPTH; i++)
                assert_int_equal(status_of(s, vdrv_wait(&s->d.q[q], NULL)), VIRTIO_BLK_S_OK);
        for (unsigned q = 0; q < QUEUES && round & 1; q++)
            for (unsigned i = 0; i < DEPTH; i++)
                kit_check((uint64_t)round + 19, (q * DEPTH + i) * 4096,
                          vdrv_ptr(&s->d, r[q][i].data), 4096);
    }
    for (unsigned q = 0; q < QUEUES; q++)
        assert_true(s->d.irqs[q] > 0);
}

/* Adds n writes to queue 0 and kicks, without waiting for them. */
static void post_writes(struct scene *s, struct request *r, unsigned n, uint64_t seed)
{
    for (unsigned i = 0; i < n; i++) {
        r[i] = request_new(s, VIRTIO_BLK_T_OUT, i * 8, 4096, false);
        kit_fill(seed, i * 4096, vdrv_ptr(&s->d, r[i].data), 4096);
        request_add(&s->d.q[0], &r[i], &r[i]);
    }
    vdrv_kick(&s->d.q[0]);
}

/* A reset with requests in flight: after it nothing of the old rings is touched. */
static void test_reset_in_flight(void **state)
{
    struct scene *s = *state;
    struct request r[16];

    attach(s, 1);
    for (int i = 0; i < 100; i++) {
        uint8_t *device;
        uint8_t copy[6 + 8 * 64];

        vdrv_start(&s->d, ALL | (i & 1 ? VDRV_PACKED : 0), 1, 64);
        s->d.q[0].indirect = false;
        s->d.free = 2 * MIB; /* the rings stay below */
        post_writes(s, r, 16, 5);
        device = vdrv_ptr(&s->d, s->d.q[0].device);
        vdrv_reset(&s->d);
        memcpy(copy, device, i & 1 ? 4 : sizeof(copy));
        vdrv_kick(&s->d.q[0]);
        assert_memory_equal(copy, device, i & 1 ? 4 : sizeof(copy));
        s->d.free = MIB;
    }
    vdrv_start(&s->d, ALL, 1, 64);
    s->d.free = 2 * MIB;
    assert_int_equal(do_write(s, 0, 6, 65536), VIRTIO_BLK_S_OK);
    check_read(s, 0, 6, 65536);
}

static void reset_queue(struct scene *s, unsigned n)
{
    vdrv_set(&s->d, VC_QUEUE_SELECT, 2, n);
    vdrv_set(&s->d, VC_QUEUE_RESET, 2, 1);
    assert_int_equal(vdrv_get(&s->d, VC_QUEUE_ENABLE, 2), 0);
}

/* What a limit holds back must not hold up a reset, nor be done for free by one. */
static void test_reset_of_held(void **state)
{
    struct scene *s = *state;
    struct request r[16];
    uint8_t buf[512];

    if (engine == BLOCK_AIO_SYNC)
        skip(); /* there a kick lasts as long as its requests */
    s->kit.o.iops.rate = 1;
    attach(s, 1);
    vdrv_start(&s->d, ALL, 1, 64);
    post_writes(s, r, 16, 5);
    assert_ptr_equal(vdrv_wait(&s->d.q[0], NULL), &r[0]);
    vdrv_reset(&s->d);
    kit_read_file(&s->kit, 15 * 4096, buf, 512);
    kit_check(SEED, 15 * 4096, buf, 512);
}

/* Two queues; of the first one's sixteen writes a limit holds back all but one. */
static void hold_writes(struct scene *s, struct request r[16])
{
    s->kit.o.iops.rate = 1;
    attach(s, 2);
    vdrv_start(&s->d, ALL | BIT(VIRTIO_F_RING_RESET), 2, 64);
    post_writes(s, r, 16, 5);
    assert_ptr_equal(vdrv_wait(&s->d.q[0], NULL), &r[0]);
    while (__atomic_load_n(&s->d.v->s->queue[0].avail, __ATOMIC_ACQUIRE) < 16)
        usleep(1000); /* the I/O thread has yet to come to them */
}

/* Nor a reset of one queue. */
static void test_queue_reset_of_held(void **state)
{
    struct scene *s = *state;
    struct request r[16];
    uint8_t buf[512];

    if (engine == BLOCK_AIO_SYNC)
        skip();
    hold_writes(s, r);
    reset_queue(s, 0);
    assert_int_equal(block_inflight(s->disk), 0);
    kit_read_file(&s->kit, 15 * 4096, buf, 512);
    kit_check(SEED, 15 * 4096, buf, 512);
    vdrv_queue(&s->d, 0, 32);
    vdrv_reset(&s->d);
}

/* Queues that are reset one after the other, while a third one keeps the thread busy. */
static void test_queue_resets_by_turns(void **state)
{
    struct scene *s = *state;
    struct request busy[8], one;
    unsigned n = ARRAY_LEN(busy);

    if (engine == BLOCK_AIO_SYNC)
        skip();
    attach(s, 3);
    vdrv_start(&s->d, ALL | BIT(VIRTIO_F_RING_RESET), 3, 64);
    for (unsigned i = 0; i < n; i++) {
        busy[i] = request_new(s, VIRTIO_BLK_T_OUT, i * 8, 4096, false);
        request_add(&s->d.q[2], &busy[i], &busy[i]);
    }
    vdrv_kick(&s->d.q[2]);
    one = request_new(s, VIRTIO_BLK_T_OUT, 800, 4096, false);
    for (unsigned round = 0; round < 400; round++) {
        unsigned q = round & 1;
        struct request *done;

        request_add(&s->d.q[q], &one, &one);
        vdrv_kick(&s->d.q[q]);
        reset_queue(s, q);
        vdrv_queue(&s->d, q, 32);
        while ((done = vdrv_used(&s->d.q[2], NULL))) {
            request_add(&s->d.q[2], done, done);
            vdrv_kick(&s->d.q[2]);
        }
    }
    assert_int_equal(do_request(s, 0, &one), VIRTIO_BLK_S_OK);
    assert_int_equal(do_request(s, 1, &one), VIRTIO_BLK_S_OK);
    vdrv_reset(&s->d);
}

/* A reset of one queue does not wait for the others' requests. */
static void test_queue_reset_beside_held(void **state)
{
    struct scene *s = *state;
    struct request r[16], one;

    if (engine == BLOCK_AIO_SYNC)
        skip();
    hold_writes(s, r);
    reset_queue(s, 1);
    vdrv_queue(&s->d, 1, 32);
    assert_true(block_inflight(s->disk) > 0);
    /* Neither its requests are lost nor the other's. */
    one = request_new(s, VIRTIO_BLK_T_GET_ID, 0, VIRTIO_BLK_ID_BYTES, true);
    assert_int_equal(do_request(s, 1, &one), VIRTIO_BLK_S_OK);
    assert_ptr_equal(vdrv_wait(&s->d.q[0], NULL), &r[1]);
    vdrv_reset(&s->d);
}

/* Quiesced, everything taken is complete; another machine goes on from the saved state, with the
 * same memory and the same image. */
static void test_migration(void **state)
{
    struct scene *s = *state, *t = NULL;
    struct request r[20];
    struct sbuf b;
    size_t n;

    setup((void **)&t);
    s->kit.o.no_lock = t->kit.o.no_lock = true;
    attach(s, 2);
    vdrv_start(&s->d, ALL | BIT(VIRTIO_BLK_F_CONFIG_WCE) | VDRV_PACKED, 2, 64);
    vdrv_write(&s->d, s->d.config + offsetof(struct virtio_blk_config, writeback), 1, 0);
    post_writes(s, r, ARRAY_LEN(r), 5);
    device_quiesce(s->d.dev);
    assert_int_equal(block_inflight(s->disk), 0);
    sbuf_init(&b);
    assert_int_equal(device_save(s->d.dev, &b), 0);

    unlink(t->kit.path);
    assert_int_equal(link(s->kit.path, t->kit.path), 0);
    attach(t, 2);
    memcpy(t->d.ram->host, s->d.ram->host, VDRV_RAM);
    memcpy(t->d.q, s->d.q, sizeof(t->d.q));
    t->d.q[0].d = &t->d;
    t->d.free = s->d.free;
    device_quiesce(t->d.dev);
    assert_int_equal(device_load(t->d.dev, b.data, b.len, &n, NULL), 0);
    assert_int_equal(n, b.len);
    device_resume(t->d.dev);

    for (unsigned i = 0; i < ARRAY_LEN(r); i++)
        assert_int_equal(status_of(t, vdrv_wait(&t->d.q[0], NULL)), VIRTIO_BLK_S_OK);
    assert_int_equal(read_config(t).writeback, 0);
    while (block_info(t->disk)->writeback) /* the I/O thread has yet to come to it */
        usleep(1000);
    check_read(t, 0, 5, ARRAY_LEN(r) * 4096);
    sbuf_free(&b);
    teardown((void **)&t);
}

static void ignore_msi(void *owner, uint64_t addr, uint32_t data) {}

static void test_state(void **state)
{
    struct scene *s = *state;
    const struct pci_bus_cfg cfg = {.ctx = &s->d.f.ctx, .pio = s->d.f.pio, .msi = ignore_msi};

    /* Messages of random states go anywhere. */
    pci_bus_free(s->d.bus);
    assert_int_equal(pci_bus_new(&s->d.bus, &cfg, NULL), 0);
    s->disk = kit_open(&s->kit);
    s->cfg = (struct virtio_blk_cfg){.slot = vdrv_slot(&s->d), .disk = s->disk, .queues = 2};
    fake_check_state(&s->d.f, &virtio_blk_class, &s->cfg);
}

/* ---- configuration ---- */

static void test_writeback(void **state)
{
    struct scene *s = *state;
    uint64_t field = offsetof(struct virtio_blk_config, writeback);

    attach(s, 1);
    vdrv_start(&s->d, ALL | BIT(VIRTIO_BLK_F_CONFIG_WCE), 1, 16);
    check_read(s, 0, SEED, 512); /* it runs */
    assert_true(block_info(s->disk)->writeback);
    vdrv_write(&s->d, s->d.config + field, 1, 0);
    assert_int_equal(read_config(s).writeback, 0);
    /* The second one finds the thread, which was woken for both, past the change. */
    assert_int_equal(do_write(s, 0, 2, 512), VIRTIO_BLK_S_OK);
    assert_int_equal(do_write(s, 0, 2, 512), VIRTIO_BLK_S_OK);
    assert_false(block_info(s->disk)->writeback);
    vdrv_reset(&s->d);
    assert_int_equal(read_config(s).writeback, 1);
    /* What else is there cannot be written. */
    vdrv_write(&s->d, s->d.config, 4, 0);
    assert_int_equal(read_config(s).capacity, SECTORS);
}

static void test_resize(void **state)
{
    struct scene *s = *state;
    struct err e;
    unsigned before;
    uint8_t generation;

    start(s, VDRV_SPLIT);
    check_read(s, 0, SEED, 512);
    before = s->d.irqs[vdrv_config_vector(&s->d)];
    generation = (uint8_t)vdrv_get(&s->d, VC_GENERATION, 1);
    assert_int_equal(virtio_blk_resize(s->d.dev, DISK + 1, &e), -EINVAL);
    assert_int_equal(s->d.irqs[vdrv_config_vector(&s->d)], before);
    assert_int_equal(virtio_blk_resize(s->d.dev, 2 * DISK, &e), 0);
    assert_int_equal(s->d.irqs[vdrv_config_vector(&s->d)], before + 1);
    assert_int_not_equal(vdrv_get(&s->d, VC_GENERATION, 1), generation);
    assert_int_equal(read_config(s).capacity, 2 * SECTORS);
    check_read(s, 2 * SECTORS - 8, 0, 4096);
    assert_int_equal(do_write(s, 2 * SECTORS - 8, 9, 4096), VIRTIO_BLK_S_OK);
    check_read(s, 2 * SECTORS - 8, 9, 4096);
}

/* ---- a hostile driver ---- */

static uint64_t rng(uint64_t *s)
{
    *s ^= *s << 13;
    *s ^= *s >> 7;
    *s ^= *s << 17;
    return *s;
}

/* Rings and tables full of nonsense, half sense and sense, and resets at any time. Nothing may
 * crash, hang or be written beyond the disk; afterwards a good driver is served. */
static void test_fuzz(void **state)
{
    struct scene *s = *state;
    uint64_t seed = 88172645463325252u + engine;
    struct stat st;

    attach(s, 2);
    for (int round = 0; round < 300; round++) {
        bool packed = rng(&seed) & 1;
        struct vdrv_queue *q;
        struct vdrv_desc *desc;
        uint16_t *avail;

        s->d.free = MIB;
        vdrv_start(&s->d,
                   ALL | (packed ? VDRV_PACKED : 0) | (rng(&seed) & 1 ? VDRV_EVENT_IDX : 0) |
                       VDRV_INDIRECT,
                   2, 16);
        q = &s->d.q[rng(&seed) & 1];
        desc = vdrv_ptr(&s->d, q->desc);
        avail = vdrv_ptr(&s->d, q->driver);
        for (int step = 0; step < 30; step++) {
            for (unsigned i = 0; i < 16; i++) {
                uint64_t r = rng(&seed);
                struct vdrv_desc *x = &desc[i];
                struct header *h;

                x->addr = 2 * MIB + (r >> 8) % (8 * MIB);
                h = vdrv_ptr(&s->d, x->addr & ~15ull);
                *h = (struct header){(uint32_t)(r % 16), 0, (r >> 20) % (SECTORS + 9)};
                x->addr = r & 7 ? (uint64_t)((uint8_t *)h - s->d.ram->host) : r;
                x->len = r & 0x30 ? (uint32_t)(r >> 40) % 5 * 512 + (i % 3 ? 0 : 16)
                                  : (uint32_t)(r >> 9);
                if (packed) {
                    x->a = (uint16_t)(r & 0x40 ? i : r >> 12);
                    x->b = (uint16_t)((r >> 30 & 7) | (r & 0x80 ? BIT(7) : BIT(15)));
                } else {
                    x->a = (uint16_t)(r >> 30 & (r & 0x700 ? 3 : 7));
                    x->b = (uint16_t)(r & 0x7000 ? (i + 1) % 16 : r >> 50);
                }
            }
            if (!packed) {
                for (unsigned i = 0; i < 16; i++)
                    avail[2 + i] = (uint16_t)(rng(&seed) % 17);
                avail[1] = (uint16_t)(avail[1] + rng(&seed) % (rng(&seed) & 7 ? 4 : 40));
            }
            vdrv_kick(q);
            if (vdrv_status(&s->d) & VIRTIO_NEEDS_RESET)
                break;
        }
        if (rng(&seed) & 1) {
            device_quiesce(s->d.dev);
            device_resume(s->d.dev);
        }
    }
    s->d.free = MIB;
    vdrv_start(&s->d, ALL, 2, 64);
    assert_int_equal(do_write(s, 0, 3, 65536), VIRTIO_BLK_S_OK);
    check_read(s, 0, 3, 65536);
    assert_int_equal(stat(s->kit.path, &st), 0);
    assert_int_equal(st.st_size, DISK);
}

/* A full host disk is an I/O error, and the device goes on. */
static void test_host_error(void **state)
{
    struct scene *s = *state;
    struct rlimit old, lim;

    start(s, VDRV_SPLIT);
    s->d.f.log.level = LOG_ERROR;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    lim = old;
    lim.rlim_cur = MIB;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &lim), 0);
    assert_int_equal(do_write(s, 4096, 3, 4096), VIRTIO_BLK_S_IOERR);
    check_read(s, 4096, SEED, 4096);
    assert_int_equal(do_write(s, 8, 3, 4096), VIRTIO_BLK_S_OK);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    assert_int_equal(do_write(s, 4096, 3, 4096), VIRTIO_BLK_S_OK);
    assert_int_equal(vdrv_status(&s->d), 0xf);
}

int main(int argc, char **argv)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_config),
        T(test_ro),
        T(test_split),
        T(test_packed),
        T(test_event_idx),
        T(test_packed_all),
        T(test_framing),
        T(test_discard_and_zeroes),
        T(test_not_negotiated),
        T(test_bad_requests),
        T(test_queues),
        T(test_reset_in_flight),
        T(test_reset_of_held),
        T(test_queue_reset_of_held),
        T(test_queue_reset_beside_held), T(test_queue_resets_by_turns),
        T(test_migration),
        T(test_state),
        T(test_writeback),
        T(test_resize),
        T(test_fuzz),
        T(test_host_error),
    };

    if (argc != 2)
        return 2;
    for (size_t i = 0; i < ARRAY_LEN(engines); i++)
        if (!strcmp(argv[1], engines[i]))
            engine = (enum block_aio_kind)i;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
