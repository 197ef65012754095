/* mkguest CODE KERNEL: wraps flat code for 1 MiB into an ELF file with a PVH entry. */
#include <stdio.h>
#include <stdlib.h>

#include "image.h"

#define LOAD 0x100000u

int main(int argc, char **argv)
{
    static unsigned char code[65536];
    struct elf_spec s = {.is32 = true, .paddr = LOAD, .code = code, .entry = LOAD, .pvh = LOAD};
    FILE *in = argc == 3 ? fopen(argv[1], "rb") : NULL, *out;
    struct blob b;
    int bad;

    if (!in) {
        fprintf(stderr, "usage: mkguest CODE KERNEL\n");
        return 2;
    }
    s.code_len = fread(code, 1, sizeof(code), in);
    fclose(in);
    b = make_elf(&s);
    out = fopen(argv[2], "wb");
    bad = !out || fwrite(b.p, 1, b.len, out) != b.len || fclose(out);
    free(b.p);
    return bad;
}
