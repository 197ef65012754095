#!/usr/bin/env python3
"""Directories and sockets that Debian's kernel shares with the host under ring3.

usage: hostio.py RING3 CASE HOSTIO

CASE is one of the functions below whose names begin with case_; HOSTIO is hostio.c, for the guest.
"""
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading

from debian import PATIENCE, ROOT, VIRTIO, archive, check, command, insert, modules, run_case

FUSE = VIRTIO + ['fuse', 'virtiofs']
VSOCK = VIRTIO + ['vsock', 'vmw_vsock_virtio_transport_common', 'vmw_vsock_virtio_transport']
TOTAL = 24 << 20
CONNECTIONS = 300


def guest(ring3, hostio, names, text, *args, during=None, status=0):
    """What a guest prints that runs the commands; during(line) is called with each line as it comes."""
    with tempfile.TemporaryDirectory(prefix='ring3-hostio-') as folder:
        initrd = archive(insert(names) + text, folder, modules(*names) + [hostio])
        with subprocess.Popen(command(ring3, '--memory', '256M', *args, append='quiet loglevel=1 panic=-1',
                                      initrd=initrd),
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            timer = threading.Timer(PATIENCE, process.kill)
            timer.start()
            out = b''
            for line in process.stdout:
                out += line
                if during:
                    during(line.strip())
            err = process.stderr.read()
        timer.cancel()
        check(process.returncode == status and err == b'', f'status {process.returncode}, {err!r}', out)
        check(b'Call Trace' not in out, 'the kernel complains', out)
        return out


def digests(top):
    """Every file and link below top, with its contents and mode."""
    found = {}
    for folder, dirs, files in os.walk(top):
        for name in dirs + files:
            path = os.path.join(folder, name)
            key = os.path.relpath(path, top)
            if os.path.islink(path):
                found[key] = os.readlink(path)
            elif os.path.isdir(path):
                found[key] = 'dir'
            else:
                with open(path, 'rb') as f:
                    found[key] = hashlib.md5(f.read()).hexdigest()
    return found


def case_share(ring3, hostio):
    """A directory to write to and one to read: files, trees, names, sizes, random operations, and no way out."""
    with tempfile.TemporaryDirectory(prefix='ring3-share-') as top:
        work, source = os.path.join(top, 'work'), os.path.join(top, 'source:1')
        os.mkdir(work)
        shutil.copytree(os.path.join(ROOT, 'src'), source, symlinks=True)
        with open(os.path.join(top, 'secret'), 'w', encoding='utf-8') as f:
            f.write('secret')
        os.symlink('../secret', os.path.join(work, 'link'))
        out = guest(ring3, hostio, FUSE, """
            set -e
            mkdir /work /source
            mount -t virtiofs w /work
            mount -t virtiofs source /source
            cat /work/link 2>/dev/null && exit 9
            cat /work/../secret 2>/dev/null && exit 9
            touch /source/new 2>/dev/null && exit 9
            rm /source/meson.build 2>/dev/null && exit 9
            cp -a /source /work/copy
            (cd /source && find . -type f | sort | xargs md5sum) >/tmp/one
            (cd /work/copy && find . -type f | sort | xargs md5sum) >/tmp/two
            cmp /tmp/one /tmp/two
            echo files $(wc -l </tmp/one)
            mkdir /work/many
            for i in $(seq 300); do echo $i >/work/many/$i; done
            ls /work/many | wc -l
            mv /work/many /work/moved
            cat /work/moved/* | md5sum
            echo one >/work/f; chmod 604 /work/f; ln /work/f /work/g; mv /work/g /work/h
            stat -c '%a %h %s' /work/f
            cd /work; ln -s f l; cat l; rm f; cat h; cd /
            dd if=/dev/urandom of=/work/big bs=1M count=16 2>/dev/null
            md5sum /work/big
            echo 3 >/proc/sys/vm/drop_caches
            md5sum /work/big
            /demo/hostio fsx /work 1 400
            /demo/hostio tree /work 2 1500
            rm -r /work/tree /work/fsx
            df /work | tail -1
            exec 3>/work/unlinked; rm /work/unlinked; echo gone >&3; exec 3>&-
            umount /work; umount /source
            mount -t virtiofs w /work; ls /work/moved | wc -l
            poweroff -f
            """, '--share', f'{work}:w', '--share', f'{source}:source:ro')
        lines = out.decode().split('\n')
        wanted = digests(source)
        count = sum(value != 'dir' for value in wanted.values())
        check(f'files {count}' in lines and lines.count('300') == 2 and '604 2 4' in lines and 'secret' not in lines,
              'wrong output', out)
        check(digests(os.path.join(work, 'copy')) == wanted, 'the copy on the host differs', out)
        with open(os.path.join(work, 'big'), 'rb') as f:
            big = hashlib.md5(f.read()).hexdigest()
        check(lines.count(f'{big}  /work/big') == 2, 'the large file differs', out)
        check(sorted(os.listdir(work)) == ['big', 'copy', 'h', 'l', 'link', 'moved'], f'{os.listdir(work)}', out)


class Host(threading.Thread):
    """A program of the host that listens for a port of the guest's and gives back what it gets."""

    def __init__(self, path, count=1):
        super().__init__(daemon=True)
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(path)
        self.socket.listen(64)
        self.count = count
        self.start()

    def run(self):
        for _ in range(self.count):
            connection = self.socket.accept()[0]
            with connection:
                while data := connection.recv(1 << 16):
                    connection.sendall(data)


def converse(path, port, data):
    """Sends data to a guest's port and returns what it answers."""
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(PATIENCE)
        s.connect(path)
        s.sendall(f'CONNECT {port}\n'.encode())
        line = b''
        while not line.endswith(b'\n'):
            byte = s.recv(1)
            if not byte:
                return None
            line += byte
        check(line.startswith(b'OK '), f'{line!r}')

        def give():
            s.sendall(data)
            s.shutdown(socket.SHUT_WR)
        thread = threading.Thread(target=give, daemon=True)
        thread.start()
        answer = b''
        while more := s.recv(1 << 16):
            answer += more
        thread.join()
        return answer


def case_vsock(ring3, hostio):
    """Connections in both directions: large ones, many, refused ones."""
    with tempfile.TemporaryDirectory(prefix='ring3-vsock-') as top:
        path = os.path.join(top, 'v')
        Host(path + '_7000')
        Host(path + '_7001', CONNECTIONS)
        data = os.urandom(TOTAL)
        answers = []

        def talk():
            answers.append(converse(path, 5001, b'x'))  # nobody listens
            for part in (data, b'', b'short'):
                answers.append(converse(path, 5000, part))
        thread = threading.Thread(target=talk, daemon=True)

        def during(line):
            if line == b'listening':
                thread.start()
        out = guest(ring3, hostio, VSOCK, f"""
            h=/demo/hostio
            $h connect 9 1 && exit 9
            $h connect 7000 {TOTAL} || exit
            $h many 7001 {CONNECTIONS} || exit
            $h echo 5000 3
            poweroff -f
            """, '--vsock', f'33,uds={path}', during=during)
        thread.join(PATIENCE)
        check(f'connected {TOTAL}\r\n'.encode() in out.replace(b'\n', b'\r\n'), 'not all came back', out)
        check(f'connections {CONNECTIONS}'.encode() in out, 'too few connections', out)
        check(len(answers) == 4 and answers[0] is None, f'{len(answers)} answers', out)
        check(answers[1:] == [data, b'', b'short'], 'wrong answers', out)
        check(not os.path.exists(path), 'the socket is left behind', out)


if __name__ == '__main__':
    sys.exit(run_case(globals()))
