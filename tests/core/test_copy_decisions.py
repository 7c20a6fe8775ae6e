"""What the copy engine decides, one decision at a time: when it reads, writes and waits, and how a run ends."""

import errno
import os
import select
import socket
import threading
from collections.abc import Iterator

import pytest

from fastvsock.engines import EOF, IDLE, SOURCE, STOPPED, TARGET, _copy
from fastvsock.engines._copy import Pump
from support import descriptors

KIB, MIB = 1 << 10, 1 << 20


class End:
    """Stands for a pump's pipe."""

    is_large = False

    def __init__(self, size: float, *, grows: bool = False) -> None:
        self.size, self.grows = size, grows
        self.grown = self.shrunk = self.left = 0

    def grow(self) -> bool:
        self.grown += 1
        return self.grows

    def shrink(self) -> None:
        self.shrunk += 1

    def let_go(self) -> None:
        self.left += 1


class Rig:
    """A pump between two pipes, `feed` before it and `drain` behind it, of which a test calls the parts."""

    def __init__(self, *, down: bool = False) -> None:
        self.source, self.feed = os.pipe()
        self.drain, self.target = os.pipe()
        self.wake, self.waker = os.pipe()
        os.set_blocking(self.target, False)
        self.pump = Pump(self.source, self.target, self.wake, down)
        self.pump._inherited = self.ends = End(64 * KIB), End(64 * KIB)  # type: ignore[assignment]
        self.pump._out, self.pump._piece = self.target, 0

    def close(self, *names: str) -> None:
        for name in names or ("source", "feed", "drain", "target", "wake", "waker"):
            if getattr(self, name) >= 0:
                os.close(getattr(self, name))
                setattr(self, name, -1)


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.close()


@pytest.fixture
def down() -> Iterator[Rig]:
    rig = Rig(down=True)
    yield rig
    rig.close()


@pytest.mark.parametrize(
    ("size", "source_grows", "target_grows"),
    [(16 * KIB - 1, 0, 0), (16 * KIB, 0, 1), (32 * KIB - 1, 0, 1), (32 * KIB, 1, 1)],
)
def test_what_half_fills_a_pipe_makes_it_grow(size: int, source_grows: int, target_grows: int, rig: Rig) -> None:
    rig.ends[1].size = 32 * KIB
    os.write(rig.feed, bytes(size))
    rig.pump._read()
    assert [end.grown for end in rig.ends] == [source_grows, 0]
    assert rig.pump._write() is None
    assert [end.grown for end in rig.ends] == [source_grows, target_grows]
    assert os.read(rig.drain, MIB) == bytes(size)
    assert rig.pump.moved == size


def test_a_read_that_finds_nothing_is_neither_an_end_nor_a_failure(rig: Rig) -> None:
    os.set_blocking(rig.source, False)
    rig.pump._read()
    assert (rig.pump._end, rig.pump._ended, rig.pump._broken) == (0, False, 0)


@pytest.mark.parametrize("number", [errno.ECONNRESET, None])
def test_a_source_that_breaks_is_an_end_with_an_errno(
    number: int | None, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(number, "broken") if number else OSError("broken")

    monkeypatch.setattr(os, "readv", fail)
    rig.pump._read()
    assert (rig.pump._ended, rig.pump._broken) == (True, number or errno.EIO)


def test_a_target_that_breaks_is_named_with_its_errno(rig: Rig) -> None:
    os.write(rig.feed, b"x")
    rig.pump._read()
    rig.close("drain")
    assert rig.pump._write() == (TARGET, errno.EPIPE)


def test_what_a_target_takes_in_parts_is_written_from_where_it_stopped(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    os.write(rig.feed, b"0123456789")
    rig.pump._read()
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: write(fd, data[:4]))
        for start, end in ((4, 10), (8, 10), (0, 0)):
            assert rig.pump._write() is None
            assert (rig.pump._start, rig.pump._end) == (start, end)
    assert os.read(rig.drain, MIB) == b"0123456789"
    assert rig.pump.moved == 10


def test_pieces_are_as_large_as_the_target_takes_without_blocking(rig: Rig) -> None:
    os.write(rig.feed, bytes(10))
    rig.pump._read()
    rig.pump._piece = 4
    for moved in (4, 8, 10):
        assert rig.pump._write() is None
        assert rig.pump.moved == moved


def test_a_target_that_may_block_is_not_written_to_while_it_is_full(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: object) -> int:
        raise AssertionError("a write that would block")

    os.write(rig.target, bytes(64 * KIB))
    os.write(rig.feed, b"x")
    rig.pump._read()
    rig.pump._piece, rig.pump._look = 4, 0
    monkeypatch.setattr(os, "write", write)
    assert rig.pump._write() == (IDLE, 0)


def test_a_failure_without_an_errno_is_one_of_the_target_all_the_same(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError("odd")

    rig.pump._end = 1
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fail)
        assert rig.pump._write() == (TARGET, 0)
    monkeypatch.setattr(_copy, "_not_blocking", fail)
    assert rig.pump.run() == (TARGET, 0)


def test_a_full_target_grows_before_it_is_waited_for(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(source: bool, target: bool) -> tuple[int, int]:
        waits.append((source, target))
        return IDLE, 0

    waits: list[tuple[bool, bool]] = []
    monkeypatch.setattr(rig.pump, "_wait", wait)
    os.write(rig.target, bytes(64 * KIB))
    os.write(rig.feed, b"x")
    rig.pump._read()
    rig.ends[1].grows = True
    assert rig.pump._write() is None
    rig.ends[1].grows = False
    assert waits == []
    assert rig.pump._write() == (IDLE, 0)
    assert (waits, rig.ends[1].grown) == ([(False, True)], 2)


def test_down_goes_on_reading_while_its_target_is_full_as_far_as_the_buffer_goes(down: Rig) -> None:
    os.write(down.target, bytes(64 * KIB))
    pump = down.pump
    pump._end = 10
    os.write(down.feed, b"more")
    assert pump._make_room() is None
    assert pump._end == 14
    pump._end = len(pump._buffer)
    pump._look = 0
    os.write(down.feed, b"more")
    assert pump._make_room() == (IDLE, 0), "it waits for the target alone"
    pump._end, pump._ended = 10, True
    assert pump._make_room() == (IDLE, 0), "nothing more will come"


def test_down_does_not_read_on_where_its_target_has_room(down: Rig) -> None:
    os.write(down.feed, b"more")
    assert down.pump._make_room() is None
    assert down.pump._end == 0


def test_up_does_not_read_on_while_its_target_is_full(rig: Rig) -> None:
    os.write(rig.target, bytes(64 * KIB))
    os.write(rig.feed, b"more")
    rig.pump._look = 0
    assert rig.pump._make_room() == (IDLE, 0)
    assert rig.pump._end == 0


# Waiting


@pytest.mark.parametrize(
    ("large", "look", "for_target", "waited"),
    [
        (False, None, False, None),
        (False, 5000, False, 5000),
        (True, None, False, 1000),
        (True, 5000, False, 1000),
        (True, 300, False, 300),
        (True, None, True, None),
    ],
)
def test_a_pump_that_has_made_a_pipe_larger_looks_after_a_second(
    large: bool, look: int | None, for_target: bool, waited: int | None, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poll(source: bool, target: bool, timeout: int | None) -> dict[int, int]:
        waits.append(timeout)
        return {}

    waits: list[int | None] = []
    monkeypatch.setattr(rig.pump, "_poll", poll)
    rig.ends[1].is_large = large
    rig.pump._look = look
    assert rig.pump._wait(True, for_target) == ((IDLE, 0) if waited == look else None)
    assert waits == [waited]
    assert [end.shrunk for end in rig.ends] == [1, 1]


def test_a_wake_up_is_taken_and_is_neither_end(rig: Rig) -> None:
    os.write(rig.waker, b"w" * 10)
    assert rig.pump._wait(True, False) is None
    assert (rig.pump._read_ready, rig.pump._write_ready) == (False, False)
    assert not select.select([rig.wake], (), (), 0)[0]
    assert [end.shrunk for end in rig.ends] == [0, 0]


def test_down_notices_that_nobody_reads_while_it_waits_for_its_source(down: Rig) -> None:
    down.close("drain")
    assert down.pump._wait(True, False) == (TARGET, errno.EPIPE)


def test_down_does_not_take_what_its_reader_sends_for_its_end(down: Rig) -> None:
    near, far = socket.socketpair()
    with near, far:
        far.send(b"the other direction's")
        pump = Pump(down.source, near.fileno(), down.wake, True)
        assert pump.run(0) == (IDLE, 0)


def test_to_ask_whether_a_target_can_be_written_to_takes_no_time(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def poll(*what: object) -> dict[int, int]:
        asked.append(what)
        return {rig.target: select.POLLOUT}

    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr(rig.pump, "_poll", poll)
    assert rig.pump._can_write()
    assert asked == [(False, True, 0)]


def test_up_does_not_look_at_its_target_while_it_waits_for_its_source(rig: Rig) -> None:
    rig.close("drain")
    rig.pump._look = 0
    assert rig.pump._wait(True, False) == (IDLE, 0)


def test_a_target_that_is_waited_for_is_ready_when_nobody_reads_it(rig: Rig) -> None:
    rig.close("drain")
    assert rig.pump._wait(False, True) is None
    assert rig.pump._write_ready


# A run


def test_a_pump_holds_128_kib_on_the_way_up_and_a_mib_on_the_way_down(rig: Rig, down: Rig) -> None:
    assert [len(pump._buffer) for pump in (rig.pump, down.pump)] == [128 * KIB, MIB]
    assert len(Pump(rig.source, rig.target, rig.wake)._buffer) == 128 * KIB
    assert [pipe.size for pipe in Pump(rig.source, rig.target, rig.wake)._inherited] == [64 * KIB] * 2


def test_the_last_movement_is_when_a_write_began_and_before_the_first_there_is_none(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rig.pump.moved_at == 0.0
    monkeypatch.setattr(_copy, "monotonic", lambda: 77.0)
    os.write(rig.feed, b"x")
    rig.pump.run(0)
    assert rig.pump.moved_at == 77.0


def test_a_run_without_a_look_waits_for_as_long_as_it_takes(rig: Rig) -> None:
    later = threading.Timer(0.1, rig.close, ("feed",))
    later.start()
    assert rig.pump.run() == (EOF, 0)
    assert rig.pump._look is None
    later.join()


def test_a_wake_up_alone_is_no_reason_to_read(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object) -> int:
        raise AssertionError("a read that would block")

    monkeypatch.setattr(os, "readv", read)
    os.write(rig.waker, b"w")
    assert rig.pump.run(0) == (IDLE, 0)


def test_a_run_ends_at_the_end_of_file_once_everything_is_delivered(rig: Rig) -> None:
    os.write(rig.feed, b"all of it")
    rig.close("feed")
    assert rig.pump.run() == (EOF, 0)
    assert os.read(rig.drain, MIB) == b"all of it"
    assert [end.left for end in rig.ends] == [1, 1], "its pipes have their size again"


def test_a_source_that_breaks_ends_a_run_once_everything_is_delivered(rig: Rig) -> None:
    rig.pump._buffer[:4] = b"rest"
    rig.pump._end, rig.pump._ended, rig.pump._broken = 4, True, errno.EIO
    assert rig.pump.run() == (SOURCE, errno.EIO)
    assert os.read(rig.drain, MIB) == b"rest"


def test_a_stopped_pump_moves_nothing_more_and_keeps_its_target_as_it_was(rig: Rig) -> None:
    os.write(rig.feed, b"x")
    rig.pump.stop()
    before = descriptors()
    assert rig.pump.run() == (STOPPED, 0)
    assert (rig.pump.moved, descriptors()) == (0, before)


def test_a_look_that_finds_nothing_ends_a_run_which_goes_on_later(rig: Rig) -> None:
    assert rig.pump.run(0) == (IDLE, 0)
    assert rig.pump.run(1) == (IDLE, 0)
    os.write(rig.feed, b"x")
    assert rig.pump.run(0) == (IDLE, 0)
    assert rig.pump.moved == 1


def test_a_target_that_is_not_open_ends_a_run(rig: Rig) -> None:
    target = rig.target
    rig.close("target")
    assert Pump(rig.source, target, rig.wake).run() == (TARGET, errno.EBADF)


def test_nothing_is_left_over_since_what_is_read_is_held_in_the_pump(rig: Rig) -> None:
    assert rig.pump.leftover() == -1


def test_a_descriptor_of_its_own_is_closed_at_the_end_of_a_run(rig: Rig) -> None:
    os.set_blocking(rig.target, True)
    os.write(rig.feed, b"x")
    rig.close("feed")
    before = descriptors()
    assert rig.pump.run() == (EOF, 0)
    assert descriptors() == before
