/* The virtio entropy device (virtio 1.2 §5.4). */
#include <stdlib.h>
#include <string.h>

#include "virtio_driver.h"

#include "base/util.h"
#include "dev/virtio/rng.h"

#define RATE 1000u /* bytes a second */
#define MS 1000000u

static int setup(void **state)
{
    struct vdrv *d = malloc(sizeof(*d));

    vdrv_init(d);
    clock_step(&d->f.clock, 5000ull * MS);
    vdrv_attach(d, &virtio_rng_class, &(struct virtio_rng_cfg){vdrv_slot(d), RATE});
    clock_step(&d->f.clock, 5000ull * MS);
    *state = d;
    return 0;
}

static int teardown(void **state)
{
    vdrv_fini(*state);
    free(*state);
    return 0;
}

static bool all_zero(const uint8_t *p, size_t n)
{
    while (n && !p[n - 1])
        n--;
    return n == 0;
}

static void test_random_bytes(void **state)
{
    struct vdrv *d = *state;
    uint8_t a[64], b[64];

    for (int packed = 0; packed < 2; packed++) {
        vdrv_start(d, packed ? VDRV_PACKED : VDRV_SPLIT, 1, 8);
        assert_int_equal(vdrv_request(&d->q[0], NULL, 0, a, 64), 64);
        assert_int_equal(vdrv_request(&d->q[0], NULL, 0, b, 64), 64);
        assert_true(memcmp(a, b, 64) != 0);
        assert_false(all_zero(a, 64) || all_zero(a + 32, 32));
    }
    assert_int_equal(d->irqs[0], 4);
}

/* A second's worth at once, then what the time that passes is worth, and never late. */
static void test_rate(void **state)
{
    struct vdrv *d = *state;
    const uint64_t at = vdrv_alloc(d, 4096, 1);
    const struct vdrv_sg sg = {at, 4096};
    uint32_t n;

    vdrv_start(d, 0, 1, 8);
    vdrv_add(&d->q[0], &sg, 0, 1, d);
    vdrv_kick(&d->q[0]);
    assert_ptr_equal(vdrv_used(&d->q[0], &n), d);
    assert_int_equal(n, RATE);
    assert_true(all_zero((uint8_t *)vdrv_ptr(d, at) + RATE, 4096 - RATE));

    vdrv_add(&d->q[0], &sg, 0, 1, d);
    vdrv_kick(&d->q[0]);
    vdrv_kick(&d->q[0]);
    assert_null(vdrv_used(&d->q[0], NULL)); /* has to wait */
    fake_step(&d->f, 100 * MS);
    assert_ptr_equal(vdrv_used(&d->q[0], &n), d);
    assert_int_equal(n, RATE / 10);

    uint64_t sum = 0;
    for (int i = 0; i < 1000; i++) { /* ten seconds in odd steps */
        if (i % 3 == 0 && vdrv_add(&d->q[0], &sg, 0, 1, d) >= 0)
            vdrv_kick(&d->q[0]);
        fake_step(&d->f, 10 * MS - 3 + i % 7);
        while (vdrv_used(&d->q[0], &n))
            sum += n;
    }
    assert_in_range(sum, 10 * RATE - RATE / 10, 10 * RATE);

    /* Not hoarded beyond a second. */
    fake_step(&d->f, 3600000ull * MS);
    while (vdrv_used(&d->q[0], &n))
        ;
    fake_step(&d->f, 3600000ull * MS);
    vdrv_add(&d->q[0], &sg, 0, 1, d);
    vdrv_kick(&d->q[0]);
    vdrv_used(&d->q[0], &n);
    assert_int_equal(n, RATE);
}

/* A request that waits for credit outlives a pause, and a reset forgets it. */
static void test_waiting(void **state)
{
    struct vdrv *d = *state;
    const struct vdrv_sg sg = {vdrv_alloc(d, 4096, 1), 4096};
    uint32_t n;

    vdrv_start(d, 0, 1, 8);
    for (int i = 0; i < 2; i++) {
        vdrv_add(&d->q[0], &sg, 0, 1, d);
        vdrv_kick(&d->q[0]);
    }
    assert_non_null(vdrv_used(&d->q[0], &n));
    assert_null(vdrv_used(&d->q[0], &n));
    device_quiesce(d->dev);
    fake_step(&d->f, 50 * MS);
    assert_null(vdrv_used(&d->q[0], &n));
    device_resume(d->dev);
    fake_step(&d->f, 50 * MS);
    assert_non_null(vdrv_used(&d->q[0], &n));

    vdrv_add(&d->q[0], &sg, 0, 1, d);
    vdrv_kick(&d->q[0]);
    vdrv_reset(d);
    memset(vdrv_ptr(d, sg.gpa), 0, 4096);
    fake_step(&d->f, 2000ull * MS);
    assert_true(all_zero(vdrv_ptr(d, sg.gpa), 4096));
}

/* Readable buffers make no sense: they are used with nothing, and do no harm. */
static void test_readable(void **state)
{
    struct vdrv *d = *state;

    vdrv_start(d, 0, 1, 8);
    assert_int_equal(vdrv_request(&d->q[0], "x", 1, NULL, 0), 0);
    assert_int_equal(vdrv_status(d), 15);
}

static void test_state_table(void **state)
{
    struct vdrv *d = *state;
    struct pci_bus *bus;

    assert_int_equal(pci_bus_new(&bus, &(struct pci_bus_cfg){.ctx = &d->f.ctx}, NULL), 0);
    fake_check_state(&d->f, &virtio_rng_class, &(struct virtio_rng_cfg){{bus, 8}, RATE});
    pci_bus_free(bus);
}

#define TEST(t) cmocka_unit_test_setup_teardown(t, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_random_bytes), TEST(test_rate),        TEST(test_waiting),
        TEST(test_readable),     TEST(test_state_table),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
