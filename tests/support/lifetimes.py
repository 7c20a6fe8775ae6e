"""What a service's lifetime sees, in the hands of a test: clock, service, command, signals."""

import signal
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from fastvsock import errors
from fastvsock.host.addresses import Address
from fastvsock.services import lifecycle
from fastvsock.services.lifecycle import Lifetime, Plan

FOREVER = float("inf")


class Clock:
    """Seconds that pass only while somebody waits."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.sleeps: list[float] = []

    def sleep(self, pause: float) -> None:
        self.sleeps.append(pause)
        self.now += pause


class Connection:
    """An open connection of the service."""

    def __init__(self, *, pending: bool = False) -> None:
        self.progress, self.pending = (0, 0), pending
        self.cuts = 0

    def cut(self) -> None:
        self.cuts += 1


class Service:
    """Stands for `acceptor.Service`. At each step the next of `events` happens; where none is left, time passes."""

    def __init__(self, clock: Clock) -> None:
        self.listeners = [SimpleNamespace(address=Address("127.0.0.1", 4711))]
        self.open: list[Connection] = []
        self.taken = self.rejected = self.unidentified = self.ended = self.failed = 0
        self.moved = 0, 0
        self.last_error: errors.FastvsockError | None = None
        self.is_ours = False
        self.done: list[str] = []
        self.waits: list[float] = []
        self.events: list[Callable[[], object]] = []
        self._clock = clock

    def step(self, timeout: float) -> None:
        self.waits.append(timeout)
        assert len(self.waits) < 1000, "it never ends"
        if self.events:
            self.events.pop(0)()
            return
        assert timeout < FOREVER, "it waits without end, and nothing more happens"
        self._clock.now += max(timeout, 0)

    def connections(self) -> list[Connection]:
        return self.open

    def cut(self) -> bool:
        self.done.append("cut")
        return self.is_ours

    def end_children(self, patience: float) -> None:
        self.done.append(f"children have {patience} s")

    def stop_accepting(self) -> None:
        self.done.append("stop accepting")

    def last_call(self) -> None:
        self.done.append("last call")

    def flush_log(self) -> None:
        self.done.append("flush")

    def wake(self) -> None:
        self.done.append("wake")


class Command:
    """Stands for the service's child. It ends, with `ends_with`, when it is reaped the next time."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.ends_with: int | None = None
        self.in_group = True
        self.got: list[int] = []

    def send(self, number: int) -> None:
        self.got.append(number)

    def shares_group(self) -> bool:
        return self.in_group

    def reap(self) -> None:
        self.status = self.ends_with


class Stage:
    """A lifetime with all that it sees: `said` on stderr, `states` for the service manager."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = Clock()
        self.service = Service(self.clock)
        self.command = Command()
        self.said: list[str] = []
        self.states: list[str] = []
        self.numbers: tuple[int, ...] = ()
        self.witnesses = self.subreapers = 0
        self.stacks: list[int] = []
        monkeypatch.setattr(lifecycle, "monotonic", lambda: self.clock.now)
        monkeypatch.setattr(lifecycle, "sleep", self.clock.sleep)
        monkeypatch.setattr(lifecycle, "notify", self.states.append)
        monkeypatch.setattr(lifecycle, "log", self.said.append)
        monkeypatch.setattr(lifecycle, "Signals", self._take_signals)
        monkeypatch.setattr(lifecycle, "adopt_orphans", self._adopt_orphans)
        monkeypatch.setattr("threading.stack_size", self.stacks.append)

    def _take_signals(self, numbers: tuple[int, ...], tell: Any, *, for_command: bool = False) -> "Stage":
        self.numbers, self._tell = numbers, tell
        self.witnesses += for_command
        return self

    def close_witness(self) -> None:
        self.witnesses -= 1

    def _adopt_orphans(self) -> None:
        self.subreapers += 1

    def begin(self, *, with_command: bool = False) -> None:
        """Make the lifetime, which `run` does where a test has not."""
        self.life = Lifetime(with_command)

    def signal(self, number: int, *, group: bool = False) -> Callable[[], None]:
        """An event: the signal `number` comes."""
        return lambda: self._tell((number, group))

    def end_command(self, status: int) -> Callable[[], None]:
        """An event: the command ends."""

        def end() -> None:
            self.command.ends_with = status
            self.signal(signal.SIGCHLD)()

        return end

    def run(self, *events: Callable[[], object], with_command: bool = False, **plan: Any) -> int:
        """Let the service live through `events`; return its exit status."""
        if not hasattr(self, "life"):
            self.begin(with_command=with_command)
        if with_command:
            plan["launch"] = lambda: self.command
        self.service.events = list(events)
        return self.life.run(self.service, Plan(**plan))  # type: ignore[arg-type]


def of_no_account() -> None:
    """An event that changes nothing."""
