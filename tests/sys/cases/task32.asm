; Hardware task switches: JMP, CALL, IRET, interrupt; 32- and 16-bit TSS; busy bits, NT, faults, the T bit.
%include "sys.inc"
%include "prot.inc"
TB  equ FREE                 ; 32-bit TSS
TC  equ FREE + 8             ; 16-bit TSS
GB  equ FREE + 16            ; task gate to TB
S1  equ FREE + 24
S2  equ FREE + 32
TD  equ FREE + 40             ; 32-bit TSS of a fault handler
TSSB equ 0x180000
TSSC equ 0x180100
TSSD equ 0x180200
    CASE PASS
    ENTER_PROT 1
    mov eax, cr3
    mov [TSS + 0x1c], eax
    call init_b
    call init_c
    DESC GDT + TB, TSSB, 0x67, 0x0089
    DESC GDT + TC, TSSC, 0x2b, 0x0081
    mov dword [GDT + GB], TB << 16
    mov dword [GDT + GB + 4], 0xe500
    ; ---- JMP: A -> B -> A; nothing linked, no NT ----
    mov eax, 0x11111111
    mov ebx, 0x22222222
    mov esi, 0x33333333
    stc
    mov dword [TSSB + 0x20], jmp_b
    jmp TB:0
back_a:
    CHECK ebx, e, 0x22222222
    CHECK esi, e, 0x33333333
    CHECK esp, e, STACK0
    str ecx
    CHECK ecx, e, TR
    CHECKM byte, GDT + TR + 5, 0x8b
    CHECKM byte, GDT + TB + 5, 0x89
    ; what the switch away from B saved
    CHECKM dword, TSSB + 0x28, 0xbbbb0001     ; EAX
    CHECKM word, TSSB + 0x48, D32             ; ES
    CHECKM dword, TSSB + 0x20, after_jmp_b
    CHECKM word, TSSB, 0                      ; link untouched
    ; ---- CALL and IRET: nested ----
    call init_b
    mov dword [TSSB + 0x20], call_b
    call TB:0x12345678
after_call:
    pushf
    pop eax
    test ah, 0x40
    jnz bad1                                  ; NT of A is clear
    CHECKM byte, GDT + TB + 5, 0x89
    CHECKM byte, GDT + TR + 5, 0x8b
    CHECKM word, TSSB, TR                     ; the link
    test byte [TSSB + 0x25], 0x40
    jnz bad1                                  ; IRET cleared NT in the saved image
    clts
    ; ---- through a task gate, and into a 16-bit TSS ----
    call init_c
    mov word [TSSC + 0x0e], call_c
    call TC:0
    CHECK esp, e, STACK0
    CHECKM word, TSSC, TR
    CHECKM byte, GDT + TC + 5, 0x81
    CHECKM word, TSSC + 0x14, 0xc0c1          ; CX saved
    call init_b
    mov dword [TSSB + 0x20], call_b
    call GB:0
    ; ---- interrupt through a task gate, with and without error code ----
    mov dword [IDT + 0x28 * 8], TB << 16
    mov dword [IDT + 0x28 * 8 + 4], 0x8500
    call init_b
    mov dword [TSSB + 0x20], int_b
    mov dword [var], 0
    int 0x28
after_int:
    CHECKM dword, var, 1
    CHECKM dword, TSS + 0x20, after_int       ; the EIP saved was after INT
    mov eax, [IDT + X_NP * 8]
    mov [var + 8], eax
    mov eax, [IDT + X_NP * 8 + 4]
    mov [var + 12], eax
    mov dword [IDT + X_NP * 8], TB << 16
    mov dword [IDT + X_NP * 8 + 4], 0x8500
    call init_b
    mov dword [TSSB + 0x20], np_b
    DESC GDT + S1, 0, 0xfffff, 0xc013
    mov eax, S1
np_insn:
    mov es, ax
np_next:
    CHECKM dword, var, 2
    test dword [TSS + 0x24], 0x10000
    jz bad1                                   ; RF in the saved image of a fault
    mov eax, [var + 8]
    mov [IDT + X_NP * 8], eax
    mov eax, [var + 12]
    mov [IDT + X_NP * 8 + 4], eax
    ; ---- refusals before the switch: A runs on ----
    mov byte [GDT + TB + 5], 0x8b             ; busy
    FAULT X_GP, TB, {call TB:0}
    FAULT X_GP, TB, {jmp TB:0}
    FAULT X_GP, TB, {call GB:0}
    FAULT X_GP, TB, int 0x28
    mov byte [GDT + TB + 5], 0x09
    FAULT X_NP, TB, {call TB:0}
    mov byte [GDT + TB + 5], 0x89
    mov word [GDT + TB], 0x66
    FAULT X_TS, TB, {call TB:0}               ; limit
    mov word [GDT + TC], 0x2a
    FAULT X_TS, TC, {call TC:0}
    mov word [GDT + TC], 0x2b
    mov word [GDT + TB], 0x67
    mov byte [GDT + GB + 5], 0x65
    FAULT X_NP, GB, {call GB:0}
    mov byte [GDT + GB + 5], 0xe5
    mov word [GDT + GB + 2], 0
    FAULT X_GP, 0, {call GB:0}
    mov word [GDT + GB + 2], TB | 4
    FAULT X_GP, TB | 4, {call GB:0}
    mov word [GDT + GB + 2], TB
    FAULT X_GP, TR, {jmp TR:0}                ; itself
    pushf
    or dword [esp], 0x4000
    popf
    mov word [TSS], TB                        ; IRET to a task that is not busy
    FAULT X_TS, TB, iretd
    mov word [TSS], GDT_LIMIT + 1
    FAULT X_TS, GDT_LIMIT + 1, iretd
    mov word [TSS], TB | 4
    FAULT X_TS, TB | 4, iretd
    pushf
    and dword [esp], ~0x4000
    popf
    str eax
    CHECK eax, e, TR
    CHECKM byte, GDT + TB + 5, 0x89
    ; DPL of TSS and gate
    TO_USER user
user:
    FAULT X_GP, TB, {call TB:0}
    FAULT X_GP, TB | 0, {jmp TB | 3:0}
    mov dword [TSSB + 0x20], call_b
    call GB:0
    mov eax, cs
    CHECK eax, e, C32U
    CHECK esp, e, STACK3
    TO_KERNEL
    ; ---- faults of the new task: they are taken in B, with B's CS:EIP, by an ordinary handler ----
; The state is too poor for a handler in B itself (no stack yet), so a third task handles them.
%macro INB 4                                  ; vector, error, TSS offset, selector
    mov dword [IDT + (%1) * 8], TD << 16
    mov dword [IDT + (%1) * 8 + 4], 0x8500
    mov word [TSSB + %3], %4
    call do_inb
    CHECKM dword, var, %2
%endmacro
    DESC GDT + S1, 0, 0xfffff, 0xc013         ; data, not present
    DESC GDT + S2, 0, 0xfffff, 0xc01b         ; code, not present
    call init_b
    INB X_TS, C32U & ~3, 0x4c, C32U & ~3      ; CS: DPL != RPL
    INB X_TS, 0, 0x4c, 0
    INB X_TS, D32, 0x4c, D32
    INB X_NP, S2, 0x4c, S2
    INB X_TS, D32U & ~3, 0x50, D32U           ; SS
    INB X_TS, 0, 0x50, 0
    INB X_TS, C32, 0x50, C32
    INB X_SS, S1, 0x50, S1
    INB X_NP, S1, 0x48, S1                    ; ES
    INB X_TS, GDT_LIMIT + 1, 0x54, GDT_LIMIT + 1
    INB X_TS, TR, 0x58, TR                    ; FS: a system descriptor
    INB X_TS, D32, 0x60, D32                  ; LDTR
    INB X_TS, 0x3f8, 0x60, 0x3f8
    ; EIP beyond the limit: #GP(0)
    mov ecx, [IDT + X_GP * 8]
    mov edx, [IDT + X_GP * 8 + 4]
    mov [var + 16], ecx
    mov [var + 20], edx
    DESC GDT + S2, 0, 0xffff, 0x409b
    mov dword [TSSB + 0x20], 0x10000
    INB X_GP, 0, 0x4c, S2
    mov ecx, [var + 16]
    mov edx, [var + 20]
    mov [IDT + X_GP * 8], ecx
    mov [IDT + X_GP * 8 + 4], edx
    ; ---- the T bit: #DB before B's first instruction ----
    call init_b
    mov dword [TSSB + 0x20], trap_b
    mov word [TSSB + 0x64], 1
    xor eax, eax
    mov dr6, eax
    mov dword [exp_resume], 1
    mov dword [got_vec], -1
    call TB:0
    CHECKM dword, got_vec, X_DB
    CHECKM dword, got_rip, trap_b
    mov eax, dr6
    test ah, 0x80
    jz bad1
    ; ---- CR3 comes from the TSS ----
    call init_b
    mov esi, PD32
    mov edi, 0x184000
    mov ecx, 1024
    cld
    rep movsd
    mov dword [0x184000 + 4], 0x800000 | 0x87 ; 4 MiB -> 8 MiB
    mov dword [0x400000], 0xaaaa
    mov dword [TSSB + 0x1c], 0x184000
    mov dword [TSSB + 0x20], cr3_b
    call TB:0
    CHECKM dword, 0x400000, 0xaaaa            ; A's view is back
    CHECKM dword, var, 0xbbbb
    ; local breakpoints go with the switch
    mov eax, 0x401 + 2
    mov dr7, eax
    mov eax, 0x12345
    mov dr0, eax
    call init_b
    mov dword [TSSB + 0x20], call_b
    call TB:0
    mov eax, dr7
    CHECK eax, e, 0x402
    xor eax, eax
    mov dr7, eax
    DONE

init_b:
    mov edi, TSSB
    mov ecx, 26
    xor eax, eax
    cld
    rep stosd
    mov eax, cr3
    mov [TSSB + 0x1c], eax
    mov dword [TSSB + 0x20], bad_b
    mov dword [TSSB + 0x24], 0x0002
    mov dword [TSSB + 0x28], 0xb0b0b0b0
    mov dword [TSSB + 0x38], 0x6c00           ; ESP
    mov word [TSSB + 0x48], D32
    mov word [TSSB + 0x4c], C32
    mov word [TSSB + 0x50], D32
    mov word [TSSB + 0x54], D32
    mov word [TSSB + 0x66], 0x68
    ret
init_c:
    mov edi, TSSC
    mov ecx, 11
    xor eax, eax
    rep stosd
    mov word [TSSC + 0x10], 2
    mov word [TSSC + 0x1a], 0x6c00
    mov word [TSSC + 0x22], D32
    mov word [TSSC + 0x24], C32
    mov word [TSSC + 0x26], D32
    mov word [TSSC + 0x28], D32
    ret
; ---- task B ----
jmp_b:
    CHECK eax, e, 0xb0b0b0b0
    CHECK esp, e, 0x6c00
    jc bad1                                   ; (CHECK clears it; flags are B's anyway)
    str eax
    CHECK eax, e, TB
    CHECKM byte, GDT + TB + 5, 0x8b
    CHECKM byte, GDT + TR + 5, 0x89           ; JMP frees the old task
    CHECKM dword, TSS + 0x20, back_a
    CHECKM dword, TSS + 0x34, 0x22222222
    test byte [TSS + 0x24], 1
    jz bad1
    pushf
    pop eax
    test ah, 0x40
    jnz bad1
    mov eax, cr0
    test al, 8
    jz bad1                                   ; TS
    clts
    mov eax, 0xbbbb0001
    jmp TR:0
after_jmp_b:
    FAIL
call_b:
    pushf
    pop eax
    test ah, 0x40
    jz bad1                                   ; NT
    CHECKM byte, GDT + TR + 5, 0x8b           ; the caller stays busy
    CHECKM word, TSSB, TR
    iretd
    FAIL
int_b:
    CHECK esp, e, 0x6c00                      ; no error code
    CHECKM word, TSSB, TR
    inc dword [var]
    iretd
    FAIL
np_b:
    CHECK esp, e, 0x6c00 - 4
    pop eax
    CHECK eax, e, S1
    CHECKM dword, TSS + 0x20, np_insn
    mov dword [TSS + 0x20], np_next
    inc dword [var]
    iretd
    FAIL
call_c:
    mov eax, esp
    and eax, 0xffff
    CHECK eax, e, 0x6c00
    movzx esp, sp                             ; only SP is in a 16-bit TSS
    str eax
    CHECK eax, e, TC
    mov eax, fs
    CHECK eax, e, 0                           ; FS and GS become null
    mov cx, 0xc0c1
    CHECKM dword, TSS + 0x38, STACK0
    iretd
    FAIL
trap_b:
    nop
    iretd
cr3_b:
    mov eax, cr3
    CHECK eax, e, 0x184000
    mov dword [0x400000], 0xbbbb
    mov eax, [0x400000]
    mov [var], eax
    iretd
; CALL to the broken task B; the handler task D comes back here by a jump
do_inb:
    mov edi, TSSD
    mov ecx, 26
    xor eax, eax
    cld
    rep stosd
    mov eax, cr3
    mov [TSSD + 0x1c], eax
    mov dword [TSSD + 0x20], handler_d
    mov dword [TSSD + 0x38], 0x6800
    mov word [TSSD + 0x48], D32
    mov word [TSSD + 0x4c], C32
    mov word [TSSD + 0x50], D32
    mov word [TSSD + 0x54], D32
    DESC GDT + TD, TSSD, 0x67, 0x0089
    push dword [TSSB + 0x20]
    call TB:0
    pop eax
    CHECKM dword, TSSB + 0x20, eax            ; B was left before its first instruction
    CHECKM byte, GDT + TB + 5, 0x8b
    mov byte [GDT + TB + 5], 0x89
    call init_b
    ret
handler_d:
    pop dword [var]                           ; the error code
    CHECK esp, e, 0x6800
    CHECKM word, TSSD, TB
    mov byte [GDT + TR + 5], 0x89
    jmp TR:0
bad_b: FAIL
bad1: FAIL
