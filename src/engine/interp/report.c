/* Reports of differences (report.h). */
#include "engine/interp/report.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"

#define WORDS_SHOWN 16

void report_say(struct report *r, const char *fmt, ...)
{
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vsnprintf(r->text + r->len, REPORT_BYTES - r->len, fmt, ap);
    va_end(ap);
    if (n > 0)
        r->len = MIN(r->len + (size_t)n, (size_t)REPORT_BYTES - 1);
}

void report_row(struct report *r, const char *name, uint64_t before, uint64_t want, uint64_t got)
{
    if (want != got)
        report_say(r, "  %-12s %016llx %016llx %016llx\n", name, (unsigned long long)before,
                   (unsigned long long)want, (unsigned long long)got);
}

void report_bytes(struct report *r, const char *name, const void *before, const void *want, const void *got, size_t n)
{
    for (size_t k = 0; k < n; k += 8) {
        size_t some = MIN(n - k, (size_t)8);
        uint64_t v[3] = {0};
        char label[32];

        memcpy(&v[0], (const char *)before + k, some);
        memcpy(&v[1], (const char *)want + k, some);
        memcpy(&v[2], (const char *)got + k, some);
        snprintf(label, sizeof(label), "%s+%zu", name, k);
        report_row(r, label, v[0], v[1], v[2]);
    }
}

void report_gprs(struct report *r, const uint64_t before[16], const uint64_t want[16], const uint64_t got[16])
{
    static const char *const name[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                         "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};

    for (unsigned k = 0; k < 16; k++)
        report_row(r, name[k], before[k], want[k], got[k]);
}

void report_vec(struct report *r, const void *before, const void *want, const void *got)
{
    static const struct {
        const char *name;
        size_t at, size;
        unsigned n;
    } part[] = {
        {"x87", offsetof(struct cpu_state, x87), sizeof(struct x87_state), 1},
        {"mxcsr", offsetof(struct cpu_state, mxcsr), 4, 1},
        {"activity", offsetof(struct cpu_state, activity), 4, 1},
        {"zmm", offsetof(struct cpu_state, zmm), 64, 32},
        {"k", offsetof(struct cpu_state, k), 8, 8},
    };

    for (unsigned p = 0; p < ARRAY_LEN(part); p++) {
        for (unsigned k = 0; k < part[p].n; k++) {
            size_t at = part[p].at + k * part[p].size - DRY_VEC_FROM;
            char name[16];

            if (part[p].n > 1)
                snprintf(name, sizeof(name), "%s%u", part[p].name, k);
            else
                snprintf(name, sizeof(name), "%s", part[p].name);
            report_bytes(r, name, (const uint8_t *)before + at, (const uint8_t *)want + at,
                         (const uint8_t *)got + at, part[p].size);
        }
    }
}

void report_insn(struct report *r, const struct dry_point *p)
{
    if (!p->row)
        return;
    report_say(r, "  %#llx: %-12s", (unsigned long long)p->rip, p->row->mnemonic);
    for (unsigned b = 0; b < p->len; b++)
        report_say(r, " %02x", p->bytes[b]);
    report_say(r, "\n");
}

bool report_same_word(void *arg, const struct dry_word *w, uint64_t expected)
{
    uint64_t v;

    memcpy(&v, w->at, sizeof(v));
    return !((v ^ expected) & dry_bits(w->mask));
}

struct words {
    struct report *r;
    unsigned shown;
};

static bool say_word(void *arg, const struct dry_word *w, uint64_t expected)
{
    struct words *x = arg;
    uint64_t v, m = dry_bits(w->mask);
    char name[32];

    if (report_same_word(NULL, w, expected))
        return true;
    memcpy(&v, w->at, sizeof(v));
    snprintf(name, sizeof(name), "[%#llx]", (unsigned long long)w->gpa);
    report_row(x->r, name, w->before & m, expected & m, v & m);
    return ++x->shown < WORDS_SHOWN;
}

void report_words(struct report *r, const struct dry *d, unsigned k)
{
    struct words words = {.r = r};

    dry_words(d, k, say_word, &words);
}

void report_log(const struct report *r, struct log *log)
{
    for (const char *p = r->text; *p;) {
        size_t n = strcspn(p, "\n");

        log_msg(log, LOG_ERROR, "%.*s", (int)n, p);
        p += n + (p[n] == '\n');
    }
}
