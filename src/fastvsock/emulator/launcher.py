"""Runs the guest's services: a child process or a thread for each connection, all of which end with the emulator."""

import os
import signal
import socket
import subprocess
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from time import monotonic

from .connection import IN
from .guest import Exec
from .poller import Poller

PATIENCE = 2.0  # seconds that services have to end after their connections
BUSY_ROUNDS = 16  # rounds of the event loop after which a waiting child is started though connections are busy
PREFIX = "FASTVSOCK_HOST_SOCKET_PREFIX"
OLD_PREFIX = "FASTVSOCK_GUEST_BACK"  # its name in 0.1, set for one more release


class Launcher:
    """Starts services and ends them.

    `prefix` is what children find in ``FASTVSOCK_HOST_SOCKET_PREFIX``. `released` is called whenever descriptors may
    have been released, and `lock` held while it is. `log` gets a sentence for each service that fails.
    """

    def __init__(
        self,
        prefix: str,
        poller: Poller,
        lock: threading.RLock,
        released: Callable[[], None],
        log: Callable[[str], object],
    ) -> None:
        self._environment = {PREFIX: prefix, OLD_PREFIX: prefix}
        self._poller, self._lock, self._released, self._log = poller, lock, released, log
        self._due: deque[tuple[Exec, socket.socket, str]] = deque()  # connections accepted, their children not started
        self._waited = 0
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._threads: set[threading.Thread] = set()

    def serve(self, service: Callable[[socket.socket], object] | Exec, end: socket.socket, name: str) -> None:
        """Hand the guest's end to its service, which closes it.

        A thread starts here; a child waits for `start_child`. Raises `RuntimeError` where no thread can be started.
        """
        if isinstance(service, Exec):
            return self._due.append((service, end, name))
        try:
            thread = threading.Thread(target=self._call, args=(service, end), name=name, daemon=True)
            thread.start()
            self._threads.add(thread)
        except BaseException:
            end.close()
            raise

    @property
    def is_due(self) -> bool:
        """Whether a child waits to be started."""
        return bool(self._due)

    def start_child(self, *, idle: bool) -> None:
        """Start the next child if the event loop is `idle`, or has been busy for `BUSY_ROUNDS`.

        Starting a process takes long, so connections are answered first.
        """
        if not self._due:
            return
        self._waited += 1
        if idle or self._waited >= BUSY_ROUNDS:
            self._waited = 0
            self._start(*self._due.popleft())

    def close(self) -> None:
        """End the services, whose connections are closed. Children get SIGTERM, and SIGKILL after `PATIENCE`."""
        for _, end, _ in self._due:
            end.close()
        deadline = monotonic() + PATIENCE
        for number in (signal.SIGTERM, signal.SIGKILL):
            for child in self._children.values():
                if child.poll() is None:
                    os.killpg(child.pid, number)
            for child in self._children.values():
                try:
                    child.wait(max(0.0, deadline - monotonic()) if number == signal.SIGTERM else None)
                except subprocess.TimeoutExpired:
                    continue
        for pidfd in self._children:
            os.close(pidfd)
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join(max(0.0, deadline - monotonic()))

    def _call(self, service: Callable[[socket.socket], object], end: socket.socket) -> None:
        try:
            with end:
                service(end)
        except OSError as error:
            self._log(f"connection {threading.current_thread().name}: {error}")
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())
                self._released()

    def _start(self, service: Exec, end: socket.socket, name: str) -> None:
        """Start a child. The guest has accepted already, so it closes where the child cannot be started."""
        with end:
            try:
                self._spawn(service, end)
            except OSError as error:
                self._log(f"connection {name}: cannot run {service.argv[0]}: {error.strerror or error}")

    def _spawn(self, service: Exec, end: socket.socket) -> None:
        child = subprocess.Popen(
            service.argv,
            stdin=end.fileno(),
            stdout=end.fileno(),
            env=os.environ | self._environment,
            start_new_session=True,  # a terminal's SIGINT reaches the emulator, which ends its children
        )
        try:
            pidfd = os.pidfd_open(child.pid)
        except OSError:
            child.kill()
            child.wait()
            raise
        self._children[pidfd] = child
        self._poller.watch(pidfd, IN, partial(self._on_exit, pidfd))

    def _on_exit(self, pidfd: int, events: int) -> None:
        self._poller.forget(pidfd)
        self._children.pop(pidfd).wait()
        os.close(pidfd)
        self._released()
