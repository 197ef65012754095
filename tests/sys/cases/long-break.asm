; Debug registers: instruction, data and I/O breakpoints, RF.
%include "sys.inc"
%include "long.inc"
DATA equ 0x180100
    CASE PASS
    ENTER_LONG
    mov rax, cr4
    or eax, 8                                 ; DE
    mov cr4, rax
    ; instruction breakpoint: a fault, B0, RF not set in the image
    mov eax, b1
    mov dr0, rax
    mov eax, 2                                ; G0
    mov dr7, rax
    mov qword [abs exp_resume], 1
    mov dword [abs got_count], 0
    mov eax, on_db
    mov [abs IDT + X_DB * 16], ax
    xor r15d, r15d
b1: inc r15d
    CHECK r15d, e, 1
    CHECKM dword, abs got_count, 1            ; hit once: the handler returned with RF
    CHECKM qword, abs got_rip, b1
    test dword [abs got_flags], 0x10000
    jnz bad1
    mov rax, dr6
    and eax, 0xf
    CHECK eax, e, 1
    ; RF by IRET suppresses it for one instruction, and is gone then
    mov rax, rsp
    push D32
    push rax
    push 0x10002
    push C64
    push b1b
    mov eax, b1b
    mov dr0, rax
    mov dword [abs got_count], 0
    iretq
b1b: nop
    CHECKM dword, abs got_count, 0
    mov ecx, 2
b1c: mov eax, b1d
    mov dr0, rax
b1d: loop b1d                                 ; second round: RF is clear again
    CHECKM dword, abs got_count, 2
    ; data write, 4 bytes: trap after the instruction
    mov eax, DATA
    mov dr1, rax
    mov eax, 8 | (0xd << 20)                  ; G1, write, len 4
    mov dr7, rax
    mov dword [abs got_count], 0
    mov eax, [abs DATA]
    mov byte [abs DATA - 1], 1
    mov byte [abs DATA + 4], 1
    CHECKM dword, abs got_count, 0
    mov byte [abs DATA + 3], 1
d1: nop
    CHECKM dword, abs got_count, 1
    CHECKM qword, abs got_rip, d1
    mov qword [abs DATA - 6], 1               ; overlap
d2: CHECKM dword, abs got_count, 2
    CHECKM qword, abs got_rip, d2
    mov rax, dr6
    test al, 2
    jz bad2
    ; read or write, 8 bytes
    mov eax, DATA
    mov dr2, rax
    mov eax, 0x20 | (0xb << 24)
    mov dr7, rax
    mov dword [abs got_count], 0
    mov al, [abs DATA + 7]
    CHECKM dword, abs got_count, 1
    push qword [abs DATA]
    CHECKM dword, abs got_count, 2
    pop rax
    inc byte [abs DATA]
    CHECKM dword, abs got_count, 3
    ; REP MOVS: hits as it goes
    mov esi, DATA - 4
    mov edi, DATA + 0x100
    mov ecx, 16
    cld
    rep movsb
    cmp dword [abs got_count], 3
    jbe bad3
    CHECK ecx, e, 0
    ; MOV SS shadow holds a data trap off
    mov dword [abs got_count], 0
    mov word [abs DATA], D32
    mov dword [abs got_count], 0
    mov ss, [abs DATA]
ss1: nop
ss2: nop
    CHECKM dword, abs got_count, 1
    CHECKM qword, abs got_rip, ss2
    ; I/O
    mov eax, SCRATCH + 4
    mov dr3, rax
    mov eax, 0x80 | (0xe << 28)               ; G3, I/O, len 4
    mov dr7, rax
    mov dword [abs got_count], 0
    mov dx, SCRATCH + 8
    in al, dx
    CHECKM dword, abs got_count, 0
    mov dx, SCRATCH + 7
    in al, dx
io1: nop
    CHECKM dword, abs got_count, 1
    CHECKM qword, abs got_rip, io1
    mov dx, SCRATCH + 3
    out dx, ax
    CHECKM dword, abs got_count, 2
    mov rax, dr6
    test al, 8
    jz bad4
    ; disabled: nothing
    xor eax, eax
    mov dr7, rax
    mov dword [abs got_count], 0
    mov dx, SCRATCH + 4
    out dx, al
    mov al, [abs DATA]
    CHECKM dword, abs got_count, 0
    DONE
on_db:
    push rax
    inc dword [abs got_count]
    mov rax, [rsp + 8]
    mov [abs got_rip], rax
    mov rax, [rsp + 24]
    mov [abs got_flags], rax
    or dword [rsp + 24], 0x10000              ; RF
    pop rax
    iretq
bad1: FAIL
bad2: FAIL
bad3: FAIL
bad4: FAIL
