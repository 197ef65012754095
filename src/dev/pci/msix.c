/* MSI-X: the vector table, masking and pending bits. */
#include "dev/pci/msix.h"

#include <assert.h>
#include <string.h>

#include "base/util.h"

#define CAP_MSIX 0x11
#define CAP_SIZE 12
#define CAP_CONTROL 2 /* message control */
#define CAP_TABLE 4   /* offset and BAR of the table */
#define CAP_PBA 8     /* offset and BAR of the pending bits */

#define CONTROL_ENABLE BIT(15)
#define CONTROL_MASK BIT(14)

#define ENTRY_SIZE 16
#define ENTRY_CONTROL 3 /* of the four words */
#define ENTRY_MASKED 1u

static const struct state_field pci_msix_fields[] = {
    STATE_ARRAY(struct pci_msix_state, table),
    STATE_ARRAY(struct pci_msix_state, pending),
};

const struct state_desc pci_msix_state_desc = {
    .name = "msix",
    .version = 1,
    .size = sizeof(struct pci_msix_state),
    .fields = pci_msix_fields,
    .nfields = ARRAY_LEN(pci_msix_fields),
};

/* ---- delivery; irq_lock held ---- */

static uint16_t control(const struct pci_msix *m)
{
    return (uint16_t)(m->f->s->cfg[m->cap + CAP_CONTROL] | m->f->s->cfg[m->cap + CAP_CONTROL + 1]
                                                               << 8);
}

static bool may_send(const struct pci_msix *m, unsigned vector)
{
    return (control(m) & (CONTROL_ENABLE | CONTROL_MASK)) == CONTROL_ENABLE &&
           pci_func_command(m->f) & PCI_COMMAND_MASTER && !pci_func_asleep(m->f) &&
           !(m->s->table[4 * vector + ENTRY_CONTROL] & ENTRY_MASKED);
}

static void send(struct pci_msix *m, unsigned vector)
{
    const uint32_t *entry = &m->s->table[4 * vector];
    uint64_t addr = entry[0] | (uint64_t)entry[1] << 32;

    m->s->pending[vector / 64] &= ~BIT(vector % 64);
    trace(m->f->dev->ctx->trace, pci_msix, "%s vector=%u address=%#llx data=%#x", m->f->dev->id,
          vector, (unsigned long long)addr, entry[2]);
    if (m->f->bus)
        pci_bus_msi(m->f->bus, addr, entry[2]);
}

static void send_pending(struct pci_msix *m)
{
    for (unsigned w = 0; w < ARRAY_LEN(m->s->pending); w++) {
        for (uint64_t left = m->s->pending[w]; left; left &= left - 1) {
            unsigned vector = 64 * w + (unsigned)__builtin_ctzll(left);

            if (may_send(m, vector))
                send(m, vector);
        }
    }
}

/* ---- for the device ---- */

void pci_msix_init(struct pci_msix *m, struct pci_func *f, struct pci_msix_state *s, unsigned n,
                   unsigned bar)
{
    assert(n >= 1 && n <= PCI_MSIX_MAX && f->bar[bar].size >= PCI_MSIX_BAR_SIZE);
    *m = (struct pci_msix){.f = f, .s = s, .n = n, .cap = pci_func_cap(f, CAP_MSIX, CAP_SIZE)};
    pci_func_reg(f, m->cap + CAP_CONTROL, 2, n - 1, CONTROL_ENABLE | CONTROL_MASK);
    pci_func_reg(f, m->cap + CAP_TABLE, 4, bar, 0);
    pci_func_reg(f, m->cap + CAP_PBA, 4, PCI_MSIX_PBA | bar, 0);
}

void pci_msix_reset(struct pci_msix *m)
{
    pthread_mutex_lock(&m->f->irq_lock);
    memset(m->s, 0, sizeof(*m->s));
    for (unsigned i = 0; i < m->n; i++)
        m->s->table[4 * i + ENTRY_CONTROL] = ENTRY_MASKED;
    pthread_mutex_unlock(&m->f->irq_lock);
}

void pci_msix_resume(struct pci_msix *m)
{
    pthread_mutex_lock(&m->f->irq_lock);
    /* Vectors that there are not neither send nor show. */
    for (unsigned i = m->n; i < PCI_MSIX_MAX; i++) {
        memset(&m->s->table[4 * i], 0, ENTRY_SIZE);
        m->s->pending[i / 64] &= ~BIT(i % 64);
    }
    send_pending(m);
    pthread_mutex_unlock(&m->f->irq_lock);
}

void pci_msix_written(struct pci_msix *m)
{
    pthread_mutex_lock(&m->f->irq_lock);
    send_pending(m);
    pthread_mutex_unlock(&m->f->irq_lock);
}

/* ---- the BAR ---- */

static uint32_t read_word(const struct pci_msix *m, uint64_t off)
{
    if (off < m->n * ENTRY_SIZE)
        return m->s->table[off / 4];
    off -= PCI_MSIX_PBA; /* below it: far beyond the pending bits */
    if (off >= sizeof(m->s->pending))
        return 0;
    return (uint32_t)(m->s->pending[off / 8] >> 8 * (off & 4));
}

static void write_word(struct pci_msix *m, uint64_t off, uint32_t val)
{
    unsigned word = off / 4 % 4;

    if (off >= m->n * ENTRY_SIZE)
        return;
    if (word == 0)
        val &= ~3u;
    if (word == ENTRY_CONTROL)
        val &= ENTRY_MASKED;
    m->s->table[off / 4] = val;
}

uint64_t pci_msix_read(struct pci_msix *m, uint64_t off, unsigned size)
{
    uint64_t v;

    pthread_mutex_lock(&m->f->irq_lock);
    v = read_word(m, off);
    if (size == 8)
        v |= (uint64_t)read_word(m, off + 4) << 32;
    pthread_mutex_unlock(&m->f->irq_lock);
    return v;
}

void pci_msix_write(struct pci_msix *m, uint64_t off, unsigned size, uint64_t val)
{
    pthread_mutex_lock(&m->f->irq_lock);
    write_word(m, off, (uint32_t)val);
    if (size == 8)
        write_word(m, off + 4, (uint32_t)(val >> 32));
    send_pending(m);
    pthread_mutex_unlock(&m->f->irq_lock);
}

bool pci_msix_enabled(struct pci_msix *m)
{
    bool on;

    pthread_mutex_lock(&m->f->irq_lock);
    on = control(m) & CONTROL_ENABLE;
    pthread_mutex_unlock(&m->f->irq_lock);
    return on;
}

void pci_msix_raise(struct pci_msix *m, unsigned vector)
{
    if (vector >= m->n)
        return;
    pthread_mutex_lock(&m->f->irq_lock);
    if (may_send(m, vector))
        send(m, vector);
    else
        m->s->pending[vector / 64] |= BIT(vector % 64);
    pthread_mutex_unlock(&m->f->irq_lock);
}
