/*
 * Runs in the guest, on all its CPUs: one thread changes mappings while the others use them, and
 * nobody may get through by a translation that is gone once the system call that changed it has
 * returned. Also the guest's memory order, and a lock that everybody wants.
 *
 * usage: shootdown ROUNDS; prints "shootdown ok".
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { CPUS_MAX = 256, PAGE = 4096 };

static struct {
    int ncpu, rounds;
    _Atomic unsigned *page; /* what is made read-only and writable again */
    _Atomic bool done;
    _Atomic unsigned faults, wrong;
    _Atomic unsigned long stores;
    pthread_mutex_t lock;
    unsigned long counted;  /* under lock */
    _Atomic int x, y, turn; /* store buffering */
    int seen_x, seen_y;
} g = {.lock = PTHREAD_MUTEX_INITIALIZER};

static _Thread_local sigjmp_buf out;

static void on_fault(int signo) { siglongjmp(out, 1); }

static void pin(int cpu)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof(set), &set)) {
        perror("sched_setaffinity");
        exit(1);
    }
}

/* Stores until the test ends; while the page is not writable, that faults. */
static void *storer(void *arg)
{
    int cpu = (int)(long)arg;

    pin(cpu);
    while (!g.done) {
        if (sigsetjmp(out, 1)) {
            g.faults++;
            sched_yield();
            continue;
        }
        g.page[cpu]++;
        g.stores++;
    }
    return NULL;
}

/* Behind the mprotect() that takes it away nobody's stores arrive any more. */
static void change_mappings(void)
{
    unsigned before[CPUS_MAX];

    for (int r = 0; r < g.rounds; r++) {
        unsigned long stores = g.stores;

        if (mprotect(g.page, PAGE, PROT_READ | PROT_WRITE))
            exit(1);
        while (g.stores < stores + 10 * (unsigned)g.ncpu)
            sched_yield();
        if (mprotect(g.page, PAGE, PROT_READ))
            exit(1);
        for (int i = 1; i < g.ncpu; i++)
            before[i] = g.page[i];
        for (int k = 0; k < 20; k++)
            sched_yield();
        for (int i = 1; i < g.ncpu; i++)
            g.wrong += g.page[i] != before[i];
    }
}

static void *counter(void *arg)
{
    pin((int)(long)arg);
    for (int r = 0; r < 100 * g.rounds; r++) {
        pthread_mutex_lock(&g.lock);
        g.counted++;
        pthread_mutex_unlock(&g.lock);
    }
    return NULL;
}

/* With MFENCE between its store and its load, at least one of two processors sees the other's
 * store. */
static void *other_side(void *arg)
{
    pin(1);
    for (int r = 1; r <= 100 * g.rounds; r++) {
        while (g.turn != r)
            __builtin_ia32_pause();
        *(volatile int *)&g.y = r;
        __asm__ volatile("mfence" : : : "memory");
        g.seen_x = *(volatile int *)&g.x;
        g.turn = -r;
    }
    return NULL;
}

static void store_buffering(void)
{
    for (int r = 1; r <= 100 * g.rounds; r++) {
        g.turn = r;
        *(volatile int *)&g.x = r;
        __asm__ volatile("mfence" : : : "memory");
        g.seen_y = *(volatile int *)&g.y;
        while (g.turn != -r)
            __builtin_ia32_pause();
        g.wrong += g.seen_x != r && g.seen_y != r;
    }
}

static void on_all(void *(*fn)(void *), void (*mine)(void), int last)
{
    pthread_t t[CPUS_MAX];

    for (int i = 1; i <= last; i++)
        if (pthread_create(&t[i], NULL, fn, (void *)(long)i))
            exit(1);
    mine();
    g.done = true;
    for (int i = 1; i <= last; i++)
        pthread_join(t[i], NULL);
}

static void nothing(void) {}

int main(int argc, char **argv)
{
    g.ncpu = (int)sysconf(_SC_NPROCESSORS_ONLN);
    g.rounds = argc > 1 ? atoi(argv[1]) : 100;
    g.page = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (g.page == MAP_FAILED || g.ncpu < 2 || g.ncpu > CPUS_MAX)
        return 1;
    signal(SIGSEGV, on_fault);
    pin(0);
    on_all(storer, change_mappings, g.ncpu - 1);
    on_all(counter, nothing, g.ncpu - 1);
    on_all(other_side, store_buffering, 1);
    if (!g.wrong && g.faults && g.counted == 100ul * (unsigned)g.rounds * (unsigned)(g.ncpu - 1)) {
        puts("shootdown ok");
        return 0;
    }
    printf("wrong %u, faults %u, counted %lu\n", g.wrong, g.faults, g.counted);
    return 1;
}
