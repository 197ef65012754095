/*
 * Log lines for the person who runs the VM. One struct log per machine (no globals); any thread
 * may call. Lines go to stderr as "ring3: [level: ]text". With the serial console on the same
 * terminal in raw mode the line ends in \r\n, which log_set_raw() switches.
 *
 * A reader of stderr that stops reading delays the VM once, by LOG_STALL_MS; then lines are dropped
 * until it reads again. Blocking for good would leave the VM deaf to signals.
 */
#ifndef RING3_BASE_LOG_H
#define RING3_BASE_LOG_H

#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define LOG_STALL_MS 1000

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };

struct log {
    enum log_level level; /* messages above it are dropped */
    int fd;               /* where lines go; not owned */
    _Atomic bool raw;     /* terminal is in raw mode: end lines with \r\n */
    _Atomic bool stalled; /* nobody reads fd */
};

void log_init(struct log *l, enum log_level level, int fd);
void log_set_raw(struct log *l, bool raw);
/* Parses "error", "warn", "info", "debug"; returns 0 or -EINVAL. */
int log_level_parse(const char *s, enum log_level *out);

void log_msg(struct log *l, enum log_level lv, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
void log_vmsg(struct log *l, enum log_level lv, const char *fmt, va_list ap);

/* Writes "ring3: " tag text whatever the level (traces, which the user chose by name). */
void log_vtagged(struct log *l, const char *tag, const char *fmt, va_list ap)
    __attribute__((format(printf, 3, 0)));

/* For what a guest can provoke: at most LOG_LIMIT_BURST lines per second through one struct, then a
 * count with the first line of a later second. Starts zeroed. */
#define LOG_LIMIT_BURST 10u
struct log_limit {
    _Atomic uint64_t second;
    _Atomic uint32_t count;
};
void log_limited(struct log *l, struct log_limit *lim, enum log_level lv, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

#endif
