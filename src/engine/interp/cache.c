/* The code cache: blocks by guest-physical address and by frame, and killing them. */
#include "engine/interp/cache.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "engine/interp/op.h"

#define ARENA_SIZE (256 * MIB)
/*
 * What blocks and the client's code may take together. A guest that fills this again within two seconds after all was
 * dropped has a working set that deserves more; one that does not for long gets less. What a sweep would keep may be
 * so many parts of eight of that: with more, sweeps would come too often.
 */
#define BUDGET_MIN (80 * MIB)
#define BUDGET_MAX (640 * MIB)
#define BUDGET_KEPT 7
#define BUDGET_GROW_NS (2ull * 1000000000)
#define BUDGET_SHRINK_NS (60ull * 1000000000)
#define HASH_BITS 17
#define PAGE_HASH_BITS 12

struct code_page {
    uint64_t gfn;
    uint64_t granules; /* 64-byte pieces that hold code of some block */
    struct block *blocks;
    struct code_page *next;
};

struct arena {
    uint8_t *base;
    size_t used;
};

/* Of the hash table: the first block of a chain and the last suggested translation, as ref_of has them; 0: none. */
struct slot {
    _Atomic uint32_t block, hint;
};

struct code_cache {
    pthread_mutex_t lock;
    struct vm *vm;
    struct cache_client client;
    struct arena passing, lasting; /* what a sweep takes, and what it leaves */
    size_t budget;
    uint64_t emptied; /* when, in ns of the host's monotonic time; 0: never */
    struct slot hash[1u << HASH_BITS];
    struct code_page *pages[1u << PAGE_HASH_BITS];
};

/* What every op of a dead block becomes. The jump cache may still lead to one: forget that. */
static const struct op *refetch(struct cpu *c, const struct op *o)
{
    uint64_t rip = op_rip(c, o);
    struct jump_entry *j = jump_slot(c->jc, rip);

    c->ninsn += o->cnt - 1u;
    if (j->block && !j->block->live)
        j->key = 0;
    return enter_rip(c, rip);
}

bool cache_op_dead(const struct op *o)
{
    return __atomic_load_n(&o->fn, __ATOMIC_RELAXED) == refetch;
}

static void *arena_alloc(struct arena *a, size_t size, size_t align)
{
    size_t at = ALIGN_UP(a->used, align);

    assert(size <= ARENA_SIZE && at <= ARENA_SIZE - size);
    a->used = at + size;
    return a->base + at;
}

static bool arena_full(const struct arena *a) { return a->used > ARENA_SIZE - BLOCK_MAX_SIZE; }

/* Gives its memory back to the host. */
static void arena_reset(struct arena *a)
{
    madvise(a->base, ALIGN_UP(a->used, PAGE_SIZE), MADV_DONTNEED);
    a->used = 0;
}

int cache_new(struct code_cache **out, struct vm *vm, struct err *e)
{
    struct code_cache *cc = calloc(1, sizeof(*cc));
    uint8_t *base;

    if (!cc)
        return err_set(e, ENOMEM, "out of memory for the code cache");
    base = mmap(NULL, 2 * ARENA_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) {
        free(cc);
        return err_sys(e, "mapping %llu MiB for the code cache", 2 * ARENA_SIZE / MIB);
    }
    cc->passing.base = base;
    cc->lasting.base = base + ARENA_SIZE;
    pthread_mutex_init(&cc->lock, NULL);
    cc->vm = vm;
    cc->budget = BUDGET_MIN;
    *out = cc;
    return 0;
}

/* No frame is known to hold code any more. */
static void forget_frames(struct code_cache *cc)
{
    struct p2m *p2m = physmap_p2m(cc->vm->map);

    for (unsigned h = 0; h < ARRAY_LEN(cc->pages); h++)
        for (struct code_page *p = cc->pages[h]; p; p = p->next)
            p2m_clear_flags(p2m, p->gfn, P2M_CODE);
}

void cache_free(struct code_cache *cc)
{
    if (!cc)
        return;
    forget_frames(cc);
    munmap(cc->passing.base, 2 * ARENA_SIZE);
    pthread_mutex_destroy(&cc->lock);
    free(cc);
}

void cache_lock(struct code_cache *cc) { pthread_mutex_lock(&cc->lock); }
void cache_unlock(struct code_cache *cc) { pthread_mutex_unlock(&cc->lock); }

void cache_attach(struct code_cache *cc, const struct cache_client *client)
{
    cc->client = *client;
}

static size_t client_bytes(const struct code_cache *cc)
{
    return cc->client.bytes ? cc->client.bytes(cc->client.arg) : 0;
}

static bool client_full(const struct code_cache *cc) { return cc->client.full && cc->client.full(cc->client.arg); }

bool cache_full(const struct code_cache *cc)
{
    if (arena_full(&cc->passing) || arena_full(&cc->lasting) || client_full(cc))
        return true;
    return cc->passing.used + cc->lasting.used + client_bytes(cc) > cc->budget;
}

/* How soon it was full again decides how much it may have next. */
static void set_budget(struct code_cache *cc)
{
    struct timespec ts;
    uint64_t now;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    now = (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
    if (cc->emptied && now - cc->emptied < BUDGET_GROW_NS)
        cc->budget = MIN(cc->budget * 2, BUDGET_MAX);
    else if (cc->emptied && now - cc->emptied > BUDGET_SHRINK_NS)
        cc->budget = MAX(cc->budget / 2, BUDGET_MIN);
    cc->emptied = now;
}

static void empty(struct code_cache *cc)
{
    forget_frames(cc);
    memset(cc->hash, 0, sizeof(cc->hash));
    memset(cc->pages, 0, sizeof(cc->pages));
    arena_reset(&cc->passing);
    arena_reset(&cc->lasting);
    set_budget(cc);
    if (cc->client.emptied)
        cc->client.emptied(cc->client.arg);
}

void *cache_alloc(struct code_cache *cc, size_t size, size_t align) { return arena_alloc(&cc->passing, size, align); }

void *cache_alloc_lasting(struct code_cache *cc, size_t size, size_t align)
{
    return arena_alloc(&cc->lasting, size, align);
}

/* Neighbours in a frame are neighbours here: who enters one block will soon look for the next. */
static unsigned hash_of(uint64_t gpa, uint8_t mode)
{
    uint64_t frame = (gpa >> PAGE_SHIFT) * 0x9e3779b97f4a7c15ull >> (64 - HASH_BITS);

    return (frame + ((gpa & PAGE_MASK) >> 4) + mode * 0x1a57u) & ((1u << HASH_BITS) - 1);
}

/* What lies in the arenas, in four bytes. */
#define REF_UNIT 16
_Static_assert(2 * ARENA_SIZE / REF_UNIT < UINT32_MAX, "");

static uint32_t ref_of(const struct code_cache *cc, const void *p)
{
    return p ? (uint32_t)((size_t)((const uint8_t *)p - cc->passing.base) / REF_UNIT) + 1 : 0;
}

static void *from_ref(const struct code_cache *cc, uint32_t ref)
{
    return ref ? cc->passing.base + (size_t)(ref - 1) * REF_UNIT : NULL;
}

static struct block *chain(const struct code_cache *cc, unsigned h)
{
    return from_ref(cc, atomic_load_explicit(&cc->hash[h].block, memory_order_acquire));
}

static void set_chain(struct code_cache *cc, unsigned h, const struct block *b)
{
    atomic_store_explicit(&cc->hash[h].block, ref_of(cc, b), memory_order_release);
}

struct tblock *cache_hint(const struct code_cache *cc, const struct cache_place *p)
{
    return from_ref(cc, atomic_load_explicit(&cc->hash[hash_of(p->gpa, p->mode)].hint, memory_order_acquire));
}

void cache_suggest(struct code_cache *cc, const struct cache_place *p, const struct tblock *t)
{
    atomic_store_explicit(&cc->hash[hash_of(p->gpa, p->mode)].hint, ref_of(cc, t), memory_order_release);
}

struct block *cache_find(struct code_cache *cc, uint64_t gpa, uint8_t mode)
{
    struct block *b = chain(cc, hash_of(gpa, mode));

    while (b && (b->gpa != gpa || b->mode != mode))
        b = __atomic_load_n(&b->hash_next, __ATOMIC_ACQUIRE);
    return b;
}

static struct code_page **page_link(struct code_cache *cc, uint64_t gfn)
{
    struct code_page **pp =
        &cc->pages[(gfn ^ gfn >> PAGE_HASH_BITS) & ((1u << PAGE_HASH_BITS) - 1)];

    while (*pp && (*pp)->gfn != gfn)
        pp = &(*pp)->next;
    return pp;
}

/* Bytes of a frame, inclusive; none if first > last. */
struct extent {
    unsigned first, last;
};

/* The pieces of block b in frame gfn: one at its start, and one of an instruction that crosses the
 * page's end, which may be in the same frame. */
static void block_extents(const struct block *b, uint64_t gfn, struct extent x[2])
{
    unsigned start = b->gpa & PAGE_MASK, end = start + b->bytes - 1;

    x[0] = x[1] = (struct extent){.first = 1, .last = 0};
    if (b->gpa >> PAGE_SHIFT == gfn)
        x[0] = (struct extent){.first = start, .last = MIN(end, (unsigned)PAGE_MASK)};
    if (b->gpa2 >> PAGE_SHIFT == gfn && b->gpa2 != ~0ull && end > PAGE_MASK)
        x[1] = (struct extent){.first = 0, .last = end - (unsigned)PAGE_SIZE};
}

static uint64_t granules_of(struct extent x)
{
    if (x.first > x.last)
        return 0;
    return bits(~0ull, x.last >> 6, x.first >> 6) << (x.first >> 6);
}

static uint64_t block_granules(const struct block *b, uint64_t gfn)
{
    struct extent x[2];

    block_extents(b, gfn, x);
    return granules_of(x[0]) | granules_of(x[1]);
}

static bool block_touched(const struct block *b, uint64_t gfn, struct extent w)
{
    struct extent x[2];

    block_extents(b, gfn, x);
    return (x[0].first <= x[0].last && x[0].first <= w.last && w.first <= x[0].last) ||
           (x[1].first <= x[1].last && x[1].first <= w.last && w.first <= x[1].last);
}

/* A block is in the list of its first frame by page_next[0], and in that of a second one by
 * page_next[1]. */
static struct block **next_in(struct block *b, uint64_t gfn)
{
    return &b->page_next[b->gpa >> PAGE_SHIFT != gfn];
}

static void page_add(struct code_cache *cc, struct block *b, uint64_t gfn)
{
    struct code_page **pp = page_link(cc, gfn);

    if (!*pp) {
        *pp = cache_alloc_lasting(cc, sizeof(**pp), 16);
        **pp = (struct code_page){.gfn = gfn};
    }
    (*pp)->granules |= block_granules(b, gfn);
    *next_in(b, gfn) = (*pp)->blocks;
    (*pp)->blocks = b;
}

void cache_add(struct code_cache *cc, struct block *b)
{
    unsigned h = hash_of(b->gpa, b->mode);

    page_add(cc, b, b->gpa >> PAGE_SHIFT);
    if (b->gpa2 != ~0ull && (b->gpa2 ^ b->gpa) >> PAGE_SHIFT)
        page_add(cc, b, b->gpa2 >> PAGE_SHIFT);
    /* Complete: others may find it now. */
    b->hash_next = chain(cc, h);
    set_chain(cc, h, b);
}

void cache_kill(struct code_cache *cc, struct block *b)
{
    unsigned h = hash_of(b->gpa, b->mode);
    struct block *before = chain(cc, h);

    /* Who is at b goes on from there. */
    if (before == b) {
        set_chain(cc, h, b->hash_next);
    } else {
        while (before && before->hash_next != b)
            before = before->hash_next;
        if (before)
            __atomic_store_n(&before->hash_next, b->hash_next, __ATOMIC_RELEASE);
    }
    __atomic_store_n(&b->live, false, __ATOMIC_RELEASE);
    if (b->t)
        cc->client.killed(cc->client.arg, b->t);
    for (unsigned i = 0; i < b->nops; i++)
        if (b->op[i].exact)
            __atomic_store_n(&b->op[i].fn, refetch, __ATOMIC_RELEASE);
}

/* Kills the page's blocks that w touches. Lock held. */
static void page_kill(struct code_cache *cc, struct code_page *p, struct extent w)
{
    struct block **pp = &p->blocks;

    p->granules = 0;
    while (*pp) {
        struct block *b = *pp;

        if (b->live && block_touched(b, p->gfn, w))
            cache_kill(cc, b);
        if (!b->live) {
            *pp = *next_in(b, p->gfn);
            continue;
        }
        p->granules |= block_granules(b, p->gfn);
        pp = next_in(b, p->gfn);
    }
    if (!p->blocks)
        p2m_clear_flags(physmap_p2m(cc->vm->map), p->gfn, P2M_CODE);
}

void cache_write(struct code_cache *cc, uint64_t gpa, uint64_t len)
{
    while (len) {
        unsigned first = gpa & PAGE_MASK, n = (unsigned)MIN(len, PAGE_SIZE - first);
        struct extent w = {.first = first, .last = first + n - 1};
        struct code_page *p;

        pthread_mutex_lock(&cc->lock);
        p = *page_link(cc, gpa >> PAGE_SHIFT);
        if (p && (p->granules & granules_of(w)))
            page_kill(cc, p, w);
        pthread_mutex_unlock(&cc->lock);
        gpa += n;
        len -= n;
    }
}

void cache_kill_all(struct code_cache *cc)
{
    pthread_mutex_lock(&cc->lock);
    for (unsigned h = 0; h < ARRAY_LEN(cc->pages); h++)
        for (struct code_page *p = cc->pages[h]; p; p = p->next)
            if (p->blocks)
                page_kill(cc, p, (struct extent){.first = 0, .last = PAGE_MASK});
    pthread_mutex_unlock(&cc->lock);
}

/* ---- making room ---- */

static bool passing(const struct code_cache *cc, const struct block *b)
{
    return (size_t)((const uint8_t *)b - cc->passing.base) < ARENA_SIZE;
}

/* The blocks that have translations, by hash_next; the frames' lists are empty then. */
static struct block *take_translated(struct code_cache *cc)
{
    struct block *list = NULL;

    for (unsigned h = 0; h < ARRAY_LEN(cc->pages); h++)
        for (struct code_page *p = cc->pages[h]; p; p = p->next) {
            for (struct block *b = p->blocks, *next; b; b = next) {
                next = *next_in(b, p->gfn);
                if (!b->live || !b->t || b->gpa >> PAGE_SHIFT != p->gfn)
                    continue;
                b->hash_next = list;
                list = b;
            }
        }
    for (unsigned h = 0; h < ARRAY_LEN(cc->pages); h++)
        for (struct code_page *p = cc->pages[h]; p; p = p->next) {
            p->blocks = NULL;
            p->granules = 0;
        }
    return list;
}

#define HEAD_SIZE ALIGN_UP(sizeof(struct block) + sizeof(struct op), BLOCK_ALIGN)

/* Bytes that heads take which a sweep has to move. */
static size_t heads_to_keep(const struct code_cache *cc)
{
    size_t n = 0;

    for (unsigned h = 0; h < ARRAY_LEN(cc->pages); h++)
        for (const struct code_page *p = cc->pages[h]; p; p = p->next)
            for (struct block *b = p->blocks; b; b = *next_in(b, p->gfn))
                n += b->live && b->t && passing(cc, b) && b->gpa >> PAGE_SHIFT == p->gfn;
    return n * HEAD_SIZE;
}

/* The head of b, and what counts its entries, where it may stay. */
static struct block *keep_head(struct code_cache *cc, struct block *b)
{
    struct block *to = cache_alloc_lasting(cc, HEAD_SIZE, BLOCK_ALIGN);

    memcpy(to, b, sizeof(*b) + sizeof(b->op[0]));
    to->nops = 1;
    cc->client.moved(cc->client.arg, to->t, to);
    return to;
}

/* A frame that keeps a block must not lose its flag for a moment: devices look at it. */
static void sweep(struct code_cache *cc)
{
    struct p2m *p2m = physmap_p2m(cc->vm->map);
    struct block *b = take_translated(cc);

    memset(cc->hash, 0, sizeof(cc->hash));
    for (struct block *next; b; b = next) {
        next = b->hash_next;
        if (passing(cc, b))
            b = keep_head(cc, b);
        cache_add(cc, b);
        atomic_store_explicit(&cc->hash[hash_of(b->gpa, b->mode)].hint, ref_of(cc, b->t), memory_order_relaxed);
    }
    for (unsigned h = 0; h < ARRAY_LEN(cc->pages); h++)
        for (struct code_page *p = cc->pages[h]; p; p = p->next)
            if (!p->blocks)
                p2m_clear_flags(p2m, p->gfn, P2M_CODE);
    arena_reset(&cc->passing);
    cc->client.swept(cc->client.arg);
}

void cache_reclaim(struct code_cache *cc)
{
    size_t kept;

    pthread_mutex_lock(&cc->lock);
    kept = cc->lasting.used + BLOCK_ALIGN + heads_to_keep(cc);
    if (cc->client.swept && !client_full(cc) && kept <= ARENA_SIZE - BLOCK_MAX_SIZE &&
        kept + client_bytes(cc) < cc->budget / 8 * BUDGET_KEPT)
        sweep(cc);
    else
        empty(cc);
    pthread_mutex_unlock(&cc->lock);
}
