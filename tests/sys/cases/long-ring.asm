; Ring changes in 64-bit mode: IRETQ, interrupts from ring 3, far calls and returns, call gates, SWAPGS.
%include "sys.inc"
%include "long.inc"
    CASE PASS
    ENTER_LONG
    mov rax, cr4
    or eax, 1 << 16                           ; FSGSBASE
    mov cr4, rax
    ; an interrupt from ring 3 switches to RSP0 with SS null
    TO_USER user1
user1:
    FAULT X_UD, 0, ud2
    CHECKM qword, abs got_cs, C64U
    CHECKM qword, abs got_ss, D32U
    CHECKM qword, abs got_rsp, STACK3
    CHECKM qword, abs got_frame, STACK0 - 40
    FAULT X_GP, 0, hlt
    FAULT X_GP, 0, {mov rax, cr0}
    FAULT X_GP, 0, {mov cr3, rax}
    FAULT X_GP, 0, {mov rax, dr7}
    FAULT X_GP, 0, wrmsr
    FAULT X_GP, 0, rdmsr
    FAULT X_GP, 0, {lgdt [abs 0x6080]}
    FAULT X_GP, 0, {lldt ax}
    FAULT X_GP, 0, {invlpg [rax]}
    FAULT X_GP, 0, swapgs
    FAULT X_GP, 0, clts
    FAULT X_GP, 0, wbinvd
    FAULT X_GP, 0, {o64 sysret}
    FAULT X_UD, 0, clac
    FAULT X_GP, 0x20 * 8 + 2, int 0x20        ; gate DPL 0
    FAULT X_GP, 0x18 * 8 + 2, int 0x18
    TRAP X_BP, int3
    TRAP X_DB, int1                           ; no DPL check
    mov ax, D32
    FAULT X_GP, D32, mov ds, ax
    mov ax, D32U
    mov ds, ax
    mov ax, D32 | 3
    FAULT X_GP, D32, mov ss, ax
    xor eax, eax
    FAULT X_GP, 0, mov ss, ax
    ; IRET to the same ring works in ring 3 and cannot change IOPL or go inwards
    push D32U
    push STACK3
    push 0x0002                               ; IOPL 0 asked for
    push C64U
    push .same
    iretq
.same:
    pushfq
    pop rax
    and eax, 0x3000
    CHECK eax, e, 0x3000
    push D32
    push STACK3
    push 2
    push C64
    push .same
    FAULT X_GP, C64, iretq
    mov esp, STACK3
    push C64
    push .same
    FAULT X_GP, C64, {o64 retf}
    mov esp, STACK3
    ; FSGSBASE
    mov rax, 0x123456789ab
    wrfsbase rax
    rdfsbase rcx
    cmp rax, rcx
    jne bad
    mov rdx, 0x8000000000000000
    FAULT X_GP, 0, wrgsbase rdx
    TO_KERNEL
    mov rax, ss
    CHECK eax, e, 0                           ; null SS after the ring change
    mov ax, D32
    mov ss, ax
    ; SWAPGS
    mov ecx, 0xc0000102
    mov eax, 0x11111000
    mov edx, 0x7f
    wrmsr
    mov rax, 0x22222000
    wrgsbase rax
    swapgs
    rdgsbase rax
    mov rcx, 0x7f11111000
    cmp rax, rcx
    jne bad
    mov ecx, 0xc0000102
    rdmsr
    CHECK eax, e, 0x22222000
    ; MSRs with bad values
    mov ecx, 0xc0000101
    mov edx, 0x80000000
    FAULT X_GP, 0, wrmsr
    mov ecx, 0xc0000082
    FAULT X_GP, 0, wrmsr
    mov ecx, 0x12345
    FAULT X_GP, 0, rdmsr
    FAULT X_GP, 0, wrmsr
    mov ecx, 0xc0000080                       ; EFER: reserved bit, and LME under paging
    rdmsr
    or eax, 2
    FAULT X_GP, 0, wrmsr
    and eax, ~0x102
    FAULT X_GP, 0, wrmsr
    ; FS and GS bases survive a return to ring 3 while their selectors are null
    mov rax, 0x55000
    wrfsbase rax
    TO_USER user2
user2:
    rdfsbase rax
    CHECK rax, e, 0x55000
    TO_KERNEL
    ; but a segment of an inner ring is taken away
    mov ax, D32
    mov ds, ax
    mov es, ax
    mov fs, ax
    TO_USER user3
user3:
    mov eax, ds
    CHECK eax, e, 0
    mov eax, fs
    CHECK eax, e, 0
    TO_KERNEL
    mov ax, D32
    mov ss, ax
    mov ds, ax
    ; IRET errors at CPL 0
%macro IRETF 6                                ; vector, error, cs, rip, ss, flags
    mov esp, STACK0
    push %5
    push STACK3
    push %6
    push %3
    push %4
    FAULT %1, %2, iretq
    CHECK rsp, e, STACK0 - 40                 ; RSP unchanged
%endmacro
    IRETF X_GP, 0, 0, bad, D32U, 2
    IRETF X_GP, 0x3f8, 0x3f8, bad, D32U, 2
    IRETF X_GP, D32, D32, bad, D32U, 2
    IRETF X_GP, C64, C64 | 3, bad, D32U, 2    ; DPL != RPL
    IRETF X_GP, C64U & ~3, C64U & ~3, bad, D32U, 2
    IRETF X_GP, 0, C64U, bad, 0, 2            ; null SS for ring 3
    IRETF X_GP, D32, C64U, bad, D32, 2
    IRETF X_GP, C64U & ~3, C64U, bad, C64U, 2
    DESC GDT + FREE, 0, 0xfffff, 0xc073       ; SS not present
    IRETF X_SS, FREE, C64U, bad, FREE | 3, 2
    DESC GDT + FREE, 0, 0xfffff, 0xa07b       ; CS not present
    IRETF X_NP, FREE, FREE | 3, bad, D32U, 2
    DESC GDT + FREE, 0, 0xfffff, 0xe0fb       ; L and D
    IRETF X_GP, FREE, FREE | 3, bad, D32U, 2
    ; a target that is not canonical
    mov esp, STACK0
    push D32
    push STACK0
    push 2
    push C64
    mov rax, 0x800000000000
    push rax
    FAULT X_GP, 0, iretq
    mov esp, STACK0
    ; IRETQ to the same ring loads RSP and SS; null SS is fine
    push 0
    push STACK0 - 64
    push 2
    push C64
    push .same0
    iretq
.same0:
    CHECK rsp, e, STACK0 - 64
    mov eax, ss
    CHECK eax, e, 0
    mov ax, D32
    mov ss, ax
    mov esp, STACK0
    ; far calls: 64-bit same ring
    lea rax, [rel fartarget]
    mov [abs var], eax
    mov word [abs var + 4], C64
    call far dword [abs var]
    CHECK rsp, e, STACK0
    ; a 64-bit call gate, same ring and from ring 3
    mov rax, gatetarget
    mov rdi, GDT + FREE
    mov [rdi], ax
    mov word [rdi + 2], C64
    mov word [rdi + 4], 0xec00                ; DPL 3, type 12
    shr eax, 16
    mov [rdi + 6], ax
    mov qword [rdi + 8], 0
    mov word [abs var + 4], FREE
    call far dword [abs var]
    CHECK rsp, e, STACK0
    mov byte [rdi + 13], 4                    ; upper type not 0
    FAULT X_GP, FREE, {call far dword [abs var]}
    mov byte [rdi + 13], 0
    mov byte [rdi + 5], 0x6c
    FAULT X_NP, FREE, {call far dword [abs var]}
    mov byte [rdi + 5], 0xec
    mov word [rdi + 2], C32                   ; must be 64-bit code
    FAULT X_GP, C32, {call far dword [abs var]}
    mov word [rdi + 2], C64
    mov byte [rdi + 5], 0xe5                  ; task gates and the like do not exist
    FAULT X_GP, FREE, {call far dword [abs var]}
    mov byte [rdi + 5], 0xec
    TO_USER user4
user4:
    mov ebx, 0x1234
    call far dword [abs var]
    CHECK rsp, e, STACK3
    CHECK ebx, e, 0x4321
    mov byte [rdi + 5], 0x8c                  ; DPL 0
    FAULT X_GP, FREE, {call far dword [abs var]}
    mov byte [rdi + 5], 0xec
    ; JMP through the gate may not raise privilege
    FAULT X_GP, C64, {jmp far dword [abs var]}
    ; to compatibility mode and back
    mov dword [abs var + 8], compat
    mov dword [abs var + 12], C32U
    jmp far dword [abs var + 8]
    bits 32
compat:
    mov eax, cs
    CHECK eax, e, C32U
    inc eax                                   ; INC, not a REX prefix
    CHECK eax, e, C32U + 1
    jmp C64U:.back
    bits 64
.back:
    TO_KERNEL
    mov ax, D32
    mov ss, ax
    ; interrupts from compatibility mode use 64-bit frames
    push D32U
    push STACK3
    push 0x3002
    push C32U
    push compat2
    iretq
    bits 32
compat2:
    mov ax, D32U
    mov ds, ax
    mov dword [exp_resume], 1
    mov dword [exp_resume + 4], 0
    int3
    jmp C64U:.back
    bits 64
.back:
    CHECKM qword, abs got_cs, C32U
    CHECKM qword, abs got_rsp, STACK3
    TO_KERNEL
    DONE
fartarget:
    CHECK rsp, e, STACK0 - 8                  ; two dwords
    retf
gatetarget:
    mov eax, cs
    CHECK eax, e, C64
    cmp ebx, 0x1234
    jne .out
    mov ebx, 0x4321
    mov eax, ss
    CHECK eax, e, 0
    CHECK rsp, e, STACK0 - 32
.out:
    o64 retf
bad: FAIL
