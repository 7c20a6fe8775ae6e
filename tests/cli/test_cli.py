"""The umbrella command: its help, what it does where stdout is of no use, and what it says of errors and of Ctrl-C."""

import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import fastvsock
from fastvsock import cli
from support import HANG, started

DIGEST = f"registry.example/fastvsock@sha256:{'0' * 64}"
MANIFEST = ["runcvm", "manifest", "--image", DIGEST, "--node-label", "runcvm=true"]
BENCH = ["bench", "--seconds", "0.1", "--rounds", "1"]
PRINTING = [["--help"], ["--version"], ["help"], ["doctor"], MANIFEST, BENCH]
HELPS = [[name, "--help"] for name in cli.COMMANDS]

# The command with `doctor` broken, which is how an error that nobody thought of looks.
BROKEN = """
import sys
from fastvsock import cli
from fastvsock.commands import doctor
def main(arguments): raise {error}
doctor.main = main
cli.main()
"""

# Ctrl-C comes when a module is imported.
EARLY = """
import os, signal, sys
from fastvsock import cli
module, *sys.argv[1:] = sys.argv[1:]
class Interrupt:
    def find_spec(name, *_):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt)
cli.main()
"""


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run the command to its end."""
    options.setdefault("stdout", subprocess.PIPE)
    return subprocess.run(
        [sys.executable, "-m", "fastvsock", *arguments], stderr=subprocess.PIPE, timeout=HANG, check=False, **options
    )


# Help


def test_the_help_names_every_command_option_and_variable() -> None:
    done = run("--help")
    assert (done.returncode, done.stderr) == (0, b"")
    for word in (*cli.COMMANDS, "--help", "--version", "help [COMMAND]", "FASTVSOCK_DEBUG", "FASTVSOCK_ENGINE"):
        assert word in done.stdout.decode()
    assert max(map(len, done.stdout.decode().splitlines())) < 100


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_and_a_command_is_that_commands_help(name: str) -> None:
    asked, own = run("help", name), run(name, "--help")
    assert (asked.returncode, asked.stdout, asked.stderr) == (0, own.stdout, b"")
    assert asked.stdout.startswith(f"usage: fastvsock {name} ".encode())


def test_help_alone_is_the_help() -> None:
    assert run("help").stdout == run("-h").stdout == run("--help").stdout


@pytest.mark.parametrize("arguments", [["teleport"], ["help", "teleport"], ["help", "--fast"]], ids=" ".join)
def test_a_command_that_is_none_is_told_with_those_that_are(arguments: list[str]) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(f"fastvsock: unknown command {arguments[-1]!r}\nusage: ".encode())


# stdout


@pytest.mark.parametrize("arguments", [*PRINTING, *HELPS], ids=" ".join)
def test_what_cannot_be_written_is_a_failure_of_one_line(arguments: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        done = run(*arguments, stdout=full)
    assert re.fullmatch(rb"fastvsock: (cannot write the output|stdout): No space left on device\n", done.stderr)
    assert done.returncode == 1


def test_an_emulator_that_cannot_announce_itself_ends(tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = run("emulate", str(tmp_path / "v.sock"), stdout=full)
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert done.stderr == b"fastvsock: cannot write the output: No space left on device\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("closed", [">&-", "<&- >&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("arguments", [*PRINTING, *HELPS], ids=" ".join)
def test_a_closed_stdout_is_no_failure(arguments: list[str], closed: str) -> None:
    usual = run(*arguments).returncode  # doctor's depends on the machine
    shell = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-m", "fastvsock", *arguments]
    done = subprocess.run(shell, capture_output=True, timeout=HANG, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (usual, b"", b"")


def test_an_emulator_without_streams_serves(tmp_path: Path) -> None:
    uds = str(tmp_path / "v.sock")
    shell = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-m", "fastvsock", "emulate", "-v", uds]
    with started(shell) as child:
        with fastvsock.connect(uds, 7, wait=HANG) as sock:
            sock.settimeout(HANG)
            sock.sendall(b"x")
            assert sock.recv(9) == b"x"
        child.terminate()
        assert child.wait(HANG) == 143


@pytest.mark.parametrize("arguments", [*PRINTING, *HELPS], ids=" ".join)
def test_a_reader_that_has_gone_is_no_failure(arguments: list[str]) -> None:
    usual = run(*arguments).returncode  # doctor's depends on the machine
    reading, writing = os.pipe()
    os.close(reading)
    done = run(*arguments, stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (usual, b"")


def test_a_failure_is_told_though_nobody_reads_what_was_printed_before() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    words = [sys.executable, "-c", BROKEN.format(error="print('said') or ValueError('so')"), "doctor"]
    done = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, timeout=HANG, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr[:32]) == (1, b"fastvsock: unexpected ValueError")


def test_what_was_printed_before_a_failure_is_not_lost() -> None:
    words = [sys.executable, "-c", BROKEN.format(error="print('said') or ValueError('so')"), "doctor"]
    done = subprocess.run(words, capture_output=True, timeout=HANG, check=False)
    assert (done.returncode, done.stdout) == (1, b"said\n")


# What nobody thought of


@pytest.mark.parametrize("error", ["ZeroDivisionError('so')", "OSError(5, 'so')", "ValueError('so\\n  and so')"])
@pytest.mark.parametrize("debug", [False, True])
def test_only_debugging_shows_a_traceback(error: str, debug: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BROKEN.format(error=error), "doctor"],
        capture_output=True,
        env={**os.environ, "FASTVSOCK_DEBUG": "1" if debug else ""},
        timeout=HANG,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, b"")
    if debug:
        assert done.stderr.startswith(b"Traceback (most recent call last):")
    else:
        line = done.stderr.decode()
        assert line.startswith(f"fastvsock: unexpected {error.partition('(')[0]}: ")
        assert line.endswith("so (FASTVSOCK_DEBUG=1 shows where)\n")
        assert line.count("\n") == 1


@pytest.mark.parametrize("module", ["fastvsock.commands.doctor", "fastvsock.runcvm.check"])
def test_ctrl_c_anywhere_ends_it_without_a_traceback(module: str) -> None:
    words = [sys.executable, "-c", EARLY, module, "doctor"]
    done = subprocess.run(words, capture_output=True, timeout=HANG, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")


def test_ctrl_c_is_ignored_where_it_was() -> None:
    done = subprocess.run(
        [sys.executable, "-c", EARLY, "fastvsock.commands.doctor", "doctor", "--help"],
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_IGN),
        capture_output=True,
        timeout=HANG,
        check=False,
    )
    assert (done.returncode, done.stdout[:23]) == (0, b"usage: fastvsock doctor")
