/* Host faults in translated code: a division, an unmasked vector exception, an unaligned vector
 * operand. The signal goes on at the cold code of the instruction, which leaves it to the
 * interpreter. Signals are the process's, hence the little state that is not a VM's. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <ucontext.h>

#include "base/util.h"
#include "engine/bt/trap.h"

static const int signals[] = {SIGFPE, SIGSEGV, SIGBUS};
static struct sigaction before[ARRAY_LEN(signals)];
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int failed;
/* Whose code this thread may be in. */
static __thread struct {
    trap_find_fn find;
    const void *arg;
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
    greg_t *rip = &((ucontext_t *)ctx)->uc_mcontext.gregs[REG_RIP];
    uintptr_t to = running.find ? running.find(running.arg, (uintptr_t)*rip) : 0;

    if (to)
        *rip = (greg_t)to;
    else
        hand_on(sig, info, ctx);
}

static void install(void)
{
    struct sigaction sa = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_NODEFER};

    sigemptyset(&sa.sa_mask);
    for (unsigned k = 0; k < ARRAY_LEN(signals); k++)
        if (sigaction(signals[k], &sa, &before[k]) < 0)
            failed = errno;
}

int trap_init(struct err *e)
{
    pthread_once(&once, install);
    return failed ? err_set(e, failed, "cannot handle SIGFPE and SIGSEGV") : 0;
}

void trap_enter(trap_find_fn find, const void *arg)
{
    running.arg = arg;
    running.find = find;
}
