#include "ctl/option.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

#define NS_PER_S 1000000000ull
#define SECONDS_MAX 1000000000ull

static const struct option_desc *find(const struct option_desc *tab, size_t n, const char *name,
                                      size_t len)
{
    for (size_t i = 0; i < n; i++) {
        if (strlen(tab[i].name) == len && !memcmp(tab[i].name, name, len))
            return &tab[i];
    }
    return NULL;
}

int option_parse(const struct option_desc *tab, size_t n, int argc, char **argv, void *cfg,
                 bool *help, struct err *e)
{
    int nargs = 0;

    return option_parse_args(tab, n, argc, argv, cfg, NULL, &nargs, help, e);
}

int option_parse_args(const struct option_desc *tab, size_t n, int argc, char **argv, void *cfg,
                      const char **args, int *nargs, bool *help, struct err *e)
{
    int max = *nargs;
    bool options = true;

    *help = false;
    *nargs = 0;
    for (int i = 0; i < argc; i++) {
        const char *a = argv[i], *eq = strchr(a, '='), *val = NULL;
        size_t len = eq ? (size_t)(eq - a) : strlen(a);
        const struct option_desc *o;
        int rc;

        if (!options || a[0] != '-') {
            if (*nargs == max)
                return err_set(e, EINVAL, "unexpected argument '%s'", a);
            args[(*nargs)++] = a;
            continue;
        }
        if (!strcmp(a, "--help") || !strcmp(a, "-h")) {
            *help = true;
            return 0;
        }
        if (max && !strcmp(a, "--")) {
            options = false;
            continue;
        }
        o = len > 2 && a[1] == '-' ? find(tab, n, a + 2, len - 2) : NULL;
        if (!o)
            return err_set(e, EINVAL, "unknown option '%.*s'", (int)len, a);
        if (o->arg) {
            val = eq ? eq + 1 : i + 1 < argc ? argv[++i] : NULL;
            if (!val)
                return err_set(e, EINVAL, "--%s: needs a value (%s)", o->name, o->arg);
        } else if (eq) {
            return err_set(e, EINVAL, "--%s: takes no value", o->name);
        }
        rc = o->set(cfg, val, e);
        if (rc)
            return err_prefix(e, rc, "--%s", o->name);
    }
    return 0;
}

/* Cuts the next item off *list, in place; what doubled commas stand for moves down. */
static char *next_item(char **list)
{
    char *item = *list, *to = item, *from = item;

    while (*from && (*from != ',' || from[1] == ',')) {
        from += *from == ',';
        *to++ = *from++;
    }
    *list = *from ? from + 1 : NULL;
    *to = '\0';
    return item;
}

static int set_item(const struct option_desc *tab, size_t n, char *item, void *cfg, struct err *e)
{
    char *val = strchr(item, '=');
    const struct option_desc *o;
    int rc;

    if (val)
        *val++ = '\0';
    o = find(tab, n, item, strlen(item));
    if (!o)
        return err_set(e, EINVAL, "unknown item '%s'", item);
    if (o->arg && !val)
        return err_set(e, EINVAL, "%s: needs a value (%s)", o->name, o->arg);
    if (!o->arg && val)
        return err_set(e, EINVAL, "%s: takes no value", o->name);
    rc = o->set(cfg, val, e);
    return rc ? err_prefix(e, rc, "%s", o->name) : 0;
}

int option_list(const struct option_desc *tab, size_t n, const char *list,
                int (*first)(void *cfg, const char *val, struct err *e), void *cfg, struct err *e)
{
    char *copy = strdup(list), *rest = copy;
    int rc;

    if (!copy)
        return err_set(e, ENOMEM, "no memory");
    rc = first(cfg, next_item(&rest), e);
    while (rest && !rc)
        rc = set_item(tab, n, next_item(&rest), cfg, e);
    free(copy);
    return rc;
}

void option_help(const struct option_desc *tab, size_t n, FILE *out)
{
    for (size_t i = 0; i < n; i++) {
        const char *p = tab[i].help;

        fprintf(out, "  --%s%s%s\n", tab[i].name, tab[i].arg ? " " : "",
                tab[i].arg ? tab[i].arg : "");
        while (*p) {
            size_t len = strcspn(p, "\n");

            fprintf(out, "        %.*s\n", (int)len, p);
            p += len + (p[len] == '\n');
        }
    }
    fprintf(out, "  --help\n        Print this help.\n");
}

/* Digits only: strtoull would also take signs, spaces and wrap-around. */
static int parse_digits(const char *s, const char **end, uint64_t *val)
{
    uint64_t v = 0;

    if (!isdigit((unsigned char)*s))
        return -EINVAL;
    for (; isdigit((unsigned char)*s); s++) {
        unsigned d = (unsigned)(*s - '0');

        if (v > (UINT64_MAX - d) / 10)
            return -ERANGE;
        v = v * 10 + d;
    }
    *val = v;
    *end = s;
    return 0;
}

int option_size(const char *s, uint64_t *bytes, struct err *e)
{
    static const char units[] = "KMGT";
    const char *end = s, *u;
    uint64_t v = 0;
    unsigned shift = 0;
    int rc = parse_digits(s, &end, &v);

    if (!rc && *end) {
        u = strchr(units, toupper((unsigned char)*end));
        rc = u && end[1] == '\0' ? 0 : -EINVAL;
        shift = u ? (unsigned)(u - units + 1) * 10 : 0;
    }
    if (rc == -EINVAL)
        return err_set(e, EINVAL, "'%s' is not a size (examples: 512M, 2G)", s);
    if (rc || v > UINT64_MAX >> shift)
        return err_set(e, EINVAL, "'%s' is too large", s);
    *bytes = v << shift;
    return 0;
}

int option_uint(const char *s, uint64_t max, uint64_t *val, struct err *e)
{
    const char *end = s;
    int rc = parse_digits(s, &end, val);

    if (rc == -EINVAL || (!rc && *end))
        return err_set(e, EINVAL, "'%s' is not a number", s);
    if (rc || *val > max)
        return err_set(e, EINVAL, "'%s' is too large", s);
    return 0;
}

int option_seconds(const char *s, uint64_t *ns, struct err *e)
{
    const char *end = s;
    uint64_t sec = 0, frac = 0, unit = NS_PER_S;
    int rc = parse_digits(s, &end, &sec);

    if (!rc && *end == '.' && isdigit((unsigned char)end[1])) {
        for (end++; isdigit((unsigned char)*end); end++) {
            unit /= 10;
            frac += unit * (unsigned)(*end - '0');
        }
    }
    if (rc == -EINVAL || (!rc && *end))
        return err_set(e, EINVAL, "'%s' is not a number of seconds", s);
    if (rc || sec > SECONDS_MAX)
        return err_set(e, EINVAL, "'%s' is too large", s);
    *ns = sec * NS_PER_S + frac;
    return *ns ? 0 : err_set(e, EINVAL, "'%s' is not more than zero", s);
}
