#include "native.h"

#include <cpuid.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#define CTX_ADDR 0x10000000ull
#define XAREA 4096

struct layout {
    uint32_t off[8];
    uint64_t xcr0;
};

/* The assembly below knows the offsets. */
struct native_ctx {
    uint64_t gpr[16];  /* 0 */
    uint64_t rflags;   /* 128 */
    uint64_t entry;    /* 136 */
    uint64_t host_rsp; /* 144 */
    uint64_t exit;     /* 152 */
    uint64_t mask;     /* 160 */
    uint64_t pad[11];
    uint8_t in[XAREA];  /* 256 */
    uint8_t out[XAREA]; /* 4352 */
    struct layout l;    /* asked once: CPUID is slow in a virtual machine */
};
_Static_assert(offsetof(struct native_ctx, in) == 256, "assembly");
_Static_assert(offsetof(struct native_ctx, out) == 4352, "assembly");

#define C "0x10000000"
void native_enter(void);
void native_exit(void);
void native_exit_fault(void);
__asm__(".text\n"
        "native_enter:\n"
        "  push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
        "  mov %rsp, " C "+144\n"
        "  mov " C "+160, %eax; mov " C "+164, %edx\n"
        "  xrstor64 " C "+256\n"
        "  push " C "+128; popfq\n"
        "  mov " C "+0, %rax; mov " C "+8, %rcx; mov " C "+16, %rdx; mov " C "+24, %rbx\n"
        "  mov " C "+32, %rsp; mov " C "+40, %rbp; mov " C "+48, %rsi; mov " C "+56, %rdi\n"
        "  mov " C "+64, %r8; mov " C "+72, %r9; mov " C "+80, %r10; mov " C "+88, %r11\n"
        "  mov " C "+96, %r12; mov " C "+104, %r13; mov " C "+112, %r14; mov " C "+120, %r15\n"
        "  jmp *" C "+136\n"
        "native_exit:\n"
        "  mov %rax, " C "+0; mov %rcx, " C "+8; mov %rdx, " C "+16; mov %rbx, " C "+24\n"
        "  mov %rsp, " C "+32; mov %rbp, " C "+40; mov %rsi, " C "+48; mov %rdi, " C "+56\n"
        "  mov %r8, " C "+64; mov %r9, " C "+72; mov %r10, " C "+80; mov %r11, " C "+88\n"
        "  mov %r12, " C "+96; mov %r13, " C "+104; mov %r14, " C "+112; mov %r15, " C "+120\n"
        "  mov " C "+144, %rsp\n"
        "  pushfq; pop " C "+128\n"
        "  mov " C "+160, %eax; mov " C "+164, %edx\n"
        "  xsave64 " C "+4352\n"
        "native_exit_fault:\n"
        "  fninit\n"
        "  push $0x1f80; ldmxcsr (%rsp); add $8, %rsp; cld\n"
        "  pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n"
        "  ret\n");

static struct native_ctx *const ctx = (struct native_ctx *)CTX_ADDR;

static struct layout find_layout(void)
{
    struct layout l = {0};
    uint32_t a, b, c, d;

    __asm__("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    l.xcr0 = a & 0xe7;
    for (unsigned n = 2; n < 8; n++) {
        __cpuid_count(13, n, a, b, c, d);
        l.off[n] = b;
    }
    return l;
}

uint64_t native_xcr0(void) { return ctx->l.xcr0; }

/* Moves between a state and a standard-format XSAVE image; independent of xsave.c on purpose. */
static void transfer(struct cpu_state *s, uint8_t *m, bool to_image)
{
    const struct layout l = ctx->l;
    uint64_t bv;
    struct x87_state *x = &s->x87;
#define MOVE(field, off, n) \
    (to_image ? memcpy(m + (off), &(field), n) : memcpy(&(field), m + (off), n))

    memcpy(&bv, m + 512, 8);
    if (to_image) {
        memset(m, 0, XAREA);
        memcpy(m + 512, &l.xcr0, 8);
    } else if (!(bv & 1)) {
        memset(m, 0, 24);
        memset(m + 32, 0, 128);
        memcpy(m, (uint16_t[]){0x37f}, 2);
    }
    MOVE(x->fcw, 0, 2);
    MOVE(x->fsw, 2, 2);
    MOVE(x->tag, 4, 1);
    MOVE(x->fop, 6, 2);
    MOVE(x->fip, 8, 8);
    MOVE(x->fdp, 16, 8);
    MOVE(s->mxcsr, 24, 4);
    for (unsigned n = 0; n < 8; n++)
        MOVE(x->st[n], 32 + 16 * n, 10);
    if (!to_image)
        for (unsigned k = 1; k < 8; k++)
            if (!(bv >> k & 1)) { /* initial */
                static const uint16_t bytes[8] = {0, 256, 256, 0, 0, 64, 512, 1024};
                memset(m + (k == 1 ? 160 : l.off[k]), 0, bytes[k]);
            }
    for (unsigned n = 0; n < 16; n++) {
        MOVE(s->zmm[n][0], 160 + 16 * n, 16);
        if (l.xcr0 & 4)
            MOVE(s->zmm[n][2], l.off[2] + 16 * n, 16);
        if (l.xcr0 & 0x40)
            MOVE(s->zmm[n][4], l.off[6] + 32 * n, 32);
        if (l.xcr0 & 0x80)
            MOVE(s->zmm[16 + n][0], l.off[7] + 64 * n, 64);
    }
    if (l.xcr0 & 0x20)
        MOVE(s->k, l.off[5], 64);
#undef MOVE
}

/* What the signal handler found; written only between native_run's entry and exit. */
static struct {
    struct native_fault f;
    uint64_t rip;
} * fault_at;

static void on_signal(int sig, siginfo_t *si, void *uc_)
{
    ucontext_t *uc = uc_;
    greg_t *g = uc->uc_mcontext.gregs;
    static const int order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                  REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                  REG_R12, REG_R13, REG_R14, REG_R15};
    uint32_t size;

    if (((uint64_t)g[REG_RIP] & ~PAGE_MASK) != CODE_ADDR) { /* a fault of the test itself */
        signal(sig, SIG_DFL);
        return;
    }
    fault_at->f.vector = (int)g[REG_TRAPNO];
    fault_at->f.error = (uint32_t)g[REG_ERR];
    fault_at->f.cr2 = (uint64_t)g[REG_CR2];
    fault_at->rip = (uint64_t)g[REG_RIP];
    for (unsigned n = 0; n < 16; n++)
        ctx->gpr[n] = (uint64_t)g[order[n]];
    ctx->rflags = (uint64_t)g[REG_EFL];
    /* struct _fpx_sw_bytes: the frame's XSAVE area may be shorter than our buffer. */
    memcpy(&size, (const uint8_t *)uc->uc_mcontext.fpregs + 480, sizeof(size));
    memcpy(ctx->out, uc->uc_mcontext.fpregs, size < sizeof(ctx->out) ? size : sizeof(ctx->out));
    g[REG_RIP] = (greg_t)(uintptr_t)native_exit_fault;
    g[REG_RSP] = (greg_t)ctx->host_rsp;
}

static void *map_at(uint64_t addr, size_t n, int prot)
{
    void *p = mmap((void *)addr, n, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    return p == (void *)addr ? p : NULL;
}

int native_in_child(int (*fn)(void *), void *arg)
{
    int status;
    pid_t pid = fork();

    if (pid == 0)
        exit(fn(arg));
    if (pid < 0 || waitpid(pid, &status, 0) < 0) {
        perror("fork");
        return 1;
    }
    if (WIFEXITED(status))
        return WEXITSTATUS(status);
    printf("the child died of signal %d\n", WTERMSIG(status));
    return 1;
}

bool native_init(void)
{
    static uint8_t altstack[65536];
    static const int sigs[] = {SIGSEGV, SIGFPE, SIGILL, SIGBUS};
    stack_t st = {.ss_sp = altstack, .ss_size = sizeof(altstack)};
    struct sigaction sa = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK};

    if (!map_at(CTX_ADDR, sizeof(*ctx) + 4096, PROT_READ | PROT_WRITE) ||
        !map_at(CODE_ADDR, 4096, PROT_READ | PROT_WRITE | PROT_EXEC) ||
        !map_at(DATA_ADDR, DATA_BYTES, PROT_READ | PROT_WRITE) ||
        !map_at(DATA_ADDR + DATA_BYTES, RO_BYTES, PROT_READ))
        return false;
    for (uint64_t a = DATA_ADDR; a < DATA_ADDR + DATA_BYTES + RO_BYTES; a += 4096)
        (void)*(volatile uint8_t *)a; /* present, so that error codes say so */
    memset((void *)DATA_ADDR, 0, DATA_BYTES);
    fault_at = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (fault_at == MAP_FAILED)
        return false;
    ctx->exit = (uint64_t)(uintptr_t)native_exit;
    ctx->l = find_layout();
    sigaltstack(&st, NULL);
    for (unsigned n = 0; n < ARRAY_LEN(sigs); n++)
        sigaction(sigs[n], &sa, NULL);
    return true;
}

struct native_fault native_run(struct cpu_state *s, const uint8_t *code, unsigned len)
{
    static const uint8_t leave[] = {0xff, 0x24, 0x25, 0x98, 0x00, 0x00, 0x10}; /* jmp *ctx.exit */
    uint8_t *p = (uint8_t *)CODE_ADDR;

    memcpy(p, code, len);
    memcpy(p + len, leave, sizeof(leave));
    memcpy(ctx->gpr, s->gpr, sizeof(ctx->gpr));
    ctx->rflags = (s->rflags & FL_STATUS) | 0x202;
    ctx->entry = CODE_ADDR;
    ctx->mask = native_xcr0();
    transfer(s, ctx->in, true);
    memset(ctx->out + 512, 0, 64);
    fault_at->f = (struct native_fault){.vector = -1};
    fault_at->rip = CODE_ADDR + len;
    native_enter();
    memcpy(s->gpr, ctx->gpr, sizeof(ctx->gpr));
    s->rflags = (s->rflags & ~FL_STATUS) | (ctx->rflags & FL_STATUS);
    s->rip = fault_at->rip;
    transfer(s, ctx->out, false);
    return fault_at->f;
}
