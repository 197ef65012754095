/*
 * A PS/2 keyboard as the controller sees it at the other end of the wire (IBM PS/2 Hardware
 * Interface Technical Reference, "Keyboards (101- and 102-key)"): a byte goes in, replies and scan
 * codes come out. Scan code sets 1 and 2; set 3 is refused as keyboards without it do. A pure state
 * machine without locking: it lives in the controller's state.
 */
#ifndef RING3_DEV_PLATFORM_PS2KBD_H
#define RING3_DEV_PLATFORM_PS2KBD_H

#include <stdbool.h>
#include <stdint.h>

#include "base/state.h"

#define PS2KBD_REPLIES 4
#define PS2KBD_KEYS 16

struct ps2kbd_state {
    uint8_t scanning; /* sends scan codes */
    uint8_t set;      /* 1 or 2 */
    uint8_t leds, typematic;
    uint8_t command; /* waits for its parameter; 0: none */
    uint8_t last;    /* last byte sent, for the resend command */
    uint8_t reply_head, reply_len;
    uint8_t key_head, key_len;
    uint8_t replies[PS2KBD_REPLIES]; /* ring; goes out before the keys */
    uint8_t keys[PS2KBD_KEYS];       /* ring */
};

/* Pause has a code of its own in the numbering of ps2kbd_key. */
#define PS2KBD_PAUSE 0xe11d

extern const struct state_desc ps2kbd_state_desc;

void ps2kbd_reset(struct ps2kbd_state *k); /* as after power-on and self-test, without the 0xAA */
void ps2kbd_write(struct ps2kbd_state *k, uint8_t byte);
/* The next byte that the keyboard sends, if any. */
bool ps2kbd_next(struct ps2kbd_state *k, uint8_t *byte);

/* A key went down or up. key is its make code in set 1: 0x01..0x7f, 0xe001..0xe07f for keys with
 * the prefix 0xE0, or PS2KBD_PAUSE. Returns false when the key is unknown, its codes do not fit in
 * the buffer or scanning is off; nothing is sent then. */
bool ps2kbd_key(struct ps2kbd_state *k, uint16_t key, bool down);

/* What the keyboard controller makes of a set 2 byte when it translates to set 1 (Microsoft,
 * "Keyboard Scan Code Specification", appendix C). */
uint8_t ps2kbd_translate(uint8_t byte);

#endif
