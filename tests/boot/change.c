/*
 * Changing the engine of a running machine (machine/change.h): guests of a few instructions that check all they have
 * (change.asm, guest.asm) while it happens all the time, what a change leaves as it was, and changes that fail.
 */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "image.h"
#include "machine/machine.h"

#define LOAD 0x100000u
/* In change.asm. */
#define STOP (LOAD + 0x10)
#define CPUS (LOAD + 0x14)
#define ROUNDS (LOAD + 0x18)
#define VALUE (LOAD + 0x24)
#define PASSED 5

enum { CHANGES = 150, DMA_US = 100 };

static struct {
    char *worker, *small; /* kernels */
} files;

struct world {
    struct log log;
    struct trace trace;
    struct loop *loop;
    struct machine *m;
    unsigned changes, want; /* so far; the guest is told to stop after so many */
    pthread_t dma;
    _Atomic bool dma_ends;
    uint32_t value; /* that the guest's code returns; the DMA thread's */
};

static void on_ended(void *arg) { loop_stop(((struct world *)arg)->loop); }

static uint32_t load32(struct world *w, uint64_t gpa)
{
    uint32_t v = 0;

    assert_int_equal(mem_read(w->m->map, gpa, &v, sizeof(v)), 0);
    return v;
}

static void store32(struct world *w, uint64_t gpa, uint32_t v)
{
    assert_int_equal(mem_write(w->m->map, gpa, &v, sizeof(v)), 0);
}

/* All engines of this host, as machine_cfg wants them. */
static uint32_t offered(void)
{
    uint32_t bits = 0;
    struct err why;

    for (uint32_t i = 0; engine_list[i]; i++) {
        if (!engine_list[i]->probe || !engine_list[i]->probe(&why))
            bits |= (uint32_t)BIT(i);
    }
    return bits;
}

static void world_new(struct world *w, const struct engine_ops *engine, const char *kernel, const char *what,
                      unsigned cpus)
{
    struct err e = {""};

    *w = (struct world){0};
    log_init(&w->log, LOG_ERROR, STDERR_FILENO);
    trace_init(&w->trace, &w->log);
    assert_int_equal(loop_new(&w->loop, &e), 0);

    const struct machine_cfg cfg = {
        .name = what,
        .engine = engine,
        .engines = offered(),
        .cpus = cpus,
        .memory = 8 * MIB,
        .boot = {.kernel = kernel, .cmdline = what},
        .serial = "none",
        .no_reboot = true,
        .log = &w->log,
        .trace = &w->trace,
        .loop = w->loop,
        .ended = on_ended,
        .arg = w,
    };
    if (machine_new(&w->m, &cfg, &e))
        fail_msg("%s: %s", what, e.msg);
}

static void world_free(struct world *w)
{
    machine_free(w->m);
    loop_free(w->loop);
}

/* A thread like a device's, which writes into the guest's code. */
static void *dma_main(void *arg)
{
    struct world *w = arg;

    while (!atomic_load(&w->dma_ends)) {
        w->value++;
        mem_write(w->m->map, VALUE, &w->value, sizeof(w->value));
        usleep(DMA_US);
    }
    return NULL;
}

static void dma_start(struct world *w)
{
    assert_int_equal(pthread_create(&w->dma, NULL, dma_main, w), 0);
}

static void dma_stop(struct world *w)
{
    atomic_store(&w->dma_ends, true);
    pthread_join(w->dma, NULL);
}

/* Changes the engine again and again, with the loop's other work in between. */
static void change(void *arg)
{
    struct world *w = arg;
    struct err e = {""};

    if (machine_result(w->m)->end != MACHINE_ALIVE)
        return;
    if (machine_next_engine(w->m, &e))
        fail_msg("%s", e.msg);
    if (++w->changes == w->want) {
        dma_stop(w);
        store32(w, STOP, w->value);
        return;
    }
    assert_int_equal(loop_post(w->loop, change, w), 0);
}

static void expect_end(struct world *w, int status)
{
    const struct machine_result *r = machine_result(w->m);
    struct err e;

    assert_int_equal(loop_run(w->loop, &e), 0);
    if (r->end != MACHINE_EXITED || r->status != status)
        fail_msg("%s: end %d, status %d: %s", w->m->name, r->end, r->status, r->error.msg);
}

/* Registers, code, time and interrupts of processors that work meanwhile. */
static void nothing_is_lost(void **state)
{
    static const unsigned cpus[] = {1, 4};

    for (size_t i = 0; i < ARRAY_LEN(cpus); i++) {
        struct world w;
        struct err e;

        world_new(&w, &bt_engine, files.worker, "worker", cpus[i]);
        store32(&w, CPUS, cpus[i]);
        w.want = CHANGES;
        dma_start(&w);
        assert_int_equal(machine_start(w.m, &e), 0);
        assert_int_equal(loop_post(w.loop, change, &w), 0);
        expect_end(&w, PASSED);
        assert_int_equal(w.m->changes.n, CHANGES);
        assert_true(load32(&w, ROUNDS) > 0);
        world_free(&w);
    }
}

/* Starting processors, interrupts by every way, clocks; until the guest is done. */
static void guests_do_not_notice(void **state)
{
    static const struct {
        const char *what;
        unsigned cpus;
        int status;
    } guest[] = {
        {"i: PIT by the 8259", 1, 5}, {"x: PIT by the I/O APIC", 1, 5}, {"a: local APIC timer", 1, 5},
        {"c", 1, 9},                  {"T", 1, 5},                      {"S", 2, 11},
        {"S", 4, 11},
    };

    for (size_t i = 0; i < ARRAY_LEN(guest); i++) {
        struct world w;
        struct err e;

        world_new(&w, &interp_engine, files.small, guest[i].what, guest[i].cpus);
        assert_int_equal(loop_post(w.loop, change, &w), 0);
        assert_int_equal(machine_start(w.m, &e), 0);
        expect_end(&w, guest[i].status);
        assert_true(w.changes > 0);
        world_free(&w);
    }
}

/* Every vCPU's state is the same before and after, also if it has not started yet; a pause stays one. */
static void states_are_equal(void **state)
{
    static struct cpu_state a[4], b;
    struct world w;
    struct err e = {""};

    world_new(&w, &interp_engine, files.worker, "worker", 4);
    store32(&w, CPUS, 4);
    assert_int_equal(machine_set_engine(w.m, &bt_engine, &e), 0); /* before it runs */
    assert_int_equal(machine_start(w.m, &e), 0);
    for (unsigned n = 0; n < 20; n++) {
        const struct engine_ops *to = n % 2 ? &bt_engine : &interp_engine;
        uint64_t t;

        machine_quiesce(w.m);
        t = clock_now(&w.m->clock);
        for (unsigned i = 0; i < 4; i++)
            assert_int_equal(w.m->engine->get_state(w.m->vcpus[i], &a[i]), 0);
        if (machine_set_engine(w.m, to, &e))
            fail_msg("%s", e.msg);
        assert_ptr_equal(w.m->engine, to);
        for (unsigned i = 0; i < 4; i++) {
            assert_ptr_equal(atomic_load(&w.m->vcpus[i]->engine), to);
            assert_int_equal(to->get_state(w.m->vcpus[i], &b), 0);
            assert_memory_equal(&a[i], &b, sizeof(b));
        }
        assert_int_equal(clock_now(&w.m->clock), t);
        machine_resume(w.m);
        usleep(3000);
    }
    machine_stop(w.m);
    assert_int_equal(loop_run(w.loop, &e), 0);
    assert_int_equal(machine_set_engine(w.m, &bt_engine, &e), -ESRCH);
    world_free(&w);
}

/* ---- engines that fail ---- */

static int no_probe(struct err *e) { return err_set(e, ENOTSUP, "not on this host"); }
static int no_vm(struct vm *vm, struct err *e) { return err_set(e, ENOTSUP, "another processor"); }

static int no_second_vcpu(struct vcpu *v, struct err *e)
{
    return v->index == 1 ? err_set(e, ENOMEM, "one is enough") : interp_engine.vcpu_init(v, e);
}

static int no_state(struct vcpu *v, const struct cpu_state *s)
{
    return v->index == 1 ? err_set(&v->error, EINVAL, "rip 0x1") : interp_engine.set_state(v, s);
}

static int works(struct err *e) { return 0; }

/* The VM goes on, with the engine that it has and all of its state. */
static void failed_changes_change_nothing(void **state)
{
    struct engine_ops bad[4];
    static const char *const why[] = {"engine bad: not on this host", "engine bad: another processor",
                                      "engine bad: one is enough", "engine bad: refuses the state of vCPU 1: rip 0x1"};
    struct world w;
    struct err e = {""};

    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        bad[i] = interp_engine;
        bad[i].name = "bad";
        bad[i].probe = works;
    }
    bad[0].probe = no_probe;
    bad[1].vm_init = no_vm;
    bad[2].vcpu_init = no_second_vcpu;
    bad[3].set_state = no_state;
    world_new(&w, &bt_engine, files.worker, "worker", 4);
    store32(&w, CPUS, 4);
    dma_start(&w);
    assert_int_equal(machine_start(w.m, &e), 0);
    for (unsigned n = 0; n < 20; n++) {
        for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
            assert_true(machine_set_engine(w.m, &bad[i], &e) < 0);
            assert_string_equal(e.msg, why[i]);
            assert_ptr_equal(w.m->engine, &bt_engine);
        }
        usleep(1000);
    }
    assert_int_equal(machine_set_engine(w.m, &bt_engine, &e), 0);
    assert_int_equal(w.m->changes.n, 0);
    dma_stop(&w);
    store32(&w, STOP, w.value);
    expect_end(&w, PASSED);
    world_free(&w);
}

/* --check belongs to an engine. */
static void check_stays(void **state)
{
    struct world w;
    struct err e = {""};

    world_new(&w, &bt_engine, files.worker, "worker", 1);
    w.m->vm.check = true;
    assert_int_equal(machine_set_engine(w.m, &interp_engine, &e), -ENOTSUP);
    assert_string_equal(e.msg, "--check is for one engine");
    w.m->vm.check = false;
    world_free(&w);
}

static char *kernel(const char *path, const char *name)
{
    static uint8_t code[16384];
    FILE *f = fopen(path, "rb");
    char *out = NULL;

    if (f) {
        struct elf_spec s = {.is32 = true, .paddr = LOAD, .code = code, .entry = LOAD, .pvh = LOAD};
        struct blob b;

        s.code_len = fread(code, 1, sizeof(code), f);
        fclose(f);
        b = make_elf(&s);
        out = file_write(name, b.p, b.len);
        free(b.p);
    }
    return out;
}

static int teardown(void **state)
{
    free(files.worker);
    free(files.small);
    files_clean();
    return 0;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_is_lost),  cmocka_unit_test(guests_do_not_notice),
        cmocka_unit_test(states_are_equal), cmocka_unit_test(failed_changes_change_nothing),
        cmocka_unit_test(check_stays),
    };
    struct err e;

    if (argc != 3) {
        fprintf(stderr, "usage: %s CHANGE.bin GUEST.bin\n", argv[0]);
        return 2;
    }
    if (bt_engine.probe(&e)) {
        printf("skipped: %s\n", e.msg);
        return 77;
    }
    files.worker = kernel(argv[1], "worker");
    files.small = kernel(argv[2], "small");
    if (!files.worker || !files.small)
        return 2;
    return cmocka_run_group_tests(tests, NULL, teardown);
}
