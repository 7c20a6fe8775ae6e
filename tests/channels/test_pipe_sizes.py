"""Pipes of a channel: larger while a stream fills them, within the process' budget, and not for longer."""

import fcntl
import os
import time

import pytest

from fastvsock import engines
from fastvsock.engines import _copy, exchange, frames
from support import read_exactly, write_all
from support.rig import Rig


def test_pipes_grow_when_a_stream_fills_them_and_get_their_size_back(rig: Rig) -> None:
    sizes = {fd: fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) for fd in (rig.source, rig.out_target, rig.err_target)}
    rig.use_pipes()
    write_all(rig.feed, bytes(65536))
    write_all(rig.out_target, bytes(60_000))
    rig.peer.send(frames.DATA, 1, bytes(frames.WINDOW))
    rig.settle()
    now = {fd: fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) for fd in sizes}
    assert now[rig.source] > sizes[rig.source]
    assert now[rig.out_target] > sizes[rig.out_target]
    assert now[rig.err_target] == sizes[rig.err_target]
    read_exactly(rig.out, 60_000 + frames.WINDOW)
    rig.exchange.close()
    assert {fd: fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) for fd in sizes} == sizes


def test_pipes_grow_by_what_the_budget_of_the_process_allows(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The budget that the pumps of relays take from too."""
    monkeypatch.setattr(engines, "budget", engines.PipeBudget(4 << 20))
    monkeypatch.setattr(_copy, "budget", engines.budget)
    sources = [rig.pipe() for _ in range(3)]
    for stream, (source, feed) in enumerate(sources):
        write_all(feed, bytes(65536))
        rig.exchange.add_source(stream, source)
    rig.settle()
    grown = sum(fcntl.fcntl(source, fcntl.F_GETPIPE_SZ) - 65536 for source, _ in sources)
    assert engines.budget.taken == grown
    assert (1 << 20) < grown <= (2 << 20)
    rig.exchange.close()
    assert engines.budget.taken == 0


def test_pipes_get_their_size_back_while_nothing_moves_and_grow_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "REST", 100)
    rig.exchange.add_source(0, rig.source)
    for _ in range(2):
        write_all(rig.feed, bytes(65536))
        rig.settle()
        assert fcntl.fcntl(rig.source, fcntl.F_GETPIPE_SZ) == 1 << 20
        rig.peer.send(frames.CREDIT, 0, (65536).to_bytes(4, "big"))
        before = time.monotonic()
        assert rig.run(250) == (exchange.TIMEOUT, 0, 0)
        assert time.monotonic() - before >= 0.25
        assert fcntl.fcntl(rig.source, fcntl.F_GETPIPE_SZ) == 65536


def test_a_pipe_has_its_size_again_when_its_stream_has_ended(rig: Rig) -> None:
    rig.exchange.add_source(0, rig.source)
    write_all(rig.feed, bytes(62_000))
    rig.settle()
    assert fcntl.fcntl(rig.source, fcntl.F_GETPIPE_SZ) == 1 << 20
    os.close(rig.feed)
    assert rig.run() == (exchange.SOURCE_ENDED, 0, 0)
    assert fcntl.fcntl(rig.source, fcntl.F_GETPIPE_SZ) == 65536


def test_a_pipe_that_its_owner_has_closed_takes_no_more_of_the_budget(rig: Rig) -> None:
    source, feed = rig.pipe()
    rig.exchange.add_source(0, source)
    write_all(feed, bytes(65536))
    before = engines.budget.taken
    rig.settle()
    assert engines.budget.taken > before
    os.close(source)
    rig.exchange.close()
    assert engines.budget.taken == before
