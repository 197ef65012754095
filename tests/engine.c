#include "engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/bt/hooks.h"
#include "engine/interp/hooks.h"

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

bool test_engine_check(const struct engine_ops *engine, unsigned ncpu)
{
    return engine->checks && ncpu == 1 && getenv("RING3_TEST_CHECK");
}

/* bt's threshold that the environment asks for; 0: its own. */
static unsigned threshold(void)
{
    const char *text = getenv("RING3_TEST_THRESHOLD");

    return text ? (unsigned)strtoul(text, NULL, 0) : 1;
}

static bool has_threshold(const struct engine_ops *engine)
{
    return !strcmp(engine->name, "bt") && threshold();
}

void test_engine_tune(struct vm *vm, const struct engine_ops *engine)
{
    if (has_threshold(engine))
        bt_set_threshold(vm, threshold());
}

bool test_engine_other(struct vcpu *v, bool other)
{
    if (v->engine == &interp_engine) {
        interp_use_plain(v, other);
        return true;
    }
    if (!has_threshold(v->engine))
        return false;
    bt_set_threshold(v->vm, other ? threshold() + 2 : threshold());
    return true;
}
