/* 16550A: register scripts against the PC16550D data sheet. */
#include <stdlib.h>
#include <string.h>

#include "fake.h"

#include "base/util.h"
#include "dev/platform/uart.h"
#include "fakechr.h"

#define BASE 0x3f8
#define LINE 4

enum { DATA, IER, IIR, LCR, MCR, LSR, MSR, SCR, FCR = IIR };

#define OUT2 0x08
#define LOOP 0x10
#define FOUR_CHARS 347222u /* ns at 115,200 baud, rounded down */

struct fixture {
    struct fake m;
    struct fakechr chr;
    struct device *dev;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    fake_init(&f->m);
    fakechr_init(&f->chr);
    f->dev = fake_device(&f->m, &uart_class, "uart0",
                         &(struct uart_cfg){.chr = &f->chr.base, .irq = fake_irq(&f->m, LINE)});
    fake_ports(&f->m, BASE, 8, f->dev, &uart_ops);
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

static uint8_t get(struct fixture *f, unsigned reg) { return inb(&f->m, (uint16_t)(BASE + reg)); }

static void put(struct fixture *f, unsigned reg, uint8_t v)
{
    outb(&f->m, (uint16_t)(BASE + reg), v);
}

static size_t type(struct fixture *f, const char *s)
{
    return f->chr.base.front.receive(f->chr.base.front.arg, (const uint8_t *)s, strlen(s));
}

static bool irq(const struct fixture *f) { return f->m.level[LINE]; }

static void test_reset_values(void **state)
{
    struct fixture *f = *state;

    for (int round = 0; round < 2; round++) {
        assert_int_equal(get(f, IER), 0);
        assert_int_equal(get(f, IIR), 0x01);
        assert_int_equal(get(f, LCR), 0);
        assert_int_equal(get(f, MCR), 0);
        assert_int_equal(get(f, LSR), 0x60);
        assert_int_equal(get(f, MSR), 0xb0); /* DCD, DSR, CTS; no deltas */
        assert_false(irq(f));

        put(f, IER, 0x0f);
        put(f, LCR, 0x1b);
        put(f, MCR, 0x1f);
        put(f, FCR, 0xc1);
        device_reset(f->dev, RESET_WARM);
    }
}

static void test_registers_read_back(void **state)
{
    struct fixture *f = *state;

    put(f, SCR, 0xa5);
    assert_int_equal(get(f, SCR), 0xa5);
    put(f, IER, 0xff);
    assert_int_equal(get(f, IER), 0x0f);
    put(f, MCR, 0xff);
    assert_int_equal(get(f, MCR), 0x1f);
    put(f, MCR, 0);

    put(f, LCR, 0x83);
    put(f, DATA, 0x34);
    put(f, IER, 0x12);
    assert_int_equal(get(f, DATA), 0x34);
    assert_int_equal(get(f, IER), 0x12);
    put(f, LCR, 0x03);
    assert_int_equal(get(f, IER), 0x0f); /* the divisor did not touch it */
    assert_int_equal(f->chr.len, 0);

    put(f, LSR, 0xff);
    assert_int_equal(get(f, LSR), 0x60);
    put(f, MSR, 0xff);
    assert_int_equal(get(f, MSR) & 0xf0, 0xb0);
}

static void test_transmit(void **state)
{
    struct fixture *f = *state;

    for (const char *p = "hello"; *p; p++) {
        assert_true(get(f, LSR) & 0x20);
        put(f, DATA, (uint8_t)*p);
    }
    assert_int_equal(f->chr.len, 5);
    assert_memory_equal(f->chr.out, "hello", 5);
    assert_int_equal(get(f, LSR), 0x60);
}

static void test_thre_interrupt(void **state)
{
    struct fixture *f = *state;

    put(f, MCR, OUT2);
    put(f, IER, 0x02); /* an empty transmitter interrupts at once */
    assert_true(irq(f));
    assert_int_equal(get(f, IIR), 0x02);
    assert_false(irq(f)); /* reading IIR acknowledged it */
    assert_int_equal(get(f, IIR), 0x01);

    unsigned edges = f->m.edges[LINE];
    put(f, DATA, 'a');
    assert_true(irq(f));
    assert_int_equal(f->m.edges[LINE], edges + 1);
    put(f, DATA, 'b'); /* writing acknowledges too, and the next one is an edge of its own */
    assert_true(irq(f));
    assert_int_equal(f->m.edges[LINE], edges + 2);

    put(f, IER, 0);
    assert_false(irq(f));
    put(f, IER, 0x02); /* enabling again raises it again */
    assert_int_equal(get(f, IIR), 0x02);
    put(f, IER, 0x02); /* leaving it enabled does not */
    assert_int_equal(get(f, IIR), 0x01);
}

static void test_backend_does_not_keep_up(void **state)
{
    struct fixture *f = *state;

    f->chr.room = 1;
    put(f, MCR, OUT2);
    put(f, FCR, 0x01);
    put(f, IER, 0x02);
    get(f, IIR);
    put(f, DATA, 'a');
    get(f, IIR);
    for (int i = 0; i < 16; i++)
        put(f, DATA, (uint8_t)('b' + i));
    assert_int_equal(get(f, LSR), 0x00); /* neither THRE nor TEMT */
    assert_false(irq(f));
    put(f, DATA, 'X'); /* the guest did not look: lost */

    f->chr.room = 10;
    f->chr.base.front.writable(f->chr.base.front.arg);
    assert_int_equal(get(f, LSR), 0x00);
    assert_false(irq(f));
    f->chr.room = 100;
    f->chr.base.front.writable(f->chr.base.front.arg);
    assert_int_equal(get(f, LSR), 0x60);
    assert_true(irq(f));
    assert_int_equal(f->chr.len, 17);
    assert_memory_equal(f->chr.out, "abcdefghijklmnopq", 17);
}

static void test_holding_register_is_overwritten(void **state)
{
    struct fixture *f = *state;

    f->chr.room = 0;
    put(f, DATA, 'a');
    put(f, DATA, 'b');
    f->chr.room = 100;
    f->chr.base.front.writable(f->chr.base.front.arg);
    assert_int_equal(f->chr.len, 1);
    assert_int_equal(f->chr.out[0], 'b');
}

static void test_receive_without_fifo(void **state)
{
    struct fixture *f = *state;

    put(f, MCR, OUT2);
    put(f, IER, 0x01);
    assert_int_equal(type(f, "ab"), 1); /* one holding register */
    assert_true(irq(f));
    assert_int_equal(get(f, IIR), 0x04);
    assert_int_equal(get(f, LSR), 0x61);
    assert_int_equal(f->chr.accepts, 1); /* at start */
    assert_int_equal(get(f, DATA), 'a');
    assert_int_equal(f->chr.accepts, 2);
    assert_false(irq(f));
    assert_int_equal(get(f, LSR), 0x60);
    assert_int_equal(type(f, "b"), 1);
    assert_int_equal(get(f, DATA), 'b');
    assert_int_equal(get(f, LSR), 0x60); /* no overrun ever */
}

static void test_trigger_levels(void **state)
{
    struct fixture *f = *state;
    static const unsigned level[] = {1, 4, 8, 14};

    put(f, MCR, OUT2);
    put(f, IER, 0x01);
    for (unsigned t = 0; t < 4; t++) {
        put(f, FCR, 0x03);
        put(f, FCR, (uint8_t)(0x03 | t << 6));
        for (unsigned n = 1; n <= 16; n++) {
            assert_int_equal(type(f, "x"), 1);
            assert_int_equal(irq(f), n >= level[t]);
            assert_int_equal(get(f, IIR), n >= level[t] ? 0xc4 : 0xc1);
        }
        for (unsigned n = 15; n > 0; n--) {
            get(f, DATA);
            assert_int_equal(irq(f), n >= level[t]);
        }
    }
}

static void test_character_timeout(void **state)
{
    struct fixture *f = *state;

    put(f, MCR, OUT2);
    put(f, FCR, 0x81); /* trigger at 8 */
    put(f, IER, 0x01);
    type(f, "abc");
    fake_step(&f->m, FOUR_CHARS - 1);
    assert_false(irq(f));
    type(f, "d"); /* starts again */
    fake_step(&f->m, FOUR_CHARS - 1);
    assert_false(irq(f));
    fake_step(&f->m, 1);
    assert_true(irq(f));
    assert_int_equal(get(f, IIR), 0xcc);
    assert_int_equal(get(f, IIR), 0xcc); /* not acknowledged by reading it */
    assert_int_equal(get(f, DATA), 'a'); /* but by this */
    assert_false(irq(f));
    assert_int_equal(get(f, IIR), 0xc1);
    fake_step(&f->m, FOUR_CHARS); /* and it comes again for the rest */
    assert_int_equal(get(f, IIR), 0xcc);
    get(f, DATA);
    get(f, DATA);
    get(f, DATA);
    fake_step(&f->m, 10 * FOUR_CHARS); /* an empty FIFO has no timeout */
    assert_int_equal(get(f, IIR), 0xc1);
}

static void test_back_pressure(void **state)
{
    struct fixture *f = *state;
    char sent[5000], got[5000];
    size_t at = 0, n = 0;

    put(f, FCR, 0x01);
    for (size_t i = 0; i < sizeof(sent) - 1; i++)
        sent[i] = (char)('!' + i % 90);
    sent[sizeof(sent) - 1] = '\0';

    /* The backend offers again exactly when it is asked to. */
    unsigned accepts = f->chr.accepts;
    at += type(f, sent);
    assert_int_equal(at, 16);
    while (n < sizeof(sent) - 1) {
        uint8_t lsr = get(f, LSR);

        assert_int_equal(lsr & 0x9e, 0);
        assert_true(lsr & 1);
        got[n++] = (char)get(f, DATA);
        if (f->chr.accepts != accepts) {
            accepts = f->chr.accepts;
            at += type(f, sent + at);
        }
    }
    assert_memory_equal(got, sent, sizeof(sent) - 1);
    assert_int_equal(get(f, LSR) & 1, 0);
}

static void test_interrupt_priority(void **state)
{
    struct fixture *f = *state;

    put(f, MCR, OUT2 | LOOP); /* RTS and DTR are off in it: all modem lines change */
    put(f, FCR, 0x01);
    put(f, IER, 0x0f);
    for (int i = 0; i < 17; i++) /* one too many */
        put(f, DATA, (uint8_t)i);
    assert_int_equal(get(f, IIR), 0xc6); /* line status */
    assert_int_equal(get(f, LSR) & 0x02, 0x02);
    assert_int_equal(get(f, IIR), 0xc4); /* received data */
    put(f, FCR, 0x03);
    assert_int_equal(get(f, IIR), 0xc2); /* transmitter empty */
    assert_int_equal(get(f, IIR), 0xc0); /* modem status */
    get(f, MSR);
    assert_int_equal(get(f, IIR), 0xc1);
}

static void test_out2_gates_the_line(void **state)
{
    struct fixture *f = *state;

    put(f, IER, 0x01);
    type(f, "a");
    assert_int_equal(get(f, IIR), 0x04); /* pending inside */
    assert_false(irq(f));
    put(f, MCR, OUT2);
    assert_true(irq(f));
    put(f, MCR, OUT2 | LOOP);
    assert_false(irq(f));
    put(f, MCR, 0);
    assert_false(irq(f));
}

static void test_loopback(void **state)
{
    struct fixture *f = *state;

    put(f, FCR, 0x01);
    put(f, MCR, LOOP);
    assert_int_equal(type(f, "z"), 0); /* the line is cut off */
    put(f, DATA, 'q');
    assert_int_equal(f->chr.len, 0);
    assert_int_equal(get(f, LSR), 0x61);
    assert_int_equal(get(f, DATA), 'q');

    static const struct {
        uint8_t mcr, lines;
    } pairs[] = {{0x01, 0x20}, {0x02, 0x10}, {0x04, 0x40}, {0x08, 0x80}, {0x0f, 0xf0}, {0, 0}};
    for (size_t i = 0; i < ARRAY_LEN(pairs); i++) {
        put(f, MCR, LOOP | pairs[i].mcr);
        assert_int_equal(get(f, MSR) & 0xf0, pairs[i].lines);
    }

    unsigned accepts = f->chr.accepts;
    put(f, MCR, 0);
    assert_int_equal(f->chr.accepts, accepts + 1); /* what waited may come */
    assert_int_equal(type(f, "z"), 1);
}

static void test_modem_deltas(void **state)
{
    struct fixture *f = *state;

    put(f, MCR, LOOP | 0x0f);
    get(f, MSR);
    assert_int_equal(get(f, MSR), 0xf0); /* reading clears them */
    put(f, MCR, LOOP | 0x0e);            /* DTR off: DSR changes */
    assert_int_equal(get(f, MSR), 0xd2);
    put(f, MCR, LOOP | 0x0a); /* OUT1 off: trailing edge of RI */
    assert_int_equal(get(f, MSR), 0x94);
    put(f, MCR, LOOP | 0x0e); /* the leading edge does not count */
    assert_int_equal(get(f, MSR), 0xd0);
    put(f, MCR, LOOP | 0x0c);
    put(f, MCR, LOOP | 0x04);
    assert_int_equal(get(f, MSR), 0x49); /* CTS and DCD changed, both kept */
}

static void test_break_in_loopback(void **state)
{
    struct fixture *f = *state;

    put(f, FCR, 0x01);
    put(f, MCR, LOOP);
    put(f, DATA, 'a');
    put(f, LCR, 0x43);
    /* The break waits behind 'a': an error in the FIFO, not yet at its top. */
    assert_int_equal(get(f, LSR), 0xe1);
    assert_int_equal(get(f, DATA), 'a');
    assert_int_equal(get(f, LSR), 0xf9); /* BI and FE with their byte */
    assert_int_equal(get(f, LSR), 0x61); /* once */
    assert_int_equal(get(f, DATA), 0);
}

static void test_overrun_in_loopback(void **state)
{
    struct fixture *f = *state;

    put(f, MCR, LOOP);
    put(f, DATA, 'a');
    put(f, DATA, 'b'); /* no FIFO: the holding register is overwritten */
    assert_int_equal(get(f, LSR), 0x63);
    assert_int_equal(get(f, DATA), 'b');

    put(f, FCR, 0x01);
    for (int i = 0; i < 17; i++)
        put(f, DATA, (uint8_t)('a' + i));
    assert_int_equal(get(f, LSR) & 0x02, 0x02);
    for (int i = 0; i < 16; i++)
        assert_int_equal(get(f, DATA), 'a' + i); /* the FIFO keeps what it has */
    assert_int_equal(get(f, LSR), 0x60);
}

static void test_fifo_control(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(get(f, IIR) & 0xc0, 0);
    put(f, FCR, 0x01);
    assert_int_equal(get(f, IIR) & 0xc0, 0xc0);
    type(f, "abc");
    put(f, FCR, 0x03); /* clears the receiver */
    assert_int_equal(get(f, LSR), 0x60);
    type(f, "abc");
    put(f, FCR, 0x00); /* so does leaving FIFO mode */
    assert_int_equal(get(f, LSR), 0x60);
    assert_int_equal(get(f, IIR) & 0xc0, 0);

    put(f, FCR, 0x01);
    f->chr.room = 0;
    put(f, DATA, 'x');
    put(f, FCR, 0x05); /* clears the transmitter */
    assert_int_equal(get(f, LSR), 0x60);
    f->chr.room = 10;
    f->chr.base.front.writable(f->chr.base.front.arg);
    assert_int_equal(f->chr.len, 0);
}

static void test_quiesced_takes_nothing(void **state)
{
    struct fixture *f = *state;

    device_quiesce(f->dev);
    assert_int_equal(type(f, "a"), 0);
    unsigned accepts = f->chr.accepts;
    device_resume(f->dev);
    assert_int_equal(f->chr.accepts, accepts + 1);
    assert_int_equal(type(f, "a"), 1);
}

static void test_migration(void **state)
{
    struct fixture *f = *state;
    struct fakechr chr2;

    fakechr_init(&chr2);
    struct device *d2 =
        fake_device(&f->m, &uart_class, "uart1",
                    &(struct uart_cfg){.chr = &chr2.base, .irq = fake_irq(&f->m, LINE + 1)});
    fake_ports(&f->m, 0x2f8, 8, d2, &uart_ops);

    put(f, FCR, 0xc1);
    put(f, MCR, OUT2);
    put(f, IER, 0x01);
    f->chr.room = 0;
    put(f, DATA, 'o');
    type(f, "in");
    fake_migrate(f->dev, d2);
    assert_int_equal(chr2.len, 1); /* what the old backend did not take */
    assert_int_equal(chr2.out[0], 'o');
    fake_step(&f->m, FOUR_CHARS);
    assert_true(f->m.level[LINE + 1]); /* the character timeout moved too */
    assert_int_equal(inb(&f->m, 0x2f8), 'i');
    assert_int_equal(inb(&f->m, 0x2f8), 'n');
    device_free(d2);
}

static void test_state(void **state)
{
    struct fixture *f = *state;
    struct fakechr chr;

    fakechr_init(&chr);
    chr.room = 0;
    fake_check_state(&f->m, &uart_class,
                     &(struct uart_cfg){.chr = &chr.base, .irq = fake_irq(&f->m, 7)});
}

#define TEST(t) cmocka_unit_test_setup_teardown(t, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_reset_values),
        TEST(test_registers_read_back),
        TEST(test_transmit),
        TEST(test_thre_interrupt),
        TEST(test_backend_does_not_keep_up),
        TEST(test_holding_register_is_overwritten),
        TEST(test_receive_without_fifo),
        TEST(test_trigger_levels),
        TEST(test_character_timeout),
        TEST(test_back_pressure),
        TEST(test_interrupt_priority),
        TEST(test_out2_gates_the_line),
        TEST(test_loopback),
        TEST(test_modem_deltas),
        TEST(test_break_in_loopback),
        TEST(test_overrun_in_loopback),
        TEST(test_fifo_control),
        TEST(test_quiesced_takes_nothing),
        TEST(test_migration),
        TEST(test_state),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
