/* ACPI Machine Language; section numbers refer to ACPI 6.5. */
#include "machine/aml.h"

#include <string.h>

#include "base/util.h"

enum { /* §20.3 */
       OP_ZERO = 0x00,
       OP_ONE = 0x01,
       OP_NAME = 0x08,
       OP_BYTE = 0x0a,
       OP_WORD = 0x0b,
       OP_DWORD = 0x0c,
       OP_STRING = 0x0d,
       OP_QWORD = 0x0e,
       OP_SCOPE = 0x10,
       OP_BUFFER = 0x11,
       OP_PACKAGE = 0x12,
       OP_METHOD = 0x14,
       OP_EXT = 0x5b,
       OP_EXT_DEVICE = 0x82,
       OP_ARG0 = 0x68,
       OP_AND = 0x7b,
       OP_OR = 0x7d,
       OP_DWORD_FIELD = 0x8a,
       OP_LEQUAL = 0x93,
       OP_IF = 0xa0,
       OP_ELSE = 0xa1,
       OP_RETURN = 0xa4,
};

#define METHOD_SERIALIZED 0x08

void aml_init(struct aml *a) { sbuf_init(&a->b); }

void aml_free(struct aml *a) { sbuf_free(&a->b); }

bool aml_failed(const struct aml *a) { return a->b.oom; }

void aml_bytes(struct aml *a, const void *p, size_t n) { sbuf_put(&a->b, p, n); }

static void byte(struct aml *a, uint8_t v) { aml_bytes(a, &v, 1); }

/* The low n bytes of v, little-endian. */
static void le(struct aml *a, uint64_t v, unsigned n) { aml_bytes(a, &v, n); }

/* §20.2.2: a name segment has four characters, filled up with '_'. */
static void name_segment(struct aml *a, const char *name)
{
    size_t n = strlen(name);

    aml_bytes(a, name, n);
    aml_bytes(a, "____", 4 - n);
}

/* Puts n bytes in front of what was written since `at`. */
static void insert(struct aml *a, size_t at, const void *p, size_t n)
{
    size_t behind = a->b.len - at;

    aml_bytes(a, p, n); /* makes room */
    if (aml_failed(a))
        return;
    memmove(a->b.data + at + n, a->b.data + at, behind);
    memcpy(a->b.data + at, p, n);
}

/* §20.2.4: the length counts itself, and takes one byte up to 63 or else two to four, of which the
 * first holds the low four bits. */
void aml_end(struct aml *a, size_t mark)
{
    size_t body = a->b.len - mark, n = 1;
    uint8_t length[4];

    if (body + 1 > 0x3f) {
        for (n = 2; body + n >= (size_t)1 << (4 + 8 * (n - 1)); n++)
            ;
        length[0] = (uint8_t)((n - 1) << 6 | ((body + n) & 0xf));
        for (size_t i = 1; i < n; i++)
            length[i] = (uint8_t)((body + n) >> (4 + 8 * (i - 1)));
    } else {
        length[0] = (uint8_t)(body + 1);
    }
    insert(a, mark, length, n);
}

size_t aml_scope(struct aml *a, const char *name)
{
    byte(a, OP_SCOPE);
    size_t mark = a->b.len;
    name_segment(a, name);
    return mark;
}

size_t aml_device(struct aml *a, const char *name)
{
    byte(a, OP_EXT);
    byte(a, OP_EXT_DEVICE);
    size_t mark = a->b.len;
    name_segment(a, name);
    return mark;
}

size_t aml_method(struct aml *a, const char *name, unsigned args)
{
    byte(a, OP_METHOD);
    size_t mark = a->b.len;
    name_segment(a, name);
    byte(a, (uint8_t)args | METHOD_SERIALIZED);
    return mark;
}

size_t aml_package(struct aml *a, uint8_t elements)
{
    byte(a, OP_PACKAGE);
    size_t mark = a->b.len;
    byte(a, elements);
    return mark;
}

size_t aml_buffer(struct aml *a, uint8_t size)
{
    byte(a, OP_BUFFER);
    size_t mark = a->b.len;
    aml_int(a, size);
    return mark;
}

size_t aml_if(struct aml *a)
{
    byte(a, OP_IF);
    return a->b.len;
}

size_t aml_else(struct aml *a)
{
    byte(a, OP_ELSE);
    return a->b.len;
}

void aml_name(struct aml *a, const char *name)
{
    byte(a, OP_NAME);
    name_segment(a, name);
}

void aml_ref(struct aml *a, const char *name) { name_segment(a, name); }

void aml_int(struct aml *a, uint64_t v)
{
    if (v <= 1) {
        byte(a, v ? OP_ONE : OP_ZERO);
    } else if (v <= UINT8_MAX) {
        byte(a, OP_BYTE);
        le(a, v, 1);
    } else if (v <= UINT16_MAX) {
        byte(a, OP_WORD);
        le(a, v, 2);
    } else if (v <= UINT32_MAX) {
        byte(a, OP_DWORD);
        le(a, v, 4);
    } else {
        byte(a, OP_QWORD);
        le(a, v, 8);
    }
}

void aml_string(struct aml *a, const char *s)
{
    byte(a, OP_STRING);
    aml_bytes(a, s, strlen(s) + 1);
}

static unsigned hex(char c) { return (unsigned)(c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10); }

/* §19.3.4: three letters of five bits and four hexadecimal digits, big-endian. */
void aml_eisaid(struct aml *a, const char *id)
{
    uint32_t v = (uint32_t)(id[0] - '@') << 26 | (uint32_t)(id[1] - '@') << 21 |
                 (uint32_t)(id[2] - '@') << 16 | hex(id[3]) << 12 | hex(id[4]) << 8 |
                 hex(id[5]) << 4 | hex(id[6]);

    aml_int(a, __builtin_bswap32(v));
}

/* §19.6.142: the first three groups are little-endian. */
void aml_uuid(struct aml *a, const char *uuid)
{
    static const uint8_t at[16] = {6, 4, 2, 0, 11, 9, 16, 14, 19, 21, 24, 26, 28, 30, 32, 34};
    size_t mark = aml_buffer(a, 16);

    for (unsigned i = 0; i < 16; i++)
        byte(a, (uint8_t)(hex(uuid[at[i]]) << 4 | hex(uuid[at[i] + 1])));
    aml_end(a, mark);
}

void aml_arg(struct aml *a, unsigned n) { byte(a, (uint8_t)(OP_ARG0 + n)); }

void aml_equal(struct aml *a) { byte(a, OP_LEQUAL); }

void aml_and(struct aml *a) { byte(a, OP_AND); }

void aml_or(struct aml *a) { byte(a, OP_OR); }

void aml_return(struct aml *a) { byte(a, OP_RETURN); }

void aml_dword_field(struct aml *a, unsigned arg, unsigned off, const char *name)
{
    byte(a, OP_DWORD_FIELD);
    aml_arg(a, arg);
    aml_int(a, off);
    name_segment(a, name);
}

/* ---- resource templates (§6.4) ---- */

enum { /* tags: small items carry their length, large items have bit 7 set */
       RES_IRQ = 0x22,
       RES_IO = 0x47,
       RES_END = 0x79,
       RES_MEMORY32_FIXED = 0x86,
       RES_DWORD = 0x87,
       RES_WORD = 0x88,
       RES_QWORD = 0x8a,
};

enum { WINDOW_MEMORY, WINDOW_IO, WINDOW_BUS }; /* resource type of an address space descriptor */

#define WINDOW_FIXED 0x0c      /* minimum and maximum are both fixed; positive decode, producer */
#define MEMORY_READ_WRITE 0x01 /* not cacheable */
#define IO_ENTIRE_RANGE 0x03

size_t aml_crs(struct aml *a)
{
    aml_name(a, "_CRS");
    byte(a, OP_BUFFER);
    return a->b.len;
}

void aml_crs_end(struct aml *a, size_t mark)
{
    static const uint8_t end[] = {RES_END, 0}; /* checksum 0: not computed */

    aml_bytes(a, end, sizeof(end));

    size_t n = a->b.len - mark;
    uint8_t size[3] = {n <= UINT8_MAX ? OP_BYTE : OP_WORD, (uint8_t)n, (uint8_t)(n >> 8)};
    insert(a, mark, size, n <= UINT8_MAX ? 2 : 3);
    aml_end(a, mark);
}

void aml_res_io(struct aml *a, uint16_t port, uint8_t len)
{
    byte(a, RES_IO);
    byte(a, 1); /* decodes 16 bits */
    le(a, port, 2);
    le(a, port, 2);
    byte(a, 1);
    byte(a, len);
}

void aml_res_irq(struct aml *a, unsigned irq)
{
    byte(a, RES_IRQ);
    le(a, BIT(irq), 2);
}

void aml_res_memory32(struct aml *a, uint32_t base, uint32_t len)
{
    byte(a, RES_MEMORY32_FIXED);
    le(a, 9, 2);
    byte(a, 1); /* writable */
    le(a, base, 4);
    le(a, len, 4);
}

/* §6.4.3.5: granularity, first, last, translation and length of `width` bytes each. */
static void window(struct aml *a, uint8_t tag, unsigned width, uint8_t type, uint8_t type_flags,
                   uint64_t first, uint64_t last)
{
    byte(a, tag);
    le(a, 3 + 5 * width, 2);
    byte(a, type);
    byte(a, WINDOW_FIXED);
    byte(a, type_flags);
    le(a, 0, width);
    le(a, first, width);
    le(a, last, width);
    le(a, 0, width);
    le(a, last - first + 1, width);
}

void aml_res_bus(struct aml *a, uint16_t first, uint16_t last)
{
    window(a, RES_WORD, 2, WINDOW_BUS, 0, first, last);
}

void aml_res_io_window(struct aml *a, uint16_t first, uint16_t last)
{
    window(a, RES_WORD, 2, WINDOW_IO, IO_ENTIRE_RANGE, first, last);
}

void aml_res_mem32_window(struct aml *a, uint32_t first, uint32_t last)
{
    window(a, RES_DWORD, 4, WINDOW_MEMORY, MEMORY_READ_WRITE, first, last);
}

void aml_res_mem64_window(struct aml *a, uint64_t first, uint64_t last)
{
    window(a, RES_QWORD, 8, WINDOW_MEMORY, MEMORY_READ_WRITE, first, last);
}
