; LAR, LSL, VERR, VERW, ARPL.
%include "sys.inc"
%include "prot.inc"
    CASE PASS
    ENTER_PROT
S equ FREE
%macro LAR 2                                  ; selector, result or -1 for ZF = 0
    mov ebx, %1
    mov eax, 0x5a5a5a5a
    lar eax, ebx
%if %2 == -1
    jz %%bad
    CHECK eax, e, 0x5a5a5a5a
%else
    jnz %%bad
    CHECK eax, e, %2
%endif
    jmp %%ok
%%bad: FAIL
%%ok:
%endmacro
%macro LSL 2
    mov ebx, %1
    mov eax, 0x5a5a5a5a
    lsl eax, ebx
%if %2 == -1
    jz %%bad
    CHECK eax, e, 0x5a5a5a5a
%else
    jnz %%bad
    CHECK eax, e, %2
%endif
    jmp %%ok
%%bad: FAIL
%%ok:
%endmacro
%macro VER 3                                  ; r or w, selector, expected ZF
    mov eax, %2
    ver%1 ax
    setz al
    cmp al, %3
    je %%ok
    FAIL
%%ok:
%endmacro
    LAR C32, 0x00cf9b00
    LAR D32, 0x00cf9300
    LAR D32U, 0x00cff300
    LAR 0, -1
    LAR 3, -1
    LAR GDT_LIMIT + 1, -1
    LAR TR, 0x00008b00
    LSL C32, 0xffffffff
    LSL D16, 0xffff
    LSL TR, TSS_LIMIT
    LSL 0, -1
    DESC GDT + S, 0x123456, 0x12345, 0x4013   ; not present: still answered
    LSL S, 0x12345
    LAR S, 0x00411300
    ; system types: which of them LAR and LSL know
%assign t 0
%rep 16
    DESC GDT + S, 0, 0x77, 0x0080 | t
%if t == 1 || t == 2 || t == 3 || t == 9 || t == 11
    LAR S, 0x8000 | t << 8
    LSL S, 0x77
%elif t == 4 || t == 5 || t == 12
    LAR S, 0x8000 | t << 8
    LSL S, -1
%else
    LAR S, -1
    LSL S, -1
%endif
    VER r, S, 0
%assign t t + 1
%endrep
    ; 16-bit destination
    mov eax, 0x5a5a5a5a
    mov ebx, D32
    lar ax, bx
    CHECK eax, e, 0x5a5a9300
    ; readable, writable
    VER r, D32, 1
    VER w, D32, 1
    VER r, C32, 1
    VER w, C32, 0
    VER r, 0, 0
    VER r, GDT_LIMIT + 1, 0
    DESC GDT + S, 0, 0xfffff, 0xc091
    VER r, S, 1
    VER w, S, 0
    DESC GDT + S, 0, 0xfffff, 0xc099
    VER r, S, 0
    VER r, D32 | 3, 0                         ; RPL counts
    LAR D32 | 3, -1
    DESC GDT + S, 0, 0xfffff, 0xc09f          ; conforming: seen from everywhere
    VER r, S | 3, 1
    ; ARPL
    mov ecx, 0x48
    mov edx, 3
    arpl cx, dx
    jnz bad1
    CHECK ecx, e, 0x4b
    mov edx, 1
    arpl cx, dx
    jz bad1
    CHECK ecx, e, 0x4b
    mov word [var], 0x10
    arpl [var], dx
    jnz bad1
    CHECKM word, var, 0x11
    TO_USER user
user:
    LAR D32, -1
    LAR D32U, 0x00cff300
    LSL C32, -1
    VER r, D32, 0
    VER r, S, 1
    TO_KERNEL
    ; real mode does not know them
    jmp C16:.c16
    bits 16
.c16:
    mov ax, D16
    mov ds, ax
    mov ss, ax
    mov es, ax
    mov eax, cr0
    and al, ~1
    mov cr0, eax
    jmp 0:.real
.real:
    xor ax, ax
    mov ds, ax
    mov ss, ax
    mov sp, STACK0
    mov word [4 * X_UD], .ud
    mov word [4 * X_UD + 2], 0
    lidt [ivt]
    mov cx, 0
    lar ax, bx
    lsl ax, bx
    verr ax
    arpl ax, bx
    sldt ax
    str ax
    ltr ax
    lldt ax
    cmp cx, 8
    jne bad2
    xor eax, eax
    out RESULT, eax
    hlt
.ud:
    inc cx
    push bp
    mov bp, sp
    add word [bp + 2], 3                      ; ARPL has two bytes
    mov bp, [bp + 2]
    cmp byte [bp - 3], 0x63
    jne .no
    mov bp, sp
    dec word [bp + 2]
.no:
    pop bp
    iret
ivt: dw 0x3ff
    dd 0
bad2: mov eax, 2222
    out RESULT, eax
    hlt
    bits 32
bad1: FAIL
