#!/usr/bin/env python3
"""An installed Debian under ring3, by ssh through a forwarded port: packages, transfers, many connections.

usage: distro.py RING3 [IMAGE [MIB]]

IMAGE (default cache/debian12.img) is what scripts/distro makes; without it the test is skipped. MIB (default 32) go each
way. The image is not changed.
"""
import hashlib
import http.server
import os
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time

from debian import CACHE, PATIENCE, Failure, check
from net import SKIPPED, Server, free_port

MIB = 1 << 20
CONNECTIONS = 1000
PACKAGE = 'ring3-proof'


class Guest:
    """The machine, with ssh to its port 22; use as a context."""

    def __init__(self, ring3, image, folder):
        self.port, self.more = free_port(), free_port()
        self.key = os.path.join(folder, 'key')
        shutil.copy(image + '.key', self.key)
        os.chmod(self.key, 0o600)
        self.log = open(os.path.join(folder, 'console'), 'w+b')
        self.process = subprocess.Popen(
            [ring3, 'run', '--cpus', '2', '--memory', '1G', '--disk', f'{image},format=raw,snapshot', '--rng',
             '--net', f'user,hostfwd=tcp:127.0.0.1:{self.port}-:22,hostfwd=tcp:127.0.0.1:{self.more}-:7000'],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT)

    def ssh(self, text, **kw):
        return subprocess.run(['ssh', '-q', '-i', self.key, '-o', 'StrictHostKeyChecking=no', '-o', 'BatchMode=yes',
                               '-o', 'UserKnownHostsFile=/dev/null', '-o', 'ConnectTimeout=30', '-p', str(self.port),
                               'root@127.0.0.1', text], stdout=subprocess.PIPE, **{'stdin': subprocess.DEVNULL, **kw})

    def run(self, text, **kw):
        done = self.ssh(text + ' 2>&1', **kw)
        check(done.returncode == 0, f'{text!r} ended with {done.returncode}', done.stdout)
        return done.stdout

    def wait(self):
        limit = time.monotonic() + 3 * PATIENCE
        while self.ssh('true').returncode:
            check(self.process.poll() is None and time.monotonic() < limit, 'no ssh', self.console())
            time.sleep(1)

    def console(self):
        self.log.flush()
        self.log.seek(0)
        return self.log.read()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.log.close()


def repository(folder):
    """A package, and the index of it that apt reads."""
    tree = os.path.join(folder, 'package')
    os.makedirs(os.path.join(tree, 'DEBIAN'))
    os.makedirs(os.path.join(tree, 'usr/bin'))
    with open(os.path.join(tree, 'DEBIAN/control'), 'w', encoding='utf-8') as f:
        f.write(f'Package: {PACKAGE}\nVersion: 1\nArchitecture: all\nMaintainer: ring3 <root@localhost>\n'
                'Description: proof of networks\n')
    with open(os.path.join(tree, 'usr/bin', PACKAGE), 'w', encoding='utf-8') as f:
        f.write('#!/bin/sh\necho installed\n')
    os.chmod(os.path.join(tree, 'usr/bin', PACKAGE), 0o755)
    with open(os.path.join(tree, 'usr/bin', PACKAGE + '.data'), 'wb') as f:
        f.write(os.urandom(4 * MIB))
    root = os.path.join(folder, 'www')
    os.mkdir(root)
    deb = os.path.join(root, f'{PACKAGE}.deb')
    subprocess.run(['dpkg-deb', '--root-owner-group', '-b', tree, deb], check=True, stdout=subprocess.DEVNULL)
    with open(deb, 'rb') as f:
        data = f.read()
    with open(os.path.join(tree, 'DEBIAN/control'), encoding='utf-8') as f:
        control = f.read()
    with open(os.path.join(root, 'Packages'), 'w', encoding='utf-8') as f:
        f.write(f'{control}Filename: ./{PACKAGE}.deb\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n')
    return root


def packages(guest, folder):
    """apt-get install from a repository on the host's loopback."""
    root = repository(folder)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=root)

        def log_message(self, *_):
            pass

    with socketserver.ThreadingTCPServer(('127.0.0.1', 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        where = f'http://10.0.2.2:{server.server_address[1]}'
        guest.run(f'echo "deb [trusted=yes] {where} ./" >/tmp/list; '
                  'o="-o Dir::Etc::sourcelist=/tmp/list -o Dir::Etc::sourceparts=/none"; '
                  f'(apt-get -q $o update && DEBIAN_FRONTEND=noninteractive apt-get -q -y $o install {PACKAGE})')
        server.shutdown()
    check(guest.run(PACKAGE) == b'installed\n', 'the package is not there')


def transfers(guest, folder, size):
    """Data both ways through ssh, compared by sums; seconds each took."""
    path = os.path.join(folder, 'data')
    digest = hashlib.sha256()
    with open(path, 'wb') as f:
        for _ in range(size):
            part = os.urandom(MIB)
            digest.update(part)
            f.write(part)
    start = time.monotonic()
    with open(path, 'rb') as f:
        seen = guest.run('sha256sum', stdin=f).split()[0].decode()
    into = time.monotonic() - start
    check(seen == digest.hexdigest(), 'what the guest received is not what was sent')
    # Outward by a connection of the guest's, without a cipher between.
    got = []

    def take(connection, _):
        digest, n = hashlib.sha256(), 0
        while data := connection.recv(1 << 18):
            digest.update(data)
            n += len(data)
        got.append((digest.hexdigest(), n))

    server = Server('127.0.0.1', take)
    start = time.monotonic()
    said = guest.run('python3 -c "import hashlib, os, socket\n'
                     f"s = socket.create_connection(('10.0.2.2', {server.port}))\n"
                     'h = hashlib.sha256()\n'
                     'a = os.urandom(1 << 20)\n'
                     f'for i in range({size}):\n'
                     '    a = a[1:] + bytes([i % 251])\n'
                     '    h.update(a)\n'
                     '    s.sendall(a)\n'
                     's.close()\n'
                     'print(h.hexdigest())"').split()[-1].decode()
    server.finish()
    out = time.monotonic() - start
    check(got == [(said, size * MIB)], f'what the guest sent is not what came: {got}, {said}')
    return into, out


def connections(guest):
    """Short connections to the guest and from it."""
    server = Server('127.0.0.1', lambda c, i: c.sendall(c.recv(100)), CONNECTIONS)
    seen = guest.run('python3 -c "import socket\n'
                     f'for i in range({CONNECTIONS}):\n'
                     f"    s = socket.create_connection(('10.0.2.2', {server.port}))\n"
                     '    s.sendall(b\'%d\' % i)\n'
                     '    assert s.recv(100) == b\'%d\' % i\n'
                     '    s.close()\n'
                     "print('all')\"")
    server.finish()
    check(seen == b'all\n', 'connections of the guest failed', seen)
    listener = threading.Thread(target=guest.ssh, args=(
        'python3 -c "import socket\n'
        "l = socket.create_server(('', 7000), backlog=64)\n"
        f'for i in range({CONNECTIONS} + 1):\n'
        '    c = l.accept()[0]\n'
        '    c.sendall(c.recv(100))\n'
        '    c.close()"',), daemon=True)
    listener.start()
    check(dial(guest.more, b'first'), 'the guest does not listen')
    for i in range(CONNECTIONS):
        check(dial_once(guest.more, b'%d' % i), f'connection {i} to the guest failed')
    listener.join(PATIENCE)
    check(not listener.is_alive(), 'the guest waits for a connection')


def dial_once(port, data):
    with socket.create_connection(('127.0.0.1', port), timeout=PATIENCE) as s:
        s.sendall(data)
        return s.recv(100) == data


def dial(port, data):
    """Until the guest listens: before that, the forwarder's connections end without an answer."""
    limit = time.monotonic() + PATIENCE
    while time.monotonic() < limit:
        try:
            if dial_once(port, data):
                return True
        except ConnectionError:
            pass
        time.sleep(0.2)
    return False


def main():
    ring3 = os.path.abspath(sys.argv[1])
    image = os.path.abspath(sys.argv[2]) if len(sys.argv) > 2 else os.path.join(CACHE, 'debian12.img')
    size = int(sys.argv[3]) if len(sys.argv) > 3 else 32
    if not os.path.exists(image + '.key') or not shutil.which('ssh') or not shutil.which('dpkg-deb'):
        return SKIPPED
    signal.signal(signal.SIGALRM, lambda *_: sys.exit('distro: it hangs'))
    signal.alarm(6 * PATIENCE + size)
    try:
        with tempfile.TemporaryDirectory(dir='/var/tmp') as folder, Guest(ring3, image, folder) as guest:
            guest.wait()
            packages(guest, folder)
            into, out = transfers(guest, folder, size)
            print(f'{size} MiB to the guest (ssh) in {into:.1f} s, from it (TCP) in {out:.1f} s', flush=True)
            start = time.monotonic()
            connections(guest)
            print(f'{CONNECTIONS} connections each way in {time.monotonic() - start:.1f} s', flush=True)
            guest.ssh('poweroff')
            check(guest.process.wait(PATIENCE) == 0, 'it does not end well', guest.console())
    except Failure as failure:
        print(f'distro: {failure}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
