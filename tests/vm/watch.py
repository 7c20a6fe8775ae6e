"""A pytest plugin for L1: a test that failed while the emulated guest died runs again, on a new guest.

The guest runs on a processor that QEMU emulates together with its virtualisation, and that emulation is not perfect:
a guest that nobody touches can die of a triple fault, or stand still (README.md has figures). What a program does on
its side of a vsock can do neither to a guest, so such a failure says nothing of the program. It is told, never hidden,
and a third one fails: guests that die again and again are no accident any more.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import time
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol

ECHO = 7
ANSWER_SECONDS = 30.0
BOOT_SECONDS = 90.0
BOOT_TRIES = 3
NEW_GUESTS = 2
READY = b"guest ready"


class Guest:
    """The microVM that the tests share, by its Unix socket.

    `boot` is the program that makes a VMM serve `uds` and stays in the foreground, with the guest's console on stdout.
    """

    def __init__(self, uds: str, boot: str, console: Path) -> None:
        self.uds, self._boot, self._console = uds, boot, console
        self._vmm: subprocess.Popen[bytes] | None = None

    def answers(self) -> bool:
        """Tell whether the guest echoes a line."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(ANSWER_SECONDS)
            try:
                client.connect(self.uds)
                client.sendall(b"CONNECT %d\n" % ECHO)
                if not _line(client).startswith(b"OK "):
                    return False
                client.sendall(b"there?\n")
                return _line(client) == b"there?\n"
            except OSError:
                return False

    def replace(self) -> None:
        """Boot a new guest behind the same socket; raises RuntimeError if none comes up."""
        for _ in range(BOOT_TRIES):
            self.end()
            with self._console.open("ab") as console:
                start = console.tell()
                self._vmm = subprocess.Popen(
                    [self._boot, self.uds], stdin=subprocess.DEVNULL, stdout=console, stderr=console
                )
            deadline = time.monotonic() + BOOT_SECONDS
            while self._vmm.poll() is None and time.monotonic() < deadline:
                if READY in self._console.read_bytes()[start:]:
                    return
                time.sleep(0.2)
        raise RuntimeError(f"{BOOT_TRIES} guests did not come up: {self._console}")

    def end(self) -> None:
        """End the VMM that serves the socket, if one does."""
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(self.uds)
                peer = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            os.kill(struct.unpack("3i", peer)[0], signal.SIGKILL)
        except OSError:  # nobody listens
            pass
        if self._vmm:
            self._vmm.kill()
            self._vmm.wait()


def _line(client: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n") and (byte := client.recv(1)):
        line += byte
    return line


class Watch:
    """Runs each test, and once more where the guest was found dead after it failed."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._deaths: list[str] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool:
        """Take pytest's place in running one test."""
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
        while any(report.failed for report in reports) and len(self._deaths) < NEW_GUESTS and not self._guest.answers():
            self._deaths.append(f"{item.nodeid}: failed, and the guest did not answer: run again on a new one")
            self._guest.replace()
            item._initrequest()  # type: ignore[attr-defined]
            reports = runtestprotocol(item, log=False, nextitem=nextitem)
        for report in reports:
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Tell which guests died."""
        if self._deaths:
            terminalreporter.section("guests that died")
            for death in self._deaths:
                terminalreporter.line(death)

    def pytest_unconfigure(self) -> None:
        """End the guest if it is one of ours."""
        if self._deaths:
            self._guest.end()


def pytest_configure(config: pytest.Config) -> None:
    """Watch the guest that L1 has told of."""
    guest = Guest(
        os.environ["FASTVSOCK_TEST_UDS"],
        os.environ["FASTVSOCK_TEST_BOOT"],
        Path(os.environ["FASTVSOCK_TEST_CONSOLE"]),
    )
    config.pluginmanager.register(Watch(guest), "fastvsock-watch")
