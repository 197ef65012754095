/* A FUSE client for tests: a shared temporary directory, and requests to its server as a guest makes them. */
#ifndef TESTS_SHARE_CLIENT_H
#define TESTS_SHARE_CLIENT_H

#include <linux/fuse.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "back/share/share.h"

struct client {
    char top[64];  /* a temporary directory: "secret" in it must never be reached */
    char dir[80];  /* top/shared */
    struct share *s;
    uint64_t unique;
    uint32_t uid, gid;
    uint8_t out[SHARE_IO_MAX + 4096]; /* the last answer's payload */
    size_t out_len;
    size_t room;  /* for answers, header included; sizeof(out) unless a test wants less */
    size_t piece; /* bytes of each iovec */
};

/* Makes the directories and a session. fds 0: plenty. */
void client_open(struct client *c, bool readonly, unsigned fds);
void client_init(struct client *c); /* FUSE_INIT, which client_open has done already */
void client_close(struct client *c); /* and removes the directories */

/* One request with the argument in two parts (either may be NULL). The answer's error: 0 or negative errno;
 * payload in out. 1 if there was no answer. */
int client_call(struct client *c, uint32_t op, uint64_t node, const void *arg, size_t len, const void *more,
                size_t more_len);
/* A request in raw bytes, with its header's len as it is. */
int client_raw(struct client *c, const void *p, size_t len);

/* The usual ones. A negative errno, or what the name says. */
int client_lookup(struct client *c, uint64_t dir, const char *name, uint64_t *node);
int client_walk(struct client *c, const char *path, uint64_t *node); /* from the root, by '/' */
int client_forget(struct client *c, uint64_t node, uint64_t count);
int client_getattr(struct client *c, uint64_t node, struct fuse_attr *a);
int client_setattr(struct client *c, uint64_t node, const struct fuse_setattr_in *in);
int client_mkdir(struct client *c, uint64_t dir, const char *name, uint32_t mode, uint64_t *node);
int client_mknod(struct client *c, uint64_t dir, const char *name, uint32_t mode, uint32_t rdev);
int client_symlink(struct client *c, uint64_t dir, const char *name, const char *target, uint64_t *node);
int client_link(struct client *c, uint64_t node, uint64_t dir, const char *name);
int client_remove(struct client *c, uint32_t op, uint64_t dir, const char *name);
int client_rename(struct client *c, uint64_t dir, const char *name, uint64_t newdir, const char *newname,
                  uint32_t flags);
int client_create(struct client *c, uint64_t dir, const char *name, uint32_t flags, uint32_t mode, uint64_t *node,
                  uint64_t *fh);
int client_open_file(struct client *c, uint32_t op, uint64_t node, uint32_t flags, uint64_t *fh);
int client_release(struct client *c, uint32_t op, uint64_t node, uint64_t fh);
int client_write(struct client *c, uint64_t node, uint64_t fh, uint64_t off, const void *p, uint32_t len);
int client_read(struct client *c, uint64_t node, uint64_t fh, uint64_t off, uint32_t len); /* bytes, in out */

/* Host side: a file below the shared directory (or with "../" above it) with this text; what a file holds. */
void host_write(const struct client *c, const char *path, const char *text);
bool host_has(const struct client *c, const char *path, const char *text);
void host_path(const struct client *c, const char *path, char *buf, size_t len);

#endif
