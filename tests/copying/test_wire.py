"""What is put into a wire comes out of its other end whole and in order, however little the socket takes at a time."""

import os
import random
import socket
import threading

import pytest

from fastvsock.channels import protocol
from fastvsock.copying import entries, wire
from fastvsock.copying.wire import Wire
from support import HANG


@pytest.mark.parametrize("sizes", [[1], [100_000], [0, 1, 60, 5000, 100_000]], ids=["small", "large", "mixed"])
def test_pieces_of_any_size_arrive_in_order(sizes: list[int]) -> None:
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the least that there is
    choice = random.Random(7)
    pieces = [os.urandom(choice.choice(sizes)) for _ in range(3 * wire.PIECES if max(sizes) < wire.FLUSH // 2 else 60)]
    came = bytearray()

    def read() -> None:
        while part := theirs.recv(3000):
            came.extend(part)

    reader = threading.Thread(target=read, daemon=True)
    with ours, theirs:
        reader.start()
        end = Wire(ours, splices=False)
        for piece in pieces:
            end.put(piece)
        end.flush()
        end.cut()
        reader.join(HANG)
    assert bytes(came) == b"".join(pieces)
    assert end.sent == len(came)


def answers_after(end: Wire) -> threading.Thread:
    """The thread in which this end waits for answers, which is to end."""
    waiter = threading.Thread(target=end.wait_for_answers, daemon=True)
    waiter.start()
    waiter.join(HANG)
    return waiter


def test_an_answer_that_comes_while_frames_are_sent_is_not_waited_for_again() -> None:
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    came: list[int] = []

    def read() -> None:
        while theirs.recv(1 << 16):
            pass

    reader = threading.Thread(target=read, daemon=True)

    def answered(kind: int, payload: bytes) -> None:
        came.append(kind)
        reader.start()  # so this end was still sending

    with ours, theirs:
        end = Wire(ours, splices=False)
        end.on_frame = answered
        theirs.sendall(entries.pair(entries.ACK, 1))
        end.put(bytes(wire.FLUSH - 1))
        assert not answers_after(end).is_alive()
        end.cut()
        reader.join(HANG)
    assert came == [entries.ACK]


def test_an_answer_behind_the_first_message_in_the_same_packet_is_not_lost() -> None:
    ours, theirs = socket.socketpair()
    came: list[int] = []
    with ours, theirs:
        end = Wire(ours, splices=False)
        theirs.sendall(protocol.started() + entries.pair(entries.ACK, 1))
        assert end.next(HANG) == (protocol.STARTED, b"")
        end.on_frame = lambda kind, payload: came.append(kind)
        assert not answers_after(end).is_alive()
        end.cut()
    assert came == [entries.ACK]
