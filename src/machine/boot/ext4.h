/*
 * Reading files of ext2, ext3 and ext4 through libext2fs, from a part of a disk. A journal that was not replayed is
 * ignored. Nothing is written. The file system is hostile: its sizes are bounded by the caller.
 */
#ifndef RING3_MACHINE_BOOT_EXT4_H
#define RING3_MACHINE_BOOT_EXT4_H

#include "machine/boot/disk.h"

struct ext4;

#define EXT4_UUID_TEXT 37 /* with its NUL */

/* The file system at [start, start+size) of d, which must outlive it. -ENOENT when there is none (e is not
 * touched); -EINVAL, -EIO, -ENOMEM with e set. */
int ext4_open(struct ext4 **out, const struct boot_disk *d, uint64_t start, uint64_t size, struct err *e);
void ext4_close(struct ext4 *x); /* NULL is allowed */
void ext4_uuid(const struct ext4 *x, char text[EXT4_UUID_TEXT]);

/* Appends the file at path (from the root, symbolic links are followed within the file system) to fd, at most
 * max bytes. -ENOENT, -EFBIG, -EISDIR, -EIO ... with e set. */
int ext4_copy(struct ext4 *x, const char *path, int fd, uint64_t max, struct err *e);

/* Calls fn for each name in the directory at path; -ENOENT if there is none. */
int ext4_list(struct ext4 *x, const char *path, void (*fn)(void *arg, const char *name), void *arg);

#endif
