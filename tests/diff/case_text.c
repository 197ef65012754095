/* Cases as text, and as instructions. */
#include "case.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

bool case_decode(const struct test_case *t, unsigned k, struct insn *i)
{
    uint8_t b[INSN_MAX_LEN];

    memset(b, 0xf4, sizeof(b));
    memcpy(b, t->item[k].b, t->item[k].len);
    return insn_decode(i, b, sizeof(b), t->bits) == INSN_OK;
}

static const char *const gpr_name[] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                       "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};

/* Every named field of the state: one table for both directions. */
struct field {
    char name[12];
    size_t off;
    unsigned size;
};

static unsigned fields(struct field f[128])
{
    unsigned n = 0;
#define FIELD(m, ...)                                        \
    do {                                                     \
        snprintf(f[n].name, sizeof(f[n].name), __VA_ARGS__); \
        f[n].off = offsetof(struct cpu_state, m);            \
        f[n].size = sizeof(((struct cpu_state *)0)->m);      \
        n++;                                                 \
    } while (0)
    for (unsigned k = 0; k < 16; k++)
        FIELD(gpr[k], "%s", gpr_name[k]);
    FIELD(rflags, "rflags");
    FIELD(mxcsr, "mxcsr");
    FIELD(x87.fcw, "fcw");
    FIELD(x87.fsw, "fsw");
    FIELD(x87.tag, "tag");
    FIELD(x87.fop, "fop");
    FIELD(x87.fip, "fip");
    FIELD(x87.fdp, "fdp");
    for (unsigned k = 0; k < 8; k++)
        FIELD(x87.st[k], "st%u", k);
    for (unsigned k = 0; k < 8; k++)
        FIELD(k[k], "k%u", k);
    for (unsigned k = 0; k < 32; k++)
        FIELD(zmm[k], "zmm%u", k);
#undef FIELD
    return n;
}

/* Most significant byte first, as registers are read. */
static void put_hex(FILE *f, const uint8_t *p, unsigned n)
{
    while (n > 1 && !p[n - 1])
        n--;
    while (n--)
        fprintf(f, "%02x", p[n]);
}

static bool get_hex(const char *text, uint8_t *p, unsigned n)
{
    size_t len = strlen(text);

    memset(p, 0, n);
    if (len % 2 || len / 2 > n)
        return false;
    for (size_t k = 0; k < len / 2; k++) {
        unsigned v;
        if (sscanf(text + len - 2 * k - 2, "%2x", &v) != 1)
            return false;
        p[k] = (uint8_t)v;
    }
    return true;
}

static const char *const fix_name[] = {
    [FIX_NONE] = "", [FIX_REL8] = "rel8", [FIX_REL32] = "rel32", [FIX_IMM] = "imm"};

static void save_data(const struct test_case *t, const struct test_case *init, FILE *f)
{
    for (unsigned at = 0; at < DATA_BYTES; at += 16) {
        if (!memcmp(t->data + at, init->data + at, 16))
            continue;
        fprintf(f, "data %04x ", at);
        for (unsigned k = 0; k < 16; k++)
            fprintf(f, "%02x", t->data[at + k]);
        fprintf(f, "\n");
    }
}

void case_save(const struct test_case *t, FILE *f)
{
    struct test_case *init = malloc(sizeof(*init));
    struct field fl[128];
    unsigned n = fields(fl);

    if (!init)
        abort();
    case_init(init, t->bits);
    fprintf(f, "bits %u\nstart %04x\n", 16u << t->bits, t->start);
    for (unsigned k = 0; k < t->n; k++) {
        const struct item *it = &t->item[k];
        struct insn i;

        fprintf(f, "item ");
        for (unsigned b = 0; b < it->len; b++)
            fprintf(f, "%02x", it->b[b]);
        if (it->fix)
            fprintf(f, " %s %d", fix_name[it->fix], it->target);
        fprintf(f, " # %u: %s\n", k, case_decode(t, k, &i) ? i.row->mnemonic : "(bad)");
    }
    for (unsigned k = 0; k < n; k++) {
        const uint8_t *p = (const uint8_t *)&t->s + fl[k].off;

        if (!memcmp(p, (const uint8_t *)&init->s + fl[k].off, fl[k].size))
            continue;
        fprintf(f, "%s ", fl[k].name);
        put_hex(f, p, fl[k].size);
        fprintf(f, "\n");
    }
    save_data(t, init, f);
    free(init);
}

static bool load_item(struct test_case *t, const char *hex, const char *fix, int target)
{
    struct item *it = &t->item[t->n];
    size_t len = strlen(hex);

    if (t->n == ITEMS_MAX || len % 2 || len / 2 > INSN_MAX_LEN || len == 0)
        return false;
    *it = (struct item){.len = (uint8_t)(len / 2)};
    for (unsigned k = 0; k < it->len; k++) {
        unsigned v;
        if (sscanf(hex + 2 * k, "%2x", &v) != 1)
            return false;
        it->b[k] = (uint8_t)v;
    }
    if (fix) {
        for (unsigned k = FIX_REL8; k <= FIX_IMM; k++)
            if (!strcmp(fix, fix_name[k]))
                it->fix = (uint8_t)k;
        if (!it->fix || target < 0 || target > ITEMS_MAX || it->len < 1 + (it->fix == FIX_REL8 ? 1 : 4))
            return false;
        it->target = (int8_t)target;
    }
    t->n++;
    return true;
}

static bool load_line(struct test_case *t, char *line)
{
    struct field fl[128];
    unsigned n = fields(fl);
    char key[16] = "", a[140] = "", b[140] = "";
    int target = 0, got;

    line[strcspn(line, "#")] = 0;
    got = sscanf(line, "%15s %139s %139s %d", key, a, b, &target);
    if (got < 1)
        return true;
    if (got < 2)
        return false;
    if (!strcmp(key, "bits")) {
        t->bits = !strcmp(a, "64") ? CPU_64 : CPU_32;
        return true;
    }
    if (!strcmp(key, "start")) {
        t->start = (uint16_t)strtoul(a, NULL, 16);
        return t->start < CODE_BYTES;
    }
    if (!strcmp(key, "item"))
        return load_item(t, a, got >= 4 ? b : NULL, target);
    if (!strcmp(key, "data")) {
        unsigned long at = strtoul(a, NULL, 16);
        uint8_t rev[16];

        if (at > DATA_BYTES - 16 || strlen(b) != 32 || !get_hex(b, rev, 16))
            return false;
        for (unsigned k = 0; k < 16; k++)
            t->data[at + k] = rev[15 - k];
        return true;
    }
    for (unsigned k = 0; k < n; k++)
        if (!strcmp(key, fl[k].name))
            return get_hex(a, (uint8_t *)&t->s + fl[k].off, fl[k].size);
    return false;
}

int case_load(struct test_case *t, const char *path)
{
    FILE *f = fopen(path, "r");
    char line[512];
    unsigned at = 0;

    if (!f) {
        printf("%s: %s\n", path, strerror(errno));
        return -EINVAL;
    }
    case_init(t, CPU_64);
    while (fgets(line, sizeof(line), f)) {
        at++;
        if (!load_line(t, line)) {
            printf("%s:%u: not understood\n", path, at);
            fclose(f);
            return -EINVAL;
        }
    }
    fclose(f);
    for (unsigned k = 0; k < t->n; k++)
        if (t->item[k].fix && (unsigned)t->item[k].target > t->n) {
            printf("%s: item %u leads nowhere\n", path, k);
            return -EINVAL;
        }
    return 0;
}
