#include "program.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

static uint64_t rng = 88172645463325252;

void chance_seed(const char *text) { rng = strtoull(text, NULL, 0) * 2 + 0x9e3779b97f4a7c15; }

uint64_t chance_bits(void)
{
    rng ^= rng << 13; /* xorshift64 */
    rng ^= rng >> 7;
    rng ^= rng << 17;
    return rng;
}

uint64_t chance(uint64_t n)
{
    uint64_t bits = chance_bits();

    return n ? bits % n : 0;
}

void die(const char *what, uint64_t v)
{
    fprintf(stderr, "%s: %s (%#llx)\n", program_invocation_short_name, what, (unsigned long long)v);
    exit(1);
}
