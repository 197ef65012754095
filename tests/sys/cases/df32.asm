; Double faults: which pairs make one, through a task gate and through an interrupt gate.
%include "sys.inc"
%include "prot.inc"
TB  equ FREE
TSSB equ 0x180000
    CASE PASS
    ENTER_PROT 1
    ; #GP whose gate is not present: contributory in contributory
    mov byte [IDT + X_GP * 8 + 5], 0x0e
    mov dword [exp_resume], a1
    mov eax, GDT_LIMIT + 1
i1: mov es, ax
    FAIL
a1: CHECKM dword, got_vec, X_DF
    CHECKM dword, got_err, 0
    CHECKM dword, got_rip, i1
    ; #DE and #NP likewise
    mov byte [IDT + X_DE * 8 + 5], 0x0e
    mov dword [exp_resume], a2
    xor ecx, ecx
    div ecx
    FAIL
a2: CHECKM dword, got_vec, X_DF
    mov byte [IDT + X_DE * 8 + 5], 0x8e
    ; #UD is benign: its bad gate gives #NP, and #NP is delivered
    mov byte [IDT + X_UD * 8 + 5], 0x0e
    mov dword [exp_resume], a3
i3: ud2
    FAIL
a3: CHECKM dword, got_vec, X_NP
    CHECKM dword, got_err, X_UD * 8 + 3
    CHECKM dword, got_rip, i3
    mov byte [IDT + X_UD * 8 + 5], 0x8e
    ; #PF during #PF, and #GP during #PF
    MAP 0x1a0000, 0
    mov byte [IDT + X_PF * 8 + 5], 0x0e
    mov dword [exp_resume], a4
i4: mov al, [0x1a0000]
    FAIL
a4: CHECKM dword, got_vec, X_DF
    CHECKM dword, got_rip, i4
    CHECKM dword, got_cr2, 0x1a0000
    mov byte [IDT + X_PF * 8 + 5], 0x8e
    mov byte [IDT + X_GP * 8 + 5], 0x8e
    ; a stack that cannot be written: #PF during #GP on the push, with the #PF handler on another stack by task gate
    mov edi, TSSB
    mov ecx, 26
    xor eax, eax
    rep stosd
    mov eax, cr3
    mov [TSSB + 0x1c], eax
    mov dword [TSSB + 0x20], pf_task
    mov dword [TSSB + 0x38], 0x6800
    mov word [TSSB + 0x48], D32
    mov word [TSSB + 0x4c], C32
    mov word [TSSB + 0x50], D32
    mov word [TSSB + 0x54], D32
    DESC GDT + TB, TSSB, 0x67, 0x0089
    mov dword [IDT + X_PF * 8], TB << 16
    mov dword [IDT + X_PF * 8 + 4], 0x8500
    MAP 0x1a0000, 0
    mov eax, cr3
    mov [TSS + 0x1c], eax
    mov dword [var], 0
    mov esp, 0x1a0100
    mov eax, GDT_LIMIT + 1
i5: mov es, ax
a5: mov esp, STACK0
    CHECKM dword, var, 2                      ; error code: write, not present
    CHECKM dword, TSS + 0x20, a5
    mov eax, cr2
    cmp eax, 0x1a0000
    jb bad1
    cmp eax, 0x1a0100
    jae bad1
    ; #DF through a task gate, when the stack is useless
    mov eax, [IDT + X_UD * 8]
    mov word [IDT + X_PF * 8 + 4], 0x0e00
    mov dword [IDT + X_DF * 8], TB << 16
    mov dword [IDT + X_DF * 8 + 4], 0x8500
    mov dword [TSSB + 0x20], df_task
    mov dword [TSSB + 0x38], 0x6800
    mov dword [var], -1
    mov esp, 0x1a0100
i6: ud2                                       ; #UD -> #PF on the push -> #NP on its gate -> #DF
a6: mov esp, STACK0
    CHECKM dword, var, 0
    DONE
pf_task:
    pop dword [var]
    mov dword [TSS + 0x20], a5
    iretd
df_task:
    pop dword [var]
    CHECKM dword, TSS + 0x20, i6
    mov dword [TSS + 0x20], a6
    iretd
bad1: FAIL
