/* The parent's side of the oracle. */
#include "oracle.h"

#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define ORACLE "diff-oracle"
#define CHILD_TIMEOUT_MS 60000

struct native {
    struct native_batch *batch;
    int memfd;
    pid_t pid;
    int to_child, from_child;
    char path[4096];
};

/* In the child: becomes the oracle. */
static _Noreturn void become_oracle(const struct native *n, int in, int out)
{
    int fd[3] = {fcntl(n->memfd, F_DUPFD, 10), fcntl(in, F_DUPFD, 10), fcntl(out, F_DUPFD, 10)};

    for (int k = 0; k < 3; k++)
        if (dup2(fd[k], ORACLE_FD_BATCH + k) < 0)
            _exit(1);
    closefrom(ORACLE_FD_OUT + 1);
    execl(n->path, n->path, (char *)NULL);
    _exit(1);
}

static bool spawn(struct native *n)
{
    int a[2], b[2];

    if (pipe2(a, O_CLOEXEC) < 0)
        return false;
    if (pipe2(b, O_CLOEXEC) < 0) {
        close(a[0]);
        close(a[1]);
        return false;
    }
    fflush(NULL);
    n->pid = fork();
    if (n->pid == 0)
        become_oracle(n, a[0], b[1]);
    close(a[0]);
    close(b[1]);
    n->to_child = a[1];
    n->from_child = b[0];
    return n->pid > 0;
}

static int reap(struct native *n)
{
    int status = 0;

    close(n->to_child);
    close(n->from_child);
    kill(n->pid, SIGKILL);
    waitpid(n->pid, &status, 0);
    n->pid = 0;
    return status;
}

struct native *native_new(void)
{
    struct native *n = calloc(1, sizeof(*n));
    unsigned a, b, c, d;
    ssize_t len;

    if (!n)
        return NULL;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & 1u << 27)) {
        printf("this host has no XSAVE\n");
        free(n);
        return NULL;
    }
    signal(SIGPIPE, SIG_IGN); /* a dead child is noticed by what write() returns */
    /* The oracle lies beside this program. */
    len = readlink("/proc/self/exe", n->path, sizeof(n->path) - sizeof(ORACLE));
    while (len > 0 && n->path[len - 1] != '/')
        len--;
    memcpy(n->path + MAX(len, 0), ORACLE, sizeof(ORACLE));
    n->batch = MAP_FAILED;
    n->memfd = memfd_create("diff-batch", MFD_CLOEXEC);
    if (n->memfd >= 0 && ftruncate(n->memfd, sizeof(*n->batch)) == 0)
        n->batch = mmap(NULL, sizeof(*n->batch), PROT_READ | PROT_WRITE, MAP_SHARED, n->memfd, 0);
    if (n->batch == MAP_FAILED || !spawn(n)) {
        printf("cannot start the oracle: %s\n", strerror(errno));
        if (n->memfd >= 0)
            close(n->memfd);
        free(n);
        return NULL;
    }
    return n;
}

void native_free(struct native *n)
{
    if (!n)
        return;
    if (n->pid)
        reap(n);
    munmap(n->batch, sizeof(*n->batch));
    close(n->memfd);
    free(n);
}

struct test_case *native_case(struct native *n, unsigned k) { return &n->batch->slot[k].t; }
const struct outcome *native_outcome(const struct native *n, unsigned k)
{
    return &n->batch->slot[k].out;
}

/* False if the child died or hangs. */
static bool run_child(struct native *n)
{
    struct pollfd p = {.fd = n->from_child, .events = POLLIN};
    int rc;
    char c = 0;

    if (write(n->to_child, &c, 1) != 1)
        return false;
    do
        rc = poll(&p, 1, CHILD_TIMEOUT_MS);
    while (rc < 0 && errno == EINTR);
    return rc == 1 && read(n->from_child, &c, 1) == 1;
}

void native_run(struct native *n, unsigned count)
{
    struct native_batch *b = n->batch;

    b->count = count;
    b->at = 0;
    if (run_child(n))
        return;
    /* Some case killed it. One child for each case then, so that only the culprit is lost. */
    reap(n);
    for (unsigned k = 0; k < count; k++) {
        struct slot first = b->slot[0];

        if (!spawn(n)) {
            perror("fork");
            abort();
        }
        b->slot[0].t = b->slot[k].t;
        b->count = 1;
        if (!run_child(n))
            b->slot[0].out.vector = END_BROKEN;
        struct outcome out = b->slot[0].out;
        b->slot[0] = first;
        b->slot[k].out = out;
        reap(n);
    }
    if (!spawn(n)) {
        perror("fork");
        abort();
    }
}

bool native_tcg(void)
{
    unsigned a, id[3];

    __cpuid(1, a, id[0], id[1], id[2]);
    if (!(id[1] >> 31 & 1)) /* no hypervisor */
        return false;
    __cpuid(0x40000000, a, id[0], id[1], id[2]);
    return !memcmp(id, "TCGTCGTCGTCG", 12);
}
