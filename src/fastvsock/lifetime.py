"""A service's life: what it announces, what ends it, and with which status.

It ends
- with its command, where it has one: with the command's status, once what the command's connections had under way has
  moved on (nothing has moved for `QUIET` seconds), and at the end of `grace` whatever it is;
- after its one connection, where it is to serve but one: with that connection's result;
- by SIGTERM, SIGINT or SIGHUP: it stops accepting at once, and ends when the last connection does or at the end of
  `grace`. A second signal ends it at once, with 128 plus its number.

A command gets the signals instead, and its end is what follows.
"""

from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from signal import SIGCHLD
from time import monotonic

from .children import ENDING, PASSED_ON, Child, Signal, Signals
from .listening import Address, PortFile, notify, tell
from .peer import adopt_orphans
from .service import Connection, Service, say

NEVER = float("inf")
QUIET = 0.5  # seconds; as relay.LINGER: silence for so long is an end
LOOK = 0.05  # seconds between two looks at what is quiet


@dataclass(frozen=True)
class Plan:
    """How a service lives. Times are in seconds.

    `say_where`: whether its address goes to stdout; `start` starts its command, once it accepts.
    """

    once: bool = False
    grace: float = 10.0
    stats_interval: float = NEVER
    say_where: bool = True
    port_file: str | None = None
    ready_fd: int | None = None
    start: Callable[[], Child] | None = None


class Lifetime:
    """Runs a service according to `plan`. To be made before any other thread is started, for the signals' sake."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._signals: deque[Signal] = deque()
        self._wake: Callable[[], object] = lambda: None
        self._child: Child | None = None
        self._signal = 0  # the first one, without a command
        self._deadline = NEVER  # when the last connection has to end: set once it stops
        self._seen: dict[Connection, tuple[tuple[int, int], float]] = {}
        if plan.start:
            adopt_orphans()
        Signals((*PASSED_ON, SIGCHLD) if plan.start else ENDING, self._tell)

    def run(self, service: Service) -> int:
        """Announce, serve until the end, clean up, and return the exit status. Raises `FastvsockError`."""
        self._service, self._wake = service, service.wake
        where = service.listeners[0].address
        with ExitStack() as undo:
            undo.callback(self._stop)
            if self._plan.port_file is not None:
                undo.callback(PortFile(self._plan.port_file, where).remove)
            self._announce(where)
            if self._plan.start:
                self._child = self._plan.start()
            self._serve()
        return self._status()

    def _announce(self, where: Address) -> None:
        if self._plan.say_where:
            tell(1, f"listening on {where}")
        if self._plan.ready_fd is not None:
            tell(self._plan.ready_fd, str(where))
        notify(f"READY=1\nSTATUS=Listening on {where}")

    def _serve(self) -> None:
        next_stats = monotonic() + self._plan.stats_interval
        while not self._is_over():
            look = LOOK if self._child_ended() else NEVER
            self._service.step(min(look, next_stats - monotonic(), self._deadline - monotonic()))
            while self._signals:
                self._react(*self._signals.popleft())
            if self._child_ended():
                self._stop()
                self._cut_quiet()
            elif self._plan.once and self._service.taken:
                self._service.stop_accepting()
            if monotonic() >= next_stats:
                next_stats += self._plan.stats_interval
                say(stats(self._service))

    def _is_over(self) -> bool:
        if self._deadline == NEVER:
            return self._plan.once and self._service.ended > 0 and self._child is None
        left = len(self._service.open)
        if not left or monotonic() < self._deadline:
            return not left
        say(f"{left} connection{'s were' if left > 1 else ' was'} still open: ended")
        self._service.cut()
        return True

    def _status(self) -> int:
        if self._child:
            return self._child.status or 0
        service = self._service
        if self._signal and (self._deadline == 0 or (self._plan.once and not service.ended)):
            return 128 + self._signal
        return service.last_error.exit_code if self._plan.once and service.last_error else 0

    def _tell(self, taken: Signal) -> None:
        self._signals.append(taken)
        self._wake()

    def _react(self, number: int, group: bool) -> None:
        if number == SIGCHLD and self._child:
            self._child.reap()
        elif self._child:
            if not group:
                self._child.send(number)
        elif self._signal:
            self._deadline = 0
        else:
            self._signal = number
            self._stop()

    def _child_ended(self) -> bool:
        return self._child is not None and self._child.status is not None

    def _stop(self) -> None:
        if self._deadline == NEVER:
            self._deadline = monotonic() + self._plan.grace
            notify("STOPPING=1")
            self._service.stop_accepting()

    def _cut_quiet(self) -> None:
        """The command has ended: end its connections as they fall silent, for nobody is left to go on with them."""
        now = monotonic()
        for connection in self._service.connections():
            progress = connection.progress
            before, since = self._seen.get(connection, (None, now))
            if progress != before or connection.pending:
                self._seen[connection] = progress, now
            elif now - since >= QUIET:
                connection.cut()


def stats(service: Service) -> str:
    """A service's counts in one line."""
    up, down = service.moved
    return (
        f"{len(service.open)} connections open, {service.taken} taken, {service.failed} failed, "
        f"{service.refused} turned away; up {up} bytes, down {down} bytes"
    )
