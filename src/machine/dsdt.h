/* The body of the DSDT: the devices of the machine as AML. Used by acpi_tables.c. */
#ifndef RING3_MACHINE_DSDT_H
#define RING3_MACHINE_DSDT_H

#include "machine/acpi_tables.h"
#include "machine/aml.h"

void dsdt_build(struct aml *a, const struct acpi_cfg *cfg);

#endif
