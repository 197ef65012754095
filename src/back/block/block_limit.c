#include "back/block/block_limit.h"

#include "base/util.h"

#define SECOND 1000000000ull

void block_limit_init(struct block_limit *l, const struct block_limit_cfg *cfg, uint64_t now)
{
    *l = (struct block_limit){.rate = MIN(cfg->rate, BLOCK_LIMIT_MAX),
                              .burst = MIN(cfg->burst, BLOCK_LIMIT_MAX),
                              .last = now};
    l->tokens = (int64_t)l->rate;
}

static void refill(struct block_limit *l, uint64_t now)
{
    unsigned __int128 gained;
    int64_t room = (int64_t)l->rate - l->tokens;

    if (now <= l->last)
        return;
    gained = (unsigned __int128)(now - l->last) * l->rate / SECOND;
    if (gained >= (uint64_t)room) {
        l->tokens = (int64_t)l->rate;
        l->last = now;
    } else {
        /* Only the time that made whole tokens is used up. */
        l->tokens += (int64_t)gained;
        l->last += (uint64_t)(gained * SECOND / l->rate);
    }
}

uint64_t block_limit_when(struct block_limit *l, uint64_t n, uint64_t now)
{
    int64_t need;

    if (!l->rate)
        return now;
    refill(l, now);
    if (n <= l->burst)
        return now;
    need = (int64_t)MIN(n - l->burst, l->rate);
    if (l->tokens >= need)
        return now;
    return l->last +
           (uint64_t)(((unsigned __int128)(uint64_t)(need - l->tokens) * SECOND + l->rate - 1) /
                      l->rate);
}

void block_limit_take(struct block_limit *l, uint64_t n)
{
    uint64_t once = MIN(n, l->burst);

    if (!l->rate)
        return;
    l->burst -= once;
    l->tokens -= (int64_t)MIN(n - once, BLOCK_LIMIT_MAX);
}
