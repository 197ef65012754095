/*
 * The part of CPUID that is not a feature our decoder knows: identity, topology, caches, XSAVE
 * layout, clocks, what the processor says about speculation, paravirtual leaves.
 *
 * Vendor, family, model and stepping are the host's, because programs choose code by them and the
 * code then runs on that very host. But the guest never speculates on our engines the way silicon
 * does, and mitigations are costly to emulate, so the model says that it is not vulnerable: guests
 * then use no PTI, retpolines, buffer clearing or barriers on context switches.
 */
#include <string.h>

#include "cpu/cpuid_priv.h"
#include "cpu/msr.h"

#define LINEAR_BITS 48
/* 64 TiB of guest-physical space is plenty, and bounds the p2m's reservation of address space. */
#define MAXPHYS_LIMIT 46

/* The local APIC timer counts 1 GHz before its divider. */
#define APIC_BUS_HZ 1000000000ull

/* Leaf 7 EDX */
#define SPEC_CTRL_BIT BIT(26)
#define STIBP_BIT BIT(27)
#define ARCH_CAPABILITIES_BIT BIT(29)
#define SSBD_BIT BIT(31)
/* Leaf 7 subleaf 2 EDX. Guests of a hypervisor distrust BHI_NO: Linux then clears the branch
 * history in software at every system call, unless this bit offers it one bit of IA32_SPEC_CTRL
 * instead. */
#define BHI_CTRL_BIT BIT(4)

/* IA32_ARCH_CAPABILITIES (SDM vol. 4 table 2-2). */
#define ARCH_CAPABILITIES                                   \
    (BIT(0)    /* RDCL_NO: no PTI */                        \
     | BIT(1)  /* IBRS_ALL: enhanced IBRS, no retpolines */ \
     | BIT(3)  /* SKIP_L1DFL_VMENTRY */                     \
     | BIT(4)  /* SSB_NO */                                 \
     | BIT(5)  /* MDS_NO */                                 \
     | BIT(6)  /* PSCHANGE_MC_NO */                         \
     | BIT(8)  /* TAA_NO */                                 \
     | BIT(13) /* SBDR_SSDP_NO */                           \
     | BIT(14) /* FBSDP_NO */                               \
     | BIT(15) /* PSDP_NO */                                \
     | BIT(17) /* FB_CLEAR */                               \
     | BIT(20) /* BHI_NO */                                 \
     | BIT(24) /* PBRSB_NO */                               \
     | BIT(26) /* GDS_NO */                                 \
     | BIT(27) /* RFDS_NO */                                \
     | BIT(62) /* ITS_NO */)

static unsigned log2_ceil(uint32_t n) { return n <= 1 ? 0 : 32 - (unsigned)__builtin_clz(n - 1); }

static void copy_host(struct cpuid_draft *d, uint32_t leaf, uint32_t sub)
{
    uint32_t r[4];

    cpuid_host_leaf(d, leaf, sub, r);
    cpuid_draft_set(d, leaf, sub, r);
}

static void identity(struct cpuid_draft *d)
{
    struct cpuid_leaf *l;
    uint32_t r[4];

    copy_host(d, 0, 0);
    cpuid_draft_leaf(d, 0, 0)->eax = d->p->amd ? 0xd : 0x1f;
    for (uint32_t leaf = 0x80000002; leaf <= 0x80000004; leaf++)
        copy_host(d, leaf, 0);
    copy_host(d, 0x80000000, 0);
    cpuid_draft_leaf(d, 0x80000000, 0)->eax = d->p->amd ? 0x80000021 : 0x80000008;

    cpuid_host_leaf(d, 1, 0, r);
    l = cpuid_draft_leaf(d, 1, 0);
    l->eax = r[EAX];
    l->ebx = 8 << 8;    /* CLFLUSH line: 64 bytes */
    l->ecx |= 1u << 31; /* a hypervisor is present */

    cpuid_draft_leaf(d, 6, 0)->eax = BIT(2); /* the APIC timer never stops */

    /* FPU pointer behaviour follows the unit that executes x87 instructions. */
    cpuid_host_leaf(d, 7, 0, r);
    cpuid_draft_leaf(d, 7, 0)->ebx |= r[EBX] & (BIT(6) | BIT(13)); /* FDP_EXCPTN_ONLY, no FCS/FDS */

    if (d->p->amd) {
        cpuid_host_leaf(d, 0x80000001, 0, r);
        l = cpuid_draft_leaf(d, 0x80000001, 0);
        l->eax = r[EAX];
        l->ebx = r[EBX] & 0xf0000000; /* package type */
        /* Leaf 1 EDX again, and MMXEXT, which is part of SSE. */
        l->edx |= (cpuid_draft_leaf(d, 1, 0)->edx & 0x0183f3ff) | BIT(22);
        /* Whether FXSAVE stores the error pointers when no exception is pending. */
        cpuid_host_leaf(d, 0x80000008, 0, r);
        cpuid_draft_leaf(d, 0x80000008, 0)->ebx |= r[EBX] & BIT(2);
    }
}

static void addresses(struct cpuid_draft *d)
{
    uint32_t r[4], host_bits = 36;

    cpuid_host_leaf(d, 0x80000008, 0, r);
    if (r[EAX] & 0xff)
        host_bits = r[EAX] & 0xff;
    d->p->maxphys = MAX(36, MIN(host_bits, MAXPHYS_LIMIT));
    cpuid_draft_leaf(d, 0x80000008, 0)->eax = d->p->maxphys | LINEAR_BITS << 8;
}

/* cfg.cpus cores with one thread each in one package. */
static void topology(struct cpuid_draft *d)
{
    uint32_t cpus = d->cfg->cpus, id_bits = log2_ceil(cpus);
    struct cpuid_leaf *l1 = cpuid_draft_leaf(d, 1, 0);

    l1->ebx |= MIN(1u << MIN(id_bits, 8u), 255u) << 16;
    if (cpus > 1)
        l1->edx |= BIT(28); /* HTT: more than one logical processor in the package */

    for (unsigned i = 0; i < (d->p->amd ? 1u : 2u); i++) {
        uint32_t leaf = i ? 0x1f : 0xb;
        cpuid_draft_set(d, leaf, 0, (uint32_t[]){0, 1, 1 << 8 | 0, 0});
        cpuid_draft_set(d, leaf, 1, (uint32_t[]){id_bits, cpus, 2 << 8 | 1, 0});
    }
    if (!d->p->amd)
        return;

    struct cpuid_leaf *ext = cpuid_draft_leaf(d, 0x80000001, 0);
    ext->ecx |= BIT(22); /* topology extensions */
    if (cpus > 1)
        ext->ecx |= BIT(1); /* CmpLegacy: the threads counted in leaf 1 are cores */
    cpuid_draft_leaf(d, 0x80000008, 0)->ecx = MIN(cpus - 1, 255u) | id_bits << 12;
    cpuid_draft_leaf(d, 0x8000001e, 0); /* one thread per core, one node; IDs are filled in */
}

/* The host's caches, shared as our topology has it: L3 by all, the others by nobody. */
static void caches(struct cpuid_draft *d)
{
    uint32_t leaf = d->p->amd ? 0x8000001d : 4, id_bits = log2_ceil(d->cfg->cpus);
    uint32_t cores = MIN((1u << MIN(id_bits, 6u)) - 1, 63u);
    uint32_t sharing = (1u << MIN(id_bits, 12u)) - 1;

    for (uint32_t sub = 0; sub < 8; sub++) {
        uint32_t r[4];
        cpuid_host_leaf(d, leaf, sub, r);
        if (!(r[EAX] & 0x1f))
            break;
        unsigned level = r[EAX] >> 5 & 7;
        r[EAX] &= 0x3fff;
        r[EAX] |= (level >= 3 ? sharing : 0) << 14;
        if (!d->p->amd)
            r[EAX] |= cores << 26;
        cpuid_draft_set(d, leaf, sub, r);
    }
    if (d->p->amd) {
        copy_host(d, 0x80000005, 0);
    } else if (d->intel) {
        copy_host(d, 2, 0);
    }
    copy_host(d, 0x80000006, 0);
}

/* The host's layout: XSAVE and XRSTOR images then need no conversion. */
static void xsave(struct cpuid_draft *d)
{
    struct cpuid_policy *p = d->p;
    struct cpuid_leaf *l = cpuid_draft_leaf(d, 0xd, 0);
    uint32_t end = 512 + 64;

    for (unsigned i = 2; i < 63; i++) {
        uint32_t r[4];
        if (!(p->xcr0_mask >> i & 1))
            continue;
        cpuid_host_leaf(d, 0xd, i, r);
        p->xsave_size[i] = r[EAX];
        p->xsave_off[i] = r[EBX];
        end = MAX(end, r[EAX] + r[EBX]);
        cpuid_draft_set(d, 0xd, i, (uint32_t[]){r[EAX], r[EBX], r[ECX] & 2, 0});
    }
    l->eax = (uint32_t)p->xcr0_mask;
    l->edx = (uint32_t)(p->xcr0_mask >> 32);
    l->ecx = end;
}

static uint64_t gcd(uint64_t a, uint64_t b)
{
    while (b) {
        uint64_t r = a % b;
        a = b;
        b = r;
    }
    return a;
}

/*
 * Leaf 0x15: Linux takes the crystal's frequency for the TSC's base and for the APIC timer's input
 * clock, so the crystal is the APIC bus. Linux also multiplies its kHz by the numerator in 32 bits:
 * a ratio that would overflow there is not enumerated at all (guests then calibrate or use
 * kvmclock). Any whole number of MHz is fine. Leaf 0x16 in MHz; the hypervisor's timing leaf
 * 0x40000010 says the same in kHz.
 */
static void clocks(struct cpuid_draft *d)
{
    uint64_t khz = d->cfg->tsc_khz, bus_khz = APIC_BUS_HZ / 1000, g = gcd(khz, bus_khz);
    uint32_t mhz = (uint32_t)MIN(khz / 1000, 0xffffull);

    cpuid_draft_leaf(d, 0x80000007, 0)->edx = BIT(8); /* invariant TSC */
    if (d->p->amd)
        return;
    if (khz / g * bus_khz <= UINT32_MAX)
        cpuid_draft_set(d, 0x15, 0,
                        (uint32_t[]){(uint32_t)(bus_khz / g), (uint32_t)(khz / g), APIC_BUS_HZ, 0});
    cpuid_draft_set(d, 0x16, 0, (uint32_t[]){mhz, mhz, APIC_BUS_HZ / 1000000, 0});
}

static void speculation(struct cpuid_draft *d)
{
    struct cpuid_leaf *l;

    if (!d->p->amd) {
        d->p->arch_capabilities = ARCH_CAPABILITIES;
        cpuid_draft_leaf(d, 7, 0)->edx |=
            (uint32_t)(SPEC_CTRL_BIT | STIBP_BIT | ARCH_CAPABILITIES_BIT | SSBD_BIT);
        cpuid_draft_leaf(d, 7, 0)->eax = 2; /* highest subleaf */
        cpuid_draft_leaf(d, 7, 2)->edx = BHI_CTRL_BIT;
        return;
    }
    l = cpuid_draft_leaf(d, 0x80000008, 0);
    l->ebx |= BIT(12)   /* IBPB */
              | BIT(14) /* IBRS */
              | BIT(26) /* SSB_NO */
              | BIT(29) /* BTC_NO */
              | BIT(30) /* IBPB clears return predictions too */;
    l = cpuid_draft_leaf(d, 0x80000021, 0);
    l->eax = BIT(2)    /* LFENCE is serialising */
             | BIT(6)  /* a null selector clears the base */
             | BIT(8)  /* automatic IBRS */
             | BIT(27) /* SBPB */
             | BIT(28) /* IBPB flushes all branch types */
             | BIT(29) /* SRSO_NO */;
    l->ecx = BIT(1) /* TSA_SQ_NO */
             | BIT(2) /* TSA_L1_NO */;
}

/* The KVM interface: what the machine implements of it, and hints that need nothing. */
static void paravirtual(struct cpuid_draft *d)
{
    if (!d->cfg->kvm_leaves)
        return;
    cpuid_draft_set(d, 0x40000000, 0,
                    (uint32_t[]){0x40000010, 0x4b4d564b, 0x564b4d56, 0x4d}); /* KVMKVMKVM */
    cpuid_draft_leaf(d, 0x40000001, 0)->eax = BIT(1)   /* no I/O delay needed */
                                              | BIT(3) /* CLOCKSOURCE2 */
                                              | BIT(24) /* its time never steps back */;
    cpuid_draft_set(d, 0x40000010, 0,
                    (uint32_t[]){(uint32_t)d->cfg->tsc_khz, APIC_BUS_HZ / 1000, 0, 0});
}

void cpuid_model_build(struct cpuid_draft *d)
{
    identity(d);
    addresses(d);
    topology(d);
    caches(d);
    xsave(d);
    clocks(d);
    speculation(d);
    paravirtual(d);
}
