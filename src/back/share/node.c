#include "back/share/node.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "back/share/handle.h"
#include "base/util.h"

#define HASH_MIN 256u

/* ---- identity ---- */

int node_stat(int fd, struct statx *st)
{
    if (statx(fd, "", AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT,
              STATX_BASIC_STATS | STATX_BTIME, st) < 0)
        return -errno;
    return 0;
}

void node_key_of(const struct statx *st, struct node_key *key)
{
    memset(key, 0, sizeof(*key));
    key->dev = makedev(st->stx_dev_major, st->stx_dev_minor);
    key->ino = st->stx_ino;
    key->type = st->stx_mode & S_IFMT;
    if (st->stx_mask & STATX_BTIME)
        key->born = st->stx_btime.tv_sec * 1000000000 + st->stx_btime.tv_nsec;
}

static bool same_key(const struct node_key *a, const struct node_key *b)
{
    return !memcmp(a, b, sizeof(*a));
}

static uint32_t hash_of(const struct node_key *k)
{
    uint64_t h = (k->ino ^ k->dev << 40) * 0x9e3779b97f4a7c15u;

    return (uint32_t)(h >> 32);
}

static struct node *find(const struct nodes *t, const struct node_key *key)
{
    struct node *n = t->hash[hash_of(key) & t->mask];

    while (n && !same_key(&n->key, key))
        n = n->hash_next;
    return n;
}

static void hash_add(struct nodes *t, struct node *n)
{
    struct node **head = &t->hash[hash_of(&n->key) & t->mask];

    n->hash_next = *head;
    *head = n;
}

static void hash_del(struct nodes *t, struct node *n)
{
    struct node **p = &t->hash[hash_of(&n->key) & t->mask];

    while (*p != n)
        p = &(*p)->hash_next;
    *p = n->hash_next;
}

/* Doubles the table; without memory the chains get longer instead. */
static void hash_grow(struct nodes *t)
{
    uint32_t size = (t->mask + 1) * 2;
    struct node **old = t->hash, **hash = calloc(size, sizeof(*hash));

    if (!hash)
        return;
    t->hash = hash;
    uint32_t old_size = t->mask + 1;
    t->mask = size - 1;
    for (uint32_t i = 0; i < old_size; i++) {
        for (struct node *n = old[i], *next; n; n = next) {
            next = n->hash_next;
            hash_add(t, n);
        }
    }
    free(old);
}

/* ---- descriptors by time of use ---- */

static void lru_del(struct nodes *t, struct node *n)
{
    *(n->newer ? &n->newer->older : &t->newest) = n->older;
    *(n->older ? &n->older->newer : &t->oldest) = n->newer;
    n->newer = n->older = NULL;
}

static void lru_add(struct nodes *t, struct node *n)
{
    n->older = t->newest;
    n->newer = NULL;
    *(t->newest ? &t->newest->newer : &t->oldest) = n;
    t->newest = n;
}

static void fd_close(struct nodes *t, struct node *n)
{
    if (n->fd < 0)
        return;
    if (n->parent) {
        lru_del(t, n);
        t->open--;
    }
    close(n->fd);
    n->fd = -1;
}

/* Closes what was not used for longest until one more fits. Pinned ones stay, which are few. */
static void fd_room(struct nodes *t)
{
    struct node *n = t->oldest;

    while (t->open >= t->open_max && n) {
        struct node *newer = n->newer;

        if (!n->pins)
            fd_close(t, n);
        n = newer;
    }
}

/* Gives fd to n, which has none. */
static void fd_add(struct nodes *t, struct node *n, int fd)
{
    fd_room(t);
    n->fd = fd;
    t->open++;
    lru_add(t, n);
}

static void fd_used(struct nodes *t, struct node *n)
{
    if (!n->parent || t->newest == n)
        return;
    lru_del(t, n);
    lru_add(t, n);
}

/* ---- nodes ---- */

/* malloc's own share included. */
static size_t cost(const char *name) { return sizeof(struct node) + strlen(name) + 48; }

static struct node *node_new(struct nodes *t, const struct node_key *key, struct node *parent,
                             const char *name)
{
    struct node *n = calloc(1, sizeof(*n));

    if (!n)
        return NULL;
    n->name = strdup(name);
    if (!n->name) {
        free(n);
        return NULL;
    }
    n->key = *key;
    n->fd = -1;
    n->parent = parent;
    if (parent)
        parent->children++;
    t->bytes += cost(name);
    if (t->ids.used > t->mask)
        hash_grow(t);
    hash_add(t, n);
    return n;
}

static void node_free(struct nodes *t, struct node *n)
{
    assert(!n->handles && !n->children);
    if (n->id)
        slots_del(&t->ids, n->id);
    fd_close(t, n);
    hash_del(t, n);
    if (n->parent)
        n->parent->children--;
    t->bytes -= cost(n->name);
    free(n->name);
    free(n);
}

static bool held(const struct node *n)
{
    return n->nlookup || n->children || n->handles || n->pins || !n->parent;
}

void node_drop(struct nodes *t, struct node *n)
{
    while (!held(n)) {
        struct node *parent = n->parent;

        node_free(t, n);
        n = parent;
    }
}

int nodes_init(struct nodes *t, int root_fd, unsigned open_max, size_t bytes_max)
{
    struct node_key key;
    struct statx st;
    int rc = node_stat(root_fd, &st);

    memset(t, 0, sizeof(*t));
    if (rc)
        return rc;
    t->open_max = open_max;
    t->bytes_max = bytes_max;
    t->mask = HASH_MIN - 1;
    t->hash = calloc(HASH_MIN, sizeof(struct node *));
    if (!t->hash)
        return -ENOMEM;
    node_key_of(&st, &key);
    t->root = node_new(t, &key, NULL, "");
    if (t->root)
        t->root->id = slots_add(&t->ids, t->root);
    if (!t->root || !t->root->id) {
        if (t->root)
            node_free(t, t->root);
        free(t->hash);
        slots_free(&t->ids);
        return -ENOMEM;
    }
    assert(t->root->id == NODE_ROOT);
    t->root->fd = root_fd;
    return 0;
}

void nodes_clear(struct nodes *t)
{
    for (uint32_t i = 0; i < t->ids.n; i++) {
        struct node *n = t->ids.v[i].p;

        if (n) {
            n->nlookup = 0;
            n->pins = 0;
        }
    }
    for (uint32_t i = 0; i < t->ids.n; i++) {
        struct node *n = t->ids.v[i].p;

        if (n)
            node_drop(t, n);
    }
    slots_trim(&t->ids, 1);
}

void nodes_fini(struct nodes *t)
{
    nodes_clear(t);
    node_free(t, t->root);
    slots_free(&t->ids);
    free(t->hash);
}

struct node *node_get(const struct nodes *t, uint64_t id) { return slots_get(&t->ids, id); }

/* Is n below (or the same as) top? A guest may make the tree deep, so this is a loop. */
static bool below(const struct node *n, const struct node *top)
{
    while (n && n != top)
        n = n->parent;
    return n != NULL;
}

/* The host may have moved directories so that what we remember is a circle: then the old place is
 * kept, where the file will not be found, until the guest looks up the other one. */
static void move(struct nodes *t, struct node *n, struct node *parent, const char *name)
{
    if (!n->parent || (n->parent == parent && !strcmp(n->name, name)))
        return;
    if (below(parent, n))
        return;

    char *copy = strdup(name);
    if (!copy)
        return;

    struct node *old = n->parent;

    t->bytes -= cost(n->name);
    free(n->name);
    n->name = copy;
    t->bytes += cost(copy);
    n->parent = parent;
    parent->children++;
    old->children--;
    node_drop(t, old);
}

void node_moved(struct nodes *t, const struct node_key *key, struct node *parent, const char *name)
{
    struct node *n = find(t, key);

    if (n)
        move(t, n, parent, name);
}

int node_found(struct nodes *t, struct node *parent, const char *name, int fd,
               const struct statx *st, struct node **out)
{
    struct node_key key;
    struct node *n;

    node_key_of(st, &key);
    n = find(t, &key);
    if (n) {
        move(t, n, parent, name);
        if (n->fd >= 0)
            close(fd);
        else
            fd_add(t, n, fd);
        fd_used(t, n);
        *out = n;
        return 0;
    }

    int rc = -ENFILE;
    if (t->bytes + cost(name) > t->bytes_max)
        goto fail;
    rc = -ENOMEM;
    n = node_new(t, &key, parent, name);
    if (!n)
        goto fail;
    n->id = slots_add(&t->ids, n);
    if (!n->id) {
        node_free(t, n);
        goto fail;
    }
    fd_add(t, n, fd);
    *out = n;
    return 0;

fail:
    close(fd);
    return rc;
}

int node_restore(struct nodes *t, uint64_t id, const struct node_key *key, struct node *parent,
                 const char *name, uint64_t nlookup, struct node **out)
{
    if (find(t, key))
        return -EINVAL;
    if (t->bytes + cost(name) > t->bytes_max)
        return -ENFILE;

    struct node *n = node_new(t, key, parent, name);
    if (!n)
        return -ENOMEM;

    /* No number in a saved session is beyond what this many nodes could have got. */
    int rc = slots_add_at(&t->ids, id, (uint32_t)(t->bytes_max / sizeof(struct node)), n);
    if (rc) {
        node_free(t, n);
        return rc;
    }
    n->id = id;
    n->nlookup = nlookup;
    *out = n;
    return 0;
}

/* ---- reaching them ---- */

int node_open_child(int dirfd, const char *name)
{
    int fd = openat(dirfd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);

    return fd < 0 ? -errno : fd;
}

/* A descriptor that n has anyhow, or -1. */
static int present_fd(const struct node *n)
{
    return n->fd >= 0 ? n->fd : n->handles ? n->handles->fd : -1;
}

/* Opens n in its parent, which has a descriptor, and sees that it is the file it was. */
static int open_node(struct nodes *t, struct node *n)
{
    int fd = node_open_child(present_fd(n->parent), n->name);
    struct node_key key;
    struct statx st;

    if (fd < 0)
        return fd == -ENOENT || fd == -ENOTDIR ? -ESTALE : fd;

    int rc = node_stat(fd, &st);
    if (!rc) {
        node_key_of(&st, &key);
        if (!same_key(&key, &n->key))
            rc = -ESTALE;
    }
    if (rc) {
        close(fd);
        return rc;
    }
    fd_add(t, n, fd);
    return 0;
}

int node_fd(struct nodes *t, struct node *n)
{
    unsigned depth = 0;
    struct node *at = n;

    n->walk = NULL;
    while (present_fd(at) < 0) {
        if (++depth > NODE_DEPTH)
            return -ENAMETOOLONG;
        at->parent->walk = at;
        at = at->parent;
    }
    if (at->fd >= 0)
        fd_used(t, at);
    /* The list has room for several, so the one just opened is there for the next step. */
    while (at != n) {
        at = at->walk;
        int rc = open_node(t, at);
        if (rc)
            return rc;
    }
    n->pins++;
    return present_fd(n);
}

void node_unpin(struct nodes *t, struct node *n)
{
    n->pins--;
    node_drop(t, n);
}

void node_ref(struct node *n)
{
    if (n->nlookup < UINT64_MAX)
        n->nlookup++;
}

void node_forget(struct nodes *t, struct node *n, uint64_t count)
{
    n->nlookup -= MIN(n->nlookup, count);
    node_drop(t, n);
}
