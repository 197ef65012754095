/*
 * Trace events: declared one a line in trace-events.h (name, what it tells), cost one byte test
 * when off, and are chosen by glob on the command line (--trace 'uart*,lapic_eoi'). The name of an
 * event is its subject's file name and a verb: uart_write, lapic_eoi. Any thread may emit; the set
 * of enabled events changes only before vCPUs run.
 */
#ifndef RING3_BASE_TRACE_H
#define RING3_BASE_TRACE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/err.h"
#include "base/log.h"
#include "base/trace-events.h"
#include "base/util.h"

#define TRACE_ENUM(name, help) TRACE_##name,
enum trace_event { TRACE_EVENTS(TRACE_ENUM) TRACE_COUNT };
#undef TRACE_ENUM

struct trace {
    uint8_t on[TRACE_COUNT + 1];
    struct log *log;
};

void trace_init(struct trace *t, struct log *log); /* all off */
/* Turns on all events that match any glob of a comma-separated list; -EINVAL if one matches none. */
int trace_enable(struct trace *t, const char *globs, struct err *e);
void trace_list(FILE *out); /* one line per event: name, help */
void trace_emit(struct trace *t, enum trace_event ev, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* trace(dev->ctx->trace, uart_write, "off=%u val=%#x", off, val); */
#define trace(t, ev, ...)                                                                          \
    do {                                                                                           \
        if (unlikely((t)->on[TRACE_##ev]))                                                         \
            trace_emit((t), TRACE_##ev, __VA_ARGS__);                                              \
    } while (0)

#endif
