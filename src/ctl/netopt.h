/* The --net option: network cards and what they lead to. */
#ifndef RING3_CTL_NETOPT_H
#define RING3_CTL_NETOPT_H

#include "back/net/net.h"

/* How --help names the value and explains it. */
extern const char netopt_arg[], netopt_help[];

/* Parses a value of --net. The cfg owns what it points to; an unset MAC is all zeros. */
int netopt_parse(struct netdev_cfg *cfg, const char *text, struct err *e);
void netopt_free(struct netdev_cfg *cfg);

#endif
