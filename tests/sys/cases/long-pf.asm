; Page faults of every kind in 64-bit mode, with CR2 and error code; A and D bits.
%include "sys.inc"
%include "long.inc"
P   equ 1
W   equ 2
U   equ 4
NX  equ 1 << 63
PG  equ 0x180000
PT_PG equ PT + (PG >> 12) * 8
%macro PF 4+                 ; error, address, (unused tag), instruction
    FAULT X_PF, %1, %4
    mov rcx, %2
    CHECKM qword, abs got_cr2, rcx
%endmacro
    CASE PASS
    ENTER_LONG
    ; not present
    MAP PG, 0
    PF 0, PG, r, {mov al, [abs PG]}
    PF 0, PG + 5, r, {mov al, [abs PG + 5]}
    PF 2, PG, w, {mov byte [abs PG], 1}
    PF 2, PG, w, {add byte [abs PG], 1}
    mov eax, PG
    mov qword [abs exp_resume], nx1
    call rax
nx1:
    mov esp, STACK0
    CHECKM dword, abs got_err, 0x10
    CHECKM qword, abs got_cr2, PG
    CHECKM qword, abs got_rip, PG
    ; an access that straddles: CR2 is the first byte of the page that is missing
    PF 0, PG, r, {mov rax, [abs PG - 3]}
    MAP PG + 0x1000, P | W
    PF 0, PG + 0xffe, r, {mov eax, [abs PG + 0xffe]}
    MAP PG, P | W
    MAP PG + 0x1000, 0
    mov byte [abs PG + 0xffe], 0x55
    PF 2, PG + 0x1000, w, {mov dword [abs PG + 0xffe], 0x12345678}
    cmp byte [abs PG + 0xffe], 0x55           ; and nothing was written
    jne bad
    ; read-only, with and without CR0.WP
    MAP PG, P
    mov al, [abs PG]
    PF 3, PG, w, {mov byte [abs PG], 1}
    PF 3, PG + 8, w, {lock inc qword [abs PG + 8]}
    mov rax, cr0
    and eax, ~0x10000
    mov cr0, rax
    NOFAULT mov byte [abs PG], 7
    mov rax, cr0
    or eax, 0x10000
    mov cr0, rax
    PF 3, PG, w, {mov byte [abs PG], 1}
    ; no-execute
    MAP PG, NX | P | W
    mov byte [abs PG], 0xc3
    mov eax, PG
    mov qword [abs exp_resume], nx2
    call rax
nx2:
    mov esp, STACK0
    CHECKM dword, abs got_err, 0x11
    CHECKM qword, abs got_rip, PG
    MAP PG, P | W
    mov eax, PG
    call rax
    ; NX is reserved while EFER.NXE = 0
    MAP PG, NX | P | W
    mov ecx, 0xc0000080
    rdmsr
    and eax, ~0x800
    wrmsr
    PF 9, PG, r, {mov al, [abs PG]}
    PF 11, PG, w, {mov [abs PG], al}
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x800
    wrmsr
    mov al, [abs PG]
    ; reserved bits: bit 51 is above any physical width here, bit 7 of a PML4 entry, bits of a large page
    MAP PG, P | W | 1 << 51
    PF 9, PG, r, {mov al, [abs PG]}
    MAP PG, P | W
    mov rax, PDPT | P | W | 1 << 7
    mov [abs PML4 + 8], rax
    mov rbx, 0x8000000000
    PF 9, rbx, r, {mov al, [rbx]}
    mov rax, 0x200000 | P | W | 1 << 7 | 1 << 13
    mov [abs PD + 16], rax
    PF 9, 0x400000, r, {mov al, [abs 0x400000]}
    mov rax, 0x200000 | P | W | 1 << 7
    mov [abs PD + 16], rax
    invlpg [abs 0x400000]
    mov al, [abs 0x400000]
    ; missing upper levels
    mov rbx, 0x10000000000
    PF 0, rbx, r, {mov al, [rbx]}
    mov rbx, 0xffff800000000000
    PF 2, rbx, w, {mov [rbx], al}
    ; accessed and dirty
    MAP PG, P | W
    test byte [abs PT_PG], 0x60
    jnz bad
    mov al, [abs PG]
    mov al, [abs PT_PG]
    and al, 0x60
    cmp al, 0x20
    jne bad
    mov [abs PG], al
    mov al, [abs PT_PG]
    and al, 0x60
    cmp al, 0x60
    jne bad
    MAP PG, P                                 ; a faulting write sets nothing
    FAULT X_PF, 3, {mov [abs PG], al}
    test byte [abs PT_PG], 0x40
    jnz bad
    ; ring 3: supervisor pages
    MAP PG, P | W
    TO_USER user
user:
    PF 5, PG, r, {mov al, [abs PG]}
    PF 7, PG, w, {mov [abs PG], al}
    mov eax, PG
    mov qword [abs exp_resume], nx3
    call rax
nx3:
    CHECKM dword, abs got_err, 0x15
    mov esp, STACK3
    TO_KERNEL
    MAP PG, P | U
    MAP PG + 0x1000, U
    TO_USER user2
user2:
    mov al, [abs PG]
    PF 7, PG, w, {mov [abs PG], al}
    PF 4, PG + 0x1000, r, {mov al, [abs PG + 0x1000]}
    PF 6, PG + 0x1000, w, {mov [abs PG + 0x1000], al}
    PF 7, PG + 0xfff, w, {mov [abs PG + 0xfff], ax}
    TO_KERNEL
    ; U/S of an upper level counts too
    and byte [abs PD + 8], ~4
    invlpg [abs 0x200000]
    TO_USER user3
user3:
    PF 5, 0x200000, r, {mov al, [abs 0x200000]}
    TO_KERNEL
    ; a stack push that faults leaves RSP alone
    MAP PG, 0
    mov rsp, PG + 8
    mov byte [abs IDT + X_PF * 16 + 4], 1
    mov dword [abs TSS + 36], DFSTACK
    PF 2, PG, w, {push rax}
    CHECKM qword, abs got_rsp, PG + 8
    CHECK rsp, e, PG + 8
    PF 2, PG, w, {call bad}
    CHECK rsp, e, PG + 8
    mov esp, STACK0
    DONE
bad: FAIL
