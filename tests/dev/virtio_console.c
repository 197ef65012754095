/* The virtio console (virtio 1.2 §5.3). */
#include <stdlib.h>
#include <string.h>

#include "fakechr.h"
#include "virtio_driver.h"

#include "base/util.h"
#include "dev/virtio/console.h"

enum { IN, OUT };

struct fixture {
    struct vdrv d;
    struct fakechr chr;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    vdrv_init(&f->d);
    fakechr_init(&f->chr);
    f->chr.columns = 80;
    f->chr.rows = 25;
    vdrv_attach(&f->d, &virtio_console_class,
                &(struct virtio_console_cfg){vdrv_slot(&f->d), &f->chr.base});
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

static size_t type(struct fixture *f, const char *text)
{
    const struct chardev_front *front = &f->chr.base.front;

    return front->receive(front->arg, (const uint8_t *)text, strlen(text));
}

static void say(struct fixture *f, const char *a, const char *b)
{
    const uint64_t at = vdrv_alloc(&f->d, 4096, 1);
    const struct vdrv_sg sg[] = {{at, (uint32_t)strlen(a)}, {at + 2048, (uint32_t)strlen(b)}};

    memcpy(vdrv_ptr(&f->d, at), a, strlen(a));
    memcpy(vdrv_ptr(&f->d, at + 2048), b, strlen(b));
    assert_true(vdrv_add(&f->d.q[OUT], sg, 2, 0, f) >= 0);
    vdrv_kick(&f->d.q[OUT]);
}

static void test_output(void **state)
{
    struct fixture *f = *state;
    uint32_t n;

    vdrv_start(&f->d, 0, 2, 16);
    say(f, "hello, ", "world");
    assert_ptr_equal(vdrv_used(&f->d.q[OUT], &n), f);
    assert_int_equal(n, 0);
    assert_int_equal(f->chr.len, 12);
    assert_memory_equal(f->chr.out, "hello, world", 12);
    assert_int_equal(f->d.irqs[OUT], 1);
}

/* A host that does not keep up: nothing is lost, doubled or reordered, also over a pause in
 * between. */
static void test_slow_host(void **state)
{
    struct fixture *f = *state;
    const struct chardev_front *front = &f->chr.base.front;

    vdrv_start(&f->d, 0, 2, 16);
    f->chr.room = 5;
    say(f, "abc", "defgh");
    say(f, "ijk", "lmn");
    assert_null(vdrv_used(&f->d.q[OUT], NULL));
    vdrv_kick(&f->d.q[OUT]);
    device_quiesce(f->d.dev);
    f->chr.room = 7;
    front->writable(front->arg);
    assert_int_equal(f->chr.len, 5);
    device_resume(f->d.dev);
    assert_int_equal(f->chr.len, 7);
    f->chr.room = 10;
    front->writable(front->arg);
    assert_ptr_equal(vdrv_used(&f->d.q[OUT], NULL), f);
    assert_null(vdrv_used(&f->d.q[OUT], NULL));
    f->chr.room = 100;
    front->writable(front->arg);
    assert_ptr_equal(vdrv_used(&f->d.q[OUT], NULL), f);
    assert_memory_equal(f->chr.out, "abcdefghijklmn", 14);
    assert_int_equal(f->chr.len, 14);

    /* What a reset interrupts is not continued by another driver. */
    f->chr.room = 16;
    say(f, "1234", "5678");
    vdrv_start(&f->d, 0, 2, 16);
    f->chr.room = 100;
    say(f, "new", "!");
    assert_memory_equal(f->chr.out + 14, "12new!", 6);
}

static void test_input(void **state)
{
    struct fixture *f = *state;
    const uint64_t at = vdrv_alloc(&f->d, 64, 1);
    const struct vdrv_sg sg[] = {{at, 4}, {at + 4, 4}, {at + 8, 8}};
    unsigned accepts;
    uint32_t n;

    assert_int_equal(type(f, "early"), 0); /* nobody is there: the backend keeps it */
    vdrv_start(&f->d, 0, 2, 16);
    assert_int_equal(type(f, "early"), 0); /* no buffer either */
    accepts = f->chr.accepts;
    vdrv_add(&f->d.q[IN], sg, 0, 2, f);
    vdrv_add(&f->d.q[IN], sg + 2, 0, 1, f);
    vdrv_kick(&f->d.q[IN]);
    assert_int_equal(f->chr.accepts, accepts + 1);
    assert_int_equal(type(f, "0123456789"), 10);
    assert_ptr_equal(vdrv_used(&f->d.q[IN], &n), f);
    assert_int_equal(n, 8);
    assert_ptr_equal(vdrv_used(&f->d.q[IN], &n), f);
    assert_int_equal(n, 2);
    assert_memory_equal(vdrv_ptr(&f->d, at), "0123456789", 10);
    assert_int_equal(f->d.irqs[IN], 1);

    vdrv_add(&f->d.q[IN], sg, 0, 1, f);
    assert_int_equal(type(f, "abcdef"), 4); /* the rest waits for a buffer */
    vdrv_kick(&f->d.q[IN]);
    assert_int_equal(f->chr.accepts, accepts + 2);
    vdrv_kick(&f->d.q[IN]); /* nothing waits */
    assert_int_equal(f->chr.accepts, accepts + 2);
    device_quiesce(f->d.dev);
    assert_int_equal(type(f, "x"), 0);
    device_resume(f->d.dev);
    assert_int_equal(f->chr.accepts, accepts + 3);
}

static void test_size(void **state)
{
    struct fixture *f = *state;
    const struct chardev_front *front = &f->chr.base.front;
    unsigned vector;

    assert_true(vdrv_offered(&f->d) & BIT(0));
    vdrv_start(&f->d, BIT(0), 2, 16);
    vector = vdrv_config_vector(&f->d);
    assert_int_equal(vdrv_read(&f->d, f->d.config, 4), 25 << 16 | 80);
    assert_int_equal(f->d.irqs[vector], 1); /* it is told from the start */
    front->resized(front->arg);             /* to the same */
    assert_int_equal(f->d.irqs[vector], 1);
    f->chr.columns = 132;
    front->resized(front->arg);
    assert_int_equal(f->d.irqs[vector], 2);
    f->chr.rows = 50; /* another terminal, after a pause */
    device_quiesce(f->d.dev);
    device_resume(f->d.dev);
    assert_int_equal(f->d.irqs[vector], 3);
    assert_int_equal(vdrv_read(&f->d, f->d.config, 4), 50 << 16 | 132);
    f->chr.rows = 25;
    front->resized(front->arg);
    assert_int_equal(vdrv_read(&f->d, f->d.config, 4), 25 << 16 | 132);
}

static void test_no_size(void **state)
{
    struct vdrv d;

    vdrv_init(&d);
    vdrv_attach(&d, &virtio_console_class, &(struct virtio_console_cfg){vdrv_slot(&d), NULL});
    assert_false(vdrv_offered(&d) & BIT(0));
    vdrv_start(&d, 0, 2, 16);
    vdrv_request(&d.q[OUT], "to nobody", 9, NULL, 0);
    vdrv_fini(&d);
}

static void test_emergency(void **state)
{
    struct fixture *f = *state;

    assert_true(vdrv_offered(&f->d) & BIT(2));
    vdrv_write(&f->d, f->d.config + 8, 4, 'E'); /* before any driver is there */
    vdrv_write(&f->d, f->d.config + 4, 4, 'x');
    assert_int_equal(f->chr.len, 1);
    assert_int_equal(f->chr.out[0], 'E');
}

static void test_state_table(void **state)
{
    struct fixture *f = *state;
    struct pci_bus *bus;

    assert_int_equal(pci_bus_new(&bus, &(struct pci_bus_cfg){.ctx = &f->d.f.ctx}, NULL), 0);
    fake_check_state(&f->d.f, &virtio_console_class, &(struct virtio_console_cfg){{bus, 8}, NULL});
    pci_bus_free(bus);
}

#define TEST(t) cmocka_unit_test_setup_teardown(t, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_output),
        TEST(test_slow_host),
        TEST(test_input),
        TEST(test_size),
        TEST(test_emergency),
        TEST(test_state_table),
        cmocka_unit_test(test_no_size),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
