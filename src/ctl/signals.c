#include "ctl/signals.h"

#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <unistd.h>

static void on_signal(void *arg, uint32_t events)
{
    struct signals *s = arg;
    struct signalfd_siginfo si;

    while (read(s->fd, &si, sizeof(si)) == sizeof(si))
        s->fn(s->arg, (int)si.ssi_signo);
}

int signals_init(struct signals *s, struct loop *l, void (*fn)(void *arg, int signo), void *arg,
                 struct err *e)
{
    sigset_t set;
    int rc;

    *s = (struct signals){.fn = fn, .arg = arg};
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGUSR2);
    sigaddset(&set, SIGWINCH);
    s->fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (s->fd < 0)
        return err_sys(e, "signalfd");
    rc = loop_add(l, s->fd, EPOLLIN, on_signal, s, &s->reg, e);
    if (rc) {
        close(s->fd);
        return rc;
    }
    pthread_sigmask(SIG_BLOCK, &set, &s->old);
    return 0;
}

void signals_fini(struct signals *s)
{
    loop_del(s->reg);
    close(s->fd);
    pthread_sigmask(SIG_SETMASK, &s->old, NULL);
}

_Noreturn void signals_die(int signo)
{
    sigset_t set;

    signal(signo, SIG_DFL);
    sigemptyset(&set);
    sigaddset(&set, signo);
    raise(signo);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    _exit(128 + signo);
}
