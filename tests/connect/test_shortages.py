"""What this machine runs out of or does not have, and the command that is without it says so."""

import os
import resource
import shutil
import socket
import subprocess
import time
from pathlib import Path

import fastvsock
from support import HANG, Listener, called, connecting, of_the_package, run, started
from support.sentences import outcome, sentence, wrong_usage
from support.sockets import listening, take

PORT = 5003
OPEN_FILES = resource.RLIMIT_NOFILE


def test_no_descriptor_left_for_the_socket_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "v.sock"
    with listening(path) as sock, connecting(str(path), PORT, "--wait", "60") as child:
        connection = take(sock)
        resource.prlimit(child.pid, OPEN_FILES, (3, 3))  # what is open stays open: the next attempt gets none
        connection.close()
        sentence(outcome(child), f"{path}: cannot connect to guest port {PORT}: Too many open files")


def test_no_descriptor_left_for_the_relay_is_reported(tmp_path: Path, engine: str) -> None:
    path = tmp_path / "v.sock"
    with listening(path) as sock, connecting(str(path), PORT, engine=engine) as child, take(sock) as connection:
        resource.prlimit(child.pid, OPEN_FILES, (4, 4))
        connection.sendall(b"OK 1073741824\n")
        sentence(outcome(child), "Too many open files")


def fill(path: Path) -> list[socket.socket]:
    """Connections to `path` until its listener's backlog has no room."""
    waiting: list[socket.socket] = []
    while True:
        one = socket.socket(socket.AF_UNIX)
        one.setblocking(False)
        try:
            one.connect(str(path))
        except BlockingIOError:
            one.close()
            return waiting
        waiting.append(one)


def test_a_full_backlog_is_tried_until_the_timeout(tmp_path: Path) -> None:
    path = tmp_path / "v.sock"
    with listening(path, 0):
        waiting = fill(path)
        done = run("--timeout", "0.3", str(path), str(PORT))
        sentence(done, f"{path}: no answer for guest port {PORT} within 0.3 s")
        for one in waiting:
            one.close()


def test_a_full_backlog_that_empties_in_time_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "v.sock"
    with listening(path, 0) as sock:
        waiting = fill(path)
        with connecting(str(path), PORT, "--timeout", str(HANG)) as child:
            time.sleep(0.3)  # for the child to meet EAGAIN; slower, and this is only an easier test
            for one in waiting:
                sock.accept()[0].close()
                one.close()
            with take(sock) as connection:
                connection.recv(100)
                connection.sendall(b"OK 1073741824\npayload")
            done = outcome(child)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"payload", b"")


def test_no_space_for_the_output_is_reported(listener: Listener, engine: str) -> None:
    with (
        open("/dev/full", "wb") as full,
        connecting(listener.uds, PORT, engine=engine, stdout=full) as child,
        listener.accept(b"OK 1073741824\npayload"),
    ):
        _, err = child.communicate(timeout=HANG)
    done = subprocess.CompletedProcess(child.args, child.returncode, b"", err)
    sentence(done, "cannot write the output: No space left on device")


def test_a_stdin_that_cannot_be_read_is_reported(listener: Listener, engine: str, tmp_path: Path) -> None:
    # Not a directory: with that as stdin CPython refuses to start.
    with (
        open(tmp_path / "file", "wb") as unreadable,
        connecting(listener.uds, PORT, engine=engine, stdin=unreadable) as child,
        listener.accept(),
    ):
        sentence(outcome(child), "cannot read the input: Bad file descriptor")


def test_a_stdin_that_is_null_and_open_for_writing_only_cannot_be_read(listener: Listener, engine: str) -> None:
    with (
        open(os.devnull, "wb") as unreadable,
        connecting(listener.uds, PORT, engine=engine, stdin=unreadable) as child,
        listener.accept(),
    ):
        sentence(outcome(child), "cannot read the input: Bad file descriptor")


@of_the_package
def test_splice_is_not_there_without_its_extension(listener: Listener, tmp_path: Path) -> None:
    source = Path(fastvsock.__file__).parent
    shutil.copytree(source, tmp_path / "fastvsock", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with connecting(listener.uds, PORT, engine="splice", env=environment) as child, listener.accept():
        done = outcome(child)
    sentence(done, "the splice engine is not installed", "install a wheel", "C compiler", "engine auto")
    with connecting(listener.uds, PORT, engine="auto", env=environment) as child:
        with listener.accept() as connection:
            connection.sendall(b"payload")
        done = outcome(child)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"payload", b"")


def test_an_engine_that_the_environment_misspells_is_reported(listener: Listener) -> None:
    arguments = [*called("runcvm-vsock-connect"), listener.uds, str(PORT)]
    with started(arguments, env={**os.environ, "FASTVSOCK_ENGINE": "warp"}) as child, listener.accept():
        wrong_usage(outcome(child), "unknown engine 'warp' (from FASTVSOCK_ENGINE): use auto, splice or copy")
