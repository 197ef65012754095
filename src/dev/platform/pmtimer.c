#include "dev/platform/pmtimer.h"

uint32_t pmtimer_value(const struct clock *c)
{
    return (uint32_t)((unsigned __int128)clock_now(c) * PMTIMER_HZ / 1000000000);
}
