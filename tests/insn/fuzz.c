/*
 * insn_decode() against Zydis on random bytes and on encodings made from the table's rows.
 *   fuzz                      the fixed seeds of the test suite
 *   fuzz CASES [SEED]         by hand: that many cases, every kind of difference once
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "gen.h"
#include "oracle.h"

static enum cpu_bits make_case(struct rng *r, uint64_t n, uint8_t code[16])
{
    if (n % 16 == 0) {
        for (unsigned k = 0; k < 16; k++)
            code[k] = (uint8_t)rnd(r);
    } else if (n % 4 == 1) {
        make_from_space(r, code);
    } else {
        make_from_row(r, &insn_table[below(r, (unsigned)insn_table_len)], code);
    }
    return (enum cpu_bits)(below(r, 4) % 3 == 0 ? CPU_64 : below(r, 2));
}

static void print_case(const uint8_t code[16], enum cpu_bits bits, const char *msg)
{
    printf("%u bits:", 16u << bits);
    for (unsigned k = 0; k < 16; k++)
        printf(" %02x", code[k]);
    printf("  %s\n", msg);
}

static unsigned fuzz(uint64_t cases, uint64_t seed, bool *row_seen, unsigned max_print)
{
    struct oracle o;
    struct rng r = {seed};
    unsigned bad = 0;

    oracle_init(&o);
    for (uint64_t n = 0; n < cases; n++) {
        uint8_t code[16];
        char msg[256];
        enum cpu_bits bits = make_case(&r, n, code);
        if (!oracle_compare(&o, code, bits, row_seen, msg, sizeof(msg)) && bad++ < max_print)
            print_case(code, bits, msg);
    }
    printf("seed %llu: %llu cases, %llu accepted, %llu rejected, %u differences\n",
           (unsigned long long)seed, (unsigned long long)cases, (unsigned long long)o.accepted,
           (unsigned long long)o.rejected, bad);
    return bad;
}

static void test_zydis(void **state)
{
    bool *seen = calloc(insn_table_len, sizeof(*seen));
    unsigned missing = 0;

    assert_non_null(seen);
    for (uint64_t seed = 1; seed <= 4; seed++)
        assert_int_equal(fuzz(1000000, seed, seen, 20), 0);
    for (size_t k = 0; k < insn_table_len; k++) {
        if (!seen[k]) {
            printf("row %zu (%s %x) never reached\n", k, insn_table[k].mnemonic,
                   insn_table[k].enc[3]);
            missing++;
        }
    }
    free(seen);
    assert_int_equal(missing, 0);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_zydis)};

    if (argc > 1) {
        bool *seen = calloc(insn_table_len, sizeof(*seen));
        if (!seen)
            return EXIT_FAILURE;
        unsigned bad =
            fuzz(strtoull(argv[1], NULL, 0), argc > 2 ? strtoull(argv[2], NULL, 0) : 1, seen, 1000);
        free(seen);
        return bad ? EXIT_FAILURE : EXIT_SUCCESS;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
