"""The umbrella command: what it lists, and that its `connect` fails as the program does."""

import subprocess
from pathlib import Path

import pytest

from support import HANG, called
from support.umbrella import run


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_the_umbrella_lists_its_commands(option: str) -> None:
    done = run(option)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"usage: fastvsock COMMAND")
    assert b"\n  connect " in done.stdout


def test_a_command_of_the_umbrella_has_a_help_of_its_own() -> None:
    done = run("connect", "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(b"usage: fastvsock connect [options] UDS PORT")


@pytest.mark.parametrize(("arguments", "told"), [([], "a command is needed"), (["warp"], "unknown command 'warp'")])
def test_the_umbrella_without_a_known_command_is_wrong_usage(arguments: list[str], told: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    lines = done.stderr.decode().splitlines()
    assert lines[0] == f"fastvsock: {told}"
    assert lines[1].startswith("usage: fastvsock COMMAND")


@pytest.mark.parametrize(
    ("arguments", "code"), [(["v.sock"], 2), (["--fast", "v.sock", "1"], 2), (["v.sock", "x"], 2), (["v.sock", "1"], 1)]
)
def test_the_umbrella_fails_with_the_same_sentence_and_code(arguments: list[str], code: int, tmp_path: Path) -> None:
    twins = [
        subprocess.run([*program, *arguments], cwd=tmp_path, capture_output=True, timeout=HANG, check=False)
        for program in ([*called("fastvsock"), "connect"], called("runcvm-vsock-connect"))
    ]
    for done in twins:
        assert (done.returncode, done.stdout) == (code, b"")
    assert twins[0].stderr.replace(b"fastvsock connect", b"runcvm-vsock-connect") == twins[1].stderr
