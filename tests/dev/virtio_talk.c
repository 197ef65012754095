#include "virtio_talk.h"

#include <linux/fuse.h>
#include <string.h>

#include "base/util.h"
#include "dev/virtio/blk.h"

static unsigned below(struct vworld *w, unsigned n) { return (unsigned)(vworld_rnd(w) % n); }

void vtalk_put(struct vtalk *t, const void *p, size_t n)
{
    n = MIN(n, VTALK_MAX - t->out_len);
    memcpy(t->out + t->out_len, p, n);
    t->out_len += (unsigned)n;
}

void vtalk_put_random(struct vworld *w, struct vtalk *t, unsigned n)
{
    for (; n; n -= MIN(n, 8u))
        vtalk_put(t, &(uint64_t){vworld_rnd(w)}, MIN(n, 8u));
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

    vtalk_put(t, &h, sizeof(h));
    t->in_len = 1;
    if (type == VIRTIO_BLK_T_IN)
        t->in_len += 512 * sectors;
    if (type == VIRTIO_BLK_T_OUT)
        vtalk_put_random(w, t, 512 * sectors);
    if (type == VIRTIO_BLK_T_GET_ID)
        t->in_len += VIRTIO_BLK_ID_BYTES;
    if (type == VIRTIO_BLK_T_WRITE_ZEROES || type == VIRTIO_BLK_T_DISCARD)
        vtalk_put(t, &range, sizeof(range));
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

    vtalk_put(t, &h, sizeof(h));
    for (unsigned n = 0; n < shapes[i].words; n++) {
        uint32_t v = below(w, 16) ? below(w, 8) * (below(w, 4) ? 1 : 512) : (uint32_t)vworld_rnd(w);

        if (n % 2 && below(w, 4)) /* most are the high half of something */
            v = 0;
        if (h.opcode == FUSE_INIT && n < 2)
            v = n ? 31 : 7;
        vtalk_put(t, &v, 4);
    }
    for (unsigned n = 0; n < shapes[i].names; n++) {
        const char *name = names[below(w, ARRAY_LEN(names))];

        vtalk_put(t, name, strlen(name) + 1);
    }
    memcpy(t->out, &(uint32_t){t->out_len}, 4);
    t->in_len = below(w, 4) ? 4096 : below(w, 200);
}

/* ---- sockets ---- */

/* An answer to a packet, of a fitting kind. */
static void vsock_answer(struct vworld *w, const struct vsock_hdr *heard, struct vsock_hdr *h)
{
    h->src_port = heard->dst_port;
    h->dst_port = heard->src_port;
    h->fwd_cnt = heard->len;
    if (heard->op == VSOCK_REQUEST)
        h->op = VSOCK_RESPONSE;
    else if (below(w, 32))
        h->op = VSOCK_RW;
}

void vtalk_vsock(struct vworld *w, unsigned queue, struct vtalk *t)
{
    uint64_t at = vworld_heard(w);
    const struct vsock_hdr *heard = at ? vdrv_ptr(&w->d, at) : NULL;
    struct vsock_hdr h = {.src_cid = VROWS_CID,
                          .dst_cid = 2,
                          .src_port = below(w, 8) ? 1000 + below(w, 1000) : 3,
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
    if (heard && heard->op && heard->op != VSOCK_RST && below(w, 32))
        vsock_answer(w, heard, &h);
    else if (below(w, 2))
        h.op = VSOCK_REQUEST;
    if (h.op == VSOCK_RW)
        h.len =
            below(w, 32) ? below(w, below(w, 2) ? 300 : VTALK_MAX - 1000) : (uint32_t)vworld_rnd(w);
    vtalk_put(t, &h, sizeof(h));
    if (h.op == VSOCK_RW)
        vtalk_put_random(w, t, below(w, 32) ? MIN(h.len, VTALK_MAX) : below(w, 300));
}
