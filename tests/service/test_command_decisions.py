"""A service with a command: which signals the command gets, and whose status the service's is, decision by decision."""

from signal import SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGWINCH

import pytest

from support.lifetimes import FOREVER, Connection, Stage, of_no_account


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(monkeypatch)


def test_it_takes_the_signals_to_pass_on_has_a_witness_and_adopts_orphans(stage: Stage) -> None:
    stage.begin(with_command=True)
    assert {SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGWINCH, SIGCHLD} <= set(stage.numbers)
    assert (stage.witnesses, stage.subreapers) == (1, 1)


@pytest.mark.parametrize("status", [0, 3, 143])
def test_the_status_is_the_commands(status: int, stage: Stage) -> None:
    assert stage.run(of_no_account, stage.end_command(status), with_command=True) == status
    assert stage.service.waits == [FOREVER, FOREVER]
    assert stage.witnesses == 0
    assert "last call" in stage.service.done
    assert "stop accepting" not in stage.service.done


def test_another_childs_end_is_not_the_commands(stage: Stage) -> None:
    assert stage.run(stage.signal(SIGCHLD), stage.end_command(4), with_command=True) == 4
    assert len(stage.service.waits) == 2


def test_with_a_command_once_does_not_end_with_the_connection(stage: Stage) -> None:
    def serve() -> None:
        stage.service.taken = stage.service.ended = 1

    assert stage.run(serve, of_no_account, stage.end_command(5), once=True, with_command=True) == 5
    assert stage.service.done[0] == "stop accepting"


def test_a_signal_before_the_command_is_started_starts_none(stage: Stage) -> None:
    stage.begin(with_command=True)
    stage.signal(SIGTERM)()
    assert stage.run(with_command=True) == 143
    assert stage.command.got == []
    assert not stage.life._child


@pytest.mark.parametrize("number", [SIGTERM, SIGINT, SIGQUIT, SIGUSR1])
@pytest.mark.parametrize(
    ("group", "in_group", "passed_on"), [(False, True, 1), (False, False, 1), (True, False, 1), (True, True, 0)]
)
def test_a_signal_is_passed_on_unless_the_command_has_got_it(
    number: int, group: bool, in_group: bool, passed_on: int, stage: Stage
) -> None:
    stage.command.in_group = in_group
    assert stage.run(stage.signal(number, group=group), stage.end_command(0), with_command=True) == 0
    assert stage.command.got == [number] * passed_on


def test_signals_do_not_stop_a_service_whose_command_runs(stage: Stage) -> None:
    stage.run(stage.signal(SIGTERM), stage.signal(SIGTERM), of_no_account, stage.end_command(0), with_command=True)
    assert stage.service.done == ["wake", "wake", "wake", "last call", "flush"]


def test_after_the_commands_end_a_signal_ends_the_service_now(stage: Stage) -> None:
    stage.service.open = [Connection(pending=True)]
    stage.service.is_ours = True
    events = stage.end_command(0), stage.signal(SIGUSR1), stage.signal(SIGTERM)
    assert stage.run(*events, with_command=True, grace=60.0) == 143
    assert stage.command.got == []
    assert len(stage.service.waits) == 3
    assert stage.said == ["closed 1 open connection"]


def test_a_signal_that_comes_together_with_the_commands_end_ends_the_service_now(stage: Stage) -> None:
    def end_and_signal() -> None:
        stage.end_command(0)()
        stage.signal(SIGTERM)()

    stage.service.open = [Connection(pending=True)]
    stage.service.is_ours = True
    assert stage.run(end_and_signal, with_command=True, grace=60.0) == 143
    assert len(stage.service.waits) == 1
    assert stage.service.done[-3:] == ["cut", "children have 1.0 s", "flush"]


@pytest.mark.parametrize(("is_ours", "status", "result"), [(True, 0, 1), (False, 0, 0), (True, 7, 7)])
def test_connections_of_the_command_that_the_grace_cuts_off_are_a_failure(
    is_ours: bool, status: int, result: int, stage: Stage
) -> None:
    stage.service.open = [Connection(pending=True)]
    stage.service.is_ours = is_ours
    assert stage.run(stage.end_command(status), with_command=True, grace=2.0) == result
    assert stage.said == ["--grace expired: closed 1 open connection"]
    assert stage.clock.now == pytest.approx(1002.0)


# What is under way when the command has ended


def test_a_connection_that_is_quiet_for_half_a_second_is_ended(stage: Stage) -> None:
    one = Connection()
    stage.service.open = [one]
    stage.run(stage.end_command(0), with_command=True, grace=0.6)
    assert one.cuts > 0
    assert set(stage.service.waits[1:-1]) == {0.05}, "it looks twenty times a second"
    quiet = Connection()
    stage.service.open = [quiet]
    for now, cuts in ((0.0, 0), (0.25, 0), (0.499, 0), (0.5, 1)):
        stage.clock.now = 2000.0 + now
        stage.life._cut_quiet()
        assert quiet.cuts == cuts


def test_movement_and_bytes_that_wait_begin_the_silence_again(stage: Stage) -> None:
    busy = Connection()
    stage.begin(with_command=True)
    stage.life._service = stage.service  # type: ignore[assignment]
    stage.service.open = [busy]
    for now, progress, pending, cuts in (
        (0.0, (0, 0), False, 0),
        (0.375, (1, 0), False, 0),
        (0.75, (1, 0), True, 0),
        (1.125, (1, 0), False, 0),
        (1.25, (1, 0), False, 1),
    ):
        stage.clock.now, busy.progress, busy.pending = now, progress, pending
        stage.life._cut_quiet()
        assert busy.cuts == cuts, f"at {now} s"


def test_whatever_goes_wrong_the_command_gets_its_signals_until_it_ends(stage: Stage) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    pauses: list[float] = []

    def sleep(pause: float) -> None:
        pauses.append(pause)
        (stage.signal(SIGHUP), of_no_account, stage.end_command(0))[len(pauses) - 1]()

    stage.begin(with_command=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastvsock.services.lifecycle.sleep", sleep)
        with pytest.raises(ZeroDivisionError):
            stage.run(fail, with_command=True)
    assert stage.command.got == [SIGHUP]
    assert pauses == [0.05] * 3
    assert stage.service.done[-2:] == ["last call", "flush"]
