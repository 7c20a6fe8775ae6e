"""What a service does where something is short: how often it tries again, and how many connections it can afford."""

import errno
import os
import resource
import sys
from collections.abc import Callable

import pytest

from fastvsock.services import limits


class Clock:
    """The time of a service, in seconds, which passes only while it sleeps."""

    def __init__(self) -> None:
        self.now = 100.0
        self.pauses: list[float] = []

    def sleep(self, pause: float) -> None:
        self.pauses.append(pause)
        self.now += pause


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(limits, "monotonic", lambda: clock.now)
    monkeypatch.setattr(limits, "sleep", clock.sleep)
    return clock


def failing(error: BaseException, times: float = float("inf")) -> Callable[[], str]:
    """Something that can be made once it has failed so many times."""
    left = [times]

    def make() -> str:
        left[0] -= 1
        if left[0] >= 0:
            raise error
        return "made"

    return make


SHORTAGES = [OSError(number, "short") for number in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)]


@pytest.mark.parametrize("error", [*SHORTAGES, MemoryError()], ids=repr)
def test_what_is_short_is_tried_again_four_times_a_second(error: BaseException, clock: Clock) -> None:
    assert limits.retry_on_shortage(failing(error, 3)) == "made"
    assert clock.pauses == [0.25] * 3


def test_a_shortage_that_lasts_ten_seconds_is_raised(clock: Clock) -> None:
    with pytest.raises(OSError, match="short"):
        limits.retry_on_shortage(failing(SHORTAGES[0]))
    assert sum(clock.pauses) == 10


def test_another_failure_is_raised_without_a_second_try(clock: Clock) -> None:
    with pytest.raises(PermissionError):
        limits.retry_on_shortage(failing(PermissionError(errno.EPERM, "no")))
    assert clock.pauses == []


@pytest.fixture
def descriptors(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the soft limit of descriptors, of which seven are in use."""
    monkeypatch.setattr(os, "listdir", lambda path: ["fd"] * 7)

    def set_limit(limit: int) -> None:
        monkeypatch.setattr(resource, "getrlimit", lambda kind: (limit, 1 << 20))

    return set_limit


@pytest.mark.parametrize(
    ("beyond", "affordable"), [(0, 1), (9, 1), (19, 1), (20, 2), (30, 3), (39, 3), (40, 4), (999, 4)]
)
def test_a_connection_takes_ten_descriptors_beside_those_in_use_and_32_to_spare(
    beyond: int, affordable: int, descriptors: Callable[[int], None], capfd: pytest.CaptureFixture[str]
) -> None:
    descriptors(7 + 32 + beyond)
    assert limits.affordable(4) == affordable
    said = capfd.readouterr().err
    assert (f"serving at most {affordable} connections at a time instead of 4; others wait" in said) == (affordable < 4)


def test_connections_that_cannot_wait_are_reported_as_closed(
    descriptors: Callable[[int], None], capfd: pytest.CaptureFixture[str]
) -> None:
    descriptors(0)
    assert limits.affordable(4, queue=False) == 1
    assert "others are closed" in capfd.readouterr().err


def test_threads_ask_for_the_interpreters_lock_ten_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    intervals: list[float] = []
    monkeypatch.setattr(sys, "setswitchinterval", intervals.append)
    monkeypatch.setattr(limits, "raise_descriptor_limit", lambda: (10, 20))
    assert limits.prepare_process() == (10, 20)
    assert intervals == [0.1]


def test_by_default_a_service_takes_as_many_connections_as_firecracker() -> None:
    assert limits.MAX_CONNECTIONS == 1023  # the size of its connection map: vsock/unix/mod.rs


def test_without_a_limit_of_descriptors_every_connection_is_affordable(descriptors: Callable[[int], None]) -> None:
    descriptors(resource.RLIM_INFINITY)
    assert limits.affordable(1_000_000) == 1_000_000


def test_without_proc_32_descriptors_count_as_in_use(
    descriptors: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_proc(path: str) -> list[str]:
        raise FileNotFoundError

    descriptors(32 + 32 + 29)
    monkeypatch.setattr(os, "listdir", no_proc)
    assert limits.affordable(4) == 2
