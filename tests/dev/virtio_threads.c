/*
 * A device with a thread of its own, as virtio.h allows it: the thread owns the queues while the
 * device runs, kicks take no lock, interrupts are raised from the thread while the driver masks,
 * unmasks and moves vectors, pauses and resets. Meant for ThreadSanitizer too.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "virtio_driver.h"

#include "base/util.h"

#define QUEUES 2u
#define SIZE 64u
#define ROUNDS 300
#define BATCH 40

struct echo_state {
    struct virtio_state virtio;
};

/* Answers each request with its first bytes, upside down. */
struct echo {
    struct virtio v;
    struct echo_state s;
    pthread_t thread;
    pthread_mutex_t lock; /* of what follows */
    pthread_cond_t changed;
    bool run, busy, quit, work;
};

static void serve(struct echo *e, struct virtq *q)
{
    struct virtq_chain *c;

    do {
        virtq_kicks(q, false);
        while (virtq_pop(q, &c) > 0) {
            uint8_t buf[32];
            size_t n = virtq_read(c, 0, buf, sizeof(buf));

            for (size_t i = 0; i < n; i++)
                buf[i] ^= 0xff;
            virtq_push(q, c, (uint32_t)virtq_write(c, 0, buf, n));
        }
        virtq_notify(q);
    } while (virtq_kicks(q, true));
}

static void *echo_thread(void *arg)
{
    struct echo *e = arg;

    pthread_mutex_lock(&e->lock);
    while (!e->quit) {
        if (!e->run || !e->work) {
            pthread_cond_wait(&e->changed, &e->lock);
            continue;
        }
        e->work = false;
        e->busy = true;
        pthread_mutex_unlock(&e->lock);
        for (unsigned i = 0; i < QUEUES; i++)
            serve(e, &e->v.vq[i]);
        pthread_mutex_lock(&e->lock);
        e->busy = false;
        pthread_cond_broadcast(&e->changed);
    }
    pthread_mutex_unlock(&e->lock);
    return NULL;
}

static void set(struct echo *e, bool *flag, bool to)
{
    pthread_mutex_lock(&e->lock);
    *flag = to;
    e->work |= to;
    pthread_cond_broadcast(&e->changed);
    while (!e->run && e->busy)
        pthread_cond_wait(&e->changed, &e->lock);
    pthread_mutex_unlock(&e->lock);
}

static struct echo *echo_of(struct virtio *v) { return container_of(v, struct echo, v); }

static void echo_start(struct virtio *v) { set(echo_of(v), &echo_of(v)->run, true); }

static void echo_stop(struct virtio *v, enum virtio_stop why)
{
    set(echo_of(v), &echo_of(v)->run, false);
}

static void echo_kick(struct virtio *v, unsigned n)
{
    struct echo *e = echo_of(v);

    pthread_mutex_lock(&e->lock);
    e->work = true;
    pthread_cond_broadcast(&e->changed);
    pthread_mutex_unlock(&e->lock);
}

static const struct virtio_ops echo_ops = {
    .id = VIRTIO_ID_9P,
    .pci_class = 0x0280,
    .start = echo_start,
    .stop = echo_stop,
    .kick = echo_kick,
    .unlocked_kick = true,
};

static int echo_init(struct device *d, const void *cfg, struct err *err)
{
    struct echo *e = container_of(d, struct echo, v.dev);
    const struct virtio_params p = {.ops = &echo_ops,
                                    .slot = *(const struct virtio_slot *)cfg,
                                    .queues = QUEUES,
                                    .queue_size = SIZE};

    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->changed, NULL);
    assert_int_equal(pthread_create(&e->thread, NULL, echo_thread, e), 0);
    return virtio_init(&e->v, &e->s.virtio, &p, err);
}

static void echo_fini(struct device *d)
{
    struct echo *e = container_of(d, struct echo, v.dev);

    set(e, &e->quit, true);
    pthread_join(e->thread, NULL);
    pthread_cond_destroy(&e->changed);
    pthread_mutex_destroy(&e->lock);
    virtio_dev_fini(d);
}

static const struct state_field echo_fields[] = {
    STATE_SUB(struct echo_state, virtio, &virtio_state_desc),
};

static const struct state_desc echo_state_desc = {
    .name = "echo",
    .version = 1,
    .size = sizeof(struct echo_state),
    .fields = echo_fields,
    .nfields = ARRAY_LEN(echo_fields),
};

static const struct device_class echo_class = {
    .name = "echo",
    .size = sizeof(struct echo),
    .init = echo_init,
    .reset = virtio_dev_reset,
    .quiesce = virtio_dev_quiesce,
    .resume = virtio_dev_resume,
    .fini = echo_fini,
    .state = &echo_state_desc,
    .state_off = offsetof(struct echo, s),
};

static int setup(void **state)
{
    struct vdrv *d = malloc(sizeof(*d));
    struct virtio_slot slot;

    vdrv_init(d);
    slot = vdrv_slot(d);
    vdrv_attach(d, &echo_class, &slot);
    *state = d;
    return 0;
}

static int teardown(void **state)
{
    vdrv_fini(*state);
    free(*state);
    return 0;
}

/* A batch on both queues with kicks only where the device asks for them. */
static void traffic(struct vdrv *d, unsigned round)
{
    uint64_t out[BATCH], in[BATCH];
    unsigned added = 0, done = 0;

    while (done < BATCH) {
        struct vdrv_queue *q = &d->q[round % QUEUES];
        uint64_t *cookie;
        uint32_t written;

        if (added < BATCH) {
            struct vdrv_sg sg[2];
            uint64_t at = vdrv_alloc(d, 16, 8);

            sg[0] = (struct vdrv_sg){at, 8};
            sg[1] = (struct vdrv_sg){at + 8, 8};
            out[added] = round * 1000000ull + added;
            in[added] = at + 8;
            memcpy(vdrv_ptr(d, at), &out[added], 8);
            if (vdrv_add(q, sg, 1, 1, &out[added]) >= 0) {
                added++;
                if (vdrv_kick_wanted(q))
                    vdrv_kick(q);
                continue;
            }
        }
        cookie = vdrv_wait(q, &written);
        assert_int_equal(written, 8);
        uint64_t answer, want = ~*cookie;
        memcpy(&answer, vdrv_ptr(d, in[cookie - out]), 8);
        assert_true(answer == want);
        done++;
    }
}

static void one_way(struct vdrv *d, uint64_t features)
{
    uint64_t free = d->free;

    for (unsigned round = 0; round < ROUNDS; round++) {
        if (round % 20 == 0) {
            d->free = free;
            vdrv_start(d, features, QUEUES, SIZE);
        }
        traffic(d, round);
        switch (round % 10) {
        case 0:
            vdrv_write(d, d->msix + 12, 4, 1);
            break;
        case 2:
            vdrv_write(d, d->msix + 12, 4, 0);
            break;
        case 3:
            vdrv_set(d, VC_QUEUE_SELECT, 2, 1);
            vdrv_set(d, VC_QUEUE_VECTOR, 2, round & 1);
            break;
        case 5:
            vdrv_msix(d, false);
            break;
        case 6:
            vdrv_read(d, d->isr, 1);
            vdrv_msix(d, true);
            break;
        case 7:
            device_quiesce(d->dev);
            device_resume(d->dev);
            break;
        }
    }
}

static void test_traffic(void **state)
{
    one_way(*state, VDRV_SPLIT);
    one_way(*state, VDRV_EVENT_IDX);
    one_way(*state, VDRV_PACKED);
    one_way(*state, VDRV_PACKED | VDRV_EVENT_IDX);
}

/* Resets and pauses while the thread is at work, and rings that break under it. */
static void test_interruptions(void **state)
{
    struct vdrv *d = *state;
    const uint64_t at = vdrv_alloc(d, 64, 1), free = d->free;
    const struct vdrv_sg sg[] = {{at, 32}, {at + 32, 32}};

    for (unsigned round = 0; round < ROUNDS; round++) {
        d->free = free;
        vdrv_start(d, round & 1 ? VDRV_PACKED : VDRV_SPLIT, QUEUES, SIZE);
        for (unsigned i = 0; i < SIZE / 2; i++) {
            vdrv_add(&d->q[i % QUEUES], sg, 1, 1, d);
            if (i % 8 == 0)
                vdrv_kick(&d->q[i % QUEUES]);
        }
        if (round % 3 == 0) {
            device_quiesce(d->dev);
            device_resume(d->dev);
        } else if (round % 3 == 1) { /* descriptors of nothing, where the thread is about to look */
            memset(vdrv_ptr(d, d->q[0].desc), 0xff, 16 * SIZE);
            vdrv_kick(&d->q[0]);
        }
    }
    vdrv_start(d, 0, QUEUES, SIZE);
    traffic(d, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_traffic, setup, teardown),
        cmocka_unit_test_setup_teardown(test_interruptions, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
