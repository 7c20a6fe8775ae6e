"""The VMM ends in mid-transfer: what had arrived is delivered."""

import os
import sys
import threading
from pathlib import Path

import pytest

from support import HANG, ROOT, Listener, connecting, pattern, read_exactly, started, write_all
from support.exchange import KINDS, Ends, commanding
from support.faults import await_readable, complaint, push

MIB = 1 << 20
# A VMM in a process of its own: it answers, sends its pattern and tells how far it is, and reads nothing.
VMM = """
import socket, sys
from support import Listener, pattern
far = Listener(sys.argv[1]).accept()
sent = 0
while True:
    sent += far.send(pattern(65536, sent))
    print(sent, flush=True)
"""


@pytest.mark.parametrize("stall", [0, 800_000], ids=["reader reads", "reader stalls"])
@pytest.mark.parametrize("size", [300_000, 1_500_000])
@pytest.mark.parametrize("kind", KINDS)
def test_what_had_arrived_before_a_reset_is_delivered_whole(
    listener: Listener, engine: str, kind: str, size: int, stall: int
) -> None:
    ends = Ends(kind)
    with commanding(listener, ends, engine) as child, listener.accept() as far:
        write_all(ends.feed, b"never read, so that closing is a reset")
        await_readable(far)
        reading = threading.Timer(stall / 1e6, lambda: arrived.append(read_exactly(ends.drain, 2 * size)))
        arrived: list[bytes] = []
        reading.start()
        pushed = size
        if stall:
            pushed = push(far.fileno(), pattern(size))
        else:
            far.sendall(pattern(size))
        far.close()
        reading.join(HANG)
        assert [len(part) for part in arrived] == [pushed]
        assert arrived == [pattern(pushed)]
        status, (line,) = complaint(child)
        assert (status, line[:45]) == (1, b"fastvsock: the connection to the guest broke ")
    ends.end_input()
    os.close(ends.drain)


def test_a_vmm_that_is_killed_loses_nothing_of_what_it_had_sent(engine: str, tmp_path: Path) -> None:
    path = tmp_path / "v.sock"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])}
    with (
        started([sys.executable, "-c", VMM, str(path)], env=env) as vmm,
        connecting(str(path), 5000, "--wait", str(HANG), engine=engine) as child,
    ):
        assert child.stdin is not None
        assert child.stdout is not None
        assert vmm.stdout is not None
        write_all(child.stdin.fileno(), b"never read")
        arrived = read_exactly(child.stdout.fileno(), 10 * MIB)
        vmm.kill()
        arrived += read_exactly(child.stdout.fileno(), 100 * MIB)
        sent = int(vmm.stdout.read().splitlines()[-1])
        assert len(arrived) >= sent
        assert arrived == pattern(len(arrived))
        status, (line,) = complaint(child)
        assert (status, line[:45]) == (1, b"fastvsock: the connection to the guest broke ")
