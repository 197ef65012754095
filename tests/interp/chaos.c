/*
 * Random guest code in every mode against the engine itself (tests/engine.h says which):
 *
 *   chaos [-n PROGRAMS] [-s SEED] [-t SECONDS] [-v]
 *
 * A program is a scene (scene.h) and a sequence of entries: at each a state of some mode is loaded,
 * and code runs until it halts, as every handler does, or shuts down. The same program runs one
 * instruction at a time, freely with fast handlers and freely with plain functions, and must end
 * alike each time: registers, flags, what it did to memory and I/O, how many instructions it took,
 * which pages are in the dirty log. Wild programs map their own page tables, where stale
 * translations make the three differ as they may: they are only run. Every end state must be one
 * that a processor can be in, and be taken back. Build with sanitizers to see the rest.
 *
 * SEED is the first program's; they are numbered from there, so one that fails is repeated with -s
 * N -n 1.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "scene.h"
#include "watchdog.h"
#include "world.h"

#define ENTRIES 12
#define STEPS_MAX 3000 /* instructions after which an entry counts as endless */
#define PATIENCE_US 4000000
#define PAGES (WORLD_RAM / PAGE_SIZE)

enum how { STEPPED, FREE, PLAIN, HOWS };
static const char *const how_name[HOWS] = {"stepped", "free", "plain"};

struct entry {
    enum scene_mode mode;
    uint32_t gpa;
    struct cpu_state s;
    unsigned inject; /* VCPU_EV_* posted before it starts */
};

struct outcome {
    enum stop stop;
    struct cpu_state s;
    uint64_t insns, io_hash, dirty_hash;
    unsigned nlog;
};

struct chaos {
    struct world *w;
    uint8_t image[SCENE_BYTES];
    struct entry entry[ENTRIES];
    struct outcome out[HOWS][ENTRIES];
    uint64_t touched[PAGES / 64]; /* pages to restore */
    uint64_t seed;
    bool verbose;
    unsigned failures;
    uint64_t entries, ended, insns;
    unsigned by_stop[8];
};

static void complain(struct chaos *x, unsigned n, const char *what)
{
    x->failures++;
    printf("seed %llu entry %u (%s): %s\n", (unsigned long long)x->seed, n,
           scene_mode_name(x->entry[n].mode), what);
}

/* ---- running ---- */

static uint64_t hash(uint64_t h, const uint8_t *p, size_t n)
{
    for (size_t k = 0; k < n; k += 8) {
        uint64_t v;

        memcpy(&v, p + k, 8);
        h = (h ^ v) * 0x9e3779b97f4a7c15ull;
        h ^= h >> 29;
    }
    return h;
}

/* Takes the dirty log: which pages, and what is in them now. */
static uint64_t take_dirty(struct chaos *x)
{
    uint64_t bits[PAGES / 64] = {0}, h = 0;

    x->w->engine->dirty_fetch(&x->w->vm, x->w->ram, bits);
    for (unsigned k = 0; k < PAGES; k++) {
        if (!(bits[k / 64] >> (k % 64) & 1))
            continue;
        x->touched[k / 64] |= BIT(k % 64);
        h = hash(h ^ (k + 1), x->w->mem + k * PAGE_SIZE, PAGE_SIZE);
    }
    return h;
}

static void restore(struct chaos *x)
{
    static const uint8_t zero[PAGE_SIZE];

    take_dirty(x);
    for (unsigned k = 0; k < PAGES; k++)
        if (x->touched[k / 64] >> (k % 64) & 1)
            world_write(x->w, k * PAGE_SIZE,
                        k < SCENE_BYTES / PAGE_SIZE ? x->image + k * PAGE_SIZE : zero, PAGE_SIZE);
    memset(x->touched, 0, sizeof(x->touched));
    if (x->w->alias) {
        struct err e;

        physmap_del(x->w->map, x->w->alias, &e);
        x->w->alias = NULL;
    }
    physmap_reclaim(x->w->map);
    take_dirty(x);
    memset(x->touched, 0, sizeof(x->touched));
    world_forget_io(x->w);
}

static bool ends(enum stop st) { return st == STOP_HLT || st == STOP_SHUTDOWN || st == STOP_KICK; }

/* One entry; false if it must not be compared. */
static bool run_entry(struct chaos *x, unsigned n, enum how how, bool patient, struct outcome *out)
{
    struct vcpu *v = &x->w->vcpu[0];
    uint64_t before = v->insns;

    test_engine_other(v, how == PLAIN);
    atomic_store(&v->events, 0);
    atomic_store(&x->w->irq[0], -1);
    if (world_set(x->w, 0, &x->entry[n].s)) {
        complain(x, n, v->error.msg);
        return false;
    }
    atomic_fetch_or(&v->events, x->entry[n].inject);
    watchdog_start(v, patient ? PATIENCE_US : 2000);
    if (how == STEPPED) {
        unsigned steps = 0;

        do
            out->stop = world_run(x->w, 0, 1);
        while (out->stop == STOP_BUDGET && ++steps < STEPS_MAX);
    } else {
        out->stop = world_run(x->w, 0, 0);
    }
    bool expired = watchdog_stop();
    if (expired && patient && how != STEPPED)
        complain(x, n, "does not end");
    world_get(x->w, 0, &out->s);
    out->insns = v->insns - before;
    out->io_hash = x->w->io_hash;
    out->nlog = x->w->nlog;
    out->dirty_hash = take_dirty(x);
    return !expired && ends(out->stop);
}

static void check_state(struct chaos *x, unsigned n, enum how how, const struct cpu_state *s)
{
    struct cpu_state again;
    struct err e;
    char msg[300];

    if (cpu_state_validate(s, &e) || cpuid_check_state(&x->w->policy, s, &e) ||
        world_set(x->w, 0, s)) {
        snprintf(msg, sizeof(msg), "%s ends in an impossible state: %.200s", how_name[how], e.msg);
        complain(x, n, msg);
        return;
    }
    world_get(x->w, 0, &again);
    if (memcmp(&again, s, sizeof(*s)))
        complain(x, n, "get_state after set_state differs");
}

/* ---- comparing ---- */

static void show_state_diff(const struct cpu_state *a, const struct cpu_state *b)
{
    const uint64_t *p = (const void *)a, *q = (const void *)b;

    for (unsigned k = 0; k < sizeof(*a) / 8; k++)
        if (p[k] != q[k])
            printf("  cpu_state+%#x: %#llx %#llx\n", k * 8, (unsigned long long)p[k],
                   (unsigned long long)q[k]);
}

static void show_code(struct chaos *x, unsigned n)
{
    struct insn i;
    uint32_t at = x->entry[n].gpa, end = at + SCENE_CHUNK;
    enum cpu_bits bits = cpu_code_bits(&x->entry[n].s);

    for (unsigned k = 0; k < 60 && at + 15 < end; k++) {
        if (insn_decode(&i, x->image + at, INSN_MAX_LEN, bits) != INSN_OK) {
            printf("  %05x: (no instruction) %02x\n", at, x->image[at]);
            return;
        }
        printf("  %05x: %-10s", at, i.row->mnemonic);
        for (unsigned b = 0; b < i.len; b++)
            printf(" %02x", x->image[at + b]);
        printf("\n");
        at += i.len;
    }
}

/* Only the interpreter counts exactly without a budget. */
static bool same_count(const struct chaos *x, const struct outcome *a, const struct outcome *b)
{
    return a->insns == b->insns || x->w->engine != &interp_engine;
}

static bool same(struct chaos *x, unsigned n, enum how how)
{
    const struct outcome *a = &x->out[STEPPED][n], *b = &x->out[how][n];
    char what[200];

    if (a->stop == b->stop && !memcmp(&a->s, &b->s, sizeof(a->s)) && same_count(x, a, b) &&
        a->io_hash == b->io_hash && a->dirty_hash == b->dirty_hash)
        return true;
    snprintf(what, sizeof(what), "stepped and %s differ:%s%s%s%s%s", how_name[how],
             a->stop != b->stop ? " stop" : "", memcmp(&a->s, &b->s, sizeof(a->s)) ? " state" : "",
             !same_count(x, a, b) ? " instructions" : "", a->io_hash != b->io_hash ? " I/O" : "",
             a->dirty_hash != b->dirty_hash ? " memory" : "");
    complain(x, n, what);
    printf("  stop %d %d, instructions %llu %llu, I/O %u %u, rip %#llx %#llx\n", a->stop, b->stop,
           (unsigned long long)a->insns, (unsigned long long)b->insns, a->nlog, b->nlog,
           (unsigned long long)a->s.rip, (unsigned long long)b->s.rip);
    show_state_diff(&a->s, &b->s);
    if (x->verbose)
        show_code(x, n);
    return false;
}

/* ---- programs ---- */

static void make_program(struct chaos *x, struct rng *r, bool wild)
{
    static const unsigned events[] = {VCPU_EV_NMI, VCPU_EV_INTR, VCPU_EV_INIT, VCPU_EV_SIPI};

    scene_memory(r, x->image, wild);
    memset(x->touched, 0xff, sizeof(x->touched));
    for (unsigned n = 0; n < ENTRIES; n++) {
        struct entry *t = &x->entry[n];

        t->mode = below(r, SCENE_MODES);
        t->gpa = SCENE_CODE + n * SCENE_CHUNK;
        scene_code(r, x->image, t->gpa, t->mode);
        /* Sometimes the code of before in another state, or an entry across a page. */
        if (n && below(r, 6) == 0)
            t->gpa = x->entry[n - 1].gpa;
        scene_state(r, &t->s, t->mode, t->gpa, wild, &x->w->policy);
        t->inject = below(r, 16) ? 0 : events[below(r, wild ? 4 : 1)];
    }
}

static void run_program(struct chaos *x, uint64_t seed)
{
    struct rng r = {seed * 0x5851f42d4c957f2dull};
    bool wild = below(&r, 4) == 0;
    unsigned n, count = 0;

    x->seed = seed;
    make_program(x, &r, wild);
    restore(x);
    for (n = 0; n < ENTRIES; n++) {
        struct outcome *o = &x->out[STEPPED][n];
        bool done = run_entry(x, n, STEPPED, true, o);

        x->entries++;
        x->insns += o->insns;
        check_state(x, n, STEPPED, &o->s);
        if (!done)
            break;
        x->by_stop[o->stop]++;
        x->ended++;
    }
    count = n;
    for (enum how how = FREE; how < HOWS; how++) {
        if (how == PLAIN && !test_engine_other(&x->w->vcpu[0], true))
            continue;
        restore(x);
        for (n = 0; n < ENTRIES; n++) {
            struct outcome *o = &x->out[how][n];

            run_entry(x, n, how, n < count && !wild, o);
            check_state(x, n, how, &o->s);
            if (n >= count || (!wild && !same(x, n, how)))
                break;
        }
    }
}

int main(int argc, char **argv)
{
    struct chaos *x = calloc(1, sizeof(*x));
    unsigned long long count = 200, seed = 1;
    time_t end = 0;
    int opt;

    while ((opt = getopt(argc, argv, "n:s:t:v")) != -1) {
        switch (opt) {
        case 'n':
            count = strtoull(optarg, NULL, 0);
            break;
        case 's':
            seed = strtoull(optarg, NULL, 0);
            break;
        case 't':
            end = time(NULL) + atoi(optarg);
            count = ~0ull;
            break;
        case 'v':
            x->verbose = true;
            break;
        default:
            fprintf(stderr, "usage: chaos [-n programs] [-s seed] [-t seconds] [-v]\n");
            return 2;
        }
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    x->w = world_new(1);
    for (unsigned long long k = 0; k < count && (!end || time(NULL) < end) && x->failures < 20; k++)
        run_program(x, seed + k);
    printf("%llu entries, %llu ended (%u halted, %u shut down, %u kicked), %llu instructions, %u "
           "failures\n",
           (unsigned long long)x->entries, (unsigned long long)x->ended, x->by_stop[STOP_HLT],
           x->by_stop[STOP_SHUTDOWN], x->by_stop[STOP_KICK], (unsigned long long)x->insns,
           x->failures);
    bool ok = !x->failures;
    world_free(x->w);
    free(x);
    return !ok;
}
