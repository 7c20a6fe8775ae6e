"""Which engine serves which descriptors, and what is reported after a change from one to the other."""

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastvsock import engines
from fastvsock.engines import EOF, STOPPED, UNSUPPORTED

pytest.importorskip("fastvsock.engines._splice", reason="the splice engine is not built")


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


@pytest.fixture
def terminal() -> Iterator[int]:
    main, terminal = os.openpty()
    yield terminal
    os.close(main)
    os.close(terminal)


def engine_of(source: int, target: int) -> str:
    with socket.socket() as wake:
        return engines.Pump(source, target, wake.fileno(), engine="auto").engine


def test_pipes_are_spliced(pipe: tuple[int, int]) -> None:
    assert engine_of(*pipe) == "splice"


def test_a_terminal_at_either_end_is_copied(pipe: tuple[int, int], terminal: int) -> None:
    assert engine_of(terminal, pipe[1]) == "copy"
    assert engine_of(pipe[0], terminal) == "copy"


def test_a_regular_file_is_spliced_from_and_copied_to(pipe: tuple[int, int], tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b") as file:
        assert engine_of(file.fileno(), pipe[1]) == "splice"
        assert engine_of(pipe[0], file.fileno()) == "copy"


def test_a_descriptor_that_is_not_open_is_left_to_the_copy_engine(pipe: tuple[int, int]) -> None:
    closed = os.dup(pipe[1])
    os.close(closed)
    assert not engines._may_splice(pipe[0], closed)


@pytest.mark.parametrize("wanted", ["auto", "copy"])
def test_without_the_extension_the_queues_and_the_end_are_read_all_the_same(
    wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(engines, "_splice", raising=False)
    monkeypatch.setitem(sys.modules, "fastvsock.engines._splice", None)
    ours, theirs = socket.socketpair()
    with ours:
        theirs.sendall(b"four")
        assert engines.queues(ours.fileno(), wanted) == (4, 0)
        assert not engines.has_closed(ours.fileno(), engine=wanted)
        theirs.close()
        assert engines.has_closed(ours.fileno(), engine=wanted)


def test_without_a_descriptor_to_wake_it_nothing_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    wakes: list[int] = []

    def has_closed(fd: int, wake: int) -> bool:
        wakes.append(wake)
        return True

    monkeypatch.setattr("fastvsock.engines._copy.has_closed", has_closed)
    assert engines.has_closed(7, engine="copy")
    assert wakes[0] < 0  # 0 would be stdin


class Copier:
    """A pump that moves two bytes and is at its end."""

    moved, moved_at = 2, 3.0

    def run(self, look: int = -1) -> tuple[int, int]:
        return EOF, 0

    def stop(self) -> None:
        pass


class Refused(Copier):
    """A splice engine that moved some bytes before the kernel refused, and holds others behind a descriptor."""

    moved_at = 0.5

    def __init__(self, moved: int, rest: int) -> None:
        self.moved, self.rest = moved, rest

    def run(self, look: int = -1) -> tuple[int, int]:
        return UNSUPPORTED, 22

    def leftover(self) -> int:
        return self.rest


@pytest.mark.parametrize(
    ("moved", "rest", "copied_from", "name"),
    [
        (0, -1, ["source"], "copy"),
        (1, -1, ["source"], "splice+copy"),
        (1, 7, [7, "source"], "splice+copy"),
        (1, 0, [0, "source"], "splice+copy"),  # a process may have no stdin
    ],
)
def test_after_a_change_what_was_left_over_is_copied_first_and_everything_counts(
    moved: int,
    rest: int,
    copied_from: list[object],
    name: str,
    pipe: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sources: list[object] = []

    def copy_pump(source: int, *others: object) -> Copier:
        sources.append("source" if source == pipe[0] else source)
        return Copier()

    monkeypatch.setattr(engines, "_splice_pump", lambda *ends: Refused(moved, rest))
    monkeypatch.setattr(engines, "_copy_pump", copy_pump)
    pump = engines.Pump(*pipe, -1, engine="splice")
    assert pump.run() == (EOF, 0)
    assert sources == copied_from
    assert (pump.moved, pump.engine) == (moved + 2 * len(copied_from), name)
    assert pump.moved_at == 3.0


def test_the_last_movement_is_the_splice_engines_until_something_is_copied(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "_splice_pump", lambda *ends: Refused(1, -1))
    pump = engines.Pump(*pipe, -1, engine="splice")
    assert pump.moved_at == 0.5
    monkeypatch.setattr(Copier, "moved_at", 0.0)
    monkeypatch.setattr(engines, "_copy_pump", lambda *ends: Copier())
    assert pump.run() == (EOF, 0)
    assert pump.moved_at == 0.5


def test_nothing_has_moved_at_the_beginning(pipe: tuple[int, int]) -> None:
    for engine in "splice", "copy":
        assert engines.Pump(*pipe, -1, engine=engine).moved_at == 0.0


def test_a_pump_that_is_stopped_while_it_changes_engine_copies_nothing(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopping(Refused):
        def run(self, look: int = -1) -> tuple[int, int]:
            pump.stop()
            return super().run(look)

    monkeypatch.setattr(engines, "_splice_pump", lambda *ends: Stopping(1, -1))
    monkeypatch.setattr(engines, "_copy_pump", lambda *ends: Copier())
    pump = engines.Pump(*pipe, -1, engine="splice")
    assert pump.run() == (STOPPED, 0)


@pytest.mark.parametrize("engine", ["splice", "copy"])
def test_a_pump_asks_its_engine_for_what_it_is_asked_itself(
    engine: str, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Engine(Copier):
        def __init__(self, *ends: int) -> None:
            asked.append(ends)

        def run(self, look: int = -1) -> tuple[int, int]:
            asked.append(look)
            return EOF, 0

        def stop(self) -> None:
            asked.append("stop")

    asked: list[object] = []
    monkeypatch.setattr(engines, f"_{engine}_pump", Engine)
    pump = engines.Pump(*pipe, -1, engine=engine)
    pump.run()
    pump.run(250)
    pump.stop()
    assert asked == [(*pipe, -1, False), -1, 250, "stop"]
    assert pump.engine == engine
