/* General-purpose and system instructions: one-byte opcodes, 0F, 0F38, 0F3A and the VEX forms that
 * work on general registers. SDM vol. 2 appendix A; AMD APM vol. 3 appendix A. See table.h. */
#define FEAT FPU /* every processor that we model */
#define FEAT2 FPU

/* Effects on EFLAGS. A conditional writer (a shift whose count may be 0) passes the old flags on,
 * so it reads them too. */
#define F_ADD EF(0, fALL, 0)
#define F_ADC EF(FL_CF, fALL, 0)
#define F_LOGIC EF(0, fALL, FL_AF)
#define F_INC EF(0, (fALL & ~FL_CF), 0)
#define F_MUL EF(0, fALL, FL_SF | FL_ZF | FL_AF | FL_PF)
#define F_DIV EF(0, fALL, fALL)
#define F_ROT1 EF(0, FL_CF | FL_OF, 0)
#define F_ROTN EF(FL_CF | FL_OF, FL_CF | FL_OF, FL_OF)
#define F_RC1 EF(FL_CF, FL_CF | FL_OF, 0)
#define F_RCN EF(FL_CF | FL_OF, FL_CF | FL_OF, FL_OF)
#define F_SH1 EF(0, fALL, FL_AF)
#define F_SHN EF(fALL, fALL, FL_AF | FL_OF)
#define F_SHD EF(fALL, fALL, FL_AF | FL_OF)
#define F_BT EF(0, (fALL & ~FL_ZF), FL_OF | FL_SF | FL_AF | FL_PF)
#define F_ZF EF(0, FL_ZF, 0)
#define F_TRAP EF(fALL | FL_DF, 0, 0) /* pushes all flags */
#define F_LOAD EF(0, fALL | FL_DF, 0)
#define F_STR EF(FL_DF, 0, 0)
#define F_STRC EF(FL_DF, fALL, 0)

/* The sixteen conditions with the flags they test: O B Z BE S P L LE and their opposites. */
#define CONDITIONS(X)                                                                              \
    X(0, FL_OF) X(1, FL_OF) X(2, FL_CF) X(3, FL_CF) X(4, FL_ZF) X(5, FL_ZF)                        \
    X(6, FL_CF | FL_ZF) X(7, FL_CF | FL_ZF) X(8, FL_SF) X(9, FL_SF) X(10, FL_PF) X(11, FL_PF)      \
    X(12, FL_SF | FL_OF) X(13, FL_SF | FL_OF) X(14, FL_SF | FL_OF | FL_ZF)                         \
    X(15, FL_SF | FL_OF | FL_ZF)

/* ---- arithmetic block 00-3F, 80-83 ---- */
#define ALU(name, n, lock, fl, rwd)                                                                \
    I(name, OP(8 * (n) + 0), 0, (lock) | AT_BYTE, fl, rwd(Eb), R(Gb))                              \
    I(name, OP(8 * (n) + 1), 0, lock, fl, rwd(Ev), R(Gv))                                          \
    I(name, OP(8 * (n) + 2), 0, AT_BYTE, fl, rwd(Gb), R(Eb))                                       \
    I(name, OP(8 * (n) + 3), 0, 0, fl, rwd(Gv), R(Ev))                                             \
    I(name, OP(8 * (n) + 4), 0, AT_BYTE, fl, rwd(AL), R(Ib))                                       \
    I(name, OP(8 * (n) + 5), 0, 0, fl, rwd(rAX), R(ISz))                                           \
    I(name, OP(0x80), REG_(n), (lock) | AT_BYTE, fl, rwd(Eb), R(Ib))                               \
    I(name, OP(0x81), REG_(n), lock, fl, rwd(Ev), R(ISz))                                          \
    I(name, OP(0x82), REG_(n) | N64, (lock) | AT_BYTE, fl, rwd(Eb), R(Ib))                         \
    I(name, OP(0x83), REG_(n), lock, fl, rwd(Ev), R(ISb))
ALU(ADD, 0, IF_LOCK, F_ADD, RW)
ALU(OR, 1, IF_LOCK, F_LOGIC, RW)
ALU(ADC, 2, IF_LOCK, F_ADC, RW)
ALU(SBB, 3, IF_LOCK, F_ADC, RW)
ALU(AND, 4, IF_LOCK, F_LOGIC, RW)
ALU(SUB, 5, IF_LOCK, F_ADD, RW)
ALU(XOR, 6, IF_LOCK, F_LOGIC, RW)
ALU(CMP, 7, 0, F_ADD, R)
#undef ALU

I(PUSH_SREG, OP(0x06), N64, AT_D64, NOFL, R(SOP))
I(PUSH_SREG, OP(0x0e), N64, AT_D64, NOFL, R(SOP))
I(PUSH_SREG, OP(0x16), N64, AT_D64, NOFL, R(SOP))
I(PUSH_SREG, OP(0x1e), N64, AT_D64, NOFL, R(SOP))
I(POP_SREG, OP(0x07), N64, AT_D64 | IF_SYS, NOFL, W(SOP))
I(POP_SREG, OP(0x17), N64, AT_D64 | IF_SYS, NOFL, W(SOP))
I(POP_SREG, OP(0x1f), N64, AT_D64 | IF_SYS, NOFL, W(SOP))
I(PUSH_SREG, OP0F(0xa0), 0, AT_D64, NOFL, R(SOP))
I(PUSH_SREG, OP0F(0xa8), 0, AT_D64, NOFL, R(SOP))
I(POP_SREG, OP0F(0xa1), 0, AT_D64 | IF_SYS, NOFL, W(SOP))
I(POP_SREG, OP0F(0xa9), 0, AT_D64 | IF_SYS, NOFL, W(SOP))

I(DAA, OP(0x27), N64, AT_BYTE, EF(FL_CF | FL_AF, fALL, FL_OF))
I(DAS, OP(0x2f), N64, AT_BYTE, EF(FL_CF | FL_AF, fALL, FL_OF))
I(AAA, OP(0x37), N64, AT_BYTE, EF(FL_AF, fALL, FL_OF | FL_SF | FL_ZF | FL_PF))
I(AAS, OP(0x3f), N64, AT_BYTE, EF(FL_AF, fALL, FL_OF | FL_SF | FL_ZF | FL_PF))
I(AAM, OP(0xd4), N64, AT_BYTE, EF(0, fALL, FL_OF | FL_AF | FL_CF), R(Ib))
I(AAD, OP(0xd5), N64, AT_BYTE, EF(0, fALL, FL_OF | FL_AF | FL_CF), R(Ib))
I(SALC, OP(0xd6), N64, AT_BYTE, EF(FL_CF, 0, 0))

/* ---- 40-6F ---- */
I(INC, OP(0x40) | SPAN8, N64, 0, F_INC, RW(Zv))
I(DEC, OP(0x48) | SPAN8, N64, 0, F_INC, RW(Zv))
I(PUSH, OP(0x50) | SPAN8, 0, AT_D64, NOFL, R(Zv))
I(POP, OP(0x58) | SPAN8, 0, AT_D64, NOFL, W(Zv))
I(PUSHA, OP(0x60), N64, 0, NOFL)
I(POPA, OP(0x61), N64, 0, NOFL)
I(BOUND, OP(0x62), N64 | MEM, 0, NOFL, R(Gv), R(Ma))
I(ARPL, OP(0x63), N64, IF_NOREAL, F_ZF, RW(Ew), R(Gw))
I(MOVSXD, OP(0x63), X64, 0, NOFL, W(Gv), R(Ez))
I(PUSH, OP(0x68), 0, AT_D64, NOFL, R(ISz))
I(IMUL, OP(0x69), 0, 0, F_MUL, W(Gv), R(Ev), R(ISz))
I(PUSH, OP(0x6a), 0, AT_D64, NOFL, R(ISb))
I(IMUL, OP(0x6b), 0, 0, F_MUL, W(Gv), R(Ev), R(ISb))
I(INS, OP(0x6c), 0, IF_REP | AT_BYTE, F_STR, W(Yb), R(DX))
I(INS, OP(0x6d), 0, IF_REP | AT_Z, F_STR, W(Yz), R(DX))
I(OUTS, OP(0x6e), 0, IF_REP | AT_BYTE, F_STR, R(Xb), R(DX))
I(OUTS, OP(0x6f), 0, IF_REP | AT_Z, F_STR, R(Xz), R(DX))

/* ---- 70-8F ---- */
#define JB(cc, fl) I(JCC, OP(0x70 + (cc)), 0, IF_BRANCH | AT_F64 | AT_CC, EF(fl, 0, 0), R(Jb))
CONDITIONS(JB)
#undef JB
I(TEST, OP(0x84), 0, AT_BYTE, F_LOGIC, R(Eb), R(Gb))
I(TEST, OP(0x85), 0, 0, F_LOGIC, R(Ev), R(Gv))
I(XCHG, OP(0x86), 0, IF_LOCK | AT_BYTE, NOFL, RW(Eb), RW(Gb))
I(XCHG, OP(0x87), 0, IF_LOCK, NOFL, RW(Ev), RW(Gv))
I(MOV, OP(0x88), 0, AT_BYTE, NOFL, W(Eb), R(Gb))
I(MOV, OP(0x89), 0, 0, NOFL, W(Ev), R(Gv))
I(MOV, OP(0x8a), 0, AT_BYTE, NOFL, W(Gb), R(Eb))
I(MOV, OP(0x8b), 0, 0, NOFL, W(Gv), R(Ev))
I(MOV_SREG, OP(0x8c), 0, 0, NOFL, W(Evw), R(Sw))
I(LEA, OP(0x8d), MEM, 0, NOFL, W(Gv), N(M0))
I(MOV_SREG, OP(0x8e), 0, IF_SYS, NOFL, W(Sw), R(Ew))
I(POP, OP(0x8f), REG_(0), AT_D64, NOFL, W(Ev))

/* ---- 90-AF ---- */
I(PAUSE, OP(0x90), PF3, 0, NOFL)
I(NOP, OP(0x90), NOREP | NOREXB, 0, NOFL)
I(NOP, OP(0x90), PF2 | NOREXB, 0, NOFL)
I(XCHG, OP(0x90) | SPAN8, 0, 0, NOFL, RW(Zv), RW(rAX))
I(CBW, OP(0x98), 0, 0, NOFL)
I(CWD, OP(0x99), 0, 0, NOFL)
I(CALL_FAR, OP(0x9a), N64, IF_SYS, NOFL, R(Ap))
I(FWAIT, OP(0x9b), 0, IF_X87 | IF_WAIT, NOFL)
I(PUSHF, OP(0x9c), 0, AT_D64, EF(fALL | FL_DF | FL_TF | FL_IF | FL_NT, 0, 0))
I(POPF, OP(0x9d), 0, AT_D64 | IF_SYS, EF(0, fALL | FL_DF | FL_TF | FL_IF | FL_NT, 0))
I(SAHF, OP(0x9e), N64, AT_BYTE, EF(0, (fALL & ~FL_OF), 0))
I(LAHF, OP(0x9f), N64, AT_BYTE, EF((fALL & ~FL_OF), 0, 0))
#undef FEAT
#define FEAT LAHF64
I(SAHF, OP(0x9e), X64, AT_BYTE, EF(0, (fALL & ~FL_OF), 0))
I(LAHF, OP(0x9f), X64, AT_BYTE, EF((fALL & ~FL_OF), 0, 0))
#undef FEAT
#define FEAT FPU
I(MOV, OP(0xa0), 0, AT_BYTE, NOFL, W(AL), R(Ob))
I(MOV, OP(0xa1), 0, 0, NOFL, W(rAX), R(Ov))
I(MOV, OP(0xa2), 0, AT_BYTE, NOFL, W(Ob), R(AL))
I(MOV, OP(0xa3), 0, 0, NOFL, W(Ov), R(rAX))
I(MOVS, OP(0xa4), 0, IF_REP | AT_BYTE, F_STR, W(Yb), R(Xb))
I(MOVS, OP(0xa5), 0, IF_REP, F_STR, W(Yv), R(Xv))
I(CMPS, OP(0xa6), 0, IF_REP | AT_BYTE, F_STRC, R(Xb), R(Yb))
I(CMPS, OP(0xa7), 0, IF_REP, F_STRC, R(Xv), R(Yv))
I(TEST, OP(0xa8), 0, AT_BYTE, F_LOGIC, R(AL), R(Ib))
I(TEST, OP(0xa9), 0, 0, F_LOGIC, R(rAX), R(ISz))
I(STOS, OP(0xaa), 0, IF_REP | AT_BYTE, F_STR, W(Yb), R(AL))
I(STOS, OP(0xab), 0, IF_REP, F_STR, W(Yv), R(rAX))
I(LODS, OP(0xac), 0, IF_REP | AT_BYTE, F_STR, W(AL), R(Xb))
I(LODS, OP(0xad), 0, IF_REP, F_STR, W(rAX), R(Xv))
I(SCAS, OP(0xae), 0, IF_REP | AT_BYTE, F_STRC, R(AL), R(Yb))
I(SCAS, OP(0xaf), 0, IF_REP, F_STRC, R(rAX), R(Yv))

/* ---- B0-CF ---- */
I(MOV, OP(0xb0) | SPAN8, 0, AT_BYTE, NOFL, W(Zb), R(Ib))
I(MOV, OP(0xb8) | SPAN8, 0, 0, NOFL, W(Zv), R(Iv))
#define SHIFT(name, n, f1, fn)                                                                     \
    I(name, OP(0xc0), REG_(n), AT_BYTE, fn, RW(Eb), R(Ib))                                         \
    I(name, OP(0xc1), REG_(n), 0, fn, RW(Ev), R(Ib))                                               \
    I(name, OP(0xd0), REG_(n), AT_BYTE, f1, RW(Eb), R(I1))                                         \
    I(name, OP(0xd1), REG_(n), 0, f1, RW(Ev), R(I1))                                               \
    I(name, OP(0xd2), REG_(n), AT_BYTE, fn, RW(Eb), R(CL))                                         \
    I(name, OP(0xd3), REG_(n), 0, fn, RW(Ev), R(CL))
SHIFT(ROL, 0, F_ROT1, F_ROTN)
SHIFT(ROR, 1, F_ROT1, F_ROTN)
SHIFT(RCL, 2, F_RC1, F_RCN)
SHIFT(RCR, 3, F_RC1, F_RCN)
SHIFT(SHL, 4, F_SH1, F_SHN)
SHIFT(SHR, 5, F_SH1, F_SHN)
SHIFT(SHL, 6, F_SH1, F_SHN)
SHIFT(SAR, 7, F_SH1, F_SHN)
#undef SHIFT
I(RET, OP(0xc2), 0, IF_BRANCH | AT_F64, NOFL, R(Iw))
I(RET, OP(0xc3), 0, IF_BRANCH | AT_F64, NOFL)
I(LES, OP(0xc4), N64 | MEM, IF_SYS, NOFL, W(Gv), R(Mp))
I(LDS, OP(0xc5), N64 | MEM, IF_SYS, NOFL, W(Gv), R(Mp))
I(MOV, OP(0xc6), REG_(0), AT_BYTE, NOFL, W(Eb), R(Ib))
I(MOV, OP(0xc7), REG_(0), 0, NOFL, W(Ev), R(ISz))
I(ENTER, OP(0xc8), 0, AT_D64, NOFL, R(Iw), R(I2b))
I(LEAVE, OP(0xc9), 0, AT_D64, NOFL)
I(RET_FAR, OP(0xca), 0, IF_SYS, NOFL, R(Iw))
I(RET_FAR, OP(0xcb), 0, IF_SYS, NOFL)
I(INT3, OP(0xcc), 0, IF_SYS, F_TRAP)
I(INT, OP(0xcd), 0, IF_SYS, F_TRAP, R(Ib))
I(INTO, OP(0xce), N64, IF_SYS, F_TRAP)
I(IRET, OP(0xcf), 0, IF_SYS, EF(FL_NT, fALL | FL_DF | FL_TF | FL_IF | FL_NT, 0))

/* ---- D0-FF ---- */
I(XLAT, OP(0xd7), 0, AT_BYTE, NOFL)
I(LOOPNE, OP(0xe0), 0, IF_BRANCH | AT_F64, EF(FL_ZF, 0, 0), R(Jb))
I(LOOPE, OP(0xe1), 0, IF_BRANCH | AT_F64, EF(FL_ZF, 0, 0), R(Jb))
I(LOOP, OP(0xe2), 0, IF_BRANCH | AT_F64, NOFL, R(Jb))
I(JCXZ, OP(0xe3), 0, IF_BRANCH | AT_F64, NOFL, R(Jb))
I(IN, OP(0xe4), 0, AT_BYTE, NOFL, W(AL), R(Ib))
I(IN, OP(0xe5), 0, AT_Z, NOFL, W(zAX), R(Ib))
I(OUT, OP(0xe6), 0, AT_BYTE, NOFL, R(Ib), R(AL))
I(OUT, OP(0xe7), 0, AT_Z, NOFL, R(Ib), R(zAX))
I(CALL, OP(0xe8), 0, IF_BRANCH | AT_F64, NOFL, R(Jz))
I(JMP, OP(0xe9), 0, IF_BRANCH | AT_F64, NOFL, R(Jz))
I(JMP_FAR, OP(0xea), N64, IF_SYS, NOFL, R(Ap))
I(JMP, OP(0xeb), 0, IF_BRANCH | AT_F64, NOFL, R(Jb))
I(IN, OP(0xec), 0, AT_BYTE, NOFL, W(AL), R(DX))
I(IN, OP(0xed), 0, AT_Z, NOFL, W(zAX), R(DX))
I(OUT, OP(0xee), 0, AT_BYTE, NOFL, R(DX), R(AL))
I(OUT, OP(0xef), 0, AT_Z, NOFL, R(DX), R(zAX))
I(INT1, OP(0xf1), 0, IF_SYS, F_TRAP)
I(HLT, OP(0xf4), 0, IF_PRIV | IF_SYS, NOFL)
I(CMC, OP(0xf5), 0, 0, EF(FL_CF, FL_CF, 0))
I(TEST, OP(0xf6), REG_(0), AT_BYTE, F_LOGIC, R(Eb), R(Ib))
I(TEST, OP(0xf6), REG_(1), AT_BYTE, F_LOGIC, R(Eb), R(Ib))
I(NOT, OP(0xf6), REG_(2), IF_LOCK | AT_BYTE, NOFL, RW(Eb))
I(NEG, OP(0xf6), REG_(3), IF_LOCK | AT_BYTE, F_ADD, RW(Eb))
I(MUL, OP(0xf6), REG_(4), AT_BYTE, F_MUL, R(Eb))
I(IMUL, OP(0xf6), REG_(5), AT_BYTE, F_MUL, R(Eb))
I(DIV, OP(0xf6), REG_(6), AT_BYTE, F_DIV, R(Eb))
I(IDIV, OP(0xf6), REG_(7), AT_BYTE, F_DIV, R(Eb))
I(TEST, OP(0xf7), REG_(0), 0, F_LOGIC, R(Ev), R(ISz))
I(TEST, OP(0xf7), REG_(1), 0, F_LOGIC, R(Ev), R(ISz))
I(NOT, OP(0xf7), REG_(2), IF_LOCK, NOFL, RW(Ev))
I(NEG, OP(0xf7), REG_(3), IF_LOCK, F_ADD, RW(Ev))
I(MUL, OP(0xf7), REG_(4), 0, F_MUL, R(Ev))
I(IMUL, OP(0xf7), REG_(5), 0, F_MUL, R(Ev))
I(DIV, OP(0xf7), REG_(6), 0, F_DIV, R(Ev))
I(IDIV, OP(0xf7), REG_(7), 0, F_DIV, R(Ev))
I(CLC, OP(0xf8), 0, 0, EF(0, FL_CF, 0))
I(STC, OP(0xf9), 0, 0, EF(0, FL_CF, 0))
I(CLI, OP(0xfa), 0, IF_SYS, EF(0, FL_IF, 0))
I(STI, OP(0xfb), 0, IF_SYS, EF(0, FL_IF, 0))
I(CLD, OP(0xfc), 0, 0, EF(0, FL_DF, 0))
I(STD, OP(0xfd), 0, 0, EF(0, FL_DF, 0))
I(INC, OP(0xfe), REG_(0), IF_LOCK | AT_BYTE, F_INC, RW(Eb))
I(DEC, OP(0xfe), REG_(1), IF_LOCK | AT_BYTE, F_INC, RW(Eb))
I(INC, OP(0xff), REG_(0), IF_LOCK, F_INC, RW(Ev))
I(DEC, OP(0xff), REG_(1), IF_LOCK, F_INC, RW(Ev))
I(CALL_IND, OP(0xff), REG_(2), IF_BRANCH | AT_F64, NOFL, R(Ev))
I(CALL_FAR_IND, OP(0xff), REG_(3) | MEM, IF_SYS, NOFL, R(Mp))
I(JMP_IND, OP(0xff), REG_(4), IF_BRANCH | AT_F64, NOFL, R(Ev))
I(JMP_FAR_IND, OP(0xff), REG_(5) | MEM, IF_SYS, NOFL, R(Mp))
I(PUSH, OP(0xff), REG_(6), AT_D64, NOFL, R(Ev))

/* ---- 0F 00-0F ---- */
I(SLDT, OP0F(0x00), REG_(0), IF_NOREAL, NOFL, W(Evw))
I(STR, OP0F(0x00), REG_(1), IF_NOREAL, NOFL, W(Evw))
I(LLDT, OP0F(0x00), REG_(2), IF_NOREAL | IF_PRIV | IF_SYS, NOFL, R(Ew))
I(LTR, OP0F(0x00), REG_(3), IF_NOREAL | IF_PRIV | IF_SYS, NOFL, R(Ew))
I(VERR, OP0F(0x00), REG_(4), IF_NOREAL, F_ZF, R(Ew))
I(VERW, OP0F(0x00), REG_(5), IF_NOREAL, F_ZF, R(Ew))
I(SGDT, OP0F(0x01), REG_(0) | MEM, 0, NOFL, W(Ms))
I(SIDT, OP0F(0x01), REG_(1) | MEM, 0, NOFL, W(Ms))
I(LGDT, OP0F(0x01), REG_(2) | MEM, IF_PRIV | IF_SYS, NOFL, R(Ms))
I(LIDT, OP0F(0x01), REG_(3) | MEM, IF_PRIV | IF_SYS, NOFL, R(Ms))
I(SMSW, OP0F(0x01), REG_(4), 0, NOFL, W(Evw))
I(LMSW, OP0F(0x01), REG_(6), IF_PRIV | IF_SYS, NOFL, R(Ew))
I(INVLPG, OP0F(0x01), REG_(7) | MEM, IF_PRIV | IF_SYS, NOFL, N(Mb))
I(VMCALL, OP0F(0x01), REG_(0) | RM_(1) | RR | NP, IF_SYS, NOFL)
I(MONITOR, OP0F(0x01), REG_(1) | RM_(0) | RR | NP, IF_SYS, NOFL)
I(MWAIT, OP0F(0x01), REG_(1) | RM_(1) | RR | NP, IF_SYS, NOFL)
I(VMMCALL, OP0F(0x01), REG_(3) | RM_(1) | RR, IF_SYS, NOFL)
I(SWAPGS, OP0F(0x01), REG_(7) | RM_(0) | RR | X64, IF_PRIV | IF_SYS, NOFL)
I(LAR, OP0F(0x02), 0, IF_NOREAL, F_ZF, RW(Gv), R(Ew))
I(LSL, OP0F(0x03), 0, IF_NOREAL, F_ZF, RW(Gv), R(Ew))
I(CLTS, OP0F(0x06), 0, IF_PRIV | IF_SYS, NOFL)
I(INVD, OP0F(0x08), 0, IF_PRIV | IF_SYS, NOFL)
I(WBINVD, OP0F(0x09), 0, IF_PRIV | IF_SYS, NOFL)
I(UD2, OP0F(0x0b), 0, IF_SYS, F_TRAP)
#undef FEAT
#define FEAT SMAP
I(CLAC, OP0F(0x01), REG_(1) | RM_(2) | RR | NP, IF_SYS, NOFL)
I(STAC, OP0F(0x01), REG_(1) | RM_(3) | RR | NP, IF_SYS, NOFL)
#undef FEAT
#define FEAT XSAVE
I(XGETBV, OP0F(0x01), REG_(2) | RM_(0) | RR | NP, 0, NOFL)
I(XSETBV, OP0F(0x01), REG_(2) | RM_(1) | RR | NP, IF_PRIV | IF_SYS, NOFL)
#undef FEAT
#define FEAT RDTSCP
I(RDTSCP, OP0F(0x01), REG_(7) | RM_(1) | RR, 0, NOFL)
#undef FEAT
#define FEAT SYSCALL
I(SYSCALL, OP0F(0x05), 0, IF_SYS, EF(fALL | FL_DF, fALL | FL_DF, 0))
I(SYSRET, OP0F(0x07), 0, IF_PRIV | IF_SYS, F_LOAD)
#undef FEAT
#define FEAT FPU
/* 0F 0D: PREFETCHW and its hints never fault and do nothing here, so they need no feature. */
I(NOP, OP0F(0x0d), 0, 0, NOFL, N(Ev))
I(NOP, OP0F(0x18), 0, 0, NOFL, N(Ev))
I(NOP, OP0F(0x19), 0, 0, NOFL, N(Ev))
I(NOP, OP0F(0x1a), 0, 0, NOFL, N(Ev))
I(NOP, OP0F(0x1b), 0, 0, NOFL, N(Ev))
I(NOP, OP0F(0x1c), 0, 0, NOFL, N(Ev))
I(NOP, OP0F(0x1d), 0, 0, NOFL, N(Ev))
I(ENDBR, OP0F(0x1e), PF3 | REG_(7) | RM_(2) | RR, 0, NOFL)
I(ENDBR, OP0F(0x1e), PF3 | REG_(7) | RM_(3) | RR, 0, NOFL)
I(NOP, OP0F(0x1e), 0, 0, NOFL, N(Ev))
I(NOP, OP0F(0x1f), 0, 0, NOFL, N(Ev))

/* ---- 0F 20-4F ---- */
#define CRNUM(n)                                                                                   \
    I(MOV_CR, OP0F(0x20), REG_(n), IF_PRIV | IF_SYS | AT_CR | AT_NOMOD, NOFL, W(Ec), R(Cc)) \
    I(MOV_CR, OP0F(0x22), REG_(n), IF_PRIV | IF_SYS | AT_CR | AT_NOMOD, NOFL, W(Cc), R(Ec))
CRNUM(0)
CRNUM(2)
CRNUM(3)
CRNUM(4)
#undef CRNUM
I(MOV_DR, OP0F(0x21), 0, IF_PRIV | IF_SYS | AT_CR | AT_NOMOD, NOFL, W(Ec), R(Dc))
I(MOV_DR, OP0F(0x23), 0, IF_PRIV | IF_SYS | AT_CR | AT_NOMOD, NOFL, W(Dc), R(Ec))
I(WRMSR, OP0F(0x30), 0, IF_PRIV | IF_SYS, NOFL)
I(RDTSC, OP0F(0x31), 0, 0, NOFL)
I(RDMSR, OP0F(0x32), 0, IF_PRIV, NOFL)
I(RDPMC, OP0F(0x33), 0, 0, NOFL)
#undef FEAT
#define FEAT SEP
I(SYSENTER, OP0F(0x34), 0, IF_SYS, NOFL)
I(SYSEXIT, OP0F(0x35), 0, IF_PRIV | IF_SYS, NOFL)
#undef FEAT
#define FEAT CMOV
#define CMOV(cc, fl) I(CMOVCC, OP0F(0x40 + (cc)), 0, AT_CC, EF(fl, 0, 0), RW(Gv), R(Ev))
CONDITIONS(CMOV)
#undef CMOV
#undef FEAT
#define FEAT FPU

/* ---- 0F 80-AF ---- */
#define JZ(cc, fl) I(JCC, OP0F(0x80 + (cc)), 0, IF_BRANCH | AT_F64 | AT_CC, EF(fl, 0, 0), R(Jz))
CONDITIONS(JZ)
#undef JZ
#define SETB(cc, fl) I(SETCC, OP0F(0x90 + (cc)), 0, AT_BYTE | AT_CC, EF(fl, 0, 0), W(Eb))
CONDITIONS(SETB)
#undef SETB
I(CPUID, OP0F(0xa2), 0, 0, NOFL)
I(BT, OP0F(0xa3), 0, 0, F_BT, R(Ev), R(Gv))
I(SHLD, OP0F(0xa4), 0, 0, F_SHD, RW(Ev), R(Gv), R(Ib))
I(SHLD, OP0F(0xa5), 0, 0, F_SHD, RW(Ev), R(Gv), R(CL))
I(RSM, OP0F(0xaa), 0, IF_SYS, F_TRAP)
I(BTS, OP0F(0xab), 0, IF_LOCK, F_BT, RW(Ev), R(Gv))
I(SHRD, OP0F(0xac), 0, 0, F_SHD, RW(Ev), R(Gv), R(Ib))
I(SHRD, OP0F(0xad), 0, 0, F_SHD, RW(Ev), R(Gv), R(CL))
I(IMUL, OP0F(0xaf), 0, 0, F_MUL, RW(Gv), R(Ev))

/* ---- 0F AE, 0F C7: state and fences ---- */
#undef FEAT
#define FEAT FXSR
I(FXSAVE, OP0F(0xae), NP | REG_(0) | MEM, IF_X87, NOFL, W(M0))
I(FXRSTOR, OP0F(0xae), NP | REG_(1) | MEM, IF_X87, NOFL, R(M0))
#undef FEAT
#define FEAT SSE
I(LDMXCSR, OP0F(0xae), NP | REG_(2) | MEM, IF_SSE, NOFL, R(Md))
I(STMXCSR, OP0F(0xae), NP | REG_(3) | MEM, IF_SSE, NOFL, W(Md))
I(SFENCE, OP0F(0xae), NP | REG_(7) | RR, 0, NOFL)
#undef FEAT
#define FEAT SSE2
I(LFENCE, OP0F(0xae), NP | REG_(5) | RR, 0, NOFL)
I(MFENCE, OP0F(0xae), NP | REG_(6) | RR, 0, NOFL)
I(MOVNTI, OP0F(0xc3), NP | MEM, 0, NOFL, W(My), R(Gy))
#undef FEAT
#define FEAT XSAVE
I(XSAVE, OP0F(0xae), NP | REG_(4) | MEM, 0, NOFL, RW(M0))
I(XRSTOR, OP0F(0xae), NP | REG_(5) | MEM, IF_SYS, NOFL, R(M0))
#undef FEAT
#define FEAT XSAVEOPT
I(XSAVEOPT, OP0F(0xae), NP | REG_(6) | MEM, 0, NOFL, RW(M0))
#undef FEAT
#define FEAT XSAVEC
I(XSAVEC, OP0F(0xc7), NP | REG_(4) | MEM, 0, NOFL, W(M0))
I(XSAVES, OP0F(0xc7), NP | REG_(5) | MEM, IF_PRIV, NOFL, W(M0))
I(XRSTORS, OP0F(0xc7), NP | REG_(3) | MEM, IF_PRIV | IF_SYS, NOFL, R(M0))
#undef FEAT
#define FEAT CLFSH
I(CLFLUSH, OP0F(0xae), NP | REG_(7) | MEM, 0, NOFL, N(Mb))
#undef FEAT
#define FEAT CLFLUSHOPT
I(CLFLUSHOPT, OP0F(0xae), P66 | REG_(7) | MEM, 0, NOFL, N(Mb))
#undef FEAT
#define FEAT CLWB
I(CLWB, OP0F(0xae), P66 | REG_(6) | MEM, 0, NOFL, N(Mb))
#undef FEAT
#define FEAT FSGSBASE
I(RDFSBASE, OP0F(0xae), PF3 | REG_(0) | RR | X64, 0, NOFL, W(Ey))
I(RDGSBASE, OP0F(0xae), PF3 | REG_(1) | RR | X64, 0, NOFL, W(Ey))
I(WRFSBASE, OP0F(0xae), PF3 | REG_(2) | RR | X64, IF_SYS, NOFL, R(Ey))
I(WRGSBASE, OP0F(0xae), PF3 | REG_(3) | RR | X64, IF_SYS, NOFL, R(Ey))
#undef FEAT
#define FEAT CX8
I(CMPXCHG8B, OP0F(0xc7), REG_(1) | MEM | W0, IF_LOCK, F_ZF, RW(Mqq))
#undef FEAT
#define FEAT CX16
I(CMPXCHG16B, OP0F(0xc7), REG_(1) | MEM | W1, IF_LOCK | IF_ALIGN, F_ZF, RW(Mqq))
#undef FEAT
#define FEAT RDRAND
I(RDRAND, OP0F(0xc7), NOREP | REG_(6) | RR, 0, EF(0, fALL, 0), W(Ev))
#undef FEAT
#define FEAT RDSEED
I(RDSEED, OP0F(0xc7), NOREP | REG_(7) | RR, 0, EF(0, fALL, 0), W(Ev))
#undef FEAT
#define FEAT RDPID
I(RDPID, OP0F(0xc7), PF3 | REG_(7) | RR, 0, NOFL, W(Ec))
#undef FEAT
#define FEAT FPU

/* ---- 0F B0-CF ---- */
I(CMPXCHG, OP0F(0xb0), 0, IF_LOCK | AT_BYTE, F_ADD, RW(Eb), R(Gb))
I(CMPXCHG, OP0F(0xb1), 0, IF_LOCK, F_ADD, RW(Ev), R(Gv))
I(LSS, OP0F(0xb2), MEM, IF_SYS, NOFL, W(Gv), R(Mp))
I(BTR, OP0F(0xb3), 0, IF_LOCK, F_BT, RW(Ev), R(Gv))
I(LFS, OP0F(0xb4), MEM, IF_SYS, NOFL, W(Gv), R(Mp))
I(LGS, OP0F(0xb5), MEM, IF_SYS, NOFL, W(Gv), R(Mp))
I(MOVZX, OP0F(0xb6), 0, 0, NOFL, W(Gv), R(Eb))
I(MOVZX, OP0F(0xb7), 0, 0, NOFL, W(Gv), R(Ew))
I(UD1, OP0F(0xb9), 0, IF_SYS, F_TRAP, N(Gv), N(Ev))
I(BT, OP0F(0xba), REG_(4), 0, F_BT, R(Ev), R(Ib))
I(BTS, OP0F(0xba), REG_(5), IF_LOCK, F_BT, RW(Ev), R(Ib))
I(BTR, OP0F(0xba), REG_(6), IF_LOCK, F_BT, RW(Ev), R(Ib))
I(BTC, OP0F(0xba), REG_(7), IF_LOCK, F_BT, RW(Ev), R(Ib))
I(BTC, OP0F(0xbb), 0, IF_LOCK, F_BT, RW(Ev), R(Gv))
#undef FEAT
#define FEAT POPCNT
I(POPCNT, OP0F(0xb8), PF3, 0, EF(0, fALL, 0), W(Gv), R(Ev))
#undef FEAT
#define FEAT BMI1
I(TZCNT, OP0F(0xbc), PF3, 0, EF(0, fALL, FL_OF | FL_SF | FL_AF | FL_PF), W(Gv), R(Ev))
#undef FEAT
#define FEAT LZCNT
I(LZCNT, OP0F(0xbd), PF3, 0, EF(0, fALL, FL_OF | FL_SF | FL_AF | FL_PF), W(Gv), R(Ev))
#undef FEAT
#define FEAT FPU
I(BSF, OP0F(0xbc), 0, 0, EF(0, fALL, (fALL & ~FL_ZF)), RW(Gv), R(Ev))
I(BSR, OP0F(0xbd), 0, 0, EF(0, fALL, (fALL & ~FL_ZF)), RW(Gv), R(Ev))
I(MOVSX, OP0F(0xbe), 0, 0, NOFL, W(Gv), R(Eb))
I(MOVSX, OP0F(0xbf), 0, 0, NOFL, W(Gv), R(Ew))
I(XADD, OP0F(0xc0), 0, IF_LOCK | AT_BYTE, F_ADD, RW(Eb), RW(Gb))
I(XADD, OP0F(0xc1), 0, IF_LOCK, F_ADD, RW(Ev), RW(Gv))
I(BSWAP, OP0F(0xc8) | SPAN8, 0, 0, NOFL, RW(Zv))
I(UD0, OP0F(0xff), 0, IF_SYS, F_TRAP, N(Gv), N(Ev))

/* ---- 0F38 ---- */
#undef FEAT
#define FEAT MOVBE
I(MOVBE, OP38(0xf0), NOREP | MEM, 0, NOFL, W(Gv), R(Mv))
I(MOVBE, OP38(0xf1), NOREP | MEM, 0, NOFL, W(Mv), R(Gv))
#undef FEAT
#define FEAT SSE42
I(CRC32, OP38(0xf0), PF2, 0, NOFL, RW(Gy), R(Eb))
I(CRC32, OP38(0xf1), PF2, 0, NOFL, RW(Gy), R(Ev))
#undef FEAT
#define FEAT ADX
I(ADCX, OP38(0xf6), P66, 0, EF(FL_CF, FL_CF, 0), RW(Gy), R(Ey))
I(ADOX, OP38(0xf6), PF3, 0, EF(FL_OF, FL_OF, 0), RW(Gy), R(Ey))
#undef FEAT
#define FEAT INVPCID
I(INVPCID, OP38(0x82), P66 | MEM, IF_PRIV | IF_SYS, NOFL, R(Gc), R(Mo))

/* ---- VEX on general registers; not recognised in real and virtual-8086 mode ---- */
#undef FEAT
#define FEAT BMI1
#define F_BMI EF(0, fALL, FL_AF | FL_PF)
I(ANDN, V38(0xf2), NP | L0, IF_NOREAL, F_BMI, W(Gy), R(By), R(Ey))
I(BLSR, V38(0xf3), NP | L0 | REG_(1), IF_NOREAL, F_BMI, W(By), R(Ey))
I(BLSMSK, V38(0xf3), NP | L0 | REG_(2), IF_NOREAL, F_BMI, W(By), R(Ey))
I(BLSI, V38(0xf3), NP | L0 | REG_(3), IF_NOREAL, F_BMI, W(By), R(Ey))
I(BEXTR, V38(0xf7), NP | L0, IF_NOREAL, EF(0, fALL, FL_AF | FL_SF | FL_PF),
  W(Gy), R(Ey), R(By))
#undef FEAT
#define FEAT BMI2
I(BZHI, V38(0xf5), NP | L0, IF_NOREAL, F_BMI, W(Gy), R(Ey), R(By))
I(PEXT, V38(0xf5), PF3 | L0, IF_NOREAL, NOFL, W(Gy), R(By), R(Ey))
I(PDEP, V38(0xf5), PF2 | L0, IF_NOREAL, NOFL, W(Gy), R(By), R(Ey))
I(MULX, V38(0xf6), PF2 | L0, IF_NOREAL, NOFL, W(Gy), W(By), R(Ey))
I(SHLX, V38(0xf7), P66 | L0, IF_NOREAL, NOFL, W(Gy), R(Ey), R(By))
I(SARX, V38(0xf7), PF3 | L0, IF_NOREAL, NOFL, W(Gy), R(Ey), R(By))
I(SHRX, V38(0xf7), PF2 | L0, IF_NOREAL, NOFL, W(Gy), R(Ey), R(By))
I(RORX, V3A(0xf0), PF2 | L0, IF_NOREAL, NOFL, W(Gy), R(Ey), R(Ib))

#undef F_ADD
#undef F_ADC
#undef F_LOGIC
#undef F_INC
#undef F_MUL
#undef F_DIV
#undef F_ROT1
#undef F_ROTN
#undef F_RC1
#undef F_RCN
#undef F_SH1
#undef F_SHN
#undef F_SHD
#undef F_BT
#undef F_ZF
#undef F_TRAP
#undef F_LOAD
#undef F_STR
#undef F_STRC
#undef F_BMI
#undef CONDITIONS
#undef FEAT
#undef FEAT2
