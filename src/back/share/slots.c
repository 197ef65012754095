#include "back/share/slots.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

static uint64_t number(uint32_t i, uint32_t gen) { return (uint64_t)gen << 32 | (i + 1u); }

static int reserve(struct slots *s, uint32_t cap)
{
    if (cap <= s->cap)
        return 0;
    cap = MAX(MAX(cap, s->cap * 2), 64u);

    struct slot *v = realloc(s->v, cap * sizeof(*v));

    if (!v)
        return -ENOMEM;
    memset(v + s->cap, 0, (cap - s->cap) * sizeof(*v));
    s->v = v;
    s->cap = cap;
    return 0;
}

uint64_t slots_add(struct slots *s, void *p)
{
    uint32_t i;

    if (s->free_first) {
        i = s->free_first - 1;
        s->free_first = s->v[i].next;
    } else {
        if (s->n >= UINT32_MAX / 2 || reserve(s, s->n + 1))
            return 0;
        i = s->n++;
        s->v[i].gen = s->floor;
    }
    s->v[i].p = p;
    s->used++;
    return number(i, s->v[i].gen);
}

int slots_add_at(struct slots *s, uint64_t id, uint32_t limit, void *p)
{
    uint32_t i = (uint32_t)id - 1;

    if ((uint32_t)id == 0 || i >= limit || (i < s->n && s->v[i].p))
        return -EINVAL;
    if (reserve(s, i + 1))
        return -ENOMEM;
    s->n = MAX(s->n, i + 1);
    s->v[i] = (struct slot){.p = p, .gen = (uint32_t)(id >> 32)};
    s->used++;
    return 0;
}

uint32_t slots_fresh(const struct slots *s)
{
    uint32_t gen = s->floor;

    for (uint32_t i = 0; i < s->n; i++)
        gen = MAX(gen, s->v[i].gen);
    return gen + 1;
}

void slots_relink(struct slots *s, uint32_t floor)
{
    s->free_first = 0;
    s->floor = floor;
    for (uint32_t i = s->n; i-- > 0;) {
        if (s->v[i].p)
            continue;
        s->v[i].gen = floor;
        s->v[i].next = s->free_first;
        s->free_first = i + 1;
    }
}

void *slots_get(const struct slots *s, uint64_t id)
{
    uint32_t i = (uint32_t)id - 1;

    return (uint32_t)id && i < s->n && s->v[i].gen == id >> 32 ? s->v[i].p : NULL;
}

void slots_del(struct slots *s, uint64_t id)
{
    uint32_t i = (uint32_t)id - 1;

    assert(slots_get(s, id));
    s->v[i] = (struct slot){.gen = s->v[i].gen + 1, .next = s->free_first};
    s->free_first = i + 1;
    s->used--;
}

void slots_trim(struct slots *s, uint32_t keep)
{
    assert(s->used <= keep && keep <= s->n);
    if (s->n > keep)
        memset(s->v + keep, 0, (s->n - keep) * sizeof(*s->v));
    s->n = keep;
    slots_relink(s, 0);
}

void slots_free(struct slots *s)
{
    free(s->v);
    memset(s, 0, sizeof(*s));
}
