/*
 * The probe's host side, in the parent: a child process that may hang, and what is said of it. The child's side, which
 * talks to KVM, is probe_child.c.
 */
#include <errno.h>
#include <linux/sched.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "engine/kvm/probe.h"
#include "engine/kvm/probe_child.h"
#include "engine/kvm/probe_guest.h"

static int64_t now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* Waits until the child has ended; false if it has not after this time. */
static bool wait_end(int pidfd, unsigned ms)
{
    struct pollfd p = {.fd = pidfd, .events = POLLIN};
    int64_t end = now_ms() + ms;

    for (;;) {
        int64_t left = end - now_ms();
        int n = poll(&p, 1, left > 0 ? (int)left : 0);

        if (n > 0)
            return true;
        if (left <= 0 || (n < 0 && errno != EINTR))
            return false;
    }
}

/* What a guest that did not come to its end was at. It runs no more, or cannot be stopped: the note may be anything. */
static int too_late(const struct probe_share *s, unsigned ms, struct err *e)
{
    uint32_t step = *(const volatile uint32_t *)(s->guest + PG_STEP);

    if (!s->running)
        return err_set(e, ETIMEDOUT, "KVM did not create a small test guest within %u ms", ms);
    return err_set(e, ETIMEDOUT, "a small test guest did not come to its end within %u ms: it was at %s", ms,
                   probe_step_name(step));
}

static int judge(const struct probe_share *s, int pidfd, unsigned ms, struct err *e)
{
    siginfo_t info = {0};
    bool late = !wait_end(pidfd, ms);

    /* One that no signal ends is left to its fate: it is in the kernel's hands. */
    if (late)
        syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
    if ((!late || wait_end(pidfd, KVM_PROBE_REAP_MS)) && waitid(P_PIDFD, (id_t)pidfd, &info, WEXITED | __WALL))
        return err_sys(e, "the probe of KVM");
    /* To unmake its VM may take the kernel longer than all that the guest did. */
    if (atomic_load(&s->done)) {
        if (s->rc && e)
            *e = s->err;
        return s->rc;
    }
    return late ? too_late(s, ms, e) : err_set(e, EIO, "the probe of KVM died of signal %d", info.si_status);
}

int kvm_probe_node(const char *node, unsigned ms, struct err *e)
{
    struct probe_share *s = mmap(NULL, sizeof(*s), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int pidfd = -1, rc;

    if (s == MAP_FAILED)
        return err_sys(e, "memory for the probe of KVM");
    pid_t parent = getpid();
    /* As fork(2), but the end of the child tells nobody who does not ask. */
    long pid = syscall(SYS_clone, CLONE_PIDFD, NULL, &pidfd, NULL, 0);
    if (pid < 0) {
        rc = err_sys(e, "a process for the probe of KVM");
    } else if (pid == 0) {
        probe_child(s, node, parent);
        _exit(0);
    } else {
        rc = judge(s, pidfd, ms, e);
        close(pidfd);
    }
    munmap(s, sizeof(*s));
    return rc;
}

int kvm_probe(struct err *e) { return kvm_probe_node(KVM_PROBE_NODE, KVM_PROBE_MS, e); }
