; SMEP, SMAP, UMIP and protection that ring 0 puts on itself.
%include "sys.inc"
%include "long.inc"
P   equ 1
W   equ 2
U   equ 4
PG  equ 0x180000
    CASE PASS
    ENTER_LONG
    mov ax, D32U
    mov ds, ax
    ; everything supervisor except PG; ring 3's stack is not needed
    mov edi, PT
    mov ecx, 512
.pt:
    and byte [rdi], ~4
    add edi, 8
    loop .pt
    mov rax, cr3
    mov cr3, rax
    MAP PG, P | W | U
    mov byte [abs PG], 0xc3
    ; SMEP
    mov rax, cr4
    or eax, 1 << 20
    mov cr4, rax
    mov eax, PG
    mov qword [abs exp_resume], smep
    call rax
smep:
    mov esp, STACK0
    CHECKM dword, abs got_vec, X_PF
    CHECKM dword, abs got_err, 0x11
    CHECKM qword, abs got_rip, PG
    mov rax, cr4
    and eax, ~(1 << 20)
    mov cr4, rax
    mov eax, PG
    call rax
    ; SMAP
    mov al, [abs PG]
    mov rax, cr4
    or eax, 1 << 21
    mov cr4, rax
    FAULT X_PF, 1, {mov al, [abs PG]}
    FAULT X_PF, 3, {mov [abs PG], al}
    stac
    mov al, [abs PG]
    mov [abs PG], al
    clac
    FAULT X_PF, 1, {mov al, [abs PG]}
    pushfq
    or dword [rsp], 0x40000                   ; AC by POPF
    popfq
    mov al, [abs PG]
    ; AC stays set in the handler: the recorder runs with it and IRET restores it
    FAULT X_UD, 0, ud2
    mov al, [abs PG]
    clac
    ; as often as a translator wants it; a stack in a user's page is out of reach after CLAC
    mov dword [abs TSS + 36], DFSTACK
    mov byte [abs IDT + X_PF * 16 + 4], 1
    mov ecx, 100
.often:
    stac
    mov [abs PG], cl
    mov esp, PG + 0x800
    push rcx
    pop rdx
    push rcx
    clac
    FAULT X_PF, 1, pop rdx
    FAULT X_PF, 3, {mov [abs PG], cl}
    stac
    pop rdx
    clac
    CHECK edx, e, ecx
    mov esp, STACK0
    dec ecx
    jnz .often
    mov byte [abs IDT + X_PF * 16 + 4], 0
    ; implicit accesses are never lifted by AC: a TSS in a user page, read for the IST of #UD
    mov rsi, TSS
    mov edi, PG
    mov ecx, 0x100 / 8
    stac
    cld
    rep movsq
    mov byte [abs IDT + X_UD * 16 + 4], 1
    mov dword [abs TSS + 36], DFSTACK
    mov dword [abs PG + 36], DFSTACK
    mov word [abs GDT + TR + 2], PG & 0xffff
    mov byte [abs GDT + TR + 4], PG >> 16
    mov byte [abs GDT + TR + 5], 0x89
    mov eax, TR
    ltr ax
    mov qword [abs exp_resume], tsspf
    ud2
    FAIL
tsspf:
    CHECKM dword, abs got_vec, X_PF
    CHECKM dword, abs got_err, 1
    CHECKM qword, abs got_cr2, PG + 36
    mov byte [abs IDT + X_UD * 16 + 4], 0
    mov word [abs GDT + TR + 2], TSS
    mov byte [abs GDT + TR + 4], 0
    mov byte [abs GDT + TR + 5], 0x89
    ltr ax
    mov esp, STACK0
    clac
    mov rax, cr4
    and eax, ~(1 << 21)
    mov cr4, rax
    mov al, [abs PG]
    ; UMIP
    mov edi, PT
    mov ecx, 512
.pt2:
    or byte [rdi], 4
    add edi, 8
    loop .pt2
    mov rax, cr3
    mov cr3, rax
    mov rax, cr4
    or eax, 1 << 11
    mov cr4, rax
    sgdt [abs var]
    smsw eax
    sldt eax
    TO_USER user
user:
    FAULT X_GP, 0, {sgdt [abs var]}
    FAULT X_GP, 0, {sidt [abs var]}
    FAULT X_GP, 0, {sldt eax}
    FAULT X_GP, 0, {str eax}
    FAULT X_GP, 0, {smsw eax}
    TO_KERNEL
    mov rax, cr4
    and eax, ~(1 << 11)
    mov cr4, rax
    TO_USER user2
user2:
    sgdt [abs var]
    CHECKM word, abs var, GDT_LIMIT
    CHECKM qword, abs var + 2, GDT
    sidt [abs var]
    CHECKM word, abs var, 0xfff
    str eax
    CHECK eax, e, TR
    mov rax, -1
    sldt rax
    CHECK rax, e, 0
    mov rax, -1
    smsw eax
    CHECK eax, e, 0x80010011
    TO_KERNEL
    DONE
