/* The life of a device: creation, reset, quiesce and resume, saving and loading. */
#include "dev/device.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct device *device_new(const struct device_class *cls, const char *id, struct dev_ctx *ctx,
                          const void *cfg, struct err *e)
{
    struct device *d = calloc(1, cls->size);

    if (!d)
        goto nomem;
    d->cls = cls;
    d->ctx = ctx;
    d->id = strdup(id);
    if (!d->id)
        goto nomem;
    pthread_mutex_init(&d->lock, NULL);
    if (cls->init) {
        int rc = cls->init(d, cfg, e);

        if (rc) {
            err_prefix(e, rc, "%s", id);
            goto out_destroy;
        }
    }
    device_reset(d, RESET_COLD);
    return d;

out_destroy:
    pthread_mutex_destroy(&d->lock);
    free((char *)d->id);
    free(d);
    return NULL;
nomem:
    free(d);
    err_set(e, ENOMEM, "%s: no memory for the device", id);
    return NULL;
}

void device_free(struct device *d)
{
    if (!d)
        return;
    device_quiesce(d);
    /* Without the lock: fini waits for callbacks that take it. */
    if (d->cls->fini)
        d->cls->fini(d);
    pthread_mutex_destroy(&d->lock);
    free((char *)d->id);
    free(d);
}

void device_reset(struct device *d, enum reset_kind kind)
{
    if (!d->cls->reset)
        return;
    device_lock(d);
    d->cls->reset(d, kind);
    device_unlock(d);
}

void device_quiesce(struct device *d)
{
    if (!d->cls->quiesce)
        return;
    device_lock(d);
    d->cls->quiesce(d);
    device_unlock(d);
}

void device_resume(struct device *d)
{
    if (!d->cls->resume)
        return;
    device_lock(d);
    d->cls->resume(d);
    device_unlock(d);
}

static void *state_of(struct device *d) { return (char *)d + d->cls->state_off; }

int device_save(struct device *d, struct sbuf *out)
{
    int rc;

    if (!d->cls->state)
        return 0;
    device_lock(d);
    rc = state_save(d->cls->state, state_of(d), out);
    device_unlock(d);
    return rc;
}

int device_load(struct device *d, const uint8_t *data, size_t len, size_t *used, struct err *e)
{
    int rc;

    if (!d->cls->state) {
        *used = 0;
        return 0;
    }
    device_lock(d);
    rc = state_load(d->cls->state, state_of(d), data, len, used, e);
    device_unlock(d);
    return rc ? err_prefix(e, rc, "%s", d->id) : 0;
}
