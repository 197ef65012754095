/*
 * The host side of a serial port: pipes, files, terminals, escapes, and hosts that block, hang up
 * or end. The last tests put the UART in front of it, with a thread as the guest.
 */
#include "fake.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "back/chardev.h"
#include "base/loop.h"
#include "base/util.h"
#include "dev/platform/uart.h"

#define PASTE 100000u

struct fixture {
    struct loop *loop;
    struct log log;
    struct chardev *chr;
    int in[2], out[2]; /* pipes: we write in[1] and read out[0] */
    /* What the front saw. */
    uint8_t *got;
    size_t len, want;   /* the loop stops when len reaches want */
    size_t per_receive; /* takes so many at once ... */
    size_t quota;       /* ... and so many in all, until `refill` sets it again */
    unsigned writables, leaves;
};

static void stop(void *arg) { loop_stop(((struct fixture *)arg)->loop); }

static void refill(void *arg)
{
    struct fixture *f = arg;

    f->quota = 16;
    chardev_accept_input(f->chr);
}

static size_t on_receive(void *arg, const uint8_t *p, size_t n)
{
    struct fixture *f = arg;
    size_t took = MIN(MIN(n, f->per_receive), f->quota);

    assert_true(n > 0);
    memcpy(f->got + f->len, p, took);
    f->len += took;
    f->quota -= took;
    if (f->len >= f->want)
        loop_stop(f->loop);
    else if (f->quota == 0 && f->want)
        loop_post(f->loop, refill, f);
    return took;
}

static void on_writable(void *arg)
{
    struct fixture *f = arg;

    f->writables++;
    loop_stop(f->loop);
}

static void on_leave(void *arg)
{
    struct fixture *f = arg;

    f->leaves++;
    loop_stop(f->loop);
}

static struct chardev_host host_of(struct fixture *f)
{
    return (struct chardev_host){.loop = f->loop, .log = &f->log, .leave = on_leave, .arg = f};
}

static void attach(struct fixture *f)
{
    chardev_attach(f->chr, &(struct chardev_front){
                                .receive = on_receive, .writable = on_writable, .arg = f});
}

static void open_pipes(struct fixture *f)
{
    struct chardev_host host = host_of(f);

    assert_int_equal(chardev_open_fds(&f->chr, f->in[0], f->out[1], &host, NULL), 0);
    attach(f);
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    alarm(60); /* a hang is a failure */
    f->got = malloc(4 * PASTE);
    f->per_receive = f->quota = SIZE_MAX;
    log_init(&f->log, LOG_ERROR, STDERR_FILENO);
    if (loop_new(&f->loop, NULL) || pipe(f->in) || pipe(f->out))
        return -1;
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    chardev_free(f->chr);
    loop_free(f->loop);
    for (int i = 0; i < 2; i++) {
        close(f->in[i]);
        close(f->out[i]);
    }
    free(f->got);
    free(f);
    alarm(0);
    return 0;
}

static void run(struct fixture *f) { assert_int_equal(loop_run(f->loop, NULL), 0); }

/* Lets the loop handle what is there already. */
static void turn(struct fixture *f)
{
    for (int i = 0; i < 4; i++) {
        assert_int_equal(loop_post(f->loop, stop, f), 0);
        run(f);
    }
}

static void fill(uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        p[i] = (uint8_t)(' ' + i % 89 + i / 1000 % 5);
}

static void test_names(void **state)
{
    struct fixture *f = *state;
    struct chardev_host host = host_of(f);
    static const char *const bad[] = {"", "std", "file", "file:", "stdio2", "NONE"};
    struct err e;

    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        e.msg[0] = '\0';
        assert_int_equal(chardev_open(&f->chr, bad[i], &host, &e), -EINVAL);
        assert_non_null(strstr(e.msg, bad[i]));
    }
    assert_int_equal(chardev_open(&f->chr, "file:/nonexistent/x", &host, &e), -ENOENT);
    assert_non_null(strstr(e.msg, "/nonexistent/x"));
    assert_null(f->chr);
}

static void test_none(void **state)
{
    struct fixture *f = *state;
    struct chardev_host host = host_of(f);

    assert_int_equal(chardev_open(&f->chr, "none", &host, NULL), 0);
    attach(f);
    assert_int_equal(chardev_write(f->chr, (const uint8_t *)"abc", 3), 3);
    chardev_accept_input(f->chr);
    assert_int_equal(chardev_flush(f->chr, 0), 0);
}

static void test_file(void **state)
{
    struct fixture *f = *state;
    struct chardev_host host = host_of(f);
    char path[] = "/tmp/ring3-chardev-XXXXXX", name[64], text[16] = "";
    int fd = mkstemp(path);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, "old contents", 12), 12);
    snprintf(name, sizeof(name), "file:%s", path);
    assert_int_equal(chardev_open(&f->chr, name, &host, NULL), 0);
    attach(f);
    assert_int_equal(chardev_write(f->chr, (const uint8_t *)"hello", 5), 5);
    turn(f);
    assert_int_equal(pread(fd, text, sizeof(text), 0), 5);
    assert_string_equal(text, "hello");
    assert_int_equal(chardev_write(f->chr, (const uint8_t *)"!", 1), 1);
    assert_int_equal(chardev_flush(f->chr, 1000), 0); /* without the loop */
    assert_int_equal(pread(fd, text, sizeof(text), 0), 6);
    close(fd);
    unlink(path);
}

static void test_full_disk(void **state)
{
    struct fixture *f = *state;
    struct chardev_host host = host_of(f);

    f->log.fd = open("/dev/null", O_WRONLY);
    assert_int_equal(chardev_open(&f->chr, "file:/dev/full", &host, NULL), 0);
    attach(f);
    chardev_write(f->chr, (const uint8_t *)"hello", 5);
    assert_int_equal(chardev_flush(f->chr, 1000), 0);
    assert_int_equal(chardev_write(f->chr, f->got, 4 * PASTE), 4 * PASTE); /* dropped */
    close(f->log.fd);
}

static void test_file_size_limit(void **state)
{
    struct fixture *f = *state;
    struct chardev_host host = host_of(f);
    char path[] = "/tmp/ring3-chardev-XXXXXX", name[64];
    struct rlimit old, small;
    int fd = mkstemp(path);

    assert_true(fd >= 0);
    f->log.fd = open("/dev/null", O_WRONLY);
    snprintf(name, sizeof(name), "file:%s", path);
    assert_int_equal(chardev_open(&f->chr, name, &host, NULL), 0);
    attach(f);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    small = (struct rlimit){.rlim_cur = 4, .rlim_max = old.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    chardev_write(f->chr, (const uint8_t *)"hello", 5);
    assert_int_equal(chardev_flush(f->chr, 1000), 0); /* and is alive */
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    assert_int_equal(lseek(fd, 0, SEEK_END), 4);
    close(f->log.fd);
    close(fd);
    unlink(path);
}

static void test_input_with_back_pressure(void **state)
{
    struct fixture *f = *state;
    uint8_t *sent = malloc(PASTE);

    fill(sent, PASTE);
    if (fork() == 0) {
        size_t at = 0;

        while (at < PASTE) {
            ssize_t n = write(f->in[1], sent + at, PASTE - at);
            if (n <= 0)
                _exit(1);
            at += (size_t)n;
        }
        _exit(0);
    }
    f->want = PASTE;
    f->per_receive = 7;
    f->quota = 16;
    open_pipes(f);
    run(f);
    assert_int_equal(f->len, PASTE);
    assert_memory_equal(f->got, sent, PASTE);
    free(sent);
    wait(NULL);
}

static void test_input_waits_for_a_device(void **state)
{
    struct fixture *f = *state;
    struct chardev_host host = host_of(f);

    assert_int_equal(chardev_open_fds(&f->chr, f->in[0], f->out[1], &host, NULL), 0);
    assert_int_equal(write(f->in[1], "early", 5), 5);
    turn(f);
    f->want = 5;
    attach(f);
    run(f);
    assert_memory_equal(f->got, "early", 5);
}

static void test_end_of_input(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(write(f->in[1], "bye\1", 4), 4);
    close(f->in[1]);
    open_pipes(f);
    f->want = 4; /* the dangling Ctrl-A is a Ctrl-A */
    run(f);
    assert_memory_equal(f->got, "bye\1", 4);
    turn(f);
    assert_int_equal(f->leaves, 0);
    assert_int_equal(chardev_write(f->chr, (const uint8_t *)"still here", 10), 10);
    turn(f);
    char text[16];
    assert_int_equal(read(f->out[0], text, sizeof(text)), 10);
    f->in[1] = open("/dev/null", O_RDONLY);
}

static void test_no_input(void **state)
{
    struct fixture *f = *state;
    struct chardev_host host = host_of(f);
    int null = open("/dev/null", O_RDONLY);
    char text[8];

    for (int i = 0; i < 3; i++) { /* empty, absent, closed */
        int in = i == 0 ? null : i == 1 ? -1 : 1000;

        assert_int_equal(chardev_open_fds(&f->chr, in, f->out[1], &host, NULL), 0);
        attach(f);
        turn(f);
        chardev_write(f->chr, (const uint8_t *)"x", 1);
        turn(f);
        assert_int_equal(read(f->out[0], text, sizeof(text)), 1);
        chardev_free(f->chr);
        f->chr = NULL;
    }
    close(null);
}

/* Writes until the backend has no room, and returns how much it took. */
static size_t write_until_full(struct fixture *f, const uint8_t *p, size_t n)
{
    size_t at = 0;

    for (;;) {
        size_t took = chardev_write(f->chr, p + at, MIN(n - at, 1000));

        at += took;
        assert_true(at < n);
        if (took < 1000) {
            size_t before = at;

            turn(f);
            at += chardev_write(f->chr, p + at, MIN(n - at, 1000));
            if (at == before)
                return at;
        }
    }
}

static void test_blocked_output(void **state)
{
    struct fixture *f = *state;
    uint8_t *sent = malloc(4 * PASTE), *got = malloc(4 * PASTE);
    size_t len = 0, n;

    fill(sent, 4 * PASTE);
    open_pipes(f);
    n = write_until_full(f, sent, 4 * PASTE);
    f->writables = 0;
    assert_int_equal(chardev_flush(f->chr, 20), -ETIMEDOUT);
    turn(f);
    assert_int_equal(f->writables, 0);

    ssize_t r = read(f->out[0], got, 65536);
    assert_true(r > 0);
    len += (size_t)r;
    run(f); /* until writable */
    assert_int_equal(f->writables, 1);
    assert_true(chardev_write(f->chr, sent + n, 1) == 1);
    n++;
    while (len < n) {
        turn(f);
        r = read(f->out[0], got + len, 65536);
        assert_true(r > 0);
        len += (size_t)r;
    }
    assert_memory_equal(got, sent, n);
    assert_int_equal(chardev_flush(f->chr, 0), 0);
    free(sent);
    free(got);
}

static void test_reader_goes_away(void **state)
{
    struct fixture *f = *state;

    f->log.fd = open("/dev/null", O_WRONLY);
    open_pipes(f);
    write_until_full(f, f->got, 4 * PASTE);
    f->writables = 0;
    close(f->out[0]);
    run(f); /* the stalled device is told, */
    assert_true(f->writables > 0);
    for (int i = 0; i < 10; i++) /* and nothing blocks any more */
        assert_int_equal(chardev_write(f->chr, f->got, PASTE), PASTE);
    turn(f);
    assert_int_equal(chardev_flush(f->chr, 1000), 0);

    f->want = 2; /* input still works */
    assert_int_equal(write(f->in[1], "ok", 2), 2);
    run(f);
    close(f->log.fd);
    f->out[0] = open("/dev/null", O_RDONLY);
}

static void test_socket_is_left_blocking(void **state)
{
    struct fixture *f = *state;
    struct chardev_host host = host_of(f);
    int s[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, s), 0);
    assert_int_equal(setsockopt(s[0], SOL_SOCKET, SO_SNDBUF, &(int){65536}, sizeof(int)), 0);
    assert_int_equal(chardev_open_fds(&f->chr, s[0], s[0], &host, NULL), 0);
    attach(f);
    write_until_full(f, f->got, 4 * PASTE);
    assert_int_equal(fcntl(s[0], F_GETFL) & O_NONBLOCK, 0);
    chardev_free(f->chr);
    f->chr = NULL;
    close(s[0]);
    close(s[1]);
}

static void test_shared_descriptors_stay_as_they_were(void **state)
{
    struct fixture *f = *state;

    open_pipes(f);
    turn(f);
    assert_int_equal(fcntl(f->in[0], F_GETFL) & O_NONBLOCK, 0);
    assert_int_equal(fcntl(f->out[1], F_GETFL) & O_NONBLOCK, 0);
    chardev_free(f->chr);
    f->chr = NULL;
    assert_true(fcntl(f->in[0], F_GETFD) >= 0); /* and open */
    assert_true(fcntl(f->out[1], F_GETFD) >= 0);
}

static void test_escapes(void **state)
{
    struct fixture *f = *state;
    char text[1024];

    open_pipes(f);
    f->want = 9;
    assert_int_equal(write(f->in[1], "a\1\1b\1ac\1q\1\3", 11), 11);
    run(f);
    assert_memory_equal(f->got, "a\1b\1c\1q\1\3", 9);
    assert_int_equal(f->leaves, 0);

    assert_int_equal(write(f->in[1], "\1h", 2), 2);
    turn(f);
    ssize_t n = read(f->out[0], text, sizeof(text) - 1);
    assert_true(n > 0);
    text[n] = '\0';
    assert_non_null(strstr(text, "Ctrl-A X"));

    assert_int_equal(write(f->in[1], "\1", 1), 1); /* in two pieces */
    turn(f);
    assert_int_equal(write(f->in[1], "x", 1), 1);
    run(f);
    assert_int_equal(f->leaves, 1);
    assert_int_equal(f->len, 9);
}

static void test_leave_when_the_guest_does_not_listen(void **state)
{
    struct fixture *f = *state;
    uint8_t typed[5000];

    fill(typed, sizeof(typed));
    f->quota = 0;
    open_pipes(f);
    assert_int_equal(write(f->in[1], typed, sizeof(typed)), sizeof(typed));
    turn(f);
    assert_int_equal(write(f->in[1], "\1X", 2), 2);
    run(f);
    assert_int_equal(f->leaves, 1);
    assert_int_equal(f->len, 0);
}

/* ---- terminals ---- */

struct pty {
    int master, slave;
    struct termios before;
};

static void pty_open(struct pty *p)
{
    p->master = posix_openpt(O_RDWR | O_NOCTTY);
    assert_true(p->master >= 0);
    assert_int_equal(grantpt(p->master), 0);
    assert_int_equal(unlockpt(p->master), 0);
    p->slave = open(ptsname(p->master), O_RDWR | O_NOCTTY);
    assert_true(p->slave >= 0);
    assert_int_equal(tcgetattr(p->slave, &p->before), 0);
    assert_true(p->before.c_lflag & ICANON);
}

static void pty_close(struct pty *p)
{
    close(p->master);
    close(p->slave);
}

static bool is_raw(const struct pty *p)
{
    struct termios t;

    assert_int_equal(tcgetattr(p->slave, &t), 0);
    return !(t.c_lflag & (ICANON | ECHO | ISIG)) && !(t.c_oflag & OPOST) && !(t.c_iflag & ICRNL);
}

static bool is_as_before(const struct pty *p)
{
    struct termios t;

    assert_int_equal(tcgetattr(p->slave, &t), 0);
    return t.c_lflag == p->before.c_lflag && t.c_oflag == p->before.c_oflag &&
           t.c_iflag == p->before.c_iflag && t.c_cflag == p->before.c_cflag;
}

static void test_terminal(void **state)
{
    struct fixture *f = *state;
    struct chardev_host host = host_of(f);
    struct chardev *second;
    struct err e = {0};
    struct pty p;
    char text[16];

    pty_open(&p);
    assert_int_equal(chardev_open_fds(&f->chr, p.slave, p.slave, &host, NULL), 0);
    attach(f);
    assert_true(is_raw(&p));
    assert_true(f->log.raw);
    assert_int_equal(chardev_open_fds(&second, p.slave, p.slave, &host, &e), -EBUSY);

    f->want = 3;
    assert_int_equal(write(p.master, "\r\3\4", 3), 3); /* no line discipline in between */
    run(f);
    assert_memory_equal(f->got, "\r\3\4", 3);
    chardev_write(f->chr, (const uint8_t *)"a\nb", 3);
    turn(f);
    assert_int_equal(read(p.master, text, sizeof(text)), 3);
    assert_memory_equal(text, "a\nb", 3);

    chardev_free(f->chr);
    f->chr = NULL;
    assert_true(is_as_before(&p));
    assert_false(f->log.raw);
    pty_close(&p);
}

static void test_terminal_hangs_up(void **state)
{
    struct fixture *f = *state;
    struct chardev_host host = host_of(f);
    struct pty p;

    f->log.fd = open("/dev/null", O_WRONLY);
    pty_open(&p);
    assert_int_equal(chardev_open_fds(&f->chr, p.slave, p.slave, &host, NULL), 0);
    attach(f);
    close(p.master);
    turn(f);
    for (int i = 0; i < 10; i++) {
        chardev_write(f->chr, f->got, PASTE);
        turn(f);
    }
    assert_int_equal(chardev_write(f->chr, f->got, PASTE), PASTE);
    chardev_free(f->chr);
    f->chr = NULL;
    close(p.slave);
    close(f->log.fd);
}

/* A process with the terminal in raw mode is killed by a signal: the terminal must be as before. */
static void test_fatal_signals(void **state)
{
    struct fixture *f = *state;
    static const int signals[] = {SIGTERM, SIGINT,  SIGHUP,  SIGQUIT,   SIGSEGV,
                                  SIGABRT, SIGUSR1, SIGPROF, SIGSTKFLT, SIGPWR};

    for (size_t i = 0; i < ARRAY_LEN(signals); i++) {
        struct chardev_host host = host_of(f);
        struct pty p;
        int status;

        pty_open(&p);
        pid_t child = fork();
        if (child == 0) {
            alarm(60);
            for (size_t s = 0; s < ARRAY_LEN(signals); s++)
                signal(signals[s], SIG_DFL); /* cmocka and sanitizers have handlers of their own */
            if (chardev_open_fds(&f->chr, p.slave, p.slave, &host, NULL) || !is_raw(&p))
                _exit(1);
            raise(signals[i]);
            _exit(2);
        }
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status));
        assert_int_equal(WTERMSIG(status), signals[i]);
        assert_true(is_as_before(&p));
        pty_close(&p);
    }
}

static void test_continue_after_stop(void **state)
{
    struct fixture *f = *state;
    struct chardev_host host = host_of(f);
    struct pty p;

    pty_open(&p);
    assert_int_equal(chardev_open_fds(&f->chr, p.slave, p.slave, &host, NULL), 0);
    tcsetattr(p.slave, TCSANOW, &p.before); /* what a shell does to a stopped job's terminal */
    raise(SIGCONT);
    assert_true(is_raw(&p));
    chardev_free(f->chr);
    f->chr = NULL;
    raise(SIGCONT); /* no handler left */
    assert_true(is_as_before(&p));
    pty_close(&p);
}

/* ---- a guest that never stops writing, and a host that takes it all ---- */

static void overfill(void *arg)
{
    struct fixture *f = arg;
    size_t took;

    f->writables++;
    do
        took = chardev_write(f->chr, f->got, PASTE);
    while (took == PASTE);
}

/* The loop's other customers get their turn although the ring never becomes empty. */
static void test_flood_leaves_the_loop_alive(void **state)
{
    struct fixture *f = *state;
    struct chardev_host host = host_of(f);

    assert_int_equal(chardev_open(&f->chr, "file:/dev/null", &host, NULL), 0);
    chardev_attach(f->chr, &(struct chardev_front){
                                .receive = on_receive, .writable = overfill, .arg = f});
    overfill(f);
    for (int i = 0; i < 10; i++)
        turn(f);
    assert_true(f->writables > 10);
}

/* ---- with the UART in front ---- */

#define COM1 0x3f8

struct guest {
    struct fake m;
    struct fixture *f;
    struct device *uart;
};

/* Echoes PASTE bytes as a driver without interrupts would. */
static void *guest_thread(void *arg)
{
    struct guest *g = arg;

    for (unsigned n = 0; n < PASTE; n++) {
        while (!(inb(&g->m, COM1 + 5) & 0x01))
            sched_yield();
        uint8_t c = inb(&g->m, COM1);
        while (!(inb(&g->m, COM1 + 5) & 0x20))
            sched_yield();
        outb(&g->m, COM1, c);
    }
    loop_stop(g->f->loop);
    return NULL;
}

struct reader {
    int fd;
    uint8_t *got;
    size_t len;
};

static void *reader_thread(void *arg)
{
    struct reader *r = arg;
    ssize_t n;

    while (r->len < PASTE && (n = read(r->fd, r->got + r->len, PASTE - r->len)) > 0)
        r->len += (size_t)n;
    return NULL;
}

struct writer {
    int fd;
    const uint8_t *p;
};

static void *writer_thread(void *arg)
{
    struct writer *w = arg;

    for (size_t at = 0; at < PASTE;) {
        ssize_t n = write(w->fd, w->p + at, PASTE - at);

        if (n <= 0)
            break;
        at += (size_t)n;
    }
    return NULL;
}

static void test_paste_loses_nothing(void **state)
{
    struct fixture *f = *state;
    struct chardev_host host = host_of(f);
    struct guest g = {.f = f};
    uint8_t *sent = malloc(PASTE);
    struct writer w = {f->in[1], sent};
    struct reader r = {f->out[0], malloc(PASTE), 0};
    pthread_t guest, reader, writer;

    fill(sent, PASTE);
    assert_int_equal(chardev_open_fds(&f->chr, f->in[0], f->out[1], &host, NULL), 0);
    fake_init(&g.m);
    g.uart = fake_device(&g.m, &uart_class, "uart0",
                         &(struct uart_cfg){.chr = f->chr, .irq = fake_irq(&g.m, 4)});
    fake_ports(&g.m, COM1, 8, g.uart, &uart_ops);
    outb(&g.m, COM1 + 2, 0xc1); /* first, since it clears what has arrived */
    pthread_create(&writer, NULL, writer_thread, &w);
    pthread_create(&reader, NULL, reader_thread, &r);
    pthread_create(&guest, NULL, guest_thread, &g);
    run(f);
    pthread_join(guest, NULL);
    assert_int_equal(chardev_flush(f->chr, 10000), 0);
    pthread_join(writer, NULL);
    pthread_join(reader, NULL);
    assert_int_equal(r.len, PASTE);
    assert_memory_equal(r.got, sent, PASTE);
    device_free(g.uart);
    fake_fini(&g.m);
    free(sent);
    free(r.got);
}

/* What the UART's own FIFO still holds at exit goes out too. */
static void test_flush_empties_the_device(void **state)
{
    struct fixture *f = *state;
    struct chardev_host host = host_of(f);
    struct guest g = {.f = f};
    uint8_t *got = malloc(4 * PASTE);
    size_t sent = 0, len = 0;
    ssize_t n;

    assert_int_equal(chardev_open_fds(&f->chr, -1, f->out[1], &host, NULL), 0);
    fake_init(&g.m);
    g.uart = fake_device(&g.m, &uart_class, "uart0",
                         &(struct uart_cfg){.chr = f->chr, .irq = fake_irq(&g.m, 4)});
    fake_ports(&g.m, COM1, 8, g.uart, &uart_ops);
    outb(&g.m, COM1 + 2, 0x01);
    /* With nobody reading: until the ring is full, and then until the FIFO is. */
    while (inb(&g.m, COM1 + 5) & 0x20)
        outb(&g.m, COM1, (uint8_t)('a' + sent++ % 26));
    for (int i = 0; i < 15; i++)
        outb(&g.m, COM1, (uint8_t)('a' + sent++ % 26));

    assert_int_equal(chardev_flush(f->chr, 0), -ETIMEDOUT); /* the pipe is full */
    assert_int_equal(fcntl(f->out[0], F_SETFL, O_NONBLOCK), 0);
    while (chardev_flush(f->chr, 0) != 0) {
        n = read(f->out[0], got + len, 4 * PASTE - len);
        assert_true(n > 0);
        len += (size_t)n;
    }
    while ((n = read(f->out[0], got + len, 4 * PASTE - len)) > 0)
        len += (size_t)n;
    assert_int_equal(len, sent);
    for (size_t i = 0; i < len; i++)
        assert_int_equal(got[i], 'a' + i % 26);
    device_free(g.uart);
    fake_fini(&g.m);
    free(got);
}

#define TEST(t) cmocka_unit_test_setup_teardown(t, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_names),
        TEST(test_none),
        TEST(test_file),
        TEST(test_full_disk),
        TEST(test_file_size_limit),
        TEST(test_input_with_back_pressure),
        TEST(test_input_waits_for_a_device),
        TEST(test_end_of_input),
        TEST(test_no_input),
        TEST(test_blocked_output),
        TEST(test_reader_goes_away),
        TEST(test_socket_is_left_blocking),
        TEST(test_shared_descriptors_stay_as_they_were),
        TEST(test_escapes),
        TEST(test_leave_when_the_guest_does_not_listen),
        TEST(test_terminal),
        TEST(test_terminal_hangs_up),
        TEST(test_fatal_signals),
        TEST(test_continue_after_stop),
        TEST(test_flood_leaves_the_loop_alive),
        TEST(test_paste_loses_nothing),
        TEST(test_flush_empties_the_device),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
