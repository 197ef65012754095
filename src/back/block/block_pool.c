#include "back/block/block_pool.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

/* Enough to keep a fast disk busy; more would only queue in the kernel instead of here. */
#define THREADS_MAX 16u
#define STACK_SIZE (256 * 1024)

struct block_pool {
    void (*finished)(void *arg, struct block_work *w);
    void *arg;
    pthread_mutex_t lock; /* guards what follows, except threads and nthreads */
    pthread_cond_t more;
    struct block_work *head, **tail;
    unsigned idle, queued;
    bool stop;
    pthread_t threads[THREADS_MAX];
    unsigned nthreads;
};

static void *pool_thread(void *arg)
{
    struct block_pool *p = arg;

    pthread_mutex_lock(&p->lock);
    for (;;) {
        struct block_work *w = p->head;

        if (w) {
            p->head = w->next;
            if (!p->head)
                p->tail = &p->head;
            p->queued--;
            pthread_mutex_unlock(&p->lock);
            w->run(w);
            p->finished(p->arg, w);
            pthread_mutex_lock(&p->lock);
        } else if (p->stop) {
            break;
        } else {
            p->idle++;
            pthread_cond_wait(&p->more, &p->lock);
            p->idle--;
        }
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

/* Signals are for the main thread; SIGXFSZ and its like become errors of the call. */
static int start_thread(struct block_pool *p)
{
    pthread_attr_t attr;
    sigset_t all, old;
    int rc;

    if (pthread_attr_init(&attr))
        return -ENOMEM;
    pthread_attr_setstacksize(&attr, STACK_SIZE);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    rc = pthread_create(&p->threads[p->nthreads], &attr, pool_thread, p);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
    if (rc == 0)
        p->nthreads++;
    return -rc;
}

int block_pool_new(struct block_pool **out, void (*finished)(void *arg, struct block_work *w),
                   void *arg, struct err *e)
{
    struct block_pool *p = calloc(1, sizeof(*p));

    if (!p)
        return err_set(e, ENOMEM, "no memory for a pool of threads");
    p->finished = finished;
    p->arg = arg;
    p->tail = &p->head;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->more, NULL);
    *out = p;
    return 0;
}

void block_pool_free(struct block_pool *p)
{
    if (!p)
        return;
    pthread_mutex_lock(&p->lock);
    p->stop = true;
    pthread_cond_broadcast(&p->more);
    pthread_mutex_unlock(&p->lock);
    for (unsigned i = 0; i < p->nthreads; i++)
        pthread_join(p->threads[i], NULL);
    pthread_cond_destroy(&p->more);
    pthread_mutex_destroy(&p->lock);
    free(p);
}

void block_pool_add(struct block_pool *p, struct block_work *w)
{
    bool busy;

    w->next = NULL;
    pthread_mutex_lock(&p->lock);
    busy = p->queued >= p->idle;
    pthread_mutex_unlock(&p->lock);
    if (busy && p->nthreads < THREADS_MAX && start_thread(p) && p->nthreads == 0) {
        w->run(w);
        p->finished(p->arg, w);
        return;
    }
    pthread_mutex_lock(&p->lock);
    *p->tail = w;
    p->tail = &w->next;
    p->queued++;
    if (p->idle)
        pthread_cond_signal(&p->more);
    pthread_mutex_unlock(&p->lock);
}
