/* ring3 run: one virtual machine from the command line. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/loop.h"
#include "base/trace.h"
#include "base/util.h"
#include "ctl/cli.h"
#include "ctl/engine_switch.h"
#include "ctl/netopt.h"
#include "ctl/diskopt.h"
#include "ctl/option.h"
#include "ctl/shareopt.h"
#include "ctl/signals.h"
#include "ctl/vsockopt.h"
#include "engine/engine.h"
#include "machine/machine.h"

#define NS_PER_S 1000000000ull
#define FILES_LIMIT 16384u

struct run_cfg {
    struct machine_cfg m;
    struct netdev_cfg nets[MACHINE_NETS_MAX];
    struct machine_disk disks[MACHINE_DISKS_MAX];
    const char *engine;
    struct engine_switch_cfg change;
    uint64_t timeout; /* ns, 0 = none */
    const char *trace;
    enum log_level level;
};

static int set_name(void *cfg, const char *val, struct err *e)
{
    ((struct run_cfg *)cfg)->m.name = val;
    return *val ? 0 : err_set(e, EINVAL, "is empty");
}

static int set_engine(void *cfg, const char *val, struct err *e)
{
    ((struct run_cfg *)cfg)->engine = val;
    if (strcmp(val, "auto") != 0 && !engine_find(val))
        return err_set(e, EINVAL, "unknown engine '%s'; 'ring3 engines' lists them", val);
    return 0;
}

static int set_engine_switch(void *cfg, const char *val, struct err *e)
{
    return engine_switch_parse(&((struct run_cfg *)cfg)->change, val, e);
}

static int set_check(void *cfg, const char *val, struct err *e)
{
    ((struct run_cfg *)cfg)->m.check = true;
    return 0;
}

static int set_check_every(void *cfg, const char *val, struct err *e)
{
    struct machine_cfg *m = &((struct run_cfg *)cfg)->m;
    uint64_t n = 0;
    int rc = option_uint(val, 3600000, &n, e);

    if (!rc && n == 0)
        return err_set(e, EINVAL, "is not 0 ms");
    m->check = true;
    m->check_every = (uint32_t)n;
    return rc;
}

static int set_cpus(void *cfg, const char *val, struct err *e)
{
    uint64_t n = 0;
    int rc = option_uint(val, UINT32_MAX, &n, e);

    if (!rc && n == 0)
        return err_set(e, EINVAL, "a machine has at least one");
    if (!rc && n > MACHINE_CPUS_MAX)
        return err_set(e, EINVAL, "a machine has at most %u", MACHINE_CPUS_MAX);
    ((struct run_cfg *)cfg)->m.cpus = (uint32_t)n;
    return rc;
}

static int set_cpu(void *cfg, const char *val, struct err *e)
{
    return cpuid_level_parse(val, &((struct run_cfg *)cfg)->m.cpu, e);
}

static int set_memory(void *cfg, const char *val, struct err *e)
{
    return option_size(val, &((struct run_cfg *)cfg)->m.memory, e);
}

static int set_kernel(void *cfg, const char *val, struct err *e)
{
    ((struct run_cfg *)cfg)->m.boot.kernel = val;
    return 0;
}

static int set_initrd(void *cfg, const char *val, struct err *e)
{
    ((struct run_cfg *)cfg)->m.boot.initrd = val;
    return 0;
}

static int set_append(void *cfg, const char *val, struct err *e)
{
    ((struct run_cfg *)cfg)->m.boot.cmdline = val;
    return 0;
}

static int check_chardev(const char *val, struct err *e)
{
    if (strcmp(val, "stdio") != 0 && strcmp(val, "none") != 0 &&
        (strncmp(val, "file:", 5) != 0 || !val[5]))
        return err_set(e, EINVAL, "'%s' is none of stdio, file:PATH, none", val);
    return 0;
}

static int set_serial(void *cfg, const char *val, struct err *e)
{
    ((struct run_cfg *)cfg)->m.serial = val;
    return check_chardev(val, e);
}

static int set_console(void *cfg, const char *val, struct err *e)
{
    ((struct run_cfg *)cfg)->m.console = val;
    return check_chardev(val, e);
}

static int set_disk(void *cfg, const char *val, struct err *e)
{
    struct run_cfg *c = cfg;
    int rc;

    if (c->m.ndisks == MACHINE_DISKS_MAX)
        return err_set(e, EINVAL, "a machine has at most %u", MACHINE_DISKS_MAX);
    rc = diskopt_parse(&c->disks[c->m.ndisks], val, e);
    c->m.ndisks += !rc;
    return rc;
}

static int set_rng(void *cfg, const char *val, struct err *e)
{
    ((struct run_cfg *)cfg)->m.rng = true;
    return 0;
}

static int set_net(void *cfg, const char *val, struct err *e)
{
    struct run_cfg *c = cfg;
    int rc;

    if (c->m.nnets == MACHINE_NETS_MAX)
        return err_set(e, EINVAL, "a machine has at most %u", MACHINE_NETS_MAX);
    rc = netopt_parse(&c->nets[c->m.nnets], val, e);
    c->m.nnets += !rc;
    return rc;
}

static int set_share(void *cfg, const char *val, struct err *e)
{
    struct machine_cfg *m = &((struct run_cfg *)cfg)->m;

    if (m->nshares == MACHINE_SHARES_MAX)
        return err_set(e, EINVAL, "a machine has at most %u", MACHINE_SHARES_MAX);

    int rc = shareopt_parse(&m->shares[m->nshares], val, e);
    for (unsigned i = 0; !rc && i < m->nshares; i++) {
        if (!strcmp(m->shares[i].tag, m->shares[m->nshares].tag))
            return err_set(e, EINVAL, "the tag '%s' is there twice", m->shares[i].tag);
    }
    m->nshares += !rc;
    return rc;
}

static int set_vsock(void *cfg, const char *val, struct err *e)
{
    return vsockopt_parse(&((struct run_cfg *)cfg)->m.vsock, val, e);
}

static int set_no_reboot(void *cfg, const char *val, struct err *e)
{
    ((struct run_cfg *)cfg)->m.no_reboot = true;
    return 0;
}

static int set_timeout(void *cfg, const char *val, struct err *e)
{
    return option_seconds(val, &((struct run_cfg *)cfg)->timeout, e);
}

static int set_trace(void *cfg, const char *val, struct err *e)
{
    ((struct run_cfg *)cfg)->trace = val;
    return 0;
}

static int set_log_level(void *cfg, const char *val, struct err *e)
{
    if (log_level_parse(val, &((struct run_cfg *)cfg)->level))
        return err_set(e, EINVAL, "'%s' is none of error, warn, info, debug", val);
    return 0;
}

static const struct option_desc options[] = {
    {"name", "NAME", "Name of the VM in messages. Default: vm.", set_name},
    {"engine", "ENGINE",
     "CPU engine: kvm (the host's hardware), bt (binary translator),\n"
     "interp (interpreter), or auto, the first that 'ring3 engines' lists as\n"
     "available. Default: auto.",
     set_engine},
    {"engine-switch", engine_switch_arg, engine_switch_help, set_engine_switch},
    {"check", NULL,
     "Compare the engine with the interpreter, bt block by block, kvm\n"
     "instruction by instruction, and end at the first difference. Slow; needs\n"
     "engine bt or kvm and one vCPU.",
     set_check},
    {"check-every", "MS",
     "The same with engine kvm for 100 instructions every MS milliseconds; in\n"
     "between the guest runs freely, so that it comes through a boot.",
     set_check_every},
    {"cpu", "MODEL",
     "What the guest's processors can do: host, which is all that this host\n"
     "has, or x86-64-v2, -v3 or -v4, which is what the x86-64 psABI counts to\n"
     "that level, and no other extension of the instruction set; always\n"
     "restricted to what every engine that is available here can honour, so\n"
     "that the VM may change engine. Default: host.",
     set_cpu},
    {"cpus", "N", "Number of vCPUs, 1 to 255; each is a thread. Default: 1.", set_cpus},
    {"memory", "SIZE",
     "Guest memory, with K, M, G or T; a multiple of 4K, at least 2M.\n"
     "Default: 512M.",
     set_memory},
    {"kernel", "FILE",
     "Linux kernel: a bzImage (payload gzip, xz, lzma, zstd, lz4 or not\n"
     "compressed) or an ELF file (vmlinux, or any kernel with a PVH entry).\n"
     "Default: what the first disk would boot, looked up in its ext4 file\n"
     "systems as GRUB does, with its initial RAM file system.",
     set_kernel},
    {"initrd", "FILE", "Initial RAM file system, for --kernel.", set_initrd},
    {"append", "TEXT",
     "The whole kernel command line, instead of the default\n"
     "console=ttyS0; with a disk's own kernel: more of it.",
     set_append},
    {"serial", "stdio|file:PATH|none",
     "Where the first serial port (ttyS0, COM1) is connected. On stdio a\n"
     "terminal is raw: Ctrl-A X leaves, Ctrl-A H prints help. Default: stdio,\n"
     "or none with --console stdio.",
     set_serial},
    {"console", "stdio|file:PATH|none",
     "Add a virtio console (hvc0), connected as --serial says. Default: no\n"
     "such device.",
     set_console},
    {"disk", diskopt_arg, diskopt_help, set_disk},
    {"rng", NULL, "Add a virtio entropy device that the host's generator feeds.", set_rng},
    {"net", netopt_arg, netopt_help, set_net},
    {"share", shareopt_arg, shareopt_help, set_share},
    {"vsock", vsockopt_arg, vsockopt_help, set_vsock},
    {"no-reboot", NULL, "End, with status 0, when the guest reboots.", set_no_reboot},
    {"timeout", "SECONDS",
     "End, with status 4, if the guest has not ended by itself after this\n"
     "time (fractions allowed).",
     set_timeout},
    {"trace", "GLOB[,GLOB]...",
     "Print trace events whose names match, on standard error.\n"
     "--trace help lists them.",
     set_trace},
    {"log-level", "error|warn|info|debug", "Least important messages to print. Default: warn.",
     set_log_level},
};

static void help(void)
{
    printf("usage: ring3 run --kernel FILE [OPTION]...\n"
           "       ring3 run --disk FILE [OPTION]...\n\n"
           "Runs a virtual machine until the guest powers off.\n\n"
           "options:\n");
    option_help(options, ARRAY_LEN(options), stdout);
    printf("\nexit status:\n"
           "  0     the guest powered off, or rebooted under --no-reboot, or the user left\n"
           "  1     ring3 or the host failed\n"
           "  2     bad usage or configuration\n"
           "  3     the guest died of a triple fault\n"
           "  4     the time given by --timeout is over\n"
           "  64+N  the guest wrote N to the debug-exit port 0xf4 (127 for N of 63 and more)\n"
           "SIGINT, SIGTERM and SIGHUP end the VM and then ring3 by that signal.\n"
           "SIGUSR1 presses the guest's power button. SIGUSR2 changes to the next engine that\n"
           "this host offers, as Ctrl-A E does.\n");
}

/* A running command. */
struct run {
    struct run_cfg cfg;
    struct log log;
    struct trace trace;
    struct loop *loop;
    struct signals signals;
    struct machine *m;
    struct engine_switch change;
    int timeout_fd;
    struct loop_fd *timeout_reg;
    int signo; /* the signal that ended it, or 0 */
    bool timed_out;
};

static void next_engine(struct run *r)
{
    struct err e;

    if (machine_next_engine(r->m, &e))
        log_msg(&r->log, LOG_WARN, "no change of engine: %s", e.msg);
}

static void on_signal(void *arg, int signo)
{
    struct run *r = arg;

    if (signo == SIGUSR1) {
        machine_power_button(r->m);
        return;
    }
    if (signo == SIGUSR2) {
        next_engine(r);
        return;
    }
    if (signo == SIGWINCH) {
        machine_terminal_resized(r->m);
        return;
    }
    r->signo = signo;
    machine_stop(r->m);
}

static void on_timeout(void *arg, uint32_t events)
{
    struct run *r = arg;
    uint64_t count;

    if (read(r->timeout_fd, &count, sizeof(count)) == sizeof(count)) {
        r->timed_out = true;
        machine_stop(r->m);
    }
}

static void on_ended(void *arg) { loop_stop(((struct run *)arg)->loop); }

static int engine_missing(const char *name, const struct err *why, struct err *e)
{
    *e = *why;
    err_prefix(e, 0, "%s", name);
    return err_prefix(e, -ENOTSUP, "--engine");
}

/* The engine of that name or, with auto, the best that this host offers; one line says which, and why none of the better
 * ones. All are asked, once: the machine may change to another one later. */
static int choose_engine(struct run *r, struct err *e)
{
    const struct engine_ops *named = engine_find(r->cfg.engine), **chosen = &r->cfg.m.engine;
    struct err why = {""};

    for (uint32_t i = 0; engine_list[i]; i++) {
        const struct engine_ops *x = engine_list[i];
        struct err reason;

        if (!x->probe || !x->probe(&reason)) {
            r->cfg.m.engines |= BIT(i);
            if (!*chosen && (!named || x == named))
                *chosen = x;
        } else if (x == named) {
            return engine_missing(x->name, &reason, e);
        } else if (!*chosen) {
            err_prefix(&reason, 0, "%s%s%s is missing", why.msg, why.msg[0] ? "; " : "", x->name);
            why = reason;
        }
    }
    if (!*chosen)
        return err_set(e, ENOTSUP, "--engine: %s", why.msg);
    if (named)
        log_msg(&r->log, LOG_INFO, "engine %s", named->name);
    else
        log_msg(&r->log, LOG_INFO, "engine %s, %s", (*chosen)->name, why.msg[0] ? why.msg : "the first choice");
    return 0;
}

static int start_timeout(struct run *r, struct err *e)
{
    const struct itimerspec t = {.it_value = {.tv_sec = (time_t)(r->cfg.timeout / NS_PER_S),
                                              .tv_nsec = (long)(r->cfg.timeout % NS_PER_S)}};

    if (!r->cfg.timeout)
        return 0;
    r->timeout_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (r->timeout_fd < 0 || timerfd_settime(r->timeout_fd, 0, &t, NULL))
        return err_sys(e, "timerfd");
    return loop_add(r->loop, r->timeout_fd, EPOLLIN, on_timeout, r, &r->timeout_reg, e);
}

/* Did the configuration make it fail, or the host? */
static int status_of(int rc)
{
    static const int host[] = {ENOMEM, EMFILE, ENFILE, EAGAIN, EIO, ENOSPC};

    for (size_t i = 0; i < ARRAY_LEN(host); i++) {
        if (rc == -host[i])
            return CLI_FAILED;
    }
    return CLI_USAGE;
}

/* What the end of the machine means for the process. */
static int status_of_end(const struct run *r, struct err *e)
{
    const struct machine_result *res = machine_result(r->m);

    switch (res->end) {
    case MACHINE_POWERED_OFF:
    case MACHINE_REBOOTED:
        return CLI_OK;
    case MACHINE_EXITED:
        return CLI_EXIT + (int)MIN((unsigned)res->status, 63u);
    case MACHINE_DIED:
        *e = res->error;
        return CLI_DIED;
    case MACHINE_STOPPED:
        if (r->timed_out)
            err_set(e, ETIMEDOUT, "the time given by --timeout is over");
        return r->timed_out ? CLI_TIMEOUT : CLI_OK;
    case MACHINE_ALIVE:
    case MACHINE_FAILED:
        break;
    }
    *e = res->error;
    return CLI_FAILED;
}

/* From a checked configuration to the end of the machine. */
static int run_machine(struct run *r, struct err *e)
{
    int status = CLI_FAILED;
    int rc = signals_init(&r->signals, r->loop, on_signal, r, e);

    if (rc)
        return CLI_FAILED;
    rc = machine_new(&r->m, &r->cfg.m, e);
    if (rc) {
        status = status_of(rc);
        goto out;
    }
    rc = start_timeout(r, e);
    if (!rc)
        rc = engine_switch_start(&r->change, &r->cfg.change, r->m, e);
    if (!rc)
        rc = machine_start(r->m, e);
    if (!rc)
        rc = loop_run(r->loop, e);
    if (!rc)
        status = status_of_end(r, e);
    engine_switch_stop(&r->change);
    machine_free(r->m);
out:
    if (r->timeout_reg)
        loop_del(r->timeout_reg);
    if (r->timeout_fd >= 0)
        close(r->timeout_fd);
    signals_fini(&r->signals);
    return status;
}

/* Standard input and output are for one of them. */
static int choose_consoles(struct machine_cfg *m, struct err *e)
{
    bool console = m->console && !strcmp(m->console, "stdio");

    if (!m->serial)
        m->serial = console ? "none" : "stdio";
    if (console && !strcmp(m->serial, "stdio"))
        return err_set(e, EINVAL, "--console: --serial has stdio already");
    return 0;
}

/* Shares and sockets are of use to guests that open many files. */
static void raise_files_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < MIN(limit.rlim_max, FILES_LIMIT)) {
        limit.rlim_cur = MIN(limit.rlim_max, FILES_LIMIT);
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

/* A kernel given, or the first disk's own. */
static int choose_kernel(struct machine_cfg *m, struct err *e)
{
    if (m->boot.kernel)
        return 0;
    if (!m->ndisks)
        return err_set(e, EINVAL, "--kernel: no kernel given, nor a --disk that has one");
    if (m->boot.initrd)
        return err_set(e, EINVAL, "--initrd: goes with --kernel; the disk has its own");
    m->boot.image = m->disks[0].path;
    m->boot.image_format = m->disks[0].o.format;
    return 0;
}

static int run_configured(struct run *r, struct err *e)
{
    int status, rc;

    if (choose_kernel(&r->cfg.m, e))
        return CLI_USAGE;
    if (choose_consoles(&r->cfg.m, e))
        return CLI_USAGE;
    if (r->cfg.trace) {
        rc = trace_enable(&r->trace, r->cfg.trace, e);
        if (rc) {
            err_prefix(e, rc, "--trace");
            return CLI_USAGE;
        }
    }
    if (choose_engine(r, e))
        return CLI_USAGE;
    if (r->cfg.m.check && !r->cfg.m.engine->checks) {
        err_set(e, EINVAL, "--check: engine %s does not offer it; bt and kvm do", r->cfg.m.engine->name);
        return CLI_USAGE;
    }
    if (r->cfg.m.check_every && r->cfg.m.engine != &kvm_engine) {
        err_set(e, EINVAL, "--check-every: is for engine kvm, not %s", r->cfg.m.engine->name);
        return CLI_USAGE;
    }
    if (r->cfg.m.check && r->cfg.m.cpus > 1) {
        err_set(e, EINVAL, "--check: is for one vCPU, not %u", r->cfg.m.cpus);
        return CLI_USAGE;
    }
    if (r->cfg.change.ms && engine_switch_check(&r->cfg.change, &r->cfg.m, e))
        return CLI_USAGE;
    raise_files_limit();
    if (loop_new(&r->loop, e))
        return CLI_FAILED;
    r->cfg.m.loop = r->loop;
    status = run_machine(r, e);
    loop_free(r->loop);
    return status;
}

static void free_cfg(struct run_cfg *c)
{
    for (unsigned i = 0; i < c->m.nnets; i++)
        netopt_free(&c->nets[i]);
    for (unsigned i = 0; i < c->m.ndisks; i++)
        diskopt_free(&c->disks[i]);
}

/* With r configured by default. */
static int parse_and_run(struct run *r, int argc, char **argv)
{
    struct err e = {""};
    bool want_help;
    int status;

    if (option_parse(options, ARRAY_LEN(options), argc, argv, &r->cfg, &want_help, &e))
        return cli_usage("run", &e);
    if (want_help) {
        help();
        return cli_printed();
    }
    if (r->cfg.trace && !strcmp(r->cfg.trace, "help")) {
        trace_list(stdout);
        return cli_printed();
    }
    log_init(&r->log, r->cfg.level, STDERR_FILENO);
    trace_init(&r->trace, &r->log);
    r->cfg.m.log = &r->log;
    r->cfg.m.trace = &r->trace;
    r->cfg.m.ended = on_ended;
    r->cfg.m.arg = r;

    status = run_configured(r, &e);
    if (r->signo)
        signals_die(r->signo);
    if (e.msg[0])
        fprintf(stderr, "ring3: %s\n", e.msg);
    return status;
}

int cli_run(int argc, char **argv)
{
    struct run r = {
        .cfg = {.m = {.name = "vm",
                      .cpus = 1,
                      .memory = 512 * MIB,
                      .boot = {.cmdline = "console=ttyS0"}},
                .engine = "auto",
                .level = LOG_WARN},
        .timeout_fd = -1,
        .change = {.fd = -1},
    };
    int status;

    r.cfg.m.nets = r.cfg.nets;
    r.cfg.m.disks = r.cfg.disks;
    status = parse_and_run(&r, argc, argv);
    free_cfg(&r.cfg);
    return status;
}
