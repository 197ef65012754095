/* Booting from a disk image of any format that the block layer knows (disk.h does the rest). */
#ifndef RING3_MACHINE_BOOT_IMAGE_H
#define RING3_MACHINE_BOOT_IMAGE_H

#include <stdint.h>

#include "machine/boot/disk.h"

/* As boot_disk_find, of the image at path, which is opened for reading only and without a lock: a device of
 * this process may hold it, drained and flushed. format as in struct block_options. Messages name the file. */
int boot_image_find(const char *path, const char *format, uint64_t max, struct boot_files *out,
                    struct err *e);

#endif
