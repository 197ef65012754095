/*
 * Whole machines with a guest of a few instructions (guest.asm): how each comes to its end, that
 * devices and interrupts are wired as the guest expects, and that machines in one process do not
 * know of each other.
 */
#include <errno.h>
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

#include "base/util.h"
#include "image.h"
#include "machine/machine.h"

#define LOAD 0x100000u

static struct {
    const char *code_path;
    char *kernel, *initrd;
} files;

struct world {
    struct log log;
    struct trace trace;
    struct loop *loop;
    int alive;
};

struct guest {
    struct world *w;
    struct machine *m;
};

static void world_init(struct world *w)
{
    struct err e;

    *w = (struct world){0};
    log_init(&w->log, LOG_ERROR, STDERR_FILENO);
    trace_init(&w->trace, &w->log);
    assert_int_equal(loop_new(&w->loop, &e), 0);
}

static void on_ended(void *arg)
{
    struct guest *g = arg;

    if (--g->w->alive == 0)
        loop_stop(g->w->loop);
}

static void guest_new_smp(struct guest *g, struct world *w, const char *what, const char *serial,
                          bool no_reboot, unsigned cpus)
{
    const struct machine_cfg cfg = {
        .name = what,
        .engine = &bt_engine,
        .cpus = cpus,
        .memory = 8 * MIB,
        .boot = {.kernel = files.kernel, .initrd = files.initrd, .cmdline = what},
        .serial = serial,
        .no_reboot = no_reboot,
        .log = &w->log,
        .trace = &w->trace,
        .loop = w->loop,
        .ended = on_ended,
        .arg = g,
    };
    struct err e = {""};

    g->w = w;
    if (machine_new(&g->m, &cfg, &e) || machine_start(g->m, &e))
        fail_msg("%s: %s", what, e.msg);
    w->alive++;
}

static void guest_new(struct guest *g, struct world *w, const char *what, const char *serial,
                      bool no_reboot)
{
    guest_new_smp(g, w, what, serial, no_reboot, 1);
}

static struct machine_result run_smp(const char *what, const char *serial, bool no_reboot,
                                     unsigned cpus)
{
    struct machine_result res;
    struct world w;
    struct guest g;
    struct err e;

    world_init(&w);
    guest_new_smp(&g, &w, what, serial, no_reboot, cpus);
    assert_int_equal(loop_run(w.loop, &e), 0);
    res = *machine_result(g.m);
    machine_free(g.m);
    loop_free(w.loop);
    return res;
}

static struct machine_result run(const char *what, const char *serial, bool no_reboot)
{
    return run_smp(what, serial, no_reboot, 1);
}

static void expect(const char *what, enum machine_end end, int status)
{
    struct machine_result r = run(what, "none", true);

    if (r.end != end || r.status != status)
        fail_msg("%s: end %d, status %d: %s", what, r.end, r.status, r.error.msg);
}

static void ends(void **state)
{
    expect("poweroff", MACHINE_POWERED_OFF, 0);
    expect("debug", MACHINE_EXITED, 42);
    expect("reset", MACHINE_REBOOTED, 0);
    expect("keyboard reset", MACHINE_REBOOTED, 0);
}

static void triple_fault_says_where(void **state)
{
    struct machine_result r = run("triple", "none", false);

    assert_int_equal(r.end, MACHINE_DIED);
    assert_non_null(strstr(r.error.msg, "triple fault of vCPU 0 at 0008:0x1000"));
}

/* INIT, SIPI, interrupts and NMIs from one to all and one by one, twice. */
static void processors_start_and_hear(void **state)
{
    static const unsigned cpus[] = {2, 3, 8, 64};

    for (size_t i = 0; i < ARRAY_LEN(cpus); i++) {
        struct machine_result r = run_smp("S", "none", true, cpus[i]);

        if (r.end != MACHINE_EXITED || r.status != 11)
            fail_msg("%u vCPUs: end %d, status %d: %s", cpus[i], r.end, r.status, r.error.msg);
    }
}

/* Any vCPU can end or restart the machine while the others sleep. */
static void any_processor_ends_the_machine(void **state)
{
    struct machine_result r = run_smp("Sp", "none", true, 4);

    assert_int_equal(r.end, MACHINE_POWERED_OFF);
    r = run_smp("St", "none", true, 4);
    assert_int_equal(r.end, MACHINE_DIED);
    assert_non_null(strstr(r.error.msg, "triple fault of vCPU 3 at 0008:"));
    /* After a reset the others wait for a SIPI again. */
    r = run_smp("Sb", "none", false, 4);
    assert_int_equal(r.end, MACHINE_POWERED_OFF);
}

/* The local APIC knows how wide physical addresses are. */
static void apic_base_has_reserved_bits(void **state)
{
    expect("B", MACHINE_DIED, 0);
}

static void reboots_with_the_kernel_loaded_anew(void **state)
{
    struct machine_result r = run("b", "none", false);

    assert_int_equal(r.end, MACHINE_POWERED_OFF);
}

static void interrupts_arrive(void **state)
{
    expect("i: PIT by the 8259", MACHINE_EXITED, 5);
    expect("x: PIT by the I/O APIC", MACHINE_EXITED, 5);
    expect("a: local APIC timer", MACHINE_EXITED, 5);
}

static void paravirtual_clock(void **state)
{
    expect("c", MACHINE_EXITED, 9);
    expect("w", MACHINE_EXITED, 10);
    expect("T", MACHINE_EXITED, 5);
}

static void initrd_arrives(void **state) { expect("m", MACHINE_EXITED, 7); }

static void serial_output_is_complete(void **state)
{
    char *path = file_write("serial", "", 0), name[600], got[100] = "";
    const char *line = "serial output, which ends with a newline";
    struct machine_result r;
    FILE *f;

    snprintf(name, sizeof(name), "file:%s", path);
    r = run(line, name, false);
    assert_int_equal(r.end, MACHINE_POWERED_OFF);
    f = fopen(path, "r");
    assert_non_null(f);
    assert_non_null(fgets(got, sizeof(got), f));
    fclose(f);
    got[strcspn(got, "\n")] = '\0';
    assert_string_equal(got, line);
    free(path);
}

static void stop(void *m) { machine_stop(m); }

/* A guest that computes and one that sleeps with interrupts off both stop when asked. */
static void stops_when_asked(void **state)
{
    static const char *const what[] = {"loop", "halted"};

    for (size_t i = 0; i < ARRAY_LEN(what); i++) {
        struct world w;
        struct guest g;
        struct err e;

        world_init(&w);
        guest_new(&g, &w, what[i], "none", false);
        assert_int_equal(loop_post(w.loop, stop, g.m), 0);
        assert_int_equal(loop_run(w.loop, &e), 0);
        assert_int_equal(machine_result(g.m)->end, MACHINE_STOPPED);
        machine_free(g.m);
        loop_free(w.loop);
    }
}

/* While all of its vCPUs compute. */
static void stops_all_processors(void **state)
{
    unsigned running = 0;
    struct cpu_state s;
    struct world w;
    struct guest g;
    struct err e;

    world_init(&w);
    guest_new_smp(&g, &w, "Sl", "none", false, 8);
    while (running < g.m->ncpu) {
        usleep(1000);
        machine_quiesce(g.m);
        for (running = 0; running < g.m->ncpu; running++) {
            const struct vcpu *v = g.m->vcpus[running];

            assert_int_equal(v->engine->get_state(g.m->vcpus[running], &s), 0);
            if (s.activity != CPU_RUNNING || (running && (s.rflags & FL_IF)))
                break;
        }
        machine_resume(g.m);
    }
    machine_stop(g.m);
    assert_int_equal(loop_run(w.loop, &e), 0);
    assert_int_equal(machine_result(g.m)->end, MACHINE_STOPPED);
    machine_free(g.m);
    loop_free(w.loop);
}

static void *stop_thread(void *m)
{
    machine_stop(m);
    return NULL;
}

/* From another thread, while the vCPUs are being started or before. */
static void stops_at_any_moment(void **state)
{
    struct machine_cfg cfg = {.name = "loop", .engine = &bt_engine, .cpus = 1,
                              .memory = 4 * MIB, .serial = "none",
                              .boot = {.kernel = files.kernel, .cmdline = "loop"}};

    for (int i = 0; i < 10; i++) {
        struct world w;
        struct guest g = {.w = &w};
        pthread_t t;
        struct err e;

        world_init(&w);
        cfg.log = &w.log;
        cfg.trace = &w.trace;
        cfg.loop = w.loop;
        cfg.ended = on_ended;
        cfg.arg = &g;
        w.alive = 1;
        assert_int_equal(machine_new(&g.m, &cfg, &e), 0);
        assert_int_equal(pthread_create(&t, NULL, stop_thread, g.m), 0);
        assert_int_equal(machine_start(g.m, &e), 0);
        assert_int_equal(loop_run(w.loop, &e), 0);
        pthread_join(t, NULL);
        assert_int_equal(machine_result(g.m)->end, MACHINE_STOPPED);
        machine_free(g.m);
        loop_free(w.loop);
    }
}

/* Nothing moves while a machine is quiesced, and it goes on afterwards. */
static void quiesce_stops_the_world(void **state)
{
    struct world w;
    struct guest g;
    struct err e;
    struct cpu_state a, b;
    uint64_t t;

    world_init(&w);
    guest_new(&g, &w, "i", "none", false);
    for (int i = 0; i < 3; i++) {
        struct vcpu *v = &g.m->cpu[0].v;

        machine_quiesce(g.m);
        machine_quiesce(g.m);
        t = clock_now(&g.m->clock);
        assert_int_equal(v->engine->get_state(v, &a), 0);
        usleep(20000);
        assert_int_equal(v->engine->get_state(v, &b), 0);
        assert_memory_equal(&a, &b, sizeof(a));
        assert_int_equal(clock_now(&g.m->clock), t);
        assert_int_equal(cpu_state_validate(&a, &e), 0);
        machine_resume(g.m);
        machine_resume(g.m);
    }
    assert_int_equal(loop_run(w.loop, &e), 0);
    assert_int_equal(machine_result(g.m)->end, MACHINE_EXITED);
    assert_int_equal(machine_result(g.m)->status, 5);
    machine_free(g.m);
    loop_free(w.loop);
}

static void stop_loop(void *loop)
{
    loop_stop(loop);
}

/* Lets the loop handle what is there already. */
static void turn(struct world *w)
{
    struct err e;

    for (int i = 0; i < 4; i++) {
        assert_int_equal(loop_post(w->loop, stop_loop, w->loop), 0);
        assert_int_equal(loop_run(w->loop, &e), 0);
    }
}

/* A reset that the guest asked for does not end a pause; it happens afterwards. */
static void reset_waits_for_resume(void **state)
{
    struct cpu_state a, b;
    struct world w;
    struct guest g;
    struct vcpu *v;
    struct err e;

    world_init(&w);
    guest_new(&g, &w, "loop", "none", true);
    v = &g.m->cpu[0].v;
    machine_quiesce(g.m);
    machine_request(g.m, MACHINE_RESET, 0);
    assert_int_equal(v->engine->get_state(v, &a), 0);
    turn(&w);
    assert_int_equal(machine_result(g.m)->end, MACHINE_ALIVE);
    assert_int_equal(v->engine->get_state(v, &b), 0);
    assert_memory_equal(&a, &b, sizeof(a));
    machine_resume(g.m);
    assert_int_equal(loop_run(w.loop, &e), 0);
    assert_int_equal(machine_result(g.m)->end, MACHINE_REBOOTED);
    machine_free(g.m);
    loop_free(w.loop);
}

static void count_free(void *n)
{
    ++*(int *)n;
}

/* What a guest does to the map while it runs costs a bounded amount of memory. */
static void old_views_do_not_pile_up(void **state)
{
    struct world w;
    struct guest g;
    struct err e;
    int n = 0;

    world_init(&w);
    guest_new(&g, &w, "loop", "none", true);
    for (int i = 0; i < 2000; i++) {
        struct region r = {.name = "bar", .kind = REGION_IO, .base = 0xd0000000, .size = 4096,
                           .prio = 10, .io = &n, .io_free = count_free};
        struct region *in = physmap_add(g.m->map, &r, &e);

        assert_non_null(in);
        assert_int_equal(physmap_del(g.m->map, in, &e), 0);
    }
    turn(&w);
    assert_true(n > 1000);
    assert_int_equal(machine_result(g.m)->end, MACHINE_ALIVE);
    machine_stop(g.m);
    assert_int_equal(loop_run(w.loop, &e), 0);
    assert_int_equal(machine_result(g.m)->end, MACHINE_STOPPED);
    machine_free(g.m);
    loop_free(w.loop);
}

/* Different guests side by side on one loop, each with its own end. */
static void two_machines_in_one_process(void **state)
{
    struct world w;
    struct guest a, b;
    struct err e;

    world_init(&w);
    guest_new(&a, &w, "a", "none", false);
    guest_new(&b, &w, "b", "none", false);
    assert_int_equal(loop_run(w.loop, &e), 0);
    assert_int_equal(machine_result(a.m)->end, MACHINE_EXITED);
    assert_int_equal(machine_result(a.m)->status, 5);
    assert_int_equal(machine_result(b.m)->end, MACHINE_POWERED_OFF);
    machine_free(a.m);
    machine_free(b.m);
    loop_free(w.loop);
}

/* A machine that was made but never started is freed like any other. */
static void freed_without_running(void **state)
{
    const struct machine_cfg cfg = {.name = "idle",
                                    .engine = &bt_engine,
                                    .cpus = 1,
                                    .memory = 4 * MIB,
                                    .boot = {.kernel = files.kernel, .cmdline = "p"},
                                    .serial = "none"};
    struct machine_cfg c = cfg;
    struct world w;
    struct machine *m;
    struct err e;

    world_init(&w);
    c.log = &w.log;
    c.trace = &w.trace;
    c.loop = w.loop;
    assert_int_equal(machine_new(&m, &c, &e), 0);
    machine_free(m);
    c.memory = MIB;
    assert_int_equal(machine_new(&m, &c, &e), -EINVAL);
    c.memory = 4 * MIB + 1;
    assert_int_equal(machine_new(&m, &c, &e), -EINVAL);
    c.memory = 1ull << 60;
    assert_int_equal(machine_new(&m, &c, &e), -EINVAL);
    c.memory = 4 * MIB;
    c.cpus = MACHINE_CPUS_MAX + 1;
    assert_int_equal(machine_new(&m, &c, &e), -EINVAL);
    c.cpus = 1;
    c.serial = "file:/nonexistent/file";
    assert_int_not_equal(machine_new(&m, &c, &e), 0);
    loop_free(w.loop);
}

static int setup(void **state)
{
    uint8_t code[16384], initrd[5000];
    FILE *f = fopen(files.code_path, "rb");
    struct blob b;

    if (!f)
        return -1;
    struct elf_spec s = {.is32 = true,
                         .paddr = LOAD,
                         .code = code,
                         .code_len = fread(code, 1, sizeof(code), f),
                         .entry = LOAD,
                         .pvh = LOAD};
    fclose(f);
    b = make_elf(&s);
    files.kernel = file_write("guest", b.p, b.len);
    free(b.p);
    memset(initrd, 'I', sizeof(initrd));
    files.initrd = file_write("initrd", initrd, sizeof(initrd));
    return 0;
}

static int teardown(void **state)
{
    free(files.kernel);
    free(files.initrd);
    files_clean();
    return 0;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ends),
        cmocka_unit_test(triple_fault_says_where),
        cmocka_unit_test(apic_base_has_reserved_bits),
        cmocka_unit_test(reboots_with_the_kernel_loaded_anew),
        cmocka_unit_test(interrupts_arrive),
        cmocka_unit_test(paravirtual_clock),
        cmocka_unit_test(initrd_arrives),
        cmocka_unit_test(serial_output_is_complete),
        cmocka_unit_test(stops_when_asked),
        cmocka_unit_test(stops_at_any_moment),
        cmocka_unit_test(processors_start_and_hear),
        cmocka_unit_test(any_processor_ends_the_machine),
        cmocka_unit_test(stops_all_processors),
        cmocka_unit_test(quiesce_stops_the_world),
        cmocka_unit_test(reset_waits_for_resume),
        cmocka_unit_test(old_views_do_not_pile_up),
        cmocka_unit_test(two_machines_in_one_process),
        cmocka_unit_test(freed_without_running),
    };

    if (argc != 2) {
        fprintf(stderr, "usage: %s GUEST.bin\n", argv[0]);
        return 2;
    }
    files.code_path = argv[1];
    return cmocka_run_group_tests(tests, setup, teardown);
}
