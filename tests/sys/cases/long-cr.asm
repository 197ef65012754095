; What MOV CR, MOV DR, LMSW and XSETBV's neighbours accept.
%include "sys.inc"
%include "long.inc"
    CASE PASS
    ENTER_LONG
    mov rax, cr0
    mov rbx, rax
    bts rbx, 32
    FAULT X_GP, 0, mov cr0, rbx               ; upper half
    mov rbx, rax
    bts rbx, 29
    FAULT X_GP, 0, mov cr0, rbx               ; NW without CD
    mov rbx, rax
    btr rbx, 0
    FAULT X_GP, 0, mov cr0, rbx               ; PG without PE
    mov rbx, rax
    and ebx, ~0x10
    or ebx, 0x1ff00 & ~0x10000
    mov cr0, rbx                              ; reserved bits are ignored, ET reads as one
    mov rcx, cr0
    cmp rcx, rax
    jne bad
    mov rbx, rax
    or ebx, 0x2e                              ; MP EM TS NE
    mov cr0, rbx
    mov rcx, cr0
    cmp rcx, rbx
    jne bad
    clts
    mov rcx, cr0
    xor ecx, ebx
    CHECK ecx, e, 8
    mov cr0, rax
    ; LMSW sets PE, never clears it; changes MP EM TS
    xor ecx, ecx
    lmsw cx
    mov rcx, cr0
    cmp rcx, rax
    jne bad
    mov ecx, 0xe
    lmsw cx
    smsw ecx
    and ecx, 0xf
    CHECK ecx, e, 0xf
    mov cr0, rax
    ; CR4
    mov rax, cr4
    mov rbx, rax
    bts rbx, 12                               ; LA57 is not offered
    FAULT X_GP, 0, mov cr4, rbx
    mov rbx, rax
    bts rbx, 13                               ; VMXE
    FAULT X_GP, 0, mov cr4, rbx
    mov rbx, rax
    bts rbx, 63
    FAULT X_GP, 0, mov cr4, rbx
    mov rbx, rax
    btr rbx, 5                                ; PAE in long mode
    FAULT X_GP, 0, mov cr4, rbx
    ; CR3
    mov rbx, cr3
    bts rbx, 52
    FAULT X_GP, 0, mov cr3, rbx
    ; CR2 takes anything
    mov rbx, 0x8000000000000001
    mov cr2, rbx
    mov rcx, cr2
    cmp rcx, rbx
    jne bad
    ; CR8
    mov ebx, 5
    mov cr8, rbx
    mov rcx, cr8
    CHECK ecx, e, 5
    mov ebx, 16
    FAULT X_GP, 0, mov cr8, rbx
    xor ebx, ebx
    mov cr8, rbx
    ; registers that do not exist
    FAULT X_UD, 0, {db 0x0f, 0x20, 0xc8}      ; CR1
    FAULT X_UD, 0, {db 0x0f, 0x22, 0xe8}      ; CR5
    ; debug registers
    mov rbx, 0x8877665544332211
    mov dr0, rbx
    mov rcx, dr0
    cmp rcx, rbx
    jne bad
    FAULT X_GP, 0, mov dr6, rbx
    FAULT X_GP, 0, mov dr7, rbx
    xor ebx, ebx
    mov dr6, rbx
    mov rcx, dr6
    mov edx, 0xffff0ff0
    CHECK rcx, e, rdx
    mov rcx, dr4                              ; alias of DR6
    CHECK rcx, e, rdx
    mov dr7, rbx
    mov rcx, dr7
    CHECK rcx, e, 0x400
    mov rax, cr4
    or eax, 8
    mov cr4, rax
    FAULT X_UD, 0, mov rcx, dr4
    FAULT X_UD, 0, mov dr5, rcx
    ; DR7.GD: #DB fault with BD, GD cleared on the way
    mov ebx, 0x2000
    mov dr7, rbx
    mov qword [abs exp_resume], gd
    mov dword [abs got_vec], -1
gdi: mov rcx, dr0
    FAIL
gd: CHECKM dword, abs got_vec, X_DB
    CHECKM qword, abs got_rip, gdi
    mov rcx, dr6
    mov edx, 0xffff2ff0
    CHECK rcx, e, rdx
    mov rcx, dr7
    CHECK rcx, e, 0x400
    ; RDTSC and CR4.TSD
    rdtsc
    mov rax, cr4
    or eax, 4
    mov cr4, rax
    rdtsc
    mov ecx, 0xc0000103
    mov eax, 77
    xor edx, edx
    wrmsr
    rdtscp
    CHECK ecx, e, 77
    rdpid rcx
    CHECK ecx, e, 77
    TO_USER user
user:
    FAULT X_GP, 0, rdtsc
    FAULT X_GP, 0, rdtscp
    FAULT X_GP, 0, rdpmc
    rdpid rcx
    CHECK ecx, e, 77
    TO_KERNEL
    ; table registers
    mov rax, 0x8000000000000000
    mov [abs var + 2], rax
    FAULT X_GP, 0, {lgdt [abs var]}
    FAULT X_GP, 0, {lidt [abs var]}
    xor eax, eax
    FAULT X_GP, 0, ltr ax
    mov eax, D32
    FAULT X_GP, D32, ltr ax
    mov eax, TR                               ; busy
    FAULT X_GP, TR, ltr ax
    mov eax, TR | 4
    FAULT X_GP, TR | 4, ltr ax
    CHECKM byte, abs GDT + TR + 5, 0x8b
    DESC GDT + FREE, LDT, 0xff, 0x0082
    mov dword [abs GDT + FREE + 8], 0
    mov dword [abs GDT + FREE + 12], 0
    mov eax, FREE
    lldt ax
    sldt ecx
    CHECK ecx, e, FREE
    DESC LDT + 8, 0, 0xfffff, 0xc093
    mov eax, 8 | 4
    mov es, ax
    mov eax, 0x100 | 4                        ; outside
    FAULT X_GP, 0x104, mov es, ax
    mov byte [abs GDT + FREE + 5], 0x02
    mov eax, FREE
    FAULT X_NP, FREE, lldt ax
    xor eax, eax
    lldt ax
    mov eax, 8 | 4
    FAULT X_GP, 0xc, mov es, ax
    DONE
bad: FAIL
