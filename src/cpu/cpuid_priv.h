/* What the files that make a CPUID policy share; private to src/cpu. */
#ifndef RING3_CPU_CPUID_PRIV_H
#define RING3_CPU_CPUID_PRIV_H

#include "cpu/cpuid.h"

enum { EAX, EBX, ECX, EDX };

/* A policy in the making. */
struct cpuid_draft {
    struct cpuid_policy *p;
    const struct cpuid_cfg *cfg;
    const struct cpuid_host *host;
    uint32_t host_max, host_max_ext; /* highest leaves of the host */
    bool intel;                      /* vendor string GenuineIntel */
};

/* The host's leaf, zeros beyond its highest. */
void cpuid_host_leaf(const struct cpuid_draft *d, uint32_t leaf, uint32_t sub, uint32_t out[4]);
/* The policy's leaf, added as zeros when it is not there yet. */
struct cpuid_leaf *cpuid_draft_leaf(struct cpuid_draft *d, uint32_t leaf, uint32_t sub);
/* Sets one whole leaf. */
void cpuid_draft_set(struct cpuid_draft *d, uint32_t leaf, uint32_t sub, const uint32_t v[4]);

/* Everything but the features of CPU_FEATURES: identity, topology, caches, XSAVE layout, clocks,
 * speculation, paravirtual leaves. Called with the features already in the leaves. */
void cpuid_model_build(struct cpuid_draft *d);

/* ---- cpuid.c ---- */
struct cpuid_place {
    uint32_t leaf;
    uint8_t sub, reg, bit;
};
struct cpuid_place cpuid_feature_place(enum cpu_feature f);
void cpuid_set_feature(struct cpuid_policy *p, unsigned f, bool on);
uint32_t *cpuid_leaf_reg(struct cpuid_leaf *l, unsigned reg);

/* ---- cpuid_level.c ---- */
/* Takes away what the level has not; -ENOTSUP if one of its own is not there. */
int cpuid_level_apply(struct cpuid_policy *p, enum cpuid_level level, struct err *e);
bool cpuid_limit_allows(const struct cpuid_limit *l, enum cpu_feature f);
/* Bounds the leaves of a finished model by d->cfg->limit; features were bounded before. */
void cpuid_limit_rest(struct cpuid_draft *d);

#endif
