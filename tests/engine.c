#include "engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/interp/hooks.h"

/* src/engine/bt/hooks.h; absent from builds without that engine. */
__attribute__((weak)) void bt_set_threshold(struct vm *vm, unsigned entries);

const struct engine_ops *test_engine(const char *name)
{
    const struct engine_ops *engine;
    struct err e = {.msg = ""};

    if (!name)
        name = getenv("RING3_TEST_ENGINE");
    if (!name)
        name = interp_engine.name;
    engine = engine_find(name);
    if (engine && engine->probe(&e) == 0)
        return engine;
    printf("skipped: %s\n", engine ? e.msg : "this build has no such engine");
    exit(77);
}

void test_engine_tune(struct vm *vm, const struct engine_ops *engine)
{
    const char *text = getenv("RING3_TEST_THRESHOLD");
    unsigned entries = text ? (unsigned)strtoul(text, NULL, 0) : 1;

    if (bt_set_threshold && !strcmp(engine->name, "bt") && entries)
        bt_set_threshold(vm, entries);
}

bool test_engine_plain(struct vcpu *v, bool plain)
{
    if (v->engine != &interp_engine)
        return false;
    interp_use_plain(v, plain);
    return true;
}
