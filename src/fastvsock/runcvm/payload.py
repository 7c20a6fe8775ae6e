"""Makes what is put into a bundle: the package's files, from this installation or a wheel, and the launchers.

The launcher is a shell script and a Python program in one file: run directly, or by `bash PATH`, it starts Python
with ``-I`` (an image's PYTHONPATH or PYTHONHOME are for its own Python, not for the bundle's) and without `site`; run
as `python3 PATH`, the shell's part is a string. The bundle's programs name an ELF interpreter of one mount point
only, so its Python is run through the bundle's own dynamic linker, which works wherever the bundle is seen.

The engine is a shared object: built for another libc or machine than the bundle's it is left out, and the copy engine
is used. (A musl Python may load a glibc object without an error, and fail later.)
"""

import hashlib
import os
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import BundleError

HOME = "lib/fastvsock"
CONNECT = "scripts/runcvm-vsock-connect"
UMBRELLA = "scripts/fastvsock"
INIT = "fastvsock/__init__.py"
MACHINES = {62: "x86_64", 183: "aarch64", 40: "arm", 243: "riscv64"}  # e_machine: elf.h

LAUNCHER = """\
#!/bin/sh
# {name}, of fastvsock {version}. Runs directly, as `python3 PATH` and as `sh PATH`.
''':'
fail() {{ echo "fastvsock: $2" >&2; exit "$1"; }}
self=$0
case $self in
  */*) ;;
  *) # `bash NAME` takes NAME from the current folder, or else from PATH
    found=$(command -v "$self") || found=./$self
    if [ -e "$self" ] && ! [ "$self" -ef "$found" ]; then
      fail 2 "$self is in this folder and in PATH: start it by its path"
    fi
    case $found in */*) self=$found;; *) self=./$found;; esac;;
esac
if [ -h "$self" ]; then
  link=$self
  self=$(readlink -f "$link") || fail 127 "$link is a link, and readlink is not in PATH: start the file itself"
fi
root=${{self%/*}}/{up}
{bundled}command -v python3 >/dev/null || fail 127 "no python3 in this PATH: $PATH"
exec python3 {flags} "$self" "$@"
'''
import os
import sys

if not sys.flags.isolated:  # `python3 PATH`: no module from the current folder, nor from where a link lies
    value = os.environ.get("PYTHONPATH")
    here = [os.path.abspath(path) for path in value.split(":") if path[:1] != "/"] if value else []
    sys.path[:] = [path for path in sys.path[1:] if os.path.abspath(path) not in here]
sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)) + "/{up}/{site}")
sys.argv[0] = "{name}"
from fastvsock.{module} import main

main()
"""
BUNDLED = """\
if [ -x "$root/{python}" ]; then exec {linker}"$root/{python}" {flags} "$self" "$@"; fi
"""


@dataclass(frozen=True)
class Build:
    """What an ELF file was built for. `libc` is ``glibc``, ``musl``, or empty if unknown."""

    machine: str
    libc: str

    def __str__(self) -> str:
        return f"{self.machine} {self.libc}".strip()

    def fits(self, other: "Build") -> bool:
        """Whether an object of this build may be loaded by a program of the build `other`."""
        return self.machine == other.machine and (not self.libc or not other.libc or self.libc == other.libc)


@dataclass(frozen=True)
class Package:
    """The files of fastvsock by their paths (``fastvsock/relaying.py``), and where they came from."""

    files: dict[str, bytes]
    source: str

    def engine(self) -> str:
        """The path of the splice engine's shared object; empty if there is none."""
        return next((path for path in self.files if "/_splice." in path and path.endswith(".so")), "")

    def without(self, path: str) -> "Package":
        """The same package without one file."""
        return Package({name: data for name, data in self.files.items() if name != path}, self.source)

    def site(self) -> str:
        """The folder for exactly these files: another content has another folder, so an upgrade is one step."""
        digest = hashlib.sha256()
        for path, data in sorted(self.files.items()):
            digest.update(b"%s\0%d\0%s" % (path.encode(), len(data), data))
        return f"{HOME}/{self.version()}-{digest.hexdigest()[:12]}"

    def version(self) -> str:
        """The package's own version; empty if it is missing or may not be part of a folder's name."""
        found = re.search(rb"""^__version__\s*=\s*["']([0-9][\w.+!]*)["']""", self.files.get(INIT, b""), re.M)
        return found.group(1).decode(errors="replace") if found else ""


def installed() -> Package:
    """The package that this code belongs to. Raises `BundleError` for a static executable, which has no such files."""
    try:
        top = Path(__file__).parent.parent
    except NameError:
        raise BundleError(
            "this fastvsock is one static executable and has no files of the package to install: "
            "run `fastvsock runcvm install` from an installation of fastvsock"
        ) from None
    files = {
        f"fastvsock/{path.relative_to(top).as_posix()}": path.read_bytes()
        for path in sorted(top.rglob("*"))
        if path.suffix in (".py", ".so") and path.is_file()
    }
    return Package(files, "this installation")


def from_wheel(path: str) -> Package:
    """The package in a wheel. Raises `BundleError` for a file that is not a wheel of fastvsock."""
    try:
        with zipfile.ZipFile(path) as wheel:
            names = [name for name in wheel.namelist() if name.startswith("fastvsock/") and not name.endswith("/")]
            files = {name: wheel.read(name) for name in names if name.endswith((".py", ".so"))}
    except Exception as error:  # zipfile passes on errors of zlib, struct and lzma, and RuntimeError
        reason = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
        raise BundleError(f"{path}: cannot be read as a wheel: {reason}") from None
    package = Package(files, os.path.basename(path))
    if any(".." in PurePosixPath(name).parts for name in files) or "fastvsock/entry.py" not in files:
        raise BundleError(f"{path}: not a wheel of fastvsock")
    if not package.version():
        raise BundleError(f"{path}: not a wheel of fastvsock: no valid version in {INIT}")
    return package


def build_of(data: bytes) -> Build | None:
    """What the ELF file `data` was built for; None for anything else."""
    if data[:4] != b"\x7fELF" or len(data) < 20:
        return None
    machine = int.from_bytes(data[18:20], "little")
    # The names of the C libraries, among the libraries needed or in the linker itself.
    libc = "musl" if b"libc.musl-" in data or b"ld-musl-" in data else "glibc" if b"libc.so.6" in data else ""
    return Build(MACHINES.get(machine, f"machine {machine}"), libc)


def is_launcher(data: bytes) -> bool:
    """Whether a file is a launcher, of any version of fastvsock."""
    return re.match(rb"#!/bin/sh\n# [\w-]+, of fastvsock \S+ Runs directly", data) is not None


def launcher(path: str, site: str, version: str, python: str, linker: bool) -> bytes:
    """The launcher for `path`, which finds the package at `site` and Python at `python` (empty: in PATH)."""
    name = os.path.basename(path)
    module = "entry" if name == os.path.basename(CONNECT) else "cli"
    flags = "-IS" if module == "entry" else "-I"  # the umbrella finds optional extras through site
    through = '"$root/lib/ld" ' if linker else ""
    bundled = BUNDLED.format(python=python, linker=through, flags=flags) if python else ""
    facts = {"name": name, "version": version, "site": site, "flags": flags, "bundled": bundled, "module": module}
    return LAUNCHER.format(up="/".join([".."] * path.count("/")), **facts).encode()
