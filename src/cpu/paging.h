/*
 * The page-table walk (Intel SDM vol. 3 ch. 4): 32-bit, PAE and 4-level paging with PSE, PSE-36,
 * NX, WP, SMEP, SMAP, global pages, reserved-bit checks, exact accessed and dirty bits set with
 * locked compare-and-swap. Pure: reads and changes guest page tables only through the p2m it is
 * given.
 */
#ifndef RING3_CPU_PAGING_H
#define RING3_CPU_PAGING_H

#include <stdbool.h>
#include <stdint.h>

#include "cpu/state.h"
#include "mem/p2m.h"

#define PTE_P 1ull
/* Bits of a present page-directory-pointer entry of PAE paging that must be 0, beside those above maxphys. */
#define PDPTE_RSVD (0x1e6ull | ~0ull << 52)

enum access { ACCESS_READ, ACCESS_WRITE, ACCESS_EXEC };

/* Context of a walk, taken from cpu_state when a control register changes. */
struct paging {
    uint64_t cr3;
    uint64_t pdpte[4]; /* PAE: loaded with CR3 (paging_load_pdptes) */
    uint64_t rsvd;     /* physical address bits above maxphys */
    uint8_t levels;    /* 0 = paging off, 2, 3 (PAE), 4 */
    bool nxe, wp, smep, smap, pse, pge, gbpages;
};

struct walk {
    uint64_t gpa;       /* of the byte asked for */
    uint8_t page_shift; /* 12, 21, 22 or 30: size of the mapping */
    bool user;          /* U/S of all levels */
    bool write;         /* R/W of all levels */
    bool nx;            /* XD of any level */
    bool global, dirty; /* of the leaf */
    uint32_t error;     /* page-fault error code when the walk faulted */
    /* Page-table entries this walk wrote (A, D) in frames with P2M_CODE: the caller must drop code
     * decoded from those bytes, whether or not the walk succeeded. */
    uint8_t ncode;
    uint64_t code_gpa[4];
};

/* Fills *p from the control registers; maxphys is the physical address width in bits (up to 52),
 * gbpages whether 1 GiB pages exist. pdpte is left as it is: paging_load_pdptes sets it when CR3
 * or, with PAE paging on, one of CR0.CD/NW/PG and CR4.PAE/PGE/PSE/SMEP is written. */
void paging_init(struct paging *p, const struct cpu_state *s, unsigned maxphys, bool gbpages);
/* Loads PDPTEs from CR3 for PAE; false, with p unchanged, if a present one has reserved bits set
 * (#GP on MOV CR). */
bool paging_load_pdptes(struct paging *p, struct p2m *mem);

/* Translates la for the access. user: made with user privilege (CPL 3, not implicit supervisor);
 * ac: EFLAGS.AC lifts SMAP (never for implicit supervisor accesses). Sets A (and D for writes)
 * exactly when the processor would: on every entry of a walk that succeeds, on none of one that
 * faults. Outside long mode only the low 32 bits of la count; in long mode the caller has checked
 * that it is canonical. Table entries that are not memory read as all ones, and stores to entries
 * in ROM are dropped. Returns true on success, false with w->error set and the other fields
 * undefined (but ncode). Any thread. The permission bits in w let a TLB answer later accesses of
 * other kinds; dirty says whether a write may be cached. */
bool paging_walk(const struct paging *p, struct p2m *mem, uint64_t la, enum access a, bool user,
                 bool ac, struct walk *w);
/* As paging_walk but sets no bits: what such an access would find. */
bool paging_peek(const struct paging *p, struct p2m *mem, uint64_t la, enum access a, bool user,
                 bool ac, struct walk *w);
/* As paging_walk but sets no bits and checks no privilege, only presence and reserved bits
 * (debugger, disassembly). */
bool paging_probe(const struct paging *p, struct p2m *mem, uint64_t la, struct walk *w);

#endif
