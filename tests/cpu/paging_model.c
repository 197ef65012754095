#include <string.h>

#include "cpu/state.h"
#include "paging_model.h"

enum mode { NONE, BITS32, PAE, LONG };

static enum mode mode_of(const struct model *m)
{
    if (!(m->cr0 & CR0_PG))
        return NONE;
    if (!(m->cr4 & CR4_PAE))
        return BITS32;
    return m->efer & EFER_LMA ? LONG : PAE;
}

static bool bit(uint64_t v, unsigned n) { return v >> n & 1; }

static uint64_t get_field(uint64_t v, unsigned hi, unsigned lo)
{
    uint64_t r = 0;

    for (unsigned i = lo; i <= hi; i++)
        r |= (uint64_t)bit(v, i) << (i - lo);
    return r;
}

static uint64_t fetch(const struct model *m, uint64_t gpa, unsigned bytes)
{
    uint64_t v = 0;
    enum frame_kind k = gpa / 4096 < m->frames ? m->kind[gpa / 4096] : FRAME_NONE;

    for (unsigned i = 0; i < bytes; i++) {
        uint64_t b = k == FRAME_NONE ? 0xff : k == FRAME_BALLOONED ? 0 : m->mem[gpa + i];
        v |= b << (8 * i);
    }
    return v;
}

/* Level names as in the manual: 4 PML4, 3 PDPT, 2 PD, 1 PT. */
static bool maps_page(const struct model *m, enum mode mode, unsigned level, uint64_t e)
{
    if (level == 1)
        return true;
    if (!bit(e, 7))
        return false;
    if (level == 2)
        return mode != BITS32 || (m->cr4 & CR4_PSE);
    return level == 3 && mode == LONG && m->gbpages;
}

static bool bit_reserved(const struct model *m, enum mode mode, unsigned level, uint64_t e,
                         unsigned n)
{
    bool page = maps_page(m, mode, level, e);

    if (mode == BITS32) {
        if (!(page && level == 2))
            return false;
        if (n == 21)
            return true;
        return n >= 13 && n <= 20 && n - 13 + 32 >= m->maxphys; /* PSE-36 */
    }
    if (n == 63)
        return !(m->efer & EFER_NXE);
    if (n >= 52)
        return mode == PAE;
    if (n >= m->maxphys)
        return true;
    if (n == 7 && level == 4)
        return true;
    if (n == 7 && level == 3)
        return !m->gbpages;
    if (page && level == 3)
        return n >= 13 && n <= 29;
    if (page && level == 2)
        return n >= 13 && n <= 20;
    return false;
}

static bool reserved(const struct model *m, enum mode mode, unsigned level, uint64_t e)
{
    for (unsigned n = 0; n < 64; n++)
        if (bit(e, n) && bit_reserved(m, mode, level, e, n))
            return true;
    return false;
}

static uint32_t code(const struct model *m, enum access a, bool user, bool present, bool rsvd)
{
    uint32_t c = 0;
    bool has_i = (m->cr4 & CR4_SMEP) || ((m->cr4 & CR4_PAE) && (m->efer & EFER_NXE));

    if (present)
        c |= 1;
    if (a == ACCESS_WRITE)
        c |= 2;
    if (user)
        c |= 4;
    if (rsvd)
        c |= 8;
    if (a == ACCESS_EXEC && has_i)
        c |= 16;
    return c;
}

/* §4.6.1, sentence by sentence. */
static bool permitted(const struct model *m, const struct model_result *r, enum access a, bool user,
                      bool ac)
{
    if (!user) {
        switch (a) {
        case ACCESS_READ:
            if (!r->user)
                return true;
            return !(m->cr4 & CR4_SMAP) || ac;
        case ACCESS_WRITE:
            if (!r->user)
                return !(m->cr0 & CR0_WP) || r->write;
            if ((m->cr4 & CR4_SMAP) && !ac)
                return false;
            return !(m->cr0 & CR0_WP) || r->write;
        default:
            if (r->user && (m->cr4 & CR4_SMEP))
                return false;
            return !r->nx;
        }
    }
    if (!r->user)
        return false;
    if (a == ACCESS_WRITE)
        return r->write;
    return a != ACCESS_EXEC || !r->nx;
}

static void put_bits(struct model *m, struct model_result *r, uint64_t gpa, uint64_t set)
{
    /* Both bits are in the first byte of an entry. */
    if ((fetch(m, gpa, 1) & set) == set)
        return;
    if (m->kind[gpa / 4096] != FRAME_RAM)
        return;
    m->mem[gpa] |= (uint8_t)set;
    m->wrote[gpa / 4096] = true;
    r->writes[r->nwrites++] = gpa;
}

static struct model_result walk(struct model *m, uint64_t la, enum access a, bool user, bool ac,
                                bool probe)
{
    struct model_result r = {.user = true, .write = true};
    enum mode mode = mode_of(m);
    unsigned esize = mode == BITS32 ? 4 : 8, idx_bits = mode == BITS32 ? 10 : 9;
    uint64_t at[4], table;
    unsigned n = 0, level;

    if (mode != LONG)
        la = get_field(la, 31, 0);
    if (mode == NONE) {
        r.ok = true;
        r.gpa = la;
        r.shift = 12;
        r.dirty = true;
        return r;
    }
    if (mode == PAE) {
        uint64_t e = m->pdpte[get_field(la, 31, 30)];
        if (!bit(e, 0)) {
            r.error = code(m, a, user, false, false);
            return r;
        }
        table = get_field(e, 51, 12) << 12;
        level = 2;
    } else {
        table = get_field(m->cr3, mode == LONG ? 51 : 31, 12) << 12;
        level = mode == LONG ? 4 : 2;
    }

    for (;; level--) {
        unsigned lo = 12 + (level - 1) * idx_bits;
        uint64_t gpa = table + get_field(la, lo + idx_bits - 1, lo) * esize;
        uint64_t e = fetch(m, gpa, esize);

        at[n++] = gpa;
        if (!bit(e, 0)) {
            r.error = code(m, a, user, false, false);
            return r;
        }
        if (reserved(m, mode, level, e)) {
            r.error = code(m, a, user, true, true);
            return r;
        }
        r.write = r.write && bit(e, 1);
        r.user = r.user && bit(e, 2);
        r.nx = r.nx || (esize == 8 && bit(e, 63));
        if (!maps_page(m, mode, level, e)) {
            table = get_field(e, esize == 8 ? 51 : 31, 12) << 12;
            continue;
        }
        r.shift = lo;
        r.gpa = get_field(e, esize == 8 ? 51 : 31, lo) << lo | get_field(la, lo - 1, 0);
        if (mode == BITS32 && level == 2)
            r.gpa |= get_field(e, 20, 13) << 32;
        r.global = bit(e, 8) && (m->cr4 & CR4_PGE);
        r.dirty = bit(e, 6);
        break;
    }
    if (probe) {
        r.ok = true;
        return r;
    }
    if (!permitted(m, &r, a, user, ac)) {
        r.error = code(m, a, user, true, false);
        return r;
    }
    r.ok = true;
    for (unsigned i = 0; i < n; i++)
        put_bits(m, &r, at[i], a == ACCESS_WRITE && i == n - 1 ? 0x60 : 0x20);
    r.dirty = r.dirty || a == ACCESS_WRITE;
    return r;
}

struct model_result model_walk(struct model *m, uint64_t la, enum access a, bool user, bool ac)
{
    return walk(m, la, a, user, ac, false);
}

struct model_result model_probe(struct model *m, uint64_t la)
{
    return walk(m, la, ACCESS_READ, false, false, true);
}

bool model_load_pdptes(struct model *m)
{
    uint64_t e[4];

    for (unsigned i = 0; i < 4; i++) {
        e[i] = fetch(m, (get_field(m->cr3, 31, 5) << 5) + i * 8, 8);
        if (!bit(e[i], 0))
            continue;
        for (unsigned n = 0; n < 64; n++) {
            bool must_be_0 = n == 1 || n == 2 || (n >= 5 && n <= 8) || n >= m->maxphys;
            if (bit(e[i], n) && must_be_0)
                return false;
        }
    }
    memcpy(m->pdpte, e, sizeof(e));
    return true;
}
