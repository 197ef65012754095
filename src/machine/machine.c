#include "machine/machine.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "back/chardev.h"
#include "dev/platform/acpi.h"
#include "machine/env.h"
#include "machine/disks.h"
#include "machine/gate.h"
#include "machine/memory.h"
#include "machine/pc.h"

/* The guest's TSC ticks once a nanosecond on every host: conversions are exact and machines can
 * move. Only where guests read the host's TSC as it is must it have that one's rate. */
#define TSC_KHZ 1000000u
/* How long the end of a machine waits for the serial port's last output. */
#define FLUSH_MS 1000u
/* Changes of the memory map after which the views from before them are freed. */
#define MAP_CHANGES_KEPT 1024u

/* What the loop's thread is asked to do; where several meet, the greatest wins. */
enum action {
    ACTION_NONE,
    ACTION_RESET,
    ACTION_POWEROFF,
    ACTION_DEBUG_EXIT,
    ACTION_DIED,
    ACTION_FAILED,
    ACTION_STOP
};

/* Has the loop's thread call on_action. */
static void poke(struct machine *m)
{
    const uint64_t one = 1;

    while (write(m->action_fd, &one, sizeof(one)) < 0 && errno == EINTR)
        ;
}

void machine_quiesce(struct machine *m)
{
    if (m->quiesced)
        return;
    gate_stop(m);
    for (struct device *d = m->devices; d; d = d->next)
        device_quiesce(d);
    for (uint32_t i = 0; i < m->ncpu; i++)
        lapic_quiesce(m->cpu[i].lapic);
    clock_freeze(&m->clock);
    timerq_resync(&m->timers);
    m->quiesced = true;
}

void machine_resume(struct machine *m)
{
    if (!m->quiesced)
        return;
    clock_thaw(&m->clock);
    timerq_resync(&m->timers);
    for (uint32_t i = 0; i < m->ncpu; i++) {
        lapic_resume(m->cpu[i].lapic);
        pvclock_update(&m->cpu[i].pvclock, m->cpu[i].tsc_offset);
    }
    for (struct device *d = m->devices; d; d = d->next)
        device_resume(d);
    m->quiesced = false;
    gate_go(m);
    if (atomic_load(&m->gate) != GATE_OPEN)
        poke(m); /* for a reset that waited */
}

/* ---- requests ---- */

static void post(struct machine *m, enum action a, int arg, const struct err *why)
{
    pthread_mutex_lock(&m->lock);
    if ((int)a > m->action) {
        m->action = a;
        m->action_arg = arg;
        if (why)
            m->action_error = *why;
    }
    if (atomic_load(&m->gate) == GATE_OPEN)
        atomic_store(&m->gate, GATE_CLOSED);
    pthread_mutex_unlock(&m->lock);
    gate_kick(m);
    poke(m);
}

void machine_request(void *machine, int request, int arg)
{
    static const enum action actions[] = {
        [MACHINE_POWEROFF] = ACTION_POWEROFF,
        [MACHINE_RESET] = ACTION_RESET,
        [MACHINE_DEBUG_EXIT] = ACTION_DEBUG_EXIT,
    };

    post(machine, actions[request], arg, NULL);
}

void machine_stop(struct machine *m) { post(m, ACTION_STOP, 0, NULL); }

void machine_power_button(struct machine *m) { acpi_power_button(m->acpi); }

void machine_died(struct machine *m, uint32_t cpu, uint16_t cs, uint64_t rip)
{
    struct err e;

    err_set(&e, EFAULT, "the guest died: triple fault of vCPU %u at %04x:%#llx", cpu, cs,
            (unsigned long long)rip);
    post(m, ACTION_DIED, 0, &e);
}

void machine_failed(struct machine *m, const struct err *why) { post(m, ACTION_FAILED, 0, why); }

/* ---- reset and end ---- */

/* Loads tables and kernel into memory and brings vCPUs into their power-on state. They are parked
 * or not started. */
static int load(struct machine *m, struct err *e)
{
    struct cpu_state boot, ap;
    int rc = pc_write_tables(m, e);

    if (!rc)
        rc = boot_load(m->boot, m->map, &m->layout, &boot, e);
    if (rc)
        return rc;
    cpu_state_reset(&ap);
    ap.activity = CPU_WAIT_SIPI;
    for (uint32_t i = 0; i < m->ncpu && !rc; i++)
        rc = vcpu_reset(&m->cpu[i], i == 0 ? &boot : &ap, e);
    return rc;
}

static void end(struct machine *m, enum machine_end how, int status, const struct err *why)
{
    if (m->result.end != MACHINE_ALIVE)
        return;
    m->result.end = how;
    m->result.status = status;
    if (why)
        m->result.error = *why;
    chardev_flush(m->serial, FLUSH_MS);
    if (m->console)
        chardev_flush(m->console, FLUSH_MS);
    machine_quiesce(m);
    if (m->changes.n)
        log_msg(m->log, LOG_INFO, "%s: %llu changes of engine; the vCPUs stood for %llu us each, at most %llu us",
                m->name, (unsigned long long)m->changes.n,
                (unsigned long long)(m->changes.stood / m->changes.n / 1000),
                (unsigned long long)(m->changes.most / 1000));
    for (uint32_t i = 0; i < m->ncpu && !m->changes.n; i++) /* engines count for themselves */
        if (m->cpu[i].v.insns)
            log_msg(m->log, LOG_INFO, "%s: vcpu%u: %llu instructions", m->name, i,
                    (unsigned long long)m->cpu[i].v.insns);
    m->ended(m->arg);
}

static void restart(struct machine *m)
{
    struct err e = {""};

    log_limited(m->log, &m->reboots, LOG_INFO, "%s: the guest reboots", m->name);
    machine_quiesce(m);
    for (struct device *d = m->devices; d; d = d->next)
        device_reset(d, RESET_COLD);
    if (load(m, &e))
        end(m, MACHINE_FAILED, 0, &e);
    else
        machine_resume(m);
}

static void on_action(void *arg, uint32_t events)
{
    struct machine *m = arg;
    struct err why;
    uint64_t count;
    int a, status;
    bool waits;

    if (read(m->action_fd, &count, sizeof(count)) < 0)
        return;
    gate_stop(m);
    pthread_mutex_lock(&m->lock);
    a = m->action;
    status = m->action_arg;
    why = m->action_error;
    waits = a == ACTION_RESET && m->quiesced;
    if (!waits)
        m->action = ACTION_NONE;
    pthread_mutex_unlock(&m->lock);
    if (waits) /* for machine_resume */
        return;

    switch ((enum action)a) {
    case ACTION_NONE:
        if (!m->quiesced && m->result.end == MACHINE_ALIVE)
            gate_go(m);
        break;
    case ACTION_RESET:
        if (m->no_reboot)
            end(m, MACHINE_REBOOTED, 0, NULL);
        else
            restart(m);
        break;
    case ACTION_POWEROFF:
        end(m, MACHINE_POWERED_OFF, 0, NULL);
        break;
    case ACTION_DEBUG_EXIT:
        end(m, MACHINE_EXITED, status, NULL);
        break;
    case ACTION_DIED:
        end(m, MACHINE_DIED, 0, &why);
        break;
    case ACTION_FAILED:
        end(m, MACHINE_FAILED, 0, &why);
        break;
    case ACTION_STOP:
        end(m, MACHINE_STOPPED, 0, NULL);
        break;
    }
}

void machine_terminal_resized(struct machine *m)
{
    chardev_resized(m->serial);
    if (m->console)
        chardev_resized(m->console);
}

const struct machine_result *machine_result(const struct machine *m) { return &m->result; }

/* ---- making and freeing ---- */

struct device *machine_add_device(struct machine *m, const struct device_class *cls, const char *id,
                                  const void *cfg, struct err *e)
{
    struct device *d = device_new(cls, id, &m->ctx, cfg, e);

    if (d) {
        d->next = m->devices;
        m->devices = d;
    }
    return d;
}

static void on_timers(void *arg, uint32_t events) { timerq_run(arg); }

static void on_leave(void *arg) { machine_stop(arg); }

static void on_engine_key(void *arg, char *line, size_t n)
{
    struct machine *m = arg;
    struct err e;
    int rc = machine_next_engine(m, &e);

    snprintf(line, n, "engine %s%s%s", m->engine->name, rc ? " goes on: " : "", rc ? e.msg : "");
}

static void on_map_changed(void *arg, const struct flat_view *view)
{
    struct machine *m = arg;
    struct err e;
    int rc = 0;

    pthread_rwlock_rdlock(&m->engine_lock);
    if (m->engine)
        rc = m->engine->map_changed(&m->vm, view);
    if (rc) { /* its guest has another memory than its devices */
        err_set(&e, -rc, "engine %s cannot follow a change of the memory map: %s", m->engine->name, strerror(-rc));
        machine_failed(m, &e);
    }
    pthread_rwlock_unlock(&m->engine_lock);
    /* Old views can be freed only while the vCPUs are parked. A guest that moves a device about all the time must
     * not make us keep one for each move. */
    if (++m->map_changes % MAP_CHANGES_KEPT == 0)
        post(m, ACTION_NONE, 0, NULL);
}

static void on_code_write(void *arg, uint64_t gpa, uint64_t len)
{
    struct machine *m = arg;

    pthread_rwlock_rdlock(&m->engine_lock);
    if (m->engine)
        m->engine->code_write(&m->vm, gpa, len);
    pthread_rwlock_unlock(&m->engine_lock);
}

static int check_cfg(const struct machine_cfg *cfg, struct err *e)
{
    uint64_t limit = ram_host_limit();

    if (cfg->cpus < 1 || cfg->cpus > MACHINE_CPUS_MAX)
        return err_set(e, EINVAL, "--cpus: a machine has 1 to %u", MACHINE_CPUS_MAX);
    if (cfg->memory < MACHINE_MEMORY_MIN)
        return err_set(e, EINVAL, "--memory: at least %llu MiB are needed",
                       MACHINE_MEMORY_MIN / MIB);
    if (cfg->memory % PAGE_SIZE)
        return err_set(e, EINVAL, "--memory: not a multiple of 4K");
    if (cfg->memory > limit)
        return err_set(e, EINVAL, "--memory: this host allows at most %llu MiB",
                       (unsigned long long)(limit / MIB));
    return 0;
}

static int make_memory(struct machine *m, const struct machine_cfg *cfg, struct err *e)
{
    const struct physmap_listener listener = {
        .changed = on_map_changed, .code_write = on_code_write, .arg = m};
    int rc;

    /* The upper half of the address space is for PCI. */
    if (cfg->memory > BIT(m->cpuid.maxphys - 1) - (MEMORY_HIGH - MEMORY_LOW_MAX))
        return err_set(e, EINVAL, "--memory: more than %u physical address bits allow",
                       m->cpuid.maxphys);
    rc = ram_new(&m->ram, "ram", cfg->memory, e);
    if (rc)
        return err_prefix(e, rc, "--memory");
    rc = physmap_new(&m->map, m->cpuid.maxphys, e);
    if (rc)
        return rc;
    rc = memory_map_ram(m->map, m->ram, e);
    if (rc)
        return rc;
    physmap_set_listener(m->map, &listener);
    memory_layout_init(&m->layout, cfg->memory);
    return 0;
}

static int make_loop_ends(struct machine *m, struct err *e)
{
    int rc;

    m->action_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (m->action_fd < 0)
        return err_sys(e, "eventfd");
    rc = loop_add(m->loop, m->action_fd, EPOLLIN, on_action, m, &m->action_reg, e);
    if (rc)
        return rc;
    return loop_add(m->loop, m->timers.fd, EPOLLIN, on_timers, &m->timers, &m->timer_fd, e);
}

static int make_vcpus(struct machine *m, const struct machine_cfg *cfg, struct err *e)
{
    int rc;

    m->vm = (struct vm){.env = &machine_env,
                        .map = m->map,
                        .clock = &m->clock,
                        .cpuid = &m->cpuid,
                        .trace = cfg->trace,
                        .vcpu = m->vcpus,
                        .nvcpu = cfg->cpus,
                        .check = cfg->check,
                        .check_every = cfg->check_every,
                        .owner = m};
    for (uint32_t i = 0; i < cfg->cpus; i++)
        m->vcpus[i] = &m->cpu[i].v;
    rc = cfg->engine->vm_init(&m->vm, e);
    if (rc)
        return err_prefix(e, rc, "engine %s", cfg->engine->name);
    m->engine = cfg->engine;
    for (; m->ncpu < cfg->cpus; m->ncpu++) {
        rc = vcpu_init(&m->cpu[m->ncpu], m, m->ncpu, cfg->engine, e);
        if (rc) {
            vcpu_fini(&m->cpu[m->ncpu]);
            return rc;
        }
    }
    return 0;
}

/* An address of our own, the same each time for machines of the same name. */
static void choose_mac(const struct machine *m, unsigned card, uint8_t mac[NET_MAC_LEN])
{
    uint32_t hash = 2166136261u; /* FNV-1a */

    for (const char *p = m->name; *p; p++)
        hash = (hash ^ (uint8_t)*p) * 16777619u;
    hash = hash * 16777619u ^ hash >> 24;
    memcpy(mac, (uint8_t[]){0x52, 0x54, 0x00, (uint8_t)(hash >> 16), (uint8_t)(hash >> 8),
                            (uint8_t)(hash + card)},
           NET_MAC_LEN);
}

static int make_nets(struct machine *m, const struct machine_cfg *cfg, struct err *e)
{
    static const uint8_t none[NET_MAC_LEN];

    for (; m->nnets < cfg->nnets; m->nnets++) {
        struct netdev_cfg net = cfg->nets[m->nnets];
        int rc;

        if (!memcmp(net.mac, none, sizeof(none)))
            choose_mac(m, m->nnets, net.mac);
        rc = netdev_open(&m->net[m->nnets], &net, m->log, e);
        if (rc)
            return err_prefix(e, rc, "--net");
    }
    return 0;
}

/* The demands of its engine, and of those to which the machine may change while it runs. One of them that cannot say what it
 * wants is none of those. */
static int demands(struct machine *m, const struct machine_cfg *cfg, struct engine_demands *d, struct err *e)
{
    int rc = 0;

    m->probed = cfg->engines;
    for (uint32_t i = 0; engine_list[i] && !rc; i++) {
        const struct engine_ops *x = engine_list[i];
        bool ours = x == cfg->engine;

        if (!x->demand || !(ours || m->probed & BIT(i)))
            continue;
        rc = x->demand(d, ours ? e : NULL);
        if (rc && !ours) {
            m->probed &= ~(uint32_t)BIT(i);
            rc = 0;
        }
    }
    return rc;
}

/* The processor and the clock, as the engines demand. */
static int make_model(struct machine *m, const struct machine_cfg *cfg, struct err *e)
{
    struct cpuid_cfg cpuid = {.cpus = cfg->cpus, .kvm_leaves = true, .level = cfg->cpu};
    struct engine_demands d = {.tsc_khz = TSC_KHZ};
    int rc;

    d.limit = calloc(1, sizeof(*d.limit));
    if (!d.limit)
        return err_set(e, ENOMEM, "no memory");
    rc = demands(m, cfg, &d, e);
    cpuid.tsc_khz = d.tsc_khz;
    cpuid.limit = d.limited ? d.limit : NULL;
    if (!rc)
        rc = cpuid_build(&m->cpuid, &cpuid, e);
    free(d.limit);
    if (d.counter_khz)
        clock_init_counter(&m->clock, d.tsc_khz, d.counter_khz);
    else
        clock_init(&m->clock, d.tsc_khz);
    return rc;
}

static int build(struct machine *m, const struct machine_cfg *cfg, struct err *e)
{
    const struct chardev_host host = {
        .loop = cfg->loop, .log = cfg->log, .leave = on_leave, .next_engine = on_engine_key, .arg = m};
    int rc = check_cfg(cfg, e);

    if (!rc)
        rc = boot_open(&m->boot, &cfg->boot, e);
    if (!rc)
        rc = make_model(m, cfg, e);
    if (!rc)
        rc = make_memory(m, cfg, e);
    if (rc)
        return rc;
    rc = timerq_init(&m->timers, &m->clock, e);
    if (rc)
        return rc;
    rc = make_loop_ends(m, e);
    if (rc)
        return rc;
    m->ctx = (struct dev_ctx){.clock = &m->clock,
                              .timers = &m->timers,
                              .map = m->map,
                              .loop = cfg->loop,
                              .log = cfg->log,
                              .trace = cfg->trace,
                              .request = machine_request,
                              .owner = m};
    rc = pc_make_irq(m, e);
    if (!rc)
        rc = make_vcpus(m, cfg, e);
    if (!rc)
        rc = pc_reserve(m, e);
    if (!rc)
        rc = load(m, e);
    if (rc)
        return rc;
    /* After the kernel is known to be good: this touches the terminal or truncates a file. */
    rc = make_nets(m, cfg, e);
    if (rc)
        return rc;
    rc = chardev_open(&m->serial, cfg->serial, &host, e);
    if (rc)
        return err_prefix(e, rc, "--serial");
    rc = cfg->console ? chardev_open(&m->console, cfg->console, &host, e) : 0;
    if (rc)
        return err_prefix(e, rc, "--console");
    rc = disks_open(m, cfg, e);
    return rc ? rc : pc_make_devices(m, cfg, e);
}

int machine_new(struct machine **out, const struct machine_cfg *cfg, struct err *e)
{
    struct machine *m = calloc(1, sizeof(*m));
    int rc;

    if (!m)
        return err_set(e, ENOMEM, "no memory");
    m->action_fd = m->timers.fd = -1;
    m->no_reboot = cfg->no_reboot;
    m->log = cfg->log;
    m->loop = cfg->loop;
    m->ended = cfg->ended;
    m->arg = cfg->arg;
    pthread_mutex_init(&m->lock, NULL);
    pthread_cond_init(&m->changed, NULL);
    pthread_rwlock_init(&m->engine_lock, NULL);
    m->name = strdup(cfg->name);
    rc = m->name ? build(m, cfg, e) : err_set(e, ENOMEM, "no memory");
    if (rc) {
        machine_free(m);
        return rc;
    }
    *out = m;
    return 0;
}

int machine_start(struct machine *m, struct err *e)
{
    int rc = 0;

    for (; m->nstarted < m->ncpu && !rc; m->nstarted += !rc)
        rc = vcpu_start(&m->cpu[m->nstarted], e);
    if (!rc)
        gate_go(m);
    return rc;
}

static void free_devices(struct machine *m)
{
    while (m->devices) {
        struct device *d = m->devices;

        m->devices = d->next;
        device_free(d);
    }
}

void machine_free(struct machine *m)
{
    if (!m)
        return;
    gate_quit(m);
    for (uint32_t i = 0; i < m->nstarted; i++)
        pthread_join(m->cpu[i].thread, NULL);
    free_devices(m);
    disks_close(m);
    chardev_free(m->console);
    chardev_free(m->serial);
    for (unsigned i = 0; i < m->nnets; i++)
        netdev_free(m->net[i]);
    for (uint32_t i = 0; i < m->ncpu; i++)
        vcpu_fini(&m->cpu[i]);
    if (m->engine)
        m->engine->vm_fini(&m->vm);
    pc_free_irq(m);
    if (m->timer_fd)
        loop_del(m->timer_fd);
    if (m->action_reg)
        loop_del(m->action_reg);
    if (m->action_fd >= 0)
        close(m->action_fd);
    if (m->timers.fd >= 0)
        timerq_fini(&m->timers);
    physmap_free(m->map);
    ram_free(m->ram);
    boot_close(m->boot);
    pthread_rwlock_destroy(&m->engine_lock);
    pthread_cond_destroy(&m->changed);
    pthread_mutex_destroy(&m->lock);
    free(m->name);
    free(m);
}
