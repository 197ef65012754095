/*
 * Unpacking of compressed kernel payloads (the formats of Linux' lib/decompress*.c) on the host.
 * The input is a hostile file: output is bounded, and every malformed stream ends in one error.
 *
 * Kernel builds append the unpacked size, four bytes, to every payload. Formats that mark their own
 * end ignore what follows it; lz4 and uncompressed payloads end before their last four bytes.
 */
#ifndef RING3_MACHINE_BOOT_UNPACK_H
#define RING3_MACHINE_BOOT_UNPACK_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/*
 * Unpacks in[0..len) by the format its first bytes name (gzip, xz, lzma, zstd, lz4 legacy, or an
 * ELF file that is not compressed at all). hint: expected size, used for the first allocation only.
 * On success *out (owned by the caller, free()) holds *out_len bytes. Returns 0, or negative with e
 * set: -ENOTSUP the format is known but not supported, or unknown; -EFBIG more than max bytes;
 * -EINVAL corrupt or truncated; -ENOMEM.
 */
int unpack(const uint8_t *in, size_t len, size_t hint, size_t max, uint8_t **out, size_t *out_len,
           struct err *e);

#endif
