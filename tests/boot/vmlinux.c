/* vmlinux BZIMAGE ELF: unpacks the kernel out of a bzImage, with the loader's own code. */
#include <stdio.h>
#include <stdlib.h>

#include "base/util.h"
#include "machine/boot/bzimage.h"
#include "machine/boot/unpack.h"

#define FILE_MAX (256 * MIB)

int main(int argc, char **argv)
{
    FILE *in = argc == 3 ? fopen(argv[1], "rb") : NULL, *out;
    uint8_t *file = malloc(FILE_MAX), *elf = NULL;
    struct err e = {"cannot read the file"};
    struct bzimage bz;
    size_t len, n = 0;
    int bad = 1;

    if (!file)
        return 1;
    len = in ? fread(file, 1, FILE_MAX, in) : 0;
    if (len && !bzimage_parse(&bz, file, len, &e) &&
        !unpack(bz.payload, bz.payload_len, bz.unpacked_len, GIB, &elf, &n, &e)) {
        out = fopen(argv[2], "wb");
        bad = !out || fwrite(elf, 1, n, out) != n || fclose(out);
    } else {
        fprintf(stderr, "vmlinux: %s\n", e.msg);
    }
    if (in)
        fclose(in);
    free(elf);
    free(file);
    return bad;
}
