"""Where the launcher takes its programs from: its own bundle, and never the folder in which it is started."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import fastvsock
from support import HANG
from support.bundles import put
from support.installing import LAUNCHER, installed

NAME = os.path.basename(LAUNCHER)
VERSION = f"{NAME} {fastvsock.__version__}\n"
TRAP = "#!/bin/sh\ntouch {mark}\nexit 9\n"
TRAPS = ("usr/bin/python3", "lib/ld", "bin/busybox")


@pytest.fixture(params=["package", "binary"])
def whole(request: pytest.FixtureRequest, whole: Path) -> Path:
    """A bundle that has the package, and a Python for it, or the static binary."""
    installed(whole, *(["--binary", request.getfixturevalue("binary")] if request.param == "binary" else []))
    return whole


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A folder of a stranger: programs lie where a bundle would have them, and modules that Python would load."""
    folder = tmp_path / "stranger"
    (folder / "here/fastvsock").mkdir(parents=True)
    mark = folder / "sprung"
    for name in TRAPS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        put(folder / name, TRAP.format(mark=mark), 0o755)
    for name in ("fastvsock/__init__", "_socket", "_posixsubprocess"):
        put(folder / f"here/{name}.py", f"open({str(mark)!r}, 'w')\n", 0o644)
    return folder


def start(trap: Path, *command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Start a command in the stranger's folder, and see that nothing of it ran."""
    environment = {**os.environ, **variables}
    result = subprocess.run(
        [*command, "--version"],
        cwd=trap / "here",
        env=environment,
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    assert not (trap / "sprung").exists(), "a program or module of the current folder ran"
    return result


def in_path(whole: Path) -> str:
    """A PATH that begins with the bundle's scripts."""
    return f"{whole}/scripts:{os.environ['PATH']}"


@pytest.mark.parametrize("how", ["directly", "through a shell", "bash NAME", "env"])
def test_the_launcher_that_is_found_through_path_uses_its_own_bundle(whole: Path, trap: Path, how: str) -> None:
    command = {"directly": [NAME], "through a shell": ["sh", "-c", f'{NAME} "$@"', "sh"], "env": ["env", NAME]}
    result = start(trap, *command.get(how, ["bash", NAME]), PATH=in_path(whole))
    assert (result.returncode, result.stdout) == (0, VERSION), result.stderr


@pytest.mark.parametrize("how", [[], ["sh"], ["bash"], ["busybox", "sh"], ["python3"]])
@pytest.mark.parametrize("link", ["to it", "to a link to it"])
def test_a_link_in_a_strangers_folder_leads_to_the_bundle(whole: Path, trap: Path, how: list[str], link: str) -> None:
    (trap / "here/one").symlink_to(whole / LAUNCHER)
    (trap / "here/two").symlink_to("one")
    result = start(trap, *how, "./one" if link == "to it" else "./two")
    assert (result.returncode, result.stdout) == (0, VERSION), result.stderr


def test_a_link_is_refused_where_nothing_can_follow_it(whole: Path, trap: Path, tmp_path: Path) -> None:
    (trap / "here/one").symlink_to(whole / LAUNCHER)
    (tmp_path / "empty").mkdir()
    result = start(trap, str(shutil.which("sh")), "./one", PATH=str(tmp_path / "empty"))
    assert (result.returncode, result.stdout) == (127, "")
    assert result.stderr.endswith("fastvsock: ./one is a link, and readlink is not in PATH: start the file itself\n")


@pytest.mark.parametrize("how", [["sh"], ["bash"], ["busybox", "sh"], ["python3"]])
def test_the_launcher_runs_by_its_name_in_its_own_folder(whole: Path, how: list[str]) -> None:
    for path in (os.environ["PATH"], in_path(whole), f"{os.environ['PATH']}:."):
        result = subprocess.run(
            [*how, NAME, "--version"],
            cwd=whole / "scripts",
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            timeout=HANG,
            check=False,
        )
        assert (result.returncode, result.stdout) == (0, VERSION), result.stderr


@pytest.mark.parametrize("how", [[], ["sh"], ["bash"], ["python3"]])
def test_the_launcher_runs_by_a_relative_path(whole: Path, how: list[str]) -> None:
    for folder, path in ((whole, LAUNCHER), (whole / "bin", f"../{LAUNCHER}"), (whole / "scripts", f"./{NAME}")):
        command = [*how, path, "--version"]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=HANG, check=False)
        assert (result.returncode, result.stdout) == (0, VERSION), result.stderr


def test_a_name_that_may_mean_two_launchers_is_refused(whole: Path, trap: Path) -> None:
    shutil.copy(whole / LAUNCHER, trap / "here" / NAME)
    result = start(trap, "bash", NAME, PATH=in_path(whole))
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"fastvsock: {NAME} is in this folder and in PATH: start it by its path\n"


@pytest.mark.parametrize("value", ["", ":/nowhere", ".", "/nowhere:", "../here"])
def test_python_loads_no_module_from_the_folder_in_which_it_is_started(whole: Path, trap: Path, value: str) -> None:
    result = start(trap, "python3", whole / LAUNCHER, PYTHONPATH=value)
    assert (result.returncode, result.stdout) == (0, VERSION), result.stderr


def test_python_loads_no_module_from_where_a_link_lies(whole: Path, trap: Path) -> None:
    (trap / "here/one").symlink_to("two")
    (trap / "here/two").symlink_to(whole / LAUNCHER)
    assert start(trap, "python3", "./one").stdout == VERSION
