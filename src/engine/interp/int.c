/* Which plain function does which general instruction. */
#include "engine/interp/integer.h"

insn_fn int_fn(enum insn_id id)
{
    static const insn_fn tab[INSN_COUNT] = {
        [INSN_ADD] = int_binary, [INSN_OR] = int_binary, [INSN_ADC] = int_binary,
        [INSN_SBB] = int_binary, [INSN_AND] = int_binary, [INSN_SUB] = int_binary,
        [INSN_XOR] = int_binary, [INSN_CMP] = int_compare, [INSN_TEST] = int_compare,
        [INSN_INC] = int_unary, [INSN_DEC] = int_unary, [INSN_NEG] = int_unary,
        [INSN_NOT] = int_unary, [INSN_ROL] = int_shift, [INSN_ROR] = int_shift,
        [INSN_RCL] = int_shift, [INSN_RCR] = int_shift, [INSN_SHL] = int_shift,
        [INSN_SHR] = int_shift, [INSN_SAR] = int_shift, [INSN_SHLD] = int_dshift,
        [INSN_SHRD] = int_dshift, [INSN_XADD] = int_xadd, [INSN_XCHG] = int_xchg,
        [INSN_CMPXCHG] = int_cmpxchg, [INSN_CMPXCHG8B] = int_cmpxchg8b,
        [INSN_CMPXCHG16B] = int_cmpxchg8b,
        [INSN_MUL] = int_mul, [INSN_IMUL] = int_imul, [INSN_DIV] = int_div, [INSN_IDIV] = int_div,
        [INSN_MULX] = int_mulx, [INSN_CBW] = int_cbw, [INSN_CWD] = int_cwd, [INSN_AAA] = int_bcd,
        [INSN_AAS] = int_bcd, [INSN_AAM] = int_bcd, [INSN_AAD] = int_bcd, [INSN_DAA] = int_bcd,
        [INSN_DAS] = int_bcd,
        [INSN_BT] = int_bt, [INSN_BTS] = int_bt, [INSN_BTR] = int_bt, [INSN_BTC] = int_bt,
        [INSN_BSF] = int_scan, [INSN_BSR] = int_scan, [INSN_LZCNT] = int_scan,
        [INSN_TZCNT] = int_scan, [INSN_POPCNT] = int_scan, [INSN_ANDN] = int_bmi,
        [INSN_BEXTR] = int_bmi, [INSN_BLSI] = int_bmi, [INSN_BLSMSK] = int_bmi,
        [INSN_BLSR] = int_bmi, [INSN_BZHI] = int_bmi, [INSN_PDEP] = int_bmi, [INSN_PEXT] = int_bmi,
        [INSN_RORX] = int_bmi, [INSN_SARX] = int_bmi, [INSN_SHLX] = int_bmi, [INSN_SHRX] = int_bmi,
        [INSN_ADCX] = int_adx, [INSN_ADOX] = int_adx, [INSN_CRC32] = int_crc32,
        [INSN_BSWAP] = int_bswap, [INSN_RDRAND] = int_random, [INSN_RDSEED] = int_random,
        [INSN_MOV] = int_mov, [INSN_MOVNTI] = int_mov, [INSN_MOVBE] = int_movbe,
        [INSN_MOVZX] = int_movzx, [INSN_MOVSX] = int_movsx, [INSN_MOVSXD] = int_movsx,
        [INSN_LEA] = int_lea, [INSN_CMOVCC] = int_cmov, [INSN_SETCC] = int_setcc,
        [INSN_XLAT] = int_xlat, [INSN_SALC] = int_salc, [INSN_CLC] = int_flag,
        [INSN_STC] = int_flag, [INSN_CMC] = int_flag, [INSN_CLD] = int_flag, [INSN_STD] = int_flag,
        [INSN_LAHF] = int_lahf, [INSN_SAHF] = int_sahf, [INSN_NOP] = int_nop,
        [INSN_PAUSE] = int_pause, [INSN_ENDBR] = int_nop, [INSN_LFENCE] = int_nop,
        [INSN_SFENCE] = int_fence, [INSN_MFENCE] = int_fence, [INSN_CLFLUSH] = int_clflush,
        [INSN_CLFLUSHOPT] = int_clflush, [INSN_CLWB] = int_clflush, [INSN_BOUND] = int_bound,
        [INSN_JMP] = int_jmp, [INSN_JMP_IND] = int_jmp_ind, [INSN_CALL] = int_call,
        [INSN_CALL_IND] = int_call_ind, [INSN_RET] = int_ret, [INSN_JCC] = int_jcc,
        [INSN_JCXZ] = int_jcxz, [INSN_LOOP] = int_loop, [INSN_LOOPE] = int_loop,
        [INSN_LOOPNE] = int_loop, [INSN_PUSH] = int_push, [INSN_POP] = int_pop,
        [INSN_PUSHA] = int_pusha, [INSN_POPA] = int_popa, [INSN_ENTER] = int_enter,
        [INSN_LEAVE] = int_leave, [INSN_MOVS] = int_movs, [INSN_STOS] = int_stos,
        [INSN_LODS] = int_lods, [INSN_CMPS] = int_cmps, [INSN_SCAS] = int_scas,
    };

    return id < INSN_COUNT ? tab[id] : NULL;
}
