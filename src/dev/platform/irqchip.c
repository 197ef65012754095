#include "dev/platform/irqchip.h"

#include "base/util.h"

struct irqchip {
    struct device dev;
    struct irqchip_cfg cfg;
};

static struct irqchip *to_irqchip(struct device *d) { return container_of(d, struct irqchip, dev); }

static uint64_t master_read(struct device *d, uint64_t off, unsigned size)
{
    return pic_read(to_irqchip(d)->cfg.pic, 0, (int)off & 1);
}

static void master_write(struct device *d, uint64_t off, unsigned size, uint64_t val)
{
    pic_write(to_irqchip(d)->cfg.pic, 0, (int)off & 1, (uint8_t)val);
}

static uint64_t slave_read(struct device *d, uint64_t off, unsigned size)
{
    return pic_read(to_irqchip(d)->cfg.pic, 1, (int)off & 1);
}

static void slave_write(struct device *d, uint64_t off, unsigned size, uint64_t val)
{
    pic_write(to_irqchip(d)->cfg.pic, 1, (int)off & 1, (uint8_t)val);
}

static uint64_t elcr_read(struct device *d, uint64_t off, unsigned size)
{
    return pic_elcr_read(to_irqchip(d)->cfg.pic, (int)off & 1);
}

static void elcr_write(struct device *d, uint64_t off, unsigned size, uint64_t val)
{
    pic_elcr_write(to_irqchip(d)->cfg.pic, (int)off & 1, (uint8_t)val);
}

const struct io_ops irqchip_master_ops = {
    .read = master_read, .write = master_write, .max_size = 1};
const struct io_ops irqchip_slave_ops = {.read = slave_read, .write = slave_write, .max_size = 1};
const struct io_ops irqchip_elcr_ops = {.read = elcr_read, .write = elcr_write, .max_size = 1};

static uint64_t ioapic_read(struct device *d, uint64_t off, unsigned size)
{
    return ioapic_mmio_read(to_irqchip(d)->cfg.ioapic, (uint32_t)off & ~3u) >> 8 * (off & 3);
}

/* Index and EOI are 8-bit registers that some guests write as bytes; the data register takes 32
 * bits. */
static void ioapic_write(struct device *d, uint64_t off, unsigned size, uint64_t val)
{
    if (size == 4 || off != 0x10)
        ioapic_mmio_write(to_irqchip(d)->cfg.ioapic, (uint32_t)off, (uint32_t)val);
}

const struct io_ops irqchip_ioapic_ops = {
    .read = ioapic_read, .write = ioapic_write, .max_size = 4};

static int irqchip_init(struct device *d, const void *cfg, struct err *e)
{
    to_irqchip(d)->cfg = *(const struct irqchip_cfg *)cfg;
    return 0;
}

static void irqchip_reset(struct device *d, enum reset_kind kind)
{
    const struct irqchip_cfg *c = &to_irqchip(d)->cfg;

    pic_reset(c->pic);
    pic_elcr_write(c->pic, 0, (uint8_t)c->level);
    pic_elcr_write(c->pic, 1, (uint8_t)(c->level >> 8));
    ioapic_reset(c->ioapic);
}

const struct device_class irqchip_class = {
    .name = "irqchip",
    .size = sizeof(struct irqchip),
    .init = irqchip_init,
    .reset = irqchip_reset,
};
