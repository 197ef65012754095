/* Prints what would be booted from a disk image: the kernel's name, its command line, and the files' checksums. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include "base/util.h"
#include "machine/boot/disk.h"

static int read_file(void *arg, uint64_t off, void *buf, size_t n)
{
    return pread(*(int *)arg, buf, n, (off_t)off) == (ssize_t)n ? 0 : -1;
}

static unsigned long checksum(int fd)
{
    unsigned char buf[4096];
    unsigned long sum = crc32(0, NULL, 0);
    ssize_t n;

    if (lseek(fd, 0, SEEK_SET) < 0)
        return 0;
    while ((n = read(fd, buf, sizeof(buf))) > 0)
        sum = crc32(sum, buf, (unsigned)n);
    return sum;
}

int main(int argc, char **argv)
{
    struct boot_files f;
    struct err e = {""};
    struct stat st;
    int fd = argc > 1 ? open(argv[1], O_RDONLY) : -1;

    if (fd < 0 || fstat(fd, &st)) {
        perror("bootdisk");
        return 2;
    }
    struct boot_disk d = {.size = (uint64_t)st.st_size, .read = read_file, .arg = &fd};
    int rc = boot_disk_find(&d, argc > 2 ? strtoull(argv[2], NULL, 0) : 64 * MIB, &f, &e);

    if (rc) {
        printf("error %d: %s\n", rc, e.msg);
    } else {
        printf("kernel %s %08lx\n", f.kernel_name, checksum(f.kernel));
        if (f.initrd >= 0)
            printf("initrd %08lx\n", checksum(f.initrd));
        printf("cmdline %s\n", f.cmdline);
        boot_files_free(&f);
    }
    close(fd);
    return rc ? 1 : 0;
}
