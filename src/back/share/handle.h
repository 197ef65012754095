/*
 * What a guest has open: files and directories by number. Used by back/share only.
 */
#ifndef RING3_BACK_SHARE_HANDLE_H
#define RING3_BACK_SHARE_HANDLE_H

#include <stdbool.h>
#include <stdint.h>

#include "back/share/node.h"

struct handle {
    uint64_t id;
    struct node *node;
    struct handle *next; /* of the same node */
    int fd;              /* -1: the file was gone when the session was loaded */
    uint32_t flags;      /* it was opened with */
    bool dir;
    uint64_t pos; /* directories: the offset that fd stands at */
};

struct handles {
    struct slots ids;
    unsigned max;
};

/* A new handle of n that owns fd; 0, or -ENFILE or -ENOMEM with fd closed. */
int handle_new(struct handles *t, struct node *n, int fd, uint32_t flags, bool dir,
               struct handle **out);
/* As handle_new with a given number; -EINVAL if that is impossible. fd may be -1. */
int handle_restore(struct handles *t, uint64_t id, struct node *n, int fd, uint32_t flags, bool dir,
                   struct handle **out);
/* The handle with this number if it is open on that node and of that kind. */
struct handle *handle_get(const struct handles *t, uint64_t id, const struct node *n, bool dir);
void handle_close(struct handles *t, struct handle *h);
void handles_clear(struct handles *t); /* closes all */
void handles_fini(struct handles *t);

#endif
