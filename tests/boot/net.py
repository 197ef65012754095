#!/usr/bin/env python3
"""Debian's network driver and programs under ring3, with servers and clients on the host.

usage: net.py RING3 CASE

CASE is one of the functions below whose names begin with case_. They run in a network of their own, if the host
allows that (root, or user namespaces).
"""
import fcntl
import hashlib
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

from debian import PATIENCE, VIRTIO, Failure, archive, check, command, insert, modules, prepare_guest, run_case

SKIPPED = 77
NET = VIRTIO + ['failover', 'net_failover', 'virtio_net']
MIB = 1 << 20
SIZE = 16 * MIB
CONNECTIONS = 1000
NAMESERVER = '127.0.0.77'
TUNSETIFF, IFF_TAP, IFF_NO_PI, IFF_MULTI_QUEUE, TUNSETPERSIST = 0x400454ca, 2, 0x1000, 0x100, 0x400454cb
SIOCSIFADDR, SIOCSIFFLAGS, IFF_UP = 0x8916, 0x8914, 1

LEASE = r"""
cat >/tmp/lease <<'END'
#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add $ip/24 dev $interface
ip route add default via $router
echo nameserver $dns >/etc/resolv.conf
echo "lease $ip $router $dns $hostname $subnet"
END
chmod +x /tmp/lease
ip link set lo up
ip link set eth0 up
"""
DHCP = LEASE + 'udhcpc -q -n -i eth0 -s /tmp/lease 2>/dev/null\n'


def isolated():
    return bool(os.environ.get('RING3_TEST_NET'))


def isolate(argv):
    """Starts over in namespaces of our own, with loopback and a DNS server that we can play; or goes on."""
    if isolated() or not shutil.which('unshare'):
        return
    with tempfile.NamedTemporaryFile('w', suffix='.resolv') as resolv:
        resolv.write(f'nameserver {NAMESERVER}\n')
        resolv.flush()
        flags = '-nm' if os.geteuid() == 0 else '-rnm'
        inside = f'mount --bind {resolv.name} /etc/resolv.conf && exec "$@"'
        if subprocess.run(['unshare', flags, 'sh', '-c', inside, 'sh', 'true'], stderr=subprocess.DEVNULL).returncode:
            return
        sys.exit(subprocess.run(['unshare', flags, 'sh', '-c', inside, 'sh', sys.executable] + argv,
                                env=dict(os.environ, RING3_TEST_NET='1')).returncode)


def interface(request, name, data):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        fcntl.ioctl(s, request, struct.pack('16s24s', name.encode(), data))


class Server(threading.Thread):
    """Accepts connections and gives each to a function, which may fail the test by raising."""

    def __init__(self, address, talk, count=1):
        super().__init__(daemon=True)
        self.socket = socket.create_server((address, 0), backlog=64)
        self.port = self.socket.getsockname()[1]
        self.talk, self.count, self.error = talk, count, None
        self.start()

    def run(self):
        try:
            for i in range(self.count):
                connection = self.socket.accept()[0]
                connection.settimeout(PATIENCE)
                with connection:
                    self.talk(connection, i)
        except Exception as e:  # to be raised by finish
            self.error = e

    def finish(self):
        self.join(PATIENCE)
        self.socket.close()
        if self.error:
            raise self.error
        check(not self.is_alive(), 'the server waits for a connection')


def read_all(connection):
    data = b''
    digest, n = hashlib.md5(), 0
    while True:
        data = connection.recv(1 << 18)
        if not data:
            return digest.hexdigest(), n
        digest.update(data)
        n += len(data)


class Machine:
    """A guest that runs commands; use as a context."""

    def __init__(self, ring3, text, *args):
        self.folder = tempfile.TemporaryDirectory()
        initrd = archive(insert(NET) + text, self.folder.name, modules(*NET))
        self.process = subprocess.Popen(command(ring3, *args, append='quiet loglevel=1 panic=-1', initrd=initrd),
                                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.out = b''

    def line(self, start):
        """Reads on to the line that begins so."""
        timer = threading.Timer(PATIENCE, self.process.kill)
        timer.start()
        for line in self.process.stdout:
            self.out += line
            if line.startswith(start.encode()):
                timer.cancel()
                return line.decode().split()
        raise Failure(f'no {start!r}; the console says:\n{self.out.decode(errors="replace")}')

    def finish(self):
        try:
            out, err = self.process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise Failure('ring3 does not end') from None
        self.out += out
        check(self.process.returncode == 0 and err == b'', f'status {self.process.returncode}, {err!r}', self.out)
        return self.out.decode(errors='replace')

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        self.folder.cleanup()


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def transfers(ring3, setup, host, listen, *args):
    """Data both ways over TCP between the guest and an address of the host's, and what the guest says of it."""
    data = os.urandom(SIZE)
    seen = []
    give = Server(listen, lambda c, i: c.sendall(data))
    take = Server(listen, lambda c, i: seen.append(read_all(c)))
    text = setup + f"""
        nc {host} {give.port} </dev/null >/tmp/in
        echo in $(md5sum </tmp/in)
        dd if=/dev/urandom of=/tmp/out bs=1M count={SIZE // MIB} 2>/dev/null
        echo out $(md5sum </tmp/out)
        nc {host} {take.port} </tmp/out
        grep virtio /proc/interrupts
        dmesg | grep -E "Call Trace|virtio.*(fail|error)|eth0.*(bad|invalid)|hw csum"
        true"""
    with Machine(ring3, text, '--memory', '256M', *args) as m:
        check(m.line('in ')[1] == hashlib.md5(data).hexdigest(), 'what the guest received is not what was sent')
        sent = m.line('out ')[1]
        out = m.finish()
    give.finish()
    take.finish()
    check(seen == [(sent, SIZE)], f'what the guest sent is not what came: {seen}, {sent}')
    check('Call Trace' not in out and 'fail' not in out and 'csum' not in out, 'the kernel complains', out.encode())
    return out


def case_user(ring3):
    """DHCP, DNS, and data both ways through sockets of the host."""
    setup = DHCP
    dns = None
    if isolated():
        dns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        dns.bind((NAMESERVER, 53))
        threading.Thread(target=answer, args=(dns,), daemon=True).start()
        setup += 'nslookup host.example\n'
    out = transfers(ring3, setup, '10.0.2.2', '127.0.0.1', '--net', 'user,hostname=guesty')
    check('lease 10.0.2.15 10.0.2.2 10.0.2.3 guesty 255.255.255.0' in out.splitlines(), 'no such lease', out.encode())
    if dns:
        check('192.0.2.99' in out, 'no address from the DNS server', out.encode())
        dns.close()


def answer(dns):
    """Says that every name is 192.0.2.99."""
    while True:
        try:
            query, who = dns.recvfrom(2000)
        except OSError:
            return
        end = query.index(b'\0', 12) + 5
        kind = query[end - 4:end - 2]
        good = kind == b'\0\1'
        head = query[:2] + b'\x81\x80\0\1' + (b'\0\1' if good else b'\0\0') + b'\0\0\0\0'
        record = b'\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4' + socket.inet_aton('192.0.2.99')
        dns.sendto(head + query[12:end] + (record if good else b''), who)


def dial(port):
    """A connection to the guest's greeter, which may not listen yet: then it is reset or closed."""
    hello = b'hello from ring3\n'
    limit = time.monotonic() + PATIENCE
    while True:
        s = socket.create_connection(('127.0.0.1', port), timeout=PATIENCE)
        try:
            line = s.recv(len(hello), socket.MSG_WAITALL)
        except ConnectionError:
            line = b''
        if line == hello:
            return s
        s.close()
        check(line == b'', f'the guest answers {line}')
        check(time.monotonic() < limit, 'the guest does not answer')
        time.sleep(0.1)


def case_forward(ring3):
    """Connections from the host to the guest, as ssh would make them."""
    port = free_port()
    text = DHCP + """
        printf '#!/bin/sh\\necho "hello from $(hostname)"\\ncat\\n' >/tmp/serve
        chmod +x /tmp/serve
        nc -ll -p 22 -e /tmp/serve &
        echo ready
        nc -l -p 23 </dev/null
        """
    stop = free_port()
    with Machine(ring3, text, '--net',
                 f'user,hostfwd=tcp:127.0.0.1:{port}-:22,hostfwd=tcp:127.0.0.1:{stop}-10.0.2.15:23') as m:
        m.line('ready')
        for i in range(3):
            data = os.urandom(100000 * i + 10)
            with dial(port) as s:
                threading.Thread(target=s.sendall, args=(data,), daemon=True).start()
                check(s.makefile('rb').read(len(data)) == data, 'the echo differs')
        while m.process.poll() is None:
            try:
                socket.create_connection(('127.0.0.1', stop), timeout=PATIENCE).close()
            except ConnectionError:  # it has ended
                pass
            time.sleep(0.2)
        m.finish()
    busy = socket.create_server(('127.0.0.1', 0))
    number = busy.getsockname()[1]
    p = subprocess.run(command(ring3, '--net', f'user,hostfwd=tcp:127.0.0.1:{number}-:22'), stdin=subprocess.DEVNULL,
                       stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    busy.close()
    check(p.returncode == 2 and f'--net: cannot forward tcp 127.0.0.1:{number}'.encode() in p.stderr,
          'a port in use is no error', p.stderr)


def case_connections(ring3):
    """Many short connections, one after the other."""
    seen = []
    server = Server('127.0.0.1', lambda c, i: (seen.append(c.recv(100)), c.sendall(b'thanks\n')), CONNECTIONS)
    text = DHCP + f"""
        i=0
        while [ $i -lt {CONNECTIONS} ]; do
            echo connection $i | nc 10.0.2.2 {server.port} >/tmp/answer || echo failed $i
            read word </tmp/answer
            [ "$word" = thanks ] || echo no answer $i
            i=$((i + 1))
        done
        echo done"""
    with Machine(ring3, text, '--net', 'user') as m:
        out = m.finish()
    server.finish()
    check('failed' not in out and 'no answer' not in out and 'done' in out, 'connections failed', out.encode())
    check(seen == [b'connection %d\n' % i for i in range(CONNECTIONS)], 'not all arrived')


def make_tap(name, address, flags):
    """A tap interface of our namespace that stays."""
    with open('/dev/net/tun', 'r+b', buffering=0) as f:
        fcntl.ioctl(f, TUNSETIFF, struct.pack('16sH22x', name.encode(), IFF_TAP | IFF_NO_PI | flags))
        fcntl.ioctl(f, TUNSETPERSIST, 1)
    interface(SIOCSIFADDR, name, struct.pack('HH4s8x', socket.AF_INET, 0, socket.inet_aton(address)))
    interface(SIOCSIFFLAGS, name, struct.pack('H', IFF_UP))


def case_tap(ring3):
    """Data both ways through the host's own TCP, on one queue pair and on two."""
    if not isolated() or os.geteuid() != 0 or not os.access('/dev/net/tun', os.R_OK | os.W_OK):
        sys.exit(SKIPPED)
    for name, address, flags, more in [('tap0', '192.168.9.1', 0, ''), ('tap1', '192.168.10.1', IFF_MULTI_QUEUE, ',queues=2')]:
        try:
            make_tap(name, address, flags)
        except OSError as e:
            print(f'no tap interface: {e}')
            sys.exit(SKIPPED)
        setup = LEASE + f'ip addr add {address[:-1]}2/24 dev eth0\n'
        out = transfers(ring3, setup, address, address, '--cpus', '2', '--net', f'tap:{name}{more}')
        check(('input.1' in out) == bool(more), 'wrong number of queues', out.encode())
    for name, words in [('tap9', b'there is no interface tap9'), ('lo', b'lo is no tap interface'),
                        ('tap1', b'multi_queue')]:
        p = subprocess.run(command(ring3, '--net', f'tap:{name}'), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE)
        check(p.returncode == 2 and words in p.stderr, f'no such error for {name}', p.stderr)


def main():
    prepare_guest()  # while there is a network
    isolate(sys.argv)
    if isolated():
        interface(SIOCSIFFLAGS, 'lo', struct.pack('H', IFF_UP))
    return run_case(globals())


if __name__ == '__main__':
    sys.exit(main())
