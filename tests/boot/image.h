/* Kernel images made to order for the tests: ELF files and bzImages around them. */
#ifndef RING3_TESTS_BOOT_IMAGE_H
#define RING3_TESTS_BOOT_IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct blob {
    uint8_t *p; /* free() */
    size_t len;
};

enum packing { PACK_GZIP, PACK_XZ, PACK_LZMA, PACK_ZSTD, PACK_LZ4, PACK_NONE, PACK_KINDS };

struct elf_spec {
    bool is32;
    uint64_t paddr; /* of the one segment */
    const void *code;
    size_t code_len;
    size_t memsz;   /* 0: code_len */
    uint64_t entry; /* physical */
    uint32_t pvh;   /* PVH entry; 0: no note */
};

/* The segment's file offset and the note's are page-independent: ehdr, phdrs, note, code. */
struct blob make_elf(const struct elf_spec *s);
/* A bzImage of protocol 2.15 around a payload, with init_size and pref_address as given. */
struct blob make_bzimage(struct blob payload, enum packing how, uint64_t pref, uint32_t init_size);
/* The packed bytes alone, without the appended size. */
struct blob pack(struct blob in, enum packing how);

/* Writes a file of the name under a fresh temporary directory (one per process, removed by
 * files_clean) and returns its path (static storage per name is not reused; free()). */
char *file_write(const char *name, const void *p, size_t len);
void files_clean(void);

#endif
