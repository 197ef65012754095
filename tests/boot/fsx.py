#!/usr/bin/env python3
"""Random operations on a guest's disks, compared in the guest with a model (fsx.c) and afterwards on the host.

usage: fsx.py RING3 FSX [all | NUMBER [SEED]]

Each run has an ext4 file system with a file on one disk, and four processes on another, without a file system. "all"
runs every format, cache mode and way of doing I/O; without an argument, or with a number, as many of them as that.
"""
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile

from blk import APPEND, BLK, MIB, md5, read_file, tool
from debian import PATIENCE, Failure, archive, check, command, insert, modules, prepare_guest

FORMATS = ['raw', 'qcow2']
CACHES = ['writeback', 'none', 'writethrough', 'unsafe']
WAYS = ['io_uring', 'threads', 'sync']
# Those of a short run.
SHORT = [('qcow2', 'writeback', 'io_uring'), ('raw', 'none', 'threads'), ('qcow2', 'writethrough', 'sync')]

# On a host that is busy a vCPU may stand still for a while.
PATIENT = ' nosoftlockup rcupdate.rcu_cpu_stall_suppress=1'

FILE = 3 * MIB
PART = 2 * MIB  # of the other disk, for each process
PARTS = 4

GUEST = """
mkdir /a
mount -t ext4 -o DISCARD /dev/vda /a || exit
/demo/fsx file /a/f %d OPERATIONS SEED || exit
/demo/fsx disk /dev/vdb %d OPERATIONS SEED %d || exit
umount /a && mount -t ext4 /dev/vda /a || exit
echo 3 >/proc/sys/vm/drop_caches
echo file $(md5sum </a/f)
echo disk $(md5sum </dev/vdb)
umount /a
dmesg | grep -E "I/O error|EXT4-fs error|BUG|Oops|WARNING:"
true
""" % (FILE, PART, PARTS)


def image(folder, name, fmt, raw):
    path = os.path.join(folder, name)
    if fmt == 'raw':
        shutil.copyfile(raw, path)
    else:
        tool('qemu-img', 'convert', '-f', 'raw', '-O', fmt, raw, path)
    return path


def raw_of(path, fmt):
    if fmt == 'raw':
        return path
    tool('qemu-img', 'check', '-q', '-f', fmt, path)
    tool('qemu-img', 'convert', '-f', fmt, '-O', 'raw', path, path + '.raw')
    return path + '.raw'


def one_run(ring3, fsx, fmt, cache, way, seed, operations):
    with tempfile.TemporaryDirectory(dir='/var/tmp') as folder:
        empty = os.path.join(folder, 'empty')
        with open(empty, 'wb') as f:
            f.truncate(16 * MIB)
        tool('mke2fs', '-q', '-t', 'ext4', '-O', '^has_journal', empty)
        disks = [image(folder, 'files', fmt, empty), image(folder, 'bytes', fmt, empty)]
        text = insert(BLK) + GUEST
        for word, value in {'SEED': seed, 'OPERATIONS': operations, 'DISCARD': 'discard' if seed % 2 else 'nodiscard'}.items():
            text = text.replace(word, str(value))
        args = command(ring3, '--cpus', '2', *[a for d in disks for a in
                                               ('--disk', f'{d},format={fmt},cache={cache},aio={way}')],
                       append=APPEND + PATIENT, initrd=archive(text, folder, modules(*BLK) + [fsx]))
        done = subprocess.run(args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
        check(done.returncode == 0 and done.stderr == b'', f'status {done.returncode}, {done.stderr!r}', done.stdout)
        lines = done.stdout.decode().splitlines()
        check(lines[:2] == ['fsx ok'] * 2 and len(lines) == 4, 'fsx failed', done.stdout)
        sums = dict(line.split()[:2] for line in lines[2:])
        files, bytes_ = (raw_of(d, fmt) for d in disks)
        tool('e2fsck', '-fn', files)
        check(md5(read_file(files, 'f')) == sums['file'], 'the file is another one on the host')
        with open(bytes_, 'rb') as f:
            check(md5(f.read()) == sums['disk'], 'the disk is another one on the host')


def main():
    ring3, fsx = map(os.path.abspath, sys.argv[1:3])
    which = sys.argv[3] if len(sys.argv) > 3 else str(len(SHORT))
    seed = int(sys.argv[4]) if len(sys.argv) > 4 else 1
    runs = list(itertools.product(FORMATS, CACHES, WAYS)) if which == 'all' else (SHORT * int(which))[:int(which)]
    prepare_guest()
    signal.signal(signal.SIGALRM, lambda *_: sys.exit('fsx: a guest hangs'))
    for i, (fmt, cache, way) in enumerate(runs):
        signal.alarm(2 * PATIENCE)
        try:
            one_run(ring3, fsx, fmt, cache, way, seed + i, 1500 if which == 'all' else 400)
        except Failure as failure:
            print(f'{fmt}, cache={cache}, aio={way}, seed {seed + i}: {failure}', file=sys.stderr)
            return 1
        print(f'{fmt}, cache={cache}, aio={way}, seed {seed + i}: ok', flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())
