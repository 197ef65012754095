/* Instruction ids; grows with the table. */
enum insn_id { INSN_INVALID = 0, INSN_COUNT };
