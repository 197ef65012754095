/* Keyboard controller and keyboard: register scripts against the IBM PS/2 technical reference. */
#include <stdlib.h>

#include "fake.h"

#include "base/util.h"
#include "dev/platform/i8042.h"
#include "dev/platform/ps2kbd.h"

#define LINE 1

struct fixture {
    struct fake m;
    struct device *dev;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    fake_init(&f->m);
    f->dev = fake_device(&f->m, &i8042_class, "i8042",
                         &(struct i8042_cfg){.kbd_irq = fake_irq(&f->m, LINE)});
    fake_ports(&f->m, 0x60, 1, f->dev, &i8042_data_ops);
    fake_ports(&f->m, 0x64, 1, f->dev, &i8042_command_ops);
    fake_ports(&f->m, 0x92, 1, f->dev, &i8042_port92_ops);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    device_free(f->dev);
    fake_fini(&f->m);
    free(f);
    return 0;
}

static void command(struct fixture *f, uint8_t c) { outb(&f->m, 0x64, c); }
static void data(struct fixture *f, uint8_t v) { outb(&f->m, 0x60, v); }
static bool full(struct fixture *f) { return inb(&f->m, 0x64) & 1; }

static uint8_t take(struct fixture *f)
{
    assert_true(full(f));
    return inb(&f->m, 0x60);
}

/* Expects exactly these bytes. */
static void expect(struct fixture *f, const uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        assert_int_equal(take(f), p[i]);
    assert_false(full(f));
}
#define EXPECT(f, ...)                                 \
    do {                                               \
        static const uint8_t bytes_[] = {__VA_ARGS__}; \
        expect(f, bytes_, sizeof(bytes_));             \
    } while (0)

static void test_controller_commands(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(inb(&f->m, 0x64), 0x14); /* unlocked, system flag */
    command(f, 0xaa);
    assert_int_equal(inb(&f->m, 0x64), 0x1d); /* the last write was a command; a byte waits */
    EXPECT(f, 0x55);
    command(f, 0xab);
    EXPECT(f, 0x00);
    command(f, 0xc0);
    EXPECT(f, 0x80);
    command(f, 0xd0);
    assert_int_equal(take(f) & 0x03, 0x03); /* no reset, A20 on */
    command(f, 0x99);                       /* unknown */
    assert_false(full(f));
}

static void test_command_byte(void **state)
{
    struct fixture *f = *state;

    command(f, 0x20);
    EXPECT(f, 0x65); /* as firmware leaves it */
    command(f, 0x60);
    data(f, 0x30);
    assert_int_equal(inb(&f->m, 0x64) & 0x0c, 0); /* neither command nor system flag */
    command(f, 0x20);
    EXPECT(f, 0x30);
    command(f, 0xae);
    command(f, 0x20);
    EXPECT(f, 0x20);
    command(f, 0xad);
    command(f, 0xa8);
    command(f, 0x20);
    EXPECT(f, 0x10);
    command(f, 0xa7);
    command(f, 0x20);
    EXPECT(f, 0x30);

    command(f, 0x7f); /* the other bytes of its memory */
    data(f, 0xd7);
    command(f, 0x3f);
    EXPECT(f, 0xd7);
}

static void test_there_is_no_aux_port(void **state)
{
    struct fixture *f = *state;

    command(f, 0xa9);
    uint8_t result = take(f);
    assert_true(result != 0x00 && result != 0xfa && result != 0xff);
    command(f, 0xd3); /* what is looped comes back as the keyboard's */
    data(f, 0x5a);
    assert_int_equal(inb(&f->m, 0x64) & 0x20, 0);
    EXPECT(f, 0x5a);
    command(f, 0xd4);
    data(f, 0xf2);
    assert_false(full(f));
}

static void test_interrupt(void **state)
{
    struct fixture *f = *state;

    i8042_key(f->dev, 0x1e, true);
    i8042_key(f->dev, 0x1e, false);
    assert_true(f->m.level[LINE]);
    assert_int_equal(f->m.edges[LINE], 1);
    assert_int_equal(inb(&f->m, 0x60), 0x1e);
    assert_true(f->m.level[LINE]); /* an edge for each byte */
    assert_int_equal(f->m.edges[LINE], 2);
    assert_int_equal(inb(&f->m, 0x60), 0x9e);
    assert_false(f->m.level[LINE]);
    assert_int_equal(inb(&f->m, 0x60), 0x9e); /* an empty buffer repeats itself */

    command(f, 0x60);
    data(f, 0x64); /* interrupt off */
    i8042_key(f->dev, 0x1e, true);
    assert_true(full(f));
    assert_false(f->m.level[LINE]);
}

static void test_keyboard_commands(void **state)
{
    struct fixture *f = *state;

    command(f, 0x60);
    data(f, 0x24); /* no translation, so that we see what the keyboard says */
    data(f, 0xff);
    EXPECT(f, 0xfa, 0xaa);
    data(f, 0xee);
    EXPECT(f, 0xee);
    data(f, 0xf2);
    EXPECT(f, 0xfa, 0xab, 0x83);
    data(f, 0xed);
    EXPECT(f, 0xfa);
    data(f, 0x07);
    EXPECT(f, 0xfa);
    data(f, 0xf3);
    EXPECT(f, 0xfa);
    data(f, 0x20);
    EXPECT(f, 0xfa);
    data(f, 0xed); /* a command where a parameter was due takes its place */
    EXPECT(f, 0xfa);
    data(f, 0xee);
    EXPECT(f, 0xee);
    data(f, 0xf0);
    EXPECT(f, 0xfa);
    data(f, 0x00);
    EXPECT(f, 0xfa, 0x02);
    data(f, 0xf0);
    EXPECT(f, 0xfa);
    data(f, 0x03); /* no set 3 */
    EXPECT(f, 0xfe);
    data(f, 0x05); /* not a command */
    EXPECT(f, 0xfe);
    data(f, 0xf2);
    assert_int_equal(take(f), 0xfa);
    assert_int_equal(take(f), 0xab);
    data(f, 0xfe); /* resend: 0x83 is in the controller already, so that is the last one sent */
    EXPECT(f, 0x83, 0x83);

    command(f, 0x60);
    data(f, 0x64);
    data(f, 0xf2);
    EXPECT(f, 0xfa, 0xab, 0x41); /* the identification is translated like everything */
}

static void test_scan_code_sets(void **state)
{
    struct fixture *f = *state;

    /* Translated: what every PC guest expects. */
    i8042_key(f->dev, 0xe04b, true);
    i8042_key(f->dev, 0xe04b, false);
    EXPECT(f, 0xe0, 0x4b, 0xe0, 0xcb);
    i8042_key(f->dev, PS2KBD_PAUSE, true);
    i8042_key(f->dev, PS2KBD_PAUSE, false);
    EXPECT(f, 0xe1, 0x1d, 0x45, 0xe1, 0x9d, 0xc5);

    /* Set 2 as it is. */
    command(f, 0x60);
    data(f, 0x24);
    i8042_key(f->dev, 0x1e, true);
    i8042_key(f->dev, 0x1e, false);
    EXPECT(f, 0x1c, 0xf0, 0x1c);
    i8042_key(f->dev, 0x41, true); /* F7, the one code above 0x7f */
    EXPECT(f, 0x83);
    i8042_key(f->dev, 0xe04b, false);
    EXPECT(f, 0xe0, 0xf0, 0x6b);

    /* Set 1 from the keyboard. */
    data(f, 0xf0);
    EXPECT(f, 0xfa);
    data(f, 0x01);
    EXPECT(f, 0xfa);
    i8042_key(f->dev, 0x1e, true);
    i8042_key(f->dev, 0x1e, false);
    EXPECT(f, 0x1e, 0x9e);
    data(f, 0xf6); /* defaults: set 2 again */
    EXPECT(f, 0xfa);
    i8042_key(f->dev, 0x1e, true);
    EXPECT(f, 0x1c);
}

/* Each key that set 1 has comes out of the translation as it went in. */
static void test_translation_is_complete(void **state)
{
    struct fixture *f = *state;

    for (uint8_t key = 1; key <= 0x53; key++) {
        assert_true(i8042_key(f->dev, key, true));
        expect(f, &key, 1);
    }
}

static void test_keys_that_are_not_sent(void **state)
{
    struct fixture *f = *state;

    assert_false(i8042_key(f->dev, 0x00, true));
    assert_false(i8042_key(f->dev, 0x80, true));
    assert_false(i8042_key(f->dev, 0x1234, true));
    data(f, 0xf5); /* scanning off */
    EXPECT(f, 0xfa);
    assert_false(i8042_key(f->dev, 0x1e, true));
    data(f, 0xf4);
    EXPECT(f, 0xfa);
    assert_true(i8042_key(f->dev, 0x1e, true));
    EXPECT(f, 0x1e);
    assert_false(full(f));
}

static void test_full_keyboard_drops_whole_keys(void **state)
{
    struct fixture *f = *state;
    unsigned sent = 0;

    command(f, 0xad); /* nothing leaves the keyboard */
    while (i8042_key(f->dev, 0xe04b, true) && sent < 100)
        sent++;
    assert_int_equal(sent, 8); /* 16 bytes */
    assert_false(full(f));
    command(f, 0xae);
    for (; sent; sent--) {
        assert_int_equal(take(f), 0xe0);
        assert_int_equal(take(f), 0x4b);
    }
    assert_false(full(f));
}

static void test_replies_overtake_keys(void **state)
{
    struct fixture *f = *state;

    i8042_key(f->dev, 0x1e, true); /* in the controller */
    i8042_key(f->dev, 0x30, true); /* in the keyboard */
    data(f, 0xee);
    EXPECT(f, 0x1e, 0xee, 0x30);
}

static void test_writing_data_enables_the_keyboard(void **state)
{
    struct fixture *f = *state;

    command(f, 0xad);
    data(f, 0xee);
    EXPECT(f, 0xee);
    command(f, 0x20);
    EXPECT(f, 0x65);
}

static void test_reset(void **state)
{
    struct fixture *f = *state;

    command(f, 0xfe);
    assert_int_equal(f->m.requests[MACHINE_RESET], 1);
    command(f, 0xff); /* pulses nothing */
    assert_int_equal(f->m.requests[MACHINE_RESET], 1);
    command(f, 0xd1);
    data(f, 0x02);
    assert_int_equal(f->m.requests[MACHINE_RESET], 2);
    command(f, 0xd1);
    data(f, 0xdd); /* A20 off: not here */
    assert_int_equal(f->m.requests[MACHINE_RESET], 2);
    command(f, 0xd0);
    assert_int_equal(take(f) & 2, 2);
    assert_int_equal(inb(&f->m, 0x92), 0x02);
    outb(&f->m, 0x92, 0x00);
    assert_int_equal(inb(&f->m, 0x92), 0x02);
    assert_int_equal(f->m.requests[MACHINE_RESET], 2);
    outb(&f->m, 0x92, 0x03);
    assert_int_equal(f->m.requests[MACHINE_RESET], 3);

    i8042_key(f->dev, 0x1e, true);
    device_reset(f->dev, RESET_WARM);
    assert_false(full(f));
    assert_false(f->m.level[LINE]);
}

static void test_output_buffer_can_be_written(void **state)
{
    struct fixture *f = *state;

    command(f, 0xd2);
    data(f, 0x77);
    assert_true(f->m.level[LINE]);
    EXPECT(f, 0x77);
}

static void test_migration(void **state)
{
    struct fixture *f = *state;
    struct device *d2 = fake_device(&f->m, &i8042_class, "other",
                                    &(struct i8042_cfg){.kbd_irq = fake_irq(&f->m, 12)});

    data(f, 0xed);
    EXPECT(f, 0xfa);
    i8042_key(f->dev, 0xe04b, true);
    fake_migrate(f->dev, d2);
    assert_true(f->m.level[12]);
    pio_unmap(f->m.pio, 0x60, 1);
    pio_unmap(f->m.pio, 0x64, 1);
    fake_ports(&f->m, 0x60, 1, d2, &i8042_data_ops);
    fake_ports(&f->m, 0x64, 1, d2, &i8042_command_ops);
    assert_int_equal(take(f), 0xe0);
    data(f, 0x02); /* the parameter that was due; its reply waits behind the byte in the buffer */
    EXPECT(f, 0x4b, 0xfa);
    device_free(d2);
}

static void test_state(void **state)
{
    struct fixture *f = *state;

    fake_check_state(&f->m, &i8042_class, &(struct i8042_cfg){.kbd_irq = fake_irq(&f->m, 12)});
}

#define TEST(t) cmocka_unit_test_setup_teardown(t, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_controller_commands),
        TEST(test_command_byte),
        TEST(test_there_is_no_aux_port),
        TEST(test_interrupt),
        TEST(test_keyboard_commands),
        TEST(test_scan_code_sets),
        TEST(test_translation_is_complete),
        TEST(test_keys_that_are_not_sent),
        TEST(test_full_keyboard_drops_whole_keys),
        TEST(test_replies_overtake_keys),
        TEST(test_writing_data_enables_the_keyboard),
        TEST(test_reset),
        TEST(test_output_buffer_can_be_written),
        TEST(test_migration),
        TEST(test_state),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
