/*
 * Runs in the guest while its engine changes: no thread on any CPU may see CLOCK_MONOTONIC before what another one has
 * seen, and numbers sent through two pipes, to and fro, all come back.
 *
 * usage: steady ROUNDS; prints "steady ok".
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { CPUS_MAX = 64 };

static _Atomic uint64_t latest; /* ns */
static _Atomic bool done;

static uint64_t now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void *watch(void *arg)
{
    uint64_t back = 0;
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET((int)(long)arg, &set);
    sched_setaffinity(0, sizeof(set), &set);
    while (!done) {
        uint64_t before = latest, t = now();

        if (t < before && before - t > back)
            back = before - t;
        while (before < t && !atomic_compare_exchange_weak(&latest, &before, t))
            ;
        usleep(50);
    }
    return (void *)back;
}

/* The child sends everything back, one more. */
static bool ping_pong(int rounds)
{
    int to[2], from[2], status, v, got;
    bool good = true;
    pid_t pid;

    if (pipe(to) || pipe(from))
        return false;
    pid = fork();
    if (pid == 0) {
        close(to[1]);
        while (read(to[0], &v, sizeof(v)) == sizeof(v)) {
            v++;
            if (write(from[1], &v, sizeof(v)) != sizeof(v))
                _exit(1);
        }
        _exit(0);
    }
    close(to[0]);
    for (v = 0; v < rounds && good; v++)
        good = write(to[1], &v, sizeof(v)) == sizeof(v) && read(from[0], &got, sizeof(got)) == sizeof(got) && got == v + 1;
    close(to[1]);
    return waitpid(pid, &status, 0) == pid && status == 0 && good;
}

int main(int argc, char **argv)
{
    long ncpu = sysconf(_SC_NPROCESSORS_ONLN);
    pthread_t t[CPUS_MAX];
    bool good = true;

    if (argc != 2 || ncpu > CPUS_MAX)
        return 2;
    for (long i = 0; i < ncpu; i++)
        if (pthread_create(&t[i], NULL, watch, (void *)i))
            return 2;
    if (!ping_pong(atoi(argv[1]))) {
        printf("what went through the pipes is wrong\n");
        good = false;
    }
    done = true;
    for (long i = 0; i < ncpu; i++) {
        void *back;

        pthread_join(t[i], &back);
        if (back) {
            printf("CPU %ld: time went back by %lu ns\n", i, (unsigned long)back);
            good = false;
        }
    }
    printf("steady %s\n", good ? "ok" : "failed");
    return good ? 0 : 1;
}
