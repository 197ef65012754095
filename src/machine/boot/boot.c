#include "machine/boot/boot.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "machine/boot/bzimage.h"
#include "machine/boot/elf.h"
#include "machine/boot/entry.h"
#include "machine/boot/image.h"
#include "machine/boot/unpack.h"

/* No kernel file is larger; anything that is would only waste memory before it is refused. */
#define KERNEL_FILE_MAX (1 * GIB)
/* Linux' COMMAND_LINE_SIZE on x86 less the NUL, for ELF files, which do not say. */
#define ELF_CMDLINE_MAX 2047u

struct source {
    const char *option; /* how the user named it */
    char *path;
    int fd; /* -1 when not given */
};

struct boot {
    struct source kernel, initrd;
    char *cmdline;
    char *image, *image_format; /* the files are on a disk; else NULL */
    char *append;               /* what the user adds to the disk's command line */
    enum boot_protocol protocol;
};

static int source_err(const struct source *s, int rc, struct err *e)
{
    return err_prefix(e, rc, "%s: %s", s->option, s->path);
}

static int source_open(struct source *s, const char *option, const char *path, struct err *e)
{
    struct stat st;
    int rc;

    s->option = option;
    s->path = strdup(path);
    if (!s->path)
        return err_set(e, ENOMEM, "no memory");
    /* O_NONBLOCK: opening a FIFO must fail, not wait for its writer. */
    s->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (s->fd < 0) {
        rc = -errno;
        err_set(e, -rc, "%s", strerror(-rc));
    } else if (fstat(s->fd, &st)) {
        rc = -errno;
        err_set(e, -rc, "%s", strerror(-rc));
    } else if (S_ISDIR(st.st_mode)) {
        rc = err_set(e, EISDIR, "is a directory");
    } else if (!S_ISREG(st.st_mode)) {
        rc = err_set(e, EINVAL, "not a regular file");
    } else if (st.st_size == 0) {
        rc = err_set(e, EINVAL, "is empty");
    } else {
        return 0;
    }
    return source_err(s, rc, e);
}

static void source_close(struct source *s)
{
    if (s->fd >= 0)
        close(s->fd);
    free(s->path);
}

/* The size now: the file may have changed since the last reset. */
static int source_size(const struct source *s, uint64_t *size, struct err *e)
{
    struct stat st;

    if (fstat(s->fd, &st))
        return err_sys(e, "cannot read");
    *size = (uint64_t)st.st_size;
    return 0;
}

static int source_read(const struct source *s, void *buf, uint64_t n, struct err *e)
{
    uint64_t done = 0;

    while (done < n) {
        ssize_t got = pread(s->fd, (uint8_t *)buf + done, n - done, (off_t)done);

        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return err_sys(e, "cannot read");
        if (got == 0)
            return err_set(e, EIO, "became shorter while it was read");
        done += (uint64_t)got;
    }
    return 0;
}

int boot_open(struct boot **out, const struct boot_cfg *cfg, struct err *e)
{
    struct boot *b = calloc(1, sizeof(*b));
    int rc;

    if (!b)
        return err_set(e, ENOMEM, "no memory");
    b->kernel.fd = b->initrd.fd = -1;
    b->protocol = cfg->protocol;
    b->cmdline = strdup(cfg->cmdline);
    b->append = strdup(cfg->cmdline);
    rc = b->cmdline && b->append ? 0 : err_set(e, ENOMEM, "no memory");
    if (!cfg->kernel) {
        b->image = strdup(cfg->image);
        b->image_format = cfg->image_format ? strdup(cfg->image_format) : NULL;
        if (!b->image || (cfg->image_format && !b->image_format))
            rc = err_set(e, ENOMEM, "no memory");
    }
    if (!rc && cfg->kernel)
        rc = source_open(&b->kernel, "--kernel", cfg->kernel, e);
    if (!rc && cfg->kernel && cfg->initrd)
        rc = source_open(&b->initrd, "--initrd", cfg->initrd, e);
    if (rc) {
        boot_close(b);
        return rc;
    }
    *out = b;
    return 0;
}

void boot_close(struct boot *b)
{
    if (!b)
        return;
    source_close(&b->kernel);
    source_close(&b->initrd);
    free(b->cmdline);
    free(b->append);
    free(b->image);
    free(b->image_format);
    free(b);
}

/* The disk's command line, what the user adds, and the one console there is unless they name others. */
static char *join_cmdline(const char *disk, const char *user)
{
    bool console = strstr(disk, "console=") || strstr(user, "console=");
    char *s;

    return asprintf(&s, "%s%s%s%s", disk, *disk && *user ? " " : "", user,
                    console ? "" : " console=ttyS0") < 0
               ? NULL
               : s;
}

/* Reads kernel and initrd from the disk; they are then files like others, in memory. */
static int take_from_disk(struct boot *b, const struct memory_layout *mem, struct err *e)
{
    struct boot_files f;
    int rc = boot_image_find(b->image, b->image_format, mem->total, &f, e);

    if (rc)
        return err_prefix(e, rc, "--disk");
    source_close(&b->kernel);
    source_close(&b->initrd);
    free(b->cmdline);
    b->kernel = (struct source){"--disk", f.kernel_name, f.kernel};
    b->initrd = (struct source){"--disk", strdup("initrd"), f.initrd};
    b->cmdline = join_cmdline(f.cmdline, b->append);
    free(f.cmdline);
    return b->initrd.path && b->cmdline ? 0 : err_set(e, ENOMEM, "no memory");
}

/* A kernel while it is being loaded. */
struct kernel {
    uint8_t *file, *unpacked; /* owned */
    bool is_bz, pvh;
    struct bzimage bz;
    struct elf_image elf;
    uint64_t end;        /* of what it occupies while starting */
    uint64_t initrd_top; /* the initrd must end at or below */
    uint32_t cmdline_max;
};

static void kernel_free(struct kernel *k)
{
    free(k->file);
    free(k->unpacked);
}

static int parse_bzimage(struct kernel *k, size_t len, uint64_t ram, struct err *e)
{
    size_t n = 0;
    int rc = bzimage_parse(&k->bz, k->file, len, e);

    if (rc)
        return rc;
    /* What does not even fit into the guest's memory is not worth unpacking. */
    rc = unpack(k->bz.payload, k->bz.payload_len, k->bz.unpacked_len, MIN(ram, 2 * GIB),
                &k->unpacked, &n, e);
    if (rc == -EFBIG)
        return err_set(e, EINVAL, "the kernel does not fit in %llu MiB of memory: raise --memory",
                       (unsigned long long)(ram / MIB));
    if (rc)
        return rc;
    if ((uint32_t)n != k->bz.unpacked_len)
        return err_set(e, EINVAL, "corrupt bzImage: the payload unpacks to %zu bytes, not %u", n,
                       k->bz.unpacked_len);
    rc = elf_parse(&k->elf, k->unpacked, n, e);
    return rc ? err_prefix(e, rc, "payload") : 0;
}

/* Which way in? */
static int choose_entry(struct kernel *k, enum boot_protocol want, struct err *e)
{
    k->pvh = want == BOOT_PVH || (want == BOOT_AUTO && !k->is_bz && k->elf.has_pvh) ||
             (want == BOOT_AUTO && !k->elf.is64);
    if (k->pvh && !k->elf.has_pvh)
        return err_set(e, ENOTSUP, "has no PVH entry point (ELF note XEN_ELFNOTE_PHYS32_ENTRY)");
    if (!k->pvh && !k->elf.is64)
        return err_set(e, ENOTSUP, "a 32-bit ELF file; the 64-bit protocol needs a 64-bit one");
    if (!elf_contains(&k->elf, k->pvh ? k->elf.pvh_entry : k->elf.entry))
        return err_set(e, EINVAL, "its entry point is outside what it loads");
    return 0;
}

static int check_place(struct kernel *k, const struct memory_layout *mem, struct err *e)
{
    k->end = k->elf.hi;
    if (k->is_bz && k->bz.init_size && k->elf.lo <= UINT64_MAX - k->bz.init_size)
        k->end = MAX(k->end, k->elf.lo + k->bz.init_size);
    if (k->elf.lo < BOOT_KERNEL_MIN)
        return err_set(e, EINVAL, "loads at %#llx, below 1 MiB", (unsigned long long)k->elf.lo);
    if (k->end > mem->low_end)
        return err_set(e, EINVAL,
                       "needs memory up to %llu MiB, the machine has %llu MiB: raise --memory",
                       (unsigned long long)(ALIGN_UP(k->end, MIB) / MIB),
                       (unsigned long long)(mem->total / MIB));
    k->initrd_top = mem->low_end;
    k->cmdline_max = ELF_CMDLINE_MAX;
    if (k->is_bz) {
        k->initrd_top = MIN(k->initrd_top, (uint64_t)k->bz.initrd_max + 1);
        k->cmdline_max = MIN(k->bz.cmdline_max, BOOT_CMDLINE_MAX - 1);
    }
    return 0;
}

static int load_kernel(struct boot *b, struct kernel *k, struct physmap *map,
                       const struct memory_layout *mem, struct err *e)
{
    uint64_t len = 0;
    int rc = source_size(&b->kernel, &len, e);

    if (rc)
        return rc;
    if (len > KERNEL_FILE_MAX)
        return err_set(e, EFBIG, "too large to be a kernel");
    k->file = malloc(len ? len : 1);
    if (!k->file)
        return err_set(e, ENOMEM, "no memory to read the kernel");
    rc = source_read(&b->kernel, k->file, len, e);
    if (rc)
        return rc;
    if (bzimage_detect(k->file, len)) {
        k->is_bz = true;
        rc = parse_bzimage(k, len, mem->total, e);
    } else if (elf_detect(k->file, len)) {
        rc = elf_parse(&k->elf, k->file, len, e);
    } else {
        rc = err_set(e, EINVAL, "not a kernel: neither a bzImage nor an ELF file");
    }
    if (!rc)
        rc = choose_entry(k, b->protocol, e);
    if (!rc)
        rc = check_place(k, mem, e);
    if (!rc)
        rc = elf_load(&k->elf, map, e);
    return rc;
}

/* As high as it may be, page-aligned, above the kernel. */
static int load_initrd(struct boot *b, const struct kernel *k, struct physmap *map,
                       struct boot_content *c, struct err *e)
{
    uint64_t size = 0, base, floor = ALIGN_UP(k->end, PAGE_SIZE);
    void *p;
    int rc = source_size(&b->initrd, &size, e);

    if (rc)
        return rc;
    if (floor > k->initrd_top || size > k->initrd_top - floor)
        return err_set(
            e, EINVAL,
            "does not fit: %llu MiB, and %llu MiB are free above the kernel: "
            "raise --memory",
            (unsigned long long)(ALIGN_UP(size, MIB) / MIB),
            (unsigned long long)(floor > k->initrd_top ? 0 : (k->initrd_top - floor) / MIB));
    base = ALIGN_DOWN(k->initrd_top - size, PAGE_SIZE);
    p = mem_map(map, base, size, true);
    if (!p)
        return err_set(e, EINVAL, "cannot be placed at %#llx", (unsigned long long)base);
    rc = source_read(&b->initrd, p, size, e);
    mem_unmap(map, base, size, true);
    c->initrd = base;
    c->initrd_size = size;
    return rc;
}

static int load_cmdline(const struct boot *b, const struct kernel *k, struct physmap *map,
                        struct boot_content *c, struct err *e)
{
    size_t n = strlen(b->cmdline);

    if (n > k->cmdline_max)
        return err_set(e, EINVAL, "--append: %zu characters, the kernel takes at most %u", n,
                       k->cmdline_max);
    if (mem_write(map, BOOT_CMDLINE, b->cmdline, n + 1))
        return err_set(e, EINVAL, "no memory below 640 KiB");
    c->cmdline_len = (uint32_t)n;
    return 0;
}

/* What firmware leaves behind and kernels expect: all memory write-back (SDM vol. 3 §12.11). */
static void firmware_state(struct cpu_state *s)
{
    const uint64_t enable = BIT(11), write_back = 6;

    cpu_state_reset(s);
    s->mtrr_def = enable | write_back;
}

int boot_load(struct boot *b, struct physmap *map, const struct memory_layout *mem,
              struct cpu_state *s, struct err *e)
{
    struct kernel *k = calloc(1, sizeof(*k));
    struct boot_content c = {0};
    int rc;

    if (!k)
        return err_set(e, ENOMEM, "no memory");
    rc = b->image ? take_from_disk(b, mem, e) : 0;
    if (rc)
        goto out;
    rc = load_kernel(b, k, map, mem, e);
    if (rc) {
        source_err(&b->kernel, rc, e);
        goto out;
    }
    if (b->initrd.fd >= 0) {
        rc = load_initrd(b, k, map, &c, e);
        if (rc) {
            source_err(&b->initrd, rc, e);
            goto out;
        }
    }
    rc = load_cmdline(b, k, map, &c, e);
    if (rc)
        goto out;
    firmware_state(s);
    c.bz = k->is_bz ? &k->bz : NULL;
    c.entry = k->pvh ? k->elf.pvh_entry : k->elf.entry;
    rc = k->pvh ? pvh_enter(map, mem, &c, s, e) : linux64_enter(map, mem, &c, s, e);
out:
    kernel_free(k);
    free(k);
    return rc;
}
