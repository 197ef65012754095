; SYSCALL, SYSRET, SYSENTER, SYSEXIT by AMD's rules.
%include "sys.inc"
%include "long.inc"
%include "syscall-common.inc"
    CASE PASS, AMD
    ENTER_LONG
    SYSCALL_SETUP
    mov ax, D32U
    mov ds, ax
    ; SYSENTER does not exist in long mode
    FAULT X_UD, 0, sysenter
    FAULT X_UD, 0, sysexit
    mov ecx, user32
    mov r11d, 0x3002
    o32 sysret
    bits 32
user32:
    mov eax, cs
    CHECK eax, e, FREE | 3
    mov esp, STACK3
    ; SYSCALL from compatibility mode enters through CSTAR
    syscall
after32:
    mov eax, cs
    CHECK eax, e, FREE | 3
    mov dword [exp_resume], .r
    mov dword [exp_resume + 4], 0
.i: sysenter
    jmp bad
.r: CHECKM dword, got_vec, X_UD
    mov eax, .k
    mov [IDT + 0x30 * 16], ax
    int 0x30
    bits 64
.k: mov esp, STACK0
    mov ax, D32
    mov ss, ax
    ; SYSRET takes any RIP: the fault is the fetch's, in ring 3
    mov rcx, 0x800000000000
    mov r11d, 0x3002
    mov qword [abs exp_resume], user64
    o64 sysret
user64:
    CHECKM dword, abs got_vec, X_GP
    CHECKM qword, abs got_cs, (FREE + 16) | 3
    TO_KERNEL
    DONE
entry:
    jmp bad
centry:
    mov eax, cs
    CHECK eax, e, C64
    CHECK rcx, e, after32
    o32 sysret
bad: FAIL
