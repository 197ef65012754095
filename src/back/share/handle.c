#include "back/share/handle.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

static struct handle *make(struct node *n, int fd, uint32_t flags, bool dir)
{
    struct handle *h = calloc(1, sizeof(*h));

    if (!h)
        return NULL;
    h->node = n;
    h->fd = fd;
    h->flags = flags;
    h->dir = dir;
    return h;
}

/* Handles with a descriptor come first: node_fd takes the first one's. */
static void link_to_node(struct handle *h)
{
    struct handle **at = &h->node->handles;

    while (h->fd < 0 && *at)
        at = &(*at)->next;
    h->next = *at;
    *at = h;
}

int handle_new(struct handles *t, struct node *n, int fd, uint32_t flags, bool dir,
               struct handle **out)
{
    struct handle *h;
    int rc = -ENFILE;

    if (t->ids.used >= t->max)
        goto fail;
    rc = -ENOMEM;
    h = make(n, fd, flags, dir);
    if (!h)
        goto fail;
    h->id = slots_add(&t->ids, h);
    if (!h->id) {
        free(h);
        goto fail;
    }
    link_to_node(h);
    *out = h;
    return 0;

fail:
    close(fd);
    return rc;
}

int handle_restore(struct handles *t, uint64_t id, struct node *n, int fd, uint32_t flags, bool dir,
                   struct handle **out)
{
    struct handle *h = make(n, fd, flags, dir);
    int rc = h ? slots_add_at(&t->ids, id, t->max, h) : -ENOMEM;

    if (rc) {
        free(h);
        if (fd >= 0)
            close(fd);
        return rc;
    }
    h->id = id;
    link_to_node(h);
    *out = h;
    return 0;
}

struct handle *handle_get(const struct handles *t, uint64_t id, const struct node *n, bool dir)
{
    struct handle *h = slots_get(&t->ids, id);

    return h && h->node == n && h->dir == dir ? h : NULL;
}

void handle_close(struct handles *t, struct handle *h)
{
    struct handle **at = &h->node->handles;

    while (*at != h)
        at = &(*at)->next;
    *at = h->next;
    slots_del(&t->ids, h->id);
    if (h->fd >= 0)
        close(h->fd);
    free(h);
}

void handles_clear(struct handles *t)
{
    for (uint32_t i = 0; i < t->ids.n; i++) {
        struct handle *h = t->ids.v[i].p;

        if (h)
            handle_close(t, h);
    }
    slots_trim(&t->ids, 0);
}

void handles_fini(struct handles *t)
{
    handles_clear(t);
    slots_free(&t->ids);
}
