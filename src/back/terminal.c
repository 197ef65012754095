/* Raw mode of the process's terminal (termios(3), signal-safety(7)). */
#include "back/terminal.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#include "base/util.h"

/* Signals that end the process by default (signal(7)), except real-time ones, and SIGCONT. */
static const int signals[] = {SIGHUP,    SIGINT,    SIGQUIT, SIGTERM, SIGABRT, SIGSEGV,
                              SIGBUS,    SIGILL,    SIGFPE,  SIGSYS,  SIGTRAP, SIGXCPU,
                              SIGXFSZ,   SIGALRM,   SIGUSR1, SIGUSR2, SIGIO,   SIGPROF,
                              SIGVTALRM, SIGSTKFLT, SIGPWR,  SIGCONT};

enum { FREE, BUSY, RAW };

/* Written only while `phase` is BUSY, read by handlers only while it is RAW. */
static struct {
    _Atomic int phase;
    int fd;
    struct termios saved, raw;
    struct sigaction old[ARRAY_LEN(signals)];
} terminal;

/* A job in the background must not touch the terminal: it would be stopped for it. A terminal that
 * is not the process's controlling one has no foreground job. */
static bool in_foreground(void)
{
    pid_t group = tcgetpgrp(terminal.fd);

    return group < 0 || group == getpgrp();
}

static void on_signal(int sig)
{
    int saved_errno = errno;

    if (atomic_load(&terminal.phase) == RAW && in_foreground())
        tcsetattr(terminal.fd, TCSANOW, sig == SIGCONT ? &terminal.raw : &terminal.saved);
    if (sig != SIGCONT) {
        signal(sig, SIG_DFL);
        raise(sig); /* blocked until the handler returns, then fatal */
    }
    errno = saved_errno;
}

static void handlers_install(void)
{
    struct sigaction sa = {.sa_handler = on_signal, .sa_flags = SA_RESTART | SA_ONSTACK};

    sigfillset(&sa.sa_mask);
    for (size_t i = 0; i < ARRAY_LEN(signals); i++) {
        sigaction(signals[i], NULL, &terminal.old[i]);
        if (!(terminal.old[i].sa_flags & SA_SIGINFO) && terminal.old[i].sa_handler == SIG_DFL)
            sigaction(signals[i], &sa, NULL);
    }
}

static void handlers_remove(void)
{
    for (size_t i = 0; i < ARRAY_LEN(signals); i++) {
        struct sigaction now;

        sigaction(signals[i], NULL, &now);
        if (!(now.sa_flags & SA_SIGINFO) && now.sa_handler == on_signal)
            sigaction(signals[i], &terminal.old[i], NULL);
    }
}

int terminal_raw(int fd, struct err *e)
{
    int expected = FREE;

    if (!atomic_compare_exchange_strong(&terminal.phase, &expected, BUSY))
        return err_set(e, EBUSY, "the terminal is in use by another serial port");
    terminal.fd = fd;
    if (tcgetattr(fd, &terminal.saved) < 0) {
        int rc = err_sys(e, "cannot read the terminal's mode");

        atomic_store(&terminal.phase, FREE);
        return rc;
    }
    terminal.raw = terminal.saved;
    cfmakeraw(&terminal.raw);
    terminal.raw.c_cc[VMIN] = 1;
    terminal.raw.c_cc[VTIME] = 0;

    /* Handlers first, so that there is no moment in which a signal leaves the terminal raw. */
    handlers_install();
    atomic_store(&terminal.phase, RAW);
    if (tcsetattr(fd, TCSANOW, &terminal.raw) < 0) {
        int rc = err_sys(e, "cannot set the terminal to raw mode");

        terminal_restore();
        return rc;
    }
    return 0;
}

void terminal_restore(void)
{
    if (atomic_load(&terminal.phase) != RAW)
        return;
    if (in_foreground())
        tcsetattr(terminal.fd, TCSANOW, &terminal.saved);
    atomic_store(&terminal.phase, BUSY);
    handlers_remove();
    atomic_store(&terminal.phase, FREE);
}
