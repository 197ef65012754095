# The front door: each target runs one command that does the work. The build itself is meson and ninja;
# "meson setup build && ninja -C build" needs nothing from here.
PREFIX ?= /usr/local

# Variables reach the scripts by the environment, exactly as they were given: CMD may hold anything.
unexport CMD
export RING3_DEMO_CMD = $(value CMD)
export DISTRO

all: build/build.ninja
	@ninja -C build

help:
	@sed -n 's/^#: //p' Makefile

#: make            build build/ring3
#: make deps       install the Debian packages that building and testing need (root or sudo)
#: make demo       build, fetch Debian's kernel, and boot it to a shell; poweroff or Ctrl-A X leaves
#: make demo CMD='uname -a'   run the commands in the guest and print what they print
#: make demo DISTRO=1      build, make a disk with Debian 12 (once), and boot it; root needs no password
#: make test       every test, in a plain and in a sanitizer build
#: make bench      the table of speeds: native, QEMU TCG, each engine (ARGS=--quick for a short one);
#:                 bench/io is about disks and networks, bench/kvm about KVM
#: make install    install to PREFIX (/usr/local), below DESTDIR
#: make format     clang-format over the sources
#: make lint       clang-tidy and cppcheck over src/, what changed since last time (ARGS=src/back for a part)
#: make clean      remove the builds; cache/ with the downloaded guest stays
#: make distclean  remove cache/, too

build/build.ninja:
	@meson setup build

deps:
	@scripts/deps

demo:
	@exec scripts/demo "$$RING3_DEMO_CMD"

test: deps
	@scripts/test $(ARGS)

bench: all
	@bench/run $(ARGS)

install: all
	@meson configure build -Dprefix=$(abspath $(PREFIX))
	@meson install -C build $(if $(DESTDIR),--destdir $(abspath $(DESTDIR)))

format:
	@scripts/format

lint: build/build.ninja
	@scripts/lint $(ARGS)

clean:
	rm -rf build build-asan

distclean: clean
	rm -rf cache

.PHONY: all help deps demo test bench install format lint clean distclean
