/*
 * Writing host code: a cursor into the code area and the few encodings that the translator makes by
 * itself (guest instructions are re-encoded by recode.h). Registers are host numbers 0..15. Nothing
 * here checks for room: whoever starts a block makes sure that BT_BLOCK_MAX bytes are left.
 * Only LEA, MOV and RORX forms leave the flags alone; the comments say where that matters.
 */
#ifndef RING3_ENGINE_BT_EMIT_H
#define RING3_ENGINE_BT_EMIT_H

#include <assert.h>
#include <stdint.h>
#include <string.h>

#include "base/util.h"
#include "cpu/state.h"
#include "insn/insn.h"

struct emit {
    uint8_t *start; /* of the area's writable mapping */
    uint8_t *p;
};

/* Points to struct cpu while translated code runs, so that most of its fields that matter are a byte's displacement
 * away. */
enum { EMIT_CPU = R14 };

enum emit_alu { ALU_ADD, ALU_OR, ALU_ADC, ALU_SBB, ALU_AND, ALU_SUB, ALU_XOR, ALU_CMP };
enum emit_cc { CC_O, CC_NO, CC_B, CC_AE, CC_E, CC_NE, CC_BE, CC_A, CC_L = 12, CC_G = 15 };

/* Offset of the next byte in the area. */
static inline uint32_t emit_pos(const struct emit *e) { return (uint32_t)(e->p - e->start); }

static inline void emit8(struct emit *e, unsigned b) { *e->p++ = (uint8_t)b; }
static inline void emit32(struct emit *e, uint32_t v)
{
    memcpy(e->p, &v, 4);
    e->p += 4;
}
static inline void emit64(struct emit *e, uint64_t v)
{
    memcpy(e->p, &v, 8);
    e->p += 8;
}
static inline void emit_bytes(struct emit *e, const uint8_t *b, unsigned n)
{
    memcpy(e->p, b, n);
    e->p += n;
}

static inline void emit_rex(struct emit *e, unsigned w, unsigned reg, unsigned index, unsigned base)
{
    unsigned rex = 0x40 | w << 3 | (reg >> 3) << 2 | (index >> 3) << 1 | base >> 3;

    if (rex != 0x40)
        emit8(e, rex);
}

/* ModRM and SIB of [base + index << scale + disp]; index REG_NONE for none. */
static inline void emit_mem(struct emit *e, unsigned reg, unsigned base, unsigned index,
                            unsigned scale, int32_t disp)
{
    unsigned mod = disp == 0 && (base & 7) != RBP ? 0 : disp == (int8_t)disp ? 1 : 2;

    if (index != REG_NONE || (base & 7) == RSP) {
        emit8(e, mod << 6 | (reg & 7) << 3 | 4);
        emit8(e, scale << 6 | (index == REG_NONE ? 4 : index & 7) << 3 | (base & 7));
    } else {
        emit8(e, mod << 6 | (reg & 7) << 3 | (base & 7));
    }
    if (mod == 1)
        emit8(e, (uint8_t)disp);
    else if (mod == 2)
        emit32(e, (uint32_t)disp);
}

/* opcode reg, [base + disp], 64-bit or 32-bit by w */
static inline void emit_op_m(struct emit *e, unsigned opcode, unsigned w, unsigned reg, unsigned base,
                             int32_t disp)
{
    emit_rex(e, w, reg, 0, base);
    emit8(e, opcode);
    emit_mem(e, reg, base, REG_NONE, 0, disp);
}

/* opcode reg, field of struct cpu: `off` bytes from where EMIT_CPU points */
static inline void emit_op_cpu(struct emit *e, unsigned opcode, unsigned w, unsigned reg, int32_t off)
{
    emit_op_m(e, opcode, w, reg, EMIT_CPU, off);
}

static inline void emit_mov_rr(struct emit *e, unsigned dst, unsigned src)
{
    emit_rex(e, 1, src, 0, dst);
    emit8(e, 0x89);
    emit8(e, 0xc0 | (src & 7) << 3 | (dst & 7));
}
static inline void emit_mov_ri32(struct emit *e, unsigned dst, uint32_t v) /* zero-extends */
{
    emit_rex(e, 0, 0, 0, dst);
    emit8(e, 0xb8 | (dst & 7));
    emit32(e, v);
}
static inline void emit_mov_ri64(struct emit *e, unsigned dst, uint64_t v)
{
    emit_rex(e, 1, 0, 0, dst);
    emit8(e, 0xb8 | (dst & 7));
    emit64(e, v);
}
static inline void emit_load_cpu(struct emit *e, unsigned dst, int32_t off)
{
    emit_op_cpu(e, 0x8b, 1, dst, off);
}
static inline void emit_store_cpu(struct emit *e, int32_t off, unsigned src)
{
    emit_op_cpu(e, 0x89, 1, src, off);
}
static inline void emit_store_cpu32(struct emit *e, int32_t off, unsigned src)
{
    emit_op_cpu(e, 0x89, 0, src, off);
}
static inline void emit_store_cpu16(struct emit *e, int32_t off, unsigned src)
{
    emit8(e, 0x66);
    emit_op_cpu(e, 0x89, 0, src, off);
}
static inline void emit_load(struct emit *e, unsigned dst, unsigned base, int32_t disp)
{
    emit_op_m(e, 0x8b, 1, dst, base, disp);
}
static inline void emit_lea(struct emit *e, unsigned w, unsigned dst, unsigned base, unsigned index,
                            unsigned scale, int32_t disp)
{
    emit_rex(e, w, dst, index == REG_NONE ? 0 : index, base);
    emit8(e, 0x8d);
    emit_mem(e, dst, base, index, scale, disp);
}
/* lea dst, [index << scale + disp] */
static inline void emit_lea_index(struct emit *e, unsigned w, unsigned dst, unsigned index,
                                  unsigned scale, int32_t disp)
{
    emit_rex(e, w, dst, index, 0);
    emit8(e, 0x8d);
    emit8(e, (dst & 7) << 3 | 4);
    emit8(e, scale << 6 | (index & 7) << 3 | 5);
    emit32(e, (uint32_t)disp);
}
static inline void emit_alu_ri(struct emit *e, enum emit_alu op, unsigned w, unsigned r, int32_t imm)
{
    bool small = imm == (int8_t)imm;

    emit_rex(e, w, 0, 0, r);
    emit8(e, small ? 0x83 : 0x81);
    emit8(e, 0xc0 | op << 3 | (r & 7));
    if (small)
        emit8(e, (uint8_t)imm);
    else
        emit32(e, (uint32_t)imm);
}
static inline void emit_alu_rr(struct emit *e, enum emit_alu op, unsigned w, unsigned dst, unsigned src)
{
    emit_rex(e, w, src, 0, dst);
    emit8(e, op << 3 | 1);
    emit8(e, 0xc0 | (src & 7) << 3 | (dst & 7));
}
static inline void emit_test_rr(struct emit *e, unsigned r) /* with itself */
{
    emit_rex(e, 1, r, 0, r);
    emit8(e, 0x85);
    emit8(e, 0xc0 | (r & 7) << 3 | (r & 7));
}
/* rorx dst, src, n: no flags */
static inline void emit_rorx(struct emit *e, unsigned dst, unsigned src, unsigned n)
{
    emit8(e, 0xc4);
    emit8(e, (dst < 8 ? 0x80 : 0) | 0x40 | (src < 8 ? 0x20 : 0) | 3);
    emit8(e, 0xfb);
    emit8(e, 0xf0);
    emit8(e, 0xc0 | (dst & 7) << 3 | (src & 7));
    emit8(e, n);
}
/* pext dst, src, field of struct cpu: no flags */
static inline void emit_pext_cpu(struct emit *e, unsigned dst, unsigned src, int32_t off)
{
    emit8(e, 0xc4);
    emit8(e, (dst < 8 ? 0x80 : 0) | 0x40 | (EMIT_CPU < 8 ? 0x20 : 0) | 2);
    emit8(e, 0x82 | (~src & 15) << 3);
    emit8(e, 0xf5);
    emit_mem(e, dst, EMIT_CPU, REG_NONE, 0, off);
}
/* mov dword field of struct cpu, v */
static inline void emit_store_cpu_i32(struct emit *e, int32_t off, uint32_t v)
{
    emit_op_m(e, 0xc7, 0, 0, EMIT_CPU, off);
    emit32(e, v);
}
/* movzx dst, byte or word field of struct cpu */
static inline void emit_movzx_cpu(struct emit *e, unsigned size, unsigned dst, int32_t off)
{
    emit_rex(e, 0, dst, 0, EMIT_CPU);
    emit8(e, 0x0f);
    emit8(e, size == 1 ? 0xb6 : 0xb7);
    emit_mem(e, dst, EMIT_CPU, REG_NONE, 0, off);
}

/* Branches within the area; they return the offset of their rel32 field. */
static inline uint32_t emit_rel32(struct emit *e, uint32_t target)
{
    uint32_t at = emit_pos(e);

    emit32(e, target - (at + 4));
    return at;
}
static inline uint32_t emit_jmp(struct emit *e, uint32_t target)
{
    emit8(e, 0xe9);
    return emit_rel32(e, target);
}
static inline uint32_t emit_call(struct emit *e, uint32_t target)
{
    emit8(e, 0xe8);
    return emit_rel32(e, target);
}
static inline uint32_t emit_jcc(struct emit *e, unsigned cc, uint32_t target)
{
    emit8(e, 0x0f);
    emit8(e, 0x80 | cc);
    return emit_rel32(e, target);
}
/* jrcxz over a jmp rel32 that follows: no flags. Returns the offset of the rel32. */
static inline uint32_t emit_jmp_if_rcx(struct emit *e)
{
    emit8(e, 0xe3);
    emit8(e, 5);
    return emit_jmp(e, 0);
}
/* Short branches forward; they return the offset of their rel8 field. */
static inline uint32_t emit_short(struct emit *e, unsigned opcode)
{
    emit8(e, opcode);
    emit8(e, 0);
    return emit_pos(e) - 1;
}
static inline uint32_t emit_jcc_short(struct emit *e, unsigned cc) { return emit_short(e, 0x70 | cc); }
/* jrcxz: no flags */
static inline uint32_t emit_jrcxz(struct emit *e) { return emit_short(e, 0xe3); }
/* Points such a branch here. */
static inline void emit_fix_short(struct emit *e, uint32_t at)
{
    uint32_t rel = emit_pos(e) - (at + 1);

    assert(rel <= INT8_MAX);
    e->start[at] = (uint8_t)rel;
}
/* Points the branch whose rel32 is at `at` to target. */
static inline void emit_fix(struct emit *e, uint32_t at, uint32_t target)
{
    uint32_t rel = target - (at + 4);

    memcpy(e->start + at, &rel, 4);
}
static inline void emit_fix_here(struct emit *e, uint32_t at) { emit_fix(e, at, emit_pos(e)); }
static inline void emit_jmp_r(struct emit *e, unsigned r)
{
    emit_rex(e, 0, 0, 0, r);
    emit8(e, 0xff);
    emit8(e, 0xe0 | (r & 7));
}
static inline void emit_jmp_m(struct emit *e, unsigned base, int32_t disp)
{
    emit_rex(e, 0, 0, 0, base);
    emit8(e, 0xff);
    emit_mem(e, 4, base, REG_NONE, 0, disp);
}
static inline void emit_call_m(struct emit *e, unsigned base, int32_t disp)
{
    emit_rex(e, 0, 0, 0, base);
    emit8(e, 0xff);
    emit_mem(e, 2, base, REG_NONE, 0, disp);
}
/* jmp [base + index + disp] */
static inline void emit_jmp_mx(struct emit *e, unsigned base, unsigned index, int32_t disp)
{
    emit_rex(e, 0, 0, index, base);
    emit8(e, 0xff);
    emit_mem(e, 4, base, index, 0, disp);
}
static inline void emit_call_r(struct emit *e, unsigned r)
{
    emit_rex(e, 0, 0, 0, r);
    emit8(e, 0xff);
    emit8(e, 0xd0 | (r & 7));
}
/* Before a direct branch: pads until `ahead` bytes from here the next four lie within eight aligned ones, where a
 * rel32 is that will be patched while others run it. CS prefixes mean nothing there and cost less than NOPs. */
static inline void emit_align_rel32(struct emit *e, unsigned ahead)
{
    while (((emit_pos(e) + ahead) & 7) > 4)
        emit8(e, 0x2e);
}

#endif
