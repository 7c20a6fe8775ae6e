"""`runcvm-vsock-connect` as pip and uv install it: the file that they put on PATH, and what its start loads."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support import HANG, Listener, started
from support.packages import relayed, run, source
from support.startup import HOT_PATH, RECORDING, assert_lean, loaded, modules

INSTALL: dict[str, list[str]] = {
    "pip": ["-m", "pip", "--disable-pip-version-check", "--python"],
    "uv": ["-m", "uv", "--no-config", "--offline", "pip", "install", "--python"],
}


def install(how: str, python: Path, *what: str | Path) -> Path:
    """The folder of the commands of `python`, into whose environment pip or uv has installed `what`."""
    if how == "uv":
        pytest.importorskip("uv")
    words = [*INSTALL[how], str(python), *(["install"] if how == "pip" else [])]
    installed = run(sys.executable, *words, "--no-index", "--no-deps", *what)
    assert installed.returncode == 0, installed.stdout
    return python.parent


@pytest.fixture(scope="session", params=["pip", "uv"])
def commands(request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of a new environment, installed from the wheel."""
    environment = tmp_path_factory.mktemp(request.param) / "venv"
    made = run(sys.executable, "-m", "venv", "--without-pip", environment)
    assert made.returncode == 0, made.stdout
    return install(request.param, environment / "bin" / "python", wheel)


@pytest.mark.parametrize("end", ["guest", "stdin"])
def test_the_installed_command_loads_no_more_than_its_module(
    commands: Path, listener: Listener, tmp_path: Path, engine: str, end: str
) -> None:
    program, nothing = [str(commands / "runcvm-vsock-connect")], [str(commands / "python"), "-c", "pass"]
    assert_lean(loaded(program, nothing, listener, tmp_path, engine, end), engine, end)


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["--fast"], ["/nonexistent/v.sock", "22"]])
def test_the_installed_command_loads_no_more_for_help_or_an_error(commands: Path, arguments: list[str]) -> None:
    idle = subprocess.run(
        [commands / "python", "-c", "pass"], env=RECORDING, capture_output=True, timeout=HANG, check=True
    )
    done = subprocess.run(
        [commands / "runcvm-vsock-connect", *arguments], env=RECORDING, capture_output=True, timeout=HANG, check=False
    )
    assert done.returncode == {"--version": 0, "--help": 0, "--fast": 2}.get(arguments[0], 1)
    assert {"fastvsock.handshake"} <= modules(done.stderr) - modules(idle.stderr) <= HOT_PATH


def test_the_installed_command_is_a_drop_in_by_its_name_and_through_a_link(
    commands: Path, listener: Listener, tmp_path: Path
) -> None:
    (tmp_path / "runcvm-vsock-connect").symlink_to(commands / "runcvm-vsock-connect")
    for program in (commands / "runcvm-vsock-connect", tmp_path / "runcvm-vsock-connect"):
        assert relayed(listener, [program], b"down") == (0, b"down", b"")
    told = run(commands / "runcvm-vsock-connect", "--help").stdout
    assert told.startswith("usage: runcvm-vsock-connect [options] UDS PORT")


INTERRUPTED = """
import os, signal, sys
class Interrupt:
    def find_spec(name, *_):
        if name == "fastvsock.handshake":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt)
"""


def test_ctrl_c_while_the_installed_command_still_imports_leaves_no_traceback(commands: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTED)
    program = [str(commands / "runcvm-vsock-connect"), "--version"]
    with started(program, env={"PYTHONPATH": str(tmp_path)}) as child:
        out, err = child.communicate(timeout=HANG)
    assert (child.returncode, out, err) == (-signal.SIGINT, b"", b"")


@pytest.mark.parametrize("how", ["pip", "uv"])
def test_an_editable_installation_has_the_same_command(
    how: str, build_python: Path, listener: Listener, tmp_path: Path
) -> None:
    tree = source(tmp_path / "src")
    command = install(how, build_python, "--no-build-isolation", "--editable", tree) / "runcvm-vsock-connect"
    first, _, rest = command.read_text().partition("\n")
    assert first.startswith(f"#!{build_python}")
    assert rest == (tree / "src/scripts/runcvm-vsock-connect").read_text().partition("\n")[2]
    assert relayed(listener, [command], b"down") == (0, b"down", b"")
