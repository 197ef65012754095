/*
 * Random guest code in every mode, block by block in lockstep:
 *
 *   lockstep [-n PROGRAMS] [-s SEED]
 *
 * The programs are those of tests/interp/chaos.c. Each block is run dry by plain functions and really
 * by fast handlers, and the check must find them alike; now and then what was really done is spoiled
 * somewhere, and the check must say so. Memory and state are compared with what they were before a
 * dry run.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../interp/scene.h"
#include "../interp/watchdog.h"
#include "lockstep.h"

#define ENTRIES 6
#define STEPS_MAX 400

struct chaos {
    struct lock l;
    uint8_t image[SCENE_BYTES], before[WORLD_RAM];
    uint64_t seed;
    unsigned failures, spoiled, noticed;
};

static void complain(struct chaos *x, const char *what)
{
    x->failures++;
    printf("seed %llu: %s\n%s", (unsigned long long)x->seed, what, check_report(x->l.ck));
}

/* Nothing of a dry run is left. */
static void begin(struct chaos *x, const struct block *b, bool look)
{
    struct cpu_state s, t;

    world_get(x->l.w, 0, &s);
    if (look)
        memcpy(x->before, x->l.w->mem, WORLD_RAM);
    lock_begin(&x->l, b, 0);
    world_get(x->l.w, 0, &t);
    if (memcmp(&s, &t, sizeof(s)))
        complain(x, "a dry run has changed the state");
    if (look && memcmp(x->before, x->l.w->mem, WORLD_RAM))
        complain(x, "a dry run has changed memory");
}

/* Changes something the check can see at the point where the run came out; false if there is nothing. */
static bool spoil(struct chaos *x, struct rng *r)
{
    struct cpu *c = x->l.c;
    const struct dry *d = x->l.dry;

    if (d->stop == DRY_UNSURE || d->point[d->n].tainted)
        return false;
    switch (below(r, 6)) {
    case 0:
        c->s.gpr[below(r, 16)] ^= BIT(below(r, 64));
        return true;
    case 1:
        /* Not a flag that may be anything. */
        if (d->point[d->n].undef & (FL_OF | FL_ZF))
            return false;
        c->cc ^= below(r, 2) ? 1 : 0x4000;
        return true;
    case 2:
        x87_sync(c);
        c->s.zmm[below(r, 32)][below(r, 8)] ^= BIT(below(r, 64));
        return true;
    case 3:
        c->s.seg[below(r, SREG_COUNT)].base ^= BIT(below(r, 32));
        return true;
    case 4:
        x87_sync(c);
        c->s.x87.st[below(r, 8)][below(r, 10)] ^= 1;
        return true;
    default:
        if (!d->nwords)
            return false;
        const struct dry_word *w = &d->word[below(r, d->nwords)];
        unsigned b = below(r, 8);

        if (!(w->mask >> b & 1))
            return false;
        ((uint8_t *)w->at)[b] ^= (uint8_t)(1 << below(r, 8));
        return true;
    }
}

/* One block, and what stopped it by the engine itself. False when the program has ended. */
static bool step(struct chaos *x, struct rng *r)
{
    struct lock *l = &x->l;
    enum stop stop;
    struct block *b;

    /* Shadows, traps and breakpoints are between blocks. */
    if (!(l->c->s.rflags & (FL_TF | FL_RF)) && !(l->c->s.dr[7] & 0xff) && !l->c->s.sti_shadow &&
        !l->c->s.mov_ss_shadow && l->c->s.activity == CPU_RUNNING && (b = lock_block(l))) {
        uint64_t rip = l->c->s.rip;

        begin(x, b, !below(r, 16));
        lock_run(l, b, l->dry->n);
        if (!below(r, 64) && spoil(x, r)) {
            x->spoiled++;
            x->noticed += !lock_end(l);
            return false;
        }
        if (!lock_end(l)) {
            complain(x, "differs");
            return false;
        }
        l->c->s.rflags &= ~FL_RF; /* as between two blocks */
        if (!l->c->deliver && l->c->s.rip != rip)
            return true;
    }
    watchdog_start(&l->w->vcpu[0], 20000); /* a string instruction may be endless */
    stop = world_run(l->w, 0, 1);
    watchdog_stop();
    return stop == STOP_BUDGET;
}

static void run_program(struct chaos *x, uint64_t seed)
{
    struct rng r = {seed * 0x5851f42d4c957f2dull};
    bool wild = below(&r, 4) == 0;
    enum scene_mode mode[ENTRIES];

    x->seed = seed;
    scene_memory(&r, x->image, wild);
    for (unsigned n = 0; n < ENTRIES; n++) {
        mode[n] = below(&r, 2) ? MODE_LONG : below(&r, SCENE_MODES);
        scene_code(&r, x->image, SCENE_CODE + n * SCENE_CHUNK, mode[n]);
    }
    world_write(x->l.w, 0, x->image, SCENE_BYTES);
    for (unsigned n = 0; n < ENTRIES && x->failures < 5; n++) {
        struct cpu_state s;

        scene_state(&r, &s, mode[n], SCENE_CODE + n * SCENE_CHUNK, wild, &x->l.w->policy);
        if (world_set(x->l.w, 0, &s)) {
            complain(x, "impossible state");
            return;
        }
        atomic_store(&x->l.w->vcpu[0].events, 0);
        atomic_store(&x->l.w->irq[0], -1);
        for (unsigned k = 0; k < STEPS_MAX && step(x, &r); k++)
            ;
    }
}

int main(int argc, char **argv)
{
    struct chaos *x = calloc(1, sizeof(*x));
    unsigned long long count = 100, seed = 1;
    const struct check_stats *st;
    struct world *w;
    int opt;

    while ((opt = getopt(argc, argv, "n:s:")) != -1) {
        switch (opt) {
        case 'n':
            count = strtoull(optarg, NULL, 0);
            break;
        case 's':
            seed = strtoull(optarg, NULL, 0);
            break;
        default:
            fprintf(stderr, "usage: lockstep [-n programs] [-s seed]\n");
            return 2;
        }
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    w = world_new(1);
    lock_open(&x->l, w);
    for (unsigned long long k = 0; k < count && x->failures < 5; k++)
        run_program(x, seed + k);
    st = check_stats(x->l.ck);
    printf("%llu blocks, %llu instructions, %llu unsure, %llu raced; %u spoiled, %u noticed; %u failures\n",
           (unsigned long long)st->blocks, (unsigned long long)st->insns,
           (unsigned long long)st->unsure, (unsigned long long)st->raced, x->spoiled, x->noticed,
           x->failures);
    bool ok = !x->failures && x->noticed == x->spoiled && x->spoiled && st->blocks;
    lock_close(&x->l);
    world_free(w);
    free(x);
    return !ok;
}
