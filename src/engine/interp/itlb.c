#include "engine/interp/itlb.h"

#include <string.h>

#include "engine/interp/op.h"

void itlb_forget_page(struct itlb *t, uint64_t la)
{
    struct itlb_entry *x = itlb_slot(t, la);

    if (x->page == (la & ~PAGE_MASK))
        x->key = 0;
}

/* Where the note of the mapping of 2^shift bytes around la is, or would be: there is always a free one. */
static unsigned note_at(const struct itlb *t, uint64_t la, unsigned shift)
{
    uint64_t page = (la >> shift << shift) | shift;
    unsigned n = (unsigned)(page * 0x9e3779b97f4a7c15ull >> (64 - ITLB_NOTES_BITS));

    while (t->note[n].page && t->note[n].page != page)
        n = (n + 1) % ARRAY_LEN(t->note);
    return n;
}

bool itlb_noted_large(const struct itlb *t, uint64_t la)
{
    return t->note[note_at(t, la, 21)].page || t->note[note_at(t, la, 30)].page;
}

bool itlb_note(struct itlb *t, uint64_t la, const struct walk *w)
{
    struct itlb_note *n = &t->note[note_at(t, la, w->page_shift)];
    uint64_t gpa = w->gpa >> w->page_shift << w->page_shift;

    if (n->page)
        return n->gpa == gpa;
    if (t->nnotes == ITLB_NOTES_MAX) {
        t->partial = true;
        return true;
    }
    t->nnotes++;
    *n = (struct itlb_note){.page = (la >> w->page_shift << w->page_shift) | w->page_shift, .gpa = gpa};
    return true;
}

void itlb_forget_notes(struct itlb *t)
{
    if (t->nnotes)
        memset(t->note, 0, sizeof(t->note));
    t->nnotes = 0;
    t->partial = false;
}

bool itlb_unmoved(struct cpu *c)
{
    const struct itlb *t = &c->tlbs.code;

    if (t->partial)
        return false;
    for (unsigned n = 0; n < ARRAY_LEN(t->note); n++) {
        unsigned shift = t->note[n].page & PAGE_MASK;
        struct walk w;
        bool ok;

        if (!shift)
            continue;
        ok = paging_walk(&c->pg, physmap_p2m(c->vm->map), t->note[n].page & ~PAGE_MASK, ACCESS_EXEC, false, false, &w);
        if (unlikely(w.ncode))
            mem_walked(c, &w);
        if (!ok || !w.global || w.page_shift != shift || w.gpa != t->note[n].gpa)
            return false;
    }
    return true;
}
