#include "guest.h"

#include <stdlib.h>

#include "watchdog.h"

#define GDT 0x1000ull
#define IDT 0x2000ull
#define TSS 0x3000ull
#define PDPT 0x5000ull
#define PD 0x6000ull
#define PT_WINDOW 0x8000ull
#define PDPT_OTHER 0xa000ull
#define PD_OTHER 0xe000ull
#define HANDLERS 0xc000ull
#define STACK0 0xff00ull

static void tables(struct world *w, uint64_t pml4, uint64_t pdpt, uint64_t pd, uint64_t window)
{
    guest_put64(w, pml4, pdpt | 7);
    guest_put64(w, pdpt, pd | 7);
    guest_put64(w, pd, GUEST_PT | 7);
    guest_put64(w, pd + 8, GUEST_IO_PA | 0x87);
    guest_put64(w, pd + 16, window | 7);
}

struct world *guest_new(unsigned ncpu)
{
    static const uint64_t gdt[] = {
        0,
        0x00af9b000000ffff,
        0x00cf93000000ffff,
        0x00cffb000000ffff,
        0x00cff3000000ffff,
        0x00affb000000ffff,
        0x00008b0000000067 | TSS << 16,
        0,
    };
    struct world *w = world_new(ncpu);

    world_write(w, GDT, gdt, sizeof(gdt));
    for (uint64_t v = 0; v < 256; v++) {
        uint64_t to = HANDLERS + v * 4;
        unsigned dpl = v == 3 || v == 4 || v >= 32 ? 3 : 0;

        guest_code(w, to, HLT, 0xeb, 0xfd);
        guest_put64(w, IDT + v * 16, (to & 0xffff) | 8ull << 16 | (0x8e00ull | dpl << 13) << 32);
        guest_put64(w, IDT + v * 16 + 8, 0);
    }
    guest_put64(w, TSS + 4, STACK0);
    for (uint64_t la = 0; la < GUEST_IO; la += PAGE_SIZE)
        guest_map(w, la, la | 7);
    tables(w, GUEST_PML4, PDPT, PD, PT_WINDOW);
    tables(w, GUEST_PML4_OTHER, PDPT_OTHER, PD_OTHER, GUEST_PT_OTHER);
    return w;
}

static void load(struct segment *s, uint16_t sel, uint32_t attr)
{
    *s = (struct segment){.limit = 0xffffffff, .attr = attr, .sel = sel};
}

void guest_state(struct cpu_state *s)
{
    cpu_state_reset(s);
    s->cr0 = CR0_PE | CR0_PG | CR0_ET | CR0_NE | CR0_WP;
    s->cr4 = CR4_PAE | CR4_PGE | CR4_OSFXSR | CR4_OSXMMEXCPT;
    s->cr3 = GUEST_PML4;
    s->efer = EFER_LME | EFER_LMA | EFER_SCE | EFER_NXE;
    for (unsigned k = 0; k < SREG_COUNT; k++)
        load(&s->seg[k], 0x10, 0xc093);
    load(&s->seg[CS], 0x08, 0xa09b);
    s->gdtr = (struct table_reg){.base = GDT, .limit = 0x3f};
    s->idtr = (struct table_reg){.base = IDT, .limit = 0xfff};
    s->tr = (struct segment){.base = TSS, .limit = 0x67, .attr = SEG_P | 11, .sel = 0x30};
    s->ldtr = (struct segment){.attr = SEG_UNUSABLE};
    s->rip = GUEST_CODE;
    s->gpr[RSP] = GUEST_STACK;
}

void guest_map(struct world *w, uint64_t la, uint64_t pte)
{
    guest_put64(w, (la >= GUEST_WINDOW ? PT_WINDOW : GUEST_PT) + (la >> 12 & 511) * 8, pte);
}

void guest_map_other(struct world *w, uint64_t la, uint64_t pte)
{
    guest_put64(w, GUEST_PT_OTHER + (la >> 12 & 511) * 8, pte);
}

uint64_t guest_pte(struct world *w, uint64_t la)
{
    return guest_u64(w, (la >= GUEST_WINDOW ? PT_WINDOW : GUEST_PT) + (la >> 12 & 511) * 8);
}

int guest_run(struct world *w, struct cpu_state *s)
{
    enum stop stop;
    uint64_t at;

    s->activity = CPU_RUNNING; /* it may have halted here before */
    assert_int_equal(world_set(w, 0, s), 0);
    watchdog_start(&w->vcpu[0], 100000000);
    stop = world_run(w, 0, 0);
    assert_false(watchdog_stop());
    world_get(w, 0, s);
    if (stop != STOP_HLT)
        print_message("stop %d at %#llx, cr2 %#llx\n", stop, (unsigned long long)s->rip,
                      (unsigned long long)s->cr2);
    assert_int_equal(stop, STOP_HLT);
    at = s->seg[CS].base + s->rip;
    if (at > HANDLERS && at <= HANDLERS + 1024)
        return (int)((at - HANDLERS - 1) / 4);
    return -1;
}

uint64_t guest_error(struct world *w, const struct cpu_state *s)
{
    return guest_u64(w, s->gpr[RSP]);
}

uint64_t guest_u64(struct world *w, uint64_t gpa)
{
    uint64_t v;

    if (mem_read(w->map, gpa, &v, 8))
        abort();
    return v;
}

void guest_put64(struct world *w, uint64_t gpa, uint64_t v) { world_write(w, gpa, &v, 8); }
