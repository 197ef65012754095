/* Host code that all translations share: the way in, the ways out, and the calls to C. */
#include "engine/bt/bt.h"

static const uint8_t callee_saved[] = {RBX, RBP, R12, R13, R14, R15};

static void push(struct emit *e, unsigned r)
{
    emit_rex(e, 0, 0, 0, r);
    emit8(e, 0x50 | (r & 7));
}

static void pop(struct emit *e, unsigned r)
{
    emit_rex(e, 0, 0, 0, r);
    emit8(e, 0x58 | (r & 7));
}

static void save_guest(struct emit *e)
{
    for (unsigned r = 0; r < 16; r++)
        if (bt_home[r] != BT_SPILLED)
            emit_store_gs(e, BT_OFF_GPR(r), bt_home[r]);
}

static void load_guest(struct emit *e)
{
    for (unsigned r = 0; r < 16; r++)
        if (bt_home[r] != BT_SPILLED)
            emit_load_gs(e, bt_home[r], BT_OFF_GPR(r));
}

/* EFLAGS -> cpu.cc. Uses T2. */
static void park(struct emit *e)
{
    emit_mov_rr(e, BT_T2, RAX);
    emit8(e, 0x9f);                                        /* lahf */
    emit_bytes(e, (const uint8_t[]){0x0f, 0x90, 0xc0}, 3); /* seto al */
    emit_store_gs16(e, BT_OFF(cc), RAX);
    emit_mov_rr(e, RAX, BT_T2);
}

/* cpu.cc -> EFLAGS. Destroys RAX. */
static void unpark(struct emit *e)
{
    emit8(e, 0x65); /* movzx eax, word gs:[cc] */
    emit_bytes(e, (const uint8_t[]){0x0f, 0xb7, 0x04, 0x25}, 4);
    emit32(e, BT_OFF(cc));
    emit_bytes(e, (const uint8_t[]){0x04, 0x7f}, 2); /* add al, 0x7f: OF */
    emit8(e, 0x9e);                                  /* sahf */
}

/* Back to bt_enter's caller, who may use vector registers; guest registers are saved already. */
static void leave(struct emit *e, enum bt_exit why)
{
    emit_load_gs(e, RDI, BT_OFF(bt.self));
    emit_mov_ri64(e, RAX, (uintptr_t)bt_vec_leave);
    emit_call_r(e, RAX);
    emit_mov_ri32(e, RAX, why);
    emit_bytes(e, (const uint8_t[]){0x48, 0x83, 0xc4, 0x08}, 4); /* add rsp, 8 */
    for (unsigned k = ARRAY_LEN(callee_saved); k-- > 0;)
        pop(e, callee_saved[k]);
    emit8(e, 0xc3);
}

/* Everything of the guest to struct cpu, and the site. */
static void stop(struct emit *e, uint32_t at[2])
{
    at[BT_HOST] = emit_pos(e);
    park(e);
    at[BT_CC] = emit_pos(e);
    emit_store_gs32(e, BT_OFF(bt.site), BT_T1);
    save_guest(e);
}

/* Goes on at T1. */
static void go_on(struct emit *e)
{
    unpark(e);
    load_guest(e);
    emit_jmp_r(e, BT_T1);
}

static void make_exit(struct emit *e, enum bt_exit why, uint32_t at[2])
{
    stop(e, at);
    emit_store_gs(e, BT_OFF(s.rip), BT_T0); /* only for BT_EXIT_LOOKUP is this RIP */
    leave(e, why);
}

/* fn(cpu, site, address in T0) -> host address to go on at, or NULL: the interpreter's. */
static void make_refill(struct emit *e, uint32_t at[2])
{
    uint32_t none;

    stop(e, at);
    emit_mov_rr(e, RSI, BT_T1);
    emit_mov_rr(e, RDX, BT_T0);
    emit_load_gs(e, RDI, BT_OFF(bt.self));
    emit_mov_ri64(e, RAX, (uintptr_t)bt_refill);
    emit_call_r(e, RAX);
    emit_bytes(e, (const uint8_t[]){0x48, 0x85, 0xc0}, 3); /* test rax, rax */
    none = emit_jcc(e, CC_E, 0);
    emit_mov_rr(e, BT_T1, RAX);
    go_on(e);
    emit_fix_here(e, none);
    leave(e, BT_EXIT_INTERP);
}

static void make_help(struct emit *e, uint32_t at[2])
{
    uint32_t none;

    stop(e, at);
    emit_mov_rr(e, RSI, BT_T1);
    emit_load_gs(e, RDI, BT_OFF(bt.self));
    emit_call_r(e, BT_T0);
    emit_bytes(e, (const uint8_t[]){0x48, 0x85, 0xc0}, 3); /* test rax, rax */
    none = emit_jcc(e, CC_E, 0);
    emit_mov_rr(e, BT_T1, RAX);
    go_on(e);
    emit_fix_here(e, none);
    leave(e, BT_EXIT_INTERP);
}

static void make_vec(struct emit *e, uint32_t at[2])
{
    uint32_t none;

    stop(e, at);
    emit_store_gs(e, BT_OFF(bt.tmp), BT_T0);
    emit_mov_rr(e, RSI, BT_T1);
    emit_load_gs(e, RDI, BT_OFF(bt.self));
    emit_mov_ri64(e, RAX, (uintptr_t)bt_vec_enter);
    emit_call_r(e, RAX);
    emit_bytes(e, (const uint8_t[]){0x84, 0xc0}, 2); /* test al, al */
    none = emit_jcc(e, CC_E, 0);
    emit_load_gs(e, BT_T1, BT_OFF(bt.tmp));
    go_on(e);
    emit_fix_here(e, none);
    leave(e, BT_EXIT_INTERP);
}

static uint32_t make_enter(struct emit *e)
{
    uint32_t at = emit_pos(e);

    for (unsigned k = 0; k < ARRAY_LEN(callee_saved); k++)
        push(e, callee_saved[k]);
    emit_bytes(e, (const uint8_t[]){0x48, 0x83, 0xec, 0x08}, 4); /* sub rsp, 8 */
    emit_mov_rr(e, BT_T1, RSI);
    go_on(e);
    return at;
}

/* Site ~0: the branch that led here is not known, but it was to a canonical address. */
static uint32_t make_dead(struct emit *e, uint32_t lookup)
{
    uint32_t at = emit_pos(e);

    emit_mov_ri32(e, BT_T1, ~0u);
    emit_jmp(e, lookup);
    return at;
}

void bt_stubs_make(struct bt *bt)
{
    struct bt_stubs *s = &bt->stub;
    struct emit *e = &bt->e;

    s->enter = make_enter(e);
    make_exit(e, BT_EXIT_LINK, s->link);
    make_exit(e, BT_EXIT_LOOKUP, s->lookup);
    make_exit(e, BT_EXIT_INTERP, s->interp);
    make_exit(e, BT_EXIT_EVENT, s->event);
    make_refill(e, s->refill);
    make_vec(e, s->vec);
    make_help(e, s->help);
    for (unsigned k = 0; k < 2; k++)
        s->dead[k] = make_dead(e, s->lookup[k]);
}
