/* PS/2 keyboard. */
#include "dev/platform/ps2kbd.h"

#include <string.h>

#include "base/util.h"

enum { /* what the keyboard says */
       SAY_ID0 = 0xab,
       SAY_ID1 = 0x83,
       SAY_PASSED = 0xaa,
       SAY_ECHO = 0xee,
       SAY_ACK = 0xfa,
       SAY_RESEND = 0xfe,
};

enum { /* what the host says */
       CMD_LEDS = 0xed,
       CMD_ECHO = 0xee,
       CMD_SET = 0xf0,
       CMD_IDENTIFY = 0xf2,
       CMD_TYPEMATIC = 0xf3,
       CMD_ENABLE = 0xf4,
       CMD_DISABLE = 0xf5,
       CMD_DEFAULTS = 0xf6,
       CMD_RESEND = 0xfe,
       CMD_RESET = 0xff,
};

#define DEFAULT_TYPEMATIC 0x2b /* 10.9 characters per second after 500 ms */
#define BREAK 0xf0             /* set 2: the key went up */

static const struct state_field ps2kbd_fields[] = {
    STATE_FIELD_MAX(struct ps2kbd_state, scanning, 1),
    STATE_FIELD_MAX(struct ps2kbd_state, set, 2),
    STATE_FIELD_MAX(struct ps2kbd_state, leds, 7),
    STATE_FIELD_MAX(struct ps2kbd_state, typematic, 0x7f),
    STATE_FIELD(struct ps2kbd_state, command),
    STATE_FIELD(struct ps2kbd_state, last),
    STATE_FIELD_MAX(struct ps2kbd_state, reply_head, PS2KBD_REPLIES - 1),
    STATE_FIELD_MAX(struct ps2kbd_state, reply_len, PS2KBD_REPLIES),
    STATE_FIELD_MAX(struct ps2kbd_state, key_head, PS2KBD_KEYS - 1),
    STATE_FIELD_MAX(struct ps2kbd_state, key_len, PS2KBD_KEYS),
    STATE_ARRAY(struct ps2kbd_state, replies),
    STATE_ARRAY(struct ps2kbd_state, keys),
};

const struct state_desc ps2kbd_state_desc = {
    .name = "ps2kbd",
    .version = 1,
    .size = sizeof(struct ps2kbd_state),
    .fields = ps2kbd_fields,
    .nfields = ARRAY_LEN(ps2kbd_fields),
};

/* Set 2 to set 1. The table is a fact of the 8042's firmware. */
static const uint8_t set1[0x85] = {
    0xff, 0x43, 0x41, 0x3f, 0x3d, 0x3b, 0x3c, 0x58, 0x64, 0x44, 0x42, 0x40, 0x3e, 0x0f, 0x29,
    0x59, 0x65, 0x38, 0x2a, 0x70, 0x1d, 0x10, 0x02, 0x5a, 0x66, 0x71, 0x2c, 0x1f, 0x1e, 0x11,
    0x03, 0x5b, 0x67, 0x2e, 0x2d, 0x20, 0x12, 0x05, 0x04, 0x5c, 0x68, 0x39, 0x2f, 0x21, 0x14,
    0x13, 0x06, 0x5d, 0x69, 0x31, 0x30, 0x23, 0x22, 0x15, 0x07, 0x5e, 0x6a, 0x72, 0x32, 0x24,
    0x16, 0x08, 0x09, 0x5f, 0x6b, 0x33, 0x25, 0x17, 0x18, 0x0b, 0x0a, 0x60, 0x6c, 0x34, 0x35,
    0x26, 0x27, 0x19, 0x0c, 0x61, 0x6d, 0x73, 0x28, 0x74, 0x1a, 0x0d, 0x62, 0x6e, 0x3a, 0x36,
    0x1c, 0x1b, 0x75, 0x2b, 0x63, 0x76, 0x55, 0x56, 0x77, 0x78, 0x79, 0x7a, 0x0e, 0x7b, 0x7c,
    0x4f, 0x7d, 0x4b, 0x47, 0x7e, 0x7f, 0x6f, 0x52, 0x53, 0x50, 0x4c, 0x4d, 0x48, 0x01, 0x45,
    0x57, 0x4e, 0x51, 0x4a, 0x37, 0x49, 0x46, 0x54, 0x80, 0x81, 0x82, 0x41, 0x54,
};

uint8_t ps2kbd_translate(uint8_t byte) { return byte < sizeof(set1) ? set1[byte] : byte; }

/* The set 2 code of a set 1 make code. From above, since F7 is 0x83, not 0x02. */
static uint8_t set2_of(uint8_t make)
{
    uint8_t code = sizeof(set1) - 1;

    while (code > 0 && set1[code] != make)
        code--;
    return code;
}

void ps2kbd_reset(struct ps2kbd_state *k)
{
    *k = (struct ps2kbd_state){.scanning = 1, .set = 2, .typematic = DEFAULT_TYPEMATIC};
}

static void set_defaults(struct ps2kbd_state *k)
{
    k->set = 2;
    k->typematic = DEFAULT_TYPEMATIC;
    k->key_head = k->key_len = 0;
}

static void say(struct ps2kbd_state *k, uint8_t byte)
{
    k->replies[(k->reply_head + k->reply_len++) % PS2KBD_REPLIES] = byte;
}

static void parameter(struct ps2kbd_state *k, uint8_t command, uint8_t byte)
{
    switch (command) {
    case CMD_LEDS:
        k->leds = byte & 7;
        break;
    case CMD_TYPEMATIC:
        k->typematic = byte & 0x7f;
        break;
    case CMD_SET:
        if (byte > 2) {
            say(k, SAY_RESEND);
            return;
        }
        say(k, SAY_ACK);
        if (byte == 0)
            say(k, k->set);
        else
            k->set = byte;
        return;
    }
    say(k, SAY_ACK);
}

void ps2kbd_write(struct ps2kbd_state *k, uint8_t byte)
{
    uint8_t command = k->command;

    k->command = 0;
    if (byte == CMD_RESEND) {
        k->reply_head = k->reply_len = 0;
        say(k, k->last);
        return;
    }
    /* A new command cuts short what the keyboard was saying. */
    k->reply_head = k->reply_len = 0;
    if (command && byte < CMD_LEDS) {
        parameter(k, command, byte);
        return;
    }

    switch (byte) {
    case CMD_ECHO:
        say(k, SAY_ECHO);
        return;
    case CMD_LEDS:
    case CMD_SET:
    case CMD_TYPEMATIC:
        k->command = byte;
        say(k, SAY_ACK);
        return;
    case CMD_IDENTIFY:
        say(k, SAY_ACK);
        say(k, SAY_ID0);
        say(k, SAY_ID1);
        return;
    case CMD_ENABLE:
        k->key_head = k->key_len = 0;
        k->scanning = 1;
        say(k, SAY_ACK);
        return;
    case CMD_DISABLE:
    case CMD_DEFAULTS:
        set_defaults(k);
        k->scanning = byte == CMD_DEFAULTS;
        say(k, SAY_ACK);
        return;
    case CMD_RESET:
        ps2kbd_reset(k);
        say(k, SAY_ACK);
        say(k, SAY_PASSED);
        return;
    default:
        say(k, SAY_RESEND);
        return;
    }
}

bool ps2kbd_next(struct ps2kbd_state *k, uint8_t *byte)
{
    if (k->reply_len > 0) {
        *byte = k->replies[k->reply_head];
        k->reply_head = (k->reply_head + 1) % PS2KBD_REPLIES;
        k->reply_len--;
    } else if (k->key_len > 0) {
        *byte = k->keys[k->key_head];
        k->key_head = (k->key_head + 1) % PS2KBD_KEYS;
        k->key_len--;
    } else {
        return false;
    }
    k->last = *byte;
    return true;
}

bool ps2kbd_key(struct ps2kbd_state *k, uint16_t key, bool down)
{
    static const uint8_t pause1[] = {0xe1, 0x1d, 0x45, 0xe1, 0x9d, 0xc5};
    static const uint8_t pause2[] = {0xe1, 0x14, 0x77, 0xe1, BREAK, 0x14, BREAK, 0x77};
    uint8_t make = key & 0xff, prefix = key >> 8;
    uint8_t code[8];
    size_t n = 0;

    if (key == PS2KBD_PAUSE) {
        if (!down)
            return true; /* has no break code */
        n = k->set == 1 ? sizeof(pause1) : sizeof(pause2);
        memcpy(code, k->set == 1 ? pause1 : pause2, n);
    } else if ((prefix == 0 || prefix == 0xe0) && make >= 1 && make <= 0x7f) {
        if (prefix)
            code[n++] = prefix;
        if (k->set == 1) {
            code[n++] = down ? make : make | 0x80;
        } else {
            if (!down)
                code[n++] = BREAK;
            code[n++] = set2_of(make);
        }
    } else {
        return false;
    }

    if (!k->scanning || n > (size_t)(PS2KBD_KEYS - k->key_len))
        return false;
    for (size_t i = 0; i < n; i++)
        k->keys[(k->key_head + k->key_len++) % PS2KBD_KEYS] = code[i];
    return true;
}
