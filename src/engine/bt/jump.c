#include "engine/bt/jump.h"

#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>

#include "engine/bt/returns.h"
#include "engine/interp/interp.h"

/* Never the same twice (splitmix64), and not to be guessed. */
static uint64_t new_bias(struct bt_cpu *b)
{
    uint64_t z = b->seed += 0x9e3779b97f4a7c15ull;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

/* Nothing that the table held is valid any more, nor what inline caches have from it. */
static void renew(struct bt_cpu *b, struct bt_jumps *j)
{
    j->bias = new_bias(b);
    j->global = false;
    memset(j->pages, 0, sizeof(j->pages));
}

/* ---- which pages have code in a table ---- */

#define PAGE_HASH_BITS 14
_Static_assert(1u << PAGE_HASH_BITS == BT_PAGE_BITS, "");

static unsigned page_hash(uint64_t la, unsigned n)
{
    uint64_t h = (la >> PAGE_SHIFT) * 0x9e3779b97f4a7c15ull;

    return h >> (64 - (n + 1) * PAGE_HASH_BITS) & (BT_PAGE_BITS - 1);
}

static void mark(struct bt_jumps *j, uint64_t la)
{
    for (unsigned n = 0; n < 2; n++)
        j->pages[page_hash(la, n) / 64] |= BIT(page_hash(la, n) % 64);
}

static bool marked(const struct bt_jumps *j, uint64_t la)
{
    unsigned a = page_hash(la, 0), b = page_hash(la, 1);

    return j->pages[a / 64] >> (a % 64) & j->pages[b / 64] >> (b % 64) & 1;
}

/* ---- the tables ---- */

#define TABLES_BYTES (BT_JUMP_TABLES * sizeof(struct bt_jumps))

int bt_jumps_init(struct cpu *c, struct err *e)
{
    struct bt_cpu *b = &c->bt;
    struct bt_jumps *j = mmap(NULL, TABLES_BYTES, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (j == MAP_FAILED)
        return err_sys(e, "memory for a vCPU's jump tables");
    b->jumps = b->jump = j;
    if (getrandom(&b->seed, sizeof(b->seed), 0) < 0) {
        bt_jumps_fini(c);
        return err_sys(e, "random numbers for a vCPU's jump tables");
    }
    b->nowhere = b->now = new_bias(b);
    atomic_store(&b->bias, b->nowhere);
    return 0;
}

void bt_jumps_fini(struct cpu *c)
{
    if (c->bt.jumps)
        munmap(c->bt.jumps, TABLES_BYTES);
    c->bt.jumps = NULL;
}

void bt_jumps_select(struct cpu *c)
{
    struct bt_cpu *b = &c->bt;
    uint64_t gen = c->tlbs.ctx[c->tlbs.cur].gen;
    struct bt_jumps *j = NULL;

    if (c->bits == CPU_64 && !c->step) {
        if (c->cpl == 3) {
            j = &b->jumps[1 + c->tlbs.cur];
        } else if (c->cpl == 0) {
            j = b->jumps;
            if (c->pg.pge)
                gen = c->tlbs.global_gen;
        }
    }
    b->now = b->nowhere;
    if (j) {
        if (j->gen != gen) {
            j->gen = gen;
            renew(b, j);
        }
        b->jump = j;
        b->now = j->bias;
    }
    if (atomic_load_explicit(&b->bias, memory_order_relaxed) != b->now)
        atomic_store(&b->bias, b->now);
}

struct tblock *bt_jumps_find(const struct cpu *c, uint64_t rip)
{
    const struct bt_jump *e = &c->bt.jump->e[bt_jump_index(rip)];

    return e->nkey == -(rip + c->bt.now) ? e->t : NULL;
}

void bt_jumps_add(struct cpu *c, struct tblock *t, bool crosses, bool global)
{
    struct bt_cpu *b = &c->bt;
    struct bt_jumps *j = b->jump;

    if (b->now == b->nowhere || (j == b->jumps && c->pg.pge && !global))
        return;
    j->global |= global;
    mark(j, c->s.rip);
    if (crosses)
        mark(j, c->s.rip + PAGE_SIZE);
    j->e[bt_jump_index(c->s.rip)] = (struct bt_jump){.nkey = -(c->s.rip + b->now), .t = t};
}

/* The page's code, and that of the page before which reaches into it. */
static void drop(struct bt_cpu *b, struct bt_jumps *j, uint64_t la)
{
    if (marked(j, la))
        renew(b, j);
}

void bt_jumps_forget(struct bt_cpu *b, unsigned ctx, uint64_t la)
{
    drop(b, b->jumps, la);
    drop(b, &b->jumps[1 + ctx], la);
    for (unsigned k = 1; k < BT_JUMP_TABLES; k++)
        if (k != 1 + ctx && b->jumps[k].global)
            b->jumps[k].gen = 0;
}

void bt_jumps_clear(struct cpu *c)
{
    for (unsigned k = 0; k < BT_JUMP_TABLES; k++)
        c->bt.jumps[k].gen = 0;
    c->bt.sp = (void *)c->bt.returns->empty;
}
