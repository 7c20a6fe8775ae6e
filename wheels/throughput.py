"""What a relay costs: CPU seconds for a GiB, splice and copy, up and down, as a pyperf benchmark.

The relay runs in the worker process, and whoever feeds and drains it in forked children, so that the worker's own CPU
time (user and system, which is where a splice works) is the relay's. The value is CPU time and not wall time, because
it is the steady one of the two; wall time on a busy or emulated machine says little.

One run of this program measures all four once, one right after the other; `validate.py` runs it several times, in
turns with the order reversed, and compares splice with copy within each run. An engine that falls back raises here,
and so does one byte too few.
"""

import argparse
import os
import socket
import time
from collections.abc import Callable

import pyperf  # type: ignore[import-untyped]

from fastvsock import relay

GIB = 1 << 30
PIECE = 1 << 20  # bytes a read or write of the children
WAYS = ("up", "down")
ENGINES = ("splice", "copy")


def main() -> None:
    """Measure each way with each engine."""
    runner = pyperf.Runner(add_cmdline_args=_pass_on, processes=1, values=3, warmups=1, loops=1)
    runner.argparser.add_argument("--mebibytes", type=int, default=256, help="payload of one transfer")
    runner.argparser.add_argument("--reverse", action="store_true", help="copy before splice")
    options = runner.parse_args()
    for way in WAYS:
        for engine in reversed(ENGINES) if options.reverse else ENGINES:
            runner.bench_time_func(f"{way}, {engine}", transfers, way, engine, options.mebibytes << 20)


def _pass_on(command: list[str], options: argparse.Namespace) -> None:
    """pyperf's workers get the same options."""
    command.append(f"--mebibytes={options.mebibytes}")
    if options.reverse:
        command.append("--reverse")


def transfers(loops: int, way: str, engine: str, size: int) -> float:
    """CPU seconds a GiB, times `loops`."""
    return sum((up if way == "up" else down)(engine, size) for _ in range(loops)) * GIB / size


def up(engine: str, size: int) -> float:
    """A pipe full of bytes goes to a guest that reads them all, and closes."""
    near, guest = socket.socketpair()
    rfd, into = os.pipe()
    drain = _child(lambda: _drain(guest.fileno(), size), near.fileno(), rfd, into)
    feed = _child(lambda: _feed(into, size), near.fileno(), guest.fileno(), rfd)
    guest.close()
    os.close(into)
    with near, open(os.devnull, "wb") as nowhere:
        before = time.process_time()
        result = relay(near, rfd, nowhere.fileno(), engine=engine, linger=float("inf"))
        spent = time.process_time() - before
    os.close(rfd)
    _wait(feed, drain)
    _hold((result.sent, result.up), (size, engine))
    return spent


def down(engine: str, size: int) -> float:
    """A guest sends and closes; a reader takes it all from a pipe. The input is open and silent."""
    near, guest = socket.socketpair()
    rfd, into = os.pipe()
    out, wfd = os.pipe()
    feed = _child(lambda: _feed(guest.fileno(), size), near.fileno(), rfd, into, out, wfd)
    drain = _child(lambda: _drain(out, size), near.fileno(), guest.fileno(), rfd, into, wfd)
    guest.close()
    os.close(out)
    with near:
        before = time.process_time()
        result = relay(near, rfd, wfd, engine=engine)
        spent = time.process_time() - before
    for fd in (rfd, into, wfd):
        os.close(fd)
    _wait(feed, drain)
    _hold((result.received, result.down), (size, engine))
    return spent


def _child(work: Callable[[], None], *foreign: int) -> int:
    """A process that does `work`, without the descriptors `foreign`; its number."""
    number = os.fork()
    if number:
        return number
    status = 1
    try:
        for fd in foreign:
            os.close(fd)
        work()
        status = 0
    finally:
        os._exit(status)


def _feed(fd: int, size: int) -> None:
    piece = memoryview(bytes(PIECE))
    while size:
        size -= os.write(fd, piece[: min(size, PIECE)])


def _drain(fd: int, size: int) -> None:
    buffer = bytearray(PIECE)
    while size:
        got = os.readv(fd, [buffer])
        if not got:
            os._exit(1)
        size -= got


def _wait(*children: int) -> None:
    for child in children:
        _hold(os.waitpid(child, 0)[1], 0)


def _hold(got: object, wanted: object) -> None:
    if got != wanted:
        raise RuntimeError(f"the relay did {got!r}, and not {wanted!r}")


if __name__ == "__main__":
    main()
