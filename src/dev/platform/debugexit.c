/* Debug-exit port. It has no state. */
#include "dev/platform/debugexit.h"

struct debugexit {
    struct device dev;
};

static uint64_t debugexit_read(struct device *d, uint64_t off, unsigned size) { return 0; }

static void debugexit_write(struct device *d, uint64_t off, unsigned size, uint64_t val)
{
    d->ctx->request(d->ctx->owner, MACHINE_DEBUG_EXIT, (int)(uint32_t)val);
}

const struct io_ops debugexit_ops = {
    .read = debugexit_read,
    .write = debugexit_write,
    .min_size = 1,
    .max_size = 4,
    .unaligned = true,
};

const struct device_class debugexit_class = {
    .name = "debugexit",
    .size = sizeof(struct debugexit),
};
