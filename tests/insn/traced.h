/*
 * A traced child process in which single instructions run natively. Apart from the rest because the
 * system's headers for it clash with ours.
 */
#ifndef RING3_TESTS_INSN_TRACED_H
#define RING3_TESTS_INSN_TRACED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define TRACED_PAGE 4096u
#define TRACED_CODE 0x500000000000ull
#define TRACED_DATA 0x510000000000ull /* one page; nothing is mapped near it or the code */

struct traced {
    pid_t pid;
    uint8_t *code, *data; /* shared with the child */
    size_t xsize;         /* bytes of XSAVE image in use */
};

struct traced_state {
    uint64_t gpr[16]; /* in the order of encodings */
    uint64_t rip, rflags;
    uint8_t x[8192]; /* XSAVE image, standard format */
};

/* Maps the pages and starts the child; false if the system does not allow it. */
bool traced_start(struct traced *t, size_t xsize);
void traced_stop(struct traced *t);
/* The state that the child started with, as a base for others. */
bool traced_get(struct traced *t, struct traced_state *s);
/* Runs the instruction at TRACED_CODE: 0, or the signal it got; *gp: a SIGSEGV that was no page
 * fault. Exits the process if the child is lost. */
int traced_step(struct traced *t, const struct traced_state *in, struct traced_state *out,
                bool *gp);

#endif
