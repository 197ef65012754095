/* Can this host's KVM run a guest? */
#ifndef RING3_ENGINE_KVM_PROBE_H
#define RING3_ENGINE_KVM_PROBE_H

#include "base/err.h"

/* 0, or negative errno with the reason. */
int kvm_probe(struct err *e);

#endif
