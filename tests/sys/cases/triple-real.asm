; A triple fault in real mode: IDT limit 0.
%include "sys.inc"
    CASE SHUTDOWN, HOST, 3
    mov al, 3
    out P_STAGE, al
    lidt [none]
    int3
    mov al, 4
    out P_STAGE, al
    hlt
none: dw 0
    dd 0
