/*
 * The report of a difference between the interpreter, run dry (dry.h), and another engine: lines of text, most of them a place of
 * the state and three values of it: before, as the interpreter has it, as the other engine has it. A row in which the
 * last two agree is left out.
 *
 * On the vCPU's own thread. Private to src/engine.
 */
#ifndef RING3_ENGINE_INTERP_REPORT_H
#define RING3_ENGINE_INTERP_REPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/interp/dry.h"

#define REPORT_BYTES 16384u

struct log;

/* All zero to begin with. What has no room is left out. */
struct report {
    size_t len;
    char text[REPORT_BYTES];
};

void report_say(struct report *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void report_row(struct report *r, const char *name, uint64_t before, uint64_t want, uint64_t got);
/* n bytes, in rows of 8. */
void report_bytes(struct report *r, const char *name, const void *before, const void *want, const void *got, size_t n);
void report_gprs(struct report *r, const uint64_t before[16], const uint64_t want[16], const uint64_t got[16]);
/* Vector and x87 state: each points to DRY_VEC_BYTES of it. */
void report_vec(struct report *r, const void *before, const void *want, const void *got);
/* The instruction that ran from p, if one did. */
void report_insn(struct report *r, const struct dry_point *p);
/* Words of memory that are not what they should be at point k; the first few. */
void report_words(struct report *r, const struct dry *d, unsigned k);
void report_log(const struct report *r, struct log *log);

/* Is a word of guest memory as expected where it was stored to? A dry_word_fn. */
bool report_same_word(void *arg, const struct dry_word *w, uint64_t expected);

#endif
