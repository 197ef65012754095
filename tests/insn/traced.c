#include "traced.h"

#include <elf.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

static uint8_t *shared_page(uint64_t va, int prot)
{
    void *p = mmap((void *)(uintptr_t)va, TRACED_PAGE, prot,
                   MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

    return p == MAP_FAILED ? NULL : p;
}

bool traced_start(struct traced *t, size_t xsize)
{
    int status;

    t->xsize = xsize;
    t->code = shared_page(TRACED_CODE, PROT_READ | PROT_WRITE | PROT_EXEC);
    t->data = shared_page(TRACED_DATA, PROT_READ | PROT_WRITE);
    if (!t->code || !t->data)
        return false;
    t->pid = fork();
    if (t->pid == 0) {
        if (ptrace(PTRACE_TRACEME, 0, NULL, NULL))
            _exit(1);
        raise(SIGSTOP);
        _exit(0);
    }
    if (t->pid < 0 || waitpid(t->pid, &status, 0) != t->pid || !WIFSTOPPED(status))
        return false;
    return !ptrace(PTRACE_SETOPTIONS, t->pid, NULL, (void *)PTRACE_O_EXITKILL);
}

void traced_stop(struct traced *t)
{
    kill(t->pid, SIGKILL);
    waitpid(t->pid, NULL, 0);
    munmap(t->code, TRACED_PAGE);
    munmap(t->data, TRACED_PAGE);
}

static void gpr_list(struct user_regs_struct *r, unsigned long long *list[16])
{
    unsigned long long *const l[16] = {&r->rax, &r->rcx, &r->rdx, &r->rbx, &r->rsp, &r->rbp,
                                       &r->rsi, &r->rdi, &r->r8,  &r->r9,  &r->r10, &r->r11,
                                       &r->r12, &r->r13, &r->r14, &r->r15};

    memcpy(list, l, sizeof(l));
}

bool traced_get(struct traced *t, struct traced_state *s)
{
    struct iovec v = {s->x, sizeof(s->x)};
    struct user_regs_struct r;
    unsigned long long *g[16];

    if (ptrace(PTRACE_GETREGS, t->pid, NULL, &r) ||
        ptrace(PTRACE_GETREGSET, t->pid, (void *)NT_X86_XSTATE, &v))
        return false;
    gpr_list(&r, g);
    for (int k = 0; k < 16; k++)
        s->gpr[k] = *g[k];
    s->rip = r.rip;
    s->rflags = r.eflags;
    return true;
}

static bool traced_set(struct traced *t, const struct traced_state *s)
{
    struct iovec v = {(void *)(uintptr_t)s->x, t->xsize};
    struct user_regs_struct r;
    unsigned long long *g[16];

    if (ptrace(PTRACE_GETREGS, t->pid, NULL, &r))
        return false;
    gpr_list(&r, g);
    for (int k = 0; k < 16; k++)
        *g[k] = s->gpr[k];
    r.rip = TRACED_CODE;
    r.eflags = s->rflags;
    r.orig_rax = (unsigned long long)-1; /* no system call to restart */
    return !ptrace(PTRACE_SETREGS, t->pid, NULL, &r) &&
           !ptrace(PTRACE_SETREGSET, t->pid, (void *)NT_X86_XSTATE, &v);
}

int traced_step(struct traced *t, const struct traced_state *in, struct traced_state *out, bool *gp)
{
    siginfo_t si;
    int status;

    if (!traced_set(t, in) || ptrace(PTRACE_SINGLESTEP, t->pid, NULL, NULL) ||
        waitpid(t->pid, &status, 0) != t->pid || !WIFSTOPPED(status) || !traced_get(t, out)) {
        fprintf(stderr, "lost the child: %s\n", strerror(errno));
        exit(EXIT_FAILURE);
    }
    int sig = WSTOPSIG(status);
    *gp =
        sig == SIGSEGV && !ptrace(PTRACE_GETSIGINFO, t->pid, NULL, &si) && si.si_code == SI_KERNEL;
    return sig == SIGTRAP ? 0 : sig;
}
