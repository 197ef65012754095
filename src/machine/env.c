#include "machine/env.h"

#include <errno.h>
#include <string.h>

#include "dev/bus.h"
#include "machine/machine.h"
#include "machine/vcpu.h"

#define APIC_BASE_ENABLE BIT(11)
#define APIC_BASE_X2APIC BIT(10)

static struct vcpu_host *host(struct vcpu *v) { return v->owner; }

static uint32_t env_pio_read(struct vcpu *v, uint16_t port, unsigned size)
{
    return pio_read(host(v)->m->pio, port, size);
}

static void env_pio_write(struct vcpu *v, uint16_t port, unsigned size, uint32_t val)
{
    pio_write(host(v)->m->pio, port, size, val);
}

/* Does gpa fall into the register page of this vCPU's APIC (SDM vol. 3 §11.4.1)? Each processor
 * sees its own there, so the page is not in the physical map. */
static bool in_apic_page(struct vcpu_host *h, uint64_t gpa)
{
    uint64_t base = lapic_base(h->lapic);

    return (base & APIC_BASE_ENABLE) && !(base & APIC_BASE_X2APIC) &&
           ALIGN_DOWN(gpa, PAGE_SIZE) == ALIGN_DOWN(base, PAGE_SIZE);
}

static void env_mmio_read(struct vcpu *v, uint64_t gpa, void *buf, unsigned size)
{
    struct vcpu_host *h = host(v);
    uint32_t val;

    if (!in_apic_page(h, gpa)) {
        mmio_read(&h->m->ctx, gpa, buf, size);
    } else if (size == 4) {
        val = lapic_mmio_read(h->lapic, (uint32_t)(gpa & PAGE_MASK));
        memcpy(buf, &val, 4);
    } else {
        memset(buf, 0, size);
    }
}

static void env_mmio_write(struct vcpu *v, uint64_t gpa, const void *buf, unsigned size)
{
    struct vcpu_host *h = host(v);
    uint32_t val;

    if (!in_apic_page(h, gpa)) {
        mmio_write(&h->m->ctx, gpa, buf, size);
    } else if (size == 4) {
        memcpy(&val, buf, 4);
        lapic_mmio_write(h->lapic, (uint32_t)(gpa & PAGE_MASK), val);
    }
}

static int env_rdmsr(struct vcpu *v, uint32_t msr, uint64_t *val)
{
    struct vcpu_host *h = host(v);

    if (pvclock_owns_msr(msr))
        return pvclock_rdmsr(&h->pvclock, msr, val);
    return lapic_rdmsr(h->lapic, msr, val);
}

static int env_wrmsr(struct vcpu *v, uint32_t msr, uint64_t val)
{
    struct vcpu_host *h = host(v);

    if (pvclock_owns_msr(msr))
        return pvclock_wrmsr(&h->pvclock, msr, val, h->tsc_offset);
    return lapic_wrmsr(h->lapic, msr, val);
}

static void env_cpuid(struct vcpu *v, uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
    struct vcpu_host *h = host(v);
    struct cpu_state s;

    v->engine->get_state(v, &s);
    cpuid_query(v->vm->cpuid, &s, v->index, lapic_base(h->lapic) & APIC_BASE_ENABLE, leaf, subleaf,
                out);
}

static uint64_t env_get_cr8(struct vcpu *v) { return lapic_get_cr8(host(v)->lapic); }

static void env_set_cr8(struct vcpu *v, uint64_t val)
{
    lapic_set_cr8(host(v)->lapic, (uint8_t)val);
}

static bool env_irq_pending(struct vcpu *v) { return lapic_pending(host(v)->lapic); }

static int env_irq_ack(struct vcpu *v) { return lapic_ack(host(v)->lapic); }

/* The x87 error line is wired to ISA interrupt 13. */
static void env_ferr(struct vcpu *v, bool level) { machine_isa_irq(host(v)->m, 13, level); }

static void env_tsc_moved(struct vcpu *v, uint64_t offset) { vcpu_set_tsc_offset(host(v), offset); }

/* SDM vol. 3 §11.4.7.3 */
static void env_init(struct vcpu *v) { lapic_reset(host(v)->lapic, true); }

const struct cpu_env machine_env = {
    .pio_read = env_pio_read,
    .pio_write = env_pio_write,
    .mmio_read = env_mmio_read,
    .mmio_write = env_mmio_write,
    .rdmsr = env_rdmsr,
    .wrmsr = env_wrmsr,
    .cpuid = env_cpuid,
    .get_cr8 = env_get_cr8,
    .set_cr8 = env_set_cr8,
    .irq_pending = env_irq_pending,
    .irq_ack = env_irq_ack,
    .ferr = env_ferr,
    .tsc_moved = env_tsc_moved,
    .init = env_init,
};
