/* What the oracle needs of a case too; it links nothing else. */
#include "case.h"

#include <string.h>

void case_init(struct test_case *t, enum cpu_bits bits)
{
    memset(t, 0, sizeof(*t));
    t->bits = bits;
    t->s.rflags = FL_R1 | FL_IF;
    t->s.mxcsr = 0x1f80;
    t->s.x87.fcw = 0x37f;
    t->s.gpr[RSP] = DATA_ADDR + 0xf00;
    for (unsigned k = 0; k < DATA_BYTES; k++)
        t->data[k] = (uint8_t)(k * 29 + (k >> 7));
}

void case_ro_page(uint8_t page[RO_BYTES])
{
    for (unsigned k = 0; k < RO_BYTES; k++)
        page[k] = (uint8_t)(k * 37 + (k >> 8) * 11);
}

bool case_assemble(const struct test_case *t, uint8_t code[CODE_BYTES], unsigned off[ITEMS_MAX + 1])
{
    unsigned own[ITEMS_MAX + 1];

    if (!off)
        off = own;
    off[0] = t->start;
    for (unsigned k = 0; k < t->n; k++)
        off[k + 1] = off[k] + t->item[k].len;
    if (off[t->n] > CODE_BYTES)
        return false;
    memset(code, 0xf4, CODE_BYTES);
    for (unsigned k = 0; k < t->n; k++) {
        const struct item *it = &t->item[k];
        int32_t rel = it->fix ? (int32_t)(off[it->target] - off[k + 1]) : 0;

        if (it->fix == FIX_IMM)
            rel += it->target < (int)t->n ? t->item[it->target].len - 1 : 0;

        memcpy(code + off[k], it->b, it->len);
        if (it->fix == FIX_REL8) {
            if (rel != (int8_t)rel)
                return false;
            code[off[k + 1] - 1] = (uint8_t)rel;
        } else if (it->fix) {
            memcpy(code + off[k + 1] - 4, &rel, 4);
        }
    }
    return true;
}

unsigned case_item_at(const struct test_case *t, uint64_t rip)
{
    uint64_t at = CODE_ADDR + t->start;

    for (unsigned k = 0; k < t->n; k++) {
        if (rip >= at && rip < at + t->item[k].len)
            return k;
        at += t->item[k].len;
    }
    return t->n;
}
