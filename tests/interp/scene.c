#include "scene.h"

#include <string.h>

#include "base/err.h"

/* ---- layout ---- */
#define GDT 0x1000u
#define GDT_ENTRIES 64u
#define LDT 0x1800u
#define IDT64 0x2000u
#define IDT32 0xd000u
#define TSS 0x3000u
#define TSS64 0x3800u
#define TSS_BYTES 0x800u
#define PML4 0x4000u
#define PDPT 0x5000u
#define PD 0x6000u
#define PT 0x7000u
#define PT_ALIAS 0xe000u
#define PDPT_PAE 0x8000u
#define PD32 0xa000u
#define PT32 0xb000u
#define TABLES_END 0xc000u
#define HANDLERS 0xc000u /* 4 bytes for each vector */
#define STACK0 0x1c000u

enum {
    SEL_CODE64 = 0x08,
    SEL_DATA = 0x10,
    SEL_CODE32 = 0x18,
    SEL_UDATA = 0x23,
    SEL_UCODE32 = 0x2b,
    SEL_UCODE64 = 0x33,
    SEL_TSS = 0x38,
    SEL_LDT = 0x48,
    SEL_CODE16 = 0x58,
    SEL_DATA16 = 0x60,
    SEL_UCODE16 = 0x6b,
    SEL_FREE = 0x70
};

#define ATTR_DATA (SEG_P | SEG_S | SEG_WRITE | SEG_ACCESSED)
#define ATTR_CODE (ATTR_DATA | SEG_CODE)
#define USER (3u << SEG_DPL_SHIFT)

const char *scene_mode_name(enum scene_mode m)
{
    static const char *const name[SCENE_MODES] = {"real", "v86", "p16",  "p32",
                                                  "pg32", "pae", "long", "compat"};

    return name[m];
}

/* ---- memory ---- */

static void put(uint8_t *mem, uint32_t at, uint64_t v, unsigned n) { memcpy(mem + at, &v, n); }

static uint64_t descriptor(uint32_t base, uint32_t limit, uint32_t attr)
{
    return (limit & 0xffff) | (uint64_t)(base & 0xffffff) << 16 | (uint64_t)attr << 40 |
           (uint64_t)(limit >> 16 & 15) << 48 | (uint64_t)(base >> 24) << 56;
}

static uint64_t random_descriptor(struct rng *r)
{
    uint32_t attr = (uint32_t)rnd(r) & 0xf0ff;
    uint32_t base = below(r, 4) ? (uint32_t)below(r, SCENE_BYTES) : (uint32_t)rnd(r);

    if (below(r, 8))
        attr |= SEG_P;
    if (below(r, 3))
        attr |= SEG_S;
    return descriptor(base, (uint32_t)rnd(r) >> below(r, 20), attr);
}

static void put_gdt(struct rng *r, uint8_t *mem, bool wild)
{
    static const struct {
        uint16_t sel;
        uint32_t attr;
    } flat[] = {
        {SEL_CODE64, ATTR_CODE | SEG_L | SEG_G},
        {SEL_DATA, ATTR_DATA | SEG_DB | SEG_G},
        {SEL_CODE32, ATTR_CODE | SEG_DB | SEG_G},
        {SEL_UDATA, ATTR_DATA | SEG_DB | SEG_G | USER},
        {SEL_UCODE32, ATTR_CODE | SEG_DB | SEG_G | USER},
        {SEL_UCODE64, ATTR_CODE | SEG_L | SEG_G | USER},
    };

    for (unsigned k = 1; k < GDT_ENTRIES; k++)
        put(mem, GDT + k * 8, random_descriptor(r), 8);
    for (unsigned k = 0; k < 32; k++)
        put(mem, LDT + k * 8, random_descriptor(r), 8);
    for (unsigned k = 0; k < ARRAY_LEN(flat); k++)
        put(mem, GDT + (flat[k].sel & ~7u), descriptor(0, 0xfffff, flat[k].attr), 8);
    put(mem, GDT + SEL_TSS, descriptor(TSS, TSS_BYTES - 1, SEG_P | 9), 8);
    put(mem, GDT + SEL_TSS + 8, 0, 8);
    put(mem, GDT + SEL_LDT, descriptor(LDT, 0xff, SEG_P | 2), 8);
    put(mem, GDT + SEL_LDT + 8, 0, 8);
    put(mem, GDT + SEL_CODE16, descriptor(SCENE_CODE, 0xffff, ATTR_CODE), 8);
    put(mem, GDT + SEL_DATA16, descriptor(SCENE_DATA, 0xffff, ATTR_DATA), 8);
    put(mem, GDT + (SEL_UCODE16 & ~7u), descriptor(SCENE_CODE, 0xffff, ATTR_CODE | USER), 8);
    for (unsigned k = 0; wild && k < 3; k++)
        put(mem, GDT + below(r, GDT_ENTRIES) * 8, random_descriptor(r), 8);
}

/* Every handler halts; wild ones may be of other kinds and go elsewhere. */
static void put_idt(struct rng *r, uint8_t *mem, bool wild)
{
    for (unsigned v = 0; v < 256; v++) {
        uint32_t to = HANDLERS + v * 4;
        unsigned dpl = v < 32 ? 0 : below(r, 4), type = below(r, 4) ? 14 : 15;
        uint64_t hi = (to & 0xffff0000ull) << 32 | (uint64_t)(0x80 | dpl << 5 | type) << 40;
        uint64_t ist = below(r, 8) ? 0 : 1 + below(r, 7);

        put(mem, HANDLERS + v * 4, 0xf4fdebf4, 4); /* hlt; jmp back */
        put(mem, v * 4, (HANDLERS >> 4) << 16 | v * 4, 4);
        put(mem, IDT64 + v * 16, hi | ist << 32 | SEL_CODE64 << 16 | (to & 0xffff), 8);
        put(mem, IDT64 + v * 16 + 8, 0, 8);
        put(mem, IDT32 + v * 8, hi | SEL_CODE32 << 16 | (to & 0xffff), 8);
        if (wild && !below(r, 16)) {
            put(mem, IDT64 + v * 16 + below(r, 16), rnd(r), 1);
            put(mem, IDT32 + v * 8 + below(r, 8), rnd(r), 1);
        }
    }
}

static void put_tss(struct rng *r, uint8_t *mem, bool wild)
{
    for (unsigned k = 0; k < 2 * TSS_BYTES; k += 8)
        put(mem, TSS + k, rnd(r) & rnd(r) & rnd(r), 8); /* permission maps with most ports open */
    for (unsigned k = 0; k < 3; k++) {
        put(mem, TSS + 4 + k * 8, STACK0 - k * 0x100, 4);
        put(mem, TSS + 8 + k * 8, SEL_DATA, 2);
        put(mem, TSS64 + 4 + k * 8, STACK0 - k * 0x100, 8);
    }
    for (unsigned k = 0; k < 7; k++)
        put(mem, TSS64 + 36 + k * 8, STACK0 - 0x400 - k * 0x100, 8);
    put(mem, TSS + 102, 0x88, 2);
    put(mem, TSS64 + 102, 0x88, 2);
    for (unsigned k = 0; wild && k < 4; k++)
        put(mem, TSS + below(r, 2 * TSS_BYTES), rnd(r), 1);
}

/* What maps frame gfn of the scene: everything may be used by everybody, but tables are not mapped
 * and a few pages of data are special. */
static uint64_t leaf(struct rng *r, uint32_t gfn, bool wild)
{
    uint64_t e = (uint64_t)gfn << 12 | 7;

    if (!wild && gfn >= PML4 >> 12 && gfn < TABLES_END >> 12)
        return 0;
    if (gfn >= (SCENE_DATA >> 12) + 12 && gfn < (SCENE_DATA >> 12) + 16) {
        switch (below(r, 6)) {
        case 0:
            return 0;
        case 1:
            return e & ~2ull;
        case 2:
            return e & ~4ull;
        case 3:
            return e | 1ull << 63;
        case 4:
            return wild ? rnd(r) : e;
        }
    }
    return e | (below(r, 2) ? 0x60 : 0);
}

static void put_tables(struct rng *r, uint8_t *mem, bool wild)
{
    put(mem, PML4, PDPT | 7, 8);
    put(mem, PML4 + 511 * 8, PDPT | 7, 8);
    put(mem, PDPT, PD | 7, 8);
    put(mem, PDPT + 511 * 8, PD | 7, 8);
    put(mem, PDPT_PAE, PD | 1, 8);
    for (unsigned k = 0; k < SCENE_BYTES / PAGE_SIZE; k++) {
        put(mem, PT + k * 8, leaf(r, k, wild), 8);
        put(mem, PT_ALIAS + k * 8, leaf(r, k, wild), 8);
        put(mem, PT32 + k * 4, leaf(r, k, wild) & 0xffffffff, 4);
    }
    /* 0: the scene; 2 MiB: again; 4 MiB: as a large page if wild; 6 MiB: I/O. 32-bit: the same at 0
     * and 4 MiB, I/O in 4 MiB pages above. */
    put(mem, PD, PT | 7, 8);
    put(mem, PD + 8, PT_ALIAS | 7, 8);
    put(mem, PD + 16, wild ? 0x87 : 0x800087, 8);
    put(mem, PD + 24, (SCENE_MMIO & ~0x1fffffu) | 0x87, 8);
    put(mem, PD32, PT32 | 7, 4);
    put(mem, PD32 + 4, PT32 | 7, 4);
    put(mem, PD32 + 8, 0x800087, 4);
    for (unsigned k = 0; wild && k < 4; k++)
        put(mem, PML4 + below(r, 0x8000), rnd(r), 8);
}

void scene_memory(struct rng *r, uint8_t *mem, bool wild)
{
    memset(mem, 0, SCENE_BYTES);
    for (uint32_t at = SCENE_CODE; at < SCENE_BYTES; at += 8)
        put(mem, at,
            below(r, 4)   ? rnd(r)
            : below(r, 2) ? SCENE_DATA + below(r, 0x10000)
                          : below(r, 256),
            8);
    put_gdt(r, mem, wild);
    put_idt(r, mem, wild);
    put_tss(r, mem, wild);
    put_tables(r, mem, wild);
}

/* ---- code ---- */

static enum cpu_bits mode_bits(enum scene_mode m)
{
    return m == MODE_LONG ? CPU_64 : m <= MODE_P16 ? CPU_16 : CPU_32;
}

/* Instructions worth more weight than their one row in the table. */
static bool put_common(struct rng *r, uint8_t *p, unsigned *n)
{
    unsigned k = 0;

    switch (below(r, 8)) {
    case 0: /* jcc, loop, jcxz, jmp, short and mostly forward */
        p[k] = (uint8_t)(below(r, 3)   ? 0x70 + below(r, 16)
                         : below(r, 2) ? 0xe0 + below(r, 4)
                                       : 0xeb);
        p[k + 1] = (uint8_t)(below(r, 4) ? below(r, 24) : 0x100 - below(r, 24));
        k += 2;
        break;
    case 1: /* rep string */
        if (below(r, 2))
            p[k++] = (uint8_t)(0xf2 + below(r, 2));
        p[k++] = (uint8_t)((below(r, 2) ? 0xa4 : 0xaa) + below(r, below(r, 2) ? 4 : 2));
        break;
    case 2: /* general arithmetic, any form */
        p[k] = (uint8_t)(below(r, 8) * 8 + below(r, 6));
        p[k + 1] = (uint8_t)rnd(r);
        memset(p + k + 2, 0, 6);
        p[k + 2] = (uint8_t)rnd(r);
        k = 0;
        *n = 0; /* length by the decoder */
        return true;
    case 3: /* push, pop, inc and so on */
        p[k++] = (uint8_t)(0x40 + below(r, 32));
        break;
    case 4: /* out to the ports that do something */
        p[k++] = 0xe6;
        p[k++] = (uint8_t)(0x10 + below(r, 6));
        break;
    case 5: /* mov to or from memory */
        p[0] = (uint8_t)(0x88 + below(r, 4));
        p[1] = (uint8_t)(rnd(r) & (below(r, 2) ? 0x3f : 0x7f));
        p[2] = (uint8_t)rnd(r);
        *n = 0;
        return true;
    case 6: /* call, ret */
        if (below(r, 2)) {
            p[k++] = 0xe8;
            put(p, k, below(r, 32), 4);
            k += 4;
        } else {
            p[k++] = 0xc3;
        }
        break;
    default:
        return false;
    }
    *n = k;
    return true;
}

static unsigned put_insn(struct rng *r, uint8_t *p, enum cpu_bits bits)
{
    struct insn i;

    for (unsigned tries = 0; tries < 8; tries++) {
        unsigned n = 0;

        if (below(r, 3) == 0 && put_common(r, p, &n)) {
            if (n)
                return n;
        } else if (below(r, 16) == 0) {
            make_from_space(r, p);
        } else {
            make_from_row(r, &insn_table[below(r, (unsigned)insn_table_len)], p);
        }
        if (insn_decode(&i, p, INSN_MAX_LEN, bits) != INSN_OK) {
            if (below(r, 64) == 0)
                return 1 + below(r, 15);
            continue;
        }
        /* Far displacements seldom hit anything; vector code is somebody else's matter. */
        for (unsigned k = 0; k < i.nops; k++)
            if (i.op[k].kind == OP_MEM && (i.mem.disp > 0x3fff || i.mem.disp < -0x3fff) &&
                below(r, 16))
                i.len = 0;
        if ((i.row->flags & (IF_AVX | IF_AVX512 | IF_SSE | IF_MMX | IF_X87)) && below(r, 4))
            continue;
        if (i.len)
            return i.len;
    }
    p[0] = 0x90;
    return 1;
}

void scene_code(struct rng *r, uint8_t *mem, uint32_t gpa, enum scene_mode mode)
{
    uint8_t *p = mem + gpa;
    unsigned at = 0, count = 8 + below(r, 40);

    if (below(r, 16) == 0)
        return; /* what is there: random bytes */
    for (unsigned k = 0; k < count && at < SCENE_CHUNK - 32; k++) {
        uint8_t code[32] = {0};
        unsigned n = put_insn(r, code, mode_bits(mode));

        memcpy(p + at, code, n);
        at += n;
    }
    for (unsigned k = 0; below(r, 4) == 0 && k < 3; k++)
        p[below(r, at)] ^= (uint8_t)(1u << below(r, 8));
    p[at] = 0xf4;
}

/* ---- states ---- */

static uint64_t value(struct rng *r, enum scene_mode m)
{
    uint32_t data = below(r, 0xfff0);

    if (below(r, 8) == 0)
        data = (data & 0xf000) + 0xff0 + below(r, 16); /* about to cross a page */
    switch (below(r, 12)) {
    case 0:
        return rnd(r);
    case 1:
        return below(r, 256);
    case 2:
        return (uint64_t) - (int64_t)below(r, 256);
    case 3:
        return m == MODE_LONG || m == MODE_COMPAT ? 0x200000 + SCENE_DATA + data
                                                  : SCENE_DATA + data;
    case 4:
        return m <= MODE_P16 ? below(r, SCENE_CODE_BYTES) : SCENE_CODE + below(r, SCENE_CODE_BYTES);
    case 5:
        return m >= MODE_P32 ? SCENE_MMIO + data : data;
    case 6:
        return rnd(r) >> below(r, 64);
    case 7:
        return m == MODE_LONG ? 0xffffff8000000000ull + SCENE_DATA + data : SCENE_DATA + data;
    default:
        return m <= MODE_P16 ? data : SCENE_DATA + data;
    }
}

static void load(struct segment *s, uint16_t sel, uint32_t base, uint32_t limit, uint32_t attr)
{
    *s = (struct segment){.base = base, .limit = limit, .attr = attr, .sel = sel};
}

static void flat_segments(struct cpu_state *s, bool user, bool code64)
{
    uint32_t dpl = user ? USER : 0;

    for (unsigned k = 0; k < SREG_COUNT; k++)
        load(&s->seg[k], user ? SEL_UDATA : SEL_DATA, 0, 0xffffffff,
             ATTR_DATA | SEG_DB | SEG_G | dpl);
    load(&s->seg[CS],
         code64 ? (user ? SEL_UCODE64 : SEL_CODE64)
         : user ? SEL_UCODE32
                : SEL_CODE32,
         0, 0xffffffff, ATTR_CODE | (code64 ? SEG_L : SEG_DB) | SEG_G | dpl);
}

static void segments_8086(struct rng *r, struct cpu_state *s, bool v86)
{
    uint32_t attr = v86 ? ATTR_DATA | USER : ATTR_DATA;

    for (unsigned k = 0; k < SREG_COUNT; k++)
        load(&s->seg[k], SCENE_DATA >> 4, SCENE_DATA, 0xffff, attr);
    load(&s->seg[CS], SCENE_CODE >> 4, SCENE_CODE, 0xffff, attr);
    if (below(r, 2))
        load(&s->seg[FS], SCENE_CODE >> 4, SCENE_CODE, 0xffff, attr);
}

static void segments_16(struct rng *r, struct cpu_state *s)
{
    for (unsigned k = 0; k < SREG_COUNT; k++)
        load(&s->seg[k], SEL_DATA16, SCENE_DATA, 0xffff, ATTR_DATA);
    load(&s->seg[CS], SEL_CODE16, SCENE_CODE, 0xffff, ATTR_CODE);
    if (below(r, 4) == 0) /* expand-down */
        load(&s->seg[DS], SEL_DATA16, SCENE_DATA, below(r, 0x8000), ATTR_DATA | SEG_EXPDOWN);
    if (below(r, 4) == 0)
        load(&s->seg[ES], SEL_DATA16, SCENE_DATA, below(r, 0x8000), ATTR_DATA);
    if (below(r, 4) == 0)
        load(&s->seg[SS], SEL_DATA16, SCENE_DATA, 0xffff, ATTR_DATA | SEG_DB);
}

static void mode_state(struct rng *r, struct cpu_state *s, enum scene_mode m)
{
    bool user = below(r, 2), lm = m >= MODE_LONG;

    s->cr0 = CR0_ET | CR0_NE | (m != MODE_REAL ? CR0_PE : 0) | (m >= MODE_PG32 ? CR0_PG : 0);
    s->cr4 = CR4_OSFXSR | CR4_OSXMMEXCPT | (m >= MODE_PAE ? CR4_PAE : CR4_PSE);
    s->cr3 = m == MODE_PG32 ? PD32 : m == MODE_PAE ? PDPT_PAE : lm ? PML4 : 0;
    s->efer = EFER_SCE | EFER_NXE | (lm ? EFER_LME | EFER_LMA : 0);
    switch (m) {
    case MODE_REAL:
        segments_8086(r, s, false);
        break;
    case MODE_V86:
        segments_8086(r, s, true);
        s->rflags |= FL_VM | (below(r, 2) ? FL_IOPL : 0);
        break;
    case MODE_P16:
        segments_16(r, s);
        break;
    default:
        flat_segments(s, user, m == MODE_LONG);
        break;
    }
    s->gdtr = (struct table_reg){.base = GDT, .limit = GDT_ENTRIES * 8 - 1};
    s->idtr = (struct table_reg){.base = m == MODE_REAL ? 0 : lm ? IDT64 : IDT32, .limit = 0xfff};
    load(&s->ldtr, SEL_LDT, LDT, 0xff, SEG_P | 2);
    load(&s->tr, SEL_TSS, lm ? TSS64 : TSS, TSS_BYTES - 1, SEG_P | 11);
}

static const uint64_t cr0_bits[] = {CR0_WP, CR0_AM, CR0_TS, CR0_EM, CR0_MP, CR0_NE};
static const uint64_t cr4_bits[] = {CR4_VME,     CR4_PVI,      CR4_TSD,  CR4_DE,
                                    CR4_PGE,     CR4_SMEP,     CR4_SMAP, CR4_UMIP,
                                    CR4_OSXSAVE, CR4_FSGSBASE, CR4_PCE,  CR4_OSFXSR};
static const uint64_t flag_bits[] = {FL_DF, FL_AC, FL_IOPL, FL_NT,  FL_TF,
                                     FL_IF, FL_ID, FL_VIF,  FL_VIP, FL_RF};

/* One change that may or may not be possible. */
static void mutate(struct rng *r, struct cpu_state *s)
{
    struct segment *g = &s->seg[below(r, SREG_COUNT)];

    switch (below(r, 14)) {
    case 0:
        s->cr0 ^= cr0_bits[below(r, ARRAY_LEN(cr0_bits))];
        break;
    case 1:
        s->cr4 ^= cr4_bits[below(r, ARRAY_LEN(cr4_bits))];
        break;
    case 2:
        s->rflags ^= flag_bits[below(r, ARRAY_LEN(flag_bits))];
        break;
    case 3:
        g->limit = (uint32_t)rnd(r) >> below(r, 32);
        break;
    case 4:
        g->limit |= 0xfff;
        g->attr |= SEG_G;
        break;
    case 5:
        g->attr ^= 1u << below(r, 17);
        break;
    case 6:
        g->base = below(r, 2) ? below(r, SCENE_BYTES) : rnd(r) >> below(r, 64);
        break;
    case 7:
        s->dr[7] ^= 1ull << below(r, 32);
        break;
    case 8:
        s->dr[below(r, 4)] =
            below(r, 2) ? SCENE_DATA + below(r, 0x10000) : SCENE_CODE + below(r, 0x4000);
        break;
    case 9:
        s->xcr0 ^= 1ull << below(r, 8);
        break;
    case 10:
        s->tr.limit = below(r, 0x1000);
        break;
    case 11:
        s->gdtr.limit = (uint16_t)rnd(r);
        s->idtr.limit = (uint16_t)rnd(r);
        break;
    case 12:
        s->cr4 |= CR4_PCIDE;
        s->cr3 |= below(r, 4096);
        break;
    default:
        s->efer ^= below(r, 2) ? EFER_NXE : EFER_SCE;
        break;
    }
}

static bool possible(const struct cpu_state *s, const struct cpuid_policy *p)
{
    struct err e;

    return !cpu_state_validate(s, &e) && !cpuid_check_state(p, s, &e);
}

void scene_state(struct rng *r, struct cpu_state *s, enum scene_mode m, uint32_t gpa, bool wild,
                 const struct cpuid_policy *p)
{
    unsigned changes = below(r, 4) + (wild ? below(r, 24) : 0);

    cpu_state_reset(s);
    s->rflags = FL_R1 | (rnd(r) & FL_STATUS);
    mode_state(r, s, m);
    for (unsigned k = 0; k < 16; k++)
        s->gpr[k] = value(r, m);
    if (below(r, 2))
        s->gpr[RCX] = below(r, 64);
    s->gpr[RSP] =
        m <= MODE_P16 ? 0x8000 + below(r, 0x4000) * 2 : SCENE_STACK + 0x1000 + below(r, 0x800) * 8;
    s->rip = m <= MODE_P16 ? gpa - SCENE_CODE : gpa;
    if (m == MODE_LONG && below(r, 4) == 0)
        s->rip += 0x200000; /* through the other mapping */
    s->xcr0 = p->xcr0_mask & (XCR0_X87 | XCR0_SSE | XCR0_AVX);
    s->cr4 |= CR4_OSXSAVE;
    s->lstar = s->cstar = s->sysenter_eip = SCENE_CODE + below(r, SCENE_CODE_BYTES);
    s->star = (uint64_t)SEL_CODE64 << 32 | (uint64_t)SEL_DATA << 48;
    s->sysenter_cs = SEL_CODE64;
    s->sysenter_esp = STACK0;
    s->kernel_gs_base = SCENE_DATA;
    for (unsigned k = 0; k < 32; k++)
        for (unsigned w = 0; w < 4 && k < 16; w++)
            s->zmm[k][w] = rnd(r);
    while (changes--) {
        struct cpu_state was = *s;

        mutate(r, s);
        if (!possible(s, p))
            *s = was;
    }
}
