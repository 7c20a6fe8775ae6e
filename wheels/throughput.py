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

import pyperf  # type: ignore[import-untyped]

from fastvsock import relay
from wheels.feeding import child, drain, feed, hold, wait

GIB = 1 << 30
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
    reader = child(lambda: drain(guest.fileno(), size), near.fileno(), rfd, into)
    writer = child(lambda: feed(into, size), near.fileno(), guest.fileno(), rfd)
    guest.close()
    os.close(into)
    with near, open(os.devnull, "wb") as nowhere:
        before = time.process_time()
        result = relay(near, rfd, nowhere.fileno(), engine=engine, linger=float("inf"))
        spent = time.process_time() - before
    os.close(rfd)
    wait(writer, reader)
    hold((result.sent, result.up), (size, engine))
    return spent


def down(engine: str, size: int) -> float:
    """A guest sends and closes; a reader takes it all from a pipe. The input is open and silent."""
    near, guest = socket.socketpair()
    rfd, into = os.pipe()
    out, wfd = os.pipe()
    writer = child(lambda: feed(guest.fileno(), size), near.fileno(), rfd, into, out, wfd)
    reader = child(lambda: drain(out, size), near.fileno(), guest.fileno(), rfd, into, wfd)
    guest.close()
    os.close(out)
    with near:
        before = time.process_time()
        result = relay(near, rfd, wfd, engine=engine)
        spent = time.process_time() - before
    for fd in (rfd, into, wfd):
        os.close(fd)
    wait(writer, reader)
    hold((result.received, result.down), (size, engine))
    return spent


if __name__ == "__main__":
    main()
