/*
 * A host directory served to a guest: the FUSE protocol (version 7, linux/fuse.h; virtio 1.2
 * §5.11) on buffers, whatever carries them.
 *
 * The guest is hostile and must never reach anything outside the directory. Every host access goes
 * through a descriptor of a directory or file that was opened one name at a time, without following
 * symbolic links, starting at the directory; names with '/', "." and ".." are refused; links are
 * resolved by the guest alone. What the guest creates is neither a device nor set-user-ID, and of
 * extended attributes it sees and changes "user." only. A file or directory that the host moves out
 * of the directory while the guest uses it stays reachable as it is to any process that holds it
 * open.
 *
 * Ownership is passed through: the guest sees the host's numbers, and what it does is done as the
 * user who runs ring3, who may be unable to do it. If that is root, what the guest creates belongs
 * to the guest's user and group who created it. Permissions are the guest kernel's to check (as
 * with default_permissions), within what the host allows. File locks are the guest's own.
 *
 * A share belongs to one thread at a time; nothing in here locks. Requests block as long as the
 * host's file system does.
 */
#ifndef RING3_BACK_SHARE_SHARE_H
#define RING3_BACK_SHARE_SHARE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/err.h"

struct share;

struct share_cfg {
    const char *dir; /* the directory; a symbolic link to it is followed, here only */
    bool readonly;   /* refuse with EROFS whatever changes anything */
    /* How many descriptors the guest may make this share hold, at least SHARE_FDS_MIN: one half for
     * open files and directories, one for recently used ones. */
    unsigned fds;
};

#define SHARE_FDS_MIN 64u
/* What the guest's knowledge of file names may cost the host, in bytes, per share. Reaching it
 * takes some 500,000 files that the guest keeps in its caches; then new ones fail with ENFILE. */
#define SHARE_NODE_BYTES (128u << 20)
/* The largest READ or WRITE agreed on with the guest. It needs no memory here. */
#define SHARE_IO_MAX (1u << 20)
/* The largest of all other requests; longer ones fail with E2BIG. */
#define SHARE_ARG_MAX (72u << 10)

/* Opens the directory. Needs /proc. Negative errno with e set: not there, not a directory, or not
 * readable. */
int share_new(struct share **out, const struct share_cfg *cfg, struct err *e);
void share_free(struct share *s); /* NULL is allowed */

/* Serves one request: in is what the guest wrote, out where the answer goes, both in memory that
 * the guest may change meanwhile. Returns the bytes of the answer, 0 if there is none: FORGET has
 * none, and neither has a request without a whole header or without room for one. */
size_t share_handle(struct share *s, const struct iovec *in, unsigned nin, const struct iovec *out,
                    unsigned nout);

/* Ends the session: closes what the guest had open and forgets every file it knew. The next request
 * has to be FUSE_INIT. */
void share_reset(struct share *s);

/*
 * The session, what the guest knows by number, as bytes: for saved states. Open files come first,
 * then the files the guest used last, as many as fit cap; the rest the guest gets as ESTALE and
 * looks up again by name. Returns the length, at most cap, or -ENOSPC when open files alone exceed
 * it.
 */
int64_t share_save(struct share *s, uint8_t *buf, size_t cap);
/* Replaces the session by a saved one, after checking all of it: the bytes are hostile. A file that
 * is gone or another one now gives ESTALE to the guest. 0, or -EINVAL or -ENOMEM with the session
 * reset and e set. */
int share_load(struct share *s, const uint8_t *buf, size_t len, struct err *e);

#endif
