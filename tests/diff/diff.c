/*
 * Random instructions on the silicon and on an engine, everything compared:
 *   diff-fuzz [--engine E] [--cases N] [--seed S] [--first K] [--only MNEMONIC] [CASE-FILE...]
 */
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "compare.h"
#include "gen.h"
#include "guest.h"
#include "native.h"

#define MAX_FAILURES 20

struct run {
    struct native *native;
    struct guest *guest;
    struct gen_cfg cfg;
    uint64_t cases, seed, first;
    unsigned failures;
    uint32_t *rows;   /* cases by row of insn_table */
    uint64_t vectors[32];
};

/* Runs t in every mode and reports the first difference. */
static bool check(struct run *u, const struct test_case *t, const struct outcome *silicon, const char *name)
{
    uint64_t undefined = gen_undefined(t);
    static struct outcome ours;

    if (silicon->vector == END_BROKEN)
        return true;
    for (unsigned m = 0; m < GUEST_MODES; m++) {
        guest_run(u->guest, t, m, &ours);
        const char *what = compare(t, silicon, &ours, undefined);
        if (!what)
            continue;
        printf("%s: %s differs (%s)\n", name, what, guest_mode_name[m]);
        compare_show(t, silicon, &ours, undefined);
        case_save(t, stdout);
        u->failures++;
        return false;
    }
    return true;
}

static void fuzz(struct run *u)
{
    uint64_t end = u->first + u->cases;

    for (uint64_t n = u->first; n < end && u->failures < MAX_FAILURES; n += NATIVE_BATCH) {
        unsigned count = (unsigned)MIN(end - n, (uint64_t)NATIVE_BATCH);

        for (unsigned k = 0; k < count; k++) {
            struct rng r = {u->seed * 0x2545f4914f6cdd1dull + n + k};
            gen_case(&r, &u->cfg, native_case(u->native, k));
        }
        native_run(u->native, count);
        for (unsigned k = 0; k < count; k++) {
            const struct test_case *t = native_case(u->native, k);
            const struct outcome *o = native_outcome(u->native, k);
            struct insn i;
            char name[40];

            snprintf(name, sizeof(name), "case %llu", (unsigned long long)(n + k));
            for (unsigned j = 0; j < t->n; j++)
                if (case_decode(t, j, &i))
                    u->rows[i.row - insn_table]++;
            u->vectors[o->vector & 31]++;
            check(u, t, o, name);
        }
    }
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"cases", 1, NULL, 'c'}, {"seed", 1, NULL, 's'}, {"first", 1, NULL, 'f'}, {"only", 1, NULL, 'o'},
        {"engine", 1, NULL, 'e'}, {NULL, 0, NULL, 0},
    };
    struct run u = {.cases = 1000, .seed = 1};
    const struct engine_ops *engine = &interp_engine;
    struct err e = {.msg = ""};
    unsigned rows = 0;
    int opt;

    setvbuf(stdout, NULL, _IOLBF, 0);
    while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (opt) {
        case 'c': u.cases = strtoull(optarg, NULL, 0); break;
        case 's': u.seed = strtoull(optarg, NULL, 0); break;
        case 'f': u.first = strtoull(optarg, NULL, 0); break;
        case 'o': u.cfg.only = optarg; break;
        case 'e': engine = engine_find(optarg); break;
        default: return 2;
        }
    }
    u.native = native_new();
    u.guest = engine && u.native ? guest_new(engine, native_xcr0(), &e) : NULL;
    if (!u.guest) {
        printf("%s\n", e.msg);
        native_free(u.native);
        return 77;
    }
    u.cfg.policy = guest_policy(u.guest);
    u.cfg.xsave = native_xcr0_complete();
    u.rows = calloc(insn_table_len, sizeof(*u.rows));
    if (!u.rows)
        abort();
    fuzz(&u);
    for (size_t k = 0; k < insn_table_len; k++)
        rows += u.rows[k] != 0;
    printf("seed %llu: %llu cases of %u table rows, %u failures\n", (unsigned long long)u.seed,
           (unsigned long long)u.cases, rows, u.failures);
    for (unsigned v = 0; v < 32; v++)
        if (u.vectors[v])
            printf("  vector %u: %llu\n", v, (unsigned long long)u.vectors[v]);
    free(u.rows);
    guest_free(u.guest);
    native_free(u.native);
    return u.failures != 0;
}
