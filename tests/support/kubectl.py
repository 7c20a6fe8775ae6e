"""The real kubectl, with an API server of the tests, whose pod is reached by one of the ways of `support.ways`."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fetch
import images
import pytest

from support import HANG, ROOT, started, write_all
from support.apiserver import NAME
from support.ssh import output, until_status
from support.ways import Exec, Way


@dataclass(frozen=True)
class Pod:
    """A pod, for kubectl, whose cache is in `folder`; `idle` are the processes that serve the pod while it is idle."""

    way: Way
    exec: Exec
    program: Path
    url: str
    folder: Path
    idle: set[str]

    def kubectl(self, *words: str | Path) -> list[str]:
        """A command line of kubectl."""
        cache = f"--cache-dir={self.folder}/cache"
        return [str(self.program), f"--server={self.url}", "--kubeconfig=/dev/null", cache, *map(str, words)]

    def run(self, *words: str | Path, **options: Any) -> subprocess.CompletedProcess[bytes]:
        """Run kubectl to its end. Its stdin is empty unless `options` give it another."""
        if "input" not in options:
            options.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.run(self.kubectl(*words), capture_output=True, timeout=2 * HANG, check=False, **options)

    def execute(self, *words: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
        """`kubectl exec` of a command; with `input` among the options, with -i."""
        return self.run("exec", *(["-i"] if "input" in options else []), NAME, "--", *words, **options)

    def echo(self, data: bytes, status: int) -> bytes | None:
        """What comes back of `data` from an echo in the guest that ends with a status; None where that is another one.

        The guest's shell ends when all has come back: dropbear may hang with output of one that ends earlier.
        """
        script = until_status(f"head -c {len(data)}; (exit {status})")
        with (
            ThreadPoolExecutor(1) as pool,
            started(self.kubectl("exec", "-i", NAME, "--", "sh", "-c", script)) as child,
        ):
            pool.submit(write_all, child.stdin.fileno(), data)
            echoed = output(child, status)
            child.stdin.close()
            return echoed if child.wait(HANG) == status else None

    def copy(self, source: str | Path, target: str | Path, *options: str) -> subprocess.CompletedProcess[bytes]:
        """`kubectl cp`, which must succeed."""
        done = self.run("cp", *options, source, target)
        assert done.returncode == 0, done.stderr
        return done


def inside(path: Path) -> str:
    """A path in the guest, as `kubectl cp` wants it."""
    return f"{NAME}:{path}"


def program() -> Path:
    """Return the real kubectl; skip the test if it is not available on this machine."""
    try:
        return images.kubectl()
    except fetch.CannotRun as reason:
        pytest.skip(f"this machine: {reason}")


@contextmanager
def pod(way: Way, execution: Exec, program: Path, folder: Path, *options: str) -> Iterator[Pod]:
    """An API server with a pod whose commands run by `execution`; `options` are the server's."""
    server = [sys.executable, "-m", "support.apiserver", *options, "--", *execution.words]
    environment = execution.environment | {"PYTHONPATH": f"{ROOT}/tests"}
    with started(server, stdin=subprocess.DEVNULL, stderr=None, env=environment) as child:
        url = child.stdout.readline().decode().strip()
        assert url, "the API server did not start"
        yield Pod(way, execution, program, url, folder, processes_about(execution.root))


def processes_about(*folders: Path) -> set[str]:
    """All processes but this one that name one of the folders in their words or environment: number and words."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):  # it has ended, or is another user's
                words = (entry / "cmdline").read_bytes()
                if any(bytes(folder) in words + (entry / "environ").read_bytes() for folder in folders):
                    found.add(f"{entry.name} {os.fsdecode(words)}")
    return found
