/*
 * A virtual machine: memory, interrupt controllers, devices and vCPUs, and the ways its life goes
 * on or ends. Any number of machines may live in one process, also on one loop.
 *
 * Threads: the loop's thread owns the machine; machine_new, machine_start, machine_quiesce,
 * machine_resume and machine_free are called from it (or before it runs). machine_stop and the
 * functions below "for vCPUs and devices" may be called from any thread.
 *
 * machine_quiesce() is the only stop-the-world. A change of engine (change.h) stops vCPUs alone (gate.h).
 */
#ifndef RING3_MACHINE_MACHINE_H
#define RING3_MACHINE_MACHINE_H

#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "back/net/net.h"
#include "back/block/block.h"
#include "base/clock.h"
#include "base/err.h"
#include "base/log.h"
#include "base/loop.h"
#include "base/timer.h"
#include "base/trace.h"
#include "cpu/cpuid.h"
#include "dev/bus.h"
#include "dev/device.h"
#include "dev/virtio/fs.h"
#include "dev/virtio/vsock.h"
#include "engine/engine.h"
#include "irq/ioapic.h"
#include "irq/lapic.h"
#include "irq/pic.h"
#include "machine/boot/boot.h"
#include "machine/change.h"
#include "machine/vcpu.h"

struct chardev;
struct pci_bus;

#define MACHINE_CPUS_MAX 255u
#define MACHINE_NETS_MAX 8u
#define MACHINE_DISKS_MAX 16u
#define MACHINE_MEMORY_MIN (2 * MIB)

struct machine_disk {
    char *path;
    char *serial; /* or NULL */
    struct block_options o;
    unsigned queues; /* 0: one a vCPU */
};

#define MACHINE_SHARES_MAX 8u

struct machine_share {
    char dir[PATH_MAX];
    char tag[VIRTIO_FS_TAG_MAX + 1];
    bool readonly;
};

struct machine_vsock {
    uint32_t cid; /* 0: there is none */
    char path[VSOCK_PATH_MAX + 1];
};

struct machine_cfg {
    const char *name;
    const struct engine_ops *engine;
    uint32_t engines;     /* by place in engine_list: others that run on this host, and that it must be able to change to */
    bool check;           /* lockstep with the interpreter; the engine must offer it, and cpus be 1 */
    uint32_t check_every; /* struct vm's */
    uint32_t cpus;        /* 1..MACHINE_CPUS_MAX */
    enum cpuid_level cpu; /* what the guest's processors are */
    uint64_t memory;      /* bytes, a multiple of 4 KiB */
    struct boot_cfg boot; /* strings are copied */
    const char *serial;   /* chardev name: "stdio", "file:PATH", "none" */
    const char *console;  /* of the virtio console, likewise; NULL: there is none */
    bool rng;             /* virtio entropy device */
    const struct netdev_cfg *nets; /* network cards; a MAC of zeros is chosen by the machine */
    unsigned nnets;                /* 0..MACHINE_NETS_MAX */
    const struct machine_disk *disks; /* virtio disks, in the order of their slots */
    unsigned ndisks;                  /* 0..MACHINE_DISKS_MAX */
    struct machine_share shares[MACHINE_SHARES_MAX]; /* directories for the guest */
    unsigned nshares;
    struct machine_vsock vsock; /* sockets between guest and host */
    bool no_reboot;       /* a reset by the guest ends the machine */
    struct log *log;      /* log, trace and loop outlive the machine */
    struct trace *trace;
    struct loop *loop;
    /* The machine came to its end; called once in the loop's thread. machine_free must not be
     * called from it. */
    void (*ended)(void *arg);
    void *arg;
};

enum machine_end {
    MACHINE_ALIVE,
    MACHINE_POWERED_OFF, /* by the guest */
    MACHINE_REBOOTED,    /* by the guest, with no_reboot */
    MACHINE_EXITED,      /* by the guest through the debug-exit port: status */
    MACHINE_DIED,        /* triple fault: error says where */
    MACHINE_STOPPED,     /* machine_stop */
    MACHINE_FAILED       /* the engine or a restart failed: error says why */
};

struct machine_result {
    enum machine_end end;
    int status;
    struct err error;
};

struct machine {
    char *name;
    bool no_reboot;
    struct log *log;
    struct loop *loop;
    void (*ended)(void *arg);
    void *arg;

    struct clock clock;
    struct timerq timers;
    struct loop_fd *timer_fd;
    struct cpuid_policy cpuid;
    struct ram *ram;
    struct physmap *map;
    uint32_t map_changes; /* so far; under the map's lock */
    struct memory_layout layout;
    struct boot *boot;

    struct dev_ctx ctx;
    struct pio_bus *pio;
    struct pci_bus *pci;
    struct device *devices; /* newest first */
    struct device *acpi;    /* one of them */
    struct pic *pic;
    struct apic_bus *apics;
    struct ioapic *ioapic;
    struct chardev *serial, *console; /* console: NULL without one */
    struct netdev *net[MACHINE_NETS_MAX];
    unsigned nnets;
    struct blockdev *disk[MACHINE_DISKS_MAX];

    struct vm vm;
    const struct engine_ops *engine; /* set once its vm_init succeeded */
    pthread_rwlock_t engine_lock;    /* for who uses `engine` while vCPUs may stand; written by a change */
    uint32_t probed, missing; /* engines known to run on this host, or not to (change.c) */
    struct change_stats changes;
    struct vcpu *vcpus[MACHINE_CPUS_MAX];
    struct vcpu_host cpu[MACHINE_CPUS_MAX];
    uint32_t ncpu; /* initialised */
    uint32_t nstarted;

    /* Run control. The lock is a leaf: nothing is locked while it is held. */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    _Atomic int gate; /* enum gate; written under the lock */
    uint32_t nparked;
    int action; /* enum action waiting for the loop's thread */
    int action_arg;
    struct err action_error;
    int action_fd; /* eventfd that wakes the loop's thread */
    struct loop_fd *action_reg;
    bool quiesced;
    struct machine_result result;
    struct log_limit reboots;
};

/* Makes the machine with its kernel loaded, ready to start. On failure 0 is not returned, e says
 * why, and nothing is left behind. */
int machine_new(struct machine **out, const struct machine_cfg *cfg, struct err *e);
/* Ends vCPU threads and frees everything. NULL is allowed. */
void machine_free(struct machine *m);

/* Starts the vCPU threads. */
int machine_start(struct machine *m, struct err *e);
/* Asks for the end with MACHINE_STOPPED; asynchronous, any thread. */
void machine_stop(struct machine *m);
/* Presses and releases the power button (ACPI 6.5 §4.8.3.1.1.1); what follows is the guest's affair.
 * From the loop's thread. */
void machine_power_button(struct machine *m);
/* The terminal behind the serial port or the console has another size. From the loop's thread. */
void machine_terminal_resized(struct machine *m);
const struct machine_result *machine_result(const struct machine *m);

/* Stops vCPUs, devices and the clock; on return nothing changes guest-visible state any more.
 * Idempotent, as is machine_resume. A reset that the guest asked for before takes place after
 * machine_resume; whatever ends the machine, at once. */
void machine_quiesce(struct machine *m);
void machine_resume(struct machine *m);

/* ---- for wiring (pc.c) ---- */
/* device_new() with the machine's context; the machine owns the device. */
struct device *machine_add_device(struct machine *m, const struct device_class *cls, const char *id,
                                  const void *cfg, struct err *e);
/* An ISA interrupt line: to the PIC and to the I/O APIC, where the timer's line 0 is pin 2. */
void machine_isa_irq(void *machine, int line, bool level); /* struct irq.set */

/* ---- for vCPUs and devices ---- */
/* dev_ctx.request: enum machine_request. */
void machine_request(void *machine, int request, int arg);
void machine_died(struct machine *m, uint32_t cpu, uint16_t cs, uint64_t rip);
void machine_failed(struct machine *m, const struct err *why);

#endif
