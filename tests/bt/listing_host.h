/*
 * The translation of a block as text that is the same on every build and host: structures' fields,
 * stubs, helpers, sites and links by name, branches by label.
 */
#ifndef RING3_TESTS_BT_LISTING_HOST_H
#define RING3_TESTS_BT_LISTING_HOST_H

#include <stdio.h>

#include "engine/bt/tr.h"

/* Writes the listing of t->t, made last by t. entry: with its ways in from other blocks. False: it
 * refers to something that has no name here, which is then told on standard error. */
bool listing_host(FILE *out, const struct tr *t, bool entry);

#endif
