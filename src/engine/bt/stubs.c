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
            emit_store_cpu(e, BT_OFF_GPR(r), bt_home[r]);
}

static void load_guest(struct emit *e)
{
    for (unsigned r = 0; r < 16; r++)
        if (bt_home[r] != BT_SPILLED)
            emit_load_cpu(e, bt_home[r], BT_OFF_GPR(r));
}

/* EFLAGS -> cpu.cc. Uses T2. */
static void park(struct emit *e)
{
    emit_mov_rr(e, BT_T2, RAX);
    emit8(e, 0x9f);                                        /* lahf */
    emit_bytes(e, (const uint8_t[]){0x0f, 0x90, 0xc0}, 3); /* seto al */
    emit_store_cpu16(e, BT_OFF(cc), RAX);
    emit_mov_rr(e, RAX, BT_T2);
}

/* cpu.cc -> EFLAGS. Destroys RAX. */
static void unpark(struct emit *e)
{
    emit_movzx_cpu(e, 2, RAX, BT_OFF(cc));
    emit_bytes(e, (const uint8_t[]){0x04, 0x7f}, 2); /* add al, 0x7f: OF */
    emit8(e, 0x9e);                                  /* sahf */
}

/* Back to bt_enter's caller, who may use vector registers; guest registers are saved already, and the stack is C's. */
static void leave(struct emit *e, enum bt_exit why)
{
    emit_lea(e, 1, RDI, EMIT_CPU, REG_NONE, 0, -BT_CPU_AT);
    emit_mov_ri64(e, RAX, (uintptr_t)bt_vec_leave);
    emit_call_r(e, RAX);
    emit_mov_ri32(e, RAX, why);
    emit_bytes(e, (const uint8_t[]){0x48, 0x83, 0xc4, 0x08}, 4); /* add rsp, 8 */
    for (unsigned k = ARRAY_LEN(callee_saved); k-- > 0;)
        pop(e, callee_saved[k]);
    emit8(e, 0xc3);
}

/* Everything of the guest to struct cpu, and the site; onto C's stack. */
static void stop(struct emit *e, uint32_t at[2])
{
    at[BT_HOST] = emit_pos(e);
    park(e);
    at[BT_CC] = emit_pos(e);
    emit_store_cpu32(e, BT_OFF(bt.site), BT_T1);
    save_guest(e);
    emit_store_cpu(e, BT_OFF(bt.sp), RSP);
    emit_load_cpu(e, RSP, BT_OFF(bt.csp));
}

/* Goes on at T1. */
static void go_on(struct emit *e)
{
    unpark(e);
    load_guest(e);
    emit_load_cpu(e, RSP, BT_OFF(bt.sp));
    emit_jmp_r(e, BT_T1);
}

static void make_exit(struct emit *e, enum bt_exit why, uint32_t at[2])
{
    stop(e, at);
    emit_store_cpu(e, BT_OFF(s.rip), BT_T0); /* only for BT_EXIT_LOOKUP is this RIP */
    leave(e, why);
}

/* fn(cpu, site, address in T0) -> host address to go on at, or NULL: the interpreter's. */
static void make_refill(struct emit *e, uint32_t at[2])
{
    uint32_t none;

    stop(e, at);
    emit_mov_rr(e, RSI, BT_T1);
    emit_mov_rr(e, RDX, BT_T0);
    emit_lea(e, 1, RDI, EMIT_CPU, REG_NONE, 0, -BT_CPU_AT);
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
    emit_lea(e, 1, RDI, EMIT_CPU, REG_NONE, 0, -BT_CPU_AT);
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
    emit_store_cpu(e, BT_OFF(bt.tmp), BT_T0);
    emit_mov_rr(e, RSI, BT_T1);
    emit_lea(e, 1, RDI, EMIT_CPU, REG_NONE, 0, -BT_CPU_AT);
    emit_mov_ri64(e, RAX, (uintptr_t)bt_vec_enter);
    emit_call_r(e, RAX);
    emit_bytes(e, (const uint8_t[]){0x84, 0xc0}, 2); /* test al, al */
    none = emit_jcc(e, CC_E, 0);
    emit_load_cpu(e, BT_T1, BT_OFF(bt.tmp));
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
    emit_lea(e, 1, EMIT_CPU, RDI, REG_NONE, 0, BT_CPU_AT);
    emit_store_cpu(e, BT_OFF(bt.csp), RSP);
    emit_mov_rr(e, BT_T1, RSI);
    go_on(e);
    return at;
}

static uint32_t make_dead(struct emit *e, uint32_t lookup)
{
    uint32_t at = emit_pos(e);

    emit_store_cpu(e, BT_OFF(bt.dead), BT_T2);
    emit_mov_ri32(e, BT_T1, BT_FROM_DEAD);
    emit_jmp(e, lookup);
    return at;
}

/* ---- the jump table ---- */

#define HOLD(n) (BT_OFF(bt.hold) + 8 * (n))

_Static_assert(sizeof(struct bt_jump) == 16 && BT_JUMP_SHIFT == 2 && !offsetof(struct bt_jumps, e),
               "the lookup's arithmetic");

/* T2 = the table's entry for T0; returns the offset of the rel32 to where it has another RIP. EFLAGS are left alone.
 * T1 is used, and RAX is held. */
static uint32_t table_entry(struct emit *e)
{
    emit_store_cpu(e, HOLD(0), RAX);
    emit_load_cpu(e, BT_T2, BT_OFF(bt.jump));
    emit_rorx(e, BT_T1, BT_T0, BT_JUMP_ROR);
    emit_lea(e, 1, BT_T1, BT_T1, BT_T0, 0, 0);
    emit_pext_cpu(e, BT_T1, BT_T1, BT_OFF(bt.jump_mask));
    emit_lea(e, 1, BT_T1, BT_T1, BT_T1, 0, 0);
    emit_lea(e, 1, BT_T2, BT_T2, BT_T1, 3, 0);
    emit_load_cpu(e, RAX, BT_OFF(bt.bias));
    emit_lea(e, 1, RAX, RAX, BT_T0, 0, 0);
    emit_load(e, BT_T1, BT_T2, offsetof(struct bt_jump, nkey));
    emit_lea(e, 1, BT_T1, BT_T1, RAX, 0, 0);
    return emit_jmp_if_rcx(e);
}

/* mov [EMIT_CPU + T1 + disp], r */
static void store_ic(struct emit *e, unsigned r, int32_t disp)
{
    emit_rex(e, 1, r, BT_T1, EMIT_CPU);
    emit8(e, 0x89);
    emit_mem(e, r, EMIT_CPU, BT_T1, 0, disp);
}

/* The table's entry T2 into the inline cache at HOLD(1). T2 = its tblock. */
static void fill_ic(struct emit *e)
{
    emit_load_cpu(e, BT_T1, HOLD(1));
    emit_load(e, RAX, BT_T2, offsetof(struct bt_jump, nkey));
    store_ic(e, RAX, offsetof(struct bt_jump, nkey));
    emit_load(e, BT_T2, BT_T2, offsetof(struct bt_jump, t));
    store_ic(e, BT_T2, offsetof(struct bt_jump, t));
}

static uint32_t make_miss(struct emit *e, uint32_t lookup, enum bt_flags f)
{
    uint32_t at = emit_pos(e), none;

    emit_store_cpu32(e, BT_OFF(bt.site), BT_T1);
    emit_store_cpu(e, HOLD(1), BT_T2);
    none = table_entry(e);
    fill_ic(e);
    emit_load_cpu(e, RAX, HOLD(0));
    emit_jmp_m(e, BT_T2, (int32_t)(offsetof(struct tblock, entry) + sizeof(uint8_t *) * f));
    emit_fix_here(e, none);
    emit_load_cpu(e, RAX, HOLD(0));
    emit_op_cpu(e, 0x8b, 0, BT_T1, BT_OFF(bt.site));
    emit_jmp(e, lookup);
    return at;
}

/* After a return to where it was not to go. */
static void make_return(struct emit *e, const uint32_t lookup[2], bool ic)
{
    uint32_t none = table_entry(e), cc;

    if (ic)
        fill_ic(e);
    else
        emit_load(e, BT_T2, BT_T2, offsetof(struct bt_jump, t));
    emit_load_cpu(e, RAX, HOLD(0));
    emit_movzx_cpu(e, 1, BT_T1, BT_OFF(bt.ret) + BT_RET_FLAGS);
    emit_jmp_mx(e, BT_T2, BT_T1, offsetof(struct tblock, entry));
    emit_fix_here(e, none);
    emit_load_cpu(e, RAX, HOLD(0));
    emit_movzx_cpu(e, 1, BT_T1, BT_OFF(bt.ret) + BT_RET_FLAGS);
    cc = emit_jmp_if_rcx(e);
    for (enum bt_flags f = BT_HOST; f <= BT_CC; f++) {
        if (f == BT_CC)
            emit_fix_here(e, cc);
        emit_mov_ri32(e, BT_T1, BT_FROM_RETURN);
        emit_jmp(e, lookup[f]);
    }
}

static uint32_t make_back(struct emit *e, const uint32_t lookup[2])
{
    uint32_t at = emit_pos(e);

    emit_store_cpu(e, HOLD(1), BT_T2);
    make_return(e, lookup, true);
    return at;
}

static uint32_t make_bottom(struct emit *e, const uint32_t lookup[2])
{
    uint32_t at = emit_pos(e);

    emit_lea(e, 1, RSP, RSP, REG_NONE, 0, -8);
    make_return(e, lookup, false);
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
    for (enum bt_flags f = BT_HOST; f <= BT_CC; f++) {
        s->dead[f] = make_dead(e, s->lookup[f]);
        s->miss[f] = make_miss(e, s->lookup[f], f);
    }
    s->back = make_back(e, s->lookup);
    s->bottom = make_bottom(e, s->lookup);
}
