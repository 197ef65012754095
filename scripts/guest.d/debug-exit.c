/*
 * Ends the guest: writes its argument, 0 to 255, to the debug-exit port. Has no C library, since it goes into
 * every initial RAM file system.
 */
enum { PORT = 0xf4, SYS_IOPERM = 173, SYS_EXIT = 60 };

static long syscall3(long nr, long a, long b, long c)
{
    long ret;

    __asm__ volatile("syscall"
                     : "=a"(ret)
                     : "a"(nr), "D"(a), "S"(b), "d"(c)
                     : "rcx", "r11", "memory");
    return ret;
}

static int parse(const char *text)
{
    unsigned n = 0;

    for (; *text >= '0' && *text <= '9'; text++)
        n = n * 10 + (unsigned)(*text - '0');
    return *text || n > 255 ? -1 : (int)n;
}

/* The stack at process entry: argc, argv[0], argv[1], ... */
__attribute__((used, noreturn)) static void start(long *stack)
{
    int status = stack[0] == 2 ? parse((const char *)stack[2]) : -1;

    if (status >= 0 && syscall3(SYS_IOPERM, PORT, 1, 1) == 0)
        __asm__ volatile("outb %b0, %w1" : : "a"(status), "Nd"((unsigned short)PORT));
    for (;;)
        syscall3(SYS_EXIT, 1, 0, 0);
}

__asm__(".globl _start\n"
        "_start: xor %ebp, %ebp\n"
        "mov %rsp, %rdi\n"
        "and $-16, %rsp\n"
        "call start\n");
