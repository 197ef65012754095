/* x87 and vector registers: KVM's area is the hardware's XSAVE image in standard format (SDM vol. 1 §13.4). */
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

#include "cpu/xsave.h"
#include "engine/kvm/kvm.h"

#define FCW_INIT 0x37f

/* A component's place in the area, or NULL: not there, or beyond it. size is what we need of it. */
static uint8_t *component(struct kvm_cpu *c, unsigned i, uint32_t size)
{
    const struct cpuid_policy *p = c->v->vm->cpuid;

    if (!(p->xcr0_mask >> i & 1) || p->xsave_size[i] < size ||
        p->xsave_off[i] > c->vm->xsave_size || size > c->vm->xsave_size - p->xsave_off[i])
        return NULL;
    return c->xsave + p->xsave_off[i];
}

static void read_x87(const uint8_t *x, struct cpu_state *s)
{
    memcpy(&s->x87.fcw, x + FX_FCW, 2);
    memcpy(&s->x87.fsw, x + FX_FSW, 2);
    s->x87.tag = x[FX_TAG];
    memcpy(&s->x87.fop, x + FX_FOP, 2);
    s->x87.fop &= 0x7ff;
    memcpy(&s->x87.fip, x + FX_FIP, 8);
    memcpy(&s->x87.fdp, x + FX_FDP, 8);
    for (unsigned i = 0; i < 8; i++)
        memcpy(s->x87.st[i], x + FX_ST + 16 * i, 10);
}

int kvm_read_xstate(struct kvm_cpu *c, struct cpu_state *s)
{
    bool large = c->vm->xsave_size > sizeof(struct kvm_xsave);
    uint8_t *x = c->xsave;
    uint64_t bv;

    if (ioctl(c->fd, large ? KVM_GET_XSAVE2 : KVM_GET_XSAVE, x))
        return -errno;
    memset(&s->x87, 0, sizeof(s->x87));
    memset(s->zmm, 0, sizeof(s->zmm));
    memset(s->k, 0, sizeof(s->k));
    /* A component whose bit is clear is in its initial state, whatever its bytes say. MXCSR always counts. */
    memcpy(&bv, x + XSAVE_LEGACY, 8);
    memcpy(&s->mxcsr, x + FX_MXCSR, 4);
    if (bv >> COMP_X87 & 1)
        read_x87(x, s);
    else
        s->x87.fcw = FCW_INIT;
    for (unsigned i = 0; i < 16 && bv >> COMP_SSE & 1; i++)
        memcpy(s->zmm[i], x + FX_XMM + 16 * i, 16);

    const uint8_t *ymm = bv >> COMP_AVX & 1 ? component(c, COMP_AVX, 256) : NULL;
    const uint8_t *k = bv >> COMP_K & 1 ? component(c, COMP_K, 64) : NULL;
    const uint8_t *high = bv >> COMP_ZMM_HI256 & 1 ? component(c, COMP_ZMM_HI256, 512) : NULL;
    const uint8_t *more = bv >> COMP_HI16_ZMM & 1 ? component(c, COMP_HI16_ZMM, 1024) : NULL;

    for (unsigned i = 0; i < 16; i++) {
        if (ymm)
            memcpy(&s->zmm[i][2], ymm + 16 * i, 16);
        if (high)
            memcpy(&s->zmm[i][4], high + 32 * i, 32);
        if (more)
            memcpy(s->zmm[16 + i], more + 64 * i, 64);
    }
    if (k)
        memcpy(s->k, k, 64);
    return 0;
}

int kvm_write_xstate(struct kvm_cpu *c, const struct cpu_state *s)
{
    uint8_t *x = c->xsave;
    uint64_t bv = BIT(COMP_X87) | BIT(COMP_SSE);

    memset(x, 0, c->vm->xsave_size);
    memcpy(x + FX_FCW, &s->x87.fcw, 2);
    memcpy(x + FX_FSW, &s->x87.fsw, 2);
    x[FX_TAG] = s->x87.tag;
    memcpy(x + FX_FOP, &s->x87.fop, 2);
    memcpy(x + FX_FIP, &s->x87.fip, 8);
    memcpy(x + FX_FDP, &s->x87.fdp, 8);
    memcpy(x + FX_MXCSR, &s->mxcsr, 4);
    for (unsigned i = 0; i < 8; i++)
        memcpy(x + FX_ST + 16 * i, s->x87.st[i], 10);
    for (unsigned i = 0; i < 16; i++)
        memcpy(x + FX_XMM + 16 * i, s->zmm[i], 16);

    uint8_t *ymm = component(c, COMP_AVX, 256), *k = component(c, COMP_K, 64);
    uint8_t *high = component(c, COMP_ZMM_HI256, 512), *more = component(c, COMP_HI16_ZMM, 1024);

    for (unsigned i = 0; i < 16; i++) {
        if (ymm)
            memcpy(ymm + 16 * i, &s->zmm[i][2], 16);
        if (high)
            memcpy(high + 32 * i, &s->zmm[i][4], 32);
        if (more)
            memcpy(more + 64 * i, s->zmm[16 + i], 64);
    }
    if (k)
        memcpy(k, s->k, 64);
    bv |= (ymm ? BIT(COMP_AVX) : 0) | (k ? BIT(COMP_K) : 0) | (high ? BIT(COMP_ZMM_HI256) : 0) |
          (more ? BIT(COMP_HI16_ZMM) : 0);
    memcpy(x + XSAVE_LEGACY, &bv, 8);
    return ioctl(c->fd, KVM_SET_XSAVE, x) ? -errno : 0;
}
