/*
 * Stack frames of far calls and events, and the stacks of inner rings from the TSS.
 * SDM vol. 3 §5.8.5, §6.12, §8.2, §8.7.
 */
#include <string.h>

#include "engine/interp/sys.h"

void tss_stack(struct cpu *c, unsigned dpl, struct segment *ss, uint64_t *sp)
{
    const struct segment *tr = &c->s.tr;
    bool is32 = tr->attr & 8;
    unsigned n = is32 ? 4 : 2, off = dpl * n * 2 + n;

    if (off + n + 1 > tr->limit)
        raise_sel(c, X_TS, tr->sel);
    *sp = lin_ld(c, sys_la(c, tr->base + off), n, PRIV_SUPER);
    uint16_t sel = lin_ld(c, sys_la(c, tr->base + off + n), 2, PRIV_SUPER);

    if (sel_is_null(sel))
        cpu_raise(c, X_TS, 0);
    segment_stack(c, sel, dpl, X_TS, ss);
}

uint64_t tss_stack64(struct cpu *c, unsigned dpl, unsigned ist)
{
    const struct segment *tr = &c->s.tr;
    unsigned off = ist ? 28 + ist * 8 : 4 + dpl * 8;

    if (off + 7 > tr->limit)
        raise_sel(c, X_TS, tr->sel);
    return lin_ld(c, sys_la(c, tr->base + off), 8, PRIV_SUPER);
}

static uint64_t sp_mask(const struct segment *ss, bool is64)
{
    return is64 ? ~0ull : ss->attr & SEG_DB ? 0xffffffffull : 0xffffull;
}

/* Linear address of [off, off+n) in the stack segment. */
static uint64_t frame_lin(struct cpu *c, const struct segment *ss, bool is64, uint64_t off,
                          unsigned n, uint32_t err)
{
    uint64_t last = off + n - 1;

    if (is64) {
        if (!is_canonical(off) || !is_canonical(last))
            cpu_raise(c, X_SS, err);
        return off;
    }
    bool down = (ss->attr & (SEG_CODE | SEG_EXPDOWN)) == SEG_EXPDOWN;

    if ((ss->attr & SEG_UNUSABLE) ||
        (down ? off <= ss->limit || last > sp_mask(ss, false) : last > ss->limit))
        cpu_raise(c, X_SS, err);
    return (uint32_t)(ss->base + off);
}

uint64_t frame_push(struct cpu *c, const struct segment *ss, uint64_t sp, bool is64,
                    const uint64_t *val, unsigned n, unsigned size, enum priv p, uint32_t err)
{
    uint64_t mask = sp_mask(ss, is64), total = (uint64_t)n * size;
    uint64_t low = (sp - total) & mask;

    if (low <= mask - (total - 1) && (ss->base + low <= ~0u - total || is64)) {
        uint8_t buf[FRAME_MAX * 8];

        for (unsigned k = 0; k < n; k++)
            memcpy(buf + total - (k + 1) * size, &val[k], size);
        lin_write(c, frame_lin(c, ss, is64, low, total, err), buf, total, p);
    } else {
        /* The frame wraps within the segment or at 4 GiB: look at every element before
         * writing one. */
        for (unsigned pass = 0; pass < 2; pass++) {
            for (unsigned k = 0; k < n; k++) {
                uint64_t off = (sp - (k + 1) * size) & mask;
                uint64_t la = frame_lin(c, ss, is64, off, size, err);

                if (pass == 0)
                    lin_check(c, la, size, ACCESS_WRITE, p);
                else
                    lin_write(c, la, &val[k], size, p);
            }
        }
    }
    return (sp & ~mask) | low;
}

void set_sp(struct cpu *c, uint64_t sp, bool is64)
{
    uint64_t mask = sp_mask(&c->s.seg[SS], is64);

    if (mask == 0xffff)
        c->s.gpr[RSP] = (c->s.gpr[RSP] & ~mask) | (sp & mask);
    else
        c->s.gpr[RSP] = sp & mask;
}
