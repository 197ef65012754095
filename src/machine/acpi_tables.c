/* ACPI tables; section numbers refer to ACPI 6.5. The host is little-endian, as the tables are. */
#include "machine/acpi_tables.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "base/state.h"
#include "base/util.h"
#include "dev/platform/acpi.h"
#include "machine/dsdt.h"

#define PACKED __attribute__((packed))

#define OEM_ID "RING3 "
#define OEM_TABLE_ID "RING3PC "
#define CREATOR_ID "RNG3"
#define CPUS_MAX 4096u /* names of processors in the DSDT have three digits */

struct PACKED rsdp { /* §5.2.5.3 */
    char signature[8];
    uint8_t checksum; /* of the first 20 bytes */
    char oem_id[6];
    uint8_t revision;
    uint32_t rsdt;
    uint32_t length;
    uint64_t xsdt;
    uint8_t extended_checksum;
    uint8_t reserved[3];
};

struct PACKED header { /* §5.2.6 */
    char signature[4];
    uint32_t length;
    uint8_t revision;
    uint8_t checksum;
    char oem_id[6];
    char oem_table_id[8];
    uint32_t oem_revision;
    char creator_id[4];
    uint32_t creator_revision;
};

struct PACKED gas { /* generic address structure, §5.2.3.2 */
    uint8_t space;  /* 1: system I/O */
    uint8_t width, offset;
    uint8_t access; /* 1: byte, 2: word, 3: dword */
    uint64_t address;
};

struct PACKED fadt { /* §5.2.9 */
    struct header h;
    uint32_t facs, dsdt;
    uint8_t reserved0, profile;
    uint16_t sci;
    uint32_t smi_cmd;
    uint8_t acpi_enable, acpi_disable, s4bios_req, pstate_cnt;
    uint32_t pm1a_evt, pm1b_evt, pm1a_cnt, pm1b_cnt, pm2_cnt, pm_tmr, gpe0, gpe1;
    uint8_t pm1_evt_len, pm1_cnt_len, pm2_cnt_len, pm_tmr_len, gpe0_len, gpe1_len, gpe1_base;
    uint8_t cst_cnt;
    uint16_t c2_latency, c3_latency, flush_size, flush_stride;
    uint8_t duty_offset, duty_width, day_alarm, month_alarm, century;
    uint16_t boot_arch;
    uint8_t reserved1;
    uint32_t flags;
    struct gas reset;
    uint8_t reset_value;
    uint16_t arm_boot_arch;
    uint8_t minor_version;
    uint64_t x_facs, x_dsdt;
    struct gas x_pm1a_evt, x_pm1b_evt, x_pm1a_cnt, x_pm1b_cnt, x_pm2_cnt, x_pm_tmr, x_gpe0, x_gpe1;
    struct gas sleep_control, sleep_status;
    uint64_t hypervisor;
};
_Static_assert(sizeof(struct fadt) == 276, "FADT of revision 6");

#define BOOT_ARCH_LEGACY BIT(0)
#define BOOT_ARCH_8042 BIT(1)
#define BOOT_ARCH_NO_VGA BIT(2)

#define FADT_WBINVD BIT(0)
#define FADT_C1 BIT(2)
#define FADT_NO_SLEEP_BUTTON BIT(5)
#define FADT_NO_FIXED_RTC BIT(6)
#define FADT_TIMER_32BIT BIT(8)
#define FADT_RESET_REG BIT(10)

#define PROFILE_DESKTOP 1
#define NO_C2_LATENCY 101  /* above 100 us: no C2 */
#define NO_C3_LATENCY 1001 /* above 1000 us: no C3 */

struct PACKED facs { /* §5.2.10 */
    char signature[4];
    uint32_t length, hardware_signature, waking_vector, global_lock, flags;
    uint64_t x_waking_vector;
    uint8_t version, reserved0[3];
    uint32_t ospm_flags;
    uint8_t reserved1[24];
};
_Static_assert(sizeof(struct facs) == 64, "FACS");

struct PACKED madt { /* §5.2.12, as are the entries that follow */
    struct header h;
    uint32_t lapic_base, flags;
};
#define MADT_PCAT_COMPAT BIT(0) /* there is a pair of 8259s */

struct PACKED madt_lapic {
    uint8_t type, length, uid, id;
    uint32_t flags;
};

struct PACKED madt_ioapic {
    uint8_t type, length, id, reserved;
    uint32_t address, gsi_base;
};

struct PACKED madt_override {
    uint8_t type, length, bus, irq;
    uint32_t gsi;
    uint16_t flags;
};

struct PACKED madt_lapic_nmi {
    uint8_t type, length, uid;
    uint16_t flags;
    uint8_t lint;
};

struct PACKED madt_x2apic {
    uint8_t type, length;
    uint16_t reserved;
    uint32_t id, flags, uid;
};

struct PACKED madt_x2apic_nmi {
    uint8_t type, length;
    uint16_t flags;
    uint32_t uid;
    uint8_t lint, reserved[3];
};

enum {
    MADT_LAPIC = 0,
    MADT_IOAPIC = 1,
    MADT_OVERRIDE = 2,
    MADT_LAPIC_NMI = 4,
    MADT_X2APIC = 9,
    MADT_X2APIC_NMI = 10,
};
#define MADT_CPU_ENABLED 1
#define MADT_CONFORMING 0   /* polarity and trigger mode as the bus has them */
#define MADT_LEVEL_HIGH 0xd /* active high, level-triggered */
#define FIRST_X2APIC_ONLY 255u

struct PACKED mcfg { /* PCI Firmware 3.3 §4.1.2 */
    struct header h;
    uint64_t reserved0, base;
    uint16_t segment;
    uint8_t first_bus, last_bus;
    uint32_t reserved1;
};

/* The tables as they grow: offset 0 stands for guest address `base`. */
struct tables {
    struct sbuf b;
    uint64_t base;
};

static uint8_t checksum(const void *p, size_t n)
{
    const uint8_t *b = p;
    uint8_t sum = 0;

    while (n--)
        sum += *b++;
    return (uint8_t)-sum;
}

static struct header header(const char *signature, uint8_t revision)
{
    struct header h = {.revision = revision, .oem_revision = 1, .creator_revision = 1};

    memcpy(h.signature, signature, sizeof(h.signature));
    memcpy(h.oem_id, OEM_ID, sizeof(h.oem_id));
    memcpy(h.oem_table_id, OEM_TABLE_ID, sizeof(h.oem_table_id));
    memcpy(h.creator_id, CREATOR_ID, sizeof(h.creator_id));
    return h;
}

/* Fills up to a multiple of `to` and returns the guest address of what comes next. */
static uint64_t align(struct tables *t, size_t to)
{
    static const uint8_t zero[64];

    sbuf_put(&t->b, zero, ALIGN_UP(t->b.len, to) - t->b.len);
    return t->base + t->b.len;
}

/* Completes the table that began at guest address `at`. */
static void finish(struct tables *t, uint64_t at)
{
    if (t->b.oom)
        return;

    uint8_t *p = t->b.data + (at - t->base);
    size_t n = t->b.len - (at - t->base);
    uint32_t length = (uint32_t)n;

    memcpy(p + offsetof(struct header, length), &length, sizeof(length));
    p[offsetof(struct header, checksum)] = checksum(p, n);
}

static uint64_t put_facs(struct tables *t)
{
    struct facs f = {.signature = {'F', 'A', 'C', 'S'}, .length = sizeof(f), .version = 2};
    uint64_t at = align(t, 64);

    sbuf_put(&t->b, &f, sizeof(f));
    return at;
}

static uint64_t put_dsdt(struct tables *t, const struct acpi_cfg *cfg)
{
    struct header h = header("DSDT", 2); /* 2: integers have 64 bits */
    uint64_t at = align(t, 16);
    struct aml a;

    aml_init(&a);
    dsdt_build(&a, cfg);
    sbuf_put(&t->b, &h, sizeof(h));
    sbuf_put(&t->b, a.b.data, a.b.len);
    if (aml_failed(&a))
        t->b.oom = 1;
    aml_free(&a);
    finish(t, at);
    return at;
}

static struct gas io_reg(uint16_t port, uint8_t len, uint8_t access)
{
    return (struct gas){.space = 1, .width = (uint8_t)(8 * len), .access = access, .address = port};
}

static uint64_t put_fadt(struct tables *t, const struct acpi_cfg *cfg, uint64_t facs, uint64_t dsdt)
{
    uint16_t pm = cfg->pm_base;
    struct fadt f = {
        .h = header("FACP", 6),
        .minor_version = 5,
        .facs = (uint32_t)facs,
        .dsdt = (uint32_t)dsdt,
        .x_dsdt = dsdt,
        .profile = PROFILE_DESKTOP,
        .sci = cfg->sci,
        .pm1a_evt = pm + ACPI_PM1_EVT,
        .pm1_evt_len = ACPI_PM1_EVT_LEN,
        .x_pm1a_evt = io_reg(pm + ACPI_PM1_EVT, ACPI_PM1_EVT_LEN, 2),
        .pm1a_cnt = pm + ACPI_PM1_CNT,
        .pm1_cnt_len = ACPI_PM1_CNT_LEN,
        .x_pm1a_cnt = io_reg(pm + ACPI_PM1_CNT, ACPI_PM1_CNT_LEN, 2),
        .pm_tmr = pm + ACPI_PM_TMR,
        .pm_tmr_len = ACPI_PM_TMR_LEN,
        .x_pm_tmr = io_reg(pm + ACPI_PM_TMR, ACPI_PM_TMR_LEN, 3),
        .gpe0 = pm + ACPI_GPE0,
        .gpe0_len = ACPI_GPE0_LEN,
        .x_gpe0 = io_reg(pm + ACPI_GPE0, ACPI_GPE0_LEN, 1),
        .c2_latency = NO_C2_LATENCY,
        .c3_latency = NO_C3_LATENCY,
        .century = cfg->rtc_century,
        .boot_arch = BOOT_ARCH_LEGACY | BOOT_ARCH_NO_VGA | (cfg->i8042 ? BOOT_ARCH_8042 : 0),
        .flags = FADT_WBINVD | FADT_C1 | FADT_NO_SLEEP_BUTTON | FADT_NO_FIXED_RTC |
                 FADT_TIMER_32BIT | FADT_RESET_REG,
        .reset = io_reg(cfg->reset_port, 1, 1),
        .reset_value = cfg->reset_value,
    };
    uint64_t at = align(t, 16);

    memcpy(&f.hypervisor, "RING3VMM", sizeof(f.hypervisor));
    sbuf_put(&t->b, &f, sizeof(f));
    finish(t, at);
    return at;
}

static void put_cpus(struct tables *t, uint32_t cpus)
{
    for (uint32_t i = 0; i < cpus; i++) {
        if (i < FIRST_X2APIC_ONLY) {
            struct madt_lapic e = {MADT_LAPIC, sizeof(e), (uint8_t)i, (uint8_t)i, MADT_CPU_ENABLED};

            sbuf_put(&t->b, &e, sizeof(e));
        } else {
            struct madt_x2apic e = {MADT_X2APIC, sizeof(e), 0, i, MADT_CPU_ENABLED, i};

            sbuf_put(&t->b, &e, sizeof(e));
        }
    }
}

static void put_override(struct tables *t, uint8_t irq, uint8_t gsi, uint16_t flags)
{
    struct madt_override e = {MADT_OVERRIDE, sizeof(e), 0, irq, gsi, flags};

    sbuf_put(&t->b, &e, sizeof(e));
}

static uint64_t put_madt(struct tables *t, const struct acpi_cfg *cfg)
{
    struct madt m = {header("APIC", 6), cfg->lapic_base, MADT_PCAT_COMPAT};
    struct madt_ioapic ioapic = {MADT_IOAPIC, sizeof(ioapic),   cfg->ioapic_id,
                                 0,           cfg->ioapic_base, 0};
    struct madt_lapic_nmi nmi = {MADT_LAPIC_NMI, sizeof(nmi), 0xff, MADT_CONFORMING, 1};
    struct madt_x2apic_nmi nmi2 = {.type = MADT_X2APIC_NMI,
                                   .length = sizeof(nmi2),
                                   .flags = MADT_CONFORMING,
                                   .uid = UINT32_MAX,
                                   .lint = 1};
    uint64_t at = align(t, 16);

    sbuf_put(&t->b, &m, sizeof(m));
    put_cpus(t, cfg->cpus);
    sbuf_put(&t->b, &ioapic, sizeof(ioapic));
    put_override(t, 0, cfg->pit_gsi, MADT_CONFORMING);
    put_override(t, cfg->sci, cfg->sci, MADT_LEVEL_HIGH);
    sbuf_put(&t->b, &nmi, sizeof(nmi));
    if (cfg->cpus > FIRST_X2APIC_ONLY)
        sbuf_put(&t->b, &nmi2, sizeof(nmi2));
    finish(t, at);
    return at;
}

static uint64_t put_mcfg(struct tables *t, const struct acpi_cfg *cfg)
{
    struct mcfg m = {
        .h = header("MCFG", 1),
        .base = cfg->ecam_base,
        .last_bus = (uint8_t)(BIT(cfg->pci_buses_log2) - 1),
    };
    uint64_t at = align(t, 16);

    sbuf_put(&t->b, &m, sizeof(m));
    finish(t, at);
    return at;
}

static uint64_t put_xsdt(struct tables *t, const uint64_t *entries, size_t n)
{
    struct header h = header("XSDT", 1);
    uint64_t at = align(t, 16);

    sbuf_put(&t->b, &h, sizeof(h));
    sbuf_put(&t->b, entries, n * sizeof(*entries));
    finish(t, at);
    return at;
}

/* Everything but the RSDP, whose place is at offset 0. Returns the XSDT's address. */
static uint64_t put_all(struct tables *t, const struct acpi_cfg *cfg)
{
    static const struct rsdp place;
    uint64_t entries[3];
    size_t n = 0;

    sbuf_put(&t->b, &place, sizeof(place));
    uint64_t facs = put_facs(t);
    uint64_t dsdt = put_dsdt(t, cfg);
    entries[n++] = put_fadt(t, cfg, facs, dsdt);
    entries[n++] = put_madt(t, cfg);
    if (cfg->ecam_base)
        entries[n++] = put_mcfg(t, cfg);
    return put_xsdt(t, entries, n);
}

static void put_rsdp(struct tables *t, uint64_t xsdt)
{
    struct rsdp r = {.revision = 2, .length = sizeof(r), .xsdt = xsdt};

    memcpy(r.signature, "RSD PTR ", sizeof(r.signature));
    memcpy(r.oem_id, OEM_ID, sizeof(r.oem_id));
    r.checksum = checksum(&r, offsetof(struct rsdp, length));
    r.extended_checksum = checksum(&r, sizeof(r));
    memcpy(t->b.data, &r, sizeof(r));
}

static int check(const struct acpi_cfg *cfg, uint64_t area, uint64_t size, struct err *e)
{
    if (cfg->cpus == 0 || cfg->cpus > CPUS_MAX)
        return err_set(e, EINVAL, "ACPI tables: %u CPUs (want 1 to %u)", cfg->cpus, CPUS_MAX);
    if (cfg->pci_buses_log2 > 8)
        return err_set(e, EINVAL, "ACPI tables: more than 256 PCI buses");
    if (cfg->ecam_base && cfg->ecam_size < (uint32_t)MIB << cfg->pci_buses_log2)
        return err_set(e, EINVAL, "ACPI tables: ECAM has no room for its buses");
    if (area % 64 || size > 4 * GIB || area > 4 * GIB - size)
        return err_set(e, EINVAL, "ACPI tables: bad place %#llx", (unsigned long long)area);
    return 0;
}

int acpi_tables_build(struct physmap *map, uint64_t area, uint64_t size, const struct acpi_cfg *cfg,
                      uint64_t *rsdp, struct err *e)
{
    struct tables t = {.base = area};
    int rc = check(cfg, area, size, e);

    if (rc)
        return rc;
    sbuf_init(&t.b);
    uint64_t xsdt = put_all(&t, cfg);
    if (t.b.oom) {
        rc = err_set(e, ENOMEM, "no memory for the ACPI tables");
    } else if (t.b.len > size) {
        rc = err_set(e, ENOSPC, "the ACPI tables take %zu bytes, there is room for %llu", t.b.len,
                     (unsigned long long)size);
    } else {
        put_rsdp(&t, xsdt);
        rc = mem_write_rom(map, area, t.b.data, t.b.len);
        if (rc)
            rc = err_set(e, EFAULT, "no guest memory at %#llx for the ACPI tables",
                         (unsigned long long)area);
        else
            *rsdp = area;
    }
    sbuf_free(&t.b);
    return rc;
}
