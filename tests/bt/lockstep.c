#include "lockstep.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

void lock_open(struct lock *l, struct world *w)
{
    struct err e = {.msg = "no memory"};

    *l = (struct lock){.w = w, .c = w->vcpu[0].priv, .dry = dry_new()};
    l->log = memfd_create("report", MFD_CLOEXEC);
    if (!l->dry || l->log < 0 || check_new(&l->ck, &e) < 0) {
        fprintf(stderr, "lockstep: %s\n", e.msg);
        abort();
    }
    w->trace_log.fd = l->log;
}

void lock_close(struct lock *l)
{
    l->w->trace_log.fd = STDERR_FILENO;
    close(l->log);
    check_free(l->ck);
    dry_free(l->dry);
}

struct block *lock_block(struct lock *l)
{
    struct cpu *c = l->c;
    struct block *volatile b = NULL;

    sync_enter(c);
    if (!setjmp(c->fault))
        b = cache_lookup(c, BLOCK_MAX_INSNS);
    sync_leave(c);
    c->deliver = false;
    return b;
}

void lock_begin(struct lock *l, const struct block *b, unsigned from)
{
    sync_enter(l->c);
    dry_run(l->dry, l->c, b, from);
    check_begin(l->ck, l->c, b, from);
    sync_leave(l->c);
}

static const struct op *cut(struct cpu *c, const struct op *o)
{
    c->s.rip = op_rip(c, o);
    return NULL;
}

static void run(struct cpu *c, const struct block *b)
{
    c->g[G_RIP] = c->s.rip;
    for (const struct op *o = b->op; o;)
        o = o->fn(c, o);
}

void lock_run(struct lock *l, struct block *b, unsigned n)
{
    uint64_t key = l->c->key, gkey = l->c->gkey;
    struct op kept = b->op[n];

    sync_enter(l->c);
    /* Nothing matches in the jump cache: control comes back at the block's end. */
    l->c->key = l->c->gkey = ~0ull;
    l->c->mode_changed = false;
    b->op[n].fn = cut;
    if (!setjmp(l->c->fault))
        run(l->c, b);
    if (b->op[n].fn == cut)
        b->op[n].fn = kept.fn;
    l->c->key = key;
    l->c->gkey = gkey;
    sync_leave(l->c);
}

bool lock_end(struct lock *l)
{
    bool ok;

    sync_enter(l->c);
    ok = check_end(l->ck, l->c);
    sync_leave(l->c);
    return ok;
}
