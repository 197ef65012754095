/* 16550A UART; section numbers refer to the PC16550D data sheet. */
#include "dev/platform/uart.h"

#include <string.h>

#include "base/util.h"

#define FIFO_SIZE 16

enum {               /* register offsets */
       REG_DATA = 0, /* RBR, THR; DLL */
       REG_IER = 1,  /* DLM */
       REG_IIR = 2,  /* FCR */
       REG_LCR = 3,
       REG_MCR = 4,
       REG_LSR = 5,
       REG_MSR = 6,
       REG_SCR = 7,
};

#define IER_RDA BIT(0)
#define IER_THRE BIT(1)
#define IER_LSR BIT(2)
#define IER_MSR BIT(3)

#define IIR_NONE 0x01
#define IIR_MSR 0x00
#define IIR_THRE 0x02
#define IIR_RDA 0x04
#define IIR_LSR 0x06
#define IIR_TIMEOUT 0x0c
#define IIR_FIFOS 0xc0

#define FCR_ENABLE BIT(0)
#define FCR_CLEAR_RX BIT(1)
#define FCR_CLEAR_TX BIT(2)
#define FCR_KEPT (FCR_ENABLE | 0xc8) /* enable, DMA mode, trigger level */

#define LCR_BREAK BIT(6)
#define LCR_DLAB BIT(7)

#define MCR_DTR BIT(0)
#define MCR_RTS BIT(1)
#define MCR_OUT1 BIT(2)
#define MCR_OUT2 BIT(3)
#define MCR_LOOP BIT(4)

#define LSR_DR BIT(0)
#define LSR_OE BIT(1)
#define LSR_PE BIT(2)
#define LSR_FE BIT(3)
#define LSR_BI BIT(4)
#define LSR_THRE BIT(5)
#define LSR_TEMT BIT(6)
#define LSR_FIFO_ERR BIT(7)
#define LSR_CHAR_ERRORS (LSR_PE | LSR_FE | LSR_BI)
#define LSR_ERRORS (LSR_OE | LSR_CHAR_ERRORS)

#define MSR_DCTS BIT(0)
#define MSR_DDSR BIT(1)
#define MSR_TERI BIT(2)
#define MSR_DDCD BIT(3)
#define MSR_CTS BIT(4)
#define MSR_DSR BIT(5)
#define MSR_RI BIT(6)
#define MSR_DCD BIT(7)
#define MSR_DELTAS 0x0f

/* Four characters of ten bits at 115,200 baud: when a receive FIFO below its trigger level asks for
 * attention (§8.6.1). The divisor does not matter, since the line has no speed. */
#define TIMEOUT_NS 347222u
#define RESET_DIVISOR 12 /* undefined in the data sheet; 9600 baud */

struct uart_state {
    uint64_t timeout_at; /* guest ns of the character timeout, or TIMER_OFF */
    uint16_t divisor;
    uint8_t ier, fcr, lcr, mcr, msr, scr;
    uint8_t lsr_errors;   /* OE, PE, FE, BI as the guest will read them */
    uint8_t thre_pending; /* THRE interrupt not yet acknowledged */
    uint8_t timed_out;    /* character timeout interrupt */
    uint8_t rx_head, rx_len;
    uint8_t tx_head, tx_len;
    uint8_t rx[FIFO_SIZE];
    uint8_t rx_errors[FIFO_SIZE]; /* LSR_CHAR_ERRORS of each byte in rx */
    uint8_t tx[FIFO_SIZE];
    uint8_t pad[1];
};

struct uart {
    struct device dev;
    struct uart_state s;
    struct chardev *chr;
    struct irq irq;
    struct timer timer;
    bool rx_refused; /* the backend was told no and waits for chardev_accept_input */
    bool quiesced;
};

/* Any state within these limits is safe: what only the guest would miss is not checked further. */
static const struct state_field uart_fields[] = {
    STATE_FIELD(struct uart_state, timeout_at),
    STATE_FIELD(struct uart_state, divisor),
    STATE_FIELD_MAX(struct uart_state, ier, 0x0f),
    STATE_FIELD_MAX(struct uart_state, fcr, FCR_KEPT),
    STATE_FIELD(struct uart_state, lcr),
    STATE_FIELD_MAX(struct uart_state, mcr, 0x1f),
    STATE_FIELD(struct uart_state, msr),
    STATE_FIELD(struct uart_state, scr),
    STATE_FIELD_MAX(struct uart_state, lsr_errors, LSR_ERRORS),
    STATE_FIELD_MAX(struct uart_state, thre_pending, 1),
    STATE_FIELD_MAX(struct uart_state, timed_out, 1),
    STATE_FIELD_MAX(struct uart_state, rx_head, FIFO_SIZE - 1),
    STATE_FIELD_MAX(struct uart_state, rx_len, FIFO_SIZE),
    STATE_FIELD_MAX(struct uart_state, tx_head, FIFO_SIZE - 1),
    STATE_FIELD_MAX(struct uart_state, tx_len, FIFO_SIZE),
    STATE_ARRAY(struct uart_state, rx),
    STATE_ARRAY_MAX(struct uart_state, rx_errors, LSR_CHAR_ERRORS),
    STATE_ARRAY(struct uart_state, tx),
    STATE_PAD(struct uart_state, pad),
};

static const struct state_desc uart_state_desc = {
    .name = "uart",
    .version = 1,
    .size = sizeof(struct uart_state),
    .fields = uart_fields,
    .nfields = ARRAY_LEN(uart_fields),
};

static bool fifos_on(const struct uart_state *s) { return s->fcr & FCR_ENABLE; }

static unsigned capacity(const struct uart_state *s) { return fifos_on(s) ? FIFO_SIZE : 1; }

static unsigned trigger_level(const struct uart_state *s)
{
    static const uint8_t level[4] = {1, 4, 8, 14};

    return fifos_on(s) ? level[s->fcr >> 6] : 1;
}

/* The interrupt of the highest priority (table II), or IIR_NONE. */
static uint8_t interrupt_id(const struct uart_state *s)
{
    if ((s->ier & IER_LSR) && s->lsr_errors)
        return IIR_LSR;
    if ((s->ier & IER_RDA) && s->rx_len >= trigger_level(s))
        return IIR_RDA;
    if ((s->ier & IER_RDA) && s->timed_out)
        return IIR_TIMEOUT;
    if ((s->ier & IER_THRE) && s->thre_pending)
        return IIR_THRE;
    if ((s->ier & IER_MSR) && (s->msr & MSR_DELTAS))
        return IIR_MSR;
    return IIR_NONE;
}

static void update_irq(struct uart *u)
{
    /* In loopback mode the OUT2 pin is inactive, and with it the board's gate. */
    bool gate = (u->s.mcr & (MCR_OUT2 | MCR_LOOP)) == MCR_OUT2;

    irq_set(&u->irq, gate && interrupt_id(&u->s) != IIR_NONE);
}

/* ---- receiver ---- */

/* §8.6.1: the timeout runs while the FIFO holds something and is restarted by each byte that comes
 * in or is read. */
static void restart_timeout(struct uart *u)
{
    struct uart_state *s = &u->s;

    s->timed_out = 0;
    if (fifos_on(s) && s->rx_len > 0) {
        s->timeout_at = clock_now(u->dev.ctx->clock) + TIMEOUT_NS;
        timer_arm(u->dev.ctx->timers, &u->timer, s->timeout_at);
    } else {
        s->timeout_at = TIMER_OFF;
        timer_cancel(u->dev.ctx->timers, &u->timer);
    }
}

static void on_timeout(void *arg)
{
    struct uart *u = arg;

    device_lock(&u->dev);
    if (!u->quiesced && u->s.timeout_at <= clock_now(u->dev.ctx->clock)) {
        u->s.timeout_at = TIMER_OFF;
        u->s.timed_out = 1;
        update_irq(u);
    }
    device_unlock(&u->dev);
}

/* The error flags of a byte show in LSR when it gets to the top of the FIFO (§8.4). */
static void reveal_errors(struct uart_state *s)
{
    if (s->rx_len > 0) {
        s->lsr_errors |= s->rx_errors[s->rx_head];
        s->rx_errors[s->rx_head] = 0;
    }
}

/* A byte from the line. When there is no room the FIFO keeps what it has, and the holding register
 * of a UART without FIFOs is overwritten (§8.4, OE). */
static void rx_push(struct uart_state *s, uint8_t byte, uint8_t errors)
{
    if (s->rx_len >= capacity(s)) {
        s->lsr_errors |= LSR_OE;
        if (fifos_on(s))
            return;
        s->rx_len = 0;
    }

    unsigned tail = (s->rx_head + s->rx_len) % FIFO_SIZE;
    s->rx[tail] = byte;
    s->rx_errors[tail] = errors;
    s->rx_len++;
    if (s->rx_len == 1)
        reveal_errors(s);
}

static void rx_clear(struct uart_state *s)
{
    s->rx_head = s->rx_len = 0;
    memset(s->rx_errors, 0, sizeof(s->rx_errors));
}

/* Bytes from the backend; in loopback mode the input pin is disconnected, so they wait. */
static size_t uart_receive(void *arg, const uint8_t *p, size_t n)
{
    struct uart *u = arg;
    size_t took = 0;

    device_lock(&u->dev);
    if (!u->quiesced && !(u->s.mcr & MCR_LOOP)) {
        while (took < n && u->s.rx_len < capacity(&u->s))
            rx_push(&u->s, p[took++], 0);
        if (took > 0) {
            restart_timeout(u);
            update_irq(u);
        }
    }
    u->rx_refused = took < n;
    device_unlock(&u->dev);
    return took;
}

/* Asks the backend for what it had to keep, once there is room: half a FIFO, lest the loop's thread
 * be woken for each byte of a paste. */
static void rx_resume(struct uart *u)
{
    if (u->rx_refused && !(u->s.mcr & MCR_LOOP) && u->s.rx_len <= capacity(&u->s) / 2) {
        u->rx_refused = false;
        chardev_accept_input(u->chr);
    }
}

static uint8_t read_rbr(struct uart *u)
{
    struct uart_state *s = &u->s;
    uint8_t byte = s->rx[s->rx_head]; /* of an empty receiver: whatever was there */

    if (s->rx_len > 0) {
        s->rx_head = (s->rx_head + 1) % FIFO_SIZE;
        s->rx_len--;
        reveal_errors(s);
    }
    restart_timeout(u);
    update_irq(u);
    rx_resume(u);
    return byte;
}

/* ---- transmitter ---- */

/* Sends what the transmitter holds as far as the backend takes it. */
static void tx_drain(struct uart *u)
{
    struct uart_state *s = &u->s;

    while (s->tx_len > 0) {
        size_t n = MIN(s->tx_len, FIFO_SIZE - s->tx_head);

        if (s->mcr & MCR_LOOP) {
            for (size_t i = 0; i < n; i++)
                rx_push(s, s->tx[s->tx_head + i], 0);
            restart_timeout(u);
        } else if (u->chr) {
            n = chardev_write(u->chr, s->tx + s->tx_head, n);
        }
        if (n == 0)
            return;
        s->tx_head = (s->tx_head + n) % FIFO_SIZE;
        s->tx_len -= n;
    }
    s->thre_pending = 1;
}

static void uart_writable(void *arg)
{
    struct uart *u = arg;

    device_lock(&u->dev);
    if (!u->quiesced && u->s.tx_len > 0) {
        tx_drain(u);
        update_irq(u);
    }
    device_unlock(&u->dev);
}

static void write_thr(struct uart *u, uint8_t byte)
{
    struct uart_state *s = &u->s;

    /* The guest ignored THRE: a full FIFO drops the byte, the holding register is overwritten. */
    if (s->tx_len >= capacity(s)) {
        if (fifos_on(s))
            return;
        s->tx_len = 0;
    }
    s->tx[(s->tx_head + s->tx_len) % FIFO_SIZE] = byte;
    s->tx_len++;

    /* The line must be seen to fall before it rises again: interrupt controllers that are
     * edge-triggered would miss the second of two THRE interrupts otherwise. */
    s->thre_pending = 0;
    update_irq(u);
    tx_drain(u);
    update_irq(u);
}

/* ---- registers ---- */

static uint8_t modem_lines(const struct uart_state *s)
{
    if (!(s->mcr & MCR_LOOP))
        return MSR_DCD | MSR_DSR | MSR_CTS;
    return (s->mcr & MCR_RTS ? MSR_CTS : 0) | (s->mcr & MCR_DTR ? MSR_DSR : 0) |
           (s->mcr & MCR_OUT1 ? MSR_RI : 0) | (s->mcr & MCR_OUT2 ? MSR_DCD : 0);
}

/* Brings MSR in line with the modem lines and notes what changed (§8.8). */
static void update_modem(struct uart_state *s)
{
    uint8_t lines = modem_lines(s);
    uint8_t changed = (lines ^ s->msr) & 0xf0;

    s->msr = lines | (s->msr & MSR_DELTAS) | (changed & MSR_CTS ? MSR_DCTS : 0) |
             (changed & MSR_DSR ? MSR_DDSR : 0) | (changed & MSR_DCD ? MSR_DDCD : 0) |
             ((changed & MSR_RI) && !(lines & MSR_RI) ? MSR_TERI : 0);
}

static uint8_t read_lsr(struct uart *u)
{
    struct uart_state *s = &u->s;
    uint8_t v = s->lsr_errors;

    if (s->rx_len > 0)
        v |= LSR_DR;
    if (s->tx_len == 0)
        v |= LSR_THRE | LSR_TEMT;
    if (fifos_on(s)) {
        uint8_t errors = s->lsr_errors & LSR_CHAR_ERRORS;

        for (unsigned i = 0; i < s->rx_len; i++)
            errors |= s->rx_errors[(s->rx_head + i) % FIFO_SIZE];
        if (errors)
            v |= LSR_FIFO_ERR;
    }
    s->lsr_errors = 0;
    update_irq(u);
    return v;
}

static uint8_t read_iir(struct uart *u)
{
    uint8_t id = interrupt_id(&u->s);

    if (id == IIR_THRE) { /* reading IIR is one of the two ways to acknowledge it */
        u->s.thre_pending = 0;
        update_irq(u);
    }
    return id | (fifos_on(&u->s) ? IIR_FIFOS : 0);
}

static uint64_t uart_read(struct device *d, uint64_t off, unsigned size)
{
    struct uart *u = container_of(d, struct uart, dev);
    struct uart_state *s = &u->s;
    bool dlab = s->lcr & LCR_DLAB;
    uint8_t v = 0;

    switch (off) {
    case REG_DATA:
        v = dlab ? s->divisor & 0xff : read_rbr(u);
        break;
    case REG_IER:
        v = dlab ? s->divisor >> 8 : s->ier;
        break;
    case REG_IIR:
        v = read_iir(u);
        break;
    case REG_LCR:
        v = s->lcr;
        break;
    case REG_MCR:
        v = s->mcr;
        break;
    case REG_LSR:
        v = read_lsr(u);
        break;
    case REG_MSR:
        v = s->msr;
        s->msr &= ~MSR_DELTAS;
        update_irq(u);
        break;
    case REG_SCR:
        v = s->scr;
        break;
    }
    trace(d->ctx->trace, uart_read, "%s reg=%u val=%#x", d->id, (unsigned)off, v);
    return v;
}

static void write_ier(struct uart *u, uint8_t v)
{
    struct uart_state *s = &u->s;

    /* Enabling the THRE interrupt while the transmitter is empty raises it. */
    if ((v & IER_THRE) && !(s->ier & IER_THRE) && s->tx_len == 0)
        s->thre_pending = 1;
    s->ier = v & 0x0f;
    update_irq(u);
}

static void write_fcr(struct uart *u, uint8_t v)
{
    struct uart_state *s = &u->s;

    /* Changing the FIFO mode clears both FIFOs; the other bits count only with FIFOs on (§8.5). */
    bool changed = (v ^ s->fcr) & FCR_ENABLE;

    if (changed || (v & (FCR_CLEAR_RX | FCR_ENABLE)) == (FCR_CLEAR_RX | FCR_ENABLE)) {
        rx_clear(s);
        restart_timeout(u);
    }
    if (changed || (v & (FCR_CLEAR_TX | FCR_ENABLE)) == (FCR_CLEAR_TX | FCR_ENABLE)) {
        if (s->tx_len > 0)
            s->thre_pending = 1;
        s->tx_head = s->tx_len = 0;
    }
    s->fcr = v & FCR_ENABLE ? v & FCR_KEPT : 0;
    update_irq(u);
    rx_resume(u);
}

static void write_lcr(struct uart *u, uint8_t v)
{
    struct uart_state *s = &u->s;
    bool broke = (v & LCR_BREAK) && !(s->lcr & LCR_BREAK);

    s->lcr = v;
    if (broke && (s->mcr & MCR_LOOP)) {
        rx_push(s, 0, LSR_BI | LSR_FE);
        restart_timeout(u);
        update_irq(u);
    }
}

static void write_mcr(struct uart *u, uint8_t v)
{
    u->s.mcr = v & 0x1f;
    update_modem(&u->s);
    if (u->s.tx_len > 0)
        tx_drain(u);
    update_irq(u);
    rx_resume(u);
}

static void uart_write(struct device *d, uint64_t off, unsigned size, uint64_t val)
{
    struct uart *u = container_of(d, struct uart, dev);
    struct uart_state *s = &u->s;
    bool dlab = s->lcr & LCR_DLAB;
    uint8_t v = (uint8_t)val;

    trace(d->ctx->trace, uart_write, "%s reg=%u val=%#x", d->id, (unsigned)off, v);
    switch (off) {
    case REG_DATA:
        if (dlab)
            s->divisor = (s->divisor & 0xff00) | v;
        else
            write_thr(u, v);
        break;
    case REG_IER:
        if (dlab)
            s->divisor = (uint16_t)(v << 8 | (s->divisor & 0xff));
        else
            write_ier(u, v);
        break;
    case REG_IIR:
        write_fcr(u, v);
        break;
    case REG_LCR:
        write_lcr(u, v);
        break;
    case REG_MCR:
        write_mcr(u, v);
        break;
    case REG_SCR:
        s->scr = v;
        break;
    default: /* LSR and MSR are read-only outside factory tests */
        break;
    }
}

const struct io_ops uart_ops = {
    .read = uart_read,
    .write = uart_write,
    .min_size = 1,
    .max_size = 1,
};

/* ---- device ---- */

static int uart_init(struct device *d, const void *cfg, struct err *e)
{
    struct uart *u = container_of(d, struct uart, dev);
    const struct uart_cfg *c = cfg;

    u->irq = c->irq;
    timer_init(&u->timer, on_timeout, u);
    int rc = timer_attach(d->ctx->timers, &u->timer, e);
    if (rc)
        return rc;
    u->chr = c->chr;
    if (u->chr)
        chardev_attach(u->chr, &(struct chardev_front){
                                 .receive = uart_receive, .writable = uart_writable, .arg = u});
    return 0;
}

/* The master reset pin (table I), which a PC pulls on every reset. */
static void uart_reset(struct device *d, enum reset_kind kind)
{
    struct uart *u = container_of(d, struct uart, dev);

    /* What the guest sent before the reset still goes out. */
    if (u->s.tx_len > 0)
        tx_drain(u);
    u->s = (struct uart_state){.timeout_at = TIMER_OFF, .divisor = RESET_DIVISOR};
    u->s.msr = modem_lines(&u->s);
    restart_timeout(u);
    update_irq(u);
    rx_resume(u);
}

static void uart_quiesce(struct device *d)
{
    struct uart *u = container_of(d, struct uart, dev);

    u->quiesced = true;
    timer_cancel(d->ctx->timers, &u->timer);
}

static void uart_resume(struct device *d)
{
    struct uart *u = container_of(d, struct uart, dev);

    u->quiesced = false;
    if (u->s.timeout_at != TIMER_OFF)
        timer_arm(d->ctx->timers, &u->timer, u->s.timeout_at);
    if (u->s.tx_len > 0)
        tx_drain(u);
    update_irq(u);
    if (u->chr) {
        u->rx_refused = false;
        chardev_accept_input(u->chr);
    }
}

static void uart_fini(struct device *d)
{
    struct uart *u = container_of(d, struct uart, dev);

    if (u->chr)
        chardev_attach(u->chr, NULL);
    timer_detach(d->ctx->timers, &u->timer);
}

const struct device_class uart_class = {
    .name = "uart",
    .size = sizeof(struct uart),
    .init = uart_init,
    .reset = uart_reset,
    .quiesce = uart_quiesce,
    .resume = uart_resume,
    .fini = uart_fini,
    .state = &uart_state_desc,
    .state_off = offsetof(struct uart, s),
};
