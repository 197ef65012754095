#include "gen.h"

#include <string.h>
#include <strings.h>

/* ---- which instructions ---- */

/* Far transfers and segment register loads: they need selectors that mean the same to host and
 * guest. */
static bool is_far(const struct insn *i)
{
    switch (i->id) {
    case INSN_RET_FAR:
    case INSN_IRET:
    case INSN_CALL_FAR:
    case INSN_CALL_FAR_IND:
    case INSN_JMP_FAR:
    case INSN_JMP_FAR_IND:
    case INSN_LDS:
    case INSN_LES:
    case INSN_LSS:
        return true;
    case INSN_MOV_SREG:
    case INSN_POP_SREG: /* but FS holds the oracle's thread pointer, and GS our base */
        return i->op[0].kind == OP_REG && i->op[0].cls == RC_SREG && i->op[0].reg < FS;
    default:
        return false;
    }
}

/* May a case have it? Not what reaches the host's kernel or world, or whose result is not the
 * program's alone. */
static bool allowed(const struct gen_cfg *cfg, const struct insn *i)
{
    if (!insn_supported(i, cfg->policy))
        return false;
    if (is_far(i))
        return false;
    for (unsigned k = 0; k < i->nops; k++) {
        if (i->op[k].kind == OP_MEM &&
            (i->mem.seg == FS || (i->mem.seg == GS && i->bits != CPU_64)))
            return false;
        if (i->op[k].kind == OP_REG && i->op[k].cls == RC_SREG && i->op[k].write)
            return false;
    }
    switch (i->id) {
    case INSN_SYSCALL:
    case INSN_SYSENTER:
    case INSN_RDTSC:
    case INSN_RDTSCP:
    case INSN_RDPMC:
    case INSN_RDRAND:
    case INSN_RDSEED:
    case INSN_RDPID:
    case INSN_CPUID:
    case INSN_XGETBV:
    case INSN_SGDT:
    case INSN_SIDT:
    case INSN_SLDT:
    case INSN_STR:
    case INSN_SMSW:
    case INSN_LAR:
    case INSN_LSL:
    case INSN_VERR:
    case INSN_VERW:
    case INSN_LFS:
    case INSN_LGS:
    case INSN_WRFSBASE:
    case INSN_WRGSBASE:
    case INSN_RDFSBASE:
    case INSN_RDGSBASE:
    case INSN_VMCALL:
    case INSN_VMMCALL:
    case INSN_MONITOR:
    case INSN_MWAIT:
    case INSN_HLT:
        return false;
    case INSN_INT:
        return i->imm != 0x80;
    case INSN_XSAVE:
    case INSN_XSAVEC:
    case INSN_XSAVEOPT:
    case INSN_XRSTOR:
        return cfg->xsave;
    case INSN_XSAVES:
    case INSN_XRSTORS:
        return false;
    default:
        return true;
    }
}

static bool has_mem(const struct insn *i)
{
    for (unsigned n = 0; n < i->nops; n++)
        if (i->op[n].kind == OP_MEM)
            return true;
    return false;
}

/* Locked accesses across cache lines are trapped and delayed by the host's kernel. */
static bool is_locked(const struct insn *i)
{
    return has_mem(i) && ((i->prefix & PFX_LOCK) || i->id == INSN_XCHG);
}

/* A memory operand in ModRM, as opposed to one in fixed registers or moffs. */
static bool modrm_mem(const struct insn *i)
{
    return has_mem(i) && i->off_modrm && i->modrm < 0xc0;
}

static const struct insn_row *pick_row(struct rng *r, const struct gen_cfg *cfg)
{
    static const uint8_t weight[ROW_KINDS] = {
        [ROW_GENERAL] = 46, [ROW_X87] = 8,  [ROW_MMX] = 4,
        [ROW_SSE] = 18,     [ROW_VEX] = 10, [ROW_EVEX] = 14,
    };
    unsigned w = pick(r, 100), kind = 0;

    while (w >= weight[kind])
        w -= weight[kind++];
    for (unsigned tries = 0;; tries++) {
        const struct insn_row *row = &insn_table[pick(r, (unsigned)insn_table_len)];
        if (cfg->only ? !strcasecmp(cfg->only, row->mnemonic) || tries > 1000000
                      : encode_kind(row) == kind)
            return row;
    }
}

/* A random allowed instruction for this code size. */
static void pick_insn(struct rng *r, const struct gen_cfg *cfg, enum cpu_bits bits, uint8_t b[16],
                      struct insn *i)
{
    struct gen_cfg any = *cfg;

    for (unsigned tries = 0;; tries++) {
        const struct insn_row *row;
        if (tries == 10000) /* none of the wanted ones exists here */
            any.only = NULL;
        row = pick_row(r, &any);
        encode_row(r, row, bits, b);
        if (insn_decode(i, b, INSN_MAX_LEN, bits) == INSN_OK && i->row == row && allowed(cfg, i))
            return;
    }
}

/* ---- state ---- */

static void gen_state(struct rng *r, struct test_case *t)
{
    struct cpu_state *s = &t->s;
    unsigned gprs = t->bits == CPU_64 ? 16 : 8;

    for (unsigned n = 0; n < gprs; n++)
        s->gpr[n] = t->bits == CPU_64 ? value_gpr(r) : (uint32_t)value_gpr(r);
    s->gpr[RSP] = DATA_ADDR + 0x800 + 8 * pick(r, 256);
    if (!pick(r, 16))
        s->gpr[RSP] = DATA_ADDR + pick(r, DATA_BYTES + 16);
    s->rflags = FL_R1 | FL_IF | (rnd(r) & FL_STATUS) | (pick(r, 8) ? 0 : FL_DF);
    value_vector(r, s->zmm, sizeof(s->zmm));
    for (unsigned n = 0; n < 8; n++)
        s->k[n] = pick(r, 3) ? rnd(r) : rnd(r) & rnd(r) & rnd(r);
    s->mxcsr = value_mxcsr(r);
    value_x87(r, &s->x87);
}

/* Some of the data is new in each case, the rest the same in all. */
static void gen_data(struct rng *r, struct test_case *t)
{
    for (unsigned n = 0; n < 16; n++)
        value_vector(r, t->data + 512 * n + 64 * pick(r, 8), 64);
    for (unsigned n = 0; n < 64; n++) /* the stack's neighbourhood: addresses that lead somewhere */
        if (!pick(r, 4)) {
            uint64_t v = CODE_ADDR + t->start + pick(r, 32);
            memcpy(t->data + 0x800 + 8 * pick(r, 256), &v, 8);
        }
}

/* Where a memory operand goes: mostly inside, sometimes astride the end of what may be touched. */
static uint64_t gen_target(struct rng *r)
{
    switch (pick(r, 20)) {
    case 0:
        return DATA_ADDR + pick(r, DATA_BYTES - 64);
    case 1:
        return DATA_ADDR - pick(r, 64);
    case 2:
        return RO_ADDR - pick(r, 64);
    case 3:
        return RO_ADDR + RO_BYTES - pick(r, 64);
    case 4:
        return RO_ADDR + pick(r, RO_BYTES - 64);
    case 5:
        return DATA_ADDR + PAGE_SIZE - pick(r, 64);
    case 6:
        return pick(r, 4) ? CODE_ADDR + 0x100 + pick(r, 64) : rnd(r);
    case 7:
    case 8:
    case 9:
        return DATA_ADDR + 8 * pick(r, DATA_BYTES / 8 - 64);
    default:
        return DATA_ADDR + 64 * pick(r, DATA_BYTES / 64 - 50);
    }
}

/* XRSTOR and FXRSTOR images that are sometimes valid. */
static void gen_image(struct rng *r, uint8_t *p, const struct cpuid_policy *pol)
{
    uint32_t mxcsr = (uint32_t)rnd(r) & (pick(r, 8) ? 0xffff : 0x1ffff);
    uint64_t bv = rnd(r) & (pick(r, 8) ? pol->xcr0_mask : ~0ull), comp = 0;

    memcpy(p + 24, &mxcsr, 4);
    memset(p + 512, 0, 64);
    if (pick(r, 2)) {
        comp = BIT(63) | (rnd(r) & pol->xcr0_mask);
        if (pick(r, 8))
            bv &= comp;
    }
    memcpy(p + 512, &bv, 8);
    memcpy(p + 520, &comp, 8);
    if (!pick(r, 10))
        p[528 + pick(r, 48)] = 1;
}

/* ---- single instructions ---- */

static void set_gpr(struct test_case *t, unsigned reg, uint64_t v)
{
    t->s.gpr[reg] = t->bits == CPU_64 ? v : (uint32_t)v;
}

static void aim_vsib(struct rng *r, struct test_case *t, const struct insn *i, uint64_t ta)
{
    uint8_t *idx = (uint8_t *)t->s.zmm[i->mem.index];

    if (i->mem.base != REG_NONE)
        set_gpr(t, i->mem.base, ta - (uint64_t)i->mem.disp);
    for (unsigned n = 0; n < 16; n++) {
        uint32_t v = (uint32_t)(pick(r, 40) ? (int)pick(r, 200) - 100 : (int)rnd(r));
        memcpy(idx + 4 * n, &v, 4);
        if (i->opcode & 1) {
            uint64_t q = sext(v, 32);
            memcpy(idx + 4 * n++, &q, 8);
        }
    }
}

/* Makes the memory operand of i, to be placed at address at, point at ta where the encoding allows.
 */
static void aim(struct rng *r, struct test_case *t, const struct insn *i, uint8_t *raw, uint64_t at,
                uint64_t ta)
{
    const struct insn_mem *m = &i->mem;

    if (m->vsib) {
        aim_vsib(r, t, i, ta);
    } else if (!modrm_mem(i)) {
        switch (i->id) {
        case INSN_XLAT:
            set_gpr(t, RBX, ta - (t->s.gpr[RAX] & 0xff));
            break;
        case INSN_MOV: /* moffs */
            memcpy(raw + i->len - i->addrsize, &ta, i->addrsize);
            break;
        default: /* strings, MASKMOV */
            if (ta - CODE_ADDR <
                CODE_BYTES) /* what a processor makes of its own code then is its choice */
                ta = DATA_ADDR;
            set_gpr(t, RSI, ta);
            set_gpr(t, RDI, pick(r, 4) ? gen_target(r) : ta + pick(r, 64) - 32);
            if ((i->prefix & (PFX_REP | PFX_REPNE)) && pick(r, 8))
                set_gpr(t, RCX, pick(r, 4) ? pick(r, 40) : pick(r, 3000));
        }
    } else if (m->base == REG_RIP || (m->base == REG_NONE && m->index == REG_NONE)) {
        uint64_t d = ta - (m->base == REG_RIP ? at + i->len : 0);
        unsigned off = i->off_modrm + ((raw[i->off_modrm] & 7) == 4 ? 2 : 1);
        if (i->addrsize >= 4)
            memcpy(raw + off, &d, 4);
    } else if (m->base != REG_NONE && m->base != m->index) {
        uint64_t rest = (uint64_t)m->disp;
        if (m->index != REG_NONE)
            rest += t->s.gpr[m->index] << m->scale;
        set_gpr(t, m->base, ta - rest);
    }
}

static void add_item(struct test_case *t, const uint8_t *b, unsigned len)
{
    struct item *it = &t->item[t->n++];

    memset(it, 0, sizeof(*it));
    memcpy(it->b, b, len);
    it->len = (uint8_t)len;
}

static bool is_branch(const struct insn *i) { return i->nops && i->op[0].kind == OP_REL; }

static void add_branch(struct test_case *t, const uint8_t *b, unsigned len, unsigned fix,
                       unsigned target)
{
    add_item(t, b, len);
    t->item[t->n - 1].fix = (uint8_t)fix;
    t->item[t->n - 1].target = (int8_t)target;
}

static bool uses_image(const struct insn *i)
{
    return i->id == INSN_XRSTOR || i->id == INSN_FXRSTOR || i->id == INSN_XSAVE ||
           i->id == INSN_XSAVEOPT || i->id == INSN_XSAVEC;
}

static void gen_single(struct rng *r, const struct gen_cfg *cfg, struct test_case *t)
{
    uint8_t b[16];
    struct insn i;

    pick_insn(r, cfg, t->bits, b, &i);
    if (has_mem(&i)) {
        uint64_t ta = gen_target(r);
        if (uses_image(&i)) {
            ta = DATA_ADDR + 64 * pick(r, 20) + (pick(r, 10) ? 0 : pick(r, 64));
            gen_image(r, t->data + (ta - DATA_ADDR), cfg->policy);
            if (pick(r, 4)) {
                t->s.gpr[RAX] = rnd(r) & 0xff;
                t->s.gpr[RDX] = 0;
            }
        }
        if (is_locked(&i) && pick(r, 64))
            ta &= ~15ull;
        if (i.id == INSN_BT || i.id == INSN_BTS || i.id == INSN_BTR || i.id == INSN_BTC)
            if (i.op[1].kind == OP_REG && pick(r, 4))
                set_gpr(t, i.op[1].reg, (uint64_t)(int64_t)(int)(pick(r, 2000) - 1000));
        aim(r, t, &i, b, CODE_ADDR + t->start, ta);
    } else if (i.id == INSN_LEAVE || i.id == INSN_ENTER) {
        set_gpr(t, RBP, gen_target(r));
    }
    if ((i.id == INSN_DIV || i.id == INSN_IDIV) && pick(r, 2))
        t->s.gpr[RDX] = pick(r, 2) ? pick(r, 4) : 0;
    if (i.id == INSN_CMPXCHG && i.op[0].kind == OP_REG && pick(r, 2))
        t->s.gpr[RAX] = t->s.gpr[i.op[0].reg];
    add_item(t, b, i.len);
    if (is_branch(&i) && i.opsize != 2) {
        t->item[0].fix = i.len > 4 && i.op[0].size == 4 ? FIX_REL32 : FIX_REL8;
        t->item[0].target = 1;
        add_item(t, (const uint8_t[]){0x90}, 1);
        t->item[0].target = (int8_t)(pick(r, 2) + 1);
    }
    if (!pick(r, 16))
        t->s.rflags |= FL_TF;
    if (!pick(r, 16))
        t->s.rflags |= FL_AC;
}

/* ---- far transfers and segment loads ---- */

static uint16_t gen_selector(struct rng *r)
{
    static const uint16_t sel[] = {
        SEL_CODE64, SEL_CODE32, SEL_DATA, SEL_CODE64, SEL_CODE32, SEL_DATA, 0,    3,
        0x30,       0x20,       0x28,     0x31,       0x10,       0x13,     0x18, 0x1b,
        0x40,       0x43,       0x48,     0x37,       0xfffb,     0x100};
    return sel[pick(r, ARRAY_LEN(sel))];
}

/* Where a far transfer leads: mostly to code. */
static uint64_t gen_far_target(struct rng *r, const struct test_case *t)
{
    switch (pick(r, 8)) {
    case 0:
        return value_gpr(r);
    case 1:
        return DATA_ADDR + pick(r, 256);
    default:
        return CODE_ADDR + t->start + 32 + pick(r, 64);
    }
}

static void put(struct test_case *t, uint64_t la, const void *p, unsigned n)
{
    if (la >= DATA_ADDR && la + n <= DATA_ADDR + DATA_BYTES)
        memcpy(t->data + (la - DATA_ADDR), p, n);
}

/* The words that IRET, RETF and POP find on the stack, of n bytes each. */
static void gen_frame(struct rng *r, struct test_case *t, const struct insn *i)
{
    unsigned n = i->opsize;
    uint64_t sp = t->s.gpr[RSP];
    uint64_t word[5] = {gen_far_target(r, t), gen_selector(r) | (rnd(r) & 0xffff0000),
                        (rnd(r) & 0x250dd5) | (pick(r, 4) ? 0 : FL_TF),
                        DATA_ADDR + 8 * pick(r, DATA_BYTES / 8), gen_selector(r)};

    if (i->id == INSN_POP_SREG)
        word[0] = word[1];
    /* Some processors check alignment by the new flags already, and the host's kernel takes that
     * for a split lock and tries for ever. */
    if (sp & 7)
        word[2] &= ~FL_AC;
    for (unsigned k = 0; k < 5; k++)
        put(t, sp + k * n, &word[k], n);
}

static void gen_far(struct rng *r, const struct gen_cfg *cfg, struct test_case *t)
{
    uint8_t b[16];
    struct insn i;

    for (;;) {
        const struct insn_row *row = &insn_table[pick(r, (unsigned)insn_table_len)];
        if (!(row->flags & IF_SYS))
            continue;
        encode_row(r, row, t->bits, b);
        if (insn_decode(&i, b, INSN_MAX_LEN, t->bits) == INSN_OK && i.row == row && is_far(&i) &&
            insn_supported(&i, cfg->policy) && !(has_mem(&i) && i.mem.seg >= FS))
            break;
    }
    if (has_mem(&i)) {
        uint64_t ta = pick(r, 8) ? DATA_ADDR + 8 * pick(r, 512) : gen_target(r),
                 off = gen_far_target(r, t);
        uint16_t sel = gen_selector(r);

        aim(r, t, &i, b, CODE_ADDR + t->start, ta);
        if (i.id == INSN_MOV_SREG) {
            put(t, ta, &sel, 2);
        } else {
            put(t, ta, &off, i.opsize);
            put(t, ta + i.opsize, &sel, 2);
        }
    } else if (i.id == INSN_MOV_SREG) {
        set_gpr(t, i.op[1].reg, gen_selector(r) | (rnd(r) & 0xffff0000));
    } else if (i.nops && i.op[0].kind == OP_FARPTR) {
        uint64_t off = gen_far_target(r, t);
        uint16_t sel = gen_selector(r);

        memcpy(b + i.len - 2 - i.opsize, &off, i.opsize);
        memcpy(b + i.len - 2, &sel, 2);
    } else {
        gen_frame(r, t, &i);
    }
    add_item(t, b, i.len);
    for (unsigned n = pick(r, 3); n; n--) /* for the shadow of a load of SS */
        add_item(t, (const uint8_t[]){0x90}, 1);
    if (!pick(r, 4))
        t->s.rflags |= FL_TF;
}

/* ---- sequences ---- */

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
        pick_insn(r, cfg, t->bits, b, &i);
        if (modrm_mem(&i) && i.id != INSN_LEA && !readdress(r, &i, b))
            continue;
        if (is_locked(&i) && (i.mem.disp & 15))
            continue;
        bool wild = !pick(r, 300);
        if (!wild &&
            (writes_reserved(&i, q->reserved) || (i.row->flags & (IF_PRIV | IF_SYS | IF_BRANCH))))
            continue;
        if ((i.row->flags & IF_BRANCH) || i.id == INSN_POPF)
            continue;
        if (!wild &&
            (i.id == INSN_IN || i.id == INSN_OUT || i.id == INSN_INS || i.id == INSN_OUTS ||
             i.id == INSN_XLAT || (i.id == INSN_MOV && has_mem(&i) && !modrm_mem(&i)) ||
             i.mem.vsib || i.id == INSN_DIV || i.id == INSN_IDIV || (i.row->flags & IF_PRIV)))
            continue;
        if (has_mem(&i) && !modrm_mem(&i) && !wild)
            continue;
        if (i.row->fl_read & q->undef)
            continue;
        if ((i.id == INSN_BT || i.id == INSN_BTS || i.id == INSN_BTR || i.id == INSN_BTC) &&
            has_mem(&i) && i.op[1].kind == OP_REG)
            continue;
        q->undef = (q->undef & ~(uint64_t)i.row->fl_write) | i.row->fl_undef;
        add_item(t, b, i.len);
        return;
    }
    add_item(t, (const uint8_t[]){0x90}, 1);
}

static void seq_step(struct rng *r, const struct gen_cfg *cfg, struct test_case *t, struct seq *q);

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
    if (pick(r, 3))
        add_branch(t, (const uint8_t[]){0x0f, (uint8_t)(0x80 | cc), 0, 0, 0, 0}, 6, FIX_REL32, 0);
    else
        add_branch(t, (const uint8_t[]){0xeb, 0}, 2, FIX_REL8, 0); /* JMP */
    seq_some(r, cfg, t, q, 1 + pick(r, 4));
    t->item[at].target = (int8_t)t->n;
    q->undef_at[t->n] |= before;
    q->undef |= before;
}

/* A counted loop around a few instructions. */
static void seq_loop(struct rng *r, const struct gen_cfg *cfg, struct test_case *t, struct seq *q)
{
    unsigned head;
    uint8_t mov[] = {0xb9, (uint8_t)(1 + pick(r, 12)), 0, 0, 0};

    if (q->reserved & 1u << RCX)
        return;
    add_item(t, mov, 5); /* mov ecx, n */
    head = t->n;
    q->reserved |= 1u << RCX;
    q->undef = FL_STATUS;
    seq_some(r, cfg, t, q, 1 + pick(r, 6));
    if (!pick(r, 3))
        seq_skip(r, cfg, t, q);
    switch (pick(r, 4)) {
    case 0:
        add_branch(t, (const uint8_t[]){0xe2, 0}, 2, FIX_REL8, head); /* loop */
        break;
    case 1:
        add_item(t, (const uint8_t[]){0x83, 0xe9, 1}, 3); /* sub ecx, 1 */
        add_branch(t, (const uint8_t[]){0x0f, 0x87, 0, 0, 0, 0}, 6, FIX_REL32, head); /* ja */
        q->undef = 0;
        break;
    default:
        if (t->bits == CPU_64)
            add_item(t, (const uint8_t[]){0xff, 0xc9}, 2); /* dec ecx */
        else
            add_item(t, (const uint8_t[]){0x49}, 1);
        add_branch(t, (const uint8_t[]){0x0f, 0x85, 0, 0, 0, 0}, 6, FIX_REL32, head); /* jnz */
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
        add_branch(t, (const uint8_t[]){0x4c, 0x8d, 0x05, 0, 0, 0, 0}, 7, FIX_REL32, 0);
        add_item(t, (const uint8_t[]){0x41, 0xff, 0xd0}, 3);
    } else {
        call = t->n;
        add_branch(t, (const uint8_t[]){0xe8, 0, 0, 0, 0}, 5, FIX_REL32, 0);
    }
    jmp = t->n;
    add_branch(t, (const uint8_t[]){0xe9, 0, 0, 0, 0}, 5, FIX_REL32, 0);
    t->item[call].target = (int8_t)t->n;
    seq_some(r, cfg, t, q, 1 + pick(r, 4));
    add_item(t, (const uint8_t[]){0xc3}, 1);
    t->item[jmp].target = (int8_t)t->n;
}

static void seq_step(struct rng *r, const struct gen_cfg *cfg, struct test_case *t, struct seq *q)
{
    switch (pick(r, 16)) {
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

static void gen_sequence(struct rng *r, const struct gen_cfg *cfg, struct test_case *t)
{
    struct seq q = {.reserved = POINTERS | 1u << R12 | 1u << RSP, .left = 2 + pick(r, 14)};

    for (unsigned reg = 0; reg < (t->bits == CPU_64 ? 16 : 8); reg++)
        if (POINTERS >> reg & 1)
            t->s.gpr[reg] = DATA_ADDR + 0x100 + 16 * pick(r, 0x1a0);
    if (!pick(r, 3)) /* page-crossing operands */
        t->s.gpr[(uint8_t[]){RBX, RBP, RSI, RDI}[pick(r, 4)]] = DATA_ADDR + PAGE_SIZE - pick(r, 64);
    if (t->bits == CPU_64)
        t->s.gpr[R12] = pick(r, 8);
    while (q.left && t->n < ITEMS_MAX - 16)
        seq_step(r, cfg, t, &q);
    if (!pick(r, 32))
        t->s.rflags |= FL_AC;
}

void gen_case(struct rng *r, const struct gen_cfg *cfg, struct test_case *t)
{
    unsigned kind;

    do {
        case_init(t, pick(r, 6) ? CPU_64 : CPU_32);
        t->start = (uint16_t)(pick(r, 4) ? 0x100 + pick(r, 64) : PAGE_SIZE - pick(r, 48));
        if (!pick(r, 40))
            t->start = (uint16_t)(CODE_BYTES - 1 - pick(r, 24));
        gen_state(r, t);
        gen_data(r, t);
        kind = cfg->only ? 0 : pick(r, 20);
        if (kind == 19 || (cfg->only && !strcmp(cfg->only, "far")))
            gen_far(r, cfg, t);
        else if (kind >= 10)
            gen_sequence(r, cfg, t);
        else
            gen_single(r, cfg, t);
    } while (!case_assemble(t, (uint8_t[CODE_BYTES]){0}, NULL));
}

uint64_t gen_undefined(const struct test_case *t)
{
    uint64_t all = 0;
    struct insn i;

    for (unsigned k = 0; k < t->n; k++)
        if (case_decode(t, k, &i))
            all |= i.row->fl_undef;
    return all;
}
