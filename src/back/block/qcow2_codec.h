/* Compression of single clusters: raw deflate or zstd. Pure; any thread. */
#ifndef RING3_BACK_BLOCK_QCOW2_CODEC_H
#define RING3_BACK_BLOCK_QCOW2_CODEC_H

#include <stddef.h>
#include <stdint.h>

#include "back/block/qcow2_header.h"

/* Unpacks exactly outlen bytes from in, which may go on after the end of the compressed data and is
 * hostile. 0, -EIO if it does not hold that much, -ENOMEM. */
int qcow2_codec_unpack(enum qcow2_compression type, const uint8_t *in, size_t inlen, uint8_t *out,
                       size_t outlen);
/* Packs inlen bytes into at most cap bytes. The packed length, or -ENOSPC if that is too little,
 * -ENOMEM. */
int64_t qcow2_codec_pack(enum qcow2_compression type, const uint8_t *in, size_t inlen, uint8_t *out,
                         size_t cap);

#endif
