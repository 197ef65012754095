/* Small parts of src/machine and src/ctl on their own: the paravirtual clock's pages, option
 * values. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/util.h"
#include "ctl/option.h"
#include "machine/pvclock.h"
#include "mem/ram.h"

#define SYSTEM_TIME 0x4b564d01
#define WALL_CLOCK 0x4b564d00
#define PAGE 0x5000ull

/* As the guest computes it (Linux' pvclock_scale_delta). */
static uint64_t guest_ns(uint64_t ticks, uint32_t mul, int8_t shift)
{
    ticks = shift < 0 ? ticks >> -shift : ticks << shift;
    return (uint64_t)((unsigned __int128)ticks * mul >> 32);
}

static void scale_is_exact_to_a_millionth(void **state)
{
    static const uint64_t khz[] = {1000,    33333,   999999,  1000000, 1000001,  1999999,
                                   2000000, 2000001, 3187200, 5000000, 100000000};

    for (size_t i = 0; i < ARRAY_LEN(khz); i++) {
        uint32_t mul;
        int8_t shift;
        uint64_t ns;

        pvclock_scale(khz[i], &mul, &shift);
        ns = guest_ns(khz[i] * 1000 * 10, mul, shift); /* ten seconds */
        assert_true(ns > 9999990000ull && ns <= 10000000000ull);
    }
}

struct world {
    struct ram *ram;
    struct physmap *map;
    struct clock clock;
    struct pvclock p;
};

static void world_init(struct world *w, uint64_t tsc_khz, uint64_t wall)
{
    struct region r = {.name = "ram", .kind = REGION_RAM, .size = MIB};
    struct err e;

    assert_int_equal(ram_new(&w->ram, "test", MIB, &e), 0);
    assert_int_equal(physmap_new(&w->map, 36, &e), 0);
    r.ram = w->ram;
    assert_non_null(physmap_add(w->map, &r, &e));
    clock_init_stepped(&w->clock, tsc_khz, wall);
    pvclock_init(&w->p, &w->clock, w->map);
}

static void world_fini(struct world *w)
{
    physmap_free(w->map);
    ram_free(w->ram);
}

static uint64_t peek(struct world *w, uint64_t off, unsigned n)
{
    uint64_t v = 0;

    assert_int_equal(mem_read(w->map, PAGE + off, &v, n), 0);
    return v;
}

static uint64_t time_by_page(struct world *w, uint64_t tsc)
{
    return peek(w, 16, 8) +
           guest_ns(tsc - peek(w, 8, 8), (uint32_t)peek(w, 24, 4), (int8_t)peek(w, 28, 1));
}

static void time_page_gives_guest_time(void **state)
{
    struct world w;
    uint64_t offset = 0x123456789a, val;

    world_init(&w, 2500000, 0);
    clock_step(&w.clock, 7000000000);
    assert_int_equal(pvclock_wrmsr(&w.p, SYSTEM_TIME, PAGE | 1, offset), 0);
    assert_int_equal(peek(&w, 0, 4), 2);
    assert_int_equal(peek(&w, 29, 1) & 1, 1);
    clock_step(&w.clock, 3000000000);
    assert_in_range(time_by_page(&w, clock_tsc(&w.clock) + offset), 9999999990, 10000000000);

    pvclock_update(&w.p, 0);
    assert_int_equal(peek(&w, 0, 4), 4);
    assert_in_range(time_by_page(&w, clock_tsc(&w.clock)), 9999999990, 10000000000);
    assert_int_equal(pvclock_rdmsr(&w.p, SYSTEM_TIME, &val), 0);
    assert_int_equal(val, PAGE | 1);

    /* Disabled: the page is left alone. */
    assert_int_equal(pvclock_wrmsr(&w.p, SYSTEM_TIME, PAGE, 0), 0);
    pvclock_update(&w.p, 0);
    assert_int_equal(peek(&w, 0, 4), 4);
    world_fini(&w);
}

static void wall_clock_is_that_of_boot(void **state)
{
    struct world w;

    world_init(&w, 1000000, 1700000000250000000);
    clock_step(&w.clock, 5000000000);
    assert_int_equal(pvclock_wrmsr(&w.p, WALL_CLOCK, PAGE, 0), 0);
    assert_int_equal(peek(&w, 0, 4), 2);
    assert_int_equal(peek(&w, 4, 4), 1700000000);
    assert_int_equal(peek(&w, 8, 4), 250000000);

    /* 0 asks for nothing: the guest's first page stays as it is. */
    static const uint32_t canary = 0x12345678;
    uint32_t word = 0;

    assert_int_equal(mem_write(w.map, 0, &canary, sizeof(canary)), 0);
    assert_int_equal(pvclock_wrmsr(&w.p, WALL_CLOCK, 0, 0), 0);
    assert_int_equal(mem_read(w.map, 0, &word, sizeof(word)), 0);
    assert_int_equal(word, canary);
    world_fini(&w);
}

/* The address is the guest's: anything goes, nothing breaks. */
static void hostile_addresses(void **state)
{
    static const uint64_t bad[] = {MIB | 1, (MIB - 8) | 1, UINT64_MAX, UINT64_MAX - 3,
                                   1ull << 52 | 1};
    struct world w;
    uint64_t val;

    world_init(&w, 1000000, 0);
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        assert_int_equal(pvclock_wrmsr(&w.p, SYSTEM_TIME, bad[i], 0), 0);
        assert_int_equal(pvclock_wrmsr(&w.p, WALL_CLOCK, bad[i], 0), 0);
    }
    assert_int_equal(pvclock_wrmsr(&w.p, 0x4b564d02, 1, 0), -EINVAL);
    assert_int_equal(pvclock_rdmsr(&w.p, 0x13, &val), -EINVAL);
    world_fini(&w);
}

static void state_is_described(void **state)
{
    struct err e = {""};

    if (state_desc_check(&pvclock_state_desc, &e))
        fail_msg("%s", e.msg);
}

static void sizes(void **state)
{
    static const struct {
        const char *text;
        uint64_t bytes; /* UINT64_MAX: refused */
    } cases[] = {
        {"4096", 4096},
        {"64K", 65536},
        {"64k", 65536},
        {"512M", 512 * MIB},
        {"3G", 3 * GIB},
        {"0", 0},
        {"17179869183G", 17179869183 * GIB},
        {"", UINT64_MAX},
        {"M", UINT64_MAX},
        {"1MB", UINT64_MAX},
        {"1 M", UINT64_MAX},
        {" 1", UINT64_MAX},
        {"+1", UINT64_MAX},
        {"-1", UINT64_MAX},
        {"0x10", UINT64_MAX},
        {"1.5G", UINT64_MAX},
        {"17179869184G", UINT64_MAX},
        {"18446744073709551616", UINT64_MAX},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        uint64_t v = 1;
        struct err e = {""};
        int rc = option_size(cases[i].text, &v, &e);

        if (cases[i].bytes == UINT64_MAX ? rc != -EINVAL || !e.msg[0] : rc || v != cases[i].bytes)
            fail_msg("'%s' gives %d, %llu", cases[i].text, rc, (unsigned long long)v);
    }
}

static void seconds(void **state)
{
    static const struct {
        const char *text;
        uint64_t ns; /* 0: refused */
    } cases[] = {
        {"1", 1000000000},
        {"0.5", 500000000},
        {"10.250", 10250000000},
        {"0.000000001", 1},
        {"1000000000", 1000000000000000000},
        {"0", 0},
        {"0.0", 0},
        {"0.0000000001", 0},
        {"", 0},
        {".5", 0},
        {"1.", 0},
        {"1s", 0},
        {"-1", 0},
        {"1e3", 0},
        {"1000000001", 0},
        {"inf", 0},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        uint64_t v = 0;
        struct err e = {""};
        int rc = option_seconds(cases[i].text, &v, &e);

        if (cases[i].ns ? rc || v != cases[i].ns : rc != -EINVAL || !e.msg[0])
            fail_msg("'%s' gives %d, %llu", cases[i].text, rc, (unsigned long long)v);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scale_is_exact_to_a_millionth),
        cmocka_unit_test(time_page_gives_guest_time),
        cmocka_unit_test(wall_clock_is_that_of_boot),
        cmocka_unit_test(hostile_addresses),
        cmocka_unit_test(state_is_described),
        cmocka_unit_test(sizes),
        cmocka_unit_test(seconds),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
