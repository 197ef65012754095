/*
 * The ACPI tables as a guest finds them: signatures, lengths, checksums and pointers followed from
 * the RSDP; fields against the configuration; and iasl's opinion of them, where acpica-tools is
 * installed.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/util.h"
#include "dev/platform/acpi.h"
#include "machine/acpi_tables.h"

#define AREA 0xe0000u
#define AREA_SIZE 0x20000u
#define RAM_SIZE (1 * MIB)

static const struct acpi_cfg pc = {
    .cpus = 1,
    .lapic_base = 0xfee00000,
    .ioapic_base = 0xfec00000,
    .ioapic_id = 1,
    .pit_gsi = 2,
    .sci = 9,
    .pm_base = 0x600,
    .reset_port = 0xcf9,
    .reset_value = 0x0e,
    .rtc_century = 0x32,
    .pci_buses_log2 = 8,
    .ecam_base = 0xe0000000,
    .ecam_size = 0x10000000,
    .pci_intx_gsi = 16,
    .mmio32 = {0xc0000000, 0x20000000},
    .mmio64 = {0x4000000000, 0x4000000000},
    .com1_port = 0x3f8,
    .com1_irq = 4,
    .i8042 = true,
};

struct fixture {
    struct physmap *map;
    struct ram *ram;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    if (physmap_new(&f->map, 40, NULL) || ram_new(&f->ram, "ram", RAM_SIZE, NULL))
        return -1;
    if (!physmap_add(
            f->map,
            &(struct region){.name = "ram", .kind = REGION_RAM, .size = RAM_SIZE, .ram = f->ram},
            NULL))
        return -1;
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    physmap_free(f->map);
    ram_free(f->ram);
    free(f);
    return 0;
}

static uint64_t le(const uint8_t *p, unsigned n)
{
    uint64_t v = 0;

    memcpy(&v, p, n);
    return v;
}

static uint8_t sum(const uint8_t *p, size_t n)
{
    uint8_t s = 0;

    while (n--)
        s += *p++;
    return s;
}

/* The table at a guest address, checked: it lies in the area and its checksum holds. */
static const uint8_t *table(struct fixture *f, uint64_t gpa, const char *signature)
{
    const uint8_t *t = f->ram->host + gpa;

    assert_in_range(gpa, AREA, AREA + AREA_SIZE - 36);
    assert_memory_equal(t, signature, 4);
    assert_in_range(le(t + 4, 4), 36, AREA + AREA_SIZE - gpa);
    if (memcmp(signature, "FACS", 4) != 0)
        assert_int_equal(sum(t, le(t + 4, 4)), 0);
    return t;
}

/* The table that the XSDT lists by this signature, or NULL. */
static const uint8_t *find(struct fixture *f, uint64_t rsdp, const char *signature)
{
    const uint8_t *r = f->ram->host + rsdp;

    assert_memory_equal(r, "RSD PTR ", 8);
    assert_int_equal(sum(r, 20), 0);
    assert_int_equal(sum(r, 36), 0);
    assert_int_equal(r[15], 2);
    assert_int_equal(le(r + 20, 4), 36);

    const uint8_t *xsdt = table(f, le(r + 24, 8), "XSDT");
    for (size_t at = 36; at < le(xsdt + 4, 4); at += 8) {
        uint64_t gpa = le(xsdt + at, 8);

        if (memcmp(f->ram->host + gpa, signature, 4) == 0)
            return table(f, gpa, signature);
    }
    return NULL;
}

static uint64_t build(struct fixture *f, const struct acpi_cfg *cfg)
{
    struct err e = {0};
    uint64_t rsdp = 0;

    memset(f->ram->host, 0, RAM_SIZE);
    if (acpi_tables_build(f->map, AREA, AREA_SIZE, cfg, &rsdp, &e))
        fail_msg("%s", e.msg);
    assert_int_equal(rsdp, AREA);
    return rsdp;
}

static void test_fadt(void **state)
{
    struct fixture *f = *state;
    const uint8_t *t = find(f, build(f, &pc), "FACP");

    assert_non_null(t);
    assert_int_equal(t[8], 6);
    assert_int_equal(le(t + 4, 4), 276);
    assert_int_equal(le(t + 46, 2), 9); /* SCI_INT */
    assert_int_equal(le(t + 48, 4), 0); /* no SMI command port: ACPI mode always */
    assert_int_equal(le(t + 56, 4), 0x600);
    assert_int_equal(le(t + 64, 4), 0x604);
    assert_int_equal(le(t + 76, 4), 0x608);
    assert_int_equal(le(t + 80, 4), 0x620);
    assert_int_equal(t[88], 4);
    assert_int_equal(t[89], 2);
    assert_int_equal(t[91], 4);
    assert_int_equal(t[92], 4);
    assert_int_equal(t[108], 0x32);
    assert_int_equal(le(t + 109, 2), 0x7); /* ISA devices, 8042, no VGA */

    uint32_t flags = (uint32_t)le(t + 112, 4);
    assert_true(flags & BIT(0));   /* WBINVD */
    assert_true(flags & BIT(8));   /* 32-bit PM timer */
    assert_true(flags & BIT(10));  /* reset register */
    assert_false(flags & BIT(4));  /* power button is fixed hardware */
    assert_false(flags & BIT(20)); /* not hardware-reduced */

    static const uint8_t reset[] = {1, 8, 0, 1, 0xf9, 0x0c, 0, 0, 0, 0, 0, 0, 0x0e};
    assert_memory_equal(t + 116, reset, sizeof(reset));

    /* The extended blocks say the same as the old ones; of the FACS pointers one is 0. */
    assert_int_equal(le(t + 148 + 4, 8), 0x600);
    assert_int_equal(le(t + 172 + 4, 8), 0x604);
    assert_int_equal(le(t + 208 + 4, 8), 0x608);
    assert_int_equal(le(t + 220 + 4, 8), 0x620);
    assert_int_equal(le(t + 140, 8), le(t + 40, 4));
    assert_int_equal(le(t + 132, 8), 0);

    uint64_t facs = le(t + 36, 4);
    assert_int_equal(facs % 64, 0);
    assert_int_equal(le(table(f, facs, "FACS") + 4, 4), 64);
    assert_int_equal(table(f, le(t + 40, 4), "DSDT")[8], 2);
}

static void test_fadt_without_keyboard_controller(void **state)
{
    struct fixture *f = *state;
    struct acpi_cfg cfg = pc;

    cfg.i8042 = false;
    assert_int_equal(le(find(f, build(f, &cfg), "FACP") + 109, 2), 0x5);
}

/* Counts MADT entries by type and checks that they fill the table exactly. */
static void count_madt(const uint8_t *t, unsigned count[256])
{
    size_t at = 44, end = le(t + 4, 4);

    memset(count, 0, 256 * sizeof(*count));
    while (at < end) {
        assert_true(t[at + 1] >= 2 && at + t[at + 1] <= end);
        count[t[at]]++;
        at += t[at + 1];
    }
    assert_int_equal(at, end);
}

static void test_madt_one_cpu(void **state)
{
    struct fixture *f = *state;
    const uint8_t *t = find(f, build(f, &pc), "APIC");
    static const uint8_t rest[] = {
        0, 8,  0,    0, 1, 0, 0,    0,                  /* local APIC 0, enabled */
        1, 12, 1,    0, 0, 0, 0xc0, 0xfe, 0,   0, 0, 0, /* I/O APIC 1, GSI 0.. */
        2, 10, 0,    0, 2, 0, 0,    0,    0,   0,       /* IRQ 0 is GSI 2 */
        2, 10, 0,    9, 9, 0, 0,    0,    0xd, 0,       /* IRQ 9 level, active high */
        4, 6,  0xff, 0, 0, 1,                           /* NMI at LINT1 of all */
    };

    assert_non_null(t);
    assert_int_equal(le(t + 36, 4), 0xfee00000);
    assert_int_equal(le(t + 40, 4), 1);
    assert_int_equal(le(t + 4, 4), 44 + sizeof(rest));
    assert_memory_equal(t + 44, rest, sizeof(rest));
}

static void test_madt_many_cpus(void **state)
{
    struct fixture *f = *state;
    struct acpi_cfg cfg = pc;
    unsigned count[256];

    cfg.cpus = 300;
    const uint8_t *t = find(f, build(f, &cfg), "APIC");
    count_madt(t, count);
    assert_int_equal(count[0], 255);
    assert_int_equal(count[9], 45);
    assert_int_equal(count[4], 1);
    assert_int_equal(count[10], 1);

    const uint8_t *first = t + 44 + 255 * 8;
    assert_int_equal(first[0], 9);
    assert_int_equal(le(first + 4, 4), 255);  /* x2APIC ID */
    assert_int_equal(le(first + 8, 4), 1);    /* enabled */
    assert_int_equal(le(first + 12, 4), 255); /* UID */
}

static void test_mcfg(void **state)
{
    struct fixture *f = *state;
    struct acpi_cfg cfg = pc;
    const uint8_t *t = find(f, build(f, &cfg), "MCFG");

    assert_non_null(t);
    assert_int_equal(le(t + 4, 4), 60);
    assert_int_equal(le(t + 44, 8), 0xe0000000);
    assert_int_equal(le(t + 52, 2), 0);
    assert_int_equal(t[54], 0);
    assert_int_equal(t[55], 255);

    cfg.pci_buses_log2 = 6;
    assert_int_equal(find(f, build(f, &cfg), "MCFG")[55], 63);
    cfg.pci_buses_log2 = 0; /* of a window for more */
    assert_int_equal(find(f, build(f, &cfg), "MCFG")[55], 0);
    cfg.ecam_base = 0;
    assert_null(find(f, build(f, &cfg), "MCFG"));
}

static void test_refusals(void **state)
{
    struct fixture *f = *state;
    struct acpi_cfg cfg = pc;
    struct err e = {0};
    uint64_t rsdp = 0;

    assert_int_equal(acpi_tables_build(f->map, AREA, 1024, &cfg, &rsdp, &e), -ENOSPC);
    assert_int_not_equal(e.msg[0], 0);
    assert_int_equal(acpi_tables_build(f->map, AREA + 16, AREA_SIZE, &cfg, &rsdp, &e), -EINVAL);
    assert_int_equal(acpi_tables_build(f->map, 4 * GIB - 4096, 8192, &cfg, &rsdp, &e), -EINVAL);
    assert_int_equal(acpi_tables_build(f->map, 2 * GIB, AREA_SIZE, &cfg, &rsdp, &e), -EFAULT);
    cfg.cpus = 0;
    assert_int_equal(acpi_tables_build(f->map, AREA, AREA_SIZE, &cfg, &rsdp, &e), -EINVAL);
    cfg.cpus = 4097;
    assert_int_equal(acpi_tables_build(f->map, AREA, AREA_SIZE, &cfg, &rsdp, &e), -EINVAL);
    cfg.cpus = 1;
    cfg.pci_buses_log2 = 9;
    assert_int_equal(acpi_tables_build(f->map, AREA, AREA_SIZE, &cfg, &rsdp, &e), -EINVAL);
    cfg.pci_buses_log2 = 8;
    cfg.ecam_size = 0x0ff00000;
    assert_int_equal(acpi_tables_build(f->map, AREA, AREA_SIZE, &cfg, &rsdp, &e), -EINVAL);
    assert_int_equal(rsdp, 0);
}

/* ---- iasl ---- */

static char *slurp(const char *path)
{
    FILE *in = fopen(path, "r");
    char *text = calloc(1, 1 << 20);

    assert_non_null(in);
    assert_non_null(text);
    assert_true(fread(text, 1, (1 << 20) - 1, in) > 0);
    fclose(in);
    return text;
}

static int shell(const char *dir, const char *command)
{
    char line[512];

    snprintf(line, sizeof(line), "cd %s && %s", dir, command);
    int status = system(line);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void write_table(const char *dir, const char *name, const uint8_t *t)
{
    char path[256];

    snprintf(path, sizeof(path), "%s/%s.aml", dir, name);
    FILE *out = fopen(path, "w");
    assert_non_null(out);
    assert_int_equal(fwrite(t, 1, le(t + 4, 4), out), le(t + 4, 4));
    assert_int_equal(fclose(out), 0);
}

/* Disassembles, compiles again and compares with what we generated: nothing may be lost, and iasl
 * may have nothing to say. */
static void check_with_iasl(struct fixture *f, const struct acpi_cfg *cfg,
                            const char *const *expect)
{
    char dir[] = "/tmp/ring3-acpi-XXXXXX", path[256];

    if (system("command -v iasl >/dev/null 2>&1") != 0)
        skip();
    assert_non_null(mkdtemp(dir));

    uint64_t rsdp = build(f, cfg);
    const uint8_t *fadt = find(f, rsdp, "FACP");
    const uint8_t *dsdt = table(f, le(fadt + 40, 4), "DSDT");
    write_table(dir, "dsdt", dsdt);
    write_table(dir, "fadt", fadt);
    write_table(dir, "madt", find(f, rsdp, "APIC"));
    write_table(dir, "mcfg", find(f, rsdp, "MCFG"));
    write_table(dir, "facs", table(f, le(fadt + 36, 4), "FACS"));
    assert_int_equal(
        shell(dir, "for t in dsdt fadt madt mcfg facs; do iasl -d $t.aml || exit 1; done >d 2>&1"),
        0);

    snprintf(path, sizeof(path), "%s/dsdt.dsl", dir);
    char *dsl = slurp(path);
    for (; *expect; expect++) {
        if (!strstr(dsl, *expect))
            fail_msg("the disassembly has no '%s'", *expect);
    }
    free(dsl);

    assert_int_equal(shell(dir, "iasl -we -p again dsdt.dsl >c 2>&1"), 0);
    snprintf(path, sizeof(path), "%s/c", dir);
    char *said = slurp(path);
    if (!strstr(said, "0 Errors, 0 Warnings, 0 Remarks"))
        fail_msg("%s", said);
    free(said);

    /* All but the header's compiler fields: what iasl wrote is what we wrote. */
    snprintf(path, sizeof(path), "%s/again.aml", dir);
    char *again = slurp(path);
    assert_int_equal(le((uint8_t *)again + 4, 4), le(dsdt + 4, 4));
    assert_memory_equal(again + 36, dsdt + 36, le(dsdt + 4, 4) - 36);
    free(again);
    assert_int_equal(shell(dir, "rm -f ./* && rmdir \"$PWD\""), 0);
}

static void test_iasl(void **state)
{
    static const char *const expect[] = {"Device (PCI0)",
                                         "\"PNP0A08\"",
                                         "\"PNP0A03\"",
                                         "_PRT",
                                         "_OSC",
                                         "Device (COM1)",
                                         "PNP0501",
                                         "0x03F8",
                                         "PNP0303",
                                         "PNP0B00",
                                         "Name (_S5",
                                         "PNP0C02",
                                         "0xE0000000",
                                         "QWordMemory",
                                         "WordBusNumber",
                                         "33db4d5b-1ff7-401c-9657-7441c03dd766",
                                         NULL};

    check_with_iasl(*state, &pc, expect);
}

static void test_iasl_large(void **state)
{
    static const char *const expect[] = {"Device (C12B)", NULL};
    struct acpi_cfg cfg = pc;

    cfg.cpus = 300;
    check_with_iasl(*state, &cfg, expect);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_fadt, setup, teardown),
        cmocka_unit_test_setup_teardown(test_fadt_without_keyboard_controller, setup, teardown),
        cmocka_unit_test_setup_teardown(test_madt_one_cpu, setup, teardown),
        cmocka_unit_test_setup_teardown(test_madt_many_cpus, setup, teardown),
        cmocka_unit_test_setup_teardown(test_mcfg, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refusals, setup, teardown),
        cmocka_unit_test_setup_teardown(test_iasl, setup, teardown),
        cmocka_unit_test_setup_teardown(test_iasl_large, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
