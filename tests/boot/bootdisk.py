#!/usr/bin/env python3
"""What is booted from a disk: images made by mke2fs, with and without partition tables, whole and damaged.
usage: bootdisk.py BOOTDISK-PROGRAM"""
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib

program = sys.argv[1]
work = tempfile.mkdtemp(prefix="ring3-bootdisk-")
passed = failed = 0
MIB = 1 << 20
KERNEL = b"kernel one" * 1000
OLD = b"an older kernel" * 900
INITRD = b"initramfs" * 2001
UUID = "6e8f7d2c-1b3a-4c5d-9e0f-a1b2c3d4e5f6"

GRUB = """
set default="0"
if [ x"${feature_menuentry_id}" = xy ]; then
  menuentry_id_option="--id"
fi
menuentry 'Debian GNU/Linux' --class debian $menuentry_id_option 'gnulinux-simple' {
\tinsmod ext2
\tlinux\t/boot/vmlinuz-6.1.0-9-amd64 root=UUID=%s ro  quiet 'a b' $extra
\techo 'Loading initial ramdisk ...'
\tinitrd\t/boot/early.img /boot/initrd.img-6.1.0-9-amd64
}
submenu 'Advanced options' {
\tmenuentry 'Debian, older' {
\t\tlinux ($root)/boot/vmlinuz-6.1.0-10-amd64 root=/dev/vda1 single
\t}
}
""" % UUID


def tree(files):
    d = tempfile.mkdtemp(dir=work)
    for path, what in files.items():
        full = os.path.join(d, path)
        os.makedirs(os.path.dirname(full), exist_ok=True)
        if isinstance(what, tuple):
            os.symlink(what[0], full)
        else:
            with open(full, "wb") as f:
                f.write(what)
    return d


def ext(files, *options, size="8M", uuid=UUID):
    path = tempfile.mktemp(dir=work)
    root = tree(files)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-U", uuid, *options, "-d", root, path, size], check=True,
                   stdout=subprocess.DEVNULL)
    shutil.rmtree(root)
    with open(path, "rb") as f:
        return f.read()


def mbr(*parts, logical=()):
    """Partitions of type 0x83, each 1 MiB behind the one before; the logical ones in an extended one."""
    out, entries, at = bytearray(MIB), [], MIB
    for p in parts:
        entries.append(struct.pack("<B3sB3sII", 0, b"", 0x83, b"", at // 512, len(p) // 512))
        out += p
        at += len(p)
    if logical:
        base = at
        total = sum(len(p) + MIB for p in logical)
        entries.append(struct.pack("<B3sB3sII", 0, b"", 0x05, b"", base // 512, total // 512))
        for k, p in enumerate(logical):
            table = bytearray(MIB)
            struct.pack_into("<B3sB3sII", table, 446, 0, b"", 0x83, b"", MIB // 512, len(p) // 512)
            if k + 1 < len(logical):
                rel = at + MIB + len(p) - base
                struct.pack_into("<B3sB3sII", table, 462, 0, b"", 0x05, b"", rel // 512, 1)
            table[510:512] = b"\x55\xaa"
            out += table + p
            at += MIB + len(p)
    out[446:446 + 16 * len(entries)] = b"".join(entries)
    out[510:512] = b"\x55\xaa"
    return bytes(out)


def gpt(*parts, entry=128, damage=None):
    out, at, table = bytearray(MIB), MIB, bytearray(128 * entry)
    for k, p in enumerate(parts):
        struct.pack_into("<16s16sQQ", table, k * entry, b"linuxtype-------", b"unique%02d--------" % k, at // 512,
                         (at + len(p)) // 512 - 1)
        out += p
        at += len(p)
    out += bytes(MIB)

    def header(lba, other, tlba):
        h = bytearray(struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, 0, 0, lba, other, 34,
                                  len(out) // 512 - 34, b"disk", tlba, 128, entry, zlib.crc32(table)))
        struct.pack_into("<I", h, 16, zlib.crc32(h))
        return h
    last = len(out) // 512 - 1
    out[512:512 + 92] = header(1, last, 2)
    out[1024:1024 + len(table)] = table
    out[last * 512:last * 512 + 92] = header(last, 1, last - len(table) // 512)
    out[last * 512 - len(table):last * 512] = table
    struct.pack_into("<B3sB3sII", out, 446, 0, b"", 0xee, b"", 1, last)
    out[510:512] = b"\x55\xaa"
    if damage == "first":
        out[512 + 20] ^= 1 << 3
        out[512 + 40] ^= 1
    return bytes(out)


def run(image, *args):
    path = os.path.join(work, "disk")
    with open(path, "wb") as f:
        f.write(image)
    p = subprocess.run([program, path, *args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
    return p.returncode, p.stdout


def crc(data):
    return "%08x" % zlib.crc32(data)


def check(name, image, *want, status=0, args=()):
    global passed, failed
    got, out = run(image, *args)
    missing = [w for w in want if w not in out]
    if got == status and not missing:
        passed += 1
    else:
        failed += 1
        print(f"FAIL: {name}: status {got}, lacks {missing}:\n{out}", file=sys.stderr)


two = {
    "boot/vmlinuz-6.1.0-9-amd64": OLD, "boot/initrd.img-6.1.0-9-amd64": b"old initrd",
    "boot/vmlinuz-6.1.0-10-amd64": KERNEL, "boot/initrd.img-6.1.0-10-amd64": INITRD,
    "boot/vmlinuz-0-rescue-abc": b"rescue", "boot/config-6.1.0-10-amd64": b"",
}
newest = (f"/boot/vmlinuz-6.1.0-10-amd64 {crc(KERNEL)}", f"initrd {crc(INITRD)}", f"cmdline root=UUID={UUID} ro\n")
early = b"microcode!"
grub = dict(two, **{"boot/grub/grub.cfg": GRUB.encode(), "boot/early.img": early})
joined = early + bytes(-len(early) % 4) + b"old initrd"
by_grub = (f"/boot/vmlinuz-6.1.0-9-amd64 {crc(OLD)}", f"initrd {crc(joined)}",
           f"cmdline root=UUID={UUID} ro quiet a b\n")

check("newest by version, not by name", ext(two), "kernel " + newest[0], *newest[1:])
check("ext2", ext(two, "-O", "^has_journal,^extent,^64bit,^metadata_csum"), *newest)
check("64-bit, other block size", ext(two, "-O", "64bit,metadata_csum", "-b", "4096"), *newest)
check("GRUB's entry", ext(grub), *by_grub)
check("GRUB's default in a submenu",
      ext(dict(grub, **{"boot/grub/grub.cfg": GRUB.replace('default="0"', 'default="1"').encode()})),
      f"/boot/vmlinuz-6.1.0-10-amd64 {crc(KERNEL)}", "cmdline root=/dev/vda1 single\n")
check("GRUB's default in a variable",
      ext(dict(grub, **{"boot/grub/grub.cfg": GRUB.replace('default="0"', 'default="${saved_entry}"').encode()})),
      *by_grub)
check("GRUB names a kernel that is gone",
      ext({k: v for k, v in grub.items() if "-9-" not in k}), *newest)
check("link to a kernel elsewhere",
      ext({"boot/vmlinuz-1": ("../srv/k",), "srv/k": KERNEL}), f"/boot/vmlinuz-1 {crc(KERNEL)}", "cmdline root=UUID")
check("link that leads out of the file system", ext({"boot/vmlinuz-1": ("/etc/passwd",)}), "error", status=1)
check("link to itself", ext({"boot/vmlinuz-1": ("vmlinuz-1",)}), "symbolic links", status=1)
check("no initrd", ext({"boot/vmlinuz-1": KERNEL}), f"kernel /boot/vmlinuz-1 {crc(KERNEL)}\ncmdline")
check("a directory of that name", ext({"boot/vmlinuz-1/x": b""}), "not a regular file", status=1)
check("kernel beyond the limit", ext(two), "too large", status=1, args=("8192",))
check("no kernel", ext({"etc/fstab": b""}), "no kernel found", "--kernel", status=1)
check("nothing at all", bytes(MIB), "no kernel found", status=1)
check("smaller than a sector", b"x" * 100, "no kernel found", status=1)

other = ext({"home/me": b"me"}, uuid="11111111-1b3a-4c5d-9e0f-a1b2c3d4e5f6")
check("MBR", mbr(other, ext(two)), "kernel partition 2, " + newest[0], *newest[1:])
check("MBR, logical partitions", mbr(other, logical=(other, ext(two))), "kernel partition 6, " + newest[0], *newest[1:])
check("GPT", gpt(bytes(MIB), other, ext(grub)), "kernel partition 3, " + by_grub[0], *by_grub[1:])
check("GPT with larger entries", gpt(other, ext(two), entry=256), "partition 2, " + newest[0])
check("GPT by its copy", gpt(other, ext(two), damage="first"), "partition 2, " + newest[0])
separate = ext({"vmlinuz-5": KERNEL, "initramfs-5.img": INITRD})
check("a partition for /boot", gpt(separate, other), f"partition 1, /vmlinuz-5 {crc(KERNEL)}", f"initrd {crc(INITRD)}",
      "cmdline \n")
check("a partition for /boot with GRUB",
      gpt(ext({"vmlinuz-5": KERNEL, "grub/grub.cfg": b"menuentry x {\n linux /vmlinuz-5 root=/dev/vda2\n}\n"}), other),
      "partition 1, /vmlinuz-5", "cmdline root=/dev/vda2\n")

# A hostile disk gives a kernel or an error, nothing else.
rng = random.Random(1)
whole = {"ext": ext(grub, size="2M"), "mbr": mbr(other, logical=(ext(two),)), "gpt": gpt(other, ext(grub))}
for name, image in whole.items():
    for k in range(60):
        bad = bytearray(image)
        for _ in range(rng.choice((1, 4, 64))):
            # Where the structures are: tables, superblock, group descriptors, inodes, directories.
            at = rng.randrange(min(len(bad), rng.choice((2048, 65536, len(bad)))))
            bad[at] = rng.choice((0, 0xff, rng.randrange(256)))
        if k % 5 == 0:
            bad = bad[:rng.randrange(len(bad))]
        got, out = run(bytes(bad))
        if got not in (0, 1) or not out.startswith(("kernel ", "error ")):
            failed += 1
            print(f"FAIL: {name} damaged, {k}: status {got}: {out}", file=sys.stderr)
            break
    else:
        passed += 1

shutil.rmtree(work)
print(f"{passed} passed, {failed} failed")
sys.exit(failed != 0)
