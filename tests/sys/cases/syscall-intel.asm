; SYSCALL, SYSRET, SYSENTER, SYSEXIT by Intel's rules.
%include "sys.inc"
%include "long.inc"
%include "syscall-common.inc"
    CASE PASS, INTEL
    ENTER_LONG
    SYSCALL_SETUP
    mov ax, D32U
    mov ds, ax
    ; SYSENTER MSRs: CS = C64 for 64-bit mode; then SS = +8, user C32 +16, D +24, C64 +32, D +40
    mov ecx, 0x174
    mov eax, C64
    xor edx, edx
    wrmsr
    mov ecx, 0x175
    mov eax, STACK0 - 0x40
    wrmsr
    mov ecx, 0x176
    mov eax, sysenter_target
    wrmsr
    push qword 0x3a07                         ; IOPL 3, IF, PF, CF ... for R11
    popfq
    cli
    mov ecx, user
    mov r11d, 0x13247                         ; RF is not restored
    o64 sysret
user:
    mov eax, cs
    CHECK eax, e, (FREE + 16) | 3
    mov eax, ss
    CHECK eax, e, (FREE + 8) | 3
    CHECK rcx, e, user
    mov esp, STACK3
    std
    stc
    mov r12d, 1
    syscall
after:
    mov eax, cs
    CHECK eax, e, (FREE + 16) | 3
    pushfq
    pop rax
    test eax, 0x400
    jz bad1                                    ; DF came back
    cld
    ; to 32-bit code: SYSCALL is #UD there
    mov r12d, 2
    std
    stc
    syscall
    bits 32
after32:
    mov eax, cs
    CHECK eax, e, FREE | 3
    mov dword [exp_resume], .r
    mov dword [exp_resume + 4], 0
.i: syscall
    FAIL
.r: CHECKM dword, got_vec, X_UD
    CHECKM dword, got_rip, .i
    ; SYSENTER from compatibility mode goes to 64-bit code
    mov esp, 0x3000
    mov ecx, STACK3
    mov edx, after_enter
    pushf
    or dword [esp], 0x200
    popf
    sysenter
after_enter:
    mov eax, cs
    CHECK eax, e, (C64 + 16) | 3
    mov eax, ss
    CHECK eax, e, (C64 + 24) | 3
    CHECK esp, e, STACK3
    ; the descriptors of those selectors are not looked at: go back by INT
    mov eax, .k
    mov [IDT + 0x30 * 16], ax
    int 0x30
    bits 64
.k: mov esp, STACK0
    xor eax, eax
    mov ss, ax
    mov ax, D32
    mov ss, ax
    ; SYSEXIT with bad targets
    mov rdx, 0x8000000000000000
    xor ecx, ecx
    FAULT X_GP, 0, {o64 sysexit}
    xchg rcx, rdx
    FAULT X_GP, 0, {o64 sysexit}
    ; SYSRET to a non-canonical address faults in ring 0 on Intel
    FAULT X_GP, 0, {o64 sysret}
    CHECKM qword, abs got_cs, C64
    ; SCE off
    mov ecx, 0xc0000080
    rdmsr
    and eax, ~1
    wrmsr
    FAULT X_UD, 0, syscall
    FAULT X_UD, 0, {o64 sysret}
    ; SYSENTER with a null CS
    mov ecx, 0x174
    xor eax, eax
    xor edx, edx
    wrmsr
    FAULT X_GP, 0, sysenter
    FAULT X_GP, 0, sysexit
    DONE
entry:
    pushfq
    pop rbp
    mov rbx, cs
    CHECK ebx, e, C64
    mov ebx, ss
    CHECK ebx, e, C64 + 8
    CHECK rsp, e, STACK3                      ; not switched
    test ebp, 0x600
    jnz bad2
    test ebp, 1
    jz bad3
    test r11d, 0x400
    jz bad4
    cmp r12d, 2
    je .go32
    CHECK rcx, e, after
    o64 sysret
.go32:
    o32 sysret
centry:
    FAIL
sysenter_target:
    CHECK rsp, e, STACK0 - 0x40
    mov eax, cs
    CHECK eax, e, C64
    mov eax, ss
    CHECK eax, e, C64 + 8
    pushfq
    pop rax
    test eax, 0x200
    jnz bad5
    o32 sysexit
bad1: FAIL
bad2: FAIL
bad3: FAIL
bad4: FAIL
bad5: FAIL
