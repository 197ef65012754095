/* Sequences: what keeps going, so that faults come in the middle of a block and flags live across branches. */
#include "parts.h"

#include <string.h>

/* Registers with a purpose, which no other instruction may write. The pointers lie in the data
 * pages with room on both sides; R12 is a small index; with a loop RCX counts. */
struct seq {
    uint32_t reserved;
    uint64_t undef;                   /* status flags that the manual leaves undefined here */
    uint64_t undef_at[ITEMS_MAX + 1]; /* what forward branches bring to an item */
    unsigned left;                    /* instructions still wanted */
};
#define POINTERS \
    (1u << RBX | 1u << RBP | 1u << RSI | 1u << RDI | 1u << R11 | 1u << R13 | 1u << R14 | 1u << R15)

static bool writes_reserved(const struct insn *i, uint32_t reserved)
{
    for (unsigned k = 0; k < i->nops; k++) {
        const struct opnd *o = &i->op[k];
        if (o->kind == OP_REG && o->write && (o->cls == RC_GPR || o->cls == RC_GPRH) &&
            reserved >> o->reg & 1)
            return true;
    }
    switch (i->id) {
    case INSN_MOVS:
    case INSN_STOS:
    case INSN_LODS:
    case INSN_CMPS:
    case INSN_SCAS:
    case INSN_INS:
    case INSN_OUTS:
    case INSN_POPA:
    case INSN_ENTER:
    case INSN_LEAVE:
        return true;
    case INSN_CMPXCHG8B:
    case INSN_CMPXCHG16B:
        return reserved & (1u << RAX | 1u << RDX);
    case INSN_PCMPESTRI:
    case INSN_PCMPISTRI:
    case INSN_VPCMPESTRI:
    case INSN_VPCMPISTRI:
        return reserved & 1u << RCX;
    default:
        return false;
    }
}

/* Rewrites the operand as [pointer (+ R12 << n) + disp8]. */
static bool readdress(struct rng *r, struct insn *i, uint8_t *b)
{
    uint8_t out[16];
    unsigned n = i->off_modrm, tail = i->off_imm ? i->len - i->off_imm : 0;
    bool x_clear = true, evex = i->prefix & PFX_EVEX;
    static const uint8_t low[4] = {RBX, RBP, RSI, RDI};

    if (i->mem.vsib || i->addrsize < 4)
        return false;
    memcpy(out, b, n);
    if (i->prefix & (PFX_VEX | PFX_EVEX)) {
        unsigned at = 0;
        while (b[at] != 0xc4 && b[at] != 0xc5 && b[at] != 0x62)
            at++;
        x_clear = b[at] == 0xc5 || (b[at + 1] & 0x40);
    } else {
        x_clear = !(i->rex & 2);
    }
    bool sib = !x_clear || !pick(r, 6);
    out[n++] = (uint8_t)(0x40 | (b[i->off_modrm] & 0x38) | (sib ? 4 : low[pick(r, 4)]));
    if (sib)
        out[n++] = (uint8_t)(pick(r, 4) << 6 | 4 << 3 | low[pick(r, 4)]); /* no index, or R12 */
    out[n++] = (uint8_t)(evex         ? pick(r, 3) - 1
                         : pick(r, 3) ? 16 * (pick(r, 8) - 4)
                                      : pick(r, 256) - 128);
    if (n + tail > INSN_MAX_LEN)
        return false;
    memcpy(out + n, b + i->off_imm, tail);
    memset(b, 0xf4, 16);
    memcpy(b, out, n + tail);
    return insn_decode(i, b, n + tail, i->bits) == INSN_OK;
}

/* One instruction that keeps the sequence going. */
static void seq_insn(struct rng *r, const struct gen_cfg *cfg, struct test_case *t, struct seq *q)
{
    uint8_t b[16];
    struct insn i;

    for (unsigned tries = 0; tries < 200; tries++) {
        gen_pick_insn(r, cfg, t->bits, b, &i);
        if (gen_modrm_mem(&i) && i.id != INSN_LEA && !readdress(r, &i, b))
            continue;
        if (gen_is_locked(&i) && (i.mem.disp & 15))
            continue;
        bool wild = !pick(r, 300), divides = i.id == INSN_DIV || i.id == INSN_IDIV;
        if (!wild &&
            (writes_reserved(&i, q->reserved) || (i.row->flags & (IF_PRIV | IF_SYS | IF_BRANCH))))
            continue;
        if ((i.row->flags & IF_BRANCH) || i.id == INSN_POPF)
            continue;
        /* Which components are in use, and so written, is the processor's to know once something ran. */
        if (i.id == INSN_XSAVE || i.id == INSN_XSAVEC || i.id == INSN_XSAVEOPT ||
            i.id == INSN_XRSTOR)
            continue;
        if (!wild &&
            (i.id == INSN_IN || i.id == INSN_OUT || i.id == INSN_INS || i.id == INSN_OUTS ||
             i.id == INSN_XLAT || (i.id == INSN_MOV && gen_has_mem(&i) && !gen_modrm_mem(&i)) ||
             i.mem.vsib || (divides && pick(r, 4)) || (i.row->flags & IF_PRIV)))
            continue;
        if (gen_has_mem(&i) && !gen_modrm_mem(&i) && !wild)
            continue;
        if (i.row->fl_read & q->undef)
            continue;
        if ((i.id == INSN_BT || i.id == INSN_BTS || i.id == INSN_BTR || i.id == INSN_BTC) &&
            gen_has_mem(&i) && i.op[1].kind == OP_REG)
            continue;
        q->undef = (q->undef & ~(uint64_t)i.row->fl_write) | i.row->fl_undef;
        gen_add_item(t, b, i.len);
        return;
    }
    gen_add_item(t, (const uint8_t[]){0x90}, 1);
}

static void seq_some(struct rng *r, const struct gen_cfg *cfg, struct test_case *t, struct seq *q,
                     unsigned n)
{
    while (n-- && q->left) {
        q->undef |= q->undef_at[t->n];
        q->left--;
        seq_insn(r, cfg, t, q);
    }
    q->undef |= q->undef_at[t->n];
}

/* A conditional branch over the next few instructions. */
static void seq_skip(struct rng *r, const struct gen_cfg *cfg, struct test_case *t, struct seq *q)
{
    unsigned at = t->n, cc;
    static const uint64_t test[8] = {FL_OF, FL_CF, FL_ZF,         FL_CF | FL_ZF,
                                     FL_SF, FL_PF, FL_SF | FL_OF, FL_SF | FL_OF | FL_ZF};
    uint64_t before = q->undef;

    cc = pick(r, 16);
    if (test[cc >> 1] & q->undef)
        return;
    if (pick(r, 3)) {
        gen_add_branch(t, (const uint8_t[]){0x0f, (uint8_t)(0x80 | cc), 0, 0, 0, 0}, 6, FIX_REL32, 0);
    } else if (t->bits == CPU_64 && pick(r, 2)) { /* lea r8, [rip + target]; jmp r8 or push r8; ret */
        gen_add_branch(t, (const uint8_t[]){0x4c, 0x8d, 0x05, 0, 0, 0, 0}, 7, FIX_REL32, 0);
        gen_add_item(t, (const uint8_t[]){0x41, pick(r, 2) ? 0xff : 0x50, 0xe0}, 3);
        if (t->item[t->n - 1].b[1] == 0x50) {
            t->item[t->n - 1].len = 2;
            gen_add_item(t, (const uint8_t[]){0xc3}, 1);
        }
    } else {
        gen_add_branch(t, (const uint8_t[]){0xeb, 0}, 2, FIX_REL8, 0); /* JMP */
    }
    seq_some(r, cfg, t, q, 1 + pick(r, 4));
    t->item[at].target = (int8_t)t->n;
    q->undef_at[t->n] |= before;
    q->undef |= before;
}

/* call next; next: pop r8 or edx: a return address that nobody returns to */
static void seq_where(struct test_case *t)
{
    gen_add_branch(t, (const uint8_t[]){0xe8, 0, 0, 0, 0}, 5, FIX_REL32, t->n + 1);
    if (t->bits == CPU_64)
        gen_add_item(t, (const uint8_t[]){0x41, 0x58}, 2);
    else
        gen_add_item(t, (const uint8_t[]){0x5a}, 1);
}

/* An instruction whose immediate another one of the sequence changes, in this block or the next
 * round of a loop. */
static void seq_patched(struct rng *r, struct test_case *t, struct seq *q)
{
    static const uint8_t code[][5] = {
        {0x83, 0xc0, 5},          /* add eax, 5 */
        {0x83, 0xf8, 0x77},       /* cmp eax, 77h */
        {0x83, 0xea, 0x81},       /* sub edx, -7fh */
        {0xba, 1, 2, 3, 4},       /* mov edx, 4030201h */
        {0xb0, 9},                /* mov al, 9 */
        {0x6a, 0x11},             /* push 11h */
        {0x8d, 0x50, 0x33},       /* lea edx, [rax + 33h] */
    };
    static const uint8_t len[ARRAY_LEN(code)] = {3, 3, 3, 5, 2, 2, 3};
    unsigned k = pick(r, ARRAY_LEN(code));

    gen_add_item(t, code[k], len[k]);
    if (k < 3)
        q->undef = 0;
}

static void seq_patcher(struct rng *r, struct test_case *t, struct seq *q, unsigned target)
{
    static const struct {
        uint8_t op, reg;
        uint64_t writes;
    } how[] = {{0x88, 0, 0},         {0x88, 1, 0},         {0x88, 2, 0}, /* mov [], al, cl, dl */
               {0x00, 1, FL_STATUS}, {0x86, 0, 0},                       /* add [], cl; xchg [], al */
               {0xfe, 0, FL_STATUS & ~FL_CF}};                           /* inc byte [] */
    unsigned k = pick(r, ARRAY_LEN(how));
    uint8_t b[] = {how[k].op, (uint8_t)(how[k].reg << 3 | 5), 0, 0, 0, 0};

    gen_add_branch(t, b, sizeof(b), FIX_IMM, target);
    q->undef &= ~how[k].writes;
}

static void seq_patch(struct rng *r, const struct gen_cfg *cfg, struct test_case *t, struct seq *q)
{
    unsigned at = t->n;

    if (t->bits != CPU_64)
        return;
    if (pick(r, 2)) { /* what comes */
        seq_patcher(r, t, q, 0);
        seq_some(r, cfg, t, q, pick(r, 3));
        t->item[at].target = (int8_t)t->n;
        seq_patched(r, t, q);
    } else { /* what has been, and in a loop will be again */
        seq_patched(r, t, q);
        seq_some(r, cfg, t, q, pick(r, 3));
        seq_patcher(r, t, q, at);
    }
}

/* A counted loop around a few instructions. */
static void seq_loop(struct rng *r, const struct gen_cfg *cfg, struct test_case *t, struct seq *q)
{
    unsigned head;
    uint8_t mov[] = {0xb9, (uint8_t)(1 + pick(r, 12)), 0, 0, 0};

    if (q->reserved & 1u << RCX)
        return;
    gen_add_item(t, mov, 5); /* mov ecx, n */
    head = t->n;
    q->reserved |= 1u << RCX;
    q->undef = FL_STATUS;
    if (!pick(r, 6))
        seq_patch(r, cfg, t, q);
    seq_some(r, cfg, t, q, 1 + pick(r, 6));
    if (!pick(r, 3))
        seq_skip(r, cfg, t, q);
    switch (pick(r, 5)) {
    case 4: /* lea ecx, [rcx - 1]; jecxz over; jmp head; over: no flag is touched */
        gen_add_item(t, (const uint8_t[]){0x8d, 0x49, 0xff}, 3);
        gen_add_branch(t, (const uint8_t[]){0xe3, 0}, 2, FIX_REL8, t->n + 2);
        gen_add_branch(t, (const uint8_t[]){0xe9, 0, 0, 0, 0}, 5, FIX_REL32, head);
        break;
    case 0:
        gen_add_branch(t, (const uint8_t[]){0xe2, 0}, 2, FIX_REL8, head); /* loop */
        break;
    case 1:
        gen_add_item(t, (const uint8_t[]){0x83, 0xe9, 1}, 3); /* sub ecx, 1 */
        gen_add_branch(t, (const uint8_t[]){0x0f, 0x87, 0, 0, 0, 0}, 6, FIX_REL32, head); /* ja */
        q->undef = 0;
        break;
    default:
        if (t->bits == CPU_64)
            gen_add_item(t, (const uint8_t[]){0xff, 0xc9}, 2); /* dec ecx */
        else
            gen_add_item(t, (const uint8_t[]){0x49}, 1);
        gen_add_branch(t, (const uint8_t[]){0x0f, 0x85, 0, 0, 0, 0}, 6, FIX_REL32, head); /* jnz */
        q->undef &= FL_CF;
    }
    q->reserved &= ~(1u << RCX);
}

/* A call of a function that follows, with a jump around it. */
static void seq_call(struct rng *r, const struct gen_cfg *cfg, struct test_case *t, struct seq *q)
{
    unsigned call, jmp;

    if (t->bits == CPU_64 && !pick(r, 3)) { /* lea r8, [rip + function]; call r8 */
        call = t->n;
        gen_add_branch(t, (const uint8_t[]){0x4c, 0x8d, 0x05, 0, 0, 0, 0}, 7, FIX_REL32, 0);
        gen_add_item(t, (const uint8_t[]){0x41, 0xff, 0xd0}, 3);
    } else {
        call = t->n;
        gen_add_branch(t, (const uint8_t[]){0xe8, 0, 0, 0, 0}, 5, FIX_REL32, 0);
    }
    jmp = t->n;
    gen_add_branch(t, (const uint8_t[]){0xe9, 0, 0, 0, 0}, 5, FIX_REL32, 0);
    t->item[call].target = (int8_t)t->n;
    seq_some(r, cfg, t, q, 1 + pick(r, 4));
    switch (pick(r, 4)) {
    case 0: /* ret 8 */
        gen_add_item(t, (const uint8_t[]){0xc2, 8, 0}, 3);
        break;
    case 1: /* pop r8; jmp r8, or ret */
        if (t->bits == CPU_64) {
            gen_add_item(t, (const uint8_t[]){0x41, 0x58}, 2);
            gen_add_item(t, (const uint8_t[]){0x41, 0xff, 0xe0}, 3);
            break;
        } /* fall through */
    default:
        gen_add_item(t, (const uint8_t[]){0xc3}, 1);
    }
    t->item[jmp].target = (int8_t)t->n;
}

static void seq_step(struct rng *r, const struct gen_cfg *cfg, struct test_case *t, struct seq *q)
{
    switch (pick(r, 18)) {
    case 16:
        seq_where(t);
        break;
    case 17:
        seq_patch(r, cfg, t, q);
        break;
    case 0:
    case 1:
        seq_skip(r, cfg, t, q);
        break;
    case 2:
        seq_loop(r, cfg, t, q);
        break;
    case 3:
        seq_call(r, cfg, t, q);
        break;
    default:
        seq_some(r, cfg, t, q, 1);
    }
}

/* Where operands may fault: before what is mapped, in what is read-only, behind that; or go on in
 * another page. */
static uint64_t gen_edge(struct rng *r)
{
    static const uint64_t edge[] = {DATA_ADDR, RO_ADDR, RO_ADDR + RO_BYTES, DATA_ADDR + PAGE_SIZE};

    return edge[pick(r, ARRAY_LEN(edge))] - 48 + pick(r, 96);
}

void gen_sequence(struct rng *r, const struct gen_cfg *cfg, struct test_case *t)
{
    static const uint8_t low[4] = {RBX, RBP, RSI, RDI};
    struct gen_cfg own = *cfg;
    struct seq q = {.reserved = POINTERS | 1u << R12 | 1u << RSP};

    own.general = pick(r, 2);
    q.left = 1 + pick(r, cfg->block ? cfg->block : 15);
    for (unsigned reg = 0; reg < (t->bits == CPU_64 ? 16 : 8); reg++)
        if (POINTERS >> reg & 1)
            t->s.gpr[reg] = DATA_ADDR + 0x100 + 16 * pick(r, 0x1a0);
    if (pick(r, 2))
        t->s.gpr[low[pick(r, 4)]] = gen_edge(r);
    if (!pick(r, 12)) /* pushes may leave the stack */
        t->s.gpr[RSP] = DATA_ADDR + 8 * pick(r, 6);
    if (t->bits == CPU_64)
        t->s.gpr[R12] = pick(r, 8);
    while (q.left && t->n < ITEMS_MAX - 24)
        seq_step(r, &own, t, &q);
    if (!pick(r, 32))
        t->s.rflags |= FL_AC;
}
