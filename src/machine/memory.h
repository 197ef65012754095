/* The guest-physical layout of RAM in a PC: where it is, and what the guest is told of it. */
#ifndef RING3_MACHINE_MEMORY_H
#define RING3_MACHINE_MEMORY_H

#include <stdint.h>

#include "machine/boot/boot.h"
#include "mem/physmap.h"

#define MEMORY_LOW_MAX 0xc0000000ull /* RAM below 4 GiB ends here at the latest */
#define MEMORY_HIGH 0x100000000ull
#define MEMORY_VGA 0xa0000ull      /* the frame buffer window, not RAM */
#define MEMORY_BIOS 0xc0000ull     /* RAM again, shadowing what would be ROM */
#define MEMORY_FIRMWARE 0xe0000ull /* tables for the guest, reserved in its map up to 1 MiB */

struct ram;

/* Describes `size` bytes of RAM. */
void memory_layout_init(struct memory_layout *l, uint64_t size);
/* Adds a range that is not RAM; keeps the order. -EINVAL when it overlaps or does not fit. */
int memory_layout_reserve(struct memory_layout *l, uint64_t base, uint64_t size, struct err *e);
/* Maps ram at the places of the layout. */
int memory_map_ram(struct physmap *map, struct ram *ram, struct err *e);

#endif
