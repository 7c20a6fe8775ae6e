"""How the copy engine writes to a descriptor without blocking, and what it finds out about sockets and pipes."""

import os
import pty
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from fastvsock.engines import _copy

KIB = 1 << 10


class Wake(NamedTuple):
    """A pipe."""

    reader: int
    writer: int


@pytest.fixture
def wake() -> Iterator[Wake]:
    wake = Wake(*os.pipe())
    yield wake
    for fd in wake:
        os.close(fd)


def test_a_target_that_does_not_block_is_written_as_it_is(wake: Wake) -> None:
    os.set_blocking(wake.writer, False)
    assert _copy._not_blocking(wake.writer) == (wake.writer, 0, False)


def test_a_socket_that_blocks_is_written_in_pieces_of_16_kib() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert _copy._not_blocking(ours.fileno()) == (ours.fileno(), 16 * KIB, False)


def test_a_file_is_written_as_it_is(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        assert _copy._not_blocking(file.fileno()) == (file.fileno(), 0, False)


@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_a_pipe_or_terminal_that_blocks_is_opened_once_more_and_stays_blocking(kind: str) -> None:
    reader, writer = os.pipe() if kind == "pipe" else pty.openpty()
    own, piece, is_own = _copy._not_blocking(writer)
    assert (own != writer, piece, is_own) == (True, 0, True)
    assert (os.get_blocking(own), os.get_inheritable(own), os.get_blocking(writer)) == (False, False, True)
    assert os.write(own, b"x") == 1
    for fd in own, reader, writer:
        os.close(fd)


def test_without_proc_a_pipe_is_written_in_pieces_that_do_not_block(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: str, flags: int) -> int:
        assert flags == os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        raise FileNotFoundError

    reader, writer = os.pipe()
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fail)
        assert _copy._not_blocking(writer) == (writer, 4096, False)
    os.close(reader)
    os.close(writer)


# What is asked about a socket


def test_the_queues_of_a_socket_are_what_is_unread_here_and_there() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert _copy.queues(ours.fileno()) == (0, 0)
        theirs.send(b"abc")
        assert _copy.queues(ours.fileno()) == (3, 0)
        ours.send(b"x")
        assert _copy.queues(ours.fileno())[1] > 0


def test_a_pipe_has_the_first_queue_and_a_file_none(wake: Wake, tmp_path: Path) -> None:
    os.write(wake.writer, b"abc")
    assert _copy.queues(wake.reader) == (3, 0)
    with (tmp_path / "file").open("wb") as file:
        assert _copy.queues(file.fileno()) == (0, 0)


def test_a_peer_has_closed_where_it_is_gone_and_not_where_it_only_says_no_more(wake: Wake) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert not _copy.has_closed(ours.fileno(), -1)
        theirs.shutdown(socket.SHUT_WR)
        assert not _copy.has_closed(ours.fileno(), -1)
        os.write(wake.writer, b"w")
        assert not _copy.has_closed(ours.fileno(), wake.reader), "woken"
        theirs.close()
        assert _copy.has_closed(ours.fileno(), -1)
        os.read(wake.reader, 1)
        assert _copy.has_closed(ours.fileno(), wake.reader)


def test_it_is_waited_for_whatever_the_number_of_the_descriptor_that_ends_the_wait(wake: Wake) -> None:
    ours, theirs = socket.socketpair()
    stdin = os.dup(0)
    os.dup2(wake.reader, 0)
    try:
        with ours:
            closing = threading.Timer(0.5, theirs.close)
            closing.start()
            os.write(wake.writer, b"w")
            assert not _copy.has_closed(ours.fileno(), 0), "woken"
            os.read(0, 1)
            assert _copy.has_closed(ours.fileno(), 0)
            closing.join()
    finally:
        os.dup2(stdin, 0)
        os.close(stdin)
