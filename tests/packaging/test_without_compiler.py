"""The package, installed without a C compiler: the copy engine serves, and it is said once."""

from pathlib import Path

import pytest

from support import Listener, pattern
from support.packages import TOLD, pip, relayed, source

NO_COMPILER = {"CC": "/nonexistent/cc", "PATH": "/nonexistent"}


@pytest.fixture(scope="session")
def without_compiler(build_python: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An interpreter with the package as a machine without a C compiler installs it, and what pip said."""
    tree = source(tmp_path_factory.mktemp("install") / "src")
    installed = pip(build_python, "install", tree, **NO_COMPILER)
    assert installed.returncode == 0, installed.stdout
    return build_python, installed.stdout


def test_without_a_compiler_the_installation_says_so_in_one_line(without_compiler: tuple[Path, str]) -> None:
    _, said = without_compiler
    (line,) = (line for line in said.splitlines() if TOLD in line)
    assert line.strip().startswith("fastvsock: installed without the splice engine, the copy engine serves")
    assert "/nonexistent/cc" in line


def test_without_a_compiler_the_copy_engine_serves(without_compiler: tuple[Path, str], listener: Listener) -> None:
    python, _ = without_compiler
    payload = pattern(100_000)
    code, out, err = relayed(listener, [python, "-m", "fastvsock.runcvm_vsock_connect", "--stats"], payload)
    assert (code, out) == (0, payload)
    assert b"copy" in err
    assert b"splice" not in err
    assert relayed(listener, [python.parent / "runcvm-vsock-connect"], payload) == (0, payload, b"")


def test_without_a_compiler_a_build_that_requires_splice_fails(build_python: Path, tmp_path: Path) -> None:
    tree = source(tmp_path / "src")
    built = pip(build_python, "wheel", "--wheel-dir", tmp_path, tree, FASTVSOCK_REQUIRE_SPLICE="1", **NO_COMPILER)
    assert built.returncode != 0
    assert "/nonexistent/cc" in built.stdout
    assert not list(tmp_path.glob("*.whl"))
