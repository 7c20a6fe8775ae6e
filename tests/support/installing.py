"""`fastvsock runcvm install` on a bundle, the wheel that it takes, and the launcher that it leaves."""

import os
import subprocess
import zipfile
from pathlib import Path

import fastvsock
from support import HANG
from support.bundles import runcvm

LAUNCHER = "scripts/runcvm-vsock-connect"
SCRIPTS = [LAUNCHER, "scripts/runcvm-ctr-exec", "scripts/runcvm-ctr-defaults"]
PACKAGE = Path(fastvsock.__file__).parent
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
