; Port I/O: IOPL, the permission map and its end, INS and OUTS with REP, faults in the middle.
%include "sys.inc"
%include "prot.inc"
PG  equ 0x180000
    CASE PASS
    ENTER_PROT 1
    mov dx, SCRATCH
    mov eax, 0x11223344
    out dx, eax
    in al, dx
    CHECK al, e, 0x44
    mov dx, SCRATCH + 1
    in ax, dx
    CHECK ax, e, 0x2233
    CHECK eax, e, 0x11222233
    mov eax, -1
    mov dx, SCRATCH
    in eax, dx
    CHECK eax, e, 0x11223344
    ; OUTS, INS; DF; 16-bit addresses
    mov dword [var], 0xa1a2a3a4
    mov esi, var
    mov dx, SCRATCH
    cld
    outsd
    CHECK esi, e, var + 4
    mov edi, var + 8
    insd
    CHECK edi, e, var + 12
    CHECKM dword, var + 8, 0xa1a2a3a4
    std
    mov edi, var + 9
    insw
    CHECK edi, e, var + 7
    cld
    mov edi, var + 0x20
    mov ecx, 5
    rep insb
    CHECK ecx, e, 0
    CHECK edi, e, var + 0x25
    CHECKM dword, var + 0x21, 0xa4a4a4a4
    mov ecx, 0x10000                          ; only CX counts
    mov edi, 0x1234ffff
    a16 rep insb
    CHECK edi, e, 0x1234ffff
    CHECK ecx, e, 0x10000
    mov esi, 0x56780000 | var
    mov ecx, 0x10002
    a16 rep outsb
    CHECK esi, e, 0x56780000 | (var + 2)
    CHECK ecx, e, 0x10000
    ; a fault in the middle: registers stand at the element, and the port was not read for it
    MAP PG, 3
    MAP PG + 0x1000, 0
    mov edi, PG + 0xffe
    mov ecx, 5
    mov dx, SCRATCH
    FAULT X_PF, 2, rep insb
    CHECK ecx, e, 3
    CHECK edi, e, PG + 0x1000
    mov esi, PG + 0xffc
    mov ecx, 4
    FAULT X_PF, 0, rep outsd
    CHECK ecx, e, 3
    CHECK esi, e, PG + 0x1000
    MAP PG + 0x1000, 7
    ; a long one, with an interrupt coming in
    mov edi, PG
    mov ecx, 0x1000
    mov al, 0x77
    out dx, al
    cli
    mov al, 0x28
    out P_IRQ, al
    mov dword [got_vec], -1
    sti
    rep insb
    cli
    CHECKM dword, got_vec, 0x28
    CHECKM byte, PG + 0xfff, 0x77
    CHECK edi, e, PG + 0x1000
    ; ring 3 with IOPL 0: the map
    or byte [TSS + IOMAP + (SCRATCH + 8) / 8], 4  ; port +10 is closed
    push D32U
    push STACK3
    push 0x0002
    push C32U
    push user
    mov eax, D32U
    mov ds, ax
    mov es, ax
    iretd
user:
    mov dx, SCRATCH + 9
    in al, dx
    FAULT X_GP, 0, {in ax, dx}
    mov dx, SCRATCH + 10
    FAULT X_GP, 0, {in al, dx}
    FAULT X_GP, 0, {out dx, al}
    mov dx, SCRATCH + 7
    FAULT X_GP, 0, {out dx, eax}
    mov dx, SCRATCH + 6
    out dx, eax
    mov dx, SCRATCH + 10
    mov ecx, 2
    mov edi, var
    FAULT X_GP, 0, rep insb
    CHECK ecx, e, 2
    mov esi, var
    FAULT X_GP, 0, outsb
    FAULT X_GP, 0, cli
    FAULT X_GP, 0, sti
    FAULT X_GP, 0, hlt
    ; ports at the end of the map
    mov dx, 0xffff
    in al, dx
    mov dx, 0xfffe
    in ax, dx
    TO_KERNEL
    ; a shorter TSS: the map ends after port 0x20f (one more byte is always needed)
    mov word [GDT + TR], IOMAP + (SCRATCH + 16) / 8
    mov byte [GDT + TR + 6], 0
    mov byte [GDT + TR + 5], 0x89
    mov eax, TR
    ltr ax
    push D32U
    push STACK3
    push 0x0002
    push C32U
    push user2
    mov eax, D32U
    mov ds, ax
    iretd
user2:
    mov dx, SCRATCH + 15
    in ax, dx                                 ; both bytes of the map are inside
    mov dx, SCRATCH + 16
    FAULT X_GP, 0, {in al, dx}
    TO_KERNEL
    mov word [TSS + 0x66], 0xffff             ; no map at all
    push D32U
    push STACK3
    push 0x1002                               ; IOPL 1
    push C32U
    push user3
    mov eax, D32U
    mov ds, ax
    iretd
user3:
    FAULT X_GP, 0, {in al, 0}
    TO_KERNEL
    DONE
