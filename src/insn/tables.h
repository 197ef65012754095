/* Every table, for inclusion between braces with I() defined. */
#include "insn/table-general.h"
