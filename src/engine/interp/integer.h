/* The plain functions of general instructions, by file. int.c's table maps ids to them. */
#ifndef RING3_ENGINE_INTERP_INTEGER_H
#define RING3_ENGINE_INTERP_INTEGER_H

#include "engine/interp/interp.h"

#define PLAIN(name) void name(struct cpu *c, const struct insn *i)

/* int_alu.c */
PLAIN(int_binary); /* ADD OR ADC SBB AND SUB XOR */
PLAIN(int_compare); /* CMP TEST */
PLAIN(int_unary); /* INC DEC NEG NOT */
PLAIN(int_shift); /* ROL ROR RCL RCR SHL SHR SAR */
PLAIN(int_dshift); /* SHLD SHRD */
PLAIN(int_xadd);
PLAIN(int_xchg);
PLAIN(int_cmpxchg);
PLAIN(int_cmpxchg8b); /* and CMPXCHG16B */
/* int_mul.c */
PLAIN(int_mul);
PLAIN(int_imul);
PLAIN(int_div); /* DIV IDIV */
PLAIN(int_mulx);
PLAIN(int_cbw);
PLAIN(int_cwd);
PLAIN(int_bcd); /* AAA AAS AAM AAD DAA DAS */
/* int_bits.c */
PLAIN(int_bt); /* BT BTS BTR BTC */
PLAIN(int_scan); /* BSF BSR LZCNT TZCNT POPCNT */
PLAIN(int_bmi); /* ANDN BEXTR BLSI BLSMSK BLSR BZHI PDEP PEXT RORX SARX SHLX SHRX */
PLAIN(int_adx); /* ADCX ADOX */
PLAIN(int_crc32);
PLAIN(int_bswap);
PLAIN(int_random); /* RDRAND RDSEED */
/* int_mov.c */
PLAIN(int_mov);
PLAIN(int_movbe);
PLAIN(int_movzx);
PLAIN(int_movsx); /* MOVSX MOVSXD */
PLAIN(int_lea);
PLAIN(int_cmov);
PLAIN(int_setcc);
PLAIN(int_xlat);
PLAIN(int_salc);
PLAIN(int_flag); /* CLC STC CMC CLD STD */
PLAIN(int_lahf);
PLAIN(int_sahf);
PLAIN(int_nop);
PLAIN(int_fence); /* SFENCE MFENCE */
PLAIN(int_pause);
PLAIN(int_clflush);
PLAIN(int_bound);
/* int_flow.c */
PLAIN(int_jmp);
PLAIN(int_jmp_ind);
PLAIN(int_call);
PLAIN(int_call_ind);
PLAIN(int_ret);
PLAIN(int_jcc);
PLAIN(int_jcxz);
PLAIN(int_loop);
PLAIN(int_push);
PLAIN(int_pop);
PLAIN(int_pusha);
PLAIN(int_popa);
PLAIN(int_enter);
PLAIN(int_leave);
/* int_string.c */
PLAIN(int_movs);
PLAIN(int_stos);
PLAIN(int_lods);
PLAIN(int_cmps);
PLAIN(int_scas);

/* log2 of an operand size in bytes; 0 for an operand that is absent. */
static inline unsigned size_log(unsigned size) { return size ? (unsigned)__builtin_ctz(size) : 0; }
static inline uint64_t size_bits(unsigned size) { return size >= 8 ? ~0ull : (1ull << size * 8) - 1; }

/* A read-modify-write of op[n], atomic under LOCK: fn(old, arg, &cc) gives the new value, and cc is
 * committed once the store can no longer fault. Returns the old value. */
typedef uint64_t (*rmw_fn)(uint64_t old, uint64_t arg, uint16_t *cc);
uint64_t int_rmw(struct cpu *c, const struct insn *i, unsigned n, rmw_fn fn, uint64_t arg, bool atomic);
/* The same at a linear address already checked for segmentation. */
uint64_t int_rmw_at(struct cpu *c, uint64_t la, unsigned size, rmw_fn fn, uint64_t arg, bool atomic);

#endif
