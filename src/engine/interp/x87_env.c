/* The x87 environment in memory: FNSTENV, FLDENV, FNSAVE, FRSTOR (SDM vol. 1 §8.1.10, figures 8-9
 * to 8-12). */
#include "engine/interp/simd.h"

#include <string.h>

#define ENV_MAX 28
#define REGS_BYTES 80

enum tag { TAG_VALID, TAG_ZERO, TAG_SPECIAL, TAG_EMPTY };

static enum tag classify(const uint8_t r[16])
{
    uint64_t mant;
    uint16_t se;

    memcpy(&mant, r, 8);
    memcpy(&se, r + 8, 2);
    unsigned exp = se & 0x7fff;
    if (exp == 0)
        return mant ? TAG_SPECIAL : TAG_ZERO;
    if (exp == 0x7fff || !(mant >> 63))
        return TAG_SPECIAL;
    return TAG_VALID;
}

/* The 16-bit tag word, by physical register. */
static uint16_t full_tags(const struct x87_state *x)
{
    unsigned top = x->fsw >> FSW_TOP_SHIFT & 7;
    uint16_t w = 0;

    for (unsigned p = 0; p < 8; p++)
        w |= (x->tag >> p & 1 ? classify(x->st[(p - top) & 7]) : TAG_EMPTY) << 2 * p;
    return w;
}

static uint8_t abridged_tags(uint16_t w)
{
    uint8_t t = 0;

    for (unsigned p = 0; p < 8; p++)
        t |= ((w >> 2 * p & 3) != TAG_EMPTY) << p;
    return t;
}

static bool real_layout(const struct cpu *c) { return cpu_real(&c->s) || cpu_v86(&c->s); }
static unsigned env_size(const struct insn *i) { return i->opsize == 2 ? 14 : 28; }

static void put(uint8_t *p, unsigned n, unsigned field, uint32_t v)
{
    memcpy(p + field * n, &v, n);
}
static uint32_t get(const uint8_t *p, unsigned n, unsigned field)
{
    uint32_t v = 0;
    memcpy(&v, p + field * n, n);
    return v;
}

static void env_store(const struct cpu *c, const struct insn *i, uint8_t *p)
{
    const struct x87_state *x = &c->s.x87;
    unsigned n = env_size(i) / 7; /* seven fields of 2 or 4 bytes */
    uint32_t ones = n == 4 ? 0xffff0000u : 0;

    put(p, n, 0, x->fcw | ones);
    put(p, n, 1, x->fsw | ones);
    put(p, n, 2, full_tags(x) | ones);
    if (real_layout(c)) {
        uint32_t ip = (uint32_t)(x->fcs * 16 + x->fip), dp = (uint32_t)(x->fds * 16 + x->fdp);
        put(p, n, 3, (ip & 0xffff) | ones);
        put(p, n, 4, (ip >> 16 << 12) | x->fop);
        put(p, n, 5, (dp & 0xffff) | ones);
        put(p, n, 6, dp >> 16 << 12);
    } else {
        put(p, n, 3, (uint32_t)x->fip);
        put(p, n, 4, x->fcs | (uint32_t)x->fop << 16);
        put(p, n, 5, (uint32_t)x->fdp);
        put(p, n, 6, x->fds | ones);
    }
}

static void env_load(struct cpu *c, const struct insn *i, const uint8_t *p)
{
    struct x87_state *x = &c->s.x87;
    unsigned n = env_size(i) / 7;
    uint16_t fsw = (uint16_t)get(p, n, 1);

    x87_set_top(x, fsw >> FSW_TOP_SHIFT & 7);
    x->fcw = ((uint16_t)get(p, n, 0) & FCW_VALID) | FCW_ONE;
    x->fsw = fsw;
    x->tag = abridged_tags((uint16_t)get(p, n, 2));
    x87_update_es(x);
    if (real_layout(c)) {
        x->fip = (get(p, n, 3) & 0xffff) | get(p, n, 4) >> 12 << 16;
        x->fop = get(p, n, 4) & 0x7ff;
        x->fdp = (get(p, n, 5) & 0xffff) | get(p, n, 6) >> 12 << 16;
        x->fcs = x->fds = 0;
    } else {
        x->fip = get(p, n, 3);
        x->fcs = (uint16_t)get(p, n, 4);
        /* The 16-bit protected form does not hold the opcode. */
        x->fop = n == 4 ? get(p, n, 4) >> 16 & 0x7ff : 0;
        x->fdp = get(p, n, 5);
        x->fds = (uint16_t)get(p, n, 6);
        if (c->simd->no_fcs_fds)
            x->fcs = x->fds = 0;
    }
}

/* Linear address of an image of n bytes; alignment checking wants its words aligned (SDM vol. 3 table 6-7). */
static uint64_t image_lin(struct cpu *c, const struct insn *i, unsigned n, enum access a)
{
    uint64_t la = insn_lin(c, i, n, a);

    if (c->align && (la & (i->opsize == 2 ? 1 : 3)))
        cpu_raise(c, X_AC, 0);
    return la;
}

static void fnstenv(struct cpu *c, const struct insn *i)
{
    uint8_t buf[ENV_MAX];
    unsigned n = env_size(i);

    x87_enter(c, i);
    x87_sync(c);
    env_store(c, i, buf);
    lin_write(c, image_lin(c, i, n, ACCESS_WRITE), buf, n, PRIV_CPL);
    c->s.x87.fcw |= FCW_MASKS;
    x87_update_es(&c->s.x87);
}

static void fldenv(struct cpu *c, const struct insn *i)
{
    uint8_t buf[ENV_MAX];
    unsigned n = env_size(i);

    x87_enter(c, i);
    lin_read(c, image_lin(c, i, n, ACCESS_READ), buf, n, PRIV_CPL);
    x87_sync(c);
    env_load(c, i, buf);
}

static void fnsave(struct cpu *c, const struct insn *i)
{
    uint8_t buf[ENV_MAX + REGS_BYTES];
    unsigned n = env_size(i);

    x87_enter(c, i);
    x87_sync(c);
    env_store(c, i, buf);
    for (unsigned r = 0; r < 8; r++)
        memcpy(buf + n + 10 * r, c->s.x87.st[r], 10);
    n += REGS_BYTES;
    lin_write(c, image_lin(c, i, n, ACCESS_WRITE), buf, n, PRIV_CPL);
    x87_reset(&c->s.x87);
}

static void frstor(struct cpu *c, const struct insn *i)
{
    uint8_t buf[ENV_MAX + REGS_BYTES];
    unsigned n = env_size(i);

    x87_enter(c, i);
    lin_read(c, image_lin(c, i, n + REGS_BYTES, ACCESS_READ), buf, n + REGS_BYTES, PRIV_CPL);
    x87_sync(c);
    env_load(c, i, buf);
    for (unsigned r = 0; r < 8; r++)
        memcpy(c->s.x87.st[r], buf + n + 10 * r, 10);
}

insn_fn x87_env_fn(const struct insn *i)
{
    unsigned reg = i->modrm >> 3 & 7;

    if (i->opcode == 0xd9)
        return reg == 4 ? fldenv : reg == 6 ? fnstenv : NULL;
    if (i->opcode == 0xdd)
        return reg == 4 ? frstor : reg == 6 ? fnsave : NULL;
    return NULL;
}
