#include "strides.h"

#include <stdbool.h>
#include <string.h>

#include "base/util.h"
#include "cpu/state.h"
#include "kit.h"

struct maker {
    uint8_t *p;
    uint64_t seed;
    bool still; /* R9 does not change */
};

static unsigned below(struct maker *m, unsigned n) { return (unsigned)(kit_random(&m->seed) >> 20) % n; }

static void put(struct maker *m, unsigned b) { *m->p++ = (uint8_t)b; }

static void put32(struct maker *m, int32_t v)
{
    memcpy(m->p, &v, sizeof(v));
    m->p += sizeof(v);
}

static unsigned base(struct maker *m) { return (const uint8_t[]){RDI, RSI, R9}[below(m, 3)]; }
static unsigned other(struct maker *m) { return (const uint8_t[]){RAX, RDX, R10, R12, RBP}[below(m, 5)]; }

/* Displacements cluster, so that accesses share lookups. */
static int32_t displacement(struct maker *m)
{
    return below(m, 4) ? (int32_t)below(m, 48) - 24 : (int32_t)below(m, 700) - 350;
}

static void access(struct maker *m)
{
    static const uint8_t ops[] = {0x8b, 0x8b, 0x03, 0x33, 0x3b, 0x89, 0x89, 0x01, 0x31, 0x39, 0x13, 0x1b};
    unsigned r = other(m), b = base(m), op = ops[below(m, ARRAY_LEN(ops))], size = below(m, 4);
    bool index = !below(m, 3);

    if (size == 2)
        put(m, 0x66);
    put(m, 0x40 | (size == 3) << 3 | (r >> 3) << 2 | b >> 3);
    put(m, size ? op : op & ~1u);
    put(m, 0x80 | (r & 7) << 3 | (index ? 4 : b & 7));
    if (index)
        put(m, below(m, 4) << 6 | RBX << 3 | (b & 7));
    put32(m, displacement(m));
}

/* add, sub, lea, inc or dec of a base or the index; or what is no constant change. */
static void change(struct maker *m)
{
    unsigned r = below(m, 4) ? (m->still ? (below(m, 2) ? RDI : RSI) : base(m)) : RBX;
    int32_t by = r == RBX ? (int32_t)below(m, 7) - 3 : below(m, 8) ? (int32_t)below(m, 150) - 70 : (int32_t)below(m, 900) - 400;
    unsigned how = below(m, 8);

    if (how == 7) { /* mov r14, r; mov r, r14 */
        put(m, 0x49 | (r >> 3) << 2);
        put(m, 0x89);
        put(m, 0xc0 | (r & 7) << 3 | (R14 & 7));
        put(m, 0x4c | r >> 3);
        put(m, 0x89);
        put(m, 0xc0 | (R14 & 7) << 3 | (r & 7));
        return;
    }
    put(m, 0x48 | r >> 3 | (how < 2 ? (r >> 3) << 2 : 0));
    if (how < 2) {
        put(m, 0x8d);
        put(m, 0x80 | (r & 7) << 3 | (r & 7));
        put32(m, by);
    } else if (how < 4) {
        put(m, 0xff);
        put(m, 0xc0 | (how & 1) << 3 | (r & 7));
    } else {
        put(m, 0x81);
        put(m, (how & 1 ? 0xe8 : 0xc0) | (r & 7));
        put32(m, by);
    }
}

/* movzx r12d, byte ptr [...], dl or sil, or and r12d, imm; then something by that index. */
static void table(struct maker *m)
{
    unsigned how = below(m, 4), b;

    if (how == 0) {
        b = base(m);
        put(m, 0x44 | b >> 3);
        put(m, 0x0f);
        put(m, 0xb6);
        put(m, 0x80 | (R12 & 7) << 3 | (b & 7));
        put32(m, displacement(m));
    } else if (how == 1) {
        put(m, 0x44);
        put(m, 0x0f);
        put(m, 0xb6);
        put(m, 0xc0 | (R12 & 7) << 3 | (below(m, 2) ? RDX : RSI));
    } else {
        put(m, 0x41);
        put(m, 0x83);
        put(m, 0xe0 | (R12 & 7));
        put(m, below(m, 128));
    }
    for (unsigned n = 1 + below(m, 3); n > 0; n--) {
        b = m->still ? R9 : base(m);
        put(m, 0x4a | b >> 3 | (n & 1) << 2); /* add rax or r8 .. */
        put(m, 0x03);
        put(m, 0x84 | (n & 1 ? R10 & 7 : RDX) << 3);
        put(m, below(m, 4) << 6 | (R12 & 7) << 3 | (b & 7));
        put32(m, displacement(m));
    }
}

/* Flags read and made, the stack, and a branch over what follows it. */
static void something(struct maker *m)
{
    switch (below(m, 5)) {
    case 0: /* adc rax, rdx */
        put(m, 0x48);
        put(m, 0x11);
        put(m, 0xd0);
        break;
    case 1: /* setcc dl */
        put(m, 0x0f);
        put(m, 0x90 | (const uint8_t[]){0, 2, 4, 6, 8, 10, 12, 14}[below(m, 8)]);
        put(m, 0xc2);
        break;
    case 2: { /* push rax; pop rdx, with something between */
        put(m, 0x50);
        access(m);
        put(m, 0x5a);
        break;
    }
    case 3: { /* jcc over an access */
        uint8_t *at;

        put(m, 0x70 | (const uint8_t[]){2, 4, 6, 8, 12}[below(m, 5)]);
        at = m->p++;
        access(m);
        *at = (uint8_t)(m->p - (at + 1));
        break;
    }
    default: /* rol rax, 1 */
        put(m, 0x48);
        put(m, 0xd1);
        put(m, 0xc0);
    }
}

static void body(struct maker *m, unsigned n)
{
    unsigned changes = 1 + below(m, 4);

    while (n-- > 0) {
        unsigned k = below(m, n + 1 + changes + 2);

        if (k < changes) {
            change(m);
            changes--;
        } else if (k < changes + 2) {
            below(m, 2) ? something(m) : table(m);
        } else {
            access(m);
        }
    }
}

static void jnz(struct maker *m, const uint8_t *to)
{
    put(m, 0x0f);
    put(m, 0x85);
    put32(m, (int32_t)(to - (m->p + 4)));
}

size_t strides_make(uint8_t code[STRIDES_BYTES], uint64_t seed)
{
    struct maker m = {.p = code, .seed = seed * 0x9e3779b97f4a7c15ull | 1};
    const uint8_t *begin;

    m.still = below(&m, 2);
    put(&m, 0x48); /* cmp rcx, 1 */
    put(&m, 0x83);
    put(&m, 0xf9);
    put(&m, 1);
    if (below(&m, 2))
        body(&m, 1 + below(&m, 3));
    begin = m.p;
    body(&m, 2 + below(&m, 9));
    put(&m, 0x48); /* dec rcx */
    put(&m, 0xff);
    put(&m, 0xc9);
    jnz(&m, begin);
    if (below(&m, 2))
        return (size_t)(m.p - code);
    /* Again, from behind it. */
    body(&m, 1 + below(&m, 4));
    put(&m, 0xb9); /* mov ecx, 10 */
    put32(&m, 10);
    put(&m, 0x49); /* dec r13 */
    put(&m, 0xff);
    put(&m, 0xcd);
    jnz(&m, begin);
    return (size_t)(m.p - code);
}
