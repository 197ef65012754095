/*
 * Random instructions on the silicon and on each engine, everything compared:
 *   diff-fuzz [OPTION...]              fuzz
 *   diff-fuzz [OPTION...] CASE-FILE... run these cases
 *   diff-fuzz [OPTION...] --kept DIR   run every *.case of a folder
 * Options: --engine NAME[,NAME...] (all: every engine of this build that runs here); --cases N, --seed S, --first K (the number of the first case, as failures
 * print it),
 * --only MNEMONIC or --only far; --block N (nothing but sequences, of at most N instructions); --minimise, --failures N (stop after so many), --verbose. Status
 * 0: no difference, 1: differences, 77: this host cannot be the oracle.
 */
#include <dirent.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "compare.h"
#include "gen.h"
#include "guest.h"
#include "minimise.h"
#include "native.h"

#define ENGINES_MAX 4

struct run {
    struct native *native;
    struct guest *guest[ENGINES_MAX];
    unsigned nguest;
    struct gen_cfg cfg;
    uint64_t cases, seed, first;
    unsigned failures, max_failures;
    bool minimise, verbose;
    uint32_t *rows;       /* cases by row of insn_table */
    uint64_t vectors[32]; /* cases by exception that ended them */
    uint64_t lost;        /* cases that the oracle could not end */
};

/* Who and how, for messages. */
struct where {
    char name[40];
};

/* Registers that this host does not have are empty: a guest that runs on it has none either. */
static void fit(struct test_case *t)
{
    uint64_t xcr0 = native_xcr0();

    for (unsigned k = 0; k < ARRAY_LEN(t->s.zmm); k++) {
        unsigned words = xcr0 >> 6 & 1 ? 8 : xcr0 & XCR0_AVX ? 4 : 2;

        if (k >= 16)
            words = xcr0 >> 7 & 1 ? 8 : 0;
        memset(t->s.zmm[k] + words, 0, (8 - words) * sizeof(uint64_t));
    }
    if (!(xcr0 >> 5 & 1))
        memset(t->s.k, 0, sizeof(t->s.k));
}

/* The first difference on any engine in any mode, or NULL. */
static const char *differs(struct run *u, const struct test_case *t, const struct outcome *silicon,
                           struct outcome *ours, struct where *where)
{
    uint64_t undefined = gen_undefined(t, silicon->s.rip) | (native_tcg() ? FL_RF : 0);

    if (silicon->vector < 0)
        return NULL; /* nothing to compare with */
    for (unsigned k = 0; k < u->nguest; k++)
        for (unsigned mode = 0; mode < GUEST_MODES; mode++) {
            if (!guest_run(u->guest[k], t, mode, ours))
                continue;
            const char *what = compare(t, silicon, ours, undefined);
            if (what) {
                snprintf(where->name, sizeof(where->name), "%s, %s", guest_engine(u->guest[k]),
                         guest_mode_name[mode]);
                return what;
            }
        }
    return NULL;
}

/* Minimising must not wander off to another difference. */
struct shrink {
    struct run *u;
    const char *what;
    int silicon, ours;
    struct outcome out;
};

static bool fails_alike(void *ctx, const struct test_case *t)
{
    struct shrink *s = ctx;
    struct where where;

    *native_case(s->u->native, 0) = *t;
    native_run(s->u->native, 1);
    const struct outcome *o = native_outcome(s->u->native, 0);
    const char *what = differs(s->u, t, o, &s->out, &where);
    return what && !strcmp(what, s->what) && o->vector == s->silicon && s->out.vector == s->ours;
}

/* Reports case t, which failed once; a case of the silicon's whim is no failure. */
static void report(struct run *u, struct test_case *t, const char *name, const char *what,
                   int silicon, int vector)
{
    struct shrink s = {.u = u, .what = what, .silicon = silicon, .ours = vector};
    struct where where = {""};

    if (!fails_alike(&s, t)) {
        printf("%s: %s differed once only\n", name, what);
        return;
    }
    if (u->minimise)
        minimise(t, fails_alike, &s);
    *native_case(u->native, 0) = *t;
    native_run(u->native, 1);
    const struct outcome *o = native_outcome(u->native, 0);
    what = differs(u, t, o, &s.out, &where);
    printf("%s: %s differs (%s)\n", name, what ? what : "nothing", where.name);
    compare_show(t, o, &s.out, gen_undefined(t, o->s.rip));
    case_save(t, stdout);
    u->failures++;
}

static void make_case(struct run *u, uint64_t n, struct test_case *t)
{
    struct rng r = {u->seed * 0x2545f4914f6cdd1dull + n};

    gen_case(&r, &u->cfg, t);
    fit(t);
}

static void count_case(struct run *u, uint64_t n, const struct test_case *t,
                       const struct outcome *o)
{
    struct insn i;

    for (unsigned k = 0; k < t->n; k++)
        if (case_decode(t, k, &i))
            u->rows[i.row - insn_table]++;
    if (o->vector >= 0) {
        u->vectors[o->vector & 31]++;
        return;
    }
    u->lost++;
    if (u->verbose) {
        printf("case %llu: %s at %llx\n", (unsigned long long)n,
               o->vector == END_TIMEOUT ? "time is up" : "the oracle died",
               (unsigned long long)o->s.rip);
        case_save(t, stdout);
    }
}

/* Cases n to n + count - 1, at most a batch. */
static void fuzz_batch(struct run *u, uint64_t n, unsigned count)
{
    struct {
        unsigned k;
        const char *what;
        int silicon, ours;
    } bad[NATIVE_BATCH];
    struct test_case *failed = malloc(sizeof(*failed));
    struct outcome *ours = malloc(sizeof(*ours));
    unsigned nbad = 0;
    struct where where;
    char name[40];

    if (!failed || !ours)
        abort();
    for (unsigned k = 0; k < count; k++)
        make_case(u, n + k, native_case(u->native, k));
    native_run(u->native, count);
    for (unsigned k = 0; k < count; k++) {
        const struct test_case *t = native_case(u->native, k);
        const struct outcome *o = native_outcome(u->native, k);

        count_case(u, n + k, t, o);
        bad[nbad].what = differs(u, t, o, ours, &where);
        bad[nbad].k = k;
        bad[nbad].silicon = o->vector;
        bad[nbad].ours = ours->vector;
        nbad += bad[nbad].what != NULL;
    }
    /* Reporting uses the batch again, so it comes last. */
    for (unsigned b = 0; b < nbad; b++) {
        make_case(u, n + bad[b].k, failed);
        snprintf(name, sizeof(name), "case %llu", (unsigned long long)(n + bad[b].k));
        report(u, failed, name, bad[b].what, bad[b].silicon, bad[b].ours);
    }
    free(ours);
    free(failed);
}

static void fuzz(struct run *u)
{
    uint64_t end = u->first + u->cases, n = u->first;
    unsigned rows = 0;

    for (; n < end && u->failures < u->max_failures; n += NATIVE_BATCH)
        fuzz_batch(u, n, (unsigned)MIN(end - n, (uint64_t)NATIVE_BATCH));
    for (size_t k = 0; k < insn_table_len; k++) {
        rows += u->rows[k] != 0;
        if (u->verbose)
            printf("%8u %s (%x)\n", u->rows[k], insn_table[k].mnemonic, insn_table[k].enc[3]);
    }
    for (unsigned v = 0; v < ARRAY_LEN(u->vectors); v++)
        if (u->verbose && u->vectors[v])
            printf("%8llu ended by vector %u\n", (unsigned long long)u->vectors[v], v);
    printf("seed %llu: %llu cases (%llu lost) of %u table rows, %u failures\n",
           (unsigned long long)u->seed, (unsigned long long)(MIN(n, end) - u->first),
           (unsigned long long)u->lost, rows, u->failures);
}

/* A kept case. */
static void run_file(struct run *u, const char *path)
{
    struct test_case *t = malloc(sizeof(*t));
    uint8_t code[CODE_BYTES];
    struct outcome ours;
    struct where where;

    if (!t)
        abort();
    if (case_load(t, path) < 0 || !case_assemble(t, code, NULL)) {
        u->failures++;
        free(t);
        return;
    }
    fit(t);
    *native_case(u->native, 0) = *t;
    native_run(u->native, 1);
    const struct outcome *o = native_outcome(u->native, 0);
    int silicon = o->vector;
    const char *what = differs(u, t, o, &ours, &where);
    if (what)
        report(u, t, path, what, silicon, ours.vector);
    else if (u->verbose)
        printf("%s: ok, vector %d\n", path, silicon);
    free(t);
}

static int is_case(const struct dirent *e)
{
    size_t n = strlen(e->d_name);

    return n > 5 && !strcmp(e->d_name + n - 5, ".case");
}

static void run_dir(struct run *u, const char *dir)
{
    struct dirent **list;
    char path[4096];
    int n = scandir(dir, &list, is_case, alphasort);

    if (n <= 0) {
        printf("no cases in %s\n", dir);
        u->failures++;
        return;
    }
    for (int k = 0; k < n; k++) {
        snprintf(path, sizeof(path), "%s/%s", dir, list[k]->d_name);
        run_file(u, path);
        free(list[k]);
    }
    free(list);
    printf("%d kept cases\n", n);
}

static bool add_engine(struct run *u, const struct engine_ops *engine)
{
    struct err e = {.msg = ""};

    if (u->nguest < ENGINES_MAX)
        u->guest[u->nguest] = guest_new(engine, native_xcr0(), &e);
    if (u->nguest == ENGINES_MAX || !u->guest[u->nguest]) {
        printf("%s: %s\n", engine->name, e.msg);
        return false;
    }
    u->nguest++;
    return true;
}

/* A list of names, or "all". */
static bool add_engines(struct run *u, const char *names)
{
    char *copy = strdup(names), *save = NULL;
    bool ok = copy != NULL;
    struct err e;

    if (ok && !strcmp(names, "all")) {
        for (const struct engine_ops *const *x = engine_list; *x && ok; x++)
            if ((*x)->probe(&e) == 0)
                ok = add_engine(u, *x);
    } else if (ok) {
        for (char *n = strtok_r(copy, ",", &save); n && ok; n = strtok_r(NULL, ",", &save))
            ok = add_engine(u, test_engine(n));
    }
    free(copy);
    return ok && u->nguest;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"cases", 1, NULL, 'c'},   {"seed", 1, NULL, 's'},   {"first", 1, NULL, 'f'},
        {"only", 1, NULL, 'o'},    {"engine", 1, NULL, 'e'}, {"minimise", 0, NULL, 'm'},
        {"verbose", 0, NULL, 'v'}, {"kept", 1, NULL, 'k'},   {"failures", 1, NULL, 'F'},
        {"block", 1, NULL, 'b'},   {NULL, 0, NULL, 0},
    };
    struct run u = {.cases = 1000, .seed = 1, .max_failures = 20};
    const char *kept = NULL, *engines = "all";
    int opt;

    setvbuf(stdout, NULL, _IOLBF, 0);
    while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (opt) {
        case 'c':
            u.cases = strtoull(optarg, NULL, 0);
            break;
        case 's':
            u.seed = strtoull(optarg, NULL, 0);
            break;
        case 'f':
            u.first = strtoull(optarg, NULL, 0);
            break;
        case 'o':
            u.cfg.only = optarg;
            break;
        case 'k':
            kept = optarg;
            break;
        case 'v':
            u.verbose = true;
            break;
        case 'm':
            u.minimise = true;
            break;
        case 'F':
            u.max_failures = (unsigned)strtoul(optarg, NULL, 0);
            break;
        case 'e':
            engines = optarg;
            break;
        case 'b':
            u.cfg.sequences = true;
            u.cfg.block = (unsigned)strtoul(optarg, NULL, 0);
            break;
        default:
            return 2;
        }
    }
    u.native = native_new();
    if (!u.native)
        return 77; /* skipped */
    u.rows = calloc(insn_table_len, sizeof(*u.rows));
    if (!u.rows || !add_engines(&u, engines)) {
        u.failures++;
        goto out;
    }
    u.cfg.policy = guest_policy(u.guest[0]);
    u.cfg.xsave = native_xcr0_complete();
    if (kept)
        run_dir(&u, kept);
    for (int k = optind; k < argc; k++)
        run_file(&u, argv[k]);
    if (optind == argc && !kept)
        fuzz(&u);
out:
    free(u.rows);
    for (unsigned k = 0; k < u.nguest; k++)
        guest_free(u.guest[k]);
    native_free(u.native);
    return u.failures != 0;
}
