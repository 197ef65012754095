#include "minimise.h"

#include <stdlib.h>
#include <string.h>

struct work {
    struct test_case *t, try, init;
    still_fails fails;
    void *ctx;
    bool progress;
};

/* Keeps the change made to w->try if it still fails. */
static bool keep(struct work *w)
{
    uint8_t code[CODE_BYTES];

    if (case_assemble(&w->try, code, NULL) && w->fails(w->ctx, &w->try)) {
        *w->t = w->try;
        w->progress = true;
        return true;
    }
    w->try = *w->t;
    return false;
}

static void drop_item(struct test_case *t, unsigned k)
{
    memmove(&t->item[k], &t->item[k + 1], (t->n - k - 1) * sizeof(t->item[0]));
    t->n--;
    for (unsigned n = 0; n < t->n; n++)
        if (t->item[n].fix && t->item[n].target > (int)k)
            t->item[n].target--;
}

static void drop_items(struct work *w)
{
    for (unsigned k = w->t->n; k-- > 0;)
        if (w->t->n > 1) {
            drop_item(&w->try, k);
            keep(w);
        }
}

/* Sets size bytes at offset off of the case to what case_init gives. */
static void reset(struct work *w, size_t off, size_t size)
{
    uint8_t *p = (uint8_t *)&w->try + off, *init = (uint8_t *)&w->init + off;

    if (!memcmp(p, init, size))
        return;
    memcpy(p, init, size);
    keep(w);
}
#define RESET(w, m) reset(w, offsetof(struct test_case, m), sizeof((w)->try.m))

static void reset_state(struct work *w)
{
    RESET(w, s.x87);
    RESET(w, s.zmm);
    RESET(w, s.k);
    RESET(w, s.mxcsr);
    RESET(w, s.rflags);
    for (unsigned k = 0; k < 16; k++)
        RESET(w, s.gpr[k]);
    for (unsigned k = 0; k < 32; k++) {
        RESET(w, s.zmm[k]);
        for (unsigned q = 0; q < 8; q++)
            RESET(w, s.zmm[k][q]);
    }
    for (unsigned k = 0; k < 8; k++) {
        RESET(w, s.k[k]);
        RESET(w, s.x87.st[k]);
    }
    RESET(w, s.x87.fcw);
    RESET(w, s.x87.fsw);
    RESET(w, s.x87.tag);
    w->try.start = 0x100;
    if (w->try.start != w->t->start)
        keep(w);
}

static void reset_data(struct work *w)
{
    RESET(w, data);
    for (unsigned size = DATA_BYTES / 2; size >= 16; size /= 2)
        for (unsigned at = 0; at < DATA_BYTES; at += size)
            if (memcmp(w->t->data + at, w->init.data + at, size)) {
                memcpy(w->try.data + at, w->init.data + at, size);
                keep(w);
            }
}

void minimise(struct test_case *t, still_fails fails, void *ctx)
{
    struct work *w = malloc(sizeof(*w));

    if (!w)
        abort();
    w->t = t;
    w->try = *t;
    w->fails = fails;
    w->ctx = ctx;
    case_init(&w->init, t->bits);
    do {
        w->progress = false;
        drop_items(w);
        reset_state(w);
        reset_data(w);
    } while (w->progress);
    free(w);
}
