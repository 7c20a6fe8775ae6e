"""The package, built with a C compiler: what the wheel and the sdist hold."""

import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path
from zipfile import ZipFile

import pytest

import fastvsock
from support import HANG, ROOT, Listener, pattern
from support.packages import pip, relayed, source


@pytest.mark.skipif(
    bool(sysconfig.get_config_var("Py_GIL_DISABLED")), reason="by design: no Limited API without the GIL yet"
)
def test_the_wheel_is_for_every_python_from_3_11_on(wheel: Path) -> None:
    name, version, python, abi, platform = wheel.stem.split("-")
    assert (name, version, python, abi) == ("fastvsock", fastvsock.__version__, "cp311", "abi3")
    assert re.fullmatch(r"linux_\w+", platform)
    assert "fastvsock/engines/_splice.abi3.so" in ZipFile(wheel).namelist()


def test_the_wheel_holds_the_types_and_every_module_but_no_source_of_the_extension(wheel: Path) -> None:
    names = set(ZipFile(wheel).namelist())
    assert {"fastvsock/py.typed", "fastvsock/engines/_splice.pyi"} <= names
    modules = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src" / "fastvsock").rglob("*.py")}
    assert modules <= names
    assert not [name for name in names if name.endswith((".pyx", ".c", ".h"))]
    assert [name for name in names if name.endswith("/LICENSE")]


def test_the_wheel_has_both_commands(wheel: Path) -> None:
    archive = ZipFile(wheel)
    (entry_points,) = (name for name in archive.namelist() if name.endswith("/entry_points.txt"))
    assert archive.read(entry_points).decode() == "[console_scripts]\nfastvsock = fastvsock.cli:main\n"
    (script,) = (name for name in archive.namelist() if ".data/scripts/" in name)
    assert script.endswith("/runcvm-vsock-connect")
    assert archive.read(script).startswith(b"#!python\n"), "installers replace nothing else by their interpreter"


def test_the_wheel_works_where_it_is_unpacked(wheel: Path, listener: Listener, tmp_path: Path) -> None:
    ZipFile(wheel).extractall(tmp_path / "unpacked")
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'unpacked')!r}); "
    code += "from fastvsock.runcvm_vsock_connect import main; main()"
    payload = pattern(100_000)
    ended = relayed(listener, [sys.executable, "-I", "-c", code, "--engine=splice"], payload)
    assert ended == (0, payload, b"")


@pytest.fixture(scope="session")
def sdist(build_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution."""
    folder = tmp_path_factory.mktemp("sdist")
    tree = source(folder / "src")
    shutil.copytree(ROOT / "tests", tree / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    code = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
    built = subprocess.run(
        [build_python, "-c", code, folder], cwd=tree, capture_output=True, text=True, timeout=HANG, check=False
    )
    assert built.returncode == 0, built.stderr
    return folder / built.stdout.split()[-1]


def test_the_tests_of_the_sdist_can_be_collected(sdist: Path, tmp_path: Path) -> None:
    subprocess.run(["tar", "-xf", sdist, "-C", tmp_path], check=True, timeout=HANG)
    (unpacked,) = tmp_path.iterdir()
    assert {"conftest.py", "guest_agent.c"} <= {path.name for path in (unpacked / "tests").rglob("*")}
    collected = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"],
        cwd=unpacked,
        capture_output=True,
        text=True,
        timeout=2 * HANG,
        check=False,
    )
    assert collected.returncode == 0, collected.stdout + collected.stderr
    assert "test_handshake.py::" in collected.stdout
    assert "test_workflows.py" not in collected.stdout


def test_the_sdist_builds_and_holds_all_that_a_build_needs(build_python: Path, sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert "src/fastvsock/engines/_splice.pyx" in names
    assert {"setup.py", "pyproject.toml", "LICENSE", "README.md", "src/fastvsock/py.typed"} <= names
    assert not [name for name in names if name.endswith(("_splice.c", ".so", ".pyc"))]
    rebuilt = pip(build_python, "wheel", "--wheel-dir", tmp_path, sdist, FASTVSOCK_REQUIRE_SPLICE="1")
    assert rebuilt.returncode == 0, rebuilt.stdout
    (wheel,) = tmp_path.glob("*.whl")
    assert [name for name in ZipFile(wheel).namelist() if name.endswith(".so")]
