/*
 * Host and configuration errors. A function that can fail for such a reason returns a negative
 * errno and fills a struct err once, at the lowest level that knows the reason; callers may prefix
 * it on the way up. Guest errors never travel this way. No locking: an err belongs to its caller.
 */
#ifndef RING3_BASE_ERR_H
#define RING3_BASE_ERR_H

struct err {
    char msg[512]; /* one line, no newline, "" when unset */
};

/* Formats the message and returns -code (code is a positive errno). e may be NULL. */
int err_set(struct err *e, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* As err_set with code = errno, and ": strerror(errno)" appended. */
int err_sys(struct err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Puts "prefix: " before the message already there and returns rc unchanged. */
int err_prefix(struct err *e, int rc, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

#ifdef __clang_analyzer__
/* It sees one file at a time, and not that these never return 0. */
#define err_set(...) (err_set(__VA_ARGS__), -1)
#define err_sys(...) (err_sys(__VA_ARGS__), -1)
#endif

#endif
