/* Guest RAM: a sealed memfd mapped between two guard pages, and what the host allows. */
#include "mem/ram.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "base/util.h"

/* Mappings start at a multiple of this, so that the host may back them with huge pages. */
#define HOST_ALIGN (2 * MIB)

struct limit {
    uint64_t bytes;
    const char *why;
};

static void lower(struct limit *l, uint64_t bytes, const char *why)
{
    if (bytes < l->bytes) {
        l->bytes = bytes;
        l->why = why;
    }
}

static void lower_rlimit(struct limit *l, int resource, const char *why)
{
    struct rlimit r;

    if (!getrlimit(resource, &r) && r.rlim_cur != RLIM_INFINITY)
        lower(l, r.rlim_cur, why);
}

/* A number alone in a file; "max" (cgroup v2) and unreadable files set no limit. */
static void lower_file(struct limit *l, const char *path, const char *why)
{
    unsigned long long v;
    FILE *f = fopen(path, "re");

    if (!f)
        return;
    if (fscanf(f, "%llu", &v) == 1)
        lower(l, v, why);
    fclose(f);
}

/* The limits of our cgroup and of all above it. path starts with '/' and is eaten up. */
static void lower_cgroup(struct limit *l, const char *mount, char *path, const char *file)
{
    char name[4096];

    for (;;) {
        char *slash = strrchr(path, '/');

        if (snprintf(name, sizeof(name), "%s%s/%s", mount, path, file) < (int)sizeof(name))
            lower_file(l, name, "memory limit of the control group");
        if (!slash)
            return;
        *slash = '\0';
    }
}

/* /proc/self/cgroup (cgroups(7)): "0::/path" for v2, "N:memory:/path" for v1. */
static void lower_cgroups(struct limit *l)
{
    FILE *f = fopen("/proc/self/cgroup", "re");
    char line[2048];

    if (!f)
        return;
    while (fgets(line, sizeof(line), f)) {
        char *ctrl = strchr(line, ':');
        char *path = ctrl ? strchr(ctrl + 1, ':') : NULL;

        if (!path || path[1] != '/')
            continue;
        *path++ = '\0';
        path[strcspn(path, "\n")] = '\0';
        if (!ctrl[1])
            lower_cgroup(l, "/sys/fs/cgroup", path, "memory.max");
        else if (!strcmp(ctrl + 1, "memory"))
            lower_cgroup(l, "/sys/fs/cgroup/memory", path, "memory.limit_in_bytes");
    }
    fclose(f);
}

static struct limit host_limit(void)
{
    struct limit l = {.bytes = UINT64_MAX, .why = "address space"};
    struct sysinfo si;

    if (!sysinfo(&si))
        lower(&l, ((uint64_t)si.totalram + si.totalswap) * si.mem_unit, "physical memory and swap");
    lower_rlimit(&l, RLIMIT_AS, "RLIMIT_AS (ulimit -v)");
    /* A memfd is a file: growing it past this limit would even be a signal. */
    lower_rlimit(&l, RLIMIT_FSIZE, "RLIMIT_FSIZE (ulimit -f)");
    lower_cgroups(&l);
    return l;
}

uint64_t ram_host_limit(void) { return host_limit().bytes; }

/* Reserves address space for size bytes and a guard page on either side; NULL if there is none. */
static uint8_t *reserve(uint64_t size)
{
    uint64_t total = size + HOST_ALIGN + 2 * PAGE_SIZE, head, tail;
    uint8_t *p, *host;

    p = mmap(NULL, total, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    host = (uint8_t *)(uintptr_t)ALIGN_UP((uintptr_t)p + PAGE_SIZE, HOST_ALIGN);
    head = (uint64_t)(host - p) - PAGE_SIZE;
    tail = total - head - size - 2 * PAGE_SIZE;
    if (head)
        munmap(p, head);
    if (tail)
        munmap(host + size + PAGE_SIZE, tail);
    return host;
}

int ram_new(struct ram **out, const char *name, uint64_t size, struct err *e)
{
    const double mib = (double)MIB;
    struct limit limit;
    struct ram *r;
    int rc;

    if (!size || size & PAGE_MASK)
        return err_set(e, EINVAL, "%s: %llu bytes of memory: must be a positive multiple of 4 KiB",
                       name, (unsigned long long)size);
    limit = host_limit();
    if (size > limit.bytes)
        return err_set(e, ENOMEM,
                       "%s: %.1f MiB of memory asked for, this host allows %.1f MiB (%s)", name,
                       (double)size / mib, (double)limit.bytes / mib, limit.why);
    r = calloc(1, sizeof(*r));
    if (!r)
        return err_set(e, ENOMEM, "%s: no memory for its description", name);
    snprintf(r->name, sizeof(r->name), "%s", name);
    r->size = size;

    r->fd = memfd_create(r->name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (r->fd < 0) {
        rc = err_sys(e, "%s: cannot create a memory file", name);
        goto out_free;
    }
    if (ftruncate(r->fd, (off_t)size) < 0) {
        rc = err_sys(e, "%s: cannot size its memory file to %.1f MiB", name, (double)size / mib);
        goto out_close;
    }
    if (fcntl(r->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
        rc = err_sys(e, "%s: cannot seal its memory file", name);
        goto out_close;
    }
    r->host = reserve(size);
    if (!r->host) {
        rc = err_sys(e, "%s: no address space for %.1f MiB of memory (limit here: %.1f MiB, %s)",
                     name, (double)size / mib, (double)limit.bytes / mib, limit.why);
        goto out_close;
    }
    if (mmap(r->host, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, r->fd, 0) ==
        MAP_FAILED) {
        rc = err_sys(e, "%s: cannot map %.1f MiB of memory", name, (double)size / mib);
        goto out_unmap;
    }
    *out = r;
    return 0;

out_unmap:
    munmap(r->host - PAGE_SIZE, size + 2 * PAGE_SIZE);
out_close:
    close(r->fd);
out_free:
    free(r);
    return rc;
}

void ram_free(struct ram *r)
{
    if (!r)
        return;
    munmap(r->host - PAGE_SIZE, r->size + 2 * PAGE_SIZE);
    close(r->fd);
    free(r);
}
