/*
 * Locks of image files that QEMU 2.10 and later understands: OFD read locks on single bytes of the
 * file. Byte 100+n says "I use permission n", byte 200+n "nobody else may use it"; permissions are
 * 0 consistent read, 1 write, 2 write without change, 3 resize. After setting its own, each looks
 * whether another's stand against them.
 *
 * A writer here uses read, write and resize; writers and readers alike deny write and resize.
 */
#ifndef RING3_BACK_BLOCK_BLOCK_LOCK_H
#define RING3_BACK_BLOCK_BLOCK_LOCK_H

#include <stdbool.h>

#include "base/err.h"

/*
 * Locks the open file. path is for messages only. -EBUSY if another holds a lock that excludes
 * ours, or the host's error; then there is no lock of ours.
 *
 * Waits up to a quarter of a second for the other: a process that was killed is gone some
 * milliseconds before the kernel has torn down its io_uring, which holds the file and thereby its
 * locks; and two that lock at the same time both give way.
 */
int block_lock(int fd, bool ro, const char *path, struct err *e);
/* Gives the lock up at once, which closing fd does not while anything else refers to the open file.
 */
void block_unlock(int fd);

#endif
