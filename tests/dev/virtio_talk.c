#include "virtio_talk.h"

#include <arpa/inet.h>
#include <linux/fuse.h>
#include <string.h>

#include "base/util.h"
#include "dev/virtio/blk.h"

static unsigned below(struct vworld *w, unsigned n) { return (unsigned)(vworld_rnd(w) % n); }

static void put(struct vtalk *t, const void *p, size_t n)
{
    n = MIN(n, VTALK_MAX - t->out_len);
    memcpy(t->out + t->out_len, p, n);
    t->out_len += (unsigned)n;
}

static void put_random(struct vworld *w, struct vtalk *t, unsigned n)
{
    while (n--)
        put(t, &(uint8_t){(uint8_t)vworld_rnd(w)}, 1);
}

/* ---- disks ---- */

void vtalk_blk(struct vworld *w, unsigned queue, struct vtalk *t)
{
    static const uint32_t types[] = {
        VIRTIO_BLK_T_IN,           VIRTIO_BLK_T_OUT,     VIRTIO_BLK_T_IN,
        VIRTIO_BLK_T_OUT,          VIRTIO_BLK_T_FLUSH,   VIRTIO_BLK_T_GET_ID,
        VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_T_DISCARD, 77};
    uint32_t type = types[below(w, ARRAY_LEN(types))], sectors = 1 + below(w, 8);
    struct {
        uint32_t type, reserved;
        uint64_t sector;
    } h = {type, 0, below(w, 32) ? below(w, VROWS_DISK / 512 + 2) : vworld_rnd(w)};
    struct {
        uint64_t sector;
        uint32_t sectors, flags;
    } range = {h.sector, below(w, 16) ? below(w, 300) : (uint32_t)vworld_rnd(w), below(w, 2)};

    put(t, &h, sizeof(h));
    t->in_len = 1;
    if (type == VIRTIO_BLK_T_IN)
        t->in_len += 512 * sectors;
    if (type == VIRTIO_BLK_T_OUT)
        put_random(w, t, 512 * sectors);
    if (type == VIRTIO_BLK_T_GET_ID)
        t->in_len += VIRTIO_BLK_ID_BYTES;
    if (type == VIRTIO_BLK_T_WRITE_ZEROES || type == VIRTIO_BLK_T_DISCARD)
        put(t, &range, sizeof(range));
}

/* ---- network ---- */

#define GUEST_IP "\x0a\x00\x02\x0f"
#define HOST_IP "\x0a\x00\x02\x02"
#define FRAME 12u /* bytes of header before it */

static uint32_t sum16(uint32_t sum, const uint8_t *p, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        sum += i & 1 ? p[i] : (uint32_t)p[i] << 8;
    return sum;
}

static void set_sum(uint8_t *at, uint32_t sum)
{
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    at[0] = (uint8_t)(~sum >> 8);
    at[1] = (uint8_t)~sum;
}

static void ethernet(struct vtalk *t, bool broadcast, uint16_t type)
{
    put(t, broadcast ? "\xff\xff\xff\xff\xff\xff" : "\x52\x55\x0a\x00\x02\x02", 6);
    put(t, "\x02\0\0\0\0\x01", 6);
    put(t, (uint8_t[]){(uint8_t)(type >> 8), (uint8_t)type}, 2);
}

static void arp(struct vtalk *t)
{
    ethernet(t, true, 0x0806);
    put(t, "\0\x01\x08\0\x06\x04\0\x01\x02\0\0\0\0\x01" GUEST_IP "\0\0\0\0\0\0" HOST_IP, 28);
}

/* An IPv4 packet of this protocol; returns where what comes behind its header begins. */
static uint8_t *ip(struct vworld *w, struct vtalk *t, uint8_t protocol, const void *head,
                   unsigned head_len, unsigned payload)
{
    unsigned len = 20 + head_len + payload;
    uint8_t *p;

    ethernet(t, false, 0x0800);
    p = t->out + t->out_len;
    put(t, (uint8_t[]){0x45, 0, (uint8_t)(len >> 8), (uint8_t)len, 0, 1, 0, 0, 64, protocol, 0, 0},
        12);
    put(t, GUEST_IP HOST_IP, 8);
    set_sum(p + 10, sum16(0, p, 20));
    put(t, head, head_len);
    put_random(w, t, payload);
    return p + 20;
}

static void ping(struct vworld *w, struct vtalk *t)
{
    unsigned payload = below(w, 200);
    uint8_t *p = ip(w, t, 1, "\x08\0\0\0\0\x01\0\x01", 8, payload);

    set_sum(p + 2, sum16(0, p, 8 + payload));
}

/* Segments that the back end has to cut or to complete. */
static void tcp(struct vworld *w, struct vtalk *t)
{
    static const uint8_t gso[] = {NET_GSO_NONE, NET_GSO_TCPV4, NET_GSO_TCPV4 | NET_GSO_ECN,
                                  NET_GSO_TCPV6, 3};
    struct net_hdr h = {.flags = NET_HDR_NEEDS_CSUM,
                        .gso_type = gso[below(w, ARRAY_LEN(gso))],
                        .hdr_len = 54,
                        .gso_size = (uint16_t)(below(w, 8) ? 500 + below(w, 1000) : below(w, 3)),
                        .csum_start = 34,
                        .csum_offset = 16};

    ip(w, t, 6, "\x10\0\0\x50\0\0\0\x01\0\0\0\0\x50\x02\xff\xff\0\0\0\0", 20, below(w, 5000));
    memcpy(t->out, &h, sizeof(h));
}

static void control(struct vworld *w, struct vtalk *t)
{
    uint32_t n = below(w, 8) ? below(w, 5) : (uint32_t)vworld_rnd(w);

    put(t, (uint8_t[]){(uint8_t)below(w, 6), (uint8_t)below(w, 4)}, 2);
    switch (below(w, 4)) {
    case 0: /* a switch */
        put(t, &n, 1);
        break;
    case 1: /* a number */
        put(t, &n, 2);
        break;
    case 2: /* an address */
        put(t, "\x02\0\0\0\0\x01", 6);
        break;
    default: /* two tables */
        for (int i = 0; i < 2; i++) {
            put(t, &n, 4);
            put_random(w, t, 6 * (n < 5 ? n : 3));
        }
        break;
    }
    t->in_len = 1;
}

void vtalk_net(struct vworld *w, unsigned queue, struct vtalk *t)
{
    if (below(w, 4) == 0 && queue % 2 == 0 && queue) {
        control(w, t); /* which it is depends on the features */
    } else if (queue % 2 == 0) {
        t->in_len = below(w, 2) ? 1600 : 12 + below(w, 300);
    } else {
        t->out_len = FRAME; /* no offloads */
        switch (below(w, 4)) {
        case 0:
            arp(t);
            break;
        case 1:
            tcp(w, t);
            break;
        default:
            ping(w, t);
            break;
        }
    }
}

/* ---- directories ---- */

void vtalk_fs(struct vworld *w, unsigned queue, struct vtalk *t)
{
    static const struct {
        uint8_t op, words, names;
    } shapes[] = {
        {FUSE_INIT, 16, 0}, /* first */
        {FUSE_LOOKUP, 0, 1},       {FUSE_FORGET, 2, 0},     {FUSE_GETATTR, 4, 0},
        {FUSE_SETATTR, 22, 0},     {FUSE_SYMLINK, 0, 2},    {FUSE_MKDIR, 2, 1},
        {FUSE_UNLINK, 0, 1},       {FUSE_RMDIR, 0, 1},      {FUSE_RENAME, 2, 2},
        {FUSE_LINK, 2, 1},         {FUSE_OPEN, 2, 0},       {FUSE_READ, 10, 0},
        {FUSE_WRITE, 10, 3},       {FUSE_STATFS, 0, 0},     {FUSE_RELEASE, 6, 0},
        {FUSE_FSYNC, 4, 0},        {FUSE_SETXATTR, 2, 2},   {FUSE_GETXATTR, 2, 1},
        {FUSE_LISTXATTR, 2, 0},    {FUSE_FLUSH, 6, 0},      {FUSE_OPENDIR, 2, 0},
        {FUSE_READDIR, 10, 0},     {FUSE_RELEASEDIR, 6, 0}, {FUSE_CREATE, 4, 1},
        {FUSE_READDIRPLUS, 10, 0}, {FUSE_READLINK, 0, 0},   {FUSE_RENAME2, 4, 2},
        {FUSE_FALLOCATE, 8, 0},    {FUSE_LSEEK, 6, 0},      {FUSE_DESTROY, 0, 0},
        {FUSE_BATCH_FORGET, 6, 0},
    };
    static const char *const names[] = {"a", "b", "c", "user.x", "..", "a/b", ""};
    unsigned i = below(w, 8) ? below(w, ARRAY_LEN(shapes) - 2) : below(w, ARRAY_LEN(shapes));
    if (!w->said)
        i = 0;

    struct fuse_in_header h = {.opcode = shapes[i].op,
                               .unique = vworld_rnd(w),
                               .nodeid = below(w, 4) ? 1 + below(w, 4) : vworld_rnd(w)};

    put(t, &h, sizeof(h));
    for (unsigned n = 0; n < shapes[i].words; n++) {
        uint32_t v = below(w, 16) ? below(w, 8) * (below(w, 4) ? 1 : 512) : (uint32_t)vworld_rnd(w);

        if (h.opcode == FUSE_INIT && n < 2)
            v = n ? 31 : 7;
        put(t, &v, 4);
    }
    for (unsigned n = 0; n < shapes[i].names; n++) {
        const char *name = names[below(w, ARRAY_LEN(names))];

        put(t, name, strlen(name) + 1);
    }
    memcpy(t->out, &(uint32_t){t->out_len}, 4);
    t->in_len = below(w, 4) ? 4096 : below(w, 200);
}

/* ---- sockets ---- */

void vtalk_vsock(struct vworld *w, unsigned queue, struct vtalk *t)
{
    const struct vsock_hdr *heard = w->heard ? vdrv_ptr(&w->d, w->heard) : NULL;
    struct vsock_hdr h = {.src_cid = VROWS_CID,
                          .dst_cid = 2,
                          .src_port = 3 + below(w, 2),
                          .dst_port = VROWS_PORT + below(w, 2),
                          .type = VSOCK_TYPE_STREAM,
                          .op = (uint16_t)below(w, 9),
                          .flags = below(w, 4),
                          .buf_alloc = below(w, 4) ? 65536 : below(w, 100),
                          .fwd_cnt = below(w, 4) ? 0 : below(w, 2000)};

    if (queue != 1) {
        t->in_len = sizeof(h) + below(w, 4) * 500;
        return;
    }
    /* An answer to what came last, of a fitting kind. */
    if (heard && heard->op && below(w, 4)) {
        h.src_port = heard->dst_port;
        h.dst_port = heard->src_port;
        if (heard->op == VSOCK_REQUEST)
            h.op = VSOCK_RESPONSE;
        h.fwd_cnt = heard->len;
    }
    if (h.op == VSOCK_RW)
        h.len = below(w, 8) ? below(w, 300) : (uint32_t)vworld_rnd(w);
    put(t, &h, sizeof(h));
    if (h.op == VSOCK_RW)
        put_random(w, t, below(w, 8) ? MIN(h.len, 4000u) : below(w, 300));
}
