#!/bin/sh
# An unmodified Debian kernel with a busybox initramfs: to a shell, a command typed and its output read back,
# power-off, reboot, and a kernel that ends by a triple fault. bzImage and, as an ELF file, PVH.
# usage: linux.sh RING3 VMLINUX-TOOL [KERNEL]
# The kernel is KERNEL, $RING3_TEST_KERNEL or the cloud kernel in /boot; without one or without busybox the test is
# skipped.
ring3=$1
tool=$2
kernel=${3:-${RING3_TEST_KERNEL:-$(ls /boot/vmlinuz-*cloud-amd64 2>/dev/null | tail -n 1)}}
busybox=$(command -v busybox) && [ -f "$kernel" ] || {
    echo "no kernel (RING3_TEST_KERNEL) or no busybox: skipped"
    exit 77
}
dir=$(mktemp -d "${TMPDIR:-/tmp}/ring3-linux-XXXXXX") || exit 1
pid=
trap '[ -z "$pid" ] || kill "$pid" 2>/dev/null; rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM
passed=0

fail() {
    echo "FAIL: $*" >&2
    tail -n 40 "$dir/console" >&2
    exit 1
}

ok() {
    passed=$((passed + 1))
}

mkdir -p "$dir/root/bin" "$dir/root/proc" "$dir/root/dev" && cp "$busybox" "$dir/root/bin/busybox"
for applet in sh mount setsid cttyhack; do
    ln -s busybox "$dir/root/bin/$applet"
done
cat >"$dir/root/init" <<'END'
#!/bin/sh
mount -t proc proc /proc
mount -t devtmpfs dev /dev
echo "init is running"
exec setsid cttyhack sh
END
chmod 755 "$dir/root/init"
(cd "$dir/root" && find . | "$busybox" cpio -o -H newc 2>/dev/null | gzip) >"$dir/initrd"
mkfifo "$dir/keyboard"

# start KERNEL COMMAND-LINE ARG...: starts Linux; its console is $dir/console, its keyboard descriptor 3.
start() {
    image=$1
    line=$2
    shift 2
    "$ring3" run --kernel "$image" --initrd "$dir/initrd" --append "console=ttyS0 quiet $line" --memory 256M \
        --timeout 150 "$@" <"$dir/keyboard" >"$dir/console" 2>&1 &
    pid=$!
    exec 3>"$dir/keyboard"
    await "init is running"
    await "/ # "
}

# await TEXT: waits until the console shows it.
await() {
    until grep -qF -- "$1" "$dir/console"; do
        kill -0 "$pid" 2>/dev/null || fail "ended before '$1' was on the console"
        sleep 0.2
    done
    ok
}

type_line() {
    echo "$1" >&3
}

# ended STATUS: waits for ring3's end.
ended() {
    wait "$pid"
    got=$?
    pid=
    exec 3>&-
    [ "$got" -eq "$1" ] && ok || fail "exit status $got, not $1"
}

# What is typed is not what is awaited: the echo must not count.
start "$kernel" ""
type_line 'busybox expr 6 \* 7; busybox uname -sr'
await "42"
await "Linux "
before=$(date +%s)
type_line 'busybox date +now=%s=; busybox nproc'
await "now=1"
guest=$(sed -n 's/.*now=\([0-9]*\)=.*/\1/p' "$dir/console" | tail -n 1)
after=$(date +%s)
[ "$guest" -ge "$((before - 1))" ] && [ "$guest" -le "$((after + 1))" ] && ok ||
    fail "the guest's clock says $guest, the host's $before to $after"
type_line 'busybox poweroff -f'
ended 0

start "$kernel" "" --no-reboot
type_line 'busybox reboot -f'
ended 0

"$tool" "$kernel" "$dir/vmlinux" || fail "cannot unpack the kernel"
start "$dir/vmlinux" "reboot=triple"
type_line 'busybox reboot -f'
ended 3

# The second life of the same machine.
start "$dir/vmlinux" "" --log-level info
type_line 'busybox reboot -f'
await "the guest reboots"
: >"$dir/console"
await "/ # "
type_line 'busybox poweroff -f'
ended 0

echo "$passed passed, 0 failed"
