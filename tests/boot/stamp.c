/*
 * In the guest, until it is killed: writes to a disk what tells where it belongs and when it was written, and says
 * what of it has been flushed. powerloss.py looks afterwards whether all of that is there.
 *
 * usage: stamp DEVICE SECTORS FIRST-NUMBER
 *
 * A sector is 64 times its number (a write's, which only grows), and its place: struct stamp. Lines:
 *      write NUMBER PLACE SECTORS      is going to be written ("zero": becomes zeros)
 *      flushed NUMBER                  all writes up to this number
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#define SECTOR 512u
#define SECTORS_MAX 128u /* of a write */
#define BURST 12u        /* writes between two flushes, at most */

struct stamp {
    uint32_t number, place;
};

struct piece {
    uint32_t number, place, sectors;
    int zero;
};

static struct stamp buf[SECTORS_MAX * SECTOR / sizeof(struct stamp)];

static int do_piece(int fd, const struct piece *p)
{
    uint64_t where[2] = {(uint64_t)p->place * SECTOR, (uint64_t)p->sectors * SECTOR};

    if (p->zero)
        return ioctl(fd, BLKZEROOUT, where);
    for (uint32_t i = 0; i < p->sectors * SECTOR / sizeof(struct stamp); i++)
        buf[i] = (struct stamp){p->number, p->place + i / (SECTOR / sizeof(struct stamp))};
    return pwrite(fd, buf, where[1], (off_t)where[0]) == (ssize_t)where[1] ? 0 : -1;
}

int main(int argc, char **argv)
{
    uint32_t sectors = argc == 4 ? (uint32_t)atoi(argv[2]) : 0, number = argc == 4 ? (uint32_t)atoi(argv[3]) : 0;
    struct piece piece[BURST];
    int fd = argc == 4 ? open(argv[1], O_RDWR) : -1;

    if (fd < 0 || sectors < SECTORS_MAX) {
        perror("stamp");
        return 1;
    }
    srandom(number);
    for (;;) {
        unsigned n = 1 + (unsigned)random() % BURST;

        for (unsigned i = 0; i < n; i++) {
            uint32_t most = random() % 4 ? 16 : SECTORS_MAX;

            piece[i] = (struct piece){.number = number++, .zero = random() % 8 == 0};
            piece[i].sectors = 1 + (uint32_t)random() % most;
            piece[i].place = (uint32_t)random() % (sectors - piece[i].sectors + 1);
            printf("%s %u %u %u\n", piece[i].zero ? "zero" : "write", piece[i].number, piece[i].place, piece[i].sectors);
        }
        /* Whoever kills us knows of all that may have been written. */
        fflush(stdout);
        tcdrain(STDOUT_FILENO);
        for (unsigned i = 0; i < n; i++) {
            if (do_piece(fd, &piece[i])) {
                perror("stamp");
                return 1;
            }
        }
        if (fdatasync(fd)) {
            perror("stamp");
            return 1;
        }
        printf("flushed %u\n", number - 1);
        fflush(stdout);
    }
}
