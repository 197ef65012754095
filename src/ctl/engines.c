/* ring3 engines: which CPU engines this host offers, and why one is missing. */
#include <stdio.h>

#include "ctl/cli.h"
#include "ctl/option.h"
#include "engine/engine.h"

static void help(void)
{
    printf("usage: ring3 engines\n\n"
           "Lists the CPU engines in order of preference: name, whether this host offers it, and\n"
           "what it is or why it is missing. 'ring3 run --engine auto' takes the first that is\n"
           "there.\n\n"
           "options:\n");
    option_help(NULL, 0, stdout);
}

int cli_engines(int argc, char **argv)
{
    struct err e;
    bool want_help;

    if (option_parse(NULL, 0, argc, argv, NULL, &want_help, &e))
        return cli_usage("engines", &e);
    if (want_help) {
        help();
        return cli_printed();
    }
    for (const struct engine_ops *const *x = engine_list; *x; x++) {
        bool there = !(*x)->probe || (*x)->probe(&e) == 0;

        printf("%-10s%-11s%s\n", (*x)->name, there ? "available" : "missing",
               there ? (*x)->summary : e.msg);
    }
    return cli_printed();
}
