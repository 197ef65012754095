#include "ctl/engine_switch.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "ctl/option.h"
#include "engine/engine.h"

#define MS_MAX 3600000u

const char engine_switch_arg[] = "MS[,ENGINE]...";
const char engine_switch_help[] =
    "A test aid: move the running VM to another engine every MS milliseconds,\n"
    "through all that this host offers, or through those given, in that order.";

static int add_engine(struct engine_switch_cfg *c, const char *name, size_t len, struct err *e)
{
    for (const struct engine_ops *const *x = engine_list; *x; x++) {
        if (strlen((*x)->name) != len || strncmp((*x)->name, name, len) != 0)
            continue;
        if (c->n == ENGINE_SWITCH_MAX)
            return err_set(e, EINVAL, "at most %u engines can be given", ENGINE_SWITCH_MAX);
        c->engine[c->n++] = *x;
        return 0;
    }
    return err_set(e, EINVAL, "unknown engine '%.*s'; 'ring3 engines' lists them", (int)MIN(len, 40u), name);
}

int engine_switch_parse(struct engine_switch_cfg *c, const char *val, struct err *e)
{
    size_t len = strcspn(val, ",");
    char ms[24];
    int rc;

    *c = (struct engine_switch_cfg){0};
    if (len >= sizeof(ms))
        return err_set(e, EINVAL, "'%s' does not begin with a number of milliseconds", val);
    memcpy(ms, val, len);
    ms[len] = '\0';
    rc = option_uint(ms, MS_MAX, &c->ms, e);
    if (!rc && !c->ms)
        return err_set(e, EINVAL, "at least 1 ms is needed");
    while (!rc && val[len]) {
        val += len + 1;
        len = strcspn(val, ",");
        rc = add_engine(c, val, len, e);
    }
    return rc;
}

static int offered(struct engine_switch_cfg *c, struct err *e)
{
    struct err why = {"there is no other"};

    for (const struct engine_ops *const *x = engine_list; *x; x++)
        if (c->n < ENGINE_SWITCH_MAX && (!(*x)->probe || (*x)->probe(&why) == 0))
            c->engine[c->n++] = *x;
    if (c->n < 2)
        return err_set(e, ENOTSUP, "--engine-switch: this host offers less than two engines: %s", why.msg);
    return 0;
}

int engine_switch_check(struct engine_switch_cfg *c, const struct machine_cfg *m, struct err *e)
{
    bool differ = false;

    if (m->check)
        return err_set(e, EINVAL, "--engine-switch: does not go with --check, which is for one engine");
    if (!c->n)
        return offered(c, e);
    for (unsigned i = 0; i < c->n; i++) {
        int rc = c->engine[i]->probe ? c->engine[i]->probe(e) : 0;

        if (rc)
            return err_prefix(e, rc, "--engine-switch: %s", c->engine[i]->name);
        differ |= c->engine[i] != c->engine[0];
    }
    return differ ? 0 : err_set(e, EINVAL, "--engine-switch: two different engines are needed");
}

static void on_time(void *arg, uint32_t events)
{
    struct engine_switch *s = arg;
    const struct engine_ops *to = s->cfg.engine[s->at];
    uint64_t count;
    struct err e;

    if (read(s->fd, &count, sizeof(count)) != sizeof(count) || machine_result(s->m)->end != MACHINE_ALIVE)
        return;
    if (to == s->m->engine) {
        s->at = (s->at + 1) % s->cfg.n;
        to = s->cfg.engine[s->at];
    }
    s->at = (s->at + 1) % s->cfg.n;
    if (machine_set_engine(s->m, to, &e)) {
        err_prefix(&e, -1, "--engine-switch");
        machine_failed(s->m, &e);
    }
}

int engine_switch_start(struct engine_switch *s, const struct engine_switch_cfg *cfg, struct machine *m, struct err *e)
{
    const struct timespec period = {.tv_sec = (time_t)(cfg->ms / 1000), .tv_nsec = (long)(cfg->ms % 1000 * 1000000)};
    const struct itimerspec t = {.it_interval = period, .it_value = period};
    int rc;

    *s = (struct engine_switch){.cfg = *cfg, .m = m, .fd = -1};
    if (!cfg->ms)
        return 0;
    s->fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (s->fd < 0 || timerfd_settime(s->fd, 0, &t, NULL))
        rc = err_sys(e, "timerfd");
    else
        rc = loop_add(m->loop, s->fd, EPOLLIN, on_time, s, &s->reg, e);
    if (rc)
        engine_switch_stop(s);
    return rc;
}

void engine_switch_stop(struct engine_switch *s)
{
    if (s->reg)
        loop_del(s->reg);
    if (s->fd >= 0)
        close(s->fd);
    s->reg = NULL;
    s->fd = -1;
}
