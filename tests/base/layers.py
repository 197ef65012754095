#!/usr/bin/env python3
"""Tests scripts/layers on small trees, good and bad. usage: layers.py SCRIPT"""
import os
import subprocess
import sys
import tempfile

GOOD = {
    'main.c': '#include "machine/pc.h"\n#include <stdio.h>\n',
    'base/util.h': '#ifndef U\n#define U\n#endif\n',
    'base/version.h.in': '',
    'base/util.c': '#include "base/util.h"\n#include "base/version.h"\n',
    'dev/bus.h': '#include "base/util.h"\n',
    'dev/pci/bar.c': '# include "dev/bus.h"\n',
    'engine/engine.h': '#include "base/util.h"\n',
    'machine/pc.h': '#include "engine/engine.h"\n#include "dev/bus.h"\n',
}

# One change to the good tree -> where the violation must be reported.
BAD = [
    ('base/util.c', '\n#include "dev/bus.h"\n', 'base/util.c:2: base/ may not include dev/'),
    ('dev/pci/bar.c', '#include "engine/engine.h"\n', 'dev/pci/bar.c:1: dev/ may not include engine/'),
    ('dev/pci/bar.c', '#include "machine/pc.h"\n', 'dev/pci/bar.c:1: dev/ may not include machine/'),
    ('engine/engine.h', '#  include   "dev/bus.h"\n', 'engine/engine.h:1: engine/ may not'),
    ('base/util.c', '#include <dev/bus.h>\n', 'base/util.c:1: our own header'),
    ('base/util.c', '#include "util.h"\n', 'base/util.c:1: "util.h" is not a path'),
    ('base/util.c', '#include "base/none.h"\n', 'base/util.c:1: "base/none.h" is not a path'),
    ('base/util.c', '#include "base/../dev/bus.h"\n', 'base/util.c:1: '),
    ('base/util.c', '#include HEADER\n', 'base/util.c:1: an #include that is neither'),
    ('base/util.c', '#ifdef CONFIG_FAST\n#endif\n', 'base/util.c:1: a conditional'),
    ('base/util.c', '\n\n#if 0\n#endif\n', 'base/util.c:3: a conditional'),
    ('gui/window.c', '\n', 'gui/window.c:1: gui/ has no rule'),
]


def run(script, files):
    with tempfile.TemporaryDirectory() as top:
        for name, text in files.items():
            path = os.path.join(top, 'src', name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, 'w', encoding='utf-8') as f:
                f.write(text)
        src = os.path.join(top, 'src')
        p = subprocess.run([sys.executable, script, src], capture_output=True, text=True,
                           check=False)
        return p.returncode, p.stdout.replace(src + '/', ''), p.stderr


def main():
    script = sys.argv[1]
    failed = 0
    code, out, err = run(script, GOOD)
    if code or out or err:
        print(f'good tree: {code}\n{out}{err}')
        failed += 1
    for name, text, want in BAD:
        code, out, err = run(script, {**GOOD, name: text})
        if code != 1 or err or not out.startswith(want) or out.count('\n') != 1:
            print(f'{name}: {text!r}: wanted {want!r}, got {code}\n{out}{err}')
            failed += 1
    print(f'{len(BAD) + 1 - failed} passed, {failed} failed')
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
