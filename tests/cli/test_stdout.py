"""What the umbrella command does where stdout is full, closed, or read no more."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastvsock
from fastvsock import cli
from support import HANG, called, started
from support.umbrella import BROKEN, run

DIGEST = f"registry.example/fastvsock@sha256:{'0' * 64}"
MANIFEST = ["runcvm", "manifest", "--image", DIGEST, "--node-label", "runcvm=true"]
BENCH = ["bench", "--seconds", "0.5", "--rounds", "1"]  # in 0.1 s nothing may move on a busy machine
PRINTING = [["--help"], ["--version"], ["help"], ["doctor"], MANIFEST, BENCH]
HELPS = [[name, "--help"] for name in cli.COMMANDS]


@pytest.mark.parametrize("arguments", [*PRINTING, *HELPS], ids=" ".join)
def test_what_cannot_be_written_is_a_failure_of_one_line(arguments: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        done = run(*arguments, stdout=full)
    assert done.stderr == b"fastvsock: cannot write the output: No space left on device\n"
    assert done.returncode == (125 if arguments[0] == "exec" else 1)  # below 125 it is the command's


def test_an_emulator_that_cannot_announce_itself_ends(tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = run("emulate", str(tmp_path / "v.sock"), stdout=full)
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert done.stderr == b"fastvsock: cannot write the output: No space left on device\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["agent", "forward", "listen", "proxy"])
def test_a_service_that_cannot_announce_itself_ends(name: str, tmp_path: Path) -> None:
    uds = str(tmp_path / "v.sock")
    arguments = {
        "agent": ["--listen", f"unix:{uds}"],
        "forward": [uds, ":22"],
        "listen": ["--tcp", "127.0.0.1:9", uds, "7"],
        "proxy": [uds, "7"],
    }
    with open("/dev/full", "wb") as full:
        done = run(name, *arguments[name], stdout=full)
    assert (done.returncode, done.stderr) == (1, b"fastvsock: cannot write the output: No space left on device\n")
    assert list(tmp_path.iterdir()) == []


def test_a_ready_descriptor_that_is_full_is_a_failure_and_not_wrong_usage(tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        number = str(full.fileno())
        done = run("proxy", "--ready-fd", number, str(tmp_path / "v.sock"), "7", pass_fds=[full.fileno()])
    assert done.returncode == 1
    assert done.stderr.decode() == f"fastvsock: cannot write to descriptor {number}: No space left on device\n"


@pytest.mark.parametrize("closed", [">&-", "<&- >&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("arguments", [*PRINTING, *HELPS], ids=" ".join)
def test_a_closed_stdout_is_no_failure(arguments: list[str], closed: str) -> None:
    usual = run(*arguments).returncode  # doctor's depends on the machine
    shell = ["sh", "-c", f'exec "$@" {closed}', "sh", *called("fastvsock"), *arguments]
    done = subprocess.run(shell, capture_output=True, timeout=HANG, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (usual, b"", b"")


def test_an_emulator_without_streams_serves(tmp_path: Path) -> None:
    uds = str(tmp_path / "v.sock")
    shell = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *called("fastvsock"), "emulate", "-v", uds]
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


@pytest.mark.parametrize(
    "words", [["doctor", "{}/none"], ["doctor", "--json", "{}/none"], ["runcvm", "check", "--root", "{}/none"]]
)
def test_a_failed_check_stays_one_though_its_reader_has_gone(words: list[str], tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = run(*(word.format(tmp_path) for word in words), stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


def test_a_failure_is_told_though_nobody_reads_what_was_printed_before() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    words = [sys.executable, "-c", BROKEN.format(error="print('said') or ValueError('so')"), "doctor"]
    done = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, timeout=HANG, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr[:32]) == (1, b"fastvsock: unexpected ValueError")


def test_a_broken_pipe_that_is_not_stdout_is_a_failure() -> None:
    words = [sys.executable, "-c", BROKEN.format(error="BrokenPipeError(32, 'Broken pipe')"), "doctor"]
    done = subprocess.run(words, capture_output=True, timeout=HANG, check=False)
    assert (done.returncode, done.stderr[:37]) == (1, b"fastvsock: unexpected BrokenPipeError")


def test_what_was_printed_before_a_failure_is_not_lost() -> None:
    words = [sys.executable, "-c", BROKEN.format(error="print('said') or ValueError('so')"), "doctor"]
    done = subprocess.run(words, capture_output=True, timeout=HANG, check=False)
    assert (done.returncode, done.stdout) == (1, b"said\n")
