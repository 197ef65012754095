/*
 * The files that a guest knows by number, and the descriptors to reach them.
 *
 * A node is a file's identity on the host and the place in the tree where it was seen last. Its
 * descriptor (O_PATH) is opened when needed, by walking down from an ancestor that has one, and
 * closed when others are needed more; after a walk the file's identity is compared, so a node never
 * turns into another file. Used by back/share only.
 */
#ifndef RING3_BACK_SHARE_NODE_H
#define RING3_BACK_SHARE_NODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "back/share/slots.h"

#define NODE_ROOT 1u       /* FUSE_ROOT_ID */
#define NODE_DEPTH 4096u   /* how far a walk goes; deeper paths are longer than PATH_MAX */
#define NODE_NAME_MAX 255u /* bytes */

/* What makes a file itself: inode numbers are used again, the time of birth tells them apart. */
struct node_key {
    uint64_t dev, ino;
    int64_t born;  /* ns; 0 where the file system does not know */
    uint32_t type; /* S_IFMT bits */
    uint32_t zero; /* keys are compared as bytes */
};

struct handle;

struct node {
    uint64_t id;
    struct node_key key;
    struct node *hash_next;
    struct node *parent; /* NULL for the root */
    char *name;          /* in parent */
    uint64_t nlookup;    /* how often the guest was told of it */
    uint32_t children;   /* nodes whose parent it is */
    uint32_t pins;       /* fd in use by the request under way */
    struct handle *handles;
    int fd;                     /* O_PATH or -1 */
    struct node *newer, *older; /* while fd is open: neighbours in the order of use */
    struct node *walk;          /* during node_fd and share_save */
    bool saved;                 /* during share_save */
};

struct nodes {
    struct slots ids;
    struct node **hash;
    uint32_t mask;     /* size of hash - 1 */
    struct node *root; /* its fd stays open and is in no list */
    struct node *newest, *oldest;
    unsigned open, open_max; /* descriptors in the list */
    size_t bytes, bytes_max; /* memory of all nodes */
};

/* root_fd becomes the table's. 0 or negative errno (root_fd is not closed then). */
int nodes_init(struct nodes *t, int root_fd, unsigned open_max, size_t bytes_max);
void nodes_fini(struct nodes *t);
/* Drops all but the root. Handles must be gone. */
void nodes_clear(struct nodes *t);

struct node *node_get(const struct nodes *t, uint64_t id);
/* statx of an open descriptor. 0 or negative errno. */
int node_stat(int fd, struct statx *st);
void node_key_of(const struct statx *st, struct node_key *key);

/* The node of the file that fd (O_PATH) refers to and that was just found as name in parent. Takes
 * fd in any case. *out is new or known; its nlookup is unchanged: see node_ref. 0, -ENFILE,
 * -ENOMEM.
 */
int node_found(struct nodes *t, struct node *parent, const char *name, int fd,
               const struct statx *st, struct node **out);
/* A node at a given place and number, when a session is loaded. 0, -EINVAL, -ENFILE, -ENOMEM. */
int node_restore(struct nodes *t, uint64_t id, const struct node_key *key, struct node *parent,
                 const char *name, uint64_t nlookup, struct node **out);
/* The file with this key is now called name in parent (it was renamed by the guest). Without memory
 * it keeps its old place, where it will not be found. */
void node_moved(struct nodes *t, const struct node_key *key, struct node *parent, const char *name);

/* Opens (O_PATH) the file called name in the directory of that descriptor. fd or negative errno. */
int node_open_child(int dirfd, const char *name);
/* A descriptor of the node, good until node_unpin; the node's own, or an open handle's. Negative
 * errno: -ESTALE when the file is not at its place any more. */
int node_fd(struct nodes *t, struct node *n);
/* Gives it back; n may be freed. */
void node_unpin(struct nodes *t, struct node *n);

/* Counts an answer that names the node. */
void node_ref(struct node *n);
/* Takes back up to count of them and frees nodes that nothing holds. n may be freed. */
void node_forget(struct nodes *t, struct node *n, uint64_t count);
/* Frees n and its ancestors as far as nothing holds them. */
void node_drop(struct nodes *t, struct node *n);

#endif
