/* Guest code whose translations are kept as golden listings. */
#ifndef RING3_TESTS_BT_LISTING_GUEST_H
#define RING3_TESTS_BT_LISTING_GUEST_H

#include <stdbool.h>
#include <stdint.h>

struct snippet {
    const char *name;          /* of the listing's file, without .txt */
    const char *guards;        /* what a change in the listing would tell: one line */
    const uint8_t *code, *end; /* position-independent, less than a page; HLT is put behind */
    bool entry;                /* list the blocks' ways in, too */
};

extern const struct snippet snippets[]; /* ends with a name of NULL */

#endif
