/* The code area: one memfd mapped writable and executable apart; translations' sites, links and
 * host-fault places. */
#include "engine/bt/tr.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define FAULTS_MAX (1u << 19)

static void *reserve(size_t size)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);

    return p == MAP_FAILED ? NULL : p;
}

static int map_area(struct bt *bt, struct err *e)
{
    int fd = memfd_create("ring3-bt", MFD_CLOEXEC);

    if (fd < 0)
        return err_sys(e, "creating the memory for translated code");
    if (ftruncate(fd, BT_AREA_SIZE) < 0) {
        int rc = err_sys(e, "sizing the memory for translated code");

        close(fd);
        return rc;
    }
    bt->rw = mmap(NULL, BT_AREA_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    bt->rx = mmap(NULL, BT_AREA_SIZE, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
    close(fd);
    if (bt->rw == MAP_FAILED || bt->rx == MAP_FAILED)
        return err_sys(e, "mapping the memory for translated code");
    return 0;
}

int bt_code_new(struct bt **out, struct vm *vm, struct code_cache *cc, struct err *e)
{
    struct bt *bt = calloc(1, sizeof(*bt));
    int rc;

    if (!bt)
        return err_set(e, ENOMEM, "out of memory for the translator");
    bt->vm = vm;
    bt->cache = cc;
    bt->rw = bt->rx = MAP_FAILED;
    rc = map_area(bt, e);
    bt->site = reserve(BT_SITES_MAX * sizeof(*bt->site));
    bt->link = reserve(BT_LINKS_MAX * sizeof(*bt->link));
    bt->fault = reserve(FAULTS_MAX * sizeof(*bt->fault));
    bt->tr = malloc(sizeof(*bt->tr));
    if (!rc && (!bt->tr || !bt->site || !bt->link || !bt->fault))
        rc = err_set(e, ENOMEM, "out of address space for the translator");
    if (rc) {
        bt_code_free(bt);
        return rc;
    }
    bt->e = (struct emit){.start = bt->rw, .p = bt->rw};
    bt_stubs_make(bt);
    bt->first = emit_pos(&bt->e);
    bt->cold = BT_AREA_COLD;
    bt->nlink = 1; /* 0 ends lists */
    *out = bt;
    return 0;
}

void bt_code_free(struct bt *bt)
{
    if (!bt)
        return;
    if (bt->rw != MAP_FAILED)
        munmap(bt->rw, BT_AREA_SIZE);
    if (bt->rx != MAP_FAILED)
        munmap(bt->rx, BT_AREA_SIZE);
    if (bt->site)
        munmap(bt->site, BT_SITES_MAX * sizeof(*bt->site));
    if (bt->link)
        munmap(bt->link, BT_LINKS_MAX * sizeof(*bt->link));
    if (bt->fault)
        munmap(bt->fault, FAULTS_MAX * sizeof(*bt->fault));
    free(bt->tr);
    free(bt);
}

bool bt_code_full(const struct bt *bt)
{
    /* A block has at most a few of each for an instruction. */
    return emit_pos(&bt->e) > BT_AREA_COLD - BT_BLOCK_MAX ||
           bt->cold > BT_AREA_SIZE - BT_BLOCK_MAX ||
           bt->nsite > BT_SITES_MAX - 8 * BLOCK_MAX_INSNS ||
           bt->nlink > BT_LINKS_MAX - 4 * BLOCK_MAX_INSNS ||
           bt->nic > BT_ICS_MAX - 4 * BLOCK_MAX_INSNS ||
           atomic_load_explicit(&bt->nfault, memory_order_relaxed) >
               FAULTS_MAX - 4 * BLOCK_MAX_INSNS;
}

size_t bt_code_bytes(const struct bt *bt)
{
    return emit_pos(&bt->e) + (bt->cold - BT_AREA_COLD) + bt->nsite * sizeof(*bt->site) +
           bt->nlink * sizeof(*bt->link) + bt->nic * sizeof(struct bt_jump) +
           atomic_load_explicit(&bt->nfault, memory_order_relaxed) * sizeof(*bt->fault);
}

/* Gives memory back to the host. */
static void release(struct bt *bt)
{
    uint32_t first = (uint32_t)ALIGN_UP(bt->first, PAGE_SIZE);

    madvise(bt->rw + first, BT_AREA_SIZE - first, MADV_REMOVE);
    madvise(bt->site, BT_SITES_MAX * sizeof(*bt->site), MADV_DONTNEED);
    madvise(bt->link, BT_LINKS_MAX * sizeof(*bt->link), MADV_DONTNEED);
}

void bt_code_reset(struct bt *bt)
{
    release(bt);
    bt->e.p = bt->rw + bt->first;
    bt->cold = BT_AREA_COLD;
    bt->nsite = 0;
    bt->nic = 0;
    bt->nlink = 1;
    atomic_store(&bt->nfault, 0);
    bt->epoch++;
    bt->flushes++;
}

uint32_t bt_site_add(struct bt *bt, const struct bt_site *s)
{
    bt->site[bt->nsite] = *s;
    return bt->nsite++;
}

uint32_t bt_link_add(struct bt *bt, const struct bt_link *l)
{
    bt->link[bt->nlink] = *l;
    return bt->nlink++;
}

/* Others may be running the branch: one aligned store. */
static void patch(struct bt *bt, uint32_t at, uint32_t target)
{
    __atomic_store_n((uint32_t __attribute__((aligned(1))) *)(bt->rw + at), target - (at + 4),
                     __ATOMIC_RELEASE);
}

bool bt_link_fits(const struct bt_link *l, const struct tblock *t)
{
    /* What the source has checked at its entry holds as long as translated code runs. */
    return l->level >= t->level && (l->swapped ? homes_same(l->from, t) : !t->nswap);
}

void bt_link_make(struct bt *bt, uint32_t n, struct tblock *t)
{
    struct bt_link *l = &bt->link[n];

    if (l->to)
        return;
    l->to = t;
    l->next = t->links_in;
    t->links_in = n;
    if (bt_link_fits(l, t) && (!l->lazy || t->given || t->careless))
        patch(bt, l->patch, t->inner[l->flags]);
    else
        patch(bt, l->patch2 ? l->patch2 : l->patch, l->level >= t->level ? t->vat[l->flags] : t->at[l->flags]);
}

void bt_link_far(struct bt *bt, uint32_t n)
{
    struct bt_link *l = &bt->link[n];
    struct emit *e = &bt->e;
    uint32_t at = emit_pos(e), miss;

    if (l->to || l->far || bt_code_full(bt))
        return;
    emit_load_cpu(e, BT_T0, BT_OFF(bt.vpage));
    emit_lea(e, 1, BT_T0, BT_T0, REG_NONE, 0, l->off);
    miss = bt_emit_jump(e, bt->nic, (enum bt_flags)l->flags, false);
    emit_fix_here(e, miss);
    emit_mov_ri32(e, BT_T2, (uint32_t)BT_OFF_IC(bt->nic++));
    emit_mov_ri32(e, BT_T1, BT_FROM_LINK);
    emit_jmp(e, bt->stub.miss[l->flags]);
    l->far = true;
    patch(bt, l->patch2 ? l->patch2 : l->patch, at);
}

static void set_entries(struct tblock *t, const uint8_t *host, const uint8_t *cc)
{
    __atomic_store_n(&t->entry[BT_HOST], host, __ATOMIC_RELEASE);
    __atomic_store_n(&t->entry[BT_CC], cc, __ATOMIC_RELEASE);
}

static void set_dead(const struct bt *bt, struct tblock *t)
{
    set_entries(t, bt_host(bt, bt->stub.dead[BT_HOST]), bt_host(bt, bt->stub.dead[BT_CC]));
}

void bt_inherit(struct bt *bt, struct tblock *old, struct tblock *t)
{
    if (old->live || old->heir)
        return;
    old->heir = t;
    old->heir_next = t->heir_of;
    t->heir_of = old;
    set_entries(old, t->entry[BT_HOST], t->entry[BT_CC]);
}

void bt_kill(struct bt *bt, struct tblock *t)
{
    if (t->versions)
        bt_kill(bt, t->versions);
    t->live = false;
    set_dead(bt, t);
    for (struct tblock *old = t->heir_of; old; old = old->heir_next) {
        set_dead(bt, old);
        old->heir = NULL;
    }
    t->heir_of = NULL;
    for (uint32_t n = t->links_in, next; n; n = next) {
        struct bt_link *l = &bt->link[n];

        next = l->next;
        l->to = NULL;
        patch(bt, l->patch, l->unlinked);
        if (l->patch2)
            patch(bt, l->patch2, l->unlinked2);
    }
    t->links_in = 0;
}

uintptr_t bt_fault_find(const void *arg, uintptr_t pc)
{
    const struct bt *bt = arg;
    uint32_t lo = 0, hi = atomic_load_explicit(&bt->nfault, memory_order_acquire), at;

    if (pc - (uintptr_t)bt->rx >= BT_AREA_SIZE)
        return 0;
    at = (uint32_t)(pc - (uintptr_t)bt->rx);
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;

        if (at < bt->fault[mid].begin)
            hi = mid;
        else if (at >= bt->fault[mid].end)
            lo = mid + 1;
        else
            return (uintptr_t)bt_host(bt, bt->fault[mid].cold);
    }
    return 0;
}
