/* The state serialiser: identity, the exact format, and files that lie. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "base/state.h"
#include "base/util.h"

static uint64_t next_random(void *arg)
{
    uint64_t *s = arg, z = *s += 0x9e3779b97f4a7c15;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

/* ---- a device state with everything in it ---- */

struct channel {
    uint16_t count;
    uint8_t mode;
    bool gate;
    uint32_t pad;
    uint64_t deadline;
};

struct chip {
    uint8_t index;
    uint8_t pad[3];
    uint32_t level;
    uint8_t ram[16];
    uint16_t fifo[4];
    struct channel one;
    struct channel ch[3];
    uint64_t limit;
    bool flags[8];
};

static const struct state_field channel_fields[] = {
    STATE_FIELD(struct channel, count),
    STATE_FIELD_MAX(struct channel, mode, 5),
    STATE_FIELD(struct channel, gate),
    {.name = "pad",
     .off = offsetof(struct channel, pad),
     .size = 1,
     .count = 4,
     .kind = STATE_PADDING},
    STATE_FIELD(struct channel, deadline),
};

static const struct state_desc channel_desc = {
    .name = "channel",
    .size = sizeof(struct channel),
    .fields = channel_fields,
    .nfields = ARRAY_LEN(channel_fields),
};

static const struct state_field chip_fields[] = {
    STATE_FIELD_MAX(struct chip, index, 15),
    STATE_PAD(struct chip, pad),
    STATE_FIELD(struct chip, level),
    STATE_ARRAY(struct chip, ram),
    STATE_ARRAY_MAX(struct chip, fifo, 1000),
    STATE_SUB(struct chip, one, &channel_desc),
    STATE_SUBARRAY(struct chip, ch, &channel_desc),
    STATE_FIELD_MAX(struct chip, limit, UINT64_MAX),
    STATE_ARRAY(struct chip, flags),
};

/* level counts what is in the fifo, say. */
static int chip_validate(const void *s, struct err *e)
{
    const struct chip *c = s;

    if (c->level == 0xdeadbeef)
        return err_set(e, EINVAL, "level and fifo disagree");
    return 0;
}

static const struct state_desc chip_desc = {
    .name = "chip",
    .version = 3,
    .size = sizeof(struct chip),
    .fields = chip_fields,
    .nfields = ARRAY_LEN(chip_fields),
    .validate = chip_validate,
};

/* ---- round trips ---- */

static void test_identity(void **state)
{
    uint64_t rng = 1;

    assert_int_equal(state_desc_check(&chip_desc, NULL), 0);
    for (int i = 0; i < 2000; i++) {
        struct sbuf a, b;
        struct chip s, t;
        struct err e = {""};
        size_t used;

        sbuf_init(&a);
        sbuf_init(&b);
        state_randomise(&chip_desc, &s, next_random, &rng);
        assert_true(s.index <= 15 && s.one.mode <= 5 && s.fifo[3] <= 1000);
        assert_int_equal(s.pad[0] | s.pad[1] | s.pad[2], 0);
        memset(&t, 0xaa, sizeof(t));
        assert_int_equal(state_save(&chip_desc, &s, &a), 0);
        sbuf_put(&a, "trailing", 8);
        assert_int_equal(state_load(&chip_desc, &t, a.data, a.len, &used, &e), 0);
        assert_int_equal(used, a.len - 8);
        assert_memory_equal(&s, &t, sizeof(s));
        assert_int_equal(state_save(&chip_desc, &t, &b), 0);
        assert_int_equal(b.len, used);
        assert_memory_equal(a.data, b.data, used);
        sbuf_free(&a);
        sbuf_free(&b);
    }
}

/* The format is a promise to old files: byte for byte. */
static void test_golden(void **state)
{
    static const uint8_t want[] = {
        'R', '3', 'S', 'T', 7,   0,   'c', 'h', 'a', 'n', 'n', 'e', 'l', 0,   0,    0,    0,   69,
        0,   0,   0, /* version, length */
        5,   'c', 'o', 'u', 'n', 't', 2,   0,   0,   0,   1,   0,   0,   0,   0x34, 0x12, 4,   'm',
        'o', 'd', 'e', 1,   0,   0,   0,   1,   0,   0,   0,   3,   4,   'g', 'a',  't',  'e', 1,
        0,   0,   0,   1,   0,   0,   0,   1,   8,   'd', 'e', 'a', 'd', 'l', 'i',  'n',  'e', 8,
        0,   0,   0,   1,   0,   0,   0,   8,   7,   6,   5,   4,   3,   2,   1,
    };
    const size_t body = 21;
    struct channel c = {.count = 0x1234, .mode = 3, .gate = true, .deadline = 0x0102030405060708};
    struct sbuf b;
    uint32_t crc, got;

    sbuf_init(&b);
    assert_int_equal(state_save(&channel_desc, &c, &b), 0);
    assert_int_equal(want[17], sizeof(want) - body);
    assert_int_equal(b.len, sizeof(want) + 4);
    assert_memory_equal(b.data, want, sizeof(want));
    crc = (uint32_t)crc32(0, want + body, sizeof(want) - body);
    memcpy(&got, b.data + sizeof(want), 4);
    assert_int_equal(got, crc);
    sbuf_free(&b);
}

/* ---- sections made by hand ---- */

static void put(struct sbuf *b, uint64_t v, size_t size) { sbuf_put(b, &v, size); }

static void put_field(struct sbuf *b, const char *name, uint32_t size, uint32_t count, uint64_t v)
{
    put(b, strlen(name), 1);
    sbuf_put(b, name, strlen(name));
    put(b, size, 4);
    put(b, count, 4);
    put(b, v, MIN(size, 8));
}

static void put_section(struct sbuf *out, const char *name, uint32_t version,
                        const struct sbuf *body)
{
    sbuf_put(out, "R3ST", 4);
    put(out, strlen(name), 2);
    sbuf_put(out, name, strlen(name));
    put(out, version, 4);
    put(out, body->len, 4);
    sbuf_put(out, body->data, body->len);
    put(out, crc32(0, body->data, (uInt)body->len), 4);
}

enum flaw {
    FLAW_NONE,
    FLAW_ORDER, /* fields in another order: allowed */
    FLAW_MISSING,
    FLAW_TWICE,
    FLAW_UNKNOWN,
    FLAW_SIZE,
    FLAW_COUNT,
    FLAW_MAX,
    FLAW_BOOL,
    FLAW_PADDING,
    FLAW_LONG_NAME,
    FLAW_VERSION,
    FLAW_NAME,
    FLAW_TRAILING,
};

static void build(struct sbuf *out, enum flaw flaw)
{
    struct sbuf b;

    sbuf_init(&b);
    if (flaw == FLAW_ORDER)
        put_field(&b, "deadline", 8, 1, 99);
    if (flaw == FLAW_TWICE)
        put_field(&b, "count", 2, 1, 7);
    if (flaw != FLAW_MISSING)
        put_field(&b, "count", flaw == FLAW_SIZE ? 4 : 2, flaw == FLAW_COUNT ? 2 : 1, 7);
    put_field(&b, "mode", 1, 1, flaw == FLAW_MAX ? 6 : 5);
    put_field(&b, "gate", 1, 1, flaw == FLAW_BOOL ? 2 : 1);
    if (flaw == FLAW_UNKNOWN)
        put_field(&b, "colour", 1, 1, 1);
    if (flaw == FLAW_PADDING)
        put_field(&b, "pad", 1, 4, 1);
    if (flaw != FLAW_ORDER)
        put_field(&b, "deadline", 8, 1, 99);
    if (flaw == FLAW_LONG_NAME)
        put(&b, 200, 1);
    if (flaw == FLAW_TRAILING)
        put(&b, 0, 1);
    put_section(out, flaw == FLAW_NAME ? "chanel" : "channel", flaw == FLAW_VERSION ? 1 : 0, &b);
    sbuf_free(&b);
}

static void test_flaws(void **state)
{
    static const struct {
        enum flaw flaw;
        const char *text;
    } cases[] = {
        {FLAW_MISSING, "count: missing"},
        {FLAW_TWICE, "count: there twice"},
        {FLAW_UNKNOWN, "colour"},
        {FLAW_SIZE, "4 bytes"},
        {FLAW_COUNT, "2 elements"},
        {FLAW_MAX, "mode: 6 is more than 5"},
        {FLAW_BOOL, "gate: 2"},
        {FLAW_PADDING, "pad"},
        {FLAW_LONG_NAME, "cut short"},
        {FLAW_VERSION, "version 1"},
        {FLAW_NAME, "chanel"},
        {FLAW_TRAILING, "unknown field"},
    };
    struct channel c, before;
    struct err e;
    size_t used;

    for (enum flaw ok = FLAW_NONE; ok <= FLAW_ORDER; ok++) {
        struct sbuf b;

        sbuf_init(&b);
        build(&b, ok);
        assert_int_equal(state_load(&channel_desc, &c, b.data, b.len, &used, &e), 0);
        assert_int_equal(used, b.len);
        assert_true(c.count == 7 && c.mode == 5 && c.gate && c.deadline == 99 && c.pad == 0);
        sbuf_free(&b);
    }
    before = c;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct sbuf b;

        sbuf_init(&b);
        build(&b, cases[i].flaw);
        used = 12345;
        e.msg[0] = '\0';
        assert_int_equal(state_load(&channel_desc, &c, b.data, b.len, &used, &e), -EINVAL);
        if (!strstr(e.msg, cases[i].text))
            fail_msg("'%s' does not say '%s'", e.msg, cases[i].text);
        assert_memory_equal(&c, &before, sizeof(c));
        assert_int_equal(used, 12345);
        sbuf_free(&b);
    }
}

static void test_validate(void **state)
{
    struct chip s, t;
    uint64_t rng = 3;
    struct sbuf b;
    struct err e;
    size_t used;

    sbuf_init(&b);
    state_randomise(&chip_desc, &s, next_random, &rng);
    t = s;
    s.level = 0xdeadbeef;
    assert_int_equal(state_save(&chip_desc, &s, &b), 0);
    assert_int_equal(state_load(&chip_desc, &t, b.data, b.len, &used, &e), -EINVAL);
    assert_non_null(strstr(e.msg, "disagree"));
    assert_true(t.level != 0xdeadbeef);
    sbuf_free(&b);
}

/* ---- mutations ---- */

/* A copy on the heap of exactly len bytes, so that a sanitizer sees any read beyond it. */
static int load_exact(struct chip *s, const uint8_t *data, size_t len, size_t *used)
{
    uint8_t *p = malloc(MAX(len, 1));
    struct err e = {""};
    int rc;

    memcpy(p, data, len);
    rc = state_load(&chip_desc, s, p, len, used, &e);
    if (rc)
        assert_true(e.msg[0] != '\0');
    free(p);
    return rc;
}

/* Whatever was accepted obeys the description. */
static void check_loaded(const struct chip *s)
{
    const struct channel *ch[] = {&s->one, &s->ch[0], &s->ch[1], &s->ch[2]};
    const uint8_t *raw = (const uint8_t *)s;

    assert_true(s->index <= 15);
    assert_int_equal(s->pad[0] | s->pad[1] | s->pad[2], 0);
    for (int i = 0; i < 4; i++) {
        assert_true(s->fifo[i] <= 1000);
        assert_true(ch[i]->mode <= 5);
        assert_true(*(const uint8_t *)&ch[i]->gate <= 1);
        assert_int_equal(ch[i]->pad, 0);
    }
    for (size_t i = 0; i < sizeof(s->flags); i++)
        assert_true(raw[offsetof(struct chip, flags) + i] <= 1);
}

static void fix_crc(uint8_t *data, size_t len)
{
    const size_t body = 4 + 2 + 4 + 4 + 4; /* magic, name "chip", version, length */
    uint32_t n, crc;

    if (len < body)
        return;
    memcpy(&n, data + body - 4, 4);
    if (n > len - body || len - body - n < 4)
        return;
    crc = (uint32_t)crc32(0, data + body, n);
    memcpy(data + body + n, &crc, 4);
}

static void test_truncated(void **state)
{
    struct chip s, t, before;
    uint64_t rng = 5;
    struct sbuf b;
    size_t used;

    sbuf_init(&b);
    state_randomise(&chip_desc, &s, next_random, &rng);
    assert_int_equal(state_save(&chip_desc, &s, &b), 0);
    memset(&t, 0x5a, sizeof(t));
    before = t;
    for (size_t len = 0; len < b.len; len++) {
        assert_int_equal(load_exact(&t, b.data, len, &used), -EINVAL);
        assert_memory_equal(&t, &before, sizeof(t));
    }
    /* Each single bit: the checksum covers the body, the rest is compared. */
    for (size_t bit = 0; bit < 8 * b.len; bit++) {
        b.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
        /* Only an older version is still acceptable. */
        if (load_exact(&t, b.data, b.len, &used) == 0)
            assert_true(bit / 8 >= 10 && bit / 8 < 14);
        else
            assert_memory_equal(&t, &before, sizeof(t));
        t = before;
        b.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    sbuf_free(&b);
}

static void test_fuzz(void **state)
{
    uint64_t rng = 7;
    unsigned accepted = 0, refused = 0;

    for (int i = 0; i < 100000; i++) {
        struct chip s, t, before;
        uint8_t *data;
        struct sbuf b, again;
        size_t len, used, edits;

        sbuf_init(&b);
        state_randomise(&chip_desc, &s, next_random, &rng);
        assert_int_equal(state_save(&chip_desc, &s, &b), 0);
        data = b.data;
        len = b.len;
        edits = next_random(&rng) % 4 + 1;
        while (edits--) {
            uint64_t r = next_random(&rng);
            size_t at = (r >> 8) % len, n = (r >> 40) % 16;

            switch (r & 3) {
            case 0: /* flip a bit */
                data[at] ^= (uint8_t)(1 << (r >> 60 & 7));
                break;
            case 1: /* an interesting byte */
                data[at] = (uint8_t[]){0, 1, 0x7f, 0x80, 0xff}[(r >> 58) % 5];
                break;
            case 2: /* drop some */
                n = MIN(n, len - at);
                memmove(data + at, data + at + n, len - at - n);
                len -= n;
                break;
            default: /* copy a piece elsewhere */
                n = MIN(n, len - at);
                memmove(data + (r >> 20) % (len - n + 1), data + at, n);
                break;
            }
            if (!len)
                break;
        }
        if (next_random(&rng) & 3)
            fix_crc(data, len);
        memset(&t, 0x5a, sizeof(t));
        before = t;
        if (load_exact(&t, data, len, &used)) {
            refused++;
            assert_memory_equal(&t, &before, sizeof(t));
        } else {
            accepted++;
            check_loaded(&t);
            assert_true(used <= len);
            sbuf_init(&again);
            assert_int_equal(state_save(&chip_desc, &t, &again), 0);
            assert_int_equal(load_exact(&before, again.data, again.len, &used), 0);
            assert_memory_equal(&t, &before, sizeof(t));
            sbuf_free(&again);
        }
        sbuf_free(&b);
    }
    /* The fuzzer reaches both the depths and the end of the loader. */
    print_message("%u accepted, %u refused\n", accepted, refused);
    assert_true(accepted > 1000 && refused > 1000);
}

/* ---- the description's own check ---- */

static int check(const struct state_field *f, size_t n, size_t size, struct err *e)
{
    const struct state_desc d = {.name = "x", .size = size, .fields = f, .nfields = n};

    return state_desc_check(&d, e);
}

static void test_desc_check(void **state)
{
    struct state_field f[] = {
        {.name = "a", .off = 0, .size = 4, .count = 1},
        {.name = "b", .off = 4, .size = 2, .count = 2},
    };
    struct err e;

    assert_int_equal(check(f, 2, 8, &e), 0);
    assert_int_equal(check(f, 2, 9, &e), -EINVAL);
    assert_non_null(strstr(e.msg, "byte 8 is in no field"));
    assert_int_equal(check(f, 2, 7, &e), -EINVAL);
    f[1].off = 3;
    assert_int_equal(check(f, 2, 8, &e), -EINVAL);
    assert_non_null(strstr(e.msg, "byte 3"));
    f[1].off = SIZE_MAX - 1;
    assert_int_equal(check(f, 2, 8, &e), -EINVAL);
    f[1].off = 4;
    f[1].count = UINT32_MAX;
    assert_int_equal(check(f, 2, 8, &e), -EINVAL);
    f[1].count = 0;
    assert_int_equal(check(f, 2, 4, &e), -EINVAL);
    f[1].count = 2;
    f[1].max = 65536;
    assert_int_equal(check(f, 2, 8, &e), -EINVAL);
    f[1].max = 65535;
    assert_int_equal(check(f, 2, 8, &e), 0);
    f[1].name = "a";
    assert_int_equal(check(f, 2, 8, &e), -EINVAL);
    f[1].name = "b";
    f[0].size = 3;
    f[1].off = 3;
    assert_int_equal(check(f, 2, 7, &e), -EINVAL);
    f[0] = (struct state_field){
        .name = "s", .size = 4, .count = 1, .kind = STATE_STRUCT, .sub = &channel_desc};
    assert_int_equal(check(f, 1, 4, &e), -EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_identity),   cmocka_unit_test(test_golden),
        cmocka_unit_test(test_flaws),      cmocka_unit_test(test_validate),
        cmocka_unit_test(test_truncated),  cmocka_unit_test(test_fuzz),
        cmocka_unit_test(test_desc_check),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
