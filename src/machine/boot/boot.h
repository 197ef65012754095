/*
 * Starting a guest kernel without firmware: what a boot loader does, done by the host. The files
 * are opened once and read again at each reset, so a machine can restart after its files were
 * unlinked.
 *
 * Two ways in: Linux' 64-bit boot protocol (Documentation/arch/x86/boot.rst, zero-page.rst) for
 * bzImages and ELF kernels without a PVH note, and the PVH protocol (Xen's docs/misc/pvh.pandoc,
 * start_info.h) for ELF kernels with one.
 *
 * Not thread-safe; a boot is used while no vCPU runs.
 */
#ifndef RING3_MACHINE_BOOT_BOOT_H
#define RING3_MACHINE_BOOT_BOOT_H

#include <stdint.h>

#include "base/err.h"
#include "cpu/state.h"
#include "mem/physmap.h"

enum boot_protocol { BOOT_AUTO, BOOT_LINUX64, BOOT_PVH };

struct boot_cfg {
    const char *kernel;  /* path, or NULL: what the disk has */
    const char *initrd;  /* path or NULL */
    const char *cmdline; /* "" for none; added to the disk's own */
    enum boot_protocol protocol;
    /* A disk image to look in when kernel is NULL: at every reset anew, for the guest may have installed another.
     * Whoever else has it open must have flushed it then. format: "raw", "qcow2" or NULL. */
    const char *image, *image_format;
};

/* The guest's view of physical memory, as E820 and PVH both number it. */
enum memory_type { MEMORY_RAM = 1, MEMORY_RESERVED = 2, MEMORY_ACPI = 3, MEMORY_NVS = 4 };
#define MEMORY_RANGES_MAX 32

struct memory_range {
    uint64_t base, size;
    uint32_t type; /* enum memory_type */
};

struct memory_layout {
    unsigned n; /* ascending, disjoint */
    struct memory_range r[MEMORY_RANGES_MAX];
    uint64_t low_end; /* end of the RAM that starts at 1 MiB */
    uint64_t total;   /* bytes of guest RAM, for messages */
    uint64_t rsdp;    /* guest-physical address of the ACPI RSDP, 0 for none */
};

/* Where the loader puts what the kernel reads before it owns memory; all below the EBDA. */
#define BOOT_GDT 0x1000ull
#define BOOT_START_INFO 0x6000ull  /* PVH: hvm_start_info, module list, memory map: one page */
#define BOOT_ZERO_PAGE 0x7000ull   /* struct boot_params */
#define BOOT_SETUP_DATA 0x8000ull  /* random seed */
#define BOOT_PAGE_TABLES 0x9000ull /* six pages: identity map of the first 4 GiB */
#define BOOT_STACK 0x10000ull      /* grows down from here */
#define BOOT_CMDLINE 0x20000ull
#define BOOT_CMDLINE_MAX 0x10000u /* with its NUL */
#define BOOT_LOW_END 0x9fc00ull   /* RAM below 1 MiB ends here */
#define BOOT_KERNEL_MIN 0x100000ull

struct boot;

/* Opens the files, unless they are on the disk. Errors name the option and the file: "--kernel: FILE: reason". */
int boot_open(struct boot **out, const struct boot_cfg *cfg, struct err *e);
void boot_close(struct boot *b); /* NULL is allowed */

/* Puts kernel, initrd, command line and tables into guest memory and the first vCPU's state into *s
 * (a complete state; its previous content is ignored). May be called again at each reset. 0, or
 * negative errno with e set; guest memory is then unspecified. */
int boot_load(struct boot *b, struct physmap *map, const struct memory_layout *mem,
              struct cpu_state *s, struct err *e);

#endif
