/* What the engine cannot do without. */
#include <fcntl.h>
#include <linux/kvm.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/util.h"
#include "engine/kvm/probe.h"

#define CAP(name) {KVM_CAP_##name, #name}

static const struct {
    int cap;
    const char *name;
} needed[] = {
    CAP(USER_MEMORY),
    CAP(DESTROY_MEMORY_REGION_WORKS),
    CAP(JOIN_MEMORY_REGIONS_WORKS),
    CAP(READONLY_MEM),
    CAP(SET_TSS_ADDR),
    CAP(EXT_CPUID),
    CAP(MP_STATE),
    CAP(VCPU_EVENTS),
    CAP(DEBUGREGS),
    CAP(XSAVE),
    CAP(XCRS),
    CAP(IMMEDIATE_EXIT),
    CAP(X86_USER_SPACE_MSR),
    CAP(X86_MSR_FILTER),
};

const char *kvm_lacks(int fd)
{
    for (unsigned i = 0; i < ARRAY_LEN(needed); i++)
        if (ioctl(fd, KVM_CHECK_EXTENSION, needed[i].cap) <= 0)
            return needed[i].name;
    return NULL;
}

bool kvm_tsc_trusted(const char *clocksources)
{
    static const char blanks[] = " \t\n";
    int fd = open(clocksources, O_RDONLY | O_CLOEXEC);
    char line[512], *word, *rest = NULL;
    ssize_t n;

    if (fd < 0)
        return true;
    n = read(fd, line, sizeof(line) - 1);
    close(fd);
    line[n > 0 ? n : 0] = 0;
    /* The second has its place until the rate is known better, seconds after the boot. */
    for (word = strtok_r(line, blanks, &rest); word; word = strtok_r(NULL, blanks, &rest))
        if (!strcmp(word, "tsc") || !strcmp(word, "tsc-early"))
            return true;
    return n <= 0;
}
