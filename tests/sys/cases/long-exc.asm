; Exceptions and interrupts in 64-bit mode: gates, frames, error codes, IST, alignment.
%include "sys.inc"
%include "long.inc"
    CASE PASS
    ENTER_LONG
    ; classes of fault
    FAULT X_UD, 0, ud2
    xor edx, edx
    xor ecx, ecx
    FAULT X_DE, 0, div ecx
    mov rbx, 0x8000000000000000
    FAULT X_GP, 0, mov al, [rbx]
    mov rbp, rbx
    FAULT X_SS, 0, mov al, [rbp]
    mov dword [abs TSS + 36], DFSTACK         ; IST1, as this one needs another stack
    mov byte [abs IDT + X_SS * 16 + 4], 1
    mov rsp, rbx
    FAULT X_SS, 0, push rax
    CHECKM qword, abs got_rsp, rbx
    mov esp, STACK0
    mov byte [abs IDT + X_SS * 16 + 4], 0
    FAULT X_GP, 0, {o64 retf}                 ; nothing sane on the stack: CS = 0
    TRAP X_BP, int3
    ; the frame: SS:RSP always pushed, RSP aligned to 16 first
    mov rsp, 0x6ff3
    FAULT X_UD, 0, ud2
    CHECKM qword, abs got_rsp, 0x6ff3
    CHECKM qword, abs got_ss, D32
    CHECKM qword, abs got_frame, 0x6ff0 - 40
    CHECKM qword, abs got_cs, C64
    mov esp, STACK0
    ; with an error code the frame is 8 bytes longer
    FAULT X_GP, 0, mov al, [rbx]
    CHECKM qword, abs got_frame, STACK0 - 48
    ; RF is set in the image for faults, not for traps
    FAULT X_UD, 0, ud2
    test dword [abs got_flags], 0x10000
    jz f1
    TRAP X_BP, int3
    test dword [abs got_flags], 0x10000
    jnz f1
    ; selector errors
    mov ax, 0x3f8
    FAULT X_GP, 0x3f8, mov ds, ax             ; empty descriptor: not a segment
    mov ax, 0x1000
    FAULT X_GP, 0x1000, mov ds, ax            ; outside the table
    mov ax, 0x1004
    FAULT X_GP, 0x1004, mov ds, ax            ; no LDT
    DESC GDT + FREE, 0, 0xfffff, 0xc013       ; not present
    mov ax, FREE
    FAULT X_NP, FREE, mov ds, ax
    FAULT X_SS, FREE, mov ss, ax
    mov ax, C64
    FAULT X_GP, C64, mov ss, ax
    FAULT X_UD, 0, {db 0x8e, 0xc8}            ; MOV CS
    ; null SS: allowed below CPL 3 with RPL = CPL
    xor eax, eax
    mov ss, ax
    FAULT X_UD, 0, ud2
    CHECKM qword, abs got_ss, 0
    mov ax, 3
    FAULT X_GP, 0, mov ss, ax
    mov ax, D32
    mov ss, ax
    ; IDT: beyond the limit, empty, not present, wrong type
    FAULT X_GP, 0x80 * 8 + 2, int 0x80
    mov qword [abs IDT + 0x28 * 16], 0
    FAULT X_GP, 0x28 * 8 + 2, int 0x28
    mov byte [abs IDT + 0x29 * 16 + 5], 0x0e
    FAULT X_NP, 0x29 * 8 + 2, int 0x29
    mov byte [abs IDT + 0x29 * 16 + 5], 0x85  ; task gate
    FAULT X_GP, 0x29 * 8 + 2, int 0x29
    mov byte [abs IDT + 0x29 * 16 + 5], 0x8e
    mov word [abs IDT + 0x29 * 16 + 2], C32   ; handlers must be 64-bit code
    FAULT X_GP, C32, int 0x29
    mov word [abs IDT + 0x29 * 16 + 2], 0
    FAULT X_GP, 0, int 0x29
    mov word [abs IDT + 0x29 * 16 + 2], D32
    FAULT X_GP, D32, int 0x29
    mov word [abs IDT + 0x29 * 16 + 2], C64
    mov dword [abs IDT + 0x29 * 16 + 8], 0x8000    ; offset not canonical
    FAULT X_GP, 0, int 0x29
    mov dword [abs IDT + 0x29 * 16 + 8], 0
    ; a fault in the delivery of a hardware event has EXT set: #UD through a bad gate
    mov word [abs IDT + X_UD * 16 + 2], 0x3f8
    mov qword [abs exp_resume], after_ext
    ud2
    FAIL
after_ext:
    CHECKM dword, abs got_vec, X_GP
    CHECKM dword, abs got_err, 0x3f9
    mov word [abs IDT + X_UD * 16 + 2], C64
    ; INT1 as well
    mov word [abs IDT + X_DB * 16 + 2], 0x3f8
    FAULT X_GP, 0x3f9, int1
    mov word [abs IDT + X_DB * 16 + 2], C64
    TRAP X_DB, int1
    ; IST
    mov dword [abs TSS + 36 + 8], DFSTACK     ; IST2
    mov byte [abs IDT + X_UD * 16 + 4], 2
    FAULT X_UD, 0, ud2
    CHECKM qword, abs got_frame, DFSTACK - 40
    CHECKM qword, abs got_rsp, STACK0
    CHECKM qword, abs got_ss, D32             ; same privilege: SS stays
    mov byte [abs IDT + X_UD * 16 + 4], 0
    ; trap gates leave IF alone, interrupt gates clear it
    sti
    nop
    mov byte [abs IDT + 0x20 * 16 + 5], 0x8f
    lea rax, [rel trapgate]
    mov [abs IDT + 0x20 * 16], ax
    int 0x20
trapgate:
    pushfq
    pop rax
    test ah, 2
    jz f1
    mov byte [abs IDT + 0x20 * 16 + 5], 0x8e
    lea rax, [rel intgate]
    mov [abs IDT + 0x20 * 16], ax
    int 0x20
intgate:
    pushfq
    pop rax
    test ah, 2
    jnz f1
    mov esp, STACK0
    ; TF, NT and AC: the handler starts without TF and NT
    pushfq
    or dword [rsp], 0x4000                    ; NT
    popfq
    lea rax, [rel ntgate]
    mov [abs IDT + 0x20 * 16], ax
    int 0x20
ntgate:
    pushfq
    pop rax
    test ah, 0x40
    jnz f1
    test dword [rsp + 16], 0x4000             ; but it is in the image
    jz f1
    ; IRET with NT set is #GP in long mode
    mov esp, STACK0
    pushfq
    or dword [rsp], 0x4000
    popfq
    mov qword [abs exp_resume], 1
    FAULT X_GP, 0, iretq
    pushfq
    and dword [rsp], ~0x4000
    popfq
    ; INTO and the like do not exist
    FAULT X_UD, 0, {db 0xce}
    FAULT X_UD, 0, {db 0x06}
    ; HLT wakes by an interrupt
    mov al, 0x2a
    out P_HALT, al
    sti
    hlt
    cli
    CHECKM dword, abs got_vec, 0x2a
    ; VMCALL answers, or is #UD
    mov eax, 1
    vmmcall
    CHECK eax, e, 42
    xor eax, eax
    FAULT X_UD, 0, vmmcall
    DONE
f1: FAIL
