"""`fastvsock runcvm install` on a bundle, the wheel that it takes, and the launcher that it leaves."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import fastvsock
from fastvsock.runcvm import install
from fastvsock.runcvm.binary import Binary
from fastvsock.runcvm.changes import ChangeSet
from fastvsock.runcvm.payload import Package
from support import HANG, ROOT
from support.bundles import runcvm

LAUNCHER = "scripts/runcvm-vsock-connect"
SCRIPTS = [LAUNCHER, "scripts/runcvm-ctr-exec", "scripts/runcvm-ctr-defaults"]
PACKAGE = Path(fastvsock.__file__).parent
HERE = {"x86_64": 62, "aarch64": 183}.get(os.uname().machine, 0)
MARK = b"fastvsock 9.8.7, one static executable\0"
JOURNALS = (".fastvsock/manifest.json", ".fastvsock/backup/manifest.json")


def make_wheel(path: Path, **more: bytes) -> Path:
    """A wheel of this package's Python files, and the engines files named in `more`."""
    with zipfile.ZipFile(path, "w") as wheel:
        for file in PACKAGE.rglob("*.py"):
            wheel.write(file, f"fastvsock/{file.relative_to(PACKAGE)}")
        for name, data in more.items():
            wheel.writestr(f"fastvsock/engines/{name}.abi3.so", data)
        wheel.writestr("fastvsock-0.1.0.dist-info/METADATA", "Name: fastvsock\n")
    return path


def installed(bundle: Path, *arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Install, expecting that exit status."""
    result = runcvm("install", bundle, *arguments)
    assert result.returncode == code, result.stderr
    return result


def launched(bundle: Path, *arguments: str, before: list[str] | None = None, **variables: str) -> str:
    """What the launcher prints."""
    command = [*(before or []), str(bundle / LAUNCHER), *arguments]
    environment = {"PATH": os.environ["PATH"], **variables}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANG, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def program(machine: int = HERE, kind: int = 2, segment: int = 1, mark: bytes = MARK) -> bytes:
    """An ELF file with one segment, as far as anybody but the kernel looks: elf(5)."""
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + kind.to_bytes(2, "little") + machine.to_bytes(2, "little")
    header = header.ljust(32, b"\0") + (64).to_bytes(8, "little")
    header = header.ljust(54, b"\0") + (56).to_bytes(2, "little") + (1).to_bytes(2, "little")
    return header.ljust(64, b"\0") + segment.to_bytes(4, "little").ljust(56, b"\0") + mark


def small(version: str = "9.8.7") -> Binary:
    """What stands for a binary where none is started."""
    return Binary(program(mark=MARK.replace(b"9.8.7", version.encode())), "a test", version, os.uname().machine)


def stand_in(path: Path) -> Path:
    """A program at `path` that `install` takes for the static binary, and that is the package of this source."""
    names = {"VERSION": fastvsock.__version__, "PYTHON": sys.executable}
    source = ROOT / "tests/support/stand_in.c"
    words = [
        "cc",
        "-static",
        "-O1",
        *(f'-D{name}="{value}"' for name, value in names.items()),
        "-o",
        str(path),
        str(source),
    ]
    subprocess.run(words, check=True, timeout=HANG)
    return path


def install_now(bundle: Path, files: Binary | Package, proxy: bool = False) -> ChangeSet:
    """What `install` does, in this process."""
    with install.opened(str(bundle), lock=True) as root:
        plan = install.plan_install(root, files, proxy=proxy)
        install.apply(root, plan)
        return plan
