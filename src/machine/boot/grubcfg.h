/* What GRUB's configuration file says of the entry it would boot. Pure; the text is hostile. */
#ifndef RING3_MACHINE_BOOT_GRUBCFG_H
#define RING3_MACHINE_BOOT_GRUBCFG_H

#include <stdbool.h>

struct grub_entry {
    char *kernel;  /* path in the file system that GRUB's files are in */
    char *cmdline; /* "" for none */
    char *initrds; /* paths separated by spaces, "" for none */
};

/* The default entry of text (NUL-terminated), or the first that has a kernel when the default cannot be told: it
 * may be named by a variable that GRUB keeps elsewhere. False when there is none, or no memory. The strings are
 * allocated. */
bool grubcfg_parse(const char *text, struct grub_entry *out);
void grub_entry_free(struct grub_entry *g);

#endif
