#!/usr/bin/env python3
"""qcow2 images between ring3 and QEMU's tools, which judge: what ring3 wrote is checked and compared
by qemu-img, what QEMU wrote is read and changed by ring3.

usage: qcow2_peers.py RING3 PROGRAMS CASE [SEED]

PROGRAMS is the folder of qcow2-ops, qcow2-power, qcow2-crash and qcow2-fuzz.

CASE is one of the functions below whose names begin with case_. Random operations are the same for
the same SEED; a failure names it.
"""
import json
import os
import random
import subprocess
import sys
import tempfile
import time

RING3 = OPS = POWER = CRASH = FUZZ = ''
SEED = 1
MIB = 1 << 20


def run(*args, status=0, **kw):
    done = subprocess.run([str(a) for a in args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          timeout=300, **kw)
    if done.returncode != status:
        sys.exit(f'status {done.returncode}, not {status} (seed {SEED}): {" ".join(map(str, args))}\n'
                 + done.stdout.decode(errors='replace'))
    return done.stdout.decode(errors='replace')


def image(*args, **kw):
    return run(RING3, 'image', *args, **kw)


def qemu_create(path, size, options='', backing=None):
    args = ['qemu-img', 'create', '-q', '-f', 'qcow2']
    if options:
        args += ['-o', options]
    if backing:
        args += ['-b', backing[0], '-F', backing[1]]
    run(*args, path, size)


def io(path, *commands, fmt='qcow2'):
    args = ['qemu-io', '-f', fmt]
    for command in commands:
        args += ['-c', command]
    run(*args, path)


def judge(path, model, leaks=False):
    """The image is sound to both checkers and holds what the model holds."""
    run('qemu-img', 'check', '-q', path)
    image('check', path)
    run('qemu-img', 'compare', '-f', 'qcow2', '-F', 'raw', path, model)
    raw = path + '.read'
    image('convert', '--from', 'qcow2', '--to', 'raw', '--force', path, raw)
    run('qemu-img', 'compare', '-f', 'raw', '-F', 'raw', raw, model)
    os.unlink(raw)


def ops(path, model, count, engine='io_uring', seed=0):
    run(OPS, path, model, SEED * 1000 + seed, count, engine)


def blank(path, size):
    with open(path, 'wb') as f:
        f.truncate(size)


def fill(path, size, seed):
    """A raw file with data here and there, some of it easily compressed."""
    rng = random.Random(SEED * 100 + seed)
    with open(path, 'wb') as f:
        f.truncate(size)
        for _ in range(30):
            n = min(rng.choice([512, 4096, 70000, MIB]), size)
            f.seek(rng.randrange(0, (size - n) // 512 + 1) * 512)
            f.write(rng.randbytes(n) if rng.random() < 0.5 else (b'ring3 %d ' % seed * (n // 8 + 1))[:n])


def case_own():
    """Images of ring3's making, all cluster sizes and options."""
    for bits in (9, 12, 16, 21):
        size = (8 if bits == 9 else 96) * MIB - 512 * 7
        for options in ([], ['--lazy-refcounts']):
            blank('model', size)
            image('create', '--force', '--cluster-size', 1 << bits, *options, 'a.qcow2', size)
            ops('a.qcow2', 'model', 40, seed=bits)
            judge('a.qcow2', 'model')


def case_engines():
    for engine in ('threads', 'sync'):
        blank('model', 64 * MIB)
        image('create', '--force', '--cluster-size', '16K', 'a.qcow2', '64M')
        ops('a.qcow2', 'model', 80, engine)
        judge('a.qcow2', 'model')


def case_prealloc():
    for mode in ('metadata', 'falloc'):
        blank('model', 32 * MIB)
        image('create', '--force', '--preallocation', mode, 'a.qcow2', '32M')
        judge('a.qcow2', 'model')
        ops('a.qcow2', 'model', 60)
        judge('a.qcow2', 'model')


def case_qemu():
    """Images of QEMU's making: versions, refcount widths, preallocation."""
    for options in ('compat=0.10', 'compat=0.10,cluster_size=512', 'compat=1.1,cluster_size=2M',
                    'refcount_bits=1', 'refcount_bits=2,cluster_size=4k', 'refcount_bits=8',
                    'refcount_bits=64,cluster_size=1k', 'lazy_refcounts=on', 'preallocation=metadata',
                    'preallocation=falloc,cluster_size=32k'):
        size = 6 * MIB if '512' in options or '1k' in options else 40 * MIB
        qemu_create('a.qcow2', size, options)
        blank('model', size)
        io('a.qcow2', 'write -P 7 1M 3M', 'write -z 2M 100k', 'discard 3M 512k')
        run('qemu-img', 'convert', '-O', 'raw', 'a.qcow2', 'model')
        ops('a.qcow2', 'model', 40)
        judge('a.qcow2', 'model')


def case_compressed():
    for kind in ('zlib', 'zstd'):
        for cluster in ('512', '64k', '2M'):
            size = (4 if cluster == '512' else 24) * MIB + 1536
            fill('raw', size, 3)
            run('qemu-img', 'convert', '-c', '-O', 'qcow2', '-o',
                f'compression_type={kind},cluster_size={cluster}', 'raw', 'a.qcow2')
            judge('a.qcow2', 'raw')
            ops('a.qcow2', 'raw', 30)
            judge('a.qcow2', 'raw')
            fill('raw', size, 4)
            image('convert', '--force', '--compress', kind, '--cluster-size', cluster, 'raw', 'b.qcow2')
            judge('b.qcow2', 'raw')
            ops('b.qcow2', 'raw', 30)
            judge('b.qcow2', 'raw')


def case_backing():
    """Chains of raw and qcow2; overlays larger and smaller than what is behind."""
    for compat in ('0.10', '1.1'):
        for size, base in ((32 * MIB, 32 * MIB), (32 * MIB + 512, 20 * MIB + 1536), (20 * MIB, 32 * MIB)):
            fill('base.raw', base, 5)
            fill('model', base, 5)
            qemu_create('mid.qcow2', base, f'compat={compat},cluster_size=4k', ('base.raw', 'raw'))
            ops('mid.qcow2', 'model', 10)
            os.truncate('model', size)
            os.makedirs('sub', exist_ok=True)
            qemu_create('sub/top.qcow2', size, f'compat={compat}', ('../mid.qcow2', 'qcow2'))
            ops('sub/top.qcow2', 'model', 40)
            judge('sub/top.qcow2', 'model')
            image('create', '--force', '--backing', '../sub/top.qcow2', 'sub/own.qcow2')
            judge('sub/own.qcow2', 'model')
            ops('sub/own.qcow2', 'model', 20)
            judge('sub/own.qcow2', 'model')


def case_snapshots():
    """Snapshots keep what they hold, and the counts stay right."""
    for options in ('compat=0.10', 'compat=1.1,cluster_size=4k', 'lazy_refcounts=on', 'refcount_bits=4'):
        qemu_create('a.qcow2', 24 * MIB, options)
        blank('model', 24 * MIB)
        for n in range(2):
            ops('a.qcow2', 'model', 15, seed=n)
            run('qemu-img', 'snapshot', '-c', f's{n}', 'a.qcow2')
            run('cp', '--sparse=always', 'model', f'model{n}')
        ops('a.qcow2', 'model', 30, seed=9)
        judge('a.qcow2', 'model')
        assert 's1' in image('info', 'a.qcow2')
        for n in range(2):
            run('qemu-img', 'snapshot', '-a', f's{n}', 'a.qcow2')
            judge('a.qcow2', f'model{n}')
        run('qemu-img', 'snapshot', '-d', 's0', 'a.qcow2')
        judge('a.qcow2', 'model1')
        ops('a.qcow2', 'model1', 20, seed=10)
        judge('a.qcow2', 'model1')


def case_bitmaps():
    """A bitmap is lost when ring3 writes, but a check that only looks must not call it leaked."""
    qemu_create('a.qcow2', 16 * MIB)
    run('qemu-img', 'bitmap', '--add', 'a.qcow2', 'b0')
    io('a.qcow2', 'write -P 3 0 4M')
    image('check', 'a.qcow2')
    image('check', '--repair', 'all', 'a.qcow2')
    run('qemu-img', 'check', '-q', 'a.qcow2')
    assert 'b0' in run('qemu-img', 'info', 'a.qcow2')


def case_resize():
    rng = random.Random(SEED)
    for cluster in ('512', '64k'):
        for base in (None, ('base.raw', 'raw')):
            top = 4 * MIB if cluster == '512' else 64 * MIB
            size = top // 2
            if base:
                fill('base.raw', top, 6)
                fill('model', top, 6)
                os.truncate('model', size)
            else:
                blank('model', size)
            qemu_create('a.qcow2', size, f'cluster_size={cluster}', base)
            for n in range(8):
                size = rng.randrange(1, top // 512) * 512
                os.truncate('model', size)
                image('resize', '--shrink', 'a.qcow2', size)
                judge('a.qcow2', 'model')
                ops('a.qcow2', 'model', 6, seed=n)
                judge('a.qcow2', 'model')
    blank('model', MIB)
    image('create', '--force', '--cluster-size', '512', 'a.qcow2', '1M')
    os.truncate('model', 3 * 1024 * MIB)
    image('resize', 'a.qcow2', '3G')
    judge('a.qcow2', 'model')
    io('a.qcow2', 'write -P 1 2900M 64k')
    io('model', 'write -P 1 2900M 64k', fmt='raw')
    judge('a.qcow2', 'model')
    # Not while it is in use: who has it open believes to know its size and its tables.
    image('create', '--force', 'a.qcow2', '24M')
    blank('state', 1)
    writer = subprocess.Popen([CRASH, 'write', 'a.qcow2', 'state', '1'], stdout=subprocess.PIPE)
    writer.stdout.readline()
    said = image('resize', 'a.qcow2', '+1M', status=1)
    writer.kill()
    writer.wait()
    if 'in use' not in said:
        sys.exit('resize of an image in use: ' + said)
    image('resize', 'a.qcow2', '+1M')
    if '(26214400 bytes)' not in image('info', 'a.qcow2'):
        sys.exit('the disk did not grow')


def case_repair():
    """Damage of counts and flags is found with qemu-img check's statuses, and repaired."""
    fill('model', 16 * MIB, 7)
    run('qemu-img', 'convert', '-O', 'qcow2', 'model', 'good.qcow2')

    def damaged(offset, data):
        run('cp', 'good.qcow2', 'a.qcow2')
        with open('a.qcow2', 'r+b') as f:
            f.seek(offset)
            f.write(data)

    with open('good.qcow2', 'rb') as f:
        head = f.read(104)
        table = int.from_bytes(head[48:56], 'big')
        f.seek(table)
        block = int.from_bytes(f.read(8), 'big')
        l1 = int.from_bytes(head[40:48], 'big')
        f.seek(l1)
        l2 = int.from_bytes(f.read(8), 'big') & 0x00fffffffffffe00
    damaged(block + 2 * 1000, b'\0\1')  # a leak
    image('check', 'a.qcow2', status=3)
    image('check', '--repair', 'leaks', 'a.qcow2')
    judge('a.qcow2', 'model')
    damaged(block + 2 * 5, b'\0\0')  # a count that is too low
    image('check', 'a.qcow2', status=2)
    image('check', '--repair', 'leaks', 'a.qcow2', status=2)
    image('check', '--repair', 'all', 'a.qcow2')
    judge('a.qcow2', 'model')
    damaged(table, b'\0' * 8)  # no refcounts at all
    image('check', 'a.qcow2', status=2)
    image('check', '--repair', 'all', 'a.qcow2')
    judge('a.qcow2', 'model')
    damaged(l1, (l2).to_bytes(8, 'big'))  # a flag
    image('check', 'a.qcow2', status=2)
    image('check', '--repair', 'all', 'a.qcow2')
    judge('a.qcow2', 'model')
    ops('a.qcow2', 'model', 20)
    judge('a.qcow2', 'model')
    # Marked corrupt: not written, but repaired.
    fill('model', 16 * MIB, 7)
    damaged(79, b'\2')
    run(OPS, 'a.qcow2', 'model', 1, 1, 'sync', status=1)
    image('check', '--repair', 'all', 'a.qcow2')
    judge('a.qcow2', 'model')
    image('check', 'model', status=63)


def case_nbd():
    """Written by qemu-nbd through its socket, in another way than qemu-img's."""
    qemu_create('a.qcow2', 16 * MIB, 'cluster_size=8k')
    sock = os.path.join(os.getcwd(), 'nbd')
    nbd = subprocess.Popen(['qemu-nbd', '-f', 'qcow2', '-k', sock, '--discard=unmap', 'a.qcow2'])
    for _ in range(200):
        if os.path.exists(sock):
            break
        subprocess.run(['sleep', '0.05'])
    fill('model', 16 * MIB, 8)
    run('qemu-img', 'convert', '-n', '-f', 'raw', '-O', 'raw', 'model', f'nbd+unix:///?socket={sock}')
    nbd.wait(30)
    judge('a.qcow2', 'model')
    ops('a.qcow2', 'model', 30)
    judge('a.qcow2', 'model')


def case_power():
    """States after a power loss, made up from the writes that were recorded (qcow2_power.c)."""
    for options in (['512'], ['4K'], ['64K'], ['4K', '--lazy-refcounts'], ['512', '--lazy-refcounts']):
        image('create', '--force', 'a.qcow2', '2M', '--cluster-size', *options)
        run(POWER, 'a.qcow2', '.', SEED, 60)
    # With a snapshot: its clusters are copied, the tables, too.
    qemu_create('a.qcow2', 2 * MIB, 'cluster_size=4k')
    io('a.qcow2', 'write -z 0 1M')
    run('qemu-img', 'snapshot', '-c', 's', 'a.qcow2')
    run(POWER, 'a.qcow2', '.', SEED, 100)


def wait_unlocked(path):
    """The kernel closes what io_uring was busy with some time after the process has ended."""
    for _ in range(1000):
        done = subprocess.run(['qemu-io', '-f', 'qcow2', '-r', '-c', 'length', path], capture_output=True)
        writable = subprocess.run([RING3, 'image', 'check', '--quiet', '--repair', 'leaks', path], capture_output=True)
        if done.returncode == 0 and b'in use' not in writable.stderr:
            return
        time.sleep(0.02)
    sys.exit(f'{path} stays locked')


def case_crash(times=20):
    """kill -9 of a writer at any moment: nothing that was flushed is lost, nothing is corrupt."""
    rng = random.Random(SEED)
    for options in ([], ['--cluster-size', '512'], ['--lazy-refcounts']):
        image('create', '--force', *options, 'a.qcow2', '24M')
        blank('state', 1)
        for n in range(times // 3 + 1):
            writer = subprocess.Popen([CRASH, 'write', 'a.qcow2', 'state', str(SEED * 1000 + n)],
                                      stdout=subprocess.PIPE)
            writer.stdout.readline()
            try:
                writer.wait(rng.random() * 0.3)
            except subprocess.TimeoutExpired:
                pass
            writer.kill()
            writer.wait()
            wait_unlocked('a.qcow2')
            if n % 2:  # on lazy refcounts qemu-img would repair
                image('check', '--repair', 'all', 'a.qcow2')
                run('qemu-img', 'check', '-q', 'a.qcow2')
            elif not options or options[0] != '--lazy-refcounts':
                done = subprocess.run(['qemu-img', 'check', '-q', 'a.qcow2'])
                if done.returncode not in (0, 3):
                    sys.exit(f'corrupt after kill -9 number {n} (seed {SEED})')
            run(CRASH, 'verify', 'a.qcow2', 'state', 0)


def case_crash100():
    case_crash(100)


def case_full():
    """A full host disk: requests fail, the image stays sound, and goes on when there is room."""
    for options in ([], ['--cluster-size', '4K'], ['--lazy-refcounts']):
        image('create', '--force', *options, 'a.qcow2', '64M')
        blank('state', 1)
        for limit in (1, 3, 5, 6):
            run(CRASH, 'full', 'a.qcow2', 'state', limit * 1000)
            image('check', '--repair', 'leaks', 'a.qcow2')
            run('qemu-img', 'check', '-q', 'a.qcow2')
            run(CRASH, 'verify', 'a.qcow2', 'state', 0)


def case_fuzz(count=400):
    fill('base.raw', MIB, 1)
    qemu_create('a', 2 * MIB, 'cluster_size=512')
    qemu_create('b', 2 * MIB, 'cluster_size=4k,lazy_refcounts=on')
    qemu_create('c', 64 * MIB, 'compat=0.10')
    qemu_create('d', MIB, 'cluster_size=4k', ('base.raw', 'raw'))
    for path in 'abcd':
        io(path, 'write -P 7 100k 300k', 'write -z 200k 50k', 'discard 300k 50k')
    run('qemu-img', 'snapshot', '-c', 's', 'a')
    io('a', 'write -P 9 120k 8k')
    run('qemu-img', 'bitmap', '--add', 'b', 'm')
    for kind in ('zlib', 'zstd'):
        run('qemu-img', 'convert', '-c', '-O', 'qcow2', '-o', f'compression_type={kind},cluster_size=8k',
            'base.raw', kind)
    run(FUZZ, '.', SEED, count, 'a', 'b', 'c', 'd', 'zlib', 'zstd')


def case_fuzzlong():
    case_fuzz(15000)


def refused(text, *args):
    out = image(*args, status=1)
    if text not in out or out.count('\n') != 1:
        sys.exit(f'expected one line with "{text}": {args}\n{out}')


def patched(path, offset, data):
    with open(path, 'r+b') as f:
        f.seek(offset)
        f.write(data)


def case_refuse():
    """What cannot be supported is named; nothing chooses a host's file behind the user's back."""
    qemu_create('good.qcow2', MIB)

    def bad(text, *patches):
        run('cp', 'good.qcow2', 'bad.qcow2')
        for offset, data in patches:
            patched('bad.qcow2', offset, data)
        refused(text, 'convert', '--from', 'qcow2', 'bad.qcow2', 'out')
        assert not os.path.exists('out')

    bad('encrypted (AES)', (35, b'\1'))
    bad('encrypted (LUKS)', (35, b'\2'))
    bad('bit 40', (74, b'\1'))
    # A name that the image's own table gives (the first row's bit is changed to 9).
    bad('dirty bit', (78, b'\2'), (112 + 8 + 1, b'\x09'))
    bad('compression type', (104, b'\1'))
    bad('version 4', (4, b'\0\0\0\4'))
    bad('2^22', (20, b'\0\0\0\x16'))
    bad('L1 table', (36, b'\0\0\0\0'))
    bad('L1 table', (36, b'\x7f\0\0\0'))
    bad('beyond the end', (40, b'\0\x10\0\0\0\0\0\0'))
    bad('not aligned', (40, b'\0\0\0\0\0\3\0\1'))
    bad('refcount table', (56, b'\x10\0\0\0'))
    bad('too wide', (96, b'\0\0\0\7'))
    bad('length', (100, b'\0\0\0\x69'))
    bad('snapshots', (60, b'\0\x10\0\0'))
    qemu_create('e.qcow2', MIB, 'extended_l2=on')
    refused('extended L2', 'convert', 'e.qcow2', 'out')
    qemu_create('d.qcow2', MIB, 'data_file=d.data')
    refused('external data file', 'convert', 'd.qcow2', 'out')
    # Backing files: a loop, too many, other protocols.
    qemu_create('x.qcow2', MIB)
    qemu_create('y.qcow2', MIB, backing=('x.qcow2', 'qcow2'))
    run('qemu-img', 'rebase', '-u', '-b', 'y.qcow2', '-F', 'qcow2', 'x.qcow2')
    refused('form a loop', 'convert', 'x.qcow2', 'out')
    for name in ('nbd://localhost/x', 'json:{"driver":"raw"}', 'ssh://h/x'):
        run('qemu-img', 'rebase', '-u', '-b', name, '-F', 'raw', 'x.qcow2')
        refused('not a path', 'convert', 'x.qcow2', 'out')
    # A raw base in which a guest has written a header that names a file of the host.
    blank('secret', MIB)
    qemu_create('guest.raw', MIB, backing=('secret', 'raw'))
    qemu_create('over.qcow2', MIB, backing=('guest.raw', 'qcow2'))
    with open('over.qcow2', 'r+b') as f:  # the format that the overlay states is taken away
        head = f.read(4096)
        at = head.index(bytes.fromhex('e2792aca'))
        f.seek(at)
        f.write(bytes.fromhex('12345678'))
    refused('does not state', 'convert', 'over.qcow2', 'out')
    # Existing files are kept.
    blank('out', 512)
    refused('--force', 'convert', 'good.qcow2', 'out')
    refused('--force', 'create', 'out', '1M')
    assert os.path.getsize('out') == 512
    image('resize', 'good.qcow2', '512K', status=1)
    image('convert', 'good.qcow2', status=2)
    image('check', 'good.qcow2', 'x', status=1)
    assert not [name for name in os.listdir('.') if '.part-' in name]


def case_info():
    qemu_create('base.qcow2', 8 * MIB)
    qemu_create('a.qcow2', 8 * MIB, 'compat=1.1,lazy_refcounts=on', ('base.qcow2', 'qcow2'))
    ours = json.loads(image('info', '--json', 'a.qcow2'))
    theirs = json.loads(run('qemu-img', 'info', '--output=json', 'a.qcow2'))
    for key, value in ours.items():
        if key == 'format-specific':
            for k, v in value['data'].items():
                assert theirs[key]['data'][k] == v, (k, v, theirs)
        else:
            assert theirs[key] == value, (key, value, theirs)


def folder():
    """Where syncs cost nothing, if there is room."""
    shm = '/dev/shm'
    if os.access(shm, os.W_OK) and os.statvfs(shm).f_bavail * os.statvfs(shm).f_frsize > 1024 * MIB:
        return shm
    return os.environ.get('TMPDIR', '/var/tmp')


def main():
    global RING3, OPS, POWER, CRASH, FUZZ, SEED
    RING3, programs = (os.path.abspath(p) for p in sys.argv[1:3])
    OPS, POWER, CRASH, FUZZ = (os.path.join(programs, 'qcow2-' + p) for p in ('ops', 'power', 'crash', 'fuzz'))
    if len(sys.argv) > 4:
        SEED = int(sys.argv[4])
    with tempfile.TemporaryDirectory(prefix='ring3-qcow2-', dir=folder()) as d:
        os.chdir(d)
        globals()['case_' + sys.argv[3]]()
        os.chdir('/')


if __name__ == '__main__':
    main()
