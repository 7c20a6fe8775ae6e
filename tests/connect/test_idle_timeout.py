"""--idle-timeout: a connection that neither goes on nor ends is given up, with a sentence."""

import os
import signal
import time

import pytest

from support import Listener, connecting
from support.exchange import KINDS, Ends
from support.faults import await_end, complaint, idle, push, say_hello

MIB = 1 << 20
PORT = 5003


def test_a_connection_in_which_nothing_moves_ends_with_1_and_a_sentence(listener: Listener, engine: str) -> None:
    with connecting(listener.uds, PORT, "--idle-timeout", "1", engine=engine) as child, idle(listener, child) as far:
        status, lines = complaint(child)
        await_end(far)
    assert status == 1
    assert [line.decode() for line in lines] == [
        "fastvsock: nothing moved for 1 s, after 1 bytes up and 1 down: the VMM may be paused, or one side has stopped "
        "reading (--idle-timeout SECONDS waits longer)"
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["up", "down"])
def test_a_side_that_stopped_reading_ends_it(listener: Listener, engine: str, kind: str, way: str) -> None:
    ends = Ends(kind)
    options = ["--idle-timeout", "1"]
    with connecting(listener.uds, PORT, *options, engine=engine, stdin=ends.rfd, stdout=ends.wfd) as child:
        ends.close_theirs()
        with listener.accept() as far:
            push(ends.feed if way == "up" else far.fileno(), bytes(30 * MIB))
            status, (line,) = complaint(child)
    assert status == 1
    assert b"nothing moved for 1 s" in line
    ends.end_input()
    os.close(ends.drain)


def test_bytes_now_and_then_keep_it_alive(listener: Listener, engine: str) -> None:
    with connecting(listener.uds, PORT, "--idle-timeout", "1", engine=engine) as child:
        with idle(listener, child) as far:
            for _ in range(10):
                time.sleep(0.3)
                say_hello(child, far)
        assert complaint(child) == (0, [])


def test_time_in_which_the_process_itself_was_stopped_does_not_count(listener: Listener, engine: str) -> None:
    with connecting(listener.uds, PORT, "--idle-timeout", "4", engine=engine) as child:
        with idle(listener, child) as far:
            child.send_signal(signal.SIGSTOP)
            time.sleep(6)
            child.send_signal(signal.SIGCONT)
            time.sleep(0.5)
            say_hello(child, far)
        assert complaint(child) == (0, [])
