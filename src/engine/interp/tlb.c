/* The soft TLB: contexts by PCID and the flushes between them. The hit path is inline in tlb.h's
 * users; refilling is mem.c's. */
#include "engine/interp/tlb.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/bt/jump.h"
#include "engine/interp/cache.h"

static void set_empty(struct tlb_set *s)
{
    for (unsigned i = 0; i < TLB_ENTRIES; i++) {
        s->e[i].rtag = s->e[i].wtag = tlb_empty(i);
        s->e[i].info = 0;
    }
}

static void ctx_empty(struct tlbs *t, struct tlb_context *x)
{
    for (unsigned k = 0; k < TLB_KINDS; k++)
        set_empty(&x->set[k]);
    x->large = x->large_global = 0;
    x->gen = ++t->next_gen;
}

int tlbs_init(struct tlbs *t, struct jump_cache *jc)
{
    memset(t, 0, sizeof(*t));
    t->jc = jc;
    t->ctx = calloc(TLB_CONTEXTS, sizeof(*t->ctx));
    if (!t->ctx)
        return -ENOMEM;
    for (unsigned i = 0; i < TLB_CONTEXTS; i++)
        ctx_empty(t, &t->ctx[i]);
    t->ctx[0].valid = true;
    tlbs_new_global(t);
    return 0;
}

void tlbs_fini(struct tlbs *t)
{
    free(t->ctx);
    t->ctx = NULL;
}

void tlbs_switch(struct tlbs *t, uint64_t cr3, uint16_t pcid, bool flush)
{
    struct tlb_context *x = NULL, *victim = &t->ctx[0];

    for (unsigned i = 0; i < TLB_CONTEXTS; i++) {
        struct tlb_context *y = &t->ctx[i];

        if (y->valid && y->pcid == pcid) {
            x = y;
            break;
        }
        if (!y->valid || (victim->valid && y->used < victim->used))
            victim = y;
    }
    if (!x) {
        x = victim;
        ctx_empty(t, x);
    } else if (flush) {
        /* Global entries survive: the kernel half is the same in every address space. */
        for (unsigned k = 0; k < TLB_KINDS; k++)
            for (unsigned i = 0; i < TLB_ENTRIES; i++) {
                struct tlb_entry *e = &x->set[k].e[i];

                if (!(e->info & TLB_INFO_GLOBAL))
                    e->rtag = e->wtag = tlb_empty(i);
            }
        x->large = x->large_global;
        x->gen = ++t->next_gen;
    }
    x->valid = true;
    x->pcid = pcid;
    x->cr3 = cr3;
    x->used = ++t->clock;
    t->cur = (unsigned)(x - t->ctx);
}

void tlbs_new_global(struct tlbs *t)
{
    t->global_gen = ++t->next_gen;
    itlb_forget_notes(&t->code);
}

void tlbs_flush(struct tlbs *t)
{
    tlbs_flush_data(t);
    tlbs_new_global(t);
}

void tlbs_flush_data(struct tlbs *t)
{
    for (unsigned i = 0; i < TLB_CONTEXTS; i++) {
        ctx_empty(t, &t->ctx[i]);
        t->ctx[i].valid = i == t->cur;
    }
}

void tlbs_flush_nonglobal(struct tlbs *t)
{
    struct tlb_context *x = &t->ctx[t->cur];

    tlbs_switch(t, x->cr3, x->pcid, true);
}

void tlbs_flush_pcid(struct tlbs *t, uint16_t pcid)
{
    for (unsigned i = 0; i < TLB_CONTEXTS; i++) {
        struct tlb_context *x = &t->ctx[i];

        if (!x->valid || x->pcid != pcid)
            continue;
        ctx_empty(t, x);
        x->valid = i == t->cur;
    }
}

static void jump_forget_row(struct jump_cache *jc, uint64_t la)
{
    struct jump_entry *row = jump_row(jc, la);

    for (unsigned i = 0; i < 1u << JUMP_ROW_BITS; i++)
        if (row[i].rip >> PAGE_SHIFT == la >> PAGE_SHIFT)
            row[i].key = 0;
}

/* Forgets where the code of one page was, and of an instruction that reaches into it. */
static void jump_forget_page(struct tlbs *t, uint64_t la)
{
    itlb_forget_page(&t->code, la);
    jump_forget_row(t->jc, la);
    jump_forget_row(t->jc, la - PAGE_SIZE);
}

/* Drops la from one context. A large mapping may have put up to 262,144 small entries in, so any entry
 * that came from one and lies within the same 1 GiB goes too (invalidating more is always allowed). */
static void ctx_flush_page(struct tlb_context *x, uint64_t la, bool global_only)
{
    uint64_t page = la & ~PAGE_MASK;
    bool large = (global_only ? x->large_global : x->large) & tlb_gib(la);

    for (unsigned k = 0; k < TLB_KINDS; k++) {
        struct tlb_entry *e = tlb_slot(&x->set[k], la);

        if (!global_only || (e->info & TLB_INFO_GLOBAL))
            e->rtag = e->wtag = tlb_empty(tlb_index(la));
        if (!large)
            continue;
        for (unsigned i = 0; i < TLB_ENTRIES; i++) {
            e = &x->set[k].e[i];
            if ((e->info & TLB_INFO_LARGE) && (((e->rtag ^ page) >> 30) == 0 ||
                                               ((e->wtag ^ page) >> 30) == 0))
                e->rtag = e->wtag = tlb_empty(i);
        }
    }
}

/* Code in a large mapping that is gone may be anywhere in it: the jump caches start afresh. */
static void forget_large_code(struct tlbs *t, uint64_t la)
{
    if (t->large_code & tlb_gib(la))
        tlbs_new_gens(t);
    else if (itlb_noted_large(&t->code, la))
        tlbs_new_global(t);
}

void tlbs_flush_page(struct tlbs *t, uint64_t la)
{
    jump_forget_page(t, la);
    if (t->bt)
        bt_jumps_forget(t->bt, t->cur, la);
    for (unsigned i = 0; i < TLB_CONTEXTS; i++)
        if (t->ctx[i].valid)
            ctx_flush_page(&t->ctx[i], la, i != t->cur);
    forget_large_code(t, la);
}

void tlbs_flush_page_pcid(struct tlbs *t, uint64_t la, uint16_t pcid)
{
    jump_forget_page(t, la);
    for (unsigned i = 0; i < TLB_CONTEXTS; i++)
        if (t->ctx[i].valid && t->ctx[i].pcid == pcid) {
            if (t->bt)
                bt_jumps_forget(t->bt, i, la);
            ctx_flush_page(&t->ctx[i], la, false);
        }
    forget_large_code(t, la);
}

void tlbs_new_gens(struct tlbs *t)
{
    for (unsigned i = 0; i < TLB_CONTEXTS; i++)
        t->ctx[i].gen = ++t->next_gen;
    tlbs_new_global(t);
    t->large_code = 0;
}

void tlbs_flush_writes(struct tlbs *t)
{
    for (unsigned c = 0; c < TLB_CONTEXTS; c++)
        for (unsigned k = 0; t->ctx[c].valid && k < TLB_KINDS; k++)
            for (unsigned i = 0; i < TLB_ENTRIES; i++)
                t->ctx[c].set[k].e[i].wtag = tlb_empty(i);
}

void tlbs_flush_write_gpa(struct tlbs *t, uint64_t gpa)
{
    for (unsigned c = 0; c < TLB_CONTEXTS; c++)
        for (unsigned k = 0; t->ctx[c].valid && k < TLB_KINDS; k++)
            for (unsigned i = 0; i < TLB_ENTRIES; i++) {
                struct tlb_entry *e = &t->ctx[c].set[k].e[i];

                if (e->info >> PAGE_SHIFT == gpa >> PAGE_SHIFT)
                    e->wtag = tlb_empty(i);
            }
}
