#include "machine/boot/bzimage.h"

#include <errno.h>
#include <string.h>

#include "base/util.h"

/* Offsets in the file (boot.rst, "The Real-Mode Kernel Header"). */
#define H_SETUP_SECTS 0x1f1
#define H_SYSSIZE 0x1f4
#define H_BOOT_FLAG 0x1fe
#define H_JUMP 0x201 /* second byte of the jump: the header ends at 0x202 plus it */
#define H_MAGIC 0x202
#define H_VERSION 0x206
#define H_LOADFLAGS 0x211
#define H_INITRD_ADDR_MAX 0x22c
#define H_XLOADFLAGS 0x236
#define H_CMDLINE_SIZE 0x238
#define H_PAYLOAD_OFFSET 0x248
#define H_PAYLOAD_LENGTH 0x24c
#define H_PREF_ADDRESS 0x258
#define H_INIT_SIZE 0x260
#define H_END 0x264 /* of what is read here */

#define LOADED_HIGH 1
#define XLF_KERNEL_64 1

static uint16_t get16(const uint8_t *p)
{
    uint16_t v;

    memcpy(&v, p, 2);
    return v;
}

static uint32_t get32(const uint8_t *p)
{
    uint32_t v;

    memcpy(&v, p, 4);
    return v;
}

bool bzimage_detect(const uint8_t *d, size_t len)
{
    return len >= H_VERSION && get16(d + H_BOOT_FLAG) == 0xaa55 && !memcmp(d + H_MAGIC, "HdrS", 4);
}

int bzimage_parse(struct bzimage *o, const uint8_t *d, size_t len, struct err *e)
{
    uint64_t setup, sys, off, n, hend;

    *o = (struct bzimage){0};
    if (len < H_END)
        return err_set(e, EINVAL, "truncated bzImage");
    o->protocol = get16(d + H_VERSION);
    if (o->protocol < 0x0208)
        return err_set(e, ENOTSUP,
                       "boot protocol %u.%02u is too old; 2.08 (Linux 2.6.26) is needed",
                       o->protocol >> 8, o->protocol & 0xff);
    if (!(d[H_LOADFLAGS] & LOADED_HIGH))
        return err_set(e, ENOTSUP, "a zImage; only bzImage kernels are supported");
    if (o->protocol >= 0x020c && !(get16(d + H_XLOADFLAGS) & XLF_KERNEL_64))
        return err_set(e, ENOTSUP, "a 32-bit kernel; x86-64 kernels are supported");

    setup = ((d[H_SETUP_SECTS] ? d[H_SETUP_SECTS] : 4) + 1) * 512ull;
    sys = get32(d + H_SYSSIZE) * 16ull;
    /* The last paragraph need not be full. */
    if (setup > len || sys > ALIGN_UP(len - setup, 16))
        return err_set(e, EINVAL, "truncated bzImage: %llu bytes expected, %zu there",
                       (unsigned long long)(setup + sys), len);
    off = get32(d + H_PAYLOAD_OFFSET);
    n = get32(d + H_PAYLOAD_LENGTH);
    if (off == 0)
        return err_set(e, ENOTSUP, "a bzImage that is no Linux kernel: it has no payload");
    if (off > len - setup || n > len - setup - off || n < 8)
        return err_set(e, EINVAL, "corrupt bzImage: its payload is outside the file");
    o->payload = d + setup + off;
    o->payload_len = n;
    o->unpacked_len = get32(o->payload + n - 4);

    o->initrd_max = get32(d + H_INITRD_ADDR_MAX);
    o->cmdline_max = get32(d + H_CMDLINE_SIZE);
    if (o->protocol >= 0x020a) {
        memcpy(&o->pref_address, d + H_PREF_ADDRESS, 8);
        o->init_size = get32(d + H_INIT_SIZE);
    }
    hend = H_MAGIC + d[H_JUMP];
    if (hend < H_PAYLOAD_LENGTH + 4 || hend > len)
        return err_set(e, EINVAL, "corrupt bzImage: its header's length is wrong");
    o->header_len = (unsigned)MIN(hend - SETUP_HEADER_OFF, SETUP_HEADER_MAX);
    memcpy(o->header, d + SETUP_HEADER_OFF, o->header_len);
    return 0;
}
