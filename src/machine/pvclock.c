#include "machine/pvclock.h"

#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>

#define MSR_WALL_CLOCK_OLD 0x11u
#define MSR_SYSTEM_TIME_OLD 0x12u
#define MSR_WALL_CLOCK 0x4b564d00u
#define MSR_SYSTEM_TIME 0x4b564d01u

#define SYSTEM_TIME_ENABLE 1ull
#define TSC_STABLE 1

#define NS_PER_S 1000000000ull

struct time_page {
    uint32_t version, pad0;
    uint64_t tsc_timestamp, system_time;
    uint32_t mul;
    int8_t shift;
    uint8_t flags, pad[2];
};

struct wall_page {
    uint32_t version, sec, nsec;
};

static const struct state_field fields[] = {
    STATE_FIELD(struct pvclock_state, system_time),
    STATE_FIELD(struct pvclock_state, wall_clock),
    STATE_FIELD(struct pvclock_state, version),
    STATE_FIELD(struct pvclock_state, wall_version),
};

const struct state_desc pvclock_state_desc = {
    .name = "pvclock",
    .version = 1,
    .size = sizeof(struct pvclock_state),
    .fields = fields,
    .nfields = ARRAY_LEN(fields),
};

void pvclock_init(struct pvclock *p, const struct clock *c, struct physmap *map)
{
    *p = (struct pvclock){.clock = c, .map = map};
}

void pvclock_reset(struct pvclock *p) { p->s = (struct pvclock_state){0}; }

bool pvclock_owns_msr(uint32_t msr)
{
    return msr == MSR_WALL_CLOCK || msr == MSR_SYSTEM_TIME || msr == MSR_WALL_CLOCK_OLD ||
           msr == MSR_SYSTEM_TIME_OLD;
}

void pvclock_scale(uint64_t tsc_khz, uint32_t *mul, int8_t *shift)
{
    uint64_t hz = tsc_khz * 1000;
    int8_t n = 0;

    /* Bring the rate into (1 GHz, 2 GHz]: then the multiplier is in [2^31, 2^32). */
    while (hz <= NS_PER_S) {
        hz <<= 1;
        n++;
    }
    while (hz > 2 * NS_PER_S) {
        hz >>= 1;
        n--;
    }
    *mul = (uint32_t)((NS_PER_S << 32) / hz);
    *shift = n;
}

/* Publishes a structure whose first word is a version: odd while its content is in flux. */
static void publish(struct physmap *map, uint64_t gpa, uint32_t *version, const void *page,
                    size_t len)
{
    uint32_t v = *version | 1;

    if (mem_write(map, gpa, &v, 4))
        return;
    atomic_thread_fence(memory_order_seq_cst);
    if (mem_write(map, gpa + 4, (const uint8_t *)page + 4, len - 4))
        return;
    atomic_thread_fence(memory_order_seq_cst);
    *version = v + 1;
    mem_write(map, gpa, version, 4);
}

void pvclock_update(struct pvclock *p, uint64_t tsc_offset)
{
    struct time_page t = {.flags = TSC_STABLE};

    if (!(p->s.system_time & SYSTEM_TIME_ENABLE))
        return;
    t.system_time = clock_now(p->clock);
    t.tsc_timestamp = clock_ns_to_tsc(p->clock, t.system_time) + tsc_offset;
    pvclock_scale(p->clock->tsc_khz, &t.mul, &t.shift);
    publish(p->map, p->s.system_time & ~SYSTEM_TIME_ENABLE, &p->s.version, &t, sizeof(t));
}

/* The wall clock at guest time 0. */
static void write_wall(struct pvclock *p)
{
    uint64_t boot = clock_wall(p->clock) - clock_now(p->clock);
    struct wall_page w = {.sec = (uint32_t)(boot / NS_PER_S), .nsec = (uint32_t)(boot % NS_PER_S)};

    publish(p->map, p->s.wall_clock, &p->s.wall_version, &w, sizeof(w));
}

int pvclock_rdmsr(const struct pvclock *p, uint32_t msr, uint64_t *val)
{
    if (!pvclock_owns_msr(msr))
        return -EINVAL;
    *val =
        msr == MSR_SYSTEM_TIME || msr == MSR_SYSTEM_TIME_OLD ? p->s.system_time : p->s.wall_clock;
    return 0;
}

int pvclock_wrmsr(struct pvclock *p, uint32_t msr, uint64_t val, uint64_t tsc_offset)
{
    if (!pvclock_owns_msr(msr))
        return -EINVAL;
    if (msr == MSR_SYSTEM_TIME || msr == MSR_SYSTEM_TIME_OLD) {
        p->s.system_time = val;
        pvclock_update(p, tsc_offset);
    } else {
        p->s.wall_clock = val;
        if (val) /* 0 asks for nothing, as under KVM */
            write_wall(p);
    }
    return 0;
}
