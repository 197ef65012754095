/*
 * Booting from a disk without firmware: finds the kernel, its initramfs and its command line on a
 * disk as GRUB would, by GRUB's own configuration where there is one, else the newest kernel in
 * /boot. Looks at an unpartitioned disk and at MBR and GPT partitions, for ext2, ext3 and ext4.
 *
 * Whoever wrote the disk is hostile: sizes and offsets are checked, sizes of files bounded. The disk
 * is only read. Not thread-safe.
 */
#ifndef RING3_MACHINE_BOOT_DISK_H
#define RING3_MACHINE_BOOT_DISK_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/* A disk as bytes. read returns 0 or a negative errno for anything less than n bytes. */
struct boot_disk {
    uint64_t size; /* bytes */
    int (*read)(void *arg, uint64_t off, void *buf, size_t n);
    void *arg;
};

struct boot_files {
    int kernel, initrd; /* memfds, the caller's; initrd -1 for none */
    char *cmdline;      /* what the disk says, allocated */
    char *kernel_name;  /* for messages: "partition 1, /boot/vmlinuz-6.1.0-18-amd64", allocated */
};

/* No file may be larger than max bytes. 0; -ENOENT when there is no kernel, with e saying where it
 * was looked for; -EFBIG; -EIO; -ENOMEM. */
int boot_disk_find(const struct boot_disk *d, uint64_t max, struct boot_files *out, struct err *e);
void boot_files_free(struct boot_files *f); /* after a failure, too; closes the memfds */

#endif
