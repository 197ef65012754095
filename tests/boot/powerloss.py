#!/usr/bin/env python3
"""ring3 is killed again and again while a guest writes to two disks, which live on from one kill to the next.

usage: powerloss.py RING3 STAMP [KILLS [SEED]]

One disk has an ext4 file system, to which files go that are synced; the other is written by STAMP (stamp.c), which
flushes. After each kill
  - qemu-img finds an image sound (of a qcow2 one, leaked clusters are no damage; with lazy refcounts it is repaired,
    as its dirty bit demands, and then sound);
  - e2fsck replays the journal of a copy, and finds nothing else to do; each file that was synced is there;
  - the other disk has all that was flushed, and nothing that was never written;
  - the guest boots again, with the same disks as they are.
Formats, cache modes and ways of doing I/O take turns.
"""
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile

from blk import APPEND, BLK, MIB, md5, read_file, tool
from debian import PATIENCE, Failure, archive, check, command, insert, modules, prepare_guest

SECTOR = 512
# On a host that is busy a vCPU may stand still for a while.
PATIENT = ' nosoftlockup rcupdate.rcu_cpu_stall_suppress=1'
STAMPED = 24 * MIB // SECTOR
FILES = 64 * MIB
KEPT = 12  # files of each round that stay

GUEST = insert(BLK) + """
mkdir /a
mount -t ext4 -o discard /dev/vda /a || exit
rm -f /a/old*
for f in /a/f*; do [ ! -f $f ] || mv $f /a/old${f#/a/f}; done
sync
(
    i=0
    while :; do
        dd if=/dev/urandom of=/a/f$i bs=16k count=$((i % 40 + 1)) 2>/dev/null
        sync
        sum=$(md5sum </a/f$i)
        echo "synced f$i $sum"
        i=$((i + 1))
        [ $i -lt KEPT ] || { rm /a/f$((i - KEPT)); sync; echo "removed f$((i - KEPT))"; }
    done
) &
/demo/stamp /dev/vdb STAMPED NEXT
"""

# Of both disks: format and what qemu-img create is told; then items of --disk in turn.
IMAGES = [('raw', []), ('qcow2', []), ('qcow2', ['-o', 'lazy_refcounts=on']),
          ('qcow2', ['-o', 'cluster_size=4k']), ('qcow2', ['-o', 'cluster_size=2M'])]
MODES = ['aio=io_uring', 'aio=threads', 'aio=sync', 'cache=none', 'cache=writethrough', 'aio=threads,cache=none']


class Stamps:
    """What the sectors of the second disk may hold."""

    def __init__(self):
        self.may = [{0} for _ in range(STAMPED)]  # numbers of writes; 0: zeros
        self.unflushed = []
        self.next = 1

    def announced(self, kind, number, place, sectors):
        self.unflushed.append((number if kind == 'write' else 0, place, sectors))
        self.next = max(self.next, number + 1)
        for sector in range(place, place + sectors):
            self.may[sector].add(self.unflushed[-1][0])

    def flushed(self):
        """The last of the writes announced wins; those before it in the same burst are over."""
        for value, place, sectors in self.unflushed:
            for sector in range(place, place + sectors):
                self.may[sector] = {value}
        self.unflushed = []

    def judge(self, path):
        """Looks at a raw image; from now on each sector is what it is."""
        with open(path, 'rb') as f:
            for sector in range(STAMPED):
                data = f.read(SECTOR)
                number, place = struct.unpack_from('<II', data)
                if data == bytes(SECTOR):
                    number = 0
                else:
                    check(data == struct.pack('<II', number, sector) * (SECTOR // 8),
                          f'sector {sector}: torn, or of somewhere else ({number}, {place})')
                check(number in self.may[sector],
                      f'sector {sector} has write {number}, not one of {sorted(self.may[sector])}')
                self.may[sector] = {number}
        self.unflushed = []


def image(folder, name, fmt, options, size):
    path = os.path.join(folder, name)
    tool('qemu-img', 'create', '-q', '-f', fmt, *options, path, str(size))
    return path


def raw_copy(path, fmt):
    """What a guest would see of an image, after its check."""
    raw = path + '.raw'
    if fmt == 'qcow2':
        checked = path + '.check'
        shutil.copyfile(path, checked)
        info = tool('qemu-img', 'info', '-f', fmt, checked)
        if b'lazy refcounts: true' in info:
            tool('qemu-img', 'check', '-q', '-r', 'all', '-f', fmt, checked, good=(0, 2, 3))
            tool('qemu-img', 'check', '-f', fmt, checked)
        else:
            tool('qemu-img', 'check', '-f', fmt, checked, good=(0, 3))
        tool('qemu-img', 'convert', '-f', fmt, '-O', 'raw', checked, raw)
        os.unlink(checked)
    else:
        shutil.copyfile(path, raw)
    return raw


def let_run(args, stamps, events):
    """Runs a guest for so many events, then kills ring3; the sums of the files that were synced, by name."""
    sums = {}
    with subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        def take(line):
            words = line.decode(errors='replace').split()
            if words[:1] == ['synced']:
                sums[words[1]] = words[2]
            elif words[:1] == ['removed']:
                sums.pop(words[1])
            elif words[:1] == ['flushed']:
                stamps.flushed()
            elif words[:1] == ['write'] or words[:1] == ['zero']:
                stamps.announced(words[0], *map(int, words[1:]))
                return False
            else:
                raise Failure(f'the guest says {line!r}')
            return True

        try:
            for line in process.stdout:
                events -= take(line)
                if events <= 0:
                    break
            check(events <= 0, f'ring3 ended with {process.poll()}')
        finally:
            process.kill()
        rest = process.stdout.read().split(b'\n')
        # The last one may be half a line.
        for line in rest[:-1]:
            take(line)
    check(process.returncode == -signal.SIGKILL, f'ring3 ended with {process.returncode}')
    return sums


def one_kill(ring3, stamp, disks, fmt, mode, stamps, rng):
    with tempfile.TemporaryDirectory() as folder:
        text = GUEST.replace('KEPT', str(KEPT)).replace('STAMPED', str(STAMPED)).replace('NEXT', str(stamps.next))
        initrd = archive(text, folder, modules(*BLK) + [stamp])
        args = command(ring3, *[a for d in disks for a in ('--disk', f'{d},format={fmt},{mode}')],
                       append=APPEND + PATIENT, initrd=initrd)
        sums = let_run(args, stamps, rng.randrange(1, 60))
    files, stamped = (raw_copy(d, fmt) for d in disks)
    tool('e2fsck', '-fp', '-E', 'journal_only', files, good=(0, 1))  # 1: the journal was replayed
    tool('e2fsck', '-fn', files)
    # One may have been on its way out.
    for name, digest in list(sums.items())[max(0, len(sums) - KEPT + 1):]:
        check(md5(read_file(files, name)) == digest, f'{name} was flushed and is lost')
    stamps.judge(stamped)
    os.unlink(files)
    os.unlink(stamped)
    return len(sums)


def main():
    ring3, stamp = map(os.path.abspath, sys.argv[1:3])
    kills = int(sys.argv[3]) if len(sys.argv) > 3 else len(IMAGES)
    seed = int(sys.argv[4]) if len(sys.argv) > 4 else 1
    rng = random.Random(seed)
    prepare_guest()
    signal.signal(signal.SIGALRM, lambda *_: sys.exit('powerloss: a guest hangs'))
    done = 0
    for i, (fmt, options) in enumerate(IMAGES):
        turns = kills // len(IMAGES) + (i < kills % len(IMAGES))
        with tempfile.TemporaryDirectory(dir='/var/tmp') as folder:
            stamps = Stamps()
            disks = [image(folder, 'files', fmt, options, FILES),
                     image(folder, 'stamped', fmt, options, STAMPED * SECTOR)]
            tool('mke2fs', '-q', '-t', 'ext4', disks[0]) if fmt == 'raw' else format_qcow2(folder, disks[0], options)
            for turn in range(turns):
                mode = MODES[(i + turn) % len(MODES)]
                signal.alarm(PATIENCE)
                try:
                    files = one_kill(ring3, stamp, disks, fmt, mode, stamps, rng)
                except Failure as failure:
                    print(f'kill {done} (seed {seed}; {fmt} {" ".join(options)}, {mode}): {failure}', file=sys.stderr)
                    return 1
                done += 1
                print(f'kill {done}: {fmt} {" ".join(options)}, {mode}: {files} files, {stamps.next - 1} writes',
                      flush=True)
    return 0


def format_qcow2(folder, path, options):
    raw = os.path.join(folder, 'empty')
    with open(raw, 'wb') as f:
        f.truncate(FILES)
    tool('mke2fs', '-q', '-t', 'ext4', raw)
    tool('qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', *options, raw, path)
    os.unlink(raw)


if __name__ == '__main__':
    sys.exit(main())
