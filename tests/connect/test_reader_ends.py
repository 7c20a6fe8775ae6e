"""The reader of stdout ends in mid-transfer: the process ends quietly."""

import os
import socket
import threading

import pytest

from support import Listener, read_exactly
from support.exchange import KINDS, Ends, commanding
from support.faults import complaint, push

MIB = 1 << 20


@pytest.mark.parametrize("flowing", [False, True], ids=["idle", "flowing"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_ends_quietly_when_nobody_reads_stdout_any_more(
    listener: Listener, engine: str, kind: str, flowing: bool
) -> None:
    ends = Ends(kind)
    with commanding(listener, ends, engine) as child, listener.accept() as far:
        far.sendall(b"x")
        assert os.read(ends.drain, 9) == b"x"
        if flowing:
            threading.Thread(target=keep_sending, args=(far,), daemon=True).start()
            read_exactly(ends.drain, MIB)
        os.close(ends.drain)
        if kind == "socketpair":  # the same socket is stdin: it has to go with it
            os.close(ends.feed)
        assert complaint(child) == (0, [])
    if kind == "pipe":
        os.close(ends.feed)


@pytest.mark.parametrize("held", [100_000, 600_000, 2_000_000])
@pytest.mark.parametrize("kind", KINDS)
def test_it_ends_quietly_when_the_reader_goes_without_having_read(
    listener: Listener, engine: str, kind: str, held: int
) -> None:
    ends = Ends(kind)
    with commanding(listener, ends, engine) as child, listener.accept() as far:
        push(far.fileno(), bytes(held))
        os.close(ends.drain)
        if kind == "socketpair":
            os.close(ends.feed)
        assert complaint(child) == (0, [])
    if kind == "pipe":
        os.close(ends.feed)


def keep_sending(far: socket.socket) -> None:
    """Send until it breaks."""
    try:
        while True:
            far.sendall(bytes(65536))
    except OSError:
        return
