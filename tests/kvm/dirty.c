/*
 * Dirty pages, as a migration sees them: what was written is reported, once, whatever happens in
 * between. Under KVM each test runs with both ways that KVM has to tell of them; under the other
 * engines once.
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "../interp/guest.h"
#include "engine/change.h"
#include "engine/kvm/kvm.h"

#define PAGES (WORLD_RAM / PAGE_SIZE)
#define FIRST 0x30u /* pages that guests write: all from here on, but the last */
#define STOP GUEST_DATA
/* The smallest that KVM makes, if the processor has no log of its own to be emptied into it. */
#define SMALL_RING 256u
#define ROUNDS 200u

struct fixture {
    struct world *w;
    struct engine_ops ops; /* KVM's, made another way */
    uint64_t bits[PAGES / 64];
    uint64_t copy[PAGES][2]; /* the first words of each page, as last fetched */
};

/* ---- the ways ---- */

static int with_log(struct vm *vm, struct err *e)
{
    return kvm_vm_init_dirty(vm, &kvm_dirty_log, 0, e);
}

static int with_ring(struct vm *vm, struct err *e)
{
    return kvm_vm_init_dirty(vm, &kvm_dirty_ring, 4096, e);
}

static int with_small_ring(struct vm *vm, struct err *e)
{
    return kvm_vm_init_dirty(vm, &kvm_dirty_ring, SMALL_RING, e);
}

static bool is_kvm(const struct world *w) { return strcmp(w->engine->name, "kvm") == 0; }

/* Without a world where the way is not to be had. */
static int setup(void **state, int (*vm_init)(struct vm *vm, struct err *e))
{
    struct fixture *f = calloc(1, sizeof(*f));
    struct err e;

    assert_non_null(f);
    f->w = guest_new(2);
    *state = f;
    if (!vm_init)
        return 0;
    f->ops = kvm_engine;
    f->ops.vm_init = vm_init;
    if (is_kvm(f->w)) {
        int rc = engine_change(&f->w->vm, f->w->engine, &f->ops, &e);

        if (rc == 0) {
            f->w->engine = &f->ops;
            return 0;
        }
        print_message("%s\n", e.msg);
        /* No rings, or none so small where the processor logs pages itself. */
        assert_true(rc == -ENOTSUP || (rc == -EINVAL && vm_init == with_small_ring));
    }
    world_free(f->w);
    f->w = NULL;
    return 0;
}

static int setup_engine(void **state) { return setup(state, NULL); }
static int setup_log(void **state) { return setup(state, with_log); }
static int setup_ring(void **state) { return setup(state, with_ring); }
static int setup_small(void **state) { return setup(state, with_small_ring); }

static int teardown(void **state)
{
    struct fixture *f = *state;

    if (f->w)
        world_free(f->w);
    free(f);
    return 0;
}

/* ---- guests ---- */

/* Adds 1 to a word of each page from `from` up to `to`, in steps of `step` pages. */
static void write_pages(struct fixture *f, unsigned from, unsigned to, unsigned step)
{
    struct cpu_state s;

    /* inc qword [rdi]; add rdi, rdx; cmp rdi, rbx; jb back */
    guest_code(f->w, GUEST_CODE, 0x48, 0xff, 0x07, 0x48, 0x01, 0xd7, 0x48, 0x39, 0xdf, 0x72, 0xf5,
               HLT);
    guest_state(&s);
    s.gpr[RDI] = (uint64_t)from << PAGE_SHIFT;
    s.gpr[RDX] = (uint64_t)step << PAGE_SHIFT;
    s.gpr[RBX] = (uint64_t)to << PAGE_SHIFT;
    assert_int_equal(guest_run(f->w, &s), -1);
}

static void fetch(struct fixture *f)
{
    memset(f->bits, 0, sizeof(f->bits));
    assert_int_equal(f->w->engine->dirty_fetch(&f->w->vm, f->w->ram, f->bits), 0);
}

static bool dirty(const struct fixture *f, unsigned page)
{
    return f->bits[page / 64] >> page % 64 & 1;
}

static unsigned count(const struct fixture *f, unsigned from, unsigned to)
{
    unsigned n = 0;

    for (unsigned i = from; i < to; i++)
        n += dirty(f, i);
    return n;
}

/* ---- tests ---- */

static void test_each(void **state)
{
    struct fixture *f = *state;

    if (!f->w)
        skip();
    write_pages(f, FIRST, PAGES, 1);
    fetch(f);
    assert_int_equal(count(f, FIRST, PAGES), PAGES - FIRST);
    fetch(f);
    assert_int_equal(count(f, 0, PAGES), 0);
    for (unsigned step = 1; step < 40; step += 6) {
        write_pages(f, FIRST, PAGES, step);
        fetch(f);
        for (unsigned i = FIRST; i < PAGES; i++)
            assert_int_equal(dirty(f, i), (i - FIRST) % step == 0);
        fetch(f);
        assert_int_equal(count(f, 0, PAGES), 0);
    }
}

/* Several runs, one fetch. */
static void test_adds_up(void **state)
{
    struct fixture *f = *state;

    if (!f->w)
        skip();
    fetch(f);
    fetch(f);
    write_pages(f, 0x40, 0x50, 2);
    write_pages(f, 0x60, 0x70, 1);
    write_pages(f, 0x40, 0x50, 1);
    world_write(f->w, 0x90000, "device", 6);
    fetch(f);
    assert_int_equal(count(f, FIRST, PAGES), 33);
    assert_true(dirty(f, 0x90));
}

/* A device's registers cover a page for a while: the memory on both sides is the same as before,
 * and as dirty. */
static void test_covered(void **state)
{
    struct fixture *f = *state;
    struct region r = {
        .name = "cover", .kind = REGION_IO, .base = 0x80000, .size = PAGE_SIZE, .prio = 1};
    struct region *cover;
    struct err e;

    if (!f->w)
        skip();
    fetch(f);
    write_pages(f, 0x70, 0x80, 1);
    write_pages(f, 0x81, 0x90, 1);
    cover = physmap_add(f->w->map, &r, &e);
    assert_non_null(cover);
    fetch(f);
    assert_int_equal(count(f, FIRST, PAGES), 31);
    write_pages(f, 0x78, 0x88, 1);
    assert_int_equal(physmap_del(f->w->map, cover, &e), 0);
    write_pages(f, 0xa0, 0xa1, 1);
    fetch(f);
    /* The page that was covered is another one than before, for all that the map knows. */
    assert_int_equal(count(f, 0x78, 0x80), 8);
    assert_int_equal(count(f, 0x81, 0x88), 7);
    assert_int_equal(count(f, FIRST, 0x78) + count(f, 0x88, PAGES), 1);
    assert_true(dirty(f, 0xa0));
    fetch(f);
    assert_int_equal(count(f, 0, PAGES), 0);
}

/* The VM goes on with another engine, and comes back. */
static void test_leaves(void **state)
{
    struct fixture *f = *state;
    const struct engine_ops *engine;
    struct err e;

    if (!f->w)
        skip();
    engine = f->w->engine;
    fetch(f);
    fetch(f);
    write_pages(f, 0x40, 0x50, 1);
    assert_int_equal(engine_change(&f->w->vm, engine, &interp_engine, &e), 0);
    f->w->engine = &interp_engine;
    write_pages(f, 0x60, 0x68, 1);
    fetch(f);
    assert_int_equal(count(f, FIRST, PAGES), 24);
    write_pages(f, 0x70, 0x74, 1);
    assert_int_equal(engine_change(&f->w->vm, &interp_engine, engine, &e), 0);
    f->w->engine = engine;
    write_pages(f, 0x80, 0x83, 1); /* logged from the start */
    fetch(f);
    assert_int_equal(count(f, FIRST, PAGES), 7);
    assert_int_equal(count(f, 0x80, 0x83), 3);
}

/* More pages than a ring has room for. */
static void test_full(void **state)
{
    struct fixture *f = *state;
    const struct kvm_cpu *c;

    if (!f->w)
        skip();
    fetch(f);
    for (unsigned i = 0; i < 3; i++) {
        write_pages(f, FIRST, PAGES, 1);
        fetch(f);
        assert_int_equal(count(f, FIRST, PAGES), PAGES - FIRST);
    }
    c = f->w->vcpu[0].priv;
    assert_true(c->exits[KVM_EXIT_DIRTY_RING_FULL] >= 3);
    fetch(f);
    assert_int_equal(count(f, 0, PAGES), 0);
}

static void *run_vcpu(void *arg)
{
    struct vcpu *v = arg;

    return (void *)(uintptr_t)(world_run(v->vm->owner, v->index, 0) == STOP_HLT);
}

/* Copies what is dirty. */
static unsigned copy(struct fixture *f)
{
    unsigned n = 0;

    fetch(f);
    for (unsigned i = FIRST; i < PAGES - 1; i++) {
        const uint64_t *words = (uint64_t *)(f->w->mem + i * PAGE_SIZE);

        for (unsigned k = 0; k < 2 && dirty(f, i); k++)
            f->copy[i][k] = __atomic_load_n(&words[k], __ATOMIC_ACQUIRE);
        n += dirty(f, i);
    }
    return n;
}

/* Two vCPUs write the same pages, a word each, while pages are fetched and copied: in the end the
 * copy is right. */
static void test_race(void **state)
{
    struct fixture *f = *state;
    pthread_t thread[2];
    struct cpu_state s;
    unsigned n = 0;

    if (!f->w)
        skip();
    /* begin: mov rdi, rsi; again: inc qword [rdi]; add rdi, 0x1000; cmp rdi, rbx; jb again; cmp
     * byte [rdx], 0; je begin */
    guest_code(f->w, GUEST_CODE, 0x48, 0x89, 0xf7, 0x48, 0xff, 0x07, 0x48, 0x81, 0xc7, LE32(0x1000),
               0x48, 0x39, 0xdf, 0x72, 0xf1, 0x80, 0x3a, 0x00, 0x74, 0xe9, HLT);
    for (unsigned i = 0; i < 2; i++) {
        guest_state(&s);
        s.gpr[RSI] = (FIRST << PAGE_SHIFT) + 8 * i;
        s.gpr[RBX] = (PAGES - 1) << PAGE_SHIFT;
        s.gpr[RDX] = STOP;
        assert_int_equal(world_set(f->w, i, &s), 0);
    }
    copy(f);
    for (unsigned i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&thread[i], NULL, run_vcpu, &f->w->vcpu[i]), 0);
    for (unsigned i = 0; i < ROUNDS; i++)
        n += copy(f);
    __atomic_store_n(f->w->mem + STOP, 1, __ATOMIC_RELEASE);
    for (unsigned i = 0; i < 2; i++) {
        void *halted;

        pthread_join(thread[i], &halted);
        assert_non_null(halted);
    }
    n += copy(f);
    assert_true(n >= PAGES - 1 - FIRST);
    for (unsigned i = FIRST; i < PAGES - 1; i++)
        assert_memory_equal(f->copy[i], f->w->mem + i * PAGE_SIZE, sizeof(f->copy[i]));
}

#define TEST(name, way)                                        \
    {                                                          \
#name " (" #way ")", name, setup_##way, teardown, NULL \
    }

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_each, engine),  TEST(test_each, log),       TEST(test_each, ring),
        TEST(test_each, small),   TEST(test_adds_up, engine), TEST(test_adds_up, log),
        TEST(test_adds_up, ring), TEST(test_covered, engine), TEST(test_covered, log),
        TEST(test_covered, ring), TEST(test_covered, small),  TEST(test_leaves, engine),
        TEST(test_leaves, log),   TEST(test_leaves, ring),    TEST(test_full, small),
        TEST(test_race, log),     TEST(test_race, ring),      TEST(test_race, small),
    };

    return cmocka_run_group_tests_name("dirty", tests, NULL, NULL);
}
