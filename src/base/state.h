/*
 * One description of a state struct serves save, load, validation and fuzzing. Every byte of a
 * described struct is in exactly one field (state_desc_check proves it; padding is declared with
 * STATE_PAD). The format is little-endian, written by field name:
 *
 *   section: "R3ST" | u16 name length | name | u32 version | u32 body length | body | u32 CRC-32 of body
 *   body:    { u8 name length | name | u32 element size | u32 count | bytes }*
 *
 * A saved section is hostile input: loading goes into a zeroed scratch copy, checks lengths, names,
 * sizes, duplicates, missing fields, ranges and the class's own validate(), and only then commits.
 * Nested structs are described by their own desc and saved as a nested body.
 */
#ifndef RING3_BASE_STATE_H
#define RING3_BASE_STATE_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

enum state_kind {
    STATE_UINT,   /* element of 1, 2, 4 or 8 bytes, or an array of them */
    STATE_STRUCT, /* nested struct, or an array of them */
    STATE_PADDING /* compiler padding: not saved, zero after load */
};

struct state_field {
    const char *name;
    size_t off;
    uint32_t size;  /* of one element */
    uint32_t count; /* elements */
    enum state_kind kind;
    const struct state_desc *sub; /* STATE_STRUCT */
    uint64_t max;                 /* STATE_UINT: largest value allowed; 0 means any */
};

struct state_desc {
    const char *name;
    uint32_t version; /* a section with a greater version is refused */
    size_t size;      /* sizeof the struct */
    const struct state_field *fields;
    size_t nfields;
    /* Cross-field checks on the scratch copy: 0, or negative errno with e set. May be NULL. */
    int (*validate)(const void *s, struct err *e);
};

/* A bool that is neither 0 nor 1 is undefined behaviour, so its range is always checked. */
#define STATE_TYPE_MAX(lvalue) _Generic((lvalue), _Bool: 1, default: 0)
#define STATE_FIELD(type, m) STATE_FIELD_MAX(type, m, STATE_TYPE_MAX(((type *)0)->m))
#define STATE_FIELD_MAX(type, m, mx)                                                               \
    { .name = #m, .off = offsetof(type, m), .size = sizeof(((type *)0)->m), .count = 1,            \
      .kind = STATE_UINT, .max = (mx) }
#define STATE_ARRAY(type, m) STATE_ARRAY_MAX(type, m, STATE_TYPE_MAX(((type *)0)->m[0]))
#define STATE_ARRAY_MAX(type, m, mx)                                                               \
    { .name = #m, .off = offsetof(type, m), .size = sizeof(((type *)0)->m[0]),                     \
      .count = sizeof(((type *)0)->m) / sizeof(((type *)0)->m[0]), .kind = STATE_UINT,             \
      .max = (mx) }
#define STATE_SUB(type, m, d)                                                                      \
    { .name = #m, .off = offsetof(type, m), .size = sizeof(((type *)0)->m), .count = 1,            \
      .kind = STATE_STRUCT, .sub = (d) }
#define STATE_SUBARRAY(type, m, d)                                                                 \
    { .name = #m, .off = offsetof(type, m), .size = sizeof(((type *)0)->m[0]),                     \
      .count = sizeof(((type *)0)->m) / sizeof(((type *)0)->m[0]), .kind = STATE_STRUCT, .sub = (d) }
#define STATE_PAD(type, m)                                                                         \
    { .name = #m, .off = offsetof(type, m), .size = 1, .count = sizeof(((type *)0)->m),            \
      .kind = STATE_PADDING }

/* A growing byte buffer (save) or a bounded view (load). */
struct sbuf {
    uint8_t *data;
    size_t len, cap;
    int oom; /* set when growing failed; later writes are dropped */
};
void sbuf_init(struct sbuf *b);
void sbuf_free(struct sbuf *b);
void sbuf_put(struct sbuf *b, const void *p, size_t len);

/* Appends one section. Returns 0 or -ENOMEM. */
int state_save(const struct state_desc *d, const void *s, struct sbuf *out);
/* Reads one section at data[0..len); on success commits to s and stores the bytes consumed. On
 * failure s is untouched. Returns 0, -EINVAL, -ENOMEM. */
int state_load(const struct state_desc *d, void *s, const uint8_t *data, size_t len,
               size_t *consumed, struct err *e);
/* Proves that the fields cover each byte of the struct exactly once. 0 or -EINVAL with the hole. */
int state_desc_check(const struct state_desc *d, struct err *e);
/* Fills s with random values that respect each field's max (tests). next() yields random bits. */
void state_randomise(const struct state_desc *d, void *s, uint64_t (*next)(void *), void *arg);

#endif
