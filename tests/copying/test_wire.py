"""What is put into a wire comes out of its other end whole and in order, however little the socket takes at a time."""

import os
import random
import socket
import threading

import pytest

from fastvsock.copying import wire
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
