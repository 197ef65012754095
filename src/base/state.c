/*
 * Saving and loading of described structs. The format is in state.h. Everything that load reads
 * comes from a file or a socket: lengths are compared with what the description says and with what
 * is left, never trusted; recursion follows the description, never the data.
 */
#include "base/state.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "base/util.h"

static const char magic[4] = {'R', '3', 'S', 'T'};

/* ---- buffers ---- */

void sbuf_init(struct sbuf *b) { memset(b, 0, sizeof(*b)); }

void sbuf_free(struct sbuf *b)
{
    free(b->data);
    sbuf_init(b);
}

void sbuf_put(struct sbuf *b, const void *p, size_t len)
{
    if (b->oom || !len)
        return;
    if (len > b->cap - b->len) {
        size_t cap = MAX(MAX(b->cap * 2, b->len + len), 256);
        uint8_t *data = cap > b->len ? realloc(b->data, cap) : NULL;

        if (!data) {
            b->oom = 1;
            return;
        }
        b->data = data;
        b->cap = cap;
    }
    memcpy(b->data + b->len, p, len);
    b->len += len;
}

/* Integers are little-endian as on the only host there is (meson.build refuses others). */
static void put_u8(struct sbuf *b, uint8_t v) { sbuf_put(b, &v, sizeof(v)); }

static void put_u16(struct sbuf *b, uint16_t v) { sbuf_put(b, &v, sizeof(v)); }

static void put_u32(struct sbuf *b, uint32_t v) { sbuf_put(b, &v, sizeof(v)); }

/* Leaves room for a u32 that is known only later; returns its place. */
static size_t put_hole(struct sbuf *b)
{
    size_t at = b->len;

    put_u32(b, 0);
    return at;
}

static void fill_hole(struct sbuf *b, size_t at, size_t v)
{
    uint32_t v32 = (uint32_t)v;

    if (b->oom)
        return;
    if (v > UINT32_MAX)
        b->oom = 1;
    else
        memcpy(b->data + at, &v32, sizeof(v32));
}

/* ---- save ---- */

static void save_body(const struct state_desc *d, const uint8_t *s, struct sbuf *out)
{
    for (size_t i = 0; i < d->nfields; i++) {
        const struct state_field *f = &d->fields[i];
        const uint8_t *p = s + f->off;
        size_t len;

        if (f->kind == STATE_PADDING)
            continue;
        len = strlen(f->name);
        put_u8(out, (uint8_t)len);
        sbuf_put(out, f->name, len);
        if (f->kind == STATE_UINT) {
            put_u32(out, f->size);
            put_u32(out, f->count);
            sbuf_put(out, p, (size_t)f->size * f->count);
        } else {
            size_t hole = put_hole(out), start, one = 0;

            put_u32(out, f->count);
            for (uint32_t k = 0; k < f->count; k++) {
                start = out->len;
                save_body(f->sub, p + (size_t)k * f->size, out);
                one = out->len - start;
            }
            fill_hole(out, hole, one);
        }
    }
}

int state_save(const struct state_desc *d, const void *s, struct sbuf *out)
{
    size_t len = strlen(d->name), hole, start;

    sbuf_put(out, magic, sizeof(magic));
    put_u16(out, (uint16_t)len);
    sbuf_put(out, d->name, len);
    put_u32(out, d->version);
    hole = put_hole(out);
    start = out->len;
    save_body(d, s, out);
    fill_hole(out, hole, out->len - start);
    if (!out->oom)
        put_u32(out, (uint32_t)crc32_z(0, out->data + start, out->len - start));
    return out->oom ? -ENOMEM : 0;
}

/* ---- load ---- */

/* What is left of the input. */
struct view {
    const uint8_t *p;
    size_t len;
};

static const uint8_t *take(struct view *v, size_t len)
{
    const uint8_t *p = v->p;

    if (len > v->len)
        return NULL;
    v->p += len;
    v->len -= len;
    return p;
}

static bool take_int(struct view *v, void *out, size_t size)
{
    const uint8_t *p = take(v, size);

    if (p)
        memcpy(out, p, size);
    return p != NULL;
}

static uint64_t load_uint(const uint8_t *p, uint32_t size)
{
    uint64_t v = 0;

    memcpy(&v, p, size);
    return v;
}

static const struct state_field *find_field(const struct state_desc *d, const uint8_t *name,
                                            size_t len)
{
    for (size_t i = 0; i < d->nfields; i++) {
        const struct state_field *f = &d->fields[i];

        if (f->kind != STATE_PADDING && strlen(f->name) == len && !memcmp(f->name, name, len))
            return f;
    }
    return NULL;
}

static int load_body(const struct state_desc *d, uint8_t *s, struct view v, struct err *e);

static int load_field(const struct state_field *f, uint8_t *s, struct view *v, struct err *e)
{
    uint32_t size, count;
    const uint8_t *p;

    if (!take_int(v, &size, sizeof(size)) || !take_int(v, &count, sizeof(count)))
        return err_set(e, EINVAL, "%s: cut short", f->name);
    if (count != f->count)
        return err_set(e, EINVAL, "%s: %u elements instead of %u", f->name, count, f->count);
    if (f->kind == STATE_UINT && size != f->size)
        return err_set(e, EINVAL, "%s: elements of %u bytes instead of %u", f->name, size, f->size);

    for (uint32_t i = 0; i < count; i++) {
        uint8_t *dst = s + f->off + (size_t)i * f->size;

        p = take(v, size);
        if (!p)
            return err_set(e, EINVAL, "%s: cut short", f->name);
        if (f->kind == STATE_STRUCT) {
            int rc = load_body(f->sub, dst, (struct view){p, size}, e);

            if (rc)
                return err_prefix(e, rc, "%s", f->name);
        } else {
            uint64_t val = load_uint(p, size);

            if (f->max && val > f->max)
                return err_set(e, EINVAL, "%s: %llu is more than %llu", f->name,
                               (unsigned long long)val, (unsigned long long)f->max);
            memcpy(dst, p, size);
        }
    }
    return 0;
}

static int load_fields(const struct state_desc *d, uint8_t *s, struct view v, bool *seen,
                       struct err *e)
{
    while (v.len) {
        const struct state_field *f;
        const uint8_t *name;
        uint8_t len;
        int rc;

        if (!take_int(&v, &len, sizeof(len)) || !(name = take(&v, len)))
            return err_set(e, EINVAL, "cut short within a field's name");
        f = find_field(d, name, len);
        if (!f)
            return err_set(e, EINVAL, "unknown field '%.*s'", len, (const char *)name);
        if (seen[f - d->fields])
            return err_set(e, EINVAL, "%s: there twice", f->name);
        seen[f - d->fields] = true;
        rc = load_field(f, s, &v, e);
        if (rc)
            return rc;
    }
    for (size_t i = 0; i < d->nfields; i++)
        if (!seen[i] && d->fields[i].kind != STATE_PADDING)
            return err_set(e, EINVAL, "%s: missing", d->fields[i].name);
    return 0;
}

static int load_body(const struct state_desc *d, uint8_t *s, struct view v, struct err *e)
{
    bool *seen = calloc(MAX(d->nfields, 1), sizeof(*seen));
    int rc;

    if (!seen)
        return err_set(e, ENOMEM, "no memory to load it");
    rc = load_fields(d, s, v, seen, e);
    free(seen);
    if (!rc && d->validate)
        rc = d->validate(s, e);
    return rc;
}

/* Takes the section apart: its body, or an error. */
static int load_header(const struct state_desc *d, struct view *v, struct view *body, struct err *e)
{
    uint32_t version, len, crc;
    const uint8_t *p;
    uint16_t nlen;

    p = take(v, sizeof(magic));
    if (!p || memcmp(p, magic, sizeof(magic)))
        return err_set(e, EINVAL, "not a state section");
    if (!take_int(v, &nlen, sizeof(nlen)) || !(p = take(v, nlen)))
        return err_set(e, EINVAL, "cut short within its name");
    if (nlen != strlen(d->name) || memcmp(p, d->name, nlen))
        return err_set(e, EINVAL, "it is the state of '%.*s'", MIN(nlen, 64), (const char *)p);
    if (!take_int(v, &version, sizeof(version)) || !take_int(v, &len, sizeof(len)))
        return err_set(e, EINVAL, "cut short within its header");
    if (version > d->version)
        return err_set(e, EINVAL, "version %u is newer than the %u known here", version,
                       d->version);
    p = take(v, len);
    if (!p || !take_int(v, &crc, sizeof(crc)))
        return err_set(e, EINVAL, "cut short within its body");
    if (crc != (uint32_t)crc32_z(0, p, len))
        return err_set(e, EINVAL, "checksum does not match");
    *body = (struct view){p, len};
    return 0;
}

int state_load(const struct state_desc *d, void *s, const uint8_t *data, size_t len,
               size_t *consumed, struct err *e)
{
    struct view v = {data, len}, body = {0};
    uint8_t *scratch = NULL;
    int rc;

    rc = load_header(d, &v, &body, e);
    if (rc)
        goto out;
    scratch = calloc(1, MAX(d->size, 1));
    if (!scratch) {
        rc = err_set(e, ENOMEM, "no memory to load it");
        goto out;
    }
    rc = load_body(d, scratch, body, e);
    if (rc)
        goto out;
    memcpy(s, scratch, d->size);
    *consumed = len - v.len;
out:
    free(scratch);
    return rc ? err_prefix(e, rc, "state '%s'", d->name) : 0;
}

/* ---- the description itself ---- */

static int check_field(const struct state_desc *d, const struct state_field *f, uint8_t *covered,
                       struct err *e)
{
    uint64_t bytes = (uint64_t)f->size * f->count;
    int rc;

    if (!f->name || !f->name[0] || strlen(f->name) > UINT8_MAX)
        return err_set(e, EINVAL, "a field has no name or one that is too long");
    if (!bytes || f->off > d->size || bytes > d->size - f->off)
        return err_set(e, EINVAL, "%s: empty or reaches beyond the struct", f->name);
    for (const struct state_field *o = d->fields; o < f; o++)
        if (!strcmp(o->name, f->name))
            return err_set(e, EINVAL, "%s: described twice", f->name);
    for (uint64_t i = 0; i < bytes; i++) {
        if (covered[f->off + i])
            return err_set(e, EINVAL, "%s: byte %zu is in another field too", f->name,
                           f->off + (size_t)i);
        covered[f->off + i] = 1;
    }
    switch (f->kind) {
    case STATE_UINT:
        if (f->size != 1 && f->size != 2 && f->size != 4 && f->size != 8)
            return err_set(e, EINVAL, "%s: an integer of %u bytes", f->name, f->size);
        if (f->size < 8 && f->max >> (8 * f->size))
            return err_set(e, EINVAL, "%s: its greatest value does not fit it", f->name);
        return 0;
    case STATE_STRUCT:
        if (!f->sub || f->sub->size != f->size)
            return err_set(e, EINVAL, "%s: its description has another size", f->name);
        rc = state_desc_check(f->sub, e);
        return rc ? err_prefix(e, rc, "%s", f->name) : 0;
    case STATE_PADDING:
        return 0;
    }
    return err_set(e, EINVAL, "%s: of no known kind", f->name);
}

int state_desc_check(const struct state_desc *d, struct err *e)
{
    uint8_t *covered;
    int rc = 0;

    if (!d->name || !d->name[0] || strlen(d->name) > UINT16_MAX)
        return err_set(e, EINVAL, "no name or one that is too long");
    covered = calloc(1, MAX(d->size, 1));
    if (!covered)
        return err_set(e, ENOMEM, "no memory to check state '%s'", d->name);
    for (size_t i = 0; i < d->nfields && !rc; i++)
        rc = check_field(d, &d->fields[i], covered, e);
    for (size_t i = 0; i < d->size && !rc; i++)
        if (!covered[i])
            rc = err_set(e, EINVAL, "byte %zu is in no field", i);
    free(covered);
    return rc ? err_prefix(e, rc, "state '%s'", d->name) : 0;
}

static void randomise(const struct state_desc *d, uint8_t *s, uint64_t (*next)(void *), void *arg)
{
    for (size_t i = 0; i < d->nfields; i++) {
        const struct state_field *f = &d->fields[i];

        for (uint32_t k = 0; k < f->count; k++) {
            uint8_t *p = s + f->off + (size_t)k * f->size;

            if (f->kind == STATE_STRUCT) {
                randomise(f->sub, p, next, arg);
            } else if (f->kind == STATE_UINT) {
                uint64_t v = next(arg);

                if (f->max && f->max < UINT64_MAX)
                    v %= f->max + 1;
                memcpy(p, &v, f->size);
            }
        }
    }
}

void state_randomise(const struct state_desc *d, void *s, uint64_t (*next)(void *), void *arg)
{
    memset(s, 0, d->size);
    randomise(d, s, next, arg);
}
