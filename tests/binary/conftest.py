"""The binary under test, and a program of the same parts that runs Python code, both built of this source."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support import HANG
from wheels.static import build, cpython

# Behind the binary's own start, this takes the place of its main().
PROBE = """

def main() -> None:
    sys.meta_path.append(ExtensionFinder)
    exec(sys.argv[1], {})
    sys.stdout.flush()
"""


@pytest.fixture(scope="session")
def machine() -> str:
    """The machine that runs the tests, where its CPython was built: that takes minutes, and no test starts it."""
    machine = os.uname().machine
    if machine not in build.MACHINES or not cpython.built(machine) or not cpython.built(cpython.NATIVE):
        pytest.skip("the static CPython has not been built (make binaries)")
    return machine


@pytest.fixture(scope="session")
def program(machine: str, tmp_path_factory: pytest.TempPathFactory) -> build.Program:
    """The binary of this source, with the names of the modules in it."""
    return build.link(machine, tmp_path_factory.mktemp("binary"))


@pytest.fixture(scope="session")
def fastvsock(program: build.Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The binary by its name of `fastvsock`, alone in a folder that can be a root."""
    path = tmp_path_factory.mktemp("root") / "fastvsock"
    os.link(program.path, path)
    return path


@pytest.fixture(scope="session")
def connect(fastvsock: Path) -> Path:
    """The binary by its name of `runcvm-vsock-connect`, beside the other."""
    path = fastvsock.with_name("runcvm-vsock-connect")
    path.symlink_to(fastvsock.name)
    return path


@pytest.fixture(scope="session")
def inside(machine: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Run Python code inside the binary's interpreter, and return what it prints."""
    start = tmp_path_factory.mktemp("start") / "start.py"
    start.write_text((cpython.HERE / "start.py").read_text() + PROBE)
    probe = build.link(machine, tmp_path_factory.mktemp("probe"), start).path

    def run(code: str, **environment: str) -> str:
        done = subprocess.run([probe, code], capture_output=True, text=True, timeout=HANG, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
