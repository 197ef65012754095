#include "ctl/shareopt.h"

#include <errno.h>
#include <string.h>

const char shareopt_arg[] = "DIR:TAG[:ro]";
const char shareopt_help[] = "Share a host directory with the guest, which mounts it by its tag:\n"
                             "mount -t virtiofs TAG /mnt. With :ro the guest can change nothing.\n"
                             "Repeatable.";

/* From the right: a colon in DIR does no harm. */
int shareopt_parse(struct machine_share *s, const char *val, struct err *e)
{
    size_t len = strlen(val);

    s->readonly = len > 3 && !strcmp(val + len - 3, ":ro");
    if (s->readonly)
        len -= 3;

    const char *colon = memrchr(val, ':', len);
    if (!colon || colon == val)
        return err_set(e, EINVAL, "'%s' is not DIR:TAG[:ro]", val);

    size_t dir = (size_t)(colon - val), tag = len - dir - 1;
    if (dir >= sizeof(s->dir))
        return err_set(e, ENAMETOOLONG, "the path is too long");
    if (!tag || tag > VIRTIO_FS_TAG_MAX)
        return err_set(e, EINVAL, "the tag in '%s' is not of 1 to %u bytes", val,
                       VIRTIO_FS_TAG_MAX);
    memcpy(s->dir, val, dir);
    memcpy(s->tag, colon + 1, tag);
    s->dir[dir] = s->tag[tag] = '\0';
    return 0;
}
