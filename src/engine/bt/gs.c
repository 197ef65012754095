#include "engine/bt/gs.h"

#include <asm/prctl.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>

#define HWCAP2_FSGSBASE 2ul

int gs_set(void *base)
{
    if (getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE) {
        __asm__ volatile("wrgsbase %0" : : "r"(base));
        return 0;
    }
    return (int)syscall(SYS_arch_prctl, ARCH_SET_GS, base);
}
