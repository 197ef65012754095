#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ctl/image.h"

#define NAMES_TRIED 100

static void signals(sigset_t *set)
{
    sigemptyset(set);
    sigaddset(set, SIGINT);
    sigaddset(set, SIGTERM);
    sigaddset(set, SIGHUP);
}

/* An image that is to be replaced must be one, and in nobody's use. */
static int check_old(const char *path, bool force, struct err *e)
{
    struct block_file_options o = {0};
    struct block_aio *aio;
    struct block_file *f;
    struct stat st;
    int rc;

    if (lstat(path, &st) < 0)
        return errno == ENOENT ? 0 : err_sys(e, "cannot examine %s", path);
    if (!force)
        return err_set(e, EEXIST, "%s exists already; --force replaces it", path);
    if (!S_ISREG(st.st_mode))
        return err_set(e, EINVAL, "%s is not a regular file", path);
    rc = block_aio_new(&aio, BLOCK_AIO_SYNC, e);
    if (rc)
        return rc;
    rc = block_file_open(&f, aio, path, &o, e);
    if (!rc)
        block_file_close(f);
    block_aio_free(aio);
    return rc;
}

int image_target_begin(struct image_target *t, const char *path, bool force, struct err *e)
{
    struct stat st;
    sigset_t set;
    int rc = check_old(path, force, e);

    *t = (struct image_target){.path = path, .force = force};
    if (rc)
        return rc;
    for (int i = 0; i < NAMES_TRIED; i++) {
        if (asprintf(&t->temp, "%s.part-%d-%d", path, (int)getpid(), i) < 0) {
            t->temp = NULL;
            return err_set(e, ENOMEM, "out of memory");
        }
        if (lstat(t->temp, &st) < 0 && errno == ENOENT) {
            signals(&set);
            sigprocmask(SIG_BLOCK, &set, NULL);
            return 0;
        }
        free(t->temp);
    }
    t->temp = NULL;
    return err_set(e, EEXIST, "no free name for a temporary file beside %s", path);
}

static int pending_signal(void)
{
    sigset_t set, now;

    signals(&set);
    sigpending(&now);
    for (int s = 1; s < NSIG; s++) {
        if (sigismember(&set, s) == 1 && sigismember(&now, s) == 1)
            return s;
    }
    return 0;
}

bool image_target_cancelled(const struct image_target *t) { return t->temp && pending_signal(); }

/* The name must be durable, too: what it replaces may have been the only copy. */
static int sync_folder(const char *path, struct err *e)
{
    const char *slash = strrchr(path, '/');
    char *dir = slash ? strndup(path, (size_t)(slash - path) + 1) : strdup(".");
    int fd = dir ? open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    int rc = 0;

    /* Not every file system can do that for folders. */
    if (fd >= 0 && fsync(fd) < 0 && errno != EINVAL)
        rc = err_sys(e, "cannot write the folder of %s", path);
    if (fd >= 0)
        close(fd);
    free(dir);
    return rc;
}

int image_target_end(struct image_target *t, int rc, struct err *e)
{
    sigset_t set;
    int s;

    if (!t->temp)
        return rc;
    s = pending_signal();
    if (!rc && !s) {
        if (renameat2(AT_FDCWD, t->temp, AT_FDCWD, t->path, t->force ? 0 : RENAME_NOREPLACE) < 0)
            rc = err_sys(e, "cannot rename %s to %s", t->temp, t->path);
        else
            rc = sync_folder(t->path, e);
    } else if (s && !rc) {
        rc = err_set(e, EINTR, "interrupted");
    }
    if (rc)
        unlink(t->temp);
    free(t->temp);
    t->temp = NULL;
    signals(&set);
    sigprocmask(SIG_UNBLOCK, &set, NULL); /* what waits is delivered here */
    return rc;
}
