#include "fakechr.h"

#include <string.h>

#include "base/util.h"

static size_t fake_write(struct chardev *base, const uint8_t *p, size_t n)
{
    struct fakechr *c = container_of(base, struct fakechr, base);

    n = MIN(n, c->room - c->len);
    memcpy(c->out + c->len, p, n);
    c->len += n;
    return n;
}

static void fake_accept_input(struct chardev *base)
{
    container_of(base, struct fakechr, base)->accepts++;
}

static int fake_flush(struct chardev *base, unsigned timeout_ms) { return 0; }

static bool fake_size(struct chardev *base, uint16_t *columns, uint16_t *rows)
{
    struct fakechr *c = container_of(base, struct fakechr, base);

    *columns = c->columns;
    *rows = c->rows;
    return c->columns && c->rows;
}

static void fake_free(struct chardev *base) {}

static const struct chardev_ops fake_ops = {
    .write = fake_write,
    .accept_input = fake_accept_input,
    .flush = fake_flush,
    .size = fake_size,
    .free = fake_free,
};

void fakechr_init(struct fakechr *c)
{
    memset(c, 0, sizeof(*c));
    c->base.ops = &fake_ops;
    c->room = sizeof(c->out);
}
