/* Windows of checking (window.h). */
#include "engine/kvm/window.h"

#include <signal.h>
#include <time.h>

#include "engine/kvm/kvm.h"

#define WINDOW_INSNS 100u
#define NS_PER_MS 1000000u
#define NS_PER_S 1000000000u

static uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

/* The signal is that of a kick. One that comes outside of KVM_RUN is lost, but the next is not far. */
static void start_timer(struct kvm_window *w, uint64_t ns, pid_t tid)
{
    struct timespec t = {.tv_sec = (time_t)(ns / NS_PER_S), .tv_nsec = (long)(ns % NS_PER_S)};
    struct itimerspec every = {.it_interval = t, .it_value = t};
    struct sigevent ev = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = KVM_KICK_SIGNAL};

    kvm_window_free(w);
    ev._sigev_un._tid = tid;
    if (timer_create(CLOCK_MONOTONIC, &ev, &w->timer))
        return; /* then windows begin at exits alone */
    w->tid = tid;
    timer_settime(w->timer, 0, &every, NULL);
}

bool kvm_window_open(struct kvm_window *w, uint32_t pause_ms, pid_t tid)
{
    uint64_t pause = (uint64_t)pause_ms * NS_PER_MS, now;

    if (!pause)
        return true;
    if (w->left) {
        if (--w->left)
            return true;
        w->next = now_ns() + pause;
    }
    if (w->tid != tid)
        start_timer(w, pause, tid);
    now = now_ns();
    if (now < w->next)
        return false;
    w->left = WINDOW_INSNS;
    return true;
}

void kvm_window_free(struct kvm_window *w)
{
    if (w->tid)
        timer_delete(w->timer);
    w->tid = 0;
}
