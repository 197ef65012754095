/* The devices of the machine as AML. */
#include "machine/dsdt.h"

#include <stdio.h>

#include "base/util.h"
#include "dev/platform/acpi.h"

#define PCI_SLOTS 32u
#define PCI_PINS 4u
#define PCI_INTX_LINES 4u
#define ISA_BRIDGE_ADR 0x001f0000u /* 00:1f.0 */

/* _OSC (§6.2.11, PCI Firmware 3.3 §4.5.1): the host bridge hands no PCI Express feature to the
 * guest, and says that it did not know what it was asked for any other UUID. */
static void osc(struct aml *a)
{
    size_t method = aml_method(a, "_OSC", 4);

    aml_dword_field(a, 3, 0, "CDW1");
    size_t branch = aml_if(a);
    aml_equal(a);
    aml_arg(a, 0);
    aml_uuid(a, "33db4d5b-1ff7-401c-9657-7441c03dd766");
    aml_dword_field(a, 3, 8, "CDW3");
    aml_and(a);
    aml_ref(a, "CDW3");
    aml_int(a, 0);
    aml_ref(a, "CDW3");
    aml_end(a, branch);
    branch = aml_else(a);
    aml_or(a);
    aml_ref(a, "CDW1");
    aml_int(a, 4); /* unrecognised UUID */
    aml_ref(a, "CDW1");
    aml_end(a, branch);
    aml_return(a);
    aml_arg(a, 3);
    aml_end(a, method);
}

static void pci_windows(struct aml *a, const struct acpi_cfg *cfg)
{
    size_t crs = aml_crs(a);

    aml_res_bus(a, 0, (uint16_t)(BIT(cfg->pci_buses_log2) - 1));
    aml_res_io(a, 0xcf8, 8);
    aml_res_io_window(a, 0, 0xcf7);
    aml_res_io_window(a, 0xd00, 0xffff);
    if (cfg->mmio32.size)
        aml_res_mem32_window(a, (uint32_t)cfg->mmio32.base,
                             (uint32_t)(cfg->mmio32.base + cfg->mmio32.size - 1));
    if (cfg->mmio64.size)
        aml_res_mem64_window(a, cfg->mmio64.base, cfg->mmio64.base + cfg->mmio64.size - 1);
    aml_crs_end(a, crs);
}

/* INTA..INTD of slot n go to line (n + pin) mod 4, as dev/pci/pci.h has it. */
static void pci_routing(struct aml *a, const struct acpi_cfg *cfg)
{
    aml_name(a, "_PRT");
    size_t table = aml_package(a, PCI_SLOTS * PCI_PINS);

    for (unsigned slot = 0; slot < PCI_SLOTS; slot++) {
        for (unsigned pin = 0; pin < PCI_PINS; pin++) {
            size_t entry = aml_package(a, 4);

            aml_int(a, slot << 16 | 0xffff);
            aml_int(a, pin);
            aml_int(a, 0); /* no link device: the next element is a GSI */
            aml_int(a, cfg->pci_intx_gsi + (slot + pin) % PCI_INTX_LINES);
            aml_end(a, entry);
        }
    }
    aml_end(a, table);
}

/* A device on the ISA bus with one or two port ranges (length 0: none) and an interrupt (0: none).
 */
struct isa_device {
    const char *name, *hid;
    struct {
        uint16_t port;
        uint8_t len;
    } io[2];
    uint8_t irq;
};

static void isa_device(struct aml *a, const struct isa_device *d)
{
    size_t device = aml_device(a, d->name);

    aml_name(a, "_HID");
    aml_eisaid(a, d->hid);
    aml_name(a, "_UID");
    aml_int(a, 1);
    aml_name(a, "_STA");
    aml_int(a, 0xf); /* present, enabled, shown, working */
    size_t crs = aml_crs(a);
    for (size_t i = 0; i < ARRAY_LEN(d->io); i++) {
        if (d->io[i].len)
            aml_res_io(a, d->io[i].port, d->io[i].len);
    }
    if (d->irq)
        aml_res_irq(a, d->irq);
    aml_crs_end(a, crs);
    aml_end(a, device);
}

static void isa_bus(struct aml *a, const struct acpi_cfg *cfg)
{
    static const struct isa_device fixed[] = {
        {"PIC_", "PNP0000", {{0x20, 2}, {0xa0, 2}}, 2},
        {"PIT_", "PNP0100", {{0x40, 4}}, 0},
        {"RTC_", "PNP0B00", {{0x70, 2}}, 8},
        {"SPKR", "PNP0800", {{0x61, 1}}, 0},
    };
    static const struct isa_device keyboard = {"KBD_", "PNP0303", {{0x60, 1}, {0x64, 1}}, 1};
    const struct isa_device com1 = {"COM1", "PNP0501", {{cfg->com1_port, 8}}, cfg->com1_irq};
    size_t bridge = aml_device(a, "ISA_");

    aml_name(a, "_ADR");
    aml_int(a, ISA_BRIDGE_ADR);
    for (size_t i = 0; i < ARRAY_LEN(fixed); i++)
        isa_device(a, &fixed[i]);
    if (cfg->i8042)
        isa_device(a, &keyboard);
    if (cfg->com1_port)
        isa_device(a, &com1);
    aml_end(a, bridge);
}

static void pci_host(struct aml *a, const struct acpi_cfg *cfg)
{
    size_t device = aml_device(a, "PCI0");

    aml_name(a, "_HID");
    aml_eisaid(a, "PNP0A08");
    aml_name(a, "_CID");
    aml_eisaid(a, "PNP0A03");
    aml_name(a, "_UID");
    aml_int(a, 0);
    aml_name(a, "_SEG");
    aml_int(a, 0);
    aml_name(a, "_BBN");
    aml_int(a, 0);
    pci_windows(a, cfg);
    pci_routing(a, cfg);
    osc(a);
    isa_bus(a, cfg);
    aml_end(a, device);
}

/* What no other device claims, so that the guest puts nothing else there. */
static void board_resources(struct aml *a, const struct acpi_cfg *cfg)
{
    size_t device = aml_device(a, "MRES");

    aml_name(a, "_HID");
    aml_eisaid(a, "PNP0C02");
    aml_name(a, "_UID");
    aml_int(a, 0);
    size_t crs = aml_crs(a);
    aml_res_io(a, cfg->pm_base, ACPI_PORTS);
    aml_res_io(a, 0x92, 1);
    aml_res_io(a, 0x4d0, 2);
    if (cfg->ecam_base)
        aml_res_memory32(a, cfg->ecam_base, cfg->ecam_size);
    aml_crs_end(a, crs);
    aml_end(a, device);
}

static void processors(struct aml *a, const struct acpi_cfg *cfg)
{
    for (uint32_t i = 0; i < cfg->cpus; i++) {
        char name[5];

        snprintf(name, sizeof(name), "C%03X", i & 0xfff);
        size_t device = aml_device(a, name);
        aml_name(a, "_HID");
        aml_string(a, "ACPI0007");
        aml_name(a, "_UID");
        aml_int(a, i);
        aml_end(a, device);
    }
}

void dsdt_build(struct aml *a, const struct acpi_cfg *cfg)
{
    size_t scope = aml_scope(a, "_SB");

    processors(a, cfg);
    pci_host(a, cfg);
    board_resources(a, cfg);
    aml_end(a, scope);

    aml_name(a, "_S5");
    size_t s5 = aml_package(a, 4);
    aml_int(a, ACPI_SLP_TYP_S5); /* for PM1a */
    aml_int(a, ACPI_SLP_TYP_S5); /* for PM1b, which there is not */
    aml_int(a, 0);
    aml_int(a, 0);
    aml_end(a, s5);
}
