#!/usr/bin/env python3
"""ring3 with a KVM that works, wherever the test runs: in the rig of scripts/kvm-rig.

usage: rig.py RING3 CASE [TEST-PROGRAM]...

CASE is one of the functions below whose names begin with case_, with - for _. Timeouts only keep a test that hangs from
hanging for ever; nothing here asserts how long anything takes.
"""
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
RIG = os.path.join(ROOT, 'scripts', 'kvm-rig')
MODULES = os.path.join(ROOT, 'cache', 'modules', 'kernel')
# A later one needs those before it.
NET_MODULES = ['net/core/failover', 'drivers/net/net_failover', 'drivers/net/virtio_net']
PATIENCE = 420
ROUNDS, ROUNDS_SMP, ROUNDS_IO = 20, 7, 5
IO_BLOCKS = 40  # of 4 KiB each
BROKEN = 125  # the rig's status for a failure of its own
# QEMU's TCG lets a nested guest run XSETBV without telling the hypervisor, so KVM's CPUID leaf 0xd is wrong under any VMM.
KNOWN = '"fpu__init_system_xstate|srso.html"'
SWITCH_MS = 500

# The code of a CPU that is emulated runs slowly for the first time: the probe may give it up then, and rightly so.
READY = """
tries=0
until ring3 engines | grep -q '^kvm *available'; do
    tries=$((tries + 1))
    [ $tries -lt 10 ] || exit 1
done
"""

# Shell functions for the rig: a guest, and talking to its console. ring3 asks KVM itself once more.
TALK = READY + r"""
start() {
    mkfifo in
    for try in 1 2 3 4 5 6 7 8 9 10; do
        ring3 run --log-level info --kernel vmlinuz --append 'console=ttyS0 quiet panic=-1' "$@" <in >out 2>err &
        pid=$!
        exec 3>in
        while [ -d /proc/$pid ]; do
            ! grep -q '^ring3: engine' err || return
            usleep 100000
        done
        exec 3>&-
    done
    give_up "ring3 does not start"
}
give_up() { echo "GIVEN UP: $*"; cat err; tail -c 2000 out; kill -9 $pid; exit 1; }
alive() { [ -d /proc/$pid ] || give_up "ring3 ended"; usleep 100000; }
expect() { until grep -qF "$1" out; do alive; done; }
say() { echo "$*" >&3; }
finish() { wait $pid; echo "status $?"; tr -d '\r' <out; cat err; }
"""

SHELL = r"""
start --initrd initrd --engine kvm --cpus CPUS
expect '~ # '
say 'echo $((6 * 7))=sum'
expect '42=sum'
say 'echo cpus=$(nproc) $(uname -s); head -c 1000000 /dev/zero | md5sum; dmesg | grep -E "BUG|WARNING:" | grep -v KNOWN | sed "s/^/compl""aint: /"; echo ever""ything'
expect 'everything'
say 'date +%s=date'
date +%s=before
expect '=date'
say 'poweroff'
finish
date +%s=after
"""

# A guest with two CPUs ends itself, by a reset from one and a panic of the other, and begins anew, while it goes once
# round the engines.
RESET = r"""
trap '' USR2
boots=1
again() { until [ $(grep -c 'built-in commands' out) -ge $boots ]; do alive; done; expect '~ # '; }
start --initrd initrd --engine kvm --cpus 2
again
for end in '0 b' '1 c'; do
    say "taskset -c ${end% *} sh -c 'echo ${end#* } >/proc/sysrq-trigger'"
    for engine in bt interp kvm; do
        kill -USR2 $pid
        usleep MS000
        alive
    done
    boots=$((boots + 1))
    again
done
say 'echo cpus=$(nproc)'
say 'poweroff -f'
finish
"""

# In the guest: blocks that are written, flushed and read anew, past its cache, and data that goes to the rig and comes from
# it, until there is input. What a disk holds in the end the guest sums, and the rig.
IO_JOB = r"""
cd /demo
for module in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk failover net_failover virtio_net; do
    insmod $module.ko
done
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
touch go
seq 1 99999 | head -c $((BLOCKS * 4096)) >data
sum() { md5sum "$@" | cut -d' ' -f1; }
disk() {
    n=0
    while [ -f go ]; do
        at=$((n % 4 * BLOCKS))
        dd if=data of=/dev/$1 bs=4k seek=$at oflag=direct conv=notrunc,fsync 2>/dev/null || echo "wrong: no write to $1"
        s=$(dd if=/dev/$1 bs=4k skip=$at count=BLOCKS iflag=direct 2>/dev/null | sum)
        [ $s = SUM ] || echo "wrong: $1 reads $s"
        n=$((n + 1))
    done
    echo "$1-rounds=$n"
}
net() {
    n=0
    while [ -f go ]; do
        s=$(nc 10.0.2.2 7001 </dev/null | sum)
        [ $s = SUM ] || echo "wrong: got $s"
        nc 10.0.2.2 7002 <data || echo "wrong: nobody takes the data"
        n=$((n + 1))
    done
    echo "net-rounds=$n"
}
disk vda & disk vdb & net &
echo work""ing
read -r line
rm go
wait
blockdev --flushbufs /dev/vda
blockdev --flushbufs /dev/vdb
echo "guest $(sum /dev/vda) $(sum /dev/vdb)"
echo do""ne
"""

# The rig's side.
IO = r"""
mkdir -p more/demo
cp job modules/virtio*.ko net/*.ko more/demo/
(cd more; find demo | cpio -o -H newc 2>/dev/null) >more.cpio
cat initrd more.cpio >both
ip link set lo up
seq 1 99999 | head -c $((BLOCKS * 4096)) >data
nc -ll -p 7001 -e cat data &
nc -ll -p 7002 -e sh -c 'md5sum >>/rig/ups' &
ring3 image create --format raw raw 1M
ring3 image create q.qcow2 1M
trap '' USR2
changes() { grep -c 'engine interp -> kvm' err; }
start --initrd both --engine kvm --cpus 2 --disk raw --disk q.qcow2 --net user
expect '~ # '
say 'sh /demo/job'
expect 'working'
until [ $(changes) -ge ROUNDS ]; do
    kill -USR2 $pid
    usleep MS000
    alive
done
say stop
expect 'done'
say 'poweroff -f'
finish
ring3 image check q.qcow2; echo "check $?"
ring3 image convert --to raw q.qcow2 converted; echo "convert $?"
echo "rig $(md5sum <raw | cut -d' ' -f1) $(md5sum <converted | cut -d' ' -f1)"
sort ups | uniq -c | sed 's/^/ups /'
"""

# In the guest: a sum that is always the same, two processes that wait for each other, a clock that never goes back,
# until there is input.
JOB = r"""
touch /tmp/go
mkfifo /tmp/there /tmp/back
sums() {
    n=0
    while [ -f /tmp/go ]; do
        s=$(seq 1 2000 | sha256sum)
        [ "${s%% *}" = SUM ] || echo "wrong: $s"
        n=$((n + 1))
    done
    echo "sums=$n"
}
pong() { while read -r n; do echo $n; done </tmp/there >/tmp/back; }
ping() {
    exec 4>/tmp/there 5</tmp/back
    i=0
    while [ -f /tmp/go ]; do
        echo $i >&4
        read -r n <&5
        [ "$n" = $i ] || echo "wrong: pong $n of $i"
        i=$((i + 1))
    done
    echo "pings=$i"
}
clock() {
    last=0
    n=0
    while [ -f /tmp/go ]; do
        read -r up rest </proc/uptime
        now=${up%.*}${up#*.}
        [ $now -ge $last ] || echo "wrong: $now after $last"
        last=$now
        n=$((n + 1))
        usleep 20000
    done
    echo "clocks=$n"
}
sums & pong & ping & clock &
echo work""ing
read -r line
rm /tmp/go
wait
dmesg | grep -E 'BUG|WARNING:|unstable|lockup|stall' | grep -v KNOWN | sed 's/^/compl''aint: /'
echo do""ne
"""

# What both changing machines have: an initial RAM file system with the job, and the way to their end.
JOB_ARCHIVE = r"""
mkdir more more/demo
cp job more/demo/job
(cd more; find demo | cpio -o -H newc 2>/dev/null) >more.cpio
cat initrd more.cpio >both
"""
JOB_END = r"""
say stop
expect 'done'
say 'date +%s=date'
date +%s=before
expect '=date'
say 'poweroff -f'
finish
date +%s=after
"""

CHANGE = JOB_ARCHIVE + r"""
changes() { grep -c 'engine bt -> kvm' err; }
start --initrd both --engine bt --engine-switch MS,kvm,bt
expect '~ # '
say 'sh /demo/job'
expect 'working'
goal=$(($(changes) + ROUNDS + 1))
while [ $(changes) -lt $goal ]; do alive; done
""" + JOB_END

# With the signal, once through all engines while the second CPU starts, then at work. A signal that comes before ring3
# waits for it is nothing.
CHANGE_SMP = JOB_ARCHIVE + r"""
trap '' USR2
changes() { grep -c 'engine interp -> kvm' err; }
move() { alive; kill -USR2 $pid; usleep MS000; }
start --initrd both --engine kvm --cpus 2
until [ $(changes) -gt 0 ]; do move; done
expect '~ # '
say 'sh /demo/job'
expect 'working'
goal=$(($(changes) + ROUNDS))
until [ $(changes) -ge $goal ]; do move; done
""" + JOB_END


class Failure(Exception):
    pass


def check(condition, what, seen):
    if not condition:
        raise Failure(f'{what}; the rig says:\n{seen[-6000:]}')


def rig(ring3, text, *args):
    """Runs commands in the rig; what they print, and their status. A rig that breaks gets a second chance: no fault of ring3's
    breaks it, since all that it does in there is what a program may."""
    end = time.monotonic() + PATIENCE
    for attempt in 1, 2:
        left = max(int(end - time.monotonic()), 1)
        p = subprocess.run([RIG, '--ring3', ring3, '--timeout', str(left), *args, text], stdin=subprocess.DEVNULL,
                           stdout=subprocess.PIPE, text=True, errors='replace', timeout=left + 60, check=False)
        out = p.stdout.replace('\r', '')
        if p.returncode != BROKEN or attempt == 2:
            return p.returncode, out
        print(f'the rig broke; once more. It said:\n{out[-6000:]}', flush=True)


def number(out, what):
    found = re.findall(rf'^{what}=(\d+)', out, re.MULTILINE)
    check(len(found) == 1, f'no {what}', out)
    return int(found[0])


def check_clock(out):
    """The guest's date lies between those of the rig."""
    before, guest, after = [re.findall(rf'(\d+)={what}', out) for what in ('before', 'date', 'after')]
    check(before and guest and after, 'no dates', out)
    check(int(before[0]) - 1 <= int(guest[0]) <= int(after[0]) + 1, f'the guest has {guest}', out)


def case_programs(ring3, *programs):
    """The probe finds this KVM good, and the tests' programs pass under the engine, none of them skipped."""
    names = [os.path.basename(p) for p in programs]
    text = READY + 'ring3 engines\nexport RING3_TEST_ENGINE=kvm\n'
    text += ''.join(f'/rig/{n}; echo {n}: $?\n' for n in names)
    status, out = rig(ring3, text, *[a for p in programs for a in ('--in', p)])
    check(status == 0 and re.search(r'^kvm +available ', out, re.MULTILINE), 'kvm is not available', out)
    for n in names:
        check(f'{n}: 0' in out.splitlines(), f'{n} fails', out)


def case_shell(ring3):
    """An unmodified Debian kernel to its shell under --engine kvm, with one and two vCPUs."""
    for cpus in ['1', '2']:
        status, out = rig(ring3, TALK + SHELL.replace('CPUS', cpus).replace('KNOWN', f'-E {KNOWN}'))
        check(status == 0 and 'status 0' in out.splitlines(), f'{cpus} vCPUs: status {status}', out)
        check(f'cpus={cpus} Linux' in out, f'not {cpus} vCPUs', out)
        check(hashlib.md5(bytes(1000000)).hexdigest() in out, 'wrong sum', out)
        check('complaint' not in out, 'the kernel complains', out)
        check('engine kvm' in out, 'another engine', out)
        check_clock(out)


def case_reset(ring3):
    """Resets and panics of a machine with two vCPUs that changes engine at that moment."""
    status, out = rig(ring3, TALK + RESET.replace('MS', str(SWITCH_MS)))
    check(status == 0 and 'status 0' in out.splitlines(), f'status {status}', out)
    check(out.count('the guest reboots') == 2, 'not 2 times', out)
    check('interp -> kvm' in out, 'no change of engine', out)
    check('cpus=2' in out.splitlines(), 'not 2 vCPUs', out)


def case_io(ring3):
    """Disks, raw and qcow2, and a network card go on working while the engine changes."""
    data = b''.join(b'%d\n' % n for n in range(1, 100000))[:4096 * IO_BLOCKS]
    total = hashlib.md5(data).hexdigest()
    net = [a for name in NET_MODULES for a in ('--in', f'{MODULES}/{name}.ko:rig/net/{os.path.basename(name)}.ko')]
    with tempfile.TemporaryDirectory(prefix='ring3-kvm-') as folder:
        job = os.path.join(folder, 'job')
        with open(job, 'w', encoding='utf-8') as f:
            f.write(IO_JOB.replace('SUM', total).replace('BLOCKS', str(IO_BLOCKS)))
        text = IO.replace('MS', str(SWITCH_MS)).replace('ROUNDS', str(ROUNDS_IO)).replace('BLOCKS', str(IO_BLOCKS))
        status, out = rig(ring3, TALK + text, '--in', job, *net)
    check(status == 0 and 'status 0' in out.splitlines(), f'status {status}', out)
    check('wrong' not in out, 'wrong results', out)
    for what in ['vda-rounds', 'vdb-rounds', 'net-rounds']:
        check(number(out, what) > 0, f'no {what}', out)
    for line in ['check 0', 'convert 0']:
        check(line in out.splitlines(), f'not: {line}', out)
    sums = re.findall(r'^(?:guest|rig) (\w{32}) (\w{32})$', out, re.MULTILINE)
    check(len(sums) == 2 and sums[0] == sums[1], 'the images are not what the guest wrote', out)
    ups = re.findall(r'^ups +\d+ (\w+)', out, re.MULTILINE)
    check(ups == [total], 'what came from the guest is not what it sent', out)


def run_job(ring3, text):
    """A guest that has the job; what the rig says if nothing went wrong."""
    data = b''.join(b'%d\n' % n for n in range(1, 2001))
    with tempfile.TemporaryDirectory(prefix='ring3-kvm-') as folder:
        job = os.path.join(folder, 'job')
        with open(job, 'w', encoding='utf-8') as f:
            f.write(JOB.replace('SUM', hashlib.sha256(data).hexdigest()).replace('KNOWN', f'-E {KNOWN}'))
        status, out = rig(ring3, TALK + text, '--in', job)
    check(status == 0 and 'status 0' in out.splitlines(), f'status {status}', out)
    check('wrong' not in out, 'wrong results', out)
    for what in ['sums', 'pings', 'clocks']:
        check(number(out, what) > 0, f'no {what}', out)
    check('complaint' not in out, 'the kernel complains', out)
    check_clock(out)
    return out


def case_change(ring3):
    """A VM that begins with bt moves to kvm and back all the time while it works."""
    out = run_job(ring3, CHANGE.replace('MS', str(SWITCH_MS)).replace('ROUNDS', str(ROUNDS)))
    for way in ['bt -> kvm', 'kvm -> bt']:
        check(out.count(f'engine {way};') >= ROUNDS, f'not {ROUNDS} times {way}', out)


def case_change_smp(ring3):
    """Two vCPUs go round all engines, as the user's signal has it."""
    out = run_job(ring3, CHANGE_SMP.replace('MS', str(SWITCH_MS)).replace('ROUNDS', str(ROUNDS_SMP)))
    for way in ['kvm -> bt', 'bt -> interp', 'interp -> kvm']:
        check(out.count(f'engine {way};') >= ROUNDS_SMP, f'not {ROUNDS_SMP} times {way}', out)


CHECK = r"""
export RING3_TEST_ENGINE=kvm RING3_TEST_CHECK=1
tries=0
until /rig/guests; s=$?; [ $s != 77 ] || [ $tries -ge 10 ]; do tries=$((tries + 1)); done
echo guests: $s
tries=0
until timeout 20 ring3 run --log-level info --engine kvm --check-every 20 --kernel vmlinuz --initrd initrd \
    --append 'console=ttyS0 panic=-1' </dev/null >out 2>&1; grep -q 'engine kvm' out || [ $tries -ge 10 ]; do
    tries=$((tries + 1))
done
tail -n 30 out
"""


def case_check(ring3, guests):
    """Under --check KVM does what the interpreter does: small guests, every instruction; the beginning of a Debian boot, some."""
    status, out = rig(ring3, READY + CHECK, '--in', guests)
    check(status == 0 and 'guests: 0' in out.splitlines(), 'the small guests fail', out)
    seen = re.findall(r'check: (\d+) instructions and (\d+) events alike', out)
    check(len(seen) == 1 and int(seen[0][0]) > 0, 'nothing was compared in a boot', out)
    check('differ' not in out.split('guests: 0')[1], 'KVM and interpreter differ', out)


def main():
    ring3, case = sys.argv[1:3]
    try:
        globals()['case_' + case.replace('-', '_')](ring3, *sys.argv[3:])
    except (Failure, subprocess.TimeoutExpired) as e:
        print(f'FAIL: {case}: {e}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
