/* The 8259A pair, register by register (Intel 8259A data sheet). */
#include "fake.h"

struct fixture {
    struct log log;
    struct trace trace;
    struct pic *pic;
    bool intr;
    unsigned rises;
};

static void note_intr(void *owner, int n, bool level)
{
    struct fixture *f = owner;

    assert_int_equal(n, 5);
    assert_int_not_equal(f->intr, level);
    f->intr = level;
    f->rises += level;
}

static void init_chips(struct pic *p, uint8_t icw1, uint8_t icw4)
{
    for (int chip = 0; chip < 2; chip++) {
        pic_write(p, chip, 0, icw1);
        pic_write(p, chip, 1, chip ? 0x28 : 0x20);
        pic_write(p, chip, 1, chip ? 2 : 4);
        if (icw1 & 1)
            pic_write(p, chip, 1, icw4);
    }
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    struct irq out = {note_intr, f, 5};

    log_init(&f->log, LOG_ERROR, 2);
    trace_init(&f->trace, &f->log);
    assert_int_equal(pic_new(&f->pic, &out, &f->trace, NULL), 0);
    init_chips(f->pic, 0x11, 0x01);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    pic_free(f->pic);
    free(f);
    return 0;
}

static uint8_t irr(struct pic *p, int chip)
{
    pic_write(p, chip, 0, 0x0a);
    return pic_read(p, chip, 0);
}

static uint8_t isr(struct pic *p, int chip)
{
    pic_write(p, chip, 0, 0x0b);
    return pic_read(p, chip, 0);
}

static void eoi(struct pic *p, int chip) { pic_write(p, chip, 0, 0x20); }

static void test_edge(void **state)
{
    struct fixture *f = *state;

    assert_false(pic_pending(f->pic));
    pic_set(f->pic, 3, true);
    assert_true(f->intr);
    assert_true(pic_pending(f->pic));
    assert_int_equal(irr(f->pic, 0), 0x08);
    assert_int_equal(pic_ack(f->pic), 0x23);
    assert_false(f->intr);
    assert_int_equal(irr(f->pic, 0), 0);
    assert_int_equal(isr(f->pic, 0), 0x08);
    eoi(f->pic, 0);
    assert_int_equal(isr(f->pic, 0), 0);
    /* Still high: no new edge, no new interrupt. */
    assert_false(pic_pending(f->pic));
    pic_set(f->pic, 3, true);
    assert_false(pic_pending(f->pic));
    pic_set(f->pic, 3, false);
    pic_set(f->pic, 3, true);
    assert_true(pic_pending(f->pic));
}

static void test_request_withdrawn(void **state)
{
    struct fixture *f = *state;

    pic_set(f->pic, 3, true);
    pic_set(f->pic, 3, false);
    assert_false(f->intr);
    /* An INTA that comes nevertheless gets IR7 without an in-service bit. */
    assert_int_equal(pic_ack(f->pic), 0x27);
    assert_int_equal(isr(f->pic, 0), 0);
}

static void test_slave(void **state)
{
    struct fixture *f = *state;

    pic_set(f->pic, 9, true);
    assert_true(f->intr);
    assert_int_equal(pic_ack(f->pic), 0x29);
    assert_int_equal(isr(f->pic, 0), 0x04);
    assert_int_equal(isr(f->pic, 1), 0x02);
    eoi(f->pic, 1);
    eoi(f->pic, 0);
    assert_int_equal(isr(f->pic, 0) | isr(f->pic, 1), 0);
    /* A slave request that is withdrawn takes the master's IR2 with it. */
    pic_set(f->pic, 9, false);
    pic_set(f->pic, 9, true);
    pic_set(f->pic, 9, false);
    assert_false(f->intr);
    assert_int_equal(pic_ack(f->pic), 0x27);
    assert_int_equal(isr(f->pic, 0) | isr(f->pic, 1), 0);
}

static void test_priority(void **state)
{
    struct fixture *f = *state;

    pic_set(f->pic, 5, true);
    pic_set(f->pic, 1, true);
    assert_int_equal(pic_ack(f->pic), 0x21);
    assert_false(pic_pending(f->pic)); /* 5 waits for 1 */
    pic_set(f->pic, 0, true);
    assert_true(pic_pending(f->pic)); /* 0 nests */
    assert_int_equal(pic_ack(f->pic), 0x20);
    assert_int_equal(isr(f->pic, 0), 0x03);
    eoi(f->pic, 0); /* highest first */
    assert_int_equal(isr(f->pic, 0), 0x02);
    eoi(f->pic, 0);
    assert_true(pic_pending(f->pic));
    assert_int_equal(pic_ack(f->pic), 0x25);
}

static void test_mask(void **state)
{
    struct fixture *f = *state;

    pic_write(f->pic, 0, 1, 0x02);
    assert_int_equal(pic_read(f->pic, 0, 1), 0x02);
    pic_set(f->pic, 1, true);
    assert_false(pic_pending(f->pic));
    assert_int_equal(irr(f->pic, 0), 0x02); /* latched though masked */
    pic_write(f->pic, 0, 1, 0);
    assert_true(pic_pending(f->pic));
    assert_true(f->intr);
}

static void test_cascade(void **state)
{
    struct fixture *f = *state;

    pic_set(f->pic, 12, true);
    pic_set(f->pic, 4, true);
    assert_int_equal(pic_ack(f->pic), 0x2c); /* IR2 goes before IR4 */
    pic_set(f->pic, 8, true);
    /* Fully nested: the slave is shut out while its earlier request is in service. */
    assert_false(pic_pending(f->pic));
    eoi(f->pic, 1);
    eoi(f->pic, 0);
    assert_int_equal(pic_ack(f->pic), 0x28);
    eoi(f->pic, 1);
    eoi(f->pic, 0);
    assert_int_equal(pic_ack(f->pic), 0x24);
}

static void test_slave_twice(void **state)
{
    struct fixture *f = *state;

    pic_set(f->pic, 12, true);
    pic_set(f->pic, 14, true);
    assert_int_equal(pic_ack(f->pic), 0x2c);
    eoi(f->pic, 1);
    eoi(f->pic, 0);
    assert_int_equal(pic_ack(f->pic), 0x2e);
    eoi(f->pic, 1);
    eoi(f->pic, 0);
    assert_false(pic_pending(f->pic));
    assert_int_equal(f->rises, 2);
}

static void test_special_fully_nested(void **state)
{
    struct fixture *f = *state;

    init_chips(f->pic, 0x11, 0x01);
    pic_write(f->pic, 0, 0, 0x11);
    pic_write(f->pic, 0, 1, 0x20);
    pic_write(f->pic, 0, 1, 4);
    pic_write(f->pic, 0, 1, 0x11); /* SFNM */
    pic_set(f->pic, 12, true);
    assert_int_equal(pic_ack(f->pic), 0x2c);
    pic_set(f->pic, 8, true);
    assert_true(pic_pending(f->pic)); /* higher on the slave */
    assert_int_equal(pic_ack(f->pic), 0x28);
    pic_set(f->pic, 3, true);
    assert_false(pic_pending(f->pic)); /* lower than IR2 */
    pic_set(f->pic, 14, true);
    assert_false(pic_pending(f->pic)); /* lower on the slave */
}

static void test_eoi_specific_and_rotation(void **state)
{
    struct fixture *f = *state;

    pic_set(f->pic, 4, true);
    assert_int_equal(pic_ack(f->pic), 0x24);
    pic_set(f->pic, 1, true);
    assert_int_equal(pic_ack(f->pic), 0x21);
    pic_write(f->pic, 0, 0, 0x64); /* specific EOI of 4 */
    assert_int_equal(isr(f->pic, 0), 0x02);
    pic_write(f->pic, 0, 0, 0xa0); /* rotate on non-specific EOI: 1 becomes the lowest */
    assert_int_equal(isr(f->pic, 0), 0);
    pic_set(f->pic, 1, false);
    pic_set(f->pic, 4, false);
    pic_set(f->pic, 0, true);
    pic_set(f->pic, 1, true);
    pic_set(f->pic, 3, true);
    assert_int_equal(pic_ack(f->pic), 0x23);
    eoi(f->pic, 0);
    assert_int_equal(pic_ack(f->pic), 0x20);
    eoi(f->pic, 0);
    assert_int_equal(pic_ack(f->pic), 0x21);
    pic_write(f->pic, 0, 0, 0xe1); /* rotate on specific EOI of 1 */
    assert_int_equal(isr(f->pic, 0), 0);

    pic_write(f->pic, 0, 0, 0xc4); /* set priority: 4 lowest, so 5 highest */
    pic_set(f->pic, 0, false);
    pic_set(f->pic, 0, true);
    pic_set(f->pic, 5, true);
    assert_int_equal(pic_ack(f->pic), 0x25);
}

static void test_auto_eoi(void **state)
{
    struct fixture *f = *state;

    init_chips(f->pic, 0x11, 0x03);
    pic_set(f->pic, 1, true);
    pic_set(f->pic, 2 + 8, true);
    pic_set(f->pic, 3 + 8, true);
    assert_int_equal(pic_ack(f->pic), 0x21);
    assert_int_equal(isr(f->pic, 0), 0);
    /* The output falls after each INTA and rises again for the next. */
    assert_true(f->intr);
    assert_int_equal(f->rises, 2);
    assert_int_equal(pic_ack(f->pic), 0x2a);
    assert_int_equal(pic_ack(f->pic), 0x2b);
    assert_false(f->intr);
    assert_int_equal(f->rises, 3);

    pic_write(f->pic, 0, 0, 0x80); /* rotate in auto-EOI mode */
    pic_set(f->pic, 1, false);
    for (int i = 0; i < 2; i++)
        pic_set(f->pic, i, true);
    assert_int_equal(pic_ack(f->pic), 0x20);
    pic_set(f->pic, 0, false);
    pic_set(f->pic, 0, true);
    assert_int_equal(pic_ack(f->pic), 0x21);
    pic_write(f->pic, 0, 0, 0x00);
    assert_int_equal(pic_ack(f->pic), 0x20);
}

static void test_special_mask(void **state)
{
    struct fixture *f = *state;

    pic_set(f->pic, 3, true);
    assert_int_equal(pic_ack(f->pic), 0x23);
    pic_set(f->pic, 6, true);
    assert_false(pic_pending(f->pic));
    pic_write(f->pic, 0, 1, 0x08);
    assert_false(pic_pending(f->pic)); /* masking alone does not help */
    pic_write(f->pic, 0, 0, 0x68);     /* set special mask mode */
    assert_true(pic_pending(f->pic));
    assert_int_equal(pic_ack(f->pic), 0x26);
    eoi(f->pic, 0); /* clears 6, never the masked 3 */
    assert_int_equal(isr(f->pic, 0), 0x08);
    eoi(f->pic, 0);
    assert_int_equal(isr(f->pic, 0), 0x08);
    pic_write(f->pic, 0, 0, 0x48); /* back */
    eoi(f->pic, 0);
    assert_int_equal(isr(f->pic, 0), 0);
}

static void test_poll(void **state)
{
    struct fixture *f = *state;

    pic_write(f->pic, 0, 0, 0x0c);
    assert_int_equal(pic_read(f->pic, 0, 0), 0);
    pic_set(f->pic, 13, true);
    pic_write(f->pic, 0, 0, 0x0c);
    assert_int_equal(pic_read(f->pic, 0, 0), 0x82);
    assert_int_equal(isr(f->pic, 0), 0x04);
    pic_write(f->pic, 1, 0, 0x0c);
    assert_int_equal(pic_read(f->pic, 1, 1), 0x85); /* either address */
    assert_int_equal(isr(f->pic, 1), 0x20);
    assert_false(f->intr);
    /* One read only. */
    assert_int_equal(pic_read(f->pic, 1, 1), 0);
}

static void test_level(void **state)
{
    struct fixture *f = *state;

    pic_elcr_write(f->pic, 0, 0xff);
    assert_int_equal(pic_elcr_read(f->pic, 0), 0xf8);
    pic_elcr_write(f->pic, 1, 0xff);
    assert_int_equal(pic_elcr_read(f->pic, 1), 0xde);
    pic_set(f->pic, 11, true);
    assert_int_equal(pic_ack(f->pic), 0x2b);
    eoi(f->pic, 1);
    eoi(f->pic, 0);
    assert_true(pic_pending(f->pic)); /* still asserted */
    assert_int_equal(pic_ack(f->pic), 0x2b);
    pic_set(f->pic, 11, false);
    eoi(f->pic, 1);
    eoi(f->pic, 0);
    assert_false(pic_pending(f->pic));
    /* LTIM makes every input of a chip level-triggered. */
    init_chips(f->pic, 0x19, 0x01);
    pic_set(f->pic, 1, true);
    assert_int_equal(pic_ack(f->pic), 0x21);
    eoi(f->pic, 0);
    assert_true(pic_pending(f->pic));
}

static void test_init_sequence(void **state)
{
    struct fixture *f = *state;

    pic_set(f->pic, 1, true);
    pic_write(f->pic, 0, 1, 0xff);
    pic_write(f->pic, 0, 0, 0xc3);
    pic_write(f->pic, 0, 0, 0x11);
    assert_int_equal(pic_read(f->pic, 0, 1), 0); /* IMR cleared */
    assert_int_equal(pic_read(f->pic, 0, 0), 0); /* the edge is forgotten; IRR is selected */
    pic_set(f->pic, 4, true);
    assert_false(pic_pending(f->pic)); /* not ready yet */
    pic_write(f->pic, 0, 1, 0x47);     /* low bits of ICW2 are ignored */
    pic_write(f->pic, 0, 1, 0x04);
    assert_false(pic_pending(f->pic));
    pic_write(f->pic, 0, 1, 0x01);
    assert_int_equal(pic_ack(f->pic), 0x44);
    eoi(f->pic, 0);
    /* Single (no ICW3), no ICW4: two words only. */
    pic_write(f->pic, 0, 0, 0x12);
    pic_write(f->pic, 0, 1, 0x60);
    pic_write(f->pic, 0, 1, 0x55);
    assert_int_equal(pic_read(f->pic, 0, 1), 0x55);
}

static void test_reset(void **state)
{
    struct fixture *f = *state;

    pic_set(f->pic, 1, true);
    assert_true(f->intr);
    pic_reset(f->pic);
    assert_false(f->intr);
    assert_int_equal(pic_read(f->pic, 0, 1), 0xff);
}

static int save(void *obj, struct sbuf *out) { return pic_save(obj, out); }

static int load(void *obj, const uint8_t *data, size_t len, size_t *used, struct err *e)
{
    return pic_load(obj, data, len, used, e);
}

static void test_state(void **state)
{
    struct fixture *f = *state, *g;
    struct sbuf b;
    size_t used;
    void *other;

    fake_check_state(&(struct fake_saver){&pic_state_desc, f->pic, save, load, NULL});
    pic_reset(f->pic);
    init_chips(f->pic, 0x11, 0x01);
    pic_set(f->pic, 4, false);
    pic_set(f->pic, 4, true);
    sbuf_init(&b);
    assert_int_equal(pic_save(f->pic, &b), 0);
    setup(&other);
    g = other;
    assert_int_equal(pic_load(g->pic, b.data, b.len, &used, NULL), 0);
    assert_true(g->intr);
    assert_int_equal(pic_ack(g->pic), 0x24);
    sbuf_free(&b);
    teardown(&other);
}

static void test_random_ports(void **state)
{
    struct fixture *f = *state;
    uint64_t seed = 7;

    for (int i = 0; i < 200000; i++) {
        uint64_t r = fake_random(&seed);
        int line = (int)(r >> 8 & 15);

        switch (r & 7) {
        case 0:
            pic_read(f->pic, r >> 16 & 1, r >> 17 & 1);
            break;
        case 1:
        case 2:
            pic_write(f->pic, r >> 16 & 1, r >> 17 & 1, (uint8_t)(r >> 24));
            break;
        case 3:
            pic_elcr_write(f->pic, r >> 16 & 1, (uint8_t)(r >> 24));
            break;
        case 4:
            if (pic_pending(f->pic))
                assert_in_range(pic_ack(f->pic), 0, 255);
            break;
        default:
            if (line != 2)
                pic_set(f->pic, line, r >> 12 & 1);
        }
        assert_int_equal(f->intr, pic_pending(f->pic));
    }
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_edge),
        T(test_request_withdrawn),
        T(test_slave),
        T(test_priority),
        T(test_mask),
        T(test_cascade),
        T(test_slave_twice),
        T(test_special_fully_nested),
        T(test_eoi_specific_and_rotation),
        T(test_auto_eoi),
        T(test_special_mask),
        T(test_poll),
        T(test_level),
        T(test_init_sequence),
        T(test_reset),
        T(test_state),
        T(test_random_ports),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
