; Into long mode and out of it: the consistency checks, LMA, compatibility mode, and back to paging off.
%include "sys.inc"
%include "prot.inc"
    CASE PASS
    ENTER_PROT
    ; tables for 4-level paging: 2 MiB identity
    mov edi, PML4
    mov ecx, 0x3000 / 4
    xor eax, eax
    cld
    rep stosd
    mov dword [PML4], PDPT | 7
    mov dword [PDPT], PD | 7
    mov dword [PD], 0x87
    mov eax, PML4
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x100                             ; LME
    wrmsr
    rdmsr
    CHECK eax, e, 0x100                       ; LMA only with paging
    mov ebx, cr0
    or ebx, 0x80000000
    FAULT X_GP, 0, mov cr0, ebx               ; PAE missing
    mov eax, cr4
    or eax, 0x20
    mov cr4, eax
    ; a 16-bit task
    DESC GDT + C64, 0, 0xfffff, 0xa09b
    DESC GDT + FREE, TSS, 0x2b, 0x0081
    mov eax, FREE
    ltr ax
    FAULT X_GP, 0, mov cr0, ebx
    mov byte [GDT + TR + 5], 0x89
    mov eax, TR
    ltr ax
    ; a CS with L set is 32-bit code here, and refused
    DESC GDT + FREE, 0, 0xfffff, 0xe09b       ; L and D: D governs outside long mode
    jmp FREE:.l
.l: mov eax, cs
    CHECK eax, e, FREE
    mov dword [exp_resume], .after
    mov dword [got_vec], -1
    mov cr0, ebx
    FAIL
.after:
    CHECKM dword, got_vec, X_GP
    jmp C32:.ok
.ok:
    mov cr0, ebx                              ; in: compatibility mode
    mov ecx, 0xc0000080
    rdmsr
    CHECK eax, e, 0x500                       ; LMA
    mov eax, cs
    CHECK eax, e, C32
    ; LMA cannot be written, LME not changed under paging
    rdmsr
    and eax, ~0x400
    wrmsr
    rdmsr
    CHECK eax, e, 0x500
    jmp C64:.in64
    bits 64
.in64:
    mov rax, 0x123456789
    shr rax, 32
    CHECK eax, e, 1
    jmp far dword [abs .back]
.back: dd .out
    dw C32
    bits 32
.out:
    ; out again: paging off clears LMA
    mov eax, cr0
    and eax, ~0x80000000
    mov cr0, eax
    mov ecx, 0xc0000080
    rdmsr
    CHECK eax, e, 0x100
    FAULT X_UD, 0, ud2                        ; 32-bit delivery again
    and eax, ~0x100
    xor eax, eax
    wrmsr
    ; and into plain PAE paging with the same CR3 format
    mov dword [PML4], PD | 1
    mov eax, PML4
    mov cr3, eax
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    mov eax, [0x6000]
    rdmsr
    CHECK eax, e, 0
    DONE
