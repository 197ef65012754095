; A triple fault: no usable #DF gate.
%include "sys.inc"
%include "prot.inc"
    CASE SHUTDOWN, HOST, 7
    ENTER_PROT
    mov al, 7
    out P_STAGE, al
    lidt [none]
    ud2
    mov al, 8
    out P_STAGE, al
    FAIL
none: dw 0
    dd 0
