/* x87 instructions: D8-DF. Undocumented aliases (DC D0, DD C8, DE D0, DF C8, DF D0, DF D8, D9
 * D8) behave as the instruction that they are named after here. SDM vol. 2 appendix B.17, vol. 1
 * ch. 8. See table.h. */
#define FEAT FPU
#define FEAT2 FPU

#define XW (IF_X87 | IF_WAIT) /* reports a pending exception first */
#define XN IF_X87

/* D8, DC: single and double memory operands; DA, DE: 32- and 16-bit integers */
#define ARITH(name, iname, n, rev)                                                                 \
    I(name, OP(0xd8), REG_(n) | MEM, XW, NOFL, R(Md))                                              \
    I(name, OP(0xd8), REG_(n) | RR, XW, NOFL, RW(ST0), R(STi))                                     \
    I(name, OP(0xdc), REG_(n) | MEM, XW, NOFL, R(Mq))                                              \
    I(name, OP(0xdc), REG_(rev) | RR, XW, NOFL, RW(STi), R(ST0))                                   \
    I(name##P, OP(0xde), REG_(rev) | RR, XW, NOFL, RW(STi), R(ST0))                                \
    I(iname, OP(0xda), REG_(n) | MEM, XW, NOFL, R(Md))                                             \
    I(iname, OP(0xde), REG_(n) | MEM, XW, NOFL, R(Mw))
ARITH(FADD, FIADD, 0, 0)
ARITH(FMUL, FIMUL, 1, 1)
ARITH(FSUB, FISUB, 4, 5)
ARITH(FSUBR, FISUBR, 5, 4)
ARITH(FDIV, FIDIV, 6, 7)
ARITH(FDIVR, FIDIVR, 7, 6)
#undef ARITH
#define COMPARE(name, iname, n)                                                                    \
    I(name, OP(0xd8), REG_(n) | MEM, XW, NOFL, R(Md))                                              \
    I(name, OP(0xd8), REG_(n) | RR, XW, NOFL, R(STi))                                              \
    I(name, OP(0xdc), REG_(n) | MEM, XW, NOFL, R(Mq))                                              \
    I(name, OP(0xdc), REG_(n) | RR, XW, NOFL, R(STi))                                              \
    I(iname, OP(0xda), REG_(n) | MEM, XW, NOFL, R(Md))                                             \
    I(iname, OP(0xde), REG_(n) | MEM, XW, NOFL, R(Mw))
COMPARE(FCOM, FICOM, 2)
COMPARE(FCOMP, FICOMP, 3)
#undef COMPARE
I(FCOMP, OP(0xde), REG_(2) | RR, XW, NOFL, R(STi))
I(FCOMPP, OP(0xde), REG_(3) | RM_(1) | RR, XW, NOFL)

/* ---- D9 ---- */
I(FLD, OP(0xd9), REG_(0) | MEM, XW, NOFL, R(Md))
I(FST, OP(0xd9), REG_(2) | MEM, XW, NOFL, W(Md))
I(FSTP, OP(0xd9), REG_(3) | MEM, XW, NOFL, W(Md))
I(FLDENV, OP(0xd9), REG_(4) | MEM, XW, NOFL, R(Me))
I(FLDCW, OP(0xd9), REG_(5) | MEM, XW, NOFL, R(Mw))
I(FNSTENV, OP(0xd9), REG_(6) | MEM, XN, NOFL, W(Me))
I(FNSTCW, OP(0xd9), REG_(7) | MEM, XN, NOFL, W(Mw))
I(FLD, OP(0xd9), REG_(0) | RR, XW, NOFL, R(STi))
I(FXCH, OP(0xd9), REG_(1) | RR, XW, NOFL, RW(STi))
I(FNOP, OP(0xd9), REG_(2) | RM_(0) | RR, XW, NOFL)
I(FSTP, OP(0xd9), REG_(3) | RR, XW, NOFL, W(STi))
#define NOARG(name, reg, rm) I(name, OP(0xd9), REG_(reg) | RM_(rm) | RR, XW, NOFL)
NOARG(FCHS, 4, 0)
NOARG(FABS, 4, 1)
NOARG(FTST, 4, 4)
NOARG(FXAM, 4, 5)
NOARG(FLD1, 5, 0)
NOARG(FLDL2T, 5, 1)
NOARG(FLDL2E, 5, 2)
NOARG(FLDPI, 5, 3)
NOARG(FLDLG2, 5, 4)
NOARG(FLDLN2, 5, 5)
NOARG(FLDZ, 5, 6)
NOARG(F2XM1, 6, 0)
NOARG(FYL2X, 6, 1)
NOARG(FPTAN, 6, 2)
NOARG(FPATAN, 6, 3)
NOARG(FXTRACT, 6, 4)
NOARG(FPREM1, 6, 5)
NOARG(FDECSTP, 6, 6)
NOARG(FINCSTP, 6, 7)
NOARG(FPREM, 7, 0)
NOARG(FYL2XP1, 7, 1)
NOARG(FSQRT, 7, 2)
NOARG(FSINCOS, 7, 3)
NOARG(FRNDINT, 7, 4)
NOARG(FSCALE, 7, 5)
NOARG(FSIN, 7, 6)
NOARG(FCOS, 7, 7)
#undef NOARG

/* ---- DB, DD, DF ---- */
I(FILD, OP(0xdb), REG_(0) | MEM, XW, NOFL, R(Md))
I(FIST, OP(0xdb), REG_(2) | MEM, XW, NOFL, W(Md))
I(FISTP, OP(0xdb), REG_(3) | MEM, XW, NOFL, W(Md))
I(FLD, OP(0xdb), REG_(5) | MEM, XW, NOFL, R(Mt))
I(FSTP, OP(0xdb), REG_(7) | MEM, XW, NOFL, W(Mt))
/* FNENI, FNDISI and FNSETPM of the 8087 and 287 do nothing since. */
I(FNOP, OP(0xdb), REG_(4) | RM_(0) | RR, XN, NOFL)
I(FNOP, OP(0xdb), REG_(4) | RM_(1) | RR, XN, NOFL)
I(FNCLEX, OP(0xdb), REG_(4) | RM_(2) | RR, XN, NOFL)
I(FNINIT, OP(0xdb), REG_(4) | RM_(3) | RR, XN, NOFL)
I(FNOP, OP(0xdb), REG_(4) | RM_(4) | RR, XN, NOFL)
I(FLD, OP(0xdd), REG_(0) | MEM, XW, NOFL, R(Mq))
I(FST, OP(0xdd), REG_(2) | MEM, XW, NOFL, W(Mq))
I(FSTP, OP(0xdd), REG_(3) | MEM, XW, NOFL, W(Mq))
I(FRSTOR, OP(0xdd), REG_(4) | MEM, XW, NOFL, R(M0))
I(FNSAVE, OP(0xdd), REG_(6) | MEM, XN, NOFL, W(M0))
I(FNSTSW, OP(0xdd), REG_(7) | MEM, XN, NOFL, W(Mw))
I(FFREE, OP(0xdd), REG_(0) | RR, XW, NOFL, N(STi))
I(FXCH, OP(0xdd), REG_(1) | RR, XW, NOFL, RW(STi))
I(FST, OP(0xdd), REG_(2) | RR, XW, NOFL, W(STi))
I(FSTP, OP(0xdd), REG_(3) | RR, XW, NOFL, W(STi))
I(FUCOM, OP(0xdd), REG_(4) | RR, XW, NOFL, R(STi))
I(FUCOMP, OP(0xdd), REG_(5) | RR, XW, NOFL, R(STi))
I(FUCOMPP, OP(0xda), REG_(5) | RM_(1) | RR, XW, NOFL)
I(FILD, OP(0xdf), REG_(0) | MEM, XW, NOFL, R(Mw))
I(FIST, OP(0xdf), REG_(2) | MEM, XW, NOFL, W(Mw))
I(FISTP, OP(0xdf), REG_(3) | MEM, XW, NOFL, W(Mw))
I(FBLD, OP(0xdf), REG_(4) | MEM, XW, NOFL, R(Mt))
I(FILD, OP(0xdf), REG_(5) | MEM, XW, NOFL, R(Mq))
I(FBSTP, OP(0xdf), REG_(6) | MEM, XW, NOFL, W(Mt))
I(FISTP, OP(0xdf), REG_(7) | MEM, XW, NOFL, W(Mq))
I(FFREEP, OP(0xdf), REG_(0) | RR, XW, NOFL, N(STi))
I(FXCH, OP(0xdf), REG_(1) | RR, XW, NOFL, RW(STi))
I(FSTP, OP(0xdf), REG_(2) | RR, XW, NOFL, W(STi))
I(FSTP, OP(0xdf), REG_(3) | RR, XW, NOFL, W(STi))
I(FNSTSW, OP(0xdf), REG_(4) | RM_(0) | RR, XN, NOFL, W(AX))

#undef FEAT
#define FEAT SSE3
I(FISTTP, OP(0xdb), REG_(1) | MEM, XW, NOFL, W(Md))
I(FISTTP, OP(0xdd), REG_(1) | MEM, XW, NOFL, W(Mq))
I(FISTTP, OP(0xdf), REG_(1) | MEM, XW, NOFL, W(Mw))

#undef FEAT
#define FEAT CMOV
#define FCMOV(cc, opc, n, fl) I(FCMOV##cc, OP(opc), REG_(n) | RR, XW, EF(fl, 0, 0), RW(ST0), R(STi))
FCMOV(B, 0xda, 0, FL_CF)
FCMOV(E, 0xda, 1, FL_ZF)
FCMOV(BE, 0xda, 2, FL_CF | FL_ZF)
FCMOV(U, 0xda, 3, FL_PF)
FCMOV(NB, 0xdb, 0, FL_CF)
FCMOV(NE, 0xdb, 1, FL_ZF)
FCMOV(NBE, 0xdb, 2, FL_CF | FL_ZF)
FCMOV(NU, 0xdb, 3, FL_PF)
#undef FCMOV
I(FUCOMI, OP(0xdb), REG_(5) | RR, XW, EF(0, fALL, 0), R(ST0), R(STi))
I(FCOMI, OP(0xdb), REG_(6) | RR, XW, EF(0, fALL, 0), R(ST0), R(STi))
I(FUCOMIP, OP(0xdf), REG_(5) | RR, XW, EF(0, fALL, 0), R(ST0), R(STi))
I(FCOMIP, OP(0xdf), REG_(6) | RR, XW, EF(0, fALL, 0), R(ST0), R(STi))

#undef XW
#undef XN
#undef FEAT
#undef FEAT2
