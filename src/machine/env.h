/* Seam 2 for vCPUs of a machine: ports and memory-mapped registers to its devices, MSRs and CR8 to
 * the local APIC and paravirtual clock. */
#ifndef RING3_MACHINE_ENV_H
#define RING3_MACHINE_ENV_H

#include "engine/engine.h"

extern const struct cpu_env machine_env;

#endif
