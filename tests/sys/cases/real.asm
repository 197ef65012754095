; Real mode: interrupts, far transfers, limits, flags, the way to protected mode and back.
%include "sys.inc"
    CASE PASS
    cli
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov sp, STACK0
%macro RCHECK 3
    cmp %1, %3
    j%2 %%ok
    mov eax, $
    out RESULT, eax
    hlt
%%ok:
%endmacro
%macro VEC 2
    mov word [(%1) * 4], %2
    mov word [(%1) * 4 + 2], 0
%endmacro
    ; INT: FLAGS, CS, IP; IF and TF cleared
    VEC 0x21, h21
    sti
    stc
    int 0x21
r21:
    jnc f1                                    ; IRET restored CF
    pushf
    pop ax
    test ah, 2
    jz f1
    cli
    ; the table is wherever IDTR says
    mov word [0x9f00 + 0x21 * 4], h21b
    mov word [0x9f00 + 0x21 * 4 + 2], 0
    lidt [idt9]
    xor bx, bx
    int 0x21
    RCHECK bx, e, 0x21
    lidt [idt0]
    ; faults push no error code
    VEC X_GP, hgp
    VEC X_SS, hss
    VEC X_UD, hud
    VEC X_DE, hde
    VEC X_DB, hdb
    VEC X_BP, h21b
    VEC X_OF, h21b
    VEC X_BR, hbr
    xor bx, bx
    mov ax, [0xffff]                          ; straddles the limit: #GP
    RCHECK bx, e, X_GP
    mov bp, 0xffff
    mov ax, [bp]                              ; #SS
    RCHECK bx, e, X_SS
    mov al, [dword 0x10000]
    RCHECK bx, e, X_GP
    xor cx, cx
    div cx
    RCHECK bx, e, X_DE
    mov word [0x6100], 1
    mov word [0x6102], 2
    mov ax, 3
    bound ax, [0x6100]
    RCHECK bx, e, X_BR
    mov al, 0x7f
    inc al
    into
    RCHECK bx, e, 0x21
    xor bx, bx
    int3
    RCHECK bx, e, 0x21
    ; LOCK on a register form, MOV CS, protected-only instructions
    xor bx, bx
    db 0xf0, 0x89, 0xc0
    RCHECK bx, e, X_UD
    xor bx, bx
    db 0x0f, 0x00, 0xc0                       ; SLDT
    RCHECK bx, e, X_UD
    ; an IVT limit that leaves the vector out: #GP through the same table
    xor bx, bx
    lidt [idt14]
    int 0x20                                  ; beyond: #GP (13) is inside
    lidt [idt0]
    RCHECK bx, e, X_GP
    ; far jumps, calls, returns, and segment arithmetic
    call 0:.far
.ret:
    jmp .f2
.far:
    mov bp, sp
    RCHECK word [bp + 2], e, 0
    RCHECK word [bp], e, .ret
    retf
.f2:
    mov word [0x6100], .ind - 0x8000
    mov word [0x6102], 0x800
    push word 0x1111
    push word 0x2222
    call far [0x6100]
    RCHECK sp, e, STACK0
    jmp .f3
.ind:
    mov ax, cs
    RCHECK ax, e, 0x800
    retf 4
.f3:
    call dword 0:.far32
    jmp .f4
.far32:
    mov bp, sp
    RCHECK dword [bp + 4], e, 0
    o32 retf
.f4:
    jmp dword 0:.f5
.f5:
    RCHECK sp, e, STACK0
    ; IRET 32: AC and ID may change, VM and VIF may not
    push dword 0x001e0002 | 0x40000
    push dword 0
    push dword .f6
    o32 iret
.f6:
    pushfd
    pop eax
    and eax, 0x001f0000
    RCHECK eax, e, 0x00040000
    push dword 2
    popfd
    ; PUSHF, POPF: IOPL and NT are free
    push word 0x7002
    popf
    pushf
    pop ax
    RCHECK ax, e, 0x7002
    push word 2
    popf
    ; segments: base is selector * 16, SP wraps
    mov ax, 0x600
    mov es, ax
    mov byte [es:0x200], 0x77
    RCHECK byte [0x6200], e, 0x77
    mov ax, 0x9000
    mov ss, ax
    xor sp, sp
    push word 0x1234
    RCHECK sp, e, 0xfffe
    RCHECK word [ss:0xfffe], e, 0x1234
    mov sp, 1
    xor bx, bx
    mov [0x6110], sp
    mov cx, .s1
    xor ax, ax
    mov ss, ax
    mov sp, STACK0
.s1:
    ; MOV SS shadow, STI shadow
    VEC 0x28, h28
    mov al, 0x28
    out P_IRQ, al
    xor bx, bx
    sti
    inc bx
    inc bx
    cli
    RCHECK word [0x6120], e, 1                ; BX as the handler saw it
    ; single step
    mov word [0x6122], 0
    pushf
    pop ax
    or ah, 1
    push ax
    popf
    nop
    nop
    and ah, 0xfe
    push ax
    popf
    nop
    RCHECK word [0x6122], e, 5
    ; big real mode: a limit loaded in protected mode stays
    lgdt [gdtr]
    mov eax, cr0
    or al, 1
    mov cr0, eax
    mov bx, 8
    mov fs, bx
    and al, ~1
    mov cr0, eax
    mov eax, 0x180000
    mov dword [fs:eax], 0xcafebabe
    RCHECK dword [fs:eax], e, 0xcafebabe
    xor bx, bx
    mov fs, bx                                ; base only
    RCHECK dword [fs:eax], e, 0xcafebabe
    ; HLT and an interrupt
    VEC 0x29, h28
    mov word [0x6120], -1
    mov bx, 5
    mov al, 0x29
    out P_HALT, al
    sti
    hlt
    cli
    RCHECK word [0x6120], e, 5
    ; A20: no wrap at 1 MiB
    mov ax, 0xffff
    mov es, ax
    mov byte [es:0x10], 0x5a
    mov byte [0], 0xa5
    RCHECK byte [es:0x10], e, 0x5a
    xor eax, eax
    out RESULT, eax
    hlt
h21:
    mov bp, sp
    RCHECK word [bp], e, r21
    RCHECK word [bp + 2], e, 0
    test byte [bp + 5], 2
    jz f1
    pushf
    pop ax
    test ah, 2
    jnz f1
    iret
h21b: mov bx, 0x21
    iret
hgp: mov bx, X_GP
    jmp skip
hss: mov bx, X_SS
    jmp skip
hud: mov bx, X_UD
    jmp skip3
hde: mov bx, X_DE
    mov cx, 1
    mov ax, 1
    xor dx, dx
    iret
hbr: mov bx, X_BR
    mov ax, 1
    iret
; skip the faulting instruction: its length by its first byte
skip:
    push si
    push bp
    mov bp, sp
    mov si, [bp + 4]
    mov al, [si]
    cmp al, 0xa1                              ; MOV AX, moffs16
    je .3
    cmp al, 0x8b                              ; MOV AX, [BP+0]
    je .3
    cmp al, 0xcd
    je .2
    add word [bp + 4], 3                      ; 67 A0 moffs32 is six
.3: add word [bp + 4], 1
.2: add word [bp + 4], 2
    pop bp
    pop si
    iret
skip3:
    push bp
    mov bp, sp
    add word [bp + 2], 3
    pop bp
    iret
h28: mov [0x6120], bx
    iret
hdb: inc word [0x6122]
    iret
f1: mov eax, $
    out RESULT, eax
    hlt
idt0: dw 0x3ff
    dd 0
idt9: dw 0x3ff
    dd 0x9f00
idt14: dw 14 * 4 - 1
    dd 0
gdtr: dw 15
    dd gdt
    align 8
gdt: dq 0, 0x00cf93000000ffff
