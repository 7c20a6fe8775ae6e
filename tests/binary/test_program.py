"""The binary as a program: in an empty root, by both of its names, and word for word what the installation is."""

import gzip
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from fastvsock.cli import COMMANDS
from support import HANG, Listener, pattern, read_exactly, started, write_all
from support.channels import agent_on

SIZE = 3_000_000


def outcome(words: Sequence[str | Path], env: dict[str, str] | None = None) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a program with an empty stdin."""
    done = subprocess.run(
        words, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=HANG, check=False
    )
    return done.returncode, done.stdout, done.stderr


def alone(program: Path) -> list[str]:
    """The words that run a program with the folder that it is in as the root: nothing else is there."""
    if os.geteuid():
        words = ["unshare", "--user", "--map-root-user", "chroot", str(program.parent), f"/{program.name}"]
    else:
        words = ["chroot", str(program.parent), f"/{program.name}"]
    if subprocess.run([*words, "--version"], capture_output=True, timeout=HANG, check=False).returncode:
        pytest.skip("this machine: no other root can be entered")
    return words


def give(sock: socket.socket, data: bytes) -> None:
    """Send all of `data`, and close."""
    with sock:
        sock.sendall(data)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--version",),
        ("--help",),
        ("no-such-command",),
        *((command, "--help") for command in COMMANDS),
        ("connect", "/nowhere/v.sock", "7"),
        ("connect", "/nowhere/v.sock", "70000000000"),
        ("connect", "/nowhere/v.sock"),
        ("connect", "/dev/null", "7"),
        ("connect", "--timeout", "never", "/nowhere/v.sock", "7"),
        ("proxy", "--listen", "nonsense", "/v.sock", "7"),
        ("listen", "/nowhere/v.sock", "7"),
        ("emulate", "/nowhere/v.sock"),
        ("exec", "/nowhere/v.sock", "true"),
        ("exec", "/nowhere/v.sock"),
        ("cp", "/nowhere/v.sock", "a", ":b"),
        ("cp", "/nowhere/v.sock", "a"),
        ("forward", "/nowhere/v.sock", "nonsense"),
        ("agent", "--listen", "nonsense"),
        ("runcvm", "install", "/nowhere"),
    ],
)
def test_fastvsock_says_and_returns_what_the_installation_does(fastvsock: Path, arguments: tuple[str, ...]) -> None:
    installed = Path(sys.executable).with_name("fastvsock")
    assert outcome([fastvsock, *arguments]) == outcome([installed, *arguments])


@pytest.mark.parametrize(
    "arguments",
    [
        ("--version",),
        ("--help",),
        (),
        ("/nowhere/v.sock", "7"),
        ("/nowhere/v.sock", "-1"),
        ("--engine", "none", "/nowhere/v.sock", "7"),
        ("--no-such-option",),
        ("", "7"),
    ],
)
def test_connect_says_and_returns_what_the_installation_does(connect: Path, arguments: tuple[str, ...]) -> None:
    installed = Path(sys.executable).with_name("runcvm-vsock-connect")
    assert outcome([connect, *arguments]) == outcome([installed, *arguments])


def test_in_an_empty_root_it_starts_by_both_names(fastvsock: Path, connect: Path) -> None:
    assert outcome([*alone(fastvsock), "--version"])[1].startswith("fastvsock ")
    assert outcome([*alone(connect), "--version"])[1].startswith("runcvm-vsock-connect ")


def test_in_an_empty_root_a_connection_is_moved_whole(connect: Path, engine: str) -> None:
    words = alone(connect)
    listener = Listener(connect.parent / f"{engine}.sock")
    with started([*words, "--engine", engine, "--stats", f"/{engine}.sock", "7"]) as child:
        sock = listener.accept()
        write_all(child.stdin.fileno(), b"to the guest")
        assert sock.recv(100) == b"to the guest"
        feeder = threading.Thread(target=give, args=(sock, pattern(SIZE)))
        feeder.start()
        assert read_exactly(child.stdout.fileno(), SIZE + 1) == pattern(SIZE)
        feeder.join(HANG)
        assert child.wait(HANG) == 0
        assert child.stderr.read().count(f", {engine};".encode()) == 2
    listener.close()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_in_an_empty_root_streams_may_be_closed(connect: Path, closed: str) -> None:
    listener = Listener(connect.parent / "closed.sock")
    shell = ["sh", "-c", f'exec "$@" {closed}', "sh", *alone(connect), "/closed.sock", "7"]
    with started(shell, stdin=subprocess.DEVNULL) as child:
        listener.accept(b"OK 1073741824\npayload").close()
        child.stdout.read()
        assert (child.wait(HANG), child.stderr.read()) == (0, b"")
    listener.close()
    os.unlink(listener.uds)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_connection_with_its_status(connect: Path, listener: Listener, number: int) -> None:
    with started([str(connect), listener.uds, "7"]) as child:
        sock = listener.accept()
        sock.sendall(b"!")
        assert child.stdout.read(1) == b"!"
        child.send_signal(number)
        assert child.wait(HANG) == 128 + number
        sock.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_is_ignored_stays_so(connect: Path, listener: Listener, number: int) -> None:
    words = ["sh", "-c", f'trap "" {number}; exec "$0" "$@"', str(connect), listener.uds, "7"]
    with started(words) as child:
        sock = listener.accept()
        sock.sendall(b"!")
        assert child.stdout.read(1) == b"!"
        child.send_signal(number)
        sock.sendall(b"!")
        assert child.stdout.read(1) == b"!"
        sock.close()
        assert child.wait(HANG) == 0


def test_a_name_in_path_without_a_slash_is_enough(connect: Path) -> None:
    env = {"PATH": f"{connect.parent}:{os.environ['PATH']}"}
    assert outcome(["sh", "-c", "runcvm-vsock-connect --version"], env=env)[1].startswith("runcvm-vsock-connect ")


def test_it_opens_no_file_at_its_start_but_the_time_zone(connect: Path, kind: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    words: list[str | Path] = ["strace", "-f", "-o", log, "-e", "trace=%file", connect, "--version"]
    assert outcome(words)[0] == 0
    files = {line.split('"')[1] for line in log.read_text().splitlines() if '"' in line}
    assert files == {str(connect), *(["/etc/localtime"] if kind == "plain" else [])}


def test_runcvm_install_without_proc_says_that_it_cannot_read_itself(fastvsock: Path) -> None:
    status, said, error = outcome([*alone(fastvsock), "runcvm", "install"])
    assert (status, said) == (1, "")
    assert error == (
        "fastvsock: /proc/self/exe: this fastvsock cannot read itself: No such file or directory: "
        "mount /proc, or pass --binary FILE\n"
    )


def test_doctor_looks_at_what_it_runs_on(fastvsock: Path) -> None:
    said = outcome([fastvsock, "doctor"])[1]
    assert ", one static executable\n" in said
    assert "the interpreter in it is Python 3.11" in said


def test_a_compressed_tar_stream_is_refused_with_what_to_do(fastvsock: Path, tmp_path: Path) -> None:
    with agent_on(tmp_path / "agent.sock") as guest:
        words = [str(fastvsock), "cp", guest.uds, "-", f":{tmp_path}/there"]
        done = subprocess.run(words, input=gzip.compress(b"tar"), capture_output=True, timeout=HANG, check=False)
    assert done.returncode == 1
    error = b"cannot read the tar stream: zlib module is not available: decompress it first"
    assert done.stderr == b"fastvsock: " + error + b"\n"
