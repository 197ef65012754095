; Segmentation in 32-bit code: limits, types, expand-down, null, not present, privilege.
%include "sys.inc"
%include "prot.inc"
    CASE PASS
    ENTER_PROT
S1 equ FREE
S2 equ FREE + 8
S3 equ FREE + 16
    ; byte limits, edges and straddling
    DESC GDT + S1, 0x180000, 0x00fff, 0x4093
    mov eax, S1
    mov es, ax
    mov dword [es:0], 0x11223344
    mov al, [es:0xfff]
    FAULT X_GP, 0, {mov al, [es:0x1000]}
    FAULT X_GP, 0, {mov eax, [es:0xffd]}
    mov eax, [es:0xffc]
    FAULT X_GP, 0, {mov [es:0xfff], ax}
    FAULT X_GP, 0, {mov al, [es:0xffffffff]}
    FAULT X_GP, 0, {mov eax, [es:0xffffffff]}
    CHECKM dword, 0x180000, 0x11223344
    CHECKM byte, GDT + S1 + 5, 0x93
    ; page granularity
    DESC GDT + S1, 0x180000, 1, 0xc093
    mov eax, S1
    mov es, ax
    mov al, [es:0x1fff]
    FAULT X_GP, 0, {mov al, [es:0x2000]}
    ; expand-down: offsets above the limit only
    DESC GDT + S1, 0x180000, 0x00fff, 0x4097
    mov eax, S1
    mov es, ax
    FAULT X_GP, 0, {mov al, [es:0xfff]}
    mov al, [es:0x1000]
    FAULT X_GP, 0, {mov eax, [es:0xffe]}
    mov al, [es:0x20000]
    DESC GDT + S1, 0x180000, 0x00fff, 0x0097  ; B = 0: up to 64 KiB
    mov eax, S1
    mov es, ax
    mov al, [es:0xffff]
    FAULT X_GP, 0, {mov al, [es:0x10000]}
    FAULT X_GP, 0, {mov ax, [es:0xffff]}
    ; types
    DESC GDT + S1, 0, 0xfffff, 0xc091         ; read-only
    mov eax, S1
    mov es, ax
    mov al, [es:0x6000]
    FAULT X_GP, 0, {mov [es:0x6000], al}
    FAULT X_GP, 0, {lock inc dword [es:0x6000]}
    mov eax, S1
    FAULT X_GP, S1, mov ss, ax
    DESC GDT + S2, 0, 0xfffff, 0xc099         ; execute-only
    mov eax, S2
    FAULT X_GP, S2, mov es, ax
    FAULT X_GP, 0, {mov [cs:0x6000], al}      ; code is never writable
    mov al, [cs:0x6000]
    ; accessed bit is set by the load
    DESC GDT + S3, 0, 0xfffff, 0xc092
    mov eax, S3
    mov es, ax
    CHECKM byte, GDT + S3 + 5, 0x93
    ; null: loads, then faults on use
    xor eax, eax
    mov es, ax
    FAULT X_GP, 0, {mov al, [es:0]}
    mov eax, 3
    mov es, ax
    FAULT X_GP, 0, {mov [es:0], al}
    FAULT X_GP, 0, mov ss, ax
    ; not present
    DESC GDT + S3, 0, 0xfffff, 0xc013
    mov eax, S3
    FAULT X_NP, S3, mov es, ax
    FAULT X_NP, S3, mov gs, ax
    FAULT X_SS, S3, mov ss, ax
    ; outside, system descriptor, LDT without LDTR
    mov eax, GDT_LIMIT + 1
    FAULT X_GP, GDT_LIMIT + 1, mov es, ax
    mov eax, TR
    FAULT X_GP, TR, mov es, ax
    mov eax, 0xc
    FAULT X_GP, 0xc, mov es, ax
    ; SS: RPL and DPL must be CPL
    mov eax, D32 | 3
    FAULT X_GP, D32, mov ss, ax
    mov eax, D32U
    FAULT X_GP, D32U & ~3, mov ss, ax
    mov eax, C32
    FAULT X_GP, C32, mov ss, ax
    ; LDT
    DESC GDT + S3, LDT, 0x17, 0x0082
    mov eax, S3
    lldt ax
    DESC LDT + 0x10, 0x180000, 0xfff, 0x4093
    mov eax, 0x14
    mov es, ax
    mov al, [es:0xfff]
    FAULT X_GP, 0, {mov al, [es:0x1000]}
    mov eax, 0x1c
    FAULT X_GP, 0x1c, mov es, ax
    ; stack limit: #SS(0)
    DESC GDT + S1, 0x180000, 0x0fff, 0x4093
    mov eax, S1
    mov [var], esp
    mov ss, ax
    mov esp, 0x1000
    push eax
    FAULT X_SS, 0, {mov al, [ss:0x1000]}
    mov ebp, 0xffe
    FAULT X_SS, 0, {mov eax, [ebp]}
    pop eax
    FAULT X_SS, 0, {pop ecx}                  ; the frame fits, the POP does not
    CHECK esp, e, 0x1000
    mov eax, D32
    mov ss, ax
    mov esp, [var]
    ; a 16-bit stack wraps at 64 KiB and keeps the upper half of ESP
    mov eax, D16
    mov ss, ax
    mov esp, 0x12347000
    push eax
    CHECK esp, e, 0x12346ffc
    pop eax
    CHECK esp, e, 0x12347000
    mov eax, D32
    mov ss, ax
    mov esp, STACK0
    ; far pointers
    mov dword [var], 0x12345678
    mov word [var + 4], D16
    les ecx, [var]
    CHECK ecx, e, 0x12345678
    mov eax, es
    CHECK eax, e, D16
    mov word [var + 4], GDT_LIMIT + 1
    mov ecx, 7
    FAULT X_GP, GDT_LIMIT + 1, {lfs ecx, [var]}
    CHECK ecx, e, 7
    lss esp, [good_stack]
    ; PUSH and POP of segment registers
    push ds
    CHECK esp, e, STACK0 - 4
    pop es
    mov eax, es
    CHECK eax, e, D32
    push 0
    pop gs
    push dword D32 | 3
    FAULT X_GP, D32, pop ss
    CHECK esp, e, STACK0 - 4
    pop eax
    o16 push ds
    CHECK esp, e, STACK0 - 2
    o16 pop ds
    ; ring 3
    TO_USER user
good_stack: dd STACK0
    dw D32
user:
    mov eax, D32
    FAULT X_GP, D32, mov es, ax
    mov eax, D32 | 3
    FAULT X_GP, D32, mov es, ax
    DESC GDT + S1, 0, 0xfffff, 0xc09f         ; conforming code of ring 0: readable from anywhere
    mov eax, S1 | 3
    mov es, ax
    mov al, [es:0x6000]
    FAULT X_GP, 0, {mov [es:0x6000], al}
    DESC GDT + S2, 0, 0xfffff, 0xc09b
    mov eax, S2 | 3
    FAULT X_GP, S2, mov es, ax
    ; jumps: conforming code keeps CPL, ring-0 code is out of reach
    jmp S1:.conf
.conf:
    mov eax, cs
    CHECK eax, e, S1 | 3
    FAULT X_GP, 0, hlt
    FAULT X_GP, C32, {jmp C32:.conf}
    FAULT X_GP, C32, {call C32 | 3:.conf}
    FAULT X_GP, D32, {jmp D32:.conf}
    FAULT X_GP, 0, {jmp 0:.conf}
    mov byte [GDT + S2 + 5], 0x7b
    FAULT X_NP, S2, {jmp S2 | 3:.conf}
    jmp C32U:.done
.done:
    TO_KERNEL
    ; offset beyond the limit
    DESC GDT + S2, 0, 0x0ffff, 0x409b
    FAULT X_GP, 0, {jmp S2:0x10000}
    ; running off the limit: the fault is the instruction's that does not fit
    mov ecx, lim - 1
    mov word [GDT + S2], cx
    mov dword [exp_resume], off
    jmp S2:beyond
off:
    CHECKM dword, got_vec, X_GP
    CHECKM dword, got_err, 0
    CHECKM dword, got_rip, lim - 1
    DONE
beyond:
    nop
    nop
    db 0x89                                   ; MOV EAX, EAX straddles the limit
lim: db 0xc0
    FAIL
