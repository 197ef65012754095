#include "engine/bt/returns.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/auxv.h>
#include <sys/mman.h>

/* What handlers take, beside the frame that AT_MINSIGSTKSZ counts: sanitizers need much. */
#define HANDLER_BYTES (64 * KIB)

int returns_new(struct returns **out, const void *bottom, struct err *e)
{
    struct returns *r = calloc(1, sizeof(*r));
    const void **end;

    if (!r)
        return err_set(e, ENOMEM, "out of memory for a vCPU's return stack");
    r->handlers_size = ALIGN_UP(HANDLER_BYTES + getauxval(AT_MINSIGSTKSZ), PAGE_SIZE);
    r->size = PAGE_SIZE + r->handlers_size + PAGE_SIZE + RETURNS_BYTES;
    r->map = mmap(NULL, r->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (r->map == MAP_FAILED) {
        free(r);
        return err_sys(e, "memory for a vCPU's return stack");
    }
    r->handlers = (uint8_t *)r->map + PAGE_SIZE;
    r->guard = (uintptr_t)r->handlers + r->handlers_size;
    if (mprotect(r->map, PAGE_SIZE, PROT_NONE) < 0 || mprotect((void *)r->guard, PAGE_SIZE, PROT_NONE) < 0) {
        int rc = err_sys(e, "protecting a vCPU's return stack");

        returns_free(r);
        return rc;
    }
    end = (const void **)((uint8_t *)r->map + r->size);
    end[-1] = bottom;
    r->empty = (uintptr_t)&end[-1];
    *out = r;
    return 0;
}

void returns_free(struct returns *r)
{
    if (!r)
        return;
    munmap(r->map, r->size);
    free(r);
}
