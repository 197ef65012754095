/* Virtqueues at ring level (virtio 1.2 §2.7, §2.8): each test runs on split and packed rings,
 * without and with event indices. The test plays the driver's part by virtio_driver.h, and the
 * device's by virtq.h. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "virtio_probe.h"

#include "base/util.h"
#include "mem/ram.h"

struct layout {
    const char *name;
    uint64_t features;
};

static const struct layout layouts[] = {
    {"split", VDRV_SPLIT},
    {"split event", VDRV_EVENT_IDX},
    {"packed", VDRV_PACKED},
    {"packed event", VDRV_PACKED | VDRV_EVENT_IDX},
};

struct fixture {
    struct vdrv d;
    uint64_t features;
    struct vdrv_queue *q; /* the driver's side of queue 0 */
    struct virtq *vq;     /* the device's */
};

static int setup(void **state)
{
    const struct layout *l = *state;
    struct fixture *f = calloc(1, sizeof(*f));

    vdrv_init(&f->d);
    vdrv_attach(&f->d, &probe_class, &(struct probe_cfg){vdrv_slot(&f->d)});
    f->features = l->features;
    f->q = &f->d.q[0];
    f->vq = &f->d.v->vq[0];
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    vdrv_fini(&f->d);
    free(f);
    return 0;
}

static void start(struct fixture *f, uint64_t more, unsigned size)
{
    vdrv_start(&f->d, f->features | more, 1, size);
}

static struct vdrv_sg piece(struct fixture *f, uint32_t len)
{
    return (struct vdrv_sg){vdrv_alloc(&f->d, len, 1), len};
}

static int add(struct fixture *f, unsigned nout, unsigned nin, void *cookie)
{
    const uint64_t at = vdrv_alloc(&f->d, 64, 1);
    struct vdrv_sg sg[64];

    for (unsigned i = 0; i < nout + nin; i++)
        sg[i] = (struct vdrv_sg){at + i, 1};
    return vdrv_add(f->q, sg, nout, nin, cookie);
}

static struct virtq_chain *pop(struct fixture *f)
{
    struct virtq_chain *c;

    return virtq_pop(f->vq, &c) == 1 ? c : NULL;
}

/* ---- good drivers ---- */

static void check_chain(struct fixture *f)
{
    const struct vdrv_sg sg[] = {piece(f, 3), piece(f, 5000), piece(f, 1), piece(f, 7),
                                 piece(f, 9)};
    uint8_t *out = vdrv_ptr(&f->d, sg[0].gpa), buf[16];
    struct virtq_chain *c;
    uint32_t written;

    memcpy(out, "abc", 3);
    memset(vdrv_ptr(&f->d, sg[1].gpa), 'd', 5000);
    memcpy(vdrv_ptr(&f->d, sg[2].gpa), "z", 1);
    assert_true(vdrv_add(f->q, sg, 3, 2, f) >= 0);
    c = pop(f);
    assert_non_null(c);
    assert_null(pop(f));
    assert_int_equal(c->nout, 3);
    assert_int_equal(c->nin, 2);
    assert_int_equal(c->out_len, 5004);
    assert_int_equal(c->in_len, 16);
    assert_null(c->user);
    assert_ptr_equal(c->out[0].iov_base, out);
    assert_int_equal(c->in[1].iov_len, 9);
    assert_int_equal(virtq_read(c, 1, buf, 4), 4);
    assert_memory_equal(buf, "bcdd", 4);
    assert_int_equal(virtq_read(c, 5001, buf, 16), 3);
    assert_memory_equal(buf, "ddz", 3);
    assert_int_equal(virtq_read(c, 5004, buf, 1), 0);
    assert_int_equal(virtq_read(c, UINT64_MAX, buf, 1), 0);
    assert_int_equal(virtq_write(c, 5, "0123456789abcdef", 16), 11);
    assert_memory_equal(vdrv_ptr(&f->d, sg[3].gpa + 5), "01", 2);
    assert_memory_equal(vdrv_ptr(&f->d, sg[4].gpa), "23456789a", 9);
    assert_null(vdrv_used(f->q, NULL));
    virtq_push(f->vq, c, 16);
    assert_ptr_equal(vdrv_used(f->q, &written), f);
    assert_int_equal(written, 16);
    assert_null(vdrv_used(f->q, NULL));
}

static void test_chain(void **state)
{
    struct fixture *f = *state;

    start(f, 0, 8);
    for (int i = 0; i < 20; i++)
        check_chain(f);
    start(f, VDRV_INDIRECT, 8);
    for (int i = 0; i < 20; i++)
        check_chain(f);
}

/* Readable descriptors of the ring itself before a table, which the split layout allows. */
static void test_table_at_the_end(void **state)
{
    struct fixture *f = *state;
    struct virtq_chain *c;

    if (f->features & VDRV_PACKED)
        skip();
    start(f, VDRV_INDIRECT, 8);
    struct vdrv_desc *ring = vdrv_ptr(&f->d, f->q->desc);
    uint64_t table = vdrv_alloc(&f->d, 64, 16), data = vdrv_alloc(&f->d, 64, 1);
    struct vdrv_desc *t = vdrv_ptr(&f->d, table);
    ring[0] = (struct vdrv_desc){data, 4, 1, 5};
    ring[5] = (struct vdrv_desc){table, 32, 4, 0};
    t[0] = (struct vdrv_desc){data + 8, 4, 1, 1};
    t[1] = (struct vdrv_desc){data + 16, 4, 2, 0};
    *(uint16_t *)vdrv_ptr(&f->d, f->q->driver + 2) = 1;
    c = pop(f);
    assert_non_null(c);
    assert_int_equal(c->out_len, 8);
    assert_int_equal(c->in_len, 4);
    virtq_push(f->vq, c, 0);
}

static void test_written_is_clamped(void **state)
{
    struct fixture *f = *state;
    uint32_t written;

    start(f, 0, 8);
    add(f, 1, 2, f);
    virtq_push(f->vq, pop(f), 1000);
    assert_ptr_equal(vdrv_used(f->q, &written), f);
    assert_int_equal(written, 2);
}

static uint64_t rnd(uint64_t *s)
{
    *s ^= *s << 13;
    *s ^= *s >> 7;
    *s ^= *s << 17;
    return *s;
}

/* Any number of chains in flight, used in any order, over many rounds of indices and wrap counters.
 */
static void random_traffic(struct fixture *f, uint64_t more, unsigned size)
{
    static char tag[VDRV_SIZE];
    struct virtq_chain *held[VDRV_SIZE], *last;
    unsigned nheld = 0, out = 0, back = 0;
    uint64_t s = size, base;
    uint8_t *bytes;
    bool busy[VDRV_SIZE] = {false};
    unsigned marks[VDRV_SIZE];

    start(f, more, size);
    f->q->indirect = false;
    base = vdrv_alloc(&f->d, VDRV_SIZE, 1);
    bytes = vdrv_ptr(&f->d, base);
    while (back < 140000) {
        unsigned n = 1 + (unsigned)(rnd(&s) % MIN(size, 3)), t;
        struct vdrv_sg sg[3];

        for (t = 0; t < VDRV_SIZE && busy[t]; t++)
            ;
        for (unsigned i = 0; i < n; i++)
            sg[i] = (struct vdrv_sg){base + t, 1};
        bytes[t] = (uint8_t)t;
        if (t < VDRV_SIZE && rnd(&s) & 1 && vdrv_add(f->q, sg, n, 0, &tag[t]) >= 0) {
            busy[t] = true;
            marks[t] = n;
            out++;
        }
        if (rnd(&s) % 3 == 0 && (last = pop(f))) {
            uint8_t v = 0;

            assert_int_equal(virtq_read(last, 0, &v, 1), 1);
            assert_true(busy[v]);
            assert_int_equal(last->out_len, marks[v]);
            if (rnd(&s) % 4 == 0)
                virtq_unpop(f->vq, last);
            else
                held[nheld++] = last;
        }
        if (nheld && rnd(&s) % 3 == 0) {
            unsigned i = (unsigned)(rnd(&s) % nheld);

            virtq_push(f->vq, held[i], 0);
            held[i] = held[--nheld];
        }
        for (char *c; (c = vdrv_used(f->q, NULL)); back++) {
            assert_true(busy[c - tag]);
            busy[c - tag] = false;
        }
    }
    for (unsigned i = 0; i < nheld; i++)
        virtq_push(f->vq, held[i], 0);
    for (; (last = pop(f));)
        virtq_push(f->vq, last, 0);
    while (vdrv_used(f->q, NULL))
        back++;
    assert_int_equal(back, out);
    assert_int_equal(f->q->nfree, size);
    assert_int_equal(vdrv_status(&f->d), 15);
}

static void test_random_traffic(void **state)
{
    random_traffic(*state, 0, 1);
    random_traffic(*state, 0, 4);
    random_traffic(*state, VDRV_INDIRECT, 32);
    if (((struct fixture *)*state)->features & VDRV_PACKED)
        random_traffic(*state, 0, 7);
}

static void test_batch(void **state)
{
    struct fixture *f = *state;
    struct virtq_chain *c[3];
    char tag[3];

    start(f, 0, 8);
    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < 3; i++) {
            add(f, 1, 1, &tag[i]);
            c[i] = pop(f);
        }
        for (int i = 0; i < 3; i++) {
            virtq_fill(f->vq, c[2 - i], 1);
            assert_null(vdrv_used(f->q, NULL));
        }
        virtq_publish(f->vq);
        for (int i = 0; i < 3; i++)
            assert_ptr_equal(vdrv_used(f->q, NULL), &tag[2 - i]);
        assert_null(vdrv_used(f->q, NULL));
    }
}

static void test_unpop(void **state)
{
    struct fixture *f = *state;
    struct virtq_chain *a, *b, *c;
    char tag[3];

    start(f, 0, 8);
    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < 3; i++)
            add(f, 1, 1, &tag[i]);
        a = pop(f);
        b = pop(f);
        c = pop(f);
        virtq_unpop(f->vq, c);
        virtq_unpop(f->vq, b);
        assert_true(virtq_pending(f->vq));
        b = pop(f);
        c = pop(f);
        virtq_push(f->vq, b, 0);
        virtq_push(f->vq, a, 0);
        virtq_push(f->vq, c, 0);
        assert_ptr_equal(vdrv_used(f->q, NULL), &tag[1]);
        assert_ptr_equal(vdrv_used(f->q, NULL), &tag[0]);
        assert_ptr_equal(vdrv_used(f->q, NULL), &tag[2]);
    }
}

static void drain(struct fixture *f)
{
    for (struct virtq_chain *c; (c = pop(f));)
        virtq_push(f->vq, c, 0);
    while (vdrv_used(f->q, NULL))
        ;
}

static void test_kicks(void **state)
{
    struct fixture *f = *state;

    start(f, 0, 8);
    for (int round = 0; round < 50; round++) {
        add(f, 1, 0, f); /* asked for from the start, and again whenever the ring was found empty */
        assert_true(vdrv_kick_wanted(f->q));
        drain(f);
        assert_false(virtq_kicks(f->vq, false));
        add(f, 1, 0, f);
        assert_false(vdrv_kick_wanted(f->q));
        add(f, 1, 0, f);
        assert_false(vdrv_kick_wanted(f->q));
        assert_true(virtq_kicks(f->vq, true)); /* there is something that nobody will tell of */
        drain(f);
        assert_false(virtq_kicks(f->vq, true));
    }
    add(f, 1, 0, f);
    assert_true(vdrv_kick_wanted(f->q));
    add(f, 1, 0, f);
    /* With event indices one notification is enough until the device looks. */
    assert_int_equal(vdrv_kick_wanted(f->q), !(f->features & VDRV_EVENT_IDX));
    drain(f);
}

static unsigned use_and_count(struct fixture *f, unsigned n)
{
    unsigned before = f->d.irqs[0];

    for (unsigned i = 0; i < n; i++) {
        add(f, 1, 0, f);
        virtq_push(f->vq, pop(f), 0);
    }
    virtq_notify(f->vq);
    return f->d.irqs[0] - before;
}

static void test_interrupts(void **state)
{
    struct fixture *f = *state;

    start(f, 0, 8);
    for (int round = 0; round < 30; round++) {
        vdrv_interrupts_on(f->q);
        assert_int_equal(use_and_count(f, 1 + round % 5), 1);
        virtq_notify(f->vq); /* nothing new */
        drain(f);
        vdrv_interrupts_off(f->q);
        assert_int_equal(f->features == VDRV_EVENT_IDX ? 0 : use_and_count(f, 2), 0);
        drain(f);
    }
    if (!(f->features & VDRV_EVENT_IDX))
        return;
    for (unsigned after = 0; after < 5; after++) {
        for (unsigned used = 1; used <= 8; used++) {
            drain(f);
            vdrv_interrupt_after(f->q, after);
            assert_int_equal(use_and_count(f, used), used > after);
        }
        /* And when they come one by one: at the one asked for, and not again. */
        drain(f);
        vdrv_interrupt_after(f->q, after);
        for (unsigned i = 0; i < 8; i++)
            assert_int_equal(use_and_count(f, 1), i == after);
    }
}

/* Host memory that is not contiguous, in and across descriptors. */
static void test_scattered_memory(void **state)
{
    struct fixture *f = *state;
    struct ram *ram[2];
    struct region *region[2];
    const uint64_t base = VDRV_RAM;
    const struct vdrv_sg sg[] = {{base - 16, 16 + PAGE_SIZE + 16}, {base + PAGE_SIZE - 1, 2}};
    struct virtq_chain *c;

    for (int i = 0; i < 2; i++) {
        assert_int_equal(ram_new(&ram[i], "more", 4 * PAGE_SIZE, NULL), 0);
        region[i] = physmap_add(f->d.f.ctx.map,
                                &(struct region){.name = "more",
                                                 .kind = REGION_RAM,
                                                 .base = base + (unsigned)i * PAGE_SIZE,
                                                 .size = PAGE_SIZE,
                                                 .ram = ram[i],
                                                 .ram_off = 2 * PAGE_SIZE},
                                NULL);
        assert_non_null(region[i]);
    }
    start(f, 0, 8);
    assert_true(vdrv_add(f->q, sg, 1, 1, f) >= 0);
    c = pop(f);
    assert_non_null(c);
    assert_int_equal(c->nout, 3);
    assert_int_equal(c->nin, 2);
    assert_int_equal(c->out_len, 32 + PAGE_SIZE);
    assert_ptr_equal(c->out[1].iov_base, ram[0]->host + 2 * PAGE_SIZE);
    assert_int_equal(c->out[1].iov_len, PAGE_SIZE);
    assert_int_equal(virtq_write(c, 0, "ab", 2), 2);
    assert_int_equal(ram[0]->host[3 * PAGE_SIZE - 1], 'a');
    assert_int_equal(ram[1]->host[2 * PAGE_SIZE], 'b');
    virtq_push(f->vq, c, 2);
    for (int i = 0; i < 2; i++)
        assert_int_equal(physmap_del(f->d.f.ctx.map, region[i], NULL), 0);
    physmap_reclaim(f->d.f.ctx.map);
    ram_free(ram[0]);
    ram_free(ram[1]);
}

/* What the device may have written is marked when it has, not only when it began. */
static void test_dirty(void **state)
{
    struct fixture *f = *state;
    struct p2m *p2m = physmap_p2m(f->d.f.ctx.map);
    uint64_t at, bits;
    struct vdrv_sg sg[2];
    struct virtq_chain *c;

    start(f, 0, 8);
    at = vdrv_alloc(&f->d, 3 * PAGE_SIZE, PAGE_SIZE);
    sg[0] = (struct vdrv_sg){at, 16};
    sg[1] = (struct vdrv_sg){at + 2 * PAGE_SIZE - 1, 2};
    vdrv_add(f->q, sg, 1, 1, f);
    c = pop(f);
    p2m_dirty_fetch(p2m, at >> PAGE_SHIFT, 3, &bits);
    virtq_push(f->vq, c, 2);
    p2m_dirty_fetch(p2m, at >> PAGE_SHIFT, 3, &bits);
    assert_int_equal(bits, 6);
    p2m_dirty_fetch(p2m, f->q->device >> PAGE_SHIFT, 1, &bits);
    if (!(f->features & VDRV_PACKED))
        assert_int_equal(bits, 1);
}

/* A reset while chains are in flight, and a pause. */
static void test_in_flight(void **state)
{
    struct fixture *f = *state;
    struct probe *p = probe_of(&f->d);

    for (int round = 0; round < 3; round++) {
        start(f, 0, 16);
        for (int i = 0; i < 5; i++) {
            add(f, 1, 1, f);
            p->held[p->nheld++] = pop(f);
        }
        vdrv_reset(&f->d);
        assert_int_equal(f->vq->inflight, 0);
    }
    start(f, 0, 16);
    for (int i = 0; i < 5; i++) {
        add(f, 1, 1, f);
        p->held[p->nheld++] = pop(f);
    }
    device_quiesce(f->d.dev);
    for (int i = 0; i < 5; i++)
        assert_ptr_equal(vdrv_used(f->q, NULL), f);
    assert_int_equal(f->d.irqs[0], 1); /* a batch that nobody announced is, at the latest now */
    assert_null(pop(f));
    device_resume(f->d.dev);
    add(f, 1, 1, f);
    virtq_push(f->vq, pop(f), 0);
    assert_ptr_equal(vdrv_used(f->q, NULL), f);
}

/* ---- bad drivers ---- */

/* What a bad driver puts into ring and tables; `n` descriptors from slot 0 on are made available as
 * one chain. addr of 0 stands for some memory. */
struct bad {
    const char *name;
    unsigned layouts; /* 1: split, 2: packed */
    uint64_t features;
    unsigned n;
    struct {
        uint64_t addr;
        uint32_t len;
        uint16_t flags, next;
    } d[4], t[4]; /* ring; table */
};

#define N 1u /* flags */
#define W 2u
#define I 4u
#define SOME 0
#define TABLE 1 /* addr that stands for the table */
#define NOWHERE (1ull << 39)
#define INDIRECT VDRV_INDIRECT

/* clang-format off */
static const struct bad bads[] = {
    {"no length", 3, 0, 1, .d = {{SOME, 0, 0, 0}}},
    {"no length in the middle", 3, 0, 2, .d = {{SOME, 8, N, 1}, {SOME, 0, W, 0}}},
    {"not memory", 3, 0, 1, .d = {{NOWHERE, 8, 0, 0}}},
    {"end of memory", 3, 0, 1, .d = {{VDRV_RAM - 8, 9, W, 0}}},
    {"beyond the address space", 3, 0, 1, .d = {{~0ull - 3, 8, W, 0}}},
    {"all of the address space", 3, 0, 1, .d = {{~0ull, UINT32_MAX, W, 0}}},
    {"too much", 3, 0, 1, .d = {{SOME, UINT32_MAX, W, 0}}},
    {"readable behind writable", 3, 0, 2, .d = {{SOME, 8, N | W, 1}, {SOME, 8, 0, 0}}},
    {"next is itself", 1, 0, 1, .d = {{SOME, 8, N, 0}}},
    {"loop", 1, 0, 3, .d = {{SOME, 8, N, 1}, {SOME, 8, N, 2}, {SOME, 8, N, 0}}},
    {"next beyond the table", 1, 0, 1, .d = {{SOME, 8, N, 8}}},
    {"next far beyond the table", 1, 0, 1, .d = {{SOME, 8, N, 0xffff}}},
    {"indirect, not negotiated", 3, 0, 1, .d = {{TABLE, 16, I, 0}}, .t = {{SOME, 8, 0, 0}}},
    {"indirect with next", 3, INDIRECT, 2, .d = {{TABLE, 16, I | N, 1}, {SOME, 8, 0, 0}}, .t = {{SOME, 8, 0, 0}}},
    {"empty table", 3, INDIRECT, 1, .d = {{TABLE, 0, I, 0}}},
    {"odd table", 3, INDIRECT, 1, .d = {{TABLE, 17, I, 0}}, .t = {{SOME, 8, 0, 0}}},
    {"huge table", 3, INDIRECT, 1, .d = {{TABLE, 0xfffffff0, I, 0}}, .t = {{SOME, 8, 0, 0}}},
    {"table nowhere", 3, INDIRECT, 1, .d = {{NOWHERE, 16, I, 0}}},
    {"table at the end of memory", 3, INDIRECT, 1, .d = {{VDRV_RAM - 8, 16, I, 0}}},
    {"table beyond the address space", 3, INDIRECT, 1, .d = {{~0ull - 7, 16, I, 0}}},
    {"table in a table", 3, INDIRECT, 1, .d = {{TABLE, 32, I, 0}}, .t = {{SOME, 8, N, 1}, {TABLE, 16, I, 0}}},
    {"loop in a table", 1, INDIRECT, 1, .d = {{TABLE, 32, I, 0}}, .t = {{SOME, 8, N, 1}, {SOME, 8, N, 0}}},
    {"next beyond a table", 1, INDIRECT, 1, .d = {{TABLE, 32, I, 0}}, .t = {{SOME, 8, N, 2}, {SOME, 8, 0, 0}}},
    {"no length in a table", 3, INDIRECT, 1, .d = {{TABLE, 16, I, 0}}, .t = {{SOME, 0, 0, 0}}},
};
/* clang-format on */

static void put_desc(struct fixture *f, struct vdrv_desc *to, uint64_t addr, uint64_t table,
                     uint32_t len, unsigned flags, unsigned next)
{
    bool packed = f->features & VDRV_PACKED;

    to->addr = addr == SOME ? vdrv_alloc(&f->d, 64, 1) : addr == TABLE ? table : addr;
    to->len = len;
    to->a = (uint16_t)(packed ? 0 : flags);
    to->b = (uint16_t)(packed ? flags : next);
}

/* Shows the device one head at slot 0. */
static void make_available(struct fixture *f, uint16_t idx)
{
    if (f->features & VDRV_PACKED)
        ((struct vdrv_desc *)vdrv_ptr(&f->d, f->q->desc))->b |= BIT(7);
    else
        *(uint16_t *)vdrv_ptr(&f->d, f->q->driver + 2) = idx;
}

/* The queue is broken, the driver is told, and a reset mends it. */
static void check_broken(struct fixture *f, const char *name, int rc)
{
    unsigned irqs = f->d.irqs[vdrv_config_vector(&f->d)];
    struct virtq_chain *c = NULL;

    if (rc != -EBADMSG || vdrv_status(&f->d) != (15 | VIRTIO_NEEDS_RESET) || irqs != 1)
        fail_msg("%s: rc=%d status=%#x interrupts=%u", name, rc, vdrv_status(&f->d), irqs);
    assert_int_equal(virtq_pop(f->vq, &c), -EBADMSG);
    assert_false(virtq_ready(f->vq));
    assert_false(virtq_pending(f->vq));
    assert_int_equal(f->d.irqs[vdrv_config_vector(&f->d)], 1); /* told once */
    f->d.irqs[vdrv_config_vector(&f->d)] = 0;
    start(f, VDRV_INDIRECT, 8);
    check_chain(f);
}

static void test_bad_chains(void **state)
{
    struct fixture *f = *state;

    for (const struct bad *b = bads; b < bads + ARRAY_LEN(bads); b++) {
        struct virtq_chain *c;
        uint64_t table;

        if (!(b->layouts & (f->features & VDRV_PACKED ? 2 : 1)))
            continue;
        start(f, b->features, 8);
        table = vdrv_alloc(&f->d, 64, 16);
        for (unsigned i = 0; i < 4; i++) {
            put_desc(f, (struct vdrv_desc *)vdrv_ptr(&f->d, table) + i, b->t[i].addr, table,
                     b->t[i].len, b->t[i].flags, b->t[i].next);
            if (i < b->n)
                put_desc(f, (struct vdrv_desc *)vdrv_ptr(&f->d, f->q->desc) + i, b->d[i].addr,
                         table, b->d[i].len, b->d[i].flags, b->d[i].next);
        }
        make_available(f, 1);
        check_broken(f, b->name, virtq_pop(f->vq, &c));
    }
}

static void test_bad_indices(void **state)
{
    struct fixture *f = *state;
    struct virtq_chain *c, *held;
    int rc;

    if (f->features & VDRV_PACKED)
        skip();
    start(f, 0, 8);
    put_desc(f, vdrv_ptr(&f->d, f->q->desc), SOME, 0, 8, 0, 0);
    make_available(f, 9); /* more than there can be */
    check_broken(f, "jump", virtq_pop(f->vq, &c));
    make_available(f, 0xffff);
    rc = virtq_pop(f->vq, &c);
    check_broken(f, "backwards", rc);

    start(f, 0, 8);
    *(uint16_t *)vdrv_ptr(&f->d, f->q->driver + 4) = 8;
    make_available(f, 1);
    check_broken(f, "head", virtq_pop(f->vq, &c));

    start(f, 0, 8); /* the same head twice; what is in flight stays valid */
    put_desc(f, vdrv_ptr(&f->d, f->q->desc), SOME, 0, 8, W, 0);
    make_available(f, 2);
    assert_int_equal(virtq_pop(f->vq, &held), 1);
    rc = virtq_pop(f->vq, &c);
    assert_int_equal(virtq_write(held, 0, "12345678", 8), 8);
    virtq_push(f->vq, held, 8);
    virtq_notify(f->vq);
    assert_null(vdrv_used(f->q, NULL)); /* a broken queue is left alone */
    check_broken(f, "twice", rc);
}

/* A chain that never ends in a ring of which it may have all. */
static void test_bad_lengths(void **state)
{
    struct fixture *f = *state;
    bool packed = f->features & VDRV_PACKED;
    struct vdrv_desc *ring;
    struct virtq_chain *c, *held;
    int rc;

    start(f, 0, 8);
    ring = vdrv_ptr(&f->d, f->q->desc);
    for (unsigned i = 0; i < 8; i++)
        put_desc(f, &ring[i], SOME, 0, 8, N, (i + 1) % 8);
    make_available(f, 1);
    check_broken(f, "endless", virtq_pop(f->vq, &c));

    if (packed) { /* and in what is left of it */
        start(f, 0, 8);
        ring = vdrv_ptr(&f->d, f->q->desc);
        add(f, 3, 0, f);
        assert_int_equal(virtq_pop(f->vq, &held), 1);
        for (unsigned i = 3; i < 8; i++)
            put_desc(f, &ring[i], SOME, 0, 8, N, 0);
        ring[3].b |= BIT(7);
        rc = virtq_pop(f->vq, &c);
        virtq_push(f->vq, held, 0);
        check_broken(f, "too long", rc);
    }

    /* More than 4 GiB, by naming the same memory again and again. */
    start(f, 0, 128);
    ring = vdrv_ptr(&f->d, f->q->desc);
    for (unsigned i = 0; i < 65; i++) {
        put_desc(f, &ring[i], SOME, 0, VDRV_RAM, i < 64 ? N : 0, i + 1);
        ring[i].addr = 0;
    }
    make_available(f, 1);
    check_broken(f, "4 GiB", virtq_pop(f->vq, &c));
}

/* The memory of a ring goes away under the device. */
static void test_ring_disappears(void **state)
{
    struct fixture *f = *state;
    struct virtq_chain *c, *held;
    int rc;

    start(f, 0, 8);
    add(f, 1, 1, f);
    assert_int_equal(virtq_pop(f->vq, &held), 1);
    assert_int_equal(physmap_del(f->d.f.ctx.map, f->d.region, NULL), 0);
    virtq_push(f->vq, held, 1);
    virtq_notify(f->vq);
    rc = virtq_pop(f->vq, &c);
    assert_int_equal(rc, -EBADMSG);
    assert_true(vdrv_status(&f->d) & VIRTIO_NEEDS_RESET);
    f->d.region = physmap_add(
        f->d.f.ctx.map,
        &(struct region){.name = "ram", .kind = REGION_RAM, .size = VDRV_RAM, .ram = f->d.ram},
        NULL);
    physmap_reclaim(f->d.f.ctx.map);
    f->d.irqs[vdrv_config_vector(&f->d)] = 0;
    start(f, 0, 8);
    check_chain(f);
}

/* ---- all of it on all layouts ---- */

#define TEST(t) \
    {           \
#t, t   \
    }

static const struct {
    const char *name;
    CMUnitTestFunction fn;
} tests[] = {
    TEST(test_chain),
    TEST(test_table_at_the_end),
    TEST(test_written_is_clamped),
    TEST(test_random_traffic),
    TEST(test_batch),
    TEST(test_unpop),
    TEST(test_kicks),
    TEST(test_interrupts),
    TEST(test_scattered_memory),
    TEST(test_dirty),
    TEST(test_in_flight),
    TEST(test_bad_chains),
    TEST(test_bad_indices),
    TEST(test_bad_lengths),
    TEST(test_ring_disappears),
};

int main(void)
{
    int failed = 0;

    for (size_t l = 0; l < ARRAY_LEN(layouts); l++) {
        struct CMUnitTest list[ARRAY_LEN(tests)];

        for (size_t i = 0; i < ARRAY_LEN(tests); i++)
            list[i] = (struct CMUnitTest){.name = tests[i].name,
                                          .test_func = tests[i].fn,
                                          .setup_func = setup,
                                          .teardown_func = teardown,
                                          .initial_state = (void *)&layouts[l]};
        failed += cmocka_run_group_tests_name(layouts[l].name, list, NULL, NULL);
    }
    return failed;
}
