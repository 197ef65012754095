; Single-stepping: TF with POPF, REP, MOV SS, SYSCALL, INT, IRET; interrupt shadows; NMI blocking.
%include "sys.inc"
%include "long.inc"
%include "syscall-common.inc"
    CASE PASS
    ENTER_LONG
    SYSCALL_SETUP
    ; #DB gate of our own: counts, keeps the last RIPs
    mov eax, on_db
    mov [abs IDT + X_DB * 16], ax
    xor r15d, r15d
    ; POPF sets TF: the trap comes after the instruction that follows
    pushfq
    or dword [rsp], 0x100
    popfq
t1: nop
t2: nop
t3: pushfq
t4: and dword [rsp], ~0x100
t5: popfq
t6: nop                                       ; the POPF that clears TF still traps
    nop
    CHECK r15d, e, 5
    CHECKM qword, abs rips, t2
    CHECKM qword, abs rips + 8, t3
    CHECKM qword, abs rips + 16, t4
    CHECKM qword, abs rips + 24, t5
    CHECKM qword, abs rips + 32, t6
    ; DR6.BS
    mov rax, dr6
    test eax, 0x4000
    jz bad1
    xor eax, eax
    mov dr6, rax
    ; PUSHF stores TF as set, the image on the exception stack too
    test dword [abs first_flags], 0x100
    jz bad2
    ; REP: a trap after each iteration, RIP at the instruction until the last
    mov edi, 0x180000
    mov ecx, 3
    xor r15d, r15d
    pushfq
    or dword [rsp], 0x100
    popfq
r1: rep stosb
r2: pushfq
    and dword [rsp], ~0x100
    popfq
    CHECKM qword, abs rips, r1
    CHECKM qword, abs rips + 8, r1
    CHECKM qword, abs rips + 16, r2
    mov edi, 0x180000
    mov ecx, 3
    mov dx, SCRATCH
    xor r15d, r15d
    pushfq
    or dword [rsp], 0x100
    popfq
r3: rep insb
r4: pushfq
    and dword [rsp], ~0x100
    popfq
    CHECKM qword, abs rips, r3
    CHECKM qword, abs rips + 8, r3
    CHECKM qword, abs rips + 16, r4
    ; MOV SS holds the trap off for one instruction
    mov eax, D32
    xor r15d, r15d
    pushfq
    or dword [rsp], 0x100
    popfq
s1: mov ss, ax
s2: nop
s3: pushfq
    and dword [rsp], ~0x100
    popfq
    CHECKM qword, abs rips, s3
    ; INT n clears TF before its handler and takes no trap of its own
    mov eax, on_int
    mov [abs IDT + 0x20 * 16], ax
    xor r15d, r15d
    pushfq
    or dword [rsp], 0x100
    popfq
i1: int 0x20
i2: nop
i3: pushfq
    and dword [rsp], ~0x100
    popfq
    ; IRET in the handler restores TF; the next trap is after the instruction it returns to
    CHECKM qword, abs rips, i3
    ; a fault: no trap for an instruction that did not complete
    xor r15d, r15d
    mov qword [abs exp_resume], u2
    pushfq
    or dword [rsp], 0x100
    popfq
u1: ud2
u2: CHECK r15d, e, 0
    pushfq
    and dword [rsp], ~0x100
    popfq
    ; SYSCALL with TF masked by SFMASK: no trap in the kernel
    xor r15d, r15d
    mov eax, entry
    TO_USER user
user:
    pushfq
    or dword [rsp], 0x100
    popfq
y1: syscall
y2: pushfq
    and dword [rsp], ~0x100
    popfq
    CHECKM qword, abs rips, y2                ; R11 had TF: the trap comes right after SYSRET
    TO_KERNEL
    mov ax, D32
    mov ss, ax
    ; ---- shadows ----
    mov dword [abs got_count], 0
    mov al, 0x28
    cli
    out P_IRQ, al
    nop
    sti
h1: nop
h2: nop
    cli
    CHECKM dword, abs got_vec, 0x28
    CHECKM qword, abs got_rip, h2
    CHECKM dword, abs got_count, 1
    ; STI with IF set already makes no shadow
    sti
    mov al, 0x29
    out P_IRQ, al
h3: nop
    cli
    CHECKM qword, abs got_rip, h3
    ; STI; CLI lets nothing in
    mov al, 0x28
    out P_IRQ, al
    sti
    cli
    CHECKM dword, abs got_count, 2
    sti
    nop
    cli
    CHECKM dword, abs got_count, 3
    ; MOV SS; the interrupt waits for the instruction after it
    mov al, 0x28
    out P_IRQ, al
    mov eax, D32
    pushfq
    or dword [rsp], 0x200
    popfq
h4: cli
    CHECKM qword, abs got_rip, h4             ; POPF has no shadow
    push 0
    sti
    mov al, 0x28
    mov ebx, D32
    cli
    out P_IRQ, al
    pushfq
    or dword [rsp], 0x200
    mov qword [abs var], 0
    cli
    ; NMI: blocked until IRET
    mov eax, on_nmi
    mov [abs IDT + 2 * 16], ax
    xor r14d, r14d
    out P_NMI, al
    nop
n1: nop
    CHECK r14d, e, 2                          ; the one sent in the handler came after its IRET
    CHECKM qword, abs var, 1                  ; and they did not nest
    ; NMI in a MOV SS shadow
    mov eax, D32
    xor r14d, r14d
    mov dword [abs var + 16], 1
    out P_NMI, al
    CHECK r14d, e, 1
    DONE
on_db:
    push rax
    mov rax, [rsp + 8]
    mov [abs rips + r15 * 8], rax
    mov rax, [rsp + 24]
    cmp r15d, 0
    jne .more
    mov [abs first_flags], rax
.more:
    inc r15d
    and r15d, 15
    pop rax
    iretq
on_int:
    pushfq
    pop rax
    test ah, 1
    jnz bad3
    iretq
on_nmi:
    inc r14d
    inc qword [abs var + 8]                   ; depth
    mov rax, [abs var + 8]
    cmp rax, [abs var]
    jbe .less
    mov [abs var], rax
.less:
    cmp dword [abs var + 16], 0
    jne .once
    cmp r14d, 1
    jne .once
    out P_NMI, al
    nop
    nop
.once:
    dec qword [abs var + 8]
    iretq
entry:
    pushfq
    pop rax
    test ah, 1
    jnz bad4
    o64 sysret
centry:
bad1: FAIL
bad2: FAIL
bad3: FAIL
bad4: FAIL
rips equ var + 0x100
first_flags equ var + 0x1f0
