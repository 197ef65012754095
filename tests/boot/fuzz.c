/*
 * Mutated kernel images of every kind through the whole loader: whatever the file says, the loader
 * returns, stays inside its buffers (run under AddressSanitizer) and gives a message with every
 * error. The seed is fixed; another one and a number of rounds may be given as arguments.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "image.h"
#include "machine/boot/boot.h"
#include "machine/memory.h"
#include "mem/ram.h"

#define RAM (24 * MIB)
#define PREF (16 * MIB)
#define HEADERS 0x300 /* most mutations hit here */

static uint64_t next(uint64_t *x)
{
    *x ^= *x << 13;
    *x ^= *x >> 7;
    *x ^= *x << 17;
    return *x;
}

static void mutate(uint8_t *p, size_t len, uint64_t *rng)
{
    static const uint64_t odd[] = {0,
                                   1,
                                   0x7f,
                                   0x80,
                                   0xff,
                                   0x7fff,
                                   0xffff,
                                   0x7fffffff,
                                   0x80000000,
                                   0xffffffff,
                                   0x7fffffffffffffff,
                                   0xffffffffffffffff};
    unsigned n = 1 + next(rng) % 4;

    while (n--) {
        size_t span = next(rng) % 4 ? MIN(len, HEADERS) : len, size = 1ull << next(rng) % 4;
        size_t at = next(rng) % (span - size);
        uint64_t v = next(rng) % 2 ? odd[next(rng) % ARRAY_LEN(odd)] : next(rng);

        memcpy(p + at, &v, size);
    }
}

int main(int argc, char **argv)
{
    uint64_t rng = argc > 1 ? strtoull(argv[1], NULL, 0) : 0x5eed5eed;
    unsigned long rounds = argc > 2 ? strtoul(argv[2], NULL, 0) : 3000, ok = 0;
    struct blob seeds[PACK_KINDS + 2];
    struct memory_layout mem;
    struct physmap *map;
    uint8_t code[2000];
    struct ram *ram;
    struct err e = {""};

    for (size_t i = 0; i < sizeof(code); i++)
        code[i] = (uint8_t)(i * i >> 3);
    for (int i = 0; i < PACK_KINDS + 2; i++) {
        struct elf_spec s = {.is32 = i == PACK_KINDS,
                             .paddr = PREF,
                             .code = code,
                             .code_len = sizeof(code),
                             .memsz = 3000,
                             .entry = PREF,
                             .pvh = PREF + 16};
        struct blob k = make_elf(&s);

        if (i < PACK_KINDS) {
            seeds[i] = make_bzimage(k, (enum packing)i, PREF, MIB);
            free(k.p);
        } else {
            seeds[i] = k;
        }
    }
    if (ram_new(&ram, "fuzz", RAM, &e) || physmap_new(&map, 36, &e) ||
        memory_map_ram(map, ram, &e)) {
        fprintf(stderr, "%s\n", e.msg);
        return 1;
    }
    memory_layout_init(&mem, RAM);
    for (unsigned long i = 0; i < rounds; i++) {
        struct blob *s = &seeds[next(&rng) % ARRAY_LEN(seeds)];
        struct boot_cfg cfg = {.cmdline = "x", .protocol = (enum boot_protocol)(next(&rng) % 3)};
        uint8_t *p = malloc(s->len);
        size_t len = next(&rng) % 8 ? s->len : 1 + next(&rng) % s->len;
        struct cpu_state st;
        struct boot *b;
        char *path;
        int rc;

        if (!p)
            return 1;
        memcpy(p, s->p, s->len);
        mutate(p, s->len, &rng);
        path = file_write("fuzz", p, len);
        cfg.kernel = path;
        e.msg[0] = '\0';
        rc = boot_open(&b, &cfg, &e);
        if (!rc) {
            rc = boot_load(b, map, &mem, &st, &e);
            boot_close(b);
        }
        if (!rc && cpu_state_validate(&st, &e)) {
            fprintf(stderr, "round %lu: loaded into an impossible state: %s\n", i, e.msg);
            return 1;
        }
        if (rc && (!e.msg[0] || strchr(e.msg, '\n'))) {
            fprintf(stderr, "round %lu: error %d without a message line\n", i, rc);
            return 1;
        }
        ok += !rc;
        free(path);
        free(p);
    }
    for (size_t i = 0; i < ARRAY_LEN(seeds); i++)
        free(seeds[i].p);
    physmap_free(map);
    ram_free(ram);
    files_clean();
    printf("%lu images, %lu of them loaded\n", rounds, ok);
    return ok > 0 && ok < rounds ? 0 : 1;
}
