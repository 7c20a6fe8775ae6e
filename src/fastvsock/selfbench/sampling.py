"""Splice against copy, measured with nothing but this package: what `fastvsock bench` shows.

One sample is one relay in a process of its own, for a fraction of a second: its CPU clock counts the relay and nothing
else. A producer or a consumer, in another process, is at the near end; behind the Unix socket is a real guest, or the
`FarEnd` of this module. Samples alternate between the engines, and within a round each way is measured with both, so
a ratio is always of two samples taken one after the other.

Processes are forked, not spawned: they need no start-up, and the connection that this process has made is theirs. Every
one of them ends when its pipes do, and is killed if it has not when this process leaves.
"""

import _socket
import json
import os
import select
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import NoReturn

from .. import handshake
from ..engines import choose, queues
from ..errors import BenchmarkError, printable
from ..relaying import Relay

DISCARD, CHARGEN = 9, 19  # RFC 863, RFC 864
PORTS = {"up": DISCARD, "down": CHARGEN}
ENGINES = ("splice", "copy")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
WRITE = bytes(1 << 16)
READ_SIZE = 1 << 20


@dataclass(frozen=True)
class Sample:
    """What one relay did: bytes moved, in how many seconds, at what cost; `engine` is what really served."""

    way: str
    engine: str
    moved: int
    seconds: float
    cpu: float

    @property
    def rate(self) -> float:
        """Bytes a second."""
        return self.moved / self.seconds

    @property
    def cost(self) -> float:
        """CPU seconds a byte."""
        return self.cpu / self.moved


def compare(uds: str, ports: dict[str, int], seconds: float, rounds: int) -> Iterator[dict[str, dict[str, Sample]]]:
    """Measure for about so many `seconds`; yields each round's samples, by way and engine.

    `ports` says by which guest port to measure ``up`` and ``down``: one that reads whatever comes, one that never stops
    writing. Raises what `connect()` raises, `EngineError` where splice was not built, and `BenchmarkError`.
    """
    choose("splice")
    each = seconds / (rounds * len(ports) * len(ENGINES))
    for number in range(rounds):
        order = ENGINES if number % 2 == 0 else ENGINES[::-1]
        yield {way: {engine: take(uds, port, way, engine, each) for engine in order} for way, port in ports.items()}


def take(uds: str, port: int, way: str, engine: str, seconds: float) -> Sample:
    """Relay for so many seconds. Raises what `connect()` raises, and `BenchmarkError`."""
    sock = handshake.connect(uds, port)
    near, near_end = os.pipe()
    result, result_end = os.pipe()
    if way == "up":
        near, near_end = near_end, near  # `near` is the end that the producer or the consumer holds
    use = _produce if way == "up" else _consume

    def relay() -> None:
        os.close(near)
        _relay(sock, near_end, way, engine, seconds, result_end)

    def end() -> None:
        os.close(near_end)
        sock.close()
        use(near)

    try:
        with _children(relay, end):
            for fd in (near, near_end, result_end):
                os.close(fd)
            sock.close()
            told = b""
            while data := os.read(result, 65536):
                told += data
    finally:
        os.close(result)
    return _sample(json.loads(told or "{}"), uds, port, way)


def _sample(told: dict[str, object], uds: str, port: int, way: str) -> Sample:
    where = f"{printable(uds)}: guest port {port}"
    service = "reads whatever comes (discard, port 9)" if way == "up" else "never stops writing (chargen, port 19)"
    if told.pop("ended", "error") != "stopped":
        why = told.get("fault") or "it closed the connection"
        raise BenchmarkError(f"{where} ended the measurement ({why}): choose a port whose service {service}")
    if told.pop("answered", False):
        raise BenchmarkError(f"{where} answered while it was written to: choose a port whose service {service}")
    sample = Sample(**told)  # type: ignore[arg-type]
    if sample.moved <= 0:
        raise BenchmarkError(f"{where} moved nothing {way}: choose a port whose service {service}")
    return sample


def _relay(sock: _socket.socket, fd: int, way: str, engine: str, seconds: float, result: int) -> None:
    """The relay's process: its other direction is an idle pipe of our own."""
    idle_rfd, idle_wfd = os.pipe()
    rfd, wfd = (fd, idle_wfd) if way == "up" else (idle_rfd, fd)
    relay = Relay(sock, rfd, wfd, engine=engine)
    timer = threading.Timer(seconds, relay.stop)
    timer.daemon = True
    timer.start()
    before = time.process_time()
    done = relay.run()
    cpu = time.process_time() - before
    # What lies in the socket's own queue has not been moved.
    queued = queues(sock.fileno())[1]
    moved = max(done.sent - queued, 0) if way == "up" else done.received
    sample = Sample(way, done.up if way == "up" else done.down, moved, done.seconds, cpu)
    told = asdict(sample) | {"ended": done.ended, "answered": way == "up" and done.received > 0}
    if done.error is not None:
        told["fault"] = str(done.error)
    os.write(result, json.dumps(told).encode())


def _produce(fd: int) -> None:
    while True:
        os.write(fd, WRITE)  # BrokenPipeError is the end


def _consume(fd: int) -> None:
    buffer = bytearray(READ_SIZE)
    while os.readv(fd, [buffer]):
        pass


@contextmanager
def far_end() -> Iterator[str]:
    """A VMM's side, with discard and chargen behind it, in a process of its own; gives the path of its socket."""
    with tempfile.TemporaryDirectory(prefix="fastvsock-") as folder:
        uds = os.path.join(folder, "v.sock")
        alive, here = os.pipe()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(uds)
            listener.listen()

            def serve() -> None:
                os.close(here)
                while alive not in select.select([listener.fileno(), alive], [], [])[0]:
                    _serve(listener)

            with _children(serve):
                try:
                    yield uds
                finally:
                    os.close(here)
        os.close(alive)


def _serve(listener: socket.socket) -> None:
    """One connection, to its end."""
    connection, _ = listener.accept()
    with connection:
        line = b""
        while not line.endswith(b"\n"):
            byte = connection.recv(1)
            if not byte:
                return
            line += byte
        connection.sendall(b"OK 1073741824\n")
        try:
            if line == handshake.request(DISCARD):
                buffer = bytearray(READ_SIZE)
                while connection.recv_into(buffer):
                    pass
            else:
                while True:
                    connection.sendall(WRITE)
        except ConnectionError:
            pass


@contextmanager
def _children(*works: Callable[[], None]) -> Iterator[Sequence[int]]:
    """A process for each of `works`; none of them is left when the block ends."""
    pids: list[int] = []
    try:
        for work in works:
            with signals_held_off():
                pids.append(_fork(work))
        yield pids
    finally:
        with signals_held_off():
            for pid in pids:
                os.kill(pid, signal.SIGKILL)  # not waited for yet, so the number is still its own
            for pid in pids:
                os.waitpid(pid, 0)


@contextmanager
def signals_held_off(hold: bool = True) -> Iterator[None]:
    """Let what `SIGNALS` do to this process wait until the block ends; without `hold`, let them in within one."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK if hold else signal.SIG_UNBLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _fork(work: Callable[[], None]) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    return pid or _work(work)


def _work(work: Callable[[], None]) -> NoReturn:
    try:
        for number in SIGNALS:  # a terminal's reach each process by itself
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        work()
    except BaseException:
        if os.environ.get("FASTVSOCK_DEBUG") == "1":
            sys.excepthook(*sys.exc_info())
    finally:
        os._exit(0)
