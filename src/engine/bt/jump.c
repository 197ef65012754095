#include "engine/bt/jump.h"

#include <string.h>
#include <sys/mman.h>

#include "engine/interp/interp.h"

/* none, super and one for each context */
#define TABLES (2 + TLB_CONTEXTS)

/* RIP 0 has index 0, so that entry cannot hold 0 when empty as the rest does. This RIP has another. */
#define EMPTY0 64

_Static_assert(BT_JUMP_SHIFT == 2 && BT_JUMP_BITS == 14, "-EMPTY0 must not have index 0");

static void clear(struct bt_jumps *j)
{
    if (j->nfilled > ARRAY_LEN(j->filled))
        memset(j->e, 0, sizeof(j->e));
    else
        for (uint32_t k = 0; k < j->nfilled; k++)
            j->e[j->filled[k]] = (struct bt_jump){0};
    j->e[0].nrip = EMPTY0;
    j->nfilled = 0;
    memset(j->pages, 0, sizeof(j->pages));
}

static unsigned page_hash(uint64_t la)
{
    return (unsigned)((la >> PAGE_SHIFT) * 0x9e3779b97f4a7c15ull >> 52);
}

static void mark(struct bt_jumps *j, uint64_t la)
{
    unsigned h = page_hash(la);

    j->pages[h / 64] |= BIT(h % 64);
}

static bool marked(const struct bt_jumps *j, uint64_t la)
{
    unsigned h = page_hash(la);

    return j->pages[h / 64] >> (h % 64) & 1;
}

int bt_jumps_init(struct cpu *c, struct err *e)
{
    struct bt_cpu *b = &c->bt;
    struct bt_jumps *j = mmap(NULL, TABLES * sizeof(*j), PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (j == MAP_FAILED)
        return err_sys(e, "memory for a vCPU's jump tables");
    for (unsigned k = 0; k < TABLES; k++)
        j[k].e[0].nrip = EMPTY0;
    b->none = j;
    b->super = j + 1;
    b->user = j + 2;
    memset(b->user_gen, 0, sizeof(b->user_gen));
    b->super_gen = 0;
    atomic_store(&b->jump, b->none);
    return 0;
}

void bt_jumps_fini(struct cpu *c)
{
    if (c->bt.none)
        munmap(c->bt.none, TABLES * sizeof(*c->bt.none));
    c->bt.none = NULL;
}

void bt_jumps_select(struct cpu *c)
{
    struct bt_cpu *b = &c->bt;
    uint64_t gen = c->tlbs.ctx[c->tlbs.cur].gen;
    struct bt_jumps *j = b->none;

    if (c->bits == CPU_64 && !c->step) {
        if (c->cpl == 3) {
            unsigned n = c->tlbs.cur;

            j = &b->user[n];
            if (b->user_gen[n] != gen) {
                b->user_gen[n] = gen;
                b->user_global[n] = false;
                clear(j);
            }
        } else if (c->cpl == 0) {
            if (c->pg.pge)
                gen = c->tlbs.global_gen;
            j = b->super;
            if (b->super_gen != gen) {
                b->super_gen = gen;
                clear(j);
            }
        }
    }
    if (atomic_load_explicit(&b->jump, memory_order_relaxed) != j)
        atomic_store(&b->jump, j);
}

void bt_jumps_add(struct cpu *c, struct tblock *t, bool crosses, bool global)
{
    struct bt_cpu *b = &c->bt;
    struct bt_jumps *j = atomic_load(&b->jump);

    if (j == b->none || (j == b->super && c->pg.pge && !global))
        return;
    if (j != b->super)
        b->user_global[c->tlbs.cur] |= global;
    mark(j, c->s.rip);
    if (crosses)
        mark(j, c->s.rip + PAGE_SIZE);
    if (j->nfilled < ARRAY_LEN(j->filled))
        j->filled[j->nfilled] = (uint16_t)bt_jump_index(c->s.rip);
    if (j->nfilled <= ARRAY_LEN(j->filled))
        j->nfilled++;
    *bt_jump_slot(j, c->s.rip) = (struct bt_jump){.nrip = -c->s.rip, .t = t};
}

/* A page's RIPs have a run of indices, by their offsets in it. */
#define PAGE_RUN (PAGE_SIZE >> BT_JUMP_SHIFT)
_Static_assert(BT_JUMP_ROR >= PAGE_SHIFT && 64 - BT_JUMP_ROR >= BT_JUMP_SHIFT + BT_JUMP_BITS,
               "the rotated offset must not reach the index");

static void drop_page(struct bt_jumps *j, uint64_t page)
{
    unsigned first = bt_jump_index(page);

    for (unsigned k = 0; k <= PAGE_RUN; k++) {
        unsigned n = (first + k) & ((1u << BT_JUMP_BITS) - 1);

        if ((-j->e[n].nrip ^ page) >> PAGE_SHIFT == 0)
            j->e[n].nrip = n ? 0 : EMPTY0;
    }
}

/* The page's code, and that of the page before which may reach into it. */
static void drop(struct bt_jumps *j, uint64_t la)
{
    uint64_t page = la & ~PAGE_MASK;

    if (!marked(j, la))
        return;
    drop_page(j, page);
    drop_page(j, page - PAGE_SIZE);
}

void bt_jumps_forget(struct bt_cpu *b, unsigned ctx, uint64_t la)
{
    drop(&b->user[ctx], la);
    drop(b->super, la);
    for (unsigned k = 0; k < TLB_CONTEXTS; k++)
        if (k != ctx && b->user_global[k])
            b->user_gen[k] = 0;
}

void bt_jumps_clear(struct cpu *c)
{
    memset(c->bt.user_gen, 0, sizeof(c->bt.user_gen));
    c->bt.super_gen = 0;
}
