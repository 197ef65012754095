#include "image.h"

#include <dirent.h>
#include <elf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <lz4.h>
#include <lzma.h>
#include <zlib.h>
#include <zstd.h>

#define NEED(x)                                                     \
    do {                                                            \
        if (!(x)) {                                                 \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x); \
            abort();                                                \
        }                                                           \
    } while (0)

struct note {
    uint32_t namesz, descsz, type;
    char name[4];
    uint32_t desc;
};

struct blob make_elf(const struct elf_spec *s)
{
    const struct note note = {4, 4, 18, "Xen", s->pvh};
    unsigned nph = s->pvh ? 2 : 1;
    size_t eh = s->is32 ? sizeof(Elf32_Ehdr) : sizeof(Elf64_Ehdr);
    size_t ph = s->is32 ? sizeof(Elf32_Phdr) : sizeof(Elf64_Phdr);
    size_t note_off = eh + 2 * ph, code_off = note_off + sizeof(note);
    struct blob b = {.len = code_off + s->code_len};
    size_t memsz = s->memsz ? s->memsz : s->code_len;

    b.p = calloc(1, b.len);
    NEED(b.p);
    if (s->is32) {
        Elf32_Ehdr h = {.e_type = ET_EXEC,
                        .e_machine = EM_386,
                        .e_version = 1,
                        .e_entry = (uint32_t)s->entry,
                        .e_phoff = (uint32_t)eh,
                        .e_ehsize = (uint16_t)eh,
                        .e_phentsize = (uint16_t)ph,
                        .e_phnum = (uint16_t)nph};
        Elf32_Phdr p[2] = {{.p_type = PT_LOAD,
                            .p_offset = (uint32_t)code_off,
                            .p_vaddr = (uint32_t)s->paddr,
                            .p_paddr = (uint32_t)s->paddr,
                            .p_filesz = (uint32_t)s->code_len,
                            .p_memsz = (uint32_t)memsz,
                            .p_flags = 7},
                           {.p_type = PT_NOTE,
                            .p_offset = (uint32_t)note_off,
                            .p_filesz = sizeof(note),
                            .p_memsz = sizeof(note)}};

        memcpy(h.e_ident, ELFMAG, SELFMAG);
        h.e_ident[EI_CLASS] = ELFCLASS32;
        h.e_ident[EI_DATA] = ELFDATA2LSB;
        h.e_ident[EI_VERSION] = 1;
        memcpy(b.p, &h, eh);
        memcpy(b.p + eh, p, sizeof(p));
    } else {
        Elf64_Ehdr h = {.e_type = ET_EXEC,
                        .e_machine = EM_X86_64,
                        .e_version = 1,
                        .e_entry = s->entry,
                        .e_phoff = eh,
                        .e_ehsize = (uint16_t)eh,
                        .e_phentsize = (uint16_t)ph,
                        .e_phnum = (uint16_t)nph};
        Elf64_Phdr p[2] = {{.p_type = PT_LOAD,
                            .p_offset = code_off,
                            .p_vaddr = s->paddr,
                            .p_paddr = s->paddr,
                            .p_filesz = s->code_len,
                            .p_memsz = memsz,
                            .p_flags = 7},
                           {.p_type = PT_NOTE,
                            .p_offset = note_off,
                            .p_filesz = sizeof(note),
                            .p_memsz = sizeof(note)}};

        memcpy(h.e_ident, ELFMAG, SELFMAG);
        h.e_ident[EI_CLASS] = ELFCLASS64;
        h.e_ident[EI_DATA] = ELFDATA2LSB;
        h.e_ident[EI_VERSION] = 1;
        memcpy(b.p, &h, eh);
        memcpy(b.p + eh, p, sizeof(p));
    }
    memcpy(b.p + note_off, &note, sizeof(note));
    memcpy(b.p + code_off, s->code, s->code_len);
    return b;
}

static size_t pack_gzip(struct blob in, uint8_t *out, size_t cap)
{
    z_stream z = {
        .next_in = in.p, .avail_in = (uInt)in.len, .next_out = out, .avail_out = (uInt)cap};

    NEED(deflateInit2(&z, 9, Z_DEFLATED, 15 + 16, 9, Z_DEFAULT_STRATEGY) == Z_OK);
    NEED(deflate(&z, Z_FINISH) == Z_STREAM_END);
    deflateEnd(&z);
    return z.total_out;
}

/* With the x86 filter, as kernel builds do. */
static size_t pack_xz(struct blob in, uint8_t *out, size_t cap)
{
    lzma_options_lzma o;
    lzma_filter f[3] = {{LZMA_FILTER_X86, NULL}, {LZMA_FILTER_LZMA2, &o}, {LZMA_VLI_UNKNOWN, NULL}};
    size_t n = 0;

    NEED(!lzma_lzma_preset(&o, 1));
    NEED(lzma_stream_buffer_encode(f, LZMA_CHECK_CRC32, NULL, in.p, in.len, out, &n, cap) ==
         LZMA_OK);
    return n;
}

static size_t pack_lzma(struct blob in, uint8_t *out, size_t cap)
{
    lzma_options_lzma o;
    lzma_stream z = LZMA_STREAM_INIT;
    size_t n;

    NEED(!lzma_lzma_preset(&o, 1));
    NEED(lzma_alone_encoder(&z, &o) == LZMA_OK);
    z.next_in = in.p;
    z.avail_in = in.len;
    z.next_out = out;
    z.avail_out = cap;
    NEED(lzma_code(&z, LZMA_FINISH) == LZMA_STREAM_END);
    n = (size_t)z.total_out;
    lzma_end(&z);
    return n;
}

static size_t pack_zstd(struct blob in, uint8_t *out, size_t cap)
{
    size_t n = ZSTD_compress(out, cap, in.p, in.len, 3);

    NEED(!ZSTD_isError(n));
    return n;
}

static size_t pack_lz4(struct blob in, uint8_t *out, size_t cap)
{
    const uint32_t magic = 0x184c2102;
    size_t n = 4, block = 8 << 20;

    memcpy(out, &magic, 4);
    for (size_t at = 0; at < in.len; at += block) {
        int want = (int)(in.len - at < block ? in.len - at : block);
        int got = LZ4_compress_default((const char *)in.p + at, (char *)out + n + 4, want,
                                       (int)(cap - n - 4));

        NEED(got > 0);
        memcpy(out + n, &got, 4);
        n += 4 + (size_t)got;
    }
    return n;
}

static size_t pack_none(struct blob in, uint8_t *out, size_t cap)
{
    memcpy(out, in.p, in.len);
    return in.len;
}

struct blob pack(struct blob in, enum packing how)
{
    static size_t (*const fn[PACK_KINDS])(struct blob, uint8_t *, size_t) = {
        pack_gzip, pack_xz, pack_lzma, pack_zstd, pack_lz4, pack_none};
    size_t cap = in.len + in.len / 8 + 65536;
    struct blob b = {.p = malloc(cap)};

    NEED(b.p);
    b.len = fn[how](in, b.p, cap);
    return b;
}

static void put(struct blob *b, size_t off, uint64_t v, size_t n) { memcpy(b->p + off, &v, n); }

struct blob make_bzimage(struct blob payload, enum packing how, uint64_t pref, uint32_t init_size)
{
    struct blob z = pack(payload, how), b;
    const size_t setup = 2 * 512, off = 0x2cc;
    uint32_t size = (uint32_t)payload.len;
    size_t sys;

    if (how != PACK_GZIP) { /* gzip ends in the size by itself */
        z.p = realloc(z.p, z.len + 4);
        NEED(z.p);
        memcpy(z.p + z.len, &size, 4);
        z.len += 4;
    }
    sys = (off + z.len + 15) / 16 * 16;
    b.len = setup + sys;
    b.p = calloc(1, b.len);
    NEED(b.p);
    put(&b, 0x1f1, setup / 512 - 1, 1);
    put(&b, 0x1f4, sys / 16, 4);
    put(&b, 0x1fe, 0xaa55, 2);
    put(&b, 0x200, 0x6aeb, 2);
    memcpy(b.p + 0x202, "HdrS", 4);
    put(&b, 0x206, 0x020f, 2);
    put(&b, 0x211, 1, 1);
    put(&b, 0x22c, 0x7fffffff, 4);
    put(&b, 0x230, 0x200000, 4);
    put(&b, 0x236, 0x7f, 2);
    put(&b, 0x238, 2047, 4);
    put(&b, 0x248, off, 4);
    put(&b, 0x24c, z.len, 4);
    put(&b, 0x258, pref, 8);
    put(&b, 0x260, init_size, 4);
    memcpy(b.p + setup + off, z.p, z.len);
    free(z.p);
    return b;
}

static char dir[64];

char *file_write(const char *name, const void *p, size_t len)
{
    char *path = malloc(512);
    FILE *f;

    if (!dir[0]) {
        strcpy(dir, "/tmp/ring3-test-XXXXXX");
        NEED(mkdtemp(dir));
    }
    NEED(path);
    snprintf(path, 512, "%s/%s", dir, name);
    f = fopen(path, "wb");
    NEED(f);
    NEED(fwrite(p, 1, len, f) == len);
    NEED(fclose(f) == 0);
    return path;
}

void files_clean(void)
{
    struct dirent *d;
    DIR *x = dir[0] ? opendir(dir) : NULL;

    if (!x)
        return;
    while ((d = readdir(x))) {
        char path[512];

        snprintf(path, sizeof(path), "%s/%.200s", dir, d->d_name);
        unlink(path);
    }
    closedir(x);
    rmdir(dir);
    dir[0] = '\0';
}
