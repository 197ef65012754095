/* Error messages: formatted once where the reason is known, prefixed on the way up. */
#include "base/err.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* The analyser's. */
#undef err_set
#undef err_sys

/* Messages quote file names and file contents, which may hold anything; they stay one line. */
static void make_printable(char *s)
{
    for (; *s; s++)
        if ((unsigned char)*s < 0x20 || *s == 0x7f)
            *s = '?';
}

int err_set(struct err *e, int code, const char *fmt, ...)
{
    va_list ap;

    if (e) {
        va_start(ap, fmt);
        vsnprintf(e->msg, sizeof(e->msg), fmt, ap);
        va_end(ap);
        make_printable(e->msg);
    }
    return -code;
}

int err_sys(struct err *e, const char *fmt, ...)
{
    int code = errno;
    va_list ap;

    if (e) {
        size_t n;

        va_start(ap, fmt);
        vsnprintf(e->msg, sizeof(e->msg), fmt, ap);
        va_end(ap);
        n = strlen(e->msg);
        snprintf(e->msg + n, sizeof(e->msg) - n, ": %s", strerrordesc_np(code));
        make_printable(e->msg);
    }
    return -code;
}

int err_prefix(struct err *e, int rc, const char *fmt, ...)
{
    char old[sizeof(e->msg)];
    va_list ap;
    size_t n;

    if (!e)
        return rc;
    memcpy(old, e->msg, sizeof(old));
    va_start(ap, fmt);
    vsnprintf(e->msg, sizeof(e->msg), fmt, ap);
    va_end(ap);
    n = strlen(e->msg);
    snprintf(e->msg + n, sizeof(e->msg) - n, ": %s", old);
    make_printable(e->msg);
    return rc;
}
