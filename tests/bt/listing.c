/*
 * Golden listings: what the translator makes of typical guest code, in text files that a change of
 * the generated code changes with it, so that reviews see what it does to code quality.
 *
 *   listing DIR             compares with DIR/NAME.txt, and shows the differences
 *   listing --update DIR    writes those files
 *
 * Nothing is run: a snippet's blocks are decoded and translated, and all its branches are still
 * unlinked.
 */
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "kit.h"
#include "listing_guest.h"
#include "listing_host.h"

#include "engine/interp/sync.h"

#define PLACE (GUEST_CODE + 0x100) /* so that offsets in the page are told from 0 */

static _Noreturn void die(const char *what, const char *name)
{
    fprintf(stderr, "listing: %s %s: %s\n", what, name, strerror(errno));
    exit(2);
}

/* The block at rip, or NULL if there is no code. */
static struct block *block_at(struct world *w, uint64_t rip)
{
    struct cpu *c = w->vcpu[0].priv;
    struct block *volatile b = NULL;
    struct cpu_state s;

    kit_state(&s, 0, rip, false);
    world_set(w, 0, &s);
    sync_enter(c);
    if (!setjmp(c->fault))
        b = cache_lookup(c, BLOCK_MAX_INSNS);
    sync_leave(c);
    c->deliver = false;
    return b;
}

/* The version of a loop for all rounds but the first: for the link back that was added last. Lock held. */
static struct tblock *later_rounds(struct bt *bt, struct cpu *c, struct tblock *t)
{
    uint32_t n = bt->nlink - 1;

    while (n && !(bt->link[n].from == t && bt->link[n].again))
        n--;
    return n ? bt_version(bt, c, t, n) : t;
}

static bool list_block(FILE *out, struct world *w, struct block *b, bool entry)
{
    struct cpu *c = w->vcpu[0].priv;
    struct bt *bt = c->shared->bt;
    bool ok = false;

    cache_lock(bt->cache);
    b->t = bt_translate(bt, c, b, NULL);
    if (b->t)
        ok = listing_host(out, bt->tr, entry);
    else
        fprintf(stderr, "not translated\n");
    if (ok && b->t->loops) {
        fprintf(out, "\nlater rounds\n");
        ok = later_rounds(bt, c, b->t)->round && listing_host(out, bt->tr, entry);
    }
    cache_unlock(bt->cache);
    return ok;
}

/* The listing as text, to be freed, or NULL. */
static char *list(const struct snippet *s)
{
    struct world *w = guest_new(1);
    uint64_t end = kit_bytes(w, PLACE, s->code, (size_t)(s->end - s->code));
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    bool ok = true;

    if (!out)
        die("listing", s->name);
    guest_code(w, end, HLT); /* ends the last block */
    /* The same on every host, for nothing is run. */
    memset(w->policy.feature, 0xff, sizeof(w->policy.feature));
    fprintf(out, "%s\n", s->guards);
    for (uint64_t at = PLACE; at < end && ok;) {
        struct block *b = block_at(w, at);

        fprintf(out, "\n");
        ok = b && list_block(out, w, b, s->entry);
        at += b ? b->bytes : 0;
    }
    fclose(out);
    world_free(w);
    if (ok)
        return text;
    fprintf(stderr, "%s: so far\n%s", s->name, text);
    free(text);
    return NULL;
}

/* ---- the files ---- */

static char *path_of(const char *dir, const char *name)
{
    char *path;

    if (asprintf(&path, "%s/%s.txt", dir, name) < 0)
        die("path", name);
    return path;
}

static bool update(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");

    if (!f || fputs(text, f) == EOF || fclose(f))
        die("writing", path);
    return true;
}

/* The file's content, to be freed; empty if it is not there. */
static char *content(const char *path)
{
    FILE *f = fopen(path, "r");
    char *text = NULL;
    size_t size = 0;

    if (!f || getdelim(&text, &size, '\0', f) < 0) {
        free(text);
        text = strdup("");
    }
    if (f)
        fclose(f);
    return text;
}

static void show_difference(const char *path, const char *text)
{
    FILE *diff;

    fflush(stdout);
    setenv("GOLDEN", path, 1);
    diff = popen("diff -uN --label \"$GOLDEN\" --label now \"$GOLDEN\" -", "w");
    if (!diff)
        die("comparing", path);
    fputs(text, diff);
    pclose(diff);
}

static bool compare(const char *path, const char *text)
{
    char *golden = content(path);
    bool same = golden && !strcmp(golden, text);

    free(golden);
    if (!same)
        show_difference(path, text);
    return same;
}

/* Files whose snippet is no more: removed, or a difference. */
static bool strays(const char *dir, bool updating)
{
    DIR *d = opendir(dir);
    const struct dirent *e;
    bool ok = true;

    if (!d)
        die("reading", dir);
    while ((e = readdir(d))) {
        size_t n = strlen(e->d_name);
        const struct snippet *s = snippets;

        if (n < 4 || strcmp(e->d_name + n - 4, ".txt"))
            continue;
        while (s->name && (strlen(s->name) != n - 4 || strncmp(s->name, e->d_name, n - 4)))
            s++;
        if (s->name)
            continue;
        ok = updating && !unlinkat(dirfd(d), e->d_name, 0);
        printf("%s: no snippet of that name%s\n", e->d_name, ok ? "; removed" : "");
    }
    closedir(d);
    return ok;
}

int main(int argc, char **argv)
{
    bool updating = argc == 3 && !strcmp(argv[1], "--update"), ok;
    const char *dir = argv[argc - 1];
    unsigned bad = 0, n = 0;

    if (argc != 2 && !updating) {
        fprintf(stderr, "usage: listing [--update] DIR\n");
        return 2;
    }
    setenv("RING3_TEST_ENGINE", "bt", 1);
    for (const struct snippet *s = snippets; s->name; s++, n++) {
        char *text = list(s), *path = path_of(dir, s->name);

        bad += !text || !(updating ? update : compare)(path, text);
        free(path);
        free(text);
    }
    ok = strays(dir, updating) && !bad;
    printf("%u listings, %u %s\n", n, bad, updating ? "failed" : "differ");
    if (!ok && !updating)
        printf("If that is what the change is to do: ninja -C build golden, and commit it with the "
               "change.\n");
    return !ok;
}
