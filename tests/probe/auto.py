#!/usr/bin/env python3
"""--engine auto, --engine kvm and 'ring3 engines' on hosts whose /dev/kvm is what it is, something else, or never answers.

usage: auto.py RING3 GUEST-KERNEL

Others' nodes are put over /dev/kvm in a mount namespace of ring3's own, which needs root.
"""
import fcntl
import os
import re
import signal
import subprocess
import sys
import tempfile

NODE = '/dev/kvm'
SKIPPED = 77
PATIENCE = 120
COVER = ['unshare', '-m', 'sh', '-c', 'mount --bind "$0" /dev/kvm && exec "$@"']


class Failure(Exception):
    pass


def check(condition, what):
    if not condition:
        raise Failure(what)


class Host:
    """Runs ring3 with a file in the place of /dev/kvm, or with what is there."""

    def __init__(self, ring3, guest, node=None):
        self.ring3, self.guest = ring3, guest
        self.cover = COVER + [node] if node else []

    def call(self, *args):
        p = subprocess.run(self.cover + [self.ring3, *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, timeout=PATIENCE, text=True, check=False)
        return p.returncode, p.stdout, p.stderr

    def engines(self):
        """Name, state and text of each."""
        status, out, err = self.call('engines')
        check(status == 0 and not err, f'ring3 engines: {status} {err}')
        found = [re.fullmatch(r'(\S+) +(available|missing) +(\S.*)', line) for line in out.splitlines()]
        check(found and all(found), f'ring3 engines says {out}')
        return [m.groups() for m in found]

    def run(self, *args):
        return self.call('run', '--kernel', self.guest, '--memory', '8M', '--serial', 'none', '--append', 'poweroff',
                         *args)

    def auto(self):
        """The one line that says which engine it is, and why; the guest runs."""
        status, _, err = self.run('--log-level', 'info')
        lines = [line for line in err.splitlines() if line.startswith('ring3: engine ')]
        check(status == 0 and len(lines) == 1, f'--engine auto: {status} {err}')
        return lines[0][len('ring3: engine '):]

    def check_auto(self):
        """auto is the first that is there, and gives the reasons for those before."""
        engines, line = self.engines(), self.auto()
        missing = []
        for name, state, text in engines:
            if state == 'available':
                check(line.startswith(name + ','), f'{name} is there, auto says {line}')
                break
            missing.append((name, text))
        for name, text in missing:
            check(f'{name} is missing: {text}' in line, f'auto does not say why {name} is missing: {line}')
        status, _, err = self.run()
        check(status == 0 and not err, f'--engine auto: {status} {err}')

    def check_refused(self, reason):
        """kvm is missing for this reason, by name an error, for auto none."""
        text = [text for name, state, text in self.engines() if (name, state) == ('kvm', 'missing')]
        check(len(text) == 1 and reason in text[0], f'kvm is missing for {text}, not {reason}')
        self.check_auto()
        status, out, err = self.run('--engine', 'kvm')
        check(status == 2 and not out, f'--engine kvm: {status} {err}')
        check(err.startswith('ring3: --engine: kvm: ') and err.count('\n') == 1 and reason in err, f'--engine kvm: {err}')


def hanging(path):
    """Whoever opens the file waits as long as the one returned is open, or for tens of seconds."""
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    return fd


def can_cover():
    if not os.path.exists(NODE):
        return False
    return subprocess.run(COVER + ['/dev/null', 'true'], stderr=subprocess.DEVNULL, check=False).returncode == 0


def main():
    ring3, guest = sys.argv[1:]
    try:
        host = Host(ring3, guest)
        host.check_auto()
        if not os.path.exists(NODE):
            host.check_refused('no KVM here')
        elif not can_cover():
            print('skipped: /dev/kvm cannot be covered')
            return SKIPPED
        else:
            Host(ring3, guest, '/dev/null').check_refused('/dev/kvm: no KVM device')
            with tempfile.TemporaryDirectory(prefix='ring3-kvm-') as folder:
                node = os.path.join(folder, 'node')
                lease = hanging(node)
                Host(ring3, guest, node).check_refused('KVM did not create a small test guest')
                os.close(lease)
    except Failure as e:
        print(f'FAIL: {e}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
