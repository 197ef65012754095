; A kernel of a few instructions for the machine tests, entered by PVH: 32-bit, flat, no paging,
; EBX = start info. The first letter of the command line says what it does. It ends by the debug-
; exit port or by ACPI power-off; a wrong turn exits with 99.
bits 32
org 0x100000

PM1_CNT     equ 0x604
S5          equ (5 << 10) | (1 << 13)
DEBUG_EXIT  equ 0xf4
COM1        equ 0x3f8
LAPIC       equ 0xfee00000
IOAPIC      equ 0xfec00000
CMOS_COUNT  equ 0x50            ; a byte that nobody else uses; CMOS survives a reset
STACK       equ 0x90000
VECTOR      equ 0x40

start:
    mov esp, STACK
    lgdt [gdtr]
    jmp 0x08:.flat
.flat:
    mov ax, 0x10
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov ebp, ebx
    mov esi, [ebp + 24]         ; cmdline_paddr
    mov al, [esi]
    mov edi, table
.next:
    cmp byte [edi], 0
    je wrong
    cmp al, [edi]
    je .found
    add edi, 5
    jmp .next
.found:
    jmp [edi + 1]

%macro entry 2
    db %1
    dd %2
%endmacro
table:
    entry 'p', poweroff
    entry 't', triple
    entry 'l', forever
    entry 'h', halted
    entry 'd', debug_exit
    entry 'r', reset_cf9
    entry 'k', reset_i8042
    entry 'b', reboot_twice
    entry 's', serial
    entry 'i', pic_ticks
    entry 'x', ioapic_ticks
    entry 'a', apic_timer
    entry 'm', module
    entry 'c', kvm_clock
    entry 'w', wall_clock
    entry 'T', moved_tsc
    entry 'B', apic_base
    entry 'S', processors
    db 0

wrong:
    mov al, 99
exit_al:
    mov dx, DEBUG_EXIT
    out dx, al
    jmp $

poweroff:
    mov dx, PM1_CNT
    mov ax, S5
    out dx, ax
    jmp $

triple:
    lidt [no_idt]
    ud2

forever:
    jmp $

halted:
    cli
    hlt
    jmp halted

debug_exit:
    mov al, 42
    jmp exit_al

reset_cf9:
    mov dx, 0xcf9
    mov al, 0x0e
    out dx, al
    jmp $

reset_i8042:
    mov al, 0xfe
    out 0x64, al
    jmp $

; Counts its starts in CMOS; powers off at the third.
reboot_twice:
    mov al, CMOS_COUNT
    out 0x70, al
    in al, 0x71
    inc al
    mov ah, al
    mov al, CMOS_COUNT
    out 0x70, al
    mov al, ah
    out 0x71, al
    cmp byte [loaded], 0x5a     ; the kernel was loaded anew
    jne wrong
    mov byte [loaded], 0
    cmp ah, 3
    jne reset_cf9
    jmp poweroff

; Prints the command line and a newline.
serial:
    call print
    jmp poweroff

print:                          ; ESI: string
    mov dx, COM1 + 5
    in al, dx
    test al, 0x20
    jz print
    lodsb
    test al, al
    jz .end
    mov dx, COM1
    out dx, al
    jmp print
.end:
    mov al, 10
    mov dx, COM1
    out dx, al
    ret

; The initrd's first byte must be 'I' and its size 5000.
module:
    cmp dword [ebp + 12], 1
    jne wrong
    mov edi, [ebp + 16]
    cmp dword [edi + 8], 5000
    jne wrong
    mov edi, [edi]
    cmp byte [edi], 'I'
    jne wrong
    cmp byte [edi + 4999], 'I'
    jne wrong
    mov al, 7
    jmp exit_al

; ---- interrupts ----

%macro set_idt 1                ; handler of VECTOR
    mov eax, %1
    mov [idt + VECTOR * 8], ax
    mov word [idt + VECTOR * 8 + 2], 0x08
    mov word [idt + VECTOR * 8 + 4], 0x8e00
    shr eax, 16
    mov [idt + VECTOR * 8 + 6], ax
    lidt [idtr]
%endmacro

wait_ticks:                     ; halts until five interrupts came
    sti
    hlt
    cmp dword [ticks], 5
    jb wait_ticks
    cli
    mov al, 5
    jmp exit_al

pit_100hz:
    mov al, 0x34
    out 0x43, al
    mov al, 0x9c                ; 11932
    out 0x40, al
    mov al, 0x2e
    out 0x40, al
    ret

; PIT -> 8259 -> LINT0, as firmware leaves it: virtual wire.
pic_ticks:
    set_idt pic_handler
    mov al, 0x11
    out 0x20, al
    out 0xa0, al
    mov al, VECTOR
    out 0x21, al
    mov al, VECTOR + 8
    out 0xa1, al
    mov al, 4
    out 0x21, al
    mov al, 2
    out 0xa1, al
    mov al, 1
    out 0x21, al
    out 0xa1, al
    mov al, 0xfe
    out 0x21, al
    call pit_100hz
    jmp wait_ticks

pic_handler:
    push eax
    inc dword [ticks]
    mov al, 0x20
    out 0x20, al
    pop eax
    iret

; PIT -> I/O APIC pin 2 -> local APIC.
ioapic_ticks:
    set_idt apic_handler
    mov dword [IOAPIC], 0x10 + 2 * 2 + 1
    mov dword [IOAPIC + 0x10], 0        ; to APIC 0
    mov dword [IOAPIC], 0x10 + 2 * 2
    mov dword [IOAPIC + 0x10], VECTOR
    call pit_100hz
    jmp wait_ticks

; The local APIC's own timer, periodic.
apic_timer:
    set_idt apic_handler
    mov dword [LAPIC + 0x3e0], 0x3      ; divide by 16
    mov dword [LAPIC + 0x320], 0x20000 | VECTOR
    mov dword [LAPIC + 0x380], 200000
    jmp wait_ticks

apic_handler:
    inc dword [ticks]
    mov dword [LAPIC + 0xb0], 0
    iret

; ---- the KVM paravirtual clock ----

; Its version is even and not 0, the stable flag is set, and time goes forward with the TSC.
kvm_clock:
    mov ecx, 0x4b564d01
    mov eax, page + 1
    xor edx, edx
    wrmsr
    mov eax, [page]
    test eax, eax
    jz wrong
    test al, 1
    jnz wrong
    test byte [page + 29], 1
    jz wrong
    cmp dword [page + 24], 0
    je wrong
    rdtsc
    cmp edx, [page + 12]
    jb wrong
    ja .later
    cmp eax, [page + 8]
    jb wrong
.later:
    rdmsr
    cmp eax, page + 1
    jne wrong
    mov al, 9
    jmp exit_al

; The clock page and the TSC-deadline timer follow a TSC that the guest sets.
; A reserved bit of IA32_APIC_BASE: #GP, and without an IDT the end.
apic_base:
    lidt [no_idt]
    mov ecx, 0x1b
    rdmsr
    or edx, 1 << 18             ; bit 50
    wrmsr
    jmp wrong

moved_tsc:
    mov ecx, 0x4b564d01
    mov eax, page + 1
    xor edx, edx
    wrmsr
    mov ebx, [page]
    mov ecx, 0x10
    mov edx, 0x1000
    xor eax, eax
    wrmsr
    cmp [page], ebx             ; a new version
    je wrong
    cmp dword [page + 12], 0x1000
    jne wrong
    set_idt deadline_handler
    mov dword [LAPIC + 0x320], 0x40000 | VECTOR
    call arm
    jmp wait_ticks

arm:                            ; 2 ms from now; the TSC has 1 GHz
    rdtsc
    add eax, 2000000
    adc edx, 0
    mov ecx, 0x6e0
    wrmsr
    ret

deadline_handler:
    pusha
    inc dword [ticks]
    call arm
    mov dword [LAPIC + 0xb0], 0
    popa
    iret

; Seconds since 1970 at boot, plausible: after 2020.
wall_clock:
    mov ecx, 0x4b564d00
    mov eax, page
    xor edx, edx
    wrmsr
    cmp dword [page + 4], 1577836800
    jb wrong
    mov al, 10
    jmp exit_al

; ---- several processors ----

ICR         equ LAPIC + 0x300
ICR_HIGH    equ LAPIC + 0x310
OTHERS      equ 0xc0000         ; shorthand: all but self
INIT_IPI    equ 0x4500
SIPI        equ 0x4600
FIXED       equ 0x4000
NMI_IPI     equ 0x4400
TRAMPOLINE  equ 0x8000
AP_STACKS   equ 0x80000

%macro await 1                  ; until all application processors have counted there
%%again:
    pause
    mov eax, [%1]
    cmp eax, [aps]
    jne %%again
%endmacro

; Starts all others and interrupts them in every way, twice. The second letter of the command line is then done by the
; last of them; without one the status is 11.
processors:
    mov al, [esi + 1]
    mov [letter], al
    mov eax, 0xb                ; how many: CPUID knows
    mov ecx, 1
    cpuid
    dec ebx
    jz wrong
    mov [aps], ebx
    mov esi, trampoline
    mov edi, TRAMPOLINE
    mov ecx, trampoline_end - trampoline
    rep movsb
    set_idt ap_handler
    mov eax, nmi_handler
    mov [idt + 2 * 8], ax
    mov word [idt + 2 * 8 + 2], 0x08
    mov word [idt + 2 * 8 + 4], 0x8e00
    shr eax, 16
    mov [idt + 2 * 8 + 6], ax
    mov edi, 2
.round:
    xor eax, eax
    mov [alive], eax
    mov [interrupts], eax
    mov [nmis], eax
    mov dword [ICR], OTHERS | INIT_IPI
    mov dword [ICR], OTHERS | NMI_IPI   ; nobody takes this one
    mov dword [ICR], OTHERS | SIPI | TRAMPOLINE >> 12
    mov dword [ICR], OTHERS | SIPI | TRAMPOLINE >> 12
    await alive
    mov dword [ICR], OTHERS | FIXED | VECTOR
    await interrupts
    mov dword [interrupts], 0
    mov ebx, [aps]
.each:
    mov ecx, ebx
    shl ecx, 24
    mov [ICR_HIGH], ecx
    mov dword [ICR], FIXED | VECTOR
    dec ebx
    jnz .each
    await interrupts
    cmp dword [nmis], 0
    jne wrong
    mov dword [ICR], OTHERS | NMI_IPI
    await nmis
    dec edi
    jnz .round
    mov al, [letter]
    test al, al
    jz .done
    mov [command], al
    cmp al, 'l'                 ; everybody
    jne .last
    mov dword [ICR], OTHERS | FIXED | VECTOR
    jmp $
.last:
    mov ecx, [aps]
    shl ecx, 24
    mov [ICR_HIGH], ecx
    mov dword [ICR], FIXED | VECTOR
.wait:
    hlt
    jmp .wait
.done:
    mov al, 11
    jmp exit_al

ap_main:
    mov ax, 0x10
    mov ds, ax
    mov es, ax
    mov ss, ax
    lidt [idtr]
    mov dword [LAPIC + 0xf0], 0x1ff
    mov ecx, [LAPIC + 0x20]     ; its ID chooses its stack
    shr ecx, 24
    shl ecx, 8
    mov esp, AP_STACKS
    sub esp, ecx
    lock inc dword [alive]
    sti
.halt:
    hlt
    jmp .halt

ap_handler:
    cmp byte [command], 0
    jne .command
    mov dword [LAPIC + 0xb0], 0
    lock inc dword [interrupts]
    iret
.command:
    mov al, [command]
    cmp al, 't'
    je triple
    cmp al, 'p'
    je poweroff
    cmp al, 'b'
    je reboot_twice
    jmp $

nmi_handler:
    lock inc dword [nmis]
    iret

%include "trampoline.inc"
no_idt:
    dw 0
    dd 0
idtr:
    dw (VECTOR + 16) * 8 - 1
    dd idt
ticks:
    dd 0
aps:
    dd 0
alive:
    dd 0
interrupts:
    dd 0
nmis:
    dd 0
letter:
    db 0
command:
    db 0
loaded:
    db 0x5a
align 64
page:
    times 64 db 0
idt:
    times (VECTOR + 16) * 8 db 0
