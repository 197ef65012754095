#include "machine/boot/disk.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/util.h"
#include "machine/boot/ext4.h"
#include "machine/boot/grubcfg.h"
#include "machine/boot/partition.h"

#define GRUB_CFG_MAX (1 * MIB)
#define VERSION_MAX 200

/* Where GRUB's files and kernels are: in the root file system, or in one of their own. */
static const char *const boot_dirs[] = {"/boot", ""};

struct search {
    struct ext4 *fs;
    const char *dir;
    uint64_t max;
    struct boot_files *out;
    struct err *e;
};

static int new_file(const char *name, struct err *e)
{
    int fd = memfd_create(name, MFD_CLOEXEC);

    return fd < 0 ? err_sys(e, "memory for a copy of the %s", name) : fd;
}

/* An initramfs in several files is their concatenation, each at a multiple of four. */
static int pad(int fd, struct err *e)
{
    struct stat st;

    if (fstat(fd, &st) || ftruncate(fd, (off_t)ALIGN_UP(st.st_size, 4)) || lseek(fd, 0, SEEK_END) < 0)
        return err_sys(e, "cannot keep a copy");
    return 0;
}

static int take_initrds(struct search *s, const char *paths)
{
    char *copy, *save = NULL;
    int rc = 0;

    if (!*paths)
        return 0;
    copy = strdup(paths);
    if (!copy)
        return err_set(s->e, ENOMEM, "no memory");
    s->out->initrd = new_file("initrd", s->e);
    if (s->out->initrd < 0)
        rc = s->out->initrd;
    for (char *p = strtok_r(copy, " ", &save); p && !rc; p = strtok_r(NULL, " ", &save)) {
        rc = pad(s->out->initrd, s->e);
        if (!rc)
            rc = ext4_copy(s->fs, p, s->out->initrd, s->max, s->e);
    }
    free(copy);
    return rc;
}

/* Takes ownership of cmdline, which may be NULL for lack of memory. */
static int take(struct search *s, const char *kernel, const char *initrds, char *cmdline)
{
    int rc;

    s->out->cmdline = cmdline;
    s->out->kernel_name = strdup(kernel);
    if (!cmdline || !s->out->kernel_name)
        return err_set(s->e, ENOMEM, "no memory");
    s->out->kernel = new_file("kernel", s->e);
    if (s->out->kernel < 0)
        return s->out->kernel;
    rc = ext4_copy(s->fs, kernel, s->out->kernel, s->max, s->e);
    return rc ? rc : take_initrds(s, initrds);
}

/* ---- by GRUB's configuration ---- */

static char *read_text(struct ext4 *fs, const char *path)
{
    struct stat st;
    char *text = NULL;
    int fd = new_file("grub.cfg", NULL);

    if (fd < 0)
        return NULL;
    if (!ext4_copy(fs, path, fd, GRUB_CFG_MAX, NULL) && !fstat(fd, &st))
        text = calloc(1, (size_t)st.st_size + 1);
    if (text && pread(fd, text, (size_t)st.st_size, 0) != st.st_size) {
        free(text);
        text = NULL;
    }
    close(fd);
    return text;
}

static int by_grub(struct search *s)
{
    struct grub_entry g;
    char path[64], *text;
    bool found;
    int rc;

    snprintf(path, sizeof(path), "%s/grub/grub.cfg", s->dir);
    text = read_text(s->fs, path);
    found = text && grubcfg_parse(text, &g);
    free(text);
    if (!found)
        return -ENOENT;
    rc = take(s, g.kernel, g.initrds, strdup(g.cmdline));
    grub_entry_free(&g);
    return rc;
}

/* ---- the newest in the folder ---- */

struct newest {
    const char *prefix;
    char version[VERSION_MAX]; /* "": none yet */
};

static void consider(void *arg, const char *name)
{
    struct newest *n = arg;
    size_t len = strlen(n->prefix);
    const char *version = name + len;

    if (strncmp(name, n->prefix, len) || !*version || strlen(version) >= VERSION_MAX ||
        strstr(version, "rescue"))
        return;
    if (!n->version[0] || strverscmp(version, n->version) > 0)
        strcpy(n->version, version);
}

struct wanted {
    const char *name;
    bool there;
};

static void match(void *arg, const char *name)
{
    struct wanted *w = arg;

    w->there |= !strcmp(name, w->name);
}

/* As the distributions name them. */
static const char *const initrd_names[] = {"initrd.img-%s", "initrd-%s", "initramfs-%s.img", "initrd-%s.img"};

static int by_name(struct search *s)
{
    struct newest n = {.prefix = "vmlinuz-"};
    char kernel[VERSION_MAX + 32], initrd[VERSION_MAX + 64] = "", uuid[EXT4_UUID_TEXT];
    char *cmdline = NULL;

    if (ext4_list(s->fs, *s->dir ? s->dir : "/", consider, &n) || !n.version[0])
        return -ENOENT;
    snprintf(kernel, sizeof(kernel), "%s/%s%s", s->dir, n.prefix, n.version);
    for (unsigned k = 0; k < ARRAY_LEN(initrd_names) && !*initrd; k++) {
        char name[VERSION_MAX + 32];
        struct wanted w = {.name = name};

        snprintf(name, sizeof(name), initrd_names[k], n.version);
        ext4_list(s->fs, *s->dir ? s->dir : "/", match, &w);
        if (w.there)
            snprintf(initrd, sizeof(initrd), "%s/%s", s->dir, name);
    }
    ext4_uuid(s->fs, uuid);
    /* A file system of kernels alone does not tell which one is the root. */
    if (*s->dir ? asprintf(&cmdline, "root=UUID=%s ro", uuid) < 0 : !(cmdline = strdup("")))
        cmdline = NULL;
    return take(s, kernel, initrd, cmdline);
}

/* ---- the disk ---- */

static void empty(struct boot_files *f) { *f = (struct boot_files){.kernel = -1, .initrd = -1}; }

void boot_files_free(struct boot_files *f)
{
    if (f->kernel >= 0)
        close(f->kernel);
    if (f->initrd >= 0)
        close(f->initrd);
    free(f->cmdline);
    free(f->kernel_name);
    empty(f);
}

static int look(const struct boot_disk *d, const struct partition *p, uint64_t max,
                struct boot_files *out, struct err *e)
{
    struct search s = {.max = max, .out = out, .e = e};
    int rc = ext4_open(&s.fs, d, p->start, p->size, e), (*const ways[])(struct search *) = {by_grub, by_name};

    if (rc)
        return rc;
    rc = -ENOENT;
    for (unsigned w = 0; w < ARRAY_LEN(ways) && rc; w++)
        for (unsigned k = 0; k < ARRAY_LEN(boot_dirs) && rc == -ENOENT; k++) {
            boot_files_free(out);
            s.dir = boot_dirs[k];
            rc = ways[w](&s);
        }
    ext4_close(s.fs);
    return rc;
}

/* "partition 1, /boot/vmlinuz": where it was. */
static int name_place(struct boot_files *f, unsigned number, struct err *e)
{
    char *name = NULL;

    if (!number)
        return 0;
    if (asprintf(&name, "partition %u, %s", number, f->kernel_name) < 0)
        return err_set(e, ENOMEM, "no memory");
    free(f->kernel_name);
    f->kernel_name = name;
    return 0;
}

int boot_disk_find(const struct boot_disk *d, uint64_t max, struct boot_files *out, struct err *e)
{
    struct partition *p = calloc(PARTITIONS_MAX + 1, sizeof(*p));
    struct err why = {""};
    unsigned n;
    int rc = -ENOENT;

    empty(out);
    if (!p)
        return err_set(e, ENOMEM, "no memory");
    n = partition_list(d, p);
    /* A file system that fills the disk may have what looks like a table in its boot block. */
    p[n++] = (struct partition){0, 0, d->size};
    for (unsigned k = 0; k < n && rc; k++) {
        rc = look(d, &p[k], max, out, &why);
        if (!rc)
            rc = name_place(out, p[k].number, &why);
        else if (rc != -ENOENT && p[k].number)
            err_prefix(&why, rc, "partition %u", p[k].number);
    }
    free(p);
    if (!rc)
        return 0;
    boot_files_free(out);
    if (why.msg[0])
        return err_set(e, ENOENT, "no kernel found: %s", why.msg);
    return err_set(e, ENOENT,
                   "no kernel found: looked for /boot/grub/grub.cfg and /boot/vmlinuz-* in ext2, ext3 and ext4 file "
                   "systems%s; give --kernel and --initrd",
                   n > 1 ? " of its partitions" : "");
}
