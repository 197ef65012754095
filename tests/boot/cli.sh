#!/bin/sh
# The command line of ring3: exit statuses, one clear line for every error, complete help, nothing
# left behind.
# usage: cli.sh RING3 GUEST-KERNEL MANUAL-PAGE
ring3=$1
guest=$2
manual=$3
dir=$(mktemp -d "${TMPDIR:-/tmp}/ring3-cli-XXXXXX") || exit 1
trap 'rm -rf "$dir"' EXIT
passed=0
failed=0

fail() {
    failed=$((failed + 1))
    echo "FAIL: $*" >&2
    sed 's/^/    /' "$dir/out" "$dir/err" >&2
}

ok() {
    passed=$((passed + 1))
}

# status EXPECTED ARG...: runs ring3, compares the exit status.
status() {
    want=$1
    shift
    timeout 60 "$ring3" "$@" </dev/null >"$dir/out" 2>"$dir/err"
    got=$?
    [ "$got" -eq "$want" ] && ok || fail "status $got, not $want: ring3 $*"
}

# error EXPECTED TEXT ARG...: also, standard error is exactly one line "ring3: ...TEXT..." and
# nothing is on standard output.
error() {
    want=$1
    text=$2
    shift 2
    status "$want" "$@"
    if [ "$(wc -l <"$dir/err")" -ne 1 ] || ! grep -q '^ring3: ' "$dir/err" ||
        [ -s "$dir/out" ] ||
        ! grep -qF -- "$text" "$dir/err"; then
        fail "expected one line with '$text': ring3 $*"
    else
        ok
    fi
}

# says TEXT: standard output of the last run.
says() {
    grep -qF -- "$1" "$dir/out" && ok || fail "expected '$1' on standard output"
}

# run EXPECTED COMMAND-LINE ARG...: runs the test guest.
run() {
    want=$1
    line=$2
    shift 2
    status "$want" run --kernel "$guest" --serial none --memory 8M --append "$line" "$@"
}

# ---- help and version ----
status 0 --version
grep -Eqx 'ring3 [0-9]+\.[0-9]+\.[0-9]+' "$dir/out" && ok || fail "version line"
status 0 --help
says "run"
says "engines"
status 0 run --help
for option in name engine engine-switch check cpus memory kernel initrd append serial console disk net rng share vsock no-reboot timeout trace \
    log-level help; do
    says "  --$option"
done
# The manual page knows every option, and no other.
cp "$dir/out" "$dir/help"
for command in create info convert check resize; do
    status 0 image $command --help
    cat "$dir/out" >>"$dir/help"
done
grep -o '^  --[a-z-]*' "$dir/help" | sed 's/^  --//' | sort -u >"$dir/options"
sed -n 's/^\.[A-Z]* "*\\-\\-\([a-z\\-]*\).*/\1/p' "$manual" | sed 's/\\//g' | sort -u >"$dir/documented"
echo help | cat - "$dir/documented" | sort -u | diff "$dir/options" - >"$dir/err" && ok ||
    fail "manual page and --help differ"
status 0 run --help
for code in 0 1 2 3 4 "64+N"; do
    says "  $code "
done
status 0 engines --help
says "usage: ring3 engines"
status 0 engines
grep -Eq '^interp +available +[^ ]' "$dir/out" && ok || fail "ring3 engines does not offer interp"
status 0 run --trace help
says "cpu_exception"
timeout 10 "$ring3" --help >/dev/full 2>"$dir/err"
[ $? -eq 1 ] && ok || fail "full standard output is not noticed"

# ---- usage ----
error 2 "no command given"
error 2 "unknown command 'frobnicate'" frobnicate
error 2 "unknown option '--frobnicate'" --frobnicate
error 2 "unexpected argument 'x'" engines x
error 2 "no kernel given" run
error 2 "--initrd: goes with --kernel" run --disk "$guest" --initrd "$guest"
error 2 "--disk: $guest: no kernel found" run --disk "$guest"
error 2 "unknown option '--frobnicate'" run --frobnicate=1
error 2 "unknown option '--mem'" run --mem 1G
error 2 "unknown option '-m'" run -m 1G
error 2 "unexpected argument 'kernel'" run kernel
error 2 "--kernel: needs a value" run --kernel
error 2 "--no-reboot: takes no value" run --no-reboot=yes
error 2 "--engine: unknown engine 'warp'" run --engine warp
error 2 "--check: takes no value" run --check=yes
error 2 "--engine-switch: at least 1 ms" run --engine-switch 0
error 2 "--engine-switch: " run --engine-switch soon
error 2 "--engine-switch: unknown engine 'warp'" run --engine-switch 50,warp
error 2 "--engine-switch: unknown engine ''" run --engine-switch 50,
error 2 "--engine-switch: two different engines are needed" run --engine-switch 50,interp --kernel /dev/null
error 2 "--engine-switch: does not go with --check" run --engine bt --check --engine-switch 50 --kernel /dev/null
error 2 "--check: engine interp does not offer it" run --check --engine interp --kernel /dev/null
error 2 "--check-every: is for engine kvm, not bt" run --check-every 5 --engine bt --kernel /dev/null
error 2 "is not 0 ms" run --check-every 0 --kernel /dev/null
error 2 "--check: is for one vCPU, not 2" run --check --engine bt --cpus 2 --kernel /dev/null
error 2 "--cpus: 'two' is not a number" run --cpus two
error 2 "--cpus: a machine has at most 255" run --cpus 1000
error 2 "--cpus: a machine has at most 255" run --cpus 256
error 2 "--cpus: '-1' is not a number" run --cpus -1
error 2 "--cpus: a machine has at least one" run --cpus 0
error 2 "--memory: 'lots' is not a size" run --memory lots
error 2 "--memory: '1X' is not a size" run --memory 1X
error 2 "--memory: '-1' is not a size" run --memory -1
error 2 "--memory: '99999999999999999999' is too large" run --memory 99999999999999999999
error 2 "--memory: '99999999999G' is too large" run --memory 99999999999G
error 2 "--serial: 'tty' is none of" run --serial tty
error 2 "--serial: 'file:' is none of" run --serial file:
error 2 "--disk: no file given" run --disk ,ro
error 2 "--disk: unknown item 'fast'" run --disk x,fast
error 2 "--disk: format: 'vmdk' is not one of" run --disk x,format=vmdk
error 2 "--disk: cache: needs a value (writeback|none|" run --disk x,cache
error 2 "--disk: iops: is not more than zero" run --disk x,iops=0
error 2 "--disk: iops-burst: is for iops" run --disk x,iops-burst=5
error 2 "--disk: queues: '17' is too large" run --disk x,queues=17
error 2 "--disk: serial: '123456789012345678901' is longer than" run --disk x,serial=123456789012345678901
error 2 "--disk: cannot open $dir/no,ne: No such file" run --kernel "$guest" --disk "$dir/no,,ne,ro"
error 2 "--timeout: 'soon' is not a number of seconds" run --timeout soon
error 2 "--timeout: '0' is not more than zero" run --timeout 0
error 2 "--log-level: 'loud' is none of" run --log-level loud
error 2 "--name: is empty" run --name ''
error 2 "--trace: " run --kernel "$guest" --trace 'no_such_event*'

# ---- configuration ----
printf 'not a kernel, just text of some length\n' >"$dir/text"
: >"$dir/empty"
head -c 200 "$guest" >"$dir/truncated"
head -c 20000000 /dev/zero >"$dir/big"
error 2 "--kernel: $dir/none: No such file or directory" run --kernel "$dir/none"
error 2 "--kernel: $dir: is a directory" run --kernel "$dir"
error 2 "--kernel: $dir/empty: is empty" run --kernel "$dir/empty"
error 2 "--kernel: $dir/text: not a kernel" run --kernel "$dir/text"
error 2 "--kernel: $dir/truncated: truncated" run --kernel "$dir/truncated"
error 2 "--initrd: $dir/none: No such file" run --kernel "$guest" --initrd "$dir/none"
error 2 "--initrd: $dir/big: does not fit" run --kernel "$guest" --memory 16M --initrd "$dir/big"
error 2 "--memory: at least 2 MiB" run --kernel "$guest" --memory 1M
error 2 "--memory: not a multiple of 4K" run --kernel "$guest" --memory 9000001
error 2 "--memory: this host allows at most" run --kernel "$guest" --memory 900000G
error 2 "$dir/none/x: No such file" run --kernel "$guest" --serial "file:$dir/none/x"
if [ "$(id -u)" -ne 0 ]; then
    : >"$dir/secret"
    chmod 0 "$dir/secret"
    error 2 "--kernel: $dir/secret: Permission denied" run --kernel "$dir/secret"
fi
# A bad kernel leaves the serial port's file alone.
echo old >"$dir/serial"
error 2 "not a kernel" run --kernel "$dir/text" --serial "file:$dir/serial"
[ "$(cat "$dir/serial")" = old ] && ok || fail "the serial file was touched"

# ---- ends ----
run 0 poweroff
run 0 reset --no-reboot
run 106 debug-exit
# Without standard descriptors the guest has a deaf and mute console, and no other file of ours.
for closed in '<&-' '>&-' '2>&-' '<&- >&-' '<&- >&- 2>&-'; do
    eval "timeout 60 '$ring3' run --kernel '$guest' --memory 8M --append 'serial output' $closed" \
        >"$dir/out" 2>"$dir/err"
    [ $? -eq 0 ] && ok || fail "started with $closed"
done
error 3 "the guest died: triple fault" run --kernel "$guest" --memory 8M --serial none --append triple
error 4 "--timeout" run --kernel "$guest" --memory 8M --serial none --append loop --timeout 0.2
error 4 "--timeout" run --kernel "$guest" --memory 8M --serial none --append halted --timeout 0.2
run 0 poweroff --engine interp --name test --cpus 1 --timeout 50 --log-level debug
run 0 poweroff --trace 'bus_p*'
grep -q 'ring3: trace: bus_pio' "$dir/err" && ok || fail "no trace lines"

status 0 run --kernel "$guest" --memory 8M --append "serial to standard output"
says "serial to standard output"
status 0 run --kernel "$guest" --memory 8M --append "serial to a file" --serial "file:$dir/serial"
grep -q "serial to a file" "$dir/serial" && ok || fail "serial output is not in the file"

run 0 poweroff --engine-switch 1 --log-level info

# SIGUSR2 changes the engine. The VM goes on.
"$ring3" run --kernel "$guest" --memory 8M --serial none --append loop --timeout 60 --engine interp --log-level info \
    </dev/null >"$dir/out" 2>"$dir/err" &
pid=$!
for try in 1 2 3 4 5 6 7 8 9 10; do
    sleep 0.2
    [ -d "/proc/$pid/task" ] && grep -qs vcpu "/proc/$pid/task/"*/comm && break
done
kill -s USR2 "$pid"
for try in 1 2 3 4 5 6 7 8 9 10; do
    grep -q 'engine interp -> ' "$dir/err" && break
    sleep 0.2
done
grep -q 'ring3: vm: engine interp -> [a-z]*; the vCPUs stood for [0-9]* us' "$dir/err" && ok || fail "SIGUSR2 changes nothing"
kill -s TERM "$pid"
wait "$pid" 2>/dev/null

# Signals end the VM, and ring3 by that signal.
for sig in INT TERM HUP; do
    # A shell starts background jobs with SIGINT ignored; env puts the default back.
    env --default-signal=INT "$ring3" run --kernel "$guest" --memory 8M --serial none --append loop \
        </dev/null >"$dir/out" 2>"$dir/err" &
    pid=$!
    for try in 1 2 3 4 5 6 7 8 9 10; do
        sleep 0.2
        [ -d "/proc/$pid/task" ] && grep -qs vcpu "/proc/$pid/task/"*/comm && break
    done
    kill -s "$sig" "$pid"
    wait "$pid" 2>/dev/null
    got=$?
    [ "$got" -gt 128 ] && [ "$(kill -l "$got")" = "$sig" ] && ok || fail "SIG$sig gives status $got"
done

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
