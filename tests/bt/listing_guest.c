#include "listing_guest.h"

#include <stddef.h>

#include "kit.h"

/* ---- memory ---- */
GUEST_ASM(load_stack, "mov rax, [rsp + 0x18]");
GUEST_ASM(load, "mov rax, [rdi + 0x10]");
GUEST_ASM(load_before_xor, "mov rax, [rdi + 0x10]; xor edx, edx");
GUEST_ASM(load_index, "mov eax, [rbx + rsi * 4 + 8]");
GUEST_ASM(load_shared, "mov rax, [rdi]; mov rdx, [rdi + 0x18]");
GUEST_ASM(load_store_shared, "mov rax, [rdi]; mov [rdi + 8], rdx");
GUEST_ASM(store, "mov [rdi + 8], rax; mov dword ptr [rsi], 5");
GUEST_ASM(rmw, "add [rdi], rax; inc dword ptr [rdi + 0x20]");
GUEST_ASM(rip_relative, "mov rax, [rip + 0x2000]; lea rdx, [rip + 0x40]");
GUEST_ASM(fs_base, "mov rax, fs:[0x28]");
GUEST_ASM(cmpxchg, "lock cmpxchg [rdi], rsi");
GUEST_ASM(loop_slide, "movdqa xmm0, [rsi]; paddb xmm0, [rip + 0x1000]; movdqa [rdi - 16], xmm0; add rdi, 16; add rsi, 16; cmp rdi, rdx; .byte 0x75, -30");
GUEST_ASM(loop_index, "mov eax, [r9 + rcx * 4]; add eax, [rsp + 8]; mov [rdi], eax; inc rcx; cmp rcx, 64; .byte 0x75, -19");
GUEST_ASM(loop_table, "movzx eax, byte ptr [rsi]; inc rsi; xor edx, [rdi + rax * 4]; cmp rsi, rbx; .byte 0x75, -14");
GUEST_ASM(bit_string, "bts [rdi], rax; bts dword ptr [rdi], 3");

/* ---- the stack ---- */
GUEST_ASM(prologue, "push rbp; mov rbp, rsp; push r15; push rbx; sub rsp, 0x28; mov [rsp + 8], rdi");
GUEST_ASM(epilogue, "add rsp, 0x28; pop rbx; pop r15; pop rbp; ret");
GUEST_ASM(leave_ret, "leave; ret 16");
GUEST_ASM(push_mem, "push [rdi + 8]; push 5");

/* ---- flags ---- */
GUEST_ASM(flags_dead, "cmp rdi, rsi; mov rax, [rbx]; add rax, rdx");
GUEST_ASM(flags_cmp, "cmp rdi, rsi; mov rax, [rbx]; cmove rdx, rax");
GUEST_ASM(flags_add, "add edi, esi; mov rax, [rbx]; adc rax, 0");
GUEST_ASM(flags_sub, "sub rdi, 16; mov rax, [rbx]; sbb rax, rax");
GUEST_ASM(flags_neg, "neg dil; mov rax, [rbx]; sbb rax, rax");
GUEST_ASM(flags_logic, "and rdi, rsi; mov rax, [rbx]; sets dl");
GUEST_ASM(flags_changed, "cmp rdi, rsi; mov rdi, [rbx]; cmove rdx, rax");
GUEST_ASM(flags_inc, "inc rdi; mov rax, [rbx]; cmovc rdx, rax");
GUEST_ASM(flags_cmp_mem, "cmp [rdi], rsi; mov rax, [rbx]; cmovc rdx, rax");
GUEST_ASM(shift_cl, "shl rax, cl; sar edx, 3; mov [rdi], rax");

/* ---- control: short branches as bytes, for assemblers differ in when they take them ---- */
GUEST_ASM(entry, "nop; mov eax, 1; 2: jmp 2b + 0x1000");
GUEST_ASM(jcc_back, "inc rax; cmp rax, rdi; .byte 0x75, -8; mov edx, 1");
GUEST_ASM(jcc_forward, "cmp rax, rdi; .byte 0x72, 3; mov rdx, [rsi]; mov eax, edx");
GUEST_ASM(jcc_away, "test rax, rax; 2: js 2b + 0x3000; mov edx, 1");
GUEST_ASM(jmp_back, "inc rax; .byte 0xeb, -5");
GUEST_ASM(call_near, "2: call 2b + 0x200");
GUEST_ASM(call_far, "test eax, eax; 2: call 2b + 0x20000");
GUEST_ASM(ret, "xor eax, eax; ret");
GUEST_ASM(jmp_reg, "jmp rax");
GUEST_ASM(jmp_mem, "jmp [rbx + rax * 8]");
GUEST_ASM(call_mem, "call [rax + 0x18]");
GUEST_ASM(syscall, "mov eax, 39; syscall; mov rdx, rax");

/* ---- done by C ---- */
GUEST_ASM(rep_movs, "mov ecx, 8; rep movsq; mov rax, [rdi]");
GUEST_ASM(cli_sti, "cli; add [rdi], rax; sti");
GUEST_ASM(pushf_popf, "pushf; pop rax; push rax; popf");
GUEST_ASM(interp_between, "mov rax, [rdi]; rdmsr; mov rdx, [rdi]");

/* ---- registers ---- */
GUEST_ASM(spilled, "mov r9, r10; add r9, [r11 + 8]; lea r15, [r9 + rcx * 2 + 1]");
GUEST_ASM(swapped, "mov r9, r10; add r9, [r10 + 8]; add r10, r9; lea r9, [r9 + r10 * 2]; cmp r9, rdi; .byte 0x75, -19");
GUEST_ASM(high_byte, "mov ah, [rdi]; movzx edx, ch; add bh, al; mov dl, ah");
GUEST_ASM(div, "xor edx, edx; div rsi; idiv dword ptr [rdi]");
GUEST_ASM(mul_cx, "imul rcx, rax, 100; mul rcx; cqo");

/* ---- vectors ---- */
GUEST_ASM(sse, "movups xmm0, [rdi]; mulps xmm0, xmm1; paddd xmm0, [rsi]; movups [rdi + 0x10], xmm0");
GUEST_ASM(sse_flags, "comisd xmm0, xmm1; mov rax, [rdi]; cmova rdx, rax; cvttsd2si r9, xmm0");
GUEST_ASM(avx, "vmovdqu ymm1, [rsi]; vpxor ymm0, ymm0, ymm1; vmovdqu [rdi], ymm0; vzeroupper");
GUEST_ASM(avx512_masked, "kmovw k1, eax; vmovdqu32 zmm1{k1}{z}, [rsi]; vmovdqu32 [rdi + 0x40]{k1}, zmm1");
GUEST_ASM(vec_after_c, "movaps xmm0, xmm1; stosb; movaps xmm2, xmm3");

#define LIST(symbol, file, ...) \
    {.name = file, .code = symbol, .end = symbol##_end, .guards = __VA_ARGS__}

const struct snippet snippets[] = {
    LIST(load_stack, "load-stack", "a lone load through RSP: the remembered page of the stack answers"),
    LIST(load, "load", "a lone load through another base: one lookup; the flags of before are in cpu.cc"),
    LIST(load_before_xor, "load-before-xor", "though the flags are dead behind the load, its fault would show them: they stay in cpu.cc"),
    LIST(load_index, "load-index", "an index makes the address LEA's; the scaled form is not repeated"),
    LIST(load_shared, "load-shared", "two loads through one base share a lookup of the whole span"),
    LIST(load_store_shared, "load-store-shared", "a load whose lookup asks for the right to write, as the store shares it"),
    LIST(store, "store", "lookups for stores compare the write tag"),
    LIST(rmw, "rmw", "read-modify-write is the one host instruction on the translated address; both share a lookup"),
    LIST(rip_relative, "rip-relative", "RIP comes from bt.vpage, so that a block may run at several addresses"),
    LIST(fs_base, "fs-base", "segment bases are added after the offset"),
    LIST(cmpxchg, "cmpxchg", "locked operations are the host's own, and may fault there"),
    LIST(loop_slide, "loop-slide", "later rounds: one comparison for a base that moves, none for what is relative to RIP"),
    LIST(loop_index, "loop-index", "later rounds: the host's address of the base, which may have no home; the stack's page and a base that stands still are not looked at again"),
    LIST(loop_table, "loop-table", "later rounds: a table that an index of one byte cannot leave, unless it crosses a page's end"),
    LIST(bit_string, "bit-string", "BTS with a bit number in a register reaches beyond its operand: a helper's"),

    LIST(prologue, "prologue", "pushes and frame accesses share one look at the stack page, across changes of RSP by constants"),
    LIST(epilogue, "epilogue", "pops and the return address share one look at the stack page"),
    LIST(leave_ret, "leave-ret", "LEAVE goes through RBP, what follows through the new RSP"),
    LIST(push_mem, "push-mem", "two accesses of one instruction: the value waits in bt.value"),

    LIST(flags_dead, "flags-dead", "flags that are dead after the load are made in its cold path only"),
    LIST(flags_cmp, "flags-cmp", "CMP is repeated behind the lookup"),
    LIST(flags_add, "flags-add", "ADD is undone and redone in a scratch register"),
    LIST(flags_sub, "flags-sub", "SUB likewise"),
    LIST(flags_neg, "flags-neg", "NEG of the negated, then NEG again"),
    LIST(flags_logic, "flags-logic", "logic flags are a TEST of the result"),
    LIST(flags_changed, "flags-changed", "a recipe is used before the load overwrites a register that it needs"),
    LIST(flags_inc, "flags-inc", "INC without flags, whose recipe takes CF from cpu.cc; the two ways in", .entry = true),
    LIST(flags_cmp_mem, "flags-cmp-mem", "CMP with memory has no recipe: its flags are parked in cpu.cc before the next lookup"),
    LIST(shift_cl, "shift-cl", "RCX visits its place for shifts by CL, which may leave the flags alone"),

    LIST(entry, "entry", "the ways in with flags in EFLAGS and in cpu.cc, and the way out to another page", .entry = true),
    LIST(jcc_back, "jcc-back", "a loop: the poll is on the taken path only; CMP and Jcc stay together"),
    LIST(jcc_forward, "jcc-forward", "a forward Jcc is one linked host Jcc, and the block goes on behind it"),
    LIST(jcc_away, "jcc-away", "a Jcc to another page goes by an inline cache, with EFLAGS untouched"),
    LIST(jmp_back, "jmp-back", "a poll before the jump, then a link that takes the recipe of INC along; who does not want it finds the flags made"),
    LIST(call_near, "call-near", "a call in the page: return address by bt.vpage, then a link"),
    LIST(call_far, "call-far", "a call to another page goes by an inline cache, and has one for what is returned to; the recipe for the flags is used before"),
    LIST(ret, "ret", "RET reads the target and returns to behind some CALL, which compares"),
    LIST(jmp_reg, "jmp-reg", "an indirect jump: the lookup may destroy EFLAGS, for the flags are in cpu.cc"),
    LIST(jmp_mem, "jmp-mem", "a switch: one load, then an inline cache"),
    LIST(call_mem, "call-mem", "the target is read before the return address is written"),
    LIST(syscall, "syscall", "SYSCALL is the interpreter's and ends the block"),

    LIST(rep_movs, "rep-movs", "REP MOVS is a helper's; the code goes on behind it"),
    LIST(cli_sti, "cli-sti", "CLI and STI are helpers and end their blocks"),
    LIST(pushf_popf, "pushf-popf", "PUSHF and POPF are helpers; lookups are not shared across them"),
    LIST(interp_between, "interp-between", "an instruction of the interpreter's in the middle; nothing is shared across it"),

    LIST(spilled, "spilled", "registers without a home pass through scratch registers"),
    LIST(swapped, "swapped", "registers without a home take the place of others for the length of a loop, taken back in all cold code", .entry = true),
    LIST(high_byte, "high-byte", "AH beside an operand with REX, and CH, whose register is elsewhere, are turned"),
    LIST(div, "div", "division may fault on the host: its cold path is the interpreter"),
    LIST(mul_cx, "mul", "three-operand forms use RCX's home as it is"),

    LIST(sse, "sse", "one check of the vector level for the block, then the guest's instructions themselves", .entry = true),
    LIST(sse_flags, "sse-flags", "COMISD's flags have no recipe and are parked; a result without a home is stored", .entry = true),
    LIST(avx, "avx", "VEX forms are re-encoded with their memory operands", .entry = true),
    LIST(avx512_masked, "avx512-masked", "masked accesses keep their masks; the whole operand must be accessible", .entry = true),
    LIST(vec_after_c, "vec-after-c", "after a helper the vector level is checked again", .entry = true),
    {.name = NULL},
};
