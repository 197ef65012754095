/* The engines of this build, best first. */
#include <stddef.h>
#include <string.h>

#include "engine/engine.h"

const struct engine_ops *const engine_list[] = {&kvm_engine, &bt_engine, &interp_engine, NULL};

const struct engine_ops *engine_find(const char *name)
{
    for (const struct engine_ops *const *x = engine_list; *x; x++) {
        if (!strcmp((*x)->name, name))
            return *x;
    }
    return NULL;
}
