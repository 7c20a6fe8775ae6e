"""`python -m bench run`, `exec`, `cp` and `kubectl` measure; `python -m bench report` shows what was measured."""

import argparse
import os
import pwd
import shlex
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .measures import MEASURES, Measure
from .peers import PEERS, Peer

if TYPE_CHECKING:
    from .results import Results
    from .rounds import Rounds

EPILOG = """\
Every peer does the same work in every round, in turn, and ratios are taken within rounds. `run` writes a file of
pyperf's format: `python -m pyperf show|stats|compare_to` read it. So do the others. bench/README.md explains the
measures.
"""

STAGES = {  # modules with MEASURES, PEERS and a function `stage`, of that name
    "exec": "measure commands in the guest, by `fastvsock exec` and by ssh",
    "cp": "measure copies of files and trees, by `fastvsock cp` and by tar, scp and rsync",
    "kubectl": "measure `kubectl cp` and `kubectl exec` by each way into a guest, as root",
}
QUICK = 105.0  # seconds after which a quick run begins no further measure


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(words)
    options.command = words
    try:
        return int(options.act(options))
    except ImportError as error:
        print(f"bench: {error.name} is not installed: python -m pip install pyperf matplotlib", file=sys.stderr)
    except (BenchError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
    return 1


class BenchError(Exception):
    """An error that ends the program; the text is a sentence."""


class Progress:
    """Reports to stderr; on a terminal each step overwrites the one before."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()

    def step(self, text: str) -> None:
        """Show what is being done now."""
        print(f"\r\033[K{text}" if self._terminal else text, end="" if self._terminal else "\n", file=sys.stderr)
        sys.stderr.flush()

    def line(self, text: str) -> None:
        """Print a line that stays."""
        print(f"\r\033[K{text}" if self._terminal else text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__, epilog=EPILOG)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    raw = argparse.RawDescriptionHelpFormatter
    common = _common()
    run = commands.add_parser(
        "run",
        help="measure the forwarders, and write the results to a file",
        parents=[common],
        epilog=_tables(PEERS, MEASURES),
        formatter_class=raw,
    )
    run.add_argument("--size", type=int, metavar="MIB", help="size of bulk work in MiB (default: by measure)")
    run.add_argument("--user", metavar="NAME", help="run the peers as this user, whose limits are not root's (as root)")
    run.set_defaults(act=_run)
    for name, help in STAGES.items():
        stage = commands.add_parser(name, help=help, parents=[common], description=f"{help[0].upper() + help[1:]}.")
        stage.set_defaults(act=_stage, stage=name, size=None)
    report = commands.add_parser("report", help="show a results file as Markdown and as pictures")
    report.add_argument("results", metavar="FILE", nargs="+", help="the files that `run` and the others wrote")
    report.add_argument("--markdown", metavar="PAGE", help="write all results to PAGE (default: to stdout)")
    report.add_argument(
        "--chart", metavar="SVG", help="draw how long a user of kubectl waits to SVG, and show it on the page"
    )
    report.add_argument("--readme", metavar="PAGE", help="replace the short table between the two markers in PAGE")
    report.add_argument("--plots", metavar="DIR", help="draw more pictures to DIR, as SVG; needs matplotlib")
    report.add_argument("--by-peer", metavar="DIR", help="write a file for each peer to DIR, for pyperf compare_to")
    report.set_defaults(act=_report)
    return parser


def _common() -> argparse.ArgumentParser:
    """The options of everything that measures."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--quick", action="store_true", help="take the small measures in few rounds: about two minutes")
    common.add_argument("--peers", metavar="A,B", help="measure only these peers (default: all)")
    common.add_argument("--measures", metavar="A,B", help="take only these measures; * and ? match any (default: all)")
    common.add_argument("--rounds", type=int, metavar="N", help="rounds of each measure (default: by measure)")
    common.add_argument("-o", "--output", required=True, metavar="FILE", help="write results here: .json or .json.gz")
    return common


def _tables(peers: Sequence[Peer], measures: Sequence[Measure]) -> str:
    lines = ["peers:", *(f"  {peer.name:16} {peer.title}" for peer in peers), ""]
    lines += ["measures (rounds in a full and in a quick run):"]
    lines += [f"  {m.name:18} {m.rounds[0]:3} {m.rounds[1] or '-':>3}   {m.title}" for m in measures]
    return "\n".join(lines)


def _run(options: argparse.Namespace) -> int:
    from .build_c import BuildError, program
    from .rounds import Rounds

    measures, peers = _measures(options, MEASURES), _peers(options.peers, PEERS)
    try:
        for name in ("ends", "farend", "forward"):
            program(name)  # before the change of user, who may not write there
    except BuildError as error:
        raise BenchError(str(error)) from None
    with _user(options.user):
        rounds = Rounds(measures, peers)
        suite = _measure(rounds, options)
    return _write(suite, rounds, options)


def _stage(options: argparse.Namespace) -> int:
    from .rounds import Rounds
    from .sample import PeerError

    try:
        module = import_module(f".{options.stage}", __package__)
    except ModuleNotFoundError as error:
        raise BenchError(f"{error.name} is not installed: python -m pip install -e '.[dev]'") from None
    measures, peers = _measures(options, module.MEASURES), _peers(options.peers, module.PEERS)
    with tempfile.TemporaryDirectory(prefix="fastvsock-bench-") as folder:
        try:
            with module.stage(Path(folder)) as stage:
                rounds = Rounds(measures, peers, stage.take)
                suite = _measure(rounds, options)
        except PeerError as error:
            raise BenchError(str(error)) from None
    return _write(suite, rounds, options)


def _measure(rounds: "Rounds", options: argparse.Namespace) -> Any:
    """Take all measures, or those that are done before Ctrl-C, and return them as a suite of pyperf."""
    from .sample import PeerError

    progress = Progress()
    for name, why in rounds.left_out.items():
        progress.line(f"{name} is left out: {why}")
    try:
        rounds.run(progress.step, QUICK if options.quick else float("inf"))
    except KeyboardInterrupt:
        progress.line("interrupted: what was measured until now is written")
    try:
        return rounds.suite(_without_output(options.command))
    except PeerError as error:
        raise BenchError(str(error)) from None


def _write(suite: Any, rounds: "Rounds", options: argparse.Namespace) -> int:
    Path(options.output).parent.mkdir(parents=True, exist_ok=True)
    suite.dump(options.output, replace=True)
    failed = [f"{name}: {why}" for name, why in rounds.left_out.items()]
    Progress().line(f"written to {options.output}; left out: {'; '.join(failed) or 'nothing'}")
    return 0


def _user(name: str | None) -> AbstractContextManager[None]:
    if name is None:
        return nullcontext()
    from .user import acting_as

    if os.geteuid() != 0:
        raise BenchError(f"cannot measure as user {name!r}: only root can change the user")
    try:
        return acting_as(pwd.getpwnam(name))
    except KeyError:
        raise BenchError(f"unknown user {name!r}") from None


def _without_output(words: Sequence[str]) -> str:
    """The command line as it is recorded: paths may hold a person's name."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-o", "--output")
    return shlex.join(["python", "-m", "bench", *parser.parse_known_args(words)[1], "-o", "FILE"])


def _peers(wanted: str | None, table: Sequence[Peer]) -> list[Peer]:
    known = {peer.name: peer for peer in table}
    names = wanted.split(",") if wanted else list(known)
    for name in names:
        if name not in known:
            raise BenchError(f"unknown peer {name!r}: use {', '.join(known)}")
    return [known[name] for name in names]


def _measures(options: argparse.Namespace, table: Sequence[Measure]) -> list[tuple[Measure, int]]:
    """The measures to take, each with its number of rounds. One that is named is taken in a quick run too."""
    asked = options.measures.split(",") if options.measures else []
    for pattern in asked:
        if not any(fnmatch(measure.name, pattern) for measure in table):
            raise BenchError(f"unknown measure {pattern!r}: python -m bench run --help lists them")
    chosen = []
    for measure in table:
        rounds = measure.rounds[options.quick]
        if any(fnmatch(measure.name, pattern) for pattern in asked) or (rounds and not asked):
            size = options.size << 20 if options.size and measure.kind == "bulk" else measure.size
            chosen.append((replace(measure, size=size), options.rounds or rounds or 3))
    return chosen


def _report(options: argparse.Namespace) -> int:
    from .report import split
    from .results import Results, ResultsError

    results = Results.load(*options.results)
    try:
        _write_pages(results, options)
    except ResultsError as error:
        raise BenchError(str(error)) from None
    if options.plots:
        from .plots import draw

        for path in draw(results, Path(options.plots)):
            print(path, file=sys.stderr)
    if options.by_peer:
        split(options.results, Path(options.by_peer))
    return 0


def _write_pages(results: "Results", options: argparse.Namespace) -> None:
    from .chart import draw
    from .report import page, replace_table

    chart = None
    if options.chart:
        Path(options.chart).write_text(draw(results))
        chart = os.path.relpath(options.chart, Path(options.markdown).parent if options.markdown else ".")
    text = page(results, chart)
    if options.markdown:
        Path(options.markdown).write_text(text)
    elif not options.readme:
        print(text, end="")
    if options.readme:
        readme = Path(options.readme)
        readme.write_text(replace_table(readme.read_text(), results))


if __name__ == "__main__":
    sys.exit(main())
