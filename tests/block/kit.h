/*
 * Disks for tests: files in a folder of their own, requests that are waited for, and data that
 * tells where it belongs.
 */
#ifndef RING3_TESTS_BLOCK_KIT_H
#define RING3_TESTS_BLOCK_KIT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "back/block/block.h"

struct kit {
    char dir[256];
    char path[512]; /* dir/disk */
    struct block_options o;
};

void kit_init(struct kit *k);
void kit_fini(struct kit *k);
/* Makes k->path a file of this size, filled with pattern bytes (seed) or, for seed 0, a hole. */
void kit_file(struct kit *k, uint64_t size, uint64_t seed);
/* Bytes of the file as it is on the host. */
void kit_read_file(const struct kit *k, uint64_t offset, void *buf, size_t len);
struct blockdev *kit_open(const struct kit *k);

/* What byte `at` of a disk with this seed holds. */
uint8_t kit_byte(uint64_t seed, uint64_t at);
void kit_fill(uint64_t seed, uint64_t at, void *buf, size_t len);
void kit_check(uint64_t seed, uint64_t at, const void *buf, size_t len);
bool kit_is_zero(const void *buf, size_t len);

/* One request, waited for. Its rc. */
int kit_do(struct blockdev *d, enum block_op op, uint32_t flags, uint64_t offset, void *buf,
           uint64_t len);
int kit_read(struct blockdev *d, uint64_t offset, void *buf, uint64_t len);
int kit_write(struct blockdev *d, uint64_t offset, const void *buf, uint64_t len);

#endif
