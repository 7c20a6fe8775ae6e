"""The package as a source tree, as pip installs it, and as it runs once installed."""

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

from support import HANG, ROOT, Listener, started

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SOURCE = [
    path
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
    if (path := ROOT / name).exists()
]
SCRIPTS = Path(sysconfig.get_path("scripts"))  # of the environment that runs the tests
TOLD = "without the splice engine"


def run(*arguments: str | Path, **options: str) -> subprocess.CompletedProcess[str]:
    """Run a program, with `options` added to the environment, and collect all that it says."""
    return subprocess.run(
        arguments,
        env={**os.environ, **options},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=2 * HANG,
        check=False,
    )


def source(folder: Path) -> Path:
    """A copy of what a build needs, as a fresh clone has it: nothing built, nothing cached."""
    built = shutil.ignore_patterns("*.so", "*.c", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT / "src", folder / "src", ignore=built)
    for path in SOURCE:
        shutil.copy(path, folder)
    return folder


def pip(python: Path, *arguments: str | Path, **options: str) -> subprocess.CompletedProcess[str]:
    """pip in the build environment, which builds right there."""
    common = ["--verbose", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    return run(sys.executable, "-m", "pip", "--python", python, *arguments[:1], *common, *arguments[1:], **options)


def relayed(listener: Listener, command: list[str | Path], payload: bytes) -> tuple[int, bytes, bytes]:
    """The exit code, stdout and stderr of a command that carries `payload` down."""
    with started([str(word) for word in [*command, listener.uds, "5003"]]) as child:
        with listener.accept() as connection:
            child.stdin.write(b"up")
            assert connection.recv(10) == b"up"
            connection.sendall(payload)
            connection.shutdown(socket.SHUT_WR)
            out, err = child.communicate(timeout=HANG)
        return child.returncode, out, err
