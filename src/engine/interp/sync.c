/* Stopping the other vCPUs. `place` and `pending` are each other's flags, as in Dekker's algorithm:
 * a vCPU goes deeper and then looks whether a request is pending, a requester makes it pending and
 * then looks where the vCPUs are, all in sequentially consistent order. */
#include "engine/interp/sync.h"

#include "engine/interp/interp.h"

void sync_init(struct sync *s, struct vm *vm)
{
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->changed, NULL);
    atomic_init(&s->pending, 0);
    s->vm = vm;
}

void sync_fini(struct sync *s)
{
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->lock);
}

static void do_work(struct cpu *c)
{
    if (unlikely(atomic_load(&c->sync.work)))
        cpu_sync_work(c, atomic_exchange(&c->sync.work, 0));
}

/* A place less deep may be what a requester waits for. */
static void retreat(struct cpu *c, enum sync_place to)
{
    struct sync *s = &c->shared->sync;

    atomic_store(&c->sync.place, to);
    if (likely(!atomic_load(&s->pending)))
        return;
    pthread_mutex_lock(&s->lock);
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

void sync_leave(struct cpu *c) { retreat(c, SYNC_OUTSIDE); }
void sync_pause(struct cpu *c) { retreat(c, SYNC_WORLD); }

void sync_enter(struct cpu *c)
{
    struct sync *s = &c->shared->sync;

    atomic_store(&c->sync.place, SYNC_RUNNING);
    while (unlikely(atomic_load(&s->pending))) {
        pthread_mutex_lock(&s->lock);
        atomic_store(&c->sync.place, SYNC_OUTSIDE);
        pthread_cond_broadcast(&s->changed);
        while (atomic_load(&s->pending))
            pthread_cond_wait(&s->changed, &s->lock);
        atomic_store(&c->sync.place, SYNC_RUNNING);
        pthread_mutex_unlock(&s->lock);
    }
    do_work(c);
}

void sync_resume(struct cpu *c)
{
    struct sync *s = &c->shared->sync;

    atomic_store(&c->sync.place, SYNC_RUNNING);
    /* Waits for a request that is being served. One that still waits for others goes on waiting,
     * and for this vCPU too: it cannot be held up here, in the middle of an instruction. */
    if (unlikely(atomic_load(&s->pending))) {
        pthread_mutex_lock(&s->lock);
        pthread_cond_broadcast(&s->changed);
        pthread_mutex_unlock(&s->lock);
    }
    do_work(c);
}

void sync_begin(struct sync *s, enum sync_place deepest)
{
    pthread_mutex_lock(&s->lock);
    atomic_fetch_add(&s->pending, 1);
    for (;;) {
        bool wait = false;

        for (uint32_t i = 0; i < s->vm->nvcpu; i++) {
            struct vcpu *v = s->vm->vcpu[i];
            struct cpu *c = v->priv;

            if (!c || atomic_load(&c->sync.place) <= (int)deepest)
                continue;
            wait = true;
            vcpu_post(v, VCPU_EV_FLUSH);
        }
        if (!wait)
            return;
        pthread_cond_wait(&s->changed, &s->lock);
    }
}

void sync_end(struct sync *s)
{
    atomic_fetch_sub(&s->pending, 1);
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

void sync_post(struct sync *s, unsigned work)
{
    for (uint32_t i = 0; i < s->vm->nvcpu; i++) {
        struct cpu *c = s->vm->vcpu[i]->priv;

        if (c)
            atomic_fetch_or(&c->sync.work, work);
    }
}
