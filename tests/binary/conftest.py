"""The binary under test, and a program of the same parts that runs Python code, both built of this source."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support import HANG, binaries
from wheels.static import build, cpython

SECRET = "a value of the build's environment"  # also in test_contents.py
# Behind the binary's own start, these take the place of its functions, and run the code in the last argument.
PROBE = """

def main() -> None:
    exec(sys.argv[-1], {})
    sys.stdout.flush()


def resume(arguments, environment):
    import os
    sys.argv[:] = arguments
    os.environ._data.update(environment)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
    main()
    os._exit(0)
"""


@pytest.fixture(scope="session")
def machine() -> str:
    """The machine that runs the tests."""
    return binaries.machine()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each way to start in turn, or those that a module names.

    A module that had a fixture `kind` of its own would leave its program to the next one as if it were of that kind.
    """
    if "kind" in metafunc.fixturenames:
        kinds = getattr(metafunc.module, "KINDS", build.KINDS)
        metafunc.parametrize("kind", kinds, indirect=True, scope="session")


@pytest.fixture(scope="session")
def kind(request: pytest.FixtureRequest, machine: str) -> str:
    """How the program starts."""
    binaries.require(request.param, machine)
    return str(request.param)


@pytest.fixture(scope="session")
def program(machine: str, kind: str, tmp_path_factory: pytest.TempPathFactory) -> build.Program:
    """The binary of this source, with the names of the modules in it, built in an environment that holds SECRET."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTVSOCK_SECRET", SECRET)
        patch.setenv("TZ", SECRET)
        return build.link(machine, tmp_path_factory.mktemp(kind), kind=kind)


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
def probe(machine: str, kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program of the same parts as the binary, which runs the Python code in its last argument."""
    start = tmp_path_factory.mktemp("start") / "start.py"
    start.write_text((cpython.HERE / "start.py").read_text() + PROBE)
    path = tmp_path_factory.mktemp("probe") / "runcvm-vsock-connect"
    os.link(build.link(machine, tmp_path_factory.mktemp(f"probe-{kind}"), kind=kind, start=start).path, path)
    return path


@pytest.fixture(scope="session")
def inside(probe: Path) -> Callable[..., str]:
    """Run Python code inside the binary's interpreter, and return what it prints."""

    def run(code: str, *before: str, **environment: str) -> str:
        words = [*before, str(probe), code]
        done = subprocess.run(words, capture_output=True, text=True, timeout=HANG, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
