; Virtual-8086 mode: entry, exit, IOPL sensitivity, and the VME and PVI extensions.
%include "sys.inc"
%include "prot.inc"
V   equ 0x10000              ; linear base of the 8086 code, segment 0x1000
    CASE PASS
    ENTER_PROT 1
    mov esi, v86_image
    mov edi, V
    mov ecx, v86_end - v86_image
    cld
    rep movsb
    mov byte [IDT + 0x31 * 8 + 5], 0xee
    mov word [0x21000], 0x202                 ; what v_popf pops

%macro GO_V86 2                               ; offset in the image, EFLAGS to add
    mov dword [%%ret_at], %%back
    push 0x5000                               ; GS FS DS ES SS ESP EFLAGS CS EIP
    push 0x4000
    push 0x3000
    push 0x2800
    push 0x2000
    push 0x1000
    push 0x20002 | (%2)
    push 0x1000
    push (%1) - v86_image
    mov eax, leave_v86
    mov [IDT + X_DB * 8], ax
    iretd
%%ret_at equ var + 36
%%back:
%endmacro
%macro EXPECT_V86 3                           ; vector, error, offset of the instruction
    CHECKM dword, got_vec, %1
    CHECKM dword, got_err, %2
    CHECKM dword, got_rip, %3 - v86_image
    CHECKM word, got_cs, 0x1000
    test byte [got_flags + 2], 2
    jz bad1
%endmacro
    ; IOPL 3: the program has IF to itself
    GO_V86 v_basic, 0x3000
    ; IOPL 0: CLI, STI, PUSHF, POPF, IRET, INT n are #GP
    mov dword [exp_resume], v_cli2 - v86_image
    GO_V86 v_cli, 0
    EXPECT_V86 X_GP, 0, v_cli
    mov dword [exp_resume], v_sti2 - v86_image
    GO_V86 v_sti, 0
    EXPECT_V86 X_GP, 0, v_sti
    mov dword [exp_resume], v_pushf2 - v86_image
    GO_V86 v_pushf, 0
    EXPECT_V86 X_GP, 0, v_pushf
    mov dword [exp_resume], v_popf2 - v86_image
    GO_V86 v_popf, 0
    EXPECT_V86 X_GP, 0, v_popf
    mov dword [exp_resume], v_iret2 - v86_image
    GO_V86 v_iret, 0
    EXPECT_V86 X_GP, 0, v_iret
    mov dword [exp_resume], v_int2 - v86_image
    GO_V86 v_int, 0
    EXPECT_V86 X_GP, 0, v_int
    ; HLT and protected instructions are refused at any IOPL
    mov dword [exp_resume], v_hlt2 - v86_image
    GO_V86 v_hlt, 0x3000
    EXPECT_V86 X_GP, 0, v_hlt
    mov dword [exp_resume], v_lldt2 - v86_image
    GO_V86 v_lldt, 0x3000
    EXPECT_V86 X_UD, 0, v_lldt
    ; segment wrap: limit 0xffff
    mov dword [exp_resume], v_lim2 - v86_image
    GO_V86 v_lim, 0x3000
    EXPECT_V86 X_GP, 0, v_lim
    ; I/O goes by the map, whatever IOPL is
    or byte [TSS + IOMAP + SCRATCH / 8], 2
    mov dword [exp_resume], v_io2 - v86_image
    GO_V86 v_iod, 0x3000
    EXPECT_V86 X_GP, 0, v_io
    and byte [TSS + IOMAP + SCRATCH / 8], ~2
    GO_V86 v_iod, 0
    ; segment registers are null in the handler (checked by leave_v86), and the frame holds the program's
    CHECKM dword, got_frame, STACK0 - 36
    ; an 8086 handler in a conforming or outer segment is refused
    DESC GDT + FREE, 0, 0xfffff, 0xc0fb
    mov word [IDT + 0x31 * 8 + 2], FREE
    mov dword [exp_resume], v_int31b - v86_image
    GO_V86 v_int31, 0x3000
    CHECKM dword, got_vec, X_GP
    CHECKM dword, got_err, FREE
    ; ---- VME ----
    mov eax, cr4
    or eax, 1
    mov cr4, eax
    mov dword [0x21 * 4], (0x1000 << 16)      ; IVT entry, offset below
    mov eax, v_vec21 - v86_image
    mov [0x21 * 4], ax
    ; the redirection map is the 32 bytes below the I/O map: make room by moving the I/O map up
    mov word [TSS + 0x66], 0x88
    mov edi, TSS + 0x68
    mov ecx, 8
    mov eax, -1
    rep stosd
    mov ecx, 64
    xor eax, eax
    rep stosd
    btr dword [TSS + 0x68 + 4], 1             ; INT 21h goes to the program
    ; CLI and STI change VIF; INT 21h is redirected with IOPL 0, IF image = VIF
    GO_V86 v_vme, 0x200
    CHECKM dword, var, 0x21
    ; INT of a set bit still is #GP at IOPL < 3
    mov dword [exp_resume], v_int2 - v86_image
    GO_V86 v_int, 0
    EXPECT_V86 X_GP, 0, v_int
    ; VIP: STI and POPF with IF are #GP
    mov dword [exp_resume], v_sti2 - v86_image
    GO_V86 v_sti, 0x100000
    EXPECT_V86 X_GP, 0, v_sti
    mov dword [exp_resume], v_popf2 - v86_image
    GO_V86 v_popf, 0x100000                   ; the image there has IF
    EXPECT_V86 X_GP, 0, v_popf
    ; 32-bit PUSHF stays #GP
    mov dword [exp_resume], v_pushfd2 - v86_image
    GO_V86 v_pushfd, 0
    EXPECT_V86 X_GP, 0, v_pushfd
    ; ---- PVI ----
    mov word [TSS + 0x66], 0x68
    mov edi, TSS + 0x68
    mov ecx, 10
    xor eax, eax
    rep stosd
    mov eax, cr4
    or eax, 2
    mov cr4, eax
    push D32U
    push STACK3
    push 0x202                                ; IOPL 0
    push C32U
    push pvi
    mov eax, D32U
    mov ds, ax
    iretd
pvi:
    sti
    pushf
    pop eax
    and eax, 0x80200
    CHECK eax, e, 0x80200
    cli
    pushf
    pop eax
    and eax, 0x80200
    CHECK eax, e, 0x200
    TO_KERNEL
    mov eax, cr4
    and eax, ~2
    mov cr4, eax
    push D32U
    push STACK3
    push 0x202
    push C32U
    push nopvi
    mov eax, D32U
    mov ds, ax
    iretd
nopvi:
    FAULT X_GP, 0, cli
    FAULT X_GP, 0, sti
    push 0x3002                               ; POPF in ring 3 leaves IOPL and IF
    popf
    pushf
    pop eax
    and eax, 0x3200
    CHECK eax, e, 0x200
    TO_KERNEL
    DONE

; INT1 from virtual-8086 mode
leave_v86:
    mov eax, ds
    CHECK eax, e, 0
    mov eax, gs
    CHECK eax, e, 0
    mov eax, D32
    mov ds, ax
    mov es, ax
    mov eax, ss
    CHECK eax, e, D32
    CHECK esp, e, STACK0 - 36
    CHECKM dword, esp + 16, 0x2000            ; SS
    CHECKM dword, esp + 20, 0x2800            ; ES
    CHECKM dword, esp + 24, 0x3000
    CHECKM dword, esp + 28, 0x4000
    CHECKM dword, esp + 32, 0x5000
    test byte [esp + 10], 2                   ; VM in the image
    jz bad1
    mov [got_frame], esp
    mov esp, STACK0
    jmp [var + 36]
bad1: FAIL

    bits 16
v86_image:
v_basic:
    cli
    pushf
    pop ax
    test ah, 2
    jnz v_fail
    and ah, 0x30
    cmp ah, 0x30
    jne v_fail
    sti
    pushf
    pop ax
    test ah, 2
    jz v_fail
    mov ax, cs
    cmp ax, 0x1000
    jne v_fail
    mov ax, gs
    cmp ax, 0x5000
    jne v_fail
    mov ax, 0x1234
    mov fs, ax                                ; any selector
    mov ax, 0x4000
    mov fs, ax
    push ax
    popf                                      ; cannot change IOPL
    pushf
    pop ax
    and ah, 0x30
    cmp ah, 0x30
    jne v_fail
    sti
    call 0x1000:v_far - v86_image
    pushf
    push cs
    push v_iretd - v86_image
    iret
v_far: retf
v_iretd:
    smsw ax
    test al, 1
    jz v_fail
    jmp v_out
v_fail:
    mov eax, 77777
    out RESULT, eax
    ; each of the rest is one instruction and its resume point; INT1 leaves whatever IOPL is
v_cli: cli
v_cli2: jmp v_out
v_sti: sti
v_sti2: jmp v_out
v_pushf: pushf
v_pushf2: jmp v_out
v_popf: popf
v_popf2: jmp v_out
v_iret: iret
v_iret2: jmp v_out
v_int: int 0x20
v_int2: jmp v_out
v_hlt: hlt
v_hlt2: jmp v_out
v_lldt: lldt ax
v_lldt2: jmp v_out
v_lim: mov ax, [0xffff]
v_lim2: jmp v_out
v_iod: mov dx, SCRATCH + 1
v_io: in al, dx
v_io2: jmp v_out
v_int31: int 0x31
v_int31b: jmp v_out
v_pushfd: pushfd
v_pushfd2: jmp v_out
v_out: db 0xf1
v_vme:
    cli
    pushf
    pop ax
    test ah, 2
    jnz v_fail                                ; PUSHF shows VIF
    and ah, 0x30
    cmp ah, 0x30
    jne v_fail                                ; and IOPL 3
    sti
    pushf
    pop ax
    test ah, 2
    jz v_fail
    int 0x21
    pushf
    pop ax
    test ah, 2
    jz v_fail                                 ; IRET brought VIF back
    jmp v_out
v_vec21:
    push bp
    mov bp, sp
    test byte [bp + 7], 2                     ; IF in the image is VIF
    jz v_fail
    test byte [bp + 7], 0x30
    jz v_fail
    pop bp
    pushf
    pop ax
    test ah, 2
    jnz v_fail                                ; VIF is clear in the handler
    xor ax, ax
    mov ds, ax
    mov dword [var], 0x21
    mov ax, 0x3000
    mov ds, ax
    iret
v86_end:
