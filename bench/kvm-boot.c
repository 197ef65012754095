/*
 * Runs a virtual machine monitor until its guest says a word, and tells what that took: time, and the memory of the process
 * that is not the guest's. Static, for the rig of scripts/kvm-rig.
 *
 * usage: kvm-boot WORD GUEST-MAPPING PROGRAM [ARGUMENT]...
 *
 * Prints "boot_us N", "beyond_kib N" and "guest_kib N"; then it kills the program. GUEST-MAPPING is part of the name that
 * the guest's memory has in /proc/PID/smaps.
 */
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PATIENCE_MS 300000

static long now_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000L + t.tv_nsec / 1000;
}

static pid_t start(char **argv, int *out)
{
    int ends[2], null = open("/dev/null", O_RDONLY);

    if (null < 0 || pipe(ends))
        return -1;
    pid_t pid = fork();
    if (pid == 0) {
        dup2(null, STDIN_FILENO);
        dup2(ends[1], STDOUT_FILENO);
        close(ends[0]);
        execvp(argv[0], argv);
        _exit(127);
    }
    close(ends[1]);
    *out = ends[0];
    return pid;
}

/* What a pipe said last, as far as it matters for a word. */
static int wait_for(int fd, const char *word)
{
    static char text[8192];
    size_t have = 0;
    struct pollfd p = {.fd = fd, .events = POLLIN};

    for (;;) {
        if (have > sizeof(text) / 2) {
            memmove(text, text + have / 2, have - have / 2);
            have -= have / 2;
        }
        ssize_t n = poll(&p, 1, PATIENCE_MS) == 1 ? read(fd, text + have, sizeof(text) - 1 - have) : 0;
        if (n <= 0) {
            fprintf(stderr, "kvm-boot: the guest does not say '%s', but at the end: %s\n", word, text);
            return -1;
        }
        have += (size_t)n;
        text[have] = '\0';
        if (strstr(text, word))
            return 0;
    }
}

static int tell_memory(pid_t pid, const char *mapping)
{
    char line[512];
    long beyond = 0, guest = 0, kib;
    int is_guest = 0;

    snprintf(line, sizeof(line), "/proc/%d/smaps", (int)pid);
    FILE *f = fopen(line, "r");
    if (!f)
        return -1;
    while (fgets(line, sizeof(line), f)) {
        if (sscanf(line, "Pss: %ld kB", &kib) == 1)
            *(is_guest ? &guest : &beyond) += kib;
        else if (strchr(line, '-') && strchr(line, '-') < strchr(line, ' '))
            is_guest = strstr(line, mapping) != NULL;
    }
    fclose(f);
    printf("beyond_kib %ld\nguest_kib %ld\n", beyond, guest);
    return guest ? 0 : -1;
}

int main(int argc, char **argv)
{
    int out = -1, failed;

    if (argc < 4)
        return 2;
    long begin = now_us();
    pid_t pid = start(argv + 3, &out);
    if (pid < 0)
        return 1;
    failed = wait_for(out, argv[1]);
    printf("boot_us %ld\n", now_us() - begin);
    if (!failed)
        failed = tell_memory(pid, argv[2]);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    return failed ? 1 : 0;
}
