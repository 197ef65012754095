/*
 * The bus and the life of a device, with a device that writes down every access it gets. What
 * matters: which pieces reach the device, with its lock held, and what the vCPU sees.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"
#include "dev/bus.h"

/* ---- the device ---- */

#define SCRIBE_REGS 256

struct scribe_state {
    uint8_t reg[SCRIBE_REGS];
    uint32_t resets;
    bool warm;
    uint8_t pad[3];
};

struct scribe {
    struct device dev;
    struct scribe_state s;
    char log[2048]; /* "r2@4 w1@7=0x55 " */
    bool unlocked;  /* an access came without the lock */
    unsigned quiesced, resumed;
    unsigned *freed;
};

struct scribe_cfg {
    int fail;
    unsigned *freed;
};

static void scribe_note(struct scribe *c, const char *fmt, ...)
{
    size_t n = strlen(c->log);
    va_list ap;

    if (pthread_mutex_trylock(&c->dev.lock) == 0) {
        c->unlocked = true;
        pthread_mutex_unlock(&c->dev.lock);
    }
    va_start(ap, fmt);
    vsnprintf(c->log + n, sizeof(c->log) - n, fmt, ap);
    va_end(ap);
}

/* Returns more bits than asked for: the bus must cut them off. */
static uint64_t scribe_read(struct device *d, uint64_t off, unsigned size)
{
    struct scribe *c = container_of(d, struct scribe, dev);
    uint64_t v = ~0ull;

    scribe_note(c, "r%u@%u ", size, (unsigned)off);
    assert_true(off + size <= SCRIBE_REGS);
    memcpy(&v, c->s.reg + off, size);
    return v;
}

static void scribe_write(struct device *d, uint64_t off, unsigned size, uint64_t val)
{
    struct scribe *c = container_of(d, struct scribe, dev);

    scribe_note(c, "w%u@%u=%#llx ", size, (unsigned)off, (unsigned long long)val);
    assert_true(off + size <= SCRIBE_REGS);
    memcpy(c->s.reg + off, &val, size);
}

static int scribe_init(struct device *d, const void *cfg, struct err *e)
{
    const struct scribe_cfg *sc = cfg;
    struct scribe *c = container_of(d, struct scribe, dev);

    if (sc->fail)
        return err_set(e, sc->fail, "cannot be had");
    c->freed = sc->freed;
    return 0;
}

static void scribe_reset(struct device *d, enum reset_kind kind)
{
    struct scribe *c = container_of(d, struct scribe, dev);

    scribe_note(c, "reset ");
    c->s.resets++;
    c->s.warm = kind == RESET_WARM;
}

static void scribe_quiesce(struct device *d)
{
    struct scribe *c = container_of(d, struct scribe, dev);

    scribe_note(c, "quiesce ");
    c->quiesced++;
}

static void scribe_resume(struct device *d)
{
    struct scribe *c = container_of(d, struct scribe, dev);

    scribe_note(c, "resume ");
    c->resumed++;
}

static void scribe_fini(struct device *d)
{
    struct scribe *c = container_of(d, struct scribe, dev);

    /* Quiesced first, and without the lock: fini may wait for callbacks that take it. */
    assert_int_equal(c->quiesced, 1);
    assert_int_equal(pthread_mutex_trylock(&d->lock), 0);
    pthread_mutex_unlock(&d->lock);
    if (c->freed)
        ++*c->freed;
}

static const struct state_field scribe_fields[] = {
    STATE_ARRAY(struct scribe_state, reg),
    STATE_FIELD(struct scribe_state, resets),
    STATE_FIELD(struct scribe_state, warm),
    STATE_PAD(struct scribe_state, pad),
};

static const struct state_desc scribe_desc = {
    .name = "scribe",
    .size = sizeof(struct scribe_state),
    .fields = scribe_fields,
    .nfields = ARRAY_LEN(scribe_fields),
};

static const struct device_class scribe_class = {
    .name = "scribe",
    .size = sizeof(struct scribe),
    .init = scribe_init,
    .reset = scribe_reset,
    .quiesce = scribe_quiesce,
    .resume = scribe_resume,
    .fini = scribe_fini,
    .state = &scribe_desc,
    .state_off = offsetof(struct scribe, s),
};

/* A class with nothing but a name. */
static const struct device_class bare_class = {.name = "bare", .size = sizeof(struct device)};

/* ---- fixture ---- */

struct fixture {
    struct clock clock;
    struct log log;
    struct trace trace;
    struct physmap *map;
    struct dev_ctx ctx;
    struct pio_bus *pio;
    struct scribe *a, *b;
    int rd, wr;
    char text[8192];
};

static struct scribe *scribe_new(struct fixture *f, const char *id)
{
    const struct scribe_cfg cfg = {0};
    struct device *d = device_new(&scribe_class, id, &f->ctx, &cfg, NULL);
    struct scribe *c = container_of(d, struct scribe, dev);

    assert_non_null(d);
    for (unsigned i = 0; i < SCRIBE_REGS; i++)
        c->s.reg[i] = (uint8_t)i;
    c->log[0] = '\0';
    return c;
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    int p[2];

    assert_int_equal(pipe2(p, O_NONBLOCK), 0);
    f->rd = p[0];
    f->wr = p[1];
    log_init(&f->log, LOG_INFO, f->wr);
    trace_init(&f->trace, &f->log);
    clock_init_stepped(&f->clock, 1000000, 0);
    assert_int_equal(physmap_new(&f->map, 36, NULL), 0);
    f->ctx =
        (struct dev_ctx){.clock = &f->clock, .map = f->map, .log = &f->log, .trace = &f->trace};
    assert_int_equal(pio_bus_new(&f->pio, &f->ctx, NULL), 0);
    f->a = scribe_new(f, "a");
    f->b = scribe_new(f, "b");
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    assert_false(f->a->unlocked || f->b->unlocked);
    pio_bus_free(f->pio);
    device_free(&f->a->dev);
    device_free(&f->b->dev);
    physmap_free(f->map);
    close(f->rd);
    close(f->wr);
    free(f);
    return 0;
}

static const char *output(struct fixture *f)
{
    ssize_t n = read(f->rd, f->text, sizeof(f->text) - 1);

    f->text[n > 0 ? n : 0] = '\0';
    return f->text;
}

/* What the device saw since the last time. */
#define assert_saw(dev, want)                  \
    do {                                       \
        assert_string_equal((dev)->log, want); \
        (dev)->log[0] = '\0';                  \
    } while (0)

static const struct io_ops any_ops = {.read = scribe_read, .write = scribe_write};
static const struct io_ops byte_ops = {.read = scribe_read, .write = scribe_write, .max_size = 1};
static const struct io_ops dword_ops = {
    .read = scribe_read, .write = scribe_write, .min_size = 4, .max_size = 4};
static const struct io_ops loose_ops = {
    .read = scribe_read, .write = scribe_write, .min_size = 1, .max_size = 4, .unaligned = true};
static const struct io_ops loose_word_ops = {
    .read = scribe_read, .write = scribe_write, .min_size = 4, .max_size = 8, .unaligned = true};
static const struct io_ops no_ops = {0};

/* ---- ports ---- */

static void test_pio(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(pio_map(f->pio, 0x70, 8, &f->a->dev, &any_ops, NULL), 0);
    assert_int_equal(pio_read(f->pio, 0x72, 1), 2);
    assert_int_equal(pio_read(f->pio, 0x72, 2), 0x0302);
    assert_int_equal(pio_read(f->pio, 0x74, 4), 0x07060504);
    assert_saw(f->a, "r1@2 r2@2 r4@4 ");
    pio_write(f->pio, 0x71, 1, 0xabcdef12);
    pio_write(f->pio, 0x72, 2, 0xabcdef12);
    pio_write(f->pio, 0x74, 4, 0xabcdef12);
    assert_saw(f->a, "w1@1=0x12 w2@2=0xef12 w4@4=0xabcdef12 ");
    /* Misaligned: pieces in ascending order. */
    assert_int_equal(pio_read(f->pio, 0x71, 4), 0x12ef1212);
    assert_saw(f->a, "r1@1 r2@2 r1@4 ");
}

static void test_pio_sizes(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(pio_map(f->pio, 0x100, 8, &f->a->dev, &byte_ops, NULL), 0);
    assert_int_equal(pio_map(f->pio, 0x200, 8, &f->b->dev, &dword_ops, NULL), 0);
    assert_int_equal(pio_read(f->pio, 0x100, 4), 0x03020100);
    pio_write(f->pio, 0x104, 2, 0x5566);
    assert_saw(f->a, "r1@0 r1@1 r1@2 r1@3 w1@4=0x66 w1@5=0x55 ");
    assert_int_equal(pio_read(f->pio, 0x206, 1), 6);
    assert_int_equal(pio_read(f->pio, 0x206, 2), 0x0706);
    assert_int_equal(pio_read(f->pio, 0x204, 4), 0x07060504);
    assert_saw(f->b, "r4@4 r4@4 r4@4 ");
    /* Too narrow a write is dropped, whole or in its parts. */
    pio_write(f->pio, 0x204, 2, 1);
    pio_write(f->pio, 0x202, 4, 1);
    assert_saw(f->b, "");
    /* A misaligned wide read takes from both registers. */
    assert_int_equal(pio_read(f->pio, 0x202, 4), 0x05040302);
    assert_saw(f->b, "r4@0 r4@4 ");
}

static void test_pio_borders(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(pio_map(f->pio, 0x60, 1, &f->a->dev, &any_ops, NULL), 0);
    assert_int_equal(pio_map(f->pio, 0x61, 1, &f->b->dev, &any_ops, NULL), 0);
    assert_int_equal(pio_map(f->pio, 0xffff, 1, &f->a->dev, &any_ops, NULL), 0);
    /* Two devices and two ports of nobody in one access. */
    assert_int_equal(pio_read(f->pio, 0x60, 4), 0xffff0000);
    assert_saw(f->a, "r1@0 ");
    assert_saw(f->b, "r1@0 ");
    pio_write(f->pio, 0x5f, 4, 0x44332211);
    assert_saw(f->a, "w1@0=0x22 ");
    assert_saw(f->b, "w1@0=0x33 ");
    /* There is no port after the last. */
    assert_int_equal(pio_read(f->pio, 0xffff, 4), 0xffffff22);
    pio_write(f->pio, 0xfffe, 4, 0x00007700);
    assert_saw(f->a, "r1@0 w1@0=0x77 ");
    /* Nobody at all. */
    assert_int_equal(pio_read(f->pio, 0x80, 1), 0xff);
    assert_int_equal(pio_read(f->pio, 0x80, 2), 0xffff);
    assert_int_equal(pio_read(f->pio, 0x80, 4), 0xffffffff);
    pio_write(f->pio, 0x80, 4, 1);
}

static void test_pio_map_errors(void **state)
{
    struct fixture *f = *state;
    struct err e;

    assert_int_equal(pio_map(f->pio, 0x3f8, 8, &f->a->dev, &any_ops, &e), 0);
    assert_int_equal(pio_map(f->pio, 0x3f0, 9, &f->b->dev, &any_ops, &e), -EBUSY);
    assert_string_equal(e.msg, "b: port 0x3f8 is taken by a");
    /* All or nothing. */
    assert_int_equal(pio_read(f->pio, 0x3f0, 1), 0xff);
    assert_int_equal(pio_map(f->pio, 0xfff8, 9, &f->b->dev, &any_ops, &e), -EINVAL);
    assert_int_equal(pio_map(f->pio, 0, 0, &f->b->dev, &any_ops, &e), -EINVAL);
    /* Unmapped in parts, and what is left still answers. */
    pio_unmap(f->pio, 0x3fa, 2);
    assert_int_equal(pio_read(f->pio, 0x3f8, 4), 0xffff0100);
    assert_int_equal(pio_map(f->pio, 0x3fa, 2, &f->b->dev, &any_ops, &e), 0);
    assert_int_equal(pio_read(f->pio, 0x3f8, 4), 0x01000100);
    pio_unmap(f->pio, 0x3f0, 32);
    assert_int_equal(pio_read(f->pio, 0x3f8, 4), 0xffffffff);
    pio_unmap(f->pio, 0xfff0, 100);
    /* The whole space at once. */
    assert_int_equal(pio_map(f->pio, 0, 65536, &f->a->dev, &no_ops, &e), 0);
    assert_int_equal(pio_read(f->pio, 0x1234, 2), 0xffff);
    pio_write(f->pio, 0x1234, 2, 1);
}

#define MOVES 20000

static void *move_ports(void *arg)
{
    struct fixture *f = arg;

    for (int i = 0; i < MOVES; i++) {
        if (pio_map(f->pio, 0x500, 8, &f->a->dev, &no_ops, NULL))
            return arg;
        pio_unmap(f->pio, 0x500, 8);
    }
    return NULL;
}

/* One vCPU moves a device that another uses (for the sanitizers: nothing is used after it was
 * freed). */
static void test_pio_moves_under_access(void **state)
{
    struct fixture *f = *state;
    pthread_t t;
    void *failed;

    assert_int_equal(pthread_create(&t, NULL, move_ports, f), 0);
    for (int i = 0; i < MOVES; i++) {
        pio_write(f->pio, 0x504, 4, 1);
        assert_int_equal(pio_read(f->pio, 0x506, 4), 0xffffffff);
    }
    pthread_join(t, &failed);
    assert_null(failed);
}

/* ---- MMIO ---- */

static void test_mmio(void **state)
{
    struct fixture *f = *state;
    uint8_t buf[64], want[64];
    struct region *r = mmio_map(&f->a->dev, &any_ops, 0xfe000000, 256, NULL);

    assert_non_null(r);
    mmio_read(&f->ctx, 0xfe000008, buf, 8);
    mmio_read(&f->ctx, 0xfe000004, buf, 4);
    mmio_read(&f->ctx, 0xfe000001, buf, 1);
    assert_saw(f->a, "r8@8 r4@4 r1@1 ");
    /* Vector loads and misaligned accesses come in aligned pieces, ascending. */
    mmio_read(&f->ctx, 0xfe000040, buf, 64);
    for (int i = 0; i < 64; i++)
        want[i] = (uint8_t)(0x40 + i);
    assert_memory_equal(buf, want, 64);
    assert_saw(f->a, "r8@64 r8@72 r8@80 r8@88 r8@96 r8@104 r8@112 r8@120 ");
    mmio_read(&f->ctx, 0xfe000007, buf, 10);
    assert_memory_equal(buf, "\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\x10", 10);
    assert_saw(f->a, "r1@7 r8@8 r1@16 ");
    mmio_write(&f->ctx, 0xfe000003, "\x11\x22\x33\x44\x55\x66\x77", 7);
    assert_saw(f->a, "w1@3=0x11 w4@4=0x55443322 w2@8=0x7766 ");

    mmio_unmap(&f->a->dev, r);
    mmio_read(&f->ctx, 0xfe000008, buf, 8);
    assert_memory_equal(buf, "\xff\xff\xff\xff\xff\xff\xff\xff", 8);
    assert_saw(f->a, "");
    physmap_reclaim(f->map);
}

static void test_mmio_sizes(void **state)
{
    struct fixture *f = *state;
    uint8_t buf[8];

    assert_non_null(mmio_map(&f->a->dev, &dword_ops, 0x1000, 16, NULL));
    assert_non_null(mmio_map(&f->b->dev, &loose_ops, 0x2000, 16, NULL));
    mmio_read(&f->ctx, 0x1000, buf, 8);
    assert_memory_equal(buf, "\0\1\2\3\4\5\6\7", 8);
    mmio_write(&f->ctx, 0x1000, "\1\0\0\0\2\0\0\0", 8);
    mmio_write(&f->ctx, 0x1008, "\1\2", 2);
    mmio_read(&f->ctx, 0x1003, buf, 1);
    assert_int_equal(buf[0], 0);
    assert_saw(f->a, "r4@0 r4@4 w4@0=0x1 w4@4=0x2 r4@0 ");
    /* A device that takes misaligned accesses gets them, up to its size. */
    mmio_read(&f->ctx, 0x2001, buf, 4);
    assert_memory_equal(buf, "\1\2\3\4", 4);
    mmio_read(&f->ctx, 0x2001, buf, 7);
    assert_memory_equal(buf, "\1\2\3\4\5\6\7", 7);
    assert_saw(f->b, "r4@1 r4@1 r2@5 r1@7 ");
}

/* Registers read in larger units at odd places never touch beyond the unit. */
static void test_mmio_narrow_unaligned(void **state)
{
    struct fixture *f = *state;
    uint8_t buf[8];

    assert_non_null(mmio_map(&f->a->dev, &loose_word_ops, 0x1000, 16, NULL));
    mmio_read(&f->ctx, 0x1003, buf, 2);
    assert_memory_equal(buf, "\3\4", 2);
    assert_saw(f->a, "r4@0 r4@4 ");
    mmio_read(&f->ctx, 0x1001, buf, 4);
    assert_memory_equal(buf, "\1\2\3\4", 4);
    assert_saw(f->a, "r4@1 ");
}

static void test_mmio_borders(void **state)
{
    struct fixture *f = *state;
    uint8_t buf[16];
    struct ram *ram, *rom;

    assert_int_equal(ram_new(&ram, "ram", 4096, NULL), 0);
    assert_int_equal(ram_new(&rom, "rom", 4096, NULL), 0);
    assert_non_null(physmap_add(
        f->map, &(struct region){.name = "ram", .base = 0x1000, .size = 0x1000, .ram = ram}, NULL));
    assert_non_null(physmap_add(
        f->map,
        &(struct region){
            .name = "rom", .kind = REGION_ROM, .base = 0x2000, .size = 0x1000, .ram = rom},
        NULL));
    assert_non_null(mmio_map(&f->a->dev, &any_ops, 0x1102, 2, NULL));
    assert_non_null(mmio_map(&f->b->dev, &any_ops, 0x1104, 2, NULL));
    memset(ram->host, 0xaa, 4096);
    memset(rom->host, 0xbb, 4096);
    /* RAM, a, b, RAM in one access. */
    mmio_read(&f->ctx, 0x1100, buf, 8);
    assert_memory_equal(buf, "\xaa\xaa\0\1\0\1\xaa\xaa", 8);
    mmio_write(&f->ctx, 0x1100, "12345678", 8);
    assert_memory_equal(ram->host + 0x100,
                        "12\xaa\xaa\xaa\xaa"
                        "78",
                        8);
    assert_saw(f->a, "r2@0 w2@0=0x3433 ");
    assert_saw(f->b, "r2@0 w2@0=0x3635 ");
    /* Stores to ROM are dropped. */
    mmio_write(&f->ctx, 0x1ffc, "12345678", 8);
    assert_memory_equal(ram->host + 0xffc, "1234", 4);
    mmio_read(&f->ctx, 0x1ffc, buf, 8);
    assert_memory_equal(buf, "1234\xbb\xbb\xbb\xbb", 8);
    /* ROM, then nothing; nothing at all, up to the end of what can be addressed. */
    mmio_read(&f->ctx, 0x2ff8, buf, 16);
    assert_memory_equal(buf, "\xbb\xbb\xbb\xbb\xbb\xbb\xbb\xbb", 8);
    assert_memory_equal(buf + 8, "\xff\xff\xff\xff\xff\xff\xff\xff", 8);
    mmio_read(&f->ctx, UINT64_MAX - 3, buf, 4);
    assert_memory_equal(buf, "\xff\xff\xff\xff", 4);
    mmio_write(&f->ctx, UINT64_MAX - 3, buf, 4);
    physmap_free(f->map);
    ram_free(ram);
    ram_free(rom);
    assert_int_equal(physmap_new(&f->map, 36, NULL), 0);
}

/* A register whose write removes its own mapping (a PCI BAR) in the middle of an access. */
struct mover {
    struct device dev;
    struct region *r;
    unsigned writes;
};

static void mover_write(struct device *d, uint64_t off, unsigned size, uint64_t val)
{
    struct mover *m = container_of(d, struct mover, dev);

    m->writes++;
    if (m->r)
        mmio_unmap(d, m->r);
    m->r = NULL;
}

static void test_mapping_moves(void **state)
{
    static const struct device_class cls = {.name = "mover", .size = sizeof(struct mover)};
    static const struct io_ops ops = {.write = mover_write};
    struct fixture *f = *state;
    struct device *d = device_new(&cls, "mover", &f->ctx, NULL, NULL);
    struct mover *m = container_of(d, struct mover, dev);
    uint8_t buf[16] = {0};

    m->r = mmio_map(d, &ops, 0x1000, 16, NULL);
    assert_non_null(m->r);
    mmio_write(&f->ctx, 0x1000, buf, 16);
    assert_int_equal(m->writes, 1);
    physmap_reclaim(f->map);
    device_free(d);
}

/* ---- traces ---- */

static void test_traces(void **state)
{
    struct fixture *f = *state;
    uint8_t buf[4] = {1, 2, 3, 4};

    assert_int_equal(pio_map(f->pio, 0x70, 4, &f->a->dev, &byte_ops, NULL), 0);
    assert_non_null(mmio_map(&f->b->dev, &dword_ops, 0x1000, 16, NULL));
    pio_read(f->pio, 0x71, 1);
    assert_string_equal(output(f), "");
    assert_int_equal(trace_enable(&f->trace, "bus_*", NULL), 0);
    pio_read(f->pio, 0x71, 2);
    assert_string_equal(output(f),
                        "ring3: trace: bus_pio: read port=0x71 size=1 value=0x1 device=a\n"
                        "ring3: trace: bus_pio: read port=0x72 size=1 value=0x2 device=a\n");
    pio_write(f->pio, 0x73, 2, 0x4455);
    assert_string_equal(output(f),
                        "ring3: trace: bus_pio: write port=0x73 size=1 value=0x55 device=a\n"
                        "ring3: trace: bus_unclaimed: write port=0x74 size=1 value=0x44\n");
    mmio_write(&f->ctx, 0x1004, buf, 4);
    mmio_write(&f->ctx, 0x1008, buf, 2);
    assert_string_equal(
        output(f),
        "ring3: trace: bus_mmio: write address=0x1004 size=4 value=0x4030201 device=b\n"
        "ring3: trace: bus_mmio: dropped write address=0x1008 size=2 value=0x201 device=b\n");
    mmio_read(&f->ctx, 0x5000, buf, 4);
    assert_string_equal(output(f), "ring3: trace: bus_unclaimed: read address=0x5000 size=4\n");
}

/* ---- random accesses: the device sees only what it takes, and the bytes add up ---- */

static void check_pieces(const struct scribe *c, const struct io_ops *ops)
{
    unsigned lo = ops->min_size ? ops->min_size : 1, hi = ops->max_size ? ops->max_size : 8;
    const char *p = c->log;
    unsigned size, off;

    while (sscanf(p, "%*c%u@%u", &size, &off) == 2) {
        assert_true(size >= lo && size <= hi && !(size & (size - 1)));
        if (!ops->unaligned)
            assert_int_equal(off % size, 0);
        p = strchr(p, ' ') + 1;
    }
    assert_int_equal(*p, '\0');
}

static void test_random(void **state)
{
    struct fixture *f = *state;

    for (unsigned k = 0; k < 32; k++) {
        const struct io_ops ops = {.read = scribe_read,
                                   .write = scribe_write,
                                   .min_size = (uint8_t)(1 << k % 4),
                                   .max_size = (uint8_t)(1 << k / 4 % 4),
                                   .unaligned = k / 16};
        struct region *r;
        uint64_t rng = k;

        if (ops.min_size > ops.max_size)
            continue;
        r = mmio_map(&f->a->dev, &ops, 0x1000, SCRIBE_REGS, NULL);
        for (unsigned i = 0; i < SCRIBE_REGS; i++)
            f->a->s.reg[i] = (uint8_t)i;
        for (int i = 0; i < 2000; i++) {
            uint8_t buf[64], old[SCRIBE_REGS];
            unsigned size, off;

            rng = rng * 6364136223846793005 + 1442695040888963407;
            size = 1 + (rng >> 33) % 64;
            off = (rng >> 40) % (SCRIBE_REGS - size + 1);
            memcpy(old, f->a->s.reg, sizeof(old));
            if (rng >> 63) {
                mmio_read(&f->ctx, 0x1000 + off, buf, size);
                assert_memory_equal(buf, old + off, size);
            } else {
                for (unsigned j = 0; j < size; j++)
                    buf[j] = (uint8_t)(rng >> j % 32);
                mmio_write(&f->ctx, 0x1000 + off, buf, size);
                /* Each byte is the new one, or was dropped with a piece too narrow. */
                for (unsigned j = 0; j < SCRIBE_REGS; j++) {
                    bool in = j >= off && j < off + size;

                    if (in && ops.min_size == 1)
                        assert_int_equal(f->a->s.reg[j], buf[j - off]);
                    else
                        assert_true(f->a->s.reg[j] == old[j] ||
                                    (in && f->a->s.reg[j] == buf[j - off]));
                }
            }
            check_pieces(f->a, &ops);
            f->a->log[0] = '\0';
        }
        mmio_unmap(&f->a->dev, r);
        physmap_reclaim(f->map);
    }
}

/* ---- life ---- */

static void test_life(void **state)
{
    struct fixture *f = *state;
    unsigned freed = 0;
    const struct scribe_cfg cfg = {.freed = &freed};
    struct device *d = device_new(&scribe_class, "x", &f->ctx, &cfg, NULL);
    struct scribe *c = container_of(d, struct scribe, dev);

    assert_string_equal(d->id, "x");
    assert_int_equal(c->s.resets, 1);
    assert_false(c->s.warm);
    device_reset(d, RESET_WARM);
    assert_true(c->s.warm);
    device_resume(d);
    assert_int_equal(c->resumed, 1);
    assert_saw(c, "reset reset resume ");
    assert_false(c->unlocked);
    device_free(d);
    assert_int_equal(freed, 1);
    device_free(NULL);
}

static void test_life_errors(void **state)
{
    struct fixture *f = *state;
    const struct scribe_cfg cfg = {.fail = EIO};
    struct err e;

    assert_null(device_new(&scribe_class, "com1", &f->ctx, &cfg, &e));
    assert_string_equal(e.msg, "com1: cannot be had");
}

static void test_save_load(void **state)
{
    struct fixture *f = *state;
    struct device *bare = device_new(&bare_class, "bare", &f->ctx, NULL, NULL);
    struct sbuf b;
    struct err e;
    size_t used;

    sbuf_init(&b);
    assert_int_equal(state_desc_check(&scribe_desc, NULL), 0);
    f->a->s.reg[9] = 99;
    assert_int_equal(device_save(&f->a->dev, &b), 0);
    assert_int_equal(device_load(&f->b->dev, b.data, b.len, &used, &e), 0);
    assert_int_equal(used, b.len);
    assert_memory_equal(&f->a->s, &f->b->s, sizeof(f->a->s));
    b.data[b.len - 1] ^= 1;
    f->b->s.reg[9] = 1;
    assert_int_equal(device_load(&f->b->dev, b.data, b.len, &used, &e), -EINVAL);
    assert_string_equal(e.msg, "b: state 'scribe': checksum does not match");
    assert_int_equal(f->b->s.reg[9], 1);
    sbuf_free(&b);

    /* A device without any of the optional functions, and without state. */
    assert_int_equal(device_save(bare, &b), 0);
    assert_int_equal(b.len, 0);
    assert_int_equal(device_load(bare, NULL, 0, &used, &e), 0);
    assert_int_equal(used, 0);
    device_quiesce(bare);
    device_resume(bare);
    device_reset(bare, RESET_COLD);
    device_free(bare);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_pio),
        T(test_pio_sizes),
        T(test_pio_borders),
        T(test_pio_map_errors),
        T(test_pio_moves_under_access),
        T(test_mmio),
        T(test_mmio_sizes),
        T(test_mmio_narrow_unaligned),
        T(test_mmio_borders),
        T(test_mapping_moves),
        T(test_traces),
        T(test_random),
        T(test_life),
        T(test_life_errors),
        T(test_save_load),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
