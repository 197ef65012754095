#include "listing_host.h"

#include <Zydis/Zydis.h>
#include <stdlib.h>

#define HOST_MAX 4096 /* instructions of one block */
#define NAME_MAX_LEN 32

/* ---- names ---- */

/* What a register points to while translated code looks something up. */
enum pointee { NOTHING, CPU, TLB_ENTRY, IC, TBLOCK };

struct field {
    enum pointee of;
    int32_t off;
    const char *name;
    enum pointee to;
};

#define CPU_FIELD(member, to)                          \
    {                                                  \
        CPU, BT_OFF(member), #member, to \
    }

static const struct field fields[] = {
    CPU_FIELD(cc, NOTHING),
    CPU_FIELD(tlb, TLB_ENTRY),
    CPU_FIELD(bt.bias, NOTHING),
    CPU_FIELD(bt.ret, NOTHING),
    CPU_FIELD(bt.sp_npage, NOTHING),
    CPU_FIELD(bt.sp_addend, NOTHING),
    CPU_FIELD(bt.vpage, NOTHING),
    CPU_FIELD(bt.tmp, NOTHING),
    CPU_FIELD(bt.operand, NOTHING), CPU_FIELD(bt.value, NOTHING),
    CPU_FIELD(bt.quiet, NOTHING),
    CPU_FIELD(bt.site, NOTHING),
    {CPU, BT_OFF(bt.ret) + BT_RET_FLAGS, "bt.ret.flags", NOTHING},
    {CPU, BT_OFF(bt.missing[BT_LEVEL_SSE]), "bt.missing.sse", NOTHING},
    {CPU, BT_OFF(bt.missing[BT_LEVEL_AVX]), "bt.missing.avx", NOTHING},
    {CPU, BT_OFF(bt.missing[BT_LEVEL_AVX512]), "bt.missing.avx512", NOTHING},
    {CPU, BT_OFF(s.seg[FS].base), "fs.base", NOTHING},
    {CPU, BT_OFF(s.seg[GS].base), "gs.base", NOTHING},
    {TLB_ENTRY, offsetof(struct tlb_entry, rtag), "rtag", NOTHING},
    {TLB_ENTRY, offsetof(struct tlb_entry, wtag), "wtag", NOTHING},
    {TLB_ENTRY, offsetof(struct tlb_entry, addend), "addend", NOTHING},
    {IC, offsetof(struct bt_jump, nkey), "nkey", NOTHING},
    {IC, offsetof(struct bt_jump, t), "t", TBLOCK},
    {TBLOCK, offsetof(struct tblock, entry[BT_HOST]), "entry.host", NOTHING},
    {TBLOCK, offsetof(struct tblock, entry[BT_CC]), "entry.cc", NOTHING},
};

static const struct field *find_field(enum pointee of, int64_t off)
{
    for (unsigned k = 0; k < ARRAY_LEN(fields); k++)
        if (fields[k].of == of && fields[k].off == off)
            return &fields[k];
    return NULL;
}

/* A field of an inline cache, by its offset from struct cpu; they are numbered from 1 like other things in listings. */
static const struct field *find_ic(int64_t off)
{
    return find_field(IC, (off - BT_OFF_IC(0)) % (int64_t)sizeof(struct bt_jump));
}

static unsigned ic_number(int64_t off)
{
    return (unsigned)((off - BT_OFF_IC(0)) / (int64_t)sizeof(struct bt_jump)) + 1;
}

/* An offset into struct cpu, or behind it. */
static bool name_cpu(char *buf, size_t size, int64_t off)
{
    static const char *const gpr[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                        "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};
    const struct field *f = find_field(CPU, off);
    int64_t r = (off - BT_OFF_GPR(0)) / 8, g = (off - BT_OFF(bt.group)) / 8, n = (off - BT_OFF(bt.round)) / 16;

    if (off >= BT_OFF_IC(0) && (f = find_ic(off)))
        snprintf(buf, size, "ic.%u.%s", ic_number(off), f->name);
    else if (f)
        snprintf(buf, size, "%s", f->name);
    else if (off % 8 == 0 && off >= BT_OFF_GPR(0) && r < 16)
        snprintf(buf, size, "gpr.%s", gpr[r]);
    else if (off % 8 == 0 && off >= BT_OFF(bt.group) && g < BT_GROUPS)
        snprintf(buf, size, "bt.group.%u", (unsigned)g);
    else if (off % 8 == 0 && off >= BT_OFF(bt.round) && n < BT_ROUNDS)
        snprintf(buf, size, "bt.round.%u.%s", (unsigned)n, (off - BT_OFF(bt.round)) % 16 ? "addend" : "bound");
    else
        return false;
    return true;
}

/* In code that has the flags in EFLAGS, and in cpu.cc. */
static const struct {
    const char *name[2];
    size_t off;
} stubs[] = {
    {{"link", "link/cc"}, offsetof(struct bt_stubs, link)},
    {{"lookup", "lookup/cc"}, offsetof(struct bt_stubs, lookup)},
    {{"interp", "interp/cc"}, offsetof(struct bt_stubs, interp)},
    {{"event", "event/cc"}, offsetof(struct bt_stubs, event)},
    {{"refill", "refill/cc"}, offsetof(struct bt_stubs, refill)},
    {{"vec", "vec/cc"}, offsetof(struct bt_stubs, vec)},
    {{"help", "help/cc"}, offsetof(struct bt_stubs, help)},
    {{"dead", "dead/cc"}, offsetof(struct bt_stubs, dead)},
    {{"miss", "miss/cc"}, offsetof(struct bt_stubs, miss)},
    {{"back", "bottom"}, offsetof(struct bt_stubs, back)},
};

#define STUB_NONE ARRAY_LEN(stubs)

/* The stub at a place in the code area, an index into the table above, or STUB_NONE. */
static unsigned find_stub(const struct bt *bt, uint64_t at, enum bt_flags *flags)
{
    for (unsigned k = 0; k < ARRAY_LEN(stubs); k++) {
        uint32_t stub[2];

        memcpy(stub, (const char *)&bt->stub + stubs[k].off, sizeof(stub));
        for (*flags = BT_HOST; *flags <= BT_CC; ++*flags)
            if (at == stub[*flags])
                return k;
    }
    return STUB_NONE;
}

static const char *name_stub(const struct bt *bt, uint64_t at)
{
    enum bt_flags flags;
    unsigned stub = find_stub(bt, at, &flags);

    return stub == STUB_NONE ? NULL : stubs[stub].name[flags];
}

static const struct {
    const char *name;
    bt_helper *fn;
} helpers[] = {
    {"movs", bt_help_movs},     {"stos", bt_help_stos}, {"cli", bt_help_cli},
    {"sti", bt_help_sti},       {"stac", bt_help_stac}, {"clac", bt_help_clac},
    {"pushf", bt_help_pushf},   {"popf", bt_help_popf}, {"swapgs", bt_help_swapgs},
    {"cld", bt_help_cld},       {"rdtsc", bt_help_rdtsc}, {"rdtscp", bt_help_rdtscp},
    {"bits", bt_help_bits},     {"read_sreg", bt_help_read_sreg},
};

static const char *name_helper(uint64_t fn)
{
    for (unsigned k = 0; k < ARRAY_LEN(helpers); k++)
        if ((uintptr_t)helpers[k].fn == fn)
            return helpers[k].name;
    return NULL;
}

/* ---- a block taken apart ---- */

struct host_insn {
    uint32_t off; /* in the code area */
    ZydisDecodedInstruction z;
    ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
    char label[NAME_MAX_LEN]; /* of this place, or empty */
};

struct listing {
    FILE *out;
    const struct tr *t;
    uint32_t cold;  /* where the cold code begins, and the cold paths in it */
    uint32_t paths;
    unsigned n, at; /* the instruction that is being printed */
    enum pointee reg[16];
    bool unnamed;
    ZydisFormatter f;
    ZydisFormatterFunc mem, imm; /* Zydis' own */
    struct host_insn insn[HOST_MAX];
};

static struct host_insn *insn_at(struct listing *l, uint64_t off)
{
    for (unsigned k = 0; k < l->n; k++)
        if (l->insn[k].off == off)
            return &l->insn[k];
    return NULL;
}

/* The target of a direct branch, as an offset into the code area. */
static bool direct_target(const struct host_insn *h, uint64_t *to)
{
    if (h->z.operand_count == 0 || h->op[0].type != ZYDIS_OPERAND_TYPE_IMMEDIATE ||
        !h->op[0].imm.is_relative)
        return false;
    *to = h->off + h->z.length + h->op[0].imm.value.u;
    return true;
}

static bool decode(struct listing *l, uint32_t begin, uint32_t end)
{
    ZydisDecoder d;

    ZydisDecoderInit(&d, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    for (uint32_t off = begin; off < end; l->n++) {
        struct host_insn *h = &l->insn[l->n];

        if (l->n == HOST_MAX || ZYAN_FAILED(ZydisDecoderDecodeFull(&d, bt_host(l->t->bt, off), end - off,
                                                                   &h->z, h->op))) {
            fprintf(stderr, "host code at +%#x does not decode\n", off - begin);
            return false;
        }
        h->off = off;
        off += h->z.length;
    }
    return true;
}

/* Cold code lies apart, and nothing was translated since: it begins with a way in, or where the first of its branches
 * leads. */
static void find_cold(struct listing *l)
{
    const struct bt *bt = l->t->bt;
    const struct tblock *tb = l->t->t;

    l->paths = bt->cold;
    for (unsigned k = 0; k < l->t->ncold; k++) {
        const struct cold *c = &l->t->cold[k];
        uint32_t to;

        if (c->kind == COLD_INTERP) {
            to = bt->fault[c->from].cold;
        } else {
            memcpy(&to, bt_host(bt, c->from), sizeof(to));
            to += c->from + 4;
        }
        l->paths = MIN(l->paths, to);
    }
    l->cold = tb->given || tb->entry[BT_CC] == tb->entry[BT_HOST] ? l->paths : (uint32_t)(tb->entry[BT_CC] - bt_host(bt, 0));
}

/* The stub that straight code from here on ends in, or STUB_NONE. */
static unsigned leads_to(struct listing *l, const struct host_insn *h)
{
    for (; h < l->insn + l->n; h++) {
        enum bt_flags flags;
        uint64_t to;

        if (h->z.mnemonic == ZYDIS_MNEMONIC_JMP || h->z.mnemonic == ZYDIS_MNEMONIC_CALL)
            return direct_target(h, &to) ? find_stub(l->t->bt, to, &flags) : STUB_NONE;
    }
    return STUB_NONE;
}

/* Labels for whatever is branched to, numbered by place. Cold code is named for where it goes. */
static void find_labels(struct listing *l)
{
    const struct bt *bt = l->t->bt;
    unsigned hot = 0, cold[ARRAY_LEN(stubs)] = {0};

    for (unsigned k = 0; k < l->n; k++) {
        struct host_insn *h;
        uint64_t to;

        if (direct_target(&l->insn[k], &to) && (h = insn_at(l, to)))
            h->label[0] = '?';
    }
    for (uint32_t k = 0; k < atomic_load(&bt->nfault); k++) {
        struct host_insn *h = insn_at(l, bt->fault[k].cold);

        if (h)
            h->label[0] = '?';
    }
    for (unsigned k = 0; k < l->n; k++) {
        struct host_insn *h = &l->insn[k];
        unsigned stub = h->off >= l->cold ? leads_to(l, h) : STUB_NONE;

        if (!h->label[0])
            continue;
        if (stub != STUB_NONE)
            snprintf(h->label, sizeof(h->label), "%s.%u", stubs[stub].name[BT_HOST], ++cold[stub]);
        else if (h->off == l->t->body)
            strcpy(h->label, "body");
        else
            snprintf(h->label, sizeof(h->label), "L%u", ++hot);
    }
}

/* ---- printing ---- */

static void append(ZydisFormatterBuffer *b, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
static void append(ZydisFormatterBuffer *b, const char *fmt, ...)
{
    ZyanString *s;
    char text[96];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    ZydisFormatterBufferAppend(b, ZYDIS_TOKEN_SYMBOL);
    if (ZYAN_SUCCESS(ZydisFormatterBufferGetString(b, &s))) {
        ZyanStringView v;

        ZyanStringViewInsideBuffer(&v, text);
        ZyanStringAppend(s, &v);
    }
}

static void unnamed(struct listing *l, const char *what, int64_t value)
{
    fprintf(stderr, "no name for %s %#llx: fields[] in tests/bt/listing_host.c?\n", what,
            (unsigned long long)value);
    l->unnamed = true;
}

static int gpr_id(ZydisRegister r)
{
    return ZydisRegisterGetClass(r) == ZYDIS_REGCLASS_GPR64 ? ZydisRegisterGetId(r) : -1;
}

static bool is_field_of_cpu(const ZydisDecodedOperand *o)
{
    return o->type == ZYDIS_OPERAND_TYPE_MEMORY && gpr_id(o->mem.base) == EMIT_CPU &&
           o->mem.index == ZYDIS_REGISTER_NONE;
}

/* What the operand's address is a field of. */
static enum pointee structure(const struct listing *l, const ZydisDecodedOperand *o)
{
    int base = gpr_id(o->mem.base);

    if (is_field_of_cpu(o))
        return CPU;
    return base < 0 || o->mem.index != ZYDIS_REGISTER_NONE ? NOTHING : l->reg[base];
}

static ZyanStatus print_mem(const ZydisFormatter *f, ZydisFormatterBuffer *b,
                            ZydisFormatterContext *x)
{
    static const char *const prefix[] = {
        [CPU] = "", [TLB_ENTRY] = "tlb_entry.", [TBLOCK] = "tblock."};
    struct listing *l = x->user_data;
    const ZydisDecodedOperand *o = x->operand;
    enum pointee p = o->mem.type == ZYDIS_MEMOP_TYPE_MEM ? structure(l, o) : NOTHING;
    const struct field *field;
    char name[NAME_MAX_LEN];

    if (p == NOTHING)
        return l->mem(f, b, x);
    f->func_print_typecast(f, b, x);
    if (p == CPU) {
        if (!name_cpu(name, sizeof(name), o->mem.disp.value)) {
            unnamed(l, "offset in struct cpu", o->mem.disp.value);
            strcpy(name, "?");
        }
        append(b, "[cpu.%s]", name);
        return ZYAN_STATUS_SUCCESS;
    }
    field = find_field(p, o->mem.disp.value);
    if (!field)
        unnamed(l, prefix[p], o->mem.disp.value);
    append(b, "[%s + %s%s]", ZydisRegisterGetString(o->mem.base), prefix[p],
           field ? field->name : "?");
    return ZYAN_STATUS_SUCCESS;
}

/* The stub to which code goes that has just loaded a register for it, or NULL. */
static const char *argument_of(const struct listing *l)
{
    ZydisRegister r = l->insn[l->at].op[0].reg.value;

    if (l->insn[l->at].z.mnemonic != ZYDIS_MNEMONIC_MOV ||
        (r != ZYDIS_REGISTER_ECX && r != ZYDIS_REGISTER_R10 && r != ZYDIS_REGISTER_R9D))
        return NULL;
    for (unsigned k = l->at + 1; k < l->n && k <= l->at + 2; k++) {
        uint64_t to;

        if ((l->insn[k].z.mnemonic == ZYDIS_MNEMONIC_JMP || l->insn[k].z.mnemonic == ZYDIS_MNEMONIC_CALL) &&
            direct_target(&l->insn[k], &to))
            return name_stub(l->t->bt, to);
        if (l->insn[k].z.mnemonic != ZYDIS_MNEMONIC_MOV)
            break;
    }
    return NULL;
}

static void print_argument(struct listing *l, ZydisFormatterBuffer *b, const char *stub, uint64_t v)
{
    const struct bt *bt = l->t->bt;
    bool link = !strncmp(stub, "link", 4);
    const struct host_insn *h;
    const char *name;

    if (l->insn[l->at].op[0].reg.value == ZYDIS_REGISTER_ECX) {
        uint64_t most = link ? bt->nlink : bt->nsite;

        if (v >= most)
            unnamed(l, stub, (int64_t)v);
        else
            append(b, "%s %03x", link ? "link to" : "site",
                   link ? bt->link[v].off : bt->site[v].off);
        return;
    }
    if (l->insn[l->at].op[0].reg.value == ZYDIS_REGISTER_R9D) {
        append(b, "ic.%u", ic_number((int64_t)v));
        return;
    }
    name = name_helper(v);
    h = insn_at(l, v - (uintptr_t)bt->rx);
    if (!name && !(h && h->label[0]))
        unnamed(l, "address", (int64_t)v);
    append(b, "%s%s", name ? "helper " : "", name ? name : h ? h->label : "?");
}

static ZyanStatus print_imm(const ZydisFormatter *f, ZydisFormatterBuffer *b,
                            ZydisFormatterContext *x)
{
    struct listing *l = x->user_data;
    const char *stub;
    uint64_t to;

    if (direct_target(&l->insn[l->at], &to)) {
        const struct host_insn *h = insn_at(l, to);

        stub = name_stub(l->t->bt, to);
        if (!h && !stub)
            unnamed(l, "branch", (int64_t)to);
        append(b, "%s", h ? h->label : stub ? stub : "?");
        return ZYAN_STATUS_SUCCESS;
    }
    stub = argument_of(l);
    if (!stub)
        return l->imm(f, b, x);
    print_argument(l, b, stub, x->operand->imm.value.u);
    return ZYAN_STATUS_SUCCESS;
}

/* Follows pointers to structures from register to register. */
static void follow(struct listing *l, const struct host_insn *h)
{
    const ZydisDecodedOperand *dst = &h->op[0], *src = &h->op[1];
    enum pointee p = NOTHING;
    int r;

    switch (h->z.mnemonic) {
    case ZYDIS_MNEMONIC_ADD:
    case ZYDIS_MNEMONIC_MOV:
        if (src->type == ZYDIS_OPERAND_TYPE_MEMORY) {
            int64_t off = src->mem.disp.value;
            const struct field *f = is_field_of_cpu(src) && off >= BT_OFF_IC(0) ? find_ic(off) :
                                                                                   find_field(structure(l, src), off);

            p = f ? f->to : NOTHING;
        } else if (src->type == ZYDIS_OPERAND_TYPE_REGISTER && gpr_id(src->reg.value) >= 0) {
            p = l->reg[gpr_id(src->reg.value)];
        }
        break;
    case ZYDIS_MNEMONIC_LEA:
        if (gpr_id(src->mem.base) >= 0)
            p = l->reg[gpr_id(src->mem.base)];
        if (!p && gpr_id(src->mem.index) >= 0)
            p = l->reg[gpr_id(src->mem.index)];
        break;
    default:
        break;
    }
    for (unsigned k = 0; k < h->z.operand_count; k++)
        if (h->op[k].type == ZYDIS_OPERAND_TYPE_REGISTER &&
            (h->op[k].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)) {
            r = gpr_id(
                ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, h->op[k].reg.value));
            if (r >= 0)
                l->reg[r] = NOTHING;
        }
    r = dst->type == ZYDIS_OPERAND_TYPE_REGISTER ? gpr_id(dst->reg.value) : -1;
    if (r >= 0)
        l->reg[r] = p;
}

static const char *fault_at(struct listing *l, uint32_t off)
{
    const struct bt *bt = l->t->bt;

    for (uint32_t k = 0; k < atomic_load(&bt->nfault); k++)
        if (off >= bt->fault[k].begin && off < bt->fault[k].end)
            return insn_at(l, bt->fault[k].cold)->label;
    return NULL;
}

/* Hidden operands are left out: some versions of Zydis take them as a sign that a size need not be
 * told. */
static void format(const ZydisFormatter *f, const ZydisDecodedInstruction *z,
                   const ZydisDecodedOperand *op, uint64_t at, struct listing *l, char *text,
                   size_t size)
{
    ZydisDecodedOperand visible[ZYDIS_MAX_OPERAND_COUNT] = {0};

    memcpy(visible, op, z->operand_count_visible * sizeof(*op));
    ZydisFormatterFormatInstruction(f, z, visible, z->operand_count_visible, text, size, at, l);
}

static void print_host(struct listing *l)
{
    const struct host_insn *h = &l->insn[l->at];
    const char *fault = fault_at(l, h->off);
    char text[160];

    if (h->label[0] && h->off >= l->cold)
        memset(l->reg, 0, sizeof(l->reg));
    format(&l->f, &h->z, h->op, ZYDIS_RUNTIME_ADDRESS_NONE, l, text, sizeof(text));
    fprintf(l->out, fault ? "        %-44s ; may fault: %s\n" : "        %s\n", text, fault);
    follow(l, h);
}

static ZyanStatus print_guest_address(const ZydisFormatter *f, ZydisFormatterBuffer *b,
                                      ZydisFormatterContext *x)
{
    if (x->operand->type == ZYDIS_OPERAND_TYPE_MEMORY)
        append(b, "0x%llx", (unsigned long long)x->operand->mem.disp.value);
    else
        append(b, "%03llx",
               (unsigned long long)(x->runtime_address + x->instruction->length +
                                    x->operand->imm.value.u));
    return ZYAN_STATUS_SUCCESS;
}

static void formatter(ZydisFormatter *f)
{
    ZydisFormatterInit(f, ZYDIS_FORMATTER_STYLE_INTEL);
    ZydisFormatterSetProperty(f, ZYDIS_FORMATTER_PROP_HEX_UPPERCASE, ZYAN_FALSE);
    ZydisFormatterSetProperty(f, ZYDIS_FORMATTER_PROP_DISP_PADDING, ZYDIS_PADDING_DISABLED);
    ZydisFormatterSetProperty(f, ZYDIS_FORMATTER_PROP_IMM_PADDING, ZYDIS_PADDING_DISABLED);
    ZydisFormatterSetProperty(f, ZYDIS_FORMATTER_PROP_FORCE_RELATIVE_RIPREL, ZYAN_TRUE);
}

/* Guest instructions are named by their offset in the page. */
static void print_guest(const struct listing *l, const struct step *s)
{
    uint64_t ent = p2m_get(physmap_p2m(l->t->c->vm->map), l->t->b->gpa >> PAGE_SHIFT);
    ZydisFormatterFunc target = (ZydisFormatterFunc)&print_guest_address;
    ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
    ZydisDecodedInstruction z;
    ZydisFormatter f;
    ZydisDecoder d;
    char text[160];

    ZydisDecoderInit(&d, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    formatter(&f);
    ZydisFormatterSetHook(&f, ZYDIS_FORMATTER_FUNC_PRINT_ADDRESS_ABS, (const void **)&target);
    if (ZYAN_FAILED(
            ZydisDecoderDecodeFull(&d, (const uint8_t *)p2m_host(ent) + s->off, s->i.len, &z, op)))
        strcpy(text, "?");
    else
        format(&f, &z, op, s->off, NULL, text, sizeof(text));
    fprintf(l->out, "%03x     %s\n", s->off, text);
}

/* The ways in that begin here. */
static void print_entries(const struct listing *l, uint32_t off)
{
    static const char *const flags[] = {[BT_HOST] = "EFLAGS", [BT_CC] = "cpu.cc"};
    const struct tblock *tb = l->t->t;

    for (enum bt_flags f = BT_HOST; f <= BT_CC; f++) {
        if (bt_host(l->t->bt, off) == tb->entry[f])
            fprintf(l->out, "in by the jump table, flags in %s\n", flags[f]);
        if (off == tb->at[f])
            fprintf(l->out, "in by a link, flags in %s\n", flags[f]);
        if (off == tb->vat[f] && tb->level)
            fprintf(l->out, "in by a link, vector registers live, flags in %s\n", flags[f]);
    }
}

/* entry: all of it; else without the ways in, which lie before the body and the cold paths. */
static void print_block(struct listing *l, bool entry)
{
    const struct tblock *tb = l->t->t;
    uint32_t from = entry ? tb->begin : l->t->body, paths = entry ? l->cold : l->paths;
    unsigned step = 0, hot = 0;

    for (l->at = 0; l->at < l->n; l->at++) {
        const struct host_insn *h = &l->insn[l->at];

        if (h->off < from || (h->off >= l->cold && h->off < paths))
            continue;
        if (h->off == paths)
            fprintf(l->out, "cold\n");
        if (entry)
            print_entries(l, h->off);
        if (h->label[0] && (entry || h->off != l->t->body))
            fprintf(l->out, "%s:\n", h->label);
        while (step < l->t->n && l->t->step[step].host <= h->off)
            print_guest(l, &l->t->step[step++]);
        hot += h->off < l->cold;
        print_host(l);
    }
    fprintf(l->out, "%u host instructions in %u bytes, and %u bytes of cold code\n", hot,
            tb->end - from, l->t->bt->cold - paths);
}

bool listing_host(FILE *out, const struct tr *t, bool entry)
{
    struct listing *l = calloc(1, sizeof(*l));
    bool ok;

    if (!l)
        return false;
    l->out = out;
    l->t = t;
    l->mem = (ZydisFormatterFunc)&print_mem;
    l->imm = (ZydisFormatterFunc)&print_imm;
    formatter(&l->f);
    ZydisFormatterSetHook(&l->f, ZYDIS_FORMATTER_FUNC_FORMAT_OPERAND_MEM, (const void **)&l->mem);
    ZydisFormatterSetHook(&l->f, ZYDIS_FORMATTER_FUNC_FORMAT_OPERAND_IMM, (const void **)&l->imm);
    find_cold(l);
    ok = decode(l, t->t->begin, t->t->end) && decode(l, l->cold, t->bt->cold);
    if (ok) {
        find_labels(l);
        print_block(l, entry);
        ok = !l->unnamed;
    }
    free(l);
    return ok;
}
