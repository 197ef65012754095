/*
 * The oracle: a program of its own, so that little is mapped beside the cases and no sanitizer
 * stands in their way. native.c starts it and feeds it batches; native.h says how it works.
 */
#include <signal.h>
#include <ucontext.h>

/* insn.h has a name of its own for this. */
enum { GREG_RIP = REG_RIP };
#undef REG_RIP

#include "oracle.h"

#include <asm/prctl.h>
#include <cpuid.h>
#include <errno.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include "base/util.h"

#define TICK_US 200000

/* ---- extended state ---- */

struct layout {
    uint32_t off[8];
    uint64_t xcr0;
};

static struct layout layout(void)
{
    struct layout l = {.xcr0 = native_xcr0()};
    uint32_t a, b, c, d;

    for (unsigned n = 2; n < 8; n++) {
        __cpuid_count(13, n, a, b, c, d);
        l.off[n] = b;
    }
    return l;
}

static bool all_zero(const void *p, size_t n)
{
    const uint8_t *b = p;

    for (size_t k = 0; k < n; k++)
        if (b[k])
            return false;
    return true;
}

/* Components that are not in their initial configuration. Loaded as such, they are not "in use"
 * then, which XSAVEC and the like show. */
static uint64_t in_use(const struct cpu_state *s)
{
    struct x87_state x = s->x87;
    uint64_t bv = 0;

    x.fcw ^= 0x37f;
    bv |= !all_zero(&x, sizeof(x)) ? BIT(0) : 0;
    bv |= !all_zero(s->k, sizeof(s->k)) ? BIT(5) : 0;
    for (unsigned n = 0; n < 32; n++) {
        if (n >= 16) {
            bv |= !all_zero(s->zmm[n], 64) ? BIT(7) : 0;
            continue;
        }
        bv |= !all_zero(s->zmm[n], 16) ? BIT(1) : 0;
        bv |= !all_zero(s->zmm[n] + 2, 16) ? BIT(2) : 0;
        bv |= !all_zero(s->zmm[n] + 4, 32) ? BIT(6) : 0;
    }
    return bv;
}

/* Moves between a state and a standard-format XSAVE image; independent of xsave.c on purpose. */
static void transfer(const struct layout *l, struct cpu_state *s, uint8_t *m, bool to_image)
{
    struct x87_state *x = &s->x87;
#define MOVE(field, off, n) \
    (to_image ? memcpy(m + (off), &(field), n) : memcpy(&(field), m + (off), n))

    MOVE(x->fcw, 0, 2);
    MOVE(x->fsw, 2, 2);
    MOVE(x->tag, 4, 1);
    MOVE(x->fop, 6, 2);
    MOVE(x->fip, 8, 8);
    MOVE(x->fdp, 16, 8);
    MOVE(s->mxcsr, 24, 4);
    for (unsigned n = 0; n < 8; n++)
        MOVE(x->st[n], 32 + 16 * n, 10);
    for (unsigned n = 0; n < 16; n++) {
        MOVE(s->zmm[n][0], 160 + 16 * n, 16);
        if (l->xcr0 & 4)
            MOVE(s->zmm[n][2], l->off[2] + 16 * n, 16);
        if (l->xcr0 & 0x40)
            MOVE(s->zmm[n][4], l->off[6] + 32 * n, 32);
        if (l->xcr0 & 0x80)
            MOVE(s->zmm[16 + n][0], l->off[7] + 64 * n, 64);
    }
    if (l->xcr0 & 0x20)
        MOVE(s->k, l->off[5], 64);
#undef MOVE
    if (to_image) {
        uint64_t bv;
        memcpy(&bv, m + 512, 8);
        bv = (bv & ~l->xcr0) | (in_use(s) & l->xcr0);
        memcpy(m + 512, &bv, 8);
    }
}

/* ---- running cases ---- */

/* Signal handlers have no argument of ours. */
static struct {
    struct native_batch *batch;
    struct layout layout;
    sigjmp_buf done;
    unsigned seen; /* case that the last tick interrupted */
    bool running;
} child;

static const int greg_of[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                REG_R12, REG_R13, REG_R14, REG_R15};

static void begin_case(ucontext_t *uc)
{
    struct slot *sl = &child.batch->slot[child.batch->at];
    greg_t *g = uc->uc_mcontext.gregs;
    struct test_case *t = &sl->t;

    memcpy((void *)DATA_ADDR, t->data, DATA_BYTES);
    if (!case_assemble(t, (uint8_t *)CODE_ADDR, NULL))
        abort();
    for (unsigned n = 0; n < 16; n++)
        g[greg_of[n]] = (greg_t)t->s.gpr[n];
    g[GREG_RIP] = (greg_t)(CODE_ADDR + t->start);
    g[REG_EFL] = (greg_t)t->s.rflags;
    g[REG_CSGSFS] = (greg_t)((g[REG_CSGSFS] & 0x0000ffffffff0000) | (uint64_t)SEL_DATA << 48 |
                             (t->bits == CPU_64 ? SEL_CODE64 : SEL_CODE32));
    transfer(&child.layout, &t->s, (uint8_t *)uc->uc_mcontext.fpregs, true);
    __asm__ volatile("mov %0, %%ds\n\tmov %0, %%es" : : "r"(SEL_DATA));
}

static void end_case(const ucontext_t *uc, bool timeout)
{
    struct slot *sl = &child.batch->slot[child.batch->at];
    const greg_t *g = uc->uc_mcontext.gregs;
    struct outcome *o = &sl->out;

    o->s = sl->t.s;
    o->vector = timeout ? END_TIMEOUT : (int)g[REG_TRAPNO];
    o->error = (uint32_t)g[REG_ERR];
    o->cr2 = (uint64_t)g[REG_CR2];
    for (unsigned n = 0; n < 16; n++)
        o->s.gpr[n] = (uint64_t)g[greg_of[n]];
    o->s.rip = (uint64_t)g[GREG_RIP];
    o->s.rflags = (uint64_t)g[REG_EFL];
    o->s.seg[CS].sel = (uint16_t)g[REG_CSGSFS];
    o->s.seg[SS].sel = (uint16_t)((uint64_t)g[REG_CSGSFS] >> 48);
    __asm__("mov %%ds, %0" : "=r"(o->s.seg[DS].sel));
    __asm__("mov %%es, %0" : "=r"(o->s.seg[ES].sel));
    transfer(&child.layout, &o->s, (uint8_t *)uc->uc_mcontext.fpregs, false);
    memcpy(o->code, (void *)CODE_ADDR, CODE_BYTES);
    memcpy(o->data, (void *)DATA_ADDR, DATA_BYTES);
}

static void on_signal(int sig, siginfo_t *si, void *uc)
{
    __builtin_ia32_writeeflags_u64(0x202); /* AC, NT and ID are the case's */
    if (sig == SIGUSR1) {
        child.batch->at = 0;
        child.running = true;
    } else if (!child.running) {
        signal(sig, SIG_DFL); /* a fault of the test itself */
        return;
    } else if (sig == SIGALRM && child.seen != child.batch->at) {
        child.seen = child.batch->at;
        return;
    } else {
        end_case(uc, sig == SIGALRM);
        child.seen = ~0u;
        if (++child.batch->at == child.batch->count) {
            child.running = false;
            siglongjmp(child.done, 1);
        }
    }
    begin_case(uc);
}

static bool map_at(uint64_t addr, size_t n, int prot)
{
    return mmap((void *)addr, n, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) ==
           (void *)addr;
}

static bool child_init(struct native_batch *b)
{
    static uint8_t altstack[65536] __attribute__((aligned(64)));
    static const int sigs[] = {SIGSEGV, SIGFPE, SIGILL, SIGBUS, SIGTRAP, SIGUSR1, SIGALRM};
    stack_t st = {.ss_sp = altstack, .ss_size = sizeof(altstack)};
    struct sigaction sa = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    struct itimerval tick = {{0, TICK_US}, {0, TICK_US}};

    child.batch = b;
    child.layout = layout();
    if (!map_at(CODE_ADDR, CODE_BYTES, PROT_READ | PROT_WRITE | PROT_EXEC) ||
        !map_at(DATA_ADDR, DATA_BYTES + RO_BYTES, PROT_READ | PROT_WRITE))
        return false;
    case_ro_page((uint8_t *)RO_ADDR);
    mprotect((void *)RO_ADDR, RO_BYTES, PROT_READ);
    if (syscall(SYS_arch_prctl, ARCH_SET_GS, GS_BASE) < 0)
        return false;
    sigaltstack(&st, NULL);
    sigfillset(&sa.sa_mask);
    for (unsigned n = 0; n < ARRAY_LEN(sigs); n++)
        sigaction(sigs[n], &sa, NULL);
    setitimer(ITIMER_REAL, &tick, NULL);
    return true;
}

int main(void)
{
    struct native_batch *b =
        mmap(NULL, sizeof(*b), PROT_READ | PROT_WRITE, MAP_SHARED, ORACLE_FD_BATCH, 0);
    char c;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (b == MAP_FAILED || !child_init(b))
        return 1;
    for (;;) {
        ssize_t got = read(ORACLE_FD_IN, &c, 1);

        if (got < 0 && errno == EINTR)
            continue;
        if (got != 1)
            return 0;
        child.seen = ~0u;
        if (sigsetjmp(child.done, 1) == 0)
            raise(SIGUSR1);
        if (write(ORACLE_FD_OUT, &c, 1) != 1)
            return 0;
    }
}
