"""`make binaries`: the whole program as one static file for each machine, the same to the last bit each time.

CPython (cpython.py) takes minutes and is built once. What is left are seconds: the package's modules, and all of the
standard library that they import, compiled into tables (freeze.py); Cython's engine; a main(); and one link. The
source is copied clean first, as the wheels' is, and everything is compiled under relative names, so that no path of
this machine gets in.
"""

import argparse
import json
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wheels.build import copy_source, digest
from wheels.common import HERE as WHEELS
from wheels.common import ROOT, Failed, cache, run, say, sha256, version, write_sums
from wheels.static.cpython import HERE, MODULES, NATIVE, Zig, library
from wheels.static.notice import notice
from wheels.static.package import NAME, pack

MACHINES = ("x86_64", "aarch64")
SOURCES = ("plain.c", "paths.c")  # beside what freeze.py writes
FLAGS = shlex.split(
    "-O2 -g0 -DNDEBUG -fwrapv -fno-strict-aliasing -fno-pie -ffunction-sections -fdata-sections "
    "-fno-sanitize=undefined -Wall -Werror -Wno-c23-extensions"
)
INTERNAL = ["-DPy_BUILD_CORE"]  # for the structures that Python keeps to itself
CYTHON = ["-Wno-everything"]
# musl takes the stack of each thread from this: its own default, 128 KiB, is little for the interpreter.
STACK = 1 << 20  # bytes
LINK = ["-s", "-no-pie", "-Wl,--gc-sections", "-Wl,-z,norelro", f"-Wl,-z,stack-size={STACK}"]


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
    options = parser.parse_args(arguments)
    try:
        for path in build(options.only or MACHINES, options.output, options.wheels):
            print(f"{sha256(path)}  {path.name}  {path.stat().st_size} bytes")
    except Failed as error:
        say(f"binaries: {error}")
        return 1
    return 0


def build(machines: Sequence[str], output: Path, wheels: Path) -> list[Path]:
    """Build the binaries for `machines`, with their NOTICE, into `output`, and a wheel of each into `wheels`.

    Returns the paths of all but NOTICE. Raises `Failed`.
    """
    output.mkdir(parents=True, exist_ok=True)
    wheels.mkdir(parents=True, exist_ok=True)
    before = digest()
    text = notice(version(), library(NATIVE), Zig(NATIVE))
    (output / "NOTICE").write_text(text)
    built = []
    for machine in machines:
        say(f"building the binary for {machine}")
        with tempfile.TemporaryDirectory(prefix=f"static-{machine}-", dir=cache()) as folder:
            program = link(machine, Path(folder))
            if digest() != before:
                raise Failed("the source changed while the binary was built: build again")
            built.append(Path(shutil.move(program.path, output / name(machine))))
        for old in wheels.glob(f"{NAME}-*_{machine}.whl"):
            old.unlink()
        built.append(pack(built[-1], machine, text, wheels))
    write_sums(wheels)
    return built


def name(machine: str) -> str:
    """The file name of a release's binary."""
    return f"fastvsock-{version()}-linux-{machine}"


def link(machine: str, folder: Path, start: Path = HERE / "start.py") -> Program:
    """Build a program for a machine, which begins with the module `start`, inside `folder`. Raises `Failed`."""
    python, zig = library(machine), Zig(machine)
    copy_source(folder / "source")
    source, made = folder / "source" / "src", folder / "made"
    made.mkdir()  # fails where something was built before
    facts = json.loads(library(NATIVE).run(HERE / "freeze.py", source, MODULES, start, made))
    for path in SOURCES:
        shutil.copy(HERE / path, made)
    flags = [*FLAGS, f"-I{python.headers}", f"-I{python.headers / 'internal'}"]
    objects = [zig.compile(made / path, *flags, *INTERNAL) for path in (*SOURCES, "frozen.c", "builtin.c")]
    objects += [zig.compile(path, *flags, *CYTHON) for path in _extensions(source, made, zig)]
    program = made / "program"
    inputs = [*(path.name for path in objects), str(python.archive)]
    run([*zig.compiler, *LINK, "-o", program.name, *inputs], env=zig.env, cwd=made, timeout=600)
    return Program(program, facts["frozen"], facts["builtin"])


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
