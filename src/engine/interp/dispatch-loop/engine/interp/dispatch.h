/* Dispatch for builds without sibling-call optimisation: handlers return the next op to the loop in
 * run.c. See ../../../dispatch.h. */
#ifndef RING3_ENGINE_INTERP_DISPATCH_H
#define RING3_ENGINE_INTERP_DISPATCH_H

#define GO(op_) return (op_)
#define NEXT() return o + 1

#endif
