/* Keyboard controller. */
#include "dev/platform/i8042.h"

#include "base/util.h"
#include "dev/platform/ps2kbd.h"

#define RAM_SIZE 32

/* Status, port 0x64. */
#define STATUS_OBF BIT(0)
#define STATUS_SYSTEM BIT(2)
#define STATUS_COMMAND BIT(3)
#define STATUS_UNLOCKED BIT(4)

/* The controller's command byte, byte 0 of its RAM. */
#define CTR_KBD_IRQ BIT(0)
#define CTR_SYSTEM BIT(2)
#define CTR_KBD_OFF BIT(4)
#define CTR_AUX_OFF BIT(5)
#define CTR_TRANSLATE BIT(6)

/* The output port. */
#define OUTPORT_NO_RESET BIT(0)
#define OUTPORT_A20 BIT(1)
#define OUTPORT_KBD_IRQ BIT(4)
#define OUTPORT_LINES 0xc0 /* keyboard clock and data, idle */

#define INPORT_UNLOCKED 0x80

#define PORT92_RESET BIT(0)
#define PORT92_A20 BIT(1)

enum { /* commands to port 0x64 */
       CMD_READ_RAM = 0x20,
       CMD_WRITE_RAM = 0x60,
       CMD_AUX_OFF = 0xa7,
       CMD_AUX_ON = 0xa8,
       CMD_AUX_TEST = 0xa9,
       CMD_SELF_TEST = 0xaa,
       CMD_KBD_TEST = 0xab,
       CMD_KBD_OFF = 0xad,
       CMD_KBD_ON = 0xae,
       CMD_READ_INPORT = 0xc0,
       CMD_READ_OUTPORT = 0xd0,
       CMD_WRITE_OUTPORT = 0xd1,
       CMD_WRITE_KBD = 0xd2,
       CMD_WRITE_AUX_LOOP = 0xd3,
       CMD_WRITE_AUX = 0xd4,
       CMD_PULSE = 0xf0,
};

#define SELF_TEST_PASSED 0x55
#define KBD_TEST_PASSED 0x00
#define AUX_TEST_FAILED 0x02 /* clock line stuck high */

#define BREAK 0xf0 /* set 2: the key went up */

struct i8042_state {
    uint8_t ram[RAM_SIZE];
    uint8_t out;         /* the output buffer */
    uint8_t full;        /* it holds a byte */
    uint8_t command;     /* waits for its parameter at port 0x60; 0: none */
    uint8_t was_command; /* the last write went to port 0x64 */
    uint8_t broke;       /* translation saw BREAK */
    uint8_t pad[3];
    struct ps2kbd_state kbd;
};

struct i8042 {
    struct device dev;
    struct i8042_state s;
    struct irq irq;
};

static bool takes_parameter(uint8_t command)
{
    return (command >= CMD_WRITE_RAM && command < CMD_WRITE_RAM + RAM_SIZE) ||
           (command >= CMD_WRITE_OUTPORT && command <= CMD_WRITE_AUX);
}

static const struct state_field i8042_fields[] = {
    STATE_ARRAY(struct i8042_state, ram),
    STATE_FIELD(struct i8042_state, out),
    STATE_FIELD_MAX(struct i8042_state, full, 1),
    STATE_FIELD(struct i8042_state, command),
    STATE_FIELD_MAX(struct i8042_state, was_command, 1),
    STATE_FIELD_MAX(struct i8042_state, broke, 1),
    STATE_PAD(struct i8042_state, pad),
    STATE_SUB(struct i8042_state, kbd, &ps2kbd_state_desc),
};

static const struct state_desc i8042_state_desc = {
    .name = "i8042",
    .version = 1,
    .size = sizeof(struct i8042_state),
    .fields = i8042_fields,
    .nfields = ARRAY_LEN(i8042_fields),
};

static void update_irq(struct i8042 *c)
{
    irq_set(&c->irq, c->s.full && (c->s.ram[0] & CTR_KBD_IRQ));
}

/* Puts a byte in the output buffer, over one that was not read. */
static void put(struct i8042 *c, uint8_t byte)
{
    c->s.out = byte;
    c->s.full = 1;
    update_irq(c);
}

/* Takes the keyboard's next byte when the buffer is free and the keyboard's clock is not held. */
static void pump(struct i8042 *c)
{
    struct i8042_state *s = &c->s;
    uint8_t byte;

    while (!s->full && !(s->ram[0] & CTR_KBD_OFF) && ps2kbd_next(&s->kbd, &byte)) {
        if (!(s->ram[0] & CTR_TRANSLATE)) {
            put(c, byte);
        } else if (byte == BREAK) {
            s->broke = 1;
        } else {
            byte = ps2kbd_translate(byte);
            put(c, s->broke ? byte | 0x80 : byte);
            s->broke = 0;
        }
    }
    update_irq(c);
}

static void request_reset(struct i8042 *c)
{
    c->dev.ctx->request(c->dev.ctx->owner, MACHINE_RESET, 0);
}

/* ---- port 0x60 ---- */

static uint64_t data_read(struct device *d, uint64_t off, unsigned size)
{
    struct i8042 *c = container_of(d, struct i8042, dev);

    c->s.full = 0;
    update_irq(c); /* falls between two bytes, for edge-triggered controllers */
    uint8_t byte = c->s.out;
    pump(c);
    return byte;
}

static void parameter(struct i8042 *c, uint8_t command, uint8_t byte)
{
    switch (command) {
    case CMD_WRITE_OUTPORT:
        if (!(byte & OUTPORT_NO_RESET))
            request_reset(c);
        break;
    case CMD_WRITE_KBD:
    case CMD_WRITE_AUX_LOOP: /* comes back as the keyboard's: there is no auxiliary port */
        put(c, byte);
        break;
    case CMD_WRITE_AUX: /* to nobody */
        break;
    default:
        c->s.ram[command % RAM_SIZE] = byte;
        pump(c);
        break;
    }
}

static void data_write(struct device *d, uint64_t off, unsigned size, uint64_t val)
{
    struct i8042 *c = container_of(d, struct i8042, dev);
    uint8_t command = c->s.command;

    c->s.command = 0;
    c->s.was_command = 0;
    if (command) {
        parameter(c, command, (uint8_t)val);
        return;
    }
    c->s.ram[0] &= ~CTR_KBD_OFF; /* talking to the keyboard releases its clock */
    ps2kbd_write(&c->s.kbd, (uint8_t)val);
    pump(c);
}

const struct io_ops i8042_data_ops = {
    .read = data_read,
    .write = data_write,
    .min_size = 1,
    .max_size = 1,
};

/* ---- port 0x64 ---- */

static uint64_t status_read(struct device *d, uint64_t off, unsigned size)
{
    struct i8042 *c = container_of(d, struct i8042, dev);

    return STATUS_UNLOCKED | (c->s.full ? STATUS_OBF : 0) |
           (c->s.ram[0] & CTR_SYSTEM ? STATUS_SYSTEM : 0) | (c->s.was_command ? STATUS_COMMAND : 0);
}

static uint8_t outport(const struct i8042 *c)
{
    return OUTPORT_NO_RESET | OUTPORT_A20 | OUTPORT_LINES | (c->s.full ? OUTPORT_KBD_IRQ : 0);
}

static void command_write(struct device *d, uint64_t off, unsigned size, uint64_t val)
{
    struct i8042 *c = container_of(d, struct i8042, dev);
    struct i8042_state *s = &c->s;
    uint8_t command = (uint8_t)val;

    s->was_command = 1;
    s->command = 0;
    if (takes_parameter(command)) {
        s->command = command;
        return;
    }
    if (command >= CMD_READ_RAM && command < CMD_READ_RAM + RAM_SIZE) {
        put(c, s->ram[command % RAM_SIZE]);
        return;
    }
    if (command >= CMD_PULSE) { /* pulses low those of the output port's low lines that are 0 */
        if (!(command & OUTPORT_NO_RESET))
            request_reset(c);
        return;
    }

    switch (command) {
    case CMD_AUX_OFF:
        s->ram[0] |= CTR_AUX_OFF;
        break;
    case CMD_AUX_ON:
        s->ram[0] &= ~CTR_AUX_OFF;
        break;
    case CMD_AUX_TEST:
        put(c, AUX_TEST_FAILED);
        break;
    case CMD_SELF_TEST:
        s->ram[0] |= CTR_SYSTEM;
        put(c, SELF_TEST_PASSED);
        break;
    case CMD_KBD_TEST:
        put(c, KBD_TEST_PASSED);
        break;
    case CMD_KBD_OFF:
        s->ram[0] |= CTR_KBD_OFF;
        break;
    case CMD_KBD_ON:
        s->ram[0] &= ~CTR_KBD_OFF;
        pump(c);
        break;
    case CMD_READ_INPORT:
        put(c, INPORT_UNLOCKED);
        break;
    case CMD_READ_OUTPORT:
        put(c, outport(c));
        break;
    default: /* the controller's firmware ignores what it does not know */
        break;
    }
}

const struct io_ops i8042_command_ops = {
    .read = status_read,
    .write = command_write,
    .min_size = 1,
    .max_size = 1,
};

/* ---- port 0x92 (system control port A) ---- */

static uint64_t port92_read(struct device *d, uint64_t off, unsigned size) { return PORT92_A20; }

static void port92_write(struct device *d, uint64_t off, unsigned size, uint64_t val)
{
    if (val & PORT92_RESET)
        request_reset(container_of(d, struct i8042, dev));
}

const struct io_ops i8042_port92_ops = {
    .read = port92_read,
    .write = port92_write,
    .min_size = 1,
    .max_size = 1,
};

/* ---- device ---- */

bool i8042_key(struct device *d, uint16_t key, bool down)
{
    struct i8042 *c = container_of(d, struct i8042, dev);

    device_lock(d);
    bool sent = ps2kbd_key(&c->s.kbd, key, down);
    pump(c);
    device_unlock(d);
    return sent;
}

static int i8042_init(struct device *d, const void *cfg, struct err *e)
{
    const struct i8042_cfg *c = cfg;

    container_of(d, struct i8042, dev)->irq = c->kbd_irq;
    return 0;
}

static void i8042_reset(struct device *d, enum reset_kind kind)
{
    struct i8042 *c = container_of(d, struct i8042, dev);

    c->s = (struct i8042_state){
        .ram = {CTR_KBD_IRQ | CTR_SYSTEM | CTR_AUX_OFF | CTR_TRANSLATE},
    };
    ps2kbd_reset(&c->s.kbd);
    update_irq(c);
}

static void i8042_resume(struct device *d) { pump(container_of(d, struct i8042, dev)); }

const struct device_class i8042_class = {
    .name = "i8042",
    .size = sizeof(struct i8042),
    .init = i8042_init,
    .reset = i8042_reset,
    .resume = i8042_resume,
    .state = &i8042_state_desc,
    .state_off = offsetof(struct i8042, s),
};
