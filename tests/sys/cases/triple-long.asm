; A triple fault in long mode: a stack that is not canonical and no IST.
%include "sys.inc"
%include "long.inc"
    CASE SHUTDOWN, HOST, 9
    ENTER_LONG
    mov al, 9
    out P_STAGE, al
    mov rsp, 0x800000000000
    ud2
    mov al, 10
    out P_STAGE, al
    FAIL
