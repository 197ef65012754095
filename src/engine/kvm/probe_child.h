/* Between the probe and its child process; see probe.h. */
#ifndef RING3_ENGINE_KVM_PROBE_CHILD_H
#define RING3_ENGINE_KVM_PROBE_CHILD_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"
#include "engine/kvm/probe_guest.h"

/* Memory that both have. */
struct probe_share {
    _Alignas(4096) uint8_t guest[PG_MEM_SIZE];
    /* The child's, read when it is done or has ended. */
    int rc;
    struct err err;
    atomic_bool done;      /* rc and err are there */
    volatile bool running; /* the guest is */
};

/* All of the child's life. It came of a process that may have had other threads, so nothing here takes a lock or memory. */
void probe_child(struct probe_share *s, const char *node, pid_t parent);

/* What the guest does in this step (enum pg_step), for messages; any number. */
const char *probe_step_name(uint32_t step);

#endif
