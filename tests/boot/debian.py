#!/usr/bin/env python3
"""Boots Debian's kernel under ring3 and uses its serial console as people and programs do.

usage: debian.py RING3 CASE [VMLINUX-TOOL | PROGRAM]

CASE is one of the functions below whose names begin with case_. Timeouts only keep a test that hangs from
hanging for ever; nothing here asserts how long anything takes.
"""
import base64
import fcntl
import glob
import hashlib
import os
import pty
import random
import re
import resource
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
CACHE = os.path.join(ROOT, 'cache')
KERNEL = os.path.join(CACHE, 'vmlinuz')
INITRD = os.path.join(CACHE, 'initrd')
PROMPT = b'~ # '
PATIENCE = 240  # seconds; a sanitizer build on a busy host is slow


class Failure(Exception):
    pass


def check(condition, what, seen=b''):
    if not condition:
        raise Failure(f'{what}; the console ends with:\n{seen[-2000:].decode(errors="replace")}')


def prepare_guest():
    """Debian's kernel and the guest's RAM file system, if they are not there yet."""
    subprocess.run([os.path.join(ROOT, 'scripts', 'guest')], stdin=subprocess.DEVNULL, check=True)


def judge(what, test, *args):
    """The exit status for a test, which says why it fails."""
    try:
        test(*args)
    except Failure as failure:
        print(f'{what}: {failure}', file=sys.stderr)
        return 1
    return 0


def run_case(names):
    """What a test of the form FILE RING3 CASE [PROGRAM...] does: the function case_CASE among names, with the rest as
    its arguments. The exit status."""
    name = sys.argv[2]
    signal.alarm(4 * PATIENCE)
    prepare_guest()
    return judge(name, names['case_' + name], *map(os.path.abspath, sys.argv[1:2] + sys.argv[3:]))


def command(ring3, *args, append='quiet', initrd=INITRD):
    return [ring3, 'run', '--kernel', KERNEL, '--initrd', initrd,
            '--append', f'console=ttyS0 {append}', *args]


def archive(text, folder, programs):
    """The guest's RAM file system with commands for it to run (scripts/guest.d/session), and programs in /demo."""
    os.mkdir(os.path.join(folder, 'demo'))
    for program in programs:
        shutil.copy(program, os.path.join(folder, 'demo'))
    with open(os.path.join(folder, 'demo', 'cmd'), 'w', encoding='utf-8') as f:
        f.write(text + '\n')
    names = ['demo', 'demo/cmd'] + ['demo/' + os.path.basename(p) for p in programs]
    more = subprocess.run(['cpio', '--quiet', '-o', '-H', 'newc', '-R', '0:0'], cwd=folder,
                          input='\n'.join(names).encode(), stdout=subprocess.PIPE, check=True).stdout
    path = os.path.join(folder, 'initrd')
    with open(INITRD, 'rb') as base, open(path, 'wb') as f:
        f.write(base.read() + more)
    return path


class Console:
    """A running ring3 and both ends of its serial console."""

    def __init__(self, args, terminal):
        self.seen = b''
        self.slave = None
        if terminal:
            self.out, self.slave = pty.openpty()
            self.into = self.out
            self.settings = termios.tcgetattr(self.slave)
            self.process = subprocess.Popen(args, stdin=self.slave, stdout=self.slave,
                                            start_new_session=True)
        else:
            self.process = subprocess.Popen(args, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self.into = self.process.stdin.fileno()
            self.out = self.process.stdout.fileno()
        os.set_blocking(self.into, False)

    def read(self, timeout):
        """Takes what the guest says within the time; False if nothing came."""
        if not select.select([self.out], [], [], timeout)[0]:
            return False
        try:
            data = os.read(self.out, 65536)
        except OSError:  # the other end of the terminal is closed
            return False
        self.seen += data
        return bool(data)

    def expect(self, text, start=0):
        """Reads until text is there at or after start; gives the offset behind it."""
        limit = time.monotonic() + PATIENCE
        while True:
            at = self.seen.find(text, start)
            if at >= 0:
                return at + len(text)
            check(time.monotonic() < limit, f'no {text!r}', self.seen)
            if not self.read(0.2):
                check(self.process.poll() is None,
                      f'ring3 ended with {self.process.returncode} before {text!r}', self.seen)

    def send(self, data):
        """Types data as fast as the console takes it, reading meanwhile like any terminal."""
        limit = time.monotonic() + PATIENCE
        while data:
            check(time.monotonic() < limit, 'the console takes no input', self.seen)
            if select.select([self.out], [self.into], [], 1)[1]:
                data = data[os.write(self.into, data[:4096]):]
            self.read(0)

    def run(self, text):
        """Types a command and gives its output. The prompt must have been read."""
        mark = f'mark{random.getrandbits(64):x}'
        # Echoed with quotes in the middle, printed without.
        say = f'echo {mark[:5]}""{mark[5:]}'
        mark = mark.encode() + b'\r\n'
        start = len(self.seen)
        self.send(f'{say}; {text}; {say}\n'.encode())
        first = self.expect(mark, start)
        last = self.expect(mark, first)
        self.expect(PROMPT, last)
        return self.seen[first:last - len(mark)].replace(b'\r', b'')

    def finish(self):
        """Waits for ring3's end, gives its status."""
        limit = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            check(time.monotonic() < limit, 'ring3 does not end', self.seen)
            self.read(0.2)
        while self.read(0):
            pass
        return self.process.returncode

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def with_console(args, fn, terminal=True):
    console = Console(args, terminal)
    try:
        fn(console)
    finally:
        console.kill()


def ended(console, status):
    got = console.finish()
    check(got == status, f'status {got}, not {status}', console.seen)


def batch(ring3, text, *args, append='quiet loglevel=1 panic=-1 reboot=t', programs=(), **kw):
    """Runs commands in a guest without a terminal: status, output, errors."""
    with tempfile.TemporaryDirectory(prefix='ring3-boot-') as folder:
        p = subprocess.run(command(ring3, *args, append=append, initrd=archive(text, folder, programs)),
                           stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, timeout=PATIENCE, **kw)
    return p.returncode, p.stdout, p.stderr


def one_line(stderr):
    """Is it one line of ring3's, as every error is?"""
    return stderr.startswith(b'ring3: ') and stderr.count(b'\n') == 1


def case_shell(ring3):
    """To a shell, commands and their output, the right time, power-off."""
    def talk(c):
        c.expect(PROMPT)
        check(c.run('echo $((6 * 7))') == b'42\n', 'wrong sum', c.seen)
        check(c.run('uname -s') == b'Linux\n', 'wrong system', c.seen)
        check(b'MemTotal' in c.run('cat /proc/meminfo'), 'no memory', c.seen)
        before = time.time()
        guest = int(c.run('date +%s'))
        after = time.time()
        check(int(before) - 1 <= guest <= after + 1,
              f'date is {guest}, between {before} and {after} on the host', c.seen)
        # Job control: an interrupt ends the command and leaves the shell. It is typed again since the first may come
        # before the shell has made the command a foreground job.
        start = len(c.seen)
        c.send(b'echo go""ing; sleep 100000\n')
        start = c.expect(b'going', start)
        limit = time.monotonic() + PATIENCE
        while PROMPT not in c.seen[start:]:
            check(time.monotonic() < limit, 'the command is not interrupted', c.seen)
            c.send(b'\x03')
            c.read(1)
        check(c.run('pidof sleep || echo none') == b'none\n', 'the command survives', c.seen)
        c.send(b'poweroff\n')
        ended(c, 0)
        check(termios.tcgetattr(c.slave) == c.settings, 'the terminal is not as it was')
    with_console(command(ring3), talk)


def case_paste(ring3):
    """100 kB pasted into the console arrive complete and in order, echoed and not."""
    def talk(c):
        c.expect(PROMPT)
        for mode in ['-echo', 'echo']:
            data = base64.encodebytes(random.Random(mode).randbytes(76000))
            check(len(data) > 100000, 'too little to paste')
            c.run(f'stty {mode}')
            start = len(c.seen)
            c.send(b'echo rea""dy; cat >/tmp/paste\n')
            c.expect(b'ready', start)
            c.send(data + b'\x04')
            c.expect(PROMPT, start)
            got = c.run('stty echo; wc -c </tmp/paste; md5sum </tmp/paste').split()
            check(got[:2] == [str(len(data)).encode(), hashlib.md5(data).hexdigest().encode()],
                  f'with {mode}, {len(data)} bytes arrived as {got}', c.seen)
        c.send(b'poweroff -f\n')
        ended(c, 0)
    with_console(command(ring3), talk)


def case_pipe(ring3):
    """Standard input and output are pipes; input ends before the guest does."""
    def talk(c):
        c.expect(PROMPT)
        c.send(b'sleep 1; echo pi""ped; poweroff -f\n')
        os.set_blocking(c.into, True)
        c.process.stdin.close()
        c.expect(b'piped')
        ended(c, 0)
    with_console(command(ring3), talk, terminal=False)


def case_null(ring3):
    """Nobody there: commands run, their bytes come out as they are, their status is ours."""
    status, out, err = batch(ring3, "printf 'a\\0\\377\\n'; seq 3000; echo 'last'")
    expected = b'a\0\xff\n' + b''.join(b'%d\n' % n for n in range(1, 3001)) + b'last\n'
    check(status == 0 and out == expected and err == b'', f'status {status}, {err!r}', out)
    status, out, err = batch(ring3, 'echo out; exit 5')
    check(status == 64 + 5 and out == b'out\n', f'status {status}, {err!r}', out)


def case_leave(ring3):
    """The guest reboots into itself; Ctrl-A H helps, Ctrl-A X leaves and restores the terminal."""
    def talk(c):
        c.expect(PROMPT)
        c.send(b'reboot -f\n')
        c.expect(PROMPT, len(c.seen))
        start = len(c.seen)
        c.send(b'\x01h')
        c.expect(b'Ctrl-A', start)
        c.send(b'\x01x')
        ended(c, 0)
        check(termios.tcgetattr(c.slave) == c.settings, 'the terminal is not as it was')
    with_console(command(ring3), talk)


def case_power_button(ring3):
    """SIGUSR1 presses the power button: the guest, which has no driver loaded, sees its status."""
    def talk(c):
        def pressed():
            return 'STS' in c.run('cat /sys/firmware/acpi/interrupts/ff_pwr_btn').decode()

        c.expect(PROMPT)
        check(not pressed(), 'pressed from the start', c.seen)
        c.process.send_signal(signal.SIGUSR1)
        limit = time.monotonic() + PATIENCE
        while not pressed():
            check(time.monotonic() < limit, 'the power button is not noticed', c.seen)
        c.send(b'poweroff\n')
        ended(c, 0)
    with_console(command(ring3), talk)


PINNED = """
work='i=0; while [ $i -lt 3000 ]; do i=$((i + 1)); done; read -r s </proc/self/stat; echo $s'
n=$(nproc)
for c in $(seq 0 $((n - 1))); do taskset -c $c sh -c "$work" >/tmp/$c & done
wait
for c in $(seq 0 $((n - 1))); do echo "pinned $c $(cut -d' ' -f39 /tmp/$c)"; done
"""

OFFLINE = """
cd /sys/devices/system/cpu
for round in 1 2 3; do
    for c in $(seq 1 $(($(nproc) - 1))); do
        echo 0 >cpu$c/online || exit 1
        echo "off $(cat online)"
        echo 1 >cpu$c/online || exit 1
        taskset -c $c true || exit 1
    done
done
echo "on $(cat online)"
"""

PING = """
mkfifo /tmp/there /tmp/back
taskset -c 0 sh -c 'while read -r n; do echo $n; done </tmp/there >/tmp/back' &
taskset -c 1 sh -c 'exec 3>/tmp/there 4</tmp/back; i=0
    while [ $i -lt 500 ]; do echo $i >&3; read -r n <&4; [ $n = $i ] || exit 1; i=$((i + 1)); done; echo ping $i'
wait
"""


def counters(out, name):
    """The numbers of a line of /proc/interrupts, one for each CPU."""
    for line in out.splitlines():
        words = line.split()
        if words and words[0] == name + b':':
            return [int(w) for w in words[1:] if w.isdigit()]
    return []


def case_smp(ring3, shootdown):
    """Several vCPUs: found, used, interrupting each other, taken off and put back; then a reboot."""
    for n in [2, 4]:
        text = ('nproc; grep -c ^processor /proc/cpuinfo; grep "^siblings" /proc/cpuinfo; dmesg | grep "Call Trace"\n'
                f'{PINNED}\n{PING}\n/demo/shootdown 100\n{OFFLINE}\ncat /proc/interrupts')
        status, out, err = batch(ring3, text, '--cpus', str(n), programs=[shootdown])
        check(status == 0 and err == b'', f'--cpus {n}: status {status}, {err!r}', out)
        lines = out.replace(b'\t', b' ').splitlines()
        check(lines[:2] == [b'%d' % n] * 2, f'--cpus {n}: {lines[:2]} CPUs', out)
        check(lines[2:n + 2] == [b'siblings : %d' % n] * n, f'--cpus {n}: wrong topology', out)
        for c in range(n):
            check(b'pinned %d %d' % (c, c) in lines, f'--cpus {n}: nothing ran on CPU {c}', out)
        check(b'ping 500' in lines, f'--cpus {n}: no ping', out)
        check(b'shootdown ok' in lines, f'--cpus {n}: wrong memory', out)
        check(b'on 0-%d' % (n - 1) in lines, f'--cpus {n}: a CPU did not come back', out)
        check(sum(line.startswith(b'off 0') for line in lines) == 3 * (n - 1),
              f'--cpus {n}: a CPU did not go off', out)
        for name in ['LOC', 'RES', 'CAL', 'TLB']:
            got = counters(out, name.encode())
            # The program changes mappings on CPU 0, which others need not tell of any.
            check(len(got) == n and all(got[name == 'TLB':]), f'--cpus {n}: {name} {got}', out)
        check(b'Call Trace' not in out, f'--cpus {n}: the kernel complains', out)


def case_smp_many(ring3):
    """Many more vCPUs than the host has CPUs; one of them reboots, and then all spin when the user leaves."""
    def talk(c):
        c.expect(PROMPT)
        check(c.run('nproc') == b'24\n', 'not all CPUs', c.seen)
        c.send(b'taskset -c 23 reboot -f\n')
        c.expect(PROMPT, len(c.seen))
        check(c.run('nproc') == b'24\n', 'not all CPUs after the reboot', c.seen)
        c.run('for c in $(seq 0 23); do taskset -c $c sh -c "while :; do :; done" & done')
        c.send(b'\x01x')
        ended(c, 0)
    with_console(command(ring3, '--cpus', '24'), talk)


def case_no_reboot(ring3):
    """Under --no-reboot a reboot ends with status 0, and only then."""
    status, out, err = batch(ring3, 'echo once; reboot -f', '--no-reboot', append='quiet loglevel=1')
    check(status == 0 and out.count(b'once') == 1 and err == b'', f'status {status}, {err!r}', out)


def case_failed(ring3):
    """Status 1: the host refuses what ring3 needs."""
    def starve():
        resource.setrlimit(resource.RLIMIT_NOFILE, (4, 4))
    status, out, err = batch(ring3, 'true', preexec_fn=starve)
    check(status == 1 and one_line(err), f'status {status}, {err!r}', out)


def case_config(ring3):
    """Status 2: a kernel cut short, one with bad bytes, one that does not fit into memory."""
    with open(KERNEL, 'rb') as f:
        kernel = bytearray(f.read())
    with tempfile.TemporaryDirectory(prefix='ring3-boot-') as folder:
        short, bad = os.path.join(folder, 'short'), os.path.join(folder, 'bad')
        with open(short, 'wb') as f:
            f.write(kernel[:len(kernel) // 3])
        # Many, since the lz4 format of Debian's payload has no checksum.
        middle = len(kernel) // 2
        kernel[middle:middle + 4096] = b'\xff' * 4096
        with open(bad, 'wb') as f:
            f.write(kernel)
        for args in [('--kernel', short), ('--kernel', bad), ('--memory', '16M')]:
            p = subprocess.run(command(ring3, *args), stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=PATIENCE)
            check(p.returncode == 2 and one_line(p.stderr),
                  f'{args}: status {p.returncode}, {p.stderr!r}', p.stdout)


def case_died(ring3):
    """Status 3: the kernel panics and resets by a triple fault."""
    status, out, err = batch(ring3, 'echo dying; echo c >/proc/sysrq-trigger')
    check(status == 3 and one_line(err) and out.startswith(b'dying\n'),
          f'status {status}, {err!r}', out)


def case_timeout(ring3):
    """Status 4: the guest does not end."""
    status, out, err = batch(ring3, 'sleep 100000', '--timeout', '8')
    check(status == 4 and one_line(err), f'status {status}, {err!r}', out)


def case_check(ring3):
    """The first minute of a boot with the translator in lockstep with the interpreter: they agree. A whole boot takes
    some minutes: --check without --timeout."""
    status, out, err = batch(ring3, 'uname -s', '--engine', 'bt', '--check', '--log-level', 'info',
                             '--timeout', '60')
    check(status in (0, 4), f'status {status}, {err!r}', out)
    alike = re.search(rb'^ring3: check: (\d+) blocks, (\d+) instructions alike', err, re.M)
    check(alike and int(alike[1]) > 100000, f'too little was compared: {err!r}', out)


def case_pvh(ring3, vmlinux):
    """The kernel as an ELF file, entered by its PVH note; it is loaded anew when it reboots."""
    with tempfile.TemporaryDirectory(prefix='ring3-boot-') as folder:
        elf = os.path.join(folder, 'vmlinux')
        subprocess.run([vmlinux, KERNEL, elf], check=True)

        def talk(c):
            c.expect(PROMPT)
            check(b'panic=-1' in c.run('cat /proc/cmdline'), 'no command line', c.seen)
            c.send(b'reboot -f\n')
            c.expect(PROMPT, len(c.seen))
            c.send(b'poweroff -f\n')
            ended(c, 0)
        with_console(command(ring3, '--kernel', elf, append='quiet panic=-1'), talk)


def modules(*names):
    """Files of the kernel's modules."""
    found = []
    for name in names:
        files = glob.glob(os.path.join(CACHE, 'modules', '**', name + '.ko'), recursive=True)
        check(len(files) == 1, f'{len(files)} modules {name}; run scripts/guest')
        found += files
    return found


# In the order in which they need each other.
VIRTIO = ['virtio_ring', 'virtio', 'virtio_pci_modern_dev', 'virtio_pci_legacy_dev', 'virtio_pci']


def insert(names):
    """Commands that load modules."""
    return ''.join(f'insmod /demo/{name}.ko || exit\n' for name in names)


def case_virtio(ring3):
    """Debian's drivers of virtio devices: with MSI-X, with the interrupt pin, bound again, and several vCPUs."""
    names = VIRTIO + ['virtio-rng', 'virtio_console']
    text = insert(names) + """
        draw() { dd if=/dev/hwrng bs=1024 count=32 2>/dev/null | md5sum; }
        draw; draw
        dd if=/dev/hwrng bs=1024 count=32 2>/dev/null | wc -c
        cat /sys/class/misc/hw_random/rng_current
        rng=$(basename $(ls -d /sys/bus/virtio/drivers/virtio_rng/virtio*))
        echo $rng >/sys/bus/virtio/drivers/virtio_rng/unbind
        echo $rng >/sys/bus/virtio/drivers/virtio_rng/bind
        draw
        seq 20000 >/dev/hvc0
        grep virtio /proc/interrupts
        dmesg | grep -E "Call Trace|virtio.*(fail|error)"
        true"""
    for append, kind in [('', b'MSI'), ('pci=nomsi', b'fasteoi')]:
        with tempfile.NamedTemporaryFile() as file:
            status, out, err = batch(ring3, text, '--rng', '--console', f'file:{file.name}', '--cpus', '2',
                                     programs=modules(*names),
                                     append=f'quiet loglevel=1 panic=-1 reboot=t {append}')
            check(status == 0 and err == b'', f'{append}: status {status}, {err!r}', out)
            lines = out.splitlines()
            sums = [line for line in lines if re.fullmatch(b'[0-9a-f]{32}  -', line)]
            check(len(set(sums)) == 3, 'no random bytes', out)
            check(b'32768' in lines, 'too few random bytes', out)
            check(b'virtio_rng.0' in lines, 'no generator', out)
            irqs = [line for line in lines if b'virtio' in line and kind in line]
            check(irqs and any(int(n) for n in irqs[0].split()[1:3]) or len(irqs) > 1, f'no {kind}', out)
            check(b'Call Trace' not in out and b'fail' not in out, 'the kernel complains', out)
            written = file.read().replace(b'\r', b'')
            check(written == b''.join(b'%d\n' % n for n in range(1, 20001)), 'wrong output of the console', written)


def case_virtio_console(ring3):
    """A shell on the virtio console, the size of its terminal, and a reboot."""
    names = VIRTIO + ['virtio_console']
    text = insert(names) + 'cd; setsid -c sh <>/dev/hvc0 >&0 2>&1'

    def size(c, rows, columns):
        fcntl.ioctl(c.slave, termios.TIOCSWINSZ, struct.pack('HHHH', rows, columns, 0, 0))

    def talk(c):
        c.expect(PROMPT)
        check(c.run('tty') == b'/dev/hvc0\n', 'not on the console', c.seen)
        size(c, 33, 99)
        c.process.send_signal(signal.SIGWINCH)
        check(c.run('until stty size | grep 33; do sleep 0.1; done') == b'33 99\n', 'wrong size', c.seen)
        c.send(b'reboot -f\n')
        c.expect(PROMPT, len(c.seen))
        check(c.run('stty size') == b'33 99\n', 'wrong size after the reboot', c.seen)
        data = base64.b64encode(os.urandom(9000)).decode()
        for i in range(0, len(data), 600):
            c.run(f'echo {data[i:i + 600]} >>/tmp/data')
        check(c.run("tr -d '\\n' </tmp/data | md5sum").split()[0] ==
              hashlib.md5(data.encode()).hexdigest().encode(), 'what was typed is not what came', c.seen)
        c.send(b'poweroff -f\n')
        ended(c, 0)

    with tempfile.TemporaryDirectory() as folder:
        initrd = archive(text, folder, modules(*names))
        with_console(command(ring3, '--console', 'stdio', '--memory', '256M', initrd=initrd), talk)


if __name__ == '__main__':
    sys.exit(run_case(globals()))
