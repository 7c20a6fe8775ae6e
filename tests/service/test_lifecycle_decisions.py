"""What ends a service, and with which status, one decision at a time: no process, and a clock that the test sets."""

import os
from collections.abc import Callable
from pathlib import Path
from signal import SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1
from types import SimpleNamespace

import pytest

from fastvsock import errors
from fastvsock.host.addresses import Address
from support.lifetimes import FOREVER, Connection, Stage, of_no_account


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(monkeypatch)


# What is announced


def test_each_address_is_printed_and_the_first_one_announced(stage: Stage, capfd: pytest.CaptureFixture[str]) -> None:
    stage.service.listeners.append(SimpleNamespace(address=Address("127.0.0.1", 4712)))
    reading, writing = os.pipe()
    assert stage.run(stage.signal(SIGTERM), ready_fd=writing) == 0
    assert capfd.readouterr().out == "listening on 127.0.0.1:4711\nlistening on 127.0.0.1:4712\n"
    with open(reading) as ready:
        assert ready.read() == "127.0.0.1:4711\n"
    assert stage.states == ["READY=1\nSTATUS=Listening on 127.0.0.1:4711", "STOPPING=1"]


def test_a_service_that_is_to_be_silent_prints_nothing(stage: Stage, capfd: pytest.CaptureFixture[str]) -> None:
    stage.run(stage.signal(SIGTERM), announce=False)
    assert capfd.readouterr().out == ""


def test_the_port_file_is_there_while_it_serves_and_gone_after(stage: Stage, tmp_path: Path) -> None:
    path, seen = tmp_path / "port", []
    stage.service.listeners.append(SimpleNamespace(address=Address("127.0.0.1", 4712)))
    stage.begin()
    stage.run(lambda: seen.append(path.read_text()), stage.signal(SIGTERM), port_file=str(path))
    assert seen == ["4711\n"]
    assert not path.exists()


def test_a_port_file_that_nobody_reads_is_given_up_at_a_signal(stage: Stage, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "port")
    stage.begin()
    stage.signal(SIGTERM)()
    with pytest.raises(errors.FastvsockError, match="no process has opened it to read"):
        stage.run(port_file=str(tmp_path / "port"))
    assert stage.service.done == ["stop accepting", "flush"], "it cleans up all the same"


# A service without a command


def test_it_takes_the_signals_that_end_it_and_has_no_witness(stage: Stage) -> None:
    stage.begin()
    assert set(stage.numbers) == {SIGTERM, SIGINT, SIGHUP}
    assert (stage.witnesses, stage.subreapers, stage.stacks) == (0, 0, [1 << 18])


def test_a_signal_stops_it_and_it_ends_with_the_last_connection(stage: Stage) -> None:
    last = Connection()
    stage.service.open.append(last)
    assert stage.run(stage.signal(SIGINT), of_no_account, stage.service.open.clear) == 0
    assert stage.service.done == ["wake", "stop accepting", "flush"]
    assert stage.service.waits == [FOREVER, 10.0, 10.0]
    assert stage.states[1:] == ["STOPPING=1"]
    assert last.cuts == 0


@pytest.mark.parametrize("number", [SIGTERM, SIGINT, SIGHUP, SIGQUIT])
def test_without_connections_it_ends_with_success(number: int, stage: Stage) -> None:
    assert stage.run(stage.signal(number)) == 0


def test_other_signals_do_not_end_it(stage: Stage) -> None:
    assert stage.run(stage.signal(SIGUSR1), stage.signal(SIGCHLD), stage.signal(SIGTERM)) == 0
    assert len(stage.service.waits) == 3


def test_a_signal_that_comes_before_it_serves_is_not_lost(stage: Stage) -> None:
    stage.begin()
    stage.signal(SIGTERM)()
    assert stage.run() == 0
    assert stage.service.waits == []


@pytest.mark.parametrize(("count", "plural"), [(1, ""), (2, "s")])
def test_when_the_grace_is_over_the_connections_are_cut_off_and_counted(count: int, plural: str, stage: Stage) -> None:
    stage.service.open = [Connection() for _ in range(count)]
    assert stage.run(stage.signal(SIGTERM), grace=3.0) == 0
    assert stage.service.waits == [FOREVER, 3.0]
    assert stage.said == [f"--grace expired: closed {count} open connection{plural}"]
    assert stage.service.done == ["wake", "stop accepting", "cut", "children have 1.0 s", "flush"]


def test_without_grace_there_is_none_that_could_expire(stage: Stage) -> None:
    stage.service.open = [Connection()]
    assert stage.run(stage.signal(SIGTERM), grace=0.0) == 0
    assert (stage.service.waits, stage.said) == ([FOREVER], ["closed 1 open connection"])


def test_a_second_signal_ends_it_now_with_the_status_of_a_signal(stage: Stage) -> None:
    stage.service.open = [Connection()]
    assert stage.run(stage.signal(SIGTERM), stage.signal(SIGINT)) == 130
    assert stage.said == ["closed 1 open connection"]
    assert stage.states[1:] == ["STOPPING=1"]


def test_a_failure_inside_stops_it_all_the_same(stage: Stage) -> None:
    with pytest.raises(AssertionError, match="waits without end"):
        stage.run()
    assert stage.service.done == ["stop accepting", "flush"]
    assert stage.states[1:] == ["STOPPING=1"]


# One connection only


def test_once_takes_no_second_connection_and_ends_with_the_first(stage: Stage) -> None:
    def take() -> None:
        stage.service.taken = 1

    def end() -> None:
        stage.service.ended = 1

    assert stage.run(of_no_account, take, of_no_account, end, once=True) == 0
    assert len(stage.service.waits) == 4
    assert stage.service.done[0] == "stop accepting"


def test_a_service_that_takes_many_accepts_more_after_the_first(stage: Stage) -> None:
    def serve() -> None:
        stage.service.taken = stage.service.ended = 1
        stage.service.done.clear()

    stage.run(serve, lambda: stage.service.done.append("asked"), stage.signal(SIGTERM))
    assert stage.service.done[0] == "asked"


@pytest.mark.parametrize(("once", "status"), [(True, 1), (False, 0)])
def test_the_failure_of_a_connection_is_the_status_where_it_is_the_only_one(
    once: bool, status: int, stage: Stage
) -> None:
    def end() -> None:
        stage.service.taken = stage.service.ended = 1
        stage.service.last_error = errors.FastvsockError("it failed")

    assert stage.run(end, stage.signal(SIGTERM), once=once) == status


@pytest.mark.parametrize(("ended", "status"), [(0, 143), (1, 0)])
def test_a_signal_before_the_only_connection_has_ended_is_the_status(ended: int, status: int, stage: Stage) -> None:
    def stop() -> None:
        stage.signal(SIGTERM)()
        stage.service.ended = ended

    assert stage.run(stop, once=True) == status


# Counts


def test_counts_are_logged_at_each_interval_and_not_between(stage: Stage) -> None:
    def pass_seconds(seconds: float) -> Callable[[], None]:
        def event() -> None:
            lines.append(len(stage.said))
            stage.clock.now += seconds

        return event

    lines: list[int] = []
    service = stage.service
    service.open = [Connection(), Connection()]
    service.taken, service.failed, service.rejected, service.unidentified, service.moved = 3, 4, 5, 6, (7, 8)
    times = [pass_seconds(seconds) for seconds in (4.0, 1.0, 4.5, 0.5, 0.0)]
    stage.run(*times, stage.signal(SIGTERM), stage.signal(SIGTERM), stats_interval=5.0)
    line = "2 connections open, 3 taken, 4 failed, 5 rejected (6 of unknown owner); up 7 bytes, down 8 bytes"
    assert stage.said[:2] == [line, line]
    assert lines == [0, 0, 1, 1, 2]
    assert service.waits[:5] == [5.0, 1.0, 5.0, 0.5, 5.0]
