"""A service that accepts real connections, whose threads, clock and waits are in the hands of a test."""

import os
import select
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastvsock.host.addresses import Address
from fastvsock.host.listeners import open_listener
from fastvsock.services import acceptor
from fastvsock.services.acceptor import Service
from fastvsock.services.connection import Connection

from . import HANG


class Polls:
    """Stands for select.poll(): it waits for nothing, and keeps the times for which it would have."""

    def __init__(self) -> None:
        self.timeouts: list[float] = []
        self.watched: set[int] = set()

    def __call__(self) -> "Polls":
        self._poll, self.watched = select.poll(), set()
        return self

    def register(self, end: int | socket.socket, events: int) -> None:
        self._poll.register(end, events)
        self.watched.add(end if isinstance(end, int) else end.fileno())

    def poll(self, timeout: float) -> list[tuple[int, int]]:
        self.timeouts.append(timeout)
        return self._poll.poll(0)


class Policy:
    """Rejects everything, at accept(2) or later, where it has a reason."""

    def __init__(self, on_accept: str = "", later: str = "", *, unidentified: bool = False) -> None:
        self._reasons, self._unidentified = (on_accept, later), unidentified

    def on_accept(self, connection: Connection) -> str:
        connection.unidentified = self._unidentified
        return self._reasons[0]

    def reject_reason(self, connection: Connection) -> str:
        return self._reasons[1]


class Stage:
    """Makes services at Unix sockets, and their clients. `threads` may still be started; `end` runs one.

    `served` are the connections that have one, `said` the lines on stderr.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        self._clients: list[socket.socket] = []
        self._services: list[Service] = []
        self._threads: dict[Connection, Callable[[Connection], object]] = {}
        self.now = 100.0
        self.said: list[str] = []
        self.threads = 1 << 20
        self.polls = Polls()
        monkeypatch.setattr(acceptor, "select", SimpleNamespace(poll=self.polls, POLLIN=select.POLLIN))
        monkeypatch.setattr(acceptor, "monotonic", lambda: self.now)
        monkeypatch.setattr(acceptor, "log", self.said.append)
        monkeypatch.setattr(Connection, "start", lambda connection, run: self._start(connection, run))

    @property
    def served(self) -> list[Connection]:
        return list(self._threads)

    def _start(self, connection: Connection, run: Callable[[Connection], object]) -> None:
        if not self.threads:
            raise RuntimeError("can't start new thread")
        self.threads -= 1
        self._threads[connection] = run

    def end(self, number: int = 0) -> None:
        """Run the thread of a connection to its end."""
        connection = self.served[number]
        self._threads[connection](connection)

    def service(
        self, serve: Callable[[Connection], object] = lambda _: None, limit: int = 9, **options: Any
    ) -> Service:
        address = Address(path=str(self._folder / f"listen{len(self._services)}"))
        self._services.append(Service([open_listener(address)], serve, limit, **options))
        return self._services[-1]

    def client(self, service: Service, listener: int = 0) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        self._clients.append(sock)
        sock.settimeout(HANG)
        sock.connect(service.listeners[listener].address.path)
        return sock

    def close(self) -> None:
        for service in self._services:
            service.stop_accepting()
            os.close(service._woken)
            os.close(service._wakeup)
            for connection in service.connections():
                connection.sock.close()
        for sock in self._clients:
            sock.close()


def is_woken(service: Service) -> bool:
    """Whether the service's next step returns at once."""
    return bool(select.select([service._woken], (), (), 0)[0])


def failing(error: BaseException) -> Callable[..., Any]:
    """A function that raises `error`."""

    def fail(*arguments: object) -> None:
        raise error

    return fail
