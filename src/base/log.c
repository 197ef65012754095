/* Log lines. Each is one write(2), so lines of several threads do not mix. */
#include "base/log.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/util.h"

#define LINE_MAX_TEXT 1024

static const char *const level_names[] = {
    [LOG_ERROR] = "error",
    [LOG_WARN] = "warn",
    [LOG_INFO] = "info",
    [LOG_DEBUG] = "debug",
};

/* What stands between "ring3: " and the text; ordinary messages have nothing there. */
static const char *const level_tags[] = {
    [LOG_ERROR] = "error: ",
    [LOG_WARN] = "warning: ",
    [LOG_INFO] = "",
    [LOG_DEBUG] = "debug: ",
};

void log_init(struct log *l, enum log_level level, int fd)
{
    l->level = level;
    l->fd = fd;
    atomic_init(&l->raw, false);
    atomic_init(&l->stalled, false);
}

void log_set_raw(struct log *l, bool raw) { atomic_store(&l->raw, raw); }

int log_level_parse(const char *s, enum log_level *out)
{
    for (size_t i = 0; i < ARRAY_LEN(level_names); i++) {
        if (!strcmp(s, level_names[i])) {
            *out = (enum log_level)i;
            return 0;
        }
    }
    return -EINVAL;
}

/* Can a line be written without blocking? A pipe that polls as writable takes PIPE_BUF bytes. */
static bool writable(struct log *l)
{
    struct pollfd p = {.fd = l->fd, .events = POLLOUT};
    int n;

    do
        n = poll(&p, 1, atomic_load(&l->stalled) ? 0 : LOG_STALL_MS);
    while (n < 0 && errno == EINTR);
    atomic_store(&l->stalled, n == 0);
    return n != 0;
}

/* All of buf, or as much as the reader of the log takes: there is nobody to report a failure to. */
static void write_all(struct log *l, const char *buf, size_t len)
{
    while (len && writable(l)) {
        ssize_t n = write(l->fd, buf, len);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return;
        buf += n;
        len -= (size_t)n;
    }
}

void log_vtagged(struct log *l, const char *tag, const char *fmt, va_list ap)
{
    char line[LINE_MAX_TEXT + 8];
    int saved = errno;
    size_t len, i;
    int n;

    n = snprintf(line, LINE_MAX_TEXT, "ring3: %s", tag);
    len = MIN((size_t)n, LINE_MAX_TEXT - 1);
    n = vsnprintf(line + len, LINE_MAX_TEXT - len, fmt, ap);
    if (n < 0)
        n = 0;
    if ((size_t)n >= LINE_MAX_TEXT - len) {
        len = LINE_MAX_TEXT - 1;
        memcpy(line + len, "...", 3);
        len += 3;
    } else {
        len += (size_t)n;
    }
    /* The text may quote the guest, which must not get at the user's terminal. */
    for (i = 0; i < len; i++)
        if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
            line[i] = '?';
    if (atomic_load(&l->raw))
        line[len++] = '\r';
    line[len++] = '\n';
    write_all(l, line, len);
    errno = saved;
}

void log_vmsg(struct log *l, enum log_level lv, const char *fmt, va_list ap)
{
    if (lv <= l->level)
        log_vtagged(l, level_tags[lv], fmt, ap);
}

void log_msg(struct log *l, enum log_level lv, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    log_vmsg(l, lv, fmt, ap);
    va_end(ap);
}

void log_limited(struct log *l, struct log_limit *lim, enum log_level lv, const char *fmt, ...)
{
    struct timespec ts;
    uint64_t now, second;
    va_list ap;

    if (lv > l->level)
        return;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    now = (uint64_t)ts.tv_sec;
    second = atomic_load(&lim->second);
    /* Whoever moves the second on reports what the old one suppressed. */
    if (second != now && atomic_compare_exchange_strong(&lim->second, &second, now)) {
        uint32_t old = atomic_exchange(&lim->count, 0);

        if (old > LOG_LIMIT_BURST)
            log_msg(l, lv, "%u more messages like the next were suppressed", old - LOG_LIMIT_BURST);
    }
    if (atomic_fetch_add(&lim->count, 1) >= LOG_LIMIT_BURST)
        return;
    va_start(ap, fmt);
    log_vmsg(l, lv, fmt, ap);
    va_end(ap);
}
