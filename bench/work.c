/*
 * The benchmark's workloads: one static program for the host and for guests, so that both run the same
 * instructions.
 *
 * usage: work data FILE BYTES          makes a file of pseudo-random bytes
 *        work NAME COUNT [ARGUMENT]... runs a workload
 *
 * A workload prints one line "work NAME NANOSECONDS CHECKSUM"; the checksum must not depend on the machine.
 */
#include <emmintrin.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096u

static _Noreturn void die(const char *what)
{
    fprintf(stderr, "work: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* FNV-1a. */
static uint64_t hash(uint64_t h, const void *data, size_t len)
{
    const uint8_t *p = data;

    for (size_t i = 0; i < len; i++)
        h = (h ^ p[i]) * 0x100000001b3;
    return h;
}

#define HASH_START 0xcbf29ce484222325

/* xorshift64*. */
static uint64_t next_random(uint64_t *s)
{
    *s ^= *s >> 12;
    *s ^= *s << 25;
    *s ^= *s >> 27;
    return *s * 0x2545f4914f6cdd1d;
}

static void make_data(const char *path, uint64_t len)
{
    static uint64_t buf[8192];
    uint64_t seed = 0x5eed;
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

    if (fd < 0)
        die(path);
    while (len) {
        size_t n = len < sizeof(buf) ? (size_t)len : sizeof(buf);

        for (size_t i = 0; i < sizeof(buf) / sizeof(*buf); i++)
            buf[i] = next_random(&seed);
        if (write(fd, buf, n) != (ssize_t)n)
            die(path);
        len -= n;
    }
    close(fd);
}

/* ---- workloads: count and arguments in, checksum out ---- */

static pid_t start(char **argv, int out)
{
    pid_t pid = vfork();

    if (pid < 0)
        die("vfork");
    if (pid == 0) {
        if (out >= 0)
            dup2(out, 1);
        execv(argv[0], argv + 1);
        _exit(127);
    }
    return pid;
}

static void wait_for(pid_t pid)
{
    int status;

    if (waitpid(pid, &status, 0) != pid || status != 0) {
        errno = 0;
        die("a command failed");
    }
}

/* Runs FILE with ARGV0... count times; the checksum is that of its output. */
static uint64_t work_command(uint64_t count, char **argv)
{
    uint64_t sum = HASH_START;

    while (count--) {
        char buf[4096];
        ssize_t n;
        int fd[2];
        pid_t pid;

        if (pipe2(fd, O_CLOEXEC))
            die("pipe2");
        pid = start(argv, fd[1]);
        close(fd[1]);
        while ((n = read(fd[0], buf, sizeof(buf))) > 0)
            sum = hash(sum, buf, (size_t)n);
        close(fd[0]);
        wait_for(pid);
    }
    return sum;
}

/* fork, not vfork: copying and tearing down the address space is part of it. */
static uint64_t work_fork(uint64_t count, char **argv)
{
    uint64_t done = 0;

    while (done < count) {
        pid_t pid = fork();

        if (pid < 0)
            die("fork");
        if (pid == 0) {
            execv(argv[0], argv + 1);
            _exit(127);
        }
        wait_for(pid);
        done++;
    }
    return done;
}

static uint64_t work_getpid(uint64_t count, char **argv)
{
    long pid = getpid();
    uint64_t same = 0;

    while (count--)
        same += syscall(SYS_getpid) == pid;
    return same;
}

static void transfer(int fd, uint64_t *val, bool out)
{
    ssize_t n = out ? write(fd, val, sizeof(*val)) : read(fd, val, sizeof(*val));

    if (n != sizeof(*val))
        die("pipe");
}

/* A number goes to another process and comes back increased. */
static uint64_t work_pipe(uint64_t count, char **argv)
{
    uint64_t val = 0;
    int to[2], from[2];
    pid_t pid;

    if (pipe(to) || pipe(from))
        die("pipe");
    pid = fork();
    if (pid < 0)
        die("fork");
    if (pid == 0) {
        for (uint64_t i = 0; i < count; i++) {
            transfer(to[0], &val, false);
            val++;
            transfer(from[1], &val, true);
        }
        _exit(0);
    }
    for (uint64_t i = 0; i < count; i++) {
        transfer(to[1], &val, true);
        transfer(from[0], &val, false);
    }
    wait_for(pid);
    return val;
}

/* First touches of anonymous memory, in mappings of 1,024 small pages. */
static uint64_t work_fault(uint64_t count, char **argv)
{
    const size_t pages = 1024;
    uint64_t sum = 0;

    while (count) {
        size_t n = count < pages ? (size_t)count : pages;
        uint8_t *p = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

        if (p == MAP_FAILED || madvise(p, pages * PAGE, MADV_NOHUGEPAGE))
            die("mmap");
        for (size_t i = 0; i < n; i++)
            p[i * PAGE] = (uint8_t)i;
        sum += p[(n - 1) * PAGE] + n;
        munmap(p, pages * PAGE);
        count -= n;
    }
    return sum;
}

/* Three bodies under gravity: scalar double precision with division and square root. */
static uint64_t work_float(uint64_t count, char **argv)
{
    double x[3][3] = {{0, 0, 0}, {1, 0, 0.1}, {0, 2.5, -0.3}};
    double v[3][3] = {{0, 0, 0}, {0, 1, 0}, {-0.6, 0, 0.05}};
    static const double mass[3] = {1, 0.01, 0.02};
    const double dt = 1e-4;

    while (count--) {
        for (int i = 0; i < 3; i++) {
            for (int j = i + 1; j < 3; j++) {
                double d[3], r2 = 1e-9, k;

                for (int a = 0; a < 3; a++) {
                    d[a] = x[i][a] - x[j][a];
                    r2 += d[a] * d[a];
                }
                k = dt / (r2 * __builtin_sqrt(r2));
                for (int a = 0; a < 3; a++) {
                    v[i][a] -= d[a] * mass[j] * k;
                    v[j][a] += d[a] * mass[i] * k;
                }
            }
        }
        for (int i = 0; i < 3; i++) {
            for (int a = 0; a < 3; a++)
                x[i][a] += dt * v[i][a];
        }
    }
    return hash(hash(HASH_START, x, sizeof(x)), v, sizeof(v));
}

/* Blends two pictures of 64 KiB: SSE2 integer code as video and image programs have it. */
static uint64_t work_simd(uint64_t count, char **argv)
{
    enum { LEN = 65536 };
    static uint8_t a[LEN] __attribute__((aligned(16))), b[LEN] __attribute__((aligned(16)));
    const __m128i zero = _mm_setzero_si128(), round = _mm_set1_epi16(128);
    uint64_t seed = 0x51d;

    for (size_t i = 0; i < LEN; i++) {
        a[i] = (uint8_t)(next_random(&seed) >> 56);
        b[i] = (uint8_t)(next_random(&seed) >> 56);
    }
    while (count--) {
        const __m128i wa = _mm_set1_epi16((short)(count & 255));
        const __m128i wb = _mm_set1_epi16((short)(255 - (count & 255)));

        for (size_t i = 0; i < LEN; i += 16) {
            __m128i p = _mm_load_si128((const __m128i *)(a + i));
            __m128i q = _mm_load_si128((const __m128i *)(b + i));
            __m128i lo = _mm_add_epi16(_mm_mullo_epi16(_mm_unpacklo_epi8(p, zero), wa),
                                       _mm_mullo_epi16(_mm_unpacklo_epi8(q, zero), wb));
            __m128i hi = _mm_add_epi16(_mm_mullo_epi16(_mm_unpackhi_epi8(p, zero), wa),
                                       _mm_mullo_epi16(_mm_unpackhi_epi8(q, zero), wb));

            lo = _mm_srli_epi16(_mm_adds_epu16(lo, round), 8);
            hi = _mm_srli_epi16(_mm_adds_epu16(hi, round), 8);
            _mm_store_si128((__m128i *)(a + i),
                            _mm_avg_epu8(_mm_packus_epi16(lo, hi), _mm_xor_si128(p, q)));
        }
    }
    return hash(HASH_START, a, LEN);
}

static const struct {
    const char *name;
    uint64_t (*fn)(uint64_t count, char **argv);
} works[] = {
    {"command", work_command}, {"fork", work_fork},   {"getpid", work_getpid}, {"pipe", work_pipe},
    {"fault", work_fault},     {"float", work_float}, {"simd", work_simd},
};

static uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

int main(int argc, char **argv)
{
    if (argc == 4 && !strcmp(argv[1], "data")) {
        make_data(argv[2], strtoull(argv[3], NULL, 10));
        return 0;
    }
    for (size_t i = 0; argc >= 3 && i < sizeof(works) / sizeof(*works); i++) {
        if (!strcmp(works[i].name, argv[1])) {
            uint64_t begin = now_ns();
            uint64_t sum = works[i].fn(strtoull(argv[2], NULL, 10), argv + 3);

            printf("work %s %llu %llx\n", argv[1], (unsigned long long)(now_ns() - begin),
                   (unsigned long long)sum);
            return 0;
        }
    }
    fprintf(stderr, "usage: work data FILE BYTES | work NAME COUNT [ARGUMENT]...\n");
    return 2;
}
