/* CPUID policies of several hosts: what is offered, what is not, and that it is consistent. */
#include <ctype.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "cpu/cpuid.h"
#include "cpu/msr.h"
#include "fake_host.h"
#include "rng.h"

#define XCR0_ALL 0x602e7ull

static const struct {
    const char *name;
    uint32_t leaf, sub;
    unsigned reg, bit;
} rows[] = {
#define ROW(name, leaf, sub, reg, bit) {#name, leaf, sub, reg - 'a', bit},
    CPU_FEATURES(ROW)};

static struct cpu_state state_64(void)
{
    struct cpu_state s;

    cpu_state_reset(&s);
    s.efer = EFER_LME | EFER_LMA;
    s.seg[CS].attr |= SEG_L;
    return s;
}

static void query(const struct cpuid_policy *p, uint32_t leaf, uint32_t sub, uint32_t r[4])
{
    struct cpu_state s = state_64();

    cpuid_query(p, &s, 0, true, leaf, sub, r);
}

static bool leaf_bit(const struct cpuid_policy *p, uint32_t leaf, uint32_t sub, unsigned reg,
                     unsigned bit)
{
    uint32_t r[4];

    query(p, leaf, sub, r);
    return r[reg] >> bit & 1;
}

static void build(struct cpuid_policy *p, const struct fake_host *h, uint64_t xcr0, uint32_t cpus)
{
    struct err e = {""};

    assert_int_equal(fake_build(p, h, xcr0, cpus, &e), 0);
}

#define HAS(f) cpuid_has(p, CPUF_##f)
#define NEEDS(a, b) assert_true(!HAS(a) || HAS(b))

/* What must hold for any host. */
static void check_policy(const struct cpuid_policy *p, uint32_t cpus)
{
    uint32_t r[4];

    for (unsigned f = 0; f < CPUF_COUNT; f++)
        assert_int_equal(cpuid_has(p, (enum cpu_feature)f),
                         leaf_bit(p, rows[f].leaf, rows[f].sub, rows[f].reg, rows[f].bit));
    NEEDS(AVX, XSAVE);
    NEEDS(AVX, SSE42);
    NEEDS(AVX2, AVX);
    NEEDS(FMA, AVX);
    NEEDS(F16C, AVX);
    NEEDS(VAES, AES);
    NEEDS(VAES, AVX);
    NEEDS(VPCLMUL, PCLMUL);
    NEEDS(AVX512F, AVX2);
    NEEDS(AVX512BW, AVX512F);
    NEEDS(AVX512VL, AVX512F);
    NEEDS(AVX512VBMI, AVX512BW);
    NEEDS(AVX512BITALG, AVX512BW);
    NEEDS(SSE42, SSE41);
    NEEDS(XSAVEC, XSAVE);
    assert_int_equal(!!(p->xcr0_mask & XCR0_AVX), HAS(AVX));
    assert_int_equal(p->xcr0_mask & XCR0_AVX512, HAS(AVX512F) ? XCR0_AVX512 : 0);
    assert_false(p->xcr0_mask & ~(XCR0_X87 | XCR0_SSE | XCR0_AVX | XCR0_AVX512));

    /* Ours on every host. */
    assert_true(HAS(PCID) && HAS(INVPCID) && HAS(SMEP) && HAS(SMAP) && HAS(UMIP) && HAS(X2APIC));
    assert_true(HAS(FSGSBASE) && HAS(TSCDEADLINE) && HAS(TSCADJUST) && HAS(RDTSCP) && HAS(NX));
    assert_true(HAS(PDPE1GB) && HAS(SYSCALL) && HAS(LM) && HAS(PSE36) && HAS(VME) && HAS(ERMS));

    /* Never: MONITOR, VMX, SMX, EST, PDCM, TSX, MPX, PKU, CET, LA57, WAITPKG, AMX, PT, SGX. */
    query(p, 1, 0, r);
    assert_false(r[2] & (BIT(3) | BIT(5) | BIT(6) | BIT(7) | BIT(15)));
    assert_true(r[2] & BIT(31)); /* a hypervisor */
    query(p, 7, 0, r);
    assert_false(r[1] & (BIT(2) | BIT(4) | BIT(11) | BIT(12) | BIT(14) | BIT(15) | BIT(25)));
    assert_false(r[2] & (BIT(3) | BIT(5) | BIT(7) | BIT(16) | BIT(30)));
    assert_false(r[3] & (BIT(11) | BIT(15) | BIT(20) | BIT(22) | BIT(24) | BIT(25)));
    query(p, 0xd, 1, r);
    assert_false(r[0] & ~7u); /* no XSAVES */
    query(p, 0x80000001, 0, r);
    assert_false(r[2] & (BIT(2) | BIT(6) | BIT(11) | BIT(16))); /* SVM, SSE4A, XOP, FMA4 */
    assert_false(r[3] & (3u << 30));                            /* 3DNow! */
    for (uint32_t leaf = 0xa; leaf <= 0x1f; leaf++) {
        if (leaf == 0xb || leaf == 0xd || leaf == 0x15 || leaf == 0x16 || leaf == 0x1f)
            continue;
        query(p, leaf, 0, r);
        assert_false(p->amd ? 0 : r[0] | r[1] | r[2] | r[3]);
    }
    query(p, 0x80000007, 0, r);
    assert_int_equal(r[3], BIT(8));
    query(p, 0x80000008, 0, r);
    assert_int_equal(r[0] & 0xff, p->maxphys);
    assert_int_equal(r[0] >> 8 & 0xff, 48);
    assert_in_range(p->maxphys, 36, 46);

    /* Topology. */
    query(p, 0xb, 0, r);
    assert_int_equal(r[0], 0);
    assert_int_equal(r[1], 1);
    assert_int_equal(r[2], 0x100);
    query(p, 0xb, 1, r);
    assert_true(1u << r[0] >= cpus && (cpus == 1 || 1u << (r[0] - 1) < cpus));
    assert_int_equal(r[1], cpus);
    assert_int_equal(r[2], 0x201);
    query(p, 0xb, 2, r);
    assert_true(!r[0] && !r[1] && r[2] == 2);
    query(p, 1, 0, r);
    assert_int_equal(r[3] >> 28 & 1, cpus > 1);
    assert_true((r[1] >> 16 & 0xff) >= cpus || cpus > 255);
}

static void test_intel(void **state)
{
    static const uint32_t counts[] = {1, 2, 3, 8, 64, 200, 1000};
    struct cpuid_policy pol, *p = &pol;
    uint32_t r[4];

    (void)state;
    for (unsigned i = 0; i < ARRAY_LEN(counts); i++) {
        build(p, FAKE_HOST(fake_intel_leaves), XCR0_ALL, counts[i]);
        check_policy(p, counts[i]);
    }
    build(p, FAKE_HOST(fake_intel_leaves), XCR0_ALL, 4);
    assert_false(p->amd);
    for (unsigned f = 0; f < CPUF_COUNT; f++)
        assert_true(cpuid_has(p, (enum cpu_feature)f)); /* that host has everything */
    assert_int_equal(p->maxphys, 46);
    assert_int_equal(cpuid_signature(p), 0x000806f8);
    query(p, 0, 0, r);
    assert_int_equal(r[1], signature_INTEL_ebx);
    query(p, 0x80000002, 0, r);
    assert_int_equal(r[0], 0x65746e49);
    query(p, 4, 3, r); /* L3: shared by 4 cores; 4 core IDs in the package */
    assert_int_equal(r[0] >> 14 & 0xfff, 3);
    assert_int_equal(r[0] >> 26, 3);
    assert_int_equal(r[2], 0x1bfff);
    query(p, 4, 2, r);
    assert_int_equal(r[0] >> 14 & 0xfff, 0);
    query(p, 4, 4, r);
    assert_int_equal(r[0], 0);
    uint32_t b[4];
    query(p, 0xb, 1, r);
    query(p, 0x1f, 1, b);
    assert_memory_equal(r, b, sizeof(r));
}

/* Linux' own arithmetic in 32 bits must give the TSC rate back, if the leaf says anything; the
 * crystal is the APIC bus. */
static void test_clock_leaves(void **state)
{
    static const uint64_t khz[] = {1000000, 2300000, 2500000, 2445407,
                                   2399998, 3193000, 4294000, 2000500};
    struct cpuid_policy pol, *p = &pol;

    (void)state;
    for (unsigned i = 0; i < ARRAY_LEN(khz); i++) {
        const struct cpuid_cfg cfg = {.cpus = 1, .tsc_khz = khz[i], .kvm_leaves = true};
        const struct cpuid_host host = {fake_query, FAKE_HOST(fake_intel_leaves), XCR0_ALL};
        uint32_t r[4];

        assert_int_equal(cpuid_build_from(p, &cfg, &host, NULL), 0);
        query(p, 0x15, 0, r);
        if (khz[i] % 1000 == 0)
            assert_int_not_equal(r[0], 0);
        if (r[0]) {
            uint32_t crystal = r[2] / 1000;
            assert_int_equal(r[2], 1000000000);
            assert_int_equal(crystal * r[1] / r[0], khz[i]);
        } else {
            assert_int_equal(r[1] | r[2] | r[3], 0);
        }
        query(p, 0x16, 0, r);
        assert_int_equal(r[0], khz[i] / 1000);
        query(p, 0x40000010, 0, r);
        assert_int_equal(r[0], khz[i]);
        assert_int_equal(r[1], 1000000);
    }
}

static void test_amd(void **state)
{
    struct cpuid_policy pol, *p = &pol;
    uint32_t r[4];

    (void)state;
    build(p, FAKE_HOST(fake_amd_leaves), XCR0_ALL, 6);
    check_policy(p, 6);
    assert_true(p->amd);
    assert_int_equal(p->xsave_off[5], 0x340); /* AMD's own layout */
    query(p, 0x80000001, 0, r);
    assert_int_equal(r[0], 0x00a10f11);
    assert_true(r[2] & BIT(22)); /* topology extensions */
    query(p, 1, 0, r);
    uint32_t edx = r[3];
    query(p, 0x80000001, 0, r);
    assert_int_equal(r[3] & 0x0183f3ff, edx & 0x0183f3ff);
    query(p, 0x80000008, 0, r);
    assert_int_equal(r[2] & 0xff, 5);
    assert_int_equal(r[2] >> 12 & 15, 3);
    query(p, 0x8000001e, 0, r);
    assert_int_equal(r[1] >> 8 & 0xff, 0); /* one thread per core */
    query(p, 0x8000001d, 3, r);
    assert_int_equal(r[0] >> 14 & 0xfff, 7);
    query(p, 0, 0, r);
    assert_int_equal(r[0], 0xd);
    query(p, 0x1f, 0, r); /* beyond the highest: zeros on AMD */
    assert_true(!r[0] && !r[1] && !r[2] && !r[3]);
    query(p, 0x7fffffff, 0, r);
    assert_true(!r[0] && !r[1] && !r[2] && !r[3]);

    struct cpu_state s = state_64();
    cpuid_query(p, &s, 4, true, 0x8000001e, 0, r);
    assert_int_equal(r[0], 4);
    assert_int_equal(r[1] & 0xff, 4);
}

static void test_minimal(void **state)
{
    struct cpuid_policy pol, *p = &pol;

    (void)state;
    build(p, FAKE_HOST(fake_minimal_leaves), 3, 1);
    check_policy(p, 1);
    assert_false(HAS(SSE3) || HAS(AVX) || HAS(POPCNT) || HAS(MOVBE) || HAS(BMI1) || HAS(RDRAND));
    assert_int_equal(p->xcr0_mask, 3);
    assert_int_equal(p->maxphys, 36);
}

static void test_baseline(void **state)
{
    struct fake_leaf leaves[ARRAY_LEN(fake_minimal_leaves)];
    const struct fake_host h = {leaves, ARRAY_LEN(leaves)};
    struct cpuid_policy p;
    struct err e;

    (void)state;
    memcpy(leaves, fake_minimal_leaves, sizeof(leaves));
    leaves[1].r[2] &= ~(uint32_t)BIT(13);
    assert_int_equal(fake_build(&p, &h, 3, 1, &e), -ENOTSUP);
    assert_non_null(strstr(e.msg, "cx16"));

    memcpy(leaves, fake_minimal_leaves, sizeof(leaves));
    assert_int_equal(fake_build(&p, &h, 0, 1, &e), -ENOTSUP); /* XSAVE not enabled */
    assert_non_null(strstr(e.msg, "XSAVE"));
    assert_int_equal(fake_build(&p, &h, 3, 0, &e), -EINVAL);
}

/* A kernel booted without AVX or AVX-512 state: the features must go, with all that needs them. */
static void test_xcr0(void **state)
{
    struct cpuid_policy pol, *p = &pol;

    (void)state;
    build(p, FAKE_HOST(fake_intel_leaves), 7, 1);
    check_policy(p, 1);
    assert_true(HAS(AVX2) && HAS(VAES) && HAS(GFNI) && !HAS(AVX512F) && !HAS(AVX512VPOPCNTDQ));
    build(p, FAKE_HOST(fake_intel_leaves), 0x67, 1); /* AVX-512 in part */
    assert_false(HAS(AVX512F));
    build(p, FAKE_HOST(fake_intel_leaves), 3, 1);
    check_policy(p, 1);
    assert_true(HAS(SSE42) && HAS(AES) && !HAS(AVX) && !HAS(FMA) && !HAS(F16C) && !HAS(VAES));
}

static void test_dynamic(void **state)
{
    struct cpuid_policy pol, *p = &pol;
    struct cpu_state s = state_64();
    uint32_t r[4];

    (void)state;
    build(p, FAKE_HOST(fake_intel_leaves), XCR0_ALL, 8);
    cpuid_query(p, &s, 5, true, 1, 0, r);
    assert_int_equal(r[1] >> 24, 5);
    assert_false(r[2] & bit_OSXSAVE);
    assert_true(r[3] & BIT(9));
    s.cr4 |= CR4_OSXSAVE;
    cpuid_query(p, &s, 5, false, 1, 0, r);
    assert_true(r[2] & bit_OSXSAVE);
    assert_false(r[3] & BIT(9));
    cpuid_query(p, &s, 300, true, 0xb, 0, r);
    assert_int_equal(r[3], 300);
    cpuid_query(p, &s, 300, true, 0xb, 7, r);
    assert_int_equal(r[3], 300);
    assert_int_equal(r[2], 7);

    static const struct {
        uint64_t xcr0;
        uint32_t standard, compact;
    } size[] = {
        {1, 576, 576},
        {3, 576, 576},
        {7, 832, 832},
        {0xe7, 0xa80, 576 + 256 + 64 + 512 + 1024},
        {5 | 0xe0, 0xa80, 576 + 256 + 64 + 512 + 1024},
    };
    for (unsigned i = 0; i < ARRAY_LEN(size); i++) {
        s.xcr0 = size[i].xcr0;
        cpuid_query(p, &s, 0, true, 0xd, 0, r);
        assert_int_equal(r[0], 0xe7);
        assert_int_equal(r[1], size[i].standard);
        assert_int_equal(r[2], 0xa80);
        cpuid_query(p, &s, 0, true, 0xd, 1, r);
        assert_int_equal(r[1], size[i].compact);
    }
    cpuid_query(p, &s, 0, true, 0xd, 17, r); /* AMX state is not there */
    assert_true(!r[0] && !r[1] && !r[2] && !r[3]);
    s.xcr0 = ~0ull; /* not possible, not fatal */
    cpuid_query(p, &s, 0, true, 0xd, 1, r);

    s = state_64();
    cpuid_query(p, &s, 0, true, 0x80000001, 0, r);
    assert_true(r[3] & BIT(11));
    s.seg[CS].attr &= ~SEG_L;
    cpuid_query(p, &s, 0, true, 0x80000001, 0, r);
    assert_false(r[3] & BIT(11)); /* Intel: SYSCALL in 64-bit code only */
    build(p, FAKE_HOST(fake_amd_leaves), XCR0_ALL, 1);
    cpuid_query(p, &s, 0, false, 0x80000001, 0, r);
    assert_true(r[3] & BIT(11));
    assert_false(r[3] & BIT(9));
}

/* A host with other component sizes, one of them aligned in the compacted format. */
static void test_xsave_layout(void **state)
{
    struct fake_leaf leaves[ARRAY_LEN(fake_intel_leaves)];
    const struct fake_host h = {leaves, ARRAY_LEN(leaves)};
    struct cpuid_policy pol, *p = &pol;
    struct cpu_state s = state_64();
    uint32_t r[4];

    (void)state;
    memcpy(leaves, fake_intel_leaves, sizeof(leaves));
    for (unsigned i = 0; i < ARRAY_LEN(leaves); i++) {
        if (leaves[i].leaf == 0xd && leaves[i].sub == 5)
            leaves[i].r[0] = 0x48;
        if (leaves[i].leaf == 0xd && leaves[i].sub == 6)
            leaves[i].r[2] = 2;
    }
    build(p, &h, XCR0_ALL, 1);
    s.xcr0 = 0xe7;
    cpuid_query(p, &s, 0, true, 0xd, 1, r);
    assert_int_equal(r[1], 576 + 256 + 0x80 + 512 + 1024);
    cpuid_query(p, &s, 0, true, 0xd, 6, r);
    assert_int_equal(r[2], 2);
}

static void test_bounds(void **state)
{
    struct cpuid_policy pol, *p = &pol;
    uint32_t r[4], max[4];

    (void)state;
    build(p, FAKE_HOST(fake_intel_leaves), XCR0_ALL, 2);
    /* Beyond the highest leaf Intel answers with the highest basic one. */
    query(p, 0x1f, 1, max);
    query(p, 0x20, 1, r);
    assert_memory_equal(r, max, sizeof(r));
    query(p, 0x80000009, 1, r);
    assert_memory_equal(r, max, sizeof(r));
    query(p, 0xffffffff, 1, r);
    assert_memory_equal(r, max, sizeof(r));
    query(p, 7, 3, r);
    assert_true(!r[0] && !r[1] && !r[2] && !r[3]);
    query(p, 0x40000011, 0, r);
    assert_true(!r[0] && !r[1] && !r[2] && !r[3]);
    query(p, 0, 0xdead, r); /* ECX does not matter there */
    assert_int_equal(r[1], signature_INTEL_ebx);

    struct rng g = {1};
    for (unsigned i = 0; i < 100000; i++)
        query(p, (uint32_t)rng_next(&g), (uint32_t)rng_next(&g), r);
}

static void test_paravirtual(void **state)
{
    struct cpuid_policy pol, *p = &pol;
    const struct cpuid_cfg cfg = {.cpus = 1, .tsc_khz = 2000000};
    const struct cpuid_host host = {fake_query, FAKE_HOST(fake_intel_leaves), XCR0_ALL};
    uint32_t r[4];

    (void)state;
    build(p, FAKE_HOST(fake_intel_leaves), XCR0_ALL, 1);
    query(p, 0x40000000, 0, r);
    assert_int_equal(r[0], 0x40000010);
    assert_memory_equal(&r[1], "KVMKVMKVM\0\0\0", 12);
    query(p, 0x40000001, 0, r);
    assert_int_equal(r[0], BIT(1) | BIT(3) | BIT(24));

    assert_int_equal(cpuid_build_from(p, &cfg, &host, NULL), 0);
    query(p, 0x40000000, 0, r);
    assert_true(!r[0] && !r[1] && !r[2] && !r[3]);
}

/* What Linux looks at to leave its mitigations off. */
static void test_not_vulnerable(void **state)
{
    struct cpuid_policy pol, *p = &pol;

    (void)state;
    build(p, FAKE_HOST(fake_intel_leaves), XCR0_ALL, 1);
    assert_true(leaf_bit(p, 7, 0, 3, 26) && leaf_bit(p, 7, 0, 3, 29));
    assert_true(leaf_bit(p, 7, 2, 3, 4)); /* BHI_CTRL */
    static const uint8_t set[] = {0, 1, 3, 4, 5, 6, 8, 13, 14, 15, 17, 20, 24, 26, 27, 62};
    static const uint8_t clear[] = {2, 7, 18, 19, 21, 28}; /* RSBA, TSX_CTRL, RRSBA, ... */
    for (unsigned i = 0; i < sizeof(set); i++)
        assert_true(p->arch_capabilities & BIT(set[i]));
    for (unsigned i = 0; i < sizeof(clear); i++)
        assert_false(p->arch_capabilities & BIT(clear[i]));

    build(p, FAKE_HOST(fake_amd_leaves), XCR0_ALL, 1);
    assert_int_equal(p->arch_capabilities, 0);
    assert_false(leaf_bit(p, 7, 0, 3, 29));
    static const uint8_t ext8[] = {12, 14, 26, 29, 30};
    for (unsigned i = 0; i < sizeof(ext8); i++)
        assert_true(leaf_bit(p, 0x80000008, 0, 1, ext8[i]));
    static const uint8_t ext21[] = {2, 6, 8, 27, 28, 29};
    for (unsigned i = 0; i < sizeof(ext21); i++)
        assert_true(leaf_bit(p, 0x80000021, 0, 0, ext21[i]));
    assert_true(leaf_bit(p, 0x80000021, 0, 2, 1) && leaf_bit(p, 0x80000021, 0, 2, 2));
}

static void test_masks(void **state)
{
    struct cpuid_policy pol, *p = &pol;
    struct cpu_state s;
    struct err e;

    (void)state;
    build(p, FAKE_HOST(fake_minimal_leaves), 3, 1);
    assert_false(cpuid_cr4_mask(p) & CR4_LA57);
    assert_true(cpuid_cr4_mask(p) & CR4_PCIDE);
    assert_int_equal(cpuid_efer_mask(p), EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE);
    build(p, FAKE_HOST(fake_amd_leaves), 0xe7, 1);
    assert_true(cpuid_efer_mask(p) & EFER_AUTOIBRS);

    build(p, FAKE_HOST(fake_minimal_leaves), 3, 1);
    cpu_state_reset(&s);
    assert_int_equal(cpuid_check_state(p, &s, &e), 0);
    s.xcr0 = 7;
    assert_int_equal(cpuid_check_state(p, &s, &e), -EINVAL);
    assert_non_null(strstr(e.msg, "xcr0"));
    cpu_state_reset(&s);
    s.cr3 = BIT(36);
    assert_int_equal(cpuid_check_state(p, &s, &e), -EINVAL);
    cpu_state_reset(&s);
    s.efer = EFER_AUTOIBRS;
    assert_int_equal(cpuid_check_state(p, &s, &e), -EINVAL);
    cpu_state_reset(&s);
    s.cr4 = CR4_LA57;
    assert_int_equal(cpuid_check_state(p, &s, &e), -EINVAL);
    cpu_state_reset(&s);
    s.mtrr_var[5] = BIT(36);
    assert_int_equal(cpuid_check_state(p, &s, &e), -EINVAL);
}

static void test_names(void **state)
{
    (void)state;
    for (unsigned f = 0; f < CPUF_COUNT; f++) {
        const char *got = cpu_feature_name((enum cpu_feature)f), *want = rows[f].name;
        assert_int_equal(strlen(got), strlen(want));
        for (unsigned i = 0; want[i]; i++)
            assert_int_equal(got[i], tolower(want[i]));
    }
}

/* The machine the test runs on. */
static void test_this_host(void **state)
{
    const struct cpuid_cfg cfg = {.cpus = 2, .tsc_khz = 2000000, .kvm_leaves = true};
    struct cpuid_policy pol, *p = &pol;
    struct err e = {""};

    (void)state;
    assert_int_equal(cpuid_build(p, &cfg, &e), 0);
    check_policy(p, 2);
    /* Whatever runs on the host's unit must be there. */
    static const uint8_t software[] = {
        CPUF_VME,        CPUF_DE,        CPUF_PSE,   CPUF_TSC,     CPUF_MSR,     CPUF_PAE,
        CPUF_MCE,        CPUF_APIC,      CPUF_SEP,   CPUF_MTRR,    CPUF_PGE,     CPUF_MCA,
        CPUF_PAT,        CPUF_PSE36,     CPUF_CLFSH, CPUF_PCID,    CPUF_X2APIC,  CPUF_TSCDEADLINE,
        CPUF_FSGSBASE,   CPUF_TSCADJUST, CPUF_SMEP,  CPUF_ERMS,    CPUF_INVPCID, CPUF_SMAP,
        CPUF_CLFLUSHOPT, CPUF_CLWB,      CPUF_UMIP,  CPUF_RDPID,   CPUF_FSRM,    CPUF_LAHF64,
        CPUF_PREFETCHW,  CPUF_SYSCALL,   CPUF_NX,    CPUF_PDPE1GB, CPUF_RDTSCP,  CPUF_LM,
    };
    for (unsigned f = 0; f < CPUF_COUNT; f++) {
        uint32_t r[4];
        if (!cpuid_has(p, (enum cpu_feature)f) || memchr(software, (int)f, sizeof(software)))
            continue;
        __cpuid_count(rows[f].leaf, rows[f].sub, r[0], r[1], r[2], r[3]);
        assert_true(r[rows[f].reg] >> rows[f].bit & 1);
    }
}

static int build_bounded(struct cpuid_policy *p, enum cpuid_level level,
                         const struct cpuid_limit *limit, struct err *e)
{
    const struct cpuid_cfg cfg = {.cpus = 2, .tsc_khz = 1000000, .level = level, .limit = limit};
    const struct cpuid_host host = {.query = fake_query, .ctx = FAKE_HOST(fake_intel_leaves), .xcr0 = XCR0_ALL};

    return cpuid_build_from(p, &cfg, &host, e);
}

/* The levels of the x86-64 psABI, table 3.1: each has the one's before it, and no other extension. */
static void test_levels(void **state)
{
    static const uint8_t v2[] = {CPUF_CX16,  CPUF_LAHF64, CPUF_POPCNT, CPUF_SSE3,
                                 CPUF_SSE41, CPUF_SSE42,  CPUF_SSSE3};
    static const uint8_t v3[] = {CPUF_AVX, CPUF_AVX2,  CPUF_BMI1,  CPUF_BMI2, CPUF_F16C,
                                 CPUF_FMA, CPUF_LZCNT, CPUF_MOVBE, CPUF_XSAVE};
    static const uint8_t v4[] = {CPUF_AVX512F, CPUF_AVX512BW, CPUF_AVX512CD, CPUF_AVX512DQ,
                                 CPUF_AVX512VL};
    static const uint8_t none[] = {CPUF_AES, CPUF_SHA,  CPUF_RDRAND,     CPUF_ADX,
                                   CPUF_GFNI, CPUF_VAES, CPUF_AVX512VBMI, CPUF_XSAVEC};
    enum cpuid_level level;
    struct err e = {""};

    for (level = CPUID_V2; level <= CPUID_V4; level++) {
        static struct cpuid_policy policy, *p = &policy;

        assert_int_equal(build_bounded(p, level, NULL, &e), 0);
        for (unsigned i = 0; i < sizeof(v2); i++)
            assert_true(cpuid_has(p, v2[i]));
        for (unsigned i = 0; i < sizeof(v3); i++)
            assert_int_equal(cpuid_has(p, v3[i]), level >= CPUID_V3);
        for (unsigned i = 0; i < sizeof(v4); i++)
            assert_int_equal(cpuid_has(p, v4[i]), level >= CPUID_V4);
        for (unsigned i = 0; i < sizeof(none); i++)
            assert_false(cpuid_has(p, none[i]));
        assert_true(HAS(SMEP) && HAS(NX) && HAS(X2APIC) && HAS(SSE2));
        assert_int_equal(p->xcr0_mask, level == CPUID_V2   ? XCR0_X87 | XCR0_SSE
                                       : level == CPUID_V3 ? XCR0_X87 | XCR0_SSE | XCR0_AVX
                                                           : XCR0_X87 | XCR0_SSE | XCR0_AVX | XCR0_AVX512);
    }
    assert_int_equal(cpuid_level_parse("x86-64-v3", &level, &e), 0);
    assert_int_equal(level, CPUID_V3);
    assert_int_equal(cpuid_level_parse("host", &level, &e), 0);
    assert_int_equal(level, CPUID_HOST);
    assert_int_equal(cpuid_level_parse("x86-64-v5", &level, &e), -EINVAL);
}

/* Nothing that a hypervisor does not let its guests have, but what is ours. */
static void test_limit(void **state)
{
    static struct cpuid_limit limit;
    static struct cpuid_policy bounded, free_policy, *p = &bounded;
    struct err e = {""};

    assert_int_equal(build_bounded(&free_policy, CPUID_HOST, NULL, &e), 0);
    memset(&limit, 0, sizeof(limit));
    for (unsigned i = 0; i < ARRAY_LEN(fake_intel_leaves); i++) {
        const struct fake_leaf *l = &fake_intel_leaves[i];
        struct cpuid_leaf *x = &limit.leaf[limit.n++];

        *x = (struct cpuid_leaf){l->leaf, l->sub, l->r[0], l->r[1], l->r[2], l->r[3], false};
        if (l->leaf == 1)
            x->ecx &= ~(1u << 17 | 1u << 21 | 1u << 24); /* no PCID; x2APIC and TSC deadline are ours */
        if (l->leaf == 7 && l->sub == 0)
            x->ebx &= ~(1u << 16 | 1u << 20); /* no AVX512F, no SMAP */
    }
    limit.arch_capabilities = BIT(0);
    assert_int_equal(build_bounded(p, CPUID_HOST, &limit, &e), 0);
    assert_false(HAS(PCID) || HAS(AVX512F) || HAS(AVX512VL) || HAS(SMAP));
    assert_true(HAS(X2APIC) && HAS(TSCDEADLINE) && HAS(SMEP) && HAS(AVX2));
    assert_false(leaf_bit(p, 1, 0, 2, 17) || leaf_bit(p, 7, 0, 1, 16));
    assert_int_equal(p->xcr0_mask & XCR0_AVX512, 0);
    assert_int_equal(cpuid_cr4_mask(p) & (CR4_PCIDE | CR4_SMAP), 0);
    assert_int_equal(p->arch_capabilities, BIT(0));
    assert_int_equal(cpuid_check_limit(p, &limit, &e), 0);
    assert_int_equal(cpuid_check_limit(&free_policy, &limit, &e), -EINVAL);
    assert_non_null(strstr(e.msg, "pcid"));
    /* A level that the bounds leave incomplete. */
    assert_int_equal(build_bounded(p, CPUID_V3, &limit, &e), 0);
    assert_int_equal(build_bounded(p, CPUID_V4, &limit, &e), -ENOTSUP);
    assert_non_null(strstr(e.msg, "avx512f"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_intel),
        cmocka_unit_test(test_clock_leaves),
        cmocka_unit_test(test_amd),
        cmocka_unit_test(test_minimal),
        cmocka_unit_test(test_baseline),
        cmocka_unit_test(test_xcr0),
        cmocka_unit_test(test_dynamic),
        cmocka_unit_test(test_xsave_layout),
        cmocka_unit_test(test_bounds),
        cmocka_unit_test(test_paravirtual),
        cmocka_unit_test(test_not_vulnerable),
        cmocka_unit_test(test_masks),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_levels),
        cmocka_unit_test(test_limit),
        cmocka_unit_test(test_this_host),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
