/*
 * Build-time program: turns the rows of table-*.h into C source for insn_table, insn_cands and
 * insn_index (see table.h). Refuses tables in which the choice between two rows would depend on
 * their order for any reason but that the first is the more specific one.
 */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "insn/table.h"

struct raw_row {
    const char *name;
    uint16_t id;
    uint32_t opcode;
    uint64_t match, traits;
    uint8_t feature, feature2;
    uint64_t fl;
    uint16_t op[INSN_MAX_OPS];
};

#define CPUF_(f) CPUF_##f
#define CPUF(f) CPUF_(f)
#define I(name, opcode, match, traits, fl, ...) \
    {#name, INSN_##name, opcode, match, traits, CPUF(FEAT), CPUF(FEAT2), fl, {__VA_ARGS__}},
static const struct raw_row rows[] = {
#include "insn/tables.h"
};

static const char *const id_names[] = {
#define X(name) #name,
    INSN_IDS(X)
#undef X
};

static bool spec_uses_modrm(unsigned spec)
{
    switch (SPEC_LOC(spec)) {
    case LOC_E:
    case LOC_M:
    case LOC_G:
    case LOC_S:
    case LOC_C:
    case LOC_D:
    case LOC_STI:
    case LOC_V:
    case LOC_W:
    case LOC_P:
    case LOC_Q:
    case LOC_KG:
    case LOC_KE:
    case LOC_MV:
        return true;
    default:
        return false;
    }
}

static bool spec_uses_vvvv(unsigned spec)
{
    return SPEC_LOC(spec) == LOC_B || SPEC_LOC(spec) == LOC_H || SPEC_LOC(spec) == LOC_KB;
}

static bool row_has_modrm(const struct raw_row *r)
{
    uint64_t fields = (7ull << KEY_REG | 7ull << KEY_RM | 1ull << KEY_MOD3) << 32;
    bool has = (r->match & fields) || (r->traits & AT_NOMOD);

    for (int k = 0; k < INSN_MAX_OPS; k++)
        has |= spec_uses_modrm(r->op[k]);
    return has;
}

static uint32_t row_attr(const struct raw_row *r)
{
    uint64_t t = r->traits;

    if (row_has_modrm(r))
        t |= AT_HASMODRM;
    for (int k = 0; k < INSN_MAX_OPS; k++) {
        if (spec_uses_vvvv(r->op[k]))
            t |= AT_VVVV;
        if (SPEC_LOC(r->op[k]) == LOC_MV)
            t |= AT_VSIB;
    }
    return (uint32_t)(t >> 32);
}

static bool covers(const struct raw_row *r, unsigned space, unsigned map, unsigned op)
{
    unsigned base = r->opcode & 0xff, n = r->opcode & SPAN8 ? 8 : 1;

    return (r->opcode >> 12 & 3) == space && (r->opcode >> 8 & 0xf) == map && op >= base &&
           op < base + n;
}

/* Rows that some encoding fits both of are fine only when the first one asks for strictly more. */
static bool check_pair(const struct raw_row *a, const struct raw_row *b, unsigned op)
{
    uint32_t ma = (uint32_t)(a->match >> 32), mb = (uint32_t)(b->match >> 32);
    uint32_t va = (uint32_t)a->match, vb = (uint32_t)b->match;

    if ((va ^ vb) & ma & mb)
        return true;
    if ((ma & mb) == mb && ma != mb)
        return true;
    fprintf(stderr, "rows %s and %s of opcode %02x overlap\n", a->name, b->name, op);
    return false;
}

static void put_row(const struct raw_row *r)
{
    printf("    { %u, %u, %u, 0x%xu, 0x%x, 0x%x, 0x%x, \"", r->id, r->feature, r->feature2,
           (uint32_t)r->traits, (unsigned)(r->fl & 0xffff), (unsigned)(r->fl >> 16 & 0xffff),
           (unsigned)(r->fl >> 32 & 0xffff));
    for (const char *p = r->name; *p && *p != '_'; p++)
        putchar(tolower((unsigned char)*p));
    printf("\", { 0x%xu, 0x%xu, 0x%xu, 0x%xu }, {", (uint32_t)(r->match >> 32), (uint32_t)r->match,
           row_attr(r), r->opcode);
    for (int k = 0; k < INSN_MAX_OPS; k++)
        printf(" 0x%x,", r->op[k]);
    printf(" } },\n");
}

static bool put_candidates(struct insn_index *ix, unsigned space, unsigned map, unsigned op,
                           unsigned *total)
{
    const struct raw_row *prev[ARRAY_LEN(rows)];
    unsigned n = 0;

    for (unsigned k = 0; k < ARRAY_LEN(rows); k++) {
        const struct raw_row *r = &rows[k];
        if (!covers(r, space, map, op))
            continue;
        for (unsigned j = 0; j < n; j++)
            if (!check_pair(prev[j], r, op))
                return false;
        if (n && row_has_modrm(r) != ix->modrm) {
            fprintf(stderr, "row %s of opcode %02x: ModRM or not?\n", r->name, op);
            return false;
        }
        ix->modrm = row_has_modrm(r);
        prev[n++] = r;
        printf("    { 0x%xu, 0x%xu, %u },\n", (uint32_t)(r->match >> 32), (uint32_t)r->match, k);
    }
    if (n > 255)
        return false;
    ix->first = (uint16_t)*total;
    ix->n = (uint8_t)n;
    ix->sole = n == 1 && !(prev[0]->match >> 32);
    *total += n;
    return true;
}

int main(void)
{
    static struct insn_index index[SPACE_COUNT][MAP_COUNT][256];
    static bool used[INSN_COUNT];
    unsigned total = 0;

    printf("/* Made by mktable.c from table-*.h. */\n#include \"insn/table.h\"\n\n");
    printf("const struct insn_row insn_table[] = {\n");
    for (size_t k = 0; k < ARRAY_LEN(rows); k++) {
        put_row(&rows[k]);
        used[rows[k].id] = true;
    }
    for (unsigned id = 1; id < INSN_COUNT; id++) {
        if (!used[id]) {
            fprintf(stderr, "id %s has no row\n", id_names[id - 1]);
            return EXIT_FAILURE;
        }
    }
    printf("};\nconst size_t insn_table_len = %zu;\n\n", ARRAY_LEN(rows));
    printf("const struct insn_cand insn_cands[] = {\n");
    for (unsigned s = 0; s < SPACE_COUNT; s++)
        for (unsigned m = 0; m < MAP_COUNT; m++)
            for (unsigned op = 0; op < 256; op++)
                if (!put_candidates(&index[s][m][op], s, m, op, &total))
                    return EXIT_FAILURE;
    printf("};\n\nconst struct insn_index insn_index[SPACE_COUNT][MAP_COUNT][256] = {\n");
    for (unsigned s = 0; s < SPACE_COUNT; s++)
        for (unsigned m = 0; m < MAP_COUNT; m++)
            for (unsigned op = 0; op < 256; op++)
                if (index[s][m][op].n)
                    printf("    [%u][%u][%u] = { %u, %u, %d, %d },\n", s, m, op,
                           index[s][m][op].first, index[s][m][op].n, index[s][m][op].modrm,
                           index[s][m][op].sole);
    printf("};\n");
    return EXIT_SUCCESS;
}
