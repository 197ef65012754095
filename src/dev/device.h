/*
 * What every device is: a class, its guest-visible state, and how the machine reaches it.
 *
 * A device is `struct rtc { struct device dev; struct rtc_state s; ...host side... }`. Everything
 * the guest can observe is in `s`, nothing else is; timers live in `s` as deadlines in guest ns
 * (TIMER_OFF when not armed). Reset, snapshot, migration and fuzzing follow from that split.
 *
 * Locking: each device has one mutex. Dispatch (bus.h) takes it around every io_ops call, reset,
 * state save and load, quiesce and resume; timer and host-side callbacks take it themselves through
 * device_lock(). Device code is otherwise lock-free. Order: device -> irq controller -> vcpu.
 */
#ifndef RING3_DEV_DEVICE_H
#define RING3_DEV_DEVICE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/clock.h"
#include "base/err.h"
#include "base/log.h"
#include "base/state.h"
#include "base/timer.h"
#include "base/trace.h"
#include "irq/irq.h"
#include "mem/physmap.h"

struct device;
struct loop;

/* What the machine lends to all its devices; outlives them. Tests build one by hand. */
struct dev_ctx {
    struct clock *clock;
    struct timerq *timers;
    struct physmap *map;
    struct loop *loop; /* NULL in register-level tests: then no host-side fds */
    struct log *log;
    struct trace *trace;
    /* Requests to the machine, callable from device code with its lock held; asynchronous. */
    void (*request)(void *owner, int request, int arg); /* enum machine_request */
    void *owner;
};

enum machine_request {
    MACHINE_POWEROFF,   /* arg unused */
    MACHINE_RESET,      /* arg unused: hard reset of the whole machine */
    MACHINE_DEBUG_EXIT, /* arg: the status the guest wrote */
};

enum reset_kind { RESET_COLD, RESET_WARM };

/* Register access. off is relative to the mapping's start. Dispatch splits a larger access into pieces
 * of max_size and, unless `unaligned`, into naturally aligned pieces. An access smaller than min_size
 * reads min_size bytes at the aligned-down offset and extracts; such a write is dropped and traced. */
struct io_ops {
    uint64_t (*read)(struct device *d, uint64_t off, unsigned size);
    void (*write)(struct device *d, uint64_t off, unsigned size, uint64_t val);
    uint8_t min_size, max_size; /* 0 means 1 and 8 */
    bool unaligned;
    bool unlocked; /* read and write are called without the device's lock, and may take it */
};

struct device_class {
    const char *name;
    size_t size; /* of the whole device struct */
    int (*init)(struct device *d, const void *cfg, struct err *e); /* cfg: the class's own struct */
    void (*reset)(struct device *d, enum reset_kind kind);
    void (*quiesce)(struct device *d);   /* stop host-side activity; no s changes afterwards */
    void (*resume)(struct device *d);    /* re-arm timers and host side from s */
    void (*fini)(struct device *d);
    const struct state_desc *state;
    size_t state_off; /* offset of s in the device struct */
};

struct device {
    const struct device_class *cls;
    const char *id; /* unique in the machine: "rtc", "uart0" */
    struct dev_ctx *ctx;
    pthread_mutex_t lock;
    struct device *next; /* machine's list */
};

/* Allocates, initialises (cls->init, then reset RESET_COLD). NULL with e set on failure. The id is
 * copied. device_free quiesces, calls fini and frees. */
struct device *device_new(const struct device_class *cls, const char *id, struct dev_ctx *ctx,
                          const void *cfg, struct err *e);
void device_free(struct device *d);
void device_reset(struct device *d, enum reset_kind kind);
void device_quiesce(struct device *d);
void device_resume(struct device *d);
int device_save(struct device *d, struct sbuf *out);
/* Loads into a quiesced device; device_resume() then brings host side and timers in line. */
int device_load(struct device *d, const uint8_t *data, size_t len, size_t *used, struct err *e);

static inline void device_lock(struct device *d) { pthread_mutex_lock(&d->lock); }
static inline void device_unlock(struct device *d) { pthread_mutex_unlock(&d->lock); }

#endif
