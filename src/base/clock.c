/*
 * Guest time. Readers retry while a writer is inside (a seqlock). The fields are read with acquire
 * and written with release order, which orders them against seq without fences: a reader that sees
 * any field of a write also sees that write's odd seq, or a later one.
 */
#include "base/clock.h"

#include <assert.h>
#include <sched.h>
#include <time.h>
#include <x86intrin.h>

#include "base/util.h"

#define NS_PER_SEC 1000000000ull

/* One consistent copy of the clock's fields. */
struct snapshot {
    bool stepped, frozen;
    uint64_t base, host;
    int64_t wall_off;
};

static uint64_t host_clock(clockid_t id)
{
    struct timespec ts;

    clock_gettime(id, &ts);
    return (uint64_t)ts.tv_sec * NS_PER_SEC + (uint64_t)ts.tv_nsec;
}

/* What `host` counts. */
static uint64_t host_time(const struct clock *c)
{
    return c->counter_khz ? __rdtsc() : host_clock(CLOCK_MONOTONIC);
}

/* v * mul / div, or UINT64_MAX when that does not fit: "never" stays "never". */
static uint64_t scale(uint64_t v, uint64_t mul, uint64_t div)
{
    unsigned __int128 r = (unsigned __int128)v * mul / div;

    return r > UINT64_MAX ? UINT64_MAX : (uint64_t)r;
}

static bool read_retry(const struct clock *c, uint32_t seq)
{
    return (seq & 1) || atomic_load_explicit(&c->seq, memory_order_relaxed) != seq;
}

static void read_once(const struct clock *c, struct snapshot *s)
{
    s->stepped = atomic_load_explicit(&c->stepped, memory_order_acquire);
    s->frozen = atomic_load_explicit(&c->frozen, memory_order_acquire);
    s->base = atomic_load_explicit(&c->base, memory_order_acquire);
    s->host = atomic_load_explicit(&c->host, memory_order_acquire);
    s->wall_off = atomic_load_explicit(&c->wall_off, memory_order_acquire);
}

static uint64_t guest_ns(const struct clock *c, const struct snapshot *s, uint64_t host_now)
{
    uint64_t d = host_now - s->host;

    if (s->stepped || s->frozen || host_now < s->host)
        return s->base;
    return s->base + (c->counter_khz ? scale(d, 1000000, c->counter_khz) : d);
}

/* The snapshot and the guest time that belongs to it. The host's time is read inside the section:
 * read before it, a thaw in between would let time step back. */
static uint64_t read_clock(const struct clock *c, struct snapshot *s)
{
    uint64_t now;
    uint32_t seq;

    do {
        seq = atomic_load_explicit(&c->seq, memory_order_acquire);
        read_once(c, s);
        now = guest_ns(c, s, host_time(c));
    } while (read_retry(c, seq));
    return now;
}

static uint32_t write_begin(struct clock *c)
{
    uint32_t seq = atomic_load_explicit(&c->seq, memory_order_relaxed);

    for (;;) {
        if (seq & 1) {
            sched_yield();
            seq = atomic_load_explicit(&c->seq, memory_order_relaxed);
        } else if (atomic_compare_exchange_weak_explicit(
                       &c->seq, &seq, seq + 1, memory_order_acquire, memory_order_relaxed)) {
            return seq + 1;
        }
    }
}

static void write_end(struct clock *c, uint32_t seq)
{
    atomic_store_explicit(&c->seq, seq + 1, memory_order_release);
}

static void init(struct clock *c, uint64_t tsc_khz, uint64_t counter_khz, bool stepped,
                 int64_t wall_off)
{
    assert(tsc_khz > 0);
    c->tsc_khz = tsc_khz;
    c->counter_khz = counter_khz;
    atomic_init(&c->seq, 0);
    atomic_init(&c->stepped, stepped);
    atomic_init(&c->frozen, false);
    atomic_init(&c->base, 0);
    atomic_init(&c->host, host_time(c));
    atomic_init(&c->wall_off, wall_off);
}

void clock_init(struct clock *c, uint64_t tsc_khz)
{
    init(c, tsc_khz, 0, false, (int64_t)host_clock(CLOCK_REALTIME));
}

void clock_init_counter(struct clock *c, uint64_t tsc_khz, uint64_t counter_khz)
{
    assert(counter_khz > 0);
    init(c, tsc_khz, counter_khz, false, (int64_t)host_clock(CLOCK_REALTIME));
}

void clock_init_stepped(struct clock *c, uint64_t tsc_khz, uint64_t wall_ns)
{
    init(c, tsc_khz, 0, true, (int64_t)wall_ns);
}

uint64_t clock_now(const struct clock *c)
{
    struct snapshot s;

    return read_clock(c, &s);
}

uint64_t clock_ns_to_tsc(const struct clock *c, uint64_t ns)
{
    return scale(ns, c->tsc_khz, 1000000);
}

uint64_t clock_tsc_to_ns(const struct clock *c, uint64_t tsc)
{
    return scale(tsc, 1000000, c->tsc_khz);
}

uint64_t clock_tsc(const struct clock *c) { return clock_ns_to_tsc(c, clock_now(c)); }

uint64_t clock_tsc_at(const struct clock *c, uint64_t counter)
{
    struct snapshot s;
    uint64_t now = read_clock(c, &s);

    return clock_ns_to_tsc(c, c->counter_khz ? guest_ns(c, &s, counter) : now);
}

uint32_t clock_changes(const struct clock *c)
{
    return atomic_load_explicit(&c->seq, memory_order_acquire);
}

uint64_t clock_wall(const struct clock *c)
{
    struct snapshot s;
    uint64_t now = read_clock(c, &s);

    if (!s.stepped && !s.frozen)
        return host_clock(CLOCK_REALTIME);
    return now + (uint64_t)s.wall_off;
}

void clock_freeze(struct clock *c)
{
    uint32_t seq = write_begin(c);
    struct snapshot s;

    read_once(c, &s);
    if (!s.frozen) {
        uint64_t now = guest_ns(c, &s, host_time(c));

        if (!s.stepped)
            atomic_store_explicit(&c->wall_off, (int64_t)(host_clock(CLOCK_REALTIME) - now),
                                  memory_order_release);
        atomic_store_explicit(&c->base, now, memory_order_release);
        atomic_store_explicit(&c->frozen, true, memory_order_release);
    }
    write_end(c, seq);
}

void clock_thaw(struct clock *c)
{
    uint32_t seq = write_begin(c);

    if (atomic_load_explicit(&c->frozen, memory_order_relaxed)) {
        atomic_store_explicit(&c->host, host_time(c), memory_order_release);
        atomic_store_explicit(&c->frozen, false, memory_order_release);
    }
    write_end(c, seq);
}

void clock_step(struct clock *c, uint64_t ns)
{
    uint32_t seq = write_begin(c);

    assert(atomic_load_explicit(&c->stepped, memory_order_relaxed));
    atomic_store_explicit(&c->base, atomic_load_explicit(&c->base, memory_order_relaxed) + ns,
                          memory_order_release);
    write_end(c, seq);
}

uint64_t clock_to_host(const struct clock *c, uint64_t ns)
{
    struct snapshot s;
    uint64_t now = read_clock(c, &s), host;

    if (s.stepped || s.frozen)
        return UINT64_MAX;
    if (c->counter_khz) { /* the two clocks' rates differ a little: as seen from now */
        host = host_clock(CLOCK_MONOTONIC);
    } else {
        host = s.host;
        now = s.base;
    }
    if (ns < now)
        return host - MIN(host, now - ns);
    if (ns - now > UINT64_MAX - host)
        return UINT64_MAX;
    return host + (ns - now);
}
