/* Trace events: the table, choosing by glob, and writing a line. */
#include "base/trace.h"

#include <errno.h>
#include <fnmatch.h>
#include <stdarg.h>
#include <string.h>

#define GLOB_MAX 128

struct trace_info {
    const char *name, *help;
};

#define TRACE_INFO(n, h) [TRACE_##n] = {.name = #n, .help = (h)},
static const struct trace_info events[] = {TRACE_EVENTS(TRACE_INFO)};
#undef TRACE_INFO

void trace_init(struct trace *t, struct log *log)
{
    memset(t, 0, sizeof(*t));
    t->log = log;
}

int trace_enable(struct trace *t, const char *globs, struct err *e)
{
    uint8_t on[ARRAY_LEN(events)] = {0};
    const char *p = globs;

    for (;;) {
        size_t len = strcspn(p, ",");
        char glob[GLOB_MAX];
        bool hit = false;

        if (len >= sizeof(glob))
            return err_set(e, EINVAL, "trace pattern is longer than %d characters", GLOB_MAX - 1);
        memcpy(glob, p, len);
        glob[len] = '\0';
        for (size_t i = 0; i < ARRAY_LEN(events); i++) {
            if (!fnmatch(glob, events[i].name, 0)) {
                on[i] = 1;
                hit = true;
            }
        }
        if (!hit)
            return err_set(e, EINVAL, "no trace event matches '%s'", glob);
        if (!p[len])
            break;
        p += len + 1;
    }
    for (size_t i = 0; i < ARRAY_LEN(events); i++)
        t->on[i] |= on[i];
    return 0;
}

void trace_list(FILE *out)
{
    for (size_t i = 0; i < ARRAY_LEN(events); i++)
        fprintf(out, "%-20s %s\n", events[i].name, events[i].help);
}

void trace_emit(struct trace *t, enum trace_event ev, const char *fmt, ...)
{
    char tag[64];
    va_list ap;

    snprintf(tag, sizeof(tag), "trace: %s: ", events[ev].name);
    va_start(ap, fmt);
    log_vtagged(t->log, tag, fmt, ap);
    va_end(ap);
}
