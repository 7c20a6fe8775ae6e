"""`fastvsock bench`: splice against copy on the user's own machine, or through their own VM, in ten seconds."""

import argparse
import os
import platform
import signal
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from statistics import median
from types import FrameType

from .. import errors, handshake
from ..selfbench import sampling
from ..selfbench.sampling import Sample
from . import description
from .arguments import Parser

GIB = 1 << 30
ROUNDS = 6
WIDTH = 30  # characters of the progress bar
EXPLAINED = """\
Both engines move bytes in turn, in ROUNDS rounds. Figures are medians; ratios are of samples of one round, with the
lowest and the highest in brackets. CPU time is that of the relay alone. With --uds the bytes go through a real VM: up
into its discard service, down from its chargen service, as `fastvsock emulate` and inetd have them.
"""


class Ended(BaseException):
    """By the signal `number`: so that all the processes, and the far end's folder, are cleared away."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main(arguments: list[str]) -> int:
    """Run the subcommand and return the exit status."""
    options = _parse(arguments)
    ports = _ports(options)
    for number in sampling.SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup, and a shell's background jobs, mean it so
            signal.signal(number, _end)
    try:
        print(report(measure(options, ports), options.uds))
    except Ended as ended:
        return 128 + ended.number
    return 0


def _end(number: int, frame: FrameType | None) -> None:
    for later in sampling.SIGNALS:  # one is enough
        signal.signal(later, signal.SIG_IGN)
    raise Ended(number)


def measure(options: argparse.Namespace, ports: dict[str, int]) -> list[dict[str, dict[str, Sample]]]:
    """The samples of each round. A signal interrupts the measuring only, not what is made before and cleared after."""
    found: list[dict[str, dict[str, Sample]]] = []
    with sampling.signals_held_off(), ExitStack() as stack:
        uds = options.uds or stack.enter_context(sampling.far_end())
        stack.callback(_show_progress, None)
        with sampling.signals_held_off(hold=False):
            _show_progress(0.0)
            for samples in sampling.compare(uds, ports, options.seconds, options.rounds):
                found.append(samples)
                _show_progress(len(found) / options.rounds)
    return found


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        "fastvsock bench",
        usage="fastvsock bench [options]",
        description=description("bench"),
        epilog=EXPLAINED.replace("ROUNDS", str(ROUNDS)),
    )
    parser.add_argument("--uds", help="the VMM's Unix socket (default: a far end of our own, no VM)")
    parser.add_argument("--port", help="a guest port behind it (default: 9, discard, up and 19, chargen, down)")
    parser.add_argument(
        "--way", choices=("up", "down"), help="which way that port goes (default: down for 19, else up)"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="for the whole of it (default: 10)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"how often each is measured (default: {ROUNDS})")
    options = parser.parse_args(arguments)
    if not 0.01 <= options.seconds <= 1e5:
        raise errors.UsageError(f"--seconds is a number from 0.01 to 100000, not {options.seconds:g}")
    if not 1 <= options.rounds <= 1000:
        raise errors.UsageError(f"--rounds is a number from 1 to 1000, not {options.rounds}")
    if options.uds is None and (options.port or options.way):
        raise errors.UsageError("--port and --way are for a guest of yours: give its --uds too")
    if options.way and not options.port:
        raise errors.UsageError("--way is for a --port: give the port too")
    return options


def _ports(options: argparse.Namespace) -> dict[str, int]:
    if options.port is None:
        return sampling.PORTS
    port = handshake.parse_port(options.port)
    return {options.way or ("down" if port == sampling.CHARGEN else "up"): port}


def report(found: list[dict[str, dict[str, Sample]]], uds: str | None) -> str:
    """What was found, as a table of a line each way and engine, with the paired ratios below each way."""
    where = f"through {errors.printable(uds)}" if uds else "no VM, all on this machine"
    lines = [
        f"fastvsock bench: {where}; Linux {platform.release()}, {os.cpu_count()} CPUs, "
        f"Python {platform.python_version()}, {len(found)} round{'s' * (len(found) != 1)}",
        "",
        f"{'':6}{'engine':14}{'GiB/s':>8}{'CPU s/GiB':>12}",
    ]
    for way in found[0]:
        both = {engine: [samples[way][engine] for samples in found] for engine in sampling.ENGINES}
        for engine, samples in both.items():
            used = "/".join(sorted({sample.engine for sample in samples}))
            name = engine if used == engine else f"{engine} ({used})"
            rate = median(sample.rate for sample in samples) / GIB
            cost = median(sample.cost for sample in samples) * GIB
            lines.append(f"{way:6}{name:14}{rate:8.2f}{cost:12.3f}")
        pairs = list(zip(both["splice"], both["copy"], strict=True))
        faster = _ratio(ours.rate / theirs.rate for ours, theirs in pairs)
        cheaper = _ratio(ours.cost / theirs.cost for ours, theirs in pairs if theirs.cpu)
        lines += [f"      splice: {faster} the throughput of copy, {cheaper} its CPU time", ""]
    return "\n".join(lines).rstrip()


def _ratio(ratios: Iterable[float]) -> str:
    found = list(ratios)
    return f"{median(found):.2f} times ({min(found):.2f} to {max(found):.2f})" if found else "unknown times"


def _show_progress(share: float | None) -> None:
    """A bar on a terminal, nothing elsewhere; None takes it away."""
    if not sys.stderr.isatty():
        return
    if share is None:
        text = ""
    else:
        done = round(share * WIDTH)
        text = f"[{'#' * done}{'.' * (WIDTH - done)}] {share:4.0%}"
    print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
