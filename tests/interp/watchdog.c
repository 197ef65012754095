#include "watchdog.h"

#include <signal.h>
#include <stdlib.h>
#include <sys/time.h>
#include <unistd.h>

#include "engine/engine.h"

#define AGAIN_S 4

/* For the signal handler. */
static struct vcpu *watched;
static volatile sig_atomic_t bites;

static void on_alarm(int sig)
{
    static const char msg[] = "watchdog: a kick does not end run()\n";

    if (++bites > 3) {
        if (write(2, msg, sizeof(msg) - 1) < 0)
            _exit(2);
        abort();
    }
    vcpu_post(watched, VCPU_EV_KICK);
}

void watchdog_start(struct vcpu *v, long us)
{
    const struct itimerval t = {{AGAIN_S, 0}, {us / 1000000, us % 1000000}};

    bites = 0;
    watched = v;
    signal(SIGALRM, on_alarm);
    setitimer(ITIMER_REAL, &t, NULL);
}

bool watchdog_stop(void)
{
    const struct itimerval none = {{0, 0}, {0, 0}};

    setitimer(ITIMER_REAL, &none, NULL);
    return bites;
}
