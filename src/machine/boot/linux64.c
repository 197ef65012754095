/* Linux' 64-bit boot protocol: boot.rst "64-bit Boot Protocol" and zero-page.rst. */
#include <errno.h>
#include <string.h>
#include <sys/random.h>

#include "machine/boot/entry.h"

/* Offsets in the zero page. */
#define ZP_ACPI_RSDP 0x070
#define ZP_EXT_RAMDISK_IMAGE 0x0c0
#define ZP_EXT_RAMDISK_SIZE 0x0c4
#define ZP_E820_ENTRIES 0x1e8
#define ZP_BOOT_FLAG 0x1fe
#define ZP_MAGIC 0x202
#define ZP_VERSION 0x206
#define ZP_TYPE_OF_LOADER 0x210
#define ZP_LOADFLAGS 0x211
#define ZP_RAMDISK_IMAGE 0x218
#define ZP_RAMDISK_SIZE 0x21c
#define ZP_CMD_LINE_PTR 0x228
#define ZP_KERNEL_ALIGNMENT 0x230
#define ZP_CMDLINE_SIZE 0x238
#define ZP_SETUP_DATA 0x250
#define ZP_E820_TABLE 0x2d0
#define ZP_SIZE 0x1000

#define LOADER_UNDEFINED 0xff
#define LOADED_HIGH 1
#define SETUP_RNG_SEED 9
#define SEED_BYTES 32

struct e820_entry {
    uint64_t addr, size;
    uint32_t type;
} __attribute__((packed));

static void put16(uint8_t *p, uint16_t v) { memcpy(p, &v, 2); }
static void put32(uint8_t *p, uint32_t v) { memcpy(p, &v, 4); }
static void put64(uint8_t *p, uint64_t v) { memcpy(p, &v, 8); }

/* The header of an image, or for an ELF file the one its bzImage would have had. */
static void put_header(uint8_t *zp, const struct bzimage *bz)
{
    if (bz) {
        memcpy(zp + SETUP_HEADER_OFF, bz->header, bz->header_len);
    } else {
        put16(zp + ZP_BOOT_FLAG, 0xaa55);
        memcpy(zp + ZP_MAGIC, "HdrS", 4);
        put16(zp + ZP_VERSION, 0x020f);
        put32(zp + ZP_KERNEL_ALIGNMENT, 2 * MIB);
        put32(zp + ZP_CMDLINE_SIZE, BOOT_CMDLINE_MAX - 1);
    }
    zp[ZP_TYPE_OF_LOADER] = LOADER_UNDEFINED;
    zp[ZP_LOADFLAGS] |= LOADED_HIGH;
    put64(zp + ZP_SETUP_DATA, 0);
}

static void put_memory(uint8_t *zp, const struct memory_layout *mem)
{
    for (unsigned i = 0; i < mem->n; i++) {
        struct e820_entry x = {mem->r[i].base, mem->r[i].size, mem->r[i].type};

        memcpy(zp + ZP_E820_TABLE + i * sizeof(x), &x, sizeof(x));
    }
    zp[ZP_E820_ENTRIES] = (uint8_t)mem->n;
}

/* A seed for the guest's random number generator: struct setup_data { next, type, len, data }. */
static int put_seed(struct physmap *map, uint8_t *zp)
{
    uint8_t d[16 + SEED_BYTES] = {0};

    if (getrandom(d + 16, SEED_BYTES, 0) != SEED_BYTES)
        return 0; /* the kernel does without */
    put32(d + 8, SETUP_RNG_SEED);
    put32(d + 12, SEED_BYTES);
    put64(zp + ZP_SETUP_DATA, BOOT_SETUP_DATA);
    return mem_write(map, BOOT_SETUP_DATA, d, sizeof(d));
}

/* Identity map of the first 4 GiB with 2 MiB pages: PML4, PDPT, four page directories. */
static int put_page_tables(struct physmap *map)
{
    const uint64_t rw = 3, large = 0x80;
    uint64_t t[6][512] = {{0}};

    t[0][0] = (BOOT_PAGE_TABLES + PAGE_SIZE) | rw;
    for (unsigned i = 0; i < 4; i++)
        t[1][i] = (BOOT_PAGE_TABLES + (2 + i) * PAGE_SIZE) | rw;
    for (unsigned i = 0; i < 4 * 512; i++)
        t[2 + i / 512][i % 512] = i * 2 * MIB | rw | large;
    return mem_write(map, BOOT_PAGE_TABLES, t, sizeof(t));
}

/* Selectors __BOOT_CS 0x10 and __BOOT_DS 0x18, as the protocol asks. */
static int put_gdt(struct physmap *map, struct cpu_state *s)
{
    static const uint64_t gdt[4] = {0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff};
    const struct segment data = {.limit = UINT32_MAX, .sel = 0x18, .attr = 0x93 | SEG_DB | SEG_G};

    for (unsigned i = 0; i < SREG_COUNT; i++)
        s->seg[i] = data;
    s->seg[CS] = (struct segment){.limit = UINT32_MAX, .sel = 0x10, .attr = 0x9b | SEG_L | SEG_G};
    s->gdtr = (struct table_reg){.base = BOOT_GDT, .limit = sizeof(gdt) - 1};
    s->idtr = (struct table_reg){.base = 0, .limit = 0};
    return mem_write(map, BOOT_GDT, gdt, sizeof(gdt));
}

int linux64_enter(struct physmap *map, const struct memory_layout *mem,
                  const struct boot_content *c, struct cpu_state *s, struct err *e)
{
    uint8_t zp[ZP_SIZE] = {0};

    put_header(zp, c->bz);
    put_memory(zp, mem);
    put64(zp + ZP_ACPI_RSDP, mem->rsdp);
    put32(zp + ZP_RAMDISK_IMAGE, (uint32_t)c->initrd);
    put32(zp + ZP_EXT_RAMDISK_IMAGE, (uint32_t)(c->initrd >> 32));
    put32(zp + ZP_RAMDISK_SIZE, (uint32_t)c->initrd_size);
    put32(zp + ZP_EXT_RAMDISK_SIZE, (uint32_t)(c->initrd_size >> 32));
    put32(zp + ZP_CMD_LINE_PTR, (uint32_t)BOOT_CMDLINE);

    if (put_seed(map, zp) || put_page_tables(map) || put_gdt(map, s) ||
        mem_write(map, BOOT_ZERO_PAGE, zp, sizeof(zp)))
        return err_set(e, EINVAL, "no memory below 640 KiB");

    s->cr0 = CR0_PE | CR0_ET | CR0_PG;
    s->cr3 = BOOT_PAGE_TABLES;
    s->cr4 = CR4_PAE;
    s->efer = EFER_LME | EFER_LMA;
    s->rflags = FL_R1;
    s->rip = c->entry;
    s->gpr[RSI] = BOOT_ZERO_PAGE;
    s->gpr[RSP] = BOOT_STACK;
    return 0;
}
