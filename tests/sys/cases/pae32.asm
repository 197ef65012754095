; 32-bit and PAE paging outside long mode: PSE, PDPTEs, NX, global pages, PDPTE loads.
%include "sys.inc"
%include "prot.inc"
PG  equ 0x180000
PDPT3 equ 0x106000
PAE_PD equ 0x107000
PAE_PT equ 0x108000
    CASE PASS
    ENTER_PROT 1
    ; 32-bit paging: 4 MiB page, PSE-36 bits, reserved bit 21
    mov dword [0x400000], 0x1234
    CHECKM dword, 0x400000, 0x1234
    mov dword [PD32 + 8], 0x400000 | 0x87     ; 8 MiB -> 4 MiB
    CHECKM dword, 0x800000, 0x1234
    mov dword [PD32 + 8], 0x600000 | 0x87     ; bit 21 is reserved
    invlpg [0x800000]
    FAULT X_PF, 9, {mov eax, [0x800000]}
    mov eax, cr2
    CHECK eax, e, 0x800000
    ; without CR4.PSE bit 7 is ignored: a page table
    mov dword [PD32 + 8], PT32 | 0x87
    mov eax, cr4
    and eax, ~0x10
    mov cr4, eax
    mov eax, [0x800000 + 0x6000]              ; PT32 maps it to 0x6000
    mov ecx, [0x6000]
    CHECK eax, e, ecx
    mov eax, cr4
    or eax, 0x10
    mov cr4, eax
    mov dword [PD32 + 8], 0
    ; not present, read-only and user, 32-bit format
    MAP PG, 0
    FAULT X_PF, 0, {mov al, [PG]}
    FAULT X_PF, 2, {mov [PG + 3], al}
    CHECKM dword, got_cr2, PG + 3
    MAP PG, 1
    FAULT X_PF, 3, {mov [PG], al}
    MAP PG, 3
    TO_USER user
user:
    FAULT X_PF, 5, {mov al, [PG]}
    FAULT X_PF, 7, {mov [PG], al}
    TO_KERNEL
    MAP PG, 3
    mov eax, PG
    mov byte [eax], 0xc3
    call eax                                  ; no NX in this format
    ; linear addresses wrap at 4 GiB: base + offset
    DESC GDT + FREE, 0xfffff000, 0xfffff, 0xc093
    mov eax, FREE
    mov es, ax
    mov dword [0x6100], 0x77
    CHECKM dword, es:0x7100, 0x77
    ; ---- to PAE: paging off, tables, on ----
    mov eax, cr0
    and eax, ~0x80000000
    mov cr0, eax
    mov edi, PDPT3
    mov ecx, 0x3000 / 4
    xor eax, eax
    cld
    rep stosd
    mov dword [PDPT3], PAE_PD | 1
    mov dword [PAE_PD], PAE_PT | 7
    mov dword [PAE_PD + 8], 0x200000 | 0x87
    mov edi, PAE_PT
    mov eax, 7
    mov ecx, 512
.pt:
    mov [edi], eax
    mov dword [edi + 4], 0
    add edi, 8
    add eax, 0x1000
    loop .pt
    mov eax, cr4
    or eax, 0x20
    mov cr4, eax
    mov eax, PDPT3
    mov cr3, eax
    ; a reserved bit in a present PDPTE: #GP when paging is turned on
    mov dword [PDPT3 + 8], 3
    mov eax, cr0
    or eax, 0x80000000
    FAULT X_GP, 0, mov cr0, eax
    mov dword [PDPT3 + 8], 0
    mov cr0, eax
    mov dword [0x200000], 0x99
    CHECKM dword, 0x200000, 0x99
    ; PDPTEs are loaded with CR3, not on use
    mov dword [PDPT3], 0
    mov eax, [0x180000]
    mov dword [PDPT3], PAE_PD | 1
    mov dword [PDPT3 + 8], PAE_PD | 1
    FAULT X_PF, 0, {mov eax, [0x40000000 + 0x200000]}
    mov eax, cr3
    mov cr3, eax
    mov eax, [0x40000000 + 0x200000]
    CHECK eax, e, 0x99
    mov dword [PDPT3 + 16], 0x1e1             ; reserved bits: MOV CR3 refuses
    mov eax, cr3
    FAULT X_GP, 0, mov cr3, eax
    mov dword [PDPT3 + 16], 0
    ; NX
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x800
    wrmsr
    mov dword [PAE_PT + (PG >> 12) * 8 + 4], 0x80000000
    invlpg [PG]
    mov dword [exp_resume], nx
    mov eax, PG
    call eax
nx: mov esp, STACK0
    CHECKM dword, got_vec, X_PF
    CHECKM dword, got_err, 0x11
    CHECKM dword, got_rip, PG
    mov al, [PG]
    ; reserved bits of a PTE
    mov dword [PAE_PT + (PG >> 12) * 8 + 4], 0x00080000
    invlpg [PG]
    FAULT X_PF, 9, {mov al, [PG]}
    DONE
