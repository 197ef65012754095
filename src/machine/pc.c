/* The PC, on one screen. */
#include "machine/pc.h"

#include <errno.h>

#include "dev/platform/acpi.h"
#include "dev/platform/debugexit.h"
#include "dev/platform/i8042.h"
#include "dev/platform/uart.h"
#include "machine/acpi_tables.h"
#include "machine/machine.h"
#include "machine/memory.h"

#define LAPIC_BASE 0xfee00000u
#define IOAPIC_BASE 0xfec00000u
#define IOAPIC_ID 0 /* another name space than the local APICs' on this bus */
#define PM_BASE 0x600
#define SCI_IRQ 9
#define RESET_PORT 0xcf9
#define ECAM_BASE 0xe0000000u
#define ECAM_SIZE 0x10000000u /* 256 buses */

void machine_isa_irq(void *machine, int line, bool level)
{
    struct machine *m = machine;

    pic_set(m->pic, line, level);
    ioapic_set(m->ioapic, line == 0 ? 2 : line, level);
}

static struct irq isa(struct machine *m, int line)
{
    return (struct irq){.set = machine_isa_irq, .owner = m, .n = line};
}

/* The PIC's output goes to the boot processor. */
static void pic_output(void *machine, int n, bool level)
{
    lapic_set_lint(((struct machine *)machine)->cpu[0].lapic, 0, level);
}

int pc_make_irq(struct machine *m, struct err *e)
{
    const struct irq intr = {.set = pic_output, .owner = m};
    int rc = pic_new(&m->pic, &intr, m->ctx.trace, e);

    if (!rc)
        rc = apic_bus_new(&m->apics, e);
    if (!rc)
        rc = ioapic_new(&m->ioapic, m->apics, IOAPIC_ID, m->ctx.trace, e);
    if (!rc)
        rc = pio_bus_new(&m->pio, &m->ctx, e);
    if (rc)
        return rc;
    apic_bus_set_eoi(m->apics, ioapic_eoi, m->ioapic);
    return 0;
}

void pc_free_irq(struct machine *m)
{
    pio_bus_free(m->pio);
    ioapic_free(m->ioapic);
    apic_bus_free(m->apics);
    pic_free(m->pic);
}
