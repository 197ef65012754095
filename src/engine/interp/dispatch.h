/* How one op's handler continues with the next: threaded dispatch by sibling calls. The compiler
 * makes them at -O2; builds without it (debug, sanitizers) put dispatch-loop/ first in the include
 * path, whose file of this name returns to the loop in run.c instead. */
#ifndef RING3_ENGINE_INTERP_DISPATCH_H
#define RING3_ENGINE_INTERP_DISPATCH_H

#define GO(op_) do { const struct op *go_ = (op_); return go_->fn(c, go_); } while (0)
#define NEXT() return o[1].fn(c, o + 1)

#endif
