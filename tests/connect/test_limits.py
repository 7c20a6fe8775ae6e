"""Few descriptors, no thread, a consumer that stalls: no hang, no growth, no byte lost."""

import _thread
import os
import resource
import socket
import sys
import threading
from pathlib import Path

import pytest

from fastvsock import api, errors
from support import HANG, PROGRAM, Listener, command, connecting, descriptors, pattern, read_exactly, started
from support.exchange import KINDS, Ends, Way, exchange
from support.faults import await_end, complaint, idle, push, settled, threads

MIB = 1 << 20

LIMITED = """
import resource, sys
from fastvsock import runcvm_vsock_connect
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv.pop(1)),) * 2)
runcvm_vsock_connect.main()
"""


def limited(limit: int, *arguments: str, engine: str) -> list[str]:
    """The program with a limit of its descriptors: the package has it once Python has started, which needs more."""
    if PROGRAM:
        return ["sh", "-c", 'ulimit -n "$0"; exec "$@"', str(limit), *command(*arguments, engine=engine)]
    return [sys.executable, "-c", LIMITED, str(limit), "--engine", engine, *arguments]


@pytest.mark.parametrize("limit", range(3, 14))
@pytest.mark.parametrize("kind", KINDS)
def test_with_few_descriptors_it_works_or_reports_what_is_missing(
    listener: Listener, engine: str, kind: str, limit: int
) -> None:
    ends = Ends(kind)
    up, down = Way(300_000), Way(300_001)
    arguments = ["--linger", "0", listener.uds, "5000"]
    with started(limited(limit, *arguments, engine=engine), stdin=ends.rfd, stdout=ends.wfd) as child:
        ends.close_theirs()
        arrived: list[tuple[bytes, bytes]] = []
        relaying = threading.Thread(target=lambda: arrived.append(exchange(ends, listener.accept(), up, down)))
        if limit > 3:  # or there is no socket to connect with
            relaying.start()
        status, lines = complaint(child)
        if limit > 3:
            relaying.join(HANG)
        if status:
            (line,) = lines
            assert (status, line[:11]) == (1, b"fastvsock: ")
            assert b"Too many open files" in line
        else:
            assert (arrived, lines) == ([(up.sum, down.sum)], [])
    assert status or limit > 4
    assert not status or limit < 13


def test_descriptors_that_run_out_in_mid_transfer_cost_no_byte(listener: Listener, engine: str) -> None:
    with connecting(listener.uds, 5000, "--linger", "0", engine=engine) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        with idle(listener, child) as far:
            resource.prlimit(child.pid, resource.RLIMIT_NOFILE, (3, 3))
            pushed = push(far.fileno(), pattern(3 * MIB))
            child.stdin.close()
            await_end(far)
        assert read_exactly(child.stdout.fileno(), 4 * MIB) == pattern(pushed)
        assert complaint(child) == (0, [])


def test_a_relay_without_a_thread_says_so_and_leaks_nothing(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", fail)
    near, far = socket.socketpair()
    with near, far, Path(os.devnull).open("r+b") as null:
        before = descriptors(), threads()
        with pytest.raises(errors.RelayError, match="cannot relay: can't start new thread"):
            api.relay(near, null.fileno(), null.fileno(), engine=engine)
        assert settled(before) == before


def test_a_stalled_consumer_stops_the_producer_and_memory_does_not_grow(listener: Listener, engine: str) -> None:
    with connecting(listener.uds, 5000, engine=engine) as child, idle(listener, child) as far:
        assert child.stdin is not None
        assert child.stdout is not None
        before = memory(child.pid)
        up = push(child.stdin.fileno(), pattern(64 * MIB))
        down = push(far.fileno(), pattern(64 * MIB))
        # Up: a raised pipe and the send buffer, of which the kernel makes twice the 4 MiB. Down: a raised pipe, what
        # the pump holds, and the socket. And something in between.
        assert up < 12 * MIB
        assert down < 5 * MIB
        assert memory(child.pid) - before < 3 * MIB
        assert read_exactly(child.stdout.fileno(), down) == pattern(down)
        arrived = b""
        while len(arrived) < up:
            arrived += far.recv(MIB)
        assert arrived == pattern(up)


def memory(pid: int) -> int:
    """The memory of a process, in bytes."""
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()
