/*
 * A hostile driver against every virtio device, meant to run under AddressSanitizer and UBSan:
 * random and malformed chains, loops, huge lengths, indices that jump, rings that move, resets,
 * pauses and loads while requests are in flight. Nothing may crash, hang or leak; what a good
 * driver asks of the device afterwards must work.
 *
 * Without arguments: a fixed number of steps from a fixed seed, for `make test`.
 *     virtio-fuzz [STEPS [SEED [NAME]]]
 * runs longer, from another seed, or one device only; the seed is printed with a failure.
 */
#include <stdio.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "virtio_rows.h"
#include "virtio_talk.h"

#include "base/util.h"
#include "mem/ram.h"

#define HANG_S 120          /* without a step */
#define FILE_MAX (64 * MIB) /* bytes of a file that the guest may make in the shared directory */

static uint64_t rnd(struct vworld *w) { return vworld_rnd(w); }

static uint64_t rnd_arg(void *w) { return rnd(w); }

/* ---- the driver ---- */

static uint64_t steps = 30000, first_seed = 1;
static const char *only;

/* Devices' threads are slower than this one, and do most if they have time for it. */
static void give_time(struct vworld *w, unsigned seldom)
{
    if (rnd(w) % seldom == 0)
        usleep(20);
}

/* Mostly in RAM, sometimes at its end, and sometimes anything. */
static uint64_t rnd_address(struct vworld *w)
{
    switch (rnd(w) % 16) {
    case 0:
        return rnd(w);
    case 1:
        return VDRV_RAM - rnd(w) % 32;
    case 2:
        return ~0ull - rnd(w) % 32;
    case 3:
        return w->d.common + rnd(w) % 0x4000;
    default:
        return MIB + rnd(w) % (VDRV_RAM - 2 * MIB);
    }
}

static uint32_t rnd_length(struct vworld *w)
{
    switch (rnd(w) % 32) {
    case 0:
        return 0;
    case 1:
        return UINT32_MAX - (uint32_t)(rnd(w) % 16);
    case 2:
        return (uint32_t)rnd(w) >> rnd(w) % 32;
    case 3:
        return PAGE_SIZE;
    default:
        return 1 + (uint32_t)(rnd(w) % 64);
    }
}

/* A plausible descriptor; tables of indirect ones are filled with such, too. */
static struct vdrv_desc rnd_desc(struct vworld *w, unsigned size, bool packed, unsigned depth)
{
    static const uint16_t some_flags[] = {0, 1, 2, 3, 1, 2, 3, 4, 5, 6, 0xffff};
    unsigned flags = some_flags[rnd(w) % ARRAY_LEN(some_flags)];
    unsigned next = (unsigned)(rnd(w) % 8 ? rnd(w) % size : rnd(w));
    struct vdrv_desc d = {rnd_address(w), rnd_length(w), 0, 0};

    if (flags & 4 && depth < 2 && rnd(w) % 4) {
        unsigned n = 1 + (unsigned)(rnd(w) % 8);
        struct vdrv_desc *t;

        d.addr = MIB + rnd(w) % (VDRV_RAM - 2 * MIB);
        d.addr &= ~15ull;
        d.len = 16 * n;
        t = vdrv_ptr(&w->d, d.addr);
        for (unsigned i = 0; i < n; i++)
            t[i] = rnd_desc(w, n, packed, depth + 1);
    }
    d.a = (uint16_t)(packed ? next : flags);
    d.b = (uint16_t)(packed ? flags : next);
    return d;
}

/* Descriptors at random places of the ring, and some made available. */
static void bad_chains(struct vworld *w, struct vdrv_queue *q)
{
    struct vdrv_desc *ring = vdrv_ptr(&w->d, q->desc);
    uint16_t *avail = vdrv_ptr(&w->d, q->driver);

    for (unsigned n = 1 + (unsigned)(rnd(w) % q->size); n; n--) {
        unsigned i = (unsigned)(rnd(w) % q->size);

        ring[i] = rnd_desc(w, q->size, q->packed, 0);
        if (q->packed)
            ring[i].b = (uint16_t)((ring[i].b & 0x7f7f) | (rnd(w) & 0x8080));
        else
            avail[2 + rnd(w) % q->size] = (uint16_t)(rnd(w) % 8 ? i : rnd(w));
    }
    if (rnd(w) % 4 == 0)
        avail[0] = (uint16_t)rnd(w);
    if (!q->packed)
        avail[1] = (uint16_t)(rnd(w) % 16 ? avail[1] + 1u : rnd(w));
    else if (rnd(w) % 4 == 0)
        avail[1] = (uint16_t)(rnd(w) % 4);
}

static void bad_bytes(struct vworld *w, struct vdrv_queue *q)
{
    const uint64_t areas[] = {q->desc, q->driver, q->device};
    uint8_t *p = vdrv_ptr(&w->d, areas[rnd(w) % 3]);

    for (unsigned n = (unsigned)(rnd(w) % 8); n; n--)
        p[rnd(w) % (16 * q->size)] = (uint8_t)rnd(w);
}

/* Takes what is used, and remembers what the device put where it only had to answer. */
static void hear(struct vworld *w)
{
    for (unsigned i = 0; i < w->queues; i++) {
        struct vdrv_queue *q = &w->d.q[i];
        void *cookie;

        while ((cookie = vdrv_used(q, NULL))) {
            if (cookie != q)
                w->heard[w->nheard++ % ARRAY_LEN(w->heard)] =
                    (uint64_t)((uint8_t *)cookie - w->d.ram->host);
        }
    }
}

/* What a good driver may count on is checked by virtio_driver.c. */
static void good_chains(struct vworld *w, struct vdrv_queue *q)
{
    struct vdrv_sg sg[8];

    hear(w);
    for (unsigned n = 1 + (unsigned)(rnd(w) % 8); n; n--) {
        unsigned nout = (unsigned)(rnd(w) % 4), nin = (unsigned)(rnd(w) % 4) + !nout;
        uint64_t at = vdrv_alloc(&w->d, 64 * (nout + nin), 1);

        for (unsigned i = 0; i < nout + nin; i++)
            sg[i] = (struct vdrv_sg){at + 64 * i, 1 + (uint32_t)(rnd(w) % 64)};
        for (unsigned i = 0; i < 16; i++)
            memset(vdrv_ptr(&w->d, at + i), (int)(rnd(w) % 8), 1);
        if (vdrv_add(q, sg, nout, nin, q) < 0)
            break;
    }
}

/* Cuts [at, at+len) into up to n pieces. */
static unsigned cut(struct vworld *w, struct vdrv_sg *sg, uint64_t at, uint32_t len, unsigned n)
{
    unsigned used = 0;

    while (len) {
        uint32_t part = ++used == n ? len : 1 + (uint32_t)(rnd(w) % len);

        *sg++ = (struct vdrv_sg){at, part};
        at += part;
        len -= part;
    }
    return used;
}

/* What the device understands, in pieces of any size, and sometimes with a byte that is wrong. */
static void talk(struct vworld *w, const struct vrow *row, struct vdrv_queue *q)
{
    struct vtalk t;
    struct vdrv_sg sg[8];
    unsigned nout, nin;
    uint64_t out, in;

    t.out_len = t.in_len = 0;
    hear(w);
    row->talk(w, q->index, &t);
    w->said++;
    if (t.out_len && rnd(w) % 8 == 0)
        t.out[rnd(w) % t.out_len] = (uint8_t)rnd(w);
    out = vdrv_alloc(&w->d, t.out_len + 1, 1);
    in = vdrv_alloc(&w->d, t.in_len + 1, 8);
    memcpy(vdrv_ptr(&w->d, out), t.out, t.out_len);
    nout = cut(w, sg, out, t.out_len, 1 + (unsigned)(rnd(w) % 4));
    nin = cut(w, sg + nout, in, t.in_len, 1 + (unsigned)(rnd(w) % 4));
    if (nout + nin && vdrv_add(q, sg, nout, nin, nout ? q : vdrv_ptr(&w->d, in)) >= 0)
        vdrv_kick(q);
    give_time(w, 2);
}

static void kick(struct vworld *w)
{
    vdrv_write(&w->d, w->d.notify + 4 * (rnd(w) % 8 ? rnd(w) % w->queues : rnd(w) % 1024), 2, 0);
    give_time(w, 8);
}

static void start(struct vworld *w)
{
    static const unsigned sizes[] = {1, 2, 4, 8, 16, 64, 128};
    uint64_t optional = VDRV_PACKED | VDRV_EVENT_IDX | VDRV_INDIRECT | BIT(VIRTIO_F_RING_RESET),
             features;

    w->d.free = MIB;
    w->nheard = 0;
    memset(w->heard, 0, sizeof(w->heard));
    w->said = 0;
    features = vdrv_offered(&w->d) & ~optional & 0xffffffff;
    if (rnd(w) & 1)
        features &= rnd(w);
    features |= rnd(w) & optional;
    vdrv_reset(&w->d);
    vdrv_set(&w->d, VC_STATUS, 1, 3);
    features |= BIT(VIRTIO_F_VERSION_1);
    for (unsigned i = 0; i < 2; i++) {
        vdrv_set(&w->d, VC_DRIVER_FEATURE_SELECT, 4, i);
        vdrv_set(&w->d, VC_DRIVER_FEATURE, 4, features >> 32 * i);
    }
    vdrv_set(&w->d, VC_STATUS, 1, 11);
    if (!(vdrv_status(&w->d) & VIRTIO_FEATURES_OK)) /* one that needs another: the plain set does */
        vdrv_negotiate(&w->d, features & (optional | BIT(VIRTIO_F_VERSION_1)));
    w->d.features = features;
    for (unsigned i = 0; i < w->queues; i++) {
        unsigned size = sizes[rnd(w) % ARRAY_LEN(sizes)];

        vdrv_queue(&w->d, i, MIN(size, w->d.v->queue_size));
    }
    vdrv_set(&w->d, VC_CONFIG_VECTOR, 2, vdrv_config_vector(&w->d));
    vdrv_set(&w->d, VC_STATUS, 1, 15);
}

static void registers(struct vworld *w)
{
    static const uint8_t sizes[] = {1, 2, 4, 8};
    unsigned size = sizes[rnd(w) % 4];
    uint64_t at[] = {w->d.common, w->d.isr, w->d.config, w->d.notify, w->d.msix};
    uint64_t addr = at[rnd(w) % ARRAY_LEN(at)];

    if (!addr) /* has no configuration space */
        addr = w->d.common;
    addr += rnd(w) % (rnd(w) % 4 ? 64 : 0x1000);
    if (rnd(w) & 1)
        vdrv_read(&w->d, addr, size);
    else
        vdrv_write(&w->d, addr, size, rnd(w) % 4 ? rnd(w) % 64 : rnd(w));
}

static void configuration(struct vworld *w)
{
    unsigned size = 1u << rnd(w) % 3, off = (unsigned)(rnd(w) % 256) & ~(size - 1);

    if (rnd(w) & 1) {
        vdrv_pci_read(&w->d, off, size);
        return;
    }
    vdrv_pci_write(&w->d, off, size, rnd(w) % 4 ? (uint32_t)rnd(w) % 64 : (uint32_t)rnd(w));
    vdrv_enable(&w->d);
}

/* A state of its own with a byte changed, or any that validates. */
static void load_something(struct vworld *w)
{
    struct device *dev = w->d.dev;
    const struct state_desc *desc = dev->cls->state;
    struct sbuf b;
    struct err e;
    size_t used;

    sbuf_init(&b);
    device_quiesce(dev);
    if (rnd(w) & 1) {
        void *p = calloc(1, desc->size);

        assert_non_null(p);
        state_randomise(desc, p, rnd_arg, w);
        assert_int_equal(state_save(desc, p, &b), 0);
        free(p);
    } else {
        assert_int_equal(device_save(dev, &b), 0);
    }
    device_load(dev, b.data, b.len, &used, &e);
    device_resume(dev);
    sbuf_free(&b);
    vdrv_enable(&w->d);
}

/* One queue is reset, and comes back elsewhere; or something of it changes without that. */
static void queue_games(struct vworld *w, struct vdrv_queue *q, bool broken)
{
    static const uint8_t regs[] = {VC_QUEUE_SIZE, VC_QUEUE_DESC, VC_QUEUE_DRIVER, VC_QUEUE_DEVICE,
                                   VC_QUEUE_ENABLE};
    unsigned reg = regs[rnd(w) % ARRAY_LEN(regs)], size;

    vdrv_set(&w->d, VC_QUEUE_SELECT, 2, q->index);
    if (rnd(w) % 4 == 0) {
        vdrv_set(&w->d, reg, reg >= VC_QUEUE_DESC ? 8 : 2, rnd(w) % 2 ? rnd(w) : rnd(w) % 256);
        return;
    }
    vdrv_set(&w->d, VC_QUEUE_RESET, 2, 1);
    size = 1u << rnd(w) % 6;
    if (!broken && w->d.features & BIT(VIRTIO_F_RING_RESET) && w->d.free < VDRV_RAM - MIB &&
        vdrv_status(&w->d) == 15)
        vdrv_queue(&w->d, q->index, MIN(size, w->d.v->queue_size));
}

static void vector_games(struct vworld *w)
{
    uint64_t entry = w->d.msix + 16 * (rnd(w) % (w->d.vectors + 2));

    switch (rnd(w) % 6) {
    case 0:
        vdrv_msix(&w->d, rnd(w) & 1);
        break;
    case 1: /* all masked, or not */
        vdrv_pci_write(&w->d, w->d.msix_cap + 2, 2, rnd(w) & 1 ? 0xc000 : 0x8000);
        break;
    case 2:
        vdrv_write(&w->d, entry + 12, 4, rnd(w) & 1);
        break;
    case 3:
        vdrv_write(&w->d, entry + 8 * (rnd(w) & 1), 8, rnd(w));
        break;
    case 4:
        vdrv_read(&w->d, w->d.msix + rnd(w) % PCI_MSIX_BAR_SIZE, 4u << (rnd(w) & 1));
        break;
    case 5:
        vdrv_set(&w->d, VC_QUEUE_SELECT, 2, rnd(w) % w->queues);
        vdrv_set(&w->d, VC_QUEUE_VECTOR, 2, rnd(w) % (w->d.vectors + 2));
        break;
    }
}

/* The function moves, sleeps or is reset while requests are in flight; then it is where it was. */
static void function_games(struct vworld *w, bool *broken)
{
    for (unsigned n = (unsigned)(rnd(w) % 8); n; n--)
        kick(w);
    switch (rnd(w) % 4) {
    case 0:
        vdrv_pci_write(&w->d, w->d.express_cap + 8, 2, 0x8000 | (uint32_t)(rnd(w) % 0x8000));
        *broken = true;
        break;
    case 1:
        vdrv_pci_write(&w->d, w->d.power_cap + 4, 2, (uint32_t)(rnd(w) % 4));
        break;
    case 2:
        vdrv_pci_write(&w->d, PCI_COMMAND, 2, (uint32_t)(rnd(w) & 0xffff));
        break;
    default:
        vdrv_pci_write(&w->d, PCI_BAR0 + 4 * (unsigned)(rnd(w) % PCI_BARS), 4,
                       (uint32_t)rnd_address(w));
        break;
    }
    kick(w);
    vdrv_enable(&w->d);
}

/* The registers through the window in the configuration space. */
static void window(struct vworld *w)
{
    unsigned cap = w->d.cfg_cap;

    vdrv_pci_write(&w->d, cap + 4, 1, (uint32_t)(rnd(w) % 8 ? 2 * (rnd(w) % 3) : rnd(w) & 0xff));
    vdrv_pci_write(&w->d, cap + 8, 4,
                   (uint32_t)(rnd(w) % 8 ? rnd(w) % 4 * 0x1000 + rnd(w) % 64 : rnd(w)));
    vdrv_pci_write(&w->d, cap + 12, 4, (uint32_t)(rnd(w) % 8 ? 1u << rnd(w) % 3 : rnd(w)));
    if (rnd(w) & 1)
        vdrv_pci_read(&w->d, cap + 16, 4);
    else
        vdrv_pci_write(&w->d, cap + 16, 4, (uint32_t)rnd(w) % 64);
}

/* One life of the driver in eight is a polite one, which gets further: what it would break the
 * device's state with it says to it instead, and it lives longer. That comes to half of the
 * steps. */
static unsigned choose(struct vworld *w, bool polite)
{
    static const uint32_t rude = BIT(1) | BIT(2) | BIT(3) | BIT(4) | BIT(5) | BIT(18) | BIT(19) |
                                 BIT(20) | BIT(22) | BIT(26) | BIT(27);
    unsigned n = (unsigned)(rnd(w) % 32);

    if (!polite)
        return n;
    if (rude & BIT(n) || (n == 0 && rnd(w) % 16) ||
        (n == 24 && !(w->d.features & BIT(VIRTIO_F_RING_RESET))))
        return 6;
    return n;
}

static void step(struct vworld *w, const struct vrow *row, bool *broken, bool *polite)
{
    struct vdrv_queue *q = &w->d.q[rnd(w) % w->queues];

    switch (choose(w, *polite)) {
    case 0:
        start(w);
        *broken = false;
        *polite = rnd(w) % 8 == 0;
        break;
    case 1 ... 4:
        bad_chains(w, q);
        *broken = true;
        kick(w);
        break;
    case 5:
        bad_bytes(w, q);
        *broken = true;
        break;
    case 6 ... 13:
        if (!*broken && w->d.free < VDRV_RAM - MIB) {
            if (row->talk && rnd(w) % 8)
                talk(w, row, q);
            else
                good_chains(w, q);
        }
        kick(w);
        break;
    case 14 ... 17:
        kick(w);
        break;
    case 18:
        registers(w);
        *broken = true;
        break;
    case 19:
        configuration(w);
        *broken = true;
        break;
    case 20:
        if (rnd(w) % 16)
            break;
        load_something(w);
        *broken = true;
        break;
    case 21:
        device_quiesce(w->d.dev);
        device_resume(w->d.dev);
        break;
    case 22:
        if (rnd(w) % 8)
            break;
        device_reset(w->d.dev, RESET_COLD);
        *broken = true;
        vdrv_enable(&w->d);
        break;
    case 23:
        fake_step(&w->d.f, rnd(w) % 100000000);
        break;
    case 24:
        queue_games(w, q, *broken);
        *broken =
            *broken || !(w->d.features & BIT(VIRTIO_F_RING_RESET)) || vdrv_status(&w->d) != 15;
        break;
    case 25:
        vector_games(w);
        break;
    case 26:
        if (rnd(w) % 4 == 0)
            function_games(w, broken);
        break;
    case 27:
        if (rnd(w) % 4 == 0) {
            window(w);
            *broken = true;
        }
        break;
    default:
        if (row->host)
            row->host(w);
        break;
    }
}

static void test_fuzz(void **state)
{
    const struct vrow *row = *state;
    struct vworld *w;
    bool broken = false, polite = false;

    if (only && strcmp(only, row->name))
        skip();
    w = calloc(1, sizeof(*w));
    assert_non_null(w);
    vworld_init(w, row, first_seed);
    w->d.any_msi = true;
    start(w);
    for (uint64_t i = 0; i < steps; i++) {
        alarm(HANG_S);
        step(w, row, &broken, &polite);
    }
    alarm(0);
    vworld_fini(w);
    free(w);
}

int main(int argc, char **argv)
{
    struct CMUnitTest *tests = calloc(vrows_n, sizeof(*tests));
    int rc;

    assert_non_null(tests);
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &(struct rlimit){FILE_MAX, FILE_MAX}), 0);
    if (argc > 1)
        steps = strtoull(argv[1], NULL, 0);
    if (argc > 2)
        first_seed = strtoull(argv[2], NULL, 0);
    if (argc > 3)
        only = argv[3];
    for (unsigned i = 0; i < vrows_n; i++)
        tests[i] = (struct CMUnitTest){
            .name = vrows[i].name, .test_func = test_fuzz, .initial_state = (void *)&vrows[i]};
    printf("%llu steps a device, seed %llu\n", (unsigned long long)steps,
           (unsigned long long)first_seed);
    rc = _cmocka_run_group_tests("fuzz", tests, vrows_n, NULL, NULL);
    free(tests);
    return rc;
}
