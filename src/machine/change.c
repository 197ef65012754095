/*
 * The change of engine. With all vCPUs parked, what the old engine keeps in struct vm and struct vcpu is taken out, the new
 * one is made beside it and given every vCPU's state, and only then is one of the two unmade: the old one, or the new one
 * if any of that failed. Whatever else belongs to a vCPU (its APIC, paravirtual clock, posted events) is not the engine's
 * and stays where it is.
 *
 * Who can come across the engine meanwhile: posters of events, which vcpu_detach waits for, and devices' threads that
 * write memory, which engine_lock keeps out. Stores into code need nothing else: the old engine forgets all code it
 * has, the new one begins without any.
 */
#include "machine/change.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include "machine/gate.h"
#include "machine/machine.h"

/* What one engine keeps in the VM. */
struct data {
    void *vm;
    void *vcpu[MACHINE_CPUS_MAX];
};

static uint64_t host_now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void swap(void **a, void **b)
{
    void *was = *a;

    *a = *b;
    *b = was;
}

/* Puts d into the VM and what was there into d. */
static void exchange(struct machine *m, struct data *d)
{
    swap(&m->vm.engine_priv, &d->vm);
    for (uint32_t i = 0; i < m->ncpu; i++)
        swap(&m->vcpus[i]->priv, &d->vcpu[i]);
}

/* Undoes make for the first n vCPUs. */
static void unmake(struct machine *m, const struct engine_ops *engine, uint32_t n)
{
    while (n-- > 0)
        engine->vcpu_fini(m->vcpus[n]);
    engine->vm_fini(&m->vm);
}

/* The engine's data in a VM that shows none, with the vCPUs in the states s. */
static int make(struct machine *m, const struct engine_ops *engine, const struct cpu_state *s, struct err *e)
{
    int rc = engine->vm_init(&m->vm, e);
    uint32_t n = 0;

    if (rc)
        return rc;
    while (n < m->ncpu && !rc) {
        rc = engine->vcpu_init(m->vcpus[n], e);
        n += !rc;
    }
    for (uint32_t i = 0; i < m->ncpu && !rc; i++) {
        rc = engine->set_state(m->vcpus[i], &s[i]);
        if (rc)
            err_set(e, -rc, "it does not take vCPU %u: %s", i, m->vcpus[i]->error.msg);
    }
    if (rc)
        unmake(m, engine, n);
    return rc;
}

static int get_states(struct machine *m, struct cpu_state *s, struct err *e)
{
    for (uint32_t i = 0; i < m->ncpu; i++) {
        int rc = m->engine->get_state(m->vcpus[i], &s[i]);

        if (rc)
            return err_set(e, -rc, "engine %s does not give vCPU %u: %s", m->engine->name, i, m->vcpus[i]->error.msg);
    }
    return 0;
}

/* The vCPUs are parked. */
static int move(struct machine *m, const struct engine_ops *to, struct cpu_state *s, struct data *d, struct err *e)
{
    int rc = get_states(m, s, e);

    if (rc)
        return rc;
    pthread_rwlock_wrlock(&m->engine_lock);
    for (uint32_t i = 0; i < m->ncpu; i++)
        vcpu_detach(m->vcpus[i]);
    exchange(m, d);
    rc = make(m, to, s, e);
    exchange(m, d);
    if (!rc) {
        unmake(m, m->engine, m->ncpu);
        exchange(m, d);
        m->engine = to;
    }
    for (uint32_t i = 0; i < m->ncpu; i++) {
        /* An interrupt that the old engine has been told of and could not deliver yet is news to the new one. */
        atomic_fetch_and(&m->vcpus[i]->events, ~(uint32_t)VCPU_EV_FLUSH);
        atomic_store(&m->vcpus[i]->engine, m->engine);
        vcpu_post(m->vcpus[i], VCPU_EV_INTR);
    }
    pthread_rwlock_unlock(&m->engine_lock);
    return rc ? err_prefix(e, rc, "engine %s", to->name) : 0;
}

static void account(struct machine *m, const char *from, uint64_t ns)
{
    struct change_stats *st = &m->changes;

    st->n++;
    st->stood += ns;
    st->most = MAX(st->most, ns);
    log_msg(m->log, LOG_INFO, "%s: engine %s -> %s; the vCPUs stood for %llu us", m->name, from, m->engine->name,
            (unsigned long long)(ns / 1000));
}

/* Once it is known to run here it is not asked again: the answer may take long, and the loop's thread has timers to
 * serve. */
static int probe(struct machine *m, const struct engine_ops *engine, struct err *e)
{
    uint32_t bit = 1;
    int rc;

    for (const struct engine_ops *const *x = engine_list; *x && *x != engine; x++)
        bit <<= 1;
    if (m->probed & bit)
        return 0;
    rc = engine->probe ? engine->probe(e) : 0;
    if (rc)
        return err_prefix(e, rc, "engine %s", engine->name);
    m->probed |= bit;
    return 0;
}

int machine_set_engine(struct machine *m, const struct engine_ops *engine, struct err *e)
{
    const struct engine_ops *from = m->engine;
    struct cpu_state *states;
    struct data *data;
    uint64_t start;
    int rc;

    if (m->result.end != MACHINE_ALIVE)
        return err_set(e, ESRCH, "the machine has ended");
    if (engine == from)
        return 0;
    if (m->vm.check && !engine->checks)
        return err_set(e, ENOTSUP, "engine %s: does not offer --check", engine->name);
    rc = probe(m, engine, e);
    if (rc)
        return rc;
    states = calloc(m->ncpu, sizeof(*states));
    data = calloc(1, sizeof(*data));
    if (states && data) {
        start = host_now();
        gate_stop(m);
        rc = move(m, engine, states, data, e);
        if (!m->quiesced)
            gate_go(m);
        if (!rc)
            account(m, from->name, host_now() - start);
    } else {
        rc = err_set(e, ENOMEM, "no memory");
    }
    free(states);
    free(data);
    return rc;
}

static const struct engine_ops *after(const struct engine_ops *engine)
{
    const struct engine_ops *const *x = engine_list;

    while (*x != engine)
        x++;
    return x[1] ? x[1] : engine_list[0];
}

int machine_next_engine(struct machine *m, struct err *e)
{
    const struct engine_ops *from = m->engine;
    int rc = err_set(e, ENOTSUP, "there is no engine but %s", from->name);

    for (const struct engine_ops *x = after(from); x != from; x = after(x)) {
        rc = machine_set_engine(m, x, e);
        if (!rc)
            return 0;
    }
    return rc;
}
