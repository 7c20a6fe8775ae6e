"""`make binaries`: the whole program as one static file for each machine, the same to the last bit each time.

CPython (cpython.py) takes minutes and is built once. What is left are seconds: the package's modules, and all of the
standard library that they import, compiled into tables (freeze.py); Cython's engine; a main(); and one link. The
source is copied clean first, as the wheels' is, and everything is compiled under relative names, so that no path of
this machine gets in.
"""

import argparse
import json
import re
import shlex
import shutil
import struct
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wheels import places
from wheels.build import copy_source, digest, sources
from wheels.common import HERE as WHEELS
from wheels.common import ROOT, Failed, cache, run, say, sha256, shipped, version, write_sums
from wheels.static import elf
from wheels.static.cpython import HERE, MODULES, NATIVE, Zig, library
from wheels.static.notice import notice
from wheels.static.package import NAME, pack

MACHINES = ("x86_64", "aarch64")
KINDS = ("plain", "image")  # how a program starts: README.md
SHIPPED = "image"  # while all of its tests hold; "plain" is the other choice
SOURCES = ("main.c", "plain.c", "paths.c", "words.c")  # beside what freeze.py writes
FLAGS = shlex.split(
    "-O2 -g0 -DNDEBUG -fwrapv -fno-strict-aliasing -fno-pie -ffunction-sections -fdata-sections "
    "-fno-sanitize=undefined -Wall -Werror -Wno-c23-extensions"
)
INTERNAL = ["-DPy_BUILD_CORE", "-fno-builtin"]  # for the structures that Python keeps to itself
ENTRY = ["-fno-stack-protector", "-fno-builtin"]  # it runs before libc has started
LARGEST_POOL = 8 << 20  # bytes, for the first try
PAGE = 4096
SLACK = 1 << 16  # what another place in memory may change: some tables are hashed by address
MARK = b"fastvsock: here will be its memory"  # in entry.c
# What the start of an interpreter calls, and leaves nothing of in memory. A mapping would be missing in the image.
CALLS = {
    "arch_prctl",
    "clock_gettime",
    "close",
    "dup",
    "exit_group",
    "fcntl",
    "fstat",
    "gettid",
    "open",
    "openat",
    "rt_sigaction",
    "rt_sigprocmask",
    "set_tid_address",
    "write",
}
CYTHON = ["-Wno-everything"]
# musl takes the stack of each thread from this: its own default, 128 KiB, is little for the interpreter.
STACK = 1 << 20  # bytes
LINK = [
    *("-s", "-no-pie", "-Wl,--gc-sections", "-Wl,-z,norelro", "-Wl,--wrap=strerror", f"-Wl,-z,stack-size={STACK}"),
    *("-Wl,--no-eh-frame-hdr", "-Wl,-T,unwind.ld"),
]


@dataclass(frozen=True)
class Program:
    """A built binary, and the names of the modules in it."""

    path: Path
    frozen: list[str]
    builtin: list[str]


def main(arguments: list[str]) -> int:
    """Build what the command line says into the output folder; 1 if it fails."""
    parser = argparse.ArgumentParser(prog="python -m wheels.static.build", description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="the folder for them (default: dist/)")
    parser.add_argument("--wheels", type=Path, default=WHEELS, help="the folder for their wheels (default: wheels/)")
    parser.add_argument("--only", action="append", choices=MACHINES, help="the machine to build for (default: all)")
    parser.add_argument(
        "--check",
        action="store_true",
        help=f"build {SHIPPED} alone, and compare its wheels with the shipped SHA256SUMS",
    )
    options = parser.parse_args(arguments)
    machines = options.only or MACHINES
    try:
        if options.check:
            return check(machines, options.output)
        for path in build(machines, options.output, options.wheels):
            print(f"{sha256(path)}  {path.name}  {path.stat().st_size} bytes")
    except Failed as error:
        say(f"binaries: {error}")
        return 1
    return 0


def check(machines: Sequence[str], output: Path) -> int:
    """Build what is shipped, with NOTICE, into `output`; whether its wheels are the shipped ones: 0 or 1."""
    known = shipped()
    with tempfile.TemporaryDirectory(prefix="check-", dir=cache()) as folder:
        built = build(machines, output, Path(folder), kinds=(SHIPPED,))
        wheels = {path.name: sha256(path) for path in built if path.suffix == ".whl"}
    for name, built_digest in wheels.items():
        print(f"{name}: {'the same as shipped' if known.get(name) == built_digest else 'NOT what is shipped'}")
    return 0 if wheels.items() <= known.items() else 1


def build(machines: Sequence[str], output: Path, wheels: Path, kinds: Sequence[str] = KINDS) -> list[Path]:
    """Build `kinds` of the binary for `machines`, with NOTICE, into `output`, and the wheels of SHIPPED into `wheels`.

    Returns the paths of all but NOTICE. Raises `Failed`.
    """
    output.mkdir(parents=True, exist_ok=True)
    wheels.mkdir(parents=True, exist_ok=True)
    before = digest()
    text = notice(version(), library(NATIVE), Zig(NATIVE))
    (output / "NOTICE").write_text(text)
    built = []
    for machine in machines:
        for kind in kinds:
            say(f"building the binary for {machine}, {kind}")
            with tempfile.TemporaryDirectory(prefix=f"static-{machine}-", dir=cache()) as folder:
                program = link(machine, Path(folder), kind=kind)
                if digest() != before:
                    raise Failed("the source changed while the binary was built: build again")
                built.append(Path(shutil.move(program.path, output / name(machine, kind))))
        for old in wheels.glob(f"{NAME}-*_{machine}.whl"):
            old.unlink()
        built.append(pack(output / name(machine, SHIPPED), machine, text, wheels))
    write_sums(wheels)
    return built


def name(machine: str, kind: str) -> str:
    """The file name of a binary. The kind that users get has none in it."""
    return f"fastvsock-{version()}-linux-{machine}{'' if kind == SHIPPED else f'-{kind}'}"


def link(machine: str, folder: Path, *, kind: str = SHIPPED, start: Path = HERE / "start.py") -> Program:
    """Build a program for a machine, which begins with the module `start`, inside `folder`. Raises `Failed`."""
    python, zig = library(machine), Zig(machine)
    copy_source(folder / "source", sources())
    source, made = folder / "source" / "src", folder / "made"
    made.mkdir()  # fails where something was built before
    facts = json.loads(library(NATIVE).run(HERE / "freeze.py", source, MODULES, start, made))
    for path in (*HERE.glob("*.c"), *HERE.glob("*.h"), *HERE.glob("*.ld")):
        shutil.copy(path, made)
    flags = [*FLAGS, f"-I{python.headers}", f"-I{python.headers / 'internal'}"]
    own = [*flags, *INTERNAL, f'-DVERSION="{version()}"', *(["-DIMAGE"] if kind == "image" else [])]
    objects = [zig.compile(made / path, *own) for path in (*SOURCES, "frozen.c", "builtin.c")]
    objects += [zig.compile(path, *flags, *CYTHON) for path in _extensions(source, made, zig)]
    program = made / "program"
    if kind == "image":
        objects.append(zig.compile(made / "image.c", *own))
        make_image(zig, objects, python.archive, program)
    else:
        objects.append(zig.compile(made / "heap.c", *own))
        _link(zig, objects, python.archive, program)
    return Program(program, facts["frozen"], facts["builtin"])


def make_image(zig: Zig, objects: list[Path], archive: Path, program: Path) -> None:
    """Link a program, let it write its memory once it has started, and make that its data. Raises `Failed`.

    Done twice: the first time shows how much the linker puts into the writable segment, of which entry.c has a copy,
    and how much memory the image takes.
    """
    made = program.parent
    linked, pool = len(MARK) + 1, LARGEST_POOL
    for _ in range(2):
        sized = [
            zig.compile(made / "entry.c", *FLAGS, *ENTRY, f"-DLINKED={linked}"),
            zig.compile(made / "heap.c", *FLAGS, *INTERNAL, f"-DPOOL={pool}"),
        ]
        _link(zig, [*sized, *objects], archive, program, "-Wl,-e,fastvsock_entry")
        linked = -(-elf.writable(program.read_bytes()).filled // 8) * 8
        memory = first_start(program, zig.machine)
        (used,) = struct.unpack_from("<Q", memory)
        pool = -(-used // PAGE) * PAGE + SLACK
    bare = program.rename(program.with_name("bare"))
    program.write_bytes(elf.with_memory(bare.read_bytes(), memory[8:], MARK))
    program.chmod(0o755)


def first_start(program: Path, machine: str) -> bytes:
    """What a program without an image writes: image_make() in image.c. It runs emulated, where each call is seen.

    Raises `Failed` where a call may leave something behind.
    """
    memory, log = program.with_name("memory"), program.with_name("calls")
    emulator = [places.qemu(machine), "-strace", "-D", str(log)]
    run([*emulator, str(program), str(memory)], env={"TZ": "UTC0"}, cwd=program.parent, timeout=600)
    check_calls(log.read_text())
    return memory.read_bytes()


def check_calls(log: str) -> None:
    """Look at the system calls that made an image: none may leave anything behind in it. Raises `Failed`."""
    calls = re.findall(r"^\d+ ([a-z0-9_]+(?=\()|Unknown syscall \d+)", log, re.MULTILINE)
    others = sorted(set(calls) - CALLS)
    opened = sum(call in ("open", "openat") for call in calls)
    if others or opened != 1:
        raise Failed(f"the image holds more than memory: {opened} files were opened, and it called {', '.join(others)}")


def _link(zig: Zig, objects: list[Path], archive: Path, program: Path, *options: str) -> None:
    inputs = [*(path.name for path in objects), str(archive)]
    run([*zig.compiler, *LINK, *options, "-o", program.name, *inputs], env=zig.env, cwd=program.parent, timeout=600)


def _extensions(source: Path, made: Path, zig: Zig) -> list[Path]:
    """The C source of each module in Cython: without the Limited API, as this CPython alone will run it."""
    paths = []
    for path in sorted(source.rglob("*.pyx")):
        inside = path.relative_to(source)  # cython takes the module's full name from where its folder is a package
        paths.append(made / f"{path.stem}.c")
        run([zig.cython, "-3", inside, "-o", paths[-1]], env=zig.env, cwd=source, timeout=300)
    return paths


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
