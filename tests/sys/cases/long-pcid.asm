; What stays visible of old translations: INVLPG, MOV CR3, PCID, no-flush, INVPCID, global pages.
; Architecturally stale entries are only allowed, never required, so every check is of something that
; must be seen.
%include "sys.inc"
%include "long.inc"
PG  equ 0x180000
A   equ 0x181000
B   equ 0x182000
PT_PG equ PT + (PG >> 12) * 8
    CASE PASS
    ENTER_LONG
    mov dword [abs A], 0xaaaa
    mov dword [abs B], 0xbbbb
%macro POINT 1-2 7                            ; PG -> frame, no invalidation
    mov qword [abs PT_PG], (%1) | %2
%endmacro
    POINT A
    invlpg [abs PG]
    CHECKM dword, abs PG, 0xaaaa
    POINT B
    invlpg [abs PG + 0x123]
    CHECKM dword, abs PG, 0xbbbb
    POINT A
    mov rax, cr3
    mov cr3, rax
    CHECKM dword, abs PG, 0xaaaa
    ; INVLPG of an address that is not canonical does nothing
    mov rbx, 0x8000000000000000
    NOFAULT invlpg [rbx]
    ; a write after the entry was cached as clean sets D
    POINT A, 7
    invlpg [abs PG]
    mov al, [abs PG]
    mov byte [abs PG + 1], 0xaa
    test byte [abs PT_PG], 0x40
    jz bad
    ; less rights after INVLPG
    POINT A, 5
    invlpg [abs PG]
    FAULT X_PF, 3, {mov byte [abs PG], 1}
    ; global pages survive MOV CR3 only as an option, but go with CR4.PGE and INVLPG
    mov rax, cr4
    or eax, 0x80
    mov cr4, rax
    POINT A, 0x107
    invlpg [abs PG]
    CHECKM dword, abs PG, 0xaaaa
    POINT B, 0x107
    mov rax, cr4
    and eax, ~0x80
    mov cr4, rax
    CHECKM dword, abs PG, 0xbbbb
    mov rax, cr4
    or eax, 0x80
    mov cr4, rax
    POINT A, 0x107
    invlpg [abs PG]
    CHECKM dword, abs PG, 0xaaaa
    ; PCID: cannot be set with CR3[11:0] != 0
    mov rax, cr3
    or eax, 8
    mov cr3, rax
    mov rax, cr4
    or eax, 1 << 17
    FAULT X_GP, 0, mov cr4, rax
    mov rax, cr3
    and eax, ~0xfff
    mov cr3, rax
    mov rbx, 1 << 63
    or rbx, rax
    FAULT X_GP, 0, mov cr3, rbx               ; bit 63 needs PCIDE
    mov rax, cr4
    or eax, 1 << 17
    mov cr4, rax
    ; two address spaces, PCID 1 and 2, with their own view of 2..4 MiB
    mov rsi, PML4                             ; copies at 0x110000.. with another PD
    mov rdi, 0x110000
    mov ecx, 0x3000 / 8
    cld
    rep movsq
    mov qword [abs 0x110000], 0x111007
    mov qword [abs 0x111000], 0x112007
    mov dword [abs A + 8], 0x1a1a
    mov dword [abs B + 8], 0x2b2b
    mov qword [abs PD + 8], 0x113007          ; 2 MiB: page table of its own
    mov qword [abs 0x112008], 0x114007
    mov qword [abs 0x113000], A | 7
    mov qword [abs 0x114000], B | 7
    mov rax, PML4 | 1
    mov cr3, rax
    CHECKM dword, abs 0x200008, 0x1a1a
    mov rbx, 0x110000 | 2
    mov cr3, rbx
    CHECKM dword, abs 0x200008, 0x2b2b
    mov rcx, 1 << 63
    or rax, rcx
    or rbx, rcx
    mov cr3, rax                              ; without flush
    CHECKM dword, abs 0x200008, 0x1a1a
    mov rdx, cr3
    CHECK rdx, e, PML4 | 1                    ; bit 63 is not stored
    mov cr3, rbx
    CHECKM dword, abs 0x200008, 0x2b2b
    ; INVPCID type 0 for another PCID's page
    mov qword [abs 0x113000], B | 7
    mov qword [abs var], 1
    mov qword [abs var + 8], 0x200000
    xor esi, esi
    invpcid rsi, [abs var]
    mov cr3, rax
    CHECKM dword, abs 0x200008, 0x2b2b
    ; type 1: all of a PCID
    mov qword [abs 0x114000], A | 7
    mov qword [abs var], 2
    mov esi, 1
    invpcid rsi, [abs var]
    mov cr3, rbx
    CHECKM dword, abs 0x200008, 0x1a1a
    ; type 3 and 2: all
    mov qword [abs 0x114000], B | 7
    mov esi, 3
    invpcid rsi, [abs var]
    CHECKM dword, abs 0x200008, 0x2b2b
    POINT B, 0x107
    mov esi, 2
    invpcid rsi, [abs var]
    CHECKM dword, abs PG, 0xbbbb
    ; errors
    mov esi, 4
    FAULT X_GP, 0, {invpcid rsi, [abs var]}
    xor esi, esi
    mov qword [abs var], 0x1000
    FAULT X_GP, 0, {invpcid rsi, [abs var]}
    mov qword [abs var], 1
    mov rdi, 0x8000000000000000
    mov [abs var + 8], rdi
    FAULT X_GP, 0, {invpcid rsi, [abs var]}
    ; leaving: PG cannot be cleared in 64-bit mode, PCIDE can
    mov rax, cr0
    btr rax, 31
    FAULT X_GP, 0, mov cr0, rax
    mov rax, cr4
    and eax, ~(1 << 17)
    mov cr4, rax
    mov qword [abs var], 1
    mov qword [abs var + 8], 0
    FAULT X_GP, 0, {invpcid rsi, [abs var]}   ; a PCID needs PCIDE
    DONE
bad: FAIL
