/*
 * One FUSE request under way, and what its handlers share. Used by back/share only.
 */
#ifndef RING3_BACK_SHARE_REQUEST_H
#define RING3_BACK_SHARE_REQUEST_H

#include <linux/fuse.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "back/share/handle.h"
#include "back/share/node.h"
#include "back/share/share.h"

#define SHARE_IOVS 1024u /* IOV_MAX */
#define SHARE_PINS 4u

/* The host files may be in at most this many seconds something else than what the guest believes.
 */
#define SHARE_VALID_S 1u

struct share {
    bool readonly;
    bool root;    /* we are: what the guest creates gets the guest's owner */
    bool started; /* FUSE_INIT came */
    int proc_fd;  /* /proc/self/fd: to open for use what is open as O_PATH */
    struct nodes nodes;
    struct handles handles;
    struct iovec iov[SHARE_IOVS];          /* for READ and WRITE */
    uint8_t arg[SHARE_ARG_MAX + 1];        /* the request's own copy of what the guest wrote */
    _Alignas(8) uint8_t dirents[64 << 10]; /* as the host gives them */
    uint8_t reply[SHARE_ARG_MAX];
};

struct request {
    struct share *s;
    struct fuse_in_header h;
    const uint8_t *arg; /* after the header: bytes that do not change any more */
    size_t len;
    const struct iovec *in, *out;
    unsigned nin, nout;
    size_t in_len;
    size_t out_max;    /* room for an answer after its header */
    size_t out_len;    /* written there */
    struct node *node; /* that the header names, unless the operation is about the session */
    struct node *pin[SHARE_PINS];
    unsigned npins;
};

/* Handlers return 0 or negative errno; the argument is at least as long as the table in share.c
 * says and holds as many strings. */
typedef int request_fn(struct request *r);

/* Appends to the answer. -ERANGE (the guest's error) if it does not fit. */
int request_reply(struct request *r, const void *p, size_t len);
/* The string number i after the fixed part of fixed bytes: there, and ended by a NUL. */
const char *request_string(const struct request *r, size_t fixed, unsigned i);
/* A name in a directory: not empty, ".", "..", too long or with a slash. 0 or negative errno. */
int request_name_check(const char *name);

/* The node's descriptor for the rest of the request; negative errno. */
int request_fd(struct request *r, struct node *n);
/* As above, for a directory. */
int request_dir_fd(struct request *r, struct node *n);
/* "N": what to open below proc_fd to get at the file behind descriptor N. */
struct fd_path {
    char s[12];
};
struct fd_path request_fd_path(int fd);

/* Opens what n is for use, not only as O_PATH. fd or negative errno. */
int request_open(struct request *r, struct node *n, int flags);
/* Answers with the file called name in the directory n and counts it as known to the guest. */
int request_entry(struct request *r, struct node *dir, const char *name, struct fuse_entry_out *out,
                  struct node **found);
/* As above, and that is the whole answer. */
int request_entry_reply(struct request *r, struct node *dir, const char *name);
void request_attr(const struct statx *st, struct fuse_attr *a);
/* After r's guest created what fd refers to: its owner, if that is ours to give. dirfd is where. */
int request_own(struct request *r, int dirfd, int fd);

/* The open handle with this number, of the request's node and of that kind; NULL if there is none
 * whose file is there. */
struct handle *request_handle(struct request *r, uint64_t fh, bool dir);
/* Answers with a new handle of n, which takes fd in any case. 0 or negative errno. */
int request_opened(struct request *r, struct node *n, int fd, uint32_t flags, bool dir);

/* May a file be opened with these flags? -EINVAL for those that are not a guest's to choose. */
int request_flags_check(const struct share *s, uint32_t flags);
/* What a write does to a file that runs with its owner's rights (write_kill_suidgid). */
int request_drop_suid(struct request *r, int fd);

request_fn share_attr_getattr, share_attr_setattr, share_attr_statfs;
request_fn share_attr_getxattr, share_attr_setxattr, share_attr_listxattr, share_attr_removexattr;
request_fn share_tree_lookup, share_tree_readlink, share_tree_symlink, share_tree_mknod,
    share_tree_mkdir, share_tree_unlink, share_tree_rmdir;
request_fn share_tree_rename, share_tree_rename2, share_tree_link;
request_fn share_file_open, share_file_create, share_file_read, share_file_write, share_file_flush;
request_fn share_file_fallocate, share_file_lseek, share_file_copy_range;
request_fn share_dir_open, share_dir_read, share_dir_readplus, share_dir_syncfs;
/* Of files and directories. */
request_fn share_open_release, share_open_fsync;

#endif
