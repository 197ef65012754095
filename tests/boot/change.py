#!/usr/bin/env python3
"""Debian under ring3 while its engine changes: it boots, computes, talks through pipes, reads and writes a disk, and
notices nothing.

usage: change.py RING3 CASE STEADY

CASE is one of the functions below whose names begin with case_; STEADY is the program of steady.c.
"""
import hashlib
import os
import re
import signal
import sys
import tempfile

from blk import BLK, MIB, make_disk, read_file, tool
from debian import PROMPT, batch, check, command, ended, insert, modules, run_case, with_console

CHANGE = re.compile(rb'engine ([a-z]+) -> ([a-z]+); the vCPUs stood for [0-9]+ us')
# What a kernel says when time or interrupts go wrong.
COMPLAINTS = 'unstable|stall|lockup|hung task|Lost|lost |nobody cared|timed out|Call Trace|I/O error|EXT4-fs error'
CHANGES_LEAST = 20


def work(ring3, cpus, steady, period):
    """Boot, checksums of memory and of a disk, pipes, clocks."""
    data = os.urandom(8 * MIB)
    text = insert(BLK) + f"""
        mkdir /a
        mount -t ext4 /dev/vda /a || exit
        /demo/steady 400 >/tmp/steady &
        sha256sum </a/data
        dd if=/a/data of=/a/copy bs=64k 2>/dev/null
        dd if=/dev/zero bs=64k count=64 2>/dev/null | sha256sum
        sync
        echo 3 >/proc/sys/vm/drop_caches
        sha256sum </a/copy
        wait
        cat /tmp/steady
        umount /a
        dmesg | grep -E '{COMPLAINTS}'
        cat /sys/devices/system/clocksource/clocksource0/current_clocksource"""
    with tempfile.TemporaryDirectory(dir='/var/tmp') as folder:
        disk = make_disk(folder, 'disk', 40 * MIB, {'data': data})
        status, out, err = batch(ring3, text, '--cpus', str(cpus), '--engine', 'bt', '--engine-switch', period,
                                 '--log-level', 'info', '--disk', f'{disk},format=raw',
                                 programs=modules(*BLK) + [steady])
        check(status == 0, f'status {status}, {err!r}', out)
        sums = [hashlib.sha256(d).hexdigest().encode() + b'  -' for d in (data, bytes(4 * MIB), data)]
        lines = out.splitlines()
        check(lines == sums + [b'steady ok', b'tsc'], 'wrong results', out)
        tool('e2fsck', '-f', '-n', disk)
        check(read_file(disk, 'copy') == data, 'the disk holds something else')
    moves = CHANGE.findall(err)
    check(len(moves) >= CHANGES_LEAST, f'{len(moves)} changes of engine', err)
    check(all(a[1] == b[0] for a, b in zip(moves, moves[1:])), 'changes that begin elsewhere than the last one ended', err)


def case_one(ring3, steady):
    """One vCPU."""
    work(ring3, 1, steady, '40,interp,bt')


def case_two(ring3, steady):
    """Two vCPUs."""
    work(ring3, 2, steady, '50,interp,bt')


def case_keys(ring3, steady):
    """Ctrl-A E and SIGUSR2; the guest goes on."""
    def talk(c):
        c.expect(PROMPT)
        start = len(c.seen)
        c.send(b'\x01e')
        start = c.expect(b'ring3: engine interp', start)
        check(c.run('echo $((6 * 7))') == b'42\n', 'wrong sum', c.seen)
        c.process.send_signal(signal.SIGUSR2)
        check(c.run('cat /proc/version').startswith(b'Linux'), 'no answer', c.seen)
        c.send(b'poweroff -f\n')
        ended(c, 0)
    with_console(command(ring3, '--engine', 'bt', '--cpus', '2'), talk)


if __name__ == '__main__':
    sys.exit(run_case(globals()))
