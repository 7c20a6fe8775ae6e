"""`python -m bench run` measures, `python -m bench report` shows. Both tell more with --help."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

from .measures import MEASURES, Measure
from .peers import PEERS, Peer

EXPLAINED = """\
Every peer does the same work in every round, in turn, and ratios are taken within rounds. The file that `run` writes
is pyperf's: `python -m pyperf show|stats|compare_to` read it. README.md beside this program tells more.
"""

QUICK = 105.0  # seconds after which a quick run begins nothing more


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.act(options))
    except ImportError as error:
        print(f"bench: {error.name} is not installed: python -m pip install pyperf matplotlib", file=sys.stderr)
    except (BenchError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
    return 1


class BenchError(Exception):
    """What ends the program; the text is a sentence."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__, epilog=EXPLAINED)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="measure, and write a results file", epilog=_tables())
    run.formatter_class = argparse.RawDescriptionHelpFormatter
    run.add_argument("--quick", action="store_true", help="the small measures, few rounds: under two minutes")
    run.add_argument("--peers", metavar="A,B", help="only these (default: all)")
    run.add_argument("--measures", metavar="A,B", help="only these; latency-* means all of them (default: all)")
    run.add_argument("--rounds", type=int, metavar="N", help="so many rounds of each (default: see below)")
    run.add_argument("--size", type=int, metavar="MIB", help="bulk work of so many MiB (default: see below)")
    run.add_argument("-o", "--output", required=True, metavar="FILE", help="where the results go, as JSON")
    run.set_defaults(act=_run)
    report = commands.add_parser("report", help="show a results file as a table, and as pictures")
    report.add_argument("results", metavar="FILE", help="what `run` wrote")
    report.add_argument("--markdown", metavar="FILE", help="write the table there (default: to stdout)")
    report.add_argument("--pictures", metavar="DIR", help="write SVG and PNG pictures there; takes matplotlib")
    report.add_argument("--by-peer", metavar="DIR", help="write one file a peer there, for pyperf compare_to")
    report.set_defaults(act=_report)
    return parser


def _tables() -> str:
    lines = ["peers:", *(f"  {peer.name:16} {peer.title}" for peer in PEERS), ""]
    lines += ["measures (rounds in a full and in a quick run):"]
    lines += [f"  {m.name:18} {m.rounds[0]:3} {m.rounds[1] or '-':>3}   {m.title}" for m in MEASURES]
    return "\n".join(lines)


def _run(options: argparse.Namespace) -> int:
    from .build_c import BuildError
    from .rig import PeerError
    from .rounds import Rounds, progress

    try:
        rounds = Rounds(_measures(options), _peers(options.peers))
        for name, why in rounds.left_out.items():
            progress(f"{name} is left out: {why}\n" if sys.stderr.isatty() else f"{name} is left out: {why}")
        try:
            rounds.run(progress, QUICK if options.quick else float("inf"))
        except KeyboardInterrupt:
            print("\nbench: interrupted; what was measured is written", file=sys.stderr)
        suite = rounds.suite()
    except (BuildError, PeerError) as error:
        raise BenchError(str(error)) from None
    Path(options.output).parent.mkdir(parents=True, exist_ok=True)
    suite.dump(options.output, replace=True)
    failed = [f"{name}: {why}" for name, why in rounds.left_out.items()]
    progress(f"written to {options.output}; left out: {'; '.join(failed) or 'nothing'}")
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return 0


def _peers(wanted: str | None) -> list[Peer]:
    names = wanted.split(",") if wanted else [peer.name for peer in PEERS]
    known = {peer.name: peer for peer in PEERS}
    for name in names:
        if name not in known:
            raise BenchError(f"no peer is named {name}: there are {', '.join(known)}")
    return [known[name] for name in names]


def _measures(options: argparse.Namespace) -> list[tuple[Measure, int]]:
    """What is to be measured, with how many rounds. A measure that is asked for by name is in a quick run too."""
    asked = options.measures.split(",") if options.measures else []
    for pattern in asked:
        if not any(fnmatch(measure.name, pattern) for measure in MEASURES):
            raise BenchError(f"no measure is named {pattern}: see python -m bench run --help")
    chosen = []
    for measure in MEASURES:
        rounds = measure.rounds[options.quick]
        if any(fnmatch(measure.name, pattern) for pattern in asked) or (rounds and not asked):
            size = options.size << 20 if options.size and measure.kind == "bulk" else measure.size
            chosen.append((replace(measure, size=size), options.rounds or rounds or 3))
    return chosen


def _report(options: argparse.Namespace) -> int:
    from .report import markdown, split
    from .results import Results

    results = Results.load(options.results)
    text = markdown(results)
    if options.markdown:
        Path(options.markdown).write_text(text)
    else:
        print(text, end="")
    if options.pictures:
        from .plots import draw

        for path in draw(results, Path(options.pictures)):
            print(path, file=sys.stderr)
    if options.by_peer:
        split(options.results, Path(options.by_peer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
