/* The virtio devices, each with something on the host's side, for tests that treat all alike. */
#include "virtio_rows.h"

#include <arpa/inet.h>
#include <ftw.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "virtio_probe.h"
#include "virtio_talk.h"

#include "base/util.h"
#include "back/block/qcow2.h"
#include "dev/virtio/blk.h"
#include "dev/virtio/console.h"
#include "dev/virtio/fs.h"
#include "dev/virtio/net.h"
#include "dev/virtio/rng.h"
#include "dev/virtio/vsock.h"

#define DISK_QUEUES 3
#define ALL_DISK (BIT(DISK_QUEUES) - 1)

uint64_t vworld_rnd(struct vworld *w)
{
    uint64_t z = w->seed += 0x9e3779b97f4a7c15;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static void make_probe(struct vworld *w)
{
    vdrv_attach(&w->d, &probe_class, &(struct probe_cfg){vdrv_slot(&w->d)});
}

/* Takes, keeps, uses and puts back in any order. */
static void host_probe(struct vworld *w)
{
    struct probe *p = probe_of(&w->d);
    struct virtq *q = &p->v.vq[0];
    struct virtq_chain *c;
    uint8_t buf[64];

    device_lock(w->d.dev);
    while (p->nheld < ARRAY_LEN(p->held) && vworld_rnd(w) % 8 && virtq_pop(q, &c) > 0) {
        virtq_read(c, vworld_rnd(w) % 64, buf, sizeof(buf));
        virtq_write(c, vworld_rnd(w) % 64, buf, sizeof(buf));
        if (vworld_rnd(w) % 4)
            p->held[p->nheld++] = c;
        else
            virtq_unpop(q, c);
    }
    while (p->nheld && vworld_rnd(w) % 8) {
        unsigned i = (unsigned)(vworld_rnd(w) % p->nheld);

        virtq_push(q, p->held[i], (uint32_t)vworld_rnd(w));
        p->held[i] = p->held[--p->nheld];
    }
    if (vworld_rnd(w) & 1)
        virtq_notify(q);
    if (vworld_rnd(w) % 4 == 0)
        virtq_kicks(q, vworld_rnd(w) & 1);
    if (vworld_rnd(w) % 64 == 0)
        virtio_config_changed(&p->v);
    device_unlock(w->d.dev);
}

static void make_rng(struct vworld *w)
{
    vdrv_attach(&w->d, &virtio_rng_class,
                &(struct virtio_rng_cfg){vdrv_slot(&w->d), VIRTIO_RNG_RATE});
}

static void make_console(struct vworld *w)
{
    fakechr_init(&w->chr);
    vdrv_attach(&w->d, &virtio_console_class,
                &(struct virtio_console_cfg){vdrv_slot(&w->d), &w->chr.base});
}

static void host_console(struct vworld *w)
{
    const struct chardev_front *front = &w->chr.base.front;
    uint8_t buf[300] = "input";

    switch (vworld_rnd(w) % 4) {
    case 0:
        w->chr.len = 0;
        w->chr.room = vworld_rnd(w) % sizeof(w->chr.out);
        front->writable(front->arg);
        break;
    case 1:
        front->resized(front->arg);
        break;
    default:
        front->receive(front->arg, buf, 1 + vworld_rnd(w) % sizeof(buf));
        break;
    }
}

static void attach_disk(struct vworld *w)
{
    w->disk = kit_open(&w->kit);
    vdrv_attach(
        &w->d, &virtio_blk_class,
        &(struct virtio_blk_cfg){.slot = vdrv_slot(&w->d), .disk = w->disk, .queues = DISK_QUEUES});
}

static void make_disk(struct vworld *w, enum block_aio_kind aio)
{
    kit_init(&w->kit);
    w->kit.o.aio = aio;
    kit_file(&w->kit, VROWS_DISK, 0);
    attach_disk(w);
}

static void make_disk_sync(struct vworld *w) { make_disk(w, BLOCK_AIO_SYNC); }

static void make_disk_threads(struct vworld *w) { make_disk(w, BLOCK_AIO_THREADS); }

static void make_image(const char *path)
{
    const struct qcow2_create_options o = {.size = VROWS_DISK, .cluster_bits = 9};
    struct block_aio *aio;
    struct err e;

    if (block_aio_new(&aio, BLOCK_AIO_SYNC, &e) || qcow2_create(aio, path, &o, &e))
        fail_msg("%s", e.msg);
    block_aio_free(aio);
}

static void make_disk_qcow2(struct vworld *w)
{
    kit_init(&w->kit);
    make_image(w->kit.path);
    w->kit.o.format = "qcow2";
    attach_disk(w);
}

/* A snapshot with limits that hardly are any. */
static void make_disk_snapshot(struct vworld *w)
{
    kit_init(&w->kit);
    make_image(w->kit.path);
    w->kit.o.format = "qcow2";
    w->kit.o.snapshot = true;
    w->kit.o.iops.rate = 100000;
    w->kit.o.bps = (struct block_limit_cfg){1u << 30, 1u << 20};
    attach_disk(w);
}

static void drop_disk(struct vworld *w)
{
    assert_int_equal(block_close(w->disk), 0);
    kit_fini(&w->kit);
}

uint64_t vworld_heard(struct vworld *w) { return w->heard[vworld_rnd(w) % ARRAY_LEN(w->heard)]; }

/* A port of the loopback interface that nobody uses. */
static struct sockaddr_in free_port(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(a);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_true(fd >= 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof(a)), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&a, &len), 0);
    close(fd);
    return a;
}

/* The guest reaches nothing but who reaches it. */
static void make_net(struct vworld *w)
{
    const struct sockaddr_in host = free_port();
    const struct sockaddr_in guest = {.sin_family = AF_INET, .sin_port = htons(VROWS_TCP_PORT)};
    struct netdev_fwd fwd = {.udp = false};
    const struct netdev_cfg cfg = {.kind = NETDEV_USER,
                                   .mac = {2, 0, 0, 0, 0, 1},
                                   .queues = 2,
                                   .restricted = true,
                                   .fwd = &fwd,
                                   .nfwd = 1};
    struct err e;

    memcpy(&fwd.host, &host, sizeof(host));
    memcpy(&fwd.guest, &guest, sizeof(guest));
    w->port = host.sin_port;
    if (netdev_open(&w->net, &cfg, &w->d.f.log, &e))
        fail_msg("%s", e.msg);
    vdrv_attach(&w->d, &virtio_net_class, &(struct virtio_net_cfg){vdrv_slot(&w->d), w->net});
}

/* Programs send, receive and close. */
static void use_program(struct vworld *w, int *fd)
{
    char buf[2000] = "something";

    switch (vworld_rnd(w) % 8) {
    case 0:
        close(*fd);
        *fd = 0;
        break;
    case 1 ... 2:
        recv(*fd, buf, sizeof(buf), 0);
        break;
    case 3:
        shutdown(*fd, (int)(vworld_rnd(w) % 16 ? SHUT_WR : SHUT_RD));
        break;
    default:
        send(*fd, buf, vworld_rnd(w) % sizeof(buf), MSG_NOSIGNAL);
        break;
    }
}

static void close_programs(struct vworld *w)
{
    for (size_t i = 0; i < ARRAY_LEN(w->program); i++) {
        if (w->program[i])
            close(w->program[i]);
    }
}

static void host_net(struct vworld *w)
{
    struct sockaddr_in a = {
        .sin_family = AF_INET, .sin_port = w->port, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int *fd = &w->program[vworld_rnd(w) % ARRAY_LEN(w->program)];

    if (*fd) {
        use_program(w, fd);
        return;
    }
    *fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    assert_true(*fd > 0);
    connect(*fd, (struct sockaddr *)&a, sizeof(a));
}

static void drop_net(struct vworld *w)
{
    netdev_free(w->net);
    close_programs(w);
}

static void make_fs(struct vworld *w)
{
    kit_init(&w->kit);
    vdrv_attach(&w->d, &virtio_fs_class,
                &(struct virtio_fs_cfg){
                    vdrv_slot(&w->d), "tag", {.dir = w->kit.dir, .fds = SHARE_FDS_MIN}});
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *where)
{
    return where->level ? remove(path) : 0;
}

static void drop_fs(struct vworld *w)
{
    nftw(w->kit.dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    kit_fini(&w->kit);
}

static void vsock_path(struct vworld *w, char *path, size_t size)
{
    assert_true((size_t)snprintf(path, size, "%s/v", w->kit.dir) < size);
}

/* Where the guest's connections to a port of the host go. */
static void vsock_address(struct vworld *w, struct sockaddr_un *a, unsigned port)
{
    char path[VSOCK_PATH_MAX];

    vsock_path(w, path, sizeof(path));
    *a = (struct sockaddr_un){.sun_family = AF_UNIX};
    assert_true((size_t)snprintf(a->sun_path, sizeof(a->sun_path), "%s_%u", path, port) <
                sizeof(a->sun_path));
}

static void make_vsock(struct vworld *w)
{
    struct sockaddr_un a;
    char path[VSOCK_PATH_MAX];

    kit_init(&w->kit);
    vsock_path(w, path, sizeof(path));
    vdrv_attach(&w->d, &virtio_vsock_class,
                &(struct virtio_vsock_cfg){vdrv_slot(&w->d), {VROWS_CID, path, VSOCK_TIMEOUTS}});
    vsock_address(w, &a, VROWS_PORT);
    w->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    assert_true(w->listener > 0);
    assert_int_equal(bind(w->listener, (struct sockaddr *)&a, sizeof(a)), 0);
    assert_int_equal(listen(w->listener, 8), 0);
}

/* Programs come, talk and go. */
static void host_vsock(struct vworld *w)
{
    static const char line[] = "CONNECT 3\n";
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    int *fd = &w->program[vworld_rnd(w) % ARRAY_LEN(w->program)];

    int guest = accept4(w->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    if (guest >= 0) {
        if (*fd)
            close(*fd);
        *fd = guest;
        return;
    }
    if (*fd) {
        use_program(w, fd);
        return;
    }
    vsock_path(w, a.sun_path, sizeof(a.sun_path));
    *fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    assert_true(*fd > 0);
    if (!connect(*fd, (struct sockaddr *)&a, sizeof(a)))
        send(*fd, line, vworld_rnd(w) % 8 ? strlen(line) : vworld_rnd(w) % 8, MSG_NOSIGNAL);
}

static void drop_vsock(struct vworld *w)
{
    struct sockaddr_un a;

    close_programs(w);
    close(w->listener);
    vsock_address(w, &a, VROWS_PORT);
    unlink(a.sun_path);
    kit_fini(&w->kit);
}

const struct vrow vrows[] = {
    {"probe", make_probe, host_probe, NULL, 0, NULL},
    {"rng", make_rng, NULL, NULL, BIT(0), NULL},
    {"console", make_console, host_console, NULL, BIT(1), NULL},
    {"blk sync", make_disk_sync, NULL, vtalk_blk, ALL_DISK, drop_disk},
    {"blk threads", make_disk_threads, NULL, vtalk_blk, ALL_DISK, drop_disk},
    {"blk qcow2", make_disk_qcow2, NULL, vtalk_blk, ALL_DISK, drop_disk},
    {"blk snapshot", make_disk_snapshot, NULL, vtalk_blk, ALL_DISK, drop_disk},
    {"net", make_net, host_net, vtalk_net, BIT(1), drop_net},
    {"fs", make_fs, NULL, vtalk_fs, BIT(0) | BIT(1), drop_fs},
    {"vsock", make_vsock, host_vsock, vtalk_vsock, BIT(1), drop_vsock},
};

const unsigned vrows_n = ARRAY_LEN(vrows);

void vworld_init(struct vworld *w, const struct vrow *row, uint64_t seed)
{
    memset(w, 0, sizeof(*w));
    w->row = row;
    w->seed = seed;
    vdrv_init(&w->d);
    row->make(w);
    w->queues = MIN(w->d.v->queues, VDRV_QUEUES);
}

void vworld_fini(struct vworld *w)
{
    vdrv_fini(&w->d);
    if (w->row->drop)
        w->row->drop(w);
}
