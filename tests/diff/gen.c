#include "parts.h"

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

bool gen_has_mem(const struct insn *i)
{
    for (unsigned n = 0; n < i->nops; n++)
        if (i->op[n].kind == OP_MEM)
            return true;
    return false;
}

bool gen_is_locked(const struct insn *i)
{
    return gen_has_mem(i) && ((i->prefix & PFX_LOCK) || i->id == INSN_XCHG);
}

bool gen_modrm_mem(const struct insn *i)
{
    return gen_has_mem(i) && i->off_modrm && i->modrm < 0xc0;
}

static const struct insn_row *pick_row(struct rng *r, const struct gen_cfg *cfg)
{
    static const uint8_t weights[2][ROW_KINDS] = {
        {[ROW_GENERAL] = 46,
         [ROW_X87] = 8,
         [ROW_MMX] = 4,
         [ROW_SSE] = 18,
         [ROW_VEX] = 10,
         [ROW_EVEX] = 14},
        {[ROW_GENERAL] = 88,
         [ROW_X87] = 2,
         [ROW_MMX] = 1,
         [ROW_SSE] = 5,
         [ROW_VEX] = 2,
         [ROW_EVEX] = 2},
    };
    const uint8_t *weight = weights[cfg->general];
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

void gen_pick_insn(struct rng *r, const struct gen_cfg *cfg, enum cpu_bits bits, uint8_t b[16],
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

/* ---- single instructions ---- */

void gen_set_gpr(struct test_case *t, unsigned reg, uint64_t v)
{
    t->s.gpr[reg] = t->bits == CPU_64 ? v : (uint32_t)v;
}

static void aim_vsib(struct rng *r, struct test_case *t, const struct insn *i, uint64_t ta)
{
    uint8_t *idx = (uint8_t *)t->s.zmm[i->mem.index];

    if (i->mem.base != REG_NONE)
        gen_set_gpr(t, i->mem.base, ta - (uint64_t)i->mem.disp);
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
    } else if (!gen_modrm_mem(i)) {
        switch (i->id) {
        case INSN_XLAT:
            gen_set_gpr(t, RBX, ta - (t->s.gpr[RAX] & 0xff));
            break;
        case INSN_MOV: /* moffs */
            memcpy(raw + i->len - i->addrsize, &ta, i->addrsize);
            break;
        default: /* strings, MASKMOV */
            if (ta - CODE_ADDR <
                CODE_BYTES) /* what a processor makes of its own code then is its choice */
                ta = DATA_ADDR;
            gen_set_gpr(t, RSI, ta);
            gen_set_gpr(t, RDI, pick(r, 4) ? gen_target(r) : ta + pick(r, 64) - 32);
            if ((i->prefix & (PFX_REP | PFX_REPNE)) && pick(r, 8))
                gen_set_gpr(t, RCX, pick(r, 4) ? pick(r, 40) : pick(r, 3000));
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
        gen_set_gpr(t, m->base, ta - rest);
    }
}

void gen_add_item(struct test_case *t, const uint8_t *b, unsigned len)
{
    struct item *it = &t->item[t->n++];

    memset(it, 0, sizeof(*it));
    memcpy(it->b, b, len);
    it->len = (uint8_t)len;
}

static bool is_branch(const struct insn *i) { return i->nops && i->op[0].kind == OP_REL; }

void gen_add_branch(struct test_case *t, const uint8_t *b, unsigned len, enum item_fix fix,
                    unsigned target)
{
    gen_add_item(t, b, len);
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

    gen_pick_insn(r, cfg, t->bits, b, &i);
    if (gen_has_mem(&i)) {
        uint64_t ta = gen_target(r);
        if (uses_image(&i)) {
            ta = DATA_ADDR + 64 * pick(r, 20) + (pick(r, 10) ? 0 : pick(r, 64));
            value_xsave_image(r, t->data + (ta - DATA_ADDR), cfg->policy);
            if (pick(r, 4)) {
                t->s.gpr[RAX] = rnd(r) & 0xff;
                t->s.gpr[RDX] = 0;
            }
        }
        if (gen_is_locked(&i) && pick(r, 64))
            ta &= ~15ull;
        if (i.id == INSN_BT || i.id == INSN_BTS || i.id == INSN_BTR || i.id == INSN_BTC)
            if (i.op[1].kind == OP_REG && pick(r, 4))
                gen_set_gpr(t, i.op[1].reg, (uint64_t)(int64_t)(int)(pick(r, 2000) - 1000));
        aim(r, t, &i, b, CODE_ADDR + t->start, ta);
    } else if (i.id == INSN_LEAVE || i.id == INSN_ENTER) {
        gen_set_gpr(t, RBP, gen_target(r));
    }
    if ((i.id == INSN_DIV || i.id == INSN_IDIV) && pick(r, 2))
        t->s.gpr[RDX] = pick(r, 2) ? pick(r, 4) : 0;
    if (i.id == INSN_CMPXCHG && i.op[0].kind == OP_REG && pick(r, 2))
        t->s.gpr[RAX] = t->s.gpr[i.op[0].reg];
    gen_add_item(t, b, i.len);
    if (is_branch(&i) && i.opsize != 2) {
        t->item[0].fix = i.len > 4 && i.op[0].size == 4 ? FIX_REL32 : FIX_REL8;
        t->item[0].target = 1;
        gen_add_item(t, (const uint8_t[]){0x90}, 1);
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
            insn_supported(&i, cfg->policy) && !(gen_has_mem(&i) && i.mem.seg >= FS))
            break;
    }
    if (gen_has_mem(&i)) {
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
        gen_set_gpr(t, i.op[1].reg, gen_selector(r) | (rnd(r) & 0xffff0000));
    } else if (i.nops && i.op[0].kind == OP_FARPTR) {
        uint64_t off = gen_far_target(r, t);
        uint16_t sel = gen_selector(r);

        memcpy(b + i.len - 2 - i.opsize, &off, i.opsize);
        memcpy(b + i.len - 2, &sel, 2);
    } else {
        gen_frame(r, t, &i);
    }
    gen_add_item(t, b, i.len);
    for (unsigned n = pick(r, 3); n; n--) /* for the shadow of a load of SS */
        gen_add_item(t, (const uint8_t[]){0x90}, 1);
    if (!pick(r, 4))
        t->s.rflags |= FL_TF;
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
        kind = cfg->only ? 0 : cfg->sequences ? 10 : pick(r, 20);
        if (kind == 19 || (cfg->only && !strcmp(cfg->only, "far")))
            gen_far(r, cfg, t);
        else if (kind >= 10)
            gen_sequence(r, cfg, t);
        else
            gen_single(r, cfg, t);
    } while (!case_assemble(t, (uint8_t[CODE_BYTES]){0}, NULL));
}
