/*
 * Regions, the flat view that follows from them, and keeping the p2m in step with it.
 *
 * A frame is in the p2m when one RAM or ROM range covers all of it. Frames that I/O covers in part
 * are left out, so that engines send every access to the bus, which serves the memory bytes
 * of such a frame through mem_read and mem_write; these bytes have no dirty or code tracking.
 *
 * A frame whose host page stays the same keeps its flags over a change of the map. A frame that
 * gets another page starts DIRTY: its content changed for whoever follows the dirty log.
 */
#include "mem/physmap.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

struct entry {
    struct region r;
    struct entry *next_dead; /* deleted, waiting for physmap_reclaim */
};

struct physmap {
    unsigned maxphys;
    pthread_mutex_t lock;   /* guards everything but reads of `view` and p2m */
    struct entry **entries; /* in the order they were added */
    uint64_t *border;       /* scratch, two for each entry there is room for */
    size_t n, cap;
    struct entry *dead;
    struct flat_view *retired;
    /* A stack of views set aside, one per region, so that physmap_del cannot fail: the k-th from
     * the bottom has room for what k - 1 regions need. */
    struct flat_view *spare;
    _Atomic(struct flat_view *) view;
    struct p2m p2m;
    struct physmap_listener listener; /* set before other threads start */
};

/* ---- building a view ---- */

static int compare_u64(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

/* The region that rules at gpa: the highest priority, then the latest. */
static const struct region *winner(const struct physmap *m, uint64_t gpa)
{
    const struct region *best = NULL;

    for (size_t i = 0; i < m->n; i++) {
        const struct region *r = &m->entries[i]->r;

        if (gpa >= r->base && gpa - r->base < r->size && (!best || r->prio >= best->prio))
            best = r;
    }
    return best;
}

static struct flat_view *alloc_view(size_t regions)
{
    size_t max = regions ? 2 * regions - 1 : 0;

    return calloc(1, sizeof(struct flat_view) + max * sizeof(struct flat_range));
}

static void push_view(struct flat_view **list, struct flat_view *v)
{
    v->retired = *list;
    *list = v;
}

static struct flat_view *pop_view(struct flat_view **list)
{
    struct flat_view *v = *list;

    *list = v->retired;
    v->retired = NULL;
    return v;
}

/* Between two neighbouring borders of any regions the winner is constant. */
static void fill_view(struct physmap *m, struct flat_view *v)
{
    uint64_t *border = m->border;
    size_t nb = 0;

    for (size_t i = 0; i < m->n; i++) {
        border[nb++] = m->entries[i]->r.base;
        border[nb++] = m->entries[i]->r.base + m->entries[i]->r.size;
    }
    if (nb)
        qsort(border, nb, sizeof(*border), compare_u64);
    for (size_t i = 0; i + 1 < nb; i++) {
        struct flat_range *last = v->n ? &v->r[v->n - 1] : NULL;
        const struct region *r;

        if (border[i] == border[i + 1])
            continue;
        r = winner(m, border[i]);
        if (!r)
            continue;
        /* There is no gap within a region, so what follows its own range adjoins it. */
        if (last && last->region == r)
            last->end = border[i + 1] - 1;
        else
            v->r[v->n++] = (struct flat_range){.start = border[i],
                                               .end = border[i + 1] - 1,
                                               .kind = r->kind,
                                               .region = r,
                                               .off = border[i] - r->base};
    }
}

const struct flat_range *physmap_find(const struct flat_view *v, uint64_t gpa)
{
    uint32_t lo = 0, hi = v->n;

    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;

        if (gpa > v->r[mid].end)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < v->n && v->r[lo].start <= gpa ? &v->r[lo] : NULL;
}

uint8_t *physmap_host(const struct flat_range *r, uint64_t gpa)
{
    return r->region->ram->host + r->region->ram_off + r->off + (gpa - r->start);
}

/* ---- p2m ---- */

/* What stands behind whole frames from a page-aligned address on. */
struct backing {
    uint8_t *host; /* NULL: not in the p2m */
    bool readonly;
    uint64_t next; /* first frame address at which this answer may end */
};

/* Ranges are few and walked in order: *i is the first range that ends at or after gpa. */
static struct backing backing_at(const struct flat_view *v, uint32_t *i, uint64_t gpa,
                                 uint64_t limit)
{
    struct backing b = {.next = gpa + PAGE_SIZE};
    const struct flat_range *r;
    uint64_t until; /* what is at gpa goes on up to here, exclusive */

    while (*i < v->n && v->r[*i].end < gpa)
        ++*i;
    r = *i < v->n ? &v->r[*i] : NULL;
    if (!r)
        until = limit;
    else
        until = r->start > gpa ? r->start : r->end + 1;
    if (until < b.next)
        return b;
    b.next = ALIGN_DOWN(until, PAGE_SIZE);
    if (r && r->start <= gpa && r->kind != REGION_IO) {
        b.host = physmap_host(r, gpa);
        b.readonly = r->kind == REGION_ROM;
    }
    return b;
}

static void update_p2m(struct physmap *m, const struct flat_view *was, const struct flat_view *is)
{
    uint64_t limit = BIT(m->maxphys), gpa = 0, next;
    uint32_t i = 0, k = 0;

    for (; gpa < limit; gpa = next) {
        struct backing a = backing_at(was, &i, gpa, limit);
        struct backing b = backing_at(is, &k, gpa, limit);
        uint64_t gfn = gpa >> PAGE_SHIFT, n;

        next = MIN(a.next, b.next);
        n = (next - gpa) >> PAGE_SHIFT;
        if (a.host != b.host) {
            if (b.host)
                p2m_map(&m->p2m, gfn, n, b.host, P2M_DIRTY | (b.readonly ? P2M_READONLY : 0));
            else
                p2m_unmap(&m->p2m, gfn, n);
        } else if (b.host && a.readonly != b.readonly) {
            for (; n; n--, gfn++) {
                if (b.readonly)
                    p2m_set_flags(&m->p2m, gfn, P2M_READONLY);
                else
                    p2m_clear_flags(&m->p2m, gfn, P2M_READONLY);
            }
        }
    }
}

/* ---- changes ---- */

/* Makes v the view of the regions as they are now. Lock held. */
static void publish(struct physmap *m, struct flat_view *v)
{
    struct flat_view *was = atomic_load_explicit(&m->view, memory_order_relaxed);

    fill_view(m, v);
    update_p2m(m, was, v);
    atomic_store_explicit(&m->view, v, memory_order_release);
    push_view(&m->retired, was);
    if (m->listener.changed)
        m->listener.changed(m->listener.arg, v);
}

int physmap_new(struct physmap **out, unsigned maxphys, struct err *e)
{
    struct physmap *m;
    int rc;

    if (maxphys < 36 || maxphys > 52)
        return err_set(e, EINVAL, "guest-physical addresses of %u bits: must be 36 to 52", maxphys);
    m = calloc(1, sizeof(*m));
    if (!m)
        return err_set(e, ENOMEM, "no memory for the guest-physical map");
    m->maxphys = maxphys;
    atomic_init(&m->view, alloc_view(0));
    if (!m->view) {
        rc = err_set(e, ENOMEM, "no memory for the guest-physical map");
        goto out_free;
    }
    rc = p2m_init(&m->p2m, maxphys, e);
    if (rc)
        goto out_view;
    pthread_mutex_init(&m->lock, NULL);
    *out = m;
    return 0;

out_view:
    free(m->view);
out_free:
    free(m);
    return rc;
}

static void free_entry(struct entry *en)
{
    if (en->r.io_free)
        en->r.io_free(en->r.io);
    free(en);
}

static void reclaim(struct physmap *m)
{
    while (m->retired)
        free(pop_view(&m->retired));
    while (m->dead) {
        struct entry *en = m->dead;

        m->dead = en->next_dead;
        free_entry(en);
    }
}

void physmap_reclaim(struct physmap *m)
{
    pthread_mutex_lock(&m->lock);
    reclaim(m);
    pthread_mutex_unlock(&m->lock);
}

void physmap_free(struct physmap *m)
{
    if (!m)
        return;
    reclaim(m);
    for (size_t i = 0; i < m->n; i++)
        free_entry(m->entries[i]);
    while (m->spare)
        free(pop_view(&m->spare));
    free(m->entries);
    free(m->border);
    free(m->view);
    p2m_fini(&m->p2m);
    pthread_mutex_destroy(&m->lock);
    free(m);
}

void physmap_set_listener(struct physmap *m, const struct physmap_listener *l)
{
    pthread_mutex_lock(&m->lock);
    m->listener = *l;
    pthread_mutex_unlock(&m->lock);
}

unsigned physmap_width(const struct physmap *m) { return m->maxphys; }

static int check_region(const struct physmap *m, const struct region *r, struct err *e)
{
    uint64_t limit = BIT(m->maxphys);
    unsigned long long base = r->base, size = r->size;

    if (!r->size || r->base >= limit || r->size > limit - r->base)
        return err_set(e, EINVAL, "%s at %#llx, size %#llx: not within %u-bit addresses", r->name,
                       base, size, m->maxphys);
    if (r->kind == REGION_IO)
        return 0;
    if ((r->base | r->size | r->ram_off) & PAGE_MASK)
        return err_set(e, EINVAL, "%s at %#llx, size %#llx: not in whole pages", r->name, base,
                       size);
    if (!r->ram || r->ram_off > r->ram->size || r->size > r->ram->size - r->ram_off)
        return err_set(e, EINVAL, "%s at %#llx, size %#llx: larger than its backing", r->name, base,
                       size);
    return 0;
}

/* Room for one more region. Lock held. */
static int grow(struct physmap *m)
{
    size_t cap = MAX(16, 2 * m->cap);
    struct entry **entries;
    uint64_t *border;

    if (m->n < m->cap)
        return 0;
    entries = realloc(m->entries, cap * sizeof(*entries));
    if (!entries)
        return -ENOMEM;
    m->entries = entries;
    border = realloc(m->border, 2 * cap * sizeof(*border));
    if (!border)
        return -ENOMEM;
    m->border = border;
    m->cap = cap;
    return 0;
}

struct region *physmap_add(struct physmap *m, const struct region *r, struct err *e)
{
    struct flat_view *v = NULL, *spare = NULL;
    struct entry *en;

    if (check_region(m, r, e))
        return NULL;
    en = calloc(1, sizeof(*en));
    pthread_mutex_lock(&m->lock);
    if (!en || grow(m))
        goto nomem;
    v = alloc_view(m->n + 1);
    spare = alloc_view(m->n);
    if (!v || !spare)
        goto nomem;
    push_view(&m->spare, spare);
    en->r = *r;
    m->entries[m->n++] = en;
    publish(m, v);
    pthread_mutex_unlock(&m->lock);
    return &en->r;

nomem:
    pthread_mutex_unlock(&m->lock);
    free(spare);
    free(v);
    free(en);
    err_set(e, ENOMEM, "no memory to map %s", r->name);
    return NULL;
}

int physmap_del(struct physmap *m, struct region *r, struct err *e)
{
    struct entry *en = container_of(r, struct entry, r);
    size_t i = 0;
    int rc = 0;

    pthread_mutex_lock(&m->lock);
    while (i < m->n && m->entries[i] != en)
        i++;
    if (i < m->n) {
        m->n--;
        memmove(&m->entries[i], &m->entries[i + 1], (m->n - i) * sizeof(*m->entries));
        publish(m, pop_view(&m->spare));
        en->next_dead = m->dead;
        m->dead = en;
    } else {
        rc = err_set(e, ENOENT, "no such region in the guest-physical map");
    }
    pthread_mutex_unlock(&m->lock);
    return rc;
}

const struct flat_view *physmap_view(const struct physmap *m)
{
    return atomic_load_explicit(&m->view, memory_order_acquire);
}

struct p2m *physmap_p2m(struct physmap *m) { return &m->p2m; }

void physmap_code_write(const struct physmap *m, uint64_t gpa, uint64_t len)
{
    if (m->listener.code_write)
        m->listener.code_write(m->listener.arg, gpa, len);
}
