#include "compare.h"

#include <string.h>

/* Instructions that access more than one item do so in an order of the processor's own: which byte
 * of a page CR2 names is then its choice, and whether a part was stored before the fault. */
static bool many_items(const struct insn *i)
{
    bool masked = i->evex_aaa || i->mem.vsib || (i->map == 1 && i->opcode == 0xf7) ||
                  ((i->prefix & PFX_VEX) && i->map == 2 &&
                   (i->opcode == 0x8e || i->opcode == 0x8c || (i->opcode & 0xfc) == 0x2c));
    if (i->id == INSN_ENTER || i->id == INSN_PUSHA || i->id == INSN_POPA ||
        i->id == INSN_CALL_FAR || i->id == INSN_CALL_FAR_IND)
        return true;
    for (unsigned n = 0; n < i->nops; n++)
        if (i->op[n].kind == OP_MEM &&
            (masked || ((i->op[n].size >= 10 || !i->op[n].size) && !i->vlen)))
            return true;
    return false;
}

/* The instruction that took the exception, if it was one of the case's own. */
static bool faulting(const struct test_case *t, const struct outcome *o, struct insn *i)
{
    unsigned k = case_item_at(t, o->s.rip);

    return k < t->n && case_decode(t, k, i);
}

/* Does the processor push something that a signal frame tells truly? */
static bool error_told(int vector) { return vector >= X_DF && vector <= X_PF; }

/* The pointers count as far as linear addresses of 48 bits go: the host may have wider ones. */
static bool same_x87(const struct x87_state *a, const struct x87_state *b)
{
    struct x87_state x = *a, y = *b;

    x.fip = sext(x.fip, 48);
    y.fip = sext(y.fip, 48);
    x.fdp = sext(x.fdp, 48);
    y.fdp = sext(y.fdp, 48);
    return !memcmp(&x, &y, sizeof(x));
}

/* DPPS and DPPD find exceptions in several steps of their own. The inexact flag of an unmasked
 * overflow or underflow says whether the result, its exponent wrapped, is exact; an engine that
 * computes with the exception masked cannot know (SDM vol. 1 §11.5.2). */
static uint32_t mxcsr_unknown(const struct outcome *o, const struct insn *i)
{
    uint32_t raised = o->s.mxcsr & ~(o->s.mxcsr >> 7) & 0x18;

    if (o->vector != X_XM)
        return 0;
    if (i->id == INSN_DPPS || i->id == INSN_DPPD || i->id == INSN_VDPPS || i->id == INSN_VDPPD)
        return 0x3f;
    return raised ? 0x20 : 0;
}

/* Does a repeated string store overwrite the code around it? When the processor notices is its
 * choice. */
static bool overwrites_itself(const struct test_case *t, const struct outcome *o)
{
    uint8_t code[CODE_BYTES];
    struct insn i;

    if (!case_assemble(t, code, NULL) || !memcmp(code, o->code, CODE_BYTES))
        return false;
    for (unsigned k = 0; k < t->n; k++)
        if (case_decode(t, k, &i) && (i.row->flags & IF_REP) && (i.prefix & (PFX_REP | PFX_REPNE)))
            return true;
    return false;
}

/* Whether an access across the end of a 4 GiB segment faults is implementation-specific (SDM vol. 3
 * §5.3). */
static bool wraps_at_4g(const struct test_case *t, const struct outcome *o)
{
    return t->bits == CPU_32 && o->vector == X_PF && (o->cr2 < 64 || o->cr2 > 0xffffffc0);
}

/* Code that was entered in the middle of an instruction may have FS, which the oracle needs itself. */
static bool uses_fs(const struct test_case *t, const struct outcome *o)
{
    uint64_t at = o->s.rip - CODE_ADDR;
    struct insn i;

    if (at > CODE_BYTES - INSN_MAX_LEN ||
        insn_decode(&i, o->code + at, INSN_MAX_LEN, t->bits) != INSN_OK)
        return false;
    for (unsigned n = 0; n < i.nops; n++)
        if (i.op[n].kind == OP_MEM && i.mem.seg == FS)
            return true;
    return false;
}

/* The registers are equal, the upper half of RCX apart when a string instruction that counts in ECX
 * has faulted: some processors have cleared it by then. */
static bool same_gprs(const struct test_case *t, const struct outcome *a, const struct outcome *b,
                      const struct insn *fault)
{
    for (unsigned n = 0; n < (t->bits == CPU_64 ? 16 : 8); n++) {
        uint64_t mask = ~0ull;

        if (n == RCX && fault && (fault->row->flags & IF_REP) && fault->addrsize == 4)
            mask = 0xffffffff;
        if (n == RSP && a->s.seg[CS].sel == SEL_CODE32) /* outside 64-bit code there is only ESP */
            mask = 0xffffffff;
        if ((a->s.gpr[n] ^ b->s.gpr[n]) & mask)
            return false;
    }
    return true;
}

const char *compare(const struct test_case *t, const struct outcome *a, const struct outcome *b,
                    uint64_t undefined)
{
    struct insn i;
    /* Some processors make the MMX transition although the instruction then faults. */
    bool faulted = faulting(t, a, &i), many = faulted && many_items(&i);

    if (a->vector < 0 || overwrites_itself(t, a) || overwrites_itself(t, b))
        return NULL;
    if (uses_fs(t, a))
        return NULL;
    if (wraps_at_4g(t, a) && (b->vector == X_GP || b->vector == X_SS))
        return NULL;
    if (a->vector != b->vector)
        return "exception";
    if (a->s.rip != b->s.rip)
        return "RIP";
    if (a->vector == X_PF) {
        bool upper = a->cr2 >= 0x7ffffffff000 || a->cr2 - SUP_ADDR < SUP_BYTES;
        /* The host's kernel does not tell what is mapped where programs have no business. */
        if ((a->error ^ b->error) & ~(upper || many ? PF_P : 0u))
            return "error code";
        if (a->cr2 != b->cr2 && !(many && a->cr2 - b->cr2 + PAGE_SIZE < 2 * PAGE_SIZE))
            return "CR2";
    } else if (error_told(a->vector) && a->error != b->error) {
        return "error code";
    }
    if (!same_gprs(t, a, b, faulted ? &i : NULL))
        return "general register";
    if ((a->s.rflags ^ b->s.rflags) & ~undefined)
        return "flags";
    for (unsigned n = ES; n <= DS;
         n++) /* null selectors change on the way to the oracle's handler */
        if (a->s.seg[n].sel != b->s.seg[n].sel && ((a->s.seg[n].sel | b->s.seg[n].sel) & ~3))
            return "segment register";
    /* A restore that faults may have loaded some of its components. */
    if (faulted && (i.id == INSN_XRSTOR || i.id == INSN_FXRSTOR))
        return NULL;
    if (memcmp(a->s.zmm, b->s.zmm, sizeof(a->s.zmm)))
        return "vector register";
    if (memcmp(a->s.k, b->s.k, sizeof(a->s.k)))
        return "opmask";
    if ((a->s.mxcsr ^ b->s.mxcsr) & ~(faulted ? mxcsr_unknown(a, &i) : 0))
        return "MXCSR";
    if (!same_x87(&a->s.x87, &b->s.x87) && !(faulted && (i.row->flags & IF_MMX)))
        return "x87 state";
    if (!many && memcmp(a->data, b->data, DATA_BYTES))
        return "memory";
    if (!many && memcmp(a->code, b->code, CODE_BYTES))
        return "code memory";
    return NULL;
}

static void show(const char *name, unsigned index, const void *want, const void *got, unsigned n)
{
    const uint8_t *a = want, *b = got;

    if (!memcmp(want, got, n))
        return;
    printf("  %s%u silicon ", name, index);
    for (unsigned k = n; k-- > 0;)
        printf("%02x%s", a[k], k && k % 8 == 0 ? "_" : "");
    printf("\n  %s%u ours    ", name, index);
    for (unsigned k = n; k-- > 0;)
        printf("%02x%s", b[k], k && k % 8 == 0 ? "_" : "");
    printf("\n");
}

static void show_memory(const char *name, const uint8_t *a, const uint8_t *b, unsigned size)
{
    unsigned shown = 0;

    for (unsigned n = 0; n < size && shown < 8; n += 16)
        if (memcmp(a + n, b + n, 16)) {
            show(name, n, a + n, b + n, 16);
            shown++;
        }
}

void compare_show(const struct test_case *t, const struct outcome *a, const struct outcome *b,
                  uint64_t undefined)
{
    unsigned k = case_item_at(t, a->s.rip);

    printf("  silicon: vector %d error %x cr2 %llx rip %llx (item %u) flags %llx\n", a->vector,
           a->error, (unsigned long long)a->cr2, (unsigned long long)a->s.rip, k,
           (unsigned long long)a->s.rflags);
    printf("  ours:    vector %d error %x cr2 %llx rip %llx (item %u) flags %llx, undefined %llx\n",
           b->vector, b->error, (unsigned long long)b->cr2, (unsigned long long)b->s.rip,
           case_item_at(t, b->s.rip), (unsigned long long)b->s.rflags,
           (unsigned long long)undefined);
    for (unsigned n = ES; n <= DS; n++)
        show("sreg", n, &a->s.seg[n].sel, &b->s.seg[n].sel, 2);
    for (unsigned n = 0; n < 16; n++)
        show("gpr", n, &a->s.gpr[n], &b->s.gpr[n], 8);
    for (unsigned n = 0; n < 32; n++)
        show("zmm", n, a->s.zmm[n], b->s.zmm[n], 64);
    for (unsigned n = 0; n < 8; n++)
        show("k", n, &a->s.k[n], &b->s.k[n], 8);
    for (unsigned n = 0; n < 8; n++)
        show("st", n, a->s.x87.st[n], b->s.x87.st[n], 16);
    show("mxcsr", 0, &a->s.mxcsr, &b->s.mxcsr, 4);
    show("fcw", 0, &a->s.x87.fcw, &b->s.x87.fcw, 2);
    show("fsw", 0, &a->s.x87.fsw, &b->s.x87.fsw, 2);
    show("tag", 0, &a->s.x87.tag, &b->s.x87.tag, 1);
    show("fop", 0, &a->s.x87.fop, &b->s.x87.fop, 2);
    show("fip", 0, &a->s.x87.fip, &b->s.x87.fip, 8);
    show("fdp", 0, &a->s.x87.fdp, &b->s.x87.fdp, 8);
    show_memory("data+", a->data, b->data, DATA_BYTES);
    show_memory("code+", a->code, b->code, CODE_BYTES);
}
