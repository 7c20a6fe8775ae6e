"""How long a relay waits after the end of input, and how often it looks meanwhile, on a clock that the test sets."""

from collections.abc import Callable

import pytest

from fastvsock.relaying import Relay

FOREVER = float("inf")


class Down:
    """Stands for the lock that down's thread holds: each wait passes, `late` by so much, until `ends` says so."""

    def __init__(self, clock: list[float], ends: Callable[[], bool], late: float = 0.0) -> None:
        self._clock, self._ends, self._late = clock, ends, late
        self.waits: list[float] = []
        self.released = 0

    def acquire(self, timeout: float) -> bool:
        self.waits.append(timeout)
        assert len(self.waits) < 1000, "it waits without end"
        self._clock[0] += timeout + self._late
        return self._ends()

    def release(self) -> None:
        self.released += 1


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What a relay has sent, which it compares with what it had sent at its last look."""
    sent = [5.0]
    monkeypatch.setattr(Relay, "sent", property(lambda relay: sent[0]))
    return sent


@pytest.mark.parametrize(
    ("late", "waits"),
    [(0.0, [0.25] * 4), (0.2, [0.25, 0.25, 0.1]), (0.24985, [0.25, 0.25, 0.001])],
    ids=["on time", "late", "a moment before the end"],
)
def test_after_the_end_of_input_a_relay_looks_four_times_and_half_closes_when_linger_is_over(
    late: float, waits: list[float], make: Callable[..., Relay], clock: list[float], moves: list[float]
) -> None:
    relay = make()
    relay._down_running = down = Down(clock, lambda: relay._has_half_closed, late)  # type: ignore[assignment]
    relay._await_down(1.0)
    assert down.waits[:-1] == pytest.approx(waits)
    assert down.released == 1


def test_movement_begins_the_silence_again(make: Callable[..., Relay], clock: list[float], moves: list[float]) -> None:
    def move() -> bool:
        if clock[0] < 102.0:
            moves[0] += 1
        elif not relay._has_half_closed:
            silent.append(clock[0])
        return relay._has_half_closed

    relay = make()
    silent: list[float] = []
    relay._down_running = Down(clock, move)  # type: ignore[assignment]
    relay._await_down(1.0)
    assert silent == [102.0, 102.25, 102.5, 102.75]


def test_with_an_idle_timeout_it_looks_four_times_in_that_too_and_gives_up(
    make: Callable[..., Relay], clock: list[float], moves: list[float]
) -> None:
    relay = make(idle_timeout=2.0)
    relay._looked = clock[0]
    relay._down_running = down = Down(clock, lambda: False)  # type: ignore[assignment]
    relay._await_down(FOREVER)
    assert down.waits == [0.5] * 4
    assert relay._verdict(0, 0, 0, 0)[0] == "error"


def test_where_nothing_is_due_it_looks_every_second(
    make: Callable[..., Relay], clock: list[float], moves: list[float]
) -> None:
    relay = make()
    relay._down_running = down = Down(clock, lambda: clock[0] >= 104.0)  # type: ignore[assignment]
    relay._await_down(FOREVER)
    assert down.waits == [1.0] * 4
    assert not relay._has_half_closed


def test_after_three_seconds_of_silence_the_notice_is_given_once(
    make: Callable[..., Relay], clock: list[float], moves: list[float]
) -> None:
    notices: list[float] = []
    relay = make(notice=lambda: notices.append(clock[0]))
    relay._down_running = Down(clock, lambda: clock[0] >= 110.0)  # type: ignore[assignment]
    relay._await_down(FOREVER)
    assert notices == [103.0]


def test_no_notice_is_given_while_something_moves(
    make: Callable[..., Relay], clock: list[float], moves: list[float]
) -> None:
    def move() -> bool:
        moves[0] += 1
        return clock[0] >= 110.0

    notices: list[float] = []
    relay = make(notice=lambda: notices.append(clock[0]))
    relay._down_running = Down(clock, move)  # type: ignore[assignment]
    relay._await_down(FOREVER)
    assert notices == []
