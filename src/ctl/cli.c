#include "ctl/cli.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "base/util.h"
#include "ctl/version.h"

static const struct command {
    const char *name, *summary;
    int (*fn)(int argc, char **argv);
} commands[] = {
    {"run", "run a virtual machine", cli_run},
    {"engines", "list the CPU engines this host offers", cli_engines},
    {"image", "create, examine, convert, check or resize disk images", cli_image},
};

static void help(void)
{
    printf("ring3 - a virtual machine monitor that needs no hardware virtualisation\n\n"
           "usage: ring3 COMMAND [OPTION]...\n"
           "       ring3 --version | --help\n\n"
           "commands:\n");
    for (size_t i = 0; i < ARRAY_LEN(commands); i++)
        printf("  %-10s%s\n", commands[i].name, commands[i].summary);
    printf("\n'ring3 COMMAND --help' lists a command's options; ring3(1) is the manual.\n");
}

int cli_usage(const char *command, const struct err *e)
{
    fprintf(stderr, "ring3: %s (see: ring3 %s%s--help)\n", e->msg, command ? command : "",
            command ? " " : "");
    return CLI_USAGE;
}

int cli_printed(void)
{
    if (fflush(stdout) || ferror(stdout)) {
        fprintf(stderr, "ring3: cannot write to standard output: %s\n", strerror(errno));
        return CLI_FAILED;
    }
    return CLI_OK;
}

/* A descriptor 0, 1 or 2 that we were started without would become one of the VM's own files, its
 * memory perhaps, and take the guest's serial output. */
static int open_standard_fds(void)
{
    for (;;) {
        int fd = open("/dev/null", O_RDWR);

        if (fd < 0)
            return -errno;
        if (fd > STDERR_FILENO) {
            close(fd);
            return 0;
        }
    }
}

int cli_main(int argc, char **argv)
{
    struct err e;

    if (open_standard_fds())
        return CLI_FAILED; /* there may be nobody to tell */
    if (argc < 2) {
        err_set(&e, EINVAL, "no command given");
        return cli_usage(NULL, &e);
    }
    if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")) {
        help();
        return cli_printed();
    }
    if (!strcmp(argv[1], "--version")) {
        printf("ring3 %s\n", RING3_VERSION);
        return cli_printed();
    }
    for (size_t i = 0; i < ARRAY_LEN(commands); i++) {
        if (!strcmp(argv[1], commands[i].name))
            return commands[i].fn(argc - 2, argv + 2);
    }
    err_set(&e, EINVAL, "unknown %s '%s'", argv[1][0] == '-' ? "option" : "command", argv[1]);
    return cli_usage(NULL, &e);
}
