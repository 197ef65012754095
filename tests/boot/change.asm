; A guest whose processors all work, and check what they have, until the host says stop: registers of every kind, long
; string instructions, code that the host changes, single steps, timer interrupts, halts, and time. Entered by PVH: 32-bit,
; flat. Ends through the debug-exit port: 5, or which check failed.
bits 32
org 0x100000

DEBUG_EXIT  equ 0xf4
LAPIC       equ 0xfee00000
ICR         equ LAPIC + 0x300
OTHERS      equ 0xc0000         ; shorthand: all but self
TRAMPOLINE  equ 0x8000
VECTOR      equ 0x40
TF          equ 0x100

; Each processor's memory, by its number; its address is always in EBX.
CPU_MEMORY  equ 0x200000
CPU_SIZE    equ 0x40000
SOURCE      equ 0               ; 32 KiB
COPY        equ 0x10000
VECTORS     equ 0x20000         ; 8 registers of 64 bytes
VECTORS_NOW equ 0x20200
FPU         equ 0x20400         ; FNSAVE images
FPU_NOW     equ 0x20480
TICKS       equ 0x20500         ; dwords from here on
TRAPS       equ 0x20504
ROUNDS      equ 0x20508
VALUE       equ 0x2050c         ; the host's code returned this
TSC         equ 0x20510         ; qword
STACK       equ 0x3f000

    jmp start

; What the host reads and writes, at fixed places.
    align 16
stop:       dd 0                ; the host: to the end, and VALUE must be this
cpus:       dd 0                ; the host: how many there are
rounds:     dd 0                ; of processor 0
    align 16
changing:                       ; the host changes what it returns, upwards
    nop
    nop
    nop
    db 0xb8                     ; mov eax, imm32; aligned
value:      dd 0
    ret

%macro fail_if 2                ; condition, status
    j%+1 %%bad
    jmp %%good
%%bad:
    mov al, %2
    jmp exit_al
%%good:
%endmacro

exit_al:
    mov dx, DEBUG_EXIT
    out dx, al
    jmp $

start:
    lgdt [gdtr]
    jmp 0x08:.flat
.flat:
    mov ax, 0x10
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov esp, CPU_MEMORY
    mov edi, VECTOR
    mov eax, tick
    call set_gate
    mov edi, 1
    mov eax, trap
    call set_gate
    mov esi, trampoline
    mov edi, TRAMPOLINE
    mov ecx, trampoline_end - trampoline
    rep movsb
    mov dword [LAPIC + 0xf0], 0x1ff
    cmp dword [cpus], 1
    je work
    mov dword [ICR], OTHERS | 0x4500    ; INIT, SIPI, SIPI
    mov dword [ICR], OTHERS | 0x4600 | TRAMPOLINE >> 12
    mov dword [ICR], OTHERS | 0x4600 | TRAMPOLINE >> 12
    jmp work

set_gate:                       ; EDI: vector, EAX: handler
    mov [idt + edi * 8], ax
    mov dword [idt + edi * 8 + 2], 0x8e000000 | 0x08
    mov word [idt + edi * 8 + 4], 0x8e00
    shr eax, 16
    mov [idt + edi * 8 + 6], ax
    ret

work:
    mov ebx, 1
    lock xadd [started], ebx
    imul ebx, ebx, CPU_SIZE
    add ebx, CPU_MEMORY
    lea esp, [ebx + STACK]
    lidt [idtr]
    mov dword [LAPIC + 0xf0], 0x1ff
    call fill
    call load
    mov dword [LAPIC + 0x3e0], 0xb      ; divide by 1: ns
    mov dword [LAPIC + 0x320], 0x20000 | VECTOR
    mov dword [LAPIC + 0x380], 400000
    sti
.round:
    call check_vectors
    call check_fpu
    call check_strings
    call check_code
    call check_steps
    call check_time
    inc dword [ebx + ROUNDS]
    test dword [ebx + ROUNDS], 15
    jnz .on
    hlt
.on:
    mov eax, [ebx + ROUNDS]
    cmp ebx, CPU_MEMORY
    jne .other
    mov [rounds], eax
.other:
    cmp dword [stop], 0
    je .round
    hlt                         ; a tick comes
    cli
    cmp dword [ebx + TICKS], 0
    fail_if e, 30
    call changing
    cmp eax, [stop]
    fail_if ne, 31
    lock inc dword [finished]
    cmp ebx, CPU_MEMORY
    jne .sleep
.wait:
    pause
    mov eax, [finished]
    cmp eax, [cpus]
    jne .wait
    mov al, 5
    jmp exit_al
.sleep:
    hlt
    jmp .sleep

; Something everywhere, other for each processor.
fill:
    mov edi, ebx
    mov eax, ebx
    mov ecx, 0x20200 / 4
.next:
    imul eax, eax, 1664525
    add eax, 1013904223
    stosd
    loop .next
    rdtsc
    mov [ebx + TSC], eax
    mov [ebx + TSC + 4], edx
    ret

; Turns the vector units on and loads all registers. level: 0 SSE, 1 AVX, 2 AVX-512.
load:
    mov eax, cr0
    and eax, ~(1 << 2 | 1 << 3)
    or eax, 1 << 1 | 1 << 5
    mov cr0, eax
    mov eax, cr4
    or eax, 1 << 9 | 1 << 10 | 1 << 18
    mov cr4, eax
    push ebx
    mov eax, 1
    cpuid
    xor esi, esi
    bt ecx, 28
    adc esi, 0
    jz .level
    mov eax, 7
    xor ecx, ecx
    cpuid
    bt ebx, 16
    adc esi, 0
.level:
    pop ebx
    mov [level], esi
    xor ecx, ecx
    xor edx, edx
    mov eax, [xcr0 + esi * 4]
    xsetbv
    mov esi, [level]
    jmp [loads + esi * 4]
load_sse:
%assign n 0
%rep 8
    movups xmm%+n, [ebx + VECTORS + n * 64]
%assign n n + 1
%endrep
    jmp load_fpu
load_avx:
%assign n 0
%rep 8
    vmovups ymm%+n, [ebx + VECTORS + n * 64]
%assign n n + 1
%endrep
    jmp load_fpu
load_avx512:
%assign n 0
%rep 8
    vmovups zmm%+n, [ebx + VECTORS + n * 64]
%assign n n + 1
%endrep
    mov eax, 0x5a5a
    kmovw k3, eax
load_fpu:
    fninit
    fldpi
    fld1
    fldl2e
    fldln2
    fldz
    push dword 0x37b            ; another precision and rounding
    fldcw [esp]
    pop eax
    fnsave [ebx + FPU]
    frstor [ebx + FPU]
    ret

check_vectors:
    mov esi, [level]
    jmp [stores + esi * 4]
store_sse:
%assign n 0
%rep 8
    movups [ebx + VECTORS_NOW + n * 64], xmm%+n
%assign n n + 1
%endrep
    mov ebp, 16
    jmp compare_vectors
store_avx:
%assign n 0
%rep 8
    vmovups [ebx + VECTORS_NOW + n * 64], ymm%+n
%assign n n + 1
%endrep
    mov ebp, 32
    jmp compare_vectors
store_avx512:
%assign n 0
%rep 8
    vmovups [ebx + VECTORS_NOW + n * 64], zmm%+n
%assign n n + 1
%endrep
    mov ebp, 64
    kmovw eax, k3
    cmp eax, 0x5a5a
    fail_if ne, 20
compare_vectors:
    xor edx, edx
.next:
    lea esi, [ebx + VECTORS + edx]
    lea edi, [ebx + VECTORS_NOW + edx]
    mov ecx, ebp
    repe cmpsb
    fail_if ne, 21
    add edx, 64
    cmp edx, 8 * 64
    jne .next
    ret

check_fpu:
    fnsave [ebx + FPU_NOW]
    frstor [ebx + FPU_NOW]
    lea esi, [ebx + FPU]
    lea edi, [ebx + FPU_NOW]
    mov ecx, 108
    repe cmpsb
    fail_if ne, 22
    ret

; One after another, so that any boundary may be in the middle.
check_strings:
    mov esi, ebx
    lea edi, [ebx + COPY]
    xor eax, eax
    mov ecx, 0x8000
    rep stosb
    lea edi, [ebx + COPY]
    mov ecx, 0x8000
    rep movsb
    fail_if c, 23               ; cleared by XOR, and nothing above sets it
    mov esi, ebx
    lea edi, [ebx + COPY]
    mov ecx, 0x8000
    repe cmpsb
    fail_if ne, 24
    test ecx, ecx
    fail_if nz, 25
    ret

check_code:
    call changing
    cmp eax, [ebx + VALUE]
    fail_if b, 26
    mov [ebx + VALUE], eax
    ret

; Seven instructions begin with TF set.
check_steps:
    mov dword [ebx + TRAPS], 0
    pushfd
    or dword [esp], TF
    popfd
    nop
    nop
    mov eax, [ebx + TRAPS]
    nop
    pushfd
    and dword [esp], ~TF
    popfd
    cmp dword [ebx + TRAPS], 7
    fail_if ne, 27
    cmp eax, 2
    fail_if ne, 28
    ret

check_time:
    rdtsc
    cmp edx, [ebx + TSC + 4]
    fail_if b, 29
    ja .later
    cmp eax, [ebx + TSC]
    fail_if b, 29
.later:
    mov [ebx + TSC], eax
    mov [ebx + TSC + 4], edx
    ret

tick:
    inc dword [ebx + TICKS]
    mov dword [LAPIC + 0xb0], 0
    iret

trap:
    inc dword [ebx + TRAPS]
    iret

ap_main:
    mov ax, 0x10
    mov ds, ax
    mov es, ax
    mov ss, ax
    jmp work

%include "trampoline.inc"
idtr:
    dw (VECTOR + 1) * 8 - 1
    dd idt
started:    dd 0
finished:   dd 0
level:      dd 0
xcr0:       dd 0x3, 0x7, 0xe7
loads:      dd load_sse, load_avx, load_avx512
stores:     dd store_sse, store_avx, store_avx512
align 8
idt:
    times (VECTOR + 1) * 8 db 0
