/* struct cpu_state to KVM's registers and back. */
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

#include "engine/kvm/kvm.h"

#define MSR_APIC_BASE 0x1bu
#define APIC_BASE_DEFAULT 0xfee00800ull
#define APIC_BASE_BSP BIT(8)

/* ---- segments ---- */

static struct kvm_segment to_kvm(const struct segment *g)
{
    bool unusable = g->attr & SEG_UNUSABLE;

    return (struct kvm_segment){
        .base = g->base,
        .limit = g->limit,
        .selector = g->sel,
        .type = g->attr & SEG_TYPE,
        .s = bits(g->attr, 4, 4),
        .dpl = SEG_DPL(g->attr),
        .present = !unusable && (g->attr & SEG_P),
        .avl = bits(g->attr, 12, 12),
        .l = bits(g->attr, 13, 13),
        .db = bits(g->attr, 14, 14),
        .g = bits(g->attr, 15, 15),
        .unusable = unusable,
    };
}

static struct segment from_kvm(const struct kvm_segment *k, bool keep_dpl)
{
    struct segment g = {.base = k->base, .limit = k->limit, .sel = k->selector};

    if (k->unusable || !k->present) {
        g.attr = SEG_UNUSABLE | (keep_dpl ? (k->dpl & 3u) << SEG_DPL_SHIFT : 0);
        return g;
    }
    g.attr = (k->type & SEG_TYPE) | (k->s ? SEG_S : 0) | (k->dpl & 3u) << SEG_DPL_SHIFT | SEG_P |
             (k->avl ? SEG_AVL : 0) | (k->l ? SEG_L : 0) | (k->db ? SEG_DB : 0) |
             (k->g ? SEG_G : 0);
    return g;
}

static struct kvm_segment *kvm_seg(struct kvm_sregs *r, unsigned i)
{
    struct kvm_segment *const all[] = {&r->es, &r->cs, &r->ss, &r->ds, &r->fs, &r->gs};

    return all[i];
}

/* ---- general registers ---- */

static uint64_t *kvm_gpr(struct kvm_regs *r, unsigned i)
{
    uint64_t *const all[] = {
        (uint64_t *)&r->rax, (uint64_t *)&r->rcx, (uint64_t *)&r->rdx, (uint64_t *)&r->rbx,
        (uint64_t *)&r->rsp, (uint64_t *)&r->rbp, (uint64_t *)&r->rsi, (uint64_t *)&r->rdi,
        (uint64_t *)&r->r8,  (uint64_t *)&r->r9,  (uint64_t *)&r->r10, (uint64_t *)&r->r11,
        (uint64_t *)&r->r12, (uint64_t *)&r->r13, (uint64_t *)&r->r14, (uint64_t *)&r->r15,
    };

    return all[i];
}

static int read_regs(struct kvm_cpu *c, struct cpu_state *s)
{
    struct kvm_regs r;

    if (ioctl(c->fd, KVM_GET_REGS, &r))
        return -errno;
    for (unsigned i = 0; i < 16; i++)
        s->gpr[i] = *kvm_gpr(&r, i);
    s->rip = r.rip;
    s->rflags = r.rflags | FL_R1;
    return 0;
}

int kvm_write_regs(struct kvm_cpu *c, const struct cpu_state *s)
{
    struct kvm_regs r = {.rip = s->rip, .rflags = s->rflags};

    for (unsigned i = 0; i < 16; i++)
        *kvm_gpr(&r, i) = s->gpr[i];
    return ioctl(c->fd, KVM_SET_REGS, &r) ? -errno : 0;
}

/* ---- system registers ---- */

static int read_sregs(struct kvm_cpu *c, struct cpu_state *s)
{
    struct kvm_sregs r;

    if (ioctl(c->fd, KVM_GET_SREGS, &r))
        return -errno;
    for (unsigned i = 0; i < SREG_COUNT; i++)
        s->seg[i] = from_kvm(kvm_seg(&r, i), i == SS);
    s->ldtr = from_kvm(&r.ldt, false);
    s->tr = from_kvm(&r.tr, false);
    s->gdtr = (struct table_reg){.base = r.gdt.base, .limit = r.gdt.limit};
    s->idtr = (struct table_reg){.base = r.idt.base, .limit = r.idt.limit};
    s->cr0 = r.cr0 | CR0_ET;
    s->cr2 = r.cr2;
    s->cr3 = r.cr3;
    s->cr4 = r.cr4;
    s->cr8 = c->v->vm->env->get_cr8(c->v);
    /* A KVM that can nest lets guests set bits that their CPUID does not offer. */
    s->efer = r.efer & cpuid_efer_mask(c->v->vm->cpuid);
    return 0;
}

/* With PAE paging the processor keeps four pointers that memory may no longer hold. Without KVM_GET_SREGS2 (before Linux 5.14)
 * they are loaded again. */
static int read_pdptes(struct kvm_cpu *c, struct cpu_state *s)
{
    struct kvm_sregs2 r;

    s->pdptes_valid = false;
    memset(s->pdpte, 0, sizeof(s->pdpte));
    if (!c->vm->sregs2)
        return 0;
    if (ioctl(c->fd, KVM_GET_SREGS2, &r))
        return -errno;
    if (!(r.flags & KVM_SREGS2_FLAGS_PDPTRS_VALID))
        return 0;
    s->pdptes_valid = true;
    for (unsigned i = 0; i < ARRAY_LEN(s->pdpte); i++)
        s->pdpte[i] = r.pdptrs[i];
    return 0;
}

static int write_pdptes(struct kvm_cpu *c, const struct cpu_state *s)
{
    struct kvm_sregs2 r;

    if (!s->pdptes_valid || !c->vm->sregs2)
        return 0;
    if (ioctl(c->fd, KVM_GET_SREGS2, &r))
        return -errno;
    r.flags = KVM_SREGS2_FLAGS_PDPTRS_VALID;
    for (unsigned i = 0; i < ARRAY_LEN(s->pdpte); i++)
        r.pdptrs[i] = s->pdpte[i];
    return ioctl(c->fd, KVM_SET_SREGS2, &r) ? -errno : 0;
}

static uint64_t apic_base(struct kvm_cpu *c)
{
    uint64_t base;

    if (c->v->vm->env->rdmsr(c->v, MSR_APIC_BASE, &base))
        base = APIC_BASE_DEFAULT | (c->v->index ? 0 : APIC_BASE_BSP);
    return base;
}

static int write_sregs(struct kvm_cpu *c, const struct cpu_state *s)
{
    struct kvm_sregs r = {
        .ldt = to_kvm(&s->ldtr),
        .tr = to_kvm(&s->tr),
        .gdt = {.base = s->gdtr.base, .limit = s->gdtr.limit},
        .idt = {.base = s->idtr.base, .limit = s->idtr.limit},
        .cr0 = s->cr0,
        .cr2 = s->cr2,
        .cr3 = s->cr3,
        .cr4 = s->cr4,
        .cr8 = s->cr8,
        .efer = s->efer,
        .apic_base = apic_base(c),
    };

    for (unsigned i = 0; i < SREG_COUNT; i++)
        *kvm_seg(&r, i) = to_kvm(&s->seg[i]);
    if (!cpu_long_mode(s)) /* where L means nothing, KVM wants none */
        r.cs.l = 0;
    c->apic_base = r.apic_base;
    return ioctl(c->fd, KVM_SET_SREGS, &r) ? -errno : 0;
}

void kvm_sync_apic_base(struct kvm_cpu *c)
{
    struct kvm_sregs r;
    uint64_t base = apic_base(c);

    if (base == c->apic_base || ioctl(c->fd, KVM_GET_SREGS, &r))
        return;
    r.apic_base = c->apic_base = base;
    if (ioctl(c->fd, KVM_SET_SREGS, &r))
        log_limited(c->v->vm->trace->log, &c->vm->fallbacks, LOG_WARN,
                    "kvm: vCPU %u: KVM does not follow the APIC to %#llx", c->v->index,
                    (unsigned long long)base);
}

static int read_debug(struct kvm_cpu *c, struct cpu_state *s)
{
    struct kvm_debugregs d;

    if (ioctl(c->fd, KVM_GET_DEBUGREGS, &d))
        return -errno;
    for (unsigned i = 0; i < 4; i++)
        s->dr[i] = d.db[i];
    s->dr[6] = d.dr6 | DR6_FIXED;
    s->dr[7] = d.dr7 | DR7_FIXED;
    return 0;
}

static int write_debug(struct kvm_cpu *c, const struct cpu_state *s)
{
    struct kvm_debugregs d = {.dr6 = s->dr[6], .dr7 = s->dr[7]};

    for (unsigned i = 0; i < 4; i++)
        d.db[i] = s->dr[i];
    return ioctl(c->fd, KVM_SET_DEBUGREGS, &d) ? -errno : 0;
}

static int read_xcrs(struct kvm_cpu *c, struct cpu_state *s)
{
    struct kvm_xcrs x;

    if (ioctl(c->fd, KVM_GET_XCRS, &x))
        return -errno;
    for (uint32_t i = 0; i < MIN(x.nr_xcrs, KVM_MAX_XCRS); i++)
        if (x.xcrs[i].xcr == 0)
            s->xcr0 = x.xcrs[i].value;
    return 0;
}

static int write_xcrs(struct kvm_cpu *c, const struct cpu_state *s)
{
    struct kvm_xcrs x = {.nr_xcrs = 1, .xcrs[0] = {.xcr = 0, .value = s->xcr0}};

    return ioctl(c->fd, KVM_SET_XCRS, &x) ? -errno : 0;
}

/* ---- events ---- */

bool kvm_in_delivery(struct kvm_cpu *c, struct kvm_vcpu_events *ev)
{
    if (ioctl(c->fd, KVM_GET_VCPU_EVENTS, ev))
        return false;
    /* Those that an instruction asked for, INT n, INT3 and INTO, come again with it: RIP is still there. */
    return (ev->exception.injected && ev->exception.nr != X_BP && ev->exception.nr != X_OF) ||
           (ev->interrupt.injected && !ev->interrupt.soft) || ev->nmi.injected;
}

int kvm_drop_exception(struct kvm_cpu *c)
{
    struct kvm_vcpu_events ev;

    if (ioctl(c->fd, KVM_GET_VCPU_EVENTS, &ev))
        return -errno;
    if (!ev.exception.injected)
        return 0;
    memset(&ev.exception, 0, sizeof(ev.exception));
    return ioctl(c->fd, KVM_SET_VCPU_EVENTS, &ev) ? -errno : 0;
}

static int read_events(struct kvm_cpu *c, struct cpu_state *s)
{
    struct kvm_vcpu_events ev;

    if (ioctl(c->fd, KVM_GET_VCPU_EVENTS, &ev))
        return -errno;
    s->sti_shadow = !!(ev.interrupt.shadow & KVM_X86_SHADOW_INT_STI);
    s->mov_ss_shadow = !!(ev.interrupt.shadow & KVM_X86_SHADOW_INT_MOV_SS);
    s->nmi_blocked = !!ev.nmi.masked;
    s->nmi_pending = !!ev.nmi.pending;
    return 0;
}

static int write_events(struct kvm_cpu *c, const struct cpu_state *s)
{
    struct kvm_vcpu_events ev = {
        .interrupt.shadow = (uint8_t)((s->sti_shadow ? KVM_X86_SHADOW_INT_STI : 0) |
                                      (s->mov_ss_shadow ? KVM_X86_SHADOW_INT_MOV_SS : 0)),
        .nmi.masked = s->nmi_blocked,
        .nmi.pending = s->nmi_pending,
        .flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
    };

    return ioctl(c->fd, KVM_SET_VCPU_EVENTS, &ev) ? -errno : 0;
}

/* ---- everything ---- */

int kvm_read_state(struct kvm_cpu *c, struct cpu_state *s)
{
    int (*const parts[])(struct kvm_cpu *, struct cpu_state *) = {
        read_regs,  read_sregs,  read_pdptes,   read_xcrs,
        read_debug, read_events, kvm_read_msrs, kvm_read_xstate,
    };
    int rc = 0;

    *s = c->s;
    for (unsigned i = 0; i < ARRAY_LEN(parts) && !rc; i++)
        rc = parts[i](c, s);
    return rc;
}

int kvm_write_state(struct kvm_cpu *c, const struct cpu_state *s)
{
    static const struct {
        const char *name;
        int (*write)(struct kvm_cpu *, const struct cpu_state *);
    } parts[] = {
        {"registers", kvm_write_regs},    {"vector registers", kvm_write_xstate},
        {"XCR0", write_xcrs},         {"system registers", write_sregs},
        {"PDPTEs", write_pdptes},     {"MSRs", kvm_write_msrs},     {"events", write_events},
        {"debug registers", write_debug},
    };
    int rc = 0;

    for (unsigned i = 0; i < ARRAY_LEN(parts) && !rc; i++) {
        rc = parts[i].write(c, s);
        if (rc)
            err_set(&c->v->error, -rc, "KVM refuses the %s: %s", parts[i].name, strerror(-rc));
    }
    c->s = *s;
    c->changes++;
    c->stale = true;
    c->nmi_posted = s->nmi_pending;
    return rc;
}

int kvm_get_state(struct vcpu *v, struct cpu_state *s)
{
    struct kvm_cpu *c = v->priv;

    return kvm_read_state(c, s);
}

int kvm_set_state(struct vcpu *v, const struct cpu_state *s)
{
    struct kvm_cpu *c = v->priv;
    int rc = cpu_state_validate(s, &v->error);

    if (!rc)
        rc = cpuid_check_state(v->vm->cpuid, s, &v->error);
    if (rc)
        return rc;
    if (v->vm->env->get_cr8(v) != s->cr8) /* TPR has four bits more */
        v->vm->env->set_cr8(v, s->cr8);
    return kvm_write_state(c, s);
}
