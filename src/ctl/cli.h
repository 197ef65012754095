/*
 * The command line of ring3: commands, their exit statuses and messages. Every failure is one line
 * "ring3: reason" on stderr.
 */
#ifndef RING3_CTL_CLI_H
#define RING3_CTL_CLI_H

enum cli_status {
    CLI_OK = 0,      /* the guest powered off, or rebooted under --no-reboot */
    CLI_FAILED = 1,  /* ring3 or the host failed */
    CLI_USAGE = 2,   /* bad usage or configuration */
    CLI_DIED = 3,    /* the guest died of a triple fault */
    CLI_TIMEOUT = 4, /* --timeout */
    CLI_EXIT = 64    /* plus what the guest wrote to the debug-exit port, 63 at most */
};

/* Runs one command and returns the process's exit status. If a signal ended a VM, the process dies
 * of that signal in here, with everything cleaned up. */
int cli_main(int argc, char **argv);

/* The commands; argv[0] is the first argument after the command's name. */
int cli_run(int argc, char **argv);
int cli_engines(int argc, char **argv);
int cli_image(int argc, char **argv);

/* Prints the error line of a usage error and returns CLI_USAGE. */
struct err;
int cli_usage(const char *command, const struct err *e);
/* Flushes standard output and returns CLI_OK, or CLI_FAILED with a message if it could not be
 * written. */
int cli_printed(void);

#endif
