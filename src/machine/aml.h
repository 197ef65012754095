/*
 * Writing ACPI Machine Language (ACPI 6.5 §20). Each call appends one term to a growing buffer;
 * terms that enclose others are opened by a function that returns a mark and closed by aml_end,
 * which fills in the length. Running out of memory is remembered in the buffer and found by
 * aml_failed at the end, so that callers need not check each call. No locking.
 *
 * Names are single segments of one to four characters, as in ASL ("_SB", "PCI0"): each is given
 * where it belongs, so that paths are not needed.
 */
#ifndef RING3_MACHINE_AML_H
#define RING3_MACHINE_AML_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/state.h"

struct aml {
    struct sbuf b;
};

void aml_init(struct aml *a);
void aml_free(struct aml *a);
bool aml_failed(const struct aml *a);

/* Terms that enclose others. */
size_t aml_scope(struct aml *a, const char *name);
size_t aml_device(struct aml *a, const char *name);
size_t aml_method(struct aml *a, const char *name, unsigned args); /* serialized */
size_t aml_package(struct aml *a, uint8_t elements);
size_t aml_buffer(struct aml *a, uint8_t size); /* its bytes follow by aml_bytes */
size_t aml_if(struct aml *a);                   /* the predicate follows first */
size_t aml_else(struct aml *a);
void aml_end(struct aml *a, size_t mark);

/* Name(name, object): the object is the next term. */
void aml_name(struct aml *a, const char *name);
void aml_ref(struct aml *a, const char *name); /* the name itself, as an operand */
void aml_int(struct aml *a, uint64_t v);       /* in its shortest form */
void aml_string(struct aml *a, const char *s);
void aml_eisaid(struct aml *a, const char *id); /* "PNP0A08" */
void aml_uuid(struct aml *a, const char *uuid); /* ToUUID("33db4d5b-...") */
void aml_bytes(struct aml *a, const void *p, size_t n);

/* Operators and statements; operands follow as terms, in the order of the ASL. */
void aml_arg(struct aml *a, unsigned n);
void aml_equal(struct aml *a);  /* LEqual(x, y) */
void aml_and(struct aml *a);    /* And(x, y, target) */
void aml_or(struct aml *a);     /* Or(x, y, target) */
void aml_return(struct aml *a); /* Return(x) */
void aml_dword_field(struct aml *a, unsigned arg, unsigned off, const char *name);

/* Name(_CRS, ResourceTemplate() { ... }), closed by aml_crs_end. */
size_t aml_crs(struct aml *a);
void aml_crs_end(struct aml *a, size_t mark);
void aml_res_io(struct aml *a, uint16_t port, uint8_t len); /* IO (Decode16, port, port, 1, len) */
void aml_res_irq(struct aml *a, unsigned irq);              /* IRQNoFlags () {irq} */
void aml_res_memory32(struct aml *a, uint32_t base, uint32_t len); /* Memory32Fixed (ReadWrite) */
/* Windows that a bridge hands on; [first, last] inclusive. */
void aml_res_bus(struct aml *a, uint16_t first, uint16_t last);
void aml_res_io_window(struct aml *a, uint16_t first, uint16_t last);
void aml_res_mem32_window(struct aml *a, uint32_t first, uint32_t last);
void aml_res_mem64_window(struct aml *a, uint64_t first, uint64_t last);

#endif
