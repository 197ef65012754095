#include "machine/boot/grubcfg.h"

#include <stdlib.h>
#include <string.h>

#include "base/util.h"

static bool blank(char c) { return c == ' ' || c == '\t'; }

/* The next word of a line, quotes around it or its parts taken off, into w; NULL at the line's end. */
static const char *word(const char *p, char *w, size_t size)
{
    char quote = 0;
    size_t n = 0;

    while (blank(*p))
        p++;
    if (!*p || *p == '\n' || *p == '#')
        return NULL;
    for (; *p && *p != '\n' && (quote || !blank(*p)); p++) {
        if (quote && *p == quote)
            quote = 0;
        else if (!quote && (*p == '\'' || *p == '"'))
            quote = *p;
        else if (n < size - 1)
            w[n++] = *p;
    }
    w[n] = 0;
    return p;
}

/* The rest of the line with what only GRUB understands left out: variables and devices in parentheses. Allocated. */
static char *words(const char *p)
{
    size_t len = strcspn(p, "\n"), n = 0;
    char *out = malloc(len + 1), *w = malloc(len + 1);

    while (out && w && (p = word(p, w, len + 1))) {
        const char *s = w;

        if (*s == '(')
            s = strchr(s, ')') ? strchr(s, ')') + 1 : s;
        if (*s == '$' || !*s)
            continue;
        if (n)
            out[n++] = ' ';
        memcpy(out + n, s, strlen(s));
        n += strlen(s);
    }
    if (out && w)
        out[n] = 0;
    free(w);
    return out;
}

/* `set default="N"`: the number, or -1 when something else is chosen. */
static long default_entry(const char *text)
{
    long n = -1;

    for (const char *p = text; p; p = strchr(p, '\n')) {
        char w[32], *end;

        p += *p == '\n';
        const char *q = word(p, w, sizeof(w));
        if (!q || strcmp(w, "set") || !(q = word(q, w, sizeof(w))) || strncmp(w, "default=", 8))
            continue;
        n = strtol(w + 8, &end, 10);
        if (end == w + 8 || *end || n < 0)
            n = -1;
    }
    return n;
}

static bool starts(const char *w, const char *what) { return !strncmp(w, what, strlen(what)); }

void grub_entry_free(struct grub_entry *g)
{
    free(g->kernel);
    free(g->cmdline);
    free(g->initrds);
    *g = (struct grub_entry){0};
}

static bool complete(struct grub_entry *g)
{
    if (!g->kernel)
        return false;
    if (!g->cmdline)
        g->cmdline = strdup("");
    if (!g->initrds)
        g->initrds = strdup("");
    return g->cmdline && g->initrds;
}

/* The entry with this number on the outermost level, which may be a submenu: its first. -1: any. */
static bool find(const char *text, long want, struct grub_entry *g)
{
    long n = -1;
    int depth = 0; /* of braces */

    for (const char *p = text; p; p = strchr(p, '\n')) {
        char w[128];

        p += *p == '\n';
        const char *q = word(p, w, sizeof(w)), *end = p + strcspn(p, "\n");
        if (!q)
            continue;
        if (!strcmp(w, "menuentry") || !strcmp(w, "submenu")) {
            if (depth == 0)
                n++;
            if (complete(g))
                return true;
            grub_entry_free(g);
        } else if (n >= 0 && (want < 0 || n == want) && starts(w, "linux")) {
            char path[512];

            grub_entry_free(g);
            if (word(q, path, sizeof(path))) {
                g->kernel = words(q);
                if (g->kernel)
                    g->kernel[strcspn(g->kernel, " ")] = 0;
                g->cmdline = words(word(q, path, sizeof(path)));
            }
        } else if (g->kernel && !g->initrds && starts(w, "initrd")) {
            g->initrds = words(q);
        }
        while (end > p && (blank(end[-1]) || end[-1] == '\r'))
            end--;
        /* Braces as the scripts that write this file place them: at the ends of lines. */
        if (end > p && end[-1] == '{')
            depth++;
        else if (!strcmp(w, "}") && depth > 0)
            depth--;
    }
    return complete(g);
}

bool grubcfg_parse(const char *text, struct grub_entry *out)
{
    long want = default_entry(text);

    *out = (struct grub_entry){0};
    if (want >= 0 && find(text, want, out))
        return true;
    grub_entry_free(out);
    if (find(text, -1, out))
        return true;
    grub_entry_free(out);
    return false;
}
