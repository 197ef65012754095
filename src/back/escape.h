/*
 * The console's escape keys (Ctrl-A as prefix). Pure: bytes in, bytes for the guest and an action
 * out. No locking; a struct escape belongs to its stream.
 */
#ifndef RING3_BACK_ESCAPE_H
#define RING3_BACK_ESCAPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ESCAPE_KEY 0x01 /* Ctrl-A */

enum escape_action { ESCAPE_NONE, ESCAPE_LEAVE, ESCAPE_HELP, ESCAPE_ENGINE };

struct escape {
    bool prefix; /* the last byte was an ESCAPE_KEY that has not been passed on */
};

/* Takes one byte; stores 0 to 2 bytes for the guest in out and their number in *n. */
enum escape_action escape_byte(struct escape *x, uint8_t byte, uint8_t out[2], size_t *n);

/* The input ended: a prefix that waited for its key is an ordinary byte. Returns 0 or 1 bytes. */
size_t escape_end(struct escape *x, uint8_t out[1]);

/* What Ctrl-A H prints; lines end in CR LF. */
extern const char escape_help[];

#endif
