#include "ctl/vsockopt.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"
#include "ctl/option.h"

const char vsockopt_arg[] = "CID[,uds=PATH]";
const char vsockopt_help[] =
    "Add a socket device; the guest has this context id, 3 or more. Who\n"
    "connects to the Unix socket PATH and sends \"CONNECT PORT\", a line, is\n"
    "connected to that port of the guest, which is told by a line\n"
    "\"OK PORT\". The guest's connections to port N of the host (CID 2) go\n"
    "to PATH_N. Default PATH: ring3-vsock-CID in $XDG_RUNTIME_DIR, or\n"
    "/tmp/ring3-UID-vsock-CID.";

static int set_cid(void *cfg, const char *val, struct err *e)
{
    struct machine_vsock *v = cfg;
    uint64_t cid = 0;
    int rc = option_uint(val, VSOCK_CID_MAX, &cid, e);

    if (!rc && cid < VSOCK_CID_MIN)
        return err_set(e, EINVAL, "the CID of a guest is %u to %u", VSOCK_CID_MIN, VSOCK_CID_MAX);
    v->cid = (uint32_t)cid;
    return rc;
}

static int set_uds(void *cfg, const char *val, struct err *e)
{
    struct machine_vsock *v = cfg;

    if (!*val || strlen(val) > VSOCK_PATH_MAX)
        return err_set(e, EINVAL, "the path is not of 1 to %u bytes", VSOCK_PATH_MAX);
    strcpy(v->path, val);
    return 0;
}

static const struct option_desc items[] = {
    {"uds", "PATH", "", set_uds},
};

static int set_default(struct machine_vsock *v, struct err *e)
{
    const char *dir = getenv("XDG_RUNTIME_DIR");
    int n = dir && *dir ? snprintf(v->path, sizeof(v->path), "%s/ring3-vsock-%u", dir, v->cid)
                        : snprintf(v->path, sizeof(v->path), "/tmp/ring3-%u-vsock-%u",
                                   (unsigned)getuid(), v->cid);

    return n < (int)sizeof(v->path) ? 0
                                    : err_set(e, EINVAL, "XDG_RUNTIME_DIR is too long; give uds=");
}

int vsockopt_parse(struct machine_vsock *v, const char *val, struct err *e)
{
    int rc;

    *v = (struct machine_vsock){0};
    rc = option_list(items, ARRAY_LEN(items), val, set_cid, v, e);
    if (!rc && !v->path[0])
        rc = set_default(v, e);
    return rc;
}
