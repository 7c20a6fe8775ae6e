"""stdin and stdout as all that they may be: each works, each with the engine that it allows, each left as it was."""

import errno
import fcntl
import os
import pty
import socket
import stat
import subprocess
import termios
import threading
import tty
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from support import (
    ECHO,
    HANG,
    SOURCE,
    SOURCE_SIZE,
    Endpoint,
    command,
    connecting,
    pattern,
    read_exactly,
    run,
    started,
    write_all,
)

PAYLOAD = pattern(300_000)


class Near:
    """What a test holds of one of the child's streams: the child's end, and how to feed or to collect at ours."""

    def __init__(self, theirs: int, ours: int | None = None, file: Path | None = None) -> None:
        self.theirs, self.ours, self.file = theirs, ours, file
        self.flags = fcntl.fcntl(theirs, fcntl.F_GETFL)
        self._collected = b""
        self._thread: threading.Thread | None = None

    def feed(self) -> None:
        if self.ours is not None:
            self._thread = threading.Thread(target=self._feed)
            self._thread.start()

    def _feed(self) -> None:
        assert self.ours is not None
        write_all(self.ours, PAYLOAD)
        if stat.S_ISSOCK(os.fstat(self.ours).st_mode):
            with socket.socket(fileno=os.dup(self.ours)) as end:
                end.shutdown(socket.SHUT_WR)
        else:
            os.close(self.ours)
            self.ours = None

    def collect(self) -> None:
        if self.ours is not None:
            self._thread = threading.Thread(target=self._collect)
            self._thread.start()

    def _collect(self) -> None:
        assert self.ours is not None
        try:
            while part := os.read(self.ours, 1 << 16):
                self._collected += part
        except OSError as error:
            if error.errno != errno.EIO:  # a terminal's way to say that nobody has it open any more
                raise

    def release(self) -> None:
        """Let go of the child's end, so that ours sees its end; first see that its mode is what it was."""
        assert fcntl.fcntl(self.theirs, fcntl.F_GETFL) == self.flags
        os.close(self.theirs)

    def result(self) -> bytes:
        if self._thread is not None:
            self._thread.join(HANG)
        return self.file.read_bytes() if self.file else self._collected

    def close(self) -> None:
        if self._thread is not None:
            self._thread.join(HANG)
        if self.ours is not None:
            os.close(self.ours)


def _pipe(tmp_path: Path, reading: bool) -> Near:
    out, into = os.pipe()
    return Near(out, into) if reading else Near(into, out)


def _non_blocking_pipe(tmp_path: Path, reading: bool) -> Near:
    near = _pipe(tmp_path, reading)
    os.set_blocking(near.theirs, False)
    near.flags = fcntl.fcntl(near.theirs, fcntl.F_GETFL)
    return near


def _fifo(tmp_path: Path, reading: bool) -> Near:
    path = tmp_path / f"fifo-{reading}"
    os.mkfifo(path)
    both = os.open(path, os.O_RDWR)
    ends = os.open(path, os.O_RDONLY), os.open(path, os.O_WRONLY)
    os.close(both)
    return Near(ends[0], ends[1]) if reading else Near(ends[1], ends[0])


def _unix_socket(tmp_path: Path, reading: bool) -> Near:
    theirs, ours = socket.socketpair()
    return Near(theirs.detach(), ours.detach())


def _tcp_socket(tmp_path: Path, reading: bool) -> Near:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    return Near(theirs.detach(), ours.detach())


def _file(tmp_path: Path, reading: bool) -> Near:
    path = tmp_path / f"file-{reading}"
    path.write_bytes(PAYLOAD if reading else b"")
    return Near(os.open(path, os.O_RDONLY if reading else os.O_WRONLY), file=path)


def _appended_file(tmp_path: Path, reading: bool) -> Near:
    path = tmp_path / "appended"
    path.touch()
    return Near(os.open(path, os.O_WRONLY | os.O_APPEND), file=path)


def _raw_terminal(tmp_path: Path, reading: bool) -> Near:
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    return Near(theirs, ours)


SOURCES = {
    "pipe": _pipe,
    "non-blocking pipe": _non_blocking_pipe,
    "fifo": _fifo,
    "unix socket": _unix_socket,
    "tcp socket": _tcp_socket,
    "file": _file,
}
TARGETS = {**SOURCES, "appended file": _appended_file, "terminal": _raw_terminal}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source", SOURCES)
def test_any_source_to_any_target(tmp_path: Path, endpoint: Endpoint, engine: str, source: str, target: str) -> None:
    assert _echo(tmp_path, endpoint, engine, SOURCES[source], TARGETS[target]) == PAYLOAD


def _echo(
    tmp_path: Path,
    endpoint: Endpoint,
    engine: str,
    source: Callable[[Path, bool], Near],
    target: Callable[[Path, bool], Near],
) -> bytes:
    with ExitStack() as stack:
        near, far = source(tmp_path, True), target(tmp_path, False)
        stack.callback(near.close)
        stack.callback(far.close)
        arguments = command("--linger", "0.5", endpoint.uds, str(ECHO), engine=engine)
        with started(arguments, stdin=near.theirs, stdout=far.theirs) as child:
            near.feed()
            far.collect()
            assert (child.wait(HANG), child.stderr.read()) == (0, b"")
        near.release()
        far.release()
        return far.result()


def test_one_socket_for_both_as_socat_gives_it(endpoint: Endpoint, engine: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        flags, number = fcntl.fcntl(theirs, fcntl.F_GETFL), theirs.fileno()
        arguments = command(endpoint.uds, str(ECHO), engine=engine)
        with started(arguments, stdin=number, stdout=number) as child:
            feeder = threading.Thread(target=ours.sendall, args=(PAYLOAD,))
            feeder.start()
            assert read_exactly(ours.fileno(), len(PAYLOAD)) == PAYLOAD
            feeder.join()
            ours.shutdown(socket.SHUT_WR)
            assert (child.wait(HANG), child.stderr.read()) == (0, b"")
        assert fcntl.fcntl(theirs, fcntl.F_GETFL) == flags


def test_an_inherited_socket_that_is_full_does_not_block_the_end(endpoint: Endpoint, engine: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        arguments = command(endpoint.uds, str(SOURCE), engine=engine)
        with started(arguments, stdin=subprocess.DEVNULL, stdout=theirs.fileno()) as child:
            assert ours.recv(1000) == pattern(1000)  # and nothing of the rest, which is more than fits
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(0.5)
            child.terminate()
            assert child.wait(HANG) == 128 + 15


def test_dev_null_as_stdout_takes_all(endpoint: Endpoint, engine: str) -> None:
    done = run("--stats", endpoint.uds, str(SOURCE), engine=engine, stdout=subprocess.DEVNULL)
    assert done.returncode == 0
    assert f"down {SOURCE_SIZE} bytes".encode() in done.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_do_not_confuse_it(endpoint: Endpoint, engine: str, closed: str) -> None:
    done = run(endpoint.uds, str(SOURCE), engine=engine, before=["sh", "-c", f'exec "$@" {closed}', "sh"])
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == (b"" if ">&-" in closed.replace("2>&-", "") else pattern(SOURCE_SIZE))


def test_lines_typed_at_a_terminal_go_up_and_ctrl_d_ends_them(endpoint: Endpoint, engine: str) -> None:
    ours, theirs = pty.openpty()
    attributes = termios.tcgetattr(theirs)
    attributes[3] &= ~termios.ECHO
    attributes[1] &= ~termios.OPOST
    termios.tcsetattr(theirs, termios.TCSANOW, attributes)
    try:
        arguments = command("--linger", endpoint.linger, endpoint.uds, str(ECHO), engine=engine)
        with started(arguments, stdin=theirs, stdout=theirs) as child:
            for line in (b"first\n", b"second\n"):
                write_all(ours, line)
                assert read_exactly(ours, len(line)) == line
            write_all(ours, b"\x04")
            assert (child.wait(HANG), child.stderr.read()) == (0, b"")
        assert termios.tcgetattr(theirs) == attributes
    finally:
        os.close(ours)
        os.close(theirs)


def test_on_a_terminal_a_wait_after_the_end_of_stdin_is_explained_once(endpoint: Endpoint, engine: str) -> None:
    ours, theirs = pty.openpty()
    try:
        with connecting(endpoint.uds, ECHO, "--linger", "7", engine=engine, stderr=theirs) as child:
            child.stdin.write(b"x")
            child.stdin.close()
            assert child.wait(HANG) == 0
        os.close(theirs)
        said = os.read(ours, 4096)
        assert said.startswith(b"fastvsock: stdin has ended; waiting for the guest")
        assert said.count(b"\n") == 1
    finally:
        os.close(ours)
