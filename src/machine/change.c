/* The machine's part in a change of engine: who else comes across the engine stands or is kept out. Posters of events are
 * engine_change's to wait for; engine_lock keeps out devices' threads that write memory. */
#include "machine/change.h"

#include <errno.h>
#include <time.h>

#include "engine/change.h"
#include "machine/gate.h"
#include "machine/machine.h"

static uint64_t host_now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
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

/* A bit by the engine's place in engine_list; 0 for one that is not in it. */
static uint32_t place(const struct engine_ops *engine)
{
    uint32_t bit = 1;

    for (const struct engine_ops *const *x = engine_list; *x; x++, bit <<= 1)
        if (*x == engine)
            return bit;
    return 0;
}

/* Once it is known to run here it is not asked again: the answer may take long, and the loop's thread has timers to
 * serve. */
static int probe(struct machine *m, const struct engine_ops *engine, struct err *e)
{
    uint32_t bit = place(engine);
    int rc;

    if (m->probed & bit)
        return 0;
    rc = engine->probe ? engine->probe(e) : 0;
    m->missing = rc ? m->missing | bit : m->missing & ~bit;
    m->probed |= rc ? 0 : bit;
    return rc ? err_prefix(e, rc, "engine %s", engine->name) : 0;
}

int machine_set_engine(struct machine *m, const struct engine_ops *engine, struct err *e)
{
    const struct engine_ops *from = m->engine;
    uint64_t start;
    int rc;

    if (m->result.end != MACHINE_ALIVE)
        return err_set(e, ESRCH, "the machine has ended");
    if (engine == from)
        return 0;
    if (m->vm.check)
        return err_set(e, ENOTSUP, "--check is for one engine");
    rc = probe(m, engine, e);
    if (rc)
        return rc;
    start = host_now();
    gate_stop(m);
    pthread_rwlock_wrlock(&m->engine_lock);
    rc = engine_change(&m->vm, from, engine, e);
    if (!rc)
        m->engine = engine;
    pthread_rwlock_unlock(&m->engine_lock);
    if (!m->quiesced)
        gate_go(m);
    if (!rc)
        account(m, from->name, host_now() - start);
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
        if (m->missing & place(x))
            continue;
        rc = machine_set_engine(m, x, e);
        if (!rc)
            return 0;
    }
    return rc;
}
