/*
 * An independent, slow model of address translation, written bit by bit from the tables of SDM vol.
 * 3 §4.3 to §4.6, for comparing paging.c with. It works on its own copy of guest memory.
 */
#ifndef RING3_TESTS_CPU_PAGING_MODEL_H
#define RING3_TESTS_CPU_PAGING_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "cpu/paging.h"

enum frame_kind { FRAME_RAM, FRAME_ROM, FRAME_NONE, FRAME_BALLOONED };

struct model {
    uint64_t cr0, cr3, cr4, efer;
    unsigned maxphys;
    bool gbpages;
    uint8_t *mem;
    unsigned frames;
    enum frame_kind *kind; /* per frame; beyond `frames` there is nothing */
    bool *wrote;           /* per frame: an A or D bit was stored */
    uint64_t pdpte[4];
};

struct model_result {
    bool ok;
    uint32_t error;
    uint64_t gpa;
    unsigned shift;
    bool user, write, nx, global, dirty;
    unsigned nwrites;
    uint64_t writes[4]; /* addresses of the entries stored to, root first */
};

struct model_result model_walk(struct model *m, uint64_t la, enum access a, bool user, bool ac);
/* Ignoring privilege and changing nothing. */
struct model_result model_probe(struct model *m, uint64_t la);
/* Are the PAE pointers at CR3 acceptable; loads them if so. */
bool model_load_pdptes(struct model *m);

#endif
