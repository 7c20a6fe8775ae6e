"""The core of what the package promises, checked with the standard library alone: for places where pytest cannot run.

`python core_check.py [--python PYTHON]` in an environment where a wheel is installed; PYTHON is what starts that
interpreter once more (under qemu-user that is a script, not sys.executable). Each check moves bytes whose SHA-256 is
compared at the other end, with each engine, and the engine that the result names must be the one that was asked for:
splice that is missing, or that fell back, fails here. One JSON object is printed; exit status 1 if a check failed.
"""

import argparse
import faulthandler
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import fastvsock
from fastvsock import Guest, RelayResult, connect, engines, relay

SIZE = 8 << 20  # bytes a check moves
HANG = 300.0  # seconds; qemu on a busy machine is slow
ENGINES = ("splice", "copy")
PORT = 5000


class Wrong(Exception):
    """A promise that was not kept."""


def main() -> int:
    """Run every check and print what came of it."""
    faulthandler.dump_traceback_later(HANG, exit=True)
    parser = argparse.ArgumentParser()
    parser.add_argument("--python", default=sys.executable)
    python = parser.parse_args().python
    failures = {}
    checks = list(_checks(python))
    for name, check in checks:
        try:
            check()
        except Exception:
            failures[name] = traceback.format_exc(limit=-3)
    facts = {
        "version": fastvsock.__version__,
        "python": sys.version.split()[0],
        "machine": os.uname().machine,
        "package": os.path.dirname(fastvsock.__file__),
        "checks": [name for name, _ in checks],
        "failures": failures,
    }
    print(json.dumps(facts))
    return 1 if failures else 0


def _checks(python: str) -> Iterator[tuple[str, Callable[[], None]]]:
    yield "splice is what auto chooses", splice_is_chosen
    yield "the package's face is there", face
    for engine in ENGINES:
        yield f"echo, {engine}", partial(echo, engine)
        yield f"source, {engine}", partial(source, engine)
        yield f"end of input is passed on, {engine}", partial(end_of_input, engine)
        yield f"no input is no end, {engine}", partial(no_input, engine)
        yield f"no reader ends it, {engine}", partial(no_reader, engine)
        yield f"the command, {engine}", partial(command, python, engine)
        yield f"a guest's commands and files, {engine}", partial(channels, python, engine)
    yield "payload behind the handshake", handshake


def splice_is_chosen() -> None:
    """The extension is there, and is the abi3 one."""
    engines.choose("splice")  # tells why it cannot be, where it is missing
    from fastvsock.engines import _splice

    _equal(engines.choose("auto"), "splice")
    _equal(os.path.basename(_splice.__file__), "_splice.abi3.so")


def face() -> None:
    """What `import fastvsock` promises: each name is what it says, however often it is asked for."""
    for name in ("AsyncGuest", "Guest", "connect", "open_connection", "relay") * 2:
        if not callable(getattr(fastvsock, name)):
            raise Wrong(f"fastvsock.{name} is {getattr(fastvsock, name)!r}")


def echo(engine: str) -> None:
    """What goes up comes back down, all of it, while both directions are busy."""
    payload = os.urandom(SIZE)
    with _relay(engine, linger=0.5) as near:
        guest = _start(_echo, near.guest)
        feeder = _start(_feed, near.into, payload)
        back = _digest(near.out)
        result = near.result()
        _join(guest, feeder)
    _equal(back, hashlib.sha256(payload).hexdigest())
    _equal((result.sent, result.received, result.ended), (SIZE, SIZE, "guest"))
    _equal((result.up, result.down), (engine, engine))


def source(engine: str) -> None:
    """All that the guest sent before it closed arrives, and the relay ends although its input is open."""
    payload = os.urandom(SIZE)
    with _relay(engine) as near:
        guest = _start(_send_and_close, near.guest, payload)
        got = _digest(near.out)
        result = near.result()
        _join(guest)
    _equal(got, hashlib.sha256(payload).hexdigest())
    _equal((result.received, result.ended, result.down), (SIZE, "guest", engine))


def end_of_input(engine: str) -> None:
    """After the linger the guest sees the end, with every byte before it, and can still answer."""
    payload = os.urandom(SIZE)
    answers: list[str] = []
    with _relay(engine, linger=0.2) as near:

        def guest() -> None:
            with near.guest:
                answers.append(_digest(near.guest.fileno(), close=False))
                near.guest.sendall(b"the answer")

        thread = _start(guest)
        feeder = _start(_feed, near.into, payload)
        answer = os.read(near.out, 100)
        result = near.result()
        _join(thread, feeder)
    _equal(answers, [hashlib.sha256(payload).hexdigest()])
    _equal((answer, result.ended, result.up), (b"the answer", "guest", engine))


def no_input(engine: str) -> None:
    """An input without a byte is receive-only: no half-close, however late the guest sends."""
    with _relay(engine) as near:
        os.close(near.into)
        near.into = -1
        time.sleep(0.8)  # more than the usual linger
        near.guest.setblocking(False)
        try:
            _equal(near.guest.recv(1), "no end of file")
        except BlockingIOError:
            pass
        near.guest.sendall(b"late")
        near.guest.close()
        _equal(os.read(near.out, 100), b"late")
        _equal(near.result().ended, "guest")


def no_reader(engine: str) -> None:
    """A relay whose output nobody reads any more ends."""
    with _relay(engine) as near:
        os.close(near.out)
        near.out = -1
        near.guest.sendall(b"for nobody")
        _equal(near.result().ended, "reader")


def handshake() -> None:
    """Bytes right behind the VMM's answer are payload, and `connect` leaves them in the socket."""
    with _listener() as (uds, accept), fastvsock_connection(uds, accept) as sock:
        _equal(sock.recv(100, socket.MSG_WAITALL), b"payload")


@contextmanager
def fastvsock_connection(uds: str, accept: Callable[[bytes], socket.socket]) -> Iterator[socket.socket]:
    """A connection to a VMM that sends its answer and the first payload in one piece, and closes."""
    vmm = _start(lambda: accept(b"OK 1073741824\npayload").close())
    with connect(uds, PORT) as sock:
        _join(vmm)
        yield sock


def command(python: str, engine: str) -> None:
    """The program itself, as a child: stdin to the guest, its echo to stdout, exit status 0."""
    payload = os.urandom(SIZE)
    with _listener() as (uds, accept):
        guest = _start(lambda: _echo(accept(b"OK 1073741824\n")))
        words = [python, "-m", "fastvsock.runcvm_vsock_connect", "--engine", engine, "--stats", uds, str(PORT)]
        done = subprocess.run(words, input=payload, capture_output=True, timeout=HANG, check=False)
        _join(guest)
    _equal((done.returncode, hashlib.sha256(done.stdout).hexdigest()), (0, hashlib.sha256(payload).hexdigest()))
    _equal(done.stderr.decode().count(f", {engine};"), 2)


def channels(python: str, engine: str) -> None:
    """A command, and a file there and back, through an agent, whose both ends use the engine."""
    payload = os.urandom(SIZE)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for way in ("up", "down"):
            (folder / way).mkdir()
        uds, sent, received = folder / "agent.sock", folder / "sent", folder / "down" / "sent"
        sent.write_bytes(payload)
        words = [python, "-m", "fastvsock", "agent", "--engine", engine, "--listen", f"unix:{uds}"]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as agent:
            if not agent.stdout or not agent.stdout.readline():
                raise Wrong("the agent did not start")
            try:
                guest = Guest(uds, timeout=HANG, engine=engine)
                done = guest.run(["sh", "-c", "cat; exit 3"], input=payload, capture_output=True, timeout=HANG)
                guest.put(sent, folder / "up")
                guest.get(folder / "up" / "sent", folder / "down")
            finally:
                agent.terminate()
        _equal((done.returncode, done.stdout == payload, done.stderr), (3, True, b""))
        _equal(received.read_bytes() == payload, True)


class _Near:
    """A relay that runs in a thread, with the ends that a check holds."""

    def __init__(self, engine: str, linger: float | None) -> None:
        self.rfd, self.into = os.pipe()
        self.out, self.wfd = os.pipe()
        self._sock, self.guest = socket.socketpair()
        self._results: list[RelayResult] = []
        self._thread = _start(self._run, engine, linger)

    def _run(self, engine: str, linger: float | None) -> None:
        try:
            self._results.append(relay(self._sock, self.rfd, self.wfd, linger=linger, engine=engine))
        finally:  # also where it fails, so that nobody waits for it
            os.close(self.wfd)
            self.wfd = -1
            self._sock.close()

    def result(self) -> RelayResult:
        _join(self._thread)
        if not self._results:
            raise Wrong("the relay raised an error (above)")
        return self._results[0]

    def close(self) -> None:
        self.guest.close()
        self._sock.close()
        for fd in (self.rfd, self.into, self.out, self.wfd):
            if fd >= 0:
                try:
                    os.close(fd)
                except OSError:
                    pass  # a feeder or a digest has closed it


@contextmanager
def _relay(engine: str, linger: float | None = None) -> Iterator[_Near]:
    near = _Near(engine, linger)
    try:
        yield near
    finally:
        near.close()


@contextmanager
def _listener() -> Iterator[tuple[str, Callable[[bytes], socket.socket]]]:
    """A UDS whose VMM is the check: its path, and what accepts one connection and answers it."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        server = stack.enter_context(socket.socket(socket.AF_UNIX))
        uds = str(Path(folder) / "v.sock")
        server.bind(uds)
        server.listen()

        def accept(answer: bytes) -> socket.socket:
            connection, _ = server.accept()
            line = b""
            while not line.endswith(b"\n"):
                line += connection.recv(1)
            _equal(line, f"CONNECT {PORT}\n".encode())
            connection.sendall(answer)
            return connection

        yield uds, accept


def _start(function: Callable[..., object], *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    return thread


def _join(*threads: threading.Thread) -> None:
    for thread in threads:
        thread.join(HANG)
        if thread.is_alive():
            raise Wrong("it hangs")


def _echo(sock: socket.socket) -> None:
    with sock:
        while data := sock.recv(1 << 16):
            sock.sendall(data)


def _send_and_close(sock: socket.socket, payload: bytes) -> None:
    with sock:
        sock.sendall(payload)


def _feed(fd: int, payload: bytes) -> None:
    view = memoryview(payload)
    while view:
        view = view[os.write(fd, view[: 1 << 20]) :]
    os.close(fd)


def _digest(fd: int, close: bool = True) -> str:
    """The SHA-256 of all that can be read from `fd`."""
    total = hashlib.sha256()
    while data := os.read(fd, 1 << 20):
        total.update(data)
    if close:
        os.close(fd)
    return total.hexdigest()


def _equal(got: object, wanted: object) -> None:
    if got != wanted:
        raise Wrong(f"{got!r}, not {wanted!r}")


if __name__ == "__main__":
    sys.exit(main())
