"""CPython as a static library for musl: Debian's source with Debian's patches, compiled by zig, once for each machine.

The result is kept in the cache, in a folder named after all that decides what it is (cpython.txt, Setup.local, the
pinned tools and this file). The library of this machine also gives an interpreter, which compiles the modules
that are frozen into the programs: bytecode is then that of the very CPython that will run it.
"""

import hashlib
import os
import shlex
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path

from wheels.build import EPOCH, host_interpreter
from wheels.common import HERE as WHEELS
from wheels.common import Failed, cache, environment, run, say, sha256
from wheels.places import DEBIAN_NAME, Apt

HERE = Path(__file__).resolve().parent
PINS = HERE / "cpython.txt"
MODULES = HERE / "Setup.local"
NATIVE = "x86_64"  # the machine that builds: configure looks at it for what is asked of the interpreter made here
# Extended attributes are Linux' and musl's too; CPython 3.11 has them with glibc alone. Sizes: linux/limits.h.
XATTRS = "-DUSE_XATTRS -DXATTR_SIZE_MAX=65536 -DXATTR_LIST_MAX=65536"
FLAGS = f"-O2 -g0 -fno-pie -ffunction-sections -fdata-sections -fno-sanitize=undefined -Wno-everything {XATTRS}"

# What configure would find out by running a foreign program. Its own guesses are slow: FNV in place of SipHash, no
# computed gotos.
ANSWERS = {
    "ac_cv_aligned_required": "no",
    "ac_cv_broken_sem_getvalue": "no",
    "ac_cv_buggy_getaddrinfo": "no",
    "ac_cv_computed_gotos": "yes",
    "ac_cv_file__dev_ptc": "no",
    "ac_cv_file__dev_ptmx": "yes",
    "ac_cv_pthread_system_supported": "yes",
    "ac_cv_working_tzset": "yes",
}
CONFIGURE = (
    "--disable-shared",
    "--disable-test-modules",
    "--with-pkg-config=no",
    "--without-doc-strings",
    "--without-ensurepip",
)
BUILD_TIMEOUT = 3600.0  # seconds; two minutes are usual


@dataclass(frozen=True)
class Pins:
    """Which source package is built: `package` as apt names it with its version, and each archive's SHA-256."""

    package: str
    archives: dict[str, str]

    @property
    def minor(self) -> str:
        """CPython's minor version: 3.11."""
        return self.package.partition("=")[0].removeprefix("python")

    @property
    def version(self) -> str:
        """The version of Debian's package, which says which patches are in it."""
        return self.package.partition("=")[2]


def pins() -> Pins:
    """What cpython.txt asks for."""
    lines = [line for line in PINS.read_text().splitlines() if line and not line.startswith("#")]
    return Pins(lines[0], {name: digest for digest, name in (line.split() for line in lines[1:])})


@dataclass(frozen=True)
class Library:
    """A built CPython, laid out in `folder`."""

    folder: Path
    minor: str

    @property
    def archive(self) -> Path:
        """The static library."""
        return self.folder / "lib" / f"libpython{self.minor}.a"

    @property
    def headers(self) -> Path:
        """The folder with Python.h, pyconfig.h and, in `internal`, those of the interpreter's own parts."""
        return self.folder / "include"

    @property
    def modules(self) -> Path:
        """The standard library in source."""
        return self.folder / "lib" / f"python{self.minor}"

    def run(self, script: Path, *arguments: str | Path) -> str:
        """Run a script with the interpreter that was built here, apart from whatever this machine has."""
        env = {"PYTHONHOME": str(self.folder), "PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"}
        # Code that it compiles has lines for tracebacks, and no columns, which take a quarter of its size (PEP 657).
        options = ["-s", "-S", "-P", "-B", "-X", "no_debug_ranges"]
        words = [self.folder / "bin" / "python", *options, script, *arguments]
        return run(words, env=env, timeout=600)


class Zig:
    """The compiler for one machine: what `zig cc` is called with, and in which environment."""

    def __init__(self, machine: str) -> None:
        tools = environment("build", host_interpreter().executable)
        self.machine = machine
        self.cython = tools.with_name("cython")
        (packages,) = tools.parent.parent.glob("lib/python*/site-packages")
        self.library = packages / "ziglang" / "lib"  # the sources of its C library, with their licences
        self._zig = [str(tools), "-m", "ziglang"]
        self.compiler = [*self._zig, "cc", "-target", f"{machine}-linux-musl", "-static"]
        self.env = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": os.environ.get("HOME", os.sep),
            "LC_ALL": "C.UTF-8",
            "PYTHONHASHSEED": "0",
            "SOURCE_DATE_EPOCH": str(EPOCH),  # the date that sys.version shows
            "ZIG_GLOBAL_CACHE_DIR": str(cache() / "zig"),
            "ZIG_LOCAL_CACHE_DIR": str(cache() / "zig"),
        }

    def tool(self, name: str) -> str:
        """A tool of zig's as a shell's command line: `ar`, `ranlib`."""
        return shlex.join([*self._zig, name])

    def compile(self, source: Path, *flags: str) -> Path:
        """Compile one C file into an object beside it."""
        result = source.with_suffix(".o")
        run([*self.compiler, *flags, "-c", source.name, "-o", result.name], env=self.env, cwd=source.parent)
        return result


def built(machine: str) -> Library | None:
    """The CPython for a machine where it was built before."""
    folder = _folder(machine)
    return Library(folder, pins().minor) if folder.exists() else None


def library(machine: str) -> Library:
    """The CPython for a machine, from the cache, or built: two minutes on two cores. Raises `Failed`."""
    found = built(machine)
    if found:
        return found
    wanted = pins()
    folder = _folder(machine)
    say(f"building CPython {wanted.version} for {machine}: some minutes, once")
    work = folder.with_name(f"{folder.name}.work")
    shutil.rmtree(work, ignore_errors=True)
    source = work / "source"
    unpack(wanted, source)
    _compile(source, Zig(machine), wanted)
    _keep(source, work / "kept", machine, wanted.minor)
    (work / "kept").rename(folder)  # whole, or not there
    shutil.rmtree(work)
    return Library(folder, wanted.minor)


def unpack(wanted: Pins, folder: Path) -> None:
    """The pinned source into `folder`, with every patch of Debian's series applied. Raises `Failed`."""
    archives = _fetch(wanted)
    original = next(path for path in archives if ".orig." in path.name)
    debian = next(path for path in archives if ".debian." in path.name)
    outside = folder.with_name("original")
    for archive, place in ((original, outside), (debian, folder.with_name("patches"))):
        with tarfile.open(archive) as tar:
            tar.extractall(place, filter="data")
    (unpacked,) = outside.iterdir()
    unpacked.rename(folder)
    patches = folder.with_name("patches") / "debian" / "patches"
    for line in (patches / "series").read_text().splitlines():
        name = line.partition("#")[0].strip()
        if name:
            run(["patch", "--strip=1", "--forward", "--silent", "--batch", f"--input={patches / name}"], cwd=folder)


def _fetch(wanted: Pins) -> list[Path]:
    """The archives of the source, out of the cache or from Debian, each with the pinned SHA-256."""
    folder = cache() / "static" / "sources"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in wanted.archives]
    if not all(path.exists() for path in paths):
        say(f"fetching Debian's source {wanted.package} (once)")
        for archive in Apt(DEBIAN_NAME[NATIVE]).archives(wanted.package):
            if archive.name in wanted.archives:
                shutil.copy(archive, folder)
    for path in paths:
        if not path.exists() or sha256(path) != wanted.archives[path.name]:
            raise Failed(f"{path} is not the archive that {PINS.name} pins: remove it, and build again")
    return paths


def _folder(machine: str) -> Path:
    """Where the cache has a library: named after one SHA-256 of all that decides what it is."""
    total = hashlib.sha256(str(EPOCH).encode())
    for path in (PINS, MODULES, WHEELS / "build.txt", Path(__file__)):
        total.update(path.read_bytes())
    return cache() / "static" / f"cpython-{machine}-{total.hexdigest()[:16]}"


def _compile(source: Path, zig: Zig, wanted: Pins) -> None:
    readelf = shutil.which("readelf")
    if not readelf:
        raise Failed("CPython's configure needs readelf (Debian's package binutils)")
    env = zig.env | ANSWERS
    env |= {
        "CC": shlex.join(zig.compiler),
        "AR": zig.tool("ar"),
        "RANLIB": zig.tool("ranlib"),
        "READELF": readelf,
        "CFLAGS": FLAGS,
        "LDFLAGS": "-static -s -no-pie -Wl,--gc-sections",
        "LINKFORSHARED": " ",
        "MODULE_BUILDTYPE": "static",
    }
    machines = [f"--host={zig.machine}-linux-musl", f"--build={os.uname().machine}-linux-gnu"]
    python = f"--with-build-python={host_interpreter().executable}"
    run(["./configure", *machines, python, *CONFIGURE], env=env, cwd=source, timeout=BUILD_TIMEOUT)
    shutil.copy(MODULES, source / "Modules" / "Setup.local")
    targets = [f"libpython{wanted.minor}.a", *(["python"] if zig.machine == NATIVE else [])]
    run(["make", f"-j{os.cpu_count() or 1}", *targets], env=env, cwd=source, timeout=BUILD_TIMEOUT)


def _keep(source: Path, folder: Path, machine: str, minor: str) -> None:
    """What the programs are made of, laid out as an installation is; the rest of the build is thrown away."""
    unwanted = shutil.ignore_patterns("test", "tests", "idlelib", "tkinter", "__pycache__", "lib2to3", "ensurepip")
    shutil.copytree(source / "Lib", folder / "lib" / f"python{minor}", ignore=unwanted)
    shutil.copy(source / f"libpython{minor}.a", folder / "lib")
    shutil.copytree(source / "Include", folder / "include")
    shutil.copy(source / "pyconfig.h", folder / "include")
    for text in ("LICENSE", "Doc/license.rst"):
        shutil.copy(source / text, folder)
    if machine == NATIVE:
        (folder / "bin").mkdir()
        shutil.copy(source / "python", folder / "bin")
