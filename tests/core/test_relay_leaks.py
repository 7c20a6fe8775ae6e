"""A thousand relays, ended in every way: no descriptor and no thread is left."""

import os
import select
import socket
import threading
import time
from pathlib import Path

from fastvsock.relaying import Relay
from support import descriptors, write_all
from support.exchange import KINDS, Ends
from support.faults import await_readable, settled, threads


def guest_closes(relay: Relay, far: socket.socket, ends: Ends) -> str:
    """The guest says something and closes."""
    far.sendall(b"x" * 100)
    far.close()
    return relay.run().ended


def guest_resets(relay: Relay, far: socket.socket, ends: Ends) -> str:
    """The guest closes with bytes unread."""

    def reset() -> None:
        await_readable(far)
        far.close()

    write_all(ends.feed, b"x")
    threading.Thread(target=reset).start()
    return relay.run().ended


def reader_goes(relay: Relay, far: socket.socket, ends: Ends) -> str:
    """Nobody reads, and nobody writes: with a pair of sockets that is one event."""
    far.sendall(b"x")
    os.close(ends.drain)
    os.close(ends.feed)
    ends.drain = ends.feed = -1
    return relay.run().ended


def is_stopped(relay: Relay, far: socket.socket, ends: Ends) -> str:
    """Somebody else stops it."""
    threading.Thread(target=relay.stop).start()
    return relay.run().ended


def quiet() -> tuple[dict[str, str], int]:
    """Descriptors and threads, once those that earlier tests left are gone."""
    now = descriptors(), threads()
    while True:
        before = now
        time.sleep(0.3)
        now = descriptors(), threads()
        if now == before:
            return now


def test_a_thousand_relays_leak_no_descriptor_and_no_thread(engine: str) -> None:
    ways = [(guest_closes, "guest"), (guest_resets, "error"), (reader_goes, "reader"), (is_stopped, "stopped")]
    before = quiet()
    for number in range(1000):
        way, ended = ways[number % 4]
        ends = Ends(KINDS[number // 4 % 2])
        near, far = socket.socketpair()
        with near, far:
            assert way(Relay(near, ends.rfd, ends.wfd, engine=engine), far, ends) == ended, (number, way)
        ends.close_theirs()
        for fd in {ends.feed, ends.drain} - {-1}:
            os.close(fd)
    assert settled(before) == before


def test_to_stop_a_relay_that_has_ended_touches_no_descriptor(engine: str) -> None:
    near, far = socket.socketpair()
    with near, far, Path(os.devnull).open("r+b") as null:
        relay = Relay(near, null.fileno(), null.fileno(), engine=engine)
        far.close()
        assert relay.run().ended == "guest"
        taken = [os.pipe() for _ in range(4)]  # the numbers that the relay had are given out again
        relay.stop()
        readable = select.select([rfd for rfd, _ in taken], [], [], 0)[0]
        for fd in (fd for pipe in taken for fd in pipe):
            os.close(fd)
        assert readable == []
