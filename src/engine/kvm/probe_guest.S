/*
 * The guest of the probe (probe.h). It starts in long mode at CPL 0 with interrupts off, paging on and nothing but CS
 * loaded that matters; RBP is PG_HIGH throughout. Before each step it notes the step's number, so that the host can tell
 * where it got stuck, and it complains if anything is not as the manuals say (Intel SDM vol. 3, AMD APM vol. 2).
 */
#include "engine/kvm/probe_guest.h"

        .set MSR_EFER, 0xc0000080
        .set MSR_STAR, 0xc0000081
        .set MSR_LSTAR, 0xc0000082
        .set MSR_FMASK, 0xc0000084
        .set MSR_GS_BASE, 0xc0000101
        .set MSR_KERNEL_GS_BASE, 0xc0000102
        .set IF, 9

        .text
        .code64
        .globl pg_code, pg_code_end, pg_fault, pg_irq, pg_unexpected, pg_compute
        .balign 16

        /* The steps are numbered as in enum pg_step. */
        .set step_number, 0
        .macro step
        .set step_number, step_number + 1
        movl    $step_number, PG_STEP(%rbp)
        .endm

        .macro wrmsr_to msr, high=0
        mov     $\msr, %ecx
        mov     $\high, %edx
        wrmsr
        .endm

        /* What EAX holds the host gives back inverted. */
        .macro echoes write, read
        step
        mov     $PG_ROUNDS, %r12d
1:      mov     %r12d, %eax
        \write
        \read
        not     %eax
        cmp     %r12d, %eax
        jne     fail
        dec     %r12d
        jnz     1b
        .endm

pg_code:
        mov     $PG_HIGH, %rbp
        lea     PG_STACK_TOP(%rbp), %rsp
        movl    $0, PG_STEP(%rbp)
        lgdt    PG_GDTR(%rbp)
        lidt    PG_IDTR(%rbp)
        mov     $PG_SEL_DATA, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        mov     $PG_SEL_TSS, %eax
        ltr     %ax
        push    $PG_SEL_CODE
        lea     1f(%rip), %rax
        push    %rax
        lretq
1:
        /* A back end that runs the guest's kernel at another privilege level shows it. */
        step
        mov     %cs, %eax
        cmp     $PG_SEL_CODE, %ax
        jne     fail
        mov     %ss, %eax
        cmp     $PG_SEL_DATA, %ax
        jne     fail

        /* The interrupt flag is what CLI, STI and POPF make it. */
        step
        cli
        pushf
        pop     %rax
        bt      $IF, %rax
        jc      fail
        sti
        pushf
        pop     %rax
        bt      $IF, %rax
        jnc     fail
        push    $2
        popf
        pushf
        pop     %rax
        cmp     $2, %rax
        jne     fail

        /* Descriptor tables and CR0 are the guest's own. */
        step
        sidt    PG_SCRATCH(%rbp)
        mov     PG_SCRATCH + 2(%rbp), %rax
        cmp     PG_IDTR + 2(%rbp), %rax
        jne     fail
        sgdt    PG_SCRATCH(%rbp)
        mov     PG_SCRATCH + 2(%rbp), %rax
        cmp     PG_GDTR + 2(%rbp), %rax
        jne     fail
        str     %eax
        cmp     $PG_SEL_TSS, %ax
        jne     fail
        mov     %cr0, %rcx
        smsw    %rax
        cmp     %cx, %ax
        jne     fail

        /* Pages come into being as they are touched: R12 pages are mapped, the handler takes R13 for the address and R14 for
         * the error code that are to come, and R15 for what the entry gets. */
        step
        xor     %r12d, %r12d
        mov     $PG_FAULT_BASE, %r13
1:      mov     $2, %r14d
        /* Not in the order of the addresses; the entry's frame is R12 * 7 % PG_FAULT_PAGES. */
        imul    $7, %r12d, %r15d
        and     $PG_FAULT_PAGES - 1, %r15d
        shl     $12, %r15d
        lea     PG_POOL + 3(%r15), %r15d
        mov     %r12, (%r13)
        test    %r14d, %r14d
        jns     fail                    /* no fault came */
        /* The entry has been accessed and is dirty, and the frame holds what was written. */
        mov     PG_PT_FAULT(%rbp, %r12, 8), %rax
        and     $0x60, %eax
        cmp     $0x60, %eax
        jne     fail
        and     $~0xfff, %r15d
        cmp     %r12, (%rbp, %r15)
        jne     fail
        test    $15, %r12d
        jnz     2f
        mov     %cr3, %rax
        mov     %rax, %cr3
2:      add     $0x1000, %r13
        inc     %r12d
        cmp     $PG_FAULT_PAGES, %r12d
        jb      1b

        /* The same pages are made read-only and written to, then taken away and read. */
        step
        xor     %r12d, %r12d
        mov     $PG_FAULT_BASE, %r13
1:      mov     PG_PT_FAULT(%rbp, %r12, 8), %r15
        mov     %r15, %rax
        and     $~2, %rax
        mov     %rax, PG_PT_FAULT(%rbp, %r12, 8)
        invlpg  (%r13)
        mov     $3, %r14d
        incq    (%r13)
        test    %r14d, %r14d
        jns     fail
        movq    $0, PG_PT_FAULT(%rbp, %r12, 8)
        invlpg  (%r13)
        xor     %r14d, %r14d
        mov     (%r13), %rax
        test    %r14d, %r14d
        jns     fail
        dec     %rax
        cmp     %r12, %rax
        jne     fail
        add     $0x1000, %r13
        inc     %r12d
        cmp     $PG_FAULT_PAGES, %r12d
        jb      1b

        /* To CPL 3 by SYSRET and back by SYSCALL, each side with a GS base of its own. */
        step
        mov     $MSR_EFER, %ecx
        rdmsr
        bts     $0, %eax
        wrmsr
        xor     %eax, %eax
        wrmsr_to MSR_STAR, PG_SEL_USER << 16 | PG_SEL_CODE
        lea     entry(%rip), %rax
        wrmsr_to MSR_LSTAR, -1
        mov     $1 << IF, %eax
        wrmsr_to MSR_FMASK
        mov     $PG_HIGH & 0xffffffff, %eax
        wrmsr_to MSR_GS_BASE, -1
        xor     %eax, %eax
        wrmsr_to MSR_KERNEL_GS_BASE
        mov     $PG_ROUNDS, %r12d
to_user:
        swapgs
        /* User mode has the identity mapping. */
        lea     user(%rip), %rcx
        sub     %rbp, %rcx
        mov     $2, %r11d
        mov     %rsp, %rbx
        mov     $PG_USER_STACK_TOP, %esp
        sysretq
user:
        mov     %cs, %r8d
        push    %r8
        pop     %rdi
        mov     %gs:PG_STEP, %r9d
        syscall
entry:
        swapgs
        mov     %gs:PG_STEP, %eax
        mov     %rbx, %rsp
        cmp     $step_number, %eax
        jne     fail
        cmp     %eax, %r9d
        jne     fail
        cmp     $PG_SEL_USER + 16 + 3, %edi
        jne     fail
        mov     %cs, %eax
        cmp     $PG_SEL_CODE, %ax
        jne     fail
        dec     %r12d
        jnz     to_user

        mov     $PG_PORT_ECHO, %edx
        echoes  "out %eax, %dx", "in %dx, %eax"
        mov     $PG_MMIO, %rbx
        echoes  "mov %eax, (%rbx)", "mov (%rbx), %eax"

        /* HLT ends with an interrupt. */
        step
        mov     $1, %r12d
1:      sti
        hlt
        cli
        cmp     %r12, PG_IRQS(%rbp)
        jne     fail
        inc     %r12d
        cmp     $PG_ROUNDS, %r12d
        jbe     1b

        /* Interrupts wait until they are allowed. */
        step
        mov     $PG_PORT_IRQ, %edx
1:      out     %al, %dx
        mov     $1000, %ecx
2:      pause
        dec     %ecx
        jnz     2b
        lea     -1(%r12), %rax
        cmp     %rax, PG_IRQS(%rbp)
        jne     fail
        sti
        mov     $1000000, %ecx
3:      cmp     %r12, PG_IRQS(%rbp)
        je      4f
        pause
        dec     %ecx
        jnz     3b
4:      cli
        cmp     %r12, PG_IRQS(%rbp)
        jne     fail
        inc     %r12d
        cmp     $PG_ROUNDS * 2, %r12d
        jbe     1b

        /* A back end that emulates each instruction of a kernel takes its time for this; the host looks at the clock. */
        step
        mov     $PG_PORT_COMPUTE, %edx
        out     %al, %dx
        lea     PG_POOL(%rbp), %rdi
        call    pg_compute

        mov     $PG_PORT_DONE, %edx
        out     %al, %dx
1:      hlt
        jmp     1b

fail:
        mov     %rax, PG_DETAIL(%rbp)
        mov     $PG_PORT_FAIL, %edx
        xor     %eax, %eax
        out     %al, %dx
1:      hlt
        jmp     1b

        /* void pg_compute(uint64_t *scratch), which the host can call, too. */
pg_compute:
        mov     $PG_LOOPS, %ecx
        xor     %eax, %eax
1:      add     %rcx, %rax
        mov     %rax, (%rdi)
        rol     $5, %rax
        xor     (%rdi), %rax
        dec     %ecx
        jnz     1b
        ret

pg_fault:
        push    %rax
        mov     %cr2, %rax
        cmp     %rax, %r13
        jne     fail
        mov     8(%rsp), %rax           /* the error code */
        cmp     %eax, %r14d
        jne     fail
        mov     %r15, PG_PT_FAULT(%rbp, %r12, 8)
        mov     $-1, %r14d
        pop     %rax
        add     $8, %rsp
        iretq

pg_irq:
        incq    PG_IRQS(%rbp)
        iretq

pg_unexpected:
        mov     (%rsp), %rax
        jmp     fail
pg_code_end:

        .section .note.GNU-stack, "", @progbits
