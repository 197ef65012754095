/* Host faults in translated code: a division, an unmasked vector exception, an unaligned vector
 * operand. The signal goes on at the cold code of the instruction, which leaves it to the
 * interpreter. Signals are the process's, hence the little state that is not a VM's. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <ucontext.h>

#include "base/util.h"
#include "engine/bt/trap.h"

static const int signals[] = {SIGFPE, SIGSEGV, SIGBUS};
static struct sigaction before[ARRAY_LEN(signals)];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
/* Whose code this thread may be in, and the stack for signal handlers before. */
static __thread struct {
    trap_find_fn find;
    const void *arg;
    const struct returns *returns;
    stack_t before;
} running;

static void hand_on(int sig, siginfo_t *info, void *ctx)
{
    for (unsigned k = 0; k < ARRAY_LEN(signals); k++) {
        const struct sigaction *sa = &before[k];

        if (signals[k] != sig)
            continue;
        if (sa->sa_flags & SA_SIGINFO) {
            sa->sa_sigaction(sig, info, ctx);
        } else if (sa->sa_handler == SIG_DFL || sa->sa_handler == SIG_IGN) {
            /* As if we were not here: the instruction faults again. */
            sigaction(sig, sa, NULL);
        } else {
            sa->sa_handler(sig);
        }
    }
}

static void handler(int sig, siginfo_t *info, void *ctx)
{
    greg_t *reg = ((ucontext_t *)ctx)->uc_mcontext.gregs, *rip = &reg[REG_RIP];
    uintptr_t to = running.find ? running.find(running.arg, (uintptr_t)*rip) : 0;

    if (running.find && sig == SIGSEGV && (uintptr_t)info->si_addr - running.returns->guard < PAGE_SIZE)
        reg[REG_RSP] = (greg_t)running.returns->empty;
    else if (to)
        *rip = (greg_t)to;
    else
        hand_on(sig, info, ctx);
}

static bool is_ours(int sig, struct sigaction *was)
{
    return sigaction(sig, NULL, was) == 0 && (was->sa_flags & SA_SIGINFO) && was->sa_sigaction == handler;
}

/* 0 or errno */
static int take_signals(void)
{
    struct sigaction sa = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK}, was;
    int rc = 0;

    sigemptyset(&sa.sa_mask);
    pthread_mutex_lock(&lock);
    for (unsigned k = 0; k < ARRAY_LEN(signals) && !rc; k++) {
        if (is_ours(signals[k], &was))
            continue;
        before[k] = was;
        rc = sigaction(signals[k], &sa, NULL) < 0 ? errno : 0;
    }
    pthread_mutex_unlock(&lock);
    return rc;
}

int trap_init(struct err *e)
{
    int rc = take_signals();

    return rc ? err_set(e, rc, "cannot handle SIGFPE and SIGSEGV") : 0;
}

int trap_enter(trap_find_fn find, const void *arg, const struct returns *r)
{
    const stack_t handlers = {.ss_sp = r->handlers, .ss_size = r->handlers_size};
    struct sigaction was;

    /* The program may have taken the signals meanwhile: without this one deep recursion of a guest would end it. */
    if (!is_ours(SIGSEGV, &was) && (errno = take_signals()))
        return -1;
    running.arg = arg;
    running.returns = r;
    running.find = find;
    return sigaltstack(&handlers, &running.before);
}

void trap_leave(void)
{
    running.find = NULL;
    sigaltstack(&running.before, NULL);
}
