/* Access to guest memory by devices: bounds, holes, ROM, and the marks it leaves. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "mem/physmap.h"

/* 0x0000 RAM a, 4 pages; 0x4000 RAM b, 2 pages; 0x6000 hole; 0x8000 ROM, 2 pages; 0xa000 RAM of one
 * page with 16 bytes of I/O at 0xa100. */
struct fixture {
    struct physmap *m;
    struct p2m *p;
    struct ram *a, *b, *rom, *c;
    unsigned code_writes;
    uint64_t code_gpa, code_len;
};

static void on_code_write(void *arg, uint64_t gpa, uint64_t len)
{
    struct fixture *f = arg;

    f->code_writes++;
    f->code_gpa = gpa;
    f->code_len = len;
}

static void add(struct fixture *f, enum region_kind kind, uint64_t base, uint64_t size,
                struct ram *ram, int prio)
{
    assert_non_null(physmap_add(
        f->m,
        &(struct region){
            .name = "r", .kind = kind, .base = base, .size = size, .ram = ram, .prio = prio},
        NULL));
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    uint64_t bits;

    assert_int_equal(ram_new(&f->a, "a", 0x4000, NULL), 0);
    assert_int_equal(ram_new(&f->b, "b", 0x2000, NULL), 0);
    assert_int_equal(ram_new(&f->rom, "rom", 0x2000, NULL), 0);
    assert_int_equal(ram_new(&f->c, "c", 0x1000, NULL), 0);
    assert_int_equal(physmap_new(&f->m, 36, NULL), 0);
    f->p = physmap_p2m(f->m);
    physmap_set_listener(f->m, &(struct physmap_listener){.code_write = on_code_write, .arg = f});
    add(f, REGION_RAM, 0, 0x4000, f->a, 0);
    add(f, REGION_RAM, 0x4000, 0x2000, f->b, 0);
    add(f, REGION_ROM, 0x8000, 0x2000, f->rom, 0);
    add(f, REGION_RAM, 0xa000, 0x1000, f->c, 0);
    add(f, REGION_IO, 0xa100, 16, NULL, 1);
    p2m_dirty_fetch(f->p, 0, 16, &bits);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    physmap_free(f->m);
    ram_free(f->a);
    ram_free(f->b);
    ram_free(f->rom);
    ram_free(f->c);
    free(f);
    return 0;
}

static uint64_t dirty(struct fixture *f)
{
    uint64_t bits;

    p2m_dirty_fetch(f->p, 0, 16, &bits);
    return bits;
}

static void test_read_write(void **state)
{
    struct fixture *f = *state;
    uint8_t out[0x2000], in[0x2000];

    for (size_t i = 0; i < sizeof(out); i++)
        out[i] = (uint8_t)(i * 7 + 1);
    /* Every length and misalignment around a page border within a, and around a's border to b. */
    for (uint64_t border = 0x2000; border <= 0x4000; border += 0x2000) {
        for (uint64_t before = 0; before < 20; before++) {
            for (uint64_t len = 0; len < 40; len++) {
                assert_int_equal(mem_write(f->m, border - before, out, len), 0);
                memset(in, 0, sizeof(in));
                assert_int_equal(mem_read(f->m, border - before, in, len), 0);
                assert_memory_equal(in, out, len);
                assert_int_equal(in[len], 0);
            }
        }
    }
    assert_int_equal(mem_write(f->m, 0x3800, out, 0x2000), 0);
    assert_memory_equal(f->a->host + 0x3800, out, 0x800);
    assert_memory_equal(f->b->host, out + 0x800, 0x1800);
    assert_int_equal(mem_zero(f->m, 0x3f00, 0x200), 0);
    assert_int_equal(f->a->host[0x3eff], out[0x6ff]);
    assert_int_equal(f->a->host[0x3f00] | f->b->host[0xff], 0);
    assert_int_equal(f->b->host[0x100], out[0x900]);
}

static void test_faults(void **state)
{
    struct fixture *f = *state;
    uint8_t buf[64] = {1};

    memset(f->a->host, 0x77, f->a->size);
    assert_int_equal(mem_read(f->m, 0x6000, buf, 1), -EFAULT);
    assert_int_equal(mem_read(f->m, 0x5fff, buf, 1), 0);
    assert_int_equal(mem_read(f->m, 0x5fff, buf, 2), -EFAULT);
    assert_int_equal(mem_write(f->m, 0x5fff, buf, 2), -EFAULT);
    assert_int_equal(mem_zero(f->m, 0x5ff0, 0x20), -EFAULT);
    assert_int_equal(mem_read(f->m, 0xa0ff, buf, 2), -EFAULT);
    /* Beyond the address space, and sums that wrap. */
    assert_int_equal(mem_read(f->m, BIT(36), buf, 1), -EFAULT);
    assert_int_equal(mem_read(f->m, UINT64_MAX, buf, 2), -EFAULT);
    assert_int_equal(mem_write(f->m, UINT64_MAX - 3, buf, 64), -EFAULT);
    assert_int_equal(mem_zero(f->m, 0, UINT64_MAX), -EFAULT);
    assert_int_equal(mem_zero(f->m, 0x1000, UINT64_MAX - 0xfff), -EFAULT);
    buf[0] = 1;
    assert_int_equal(mem_read(f->m, 0x1000, buf, UINT64_MAX - 0xfff), -EFAULT);
    assert_int_equal(buf[0], 1);
    for (uint64_t i = 0; i < f->a->size; i++)
        assert_int_equal(f->a->host[i], 0x77);
    assert_null(mem_map(f->m, 0x1000, UINT64_MAX - 0xfff, false));
    assert_null(mem_map(f->m, UINT64_MAX, 1, false));
}

static void test_rom(void **state)
{
    struct fixture *f = *state;
    uint8_t in[4];

    assert_int_equal(mem_write(f->m, 0x8000, "abc", 4), -EFAULT);
    assert_int_equal(mem_zero(f->m, 0x8000, 4), -EFAULT);
    assert_int_equal(f->rom->host[0], 0);
    assert_int_equal(mem_write_rom(f->m, 0x8ffe, "abc", 4), 0);
    assert_int_equal(mem_read(f->m, 0x8ffe, in, 4), 0);
    assert_string_equal((char *)in, "abc");
    assert_int_equal(mem_write_rom(f->m, 0x1000, "abc", 4), 0);
    assert_int_equal(mem_write_rom(f->m, 0x6000, "abc", 4), -EFAULT);
    assert_null(mem_map(f->m, 0x8000, 4, true));
    assert_ptr_equal(mem_map(f->m, 0x8001, 4, false), f->rom->host + 1);
    mem_unmap(f->m, 0x8001, 4, false);
}

static void test_dirty(void **state)
{
    struct fixture *f = *state;
    uint8_t buf[0x1002] = {0};
    void *p;

    assert_int_equal(mem_read(f->m, 0, buf, sizeof(buf)), 0);
    assert_int_equal(dirty(f), 0);
    assert_int_equal(mem_write(f->m, 0x1000, buf, 0), 0);
    assert_int_equal(dirty(f), 0);
    assert_int_equal(mem_write(f->m, 0x1fff, buf, 0x1002), 0);
    assert_int_equal(dirty(f), BIT(1) | BIT(2) | BIT(3));
    assert_int_equal(mem_zero(f->m, 0x4000, 1), 0);
    assert_int_equal(dirty(f), BIT(4));
    p = mem_map(f->m, 0xfff, 2, false);
    assert_non_null(p);
    mem_unmap(f->m, 0xfff, 2, false);
    assert_int_equal(dirty(f), 0);
    /* Mapped for writing: dirty at once, and again at the end for what was written since. */
    p = mem_map(f->m, 0xfff, 2, true);
    assert_non_null(p);
    assert_int_equal(dirty(f), BIT(0) | BIT(1));
    assert_int_equal(dirty(f), 0);
    mem_unmap(f->m, 0xfff, 2, true);
    assert_int_equal(dirty(f), BIT(0) | BIT(1));
}

static void test_code(void **state)
{
    struct fixture *f = *state;
    uint8_t buf[0x1800] = {0};

    p2m_set_flags(f->p, 1, P2M_CODE);
    assert_int_equal(mem_write(f->m, 0x2000, buf, 8), 0);
    assert_int_equal(mem_read(f->m, 0x1000, buf, 8), 0);
    assert_int_equal(f->code_writes, 0);
    assert_int_equal(mem_write(f->m, 0x1234, buf, 5), 0);
    assert_int_equal(f->code_writes, 1);
    assert_int_equal(f->code_gpa, 0x1234);
    assert_int_equal(f->code_len, 5);
    /* Only the part in that frame. */
    assert_int_equal(mem_write(f->m, 0xf00, buf, 0x1800), 0);
    assert_int_equal(f->code_writes, 2);
    assert_int_equal(f->code_gpa, 0x1000);
    assert_int_equal(f->code_len, 0x1000);
    assert_int_equal(mem_zero(f->m, 0x1ffe, 4), 0);
    assert_int_equal(f->code_writes, 3);
    assert_int_equal(f->code_gpa, 0x1ffe);
    assert_int_equal(f->code_len, 2);
    assert_non_null(mem_map(f->m, 0x1100, 16, true));
    assert_int_equal(f->code_writes, 4);
    mem_unmap(f->m, 0x1100, 16, true);
    assert_int_equal(f->code_writes, 5);
    assert_int_equal(f->code_gpa, 0x1100);
    assert_int_equal(f->code_len, 16);
    assert_non_null(mem_map(f->m, 0x1100, 16, false));
    mem_unmap(f->m, 0x1100, 16, false);
    assert_int_equal(f->code_writes, 5);
}

static void test_map(void **state)
{
    struct fixture *f = *state;

    assert_ptr_equal(mem_map(f->m, 0x123, 0x3edd, true), f->a->host + 0x123);
    mem_unmap(f->m, 0x123, 0x3edd, true);
    /* a and b are apart in the host. */
    assert_null(mem_map(f->m, 0x3fff, 2, false));
    assert_null(mem_map(f->m, 0x5fff, 2, false));
    assert_null(mem_map(f->m, 0x6000, 1, false));
    assert_null(mem_map(f->m, 0x1000, 0, false));
    /* A shared page must be copied before a store, which is not for a device to do. */
    p2m_set_flags(f->p, 1, P2M_COW);
    assert_null(mem_map(f->m, 0x1000, 4, true));
    assert_non_null(mem_map(f->m, 0x1000, 4, false));
    assert_int_equal(mem_write(f->m, 0x1000, "abc", 4), -EFAULT);
    assert_int_equal(mem_write_rom(f->m, 0x1000, "abc", 4), -EFAULT);
}

/* Memory around a device's registers within one page. */
static void test_shared_frame(void **state)
{
    struct fixture *f = *state;
    uint8_t in[8] = {0};

    assert_int_equal(mem_write(f->m, 0xa0f8, "1234567", 8), 0);
    assert_int_equal(mem_write(f->m, 0xa110, "abcdefg", 8), 0);
    assert_string_equal((char *)f->c->host + 0xf8, "1234567");
    assert_int_equal(mem_read(f->m, 0xa110, in, 8), 0);
    assert_string_equal((char *)in, "abcdefg");
    assert_int_equal(mem_write(f->m, 0xa10f, in, 2), -EFAULT);
    assert_null(mem_map(f->m, 0xa000, 4, true));
}

/* ---- aligned words are never torn, as virtqueue indices need ---- */

#define WORD_ROUNDS 100000

static void *write_words(void *arg)
{
    struct fixture *f = arg;

    for (int i = 0; i < WORD_ROUNDS; i++) {
        uint64_t v = i & 1 ? ~0ull : 0;

        if (mem_write(f->m, 0x2008, &v, 8) || mem_write(f->m, 0x2010, &v, 4) ||
            mem_write(f->m, 0x2014, &v, 2))
            return arg;
    }
    return NULL;
}

static void test_words(void **state)
{
    struct fixture *f = *state;
    pthread_t t;
    void *bad;

    pthread_create(&t, NULL, write_words, f);
    for (int i = 0; i < WORD_ROUNDS; i++) {
        uint64_t v8;
        uint32_t v4;
        uint16_t v2;

        assert_int_equal(mem_read(f->m, 0x2008, &v8, 8), 0);
        assert_int_equal(mem_read(f->m, 0x2010, &v4, 4), 0);
        assert_int_equal(mem_read(f->m, 0x2014, &v2, 2), 0);
        assert_true((v8 == 0 || v8 == ~0ull) && (v4 == 0 || v4 == ~0u) && (!v2 || v2 == 0xffff));
    }
    pthread_join(t, &bad);
    assert_null(bad);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_read_write, setup, teardown),
        cmocka_unit_test_setup_teardown(test_faults, setup, teardown),
        cmocka_unit_test_setup_teardown(test_rom, setup, teardown),
        cmocka_unit_test_setup_teardown(test_dirty, setup, teardown),
        cmocka_unit_test_setup_teardown(test_code, setup, teardown),
        cmocka_unit_test_setup_teardown(test_map, setup, teardown),
        cmocka_unit_test_setup_teardown(test_shared_frame, setup, teardown),
        cmocka_unit_test_setup_teardown(test_words, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
