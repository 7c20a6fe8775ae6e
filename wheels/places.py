"""The places where a wheel is run: each CPython of this machine, and the foreign ones that it can be made to run.

- The machine's own Pythons run the wheel of their own architecture and libc, in fresh virtual environments.
- aarch64 with glibc: Debian's arm64 CPython, unpacked into a folder, under qemu-user. System calls are passed on to
  the real kernel there, so a splice is a splice; only the code around it is emulated.
- musl, where the machine has none of its own: a CPython built from Debian's source with zig (minutes, once, and kept in
  the cache). It links Debian's musl package dynamically, which is what Alpine is: 1.2.

apt is asked with a configuration of its own, for another architecture, with an empty list of installed packages: what
dpkg knows of this machine stays untouched. Mirrors and keys are the machine's.
"""

import os
import re
import shlex
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path

from wheels.common import Failed, Interpreter, cache, environment, interpreters, run, say

RELEASE = "bookworm"  # its names of packages are below
DEBIAN_MINOR = "3.11"
GLIBC_PACKAGES = (
    "libbz2-1.0",
    "libc6",
    "libexpat1",
    "libffi8",
    "liblzma5",
    f"libpython{DEBIAN_MINOR}-minimal",
    f"libpython{DEBIAN_MINOR}-stdlib",
    "libssl3",
    "libuuid1",
    f"python{DEBIAN_MINOR}-minimal",
    "zlib1g",
)
DEBIAN_NAME = {"x86_64": "amd64", "aarch64": "arm64"}

# What configure cannot find out by running a foreign program, and what zig's newer musl has but 1.2.3 has not.
CROSS = {
    "ac_cv_buggy_getaddrinfo": "no",
    "ac_cv_file__dev_ptc": "no",
    "ac_cv_file__dev_ptmx": "yes",
    "ac_cv_func_preadv2": "no",
    "ac_cv_func_pwritev2": "no",
}


@dataclass(frozen=True)
class Place:
    """An interpreter that runs the wheel for `machine` and `libc`."""

    name: str
    python: str  # an executable, perhaps a script that runs the real one
    machine: str
    libc: str
    emulated: bool = False  # no absolute figure means anything there
    complete: bool = True  # has venv, zlib and all else that pytest needs


def native() -> list[Place]:
    """The machine's own interpreters."""
    return [
        Place(f"CPython {one.version}, {one.libc}, native", one.executable, one.machine, one.libc)
        for one in interpreters()
    ]


def foreign(machine: str, libc: str) -> Place:
    """A place for wheels that no interpreter of this machine runs; made if it is not there yet. Raises `Failed`."""
    if libc == "glibc":
        return _debian(machine)
    return _musl(machine)


def _debian(machine: str) -> Place:
    folder = cache() / f"debian-{RELEASE}-{machine}"
    real = folder / "usr" / "bin" / f"python{DEBIAN_MINOR}"
    if not real.exists():
        say(f"unpacking Debian's CPython for {machine} (once)")
        Apt(DEBIAN_NAME[machine]).unpack(GLIBC_PACKAGES, folder)
    wrapper = _wrapper(folder / "python", [qemu(machine), "-L", str(folder), str(real)])
    return Place(_describe(wrapper, "glibc", "under qemu-user"), wrapper, machine, "glibc", True, False)


def _musl(machine: str) -> Place:
    folder = cache() / f"musl-{RELEASE}-{machine}"
    real = folder / "bin" / f"python{DEBIAN_MINOR}"
    if not real.exists():
        say(f"building a musl CPython for {machine}: some minutes, once")
        _build_musl(machine, folder)
    foreign_machine = machine != os.uname().machine
    # musl's own loader runs the program, wherever it lies; under qemu it is found below the folder.
    loader = folder / "lib" / f"ld-musl-{machine}.so.1"
    command = [qemu(machine), "-L", str(folder), str(real)] if foreign_machine else [str(loader), str(real)]
    wrapper = _wrapper(folder / "python", command)
    how = "under qemu-user" if foreign_machine else "native"
    return Place(_describe(wrapper, "musl", how), wrapper, machine, "musl", foreign_machine, False)


def _describe(python: str, libc: str, how: str) -> str:
    """The name of a place, once its interpreter has shown that it runs."""
    number = run([python, "-c", "import platform; print(platform.python_version())"], timeout=120).strip()
    return f"CPython {number}, {libc}, {how}"


def _wrapper(path: Path, command: list[str]) -> str:
    """A script that runs `command`: no binfmt is registered, and programs want one name for an interpreter."""
    path.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    path.chmod(0o755)
    return str(path)


def qemu(machine: str) -> str:
    """qemu-user for a machine: the one on PATH, or Debian's static one, unpacked."""
    found = qemu_here(machine)
    if found:
        return found
    say("unpacking qemu-user (once)")
    Apt(DEBIAN_NAME[os.uname().machine]).unpack(("qemu-user-static",), cache() / "qemu")
    return str(_unpacked_qemu(machine))


def qemu_here(machine: str) -> str | None:
    """qemu-user for a machine where it need not be fetched."""
    on_path = shutil.which(f"qemu-{machine}-static") or shutil.which(f"qemu-{machine}")
    unpacked = _unpacked_qemu(machine)
    return on_path or (str(unpacked) if unpacked.exists() else None)


def _unpacked_qemu(machine: str) -> Path:
    return cache() / "qemu" / "usr" / "bin" / f"qemu-{machine}-static"


class Apt:
    """apt with the machine's mirrors and keys, and a state of its own; `release` is another one than RELEASE."""

    def __init__(self, architecture: str, release: str = "") -> None:
        if not shutil.which("apt-get"):
            raise Failed("apt-get is needed to fetch a foreign CPython, and is not here")
        self._folder = cache() / "-".join(filter(None, ("apt", architecture, release)))
        self._release = release
        for part in ("cache/archives/partial", "downloads", "sources", "state/lists/partial"):
            (self._folder / part).mkdir(parents=True, exist_ok=True)
        (self._folder / "status").touch()
        self._options = [
            f"-oAPT::Architecture={architecture}",
            f"-oDir::State={self._folder / 'state'}",
            f"-oDir::State::status={self._folder / 'status'}",
            f"-oDir::Cache={self._folder / 'cache'}",
            f"-oDir::Etc::sourcelist={os.devnull}",
            f"-oDir::Etc::sourceparts={self._folder / 'sources'}",
            "-oAPT::Sandbox::User=root",  # the folder is not for apt's own user to enter
        ]
        self._take_sources()
        run(["apt-get", *self._options, "-qq", "update"], timeout=600)

    def unpack(self, packages: tuple[str, ...], folder: Path) -> None:
        """Download packages and unpack them into `folder`, which appears only when it is complete."""
        downloads = self._folder / "downloads"
        shutil.rmtree(downloads)
        downloads.mkdir()
        run(["apt-get", *self._options, "-qq", "download", *packages], cwd=downloads, timeout=600)
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        for package in sorted(downloads.glob("*.deb")):
            run(["dpkg-deb", "--extract", package, partial])
        partial.rename(folder)

    def archives(self, package: str) -> list[Path]:
        """Download the files of a source package, NAME or NAME=VERSION."""
        downloads = self._folder / "downloads"
        run(["apt-get", *self._options, "-qq", "source", "--download-only", package], cwd=downloads, timeout=600)
        return sorted(downloads.glob(f"{package.partition('=')[0]}_*"))

    def source(self, package: str, folder: Path) -> None:
        """Download the original source of a package and unpack it into `folder`."""
        downloads = self._folder / "downloads"
        get = ["apt-get", *self._options, "-qq", "source", "--download-only", "--tar-only"]
        run([*get, package], cwd=downloads, timeout=600)
        (archive,) = downloads.glob(f"{package}_*.orig.tar.*")
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")

    def _take_sources(self) -> None:
        """The machine's lists of mirrors, with the source packages switched on."""
        told = shlex.split(run(["apt-config", "shell", "etc", "Dir::Etc/f"]))  # etc='/etc/apt'
        etc = Path(told[0].partition("=")[2])
        for path in (etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))):
            if path.suffix == ".sources":
                text = re.sub(r"(?m)^Types:.*", "Types: deb deb-src", path.read_text())
            elif path.suffix == ".list" and path.exists():
                lines = re.findall(r"(?m)^deb\s.*", path.read_text())
                text = "".join(f"{line}\n{line.replace('deb', 'deb-src', 1)}\n" for line in lines)
            else:
                continue
            if self._release:
                text = _of_release(text, self._release)
            (self._folder / "sources" / path.name).write_text(text)


def _of_release(text: str, release: str) -> str:
    """The entries of a list of mirrors that are of RELEASE itself, as those of another release."""
    entries = re.split(r"\n\s*\n", text) if "Suites:" in text else text.splitlines()
    kept = [entry for entry in entries if re.search(rf"\s{RELEASE}\s", entry)]
    others = rf"[ \t]{RELEASE}-\S+"  # its updates
    return "".join(re.sub(others, "", entry).replace(RELEASE, release) + "\n\n" for entry in kept)


def _build_musl(machine: str, folder: Path) -> None:
    """A small CPython (no ssl, no ctypes, no zlib) for musl, with every module linked in."""
    builder = _builder()
    zig = environment("build", builder.executable).with_name("python-zig")
    _wrapper(zig, [str(zig.with_name("python")), "-m", "ziglang"])
    apt = Apt(DEBIAN_NAME[os.uname().machine])
    work = cache() / f"musl-build-{machine}"
    shutil.rmtree(work, ignore_errors=True)
    apt.source(f"python{DEBIAN_MINOR}", work)
    (source,) = work.iterdir()
    env = os.environ | CROSS | _compiling(machine, str(zig))
    host = f"--host={machine}-linux-musl"
    build = f"--build={os.uname().machine}-linux-gnu"
    features = ["--without-ensurepip", "--disable-test-modules", "--with-pkg-config=no"]
    run(["./configure", host, build, f"--with-build-python={builder.executable}", *features], env=env, cwd=source)
    modules = (source / "Modules" / "Setup.stdlib").read_text()
    # A list of all modules stands ready for static builds; libcrypt is the one library that they want from outside.
    (source / "Modules" / "Setup.local").write_text(re.sub(r"(?m)^_crypt .*", "", modules))
    run(["make", f"-j{os.cpu_count() or 1}", "python", "pybuilddir.txt"], env=env, cwd=source, timeout=3600)
    partial = folder.with_name(f"{folder.name}.partial-python")
    shutil.rmtree(partial, ignore_errors=True)
    Apt(DEBIAN_NAME[machine]).unpack(("musl",), partial)
    _install(source, partial)
    partial.rename(folder)
    shutil.rmtree(work)


def _compiling(machine: str, zig: str) -> dict[str, str]:
    return {
        "CC": f"{zig} cc -target {machine}-linux-musl -dynamic",
        "AR": f"{zig} ar",
        "RANLIB": f"{zig} ranlib",
        "READELF": shutil.which("readelf") or "readelf",
        "CFLAGS": "-g0 -O1 -fno-sanitize=undefined -Wno-everything",
        "LDFLAGS": "-s",
        "MODULE_BUILDTYPE": "static",
        "ZIG_GLOBAL_CACHE_DIR": str(cache() / "zig"),
    }


def _install(source: Path, folder: Path) -> None:
    """The interpreter and its library into `folder`, laid out as an installation is; the program comes last."""
    library = folder / "lib" / f"python{DEBIAN_MINOR}"
    shutil.copytree(source / "Lib", library, ignore=shutil.ignore_patterns("test", "tests", "idlelib", "tkinter"))
    (library / "lib-dynload").mkdir()
    for data in (source / (source / "pybuilddir.txt").read_text().strip()).glob("_sysconfigdata*.py"):
        shutil.copy(data, library)
    (folder / "bin").mkdir()
    shutil.copy(source / "python", folder / "bin" / f"python{DEBIAN_MINOR}")


def _builder() -> Interpreter:
    """A CPython of the version that is built: the build runs it."""
    for one in interpreters():
        if one.version.startswith(f"{DEBIAN_MINOR}."):
            return one
    raise Failed(f"building a musl CPython takes a CPython {DEBIAN_MINOR}, and none is on PATH")
