/* What the engine cannot do without. */
#include <linux/kvm.h>
#include <sys/ioctl.h>

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
