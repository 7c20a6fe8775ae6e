"""Finds out what a bundle holds by running it: its dynamic linker, busybox' applets, a Python, a bash.

The programs are dynamic, and the ELF interpreter that is written into them exists only where the bundle is mounted as
RunCVM mounts it. So they are run as RunCVM's own aliases run them: by `lib/ld PROGRAM`.
"""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..errors import BundleError, CircleError
from .bundle_files import Root
from .elf import Build, build_of

DEFAULTS = "scripts/runcvm-ctr-defaults"
EXEC = "scripts/runcvm-ctr-exec"
LINKER = "lib/ld"
FOLDERS = ("usr/sbin", "usr/bin", "sbin", "bin")  # in the order of RUNCVM_PATH in runcvm-ctr-defaults
SECONDS = 5.0  # for a program to answer, which takes a fraction of one
PYTHON = "import sys; sys.exit(None if sys.version_info >= (3, 11) else 'is Python %d.%d' % sys.version_info[:2])"
ADD_PYTHON = (
    "in a container without python3 3.11 or newer every exec and cp will fail: add python3 to RunCVM's bundle "
    "(BUNDELF_BINARIES in its Dockerfile)"
)
APPLETS = 64  # with fewer names than this, the list in a busybox was not found


@dataclass(frozen=True)
class Ran:
    """What a program printed, and its exit status, or why it has none."""

    out: str
    err: str
    status: int | None
    why: str = ""
    late: bool = False

    @property
    def wrong(self) -> str:
        """What went wrong, in few words; empty for exit status 0."""
        if self.why or not self.status:
            return self.why
        last = self.err.strip().rpartition("\n")[2]
        return last or (f"exit status {self.status}" if self.status > 0 else f"ended by signal {-self.status}")


class Bundle:
    """The programs of the bundle at `root`. Results are cached, since nothing here changes the bundle."""

    def __init__(self, root: Root) -> None:
        self.root = root

    def find(self, program: str) -> str:
        """The path of a program in the bundle, as its scripts would find it; empty if it does not exist.

        A link that leads nowhere counts as missing; one that leads out of the bundle counts as there.
        """
        return next((path for folder in FOLDERS if self._is_there(path := f"{folder}/{program}")), "")

    def _is_there(self, path: str) -> bool:
        try:
            return bool(self.root.kind(self.root.real(path)))
        except CircleError:
            return False
        except BundleError:
            return bool(self.root.kind(path))

    @cached_property
    def has_linker(self) -> bool:
        """Whether there is an executable `lib/ld`."""
        return bool(self.root.kind(LINKER)) and os.access(self.root.full(LINKER), os.X_OK)

    @cached_property
    def build(self) -> Build | None:
        """What the bundle is built for, by its dynamic linker's name and content."""
        file = self.root.read(LINKER)
        build = build_of(file.data) if file else None
        if build is None:
            return None
        name = os.path.basename(self.root.real(LINKER))
        musl = any(entry.startswith("ld-musl-") for entry in [name, *self.root.names("lib")])
        return Build(build.machine, "musl" if musl else "glibc")

    @cached_property
    def foreign(self) -> str:
        """The machine that the bundle is built for, if it cannot be run here (qemu's binfmt can); else empty."""
        here = build_of(Path("/proc/self/exe").read_bytes())
        if self.build is None or here is None or self.build.machine == here.machine:
            return ""
        return self.build.machine if run([self.root.full(LINKER)]).status is None else ""

    def command(self, path: str, *arguments: str) -> list[str]:
        """The command line that runs the bundle's program at `path` here."""
        linker = [self.root.full(LINKER)] if self.has_linker else []
        # Links are resolved here, since the kernel resolves one by a mount point of the bundle to another place.
        real, name = self.root.full(path), os.path.basename(path)
        applet = [name] if os.path.basename(real) == "busybox" != name else []
        return [*linker, real, *applet, *arguments]

    def run(self, path: str, *arguments: str, data: bytes = b"", seconds: float | None = None) -> Ran:
        """Run a program of the bundle. Raises `BundleError` if a link leads out of it."""
        command = self.command(path, *arguments)
        return run(command, data) if seconds is None else run(command, data, seconds)

    @property
    def python(self) -> str:
        """The path of a Python in the bundle that is new enough; empty if there is none."""
        return self._python[0]

    @property
    def no_python(self) -> str:
        """Why `python` is empty."""
        return self._python[1]

    @property
    def late_python(self) -> bool:
        """Whether there is a Python that did not answer in time."""
        return self._python[2]

    @cached_property
    def _python(self) -> tuple[str, str, bool]:
        found = self.find("python3")
        if not found:
            return "", "no python3 in the bundle", False
        try:
            if self.foreign:
                wrong = self._untried_python(found)
                return "" if wrong else found, wrong, False
            ran = self.run(found, "-IS", "-c", PYTHON)
        except BundleError as error:  # a link leads out of the bundle
            return "", str(error), False
        return ("", f"{found}: {ran.wrong}", ran.late) if ran.wrong else (found, "", False)

    def _untried_python(self, path: str) -> str:
        """What is wrong with the Python of a bundle for another machine, as far as the file shows."""
        file = self.root.read(path)
        build = build_of(file.data) if file else None
        version = re.fullmatch(r"python3\.(\d+)", os.path.basename(self.root.real(path)))
        if build is None or build.machine != self.foreign:
            return f"{path}: is not a program for {self.foreign}"
        return f"{path}: is Python 3.{version[1]}" if version and int(version[1]) < 11 else ""

    @cached_property
    def applets(self) -> tuple[set[str] | None, str]:
        """busybox' applets and an empty text; or None and the reason why they are unknown."""
        busybox = self.root.read("bin/busybox")
        if busybox is None:
            return None, "bin/busybox is not there"
        ran = self.run("bin/busybox", "--list")
        if not ran.wrong:
            return set(ran.out.split()), ""
        names = _names_in(busybox.data)
        why = f"bin/busybox does not run here ({ran.wrong})"
        if len(names) < APPLETS:
            return None, f"{why}, and no list of applets was found in it"
        return names, f"{why}; its applets were read from the file"

    @cached_property
    def bash(self) -> list[str]:
        """The command line of a bash, the bundle's or this machine's; empty if there is none."""
        found = self.find("bash")
        try:
            if found and not self.run(found, "-c", "exit 0").wrong:
                return self.command(found)
        except BundleError:  # a link leads out of the bundle
            pass
        here = shutil.which("bash")
        return [here] if here else []


def run(command: Sequence[str], data: bytes = b"", seconds: float | None = None) -> Ran:
    """Run a command with `data` as its input; kill it with all its children after `seconds`."""
    limit = SECONDS if seconds is None else seconds
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
    except OSError as error:
        return Ran("", "", None, f"it does not start ({error.strerror})")
    with process:
        try:
            out, err = process.communicate(data, limit)
        except subprocess.TimeoutExpired:
            return Ran("", "", None, f"no answer within {limit:g} s", late=True)
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
    return Ran(out.decode(errors="replace"), err.decode(errors="replace"), process.returncode)


def _names_in(data: bytes) -> set[str]:
    """The applets of a busybox that cannot be run: it holds them as one sorted sequence of NUL-ended names."""
    at = data.find(b"\0ash\0")
    start = data.rfind(b"\0\0", 0, at) + 2
    end = data.find(b"\0\0", at)
    return {name.decode() for name in data[start:end].split(b"\0") if name.isascii()} if at >= 0 < end else set()
