/* ring3 image check: the exit statuses are those of qemu-img check. */
#include <errno.h>
#include <string.h>

#include "base/util.h"
#include "ctl/image.h"

enum check_status {
    CHECK_OK = 0,
    CHECK_FAILED = 1, /* it could not be checked, or bad usage */
    CHECK_CORRUPT = 2,
    CHECK_LEAKS = 3,
    CHECK_UNSUPPORTED = 63 /* there is nothing to check in this format */
};

#define LINES_MAX 100

struct check_cfg {
    enum qcow2_repair repair;
    bool quiet;
    unsigned lines;
};

static int set_repair(void *cfg, const char *val, struct err *e)
{
    struct check_cfg *c = cfg;

    if (!strcmp(val, "leaks"))
        c->repair = QCOW2_REPAIR_LEAKS;
    else if (!strcmp(val, "all"))
        c->repair = QCOW2_REPAIR_ALL;
    else
        return err_set(e, EINVAL, "'%s' is neither leaks nor all", val);
    return 0;
}

static int set_quiet(void *cfg, const char *val, struct err *e)
{
    ((struct check_cfg *)cfg)->quiet = true;
    return 0;
}

static const struct option_desc options[] = {
    {"repair", "leaks|all",
     "Give back clusters that nothing uses, or also repair reference counts\n"
     "that are too low. Have a copy of an image before that.",
     set_repair},
    {"quiet", NULL, "Print nothing but errors; the exit status tells.", set_quiet},
};

static void report(void *arg, const char *line)
{
    struct check_cfg *c = arg;

    if (c->quiet)
        return;
    if (c->lines++ < LINES_MAX)
        printf("%s\n", line);
}

static void print_count(const char *what, uint64_t n)
{
    if (n)
        printf("%llu %s\n", (unsigned long long)n, what);
}

static void print_result(const struct check_cfg *c, const struct qcow2_check *r)
{
    if (c->lines > LINES_MAX)
        printf("... and %u more\n", c->lines - LINES_MAX);
    print_count("errors were repaired", r->corruptions_fixed);
    print_count("leaked clusters were given back", r->leaks_fixed);
    print_count("errors; the image may lose data when it is written", r->corruptions);
    print_count("leaked clusters: wasted space, no harm to data", r->leaks);
    if (!r->corruptions && !r->leaks)
        printf("No errors.\n");
    printf("%llu/%llu clusters allocated, %llu not in a row, %llu compressed\n",
           (unsigned long long)r->allocated_clusters, (unsigned long long)r->total_clusters,
           (unsigned long long)r->fragmented_clusters, (unsigned long long)r->compressed_clusters);
    printf("Image end offset: %llu\n", (unsigned long long)r->image_end);
}

static int check(struct check_cfg *c, const char *path, struct qcow2_check *r, struct err *e)
{
    struct block_file_options fo = {.ro = c->repair == QCOW2_REPAIR_NONE};
    struct block_aio *aio;
    struct block_file *f;
    uint8_t head[8] = {0};
    int rc = block_aio_new(&aio, BLOCK_AIO_SYNC, e);

    if (rc)
        return rc;
    rc = block_file_open(&f, aio, path, &fo, e);
    if (rc)
        goto out;
    rc = block_file_read(f, 0, head, sizeof(head));
    if (rc)
        err_set(e, -rc, "cannot read %s: %s", path, strerrordesc_np(-rc));
    else if (!qcow2_header_probe(head, sizeof(head)))
        rc = CHECK_UNSUPPORTED;
    else if ((rc = qcow2_check(f, c->repair, r, e)) != 0)
        err_prefix(e, rc, "%s", path);
    block_file_close(f);
out:
    block_aio_free(aio);
    return rc;
}

static int run(void *cfg, const char **args, int nargs, struct err *e)
{
    struct check_cfg *c = cfg;
    struct qcow2_check r = {.report = report, .arg = c};
    int rc = check(c, args[0], &r, e);

    if (rc == CHECK_UNSUPPORTED)
        fprintf(stderr, "ring3: %s: a raw image has nothing to check\n", args[0]);
    if (rc)
        return rc;
    if (!c->quiet) {
        print_result(c, &r);
        rc = cli_printed();
        if (rc)
            return CHECK_FAILED;
    }
    return r.corruptions ? CHECK_CORRUPT : r.leaks ? CHECK_LEAKS : CHECK_OK;
}

const struct image_command image_check = {
    .name = "check",
    .args = "FILE",
    .help = "Checks the tables of a qcow2 image.\n\n"
            "exit status:\n"
            "  0   no errors (left)\n"
            "  1   the image could not be checked, or bad usage\n"
            "  2   the image is corrupt\n"
            "  3   clusters are leaked: wasted space, no harm to data\n"
            "  63  the format has nothing to check\n",
    .options = options,
    .noptions = ARRAY_LEN(options),
    .min_args = 1,
    .max_args = 1,
    .usage_status = CHECK_FAILED,
    .fn = run,
    .cfg_size = sizeof(struct check_cfg),
};
