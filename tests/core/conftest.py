"""A relay's ends, and a relay between them."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

import fastvsock
from fastvsock import engines, relaying
from fastvsock.relaying import Relay
from support.relays import Ends, Start


@pytest.fixture(autouse=True)
def nothing_taken() -> Iterator[None]:
    """However a pump ends, it gives back what it has taken of the pipes' budget."""
    yield
    assert engines.budget.taken == 0


@pytest.fixture
def ends(pool: ThreadPoolExecutor) -> Iterator[Ends]:
    ends = Ends()
    yield ends
    ends.guest.close()  # which ends a relay that a failed test has left behind, before its descriptors go
    pool.shutdown()
    ends.close()


@pytest.fixture
def start(ends: Ends, engine: str, pool: ThreadPoolExecutor) -> Start:
    """Begin relay() between the ends, in a thread that is not the main one."""

    def start(**options: Any) -> "Future[fastvsock.RelayResult]":
        arguments = {"rfd": ends.rfd, "wfd": ends.wfd, "engine": engine, **options}
        return pool.submit(lambda: fastvsock.relay(ends.sock, **arguments))

    return start


@pytest.fixture
def make(ends: Ends, engine: str) -> Iterator[Callable[..., Relay]]:
    """Makes a relay between the ends that nothing runs."""
    made: list[Relay] = []

    def make(**options: Any) -> Relay:
        made.append(Relay(ends.sock, ends.rfd, ends.wfd, engine=engine, **options))
        return made[-1]

    yield make
    for relay in made:
        relay.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that a relay sees, in seconds."""
    now = [100.0]
    monkeypatch.setattr(relaying, "monotonic", lambda: now[0])
    return now
