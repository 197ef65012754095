/* Dry steps: one instruction of any kind, or the delivery of an event (dry.h). */
#include <string.h>

#include "engine/interp/dry.h"

/* ---- fetching ---- */

static uint64_t code_la(const struct cpu *c, uint64_t rip)
{
    return c->bits == CPU_64 ? rip : (uint32_t)(c->s.seg[CS].base + rip);
}

/* The host's address of the code at offset rip of CS, and how many bytes may be read there; raises what a fetch does. */
static const uint8_t *code_at(struct cpu *c, uint64_t rip, unsigned *avail, bool *limited)
{
    const struct segment *cs = &c->s.seg[CS];
    struct p2m *p2m = physmap_p2m(c->vm->map);
    uint64_t la = code_la(c, rip), ent;
    struct walk w;

    *limited = false;
    if (c->bits == CPU_64 ? !is_canonical(rip) : rip > cs->limit)
        cpu_raise(c, X_GP, 0);
    *avail = MIN((unsigned)(PAGE_SIZE - (la & PAGE_MASK)), (unsigned)INSN_MAX_LEN);
    if (c->bits != CPU_64 && cs->limit - rip < *avail - 1) {
        *avail = (unsigned)(cs->limit - rip) + 1;
        *limited = true;
    }
    if (!paging_peek(&c->pg, p2m, la, ACCESS_EXEC, c->cpl == 3, false, &w))
        cpu_raise_pf(c, la, w.error);
    ent = p2m_get(p2m, w.gpa >> PAGE_SHIFT);
    if (!(ent & P2M_PRESENT))
        dry_refuse(c);
    return p2m_host(ent) + (la & PAGE_MASK);
}

/* Decodes the instruction at RIP; raises what that does. */
static void fetch(struct cpu *c, struct insn *i)
{
    uint8_t buf[INSN_MAX_LEN];
    unsigned n, more;
    bool limited;
    const uint8_t *host = code_at(c, c->s.rip, &n, &limited);
    int rc;

    memcpy(buf, host, n);
    rc = insn_decode(i, buf, n, c->bits);
    if (rc == INSN_E_TRUNC && !limited) {
        host = code_at(c, c->bits == CPU_64 ? c->s.rip + n : (uint32_t)(c->s.rip + n), &more, &limited);
        more = MIN(more, INSN_MAX_LEN - n);
        memcpy(buf + n, host, more);
        rc = insn_decode(i, buf, n + more, c->bits);
    }
    if (rc == INSN_E_UD)
        cpu_raise(c, X_UD, 0);
    if (rc != INSN_OK)
        cpu_raise(c, X_GP, 0); /* too long, or beyond the limit */
}

/* ---- running ---- */

static void one(struct dry *d, struct cpu *c)
{
    struct dry_point *p = &d->point[0];
    struct insn *i = &d->stepped;
    struct plain x;
    bool vector;

    fetch(c, i);
    vector = plain_prepare(c, &x, i);
    p->row = i->row;
    p->len = i->len;
    memcpy(p->bytes, i->raw, i->len);
    p->repeats = (i->row->flags & IF_REP) && (i->prefix & (PFX_REP | PFX_REPNE));
    c->next_rip = c->bits == CPU_64 ? c->s.rip + i->len : (uint32_t)(c->s.rip + i->len);
    c->s.rflags &= ~FL_RF;
    c->s.sti_shadow = c->s.mov_ss_shadow = 0;
    c->trap_taken = false;
    if (vector)
        x.simd.run(c, &x.insn, &x.simd);
    else
        x.fn(c, &x.insn);
    c->s.rip = c->next_rip;
}

/* What the instruction left half-way becomes. */
static void left(struct dry *d, struct cpu *c)
{
    if (c->deliver) {
        d->vector = c->event.vector;
        c->deliver = false;
        event_deliver(c);
    } else if (!d->point[0].repeats) { /* it waits for something */
        d->stop = DRY_REFUSED;
    }
}

static void enter(struct dry *d, struct cpu *c)
{
    sync_enter(c);
    memcpy(&d->start, &c->s, sizeof(d->start));
    d->start.rflags = cpu_flags(c);
    c->dry = d;
    c->tlb = c->no_tlb;
    c->op = &d->op;
    c->step = true; /* string instructions come back after each element */
    c->partly = false;
    d->stop = DRY_RUNNING;
    d->vector = DRY_NO_FAULT;
    d->n = 1;
    d->nvec = d->nwrites = d->elements = 0;
    dry_take(&d->point[0], c);
}

static void leave(struct dry *d, struct cpu *c)
{
    x87_sync(c);
    c->s.rflags = cpu_flags(c);
    if (c->shutdown || c->failed)
        d->stop = DRY_UNSURE;
    else if (d->stop == DRY_RUNNING)
        d->stop = DRY_DONE;
    memcpy(&d->end, &c->s, sizeof(d->end));
    dry_take(&d->point[1], c);
    d->point[1].writes = d->nwrites;
    d->point[1].undef = d->point[0].row && d->vector == DRY_NO_FAULT ? d->point[0].row->fl_undef : 0;
    c->deliver = c->in_delivery = c->shutdown = c->failed = false;
    c->dry = NULL;
    sync_leave(c);
}

void dry_set_state(struct cpu *c, const struct cpu_state *s)
{
    x87_sync(c);
    c->s = *s;
    c->cc = flags_to_cc(s->rflags);
    cpu_update_mode(c);
    memset(c->pg.pdpte, 0, sizeof(c->pg.pdpte));
    if (s->pdptes_valid)
        memcpy(c->pg.pdpte, s->pdpte, sizeof(s->pdpte));
    else if (c->pg.levels == 3)
        paging_load_pdptes(&c->pg, physmap_p2m(c->vm->map));
}

static void step(struct dry *d, struct cpu *c, const struct event *event)
{
    jmp_buf out;

    enter(d, c);
    d->out = &out;
    if (!setjmp(out)) {
        if (event) {
            c->event = *event;
            c->deliver = true;
            left(d, c);
        } else if (!setjmp(c->fault)) {
            one(d, c);
        } else {
            left(d, c);
        }
    }
    leave(d, c);
}

void dry_step(struct dry *d, struct cpu *c, const struct event *event)
{
    dry_forget(d);
    step(d, c, event);
}

void dry_step_again(struct dry *d, struct cpu *c, const struct event *event)
{
    struct cpu_state start = d->start;

    dry_set_state(c, &start);
    for (unsigned k = 0; k < d->nwords; k++)
        d->word[k].now = d->word[k].before;
    step(d, c, event);
}

uint8_t *dry_code(struct cpu *c)
{
    struct p2m *p2m = physmap_p2m(c->vm->map);
    uint64_t la = code_la(c, c->s.rip), ent;
    struct walk w;

    if (!paging_peek(&c->pg, p2m, la, ACCESS_EXEC, c->cpl == 3, false, &w))
        return NULL;
    ent = p2m_get(p2m, w.gpa >> PAGE_SHIFT);
    return ent & P2M_PRESENT && !(ent & P2M_READONLY) ? p2m_host(ent) + (la & PAGE_MASK) : NULL;
}
