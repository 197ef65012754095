/* The boot loader: formats, placement, tables, and one clear error for everything that is wrong. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/util.h"
#include "image.h"
#include "machine/boot/boot.h"
#include "machine/boot/bzimage.h"
#include "machine/boot/elf.h"
#include "machine/boot/unpack.h"
#include "machine/memory.h"
#include "mem/ram.h"

#define RAM (32 * MIB)
#define PREF (16 * MIB)

struct fixture {
    struct ram *ram;
    struct physmap *map;
    struct memory_layout mem;
    struct cpu_state s;
    struct err e;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    struct err e;

    if (!f || ram_new(&f->ram, "test", RAM, &e) || physmap_new(&f->map, 40, &e) ||
        memory_map_ram(f->map, f->ram, &e))
        return -1;
    memory_layout_init(&f->mem, RAM);
    f->mem.rsdp = 0xe0000;
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    physmap_free(f->map);
    ram_free(f->ram);
    free(f);
    files_clean();
    return 0;
}

/* Code that compresses but is not trivial. */
static void *pattern(size_t n)
{
    uint8_t *p = malloc(n);
    uint32_t x = 1;

    assert_non_null(p);
    for (size_t i = 0; i < n; i++) {
        x = x * 1664525 + 1013904223;
        p[i] = i % 7 ? (uint8_t)(i >> 8) : (uint8_t)(x >> 24);
    }
    return p;
}

static int boot(struct fixture *f, const char *kernel, const char *initrd, const char *cmdline,
                enum boot_protocol protocol)
{
    const struct boot_cfg cfg = {
        .kernel = kernel, .initrd = initrd, .cmdline = cmdline, .protocol = protocol};
    struct boot *b;
    int rc;

    f->e.msg[0] = '\0';
    rc = boot_open(&b, &cfg, &f->e);
    if (rc)
        return rc;
    rc = boot_load(b, f->map, &f->mem, &f->s, &f->e);
    boot_close(b);
    return rc;
}

static struct blob elf(uint64_t paddr, size_t len, size_t memsz, uint32_t pvh, bool is32)
{
    void *code = pattern(len);
    struct elf_spec s = {.is32 = is32,
                         .paddr = paddr,
                         .code = code,
                         .code_len = len,
                         .memsz = memsz,
                         .entry = paddr + 0x40,
                         .pvh = pvh};
    struct blob b = make_elf(&s);

    free(code);
    return b;
}

static uint64_t peek(struct fixture *f, uint64_t gpa, unsigned n)
{
    uint64_t v = 0;

    assert_int_equal(mem_read(f->map, gpa, &v, n), 0);
    return v;
}

static void expect_error(struct fixture *f, int rc, const char *option, const char *reason)
{
    assert_int_not_equal(rc, 0);
    if (!strstr(f->e.msg, reason) || strncmp(f->e.msg, option, strlen(option)) != 0)
        fail_msg("message is: %s", f->e.msg);
    assert_null(strchr(f->e.msg, '\n'));
}

/* ---- what works ---- */

static void bzimage_of_each_packing_loads(void **state)
{
    struct fixture *f = *state;

    for (int how = 0; how < PACK_KINDS; how++) {
        struct blob k = elf(PREF, 3 * MIB, 4 * MIB, 0, false);
        struct blob z = make_bzimage(k, (enum packing)how, PREF, 8 * MIB);
        char *path = file_write("bz", z.p, z.len);
        uint8_t *code = pattern(3 * MIB), *got = malloc(4 * MIB);

        assert_int_equal(mem_write(f->map, PREF + 4 * MIB - 8, "garbage", 8), 0);
        if (boot(f, path, NULL, "console=ttyS0 quiet", BOOT_AUTO))
            fail_msg("packing %d: %s", how, f->e.msg);
        assert_int_equal(mem_read(f->map, PREF, got, 4 * MIB), 0);
        assert_memory_equal(got, code, 3 * MIB);
        assert_int_equal(peek(f, PREF + 4 * MIB - 8, 8), 0); /* the BSS is cleared */
        assert_int_equal(f->s.rip, PREF + 0x40);
        free(got);
        free(code);
        free(path);
        free(z.p);
        free(k.p);
    }
}

/* boot.rst, "64-bit Boot Protocol": what must hold at the entry. */
static void linux64_entry_state_and_zero_page(void **state)
{
    struct fixture *f = *state;
    struct blob k = elf(PREF, 0x10000, 0, 0, false);
    struct blob z = make_bzimage(k, PACK_GZIP, PREF, MIB);
    char initrd[10000], *kp = file_write("k", z.p, z.len), *ip;
    uint64_t zp, at, pml4, gdt;

    memset(initrd, 0x5a, sizeof(initrd));
    ip = file_write("i", initrd, sizeof(initrd));
    assert_int_equal(boot(f, kp, ip, "root=/dev/ram0", BOOT_AUTO), 0);

    assert_true(f->s.cr0 & CR0_PG);
    assert_true(f->s.cr0 & CR0_PE);
    assert_true(f->s.cr4 & CR4_PAE);
    assert_int_equal(f->s.efer, EFER_LME | EFER_LMA);
    assert_false(f->s.rflags & FL_IF);
    assert_int_equal(f->s.seg[CS].sel, 0x10);
    assert_int_equal(f->s.seg[DS].sel, 0x18);
    assert_int_equal(f->s.seg[SS].sel, 0x18);
    assert_true(f->s.seg[CS].attr & SEG_L);
    gdt = f->s.gdtr.base;
    assert_int_equal(peek(f, gdt + 0x10, 8) >> 40 & 0xff, 0x9b);
    assert_int_equal(peek(f, gdt + 0x18, 8) >> 40 & 0xff, 0x93);

    /* The identity map reaches everything below 4 GiB. */
    pml4 = peek(f, f->s.cr3, 8);
    for (uint64_t la = 0; la < 4 * GIB; la += 2 * MIB) {
        uint64_t pdpte = peek(f, (pml4 & ~0xfffull) + 8 * (la >> 30), 8);
        uint64_t pde = peek(f, (pdpte & ~0xfffull) + 8 * (la >> 21 & 511), 8);

        assert_true((pml4 & 3) == 3 && (pdpte & 3) == 3 && (pde & 0x83) == 0x83);
        assert_int_equal(pde & ~0xfffull, la);
    }

    zp = f->s.gpr[RSI];
    assert_int_equal(peek(f, zp + 0x1fe, 2), 0xaa55);
    assert_int_equal(peek(f, zp + 0x202, 4), 0x53726448);
    assert_int_equal(peek(f, zp + 0x210, 1), 0xff);
    assert_int_equal(peek(f, zp + 0x258, 8), PREF);
    assert_int_equal(peek(f, zp + 0x070, 8), 0xe0000);
    assert_int_equal(peek(f, zp + 0x21c, 4), sizeof(initrd));
    at = peek(f, zp + 0x218, 4);
    assert_int_equal(at & 0xfff, 0);
    assert_true(at + sizeof(initrd) <= RAM && at + sizeof(initrd) + PAGE_SIZE > RAM);
    assert_int_equal(peek(f, at, 1), 0x5a);
    assert_int_equal(peek(f, at + sizeof(initrd) - 1, 2), 0x5a);
    {
        char line[15];

        assert_int_equal(mem_read(f->map, peek(f, zp + 0x228, 4), line, sizeof(line)), 0);
        assert_string_equal(line, "root=/dev/ram0");
    }

    /* The memory map: sorted, disjoint, and its RAM is RAM. */
    {
        unsigned n = (unsigned)peek(f, zp + 0x1e8, 1);
        uint64_t end = 0, ram = 0;

        assert_true(n >= 3);
        for (unsigned i = 0; i < n; i++) {
            uint64_t e = zp + 0x2d0 + i * 20, base = peek(f, e, 8), size = peek(f, e + 8, 8);

            assert_true(base >= end);
            end = base + size;
            if (peek(f, e + 16, 4) == 1) {
                peek(f, base, 1);
                peek(f, end - 1, 1);
                ram += size;
            }
        }
        assert_true(ram > RAM - MIB && ram < RAM);
    }

    /* setup_data: one node, a random seed. */
    at = peek(f, zp + 0x250, 8);
    assert_int_not_equal(at, 0);
    assert_int_equal(peek(f, at, 8), 0);
    assert_int_equal(peek(f, at + 8, 4), 9);
    assert_int_equal(peek(f, at + 12, 4), 32);
    free(kp);
    free(ip);
    free(z.p);
    free(k.p);
}

static void pvh_entry_state_and_start_info(void **state)
{
    struct fixture *f = *state;

    for (int is32 = 0; is32 < 2; is32++) {
        struct blob k = elf(PREF, 0x1000, 0, PREF + 0x80, is32);
        char *kp = file_write("k", k.p, k.len), *ip = file_write("i", "initrd!", 7);
        uint64_t si, mod, n, map;

        if (boot(f, kp, ip, "a b", BOOT_AUTO))
            fail_msg("%s", f->e.msg);
        assert_int_equal(f->s.rip, PREF + 0x80);
        assert_int_equal(f->s.cr0 & ~CR0_ET, CR0_PE);
        assert_int_equal(f->s.cr4, 0);
        assert_int_equal(f->s.efer, 0);
        assert_int_equal(f->s.rflags & (FL_IF | FL_VM | FL_TF), 0);
        assert_int_equal(f->s.seg[CS].base, 0);
        assert_int_equal(f->s.seg[CS].limit, UINT32_MAX);
        assert_true(f->s.seg[CS].attr & SEG_DB);
        assert_false(f->s.seg[CS].attr & SEG_L);
        assert_int_equal(f->s.tr.limit, 0x67);
        si = f->s.gpr[RBX];
        assert_int_equal(peek(f, si, 4), 0x336ec578);
        assert_int_equal(peek(f, si + 4, 4), 1);
        assert_int_equal(peek(f, si + 12, 4), 1);
        mod = peek(f, si + 16, 8);
        assert_int_equal(peek(f, mod + 8, 8), 7);
        assert_int_equal(peek(f, peek(f, mod, 8), 1), 'i');
        assert_int_equal(peek(f, peek(f, si + 24, 8), 4), 0x622061);
        assert_int_equal(peek(f, si + 32, 8), 0xe0000);
        map = peek(f, si + 40, 8);
        n = peek(f, si + 48, 4);
        assert_int_equal(n, f->mem.n);
        for (unsigned i = 0; i < n; i++) {
            assert_int_equal(peek(f, map + i * 24, 8), f->mem.r[i].base);
            assert_int_equal(peek(f, map + i * 24 + 8, 8), f->mem.r[i].size);
            assert_int_equal(peek(f, map + i * 24 + 16, 4), f->mem.r[i].type);
        }
        free(kp);
        free(ip);
        free(k.p);
    }
}

static void protocol_can_be_chosen(void **state)
{
    struct fixture *f = *state;
    struct blob k = elf(PREF, 0x1000, 0, PREF + 0x80, false);
    struct blob z = make_bzimage(k, PACK_XZ, PREF, MIB);
    char *kp = file_write("k", k.p, k.len), *zp = file_write("z", z.p, z.len);

    assert_int_equal(boot(f, kp, NULL, "", BOOT_LINUX64), 0);
    assert_int_equal(f->s.rip, PREF + 0x40);
    assert_true(f->s.efer & EFER_LMA);
    assert_int_equal(boot(f, zp, NULL, "", BOOT_AUTO), 0);
    assert_int_equal(f->s.rip, PREF + 0x40);
    assert_int_equal(boot(f, zp, NULL, "", BOOT_PVH), 0);
    assert_int_equal(f->s.rip, PREF + 0x80);
    free(kp);
    free(zp);
    free(z.p);
    free(k.p);
}

/* The files are read again at each reset, even after they were unlinked. */
static void loads_again(void **state)
{
    struct fixture *f = *state;
    struct blob k = elf(PREF, 0x1000, 0, PREF, false);
    char *kp = file_write("k", k.p, k.len);
    const struct boot_cfg cfg = {.kernel = kp, .cmdline = ""};
    uint64_t first = 0;
    struct boot *b;

    assert_int_equal(boot_open(&b, &cfg, &f->e), 0);
    unlink(kp);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(boot_load(b, f->map, &f->mem, &f->s, &f->e), 0);
        if (i == 0)
            first = peek(f, PREF, 8);
        assert_int_equal(peek(f, PREF, 8), first);
        assert_int_equal(mem_zero(f->map, PREF, 0x1000), 0);
    }
    boot_close(b);
    free(kp);
    free(k.p);
}

/* ---- what must be refused ---- */

static void refuses_files(void **state)
{
    struct fixture *f = *state;
    struct blob k = elf(PREF, 0x1000, 0, PREF, false);
    char *kp = file_write("k", k.p, k.len), *empty = file_write("empty", "", 0);
    char *text = file_write("text", "just a text, and long enough to be looked at\n", 45);
    char fifo[512], *slash;

    expect_error(f, boot(f, "/nonexistent", NULL, "", BOOT_AUTO),
                 "--kernel: /nonexistent: ", "No such file or directory");
    expect_error(f, boot(f, kp, "/nonexistent", "", BOOT_AUTO),
                 "--initrd: /nonexistent: ", "No such file or directory");
    expect_error(f, boot(f, "/", NULL, "", BOOT_AUTO), "--kernel: /: ", "is a directory");
    expect_error(f, boot(f, "/dev/zero", NULL, "", BOOT_AUTO),
                 "--kernel: /dev/zero: ", "not a regular file");
    expect_error(f, boot(f, empty, NULL, "", BOOT_AUTO), "--kernel", "is empty");
    expect_error(f, boot(f, kp, empty, "", BOOT_AUTO), "--initrd", "is empty");
    expect_error(f, boot(f, text, NULL, "", BOOT_AUTO), "--kernel", "not a kernel");
    strcpy(fifo, kp);
    slash = strrchr(fifo, '/');
    strcpy(slash, "/fifo");
    assert_int_equal(mkfifo(fifo, 0600), 0);
    expect_error(f, boot(f, fifo, NULL, "", BOOT_AUTO), "--kernel", "not a regular file");
    free(kp);
    free(empty);
    free(text);
    free(k.p);
}

static void refuses_truncated_and_corrupt_images(void **state)
{
    struct fixture *f = *state;

    for (int how = 0; how < PACK_KINDS; how++) {
        struct blob k = elf(PREF, 0x40000, 0, 0, false);
        struct blob z = make_bzimage(k, (enum packing)how, PREF, MIB),
                    p = pack(k, (enum packing)how);
        uint8_t *out;
        size_t n;
        char *path;

        path = file_write("short", z.p, z.len / 2);
        expect_error(f, boot(f, path, NULL, "", BOOT_AUTO), "--kernel", "truncated");
        free(path);
        path = file_write("short", z.p, 0x240);
        expect_error(f, boot(f, path, NULL, "", BOOT_AUTO), "--kernel", "truncated");
        free(path);

        /* Payload cut while the container claims to be whole. */
        if (how != PACK_NONE) {
            assert_int_not_equal(unpack(p.p, p.len / 2, 0, RAM, &out, &n, &f->e), 0);
            assert_non_null(strstr(f->e.msg, "corrupt or truncated"));
        }
        /* A wrong size at the end of the payload. */
        if (how != PACK_GZIP) {
            size_t end = 1024 + 0x2cc;
            uint32_t plen;

            memcpy(&plen, z.p + 0x24c, 4);
            z.p[end + plen - 4] ^= 1;
            path = file_write("size", z.p, z.len);
            expect_error(f, boot(f, path, NULL, "", BOOT_AUTO), "--kernel", "corrupt bzImage");
            free(path);
            z.p[end + plen - 4] ^= 1;
        }
        /* A flipped byte in the middle of the payload; lzma and plain payloads carry no checksum.
         */
        if (how == PACK_GZIP || how == PACK_XZ) {
            z.p[1024 + 0x2cc + p.len / 2] ^= 0x55;
            path = file_write("flip", z.p, z.len);
            expect_error(f, boot(f, path, NULL, "", BOOT_AUTO), "--kernel", "corrupt");
            free(path);
        }
        free(p.p);
        free(z.p);
        free(k.p);
    }
}

static void refuses_other_compressions(void **state)
{
    static const struct {
        const char *magic, *reason;
    } bad[] = {
        {"BZh91AY&SY", "unsupported compression bzip2"},
        {"\x89LZO\r\n\x1a\n\0\0", "unsupported compression lzo"},
        {"\1\2\3\4\5\6\7\10\11\12", "unknown compression"},
    };
    struct fixture *f = *state;

    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        struct blob k = elf(PREF, 0x1000, 0, 0, false);
        struct blob z = make_bzimage(k, PACK_NONE, PREF, MIB);
        char *path;

        memcpy(z.p + 1024 + 0x2cc, bad[i].magic, 10);
        path = file_write("bad", z.p, z.len);
        expect_error(f, boot(f, path, NULL, "", BOOT_AUTO), "--kernel", bad[i].reason);
        free(path);
        free(z.p);
        free(k.p);
    }
}

static void refuses_headers(void **state)
{
    static const struct {
        size_t off;
        uint64_t val;
        size_t n;
        const char *reason;
    } bad[] = {
        {0x206, 0x0207, 2, "boot protocol 2.07 is too old"},
        {0x211, 0, 1, "zImage"},
        {0x236, 0, 2, "32-bit kernel"},
        {0x1f4, 0xffffffff, 4, "truncated"},
        {0x1f1, 0xff, 1, "truncated"},
        {0x248, 0, 4, "it has no payload"},
        {0x248, 0xfffffff0, 4, "payload is outside the file"},
        {0x24c, 0xffffffff, 4, "payload is outside the file"},
        {0x24c, 4, 4, "payload is outside the file"},
        {0x201, 0, 1, "header's length"},
        {0x260, 0x7fffffff, 4, "raise --memory"},
        {0x238, 3, 4, "--append"},
    };
    struct fixture *f = *state;
    struct blob k = elf(PREF, 0x1000, 0, 0, false);

    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        struct blob z = make_bzimage(k, PACK_ZSTD, PREF, MIB);
        char *path;

        memcpy(z.p + bad[i].off, &bad[i].val, bad[i].n);
        path = file_write("bad", z.p, z.len);
        expect_error(f, boot(f, path, NULL, "four", BOOT_AUTO), "--", bad[i].reason);
        free(path);
        free(z.p);
    }
    free(k.p);
}

/* The header counts in paragraphs of 16 bytes, the file may end within the last. */
static void last_paragraph_may_be_short(void **state)
{
    struct fixture *f = *state;
    struct blob k = elf(PREF, 0x1000, 0, 0, false), z = make_bzimage(k, PACK_ZSTD, PREF, MIB);
    uint32_t used = 1024 + 0x2cc, n;
    char *path;

    memcpy(&n, z.p + 0x24c, sizeof(n));
    used += n;
    assert_true(used % 16 != 0 && z.len == ALIGN_UP(used, 16));
    path = file_write("odd", z.p, used);
    assert_int_equal(boot(f, path, NULL, "", BOOT_AUTO), 0);
    free(path);
    free(z.p);
    free(k.p);
}

static void refuses_elf(void **state)
{
    static const struct {
        size_t off;
        uint64_t val;
        size_t n;
        const char *reason;
    } bad[] = {
        {4, 3, 1, "another processor"},    /* class */
        {5, 2, 1, "another processor"},    /* big-endian */
        {18, 183, 2, "another processor"}, /* AArch64 */
        {16, 1, 2, "not an executable"},   /* ET_REL */
        {54, 55, 2, "program header size"},
        {56, 0xffff, 2, "truncated"},          /* e_phnum */
        {32, UINT64_MAX - 10, 8, "truncated"}, /* e_phoff */
        {56, 0, 2, "nothing to load"},
        {64 + 8, UINT64_MAX, 8, "truncated"},   /* p_offset */
        {64 + 32, UINT64_MAX, 8, "truncated"},  /* p_filesz */
        {64 + 40, 16, 8, "contradict"},         /* p_memsz < p_filesz */
        {64 + 40, UINT64_MAX, 8, "contradict"}, /* p_paddr + p_memsz wraps */
        {64 + 40, 1ull << 40, 8, "raise --memory"},
        {64 + 24, 0x1000, 8, "entry point"}, /* p_paddr */
        {24, 0x1000, 8, "entry point"},
        {64, 3, 4, "a program, not a kernel"}, /* p_type: PT_INTERP */
        {64, 7, 4, "a program, not a kernel"}, /* PT_TLS */
    };
    struct fixture *f = *state;

    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        struct blob k = elf(PREF, 0x1000, 0, 0, false);
        char *path;

        memcpy(k.p + bad[i].off, &bad[i].val, bad[i].n);
        path = file_write("bad", k.p, k.len);
        expect_error(f, boot(f, path, NULL, "", BOOT_AUTO), "--kernel", bad[i].reason);
        free(path);
        free(k.p);
    }
    {
        struct blob k = elf(0x8000, 0x1000, 0, 0, false), n = elf(PREF, 0x1000, 0, 0, true);
        char *low = file_write("low", k.p, k.len), *no = file_write("no", n.p, n.len);

        expect_error(f, boot(f, low, NULL, "", BOOT_AUTO), "--kernel", "below 1 MiB");
        expect_error(f, boot(f, no, NULL, "", BOOT_AUTO), "--kernel", "no PVH entry point");
        expect_error(f, boot(f, no, NULL, "", BOOT_LINUX64), "--kernel", "32-bit ELF file");
        free(low);
        free(no);
        free(k.p);
        free(n.p);
    }
}

static void refuses_what_does_not_fit(void **state)
{
    struct fixture *f = *state;
    struct blob k = elf(PREF, 0x1000, 0, 0, false), big = elf(PREF, 0x1000, RAM, 0, false);
    struct blob huge = {calloc(1, RAM + MIB), RAM + MIB};
    char *kp = file_write("k", k.p, k.len), *bp = file_write("b", big.p, big.len);
    char *ip = file_write("i", huge.p, RAM - PREF), *line = malloc(3000), *hp;
    struct blob z;

    expect_error(f, boot(f, bp, NULL, "", BOOT_AUTO), "--kernel", "raise --memory");
    expect_error(f, boot(f, kp, ip, "", BOOT_AUTO), "--initrd", "does not fit");
    memset(line, 'x', 2999);
    line[2999] = '\0';
    expect_error(f, boot(f, kp, NULL, line, BOOT_AUTO), "--append", "at most 2047");
    line[2047] = '\0';
    assert_int_equal(boot(f, kp, NULL, line, BOOT_AUTO), 0);
    /* A payload that would unpack to more than the guest has is not unpacked to the end. */
    for (int how = 0; how < PACK_KINDS; how++) {
        z = make_bzimage(huge, (enum packing)how, PREF, MIB);
        hp = file_write("h", z.p, z.len);
        if (how == PACK_NONE)
            expect_error(f, boot(f, hp, NULL, "", BOOT_AUTO), "--kernel", "unknown compression");
        else
            expect_error(f, boot(f, hp, NULL, "", BOOT_AUTO), "--kernel", "raise --memory");
        free(hp);
        free(z.p);
    }
    free(line);
    free(kp);
    free(bp);
    free(ip);
    free(k.p);
    free(big.p);
    free(huge.p);
}

/* initrd_addr_max bounds the place of the initrd even where there is more memory. */
static void initrd_stays_below_its_limit(void **state)
{
    struct fixture *f = *state;
    struct blob k = elf(PREF, 0x1000, 0, 0, false);
    struct blob z = make_bzimage(k, PACK_LZ4, PREF, MIB);
    uint32_t max = 24 * MIB - 1;
    char *kp, *ip = file_write("i", "x", 1);

    memcpy(z.p + 0x22c, &max, 4);
    kp = file_write("k", z.p, z.len);
    assert_int_equal(boot(f, kp, ip, "", BOOT_AUTO), 0);
    assert_int_equal(peek(f, f->s.gpr[RSI] + 0x218, 4), 24 * MIB - PAGE_SIZE);
    free(kp);
    free(ip);
    free(z.p);
    free(k.p);
}

static void layout_keeps_order_and_refuses_overlap(void **state)
{
    struct memory_layout l;
    struct err e;

    memory_layout_init(&l, 8 * GIB);
    assert_int_equal(l.low_end, 3 * GIB);
    assert_int_equal(memory_layout_reserve(&l, 0xe0000000, 0x10000000, &e), 0);
    assert_int_equal(memory_layout_reserve(&l, 0xfec00000, 0x1000, &e), 0);
    assert_int_not_equal(memory_layout_reserve(&l, 0xefff0000, 0x20000, &e), 0);
    assert_int_not_equal(memory_layout_reserve(&l, 0x100000, 0x1000, &e), 0);
    assert_int_not_equal(memory_layout_reserve(&l, UINT64_MAX, 2, &e), 0);
    for (unsigned i = 1; i < l.n; i++)
        assert_true(l.r[i].base >= l.r[i - 1].base + l.r[i - 1].size);
    assert_int_equal(l.r[l.n - 1].base, 4 * GIB);
    assert_int_equal(l.r[l.n - 1].size, 5 * GIB);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bzimage_of_each_packing_loads),
        cmocka_unit_test(linux64_entry_state_and_zero_page),
        cmocka_unit_test(pvh_entry_state_and_start_info),
        cmocka_unit_test(protocol_can_be_chosen),
        cmocka_unit_test(loads_again),
        cmocka_unit_test(refuses_files),
        cmocka_unit_test(refuses_truncated_and_corrupt_images),
        cmocka_unit_test(refuses_other_compressions),
        cmocka_unit_test(refuses_headers),
        cmocka_unit_test(last_paragraph_may_be_short),
        cmocka_unit_test(refuses_elf),
        cmocka_unit_test(refuses_what_does_not_fit),
        cmocka_unit_test(initrd_stays_below_its_limit),
        cmocka_unit_test(layout_keeps_order_and_refuses_overlap),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
