/*
 * The host side of a serial port or console: a byte stream in both directions between one device and something
 * on the host (the terminal, a file, nothing).
 *
 * Threads: chardev_write and chardev_accept_input may be called from any thread, also with the
 * device's lock held; they never block and never call back. The front's functions are called in the
 * loop's thread with no lock of the backend held, so they may take the device's lock. Everything
 * else belongs to the loop's thread, or to whoever owns the backend while the loop is not running.
 *
 * What comes from the host side is hostile in content only: any byte value, at any rate.
 */
#ifndef RING3_BACK_CHARDEV_H
#define RING3_BACK_CHARDEV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/log.h"
#include "base/loop.h"

struct chardev;

/* The device's side. */
struct chardev_front {
    /* n >= 1 bytes arrived. Returns how many of them the device took; the backend keeps the rest
     * and offers it again after chardev_accept_input. */
    size_t (*receive)(void *arg, const uint8_t *p, size_t n);
    /* After chardev_write took less than it was given: there is room again. */
    void (*writable)(void *arg);
    void *arg;
    /* The terminal has another size now. May be NULL. */
    void (*resized)(void *arg);
};

/* What a kind of backend implements; the functions below say what each does. */
struct chardev_ops {
    size_t (*write)(struct chardev *c, const uint8_t *p, size_t n);
    void (*accept_input)(struct chardev *c);
    int (*flush)(struct chardev *c, unsigned timeout_ms);
    bool (*size)(struct chardev *c, uint16_t *columns, uint16_t *rows); /* NULL: has none */
    void (*free)(struct chardev *c);
};

struct chardev {
    const struct chardev_ops *ops;
    struct chardev_front front; /* all NULL while no device is attached: input waits */
};

/* What a backend needs from the process around it; copied. */
struct chardev_host {
    struct loop *loop;
    struct log *log;          /* told when output breaks, and of the terminal's raw mode */
    void (*leave)(void *arg); /* the user typed Ctrl-A X; called in the loop's thread */
    /* Ctrl-A E, likewise; gives a line of at most n - 1 characters for the user. */
    void (*next_engine)(void *arg, char *line, size_t n);
    void *arg;
};

/*
 * Opens a backend by its command-line name:
 *   stdio      standard input and output. A terminal is put into raw mode until chardev_free or a
 *              fatal signal. Ctrl-A X leaves, Ctrl-A E changes the engine, Ctrl-A H prints help,
 *              Ctrl-A Ctrl-A and Ctrl-A A send Ctrl-A; Ctrl-A and any other key send both. The end of the input only ends the input.
 *   file:PATH  output goes to PATH, which is created or truncated; no input.
 *   none       output is dropped, no input.
 * SIGPIPE and SIGXFSZ are ignored from then on unless the process handles them. Returns 0, -EINVAL
 * for an unknown name, -EBUSY when the terminal is taken, or the error of opening PATH.
 */
int chardev_open(struct chardev **out, const char *name, const struct chardev_host *host,
                 struct err *e);

/* As stdio, on the given descriptors, which stay the caller's; -1 for a direction that is absent.
 */
int chardev_open_fds(struct chardev **out, int in, int out_fd, const struct chardev_host *host,
                     struct err *e);

/* Connects a device (the front is copied), or disconnects it when front is NULL. */
void chardev_attach(struct chardev *c, const struct chardev_front *front);

/* Queues up to n bytes for output; returns how many were taken. Less than n means that the buffer
 * is full (the host side does not keep up) and that front.writable will be called once it drained.
 * When the host side is gone for good everything is taken and dropped. */
size_t chardev_write(struct chardev *c, const uint8_t *p, size_t n);

/* The device can take input again after receive returned less than it was offered. */
void chardev_accept_input(struct chardev *c);

/* Writes out what is queued, the device's own buffer included (through front.writable), waiting at
 * most timeout_ms for the host side to take it. 0, or -ETIMEDOUT when something is left. To be
 * called before the VM's devices are quiesced for good, so that no output is lost at exit. */
int chardev_flush(struct chardev *c, unsigned timeout_ms);

/* The size of the terminal behind it, 0 where that is not known; false when there is none. Any
 * thread. */
bool chardev_size(struct chardev *c, uint16_t *columns, uint16_t *rows);

/* To be called after SIGWINCH: tells the front. */
void chardev_resized(struct chardev *c);

/* Closes without waiting and restores the terminal. NULL is allowed. */
void chardev_free(struct chardev *c);

#endif
