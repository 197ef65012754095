/* The console's escape keys. */
#include "back/escape.h"

const char escape_help[] = "\r\n"
                           "Ctrl-A X       leave: the VM ends at once\r\n"
                           "Ctrl-A E       go on with the next CPU engine\r\n"
                           "Ctrl-A H       this help\r\n"
                           "Ctrl-A Ctrl-A  send Ctrl-A to the guest (also Ctrl-A A)\r\n";

enum escape_action escape_byte(struct escape *x, uint8_t byte, uint8_t out[2], size_t *n)
{
    *n = 0;
    if (!x->prefix) {
        if (byte == ESCAPE_KEY)
            x->prefix = true;
        else
            out[(*n)++] = byte;
        return ESCAPE_NONE;
    }

    x->prefix = false;
    switch (byte) {
    case 'x':
    case 'X':
        return ESCAPE_LEAVE;
    case 'h':
    case 'H':
        return ESCAPE_HELP;
    case 'e':
    case 'E':
        return ESCAPE_ENGINE;
    case ESCAPE_KEY:
    case 'a':
    case 'A':
        out[(*n)++] = ESCAPE_KEY;
        return ESCAPE_NONE;
    default:
        out[(*n)++] = ESCAPE_KEY;
        out[(*n)++] = byte;
        return ESCAPE_NONE;
    }
}

size_t escape_end(struct escape *x, uint8_t out[1])
{
    if (!x->prefix)
        return 0;
    x->prefix = false;
    out[0] = ESCAPE_KEY;
    return 1;
}
