/*
 * A share's session as bytes. Parents come before their children, so that loading is one pass and
 * what it makes is a tree, whatever the bytes are.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "back/share/request.h"
#include "base/util.h"

#define SESSION_VERSION 1u

struct saved_head {
    uint32_t version, started;
    uint32_t nnodes, nhandles;
    uint32_t node_floor, handle_floor; /* generations for new numbers */
};

struct saved_node {
    uint64_t id, parent, nlookup;
    struct node_key key;
    uint32_t name_len, zero; /* the name follows, without a NUL */
};

struct saved_handle {
    uint64_t id, node;
    uint32_t flags, dir;
};

/* ---- saving ---- */

struct writer {
    uint8_t *buf;
    size_t len, cap;
    struct saved_head head;
};

static void put(struct writer *w, const void *p, size_t len)
{
    memcpy(w->buf + w->len, p, len);
    w->len += len;
}

static size_t node_size(const struct node *n)
{
    return sizeof(struct saved_node) + strlen(n->name);
}

static void put_node(struct writer *w, const struct node *n)
{
    struct saved_node out = {.id = n->id,
                             .parent = n->parent->id,
                             .nlookup = n->nlookup,
                             .key = n->key,
                             .name_len = (uint32_t)strlen(n->name)};

    put(w, &out, sizeof(out));
    put(w, n->name, out.name_len);
    w->head.nnodes++;
}

/* Puts n and those of its ancestors that are not there yet, or none of them if they do not fit. */
static bool put_branch(struct writer *w, struct node *n)
{
    struct node *top = NULL;
    size_t len = 0;

    for (; n->parent && !n->saved; n = n->parent) {
        len += node_size(n);
        n->walk = top;
        top = n;
    }
    if (len > w->cap - w->len)
        return false;
    for (; top; top = top->walk) {
        put_node(w, top);
        top->saved = true;
    }
    return true;
}

static void put_handle(struct writer *w, const struct handle *h)
{
    struct saved_handle out = {.id = h->id, .node = h->node->id, .flags = h->flags, .dir = h->dir};

    put(w, &out, sizeof(out));
    w->head.nhandles++;
}

int64_t share_save(struct share *s, uint8_t *buf, size_t cap)
{
    const struct slots *nodes = &s->nodes.ids, *handles = &s->handles.ids;
    struct writer w = {buf,
                       sizeof(w.head),
                       cap,
                       {.version = SESSION_VERSION,
                        .started = s->started,
                        .node_floor = slots_fresh(nodes),
                        .handle_floor = slots_fresh(handles)}};
    size_t tail = handles->used * sizeof(struct saved_handle);

    if (cap < sizeof(w.head) + tail)
        return -ENOSPC;
    w.cap -= tail;
    for (uint32_t i = 0; i < nodes->n; i++) {
        struct node *n = nodes->v[i].p;

        if (n)
            n->saved = false;
    }
    for (uint32_t i = 0; i < handles->n; i++) {
        const struct handle *h = handles->v[i].p;

        if (h && !put_branch(&w, h->node))
            return -ENOSPC;
    }
    for (struct node *n = s->nodes.newest; n; n = n->older)
        put_branch(&w, n);
    for (uint32_t i = 0; i < nodes->n; i++) {
        if (nodes->v[i].p)
            put_branch(&w, nodes->v[i].p);
    }
    w.cap = cap;
    for (uint32_t i = 0; i < handles->n; i++) {
        if (handles->v[i].p)
            put_handle(&w, handles->v[i].p);
    }
    memcpy(buf, &w.head, sizeof(w.head));
    return (int64_t)w.len;
}

/* ---- loading ---- */

struct reader {
    const uint8_t *p;
    size_t left;
};

static bool take(struct reader *in, void *p, size_t len)
{
    if (len > in->left)
        return false;
    memcpy(p, in->p, len);
    in->p += len;
    in->left -= len;
    return true;
}

static int load_node(struct share *s, struct reader *in)
{
    char name[NODE_NAME_MAX + 1] = "";
    struct saved_node n;

    if (!take(in, &n, sizeof(n)) || n.name_len > NODE_NAME_MAX || !take(in, name, n.name_len))
        return -EINVAL;

    struct node *parent = node_get(&s->nodes, n.parent), *made;
    if (strlen(name) != n.name_len || request_name_check(name) || n.key.zero || n.zero || !parent ||
        !S_ISDIR(parent->key.type) || n.key.type & ~(uint32_t)S_IFMT)
        return -EINVAL;
    return node_restore(&s->nodes, n.id, &n.key, parent, name, n.nlookup, &made);
}

/* Opens the file again if it is still there. */
static int reopen(struct share *s, struct node *n, uint32_t flags, bool dir)
{
    struct request r = {.s = s};
    int fd;

    if (dir) {
        fd = request_dir_fd(&r, n);
        if (fd >= 0)
            fd = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    } else {
        fd = request_open(&r, n, (int)flags);
    }
    for (unsigned i = 0; i < r.npins; i++)
        r.pin[i]->pins--; /* stays for its handle */
    return fd;
}

static int load_handle(struct share *s, struct reader *in)
{
    struct saved_handle h;
    struct handle *made;

    if (!take(in, &h, sizeof(h)))
        return -EINVAL;

    struct node *n = node_get(&s->nodes, h.node);
    if (!n || h.dir > 1 || h.dir != S_ISDIR(n->key.type) || h.flags & O_TRUNC ||
        request_flags_check(s, h.flags))
        return -EINVAL;

    int fd = reopen(s, n, h.flags, h.dir);
    return handle_restore(&s->handles, h.id, n, MAX(fd, -1), h.flags, h.dir, &made);
}

static int load(struct share *s, struct reader *in)
{
    struct saved_head head;
    int rc = 0;

    if (!take(in, &head, sizeof(head)) || head.version != SESSION_VERSION || head.started > 1)
        return -EINVAL;
    for (uint32_t i = 0; !rc && i < head.nnodes; i++)
        rc = load_node(s, in);
    for (uint32_t i = 0; !rc && i < head.nhandles; i++)
        rc = load_handle(s, in);
    if (!rc && in->left)
        rc = -EINVAL;
    slots_relink(&s->nodes.ids, head.node_floor);
    slots_relink(&s->handles.ids, head.handle_floor);
    s->started = head.started;
    return rc;
}

int share_load(struct share *s, const uint8_t *buf, size_t len, struct err *e)
{
    struct reader in = {buf, len};

    share_reset(s);

    int rc = load(s, &in);
    if (rc) {
        share_reset(s);
        return err_set(e, -rc, "the saved state of a shared directory is damaged");
    }
    /* What nothing holds was not saved by us. */
    for (uint32_t i = 0; i < s->nodes.ids.n; i++) {
        if (s->nodes.ids.v[i].p)
            node_drop(&s->nodes, s->nodes.ids.v[i].p);
    }
    return 0;
}
