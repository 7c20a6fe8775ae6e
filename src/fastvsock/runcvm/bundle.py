"""What a bundle has: its dynamic linker, busybox' applets, a Python, a bash; found out by running them.

The programs are dynamic, and the ELF interpreter that is written into them is there only where the bundle is mounted
as RunCVM mounts it. So they are run as RunCVM's own aliases run them: by `lib/ld PROGRAM`.
"""

import os
import shutil
import subprocess
from collections.abc import Sequence
from functools import cached_property

from .package import Build, build_of
from .root import BundleError, Root

DEFAULTS = "scripts/runcvm-ctr-defaults"
EXEC = "scripts/runcvm-ctr-exec"
LINKER = "lib/ld"
FOLDERS = ("usr/sbin", "usr/bin", "sbin", "bin")  # in the order of RUNCVM_PATH in runcvm-ctr-defaults
SECONDS = 20.0
PYTHON = "import os, sys; sys.exit(sys.version_info < (3, 11))"
APPLETS = 64  # a busybox with fewer names in it than this was not understood


class Bundle:
    """A look at the bundle at `root`. What is found out once is kept: nothing here changes it."""

    def __init__(self, root: Root) -> None:
        self.root = root

    def find(self, program: str) -> str:
        """The path of a program in the bundle, as its scripts would find it; empty where it is not there."""
        return next((path for folder in FOLDERS if self.root.kind(path := f"{folder}/{program}")), "")

    @cached_property
    def has_linker(self) -> bool:
        """Whether there is a `lib/ld` that may be executed."""
        return bool(self.root.kind(LINKER)) and os.access(self.root.full(LINKER), os.X_OK)

    @cached_property
    def build(self) -> Build | None:
        """What the bundle is built for, told by its dynamic linker's name and content."""
        file = self.root.read(LINKER)
        build = build_of(file.data) if file else None
        if build is None:
            return None
        name = os.path.basename(self.root.real(LINKER))
        musl = any(entry.startswith("ld-musl-") for entry in [name, *self.root.names("lib")])
        return Build(build.machine, "musl" if musl else "glibc")

    def command(self, path: str, *arguments: str) -> list[str]:
        """The command line that runs the bundle's program at `path` here."""
        linker = [self.root.full(LINKER)] if self.has_linker else []
        # Not the resolved name: busybox looks at the name that it is called by.
        self.root.full(path)
        return [*linker, f"{self.root.path}/{self.root.place(path)}", *arguments]

    def run(self, path: str, *arguments: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes] | None:
        """Run a program of the bundle; None where it does not start, or does not end in time."""
        return run(self.command(path, *arguments), data)

    @cached_property
    def python(self) -> str:
        """The path of a Python in the bundle that runs and is new enough; empty where there is none."""
        found = self.find("python3")
        return found if found and self._starts(found, "-IS", "-c", PYTHON) else ""

    @cached_property
    def applets(self) -> tuple[set[str] | None, str]:
        """busybox' applets and an empty text; or None, and why they cannot be told."""
        busybox = self.root.read("bin/busybox")
        if busybox is None:
            return None, "bin/busybox is not there"
        result = self.run("bin/busybox", "--list")
        if result and result.returncode == 0:
            return set(result.stdout.decode(errors="replace").split()), ""
        names = _names_in(busybox.data)
        if len(names) < APPLETS:
            return None, "bin/busybox does not run here, and no list of applets was found in it"
        return names, "bin/busybox does not run here; its applets were read from the file"

    @cached_property
    def bash(self) -> list[str]:
        """The command line of a bash, the bundle's or this machine's; empty where there is none."""
        found = self.find("bash")
        if found and self._starts(found, "-c", "exit 0"):
            return self.command(found)
        here = shutil.which("bash")
        return [here] if here else []

    def _starts(self, path: str, *arguments: str) -> bool:
        """Whether a program runs here and ends well. One that a link leads to outside of the bundle does not."""
        try:
            result = self.run(path, *arguments)
        except BundleError:
            return False
        return result is not None and result.returncode == 0


def run(command: Sequence[str], data: bytes = b"") -> subprocess.CompletedProcess[bytes] | None:
    """Run a command with `data` as its input; None where it does not start, or does not end in time."""
    try:
        return subprocess.run(command, input=data, capture_output=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None


def _names_in(data: bytes) -> set[str]:
    """The applets of a busybox that cannot be run: they lie in it as one sorted row of NUL-ended names."""
    at = data.find(b"\0ash\0")
    start = data.rfind(b"\0\0", 0, at) + 2
    end = data.find(b"\0\0", at)
    return {name.decode() for name in data[start:end].split(b"\0") if name.isascii()} if at >= 0 < end else set()
