/*
 * Runs one assembly case (tests/sys/cases) in a bare VM: RAM, fake environment, one vCPU, no
 * machine.
 *
 * sysrun [-e ENGINE] case.bin      (without -e: tests/engine.h; -e hop: interp and bt by turns)
 *
 * The case is loaded at CASE_BASE and entered in real mode at 0:CASE_BASE after its header. It
 * talks through ports: RESULT ends it (0 = passed, otherwise the address of the failed check),
 * DETAIL adds a number to the failure message, the others make events. Each case runs freely, and one instruction at
 * a time under a budget, so that both of an engine's paths are covered, with the state read and written back now and
 * then; or, as `hop`, changes its engine after every instruction but those of long loops.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/change.h"
#include "sysvm.h"

#define RAM_SIZE (32 * MIB)
#define CASE_BASE 0x8000u
#define CASE_MAX 0x10000u
#define CASE_MAGIC 0x59533352u /* "R3SY" */
#define STEP_SLICE 97          /* instructions between state transfers in the stepped run */
#define HOP_LONG 8 /* visits of a RIP after which ... */
#define HOP_SLICE 1021 /* ... changes of engine are this many instructions apart */
#define TIMEOUT_S 60

/* Where the header is: straight after a short jump over it. */
struct header {
    uint8_t jump[4];
    uint32_t magic;
    uint32_t expect;  /* enum expect */
    uint32_t vendor;  /* enum vendor */
    uint32_t stage;   /* EXPECT_SHUTDOWN: the stage that must have been reached */
};
enum expect { EXPECT_PASS, EXPECT_SHUTDOWN };

static struct vcpu *alarmed; /* for the signal handler only */

static void on_alarm(int sig)
{
    vcpu_post(alarmed, VCPU_EV_KICK);
}

enum way { FREE, STEPPED, HOPPING };

/* What happens at the end of a slice. 0, or negative with e set. */
static int between(struct sysvm *w, enum way way, struct cpu_state *s, struct err *e)
{
    const struct engine_ops *engine = w->vcpu.engine;
    int rc;

    engine->get_state(&w->vcpu, s);
    if (way == STEPPED) {
        rc = engine->set_state(&w->vcpu, s);
        if (rc)
            *e = w->vcpu.error;
        return rc;
    }
    if (w->visits[s->rip % ARRAY_LEN(w->visits)]++ >= HOP_LONG && ++w->hop_waits % HOP_SLICE)
        return 0;
    w->hops++;
    rc = engine_change(&w->vm, engine, engine == &bt_engine ? &interp_engine : &bt_engine, e);
    if (!rc)
        test_engine_tune(&w->vm, w->vcpu.engine);
    return rc;
}

/* Runs the case to its end; 0 if it went as the header says. */
static int run_case(const struct engine_ops *engine, const uint8_t *image, size_t len, enum way way)
{
    static const char *const names[] = {"free", "stepped", "hopping"};
    const struct header *h = (const void *)image;
    const char *what = names[way];
    struct err e = { .msg = "" };
    struct sysvm *w = sysvm_new(engine, RAM_SIZE, h->vendor, &e);
    struct cpu_state *s = calloc(1, sizeof(*s));
    enum stop stop;
    int rc = 1;

    if (!w || !s)
        goto out;
    mem_write(w->map, CASE_BASE, image, len);
    cpu_state_reset(s);
    s->seg[CS].sel = 0;
    s->seg[CS].base = 0;
    s->rip = CASE_BASE;
    s->gpr[RSP] = 0x7000;
    if (engine->set_state(&w->vcpu, s) < 0) {
        e = w->vcpu.error;
        goto out;
    }

    w->vcpu.budget = way == STEPPED ? STEP_SLICE : way == HOPPING;
    alarmed = &w->vcpu;
    alarm(TIMEOUT_S);
    for (;;) {
        engine = w->vcpu.engine;
        stop = engine->run(&w->vcpu);
        if (stop == STOP_BUDGET) {
            if (between(w, way, s, &e))
                goto out;
        } else if (stop == STOP_HLT && w->halt_irq) {
            w->halt_irq = false;
            w->irq_vector = w->halt_vector;
            w->irq = true;
            vcpu_post(&w->vcpu, VCPU_EV_INTR);
        } else {
            break;
        }
    }
    alarm(0);
    engine->get_state(&w->vcpu, s);

    if (w->done && h->expect == EXPECT_PASS && w->result == 0) {
        rc = 0;
    } else if (stop == STOP_SHUTDOWN && h->expect == EXPECT_SHUTDOWN && w->stage == h->stage) {
        rc = 0;
    } else if (w->done) {
        fprintf(stderr, "%s: check at %#x failed:", what, w->result);
        for (unsigned i = 0; i < w->ndetail; i++)
            fprintf(stderr, " %#x", w->detail[i]);
        fprintf(stderr, "\n");
    } else {
        fprintf(stderr, "%s: stop %d at %04x:%llx, stage %u, cr2 %#llx\n", what, stop,
                s->seg[CS].sel, (unsigned long long)s->rip, w->stage, (unsigned long long)s->cr2);
    }
out:
    if (e.msg[0])
        fprintf(stderr, "%s: %s\n", what, e.msg);
    sysvm_free(w);
    free(s);
    return rc;
}

int main(int argc, char **argv)
{
    const char *name = NULL;
    const struct engine_ops *engine;
    static uint8_t image[CASE_MAX];
    const struct header *h = (const void *)image;
    size_t len;
    bool hop;
    FILE *f;
    int opt;

    while ((opt = getopt(argc, argv, "e:")) != -1) {
        if (opt != 'e') {
            fprintf(stderr, "usage: %s [-e ENGINE] case.bin\n", argv[0]);
            return 2;
        }
        name = optarg;
    }
    hop = name && !strcmp(name, "hop");
    engine = test_engine(hop ? "bt" : name);
    f = optind < argc ? fopen(argv[optind], "rb") : NULL;
    len = f ? fread(image, 1, sizeof(image), f) : 0;
    if (f)
        fclose(f);
    if (len < sizeof(*h) || h->magic != CASE_MAGIC) {
        fprintf(stderr, "%s: not a case\n", optind < argc ? argv[optind] : "(none)");
        return 2;
    }
    signal(SIGALRM, on_alarm);
    if (hop)
        return run_case(engine, image, len, HOPPING);
    return run_case(engine, image, len, FREE) | run_case(engine, image, len, STEPPED);
}
