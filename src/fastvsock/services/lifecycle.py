"""A service's life: what it announces, what ends it, and its exit status.

It ends
- with its command, where it has one: with the command's status, once the bytes of the command's connections have been
  delivered (nothing has moved for `QUIET` seconds), and at the end of `grace` in any case;
- after its one connection, where it serves only one: with that connection's result;
- by SIGTERM, SIGINT or SIGHUP: it stops accepting, and ends with the last connection or at the end of `grace`. A second
  signal ends it immediately, with 128 plus its number.

While a command runs, signals are passed on to it instead, unless it has got them already; once it has ended, a signal
ends the service immediately. The service's status is the command's. Where that is 0 but connections of the command were
cut off with `grace`, it is 1, or 128 plus the number of the signal that cut them off. Connections of other processes
never change it: see ownership.py.

Signals are taken, and kept, before there is anything to clean up: see `Lifetime`.
"""

import threading
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from signal import SIGCHLD, SIGQUIT
from time import monotonic, sleep

from ..host.processes import ENDING, PASSED_ON, STACK, Child, Signal, Signals
from ..stdio import log, write_line
from .acceptor import Service
from .announce import PortFile, notify
from .connection import Connection
from .ownership import adopt_orphans

NEVER = float("inf")
QUIET = 0.5  # seconds without movement that count as an end; as relaying.LINGER
LOOK = 0.05  # seconds between two looks for quiet connections
KILL_AFTER = 1.0  # seconds from the SIGTERM for a connection's child to SIGKILL


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a service lives. Times are in seconds.

    `announce`: whether its address is printed to stdout; `launch` starts its command, once it accepts connections.
    """

    once: bool = False
    grace: float = 10.0
    stats_interval: float = NEVER
    announce: bool = True
    port_file: str | None = None
    ready_fd: int | None = None
    launch: Callable[[], Child] | None = None


class Lifetime:
    """Runs a service, with or without a command.

    To be made before any other thread is started, because of the signals, and before anything that has to be removed at
    the end: from now on a signal does not end the process, but waits until `run` can clean up.
    """

    def __init__(self, with_command: bool) -> None:
        self._signals: deque[Signal] = deque()
        self._wake: Callable[[], object] = lambda: None
        self._child: Child | None = None
        self._stopping = False
        self._deadline = NEVER  # when the last connection has to end, once the service is stopping
        self._signal = 0  # the last one that was not for the command
        self._cut = False  # connections that were not a stranger's
        self._cut_by_signal = False
        self._seen: dict[Connection, tuple[tuple[int, int], float]] = {}
        threading.stack_size(STACK)  # of all threads to come in this process
        if with_command:
            adopt_orphans()
        self._source = Signals(
            (*PASSED_ON, SIGCHLD) if with_command else ENDING, self._keep_signal, for_command=with_command
        )

    def run(self, service: Service, plan: Plan) -> int:
        """Announce, serve until the end, clean up, and return the exit status. Raises `FastvsockError`."""
        self._plan, self._service, self._wake = plan, service, service.wake
        where = service.listeners[0].address
        with ExitStack() as undo:
            undo.callback(service.flush_log)
            undo.callback(self._stop)
            undo.callback(self._await_command)
            if plan.port_file is not None:
                undo.callback(PortFile(plan.port_file, where, lambda: bool(self._signals)).remove)
            self._announce()
            self._take_signals()
            if plan.launch and not self._stopping:
                self._child = plan.launch()
            self._serve()
        return self._status()

    def _announce(self) -> None:
        where = self._service.listeners[0].address
        for listener in self._service.listeners if self._plan.announce else ():
            write_line(1, f"listening on {listener.address}")
        if self._plan.ready_fd is not None:
            write_line(self._plan.ready_fd, str(where))
        notify(f"READY=1\nSTATUS=Listening on {where}")

    def _serve(self) -> None:
        next_stats = monotonic() + self._plan.stats_interval
        while True:
            self._take_signals()
            if self._child_ended():
                self._stop()
                self._cut_quiet()
            elif self._plan.once and self._service.taken:
                self._service.stop_accepting()
            if self._is_over():
                return
            look = LOOK if self._child_ended() else NEVER
            self._service.step(min(look, next_stats - monotonic(), self._deadline - monotonic()))
            if monotonic() >= next_stats:
                next_stats += self._plan.stats_interval
                log(stats(self._service))

    def _is_over(self) -> bool:
        if not self._stopping:
            return self._plan.once and self._service.ended > 0 and self._child is None
        left = len(self._service.open)
        if not left or monotonic() < self._deadline:
            return not left
        why = "--grace expired: " if self._plan.grace and not self._cut_by_signal else ""
        log(f"{why}closed {left} open connection{'s' if left > 1 else ''}")
        self._cut = self._service.cut()
        self._service.end_children(KILL_AFTER)
        return True

    def _status(self) -> int:
        service = self._service
        if self._child:
            cut_off = 128 + self._signal if self._signal else 1
            return self._child.status or (cut_off if self._cut else 0)
        if self._signal and (self._cut_by_signal or self._plan.launch or (self._plan.once and not service.ended)):
            return 128 + self._signal
        return service.last_error.exit_code if self._plan.once and service.last_error else 0

    def _keep_signal(self, taken: Signal) -> None:
        self._signals.append(taken)
        self._wake()

    def _take_signals(self) -> None:
        while self._signals:
            self._react(*self._signals.popleft())

    def _react(self, number: int, group: bool) -> None:
        child = self._child
        if number == SIGCHLD:
            if child:
                child.reap()
                if self._child_ended():
                    self._source.close_witness()
        elif child and not self._child_ended():
            if not (group and child.shares_group()):
                child.send(number)
        elif number in (*ENDING, SIGQUIT):
            self._end(number)

    def _end(self, number: int) -> None:
        """A signal that is not for the command: the first one stops the service, the second ends it immediately."""
        if self._stopping or self._child_ended():
            self._stop()
            self._deadline, self._cut_by_signal = 0, True
        self._signal = number
        self._stop()

    def _child_ended(self) -> bool:
        return self._child is not None and self._child.status is not None

    def _await_command(self) -> None:
        """Whatever went wrong here, the command gets its signals until it ends."""
        while self._child and not self._child_ended():
            sleep(LOOK)
            self._take_signals()

    def _stop(self) -> None:
        if self._stopping:
            return
        self._stopping = True
        self._deadline = monotonic() + self._plan.grace
        notify("STOPPING=1")
        if self._child_ended():
            self._service.last_call()  # connections and bytes of the command may be under way
        else:
            self._service.stop_accepting()

    def _cut_quiet(self) -> None:
        """The command has ended: end its connections as they become quiet, since no process is left to use them."""
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
        f"{service.rejected} rejected ({service.unidentified} of unknown owner); up {up} bytes, down {down} bytes"
    )
