/* The table of trace events: X(name, what it tells). Grouped by directory, sorted within a group. */
#ifndef RING3_BASE_TRACE_EVENTS_H
#define RING3_BASE_TRACE_EVENTS_H

#define TRACE_EVENTS(X)                                                                            \
    /* dev */                                                                                      \
    X(acpi_read, "ACPI fixed register read: offset, size, value")                                  \
    X(acpi_write, "ACPI fixed register write: offset, size, value")                                \
    X(bus_pio, "port access: port, size, value, device")                                           \
    X(bus_mmio, "memory-mapped register access: address, size, value, device")                     \
    X(bus_unclaimed, "access to a port or address that nothing claims")                            \
    X(net_ctrl, "virtio-net control command: device, bytes, answer")                               \
    X(pci_bar, "PCI base address register mapped, unmapped or refused: device, number, address")   \
    X(pci_cfg_read, "PCI configuration read: bus:slot.function, offset, size, value")              \
    X(pci_cfg_write, "PCI configuration write: bus:slot.function, offset, size, value")            \
    X(pci_flr, "PCI function level reset: device")                                                 \
    X(pci_msix, "MSI-X message sent or made pending: device, vector, address, data")               \
    X(uart_read, "serial port register read: device, register, value")                             \
    X(uart_write, "serial port register write: device, register, value")                           \
    X(virtio_blk_done, "disk request completed: device, queue, what, where, bytes, error")         \
    X(virtio_config, "virtio configuration space access: device, offset, size, value")             \
    X(virtio_fail, "virtio device needs a reset: device, why")                                     \
    X(virtio_kick, "virtio queue notified by the driver: device, queue")                           \
    X(virtio_queue_reset, "virtio queue reset by the driver: device, queue")                       \
    X(virtio_reg, "virtio common register access: device, offset, size, value")                    \
    X(virtio_status, "virtio device status changed: device, from, to, features")                   \
    /* engine */                                                                                   \
    X(cpu_exception, "exception or interrupt delivered: vector, error code, RIP, CR2")             \
    X(cpu_msr, "MSR read or write: index, value, and whether it faulted")                          \
    X(cpu_mode, "CPU mode change: CR0, CR4, EFER")                                                 \
    X(cpu_reset, "INIT, SIPI or triple fault")                                                     \
    /* irq */                                                                                      \
    X(ioapic_deliver, "I/O APIC message sent: pin, vector, delivery mode, destination")            \
    X(lapic_accept, "vector accepted into a local APIC's IRR: APIC, vector, trigger mode")         \
    X(lapic_eoi, "end of interrupt at a local APIC: APIC, vector")                                 \
    X(pic_ack, "8259 interrupt acknowledged: vector")

#endif
