/*
 * Can /dev/kvm of this host really run a guest? A device node says little: it may belong to somebody else, lack what the
 * engine needs, or come from a back end that runs a few instructions of a guest and then gets stuck. So a small guest
 * does what every kernel does (paging, user mode, interrupts, port I/O, MMIO, plain computing) and must come to its end.
 */
#ifndef RING3_ENGINE_KVM_PROBE_H
#define RING3_ENGINE_KVM_PROBE_H

#include <stdbool.h>

#include "base/err.h"

#define KVM_PROBE_NODE "/dev/kvm"
/* For all of it. A host that is busy needs a good part of it to create a VM; the guest's part is some milliseconds. */
#define KVM_PROBE_MS 1300
#define KVM_PROBE_REAP_MS 200 /* and then for the end of a child that hangs */

/* 0, or a negative errno and the reason why KVM is unusable. Takes some milliseconds where it is usable, never more than
 * KVM_PROBE_MS and KVM_PROBE_REAP_MS. All of it happens in a child process, which does not live longer than the call, or than the
 * calling process if that is killed; no SIGCHLD comes of it. Any thread; several may probe at once. */
int kvm_probe(struct err *e);

/* The same with another device node and another time, for tests. */
int kvm_probe_node(const char *node, unsigned ms, struct err *e);

/* The first capability, without its KVM_CAP_, that the engine needs and a KVM lacks, or NULL; all are there since Linux 5.10.
 * fd: of the device, or of a VM. Takes no lock and no memory. */
const char *kvm_lacks(int fd);

/*
 * Does the host's kernel trust its TSC? Of one that it does not, because the TSCs of its CPUs disagree, stop or change their rate, KVM gives
 * guests a TSC that it moves now and then, each vCPU's by itself, so that they lag behind the machine's clock. The kernel takes such a
 * TSC out of the list of its clock sources, whichever of them it uses: a host that is a guest itself may well have its hypervisor's.
 * clocksources: the file with that list; true if there is none. Takes no lock and no memory.
 */
#define KVM_CLOCKSOURCES "/sys/devices/system/clocksource/clocksource0/available_clocksource"
bool kvm_tsc_trusted(const char *clocksources);

#endif
