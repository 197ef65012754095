#include "back/block/block_lock.h"

#include <errno.h>
#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include "base/util.h"

#define PERM_READ BIT(0)
#define PERM_WRITE BIT(1)
#define PERM_RESIZE BIT(3)
#define NPERMS 4

#define USED_BASE 100
#define DENIED_BASE 200

/* The longest of the waits for another to let go; each is twice the one before. */
#define WAIT_MAX_MS 128u

static int set_locks(int fd, unsigned perms, int base, const char *path, struct err *e)
{
    for (int n = 0; n < NPERMS; n++) {
        struct flock l = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = base + n, .l_len = 1};

        if (!(perms & BIT(n)))
            continue;
        if (fcntl(fd, F_OFD_SETLK, &l) == 0)
            continue;
        if (errno == EAGAIN || errno == EACCES)
            return err_set(e, EBUSY, "%s is in use by another process", path);
        return err_sys(e, "cannot lock %s", path);
    }
    return 0;
}

/* Does another hold any of these? */
static int check_locks(int fd, unsigned perms, int base, const char *path, struct err *e)
{
    for (int n = 0; n < NPERMS; n++) {
        struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = base + n, .l_len = 1};

        if (!(perms & BIT(n)))
            continue;
        if (fcntl(fd, F_OFD_GETLK, &l) < 0)
            return err_sys(e, "cannot test the lock of %s", path);
        if (l.l_type != F_UNLCK)
            return err_set(e, EBUSY, "%s is in use by another process%s", path,
                           base == DENIED_BASE ? " that lets nobody write it"
                                               : ", which writes it");
    }
    return 0;
}

static int try_lock(int fd, bool ro, const char *path, struct err *e)
{
    unsigned used = ro ? PERM_READ : PERM_READ | PERM_WRITE | PERM_RESIZE;
    unsigned denied = PERM_WRITE | PERM_RESIZE;
    int rc = set_locks(fd, used, USED_BASE, path, e);

    if (rc == 0)
        rc = set_locks(fd, denied, DENIED_BASE, path, e);
    if (rc == 0)
        rc = check_locks(fd, used, DENIED_BASE, path, e);
    if (rc == 0)
        rc = check_locks(fd, denied, USED_BASE, path, e);
    if (rc)
        block_unlock(fd);
    return rc;
}

int block_lock(int fd, bool ro, const char *path, struct err *e)
{
    int rc;

    for (unsigned ms = 1;; ms *= 2) {
        const struct timespec ts = {.tv_nsec = (long)ms * 1000000};

        rc = try_lock(fd, ro, path, e);
        if (rc != -EBUSY || ms > WAIT_MAX_MS)
            break;
        nanosleep(&ts, NULL);
    }
    return rc;
}

void block_unlock(int fd)
{
    struct flock l = {.l_type = F_UNLCK,
                      .l_whence = SEEK_SET,
                      .l_start = USED_BASE,
                      .l_len = DENIED_BASE + NPERMS - USED_BASE};

    fcntl(fd, F_OFD_SETLK, &l);
}
