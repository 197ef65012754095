/* ring3 image info. It reads the header and the snapshot table alone and takes no lock, so that it
 * also works on the disk of a running VM. */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "back/block/qcow2_snapshot.h"
#include "base/util.h"
#include "ctl/image.h"
#include "ctl/json.h"

struct info_cfg {
    const char *format;
    bool json;
};

/* What is known of an image. */
struct info {
    const char *path;
    uint64_t size, actual;
    bool qcow2;
    struct qcow2_header h;
    struct block_file *f;
    char full_backing[4096]; /* "" if there is none */
};

static int set_format(void *cfg, const char *val, struct err *e)
{
    return image_parse_format(val, &((struct info_cfg *)cfg)->format, e);
}

static int set_json(void *cfg, const char *val, struct err *e)
{
    ((struct info_cfg *)cfg)->json = true;
    return 0;
}

static const struct option_desc options[] = {
    {"format", "raw|qcow2", "Format of the image. Default: found by looking at it.", set_format},
    {"json", NULL, "Print JSON, with the names that qemu-img info --output=json has.", set_json},
};

static const char *compat(const struct info *i) { return i->h.version == 2 ? "0.10" : "1.1"; }

static const char *compression(const struct info *i)
{
    return i->h.compression == QCOW2_ZSTD ? "zstd" : "zlib";
}

static int json_snapshot(void *arg, const struct qcow2_snapshot *s)
{
    struct json *j = arg;

    json_open(j, NULL, '{');
    json_string(j, "id", s->id);
    json_string(j, "name", s->name);
    json_uint(j, "date-sec", s->date);
    json_uint(j, "vm-state-size", s->vm_state);
    json_close(j, '}');
    return 0;
}

static int print_json(const struct info *i, struct err *e)
{
    const struct qcow2_header *h = &i->h;
    struct json j = {.out = stdout};
    int rc = 0;

    json_open(&j, NULL, '{');
    json_string(&j, "filename", i->path);
    json_string(&j, "format", i->qcow2 ? "qcow2" : "raw");
    json_uint(&j, "virtual-size", i->size);
    json_uint(&j, "actual-size", i->actual);
    if (i->qcow2) {
        json_uint(&j, "cluster-size", 1u << h->cluster_bits);
        json_bool(&j, "dirty-flag", h->incompatible & QCOW2_INCOMPAT_DIRTY);
        if (h->backing[0]) {
            json_string(&j, "backing-filename", h->backing);
            if (i->full_backing[0])
                json_string(&j, "full-backing-filename", i->full_backing);
            if (h->backing_format[0])
                json_string(&j, "backing-filename-format", h->backing_format);
        }
        if (h->nb_snapshots) {
            json_open(&j, "snapshots", '[');
            rc = qcow2_snapshot_walk(i->f, h, json_snapshot, &j, NULL, e);
            json_close(&j, ']');
        }
        json_open(&j, "format-specific", '{');
        json_string(&j, "type", "qcow2");
        json_open(&j, "data", '{');
        json_string(&j, "compat", compat(i));
        json_string(&j, "compression-type", compression(i));
        json_bool(&j, "lazy-refcounts", h->compatible & QCOW2_COMPAT_LAZY_REFCOUNTS);
        json_uint(&j, "refcount-bits", 1u << h->refcount_order);
        json_bool(&j, "corrupt", h->incompatible & QCOW2_INCOMPAT_CORRUPT);
        json_close(&j, '}');
        json_close(&j, '}');
    }
    json_close(&j, '}');
    return rc;
}

static void print_text(const char *what, const char *text)
{
    printf("%s: ", what);
    /* Names in an image may hold anything; a terminal must not act on it. */
    for (; *text; text++)
        putchar((unsigned char)*text < 0x20 || *text == 0x7f ? '?' : *text);
    putchar('\n');
}

static int text_snapshot(void *arg, const struct qcow2_snapshot *s)
{
    time_t date = (time_t)s->date;
    struct tm tm;
    char when[32] = "?", line[512], human[32];

    if (localtime_r(&date, &tm))
        strftime(when, sizeof(when), "%Y-%m-%d %H:%M:%S", &tm);
    snprintf(line, sizeof(line), "%s, %s, %s, VM state %s", s->id, s->name, when,
             image_human(s->vm_state, human, sizeof(human)));
    print_text("snapshot", line);
    return 0;
}

static int print_info(const struct info *i, struct err *e)
{
    const struct qcow2_header *h = &i->h;
    char human[32];

    print_text("image", i->path);
    printf("file format: %s\n", i->qcow2 ? "qcow2" : "raw");
    printf("virtual size: %s (%llu bytes)\n", image_human(i->size, human, sizeof(human)),
           (unsigned long long)i->size);
    printf("disk size: %s\n", image_human(i->actual, human, sizeof(human)));
    if (!i->qcow2)
        return 0;
    printf("cluster size: %u\n", 1u << h->cluster_bits);
    if (h->backing[0]) {
        print_text("backing file", h->backing);
        if (i->full_backing[0] && strcmp(i->full_backing, h->backing) != 0)
            print_text("backing file as opened", i->full_backing);
        print_text("backing file format", h->backing_format[0] ? h->backing_format : "not stated");
    }
    printf("version: %u (compat %s)\n", h->version, compat(i));
    printf("compression type: %s\n", compression(i));
    printf("lazy refcounts: %s\n", h->compatible & QCOW2_COMPAT_LAZY_REFCOUNTS ? "yes" : "no");
    printf("refcount bits: %u\n", 1u << h->refcount_order);
    if (h->incompatible & QCOW2_INCOMPAT_DIRTY)
        printf("dirty: yes, in use or not closed\n");
    if (h->incompatible & QCOW2_INCOMPAT_CORRUPT)
        printf("corrupt: yes\n");
    return qcow2_snapshot_walk(i->f, h, text_snapshot, NULL, NULL, e);
}

static int gather(struct info *i, const struct info_cfg *c, struct err *e)
{
    int64_t size = block_file_size(i->f);
    uint8_t head[8] = {0};
    struct stat st;
    struct err ignored;
    int rc;

    if (size < 0)
        return err_set(e, (int)-size, "cannot tell its size");
    rc = block_file_read(i->f, 0, head, sizeof(head));
    if (rc)
        return err_set(e, -rc, "cannot read it: %s", strerrordesc_np(-rc));
    if (stat(i->path, &st) < 0)
        return err_sys(e, "cannot examine it");
    i->actual = (uint64_t)st.st_blocks * 512;
    i->qcow2 = c->format ? !strcmp(c->format, "qcow2") : qcow2_header_probe(head, sizeof(head));
    i->size = ALIGN_DOWN((uint64_t)size, BLOCK_SECTOR);
    if (!i->qcow2)
        return 0;
    rc = qcow2_read_header(i->f, &i->h, e);
    i->size = i->h.size;
    if (!rc && i->h.backing[0] &&
        qcow2_backing_path(i->path, i->h.backing, i->full_backing, sizeof(i->full_backing),
                           &ignored))
        i->full_backing[0] = '\0';
    return rc;
}

static int run(void *cfg, const char **args, int nargs, struct err *e)
{
    struct block_file_options fo = {.ro = true, .no_lock = true};
    struct info i = {.path = args[0]};
    struct block_aio *aio;
    int rc = block_aio_new(&aio, BLOCK_AIO_SYNC, e);

    if (rc)
        return rc;
    rc = block_file_open(&i.f, aio, args[0], &fo, e);
    if (!rc) {
        rc = gather(&i, cfg, e);
        if (!rc)
            rc = ((struct info_cfg *)cfg)->json ? print_json(&i, e) : print_info(&i, e);
        if (rc)
            err_prefix(e, rc, "%s", args[0]);
        block_file_close(i.f);
    }
    block_aio_free(aio);
    return rc ? rc : cli_printed();
}

const struct image_command image_info = {
    .name = "info",
    .args = "FILE",
    .help = "Says what is in an image's header. It may be in use.\n",
    .options = options,
    .noptions = ARRAY_LEN(options),
    .min_args = 1,
    .max_args = 1,
    .usage_status = CLI_USAGE,
    .fn = run,
    .cfg_size = sizeof(struct info_cfg),
};
