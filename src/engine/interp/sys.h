/*
 * What the system half of the interpreter shares among its files: descriptors, far transfers, task
 * switches and event delivery. Intel SDM vol. 3 ch. 5 (protection), 6 (events), 8 (tasks), vol. 2
 * for the instructions; AMD APM vol. 2 ch. 4, 8 and 12 where a policy is AMD's.
 *
 * Everything checks first and commits last: a function that raises has changed no architectural
 * register, except where the manual says so (a task switch past its commit point).
 */
#ifndef RING3_ENGINE_INTERP_SYS_H
#define RING3_ENGINE_INTERP_SYS_H

#include "engine/interp/interp.h"

/* System descriptor types (S = 0). */
enum sys_type {
    SYS_TSS16 = 1, SYS_LDT = 2, SYS_TSS16_BUSY = 3, SYS_CALL16 = 4, SYS_TASK_GATE = 5,
    SYS_INT16 = 6, SYS_TRAP16 = 7, SYS_TSS32 = 9, SYS_TSS32_BUSY = 11, SYS_CALL32 = 12,
    SYS_INT32 = 14, SYS_TRAP32 = 15
};
#define SYS_BUSY 2u
#define DESC_TYPE_BYTE 5u /* offset of P, DPL, S and type in a descriptor */

/* DR6 bits */
#define DR6_BD BIT(13)
#define DR6_BS BIT(14)
#define DR6_BT BIT(15)
#define DR7_GD BIT(13)

/* A descriptor as read from a table, and where it was. */
struct desc {
    uint64_t raw;
    uint64_t upper; /* second half of a 16-byte descriptor (long mode), see desc_upper() */
    uint64_t la;
    uint16_t sel;
};

static inline uint32_t desc_attr(const struct desc *d) { return d->raw >> 40 & 0xf0ff; }
static inline unsigned desc_type(const struct desc *d) { return d->raw >> 40 & 0xf; }
static inline unsigned desc_dpl(const struct desc *d) { return d->raw >> 45 & 3; }
static inline bool desc_is_seg(const struct desc *d) { return d->raw >> 44 & 1; }
static inline bool desc_present(const struct desc *d) { return d->raw >> 47 & 1; }
static inline bool desc_is_code(const struct desc *d)
{
    return desc_is_seg(d) && (desc_type(d) & SEG_CODE);
}
static inline bool desc_is_conforming(const struct desc *d)
{
    return desc_is_code(d) && (desc_type(d) & SEG_EXPDOWN);
}
static inline bool sel_is_null(uint16_t sel) { return !(sel & ~3u); }
static inline bool in_prot(const struct cpu *c) { return !cpu_real(&c->s) && !cpu_v86(&c->s); }
static inline unsigned cpu_iopl(const struct cpu *c) { return c->s.rflags >> 12 & 3; }

/* Raises vec with a selector (RPL removed) as error code. */
_Noreturn void raise_sel(struct cpu *c, enum vector vec, uint16_t sel);
void need_cpl0(struct cpu *c); /* #GP(0) unless CPL 0 */
void need_prot(struct cpu *c); /* #UD in real and virtual-8086 mode */
/* A linear address of a system structure: wrapped at 4 GiB outside long mode, #GP(0) if not
 * canonical. */
uint64_t sys_la(struct cpu *c, uint64_t la);

/* ---- seg.c ---- */
/* Reads sel's descriptor from the GDT or LDT; false if it is outside the table. */
bool desc_fetch(struct cpu *c, uint16_t sel, struct desc *d);
/* Reads the upper half of a system descriptor in long mode; false if outside the table or
 * malformed. */
bool desc_upper(struct cpu *c, struct desc *d);
/* desc_fetch that raises vec(sel) when it is outside. */
void desc_read(struct cpu *c, uint16_t sel, struct desc *d, enum vector vec);
/* Sets bits of the type byte, in memory too. */
void desc_set_bits(struct cpu *c, struct desc *d, unsigned set);
void desc_mark_accessed(struct cpu *c, struct desc *d);
void desc_to_segment(const struct desc *d, uint16_t sel, struct segment *s);
void segment_null(struct segment *s, uint16_t sel, unsigned dpl);
/* What a load of sel in real or virtual-8086 mode leaves in the register. */
void segment_real(const struct cpu *c, struct segment *s, uint16_t sel, bool v86);
/* Checks a stack selector for privilege cpl and prepares it; faults other than not-present are
 * vec(sel), not-present is #SS(sel). The selector is not null. */
void segment_stack(struct cpu *c, uint16_t sel, unsigned cpl, enum vector vec, struct segment *s);
/* The same for DS, ES, FS, GS; null is allowed. */
void segment_data(struct cpu *c, uint16_t sel, unsigned cpl, enum vector vec, struct segment *s);
/* Reads i's memory operand as a far pointer: the offset of n bytes, and the selector behind it. */
uint64_t far_pointer(struct cpu *c, const struct insn *i, unsigned n, uint16_t *sel);
/* Loads a data or stack segment register as MOV does, in any mode. */
void seg_load(struct cpu *c, enum sreg r, uint16_t sel);

/* ---- frame.c ---- */
/* The inner stack of privilege level dpl from the 16- or 32-bit TSS. #TS as the manual says. */
void tss_stack(struct cpu *c, unsigned dpl, struct segment *ss, uint64_t *sp);
/* RSPn or, with ist != 0, ISTn from the 64-bit TSS. */
uint64_t tss_stack64(struct cpu *c, unsigned dpl, unsigned ist);
/* Pushes n (at most FRAME_MAX) values of size bytes, val[0] first, at ss:sp; everything is checked
 * before anything is written. is64: flat, 64-bit sp. Returns the new sp (bits outside the stack's
 * mask as in sp). Limit violations raise #SS(err). */
#define FRAME_MAX 40
uint64_t frame_push(struct cpu *c, const struct segment *ss, uint64_t sp, bool is64,
                    const uint64_t *val, unsigned n, unsigned size, enum priv p, uint32_t err);
/* RSP := sp within the width of the (new) stack. */
void set_sp(struct cpu *c, uint64_t sp, bool is64);

/* ---- far.c ---- */
/* Is off inside the code segment (canonical in 64-bit code)? #GP(0) if not. */
void check_ip(struct cpu *c, const struct segment *cs, uint64_t off);
/* What of a 64-bit offset counts in cs: the low half outside 64-bit code. */
uint64_t ip_in(const struct cpu *c, const struct segment *cs, uint64_t off);
/* The code segment that RET, IRET return to, checked for RPL >= CPL and so on. */
void return_cs(struct cpu *c, uint16_t sel, struct segment *cs);
/* The stack segment returned to at privilege rpl; null where 64-bit code may have it. */
void return_ss(struct cpu *c, uint16_t sel, unsigned rpl, bool to64, struct segment *ss);
/* Nulls the data segments that the new, outer CPL may not use. */
void drop_inner_segments(struct cpu *c, unsigned cpl);
void sys_jmp_far(struct cpu *c, const struct insn *i);
void sys_call_far(struct cpu *c, const struct insn *i);
void sys_ret_far(struct cpu *c, const struct insn *i);

/* ---- iret.c ---- */
void sys_iret(struct cpu *c, const struct insn *i);

/* ---- task.c ---- */
enum task_cause { TASK_JMP, TASK_CALL, TASK_EVENT, TASK_IRET };
/* Switches to the task of the TSS descriptor d, whose privilege and busy checks the caller has
 * done. ret, eflags: what is saved for the old task. After the commit point c->s.rip and
 * c->next_rip are the new task's and faults belong to it. */
void task_switch(struct cpu *c, struct desc *d, enum task_cause why, uint64_t ret, uint64_t eflags);
/* Checks that sel (from a task gate or a far pointer) names a usable TSS: #GP(sel), #NP(sel). */
void task_tss(struct cpu *c, uint16_t sel, struct desc *d);

/* ---- exc.c ---- */
void sys_int(struct cpu *c, const struct insn *i);
void sys_int3(struct cpu *c, const struct insn *i);
void sys_int1(struct cpu *c, const struct insn *i);
void sys_into(struct cpu *c, const struct insn *i);

/* ---- crdr.c ---- */
void cr0_write(struct cpu *c, uint64_t v);
/* CR3 := v with translations of the new context dropped unless keep; PAE pointers are loaded. vec
 * is raised with err when they or v are malformed. */
void cr3_write(struct cpu *c, uint64_t v, bool keep, enum vector vec, uint32_t err);
void sys_mov_cr(struct cpu *c, const struct insn *i);
void sys_mov_dr(struct cpu *c, const struct insn *i);
void sys_lmsw(struct cpu *c, const struct insn *i);
void sys_smsw(struct cpu *c, const struct insn *i);
void sys_clts(struct cpu *c, const struct insn *i);
void sys_invlpg(struct cpu *c, const struct insn *i);
void sys_invpcid(struct cpu *c, const struct insn *i);

/* The remaining instruction files (segment loads, tables, queries, MSRs, system calls, I/O, flags).
 */
void sys_mov_sreg(struct cpu *c, const struct insn *i);
void sys_push_sreg(struct cpu *c, const struct insn *i);
void sys_pop_sreg(struct cpu *c, const struct insn *i);
void sys_lds(struct cpu *c, const struct insn *i);
void sys_les(struct cpu *c, const struct insn *i);
void sys_lfs(struct cpu *c, const struct insn *i);
void sys_lgs(struct cpu *c, const struct insn *i);
void sys_lss(struct cpu *c, const struct insn *i);
void sys_lar(struct cpu *c, const struct insn *i);
void sys_lsl(struct cpu *c, const struct insn *i);
void sys_verr(struct cpu *c, const struct insn *i);
void sys_verw(struct cpu *c, const struct insn *i);
void sys_arpl(struct cpu *c, const struct insn *i);
void sys_lgdt(struct cpu *c, const struct insn *i);
void sys_lidt(struct cpu *c, const struct insn *i);
void sys_sgdt(struct cpu *c, const struct insn *i);
void sys_sidt(struct cpu *c, const struct insn *i);
void sys_lldt(struct cpu *c, const struct insn *i);
void sys_ltr(struct cpu *c, const struct insn *i);
void sys_sldt(struct cpu *c, const struct insn *i);
void sys_str(struct cpu *c, const struct insn *i);
void sys_rdmsr(struct cpu *c, const struct insn *i);
void sys_wrmsr(struct cpu *c, const struct insn *i);
void sys_rdtsc(struct cpu *c, const struct insn *i);
void sys_rdtscp(struct cpu *c, const struct insn *i);
void sys_rdpid(struct cpu *c, const struct insn *i);
void sys_rdpmc(struct cpu *c, const struct insn *i);
void sys_cpuid(struct cpu *c, const struct insn *i);
void sys_swapgs(struct cpu *c, const struct insn *i);
void sys_rdfsbase(struct cpu *c, const struct insn *i);
void sys_rdgsbase(struct cpu *c, const struct insn *i);
void sys_wrfsbase(struct cpu *c, const struct insn *i);
void sys_wrgsbase(struct cpu *c, const struct insn *i);
void sys_syscall(struct cpu *c, const struct insn *i);
void sys_sysret(struct cpu *c, const struct insn *i);
void sys_sysenter(struct cpu *c, const struct insn *i);
void sys_sysexit(struct cpu *c, const struct insn *i);
void sys_in(struct cpu *c, const struct insn *i);
void sys_out(struct cpu *c, const struct insn *i);
void sys_ins(struct cpu *c, const struct insn *i);
void sys_outs(struct cpu *c, const struct insn *i);
void sys_cli(struct cpu *c, const struct insn *i);
void sys_sti(struct cpu *c, const struct insn *i);
void sys_clac(struct cpu *c, const struct insn *i);
void sys_stac(struct cpu *c, const struct insn *i);
void sys_pushf(struct cpu *c, const struct insn *i);
void sys_popf(struct cpu *c, const struct insn *i);

#endif
