; Interrupt, trap and call gates and far returns in protected mode, 16- and 32-bit, with stack switches.
%include "sys.inc"
%include "prot.inc"
    CASE PASS
    ENTER_PROT
S1 equ FREE
S2 equ FREE + 8
S3 equ FREE + 16
S4 equ FREE + 24
    ; same-ring interrupt: three dwords
    FAULT X_UD, 0, ud2
    CHECKM dword, got_frame, STACK0 - 12
    CHECKM dword, got_cs, C32
    test dword [got_flags], 0x10000
    jz bad1
    TRAP X_BP, int3
    FAULT X_GP, 0x40 * 8 + 2, int 0x40        ; beyond the limit
    mov byte [IDT + 0x28 * 8 + 5], 0x0e
    FAULT X_NP, 0x28 * 8 + 2, int 0x28
    mov byte [IDT + 0x28 * 8 + 5], 0x8c       ; a call gate is no interrupt gate
    FAULT X_GP, 0x28 * 8 + 2, int 0x28
    mov byte [IDT + 0x28 * 8 + 5], 0x8e
    mov word [IDT + 0x28 * 8 + 2], D32
    FAULT X_GP, D32, int 0x28
    mov word [IDT + 0x28 * 8 + 2], 0
    FAULT X_GP, 0, int 0x28
    mov word [IDT + 0x28 * 8 + 2], GDT_LIMIT + 1
    FAULT X_GP, GDT_LIMIT + 1, int 0x28
    DESC GDT + S1, 0, 0xfffff, 0xc01b
    mov word [IDT + 0x28 * 8 + 2], S1
    FAULT X_NP, S1, int 0x28
    ; EXT in faults of a hardware event's delivery
    mov word [IDT + X_UD * 8 + 2], S1
    mov dword [exp_resume], .ext
    ud2
    FAIL
.ext:
    CHECKM dword, got_vec, X_NP
    CHECKM dword, got_err, S1 | 1
    mov word [IDT + X_UD * 8 + 2], C32
    ; 16-bit trap gate: three words, IF stays
    mov eax, gate16
    mov [IDT + 0x29 * 8], ax
    mov word [IDT + 0x29 * 8 + 4], 0x8700
    mov word [IDT + 0x29 * 8 + 6], 0xdead     ; ignored
    sti
    int 0x29
after16:
    pushf
    pop eax
    test ah, 2
    jz bad1
    cli
    ; INTO
    mov al, 0x7f
    add al, 1
    TRAP X_OF, into
    xor eax, eax
    NOFAULT into
    ; BOUND
    mov dword [var], 1
    mov dword [var + 4], 5
    mov eax, 5
    NOFAULT {bound eax, [var]}
    inc eax
    FAULT X_BR, 0, {bound eax, [var]}
    ; ring 3 to ring 0: five dwords on the TSS's stack
    TO_USER user1
user1:
    FAULT X_UD, 0, ud2
    CHECKM dword, got_frame, STACK0 - 20
    CHECKM dword, got_rsp, STACK3
    CHECKM dword, got_ss, D32U
    FAULT X_GP, 0x20 * 8 + 2, int 0x20
    ; bad inner stacks: #TS with the selector, #SS if not present; the fault itself needs a good one, so a ring-1
    ; handler is used
    DESC GDT + S1, 0, 0xfffff, 0xc0bb         ; code, DPL 1
    mov word [IDT + 0x28 * 8 + 2], S1
    mov byte [IDT + 0x28 * 8 + 5], 0xee
    mov dword [TSS + 12], 0x6800              ; ESP1
    mov word [TSS + 16], 0
    FAULT X_TS, 0, int 0x28
    mov word [TSS + 16], D32 | 1
    FAULT X_TS, D32, int 0x28                 ; DPL 0
    mov word [TSS + 16], GDT_LIMIT + 1 + 1
    FAULT X_TS, GDT_LIMIT + 1, int 0x28
    DESC GDT + S2, 0, 0xfffff, 0xc0b1         ; not writable
    mov word [TSS + 16], S2 | 1
    FAULT X_TS, S2, int 0x28
    DESC GDT + S2, 0, 0xfffff, 0xc033         ; not present
    FAULT X_SS, S2, int 0x28
    DESC GDT + S2, 0, 0x00010, 0x40b3         ; too small
    FAULT X_SS, S2, int 0x28
    mov dword [TSS + 12], 0x11                ; one push fits, five do not
    FAULT X_SS, S2, int 0x28
    DESC GDT + S2, 0, 0xfffff, 0xc0b3
    mov dword [TSS + 12], 0x6800
    mov eax, ring1
    mov [IDT + 0x28 * 8], ax
    int 0x28
    mov eax, cs
    CHECK eax, e, C32U
    TO_KERNEL
    ; ---- call gates ----
    ; 32-bit, DPL 3, to ring 0, 3 parameters
    mov eax, cg32
    mov [GDT + S3], ax
    mov word [GDT + S3 + 2], C32
    mov word [GDT + S3 + 4], 0xec03
    mov word [GDT + S3 + 6], 0
    ; 16-bit, 2 parameters
    mov eax, cg16
    mov [GDT + S4], ax
    mov word [GDT + S4 + 2], C32
    mov word [GDT + S4 + 4], 0xe402
    mov word [GDT + S4 + 6], 0xdead
    ; the same ring: no copy
    mov eax, cgsame
    mov [GDT + S3], ax
    call S3:0xdeadbeef
    CHECK esp, e, STACK0
    mov eax, cg32
    mov [GDT + S3], ax
    TO_USER user2
user2:
    push 0x111
    push 0x222
    push 0x333
    call S3:0
    CHECK esp, e, STACK3                      ; RET 12 releases on both stacks
    mov eax, ss
    CHECK eax, e, D32U
    mov eax, ds
    CHECK eax, e, D32U
    o16 push word 0x444
    o16 push word 0x555
    call S4:0
    CHECK esp, e, STACK3 - 4
    add esp, 4
    ; errors
    FAULT X_GP, C32, {jmp S3:0}               ; a jump may not go inwards
    mov byte [GDT + S3 + 5], 0x6c
    FAULT X_NP, S3, {call S3:0}
    mov byte [GDT + S3 + 5], 0xcc             ; DPL 2
    FAULT X_GP, S3, {call S3:0}
    mov byte [GDT + S3 + 5], 0xec
    mov word [GDT + S3 + 2], 0
    FAULT X_GP, 0, {call S3:0}
    mov word [GDT + S3 + 2], D32
    FAULT X_GP, D32, {call S3:0}
    mov word [GDT + S3 + 2], C32
    mov word [GDT + S3 + 2], S1               ; ring 1, so that ring 0's stack stays good for the fault
    mov word [TSS + 16], 0
    FAULT X_TS, 0, {call S3:0}
    mov word [TSS + 16], S2 | 1
    DESC GDT + S2, 0, 0x00010, 0x40b3
    FAULT X_SS, S2, {call S3:0}
    CHECK esp, e, STACK3
    TO_KERNEL
    ; ---- far returns ----
    push dword 0
    push dword bad1
    FAULT X_GP, 0, retf
    mov esp, STACK0
    push dword D32
    push dword bad1
    FAULT X_GP, D32, retf
    mov esp, STACK0
    push dword C32 | 3                        ; DPL != RPL
    push dword bad1
    FAULT X_GP, C32, retf
    mov esp, STACK0
    push dword D32                            ; SS of ring 0 for ring 3
    push dword STACK3
    push dword C32U
    push dword bad1
    FAULT X_GP, D32, retf
    CHECK esp, e, STACK0 - 16
    mov esp, STACK0
    push dword 0
    push dword STACK3
    push dword C32U
    push dword bad1
    FAULT X_GP, 0, retf
    mov esp, STACK0
    ; RET n within the ring
    push dword 1
    push dword 2
    push dword C32
    push dword .r
    retf 8
.r: CHECK esp, e, STACK0
    ; a 16-bit return to a 16-bit segment and back
    jmp C16:.c16
    bits 16
.c16:
    o32 push dword C32
    o32 push dword .c32
    o32 retf
    bits 32
.c32:
    DONE
gate16:
    CHECK esp, e, STACK0 - 6
    CHECKM word, STACK0 - 6, after16
    CHECKM word, STACK0 - 4, C32
    o16 iret
ring1:
    mov eax, cs
    CHECK eax, e, S1 | 1
    mov eax, ss
    CHECK eax, e, S2 | 1
    CHECK esp, e, 0x6800 - 20
    mov eax, D32U
    mov ds, ax
    FAULT X_GP, 0, hlt
    iretd
cgsame:
    CHECK esp, e, STACK0 - 8
    CHECKM dword, esp + 4, C32
    retf
cg32:
    CHECK esp, e, STACK0 - 28
    CHECKM dword, esp + 8, 0x333
    CHECKM dword, esp + 12, 0x222
    CHECKM dword, esp + 16, 0x111
    CHECKM dword, esp + 20, STACK3 - 12
    CHECKM dword, esp + 24, D32U
    CHECKM dword, esp + 4, C32U
    mov eax, cs
    CHECK eax, e, C32
    retf 12
cg16:
    CHECK esp, e, STACK0 - 12
    CHECKM word, esp + 4, 0x555
    CHECKM word, esp + 6, 0x444
    CHECKM word, esp + 2, C32U
    ; the 16-bit frame has only half of ESP and EIP: fix them for the way back
    mov eax, [esp + 8]
    and eax, 0xffff
    CHECK eax, e, (STACK3 - 4) & 0xffff
    movzx ebx, word [esp]
    push D32U
    push STACK3 - 4
    push C32U
    push ebx
    retf
bad1: FAIL
