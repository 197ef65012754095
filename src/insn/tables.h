/* Every table, for inclusion between braces with I() defined. */
#include "insn/table-general.h"
#include "insn/table-x87.h"
#include "insn/table-sse.h"
#include "insn/table-vex.h"
#include "insn/table-evex.h"
