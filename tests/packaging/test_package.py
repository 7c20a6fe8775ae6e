"""The package: built and installed with and without a C compiler, and every way to run it."""

import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest

import fastvsock
from support import HANG, ROOT, Listener, pattern, started

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SOURCE = [
    path
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
    if (path := ROOT / name).exists()
]
SCRIPTS = Path(sysconfig.get_path("scripts"))  # of the environment that runs the tests
NO_COMPILER = {"CC": "/nonexistent/cc", "PATH": "/nonexistent"}
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


@pytest.fixture(scope="session")
def build_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment with what `pyproject.toml` says a build requires, and nothing else."""
    environment = tmp_path_factory.mktemp("build") / "venv"
    made = run(sys.executable, "-m", "venv", "--without-pip", environment)
    assert made.returncode == 0, made.stdout
    python = environment / "bin" / "python"
    requires = PROJECT["build-system"]["requires"]
    installed = run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", *requires)
    assert installed.returncode == 0, installed.stdout
    return python


def pip(python: Path, *arguments: str | Path, **options: str) -> subprocess.CompletedProcess[str]:
    """pip in the build environment, which builds right there."""
    common = ["--verbose", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    return run(sys.executable, "-m", "pip", "--python", python, *arguments[:1], *common, *arguments[1:], **options)


@pytest.fixture(scope="session")
def wheel(build_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that a machine with a C compiler builds."""
    folder = tmp_path_factory.mktemp("wheel")
    built = pip(build_python, "wheel", "--wheel-dir", folder, source(folder / "src"), FASTVSOCK_REQUIRE_SPLICE="1")
    assert built.returncode == 0, built.stdout
    assert TOLD not in built.stdout
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="session")
def without_compiler(build_python: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An interpreter with the package as a machine without a C compiler installs it, and what pip said."""
    tree = source(tmp_path_factory.mktemp("install") / "src")
    installed = pip(build_python, "install", tree, **NO_COMPILER)
    assert installed.returncode == 0, installed.stdout
    return build_python, installed.stdout


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


# The version


def test_there_is_one_version() -> None:
    assert PROJECT["project"]["version"] == fastvsock.__version__
    for module, name in (("fastvsock", "fastvsock"), ("fastvsock.entry", "runcvm-vsock-connect")):
        done = run(sys.executable, "-m", module, "--version")
        assert (done.returncode, done.stdout) == (0, f"{name} {fastvsock.__version__}\n")


def test_it_needs_nothing_but_the_standard_library() -> None:
    assert PROJECT["project"].get("dependencies", []) == []


# With a compiler


@pytest.mark.skipif(bool(sysconfig.get_config_var("Py_GIL_DISABLED")), reason="no Limited API without the GIL yet")
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
    (name,) = (name for name in archive.namelist() if name.endswith("/entry_points.txt"))
    text = archive.read(name).decode()
    assert "runcvm-vsock-connect = fastvsock.entry:main" in text
    assert "fastvsock = fastvsock.cli:main" in text


def test_the_wheel_works_where_it_is_unpacked(wheel: Path, listener: Listener, tmp_path: Path) -> None:
    ZipFile(wheel).extractall(tmp_path / "unpacked")
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'unpacked')!r}); from fastvsock.entry import main; main()"
    payload = pattern(100_000)
    ended = relayed(listener, [sys.executable, "-I", "-c", code, "--engine=splice"], payload)
    assert ended == (0, payload, b"")


def test_the_sdist_builds_and_holds_all_that_a_build_needs(build_python: Path, tmp_path: Path) -> None:
    tree = source(tmp_path / "src")
    code = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
    built = subprocess.run(
        [build_python, "-c", code, tmp_path], cwd=tree, capture_output=True, text=True, timeout=HANG, check=False
    )
    assert built.returncode == 0, built.stderr
    archive = tmp_path / built.stdout.split()[-1]
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert "src/fastvsock/engines/_splice.pyx" in names
    assert {"setup.py", "pyproject.toml", "LICENSE", "README.md", "src/fastvsock/py.typed"} <= names
    rebuilt = pip(build_python, "wheel", "--wheel-dir", tmp_path, archive, FASTVSOCK_REQUIRE_SPLICE="1")
    assert rebuilt.returncode == 0, rebuilt.stdout
    (wheel,) = tmp_path.glob("*.whl")
    assert [name for name in ZipFile(wheel).namelist() if name.endswith(".so")]


# Without a compiler


def test_without_a_compiler_the_installation_says_so_in_one_line(without_compiler: tuple[Path, str]) -> None:
    _, said = without_compiler
    (line,) = (line for line in said.splitlines() if TOLD in line)
    assert line.strip().startswith("fastvsock: installed without the splice engine, the copy engine serves")
    assert "/nonexistent/cc" in line


def test_without_a_compiler_the_copy_engine_serves(without_compiler: tuple[Path, str], listener: Listener) -> None:
    python, _ = without_compiler
    payload = pattern(100_000)
    code, out, err = relayed(listener, [python, "-m", "fastvsock.entry", "--stats"], payload)
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


# Every way to run it


@pytest.mark.parametrize(
    "command",
    [
        [SCRIPTS / "runcvm-vsock-connect"],
        [SCRIPTS / "fastvsock", "connect"],
        [sys.executable, SCRIPTS / "runcvm-vsock-connect"],
        [sys.executable, "-m", "fastvsock.entry"],
        [sys.executable, "-m", "fastvsock", "connect"],
    ],
    ids=lambda command: " ".join(Path(word).name for word in command),
)
def test_each_way_to_run_it_works(command: list[str | Path], listener: Listener) -> None:
    assert relayed(listener, command, b"down") == (0, b"down", b"")


@pytest.mark.parametrize("direct", [True, False])
def test_a_copy_of_the_launcher_works_from_any_place(direct: bool, listener: Listener, tmp_path: Path) -> None:
    place = tmp_path / "scripts"
    place.mkdir()
    launcher = shutil.copy(SCRIPTS / "runcvm-vsock-connect", place / "runcvm-vsock-connect")
    command = [launcher] if direct else [sys.executable, launcher]
    assert relayed(listener, command, b"down") == (0, b"down", b"")


# The umbrella


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_the_umbrella_lists_its_commands(option: str) -> None:
    done = subprocess.run([SCRIPTS / "fastvsock", option], capture_output=True, timeout=HANG, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"usage: fastvsock COMMAND")
    assert b"\n  connect " in done.stdout


def test_a_command_of_the_umbrella_has_a_help_of_its_own() -> None:
    done = run(SCRIPTS / "fastvsock", "connect", "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: fastvsock connect [options] UDS PORT")


@pytest.mark.parametrize(("arguments", "told"), [([], "a command is needed"), (["warp"], "unknown command 'warp'")])
def test_the_umbrella_without_a_known_command_is_wrong_usage(arguments: list[str], told: str) -> None:
    done = subprocess.run([SCRIPTS / "fastvsock", *arguments], capture_output=True, timeout=HANG, check=False)
    assert (done.returncode, done.stdout) == (2, b"")
    lines = done.stderr.decode().splitlines()
    assert lines[0] == f"fastvsock: {told}"
    assert lines[1].startswith("usage: fastvsock COMMAND")


@pytest.mark.parametrize(
    ("arguments", "code"), [(["v.sock"], 2), (["--fast", "v.sock", "1"], 2), (["v.sock", "x"], 1), (["v.sock", "1"], 1)]
)
def test_the_umbrella_fails_with_the_same_sentence_and_code(arguments: list[str], code: int, tmp_path: Path) -> None:
    twins = [
        subprocess.run(
            [sys.executable, "-m", *program, *arguments], cwd=tmp_path, capture_output=True, timeout=HANG, check=False
        )
        for program in (["fastvsock", "connect"], ["fastvsock.entry"])
    ]
    for done in twins:
        assert (done.returncode, done.stdout) == (code, b"")
    assert twins[0].stderr.replace(b"fastvsock connect", b"runcvm-vsock-connect") == twins[1].stderr
