/*
 * The 8259A pair. Each chip is modelled on its own and the slave's INT output is the master's IR2.
 */
#include "irq/pic.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

#define CASCADE 2 /* the master's input for the slave, wired by every PC */

/* Lines that the chipset keeps edge-triggered whatever ELCR says: 0, 1, 2, 8 and 13. */
static const uint8_t elcr_mask[2] = {0xf8, 0xde};

/* What a write to the odd port means next. */
enum pic_step { STEP_OCW1, STEP_ICW2, STEP_ICW3, STEP_ICW4 };

struct pic_chip {
    uint8_t line; /* levels of the inputs */
    uint8_t irr, isr, imr;
    uint8_t elcr;
    uint8_t base;   /* ICW2: vector of input 0 */
    uint8_t icw3;   /* stored; the wiring decides */
    uint8_t lowest; /* input with the lowest priority, 7 unless rotated */
    uint8_t step;   /* enum pic_step */
    bool want_icw3, want_icw4;
    bool level; /* LTIM: all inputs level-triggered */
    bool aeoi, rotate_aeoi;
    bool sfnm; /* special fully nested mode */
    bool special_mask;
    bool read_isr; /* the even port reads ISR rather than IRR */
    bool poll;     /* the next read is a poll */
};

struct pic_state {
    struct pic_chip chip[2];
};

struct pic {
    struct pic_state s;
    pthread_mutex_t lock;
    _Atomic bool intr; /* the INTR output */
    /* Reports to `out` are ordered by a mutex of their own, so that two changes that race can never
     * be reported in the wrong order. Taken after, never inside, `lock`. */
    pthread_mutex_t out_lock;
    bool reported;
    struct irq out;
    struct trace *trace;
};

static uint8_t level_mask(const struct pic_chip *c) { return c->level ? 0xff : c->elcr; }

/* Input with the highest priority in set, or -1. */
static int first(const struct pic_chip *c, uint8_t set)
{
    for (int i = 1; i <= 8; i++) {
        int n = (c->lowest + i) & 7;

        if (set >> n & 1)
            return n;
    }
    return -1;
}

static int rank(const struct pic_chip *c, int n) { return (n - c->lowest - 1) & 7; }

/* The request that the chip would put through to its INT output, or -1. */
static int winner(const struct pic_chip *c, bool master)
{
    int req = first(c, c->irr & ~c->imr), serving;

    if (req < 0 || c->step != STEP_OCW1)
        return -1;
    /* In special mask mode a masked level in service inhibits nothing. */
    serving = first(c, c->special_mask ? c->isr & ~c->imr : c->isr);
    if (serving < 0 || rank(c, req) < rank(c, serving))
        return req;
    /* Special fully nested: the slave in service does not shut out the slave. */
    if (c->sfnm && master && req == CASCADE && serving == CASCADE)
        return req;
    return -1;
}

static void set_line(struct pic_chip *c, int n, bool on)
{
    uint8_t bit = (uint8_t)BIT(n);

    /* An input has to stay high until the first INTA in edge mode too: IRR falls with it. */
    if (!on)
        c->irr &= ~bit;
    else if (level_mask(c) & bit || !(c->line & bit))
        c->irr |= bit;
    c->line = on ? c->line | bit : c->line & ~bit;
}

static void update(struct pic *p)
{
    struct pic_chip *c = p->s.chip;

    set_line(&c[0], CASCADE, winner(&c[1], false) >= 0);
    atomic_store_explicit(&p->intr, winner(&c[0], true) >= 0, memory_order_seq_cst);
}

/* Drops the mutex and tells `out` of the new level. With `pulse` the output has been low in
 * between, as it is after every INTA. */
static void unlock(struct pic *p, bool pulse)
{
    bool level;

    pthread_mutex_unlock(&p->lock);
    pthread_mutex_lock(&p->out_lock);
    if (pulse && p->reported) {
        p->reported = false;
        irq_set(&p->out, false);
    }
    level = atomic_load_explicit(&p->intr, memory_order_seq_cst);
    if (level != p->reported) {
        p->reported = level;
        irq_set(&p->out, level);
    }
    pthread_mutex_unlock(&p->out_lock);
}

void pic_set(void *pic, int line, bool level)
{
    struct pic *p = pic;

    assert(line >= 0 && line < 16 && line != CASCADE);
    pthread_mutex_lock(&p->lock);
    set_line(&p->s.chip[line / 8], line % 8, level);
    update(p);
    unlock(p, false);
}

bool pic_pending(void *pic)
{
    return atomic_load_explicit(&((struct pic *)pic)->intr, memory_order_acquire);
}

/* ---- acknowledging ---- */

/* One chip's part of INTA. The input served, or -1 if there is none (spurious: IR7 without ISR). */
static int inta(struct pic *p, int chip)
{
    struct pic_chip *c = &p->s.chip[chip];
    int n = winner(c, chip == 0);
    uint8_t bit;

    /* The chip's INT output falls; if it rises again at once, the master needs to see the edge. */
    if (chip)
        set_line(&p->s.chip[0], CASCADE, false);
    if (n < 0)
        return -1;
    bit = (uint8_t)BIT(n);
    if (!(level_mask(c) & bit))
        c->irr &= ~bit;
    if (!c->aeoi)
        c->isr |= bit;
    else if (c->rotate_aeoi)
        c->lowest = (uint8_t)n;
    return n;
}

int pic_ack(void *pic)
{
    struct pic *p = pic;
    struct pic_chip *c = p->s.chip;
    int n, v;

    pthread_mutex_lock(&p->lock);
    n = inta(p, 0);
    if (n == CASCADE) {
        n = inta(p, 1);
        v = c[1].base + (n < 0 ? 7 : n);
    } else {
        v = c[0].base + (n < 0 ? 7 : n);
    }
    trace(p->trace, pic_ack, "vector=%#x", (unsigned)v);
    update(p);
    unlock(p, true);
    return v;
}

/* ---- registers ---- */

static uint8_t poll(struct pic *p, int chip)
{
    int n = inta(p, chip);

    p->s.chip[chip].poll = false;
    return n < 0 ? 0 : (uint8_t)(0x80 | n);
}

uint8_t pic_read(struct pic *p, int chip, int reg)
{
    struct pic_chip *c = &p->s.chip[chip];
    uint8_t v;

    pthread_mutex_lock(&p->lock);
    if (c->poll) {
        v = poll(p, chip);
        update(p);
        unlock(p, true);
        return v;
    }
    v = reg ? c->imr : c->read_isr ? c->isr : c->irr;
    pthread_mutex_unlock(&p->lock);
    return v;
}

static void write_icw1(struct pic_chip *c, uint8_t val)
{
    c->level = val & 0x08;
    c->want_icw3 = !(val & 0x02);
    c->want_icw4 = val & 0x01;
    c->step = STEP_ICW2;
    c->imr = 0;
    c->isr = 0;
    c->lowest = 7;
    c->special_mask = false;
    c->read_isr = false;
    c->poll = false;
    c->rotate_aeoi = false;
    if (!c->want_icw4)
        c->aeoi = c->sfnm = false;
    /* The edge sense is reset: an input has to go low and high again. */
    c->irr = c->line & level_mask(c);
}

enum ocw2 {
    OCW2_ROTATE_AEOI_CLEAR,
    OCW2_EOI,
    OCW2_NOP,
    OCW2_EOI_SPECIFIC,
    OCW2_ROTATE_AEOI_SET,
    OCW2_ROTATE_EOI,
    OCW2_SET_PRIORITY,
    OCW2_ROTATE_EOI_SPECIFIC
};

static void write_ocw2(struct pic_chip *c, uint8_t val)
{
    enum ocw2 cmd = (enum ocw2)(val >> 5);
    uint8_t n = val & 7;
    int served;

    switch (cmd) {
    case OCW2_ROTATE_AEOI_CLEAR:
    case OCW2_ROTATE_AEOI_SET:
        c->rotate_aeoi = cmd == OCW2_ROTATE_AEOI_SET;
        break;
    case OCW2_EOI:
    case OCW2_ROTATE_EOI:
        /* In special mask mode a masked level is not cleared by a non-specific EOI. */
        served = first(c, c->special_mask ? c->isr & ~c->imr : c->isr);
        if (served >= 0) {
            c->isr &= ~BIT(served);
            if (cmd == OCW2_ROTATE_EOI)
                c->lowest = (uint8_t)served;
        }
        break;
    case OCW2_EOI_SPECIFIC:
        c->isr &= ~BIT(n);
        break;
    case OCW2_ROTATE_EOI_SPECIFIC:
        c->isr &= ~BIT(n);
        c->lowest = n;
        break;
    case OCW2_SET_PRIORITY:
        c->lowest = n;
        break;
    case OCW2_NOP:
        break;
    }
}

static void write_ocw3(struct pic_chip *c, uint8_t val)
{
    if (val & 0x40)
        c->special_mask = val & 0x20;
    if (val & 0x04)
        c->poll = true;
    else if (val & 0x02)
        c->read_isr = val & 0x01;
}

static void write_odd(struct pic_chip *c, uint8_t val)
{
    switch ((enum pic_step)c->step) {
    case STEP_OCW1:
        c->imr = val;
        return;
    case STEP_ICW2:
        c->base = val & 0xf8;
        c->step = c->want_icw3 ? STEP_ICW3 : c->want_icw4 ? STEP_ICW4 : STEP_OCW1;
        return;
    case STEP_ICW3:
        c->icw3 = val;
        c->step = c->want_icw4 ? STEP_ICW4 : STEP_OCW1;
        return;
    case STEP_ICW4:
        c->aeoi = val & 0x02;
        c->sfnm = val & 0x10;
        c->step = STEP_OCW1;
        return;
    }
}

void pic_write(struct pic *p, int chip, int reg, uint8_t val)
{
    struct pic_chip *c = &p->s.chip[chip];

    pthread_mutex_lock(&p->lock);
    if (reg)
        write_odd(c, val);
    else if (val & 0x10)
        write_icw1(c, val);
    else if (val & 0x08)
        write_ocw3(c, val);
    else
        write_ocw2(c, val);
    update(p);
    unlock(p, false);
}

uint8_t pic_elcr_read(struct pic *p, int chip)
{
    uint8_t v;

    pthread_mutex_lock(&p->lock);
    v = p->s.chip[chip].elcr;
    pthread_mutex_unlock(&p->lock);
    return v;
}

void pic_elcr_write(struct pic *p, int chip, uint8_t val)
{
    struct pic_chip *c = &p->s.chip[chip];

    pthread_mutex_lock(&p->lock);
    c->elcr = val & elcr_mask[chip];
    c->irr |= c->line & level_mask(c);
    update(p);
    unlock(p, false);
}

/* ---- life cycle and state ---- */

void pic_reset(struct pic *p)
{
    pthread_mutex_lock(&p->lock);
    for (int i = 0; i < 2; i++)
        p->s.chip[i] = (struct pic_chip){.line = p->s.chip[i].line, .lowest = 7, .imr = 0xff};
    update(p);
    unlock(p, false);
}

int pic_new(struct pic **out, const struct irq *intr, struct trace *t, struct err *e)
{
    struct pic *p = calloc(1, sizeof(*p));

    if (!p)
        return err_set(e, ENOMEM, "no memory for the 8259");
    pthread_mutex_init(&p->lock, NULL);
    pthread_mutex_init(&p->out_lock, NULL);
    p->out = *intr;
    p->trace = t;
    pic_reset(p);
    *out = p;
    return 0;
}

void pic_free(struct pic *p)
{
    if (!p)
        return;
    pthread_mutex_destroy(&p->out_lock);
    pthread_mutex_destroy(&p->lock);
    free(p);
}

static const struct state_field chip_fields[] = {
    STATE_FIELD(struct pic_chip, line),
    STATE_FIELD(struct pic_chip, irr),
    STATE_FIELD(struct pic_chip, isr),
    STATE_FIELD(struct pic_chip, imr),
    STATE_FIELD(struct pic_chip, elcr),
    STATE_FIELD_MAX(struct pic_chip, base, 0xf8),
    STATE_FIELD(struct pic_chip, icw3),
    STATE_FIELD_MAX(struct pic_chip, lowest, 7),
    STATE_FIELD_MAX(struct pic_chip, step, STEP_ICW4),
    STATE_FIELD(struct pic_chip, want_icw3),
    STATE_FIELD(struct pic_chip, want_icw4),
    STATE_FIELD(struct pic_chip, level),
    STATE_FIELD(struct pic_chip, aeoi),
    STATE_FIELD(struct pic_chip, rotate_aeoi),
    STATE_FIELD(struct pic_chip, sfnm),
    STATE_FIELD(struct pic_chip, special_mask),
    STATE_FIELD(struct pic_chip, read_isr),
    STATE_FIELD(struct pic_chip, poll),
};

static const struct state_desc chip_desc = {
    .name = "8259",
    .version = 1,
    .size = sizeof(struct pic_chip),
    .fields = chip_fields,
    .nfields = ARRAY_LEN(chip_fields),
};

static const struct state_field pic_fields[] = {
    STATE_SUBARRAY(struct pic_state, chip, &chip_desc),
};

const struct state_desc pic_state_desc = {
    .name = "pic",
    .version = 1,
    .size = sizeof(struct pic_state),
    .fields = pic_fields,
    .nfields = ARRAY_LEN(pic_fields),
};

int pic_save(struct pic *p, struct sbuf *out)
{
    int rc;

    pthread_mutex_lock(&p->lock);
    rc = state_save(&pic_state_desc, &p->s, out);
    pthread_mutex_unlock(&p->lock);
    return rc;
}

int pic_load(struct pic *p, const uint8_t *data, size_t len, size_t *used, struct err *e)
{
    int rc;

    pthread_mutex_lock(&p->lock);
    rc = state_load(&pic_state_desc, &p->s, data, len, used, e);
    if (!rc) {
        /* Only the output is recomputed: IR2 agrees already, or did when it was saved. */
        atomic_store_explicit(&p->intr, winner(&p->s.chip[0], true) >= 0, memory_order_seq_cst);
    }
    unlock(p, false);
    return rc;
}
