"""Wrong usage, every right spelling, and the help."""

import os
import subprocess
from pathlib import Path

import pytest

import fastvsock
from support import HANG, called, run, started
from support.sentences import outcome
from support.sockets import listening, take


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "expected UDS and PORT, got 0 arguments"),
        (["v.sock"], "expected UDS and PORT, got 1 argument"),
        (["v.sock", "1", "2"], "expected UDS and PORT, got 3 arguments"),
        (["--", "v.sock", "1", "--stats"], "expected UDS and PORT, got 3 arguments"),
        (["--fast", "v.sock", "1"], "unknown option --fast"),
        (["-v", "v.sock", "1"], "unknown option -v"),
        (["--stats=yes", "v.sock", "1"], "unknown option --stats=yes"),
        (["v.sock", "1", "--wait"], "--wait needs a value"),
        (["v.sock", "1", "--engine"], "--engine needs a value"),
        (["--engine=warp", "v.sock", "1"], "unknown engine 'warp' (from --engine): use auto, splice or copy"),
        (["--engine=", "v.sock", "1"], "unknown engine '' (from --engine): use auto, splice or copy"),
        *(
            ([f"{name}={value}", "v.sock", "1"], f"invalid {name} {value!r}: expected seconds, {allowed}")
            for name, allowed, values in (
                ("--timeout", "more than 0 and at most 1000000", ["0", "inf"]),
                ("--wait", "0 to 1000000", ["inf"]),
                ("--linger", "0 to 1000000 or inf", []),
                ("--idle-timeout", "more than 0 and at most 1000000", ["0", "inf"]),
            )
            for value in ("", "soon", "nan", "-1", "-inf", "1e30", "1000001", *values)
        ),
        (["--a\nb", "v.sock", "1"], r"unknown option --a\nb"),
        ([b"--\xff", "v.sock", "1"], r"unknown option --\xff"),
    ],
    ids=lambda value: ascii(" ".join(map(str, value))) or "nothing" if isinstance(value, list) else "",
)
def test_wrong_usage_ends_with_2_and_shows_the_usage(arguments: list[str], said: str) -> None:
    done = subprocess.run(
        [*called("runcvm-vsock-connect"), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=HANG,
        check=False,
    )
    first, usage = done.stderr.decode().splitlines()
    assert (done.returncode, done.stdout) == (2, b"")
    assert first == f"fastvsock: {said}"
    assert usage.startswith("usage: ")
    assert "UDS PORT" in usage


@pytest.mark.parametrize(
    "arguments",
    [
        ["--timeout", "30", "--wait", "1", "--linger", "2", "--engine", "copy", "--stats", "v.sock", "5003"],
        ["--timeout=30", "--wait=1.5", "--linger=inf", "--engine=copy", "--stats", "v.sock", "5003"],
        ["v.sock", "5003", "--timeout=3e1", "--wait", "0", "--linger", "0", "--engine", "copy", "--stats"],
        ["v.sock", "--stats", "5003", "--engine=copy"],
        ["--engine=splice", "--stats", "--engine=copy", "--", "v.sock", "5003"],
        ["--stats", "--engine", "copy", "--", "--stats", "5003"],
    ],
    ids=" ".join,
)
def test_options_may_be_spelled_and_placed_in_every_usual_way(arguments: list[str], tmp_path: Path) -> None:
    name = "--stats" if arguments[-2:-1] == ["--stats"] else "v.sock"
    with (
        listening(tmp_path / name) as sock,
        started([*called("runcvm-vsock-connect"), *arguments], cwd=tmp_path) as child,
    ):
        with take(sock) as connection:
            assert connection.recv(100) == b"CONNECT 5003\n"
            connection.sendall(b"OK 1073741824\npayload")
        done = outcome(child)
    assert (done.returncode, done.stdout) == (0, b"payload")
    line = done.stderr.decode()
    assert line.startswith("fastvsock: ")
    assert line.count("\n") == 1
    assert "copy" in line
    assert "splice" not in line


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["v.sock", "--help"]], ids=" ".join)
def test_help_goes_to_stdout_and_names_every_option(arguments: list[str]) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stderr) == (0, b"")
    for option in (b"--timeout", b"--wait", b"--linger", b"--engine", b"--stats", b"--version", b"--help"):
        assert option in done.stdout
    assert done.stdout.startswith(b"usage: runcvm-vsock-connect")


def test_the_version_goes_to_stdout() -> None:
    done = run("--version")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == f"runcvm-vsock-connect {fastvsock.__version__}\n"


@pytest.mark.parametrize("option", ["--help", "--version"])
@pytest.mark.parametrize("name", ["runcvm-vsock-connect", "fastvsock"])
def test_a_reader_that_has_gone_is_no_failure_of_help(option: str, name: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with started([*called(name), option], stdout=writing) as child:
        os.close(writing)
        done = outcome(child)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_that_cannot_be_written_is_a_failure(option: str) -> None:
    with open("/dev/full", "wb") as full:
        done = run(option, stdout=full)
    assert (done.returncode, done.stderr) == (1, b"fastvsock: cannot write the output: No space left on device\n")


@pytest.mark.parametrize("option", ["--help", "--version"])
@pytest.mark.parametrize("name", ["runcvm-vsock-connect", "fastvsock"])
def test_a_closed_stdout_is_no_failure_of_help(option: str, name: str) -> None:
    arguments = ["sh", "-c", 'exec "$@" >&-', "sh", *called(name), option]
    done = subprocess.run(arguments, capture_output=True, timeout=HANG, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
