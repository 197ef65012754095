/* ACPI fixed hardware and the debug-exit port: register scripts against ACPI 6.5 §4.8. */
#include <stdlib.h>

#include "fake.h"

#include "base/util.h"
#include "dev/platform/acpi.h"
#include "dev/platform/debugexit.h"
#include "dev/platform/pmtimer.h"

#define BASE 0x600
#define STS (BASE + ACPI_PM1_EVT)
#define EN (BASE + ACPI_PM1_EVT + 2)
#define CNT (BASE + ACPI_PM1_CNT)
#define TMR (BASE + ACPI_PM_TMR)
#define GPE_STS (BASE + ACPI_GPE0)
#define GPE_EN (BASE + ACPI_GPE0 + 2)
#define SCI 9

#define PWRBTN 0x100
#define TMR_EVENT 0x001
#define SLP_EN 0x2000
#define SLP_TYP(n) ((n) << 10)

struct fixture {
    struct fake m;
    struct device *dev;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    fake_init(&f->m);
    f->dev = fake_device(&f->m, &acpi_class, "acpi",
                         &(struct acpi_dev_cfg){.sci = fake_irq(&f->m, SCI)});
    fake_ports(&f->m, BASE, ACPI_PORTS, f->dev, &acpi_ops);
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

static uint16_t inw(struct fixture *f, uint16_t port)
{
    return (uint16_t)pio_read(f->m.pio, port, 2);
}

static void outw(struct fixture *f, uint16_t port, uint16_t v) { pio_write(f->m.pio, port, 2, v); }

static void test_reset_values(void **state)
{
    struct fixture *f = *state;

    acpi_power_button(f->dev);
    outw(f, EN, 0xffff);
    device_reset(f->dev, RESET_WARM);
    assert_int_equal(inw(f, STS), 0);
    assert_int_equal(inw(f, EN), 0);
    assert_int_equal(inw(f, CNT), 1); /* SCI_EN */
    assert_int_equal(pio_read(f->m.pio, GPE_STS, 4), 0);
    assert_false(f->m.level[SCI]);
}

static void test_power_button(void **state)
{
    struct fixture *f = *state;

    acpi_power_button(f->dev);
    assert_int_equal(inw(f, STS), PWRBTN);
    assert_false(f->m.level[SCI]); /* not enabled */
    outw(f, EN, PWRBTN);
    assert_true(f->m.level[SCI]);
    outw(f, STS, 0); /* writing 0 clears nothing */
    assert_true(f->m.level[SCI]);
    outw(f, STS, PWRBTN);
    assert_int_equal(inw(f, STS), 0);
    assert_false(f->m.level[SCI]);
    acpi_power_button(f->dev);
    assert_true(f->m.level[SCI]);
    outw(f, EN, 0);
    assert_false(f->m.level[SCI]);
}

static void test_enable_register_keeps_what_exists(void **state)
{
    struct fixture *f = *state;

    outw(f, EN, 0xffff);
    assert_int_equal(inw(f, EN), 0x0721); /* timer, global lock, buttons, RTC */
}

static void test_poweroff(void **state)
{
    struct fixture *f = *state;

    outw(f, CNT, SLP_TYP(ACPI_SLP_TYP_S5)); /* the type alone does nothing */
    assert_int_equal(f->m.requests[MACHINE_POWEROFF], 0);
    assert_int_equal(inw(f, CNT), SLP_TYP(ACPI_SLP_TYP_S5) | 1);
    outw(f, CNT, SLP_TYP(ACPI_SLP_TYP_S5) | SLP_EN | 1);
    assert_int_equal(f->m.requests[MACHINE_POWEROFF], 1);
    assert_int_equal(inw(f, CNT) & SLP_EN, 0); /* write-only */

    for (unsigned type = 0; type < 8; type++) { /* no other sleeping state */
        if (type != ACPI_SLP_TYP_S5)
            outw(f, CNT, (uint16_t)(SLP_TYP(type) | SLP_EN));
    }
    assert_int_equal(f->m.requests[MACHINE_POWEROFF], 1);

    /* By bytes, as any register of this block may be accessed. */
    outb(&f->m, CNT + 1, (SLP_TYP(ACPI_SLP_TYP_S5) | SLP_EN) >> 8);
    assert_int_equal(f->m.requests[MACHINE_POWEROFF], 2);
}

static void test_sci_en_stays(void **state)
{
    struct fixture *f = *state;

    outw(f, CNT, 0);
    assert_int_equal(inw(f, CNT), 1);
    outw(f, CNT, 0xffff & ~SLP_EN);
    assert_int_equal(inw(f, CNT), 0x1c03); /* SLP_TYP, BM_RLD, SCI_EN */
}

static void test_byte_and_dword_accesses(void **state)
{
    struct fixture *f = *state;

    acpi_power_button(f->dev);
    pio_write(f->m.pio, STS, 4, (uint32_t)PWRBTN << 16); /* enable; clears nothing */
    assert_int_equal(pio_read(f->m.pio, STS, 4), (uint32_t)PWRBTN << 16 | PWRBTN);
    outb(&f->m, STS, 0xff);
    assert_int_equal(inb(&f->m, STS + 1), 1);
    outb(&f->m, STS + 1, 1);
    assert_int_equal(inb(&f->m, STS + 1), 0);
    assert_int_equal(inb(&f->m, EN + 1), 1);
    outw(f, EN + 1, 0); /* across the registers' border */
    assert_int_equal(inw(f, EN), 0);
}

static void test_pm_timer(void **state)
{
    struct fixture *f = *state;

    fake_step(&f->m, 1000000000);
    assert_int_equal(pio_read(f->m.pio, TMR, 4), PMTIMER_HZ);
    pio_write(f->m.pio, TMR, 4, 0);
    assert_int_equal(pio_read(f->m.pio, TMR, 4), PMTIMER_HZ);
    assert_int_equal(inw(f, TMR), PMTIMER_HZ & 0xffff);
}

/* Half a turn of 32 bits at 3.579545 MHz, rounded up. */
#define HALF_TURN ((BIT(31) * 1000000000ull + PMTIMER_HZ - 1) / PMTIMER_HZ)

static void test_timer_event(void **state)
{
    struct fixture *f = *state;

    fake_step(&f->m, HALF_TURN - 1);
    assert_int_equal(inw(f, STS), 0);
    fake_step(&f->m, 1);
    assert_int_equal(pio_read(f->m.pio, TMR, 4), 0x80000000);
    assert_int_equal(inw(f, STS), TMR_EVENT); /* also when nobody asked for the interrupt */
    assert_false(f->m.level[SCI]);
    outw(f, STS, TMR_EVENT);
    assert_int_equal(inw(f, STS), 0);

    outw(f, EN, TMR_EVENT);
    fake_step(&f->m, HALF_TURN - 10);
    assert_false(f->m.level[SCI]);
    fake_step(&f->m, 10);
    assert_true(f->m.level[SCI]);
    outw(f, STS, TMR_EVENT);
    assert_false(f->m.level[SCI]);
    fake_step(&f->m, HALF_TURN);
    assert_true(f->m.level[SCI]);
}

static void test_general_purpose_events(void **state)
{
    struct fixture *f = *state;

    acpi_gpe(f->dev, 3);
    acpi_gpe(f->dev, 15);
    assert_int_equal(inw(f, GPE_STS), 0x8008);
    assert_false(f->m.level[SCI]);
    outb(&f->m, GPE_EN, 0x08);
    assert_true(f->m.level[SCI]);
    outb(&f->m, GPE_STS, 0x08);
    assert_false(f->m.level[SCI]);
    assert_int_equal(inw(f, GPE_STS), 0x8000);
    outw(f, GPE_EN, 0x8000);
    assert_true(f->m.level[SCI]);
}

static void test_migration(void **state)
{
    struct fixture *f = *state;
    struct device *d2 = fake_device(&f->m, &acpi_class, "other",
                                    &(struct acpi_dev_cfg){.sci = fake_irq(&f->m, 10)});

    outw(f, EN, TMR_EVENT | PWRBTN);
    acpi_power_button(f->dev);
    fake_migrate(f->dev, d2);
    assert_true(f->m.level[10]);
    fake_ports(&f->m, 0x700, ACPI_PORTS, d2, &acpi_ops);
    outw(f, 0x700, PWRBTN);
    assert_false(f->m.level[10]);
    fake_step(&f->m, HALF_TURN);
    assert_true(f->m.level[10]);
    device_free(d2);
}

static void test_state(void **state)
{
    struct fixture *f = *state;

    fake_check_state(&f->m, &acpi_class, &(struct acpi_dev_cfg){.sci = fake_irq(&f->m, 10)});
}

static void test_debug_exit(void **state)
{
    struct fixture *f = *state;
    struct device *d = fake_device(&f->m, &debugexit_class, "debugexit", NULL);

    fake_ports(&f->m, 0xf4, 4, d, &debugexit_ops);
    assert_int_equal(pio_read(f->m.pio, 0xf4, 4), 0);
    outb(&f->m, 0xf4, 0x2a);
    assert_int_equal(f->m.requests[MACHINE_DEBUG_EXIT], 1);
    assert_int_equal(f->m.request_arg, 0x2a);
    pio_write(f->m.pio, 0xf4, 4, 0x12345678);
    assert_int_equal(f->m.requests[MACHINE_DEBUG_EXIT], 2);
    assert_int_equal(f->m.request_arg, 0x12345678);
    device_free(d);
}

#define TEST(t) cmocka_unit_test_setup_teardown(t, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_reset_values),
        TEST(test_power_button),
        TEST(test_enable_register_keeps_what_exists),
        TEST(test_poweroff),
        TEST(test_sci_en_stays),
        TEST(test_byte_and_dword_accesses),
        TEST(test_pm_timer),
        TEST(test_timer_event),
        TEST(test_general_purpose_events),
        TEST(test_migration),
        TEST(test_state),
        TEST(test_debug_exit),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
