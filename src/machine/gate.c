#include "machine/gate.h"

#include "machine/machine.h"

static void gate_set(struct machine *m, enum gate g)
{
    pthread_mutex_lock(&m->lock);
    atomic_store(&m->gate, g);
    pthread_cond_broadcast(&m->changed);
    pthread_mutex_unlock(&m->lock);
}

/* Of those that have no thread yet only the loop's thread knows how many there are. */
void gate_kick(struct machine *m)
{
    for (uint32_t i = 0; i < m->ncpu; i++)
        vcpu_wake(&m->cpu[i], VCPU_EV_KICK);
}

bool gate_pass(struct machine *m)
{
    bool go;

    if (likely(atomic_load(&m->gate) == GATE_OPEN))
        return true;
    pthread_mutex_lock(&m->lock);
    m->nparked++;
    pthread_cond_broadcast(&m->changed);
    while (atomic_load(&m->gate) == GATE_CLOSED)
        pthread_cond_wait(&m->changed, &m->lock);
    m->nparked--;
    go = atomic_load(&m->gate) == GATE_OPEN;
    pthread_mutex_unlock(&m->lock);
    return go;
}

void gate_stop(struct machine *m)
{
    gate_set(m, GATE_CLOSED);
    gate_kick(m);
    pthread_mutex_lock(&m->lock);
    while (m->nparked < m->nstarted)
        pthread_cond_wait(&m->changed, &m->lock);
    pthread_mutex_unlock(&m->lock);
    physmap_reclaim(m->map);
}

void gate_go(struct machine *m)
{
    pthread_mutex_lock(&m->lock);
    if (m->action == 0)
        atomic_store(&m->gate, GATE_OPEN);
    pthread_cond_broadcast(&m->changed);
    pthread_mutex_unlock(&m->lock);
}

void gate_quit(struct machine *m)
{
    gate_set(m, GATE_QUIT);
    gate_kick(m);
}
