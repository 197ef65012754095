#!/usr/bin/env python3
"""lspci -vv in a guest about all devices: their capabilities as lspci understands them, and a function level reset.

usage: lspci.py RING3

lspci and its libraries are the host's. What QEMU's q35 shows of its virtio devices was compared once by hand.
"""
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile

from debian import PATIENCE, VIRTIO, archive, check, command, insert, judge, modules, prepare_guest

DRIVERS = ['virtio-rng', 'virtio_console', 'virtio_blk', 'failover', 'net_failover', 'virtio_net']

GUEST = insert(VIRTIO + DRIVERS) + """
/demo/ld-linux-x86-64.so.2 --library-path /demo /demo/lspci -vvn 2>/dev/null
echo ====
cd /sys/bus/pci/devices
for d in *; do echo "reset $d $(cat $d/reset_method 2>/dev/null)"; done
cd /sys/bus/pci/devices/0000:00:03.0 || exit
echo 0000:00:03.0 >driver/unbind
for i in 1 2 3; do echo 1 >reset && echo "was reset"; done
echo 0000:00:03.0 >/sys/bus/pci/drivers/virtio-pci/bind
echo "random $(dd if=/dev/hwrng bs=64 count=4 2>/dev/null | wc -c)"
dmesg | grep -iE "pci 0000.*(error|fail|invalid|can.t|bug)"
"""

# By slot: the device's number and class, whether a driver is loaded, and its queues' and its own vector.
DEVICES = [('1042', '0100', 2), ('1043', '0780', 3), ('1044', '00ff', 2), ('1041', '0200', 4), ('105a', '0180', 0),
           ('1053', '0280', 0)]

# What lspci says of what makes no sense.
WRONG = ['denied', 'nknown header', '!!!', 'chain looped', 'chain broken', 'unassigned', 'size=0]', '[disabled]', 'virtual]',
         'invalid', 'Unknown', 'Malformed', '>TAbort+', '<TAbort+', '<MAbort+', '>SERR+', '<PERR+']


def lspci():
    """The program and its libraries."""
    path = shutil.which('lspci', path=os.environ['PATH'] + ':/usr/sbin:/sbin')
    check(path, 'no lspci: scripts/deps installs it')
    libraries = subprocess.run(['ldd', path], stdout=subprocess.PIPE, check=True).stdout.decode()
    return [path] + re.findall(r'(/\S+)', libraries)


def check_virtio(slot, text, seen):
    number, kind, vectors = DEVICES[slot - 1]

    def want(*patterns):
        for pattern in patterns:
            check(re.search(pattern, text), f'slot {slot}: no {pattern!r}', seen)

    want(rf'^00:0{slot}\.0 {kind}: 1af4:{number} \(rev 0[1-9]\)', rf'Subsystem: 1af4:{number}',
         r'Control: I/O- Mem\+ BusMaster\+', r'Status: Cap\+', r'Interrupt: pin A routed to IRQ \d',
         r'Region 0: Memory at [0-9a-f]+ \(64-bit, non-prefetchable\) \[size=16K\]',
         r'Region 2: Memory at [0-9a-f]+ \(64-bit, prefetchable\) \[size=4K\]',
         r'Region 4: Memory at [0-9a-f]+ \(64-bit, non-prefetchable\) \[size=4K\]',
         r'Power Management version 3', r'Status: D0 NoSoftRst\+',
         r'Express \(v2\) Root Complex Integrated Endpoint', r'RBE\+ FLReset\+', r'FLReset-\n', r'TransPend-',
         r'VirtIO: CommonCfg\n\s+BAR=0 offset=00000000 size=0000003c', r'VirtIO: ISR\n\s+BAR=0 offset=00001000',
         r'VirtIO: Notify\n\s+BAR=2 offset=00000000 size=\S+ multiplier=00000004', 'Kernel driver in use: virtio-pci')
    check(('VirtIO: DeviceCfg' in text) == (number != '1044'), f'slot {slot}: configuration space', seen)
    # The fifth kind, access through the configuration space, has no name in lspci yet.
    check(text.count('VirtIO: <unknown>') == 1 and text.count('Capabilities:') == len(re.findall('VirtIO:', text)) + 3,
          f'slot {slot}: capabilities', seen)
    if vectors:
        want(rf'MSI-X: Enable\+ Count={vectors} Masked-', r'DisINTx\+', r'Vector table: BAR=4', r'PBA: BAR=4')


def run(ring3):
    with tempfile.TemporaryDirectory() as folder:
        disk = os.path.join(folder, 'disk')
        with open(disk, 'wb') as f:
            f.truncate(1 << 20)
        args = command(ring3, '--disk', f'{disk},format=raw', '--console', 'file:' + os.path.join(folder, 'console'), '--rng',
                       '--net', 'user', '--share', f'{folder}:tag:ro', '--vsock', f'3,uds={folder}/v',
                       append='quiet loglevel=1 panic=-1 reboot=t',
                       initrd=archive(GUEST, folder, lspci() + modules(*VIRTIO, *DRIVERS)))
        done = subprocess.run(args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    seen = done.stdout
    check(done.stderr == b'', f'{done.stderr!r}', seen)
    listing, rest = seen.decode().split('====\n')
    for word in WRONG:
        check(word not in listing, f'lspci says {word!r}', seen)
    functions = [text + '\n' for text in listing.strip().split('\n\n')]
    check(len(functions) == len(DEVICES) + 2, f'{len(functions)} functions', seen)
    check(functions[0].startswith('00:00.0 0600: 8086:29c0'), 'no host bridge', seen)
    check(functions[-1].startswith('00:1f.0 0601: 8086:2918'), 'no ISA bridge', seen)
    check('I/O- Mem+ BusMaster+' in functions[0] and 'I/O+ Mem+ BusMaster+' in functions[-1], 'bridges that are off', seen)
    for slot in range(1, len(DEVICES) + 1):
        check_virtio(slot, functions[slot], seen)
        check(f'reset 0000:00:0{slot}.0 flr\n' in rest, f'slot {slot}: no function level reset', seen)
    check(rest.count('was reset\n') == 3 and 'random 256\n' in rest, 'the function was not reset', seen)
    check(rest.count('\n') == len(functions) + 4, 'the kernel complains', seen)


def main():
    signal.alarm(2 * PATIENCE)
    prepare_guest()
    return judge('lspci', run, os.path.abspath(sys.argv[1]))


if __name__ == '__main__':
    sys.exit(main())
