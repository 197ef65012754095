#!/usr/bin/env python3
"""Debian's disk driver and file system under ring3, with the host's e2fsprogs as judge.

usage: blk.py RING3 CASE

CASE is one of the functions below whose names begin with case_.
"""
import hashlib
import os
import resource
import signal
import subprocess
import sys
import tempfile

from debian import PATIENCE, VIRTIO, archive, batch, check, command, insert, modules, run_case

MIB = 1 << 20
BLK = VIRTIO + ['virtio_blk']
APPEND = 'quiet loglevel=1 panic=-1 reboot=t'


def md5(data):
    return hashlib.md5(data).hexdigest()


def tool(*args, good=(0,)):
    """Output of one of e2fsprogs' programs; its status must be a good one."""
    done = subprocess.run(args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          env={**os.environ, 'PATH': os.environ['PATH'] + ':/sbin:/usr/sbin'}, check=False)
    check(done.returncode in good, f'{" ".join(args)}: status {done.returncode}', done.stdout)
    return done.stdout


def make_disk(folder, name, size, files):
    """An image with an ext4 file system that holds files (a dictionary)."""
    path, source = os.path.join(folder, name), os.path.join(folder, name + '.files')
    os.mkdir(source)
    for file, data in files.items():
        with open(os.path.join(source, file), 'wb') as f:
            f.write(data)
    with open(path, 'wb') as f:
        f.truncate(size)
    tool('mke2fs', '-q', '-t', 'ext4', '-d', source, path)
    return path


def read_file(disk, name):
    """A file of an image's file system."""
    with tempfile.NamedTemporaryFile() as out:
        tool('debugfs', '-R', f'dump {name} {out.name}', disk)
        return out.read()


def case_files(ring3):
    """Files go both ways and survive; freed space goes back to the host; every way of doing I/O."""
    data = os.urandom(9 * MIB)
    text = insert(BLK) + """
        echo serial $(cat /sys/block/vda/serial)
        echo size $(cat /sys/block/vda/size) $(cat /sys/block/vdb/size)
        echo ro $(cat /sys/block/vda/ro) $(cat /sys/block/vdb/ro) $(cat /sys/block/vdc/ro)
        mkdir /a /b
        mount -t ext4 -o discard /dev/vda /a && mount -t ext4 /dev/vdc /b || exit
        md5sum </a/data
        dd if=/dev/urandom of=/a/new bs=64k count=300 2>/dev/null
        dd if=/dev/zero of=/a/gone bs=1M count=16 2>/dev/null
        dd if=/dev/urandom of=/b/lost bs=64k count=30 2>/dev/null
        sync
        rm /a/gone
        umount /a
        mount -t ext4 /dev/vda /a
        echo 3 >/proc/sys/vm/drop_caches
        md5sum </a/new
        md5sum </b/lost | wc -l
        umount /a /b
        dd if=/dev/zero of=/dev/vdb bs=4k count=1 2>/dev/null || echo refused
        dmesg | grep -E "I/O error|EXT4-fs error|Call Trace"
        true"""
    for options, cpus in [('aio=io_uring', 2), ('aio=threads,cache=none', 2), ('aio=sync', 1)]:
        with tempfile.TemporaryDirectory(dir='/var/tmp') as folder:
            disk = make_disk(folder, 'disk', 96 * MIB, {'data': data})
            other = make_disk(folder, 'other', 32 * MIB, {})
            with open(other, 'rb') as f:
                before = md5(f.read())
            status, out, err = batch(ring3, text, '--cpus', str(cpus),
                                     '--disk', f'{disk},format=raw,serial=R3-1,{options}',
                                     '--disk', f'{other},ro', '--disk', f'{other},format=raw,snapshot',
                                     programs=modules(*BLK))
            check(status == 0 and err == b'', f'{options}: status {status}, {err!r}', out)
            lines = out.decode().splitlines()
            check('serial R3-1' in lines, 'wrong serial', out)
            check(f'size {96 * MIB // 512} {32 * MIB // 512}' in lines, 'wrong sizes', out)
            check('ro 0 1 0' in lines, 'wrong ro', out)
            check('refused' in lines, 'the ro disk was written', out)
            sums = [line.split()[0] for line in lines if line.endswith('  -')]
            check(len(sums) == 2 and sums[0] == md5(data), 'wrong data', out)
            check('error' not in out.decode() and 'Call Trace' not in out.decode(), 'the kernel complains', out)
            tool('e2fsck', '-fn', disk)
            new = read_file(disk, 'new')
            check(len(new) == 300 * 65536 and md5(new) == sums[1], 'not what the guest wrote', out)
            check(os.stat(disk).st_blocks * 512 < 60 * MIB, 'freed space was not given back', out)
            with open(other, 'rb') as f:
                check(md5(f.read()) == before, 'a disk that was not to be written was', out)


def case_power_loss(ring3):
    """ring3 is killed while the guest writes: what it had flushed is there, and the file system is sound."""
    text = insert(BLK) + """
        mkdir /a
        mount -t ext4 /dev/vda /a || exit
        i=0
        while :; do
            dd if=/dev/urandom of=/a/f$i bs=16k count=$((i % 40 + 1)) 2>/dev/null
            sync
            echo synced f$i $(md5sum </a/f$i)
            i=$((i + 1))
        done"""
    for kills in (3, 8, 20):
        with tempfile.TemporaryDirectory(dir='/var/tmp') as folder:
            disk = make_disk(folder, 'disk', 64 * MIB, {})
            initrd = archive(text, folder, modules(*BLK))
            args = command(ring3, '--disk', f'{disk},format=raw', append=APPEND, initrd=initrd)
            sums = {}
            with subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
                for line in process.stdout:
                    if line.startswith(b'synced '):
                        _, name, digest, _ = line.decode().split()
                        sums[name] = digest
                        if len(sums) == kills:
                            process.kill()
                            break
                process.stdout.read()
            check(process.returncode == -signal.SIGKILL, f'ring3 ended with {process.returncode}')
            tool('e2fsck', '-fp', '-E', 'journal_only', disk, good=(0, 1))  # 1: the journal was replayed
            tool('e2fsck', '-fn', disk)
            for name, digest in sums.items():
                check(md5(read_file(disk, name)) == digest, f'{name} was flushed and is lost')


def case_full(ring3):
    """The host has no room: an I/O error in the guest, a line for the user, and everything goes on."""
    text = insert(BLK) + """
        echo ready
        until dd if=/dev/vdb bs=512 count=1 iflag=direct 2>/dev/null | grep -q go; do usleep 10000; done
        dd if=/dev/zero of=/dev/vda bs=1M count=8 oflag=direct 2>/dev/null && echo first fits
        dd if=/dev/zero of=/dev/vda bs=1M count=8 seek=32 oflag=direct 2>/dev/null || echo no room
        dd if=/dev/vda of=/dev/null bs=1M count=48 2>/dev/null && echo readable
        dd if=/dev/zero of=/dev/vda bs=1M count=8 oflag=direct 2>/dev/null && echo first fits again"""
    with tempfile.TemporaryDirectory(dir='/var/tmp') as folder:
        disk, signal_disk = os.path.join(folder, 'disk'), os.path.join(folder, 'signal')
        for path, size in (disk, 48 * MIB), (signal_disk, 4096):
            with open(path, 'wb') as f:
                f.truncate(size)
        args = command(ring3, '--disk', f'{disk},format=raw', '--disk', f'{signal_disk},format=raw,ro', append=APPEND,
                       initrd=archive(text, folder, modules(*BLK)))
        with subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE) as process:
            while True:
                line = process.stdout.readline()
                check(line, f'ring3 ended with {process.poll()}')
                if line.strip() == b'ready':
                    break
            # Not from the start: the guest's memory is a file, too.
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (16 * MIB, resource.RLIM_INFINITY))
            with open(signal_disk, 'r+b') as f:
                f.write(b'go')
            out, err = process.communicate(timeout=PATIENCE)
        check(process.returncode == 0, f'status {process.returncode}, {err!r}', out)
        for line in (b'first fits', b'no room', b'readable', b'first fits again'):
            check(line in out.splitlines(), f'no {line!r}', out)
        check(b'disk0: write of' in err and b'File too large' in err, f'the user is not told: {err!r}', out)


def case_full_files(ring3):
    """The host's room ends while a file system grows: errors in the guest; what it had synced before stays, and the
    file system can be mended. Formats that allocate stay sound, too."""
    text = insert(BLK) + """
        mkdir /a
        mount -t ext4 /dev/vda /a || exit
        dd if=/dev/urandom of=/a/kept bs=64k count=16 2>/dev/null
        sync
        echo synced $(md5sum </a/kept)
        until dd if=/dev/vdb bs=512 count=1 iflag=direct 2>/dev/null | grep -q go; do usleep 10000; done
        i=0
        while [ $i -lt 60 ] && dd if=/dev/urandom of=/a/f$i bs=1M count=1 conv=fsync 2>/dev/null; do i=$((i + 1)); done
        [ $i -lt 60 ] && echo no room
        md5sum </a/kept | sed 's/^/kept /'
        umount /a
        echo alive"""
    for fmt in 'raw', 'qcow2':
        with tempfile.TemporaryDirectory(dir='/var/tmp') as folder:
            disk, signal_disk = make_disk(folder, 'raw', 80 * MIB, {}), os.path.join(folder, 'signal')
            if fmt == 'qcow2':
                tool('qemu-img', 'convert', '-f', 'raw', '-O', fmt, disk, os.path.join(folder, fmt))
                disk = os.path.join(folder, fmt)
            with open(signal_disk, 'wb') as f:
                f.truncate(4096)
            args = command(ring3, '--disk', f'{disk},format={fmt}', '--disk', f'{signal_disk},format=raw,ro',
                           append=APPEND, initrd=archive(text, folder, modules(*BLK)))
            with subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE) as process:
                line = process.stdout.readline().split()
                check(line[:1] == [b'synced'], f'ring3 ended with {process.poll()}')
                # Not from the start: the guest's memory is a file, too.
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (32 * MIB, resource.RLIM_INFINITY))
                with open(signal_disk, 'r+b') as f:
                    f.write(b'go')
                out, err = process.communicate(timeout=PATIENCE)
            check(process.returncode == 0, f'{fmt}: status {process.returncode}, {err!r}', out)
            check(b'no room' in out.splitlines() and b'alive' in out.splitlines(), f'{fmt}: there was room', out)
            check(b'kept ' + line[1] in out, f'{fmt}: what was there is not readable', out)
            check(b'disk0: write of' in err and b'File too large' in err, f'{fmt}: the user is not told: {err!r}', out)
            if fmt == 'qcow2':
                tool('qemu-img', 'check', '-q', '-f', fmt, disk, good=(0, 3))
                tool('qemu-img', 'convert', '-f', fmt, '-O', 'raw', disk, disk + '.raw')
                disk += '.raw'
            tool('e2fsck', '-fy', disk, good=(0, 1))  # 1: it was mended
            tool('e2fsck', '-fn', disk)
            check(md5(read_file(disk, 'kept')) == line[1].decode(), f'{fmt}: what was synced is lost', out)


if __name__ == '__main__':
    sys.exit(run_case(globals()))
