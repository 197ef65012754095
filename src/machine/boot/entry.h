/* The two ways into a kernel; private to boot/. Each writes its tables into guest memory and the
 * first vCPU's state. They fail only if the fixed low addresses are not RAM. */
#ifndef RING3_MACHINE_BOOT_ENTRY_H
#define RING3_MACHINE_BOOT_ENTRY_H

#include "machine/boot/boot.h"
#include "machine/boot/bzimage.h"

/* What has been loaded so far. */
struct boot_content {
    const struct bzimage *bz;     /* NULL for an ELF file */
    uint64_t entry;               /* physical */
    uint64_t initrd, initrd_size; /* 0, 0 for none */
    uint32_t cmdline_len;         /* of the string at BOOT_CMDLINE, without its NUL */
};

int linux64_enter(struct physmap *map, const struct memory_layout *mem,
                  const struct boot_content *c, struct cpu_state *s, struct err *e);
int pvh_enter(struct physmap *map, const struct memory_layout *mem, const struct boot_content *c,
              struct cpu_state *s, struct err *e);

#endif
