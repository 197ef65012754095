#include "machine/memory.h"

#include <errno.h>
#include <string.h>

#include "base/util.h"

void memory_layout_init(struct memory_layout *l, uint64_t size)
{
    uint64_t low = MIN(size, MEMORY_LOW_MAX);

    *l = (struct memory_layout){
        .low_end = low,
        .total = size,
        .n = 4,
        .r = {{0, BOOT_LOW_END, MEMORY_RAM},
              {BOOT_LOW_END, MEMORY_VGA - BOOT_LOW_END, MEMORY_RESERVED},
              {MEMORY_FIRMWARE, MIB - MEMORY_FIRMWARE, MEMORY_RESERVED},
              {MIB, low - MIB, MEMORY_RAM}},
    };
    if (size > low)
        l->r[l->n++] = (struct memory_range){MEMORY_HIGH, size - low, MEMORY_RAM};
}

int memory_layout_reserve(struct memory_layout *l, uint64_t base, uint64_t size, struct err *e)
{
    unsigned at = 0;

    if (l->n == MEMORY_RANGES_MAX || size == 0 || base + size < base)
        return err_set(e, EINVAL, "cannot reserve guest memory at %#llx", (unsigned long long)base);
    while (at < l->n && l->r[at].base < base)
        at++;
    if ((at > 0 && l->r[at - 1].base + l->r[at - 1].size > base) ||
        (at < l->n && base + size > l->r[at].base))
        return err_set(e, EINVAL, "guest memory at %#llx is in use", (unsigned long long)base);
    memmove(&l->r[at + 1], &l->r[at], (l->n - at) * sizeof(l->r[0]));
    l->r[at] = (struct memory_range){base, size, MEMORY_RESERVED};
    l->n++;
    return 0;
}

int memory_map_ram(struct physmap *map, struct ram *ram, struct err *e)
{
    uint64_t low = MIN(ram->size, MEMORY_LOW_MAX);
    const struct region pieces[] = {
        {.name = "ram-low", .base = 0, .size = MEMORY_VGA, .ram_off = 0},
        {.name = "ram", .base = MEMORY_BIOS, .size = low - MEMORY_BIOS, .ram_off = MEMORY_BIOS},
        {.name = "ram-high", .base = MEMORY_HIGH, .size = ram->size - low, .ram_off = low},
    };

    for (size_t i = 0; i < ARRAY_LEN(pieces); i++) {
        struct region r = pieces[i];

        r.kind = REGION_RAM;
        r.ram = ram;
        if (r.size && !physmap_add(map, &r, e))
            return -ENOMEM;
    }
    return 0;
}
