/* Processors for tests: CPUID tables that stand for hosts we do not have. */
#ifndef RING3_TESTS_CPU_FAKE_HOST_H
#define RING3_TESTS_CPU_FAKE_HOST_H

#include <cpuid.h>
#include <string.h>

#include "cpu/cpuid.h"

struct fake_leaf {
    uint32_t leaf, sub, r[4];
};

struct fake_host {
    const struct fake_leaf *leaf;
    unsigned n;
};

static inline void fake_query(const void *ctx, uint32_t leaf, uint32_t sub, uint32_t out[4])
{
    const struct fake_host *h = ctx;

    memset(out, 0, 16);
    for (unsigned i = 0; i < h->n; i++)
        if (h->leaf[i].leaf == leaf && h->leaf[i].sub == sub)
            memcpy(out, h->leaf[i].r, 16);
}

/* A server with everything we could want and much that we must not pass on. */
static const struct fake_leaf fake_intel_leaves[] = {
    {0, 0, {0x20, signature_INTEL_ebx, signature_INTEL_ecx, signature_INTEL_edx}},
    {1, 0, {0x000806f8, 0x01800800, 0xffffffff, 0xffffffff}},
    {2, 0, {0x00feff01, 0xf0, 0, 0}},
    {4, 0, {0xfc004121, 0x02c0003f, 0x3f, 0}},
    {4, 1, {0xfc004122, 0x01c0003f, 0x3f, 0}},
    {4, 2, {0xfc01c143, 0x03c0003f, 0x7ff, 0}},
    {4, 3, {0xfc1fc163, 0x0380003f, 0x1bfff, 4}},
    {5, 0, {0x40, 0x40, 3, 0x2020}},
    {6, 0, {0xffffffff, 2, 9, 0}},
    {7, 0, {2, 0xffffffff, 0xffffffff, 0xffffffff}},
    {7, 1, {0xffffffff, 0, 0, 0xffffffff}},
    {7, 2, {0, 0, 0, 0xffffffff}},
    {0xa, 0, {0x07300805, 0, 0xf, 0x8604}},
    {0xd, 0, {0x602e7, 0x2b00, 0x2b00, 0}},
    {0xd, 1, {0x1f, 0x2b00, 0x1900, 0}},
    {0xd, 2, {0x100, 0x240, 0, 0}},
    {0xd, 5, {0x40, 0x440, 0, 0}},
    {0xd, 6, {0x200, 0x480, 0, 0}},
    {0xd, 7, {0x400, 0x680, 0, 0}},
    {0xd, 17, {0x40, 0xac0, 2, 0}},
    {0xd, 18, {0x2000, 0xb00, 6, 0}},
    {0x14, 0, {1, 0x4f, 7, 0}},
    {0x80000000, 0, {0x80000008, 0, 0, 0}},
    {0x80000001, 0, {0, 0, 0xffffffff, 0xffffffff}},
    {0x80000002, 0, {0x65746e49, 0x2952286c, 0x6f655820, 0x2952286e}},
    {0x80000006, 0, {0, 0, 0x08007040, 0}},
    {0x80000007, 0, {0, 0, 0, 0xffffffff}},
    {0x80000008, 0, {0x3934, 0xffffffff, 0xffffffff, 0xffffffff}},
};

static const struct fake_leaf fake_amd_leaves[] = {
    {0, 0, {0x10, signature_AMD_ebx, signature_AMD_ecx, signature_AMD_edx}},
    {1, 0, {0x00a10f11, 0x01800800, 0xffffffff, 0xffffffff}},
    {6, 0, {4, 0, 1, 0}},
    {7, 0, {1, 0xf1bf97a9, 0x00405fce, 0x10000010}},
    {0xd, 0, {0x2e7, 0x988, 0x988, 0}},
    {0xd, 1, {0xf, 0x988, 0x1800, 0}},
    {0xd, 2, {0x100, 0x240, 0, 0}},
    {0xd, 5, {0x40, 0x340, 0, 0}},
    {0xd, 6, {0x200, 0x380, 0, 0}},
    {0xd, 7, {0x400, 0x580, 0, 0}},
    {0xd, 9, {8, 0x980, 0, 0}},
    {0x80000000, 0, {0x80000028, signature_AMD_ebx, signature_AMD_ecx, signature_AMD_edx}},
    {0x80000001, 0, {0x00a10f11, 0x40000000, 0xffffffff, 0xffffffff}},
    {0x80000005, 0, {0xff48ff40, 0xff48ff40, 0x20080140, 0x20080140}},
    {0x80000006, 0, {0x5c002200, 0x6c004200, 0x04006140, 0x00c09140}},
    {0x80000008, 0, {0x3934, 0x791ef257, 0x707f, 0x10007}},
    {0x8000001d, 0, {0x4121, 0x1c0003f, 0x3f, 0}},
    {0x8000001d, 1, {0x4122, 0x1c0003f, 0x3f, 0}},
    {0x8000001d, 2, {0x4143, 0x1c0003f, 0x7ff, 2}},
    {0x8000001d, 3, {0x3c163, 0x3c0003f, 0x7fff, 1}},
    {0x8000001e, 0, {5, 0x102, 0x300, 0}},
    {0x80000021, 0, {0x62fcf, 0, 0, 0}},
};

/* x86-64-v1 and the little more that we ask for. */
static const struct fake_leaf fake_minimal_leaves[] = {
    {0, 0, {0xd, signature_INTEL_ebx, signature_INTEL_ecx, signature_INTEL_edx}},
    {1, 0, {0x000206d7, 0, BIT(13) | BIT(26) | BIT(27), 0x07808101}},
    {0xd, 0, {3, 576, 576, 0}},
    {0x80000000, 0, {0x80000008, 0, 0, 0}},
    {0x80000001, 0, {0, 0, 0, BIT(29)}},
    {0x80000008, 0, {0x3024, 0, 0, 0}},
};

#define FAKE_HOST(leaves) (&(const struct fake_host){leaves, sizeof(leaves) / sizeof((leaves)[0])})

/* Builds a policy for n CPUs at 2.5 GHz on that host. */
static inline int fake_build(struct cpuid_policy *p, const struct fake_host *h, uint64_t xcr0,
                             uint32_t cpus, struct err *e)
{
    const struct cpuid_cfg cfg = {.cpus = cpus, .tsc_khz = 2500000, .kvm_leaves = true};
    const struct cpuid_host host = {.query = fake_query, .ctx = h, .xcr0 = xcr0};

    return cpuid_build_from(p, &cfg, &host, e);
}

#endif
