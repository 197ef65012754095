/*
 * Kernels as ELF files (System V ABI; Xen's PVH note). Parsing checks everything once against a
 * hostile file; what it returns can be used without further checks except against guest memory.
 */
#ifndef RING3_MACHINE_BOOT_ELF_H
#define RING3_MACHINE_BOOT_ELF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "mem/physmap.h"

#define ELF_SEGMENTS_MAX 64

struct elf_segment {
    uint64_t off, filesz;  /* inside the file */
    uint64_t paddr, memsz; /* memsz >= filesz, no overflow */
};

struct elf_image {
    const uint8_t *data; /* the file, not owned */
    bool is64;
    uint64_t entry;
    bool has_pvh;
    uint32_t pvh_entry;
    uint64_t lo, hi; /* the segments are inside [lo, hi) */
    unsigned nseg;
    struct elf_segment seg[ELF_SEGMENTS_MAX]; /* loadable, memsz > 0, disjoint */
};

/* Does the file begin as an ELF file does? */
bool elf_detect(const uint8_t *data, size_t len);
/* Reads an x86-64 or i386 executable. 0, or -EINVAL with the reason. data must outlive out. */
int elf_parse(struct elf_image *out, const uint8_t *data, size_t len, struct err *e);
/* Is addr inside a segment? */
bool elf_contains(const struct elf_image *i, uint64_t addr);
/* Copies the segments to their physical addresses and zeroes what the file does not give. -EINVAL
 * if any byte of them is not RAM. */
int elf_load(const struct elf_image *i, struct physmap *map, struct err *e);

#endif
