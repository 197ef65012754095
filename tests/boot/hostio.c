/*
 * A program for guests that tests what they share with the host. Static, so that it runs beside busybox.
 *
 *   hostio fsx DIR SEED N    N random operations on a file below DIR, compared with what memory says
 *   hostio tree DIR SEED N   N random operations on names below DIR, compared with the same ones below /tmp
 *   hostio connect PORT N    N bytes to that port of the host and back again
 *   hostio echo PORT COUNT   COUNT connections to that port of the guest, each answered with what it says
 *   hostio many PORT N       N connections to that port of the host, one after the other
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>
/* After sys/socket.h, which it needs. */
#include <linux/vm_sockets.h>

#define SIZE (1u << 20)
#define CHUNK 65536u

static uint64_t rng;

static uint32_t rnd(uint32_t below)
{
    rng = rng * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((rng >> 33) % below);
}

static void fail(const char *what, int i)
{
    printf("%s: operation %d: %s\n", what, i, strerror(errno));
    exit(1);
}

/* ---- one file ---- */

struct fsx {
    int fd;
    uint32_t size;
    uint8_t want[SIZE], buf[SIZE];
};

static void fsx_read(struct fsx *f, int i)
{
    uint32_t at = rnd(SIZE), n = rnd(SIZE / 4), left = at < f->size ? f->size - at : 0;

    n = n < SIZE - at ? n : SIZE - at;
    errno = 0;
    if (pread(f->fd, f->buf, n, at) != (ssize_t)(n < left ? n : left) || memcmp(f->buf, f->want + at, n < left ? n : left))
        fail("read", i);
}

static void fsx_write(struct fsx *f, int i)
{
    uint32_t at = rnd(SIZE - 1), n = rnd(rnd(8) ? 20000 : SIZE / 2);

    n = n < SIZE - at ? n : SIZE - at;
    for (uint32_t k = 0; k < n; k++)
        f->want[at + k] = (uint8_t)rnd(256);
    if (pwrite(f->fd, f->want + at, n, at) != (ssize_t)n)
        fail("write", i);
    if (n && at + n > f->size)
        f->size = at + n;
}

static void fsx_truncate(struct fsx *f, int i)
{
    uint32_t n = rnd(SIZE);

    if (ftruncate(f->fd, n))
        fail("truncate", i);
    if (n < f->size)
        memset(f->want + n, 0, f->size - n);
    f->size = n;
}

static void fsx_map(struct fsx *f, int i)
{
    uint8_t *p = f->size ? mmap(NULL, f->size, PROT_READ, MAP_PRIVATE, f->fd, 0) : NULL;

    if (!p)
        return;
    if (p == MAP_FAILED || memcmp(p, f->want, f->size))
        fail("map", i);
    munmap(p, f->size);
}

static int fsx(const char *dir, int n)
{
    static struct fsx f;
    char path[256], other[256];
    struct stat st;

    snprintf(path, sizeof(path), "%s/fsx", dir);
    snprintf(other, sizeof(other), "%s/fsx-other", dir);
    f.fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (f.fd < 0)
        fail("open", 0);
    for (int i = 1; i <= n; i++) {
        switch (rnd(12)) {
        case 0:
            fsx_truncate(&f, i);
            break;
        case 1:
            close(f.fd);
            f.fd = open(path, O_RDWR);
            if (f.fd < 0)
                fail("open", i);
            break;
        case 2:
            if (rename(path, other) || rename(other, path))
                fail("rename", i);
            break;
        case 3:
            if (fsync(f.fd))
                fail("fsync", i);
            break;
        case 4:
            fsx_map(&f, i);
            break;
        case 5:
            if (fallocate(f.fd, 0x03, rnd(SIZE / 2), 1) && errno != EOPNOTSUPP) /* a hole of one byte */
                fail("fallocate", i);
            if (pread(f.fd, f.want, f.size, 0) != (ssize_t)f.size)
                fail("read", i);
            break;
        case 6:
        case 7:
        case 8:
            fsx_write(&f, i);
            break;
        default:
            fsx_read(&f, i);
        }
        errno = 0;
        if (fstat(f.fd, &st) || st.st_size != f.size)
            fail("size", i);
    }
    close(f.fd);
    return 0;
}

/* ---- names ---- */

static int tree_op(const char *top, unsigned op, const char *a, const char *b, char *seen)
{
    char from[300], to[300], text[64] = "";
    struct stat st;
    int rc = 0, fd;

    snprintf(from, sizeof(from), "%s/%s", top, a);
    snprintf(to, sizeof(to), "%s/%s", top, b);
    errno = 0;
    switch (op) {
    case 0:
        rc = mkdir(from, 0750);
        break;
    case 1:
        fd = open(from, O_CREAT | O_EXCL | O_WRONLY, 0640);
        rc = fd < 0 ? -1 : (int)write(fd, a, strlen(a));
        close(fd);
        break;
    case 2:
        rc = rename(from, to);
        break;
    case 3:
        rc = link(from, to);
        break;
    case 4:
        rc = symlink(b, from);
        break;
    case 5:
        rc = unlink(from);
        break;
    case 6:
        rc = rmdir(from);
        break;
    case 7:
        rc = (int)readlink(from, text, sizeof(text) - 1);
        break;
    case 8:
        fd = open(from, O_RDONLY);
        rc = fd < 0 ? -1 : (int)read(fd, text, sizeof(text) - 1);
        if (fd >= 0)
            close(fd);
        break;
    default:
        rc = lstat(from, &st);
        if (!rc)
            snprintf(text, sizeof(text), "%o %d %d", st.st_mode, (int)(S_ISDIR(st.st_mode) ? 0 : st.st_nlink),
                     (int)(S_ISREG(st.st_mode) ? st.st_size : 0));
    }
    sprintf(seen, "%d %d %s", rc, rc < 0 ? errno : 0, text);
    return rc;
}

static int tree(const char *dir, int n)
{
    static const char *const dirs[] = {"", "x/", "y/", "x/y/", "y/x/"}, *const names[] = {"x", "y", "f", "g", "h"};
    char mine[256], a[32], b[32], one[128], two[128];

    snprintf(mine, sizeof(mine), "%s/tree", dir);
    mkdir(mine, 0755);
    mkdir("/tmp/tree", 0755);
    for (int i = 1; i <= n; i++) {
        unsigned op = rnd(12);

        snprintf(a, sizeof(a), "%s%s", dirs[rnd(5)], names[rnd(5)]);
        snprintf(b, sizeof(b), "%s%s", dirs[rnd(5)], names[rnd(5)]);
        tree_op(mine, op, a, b, one);
        tree_op("/tmp/tree", op, a, b, two);
        if (strcmp(one, two)) {
            printf("operation %d, %u %s %s: %s, not %s\n", i, op, a, b, one, two);
            return 1;
        }
    }
    return 0;
}

/* ---- sockets ---- */

static int dial(unsigned port)
{
    struct sockaddr_vm a = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = port};
    int fd = socket(AF_VSOCK, SOCK_STREAM, 0);

    if (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof(a)))
        fail("connect", (int)port);
    return fd;
}

static int connect_and_compare(unsigned port, uint64_t total)
{
    static uint8_t out[CHUNK], in[CHUNK];
    struct pollfd p = {.fd = dial(port)};
    uint64_t sent = 0, got = 0;

    fcntl(p.fd, F_SETFL, O_NONBLOCK);
    for (;;) {
        p.events = (short)(POLLIN | (sent < total ? POLLOUT : 0));
        poll(&p, 1, -1);
        if (p.revents & POLLOUT) {
            size_t n = CHUNK < total - sent ? CHUNK : (size_t)(total - sent);

            for (size_t i = 0; i < n; i++)
                out[i] = (uint8_t)((sent + i) * 2654435761u >> 24);
            ssize_t m = write(p.fd, out, n);
            if (m < 0 && errno != EAGAIN)
                fail("write", (int)sent);
            sent += (uint64_t)(m > 0 ? m : 0);
            if (sent == total)
                shutdown(p.fd, SHUT_WR);
        }
        if (p.revents & (POLLIN | POLLHUP)) {
            ssize_t m = read(p.fd, in, CHUNK);

            if (m == 0)
                break;
            if (m < 0 && errno != EAGAIN)
                fail("read", (int)got);
            for (ssize_t i = 0; i < m; i++) {
                if (in[i] != (uint8_t)((got + (uint64_t)i) * 2654435761u >> 24))
                    fail("wrong byte", (int)got);
            }
            got += (uint64_t)(m > 0 ? m : 0);
        }
    }
    if (got != total)
        fail("not all came back", (int)got);
    printf("connected %llu\n", (unsigned long long)got);
    return 0;
}

static int echo(unsigned port, int count)
{
    static uint8_t buf[CHUNK];
    struct sockaddr_vm a = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = port};
    int listener = socket(AF_VSOCK, SOCK_STREAM, 0);

    if (listener < 0 || bind(listener, (struct sockaddr *)&a, sizeof(a)) || listen(listener, 16))
        fail("listen", (int)port);
    printf("listening\n");
    fflush(stdout);
    while (count--) {
        int fd = accept(listener, NULL, NULL);
        ssize_t n;

        while ((n = read(fd, buf, sizeof(buf))) > 0) {
            for (ssize_t at = 0, m; at < n; at += m) {
                m = write(fd, buf + at, (size_t)(n - at));
                if (m < 0)
                    fail("write", count);
            }
        }
        close(fd);
    }
    return 0;
}

static int many(unsigned port, int n)
{
    char line[32], answer[32];

    for (int i = 0; i < n; i++) {
        int fd = dial(port), len = snprintf(line, sizeof(line), "%d\n", i);

        if (write(fd, line, (size_t)len) != len || read(fd, answer, sizeof(answer)) != len || memcmp(line, answer, (size_t)len))
            fail("talk", i);
        close(fd);
    }
    printf("connections %d\n", n);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 5) {
        rng = strtoull(argv[3], NULL, 0);
        return argv[1][0] == 'f' ? fsx(argv[2], atoi(argv[4])) : tree(argv[2], atoi(argv[4]));
    }
    if (argc != 4)
        return 2;
    unsigned port = (unsigned)atoi(argv[2]);
    if (!strcmp(argv[1], "connect"))
        return connect_and_compare(port, strtoull(argv[3], NULL, 0));
    return argv[1][0] == 'e' ? echo(port, atoi(argv[3])) : many(port, atoi(argv[3]));
}
