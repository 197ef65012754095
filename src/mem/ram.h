/* A block of guest RAM or ROM: a memfd mapped once into this process. Owned by the machine. */
#ifndef RING3_MEM_RAM_H
#define RING3_MEM_RAM_H

#include <stdint.h>

#include "base/err.h"

struct ram {
    char name[32];
    int fd;        /* memfd, sealed against shrinking and growing */
    uint8_t *host; /* page-aligned mapping of the whole, with a guard page on either side */
    uint64_t size; /* bytes, multiple of 4 KiB */
};

/* Zero-filled, not yet populated. Fails with -ENOMEM or -EINVAL (size 0 or not page-aligned) and a
 * message that says what the host allows. */
int ram_new(struct ram **out, const char *name, uint64_t size, struct err *e);
void ram_free(struct ram *r);
/* The most that one ram may be here: the lesser of physical memory plus swap, RLIMIT_AS and the
 * cgroup's memory limit. */
uint64_t ram_host_limit(void);

#endif
