#include "world.h"

#include <cpuid.h>
#include <string.h>

#include "native.h"

static struct world *world_of(struct cpu *c) { return container_of(c, struct world, c); }

void cpu_raise(struct cpu *c, enum vector vec, uint32_t error)
{
    c->event = (struct event){.kind = EV_FAULT, .vector = (uint8_t)vec, .error = error};
    longjmp(c->fault, 1);
}

void cpu_restart(struct cpu *c)
{
    world_of(c)->restarted = true;
    longjmp(c->fault, 1);
}

static uint64_t page_end(uint64_t la) { return (la | PAGE_MASK) + 1; }

/* Faults as the processor would on these pages. */
static void touch(struct cpu *c, uint64_t la, unsigned n, bool write)
{
    for (uint64_t a = la; a < la + n; a = page_end(a)) {
        bool rw = a >= DATA_ADDR && a < DATA_ADDR + DATA_BYTES;
        bool ro = !rw && a >= DATA_ADDR && a < DATA_ADDR + DATA_BYTES + RO_BYTES;
        if (rw || (ro && !write))
            continue;
        world_of(c)->cr2 = a;
        cpu_raise(c, X_PF, PF_U | (write ? PF_W : 0) | (ro ? PF_P : 0));
    }
}

void lin_read(struct cpu *c, uint64_t la, void *buf, unsigned n, enum priv p)
{
    touch(c, la, n, false);
    memcpy(buf, (void *)la, n);
}

void lin_write(struct cpu *c, uint64_t la, const void *buf, unsigned n, enum priv p)
{
    touch(c, la, n, true);
    memcpy((void *)la, buf, n);
}

void lin_check(struct cpu *c, uint64_t la, unsigned n, enum access a, enum priv p)
{
    touch(c, la, n, a == ACCESS_WRITE);
}

uint64_t seg_lin(struct cpu *c, enum sreg seg, uint64_t ea, unsigned n, enum access a)
{
    uint64_t last = ea + (n ? n - 1 : 0);

    if (sext(ea, 48) != ea || sext(last, 48) != last)
        cpu_raise(c, seg == SS ? X_SS : X_GP, 0);
    return ea;
}

uint64_t insn_ea(struct cpu *c, const struct insn *i)
{
    const struct insn_mem *m = &i->mem;
    uint64_t a = (uint64_t)m->disp;

    if (m->base == REG_RIP)
        a += c->next_rip;
    else if (m->base != REG_NONE)
        a += c->s.gpr[m->base];
    if (m->index != REG_NONE)
        a += c->s.gpr[m->index] << m->scale;
    return i->addrsize == 4 ? (uint32_t)a : a;
}

uint64_t insn_lin(struct cpu *c, const struct insn *i, unsigned n, enum access a)
{
    return seg_lin(c, i->mem.seg, insn_ea(c, i), n, a);
}

uint64_t gpr_read(const struct cpu *c, unsigned reg, unsigned size)
{
    return size == 8 ? c->s.gpr[reg] : c->s.gpr[reg] & (BIT(8 * size) - 1);
}

void gpr_write(struct cpu *c, unsigned reg, unsigned size, uint64_t v)
{
    memcpy(&c->s.gpr[reg], &v, size);
    if (size == 4)
        c->s.gpr[reg] = (uint32_t)v;
}

static void ferr(struct vcpu *v, bool level) { container_of(v, struct world, v)->ferr = level; }

static void host_policy(struct cpuid_policy *p)
{
#define X(name, leaf, sub, reg, bit) {leaf, sub, reg, bit},
    static const struct {
        uint32_t leaf, sub;
        char reg;
        uint8_t bit;
    } row[] = {CPU_FEATURES(X)};
#undef X
    for (unsigned f = 0; f < CPUF_COUNT; f++) {
        uint32_t r[4];
        __cpuid_count(row[f].leaf, row[f].sub, r[0], r[1], r[2], r[3]);
        if (r[row[f].reg - 'a'] >> row[f].bit & 1)
            p->feature[f / 64] |= BIT(f % 64);
    }
    for (unsigned k = 2; k < 8; k++) {
        uint32_t a, b, c, d;
        __cpuid_count(13, k, a, b, c, d);
        p->xsave_size[k] = a;
        p->xsave_off[k] = b;
    }
    p->leaf[0].leaf = 7;
    __cpuid_count(7, 0, p->leaf[0].eax, p->leaf[0].ebx, p->leaf[0].ecx, p->leaf[0].edx);
    p->leaf[1].leaf = 0x80000008;
    __cpuid(0x80000008, p->leaf[1].eax, p->leaf[1].ebx, p->leaf[1].ecx, p->leaf[1].edx);
    p->n = 2;
    p->xcr0_mask = native_xcr0();
    uint32_t a, b, c, d;
    __cpuid(0, a, b, c, d);
    p->amd = b == 0x68747541; /* "Auth" */
}

int world_init(struct world *w, struct err *e)
{
    struct cpu_state *s = &w->c.s;

    memset(w, 0, sizeof(*w));
    host_policy(&w->policy);
    w->env.ferr = ferr;
    w->vm = (struct vm){.env = &w->env, .cpuid = &w->policy};
    w->c.vm = &w->vm;
    w->c.v = &w->v;
    w->c.tlb = &w->tlb;
    w->c.cpl = 3;
    w->c.bits = CPU_64;
    w->c.flat = true;
    s->cr0 = CR0_PE | CR0_PG | CR0_NE | CR0_MP;
    s->cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE;
    s->efer = EFER_LMA | EFER_LME;
    s->xcr0 = native_xcr0();
    s->seg[CS].attr = SEG_L | SEG_P | SEG_S | SEG_CODE | 3 << SEG_DPL_SHIFT;
    s->seg[SS].attr = SEG_P | SEG_S | 3 << SEG_DPL_SHIFT;
    world_tlb(w, false);
    return simd_init(&w->c, e);
}

void world_fini(struct world *w) { simd_fini(&w->c); }

void world_tlb(struct world *w, bool fill)
{
    for (unsigned n = 0; n < TLB_ENTRIES; n++)
        w->tlb.e[n].rtag = w->tlb.e[n].wtag = tlb_empty(n);
    for (uint64_t a = DATA_ADDR; fill && a < DATA_ADDR + DATA_BYTES; a += PAGE_SIZE) {
        struct tlb_entry *e = tlb_slot(&w->tlb, a);
        e->rtag = e->wtag = a;
        e->addend = 0;
    }
}

bool world_step(struct world *w, const struct insn *i, struct simd_op *op)
{
    struct cpu *c = &w->c;

    c->next_rip = c->s.rip + i->len;
    w->restarted = false;
    if (setjmp(c->fault))
        return false;
    if (op)
        op->run(c, i, op);
    else
        simd_fn(i)(c, i);
    c->s.rip = c->next_rip;
    return true;
}
