/* The PVH entry: Xen's docs/misc/pvh.pandoc and public/arch-x86/hvm/start_info.h. */
#include <errno.h>
#include <string.h>

#include "machine/boot/entry.h"

#define START_MAGIC 0x336ec578

struct hvm_start_info {
    uint32_t magic, version, flags, nr_modules;
    uint64_t modlist_paddr, cmdline_paddr, rsdp_paddr, memmap_paddr;
    uint32_t memmap_entries, reserved;
};

struct hvm_modlist_entry {
    uint64_t paddr, size, cmdline_paddr, reserved;
};

struct hvm_memmap_table_entry {
    uint64_t addr, size;
    uint32_t type, reserved;
};

/* The page at BOOT_START_INFO. */
struct start_page {
    struct hvm_start_info info;
    struct hvm_modlist_entry module;
    struct hvm_memmap_table_entry map[MEMORY_RANGES_MAX];
};

int pvh_enter(struct physmap *map, const struct memory_layout *mem, const struct boot_content *c,
              struct cpu_state *s, struct err *e)
{
    const struct segment data = {.limit = UINT32_MAX, .sel = 0x18, .attr = 0x93 | SEG_DB | SEG_G};
    struct start_page p = {
        .info = {.magic = START_MAGIC,
                 .version = 1,
                 .rsdp_paddr = mem->rsdp,
                 .cmdline_paddr = BOOT_CMDLINE,
                 .memmap_paddr = BOOT_START_INFO + offsetof(struct start_page, map),
                 .memmap_entries = mem->n},
        .module = {.paddr = c->initrd, .size = c->initrd_size},
    };

    if (c->initrd_size) {
        p.info.nr_modules = 1;
        p.info.modlist_paddr = BOOT_START_INFO + offsetof(struct start_page, module);
    }
    for (unsigned i = 0; i < mem->n; i++)
        p.map[i] = (struct hvm_memmap_table_entry){
            .addr = mem->r[i].base, .size = mem->r[i].size, .type = mem->r[i].type};
    if (mem_write(map, BOOT_START_INFO, &p, sizeof(p)))
        return err_set(e, EINVAL, "no memory below 640 KiB");

    for (unsigned i = 0; i < SREG_COUNT; i++)
        s->seg[i] = data;
    s->seg[CS] = (struct segment){.limit = UINT32_MAX, .sel = 0x10, .attr = 0x9b | SEG_DB | SEG_G};
    s->tr = (struct segment){.limit = 0x67, .attr = 0x8b};
    s->gdtr = s->idtr = (struct table_reg){0};
    s->cr0 = CR0_PE | CR0_ET;
    s->cr4 = 0;
    s->efer = 0;
    s->rflags = FL_R1;
    s->rip = c->entry;
    s->gpr[RBX] = BOOT_START_INFO;
    return 0;
}
