/*
 * The bzImage container (Linux' Documentation/arch/x86/boot.rst, protocol 2.08 and later): a setup
 * header and a compressed ELF payload. The file is hostile.
 */
#ifndef RING3_MACHINE_BOOT_BZIMAGE_H
#define RING3_MACHINE_BOOT_BZIMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define SETUP_HEADER_OFF 0x1f1 /* of the setup header, in the file and in the zero page */
/* It ends before 0x281 in any version; the zero page has room to 0x290. */
#define SETUP_HEADER_MAX 0x90

struct bzimage {
    uint16_t protocol;                /* 0x020f = 2.15 */
    uint8_t header[SETUP_HEADER_MAX]; /* from SETUP_HEADER_OFF */
    unsigned header_len;
    const uint8_t *payload; /* inside the file, not owned */
    size_t payload_len;
    uint32_t unpacked_len; /* as the image says; a hint, to be compared with the truth */
    uint32_t initrd_max;   /* highest address a byte of the initrd may have */
    uint32_t cmdline_max;  /* bytes without the terminating NUL */
    uint64_t pref_address; /* 0 before protocol 2.10 */
    uint32_t init_size;    /* bytes from the load address that the kernel needs while starting */
};

/* Does the file carry the boot sector mark and the header's magic? */
bool bzimage_detect(const uint8_t *data, size_t len);
/* 0, or -EINVAL/-ENOTSUP with the reason. data must outlive out. */
int bzimage_parse(struct bzimage *out, const uint8_t *data, size_t len, struct err *e);

#endif
