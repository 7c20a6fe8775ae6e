"""The wheel with the binary: pip installs it, and each audit rejects what it is there to reject."""

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from support import HANG
from wheels.common import ROOT, Failed, cache, sha256, version
from wheels.static import build, package, validate

Change = Callable[[dict[str, bytes]], None]
SCRIPTS = f"fastvsock_static-{version()}.data/scripts"


@pytest.fixture(scope="module")
def wheel(program: build.Program, machine: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the binary of this source."""
    return package.pack(program.path, machine, "the licences\n", tmp_path_factory.mktemp("wheel"))


def changed(wheel: Path, folder: Path, change: Change, mode: int = 0o100755) -> Path:
    """A copy of a wheel with other files in it, and with `mode` on its scripts."""
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    copy = folder / wheel.name
    with zipfile.ZipFile(copy, "w") as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (mode if "/scripts/" in name else 0o100644) << 16
            archive.writestr(entry, data)
    return copy


def in_scripts(replace: Callable[[bytes], bytes]) -> Change:
    """A change of both scripts."""

    def change(files: dict[str, bytes]) -> None:
        for name in files:
            if name.startswith(SCRIPTS):
                files[name] = replace(files[name])

    return change


def test_pip_installs_both_commands(wheel: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], timeout=HANG, check=True)
    pip = [
        str(tmp_path / "venv" / "bin" / "python"),
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "--no-index",
    ]
    subprocess.run([*pip, "--quiet", str(wheel)], timeout=HANG, check=True)
    for command in package.COMMANDS:
        path = tmp_path / "venv" / "bin" / command
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=HANG, check=True, env={})
        assert done.stdout == f"{command} {version()}\n"


def test_packing_twice_gives_the_same_wheel(wheel: Path, program: build.Program, machine: str, tmp_path: Path) -> None:
    assert package.pack(program.path, machine, "the licences\n", tmp_path).read_bytes() == wheel.read_bytes()


def test_a_good_wheel_passes_every_audit_that_needs_no_tools(wheel: Path, machine: str) -> None:
    for audit in (validate.contents, validate.static, validate.anonymous, validate.size):
        audit(wheel, machine)


@pytest.mark.parametrize(
    ("audit", "change", "reason"),
    [
        (validate.contents, lambda files: files.update({"more.py": b""}), "has other files"),
        (validate.contents, in_scripts(lambda data: data + b"!"), "RECORD says something else"),
        (validate.static, in_scripts(lambda data: data[:18] + b"\x03\x00" + data[20:]), "is not an executable for"),
        (validate.static, in_scripts(lambda data: data[:16] + b"\x03\x00" + data[18:]), "is not static"),
        (validate.anonymous, in_scripts(lambda data: data + str(ROOT).encode()), "names the place"),
        (validate.anonymous, in_scripts(lambda data: data + str(cache()).encode()), "names the place"),
        (validate.size, in_scripts(lambda data: data.ljust(validate.LARGEST + 1)), "bytes, more than"),
    ],
)
def test_a_bad_wheel_is_rejected(
    wheel: Path, machine: str, tmp_path: Path, audit: Callable[[Path, str], str], change: Change, reason: str
) -> None:
    with pytest.raises(Failed, match=reason):
        audit(changed(wheel, tmp_path, change), machine)


def test_a_wheel_whose_commands_cannot_be_run_is_rejected(wheel: Path, machine: str, tmp_path: Path) -> None:
    with pytest.raises(Failed, match="not one and the same executable"):
        validate.contents(changed(wheel, tmp_path, lambda files: None, mode=0o100644), machine)


def test_the_binary_moves_bytes_by_both_names_with_both_engines(fastvsock: Path, connect: Path) -> None:
    words = {"fastvsock": [str(fastvsock)], "runcvm-vsock-connect": [str(connect)]}
    assert validate.core(words) == "9 checks"
    with pytest.raises(Failed, match="says"):
        validate.core(words | {"fastvsock": [str(connect)]})


def test_the_check_fails_unless_the_shipped_wheels_are_built_again(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "build", lambda *arguments, **kinds: [tmp_path / "fastvsock", wheel])
    for shipped, status in (({wheel.name: sha256(wheel)}, 0), ({wheel.name: "other"}, 1), ({}, 1)):
        monkeypatch.setattr(build, "shipped", lambda shipped=shipped: shipped)
        assert build.main(["--check", "--output", str(tmp_path)]) == status
