#include "kit.h"

#include <pthread.h>
#include <unistd.h>

#define IDT 0x2000ull
#define TSS_IST1 (0x3000ull + 36)
#define HANDLERS 0xc000ull /* guest.c's, which halt: 4 bytes each */
#define HANG_S 200

struct thread {
    pthread_t id;
    struct world *w;
    unsigned cpu;
    enum stop stop;
    _Atomic bool done;
};

uint64_t kit_bytes(struct world *w, uint64_t gpa, const uint8_t *code, size_t n)
{
    world_write(w, gpa, code, n);
    return gpa + n;
}

void kit_gate(struct world *w, unsigned vector, uint64_t gpa, bool own_stack)
{
    guest_put64(w, TSS_IST1, KIT_IST_STACK);
    guest_put64(w, IDT + vector * 16,
                (gpa & 0xffff) | 8ull << 16 | (uint64_t)own_stack << 32 | 0x8eull << 40 |
                    (gpa >> 16 & 0xffff) << 48);
    guest_put64(w, IDT + vector * 16 + 8, gpa >> 32);
}

void kit_state(struct cpu_state *s, unsigned cpu, uint64_t rip, bool interrupts)
{
    guest_state(s);
    for (unsigned k = 0; k < 16; k++)
        s->gpr[k] = 0;
    s->gpr[RSP] = GUEST_STACK - cpu * 0x800;
    s->rip = rip;
    s->x87.fcw = 0x37f; /* as after FNINIT */
    s->x87.tag = 0;
    s->cr4 &= ~CR4_PGE;
    s->rflags = FL_R1 | (interrupts ? FL_IF : 0);
}

static void *thread_main(void *arg)
{
    struct thread *t = arg;

    t->stop = world_run(t->w, t->cpu, 0);
    atomic_store(&t->done, true);
    return NULL;
}

void kit_run_all(struct world *w, void (*meddle)(struct world *, void *), void *arg)
{
    struct thread t[WORLD_CPUS];
    bool running = meddle;

    alarm(HANG_S);
    for (unsigned k = 0; k < w->vm.nvcpu; k++) {
        t[k] = (struct thread){.w = w, .cpu = k};
        assert_int_equal(pthread_create(&t[k].id, NULL, thread_main, &t[k]), 0);
    }
    while (running) {
        meddle(w, arg);
        running = false;
        for (unsigned k = 0; k < w->vm.nvcpu; k++)
            running |= !atomic_load(&t[k].done);
    }
    for (unsigned k = 0; k < w->vm.nvcpu; k++)
        pthread_join(t[k].id, NULL);
    alarm(0);
    for (unsigned k = 0; k < w->vm.nvcpu; k++) {
        struct cpu_state s;

        world_get(w, k, &s);
        bool unexpected = s.rip > HANDLERS && s.rip <= HANDLERS + 1024;
        if (t[k].stop != STOP_HLT || unexpected)
            print_message("vcpu %u: stop %d rip %#llx cr2 %#llx\n", k, t[k].stop,
                          (unsigned long long)s.rip, (unsigned long long)s.cr2);
        assert_int_equal(t[k].stop, STOP_HLT);
        assert_false(unexpected);
    }
}

uint64_t kit_random(uint64_t *s)
{
    *s ^= *s << 13;
    *s ^= *s >> 7;
    *s ^= *s << 17;
    return *s;
}
