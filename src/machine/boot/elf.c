#include "machine/boot/elf.h"

#include <elf.h>
#include <errno.h>
#include <string.h>

#include "base/util.h"

#define XEN_ELFNOTE_PHYS32_ENTRY 18

/* What both classes of header say, widened. */
struct header {
    uint64_t entry, phoff;
    uint16_t type, machine, phentsize, phnum;
};

bool elf_detect(const uint8_t *data, size_t len)
{
    return len >= SELFMAG && !memcmp(data, ELFMAG, SELFMAG);
}

static bool inside(uint64_t off, uint64_t n, uint64_t len) { return off <= len && n <= len - off; }

static int truncated(struct err *e) { return err_set(e, EINVAL, "truncated ELF file"); }

static int read_header(const uint8_t *data, size_t len, bool is64, struct header *h, struct err *e)
{
    if (is64) {
        Elf64_Ehdr x;

        if (len < sizeof(x))
            return truncated(e);
        memcpy(&x, data, sizeof(x));
        *h = (struct header){x.e_entry, x.e_phoff, x.e_type, x.e_machine, x.e_phentsize, x.e_phnum};
    } else {
        Elf32_Ehdr x;

        if (len < sizeof(x))
            return truncated(e);
        memcpy(&x, data, sizeof(x));
        *h = (struct header){x.e_entry, x.e_phoff, x.e_type, x.e_machine, x.e_phentsize, x.e_phnum};
    }
    if (h->machine != (is64 ? EM_X86_64 : EM_386))
        return err_set(e, EINVAL, "an ELF file for another processor");
    if (h->type != ET_EXEC && h->type != ET_DYN)
        return err_set(e, EINVAL, "an ELF file, but not an executable");
    if (h->phentsize != (is64 ? sizeof(Elf64_Phdr) : sizeof(Elf32_Phdr)))
        return err_set(e, EINVAL, "corrupt ELF file: program header size %u", h->phentsize);
    if (!inside(h->phoff, (uint64_t)h->phnum * h->phentsize, len))
        return truncated(e);
    return 0;
}

static Elf64_Phdr read_phdr(const uint8_t *p, bool is64)
{
    Elf64_Phdr w;
    Elf32_Phdr n;

    if (is64) {
        memcpy(&w, p, sizeof(w));
        return w;
    }
    memcpy(&n, p, sizeof(n));
    return (Elf64_Phdr){.p_type = n.p_type,
                        .p_offset = n.p_offset,
                        .p_paddr = n.p_paddr,
                        .p_filesz = n.p_filesz,
                        .p_memsz = n.p_memsz};
}

static int add_segment(struct elf_image *o, const Elf64_Phdr *ph, size_t len, struct err *e)
{
    struct elf_segment s = {ph->p_offset, ph->p_filesz, ph->p_paddr, ph->p_memsz};

    if (s.memsz == 0)
        return 0;
    if (!inside(s.off, s.filesz, len))
        return truncated(e);
    if (s.filesz > s.memsz || s.paddr + s.memsz < s.paddr)
        return err_set(e, EINVAL, "corrupt ELF file: a segment's sizes contradict each other");
    if (o->nseg == ELF_SEGMENTS_MAX)
        return err_set(e, EINVAL, "more than %u ELF segments", ELF_SEGMENTS_MAX);
    for (unsigned i = 0; i < o->nseg; i++) {
        if (s.paddr < o->seg[i].paddr + o->seg[i].memsz && o->seg[i].paddr < s.paddr + s.memsz)
            return err_set(e, EINVAL, "corrupt ELF file: segments overlap");
    }
    o->lo = o->nseg ? MIN(o->lo, s.paddr) : s.paddr;
    o->hi = MAX(o->hi, s.paddr + s.memsz);
    o->seg[o->nseg++] = s;
    return 0;
}

/* Looks for the PVH entry in one PT_NOTE segment: { u32 namesz, descsz, type, name, desc } with
 * name and desc padded to 4 bytes. A malformed note ends the search; notes are optional. */
static void scan_notes(struct elf_image *o, const uint8_t *p, uint64_t len)
{
    while (len >= 12) {
        uint32_t w[3];
        uint64_t name, desc, entry = 0;

        memcpy(w, p, 12);
        name = ALIGN_UP(w[0], 4);
        desc = ALIGN_UP(w[1], 4);
        if (name > len - 12 || desc > len - 12 - name)
            return;
        if (w[2] == XEN_ELFNOTE_PHYS32_ENTRY && w[0] == 4 && !memcmp(p + 12, "Xen", 4) &&
            (w[1] == 4 || w[1] == 8)) {
            memcpy(&entry, p + 12 + name, w[1]);
            o->has_pvh = entry <= UINT32_MAX;
            o->pvh_entry = (uint32_t)entry;
            return;
        }
        p += 12 + name + desc;
        len -= 12 + name + desc;
    }
}

bool elf_contains(const struct elf_image *o, uint64_t addr)
{
    for (unsigned i = 0; i < o->nseg; i++) {
        if (addr >= o->seg[i].paddr && addr - o->seg[i].paddr < o->seg[i].memsz)
            return true;
    }
    return false;
}

int elf_parse(struct elf_image *o, const uint8_t *data, size_t len, struct err *e)
{
    struct header h = {0};
    int rc;

    *o = (struct elf_image){.data = data};
    if (!elf_detect(data, len))
        return err_set(e, EINVAL, "not an ELF file");
    if (len < EI_NIDENT)
        return truncated(e);
    if (data[EI_DATA] != ELFDATA2LSB || data[EI_CLASS] < ELFCLASS32 || data[EI_CLASS] > ELFCLASS64)
        return err_set(e, EINVAL, "an ELF file for another processor");
    o->is64 = data[EI_CLASS] == ELFCLASS64;
    rc = read_header(data, len, o->is64, &h, e);
    if (rc)
        return rc;
    for (unsigned i = 0; i < h.phnum; i++) {
        Elf64_Phdr ph = read_phdr(data + h.phoff + (uint64_t)i * h.phentsize, o->is64);

        if (ph.p_type == PT_LOAD) {
            rc = add_segment(o, &ph, len, e);
            if (rc)
                return rc;
        } else if (ph.p_type == PT_NOTE && !o->has_pvh && inside(ph.p_offset, ph.p_filesz, len)) {
            scan_notes(o, data + ph.p_offset, ph.p_filesz);
        } else if (ph.p_type == PT_INTERP || ph.p_type == PT_TLS) {
            /* No kernel has a dynamic linker or thread-local storage. */
            return err_set(e, EINVAL, "a program, not a kernel");
        }
    }
    if (o->nseg == 0)
        return err_set(e, EINVAL, "an ELF file with nothing to load");
    o->entry = h.entry;
    return 0;
}

int elf_load(const struct elf_image *o, struct physmap *map, struct err *e)
{
    for (unsigned i = 0; i < o->nseg; i++) {
        const struct elf_segment *s = &o->seg[i];

        if (mem_write(map, s->paddr, o->data + s->off, s->filesz) ||
            mem_zero(map, s->paddr + s->filesz, s->memsz - s->filesz))
            return err_set(e, EINVAL, "a segment at %#llx is outside memory",
                           (unsigned long long)s->paddr);
    }
    return 0;
}
