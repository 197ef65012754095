/*
 * Command-line options from one table that serves parsing and help alike. Long options only, as
 * "--name value" or "--name=value"; names are never abbreviated, so that adding one breaks no
 * script. If an option is given twice the last one counts. No locking; pure apart from what `set`
 * does.
 */
#ifndef RING3_CTL_OPTION_H
#define RING3_CTL_OPTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/err.h"

struct option_desc {
    const char *name; /* without the dashes */
    const char *arg;  /* how help names its value; NULL for a flag */
    const char *help; /* one sentence or more; lines are wrapped by '\n' */
    /* val is NULL for a flag and lives as long as argv. The message needs no option name. May be
     * NULL for a flag that the caller asks about by other means (--help). */
    int (*set)(void *cfg, const char *val, struct err *e);
};

/* Parses argv[0..argc) (no program name). Stops with *help set at --help. -EINVAL with e naming the
 * option for anything unknown, incomplete or refused by its set function. */
int option_parse(const struct option_desc *tab, size_t n, int argc, char **argv, void *cfg,
                 bool *help, struct err *e);
/* Parses a value that is itself a list, as "FIRST,name=value,flag": first gets what is before the
 * first comma, the rest is looked up in tab. Two commas in a row stand for one that is part of a
 * text. Texts that set functions are given live during the call only. */
int option_list(const struct option_desc *tab, size_t n, const char *list,
                int (*first)(void *cfg, const char *val, struct err *e), void *cfg, struct err *e);
/* The same for commands with arguments that are no options: up to *nargs of them are stored in
 * args, in order, and *nargs becomes their number. All that follows "--" is one. */
int option_parse_args(const struct option_desc *tab, size_t n, int argc, char **argv, void *cfg,
                      const char **args, int *nargs, bool *help, struct err *e);
/* Prints one paragraph per option. */
void option_help(const struct option_desc *tab, size_t n, FILE *out);

/* Values. 0, or -EINVAL with a message naming the text. */
int option_size(const char *s, uint64_t *bytes, struct err *e); /* 64M, 1G, 2T, 4096 (bytes) */
int option_uint(const char *s, uint64_t max, uint64_t *val, struct err *e);
int option_seconds(const char *s, uint64_t *ns, struct err *e); /* 10, 0.5; more than 0 */

#endif
